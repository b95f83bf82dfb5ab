//! Clients at work.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use pager::{Budget, policy, pool::Pool};

use crate::{
    blob::Value,
    catalog::{Backend, Collection},
    cloud::{
        Cloud, Delete, DiskSpace, ETag, Fault, Get, Ledger, Listing, Objects, Put, PutIf,
        model::{End, Executor, Faults, Latency, Process, World},
    },
    commit::{Level, Session, Txn, Write},
    error::StoreError,
    page::PageId,
    record::{Key, Payload},
    search_by::SearchBy,
    settings::Rule,
    simulation::{
        Attempt, Indexed, Outcome, Plan, Report, Violation,
        audit::Audit,
        check,
        history::History,
        recorder::Record,
        stage::{STEPS_MAX, lock, recorded, within},
    },
    stamp::Stamp,
    store::Store,
    tree::secondary,
};

/// How long after the last fault each client is to show that it goes on working, and how long that may take.
const CALM_US: u64 = 30_000_000;
const ANSWER_US: u64 = 70_000_000;
const COLLECTION: &str = "things";
const INDEX: &str = "writers";
/// Payloads begin with who wrote them.
const BY: SearchBy = SearchBy::Part { separator: b'.', number: 0 };

/// Shared by the clients of one run.
#[derive(Clone)]
pub(super) struct Cluster {
    plan: Plan,
    world: World,
    history: Arc<Mutex<History>>,
    record: Arc<Mutex<Record>>,
    ledger: Arc<Ledger>,
    roster: Arc<Mutex<Roster>>,
}

#[derive(Default)]
struct Roster {
    next_process: u32,
    clients: BTreeMap<Process, u64>,
    /// Transactions that each client has tried.
    tried: HashMap<u64, u32>,
    crashes: u64,
    collected: u64,
    blobs_collected: u64,
    spills_collected: u64,
    /// Lives that are at their transactions.
    working: BTreeMap<Process, u64>,
    /// Everyone is asked for one more.
    is_called: bool,
    /// Of those who were asked, who has not committed one: its client, and what it met.
    silent: BTreeMap<Process, (u64, String)>,
}

/// A life is at its transactions, until this is dropped.
struct AtWork(Arc<Mutex<Roster>>, Process);

impl Drop for AtWork {
    fn drop(&mut self) {
        let mut roster = lock(&self.0);
        roster.working.remove(&self.1);
        // It has answered, or its life is over.
        roster.silent.remove(&self.1);
    }
}

