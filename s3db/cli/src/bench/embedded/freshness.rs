//! How old what others read is: from a commit until another client sees it.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use s3db::{Options, Settings};

use super::place::{Filled, key, number_of, payload};
use crate::output::Failure;

/// Between two commits, and between two looks.
const COMMITS: Duration = Duration::from_millis(40);
const LOOKS: Duration = Duration::from_millis(2);
/// What is not seen after so long is an error.
const PATIENCE: Duration = Duration::from_secs(60);

/// How soon others are to see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// The work in the background brings it to its page; the reader asks again after a while.
    Background,
    /// A checkpoint after each commit, and a reader that asks each time.
    AtOnce,
}

impl Pace {
    pub(super) const ALL: [Pace; 2] = [Pace::Background, Pace::AtOnce];

    pub(super) fn name(self) -> &'static str {
        match self {
            Pace::Background => "in the background",
            Pace::AtOnce => "at once",
        }
    }

    pub(super) fn settings(self) -> Settings {
        let half = Duration::from_millis(500);
        let (checkpoint_interval, ttl) = match self {
            Pace::Background => (half, half),
            Pace::AtOnce => (Settings::default().checkpoint_interval, Duration::ZERO),
        };
        Settings { checkpoint_interval, ttl, ..Settings::default() }
    }

    /// Interval, TTL and lease, in seconds: within that others see a commit, whoever dies.
    pub(super) fn bound_s(self) -> f64 {
        let settings = self.settings();
        let interval = match self {
            Pace::Background => settings.checkpoint_interval,
            Pace::AtOnce => Duration::ZERO,
        };
        (interval + settings.ttl + settings.lease).as_secs_f64()
    }
}

/// Milliseconds from the return of each commit until another client reads what it wrote: one writes a
/// record again and again for `window`, one reads it.
pub(super) async fn ages_ms(
    at: &Filled,
    pace: Pace,
    window: Duration,
) -> Result<Vec<f64>, Failure> {
    let options = Options { settings: pace.settings(), ..Options::default() };
    let (writer, of) = at.open(&options).await?;
    let (reader, read_of) = at.open(&options).await?;
    // The n-th is that of the number n.
    let committed: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let times = committed.clone();
    let own = key(0)?;
    let writing = async {
        let (own, began) = (key(0)?, Instant::now());
        let mut number = 0;
        // The first says that nothing is left of those who wrote before.
        while number == 0 || began.elapsed() < window {
            let mut txn = writer.begin();
            txn.put(&of, &own, payload(FIRST + number)?)?;
            txn.commit().await?;
            times.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
            number += 1;
            if pace == Pace::AtOnce {
                writer.checkpoint().await?;
            }
            tokio::time::sleep(COMMITS).await;
        }
        Ok::<u32, Failure>(number)
    };
    let done = Mutex::new(None);
    let reading = async {
        let (mut ages, mut seen) = (Vec::new(), 0);
        let mut last = Instant::now();
        loop {
            let found = reader.begin().read(&read_of, &own).await?;
            let now = Instant::now();
            let shown = found.map_or(0, |found| number_of(&found)).saturating_sub(FIRST - 1);
            {
                let committed = committed.lock().unwrap_or_else(PoisonError::into_inner);
                let shown = (shown as usize).min(committed.len());
                // Seen before its commit returned: at once.
                let newly = committed.get(seen..shown).unwrap_or_default();
                if !newly.is_empty() {
                    last = now;
                }
                ages.extend(newly.iter().map(|at| (now - *at).as_secs_f64() * 1e3));
                seen = shown.max(seen);
            }
            let count: Option<u32> = *done.lock().unwrap_or_else(PoisonError::into_inner);
            if count == Some(seen as u32) {
                return Ok::<Vec<f64>, Failure>(ages);
            }
            if last.elapsed() > PATIENCE {
                return Err(Failure::Told(format!("{}: commits that nobody sees", at.url)));
            }
            tokio::time::sleep(LOOKS).await;
        }
    };
    let both = async {
        let count = writing.await?;
        *done.lock().unwrap_or_else(PoisonError::into_inner) = Some(count);
        Ok::<(), Failure>(())
    };
    let ((), ages) = tokio::try_join!(both, reading)?;
    // What it found there is put back: other measurements rely on it.
    let mut txn = writer.begin();
    txn.put(&of, &key(0)?, payload(0)?)?;
    txn.commit().await?;
    writer.close().await?;
    reader.close().await?;
    Ok(ages)
}

/// The first number that is written: no record of a filled database has it.
const FIRST: u32 = 1 << 30;
