//! `bench paper`: the paper's tables 3 and 4 and its Figure 3, replayed; what parallel sends make of
//! them; and the hardened store at today's latencies and prices, the sequencer's ceiling included.

use std::{fmt::Write as _, fs, path::PathBuf};

use s3db::{
    Backend, Level,
    paper::{
        PaperSettings, Variant,
        ceiling::{Ceiling, SHARED, Writers, ceiling},
        evaluation::{INTERVALS_S, PRINTED, PRINTED_FIGURE_3, Row, figure_3, improved, measure},
        today::{
            Outcome, Spread, Stalls, busy_costs, commits_beside, costs, freshness,
            freshness_bound_s, quantile, scaling,
        },
    },
};
use serde_json::{Value, json};

use super::{
    plot::{Chart, Line},
    section::{Section, table},
    told,
};
use crate::output::{Failure, Output, Progress};

/// Dollars that 1,000 atomic transactions may cost, at ten records per checkpoint.
const DOLLARS_AIM: f64 = 0.0103;
/// How much a stalled checkpointer may add to the 99th percentile of commits.
const STALL_AIM: f64 = 1.05;
/// Runs that the quantile is taken of, so that a page more or less does not decide it.
const STALLED_RUNS: u64 = 3;
/// How much longer a commit may take beside others than alone, in the median.
const CROWD_AIM: f64 = 1.10;
/// The same, in the 99th percentile.
const CROWD_TAIL_AIM: f64 = 1.30;
/// How far Table 3 and the transactions of Table 4 may be off, in percent.
const TABLE_3_AIM: f64 = 5.0;
const TABLE_4_AIM: f64 = 10.0;
/// The charts, by the names of their files.
const FIGURE_3: &str = "figure-3.svg";
const SCALING: &str = "scaling.svg";
const CEILING: &str = "ceiling.svg";

#[derive(clap::Args)]
#[command(
    after_help = "Everything runs in virtual time from seeds: the figures are the same on every machine.

