//! Clusters of a curated collection: clients propose, curators decide, and somebody cheats.
//!
//! ```text
//!   clients    propose, crash, and try again
//!   curators   approve what they looked at, some of it twice, some of it late; or reject it; and crash
//!   a rogue    puts other bytes under the name of a proposal, and writes to the log as if that were allowed
//!   a reader   comes new each time, and reads everything
//! ```
//!
//! What no curator began to approve is never seen; what one was told to be approved is seen by whoever comes
//! after that, as it was proposed; what a crash left half done is there as a whole or not at all (invariants
//! 1 and 2). A proposal that nobody rejected or replaced waits, or is on its pages (1).

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use pager::{Budget, policy, pool::Pool};

use crate::{
    blob::Value,
    catalog::Collection,
    cloud::{
        Cloud, Get, Ledger, PutIf,
        model::{Executor, Faults, Latency, Process, World},
    },
    commit::{Level, Session},
    curate::{Proposal, ProposalId},
    error::StoreError,
    log::{Change, Transaction, transaction, transaction::Body},
    names::{APPROVED, PROPOSALS, QUARANTINE},
    record::{Key, Payload},
    search_by::SearchBy,
    simulation::{
        Attempt, Indexed, Outcome, Plan, Report, Violation,
        audit::Audit,
        check,
        history::History,
        recorder::Record,
        stage::{STEPS_MAX, lock, recorded},
    },
    stamp::Stamp,
    store::Store,
};

const COLLECTION: &str = "prices";
const INDEX: &str = "writers";
/// Payloads begin with who proposed them.
const BY: SearchBy = SearchBy::Part { separator: b'.', number: 0 };
const CURATORS: u64 = 3;
/// Who writes what is not his to write.
const ROGUE: u64 = 0xbad;
/// Violations that are shown of one kind.
const SHOWN_MAX: usize = 5;

#[derive(Clone, Copy)]
enum Role {
    Client(u64),
    Curator,
}

/// What is known of a proposal.
#[derive(Clone, Copy, Default)]
struct Fate {
    /// A curator began to approve it. From then on it may be seen.
    is_approving: bool,
    /// One was told that it is.
    is_approved: bool,
    /// One began to reject it, or somebody put other bytes in its place.
    may_be_gone: bool,
}

#[derive(Default)]
struct State {
    /// All of it is atomic: approved is committed, and what no curator began to approve has failed.
    history: History,
    fates: Vec<Fate>,
    /// Which attempt proposed what has this stamp.
    by_stamp: BTreeMap<Stamp, usize>,
    /// What clients were told to wait for a curator.
    told: BTreeMap<ProposalId, usize>,
    next_process: u32,
    roles: BTreeMap<Process, Role>,
    tried: BTreeMap<u64, u32>,
    crashes: u64,
    collected: u64,
    decided: Decided,
}

/// What curators of a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decided {
    /// Proposals that they were told to have approved.
    pub approved: u64,
    /// Approvals of what was approved already.
    pub again: u64,
    /// Proposals that they were told to have rejected.
    pub rejected: u64,
    /// Proposals that they found to be replaced.
    pub replaced: u64,
    /// Records that came by the log and lie in quarantine.
    pub forged: u64,
}

impl std::ops::AddAssign for Decided {
    fn add_assign(&mut self, more: Decided) {
        self.approved += more.approved;
        self.again += more.again;
        self.rejected += more.rejected;
        self.replaced += more.replaced;
        self.forged += more.forged;
    }
}

#[derive(Clone)]
struct Cluster {
    plan: Plan,
    world: World,
    ledger: Arc<Ledger>,
    record: Arc<Mutex<Record>>,
    state: Arc<Mutex<State>>,
}

