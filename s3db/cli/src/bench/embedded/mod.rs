//! `bench embedded`: what commits, reads, recovery and freshness take on this machine, where the
//! services are a directory or memory.

mod ceiling; // transactions with isolation, which pass one object
mod commits; // one client, and several
mod freshness; // how old what others read is
mod place; // where, and the databases
mod reads; // from a warm pool
mod recovery; // after a client was killed

use std::{path::PathBuf, time::Duration};

use freshness::Pace;
use place::{Filled, Folder, Medium};
use s3db::{Backend, Level, paper::today::quantile};
use serde_json::{Value, json};

use super::{
    machine::{date, machine},
    section::{Section, table},
    told,
};
use crate::output::{Failure, Output, Progress};

/// Levels that every database has.
const LEVELS: [Level; 3] = [Level::Basic, Level::Monotonic, Level::Atomic];
/// Microseconds that a read from a warm pool may take, half of the time.
const READ_AIM_US: f64 = 5.0;
/// Rounds, in each of which everything has its turn.
const ROUNDS: u32 = 3;
/// Of a run for a glance.
const QUICK_SECONDS: f64 = 0.15;

#[derive(clap::Args)]
#[command(
    after_help = "Everything is measured in a folder, where a commit is durable when it returns (file and directory \
are synced), and in memory, in rounds in which everything has its turn. The folder is removed \
afterwards.

Examples:
  s3db bench embedded
  s3db bench embedded --directory /mnt/disk --seconds 10 --clients 16
  s3db bench embedded --quick --json
  s3db bench embedded --write BENCHMARKS.md"
)]
pub(crate) struct Args {
    /// Where to make the folder. Default: the folder for temporary files
    #[arg(long, value_name = "FOLDER")]
    directory: Option<PathBuf>,
    /// Seconds that each figure is measured for, in all rounds together: 0.01 to 600. Default: 3
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    seconds: Option<f64>,
    /// Clients of which several commit at the same time
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(2..=64))]
    clients: u32,
    /// Transactions in the log of a client that is killed: up to 100,000, several by commas.
    /// Default: 10,100,1000
    #[arg(
        long,
        value_name = "NUMBERS",
        value_delimiter = ',',
        value_parser = clap::value_parser!(u32).range(1..=100_000)
    )]
    transactions: Option<Vec<u32>>,
    /// One short round with few records
    #[arg(long)]
    quick: bool,
    /// Put the tables into this file, in place of what is between <!-- embedded --> and
    /// <!-- end embedded -->
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    (0.01..=600.0).contains(&seconds).then_some(seconds).ok_or("0.01 to 600".to_owned())
}

/// What is to be done.
struct Plan {
    clients: u32,
    rounds: u32,
    /// Of each round.
    window: Duration,
    records: u32,
    transactions: Vec<u32>,
}

impl Plan {
    fn new(args: &Args) -> Plan {
        let rounds = if args.quick { 1 } else { ROUNDS };
        let seconds = args.seconds.unwrap_or(if args.quick { QUICK_SECONDS } else { 3.0 });
        let usual = if args.quick { vec![10, 50] } else { vec![10, 100, 1000] };
        Plan {
            clients: args.clients,
            rounds,
            window: Duration::from_secs_f64(seconds / f64::from(rounds)),
            records: if args.quick { 2000 } else { 20_000 },
            transactions: args.transactions.clone().unwrap_or(usual),
        }
    }
}

/// Commits of one kind.
struct Commits {
    medium: Medium,
    backend: Backend,
    level: Level,
    clients: u32,
    /// Transactions per second of each round: of the commits, and until all is on its pages.
    per_s: Vec<f64>,
    settled_per_s: Vec<f64>,
    ms: Vec<f64>,
}

/// Reads from one medium.
struct Reads {
    medium: Medium,
    per_s: Vec<f64>,
    us: Vec<f64>,
}

/// Recoveries from one log.
struct Recovery {
    backend: Backend,
    transactions: u32,
    ms: Vec<f64>,
}

