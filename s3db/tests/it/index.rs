//! Secondary indexes, through the front door.

use std::{
    ops::Bound,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use s3db::{
    Backend, Collection, Db, Key, Level, Options, Payload, SearchBy, Session, Settings, Store,
    StoreError,
    cloud::{
        Cloud, Delete, ETag, Fault, Get, Listing, Objects, Put, PutIf,
        embedded::{self, Memory},
        model::{Faults, Process},
    },
    page::Page,
};

use crate::{
    meddle::{Fate::Denied, Meddler},
    printed::{open, run, world},
};

const BY: SearchBy = SearchBy::Part { separator: b',', number: 0 };

fn options() -> Options {
    let settings = Settings {
        ttl: Duration::from_millis(50),
        checkpoint_interval: Duration::from_millis(20),
        lease: Duration::from_millis(50),
        leaf_bytes_max: 1500,
        ..Settings::default()
    };
    Options { settings, has_worker: false, shards: 2, ..Options::default() }
}

async fn create(backend: Backend) -> (Cloud, Db, Collection) {
    let cloud = embedded::memory(Arc::new(Memory::new()));
    Store::create(&cloud, &options().settings, backend, 2).await.unwrap();
    let db = Db::over(cloud.clone(), &options()).await.unwrap();
    let things = db.create_collection("things").await.unwrap();
    (cloud, db, things)
}

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

async fn put(db: &Db, of: &Collection, records: &[(&str, &str)]) {
    let mut txn = db.begin();
    for (name, payload) in records {
        txn.put(of, &key(name), Payload::new(payload).unwrap()).unwrap();
    }
    txn.commit().await.unwrap();
}

/// One sweep takes on only so much.
async fn sweep(db: &Db) {
    while db.store().sweep().await.unwrap().records > 0 {}
}

async fn found(txn: &s3db::Transaction<'_>, of: &Collection, from: &str, to: &str) -> Vec<String> {
    let (from, to) = (key(from), key(to));
    let bounds = (Bound::Included(&from), Bound::Included(&to));
    let mut records = txn.probe_range(of, "i", bounds.0, bounds.1).await.unwrap();
    let mut all = Vec::new();
    while let Some((search, record)) = records.next().await.unwrap() {
        all.push(format!("{search}:{}", record.key));
    }
    all
}

#[tokio::test]
async fn an_index_follows_its_records() {
    for backend in Backend::ALL {
        let (_, db, things) = create(backend).await;
        put(&db, &things, &[("1", "b,x"), ("2", "a"), ("3", ",none")]).await;
        let early = db.begin().probe(&things, "i", &key("a")).await.err();
        assert!(matches!(early, Some(StoreError::NotFound(_))), "{early:?}");
        sweep(&db).await;
        let made = db.create_index(&things, "i", &BY).await.unwrap();
        assert_eq!((made.records, made.missing), (2, 2), "{backend:?}");
        // The handle of before the index is as good as any.
        assert_eq!(found(&db.begin(), &things, "a", "z").await, ["a:2", "b:1"]);
        put(&db, &things, &[("4", "b"), ("1", "c")]).await;
        assert_eq!(found(&db.begin(), &things, "a", "z").await, ["a:2", "b:4", "c:1"]);
        let mut txn = db.begin();
        txn.delete(&things, &key("2")).unwrap();
        txn.put(&things, &key("5"), Payload::new("a,5").unwrap()).unwrap();
        assert_eq!(found(&txn, &things, "a", "b").await, ["a:5", "b:4"], "its own too");
        txn.commit().await.unwrap();
        assert_eq!(found(&db.begin(), &things, "a", "b").await, ["a:5", "b:4"]);
        assert_eq!(found(&db.begin(), &things, "b", "a").await, [""; 0]);
        sweep(&db).await;
        let checked = db.store().check_index("things", "i", |_| {}).await.unwrap();
        let counts = (checked.records, checked.entries, checked.missing, checked.dangling);
        assert_eq!(counts, (3, 3, 0, 0), "{backend:?}");
        // Enough for some levels.
        for part in 0..10 {
            let names: Vec<_> = (0..30).map(|n| format!("{:03}", part + 10 * n)).collect();
            let records: Vec<_> = names.iter().map(|name| (&**name, "many,more")).collect();
            put(&db, &things, &records).await;
        }
        sweep(&db).await;
        let many = found(&db.begin(), &things, "many", "many").await;
        assert_eq!(many.len(), 300);
        assert!(many.is_sorted());
        let verified = db.store().verify(|_, _| {}).await.unwrap();
        assert_eq!(verified.problems, [""; 0]);
        assert_eq!(verified.trees, 2);
    }
}

/// Nobody who commits or sweeps needs to know of an index, or to see what they replace: the pages do.
#[tokio::test]
async fn who_knows_nothing_of_an_index_maintains_it() {
    for backend in Backend::ALL {
        let (cloud, db, things) = create(backend).await;
        // Long enough for what it read to stay what it knows.
        let slow = Settings { ttl: Duration::from_secs(1000), ..options().settings };
        let other = Options { settings: slow, ..options() };
        let other = Db::over(cloud.clone(), &other).await.unwrap();
        put(&db, &things, &[("k", "old"), ("same", "same")]).await;
        db.store().sweep().await.unwrap();
        assert!(other.begin().read(&things, &key("k")).await.unwrap().is_some());
        put(&db, &things, &[("k", "older"), ("new", "new")]).await;
        db.create_index(&things, "i", &BY).await.unwrap();
        db.store().sweep().await.unwrap();
        // It holds the page of before.
        put(&other, &things, &[("k", "new"), ("same", "same"), ("late", "late")]).await;
        sweep(&other).await;
        let fresh = Db::over(cloud, &options()).await.unwrap();
        let all = ["late:late", "new:k", "new:new", "same:same"];
        assert_eq!(found(&fresh.begin(), &things, "a", "z").await, all, "{backend:?}");
        let checked = fresh.store().check_index("things", "i", |_| {}).await.unwrap();
        let counts = (checked.records, checked.entries, checked.missing, checked.dangling);
        assert_eq!(counts, (4, 4, 0, 0), "{backend:?}");
    }
}

/// What an index should not say, since nobody writes it: it is found out, passed over, and mended.
#[tokio::test]
async fn what_dangles_is_passed_over() {
    let (_, db, things) = create(Backend::S3Log).await;
    db.create_index(&things, "i", &BY).await.unwrap();
    let index = db.collection("things").await.unwrap().indexes.remove(0);
    put(&db, &things, &[("k", "new"), ("other", "other")]).await;
    let session = Session::open(db.store().clone(), 77).await.unwrap();
    let mut txn = session.begin(Level::Atomic);
    txn.index(index.root, &key("old"), &key("k"), true).unwrap();
    txn.index(index.root, &key("other"), &key("other"), false).unwrap();
    session.commit(&mut txn).await.unwrap();
    sweep(&db).await;
    put(&db, &things, &[("k", "new,er")]).await;
    sweep(&db).await;
    assert_eq!(found(&db.begin(), &things, "a", "z").await, ["new:k"]);
    let before = db.store().check_index("things", "i", |_| {}).await.unwrap();
    // An entry that went under a stamp of its own looks like one of a write that is still to come.
    let counts = (before.entries, before.missing, before.changing, before.dangling);
    assert_eq!(counts, (2, 0, 1, 1));
    let mended = db.store().build_index("things", "i", |_| {}).await.unwrap();
    assert_eq!(mended.dangling, 1);
    let after = db.store().check_index("things", "i", |_| {}).await.unwrap();
    assert_eq!((after.entries, after.dangling), (1, 0));
    assert_eq!(found(&db.begin(), &things, "a", "z").await, ["new:k"]);
}

/// Own entries are laid over the index until its pages show them. Those of records that others had
/// replaced before there was an index they never show: they stayed, and took the room of others.
#[tokio::test]
async fn own_entries_that_no_page_will_show_are_forgotten() {
    let (cloud, db, things) = create(Backend::S3Log).await;
    let settings = Settings { own_bytes_max: 4000, ..options().settings };
    let other = Db::over(cloud, &Options { settings, ..options() }).await.unwrap();
    let session = Session::open(other.store().clone(), 77).await.unwrap();
    let names: Vec<String> = (0..20).map(|n| format!("k{n:02}")).collect();
    let mut txn = session.begin(Level::Atomic);
    for name in &names {
        txn.put(things.root, &key(name), Payload::new("old").unwrap()).unwrap();
    }
    session.commit(&mut txn).await.unwrap();
    let newer: Vec<(&str, &str)> = names.iter().map(|name| (&**name, "new,er")).collect();
    put(&db, &things, &newer).await;
    sweep(&db).await;
    db.create_index(&things, "i", &BY).await.unwrap();

    let txn = session.begin(Level::Atomic);
    let all = (Bound::Unbounded, Bound::Unbounded);
    let mut records = session.find(&txn, &things, "i", all.0, all.1).await.unwrap();
    let mut count = 0;
    while let Some((search, record)) = records.next().await.unwrap() {
        assert_eq!((search, record.key), (key("new"), key(&names[count])));
        count += 1;
    }
    assert_eq!((count, session.unseen_writes()), (20, 20));
    let mut least = 20;
    for n in 0..20 {
        let mut txn = session.begin(Level::Atomic);
        txn.put(things.root, &key(&format!("w{n}")), Payload::new("w").unwrap()).unwrap();
        session.commit(&mut txn).await.unwrap();
        least = least.min(session.unseen_writes());
    }
    assert!(least < 20, "{least}");
}

/// Others write while an index is built, and when it is ready nothing is missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_is_built_beside_writers() {
    let (cloud, db, things) = create(Backend::S3Log).await;
    let names: Vec<String> = (0..200).map(|n| format!("a{n:03}")).collect();
    let records: Vec<(&str, &str)> = names.iter().map(|name| (&**name, "a")).collect();
    put(&db, &things, &records).await;
    sweep(&db).await;
    let maker = Db::over(cloud, &options()).await.unwrap();
    let of = things.clone();
    let build = tokio::spawn(async move { maker.create_index(&of, "i", &BY).await });
    let mut n = 200;
    while !build.is_finished() {
        put(&db, &things, &[(&format!("b{n}"), "a"), (&names[n % 200], "b")]).await;
        n += 1;
        db.store().sweep().await.unwrap();
    }
    build.await.unwrap().unwrap();
    sweep(&db).await;
    let checked = db.store().check_index("things", "i", |_| {}).await.unwrap();
    let counts = (checked.records, checked.entries, checked.missing, checked.dangling);
    assert_eq!(counts, (n as u64, n as u64, 0, 0));
    let verified = db.store().verify(|_, _| {}).await.unwrap();
    assert_eq!(verified.problems, [""; 0]);
}

