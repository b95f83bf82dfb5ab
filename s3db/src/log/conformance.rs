//! What every [`Log`] promises, whichever services carry it.
//!
//! ```text
//!               on the model   in memory   sealed   in a directory   on S3 and SQS
//!   s3-log           x             x          x            x               x
//!   sqs-standard     x             x          x            x               x
//!   sqs-fifo         x             x          x            x               x
//! ```
//!
//! Each check gets a database of its own, and looks at it as several processes would: each [`Log`] that
//! it makes remembers nothing of the others. On the model the same is held under every fault, too.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _, join_all};

use super::{Append, Appender, Batch, Entry, Left, Log, Scope, Transaction};
use crate::{
    address::Address,
    catalog::Backend,
    cloud::{
        Cloud, Get, PutIf, Sent, ToSend,
        embedded::{self, Memory},
        model::{Executor, Faults, Latency, Process, World},
        queue::BATCH_MAX,
    },
    error::StoreError,
    log::{self, Pending, transaction},
    names::{LOG, QUARANTINE, SPILLED},
    page::{PageId, Stream},
    record::{Key, Payload},
    settings::Settings,
    stamp::Stamp,
    store::Store,
};

const SHARDS: u32 = 2;
/// The life that appends, where there is one.
const EPOCH: u64 = 7;
const TREE: PageId = PageId(1);
/// Changes that one drain may give out.
const MOST: usize = 1000;
/// Rounds after which it is one that does not end.
const ROUNDS_MAX: usize = 50;
/// How long drained changes are hidden, and how long where a check waits for them to come back.
const LEASE: Duration = Duration::from_secs(60);
const SHORT_LEASE: Duration = Duration::from_secs(2);

/// A database that holds nothing yet, and how to look at it.
#[derive(Clone)]
struct Bench {
    what: String,
    cloud: Cloud,
    backend: Backend,
    settings: Settings,
    client: u64,
    /// Stamps begin here.
    clock: u64,
    /// How many are many: a stand-in for SQS moves some thirty messages a second.
    many: u64,
}

/// Changes that were given out, each once.
type Given = BTreeMap<Stamp, Entry>;

fn add(given: &mut Given, entries: Vec<Entry>) {
    for entry in entries {
        let before = given.insert(entry.record.stamp, entry.clone());
        assert!(before.is_none_or(|before| before == entry), "{entry:?} came as something else");
    }
}

/// All changes of these transactions.
fn of<'a>(transactions: impl IntoIterator<Item = &'a Transaction>) -> Given {
    let mut given = Given::new();
    transactions.into_iter().for_each(|one| add(&mut given, one.entries.clone()));
    given
}

impl Bench {
    async fn new(what: &str, cloud: Cloud, backend: Backend, many: u64) -> Bench {
        let settings =
            Settings { lease: LEASE, backoff: Duration::from_millis(5), ..Settings::default() };
        Store::create(&cloud, &settings, backend, SHARDS).await.unwrap();
        let (client, clock) = (cloud.chance.next_u64(), cloud.clock.wall_us());
        let what = format!("{what}, {}", backend.name());
        Bench { what, cloud, backend, settings, client, clock, many }
    }

    fn has_queues(&self) -> bool {
        self.backend != Backend::S3Log
    }

    /// The log as another process sees it.
    fn process(&self) -> Arc<dyn Log> {
        log::of(self.backend, SHARDS, &self.cloud, self.settings)
    }

    /// The same; what it drains is soon there for others again.
    fn impatient(&self) -> Arc<dyn Log> {
        let settings = Settings { lease: SHORT_LEASE, ..self.settings };
        log::of(self.backend, SHARDS, &self.cloud, settings)
    }

    async fn appender(&self) -> Box<dyn Appender> {
        self.process().open(self.client, EPOCH, EPOCH).await.unwrap()
    }

    fn stream(&self) -> Stream {
        Stream { client: self.client, epoch: EPOCH }
    }

    /// One change of each of these pages. Pages of even numbers belong to one shard, others to the other.
    fn transaction(&self, number: u64, pages: &[u64]) -> Transaction {
        self.padded(number, pages, 10)
    }

