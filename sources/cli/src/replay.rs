//! `extmem replay`: a recorded trace on other policies and budgets.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{self, BufReader, Write},
    path::{Path, PathBuf},
};

use pager::trace::{Outcome, Overview, Reader, Record, Replayer, TraceError};
use serde_json::json;
use sources::{price::S3_STANDARD, size};

use crate::{Failure, heat::Heat, with_causes};

/// Run eviction policies over a recorded trace.
#[derive(clap::Args)]
#[command(
    after_help = "Each policy at each budget: which share of the units that were asked for was in \
    place, and what fetching the others takes, without prefetch. Without --budget: a 16th, an 8th, a \
    quarter and half of what was touched, and all of it.\n\n\
    Examples:\n  \
    extmem replay users.trace\n  \
    extmem replay --budget 64MiB --budget 256MiB --json users.trace\n  \
    extmem replay --svg heat.svg users.trace"
)]
pub(crate) struct Args {
    /// Trace, as `extmem trace` records it
    file: PathBuf,
    /// Memory to try, as 64MiB; may be given more than once
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    budget: Vec<u64>,
    /// Draw what was touched when, and whether readers waited for it
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
}

/// Each is a pass over every access.
const BUDGETS_MAX: usize = 32;

/// What a first pass over a trace finds.
pub(crate) struct Seen {
    pub(crate) overview: Overview,
    /// For each region, how often it was asked for.
    pub(crate) accesses: Vec<u64>,
    pub(crate) complete: bool,
}

/// A first pass over the trace.
pub(crate) fn look_over(path: &Path) -> Result<Seen, Failure> {
    let mut seen = Seen { overview: Overview::new(), accesses: Vec::new(), complete: false };
    seen.complete = each(path, |record| {
        match record {
            Record::Opened { .. } => seen.accesses.push(0),
            Record::Access { region, kind, .. } if kind.is_access() => {
                seen.accesses[*region as usize] += 1;
            }
            _ => {}
        }
        seen.overview.record(record)
    })?;
    Ok(seen)
}

/// Calls `take` with every record. Returns whether the trace has its end.
fn each(
    path: &Path,
    mut take: impl FnMut(&Record) -> Result<(), TraceError>,
) -> Result<bool, Failure> {
    let told = |error: &dyn std::error::Error| {
        let text = format!("{}: {}", path.display(), with_causes(error));
        Failure::Told(text.replace(char::is_control, " "))
    };
    let file = File::open(path).map_err(|error| told(&error))?;
    if !file.metadata().map_err(|error| told(&error))?.is_file() {
        return Err(told(&io::Error::other("a trace is read twice, so it must be a file")));
    }
    let mut reader = Reader::new(BufReader::new(file)).map_err(|error| told(&error))?;
    while let Some(record) = reader.next_record().map_err(|error| told(&error))? {
        take(&record).map_err(|error| told(&error))?;
    }
    Ok(reader.is_complete())
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    if args.budget.len() > BUDGETS_MAX {
        return Err(Failure::Told(format!("at most {BUDGETS_MAX} budgets")));
    }
    let seen = look_over(&args.file)?;
    let touched = seen.overview.bytes_touched;
    let mut budgets = match &args.budget[..] {
        [] => [16, 8, 4, 2, 1].map(|part| touched / part).to_vec(),
        given => given.to_vec(),
    };
    budgets.dedup();
    let mut replayer = Replayer::new(&budgets);
    let mut heat = args.svg.as_ref().map(|_| Heat::new(&seen.accesses, seen.overview.ends_us));
    each(&args.file, |record| {
        if let Some(heat) = &mut heat {
            heat.add(record);
        }
        replayer.record(record)
    })?;
    if let (Some(path), Some(heat)) = (&args.svg, &heat) {
        let written = fs::write(path, heat.svg());
        written.map_err(|error| Failure::Told(format!("{}: {error}", path.display())))?;
    }
    let outcomes = replayer.outcomes();
    let text = match args.json {
        true => json(&seen, &outcomes),
        false => text(&seen, &outcomes),
    };
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Failure::output)
}

fn text(seen: &Seen, outcomes: &[Outcome]) -> String {
    let Seen { overview, complete, .. } = seen;
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a string does not fail.
        let _ = writeln!(out, "{name:<10}{value}");
    };
    line("time", format!("{:.3} s", overview.ends_us as f64 / 1e6));
    line(
        "accesses",
        format!(
            "{}: {} loads in place, {} that waited, {} page faults",
            overview.accesses(),
            overview.hits,
            overview.waits,
            overview.faults
        ),
    );
    if overview.lost > 0 {
        line("lost", format!("{}: the disk was too slow for them", overview.lost));
    }
    if !complete {
        line(
            "cut off",
            "the trace has no end: what recorded it was killed, or still runs".to_owned(),
        );
    }
    let gets = overview.fetches + overview.guesses;
    line(
        "requests",
        format!(
            "{gets} GET ({} of them guesses), {}, ${:.7}",
            overview.guesses,
            size::show(overview.bytes_fetched),
            S3_STANDARD.cost_usd(gets, overview.bytes_fetched),
        ),
    );
    let touched = size::show(overview.bytes_touched);
    line("touched", format!("{} units, {touched} of budget", overview.units_touched));
    let _ = writeln!(
        out,
        "\n{:<10}{:>12}{:>10}{:>12}{:>13}{:>14}",
        "policy", "budget", "hits", "GETs", "bytes", "cost"
    );
    for outcome in outcomes {
        let _ = writeln!(
            out,
            "{:<10}{:>12}{:>8.2} %{:>12}{:>13}{:>14}",
            outcome.policy,
            size::show(outcome.budget),
            100.0 * outcome.hit_ratio(),
            outcome.gets,
            size::show(outcome.bytes),
            format!("${:.7}", S3_STANDARD.cost_usd(outcome.gets, outcome.bytes)),
        );
    }
    out.push_str(
        "\nCosts are S3's list price: $0.0004 per 1,000 requests, transfer within the region \
                  free.\n",
    );
    out
}

fn json(seen: &Seen, outcomes: &[Outcome]) -> String {
    let Seen { overview, complete, .. } = seen;
    let gets = overview.fetches + overview.guesses;
    let outcomes: Vec<_> = outcomes
        .iter()
        .map(|outcome| {
            json!({
                "policy": outcome.policy,
                "budget_bytes": outcome.budget,
                "units": outcome.units,
                "hits": outcome.hits,
                "hit_ratio": outcome.hit_ratio(),
                "gets": outcome.gets,
                "bytes": outcome.bytes,
                "cost_usd": S3_STANDARD.cost_usd(outcome.gets, outcome.bytes),
            })
        })
        .collect();
    let object = json!({
        "seconds": overview.ends_us as f64 / 1e6,
        "complete": complete,
        "accesses": overview.accesses(),
        "load_hits": overview.hits,
        "load_waits": overview.waits,
        "faults": overview.faults,
        "lost": overview.lost,
        "gets": gets,
        "guesses": overview.guesses,
        "bytes": overview.bytes_fetched,
        "cost_usd": S3_STANDARD.cost_usd(gets, overview.bytes_fetched),
        "units_touched": overview.units_touched,
        "bytes_touched": overview.bytes_touched,
        "outcomes": outcomes,
    });
    format!("{object}\n")
}
