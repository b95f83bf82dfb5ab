//! A seeded model of the services and of the machines that call them.
//!
//! ```text
//!   process -> call -> latency -> [crash? stall? late? lost?] -> effect -> [crash? lost?] -> answer
//! ```
//!
//! Every run is a function of its seed. The model charges every call to a ledger of its own, so
//! that the ledger of the store can be held against it.

mod executor; // virtual time and turns
mod faults; // what goes wrong
mod objects; // the object store
mod queue; // the queue service

use std::{
    collections::HashMap,
    fmt::Write as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;

pub use executor::{End, Executor, Process, Sleep, Time};
pub use faults::Faults;
pub use objects::Version;

use crate::cloud::{Chance, Clock, Cloud, Fault, Ledger, queue::BATCH_MAX};

/// The clock of the object store when a run begins, milliseconds since 1970.
pub const EPOCH_MS: u64 = 1_763_690_400_000;

/// Lines that a trace keeps: the last ones, which tell how it ended.
const TRACE_MAX: usize = 200_000;

/// How long calls take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latency {
    /// Reading an object of no bytes.
    pub get: Duration,
    /// Per byte read.
    pub get_byte_ns: f64,
    /// Storing takes as many times what reading does.
    pub put_factor: f64,
    /// Sending.
    pub send: Duration,
    /// Receiving and deleting messages.
    pub receive: Duration,
    /// A random part: up to this share more or less.
    pub jitter: f64,
}

impl Latency {
    /// Some milliseconds, spread widely: for schedules, not for measuring.
    pub const ROUGH: Latency = Latency {
        get: Duration::from_millis(20),
        get_byte_ns: 10.0,
        put_factor: 2.0,
        send: Duration::from_millis(15),
        receive: Duration::from_millis(15),
        jitter: 0.8,
    };

    /// November 2007 from a machine across the Internet: tables 1 and 2 of the paper. A get of
    /// 10 KB takes 0.14 s and one of 100 KB 0.45 s; a put takes three times that.
    pub const OF_2007: Latency = Latency {
        get: Duration::from_micros(105_556),
        get_byte_ns: 3444.4,
        put_factor: 3.0,
        send: Duration::from_millis(310),
        receive: Duration::from_millis(160),
        jitter: 0.0,
    };

    /// Today, from a machine in the same region: typical medians of S3 Standard and SQS.
    pub const TODAY: Latency = Latency {
        get: Duration::from_millis(20),
        get_byte_ns: 11.0,
        put_factor: 1.6,
        send: Duration::from_millis(10),
        receive: Duration::from_millis(8),
        jitter: 0.3,
    };
}

/// Services and machines of one run.
#[derive(Clone)]
pub struct World {
    /// Virtual time.
    pub time: Time,
    state: Arc<Mutex<State>>,
    /// What the services would charge.
    pub ledger: Arc<Ledger>,
}

struct State {
    random: fastrand::Rng,
    faults: Faults,
    latency: Latency,
    objects: objects::Store,
    queues: queue::Service,
    /// Offsets of the machines' clocks, in microseconds.
    skews: HashMap<Process, i64>,
    trace: Option<Vec<String>>,
    /// Broken invariants that only the services can see.
    broken: Vec<String>,
    /// Processes that crashed.
    crashed: Vec<Process>,
    /// Processes that never crash or stall: the observers.
    safe: Vec<Process>,
    /// Processes that never crash.
    immortal: Vec<Process>,
    /// Messages that one call may receive.
    receive_max: usize,
}