/// A rule that the catalogue cannot hold would take the whole collection with it.
#[tokio::test]
async fn a_field_has_a_name() {
    let (cloud, db, things) = create(Backend::S3Log).await;
    for len in [0, 201, 70_000] {
        let by = SearchBy::Json("x".repeat(len));
        let made = db.create_index(&things, "i", &by).await;
        assert!(matches!(made, Err(StoreError::Invalid(_))), "{len}: {made:?}");
    }
    db.create_index(&things, "i", &SearchBy::Json("x".repeat(200))).await.unwrap();
    let other = Db::over(cloud, &options()).await.unwrap();
    assert_eq!(other.collection("things").await.unwrap().indexes.len(), 1);
}

/// An index that no leaf names would miss what comes: `verify` says so.
#[tokio::test]
async fn a_leaf_that_does_not_name_its_index_is_a_problem() {
    let (_, db, things) = create(Backend::S3Log).await;
    db.store().create_index("things", "i", &BY).await.unwrap();
    let early = db.begin().probe(&things, "i", &key("a")).await.err().map(|it| it.to_string());
    assert!(early.as_ref().is_some_and(|it| it.contains("is being built")), "{early:?}");
    assert_eq!(db.store().verify(|_, _| {}).await.unwrap().problems, [""; 0]);
    db.store().finish_index("things", "i").await.unwrap();
    let verified = db.store().verify(|_, _| {}).await.unwrap();
    assert!(verified.problems[0].contains("build it again"), "{:?}", verified.problems);
    db.create_index(&things, "i", &BY).await.unwrap();
    assert_eq!(db.store().verify(|_, _| {}).await.unwrap().problems, [""; 0]);
}

