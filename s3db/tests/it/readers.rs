//! The reader rule (paper, 5.3): what a client that is gone left in the log comes to its page because
//! somebody reads there.

use std::time::Duration;

use s3db::{
    Backend, Collection, Level, Session, Settings, Store,
    cloud::{
        CallKind, Cloud, Ledger,
        ledger::charged_to,
        model::{Faults, Process},
    },
};

use crate::{
    mishaps::{CLIENT, key, metered, put, settings},
    printed::{open, run, world},
};

const SECOND: Duration = Duration::from_secs(1);

/// Copies as young as the interval is short.
fn short() -> Settings {
    let interval = Duration::from_secs(2);
    Settings { checkpoint_interval: interval, ttl: interval, ..settings() }
}

/// What a session that reads or scans sees of the only record.
async fn seen(session: &Session, of: &Collection, scans: bool) -> String {
    let txn = session.begin(Level::Basic);
    let payload = match scans {
        true => {
            let mut scan = session.scan(&txn, of.root, None, None);
            scan.next().await.unwrap().map(|(_, payload)| payload)
        }
        false => session.read(&txn, of.root, &key("k")).await.unwrap(),
    };
    payload.expect("it is there").to_string()
}

/// A database with a record that is on its page, and a change of it in the log.
async fn left_behind(cloud: &Cloud, backend: Backend, settings: Settings) -> Collection {
    Store::create(cloud, &settings, backend, 2).await.unwrap();
    let store = open(cloud, settings).await;
    let things = store.create_collection("things").await.unwrap();
    let session = Session::open(store.clone(), 8).await.unwrap();
    put(&session, &things, "k", "old").await;
    store.sweep().await.unwrap();
    put(&session, &things, "k", "new").await;
    things
}

/// With s3-log a reader had its own stream looked at, which held nothing; with queues nobody sent on what lay
/// in those of whole transactions. And scans had nothing looked at.
#[test]
fn what_the_dead_left_is_brought_to_who_reads() {
    for backend in Backend::ALL {
        for scans in [false, true] {
            let world = world(Faults::NONE);
            let cloud = world.cloud(Process(0));
            run(&world, async move {
                let things = left_behind(&cloud, backend, short()).await;
                let session = Session::reader(open(&cloud, short()).await, CLIENT);
                assert_eq!(seen(&session, &things, scans).await, "old");
                for _ in 0..40 {
                    cloud.clock.sleep(SECOND).await;
                    session.store().work().await.unwrap();
                    if seen(&session, &things, scans).await == "new" {
                        return;
                    }
                }
                panic!("{backend:?}, scans: {scans}: it is still in the log after 20 intervals");
            });
        }
    }
}

/// Who only read had a stream listed that did not exist, up to once a second.
#[test]
fn who_reads_old_pages_pays_for_next_to_nothing() {
    for backend in Backend::ALL {
        let world = world(Faults::NONE);
        let cloud = world.cloud(Process(0));
        run(&world, async move {
            let things = left_behind(&cloud, backend, settings()).await;
            open(&cloud, settings()).await.sweep().await.unwrap();
            let session = Session::reader(open(&metered(&cloud), settings()).await, CLIENT);
            let calls = Ledger::new();
            let hour = async {
                for second in 0..3600 {
                    cloud.clock.sleep(SECOND).await;
                    assert_eq!(seen(&session, &things, second % 2 == 0).await, "new");
                    if second % 15 == 0 {
                        session.store().make_all_due();
                    }
                    session.store().work().await.unwrap();
                }
            };
            charged_to(&calls, hour).await;
            let lists = calls.charge(CallKind::List).calls;
            match backend {
                // Its looks: after 15, 30, 60 s and so on, then every 16 min. The first one finds the
                // newest object of a stream, and lists that.
                Backend::S3Log => assert!((5..=16).contains(&lists), "{lists} lists"),
                _ => assert_eq!(lists, 0),
            }
        });
    }
}

/// No page is looked after where that is switched off, and a session that commits has its own work done.
#[test]
fn a_factor_of_zero_is_no_rule() {
    for backend in Backend::ALL {
        let world = world(Faults::NONE);
        let cloud = world.cloud(Process(0));
        run(&world, async move {
            let off = Settings { reader_factor: 0.0, ..short() };
            let things = left_behind(&cloud, backend, off).await;
            let session = Session::reader(open(&cloud, off).await, CLIENT);
            for _ in 0..60 {
                cloud.clock.sleep(SECOND).await;
                session.store().work().await.unwrap();
                assert_eq!(seen(&session, &things, true).await, "old");
                assert!(!session.store().has_work());
            }
        });
    }
}
