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
mod answer; // what calls are answered, counted
mod objects; // the object store
mod queue; // the queue service
mod disk; // a disk that lies

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt::Write as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;

pub use answer::Answer;
pub use executor::{End, Executor, Process, Sleep, Time};
pub use faults::{DATE_JUMP_MAX, Faults, Mishap};
pub use objects::Version;
pub(crate) use objects::tag;

use crate::{
    FailPoint,
    cloud::{Chance, Clock, Cloud, Disk, Fault, Ledger, queue::BATCH_MAX},
};

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
    files: disk::Files,
    /// Offsets of the machines' clocks, in microseconds.
    skews: HashMap<Process, i64>,
    /// How long machines have slept.
    slept: HashMap<Process, Slept>,
    /// Fail points that were come to: how often, and how often somebody crashed there.
    points: BTreeMap<FailPoint, (u64, u64)>,
    /// What calls were answered.
    answers: [u64; Answer::ALL.len()],
    /// What went wrong.
    met: faults::Met,
    /// Who shows what is sealed.
    opener: Option<Arc<dyn Opener>>,
    /// Who looks at every change.
    auditor: Option<Box<dyn Auditor>>,
    /// What that saw: the number of an invariant, and what was wrong.
    audited: Vec<(u8, String)>,
    trace: Option<VecDeque<String>>,
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

/// Sleep of a machine, in microseconds.
#[derive(Clone, Copy, Default)]
struct Slept {
    /// Before the last time.
    total: u64,
    /// The last time, from and to.
    from: u64,
    to: u64,
}

impl Slept {
    /// The machine's monotonic clock at `now`.
    fn clock(self, now: u64) -> u64 {
        if now < self.to {
            self.from - self.total
        } else {
            now - self.total - (self.to - self.from)
        }
    }

    fn sleep(&mut self, now: u64, us: u64) {
        if now >= self.to {
            *self = Slept { total: self.total + self.to - self.from, from: now, to: now + us };
        }
    }
}

/// What the services hold.
pub(crate) struct Scene<'a> {
    pub(crate) objects: &'a objects::Store,
    pub(crate) queues: &'a queue::Service,
}

/// A change of the services.
pub(crate) enum Event<'a> {
    /// A message is in a queue.
    Sent { queue: &'a str, body: &'a Bytes },
    /// Somebody asks to delete a message, whatever comes of it.
    Acknowledged { queue: &'a str, body: &'a Bytes },
    /// Somebody asks to delete an object, whatever comes of it.
    Freed { name: &'a str },
    /// An object is about to be put: over another one, if `is_swap`.
    Put { name: &'a str, bytes: &'a Bytes, is_swap: bool },
    /// An object is about to be deleted.
    Deleted { name: &'a str },
}

/// Looks at every change of the services, at the moment it happens or is asked for.
pub(crate) trait Auditor: Send {
    /// What is wrong with it: the number of an invariant, and what was seen.
    fn see(&mut self, event: &Event<'_>, there: &Scene<'_>) -> Option<(u8, String)>;
}

/// Shows what is sealed to those who look at the services from outside: [`World::history`] and auditors. Those
/// who call them get what was put.
pub(crate) trait Opener: Send + Sync {
    /// What is in an object.
    fn object(&self, name: &str, bytes: &Bytes) -> Bytes;
    /// What is in a message.
    fn message(&self, queue: &str, body: &Bytes) -> Bytes;
}

/// Complaints that are kept.
const AUDITED_MAX: usize = 20;

impl State {
    /// Whether it happens now.
    fn meets(&mut self, mishap: Mishap) -> bool {
        self.met.roll(&mut self.random, &self.faults, mishap)
    }

    fn audit(&mut self, event: &Event<'_>) {
        let State { auditor, audited, objects, queues, .. } = self;
        let Some(auditor) = auditor else { return };
        if let Some(found) = auditor.see(event, &Scene { objects, queues })
            && audited.len() < AUDITED_MAX
        {
            audited.push(found);
        }
    }
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
                files: disk::Files::default(),
                skews: HashMap::new(),
                slept: HashMap::new(),
                points: BTreeMap::new(),
                answers: [0; Answer::ALL.len()],
                met: faults::Met::default(),
                opener: None,
                auditor: None,
                audited: Vec::new(),
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
        self.state().trace = Some(VecDeque::new());
    }

    /// The trace so far: its last 200,000 lines.
    pub fn trace(&self) -> Vec<String> {
        self.state().trace.clone().unwrap_or_default().into()
    }

    /// Adds a line to the trace.
    pub fn note(&self, process: Process, what: impl FnOnce() -> String) {
        let now_us = self.time.now_us();
        let mut state = self.state();
        if let Some(trace) = &mut state.trace {
            if trace.len() >= TRACE_MAX {
                trace.pop_front();
            }
            let mut line = String::new();
            let (s, us) = (now_us / 1_000_000, now_us % 1_000_000);
            let _ = write!(line, "{s:5}.{us:06} p{:<3} {}", process.0, what());
            trace.push_back(line);
        }
    }

    /// One receive may return up to 256 messages, as in 2007, and old versions of objects are
    /// forgotten: for long runs in which nothing goes wrong.
    pub fn be_of_2007(&self) {
        let mut state = self.state();
        state.receive_max = 256;
        state.objects.forgets = true;
    }

    /// One receive may return up to 256 messages, as in 2007.
    pub fn receive_many(&self) {
        self.state().receive_max = 256;
    }

    /// Names of all queues.
    pub fn queue_names(&self) -> Vec<String> {
        self.state().queues.names()
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

    /// From now on `opener` shows what is sealed.
    pub(crate) fn open_by(&self, opener: impl Opener + 'static) {
        self.state().opener = Some(Arc::new(opener));
    }

    /// From now on `auditor` looks at every change.
    pub(crate) fn audit_by(&self, auditor: impl Auditor + 'static) {
        self.state().auditor = Some(Box::new(auditor));
    }

    /// What the auditor saw that must not be.
    pub(crate) fn audited(&self) -> Vec<(u8, String)> {
        self.state().audited.clone()
    }

    /// Fail points that somebody came to: how often, and how often somebody crashed there.
    pub fn fail_points(&self) -> BTreeMap<FailPoint, (u64, u64)> {
        self.state().points.clone()
    }

    /// How often calls were answered what.
    pub fn answers(&self) -> BTreeMap<Answer, u64> {
        let state = self.state();
        Answer::ALL.into_iter().map(|it| (it, state.answers[it as usize])).collect()
    }

    /// How often what went wrong.
    pub fn met(&self) -> BTreeMap<Mishap, u64> {
        let state = self.state();
        Mishap::ALL.into_iter().map(|it| (it, state.met.of(it))).collect()
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

    /// All versions of all objects whose names start with `prefix`, oldest first; what is sealed as it was
    /// before.
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
            disk: None,
        }
    }

    /// The disk of the machine that all processes run on, as `process` uses it.
    pub fn disk(&self, process: Process) -> Arc<dyn Disk> {
        Arc::new(Caller { world: self.clone(), process })
    }

    /// Files that were found on the disk so far, and how often something was wrong there.
    pub fn disk_counts(&self) -> (u64, u64) {
        let files = &self.state().files;
        (files.found, files.faults)
    }

    /// The object store's clock, milliseconds since 1970.
    pub fn date_ms(&self) -> u64 {
        EPOCH_MS + self.time.now_us() / 1000
    }

    /// The same as one answer tells it, which can be wrong.
    fn date_told_ms(&self) -> u64 {
        let jump_ms = {
            let mut state = self.state();
            let jumps = state.meets(Mishap::DateJump);
            let most_ms = DATE_JUMP_MAX.as_millis() as u64;
            if jumps { state.random.u64(3_600_000..=most_ms) } else { 0 }
        };
        self.date_ms() + jump_ms
    }
}

