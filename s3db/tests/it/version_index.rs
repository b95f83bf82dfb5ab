//! Indexes of isolated collections: exact at every snapshot, known to everyone who commits.

use std::{ops::Bound, sync::Arc, time::Duration};

use s3db::{
    AbortCause, Backend, Collection, Db, IndexCheck, Isolation, Key, Numbers, Options, Payload,
    SearchBy, SequencedIndex, Settings, Store, StoreError, Transaction,
    cloud::{Cloud, Get, PutIf},
    page::PageId,
};

use crate::{
    meddle::{Fate, Meddler},
    mishaps::{key, memory, settings},
};

const NUMBERS: &str = "sequencer/numbers";
const BY: SearchBy = SearchBy::Part { separator: b',', number: 1 };

async fn numbers(cloud: &Cloud) -> Numbers {
    match cloud.objects.get(NUMBERS, None).await.unwrap() {
        Get::Found { bytes, .. } => Numbers::decode(&bytes).unwrap(),
        other => panic!("{other:?}"),
    }
}

async fn client(cloud: &Cloud, settings: Settings) -> Db {
    let options = Options { settings, has_worker: false, ..Options::default() };
    Db::over(cloud.clone(), &options).await.unwrap()
}

async fn made(cloud: &Cloud, backend: Backend, isolation: Isolation) -> (Db, Collection) {
    Store::create(cloud, &settings(), backend, 1).await.unwrap();
    let db = client(cloud, settings()).await;
    let of = db.create_isolated_collection("people", isolation).await.unwrap();
    (db, of)
}

/// One record, blindly.
async fn put(db: &Db, of: &Collection, name: &str, text: &str) {
    let mut txn = db.begin_for(of);
    txn.put(of, &key(name), Payload::new(text).unwrap()).unwrap();
    txn.commit().await.unwrap();
}

async fn delete(db: &Db, of: &Collection, name: &str) {
    let mut txn = db.begin_for(of);
    txn.delete(of, &key(name)).unwrap();
    txn.commit().await.unwrap();
}

/// What a range of search keys leads to, as `search key payload`.
async fn found(txn: &Transaction<'_>, of: &Collection, from: &str, to: &str) -> Vec<String> {
    let (from, to) = (key(from), key(to));
    let bounds = (Bound::Included(&from), Bound::Excluded(&to));
    let mut found = txn.probe_range(of, "born", bounds.0, bounds.1).await.unwrap();
    let mut all = Vec::new();
    while let Some((search, record)) = found.next().await.unwrap() {
        all.push(format!("{search} {} {}", record.key, record.payload));
    }
    all
}

async fn now(db: &Db, of: &Collection) -> Vec<String> {
    found(&db.begin_for(of), of, "0", "9").await
}

/// What a look at the index and a walk over everything find.
async fn check(db: &Db, records: u64) {
    let found = db.store().check_index("people", "born", |_| {}).await.unwrap();
    let whole = IndexCheck { records, entries: records, is_exact: true, ..IndexCheck::default() };
    assert_eq!(found, whole);
    let verified = db.store().verify(|_, _| {}).await.unwrap();
    assert_eq!(verified.problems, [""; 0]);
    assert_eq!(verified.quarantined, 0);
}

fn is_aborted<T: std::fmt::Debug>(outcome: Result<T, StoreError>) -> AbortCause {
    match outcome {
        Err(StoreError::Aborted { why }) => why,
        other => panic!("not aborted: {other:?}"),
    }
}

