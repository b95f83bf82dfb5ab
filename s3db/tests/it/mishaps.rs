//! What once went wrong, each as it did.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use s3db::{
    Backend, Checkpointed, Collection, Db, Key, Level, Options, Payload, Session, Settings, Store,
    StoreError,
    cloud::{
        CallKind, Cloud, Fault, Get, Ledger, Put, PutIf, Queue, QueueSettings, Sent, ToSend,
        embedded::{self, Memory, ObjectQueue},
        ledger::{Metered, charged_to},
        model::{Faults, Process},
    },
};

use crate::{
    golden::crc32c,
    meddle::{
        Fate::{Denied, Late, LostAnswer, LostRequest, Stuck, Throttled},
        Meddler, OddClock,
    },
    printed::{open, run, world},
};

pub(crate) const CLIENT: u64 = 7;

/// `cloud`, with what is called charged to whom it is for.
pub(crate) fn metered(cloud: &Cloud) -> Cloud {
    Cloud {
        objects: Arc::new(Metered::new(cloud.objects.clone(), Ledger::new())),
        queue: Arc::new(Metered::new(cloud.queue.clone(), Ledger::new())),
        ..cloud.clone()
    }
}

pub(crate) fn memory() -> Cloud {
    embedded::memory(Arc::new(Memory::new()))
}

pub(crate) fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

/// Few attempts, close together.
pub(crate) fn settings() -> Settings {
    Settings { attempts_max: 3, backoff: Duration::from_millis(1), ..Settings::default() }
}

/// No work in the background.
pub(crate) fn options(backend: Backend) -> Options {
    let (settings, client) = (settings(), Some(CLIENT));
    Options { settings, backend, client, has_worker: false, shards: 1, ..Options::default() }
}

pub(crate) async fn create(cloud: &Cloud, backend: Backend) -> (Db, Collection) {
    Store::create(cloud, &settings(), backend, 1).await.unwrap();
    let db = Db::over(cloud.clone(), &options(backend)).await.unwrap();
    let things = db.create_collection("things").await.unwrap();
    (db, things)
}

pub(crate) async fn put(session: &Session, of: &Collection, name: &str, value: &str) {
    let mut txn = session.begin(Level::Atomic);
    txn.put(of.root, &key(name), Payload::new(value).unwrap()).unwrap();
    session.commit(&mut txn).await.unwrap();
}

/// What everyone sees once all is on its page.
pub(crate) async fn get(cloud: &Cloud, of: &Collection, name: &str) -> Option<String> {
    let store = open(cloud, settings()).await;
    store.sweep().await.unwrap();
    let session = Session::reader(store, 99);
    let found = session.read(&session.begin(Level::Basic), of.root, &key(name)).await.unwrap();
    found.map(|payload| payload.to_string())
}

/// Garbage collection read the catalogue, others made a collection, and then it listed the pages:
/// it met none of those in its walks, and deleted them.
#[tokio::test]
async fn a_collection_made_during_garbage_collection_stays() {
    let raw = memory();
    let (meddler, cloud) = Meddler::over(&raw);
    let (db, _) = create(&cloud, Backend::S3Log).await;
    let store = open(&raw, settings()).await;
    let session = Session::reader(store.clone(), 8);
    let made = Arc::new(std::sync::Mutex::new(None));
    let to = made.clone();
    // Once garbage collection has read the catalogue.
    meddler.after_list("catalog/", async move {
        let late = store.create_collection("late").await.unwrap();
        put(&session, &late, "ada", "1815").await;
        store.sweep().await.unwrap();
        *to.lock().unwrap() = Some(late);
    });
    db.store().collect_garbage(Duration::ZERO).await.unwrap();
    let late = made.lock().unwrap().take().expect("the catalogue was listed");
    assert_eq!(get(&raw, &late, "ada").await.as_deref(), Some("1815"));
}

/// The epochs of a name that was retired began at 1 again: whoever had read that stream to its end
/// took what was new for what it knew, and deleted it.
#[test]
fn a_name_that_comes_back_has_no_old_epoch() {
    let world = world(Faults::NONE);
    let cloud = world.cloud(Process(0));
    let got = run(&world, async move {
        Store::create(&cloud, &settings(), Backend::S3Log, 1).await.unwrap();
        let observer = open(&cloud, settings()).await;
        let things = observer.create_collection("things").await.unwrap();
        let first = Session::open(open(&cloud, settings()).await, CLIENT).await.unwrap();
        for n in 0..3 {
            put(&first, &things, &format!("first{n}"), "x").await;
            observer.sweep().await.unwrap();
        }
        // Longer than any tombstone stays.
        cloud.clock.sleep(Duration::from_secs(40 * 24 * 3600)).await;
        let done = observer.collect_garbage(Duration::from_secs(3600)).await.unwrap();
        assert_eq!(done.retired, 1, "{done:?}");
        let again = Session::open(open(&cloud, settings()).await, CLIENT).await.unwrap();
        put(&again, &things, "again", "y").await;
        observer.sweep().await.unwrap();
        assert!(again.epoch() > first.epoch());
        let txn = again.begin(Level::Basic);
        let reader = Session::reader(observer, 9);
        let seen = reader.read(&txn, things.root, &key("again")).await.unwrap();
        (seen.map(|payload| payload.to_string()), get(&cloud, &things, "again").await)
    });
    assert_eq!(got, (Some("y".to_owned()), Some("y".to_owned())));
}

