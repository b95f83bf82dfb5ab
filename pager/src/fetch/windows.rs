//! Guesses that are out: which ranges were prefetched, so that a stream that passes confirms them
//! and one that turned away gives them back.

use std::{collections::VecDeque, ops::Range};

use super::Object;
use crate::sync::Arc;

/// Windows remembered. Older ones are forgotten: their units then leave as their policy decides.
const WINDOWS_MAX: usize = 4096;

/// The latest windows are never taken back to make room for the next.
const KEPT_LATEST: usize = 2;

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

    /// Gives up the oldest window, whose stream has not gone on, to make room for the next. False
    /// if there is none to give up.
    pub(super) fn drop_oldest(&mut self) -> bool {
        self.0.len() > KEPT_LATEST && self.drop_any()
    }

    /// Gives up the oldest window, to make room for demand. False if there is none.
    pub(super) fn drop_any(&mut self) -> bool {
        let Some(window) = self.0.pop_front() else { return false };
        for unit in window.units {
            window.object.ledger.drop_guess(unit);
        }
        true
    }

    pub(super) fn forget(&mut self, id: u64) {
        self.0.retain(|window| window.object.id != id);
    }
}