Examples:
  s3db bench paper
  s3db bench paper --quick --json
  s3db bench paper --plots charts --write BENCHMARKS.md"
)]
pub(crate) struct Args {
    /// Fewer transactions, and at most 100 clients
    #[arg(long)]
    quick: bool,
    /// Write the charts, as SVG, into this folder
    #[arg(long, value_name = "FOLDER")]
    plots: Option<PathBuf>,
    /// Put the tables into this file, in place of what is between <!-- paper --> and <!-- end paper -->
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// What everything follows from
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Everything that was measured.
struct Measured {
    rows: Vec<Row>,
    improved: Vec<Row>,
    curves: Vec<(Variant, Vec<f64>)>,
    costs: Vec<Cost>,
    stalls: Vec<(Backend, Spread, [f64; 2])>,
    ages: Vec<(Backend, Stalls, [f64; 3])>,
    scaling: Vec<Scaling>,
    ceilings: Vec<(Writers, Ceiling)>,
}

/// Commits by number of clients.
struct Scaling {
    backend: Backend,
    spread: Spread,
    /// Clients; median and 99th percentile in milliseconds; the median of the first commits.
    points: Vec<(u32, [f64; 3])>,
}

/// What 1,000 transactions cost.
struct Cost {
    backend: Backend,
    level: Level,
    is_busy: bool,
    /// Records per checkpoint, as measured.
    b: f64,
    /// Transactions that share a log object, as measured, where there are any.
    group: Option<f64>,
    /// Reading, commits, background.
    dollars: [f64; 3],
    /// Median of a commit, in milliseconds.
    commit_ms: f64,
}

impl Cost {
    fn new(backend: Backend, level: Level, is_busy: bool, outcome: &Outcome) -> Cost {
        Cost {
            backend,
            level,
            is_busy,
            b: outcome.records_per_checkpoint(),
            group: outcome.transactions_per_group(),
            dollars: outcome.dollars(&backend.prices()),
            commit_ms: quantile(&outcome.commits_ms, 0.5),
        }
    }
}

pub(crate) fn run(args: &Args, output: &Output) -> Result<(), Failure> {
    let measured = measured(args, output)?;
    if let Some(folder) = &args.plots {
        fs::create_dir_all(folder).map_err(|error| told(folder, &error))?;
        for (name, chart) in [
            (FIGURE_3, chart_of_figure_3(&measured)),
            (SCALING, chart_of_scaling(&measured)),
            (CEILING, chart_of_ceilings(&measured)),
        ] {
            let file = folder.join(name);
            fs::write(&file, chart.svg()).map_err(|error| told(&file, &error))?;
        }
    }
    let tables = tables(&measured);
    if let Some(file) = &args.write {
        Section { name: "paper", text: &section(args, &tables) }
            .write_into(file)
            .map_err(|error| told(file, &error))?;
    }
    output.say(&tables, &json_of(&measured))
}

fn measured(args: &Args, output: &Output) -> Result<Measured, Failure> {
    let progress = Progress::new(output);
    let say = |what: &str| progress.show(|| format!("{what} ..."));
    let many = if args.quick { 400 } else { 1000 };
    let seed = args.seed;
    let (mut rows, mut improved_rows, mut curves) = (Vec::new(), Vec::new(), Vec::new());
    for variant in Variant::ALL {
        say(variant.name());
        rows.push(measure(PaperSettings::new(variant), many, seed)?);
        if variant != Variant::Naive {
            improved_rows.push(measure(improved(variant), many, seed)?);
        }
    }
    for (variant, _) in PRINTED_FIGURE_3 {
        say("Figure 3");
        let points = INTERVALS_S.map(|at| figure_3(variant, at, many / 2, seed));
        let points: Result<Vec<Row>, _> = points.into_iter().collect();
        curves.push((variant, points?.iter().map(Row::dollars).collect()));
    }
    let mut all_costs = Vec::new();
    for backend in Backend::ALL {
        for level in Level::ALL {
            say("dollars");
            let outcome = costs(backend, level, 10, 1000, seed)?;
            all_costs.push(Cost::new(backend, level, false, &outcome));
        }
    }
    for backend in Backend::ALL {
        say("dollars");
        let outcome = busy_costs(backend, Level::Atomic, 10, seed)?;
        all_costs.push(Cost::new(backend, Level::Atomic, true, &outcome));
    }
    let (mut stalls, mut ages, mut sizes) = (Vec::new(), Vec::new(), Vec::new());
    for backend in Backend::ALL {
        say("stalled checkpointers");
        for spread in [Spread::HotPage, Spread::Uniform] {
            // Of several runs together: one commit in a hundred may or may not fetch a page more.
            let p99 = |stalls| {
                let mut all = Vec::new();
                for seed in (0..STALLED_RUNS).map(|run| seed.wrapping_add(run)) {
                    all.extend(commits_beside(backend, spread, stalls, seed)?.commits_ms);
                }
                Ok::<f64, Failure>(quantile(&all, 0.99))
            };
            stalls.push((backend, spread, [p99(Stalls::Nobody)?, p99(Stalls::Everybody)?]));
        }
        say("freshness");
        for who in [Stalls::Nobody, Stalls::Sweeper] {
            let seen = freshness(backend, who, seed)?.ages_s;
            ages.push((backend, who, [0.5, 0.99, 1.0].map(|q| quantile(&seen, q))));
        }
    }
    for backend in Backend::ALL {
        for spread in [Spread::HotPage, Spread::Uniform] {
            let mut points = Vec::new();
            for clients in [1, 10, 100, 1000] {
                if args.quick && clients > 100 {
                    continue;
                }
                say(&format!("{clients} clients"));
                let outcome = scaling(backend, spread, clients, seed)?;
                let [p50, p99] = [0.5, 0.99].map(|q| quantile(&outcome.commits_ms, q));
                points.push((clients, [p50, p99, quantile(&outcome.first_ms, 0.5)]));
            }
            sizes.push(Scaling { backend, spread, points });
        }
    }
    let mut ceilings = Vec::new();
    for are_in_conflict in [false, true] {
        for are_together in [true, false] {
            for count in [1, 10, 100, 1000] {
                if args.quick && count > 100 {
                    continue;
                }
                say(&format!("{count} through the sequencer"));
                let writers = Writers { count, are_together, are_in_conflict };
                ceilings.push((writers, ceiling(writers, seed)?));
            }
        }
    }
    progress.end();
    Ok(Measured {
        rows,
        improved: improved_rows,
        curves,
        costs: all_costs,
        stalls,
        ages,
        scaling: sizes,
        ceilings,
    })
}

/// A figure with an aim, which it may not be above.
struct Goal {
    what: String,
    measured: f64,
    most: f64,
    digits: usize,
}

/// What was aimed for. Figures with several rows stand for their worst.
fn goals(measured: &Measured) -> Vec<Goal> {
    let most = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max);
    let off = |got: f64, printed: f64| 100.0 * (got / printed - 1.0).abs();
    let both = || measured.rows.iter().zip(&PRINTED);
    let table_3 = most(&mut both().map(|(row, printed)| off(row.average_s, printed.average_s)));
    let table_4 = most(
        &mut both().map(|(row, printed)| off(row.transaction_dollars, printed.transaction_dollars)),
    );
    let goal =
        |what: &str, measured, most, digits| Goal { what: what.into(), measured, most, digits };
    let mut goals = vec![
        goal("Table 3, averages, off by percent", table_3, TABLE_3_AIM, 1),
        goal("Table 4, transactions, off by percent", table_4, TABLE_4_AIM, 1),
    ];
    for cost in measured.costs.iter().filter(|cost| cost.level == Level::Atomic) {
        let who = if cost.is_busy { ", busy" } else { "" };
        let (log, b) = (cost.backend.name(), cost.b);
        let groups = cost.group.map_or(String::new(), |of| format!(", groups of {of:.1}"));
        let what = format!("$ for 1,000 atomic transactions, {log}{who}, b = {b:.1}{groups}");
        goals.push(goal(&what, cost.dollars.iter().sum(), DOLLARS_AIM, 4));
    }
    let stalled = most(&mut measured.stalls.iter().map(|(_, _, [usual, stalled])| stalled / usual));
    goals.push(goal("99 % of commits, checkpointers stalled / running", stalled, STALL_AIM, 2));
    let oldest = most(&mut measured.ages.iter().map(|(_, _, [_, p99, _])| *p99));
    goals.push(goal("99 % of commits seen by others, s", oldest, freshness_bound_s(), 0));
    let crowds = |at: usize, is_counted: fn(Spread) -> bool| {
        let rows = measured.scaling.iter().filter(|row| is_counted(row.spread));
        let crowds = rows.filter_map(|row| {
            let (first, last) = (row.points.first()?, row.points.last()?);
            Some(last.1[at] / first.1[at])
        });
        most(&mut crowds.into_iter())
    };
    let clients =
        measured.scaling.first().and_then(|row| row.points.last()).map_or(0, |last| last.0);
    let what = format!("commit beside {clients} clients / alone, median");
    goals.push(goal(&what, crowds(0, |_| true), CROWD_AIM, 2));
    let what = format!("commit beside {clients} clients / alone, 99 %, hot page");
    let hot = crowds(1, |spread| spread == Spread::HotPage);
    goals.push(goal(&what, hot, CROWD_TAIL_AIM, 2));
    goals
}

