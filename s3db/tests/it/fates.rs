//! What a commit is told when it is asked again, and what its writes do to others of the session.

use std::time::Duration;

use s3db::{
    Backend, Key, Level, Payload, Session, Settings, Store, StoreError,
    cloud::{
        Cloud, Put,
        model::{Faults, Process},
    },
};

use crate::{
    meddle::{
        Fate::{Denied, Late, LostRequest, Stuck, Throttled},
        Meddler,
    },
    mishaps::{CLIENT, create, get, key, memory, put, settings},
    printed::{open, run, world},
};

fn payload(text: &str) -> Payload {
    Payload::new(text).unwrap()
}

/// A transaction that was unclear was committed again after a later one, and its older write was
/// laid over the newer: the session read what nobody else would ever see.
#[tokio::test]
async fn an_older_own_write_covers_no_newer_one() {
    let raw = memory();
    let (meddler, cloud) = Meddler::over(&raw);
    let (db, things) = create(&cloud, Backend::S3Log).await;
    let k: Key = key("k");
    meddler.puts("log/", &[Late, Denied]);
    let mut older = db.begin();
    older.put(&things, &k, payload("older")).unwrap();
    let outcome = older.commit().await;
    assert!(matches!(outcome, Err(StoreError::CommitUnknown { .. })), "{outcome:?}");
    meddler.deliver().await;
    let mut newer = db.begin();
    newer.put(&things, &k, payload("newer")).unwrap();
    newer.commit().await.unwrap();
    older.commit().await.unwrap();
    let seen = db.begin().read(&things, &k).await.unwrap();
    assert_eq!(seen, Some(payload("newer")));
    assert_eq!(get(&raw, &things, "k").await.as_deref(), Some("newer"));
}

/// A commit that had no answer was durable. The next life of its client began, and then the first
/// one, asked again as it should be, said that it was not committed: it had put the transaction a
/// second time, behind the fence.
#[tokio::test]
async fn what_is_committed_is_not_called_off_by_the_next_life() {
    for given_up in [false, true] {
        let raw = memory();
        let (meddler, cloud) = Meddler::over(&raw);
        let (db, things) = create(&cloud, Backend::S3Log).await;
        let mut txn = db.begin();
        txn.put(&things, &key("k"), payload("x")).unwrap();
        if given_up {
            meddler.puts("log/", &[Stuck]);
            let mut commit = Box::pin(txn.commit());
            while raw.objects.list("log/", None, 1).await.unwrap().names.is_empty() {
                assert!(futures::poll!(&mut commit).is_pending());
            }
        } else {
            meddler.puts("log/", &[Late, Denied]);
            let outcome = txn.commit().await;
            assert!(matches!(outcome, Err(StoreError::CommitUnknown { .. })), "{outcome:?}");
            meddler.deliver().await;
        }
        // Which ends this one.
        let next = Session::open(open(&raw, settings()).await, CLIENT).await.unwrap();
        txn.commit().await.unwrap();
        let log = raw.objects.list("log/", None, 10).await.unwrap().names;
        assert_eq!(log.len(), 2, "what is committed, and a fence: {log:?}");
        // What was not committed by then is told so.
        let mut late = db.begin();
        late.put(&things, &key("late"), payload("y")).unwrap();
        let outcome = late.commit().await;
        assert!(matches!(outcome, Err(StoreError::Fenced { .. })), "{outcome:?}");
        assert_eq!(get(&raw, &things, "k").await.as_deref(), Some("x"));
        assert_eq!(get(&raw, &things, "late").await, None);
        drop(next);
    }
}

/// So many days, in which these are kept alive.
async fn pass(cloud: &Cloud, sessions: &[&Session], days: u32) {
    for _ in 0..days {
        cloud.clock.sleep(Duration::from_secs(24 * 3600)).await;
        for session in sessions {
            session.keep_alive().await.unwrap();
        }
    }
}

