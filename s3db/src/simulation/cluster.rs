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
use tokio::sync::Notify;

use crate::{
    blob::Value,
    blob_id,
    catalog::{Backend, Collection},
    cloud::{
        Delete, ETag, Fault, Get, Listing, Objects, Put, PutIf,
        model::{Latency, Process},
    },
    commit::{Level, Session, Txn, Write},
    db::{self, Pace},
    error::StoreError,
    page::PageId,
    record::{Key, Payload},
    search_by::SearchBy,
    settings::Settings,
    simulation::{
        Attempt, Indexed, Outcome, Plan, Report, Violation, check,
        history::History,
        stage::{ADMIN, ANSWER_US, AtWork, CALM_US, Stage, Turn, lock, within},
    },
    stamp::Stamp,
    store::Store,
    tree::secondary,
};

/// How long garbage waits: longer than any cache here keeps a page.
const GRACE: Duration = Duration::from_secs(6);
const MINUTE: Duration = Duration::from_secs(60);
const COLLECTION: &str = "things";
const OTHERS: &str = "others";
const INDEX: &str = "writers";
/// Payloads begin with who wrote them.
const BY: SearchBy = SearchBy::Part { separator: b'.', number: 0 };

/// Where records lie.
#[derive(Clone, Copy)]
struct Trees {
    first: PageId,
    /// Of a second collection, if there is one.
    second: Option<PageId>,
}

impl Trees {
    /// Of two collections each has every other key, so that no key is in both.
    fn of(&self, key: &Key) -> PageId {
        let is_odd = key.as_bytes().last().is_some_and(|digit| digit % 2 == 1);
        self.second.filter(|_| is_odd).unwrap_or(self.first)
    }
}

/// Shared by the clients of one run.
#[derive(Clone)]
struct Cluster {
    stage: Stage,
    history: Arc<Mutex<History>>,
    collected: Arc<Mutex<Collected>>,
}

/// What garbage collection deleted while clients were at work.
#[derive(Default)]
struct Collected {
    pages: u64,
    blobs: u64,
    spilled: u64,
}

/// Who tidies up, has an index built, sweeps in time, and changes the key, if anybody does.
const JANITOR: Process = Process(4);
const BUILDER: Process = Process(5);
const IN_TIME: Process = Process(6);
const LOCKSMITH: Process = Process(7);

