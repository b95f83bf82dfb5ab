//! Databases that only holders of their keys can read.

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use s3db::{
    Backend, Db, FrameError, Isolation, Keyring, Options, StoreError, Unopened,
    cloud::{
        Cloud, Fault, Get, Objects, PutIf, QueueSettings, ToSend,
        embedded::{self, Files, Memory},
        sealed::seal,
    },
};

use crate::{
    conformance,
    embedded::{all, key, life_of_a_database, options, payload},
};

/// Keys of these numbers, the first one in front.
pub(crate) fn keys(ids: &[u8]) -> Keyring {
    let keys: Vec<_> = ids.iter().map(|&id| (u32::from(id), [id; 32])).collect();
    Keyring::new(&keys).unwrap()
}

fn with_keys(backend: Backend, ids: &[u8]) -> Options {
    Options { keys: Some(keys(ids)), ..options(backend) }
}

/// A secret, as it would lie on the disk.
const SECRET: &str = "nobody else is to read this";

fn url(folder: &Path) -> String {
    format!("file://{}/db", folder.display())
}

/// All files beneath a folder.
fn files(folder: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => all.extend(files(&path)),
            false => {
                let bytes = std::fs::read(&path).unwrap();
                all.push((path, bytes));
            }
        }
    }
    all
}