pub(super) fn run(plan: &Plan, seed: u64, trace: bool, latency: &Latency) -> Report {
    let world = World::new(seed, Faults::NONE, *latency);
    if trace {
        world.keep_trace();
    }
    world.audit_by(Audit::default());
    let mut executor = Executor::new(world.time.clone(), seed ^ 0x5eed);
    let state = State { next_process: 10, ..State::default() };
    let cluster = Cluster {
        plan: plan.clone(),
        world: world.clone(),
        ledger: Ledger::new(),
        record: Arc::default(),
        state: Arc::new(Mutex::new(state)),
    };
    let [admin, supervisor, sweeper, janitor, rogue, reader] = [1, 2, 3, 4, 5, 6].map(Process);
    for process in [admin, supervisor, sweeper] {
        world.make_safe(process);
    }
    for process in [janitor, rogue, reader] {
        world.make_no_crash(process);
    }
    let made: Arc<Mutex<Option<Collection>>> = Arc::default();
    {
        let (cluster, made) = (cluster.clone(), made.clone());
        world.time.spawn(admin, async move {
            *lock(&made) = cluster.set_up(admin).await.ok();
        });
    }
    executor.run(u64::MAX, STEPS_MAX);
    let of = lock(&made).clone().expect("nothing goes wrong during the set-up");

    world.set_faults(plan.faults.clone());
    let end_us = world.time.now_us() + plan.work.as_micros() as u64;
    let clients = (1..=u64::from(plan.clients)).map(Role::Client);
    for role in clients.chain((0..CURATORS).map(|_| Role::Curator)) {
        cluster.start(role, &of, end_us);
    }
    world.time.spawn(supervisor, cluster.clone().supervise(of.clone(), end_us));
    world.time.spawn(janitor, cluster.clone().tidy_up(janitor, end_us));
    world.time.spawn(rogue, cluster.clone().cheat(rogue, of.clone(), end_us));
    world.time.spawn(reader, cluster.clone().read(reader, of.clone(), end_us));
    executor.run(end_us, STEPS_MAX);

    // Nothing goes wrong any more; what was stalled or on its way goes on and ends.
    world.set_faults(Faults::NONE);
    world.time.kill(supervisor);
    world.time.end_stalls();
    executor.run(end_us + 100_000_000, STEPS_MAX);
    let processes: Vec<Process> = lock(&cluster.state).roles.keys().copied().collect();
    processes.into_iter().for_each(|process| world.time.kill(process));
    let swept: Arc<Mutex<Option<Result<(), StoreError>>>> = Arc::default();
    {
        let (cluster, swept) = (cluster.clone(), swept.clone());
        world.time.spawn(sweeper, async move {
            let outcome = cluster.finish(sweeper).await;
            *lock(&swept) = Some(outcome);
        });
    }
    executor.run(end_us + 2_000_000_000, STEPS_MAX);
    let swept = lock(&swept).take();
    report(&cluster, &of, swept, seed)
}

fn report(
    cluster: &Cluster,
    of: &Collection,
    swept: Option<Result<(), StoreError>>,
    seed: u64,
) -> Report {
    let world = &cluster.world;
    let mut state = lock(&cluster.state);
    let fates = state.fates.clone();
    for (attempt, fate) in state.history.attempts.iter_mut().zip(&fates) {
        attempt.outcome = match fate {
            Fate { is_approved: true, .. } => Outcome::Committed,
            Fate { is_approving: true, .. } => Outcome::Uncertain,
            _ => Outcome::Failed,
        };
    }
    let mut violations = std::mem::take(&mut state.history.violations);
    match swept {
        Some(Ok(())) => {}
        Some(Err(error)) => {
            violations.push(Violation::new(1, format!("the last sweep failed: {error}")));
        }
        None => violations.push(Violation::new(1, "the last sweep does not end".into())),
    }
    let (tree, found) = check::tree(world, of.root);
    violations.extend(found);
    if cluster.plan.index != Indexed::Not {
        violations.extend(check::index(world, COLLECTION, &tree));
    }
    violations.extend(check::contents(&tree, &state.history, false));
    violations.extend(waiting(world, &tree, &state));
    violations.extend(world.broken().into_iter().map(|what| Violation::new(6, what)));
    let audited = world.audited().into_iter();
    violations.extend(audited.map(|(invariant, what)| Violation::new(invariant, what)));
    violations.extend(check::fences(world));
    violations.extend(check::ledger(&cluster.ledger, &world.ledger));
    violations.extend(lock(&cluster.record).broken());
    let count = |outcome| {
        state.history.attempts.iter().filter(|attempt| attempt.outcome == outcome).count() as u64
    };
    let is_aside = |(name, _): &(String, _)| name.contains("not-approved");
    let forged = world.history(QUARANTINE).iter().filter(|it| is_aside(it)).count() as u64;
    Report {
        seed,
        committed: count(Outcome::Committed),
        uncertain: count(Outcome::Uncertain),
        failed: count(Outcome::Failed),
        crashes: state.crashes,
        calls: crate::cloud::CallKind::ALL.iter().map(|&it| world.ledger.charge(it).calls).sum(),
        collected: state.collected,
        leaves: tree.leaves.len() as u64,
        decided: Decided { forged, ..state.decided },
        answers: world.answers(),
        fail_points: world.fail_points(),
        virtual_time: Duration::from_micros(world.time.now_us()),
        violations,
        trace: world.trace(),
        ..Report::default()
    }
}