pub(super) fn run(plan: &Plan, seed: u64, trace: bool, latency: &Latency) -> Report {
    let world = World::new(seed, Faults::NONE, *latency);
    if trace {
        world.keep_trace();
    }
    world.audit_by(Audit::default());
    let mut executor = Executor::new(world.time.clone(), seed ^ 0x5eed);
    let cluster = Cluster {
        plan: plan.clone(),
        world: world.clone(),
        history: Arc::default(),
        record: Arc::default(),
        ledger: Ledger::new(),
        roster: Arc::default(),
    };
    lock(&cluster.roster).next_process = 10;
    let (admin, supervisor, sweeper) = (Process(1), Process(2), Process(3));
    for process in [admin, supervisor, sweeper] {
        world.make_safe(process);
    }

    let set_up: Arc<Mutex<Option<Option<PageId>>>> = Arc::default();
    {
        let (cluster, set_up) = (cluster.clone(), set_up.clone());
        world.time.spawn(admin, async move {
            *lock(&set_up) = cluster.set_up(admin).await.ok();
        });
    }
    executor.run(u64::MAX, STEPS_MAX);
    let root = lock(&set_up).expect("nothing goes wrong during the set-up");

    world.set_faults(plan.faults.clone());
    let end_us = world.time.now_us() + plan.work.as_micros() as u64;
    for client in 0..u64::from(plan.clients) {
        cluster.start(client + 1, root);
    }
    world.time.spawn(supervisor, cluster.clone().supervise(root, end_us));
    let janitor = Process(4);
    if plan.has_janitor {
        world.time.spawn(janitor, cluster.clone().tidy_up(janitor, end_us));
    }
    if plan.has_owners {
        for kind in [Owning::Well, Owning::Well, Owning::Idle, Owning::Ahead] {
            let cluster = cluster.clone();
            world.time.spawn(supervisor, async move { cluster.have_owned(kind, end_us).await });
        }
    }
    if plan.index == Indexed::Later {
        world.make_safe(Process(5));
        world.time.spawn(Process(5), cluster.clone().have_built(Process(5)));
    }
    let mut is_livelock = executor.run(end_us, STEPS_MAX) == End::Steps;

    // Nothing goes wrong any more; what was stalled or on its way goes on and ends.
    world.set_faults(Faults { stale_max: plan.faults.stale_max, ..Faults::NONE });
    world.time.kill(supervisor);
    world.time.end_stalls();
    is_livelock |= executor.run(end_us + CALM_US, STEPS_MAX) == End::Steps;
    // Those who rest for minutes, and those who may see what is old, are not asked.
    if !plan.is_sluggish && plan.faults.stale_max.is_none() {
        let mut roster = lock(&cluster.roster);
        roster.is_called = true;
        let working = roster.working.clone().into_iter();
        roster.silent = working.map(|(it, client)| (it, (client, "nothing".into()))).collect();
    }
    let settled_us = end_us + CALM_US + ANSWER_US;
    is_livelock |= executor.run(settled_us, STEPS_MAX) == End::Steps;
    let silent = std::mem::take(&mut lock(&cluster.roster).silent);
    let processes: Vec<Process> = lock(&cluster.roster).clients.keys().copied().collect();
    for process in processes {
        world.time.kill(process);
    }
    let swept: Arc<Mutex<Option<Result<(), StoreError>>>> = Arc::default();
    {
        let (cluster, swept) = (cluster.clone(), swept.clone());
        world.time.spawn(sweeper, async move {
            let outcome = cluster.sweep(sweeper).await;
            *lock(&swept) = Some(outcome);
        });
    }
    let rest_us = plan.rest().as_micros() as u64;
    executor.run(settled_us + 16 * 24 * 3_600_000_000 + rest_us, STEPS_MAX);
    let swept = lock(&swept).take();

    let mut history = lock(&cluster.history);
    let mut violations = std::mem::take(&mut history.violations);
    if is_livelock {
        violations.push(Violation::new(0, format!("{STEPS_MAX} polls, and no end")));
    }
    for (process, (client, met)) in silent {
        let what = format!("client {client}, process {}, does not go on: {met}", process.0);
        violations.push(Violation::new(0, what));
    }
    match swept {
        Some(Ok(())) => {}
        Some(Err(error)) => {
            violations.push(Violation::new(1, format!("the last sweep failed: {error}")))
        }
        None => violations.push(Violation::new(1, "the last sweep does not end".into())),
    }
    // Whoever founded the collection last has found it, or the sweeper has.
    let root = root.or_else(|| check::root(&world, COLLECTION)).unwrap_or(PageId(0));
    let (tree, found) = check::tree(&world, root);
    violations.extend(found);
    violations.extend(check::roots(&world));
    if plan.index != Indexed::Not {
        violations.extend(check::index(&world, COLLECTION, &tree));
    }
    violations.extend(check::contents(&tree, &history, plan.prunes() || !plan.rest().is_zero()));
    let (blobs, found) = check::blobs(&world, &tree, &history);
    violations.extend(found);
    violations.extend(world.broken().into_iter().map(|what| Violation::new(6, what)));
    let audited = world.audited().into_iter();
    violations.extend(audited.map(|(invariant, what)| Violation::new(invariant, what)));
    violations.extend(check::spills(&world).filter(|_| plan.is_large));
    violations.extend(check::fences(&world));
    if plan.backend == Backend::S3Log {
        violations.extend(check::late(&history));
    }
    violations.extend(check::ledger(&cluster.ledger, &world.ledger));
    // What is read may be old in 2007.
    if plan.faults.stale_max.is_none() {
        violations.extend(lock(&cluster.record).broken());
    }
    let count = |outcome| {
        history.attempts.iter().filter(|attempt| attempt.outcome == outcome).count() as u64
    };
    let (crashes, collected, blobs_collected, spills_collected) = {
        let roster = lock(&cluster.roster);
        (roster.crashes, roster.collected, roster.blobs_collected, roster.spills_collected)
    };
    Report {
        seed,
        committed: count(Outcome::Committed),
        uncertain: count(Outcome::Uncertain),
        failed: count(Outcome::Failed),
        crashes,
        calls: crate::cloud::CallKind::ALL
            .iter()
            .map(|&kind| world.ledger.charge(kind).calls)
            .sum(),
        collected,
        blobs_collected,
        spills_collected,
        blobs,
        leaves: tree.leaves.len() as u64,
        decided: Default::default(),
        disk: world.disk_counts(),
        answers: world.answers(),
        fail_points: world.fail_points(),
        virtual_time: Duration::from_micros(world.time.now_us()),
        violations,
        trace: world.trace(),
    }
}

/// How somebody owns the log.
#[derive(Clone, Copy, Debug)]
enum Owning {
    /// Claims it and checkpoints it.
    Well,
    /// Claims it and does nothing.
    Idle,
    /// Claims it by a clock that is an hour ahead, and does nothing.
    Ahead,
}

/// Objects whose service tells a time that is an hour ahead.
struct Ahead(Arc<dyn Objects>);

#[async_trait]
impl Objects for Ahead {
    async fn get(&self, name: &str, unless: Option<&ETag>) -> Result<Get, Fault> {
        let ahead = |date_ms: u64| date_ms + 3_600_000;
        Ok(match self.0.get(name, unless).await? {
            Get::Found { bytes, etag, date_ms } => {
                Get::Found { bytes, etag, date_ms: ahead(date_ms) }
            }
            Get::Unchanged { date_ms } => Get::Unchanged { date_ms: ahead(date_ms) },
            Get::Absent => Get::Absent,
        })
    }

