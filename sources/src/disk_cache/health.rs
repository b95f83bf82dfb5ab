//! A disk that is full or fails: left alone for a while, with one warning.

use std::{
    fmt::Display,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tracing::{debug, warn};

/// How long a disk that failed is left alone before it is tried again.
const PAUSE: Duration = Duration::from_secs(60);

/// One side of the disk, reading or writing.
#[derive(Debug, Default)]
pub(super) struct Health {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    until: Option<Instant>,
    warned: bool,
    /// What was wrong last.
    why: String,
}

impl Health {
    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether the disk may be tried.
    pub(super) fn is_well(&self) -> bool {
        self.with(|state| match state.until {
            Some(until) if Instant::now() < until => false,
            _ => {
                state.until = None;
                true
            }
        })
    }

    /// It works again.
    pub(super) fn recovered(&self) {
        self.with(|state| state.until = None);
    }

    /// Why the disk is left alone now.
    pub(super) fn trouble(&self) -> Option<String> {
        let is_on = |state: &State| state.until.is_some_and(|until| Instant::now() < until);
        self.with(|state| is_on(state).then(|| state.why.clone()))
    }

    /// Leaves the disk alone from now on. The first time is worth a warning.
    pub(super) fn failed(&self, what: &str, error: &dyn Display) {
        let first = self.with(|state| {
            state.until = Some(Instant::now() + PAUSE);
            state.why = format!("{what}: {error}");
            !std::mem::replace(&mut state.warned, true)
        });
        if first {
            warn!(%error, "{what}: going on without the cache, and trying it again every minute");
        } else {
            debug!(%error, "{what}: still without the cache");
        }
    }
}
