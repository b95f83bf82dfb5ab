//! Clusters whose transactions are isolated from each other, and what their histories say.
//!
//! What was committed, and in which order, is told by the versions of the sequencer that the object store
//! had. Everything else is what clients saw: every read is compared with the commits up to its snapshot
//! (invariant 12), and all of them together are looked at for anomalies (13, see `isolation`).

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;

use crate::{
    blob::{Part, Value},
    catalog::{Collection, Isolation},
    cloud::model::{Latency, Process, World},
    commit::Session,
    error::StoreError,
    names::BLOBS,
    page::PageId,
    record::{Key, Payload},
    search_by::SearchBy,
    sequence::{
        Isolated, Numbers, SequencedWrite,
        codec::{DATA, NUMBERS, decode_data},
    },
    simulation::{
        Indexed, Plan, Report, Violation, check,
        isolation::{Anomaly, Histories, Read, Source, Transaction, anomalies},
        stage::{ADMIN, AtWork, Stage, Turn, lock, within},
    },
    tree::secondary,
};

const COLLECTION: &str = "things";
const INDEX: &str = "letters";
/// A few letters, so that ranges of them meet.
const BY: SearchBy = SearchBy::Part { separator: b'.', number: 2 };
const LETTERS: u64 = 6;
/// Violations that are shown of one kind.
const SHOWN_MAX: usize = 5;

/// What a transaction saw of a record: the commit that wrote it, 0 if there was nothing, and what it held.
type Seen = (u64, Option<Bytes>);

enum Saw {
    Item(String, Seen),
    /// All there was from the first to before the second.
    Range(String, String, BTreeMap<String, Seen>),
    /// All that the index had under search keys from the first to the second: search key, key, payload; and what
    /// it wrote itself by then.
    Probe(String, String, Vec<(String, String, Bytes)>, BTreeMap<String, Option<String>>),
}

impl Saw {
    /// Records that an index led to.
    fn probed(&self) -> u64 {
        match self {
            Saw::Probe(_, _, found, _) => found.len() as u64,
            Saw::Item(..) | Saw::Range(..) => 0,
        }
    }
}

/// What a client knows of one transaction.
#[derive(Default)]
struct Attempt {
    id: u128,
    client: u64,
    snapshot: Option<u64>,
    /// Before its snapshot was taken, and when its commit was known.
    began_us: u64,
    ended_us: u64,
    saw: Vec<Saw>,
    writes: Vec<(String, u32)>,
    /// What it wrote last of each record: `None` for a delete.
    last: BTreeMap<String, Option<String>>,
    /// The number that it was told; `Err`: that it was not committed.
    told: Option<Result<u64, ()>>,
}

#[derive(Default)]
struct History {
    attempts: Vec<Attempt>,
    violations: Vec<Violation>,
    collected: u64,
    blobs_collected: u64,
    /// What the last reader found.
    end: Option<BTreeMap<String, Bytes>>,
}

#[derive(Clone)]
struct Cluster {
    stage: Stage,
    isolation: Isolation,
    history: Arc<Mutex<History>>,
}

const JANITOR: Process = Process(4);
const BUILDER: Process = Process(5);

pub(super) fn run(
    plan: &Plan,
    isolation: Isolation,
    seed: u64,
    trace: bool,
    latency: &Latency,
) -> Report {
    let (stage, mut executor) = Stage::new(plan, seed, trace, latency);
    let cluster = Cluster { stage: stage.clone(), isolation, history: Arc::default() };
    stage.world.make_no_crash(JANITOR);
    let maker = cluster.clone();
    let of = stage.set_up(&mut executor, async move { maker.set_up().await });

    let end_us = stage.begin();
    for client in 1..=u64::from(plan.clients) {
        cluster.start(client, &of);
    }
    let (starter, to) = (cluster.clone(), of.clone());
    stage.supervise(end_us, move |client| starter.start(client, &to));
    stage.world.time.spawn(JANITOR, cluster.clone().tidy_up(end_us));
    if plan.index == Indexed::Later {
        stage.world.make_safe(BUILDER);
        stage.world.time.spawn(BUILDER, cluster.clone().have_built());
    }
    let mut violations = stage.play(&mut executor, end_us);
    let (sweeper, to) = (cluster.clone(), of.clone());
    let sweep = |process| async move { sweeper.finish(process, &to).await };
    violations.extend(stage.sweep(&mut executor, sweep));
    report(&cluster, of.root, violations, seed)
}