/// What is there under `name`.
async fn bytes_of(cloud: &Cloud, name: &str) -> Bytes {
    let Ok(Get::Found { bytes, .. }) = cloud.objects.get(name, None).await else {
        panic!("{name} is not there");
    };
    bytes
}

/// One record of a key that is no pair made an index unusable for good, and with it `check` and `build`.
#[tokio::test]
async fn a_key_that_is_no_entry_is_passed_over() {
    let (_, db, things) = create(Backend::S3Log).await;
    db.create_index(&things, "i", &BY).await.unwrap();
    let index = db.collection("things").await.unwrap().indexes.remove(0);
    put(&db, &things, &[("k", "w"), ("l", "y")]).await;
    let session = Session::open(db.store().clone(), 77).await.unwrap();
    let mut txn = session.begin(Level::Atomic);
    // The second is a search key and no record.
    for stranger in ["x", "x\0\u{1}"] {
        txn.put(index.root, &key(stranger), Payload::new("").unwrap()).unwrap();
    }
    session.commit(&mut txn).await.unwrap();
    sweep(&db).await;
    assert_eq!(found(&db.begin(), &things, "a", "z").await, ["w:k", "y:l"]);
    let txn = session.begin(Level::Atomic);
    let pairs = session.probe(&txn, index.root, &key("a"), Some(&key("z"))).await.unwrap();
    assert_eq!(pairs, [(key("w"), key("k")), (key("y"), key("l"))]);
    for checked in [
        db.store().check_index("things", "i", |_| {}).await.unwrap(),
        db.store().build_index("things", "i", |_| {}).await.unwrap(),
    ] {
        let counts = (checked.records, checked.entries, checked.missing, checked.dangling);
        assert_eq!((counts, checked.strange), ((2, 2, 0, 0), 2));
    }
}