/// Invariant 1, of proposals: what is neither rejected nor replaced waits, or is on its pages; and what was
/// approved waits no more.
fn waiting(world: &World, tree: &check::Tree, state: &State) -> Vec<Violation> {
    let there: Vec<String> = world
        .history("")
        .into_iter()
        .filter(|(_, versions)| versions.last().is_some_and(|version| version.bytes.is_some()))
        .map(|(name, _)| name)
        .collect();
    let mut wrong = Vec::new();
    if let Some(left) = there.iter().find(|name| name.starts_with(APPROVED)) {
        wrong.push(Violation::new(1, format!("{left} is approved, and stays where it is")));
    }
    for (id, attempt) in &state.told {
        let is_on_pages = state.history.attempts[*attempt]
            .writes
            .iter()
            .all(|(key, stamp, _)| tree.slots.get(key).is_some_and(|slot| slot.stamp >= *stamp));
        let name = id.to_string();
        let waits = there.iter().any(|at| at.starts_with(PROPOSALS) && at.ends_with(&name));
        let fate = state.fates[*attempt];
        if !is_on_pages && !waits && !fate.may_be_gone {
            let what = format!("proposal {id} was not rejected, and is nowhere");
            wrong.push(Violation::new(1, what));
        }
    }
    wrong.truncate(SHOWN_MAX);
    wrong
}

impl Cluster {
    fn cloud(&self, process: Process) -> Cloud {
        recorded(&self.world, &self.record, &self.ledger, process)
    }

    async fn open(&self, process: Process) -> Result<Arc<Store>, StoreError> {
        let pool = Pool::new(&Budget::new(64 << 10), policy::default_eviction());
        Store::open(self.cloud(process), self.plan.settings(), &pool).await
    }

    /// The same, however often that takes.
    async fn store(&self, process: Process) -> Arc<Store> {
        loop {
            match self.open(process).await {
                Ok(store) => return store,
                Err(_) => self.world.time.sleep(1_000_000).await,
            }
        }
    }

    async fn set_up(&self, process: Process) -> Result<Collection, StoreError> {
        let (cloud, plan) = (self.cloud(process), &self.plan);
        Store::create(&cloud, &plan.settings(), plan.backend, plan.shards).await?;
        let store = self.open(process).await?;
        let of = store.create_curated(COLLECTION).await?;
        if plan.index != Indexed::Not {
            store.create_index(COLLECTION, INDEX, &BY).await?;
            store.build_index(COLLECTION, INDEX, |_| {}).await?;
        }
        Ok(of)
    }

    fn start(&self, role: Role, of: &Collection, end_us: u64) {
        let process = {
            let mut state = lock(&self.state);
            state.next_process += 1;
            let process = Process(state.next_process);
            state.roles.insert(process, role);
            process
        };
        let (cluster, of) = (self.clone(), of.clone());
        self.world.time.spawn(process, async move {
            match role {
                Role::Client(client) => {
                    cluster.world.note(process, || format!("starts as client {client}"));
                    let outcome = cluster.propose(process, client, &of).await;
                    cluster.world.note(process, || format!("is done: {outcome:?}"));
                }
                Role::Curator => {
                    cluster.world.note(process, || "starts as a curator".into());
                    cluster.curate(process, &of, end_us).await;
                }
            }
        });
    }

