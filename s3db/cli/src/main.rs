//! The `s3db` command.
//!
//! ```text
//! $ s3db log decode changes.log
//! 1763690400000000.feed.1 update user/1 8 bytes
//! 1763690400000001.feed.2 delete user/2
//! 2 records, 91 bytes
//! ```

#![forbid(unsafe_code)]

mod log; // `s3db log decode`

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

/// A record store on S3 in the making. So far the command reads log files; nothing else is there.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Log records in files.
    #[command(subcommand)]
    Log(LogCommand),
}

#[derive(Subcommand)]
enum LogCommand {
    /// Print every record of a file. Ends with exit code 1 at the first that is damaged.
    Decode {
        /// The file, or - for standard input.
        file: PathBuf,
        /// One JSON object per record. Bytes other than printable ASCII are escaped as \xNN.
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    let Command::Log(LogCommand::Decode { file, json }) = Args::parse().command;
    match log::decode(&file, json) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("s3db: {message}");
            ExitCode::FAILURE
        }
    }
}