/// An object of a client that says lives to come are over: who began the next one panicked, and what
/// was not checked let earlier lives go on.
#[tokio::test]
async fn a_client_whose_lives_to_come_are_over_is_damaged() {
    let cloud = memory();
    let (_, things) = create(&cloud, Backend::S3Log).await;
    let session = Session::open(open(&cloud, settings()).await, 8).await.unwrap();
    put(&session, &things, "k", "x").await;
    let names = cloud.objects.list("clients/", None, 10).await.unwrap().names;
    for name in &names {
        let Ok(Get::Found { bytes, .. }) = cloud.objects.get(name, None).await else {
            panic!("no client");
        };
        // Magic and version (5), epoch (8), bound (8), and then this.
        let mut bytes = bytes.to_vec();
        let epoch = u64::from_le_bytes(bytes[5..13].try_into().unwrap());
        bytes[21..29].copy_from_slice(&(epoch + (1 << 40)).to_le_bytes());
        let end = bytes.len() - 4;
        let sum = crc32c(&bytes[..end]);
        bytes[end..].copy_from_slice(&sum.to_le_bytes());
        cloud.objects.put(name, bytes.into(), PutIf::Always).await;
    }
    let store = open(&cloud, settings()).await;
    let outcome = async {
        let session = Session::open(store, 8).await?;
        let mut txn = session.begin(Level::Atomic);
        txn.put(things.root, &key("k"), Payload::new("y").unwrap())?;
        session.commit(&mut txn).await
    };
    let outcome = outcome.await;
    assert!(matches!(outcome, Err(StoreError::Damaged { .. })), "{outcome:?}");
}

/// A commit on a machine whose clock is behind succeeded, and then lost against what had been there
/// before it.
#[test]
fn a_blind_write_of_a_slow_clock_counts() {
    // How far the clock of the first writer is ahead, and that of the second.
    for (first, second) in [(0, -60), (60, 0), (60, -60), (0, -7200)] {
        let world = world(Faults::NONE);
        let cloud = world.cloud(Process(0));
        let got = run(&world, async move {
            Store::create(&cloud, &settings(), Backend::S3Log, 1).await.unwrap();
            let (clock, odd) = OddClock::over(&cloud);
            clock.set_ahead(first);
            let store = open(&odd, settings()).await;
            let things = store.create_collection("things").await.unwrap();
            put(&Session::reader(store.clone(), 1), &things, "k", "old").await;
            store.sweep().await.unwrap();
            let (clock, odd) = OddClock::over(&cloud);
            clock.set_ahead(second);
            let session = Session::reader(open(&odd, settings()).await, 2);
            put(&session, &things, "k", "new").await;
            get(&cloud, &things, "k").await
        });
        assert_eq!(got.as_deref(), Some("new"), "clocks {first} s and {second} s ahead");
    }
}

/// A put of a log object without an answer, then one that was denied: the commit was called off,
/// and when the first put arrived after all, it was taken for the fence of another life.
#[tokio::test]
async fn a_denied_attempt_says_nothing_of_the_one_before() {
    let raw = memory();
    let (meddler, cloud) = Meddler::over(&raw);
    let (db, things) = create(&cloud, Backend::S3Log).await;
    meddler.puts("log/", &[Late, Denied]);
    let mut txn = db.begin();
    txn.put(&things, &key("late"), Payload::new("x").unwrap()).unwrap();
    let outcome = txn.commit().await;
    assert!(matches!(outcome, Err(StoreError::CommitUnknown { .. })), "{outcome:?}");
    assert!(matches!(meddler.deliver().await[..], [Put::Stored(_)]));
    let mut next = db.begin();
    next.put(&things, &key("next"), Payload::new("y").unwrap()).unwrap();
    next.commit().await.unwrap();
    txn.commit().await.unwrap();
    assert_eq!(get(&raw, &things, "late").await.as_deref(), Some("x"));
    assert_eq!(get(&raw, &things, "next").await.as_deref(), Some("y"));
}

