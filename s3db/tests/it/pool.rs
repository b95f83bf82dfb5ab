//! The page manager under a budget that does not hold what is read.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use pager::{
    Budget, ModeRequest, Pager,
    pool::{Pages, Pool},
};
use s3db::{
    Backend, Collection, Db, Eviction, Level, Options, Payload, Session, Settings, Store,
    StoreError,
    cloud::{
        Cloud, Delete, ETag, Fault, Get, Listing, Objects, Put, PutIf,
        model::{Faults, Latency, Process, World},
    },
};

use crate::{
    mishaps::{CLIENT, key, memory, settings},
    printed::{open, run},
};

const RECORDS: usize = 600;
/// Some thirty pages, of more than two hundred.
const BUDGET: u64 = 96 << 10;

fn small() -> Settings {
    let ttl = Duration::from_millis(300);
    Settings { leaf_bytes_max: 900, inner_bytes_max: 900, ttl, ..settings() }
}

fn world() -> World {
    let world = World::new(1, Faults::NONE, Latency::ROUGH);
    world.make_safe(Process(0));
    world
}

fn name(n: usize) -> String {
    format!("{n:05}")
}

async fn fill(cloud: &Cloud) -> Collection {
    Store::create(cloud, &small(), Backend::S3Log, 1).await.unwrap();
    let store = open(cloud, small()).await;
    let things = store.create_collection("things").await.unwrap();
    let session = Session::open(store.clone(), CLIENT).await.unwrap();
    let mut txn = session.begin(Level::Atomic);
    for n in 0..RECORDS {
        txn.put(things.root, &key(&name(n)), Payload::new(vec![7; 100]).unwrap()).unwrap();
    }
    session.commit(&mut txn).await.unwrap();
    store.sweep().await.unwrap();
    things
}

/// Counts what is on its way, and compares it with what is reserved.
struct Counting {
    beneath: Arc<dyn Objects>,
    /// Bytes of each page.
    sizes: Mutex<HashMap<String, u64>>,
    in_flight: AtomicU64,
    most: AtomicU64,
    store: OnceLock<(Weak<Store>, Budget)>,
}