#[tokio::test]
async fn an_index_is_what_its_records_say_at_every_snapshot() {
    for backend in Backend::ALL {
        for isolation in Isolation::ALL {
            let cloud = memory();
            let (db, of) = made(&cloud, backend, isolation).await;
            for (name, text) in [("ada", "x,1815"), ("alan", "x,1912"), ("none", "no comma")] {
                put(&db, &of, name, text).await;
            }
            db.checkpoint().await.unwrap();
            put(&db, &of, "konrad", "x,1910").await;
            let early = db.begin_for(&of);
            assert!(early.contains(&of, &key("ada")).await.unwrap());
            let done = db.create_index(&of, "born", &BY).await.unwrap();
            assert_eq!((done.records, done.missing), (3, 3), "{done:?}");
            // At a snapshot of before it was not there.
            let refused = early.probe(&of, "born", &key("1815")).await.map(drop);
            assert!(matches!(refused, Err(StoreError::Invalid(_))), "{refused:?}");
            let old = db.begin_for(&of);
            let before = ["1815 ada x,1815", "1910 konrad x,1910", "1912 alan x,1912"];
            assert_eq!(found(&old, &of, "0", "9").await, before);

            // Another client, to whom nobody told of it.
            let other = client(&cloud, settings()).await;
            put(&other, &of, "ada", "y,1816").await;
            delete(&other, &of, "alan").await;
            put(&other, &of, "grace", "y,1906").await;
            put(&other, &of, "konrad", "y,1910").await;
            let after = ["1816 ada y,1816", "1906 grace y,1906", "1910 konrad y,1910"];
            for db in [&db, &other] {
                assert_eq!(now(db, &of).await, after);
                assert_eq!(found(&old, &of, "0", "9").await, before, "as of before");
            }
            other.store().sweep().await.unwrap();
            assert_eq!(found(&old, &of, "0", "9").await, before, "on pages, too");
            assert_eq!(found(&old, &of, "1816", "1912").await, before[1..2]);
            let mut only = other.begin_for(&of);
            assert_eq!(found(&only, &of, "1906", "1910").await, after[1..2]);
            // Its own writes are in what it finds, and what they replace is not.
            only.put(&of, &key("ada"), Payload::new("z,1900").unwrap()).unwrap();
            only.delete(&of, &key("grace")).unwrap();
            only.put(&of, &key("large"), Payload::new(vec![b','; 40_000]).unwrap()).unwrap();
            let own = ["1900 ada z,1900", "1910 konrad y,1910"];
            assert_eq!(found(&only, &of, "0", "9").await, own);
            only.commit().await.unwrap();
            check(&db, 2).await;
            assert_eq!(now(&db, &of).await, own);
            db.close().await.unwrap();
            other.close().await.unwrap();
            let again = client(&cloud, settings()).await;
            assert_eq!(now(&again, &of).await, own);
            // Built again it has nothing to do.
            let done = again.store().build_index("people", "born", |_| {}).await.unwrap();
            assert_eq!((done.missing, done.dangling), (0, 0), "{done:?}");
            check(&again, 2).await;
        }
    }
}

/// Leaves split between the versions of entries, and versions that no snapshot sees are pruned.
#[tokio::test]
async fn many_entries_on_many_leaves() {
    let cloud = memory();
    let small = Settings {
        leaf_bytes_max: 500,
        snapshot_age: Duration::from_millis(20),
        window_commits_max: 8,
        ..settings()
    };
    Store::create(&cloud, &small, Backend::S3Log, 1).await.unwrap();
    let db = client(&cloud, small).await;
    let of = db.create_isolated_collection("people", Isolation::Snapshot).await.unwrap();
    let text = |n: u32, round: u32| format!("{round},{:04}", n * (round + 1) % 97);
    for chunk in 0..4 {
        let mut txn = db.begin_for(&of);
        for n in chunk * 30..chunk * 30 + 30 {
            let payload = Payload::new(text(n, 0)).unwrap();
            txn.put(&of, &key(&format!("{n:03}")), payload).unwrap();
        }
        txn.commit().await.unwrap();
    }
    db.create_index(&of, "born", &BY).await.unwrap();
    // Of one of them, and of its entries, there are more versions than a leaf holds.
    let long = Settings { snapshot_age: Duration::from_secs(600), ..small };
    let patient = client(&cloud, long).await;
    for n in 0..60 {
        put(&patient, &of, "060", &format!("0,{:04}", n % 3)).await;
    }
    patient.store().sweep().await.unwrap();
    let again = patient.store().build_index("people", "born", |_| {}).await.unwrap();
    assert_eq!((again.missing, again.dangling), (0, 0), "{again:?}");
    check(&patient, 120).await;
    for round in 1..4 {
        // By somebody who prunes nothing, however long it takes.
        for n in 0..120 {
            put(&patient, &of, &format!("{n:03}"), &text(n, round)).await;
        }
        patient.store().sweep().await.unwrap();
        tokio::time::sleep(Duration::from_millis(30)).await;
        // A commit says what may be pruned.
        put(&db, &of, "000", &text(0, round)).await;
        assert!(db.store().collect_garbage(Duration::ZERO).await.unwrap().versions > 0);
        let mut expected: Vec<String> = (0..120)
            .map(|n| text(n, round))
            .zip(0..)
            .map(|(text, n): (String, u32)| format!("{} {n:03} {text}", &text[2..]))
            .collect();
        expected.sort();
        assert_eq!(now(&db, &of).await, expected, "{round}");
        check(&db, 120).await;
    }
}