fn tables(measured: &Measured) -> String {
    let mut text = String::new();
    let rows = goals(measured).into_iter().map(|Goal { what, measured, most, digits }| {
        vec![
            what,
            format!("{measured:.digits$}"),
            format!("at most {most}"),
            if measured <= most { "yes" } else { "**no**" }.to_owned(),
        ]
    });
    table(&mut text, &["figure", "measured", "aim", "met"], rows);
    text.push_str(
        "### Tables 3 and 4\n\nSeconds per transaction and dollars per 1,000, of one client in 2007 with \
         a checkpoint interval of 15 s; in brackets what the paper printed. Beside the dollars of \
         Table 4 stands what the transfer of the pages costs that a transaction reads, for which \
         Table 4 has no room.\n\n",
    );
    let rows = PRINTED.iter().zip(&measured.rows).map(|(printed, row)| {
        vec![
            row.variant.name().to_owned(),
            format!("{:.2} ({})", row.average_s, printed.average_s),
            format!("{:.1} ({})", row.max_s, printed.max_s),
            format!("{:.2} ({})", row.transaction_dollars, printed.transaction_dollars),
            format!("{:.2} ({})", row.background_dollars, printed.background_dollars),
            format!("{:.2}", row.reading_dollars),
        ]
    });
    let heads = [
        "variant",
        "average s",
        "longest s",
        "transaction $",
        "checkpoint + atomic queue $",
        "reading $",
    ];
    table(&mut text, &heads, rows);
    text += "The same with sends that go out together, and one message per transaction of \
             Atomicity:\n\n";
    let rows = measured.improved.iter().map(|row| {
        vec![
            row.variant.name().to_owned(),
            format!("{:.2}", row.average_s),
            format!("{:.2}", row.transaction_dollars),
            format!("{:.2}", row.background_dollars),
        ]
    });
    let heads = ["variant", "average s", "transaction $", "checkpoint + atomic queue $"];
    table(&mut text, &heads, rows);

    text += "### Figure 3\n\nDollars per 1,000 transactions by checkpoint interval; in brackets what the \
             paper's plot shows.\n\n";
    let heads = INTERVALS_S.map(|at| format!("{at} s"));
    let heads: Vec<&str> =
        std::iter::once("variant").chain(heads.iter().map(String::as_str)).collect();
    let rows =
        measured.curves.iter().zip(PRINTED_FIGURE_3).map(|((variant, ours), (_, theirs))| {
            let cells =
                ours.iter().zip(theirs).map(|(ours, theirs)| format!("{ours:.2} ({theirs})"));
            std::iter::once(variant.name().to_owned()).chain(cells).collect()
        });
    table(&mut text, &heads, rows);

    text += "### Today\n\nDollars per 1,000 transactions of the same workload (about 4 pages read, 7 \
             leaves changed, one shopper) by our store, at today's list prices, requests only; b is the \
             measured number of records per checkpoint of a leaf. The busy process has 100 shoppers, \
             who share log objects (group: transactions in each of them); they commit faster than one \
             process checkpoints, and stop for it, since b would grow without that, and all of it be \
             cheaper. An ordered queue gives out ten messages of a page at most, so that b stays below \
             ten. The goal is 0.0103 at the atomic level, at b = 10 and, with s3-log, groups of 10. A lone client \
             on s3-log has no groups: 0.0050 are its commits, each of which is a put, 0.0035 the pages, which it \
             need not read to put them, 0.0004 each page that a transaction reads, and the rest its stamps, a put \
             in a minute. Snapshot and serializable pass the sequencer, whatever the log is: each commit is a \
             put there, and another one of what it writes, which is more than 2 KiB; of such collections the \
             snapshots are kept for 2 s.\n\n";
    let rows = measured.costs.iter().map(|cost| {
        let [reading, commit, background] = cost.dollars;
        let name = cost.backend.name();
        vec![
            if cost.is_busy { format!("{name}, busy") } else { name.to_owned() },
            cost.level.name().to_owned(),
            format!("{:.1}", cost.b),
            cost.group.map_or("-".to_owned(), |group| format!("{group:.1}")),
            format!("{reading:.4}"),
            format!("{commit:.4}"),
            format!("{background:.4}"),
            format!("{:.4}", reading + commit + background),
            format!("{:.0}", cost.commit_ms),
        ]
    });
    let heads = [
        "log",
        "level",
        "b",
        "group",
        "reading $",
        "commit $",
        "background $",
        "total $",
        "commit ms",
    ];
    table(&mut text, &heads, rows);

    text += "### Whom a commit waits for\n\n99th percentile of 10,000 commits of ten clients, all on one leaf \
             or on leaves chosen at random, while a sweeper and the clients' own checkpoints run, or stall \
             for a minute at a time in the middle of what they do.\n\n";
    let rows = measured.stalls.iter().map(|(backend, spread, [usual, stalled])| {
        vec![
            backend.name().to_owned(),
            spread.name().to_owned(),
            format!("{usual:.1}"),
            format!("{stalled:.1}"),
            format!("{:.2}", stalled / usual),
        ]
    });
    table(&mut text, &["log", "pages", "running ms", "stalled ms", "ratio"], rows);

    let _ = writeln!(
        text,
        "### How old what others see is\n\nSeconds from a commit until another process reads it, whose \
         cached pages live for 100 s; ten writers, three readers, a sweeper. The bound is interval \
         plus TTL plus lease, {} s.\n",
        freshness_bound_s()
    );
    let rows = measured.ages.iter().map(|(backend, who, [p50, p99, most])| {
        let stalls = if *who == Stalls::Sweeper { "the sweeper stalls" } else { "nobody stalls" };
        vec![
            backend.name().to_owned(),
            stalls.to_owned(),
            format!("{p50:.0}"),
            format!("{p99:.0}"),
            format!("{most:.0}"),
        ]
    });
    table(&mut text, &["log", "", "median s", "99 % s", "most s"], rows);

    text += "### Commits by number of clients\n\nMedian and 99th percentile in milliseconds, three records \
             per transaction, all on one leaf or on leaves chosen at random (which a commit then has to \
             fetch first). Each client is a process with a cache of its own; its first three commits \
             fetch what it does not have yet, and are the last figure, a median. A commit asks for no page that \
             is in memory and young, whoever has put it since: so on the hot page nobody waits for others. \
             Leaves chosen at random are fetched, together; beside many clients one commit in a hundred takes as \
             long as a get more.\n\n";
    let clients: Vec<u32> = measured
        .scaling
        .first()
        .map_or(Vec::new(), |row| row.points.iter().map(|point| point.0).collect());
    let heads: Vec<String> = clients.iter().map(ToString::to_string).collect();
    let heads: Vec<&str> =
        ["log", "pages"].into_iter().chain(heads.iter().map(String::as_str)).collect();
    let rows = measured.scaling.iter().map(|Scaling { backend, spread, points }| {
        let cells =
            points.iter().map(|(_, [p50, p99, first])| format!("{p50:.1}, {p99:.1}; {first:.1}"));
        [backend.name().to_owned(), spread.name().to_owned()].into_iter().chain(cells).collect()
    });
    table(&mut text, &heads, rows);

    let _ = writeln!(
        text,
        "### Commits per second through one sequencer\n\nSerializable transactions, which all pass one \
         object, committed one after the other by each writer without a pause: blindly, a record of its own, \
         or in conflict, by reading and writing one of the same {SHARED}. Writers of one process share swaps; \
         processes take turns, and who was too slow reads and tries again. Commits go to their pages \
         meanwhile. Aborted: another one was faster. Given up: others were faster in ten swaps. Puts are all \
         there are, refused ones and pages included.\n"
    );
    let rows = measured.ceilings.iter().map(|(writers, seen)| {
        let Writers { count, are_together, are_in_conflict } = writers;
        vec![
            if *are_together { "one process" } else { "a process each" }.to_owned(),
            if *are_in_conflict { "in conflict" } else { "their own" }.to_owned(),
            count.to_string(),
            format!("{:.1}", seen.per_s()),
            format!("{:.1} %", 100.0 * seen.aborts()),
            format!("{:.1} %", 100.0 * seen.refusals()),
            format!("{:.2}", seen.puts_per_commit()),
            format!("{:.0}", quantile(&seen.commits_ms, 0.5)),
            format!("{:.0}", quantile(&seen.commits_ms, 0.99)),
        ]
    });
    let heads = [
        "writers in",
        "records",
        "writers",
        "commits/s",
        "aborted",
        "given up",
        "puts per commit",
        "median ms",
        "99 % ms",
    ];
    table(&mut text, &heads, rows);
    text.truncate(text.trim_end().len());
    text
}