    fn padded(&self, number: u64, pages: &[u64], bytes: usize) -> Transaction {
        let entry = |(n, page): (usize, &u64)| {
            let sequence = 1000 * number + n as u64;
            let stamp = Stamp { clock: self.clock + sequence, client: self.client, sequence };
            let key = Key::new(format!("{number}-{n}")).unwrap();
            let payload = Payload::new(vec![b'x'; bytes]).unwrap();
            let page = PageId(1 << 64 | u128::from(*page));
            transaction::primary(TREE, page, stamp, key, Some(payload))
        };
        let entries: Vec<Entry> = pages.iter().enumerate().map(entry).collect();
        let total = entries.len() as u32;
        Transaction { client: self.client, epoch: EPOCH, number, total, entries }
    }

    async fn append(&self, appender: &dyn Appender, one: &Transaction, is_whole: bool) {
        let outcome = appender.append(one, is_whole).await;
        assert_eq!(outcome, Append::Committed, "{}: #{}", self.what, one.number);
    }

    /// Everything that `log` gives out, acknowledged as it comes, until nothing comes any more.
    async fn take_all(&self, log: &dyn Log) -> Given {
        let mut given = Given::new();
        for _ in 0..ROUNDS_MAX {
            let forwarded = log.forward(self.client, MOST).await.unwrap().taken;
            let batches = self.drain_all(log, MOST).await;
            let mut is_over = forwarded == 0;
            for batch in batches {
                assert!(batch.poison.is_empty(), "{}: {:?}", self.what, batch.poison);
                is_over &= batch.entries.is_empty() && batch.left != Left::Backlog;
                add(&mut given, batch.entries);
                log.ack(batch.tickets).await.unwrap();
            }
            if is_over {
                return given;
            }
        }
        panic!("{}: it does not end", self.what);
    }

    /// One batch of each scope.
    async fn drain_all(&self, log: &dyn Log, most: usize) -> Vec<Batch> {
        let scopes = log.scopes(&[self.client]).await.unwrap();
        let drains = scopes.into_iter().map(async |scope| {
            let batch = log.drain(scope, most).await.unwrap();
            for entry in &batch.entries {
                match scope {
                    Scope::Stream(stream) => assert_eq!(stream.client, entry.record.stamp.client),
                    scope => assert_eq!(log.scope_of(entry.page, self.stream()), scope),
                }
            }
            batch
        });
        join_all(drains).await
    }

    async fn sleep(&self, time: Duration) {
        self.cloud.clock.sleep(time).await;
    }
}

/// What is committed comes to another process: all of it, as it was, and nothing else.
async fn committed_is_given_out(bench: Bench) {
    let (appender, other) = (bench.appender().await, bench.process());
    let cases: [(&[u64], bool); 5] = [
        (&[0], true),
        (&[0, 2], true),
        (&[0, 1, 2, 3], true),
        (&[3], false),
        (&[0, 1, 2, 3, 2], false),
    ];
    let all: Vec<Transaction> =
        cases.iter().zip(1..).map(|((pages, _), n)| bench.transaction(n, pages)).collect();
    for (one, (_, is_whole)) in all.iter().zip(cases) {
        bench.append(&*appender, one, is_whole).await;
    }
    assert_eq!(bench.take_all(&*other).await, of(&all), "{}", bench.what);
}

/// Whoever holds changes and dies has taken nothing away.
async fn what_is_not_acknowledged_comes_back(bench: Bench) {
    let (appender, dies) = (bench.appender().await, bench.impatient());
    let all = [bench.transaction(1, &[0, 1]), bench.transaction(2, &[0])];
    bench.append(&*appender, &all[0], true).await;
    bench.append(&*appender, &all[1], true).await;
    dies.forward(bench.client, MOST).await.unwrap();
    let held: usize =
        bench.drain_all(&*dies, MOST).await.iter().map(|batch| batch.entries.len()).sum();
    // Of an ordered queue it was given what is first in each group.
    assert!(held >= 2, "{}: {held}", bench.what);
    if bench.has_queues() {
        let waiting = [Scope::Shard(0), Scope::Shard(1)].map(async |scope| {
            let waiting = dies.waiting(scope).await.unwrap();
            u64::from(waiting > 0)
        });
        let waiting: u64 = join_all(waiting).await.into_iter().sum();
        assert_eq!(waiting, 2, "{}: hidden is there", bench.what);
    }
    bench.sleep(SHORT_LEASE + Duration::from_secs(1)).await;
    assert_eq!(bench.take_all(&*bench.process()).await, of(&all), "{}", bench.what);
}

