//! `tdb`: reads, describes and writes TrailDB databases, local or remote.
//!
//! ```text
//!   path or URL --> open --> Reader --> dump --> CSV, JSON, a trail to a line --> output
//!                    |          +-----> info
//!                    +----------------> verify
//!   CSV, JSON ----> make --> Builder --> file or directory
//!   a seed -------> synth ------^
//! ```
#![deny(unsafe_code)]

mod open; // a path or a URL to an open database
mod shards; // many databases as one
mod filtering; // which events
mod select; // lists of trails and fields
mod selection; // which events a command is about
mod walk; // trails of all shards, in order
mod values; // values of many events, fetched together, kept within a bound
mod render; // CSV and JSON
mod table; // columns for people
mod dates; // times for people
mod output; // stdout, or a file that is whole or not there
mod dump; // events out
mod info; // what a database is
mod query; // how much matches
mod index; // which trails can match
mod merge; // many databases into one
mod verify; // every rule of the format
mod make; // events in
mod synth; // made-up events
mod writing; // how databases are written
mod shell; // completions and man pages
mod stats; // what reading cost
mod threads; // how many
mod progress; // a bar, on a terminal
mod signals; // those that end us
mod failure; // what goes wrong, and the exit code of each

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use sources::size as bytes; // as people write them

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    failed: no such file, a damaged database, a source that does not answer, a full disk
  2    the command line is wrong: an unknown option or field, an ill-formed UUID
  3    none of the UUIDs asked for is in the database
  4    done, but for databases that --keep-going passed over
  5    verify has found damage
  141  whoever read our output has gone (128 + SIGPIPE)
SIGINT, SIGTERM and SIGHUP end a command as they always do, after what it left unfinished is removed.

Examples:
  tdb info -i edits.tdb
  tdb dump -i s3://bucket/edits.tdb -j -u @users.txt --stats
  tdb make -i edits.csv -d , --csv-header -o edits.tdb
  tdb verify -i edits.tdb
  tdb synth --bytes 260MB -o edits.tdb";

/// Reads, describes and writes TrailDB databases: local files and directories, S3, HTTP.
#[derive(Parser)]
#[command(name = "tdb", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Dump(dump::Args),
    Info(info::Args),
    Query(query::Args),
    Index(index::Args),
    Verify(verify::Args),
    Make(make::Args),
    Merge(merge::Args),
    Synth(synth::Args),
    Completions(shell::Completions),
    Man(shell::Man),
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    signals::watch();
    let done = match command {
        Command::Dump(args) => dump::run(&args),
        Command::Info(args) => info::run(&args),
        Command::Query(args) => query::run(&args),
        Command::Index(args) => index::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Make(args) => make::run(&args),
        Command::Merge(args) => merge::run(&args),
        Command::Synth(args) => synth::run(&args),
        Command::Completions(args) => shell::completions(&args),
        Command::Man(args) => shell::man(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(text) = failure.text() {
                output::note(text);
            }
            ExitCode::from(failure.code())
        }
    }
}
