//! Whole clusters of clients, in virtual time, with everything going wrong, from one seed.
//!
//! ```text
//!   plan + seed --> cluster (clients, crashes, stalls, second lives) --> quiesce --> sweep --> check
//! ```
//!
//! What runs is the code that runs in production; only services, time and chance are the model's.
//! After the last sweep the store is compared with what the clients know of their transactions, and
//! the invariants of the design, section 17, are checked. The same seed gives the same run, call by
//! call, so a failing one can be replayed with a trace.

mod stage; // what all of them stand on
mod audit; // the invariants, at each change
mod check; // the invariants, when nothing moves any more
mod cluster; // clients at work
mod curated; // clients that propose, and curators who decide
mod history; // what clients know of their transactions
pub mod isolation; // anomalies of histories
pub mod linear; // histories of compare and swap
mod recorder; // what is done to objects that are swapped
mod versioned; // clients whose transactions are isolated
mod printed; // clients of 2008

use std::{collections::BTreeMap, time::Duration};

pub use check::Violation;
pub use curated::Decided;
pub use history::{Attempt, Outcome};
pub use printed::{PrintedPlan, PrintedReport, run_printed};

use crate::{
    FailPoint,
    catalog::{Backend, Isolation},
    cloud::{
        model::{Answer, Faults, Latency, Mishap},
        queue::MESSAGE_BYTES_MAX,
    },
    settings::{Rules, Settings},
};

/// Bytes of a part of a blob.
const PART_BYTES: usize = 20;

/// What a run does. The seed decides the rest.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The log backend.
    pub backend: Backend,
    /// Queues of pending updates.
    pub shards: u32,
    /// Clients.
    pub clients: u32,
    /// Transactions that each client tries.
    pub transactions: u32,
    /// Keys that they fight over.
    pub keys: u32,
    /// What goes wrong.
    pub faults: Faults,
    /// Probability, per second and client, that a client is started again while it still runs.
    pub second_life: f64,
    /// Probability that a client that crashed comes back.
    pub comes_back: f64,
    /// Which rules hold.
    pub rules: Rules,
    /// Bytes above which a leaf is split: small, so that trees grow.
    pub leaf_bytes_max: usize,
    /// Whether someone collects garbage while the clients work.
    pub has_janitor: bool,
    /// Whether clients find no collection, and each creates it.
    pub has_founders: bool,
    /// Whether the records have an index.
    pub index: Indexed,
    /// Whether pages are kept on a disk, too, which all processes share and which lies; and memory is short.
    pub has_disk: bool,
    /// Whether objects and messages are sealed, with another key from midway on.
    pub is_sealed: bool,
    /// Whether there are those who claim the log as their own: they stall and crash like everyone, one of
    /// them never checkpoints, and one claims by a clock that is wrong.
    pub has_owners: bool,
    /// Whether the collection is curated: clients propose, curators decide, and somebody goes around them.
    pub is_curated: bool,
    /// Whether clients run transactions of this level, and no others, in a collection that was created for it.
    pub isolation: Option<Isolation>,
    /// Whether there are two collections, and transactions write to both.
    pub has_two: bool,
    /// Whether about half of the payloads are blobs, of a few parts each.
    pub has_blobs: bool,
    /// Whether transactions of more than one record are too large for a message.
    pub is_large: bool,
    /// Whether clients are as slow as they may be, by the age of tombstones, and slower: they wait between
    /// a blob and its commit, fall asleep in the middle of that, or give it up and rest for so long that
    /// all that it wrote is garbage.
    pub is_sluggish: bool,
    /// Whether every other transaction reads what waits in the log, too.
    pub is_fresh: bool,
    /// Clients leave what they commit in the log, and somebody sweeps it so often.
    pub sweeps_every: Option<Duration>,
    /// Age from which tombstones are dropped.
    pub tombstone_age: Duration,
    /// How long a snapshot can be read at least.
    pub snapshot_age: Duration,
    /// How long clients work, in virtual time.
    pub work: Duration,
    /// How long nobody is left after that but one who has the database open, and does nothing with it: as long
    /// as his worker runs.
    pub idle: Duration,
}