    /// Brings crashed ones back, and starts clients a second time.
    async fn supervise(self, of: Collection, end_us: u64) {
        while self.world.time.now_us() < end_us {
            self.world.time.sleep(1_000_000).await;
            let mut restarts = Vec::new();
            for process in self.world.take_crashed() {
                let mut state = lock(&self.state);
                state.crashes += 1;
                if let Some(role) = state.roles.remove(&process)
                    && self.world.with_probability(self.plan.comes_back)
                {
                    restarts.push(role);
                }
            }
            for client in 1..=u64::from(self.plan.clients) {
                if self.world.with_probability(self.plan.second_life) {
                    restarts.push(Role::Client(client));
                }
            }
            restarts.into_iter().for_each(|role| self.start(role, &of, end_us));
        }
    }

    async fn tidy_up(self, process: Process, end_us: u64) {
        while self.world.time.now_us() < end_us {
            self.world.time.sleep(3_000_000 + self.world.below(6_000_000)).await;
            let store = self.store(process).await;
            if let Ok(done) = store.collect_garbage(Duration::from_secs(6)).await {
                lock(&self.state).collected += done.deleted;
            }
        }
    }

    /// One life of a client.
    async fn propose(
        &self,
        process: Process,
        client: u64,
        of: &Collection,
    ) -> Result<(), StoreError> {
        let world = &self.world;
        let store = self.store(process).await;
        let session = loop {
            match Session::open(store.clone(), client).await {
                Ok(session) => break session,
                Err(error @ StoreError::Fenced { .. }) => return Err(error),
                Err(_) => world.time.sleep(1_000_000).await,
            }
        };
        loop {
            {
                let mut state = lock(&self.state);
                let tried = state.tried.entry(client).or_default();
                if *tried >= self.plan.transactions {
                    return Ok(());
                }
                *tried += 1;
            }
            world.time.sleep(world.below(3_000_000)).await;
            match self.transaction(process, &session, of).await {
                Err(error @ StoreError::Fenced { .. }) => return Err(error),
                // It is told, or not; what waits is what curators see.
                outcome => world.note(process, || format!("proposed: {outcome:?}")),
            }
        }
    }

    async fn transaction(
        &self,
        process: Process,
        session: &Session,
        of: &Collection,
    ) -> Result<(), StoreError> {
        let (world, client) = (&self.world, session.client());
        let mut txn = session.begin(Level::Atomic);
        for n in 0..1 + world.below(3) {
            let key = Key::new(format!("key{:03}", world.below(u64::from(self.plan.keys))))?;
            if world.below(5) == 0 {
                txn.delete(of.root, &key)?;
                continue;
            }
            let pad = "x".repeat(world.below(60) as usize);
            let value = format!("c{client}.e{}.{}.{n}.{pad}", session.epoch(), world.time.now_us());
            txn.put(of.root, &key, Payload::new(value)?)?;
        }
        let entries = session.seal(&mut txn).await?;
        let writes: Vec<(Bytes, Stamp, Option<Value>)> = entries
            .iter()
            .map(|entry| (entry.leaf_key(), entry.record.stamp, entry.leaf_payload()))
            .collect();
        let attempt = self.begin(Attempt {
            client,
            epoch: session.epoch(),
            level: Level::Atomic,
            writes,
            is_late: false,
            outcome: Outcome::Failed,
        });
        world.note(process, || format!("proposes #{attempt}"));
        let mut outcome = session.commit(&mut txn).await;
        for _ in 0..2 {
            if !matches!(outcome, Err(StoreError::CommitUnknown { .. })) {
                break;
            }
            outcome = session.commit(&mut txn).await;
        }
        let id = outcome?.proposed.expect("the collection is curated");
        lock(&self.state).told.insert(id, attempt);
        Ok(())
    }

    fn begin(&self, attempt: Attempt) -> usize {
        let mut state = lock(&self.state);
        let stamps: Vec<Stamp> = attempt.writes.iter().map(|(_, stamp, _)| *stamp).collect();
        let number = state.history.begin(attempt);
        state.fates.push(Fate::default());
        state.by_stamp.extend(stamps.into_iter().map(|stamp| (stamp, number)));
        number
    }

    /// The attempt that proposed what is shown; what nobody proposed is none's.
    fn attempt_of(&self, transaction: &Transaction) -> Option<usize> {
        let stamp = transaction.entries.first()?.record.stamp;
        lock(&self.state).by_stamp.get(&stamp).copied()
    }

