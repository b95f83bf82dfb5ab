//! `watch`: what is there and what waits, live.

use std::{io::Write, time::Duration};

use s3db::cloud::Prices;
use serde_json::json;

use crate::output::{Failure, Output, open};

#[derive(clap::Args)]
#[command(after_help = "Examples:
  s3db watch file:///tmp/db
  s3db watch file:///tmp/db --every 10 --count 6 --json")]
pub(crate) struct Args {
    /// The database
    url: String,
    /// Seconds between two looks
    #[arg(long, default_value_t = 2)]
    every: u64,
    /// Stop after so many looks
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

pub(crate) async fn watch(args: &Args, output: &Output) -> Result<(), Failure> {
    let db = open(&args.url, output).await?;
    let mut left = args.count.unwrap_or(u64::MAX);
    if !output.json {
        let mut out = std::io::stdout().lock();
        writeln!(
            out,
            "{:>10} {:>8} {:>10} {:>10} {:>11} {:>14}",
            "pages", "clients", "log", "waiting", "quarantine", "watching, $"
        )?;
    }
    loop {
        let now = db.store().status().await?;
        let dollars = db.ledger().dollars(&Prices::TODAY);
        let text = format!(
            "{:>10} {:>8} {:>10} {:>10} {:>11} {dollars:>14.8}",
            now.pages, now.clients, now.log, now.waiting, now.quarantined
        );
        let value = json!({
            "pages": now.pages, "clients": now.clients, "log": now.log, "waiting": now.waiting,
            "quarantined": now.quarantined, "watch_dollars": dollars,
        });
        output.say(&text, &value)?;
        left -= 1;
        if left == 0 {
            return output.close(db).await;
        }
        tokio::time::sleep(Duration::from_secs(args.every.max(1))).await;
    }
}