/// Whether the records of a run have an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Indexed {
    /// They have none.
    Not,
    /// From the beginning.
    Always,
    /// It is made and filled while the clients work.
    Later,
}

impl Default for Plan {
    fn default() -> Plan {
        Plan {
            backend: Backend::S3Log,
            shards: 2,
            clients: 3,
            transactions: 8,
            keys: 24,
            faults: Faults::ALL,
            second_life: 0.01,
            comes_back: 0.7,
            rules: Rules::HARDENED,
            leaf_bytes_max: 900,
            has_janitor: true,
            has_founders: false,
            index: Indexed::Not,
            has_disk: false,
            is_sealed: false,
            has_owners: false,
            is_curated: false,
            isolation: None,
            has_two: false,
            has_blobs: false,
            is_large: false,
            is_sluggish: false,
            is_fresh: false,
            sweeps_every: None,
            tombstone_age: Duration::from_secs(15 * 24 * 3600),
            snapshot_age: Duration::from_secs(20),
            work: Duration::from_secs(60),
            idle: Duration::ZERO,
        }
    }
}

impl Plan {
    /// Names of plans, for [`Plan::named`].
    pub const NAMES: [&'static str; 29] = [
        "usual",
        "crowd",
        "splits",
        "deaths",
        "restarts",
        "clocks",
        "dates",
        "founders",
        "index",
        "build",
        "index-deaths",
        "build-deaths",
        "blobs",
        "blob-deaths",
        "blob-index",
        "spills",
        "spill-deaths",
        "fresh",
        "disk",
        "owners",
        "expiry",
        "two",
        "sealed",
        "snapshot",
        "serializable",
        "version-blobs",
        "version-index",
        "version-build",
        "curated",
    ];

