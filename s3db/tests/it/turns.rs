//! Work on what is due: it ends beside those who commit all the time, and nothing falls between two
//! who do it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use s3db::{
    Backend, Collection, Db, Level, Payload, Session, Store, StoreError,
    cloud::{
        Cloud, Get, PutIf,
        model::{Faults, Latency, Process, World},
    },
};
use tokio::sync::Notify;

use crate::{
    meddle::{Fate::Denied, Meddler},
    mishaps::{CLIENT, create, get, key, memory, options, put, settings},
    printed::{open, run, world},
};

/// Commits one transaction after the other, each of all of `things`, in a process of its own.
/// Returns how many there are so far.
async fn keep_busy(
    world: &World,
    cloud: &Cloud,
    things: Vec<Collection>,
    gap: Duration,
    commits: u64,
) -> Arc<AtomicU64> {
    let session = Session::open(open(cloud, settings()).await, CLIENT).await.unwrap();
    let (time, committed) = (world.time.clone(), Arc::<AtomicU64>::default());
    let count = committed.clone();
    world.time.spawn(Process(1), async move {
        for n in 0..commits {
            time.sleep(gap.as_micros() as u64).await;
            let mut txn = session.begin(Level::Atomic);
            for of in &things {
                txn.put(of.root, &key("k"), Payload::new(format!("{n}")).unwrap()).unwrap();
            }
            session.commit(&mut txn).await.unwrap();
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    committed
}

/// What is on the page of `name`.
async fn on_page(cloud: &Cloud, of: &Collection, name: &str) -> Option<String> {
    let session = Session::reader(open(cloud, settings()).await, 99);
    let found = session.read(&session.begin(Level::Basic), of.root, &key(name)).await.unwrap();
    found.map(|payload| payload.to_string())
}

/// The name that the log objects of the only stream begin with.
async fn stream_of(cloud: &Cloud) -> String {
    let names = cloud.objects.list("log/", None, 1).await.unwrap().names;
    format!("{}/", names[0].rsplit_once('/').unwrap().0)
}

/// A sweep went on with each queue and each stream for as long as anything came in, a thousand
/// times: beside a client that commits all the time, for hours.
#[test]
fn a_sweep_ends_beside_a_client_that_commits_all_the_time() {
    const COMMITS: u64 = 3000;
    for backend in Backend::ALL {
        let world = world(Faults::NONE);
        let cloud = world.cloud(Process(0));
        let task_world = world.clone();
        run(&world, async move {
            Store::create(&cloud, &settings(), backend, 16).await.unwrap();
            let store = open(&cloud, settings()).await;
            let a = store.create_collection("a").await.unwrap();
            let b = store.create_collection("b").await.unwrap();
            let gap = Duration::from_millis(if backend == Backend::S3Log { 1 } else { 100 });
            let committed = keep_busy(&task_world, &cloud, vec![a, b], gap, COMMITS).await;
            cloud.clock.sleep(Duration::from_secs(1)).await;
            let done = store.sweep().await.unwrap();
            let committed = committed.load(Ordering::Relaxed);
            assert!(committed < COMMITS, "{backend:?}: the client had to be done first");
            assert!(done.applied > 0, "{backend:?}: {done:?}");
        });
    }
}

/// Log objects were read one by one, and freed one by one: after 100 commits a sweep took four seconds.
#[test]
fn what_a_client_left_is_read_and_freed_together() {
    let world = World::new(1, Faults::NONE, Latency::TODAY);
    world.make_safe(Process(0));
    let (cloud, time) = (world.cloud(Process(0)), world.time.clone());
    run(&world, async move {
        Store::create(&cloud, &settings(), Backend::S3Log, 1).await.unwrap();
        let store = open(&cloud, settings()).await;
        let things = store.create_collection("things").await.unwrap();
        let session = Session::open(store, CLIENT).await.unwrap();
        for n in 0..100 {
            put(&session, &things, &format!("{n}"), "x").await;
        }
        let began_us = time.now_us();
        let done = open(&cloud, settings()).await.sweep().await.unwrap();
        let took_ms = (time.now_us() - began_us) / 1000;
        assert_eq!((done.records, done.applied, done.leaves), (100, 100, 1));
        assert!(took_ms < 800, "{took_ms} ms");
        assert_eq!(cloud.objects.list("log/", None, 1000).await.unwrap().names.len(), 1);
    });
}

/// A sweep brought one stream after the other to its pages: a leaf that many clients had changed was put as
/// often.
#[tokio::test]
async fn streams_that_changed_a_leaf_share_its_put() {
    let raw = memory();
    Store::create(&raw, &settings(), Backend::S3Log, 1).await.unwrap();
    let store = open(&raw, settings()).await;
    let things = store.create_collection("things").await.unwrap();
    let damaged = store.create_collection("damaged").await.unwrap();
    for client in 1..=8 {
        let session = Session::open(store.clone(), client).await.unwrap();
        put(&session, &things, &format!("{client}"), "x").await;
        put(&session, &things, "of all", &format!("{client}")).await;
        if client == 3 {
            put(&session, &damaged, "k", "x").await;
        }
    }
    let object = damaged.root.object();
    let Ok(Get::Found { bytes, .. }) = raw.objects.get(&object, None).await else {
        panic!("no root");
    };
    raw.objects.put(&object, "noise".into(), PutIf::Always).await;
    let sweeper = open(&raw, settings()).await;
    // One of them fails, alone, and loses nothing.
    let outcome = sweeper.sweep().await;
    assert!(matches!(outcome, Err(StoreError::Damaged { .. })), "{outcome:?}");
    for client in 1..=8 {
        assert_eq!(on_page(&raw, &things, &format!("{client}")).await.as_deref(), Some("x"));
    }
    assert_eq!(on_page(&raw, &things, "of all").await.as_deref(), Some("8"));
    let left = raw.objects.list("log/", None, 1000).await.unwrap().names.len();
    // The newest of each stream, and all three of the one that failed.
    assert_eq!(left, 7 + 3);
    raw.objects.put(&object, bytes, PutIf::Always).await;
    let healed = open(&raw, settings()).await.sweep().await.unwrap();
    // Two collections, and eight streams four at a time.
    assert_eq!(healed.leaves, 3, "{healed:?}");
    assert_eq!(on_page(&raw, &damaged, "k").await.as_deref(), Some("x"));
}

/// A batch that others took was taken for the end of its stream.
#[tokio::test]
async fn a_batch_that_others_took_is_not_the_end() {
    let raw = memory();
    Store::create(&raw, &settings(), Backend::S3Log, 1).await.unwrap();
    let (meddler, cloud) = Meddler::over(&raw);
    let store = open(&raw, settings()).await;
    let things = store.create_collection("things").await.unwrap();
    let session = Session::open(store.clone(), CLIENT).await.unwrap();
    // More than one drain takes on.
    for n in 0..250 {
        put(&session, &things, &format!("{n}"), "x").await;
    }
    let sweeper = open(&cloud, settings()).await;
    meddler.after_list(&stream_of(&raw).await, async move {
        store.sweep().await.unwrap();
    });
    // All it finds is the newest, which stays.
    assert_eq!(sweeper.sweep().await.unwrap().records, 1);
}

/// What came in one by one was due again at once. Each page was put again and again, and who closed
/// waited for half a minute per queue, for what others wrote.
#[test]
fn others_who_commit_all_the_time_keep_nobody() {
    // In order there is one batch of a page at a time, and then nothing.
    let backend = Backend::SqsStandard;
    let world = world(Faults::NONE);
    let cloud = world.cloud(Process(0));
    let task_world = world.clone();
    run(&world, async move {
        Store::create(&cloud, &settings(), backend, 1).await.unwrap();
        let things = open(&cloud, settings()).await.create_collection("things").await.unwrap();
        let gap = Duration::from_millis(100);
        let committed = keep_busy(&task_world, &cloud, vec![things.clone()], gap, 600).await;
        let options = s3db::Options { client: Some(8), ..options(backend) };
        let db = Db::over(cloud.clone(), &options).await.unwrap();
        let mut txn = db.begin();
        txn.put(&things, &key("mine"), Payload::new("x").unwrap()).unwrap();
        txn.commit().await.unwrap();
        let began_us = cloud.clock.monotonic_us();
        db.checkpoint().await.unwrap();
        let took = Duration::from_micros(cloud.clock.monotonic_us() - began_us);
        assert!(took < Duration::from_secs(10), "{took:?}");
        assert!(committed.load(Ordering::Relaxed) < 600, "the client had to be done first");
        assert_eq!(on_page(&cloud, &things, "mine").await.as_deref(), Some("x"));
        // The rest is for later, not for now.
        assert!(!db.store().has_work());
        db.store().make_all_due();
        assert!(db.store().has_work());
    });
}

/// An ordered queue gives out ten messages of a page, and no more before these are acknowledged: a sweep, or
/// who closed, took that for the end, and what lay behind it waited for the next one.
#[test]
fn what_an_ordered_queue_holds_back_comes_with_the_same_sweep() {
    for closes in [false, true] {
        let world = world(Faults::NONE);
        let cloud = world.cloud(Process(0));
        run(&world, async move {
            Store::create(&cloud, &settings(), Backend::SqsFifo, 1).await.unwrap();
            let options = s3db::Options { client: Some(8), ..options(Backend::SqsFifo) };
            let db = Db::over(cloud.clone(), &options).await.unwrap();
            let things = db.create_collection("things").await.unwrap();
            for n in 0..25 {
                let mut txn = db.begin();
                let payload = Payload::new(format!("{n}")).unwrap();
                txn.put(&things, &key("k"), payload.clone()).unwrap();
                txn.put(&things, &key(&format!("k{n}")), payload).unwrap();
                txn.commit().await.unwrap();
            }
            if closes {
                db.close().await.unwrap();
            } else {
                let done = open(&cloud, settings()).await.sweep().await.unwrap();
                assert_eq!(done.records, 50);
            }
            for name in ["k", "k24"] {
                assert_eq!(on_page(&cloud, &things, name).await.as_deref(), Some("24"), "{closes}");
            }
            // None of them is left.
            let done = open(&cloud, settings()).await.sweep().await.unwrap();
            assert_eq!(done.records, 0, "{closes}");
        });
    }
}

/// A database over services that a test can meddle with, in which one record is committed and on no
/// page yet.
async fn committed(raw: &Cloud, backend: Backend) -> (Arc<Meddler>, Db, Collection) {
    let (meddler, cloud) = Meddler::over(raw);
    let (db, things) = create(&cloud, backend).await;
    let mut txn = db.begin();
    txn.put(&things, &key("k"), Payload::new("x").unwrap()).unwrap();
    txn.commit().await.unwrap();
    (meddler, db, things)
}

/// Who gave up waiting for a checkpoint took with him what was to be done: the next one had nothing
/// to do.
#[tokio::test]
async fn what_was_given_up_is_due_again() {
    let raw = memory();
    let (meddler, db, things) = committed(&raw, Backend::S3Log).await;
    let is_there = Arc::<AtomicBool>::default();
    let to = is_there.clone();
    meddler.before_put("page/", async move {
        to.store(true, Ordering::Relaxed);
        std::future::pending().await
    });
    {
        let mut given_up = Box::pin(db.checkpoint());
        while !is_there.load(Ordering::Relaxed) {
            assert!(futures::poll!(&mut given_up).is_pending());
        }
    }
    db.checkpoint().await.unwrap();
    assert_eq!(on_page(&raw, &things, "k").await.as_deref(), Some("x"));
}

/// While work in the background held what was to be done, a checkpoint had nothing to do, and said
/// so before it was done, or had failed.
#[tokio::test]
async fn a_checkpoint_waits_for_who_works_already() {
    let raw = memory();
    let (meddler, db, things) = committed(&raw, Backend::S3Log).await;
    let (is_there, go) = (Arc::<AtomicBool>::default(), Arc::<Notify>::default());
    let (to, wait) = (is_there.clone(), go.clone());
    meddler.before_put("page/", async move {
        to.store(true, Ordering::Relaxed);
        wait.notified().await;
    });
    db.store().make_all_due();
    let mut work = Box::pin(db.store().work());
    while !is_there.load(Ordering::Relaxed) {
        assert!(futures::poll!(&mut work).is_pending());
    }
    let mut checkpoint = Box::pin(db.checkpoint());
    assert!(futures::poll!(&mut checkpoint).is_pending(), "it is not done");
    meddler.puts("page/", &[Denied]);
    go.notify_one();
    let (worked, checkpointed) = futures::join!(work, checkpoint);
    assert!(matches!(worked, Err(StoreError::Cloud { .. })), "{worked:?}");
    assert_eq!(checkpointed.unwrap().applied, 1);
    assert_eq!(on_page(&raw, &things, "k").await.as_deref(), Some("x"));
}

/// The sweep of the background held what others had committed, and a checkpoint found nothing to do.
#[test]
fn a_checkpoint_waits_for_a_sweep() {
    let world = world(Faults::NONE);
    let raw = world.cloud(Process(0));
    run(&world, async move {
        let (meddler, db, things) = committed(&raw, Backend::SqsStandard).await;
        let (is_there, go) = (Arc::<Notify>::default(), Arc::<Notify>::default());
        let (to, wait) = (is_there.clone(), go.clone());
        // It has received the message, and is about to put the page.
        meddler.before_put("page/", async move {
            to.notify_one();
            wait.notified().await;
        });
        let mut sweep = Box::pin(db.store().sweep());
        tokio::select! {
            biased;
            () = is_there.notified() => {}
            swept = &mut sweep => panic!("{swept:?}"),
        }
        let mut checkpoint = Box::pin(db.checkpoint());
        // Longer than it takes to find nothing.
        let mut late = raw.clock.sleep(Duration::from_secs(10));
        tokio::select! {
            biased;
            done = &mut checkpoint => panic!("it is not done: {done:?}"),
            () = &mut late => {}
        }
        go.notify_one();
        let (swept, checkpointed) = futures::join!(sweep, checkpoint);
        assert_eq!(swept.unwrap().applied, 1);
        checkpointed.unwrap();
        assert_eq!(on_page(&raw, &things, "k").await.as_deref(), Some("x"));
    });
}

/// A service gives out a part of what it has. After a second the first such answer ended the drain, of
/// a sweep too: what a second takes was all that it brought to the pages.
#[test]
fn a_short_answer_is_not_the_end_of_a_backlog() {
    const COMMITS: u64 = 1500;
    let world = world(Faults::NONE);
    let cloud = world.cloud(Process(0));
    let task_world = world.clone();
    run(&world, async move {
        let (meddler, cloud) = Meddler::over(&cloud);
        meddler.gives_at_most(9);
        Store::create(&cloud, &settings(), Backend::SqsStandard, 1).await.unwrap();
        let store = open(&cloud, settings()).await;
        let things = store.create_collection("things").await.unwrap();
        let session = Session::open(open(&cloud, settings()).await, CLIENT).await.unwrap();
        for n in 0..COMMITS {
            put(&session, &things, &format!("{n}"), "x").await;
        }
        assert_eq!(task_world.messages("pu-0") as u64, COMMITS);
        store.sweep().await.unwrap();
        assert_eq!(task_world.messages("pu-0"), 0);
    });
}

/// What is damaged was tried again at once, and for ever: a list and two hundred gets, each time.
#[tokio::test]
async fn what_is_damaged_waits_for_the_interval() {
    let raw = memory();
    let (_, db, things) = committed(&raw, Backend::S3Log).await;
    let object = things.root.object();
    let Ok(s3db::cloud::Get::Found { bytes, .. }) = raw.objects.get(&object, None).await else {
        panic!("no root");
    };
    raw.objects.put(&object, "noise".into(), s3db::cloud::PutIf::Always).await;
    let store = db.store();
    store.make_all_due();
    let outcome = store.work().await;
    assert!(matches!(outcome, Err(StoreError::Damaged { .. })), "{outcome:?}");
    assert!(!store.has_work());
    raw.objects.put(&object, bytes, s3db::cloud::PutIf::Always).await;
    db.checkpoint().await.unwrap();
    assert_eq!(on_page(&raw, &things, "k").await.as_deref(), Some("x"));
    assert_eq!(get(&raw, &things, "k").await.as_deref(), Some("x"));
}

/// Of what was passed over only the oldest thousand were looked at: behind as many nothing was applied.
#[tokio::test]
async fn a_thousand_damaged_changes_keep_nobody_back() {
    let raw = memory();
    Store::create(&raw, &settings(), Backend::S3Log, 1).await.unwrap();
    let store = open(&raw, settings()).await;
    let damaged = store.create_collection("damaged").await.unwrap();
    let sound = store.create_collection("sound").await.unwrap();
    let session = Session::open(store.clone(), CLIENT).await.unwrap();
    for n in 0..1010 {
        put(&session, &damaged, &format!("{n}"), "x").await;
    }
    put(&session, &sound, "k", "x").await;
    let object = damaged.root.object();
    let Ok(s3db::cloud::Get::Found { bytes, .. }) = raw.objects.get(&object, None).await else {
        panic!("no root");
    };
    raw.objects.put(&object, "noise".into(), s3db::cloud::PutIf::Always).await;
    let sweeper = open(&raw, settings()).await;
    let mut sweeps = 0;
    while on_page(&raw, &sound, "k").await.is_none() {
        assert!(sweeper.sweep().await.is_err());
        sweeps += 1;
        assert!(sweeps <= 13, "what lies behind them is applied");
    }
    // Nothing of them was let go of.
    raw.objects.put(&object, bytes, s3db::cloud::PutIf::Always).await;
    sweeper.sweep().await.unwrap();
    sweeper.sweep().await.unwrap();
    assert_eq!(on_page(&raw, &damaged, "1009").await.as_deref(), Some("x"));
}

/// A tree that was damaged kept back what lay behind its first batch, of whatever tree, for as long as
/// it was not mended.
#[tokio::test]
async fn what_lies_behind_a_damaged_tree_is_applied() {
    let raw = memory();
    let few = s3db::Settings { records_per_checkpoint_max: 10, ..settings() };
    Store::create(&raw, &few, Backend::S3Log, 1).await.unwrap();
    let store = open(&raw, few).await;
    let damaged = store.create_collection("damaged").await.unwrap();
    let sound = store.create_collection("sound").await.unwrap();
    let session = Session::open(store.clone(), CLIENT).await.unwrap();
    for n in 0..25 {
        put(&session, &damaged, &format!("{n}"), "x").await;
    }
    for n in 0..5 {
        put(&session, &sound, &format!("{n}"), "x").await;
    }
    let object = damaged.root.object();
    let Ok(s3db::cloud::Get::Found { bytes, .. }) = raw.objects.get(&object, None).await else {
        panic!("no root");
    };
    raw.objects.put(&object, "noise".into(), s3db::cloud::PutIf::Always).await;
    let sweeper = open(&raw, few).await;
    for _ in 0..3 {
        let outcome = sweeper.sweep().await;
        assert!(matches!(outcome, Err(StoreError::Damaged { .. })), "{outcome:?}");
    }
    for n in 0..5 {
        assert_eq!(on_page(&raw, &sound, &format!("{n}")).await.as_deref(), Some("x"));
    }
    // What came later, too; and nothing of it was let go of.
    put(&session, &sound, "late", "x").await;
    assert!(sweeper.sweep().await.is_err());
    assert_eq!(on_page(&raw, &sound, "late").await.as_deref(), Some("x"));
    raw.objects.put(&object, bytes, s3db::cloud::PutIf::Always).await;
    sweeper.sweep().await.unwrap();
    for n in 0..25 {
        assert_eq!(on_page(&raw, &damaged, &format!("{n}")).await.as_deref(), Some("x"), "{n}");
    }
    // One stays, the newest of the stream.
    sweeper.sweep().await.unwrap();
    assert_eq!(raw.objects.list("log/", None, 10).await.unwrap().names.len(), 1);
}

/// Another client may have taken from a queue what is to be brought to its page: a checkpoint returned at once,
/// and its page showed nothing. It waits for what is held; not for ever for one who holds it for longer than
/// a lease.
#[tokio::test]
async fn a_checkpoint_waits_for_what_others_hold() {
    for backend in [Backend::SqsStandard, Backend::SqsFifo] {
        for (hold_ms, is_there) in [(400, true), (60_000, false)] {
            let cloud = memory();
            let mut options = options(backend);
            options.settings.lease = Duration::from_secs(1);
            create(&cloud, backend).await.0.close().await.unwrap();
            let db = Db::over(cloud.clone(), &options).await.unwrap();
            let things = db.collection("things").await.unwrap();
            let mut txn = db.begin();
            txn.put(&things, &key("a"), Payload::new("1").unwrap()).unwrap();
            txn.commit().await.unwrap();
            let mut held = 0;
            for queue in
                ["pu-0".to_owned()].into_iter().chain((0..8).map(|n| format!("atomic-{n}")))
            {
                let (hold, no_wait) = (Duration::from_millis(hold_ms), Duration::ZERO);
                let taken = cloud.queue.receive(&queue, 10, hold, no_wait).await;
                held += taken.map_or(0, |messages| messages.len());
            }
            assert_eq!(held, 1, "{backend:?}");
            let began = std::time::Instant::now();
            db.checkpoint().await.unwrap();
            let elapsed = began.elapsed();
            assert!(elapsed < Duration::from_secs(4), "{backend:?}: {elapsed:?}");
            let reader = Db::over(cloud, &options_of_another(&options)).await.unwrap();
            let found = reader.begin().read(&things, &key("a")).await.unwrap();
            assert_eq!(found.is_some(), is_there, "{backend:?}: {elapsed:?}");
        }
    }
}

fn options_of_another(options: &s3db::Options) -> s3db::Options {
    s3db::Options { client: None, ..options.clone() }
}
