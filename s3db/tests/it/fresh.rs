//! Fresher reads: what waits in the log is laid over the pages.

use std::{ops::Bound, sync::Arc};

use s3db::{
    Backend, Collection, Db, Key, Level, Options, Payload, SearchBy, Settings, Store, StoreError,
    Transaction,
    cloud::{
        CallKind, Cloud, Ledger,
        embedded::{self, Memory},
    },
};

use crate::meddle::{Meddler, OddClock};

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

fn options(backend: Backend) -> Options {
    Options { has_worker: false, backend, shards: 2, ..Options::default() }
}

/// A database in which one client created a collection.
async fn database(backend: Backend) -> (Cloud, Db, Collection) {
    let cloud = embedded::memory(Arc::new(Memory::new()));
    let Options { settings, shards, .. } = options(backend);
    Store::create(&cloud, &settings, backend, shards).await.unwrap();
    let db = Db::over(cloud.clone(), &options(backend)).await.unwrap();
    let of = db.create_collection("things").await.unwrap();
    (cloud, db, of)
}

async fn put(db: &Db, of: &Collection, records: &[(&str, Option<&str>)]) {
    let mut txn = db.begin();
    for (name, payload) in records {
        match payload {
            Some(payload) => txn.put(of, &key(name), Payload::new(*payload).unwrap()).unwrap(),
            None => txn.delete(of, &key(name)).unwrap(),
        }
    }
    txn.commit().await.unwrap();
}

async fn get(txn: &Transaction<'_>, of: &Collection, name: &str) -> Option<String> {
    let payload = txn.read(of, &key(name)).await.unwrap();
    payload.map(|payload| String::from_utf8(payload.as_bytes().to_vec()).unwrap())
}

async fn keys(txn: &Transaction<'_>, of: &Collection) -> Vec<String> {
    let (mut records, mut keys) = (txn.scan(of), Vec::new());
    while let Some(key) = records.next_key().await.unwrap() {
        keys.push(key.to_string());
    }
    keys
}

async fn found(txn: &Transaction<'_>, of: &Collection) -> Vec<String> {
    let all = Bound::Unbounded;
    let (mut records, mut keys) =
        (txn.probe_range(of, "text", all, all).await.unwrap(), Vec::new());
    while let Some((search, record)) = records.next().await.unwrap() {
        keys.push(format!("{search}:{}", record.key));
    }
    keys
}

fn looks(ledger: &Ledger) -> u64 {
    let kinds = [CallKind::LookGet, CallKind::LookList, CallKind::LookReceive];
    kinds.into_iter().map(|kind| ledger.charge(kind).calls).sum()
}

/// What another committed and nobody checkpointed is seen by a fresh transaction, and not by an
/// ordinary one; and once it was seen the session has it.
#[tokio::test]
async fn what_is_committed_is_seen_before_it_is_on_its_page() {
    for backend in Backend::ALL {
        let (cloud, writer, of) = database(backend).await;
        writer.create_index(&of, "text", &SearchBy::Payload).await.unwrap();
        put(&writer, &of, &[("a", Some("old")), ("b", Some("old")), ("c", Some("old"))]).await;
        writer.checkpoint().await.unwrap();
        let reader = Db::over(cloud.clone(), &options(backend)).await.unwrap();
        let of = reader.collection("things").await.unwrap();
        assert_eq!(get(&reader.begin(), &of, "a").await.as_deref(), Some("old"), "{backend:?}");
        put(&writer, &of, &[("a", Some("new")), ("b", None), ("d", Some("new"))]).await;

        let txn = reader.begin();
        assert_eq!(get(&txn, &of, "a").await.as_deref(), Some("old"), "{backend:?}");
        assert_eq!(keys(&txn, &of).await, ["a", "b", "c"], "{backend:?}");
        assert_eq!(looks(txn.ledger()), 0, "{backend:?}: an ordinary one looks nowhere");

        // At the basic level nothing is remembered.
        let txn = reader.begin_at(Level::Basic).fresh();
        assert_eq!(keys(&txn, &of).await, ["a", "c", "d"], "{backend:?}");
        assert_eq!(get(&txn, &of, "a").await.as_deref(), Some("new"), "{backend:?}");
        assert_eq!(get(&reader.begin(), &of, "a").await.as_deref(), Some("old"), "{backend:?}");

        let txn = reader.begin().fresh();
        assert_eq!(found(&txn, &of).await, ["new:a", "new:d", "old:c"], "{backend:?}");
        let once = looks(txn.ledger());
        assert!(once > 0, "{backend:?}");
        assert_eq!(get(&txn, &of, "b").await, None, "{backend:?}");
        assert_eq!(keys(&txn, &of).await, ["a", "c", "d"], "{backend:?}");
        assert_eq!(looks(txn.ledger()), once, "{backend:?}: a transaction looks once");
        drop(txn);

        // Monotonic reads, by transactions that look nowhere.
        let txn = reader.begin();
        assert_eq!(get(&txn, &of, "a").await.as_deref(), Some("new"), "{backend:?}");
        assert_eq!(keys(&txn, &of).await, ["a", "c", "d"], "{backend:?}");
        assert_eq!(found(&txn, &of).await, ["new:a", "new:d", "old:c"], "{backend:?}");
        assert_eq!(looks(txn.ledger()), 0, "{backend:?}");
        drop(txn);

        // What is written after it was read counts after it.
        put(&reader, &of, &[("a", Some("newest"))]).await;
        writer.store().sweep().await.unwrap();
        let txn = writer.begin().fresh();
        assert_eq!(get(&txn, &of, "a").await.as_deref(), Some("newest"), "{backend:?}");
        assert_eq!(keys(&txn, &of).await, ["a", "c", "d"], "{backend:?}");
    }
}

