//! `sweep`, `verify`, `gc` and `rekey`: what keeps a database in order.

use std::time::{Duration, Instant};

use s3db::{Backend, Checkpointed, Db, IndexCheck, Options, StoreError};
use serde_json::{Value, json};

use crate::output::{
    Failure, Failures, Output, Progress, Spend, open_without_disk, sequencer_text, sequencer_value,
    with_causes,
};

/// Rounds of a keeper that fail one after the other before it gives up. Each has tried for some seconds:
/// that is a quarter of an hour without an answer.
const ROUNDS_FAILED_MAX: u32 = 100;

#[derive(clap::Args)]
#[command(
    after_help = "Every database needs a process that sweeps now and then: what a client committed before it \
was killed waits in the log until someone does. With --every a round that fails is told on stderr, and the \
next one follows; after 100 in a row without an answer this ends.

Examples:
  s3db sweep file:///tmp/db
  s3db sweep file:///tmp/db --every 60
  s3db sweep s3://bucket/db --every 60 --spend 0.50
  s3db sweep s3://bucket/db --every 5 --own all"
)]
pub(crate) struct Sweep {
    /// The database
    url: String,
    /// Sweep again and again, with so many seconds in between
    #[arg(long, value_name = "SECONDS")]
    every: Option<u64>,
    /// Make these parts of the log its own, and sweep them alone: numbers of queues as in 0,3, or all.
    /// Other clients only append there meanwhile; they take over 30 s after the last sweep. Sweeps every
    /// 15 s at least; and every 5 minutes, the first time at once, all the rest too: what is nobody's part
    #[arg(long, value_name = "PARTS", requires = "every")]
    own: Option<String>,
    #[command(flatten)]
    spend: Spend,
}

#[derive(clap::Args)]
#[command(after_help = "Example:
  s3db checkpoint file:///tmp/db")]
pub(crate) struct Checkpoint {
    /// The database
    url: String,
}

impl Checkpoint {
    /// The same as a sweep.
    pub(crate) fn once(self) -> Sweep {
        Sweep { url: self.url, every: None, own: None, spend: Spend::default() }
    }
}

/// The parts that `--own` names.
fn parts(text: &str, all: u32) -> Result<Vec<u32>, Failure> {
    if text == "all" {
        return Ok((0..all).collect());
    }
    let part = |part: &str| part.trim().parse().ok().filter(|part| *part < all);
    let parts: Option<Vec<u32>> = text.split(',').map(part).collect();
    parts.ok_or_else(|| {
        let what = format!("--own {text}: all, or numbers from 0 to {} with commas", all - 1);
        Failure::Told(what)
    })
}

pub(crate) async fn sweep(args: &Sweep, output: &Output) -> Result<(), Failure> {
    let db = args.spend.open(&args.url, output.options()?, output).await?;
    let database = db.store().database();
    let all = if database.backend == Backend::S3Log { 1 } else { database.shards };
    let own = args.own.as_ref().map(|own| parts(own, all)).transpose()?;
    let mut keeper = Keeper { db: &db, output, own, swept: None };
    let Some(every) = args.every else {
        let (text, value) = Progress::during(output, &db, "sweeping", keeper.round()).await?;
        return output.finish(db, &text, &value).await;
    };
    // A claim is renewed within half a lease.
    let lease = keeper.own.as_ref().map(|_| db.store().settings().owner_lease.as_secs() / 2);
    let every = Duration::from_secs(every.min(lease.unwrap_or(u64::MAX)).max(1));
    let mut failures = Failures::without_answer(ROUNDS_FAILED_MAX);
    loop {
        // One tree that is damaged is not in the way of the others, nor of the next round.
        match Progress::during(output, &db, "sweeping", keeper.round()).await {
            Ok((text, value)) => {
                failures.none();
                output.say(&text, &value)?;
            }
            Err(error) => failures.one(output, "this round", error)?,
        }
        tokio::time::sleep(every).await;
    }
}

/// Who sweeps, again and again.
struct Keeper<'a> {
    db: &'a Db,
    output: &'a Output,
    /// The parts of the log that it makes its own, if it does.
    own: Option<Vec<u32>>,
    /// When an owner looked at the rest, at what is nobody's part, and nothing was in its way.
    swept: Option<Instant>,
}