fn has(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|part| part == text.as_bytes())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sealed_services_keep_their_promises() {
    let folder = tempfile::tempdir().unwrap();
    let memory = embedded::memory(Arc::new(Memory::new()));
    for cloud in [embedded::directory(folder.path()).unwrap(), memory] {
        let cloud = seal(cloud, &keys(&[3]), 1);
        conformance::objects(&*cloud.objects, "t").await;
        conformance::swaps(&*cloud.objects, "s", 4, 10).await;
        conformance::queue(&*cloud.queue, "standard").await;
        conformance::fifo(&*cloud.queue, "ordered").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_encrypted_database_lives_as_any() {
    for backend in Backend::ALL {
        let folder = tempfile::tempdir().unwrap();
        life_of_a_database(&url(folder.path()), &with_keys(backend, &[1])).await;
    }
}

/// Neither on pages, nor in the log, nor in queues, before and after a checkpoint. Without keys the
/// same is found in all of them.
#[tokio::test]
async fn what_is_stored_tells_nothing() {
    for backend in Backend::ALL {
        for is_encrypted in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let keys = is_encrypted.then(|| keys(&[1]));
            let options = Options { keys, has_worker: false, ..options(backend) };
            let db = Db::create(&url(folder.path()), &options).await.unwrap();
            let users = db.create_collection("users").await.unwrap();
            let mut txn = db.begin();
            txn.put(&users, &key(&format!("key: {SECRET}")), payload(SECRET)).unwrap();
            txn.commit().await.unwrap();
            let seen = |what: &str| {
                let files = files(folder.path());
                let found = files.iter().filter(|(_, bytes)| has(bytes, SECRET)).count();
                assert_eq!(found > 0, !is_encrypted, "{}: {what}", backend.name());
            };
            seen("in the log");
            db.checkpoint().await.unwrap();
            db.close().await.unwrap();
            seen("on pages");
            let sealed = files(folder.path()).iter().filter(|(_, it)| has(it, "s3dE")).count();
            assert_eq!(sealed > 0, is_encrypted, "{}", backend.name());
        }
    }
}

fn text(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[tokio::test]
async fn without_the_right_keys_it_is_said_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let url = url(folder.path());
    let options = with_keys(Backend::S3Log, &[1]);
    let db = Db::create(&url, &options).await.unwrap();
    assert!(db.store().database().is_encrypted);
    db.create_collection("users").await.unwrap();
    db.close().await.unwrap();

    let none = Db::open(&url).await.err().unwrap();
    assert!(text(&none).contains("encrypted: open it with its keys"), "{}", text(&none));
    let other = Options { keys: Some(keys(&[2])), has_worker: false, ..options.clone() };
    let db = Db::open_with(&url, &other).await.unwrap();
    let error = db.collection("users").await.unwrap_err();
    assert!(text(&error).contains("sealed with key 1"), "{}", text(&error));
    assert!(text(&error).contains("[2]") && text(&error).contains("catalog/users"));
    // Another key under the same number.
    let wrong = Keyring::new(&[(1, [9; 32])]).unwrap();
    let wrong = Options { keys: Some(wrong), has_worker: false, ..options.clone() };
    let db = Db::open_with(&url, &wrong).await.unwrap();
    let error = db.collection("users").await.unwrap_err();
    let is_it = matches!(
        &error,
        StoreError::Damaged { source: FrameError::Unopened(Unopened::Key(1)), .. }
    );
    assert!(is_it, "{}", text(&error));
    // Nothing that nobody else can read is put beside the rest.
    for wrong in [&wrong, &other] {
        let db = Db::open_with(&url, wrong).await.unwrap();
        for error in [
            db.create_collection("more").await.unwrap_err(),
            db.create_isolated_collection("more", Isolation::Snapshot).await.unwrap_err(),
        ] {
            assert!(text(&error).contains("key 1"), "{}", text(&error));
        }
        assert_eq!(db.store().collections().await.unwrap(), ["users"]);
    }

    let plain = tempfile::tempdir().unwrap();
    let plain = self::url(plain.path());
    Db::create(&plain, &Options { keys: None, ..options.clone() }).await.unwrap();
    let error = Db::open_with(&plain, &options).await.err().unwrap();
    assert!(text(&error).contains("not encrypted"), "{}", text(&error));
    let db = Db::open(&plain).await.unwrap();
    let error = db.store().rekey(|_| {}).await.unwrap_err();
    assert!(text(&error).contains("not encrypted"), "{}", text(&error));
}

async fn bytes_of(objects: &dyn Objects, name: &str) -> Bytes {
    match objects.get(name, None).await.unwrap() {
        Get::Found { bytes, .. } => bytes,
        other => panic!("{name}: {other:?}"),
    }
}

/// Whoever can write to the bucket cannot write into the database.
#[tokio::test]
async fn what_is_put_there_by_others_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let url = url(folder.path());
    let options = Options { has_worker: false, ..with_keys(Backend::S3Log, &[1]) };
    let db = Db::create(&url, &options).await.unwrap();
    let users = db.create_collection("users").await.unwrap();
    let orders = db.create_collection("orders").await.unwrap();
    db.close().await.unwrap();
    let files = Files::open(&folder.path().join("db")).unwrap();
    let object = format!("page/{}", users.root);
    let own = bytes_of(&files, &object).await;

    // A page as it would be without encryption: the root of a new collection.
    let plain = s3db::page::Page::root(users.root).encode();
    let other = bytes_of(&files, &format!("page/{}", orders.root)).await;
    for (bytes, why) in [
        (plain, Unopened::Plain),
        (other, Unopened::Key(1)),
        (own.slice(..own.len() - 1), Unopened::Damaged),
        (Bytes::new(), Unopened::Damaged),
    ] {
        files.put(&object, bytes, PutIf::Always).await;
        let db = Db::open_with(&url, &options).await.unwrap();
        let error = db.begin().read(&users, &key("ada")).await.unwrap_err();
        let found = match &error {
            StoreError::Damaged { source: FrameError::Unopened(found), .. } => *found,
            _ => panic!("{}", text(&error)),
        };
        assert_eq!(found, why, "{}", text(&error));
        let verified = db.store().verify(|_, _| {}).await.unwrap();
        assert!(verified.problems.iter().any(|it| it.contains(&users.root.to_string())));
        // It is not made theirs by sealing it again, whatever number of a key is on it.
        let done = db.store().rekey(|_| {}).await.unwrap();
        assert_eq!(done.unopened, 1, "{done:?}");
    }
    files.put(&object, own, PutIf::Always).await;
    let db = Db::open_with(&url, &options).await.unwrap();
    assert_eq!(db.begin().read(&users, &key("ada")).await.unwrap(), None);
}