/// A page that was read before the look, and a log that let go of it since.
#[tokio::test]
async fn what_was_checkpointed_meanwhile_is_seen_too() {
    for backend in Backend::ALL {
        let (cloud, writer, of) = database(backend).await;
        put(&writer, &of, &[("a", Some("0"))]).await;
        writer.checkpoint().await.unwrap();
        let options = Options { fresh: true, ..options(backend) };
        let reader = Db::over(cloud.clone(), &options).await.unwrap();
        for n in 1..5 {
            let value = n.to_string();
            put(&writer, &of, &[("a", Some(&value))]).await;
            if n % 2 == 0 {
                writer.checkpoint().await.unwrap();
            }
            // The copy that it has is good for a hundred seconds more.
            let txn = reader.begin();
            assert_eq!(get(&txn, &of, "a").await, Some(value), "{backend:?} {n}");
        }
    }
}

/// Whoever reads needs no right to make a queue.
#[tokio::test]
async fn a_reader_makes_no_queue() {
    let (cloud, writer, of) = database(Backend::SqsStandard).await;
    let reader = Db::over(cloud, &options(Backend::SqsStandard)).await.unwrap();
    assert_eq!(get(&reader.begin().fresh(), &of, "a").await, None);
    put(&writer, &of, &[("a", Some("1"))]).await;
    assert_eq!(get(&reader.begin().fresh(), &of, "a").await.as_deref(), Some("1"));
    let calls = |kind| reader.ledger().charge(kind).calls;
    let written = [CallKind::QueueOther, CallKind::Send, CallKind::DeleteMessage, CallKind::Put];
    assert_eq!(written.map(calls), [0; 4]);
    assert_eq!((calls(CallKind::Receive), calls(CallKind::List)), (0, 0));
    // Of ten queues, of which one was there with a message: that one again until it gives nothing new.
    assert_eq!(calls(CallKind::LookReceive), 10 + 9 + 3);
}

/// Objects of the log never change: each is read once.
#[tokio::test]
async fn a_log_object_is_read_once() {
    let (cloud, writer, of) = database(Backend::S3Log).await;
    let reader = Db::over(cloud, &options(Backend::S3Log)).await.unwrap();
    for n in 1..4 {
        put(&writer, &of, &[("a", Some(&n.to_string()))]).await;
        for _ in 0..2 {
            assert_eq!(get(&reader.begin().fresh(), &of, "a").await, Some(n.to_string()));
        }
        let calls = |kind| reader.ledger().charge(kind).calls;
        assert_eq!((calls(CallKind::LookGet), calls(CallKind::LookList)), (n, 2 * n));
    }
}

/// What is written after it was read in the log counts after it, however far ahead the clock was of who wrote
/// that, and whether it was read or met by a scan, at any level.
#[tokio::test]
async fn what_is_written_after_a_fresh_read_counts_after_it() {
    for backend in Backend::ALL {
        for (level, scans) in [
            (Level::Atomic, true),
            (Level::Atomic, false),
            (Level::Basic, true),
            (Level::Basic, false),
        ] {
            let (cloud, slow, of) = database(backend).await;
            let (clock, ahead) = OddClock::over(&cloud);
            clock.set_ahead(5);
            let fast = Db::over(ahead, &options(backend)).await.unwrap();
            put(&fast, &of, &[("k", Some("fast"))]).await;
            let mut txn = slow.begin_at(level).fresh();
            match scans {
                true => assert_eq!(keys(&txn, &of).await, ["k"]),
                false => assert_eq!(get(&txn, &of, "k").await.as_deref(), Some("fast")),
            }
            txn.put(&of, &key("k"), Payload::new("slow").unwrap()).unwrap();
            txn.commit().await.unwrap();
            drop(txn);
            let what = format!("{backend:?} {level:?} {scans}");
            assert_eq!(get(&slow.begin(), &of, "k").await.as_deref(), Some("slow"), "{what}");
            slow.store().sweep().await.unwrap();
            slow.store().sweep().await.unwrap();
            let reader = Db::over(cloud, &options(backend)).await.unwrap();
            assert_eq!(
                get(&reader.begin().fresh(), &of, "k").await.as_deref(),
                Some("slow"),
                "{what}"
            );
        }
    }
}

