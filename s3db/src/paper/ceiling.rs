//! How many commits a second go through one sequencer, in virtual time.
//!
//! ```text
//!   writers of one process          one swap for all who wait          as many as fit into the window
//!   writers, each a process         one swap each, one at a time       the others read, and try again
//! ```
//!
//! Each writer commits one transaction after the other, without a pause: a record of its own, so that no two are
//! in conflict, or one of a hundred that all read and write. What is counted is a window of some seconds, in which
//! the commits of before are brought to their pages as well: who commits faster than that waits for it.
//!
//! Latencies are [`Latency::TODAY`]; services and time are the model's, as in [`today`](super::today).

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use pager::{Budget, policy, pool::Pool};

use super::today::{fill, key, lock, payload_of};
use crate::{
    catalog::{Backend, Collection, Isolation},
    cloud::{
        CallKind,
        model::{Executor, Faults, Latency, Process, World},
    },
    commit::Session,
    error::StoreError,
    settings::Settings,
    store::Store,
};

/// Records that writers in conflict choose from.
pub const SHARED: u64 = 100;
/// Bytes of a record.
const RECORD_BYTES: usize = 100;
/// Until everybody has begun, and has what it needs.
const BEGIN: Duration = Duration::from_secs(5);
/// What is counted.
const WINDOW: Duration = Duration::from_secs(10);
/// How often work in the background looks for what is due, as an open database does.
const TICK: Duration = Duration::from_secs(1);
/// Memory for pages, of a process with many writers and of one with one.
const TOGETHER_BYTES: u64 = 64 << 20;
const ALONE_BYTES: u64 = 1 << 20;
/// Polls of a run, far beyond what one takes.
const STEPS_MAX: u64 = 200_000_000;

/// Who commits what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Writers {
    /// How many there are.
    pub count: u32,
    /// In one process; or each in one of its own.
    pub are_together: bool,
    /// All read and write [`SHARED`] records; or each writes one that is its own.
    pub are_in_conflict: bool,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Ceiling {
    /// Milliseconds of each commit, with the read before it if there was one, sorted.
    pub commits_ms: Vec<f64>,
    /// Transactions that were aborted, since another one had changed what they read or write.
    pub aborted: u64,
    /// Transactions that were given up, after [`Settings::attempts_max`](crate::Settings) swaps that others were
    /// faster than.
    pub given_up: u64,
    /// Puts of all, meanwhile: swaps, those that were refused included, and pages.
    pub puts: u64,
}

impl Ceiling {
    /// Commits per second.
    pub fn per_s(&self) -> f64 {
        self.commits_ms.len() as f64 / WINDOW.as_secs_f64()
    }

    /// The part of all transactions that was aborted.
    pub fn aborts(&self) -> f64 {
        self.part(self.aborted)
    }

    /// The part of all transactions that was given up.
    pub fn refusals(&self) -> f64 {
        self.part(self.given_up)
    }

    fn part(&self, of: u64) -> f64 {
        let all = self.commits_ms.len() as u64 + self.aborted + self.given_up;
        of as f64 / all.max(1) as f64
    }

    /// Puts per commit.
    pub fn puts_per_commit(&self) -> f64 {
        self.puts as f64 / self.commits_ms.len().max(1) as f64
    }
}

/// How a run works: as usual, but for snapshots, which live for seconds here. Of each the pages keep a version of
/// every record, and those of ten minutes of this would be large.
fn settings() -> Settings {
    Settings {
        snapshot_age: Duration::from_secs(2),
        owner_lease: Duration::ZERO,
        ..Settings::default()
    }
}

/// Shared by everybody in a run.
struct Race {
    writers: Writers,
    world: World,
    seen: Mutex<Ceiling>,
    error: Mutex<Option<StoreError>>,
    left: AtomicU32,
    is_over: AtomicBool,
}