/// An index was changed as a whole before the next one. Where that was damaged the leaf of the records
/// stayed as it was, and the first index had let go of what is on it: it found the record nowhere.
#[tokio::test]
async fn a_damaged_index_hides_nothing_from_the_others() {
    // The page of the new entry is damaged, or only that of the old one.
    for is_old in [false, true] {
        for damaged in [0, 1] {
            let (cloud, db, things) = create(Backend::S3Log).await;
            for (name, number) in [("i", 0), ("j", 1)] {
                let by = SearchBy::Part { separator: b',', number };
                db.create_index(&things, name, &by).await.unwrap();
            }
            // Enough for some leaves, between the old and the new.
            let names: Vec<String> = (0..60).map(|n| format!("m{n:02}")).collect();
            let filled: Vec<String> = names.iter().map(|name| format!("{name},{name}")).collect();
            let mut records: Vec<(&str, &str)> =
                names.iter().zip(&filled).map(|(name, payload)| (&**name, &**payload)).collect();
            records.push(("r", "a,a"));
            put(&db, &things, &records).await;
            sweep(&db).await;
            let indexes = db.collection("things").await.unwrap().indexes;
            let root = bytes_of(&cloud, &indexes[damaged].root.object()).await;
            let root = Page::decode(&root).unwrap();
            let links = root.links();
            assert!(links.len() > 1);
            let end = if is_old { links.first() } else { links.last() };
            let object = end.unwrap().child.object();
            cloud.objects.put(&object, "noise".into(), PutIf::Always).await;
            let changer = Db::over(cloud.clone(), &options()).await.unwrap();
            put(&changer, &things, &[("r", "z,z")]).await;
            let outcome = open(&cloud, options().settings).await.sweep().await;
            assert!(matches!(outcome, Err(StoreError::Damaged { .. })), "{outcome:?}");
            let fresh = Db::over(cloud, &options()).await.unwrap();
            let sound = &indexes[1 - damaged].name;
            let mut found = found_by(&fresh, &things, sound, "a").await;
            found.extend(found_by(&fresh, &things, sound, "z").await);
            assert_eq!(found, [key("r")], "{is_old} {damaged}");
        }
    }
}