fn report(cluster: &Cluster, root: PageId, mut violations: Vec<Violation>, seed: u64) -> Report {
    let world = &cluster.stage.world;
    let mut history = lock(&cluster.history);
    violations.append(&mut history.violations);
    let (tree, found) = check::tree(world, root);
    violations.extend(found);
    let (blobs, found) = check::blobs(world, &tree, None);
    violations.extend(found);
    violations.extend(cluster.stage.violations());
    let commits = commits(world, &mut violations);
    let inline_bytes = cluster.stage.plan.settings().inline_bytes_max - 1;
    let judge = Judge { history: &history, commits: &commits, root, inline_bytes };
    violations.extend(judge.outcomes());
    violations.extend(judge.contents());
    violations.extend(judge.reads());
    violations.extend(judge.overlaps());
    violations.extend(judge.end());
    let all = judge.histories();
    let found = anomalies(&all, cluster.isolation);
    let show = |(anomaly, what): (Anomaly, String)| {
        Violation::new(13, format!("{}: {what}", anomaly.name()))
    };
    violations.extend(found.into_iter().map(show));
    let is = |attempt: &&Attempt| attempt.told.is_none();
    let committed = |attempt: &&Attempt| matches!(attempt.told, Some(Ok(_)));
    let failed = |attempt: &&Attempt| matches!(attempt.told, Some(Err(())));
    Report {
        committed: history.attempts.iter().filter(committed).count() as u64,
        uncertain: history.attempts.iter().filter(is).count() as u64,
        failed: history.attempts.iter().filter(failed).count() as u64,
        collected: history.collected,
        blobs_collected: history.blobs_collected,
        blobs,
        leaves: tree.leaves.len() as u64,
        probed: history.attempts.iter().flat_map(|attempt| &attempt.saw).map(Saw::probed).sum(),
        ..cluster.stage.report(seed, violations)
    }
}

/// One commit, as the sequencer had it.
#[derive(Clone, Debug, PartialEq)]
struct Listed {
    id: u128,
    client: u64,
    epoch: u64,
    writes: Vec<Wrote>,
}

/// A write, with what it says that the record holds from then on.
#[derive(Clone, Debug, PartialEq)]
struct Wrote {
    tree: PageId,
    key: Bytes,
    payload: Option<Bytes>,
}

/// The parts of all blobs that ever were, by name: none is put twice.
type Parts = BTreeMap<String, Bytes>;

impl Wrote {
    /// `None`: it names a blob of which a part never was.
    fn of(write: SequencedWrite, parts: &Parts) -> Option<Wrote> {
        let payload = match write.payload {
            Some(Value::Blob(blob)) => {
                let bodies = (0..blob.parts()).map(|part| parts.get(&blob.object(part)).cloned());
                Some(bodies.collect::<Option<Vec<Bytes>>>()?.concat().into())
            }
            Some(Value::Here(payload)) => Some(payload),
            None => None,
        };
        Some(Wrote { tree: write.tree, key: write.key, payload })
    }
}

/// All commits by number, as any version of the sequencer had them.
fn commits(world: &World, violations: &mut Vec<Violation>) -> BTreeMap<u64, Listed> {
    let data: BTreeMap<String, Vec<SequencedWrite>> = world
        .history(DATA)
        .into_iter()
        .filter_map(|(name, versions)| {
            let bytes = versions.into_iter().find_map(|version| version.bytes)?;
            Some((name, decode_data(&bytes).ok()?.1))
        })
        .collect();
    let parts: Parts = world
        .history(BLOBS)
        .into_iter()
        .filter_map(|(name, versions)| {
            let bytes = versions.into_iter().find_map(|version| version.bytes)?;
            Some((name, Part::decode(&bytes).ok()?.body))
        })
        .collect();
    let mut commits: BTreeMap<u64, Listed> = BTreeMap::new();
    let mut last: Option<Numbers> = None;
    let mut lives: BTreeMap<u64, u64> = BTreeMap::new();
    let versions = world.history(NUMBERS).into_iter().flat_map(|(_, versions)| versions);
    for bytes in versions.filter_map(|version| version.bytes) {
        let Ok(numbers) = Numbers::decode(&bytes) else {
            violations.push(Violation::new(12, "the sequencer cannot be decoded".into()));
            continue;
        };
        let of = |it: &Numbers| (it.last, it.applied, it.horizon);
        if let Some(last) = &last {
            let (a, b) = (of(last), of(&numbers));
            if a.0 > b.0 || a.1 > b.1 || a.2 > b.2 {
                violations
                    .push(Violation::new(12, format!("the sequencer goes back: {a:?} {b:?}")));
            }
        }
        for (number, commit) in numbers.numbered() {
            let writes = match &commit.object {
                Some((name, _)) => data.get(name).cloned().unwrap_or_default(),
                None => commit.writes.to_vec(),
            };
            let len = writes.len();
            let writes: Vec<Wrote> =
                writes.into_iter().filter_map(|write| Wrote::of(write, &parts)).collect();
            if writes.len() < len {
                let what = format!("commit {number} names a blob that was not put");
                violations.push(Violation::new(1, what));
            }
            let (id, client, epoch) = (commit.id, commit.client, commit.epoch);
            let listed = Listed { id, client, epoch, writes };
            match commits.get(&number) {
                Some(there) if *there != listed => {
                    let what = format!("commit {number} is {there:?}, and then {listed:?}");
                    violations.push(Violation::new(12, what));
                }
                Some(_) => {}
                None => {
                    let newest = lives.entry(client).or_insert(epoch);
                    if *newest > epoch {
                        let what = format!("life {epoch} of {client} commits after {newest} did");
                        violations.push(Violation::new(8, what));
                    }
                    *newest = epoch.max(*newest);
                    commits.insert(number, listed);
                }
            }
        }
        last = Some(numbers);
    }
    let mut ids: Vec<u128> = commits.values().map(|it| it.id).collect();
    ids.sort_unstable();
    if ids.windows(2).any(|pair| pair[0] == pair[1]) {
        violations.push(Violation::new(12, "a transaction has two numbers".into()));
    }
    commits
}

