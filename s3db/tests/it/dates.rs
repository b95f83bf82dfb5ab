//! The object store's time, where its answers are wrong: once, or again and again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use s3db::{
    Backend, Collected, Db, Isolation, Level, Options, Payload, Session, Settings, Store,
    StoreError,
    cloud::{
        Cloud, Delete, ETag, Fault, Get, Listing, Objects, Put, PutIf,
        model::{Faults, Process},
    },
};

use crate::{
    meddle::OddClock,
    mishaps::{CLIENT, create, get, key, memory, options, put, settings},
    printed::{open, run, world},
};

const DAY_MS: i64 = 24 * 3_600_000;
const CENTURY_MS: i64 = 36_500 * DAY_MS;

/// Objects whose answers tell another time: the one with this number, or all.
struct Dating {
    beneath: Arc<dyn Objects>,
    asked: AtomicU64,
    only: Option<u64>,
    ahead_ms: AtomicI64,
}

impl Dating {
    fn over(cloud: &Cloud, only: Option<u64>, ahead_ms: i64) -> (Arc<Dating>, Cloud) {
        let (asked, ahead_ms) = (AtomicU64::new(0), AtomicI64::new(ahead_ms));
        let dating = Arc::new(Dating { beneath: cloud.objects.clone(), asked, only, ahead_ms });
        (dating.clone(), Cloud { objects: dating, ..cloud.clone() })
    }

    /// Whether so many answers were given that the wrong one was among them.
    fn is_over(&self) -> bool {
        self.only.is_some_and(|only| self.asked.load(Ordering::Relaxed) > only)
    }
}

