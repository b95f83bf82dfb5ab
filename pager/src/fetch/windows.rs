//! Guesses that are out: which ranges were prefetched, so that a stream that passes confirms them
//! and one that turned away gives them back.

use std::{collections::VecDeque, ops::Range};

use super::Object;
use crate::{policy::prefetch::Want, sync::Arc};

/// Windows remembered. Older ones are forgotten: their units then count as any other.
const WINDOWS_MAX: usize = 4096;

/// The latest windows are never taken back to make room for the next.
const KEPT_LATEST: usize = 2;

/// Windows looked at, from the oldest, for one that has something to give back. What is still on
/// its way cannot be.
const LOOKS: usize = 16;

struct Window {
    object: Arc<Object>,
    units: Range<u64>,
    backwards: bool,
}

/// All windows of one pager, oldest first.
#[derive(Default)]
pub(super) struct Windows(VecDeque<Window>);

impl Windows {
    /// `want` was claimed.
    pub(super) fn push(&mut self, object: &Arc<Object>, want: Want) {
        if self.0.len() == WINDOWS_MAX
            && let Some(Window { object, mut units, .. }) = self.0.pop_front()
        {
            // Nobody will say of these whether they were right: they must not count for ever.
            units.by_ref().for_each(|unit| object.ledger.forget_guess(unit));
        }
        let Want { units, backwards, .. } = want;
        self.0.push_back(Window { object: object.clone(), units, backwards });
    }

    /// A reader has reached `unit`: what its stream prefetched before was of use.
    pub(super) fn reached(&mut self, object: &Arc<Object>, unit: u64) {
        let holds =
            |window: &Window| Arc::ptr_eq(&window.object, object) && window.units.contains(&unit);
        let Some(at) = self.0.iter().rposition(holds) else { return };
        let Window { units, backwards, .. } = &mut self.0[at];
        let backwards = *backwards;
        // Where the window met the one before it.
        let mut edge = if backwards { units.end } else { units.start };
        let passed = if backwards { unit..units.end } else { units.start..unit + 1 };
        *units = if backwards { units.start..unit } else { unit + 1..units.end };
        passed.for_each(|unit| object.ledger.confirm(unit));
        // Windows of one stream lie end to start.
        while let Some(before) = self.0.iter().position(|window| {
            let met = if backwards { window.units.start } else { window.units.end };
            Arc::ptr_eq(&window.object, object)
                && window.backwards == backwards
                && met == edge
                && !window.units.is_empty()
        }) {
            let window = self.0.remove(before).expect("the position was just found");
            edge = if backwards { window.units.end } else { window.units.start };
            window.units.for_each(|unit| object.ledger.confirm(unit));
        }
        self.0.retain(|window| !window.units.is_empty());
    }

    /// Gives up the oldest window that has something to give, and whose stream has not gone on, to
    /// make room for the next. False if there is none.
    pub(super) fn drop_oldest(&mut self) -> bool {
        self.drop_one_of(self.0.len().saturating_sub(KEPT_LATEST))
    }

    /// Makes room for demand until there is `enough`, from guesses that nobody follows any more:
    /// the oldest first, but not the latest windows of an object, which are what a reader that goes
    /// on is about to touch. False if there is nothing more to give.
    pub(super) fn yield_until(&mut self, enough: impl Fn() -> bool) -> bool {
        let mut at = 0;
        while at < self.0.len().min(LOOKS) {
            if enough() {
                return true;
            }
            let window = &self.0[at];
            let later = self.0.iter().skip(at + 1);
            let later = later.filter(|later| Arc::ptr_eq(&later.object, &window.object));
            if later.take(KEPT_LATEST).count() < KEPT_LATEST {
                at += 1;
                continue;
            }
            // What would have been read last goes first.
            let mut left = window.units.clone();
            let ledger = &window.object.ledger;
            let mut dropped = false;
            while !dropped
                && let Some(unit) = if window.backwards { left.next() } else { left.next_back() }
            {
                dropped = ledger.drop_guess(unit);
            }
            match dropped {
                true => self.0[at].units = left,
                // On its way still, or given up already.
                false => at += 1,
            }
        }
        enough()
    }

    /// The same where there is no other way: even the latest.
    pub(super) fn drop_any(&mut self) -> bool {
        self.drop_one_of(self.0.len())
    }

    fn drop_one_of(&mut self, mut oldest: usize) -> bool {
        let mut at = 0;
        while at < oldest.min(LOOKS) {
            let Window { object, units, .. } = &self.0[at];
            let (mut dropped, mut kept) = (false, false);
            for unit in units.clone() {
                dropped |= object.ledger.drop_guess(unit);
                // On its way: it can be given up later.
                kept |= object.ledger.is_guess(unit);
            }
            if kept {
                at += 1;
            } else {
                self.0.remove(at);
                oldest -= 1;
            }
            if dropped {
                return true;
            }
        }
        false
    }

    pub(super) fn forget(&mut self, id: u64) {
        self.0.retain(|window| window.object.id != id);
    }
}