/// Rekey looked at the number of each object's key, and said that no other one is needed: of what the key given
/// under that number opens nothing of.
#[tokio::test]
async fn rekey_counts_what_the_first_key_does_not_open() {
    let folder = tempfile::tempdir().unwrap();
    let url = url(folder.path());
    let options = Options { has_worker: false, ..with_keys(Backend::S3Log, &[1]) };
    let db = Db::create(&url, &options).await.unwrap();
    let users = db.create_collection("users").await.unwrap();
    let mut txn = db.begin();
    txn.put(&users, &key("ada"), payload("1815")).unwrap();
    txn.commit().await.unwrap();
    db.checkpoint().await.unwrap();
    db.close().await.unwrap();
    let files = Files::open(&folder.path().join("db")).unwrap();
    let mut there = files.list("", None, 1000).await.unwrap().names;
    there.retain(|name| name != "database");
    assert!(there.len() > 1, "{there:?}");
    let wrong = Keyring::new(&[(1, [9; 32])]).unwrap();
    let wrong = Options { keys: Some(wrong), ..options.clone() };
    let other = Db::open_with(&url, &wrong).await.unwrap();
    let done = other.store().rekey(|_| {}).await.unwrap();
    assert_eq!((done.unopened, done.sealed), (there.len() as u64, 0), "{done:?}");
    assert!(done.examples.iter().all(|told| told.contains("under key 1")), "{done:?}");
    let db = Db::open_with(&url, &options).await.unwrap();
    assert_eq!(db.begin().read(&users, &key("ada")).await.unwrap(), Some(payload("1815")));
}

/// Records wait for a page that is damaged: that is told, and everything else has its new key.
#[tokio::test]
async fn damage_keeps_no_key_from_changing() {
    let folder = tempfile::tempdir().unwrap();
    let url = url(folder.path());
    let options = Options { has_worker: false, ..with_keys(Backend::S3Log, &[1]) };
    let db = Db::create(&url, &options).await.unwrap();
    let users = db.create_collection("users").await.unwrap();
    let mut txn = db.begin();
    txn.put(&users, &key("ada"), payload("1815")).unwrap();
    txn.commit().await.unwrap();
    let files = Files::open(&folder.path().join("db")).unwrap();
    let object = format!("page/{}", users.root);
    let own = bytes_of(&files, &object).await;
    files.put(&object, "noise".into(), PutIf::Always).await;
    let changed = Options { has_worker: false, ..with_keys(Backend::S3Log, &[2, 1]) };
    let rekeyer = Db::open_with(&url, &changed).await.unwrap();
    // Something else does not open, and is named for all that.
    let foreign = "quarantine/foreign";
    files.put(foreign, "noise".into(), PutIf::Absent).await;
    let told = rekeyer.store().rekey(|_| {}).await.unwrap();
    let error = text(told.unswept.as_ref().expect("the sweep came to no end"));
    assert!(error.contains(&object), "{error}");
    assert!(told.examples.iter().any(|told| told.starts_with(foreign)), "{told:?}");
    files.delete(foreign, None).await;
    let key_of = async |name: &str| bytes_of(&files, name).await[5..9].to_vec();
    assert_eq!(key_of("catalog/users").await, [2, 0, 0, 0]);
    for name in files.list("log/", None, 10).await.unwrap().names {
        assert_eq!(key_of(&name).await, [2, 0, 0, 0], "{name}");
    }
    // When the page is back, nothing is lost.
    files.put(&object, own, PutIf::Always).await;
    let done = rekeyer.store().rekey(|_| {}).await.unwrap();
    assert_eq!((done.unopened, done.waiting, &done.unswept), (0, 0, &None), "{done:?}");
    drop(db);
    let options = Options { has_worker: false, ..with_keys(Backend::S3Log, &[2]) };
    let db = Db::open_with(&url, &options).await.unwrap();
    let there = db.begin().read(&users, &key("ada")).await.unwrap();
    assert_eq!(there, Some(payload("1815")));
}