/// Measures the ceiling of these writers. The backend has no part in it.
///
/// # Errors
/// None that the model makes; what a bug would say.
pub fn ceiling(writers: Writers, seed: u64) -> Result<Ceiling, StoreError> {
    let world = World::new(seed, Faults::NONE, Latency::TODAY);
    // Old versions are forgotten.
    world.be_of_2007();
    let race = Arc::new(Race {
        writers,
        world: world.clone(),
        seen: Mutex::default(),
        error: Mutex::default(),
        left: AtomicU32::new(writers.count),
        is_over: AtomicBool::new(false),
    });
    let admin = race.clone();
    world.time.spawn(Process(0), async move {
        let outcome = admin.clone().begin().await;
        admin.note(outcome);
    });
    Executor::new(world.time.clone(), seed ^ 0x5eed).run(u64::MAX, STEPS_MAX);
    if let Some(error) = lock(&race.error).take() {
        return Err(error);
    }
    if race.left.load(Ordering::Relaxed) > 0 {
        return Err(StoreError::Invalid(format!("the run of {writers:?} did not end")));
    }
    let mut seen = std::mem::take(&mut *lock(&race.seen));
    seen.commits_ms.sort_by(f64::total_cmp);
    Ok(seen)
}

impl Race {
    fn note(&self, outcome: Result<(), StoreError>) {
        if let Err(error) = outcome {
            lock(&self.error).get_or_insert(error);
            self.is_over.store(true, Ordering::Relaxed);
        }
    }

    async fn open(&self, process: Process) -> Result<Arc<Store>, StoreError> {
        let bytes = if self.writers.are_together { TOGETHER_BYTES } else { ALONE_BYTES };
        let pool = Pool::new(&Budget::new(bytes), policy::default_eviction());
        Store::open(self.world.cloud(process), settings(), &pool).await
    }

    async fn begin(self: Arc<Race>) -> Result<(), StoreError> {
        let world = &self.world;
        Store::create(&world.cloud(Process(0)), &settings(), Backend::S3Log, 1).await?;
        let store = self.open(Process(0)).await?;
        let isolation = Some(Isolation::Serializable);
        let of = store.create_collection_for("sequenced", isolation).await?;
        let filler = Session::open(store.clone(), 1).await?;
        fill(&filler, &of, u64::from(self.writers.count).max(SHARED)).await?;
        store.sweep().await?;
        filler.finish().await?;
        let from_us = world.time.now_us() + BEGIN.as_micros() as u64;
        let to_us = from_us + WINDOW.as_micros() as u64;
        let shared = match self.writers.are_together {
            true => Some(self.open_one(Process(10), 2).await?),
            false => None,
        };
        for number in 0..self.writers.count {
            let (race, of, shared) = (self.clone(), of.clone(), shared.clone());
            let process = match shared {
                Some(_) => Process(10),
                None => Process(10 + number),
            };
            world.time.spawn(process, async move {
                let run = async {
                    let session = match shared {
                        Some(session) => session,
                        None => race.open_one(process, u64::from(number) + 2).await?,
                    };
                    race.write(&session, &of, number, from_us, to_us).await
                };
                let outcome = run.await;
                race.note(outcome);
                if race.left.fetch_sub(1, Ordering::Relaxed) == 1 {
                    race.is_over.store(true, Ordering::Relaxed);
                }
            });
        }
        let race = self.clone();
        world.time.spawn(Process(1), async move {
            let time = &race.world.time;
            let puts = || race.world.ledger.charge(CallKind::Put).calls;
            time.sleep(from_us.saturating_sub(time.now_us())).await;
            let before = puts();
            time.sleep(to_us.saturating_sub(time.now_us())).await;
            lock(&race.seen).puts = puts() - before;
        });
        Ok(())
    }

