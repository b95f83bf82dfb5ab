//! Payloads of isolated transactions that are too long for a page: how long their blobs are there.

use std::time::Duration;

use s3db::{
    AbortCause, Backend, Collection, Db, Isolation, Key, Options, Payload, Settings, Store,
    StoreError, Value,
    cloud::{CallKind, Cloud, Get, PutIf, embedded},
};

use crate::{
    blobs::{content, objects, written},
    meddle::Meddler,
    mishaps::{key, memory, settings},
    sealed::keys,
};

/// Bytes of a payload here, in four parts.
const LEN: usize = 50_000;

fn of_parts() -> Settings {
    Settings { part_bytes: 15_000, ..settings() }
}

/// A client without work in the background.
async fn client(cloud: &Cloud, settings: Settings) -> Db {
    let options = Options { settings, has_worker: false, ..Options::default() };
    Db::over(cloud.clone(), &options).await.unwrap()
}

/// One to whom nothing is too young, and no snapshot that is older than a moment can be read.
async fn collector(cloud: &Cloud) -> Db {
    let (tombstone_age, snapshot_age) = (Duration::ZERO, Duration::from_millis(20));
    client(cloud, Settings { tombstone_age, snapshot_age, ..of_parts() }).await
}

async fn made(cloud: &Cloud, backend: Backend) -> (Db, Collection) {
    Store::create(cloud, &of_parts(), backend, 1).await.unwrap();
    let db = client(cloud, of_parts()).await;
    let of = db.create_isolated_collection("films", Isolation::Snapshot).await.unwrap();
    (db, of)
}

async fn put(db: &Db, of: &Collection, name: &str, seed: u64) {
    let mut txn = db.begin_for(of);
    txn.put(of, &key(name), Payload::new(content(seed, LEN)).unwrap()).unwrap();
    txn.commit().await.unwrap();
}

async fn read(db: &Db, of: &Collection, name: &str) -> Option<Vec<u8>> {
    let payload = db.begin_for(of).read(of, &key(name)).await.unwrap();
    payload.map(|payload| payload.as_bytes().to_vec())
}

fn is_old<T>(outcome: Result<T, StoreError>) -> bool {
    matches!(outcome, Err(StoreError::Aborted { why: AbortCause::Old { .. } }))
}

/// A version that some snapshot can see keeps its blob. When none can it goes, and with it what was deleted;
/// whoever reads at an older snapshot is told that, with a copy of the page from before, or in the middle.
#[tokio::test]
async fn a_blob_is_there_as_long_as_a_snapshot_sees_it() {
    for backend in Backend::ALL {
        let cloud = memory();
        let (db, of) = made(&cloud, backend).await;
        for (name, seed) in [("again", 1), ("deleted", 2), ("stays", 3)] {
            put(&db, &of, name, seed).await;
        }
        db.checkpoint().await.unwrap();
        drop(written(&db, &content(9, LEN)).await);
        let reader = client(&cloud, of_parts()).await;
        let old = reader.begin_for(&of);
        let mut begun = old.open_content(&of, &key("again")).await.unwrap().unwrap();
        let first = begun.next().await.unwrap().unwrap();
        assert!(content(1, LEN).starts_with(&first));
        assert!(reader.begin_for(&of).contains(&of, &key("deleted")).await.unwrap());

        put(&db, &of, "again", 4).await;
        let mut txn = db.begin_for(&of);
        txn.delete(&of, &key("deleted")).unwrap();
        txn.commit().await.unwrap();
        db.checkpoint().await.unwrap();
        // Nobody is too young for this one, but snapshots can be read for ten minutes: what was given up goes.
        let long = Settings { tombstone_age: Duration::ZERO, ..of_parts() };
        let patient = client(&cloud, long).await;
        let (mut gone, mut turns) = (0, 0);
        while gone < 1 {
            gone += patient.store().collect_garbage(Duration::ZERO).await.unwrap().blobs;
            turns += 1;
            assert!(turns < 10_000);
        }
        assert_eq!((gone, objects(&cloud).await.len()), (1, 4 * 4), "{backend:?}");
        for (name, seed) in [("again", 1), ("deleted", 2), ("stays", 3)] {
            let there = old.read(&of, &key(name)).await.unwrap().unwrap();
            assert!(there.as_bytes() == content(seed, LEN), "{name} as of before");
        }
        let found = db.store().verify(|_, _| {}).await.unwrap();
        assert_eq!((found.problem_count, found.blobs, found.blob_orphans), (0, 4, 0));

        let collector = collector(&cloud).await;
        tokio::time::sleep(Duration::from_millis(30)).await;
        let (mut gone, mut turns) = (0, 0);
        while gone < 2 {
            gone += collector.store().collect_garbage(Duration::ZERO).await.unwrap().blobs;
            turns += 1;
            assert!(turns < 10_000, "{backend:?}: {gone}");
        }
        assert_eq!((gone, objects(&cloud).await.len()), (2, 2 * 4), "{backend:?}");
        // Nothing was committed since: the horizon is moved by who collects.
        for name in ["again", "deleted"] {
            assert!(is_old(old.read(&of, &key(name)).await), "{name}");
            assert!(is_old(old.open_content(&of, &key(name)).await), "{name}");
        }
        assert!(is_old(begun.next().await));
        let mut scan = old.scan(&of);
        assert!(is_old(scan.next().await), "the first one is gone");
        for (name, expected) in [("again", Some(4)), ("deleted", None), ("stays", Some(3))] {
            let expected = expected.map(|seed| content(seed, LEN));
            for db in [&db, &reader, &client(&cloud, of_parts()).await] {
                assert!(read(db, &of, name).await == expected, "{name}");
            }
        }
        let found = db.store().verify(|_, _| {}).await.unwrap();
        assert_eq!((found.problem_count, found.blobs, found.blob_orphans), (0, 2, 0));
    }
}

