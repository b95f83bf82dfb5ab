//! Snapshot and serializable transactions, on services that behave, and on some that do not.

use std::{ops::Bound, sync::Arc, time::Duration};

use bytes::Bytes;
use s3db::{
    AbortCause, Backend, Change, Collection, Db, Entry, Isolation, Level, LogRecord,
    LoggedTransaction, Numbers, Options, Payload, SearchBy, Session, Settings, Stamp, Store,
    StoreError, Transaction,
    cloud::{
        Cloud, Get, Put, PutIf, ToSend,
        embedded::{self},
    },
};

use crate::{
    meddle::{
        Fate::{LostAnswer, LostRequest, Stuck},
        Meddler,
    },
    mishaps::{key, memory, settings},
    printed::open,
};

const NUMBERS: &str = "sequencer/numbers";

fn payload(text: &str) -> Payload {
    Payload::new(text).unwrap()
}

/// A client of a database in `cloud`, without work in the background.
async fn client(cloud: &Cloud, settings: Settings) -> Db {
    let options = Options { settings, has_worker: false, ..Options::default() };
    Db::over(cloud.clone(), &options).await.unwrap()
}

async fn made(cloud: &Cloud, backend: Backend, isolation: Isolation) -> (Db, Collection) {
    Store::create(cloud, &settings(), backend, 1).await.unwrap();
    let db = client(cloud, settings()).await;
    let of = db.create_isolated_collection("accounts", isolation).await.unwrap();
    (db, of)
}

async fn put(db: &Db, of: &Collection, name: &str, text: &str) {
    let mut txn = db.begin_for(of);
    txn.put(of, &key(name), payload(text)).unwrap();
    txn.commit().await.unwrap();
}

async fn read(txn: &Transaction<'_>, of: &Collection, name: &str) -> Option<String> {
    txn.read(of, &key(name)).await.unwrap().map(|payload| payload.to_string())
}

async fn all(txn: &Transaction<'_>, of: &Collection) -> Vec<(String, String)> {
    let mut records = txn.scan(of);
    let mut all = Vec::new();
    while let Some(record) = records.next().await.unwrap() {
        all.push((record.key.to_string(), record.payload.to_string()));
    }
    all
}

fn is_aborted<T: std::fmt::Debug>(outcome: Result<T, StoreError>) -> AbortCause {
    match outcome {
        Err(StoreError::Aborted { why }) => why,
        other => panic!("not aborted: {other:?}"),
    }
}

/// What the levels promise, whatever log the database has, in memory and in a directory.
async fn promises(cloud: &Cloud, backend: Backend, isolation: Isolation) {
    let (a, of) = made(cloud, backend, isolation).await;
    let b = client(cloud, settings()).await;
    for name in ["x", "y"] {
        put(&a, &of, name, "1").await;
    }
    // A snapshot stays, and sees its own writes.
    let mut old = a.begin_for(&of);
    assert_eq!(read(&old, &of, "x").await.as_deref(), Some("1"));
    put(&b, &of, "x", "2").await;
    let mut gone = b.begin_for(&of);
    gone.delete(&of, &key("y")).unwrap();
    gone.commit().await.unwrap();
    b.checkpoint().await.unwrap();
    assert_eq!(read(&old, &of, "x").await.as_deref(), Some("1"));
    assert_eq!(read(&old, &of, "y").await.as_deref(), Some("1"));
    old.put(&of, &key("z"), payload("own")).unwrap();
    old.delete(&of, &key("y")).unwrap();
    let expected = [("x", "1"), ("z", "own")].map(|(a, b)| (a.to_owned(), b.to_owned()));
    assert_eq!(all(&old, &of).await, expected);
    // It read what another one wrote, and writes what another one wrote: an update would be lost.
    let why = is_aborted(old.commit().await);
    match isolation {
        Isolation::Snapshot => assert!(matches!(why, AbortCause::Written { .. }), "{why:?}"),
        _ => assert!(matches!(why, AbortCause::Read { .. }), "{why:?}"),
    }
    // Whoever begins now sees all of what was committed, and nothing else.
    for db in [&a, &b] {
        assert_eq!(all(&db.begin_for(&of), &of).await, [("x".to_owned(), "2".to_owned())]);
    }
    // Write skew: each reads what the other writes.
    put(&a, &of, "y", "2").await;
    let (mut one, mut other) = (a.begin_for(&of), b.begin_for(&of));
    for txn in [&one, &other] {
        assert_eq!(all(txn, &of).await.len(), 2);
    }
    one.put(&of, &key("x"), payload("0")).unwrap();
    other.put(&of, &key("y"), payload("0")).unwrap();
    one.commit().await.unwrap();
    let outcome = other.commit().await;
    match isolation {
        Isolation::Snapshot => drop(outcome.unwrap()),
        _ => assert!(matches!(is_aborted(outcome), AbortCause::Read { .. })),
    }
    // A phantom: one counts a range, the other puts something into it.
    let (mut counts, mut adds) = (a.begin_for(&of), b.begin_for(&of));
    let (from, to) = (key("n"), key("o"));
    let mut range = counts.range(&of, Bound::Included(&from), Bound::Excluded(&to));
    assert!(range.next().await.unwrap().is_none());
    drop(range);
    counts.put(&of, &key("count"), payload("0")).unwrap();
    adds.put(&of, &key("new"), payload("1")).unwrap();
    adds.commit().await.unwrap();
    match isolation {
        Isolation::Snapshot => drop(counts.commit().await.unwrap()),
        _ => assert!(matches!(is_aborted(counts.commit().await), AbortCause::Read { .. })),
    }
    // One outside of it is in nobody's way.
    let (mut counts, mut adds) = (a.begin_for(&of), b.begin_for(&of));
    let mut range = counts.range(&of, Bound::Included(&from), Bound::Excluded(&to));
    assert!(range.next().await.unwrap().is_some());
    drop(range);
    counts.put(&of, &key("count"), payload("1")).unwrap();
    adds.put(&of, &key("other"), payload("1")).unwrap();
    adds.commit().await.unwrap();
    counts.commit().await.unwrap();
    let before = all(&b.begin_for(&of), &of).await;
    a.close().await.unwrap();
    b.close().await.unwrap();
    let again = client(cloud, settings()).await;
    assert_eq!(all(&again.begin_for(&of), &of).await, before);
    let verified = again.store().verify(|_, _| {}).await.unwrap();
    assert_eq!((verified.problem_count, verified.waiting), (0, 0), "{verified:?}");
}

