//! What is due: parts of the log in which something waits for a checkpoint.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::log::Scope;

/// Scopes that wait for a checkpoint. More than a database has shards and streams are not there.
const DUE_MAX: usize = 100_000;

/// What one process knows to be due. Whatever it forgets is found by who sweeps.
#[derive(Default)]
pub(crate) struct Due {
    now: Mutex<BTreeSet<Scope>>,
    /// What becomes due when the checkpoint interval is over, if nothing else makes it due before.
    later: Mutex<BTreeSet<Scope>>,
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

fn add(to: &Mutex<BTreeSet<Scope>>, scope: Scope) {
    let mut scopes = lock(to);
    if scopes.len() < DUE_MAX {
        scopes.insert(scope);
    }
}

fn lock(scopes: &Mutex<BTreeSet<Scope>>) -> MutexGuard<'_, BTreeSet<Scope>> {
    scopes.lock().unwrap_or_else(PoisonError::into_inner)
}