/// A commit without an answer, of which nothing had landed, was put again with the next one of its client,
/// however long after. By then a tombstone that was newer was dropped, and the deleted record came back;
/// a blob that it named was collected.
#[test]
fn what_is_old_comes_into_no_log() {
    for has_landed in [false, true] {
        let world = world(Faults::NONE);
        let cloud = world.cloud(Process(0));
        run(&world, async move {
            let settings = Settings { inline_bytes_max: 10, part_bytes: 20, ..settings() };
            Store::create(&cloud, &settings, Backend::S3Log, 1).await.unwrap();
            let (meddler, odd) = Meddler::over(&cloud);
            let store = open(&odd, settings).await;
            let things = store.create_collection("things").await.unwrap();
            let other = Session::open(open(&cloud, settings).await, 8).await.unwrap();
            let session = Session::open(store, CLIENT).await.unwrap();
            let large = payload("what lies in a blob of its own");
            let mut left_open = session.begin(Level::Atomic);
            left_open.put(things.root, &key("k"), payload("old")).unwrap();
            left_open.put(things.root, &key("large"), large.clone()).unwrap();
            meddler.puts("log/", &[Late, LostRequest, LostRequest]);
            let outcome = session.commit(&mut left_open).await;
            assert!(matches!(outcome, Err(StoreError::CommitUnknown { .. })), "{outcome:?}");
            if has_landed {
                assert!(matches!(meddler.deliver().await[..], [Put::Stored(_)]));
            }
            let mut txn = other.begin(Level::Atomic);
            txn.delete(things.root, &key("k")).unwrap();
            other.commit(&mut txn).await.unwrap();
            pass(&cloud, &[&session, &other], 45).await;
            let janitor = open(&cloud, settings).await;
            for _ in 0..2 {
                let grace = Duration::from_secs(3600);
                janitor.collect_garbage(grace).await.unwrap();
                cloud.clock.sleep(2 * grace).await;
            }
            let mut next = session.begin(Level::Atomic);
            next.put(things.root, &key("next"), payload("x")).unwrap();
            let outcome = session.commit(&mut next).await;
            let again = session.commit(&mut left_open).await;
            if has_landed {
                outcome.unwrap();
                again.unwrap();
            } else {
                // This life is over, and both know that they are not committed.
                for outcome in [outcome, again] {
                    assert!(matches!(outcome, Err(StoreError::Fenced { .. })), "{outcome:?}");
                }
            }
            assert_eq!(get(&cloud, &things, "k").await, None);
            let reader = Session::reader(open(&cloud, settings).await, 9);
            let txn = reader.begin(Level::Basic);
            for (name, value) in [("large", large), ("next", payload("x"))] {
                let seen = reader.read(&txn, things.root, &key(name)).await.unwrap();
                assert_eq!(seen, has_landed.then_some(value), "{name}");
            }
            // The next life goes on.
            let again = Session::open(open(&cloud, settings).await, CLIENT).await.unwrap();
            put(&again, &things, "k", "new").await;
            assert_eq!(get(&cloud, &things, "k").await.as_deref(), Some("new"));
        });
    }
}

/// The same of one that is tried again by whoever began it: it is told that it is too old.
#[test]
fn what_is_old_is_not_sent_again() {
    for backend in Backend::ALL {
        let world = world(Faults::NONE);
        let cloud = world.cloud(Process(0));
        run(&world, async move {
            Store::create(&cloud, &settings(), backend, 1).await.unwrap();
            let (meddler, odd) = Meddler::over(&cloud);
            let store = open(&odd, settings()).await;
            let things = store.create_collection("things").await.unwrap();
            let session = Session::open(store, CLIENT).await.unwrap();
            let fates = [Throttled, Throttled, Throttled];
            let mut young = session.begin(Level::Atomic);
            young.put(things.root, &key("young"), payload("x")).unwrap();
            let mut old = session.begin(Level::Atomic);
            old.put(things.root, &key("old"), payload("x")).unwrap();
            for txn in [&mut young, &mut old] {
                meddler.puts("log/", &fates);
                meddler.sends(&fates);
                let outcome = session.commit(txn).await;
                assert!(matches!(outcome, Err(StoreError::Cloud { .. })), "{outcome:?}");
            }
            pass(&cloud, &[&session], 14).await;
            session.commit(&mut young).await.unwrap();
            pass(&cloud, &[&session], 1).await;
            let error = session.commit(&mut old).await.unwrap_err().to_string();
            assert!(error.contains("begin another one"), "{error}");
            assert_eq!(get(&cloud, &things, "young").await.as_deref(), Some("x"));
            assert_eq!(get(&cloud, &things, "old").await, None);
            put(&session, &things, "old", "new").await;
        });
    }
}