    /// A plan by its name, so that tests and replays agree.
    pub fn named(name: &str) -> Option<Plan> {
        let usual = Plan::default();
        Some(match name {
            "usual" => usual,
            // Many clients on few keys.
            "crowd" => Plan { clients: 8, keys: 3, transactions: 5, shards: 1, ..usual },
            // Many splits at once.
            "splits" => {
                Plan { clients: 4, keys: 300, transactions: 20, leaf_bytes_max: 500, ..usual }
            }
            // Leaves that lose all their records die, and their keys go to the right, while others
            // write there.
            "deaths" => Plan {
                clients: 4,
                keys: 40,
                transactions: 30,
                leaf_bytes_max: 300,
                faults: Faults::NONE,
                // Everything is on its page within half a minute here.
                tombstone_age: Duration::from_secs(40),
                second_life: 0.0,
                work: Duration::from_secs(240),
                ..usual
            },
            // One life after the other, long enough that claims of stamps are raised, on machines whose
            // clocks are nearly as wrong as they may be.
            "restarts" => Plan {
                transactions: 100,
                second_life: 0.03,
                comes_back: 1.0,
                faults: Faults { skew_max: Duration::from_secs(110), ..Faults::BEFORE },
                work: Duration::from_secs(200),
                ..usual
            },
            // Clocks are set, forth and back, and machines sleep, all the time.
            "clocks" => Plan {
                transactions: 60,
                second_life: 0.03,
                comes_back: 1.0,
                faults: Faults {
                    skew_max: Duration::from_secs(50),
                    clock_jump: 0.03,
                    suspended: 0.6,
                    ..Faults::ALL
                },
                work: Duration::from_secs(150),
                ..usual
            },
            // One answer in fifty tells a time that is up to two months ahead, while garbage goes by it.
            "dates" => {
                let blobs = Plan::named("blob-deaths")?;
                Plan { faults: Faults { date_jump: 0.02, ..blobs.faults }, ..blobs }
            }
            // Everyone finds an empty database, and creates the collection.
            "founders" => Plan {
                clients: 6,
                transactions: 3,
                has_founders: true,
                second_life: 0.05,
                work: Duration::from_secs(30),
                ..usual
            },
            // Every record brings its entry in an index along.
            "index" => Plan {
                clients: 4,
                transactions: 15,
                index: Indexed::Always,
                leaf_bytes_max: 700,
                ..usual
            },
            // The index is made meanwhile.
            "build" => Plan { clients: 4, transactions: 30, index: Indexed::Later, ..usual },
            "index-deaths" => Plan { index: Indexed::Always, ..Plan::named("deaths")? },
            // Leaves die while the index is made, and everything goes wrong.
            "build-deaths" => Plan {
                index: Indexed::Later,
                faults: Faults::ALL,
                tombstone_age: usual.tombstone_age,
                ..Plan::named("deaths")?
            },
            // Garbage collection looks at blobs that are on their way all the time.
            "blobs" => Plan { clients: 4, transactions: 12, has_blobs: true, ..usual },
            // And takes those of records that were written again, and of transactions that were given up, while
            // everything goes wrong; nothing for as long as tombstones stay, or no tombstone could go.
            "blob-deaths" => Plan {
                has_blobs: true,
                is_sluggish: true,
                keys: 120,
                leaf_bytes_max: 700,
                faults: Faults {
                    stall_max: Duration::from_secs(20),
                    late_max: Duration::from_secs(10),
                    // However long after it was deleted.
                    redelivered: 0.0,
                    // Half of what ages are measured by, here.
                    suspended: 0.0,
                    ..Faults::ALL
                },
                tombstone_age: Duration::from_secs(160),
                work: Duration::from_secs(800),
                ..Plan::named("deaths")?
            },
            // What is written together lies in an object, which a message names.
            "spills" => Plan { clients: 4, transactions: 12, is_large: true, ..usual },
            // Garbage collection takes what nobody names while others put the same.
            "spill-deaths" => {
                Plan { is_large: true, has_blobs: false, ..Plan::named("blob-deaths")? }
            }
            // Most pages are on a disk alone, if they are there.
            "disk" => Plan { has_disk: true, ..Plan::named("splits")? },
            // Most leave the log to somebody, who may be dead, asleep or idle.
            "owners" => {
                Plan { has_owners: true, clients: 4, transactions: 15, second_life: 0.0, ..usual }
            }
            // Messages get a minute old. Nobody brings one to its page but a sweeper, in time.
            "expiry" => Plan {
                clients: 4,
                transactions: 15,
                sweeps_every: Some(Duration::from_secs(4)),
                faults: Faults { expires: Some(Duration::from_secs(60)), ..Faults::ALL },
                work: Duration::from_secs(150),
                ..usual
            },
            // Transactions over two collections are whole or not at all, whatever becomes of either tree.
            "two" => Plan {
                clients: 4,
                transactions: 15,
                keys: 40,
                has_two: true,
                leaf_bytes_max: 500,
                ..usual
            },
            // Whoever is there sees frames and nothing else; then the key changes. Pages on a disk are sealed, too.
            "sealed" => {
                Plan { is_sealed: true, has_disk: true, transactions: 12, keys: 60, ..usual }
            }
            // Few keys, so that transactions meet; leaves that split between the versions of a record.
            "snapshot" => Plan {
                clients: 4,
                transactions: 24,
                keys: 12,
                isolation: Some(Isolation::Snapshot),
                leaf_bytes_max: 700,
                ..usual
            },
            "serializable" => {
                Plan { isolation: Some(Isolation::Serializable), ..Plan::named("snapshot")? }
            }
            // Payloads of isolated transactions are blobs, which are collected when no snapshot sees them, and
            // not while somebody who sleeps is still to commit them.
            "version-blobs" => Plan {
                isolation: Some(Isolation::Serializable),
                keys: 16,
                transactions: 24,
                ..Plan::named("blob-deaths")?
            },
            // Records of isolated transactions have an index, which is read at snapshots, too.
            "version-index" => Plan { index: Indexed::Always, ..Plan::named("serializable")? },
            // It is made meanwhile, at the weaker level, some payloads are in blobs, and those have no entries.
            "version-build" => Plan {
                index: Indexed::Later,
                has_blobs: true,
                isolation: Some(Isolation::Snapshot),
                tombstone_age: Duration::from_secs(160),
                ..Plan::named("serializable")?
            },
            // Few keys, so that proposals meet.
            "curated" => Plan {
                is_curated: true,
                index: Indexed::Always,
                transactions: 12,
                keys: 9,
                leaf_bytes_max: 500,
                ..usual
            },
            "blob-index" => Plan { has_blobs: true, ..Plan::named("build")? },
            // Half of the transactions look into the log before they read, and the others, of the same
            // sessions, do not. A look at a queue finds a tenth of what is there.
            "fresh" => {
                let index = Plan::named("index")?;
                let faults = Faults { sampled: 0.9, ..index.faults };
                Plan { is_fresh: true, transactions: 20, faults, ..index }
            }
            // Not one of the names above, since it does not hold: some calls never end, and it is to be seen
            // that it is seen.
            "hung" => {
                Plan { faults: Faults { hung: 0.003, ..Faults::NONE }, second_life: 0.0, ..usual }
            }
            _ => return None,
        })
    }

