//! extmem-s3db beside SlateDB: the operations that both have, on one object store in memory, as it is
//! and with the latencies of S3.
//!
//! ```text
//!   workload  -->  ours    -->  extmem-s3db            -->  model::Store (memory, latency, counts)
//!             -->  slate   -->  SlateDB --> adapter    -->  the same
//! ```

#![forbid(unsafe_code)]

#[cfg(feature = "slatedb")]
mod adapter; // the store, as SlateDB asks it
mod model; // the store
mod ours; // extmem-s3db
#[cfg(feature = "slatedb")]
mod slate; // SlateDB
mod workload; // what is measured
// The machine, its tables and where they go: as `s3db bench` has it.
#[path = "../../cli/src/bench/machine.rs"]
mod machine;
#[path = "../../cli/src/bench/section.rs"]
mod section;

use std::{future::Future, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use clap::Parser;
use machine::{date, machine};
use model::{Latency, Store};
#[cfg(not(feature = "slatedb"))]
use ours::{Ours as Waiting, Ours as AtOnce};
use section::{Section, table};
use serde_json::{Value, json};
#[cfg(feature = "slatedb")]
use slate::{AtOnce, Waiting};
use workload::{Round, Size, filled, round};

const ROUNDS: u32 = 3;
/// What the table calls them.
const NAMES: [&str; 3] = ["s3db", "SlateDB", "SlateDB, flushed at once"];

/// The same operations by extmem-s3db and by SlateDB, on the same objects
#[derive(Parser)]
struct Args {
    /// Seconds that each figure is measured for, in all rounds together: 0.01 to 600
    #[arg(long, default_value_t = 3.0, value_parser = seconds)]
    seconds: f64,
    /// One short round with few records
    #[arg(long)]
    quick: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Put the tables into this file, in place of what is between <!-- slatedb --> and
    /// <!-- end slatedb -->
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    (0.01..=600.0).contains(&seconds).then_some(seconds).ok_or("0.01 to 600".to_owned())
}

/// Who is measured.
pub(crate) trait Peer: Sized {
    /// A process opens the database, which is created if it is not there.
    fn open(store: &Arc<Store>) -> impl Future<Output = Result<Self, String>>;
    /// The same after another one was killed: until what that put can be read.
    fn recover(store: &Arc<Store>) -> impl Future<Output = Result<Self, String>>;
    /// So many records, where they stay.
    fn fill(&self, records: u32) -> impl Future<Output = Result<(), String>>;
    /// One record, durable when it returns.
    fn put(&self, number: u32) -> impl Future<Output = Result<(), String>>;
    /// Whether it is there.
    fn get(&self, number: u32) -> impl Future<Output = Result<bool, String>>;
    /// How many records there are, read one by one.
    fn scan(&self) -> impl Future<Output = Result<u32, String>>;
    fn close(self) -> impl Future<Output = Result<(), String>>;
}

/// What went wrong, with its causes.
pub(crate) fn told(error: impl std::error::Error) -> String {
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("s3db-peer: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Figures under one latency, one for each of [`NAMES`].
struct Figures {
    name: &'static str,
    of: [Round; 3],
}

fn run(args: &Args) -> Result<(), String> {
    if cfg!(not(feature = "slatedb")) {
        return Err("this was built without SlateDB, to be checked: nothing is beside us".into());
    }
    let machine = machine();
    let rounds = if args.quick { 1 } else { ROUNDS };
    let (seconds, records, left) =
        if args.quick { (0.05, 2000, 10) } else { (args.seconds, 100_000, 100) };
    let window = Duration::from_secs_f64(seconds / f64::from(rounds));
    let size = Size { records, window, left };
    let mut all = Vec::new();
    for (name, latency) in [("memory", Latency::MEMORY), ("memory, S3's latencies", Latency::S3)] {
        let mut of: [Round; 3] = Default::default();
        let ours = filled::<ours::Ours>(latency, size)?;
        let theirs =
            [filled::<Waiting>(latency, size)?, filled::<AtOnce>(latency, size)?];
        for _ in 0..rounds {
            of[0].add(round::<ours::Ours>(&ours, latency, size, true)?);
            of[1].add(round::<Waiting>(&theirs[0], latency, size, false)?);
            of[2].add(round::<AtOnce>(&theirs[1], latency, size, false)?);
        }
        all.push(Figures { name, of });
    }
    let tables = tables(&all, size, rounds);
    if let Some(file) = &args.write {
        let text = text(&tables, args, &machine);
        Section { name: "slatedb", text: &text }
            .write_into(file)
            .map_err(|error| format!("{}: {error}", file.display()))?;
    }
    match args.json {
        true => println!("{}", json_of(&all, size, rounds, &machine)),
        false => println!("{tables}"),
    }
    Ok(())
}

fn figure(value: f64) -> String {
    match value {
        value if value >= 99.95 => format!("{value:.0}"),
        value if value >= 9.995 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

fn tables(all: &[Figures], size: Size, rounds: u32) -> String {
    let mut text = format!(
        "{} records of {} bytes, {rounds} rounds in turn. Times are medians, with the 99th percentile \
         where there are many; rates are medians of the rounds. One object store for both, in memory, \
         that adds nothing or what S3 takes (20 ms for a get, 32 ms for a put, 11 ns per byte, each up to \
         30 % more or less).\n\n\
         What differs: SlateDB is an LSM tree with one writer, who fences the one before; s3db takes any \
         number at once, none of which waits for another. A put of SlateDB is durable with the next flush \
         of its log, 100 ms apart as it comes, or when it asks for one (flushed at once); one of s3db \
         is a commit at the atomic level, on s3-log, for which the page is read that the record belongs to, \
         if it is not in memory (one beside the one before has it there). SlateDB reads its own puts at once, and s3db its own as \
         well; other processes see them after a checkpoint, or a flush of the table. Recovery: SlateDB replays its \
         log when it is opened; with s3db any process sweeps, which \
         reads and frees the objects of a log 16 at a time, and all see it then. SlateDB's scan reads as \
         far ahead as ours ({} KB by 64 tasks), which it does not by default.\n\n",
        size.records,
        workload::PAYLOAD_BYTES,
        6400,
    );
    for Figures { name, of } in all {
        text += &format!("### In {name}\n\n");
        let rows = (0..of[0].all().len()).map(|n| {
            let cells = of.iter().map(|round| {
                let samples = round.all()[n].1;
                match (samples.quantile(0.5), samples.quantile(0.99)) {
                    (Some(median), Some(p99)) if samples.values.len() >= 100 => {
                        format!("{}, {}", figure(median), figure(p99))
                    }
                    (Some(median), _) => figure(median),
                    // One writer.
                    _ => "-".to_owned(),
                }
            });
            std::iter::once(of[0].all()[n].0.to_owned()).chain(cells).collect()
        });
        let heads: Vec<&str> = std::iter::once("").chain(NAMES).collect();
        table(&mut text, &heads, rows);
    }
    text += "### Calls for each of them\n\nPuts and lists, and gets, deletes and heads, those in the background \
             included, with S3's latencies.\n\n";
    if let Some(Figures { of, .. }) = all.last() {
        let rows = (0..of[0].all().len()).map(|n| {
            let cells = of.iter().map(|round| {
                let samples = round.all()[n].1;
                let each = |calls: u64| calls as f64 / samples.operations as f64;
                match samples.operations {
                    0 => "-".to_owned(),
                    _ => {
                        format!("{:.2}, {:.2}", each(samples.calls.puts), each(samples.calls.gets))
                    }
                }
            });
            std::iter::once(operation(of[0].all()[n].0).to_owned()).chain(cells).collect()
        });
        let heads: Vec<&str> = std::iter::once("").chain(NAMES).collect();
        table(&mut text, &heads, rows);
    }
    text.truncate(text.trim_end().len());
    text
}

/// Its name without the unit.
fn operation(name: &str) -> &str {
    let name = name.strip_suffix(", ms").or(name.strip_suffix(", us")).unwrap_or(name);
    match name {
        "puts per second, 8 at once in one process" => "a put, 8 at once in one process",
        "puts per second, 8 processes with one each" => "a put, 8 processes with one each",
        "records per second, scan of all, cold" => "scan of all, cold",
        name => name,
    }
}

fn json_of(all: &[Figures], size: Size, rounds: u32, machine: &str) -> Value {
    let row = |store: &str, who: &str, what: &str, samples: &workload::Samples| {
        json!({
            "store": store, "of": who, "figure": what, "median": samples.quantile(0.5),
            "p99": samples.quantile(0.99), "samples": samples.values.len(),
            "operations": samples.operations, "puts": samples.calls.puts, "gets": samples.calls.gets,
        })
    };
    let mut rows = Vec::new();
    for Figures { name, of } in all {
        for (who, round) in NAMES.iter().zip(of) {
            rows.extend(round.all().map(|(what, samples)| row(name, who, what, samples)));
        }
    }
    json!({
        "date": date(), "machine": machine, "records": size.records, "rounds": rounds,
        "window_s": size.window.as_secs_f64(), "figures": rows,
    })
}

/// The section of BENCHMARKS.md.
fn text(tables: &str, args: &Args, machine: &str) -> String {
    let quick = if args.quick { " SLATEDB_ARGS=--quick" } else { "" };
    format!(
        "## 12. Beside SlateDB\n\n**What do the operations take that s3db and SlateDB 0.18 both have, on \
         the same object store?**\n\n{tables}\n\nMeasured {} by `make bench-slatedb{quick}` on {machine}.",
        date()
    )
}
