//! What reading cost: `--stats`.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    time::{Duration, Instant},
};

use serde_json::json;
use sources::{
    Traffic,
    price::{Prices, S3_STANDARD},
    size,
};

/// How `--stats` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Form {
    /// One line for each number
    Text,
    /// One JSON object in one line
    Json,
}

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Print to stderr what reading cost: requests, bytes, seconds and, for s3:// addresses, dollars
    /// at S3's list price
    #[arg(long, value_name = "FORM", num_args = 0..=1, require_equals = true,
          default_missing_value = "text")]
    stats: Option<Form>,
}

/// What is counted while a command runs.
pub(crate) struct Meter {
    began: Instant,
    traffic: Traffic,
    /// `None` where nobody has told us what the server charges.
    prices: Option<Prices>,
}

const PRICE: &str =
    "at S3's list price: $0.0004 per 1,000 requests, transfer within the region free";

impl Meter {
    /// Begins to count, for objects at these addresses.
    pub(crate) fn start<'u>(urls: impl IntoIterator<Item = &'u str>) -> Meter {
        let is_s3 = |url: &str| url.get(..5).is_some_and(|head| head.eq_ignore_ascii_case("s3://"));
        let prices = urls.into_iter().all(is_s3).then_some(S3_STANDARD);
        Meter { began: Instant::now(), traffic: Traffic::default(), prices }
    }

    /// What to open the objects with.
    pub(crate) fn traffic(&self) -> Traffic {
        self.traffic.clone()
    }

    /// Prints what was counted, if it was asked for. Where stderr is closed, nobody reads it.
    pub(crate) fn print(&self, args: &Args) {
        let text = match args.stats {
            None => return,
            Some(Form::Text) => self.text(self.began.elapsed()),
            Some(Form::Json) => self.json(self.began.elapsed()),
        };
        let _ = io::stderr().write_all(text.as_bytes());
    }

    fn text(&self, took: Duration) -> String {
        let count = self.traffic.count();
        let mut out = String::new();
        let mut line = |name: &str, value: String| {
            // Writing to a string does not fail.
            let _ = writeln!(out, "{name:<10}{value}");
        };
        line("requests", format!("{} GET, {} HEAD", count.gets, count.stats));
        line("bytes", format!("{} ({})", count.bytes, size::show(count.bytes)));
        if count.errors > 0 {
            line("errors", format!("{} ({} throttled)", count.errors, count.throttles));
        }
        line("time", format!("{:.3} s", took.as_secs_f64()));
        if let Some(prices) = &self.prices {
            line("cost", format!("${:.7} {PRICE}", count.cost_usd(prices)));
        }
        out
    }

    fn json(&self, took: Duration) -> String {
        let count = self.traffic.count();
        let object = json!({
            "gets": count.gets,
            "heads": count.stats,
            "bytes": count.bytes,
            "errors": count.errors,
            "throttles": count.throttles,
            "seconds": took.as_secs_f64(),
            "cost_usd": self.prices.as_ref().map(|prices| count.cost_usd(prices)),
            "price": self.prices.as_ref().map(|_| PRICE),
        });
        format!("{object}\n")
    }
}
