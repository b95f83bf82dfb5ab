//! `tdb query`: how many events, trails and users match.
//!
//! ```text
//!   shards --> filter bound to each --> scan in parallel --> counts, UUIDs --> sums, distinct UUIDs
//! ```

use std::{fmt::Write as _, sync::Mutex, time::Instant};

use indicatif::HumanCount;
use serde_json::json;
use traildb::{Uuid, filter::Expr};

use crate::{
    dates,
    failure::Failure,
    filtering,
    open::Database,
    output::Output,
    select,
    shards::{self, Shards},
    stats, threads,
};

/// UUIDs read at a time.
const UUIDS_WINDOW: u64 = 4096;

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
    filter: filtering::Args,

    /// Looks only at these trails: UUIDs separated by commas, or @FILE with one on each line.
    #[arg(short, long, value_name = "UUIDS|@FILE")]
    uuids: Option<String>,

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

/// What matches in one trail.
#[derive(Clone, Copy, Debug)]
struct Match {
    uuid: Uuid,
    events: u64,
    first: u64,
    last: u64,
}

/// What was found, over all shards so far.
#[derive(Default)]
struct Found {
    databases: u64,
    trails: u64,
    events: u64,
    /// Of everything, matching or not.
    trails_all: u64,
    events_all: u64,
    first: Option<u64>,
    last: Option<u64>,
    /// Sorted by UUID within each shard. Empty if nobody needs them.
    matches: Vec<Match>,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let began = Instant::now();
    let expr = args.filter.expr()?;
    let uuids = args.uuids.as_deref().map(|list| select::uuids(list, false)).transpose()?;
    let shards = args.inputs.shards(Some("a"))?;
    let mut found = Found::default();
    let kept = Mutex::new(Vec::new());
    let done = ask(args, expr.as_ref(), uuids, &shards, &mut found, &kept);
    let kept = kept.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    // What a failed query has cost is worth knowing too.
    args.stats.print(&kept, &shards.opener);
    done?;

    let users = merge(&mut found.matches, shards.names.len());
    let users = if shards.names.len() > 1 { users } else { found.trails };
    let mut output = Output::create("-")?;
    if args.trails {
        print_trails(&found.matches, args.json, &mut output)?;
    } else {
        let seconds = began.elapsed().as_secs_f64();
        let text = match args.json {
            true => json(&found, users, &shards, seconds),
            false => text(&found, users, seconds),
        };
        output.put(text.as_bytes())?;
    }
    output.finish()?;
    shards.losses.result(shards.names.len())
}

fn ask(
    args: &Args,
    expr: Option<&Expr>,
    uuids: Option<Vec<Uuid>>,
    shards: &Shards<'_>,
    found: &mut Found,
    kept: &Mutex<Vec<Database>>,
) -> Result<(), Failure> {
    // One thread for each shard while there are enough of them; then several for each.
    let threads = args.threads.count();
    let at_once = threads.min(shards.names.len().max(1));
    let each = threads / at_once;
    let uuids = uuids.map(|mut uuids| {
        uuids.sort_unstable();
        uuids.dedup();
        uuids
    });
    let with_uuids = args.trails || shards.names.len() > 1;
    // A field that no shard has is an error, which is known when all were seen.
    let mut unknown: Vec<&str> = expr.map(Expr::fields).unwrap_or_default();
    let mut sample = None;
    shards.each(
        at_once,
        |_, database| {
            let one = ask_one(&database, expr, uuids.as_deref(), each, with_uuids)?;
            let names: Vec<String> = database.reader.fields()?.names().map(str::to_owned).collect();
            let error = match expr {
                Some(expr) => expr.bind(&database.reader).err().map(|error| error.to_string()),
                None => None,
            };
            if args.stats.wanted() {
                kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(database);
            }
            Ok((one, names, error))
        },
        |_, (one, names, error)| {
            unknown.retain(|name| !names.iter().any(|known| known == name));
            sample = sample.take().or(error);
            found.add(one);
            Ok(())
        },
    )?;
    match (unknown.is_empty(), sample) {
        (false, Some(error)) if found.databases > 0 => Err(Failure::Usage(error)),
        _ => Ok(()),
    }
}

impl Found {
    fn add(&mut self, one: Found) {
        self.databases += one.databases;
        self.trails += one.trails;
        self.events += one.events;
        self.trails_all += one.trails_all;
        self.events_all += one.events_all;
        self.first = [self.first, one.first].into_iter().flatten().min();
        self.last = [self.last, one.last].into_iter().flatten().max();
        self.matches.extend(one.matches);
    }