    async fn put(&self, name: &str, bytes: Bytes, condition: PutIf) -> Put {
        self.0.put(name, bytes, condition).await
    }

    async fn delete(&self, name: &str, only: Option<&ETag>) -> Delete {
        self.0.delete(name, only).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> Result<Listing, Fault> {
        self.0.list(prefix, after, max).await
    }
}

impl Cluster {
    fn cloud(&self, process: Process) -> Cloud {
        let cloud = recorded(&self.world, &self.record, &self.ledger, process);
        Cloud { disk: self.plan.has_disk.then(|| self.disk(process)), ..cloud }
    }

    /// Not enough for all pages.
    fn disk(&self, process: Process) -> DiskSpace {
        DiskSpace { disk: self.world.disk(process), bytes: 60_000 }
    }

    async fn open(&self, process: Process) -> Result<Arc<Store>, StoreError> {
        // Small enough that pages are evicted.
        let bytes = if self.plan.has_disk { 24 << 10 } else { 64 << 10 };
        let pool = Pool::new(&Budget::new(bytes), policy::default_eviction());
        Store::open(self.cloud(process), self.plan.settings(), &pool).await
    }

    /// The root of the collection, if it is there when the clients begin.
    async fn set_up(&self, process: Process) -> Result<Option<PageId>, StoreError> {
        let (cloud, plan) = (self.cloud(process), &self.plan);
        Store::create(&cloud, &plan.settings(), plan.backend, plan.shards).await?;
        if self.plan.has_founders {
            return Ok(None);
        }
        let store = self.open(process).await?;
        let session = Session::open(store.clone(), u64::MAX).await?;
        drop(session);
        let root = store.create_collection(COLLECTION).await?.root;
        if self.plan.index == Indexed::Always {
            store.create_index(COLLECTION, INDEX, &BY).await?;
            store.build_index(COLLECTION, INDEX, |_| {}).await?;
        }
        Ok(Some(root))
    }

    /// Has an index made while the others work: by one who stalls and crashes like everyone, and by
    /// another as soon as that takes long, until it is ready.
    async fn have_built(self, process: Process) {
        let world = self.world.clone();
        world.time.sleep(5_000_000 + world.below(20_000_000)).await;
        let is_ready: Arc<Mutex<bool>> = Arc::default();
        while !*lock(&is_ready) {
            let builder = {
                let mut roster = lock(&self.roster);
                roster.next_process += 1;
                Process(roster.next_process)
            };
            world.note(process, || format!("has an index built by {builder:?}"));
            let (cluster, is_ready) = (self.clone(), is_ready.clone());
            world.time.spawn(builder, async move {
                let built = async {
                    let store = cluster.open(builder).await?;
                    store.create_index(COLLECTION, INDEX, &BY).await?;
                    store.build_index(COLLECTION, INDEX, |_| {}).await
                };
                let built = built.await;
                cluster.world.note(builder, || format!("built: {built:?}"));
                *lock(&is_ready) |= built.is_ok();
            });
            world.time.sleep(world.below(10_000_000)).await;
        }
    }

    /// Has the log claimed by one who stalls and crashes, and by the next one when it did.
    async fn have_owned(self, kind: Owning, end_us: u64) {
        while self.world.time.now_us() < end_us {
            self.world.time.sleep(self.world.below(8_000_000)).await;
            let owner = {
                let mut roster = lock(&self.roster);
                roster.next_process += 1;
                Process(roster.next_process)
            };
            self.world.note(owner, || format!("owns: {kind:?}"));
            let (cluster, ended) = (self.clone(), Ended::default());
            let end = ended.0.clone();
            self.world.time.spawn(owner, async move {
                let _ended = ended;
                let until_us = cluster.world.time.now_us() + cluster.world.below(30_000_000);
                let _ = cluster.own(owner, kind, until_us.min(end_us)).await;
            });
            while !*lock(&end) {
                self.world.time.sleep(500_000).await;
            }
        }
    }

    /// One who owns all of the log for a while.
    async fn own(&self, process: Process, kind: Owning, until_us: u64) -> Result<(), StoreError> {
        let mut cloud = self.cloud(process);
        if let Owning::Ahead = kind {
            cloud.objects = Arc::new(Ahead(cloud.objects));
        }
        let pool = Pool::new(&Budget::new(64 << 10), policy::default_eviction());
        let store = Store::open(cloud, self.plan.settings(), &pool).await?;
        let client = u64::MAX - 100 - u64::from(process.0);
        let parts: Vec<u32> = (0..self.plan.shards).collect();
        while self.world.time.now_us() < until_us {
            let own = store.own(client, &parts).await.unwrap_or_default();
            if let Owning::Well = kind {
                let _ = store.tend(&own).await;
            }
            self.world.time.sleep(1_500_000).await;
        }
        store.disown(client).await
    }