/// A message of somebody else's is set aside, and is in nobody's way.
#[tokio::test]
async fn messages_of_others_are_set_aside() {
    for backend in [Backend::SqsStandard, Backend::SqsFifo] {
        let cloud = embedded::memory(Arc::new(Memory::new()));
        let options = Options { has_worker: false, shards: 1, ..with_keys(backend, &[1]) };
        let settings = options.settings;
        s3db::Store::create_encrypted(&cloud, &settings, backend, 1).await.unwrap();
        let db = Db::over(cloud.clone(), &options).await.unwrap();
        let users = db.create_collection("users").await.unwrap();
        let mut txn = db.begin();
        txn.put(&users, &key("ada"), payload("1815")).unwrap();
        txn.commit().await.unwrap();
        let queue = shard(&cloud).await;
        let body = Bytes::from_static(b"s3dT: no transaction");
        let group = (backend == Backend::SqsFifo).then(|| "g".to_owned());
        let noise = ToSend { body, deduplication: group.clone(), group };
        cloud.queue.send(&queue, &[noise]).await;
        db.store().sweep().await.unwrap();
        let found = db.store().verify(|_, _| {}).await.unwrap();
        assert_eq!((found.quarantined, found.records, found.problem_count), (1, 1, 0), "{found:?}");
        // With a key that nobody has, it is no noise: whoever forgot the key is told, nothing is lost.
        let other = Keyring::new(&[(7, [7; 32])]).unwrap();
        let id = db.store().database().id;
        let body = Bytes::from_static(b"of the future");
        let group = (backend == Backend::SqsFifo).then(|| "g".to_owned());
        let message = ToSend { body, deduplication: group.clone().map(|_| "2".to_owned()), group };
        seal(cloud.clone(), &other, id).queue.send(&queue, &[message]).await;
        let fault = db.store().sweep().await.unwrap_err();
        assert!(text(&fault).contains("sealed with key 7"), "{}", text(&fault));
        let waits = Duration::ZERO;
        let all = Keyring::new(&[(1, [1; 32]), (7, [7; 32])]).unwrap();
        tokio::time::sleep(settings.lease + Duration::from_millis(100)).await;
        let got = seal(cloud, &all, id).queue.receive(&queue, 10, waits, waits).await.unwrap();
        assert_eq!(got.len(), 1, "{}", backend.name());
        assert_eq!(got[0].body, "of the future");
    }
}

/// Another key under the right number opens nothing: a sweep took all that was committed for damage, put it
/// aside and let go of it.
#[tokio::test]
async fn another_key_under_the_same_number_loses_nothing() {
    for backend in Backend::ALL {
        let name = backend.name();
        let cloud = embedded::memory(Arc::new(Memory::new()));
        let options = Options { has_worker: false, ..with_keys(backend, &[1]) };
        let settings = options.settings;
        s3db::Store::create_encrypted(&cloud, &settings, backend, 2).await.unwrap();
        let db = Db::over(cloud.clone(), &options).await.unwrap();
        let users = db.create_collection("users").await.unwrap();
        for n in 0..3 {
            let mut txn = db.begin();
            txn.put(&users, &key(&format!("k{n}")), payload("v")).unwrap();
            txn.commit().await.unwrap();
        }
        let log = async || {
            let mut log = Vec::new();
            for name in cloud.objects.list("log/", None, 100).await.unwrap().names {
                log.push((bytes_of(&*cloud.objects, &name).await, name));
            }
            log
        };
        let before = log().await;
        let wrong = Keyring::new(&[(1, [9; 32])]).unwrap();
        let wrong = Options { keys: Some(wrong), ..options.clone() };
        let other = Db::over(cloud.clone(), &wrong).await.unwrap();
        let error = other.store().sweep().await.unwrap_err();
        let is_denied = matches!(&error, StoreError::Cloud { source: Fault::Denied { .. }, .. });
        assert!(is_denied, "{name}: {}", text(&error));
        assert!(text(&error).contains("does not open with the key 1"), "{}", text(&error));
        assert_eq!(log().await, before, "{name}");
        let aside = cloud.objects.list("quarantine/", None, 100).await.unwrap().names;
        assert_eq!(aside, [""; 0], "{name}");
        // What was hidden from others is seen again.
        if backend != Backend::S3Log {
            tokio::time::sleep(settings.lease + Duration::from_millis(100)).await;
        }
        let right = Db::over(cloud.clone(), &options).await.unwrap();
        let done = right.store().sweep().await.unwrap();
        assert_eq!((done.records, done.poison), (3, 0), "{name}");
        let users = right.collection("users").await.unwrap();
        assert_eq!(all(&right, &users).await.len(), 3, "{name}");
    }
}

