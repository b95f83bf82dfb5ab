//! What reading cost: `--stats`.

use std::{
    fmt::Write as _,
    io::Write as _,
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde_json::json;
use sources::price::S3_STANDARD;

use pager::RegionStats;
use sources::traffic::TrafficCount;

use crate::{
    bytes,
    open::{Database, Opener},
};

/// How `--stats` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Form {
    /// One line for each number.
    Text,
    /// One JSON object in one line.
    Json,
}

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Prints to stderr what reading cost: faults, loads, GETs, bytes, their share of the database,
    /// seconds, and dollars at S3's list price ($0.0004 per 1,000 requests; transfer within the
    /// region is free).
    #[arg(long, value_name = "FORM", num_args = 0..=1, require_equals = true,
          default_missing_value = "text")]
    stats: Option<Form>,
}

impl Args {
    /// Prints the numbers, if they were asked for. Where stderr is closed, nobody reads them.
    pub(crate) fn print(&self, tally: &Tally, opener: &Opener<'_>) {
        let Some(form) = self.stats else { return };
        let tally = tally.0.lock().unwrap_or_else(PoisonError::into_inner);
        let cost = Cost {
            count: opener.traffic(),
            seconds: opener.began().elapsed().as_secs_f64(),
            tally,
        };
        let text = match form {
            Form::Text => text(&cost),
            Form::Json => json(&cost),
        };
        let _ = std::io::stderr().write_all(text.as_bytes());
    }
}

/// What is counted of databases before they are closed.
#[derive(Default)]
pub(crate) struct Tally(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    region: RegionStats,
    /// Bytes of all databases.
    total: u64,
    databases: u64,
    /// Databases whose index was used.
    indexed: u64,
}

impl Tally {
    /// What was counted of databases that are still open.
    pub(crate) fn of(databases: &[Database<'_>]) -> Tally {
        let tally = Tally::default();
        databases.iter().for_each(|database| tally.add(database));
        tally
    }

    /// Adds what was counted of a database.
    pub(crate) fn add(&self, database: &Database<'_>) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.databases += 1;
        counts.total = counts.total.saturating_add(database.bytes());
        counts.indexed += u64::from(database.reader.index().is_some());
        database.add_region_stats(&mut counts.region);
    }
}

/// What reading cost.
struct Cost<'t> {
    count: TrafficCount,
    seconds: f64,
    tally: MutexGuard<'t, Counts>,
}

/// Share of `part` in `whole`, in percent. Bytes fetched twice count twice, so it can exceed 100.
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 }
}

fn text(cost: &Cost<'_>) -> String {
    let Cost { count, seconds, tally } = cost;
    let Counts { region, total, databases, indexed } = &**tally;
    let total = *total;
    let cost = count.cost_usd(&S3_STANDARD);
    let share = percent(count.bytes, total);
    let (fetched, whole) = (bytes::show(count.bytes), bytes::show(total));
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a string does not fail.
        let _ = writeln!(out, "{name:<10}{value}");
    };
    line("faults", region.faults.to_string());
    line("loads", format!("{} ({} found their bytes in place)", region.loads, region.load_hits));
    line("requests", format!("{} GET, {} HEAD", count.gets, count.stats));
    line("bytes", format!("{} ({fetched}), {share:.2} % of {whole}", count.bytes));
    line("index", format!("used for {indexed} of {databases} databases"));
    line("time", format!("{seconds:.3} s"));
    line(
        "cost",
        format!(
            "${cost:.7} at S3's list price: $0.0004 per 1,000 requests, transfer within the \
             region free"
        ),
    );
    out
}

fn json(cost: &Cost<'_>) -> String {
    let Cost { count, seconds, tally } = cost;
    let Counts { region, total, databases, indexed } = &**tally;
    let total = *total;
    let object = json!({
        "faults": region.faults,
        "loads": region.loads,
        "load_hits": region.load_hits,
        "prefetched_units": region.prefetched,
        "prefetched_units_unused": region.prefetch_unused,
        "gets": count.gets,
        "heads": count.stats,
        "errors": count.errors,
        "bytes": count.bytes,
        "databases": databases,
        "databases_indexed": indexed,
        "database_bytes": total,
        "percent_of_database": percent(count.bytes, total),
        "seconds": seconds,
        "cost_usd": count.cost_usd(&S3_STANDARD),
        "price": "S3 Standard list price: $0.0004 per 1,000 requests, transfer within the region free",
    });
    format!("{object}\n")
}