/// What was acknowledged comes to nobody again; but the newest object of a stream may, to a process that
/// never saw it.
async fn what_is_acknowledged_is_gone(bench: Bench) {
    let (appender, first) = (bench.appender().await, bench.process());
    let all = [1, 2, 3].map(|n| bench.transaction(n, &[0, 1, 2]));
    for one in &all {
        bench.append(&*appender, one, true).await;
    }
    assert_eq!(bench.take_all(&*first).await, of(&all), "{}", bench.what);
    assert_eq!(bench.take_all(&*first).await, Given::new(), "{}", bench.what);
    let newest = if bench.has_queues() { Given::new() } else { of(&all[2..]) };
    assert_eq!(bench.take_all(&*bench.process()).await, newest, "{}", bench.what);
}

/// A commit that is tried again is one commit.
async fn appended_twice_is_there_once(bench: Bench) {
    let appender = bench.appender().await;
    let all = [bench.transaction(1, &[0, 1]), bench.transaction(2, &[1])];
    for (one, is_whole) in all.iter().zip([true, false]) {
        bench.append(&*appender, one, is_whole).await;
        bench.append(&*appender, one, is_whole).await;
    }
    assert_eq!(bench.take_all(&*bench.process()).await, of(&all), "{}", bench.what);
}

/// What is too large for a message is as whole as what is not.
async fn large_is_as_whole(bench: Bench) {
    let appender = bench.appender().await;
    let pages: Vec<u64> = (0..45).map(|n| n % 4).collect();
    let all = [bench.padded(1, &pages, 30_000), bench.padded(2, &pages, 30_000)];
    bench.append(&*appender, &all[0], true).await;
    bench.append(&*appender, &all[1], false).await;
    assert!(bench.take_all(&*bench.process()).await == of(&all), "{}", bench.what);
    if bench.has_queues() {
        let spilled = bench.cloud.objects.list(SPILLED, None, 10).await.unwrap();
        assert_eq!(spilled.names, [""; 0], "{}: no object without a message", bench.what);
    }
}

/// Any number of commits at once; and each drain gives out what it was asked for, about.
async fn many_at_once(bench: Bench) {
    let (appender, other) = (bench.appender().await, bench.process());
    let all: Vec<Transaction> = (1..=bench.many).map(|n| bench.transaction(n, &[0])).collect();
    join_all(all.iter().map(|one| bench.append(&*appender, one, true))).await;
    let (mut given, mut batches, most) = (Given::new(), 0, 4);
    loop {
        let batches_here = bench.drain_all(&*other, most).await;
        let (mut count, mut has_more) = (0, false);
        for batch in batches_here {
            // A message has one change here; a log object may have all.
            let atom = if bench.has_queues() { 1 } else { bench.many as usize };
            assert!(batch.entries.len() < most + atom, "{}: {}", bench.what, batch.entries.len());
            has_more |= batch.left == Left::Backlog;
            assert_eq!(
                batch.ends.last().copied().unwrap_or(0),
                batch.entries.len(),
                "{}",
                bench.what
            );
            assert!(batch.ends.is_sorted(), "{}: {:?}", bench.what, batch.ends);
            count += batch.entries.len();
            add(&mut given, batch.entries);
            other.ack(batch.tickets).await.unwrap();
        }
        batches += 1;
        assert!(batches < 10 * ROUNDS_MAX, "{}: it does not end", bench.what);
        if count == 0 && !has_more {
            break;
        }
    }
    assert_eq!(given, of(&all), "{}", bench.what);
}

