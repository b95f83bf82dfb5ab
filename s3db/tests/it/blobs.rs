//! Payloads that are objects of their own.

use std::{sync::Arc, time::Duration};

use s3db::{
    Address, Backend, BoundError, Change, Collection, Db, Entry, Inspected, Isolation, Level,
    LogRecord, LoggedTransaction, Options, PAYLOAD_BYTES_MAX, Payload, SearchBy, Session, Settings,
    Stamp, StoreError, Value,
    cloud::{
        CallKind, Cloud, Delete, Get, Put, PutIf, embedded,
        embedded::Memory,
        model::{Faults, Process},
    },
};

use crate::{
    embedded::{key, options},
    printed::{open, run, world},
    sealed::keys,
};

/// Bytes that are nowhere the same for long.
pub(crate) fn content(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

pub(crate) async fn written(db: &Db, content: &[u8]) -> Value {
    let mut writing = db.write_blob().await.unwrap();
    for bytes in content.chunks(777_777) {
        writing.write(bytes).await.unwrap();
    }
    writing.finish().await.unwrap()
}

/// A payload, part by part.
async fn streamed(db: &Db, of: &Collection, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
    let Some(mut content) = db.begin_for(of).open_content(of, &key(name)).await? else {
        return Ok(None);
    };
    let mut all = Vec::new();
    while let Some(bytes) = content.next().await? {
        all.extend_from_slice(&bytes);
    }
    assert_eq!(content.bytes(), all.len() as u64);
    Ok(Some(all))
}

pub(crate) async fn objects(cloud: &Cloud) -> Vec<String> {
    cloud.objects.list("blob/", None, 1000).await.unwrap().names
}

/// Written, read, replaced, damaged and lost, at any address. `len` is that of the largest blob.
pub(crate) async fn life_of_blobs(url: &str, options: &Options, len: usize) {
    life_of_blobs_in(url, options, len, None).await;
}

/// The same, of a collection that was created for that level.
async fn life_of_blobs_in(url: &str, options: &Options, len: usize, isolation: Option<Isolation>) {
    let cloud = url.parse::<Address>().unwrap().cloud().unwrap();
    let db = Db::create(url, options).await.unwrap();
    let films = match isolation {
        None => db.create_collection("films").await.unwrap(),
        Some(isolation) => db.create_isolated_collection("films", isolation).await.unwrap(),
    };
    let reader = Db::open_with(url, options).await.unwrap();
    let part = options.settings.part_bytes;
    let (large, medium, small) = (content(1, len), content(2, 40_000), content(3, 100));

    // Nobody sees it before the commit; aborted, it is garbage.
    let given_up = written(&db, &large).await;
    let mut txn = db.begin_for(&films);
    txn.put_value(&films, &key("large"), given_up).unwrap();
    let own = txn.read(&films, &key("large")).await.unwrap();
    assert!(own.is_some_and(|own| own.as_bytes() == large), "the transaction itself does");
    txn.abort();
    let parts = len.div_ceil(part);
    assert_eq!(objects(&cloud).await.len(), parts);
    assert_eq!(db.ledger().charge(CallKind::PutBlob).calls, parts as u64);
    assert_eq!(streamed(&reader, &films, "large").await.unwrap(), None);

    let mut txn = db.begin_for(&films);
    txn.put_value(&films, &key("large"), written(&db, &large).await).unwrap();
    txn.put(&films, &key("medium"), Payload::new(&medium).unwrap()).unwrap();
    txn.put_value(&films, &key("small"), written(&db, &small).await).unwrap();
    assert_eq!(objects(&cloud).await.len(), 2 * parts, "what is in memory is put by the commit");
    txn.commit().await.unwrap();
    let medium_parts = 40_000usize.div_ceil(part);
    assert_eq!(objects(&cloud).await.len(), 2 * parts + medium_parts);
    db.checkpoint().await.unwrap();
    // Which has no copies of pages from before.
    reader.close().await.unwrap();
    let reader = Db::open_with(url, options).await.unwrap();
    for (of, who) in [(&db, "who wrote it"), (&reader, "others")] {
        for (name, content) in [("large", &large), ("medium", &medium), ("small", &small)] {
            let all = streamed(of, &films, name).await.unwrap().unwrap();
            assert!(all == *content, "{who}: {name}");
            let whole = of.begin_for(&films).read(&films, &key(name)).await.unwrap().unwrap();
            assert!(whole.as_bytes() == content, "{who}: {name}");
        }
        let txn = of.begin_for(&films);
        let mut scan = txn.scan(&films);
        let record = scan.next().await.unwrap().unwrap();
        assert!(record.key == key("large") && record.payload.as_bytes() == large, "{who}");
        let gets = of.ledger().charge(CallKind::GetBlob).calls;
        assert_eq!(scan.next_key().await.unwrap(), Some(key("medium")));
        assert!(txn.contains(&films, &key("large")).await.unwrap());
        let (name, mut rest) = scan.next_content().await.unwrap().unwrap();
        assert_eq!(
            (name, rest.next().await.unwrap().unwrap().to_vec()),
            (key("small"), small.clone())
        );
        assert!(scan.next_key().await.unwrap().is_none(), "{who}");
        assert_eq!(of.ledger().charge(CallKind::GetBlob).calls, gets, "{who}: keys read no blob");
    }
    // Who reads pays for every part.
    let txn = reader.begin_for(&films);
    let mut all = txn.open_content(&films, &key("large")).await.unwrap().unwrap();
    while all.next().await.unwrap().is_some() {}
    assert_eq!(txn.ledger().charge(CallKind::GetBlob).calls, parts as u64);
    let found = db.store().verify(|_, _| {}).await.unwrap();
    assert_eq!(found.problems, Vec::<String>::new());
    assert_eq!((found.blobs, found.blob_orphans), (2, 1));
    assert_eq!(found.blob_bytes, (len + medium.len()) as u64);

    // What is damaged, of another name, or gone is named.
    let before = objects(&cloud).await;
    // The last part of the one that is committed.
    let last = format!("/{:08x}", parts - 1);
    let name = before.iter().rfind(|name| name.ends_with(&last)).unwrap().clone();
    let Ok(Get::Found { bytes, .. }) = cloud.objects.get(&name, None).await else {
        panic!("{name} is there")
    };
    let mut damaged = bytes.to_vec();
    damaged[60] ^= 1;
    let other = name.replace(&last, "/00000000");
    let Ok(Get::Found { bytes: moved, .. }) = cloud.objects.get(&other, None).await else {
        panic!("{other} is there")
    };
    for (bytes, why) in
        [(Some(damaged.into()), "damaged"), (Some(moved), "damaged"), (None, "restore")]
    {
        match bytes {
            Some(bytes) => {
                let put = cloud.objects.put(&name, bytes, PutIf::Always).await;
                assert!(matches!(put, Put::Stored(_)));
            }
            None => assert_eq!(cloud.objects.delete(&name, None).await, Delete::Gone),
        }
        let error = streamed(&reader, &films, "large").await.err().unwrap().to_string();
        assert!(error.contains(&name) && error.contains(why), "{error}");
        assert!(reader.begin_for(&films).read(&films, &key("large")).await.is_err());
        let found = db.store().verify(|_, _| {}).await.unwrap();
        assert_eq!(found.problem_count, 1, "{:?}", found.problems);
        let problem = &found.problems[0];
        assert!(problem.contains("films: record large") && problem.contains(&name), "{problem}");
    }
    // Written again, nothing is wrong any more.
    let mut txn = db.begin_for(&films);
    txn.put(&films, &key("large"), Payload::new(&medium).unwrap()).unwrap();
    txn.delete(&films, &key("medium")).unwrap();
    txn.commit().await.unwrap();
    db.checkpoint().await.unwrap();
    let found = db.store().verify(|_, _| {}).await.unwrap();
    let unnamed = match isolation {
        None => {
            assert_eq!((found.problem_count, found.blobs, found.blob_orphans), (0, 1, 3));
            3
        }
        Some(_) => {
            // A version that snapshots can see lacks a part.
            assert_eq!((found.problem_count, found.blobs, found.blob_orphans), (1, 3, 1));
            1
        }
    };
    // What is younger than any transaction can be stays.
    let done = db.store().collect_garbage(Duration::ZERO).await.unwrap();
    assert_eq!((done.blobs, done.blobs_waiting), (0, unnamed));
    reader.close().await.unwrap();
    db.close().await.unwrap();
}

fn in_parts(backend: Backend) -> Options {
    let settings = Settings { part_bytes: 15_000, ..options(backend).settings };
    Options { settings, ..options(backend) }
}

#[tokio::test]
async fn blobs_in_a_directory_and_in_memory() {
    for backend in Backend::ALL {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("file://{}/db", folder.path().display());
        life_of_blobs(&url, &in_parts(backend), 100_000).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}/db", folder.path().display());
    let sealed = Options { keys: Some(keys(&[1])), ..in_parts(Backend::S3Log) };
    life_of_blobs(&url, &sealed, 100_000).await;
}

/// Those of isolated transactions, whatever log there is.
#[tokio::test]
async fn blobs_of_isolated_transactions() {
    for backend in Backend::ALL {
        for (isolation, sealed) in [(Isolation::Snapshot, false), (Isolation::Serializable, true)] {
            let folder = tempfile::tempdir().unwrap();
            let url = format!("file://{}/db", folder.path().display());
            let keys = sealed.then(|| keys(&[1]));
            let options = Options { keys, ..in_parts(backend) };
            life_of_blobs_in(&url, &options, 100_000, Some(isolation)).await;
        }
    }
}

fn memory() -> Cloud {
    embedded::memory(Arc::new(Memory::new()))
}

/// A database in `cloud`, to whose client nothing is too young.
async fn collector(cloud: &Cloud) -> Db {
    let settings = Settings { tombstone_age: Duration::ZERO, ..in_parts(Backend::S3Log).settings };
    Db::over(cloud.clone(), &Options { settings, ..in_parts(Backend::S3Log) }).await.unwrap()
}

async fn create(cloud: &Cloud, backend: Backend) -> (Db, Collection) {
    let of = in_parts(backend);
    s3db::Store::create(cloud, &of.settings, backend, 2).await.unwrap();
    let db = Db::over(cloud.clone(), &of).await.unwrap();
    let things = db.create_collection("things").await.unwrap();
    (db, things)
}

/// Those of records that were written again or deleted, and of transactions that were given up, go; all
/// others stay. Whoever holds a copy of a page that names one which is gone reads what is there now.
#[tokio::test]
async fn garbage_goes_and_nothing_else() {
    for backend in Backend::ALL {
        let cloud = memory();
        let (db, things) = create(&cloud, backend).await;
        let reader = Db::over(cloud.clone(), &in_parts(backend)).await.unwrap();
        let put = async |name: &str, seed: u64| {
            let mut txn = db.begin();
            let payload = Payload::new(content(seed, 50_000)).unwrap();
            txn.put(&things, &key(name), payload).unwrap();
            txn.commit().await.unwrap();
            db.checkpoint().await.unwrap();
        };
        for (name, seed) in [("again", 1), ("deleted", 2), ("stays", 3)] {
            put(name, seed).await;
        }
        for name in ["again", "deleted", "stays"] {
            assert!(streamed(&reader, &things, name).await.unwrap().is_some());
        }
        put("again", 4).await;
        let mut txn = db.begin();
        txn.delete(&things, &key("deleted")).unwrap();
        txn.commit().await.unwrap();
        db.checkpoint().await.unwrap();
        drop(written(&db, &content(5, 50_000)).await);
        assert_eq!(objects(&cloud).await.len(), 5 * 4);
        let collector = collector(&cloud).await;
        let (mut gone, mut turns) = (0, 0);
        while gone < 3 {
            // The last one is as young as a millisecond.
            gone += collector.store().collect_garbage(Duration::ZERO).await.unwrap().blobs;
            turns += 1;
            assert!(turns < 10_000, "{backend:?}: {gone}");
        }
        assert_eq!((gone, objects(&cloud).await.len()), (3, 2 * 4), "{backend:?}");
        for (name, seed) in [("again", Some(4)), ("deleted", None), ("stays", Some(3))] {
            let expected = seed.map(|seed| content(seed, 50_000));
            assert!(streamed(&reader, &things, name).await.unwrap() == expected, "{name}");
            let whole = reader.begin().read(&things, &key(name)).await.unwrap();
            assert!(whole.map(|it| it.as_bytes().to_vec()) == expected, "{name}");
        }
        assert_eq!(db.store().verify(|_, _| {}).await.unwrap().problem_count, 0);
    }
}

/// A leaf that is lost may be restored from a copy: the blobs that it names are there until then.
#[tokio::test]
async fn what_a_lost_leaf_named_stays() {
    let cloud = memory();
    let of = in_parts(Backend::S3Log);
    let of = Options { settings: Settings { inline_bytes_max: 10, ..of.settings }, ..of };
    s3db::Store::create(&cloud, &of.settings, Backend::S3Log, 1).await.unwrap();
    let db = Db::over(cloud.clone(), &of).await.unwrap();
    let things = db.create_collection("things").await.unwrap();
    let mut txn = db.begin();
    for n in 0..100 {
        txn.put(&things, &key(&format!("{n:03}")), Payload::new(content(n, 20)).unwrap()).unwrap();
    }
    txn.commit().await.unwrap();
    db.checkpoint().await.unwrap();
    let mut lost = None;
    for name in cloud.objects.list("page/", None, 1000).await.unwrap().names {
        if let Ok(Get::Found { bytes, .. }) = cloud.objects.get(&name, None).await
            && let Ok(Inspected::Page(page)) = Inspected::decode(&bytes)
            && page.level == 0
            && !page.low.is_empty()
        {
            lost = Some((name, bytes));
        }
    }
    let (name, bytes) = lost.unwrap();
    assert_eq!(cloud.objects.delete(&name, None).await, Delete::Gone);
    let collector = collector(&cloud).await;
    for _ in 0..3 {
        // It says that the tree has a hole.
        assert!(collector.store().collect_garbage(Duration::ZERO).await.is_err());
        assert_eq!(objects(&cloud).await.len(), 100);
    }
    assert!(matches!(cloud.objects.put(&name, bytes, PutIf::Absent).await, Put::Stored(_)));
    let reader = Db::over(cloud.clone(), &of).await.unwrap();
    for n in 0..100 {
        let there = streamed(&reader, &things, &format!("{n:03}")).await.unwrap();
        assert!(there == Some(content(n, 20)), "{n}");
    }
}

/// What is there, blobs and pages.
async fn all_of(cloud: &Cloud) -> Vec<String> {
    let mut all = objects(cloud).await;
    all.extend(cloud.objects.list("page/", None, 1000).await.unwrap().names);
    all
}

/// A root that was lost was put anew, empty, by whoever came next. Then garbage collection took all that its
/// records had named, and what waited in the log was put aside.
#[tokio::test]
async fn a_lost_root_is_told_and_nothing_goes_with_it() {
    let cloud = memory();
    let of = in_parts(Backend::S3Log);
    let settings = Settings { inline_bytes_max: 10, ..of.settings };
    let of = Options { settings, has_worker: false, ..of };
    s3db::Store::create(&cloud, &of.settings, Backend::S3Log, 1).await.unwrap();
    let db = Db::over(cloud.clone(), &of).await.unwrap();
    let things = db.create_collection("things").await.unwrap();
    let mut txn = db.begin();
    for n in 0..100 {
        txn.put(&things, &key(&format!("{n:03}")), Payload::new(content(n, 20)).unwrap()).unwrap();
    }
    txn.commit().await.unwrap();
    db.checkpoint().await.unwrap();
    let mut txn = db.begin();
    txn.put(&things, &key("waits"), Payload::new("x").unwrap()).unwrap();
    txn.commit().await.unwrap();
    let root = things.root.object();
    let Ok(Get::Found { bytes, .. }) = cloud.objects.get(&root, None).await else {
        panic!("no root")
    };
    assert_eq!(cloud.objects.delete(&root, None).await, Delete::Gone);
    let before = all_of(&cloud).await;
    assert!(before.len() > 103, "{}", before.len());
    let lost = StoreError::Lost { object: root.clone() };
    let text = lost.to_string();
    assert!(text.contains(&root) && text.contains("restore it"), "{text}");
    let fresh = Db::over(cloud.clone(), &of).await.unwrap();
    assert_eq!(fresh.collection("things").await, Err(lost.clone()));
    assert_eq!(fresh.create_collection("things").await, Err(lost.clone()));
    assert_eq!(fresh.begin().read(&things, &key("001")).await, Err(lost.clone()));
    let collector = collector(&cloud).await;
    for _ in 0..3 {
        assert_eq!(fresh.store().sweep().await, Err(lost.clone()));
        let collected = collector.store().collect_garbage(Duration::ZERO).await;
        assert_eq!(collected, Err(lost.clone()));
        assert_eq!(all_of(&cloud).await, before);
    }
    let found = fresh.store().verify(|_, _| {}).await.unwrap();
    assert!(found.problem_count > 0 && found.quarantined == 0, "{found:?}");

    assert!(matches!(cloud.objects.put(&root, bytes, PutIf::Absent).await, Put::Stored(_)));
    fresh.store().sweep().await.unwrap();
    // The first sweep may have passed over what failed before.
    fresh.store().sweep().await.unwrap();
    let reader = Db::over(cloud.clone(), &of).await.unwrap();
    for n in 0..100 {
        let there = streamed(&reader, &things, &format!("{n:03}")).await.unwrap();
        assert!(there == Some(content(n, 20)), "{n}");
    }
    assert_eq!(streamed(&reader, &things, "waits").await.unwrap(), Some(b"x".to_vec()));
    let found = fresh.store().verify(|_, _| {}).await.unwrap();
    assert_eq!(found.problems, Vec::<String>::new());
}

/// Who created a collection stopped before its root was put: the next one goes on, and writes down that it
/// was. Before, nobody can tell whether it was lost, and nothing is collected.
#[tokio::test]
async fn a_collection_that_was_begun_is_finished() {
    let cloud = memory();
    let (db, things) = create(&cloud, Backend::S3Log).await;
    assert!(things.has_root);
    // By somebody else, whose pages nobody here has seen.
    let other = Db::over(cloud.clone(), &in_parts(Backend::S3Log)).await.unwrap();
    let made = other.create_collection("begun").await.unwrap();
    let begun = Collection { has_root: false, ..made };
    assert_eq!(cloud.objects.delete(&begun.root.object(), None).await, Delete::Gone);
    let put = cloud.objects.put("catalog/begun", begun.encode(), PutIf::Always).await;
    assert!(matches!(put, Put::Stored(_)));
    let error = db.store().collect_garbage(Duration::ZERO).await.unwrap_err().to_string();
    assert!(error.contains("collection begun") && error.contains("create it again"), "{error}");
    let root = begun.root.object();
    assert_eq!(cloud.objects.get(&root, None).await, Ok(Get::Absent), "gc puts no root");
    let finished = db.create_collection("begun").await.unwrap();
    assert_eq!(finished, Collection { has_root: true, ..begun });
    let Ok(Get::Found { bytes, .. }) = cloud.objects.get("catalog/begun", None).await else {
        panic!("no collection")
    };
    assert_eq!(Collection::decode("begun", &bytes), Ok(finished));
    db.store().collect_garbage(Duration::ZERO).await.unwrap();
    // From then on it is lost if it is not there.
    assert_eq!(cloud.objects.delete(&root, None).await, Delete::Gone);
    let fresh = Db::over(cloud.clone(), &in_parts(Backend::S3Log)).await.unwrap();
    let lost = Err(StoreError::Lost { object: root });
    assert_eq!(fresh.create_collection("begun").await, lost);
}

/// Whoever was in the middle of an old blob when its record was written again lost the rest of it to the next
/// garbage collection, and was told that data is lost.
#[tokio::test]
async fn a_reader_has_its_time() {
    let cloud = memory();
    let (db, things) = create(&cloud, Backend::S3Log).await;
    let put = async |seed: u64| {
        let mut txn = db.begin();
        let payload = Payload::new(content(seed, 50_000)).unwrap();
        txn.put(&things, &key("k"), payload).unwrap();
        txn.commit().await.unwrap();
        db.checkpoint().await.unwrap();
    };
    put(1).await;
    let mut readers = Vec::new();
    for _ in 0..2 {
        let mut reader = db.begin().open_content(&things, &key("k")).await.unwrap().unwrap();
        let first = reader.next().await.unwrap().unwrap();
        readers.push((reader, first.to_vec()));
    }
    put(2).await;
    let collector = collector(&cloud).await;
    let gc = async |grace: Duration| collector.store().collect_garbage(grace).await.unwrap();
    let hour = Duration::from_secs(3600);
    let mut turns = 0;
    while !objects(&cloud).await.iter().any(|name| name.contains("/unnamed-")) {
        // It is as young as a millisecond at first.
        let done = gc(hour).await;
        assert_eq!((done.blobs, done.blobs_waiting), (0, 1));
        turns += 1;
        assert!(turns < 10_000);
    }
    for _ in 0..3 {
        let done = gc(hour).await;
        assert_eq!((done.blobs, done.blobs_waiting), (0, 1));
    }
    assert_eq!(objects(&cloud).await.len(), 4 + 4 + 1, "it is marked once");
    let (mut late, _) = readers.pop().unwrap();
    let (mut reader, mut all) = readers.pop().unwrap();
    while let Some(bytes) = reader.next().await.unwrap() {
        all.extend_from_slice(&bytes);
    }
    assert!(all == content(1, 50_000));
    // And then it goes, with the mark.
    let done = gc(Duration::ZERO).await;
    assert_eq!((done.blobs, done.blobs_waiting), (1, 0));
    assert_eq!(objects(&cloud).await.len(), 4);
    let error = late.next().await.unwrap_err();
    assert!(matches!(error, StoreError::Replaced { .. }), "{error:?}");
    assert!(error.to_string().contains("read it again from the beginning"), "{error}");
    assert!(streamed(&db, &things, "k").await.unwrap() == Some(content(2, 50_000)));
}

/// What lies in quarantine is kept for somebody to look at, and so is what it names: a program that knows no
/// blobs puts there what it cannot decode.
#[tokio::test]
async fn what_quarantine_names_stays() {
    let cloud = memory();
    let (db, things) = create(&cloud, Backend::S3Log).await;
    let Value::Blob(blob) = written(&db, &content(1, 50_000)).await else { panic!("no blob") };
    drop(written(&db, &content(2, 50_000)).await);
    let stamp = Stamp { clock: blob.stamp().clock + 1, ..blob.stamp() };
    let record = LogRecord { stamp, change: Change::Blob(key("k"), blob) };
    let entry = Entry { tree: things.root, page: things.root, is_secondary: false, record };
    let (client, entries) = (stamp.client, vec![entry]);
    let all = LoggedTransaction { client, epoch: 1, number: 1, total: 1, entries };
    for (name, bytes) in [("quarantine/noise", "noise".into()), ("quarantine/old", all.encode())] {
        assert!(matches!(cloud.objects.put(name, bytes, PutIf::Absent).await, Put::Stored(_)));
    }
    let collector = collector(&cloud).await;
    let gc = async || collector.store().collect_garbage(Duration::ZERO).await.unwrap();
    let mut turns = 0;
    while objects(&cloud).await.len() > 4 {
        gc().await;
        turns += 1;
        assert!(turns < 10_000);
    }
    for _ in 0..3 {
        assert_eq!(gc().await.blobs_waiting, 1);
    }
    assert!(objects(&cloud).await.iter().all(|name| name[..60] == blob.object(0)[..60]));
    assert_eq!(cloud.objects.delete("quarantine/old", None).await, Delete::Gone);
    assert_eq!(gc().await.blobs, 1);
    assert_eq!(objects(&cloud).await, [""; 0]);
}

/// More parts than one list has names.
#[tokio::test]
async fn blobs_of_many_parts_go_whole() {
    let cloud = memory();
    let of = in_parts(Backend::S3Log);
    let of = Options { settings: Settings { part_bytes: 20, ..of.settings }, ..of };
    s3db::Store::create(&cloud, &of.settings, Backend::S3Log, 1).await.unwrap();
    let db = Db::over(cloud.clone(), &of).await.unwrap();
    drop(written(&db, &content(1, 50_000)).await);
    assert!(cloud.objects.list("blob/", None, 1000).await.unwrap().more);
    let collector = collector(&cloud).await;
    let mut turns = 0;
    while collector.store().collect_garbage(Duration::ZERO).await.unwrap().blobs == 0 {
        turns += 1;
        assert!(turns < 10_000);
    }
    assert_eq!(objects(&cloud).await, [""; 0]);
}

/// A record that waited in the log had lost its blob, and there were no problems.
#[tokio::test]
async fn a_blob_that_waits_in_the_log_is_verified() {
    let cloud = memory();
    let of = Options { has_worker: false, ..in_parts(Backend::S3Log) };
    s3db::Store::create(&cloud, &of.settings, Backend::S3Log, 1).await.unwrap();
    let db = Db::over(cloud.clone(), &of).await.unwrap();
    let things = db.create_collection("things").await.unwrap();
    let mut txn = db.begin();
    txn.put(&things, &key("k"), Payload::new(content(1, 50_000)).unwrap()).unwrap();
    txn.commit().await.unwrap();
    let verify = async || db.store().verify(|_, _| {}).await.unwrap();
    let found = verify().await;
    assert_eq!((found.waiting, found.problem_count), (1, 0), "{:?}", found.problems);
    let lost = objects(&cloud).await.swap_remove(2);
    assert_eq!(cloud.objects.delete(&lost, None).await, Delete::Gone);
    for waits in [1, 0] {
        let found = verify().await;
        assert_eq!((found.waiting, found.problem_count), (waits, 1), "{:?}", found.problems);
        let problem = &found.problems[0];
        assert!(problem.contains("record k") && problem.contains(&lost), "{problem}");
        db.checkpoint().await.unwrap();
    }
    // Who reads it whole is sent to the same object.
    let error = db.begin().read(&things, &key("k")).await.unwrap_err();
    assert_eq!(error, StoreError::Lost { object: lost });
}

/// Names of blobs do not say in which database they are: one of another was committed, and named nothing.
#[tokio::test]
async fn what_another_client_wrote_is_not_put() {
    let (here, there) = (memory(), memory());
    let (db, things) = create(&here, Backend::S3Log).await;
    let (other, _) = create(&there, Backend::S3Log).await;
    let foreign = written(&other, &content(1, 50_000)).await;
    let mut txn = db.begin();
    let error = txn.put_value(&things, &key("k"), foreign.clone()).unwrap_err().to_string();
    assert!(error.contains("written by client"), "{error}");
    let session = Session::open(db.store().clone(), 77).await.unwrap();
    let mut txn = session.begin(Level::Atomic);
    txn.put_value(things.root, &key("k"), foreign).unwrap();
    let error = session.commit(&mut txn).await.unwrap_err().to_string();
    assert!(error.contains("written by client"), "{error}");
    assert_eq!(streamed(&db, &things, "k").await.unwrap(), None);
}

/// A session laid its own write over a page for ever: when others had deleted the record, so long ago that
/// nothing was left of that, it named a blob that was collected.
#[test]
fn an_own_blob_that_others_deleted_is_gone() {
    let world = world(Faults::NONE);
    let cloud = world.cloud(Process(0));
    run(&world, async move {
        let settings = Settings { inline_bytes_max: 10, part_bytes: 20, ..Settings::default() };
        s3db::Store::create(&cloud, &settings, Backend::S3Log, 1).await.unwrap();
        let store = open(&cloud, settings).await;
        let things = store.create_collection("things").await.unwrap();
        let writer = Session::open(store, 1).await.unwrap();
        let other = Session::open(open(&cloud, settings).await, 2).await.unwrap();
        let mut txn = writer.begin(Level::Atomic);
        txn.put(things.root, &key("k"), Payload::new(content(1, 50)).unwrap()).unwrap();
        writer.commit(&mut txn).await.unwrap();
        other.store().sweep().await.unwrap();
        let mut txn = other.begin(Level::Atomic);
        txn.delete(things.root, &key("k")).unwrap();
        other.commit(&mut txn).await.unwrap();
        for _ in 0..45 {
            cloud.clock.sleep(Duration::from_secs(24 * 3600)).await;
            writer.keep_alive().await.unwrap();
            other.keep_alive().await.unwrap();
        }
        assert_eq!(other.store().collect_garbage(Duration::ZERO).await.unwrap().blobs, 1);
        let txn = writer.begin(Level::Atomic);
        assert_eq!(writer.read(&txn, things.root, &key("k")).await.unwrap(), None);
        assert!(writer.open_content(&txn, things.root, &key("k")).await.unwrap().is_none());
    });
}

/// Garbage collection may have taken it by then.
#[tokio::test]
async fn an_old_blob_is_not_committed() {
    let cloud = memory();
    let (_db, things) = create(&cloud, Backend::S3Log).await;
    let old = collector(&cloud).await;
    let mut txn = old.begin();
    txn.put_value(&things, &key("k"), written(&old, &content(1, 50_000)).await).unwrap();
    let error = txn.commit().await.unwrap_err().to_string();
    assert!(error.contains("write it again"), "{error}");
    old.checkpoint().await.unwrap();
    assert_eq!(streamed(&old, &things, "k").await.unwrap(), None);
}

/// What is larger than memory should hold is read in parts, and scans go on behind it.
#[tokio::test]
async fn more_than_memory_should_hold() {
    let cloud = memory();
    let of = options(Backend::S3Log);
    s3db::Store::create(&cloud, &of.settings, Backend::S3Log, 1).await.unwrap();
    let db = Db::over(cloud.clone(), &of).await.unwrap();
    let things = db.create_collection("things").await.unwrap();
    let large = content(1, PAYLOAD_BYTES_MAX + 1);
    assert_eq!(Payload::new(&large), Err(BoundError::LongPayload(large.len())));
    let mut txn = db.begin();
    txn.put_value(&things, &key("large"), written(&db, &large).await).unwrap();
    txn.put(&things, &key("next"), Payload::new("x").unwrap()).unwrap();
    txn.commit().await.unwrap();
    let error = db.begin().read(&things, &key("large")).await.unwrap_err();
    assert_eq!(error, StoreError::Bound(BoundError::LongPayload(large.len())));
    assert!(streamed(&db, &things, "large").await.unwrap().unwrap() == large);
    let txn = db.begin();
    let mut scan = txn.scan(&things);
    assert_eq!(scan.next_key().await.unwrap(), Some(key("large")));
    assert_eq!(scan.next().await.unwrap().unwrap().key, key("next"));
    drop(scan);
    // One that ends at such a record goes on behind it.
    let mut scan = txn.scan(&things);
    assert!(matches!(scan.next().await, Err(StoreError::Bound(BoundError::LongPayload(_)))));
    assert_eq!(scan.next().await.unwrap().unwrap().key, key("next"));
    drop(scan);

    // That it is there was asked by reading it: as that failed, it could be neither found nor replaced.
    let mut txn = db.begin();
    let again = txn.create(&things, &key("large"), Payload::new("x").unwrap()).await;
    assert!(matches!(again, Err(StoreError::Exists(_))), "{again:?}");
    for name in objects(&cloud).await {
        assert_eq!(cloud.objects.delete(&name, None).await, Delete::Gone);
    }
    txn.update(&things, &key("large"), Payload::new("x").unwrap()).await.unwrap();
    assert_eq!(txn.ledger().charge(CallKind::GetBlob).calls, 0);
    txn.commit().await.unwrap();
    assert_eq!(streamed(&db, &things, "large").await.unwrap(), Some(b"x".to_vec()));
}

/// After a write that failed, what was written before was finished, and committed as if it were all.
#[tokio::test]
async fn what_was_not_written_whole_is_not_finished() {
    let cloud = memory();
    let settings = Settings { part_bytes: 1, ..options(Backend::S3Log).settings };
    let of = Options { settings, ..options(Backend::S3Log) };
    s3db::Store::create(&cloud, &of.settings, Backend::S3Log, 1).await.unwrap();
    let db = Db::over(cloud.clone(), &of).await.unwrap();
    let mut writing = db.write_blob().await.unwrap();
    writing.write(b"some").await.unwrap();
    // More parts than a blob may have.
    let error = writing.write(&content(3, (1 << 20) + 1)).await.unwrap_err();
    assert!(matches!(error, StoreError::Invalid(_)), "{error}");
    let error = writing.finish().await.map(drop).unwrap_err();
    assert!(matches!(error, StoreError::Invalid(_)), "{error}");
}

/// What lies in a blob is in no index, and what was short before leaves it.
#[tokio::test]
async fn blobs_are_in_no_index() {
    let cloud = memory();
    let (db, things) = create(&cloud, Backend::S3Log).await;
    let by = SearchBy::Part { separator: b',', number: 0 };
    db.create_index(&things, "first", &by).await.unwrap();
    let things = db.collection("things").await.unwrap();
    let long = format!("a,{}", "x".repeat(50_000));
    let find = async || {
        let txn = db.begin();
        let mut found = txn.probe(&things, "first", &key("a")).await.unwrap();
        let mut keys = Vec::new();
        while let Some((_, record)) = found.next().await.unwrap() {
            keys.push(record.key);
        }
        keys
    };
    for (payload, expected) in [("a,1", 1), (&long, 0), ("a,2", 1)] {
        let mut txn = db.begin();
        txn.put(&things, &key("k"), Payload::new(payload).unwrap()).unwrap();
        let mut own = txn.probe(&things, "first", &key("a")).await.unwrap();
        assert_eq!(own.next().await.unwrap().is_some(), expected == 1, "{expected}");
        drop(own);
        txn.commit().await.unwrap();
        assert_eq!(find().await.len(), expected);
        db.checkpoint().await.unwrap();
        assert_eq!(find().await.len(), expected);
        let checked = db.store().check_index("things", "first", |_| {}).await.unwrap();
        assert_eq!((checked.records, checked.entries), (expected as u64, expected as u64));
        assert_eq!((checked.missing, checked.dangling), (0, 0));
    }
}

/// Who keeps less in its pages than others did not find what these keep there, and said nothing.
#[tokio::test]
async fn what_others_keep_in_pages_is_found() {
    let cloud = memory();
    let (db, things) = create(&cloud, Backend::S3Log).await;
    let by = SearchBy::Part { separator: b',', number: 0 };
    db.create_index(&things, "first", &by).await.unwrap();
    let long = Payload::new(format!("a,{}", "x".repeat(1500))).unwrap();
    let mut txn = db.begin();
    txn.put(&things, &key("k"), long.clone()).unwrap();
    txn.commit().await.unwrap();
    db.checkpoint().await.unwrap();
    let of = in_parts(Backend::S3Log);
    let settings = Settings { inline_bytes_max: 1000, ..of.settings };
    let other = Db::over(cloud.clone(), &Options { settings, ..of }).await.unwrap();
    let mut txn = other.begin();
    let mut found = txn.probe(&things, "first", &key("a")).await.unwrap();
    let (_, record) = found.next().await.unwrap().unwrap();
    assert_eq!((record.key, record.payload.as_bytes().len()), (key("k"), 1502));
    drop(found);
    // Its own would be a blob there.
    txn.put(&things, &key("k"), long).unwrap();
    let mut found = txn.probe(&things, "first", &key("a")).await.unwrap();
    assert!(found.next().await.unwrap().is_none());
}
