//! Wakers, which are code of the program's own: they may wait for a lock, panic, or be the last to hold a
//! region. Neither the thread that answers faults nor the engine may wait for one.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures::future::{BoxFuture, FutureExt};
use pager::{
    Hint, Mapped, Mechanism, Region, SourceError,
    policy::{Clock, EvictionPolicy, NoPrefetch},
};

use crate::support::{
    Behaviour, Known, alone, builder, byte_at, can_fault, give_up, passed, probe, until,
};

const UNIT: u64 = 65_536;

/// A pager whose evicted units can be called back; `None` where pages cannot be moved.
fn recycling() -> Option<pager::Builder> {
    if !can_fault() || !probe().can_move {
        println!("left out: recycled frames: this kernel or user cannot move pages");
        return None;
    }
    let builder = builder().mechanism(Mechanism::Move).unit_bytes(UNIT);
    Some(builder.budget_bytes(64 * (UNIT + 4096)).prefetch(|| Box::new(NoPrefetch)))
}

type Run = Box<dyn FnOnce() + Send>;

/// Runs what it has when it is woken, once.
struct Runs(Mutex<Option<Run>>);

impl Wake for Runs {
    fn wake(self: Arc<Self>) {
        let run = self.0.lock().unwrap().take();
        if let Some(run) = run {
            run();
        }
    }
}

fn waker(run: impl FnOnce() + Send + 'static) -> Waker {
    let run: Run = Box::new(run);
    Waker::from(Arc::new(Runs(Mutex::new(Some(run)))))
}

/// Whether `future` waits, and will wake `waker`.
fn waits<T>(future: Pin<&mut impl Future<Output = T>>, waker: &Waker) -> bool {
    future.poll(&mut Context::from_waker(waker)).is_pending()
}

/// Gives the first unit of `region` up, which is there and pinned by nobody, and asks for it again with
/// `waker`, until that has to be woken: the pager may be faster than the asking.
macro_rules! asked_for_given_up {
    ($region:expr, $waker:expr) => {{
        let region = $region;
        loop {
            give_up(region, 1);
            let mut load = Box::pin(region.load_async(0..UNIT));
            if waits(load.as_mut(), $waker) {
                break load;
            }
            drop(load);
            until("it is there again", || region.stats().units_resident == 1);
        }
    }};
}

/// An executor that wakes under a lock of its own.
#[derive(Default)]
struct Executor {
    lock: Arc<Mutex<()>>,
    entered: Arc<AtomicU64>,
    left: Arc<AtomicU64>,
}

impl Executor {
    fn waker(&self) -> Waker {
        let (lock, entered, left) = (self.lock.clone(), self.entered.clone(), self.left.clone());
        waker(move || {
            entered.fetch_add(1, Ordering::SeqCst);
            drop(lock.lock().unwrap());
            left.fetch_add(1, Ordering::SeqCst);
        })
    }

    /// Wakers that wait for the lock.
    fn waiting(&self) -> u64 {
        self.entered.load(Ordering::SeqCst) - self.left.load(Ordering::SeqCst)
    }

    /// Reads what the engine must have fetched, while its lock is held.
    fn read(&self, mapped: &Mapped, at: u64) {
        let reader = std::thread::spawn({
            let mapped = mapped.clone();
            move || mapped[at as usize]
        });
        until("the reader has its byte", || reader.is_finished());
        assert_eq!(reader.join().unwrap(), byte_at(at));
    }
}

/// More wakers than the runtime has threads for its tasks.
const WAKERS: u64 = 10;

/// A thread that polls may hold its executor's lock while it reads. The engine stood in such a waker, so that
/// nobody was left to fetch what the reader waited for.
#[test]
fn a_waker_may_wait_for_a_reader() {
    let Some(builder) = recycling() else { return };
    let pager = builder.build().unwrap();
    let source = Known::new(16 * UNIT);
    let region = pager.open(source.clone()).unwrap();
    let mapped = region.map().unwrap();
    drop(region.load(0..UNIT).unwrap());
    let executor = Executor::default();
    for round in 0..4 {
        let held = executor.lock.lock().unwrap();
        for n in 1..=WAKERS {
            let waker = executor.waker();
            let load = asked_for_given_up!(&region, &waker);
            until("its waker waits for the lock", || executor.waiting() == n);
            // The unit may be given up again. The waker waits all the same.
            drop(load);
        }
        executor.read(&mapped, (round + 1) * 2 * UNIT);
        drop(held);
        until("all wakers have run", || executor.waiting() == 0);
        until("only the first is there", || {
            region.advise(Hint::DontNeed(UNIT..region.len())).unwrap();
            region.stats().units_resident == 1
        });
    }
}

