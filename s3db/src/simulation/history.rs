//! What clients know of their transactions, for the comparison with the store.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::{blob::Value, commit::Level, simulation::Violation, stamp::Stamp};

/// What a client knows of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was told that it is committed.
    Committed,
    /// It was told that it is not.
    Failed,
    /// It does not know: no answer, or it crashed.
    Uncertain,
}

/// A transaction that a client tried to commit.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Who.
    pub client: u64,
    /// In which life.
    pub epoch: u64,
    /// At which level.
    pub level: Level,
    /// Leaf key, stamp, and what was written.
    pub writes: Vec<(Bytes, Stamp, Option<Value>)>,
    /// A later life of the same client had begun before the commit did.
    pub is_late: bool,
    /// What it knows.
    pub outcome: Outcome,
}

/// Everything that was tried, and what was seen to be wrong on the way.
#[derive(Default)]
pub(super) struct History {
    pub(super) attempts: Vec<Attempt>,
    pub(super) violations: Vec<Violation>,
    /// What was put into blobs, by their own stamps.
    pub(super) contents: BTreeMap<Stamp, Bytes>,
    /// Stamps of values that were read.
    pub(super) read: BTreeSet<Stamp>,
    /// Lives that have begun, in the order in which they did.
    pub(super) begun: Vec<(u64, u64)>,
    /// Lowest and highest stamp of each life.
    lives: BTreeMap<(u64, u64), (Stamp, Stamp)>,
}

impl History {
    /// By key, the highest stamp of those that are known to be committed.
    pub(super) fn committed(&self) -> BTreeMap<Bytes, Stamp> {
        let mut stamps: BTreeMap<Bytes, Stamp> = BTreeMap::new();
        let committed = self.attempts.iter().filter(|it| it.outcome == Outcome::Committed);
        for (key, stamp, _) in committed.flat_map(|attempt| &attempt.writes) {
            let last = stamps.entry(key.clone()).or_default();
            *last = (*last).max(*stamp);
        }
        stamps
    }

    /// Whether anyone tried to commit this payload for this key.
    pub(super) fn has_tried(&self, key: &[u8], payload: &[u8]) -> bool {
        let is_it = |value: &Value| match value {
            Value::Here(there) => there == payload,
            Value::Blob(blob) => {
                self.contents.get(&blob.stamp()).is_some_and(|there| there == payload)
            }
        };
        let mut writes = self.attempts.iter().flat_map(|attempt| &attempt.writes);
        writes.any(|(of, _, value)| of == key && value.as_ref().is_some_and(is_it))
    }

    /// Adds an attempt whose outcome is open. Checks that the client's stamps grow, across its
    /// lives too: monotonic writes.
    pub(super) fn begin(&mut self, mut attempt: Attempt) -> usize {
        let life = (attempt.client, attempt.epoch);
        attempt.is_late = self.begun.iter().any(|later| later.0 == life.0 && later.1 > life.1);
        for &(_, stamp, _) in &attempt.writes {
            let (low, high) = self.lives.entry(life).or_insert((stamp, stamp));
            if *high > stamp {
                self.violations
                    .push(Violation::session("monotonic writes", format!("{stamp} after {high}")));
            }
            (*low, *high) = ((*low).min(stamp), (*high).max(stamp));
        }
        let lives: Vec<_> = self.lives.range((life.0, 0)..=(life.0, u64::MAX)).collect();
        for pair in lives.windows(2) {
            let ((earlier, (_, high)), (later, (low, _))) = (pair[0], pair[1]);
            if high >= low {
                let what =
                    format!("{high} of life {earlier:?} is not before {low} of life {later:?}");
                self.violations.push(Violation::session("monotonic writes", what));
            }
        }
        self.attempts.push(attempt);
        self.attempts.len() - 1
    }
}
