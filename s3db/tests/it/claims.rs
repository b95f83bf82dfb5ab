//! Lives and their claims of stamps, where clocks are nearly as wrong as they may be, and where a
//! life ends.

use std::{future::Future, sync::atomic::Ordering, time::Duration};

use s3db::{
    Backend, Db, Level, Payload, Session, Settings, Store, StoreError,
    cloud::{
        CallKind, Cloud, Ledger,
        ledger::charged_to,
        model::{EPOCH_MS, Faults, Latency, Process, World},
    },
};

use crate::{
    meddle::{
        Fate::{Denied, Late, LostAnswer, LostRequest, Stuck},
        Meddler, OddClock,
    },
    mishaps::{CLIENT, get, key, memory, metered, options, put, settings},
    printed::{open, run, world},
};

/// What comes of `work`, if it ends within a minute.
async fn within_a_minute<T>(cloud: &Cloud, work: impl Future<Output = T>) -> Option<T> {
    let minute = cloud.clock.sleep(Duration::from_secs(60));
    match futures::future::select(Box::pin(work), minute).await {
        futures::future::Either::Left((outcome, _)) => Some(outcome),
        futures::future::Either::Right(_) => None,
    }
}

async fn commit(session: &Session, of: &s3db::Collection, name: &str) -> Result<(), StoreError> {
    let mut txn = session.begin(Level::Atomic);
    txn.put(of.root, &key(name), Payload::new("x").unwrap()).unwrap();
    session.commit(&mut txn).await.map(drop)
}

/// Near the limit of clocks a claim is short. Where putting it took longer than it lasted, a commit
/// put one after the other, for ever.
#[test]
fn a_claim_that_is_short_is_enough() {
    // How far the clock is ahead, in milliseconds, and whether that is too far.
    for (ahead_ms, is_too_far) in
        [(297_900, false), (298_500, true), (299_000, true), (301_000, true)]
    {
        // A put takes longer than the shortest claim lasts.
        let get = Duration::from_millis(100);
        let latency = Latency { get, get_byte_ns: 0.0, jitter: 0.0, ..Latency::ROUGH };
        let world = World::new(1, Faults::NONE, latency);
        world.make_safe(Process(0));
        let cloud = world.cloud(Process(0));
        run(&world, async move {
            Store::create(&cloud, &settings(), Backend::S3Log, 1).await.unwrap();
            let (clock, odd) = OddClock::over(&cloud);
            clock.ahead_us.store(ahead_ms * 1000, Ordering::Relaxed);
            let store = open(&metered(&odd), settings()).await;
            let things = store.create_collection("things").await.unwrap();
            let session = Session::reader(store, CLIENT);
            for n in 0..3 {
                let calls = Ledger::new();
                let name = format!("{n}");
                let work = charged_to(&calls, commit(&session, &things, &name));
                let outcome = within_a_minute(&cloud, work).await.expect("it ends");
                match outcome {
                    Ok(()) if !is_too_far => {}
                    Err(StoreError::Clock { .. }) if is_too_far => {}
                    outcome => panic!("{ahead_ms} ms ahead: {outcome:?}"),
                }
                // The log object, and a claim; the first one begins the life, too.
                let puts = calls.charge(CallKind::Put).calls;
                assert!(puts <= 4, "{ahead_ms} ms ahead: {puts} puts");
                cloud.clock.sleep(Duration::from_secs(1)).await;
            }
            // Whatever it claimed, the next life begins at once.
            let next = Session::reader(open(&cloud, settings()).await, CLIENT);
            commit(&next, &things, "next").await.unwrap();
        });
    }
}

/// With queues nothing fences a life that is over. It learned that from its claim, and then went on
/// with what was left of the one before: its commits were older than what the next life had written.
#[test]
fn a_life_that_knows_that_it_is_over_commits_nothing() {
    for backend in Backend::ALL {
        let world = world(Faults::NONE);
        let cloud = world.cloud(Process(0));
        run(&world, async move {
            Store::create(&cloud, &settings(), backend, 1).await.unwrap();
            let (clock, odd) = OddClock::over(&cloud);
            let store = open(&odd, settings()).await;
            let things = store.create_collection("things").await.unwrap();
            let first = Session::open(store, CLIENT).await.unwrap();
            put(&first, &things, "k", "first").await;
            let second = Session::open(open(&cloud, settings()).await, CLIENT).await.unwrap();
            put(&second, &things, "k", "second").await;
            // Half of its claim is used up.
            clock.set_ahead(70);
            let outcome = first.keep_alive().await;
            assert!(matches!(outcome, Err(StoreError::Fenced { .. })), "{outcome:?}");
            let outcome = commit(&first, &things, "other").await;
            assert!(matches!(outcome, Err(StoreError::Fenced { .. })), "{backend:?}: {outcome:?}");
            assert_eq!(get(&cloud, &things, "other").await, None);
            assert_eq!(get(&cloud, &things, "k").await.as_deref(), Some("second"));
        });
    }
}