/// What a scan saw between own writes, which hide what was there: that is no part of what it saw.
fn between(
    own: &BTreeSet<String>,
    from: &str,
    to: &str,
    listed: &BTreeMap<String, Seen>,
) -> Vec<Saw> {
    let mut saw = Vec::new();
    let mut begin = from.to_owned();
    let ends = own.iter().filter(|key| (from..to).contains(&key.as_str())).map(String::as_str);
    for end in ends.chain([to]) {
        if *begin < *end {
            let part = listed.range(begin.clone()..end.to_owned());
            let part = part.map(|(key, seen)| (key.clone(), seen.clone())).collect();
            saw.push(Saw::Range(begin, end.to_owned(), part));
        }
        // The next key that there can be.
        begin = format!("{end}\0");
    }
    saw
}

/// Compares what clients saw with what was committed.
struct Judge<'a> {
    history: &'a History,
    commits: &'a BTreeMap<u64, Listed>,
    root: PageId,
    /// Bytes of the longest payload that is no blob.
    inline_bytes: usize,
}

impl Judge<'_> {
    fn number(&self, attempt: &Attempt) -> Option<u64> {
        self.commits.iter().find(|(_, it)| it.id == attempt.id).map(|(number, _)| *number)
    }

    /// What a record holds after all commits up to `snapshot`.
    fn at(&self, key: &str, snapshot: u64) -> Seen {
        let known = self.commits.range(..=snapshot).rev();
        let mut found = known.filter_map(|(number, listed)| {
            let is_it = |it: &&Wrote| it.tree == self.root && it.key == key.as_bytes();
            let write = listed.writes.iter().find(is_it)?;
            Some((*number, write.payload.clone()))
        });
        found.next().unwrap_or((0, None))
    }

    fn keys(&self) -> Vec<String> {
        let writes = self.commits.values().flat_map(|it| &it.writes);
        let writes = writes.filter(|write| write.tree == self.root);
        let mut keys: Vec<String> =
            writes.map(|write| String::from_utf8_lossy(&write.key).into_owned()).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// What clients were told is so.
    fn outcomes(&self) -> Vec<Violation> {
        let mut wrong = Vec::new();
        let mut ends: Vec<(u64, u64)> = Vec::new();
        for attempt in &self.history.attempts {
            let number = self.number(attempt);
            let (client, told) = (attempt.client, &attempt.told);
            match (told, number) {
                (Some(Ok(0)), None) | (None, _) | (Some(Err(())), None) => {}
                (Some(Ok(told)), Some(number)) if *told == number => {}
                _ => wrong.push(Violation::new(
                    1,
                    format!("client {client} was told {told:?} of a commit that is {number:?}"),
                )),
            }
            if let (Some(Ok(_)), Some(number)) = (told, number) {
                ends.push((attempt.ended_us, number));
            }
        }
        // What was told to be committed is seen by whoever begins later.
        ends.sort_unstable();
        for attempt in &self.history.attempts {
            let Some(snapshot) = attempt.snapshot else { continue };
            let before = ends.iter().take_while(|(end_us, _)| *end_us < attempt.began_us);
            if let Some(missed) = before.map(|(_, number)| *number).max().filter(|n| *n > snapshot)
            {
                let client = attempt.client;
                let what = format!("snapshot {snapshot} of {client} misses {missed}, of before it");
                wrong.push(Violation::new(12, what));
            }
        }
        wrong.truncate(SHOWN_MAX);
        wrong
    }

    /// What was committed is what was written, wherever it lies.
    fn contents(&self) -> Vec<Violation> {
        let mut wrong = Vec::new();
        for (number, listed) in self.commits {
            let attempt = self.history.attempts.iter().find(|it| it.id == listed.id);
            let written = attempt.map(|it| it.last.clone()).unwrap_or_default();
            let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
            let there: BTreeMap<String, Option<String>> = listed
                .writes
                .iter()
                .filter(|it| it.tree == self.root)
                .map(|it| (text(&it.key), it.payload.as_ref().map(text)))
                .collect();
            if there != written {
                let what = format!("commit {number} has {there:?}, and was to have {written:?}");
                wrong.push(Violation::new(1, what));
            }
        }
        wrong.truncate(SHOWN_MAX);
        wrong
    }

    /// Every read is what the commits up to its snapshot made.
    fn reads(&self) -> Vec<Violation> {
        let mut wrong = Vec::new();
        let keys = self.keys();
        for attempt in &self.history.attempts {
            let Some(snapshot) = attempt.snapshot else { continue };
            let client = attempt.client;
            let compare = |key: &str, seen: &Seen| {
                let there = self.at(key, snapshot);
                (there.1 != seen.1 || seen.1.is_some() && there.0 != seen.0).then(|| {
                    let what =
                        format!("{client} at {snapshot} read {key} as {seen:?}, it is {there:?}");
                    Violation::new(12, what)
                })
            };
            for saw in &attempt.saw {
                match saw {
                    Saw::Item(key, seen) => wrong.extend(compare(key, seen)),
                    Saw::Range(from, to, listed) => {
                        for key in keys.iter().filter(|key| (from..to).contains(key)) {
                            wrong.extend(compare(key, listed.get(key).unwrap_or(&(0, None))));
                        }
                    }
                    Saw::Probe(from, to, found, own) => {
                        let expected = self.probed(&keys, from, to, own, snapshot);
                        if *found != expected {
                            let differs = |it: &&(String, String, Bytes)| {
                                found.contains(it) != expected.contains(it)
                            };
                            let all: Vec<_> =
                                found.iter().chain(&expected).filter(differs).collect();
                            let what =
                                format!("{client} at {snapshot} probed {from}..{to}: {all:?}");
                            wrong.push(Violation::new(12, what));
                        }
                    }
                }
            }
        }
        wrong.truncate(SHOWN_MAX);
        wrong
    }

    /// What an index has to lead to at a snapshot, for who has written this.
    fn probed(
        &self,
        keys: &[String],
        from: &str,
        to: &str,
        own: &BTreeMap<String, Option<String>>,
        snapshot: u64,
    ) -> Vec<(String, String, Bytes)> {
        let mut all = Vec::new();
        let keys = keys.iter().chain(own.keys()).collect::<BTreeSet<_>>();
        for key in keys {
            let payload = match own.get(key) {
                Some(own) => own.as_ref().map(|text| Bytes::from(text.clone())),
                None => self.at(key, snapshot).1,
            };
            // What lies in a blob has no entry.
            let here = payload.filter(|payload| payload.len() <= self.inline_bytes);
            let Some(payload) = here else { continue };
            let Some(search) = BY.key(&payload).map(|search| search.to_string()) else { continue };
            if (from..=to).contains(&search.as_str()) {
                all.push((search, key.clone(), payload));
            }
        }
        all.sort();
        all
    }

    /// What an entry of an index is called among the keys of a history.
    fn name(&self, write: &Wrote) -> String {
        match write.tree == self.root {
            true => String::from_utf8_lossy(&write.key).into_owned(),
            false => format!("@{}", write.key.escape_ascii()),
        }
    }

    /// Entries between two search keys that any commit up to a snapshot wrote, each with the last one that did.
    fn entries(&self, from: &str, to: &str, snapshot: u64) -> Vec<(String, Source)> {
        let mut last: BTreeMap<String, Source> = BTreeMap::new();
        for listed in self.commits.range(..=snapshot).map(|(_, listed)| listed) {
            let writer = self.history.attempts.iter().position(|it| it.id == listed.id);
            for write in listed.writes.iter().filter(|write| write.tree != self.root) {
                last.insert(self.name(write), writer.map(|id| (id, 0)));
            }
        }
        let is_in = |name: &str| *from <= *name && *name < *to;
        last.into_iter().filter(|(name, source)| is_in(name) && source.is_some()).collect()
    }

    /// Of two that wrote the same record, the later one had the earlier one in its snapshot, whether it read
    /// that record or not: G-SIa of Adya's thesis, for which the graph has no edges.
    fn overlaps(&self) -> Vec<Violation> {
        let mut newest: BTreeMap<(PageId, &[u8]), u64> = BTreeMap::new();
        let mut wrong = Vec::new();
        for (number, listed) in self.commits {
            let attempt = self.history.attempts.iter().find(|it| it.id == listed.id);
            let snapshot = attempt.and_then(|it| it.snapshot);
            for write in &listed.writes {
                let before = newest.insert((write.tree, &write.key), *number);
                if let (Some(before), Some(snapshot)) = (before, snapshot)
                    && before > snapshot
                {
                    let key = write.key.escape_ascii();
                    let what =
                        format!("G-SIa: {number} at {snapshot} writes {key}, which {before} wrote");
                    wrong.push(Violation::new(13, what));
                }
            }
        }
        wrong.truncate(SHOWN_MAX);
        wrong
    }

    /// Nothing that was committed is lost, and nothing else is there.
    fn end(&self) -> Vec<Violation> {
        let Some(end) = &self.history.end else { return Vec::new() };
        let mut wrong = Vec::new();
        let held = self.keys().into_iter().filter_map(|key| {
            let payload = self.at(&key, u64::MAX).1?;
            Some((key, payload))
        });
        let expected: BTreeMap<String, Bytes> = held.collect();
        if *end != expected {
            let differs = |key: &&String| end.get(*key) != expected.get(*key);
            let all = expected.keys().chain(end.keys());
            let what = all.filter(differs).take(3).map(|key| {
                format!("{key} is {:?}, and should be {:?}", end.get(key), expected.get(key))
            });
            wrong.extend(what.map(|what| Violation::new(1, what)));
        }
        wrong
    }

    /// Whose version a transaction saw.
    fn source(&self, seen: &Seen, key: &str, snapshot: u64) -> Source {
        let by_payload = |payload: &Bytes| {
            let text = std::str::from_utf8(payload).ok()?;
            let (id, rest) = text.split_once('.')?;
            Some((id.parse().ok()?, rest.split('.').next()?.parse().ok()?))
        };
        if let Some(payload) = &seen.1 {
            // What nobody wrote is by nobody that was committed.
            return by_payload(payload).or(Some((usize::MAX, 0)));
        }
        // Nothing: the last delete that the snapshot can have seen, or that it was never there.
        let known = self.commits.range(..=snapshot).rev();
        let mut deletes = known.filter_map(|(_, listed)| {
            let is_it = |it: &&Wrote| it.tree == self.root && it.key == key.as_bytes();
            listed.writes.iter().find(is_it).filter(|it| it.payload.is_none())?;
            let writer = self.history.attempts.iter().position(|it| it.id == listed.id)?;
            let of = &self.history.attempts[writer].writes;
            let (_, operation) = of.iter().rev().find(|(of, _)| of == key)?;
            Some((writer, *operation))
        });
        deletes.next()
    }

    fn histories(&self) -> Histories {
        let mut all = Histories::default();
        for attempt in &self.history.attempts {
            let number = self.number(attempt);
            // One that only read is there as of its snapshot.
            let is_read_only = attempt.writes.is_empty() && attempt.snapshot.is_some();
            let snapshot = attempt.snapshot.unwrap_or(u64::MAX);
            let source = |key: &str, seen: &Seen| self.source(seen, key, snapshot);
            let read = |saw: &Saw| match saw {
                Saw::Item(key, seen) => Read::Item(key.clone(), source(key, seen)),
                Saw::Range(from, to, listed) => {
                    let nothing = (0, None);
                    let keys = self.keys().into_iter().filter(|key| (from..to).contains(&key));
                    let known = keys.filter_map(|key| {
                        let seen = listed.get(&key).unwrap_or(&nothing);
                        let source = source(&key, seen);
                        source.is_some().then_some((key, source))
                    });
                    Read::Range(from.clone(), to.clone(), known.collect())
                }
                Saw::Probe(from, to, ..) => {
                    // What it saw is compared above; here it counts by whom that is.
                    let name = |bytes: &[u8]| format!("@{}", bytes.escape_ascii());
                    let from = name(&secondary::begin(from.as_bytes()));
                    let to = name(&secondary::end(to.as_bytes()));
                    let entries = self.entries(&from, &to, snapshot);
                    Read::Range(from, to, entries)
                }
            };
            let listed = number.and_then(|number| self.commits.get(&number));
            let entries = listed.into_iter().flat_map(|listed| &listed.writes);
            let entries = entries.filter(|write| write.tree != self.root);
            let entries = entries.map(|write| (self.name(write), 0));
            all.transactions.push(Transaction {
                number: number.or(is_read_only.then_some(u64::MAX)),
                reads: attempt.saw.iter().map(read).collect(),
                writes: attempt.writes.iter().cloned().chain(entries).collect(),
            });
        }
        for listed in self.commits.values() {
            let Some(id) = self.history.attempts.iter().position(|it| it.id == listed.id) else {
                continue;
            };
            for write in &listed.writes {
                all.versions.entry(self.name(write)).or_default().push(id);
            }
        }
        all
    }
}

