//! Scans: what they read, and how often they wait for it.

use std::{ops::Bound, sync::Arc, time::Duration};

use futures::FutureExt as _;
use s3db::{
    Backend, Collection, Level, Payload, SearchBy, Session, Settings, Store,
    cloud::{
        Cloud,
        model::{Faults, Latency, Process, World},
    },
};

use crate::{
    meddle::{Meddler, OddClock},
    mishaps::{CLIENT, get, key, put, settings},
    printed::{open, run},
};

/// What every call takes, whatever it carries.
const ROUND: Duration = Duration::from_millis(20);
const RECORDS: usize = 3000;

fn world() -> World {
    let latency = Latency {
        get: ROUND,
        get_byte_ns: 0.0,
        put_factor: 1.0,
        send: ROUND,
        receive: ROUND,
        jitter: 0.0,
    };
    let world = World::new(1, Faults::NONE, latency);
    world.make_safe(Process(0));
    world
}

/// Leaves of four records, parents of more than a hundred leaves, as those of usual pages have.
fn small() -> Settings {
    let ttl = Duration::from_secs(100_000);
    Settings { leaf_bytes_max: 800, inner_bytes_max: 6000, ttl, ..settings() }
}

fn name(n: usize) -> String {
    format!("{n:05}")
}

/// A collection of [`RECORDS`]: it, its pages, and the levels of its tree. And one who has read none of
/// it but the root.
async fn filled(cloud: &Cloud) -> (Collection, u64, u64, Arc<Store>) {
    Store::create(cloud, &small(), Backend::S3Log, 1).await.unwrap();
    let store = open(cloud, small()).await;
    let things = store.create_collection("things").await.unwrap();
    let session = Session::open(store.clone(), CLIENT).await.unwrap();
    for part in 0..RECORDS / 500 {
        let mut txn = session.begin(Level::Atomic);
        for n in part * 500..(part + 1) * 500 {
            txn.put(things.root, &key(&name(n)), Payload::new(vec![7; 100]).unwrap()).unwrap();
        }
        session.commit(&mut txn).await.unwrap();
        store.sweep().await.unwrap();
    }
    let verified = store.verify(|_, _| {}).await.unwrap();
    assert_eq!((verified.problem_count, verified.records), (0, RECORDS as u64));
    let reader = open(cloud, small()).await;
    reader.collection("things").await.unwrap();
    (things, verified.pages, verified.levels, reader)
}

/// A scan waited for every leaf: the next sixteen were fetched at once, but one more with each, and
/// that one was waited for, too; and at the edge of a parent for that, and for a leaf alone.
#[test]
fn a_scan_waits_once_for_many_leaves() {
    let world = world();
    let cloud = world.cloud(Process(0));
    run(&world, async move {
        let (things, pages, levels, reader) = filled(&cloud).await;
        assert!(pages > 300 && levels >= 3, "{pages} {levels}");
        let session = Session::reader(reader.clone(), 99);
        let txn = session.begin(Level::Atomic);
        let began_us = cloud.clock.monotonic_us();
        let mut scan = session.scan(&txn, things.root, None, None);
        for n in 0..RECORDS {
            let (found, _) = scan.next().await.unwrap().unwrap();
            assert_eq!(found, key(&name(n)));
        }
        assert!(scan.next().await.unwrap().is_none());
        let waited = Duration::from_micros(cloud.clock.monotonic_us() - began_us);
        // One after the other: the way down, and then a leaf and as many behind it as were given out
        // before it, sixteen at least and 64 at most.
        let rounds = (waited.as_micros() / ROUND.as_micros()) as u64;
        let (mut seen, mut most) = (0, levels);
        while seen < pages {
            seen += 1 + seen.clamp(16, 64);
            most += 1;
        }
        assert!(rounds <= most, "{rounds} rounds for {pages} pages, not {most}");
        // No page twice, none in vain.
        let counts = reader.pool_counts();
        assert_eq!((counts.fetched, counts.revalidated), (pages, 0));
    });
}