    /// Looks at what waits and decides, one after the other.
    async fn curate(&self, process: Process, of: &Collection, end_us: u64) {
        let world = &self.world;
        let store = self.store(process).await;
        while world.time.now_us() < end_us {
            world.time.sleep(world.below(2_500_000)).await;
            let Ok(ids) = store.proposals(of, None, 100).await else { continue };
            if ids.is_empty() {
                continue;
            }
            let id = ids[world.below(ids.len() as u64) as usize];
            let shown = match store.proposal(of, id).await {
                Ok(Some(shown)) => shown,
                Err(StoreError::Invalid(_)) => {
                    lock(&self.state).decided.replaced += 1;
                    self.reject(process, &store, of, id, None).await;
                    continue;
                }
                _ => continue,
            };
            if world.below(4) == 0 {
                // Lunch. Others decide meanwhile.
                world.time.sleep(world.below(15_000_000)).await;
            }
            match world.below(10) {
                0..=5 => self.approve(process, &store, of, &shown).await,
                6..=8 => {
                    let attempt = self.attempt_of(&shown.transaction);
                    self.reject(process, &store, of, id, attempt).await;
                }
                _ => {}
            }
        }
    }

    async fn approve(&self, process: Process, store: &Store, of: &Collection, shown: &Proposal) {
        let Some(attempt) = self.attempt_of(&shown.transaction) else { return };
        for _ in 0..1 + self.world.below(3) / 2 {
            lock(&self.state).fates[attempt].is_approving = true;
            let outcome = store.approve(of, shown).await;
            self.world.note(process, || format!("approves #{attempt}: {outcome:?}"));
            if outcome.is_ok() {
                let mut state = lock(&self.state);
                let was_approved = std::mem::replace(&mut state.fates[attempt].is_approved, true);
                match was_approved {
                    true => state.decided.again += 1,
                    false => state.decided.approved += 1,
                }
            }
        }
    }

    async fn reject(
        &self,
        process: Process,
        store: &Store,
        of: &Collection,
        id: ProposalId,
        attempt: Option<usize>,
    ) {
        {
            let mut state = lock(&self.state);
            if let Some(attempt) = attempt.or_else(|| state.told.get(&id).copied()) {
                state.fates[attempt].may_be_gone = true;
            }
        }
        let outcome = store.reject(of, id).await;
        self.world.note(process, || format!("rejects {id}: {outcome:?}"));
        if outcome == Ok(true) {
            lock(&self.state).decided.rejected += 1;
        }
    }

    /// Does what nobody may, and everybody can where no service keeps him from it.
    async fn cheat(self, process: Process, of: Collection, end_us: u64) {
        let world = &self.world;
        let store = self.store(process).await;
        while world.time.now_us() < end_us {
            world.time.sleep(1_000_000 + world.below(4_000_000)).await;
            match world.below(2) {
                0 => self.replace(process, &store).await,
                _ => self.forge(process, &store, &of).await,
            }
        }
    }

    /// Puts other payloads under the name of a proposal.
    async fn replace(&self, process: Process, store: &Store) {
        let objects = &store.cloud.objects;
        let Ok(listed) = objects.list(PROPOSALS, None, 100).await else { return };
        let Some(name) = listed.names.first() else { return };
        let Ok(Get::Found { bytes, .. }) = objects.get(name, None).await else { return };
        let Ok(Body::Here(mut transaction)) = Transaction::decode(&bytes) else { return };
        for entry in &mut transaction.entries {
            let key = entry.record.change.key().clone();
            let evil = Payload::new("evil").expect("it is short");
            entry.record.change = Change::Insert(key, evil);
        }
        if let Some(attempt) = self.attempt_of(&transaction) {
            lock(&self.state).fates[attempt].may_be_gone = true;
        }
        self.world.note(process, || format!("replaces {name}"));
        objects.put(name, transaction.encode(), PutIf::Always).await;
    }