/// The same when whoever put it gave up waiting.
#[tokio::test]
async fn a_commit_that_was_given_up_is_open() {
    let raw = memory();
    let (meddler, cloud) = Meddler::over(&raw);
    let (db, things) = create(&cloud, Backend::S3Log).await;
    meddler.puts("log/", &[Stuck]);
    let mut given_up = db.begin();
    given_up.put(&things, &key("given up"), Payload::new("x").unwrap()).unwrap();
    {
        let mut commit = Box::pin(given_up.commit());
        while raw.objects.list("log/", None, 1).await.unwrap().names.is_empty() {
            assert!(futures::poll!(&mut commit).is_pending());
        }
    }
    meddler.puts("log/", &[Denied]);
    let mut next = db.begin();
    next.put(&things, &key("next"), Payload::new("y").unwrap()).unwrap();
    let outcome = next.commit().await;
    assert!(matches!(outcome, Err(StoreError::Cloud { .. })), "{outcome:?}");
    next.commit().await.unwrap();
    given_up.commit().await.unwrap();
    assert_eq!(get(&raw, &things, "given up").await.as_deref(), Some("x"));
}

/// "May be committed", and then, asked again while nothing was known yet, "is not".
#[tokio::test]
async fn what_was_unclear_is_not_called_off() {
    let raw = memory();
    let (meddler, cloud) = Meddler::over(&raw);
    let (db, things) = create(&cloud, Backend::S3Log).await;
    meddler.puts("log/", &[Late, LostRequest, LostRequest, LostRequest, Throttled, Denied]);
    let mut txn = db.begin();
    txn.put(&things, &key("k"), Payload::new("x").unwrap()).unwrap();
    for attempt in 0..2 {
        let outcome = txn.commit().await;
        assert!(matches!(outcome, Err(StoreError::CommitUnknown { .. })), "{attempt}: {outcome:?}");
    }
    meddler.deliver().await;
    txn.commit().await.unwrap();
    assert_eq!(get(&raw, &things, "k").await.as_deref(), Some("x"));
}

/// The same with queues, where a second commit knew nothing of the first.
#[tokio::test]
async fn what_was_sent_without_an_answer_is_not_called_off() {
    for backend in [Backend::SqsStandard, Backend::SqsFifo] {
        let raw = memory();
        let (meddler, cloud) = Meddler::over(&raw);
        let (db, things) = create(&cloud, backend).await;
        meddler.sends(&[LostAnswer, LostRequest, LostRequest, Denied]);
        let mut txn = db.begin();
        txn.put(&things, &key("k"), Payload::new("x").unwrap()).unwrap();
        for attempt in 0..2 {
            let outcome = txn.commit().await;
            let is_unknown = matches!(outcome, Err(StoreError::CommitUnknown { .. }));
            assert!(is_unknown, "{backend:?} {attempt}: {outcome:?}");
        }
        assert_eq!(get(&raw, &things, "k").await.as_deref(), Some("x"), "{backend:?}");
    }
}

/// What no attempt can have done is said to be so, and the number is free for the next.
#[tokio::test]
async fn what_was_only_refused_is_not_committed() {
    let raw = memory();
    let (meddler, cloud) = Meddler::over(&raw);
    let (db, things) = create(&cloud, Backend::S3Log).await;
    meddler.puts("log/", &[Throttled, Throttled, Throttled]);
    let mut txn = db.begin();
    txn.put(&things, &key("k"), Payload::new("x").unwrap()).unwrap();
    let outcome = txn.commit().await;
    assert!(matches!(outcome, Err(StoreError::Cloud { .. })), "{outcome:?}");
    assert_eq!(get(&raw, &things, "k").await, None);
    txn.commit().await.unwrap();
    assert_eq!(get(&raw, &things, "k").await.as_deref(), Some("x"));
}

/// After a suspend of some minutes every commit failed until the copies of pages were old: the
/// object store's clock was counted on by one that had stood still.
#[test]
fn a_machine_that_slept_commits() {
    let world = world(Faults::NONE);
    let cloud = world.cloud(Process(0));
    run(&world, async move {
        Store::create(&cloud, &settings(), Backend::S3Log, 1).await.unwrap();
        let (clock, odd) = OddClock::over(&cloud);
        let store = open(&odd, settings()).await;
        let things = store.create_collection("things").await.unwrap();
        let session = Session::reader(store, CLIENT);
        put(&session, &things, "before", "x").await;
        clock.suspend(Duration::from_secs(600)).await;
        put(&session, &things, "after", "y").await;
        // A clock that is ahead is still refused.
        clock.set_ahead(600);
        let mut txn = session.begin(Level::Atomic);
        txn.put(things.root, &key("ahead"), Payload::default()).unwrap();
        let outcome = session.commit(&mut txn).await;
        assert!(matches!(outcome, Err(StoreError::Clock { .. })), "{outcome:?}");
    });
}

