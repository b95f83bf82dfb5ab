//! `watch`: what is there and what waits, live.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal},
    time::{Duration, Instant},
};

use s3db::{
    Address, Db, Look, Options, PAGES_COUNTED_MAX, PoolCounts, Watcher,
    cloud::{CallKind, Prices, ledger::Charge},
};
use serde_json::{Value, json};

use crate::output::{Failure, Failures, Output, Spend, sequencer_text, sequencer_value};

/// Parts of the log that a screen shows.
const PARTS_MAX: usize = 20;
/// Looks that fail one after the other before this gives up.
const FAILURES_MAX: u32 = 10;

#[derive(clap::Args)]
#[command(
    after_help = "Changes nothing, and counts 10,000 pages at most. Lag is the age of the oldest record that is on no page yet, \
or of the oldest commit that waits in the sequencer; of a queue only a few messages are seen, so that it is at least that. Cost per hour is that of the log objects that \
clients put while this looks (s3-log), and of watching itself: what they read, and how they checkpoint, \
cannot be seen from here. A sequencer that is lost or damaged is told on stderr at each look, and in the JSON. A \
look that fails is told on stderr, and the next one follows; after ten in a \
row this ends. With --json each look is one line.

Examples:
  s3db watch file:///tmp/db
  s3db watch file:///tmp/db --every 10 --count 6 --json
  s3db watch s3://bucket/db --every 60 --spend 0.10"
)]
pub(crate) struct Args {
    /// The database
    url: String,
    /// Seconds between two looks
    #[arg(long, default_value_t = 2)]
    every: u64,
    /// Stop after so many looks
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    #[command(flatten)]
    spend: Spend,
}

pub(crate) async fn watch(args: &Args, output: &Output) -> Result<(), Failure> {
    let every = Duration::from_secs(args.every.max(1));
    let mut options: Options = output.options()?;
    // What waits is told by pages that are as new as the look before.
    options.settings.ttl = every / 2;
    let db = args.spend.open(&args.url, options, output).await?;
    let mut watcher = Watcher::new(db.store().clone());
    let began = Instant::now();
    let is_live = !output.json && io::stdout().is_terminal();
    let (mut looks, mut failures) = (0, Failures::until(FAILURES_MAX));
    loop {
        looks += 1;
        match watcher.look().await {
            Ok(look) => {
                failures.none();
                let now = Now::of(&db, look, began, output.prices(db.store().database().backend));
                if let Some(what) = now.sequencer_problem().filter(|_| !is_live) {
                    tell!("s3db: {what}");
                }
                let text = match is_live {
                    true => format!("\x1b[H\x1b[2J{}", now.screen(&Address::shown(&args.url))),
                    false if looks == 1 => format!("{}\n{}", Now::head(), now.line()),
                    false => now.line(),
                };
                output.say(&text, &now.value())?;
            }
            Err(error) => failures.one(output, "this look", error)?,
        }
        if args.count.is_some_and(|count| looks >= count) {
            return output.close(db).await;
        }
        tokio::time::sleep(every).await;
    }
}

/// A look, and what follows from it.
struct Now {
    look: Look,
    pool: PoolCounts,
    /// What watching has cost so far, in dollars.
    watch_dollars: f64,
    hours: f64,
    /// Of a put of a log object.
    append_dollars: f64,
}

impl Now {
    fn of(db: &Db, look: Look, began: Instant, prices: Prices) -> Now {
        let put = Charge { calls: 1, requests: 1, ..Charge::default() };
        Now {
            look,
            pool: db.pool_counts(),
            watch_dollars: db.ledger().dollars(&prices),
            hours: began.elapsed().as_secs_f64().max(1.0) / 3600.0,
            append_dollars: prices.of(CallKind::Put, put),
        }
    }

    fn appended_per_hour(&self) -> Option<f64> {
        Some(self.look.appended? as f64 / self.hours)
    }

    fn dollars_per_hour(&self) -> f64 {
        let appended = self.appended_per_hour().unwrap_or(0.0) * self.append_dollars;
        appended + self.watch_dollars / self.hours
    }

