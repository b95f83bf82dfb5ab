//! The same work on many parts, by as many threads as are allowed. The order of results is that of
//! the parts, so they do not depend on the number of threads.

use std::{
    panic,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

/// `work` of each part.
#[cfg_attr(test, track_caller)]
pub(super) fn map<T: Send, R: Send>(
    threads: usize,
    parts: Vec<T>,
    work: impl Fn(T) -> R + Sync,
) -> Vec<R> {
    #[cfg(test)]
    calls::note(threads, parts.len());
    if threads < 2 || parts.len() < 2 {
        return parts.into_iter().map(work).collect();
    }
    type Slot<T> = Mutex<Option<T>>;
    let slots = |part| (Mutex::new(Some(part)), Mutex::new(None));
    let parts: Vec<(Slot<T>, Slot<R>)> = parts.into_iter().map(slots).collect();
    let next = AtomicUsize::new(0);
    each(threads.min(parts.len()), || {
        while let Some((part, result)) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
            let part = part.lock().expect("locked once").take().expect("taken once");
            *result.lock().expect("locked once") = Some(work(part));
        }
    });
    let result = |slot: Mutex<Option<R>>| slot.into_inner().expect("locked once");
    parts.into_iter().map(|(_, slot)| result(slot).expect("every part was worked on")).collect()
}

/// What each thread has after `work` on the parts that it took; `parts` are numbered from 0.
///
/// # Errors
/// The first error of any part. Threads end with the part that they are at then.
#[cfg_attr(test, track_caller)]
pub(super) fn fold<A: Send, E: Send>(
    threads: usize,
    parts: usize,
    init: impl Fn() -> A + Sync,
    work: impl Fn(&mut A, usize) -> Result<(), E> + Sync,
) -> Result<Vec<A>, E> {
    #[cfg(test)]
    calls::note(threads, parts);
    let next = AtomicUsize::new(0);
    let each = each(threads.clamp(1, parts.max(1)), || {
        let mut state = init();
        loop {
            let part = next.fetch_add(1, Ordering::Relaxed);
            if part >= parts {
                return Ok(state);
            }
            if let Err(error) = work(&mut state, part) {
                next.store(parts, Ordering::Relaxed);
                return Err(error);
            }
        }
    });
    each.into_iter().collect()
}

/// Runs `work` on so many threads, this one included.
fn each<R: Send>(threads: usize, work: impl Fn() -> R + Sync) -> Vec<R> {
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(&work)).collect();
        let mut results = vec![work()];
        for other in others {
            results.push(other.join().unwrap_or_else(|cause| panic::resume_unwind(cause)));
        }
        results
    })
}

/// What the stages of writing ask for, for their tests.
#[cfg(test)]
pub(super) mod calls {
    use std::{cell::RefCell, panic::Location};

    /// Who asked, and for how many threads on how many parts.
    #[derive(Clone, Copy, Debug)]
    pub(in crate::write) struct Call {
        pub(in crate::write) by: &'static Location<'static>,
        pub(in crate::write) threads: usize,
        pub(in crate::write) parts: usize,
    }

    thread_local! {
        static CALLS: RefCell<Vec<Call>> = const { RefCell::new(Vec::new()) };
    }

    #[track_caller]
    pub(super) fn note(threads: usize, parts: usize) {
        let by = Location::caller();
        CALLS.with_borrow_mut(|calls| calls.push(Call { by, threads, parts }));
    }

    /// The calls of this thread since they were taken last.
    pub(in crate::write) fn take() -> Vec<Call> {
        CALLS.take()
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Condvar, time::Duration};

    use super::*;

    /// Waits for another part to wait here too. False if none has come for a minute: then it never
    /// will.
    #[derive(Default)]
    struct Meeting {
        here: Mutex<usize>,
        more: Condvar,
    }

    impl Meeting {
        fn meet(&self) -> bool {
            let mut here = self.here.lock().unwrap();
            *here += 1;
            self.more.notify_all();
            let (_here, waited) = self
                .more
                .wait_timeout_while(here, Duration::from_secs(60), |here| *here < 2)
                .unwrap();
            !waited.timed_out()
        }
    }

    /// Parts that wait for each other, which one thread alone cannot work on.
    #[test]
    fn two_threads_work_at_the_same_time() {
        for (threads, parts) in [(2, 2), (2, 3), (3, 2), (8, 100)] {
            let meeting = Meeting::default();
            let met = map(threads, (0..parts).collect(), |part| part > 1 || meeting.meet());
            assert!(met.into_iter().all(|met| met), "map, {threads} threads, {parts} parts");
            let meeting = Meeting::default();
            let meet = |met: &mut bool, part| {
                *met &= part > 1 || meeting.meet();
                Ok::<_, ()>(())
            };
            let met = fold(threads, parts, || true, meet).unwrap();
            assert!(met.into_iter().all(|met| met), "fold, {threads} threads, {parts} parts");
        }
    }

    #[test]
    fn results_come_in_the_order_of_the_parts() {
        for threads in [1, 2, 5] {
            let squares = map(threads, (0..100u64).collect(), |n| n * n);
            assert!(squares.into_iter().eq((0..100).map(|n| n * n)), "{threads}");
            let add = |sum: &mut usize, part| {
                *sum += part;
                Ok::<_, ()>(())
            };
            let sums = fold(threads, 100, || 0, add).unwrap();
            assert!(sums.len() <= threads && sums.iter().sum::<usize>() == 4950, "{threads}");
        }
        assert_eq!(fold(3, 0, || 7, |_, _| -> Result<(), ()> { unreachable!() }), Ok(vec![7]));
        let at_40 = |_: &mut (), part| if part == 40 { Err(part) } else { Ok(()) };
        assert_eq!(fold(3, 100, || (), at_40), Err(40));
    }
}