/// Somebody puts a record into a range of search keys that another one has read, takes one out, or moves one there.
#[tokio::test]
async fn a_range_of_an_index_has_no_phantoms() {
    for isolation in Isolation::ALL {
        let cloud = memory();
        let (db, of) = made(&cloud, Backend::S3Log, isolation).await;
        let other = client(&cloud, settings()).await;
        put(&db, &of, "ada", "x,1815").await;
        put(&db, &of, "konrad", "x,1910").await;
        db.create_index(&of, "born", &BY).await.unwrap();
        for (what, name, text, meets) in [
            ("put into it", "grace", Some("x,1906"), true),
            ("put beside it", "joan", Some("x,2000"), false),
            ("moved into it", "ada", Some("x,1950"), true),
            ("taken out of it", "grace", None, true),
            ("moved within it", "ada", Some("x,1951"), true),
            ("moved out of it", "ada", Some("x,1815"), true),
            ("changed beside it", "ada", Some("y,1815"), false),
        ] {
            let mut counts = db.begin_for(&of);
            let there = found(&counts, &of, "1900", "1999").await.len();
            let payload = Payload::new(format!("{there}")).unwrap();
            counts.put(&of, &key("count"), payload).unwrap();
            match text {
                Some(text) => put(&other, &of, name, text).await,
                None => delete(&other, &of, name).await,
            }
            let outcome = counts.commit().await;
            match isolation {
                Isolation::Serializable if meets => {
                    let why = is_aborted(outcome);
                    assert!(matches!(why, AbortCause::Read { .. }), "{what}: {why:?}");
                }
                _ => drop(outcome.unwrap_or_else(|error| panic!("{what}: {error}"))),
            }
        }
        check(&db, 3).await;
    }
}

