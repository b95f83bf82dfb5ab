//! What clusters of simulated processes stand on, whatever their transactions promise.
//!
//! ```text
//!   set up --> work, while everything goes wrong --> calm --> roll call --> last sweep --> what is checked of all
//! ```
//!
//! In the calm nothing goes wrong any more, and what was stalled or on its way goes on and ends. Then each client
//! that is at work is asked for one more transaction: it commits, or learns that its life is over, or that is a
//! violation. After that all are killed.

use std::{
    collections::BTreeMap,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::future::{Either, select};
use pager::{Budget, policy, pool::Pool};

use crate::{
    catalog::Database,
    cloud::{
        CallKind, Cloud, DiskSpace, Ledger,
        ledger::Metered,
        model::{End, Executor, Faults, Latency, Opener, Process, World},
        sealed::{Keyring, Of, Sealer},
    },
    error::StoreError,
    names::DATABASE,
    simulation::{
        Plan, Report, Violation,
        audit::Audit,
        check,
        recorder::{Record, Recorder},
    },
    store::Store,
};

/// Polls of one run: far beyond what one takes; more is a livelock.
pub(super) const STEPS_MAX: u64 = 3_000_000;
/// How long after the last fault each client is to show that it goes on working, and how long that may take.
pub(super) const CALM_US: u64 = 30_000_000;
pub(super) const ANSWER_US: u64 = 70_000_000;
/// How long the last sweep may take: longer than queues keep a message.
const SWEEP_US: u64 = 16 * 24 * 3_600_000_000;

/// Who sets up.
pub(super) const ADMIN: Process = Process(1);
const SUPERVISOR: Process = Process(2);
const SWEEPER: Process = Process(3);
const KEEPER: Process = Process(8);

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What `doing` comes to, unless that takes longer: then nobody knows.
pub(super) async fn within<T>(
    world: &World,
    patience_us: u64,
    doing: impl Future<Output = T>,
) -> Option<T> {
    match select(pin!(doing), world.time.sleep(patience_us)).await {
        Either::Left((outcome, _)) => Some(outcome),
        Either::Right(_) => None,
    }
}

/// Who is there.
#[derive(Default)]
struct Roster {
    next_process: u32,
    /// Lives that nobody has killed, and whose they are.
    lives: BTreeMap<Process, u64>,
    /// Transactions that each client has tried.
    tried: BTreeMap<u64, u32>,
    crashes: u64,
    /// What is at its transactions: a life may be so several times.
    working: BTreeMap<(Process, u32), u64>,
    /// Everyone is asked for one more.
    is_called: bool,
    /// Of those who were asked, who has not answered: its client, and what it met.
    silent: BTreeMap<(Process, u32), (u64, String)>,
}

/// A life is at its transactions, until this is dropped.
pub(super) struct AtWork {
    roster: Arc<Mutex<Roster>>,
    who: (Process, u32),
}

impl AtWork {
    /// It was asked for one more, and this came of it: not what it should.
    pub(super) fn met(&self, what: String) {
        if let Some((_, met)) = lock(&self.roster).silent.get_mut(&self.who) {
            *met = what;
        }
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        let mut roster = lock(&self.roster);
        roster.working.remove(&self.who);
        // It has answered, or its life is over.
        roster.silent.remove(&self.who);
    }
}

/// What a client is to do next.
pub(super) enum Turn {
    /// Another transaction.
    Next,
    /// Nothing: it has tried all that it was to.
    Rest,
    /// One more, and then it may end.
    Called,
}

/// Services, and processes in front of them. Cheap to clone.
#[derive(Clone)]
pub(super) struct Stage {
    pub(super) plan: Plan,
    pub(super) world: World,
    ledger: Arc<Ledger>,
    record: Arc<Mutex<Record>>,
    roster: Arc<Mutex<Roster>>,
}

impl Stage {
    /// One of its own per run, and who gives turns on it.
    pub(super) fn new(plan: &Plan, seed: u64, trace: bool, latency: &Latency) -> (Stage, Executor) {
        let world = World::new(seed, Faults::NONE, *latency);
        if trace {
            world.keep_trace();
        }
        world.audit_by(Audit::default());
        if plan.is_sealed {
            world.open_by(AllKeys::default());
        }
        for process in [ADMIN, SUPERVISOR, SWEEPER, KEEPER] {
            world.make_safe(process);
        }
        let executor = Executor::new(world.time.clone(), seed ^ 0x5eed);
        let stage = Stage {
            plan: plan.clone(),
            world,
            ledger: Ledger::new(),
            record: Arc::default(),
            roster: Arc::new(Mutex::new(Roster { next_process: 10, ..Roster::default() })),
        };
        (stage, executor)
    }

    /// The services as `process` has them: its calls are counted, and what it does to objects is recorded.
    pub(super) fn cloud(&self, process: Process) -> Cloud {
        let raw = self.world.cloud(process);
        let (inner, time, record) = (raw.objects, self.world.time.clone(), self.record.clone());
        let recorder = Recorder { inner, time, record };
        // Not enough for all pages.
        let disk = || DiskSpace { disk: self.world.disk(process), bytes: 60_000 };
        Cloud {
            objects: Arc::new(Metered::new(Arc::new(recorder), self.ledger.clone())),
            queue: Arc::new(Metered::new(raw.queue, self.ledger.clone())),
            disk: self.plan.has_disk.then(disk),
            ..raw
        }
    }

    /// A database of the plan.
    pub(super) async fn create(&self) -> Result<(), StoreError> {
        let (cloud, plan) = (self.cloud(ADMIN), &self.plan);
        let as_what = (plan.is_sealed, false);
        Store::create_as(&cloud, &plan.settings(), plan.backend, plan.shards, as_what)
            .await
            .map(drop)
    }

    pub(super) async fn open(&self, process: Process) -> Result<Arc<Store>, StoreError> {
        self.open_over(self.cloud(process)).await
    }

    /// The same, over services of somebody's own.
    pub(super) async fn open_over(&self, cloud: Cloud) -> Result<Arc<Store>, StoreError> {
        // The other key comes in front midway.
        let is_late = self.world.time.now_us() > self.plan.work.as_micros() as u64 / 2;
        self.open_by(cloud, if is_late { &[2, 1] } else { &[1, 2] }).await
    }

    /// The same, with these keys, the one that seals first; if it is sealed.
    pub(super) async fn open_by(
        &self,
        cloud: Cloud,
        keys: &[u32],
    ) -> Result<Arc<Store>, StoreError> {
        // Small enough that pages are evicted.
        let bytes = if self.plan.has_disk { 24 << 10 } else { 64 << 10 };
        let pool = Pool::new(&Budget::new(bytes), policy::default_eviction());
        match self.plan.is_sealed {
            true => {
                let keys = keyring(keys);
                Store::open_with_keys(cloud, self.plan.settings(), &pool, &keys).await
            }
            false => Store::open(cloud, self.plan.settings(), &pool).await,
        }
    }

    /// The same, however often that takes.
    pub(super) async fn store(&self, process: Process) -> Arc<Store> {
        loop {
            match self.open(process).await {
                Ok(store) => return store,
                Err(_) => self.world.time.sleep(1_000_000).await,
            }
        }
    }

    /// A process that nobody starts again.
    pub(super) fn new_process(&self) -> Process {
        let mut roster = lock(&self.roster);
        roster.next_process += 1;
        Process(roster.next_process)
    }

    /// A life of `client`: it comes back, perhaps, when it crashes ([`Stage::supervise`]).
    pub(super) fn new_life(&self, client: u64) -> Process {
        let process = self.new_process();
        lock(&self.roster).lives.insert(process, client);
        process
    }

    /// Brings crashed ones back, and starts clients a second time.
    pub(super) fn supervise(&self, end_us: u64, start: impl Fn(u64) + Send + 'static) {
        let stage = self.clone();
        self.world.time.spawn(SUPERVISOR, async move {
            let Stage { world, plan, .. } = &stage;
            while world.time.now_us() < end_us {
                world.time.sleep(1_000_000).await;
                let mut restarts = Vec::new();
                for process in world.take_crashed() {
                    let mut roster = lock(&stage.roster);
                    roster.crashes += 1;
                    if let Some(client) = roster.lives.remove(&process)
                        && world.with_probability(plan.comes_back)
                    {
                        restarts.push(client);
                    }
                }
                for client in 1..=u64::from(plan.clients) {
                    if world.with_probability(plan.second_life) {
                        restarts.push(client);
                    }
                }
                restarts.into_iter().for_each(&start);
            }
        });
    }

    /// Something that goes on while clients work, and ends with that.
    pub(super) fn beside(&self, doing: impl Future<Output = ()> + Send + 'static) {
        self.world.time.spawn(SUPERVISOR, doing);
    }

    /// `process` is at transactions of `client`, as the n-th.
    pub(super) fn at_work(&self, process: Process, n: u32, client: u64) -> AtWork {
        let mut roster = lock(&self.roster);
        let who = (process, n);
        roster.working.insert(who, client);
        AtWork { roster: self.roster.clone(), who }
    }

    /// Whether everyone is asked for one more.
    pub(super) fn is_called(&self) -> bool {
        lock(&self.roster).is_called
    }

    pub(super) fn turn(&self, client: u64) -> Turn {
        let mut roster = lock(&self.roster);
        if roster.is_called {
            return Turn::Called;
        }
        let tried = roster.tried.entry(client).or_default();
        if *tried >= self.plan.transactions {
            return Turn::Rest;
        }
        *tried += 1;
        Turn::Next
    }

    /// Before anything goes wrong.
    pub(super) fn set_up<T: Send + 'static>(
        &self,
        executor: &mut Executor,
        doing: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> T {
        let made: Arc<Mutex<Option<T>>> = Arc::default();
        let to = made.clone();
        self.world.time.spawn(ADMIN, async move {
            let outcome = doing.await;
            *lock(&to) = outcome.ok();
        });
        executor.run(u64::MAX, STEPS_MAX);
        let made = lock(&made).take();
        made.expect("nothing goes wrong during the set-up")
    }

    /// From now on everything goes wrong, until the time that this returns.
    pub(super) fn begin(&self) -> u64 {
        self.world.set_faults(self.plan.faults.clone());
        self.world.time.now_us() + self.plan.work.as_micros() as u64
    }

    /// Work, calm, and the roll call.
    pub(super) fn play(&self, executor: &mut Executor, end_us: u64) -> Vec<Violation> {
        let world = &self.world;
        let mut is_livelock = executor.run(end_us, STEPS_MAX) == End::Steps;
        world.set_faults(Faults { stale_max: self.plan.faults.stale_max, ..Faults::NONE });
        world.time.kill(SUPERVISOR);
        world.time.end_stalls();
        is_livelock |= executor.run(end_us + CALM_US, STEPS_MAX) == End::Steps;
        // Those who rest for minutes, and those who may see what is old, are not asked.
        if !self.plan.is_sluggish && self.plan.faults.stale_max.is_none() {
            let mut roster = lock(&self.roster);
            roster.is_called = true;
            let working = roster.working.clone().into_iter();
            roster.silent =
                working.map(|(who, client)| (who, (client, "nothing".into()))).collect();
        }
        is_livelock |= executor.run(end_us + CALM_US + ANSWER_US, STEPS_MAX) == End::Steps;
        let (silent, lives) = {
            let mut roster = lock(&self.roster);
            (std::mem::take(&mut roster.silent), roster.lives.clone())
        };
        lives.into_keys().for_each(|process| world.time.kill(process));
        let livelock = format!("{STEPS_MAX} polls, and no end");
        let livelock = is_livelock.then(|| Violation::new(0, livelock));
        let silent = silent.into_iter().map(|((process, _), (client, met))| {
            let what = format!("client {client}, process {}, does not go on: {met}", process.0);
            Violation::new(0, what)
        });
        livelock.into_iter().chain(silent).collect()
    }

    /// A time when nobody works; somebody has the database open, is named to `keep`, and then killed.
    pub(super) fn idle<F>(
        &self,
        executor: &mut Executor,
        keep: impl FnOnce(Process) -> F,
    ) -> Option<Violation>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.world.time.spawn(KEEPER, keep(KEEPER));
        let until_us = self.world.time.now_us() + self.plan.idle.as_micros() as u64;
        let is_livelock = executor.run(until_us, STEPS_MAX) == End::Steps;
        self.world.time.kill(KEEPER);
        is_livelock.then(|| Violation::new(0, format!("{STEPS_MAX} polls, and no end")))
    }

    /// The last sweep, by one who is named to it. It ends, and well.
    pub(super) fn sweep<F>(
        &self,
        executor: &mut Executor,
        sweep: impl FnOnce(Process) -> F,
    ) -> Option<Violation>
    where
        F: Future<Output = Result<(), StoreError>> + Send + 'static,
    {
        let swept: Arc<Mutex<Option<Result<(), StoreError>>>> = Arc::default();
        let (to, doing) = (swept.clone(), sweep(SWEEPER));
        self.world.time.spawn(SWEEPER, async move {
            let outcome = doing.await;
            *lock(&to) = Some(outcome);
        });
        let rest_us = self.plan.rest().as_micros() as u64;
        executor.run(self.world.time.now_us() + SWEEP_US + rest_us, STEPS_MAX);
        let swept = lock(&swept).take();
        match swept {
            Some(Ok(())) => None,
            Some(Err(error)) => Some(Violation::new(1, format!("the last sweep failed: {error}"))),
            None => Some(Violation::new(1, "the last sweep does not end".into())),
        }
    }

    /// What is to be of any run: invariants 6 and 10, those at each change, and histories of compare and swap.
    pub(super) fn violations(&self) -> Vec<Violation> {
        let world = &self.world;
        let mut violations: Vec<Violation> =
            world.broken().into_iter().map(|what| Violation::new(6, what)).collect();
        let audited = world.audited().into_iter();
        violations.extend(audited.map(|(invariant, what)| Violation::new(invariant, what)));
        violations.extend(check::ledger(&self.ledger, &world.ledger));
        // What is read may be old in 2007.
        if self.plan.faults.stale_max.is_none() {
            violations.extend(lock(&self.record).broken());
        }
        violations
    }

    /// What is told of any run.
    pub(super) fn report(&self, seed: u64, violations: Vec<Violation>) -> Report {
        let world = &self.world;
        Report {
            seed,
            violations,
            crashes: lock(&self.roster).crashes,
            calls: CallKind::ALL.iter().map(|&kind| world.ledger.charge(kind).calls).sum(),
            disk: world.disk_counts(),
            answers: world.answers(),
            met: world.met(),
            fail_points: world.fail_points(),
            virtual_time: Duration::from_micros(world.time.now_us()),
            trace: world.trace(),
            ..Report::default()
        }
    }
}

/// Keys of these numbers.
fn keyring(ids: &[u32]) -> Keyring {
    let keys: Vec<(u32, [u8; 32])> = ids.iter().map(|id| (*id, [*id as u8; 32])).collect();
    Keyring::new(&keys).expect("a few, none twice")
}

/// Opens whatever is sealed, as soon as there is a database.
#[derive(Default)]
struct AllKeys(OnceLock<Sealer>);

impl AllKeys {
    fn open(&self, of: Of<'_>, frame: &Bytes) -> Bytes {
        let opened = self.0.get().and_then(|sealer| sealer.open_or_mark(of, frame).ok());
        opened.unwrap_or_else(|| frame.clone())
    }
}

impl Opener for AllKeys {
    fn object(&self, name: &str, bytes: &Bytes) -> Bytes {
        if name != DATABASE {
            return self.open(Of::Object(name), bytes);
        }
        if let Ok(database) = Database::decode(bytes) {
            self.0.get_or_init(|| Sealer::new(&keyring(&[1, 2]), database.id));
        }
        bytes.clone()
    }

    fn message(&self, queue: &str, body: &Bytes) -> Bytes {
        self.open(Of::Queue(queue), body)
    }
}