/// Of one index, too, one damaged page hides no record that the others show; and a page is damaged
/// though it was sound when this process read it last.
#[tokio::test]
async fn a_damaged_page_of_an_index_hides_nothing_from_its_others() {
    for is_warm in [false, true] {
        let (cloud, db, things) = create(Backend::S3Log).await;
        let by = SearchBy::Part { separator: b',', number: 0 };
        db.create_index(&things, "i", &by).await.unwrap();
        let names: Vec<String> = (0..99).map(|n| format!("m{n:02}")).collect();
        let filled: Vec<String> = names.iter().map(|name| format!("{name},")).collect();
        let mut records: Vec<(&str, &str)> =
            names.iter().zip(&filled).map(|(name, payload)| (&**name, &**payload)).collect();
        records.extend([("r1", "a,"), ("r2", "m30,")]);
        put(&db, &things, &records).await;
        let store = open(&cloud, options().settings).await;
        sweep(&db).await;
        let index = db.collection("things").await.unwrap().indexes.remove(0);
        let root = Page::decode(&bytes_of(&cloud, &index.root.object()).await).unwrap();
        let links = root.links();
        // All between the old entry of the one and its new one.
        let [_, middle @ .., _] = links else { panic!("{} pages", links.len()) };
        assert!(!middle.is_empty());
        if is_warm {
            // Reads them all.
            let checked = store.check_index("things", "i", |_| {}).await.unwrap();
            assert_eq!(checked.missing, 0);
        }
        for link in middle {
            cloud.objects.put(&link.child.object(), "noise".into(), PutIf::Always).await;
        }
        let changer = Db::over(cloud.clone(), &options()).await.unwrap();
        put(&changer, &things, &[("r1", "z,"), ("r2", "y,")]).await;
        let outcome = store.sweep().await;
        assert!(matches!(outcome, Err(StoreError::Damaged { .. })), "{outcome:?}");
        let fresh = Db::over(cloud, &options()).await.unwrap();
        let mut found = found_by(&fresh, &things, "i", "a").await;
        found.extend(found_by(&fresh, &things, "i", "z").await);
        assert_eq!(found, [key("r1")], "{is_warm}");
    }
}

/// Entries go first. Between them and the leaf, or for as long as the leaf cannot be put, records were
/// reported as missing in a database that is sound.
#[tokio::test]
async fn a_record_that_is_being_changed_is_not_missing() {
    let (raw, db, things) = create(Backend::S3Log).await;
    db.create_index(&things, "i", &BY).await.unwrap();
    put(&db, &things, &[("r", "a"), ("s", "a")]).await;
    sweep(&db).await;
    put(&db, &things, &[("r", "b")]).await;
    let (meddler, cloud) = Meddler::over(&raw);
    meddler.puts(&things.root.object(), &[Denied]);
    let outcome = open(&cloud, options().settings).await.sweep().await;
    assert!(matches!(outcome, Err(StoreError::Cloud { .. })), "{outcome:?}");
    let check = async |counts| {
        let store = open(&raw, options().settings).await;
        let checked = store.check_index("things", "i", |_| {}).await.unwrap();
        let found = (checked.records, checked.entries, checked.missing, checked.changing);
        assert_eq!((found, checked.dangling), (counts, 0));
    };
    check((2, 2, 0, 1)).await;
    sweep(&db).await;
    check((2, 2, 0, 0)).await;
}

/// Puts the leaf of the records again, as it is, whenever the page of an index is read.
struct Restless {
    beneath: Arc<dyn Objects>,
    leaf: String,
    index: String,
    reads: AtomicU64,
}

#[async_trait]
impl Objects for Restless {
    async fn get(&self, name: &str, unless: Option<&ETag>) -> Result<Get, Fault> {
        if name == self.index {
            let n = self.reads.fetch_add(1, Ordering::Relaxed);
            let Get::Found { bytes, etag, .. } = self.beneath.get(&self.leaf, None).await? else {
                panic!("no leaf");
            };
            let mut page = Page::decode(&bytes).unwrap();
            page.write_id = u128::from(n);
            self.beneath.put(&self.leaf, page.encode(), PutIf::Matches(etag)).await;
        }
        self.beneath.get(name, unless).await
    }

