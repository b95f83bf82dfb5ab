//! Loads that wait for units, and how they are told.

use std::{
    collections::HashMap,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll, Waker},
};

use crate::{
    error::SourceError,
    sync::{Arc, Mutex, lock},
};

/// One load that waits for one unit. A future that resolves when the unit is decided.
pub(crate) struct Waiter {
    waiting: Mutex<Waiting>,
    by: WaitsBy,
}

/// Who is woken when a load goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitsBy {
    /// A thread that is parked in this crate.
    Thread,
    /// A waker of the program's executor: code of its own, which may wait for locks, panic, or be the last
    /// to hold a task, and with it a region.
    Task,
}

#[derive(Default)]
struct Waiting {
    outcome: Option<Result<(), SourceError>>,
    waker: Option<Waker>,
}

impl Waiter {
    pub(crate) fn new(by: WaitsBy) -> Arc<Waiter> {
        Arc::new(Waiter { waiting: Mutex::default(), by })
    }

    fn complete(&self, outcome: Result<(), SourceError>) {
        let mut waiting = lock(&self.waiting);
        waiting.outcome = Some(outcome);
        let waker = waiting.waker.take();
        drop(waiting);
        if let Some(waker) = waker {
            // The panic of one load's waker, which its hook has told of, is not for the others to bear,
            // nor for whoever tells them.
            let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
        }
    }
}

/// The loads that waited for a unit, and what came of it. They are told when this is dropped, by the thread
/// that drops it.
pub(crate) struct Tidings {
    waiters: Vec<Arc<Waiter>>,
    outcome: Result<(), SourceError>,
}

impl Tidings {
    /// For nobody.
    pub(crate) fn none() -> Tidings {
        Tidings { waiters: Vec::new(), outcome: Ok(()) }
    }

    /// Tells the threads of this crate. Gives back what is for each of the others: telling them runs code of
    /// the program's own.
    pub(crate) fn tell_threads(mut self) -> Vec<Tidings> {
        let mut tasks = Vec::new();
        for waiter in std::mem::take(&mut self.waiters) {
            match waiter.by {
                WaitsBy::Thread => waiter.complete(self.outcome.clone()),
                WaitsBy::Task => {
                    tasks.push(Tidings { waiters: vec![waiter], outcome: self.outcome.clone() });
                }
            }
        }
        tasks
    }
}

impl Drop for Tidings {
    fn drop(&mut self) {
        for waiter in self.waiters.drain(..) {
            waiter.complete(self.outcome.clone());
        }
    }
}

/// Resolves with the outcome of `waiter`'s unit.
pub(crate) struct Decided(pub(crate) Arc<Waiter>);

impl Future for Decided {
    type Output = Result<(), SourceError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut waiting = lock(&self.0.waiting);
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

    /// Takes everyone who waits for `unit`, which cannot be had.
    pub(crate) fn fail(&self, unit: u64, error: &SourceError) -> Tidings {
        let waiters = lock(&self.0).remove(&unit).unwrap_or_default();
        Tidings { waiters, outcome: Err(error.clone()) }
    }

    /// Takes everyone who waits for `unit` if `release` holds, which runs under the lock: the unit is there,
    /// and what kept it there until now is cleared. So nobody is among them who waits for it to come back.
    pub(crate) fn take_if(&self, unit: u64, release: impl FnOnce() -> bool) -> Tidings {
        let mut table = lock(&self.0);
        match release() {
            true => Tidings { waiters: table.remove(&unit).unwrap_or_default(), outcome: Ok(()) },
            false => Tidings::none(),
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::task::Wake;

    use super::*;

    struct Panics;

    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("the test asked for it");
        }
    }

    /// A waker that panicked took the thread that told it with it, and those behind it were never told.
    #[test]
    fn who_waits_behind_a_waker_that_panics_is_told_all_the_same() {
        let error = SourceError::transient_read("x", 0..1, "reset", None);
        for fails in [false, true] {
            let table = Waiters::default();
            let waiters = [(); 3].map(|()| Waiter::new(WaitsBy::Task));
            let waker = Waker::from(Arc::new(Panics));
            let mut futures = waiters.clone().map(Decided);
            for (waiter, future) in waiters.iter().zip(&mut futures) {
                assert!(table.add_if(7, waiter, || true));
                let mut context = Context::from_waker(&waker);
                assert!(Pin::new(future).poll(&mut context).is_pending());
            }
            match fails {
                true => drop(table.fail(7, &error)),
                false => {
                    let nobody = table.take_if(7, || false).tell_threads();
                    assert!(nobody.is_empty(), "the unit is not there yet");
                    let tasks = table.take_if(7, || true).tell_threads();
                    assert_eq!(tasks.len(), waiters.len(), "each by itself");
                    drop(tasks);
                }
            }
            for future in &mut futures {
                let told = Pin::new(future).poll(&mut Context::from_waker(Waker::noop()));
                assert!(matches!(told, Poll::Ready(outcome) if outcome.is_err() == fails));
            }
        }
    }
}