/// Bytes of nobody are put aside, whole, and are in nobody's way.
async fn noise_is_in_nobodys_way(bench: Bench) {
    let (appender, other) = (bench.appender().await, bench.process());
    let one = bench.transaction(1, &[0]);
    bench.append(&*appender, &one, true).await;
    let noise = Bytes::from_static(b"not ours, and not damaged either: noise");
    let (group, id) = (Some("noise".to_owned()), Some("noise".to_owned()));
    let message = match bench.backend {
        Backend::SqsFifo => {
            ToSend { body: noise.clone(), group: group.clone(), deduplication: id.clone() }
        }
        _ => ToSend { body: noise.clone(), ..ToSend::default() },
    };
    let send = async |queue: String| {
        let sent = bench.cloud.queue.send(&queue, std::slice::from_ref(&message)).await;
        assert_eq!(sent, [Sent::Accepted], "{}: {queue}", bench.what);
    };
    if bench.has_queues() {
        // Also where whole transactions are.
        bench.append(&*appender, &bench.transaction(2, &[0, 1]), true).await;
        send("pu-0".into()).await;
        send(format!("atomic-{}", bench.client % 8)).await;
    } else {
        let name = format!("{LOG}{:016x}/{EPOCH:016x}/{:016x}", bench.client, 1);
        bench.cloud.objects.put(&name, noise.clone(), PutIf::Absent).await;
    }
    let (mut given, mut poison) = (Given::new(), Vec::new());
    for _ in 0..4 {
        other.forward(bench.client, MOST).await.unwrap();
        for batch in bench.drain_all(&*other, MOST).await {
            add(&mut given, batch.entries);
            poison.extend(batch.poison.into_iter().map(|poison| poison.bytes));
            other.ack(batch.tickets).await.unwrap();
        }
    }
    assert_eq!(poison, std::slice::from_ref(&noise), "{}: once", bench.what);
    if bench.has_queues() {
        let all = [one, bench.transaction(2, &[0, 1])];
        assert_eq!(given, of(&all), "{}", bench.what);
        let aside = bench.cloud.objects.list(QUARANTINE, None, 10).await.unwrap().names;
        assert_eq!(aside.len(), 1, "{}: {aside:?}", bench.what);
        let Ok(Get::Found { bytes, .. }) = bench.cloud.objects.get(&aside[0], None).await else {
            panic!("{}: {aside:?} is not there", bench.what);
        };
        assert_eq!(bytes, noise, "{}", bench.what);
    } else {
        assert_eq!(given, of([&one]), "{}", bench.what);
    }
}

/// The next life begins, and the one before goes on for a while. What it is told is true.
async fn a_life_that_is_over(bench: Bench) {
    let (before, other) = (bench.appender().await, bench.process());
    let [first, late, next] = [1, 2, 3].map(|n| bench.transaction(n, &[0, 1]));
    bench.append(&*before, &first, true).await;
    let after = other.open(bench.client, EPOCH + 1, EPOCH).await.unwrap();
    let outcome = before.append(&late, true).await;
    // Queues cannot refuse what it sends. It is whole, and of its time.
    let expected = if bench.has_queues() { Append::Committed } else { Append::Fenced };
    assert_eq!(outcome, expected, "{}", bench.what);
    assert_eq!(before.append(&late, true).await, expected, "{}: and stays so", bench.what);
    let next = Transaction { epoch: EPOCH + 1, ..next };
    bench.append(&*after, &next, true).await;
    let mut expected = of([&first, &next]);
    if bench.has_queues() {
        expected.extend(of([&late]));
    }
    assert_eq!(bench.take_all(&*bench.process()).await, expected, "{}", bench.what);
}

/// After [`Log::settle`] nothing as old is given out, to nobody.
async fn what_is_settled_is_never_seen_again(bench: Bench) {
    let (appender, other) = (bench.appender().await, bench.process());
    let all = [1, 2].map(|n| bench.transaction(n, &[0, 1]));
    for one in &all {
        bench.append(&*appender, one, true).await;
    }
    let end_us = bench.clock + 3000;
    if !bench.has_queues() {
        // It has not seen the newest applied.
        assert!(!bench.process().settle(end_us).await.unwrap(), "{}", bench.what);
    }
    assert_eq!(bench.take_all(&*other).await, of(&all), "{}", bench.what);
    assert!(other.settle(end_us).await.unwrap(), "{}", bench.what);
    assert_eq!(bench.take_all(&*bench.process()).await, Given::new(), "{}", bench.what);
    // Whoever appended goes on, and learns what became of what it had.
    let later = bench.transaction(9, &[2, 3]);
    bench.append(&*appender, &later, true).await;
    assert_eq!(bench.take_all(&*bench.process()).await, of([&later]), "{}", bench.what);
}

/// What a retired client left goes, once this process has seen it applied; not before.
async fn what_is_retired_is_gone(bench: Bench) {
    let (appender, other) = (bench.appender().await, bench.process());
    let one = bench.transaction(1, &[0]);
    bench.append(&*appender, &one, true).await;
    assert!(!bench.process().retire_stream(bench.stream()).await.unwrap(), "{}", bench.what);
    assert_eq!(bench.process().retire().await.unwrap(), 0, "{}: not seen applied", bench.what);
    assert_eq!(bench.take_all(&*other).await, of([&one]), "{}", bench.what);
    let gone = other.retire().await.unwrap();
    assert_eq!(gone, u64::from(!bench.has_queues()), "{}", bench.what);
    let left = bench.cloud.objects.list(LOG, None, 10).await.unwrap().names;
    assert_eq!(left, [""; 0], "{}", bench.what);
    assert_eq!(bench.take_all(&*bench.process()).await, Given::new(), "{}", bench.what);
}

