//! Does through this library what `examples/interop/peer.c` does through the C one, and prints the
//! same figures: `make bench BENCH_ARGS="--only tdb"` runs both in turn.
//!
//! ```text
//!   EVENTS.csv --> parsed by the batch, off the clock --> Builder --> file     write
//!   file --> memory, off the clock --> Reader --> events                       everything else
//! ```
//!
//! A process of its own for each figure, so that its memory is its own.

#![forbid(unsafe_code)]

mod read;
mod write;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use examples::measure;
use serde_json::json;

/// Measures one thing, and prints one JSON object.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:
  peer write edits.csv /tmp/edits.tdb --threads 2
  peer scan /tmp/edits.tdb 5
  peer filter /tmp/edits.tdb 5 title Ka_mi"
)]
enum Args {
    /// Events in, a database out.
    Write {
        /// Comma separated, without quotes, with a header that starts with uuid,time.
        csv: PathBuf,
        /// The database to make.
        out: PathBuf,
        /// Threads of the builder.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
        threads: u16,
    },
    /// The same measurements on a database that is there.
    #[command(flatten)]
    Read(Read),
}

#[derive(Subcommand)]
enum Read {
    /// Every event of every trail.
    Scan(On),
    /// The same, and the bytes of every value looked up.
    Values(On),
    /// Events where every named field has the value that follows its name.
    Filter {
        #[command(flatten)]
        on: On,
        /// Field, value, field, value, and so on.
        #[arg(required = true)]
        terms: Vec<String>,
    },
    /// So many trails, chosen at random, by UUID.
    Uuids {
        #[command(flatten)]
        on: On,
        /// How many.
        count: u64,
    },
    /// So many values of a field, chosen at random, by their bytes.
    Items {
        #[command(flatten)]
        on: On,
        /// The field.
        field: String,
        /// How many.
        count: u64,
    },
}

/// The database, and how often.
#[derive(clap::Args)]
struct On {
    /// The database.
    db: PathBuf,
    /// Timed rounds, after one that is not.
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rounds: u32,
}

/// What was measured.
#[derive(Default)]
struct Figures {
    /// Events met, or values found.
    events: u64,
    /// Depends on all that was read, and is the same on the other side.
    sum: u64,
    seconds: Vec<f64>,
    /// What the first use cost beyond the others, such as an index that is built then.
    first: f64,
    adding: f64,
    finishing: f64,
}

fn main() -> ExitCode {
    let figures = match Args::parse() {
        Args::Write { csv, out, threads } => write::run(&csv, &out, threads),
        Args::Read(what) => read::run(&what),
    };
    match figures {
        Ok(figures) => {
            let Figures { events, sum, seconds, first, adding, finishing } = figures;
            let (cpu, rss_kib) = (measure::cpu_time().as_secs_f64(), measure::peak_rss_kib());
            println!(
                "{}",
                json!({ "events": events, "sum": sum, "seconds": seconds, "first": first,
                    "adding": adding, "finishing": finishing, "cpu": cpu, "rss_kib": rss_kib })
            );
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("peer: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014: the other side
/// draws the same numbers.
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