#[async_trait]
impl Objects for Counting {
    async fn get(&self, name: &str, unless: Option<&ETag>) -> Result<Get, Fault> {
        // A page of which nothing is known is taken for this.
        let guess = 3 * 900 + 320;
        let bytes = self.sizes.lock().unwrap().get(name).map_or(0, |&bytes| bytes.min(guess));
        let in_flight = bytes + self.in_flight.fetch_add(bytes, Ordering::Relaxed);
        self.most.fetch_max(in_flight, Ordering::Relaxed);
        if let Some((store, budget)) = self.store.get()
            && let Some(store) = store.upgrade()
        {
            let kept = store.pool_counts().bytes;
            assert!(budget.used() >= in_flight + kept, "{in_flight} and {kept} of {budget:?}");
            assert!(budget.used() <= budget.limit() && budget.pinned() <= budget.limit() / 2);
        }
        let answer = self.beneath.get(name, unless).await;
        self.in_flight.fetch_sub(bytes, Ordering::Relaxed);
        answer
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

/// Many clients scan what does not fit, at once and past the TTL of their copies, some of them by leaps
/// with other things in between. Everything that is held or on its way is reserved, always; what was
/// reserved is never more than the budget; and everybody gets everything.
fn many_clients_scan(eviction: Eviction) {
    let world = world();
    let cloud = world.cloud(Process(0));
    let budget = Budget::new(BUDGET);
    let (of, time) = (budget.clone(), world.time.clone());
    let clients = run(&world, async move {
        let things = fill(&cloud).await;
        let mut sizes = HashMap::new();
        let mut after = None;
        loop {
            let part = cloud.objects.list("page/", after.as_deref(), 1000).await.unwrap();
            for name in &part.names {
                if let Get::Found { bytes, .. } = cloud.objects.get(name, None).await.unwrap() {
                    sizes.insert(name.clone(), bytes.len() as u64);
                }
            }
            after = part.names.last().cloned();
            if !part.more {
                break;
            }
        }
        assert!(sizes.values().sum::<u64>() > BUDGET, "{}", sizes.len());
        let counting = Arc::new(Counting {
            beneath: cloud.objects.clone(),
            sizes: Mutex::new(sizes),
            in_flight: AtomicU64::new(0),
            most: AtomicU64::new(0),
            store: OnceLock::new(),
        });
        let pool = Pool::new(&of, eviction.policy());
        let metered = Cloud { objects: counting.clone(), ..cloud };
        let store = Store::open(metered, small(), &pool).await.unwrap();
        assert!(counting.store.set((Arc::downgrade(&store), of)).is_ok());
        let done: Arc<AtomicU64> = Arc::default();
        for client in 0..24 {
            let (store, done, clock) = (store.clone(), done.clone(), time.clone());
            time.spawn(Process(0), async move {
                let session = Session::reader(store, 100 + client);
                let txn = session.begin(Level::Atomic);
                let mut scan = session.scan(&txn, things.root, None, None);
                for n in 0..RECORDS {
                    let found = scan.next().await.unwrap();
                    assert_eq!(found.unwrap().0, key(&name(n)), "client {client}");
                    if n % 37 == client as usize {
                        // A page is held meanwhile, and some that are read ahead.
                        clock.sleep(100_000).await;
                    }
                }
                assert!(scan.next().await.unwrap().is_none());
                done.fetch_add(1, Ordering::Relaxed);
            });
        }
        (store, done, counting)
    });
    let (store, done, counting) = clients;
    assert_eq!(done.load(Ordering::Relaxed), 24);
    let counts = store.pool_counts();
    assert!(counts.evicted > 30 && counts.revalidated > 0, "{counts:?}");
    assert!(counts.budget_peak > BUDGET * 3 / 4 && counts.budget_peak <= BUDGET, "{counts:?}");
    assert!(counting.most.load(Ordering::Relaxed) > 3000);
    assert_eq!(counts.budget_pinned, 0, "{counts:?}");
    drop((store, counting));
    assert_eq!(budget.used(), 0);
}

#[test]
fn many_clients_scan_within_a_budget() {
    many_clients_scan(Eviction::S3Fifo);
}

#[test]
fn many_clients_scan_within_a_budget_of_the_clock() {
    many_clients_scan(Eviction::Clock);
}

/// Scans that are held open pin a page each. Where all of them together would pin more than they may, the
/// others have copies, and nobody waits for anybody: there is one task here.
#[test]
fn scans_that_are_held_open_are_in_nobodys_way() {
    let world = world();
    let cloud = world.cloud(Process(0));
    run(&world, async move {
        let things = fill(&cloud).await;
        let budget = Budget::new(BUDGET);
        let pool = Pool::new(&budget, Eviction::default().policy());
        let store = Store::open(cloud, small(), &pool).await.unwrap();
        let session = Session::reader(store.clone(), 99);
        let txn = session.begin(Level::Atomic);
        let from = |n| key(&name(n));
        let mut scans: Vec<_> = (0..RECORDS)
            .map(|n| (n, session.scan(&txn, things.root, Some(&from(n)), None)))
            .collect();
        for step in 0..3 {
            for (n, scan) in &mut scans {
                let found = scan.next().await.unwrap().map(|(key, _)| key);
                assert_eq!(found, (*n + step < RECORDS).then(|| from(*n + step)));
                assert!(budget.pinned() <= BUDGET / 2 && budget.used() <= BUDGET);
            }
        }
        let counts = store.pool_counts();
        assert!(counts.past_pins > 0 && counts.budget_pinned > 0, "{counts:?}");
        // What is read beside them is kept nevertheless.
        for _ in 0..30 {
            assert!(session.read(&txn, things.root, &from(333)).await.unwrap().is_some());
        }
        let fetched = store.pool_counts().fetched - counts.fetched;
        assert!(fetched < 15, "{fetched}: not one for each");
        drop(scans);
        assert_eq!(budget.pinned(), 0);
    });
}

/// A budget that others have all of, or that no page fits into, is an error that says so, after a while
/// and not for ever; it passes with its reason.
#[tokio::test]
async fn a_budget_without_room_is_an_error_and_passes() {
    let cloud = memory();
    let things = fill(&cloud).await;
    let budget = Budget::new(BUDGET);
    let pool = Pool::new(&budget, Eviction::default().policy());
    let store = Store::open(cloud.clone(), small(), &pool).await.unwrap();
    let session = Session::reader(store, 99);
    let txn = session.begin(Level::Atomic);
    let all = budget.try_reserve(BUDGET).unwrap();
    let refused = session.read(&txn, things.root, &key(&name(5))).await;
    assert!(matches!(refused, Err(StoreError::Full { limit: BUDGET, .. })), "{refused:?}");
    drop(all);
    assert!(session.read(&txn, things.root, &key(&name(5))).await.unwrap().is_some());

    let pool = Pool::new(&Budget::new(600), Eviction::default().policy());
    let store = Store::open(cloud, small(), &pool).await.unwrap();
    let session = Session::reader(store, 99);
    let refused = session.read(&txn, things.root, &key(&name(5))).await;
    assert!(matches!(refused, Err(StoreError::Full { limit: 600, .. })), "{refused:?}");
}

/// One budget with whatever stands beside the database: what that has and nobody uses makes room for
/// pages, and the other way round.
#[tokio::test]
async fn a_budget_is_shared_with_what_stands_beside_it() {
    let cloud = memory();
    let things = fill(&cloud).await;
    let budget = Budget::new(BUDGET);
    let beside = Pool::new(&budget, Eviction::Clock.policy());
    let others: Pages<u64, u64> = Pages::new(&beside).unwrap();
    let fill_up = || {
        for n in 0..200 {
            if let Some(room) = beside.reserve(1000) {
                drop(others.insert(&n, n, room));
            }
        }
    };
    fill_up();
    assert!(others.bytes() > BUDGET - 2000);
    let options = Options {
        settings: small(),
        budget: Some(budget.clone()),
        has_worker: false,
        ..Options::default()
    };
    let db = Db::over(cloud, &options).await.unwrap();
    let txn = db.begin();
    let of = db.collection("things").await.unwrap();
    assert_eq!(of.root, things.root);
    let mut records = txn.scan(&of);
    let mut count = 0;
    while records.next().await.unwrap().is_some() {
        count += 1;
        assert!(budget.used() <= BUDGET);
    }
    assert_eq!(count, RECORDS);
    let counts = db.pool_counts();
    assert!(others.evicted() > 0 && counts.bytes > 10_000, "{counts:?}");
    assert_eq!((counts.budget_limit, counts.budget_used), (BUDGET, budget.used()));
    let third = Pool::new(&budget, Eviction::default().policy());
    drop(records);
    // More than there is besides its pages, and all that stands beside them: some of its pages must go.
    let more = budget.limit() - budget.used() + others.bytes() + 1500;
    drop(third.reserve(more).unwrap());
    assert!(db.pool_counts().evicted > counts.evicted);
    assert!(txn.read(&of, &key(&name(3))).await.unwrap().is_some());
}

/// A region of a pager, read in threads of its own, and a database: each has more than the whole budget, so
/// each takes from the other all the time. Both read what is there, and never have more than it together.
#[tokio::test(flavor = "multi_thread")]
async fn a_region_and_a_database_have_one_budget() {
    const LIMIT: u64 = 320 << 10;
    let cloud = memory();
    let things = fill(&cloud).await;
    let budget = Budget::new(LIMIT);
    let content: Vec<u8> = (0..3 * LIMIT).map(|at| (at.wrapping_mul(31) >> 3) as u8).collect();
    let builder = Pager::builder().budget(&budget).unit_bytes(4096).mode(ModeRequest::CheckedOnly);
    let pager = builder.build().unwrap();
    let source = sources::memory::Memory::new("beside", content.clone());
    let region = pager.open_async(source).await.unwrap();
    let options = Options {
        settings: small(),
        budget: Some(budget.clone()),
        has_worker: false,
        ..Options::default()
    };
    let db = Db::over(cloud, &options).await.unwrap();
    let (region, content) = (Arc::new(region), Arc::new(content));
    let is_over = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..2_u64)
        .map(|n| {
            let (region, content, is_over) = (region.clone(), content.clone(), is_over.clone());
            let budget = budget.clone();
            std::thread::spawn(move || {
                let mut at = n * 77_777;
                let mut rounds = 0_u64;
                while !is_over.load(Ordering::Relaxed) {
                    at = (at + 13_337) % (content.len() as u64 - 9000);
                    let mut there = vec![0; 9000];
                    region.read_at(at, &mut there).unwrap();
                    assert!(there == content[at as usize..at as usize + 9000], "{at}");
                    assert!(budget.used() <= LIMIT && budget.pinned() <= LIMIT / 2, "{budget:?}");
                    rounds += 1;
                }
                rounds
            })
        })
        .collect();
    // Until each has taken from the other often: on a busy machine the readers have few turns.
    let is_enough = || db.pool_counts().evicted > 200 && region.stats().units_evicted > 200;
    for round in (0..1000).take_while(|round| *round < 10 || !is_enough()) {
        let txn = db.begin();
        let mut records = txn.scan(&things);
        for n in 0..RECORDS {
            let record = records.next().await.unwrap().unwrap();
            assert_eq!((record.key, record.payload.as_bytes()), (key(&name(n)), &[7; 100][..]));
            if n % 50 == round % 50 {
                let other = key(&name((n * 7) % RECORDS));
                assert!(db.begin().read(&things, &other).await.unwrap().is_some());
            }
            assert!(budget.used() <= LIMIT, "{budget:?}");
        }
        assert!(records.next().await.unwrap().is_none());
    }
    is_over.store(true, Ordering::Relaxed);
    for reader in readers {
        assert!(reader.join().unwrap() > 0);
    }
    let (counts, stats) = (db.pool_counts(), region.stats());
    assert!(counts.evicted > 200 && stats.units_evicted > 200, "{counts:?} {stats:?}");
    assert!(counts.budget_peak > LIMIT / 2 && counts.budget_peak <= LIMIT, "{counts:?}");
    drop((db, region, pager));
    // What the pager was about to fetch is given back by its threads.
    for _ in 0..1000 {
        if budget.used() == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!((budget.used(), budget.pinned()), (0, 0));
}
