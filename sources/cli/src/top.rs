//! `extmem top`: what the programs of this machine read, as they read it.

use std::{
    collections::HashMap,
    fmt::Write as _,
    io::{self, IsTerminal, Write},
    path::PathBuf,
    thread,
    time::Duration,
};

use serde_json::json;
use sources::{
    monitor::{self, RegionCount, Snapshot},
    price::S3_STANDARD,
    size,
};

use crate::Failure;

/// Watch what programs read: hits, faults, requests, bytes, dollars, by region.
#[derive(clap::Args)]
#[command(
    after_help = "Programs are seen that write into the same directory: `extmem cat` and `tdb` with \
    EXTMEM_STATS set, and those that start a `sources::monitor::Monitor`.\n\n\
    Examples:\n  \
    export EXTMEM_STATS=/run/user/1000/extmem\n  \
    tdb dump -i s3://bucket/events.tdb > events &\n  \
    extmem top"
)]
pub(crate) struct Args {
    /// Directory that programs write into
    #[arg(long, env = "EXTMEM_STATS", value_name = "DIR")]
    dir: PathBuf,
    /// Print once and end, as without a terminal
    #[arg(long)]
    once: bool,
    /// Print once, as one JSON object
    #[arg(long)]
    json: bool,
}

/// How often the screen is drawn.
const INTERVAL: Duration = Duration::from_secs(1);
/// Regions on one screen.
const ROWS_MAX: usize = 40;
/// Letters of a name.
const NAME_MAX: usize = 80;

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let read = || {
        monitor::read(&args.dir).map_err(|error| {
            let text = format!("{}: {error}", args.dir.display());
            Failure::Told(text.replace(char::is_control, " "))
        })
    };
    let mut out = io::stdout().lock();
    let mut print = |text: String| {
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Failure::output)
    };
    if args.json {
        return print(format!("{}\n", json!({ "processes": read()? })));
    }
    if args.once || !io::stdout().is_terminal() {
        return print(screen(&read()?, &HashMap::new()));
    }
    let mut before = HashMap::new();
    loop {
        let now = read()?;
        // From the upper left corner, over what was there, and nothing below.
        print(format!("\x1b[H\x1b[2J{}", screen(&now, &before)))?;
        before = now.into_iter().map(|snapshot| (snapshot.pid, snapshot)).collect();
        thread::sleep(INTERVAL);
    }
}

/// One screen of the processes, with rates since `before` where they were there.
fn screen(now: &[Snapshot], before: &HashMap<u32, Snapshot>) -> String {
    let mut out = String::new();
    if now.is_empty() {
        return "nobody is seen: start programs with EXTMEM_STATS set to this directory\n"
            .to_owned();
    }
    // Writing to a string does not fail.
    let _ = writeln!(
        out,
        "{:>7} {:>9} {:>8} {:>8} {:>10} {:>12} {:>12} {:>9} {:>9}  object",
        "hits", "faults", "GETs", "GETs/s", "bytes", "bytes/s", "cost", "prefetch", "resident"
    );
    let mut rows = ROWS_MAX;
    for snapshot in now {
        let Snapshot { pid, program, budget, used, pinned, regions, regions_left_out, .. } =
            snapshot;
        let earlier = before.get(pid);
        let _ = writeln!(
            out,
            "{} [{pid}]: {} of {} in use, {} pinned, {} region(s)",
            shown(program),
            size::show(*used),
            size::show(*budget),
            size::show(*pinned),
            regions.len() as u64 + regions_left_out
        );
        for (n, region) in regions.iter().enumerate().take(rows) {
            let was = earlier.and_then(|earlier| {
                let elapsed = snapshot.at_us.checked_sub(earlier.at_us).filter(|&us| us > 0)?;
                let same = |other: &&RegionCount| other.name == region.name;
                // At its place, or, where the order has changed, by its name.
                let at_place = earlier.regions.get(n).filter(same);
                Some((at_place.or_else(|| earlier.regions.iter().find(same))?, elapsed))
            });
            row(region, was, &mut out);
        }
        rows = rows.saturating_sub(regions.len());
    }
    if rows == 0 {
        let _ = writeln!(out, "... and more: --json has them all");
    }
    out
}