/// Whatever the range, sixteen leaves behind each of its own were fetched.
#[test]
fn a_range_reads_nothing_behind_its_end() {
    let world = world();
    let cloud = world.cloud(Process(0));
    run(&world, async move {
        let (things, _, levels, reader) = filled(&cloud).await;
        let session = Session::reader(reader.clone(), 99);
        let txn = session.begin(Level::Atomic);
        let (from, to) = (key(&name(700)), key(&name(710)));
        let mut scan = session.scan(&txn, things.root, Some(&from), Some(&to));
        let mut count = 0;
        while scan.next().await.unwrap().is_some() {
            count += 1;
        }
        assert_eq!(count, 10);
        // Leaves have three records at least; inner pages on either side of an edge.
        let fetched = reader.pool_counts().fetched;
        assert!(fetched <= 2 * levels + 5, "{fetched}");
    });
}

/// What is read ahead grows with what was read: nobody pays for more than twice the leaves that he saw.
#[test]
fn a_scan_that_ends_early_has_not_read_far_ahead() {
    let world = world();
    let cloud = world.cloud(Process(0));
    run(&world, async move {
        let (things, _, levels, _) = filled(&cloud).await;
        for records in [1, 100, 400, 1000] {
            let reader = open(&cloud, small()).await;
            let session = Session::reader(reader.clone(), 99);
            let txn = session.begin(Level::Atomic);
            let mut scan = session.scan(&txn, things.root, None, None);
            for _ in 0..records {
                scan.next().await.unwrap().unwrap();
            }
            drop(scan);
            // Leaves have three records at least; what else is read are parents.
            let (seen, fetched) = (records as u64 / 3 + 1, reader.pool_counts().fetched);
            let parents = levels + fetched / 8;
            let most = seen + seen.clamp(16, 64) + parents;
            assert!(fetched <= most, "{fetched} pages for {records} records, not {most}");
        }
    });
}

/// What a scan reads ahead rests while nobody asks it for more. Whoever wants such a page meanwhile, be
/// it the one who scans, carries the read on, and does not wait for the scan.
#[test]
fn what_is_read_ahead_is_in_nobodys_way() {
    let world = world();
    let cloud = world.cloud(Process(0));
    run(&world, async move {
        let (things, pages, _, reader) = filled(&cloud).await;
        let session = Session::reader(reader.clone(), 99);
        let txn = session.begin(Level::Atomic);
        let mut scan = session.scan(&txn, things.root, None, None);
        for n in 0..RECORDS {
            scan.next().await.unwrap().unwrap();
            // Some leaves ahead.
            let later = key(&name((n + 40).min(RECORDS - 1)));
            assert!(session.read(&txn, things.root, &later).await.unwrap().is_some());
        }
        assert_eq!(reader.pool_counts().fetched, pages, "one read for both");
    });
}

/// A scan took what it was to read next before it had read it: after an error, or where the caller had
/// given up waiting, the next call said that there is nothing more, and all that followed was missing.
#[test]
fn a_scan_goes_on_where_it_was_given_up_or_failed() {
    let world = world();
    let (meddler, cloud) = Meddler::over(&world.cloud(Process(0)));
    run(&world, async move {
        let (things, _, _, reader) = filled(&cloud).await;
        let session = Session::reader(reader.clone(), 99);
        let txn = session.begin(Level::Atomic);
        let mut scan = session.scan(&txn, things.root, None, None);
        let (mut given_up, mut failed) = (0, 0);
        for n in 0..RECORDS {
            // Before the call that waits for a leaf: it is asked for, and nobody waits.
            if let Some(found) = scan.next().now_or_never() {
                assert_eq!(found.unwrap().unwrap().0, key(&name(n)));
                continue;
            }
            given_up += 1;
            meddler.refuses_gets("page/", if given_up % 2 == 0 { 3 * 20 } else { 0 });
            let mut found = scan.next().await;
            while found.is_err() {
                failed += 1;
                meddler.refuses_gets("page/", 0);
                found = scan.next().await;
            }
            assert_eq!(found.unwrap().expect("there is more").0, key(&name(n)));
        }
        assert!(scan.next().await.unwrap().is_none());
        assert!(given_up > 10 && failed > 5, "{given_up} {failed}");
    });
}