/// Whoever began before an index was named, or was dropped, does not commit without its entries, or without
/// knowing that nobody writes what it has looked for.
#[tokio::test]
async fn who_does_not_know_an_index_is_told_so() {
    let cloud = memory();
    let (db, of) = made(&cloud, Backend::S3Log, Isolation::Serializable).await;
    let other = client(&cloud, settings()).await;
    put(&db, &of, "ada", "x,1815").await;
    put(&other, &of, "alan", "x,1912").await;
    let mut reader = other.begin_for(&of);
    assert!(reader.contains(&of, &key("ada")).await.unwrap());
    reader.put(&of, &key("konrad"), Payload::new("x,1910").unwrap()).unwrap();
    let mut blind = other.begin_for(&of);
    blind.put(&of, &key("grace"), Payload::new("x,1906").unwrap()).unwrap();
    db.create_index(&of, "born", &BY).await.unwrap();
    assert_eq!(is_aborted(reader.commit().await), AbortCause::Indexes);
    // Who has read nothing is as if it began now.
    blind.commit().await.unwrap();
    let there = ["1815 ada x,1815", "1906 grace x,1906", "1912 alan x,1912"];
    assert_eq!(now(&other, &of).await, there);
    check(&db, 3).await;

    let mut probes = other.begin_for(&of);
    assert_eq!(found(&probes, &of, "1900", "1999").await, there[1..]);
    let plain = db.create_isolated_collection("plain", Isolation::Serializable).await.unwrap();
    probes.put(&plain, &key("count"), Payload::new("2").unwrap()).unwrap();
    db.drop_index(&db.collection("people").await.unwrap(), "born").await.unwrap();
    // Nobody has entries to write any more: it would not be seen.
    put(&db, &of, "joan", "x,1950").await;
    assert_eq!(is_aborted(probes.commit().await), AbortCause::Indexes);
    let refused = other.begin_for(&of).probe(&of, "born", &key("1815")).await.map(drop);
    assert!(matches!(refused, Err(StoreError::NotFound(_))), "{refused:?}");
    let verified = db.store().verify(|_, _| {}).await.unwrap();
    assert_eq!((verified.problem_count, verified.quarantined), (0, 0), "{verified:?}");
    // Under the same name again: another tree, and nothing of the old one.
    let of = db.collection("people").await.unwrap();
    let by = SearchBy::Part { separator: b',', number: 0 };
    db.create_index(&of, "born", &by).await.unwrap();
    let of = other.collection("people").await.unwrap();
    let mut all = Vec::new();
    let txn = other.begin_for(&of);
    let mut records = txn.probe(&of, "born", &key("x")).await.unwrap();
    while let Some((_, record)) = records.next().await.unwrap() {
        all.push(record.key.to_string());
    }
    assert_eq!(all, ["ada", "alan", "grace", "joan"]);
    check(&db, 4).await;
}