/// A client that was started again soon had to begin where its last life had claimed stamps: so far
/// ahead that none of its commits was taken.
#[test]
fn a_client_that_is_started_again_commits() {
    let world = world(Faults::NONE);
    let cloud = world.cloud(Process(0));
    run(&world, async move {
        Store::create(&cloud, &settings(), Backend::S3Log, 1).await.unwrap();
        let things = open(&cloud, settings()).await.create_collection("things").await.unwrap();
        for n in 0..100 {
            let session = Session::reader(open(&cloud, settings()).await, CLIENT);
            put(&session, &things, "k", &format!("{n}")).await;
            put(&session, &things, "k", &format!("{n} again")).await;
        }
        assert_eq!(get(&cloud, &things, "k").await.as_deref(), Some("99 again"));
    });
}

/// The same after lives of every length, on machines whose clocks are as wrong as they may be, of a
/// store that tells its time in whole seconds.
#[test]
fn the_next_life_commits_at_once_whatever_the_last_one_claimed() {
    for ahead in [-3600, 0, 100, 200, 290] {
        let world = world(Faults::NONE);
        let cloud = world.cloud(Process(0));
        run(&world, async move {
            Store::create(&cloud, &settings(), Backend::S3Log, 1).await.unwrap();
            let things = open(&cloud, settings()).await.create_collection("things").await.unwrap();
            let (_, whole_seconds) = Meddler::over(&cloud);
            let (clock, odd) = OddClock::over(&whole_seconds);
            clock.set_ahead(ahead);
            // Seconds that a life lasts, with a commit in each. Lives of none follow each other
            // within a second.
            for life in [150, 0, 0, 0, 61, 0, 0, 400, 0, 0, 0] {
                let session = Session::reader(open(&odd, settings()).await, CLIENT);
                put(&session, &things, "k", "first").await;
                for _ in 0..life {
                    cloud.clock.sleep(Duration::from_secs(1)).await;
                    session.keep_alive().await.unwrap();
                    put(&session, &things, "k", "next").await;
                }
                put(&session, &things, "k", &format!("{ahead} {life}")).await;
                let seen = get(&cloud, &things, "k").await;
                assert_eq!(seen, Some(format!("{ahead} {life}")));
            }
        });
    }
}

/// Once a minute a commit had to claim stamps before it could write: an object more on its way.
#[test]
fn who_goes_on_writing_waits_for_no_claim() {
    let world = world(Faults::NONE);
    let cloud = world.cloud(Process(0));
    let task_world = world.clone();
    run(&world, async move {
        let world = task_world;
        Store::create(&cloud, &settings(), Backend::S3Log, 1).await.unwrap();
        let store = open(&metered(&cloud), settings()).await;
        let things = store.create_collection("things").await.unwrap();
        let session = Arc::new(Session::open(store, CLIENT).await.unwrap());
        put(&session, &things, "k", "first").await;
        let (behind, claims) = (session.clone(), Ledger::new());
        let (time, to) = (world.time.clone(), claims.clone());
        world.time.spawn(Process(1), async move {
            for _ in 0..1500 {
                time.sleep(1_000_000).await;
                charged_to(&to, behind.keep_alive()).await.unwrap();
            }
        });
        let commits = Ledger::new();
        for n in 0..600 {
            cloud.clock.sleep(Duration::from_millis(900)).await;
            charged_to(&commits, put(&session, &things, "k", &format!("{n}"))).await;
        }
        // One put for each commit, and no other call but those that look after a page whose time to
        // live is over.
        let puts = |ledger: &Ledger| ledger.charge(CallKind::Put).calls;
        assert_eq!(puts(&commits), 600);
        // One in a minute or so.
        let claimed = puts(&claims);
        assert!((5..=12).contains(&claimed), "{claimed} claims in ten minutes");
        // A client that rests claims nothing more, and pays when it comes back.
        cloud.clock.sleep(Duration::from_secs(600)).await;
        let before = puts(&claims);
        assert!(before <= claimed + 2, "{before}");
        charged_to(&commits, put(&session, &things, "k", "late")).await;
        assert_eq!(puts(&commits), 602);
    });
}