impl Cluster {
    async fn set_up(&self) -> Result<Collection, StoreError> {
        self.stage.create().await?;
        let store = self.stage.open(ADMIN).await?;
        let of = store.create_collection_for(COLLECTION, Some(self.isolation)).await?;
        if self.stage.plan.index != Indexed::Always {
            return Ok(of);
        }
        store.create_index(COLLECTION, INDEX, &BY).await?;
        store.build_index(COLLECTION, INDEX, |_| {}).await?;
        store.collection(COLLECTION).await
    }

    /// Has an index made while the others work: by one who stalls and crashes like everyone, and by another as
    /// soon as that takes long, until it is ready.
    async fn have_built(self) {
        let world = self.stage.world.clone();
        world.time.sleep(5_000_000 + world.below(15_000_000)).await;
        let is_ready: Arc<Mutex<bool>> = Arc::default();
        while !*lock(&is_ready) {
            let builder = self.stage.new_process();
            world.note(BUILDER, || format!("has an index built by {builder:?}"));
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

    fn start(&self, client: u64, of: &Collection) {
        let process = self.stage.new_life(client);
        let world = self.stage.world.clone();
        world.note(process, || format!("starts as client {client}"));
        let (cluster, of) = (self.clone(), of.clone());
        world.time.clone().spawn(process, async move {
            let outcome = cluster.live(process, client, of).await;
            world.note(process, || format!("is done: {outcome:?}"));
        });
    }

    /// Collects garbage, and looks at what clients left.
    async fn tidy_up(self, end_us: u64) {
        let world = &self.stage.world;
        while world.time.now_us() < end_us {
            world.time.sleep(3_000_000 + world.below(6_000_000)).await;
            let Ok(store) = self.stage.open(JANITOR).await else { continue };
            if let Ok(done) = store.collect_garbage(Duration::from_secs(6)).await {
                let mut history = lock(&self.history);
                history.collected += done.versions + done.data;
                history.blobs_collected += done.blobs;
                drop(history);
                world.note(JANITOR, || format!("collected {done:?}"));
            }
        }
    }

    /// Brings everything to its page, and reads all of it.
    async fn finish(&self, process: Process, of: &Collection) -> Result<(), StoreError> {
        let store = self.stage.open(process).await?;
        store.sweep().await?;
        store.sweep().await?;
        if self.stage.plan.has_blobs {
            // No snapshot sees what was replaced, and nothing can name what is not committed any more.
            self.stage.world.time.sleep(self.stage.plan.rest().as_micros() as u64).await;
            for _ in 0..6 {
                let done = store.collect_garbage(Duration::from_secs(6)).await?;
                if done.blobs_waiting == 0 && done.versions == 0 {
                    break;
                }
                self.stage.world.time.sleep(7_000_000).await;
            }
        }
        let session = Session::reader(store.clone(), u64::MAX);
        let txn = session.isolated(self.isolation);
        let mut scan = txn.scan(of, Bytes::new(), None)?;
        let mut end = BTreeMap::new();
        while let Some((key, payload)) = scan.next().await? {
            end.insert(key.to_string(), payload.to_bytes());
        }
        lock(&self.history).end = Some(end);
        if self.stage.plan.index != Indexed::Not {
            let found = store.check_index(COLLECTION, INDEX, |_| {}).await?;
            if found.missing + found.changing + found.dangling + found.strange > 0 {
                let what = format!("an index at rest: {found:?}");
                lock(&self.history).violations.push(Violation::new(11, what));
            }
        }
        let verified = store.verify(|_, _| {}).await?;
        if verified.problem_count > 0 {
            return Err(StoreError::Invalid(format!("{:?}", verified.problems)));
        }
        Ok(())
    }

    /// One life of a client: two transactions at a time, and work in the background.
    async fn live(&self, process: Process, client: u64, of: Collection) -> Result<(), StoreError> {
        let world = &self.stage.world;
        let store = self.stage.store(process).await;
        let session = loop {
            match Session::open(store.clone(), client).await {
                Ok(session) => break Arc::new(session),
                Err(StoreError::Fenced { .. }) => return Ok(()),
                Err(_) => world.time.sleep(1_000_000).await,
            }
        };
        let (time, background, alive) = (world.time.clone(), store.clone(), session.clone());
        world.time.spawn(process, async move {
            loop {
                time.sleep(1_500_000).await;
                background.make_all_due();
                // What fails is due again.
                let _ = background.work().await;
                // Nobody is forgotten because it sleeps between two transactions.
                let _ = alive.keep_alive().await;
            }
        });
        for n in 0..2 {
            let (cluster, session, of) = (self.clone(), session.clone(), of.clone());
            let at_work = self.stage.at_work(process, n, client);
            world.time.spawn(process, async move {
                let outcome = cluster.work(process, &at_work, &session, &of).await;
                cluster.stage.world.note(process, || format!("is done: {outcome:?}"));
            });
        }
        Ok(())
    }

    async fn work(
        &self,
        process: Process,
        at_work: &AtWork,
        session: &Session,
        of: &Collection,
    ) -> Result<(), StoreError> {
        let world = &self.stage.world;
        loop {
            let is_called = match self.stage.turn(session.client()) {
                Turn::Next => false,
                Turn::Rest => {
                    world.time.sleep(1_000_000).await;
                    continue;
                }
                Turn::Called => true,
            };
            let idle_us = if self.stage.plan.is_sluggish { 20_000_000 } else { 2_000_000 };
            world.time.sleep(world.below(idle_us)).await;
            match self.transaction(process, session, of).await {
                // It goes on working, which is what it was asked for.
                Ok(true) if is_called => return Ok(()),
                Ok(_) => {}
                Err(
                    error @ (StoreError::Cloud { .. }
                    | StoreError::Contended { .. }
                    | StoreError::CommitUnknown { .. }
                    | StoreError::Aborted { .. }),
                ) => at_work.met(error.to_string()),
                // By one of the refusals that come and go here, at a moment at which there was no room.
                Err(error @ StoreError::Stuck { .. })
                    if self.stage.plan.faults.denied > 0.0
                        && error.to_string().contains("access denied") =>
                {
                    at_work.met(error.to_string());
                }
                Err(error @ StoreError::Fenced { .. }) => return Err(error),
                // Of stamps of blobs.
                Err(StoreError::Clock { .. } | StoreError::Date { .. })
                    if self.stage.plan.has_blobs => {}
                Err(error) => {
                    let what = format!("client {}: {error}", session.client());
                    lock(&self.history).violations.push(Violation::new(1, what));
                    return Ok(());
                }
            }
        }
    }

    /// Whether it is committed, as far as the client was told.
    async fn transaction(
        &self,
        process: Process,
        session: &Session,
        of: &Collection,
    ) -> Result<bool, StoreError> {
        let world = &self.stage.world;
        let mut txn = session.isolated(self.isolation);
        let place = {
            let mut history = lock(&self.history);
            let (id, client) = (txn.id(), session.client());
            let began_us = world.time.now_us();
            history.attempts.push(Attempt { id, client, began_us, ..Attempt::default() });
            history.attempts.len() - 1
        };
        let name = |number: u64| format!("key{number:03}");
        let keys = u64::from(self.stage.plan.keys);
        for operation in 0..1 + world.below(5) {
            let text = name(world.below(keys));
            let key = Key::new(&text)?;
            let has_index = self.stage.plan.index != Indexed::Not;
            let letter = |number: u64| char::from(b'a' + (number % LETTERS) as u8).to_string();
            match world.below(10) {
                _ if has_index && world.below(4) == 0 => {
                    let (from, len) = (world.below(LETTERS), world.below(3));
                    let to = (from + len).min(LETTERS - 1);
                    self.probe(place, &txn, of, &letter(from), &letter(to)).await?;
                }
                0..=3 => self.read(place, &txn, of, &text).await?,
                4 => {
                    let (from, len) = (world.below(keys), 1 + world.below(keys / 2));
                    self.scan(place, &txn, of, &name(from), &name(from + len)).await?;
                }
                5 => {
                    txn.delete(of, &key)?;
                    self.wrote(place, &text, operation, None);
                }
                kind => {
                    if kind < 8 {
                        self.read(place, &txn, of, &text).await?;
                    }
                    // Some are too large for the sequencer; where there are blobs, half are for a page.
                    let pad = match world.below(12) {
                        _ if self.stage.plan.has_blobs => world.below(90) as usize,
                        0 => 2100,
                        _ => world.below(40) as usize,
                    };
                    let search =
                        if has_index { letter(world.below(LETTERS)) + "." } else { String::new() };
                    let payload = format!("{place}.{operation}.{search}{}", "x".repeat(pad));
                    if self.stage.plan.has_blobs && world.below(3) == 0 {
                        let mut writing = session.write_blob().await?;
                        for bytes in payload.as_bytes().chunks(7) {
                            writing.write(bytes).await?;
                        }
                        txn.put_value(of, &key, writing.finish().await?)?;
                    } else {
                        txn.put(of, &key, &Payload::new(&payload)?)?;
                    }
                    self.wrote(place, &text, operation, Some(payload));
                }
            }
            if world.below(6) == 0 {
                world.time.sleep(world.below(3_000_000)).await;
            }
        }
        if world.below(12) == 0 {
            lock(&self.history).attempts[place].told = Some(Err(()));
            return Ok(false);
        }
        let age_us = self.stage.plan.tombstone_age.as_micros() as u64;
        if self.stage.plan.is_sluggish && world.below(3) == 0 {
            // Up to what there may be between a blob and its commit, and beyond that now and then.
            world.time.sleep(age_us * 3 / 8 + world.below(age_us / 6)).await;
            if world.below(2) == 0 {
                // Falls asleep while that is under way.
                let begin_us = world.below(120_000);
                let us = age_us * 7 / 20 + world.below(age_us / 10);
                let time = world.time.clone();
                world.time.spawn(process, async move {
                    time.sleep(begin_us).await;
                    time.stall(process, us);
                });
            }
        }
        let mut outcome = match world.below(8) {
            0 => match within(world, world.below(120_000), txn.commit()).await {
                Some(outcome) => outcome,
                // It may be committed, or not, or be yet.
                None if world.below(2) == 0 => return Ok(false),
                None => {
                    // So late, sometimes, that its place has left the window.
                    let most_us = if self.stage.plan.is_sluggish { 2 * age_us } else { 10_000_000 };
                    world.time.sleep(world.below(most_us)).await;
                    txn.commit().await
                }
            },
            _ => txn.commit().await,
        };
        for _ in 0..2 {
            if !matches!(outcome, Err(StoreError::CommitUnknown { .. })) {
                break;
            }
            outcome = txn.commit().await;
        }
        world.note(process, || format!("#{place}: {outcome:?}"));
        let mut history = lock(&self.history);
        let attempt = &mut history.attempts[place];
        attempt.ended_us = world.time.now_us();
        match &outcome {
            Ok(done) => attempt.told = Some(Ok(done.number)),
            Err(StoreError::CommitUnknown { .. }) => {}
            Err(_) => attempt.told = Some(Err(())),
        }
        drop(history);
        outcome.map(|_| true)
    }

    fn wrote(&self, place: usize, key: &str, operation: u64, payload: Option<String>) {
        let attempt = &mut lock(&self.history).attempts[place];
        attempt.writes.push((key.to_owned(), operation as u32));
        attempt.last.insert(key.to_owned(), payload);
    }

    fn saw(&self, place: usize, txn: &Isolated<'_>, saw: Saw) {
        let attempt = &mut lock(&self.history).attempts[place];
        attempt.snapshot = txn.snapshot();
        attempt.saw.push(saw);
    }

    /// Own writes are as they were written; what others wrote is taken down.
    async fn read(
        &self,
        place: usize,
        txn: &Isolated<'_>,
        of: &Collection,
        text: &str,
    ) -> Result<(), StoreError> {
        let (number, value) = txn.read_numbered(of, &Key::new(text)?).await?;
        let payload = match &value {
            Some(value) => Some(txn.load(value).await?),
            None => None,
        };
        let seen = (number, payload);
        match self.own(place, text) {
            Some(own) => self.check_own(text, &own, seen.1.as_deref()),
            None => self.saw(place, txn, Saw::Item(text.to_owned(), seen)),
        }
        Ok(())
    }

    async fn scan(
        &self,
        place: usize,
        txn: &Isolated<'_>,
        of: &Collection,
        from: &str,
        to: &str,
    ) -> Result<(), StoreError> {
        let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        let mut scan = txn.scan(of, bytes(from), Some(bytes(to)))?;
        let mut listed = BTreeMap::new();
        let mut last = String::new();
        while let Some((key, payload, number)) = scan.next_numbered().await? {
            let key = key.to_string();
            if key <= last || key.as_str() < from || key.as_str() >= to {
                let what = format!("a scan of {from}..{to} gives {key} after {last}");
                lock(&self.history).violations.push(Violation::new(12, what));
            }
            last.clone_from(&key);
            match self.own(place, &key) {
                Some(own) => self.check_own(&key, &own, Some(payload.as_bytes())),
                None => drop(listed.insert(key, (number, Some(payload.to_bytes())))),
            }
        }
        let own: BTreeSet<String> = {
            let history = lock(&self.history);
            let writes = &history.attempts[place].writes;
            writes.iter().map(|(key, _)| key.clone()).collect()
        };
        for saw in between(&own, from, to, &listed) {
            self.saw(place, txn, saw);
        }
        Ok(())
    }

    /// Both search keys are in it.
    async fn probe(
        &self,
        place: usize,
        txn: &Isolated<'_>,
        of: &Collection,
        from: &str,
        to: &str,
    ) -> Result<(), StoreError> {
        let own = lock(&self.history).attempts[place].last.clone();
        let bounds = [Key::new(from)?, Key::new(to)?];
        let [first, last] = &bounds;
        let mut found =
            match txn.probe(of, INDEX, Bound::Included(first), Bound::Included(last)).await {
                // It is being built, or not even that.
                Err(StoreError::Invalid(_) | StoreError::NotFound(_))
                    if self.stage.plan.index == Indexed::Later =>
                {
                    return Ok(());
                }
                found => found?,
            };
        let mut all = Vec::new();
        while let Some((search, record)) = found.next().await? {
            all.push((search.to_string(), record.key.to_string(), record.payload.to_bytes()));
        }
        self.saw(place, txn, Saw::Probe(from.to_owned(), to.to_owned(), all, own));
        Ok(())
    }

    /// What payloads of an own write of a key begin with.
    fn own(&self, place: usize, key: &str) -> Option<String> {
        let history = lock(&self.history);
        let writes = &history.attempts[place].writes;
        let (_, operation) = writes.iter().rev().find(|(of, _)| of == key)?;
        Some(format!("{place}.{operation}."))
    }

    fn check_own(&self, key: &str, own: &str, seen: Option<&[u8]>) {
        // A delete shows nothing.
        if seen.is_some_and(|seen| !seen.starts_with(own.as_bytes())) {
            let what = format!("{key} is not what this transaction wrote: {own}");
            lock(&self.history).violations.push(Violation::session("read your writes", what));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: PageId = PageId(1);

    fn commit(id: u128, keys: &[&'static str]) -> Listed {
        let write = |key: &&'static str| Wrote {
            tree: ROOT,
            key: Bytes::from_static(key.as_bytes()),
            payload: Some(Bytes::from(format!("{id}.0."))),
        };
        Listed { id, client: 1, epoch: 1, writes: keys.iter().map(write).collect() }
    }

    fn attempt(id: u128, snapshot: Option<u64>, saw: Vec<Saw>) -> Attempt {
        Attempt { id, snapshot, saw, ..Attempt::default() }
    }

    /// Two blind writes of one record: no cycle has them, and one of them was lost all the same.
    #[test]
    fn the_first_committer_wins_whether_it_was_read_or_not() {
        let commits = BTreeMap::from([(1, commit(0, &["x"])), (2, commit(1, &["x", "y"]))]);
        for (snapshot, expected) in [(None, 0), (Some(0), 1), (Some(1), 0)] {
            let attempts = vec![attempt(0, Some(0), vec![]), attempt(1, snapshot, vec![])];
            let history = History { attempts, ..History::default() };
            let judge =
                Judge { history: &history, commits: &commits, root: ROOT, inline_bytes: 100 };
            let found = judge.overlaps();
            assert_eq!(found.len(), expected, "{snapshot:?}: {found:?}");
            assert!(anomalies(&judge.histories(), Isolation::Serializable).is_empty());
        }
    }

    /// A scan with an own write in its range did not have to show anything else of that range.
    #[test]
    fn what_a_scan_misses_beside_own_writes_is_seen() {
        let commits = BTreeMap::from([(1, commit(0, &["a", "c", "e"]))]);
        let seen = |key: &str| (key.to_owned(), (1, Some(Bytes::from_static(b"0.0."))));
        let own = BTreeSet::from(["b".to_owned(), "d".to_owned(), "z".to_owned()]);
        for (listed, expected) in [(&["a", "c", "e"][..], 0), (&["a", "e"], 1), (&[], 3)] {
            let listed = listed.iter().map(|key| seen(key)).collect();
            let saw = between(&own, "a", "f", &listed);
            let ranges = saw.iter().map(|saw| match saw {
                Saw::Range(from, to, _) => format!("{from}..{to}"),
                Saw::Item(..) | Saw::Probe(..) => "a record".to_owned(),
            });
            assert_eq!(ranges.collect::<Vec<_>>(), ["a..b", "b\0..d", "d\0..f"]);
            let attempts = vec![attempt(0, None, vec![]), attempt(1, Some(1), saw)];
            let history = History { attempts, ..History::default() };
            let judge =
                Judge { history: &history, commits: &commits, root: ROOT, inline_bytes: 100 };
            assert_eq!(judge.reads().len(), expected);
        }
        // An own write at the beginning, and at the end.
        let own = BTreeSet::from(["a".to_owned(), "e\0".to_owned()]);
        let saw = between(&own, "a", "e\0\0", &BTreeMap::new());
        assert!(matches!(&saw[..], [Saw::Range(from, to, _)] if from == "a\0" && to == "e\0"));
    }
}