/// Records come, change and go while it is built, by clients who hear of it at any moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_is_built_beside_writers() {
    let cloud = memory();
    let small = Settings { leaf_bytes_max: 700, attempts_max: 30, ..settings() };
    Store::create(&cloud, &small, Backend::S3Log, 1).await.unwrap();
    let db = client(&cloud, small).await;
    let of = db.create_isolated_collection("people", Isolation::Snapshot).await.unwrap();
    for n in 0..60 {
        put(&db, &of, &format!("{n:02}"), &format!("0,{:02}", n % 7)).await;
    }
    db.store().sweep().await.unwrap();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writers: Vec<_> = (1..3u32)
        .map(|writer| {
            let (cloud, of, stop) = (cloud.clone(), of.clone(), stop.clone());
            tokio::spawn(async move {
                let db = client(&cloud, small).await;
                let mut n = writer * 17;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    n = n.wrapping_mul(31).wrapping_add(writer);
                    let name = key(&format!("{:02}", n % 70));
                    let mut txn = db.begin_for(&of);
                    match n % 5 {
                        0 => txn.delete(&of, &name).unwrap(),
                        _ => {
                            let payload = Payload::new(format!("{n},{:02}", n % 11)).unwrap();
                            txn.put(&of, &name, payload).unwrap();
                        }
                    }
                    match txn.commit().await {
                        Ok(_) | Err(StoreError::Aborted { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(30)).await;
    loop {
        match db.create_index(&of, "born", &BY).await {
            Ok(_) => break,
            Err(StoreError::Contended { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    let txn = db.begin_for(&of);
    let (mut records, mut expected) = (txn.scan(&of), Vec::new());
    while let Some(record) = records.next().await.unwrap() {
        let text = record.payload.to_string();
        let search = text.split(',').nth(1).unwrap().to_owned();
        expected.push(format!("{search} {} {text}", record.key));
    }
    expected.sort();
    assert_eq!(now(&db, &of).await, expected);
    check(&db, expected.len() as u64).await;
}

/// A drop that was cut goes on with the next collection of garbage; until then nobody is hindered.
#[tokio::test]
async fn a_drop_that_was_cut_is_ended_by_gc() {
    let raw = memory();
    let (meddler, cloud) = Meddler::over(&raw);
    let (db, of) = made(&cloud, Backend::S3Log, Isolation::Snapshot).await;
    put(&db, &of, "ada", "x,1815").await;
    db.create_index(&of, "born", &BY).await.unwrap();
    meddler.puts(NUMBERS, &[Fate::Denied]);
    assert!(db.drop_index(&of, "born").await.is_err());
    let named = async || numbers(&raw).await.indexes.len();
    assert_eq!(named().await, 1);
    put(&db, &of, "ada", "x,1816").await;
    let other = client(&raw, settings()).await;
    other.store().collect_garbage(Duration::ZERO).await.unwrap();
    assert_eq!(named().await, 0);
    put(&db, &of, "ada", "x,1817").await;
    let later = Settings { tombstone_age: Duration::ZERO, ..settings() };
    let collector = client(&raw, later).await;
    collector.store().collect_garbage(Duration::ZERO).await.unwrap();
    let verified = other.store().verify(|_, _| {}).await.unwrap();
    assert_eq!(verified.problems, [""; 0]);
    let again = other.collection("people").await.unwrap();
    other.create_index(&again, "born", &BY).await.unwrap();
    assert_eq!(now(&other, &again).await, ["1817 ada x,1817"]);
    check(&other, 1).await;
}

/// A build that was cut is gone on with, and nobody finds a part of it.
#[tokio::test]
async fn a_build_that_was_cut_goes_on() {
    let raw = memory();
    let (meddler, cloud) = Meddler::over(&raw);
    let (db, of) = made(&cloud, Backend::S3Log, Isolation::Snapshot).await;
    put(&db, &of, "ada", "x,1815").await;
    let store = client(&cloud, settings()).await;
    store.store().create_index("people", "born", &BY).await.unwrap();
    let refused = db.begin_for(&of).probe(&of, "born", &key("1815")).await.map(drop);
    assert!(matches!(refused, Err(StoreError::Invalid(_))), "{refused:?}");
    put(&db, &of, "alan", "x,1912").await;
    // It is named in the numbers; and its entries are refused.
    let (second, third) = (meddler.clone(), meddler.clone());
    meddler.before_put(NUMBERS, async move {
        second.before_put(NUMBERS, async move { third.puts(NUMBERS, &[Fate::Denied]) });
    });
    assert!(store.store().build_index("people", "born", |_| {}).await.is_err());
    let refused = db.begin_for(&of).probe(&of, "born", &key("1815")).await.map(drop);
    assert!(matches!(refused, Err(StoreError::Invalid(_))), "{refused:?}");
    put(&db, &of, "alan", "x,1913").await;
    db.store().build_index("people", "born", |_| {}).await.unwrap();
    let of = db.collection("people").await.unwrap();
    assert_eq!(now(&db, &of).await, ["1815 ada x,1815", "1913 alan x,1913"]);
    check(&db, 2).await;
}

/// A sequencer that names an index no more, as an older copy of it would not: that is told, and building mends it.
#[tokio::test]
async fn an_index_that_the_sequencer_does_not_name_is_mended() {
    let cloud = memory();
    let (db, of) = made(&cloud, Backend::S3Log, Isolation::Snapshot).await;
    put(&db, &of, "ada", "x,1815").await;
    put(&db, &of, "alan", "x,1912").await;
    db.create_index(&of, "born", &BY).await.unwrap();
    let mut numbers = numbers(&cloud).await;
    numbers.indexes.clear();
    cloud.objects.put(NUMBERS, numbers.encode(), PutIf::Always).await;
    let db = client(&cloud, settings()).await;
    let of = db.collection("people").await.unwrap();
    put(&db, &of, "ada", "x,1816").await;
    put(&db, &of, "grace", "x,1906").await;
    let verified = db.store().verify(|_, _| {}).await.unwrap();
    assert_eq!(verified.problem_count, 1, "{verified:?}");
    assert!(verified.problems[0].contains("people: index born is not named"), "{verified:?}");
    let refused = db.begin_for(&of).probe(&of, "born", &key("1815")).await.map(drop);
    assert!(matches!(refused, Err(StoreError::Invalid(_))), "{refused:?}");
    let found = db.store().check_index("people", "born", |_| {}).await.unwrap();
    assert_eq!((found.missing, found.dangling), (2, 1), "{found:?}");
    let done = db.store().build_index("people", "born", |_| {}).await.unwrap();
    assert_eq!((done.missing, done.dangling), (2, 1), "{done:?}");
    let there = ["1816 ada x,1816", "1906 grace x,1906", "1912 alan x,1912"];
    assert_eq!(now(&db, &of).await, there);
    check(&db, 3).await;
}

/// The longest keys there are have their entries; those that have no room in a page are refused, and nothing is
/// committed with them.
#[tokio::test]
async fn entries_of_the_longest_keys() {
    let cloud = memory();
    let (db, of) = made(&cloud, Backend::S3Log, Isolation::Snapshot).await;
    db.create_index(&of, "born", &SearchBy::Payload).await.unwrap();
    let long = |byte: u8| Key::new(vec![byte; 1024]).unwrap();
    let mut txn = db.begin_for(&of);
    txn.put(&of, &long(b'k'), Payload::new([7; 2000]).unwrap()).unwrap();
    txn.commit().await.unwrap();
    db.store().sweep().await.unwrap();
    let txn = db.begin_for(&of);
    let mut found = txn.probe(&of, "born", &long(7)).await.unwrap();
    // The search key is the beginning of the payload.
    let (search, record) = found.next().await.unwrap().unwrap();
    assert_eq!((search, record.key), (long(7), long(b'k')));
    assert!(found.next().await.unwrap().is_none());
    let mut txn = db.begin_for(&of);
    txn.put(&of, &long(0), Payload::new([0; 2000]).unwrap()).unwrap();
    txn.put(&of, &key("other"), Payload::new("x").unwrap()).unwrap();
    let refused = txn.commit().await;
    assert!(matches!(refused, Err(StoreError::Invalid(_))), "{refused:?}");
    assert!(!db.begin_for(&of).contains(&of, &key("other")).await.unwrap());
    check(&db, 1).await;
}

/// The delete of an entry that was never made, since it has no room in a page, was put on a page all the same, and
/// made that unreadable: with it the collection, and garbage collection.
#[tokio::test]
async fn a_record_whose_entry_has_no_room_can_be_deleted() {
    let cloud = memory();
    let (db, of) = made(&cloud, Backend::S3Log, Isolation::Snapshot).await;
    let zeros = Key::new(vec![0; 1024]).unwrap();
    let put = async |payload: Option<Payload>| {
        let mut txn = db.begin_for(&of);
        match payload {
            Some(payload) => txn.put(&of, &zeros, payload).unwrap(),
            None => txn.delete(&of, &zeros).unwrap(),
        }
        txn.commit().await
    };
    put(Some(Payload::new([0; 2000]).unwrap())).await.unwrap();
    let refused = db.create_index(&of, "born", &SearchBy::Payload).await;
    let names_it = |what: &str| what.contains("record \\x00\\x00") && what.contains("zero");
    assert!(matches!(&refused, Err(StoreError::Invalid(what)) if names_it(what)), "{refused:?}");
    // It stays as it is for whoever only looks.
    assert_eq!(db.store().verify(|_, _| {}).await.unwrap().problems, [""; 0]);
    put(Some(Payload::new("short").unwrap())).await.unwrap();
    put(Some(Payload::new("other").unwrap())).await.unwrap();
    put(None).await.unwrap();
    db.store().sweep().await.unwrap();
    db.store().collect_garbage(Duration::ZERO).await.unwrap();
    db.store().build_index("people", "born", |_| {}).await.unwrap();
    let db = client(&cloud, settings()).await;
    check(&db, 0).await;
}

/// Whoever restores what the catalogue lost finds the indexes as they were: garbage collection took them out of the
/// numbers, and who wrote meanwhile wrote no entries.
#[tokio::test]
async fn what_the_catalogue_lost_keeps_its_indexes() {
    let cloud = memory();
    let (db, of) = made(&cloud, Backend::S3Log, Isolation::Snapshot).await;
    put(&db, &of, "ada", "x,1815").await;
    db.create_index(&of, "born", &BY).await.unwrap();
    let entry = "catalog/people";
    let Get::Found { bytes, .. } = cloud.objects.get(entry, None).await.unwrap() else {
        panic!("the catalogue has it")
    };
    cloud.objects.delete(entry, None).await;
    let other = client(&cloud, settings()).await;
    let collected = other.store().collect_garbage(Duration::ZERO).await;
    assert!(collected.is_err(), "{collected:?}");
    put(&db, &of, "alan", "x,1912").await;
    assert_eq!(numbers(&cloud).await.indexes.len(), 1);
    cloud.objects.put(entry, bytes, PutIf::Absent).await;
    let db = client(&cloud, settings()).await;
    check(&db, 2).await;
    let of = db.collection("people").await.unwrap();
    assert_eq!(now(&db, &of).await, ["1815 ada x,1815", "1912 alan x,1912"]);
}

/// A client may be called 0, which is what whoever builds an index has in place of a name.
#[tokio::test]
async fn beside_a_client_of_that_name_an_index_can_be_built() {
    let cloud = memory();
    let (_, of) = made(&cloud, Backend::S3Log, Isolation::Snapshot).await;
    let options =
        Options { settings: settings(), has_worker: false, client: Some(0), ..Options::default() };
    for _ in 0..2 {
        let db = Db::over(cloud.clone(), &options).await.unwrap();
        put(&db, &of, "ada", "x,1815").await;
        db.close().await.unwrap();
    }
    let db = client(&cloud, settings()).await;
    db.create_index(&of, "born", &BY).await.unwrap();
    check(&db, 1).await;
}

/// What cannot be brought to a leaf of an index waits aside, with the others of its commit on their pages; and an
/// index that is damaged can be dropped, and made again.
#[tokio::test]
async fn a_damaged_index_is_dropped_and_made_again() {
    let cloud = memory();
    let (db, of) = made(&cloud, Backend::S3Log, Isolation::Serializable).await;
    let plain = db.create_isolated_collection("plain", Isolation::Serializable).await.unwrap();
    put(&db, &of, "ada", "x,1815").await;
    db.create_index(&of, "born", &BY).await.unwrap();
    db.checkpoint().await.unwrap();
    let of = db.collection("people").await.unwrap();
    let root = format!("page/{}", of.indexes[0].root);
    let noise = bytes::Bytes::from_static(b"s3dP is what is left");
    cloud.objects.put(&root, noise, PutIf::Always).await;
    let db = client(&cloud, settings()).await;
    put(&db, &of, "alan", "x,1912").await;
    let swept = db.store().sweep().await;
    assert!(matches!(&swept, Err(StoreError::Damaged { object, .. }) if *object == root));
    let now_there = numbers(&cloud).await;
    assert_eq!((now_there.applied, now_there.aside.len()), (now_there.last, 1));
    let there = db.begin_for(&of).read(&of, &key("alan")).await.unwrap();
    assert_eq!(there, Some(Payload::new("x,1912").unwrap()));
    let mut txn = db.begin_for(&of);
    txn.put(&of, &key("grace"), Payload::new("x,1906").unwrap()).unwrap();
    let refused = txn.commit().await;
    assert!(matches!(&refused, Err(StoreError::Damaged { object, .. }) if *object == root));
    put(&db, &plain, "k", "v").await;

    db.drop_index(&of, "born").await.unwrap();
    put(&db, &of, "grace", "x,1906").await;
    db.store().sweep().await.unwrap();
    assert_eq!(numbers(&cloud).await.aside.len(), 0);
    let of = db.collection("people").await.unwrap();
    db.create_index(&of, "born", &BY).await.unwrap();
    let there = ["1815 ada x,1815", "1906 grace x,1906", "1912 alan x,1912"];
    assert_eq!(now(&db, &of).await, there);
    let found = db.store().check_index("people", "born", |_| {}).await.unwrap();
    assert_eq!(
        found,
        IndexCheck { records: 3, entries: 3, is_exact: true, ..IndexCheck::default() }
    );
    let verified = db.store().verify(|_, _| {}).await.unwrap();
    // The entry that nobody wants any more.
    assert_eq!((verified.problem_count, verified.quarantined), (0, 1), "{verified:?}");
}

/// Whoever builds an index takes nobody's place among the lives that are remembered, and needs none: not even where
/// these are so many that one that is not among them could be over.
#[tokio::test]
async fn who_builds_an_index_has_no_life() {
    let cloud = memory();
    let (db, of) = made(&cloud, Backend::S3Log, Isolation::Snapshot).await;
    put(&db, &of, "ada", "x,1815").await;
    let mut full = numbers(&cloud).await;
    let own = full.lives[0];
    full.lives = (1..1000).map(|client| (client, 1, 0)).chain([own]).collect();
    full.lives.sort_unstable();
    cloud.objects.put(NUMBERS, full.encode(), PutIf::Always).await;
    let other = client(&cloud, settings()).await;
    let done = other.create_index(&of, "born", &BY).await.unwrap();
    assert_eq!((done.records, done.missing), (1, 1));
    let after = numbers(&cloud).await;
    assert_eq!((after.last, &after.lives), (full.last + 1, &full.lives));
    assert_eq!(now(&other, &of).await, ["1815 ada x,1815"]);
    check(&other, 1).await;
}

/// Transactions that have read nothing are all committed, however often somebody was faster: each works out again
/// which entries its records replace. One that has read is aborted by what changed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_only_writes_is_not_aborted() {
    let cloud = memory();
    let (db, of) = made(&cloud, Backend::S3Log, Isolation::Serializable).await;
    db.create_index(&of, "born", &BY).await.unwrap();
    let writers: Vec<_> = (0..3u32)
        .map(|writer| {
            let (cloud, of) = (cloud.clone(), of.clone());
            tokio::spawn(async move {
                let db = client(&cloud, Settings { attempts_max: 30, ..settings() }).await;
                for n in 0..15 {
                    put(&db, &of, "one", &format!("{writer},{n:02}")).await;
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let txn = db.begin_for(&of);
    let all = found(&txn, &of, "0", "9").await;
    assert_eq!(all.len(), 1, "{all:?}");
    let is = txn.read(&of, &key("one")).await.unwrap().unwrap().to_string();
    assert_eq!(all[0], format!("{} one {is}", is.split(',').nth(1).unwrap()));
    let mut late = db.begin_for(&of);
    assert!(late.contains(&of, &key("one")).await.unwrap());
    late.put(&of, &key("one"), Payload::new("x,50").unwrap()).unwrap();
    put(&db, &of, "one", "x,51").await;
    assert!(matches!(is_aborted(late.commit().await), AbortCause::Written { .. }));
    check(&db, 1).await;
}

/// Each commit puts all indexes: there are no more of them than that allows, and those that the catalogue does not
/// name do not count for long.
#[tokio::test]
async fn there_are_no_more_indexes_than_each_commit_can_put() {
    let cloud = memory();
    let (db, of) = made(&cloud, Backend::S3Log, Isolation::Snapshot).await;
    put(&db, &of, "ada", "x,1815").await;
    let mut full = numbers(&cloud).await;
    let plain = db.create_isolated_collection("plain", Isolation::Snapshot).await.unwrap();
    let index = |n| SequencedIndex { of: plain.root, root: PageId(n), by: BY, is_ready: true };
    full.indexes = (0..256).map(index).collect();
    cloud.objects.put(NUMBERS, full.encode(), PutIf::Always).await;
    let db = client(&cloud, settings()).await;
    let refused = db.create_index(&of, "born", &BY).await;
    let is_told = matches!(&refused, Err(StoreError::Invalid(what)) if what.contains("256"));
    assert!(is_told, "{refused:?}");
    put(&db, &of, "ada", "x,1816").await;
    db.store().collect_garbage(Duration::ZERO).await.unwrap();
    assert_eq!(numbers(&cloud).await.indexes, []);
    db.create_index(&of, "born", &BY).await.unwrap();
    assert_eq!(now(&db, &of).await, ["1816 ada x,1816"]);
    check(&db, 1).await;
}