/// Who may write there can hold up what it could delete as well: nothing of it goes, and it is told.
#[tokio::test]
async fn what_does_not_open_is_in_nobody_elses_way() {
    let cloud = embedded::memory(Arc::new(Memory::new()));
    let options = Options { has_worker: false, ..with_keys(Backend::S3Log, &[1]) };
    s3db::Store::create_encrypted(&cloud, &options.settings, Backend::S3Log, 1).await.unwrap();
    let db = Db::over(cloud.clone(), &options).await.unwrap();
    let users = db.create_collection("users").await.unwrap();
    let mut txn = db.begin();
    txn.put(&users, &key("ada"), payload("1815")).unwrap();
    txn.commit().await.unwrap();
    // Of another stream, an approval, and a transaction that no message names.
    let wrong = Keyring::new(&[(1, [9; 32])]).unwrap();
    let strange = seal(cloud.clone(), &wrong, db.store().database().id);
    let stream = "log/0000000000000063/0000000000000001/0000000000000000".to_owned();
    let approved = format!("approved/6f/{}", "ab".repeat(32));
    let spilled = "spill/9/1/1".to_owned();
    let closed = [stream, approved, spilled];
    for name in &closed {
        strange.objects.put(name, "anything".into(), PutIf::Absent).await;
    }
    let error = db.store().sweep().await.unwrap_err();
    assert!(text(&error).contains("does not open with the key 1"), "{}", text(&error));
    assert_eq!(db.begin().read(&users, &key("ada")).await.unwrap(), Some(payload("1815")));
    let found = db.store().verify(|_, _| {}).await.unwrap();
    assert_eq!((found.records, found.quarantined), (1, 0), "{found:?}");
    for name in &closed {
        let is_told = |problem: &String| problem.contains(&**name) && problem.contains("key 1");
        assert!(found.problems.iter().any(is_told), "{name}: {found:?}");
        assert_eq!(bytes_of(&*strange.objects, name).await, "anything", "it stays");
    }
}

/// One message under a key that a client lacks kept nine others from their pages, each time that it came.
#[tokio::test]
async fn a_key_that_is_missing_holds_up_nobody_else() {
    let cloud = embedded::memory(Arc::new(Memory::new()));
    let options = Options { has_worker: false, ..with_keys(Backend::SqsStandard, &[1]) };
    let settings = options.settings;
    s3db::Store::create_encrypted(&cloud, &settings, Backend::SqsStandard, 2).await.unwrap();
    let db = Db::over(cloud.clone(), &options).await.unwrap();
    // Two collections in different shards: what is written to both goes by a queue of whole transactions.
    let mut shards = [None, None];
    for n in 0..64 {
        let of = db.create_collection(&format!("c{n}")).await.unwrap();
        let shard = (of.root.0 % 2) as usize;
        shards[shard].get_or_insert(of);
        if shards.iter().all(Option::is_some) {
            break;
        }
    }
    let shards = shards.map(Option::unwrap);
    for n in 0..3 {
        let mut txn = db.begin();
        for of in &shards {
            txn.put(of, &key(&format!("whole {n}")), payload("v")).unwrap();
        }
        txn.commit().await.unwrap();
        let mut txn = db.begin();
        txn.put(&shards[0], &key(&format!("one {n}")), payload("v")).unwrap();
        txn.commit().await.unwrap();
    }
    let other = Keyring::new(&[(9, [9; 32])]).unwrap();
    let ahead = seal(cloud.clone(), &other, db.store().database().id);
    let listed = cloud.objects.list("queue/", None, 1000).await.unwrap();
    let mut queues: Vec<&str> = listed.names.iter().filter_map(|it| it.split('/').nth(1)).collect();
    queues.dedup();
    assert_eq!(queues.len(), 2, "one of whole transactions, one of a shard: {queues:?}");
    for queue in queues {
        let message = ToSend { body: "of the future".into(), ..ToSend::default() };
        ahead.queue.send(queue, &[message]).await;
    }
    let error = db.store().sweep().await.unwrap_err();
    assert!(text(&error).contains("sealed with key 9"), "{}", text(&error));
    let found = db.store().verify(|_, _| {}).await.unwrap();
    assert_eq!((found.records, found.quarantined), (9, 0), "{found:?}");
    assert_eq!(found.waiting, 2, "those under the other key are where they were");
}

/// The queue of the only shard.
async fn shard(cloud: &Cloud) -> String {
    let settings = QueueSettings { fifo: false, retention: Duration::from_secs(3600) };
    let listed = cloud.objects.list("queue/", None, 1000).await.unwrap();
    let mut names = listed.names.iter().filter_map(|name| name.split('/').nth(1));
    let shard = names.find(|name| !name.starts_with("atomic")).expect("a shard").to_owned();
    cloud.queue.create(&shard, settings).await.unwrap();
    shard
}