    /// A process: its session, and its work in the background.
    async fn open_one(
        self: &Arc<Race>,
        process: Process,
        client: u64,
    ) -> Result<Arc<Session>, StoreError> {
        let store = self.open(process).await?;
        let session = Arc::new(Session::open(store.clone(), client).await?);
        let (race, alive) = (self.clone(), session.clone());
        self.world.time.spawn(process, async move {
            let interval = store.settings().checkpoint_interval;
            let mut since = Duration::ZERO;
            while !race.is_over.load(Ordering::Relaxed) {
                race.world.time.sleep(TICK.as_micros() as u64).await;
                since += TICK;
                if since >= interval {
                    since = Duration::ZERO;
                    store.make_all_due();
                }
                // What fails, as when too many want the same page, is due again.
                let _ = store.work().await;
                let _ = alive.keep_alive().await;
            }
        });
        Ok(session)
    }

    /// One transaction after the other.
    async fn write(
        &self,
        session: &Session,
        of: &Collection,
        number: u32,
        from_us: u64,
        to_us: u64,
    ) -> Result<(), StoreError> {
        let (world, time) = (&self.world, &self.world.time);
        // Not all in the same moment.
        time.sleep(world.below(TICK.as_micros() as u64)).await;
        while time.now_us() < to_us {
            let began_us = time.now_us();
            let mut txn = session.isolated(Isolation::Serializable);
            let which = match self.writers.are_in_conflict {
                true => world.below(SHARED),
                false => u64::from(number),
            };
            let record = key(which)?;
            let outcome = async {
                if self.writers.are_in_conflict {
                    txn.read(of, &record).await?;
                }
                txn.put(of, &record, &payload_of(number, RECORD_BYTES)?)?;
                txn.commit().await
            };
            let outcome = outcome.await;
            let ended_us = time.now_us();
            let is_counted = (from_us..to_us).contains(&ended_us);
            let mut seen = lock(&self.seen);
            match outcome {
                Ok(_) if is_counted => seen.commits_ms.push((ended_us - began_us) as f64 / 1e3),
                Err(StoreError::Aborted { .. }) => seen.aborted += u64::from(is_counted),
                Err(error) if error.is_passing() => seen.given_up += u64::from(is_counted),
                Ok(_) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paper::today::quantile;

    fn of(count: u32, are_together: bool, are_in_conflict: bool) -> Ceiling {
        let seen = ceiling(Writers { count, are_together, are_in_conflict }, 1).unwrap();
        println!(
            "{count} {are_together} {are_in_conflict}: {:.0}/s, {:.3} aborted, {:.3} given up, {:.2} puts, {:?} ms",
            seen.per_s(),
            seen.aborts(),
            seen.refusals(),
            seen.puts_per_commit(),
            [0.5, 0.99].map(|q| quantile(&seen.commits_ms, q)),
        );
        seen
    }

    /// The design, section 14.8: a swap takes as many as wait for it, so one process commits far more than one
    /// transaction per put, and processes beside each other no more than that.
    #[test]
    fn one_process_shares_swaps_and_processes_take_turns() {
        let alone = of(1, true, false);
        let put_s = 0.032;
        assert!((0.5..=1.1).contains(&(alone.per_s() * put_s)), "{}", alone.per_s());
        assert_eq!((alone.aborted, alone.given_up), (0, 0));
        let together = of(100, true, false);
        assert!(together.per_s() > 10.0 * alone.per_s(), "{}", together.per_s());
        assert!(together.puts_per_commit() < 0.5, "{}", together.puts_per_commit());
        assert_eq!(together.aborted, 0, "nobody writes what another one does");
        let apart = of(10, false, false);
        assert!(apart.per_s() < 2.0 * alone.per_s(), "{}", apart.per_s());
        assert!(apart.puts_per_commit() > 1.0);
        assert_eq!(apart.aborted, 0);
        // Where all want the same, somebody wins.
        let in_conflict = of(100, true, true);
        assert!(in_conflict.aborts() > 0.01 && in_conflict.per_s() > alone.per_s());
    }
}