/// A session that was finished, and its client retired, committed into a stream that nobody owned.
#[tokio::test]
async fn a_session_that_is_finished_commits_nothing() {
    for backend in Backend::ALL {
        let raw = memory();
        Store::create(&raw, &settings(), backend, 1).await.unwrap();
        let store = open(&raw, settings()).await;
        let things = store.create_collection("things").await.unwrap();
        let session = Session::open(store, CLIENT).await.unwrap();
        put(&session, &things, "k", "x").await;
        // Stamped and refused: it is another attempt that would send it.
        session.finish().await.unwrap();
        for _ in 0..2 {
            let outcome = commit(&session, &things, "late").await;
            assert!(matches!(outcome, Err(StoreError::Fenced { .. })), "{backend:?}: {outcome:?}");
        }
        for prefix in ["log/", "clients/"] {
            let names = raw.objects.list(prefix, None, 10).await.unwrap().names;
            assert_eq!(names, [""; 0], "{backend:?}");
        }
        assert_eq!(get(&raw, &things, "late").await, None);
    }
}

/// The work in the background was ended while it put a claim, which landed: the session could not
/// retire its client, since it knew the object in an older version.
#[tokio::test(start_paused = true)]
async fn a_claim_that_was_given_up_is_not_in_the_way_of_the_end() {
    for backend in Backend::ALL {
        let raw = memory();
        Store::create(&raw, &settings(), backend, 1).await.unwrap();
        let (meddler, cloud) = Meddler::over(&raw);
        let (clock, cloud) = OddClock::over(&cloud);
        let store = open(&cloud, settings()).await;
        let things = store.create_collection("things").await.unwrap();
        let session = Session::open(store, CLIENT).await.unwrap();
        put(&session, &things, "k", "x").await;
        clock.set_ahead(70);
        meddler.puts("clients/", &[Stuck]);
        let given_up = tokio::time::timeout(Duration::from_secs(1), session.keep_alive());
        assert!(given_up.await.is_err());
        assert!(session.finish().await.unwrap(), "{backend:?}");
        let names = raw.objects.list("clients/", None, 10).await.unwrap().names;
        assert_eq!(names, [""; 0], "{backend:?}");
    }
}

/// A stamp that was read, beyond all that may be written, was taken for one that was used: a claim
/// was put once a minute, up to the limit, and kept the next life from beginning.
#[test]
fn stamps_that_are_only_read_claim_nothing() {
    let world = world(Faults::NONE);
    let cloud = world.cloud(Process(0));
    run(&world, async move {
        let far = Settings { clock_ahead_max: Duration::from_secs(3600), ..settings() };
        Store::create(&cloud, &far, Backend::S3Log, 1).await.unwrap();
        let (clock, odd) = OddClock::over(&cloud);
        clock.set_ahead(3000);
        let store = open(&odd, far).await;
        let things = store.create_collection("things").await.unwrap();
        put(&Session::reader(store.clone(), 8), &things, "far", "x").await;
        store.sweep().await.unwrap();
        let session =
            Session::open(open(&metered(&cloud), settings()).await, CLIENT).await.unwrap();
        put(&session, &things, "k", "x").await;
        let txn = session.begin(Level::Atomic);
        session.read(&txn, things.root, &key("far")).await.unwrap();
        let outcome = commit(&session, &things, "after").await;
        assert!(matches!(outcome, Err(StoreError::Clock { .. })), "{outcome:?}");
        let calls = Ledger::new();
        for _ in 0..600 {
            cloud.clock.sleep(Duration::from_secs(1)).await;
            charged_to(&calls, session.keep_alive()).await.unwrap();
        }
        assert_eq!(calls.charge(CallKind::Put).calls, 0);
    });
}

/// A machine without a clock began every name at epoch 1.
#[test]
fn epochs_of_a_machine_without_a_clock_are_new() {
    let world = world(Faults::NONE);
    let cloud = world.cloud(Process(0));
    run(&world, async move {
        Store::create(&cloud, &settings(), Backend::S3Log, 1).await.unwrap();
        let (clock, odd) = OddClock::over(&cloud);
        clock.set_ahead(-100 * 365 * 24 * 3600);
        let session = Session::open(open(&odd, settings()).await, CLIENT).await.unwrap();
        assert!(session.epoch() >= EPOCH_MS * 1000, "{}", session.epoch());
    });
}