impl World {
    /// A world in which everything random follows from `seed`.
    pub fn new(seed: u64, faults: Faults, latency: Latency) -> World {
        World {
            time: Time::default(),
            state: Arc::new(Mutex::new(State {
                random: fastrand::Rng::with_seed(seed),
                faults,
                latency,
                objects: objects::Store::default(),
                queues: queue::Service::default(),
                skews: HashMap::new(),
                trace: None,
                broken: Vec::new(),
                crashed: Vec::new(),
                safe: Vec::new(),
                immortal: Vec::new(),
                receive_max: BATCH_MAX,
            })),
            ledger: Ledger::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a readable trace of every call from now on.
    pub fn keep_trace(&self) {
        self.state().trace = Some(Vec::new());
    }

    /// The trace so far.
    pub fn trace(&self) -> Vec<String> {
        self.state().trace.clone().unwrap_or_default()
    }

    /// Adds a line to the trace.
    pub fn note(&self, process: Process, what: impl FnOnce() -> String) {
        let now_us = self.time.now_us();
        let mut state = self.state();
        if let Some(trace) = &mut state.trace
            && trace.len() < TRACE_MAX
        {
            let mut line = String::new();
            let (s, us) = (now_us / 1_000_000, now_us % 1_000_000);
            let _ = write!(line, "{s:5}.{us:06} p{:<3} {}", process.0, what());
            trace.push(line);
        }
    }

    /// One receive may return up to 256 messages, as in 2007, and old versions of objects are
    /// forgotten: for long runs in which nothing goes wrong.
    pub fn be_of_2007(&self) {
        let mut state = self.state();
        state.receive_max = 256;
        state.objects.forgets = true;
    }

    /// From now on other things go wrong.
    pub fn set_faults(&self, faults: Faults) {
        self.state().faults = faults;
    }

    /// `process` never crashes or stalls.
    pub fn make_safe(&self, process: Process) {
        self.state().safe.push(process);
    }

    /// `process` never crashes. It stalls.
    pub fn make_no_crash(&self, process: Process) {
        self.state().immortal.push(process);
    }

    /// What the services saw that must not be.
    pub fn broken(&self) -> Vec<String> {
        self.state().broken.clone()
    }

    /// Processes that crashed since the last call.
    pub fn take_crashed(&self) -> Vec<Process> {
        std::mem::take(&mut self.state().crashed)
    }

    /// A random number of the run, below `bound`.
    pub fn below(&self, bound: u64) -> u64 {
        self.state().random.u64(..bound.max(1))
    }

    /// True with probability `p`.
    pub fn with_probability(&self, p: f64) -> bool {
        p > 0.0 && self.state().random.f64() < p
    }

    /// All versions of all objects whose names start with `prefix`, oldest first.
    pub fn history(&self, prefix: &str) -> Vec<(String, Vec<Version>)> {
        self.state().objects.history(prefix)
    }

    /// Messages in `queue`, hidden ones included.
    pub fn messages(&self, queue: &str) -> usize {
        self.state().queues.depth(queue)
    }

    /// Queues that exist.
    pub fn queues(&self) -> usize {
        self.state().queues.len()
    }

    /// The services, as `process` calls them.
    pub fn cloud(&self, process: Process) -> Cloud {
        let caller = Arc::new(Caller { world: self.clone(), process });
        Cloud {
            objects: caller.clone(),
            queue: caller.clone(),
            clock: caller.clone(),
            chance: caller,
        }
    }

    /// The object store's clock, milliseconds since 1970.
    pub fn date_ms(&self) -> u64 {
        EPOCH_MS + self.time.now_us() / 1000
    }
}

/// One process, as it calls the services.
struct Caller {
    world: World,
    process: Process,
}

/// What happens to one call.
enum Fate {
    Fine,
    /// The effect happens, the answer does not come.
    LostAnswer,
    /// Nothing happens, no answer comes.
    LostRequest,
    /// No answer comes, and the effect so many microseconds later.
    Late(u64),
    Throttled,
}

impl Caller {
    /// Latency and faults before the effect of a call. `is_change` says whether it has one.
    async fn before(&self, what: &str, base_us: u64, is_change: bool) -> Fate {
        let world = &self.world;
        let (latency_us, crash, stall_us, fate) = {
            let mut state = world.state();
            let is_safe = state.safe.contains(&self.process);
            let is_immortal = is_safe || state.immortal.contains(&self.process);
            let State { random, faults, latency, .. } = &mut *state;
            let mut chance = |p: f64| p > 0.0 && random.f64() < p;
            let crash = !is_immortal && chance(faults.crash_before);
            let stall = !is_safe && is_change && chance(faults.stall);
            let fate = if chance(faults.throttled) {
                Fate::Throttled
            } else if chance(faults.lost_answer) {
                Fate::LostAnswer
            } else if chance(faults.lost_request) {
                Fate::LostRequest
            } else if is_change && chance(faults.late_effect) {
                Fate::Late(0)
            } else {
                Fate::Fine
            };
            let fate = match fate {
                Fate::Late(_) => Fate::Late(random.u64(..=faults.late_max.as_micros() as u64)),
                fate => fate,
            };
            let stall_us =
                if stall { random.u64(..=faults.stall_max.as_micros() as u64) } else { 0 };
            let swing = 1.0 + latency.jitter * (2.0 * random.f64() - 1.0);
            ((base_us as f64 * swing) as u64, crash, stall_us, fate)
        };
        if stall_us > 0 {
            world.note(self.process, || format!("stalls for {stall_us} us before {what}"));
            world.time.stall(self.process, stall_us);
        }
        world.time.sleep(latency_us).await;
        if crash {
            self.crash(what, "before").await;
        }
        fate
    }

    /// Faults after the effect of a call.
    async fn after(&self, what: &str) {
        let crash = {
            let mut state = self.world.state();
            let is_safe =
                state.safe.contains(&self.process) || state.immortal.contains(&self.process);
            let p = state.faults.crash_after;
            !is_safe && p > 0.0 && state.random.f64() < p
        };
        if crash {
            self.crash(what, "after").await;
        }
    }

    async fn crash(&self, what: &str, when: &str) {
        let world = &self.world;
        world.note(self.process, || format!("CRASHES {when} {what}"));
        world.state().crashed.push(self.process);
        world.time.kill(self.process);
        std::future::pending().await
    }

    fn lost(&self, what: &str) -> Fault {
        Fault::Unknown { what: what.to_owned(), cause: "the answer was lost".into() }
    }

    /// How long a client waits for an answer that does not come.
    async fn time_out(&self) {
        self.world.time.sleep(2_000_000).await;
    }
}

#[async_trait]
impl Clock for Caller {
    fn monotonic_us(&self) -> u64 {
        // Zero means "never" to those who remember times.
        self.world.time.now_us() + 1
    }

    fn wall_us(&self) -> u64 {
        let now = (EPOCH_MS * 1000 + self.world.time.now_us()) as i64;
        let mut state = self.world.state();
        let State { random, faults, skews, .. } = &mut *state;
        let max = faults.skew_max.as_micros() as i64;
        let skew = skews.entry(self.process).or_insert_with(|| random.i64(-max..=max));
        (now + *skew) as u64
    }

    async fn sleep(&self, time: Duration) {
        self.world.time.sleep(time.as_micros() as u64).await;
    }
}

impl Chance for Caller {
    fn next_u64(&self) -> u64 {
        self.world.state().random.u64(..)
    }
}