/// Keys change while clients write; afterwards the old one opens nothing, and nobody needs it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn keys_change_under_writers() {
    for backend in Backend::ALL {
        let folder = tempfile::tempdir().unwrap();
        let url = url(folder.path());
        let db = Db::create(&url, &with_keys(backend, &[1])).await.unwrap();
        let users = db.create_collection("users").await.unwrap();
        let put = async |db: &Db, range: std::ops::Range<u32>| {
            for n in range {
                let mut txn = db.begin();
                txn.put(&users, &key(&format!("{n:04}")), payload(&"x".repeat(50))).unwrap();
                txn.commit().await.unwrap();
            }
        };
        put(&db, 0..100).await;
        db.close().await.unwrap();

        let writer = Db::open_with(&url, &with_keys(backend, &[1, 2])).await.unwrap();
        let other = Db::open_with(&url, &with_keys(backend, &[2, 1])).await.unwrap();
        let rekey = async {
            let first = other.store().rekey(|_| {}).await.unwrap();
            assert!(first.sealed > 5, "{first:?}");
        };
        tokio::join!(put(&writer, 100..160), put(&other, 160..220), rekey);
        writer.close().await.unwrap();
        let mut seen = 0;
        let mut done = other.store().rekey(|count| seen = count).await.unwrap();
        while done.waiting > 0 {
            done = other.store().rekey(|count| seen = count).await.unwrap();
        }
        assert_eq!((done.unopened, done.waiting), (0, 0), "{done:?}");
        assert!(seen >= done.current + done.sealed);
        let again = other.store().rekey(|_| {}).await.unwrap();
        assert_eq!(again.sealed, 0, "{again:?}");
        other.close().await.unwrap();

        let db = Db::open_with(&url, &with_keys(backend, &[2])).await.unwrap();
        let users = db.collection("users").await.unwrap();
        assert_eq!(all(&db, &users).await.len(), 220, "{}", backend.name());
        let found = db.store().verify(|_, _| {}).await.unwrap();
        assert_eq!(found.problems, [""; 0]);
        db.close().await.unwrap();
        let options = Options { has_worker: false, ..with_keys(backend, &[1]) };
        let old = Db::open_with(&url, &options).await.unwrap();
        let error = old.collection("users").await.unwrap_err();
        let is_denied = matches!(&error, StoreError::Cloud { source: Fault::Denied { .. }, .. });
        assert!(is_denied && text(&error).contains("sealed with key 2"), "{}", text(&error));
    }
}

/// What orders isolated transactions, and what large ones write, is sealed and has its new key, too.
#[tokio::test]
async fn isolated_collections_change_their_key() {
    let folder = tempfile::tempdir().unwrap();
    let url = url(folder.path());
    let options = |keys: &[u8]| Options { has_worker: false, ..with_keys(Backend::S3Log, keys) };
    let db = Db::create(&url, &options(&[1])).await.unwrap();
    let level = s3db::Isolation::Serializable;
    let accounts = db.create_isolated_collection("accounts", level).await.unwrap();
    let large = "x".repeat(5000);
    for (name, text) in [("ada", "100"), ("large", &large[..])] {
        let mut txn = db.begin_for(&accounts);
        txn.put(&accounts, &key(name), payload(text)).unwrap();
        txn.commit().await.unwrap();
    }
    let done = Db::open_with(&url, &options(&[2, 1])).await.unwrap();
    let done = done.store().rekey(|_| {}).await.unwrap();
    assert_eq!((done.unopened, done.waiting), (0, 0), "{done:?}");
    let mut txn = db.begin_for(&accounts);
    txn.put(&accounts, &key("ada"), payload("90")).unwrap();
    let refused = txn.commit().await;
    assert!(matches!(refused, Err(StoreError::Cloud { .. })), "it has no new key: {refused:?}");
    let new = Db::open_with(&url, &options(&[2])).await.unwrap();
    let txn = new.begin_for(&accounts);
    for (name, text) in [("ada", "100"), ("large", &large[..])] {
        let found = txn.read(&accounts, &key(name)).await.unwrap().unwrap();
        assert_eq!(found.to_string(), text);
    }
}