/// Of many who needed a claim at the same moment, each put one.
#[test]
fn those_who_wait_for_a_claim_share_it() {
    let world = world(Faults::NONE);
    let cloud = world.cloud(Process(0));
    let task_world = world.clone();
    let commits = Ledger::new();
    let account = commits.clone();
    run(&world, async move {
        let world = task_world;
        Store::create(&cloud, &settings(), Backend::S3Log, 1).await.unwrap();
        let store = open(&metered(&cloud), settings()).await;
        let things = store.create_collection("things").await.unwrap();
        let session = Arc::new(Session::open(store, CLIENT).await.unwrap());
        put(&session, &things, "k", "first").await;
        cloud.clock.sleep(Duration::from_secs(600)).await;
        for n in 0..50 {
            let (session, things, to) = (session.clone(), things.clone(), account.clone());
            world.time.spawn(Process(1), async move {
                charged_to(&to, put(&session, &things, &format!("k{n}"), "x")).await;
            });
        }
    });
    // One claim, and one log object for all: or two, if one had its claim before the others.
    let puts = commits.charge(CallKind::Put).calls;
    assert!((2..=3).contains(&puts), "{puts} puts");
}

/// A commit that nobody waited for had just claimed stamps, and the next one took that for a newer
/// life of the client.
#[tokio::test(start_paused = true)]
async fn a_claim_that_nobody_waited_for_is_our_own() {
    let raw = memory();
    Store::create(&raw, &settings(), Backend::S3Log, 1).await.unwrap();
    let (meddler, cloud) = Meddler::over(&raw);
    let (clock, cloud) = OddClock::over(&cloud);
    let store = open(&cloud, settings()).await;
    let things = store.create_collection("things").await.unwrap();
    let session = Session::open(store, CLIENT).await.unwrap();
    put(&session, &things, "k", "first").await;
    // Its claim is used up.
    clock.set_ahead(125);
    meddler.puts("clients/", &[Stuck]);
    let given_up = put(&session, &things, "k", "given up");
    assert!(tokio::time::timeout(Duration::from_secs(1), given_up).await.is_err());
    put(&session, &things, "k", "second").await;
    assert_eq!(get(&raw, &things, "k").await.as_deref(), Some("second"));
    // Another life is still noticed.
    let other = Session::open(open(&raw, settings()).await, CLIENT).await.unwrap();
    clock.set_ahead(260);
    let mut txn = session.begin(Level::Atomic);
    txn.put(things.root, &key("k"), Payload::default()).unwrap();
    let outcome = session.commit(&mut txn).await;
    assert!(matches!(outcome, Err(StoreError::Fenced { .. })), "{outcome:?}");
    put(&other, &things, "k", "third").await;
    // What is over stays so, and asks nobody: each put would be stuck.
    meddler.puts("clients/", &[Stuck; 10]);
    for _ in 0..10 {
        let outcome = session.keep_alive().await;
        assert!(matches!(outcome, Err(StoreError::Fenced { .. })), "{outcome:?}");
    }
}