/// The same where the bytes come from the source, or do not come. Whoever asked it stood in the waker.
#[test]
fn a_waker_may_wait_for_a_reader_whatever_came_of_a_request() {
    if !can_fault() {
        return println!("left out: page faults: this kernel or user cannot have them");
    }
    for fails in [false, true] {
        let builder = builder().unit_bytes(UNIT).budget_bytes(64 * (UNIT + 4096));
        let pager = builder.prefetch(|| Box::new(NoPrefetch)).build().unwrap();
        let source = Known::new((2 * WAKERS + 1) * UNIT);
        let region = pager.open(source.clone()).unwrap();
        let mapped = region.map().unwrap();
        if fails {
            source.behave(Behaviour::Fail(SourceError::Permanent {
                object: "test://known".to_owned(),
                reason: "the test asked for it".to_owned(),
                cause: None,
            }));
        }
        let gate = source.hold();
        let executor = Executor::default();
        let held = executor.lock.lock().unwrap();
        // Every second unit, so that each is a request of its own.
        let mut loads: Vec<_> = (0..WAKERS)
            .map(|n| Box::pin(region.load_async(2 * n * UNIT..2 * n * UNIT + 1)))
            .collect();
        for load in &mut loads {
            assert!(waits(load.as_mut(), &executor.waker()), "the source has not answered");
        }
        gate.add_permits(WAKERS as usize);
        until("every waker waits for the lock", || executor.waiting() == WAKERS);
        source.behave(Behaviour::Serve);
        gate.add_permits(1);
        executor.read(&mapped, 2 * WAKERS * UNIT);
        drop(held);
        for (n, load) in (0..).zip(&mut loads) {
            let told = load.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            match told {
                Poll::Ready(outcome) if fails => assert!(outcome.is_err(), "load {n}"),
                Poll::Ready(outcome) => assert_eq!(outcome.unwrap()[0], byte_at(2 * n * UNIT)),
                Poll::Pending => panic!("load {n}: woken for nothing"),
            }
        }
    }
}