/// Ages of what others read.
struct Ages {
    medium: Medium,
    backend: Backend,
    pace: Pace,
    ms: Vec<f64>,
}

/// Transactions with isolation, of one process.
struct Ceiling {
    medium: Medium,
    writers: u32,
    /// Transactions per second of each round, and per put.
    per_s: Vec<f64>,
    per_put: Vec<f64>,
    ms: Vec<f64>,
}

/// Everything that was measured.
struct Measured {
    file_system: String,
    commits: Vec<Commits>,
    ceiling: Vec<Ceiling>,
    reads: Vec<Reads>,
    recovery: Vec<Recovery>,
    ages: Vec<Ages>,
}

pub(crate) fn run(args: &Args, output: &Output) -> Result<(), Failure> {
    let plan = Plan::new(args);
    // The load, before this run is a part of it.
    let machine = machine();
    let folder = Folder::new(&args.directory.clone().unwrap_or_else(std::env::temp_dir))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Told(format!("no runtime: {error}")))?;
    let progress = Progress::new(output);
    let measured = runtime.block_on(measured(&plan, &folder, &progress));
    progress.end();
    let measured = measured?;
    let tables = tables(&plan, &measured);
    if let Some(file) = &args.write {
        let text = section(args, &tables, &machine);
        Section { name: "embedded", text: &text }
            .write_into(file)
            .map_err(|error| told(file, &error))?;
    }
    output.say(&tables, &json_of(&plan, &measured, &machine))
}

async fn measured(plan: &Plan, folder: &Folder, progress: &Progress) -> Result<Measured, Failure> {
    let say = |what: String| progress.show(|| format!("{what} ..."));
    let mut filled = Vec::new();
    let mut found = Measured {
        file_system: folder.file_system(),
        commits: Vec::new(),
        ceiling: Vec::new(),
        reads: Vec::new(),
        recovery: Vec::new(),
        ages: Vec::new(),
    };
    let mut warm = Vec::new();
    for medium in Medium::ALL {
        for backend in Backend::ALL {
            say(format!("{}, {}: {} records", medium.name(), backend.name(), plan.records));
            let at = Filled::new(folder, medium, backend, plan.records).await?;
            // Pages are pages, whatever brought records to them.
            if backend == Backend::default() {
                warm.push(reads::Warm::new(&at).await?);
                found.reads.push(Reads { medium, per_s: Vec::new(), us: Vec::new() });
            }
            for level in LEVELS {
                for clients in [1, plan.clients] {
                    let (per_s, settled_per_s, ms) = Default::default();
                    let row = Commits { medium, backend, level, clients, per_s, settled_per_s, ms };
                    found.commits.push(row);
                }
            }
            for pace in Pace::ALL {
                found.ages.push(Ages { medium, backend, pace, ms: Vec::new() });
            }
            filled.push(at);
        }
    }
    let mut sequenced = Vec::new();
    for medium in Medium::ALL {
        sequenced.push(ceiling::Sequenced::new(folder, medium).await?);
        for writers in ceiling::WRITERS {
            let (per_s, per_put, ms) = Default::default();
            found.ceiling.push(Ceiling { medium, writers, per_s, per_put, ms });
        }
    }
    for backend in Backend::ALL {
        for &transactions in &plan.transactions {
            found.recovery.push(Recovery { backend, transactions, ms: Vec::new() });
        }
    }
    let place = |medium: Medium, backend: Backend| {
        let at = filled.iter().find(|at| at.medium == medium && at.backend == backend);
        at.expect("all of them are filled")
    };
    for round in 0..plan.rounds {
        let seed = u64::from(round) + 1;
        for (warm, row) in warm.iter().zip(&mut found.reads) {
            say(format!("round {} of {}: reads, {}", round + 1, plan.rounds, row.medium.name()));
            let (times, seconds) = warm.round(plan.window, seed).await?;
            row.per_s.push(times.len() as f64 / seconds);
            row.us.extend(times);
        }
        for row in &mut found.commits {
            let Commits { medium, backend, level, clients, .. } = *row;
            say(format!(
                "round {} of {}: commits, {}, {}, {}, {clients} clients",
                round + 1,
                plan.rounds,
                medium.name(),
                backend.name(),
                level.name()
            ));
            let at = place(medium, backend);
            let done = commits::round(at, level, clients, plan.window, seed).await?;
            let count = done.commits_ms.len() as f64;
            row.per_s.push(count / done.window_s);
            row.settled_per_s.push(count / (done.window_s + done.settling_s));
            row.ms.extend(done.commits_ms);
        }
        for row in &mut found.ceiling {
            let Ceiling { medium, writers, .. } = *row;
            say(format!(
                "round {} of {}: commits with isolation, {}, {writers} writers",
                round + 1,
                plan.rounds,
                medium.name()
            ));
            let at = sequenced.iter().find(|at| at.medium == medium).expect("there is one of each");
            let done = at.round(writers, plan.window).await?;
            let count = done.commits_ms.len() as f64;
            row.per_s.push(count / done.window_s);
            row.per_put.push(count / done.puts.max(1) as f64);
            row.ms.extend(done.commits_ms);
        }
        for row in &mut found.recovery {
            let Recovery { backend, transactions, .. } = *row;
            say(format!(
                "round {} of {}: recovery, {}, {transactions} transactions",
                round + 1,
                plan.rounds,
                backend.name()
            ));
            row.ms.push(recovery::recovery(folder, backend, transactions, round).await?);
        }
        for row in &mut found.ages {
            let at = place(row.medium, row.backend);
            say(format!(
                "round {} of {}: freshness, {}, {}, {}",
                round + 1,
                plan.rounds,
                row.medium.name(),
                row.backend.name(),
                row.pace.name()
            ));
            row.ms.extend(freshness::ages_ms(at, row.pace, plan.window).await?);
        }
    }
    let sort = |values: &mut Vec<f64>| values.sort_by(f64::total_cmp);
    for row in &mut found.commits {
        [&mut row.per_s, &mut row.settled_per_s, &mut row.ms].into_iter().for_each(sort);
    }
    for row in &mut found.ceiling {
        [&mut row.per_s, &mut row.per_put, &mut row.ms].into_iter().for_each(sort);
    }
    for at in sequenced {
        at.close().await?;
    }
    for row in &mut found.reads {
        [&mut row.per_s, &mut row.us].into_iter().for_each(sort);
    }
    found.recovery.iter_mut().for_each(|row| sort(&mut row.ms));
    found.ages.iter_mut().for_each(|row| sort(&mut row.ms));
    Ok(found)
}

