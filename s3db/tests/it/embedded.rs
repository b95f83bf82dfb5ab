//! A database in a directory and in memory, through its front door.

use std::{ops::Bound, path::Path, sync::Arc, time::Duration};

use s3db::{
    Backend, Db, Key, Level, Options, Payload, Settings, StoreError,
    cloud::{
        Cloud, Get, Objects, PutIf,
        embedded::{self, Files, Memory},
    },
};

use crate::conformance;

fn clouds(folder: &Path) -> [(&'static str, Cloud); 2] {
    [
        ("directory", embedded::directory(folder).unwrap()),
        ("memory", embedded::memory(Arc::new(Memory::new()))),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn services_keep_their_promises() {
    let folder = tempfile::tempdir().unwrap();
    for (what, cloud) in clouds(folder.path()) {
        println!("{what}");
        conformance::objects(&*cloud.objects, "t").await;
        conformance::swaps(&*cloud.objects, "s", 8, 20).await;
        conformance::queue(&*cloud.queue, "standard").await;
        conformance::fifo(&*cloud.queue, "ordered").await;
    }
}

#[tokio::test]
async fn names_do_not_lead_out() {
    let folder = tempfile::tempdir().unwrap();
    for (what, cloud) in clouds(folder.path()) {
        for bad in ["../x", "/etc/passwd", "a//b", "a/../../b", "", ".", "a/", "a\0b", "a b"] {
            assert!(cloud.objects.get(bad, None).await.is_err(), "{what} {bad:?}");
        }
    }
}

/// A file that was written two hours ago.
fn write_old(path: &Path) {
    std::fs::write(path, "half").unwrap();
    let old = std::fs::File::options().write(true).open(path).unwrap();
    old.set_modified(std::time::SystemTime::now() - Duration::from_secs(7200)).unwrap();
}

/// What a killed process leaves in the middle of a put is in nobody's way.
#[tokio::test]
async fn remains_of_a_killed_put_are_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", folder.path().display());
    Db::create(&url, &options(Backend::S3Log)).await.unwrap().close().await.unwrap();
    let remains = folder.path().join("temporary").join("1-0123456789abcdef");
    write_old(&remains);
    let files = Files::open(folder.path()).unwrap();
    let before = files.list("", None, 100).await.unwrap().names;
    assert!(!before.iter().any(|name| name.contains("0123456789abcdef")), "{before:?}");
    files.put("page/a", "x".into(), PutIf::Absent).await;
    assert!(!remains.exists(), "it is old enough to be nobody's");
}

/// To ask for a database where none is removed what its owner kept in a folder of this name.
#[tokio::test]
async fn files_of_others_stay_where_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let temporary = folder.path().join("temporary");
    std::fs::create_dir(&temporary).unwrap();
    let own_name = temporary.join("1-0123456789abcdef");
    let foreign =
        ["thesis.tex", "1-dead", "-0123456789abcdef", "01-0123456789abcdef", "1-0123456789abcdeF"]
            .map(|name| temporary.join(name));
    foreign.iter().chain([&own_name]).for_each(|path| write_old(path));
    std::fs::create_dir(temporary.join("2-0123456789abcdef")).unwrap();
    let url = format!("file://{}", folder.path().display());
    // Nobody's database, and so nobody's remains.
    let error = Db::open(&url).await.err().expect("there is none");
    assert!(matches!(error, StoreError::NotFound(_)), "{error}");
    let files = Files::open(folder.path()).unwrap();
    assert_eq!(files.get("page/a", None).await, Ok(Get::Absent));
    files.put("page/a", "x".into(), PutIf::Absent).await;
    assert!(own_name.exists());
    // With a database only what it may have left itself goes.
    let options = Options { has_worker: false, ..options(Backend::S3Log) };
    let db = Db::create(&url, &options).await.unwrap();
    let users = db.create_collection("users").await.unwrap();
    let mut txn = db.begin();
    txn.put(&users, &key("ada"), payload("1815")).unwrap();
    txn.commit().await.unwrap();
    assert!(db.begin().read(&users, &key("ada")).await.unwrap().is_some());
    db.close().await.unwrap();
    assert!(!own_name.exists());
    assert!(foreign.iter().all(|path| path.exists()));
    assert!(temporary.join("2-0123456789abcdef").is_dir());
}

pub(crate) fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

pub(crate) fn payload(text: &str) -> Payload {
    Payload::new(text).unwrap()
}

/// Short times, so that things happen within a test.
pub(crate) fn options(backend: Backend) -> Options {
    let settings = Settings {
        ttl: Duration::from_millis(20),
        checkpoint_interval: Duration::from_millis(20),
        lease: Duration::from_secs(2),
        leaf_bytes_max: 2000,
        ..Settings::default()
    };
    Options { settings, backend, shards: 2, ..Options::default() }
}

pub(crate) async fn all(db: &Db, of: &s3db::Collection) -> Vec<(String, String)> {
    let txn = db.begin();
    let mut records = txn.scan(of);
    let mut all = Vec::new();
    while let Some(record) = records.next().await.unwrap() {
        all.push((record.key.to_string(), record.payload.to_string()));
    }
    all
}

pub(crate) async fn life_of_a_database(url: &str, options: &Options) {
    let db = Db::create(url, options).await.unwrap();
    let again = Db::create(url, options).await.err();
    assert!(matches!(again, Some(StoreError::Exists(_))), "{again:?}");
    let missing = db.collection("users").await;
    assert!(matches!(missing, Err(StoreError::NotFound(_))), "{missing:?}");
    let users = db.create_collection("users").await.unwrap();

    let mut txn = db.begin();
    txn.create(&users, &key("ada"), payload("1815")).await.unwrap();
    txn.put(&users, &key("alan"), payload("1912")).unwrap();
    assert_eq!(txn.read(&users, &key("ada")).await.unwrap(), Some(payload("1815")), "its own");
    assert_eq!(db.begin().read(&users, &key("ada")).await.unwrap(), None, "not before the commit");
    txn.commit().await.unwrap();
    let there = db.begin().read(&users, &key("ada")).await.unwrap();
    assert_eq!(there, Some(payload("1815")), "read your writes");

    let mut txn = db.begin();
    let twice = txn.create(&users, &key("ada"), payload("x")).await;
    assert!(matches!(twice, Err(StoreError::Exists(_))), "{twice:?}");
    let none = txn.update(&users, &key("grace"), payload("x")).await;
    assert!(matches!(none, Err(StoreError::NotFound(_))), "{none:?}");
    txn.update(&users, &key("ada"), payload("1815-12-10")).await.unwrap();
    txn.delete(&users, &key("alan")).unwrap();
    txn.put(&users, &key("zuse"), payload("1910")).unwrap();
    txn.abort();
    assert_eq!(all(&db, &users).await.len(), 2, "nothing of an aborted transaction");

    // Enough for some levels of small pages.
    for part in 0..8 {
        let level = Level::ALL[part % 3];
        let mut txn = db.begin_at(level);
        for n in (part..400).step_by(8) {
            txn.put(&users, &key(&format!("user{n:03}")), payload(&format!("{n}"))).unwrap();
        }
        txn.commit().await.unwrap();
    }
    let mut txn = db.begin();
    txn.delete(&users, &key("alan")).unwrap();
    txn.commit().await.unwrap();
    db.close().await.unwrap();

    // Another client, another process for all it knows. Nobody beside it holds what it looks for.
    let db = Db::open_with(url, &Options { has_worker: false, ..options.clone() }).await.unwrap();
    let users = db.collection("users").await.unwrap();
    db.store().sweep().await.unwrap();
    let records = all(&db, &users).await;
    assert_eq!(records.len(), 401);
    assert!(records.is_sorted());
    assert_eq!(records[0], ("ada".to_owned(), "1815".to_owned()));
    let txn = db.begin();
    let (from, to) = (key("user010"), key("user012"));
    let cases = [
        (Bound::Included(&from), Bound::Excluded(&to), vec!["user010", "user011"]),
        (Bound::Excluded(&from), Bound::Included(&to), vec!["user011", "user012"]),
        (Bound::Unbounded, Bound::Excluded(&key("user000")), vec!["ada"]),
    ];
    for (from, to, expected) in cases {
        let mut got = Vec::new();
        let mut records = txn.range(&users, from, to);
        while let Some(record) = records.next().await.unwrap() {
            got.push(record.key.to_string());
        }
        assert_eq!(got, expected);
    }
    let found = db.store().verify(|_, _| {}).await.unwrap();
    assert_eq!(found.problems, [""; 0]);
    assert_eq!((found.records, found.waiting), (401, 0), "{found:?}");
    assert!(found.levels > 1 && found.pages > 5, "{found:?}");
    db.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_database_in_a_directory() {
    for backend in Backend::ALL {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("file://{}", folder.path().join("db").display());
        let none = Db::open(&url).await.err();
        assert!(matches!(none, Some(StoreError::NotFound(_))), "{none:?}");
        assert!(!folder.path().join("db").exists(), "looking leaves nothing");
        life_of_a_database(&url, &options(backend)).await;
    }
}

/// A client whose name is nobody else's takes all traces of itself along.
#[tokio::test]
async fn a_closed_client_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", folder.path().display());
    let db = Db::create(&url, &options(Backend::S3Log)).await.unwrap();
    let users = db.create_collection("users").await.unwrap();
    let mut txn = db.begin();
    txn.put(&users, &key("ada"), payload("1815")).unwrap();
    txn.commit().await.unwrap();
    db.close().await.unwrap();
    let files = Files::open(folder.path()).unwrap();
    for prefix in ["clients/", "log/"] {
        assert_eq!(files.list(prefix, None, 10).await.unwrap().names, [""; 0], "{prefix}");
    }
    let db = Db::open(&url).await.unwrap();
    let users = db.collection("users").await.unwrap();
    assert_eq!(all(&db, &users).await.len(), 1);
}

#[tokio::test]
async fn memory_is_shared_by_name() {
    let one = Db::open("mem:shared").await.unwrap();
    let other = Db::open("mem:shared").await.unwrap();
    let alone = Db::open("mem:").await.unwrap();
    one.create_collection("users").await.unwrap();
    assert!(other.collection("users").await.is_ok());
    assert!(alone.collection("users").await.is_err());
}

/// A page that was damaged is named, and is no panic.
#[tokio::test]
async fn damage_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", folder.path().display());
    let db = Db::create(&url, &options(Backend::S3Log)).await.unwrap();
    let users = db.create_collection("users").await.unwrap();
    db.close().await.unwrap();
    let object = format!("page/{}", users.root);
    let path = folder.path().join("objects").join(format!("{object}@"));
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let db = Db::open(&url).await.unwrap();
    let found = db.store().verify(|_, _| {}).await.unwrap();
    assert_eq!(found.problem_count, 2, "{found:?}");
    assert!(found.problems[0].contains(&users.root.to_string()), "{found:?}");
    let error = db.collection("users").await.unwrap_err();
    assert!(error.to_string().contains(&object), "{error}");
}