/// A blob that is old by all that is known, and is committed in the moment in which garbage collection has
/// listed it: no leaf names it when it looks at them.
#[tokio::test]
async fn what_waits_in_the_sequencer_keeps_its_blob() {
    let raw = memory();
    let (db, of) = made(&raw, Backend::S3Log).await;
    let Value::Blob(blob) = written(&db, &content(1, LEN)).await else { panic!("no blob") };
    // It lies in an object of its own, too, what the other one writes.
    let large = written(&db, &content(2, LEN)).await;
    let (meddler, cloud) = Meddler::over(&raw);
    let collector = collector(&cloud).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let (txn_db, txn_of) = (std::sync::Arc::new(db), of.clone());
    let commits = txn_db.clone();
    meddler.after_list("page/", async move {
        let mut txn = commits.begin_for(&txn_of);
        txn.put_value(&txn_of, &key("here"), Value::Blob(blob)).unwrap();
        txn.commit().await.unwrap();
        let mut txn = commits.begin_for(&txn_of);
        txn.put_value(&txn_of, &key("far"), large).unwrap();
        txn.put(&txn_of, &key("pad"), Payload::new(vec![7; 3000]).unwrap()).unwrap();
        txn.commit().await.unwrap();
    });
    let done = collector.store().collect_garbage(Duration::ZERO).await.unwrap();
    assert_eq!((done.blobs, objects(&raw).await.len()), (0, 2 * 4), "{done:?}");
    // It waits: who verifies looks at it there.
    let found = txn_db.store().verify(|_, _| {}).await.unwrap();
    assert_eq!((found.problem_count, found.waiting, found.blobs), (0, 3, 0), "{found:?}");
    for (name, seed) in [("here", 1), ("far", 2)] {
        assert!(read(&txn_db, &of, name).await == Some(content(seed, LEN)), "{name}");
    }
    let part = blob.object(2);
    let bytes = match raw.objects.get(&part, None).await.unwrap() {
        s3db::cloud::Get::Found { bytes, .. } => bytes,
        other => panic!("{other:?}"),
    };
    raw.objects.delete(&part, None).await;
    let found = txn_db.store().verify(|_, _| {}).await.unwrap();
    assert_eq!(found.problem_count, 1, "{found:?}");
    let problem = &found.problems[0];
    assert!(problem.contains("sequencer: record here") && problem.contains(&part), "{problem}");
    let lost = txn_db.begin_for(&of).read(&of, &key("here")).await;
    assert!(matches!(&lost, Err(StoreError::Lost { object }) if *object == part), "{lost:?}");
    raw.objects.put(&part, bytes, PutIf::Absent).await;
    txn_db.store().sweep().await.unwrap();
    let found = txn_db.store().verify(|_, _| {}).await.unwrap();
    assert_eq!((found.problem_count, found.waiting, found.blobs), (0, 0, 2), "{found:?}");
    for _ in 0..3 {
        assert_eq!(collector.store().collect_garbage(Duration::ZERO).await.unwrap().blobs, 0);
    }
}