/// What cannot be brought to its pages is not in the way of what lies behind it, and is not lost.
async fn what_is_passed_over_is_kept(bench: Bench) {
    let (appender, other) = (bench.appender().await, bench.impatient());
    let all = [1, 2].map(|n| bench.transaction(n, &[0]));
    for one in &all {
        bench.append(&*appender, one, true).await;
    }
    let scope = match bench.backend {
        Backend::S3Log => Scope::Stream(bench.stream()),
        _ => Scope::Shard(0),
    };
    let held = other.drain(scope, 1).await.unwrap();
    assert_eq!(held.entries.len(), 1, "{}", bench.what);
    other.pass_over(&held.tickets);
    if bench.backend != Backend::SqsFifo {
        // The group of an ordered queue waits for its lease.
        let behind = other.drain(scope, 1).await.unwrap();
        assert_eq!(behind.entries.len(), 1, "{}", bench.what);
        assert_ne!(behind.entries, held.entries, "{}: what lies behind it", bench.what);
    }
    bench.sleep(SHORT_LEASE + Duration::from_secs(1)).await;
    assert_eq!(bench.take_all(&*other).await, of(&all), "{}", bench.what);
}

/// Looking takes nothing, and shows what there is.
async fn looking_takes_nothing(bench: Bench) {
    let (appender, other) = (bench.appender().await, bench.process());
    let all = [bench.transaction(1, &[0, 1]), bench.transaction(2, &[1])];
    for one in &all {
        bench.append(&*appender, one, true).await;
    }
    for _ in 0..2 {
        let (mut entries, mut messages) = (Given::new(), 0);
        for pending in other.pending(&[bench.client], None).await.unwrap().found {
            match pending {
                Pending::Records(some) => add(&mut entries, some),
                Pending::Messages(count) => messages += count,
                Pending::Damaged(what) => panic!("{}: {what}", bench.what),
            }
        }
        match bench.has_queues() {
            true => assert_eq!(messages, 2, "{}", bench.what),
            false => assert_eq!(entries, of(&all), "{}", bench.what),
        }
    }
    assert_eq!(bench.take_all(&*other).await, of(&all), "{}", bench.what);
    if bench.has_queues() {
        let left = other.pending(&[bench.client], None).await.unwrap();
        assert!(left.found.is_empty() && left.next.is_none(), "{}", bench.what);
    }
}

/// What a look shows of the log.
async fn looked(log: &dyn Log, most: usize) -> Result<Given, StoreError> {
    let mut given = Given::new();
    for some in log.look(most).await? {
        add(&mut given, some.to_vec());
    }
    Ok(given)
}

/// A look shows what is committed, whole, whoever looks; it takes and hides nothing, and makes no queue.
async fn a_fresh_look(bench: Bench) {
    let (other, most) = (bench.process(), 1 << 20);
    assert_eq!(looked(&*other, most).await, Ok(Given::new()), "{}", bench.what);
    if bench.has_queues() {
        let sent = bench.cloud.queue.send("pu-0", &[ToSend::default()]).await;
        let is_nowhere = matches!(&sent[..], [Sent::Failed(_)]);
        assert!(is_nowhere, "{}: a look made a queue", bench.what);
    }
    let appender = bench.appender().await;
    // To one shard, to the queue of whole transactions, part by part, and in an object of its own.
    let pages: Vec<u64> = (0..30).map(|n| n % 4).collect();
    let all = [
        bench.transaction(1, &[0]),
        bench.transaction(2, &[0, 1]),
        bench.transaction(3, &[0, 1]),
        bench.padded(4, &pages, 30_000),
    ];
    for (one, is_whole) in all.iter().zip([true, true, false, true]) {
        bench.append(&*appender, one, is_whole).await;
    }
    // No queue has more than what one receive gives.
    assert_eq!(looked(&*other, most).await, Ok(of(&all)), "{}", bench.what);
    let too_much = looked(&*bench.process(), 100).await;
    assert!(matches!(too_much, Err(StoreError::Backlog { .. })), "{}: {too_much:?}", bench.what);
    let seen = looked(&*other, most).await.unwrap();
    // moto (5.2) breaks the order of a group: once its messages were received with a visibility of zero it
    // gives the last one alone, before those that were sent before that, until it is deleted. No service
    // may, and nothing that waits there is lost by it.
    let is_moto = bench.what.starts_with("S3 and SQS") && bench.backend == Backend::SqsFifo;
    if !(is_moto && seen == of(&all[2..])) {
        assert_eq!(seen, of(&all), "{}", bench.what);
    }
    // Nothing was taken, nothing is hidden.
    assert_eq!(bench.take_all(&*bench.process()).await, of(&all), "{}", bench.what);
    let left = looked(&*bench.process(), most).await.unwrap();
    // Whoever comes new finds the newest object of the stream again.
    let newest = if bench.has_queues() { Given::new() } else { of(&all[3..]) };
    assert_eq!(left, newest, "{}", bench.what);
}

