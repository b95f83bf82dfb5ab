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

use crate::{
    blob::Value,
    catalog::Collection,
    cloud::{
        Get, PutIf,
        model::{Latency, Process, World},
    },
    commit::{Level, Session},
    curate::{Proposal, ProposalId},
    error::StoreError,
    log::{Change, Transaction, transaction, transaction::Body},
    names::{APPROVED, PROPOSALS, QUARANTINE},
    record::{Key, Payload},
    search_by::SearchBy,
    simulation::{
        Attempt, Indexed, Outcome, Plan, Report, Violation, check,
        history::History,
        stage::{ADMIN, Stage, Turn, lock},
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

/// Whose life a curator's is: no client's.
const CURATOR: u64 = 0;
const JANITOR: Process = Process(4);
const CHEAT: Process = Process(5);
const READER: Process = Process(6);

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
    stage: Stage,
    state: Arc<Mutex<State>>,
}

pub(super) fn run(plan: &Plan, seed: u64, trace: bool, latency: &Latency) -> Report {
    let (stage, mut executor) = Stage::new(plan, seed, trace, latency);
    let cluster = Cluster { stage: stage.clone(), state: Arc::default() };
    for process in [JANITOR, CHEAT, READER] {
        stage.world.make_no_crash(process);
    }
    let maker = cluster.clone();
    let of = stage.set_up(&mut executor, async move { maker.set_up().await });

    let end_us = stage.begin();
    let clients = 1..=u64::from(plan.clients);
    for client in clients.chain((0..CURATORS).map(|_| CURATOR)) {
        cluster.start(client, &of, end_us);
    }
    let (starter, to) = (cluster.clone(), of.clone());
    stage.supervise(end_us, move |client| starter.start(client, &to, end_us));
    let time = &stage.world.time;
    time.spawn(JANITOR, cluster.clone().tidy_up(end_us));
    time.spawn(CHEAT, cluster.clone().cheat(of.clone(), end_us));
    time.spawn(READER, cluster.clone().read(of.clone(), end_us));
    let mut violations = stage.play(&mut executor, end_us);
    let sweeper = cluster.clone();
    let sweep = |process| async move { sweeper.finish(process).await };
    violations.extend(stage.sweep(&mut executor, sweep));
    report(&cluster, &of, violations, seed)
}

fn report(cluster: &Cluster, of: &Collection, mut violations: Vec<Violation>, seed: u64) -> Report {
    let Stage { world, plan, .. } = &cluster.stage;
    let mut state = lock(&cluster.state);
    let fates = state.fates.clone();
    for (attempt, fate) in state.history.attempts.iter_mut().zip(&fates) {
        attempt.outcome = match fate {
            Fate { is_approved: true, .. } => Outcome::Committed,
            Fate { is_approving: true, .. } => Outcome::Uncertain,
            _ => Outcome::Failed,
        };
    }
    violations.append(&mut state.history.violations);
    let (tree, found) = check::tree(world, of.root);
    violations.extend(found);
    if plan.index != Indexed::Not {
        violations.extend(check::index(world, COLLECTION, &tree));
    }
    violations.extend(check::contents(&tree, &state.history, false));
    violations.extend(waiting(world, &tree, &state));
    violations.extend(check::fences(world));
    violations.extend(cluster.stage.violations());
    let count = |outcome| {
        state.history.attempts.iter().filter(|attempt| attempt.outcome == outcome).count() as u64
    };
    let is_aside = |(name, _): &(String, _)| name.contains("not-approved");
    let forged = world.history(QUARANTINE).iter().filter(|it| is_aside(it)).count() as u64;
    Report {
        committed: count(Outcome::Committed),
        uncertain: count(Outcome::Uncertain),
        failed: count(Outcome::Failed),
        collected: state.collected,
        leaves: tree.leaves.len() as u64,
        decided: Decided { forged, ..state.decided },
        ..cluster.stage.report(seed, violations)
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
    async fn set_up(&self) -> Result<Collection, StoreError> {
        self.stage.create().await?;
        let store = self.stage.open(ADMIN).await?;
        let of = store.create_curated(COLLECTION).await?;
        if self.stage.plan.index != Indexed::Not {
            store.create_index(COLLECTION, INDEX, &BY).await?;
            store.build_index(COLLECTION, INDEX, |_| {}).await?;
        }
        Ok(of)
    }

    /// A life of a client, or of a curator.
    fn start(&self, client: u64, of: &Collection, end_us: u64) {
        let process = self.stage.new_life(client);
        let (cluster, of, world) = (self.clone(), of.clone(), self.stage.world.clone());
        world.time.clone().spawn(process, async move {
            world.note(process, || match client {
                CURATOR => "starts as a curator".to_owned(),
                _ => format!("starts as client {client}"),
            });
            if client == CURATOR {
                return cluster.curate(process, &of, end_us).await;
            }
            let outcome = cluster.propose(process, client, &of).await;
            world.note(process, || format!("is done: {outcome:?}"));
        });
    }

    async fn tidy_up(self, end_us: u64) {
        let world = &self.stage.world;
        while world.time.now_us() < end_us {
            world.time.sleep(3_000_000 + world.below(6_000_000)).await;
            let store = self.stage.store(JANITOR).await;
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
        let world = &self.stage.world;
        let store = self.stage.store(process).await;
        let session = loop {
            match Session::open(store.clone(), client).await {
                Ok(session) => break session,
                Err(error @ StoreError::Fenced { .. }) => return Err(error),
                Err(_) => world.time.sleep(1_000_000).await,
            }
        };
        let at_work = self.stage.at_work(process, 0, client);
        loop {
            let is_called = match self.stage.turn(client) {
                Turn::Next => false,
                Turn::Rest => {
                    world.time.sleep(1_000_000).await;
                    continue;
                }
                Turn::Called => true,
            };
            world.time.sleep(world.below(3_000_000)).await;
            let outcome = self.transaction(process, &session, of).await;
            world.note(process, || format!("proposed: {outcome:?}"));
            match outcome {
                Ok(()) if is_called => return Ok(()),
                Ok(()) => {}
                Err(error @ StoreError::Fenced { .. }) => return Err(error),
                // It is told, or not; what waits is what curators see.
                Err(error) => at_work.met(error.to_string()),
            }
        }
    }

    async fn transaction(
        &self,
        process: Process,
        session: &Session,
        of: &Collection,
    ) -> Result<(), StoreError> {
        let (world, client) = (&self.stage.world, session.client());
        let mut txn = session.begin(Level::Atomic);
        for n in 0..1 + world.below(3) {
            let key = Key::new(format!("key{:03}", world.below(u64::from(self.stage.plan.keys))))?;
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

    /// Looks at what waits and decides, one after the other. In the end it still can, when it is asked.
    async fn curate(&self, process: Process, of: &Collection, end_us: u64) {
        let world = &self.stage.world;
        let store = self.stage.store(process).await;
        let at_work = self.stage.at_work(process, 0, CURATOR);
        self.decide(process, &store, of, end_us).await;
        loop {
            if self.stage.is_called() {
                match store.proposals(of, None, 100).await {
                    Ok(_) => return,
                    Err(error) => at_work.met(error.to_string()),
                }
            }
            world.time.sleep(1_000_000).await;
        }
    }

    async fn decide(&self, process: Process, store: &Store, of: &Collection, end_us: u64) {
        let world = &self.stage.world;
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
                    self.reject(process, store, of, id, None).await;
                    continue;
                }
                _ => continue,
            };
            if world.below(4) == 0 {
                // Lunch. Others decide meanwhile.
                world.time.sleep(world.below(15_000_000)).await;
            }
            match world.below(10) {
                0..=5 => self.approve(process, store, of, &shown).await,
                6..=8 => {
                    let attempt = self.attempt_of(&shown.transaction);
                    self.reject(process, store, of, id, attempt).await;
                }
                _ => {}
            }
        }
    }

    async fn approve(&self, process: Process, store: &Store, of: &Collection, shown: &Proposal) {
        let Some(attempt) = self.attempt_of(&shown.transaction) else { return };
        for _ in 0..1 + self.stage.world.below(3) / 2 {
            lock(&self.state).fates[attempt].is_approving = true;
            let outcome = store.approve(of, shown).await;
            self.stage.world.note(process, || format!("approves #{attempt}: {outcome:?}"));
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
        self.stage.world.note(process, || format!("rejects {id}: {outcome:?}"));
        if outcome == Ok(true) {
            lock(&self.state).decided.rejected += 1;
        }
    }

    /// Does what nobody may, and everybody can where no service keeps him from it.
    async fn cheat(self, of: Collection, end_us: u64) {
        let world = &self.stage.world;
        let store = self.stage.store(CHEAT).await;
        while world.time.now_us() < end_us {
            world.time.sleep(1_000_000 + world.below(4_000_000)).await;
            match world.below(2) {
                0 => self.replace(CHEAT, &store).await,
                _ => self.forge(CHEAT, &store, &of).await,
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
        self.stage.world.note(process, || format!("replaces {name}"));
        objects.put(name, transaction.encode(), PutIf::Always).await;
    }

    /// Commits to the collection as if it were any other one.
    async fn forge(&self, process: Process, store: &Store, of: &Collection) {
        let world = &self.stage.world;
        let now_us = world.time.now_us();
        let stamp = Stamp { clock: now_us, client: ROGUE, sequence: now_us };
        let key = Key::new(format!("key{:03}", world.below(u64::from(self.stage.plan.keys))));
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
    async fn read(self, of: Collection, end_us: u64) {
        let Stage { world, plan, .. } = &self.stage;
        while world.time.now_us() < end_us {
            world.time.sleep(world.below(2_000_000)).await;
            let store = self.stage.store(READER).await;
            let session = Session::reader(store, 1_000_000);
            let mut txn = session.begin(Level::Atomic);
            if world.below(2) == 0 {
                txn.fresh();
            }
            let due = self.approved();
            for number in 0..plan.keys {
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
        let all = self.stage.world.history(PROPOSALS).into_iter();
        all.filter_map(|(name, versions)| {
            let bytes = versions.last()?.bytes.clone()?;
            let own = ProposalId::of(&bytes).to_string();
            (!name.ends_with(&own)).then_some(name)
        })
        .collect()
    }

    /// Brings everything to its page that is approved, and nothing else.
    async fn finish(&self, process: Process) -> Result<(), StoreError> {
        let store = self.stage.open(process).await?;
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
            self.stage.world.time.sleep(6_000_000).await;
        }
        Err(StoreError::Invalid("200 sweeps, and there is still something".into()))
    }
}