/// Transactions that lie in objects of their own, which their messages name, count with their bytes.
#[tokio::test]
async fn what_is_too_large_for_a_message_counts_too() {
    for backend in [Backend::SqsStandard, Backend::SqsFifo] {
        let (cloud, writer, of) = database(backend).await;
        for n in 0..2 {
            let mut txn = writer.begin();
            for k in 0..45 {
                let payload = Payload::new(vec![b'x'; 30_000]).unwrap();
                txn.put(&of, &key(&format!("{n}-{k}")), payload).unwrap();
            }
            txn.commit().await.unwrap();
        }
        assert_eq!(cloud.objects.list("spill/", None, 10).await.unwrap().names.len(), 2);
        let with = |look_bytes_max| {
            let settings = Settings { look_bytes_max, ..Settings::default() };
            Options { settings, ..options(backend) }
        };
        let reader = Db::over(cloud.clone(), &with(2_000_000)).await.unwrap();
        let refused = reader.begin().fresh().contains(&of, &key("0-0")).await;
        assert!(matches!(refused, Err(StoreError::Backlog { .. })), "{backend:?}: {refused:?}");
        let reader = Db::over(cloud, &with(3_000_000)).await.unwrap();
        assert!(reader.begin().fresh().contains(&of, &key("0-0")).await.unwrap(), "{backend:?}");
    }
}

/// That a queue is not there is one thing, that it cannot be looked at another.
#[tokio::test]
async fn a_look_that_is_refused_is_no_empty_one() {
    for backend in [Backend::SqsStandard, Backend::SqsFifo] {
        let (cloud, writer, of) = database(backend).await;
        put(&writer, &of, &[("a", Some("1"))]).await;
        let (meddler, between) = Meddler::over(&cloud);
        let reader = Db::over(between, &options(backend)).await.unwrap();
        assert_eq!(get(&reader.begin().fresh(), &of, "a").await.as_deref(), Some("1"));
        meddler.refuses_receives();
        let looked = reader.begin().fresh().read(&of, &key("a")).await;
        assert!(matches!(looked, Err(StoreError::Cloud { .. })), "{backend:?}: {looked:?}");
    }
}

/// What a session saw of others, and remembers, is in no way of what it commits.
#[tokio::test]
async fn who_saw_much_commits() {
    for backend in Backend::ALL {
        let (cloud, writer, of) = database(backend).await;
        let settings = Settings { own_bytes_max: 1000, ..Settings::default() };
        let reader = Options { settings, ..options(backend) };
        let reader = Db::over(cloud, &reader).await.unwrap();
        let large = "x".repeat(1500);
        let names: Vec<String> = (0..6).map(|n| n.to_string()).collect();
        for name in &names {
            put(&writer, &of, &[(name, Some(&large))]).await;
        }
        assert_eq!(keys(&reader.begin().fresh(), &of).await, names, "{backend:?}");
        // Nobody else sweeps.
        put(&reader, &of, &[("0", Some("mine"))]).await;
        assert_eq!(get(&reader.begin(), &of, "0").await.as_deref(), Some("mine"));
        assert_eq!(keys(&reader.begin(), &of).await, names, "{backend:?}");
    }
}

/// There is a limit to what a look takes on and to what is remembered of it, and an error that says so.
#[tokio::test]
async fn a_look_is_bounded() {
    for backend in Backend::ALL {
        let (cloud, writer, of) = database(backend).await;
        let settings =
            Settings { look_bytes_max: 5000, own_bytes_max: 1000, ..Settings::default() };
        let reader = Options { settings, ..options(backend) };
        let reader = Db::over(cloud, &reader).await.unwrap();
        let large = "x".repeat(1500);
        put(&writer, &of, &[("a", Some(&large))]).await;
        assert_eq!(get(&reader.begin().fresh(), &of, "a").await.as_deref(), Some(&large[..]));
        let refused = reader.begin().fresh().read(&of, &key("a")).await;
        let is_backlog = matches!(refused, Err(StoreError::Backlog { .. }));
        assert!(is_backlog, "{backend:?}: it remembers more than it may: {refused:?}");
        // An ordinary read needs no room.
        assert_eq!(get(&reader.begin(), &of, "a").await.as_deref(), Some(&large[..]));
        writer.checkpoint().await.unwrap();
        assert_eq!(get(&reader.begin().fresh(), &of, "a").await.as_deref(), Some(&large[..]));
        for n in 0..4 {
            put(&writer, &of, &[(&n.to_string(), Some(&large))]).await;
        }
        let refused = reader.begin().fresh().read(&of, &key("b")).await;
        let Err(StoreError::Backlog { what }) = refused else { panic!("{backend:?} {refused:?}") };
        assert_eq!(what, "more than 5000 bytes");
        assert_eq!(get(&reader.begin(), &of, "b").await, None);
        writer.checkpoint().await.unwrap();
        assert_eq!(get(&reader.begin().fresh(), &of, "b").await, None);
    }
}