impl Keeper<'_> {
    /// One round, and what came of it. What can be done is done, whatever else fails.
    async fn round(&mut self) -> Result<(String, Value), StoreError> {
        match self.own.is_some() {
            true => self.own().await,
            false => self.db.store().sweep().await.map(|done| told(String::new(), None, done)),
        }
    }

    /// One round of an owner.
    async fn own(&mut self) -> Result<(String, Value), StoreError> {
        let (store, wanted) = (self.db.store(), self.own.as_deref().unwrap_or(&[]));
        let tended = async {
            let own = store.own(self.db.client(), wanted).await?;
            store.tend(&own).await.map(|done| (own, done))
        };
        let tended = tended.await;
        // Whole transactions of clients that are gone, what curators approved and left, and the
        // sequencer are no part of the log that anyone can own; nor is what others claim and leave.
        let mut swept = Ok(Checkpointed::default());
        if self.swept.is_none_or(|at| at.elapsed() >= Options::default().sweep_interval) {
            let began = Instant::now();
            swept = store.sweep().await;
            // One that failed is due again in the next round.
            if swept.is_ok() {
                self.swept = Some(began);
            }
        }
        let (own, mut done) = match (tended, &swept) {
            (Err(error), Err(other)) => {
                Failures::tell(self.output, "the sweep of the rest", other);
                return Err(error);
            }
            (tended, _) => tended?,
        };
        done += swept?;
        let head = format!("{} of {} parts are its own; ", own.len(), wanted.len());
        Ok(told(head, Some(own), done))
    }
}

/// What came of a round, for people and for machines.
fn told(head: String, own: Option<Vec<u32>>, done: Checkpointed) -> (String, Value) {
    let mut text = format!(
        "{head}{} log records, {} of them new to their pages, {} leaves, {} put into quarantine",
        done.records, done.applied, done.leaves, done.poison
    );
    if done.gone > 0 {
        text.push_str(&format!(
            ", {} messages that came twice, or whose transactions somebody deleted from spilled/",
            done.gone
        ));
    }
    let mut value = json!({
        "records": done.records, "applied": done.applied, "leaves": done.leaves,
        "quarantined": done.poison, "gone": done.gone,
    });
    if let Some(own) = own {
        value["own"] = json!(own);
    }
    (text, value)
}

#[derive(clap::Args)]
#[command(
    after_help = "Changes nothing. Exit code 4 when something is wrong. The sequencer is there where a \
collection was created for isolation (init --isolation): that it is lost, damaged, or an old copy is a problem. \
Transactions that lie in objects, approvals and proposals, clients and claims of owners are read, too. Indexes \
that are ready are compared with their records, as by index check.

Example:
  s3db verify file:///tmp/db --json"
)]
pub(crate) struct Verify {
    /// The database
    url: String,
}

pub(crate) async fn verify(args: &Verify, output: &Output) -> Result<(), Failure> {
    let db = match Db::open_with(&args.url, &Options { disk: None, ..output.options()? }).await {
        // What says what the database is. Nothing else can be looked at without it.
        Err(error @ (StoreError::Damaged { .. } | StoreError::Misled { .. })) => {
            let what = with_causes(&error);
            let text = format!("1 problem\n  {what}");
            output.say(&text, &json!({"problems": [what], "problem_count": 1}))?;
            return Err(Failure::Problems);
        }
        // The others are said as ever.
        Err(_) => open_without_disk(&args.url, output).await?,
        Ok(db) => db,
    };
    let progress = Progress::new(output);
    let mut found = db
        .store()
        .verify(|pages, of| progress.show(|| format!("{pages} of about {of} pages")))
        .await?;
    let mut indexes = 0_u64;
    let compared = |of: &str, index: &str, checked: Result<IndexCheck, StoreError>| {
        indexes += 1;
        let what = match checked {
            Ok(checked) if !checked.is_wrong() => return,
            Ok(IndexCheck { missing: 0, dangling, strange, .. }) => format!(
                "has {} entries that no record says: s3db index build removes them",
                dangling + strange
            ),
            Ok(IndexCheck { missing, records, .. }) => {
                format!("lacks {missing} of {records} records: s3db index build adds them")
            }
            Err(error) => format!("cannot be compared with its records: {}", with_causes(&error)),
        };
        found.problems.push(format!("index {index} of {of} {what}"));
        found.problem_count += 1;
    };
    let shown = |records: u64| progress.show(|| format!("{records} records of an index"));
    db.store().check_indexes(shown, compared).await?;
    progress.end();
    let mut text = format!(
        "{} trees of up to {} levels: {} pages, {} bytes, {} records, {} tombstones\n\
         {} blobs of {} bytes, {} that no record names\n\
         {} pages that nothing leads to, {} parts of the log, {} records or messages waiting, {} in quarantine\n\
         {} indexes compared with their records\n",
        found.trees,
        found.levels,
        found.pages,
        found.bytes,
        found.records,
        found.tombstones,
        found.blobs,
        found.blob_bytes,
        found.blob_orphans,
        found.orphans,
        found.log,
        found.waiting,
        found.quarantined,
        indexes,
    );
    if found.stray_count > 0 {
        text.push_str(&format!(
            "{} records of the log that no page will show: a sweep puts them into quarantine, or has\n",
            found.stray_count
        ));
        for stray in &found.strays {
            text.push_str(&format!("  {stray}\n"));
        }
    }
    if let Some(state) = &found.sequencer {
        text.push_str(&sequencer_text(state));
        text.push('\n');
    }
    match found.problem_count {
        0 => text.push_str("no problems"),
        count => {
            let problems = if count == 1 { "problem" } else { "problems" };
            text.push_str(&format!("{count} {problems}"));
            for problem in &found.problems {
                text.push_str("\n  ");
                text.push_str(problem);
            }
        }
    }
    let value = json!({
        "trees": found.trees, "levels": found.levels, "pages": found.pages, "bytes": found.bytes,
        "records": found.records, "tombstones": found.tombstones, "orphans": found.orphans,
        "blobs": found.blobs, "blob_bytes": found.blob_bytes, "blob_orphans": found.blob_orphans,
        "log": found.log, "waiting": found.waiting, "quarantined": found.quarantined,
        "strays": found.strays, "stray_count": found.stray_count, "indexes": indexes,
        "sequencer": found.sequencer.as_ref().map(sequencer_value),
        "problems": found.problems, "problem_count": found.problem_count,
    });
    output.finish(db, &text, &value).await?;
    if found.problem_count > 0 { Err(Failure::Problems) } else { Ok(()) }
}

