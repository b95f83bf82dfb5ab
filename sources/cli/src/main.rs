//! The `extmem` command: what this machine can do, what an object is, and its bytes.
//!
//! ```text
//!   extmem doctor          kernel, limits, and what to do about what is missing
//!   extmem stat URL        length and version of an object
//!   extmem cat URL...      its bytes, or a range of them; several objects as one
//!   extmem warm URL        fetches it, or parts of it, into the disk cache
//!   extmem serve           one cache for every program on this machine
//!   extmem cache           lists, removes and checks what lies there
//!   extmem top             watches what programs read
//!   extmem trace COMMAND   records what a command reads
//!   extmem replay FILE     what other policies and budgets would make of it
//! ```
#![forbid(unsafe_code)]

mod cache;
mod cat;
mod cost;
mod doctor;
mod heat;
mod range;
mod recording;
mod replay;
mod serve;
mod stat;
mod top;
mod trace;
mod warm;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

/// Everything went well.
const OK: u8 = 0;
/// Something failed; stderr says what.
const FAILED: u8 = 1;
/// `doctor`: it works, with limits. (What does not work at all is `FAILED`.)
const LIMITED: u8 = 3;
/// The reader of our output went away: what a shell reports for SIGPIPE.
const BROKEN_PIPE: u8 = 141;

#[derive(Parser)]
#[command(
    name = "extmem",
    version,
    about = "Remote objects as memory: what this machine can do, and a look at an object",
    after_help = "Exit codes: 0 done, 1 failed (stderr says what), 2 wrong usage, 3 doctor: works \
                  with limits, 141 the reader of the output went away. `trace` \
                  ends as its command does.\n\n\
                  Examples:\n  \
                  extmem doctor\n  \
                  extmem stat s3://bucket/key\n  \
                  extmem cat --range 0-99 https://host/file\n  \
                  extmem cat 's3://bucket/key?region=eu-west-1&anonymous' | sha256sum\n  \
                  extmem warm --cache /var/cache/extmem s3://bucket/key\n  \
                  extmem cache ls --dir /var/cache/extmem\n  \
                  extmem serve --dir /var/cache/extmem\n  \
                  extmem trace --out a.trace -- extmem cat s3://bucket/key > key\n  \
                  extmem replay a.trace"
)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Say what this machine offers, and what to do about what is missing
    Doctor(doctor::Args),
    /// Write an object's bytes to standard output
    Cat(cat::Args),
    /// Say an object's length and version
    Stat(stat::Args),
    /// Fetch an object, or parts of it, into the disk cache
    Warm(warm::Args),
    /// Look at a disk cache, remove objects from it, or check every block of it
    Cache(cache::Args),
    /// Serve a disk cache to every program on this machine
    Serve(serve::Args),
    /// Watch what programs read
    Top(top::Args),
    /// Run a command and record what it reads
    Trace(trace::Args),
    /// Run eviction policies over a recorded trace
    Replay(replay::Args),
}

/// Why a command ended early.
enum Failure {
    /// For the person at the terminal.
    Told(String),
    /// The reader of standard output went away.
    BrokenPipe,
}

impl Failure {
    /// A failure to write to standard output.
    fn output(error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::BrokenPipe,
            _ => Failure::Told(format!("standard output: {error}")),
        }
    }
}

impl From<pager::Error> for Failure {
    fn from(error: pager::Error) -> Failure {
        Failure::Told(with_causes(&error))
    }
}

impl From<sources::SourceError> for Failure {
    fn from(error: sources::SourceError) -> Failure {
        Failure::Told(with_causes(&error))
    }
}

/// The error and what lies beneath it, in one line. Parts of it are what a server said or how a
/// file is called: nothing of that may move the cursor of a terminal.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text.replace(char::is_control, " ")
}

fn main() -> ExitCode {
    // What the libraries warn of, such as a disk that is full, is told to the person. Not what the SDK
    // of AWS does: it warns of each attempt, at length, and why the last one failed is our error.
    let told = Targets::new().with_default(LevelFilter::WARN).with_target("aws_", LevelFilter::OFF);
    let log = tracing_subscriber::fmt().with_writer(io::stderr).with_target(false);
    log.with_max_level(LevelFilter::WARN).finish().with(told).init();
    let done = match Args::parse().command {
        Command::Doctor(args) => doctor::run(&args),
        Command::Cat(args) => cat::run(&args).map(|()| OK),
        Command::Stat(args) => stat::run(&args).map(|()| OK),
        Command::Warm(args) => warm::run(&args).map(|()| OK),
        Command::Cache(args) => cache::run(&args),
        Command::Serve(args) => serve::run(&args).map(|()| OK),
        Command::Top(args) => top::run(&args).map(|()| OK),
        Command::Trace(args) => trace::run(&args),
        Command::Replay(args) => replay::run(&args).map(|()| OK),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(Failure::BrokenPipe) => ExitCode::from(BROKEN_PIPE),
        Err(Failure::Told(text)) => {
            // Nobody is left to tell when stderr is gone too.
            let _ = writeln!(io::stderr(), "extmem: {text}");
            ExitCode::from(FAILED)
        }
    }
}
