//! The ceiling of isolated transactions: all of them pass one object, which is swapped for many at a time.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use s3db::{Collection, Db, Isolation, Options, cloud::CallKind};
use tokio::task::JoinSet;

use super::place::{Folder, Medium, key, payload};
use crate::output::Failure;

/// Writers of one process, each of which waits for its commit before it begins the next transaction. As many as
/// share a swap at most, and fewer.
pub(super) const WRITERS: [u32; 4] = [1, 16, 64, 256];
const COLLECTION: &str = "sequenced";

/// A database with a collection for serializable transactions, in one process.
pub(super) struct Sequenced {
    pub(super) medium: Medium,
    db: Arc<Db>,
    of: Collection,
}

/// What came of one round.
pub(super) struct Round {
    /// Milliseconds of each commit.
    pub(super) commits_ms: Vec<f64>,
    /// Seconds that they took together.
    pub(super) window_s: f64,
    /// Puts meanwhile: swaps, and pages.
    pub(super) puts: u64,
}

impl Sequenced {
    pub(super) async fn new(folder: &Folder, medium: Medium) -> Result<Sequenced, Failure> {
        let url = folder.url(medium, "sequenced");
        let db = match medium {
            Medium::Directory => Db::create(&url, &Options::default()).await?,
            Medium::Memory => Db::open_with(&url, &Options::default()).await?,
        };
        let of = db.create_isolated_collection(COLLECTION, Isolation::Serializable).await?;
        let sequenced = Sequenced { medium, db: Arc::new(db), of };
        // What is done once is done before the clock starts.
        one(&sequenced.db, &sequenced.of, 0).await?;
        Ok(sequenced)
    }

    /// `writers` writers commit for `window`, each a record of its own: none is in another's way.
    pub(super) async fn round(&self, writers: u32, window: Duration) -> Result<Round, Failure> {
        let puts = || self.db.ledger().charge(CallKind::Put).calls;
        let (before, began) = (puts(), Instant::now());
        let mut tasks = JoinSet::new();
        for number in 0..writers {
            let (db, of) = (self.db.clone(), self.of.clone());
            tasks.spawn(async move {
                let mut times = Vec::new();
                while times.is_empty() || began.elapsed() < window {
                    times.push(one(&db, &of, number).await?);
                }
                Ok::<_, Failure>(times)
            });
        }
        let mut commits_ms = Vec::new();
        while let Some(ended) = tasks.join_next().await {
            let times = ended.map_err(|error| Failure::Told(format!("a writer: {error}")))??;
            commits_ms.extend(times);
        }
        Ok(Round { commits_ms, window_s: began.elapsed().as_secs_f64(), puts: puts() - before })
    }

    pub(super) async fn close(self) -> Result<(), Failure> {
        match Arc::try_unwrap(self.db) {
            Ok(db) => Ok(db.close().await?),
            Err(_) => Ok(()),
        }
    }
}

/// One transaction: milliseconds of its commit.
async fn one(db: &Db, of: &Collection, number: u32) -> Result<f64, Failure> {
    let mut txn = db.begin_for(of);
    txn.put(of, &key(number)?, payload(number)?)?;
    let began = Instant::now();
    txn.commit().await?;
    Ok(began.elapsed().as_secs_f64() * 1e3)
}