/// Who has judged a commit, and swaps only after blobs were listed for collection, has to judge again: by then
/// what it names is too old.
#[tokio::test]
async fn who_swaps_late_is_told_so() {
    let raw = memory();
    let age = Settings { tombstone_age: Duration::from_secs(3), ..of_parts() };
    Store::create(&raw, &age, Backend::S3Log, 1).await.unwrap();
    let (meddler, cloud) = Meddler::over(&raw);
    let db = client(&cloud, age).await;
    let of = db.create_isolated_collection("films", Isolation::Snapshot).await.unwrap();
    let raw_of = raw.clone();
    meddler.before_put("sequencer/numbers", async move {
        // As old as it has to be, then once more to be found unnamed, and to go.
        let collector = client(&raw_of, age).await;
        let (mut gone, mut turns) = (0, 0);
        while gone < 1 {
            tokio::time::sleep(Duration::from_millis(300)).await;
            gone += collector.store().collect_garbage(Duration::ZERO).await.unwrap().blobs;
            turns += 1;
            assert!(turns < 100);
        }
    });
    let mut txn = db.begin_for(&of);
    txn.put(&of, &key("late"), Payload::new(content(1, LEN)).unwrap()).unwrap();
    let outcome = txn.commit().await;
    let is_late = matches!(&outcome, Err(StoreError::Aborted { why: AbortCause::Late { object } }) if object.starts_with("blob/"));
    assert!(is_late, "{outcome:?}");
    assert_eq!(objects(&raw).await.len(), 0);
    // Nobody is forgotten here for having been silent so long.
    let again = client(&raw, age).await;
    put(&again, &of, "late", 2).await;
    assert!(read(&again, &of, "late").await == Some(content(2, LEN)));
}

/// A commit that is tried again is the same one, with the same blobs; one that was dropped before it was sealed
/// leaves garbage, and counts once.
#[tokio::test]
async fn a_commit_that_is_tried_again_puts_its_blobs_once() {
    use crate::meddle::Fate::{LostAnswer, LostRequest};
    let raw = memory();
    let (meddler, cloud) = Meddler::over(&raw);
    Store::create(&raw, &of_parts(), Backend::S3Log, 1).await.unwrap();
    let few = Settings { attempts_max: 2, ..of_parts() };
    let db = client(&cloud, few).await;
    let of = db.create_isolated_collection("films", Isolation::Serializable).await.unwrap();
    assert!(read(&db, &of, "k").await.is_none());
    let mut txn = db.begin_for(&of);
    txn.put(&of, &key("k"), Payload::new(content(1, LEN)).unwrap()).unwrap();
    // No part has an answer.
    meddler.puts("blob/", &[LostRequest; 12]);
    let outcome = txn.commit().await;
    assert!(matches!(outcome, Err(StoreError::Cloud { .. })), "{outcome:?}");
    meddler.puts("sequencer/numbers", &[LostAnswer]);
    meddler.refuses_gets("sequencer/numbers", 100);
    let outcome = txn.commit().await;
    assert!(matches!(outcome, Err(StoreError::CommitUnknown { .. })), "{outcome:?}");
    meddler.refuses_gets("sequencer/numbers", 0);
    let before = db.ledger().charge(CallKind::PutBlob).calls;
    let number = txn.commit().await.unwrap().number;
    assert_eq!(db.ledger().charge(CallKind::PutBlob).calls, before, "they are there");
    assert_eq!(number, 1);
    assert!(read(&db, &of, "k").await == Some(content(1, LEN)));
    assert_eq!(objects(&raw).await.len(), 4);
}