    fn take(&mut self, first: u64, last: u64, events: u64) {
        self.trails += 1;
        self.events += events;
        self.first = Some(self.first.map_or(first, |known| known.min(first)));
        self.last = Some(self.last.map_or(last, |known| known.max(last)));
    }
}

/// Asks one database.
fn ask_one(
    database: &Database,
    expr: Option<&Expr>,
    uuids: Option<&[Uuid]>,
    threads: usize,
    with_uuids: bool,
) -> Result<Found, Failure> {
    let reader = &database.reader;
    let mut view = reader.view();
    if let Some(expr) = expr {
        let filter = filtering::bind(expr, [database], true)?.remove(0);
        view = view.with_filter(filter);
    }
    let mut scan = view.scan().threads(threads);
    if let Some(uuids) = uuids {
        let mut trails: Vec<u64> = reader.trail_ids(uuids)?.into_iter().flatten().collect();
        trails.sort_unstable();
        scan = scan.trails(trails);
    }
    let mut found = Found {
        databases: 1,
        trails_all: reader.trails(),
        events_all: reader.events(),
        ..Found::default()
    };
    let mut matching = Vec::new();
    scan.run(
        |chunk| {
            let mut trails = Vec::new();
            while let Some(trail) = chunk.next_trail()? {
                let Some(event) = trail.next_event()? else { continue };
                let (first, mut last, mut events) = (event.time, event.time, 1u64);
                while let Some(event) = trail.next_event()? {
                    last = event.time;
                    events += 1;
                }
                trails.push((trail.id().unwrap_or_default(), events, first, last));
            }
            Ok::<_, traildb::Error>(trails)
        },
        |trails| {
            for &(_, events, first, last) in &trails {
                found.take(first, last, events);
            }
            if with_uuids {
                matching.extend(trails);
            }
            Ok(())
        },
    )?;
    // UUIDs lie together: those of neighbouring trails are read at once.
    let mut rest = matching.as_slice();
    while let Some(&(start, ..)) = rest.first() {
        let n = rest.partition_point(|&(trail, ..)| trail < start + UUIDS_WINDOW);
        let (now, later) = rest.split_at(n);
        let end = now[n - 1].0 + 1;
        let window = reader.uuids(start..end)?;
        found.matches.extend(now.iter().map(|&(trail, events, first, last)| Match {
            uuid: window[(trail - start) as usize],
            events,
            first,
            last,
        }));
        rest = later;
    }
    Ok(found)
}

/// Joins matches of one UUID, and gives the number of UUIDs.
fn merge(matches: &mut Vec<Match>, shards: usize) -> u64 {
    if shards > 1 {
        // Each shard's are sorted, which this sort makes use of.
        matches.sort_by_key(|one| one.uuid);
        matches.dedup_by(|next, kept| {
            let same = next.uuid == kept.uuid;
            if same {
                kept.events += next.events;
                kept.first = kept.first.min(next.first);
                kept.last = kept.last.max(next.last);
            }
            same
        });
    }
    matches.len() as u64
}

fn print_trails(matches: &[Match], json: bool, output: &mut Output) -> Result<(), Failure> {
    let mut line = String::new();
    for Match { uuid, events, first, last } in matches {
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
    Ok(())
}

fn text(found: &Found, users: u64, seconds: f64) -> String {
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
    line("users", HumanCount(users).to_string());
    if let (Some(first), Some(last)) = (found.first, found.last) {
        line("time", format!("{first} to {last}"));
        if let (Some(first), Some(last)) = (dates::shown(first), dates::shown(last)) {
            line("", format!("{first} to {last}, if these are seconds since 1970"));
        }
    }
    if found.databases != 1 {
        line("databases", HumanCount(found.databases).to_string());
    }
    line("asked in", format!("{seconds:.3} s"));
    out
}

fn json(found: &Found, users: u64, shards: &Shards<'_>, seconds: f64) -> String {
    let object = json!({
        "events": found.events,
        "trails": found.trails,
        "users": users,
        "first": found.first,
        "last": found.last,
        "events_all": found.events_all,
        "trails_all": found.trails_all,
        "databases": found.databases,
        "passed_over": shards.losses.json(),
        "seconds": seconds,
    });
    format!("{object}\n")
}