/// Each attempt to begin a life took an epoch, and left one more to be fenced by the next.
#[tokio::test]
async fn attempts_at_one_life_are_one_epoch() {
    let raw = memory();
    Store::create(&raw, &settings(), Backend::S3Log, 1).await.unwrap();
    let first = Session::open(open(&raw, settings()).await, CLIENT).await.unwrap();
    let (meddler, cloud) = Meddler::over(&raw);
    let store = open(&cloud, settings()).await;
    let things = store.create_collection("things").await.unwrap();
    let session = Session::reader(store, CLIENT);
    meddler.puts("log/", &[Denied; 5]);
    for _ in 0..5 {
        let outcome = commit(&session, &things, "k").await;
        assert!(matches!(outcome, Err(StoreError::Cloud { .. })), "{outcome:?}");
    }
    commit(&session, &things, "k").await.unwrap();
    assert_eq!(session.epoch(), first.epoch() + 1);
}

/// The clock that a session counts on stands still while its machine sleeps. A client that was
/// asleep most of the time showed itself by the time that it knew, and was forgotten.
#[test]
fn a_client_on_a_machine_that_sleeps_is_kept() {
    let world = world(Faults::NONE);
    let cloud = world.cloud(Process(0));
    run(&world, async move {
        Store::create(&cloud, &settings(), Backend::S3Log, 1).await.unwrap();
        let (clock, odd) = OddClock::over(&cloud);
        let store = open(&metered(&odd), settings()).await;
        let things = store.create_collection("things").await.unwrap();
        let session = Session::reader(store, CLIENT);
        put(&session, &things, "before", "x").await;
        let calls = Ledger::new();
        for _ in 0..40 {
            clock.suspend(Duration::from_secs(24 * 3600)).await;
            for _ in 0..10 {
                charged_to(&calls, session.keep_alive()).await.unwrap();
            }
        }
        assert_eq!(calls.charge(CallKind::Get).calls, 40, "the time, once after each sleep");
        let janitor = open(&cloud, settings()).await;
        let done = janitor.collect_garbage(Duration::from_secs(3600)).await.unwrap();
        assert_eq!(done.retired, 0, "{done:?}");
        commit(&session, &things, "after").await.unwrap();
    });
}

/// A client that was closed kept two minutes of stamps for nobody. Its next life began after those,
/// and won against what others wrote later.
#[test]
fn a_client_that_is_closed_gives_its_claim_back() {
    for backend in Backend::ALL {
        let world = world(Faults::NONE);
        let cloud = world.cloud(Process(0));
        run(&world, async move {
            Store::create(&cloud, &settings(), backend, 1).await.unwrap();
            let store = open(&cloud, settings()).await;
            let things = store.create_collection("things").await.unwrap();
            // Who has seen nothing of it yet.
            let other = Session::reader(store, 8);
            for n in 0..2 {
                let db = Db::over(cloud.clone(), &options(backend)).await.unwrap();
                let mut txn = db.begin();
                txn.put(&things, &key("k"), Payload::new(format!("{n}")).unwrap()).unwrap();
                txn.commit().await.unwrap();
                db.close().await.unwrap();
            }
            put(&other, &things, "k", "later").await;
            assert_eq!(get(&cloud, &things, "k").await.as_deref(), Some("later"), "{backend:?}");
        });
    }
}

/// And what it gave back is no longer its own, whether it knows that it arrived or not.
#[tokio::test]
async fn what_was_given_back_is_claimed_again() {
    let raw = memory();
    Store::create(&raw, &settings(), Backend::S3Log, 1).await.unwrap();
    let (meddler, cloud) = Meddler::over(&raw);
    let store = open(&cloud, settings()).await;
    let things = store.create_collection("things").await.unwrap();
    for fates in [&[][..], &[LostAnswer], &[LostRequest; 3], &[Late, Denied]] {
        let session = Session::open(store.clone(), CLIENT).await.unwrap();
        put(&session, &things, "k", "x").await;
        meddler.puts("clients/", fates);
        let _ = session.rest().await;
        put(&session, &things, "k", "y").await;
        meddler.deliver().await;
        put(&session, &things, "k", "z").await;
        // The next life begins after all of that.
        let next = Session::open(store.clone(), CLIENT).await.unwrap();
        put(&next, &things, "k", "next").await;
        assert_eq!(get(&raw, &things, "k").await.as_deref(), Some("next"), "{fates:?}");
    }
}