    async fn put(&self, name: &str, bytes: Bytes, condition: PutIf) -> Put {
        self.beneath.put(name, bytes, condition).await
    }

    async fn delete(&self, name: &str, only: Option<&ETag>) -> Delete {
        self.beneath.delete(name, only).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> Result<Listing, Fault> {
        self.beneath.list(prefix, after, max).await
    }
}

/// Whoever lost the leaf to another put all entries again, and lost it again meanwhile, until it gave up.
#[tokio::test]
async fn entries_that_are_there_are_not_put_again() {
    let (raw, db, things) = create(Backend::S3Log).await;
    db.create_index(&things, "i", &BY).await.unwrap();
    let index = db.collection("things").await.unwrap().indexes.remove(0);
    put(&db, &things, &[("a", "x"), ("b", "y"), ("c", "z")]).await;
    let restless = Arc::new(Restless {
        beneath: raw.objects.clone(),
        leaf: things.root.object(),
        index: index.root.object(),
        reads: AtomicU64::new(0),
    });
    let cloud = Cloud { objects: restless.clone(), ..raw };
    let settings =
        Settings { attempts_max: 3, backoff: Duration::from_millis(1), ..options().settings };
    assert_eq!(open(&cloud, settings).await.sweep().await.unwrap().applied, 3);
    // As many as one put takes; a dozen attempts are the most.
    let reads = restless.reads.load(Ordering::Relaxed);
    assert!(reads <= 2, "{reads}");
    assert_eq!(found(&db.begin(), &things, "a", "z").await, ["x:a", "y:b", "z:c"]);
}

/// Beside a catalogue that had lost its indexes, building wrote pages that name more of them than a page
/// can be read with.
#[tokio::test]
async fn no_page_names_more_indexes_than_it_can() {
    let (cloud, db, things) = create(Backend::S3Log).await;
    put(&db, &things, &[("k", "x")]).await;
    sweep(&db).await;
    let catalogue = "catalog/things";
    let before = bytes_of(&cloud, catalogue).await;
    for n in 0..64 {
        db.create_index(&things, &format!("i{n}"), &BY).await.unwrap();
    }
    let all = bytes_of(&cloud, catalogue).await;
    cloud.objects.put(catalogue, before, PutIf::Always).await;
    let refused = db.create_index(&things, "late", &BY).await.unwrap_err();
    assert!(matches!(&refused, StoreError::Invalid(what) if what.contains(catalogue)), "{refused}");
    let fresh = Db::over(cloud.clone(), &options()).await.unwrap();
    assert!(fresh.begin().read(&things, &key("k")).await.unwrap().is_some());
    // As it says.
    cloud.objects.put(catalogue, all, PutIf::Always).await;
    fresh.create_index(&things, "i63", &BY).await.unwrap();
    assert_eq!(found_by(&fresh, &things, "i63", "x").await, [key("k")]);
}

/// An entry whose record is not there at all, not even as one that was deleted, stayed for ever: it was
/// neither told nor taken out.
#[test]
fn an_entry_of_nothing_is_taken_out_when_it_is_old() {
    let world = world(Faults::NONE);
    let cloud = world.cloud(Process(0));
    run(&world, async move {
        Store::create(&cloud, &options().settings, Backend::S3Log, 1).await.unwrap();
        let day = Duration::from_secs(24 * 3600);
        let settings = Settings { tombstone_age: day, ..options().settings };
        let db = Db::over(cloud.clone(), &Options { settings, ..options() }).await.unwrap();
        let things = db.create_collection("things").await.unwrap();
        db.create_index(&things, "i", &BY).await.unwrap();
        let index = db.collection("things").await.unwrap().indexes.remove(0);
        put(&db, &things, &[("k", "x")]).await;
        let session = Session::open(db.store().clone(), 77).await.unwrap();
        let mut txn = session.begin(Level::Atomic);
        txn.index(index.root, &key("x"), &key("nothing"), true).unwrap();
        session.commit(&mut txn).await.unwrap();
        sweep(&db).await;
        // Its record can be on its way.
        assert_eq!(checked(&db).await, (1, 2, 0));
        let built = db.store().build_index("things", "i", |_| {}).await.unwrap();
        assert_eq!((built.dangling, checked(&db).await), (0, (1, 2, 0)));
        cloud.clock.sleep(2 * day).await;
        assert_eq!(checked(&db).await, (1, 2, 1));
        let built = db.store().build_index("things", "i", |_| {}).await.unwrap();
        assert_eq!((built.dangling, checked(&db).await), (1, (1, 1, 0)));
    });
}

/// Where the root of an index was lost an empty one took its place: no record was found, without a word.
#[tokio::test]
async fn a_root_that_is_lost_is_not_taken_for_an_empty_index() {
    let (cloud, db, things) = create(Backend::S3Log).await;
    put(&db, &things, &[("k", "x")]).await;
    sweep(&db).await;
    db.create_index(&things, "i", &BY).await.unwrap();
    let index = db.collection("things").await.unwrap().indexes.remove(0);
    cloud.objects.delete(&index.root.object(), None).await;
    let fresh = Db::over(cloud.clone(), &options()).await.unwrap();
    let of = fresh.collection("things").await.unwrap();
    let txn = fresh.begin();
    let mut records = txn.probe(&of, "i", &key("x")).await.unwrap();
    let outcome = records.next().await;
    assert_eq!(outcome, Err(StoreError::Lost { object: index.root.object() }));
    // The records themselves are there.
    assert!(txn.read(&of, &key("k")).await.unwrap().is_some());
}

/// Each session that probed an index for the first time had the whole process ask for every page again.
#[tokio::test]
async fn who_only_reads_makes_nobody_ask_again() {
    let cloud = embedded::memory(Arc::new(Memory::new()));
    let settings = Settings { ttl: Duration::from_secs(1000), ..options().settings };
    Store::create(&cloud, &settings, Backend::S3Log, 1).await.unwrap();
    let store = open(&cloud, settings).await;
    let writer = Session::open(store.clone(), 1).await.unwrap();
    let things = store.create_collection("things").await.unwrap();
    let mut txn = writer.begin(Level::Atomic);
    txn.put(things.root, &key("k"), Payload::new("x").unwrap()).unwrap();
    writer.commit(&mut txn).await.unwrap();
    store.sweep().await.unwrap();
    store.create_index("things", "i", &BY).await.unwrap();
    store.build_index("things", "i", |_| {}).await.unwrap();
    let asked_by = async |session: &Session| {
        let before = store.pool_counts();
        let txn = session.begin(Level::Atomic);
        let all = (Bound::Unbounded, Bound::Unbounded);
        let mut records = session.find(&txn, &things, "i", all.0, all.1).await.unwrap();
        assert!(records.next().await.unwrap().is_some());
        let after = store.pool_counts();
        after.revalidated + after.fetched - before.revalidated - before.fetched
    };
    // Copies can be of the time before it was filled.
    let reader = Session::reader(store.clone(), 2);
    assert!(asked_by(&reader).await > 0);
    // What was asked for in the very microsecond in which they were forgotten.
    asked_by(&reader).await;
    assert_eq!(asked_by(&Session::reader(store.clone(), 3)).await, 0);
    // What it wrote is on pages that are newer than the copies, as far as anybody knows.
    assert!(asked_by(&writer).await > 0);
}

/// Records, entries, and entries that dangle.
async fn checked(db: &Db) -> (u64, u64, u64) {
    let checked = db.store().check_index("things", "i", |_| {}).await.unwrap();
    (checked.records, checked.entries, checked.dangling)
}

async fn found_by(db: &Db, of: &Collection, index: &str, search: &str) -> Vec<Key> {
    let txn = db.begin();
    let mut records = txn.probe(of, index, &key(search)).await.unwrap();
    let mut all = Vec::new();
    while let Some((_, record)) = records.next().await.unwrap() {
        all.push(record.key);
    }
    all
}
