//! Guesses that are out: which ranges were prefetched, so that a stream that passes confirms them
//! and one that turned away gives them back.

use std::{collections::VecDeque, ops::Range};

use super::Object;
use crate::sync::Arc;

/// Windows remembered. Older ones are forgotten: their units then leave as their policy decides.
const WINDOWS_MAX: usize = 4096;

/// The latest windows are never taken back to make room for the next.
const KEPT_LATEST: usize = 2;

/// Windows looked at, from the oldest, for one that has something to give back. What is still on
/// its way cannot be.
const LOOKS: usize = 16;

struct Window {
    object: Arc<Object>,
    units: Range<u64>,
}

/// All windows of one pager, oldest first.
#[derive(Default)]
pub(super) struct Windows(VecDeque<Window>);

impl Windows {
    pub(super) fn push(&mut self, object: &Arc<Object>, units: Range<u64>) {
        if self.0.len() == WINDOWS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(Window { object: object.clone(), units });
    }

    /// A reader has reached `unit`: what its stream prefetched before was of use.
    pub(super) fn reached(&mut self, object: &Arc<Object>, unit: u64) {
        let holds =
            |window: &Window| Arc::ptr_eq(&window.object, object) && window.units.contains(&unit);
        let Some(at) = self.0.iter().rposition(holds) else { return };
        for passed in self.0[at].units.start..=unit {
            object.ledger.confirm(passed);
        }
        let mut start = self.0[at].units.start;
        self.0[at].units.start = unit + 1;
        // Windows of one stream lie end to start.
        while let Some(before) = self.0.iter().position(|window| {
            Arc::ptr_eq(&window.object, object)
                && window.units.end == start
                && !window.units.is_empty()
        }) {
            let window = self.0.remove(before).expect("the position was just found");
            for passed in window.units.clone() {
                object.ledger.confirm(passed);
            }
            start = window.units.start;
        }
        self.0.retain(|window| !window.units.is_empty());
    }

    /// Gives up the oldest window that has something to give, and whose stream has not gone on, to
    /// make room for the next. False if there is none.
    pub(super) fn drop_oldest(&mut self) -> bool {
        self.drop_one_of(self.0.len().saturating_sub(KEPT_LATEST))
    }

    /// The same to make room for demand: even the latest.
    pub(super) fn drop_any(&mut self) -> bool {
        self.drop_one_of(self.0.len())
    }

    fn drop_one_of(&mut self, oldest: usize) -> bool {
        for at in 0..oldest.min(LOOKS) {
            let window = &self.0[at];
            let mut dropped = 0;
            for unit in window.units.clone() {
                dropped += u64::from(window.object.ledger.drop_guess(unit));
            }
            if dropped > 0 {
                self.0.remove(at);
                return true;
            }
        }
        false
    }

    pub(super) fn forget(&mut self, id: u64) {
        self.0.retain(|window| window.object.id != id);
    }
}