fn row(region: &RegionCount, was: Option<(&RegionCount, u64)>, out: &mut String) {
    let percent = |part: u64, whole: u64| match whole {
        0 => "-".to_owned(),
        whole => format!("{:.1} %", part as f64 * 100.0 / whole as f64),
    };
    let rate = |count: fn(&RegionCount) -> u64| {
        let (was, elapsed_us) = was?;
        // A region that was opened anew under the same name counts from zero.
        Some(count(region).checked_sub(count(was))? as f64 * 1e6 / elapsed_us as f64)
    };
    let gets = rate(|region| region.gets).map_or("-".to_owned(), |rate| format!("{rate:.1}"));
    let bytes = rate(|region| region.bytes_fetched);
    let bytes = bytes.map_or("-".to_owned(), |rate| format!("{}/s", size::show(rate as u64)));
    let cost = match region.name.starts_with("s3://") {
        true => format!("${:.7}", S3_STANDARD.cost_usd(region.gets, region.bytes_fetched)),
        false => "-".to_owned(),
    };
    // The numbers are whatever somebody wrote into a file.
    let seen = region.prefetch_used.saturating_add(region.prefetch_unused);
    let resident = region.units_resident.saturating_mul(region.unit_bytes).min(region.bytes);
    // Writing to a string does not fail.
    let _ = writeln!(
        out,
        "{:>7} {:>9} {:>8} {gets:>8} {:>10} {bytes:>12} {cost:>12} {:>9} {:>9}  {}",
        percent(region.load_hits, region.loads),
        region.faults,
        region.gets,
        size::show(region.bytes_fetched),
        percent(region.prefetch_used, seen),
        percent(resident, region.bytes),
        shown(&region.name),
    );
}

/// A name, of which nothing may move the cursor of a terminal.
fn shown(name: &str) -> String {
    name.chars().take(NAME_MAX).collect::<String>().replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(at_us: u64, gets: u64) -> Snapshot {
        let mut region = RegionCount::default();
        (region.name, region.bytes, region.unit_bytes) =
            ("s3://b/k\u{1b}[2J".to_owned(), 1 << 20, 4096);
        (region.loads, region.load_hits, region.gets) = (8, 6, gets);
        region.bytes_fetched = gets << 20;
        (region.prefetch_used, region.prefetch_unused, region.units_resident) = (3, 1, 64);
        let mut snapshot = Snapshot::default();
        (snapshot.pid, snapshot.program, snapshot.at_us) = (7, "tdb".to_owned(), at_us);
        (snapshot.budget, snapshot.used, snapshot.regions) = (256 << 20, 64 << 20, vec![region]);
        snapshot
    }

    #[test]
    fn a_screen_has_rates_once_there_was_one_before() {
        let first = screen(&[snapshot(1_000_000, 10)], &HashMap::new());
        let row: Vec<&str> = first.lines().nth(2).expect("a row").split_whitespace().collect();
        let expected = [
            "75.0",
            "%",
            "0",
            "10",
            "-",
            "10.0",
            "MiB",
            "-",
            "$0.0000040",
            "75.0",
            "%",
            "25.0",
            "%",
            "s3://b/k",
            "[2J",
        ];
        assert_eq!(row, expected, "{first}");
        assert!(first.contains("tdb [7]: 64.0 MiB of 256.0 MiB in use"), "{first}");
        assert!(!first.contains('\u{1b}'), "{first:?}");
        let before = HashMap::from([(7, snapshot(1_000_000, 10))]);
        let second = screen(&[snapshot(3_000_000, 15)], &before);
        assert!(second.contains(" 2.5 ") && second.contains(" 2.5 MiB/s "), "{second}");
        // Clocks that stand or run back, and counts that start anew, give no rate.
        for (at_us, gets) in [(1_000_000, 15), (5, 15), (3_000_000, 2)] {
            let text = screen(&[snapshot(at_us, gets)], &before);
            assert!(text.contains(" - ") && !text.contains("iB/s"), "{text}");
        }
    }

    #[test]
    fn any_numbers_are_shown_and_screens_are_bounded() {
        let mut wild = snapshot(u64::MAX, u64::MAX);
        let region = &mut wild.regions[0];
        (region.units_resident, region.unit_bytes) = (u64::MAX, u64::MAX);
        (region.prefetch_used, region.prefetch_unused) = (u64::MAX, u64::MAX);
        (region.loads, region.bytes_fetched, wild.used) = (1, u64::MAX, u64::MAX);
        wild.regions = vec![wild.regions[0].clone(); 300];
        wild.regions_left_out = 5;
        let text = screen(&[wild.clone(), wild], &HashMap::from([(7, snapshot(0, 0))]));
        assert!(text.lines().count() <= ROWS_MAX + 5, "{text}");
        assert!(text.contains("305 region(s)") && text.contains("--json"), "{text}");
        assert!(screen(&[], &HashMap::new()).contains("EXTMEM_STATS"));
    }
}