    /// A plan in which somebody comes to `point` again and again, and crashes there now and then, and
    /// nowhere else by name. `None` if nobody comes there with this log.
    pub fn drill(point: FailPoint, backend: Backend) -> Option<Plan> {
        let has_queues = backend != Backend::S3Log;
        let (name, is_there) = match point {
            FailPoint::Claimed
            | FailPoint::Stamped
            | FailPoint::Appended
            | FailPoint::Drained
            | FailPoint::Put => ("usual", true),
            FailPoint::Fencing | FailPoint::Freed => ("usual", !has_queues),
            FailPoint::Forwarded | FailPoint::PutAside => ("usual", has_queues),
            FailPoint::Created | FailPoint::Split | FailPoint::Discarded | FailPoint::Touched => {
                ("splits", true)
            }
            FailPoint::Named | FailPoint::Planted => ("founders", true),
            FailPoint::Implied => ("index", true),
            FailPoint::Followed | FailPoint::Filled => ("build", true),
            FailPoint::PartsPut => ("blobs", true),
            FailPoint::LargePut => ("spills", has_queues),
            FailPoint::Marked | FailPoint::Unparted => ("blob-deaths", true),
            FailPoint::Spilled
            | FailPoint::Sequenced
            | FailPoint::Versioned
            | FailPoint::Advanced => ("serializable", true),
            FailPoint::Approved | FailPoint::Decided => ("curated", true),
            FailPoint::Emptied => ("deaths", !has_queues),
            FailPoint::Settled
            | FailPoint::Buried
            | FailPoint::Inherited
            | FailPoint::Forgotten
            | FailPoint::Deleted
            | FailPoint::Retired => ("deaths", true),
        };
        let mut plan = Plan::named(name).filter(|_| is_there)?;
        plan.backend = backend;
        plan.faults.crash_at = 0.25;
        plan.faults.crash_only_at = Some(point);
        if point == FailPoint::Touched {
            // Somebody stands still between the pages of a split and what leads to them.
            (plan.keys, plan.leaf_bytes_max, plan.clients) = (100, 400, 3);
            plan.second_life = 0.0;
            plan.faults = Faults {
                stall: 0.15,
                stall_max: Duration::from_secs(40),
                crash_at: 1.0,
                crash_only_at: Some(point),
                ..Faults::NONE
            };
        }
        Some(plan)
    }

    /// Whether tombstones are dropped within the run.
    fn prunes(&self) -> bool {
        self.tombstone_age < Duration::from_secs(24 * 3600)
    }