    /// Commits to the collection as if it were any other one.
    async fn forge(&self, process: Process, store: &Store, of: &Collection) {
        let world = &self.world;
        let now_us = world.time.now_us();
        let stamp = Stamp { clock: now_us, client: ROGUE, sequence: now_us };
        let key = Key::new(format!("key{:03}", world.below(u64::from(self.plan.keys))));
        let (Ok(key), Ok(payload)) = (key, Payload::new("forged")) else { return };
        let entry = transaction::primary(of.root, of.root, stamp, key, Some(payload));
        let writes = vec![(entry.leaf_key(), stamp, entry.leaf_payload())];
        self.begin(Attempt {
            client: ROGUE,
            epoch: now_us,
            level: Level::Atomic,
            writes,
            is_late: false,
            outcome: Outcome::Failed,
        });
        let forged =
            Transaction { client: ROGUE, epoch: now_us, number: 1, total: 1, entries: vec![entry] };
        let Ok(appender) = store.log.open(ROGUE, now_us, now_us).await else { return };
        let outcome = appender.append(&forged, true).await;
        world.note(process, || format!("forges {stamp}: {outcome:?}"));
    }

    /// Comes new each time, and sees what is approved by then, and nothing else.
    async fn read(self, process: Process, of: Collection, end_us: u64) {
        while self.world.time.now_us() < end_us {
            self.world.time.sleep(self.world.below(2_000_000)).await;
            let store = self.store(process).await;
            let session = Session::reader(store, 1_000_000);
            let mut txn = session.begin(Level::Atomic);
            if self.world.below(2) == 0 {
                txn.fresh();
            }
            let due = self.approved();
            for number in 0..self.plan.keys {
                let key = Bytes::from(format!("key{number:03}"));
                let Ok(seen) = session.read_stamped(&txn, of.root, &key).await else { continue };
                self.judge(&key, seen.stamp, due.get(&key).copied().unwrap_or_default());
            }
        }
    }

    /// By key, the newest stamp of what curators were told to be approved.
    fn approved(&self) -> BTreeMap<Bytes, Stamp> {
        let state = lock(&self.state);
        let mut stamps: BTreeMap<Bytes, Stamp> = BTreeMap::new();
        let all = state.history.attempts.iter().zip(&state.fates);
        let approved = all.filter(|(_, fate)| fate.is_approved);
        for (key, stamp, _) in approved.flat_map(|(attempt, _)| &attempt.writes) {
            let last = stamps.entry(key.clone()).or_default();
            *last = (*last).max(*stamp);
        }
        stamps
    }

    fn judge(&self, key: &Bytes, seen: Stamp, due: Stamp) {
        let mut state = lock(&self.state);
        let key = key.escape_ascii();
        if seen < due {
            let what = format!("{key} is read as of {seen}, and {due} is approved");
            state.history.violations.push(Violation::new(1, what));
        }
        let is_allowed = seen == Stamp::default()
            || state.by_stamp.get(&seen).is_some_and(|it| state.fates[*it].is_approving);
        if !is_allowed {
            let what = format!("{key} is read as of {seen}, which nobody approved");
            state.history.violations.push(Violation::new(2, what));
        }
        state.history.read.insert(seen);
    }

    /// Proposals that are there, under a name of other bytes.
    fn replaced(&self) -> Vec<String> {
        let all = self.world.history(PROPOSALS).into_iter();
        all.filter_map(|(name, versions)| {
            let bytes = versions.last()?.bytes.clone()?;
            let own = ProposalId::of(&bytes).to_string();
            (!name.ends_with(&own)).then_some(name)
        })
        .collect()
    }

    /// Brings everything to its page that is approved, and nothing else.
    async fn finish(&self, process: Process) -> Result<(), StoreError> {
        let store = self.open(process).await?;
        let mut idle = 0;
        for _ in 0..200 {
            let done = store.sweep().await?;
            idle = if done.records == 0 && done.poison == 0 { idle + 1 } else { 0 };
            if idle == 2 {
                let verified = store.verify(|_, _| {}).await?;
                // Each proposal that somebody replaced is named, and nothing else is wrong.
                let replaced = self.replaced();
                let is_one = |problem: &String| replaced.iter().any(|it| problem.starts_with(it));
                let is_all = verified.problem_count == replaced.len() as u64;
                return match is_all && verified.problems.iter().all(is_one) {
                    true => Ok(()),
                    false => Err(StoreError::Invalid(format!("{:?}", verified.problems))),
                };
            }
            // Leases of those who are gone run out.
            self.world.time.sleep(6_000_000).await;
        }
        Err(StoreError::Invalid("200 sweeps, and there is still something".into()))
    }
}