#[derive(clap::Args)]
#[command(after_help = "Safe at any time, beside any number of clients.

Examples:
  s3db gc file:///tmp/db
  s3db gc file:///tmp/db --grace 600 --spend 1")]
pub(crate) struct Gc {
    /// The database
    url: String,
    /// Pages put within so many seconds stay, and blobs that a record named so long ago: longer than any cache
    /// keeps a page, and any scan or read takes
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    grace: u64,
    #[command(flatten)]
    spend: Spend,
}

pub(crate) async fn gc(args: &Gc, output: &Output) -> Result<(), Failure> {
    let db = args.spend.open(&args.url, output.options()?, output).await?;
    let collect = db.store().collect_garbage(Duration::from_secs(args.grace));
    let done = Progress::during(output, &db, "collecting", collect).await?;
    let text = format!(
        "{} pages deleted, {} wait, {} tombstones dropped, {} leaves emptied, {} unlinked, \
         {} forgot dropped indexes, {} clients forgotten, {} versions dropped, {} data of commits deleted, \
         the log of {} lives deleted, {} spilled transactions deleted, {} blobs deleted, {} wait",
        done.deleted,
        done.waiting,
        done.pruned,
        done.buried,
        done.unlinked,
        done.unfollowed,
        done.retired,
        done.versions,
        done.data,
        done.log,
        done.spilled,
        done.blobs,
        done.blobs_waiting,
    );
    let value = json!({
        "deleted": done.deleted, "waiting": done.waiting, "pruned": done.pruned,
        "buried": done.buried, "unlinked": done.unlinked, "unfollowed": done.unfollowed,
        "retired": done.retired,
        "blobs": done.blobs, "blobs_waiting": done.blobs_waiting, "spilled": done.spilled,
        "versions": done.versions, "data": done.data, "log": done.log,
    });
    output.finish(db, &text, &value).await
}

#[derive(clap::Args)]
#[command(
    after_help = "To change the key: write a new one as the last line of every client's file; then, when all \
have it, move it to the front everywhere; then rekey. When that says that no other key is needed, take \
the old line out. Any number of clients may be at work meanwhile. Exit code 4 when something does not \
open, waits in a queue, or cannot be brought to its page.

Example:
  s3db rekey s3://bucket/db --keys keys"
)]
pub(crate) struct Rekey {
    /// The database
    url: String,
}

pub(crate) async fn rekey(args: &Rekey, output: &Output) -> Result<(), Failure> {
    let db = open_without_disk(&args.url, output).await?;
    let progress = Progress::new(output);
    let done = db.store().rekey(|seen| progress.show(|| format!("{seen} objects"))).await?;
    progress.end();
    let mut text = format!(
        "{} objects encrypted again, {} had the first key before\n",
        done.sealed, done.current
    );
    for example in &done.examples {
        text.push_str(&format!("does not open: {example}\n"));
    }
    if let Some(error) = &done.unswept {
        text.push_str(&format!("not all that waits came to its page: {}\n", with_causes(error)));
    }
    text.push_str(&match (done.unopened, done.waiting) {
        (0, 0) => "no other key is needed".to_owned(),
        (unopened, waiting) => format!(
            "{unopened} objects do not open, about {waiting} messages wait: keep the other keys, and \
             rekey again"
        ),
    });
    let value = json!({
        "sealed": done.sealed, "current": done.current, "unopened": done.unopened,
        "examples": done.examples, "waiting": done.waiting,
        "unswept": done.unswept.as_ref().map(|error| with_causes(error)),
    });
    output.finish(db, &text, &value).await?;
    if done.unopened + done.waiting > 0 || done.unswept.is_some() {
        Err(Failure::Problems)
    } else {
        Ok(())
    }
}