/// One process, as it calls the services.
struct Caller {
    world: World,
    process: Process,
}

/// What happens to one call.
#[derive(Clone, Copy)]
enum Fate {
    Fine,
    /// The effect happens, the answer does not come.
    LostAnswer(Silence),
    /// Nothing happens, no answer comes.
    LostRequest(Silence),
    /// No answer comes, and the effect so many microseconds later.
    Late(u64),
    /// Nothing happens: 503 or 429.
    Throttled(Answer),
}

impl Fate {
    /// How a caller learns that there is no answer.
    fn silence(self) -> Silence {
        match self {
            Fate::LostAnswer(silence) | Fate::LostRequest(silence) => silence,
            _ => Silence::Nothing,
        }
    }
}

/// What a caller hears of a call of which nobody knows what came.
#[derive(Clone, Copy)]
enum Silence {
    /// Nothing, until it gives up.
    Nothing,
    /// 500, at once.
    InternalError,
}

impl Caller {
    /// Latency and faults before the effect of a call. `is_change` says whether it has one.
    async fn before(&self, what: &str, base_us: u64, is_change: bool) -> Fate {
        let world = &self.world;
        let is_hung = world.state().meets(Mishap::Hung);
        if is_hung {
            world.note(self.process, || format!("hears nothing of {what}, for ever"));
            std::future::pending::<()>().await;
        }
        let (latency_us, crash, stall_us, fate) = {
            let mut state = world.state();
            let is_safe = state.safe.contains(&self.process);
            let is_immortal = is_safe || state.immortal.contains(&self.process);
            let State { random, faults, latency, met, .. } = &mut *state;
            let mut meets = |mishap| met.roll(random, faults, mishap);
            let crash = !is_immortal && meets(Mishap::CrashBefore);
            let stall = !is_safe && is_change && meets(Mishap::Stall);
            let mut fate = if meets(Mishap::Throttled) {
                Fate::Throttled(Answer::SlowDown)
            } else if meets(Mishap::TooMany) {
                Fate::Throttled(Answer::TooMany)
            } else if meets(Mishap::LostAnswer) {
                Fate::LostAnswer(Silence::Nothing)
            } else if meets(Mishap::LostRequest) {
                Fate::LostRequest(Silence::Nothing)
            } else if is_change && meets(Mishap::LateEffect) {
                Fate::Late(0)
            } else if meets(Mishap::InternalError) {
                Fate::LostRequest(Silence::InternalError)
            } else {
                Fate::Fine
            };
            // As often as not.
            if let Fate::LostRequest(Silence::InternalError) = fate
                && random.f64() < 0.5
            {
                fate = Fate::LostAnswer(Silence::InternalError);
            }
            let mut meets = |mishap| met.roll(random, faults, mishap);
            let sleeps = stall && meets(Mishap::Suspended);
            let jumps = meets(Mishap::ClockJump);
            let fate = match fate {
                Fate::Late(_) => Fate::Late(random.u64(..=faults.late_max.as_micros() as u64)),
                fate => fate,
            };
            let stall_us =
                if stall { random.u64(..=faults.stall_max.as_micros() as u64) } else { 0 };
            let swing = 1.0 + latency.jitter * (2.0 * random.f64() - 1.0);
            if sleeps {
                state.slept.entry(self.process).or_default().sleep(world.time.now_us(), stall_us);
            }
            if jumps {
                let max = state.faults.skew_max.as_micros() as i64;
                let skew = state.random.i64(-max..=max);
                state.skews.insert(self.process, skew);
            }
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
            !is_safe && state.meets(Mishap::CrashAfter)
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

    /// Takes note of the answer to a call.
    fn answered(&self, answer: Answer) {
        self.world.state().answers[answer as usize] += 1;
    }

    /// The service asks for less.
    fn throttled(&self, what: &str, answer: Answer) -> Fault {
        self.answered(answer);
        self.world.note(self.process, || format!("{what}: {}", answer.name()));
        Fault::Throttled { what: what.to_owned() }
    }

    /// What is refused although it is allowed.
    fn denied(&self, what: &str) -> Option<Fault> {
        if !self.world.state().meets(Mishap::Denied) {
            return None;
        }
        self.answered(Answer::Denied);
        self.world.note(self.process, || format!("{what}: 403"));
        Some(Fault::Denied { what: what.to_owned(), cause: "403 Access Denied".into() })
    }

    fn lost(&self, what: &str, silence: Silence) -> Fault {
        let cause = match silence {
            Silence::Nothing => {
                self.answered(Answer::None);
                "the answer was lost"
            }
            Silence::InternalError => {
                self.answered(Answer::InternalError);
                "500 Internal Server Error"
            }
        };
        self.world.note(self.process, || format!("{what}: {cause}"));
        Fault::Unknown { what: what.to_owned(), cause: cause.into() }
    }

    /// How long a client waits for an answer that does not come.
    async fn time_out(&self, silence: Silence) {
        if let Silence::Nothing = silence {
            self.world.time.sleep(2_000_000).await;
        }
    }
}

#[async_trait]
impl Clock for Caller {
    fn monotonic_us(&self) -> u64 {
        let now_us = self.world.time.now_us();
        let slept = self.world.state().slept.get(&self.process).copied().unwrap_or_default();
        // Zero means "never" to those who remember times.
        slept.clock(now_us) + 1
    }

    fn wall_us(&self) -> u64 {
        let now = (EPOCH_MS * 1000 + self.world.time.now_us()) as i64;
        let mut state = self.world.state();
        let State { random, faults, skews, met, .. } = &mut *state;
        let max = faults.skew_max.as_micros() as i64;
        let skew = skews.entry(self.process).or_insert_with(|| {
            let skew = random.i64(-max..=max);
            if skew != 0 {
                met.count(Mishap::Skew);
            }
            skew
        });
        (now + *skew) as u64
    }

    async fn sleep(&self, time: Duration) {
        self.world.time.sleep(time.as_micros() as u64).await;
    }

    async fn reached(&self, point: FailPoint) {
        let crash = {
            let mut state = self.world.state();
            let is_safe =
                state.safe.contains(&self.process) || state.immortal.contains(&self.process);
            let is_meant = state.faults.crash_only_at.is_none_or(|only| only == point);
            let crash = !is_safe && is_meant && state.meets(Mishap::CrashAt);
            let count = state.points.entry(point).or_default();
            count.0 += 1;
            count.1 += u64::from(crash);
            crash
        };
        if crash {
            self.crash(point.name(), "at").await;
        }
    }
}

impl Chance for Caller {
    fn next_u64(&self) -> u64 {
        self.world.state().random.u64(..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Its monotonic clock never goes back, and stands still as long as it sleeps.
    #[test]
    fn a_machine_that_sleeps_loses_that_time_and_no_other() {
        let mut slept = Slept::default();
        assert_eq!(slept.clock(100), 100);
        slept.sleep(100, 50);
        assert_eq!([100, 120, 150, 170].map(|now| slept.clock(now)), [100, 100, 100, 120]);
        // It cannot fall asleep while it sleeps.
        slept.sleep(120, 500);
        assert_eq!(slept.clock(170), 120);
        slept.sleep(200, 10);
        assert_eq!([200, 209, 210, 300].map(|now| slept.clock(now)), [150, 150, 150, 240]);
    }
}
