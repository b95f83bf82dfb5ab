//! `-T`: how many threads.

/// How many threads work.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Threads. Default: as many as the machine has processors.
    #[arg(short = 'T', long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

impl Args {
    /// At least one.
    pub(crate) fn count(&self) -> usize {
        match self.threads {
            Some(threads) => usize::from(threads),
            None => std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}