/// The same of what a record names: its blob, and, in a probe, the record that an entry names.
#[test]
fn a_record_that_could_not_be_read_is_not_passed_over() {
    let world = world();
    let (meddler, cloud) = Meddler::over(&world.cloud(Process(0)));
    run(&world, async move {
        let settings = Settings { inline_bytes_max: 10, ttl: Duration::ZERO, ..small() };
        Store::create(&cloud, &settings, Backend::S3Log, 1).await.unwrap();
        let store = open(&cloud, settings).await;
        let things = store.create_collection("things").await.unwrap();
        store.create_index("things", "all", &SearchBy::Payload).await.unwrap();
        store.build_index("things", "all", |_| {}).await.unwrap();
        let session = Session::open(store.clone(), CLIENT).await.unwrap();
        let mut txn = session.begin(Level::Atomic);
        for (name, value) in [("a", "one"), ("b", "longer than ten bytes"), ("c", "two")] {
            txn.put(things.root, &key(name), Payload::new(value).unwrap()).unwrap();
        }
        session.commit(&mut txn).await.unwrap();
        store.sweep().await.unwrap();

        let txn = session.begin(Level::Basic);
        let mut scan = session.scan(&txn, things.root, None, None);
        assert_eq!(scan.next().await.unwrap().unwrap().0, key("a"));
        assert!(scan.next().now_or_never().is_none(), "its blob is on its way");
        meddler.refuses_gets("blob/", 3);
        scan.next().await.unwrap_err();
        assert_eq!(scan.next().await.unwrap().unwrap().0, key("b"));
        assert_eq!(scan.next().await.unwrap().unwrap().0, key("c"));

        let things = store.collection("things").await.unwrap();
        let all = Bound::Unbounded;
        let mut found = session.find(&txn, &things, "all", all, all).await.unwrap();
        assert_eq!(found.next().await.unwrap().unwrap().1.key, key("a"));
        assert!(found.next().now_or_never().is_none(), "its record is asked for again");
        meddler.refuses_gets("page/", 3);
        found.next().await.unwrap_err();
        assert_eq!(found.next().await.unwrap().unwrap().1.key, key("c"));
        assert!(found.next().await.unwrap().is_none());
    });
}

/// What a scan showed was no read: a record that was written after it, blindly over a copy of an older page,
/// could have a lower stamp than what stood there, and lost against that for ever.
#[test]
fn what_is_written_after_a_scan_counts_after_it() {
    let cases = Backend::ALL.into_iter().flat_map(|backend| {
        [Level::Atomic, Level::Monotonic].map(|level| [0, 1, 2].map(|how| (backend, level, how)))
    });
    for (backend, level, how) in cases.flatten() {
        let world = world();
        let cloud = world.cloud(Process(0));
        let got = run(&world, async move {
            Store::create(&cloud, &small(), backend, 1).await.unwrap();
            let (clock, ahead) = OddClock::over(&cloud);
            clock.set_ahead(60);
            let fast = open(&ahead, small()).await;
            let things = fast.create_collection("things").await.unwrap();
            let writer = Session::open(fast.clone(), 8).await.unwrap();
            for n in 0..16 {
                put(&writer, &things, &name(n), &"old".repeat(30)).await;
            }
            fast.sweep().await.unwrap();
            // One leaf that both know, and another that is read when it is new.
            let (x, y) = (key(&name(15)), key(&name(0)));
            let session = Session::open(open(&cloud, small()).await, CLIENT).await.unwrap();
            let txn = session.begin(level);
            session.read(&txn, things.root, &y).await.unwrap();
            // Later than all stamps of before; and then both clocks are as they were.
            cloud.clock.sleep(Duration::from_secs(200)).await;
            let mut both = writer.begin(Level::Atomic);
            for key in [&x, &y] {
                both.put(things.root, key, Payload::new("new").unwrap()).unwrap();
            }
            writer.commit(&mut both).await.unwrap();
            fast.sweep().await.unwrap();
            let mut txn = session.begin(level);
            {
                let mut scan = session.scan(&txn, things.root, Some(&x), None);
                match how {
                    0 => {
                        let (_, payload) = scan.next().await.unwrap().unwrap();
                        assert_eq!(payload, Payload::new("new").unwrap());
                    }
                    1 => assert_eq!(scan.next_key().await.unwrap().as_ref(), Some(&x)),
                    _ => assert!(scan.next_content().await.unwrap().is_some()),
                }
            }
            txn.put(things.root, &y, Payload::new("after").unwrap()).unwrap();
            session.commit(&mut txn).await.unwrap();
            get(&cloud, &things, &name(0)).await
        });
        assert_eq!(got.as_deref(), Some("after"), "{backend:?} {level:?} {how}");
    }
}
