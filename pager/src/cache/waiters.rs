//! Loads that wait for units, and how they are told.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use crate::{
    error::SourceError,
    sync::{Arc, Mutex, lock},
};

/// One load that waits for one unit. A future that resolves when the unit is decided.
pub(crate) struct Waiter(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    outcome: Option<Result<(), SourceError>>,
    waker: Option<Waker>,
}

impl Waiter {
    pub(crate) fn new() -> Arc<Waiter> {
        Arc::new(Waiter(Mutex::default()))
    }

    fn complete(&self, outcome: Result<(), SourceError>) {
        let mut waiting = lock(&self.0);
        waiting.outcome = Some(outcome);
        let waker = waiting.waker.take();
        drop(waiting);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Resolves with the outcome of `waiter`'s unit.
pub(crate) struct Decided(pub(crate) Arc<Waiter>);

impl Future for Decided {
    type Output = Result<(), SourceError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut waiting = lock(&self.0.0);
        match waiting.outcome.take() {
            Some(outcome) => Poll::Ready(outcome),
            None => {
                waiting.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// The waiters of a region's units. Bounded by the number of loads under way.
#[derive(Default)]
pub(crate) struct Waiters(Mutex<HashMap<u64, Vec<Arc<Waiter>>>>);

impl Waiters {
    /// Adds `waiter` if `announce` holds, which runs under the lock: it sets the unit's flag, and
    /// whoever completes the unit and finds the flag takes the lock after this.
    pub(crate) fn add_if(
        &self,
        unit: u64,
        waiter: &Arc<Waiter>,
        announce: impl FnOnce() -> bool,
    ) -> bool {
        let mut table = lock(&self.0);
        let added = announce();
        if added {
            table.entry(unit).or_default().push(waiter.clone());
        }
        added
    }

    /// Tells everyone who waits for `unit`.
    pub(crate) fn complete(&self, unit: u64, outcome: &Result<(), SourceError>) {
        let waiters = lock(&self.0).remove(&unit).unwrap_or_default();
        for waiter in waiters {
            waiter.complete(outcome.clone());
        }
    }
}
