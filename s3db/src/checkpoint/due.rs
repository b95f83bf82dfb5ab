//! What is due: parts of the log in which something waits for a checkpoint.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::log::Scope;

/// Scopes that wait for a checkpoint. More than a database has shards and streams are not there.
const DUE_MAX: usize = 100_000;

/// How many intervals pass at most between two looks, as a power of two: 16 min of 15 s.
const REST_POWER_MAX: u32 = 6;

/// What one process knows to be due. Whatever it forgets is found by who sweeps.
#[derive(Default)]
pub(crate) struct Due {
    now: Mutex<BTreeSet<Scope>>,
    /// What becomes due when the checkpoint interval is over, if nothing else makes it due before.
    later: Mutex<BTreeSet<Scope>>,
    look: Mutex<Look>,
    /// Held by who works on it: whoever comes next finds it done, or due again.
    pub(super) turn: tokio::sync::Mutex<()>,
}

impl Due {
    pub(super) fn add(&self, scope: Scope) {
        add(&self.now, scope);
    }

    pub(super) fn add_later(&self, scope: Scope) {
        add(&self.later, scope);
    }

    /// Makes everything due that was left for later.
    pub(super) fn add_all(&self) {
        let later = std::mem::take(&mut *lock(&self.later));
        later.into_iter().for_each(|scope| self.add(scope));
    }

    /// A reader wants a look at the parts of the log that belong to no page: nothing tells which of them has
    /// anything for its own.
    pub(super) fn want_look(&self) {
        lock(&self.look).is_wanted = true;
    }

    /// Whether it is time for one that is wanted. Each costs some requests: so one that found nothing makes
    /// the rest before the next one twice as long.
    pub(super) fn is_look_due(&self, now_us: u64) -> bool {
        let look = lock(&self.look);
        look.is_wanted && now_us >= look.not_before_us
    }

    /// Takes it on. Until [`Due::look_helped`] it counts as one that found nothing.
    pub(super) fn begin_look(&self, now_us: u64, interval_us: u64) {
        let mut look = lock(&self.look);
        look.is_wanted = false;
        look.not_before_us = now_us.saturating_add(interval_us << look.in_vain);
        look.in_vain = (look.in_vain + 1).min(REST_POWER_MAX);
    }

    pub(super) fn look_helped(&self, now_us: u64, interval_us: u64) {
        let mut look = lock(&self.look);
        (look.not_before_us, look.in_vain) = (now_us.saturating_add(interval_us), 0);
    }

    pub(super) fn remove(&self, scope: Scope) {
        lock(&self.now).remove(&scope);
    }

    pub(super) fn is_empty(&self) -> bool {
        lock(&self.now).is_empty()
    }

    /// All of it now: clients before shards, as whole transactions are sent on before shards are drained.
    pub(super) fn now(&self) -> Vec<Scope> {
        lock(&self.now).iter().rev().copied().collect()
    }
}

/// When readers may have a look at what belongs to no page.
#[derive(Default)]
struct Look {
    is_wanted: bool,
    not_before_us: u64,
    /// Looks in a row that found nothing.
    in_vain: u32,
}

fn add(to: &Mutex<BTreeSet<Scope>>, scope: Scope) {
    let mut scopes = lock(to);
    if scopes.len() < DUE_MAX {
        scopes.insert(scope);
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
