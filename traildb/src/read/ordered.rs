//! Work on several threads, whose results are taken in order.
//!
//! ```text
//!   jobs      |....|....|....|....|....|...
//!   threads     A    B    A    B    B            each takes the next job when it is done
//!   results     1    2    3    4    5            taken in the order of jobs, by the caller
//! ```
//!
//! A thread that is far ahead of the caller waits, so that results do not pile up.

use std::{
    collections::BTreeMap,
    panic::resume_unwind,
    sync::{Condvar, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
};

/// Jobs for each thread that may be done, or in work, and not be taken yet, where nothing says how many
/// better.
pub(crate) const AHEAD: u64 = 4;

/// Runs `work` on `jobs`, with `threads` threads that have a `state` each, and `take` on what it
/// returns: on the thread of the caller, in the order of jobs. With one thread, all runs there. No more
/// than `ahead` jobs, at least one, are done or in work and not taken yet; one thread at a time gets the
/// next one.
///
/// # Errors
/// An error of `take` ends it. Threads then stop after the job that they are at.
///
/// # Panics
/// When `work` or `take` panics.
pub fn run<J: Send, W, T: Send, E>(
    threads: usize,
    ahead: u64,
    jobs: impl Iterator<Item = J> + Send,
    state: impl Fn() -> W + Sync,
    work: impl Fn(&mut W, J) -> T + Sync,
    mut take: impl FnMut(T) -> Result<(), E>,
) -> Result<(), E> {
    if threads <= 1 {
        let mut state = state();
        for job in jobs {
            take(work(&mut state, job))?;
        }
        return Ok(());
    }
    let turn = Turn::new(jobs, ahead.max(1));
    thread::scope(|scope| {
        let (sender, results) = mpsc::channel();
        let (turn, state, work) = (&turn, &state, &work);
        let worker = |sender: mpsc::Sender<_>| {
            // Whatever ends this thread, the others do not wait for its job.
            let _stop = StopOnPanic(turn);
            let mut state = state();
            while let Some((n, job)) = turn.next() {
                if sender.send((n, work(&mut state, job))).is_err() {
                    break;
                }
            }
        };
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                let sender = sender.clone();
                scope.spawn(move || worker(sender))
            })
            .collect();
        drop(sender);
        let _stop = Stop(turn);
        let mut early = BTreeMap::new();
        let mut next = 0;
        // Ends when all threads have.
        for (n, done) in results {
            early.insert(n, done);
            while let Some(done) = early.remove(&next) {
                take(done)?;
                next += 1;
                turn.taken(next);
            }
        }
        for worker in workers {
            if let Err(panic) = worker.join() {
                resume_unwind(panic);
            }
        }
        Ok(())
    })
}

/// Which job comes next, and how far the caller is.
struct Turn<I> {
    state: Mutex<State<I>>,
    moved: Condvar,
    /// Jobs that may be begun beyond the last result taken.
    ahead: u64,
}

struct State<I> {
    jobs: I,
    begun: u64,
    taken: u64,
    stopped: bool,
}

impl<J, I: Iterator<Item = J>> Turn<I> {
    fn new(jobs: I, ahead: u64) -> Turn<I> {
        let state = State { jobs, begun: 0, taken: 0, stopped: false };
        Turn { state: Mutex::new(state), moved: Condvar::new(), ahead }
    }

    /// The next job and its number, once the caller is not too far behind; `None` if there is none.
    fn next(&self) -> Option<(u64, J)> {
        let mut state = self.lock();
        while !state.stopped && state.begun >= state.taken + self.ahead {
            state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.stopped {
            return None;
        }
        let job = state.jobs.next()?;
        state.begun += 1;
        Some((state.begun - 1, job))
    }
}

impl<I> Turn<I> {
    fn lock(&self) -> MutexGuard<'_, State<I>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn taken(&self, jobs: u64) {
        self.lock().taken = jobs;
        self.moved.notify_all();
    }

    fn stop(&self) {
        self.lock().stopped = true;
        self.moved.notify_all();
    }
}

/// Stops the threads when the caller is done, for whatever reason.
struct Stop<'t, I>(&'t Turn<I>);

impl<I> Drop for Stop<'_, I> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

struct StopOnPanic<'t, I>(&'t Turn<I>);

impl<I> Drop for StopOnPanic<'_, I> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.stop();
        }
    }
}