/// A client that committed faster than its transactions were sent on was all that work in the
/// background came to: what it wrote stayed in the queues.
#[test]
fn checkpoints_get_their_turn_beside_a_client_that_commits_all_the_time() {
    for backend in [Backend::SqsStandard, Backend::SqsFifo] {
        let world = world(Faults::NONE);
        let cloud = world.cloud(Process(0));
        let task_world = world.clone();
        run(&world, async move {
            let world = task_world;
            Store::create(&cloud, &settings(), backend, 16).await.unwrap();
            let store = open(&cloud, settings()).await;
            let a = store.create_collection("a").await.unwrap();
            let b = store.create_collection("b").await.unwrap();
            let session = Session::open(store.clone(), CLIENT).await.unwrap();
            let (time, committed) = (world.time.clone(), Arc::<AtomicU64>::default());
            let count = committed.clone();
            world.time.spawn(Process(1), async move {
                for n in 0..600 {
                    time.sleep(100_000).await;
                    // Of two queues, so that it has to be sent on.
                    let mut txn = session.begin(Level::Atomic);
                    for of in [&a, &b] {
                        txn.put(of.root, &key("k"), Payload::new(format!("{n}")).unwrap()).unwrap();
                    }
                    session.commit(&mut txn).await.unwrap();
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
            cloud.clock.sleep(Duration::from_millis(100)).await;
            let mut done = Checkpointed::default();
            for _ in 0..3 {
                cloud.clock.sleep(Duration::from_secs(1)).await;
                store.make_all_due();
                done += store.work().await.unwrap();
            }
            let committed = committed.load(Ordering::Relaxed);
            assert!(committed < 600, "the client had to be done first");
            assert!(done.applied > 0, "{backend:?}: {done:?}");
        });
    }
}

/// One life on a machine whose clock was years ahead, and no later one could commit.
#[test]
fn a_wrong_clock_claims_nothing() {
    let world = world(Faults::NONE);
    let cloud = world.cloud(Process(0));
    run(&world, async move {
        Store::create(&cloud, &settings(), Backend::S3Log, 1).await.unwrap();
        let things = open(&cloud, settings()).await.create_collection("things").await.unwrap();
        let (clock, odd) = OddClock::over(&cloud);
        clock.set_ahead(70 * 365 * 24 * 3600);
        let session = Session::reader(open(&odd, settings()).await, CLIENT);
        let mut txn = session.begin(Level::Atomic);
        txn.put(things.root, &key("k"), Payload::default()).unwrap();
        let outcome = session.commit(&mut txn).await;
        assert!(matches!(outcome, Err(StoreError::Clock { .. })), "{outcome:?}");
        clock.set_ahead(0);
        session.commit(&mut txn).await.unwrap();
        let again = Session::reader(open(&cloud, settings()).await, CLIENT);
        put(&again, &things, "k", "right").await;
    });
}

/// A client that only read for longer than tombstones stay was forgotten, and then took the object
/// that was gone for a service that asks to slow down.
#[test]
fn a_client_that_is_idle_is_kept_or_told() {
    for is_kept in [true, false] {
        let world = world(Faults::NONE);
        let cloud = world.cloud(Process(0));
        run(&world, async move {
            Store::create(&cloud, &settings(), Backend::S3Log, 1).await.unwrap();
            let store = open(&cloud, settings()).await;
            let things = store.create_collection("things").await.unwrap();
            let session = Session::reader(store, CLIENT);
            put(&session, &things, "before", "x").await;
            for _ in 0..40 {
                cloud.clock.sleep(Duration::from_secs(24 * 3600)).await;
                if is_kept {
                    session.keep_alive().await.unwrap();
                }
            }
            let janitor = open(&cloud, settings()).await;
            let done = janitor.collect_garbage(Duration::from_secs(3600)).await.unwrap();
            assert_eq!(done.retired, u64::from(!is_kept), "{done:?}");
            let mut txn = session.begin(Level::Atomic);
            txn.put(things.root, &key("after"), Payload::default()).unwrap();
            match (session.commit(&mut txn).await, is_kept) {
                (Ok(_), true) | (Err(StoreError::Fenced { .. }), false) => {}
                (outcome, _) => panic!("kept {is_kept}: {outcome:?}"),
            }
        });
    }
}

/// Own changes were remembered until they were read: by who only writes, for ever.
#[tokio::test]
async fn who_only_writes_does_not_remember_it_all() {
    for backend in Backend::ALL {
        let raw = memory();
        Store::create(&raw, &settings(), backend, 1).await.unwrap();
        let settings = Settings { own_bytes_max: 20_000, ..settings() };
        let store = open(&raw, settings).await;
        let things = store.create_collection("things").await.unwrap();
        let session = Session::reader(store, CLIENT);
        for n in 0..1000 {
            put(&session, &things, &format!("{n:04}"), "some value").await;
            // What one change takes is above 160 bytes.
            assert!(session.unseen_writes() < 130, "{backend:?} {n}");
        }
        let txn = session.begin(Level::Monotonic);
        for n in [0, 500, 999] {
            let seen = session.read(&txn, things.root, &key(&format!("{n:04}"))).await.unwrap();
            assert!(seen.is_some(), "{backend:?} {n}");
        }
    }
}

/// When nothing can be checkpointed, memory is bounded all the same.
#[tokio::test]
async fn what_cannot_be_checkpointed_is_not_taken_for_ever() {
    let raw = memory();
    Store::create(&raw, &settings(), Backend::S3Log, 1).await.unwrap();
    let (meddler, cloud) = Meddler::over(&raw);
    let settings = Settings { own_bytes_max: 4000, ..settings() };
    let store = open(&cloud, settings).await;
    let things = store.create_collection("things").await.unwrap();
    let session = Session::reader(store, CLIENT);
    meddler.puts("page/", &[Denied; 1000]);
    let mut refused = 0;
    for n in 0..200 {
        let mut txn = session.begin(Level::Atomic);
        txn.put(things.root, &key(&format!("{n}")), Payload::new("x").unwrap()).unwrap();
        match session.commit(&mut txn).await {
            Ok(_) => assert_eq!(refused, 0),
            Err(StoreError::Cloud { .. }) => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!((1..199).contains(&refused) && session.unseen_writes() < 120, "{refused}");
    meddler.puts("", &[]);
    put(&session, &things, "again", "y").await;
    assert!(session.unseen_writes() < 30, "{}", session.unseen_writes());
}

/// One batch per interval was taken on: a client that wrote more fell behind until a sweep.
#[tokio::test]
async fn work_takes_on_all_there_is() {
    for backend in Backend::ALL {
        let raw = memory();
        Store::create(&raw, &settings(), backend, 1).await.unwrap();
        let settings = Settings { records_per_checkpoint_max: 10, ..settings() };
        let store = open(&raw, settings).await;
        let things = store.create_collection("things").await.unwrap();
        let session = Session::reader(store.clone(), CLIENT);
        for n in 0..100 {
            put(&session, &things, &format!("{n}"), "x").await;
        }
        store.make_all_due();
        let done = store.work().await.unwrap();
        assert_eq!((done.records, store.has_work()), (100, false), "{backend:?}");
    }
}

/// One page that was damaged ended every sweep and every round of work where it was met: what came
/// after it in the order of names was never checkpointed.
#[tokio::test]
async fn a_damaged_page_is_in_nobodys_way() {
    for backend in Backend::ALL {
        let raw = memory();
        Store::create(&raw, &settings(), backend, 8).await.unwrap();
        let store = open(&raw, settings()).await;
        let mut collections = Vec::new();
        for n in 0..6 {
            collections.push(store.create_collection(&format!("c{n}")).await.unwrap());
        }
        for (n, of) in collections.iter().enumerate() {
            let session = Session::reader(store.clone(), n as u64 + 1);
            put(&session, of, "k", "x").await;
        }
        let damaged = collections.remove(0);
        let object = damaged.root.object();
        raw.objects.put(&object, "noise".into(), s3db::cloud::PutIf::Always).await;
        store.make_all_due();
        let mut outcomes = vec![store.work().await];
        if backend == Backend::S3Log {
            // With queues the first one still holds what it received.
            outcomes.push(open(&raw, settings()).await.sweep().await);
        }
        for outcome in outcomes {
            let Err(StoreError::Damaged { object: named, .. }) = outcome else {
                panic!("{backend:?}: {outcome:?}");
            };
            assert_eq!(named, object);
        }
        let reader = Session::reader(open(&raw, settings()).await, 99);
        for of in &collections {
            let seen = reader.read(&reader.begin(Level::Basic), of.root, &key("k")).await.unwrap();
            assert!(seen.is_some(), "{backend:?} {}", of.name);
        }
        let collected = store.collect_garbage(Duration::ZERO).await;
        assert!(matches!(collected, Err(StoreError::Damaged { .. })), "{backend:?}: {collected:?}");
    }
}

/// The same within one batch: changes of other trees are not kept back.
#[tokio::test]
async fn a_damaged_tree_keeps_no_other_back() {
    let raw = memory();
    Store::create(&raw, &settings(), Backend::S3Log, 1).await.unwrap();
    let store = open(&raw, settings()).await;
    let mut both =
        [store.create_collection("a").await.unwrap(), store.create_collection("b").await.unwrap()];
    both.sort_by_key(|of| of.root);
    let session = Session::reader(store.clone(), CLIENT);
    let mut txn = session.begin(Level::Atomic);
    for of in &both {
        txn.put(of.root, &key("k"), Payload::new("x").unwrap()).unwrap();
    }
    session.commit(&mut txn).await.unwrap();
    let object = both[0].root.object();
    let Ok(s3db::cloud::Get::Found { bytes, .. }) = raw.objects.get(&object, None).await else {
        panic!("no root");
    };
    raw.objects.put(&object, "noise".into(), s3db::cloud::PutIf::Always).await;
    assert!(open(&raw, settings()).await.sweep().await.is_err());
    let reader = Session::reader(open(&raw, settings()).await, 99);
    let txn = reader.begin(Level::Basic);
    assert!(reader.read(&txn, both[1].root, &key("k")).await.unwrap().is_some());
    // And when it is mended, what was committed is there.
    raw.objects.put(&object, bytes, s3db::cloud::PutIf::Always).await;
    assert_eq!(get(&raw, &both[0], "k").await.as_deref(), Some("x"));
}

/// Deduplication ids of FIFO queues in a directory stayed for ever.
#[tokio::test]
async fn ids_that_are_over_go() {
    let raw = memory();
    let (clock, odd) = OddClock::over(&raw);
    let queue = ObjectQueue::new(odd.objects.clone(), odd.clock.clone(), odd.chance.clone());
    let fifo = QueueSettings { fifo: true, retention: Duration::from_secs(3600) };
    queue.create("q", fifo).await.unwrap();
    let send = |n: i64| ToSend {
        body: "x".into(),
        group: Some("g".into()),
        deduplication: Some(format!("{n}")),
    };
    for n in 0..100 {
        clock.set_ahead(n * 60);
        assert_eq!(queue.send("q", &[send(n)]).await, [Sent::Accepted]);
        assert_eq!(queue.send("q", &[send(n)]).await, [Sent::Accepted]);
        let there = raw.objects.list("queue/q/d/", None, 1000).await.unwrap().names.len();
        assert!(there <= 10, "{there} after {n} minutes");
        assert_eq!(queue.depth("q").await, Ok(n as u64 + 1), "each of them once");
    }
    // A number after which there is none is no message.
    raw.objects.put("queue/q/m/ffffffffffffffff", "x".into(), s3db::cloud::PutIf::Absent).await;
    let other = ObjectQueue::new(odd.objects.clone(), odd.clock.clone(), odd.chance.clone());
    assert_eq!(other.send("q", &[send(1000)]).await, [Sent::Accepted]);
    assert_eq!(other.depth("q").await, Ok(101));
}

/// An answer that was damaged on its way was put aside as it had come, and the sound object that nobody had seen
/// was deleted.
#[tokio::test]
async fn a_damaged_answer_is_not_a_damaged_object() {
    for (backend, prefix) in [(Backend::S3Log, "log/"), (Backend::SqsStandard, "spill/")] {
        let raw = memory();
        let (meddler, cloud) = Meddler::over(&raw);
        Store::create(&raw, &settings(), backend, 1).await.unwrap();
        // What is larger than this lies in an object.
        let settings = Settings { message_bytes_max: 300, ..settings() };
        let db = Db::over(raw.clone(), &Options { settings, ..options(backend) }).await.unwrap();
        let things = db.create_collection("things").await.unwrap();
        for n in 0..3 {
            let mut txn = db.begin();
            txn.put(&things, &key(&format!("k{n}")), Payload::new(vec![b'x'; 500]).unwrap())
                .unwrap();
            txn.commit().await.unwrap();
        }
        let there = raw.objects.list(prefix, None, 10).await.unwrap().names;
        assert_eq!(there.len(), 3, "{there:?}");
        // Another process, which has none of it in memory.
        meddler.damages_gets(prefix, 1);
        let store = open(&cloud, settings).await;
        let done = store.sweep().await.unwrap();
        assert_eq!((done.records, done.poison), (3, 0), "{prefix}");
        assert_eq!(meddler.damaged(), 3, "{prefix}");
        let aside = raw.objects.list("quarantine/", None, 10).await.unwrap().names;
        assert_eq!(aside, [""; 0], "{prefix}");
        let session = Session::reader(store, 99);
        let txn = session.begin(Level::Basic);
        for n in 0..3 {
            let found = session.read(&txn, things.root, &key(&format!("k{n}"))).await.unwrap();
            assert!(found.is_some(), "{prefix}: k{n}");
        }
    }
}

/// A fresh read passed over what one damaged answer hid, and remembered that there was nothing.
#[tokio::test]
async fn a_damaged_answer_hides_nothing_from_a_fresh_read() {
    let raw = memory();
    let (meddler, cloud) = Meddler::over(&raw);
    let (db, things) = create(&raw, Backend::S3Log).await;
    let mut txn = db.begin();
    txn.put(&things, &key("k"), Payload::new("v").unwrap()).unwrap();
    txn.commit().await.unwrap();
    meddler.damages_gets("log/", 1);
    let session = Session::reader(open(&cloud, settings()).await, 99);
    let mut txn = session.begin(Level::Basic);
    txn.fresh();
    assert!(session.read(&txn, things.root, &key("k")).await.unwrap().is_some());
    assert_eq!(meddler.damaged(), 1);
}

/// Where each answer is damaged otherwise nobody knows what lies there: it stays, and that is told.
#[tokio::test]
async fn what_never_comes_twice_stays() {
    let raw = memory();
    let (meddler, cloud) = Meddler::over(&raw);
    let (db, things) = create(&raw, Backend::S3Log).await;
    let mut txn = db.begin();
    txn.put(&things, &key("k"), Payload::new("v").unwrap()).unwrap();
    txn.commit().await.unwrap();
    meddler.damages_gets("log/", 5);
    let store = open(&cloud, settings()).await;
    let error = store.sweep().await.unwrap_err();
    let is_it = matches!(&error, StoreError::Cloud { source: Fault::Invalid { .. }, .. });
    assert!(is_it, "{error:?}");
    assert_eq!(meddler.damaged(), 5);
    assert_eq!(raw.objects.list("quarantine/", None, 10).await.unwrap().names, [""; 0]);
    let done = store.sweep().await.unwrap();
    assert_eq!((done.records, done.poison), (1, 0));
    assert_eq!(get(&raw, &things, "k").await.as_deref(), Some("v"));
}