/// Who holds the lock that a waker waits for may wait for the same unit, behind it. All were told by one
/// thread, one after the other: who came second was not told before the lock was free.
#[test]
fn a_waker_may_wait_for_who_waits_for_the_same_unit() {
    for fails in [false, true] {
        let builder = builder().unit_bytes(UNIT).budget_bytes(64 * (UNIT + 4096));
        let pager = builder.prefetch(|| Box::new(NoPrefetch)).build().unwrap();
        let source = Known::new(4 * UNIT);
        let region = pager.open(source.clone()).unwrap();
        if fails {
            source.behave(Behaviour::Fail(SourceError::Permanent {
                object: "test://known".to_owned(),
                reason: "the test asked for it".to_owned(),
                cause: None,
            }));
        }
        let gate = source.hold();
        let executor = Executor::default();
        let held = executor.lock.lock().unwrap();
        let mut first = Box::pin(region.load_async(0..1));
        assert!(waits(first.as_mut(), &executor.waker()), "the source has not answered");
        let mut task = Box::pin(region.load_async(1..2));
        let (woken, wakes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let task_waker = waker({
            let woken = woken.clone();
            move || woken.store(true, Ordering::SeqCst)
        });
        assert!(waits(task.as_mut(), &task_waker), "the source has not answered");
        let thread = std::thread::spawn({
            let (region, wakes) = (region.clone(), wakes.clone());
            move || {
                wakes.store(true, Ordering::SeqCst);
                region.load(2..3).map(|guard| guard[0])
            }
        });
        until("the thread is about to load", || wakes.load(Ordering::SeqCst));
        gate.add_permits(4);
        until("the waker waits for the lock", || executor.waiting() == 1);
        until("the other task is woken", || woken.load(Ordering::SeqCst));
        until("the thread goes on", || thread.is_finished());
        let told = thread.join().unwrap();
        match fails {
            true => assert!(told.is_err()),
            false => assert_eq!(told.unwrap(), byte_at(2)),
        }
        drop(held);
    }
}

/// Who runs what the program brings along.
#[derive(Default)]
struct Threads(Mutex<Vec<String>>);

impl Threads {
    fn note(&self) {
        let thread = std::thread::current();
        self.0.lock().unwrap().push(thread.name().unwrap_or("none").to_owned());
    }

    /// How often anything was run. None of it by the thread that answers faults.
    fn check(&self) -> usize {
        let all = self.0.lock().unwrap();
        assert!(all.iter().all(|name| name != "pager-fault"), "the fault thread ran it");
        all.len()
    }
}

/// CLOCK, and who asks it.
struct Watched(Clock, Arc<Threads>);

impl EvictionPolicy for Watched {
    fn installed(&mut self, key: u64, weight: u64, speculative: bool) {
        self.1.note();
        self.0.installed(key, weight, speculative);
    }
    fn touched(&mut self, key: u64) {
        self.1.note();
        self.0.touched(key);
    }
    fn removed(&mut self, key: u64) {
        self.1.note();
        self.0.removed(key);
    }
    fn victim(&mut self, can_evict: &dyn Fn(u64) -> bool) -> Option<u64> {
        self.1.note();
        self.0.victim(can_evict)
    }
    fn len(&self) -> usize {
        self.0.len()
    }
}

/// Touches and loads meet on a unit that is in memory, in whatever order.
#[test]
fn the_fault_thread_runs_neither_wakers_nor_policies() {
    let Some(builder) = recycling() else { return };
    let (asked, woken) = (Arc::new(Threads::default()), Arc::new(Threads::default()));
    let policy = Watched(Clock::new(), asked.clone());
    let pager = builder.eviction(Box::new(policy)).build().unwrap();
    let source = Known::new(4 * UNIT);
    let region = pager.open(source.clone()).unwrap();
    let mapped = region.map().unwrap();
    drop(region.load(0..UNIT).unwrap());
    const ROUNDS: u64 = 300;
    for round in 0..ROUNDS {
        give_up(&region, 1);
        let both = std::sync::Barrier::new(2);
        let came = Arc::new(AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                both.wait();
                assert_eq!(mapped[77], byte_at(77));
            });
            let waker = waker({
                let (woken, came) = (woken.clone(), came.clone());
                move || {
                    woken.note();
                    came.store(true, Ordering::SeqCst);
                }
            });
            let mut load = Box::pin(region.load_async(0..UNIT));
            both.wait();
            (0..round * 8).for_each(|_| std::hint::spin_loop());
            let mut outcome = load.as_mut().poll(&mut Context::from_waker(&waker));
            if outcome.is_pending() {
                until("the load is woken", || came.load(Ordering::SeqCst));
                outcome = load.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            }
            match outcome {
                Poll::Ready(Ok(guard)) => assert_eq!(guard[78], byte_at(78)),
                Poll::Ready(Err(error)) => panic!("round {round}: {error}"),
                Poll::Pending => panic!("round {round}: woken for nothing"),
            }
        });
    }
    woken.check();
    assert!(asked.check() as u64 >= 2 * ROUNDS, "each round put a unit in place and gave it up");
    assert_eq!(source.requests().len(), 1, "all but the first were called back");
}