    /// How long nothing happens before the last garbage is collected, if there is any that waits for
    /// that.
    fn rest(&self) -> Duration {
        // One and a half is how old a blob must be, and stamps may be ahead of the clock.
        if self.has_blobs || self.is_large { 3 * self.tombstone_age } else { Duration::ZERO }
    }

    /// How the clients of a run are set: everything short, so that it happens within the run.
    fn settings(&self) -> Settings {
        Settings {
            leaf_bytes_max: self.leaf_bytes_max,
            inner_bytes_max: 500,
            ttl: Duration::from_secs(4),
            checkpoint_interval: Duration::from_secs(2),
            lease: Duration::from_secs(5),
            // Nobody asks for claims where there are none.
            owner_lease: Duration::from_secs(if self.has_owners { 6 } else { 0 }),
            owner_patience: Duration::from_secs(12),
            records_per_checkpoint_max: 20,
            attempts_max: 6,
            backoff: Duration::from_millis(30),
            clock_ahead_max: Duration::from_secs(120),
            tombstone_age: self.tombstone_age,
            reader_factor: 1.0,
            // Reached by some dozen changes.
            own_bytes_max: 4000,
            look_bytes_max: 100_000,
            inline_bytes_max: if self.has_blobs { 45 } else { crate::record::INLINE_BYTES_MAX },
            // Of one record at most.
            message_bytes_max: if self.is_large { 200 } else { MESSAGE_BYTES_MAX },
            part_bytes: PART_BYTES,
            // Left behind by those who stall.
            window_commits_max: 12,
            snapshot_age: self.snapshot_age,
            rules: self.rules,
        }
    }
}

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The seed it followed from.
    pub seed: u64,
    /// Invariants that did not hold.
    pub violations: Vec<Violation>,
    /// Transactions that were committed.
    pub committed: u64,
    /// Transactions of which the client never learned the outcome.
    pub uncertain: u64,
    /// Transactions that were not committed.
    pub failed: u64,
    /// Processes that crashed.
    pub crashes: u64,
    /// Calls of the services.
    pub calls: u64,
    /// Pages that garbage collection deleted.
    pub collected: u64,
    /// Blobs that it deleted while clients were at work.
    pub blobs_collected: u64,
    /// Transactions too large for a message, which nobody named, that it deleted meanwhile.
    pub spills_collected: u64,
    /// Blobs that records named at the end.
    pub blobs: u64,
    /// Leaves of the tree at the end.
    pub leaves: u64,
    /// Records that indexes of isolated collections led to.
    pub probed: u64,
    /// What curators did.
    pub decided: Decided,
    /// Files that were found on the disk, and how often something was wrong there.
    pub disk: (u64, u64),
    /// What calls were answered.
    pub answers: BTreeMap<Answer, u64>,
    /// How often what went wrong.
    pub met: BTreeMap<Mishap, u64>,
    /// Fail points that somebody came to: how often, and how often somebody crashed there.
    pub fail_points: BTreeMap<FailPoint, (u64, u64)>,
    /// Virtual time it took.
    pub virtual_time: Duration,
    /// Every call, if it was asked for.
    pub trace: Vec<String>,
}

/// Runs `plan` with `seed`.
pub fn run(plan: &Plan, seed: u64) -> Report {
    run_as(plan, seed, false)
}

fn run_as(plan: &Plan, seed: u64, trace: bool) -> Report {
    match plan.isolation {
        None if plan.is_curated => curated::run(plan, seed, trace, &Latency::ROUGH),
        None => cluster::run(plan, seed, trace, &Latency::ROUGH),
        Some(isolation) => versioned::run(plan, isolation, seed, trace, &Latency::ROUGH),
    }
}

/// The same run, with a trace of every call.
pub fn replay(plan: &Plan, seed: u64) -> Report {
    run_as(plan, seed, true)
}