/// Three places.
fn figure(value: f64) -> String {
    match value {
        value if value >= 99.95 => format!("{value:.0}"),
        value if value >= 9.995 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

fn tables(plan: &Plan, measured: &Measured) -> String {
    let mut text = String::new();
    let heads = ["figure", "measured", "aim", "met"];
    let aims = measured.reads.iter().map(|row| {
        let median = quantile(&row.us, 0.5);
        vec![
            format!("read from a warm pool, {}, median us", row.medium.name()),
            format!("{median:.2}"),
            format!("under {READ_AIM_US:.0}"),
            if median < READ_AIM_US { "yes" } else { "**no**" }.to_owned(),
        ]
    });
    table(&mut text, &heads, aims);

    text += &format!(
        "In a directory ({}) a commit is durable when it returns: its file is synced, renamed, and the \
         directory synced. In memory nothing is. Each client is a handle of its own, with its own pool \
         and log, as a process would be. {} records of {} bytes, {} rounds in turn; medians of the \
         rounds for rates, quantiles of all rounds together for times.\n\n",
        measured.file_system,
        plan.records,
        place::PAYLOAD_BYTES,
        plan.rounds
    );
    text += &format!(
        "### Commits\n\nTransactions per second, of {} records chosen at random each, by one client and \
         by {} at once, and milliseconds of a commit, median and 99th percentile. Settled: until \
         everything is on its pages as well, and the clients have closed. A round is over after {} \
         transactions in a directory, and after {} in memory.\n\n",
        commits::CHANGES,
        plan.clients,
        commits::round_max(Medium::Directory),
        commits::round_max(Medium::Memory)
    );
    let heads = [
        "in",
        "log",
        "level",
        "clients",
        "per second",
        "settled per second",
        "median ms",
        "99 % ms",
    ];
    let rows = measured.commits.iter().map(|row| {
        vec![
            row.medium.name().to_owned(),
            row.backend.name().to_owned(),
            row.level.name().to_owned(),
            row.clients.to_string(),
            figure(quantile(&row.per_s, 0.5)),
            figure(quantile(&row.settled_per_s, 0.5)),
            figure(quantile(&row.ms, 0.5)),
            figure(quantile(&row.ms, 0.99)),
        ]
    });
    table(&mut text, &heads, rows);

    text += &format!(
        "### Commits with isolation\n\nSerializable transactions of one record each, by the writers of one process, \
         of which none is in another's way. All commits of such collections in a database pass one object: \
         those that wait share a put of it, {} at most, so the ceiling is how many share one, divided by \
         how long it takes. Puts are all that were made meanwhile, those of pages included.\n\n",
        ceiling::WRITERS[3]
    );
    let heads = ["in", "writers", "per second", "per put", "median ms", "99 % ms"];
    let rows = measured.ceiling.iter().map(|row| {
        vec![
            row.medium.name().to_owned(),
            row.writers.to_string(),
            figure(quantile(&row.per_s, 0.5)),
            figure(quantile(&row.per_put, 0.5)),
            figure(quantile(&row.ms, 0.5)),
            figure(quantile(&row.ms, 0.99)),
        ]
    });
    table(&mut text, &heads, rows);

    text += "### Reads from a warm pool\n\nOne record at random, by one thread, each read in a transaction \
             of its own. No service is called.\n\n";
    let heads = ["in", "per second", "median us", "99 % us"];
    let rows = measured.reads.iter().map(|row| {
        vec![
            row.medium.name().to_owned(),
            figure(quantile(&row.per_s, 0.5)),
            figure(quantile(&row.us, 0.5)),
            figure(quantile(&row.us, 0.99)),
        ]
    });
    table(&mut text, &heads, rows);

    text += "### Recovery\n\nMilliseconds that `s3db sweep` takes, from the start of that process to its end, \
             after a process was killed that had committed so many transactions of one record and \
             brought none to its page. Median and longest of the rounds.\n\n";
    let heads: Vec<String> =
        plan.transactions.iter().map(|count| format!("{count} transactions")).collect();
    let heads: Vec<&str> = std::iter::once("log").chain(heads.iter().map(String::as_str)).collect();
    let rows = Backend::ALL.map(|backend| {
        let cells = measured.recovery.iter().filter(|row| row.backend == backend).map(|row| {
            let [median, most] = [0.5, 1.0].map(|q| figure(quantile(&row.ms, q)));
            format!("{median}, {most}")
        });
        std::iter::once(backend.name().to_owned()).chain(cells).collect()
    });
    table(&mut text, &heads, rows);

    text += "### Freshness\n\nMilliseconds from the return of a commit until another client reads what it \
             wrote. In the background: checkpoint interval and TTL of 500 ms. At once: the writer asks \
             for a checkpoint after each commit, and the reader asks for the page at each read. The bound, \
             whoever dies, is interval plus TTL plus lease.\n\n";
    let heads = ["in", "log", "", "median ms", "99 % ms", "most ms", "bound ms"];
    let rows = measured.ages.iter().map(|row| {
        let [median, p99, most] = [0.5, 0.99, 1.0].map(|q| figure(quantile(&row.ms, q)));
        vec![
            row.medium.name().to_owned(),
            row.backend.name().to_owned(),
            row.pace.name().to_owned(),
            median,
            p99,
            most,
            format!("{:.0}", row.pace.bound_s() * 1e3),
        ]
    });
    table(&mut text, &heads, rows);
    text.truncate(text.trim_end().len());
    text
}

fn json_of(plan: &Plan, measured: &Measured, machine: &str) -> Value {
    let commits = |row: &Commits| {
        json!({
            "in": row.medium.name(), "durability": row.medium.durability(),
            "backend": row.backend.name(), "level": row.level.name(), "clients": row.clients,
            "transactions": row.ms.len(), "per_s": quantile(&row.per_s, 0.5),
            "settled_per_s": quantile(&row.settled_per_s, 0.5),
            "median_ms": quantile(&row.ms, 0.5), "p99_ms": quantile(&row.ms, 0.99),
        })
    };
    let reads = |row: &Reads| {
        json!({
            "in": row.medium.name(), "reads": row.us.len(), "per_s": quantile(&row.per_s, 0.5),
            "median_us": quantile(&row.us, 0.5), "p99_us": quantile(&row.us, 0.99),
            "aim_us": READ_AIM_US, "met": quantile(&row.us, 0.5) < READ_AIM_US,
        })
    };
    let ceiling = |row: &Ceiling| {
        json!({
            "in": row.medium.name(), "writers": row.writers, "transactions": row.ms.len(),
            "per_s": quantile(&row.per_s, 0.5), "per_put": quantile(&row.per_put, 0.5),
            "median_ms": quantile(&row.ms, 0.5), "p99_ms": quantile(&row.ms, 0.99),
        })
    };
    let recovery = |row: &Recovery| {
        json!({
            "backend": row.backend.name(), "transactions": row.transactions,
            "median_ms": quantile(&row.ms, 0.5), "max_ms": quantile(&row.ms, 1.0),
        })
    };
    let age = |row: &Ages| {
        json!({
            "in": row.medium.name(), "backend": row.backend.name(), "pace": row.pace.name(),
            "commits": row.ms.len(), "median_ms": quantile(&row.ms, 0.5),
            "p99_ms": quantile(&row.ms, 0.99), "max_ms": quantile(&row.ms, 1.0),
            "bound_ms": row.pace.bound_s() * 1e3,
        })
    };
    json!({
        "date": date(), "machine": machine, "file_system": measured.file_system,
        "records": plan.records, "record_bytes": place::PAYLOAD_BYTES, "rounds": plan.rounds,
        "window_s": plan.window.as_secs_f64(),
        "commits": measured.commits.iter().map(commits).collect::<Vec<_>>(),
        "isolated": measured.ceiling.iter().map(ceiling).collect::<Vec<_>>(),
        "reads": measured.reads.iter().map(reads).collect::<Vec<_>>(),
        "recovery": measured.recovery.iter().map(recovery).collect::<Vec<_>>(),
        "freshness": measured.ages.iter().map(age).collect::<Vec<_>>(),
    })
}

/// The section of BENCHMARKS.md.
fn section(args: &Args, tables: &str, machine: &str) -> String {
    let mut command = "s3db bench embedded".to_owned();
    if args.quick {
        command += " --quick";
    }
    if let Some(seconds) = args.seconds {
        command += &format!(" --seconds {seconds}");
    }
    if args.clients != 8 {
        command += &format!(" --clients {}", args.clients);
    }
    if let Some(transactions) = &args.transactions {
        let numbers: Vec<String> = transactions.iter().map(ToString::to_string).collect();
        command += &format!(" --transactions {}", numbers.join(","));
    }
    format!(
        "## 11. A database on one machine\n\n**What do commits, reads, recovery and freshness take where \
         the services are a directory, or memory?**\n\n{tables}\n\nMeasured {} by `{command}` on {machine}.",
        date()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_places() {
        for (value, expected) in [(0.123, "0.12"), (9.996, "10.0"), (12.34, "12.3"), (99.96, "100")]
        {
            assert_eq!(figure(value), expected, "{value}");
        }
    }

    #[test]
    fn seconds_are_bounded() {
        for (text, is_fine) in
            [("3", true), ("0.01", true), ("0", false), ("NaN", false), ("1e9", false)]
        {
            assert_eq!(seconds(text).is_ok(), is_fine, "{text}");
        }
    }
}