/// What is for a tree that is there no more is put aside, and what it names is kept.
#[tokio::test]
async fn what_was_put_aside_keeps_its_blob() {
    let cloud = memory();
    let (db, of) = made(&cloud, Backend::S3Log).await;
    put(&db, &of, "k", 1).await;
    for name in ["catalog/films".to_owned(), format!("page/{}", of.root)] {
        cloud.objects.delete(&name, None).await;
    }
    let collector = collector(&cloud).await;
    assert_eq!(collector.store().sweep().await.unwrap().poison, 1);
    tokio::time::sleep(Duration::from_millis(30)).await;
    for _ in 0..3 {
        let done = collector.store().collect_garbage(Duration::ZERO).await.unwrap();
        assert_eq!((done.blobs, done.blobs_waiting), (0, 1), "{done:?}");
    }
    let aside = cloud.objects.list("quarantine/", None, 10).await.unwrap().names;
    assert_eq!(aside.len(), 1);
    cloud.objects.delete(&aside[0], None).await;
    assert_eq!(collector.store().collect_garbage(Duration::ZERO).await.unwrap().blobs, 1);
    assert_eq!(objects(&cloud).await, [""; 0]);
}

/// They were one object, of more bytes than one may have; then several of one name, of which the first was there and
/// the others were lost: the checksum that their names ended with is the same of all frames.
#[tokio::test]
async fn much_that_is_put_aside_is_put_aside_in_parts() {
    let cloud = memory();
    Store::create(&cloud, &settings(), Backend::S3Log, 1).await.unwrap();
    let db = client(&cloud, settings()).await;
    let of = db.create_isolated_collection("films", Isolation::Snapshot).await.unwrap();
    for part in 0..2 {
        let mut txn = db.begin_for(&of);
        for n in 0..200 {
            // As long as a record can be that is in no blob, nearly.
            let payload = Payload::new(vec![7; 30_000]).unwrap();
            txn.put(&of, &Key::new(format!("{part}{n:03}")).unwrap(), payload).unwrap();
        }
        txn.commit().await.unwrap();
    }
    for name in ["catalog/films".to_owned(), format!("page/{}", of.root)] {
        cloud.objects.delete(&name, None).await;
    }
    let poison = collector(&cloud).await.store().sweep().await.unwrap().poison;
    let names = cloud.objects.list("quarantine/", None, 100).await.unwrap().names;
    assert_eq!((names.len() as u64, names.len()), (poison, 3));
    for name in names {
        let Get::Found { bytes, .. } = cloud.objects.get(&name, None).await.unwrap() else {
            panic!("{name} is there");
        };
        assert!(bytes.len() < 5 << 20, "{name}: {}", bytes.len());
    }
}

/// What waits in the sequencer and what is on pages has a new key afterwards, with its blobs.
#[tokio::test]
async fn keys_change_for_blobs_of_versions() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = embedded::directory(&folder.path().join("db")).unwrap();
    Store::create_encrypted(&cloud, &of_parts(), Backend::S3Log, 1).await.unwrap();
    let open = async |ids: &[u8]| {
        let keys = Some(keys(ids));
        let options =
            Options { settings: of_parts(), keys, has_worker: false, ..Options::default() };
        Db::over(cloud.clone(), &options).await.unwrap()
    };
    let db = open(&[1]).await;
    let of = db.create_isolated_collection("films", Isolation::Snapshot).await.unwrap();
    put(&db, &of, "applied", 1).await;
    db.checkpoint().await.unwrap();
    put(&db, &of, "waits", 2).await;
    let done = open(&[2, 1]).await.store().rekey(|_| {}).await.unwrap();
    assert_eq!((done.unopened, done.waiting, &done.unswept), (0, 0, &None), "{done:?}");
    let db = open(&[2]).await;
    for (name, seed) in [("applied", 1), ("waits", 2)] {
        assert!(read(&db, &of, name).await == Some(content(seed, LEN)), "{name}");
    }
    assert_eq!(db.store().verify(|_, _| {}).await.unwrap().problem_count, 0);
}