    /// What is there when nothing waits, as users check it.
    async fn check_index(&self, store: &Store) -> Result<(), StoreError> {
        let found = store.check_index(COLLECTION, INDEX, |_| {}).await?;
        if found.missing + found.changing + found.dangling > 0 {
            return Err(StoreError::Invalid(format!("an index: {found:?}")));
        }
        Ok(())
    }

    /// Invariant 5, on every level, as users check it: fences meet, right pointers lead to an end, links to
    /// pages of the next level.
    async fn check_all(&self, store: &Store) -> Result<(), StoreError> {
        if self.plan.faults.stale_max.is_some() {
            // What is read may be old in 2007.
            return Ok(());
        }
        let verified = store.verify(|_, _| {}).await?;
        let problems = verified.problems.into_iter();
        let found = problems.map(|what| Violation::new(5, format!("verify: {what}")));
        lock(&self.history).violations.extend(found);
        Ok(())
    }

    /// Starts a life of `client`.
    fn start(&self, client: u64, root: Option<PageId>) {
        let process = {
            let mut roster = lock(&self.roster);
            roster.next_process += 1;
            let process = Process(roster.next_process);
            roster.clients.insert(process, client);
            process
        };
        self.world.note(process, || format!("starts as client {client}"));
        let cluster = self.clone();
        self.world.time.spawn(process, async move {
            let outcome = cluster.live(process, client, root).await;
            cluster.world.note(process, || match outcome {
                Ok(()) => "is done".into(),
                Err(error) => format!("gives up: {error}"),
            });
        });
    }

    /// Brings crashed clients back, and starts some a second time.
    async fn supervise(self, root: Option<PageId>, end_us: u64) {
        while self.world.time.now_us() < end_us {
            self.world.time.sleep(1_000_000).await;
            let mut restarts = Vec::new();
            for process in self.world.take_crashed() {
                let mut roster = lock(&self.roster);
                roster.crashes += 1;
                if let Some(client) = roster.clients.remove(&process)
                    && self.world.with_probability(self.plan.comes_back)
                {
                    restarts.push(client);
                }
            }
            for client in 1..=u64::from(self.plan.clients) {
                if self.world.with_probability(self.plan.second_life) {
                    restarts.push(client);
                }
            }
            for client in restarts {
                self.start(client, root);
            }
        }
    }

