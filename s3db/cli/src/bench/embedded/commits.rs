//! Commits: one client, and several that know nothing of each other.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use s3db::{Collection, Db, Level, Options};
use tokio::{sync::Barrier, task::JoinSet};

use super::place::{Dice, Filled, Medium, key, payload};
use crate::output::Failure;

/// Records that a transaction changes, on leaves chosen at random.
pub(super) const CHANGES: u32 = 3;
/// Transactions of each client before the clock starts: they fetch the pages of the tree.
const WARM_UP: u32 = 10;
/// Transactions of a round, of all clients together, after which it is over before its time: embedded queues
/// look through all that is in them at each receive, and in a directory each message is a file.
pub(super) fn round_max(medium: Medium) -> u32 {
    match medium {
        Medium::Directory => 300,
        Medium::Memory => 4000,
    }
}

/// Attempts of a client to bring what it committed to pages that others change as well.
const SETTLE_MAX: u32 = 50;

/// What came of one round.
pub(super) struct Round {
    /// Milliseconds of each commit.
    pub(super) commits_ms: Vec<f64>,
    /// Seconds that they took together.
    pub(super) window_s: f64,
    /// Seconds until all of it was on its pages.
    pub(super) settling_s: f64,
}

/// `clients` clients commit for `window`, each a handle with a pool and a log of its own, as a process
/// would be; then all of it is brought to its pages.
pub(super) async fn round(
    at: &Filled,
    level: Level,
    clients: u32,
    window: Duration,
    seed: u64,
) -> Result<Round, Failure> {
    let barrier = Arc::new(Barrier::new(clients as usize));
    // All of them, before any starts: one that failed would leave the others at the barrier.
    let mut opened = Vec::new();
    for _ in 0..clients {
        opened.push(at.open(&Options::default()).await?);
    }
    let mut tasks = JoinSet::new();
    for (number, (db, of)) in opened.into_iter().enumerate() {
        let client = Client {
            db,
            of,
            level,
            records: at.records,
            most: (round_max(at.medium) / clients) as usize,
            dice: Dice(seed ^ (number as u64) << 32),
        };
        tasks.spawn(client.commit(barrier.clone(), window));
    }
    let mut done = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        done.push(ended.map_err(|error| Failure::Told(format!("a client: {error}")))??);
    }
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    let mut round = Round { commits_ms: Vec::new(), window_s: 0.0, settling_s: 0.0 };
    for (db, times, seconds) in done {
        round.commits_ms.extend(times);
        round.window_s = seconds.max(round.window_s);
        tasks.spawn(settle(db));
    }
    while let Some(ended) = tasks.join_next().await {
        ended.map_err(|error| Failure::Told(format!("a client: {error}")))??;
    }
    round.settling_s = began.elapsed().as_secs_f64();
    Ok(round)
}

/// Brings what a client committed to its pages, and closes it.
async fn settle(db: Db) -> Result<(), Failure> {
    for _ in 1..SETTLE_MAX {
        // All of them want the same few pages: who comes too often too late comes again.
        if db.checkpoint().await.is_ok() {
            break;
        }
    }
    Ok(db.close().await?)
}

struct Client {
    db: Db,
    of: Collection,
    level: Level,
    records: u32,
    /// Transactions.
    most: usize,
    dice: Dice,
}

impl Client {
    /// Returns the database for what is left to be done, the time of each commit in milliseconds, and
    /// seconds of all of them.
    async fn commit(
        mut self,
        barrier: Arc<Barrier>,
        window: Duration,
    ) -> Result<(Db, Vec<f64>, f64), Failure> {
        let mut warm = Ok(());
        for _ in 0..WARM_UP {
            warm = self.one().await.map(drop);
            if warm.is_err() {
                break;
            }
        }
        // Also after a failure, or the others would wait.
        barrier.wait().await;
        warm?;
        let mut times = Vec::new();
        let began = Instant::now();
        while times.is_empty() || (times.len() < self.most && began.elapsed() < window) {
            times.push(self.one().await?);
        }
        Ok((self.db, times, began.elapsed().as_secs_f64()))
    }

    /// One transaction: milliseconds of its commit.
    async fn one(&mut self) -> Result<f64, Failure> {
        let mut txn = self.db.begin_at(self.level);
        for _ in 0..CHANGES {
            let number = self.dice.below(self.records);
            txn.put(&self.of, &key(number)?, payload(number)?)?;
        }
        let began = Instant::now();
        txn.commit().await?;
        Ok(began.elapsed().as_secs_f64() * 1e3)
    }
}