/// Of more than one receive gives a look promises less where queues are: of an ordered one what is first.
async fn a_fresh_look_at_many(bench: Bench) {
    let (appender, first) = (bench.appender().await, BATCH_MAX);
    let all: Vec<Transaction> =
        (1..=first as u64 + 2).map(|n| bench.transaction(n, &[0])).collect();
    for one in &all {
        bench.append(&*appender, one, true).await;
    }
    let seen = looked(&*bench.process(), 1 << 20).await.unwrap();
    let (ours, what) = (of(&all), &bench.what);
    assert!(seen.iter().all(|(stamp, entry)| ours.get(stamp) == Some(entry)), "{what}");
    let is_there = |(stamp, _): (&Stamp, &Entry)| seen.contains_key(stamp);
    match bench.backend {
        Backend::S3Log => assert_eq!(seen, ours, "{what}"),
        Backend::SqsStandard => assert!(seen.len() >= first, "{what}: {}", seen.len()),
        Backend::SqsFifo => assert!(of(&all[..first]).iter().all(is_there), "{what}: {seen:?}"),
    }
    assert_eq!(bench.take_all(&*bench.process()).await, ours, "{what}");
}

type Check = fn(Bench) -> BoxFuture<'static, ()>;

const CHECKS: [Check; 14] = [
    |bench| committed_is_given_out(bench).boxed(),
    |bench| what_is_not_acknowledged_comes_back(bench).boxed(),
    |bench| what_is_acknowledged_is_gone(bench).boxed(),
    |bench| appended_twice_is_there_once(bench).boxed(),
    |bench| large_is_as_whole(bench).boxed(),
    |bench| many_at_once(bench).boxed(),
    |bench| noise_is_in_nobodys_way(bench).boxed(),
    |bench| a_life_that_is_over(bench).boxed(),
    |bench| what_is_settled_is_never_seen_again(bench).boxed(),
    |bench| what_is_retired_is_gone(bench).boxed(),
    |bench| what_is_passed_over_is_kept(bench).boxed(),
    |bench| looking_takes_nothing(bench).boxed(),
    |bench| a_fresh_look(bench).boxed(),
    |bench| a_fresh_look_at_many(bench).boxed(),
];

/// Every check, each on services that `cloud` gives for its number, at the same time: most of it is
/// waiting for messages that do not come.
async fn conform(what: &str, backends: &[Backend], many: u64, cloud: impl Fn(String) -> Cloud) {
    let mut checks = tokio::task::JoinSet::new();
    for &backend in backends {
        for (n, check) in CHECKS.into_iter().enumerate() {
            let place = cloud(format!("{}-{n}", backend.name()));
            let what = what.to_owned();
            checks.spawn(async move { check(Bench::new(&what, place, backend, many).await).await });
        }
    }
    while let Some(outcome) = checks.join_next().await {
        if let Err(error) = outcome {
            std::panic::resume_unwind(error.into_panic());
        }
    }
}

/// Runs one process to its end in virtual time.
fn in_virtual_time(world: &World, task: impl Future<Output = ()> + Send + 'static) {
    let is_done: Arc<Mutex<bool>> = Arc::default();
    let done = is_done.clone();
    world.make_safe(Process(0));
    world.time.spawn(Process(0), async move {
        task.await;
        *done.lock().unwrap() = true;
    });
    Executor::new(world.time.clone(), 1).run(u64::MAX, 10_000_000);
    assert!(*is_done.lock().unwrap(), "it does not end");
}