/// The engine ended with such a waker, and the process with the engine; a transfer ended with it, and told
/// nobody else.
#[test]
fn a_waker_that_panics_harms_nobody_else() {
    const TEST: &str = "wakers::a_waker_that_panics_harms_nobody_else";
    let Some(builder) = recycling() else { return };
    if !alone(TEST, passed) {
        return;
    }
    let pager = builder.build().unwrap();
    let source = Known::new(16 * UNIT);
    let region = pager.open(source.clone()).unwrap();
    let panics = |woken: &Arc<AtomicBool>| {
        let woken = woken.clone();
        waker(move || {
            woken.store(true, Ordering::SeqCst);
            panic!("the test asked for it");
        })
    };

    // What is fetched.
    let gate = source.hold();
    let woken = Arc::new(AtomicBool::new(false));
    let waker = panics(&woken);
    let mut load = Box::pin(region.load_async(0..1));
    assert!(waits(load.as_mut(), &waker), "the source has not answered");
    std::thread::scope(|scope| {
        let behind = scope.spawn(|| region.load(0..1).map(|guard| guard[0]));
        until("another waits behind it", || region.stats().loads == 2);
        gate.add_permits(1);
        assert_eq!(behind.join().unwrap().unwrap(), byte_at(0));
    });
    // Threads are told first.
    until("it is woken", || woken.load(Ordering::SeqCst));
    drop(load);

    // What is called back.
    let woken = Arc::new(AtomicBool::new(false));
    let waker = panics(&woken);
    let load = asked_for_given_up!(&region, &waker);
    until("it is woken", || woken.load(Ordering::SeqCst));
    drop(load);
    gate.add_permits(1);
    assert_eq!(region.load(5 * UNIT..5 * UNIT + 1).unwrap()[0], byte_at(5 * UNIT));
}

/// A task that is not polled again: its waker ends it, and what it holds.
struct Ends(Mutex<Option<BoxFuture<'static, ()>>>);

impl Wake for Ends {
    fn wake(self: Arc<Self>) {
        let future = self.0.lock().unwrap().take();
        drop(future);
    }
}

/// The pager's threads are joined by whoever drops the last handle. It may be any of them but one: the
/// fault thread would wait for itself.
#[test]
fn the_last_handle_may_go_in_a_waker() {
    const TEST: &str = "wakers::the_last_handle_may_go_in_a_waker";
    if recycling().is_none() || !alone(TEST, passed) {
        return;
    }
    // A hang ends in a signal.
    nix::unistd::alarm::set(120);
    let task = |region: Region| {
        let load = async move {
            drop(region.load_async(0..UNIT).await);
            std::future::pending::<()>().await;
        };
        Arc::new(Ends(Mutex::new(Some(load.boxed()))))
    };
    // True if the task will be woken.
    let polled = |task: &Arc<Ends>| {
        let waker = Waker::from(task.clone());
        let mut future = task.0.lock().unwrap();
        let future = future.as_mut().expect("nobody has woken it yet");
        waits(Pin::new(future), &waker)
    };
    for given_up in [false, true] {
        for round in 0..20 {
            let source = Known::new(16 * UNIT);
            let pager = recycling().unwrap().build().unwrap();
            let region = pager.open(source.clone()).unwrap();
            let gate = source.hold();
            if given_up {
                gate.add_permits(1);
                drop(region.load(0..UNIT).unwrap());
                give_up(&region, 1);
            }
            let task = task(region);
            drop(pager);
            assert!(polled(&task), "it never ends by itself");
            gate.add_permits(1);
            // Where the pager was faster than the poll, nobody wakes it.
            let start = std::time::Instant::now();
            while Arc::strong_count(&source.0) > 1 {
                if given_up && start.elapsed().as_millis() > 500 {
                    Waker::from(task.clone()).wake();
                }
                assert!(start.elapsed().as_secs() < 60, "not closed: {given_up}, {round}");
                std::thread::yield_now();
            }
        }
    }
}

/// Who was stopped in a fault goes on when the page is there, and may close everything while the fault
/// thread still has to do with it.
#[test]
fn what_closes_right_after_a_touch_gives_everything_back() {
    let Some(builder) = recycling() else { return };
    let pager = builder.build().unwrap();
    for round in 0..200 {
        let region = pager.open(Known::new(4 * UNIT)).unwrap();
        drop(region.load(0..UNIT).unwrap());
        give_up(&region, 1);
        let mapped = region.map().unwrap();
        drop(region);
        assert_eq!(mapped[77], byte_at(77), "round {round}");
        drop(mapped);
        until("closing gives everything back", || pager.budget().used() == 0);
    }
    assert!(pager.pool().is_empty());
}
