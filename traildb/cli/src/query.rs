//! `tdb query`: how many events, trails and users match.
//!
//! ```text
//!   shards --> filter bound to each --> scan in parallel --> counts, UUIDs --> sums, distinct UUIDs
//! ```

use std::{fmt::Write as _, time::Instant};

use indicatif::HumanCount;
use serde_json::json;
use traildb::shards::{Found, Match, Query};

use crate::{
    dates,
    failure::Failure,
    filtering,
    output::{self, Output},
    selection::{self, Selection},
    shards::{self, Named, Shards},
    stats::{self, Tally},
    threads,
};

const NOTES: &str = "\
A trail is counted in each database that has events of it, a user (a UUID) once. With --trails the
UUIDs that match come one on a line, in their order, with the number of their events and the times
of the first and the last one that match. The first column is a list for `tdb dump -u @FILE`.

Examples:
  tdb query -i edits.tdb -F 'user=alice user=bob & title!='
  tdb query s3://bucket/01.tdb s3://bucket/02.tdb --from 2016-03 --until 2016-04 --json
  tdb query logs -F 'page=\"Main Page\"' --trails --keep-going";

/// Counts the events, trails and users that match.
#[derive(clap::Args)]
#[command(after_help = format!("{}\n\n{NOTES}", filtering::HELP))]
pub(crate) struct Args {
    #[command(flatten)]
    inputs: shards::Args,

    #[command(flatten)]
    selection: selection::Args,

    /// Prints the trails that match, not only how many.
    #[arg(long)]
    trails: bool,

    /// Prints one JSON object; with --trails one for each trail.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    threads: threads::Args,

    #[command(flatten)]
    stats: stats::Args,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let selection = args.selection.read(false)?;
    let named = args.inputs.named(Some("a"))?;
    selection.without_damaged_index(|selection| ask(args, &named, selection))
}

/// Asks all databases, and prints the answer.
fn ask(args: &Args, named: &Named, selection: &Selection<'_>) -> Result<(), Failure> {
    let began = Instant::now();
    let shards = args.inputs.shards(named, selection.index)?;
    let names: Vec<&str> = shards.all.names().collect();
    let mut query = Query::default().threads(args.threads.count());
    if let Some(expr) = &selection.expr {
        query = query.filter(expr);
    }
    if let Some(uuids) = &selection.uuids {
        query = query.uuids(uuids);
    }
    if args.trails {
        query = query.list_trails();
    }
    let tally = Tally::default();
    let found = shards.all.query_with(query, |number, reader| {
        tally.add(&shards.opener.database(names[number], &reader));
    });
    // What a failed query has cost is worth knowing too, but not before it begins anew.
    if !matches!(found, Err(Failure::Index(_))) {
        args.stats.print(&tally, &shards.opener);
    }
    let found = found?;
    if let Some(uuids) = &selection.uuids
        && found.trails_asked == 0
        && found.shards > 0
        && !uuids.is_empty()
    {
        // They may be in one that was passed over.
        shards.result()?;
        return Err(selection::none_there(uuids.len(), found.shards));
    }

    if args.trails {
        print_trails(&found.matches, args.json)?;
    } else {
        let seconds = began.elapsed().as_secs_f64();
        let text = match args.json {
            true => json(&found, &shards, seconds),
            false => text(&found, seconds),
        };
        output::print(&text)?;
    }
    shards.result()
}

fn print_trails(matches: &[Match], json: bool) -> Result<(), Failure> {
    let mut output = Output::create("-")?;
    let mut line = String::new();
    for Match { uuid, events, first, last, .. } in matches {
        line.clear();
        // Writing to a string does not fail.
        let _ = match json {
            true => writeln!(
                line,
                "{{\"uuid\":\"{uuid}\",\"events\":{events},\"first\":{first},\"last\":{last}}}"
            ),
            false => writeln!(line, "{uuid} {events} {first} {last}"),
        };
        output.put(line.as_bytes())?;
    }
    output.finish()
}

fn text(found: &Found, seconds: f64) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "{name:<10}{value}");
    };
    let share = |part: u64, all: u64| {
        let percent = part as f64 * 100.0 / all.max(1) as f64;
        format!("{} of {} ({percent:.2} %)", HumanCount(part), HumanCount(all))
    };
    line("events", share(found.events, found.events_all));
    line("trails", share(found.trails, found.trails_all));
    line("users", HumanCount(found.users).to_string());
    if let (Some(first), Some(last)) = (found.first, found.last) {
        line("time", format!("{first} to {last}"));
        if let (Some(first), Some(last)) = (dates::shown(first), dates::shown(last)) {
            line("", format!("{first} to {last}, if these are seconds since 1970"));
        }
    }
    if found.shards != 1 {
        line("databases", HumanCount(found.shards).to_string());
    }
    line("asked in", format!("{seconds:.3} s"));
    out
}

fn json(found: &Found, shards: &Shards<'_>, seconds: f64) -> String {
    let object = json!({
        "events": found.events,
        "trails": found.trails,
        "users": found.users,
        "first": found.first,
        "last": found.last,
        "events_all": found.events_all,
        "trails_all": found.trails_all,
        "databases": found.shards,
        "databases_indexed": found.indexed,
        "passed_over": shards.losses_json(),
        "seconds": seconds,
    });
    format!("{object}\n")
}