pub(super) fn run(plan: &Plan, seed: u64, trace: bool, latency: &Latency) -> Report {
    let (stage, mut executor) = Stage::new(plan, seed, trace, latency);
    let cluster =
        Cluster { stage: stage.clone(), history: Arc::default(), collected: Arc::default() };
    let maker = cluster.clone();
    let founded = stage.set_up(&mut executor, async move { maker.set_up().await });

    let end_us = stage.begin();
    for client in 1..=u64::from(plan.clients) {
        cluster.start(client, founded);
    }
    let starter = cluster.clone();
    stage.supervise(end_us, move |client| starter.start(client, founded));
    cluster.start_others(end_us);
    let mut violations = stage.play(&mut executor, end_us);
    if !plan.idle.is_zero() {
        let keeper = cluster.clone();
        violations.extend(stage.idle(&mut executor, |process| keeper.keep_open(process)));
    }
    let sweeper = cluster.clone();
    let swept = stage.sweep(&mut executor, |process| async move { sweeper.sweep(process).await });
    violations.extend(swept);

    let world = &stage.world;
    let mut history = lock(&cluster.history);
    violations.append(&mut history.violations);
    // Whoever founded the collection last has found it, or the sweeper has.
    let root = founded.map(|it| it.first).or_else(|| check::root(world, COLLECTION));
    let (mut tree, found) = check::tree(world, root.unwrap_or(PageId(0)));
    violations.extend(found);
    violations.extend(check::roots(world));
    if plan.index != Indexed::Not {
        violations.extend(check::index(world, COLLECTION, &tree));
    }
    // What is written together is committed together, whichever tree it is in.
    if let Some(second) = founded.and_then(|it| it.second) {
        let (other, found) = check::tree(world, second);
        violations.extend(found);
        tree.leaves.extend(other.leaves);
        tree.slots.extend(other.slots);
    }
    violations.extend(check::contents(&tree, &history, plan.prunes() || !plan.rest().is_zero()));
    let (blobs, found) = check::blobs(world, &tree, Some(&history.contents));
    violations.extend(found);
    violations.extend(check::spills(world).filter(|_| plan.is_large));
    violations.extend(check::fences(world));
    if plan.backend == Backend::S3Log {
        violations.extend(check::late(&history));
    }
    violations.extend(stage.violations());
    let count = |outcome| {
        history.attempts.iter().filter(|attempt| attempt.outcome == outcome).count() as u64
    };
    let collected = lock(&cluster.collected);
    Report {
        committed: count(Outcome::Committed),
        uncertain: count(Outcome::Uncertain),
        failed: count(Outcome::Failed),
        collected: collected.pages,
        blobs_collected: collected.blobs,
        spills_collected: collected.spilled,
        blobs,
        leaves: tree.leaves.len() as u64,
        ..stage.report(seed, violations)
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
    /// The roots of what is there when the clients begin.
    async fn set_up(&self) -> Result<Option<Trees>, StoreError> {
        let (stage, plan) = (&self.stage, &self.stage.plan);
        stage.create().await?;
        if plan.has_founders {
            return Ok(None);
        }
        let store = stage.open(ADMIN).await?;
        let session = Session::open(store.clone(), u64::MAX).await?;
        drop(session);
        let root = store.create_collection(COLLECTION).await?.root;
        if plan.index == Indexed::Always {
            store.create_index(COLLECTION, INDEX, &BY).await?;
            store.build_index(COLLECTION, INDEX, |_| {}).await?;
        }
        let second = match plan.has_two {
            true => Some(store.create_collection(OTHERS).await?.root),
            false => None,
        };
        Ok(Some(Trees { first: root, second }))
    }

    /// Everyone but the clients.
    fn start_others(&self, end_us: u64) {
        let Stage { world, plan, .. } = &self.stage;
        if plan.has_janitor {
            world.time.spawn(JANITOR, self.clone().tidy_up(JANITOR, end_us));
        }
        if plan.has_owners {
            for kind in [Owning::Well, Owning::Well, Owning::Idle, Owning::Ahead] {
                self.stage.beside(self.clone().have_owned(kind, end_us));
            }
        }
        if let Some(every) = plan.sweeps_every {
            world.make_safe(IN_TIME);
            world.time.spawn(IN_TIME, self.clone().sweep_in_time(every, end_us));
        }
        if plan.index == Indexed::Later {
            world.make_safe(BUILDER);
            world.time.spawn(BUILDER, self.clone().have_built(BUILDER));
        }
        if plan.is_sealed {
            world.make_no_crash(LOCKSMITH);
            world.time.spawn(LOCKSMITH, self.clone().change_keys());
        }
    }

    /// Seals everything again as soon as the other key is in front, while clients of before go on sealing with
    /// the first one.
    async fn change_keys(self) {
        let Stage { world, plan, .. } = &self.stage;
        world.time.sleep(plan.work.as_micros() as u64 * 3 / 5).await;
        loop {
            let store = self.stage.store(LOCKSMITH).await;
            let done = store.rekey(|_| {}).await;
            world.note(LOCKSMITH, || format!("changes keys: {done:?}"));
            if done.is_ok_and(|done| done.unswept.is_none()) {
                return;
            }
            world.time.sleep(1_000_000).await;
        }
    }

    /// Nobody is left who seals with the first key: when everything is sealed again, the other one opens all.
    async fn forget_key(&self, process: Process, store: &Store) -> Result<(), StoreError> {
        let mut done = store.rekey(|_| {}).await?;
        for _ in 0..20 {
            if done.waiting == 0 {
                break;
            }
            // Leases of those who are gone run out.
            self.stage.world.time.sleep(6_000_000).await;
            done = store.rekey(|_| {}).await?;
        }
        if let Some(error) = done.unswept {
            return Err(error);
        }
        if done.unopened > 0 || done.waiting > 0 {
            return Err(StoreError::Invalid(format!("keys: {done:?}")));
        }
        let with_one = self.stage.open_by(self.stage.cloud(process), &[2]).await?;
        self.check_all(&with_one).await
    }

    /// Has an index made while the others work: by one who stalls and crashes like everyone, and by
    /// another as soon as that takes long, until it is ready.
    async fn have_built(self, process: Process) {
        let world = self.stage.world.clone();
        world.time.sleep(5_000_000 + world.below(20_000_000)).await;
        let is_ready: Arc<Mutex<bool>> = Arc::default();
        while !*lock(&is_ready) {
            let builder = self.stage.new_process();
            world.note(process, || format!("has an index built by {builder:?}"));
            let (cluster, is_ready) = (self.clone(), is_ready.clone());
            world.time.spawn(builder, async move {
                let built = async {
                    let store = cluster.stage.open(builder).await?;
                    store.create_index(COLLECTION, INDEX, &BY).await?;
                    store.build_index(COLLECTION, INDEX, |_| {}).await
                };
                let built = built.await;
                cluster.stage.world.note(builder, || format!("built: {built:?}"));
                *lock(&is_ready) |= built.is_ok();
            });
            world.time.sleep(world.below(10_000_000)).await;
        }
    }

    /// Brings everything to its page, again and again; it neither stalls nor crashes, and its calls fail like
    /// everyone's.
    async fn sweep_in_time(self, every: Duration, end_us: u64) {
        let world = &self.stage.world;
        let store = self.stage.store(IN_TIME).await;
        // Those who are asked for one more in the end have nobody else who makes room for it.
        while world.time.now_us() < end_us + CALM_US + ANSWER_US {
            world.time.sleep(every.as_micros() as u64).await;
            let swept = store.sweep().await;
            world.note(IN_TIME, || format!("sweeps: {swept:?}"));
        }
    }

    /// Has the log claimed by one who stalls and crashes, and by the next one when it did.
    async fn have_owned(self, kind: Owning, end_us: u64) {
        let world = &self.stage.world;
        while world.time.now_us() < end_us {
            world.time.sleep(world.below(8_000_000)).await;
            let owner = self.stage.new_process();
            world.note(owner, || format!("owns: {kind:?}"));
            let (cluster, ended) = (self.clone(), Ended::default());
            let end = ended.0.clone();
            world.time.spawn(owner, async move {
                let _ended = ended;
                let world = &cluster.stage.world;
                let until_us = world.time.now_us() + world.below(30_000_000);
                let _ = cluster.own(owner, kind, until_us.min(end_us)).await;
            });
            while !*lock(&end) {
                world.time.sleep(500_000).await;
            }
        }
    }

    /// One who owns all of the log for a while.
    async fn own(&self, process: Process, kind: Owning, until_us: u64) -> Result<(), StoreError> {
        let Stage { world, plan, .. } = &self.stage;
        let mut cloud = self.stage.cloud(process);
        if let Owning::Ahead = kind {
            cloud.objects = Arc::new(Ahead(cloud.objects));
        }
        let store = self.stage.open_over(cloud).await?;
        let client = u64::MAX - 100 - u64::from(process.0);
        let parts: Vec<u32> = (0..plan.shards).collect();
        while world.time.now_us() < until_us {
            let own = store.own(client, &parts).await.unwrap_or_default();
            if let Owning::Well = kind {
                let _ = store.tend(&own).await;
            }
            world.time.sleep(1_500_000).await;
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
        if self.stage.plan.faults.stale_max.is_some() {
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
    fn start(&self, client: u64, founded: Option<Trees>) {
        let process = self.stage.new_life(client);
        let world = self.stage.world.clone();
        world.note(process, || format!("starts as client {client}"));
        let cluster = self.clone();
        world.time.clone().spawn(process, async move {
            let outcome = cluster.live(process, client, founded).await;
            world.note(process, || match outcome {
                Ok(()) => "is done".into(),
                Err(error) => format!("gives up: {error}"),
            });
        });
    }

    /// One life of a client: transactions in the front, checkpoints in the background.
    async fn live(
        &self,
        process: Process,
        client: u64,
        founded: Option<Trees>,
    ) -> Result<(), StoreError> {
        let Stage { world, plan, .. } = &self.stage;
        let store = loop {
            match self.stage.open(process).await {
                Ok(store) => break store,
                Err(StoreError::Cloud { .. } | StoreError::NotFound(_)) => {
                    world.time.sleep(1_000_000).await
                }
                Err(error) => return Err(error),
            }
        };
        let trees = loop {
            let created = match founded {
                Some(trees) => break trees,
                None => store.create_collection(COLLECTION).await,
            };
            match created {
                Ok(of) => break Trees { first: of.root, second: None },
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
        if plan.sweeps_every.is_none() {
            world.time.spawn(process, async move {
                loop {
                    time.sleep(1_500_000).await;
                    // What fails is due again.
                    let _ = background.work().await;
                }
            });
        }
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
        let at_work = self.stage.at_work(process, 0, client);
        loop {
            match self.stage.turn(client) {
                Turn::Next => {}
                Turn::Rest => {
                    world.time.sleep(1_000_000).await;
                    continue;
                }
                Turn::Called => {
                    self.answer(&mut witness, &at_work, process, trees).await;
                    return Ok(());
                }
            }
            world.time.sleep(world.below(4_000_000)).await;
            let outcome = witness.transaction(process, trees).await;
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
    async fn answer(
        &self,
        witness: &mut Witness<'_>,
        at_work: &AtWork,
        process: Process,
        trees: Trees,
    ) {
        let before = witness.committed;
        loop {
            let outcome = witness.transaction(process, trees).await;
            if witness.committed > before || matches!(outcome, Err(StoreError::Fenced { .. })) {
                return;
            }
            if matches!(outcome, Err(StoreError::Clock { .. })) && self.has_wrong_clocks() {
                return;
            }
            if let Err(error) = outcome {
                at_work.met(error.to_string());
            }
            self.stage.world.time.sleep(1_000_000).await;
        }
    }

    /// Whether machines of this run may have clocks that are as wrong as may not be.
    fn has_wrong_clocks(&self) -> bool {
        self.stage.plan.faults.skew_max > self.stage.plan.settings().clock_ahead_max
    }

    /// Where no clock of a run is as wrong as may not be whoever is told that his is cannot commit, and
    /// should.
    fn check_clock(&self, error: &StoreError, client: u64) {
        if self.has_wrong_clocks() {
            return;
        }
        if matches!(error, StoreError::Clock { .. } | StoreError::Claimed { .. }) {
            let what = format!("client {client} cannot commit: {error}");
            lock(&self.history).violations.push(Violation::new(0, what));
        }
    }

    /// Nothing that was committed is lost, or damaged, and all of it is found.
    fn check_loss(&self, error: &StoreError, client: u64) {
        if let (StoreError::Tree { .. }, None) = (error, self.stage.plan.faults.stale_max) {
            let what = format!("client {client} does not find its way: {error}");
            lock(&self.history).violations.push(Violation::new(5, what));
        }
        if matches!(error, StoreError::Lost { .. } | StoreError::Damaged { .. }) {
            let what = format!("client {client} reads what is not there: {error}");
            lock(&self.history).violations.push(Violation::new(1, what));
        }
    }

    /// Collects garbage now and then. It stalls like everyone else; it starts again if it crashes.
    async fn tidy_up(self, process: Process, end_us: u64) {
        let Stage { world, plan, .. } = &self.stage;
        let is_mortal = plan.faults.crash_at > 0.0;
        match is_mortal {
            true => world.make_safe(process),
            false => world.make_no_crash(process),
        }
        while world.time.now_us() < end_us {
            world.time.sleep(4_000_000 + world.below(6_000_000)).await;
            if !is_mortal {
                self.collect(process).await;
                continue;
            }
            // One that may crash, and then the next one begins again.
            let janitor = self.stage.new_process();
            let (cluster, ended) = (self.clone(), Ended::default());
            let end = ended.0.clone();
            world.time.spawn(janitor, async move {
                let _ended = ended;
                cluster.collect(janitor).await;
            });
            while !*lock(&end) {
                world.time.sleep(500_000).await;
            }
        }
    }

    async fn collect(&self, process: Process) {
        let Ok(store) = self.stage.open(process).await else { return };
        if let Ok(done) = store.collect_garbage(GRACE).await {
            {
                let mut collected = lock(&self.collected);
                collected.pages += done.deleted;
                collected.blobs += done.blobs;
                collected.spilled += done.spilled;
            }
            self.stage.world.note(process, || format!("collected {done:?}"));
        }
    }

    /// Has the database open, and what a `Db` has in the background: nothing else.
    async fn keep_open(self, process: Process) {
        let pool = Pool::new(&Budget::new(64 << 10), policy::default_eviction());
        let pace = Pace { tick: 10 * MINUTE, sweep_interval: 360 * MINUTE };
        // Fewer ticks in 15 days.
        let settings = Settings { checkpoint_interval: pace.tick, ..self.stage.plan.settings() };
        let cloud = self.stage.cloud(process);
        let Ok(store) = Store::open(cloud, settings, &pool).await else { return };
        let session = Session::reader(store, u64::MAX - 1);
        db::work(&session, pace, &[], &Notify::new()).await;
    }

    /// Sweeps until there is nothing left.
    async fn sweep(&self, process: Process) -> Result<(), StoreError> {
        let mut idle = 0;
        // One store: with backend s3-log the newest object of a stream stays, and only who applied
        // it knows that it did.
        let Stage { world, plan, .. } = &self.stage;
        let store = self.stage.open(process).await?;
        if plan.has_founders {
            store.create_collection(COLLECTION).await?;
        }
        for _ in 0..200 {
            let done = store.sweep().await?;
            idle = if done.records == 0 && done.poison == 0 { idle + 1 } else { 0 };
            if idle == 2 {
                if plan.has_blobs || plan.is_large {
                    // Nothing can name them any more.
                    world.time.sleep(plan.rest().as_micros() as u64).await;
                    // What died is unlinked, deleted and forgotten one time after the other; what nobody
                    // names is found, and goes a while after that.
                    for _ in 0..5 {
                        let done = store.collect_garbage(GRACE).await?;
                        if done.blobs_waiting == 0 {
                            break;
                        }
                        world.time.sleep(7_000_000).await;
                    }
                }
                if plan.index != Indexed::Not {
                    self.check_index(&store).await?;
                }
                if plan.is_sealed {
                    self.forget_key(process, &store).await?;
                }
                return self.check_all(&store).await;
            }
            // Leases of those who are gone run out.
            world.time.sleep(6_000_000).await;
            if plan.faults.stale_max.is_some() {
                world.time.sleep(60_000_000).await;
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
    async fn transaction(&mut self, process: Process, trees: Trees) -> Result<(), StoreError> {
        let world = &self.cluster.stage.world;
        let level = match world.below(10) {
            0 => Level::Basic,
            1 | 2 => Level::Monotonic,
            _ => Level::Atomic,
        };
        let mut txn = self.session.begin(level);
        self.due.clear();
        if self.cluster.stage.plan.is_fresh && world.below(2) == 0 {
            txn.fresh();
            self.due = lock(&self.cluster.history).committed();
        }
        let (name, indexes, root) = (COLLECTION.into(), Vec::new(), trees.first);
        let of = Collection { name, root, indexes, has_root: true, isolation: None };
        let client = self.session.client();
        for n in 0..1 + world.below(4) {
            let number = world.below(u64::from(self.cluster.stage.plan.keys));
            let key = Key::new(format!("key{number:03}"))?;
            let root = trees.of(&key);
            match world.below(10) {
                0..=3 => {
                    self.read(&txn, root, &key).await?;
                    if self.cluster.stage.plan.has_blobs && world.below(2) == 0 {
                        self.read_slowly(&txn, root, &key).await?;
                    }
                }
                4 if world.below(3) == 0 => self.scan(&txn, trees, root).await?,
                4 if self.cluster.stage.plan.index != Indexed::Not => self.find(&txn, &of).await?,
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
        let is_sluggish = self.cluster.stage.plan.is_sluggish;
        let age_us = self.cluster.stage.plan.tombstone_age.as_micros() as u64;
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
        if self.cluster.stage.plan.has_blobs && world.below(10) == 0 {
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
        let ahead_max_us = self.cluster.stage.plan.settings().clock_ahead_max.as_micros() as u64;
        let most_us = world.date_ms() * 1000 + ahead_max_us;
        // Stamps are for ever: one of the future wins over all that is written until then.
        if let Some((_, stamp, _)) = writes.iter().find(|(_, stamp, _)| stamp.clock > most_us) {
            self.broken(15, format!("{stamp} is further ahead than may be: {most_us}"));
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
        if !self.cluster.stage.plan.has_blobs || self.cluster.stage.world.below(3) > 0 {
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

    /// Reads a payload part by part. Who takes no longer than what garbage waits for, less what a copy of a page
    /// may be old, comes to its end. Not so with own ones, which can be laid over a page from which the tombstone
    /// of a delete is gone.
    async fn read_slowly(&self, txn: &Txn, root: PageId, key: &Key) -> Result<(), StoreError> {
        let world = &self.cluster.stage.world;
        let (began_us, ttl) = (world.time.now_us(), self.cluster.stage.plan.settings().ttl);
        let patience_us = (GRACE - ttl).as_micros() as u64;
        let Some(mut content) = self.session.open_content(txn, root, key).await? else {
            return Ok(());
        };
        loop {
            match content.next().await {
                Ok(Some(_)) => world.time.sleep(world.below(500_000)).await,
                Ok(None) => return Ok(()),
                Err(StoreError::Replaced { object }) => {
                    let us = world.time.now_us() - began_us;
                    let by = blob_id::parse(&object).map(|(stamp, _)| stamp.client);
                    if us < patience_us && by != Some(self.session.client()) {
                        let what = format!("{key}: {object} is deleted while it is read, {us} us");
                        self.broken(9, what);
                    }
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// What a read, or a scan, may show of a key to a session.
    fn saw(&mut self, txn: &Txn, key: &Key, stamp: Stamp) {
        lock(&self.cluster.history).read.insert(stamp);
        let plan = &self.cluster.stage.plan;
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
        if self.cluster.stage.plan.prunes() && stamp == Stamp::default() {
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
            let age_us = self.cluster.stage.plan.tombstone_age.as_micros() as u64;
            let is_gone =
                stamp.clock.saturating_add(age_us) < self.cluster.stage.world.date_ms() * 1000;
            if entry.stamp <= *stamp && !is_gone {
                let what = format!("not to {key} at {stamp}, the entry is {entry:?}");
                self.violation("an index leads to own writes", what);
            }
        }
        Ok(())
    }

    /// A scan shows keys in order, each once; of each what a read of it could show; and all that is there.
    async fn scan(&mut self, txn: &Txn, trees: Trees, root: PageId) -> Result<(), StoreError> {
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
            self.check_all_shown(txn, trees, root, &shown).await?;
        }
        Ok(())
    }

    /// Of what this session has seen, or put itself, nothing is left out by a scan but what is gone.
    async fn check_all_shown(
        &mut self,
        txn: &Txn,
        trees: Trees,
        root: PageId,
        shown: &BTreeMap<Key, Stamp>,
    ) -> Result<(), StoreError> {
        let is_missed = |key: &&Key| trees.of(key) == root && !shown.contains_key(*key);
        let mut missed: Vec<Key> =
            self.seen.keys().chain(self.own.keys()).filter(is_missed).cloned().collect();
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