    /// One life of a client: transactions in the front, checkpoints in the background.
    async fn live(
        &self,
        process: Process,
        client: u64,
        founded: Option<PageId>,
    ) -> Result<(), StoreError> {
        let (world, plan) = (&self.world, &self.plan);
        let store = loop {
            match self.open(process).await {
                Ok(store) => break store,
                Err(StoreError::Cloud { .. } | StoreError::NotFound(_)) => {
                    world.time.sleep(1_000_000).await
                }
                Err(error) => return Err(error),
            }
        };
        let root = loop {
            let created = match founded {
                Some(root) => break root,
                None => store.create_collection(COLLECTION).await,
            };
            match created {
                Ok(of) => break of.root,
                Err(StoreError::Cloud { .. } | StoreError::Contended { .. }) => {
                    world.time.sleep(1_000_000).await
                }
                Err(error) => {
                    self.check_loss(&error, client);
                    return Err(error);
                }
            }
        };
        let session = loop {
            match Session::open(store.clone(), client).await {
                Ok(session) => break Arc::new(session),
                Err(StoreError::Fenced { .. }) => return Ok(()),
                Err(error) => {
                    self.check_clock(&error, client);
                    world.time.sleep(1_000_000).await
                }
            }
        };
        world.note(process, || format!("is client {client} epoch {}", session.epoch()));
        lock(&self.history).begun.push((client, session.epoch()));
        let background = store.clone();
        let time = world.time.clone();
        world.time.spawn(process, async move {
            loop {
                time.sleep(1_500_000).await;
                // What fails is due again.
                let _ = background.work().await;
            }
        });
        let (time, ahead) = (world.time.clone(), session.clone());
        world.time.spawn(process, async move {
            loop {
                time.sleep(1_000_000).await;
                // Whoever is over learns it when it commits.
                let _ = ahead.keep_alive().await;
            }
        });
        let mut witness = Witness {
            cluster: self,
            session: &session,
            seen: HashMap::new(),
            own: BTreeMap::new(),
            highest: Stamp::default(),
            due: BTreeMap::new(),
            committed: 0,
        };
        let _at_work = AtWork(self.roster.clone(), process);
        lock(&self.roster).working.insert(process, client);
        loop {
            let (is_called, is_done) = {
                let mut roster = lock(&self.roster);
                let is_called = roster.is_called;
                let tried = roster.tried.entry(client).or_default();
                let is_done = *tried >= plan.transactions;
                *tried += u32::from(!is_called && !is_done);
                (is_called, is_done)
            };
            if is_called {
                self.answer(&mut witness, process, root).await;
                return Ok(());
            }
            if is_done {
                world.time.sleep(1_000_000).await;
                continue;
            }
            world.time.sleep(world.below(4_000_000)).await;
            let outcome = witness.transaction(process, root).await;
            if let Err(error) = &outcome {
                self.check_clock(error, client);
                self.check_loss(error, client);
            }
            match outcome {
                Ok(())
                | Err(
                    StoreError::Cloud { .. }
                    | StoreError::Contended { .. }
                    | StoreError::Full { .. }
                    | StoreError::CommitUnknown { .. }
                    | StoreError::Clock { .. }
                    | StoreError::Date { .. },
                ) => {}
                // Too late.
                Err(StoreError::Invalid(_)) if plan.is_sluggish => {}
                // More than it may remember waits.
                Err(StoreError::Backlog { .. }) if plan.is_fresh => {}
                // It has ended itself, perhaps.
                Err(StoreError::Fenced { .. }) if plan.is_sluggish => {
                    self.start(client, founded);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Commits one more transaction, or learns that this life is over. Nothing goes wrong any more: what does
    /// not succeed at once does so when others have done what they were at.
    async fn answer(&self, witness: &mut Witness<'_>, process: Process, root: PageId) {
        let before = witness.committed;
        loop {
            let outcome = witness.transaction(process, root).await;
            if witness.committed > before || matches!(outcome, Err(StoreError::Fenced { .. })) {
                return;
            }
            if let Err(error) = outcome
                && let Some((_, met)) = lock(&self.roster).silent.get_mut(&process)
            {
                *met = error.to_string();
            }
            self.world.time.sleep(1_000_000).await;
        }
    }

    /// No clock of a run is as wrong as may not be: whoever is told that his is cannot commit, and
    /// should.
    fn check_clock(&self, error: &StoreError, client: u64) {
        if matches!(error, StoreError::Clock { .. } | StoreError::Claimed { .. }) {
            let what = format!("client {client} cannot commit: {error}");
            lock(&self.history).violations.push(Violation::new(0, what));
        }
    }

    /// Nothing that was committed is lost, or damaged.
    fn check_loss(&self, error: &StoreError, client: u64) {
        if matches!(error, StoreError::Lost { .. } | StoreError::Damaged { .. }) {
            let what = format!("client {client} reads what is not there: {error}");
            lock(&self.history).violations.push(Violation::new(1, what));
        }
    }

    /// Collects garbage now and then. It stalls like everyone else; it starts again if it crashes.
    async fn tidy_up(self, process: Process, end_us: u64) {
        let is_mortal = self.plan.faults.crash_at > 0.0;
        match is_mortal {
            true => self.world.make_safe(process),
            false => self.world.make_no_crash(process),
        }
        while self.world.time.now_us() < end_us {
            self.world.time.sleep(4_000_000 + self.world.below(6_000_000)).await;
            if !is_mortal {
                self.collect(process).await;
                continue;
            }
            // One that may crash, and then the next one begins again.
            let janitor = {
                let mut roster = lock(&self.roster);
                roster.next_process += 1;
                Process(roster.next_process)
            };
            let (cluster, ended) = (self.clone(), Ended::default());
            let end = ended.0.clone();
            self.world.time.spawn(janitor, async move {
                let _ended = ended;
                cluster.collect(janitor).await;
            });
            while !*lock(&end) {
                self.world.time.sleep(500_000).await;
            }
        }
    }

    async fn collect(&self, process: Process) {
        let Ok(store) = self.open(process).await else { return };
        // Longer than any cache here keeps a page.
        if let Ok(done) = store.collect_garbage(Duration::from_secs(6)).await {
            {
                let mut roster = lock(&self.roster);
                roster.collected += done.deleted;
                roster.blobs_collected += done.blobs;
                roster.spills_collected += done.spilled;
            }
            self.world.note(process, || format!("collected {done:?}"));
        }
    }

    /// Sweeps until there is nothing left.
    async fn sweep(&self, process: Process) -> Result<(), StoreError> {
        let mut idle = 0;
        // One store: with backend s3-log the newest object of a stream stays, and only who applied
        // it knows that it did.
        let store = self.open(process).await?;
        if self.plan.has_founders {
            store.create_collection(COLLECTION).await?;
        }
        if !self.plan.rules.hold(Rule::Sweep) {
            self.world.time.sleep(15 * 24 * 3_600_000_000).await;
        }
        for _ in 0..200 {
            let done = store.sweep().await?;
            idle = if done.records == 0 && done.poison == 0 { idle + 1 } else { 0 };
            if idle == 2 {
                if self.plan.has_blobs || self.plan.is_large {
                    // Nothing can name them any more.
                    self.world.time.sleep(self.plan.rest().as_micros() as u64).await;
                    // What died is unlinked, deleted and forgotten one time after the other; what nobody
                    // names is found, and goes a while after that.
                    for _ in 0..5 {
                        let done = store.collect_garbage(Duration::from_secs(6)).await?;
                        if done.blobs_waiting == 0 {
                            break;
                        }
                        self.world.time.sleep(7_000_000).await;
                    }
                }
                if self.plan.index != Indexed::Not {
                    self.check_index(&store).await?;
                }
                return self.check_all(&store).await;
            }
            // Leases of those who are gone run out.
            self.world.time.sleep(6_000_000).await;
            if self.plan.faults.stale_max.is_some() {
                self.world.time.sleep(60_000_000).await;
            }
        }
        Err(StoreError::Invalid("200 sweeps, and there is still something".into()))
    }
}

/// Says when a task has ended, also by a crash.
#[derive(Default)]
struct Ended(Arc<Mutex<bool>>);

impl Drop for Ended {
    fn drop(&mut self) {
        *lock(&self.0) = true;
    }
}

/// A session, and what it must be able to rely on.
struct Witness<'a> {
    cluster: &'a Cluster,
    session: &'a Session,
    seen: HashMap<Key, Stamp>,
    /// In an order, so that the same seed is the same run.
    own: BTreeMap<Key, Stamp>,
    highest: Stamp,
    /// What a fresh transaction has to show at least: what was known to be committed when it began.
    due: BTreeMap<Bytes, Stamp>,
    /// Transactions that it committed.
    committed: u64,
}

impl Witness<'_> {
    async fn transaction(&mut self, process: Process, root: PageId) -> Result<(), StoreError> {
        let world = &self.cluster.world;
        let level = match world.below(10) {
            0 => Level::Basic,
            1 | 2 => Level::Monotonic,
            _ => Level::Atomic,
        };
        let mut txn = self.session.begin(level);
        self.due.clear();
        if self.cluster.plan.is_fresh && world.below(2) == 0 {
            txn.fresh();
            self.due = lock(&self.cluster.history).committed();
        }
        let (name, indexes) = (COLLECTION.into(), Vec::new());
        let of = Collection { name, root, indexes, has_root: true, isolation: None };
        let client = self.session.client();
        for n in 0..1 + world.below(4) {
            let number = world.below(u64::from(self.cluster.plan.keys));
            let key = Key::new(format!("key{number:03}"))?;
            match world.below(10) {
                0..=3 => self.read(&txn, root, &key).await?,
                4 if world.below(3) == 0 => self.scan(&txn, root).await?,
                4 if self.cluster.plan.index != Indexed::Not => self.find(&txn, &of).await?,
                5 => txn.delete(root, &key)?,
                _ => {
                    let pad = "x".repeat(world.below(60) as usize);
                    let value = format!(
                        "c{client}.e{}.{}.{n}.{pad}",
                        self.session.epoch(),
                        world.time.now_us()
                    );
                    self.put(&mut txn, root, &key, value.into()).await?;
                }
            }
        }
        if txn.is_empty() {
            return Ok(());
        }
        let is_sluggish = self.cluster.plan.is_sluggish;
        let age_us = self.cluster.plan.tombstone_age.as_micros() as u64;
        let has_blob = txn.writes.values().any(|write| matches!(write, Write::Blob(..)));
        let waits = is_sluggish && has_blob && world.below(3) == 0;
        if waits {
            // Up to half of the age there may be between a blob and its commit.
            world.time.sleep(age_us * 3 / 8 + world.below(age_us / 7)).await;
        }
        let entries = self.session.seal(&mut txn).await?;
        {
            let contents = txn.unput.iter().map(|(blob, content)| (blob.stamp(), content.clone()));
            lock(&self.cluster.history).contents.extend(contents);
        }
        if self.cluster.plan.has_blobs && world.below(10) == 0 {
            world.note(process, || "gives a transaction up".into());
            return Ok(());
        }
        let writes: Vec<(Bytes, Stamp, Option<Value>)> = entries
            .iter()
            .filter(|entry| !entry.is_secondary)
            .map(|entry| (entry.leaf_key(), entry.record.stamp, entry.leaf_payload()))
            .collect();
        if level.is_session() && writes.iter().any(|(_, stamp, _)| *stamp <= self.highest) {
            self.violation("write follows read", format!("a stamp is not above {}", self.highest));
        }
        let (epoch, outcome) = (self.session.epoch(), Outcome::Uncertain);
        let attempt = lock(&self.cluster.history).begin(Attempt {
            client,
            epoch,
            level,
            writes: writes.clone(),
            is_late: false,
            outcome,
        });
        world.note(process, || format!("commits #{attempt} {} {}", level.name(), show(&writes)));
        if waits && world.below(2) == 0 {
            // Falls asleep while that is under way. Not again soon: what it has in its hands is not as old
            // as a tombstone gets.
            let (begin_us, us) = (world.below(120_000), age_us * 7 / 20 + world.below(age_us / 10));
            let time = world.time.clone();
            world.time.spawn(process, async move {
                time.sleep(begin_us).await;
                time.stall(process, us);
            });
        }
        let mut outcome = if is_sluggish && !waits && world.below(10) == 0 {
            let patience_us = world.below(150_000);
            match within(world, patience_us, self.session.commit(&mut txn)).await {
                Some(outcome) => outcome,
                None => {
                    world.note(process, || format!("gives #{attempt} up, and rests"));
                    world.time.sleep(2 * age_us + world.below(age_us / 4)).await;
                    if world.below(2) == 0 {
                        return Ok(());
                    }
                    self.session.commit(&mut txn).await
                }
            }
        } else {
            self.session.commit(&mut txn).await
        };
        for _ in 0..2 {
            if !matches!(outcome, Err(StoreError::CommitUnknown { .. })) {
                break;
            }
            outcome = self.session.commit(&mut txn).await;
        }
        world.note(process, || match &outcome {
            Ok(_) => format!("#{attempt} is committed"),
            Err(error) => format!("#{attempt}: {error}"),
        });
        let known = match &outcome {
            Ok(_) => Outcome::Committed,
            Err(StoreError::CommitUnknown { .. }) => Outcome::Uncertain,
            Err(_) if level < Level::Atomic => Outcome::Uncertain,
            Err(_) => Outcome::Failed,
        };
        lock(&self.cluster.history).attempts[attempt].outcome = known;
        self.committed += u64::from(known == Outcome::Committed);
        if known == Outcome::Committed && level.is_session() {
            for (key, stamp, _) in writes {
                self.own.insert(Key::new(&key)?, stamp);
            }
        }
        outcome.map(drop)
    }

    /// A new payload of a record: at once, or written part by part before, if there are blobs.
    async fn put(
        &self,
        txn: &mut Txn,
        root: PageId,
        key: &Key,
        content: Bytes,
    ) -> Result<(), StoreError> {
        if !self.cluster.plan.has_blobs || self.cluster.world.below(3) > 0 {
            return txn.put(root, key, Payload::new(content)?);
        }
        let mut writing = self.session.write_blob().await?;
        for bytes in content.chunks(7) {
            writing.write(bytes).await?;
        }
        let value = writing.finish().await?;
        if let Value::Blob(blob) = &value {
            lock(&self.cluster.history).contents.insert(blob.stamp(), content);
        }
        txn.put_value(root, key, value)
    }

    async fn read(&mut self, txn: &Txn, root: PageId, key: &Key) -> Result<(), StoreError> {
        let seen = self.session.read_stamped(txn, root, key.as_bytes()).await?;
        // Of its own, what is not committed may not be put yet.
        let is_own = txn.own_value(root, key.as_bytes()).is_some();
        if let (Some(Value::Blob(blob)), false) = (seen.payload, is_own) {
            match self.session.read(txn, root, key).await {
                // Something else, or nothing, may be there by now.
                Ok(None) => {}
                Ok(Some(there)) => {
                    let (of, payload) = (key.as_bytes(), there.as_bytes());
                    let was_tried = lock(&self.cluster.history).has_tried(of, payload);
                    if !was_tried {
                        let what = format!("{key} holds {there:?}, which nobody put there");
                        self.broken(2, what);
                    }
                }
                Err(error @ (StoreError::Lost { .. } | StoreError::Damaged { .. })) => {
                    self.broken(1, format!("{key} names {}: {error}", blob.object(0)));
                }
                Err(error) => return Err(error),
            }
        }
        self.saw(txn, key, seen.stamp);
        Ok(())
    }

    /// What a read, or a scan, may show of a key to a session.
    fn saw(&mut self, txn: &Txn, key: &Key, stamp: Stamp) {
        lock(&self.cluster.history).read.insert(stamp);
        let plan = &self.cluster.plan;
        // A look into queues is a sample.
        if plan.backend == Backend::S3Log && plan.faults.stale_max.is_none() {
            let due = self.due.get(key.as_bytes()).copied().unwrap_or_default();
            if stamp < due {
                self.violation("fresh reads", format!("{key}: {stamp}, committed {due}"));
            }
        }
        if !txn.level().is_session() {
            return;
        }
        if self.cluster.plan.prunes() && stamp == Stamp::default() {
            // Nothing there any more looks like nothing ever there.
            return;
        }
        let before = self.seen.get(key).copied().unwrap_or_default();
        if stamp < before {
            self.violation("monotonic reads", format!("{key}: {stamp} after {before}"));
        }
        let own = self.own.get(key).copied().unwrap_or_default();
        if stamp < own {
            self.violation("read your writes", format!("{key}: {stamp} after own {own}"));
        }
        self.seen.insert(key.clone(), stamp);
        self.highest = self.highest.max(stamp);
    }

    /// An index leads to records that say what it says, in order, and to all of this session's own.
    async fn find(&mut self, txn: &Txn, of: &Collection) -> Result<(), StoreError> {
        let name = format!("c{}", self.session.client());
        let search = Key::new(&name)?;
        let bound = Bound::Included(&search);
        let mut found = match self.session.find(txn, of, INDEX, bound, bound).await {
            // Not made yet, or not ready.
            Err(StoreError::NotFound(_) | StoreError::Invalid(_)) => return Ok(()),
            found => found?,
        };
        let is_own = |payload: &[u8]| payload.starts_with(format!("{name}.").as_bytes());
        let mut keys: Vec<Key> = Vec::new();
        while let Some((key, record)) = found.next().await? {
            let rises = keys.last().is_none_or(|last| *last < record.key);
            if key != search || !is_own(record.payload.as_bytes()) || !rises {
                self.violation("indexes lead to what they say", format!("{key}: {record:?}"));
            }
            keys.push(record.key);
        }
        if !txn.level().is_session() {
            return Ok(());
        }
        for (key, stamp) in &self.own {
            if keys.contains(key) || txn.own_value(of.root, key.as_bytes()).is_some() {
                continue;
            }
            let seen = self.session.read_stamped(txn, of.root, key.as_bytes()).await?;
            let payload = seen.payload.as_ref().and_then(Value::here);
            if seen.stamp != *stamp || !payload.is_some_and(|payload| is_own(payload)) {
                continue;
            }
            // A later write may have reached the index and not yet the record.
            let Some(index) = self.session.probed(of.root, INDEX) else { continue };
            let pair = secondary::join(name.as_bytes(), key.as_bytes());
            let entry = self.session.read_stamped(txn, index.root, &pair).await?;
            // And its tombstone be gone by now, while a copy of the record is as old as copies may be.
            let age_us = self.cluster.plan.tombstone_age.as_micros() as u64;
            let is_gone = stamp.clock.saturating_add(age_us) < self.cluster.world.date_ms() * 1000;
            if entry.stamp <= *stamp && !is_gone {
                let what = format!("not to {key} at {stamp}, the entry is {entry:?}");
                self.violation("an index leads to own writes", what);
            }
        }
        Ok(())
    }

    /// A scan shows keys in order, each once; of each what a read of it could show; and all that is there.
    async fn scan(&mut self, txn: &Txn, root: PageId) -> Result<(), StoreError> {
        let mut scan = self.session.scan(txn, root, None, None);
        let mut last: Option<Key> = None;
        let mut shown: BTreeMap<Key, Stamp> = BTreeMap::new();
        let mut blobs = Vec::new();
        while let Some((key, stamp, value)) = scan.next_stamped().await? {
            if last.as_ref().is_some_and(|last| *last >= key) {
                self.violation("scans rise", format!("{key} after {last:?}"));
            }
            last = Some(key.clone());
            if txn.own_value(root, key.as_bytes()).is_some() {
                continue;
            }
            if let Value::Blob(_) = value {
                blobs.push(key.clone());
            }
            shown.insert(key, stamp);
        }
        drop(scan);
        for (key, stamp) in &shown {
            self.saw(txn, key, *stamp);
        }
        for key in blobs {
            self.read(txn, root, &key).await?;
        }
        if txn.level().is_session() {
            self.check_all_shown(txn, root, &shown).await?;
        }
        Ok(())
    }

    /// Of what this session has seen, or put itself, nothing is left out by a scan but what is gone.
    async fn check_all_shown(
        &mut self,
        txn: &Txn,
        root: PageId,
        shown: &BTreeMap<Key, Stamp>,
    ) -> Result<(), StoreError> {
        let known = |key: &Key| !shown.contains_key(key);
        let mut missed: Vec<Key> =
            self.seen.keys().chain(self.own.keys()).filter(|key| known(key)).cloned().collect();
        // In an order, so that the same seed is the same run.
        missed.sort_unstable();
        missed.dedup();
        for key in missed {
            if txn.own_value(root, key.as_bytes()).is_some() {
                continue;
            }
            let floor = self.seen.get(&key).max(self.own.get(&key)).copied().unwrap_or_default();
            let now = self.session.read_stamped(txn, root, key.as_bytes()).await?;
            // Nothing was written since then: so the scan, which came after it, had to show it.
            if now.payload.is_some() && now.stamp <= floor {
                let what = format!("{key} is not there, and then it is, as of {}", now.stamp);
                self.violation("a scan shows what was seen", what);
            }
        }
        Ok(())
    }

    fn broken(&self, invariant: u8, what: String) {
        lock(&self.cluster.history).violations.push(Violation::new(invariant, what));
    }

    fn violation(&self, what: &'static str, detail: String) {
        let (client, epoch) = (self.session.client(), self.session.epoch());
        let detail = format!("client {client} epoch {epoch}: {detail}");
        lock(&self.cluster.history).violations.push(Violation::session(what, detail));
    }
}

fn show(writes: &[(Bytes, Stamp, Option<Value>)]) -> String {
    let show = |(key, stamp, payload): &(Bytes, Stamp, Option<Value>)| {
        let sign = if payload.is_some() { '+' } else { '-' };
        format!("{sign}{}@{stamp}", key.escape_ascii())
    };
    writes.iter().map(show).collect::<Vec<_>>().join(" ")
}
