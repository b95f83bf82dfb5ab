//! The `s3db` command.
//!
//! ```text
//! $ s3db init file:///tmp/db users
//! $ s3db put file:///tmp/db users ada '{"born": 1815}'
//! $ s3db get file:///tmp/db users ada
//! {"born": 1815}
//! ```

#![forbid(unsafe_code)]

#[macro_use]
mod tell; // what stderr gets
mod escape; // keys and payloads as text
mod output; // what people and machines get to see, and exit codes
mod records; // init, put, get, del, scan
mod script; // txn
mod index; // index
mod pending; // pending
mod policy; // policy
mod upkeep; // checkpoint, sweep, verify, gc, rekey
mod watch; // watch
mod cost; // cost
mod bench; // bench
mod log; // log decode

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use output::{Failure, Output};

const HELP: &str = "\
Addresses: s3://BUCKET/PREFIX, a bucket, with options like ?region=eu-west-1&endpoint=URL&sqs=URL; \
file:///PATH, a directory of this machine. Any number of processes can use either at once.

Exit codes: 0 done, 1 failed (stderr says what), 2 a command line that is not understood, 3 there is no such record or proposal, \
4 verify, rekey or index check found problems, 5 the transaction was aborted for another one (snapshot \
and serializable: run it again), 141 the reader of the output went away.

Examples:
  s3db init file:///tmp/db users
  s3db put file:///tmp/db users ada '{\"born\": 1815}'
  s3db get file:///tmp/db users ada
  s3db scan file:///tmp/db users --prefix a --json
  printf 'put users alan 1912\\ndel users ada\\n' | s3db txn file:///tmp/db
  s3db verify file:///tmp/db";

/// A record store: any number of clients, no server, nothing committed is lost
#[derive(Parser)]
#[command(name = "s3db", version, after_help = HELP)]
struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    output: Output,
}

#[derive(Subcommand)]
enum Command {
    /// Create a database and collections in it
    Init(records::Init),
    /// Write one record
    Put(records::Put),
    /// Print the payload of one record
    Get(records::Get),
    /// Delete one record
    Del(records::Del),
    /// Print records in the order of their keys
    Scan(records::Scan),
    /// Run a script from standard input as one transaction, or several
    Txn(script::Args),
    /// Drop a collection, with its indexes and all of its records
    Drop(records::Drop),
    /// Find records by what they say: create, build, list, find, check, drop
    #[command(
        subcommand,
        after_help = "Examples:
  s3db index create file:///tmp/db users born json:born
  s3db index find file:///tmp/db users born 1815"
    )]
    Index(index::Command),
    /// What waits for a curator: list, show, approve, reject
    #[command(
        subcommand,
        after_help = "Examples:
  s3db pending list file:///tmp/db prices
  s3db pending approve file:///tmp/db prices 5d41..."
    )]
    Pending(pending::Command),
    /// Print what AWS has to allow somebody, as an IAM policy
    Policy(policy::Args),
    /// Bring what was committed to the pages, everywhere: as sweep does, once
    Checkpoint(upkeep::Checkpoint),
    /// Bring what any client left in the log to the pages, once or again and again
    Sweep(upkeep::Sweep),
    /// Walk every tree and check every rule
    Verify(upkeep::Verify),
    /// Delete what nothing leads to any more
    Gc(upkeep::Gc),
    /// Encrypt again, with the first of the keys, what is encrypted with another one
    Rekey(upkeep::Rekey),
    /// Show live what is there and what waits
    Watch(watch::Args),
    /// Say what transactions cost
    Cost(cost::Args),
    /// Measure the store and the protocols of the paper, in virtual time
    #[command(
        subcommand,
        after_help = "Examples:
  s3db bench paper --quick
  s3db bench embedded --quick"
    )]
    Bench(bench::Command),
    /// Log records in files
    #[command(
        subcommand,
        after_help = "Example:
  s3db log decode records.log"
    )]
    Log(log::Command),
}

fn main() -> ExitCode {
    let Args { command, output } = Args::parse();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(run(command, &output)),
        Err(error) => Err(Failure::Told(format!("no runtime: {error}"))),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

async fn run(command: Command, output: &Output) -> Result<(), Failure> {
    match command {
        Command::Init(args) => records::init(&args, output).await,
        Command::Put(args) => records::put(&args, output).await,
        Command::Get(args) => records::get(&args, output).await,
        Command::Del(args) => records::del(&args, output).await,
        Command::Scan(args) => records::scan(&args, output).await,
        Command::Txn(args) => script::run(&args, output).await,
        Command::Drop(args) => records::drop_collection(&args, output).await,
        Command::Index(command) => index::run(&command, output).await,
        Command::Policy(args) => policy::run(&args, output).await,
        Command::Pending(command) => pending::run(&command, output).await,
        Command::Checkpoint(args) => upkeep::sweep(&args.once(), output).await,
        Command::Sweep(args) => upkeep::sweep(&args, output).await,
        Command::Verify(args) => upkeep::verify(&args, output).await,
        Command::Gc(args) => upkeep::gc(&args, output).await,
        Command::Rekey(args) => upkeep::rekey(&args, output).await,
        Command::Watch(args) => watch::watch(&args, output).await,
        Command::Cost(args) => cost::cost(&args, output),
        Command::Bench(command) => bench::run(&command, output),
        Command::Log(log::Command::Decode { file }) => log::decode(&file, output.json),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    /// Whoever asks for help is shown how it is typed, by every command.
    #[test]
    fn every_command_has_examples() {
        fn look(command: &clap::Command, path: &str, seen: &mut Vec<String>) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example"), "{path}");
            let lines = help.lines().filter(|line| line.starts_with("  "));
            assert!(lines.clone().any(|line| line.contains(path)), "{path}: {help}");
            seen.push(path.to_owned());
            for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
                look(below, &format!("{path} {}", below.get_name()), seen);
            }
        }
        let mut seen = Vec::new();
        look(&Args::command(), "s3db", &mut seen);
        for path in ["s3db log decode", "s3db checkpoint", "s3db pending show", "s3db bench"] {
            assert!(seen.iter().any(|there| there == path), "{path}: {seen:?}");
        }
        Args::command().debug_assert();
    }

    /// An option of a command that is called as one of every command would hide it. What clap itself asserts
    /// of that is not in an optimised build.
    #[test]
    fn no_option_hides_another_one() {
        fn look(command: &clap::Command, path: &str, seen: &mut usize) {
            let mut longs = std::collections::BTreeSet::new();
            for long in command.get_arguments().filter_map(clap::Arg::get_long) {
                assert!(longs.insert(long), "{path}: --{long} twice");
            }
            for long in ["json", "keys", "client"] {
                assert!(longs.contains(long), "{path}: options of every command are its own, too");
            }
            *seen += 1;
            for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
                look(below, &format!("{path} {}", below.get_name()), seen);
            }
        }
        let (mut command, mut seen) = (Args::command(), 0);
        // This hands the options of every command down.
        command.build();
        look(&command, "s3db", &mut seen);
        assert!(seen > 20, "{seen} commands");
    }
}