/// Each client that was killed leaves the newest object of its stream, for weeks: to whoever comes new
/// these are as many reads, and no reason to refuse.
#[tokio::test]
async fn a_look_reads_what_many_dead_clients_left() {
    let cloud = embedded::memory(Arc::new(Memory::new()));
    let bench = Bench::new("memory", cloud, Backend::S3Log, 0).await;
    let (mut all, log) = (Given::new(), bench.process());
    for n in 0..1100 {
        let bench = Bench { client: n + 1, ..bench.clone() };
        let one = bench.transaction(n, &[0]);
        let appender = log.open(bench.client, EPOCH, EPOCH).await.unwrap();
        bench.append(&*appender, &one, true).await;
        add(&mut all, one.entries);
    }
    assert_eq!(bench.take_all(&*log).await, all);
    assert_eq!(looked(&*log, 1 << 20).await, Ok(Given::new()), "it has seen them applied");
    assert_eq!(looked(&*bench.process(), 1 << 20).await, Ok(all));
}

#[test]
fn logs_of_the_model() {
    for backend in Backend::ALL {
        for (n, check) in CHECKS.into_iter().enumerate() {
            let world = World::new(n as u64, Faults::NONE, Latency::ROUGH);
            let cloud = world.cloud(Process(0));
            in_virtual_time(&world, async move {
                check(Bench::new("the model", cloud, backend, 40).await).await;
            });
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_in_memory_and_in_a_directory() {
    let memory = |_| embedded::memory(Arc::new(Memory::new()));
    let folder = tempfile::tempdir().unwrap();
    let place = |name: String| embedded::directory(&folder.path().join(name)).unwrap();
    tokio::join!(
        conform("memory", &Backend::ALL, 40, memory),
        conform("a directory", &Backend::ALL, 20, place)
    );
}

#[cfg(feature = "encryption")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_that_are_sealed() {
    use crate::cloud::sealed::{Keyring, seal};
    let keys = Keyring::new(&[(1, [1; 32])]).unwrap();
    let sealed = |_| seal(embedded::memory(Arc::new(Memory::new())), &keys, 5);
    conform("sealed", &Backend::ALL, 20, sealed).await;
}

/// What the test servers tell by the environment. A test without its servers is left out, and says
/// so; where the environment says CI it fails.
#[cfg(feature = "aws")]
fn variable(name: &str, what: &str) -> Option<String> {
    if let Some(value) = env::var(name).ok().filter(|value| !value.is_empty()) {
        return Some(value);
    }
    assert!(env::var("CI").as_deref() != Ok("true"), "CI needs {name} for {what}");
    println!("left out: {what}: {name} is not set; start the test servers first");
    None
}

#[cfg(feature = "aws")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_on_s3_and_sqs() {
    use sources::aws::{Aws, AwsOptions};
    let Some(s3) = variable("TEST_S3_ENDPOINT", "logs on S3") else { return };
    let sqs = variable("TEST_SQS_ENDPOINT", "logs on SQS");
    let bucket = format!("s3db-logs-{}", std::process::id());
    let aws = Aws::new(AwsOptions { endpoint: Some(s3.clone()), ..AwsOptions::default() });
    let client = aws.s3().await.expect("a client");
    client.create_bucket().bucket(&bucket).send().await.expect("a bucket");
    let place = |name: String| {
        let sqs = sqs.as_ref().map(|sqs| format!("&sqs={sqs}")).unwrap_or_default();
        let url = format!("s3://{bucket}/{name}?endpoint={s3}{sqs}");
        url.parse::<Address>().unwrap().cloud().unwrap()
    };
    let backends: Vec<Backend> =
        Backend::ALL.into_iter().filter(|it| *it == Backend::S3Log || sqs.is_some()).collect();
    conform("S3 and SQS", &backends, 8, place).await;
}

/// What a transaction of [`under_faults`] was told.
#[derive(Default)]
struct Told {
    all: Vec<(Transaction, bool, Append)>,
    /// What was given out and acknowledged.
    given: Given,
}

/// One appends, two drain and die again and again, and everything goes wrong that does not stop a
/// process. Whatever the appender is told is true.
fn under_faults(backend: Backend, seed: u64) {
    let faults = Faults { crash_before: 0.0, crash_after: 0.0, poisoned: 0.0, ..Faults::ALL };
    let world = World::new(seed, Faults::NONE, Latency::ROUGH);
    let bench: Arc<Mutex<Option<Bench>>> = Arc::default();
    {
        let (bench, cloud) = (bench.clone(), world.cloud(Process(0)));
        in_virtual_time(&world, async move {
            *bench.lock().unwrap() = Some(Bench::new("faults", cloud, backend, 0).await);
        });
    }
    let bench = bench.lock().unwrap().take().unwrap();
    let bench = Bench {
        settings: Settings { attempts_max: 5, lease: Duration::from_secs(5), ..bench.settings },
        ..bench
    };
    world.set_faults(faults);
    let told: Arc<Mutex<Told>> = Arc::default();
    {
        let bench = Bench { cloud: world.cloud(Process(1)), ..bench.clone() };
        let (world, told) = (world.clone(), told.clone());
        world.clone().time.spawn(Process(1), async move {
            let Ok(appender) = bench.process().open(bench.client, EPOCH, EPOCH).await else {
                return;
            };
            for number in 1..=10 {
                let pages: Vec<u64> = (0..1 + world.below(4)).map(|_| world.below(4)).collect();
                let one = bench.transaction(number, &pages);
                let is_whole = world.below(3) > 0;
                let mut outcome = appender.append(&one, is_whole).await;
                for _ in 0..world.below(3) {
                    if !matches!(outcome, Append::Unknown(_)) {
                        break;
                    }
                    // One that was unclear is never again said not to have happened.
                    outcome = match appender.append(&one, is_whole).await {
                        Append::Failed(fault) => Append::Unknown(fault),
                        again => again,
                    };
                }
                told.lock().unwrap().all.push((one, is_whole, outcome));
                world.time.sleep(world.below(2_000_000)).await;
            }
        });
    }
    for process in [Process(2), Process(3)] {
        let bench = Bench { cloud: world.cloud(process), ..bench.clone() };
        let (world, told) = (world.clone(), told.clone());
        world.clone().time.spawn(process, async move {
            for _ in 0..6 {
                // A life that remembers nothing of the one before.
                let log = bench.process();
                for _ in 0..3 {
                    world.time.sleep(world.below(4_000_000)).await;
                    let _ = log.forward(bench.client, 20).await;
                    for scope in log.scopes(&[bench.client]).await.unwrap_or_default() {
                        let Ok(batch) = log.drain(scope, 20).await else { continue };
                        if world.below(3) == 0 {
                            // Dies with what it holds.
                            continue;
                        }
                        add(&mut told.lock().unwrap().given, batch.entries);
                        let _ = log.ack(batch.tickets).await;
                    }
                }
            }
        });
    }
    Executor::new(world.time.clone(), seed).run(u64::MAX, 10_000_000);
    world.set_faults(Faults::NONE);
    {
        let (bench, told) = (Bench { cloud: world.cloud(Process(0)), ..bench }, told.clone());
        in_virtual_time(&world, async move {
            bench.sleep(Duration::from_secs(100)).await;
            let rest = bench.take_all(&*bench.process()).await;
            told.lock().unwrap().given.extend(rest);
        });
    }
    let Told { all, given } = std::mem::take(&mut *told.lock().unwrap());
    let mut tried: BTreeSet<Stamp> = BTreeSet::new();
    let name = |what: &str| format!("{} seed {seed}: {what}", backend.name());
    for (one, is_whole, outcome) in all {
        let number = one.number;
        let there = one.entries.iter().filter(|it| given.contains_key(&it.record.stamp)).count();
        tried.extend(one.entries.iter().map(|entry| entry.record.stamp));
        let (none, whole) = (there == 0, there == one.entries.len());
        let is_true = match outcome {
            Append::Committed => whole,
            Append::Failed(_) | Append::Fenced if is_whole => none,
            Append::Unknown(_) if is_whole => none || whole,
            _ => true,
        };
        let of = one.entries.len();
        assert!(is_true, "{}", name(&format!("#{number} {outcome:?}, {there} of {of} are there")));
    }
    let stray = given.keys().find(|stamp| !tried.contains(stamp));
    assert_eq!(stray, None, "{}", name("nobody appended it"));
}

#[test]
fn logs_of_the_model_under_faults() {
    for backend in Backend::ALL {
        (0..60).for_each(|seed| under_faults(backend, seed));
    }
}
