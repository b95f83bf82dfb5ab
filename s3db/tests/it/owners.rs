//! Who checkpoints what, where somebody owns it.

use std::{sync::Arc, time::Duration};

use s3db::{
    Backend, Db, Level, Options, Session, Settings, Store,
    cloud::{
        Cloud, Get, PutIf,
        model::{Faults, Process},
    },
};

use crate::{
    mishaps::{CLIENT, key, memory, put, settings},
    printed::{open, run, world},
    sealed::keys,
};

const OWNER: u64 = 1000;

fn with_owners() -> Settings {
    Settings {
        checkpoint_interval: Duration::from_secs(2),
        owner_lease: Duration::from_secs(9),
        owner_patience: Duration::from_secs(30),
        ttl: Duration::from_millis(500),
        ..settings()
    }
}

/// One who writes, its collection, and one who owns all of the log.
async fn cast(cloud: &Cloud, backend: Backend) -> (Session, s3db::Collection, Arc<Store>) {
    Store::create(cloud, &with_owners(), backend, 2).await.unwrap();
    let writer = open(cloud, with_owners()).await;
    let things = writer.create_collection("things").await.unwrap();
    let owner = open(cloud, with_owners()).await;
    let own = owner.own(OWNER, &[0, 1, 7]).await.unwrap();
    assert_eq!(own.len(), if backend == Backend::S3Log { 1 } else { 2 });
    (Session::open(writer, CLIENT).await.unwrap(), things, owner)
}

/// Works in the background for some seconds.
async fn work(store: &Store, cloud: &Cloud, seconds: u64) {
    for _ in 0..seconds {
        store.make_all_due();
        store.work().await.unwrap();
        cloud.clock.sleep(Duration::from_secs(1)).await;
    }
}

/// What is on the pages.
async fn is_there(cloud: &Cloud, things: &s3db::Collection, name: &str) -> bool {
    let reader = Session::reader(open(cloud, with_owners()).await, 99);
    let txn = reader.begin(Level::Basic);
    reader.read(&txn, things.root, &key(name)).await.unwrap().is_some()
}

#[test]
fn what_somebody_owns_is_left_to_it_for_a_lease() {
    for backend in Backend::ALL {
        let world = world(Faults::NONE);
        let cloud = world.cloud(Process(0));
        run(&world, async move {
            let (session, things, owner) = cast(&cloud, backend).await;
            put(&session, &things, "a", "1").await;
            let writer = session.store();
            work(writer, &cloud, 4).await;
            assert_eq!(writer.pool_counts().puts, 0, "{backend:?}: it only appends");
            assert!(!is_there(&cloud, &things, "a").await);
            let own = owner.own(OWNER, &[0, 1]).await.unwrap();
            assert_eq!(owner.tend(&own).await.unwrap().applied, 1, "{backend:?}");
            assert!(is_there(&cloud, &things, "a").await);
            // Another one gets nothing meanwhile.
            let other = open(&cloud, with_owners()).await;
            assert_eq!(other.own(OWNER + 1, &[0, 1]).await.unwrap(), [0; 0]);

            // The owner is gone.
            put(&session, &things, "b", "2").await;
            work(writer, &cloud, 15).await;
            assert!(is_there(&cloud, &things, "b").await, "{backend:?}");
            assert_eq!(writer.pool_counts().puts, 1);
            assert_eq!(other.own(OWNER + 1, &own).await.unwrap(), own, "{backend:?}");
            // One that ends gives back what it has.
            other.disown(OWNER + 1).await.unwrap();
            put(&session, &things, "c", "3").await;
            work(writer, &cloud, 5).await;
            assert!(is_there(&cloud, &things, "c").await, "{backend:?}");
        });
    }
}

/// What it claims is not brought to its page by anybody else; nor by itself; but not for ever.
#[test]
fn one_that_renews_and_does_nothing_is_heeded_for_a_while() {
    for backend in Backend::ALL {
        let world = world(Faults::NONE);
        let cloud = world.cloud(Process(0));
        run(&world, async move {
            let (session, things, owner) = cast(&cloud, backend).await;
            put(&session, &things, "a", "1").await;
            let began_us = cloud.clock.monotonic_us();
            let elapsed = || (cloud.clock.monotonic_us() - began_us) / 1_000_000;
            while elapsed() < 45 {
                let own = owner.own(OWNER, &[0, 1]).await.unwrap();
                assert!(!own.is_empty());
                work(session.store(), &cloud, 1).await;
                let is_due = elapsed() >= 38;
                let there = is_there(&cloud, &things, "a").await;
                let is_early = elapsed() < 29;
                let second = elapsed();
                assert!(there || !is_due, "{backend:?}: {second}");
                assert!(!there || !is_early, "{backend:?}: {second}");
            }
        });
    }
}

/// A sweep, and what a user asks for, is done whoever owns what. So is what nobody can be asked about: the
/// object of claims may hold anything.
#[test]
fn nothing_that_is_asked_for_is_left_to_anybody() {
    for backend in Backend::ALL {
        let world = world(Faults::NONE);
        let cloud = world.cloud(Process(0));
        run(&world, async move {
            let (session, things, owner) = cast(&cloud, backend).await;
            put(&session, &things, "a", "1").await;
            assert_eq!(session.store().sweep().await.unwrap().applied, 1);
            let Get::Found { etag, .. } = cloud.objects.get("owners", None).await.unwrap() else {
                panic!("there are claims");
            };
            cloud.objects.put("owners", "noise".into(), PutIf::Matches(etag)).await;
            put(&session, &things, "b", "2").await;
            cloud.clock.sleep(Duration::from_secs(4)).await;
            work(session.store(), &cloud, 3).await;
            assert!(is_there(&cloud, &things, "b").await, "{backend:?}");
            // Whoever claims next puts it right.
            assert!(!owner.own(OWNER, &[0]).await.unwrap().is_empty());
        });
    }
}

/// Claims are sealed as all else is: when the key that they were made under is gone, they are read, heeded,
/// renewed and given back by those who have the next one.
#[tokio::test]
async fn claims_outlive_their_key() {
    for backend in Backend::ALL {
        let cloud = memory();
        let of = |ids: &[u8]| Options {
            settings: with_owners(),
            keys: Some(keys(ids)),
            backend,
            shards: 2,
            has_worker: false,
            ..Options::default()
        };
        Store::create_encrypted(&cloud, &with_owners(), backend, 2).await.unwrap();
        let first = Db::over(cloud.clone(), &of(&[1])).await.unwrap();
        assert_eq!(first.store().own(OWNER, &[0]).await.unwrap(), [0], "{backend:?}");
        let both = Db::over(cloud.clone(), &of(&[2, 1])).await.unwrap();
        both.store().rekey(|_| {}).await.unwrap();
        // Nobody has the old one any more.
        let last = Db::over(cloud.clone(), &of(&[2])).await.unwrap();
        assert_eq!(last.store().own(OWNER + 1, &[0]).await.unwrap(), [0; 0], "{backend:?}");
        assert_eq!(last.store().own(OWNER, &[0]).await.unwrap(), [0], "{backend:?}: renewed");
        both.store().disown(OWNER).await.unwrap();
        assert_eq!(last.store().own(OWNER + 1, &[0]).await.unwrap(), [0], "{backend:?}");
    }
}