fn chart_of_figure_3(measured: &Measured) -> Chart<'static> {
    let mut lines = Vec::new();
    for (n, (variant, ours)) in measured.curves.iter().enumerate() {
        let xs = INTERVALS_S.iter().map(|at| *at as f64);
        lines.push(Line {
            name: variant.name().to_owned(),
            is_dashed: false,
            colour: n,
            points: xs.clone().zip(ours.iter().copied()).collect(),
        });
        lines.push(Line {
            name: format!("{}, 2008", variant.name()),
            is_dashed: true,
            colour: n,
            points: xs.zip(PRINTED_FIGURE_3[n].1).collect(),
        });
    }
    Chart {
        title: "Dollars by checkpoint interval, 2007",
        x: "checkpoint interval, s",
        y: "$ per 1,000",
        is_log: false,
        lines,
    }
}

fn chart_of_scaling(measured: &Measured) -> Chart<'static> {
    let line = |(n, Scaling { backend, spread, points }): (usize, &Scaling)| Line {
        name: format!("{}, {}", backend.name(), spread.name()),
        is_dashed: *spread == Spread::HotPage,
        colour: n / 2,
        points: points.iter().map(|(clients, [p50, ..])| (f64::from(*clients), *p50)).collect(),
    };
    Chart {
        title: "Median commit by number of clients",
        x: "clients",
        y: "ms",
        is_log: true,
        lines: measured.scaling.iter().enumerate().map(line).collect(),
    }
}

