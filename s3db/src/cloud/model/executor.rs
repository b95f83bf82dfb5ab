//! Virtual time, and one thread that polls everything in an order that a seed decides.
//!
//! ```text
//!   some task is ready?  poll one of them, chosen by the seed
//!   none?                the clock jumps to the next timer
//!   no timer?            the run is over
//! ```
//!
//! A *process* is a set of tasks that crash together: its futures are dropped where they stand, at
//! an await. A stalled process is not polled until its stall ends: it is a zombie meanwhile.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap},
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Wake, Waker},
};

/// Names a process of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Process(pub u32);

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;
type Effect = Box<dyn FnOnce() + Send>;

/// Time, and orders to the executor. Shared with everything that runs.
#[derive(Clone, Default)]
pub struct Time(Arc<Mutex<Schedule>>);

#[derive(Default)]
struct Schedule {
    now_us: u64,
    count: u64,
    timers: BinaryHeap<Reverse<(u64, u64)>>,
    wakers: HashMap<u64, Waker>,
    effects: HashMap<u64, Effect>,
    spawned: Vec<(Process, Task)>,
    killed: Vec<Process>,
    stalls: BTreeMap<Process, u64>,
}

impl Time {
    fn schedule(&self) -> MutexGuard<'_, Schedule> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Microseconds since the run began.
    pub fn now_us(&self) -> u64 {
        self.schedule().now_us
    }

    /// Waits.
    pub fn sleep(&self, us: u64) -> Sleep {
        Sleep { time: self.clone(), at_us: self.now_us().saturating_add(us), timer: None }
    }

    /// Does something later, whatever becomes of whoever asked: a request that is on its way.
    pub fn later(&self, us: u64, effect: impl FnOnce() + Send + 'static) {
        let mut schedule = self.schedule();
        let id = schedule.timer(us);
        schedule.effects.insert(id, Box::new(effect));
    }

    /// Starts a task of `process`.
    pub fn spawn(&self, process: Process, task: impl Future<Output = ()> + Send + 'static) {
        self.schedule().spawned.push((process, Box::pin(task)));
    }

    /// Drops all tasks of `process` where they stand.
    pub fn kill(&self, process: Process) {
        self.schedule().killed.push(process);
    }

    /// Does not poll `process` for so long.
    pub fn stall(&self, process: Process, us: u64) {
        let mut schedule = self.schedule();
        let until = schedule.now_us + us;
        let stall = schedule.stalls.entry(process).or_default();
        *stall = until.max(*stall);
    }

    /// Ends all stalls.
    pub fn end_stalls(&self) {
        self.schedule().stalls.clear();
    }
}

impl Schedule {
    fn timer(&mut self, us: u64) -> u64 {
        let id = self.count;
        self.count += 1;
        self.timers.push(Reverse((self.now_us.saturating_add(us), id)));
        id
    }
}

/// Waits for a moment of virtual time.
pub struct Sleep {
    time: Time,
    at_us: u64,
    timer: Option<u64>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let time = self.time.clone();
        let mut schedule = time.schedule();
        if schedule.now_us >= self.at_us {
            return Poll::Ready(());
        }
        let id = match self.timer {
            Some(id) => id,
            None => {
                let left = self.at_us - schedule.now_us;
                schedule.timer(left)
            }
        };
        self.timer = Some(id);
        schedule.wakers.insert(id, context.waker().clone());
        Poll::Pending
    }
}

struct Ready {
    task: u64,
    queue: Arc<Mutex<Vec<u64>>>,
}

impl Wake for Ready {
    fn wake(self: Arc<Self>) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if !queue.contains(&self.task) {
            queue.push(self.task);
        }
    }
}

/// Runs tasks in virtual time.
pub struct Executor {
    time: Time,
    random: fastrand::Rng,
    tasks: BTreeMap<u64, (Process, Task, Waker)>,
    ready: Arc<Mutex<Vec<u64>>>,
    next: u64,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Every task is done.
    Done,
    /// Time ran out: some task does not end.
    Limit,
    /// The polls ran out before that: some tasks wake each other for ever.
    Steps,
}

impl Executor {
    /// An executor that takes turns as `seed` says.
    pub fn new(time: Time, seed: u64) -> Executor {
        Executor {
            time,
            random: fastrand::Rng::with_seed(seed),
            tasks: BTreeMap::new(),
            ready: Arc::default(),
            next: 0,
        }
    }

    fn adopt(&mut self) {
        let (spawned, killed) = {
            let mut schedule = self.time.schedule();
            (std::mem::take(&mut schedule.spawned), std::mem::take(&mut schedule.killed))
        };
        // Dropped outside the lock: a future may own things that look at the time.
        for process in killed {
            let dropped: Vec<_> = self.tasks.extract_if(.., |_, task| task.0 == process).collect();
            drop(dropped);
        }
        for (process, task) in spawned {
            let id = self.next;
            self.next += 1;
            let waker = Waker::from(Arc::new(Ready { task: id, queue: self.ready.clone() }));
            self.tasks.insert(id, (process, task, waker));
            self.ready.lock().unwrap_or_else(PoisonError::into_inner).push(id);
        }
    }

    /// Runs until every task is done, or virtual time reaches `until_us`, or `steps_max` polls.
    pub fn run(&mut self, until_us: u64, steps_max: u64) -> End {
        for _ in 0..steps_max {
            self.adopt();
            if self.tasks.is_empty() {
                return End::Done;
            }
            let id = {
                let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
                if ready.is_empty() {
                    None
                } else {
                    let at = self.random.usize(..ready.len());
                    Some(ready.swap_remove(at))
                }
            };
            let Some(id) = id else {
                if !self.advance(until_us) {
                    return End::Limit;
                }
                continue;
            };
            let Some((process, task, waker)) = self.tasks.get_mut(&id) else { continue };
            let stall = {
                let mut schedule = self.time.schedule();
                let until = schedule.stalls.get(process).copied().unwrap_or(0);
                let left = until.saturating_sub(schedule.now_us);
                if left > 0 {
                    let timer = schedule.timer(left);
                    schedule.wakers.insert(timer, waker.clone());
                }
                left > 0
            };
            if stall {
                continue;
            }
            let waker = waker.clone();
            if task.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
                self.tasks.remove(&id);
            }
        }
        End::Steps
    }

    /// Jumps to the next timer. False when there is none before `until_us`.
    fn advance(&mut self, until_us: u64) -> bool {
        let (waker, effect) = {
            let mut schedule = self.time.schedule();
            match schedule.timers.peek() {
                Some(Reverse((at, _))) if *at <= until_us => {}
                _ => return false,
            }
            let Some(Reverse((at, id))) = schedule.timers.pop() else { return false };
            schedule.now_us = schedule.now_us.max(at);
            (schedule.wakers.remove(&id), schedule.effects.remove(&id))
        };
        if let Some(effect) = effect {
            effect();
        }
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }
}
