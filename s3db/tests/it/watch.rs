//! What waits, as those see it who watch.

use std::time::Duration;

use s3db::{
    Backend, Session, Settings, Store, Watcher,
    cloud::model::{Faults, Process},
};

use crate::{
    meddle::Meddler,
    mishaps::{CLIENT, put, settings},
    printed::{open, run, world},
};

/// Records wait until they are on their pages; the oldest tells how long. Nothing is taken by looking, and
/// what fails once is there the next time.
#[test]
fn what_waits_is_seen_and_not_taken() {
    for backend in Backend::ALL {
        let world = world(Faults::NONE);
        let (meddler, cloud) = Meddler::over(&world.cloud(Process(0)));
        run(&world, async move {
            let settings = Settings { ttl: Duration::from_millis(500), ..settings() };
            Store::create(&cloud, &settings, backend, 2).await.unwrap();
            let writer = open(&cloud, settings).await;
            let things = writer.create_collection("things").await.unwrap();
            let mut watcher = Watcher::new(open(&cloud, settings).await);
            let look = watcher.look().await.unwrap();
            assert_eq!((look.messages(), look.waiting(), look.lag_ms()), (0, 0, None));
            assert_eq!(look.pages, 1);

            let session = Session::open(writer.clone(), CLIENT).await.unwrap();
            for n in 0..3 {
                put(&session, &things, &format!("{n}"), "v").await;
                cloud.clock.sleep(Duration::from_secs(10)).await;
            }
            let look = watcher.look().await.unwrap();
            assert_eq!((look.clients, look.messages()), (1, 3), "{look:?}");
            // Of a queue some are seen.
            let (waiting, lag_ms) = (look.waiting(), look.lag_ms().unwrap());
            let least = if backend == Backend::S3Log { (3, 29_000) } else { (1, 9_000) };
            assert!((least.0..=3).contains(&waiting), "{backend:?}: {look:?}");
            assert!((least.1..33_000).contains(&lag_ms), "{backend:?}: {look:?}");
            let appended = (backend == Backend::S3Log).then_some(3);
            assert_eq!(look.appended, appended);
            assert_eq!(look.parts.len(), 1, "{look:?}");

            meddler.refuses_gets("", 1000);
            watcher.look().await.unwrap_err();
            meddler.refuses_gets("", 0);
            let again = watcher.look().await.unwrap();
            assert!(again.messages() == 3 && again.waiting() >= least.0, "{backend:?}: {again:?}");

            // All of it is there to be brought to its page.
            let done = writer.sweep().await.unwrap();
            assert_eq!((done.records, done.applied), (3, 3), "{backend:?}");
            cloud.clock.sleep(Duration::from_secs(1)).await;
            let look = watcher.look().await.unwrap();
            assert_eq!((look.waiting(), look.lag_ms()), (0, None), "{backend:?}: {look:?}");
            assert_eq!(look.appended, appended);
        });
    }
}
