//! The benchmarks: how much a region costs over `mmap`, how long from a question to its answer, how
//! near a cold scan comes to a download, how much may be asked until a download wins, how the event
//! database compares with the library whose files it shares, what one cache for all costs, and how near
//! each way of putting bytes in place comes to the kernel's.
//!
//! ```text
//! bench [--only needle,cold] [--quick] [--json] [--write BENCHMARKS.md]
//! ```
//!
//! The S3 is `s3-endpoint` in a process of its own. Every run opens a new pager with new
//! connections; what is compared runs in turn. Sections that were not run keep their earlier text.

#![deny(unsafe_code)]

mod break_even; // how many random trails until a download wins
mod children; // benchmarks that the pager carries itself
mod cold; // reading everything, once
mod needle; // a few users of a large database
mod serve; // one cache for every program
mod strength; // each way of putting bytes in place, beside the kernel's
mod tdb; // writing and reading beside the C library

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, ValueEnum};
use examples::{credentials, data, report::Section};

/// Measures, and prints Markdown.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Which benchmarks, joined by commas. Default: all.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Which>,

    /// Only these parts of section `strength`, joined by commas. Not with --write, whose file has all.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PART", conflicts_with = "write")]
    strength: Vec<strength::Part>,

    /// Three rounds instead of eleven.
    #[arg(long, conflicts_with = "rounds")]
    quick: bool,

    /// Runs of each that is compared.
    #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    rounds: u64,

    /// Print one JSON object for each benchmark instead.
    #[arg(long)]
    json: bool,

    /// Put the sections into this file.
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,

    /// Least size of the large database, in megabytes.
    #[arg(long, default_value_t = 1_000)]
    large: u64,

    /// Least size of the small database, in megabytes.
    #[arg(long, default_value_t = 100)]
    small: u64,

    #[command(flatten)]
    tdb: tdb::Args,

    /// A program of section `serve`: the socket, and the object.
    #[arg(long, hide = true, num_args = 2, value_names = ["SOCKET", "URL"])]
    serve_child: Option<Vec<String>>,

    /// A program of section `strength`: the way to read, and the file.
    #[arg(long, hide = true, num_args = 2, value_names = ["WAY", "FILE"])]
    limited_child: Option<Vec<String>>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Which {
    /// A warm scan against `mmap`.
    Warm,
    /// Ten users of a database of 1 GB.
    Needle,
    /// A cold read of everything.
    Cold,
    /// Random trails against a download.
    #[value(alias = "break_even")]
    BreakEven,
    /// Random reads under a small budget.
    Random,
    /// The event database beside the C library.
    Tdb,
    /// One cache for every program of a machine.
    Serve,
    /// Each way of putting bytes in place beside the kernel's.
    Strength,
}

/// What the benchmarks need to know.
pub(crate) struct Setup {
    /// Runs of each that is compared.
    pub(crate) rounds: usize,
    large: u64,
    small: u64,
    /// Of section `strength`; all if there is none.
    parts: Vec<strength::Part>,
}

impl Setup {
    /// Whether this part of section `strength` is to be measured.
    pub(crate) fn wants(&self, part: strength::Part) -> bool {
        self.parts.is_empty() || self.parts.contains(&part)
    }

    /// The path of the database of about 1 GB, which is made if it is missing.
    pub(crate) fn large(&self) -> Result<PathBuf, String> {
        data::ensure(self.large.saturating_mul(1_000_000))
    }

    /// The path of the database of about 100 MB.
    pub(crate) fn small(&self) -> Result<PathBuf, String> {
        data::ensure(self.small.saturating_mul(1_000_000))
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(code) = credentials::ensure() {
        return code;
    }
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("bench: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), String> {
    if let Some([socket, url]) = args.serve_child.as_deref() {
        return serve::child(socket.as_ref(), url);
    }
    if let Some([way, file]) = args.limited_child.as_deref() {
        return strength::child(way, file.as_ref());
    }
    let rounds = if args.quick { 3 } else { args.rounds as usize };
    let parts = args.strength.clone();
    let setup = Setup { rounds, large: args.large, small: args.small, parts };
    let which = if args.only.is_empty() { Which::value_variants() } else { &args.only };
    for &which in which {
        eprintln!(
            "== {}",
            which.to_possible_value().map_or_else(String::new, |v| v.get_name().into())
        );
        let section = match which {
            Which::Warm => children::warm_scan(),
            Which::Needle => needle::run(&setup),
            Which::Cold => cold::run(&setup),
            Which::BreakEven => break_even::run(&setup),
            Which::Random => children::random_reads(),
            Which::Tdb => tdb::run(setup.rounds, &args.tdb),
            Which::Serve => serve::run(&setup),
            Which::Strength => strength::run(&setup),
        };
        tell(args, &section?)?;
    }
    Ok(())
}

fn tell(args: &Args, section: &Section) -> Result<(), String> {
    let command = examples::report::command("bench");
    match args.json {
        true => println!("{}", section.json(&command)),
        false => println!("{}", section.markdown(&command)),
    }
    match &args.write {
        Some(file) => section.write(file, &command),
        None => Ok(()),
    }
}
