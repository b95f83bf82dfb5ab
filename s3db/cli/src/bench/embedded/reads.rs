//! Reads of records whose pages are in memory.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use s3db::{Collection, Db, Options, Settings};

use super::place::{Dice, Filled, key, number_of};
use crate::output::Failure;

/// Keys that are made before the clock starts.
const KEYS: u32 = 4096;

/// A client that has read everything once.
pub(super) struct Warm {
    db: Db,
    of: Collection,
    records: u32,
}

impl Warm {
    pub(super) async fn new(at: &Filled) -> Result<Warm, Failure> {
        // Nothing grows old: what is measured is memory.
        let settings = Settings { ttl: Duration::from_secs(24 * 3600), ..Settings::default() };
        let options = Options { settings, has_worker: false, ..Options::default() };
        let (db, of) = at.open(&options).await?;
        let mut found = 0;
        {
            let txn = db.begin();
            let mut scan = txn.scan(&of);
            while scan.next().await?.is_some() {
                found += 1;
            }
        }
        if found != at.records {
            return Err(Failure::Told(format!("{}: {found} records of {}", at.url, at.records)));
        }
        Ok(Warm { db, of, records: at.records })
    }

    /// Microseconds of each read for `window`, every one in a transaction of its own, and seconds of
    /// all of them. No service is called.
    pub(super) async fn round(
        &self,
        window: Duration,
        seed: u64,
    ) -> Result<(Vec<f64>, f64), Failure> {
        let mut dice = Dice(seed);
        let numbers: Vec<u32> = (0..KEYS).map(|_| dice.below(self.records)).collect();
        let keys = numbers.iter().map(|n| key(*n)).collect::<Result<Vec<_>, _>>()?;
        let fetched = self.db.store().pool_counts().fetched;
        let mut times = Vec::new();
        let began = Instant::now();
        while times.is_empty() || began.elapsed() < window {
            for (number, key) in numbers.iter().zip(&keys) {
                let asked = Instant::now();
                let found = black_box(self.db.begin().read(&self.of, key).await?);
                times.push(asked.elapsed().as_secs_f64() * 1e6);
                // Transactions before this one write the number of a key to it.
                if found.as_ref().map(number_of) != Some(*number) {
                    return Err(Failure::Told(format!("{key}: not the record that was written")));
                }
            }
        }
        let seconds = began.elapsed().as_secs_f64();
        if self.db.store().pool_counts().fetched != fetched {
            return Err(Failure::Told("pages were fetched: the pool was not warm".into()));
        }
        Ok((times, seconds))
    }
}