fn chart_of_ceilings(measured: &Measured) -> Chart<'static> {
    let mut lines: Vec<Line> = Vec::new();
    for some in measured.ceilings.chunk_by(|(a, _), (b, _)| {
        (a.are_together, a.are_in_conflict) == (b.are_together, b.are_in_conflict)
    }) {
        let Writers { are_together, are_in_conflict, .. } = some[0].0;
        let who = if are_together { "one process" } else { "a process each" };
        let what = if are_in_conflict { "in conflict" } else { "own records" };
        lines.push(Line {
            name: format!("{who}, {what}"),
            is_dashed: are_in_conflict,
            colour: usize::from(!are_together),
            points: some.iter().map(|(it, seen)| (f64::from(it.count), seen.per_s())).collect(),
        });
    }
    Chart {
        title: "Commits per second through one sequencer",
        x: "writers",
        y: "commits/s",
        is_log: true,
        lines,
    }
}

fn json_of(measured: &Measured) -> Value {
    let row = |row: &Row| {
        json!({
            "variant": row.variant.name(), "average_s": row.average_s, "max_s": row.max_s,
            "transaction_dollars": row.transaction_dollars,
            "background_dollars": row.background_dollars,
            "reading_dollars": row.reading_dollars,
        })
    };
    let printed = |printed: &s3db::paper::evaluation::Printed| {
        json!({
            "variant": printed.variant.name(), "average_s": printed.average_s,
            "max_s": printed.max_s, "transaction_dollars": printed.transaction_dollars,
            "background_dollars": printed.background_dollars,
        })
    };
    let curve = |(variant, points): &(Variant, Vec<f64>)| json!({"variant": variant.name(), "intervals_s": INTERVALS_S, "dollars": points});
    let cost = |cost: &Cost| {
        json!({
            "backend": cost.backend.name(), "level": cost.level.name(), "busy": cost.is_busy,
            "records_per_checkpoint": cost.b, "transactions_per_group": cost.group,
            "reading_dollars": cost.dollars[0],
            "commit_dollars": cost.dollars[1], "background_dollars": cost.dollars[2],
            "dollars": cost.dollars.iter().sum::<f64>(), "commit_ms": cost.commit_ms,
        })
    };
    let stall = |(backend, spread, [usual, stalled]): &(Backend, Spread, [f64; 2])| {
        json!({
            "backend": backend.name(), "pages": spread.name(), "p99_ms": usual,
            "p99_stalled_ms": stalled,
        })
    };
    let age = |(backend, who, [p50, p99, most]): &(Backend, Stalls, [f64; 3])| {
        json!({
            "backend": backend.name(), "sweeper_stalls": *who == Stalls::Sweeper,
            "median_s": p50, "p99_s": p99, "max_s": most,
        })
    };
    let goal = |Goal { what, measured, most, .. }: Goal| json!({"what": what, "measured": measured, "at_most": most, "met": measured <= most});
    let size = |Scaling { backend, spread, points }: &Scaling| {
        let points: Vec<Value> = points
            .iter()
            .map(|(clients, [p50, p99, first])| {
                json!({"clients": clients, "median_ms": p50, "p99_ms": p99, "first_ms": first})
            })
            .collect();
        json!({"backend": backend.name(), "pages": spread.name(), "points": points})
    };
    let sequenced = |(writers, seen): &(Writers, Ceiling)| {
        json!({
            "writers": writers.count, "one_process": writers.are_together,
            "in_conflict": writers.are_in_conflict, "per_s": seen.per_s(),
            "aborted": seen.aborts(), "given_up": seen.refusals(),
            "puts_per_commit": seen.puts_per_commit(),
            "median_ms": quantile(&seen.commits_ms, 0.5), "p99_ms": quantile(&seen.commits_ms, 0.99),
        })
    };
    json!({
        "per_transactions": 1000,
        "goals": goals(measured).into_iter().map(goal).collect::<Vec<_>>(),
        "measured": measured.rows.iter().map(row).collect::<Vec<_>>(),
        "printed": PRINTED.iter().map(printed).collect::<Vec<_>>(),
        "parallel": measured.improved.iter().map(row).collect::<Vec<_>>(),
        "figure_3": measured.curves.iter().map(curve).collect::<Vec<_>>(),
        "today": measured.costs.iter().map(cost).collect::<Vec<_>>(),
        "stalls": measured.stalls.iter().map(stall).collect::<Vec<_>>(),
        "freshness": measured.ages.iter().map(age).collect::<Vec<_>>(),
        "freshness_bound_s": freshness_bound_s(),
        "scaling": measured.scaling.iter().map(size).collect::<Vec<_>>(),
        "sequencer": measured.ceilings.iter().map(sequenced).collect::<Vec<_>>(),
    })
}

/// The section of BENCHMARKS.md.
fn section(args: &Args, tables: &str) -> String {
    let plots = args.plots.as_deref().map_or(String::new(), |folder| {
        let folder = folder.display();
        format!(
            "![Dollars by checkpoint interval]({folder}/{FIGURE_3})\n\n\
             ![Commits by number of clients]({folder}/{SCALING})\n\n\
             ![Commits per second through one sequencer]({folder}/{CEILING})\n\n"
        )
    });
    let quick = if args.quick { " --quick" } else { "" };
    format!(
        "## 9. A database on S3\n\n**Does the protocol of 2008 cost and take what its paper \
         says, and what do the same transactions cost and take today?**\n\n{tables}\n\n{plots}\
         Measured by `s3db bench paper{quick} --seed {}` in virtual time: the figures follow from the \
         seed, not from a machine. Latencies of 2007 are the paper's tables 1 and 2, those of today \
         20 ms for a get, 32 ms for a put, 10 ms to send and 8 ms to receive, each up to 30 % more or \
         less. Prices are the list prices of us-east-1.",
        args.seed
    )
}
