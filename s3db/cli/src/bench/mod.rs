//! `bench`: what the store and the protocols of the paper take, in virtual time.

mod paper; // the paper's tables, and today's
mod plot; // charts

use clap::Subcommand;

use crate::output::{Failure, Output};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// The evaluation of "Building a Database on S3" (SIGMOD 2008), and the same questions today
    Paper(paper::Args),
}

pub(crate) fn run(command: &Command, output: &Output) -> Result<(), Failure> {
    // On a thread without a runtime: within one, its locks give way after so many uses in one poll, and
    // wake only when the runtime has its turn, which it has not before the last virtual second.
    let measure = || match command {
        Command::Paper(args) => paper::run(args, output),
    };
    std::thread::scope(|scope| scope.spawn(measure).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