#[tokio::test]
async fn levels_keep_what_they_promise() {
    for backend in Backend::ALL {
        for isolation in Isolation::ALL {
            promises(&memory(), backend, isolation).await;
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let cloud = embedded::directory(&folder.path().join("db")).unwrap();
    promises(&cloud, Backend::S3Log, Isolation::Serializable).await;
}

/// What a collection was created for is what it takes.
#[tokio::test]
async fn other_levels_are_refused() {
    let cloud = memory();
    let (db, of) = made(&cloud, Backend::S3Log, Isolation::Serializable).await;
    let plain = db.create_collection("plain").await.unwrap();
    let refused = |outcome: Result<(), StoreError>, what: &str| {
        assert!(matches!(outcome, Err(StoreError::Invalid(_))), "{what}: {outcome:?}");
    };
    for level in Level::ALL {
        let mut txn = db.begin_at(level);
        let mut outcome = txn.put(&of, &key("k"), payload("v"));
        if outcome.is_ok() {
            outcome = txn.commit().await.map(drop);
        }
        match level {
            Level::Serializable => outcome.unwrap(),
            _ => refused(outcome, level.name()),
        }
        let read = db.begin_at(level).read(&of, &key("k")).await.map(drop);
        let scan = db.begin_at(level).scan(&of).next().await.map(drop);
        for (outcome, what) in [(read, "read"), (scan, "scan")] {
            match level {
                Level::Serializable => outcome.unwrap(),
                _ => refused(outcome, what),
            }
        }
        let mut txn = db.begin_at(level);
        let outcome = txn.put(&plain, &key("k"), payload("v"));
        assert_eq!(outcome.is_ok(), level.isolation().is_none(), "{}", level.name());
    }
    db.create_index(&of, "all", &SearchBy::Payload).await.unwrap();
    for level in Level::ALL {
        let txn = db.begin_at(level);
        let probe = match txn.probe(&of, "all", &key("v")).await {
            Ok(mut found) => found.next().await.map(drop),
            Err(error) => Err(error),
        };
        match level {
            Level::Serializable => probe.unwrap(),
            _ => refused(probe, "probe"),
        }
    }
    refused(db.store().finish_index("accounts", "all").await.map(drop), "by hand");
    let again = db.create_collection("accounts").await;
    assert!(matches!(again, Err(StoreError::Exists(_))), "{again:?}");
}

/// That a collection was without isolation was remembered for the life of a process. Since one can be dropped and
/// made again with it, a sequencer that was lost was taken for one that nobody needs, and planted anew: its
/// numbers came again.
#[tokio::test]
async fn a_collection_that_was_plain_may_need_the_sequencer() {
    let cloud = memory();
    let ttl = Duration::from_millis(50);
    let settings = Settings { ttl, ..settings() };
    Store::create(&cloud, &settings, Backend::S3Log, 1).await.unwrap();
    let (a, b) = (client(&cloud, settings).await, client(&cloud, settings).await);
    a.create_collection("x").await.unwrap();
    a.store().sweep().await.unwrap();
    b.store().drop_collection("x").await.unwrap();
    let x = b.create_isolated_collection("x", Isolation::Serializable).await.unwrap();
    put(&b, &x, "k", "1").await;
    cloud.objects.delete(NUMBERS, None).await;
    let made = a.store().create_collection_for("y", Some(Isolation::Snapshot)).await;
    assert!(matches!(&made, Err(StoreError::Lost { object }) if object == NUMBERS), "{made:?}");
    let state = a.store().status().await.unwrap().sequencer.unwrap();
    assert!(state.problem.is_some(), "{state:?}");
    // A sweep goes by what was seen less long ago than that.
    tokio::time::sleep(ttl).await;
    let swept = a.store().sweep().await;
    assert!(matches!(&swept, Err(StoreError::Lost { object }) if object == NUMBERS), "{swept:?}");
    assert!(matches!(cloud.objects.get(NUMBERS, None).await, Ok(Get::Absent)));
}

/// A record that came by the log would be one without a number.
#[tokio::test]
async fn what_comes_by_the_log_is_put_aside() {
    let cloud = memory();
    let (db, of) = made(&cloud, Backend::SqsStandard, Isolation::Snapshot).await;
    let plain = db.create_collection("plain").await.unwrap();
    put(&db, &of, "k", "sequenced").await;
    // The queues are made by who commits.
    put(&db, &plain, "k", "logged").await;
    db.checkpoint().await.unwrap();
    let entry = |tree, text| Entry {
        tree,
        page: tree,
        is_secondary: false,
        record: LogRecord {
            stamp: Stamp { clock: 1_763_690_400_000_000, client: 9, sequence: 1 },
            change: Change::Update(key("k2"), payload(text)),
        },
    };
    let entries = vec![entry(of.root, "smuggled"), entry(plain.root, "fine")];
    let transaction = LoggedTransaction { client: 9, epoch: 1, number: 1, total: 2, entries };
    let body = transaction.encode();
    let message = ToSend { body, group: None, deduplication: None };
    cloud.queue.send("pu-0", &[message]).await;
    let done = db.store().sweep().await.unwrap();
    assert_eq!(done.poison, 1, "{done:?}");
    assert_eq!(all(&db.begin_for(&of), &of).await, [("k".to_owned(), "sequenced".to_owned())]);
    assert_eq!(read(&db.begin(), &plain, "k2").await.as_deref(), Some("fine"));
    assert_eq!(db.store().status().await.unwrap().quarantined, 1);
}

async fn object(cloud: &Cloud, name: &str) -> (Bytes, s3db::cloud::ETag) {
    match cloud.objects.get(name, None).await.unwrap() {
        Get::Found { bytes, etag, .. } => (bytes, etag),
        other => panic!("{name}: {other:?}"),
    }
}

/// Two collections, the root of the first one damaged after a record came there: its object's name, what it was
/// and the tag of what it is.
async fn damaged(
    cloud: &Cloud,
    settings: Settings,
) -> (Db, [Collection; 2], (String, Bytes, s3db::cloud::ETag)) {
    Store::create(cloud, &settings, Backend::S3Log, 1).await.unwrap();
    let db = client(cloud, settings).await;
    let bad = db.create_isolated_collection("bad", Isolation::Snapshot).await.unwrap();
    let good = db.create_isolated_collection("good", Isolation::Snapshot).await.unwrap();
    put(&db, &bad, "k", "1").await;
    db.checkpoint().await.unwrap();
    let name = format!("page/{}", bad.root);
    let (sound, etag) = object(cloud, &name).await;
    let noise = Bytes::from_static(b"s3dP is what is left");
    let Put::Stored(etag) = cloud.objects.put(&name, noise, PutIf::Matches(etag)).await else {
        panic!("not put");
    };
    (db, [bad, good], (name, sound, etag))
}

/// What waited for one damaged leaf filled the window, and then nothing was committed any more in the whole
/// database. It is put aside: the others go on, what would follow it is refused, and when the leaf is restored
/// nothing is missing, and nothing that was deleted meanwhile is back.
#[tokio::test]
async fn a_damaged_leaf_is_in_nobodys_way() {
    let cloud = memory();
    let snapshot_age = Duration::from_millis(20);
    let settings = Settings { window_commits_max: 8, snapshot_age, ..settings() };
    let (db, [bad, good], (name, sound, etag)) = damaged(&cloud, settings).await;
    let numbers = async || Numbers::decode(&object(&cloud, NUMBERS).await.0).unwrap();
    // Blind: it does not have to read the leaf. One of its records is on a leaf that is sound.
    let mut txn = db.begin_for(&bad);
    txn.put(&bad, &key("k"), payload("2")).unwrap();
    txn.put(&bad, &key("l"), payload("2")).unwrap();
    txn.put(&good, &key("both"), payload("2")).unwrap();
    txn.commit().await.unwrap();
    for n in 0..40 {
        put(&db, &good, "k", &n.to_string()).await;
        if n == 10 {
            let mut txn = db.begin_for(&good);
            txn.delete(&good, &key("both")).unwrap();
            txn.commit().await.unwrap();
        }
        if n % 4 == 3 {
            let swept = db.store().sweep().await;
            assert!(matches!(swept, Err(StoreError::Damaged { .. })), "{swept:?}");
            tokio::time::sleep(Duration::from_millis(8)).await;
        }
    }
    let now = numbers().await;
    assert_eq!((now.applied, now.aside.len(), now.aside[0].0), (now.last, 1, 2));
    let (page, _) = object(&cloud, &format!("page/{}", good.root)).await;
    assert!(!page.escape_ascii().to_string().contains("both"), "{}: it was pruned", now.horizon);
    let state = db.store().status().await.unwrap().sequencer.unwrap();
    assert_eq!((state.waiting, state.aside), (1, 1));
    // What would follow it is refused, by who does not know of it either, and says which page it is.
    for db in [&db, &client(&cloud, settings).await] {
        let mut txn = db.begin_for(&bad);
        txn.put(&bad, &key("k"), payload("3")).unwrap();
        txn.put(&good, &key("k"), payload("3")).unwrap();
        let refused = txn.commit().await.unwrap_err();
        assert!(matches!(&refused, StoreError::Damaged { object, .. } if *object == name));
        let read = db.begin_for(&bad).read(&bad, &key("k")).await;
        assert!(matches!(read, Err(StoreError::Damaged { .. })), "{read:?}");
    }
    assert_eq!(numbers().await.last, now.last);

    cloud.objects.put(&name, sound, PutIf::Matches(etag)).await;
    // What was put aside is read, though it is not on the leaf yet.
    let reader = client(&cloud, settings).await;
    for _ in 0..2 {
        let txn = reader.begin_for(&bad);
        assert_eq!(read(&txn, &bad, "k").await.as_deref(), Some("2"));
        let expected = [("k", "2"), ("l", "2")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(all(&txn, &bad).await, expected);
        assert_eq!(read(&reader.begin_for(&good), &good, "both").await, None);
    }
    put(&db, &bad, "k", "3").await;
    assert_eq!(numbers().await.aside.len(), 1);
    db.store().sweep().await.unwrap();
    assert_eq!((numbers().await.aside.len(), object(&cloud, NUMBERS).await.0[4]), (0, 1));
    for db in [reader, client(&cloud, settings).await] {
        let txn = db.begin_for(&bad);
        let expected = [("k", "3"), ("l", "2")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(all(&txn, &bad).await, expected);
        assert_eq!(read(&txn, &bad, "k").await.as_deref(), Some("3"));
        let (k, v) = ("k".to_owned(), "39".to_owned());
        assert_eq!(all(&db.begin_for(&good), &good).await, [(k, v)], "nothing deleted is back");
    }
    let verified = db.store().verify(|_, _| {}).await.unwrap();
    assert_eq!((verified.problem_count, verified.waiting), (0, 0), "{:?}", verified.problems);
}

/// There is room for half a window aside. When it is full the window fills, too, and all are told which page it is.
#[tokio::test]
async fn what_waits_for_damaged_leaves_has_an_end() {
    let cloud = memory();
    let settings = Settings { window_commits_max: 8, ..settings() };
    let (db, [bad, good], (name, sound, etag)) = damaged(&cloud, settings).await;
    for n in 0..6 {
        put(&db, &bad, &n.to_string(), "2").await;
    }
    let mut committed = 0;
    let error = loop {
        let mut txn = db.begin_for(&good);
        txn.put(&good, &key("k"), payload(&committed.to_string())).unwrap();
        match txn.commit().await {
            Ok(_) => committed += 1,
            Err(error) => break error,
        }
        assert!(committed < 20, "the window has no end");
        let swept = db.store().sweep().await;
        assert!(matches!(swept, Err(StoreError::Damaged { .. })), "{swept:?}");
        let (page, _) = object(&cloud, &format!("page/{}", good.root)).await;
        let text = page.escape_ascii().to_string();
        assert!(text.contains(&format!("\\x01{}", committed - 1)), "it is on its page");
    };
    let StoreError::Stuck { commits: 8, why } = &error else { panic!("{error:?}") };
    assert!(why.contains(&name) && why.contains("restore it from a copy"), "{why}");
    assert_eq!(committed, 6, "two of eight places are taken by what there is no room for aside");
    assert_eq!(read(&db.begin_for(&good), &good, "k").await.as_deref(), Some("5"));
    // As it was before what waits for it.
    cloud.objects.put(&name, sound, PutIf::Matches(etag)).await;
    db.store().sweep().await.unwrap();
    put(&db, &good, "k", "more").await;
    let other = client(&cloud, settings).await;
    assert_eq!(all(&other.begin_for(&bad), &bad).await.len(), 7);
}

/// Everybody who makes the first collection plants the sequencer: there is one.
#[tokio::test]
async fn many_plant_one_sequencer() {
    let cloud = memory();
    Store::create(&cloud, &settings(), Backend::S3Log, 1).await.unwrap();
    let dbs = [client(&cloud, settings()).await, client(&cloud, settings()).await];
    let level = Isolation::Snapshot;
    for round in 0..5 {
        let name = format!("c{round}");
        let (a, b) = tokio::join!(
            dbs[0].create_isolated_collection(&name, level),
            dbs[1].create_isolated_collection(&name, level),
        );
        let (a, b) = (a.unwrap(), b.unwrap());
        assert_eq!(a, b);
        put(&dbs[0], &a, "k", &name).await;
        put(&dbs[1], &a, "l", &name).await;
    }
    // It is not planted again where it was lost: numbers would come again.
    let of = dbs[0].collection("c0").await.unwrap();
    cloud.objects.delete(NUMBERS, None).await;
    let outcome = dbs[0].begin_for(&of).read(&of, &key("k")).await;
    assert!(
        matches!(&outcome, Err(StoreError::Lost { object }) if object == NUMBERS),
        "{outcome:?}"
    );
    // By nobody: a new collection does not make it anew.
    let made = client(&cloud, settings()).await.create_isolated_collection("new", level).await;
    assert!(matches!(&made, Err(StoreError::Lost { object }) if object == NUMBERS), "{made:?}");
    // Whoever looks after the database is told.
    let swept = client(&cloud, settings()).await.store().sweep().await;
    assert!(matches!(&swept, Err(StoreError::Lost { object }) if object == NUMBERS), "{swept:?}");
    let collected = client(&cloud, settings()).await.store().collect_garbage(Duration::ZERO).await;
    assert!(
        matches!(&collected, Err(StoreError::Lost { object }) if object == NUMBERS),
        "{collected:?}"
    );
    assert!(problem(&cloud).await.contains("sequencer/numbers is not there"));
}

/// What is wrong with the sequencer: all who can tell agree.
async fn problem(cloud: &Cloud) -> String {
    let store = open(cloud, settings()).await;
    let found = store.verify(|_, _| {}).await.unwrap();
    let what = found.sequencer.expect("there are such collections").problem.expect("it is lost");
    assert_eq!((found.problem_count, &found.problems[..]), (1, &[what.clone()][..]));
    assert_eq!(store.status().await.unwrap().sequencer.unwrap().problem, Some(what.clone()));
    let look = s3db::Watcher::new(store).look().await.unwrap();
    assert_eq!(look.sequencer.unwrap().problem, Some(what.clone()));
    what
}

/// A database that needs no sequencer has none, whatever else is wrong with its catalogue; and after the first
/// sweep no collection is asked again whether it needs one.
#[tokio::test]
async fn no_sequencer_is_missed_where_none_is_needed() {
    let cloud = memory();
    Store::create(&cloud, &settings(), Backend::S3Log, 1).await.unwrap();
    let db = client(&cloud, settings()).await;
    for name in ["a", "b", "c"] {
        db.create_collection(name).await.unwrap();
    }
    let gets = || db.ledger().charge(s3db::cloud::CallKind::Get).calls;
    let mut spent = Vec::new();
    for _ in 0..3 {
        let before = gets();
        db.store().sweep().await.unwrap();
        spent.push(gets() - before);
    }
    assert_eq!((spent[0] - spent[1], spent[1]), (3, spent[2]), "{spent:?}: three entries, once");
    let store = open(&cloud, settings()).await;
    assert_eq!(store.status().await.unwrap().sequencer, None);
    assert_eq!(s3db::Watcher::new(store.clone()).look().await.unwrap().sequencer, None);
    assert_eq!(store.verify(|_, _| {}).await.unwrap().sequencer, None);
    // One entry that cannot be read: others are swept, but no sequencer is planted, since it may be lost.
    cloud.objects.put("catalog/b", Bytes::from_static(b"what is left"), PutIf::Always).await;
    let db = client(&cloud, settings()).await;
    db.store().sweep().await.unwrap();
    let made = db.create_isolated_collection("new", Isolation::Snapshot).await;
    assert!(matches!(&made, Err(StoreError::Damaged { object, .. }) if object == "catalog/b"));
}

/// A sequencer that is damaged, that lacks what a large commit writes, or that is an old copy.
#[tokio::test]
async fn what_is_wrong_with_the_sequencer_is_told() {
    let cloud = memory();
    let (db, of) = made(&cloud, Backend::S3Log, Isolation::Snapshot).await;
    put(&db, &of, "k", "1").await;
    let (old, _) = object(&cloud, NUMBERS).await;
    put(&db, &of, "k", &"x".repeat(5000)).await;
    // What waits is no problem.
    let store = open(&cloud, settings()).await;
    let found = store.verify(|_, _| {}).await.unwrap();
    let state = found.sequencer.clone().unwrap();
    assert_eq!((found.problem_count, found.waiting), (0, 2), "{found:?}");
    assert_eq!((state.last, state.waiting, state.problem), (2, 2, None));
    let look = s3db::Watcher::new(store.clone()).look().await.unwrap();
    assert_eq!(look.sequencer.clone().unwrap().waiting, 2);
    assert!(look.lag_ms().is_some_and(|lag_ms| lag_ms < 60_000), "{look:?}");
    // The data of the second one is gone: for who has it in memory, and for who has not.
    let data = cloud.objects.list("sequencer/data/", None, 10).await.unwrap().names.remove(0);
    let (bytes, _) = object(&cloud, &data).await;
    cloud.objects.delete(&data, None).await;
    let fresh = open(&cloud, settings()).await;
    for store in [&store, &fresh] {
        let found = store.verify(|_, _| {}).await.unwrap();
        assert_eq!(found.problem_count, 1, "{found:?}");
        assert!(found.problems[0].starts_with(&data), "{found:?}");
    }
    cloud.objects.put(&data, bytes, PutIf::Absent).await;
    fresh.sweep().await.unwrap();
    assert_eq!(fresh.verify(|_, _| {}).await.unwrap().problem_count, 0);
    // An old copy: a number that the leaf has would come again, and what it writes be dropped.
    let (numbers, _) = object(&cloud, NUMBERS).await;
    cloud.objects.put(NUMBERS, old, PutIf::Always).await;
    let found = open(&cloud, settings()).await.verify(|_, _| {}).await.unwrap();
    assert_eq!(found.problem_count, 1, "{found:?}");
    assert!(found.problems[0].contains("old copy"), "{found:?}");
    let swept = open(&cloud, settings()).await.sweep().await;
    assert!(matches!(&swept, Err(StoreError::Tree { page, .. }) if *page == of.root), "{swept:?}");
    // Damaged.
    let mut damaged = numbers.to_vec();
    damaged[40] ^= 1;
    cloud.objects.put(NUMBERS, damaged.into(), PutIf::Always).await;
    assert!(problem(&cloud).await.contains("sequencer/numbers is damaged"));
    let swept = open(&cloud, settings()).await.sweep().await;
    assert!(matches!(&swept, Err(StoreError::Damaged { object, .. }) if object == NUMBERS));
    // And a leaf that is none of such a collection.
    cloud.objects.put(NUMBERS, numbers, PutIf::Always).await;
    let plain = client(&cloud, settings()).await.create_collection("plain").await.unwrap();
    let (page, _) = object(&cloud, &format!("page/{}", plain.root)).await;
    let mut page = s3db::page::Page::decode(&page).unwrap();
    page.id = of.root;
    cloud.objects.put(&format!("page/{}", of.root), page.encode(), PutIf::Always).await;
    let found = open(&cloud, settings()).await.verify(|_, _| {}).await.unwrap();
    assert!(found.problems[0].contains("no versions"), "{found:?}");
}

/// More wait at a time than a window has room for, many times over: they are helped as often as it takes.
#[tokio::test]
async fn a_crowd_passes_a_small_window() {
    let cloud = memory();
    Store::create(&cloud, &settings(), Backend::S3Log, 1).await.unwrap();
    let settings = Settings { window_commits_max: 2, ..settings() };
    let db = Arc::new(client(&cloud, settings).await);
    let of = db.create_isolated_collection("c", Isolation::Snapshot).await.unwrap();
    let all_of_them = (0..20).map(|n| {
        let (db, of) = (db.clone(), of.clone());
        tokio::spawn(async move { put(&db, &of, &format!("{n:02}"), "1").await })
    });
    for one in all_of_them.collect::<Vec<_>>() {
        one.await.unwrap();
    }
    assert_eq!(all(&db.begin_for(&of), &of).await.len(), 20);
}

/// A transaction that was changed after an attempt to commit it was given up: the object of the first attempt was
/// taken for that of the second, and what was written in between was lost.
#[tokio::test]
async fn what_is_written_after_a_dropped_commit_is_committed() {
    let raw = memory();
    let (meddler, cloud) = Meddler::over(&raw);
    let (db, of) = made(&cloud, Backend::S3Log, Isolation::Snapshot).await;
    put(&db, &of, "first", "0").await;
    let large = "x".repeat(5000);
    // Both attempts have to be in one millisecond, in one of these.
    for n in 0..30 {
        let mut txn = db.begin_for(&of);
        txn.put(&of, &key(&format!("a{n:02}")), payload(&large)).unwrap();
        meddler.puts("sequencer/data/", &[Stuck]);
        let given_up = futures::poll!(std::pin::pin!(txn.commit()));
        assert!(given_up.is_pending());
        txn.put(&of, &key(&format!("b{n:02}")), payload("1")).unwrap();
        txn.commit().await.unwrap();
        let other = client(&cloud, settings()).await;
        let seen = read(&other.begin_for(&of), &of, &format!("b{n:02}")).await;
        assert_eq!(seen.as_deref(), Some("1"), "{n}");
    }
}

/// That it is not known whether `applied` was moved concerns nobody: it can be moved again. What is due stays due.
#[tokio::test]
async fn nobody_has_to_know_whether_the_window_was_moved() {
    let raw = memory();
    let (meddler, cloud) = Meddler::over(&raw);
    let (db, of) = made(&cloud, Backend::S3Log, Isolation::Snapshot).await;
    put(&db, &of, "k", "1").await;
    meddler.puts("sequencer/", &[LostRequest; 20]);
    let swept = db.store().sweep().await;
    assert!(matches!(&swept, Err(StoreError::Cloud { .. })), "{swept:?}");
    meddler.puts("sequencer/", &[]);
    assert_eq!(db.store().status().await.unwrap().sequencer.unwrap().waiting, 1);
    db.store().sweep().await.unwrap();
    assert_eq!(db.store().status().await.unwrap().sequencer.unwrap().waiting, 0);
}

/// A tree with a leaf that is damaged, one that holds no versions, and sound ones: what is for the second goes into
/// quarantine, and that alone; what is for the first stays in the window.
#[tokio::test]
async fn what_is_put_aside_hides_no_damage() {
    let cloud = memory();
    Store::create(&cloud, &settings(), Backend::S3Log, 1).await.unwrap();
    let small = Settings { leaf_bytes_max: 400, ..settings() };
    let db = client(&cloud, small).await;
    let of = db.create_isolated_collection("c", Isolation::Snapshot).await.unwrap();
    for n in 0..30 {
        put(&db, &of, &format!("{n:02}"), &"x".repeat(30)).await;
    }
    db.store().sweep().await.unwrap();
    let mut leaves = Vec::new();
    for name in cloud.objects.list("page/", None, 1000).await.unwrap().names {
        let (bytes, etag) = object(&cloud, &name).await;
        let page = s3db::page::Page::decode(&bytes).unwrap();
        if page.level == 0 {
            leaves.push((page, name, bytes, etag));
        }
    }
    leaves.sort_by(|a, b| a.0.low.cmp(&b.0.low));
    assert!(leaves.len() >= 4, "{}", leaves.len());
    let (_, name, sound, etag) = &leaves[0];
    let (mut foreign, foreign_name, ..) = leaves[1].clone();
    let damaged = Bytes::from_static(b"what is left");
    let Put::Stored(etag) = cloud.objects.put(name, damaged, PutIf::Matches(etag.clone())).await
    else {
        panic!("not put");
    };
    foreign.applied.clear();
    cloud.objects.put(&foreign_name, foreign.encode(), PutIf::Always).await;
    // Of each of these leaves the last record: the newest version of the first one is on the leaf before.
    let last = |place: usize| {
        let key = &leaves[place].0.slots().last().unwrap().key[..2];
        String::from_utf8(key.to_vec()).unwrap()
    };
    let db = client(&cloud, small).await;
    let mut txn = db.begin_for(&of);
    for place in [0, 1, 3] {
        txn.put(&of, &key(&last(place)), payload("new")).unwrap();
    }
    txn.commit().await.unwrap();
    let swept = db.store().sweep().await;
    assert!(
        matches!(&swept, Err(StoreError::Damaged { object, .. }) if object == name),
        "{swept:?}"
    );
    let status = db.store().status().await.unwrap();
    assert_eq!((status.sequencer.unwrap().waiting, status.quarantined), (1, 1));
    cloud.objects.put(name, sound.clone(), PutIf::Matches(etag)).await;
    let db = client(&cloud, small).await;
    db.store().sweep().await.unwrap();
    let status = db.store().status().await.unwrap();
    assert_eq!(status.sequencer.unwrap().waiting, 0);
    for place in [0, 3] {
        let name = last(place);
        assert_eq!(read(&db.begin_for(&of), &of, &name).await.as_deref(), Some("new"), "{name}");
    }
}

/// A swap without an answer happened, or did not: the same commit tells which, and counts once.
#[tokio::test]
async fn a_swap_without_an_answer_counts_once() {
    for fate in [LostAnswer, LostRequest] {
        let raw = memory();
        let (meddler, cloud) = Meddler::over(&raw);
        let (db, of) = made(&cloud, Backend::S3Log, Isolation::Serializable).await;
        put(&db, &of, "n", "0").await;
        meddler.puts("sequencer/", &[fate]);
        let mut txn = db.begin_for(&of);
        assert_eq!(read(&txn, &of, "n").await.as_deref(), Some("0"));
        txn.put(&of, &key("n"), payload("1")).unwrap();
        assert_eq!(txn.commit().await.unwrap().number, 2, "{fate:?}");
        assert_eq!(txn.commit().await.unwrap().number, 2, "{fate:?}: again");
        assert_eq!(read(&db.begin_for(&of), &of, "n").await.as_deref(), Some("1"));
    }
}

/// A commit that is told again, long after it left the window, was one more commit, or an abort for itself.
#[tokio::test]
async fn what_is_committed_is_not_committed_again() {
    let cloud = memory();
    Store::create(&cloud, &settings(), Backend::S3Log, 1).await.unwrap();
    let settings = Settings { window_commits_max: 2, ..settings() };
    let db = client(&cloud, settings).await;
    let of = db.create_isolated_collection("c", Isolation::Snapshot).await.unwrap();
    for has_read in [false, true] {
        let mut txn = db.begin_for(&of);
        if has_read {
            read(&txn, &of, "k").await;
        }
        txn.put(&of, &key("k"), payload("first")).unwrap();
        let number = txn.commit().await.unwrap().number;
        for n in 0..5 {
            put(&db, &of, "k", &n.to_string()).await;
            db.checkpoint().await.unwrap();
        }
        assert_eq!(txn.commit().await.unwrap().number, number);
        assert_eq!(read(&db.begin_for(&of), &of, "k").await.as_deref(), Some("4"));
    }
}

/// A leaf was damaged when its first record was applied, and restored before its second was: it said that it
/// was complete, and the first one was never added.
#[tokio::test]
async fn a_leaf_that_comes_back_in_the_middle_has_everything() {
    let raw = memory();
    let (meddler, cloud) = Meddler::over(&raw);
    let (db, of) = made(&cloud, Backend::S3Log, Isolation::Snapshot).await;
    put(&db, &of, "a", "0").await;
    put(&db, &of, "b", "0").await;
    db.checkpoint().await.unwrap();
    let mut txn = db.begin_for(&of);
    for name in ["a", "b"] {
        txn.put(&of, &key(name), payload("1")).unwrap();
    }
    txn.commit().await.unwrap();
    // The first put of the leaf fails for good, the next one does not.
    meddler.puts("page/", &[crate::meddle::Fate::Denied]);
    let applied = db.store().sweep().await;
    assert!(applied.is_err(), "{applied:?}");
    db.store().sweep().await.unwrap();
    // Past what the window still has.
    let settings = Settings { window_commits_max: 1, ..settings() };
    let other = client(&cloud, settings).await;
    for n in 0..3 {
        put(&other, &of, "c", &n.to_string()).await;
        other.checkpoint().await.unwrap();
    }
    let now = all(&client(&cloud, settings).await.begin_for(&of), &of).await;
    let expected = [("a", "1"), ("b", "1"), ("c", "2")].map(|(a, b)| (a.to_owned(), b.to_owned()));
    assert_eq!(now, expected);
}

/// Who leads the swap for all, and gives up in the middle of it, takes nobody's commit along.
#[tokio::test]
async fn who_gives_up_takes_nobody_along() {
    let raw = memory();
    let (meddler, cloud) = Meddler::over(&raw);
    let (db, of) = made(&cloud, Backend::S3Log, Isolation::Snapshot).await;
    put(&db, &of, "first", "0").await;
    let db = Arc::new(db);
    // It happens, and whoever asked waits for ever.
    meddler.puts("sequencer/", &[Stuck]);
    let leader = {
        let (db, of) = (db.clone(), of.clone());
        tokio::spawn(async move { put(&db, &of, "leads", "1").await })
    };
    tokio::time::sleep(Duration::from_millis(30)).await;
    let followers: Vec<_> = (0..20)
        .map(|n| {
            let (db, of) = (db.clone(), of.clone());
            tokio::spawn(async move { put(&db, &of, &format!("follows{n:02}"), "1").await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(30)).await;
    leader.abort();
    for follower in followers {
        follower.await.unwrap();
    }
    let names: Vec<String> =
        all(&db.begin_for(&of), &of).await.into_iter().map(|(name, _)| name).collect();
    assert_eq!(names.len(), 22, "{names:?}: it was put, whoever asked for it");
    let calls = db.ledger().charge(s3db::cloud::CallKind::Put).calls;
    assert!(calls < 20, "{calls} puts: those who waited shared a swap");
}

/// Two lives of one client: what the first one still sends after the second has committed is refused.
#[tokio::test]
async fn a_life_that_is_over_commits_nothing() {
    let cloud = memory();
    let (db, of) = made(&cloud, Backend::SqsStandard, Isolation::Snapshot).await;
    let life = |store| async move { Session::open(store, 7).await.unwrap() };
    let first = life(open(&cloud, settings()).await).await;
    let commit = async |session: &Session, name: &str| {
        let mut txn = session.isolated(Isolation::Snapshot);
        txn.put(&of, &key(name), &payload("1"))?;
        txn.commit().await
    };
    commit(&first, "before").await.unwrap();
    let second = life(open(&cloud, settings()).await).await;
    commit(&second, "second").await.unwrap();
    let outcome = commit(&first, "zombie").await;
    assert!(matches!(outcome, Err(StoreError::Fenced { .. })), "{outcome:?}");
    assert_eq!(all(&db.begin_for(&of), &of).await.len(), 2);

    // A thousand others committed since: the sequencer has forgotten both, and the client's object has not.
    let (bytes, etag) = object(&cloud, NUMBERS).await;
    let mut numbers = Numbers::decode(&bytes).unwrap();
    numbers.lives = (0..1000).map(|n| (1 << 40 | n, 1, numbers.last)).collect();
    cloud.objects.put(NUMBERS, numbers.encode(), PutIf::Matches(etag)).await;
    let outcome = commit(&first, "zombie").await;
    assert!(matches!(outcome, Err(StoreError::Fenced { .. })), "{outcome:?}");
    commit(&second, "third").await.unwrap();
    commit(&second, "fourth").await.unwrap();
    put(&client(&cloud, settings()).await, &of, "other", "1").await;
    // One whose object cannot be told is refused, and in nobody's way.
    let (bytes, etag) = object(&cloud, NUMBERS).await;
    let lost = life(open(&cloud, settings()).await).await;
    let of_client = format!("clients/{:016x}", 7);
    let (sound, tag) = object(&cloud, &of_client).await;
    let noise = Bytes::from_static(b"noise");
    let Put::Stored(tag) = cloud.objects.put(&of_client, noise, PutIf::Matches(tag)).await else {
        panic!("not put");
    };
    let mut now = Numbers::decode(&bytes).unwrap();
    now.lives = numbers.lives.clone();
    cloud.objects.put(NUMBERS, now.encode(), PutIf::Matches(etag)).await;
    let outcome = commit(&lost, "fifth").await;
    assert!(matches!(outcome, Err(StoreError::Damaged { .. })), "{outcome:?}");
    put(&db, &of, "others", "1").await;
    cloud.objects.put(&of_client, sound, PutIf::Matches(tag)).await;
    commit(&lost, "fifth").await.unwrap();
    assert_eq!(all(&db.begin_for(&of), &of).await.len(), 7);
}

/// A copy of a leaf is older than what the window has forgotten: the record that it shows was deleted since,
/// and its delete was pruned.
#[tokio::test]
async fn a_stale_leaf_does_not_bring_back_what_was_deleted() {
    let cloud = memory();
    Store::create(&cloud, &settings(), Backend::S3Log, 1).await.unwrap();
    let settings =
        Settings { window_commits_max: 2, snapshot_age: Duration::from_millis(20), ..settings() };
    let (reader, writer) = (client(&cloud, settings).await, client(&cloud, settings).await);
    let of = writer.create_isolated_collection("c", Isolation::Snapshot).await.unwrap();
    let other = writer.create_isolated_collection("o", Isolation::Snapshot).await.unwrap();
    put(&writer, &of, "k", "1").await;
    writer.checkpoint().await.unwrap();
    // It has a copy, which stays young for long.
    assert_eq!(read(&reader.begin_for(&of), &of, "k").await.as_deref(), Some("1"));
    let mut txn = writer.begin_for(&of);
    txn.delete(&of, &key("k")).unwrap();
    txn.commit().await.unwrap();
    for n in 0..6 {
        writer.checkpoint().await.unwrap();
        tokio::time::sleep(Duration::from_millis(30)).await;
        put(&writer, &other, "k", &n.to_string()).await;
    }
    writer.checkpoint().await.unwrap();
    let done = writer.store().collect_garbage(Duration::ZERO).await.unwrap();
    assert!(done.versions >= 2, "{done:?}: the record and its delete");
    assert_eq!(read(&reader.begin_for(&of), &of, "k").await, None);
    assert!(all(&reader.begin_for(&of), &of).await.is_empty());
}

/// What is older than what pages keep is an error, and no other state than the one that was asked for.
#[tokio::test]
async fn a_snapshot_that_is_too_old_is_told_so() {
    let cloud = memory();
    Store::create(&cloud, &settings(), Backend::S3Log, 1).await.unwrap();
    let settings =
        Settings { window_commits_max: 2, snapshot_age: Duration::from_millis(20), ..settings() };
    let (reader, writer) = (client(&cloud, settings).await, client(&cloud, settings).await);
    let of = writer.create_isolated_collection("c", Isolation::Snapshot).await.unwrap();
    for name in ["k", "l", "m"] {
        put(&writer, &of, name, "1").await;
        writer.checkpoint().await.unwrap();
    }
    let mut old = reader.begin_for(&of);
    assert_eq!(read(&old, &of, "other").await, None);
    for n in 2..8 {
        put(&writer, &of, "k", &n.to_string()).await;
        writer.checkpoint().await.unwrap();
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    writer.store().collect_garbage(Duration::ZERO).await.unwrap();
    reader.store().collect_garbage(Duration::ZERO).await.unwrap();
    let cause = is_aborted(old.read(&of, &key("k")).await);
    assert!(matches!(cause, AbortCause::Old { snapshot: 3, .. }), "{cause:?}");
    let mut scan = old.scan(&of);
    assert!(matches!(is_aborted(scan.next().await), AbortCause::Old { .. }));
    drop(scan);
    old.put(&of, &key("new"), payload("x")).unwrap();
    assert!(matches!(is_aborted(old.commit().await), AbortCause::Old { .. }));
}

/// What a large transaction writes lies in an object: that of one that was given up goes, when it is old,
/// and nothing else does.
#[tokio::test]
async fn data_that_no_commit_names_is_collected() {
    let raw = memory();
    let (meddler, cloud) = Meddler::over(&raw);
    Store::create(&cloud, &settings(), Backend::S3Log, 1).await.unwrap();
    let db = client(&cloud, settings()).await;
    let of = db.create_isolated_collection("c", Isolation::Snapshot).await.unwrap();
    let large = "x".repeat(5000);
    put(&db, &of, "named", &large).await;
    meddler.puts("sequencer/numbers", &[crate::meddle::Fate::Denied]);
    let mut txn = db.begin_for(&of);
    txn.put(&of, &key("given up"), payload(&large)).unwrap();
    let refused = txn.commit().await;
    assert!(matches!(refused, Err(StoreError::Cloud { .. })), "{refused:?}");
    let objects = async || {
        let listed = raw.objects.list("sequencer/data/", None, 100).await.unwrap();
        listed.names.len()
    };
    assert_eq!(objects().await, 2);
    assert_eq!(db.store().collect_garbage(Duration::ZERO).await.unwrap().data, 0, "both are young");
    let later = Settings { tombstone_age: Duration::ZERO, ..settings() };
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let collector = client(&cloud, later).await;
    assert_eq!(collector.store().collect_garbage(Duration::ZERO).await.unwrap().data, 1);
    assert_eq!(objects().await, 1);
    let other = client(&cloud, settings()).await;
    assert_eq!(read(&other.begin_for(&of), &of, "named").await, Some(large));
}
