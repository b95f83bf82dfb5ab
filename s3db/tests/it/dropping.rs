//! Collections and indexes that are dropped, beside those who use them.

use std::{
    ops::Bound,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use s3db::{
    Backend, Collection, INDEXES_MAX, Isolation, Level, Payload, SearchBy, Session, Settings,
    Store, StoreError,
    cloud::{
        Cloud, Delete, Get, PutIf,
        model::{Faults, Latency, Process, World},
    },
    page::PageId,
};

use crate::{
    meddle::{Fate::Denied, Meddler},
    mishaps::{CLIENT, key, memory, put, settings},
    printed::{open, run},
};

const BY: SearchBy = SearchBy::Payload;

/// Everything that a new process sees in a collection.
async fn all(cloud: &Cloud, of: &Collection) -> Vec<String> {
    let reader = Session::reader(open(cloud, settings()).await, 99);
    let txn = reader.begin(Level::Basic);
    let mut scan = reader.scan(&txn, of.root, None, None);
    let mut found = Vec::new();
    while let Some((key, payload)) = scan.next().await.unwrap() {
        found.push(format!("{key}={payload}"));
    }
    found
}

async fn put_aside(cloud: &Cloud) -> usize {
    cloud.objects.list("quarantine/", None, 1000).await.unwrap().names.len()
}

/// Pages that are there.
async fn pages(cloud: &Cloud) -> usize {
    cloud.objects.list("page/", None, 1000).await.unwrap().names.len()
}

#[tokio::test]
async fn what_waits_for_a_dropped_collection_comes_nowhere() {
    for backend in Backend::ALL {
        let raw = memory();
        Store::create(&raw, &settings(), backend, 2).await.unwrap();
        let store = open(&raw, settings()).await;
        let old = store.create_collection("doomed").await.unwrap();
        let kept = store.create_collection("kept").await.unwrap();
        store.create_index("doomed", "i", &BY).await.unwrap();
        store.build_index("doomed", "i", |_| {}).await.unwrap();
        let session = Session::open(store.clone(), CLIENT).await.unwrap();
        put(&session, &old, "on its page", "x").await;
        store.sweep().await.unwrap();
        let mut txn = session.begin(Level::Atomic);
        txn.put(old.root, &key("waits"), Payload::new("x").unwrap()).unwrap();
        txn.put(kept.root, &key("waits"), Payload::new("x").unwrap()).unwrap();
        session.commit(&mut txn).await.unwrap();

        store.drop_collection("doomed").await.unwrap();
        let again = store.drop_collection("doomed").await;
        assert!(matches!(again, Err(StoreError::NotFound(_))), "{again:?}");
        let found = store.collection("doomed").await;
        assert!(matches!(found, Err(StoreError::NotFound(_))), "{found:?}");
        let new = store.create_collection("doomed").await.unwrap();
        assert_ne!(new.root, old.root);
        assert!(new.indexes.is_empty(), "{new:?}");
        put(&session, &new, "new", "y").await;

        // Queues tell nobody what waits in them.
        if backend == Backend::S3Log {
            let before = store.verify(|_, _| {}).await.unwrap();
            assert_eq!((before.stray_count, before.problem_count), (2, 0), "{before:?}");
            assert!(
                before.strays.iter().any(|it| it.contains("record waits of tree")),
                "{before:?}"
            );
        }
        let done = open(&raw, settings()).await.sweep().await.unwrap();
        // With s3-log what was the newest of the log when it was swept is there still, and swept again.
        let aside = if backend == Backend::S3Log { 2 } else { 1 };
        let there = put_aside(&raw).await;
        assert_eq!((done.poison, there), (aside, aside as usize), "{backend:?}: {done:?}");
        assert_eq!(all(&raw, &new).await, ["new=y"], "{backend:?}");
        assert_eq!(all(&raw, &kept).await, ["waits=x"], "{backend:?}");
        // Who has it open is told, at once in this process.
        let read = session.read(&session.begin(Level::Basic), old.root, &key("waits")).await;
        assert!(matches!(read, Err(StoreError::Lost { .. })), "{backend:?}: {read:?}");
        store.collect_garbage(Duration::ZERO).await.unwrap();
        assert_eq!(pages(&raw).await, 2, "{backend:?}: a root each");
        let verified = store.verify(|_, _| {}).await.unwrap();
        // What was put aside is there for somebody to look at.
        assert_eq!(verified.quarantined, aside, "{backend:?}");
    }
}

/// A process that has a copy of the root finds out when it brings something there.
#[tokio::test]
async fn whoever_still_has_its_root_keeps_nobody_back() {
    let raw = memory();
    let settings = Settings { ttl: Duration::from_secs(3600), ..settings() };
    Store::create(&raw, &settings, Backend::S3Log, 1).await.unwrap();
    let store = open(&raw, settings).await;
    let old = store.create_collection("doomed").await.unwrap();
    let kept = store.create_collection("kept").await.unwrap();
    store.create_index("doomed", "i", &BY).await.unwrap();
    store.build_index("doomed", "i", |_| {}).await.unwrap();
    let session = Session::open(store.clone(), CLIENT).await.unwrap();
    put(&session, &old, "a", "x").await;
    put(&session, &kept, "a", "x").await;
    open(&raw, settings).await.drop_collection("doomed").await.unwrap();
    let done = store.sweep().await.unwrap();
    assert_eq!((done.records, done.poison), (2, 1), "{done:?}");
    assert_eq!(all(&raw, &kept).await, ["a=x"]);
}

/// Its root stood there still, or again, and pages beneath it were gone: no sweep came to its end any more.
#[tokio::test]
async fn a_tree_that_is_half_gone_keeps_nobody_back() {
    let raw = memory();
    let settings = Settings { leaf_bytes_max: 600, ..settings() };
    Store::create(&raw, &settings, Backend::S3Log, 1).await.unwrap();
    let store = open(&raw, settings).await;
    let old = store.create_collection("doomed").await.unwrap();
    let kept = store.create_collection("kept").await.unwrap();
    let session = Session::open(store.clone(), CLIENT).await.unwrap();
    for n in 0..40 {
        put(&session, &old, &format!("{n:02}"), "some payload").await;
    }
    store.sweep().await.unwrap();
    put(&session, &old, "00", "another").await;
    put(&session, &kept, "a", "x").await;
    let root = old.root.object();
    let Get::Found { bytes, .. } = raw.objects.get(&root, None).await.unwrap() else {
        panic!("{root} is there");
    };
    open(&raw, settings).await.drop_collection("doomed").await.unwrap();
    raw.objects.put(&root, bytes, PutIf::Always).await;
    let own = &root[.."page/".len() + 16];
    let mut gone = 0;
    for page in raw.objects.list(own, None, 1000).await.unwrap().names {
        if page != root {
            assert_eq!(raw.objects.delete(&page, None).await, Delete::Gone);
            gone += 1;
        }
    }
    assert!(gone > 1, "it was more than a leaf");
    // The last one that was on its page is the newest of the log, and swept again.
    let done = open(&raw, settings).await.sweep().await.unwrap();
    assert_eq!((done.records, done.poison), (3, 2), "{done:?}");
    assert_eq!(all(&raw, &kept).await, ["a=x"]);
    store.collect_garbage(Duration::ZERO).await.unwrap();
    assert_eq!(pages(&raw).await, 1);
}

/// An entry of the catalogue that is gone was taken for a collection that was dropped: `verify` saw nothing, and garbage
/// collection deleted all of its pages and blobs.
#[tokio::test]
async fn what_the_catalogue_lost_is_not_taken_for_dropped() {
    let raw = memory();
    let settings = Settings { leaf_bytes_max: 600, tombstone_age: Duration::ZERO, ..settings() };
    Store::create(&raw, &settings, Backend::S3Log, 1).await.unwrap();
    let store = open(&raw, settings).await;
    let users = store.create_collection("users").await.unwrap();
    store.create_curated("kept").await.unwrap();
    store.create_index("users", "i", &BY).await.unwrap();
    store.build_index("users", "i", |_| {}).await.unwrap();
    let session = Session::open(store.clone(), CLIENT).await.unwrap();
    for n in 0..40 {
        put(&session, &users, &format!("{n:02}"), "some payload").await;
    }
    store.sweep().await.unwrap();
    let there = pages(&raw).await;
    let entry = "catalog/users";
    let Get::Found { bytes, .. } = raw.objects.get(entry, None).await.unwrap() else {
        panic!("{entry} is there");
    };
    assert_eq!(raw.objects.delete(entry, None).await, Delete::Gone);
    for _ in 0..2 {
        let store = open(&raw, settings).await;
        let refused = store.collect_garbage(Duration::ZERO).await;
        let said = refused.unwrap_err().to_string();
        assert!(said.contains("restore its entry in catalog/"), "{said}");
        let found = store.verify(|_, _| {}).await.unwrap();
        assert_eq!(found.problem_count, 1, "{found:?}");
        assert!(found.problems[0].contains("nobody dropped"), "{found:?}");
        assert_eq!(pages(&raw).await, there);
    }
    raw.objects.put(entry, bytes, PutIf::Absent).await;
    let store = open(&raw, settings).await;
    assert_eq!(all(&raw, &users).await.len(), 40);
    assert_eq!(store.verify(|_, _| {}).await.unwrap().problem_count, 0);
    store.collect_garbage(Duration::ZERO).await.unwrap();
    // Whoever has no copy gives it up by its name, once.
    raw.objects.delete(entry, None).await;
    store.drop_collection("users").await.unwrap();
    let again = store.drop_collection("users").await;
    assert!(matches!(again, Err(StoreError::NotFound(_))), "{again:?}");
    let deleted = store.collect_garbage(Duration::ZERO).await.unwrap().deleted;
    assert_eq!((deleted as usize, pages(&raw).await), (there - 1, 1));
    // The next one of its name is not dropped because that one was.
    let dropped = async || raw.objects.list("dropped/", None, 10).await.unwrap().names.len();
    assert_eq!(dropped().await, 1);
    store.create_collection("users").await.unwrap();
    assert_eq!(dropped().await, 0);
    raw.objects.delete(entry, None).await;
    let refused = open(&raw, settings).await.collect_garbage(Duration::ZERO).await;
    assert!(matches!(refused, Err(StoreError::Tree { .. })), "{refused:?}");
}

/// What cannot be dropped is left as it was.
#[tokio::test]
async fn what_somebody_waits_for_is_not_dropped() {
    let raw = memory();
    let (meddler, cloud) = Meddler::over(&raw);
    Store::create(&raw, &settings(), Backend::S3Log, 1).await.unwrap();
    let store = open(&cloud, settings()).await;
    let session = Session::open(store.clone(), CLIENT).await.unwrap();
    store.create_collection_for("accounts", Some(Isolation::Snapshot)).await.unwrap();
    let prices = store.create_curated("prices").await.unwrap();
    put(&session, &prices, "bread", "2").await;
    for name in ["accounts", "prices"] {
        let refused = store.drop_collection(name).await;
        assert!(matches!(refused, Err(StoreError::Invalid(_))), "{name}: {refused:?}");
        store.collection(name).await.unwrap();
    }
    let waits = store.proposals(&prices, None, 10).await.unwrap();
    store.reject(&prices, waits[0]).await.unwrap();
    store.drop_collection("prices").await.unwrap();
    // Another one is made, or an index of it, while somebody is about to drop it: he drops what is there.
    let things = store.create_collection("things").await.unwrap();
    let other = open(&raw, settings()).await;
    meddler.before_delete("catalog/", async move {
        other.create_index("things", "i", &BY).await.unwrap();
    });
    store.drop_collection("things").await.unwrap();
    assert!(matches!(store.collection("things").await, Err(StoreError::NotFound(_))));
    store.collect_garbage(Duration::ZERO).await.unwrap();
    let left = raw.objects.list("page/", None, 1000).await.unwrap().names;
    assert!(!left.contains(&things.root.object()) && left.len() == 1, "{left:?}");
}

/// Records of an index's collection wait for nothing that is gone, wherever dropping it was cut.
#[tokio::test]
async fn an_index_that_was_half_dropped_is_in_nobodys_way() {
    for backend in Backend::ALL {
        let raw = memory();
        let (meddler, cloud) = Meddler::over(&raw);
        let settings = Settings { leaf_bytes_max: 600, ..settings() };
        Store::create(&raw, &settings, backend, 2).await.unwrap();
        let store = open(&raw, settings).await;
        let things = store.create_collection("things").await.unwrap();
        let session = Session::open(store.clone(), CLIENT).await.unwrap();
        for n in 0..40 {
            put(&session, &things, &format!("{n:02}"), "some payload").await;
        }
        store.sweep().await.unwrap();
        store.create_index("things", "i", &BY).await.unwrap();
        store.build_index("things", "i", |_| {}).await.unwrap();
        let of = store.collection("things").await.unwrap();
        let txn = session.begin(Level::Atomic);
        session.find(&txn, &of, "i", Bound::Unbounded, Bound::Unbounded).await.unwrap();

        // Stopped before the first leaf forgets it.
        meddler.puts("page/", &[Denied; 10]);
        let cut = open(&cloud, settings).await.drop_index("things", "i").await;
        assert!(matches!(cut, Err(StoreError::Cloud { .. })), "{backend:?}: {cut:?}");
        assert!(store.collection("things").await.unwrap().indexes.is_empty());
        put(&session, &things, "00", "another").await;
        let done = open(&raw, settings).await.sweep().await.unwrap();
        assert_eq!((done.applied, done.poison), (1, 0), "{backend:?}: {done:?}");
        // Made again it is another one, and exact.
        store.create_index("things", "i", &BY).await.unwrap();
        store.build_index("things", "i", |_| {}).await.unwrap();
        put(&session, &things, "01", "another").await;
        let tidied = open(&raw, settings).await.collect_garbage(Duration::ZERO).await.unwrap();
        assert!(tidied.unfollowed > 2, "{backend:?}: {tidied:?}");
        let found = store.check_index("things", "i", |_| {}).await.unwrap();
        let counts = (found.records, found.entries, found.missing, found.dangling);
        assert_eq!(counts, (40, 40, 0, 0), "{backend:?}");
        let verified = store.verify(|_, _| {}).await.unwrap();
        assert_eq!(verified.problems, [""; 0], "{backend:?}");

        // Whole, this time: nothing is left to forget, and its pages go.
        store.drop_index("things", "i").await.unwrap();
        // The first is told of the one that it probed, the second of the catalogue.
        for _ in 0..2 {
            let probe = session.find(&txn, &things, "i", Bound::Unbounded, Bound::Unbounded).await;
            let told = match probe {
                Ok(mut found) => found.next().await.err(),
                Err(error) => Some(error),
            };
            assert!(matches!(told, Some(StoreError::NotFound(_))), "{backend:?}: {told:?}");
        }
        let tidied = store.collect_garbage(Duration::ZERO).await.unwrap();
        assert_eq!(tidied.unfollowed, 0, "{backend:?}: {tidied:?}");
        assert_eq!(all(&raw, &things).await.len(), 40);
        let again = store.drop_index("things", "i").await;
        assert!(matches!(again, Err(StoreError::NotFound(_))), "{again:?}");
    }
}

/// As many as a leaf can name: whoever builds the next one is told what makes room, and it does.
#[tokio::test]
async fn what_half_dropped_indexes_take_up_gc_gives_back() {
    let raw = memory();
    let (meddler, cloud) = Meddler::over(&raw);
    Store::create(&raw, &settings(), Backend::S3Log, 1).await.unwrap();
    let store = open(&raw, settings()).await;
    store.create_collection("things").await.unwrap();
    for n in 0..INDEXES_MAX {
        store.create_index("things", "i", &BY).await.unwrap();
        store.build_index("things", "i", |_| {}).await.unwrap();
        meddler.puts("page/", &[Denied]);
        let cut = open(&cloud, settings()).await.drop_index("things", "i").await;
        assert!(matches!(cut, Err(StoreError::Cloud { .. })), "{n}: {cut:?}");
    }
    store.create_index("things", "i", &BY).await.unwrap();
    match store.build_index("things", "i", |_| {}).await {
        Err(StoreError::Invalid(what)) => assert!(what.contains("s3db gc"), "{what}"),
        other => panic!("{other:?}"),
    }
    let tidied = open(&raw, settings()).await.collect_garbage(Duration::ZERO).await.unwrap();
    assert_eq!(tidied.unfollowed, 1, "{tidied:?}");
    // Whoever has no copy of that leaf.
    let store = open(&raw, settings()).await;
    store.build_index("things", "i", |_| {}).await.unwrap();
    let verified = store.verify(|_, _| {}).await.unwrap();
    assert_eq!(verified.problems, [""; 0]);
}

/// Whoever still builds it makes leaves name what is gone.
#[tokio::test]
async fn an_index_that_is_dropped_while_it_is_built_is_in_nobodys_way() {
    let raw = memory();
    let (meddler, cloud) = Meddler::over(&raw);
    Store::create(&raw, &settings(), Backend::S3Log, 1).await.unwrap();
    let store = open(&raw, settings()).await;
    let things = store.create_collection("things").await.unwrap();
    let session = Session::open(store.clone(), CLIENT).await.unwrap();
    put(&session, &things, "a", "x").await;
    store.sweep().await.unwrap();
    store.create_index("things", "i", &BY).await.unwrap();
    store.collection("things").await.unwrap();
    let builder = open(&cloud, settings()).await;
    let other = store.clone();
    meddler.before_put("page/", async move {
        other.drop_index("things", "i").await.unwrap();
    });
    let built = builder.build_index("things", "i", |_| {}).await;
    assert!(matches!(built, Err(StoreError::NotFound(_))), "{built:?}");
    put(&session, &things, "a", "y").await;
    let done = open(&raw, settings()).await.sweep().await.unwrap();
    assert_eq!((done.applied, done.poison), (1, 0), "{done:?}");
    let tidied = store.collect_garbage(Duration::ZERO).await.unwrap();
    assert_eq!(tidied.unfollowed, 1, "{tidied:?}");
    assert_eq!(all(&raw, &things).await, ["a=y"]);
}

/// Whoever was slow to put the root of one that was dropped said that of the next one was put: it was not, and
/// that collection was lost from then on.
#[tokio::test]
async fn a_root_is_declared_for_its_own_collection() {
    let raw = memory();
    let (meddler, cloud) = Meddler::over(&raw);
    Store::create(&raw, &settings(), Backend::S3Log, 1).await.unwrap();
    // Whoever creates it stops when it is named.
    meddler.puts("page/", &[Denied]);
    let cut = open(&cloud, settings()).await.create_collection("users").await;
    assert!(matches!(cut, Err(StoreError::Cloud { .. })), "{cut:?}");
    let slow = open(&cloud, settings()).await;
    let (other_meddler, other_cloud) = Meddler::over(&raw);
    let other = open(&raw, settings()).await;
    meddler.before_put("page/", async move {
        other.drop_collection("users").await.unwrap();
        other_meddler.puts("page/", &[Denied]);
        let cut = open(&other_cloud, settings()).await.create_collection("users").await;
        assert!(matches!(cut, Err(StoreError::Cloud { .. })), "{cut:?}");
    });
    let found = slow.collection("users").await;
    assert!(matches!(found, Err(StoreError::NotFound(_))), "{found:?}");
    let store = open(&raw, settings()).await;
    let users = store.create_collection("users").await.unwrap();
    let session = Session::open(store.clone(), CLIENT).await.unwrap();
    put(&session, &users, "a", "x").await;
    store.sweep().await.unwrap();
    assert_eq!(all(&raw, &users).await, ["a=x"]);
    // That of the first leads nowhere.
    store.collect_garbage(Duration::ZERO).await.unwrap();
    assert_eq!(pages(&raw).await, 1);
}

/// One that is made under the name of one that was dropped was declared ready by who still built the first.
#[tokio::test]
async fn an_index_is_ready_when_it_was_filled_itself() {
    let raw = memory();
    let (meddler, cloud) = Meddler::over(&raw);
    Store::create(&raw, &settings(), Backend::S3Log, 1).await.unwrap();
    let store = open(&raw, settings()).await;
    let things = store.create_collection("things").await.unwrap();
    let session = Session::open(store.clone(), CLIENT).await.unwrap();
    put(&session, &things, "a", "x").await;
    store.sweep().await.unwrap();
    store.create_index("things", "i", &BY).await.unwrap();
    let builder = open(&cloud, settings()).await;
    let other = store.clone();
    meddler.before_put("page/", async move {
        other.drop_index("things", "i").await.unwrap();
        // Whoever makes it anew stops before it is filled.
        other.create_index("things", "i", &BY).await.unwrap();
    });
    let built = builder.build_index("things", "i", |_| {}).await;
    assert!(matches!(built, Err(StoreError::NotFound(_))), "{built:?}");
    let of = store.collection("things").await.unwrap();
    assert_eq!((of.indexes.len(), of.indexes[0].is_ready), (1, false));
    let txn = session.begin(Level::Atomic);
    let probe = session.find(&txn, &of, "i", Bound::Unbounded, Bound::Unbounded).await;
    assert!(matches!(probe, Err(StoreError::Invalid(_))), "it is being built");
    store.build_index("things", "i", |_| {}).await.unwrap();
    let of = store.collection("things").await.unwrap();
    let mut probe = session.find(&txn, &of, "i", Bound::Unbounded, Bound::Unbounded).await.unwrap();
    assert!(probe.next().await.unwrap().is_some());
}

/// A collection comes and goes while clients write to it and to another one, which loses nothing. What is
/// there in the end has what was committed to it, and nothing of those before it.
#[test]
fn a_collection_comes_and_goes_beside_those_who_write() {
    for seed in 0..12 {
        let backend = Backend::ALL[seed as usize % 3];
        let world = World::new(seed, Faults::NONE, Latency::ROUGH);
        world.make_safe(Process(0));
        let cloud = world.cloud(Process(0));
        let task_world = world.clone();
        run(&world, async move {
            let settings = Settings {
                ttl: Duration::from_secs(1),
                lease: Duration::from_secs(2),
                leaf_bytes_max: 700,
                attempts_max: 20,
                ..settings()
            };
            Store::create(&cloud, &settings, backend, 2).await.unwrap();
            let store = open(&cloud, settings).await;
            let kept = store.create_collection("kept").await.unwrap();
            let committed: Arc<Mutex<Vec<(PageId, String)>>> = Arc::default();
            let left = Arc::new(AtomicU32::new(3));
            for client in 1..=3 {
                let (cloud, kept) = (task_world.cloud(Process(client)), kept.clone());
                let (committed, world) = (committed.clone(), task_world.clone());
                let left = left.clone();
                task_world.make_safe(Process(client));
                task_world.time.spawn(Process(client), async move {
                    let store = open(&cloud, settings).await;
                    let session = Session::open(store.clone(), client.into()).await.unwrap();
                    let mut of = None;
                    let mut n = 0;
                    for _ in 0..400 {
                        world.time.sleep(world.below(500_000)).await;
                        if of.is_none() || world.below(8) == 0 {
                            of = store.collection("doomed").await.ok().or(of);
                        }
                        let Some(doomed) = &of else { continue };
                        n += 1;
                        if n > 40 {
                            break;
                        }
                        let name = format!("{client}-{n}");
                        let mut txn = session.begin(Level::Atomic);
                        let root = doomed.root;
                        let payload = Payload::new(root.to_string()).unwrap();
                        txn.put(root, &key(&name), payload.clone()).unwrap();
                        txn.put(kept.root, &key(&name), payload).unwrap();
                        match session.commit(&mut txn).await {
                            Ok(_) => committed.lock().unwrap().push((root, name)),
                            // Dropped: to be looked for again.
                            Err(StoreError::Lost { .. }) => of = None,
                            Err(error) => panic!("{seed}: {error}"),
                        }
                        store.make_all_due();
                        // What is dropped meanwhile is tried again.
                        let _ = store.work().await;
                    }
                    left.fetch_sub(1, Ordering::Relaxed);
                });
            }
            for _ in 0..6 {
                store.create_collection("doomed").await.unwrap();
                store.create_index("doomed", "i", &BY).await.unwrap();
                store.build_index("doomed", "i", |_| {}).await.unwrap();
                task_world.time.sleep(task_world.below(3_000_000)).await;
                store.drop_collection("doomed").await.unwrap();
                if task_world.below(2) == 0 {
                    let _ = store.collect_garbage(Duration::from_secs(2)).await;
                }
            }
            let doomed = store.create_collection("doomed").await.unwrap();
            store.create_index("doomed", "i", &BY).await.unwrap();
            store.build_index("doomed", "i", |_| {}).await.unwrap();
            while left.load(Ordering::Relaxed) > 0 {
                task_world.time.sleep(1_000_000).await;
            }
            // Leases and copies are over.
            task_world.time.sleep(10_000_000).await;
            let sweeper = open(&cloud, settings).await;
            while sweeper.sweep().await.unwrap().applied > 0 {}
            let committed = committed.lock().unwrap().clone();
            let names = |root: Option<PageId>| {
                let is = |of: &PageId| root.is_none_or(|root| root == *of);
                let mut names: Vec<String> =
                    committed.iter().filter(|(of, _)| is(of)).map(|(_, it)| it.clone()).collect();
                names.sort();
                names
            };
            let there = async |of: &Collection| {
                let found = all(&cloud, of).await;
                let name = |it: String| it.split('=').next().unwrap_or_default().to_owned();
                found.into_iter().map(name).collect::<Vec<_>>()
            };
            assert_eq!(there(&kept).await, names(None), "{seed}: nothing is torn");
            assert_eq!(there(&doomed).await, names(Some(doomed.root)), "{seed}");
            assert!(committed.len() > 60, "{seed}: {}", committed.len());
            assert!(names(Some(doomed.root)).len() < committed.len(), "{seed}");
            let found = sweeper.check_index("doomed", "i", |_| {}).await.unwrap();
            assert_eq!((found.missing, found.dangling), (0, 0), "{seed}: {found:?}");
            for _ in 0..3 {
                sweeper.collect_garbage(Duration::ZERO).await.unwrap();
            }
            let names = cloud.objects.list("page/", None, 1000).await.unwrap().names;
            let verified = sweeper.verify(|_, _| {}).await.unwrap();
            assert_eq!(names.len() as u64, verified.pages, "{seed}: nothing of the others is left");
        });
    }
}
