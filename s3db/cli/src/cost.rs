//! `cost`: what transactions cost, before the first one.

use s3db::{Backend, Level, Workload};
use serde_json::json;

use crate::output::{Failure, Output};

#[derive(clap::Args)]
#[command(
    after_help = "US dollars per 1,000 transactions, requests only, by log backend, level and records per \
checkpoint. What a command did cost: any command with --bill.

Examples:
  s3db cost
  s3db cost --reads 1 --writes 2
  s3db cost --group 1 --shared 0             one client, who shares nothing with others
  s3db cost --prices put=1.13,get=0.03      S3 Express One Zone"
)]
pub(crate) struct Args {
    /// Pages that a transaction reads from the object store
    #[arg(long, default_value_t = 4.0)]
    reads: f64,
    /// Pages that it changes
    #[arg(long, default_value_t = 7.0)]
    writes: f64,
    /// Transactions that share a log object, with backend s3-log, or a swap, with isolation
    #[arg(long, default_value_t = 10.0)]
    group: f64,
    /// Queues of pending updates, with backends sqs-standard and sqs-fifo
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    shards: u32,
    /// The part of checkpoints, 0 to 1, that find that another client put their page since, and read it
    #[arg(long, default_value_t = 1.0, value_parser = part)]
    shared: f64,
    /// A transaction writes more than 2 KiB: with isolation these lie in an object of their own
    #[arg(long)]
    large: bool,
}

/// A part of a whole.
fn part(text: &str) -> Result<f64, String> {
    let part = text.parse().ok().filter(|part| (0.0..=1.0).contains(part));
    part.ok_or_else(|| "a part is from 0 to 1".to_owned())
}

pub(crate) fn cost(args: &Args, output: &Output) -> Result<(), Failure> {
    let numbers = [args.reads, args.writes, args.group];
    if !numbers.iter().all(|number| number.is_finite() && *number >= 0.0) {
        return Err(Failure::Told("numbers of at least zero are needed".into()));
    }
    let batches = [1.0, 10.0, 100.0];
    let mut rows = Vec::new();
    let mut text = format!(
        "{:12} {:12} {:>12} {:>12} {:>12}",
        "backend", "level", "b = 1", "b = 10", "b = 100"
    );
    for backend in Backend::ALL {
        let prices = output.prices(backend);
        for level in [Level::Basic, Level::Atomic, Level::Serializable] {
            text.push_str(&format!("\n{:12} {:12}", backend.name(), level.name()));
            for records_per_checkpoint in batches {
                let workload = Workload {
                    page_reads: args.reads,
                    page_writes: args.writes,
                    records_per_checkpoint,
                    transactions_per_group: args.group,
                    queues: Workload::queues_of(args.writes, args.shards),
                    shared: args.shared,
                    is_large: args.large,
                };
                let estimate = workload.estimate(backend, level, &prices);
                let dollars = 1000.0 * estimate.total();
                text.push_str(&format!(" {dollars:>12.5}"));
                rows.push(json!({
                    "backend": backend.name(), "level": level.name(),
                    "records_per_checkpoint": records_per_checkpoint,
                    "reading": 1000.0 * estimate.reading, "commit": 1000.0 * estimate.commit,
                    "checkpoint": 1000.0 * estimate.checkpoint, "dollars": dollars,
                }));
            }
        }
    }
    output.say(&text, &json!({"per_transactions": 1000, "rows": rows}))
}