#[async_trait]
impl Objects for Dating {
    async fn get(&self, name: &str, unless: Option<&ETag>) -> Result<Get, Fault> {
        let answer = self.beneath.get(name, unless).await?;
        let number = match answer {
            Get::Absent => return Ok(answer),
            _ => self.asked.fetch_add(1, Ordering::Relaxed),
        };
        let is_wrong = self.only.is_none_or(|only| only == number);
        let ahead_ms = if is_wrong { self.ahead_ms.load(Ordering::Relaxed) } else { 0 };
        let told = |date_ms: u64| date_ms.saturating_add_signed(ahead_ms);
        Ok(match answer {
            Get::Found { bytes, etag, date_ms } => {
                Get::Found { bytes, etag, date_ms: told(date_ms) }
            }
            Get::Unchanged { date_ms } => Get::Unchanged { date_ms: told(date_ms) },
            Get::Absent => Get::Absent,
        })
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

/// One answer of a process told the year 2126: a payload that was being written was deleted, and then its
/// record committed; everybody alive was retired, every tombstone dropped.
#[test]
fn one_wrong_date_collects_nothing() {
    for only in 0..100 {
        let world = world(Faults::NONE);
        let cloud = world.cloud(Process(0));
        let is_enough = run(&world, async move {
            let settings = Settings { inline_bytes_max: 10, part_bytes: 20, ..settings() };
            Store::create(&cloud, &settings, Backend::S3Log, 1).await.unwrap();
            let store = open(&cloud, settings).await;
            let things = store.create_collection("things").await.unwrap();
            let session = Session::open(store.clone(), CLIENT).await.unwrap();
            put(&session, &things, "gone", "x").await;
            let mut txn = session.begin(Level::Atomic);
            txn.delete(things.root, &key("gone")).unwrap();
            session.commit(&mut txn).await.unwrap();
            store.sweep().await.unwrap();
            let text = "a payload that lies in a blob of its own";
            let mut writing = session.write_blob().await.unwrap();
            writing.write(text.as_bytes()).await.unwrap();
            let blob = writing.finish().await.unwrap();
            let mut is_enough = true;
            for _ in 0..2 {
                let (dating, wrong) = Dating::over(&cloud, Some(only), CENTURY_MS);
                let janitor = open(&wrong, settings).await;
                let done = janitor.collect_garbage(Duration::from_secs(1)).await;
                let Collected { pruned, retired, blobs, deleted, .. } = match done {
                    Ok(done) => done,
                    Err(StoreError::Date { .. }) => Collected::default(),
                    Err(error) => panic!("answer {only} is wrong: {error}"),
                };
                let went = [pruned, retired, blobs, deleted];
                assert_eq!(went, [0; 4], "answer {only} is wrong: pruned, retired, blobs, pages");
                is_enough &= !dating.is_over();
                cloud.clock.sleep(Duration::from_secs(10)).await;
            }
            let mut txn = session.begin(Level::Atomic);
            txn.put_value(things.root, &key("film"), blob).unwrap();
            session.commit(&mut txn).await.unwrap();
            assert_eq!(get(&cloud, &things, "film").await.as_deref(), Some(text));
            is_enough
        });
        if is_enough {
            assert!(only > 5, "garbage collection asks for some objects");
            return;
        }
    }
    panic!("each of 100 answers was asked for");
}

/// It stamped what it wrote with that, which won against all that was written for a hundred years.
#[test]
fn one_wrong_date_stamps_nothing() {
    for backend in Backend::ALL {
        for only in 0..12 {
            let world = world(Faults::NONE);
            let cloud = world.cloud(Process(0));
            let got = run(&world, async move {
                Store::create(&cloud, &settings(), backend, 1).await.unwrap();
                let store = open(&cloud, settings()).await;
                let things = store.create_collection("things").await.unwrap();
                let (_, wrong) = Dating::over(&cloud, Some(only), CENTURY_MS);
                let odd = Session::reader(open(&wrong, settings()).await, CLIENT);
                for n in 0..3 {
                    put(&odd, &things, "k", &format!("{n}")).await;
                    odd.keep_alive().await.unwrap();
                    odd.store().sweep().await.unwrap();
                    cloud.clock.sleep(Duration::from_secs(101)).await;
                }
                put(&Session::reader(store, 8), &things, "k", "last").await;
                get(&cloud, &things, "k").await
            });
            assert_eq!(got.as_deref(), Some("last"), "{backend:?}: answer {only} is wrong");
        }
    }
}

/// Where every answer contradicts this machine's clock nobody knows which of them is wrong.
#[test]
fn a_store_days_away_is_not_gone_by() {
    for ahead_ms in [2 * DAY_MS, -2 * DAY_MS, CENTURY_MS] {
        let world = world(Faults::NONE);
        let cloud = world.cloud(Process(0));
        run(&world, async move {
            Store::create(&cloud, &settings(), Backend::S3Log, 1).await.unwrap();
            let store = open(&cloud, settings()).await;
            let things = store.create_collection("things").await.unwrap();
            let (dating, wrong) = Dating::over(&cloud, None, ahead_ms);
            let store = open(&wrong, settings()).await;
            let is_refused = |outcome: Result<(), StoreError>| match outcome {
                Err(StoreError::Date { ahead_ms: by }) => {
                    assert!(ahead_ms > 0 && by.abs_diff(ahead_ms) < 10_000, "{by} for {ahead_ms}");
                }
                Err(StoreError::Clock { .. }) if ahead_ms < 0 => {}
                outcome => panic!("{ahead_ms} ms ahead: {outcome:?}"),
            };
            let session = Session::reader(store.clone(), CLIENT);
            let mut txn = session.begin(Level::Atomic);
            txn.put(things.root, &key("k"), Payload::new("x").unwrap()).unwrap();
            is_refused(session.commit(&mut txn).await.map(drop));
            is_refused(store.collect_garbage(Duration::ZERO).await.map(drop));
            for prefix in ["log/", "clients/"] {
                let names = cloud.objects.list(prefix, None, 10).await.unwrap().names;
                assert_eq!(names, [""; 0], "{ahead_ms}");
            }
            // It is set right.
            dating.ahead_ms.store(0, Ordering::Relaxed);
            session.commit(&mut txn).await.unwrap();
            store.collect_garbage(Duration::ZERO).await.unwrap();
            assert_eq!(get(&cloud, &things, "k").await.as_deref(), Some("x"));
        });
    }
}

/// It named the data of a commit by such a date, which garbage collection would have taken at once, or never; and
/// by such a date a proposal was not too old to be approved.
#[tokio::test]
async fn a_date_in_doubt_names_no_data_and_approves_nothing() {
    let cloud = memory();
    let (db, _) = create(&cloud, Backend::S3Log).await;
    let own = db.create_curated("own").await.unwrap();
    let of = db.create_isolated_collection("isolated", Isolation::Snapshot).await.unwrap();
    let mut txn = db.begin();
    txn.put(&own, &key("k"), Payload::new("proposed").unwrap()).unwrap();
    let id = txn.commit().await.unwrap().proposed.unwrap();
    let (dating, wrong) = Dating::over(&cloud, None, 0);
    let odd = Options { client: None, ..options(Backend::S3Log) };
    let odd = Db::over(wrong, &odd).await.unwrap();
    let shown = odd.store().proposal(&own, id).await.unwrap().unwrap();
    // Its life begins while the date is right.
    let mut txn = odd.begin_for(&of);
    txn.put(&of, &key("small"), Payload::new("x").unwrap()).unwrap();
    txn.commit().await.unwrap();

    dating.ahead_ms.store(2 * DAY_MS, Ordering::Relaxed);
    let mut txn = odd.begin_for(&of);
    assert!(txn.read(&of, &key("small")).await.unwrap().is_some());
    txn.put(&of, &key("large"), Payload::new(vec![7; 10_000]).unwrap()).unwrap();
    let committed = txn.commit().await;
    assert!(matches!(committed, Err(StoreError::Date { .. })), "{committed:?}");
    let approved = odd.store().approve(&own, &shown).await;
    assert!(matches!(approved, Err(StoreError::Date { .. })), "{approved:?}");
    for prefix in ["sequencer/data/", "approved/"] {
        let names = cloud.objects.list(prefix, None, 10).await.unwrap().names;
        assert_eq!(names, [""; 0], "{prefix}");
    }
    // It is set right.
    dating.ahead_ms.store(0, Ordering::Relaxed);
    txn.commit().await.unwrap();
    assert_eq!(odd.store().approve(&own, &shown).await.unwrap().applied, 1);
    assert_eq!(cloud.objects.list("sequencer/data/", None, 10).await.unwrap().names.len(), 1);
}

/// Whether the stamps of a proposal are of the future, or too old to win, is not told by such a date.
#[test]
fn nothing_is_approved_by_a_date_that_is_in_doubt() {
    for ahead_ms in [2 * DAY_MS, -2 * DAY_MS] {
        let world = world(Faults::NONE);
        let cloud = world.cloud(Process(0));
        run(&world, async move {
            Store::create(&cloud, &settings(), Backend::S3Log, 1).await.unwrap();
            let store = open(&cloud, settings()).await;
            let prices = store.create_curated("prices").await.unwrap();
            let session = Session::open(store.clone(), CLIENT).await.unwrap();
            put(&session, &prices, "bread", "2").await;
            let id = store.proposals(&prices, None, 10).await.unwrap()[0];
            let (dating, wrong) = Dating::over(&cloud, None, ahead_ms);
            let curator = open(&wrong, settings()).await;
            let shown = curator.proposal(&prices, id).await.unwrap().unwrap();
            let refused = curator.approve(&prices, &shown).await;
            let is_in_doubt =
                matches!(refused, Err(StoreError::Date { .. } | StoreError::Clock { .. }));
            assert!(is_in_doubt, "{ahead_ms}: {refused:?}");
            let approved = cloud.objects.list("approved/", None, 10).await.unwrap().names;
            assert_eq!(approved, [""; 0], "{ahead_ms}");
            // It is set right.
            dating.ahead_ms.store(0, Ordering::Relaxed);
            curator.approve(&prices, &shown).await.unwrap();
            assert_eq!(get(&cloud, &prices, "bread").await.as_deref(), Some("2"));
        });
    }
}

/// It goes by what it is told twice, and deletes nothing by that.
#[test]
fn a_machine_without_a_clock_commits_and_collects_nothing() {
    let world = world(Faults::NONE);
    let cloud = world.cloud(Process(0));
    run(&world, async move {
        Store::create(&cloud, &settings(), Backend::S3Log, 1).await.unwrap();
        let (_, wrong) = Dating::over(&cloud, Some(0), CENTURY_MS);
        let (clock, odd) = OddClock::over(&wrong);
        clock.set_ahead(-100 * 365 * 24 * 3600);
        let store = open(&odd, settings()).await;
        let things = store.create_collection("things").await.unwrap();
        put(&Session::reader(store.clone(), CLIENT), &things, "k", "first").await;
        store.sweep().await.unwrap();
        let outcome = store.collect_garbage(Duration::ZERO).await;
        assert!(matches!(outcome, Err(StoreError::Date { .. })), "{outcome:?}");
        put(&Session::reader(open(&cloud, settings()).await, 8), &things, "k", "last").await;
        assert_eq!(get(&cloud, &things, "k").await.as_deref(), Some("last"));
    });
}