    /// Pages that were served from memory or a disk, of those that were asked for.
    fn hit_ratio(&self) -> Option<f64> {
        let asked = self.pool.hits + self.pool.misses;
        let hits = self.pool.hits + self.pool.disk_hits;
        (asked > 0).then(|| (hits as f64 / asked as f64).min(1.0))
    }

    fn sequencer_problem(&self) -> Option<&str> {
        self.look.sequencer.as_ref()?.problem.as_deref()
    }

    fn lag(&self) -> String {
        seconds(self.look.lag_ms())
    }

    fn head() -> String {
        format!(
            "{:>10} {:>8} {:>10} {:>10} {:>9} {:>11} {:>6} {:>12} {:>12}",
            "pages",
            "clients",
            "log",
            "waiting",
            "lag, s",
            "quarantine",
            "hits",
            "watching, $",
            "$ per hour"
        )
    }

    fn line(&self) -> String {
        let look = &self.look;
        let hits =
            self.hit_ratio().map_or("-".to_owned(), |ratio| format!("{:.0}%", 100.0 * ratio));
        let more = if look.pages >= PAGES_COUNTED_MAX { "+" } else { "" };
        format!(
            "{:>10} {:>8} {:>10} {:>10} {:>9} {:>11} {hits:>6} {:>12.8} {:>12.6}",
            format!("{}{more}", look.pages),
            look.clients,
            look.messages(),
            look.waiting(),
            self.lag(),
            look.quarantined,
            self.watch_dollars,
            self.dollars_per_hour()
        )
    }

    /// All of it, for a terminal.
    fn screen(&self, url: &str) -> String {
        let look = &self.look;
        let mut text = format!("{url}\n\n{}\n{}\n", Now::head(), self.line());
        if look.damaged > 0 {
            let _ = write!(text, "\n{} objects of the log cannot be decoded\n", look.damaged);
        }
        if let Some(state) = &look.sequencer {
            let _ = write!(text, "\n{}\n", sequencer_text(state));
        }
        let _ = write!(
            text,
            "\npool: {} of {} bytes, {} pinned, {} evicted\n",
            self.pool.budget_used,
            self.pool.budget_limit,
            self.pool.budget_pinned,
            self.pool.evicted
        );
        let mut parts: Vec<_> = look.parts.iter().collect();
        parts.sort_by_key(|part| std::cmp::Reverse((part.waiting, part.messages)));
        let _ =
            write!(text, "\n{:34} {:>10} {:>10} {:>9}\n", "log", "messages", "waiting", "lag, s");
        for part in parts.iter().take(PARTS_MAX) {
            let lag = seconds(part.lag_ms);
            let _ = writeln!(
                text,
                "{:34} {:>10} {:>10} {lag:>9}",
                part.name, part.messages, part.waiting
            );
        }
        if parts.len() > PARTS_MAX {
            let _ = writeln!(text, "and {} more", parts.len() - PARTS_MAX);
        }
        text.pop();
        text
    }

    fn value(&self) -> Value {
        let look = &self.look;
        let seconds = |ms: Option<u64>| ms.map(|ms| ms as f64 / 1000.0);
        let parts: Vec<Value> = look
            .parts
            .iter()
            .map(|part| {
                json!({
                    "name": part.name, "messages": part.messages, "waiting": part.waiting,
                    "lag_s": seconds(part.lag_ms),
                })
            })
            .collect();
        json!({
            "date_ms": look.date_ms, "pages": look.pages, "clients": look.clients,
            "log": look.messages(), "waiting": look.waiting(), "lag_s": seconds(look.lag_ms()),
            "quarantined": look.quarantined, "damaged": look.damaged, "parts": parts,
            "sequencer": look.sequencer.as_ref().map(sequencer_value),
            "appended": look.appended, "appended_per_hour": self.appended_per_hour(),
            "watch_dollars": self.watch_dollars, "dollars_per_hour": self.dollars_per_hour(),
            "hit_ratio": self.hit_ratio(),
            "pool": self.pool.named().into_iter().collect::<std::collections::BTreeMap<_, _>>(),
        })
    }
}

fn seconds(ms: Option<u64>) -> String {
    ms.map_or("-".to_owned(), |ms| format!("{:.1}", ms as f64 / 1000.0))
}
