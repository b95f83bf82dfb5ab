//! Runs seeded schedules of whole clusters and checks the invariants: `make simulate SEEDS=n`.

use std::{
    collections::BTreeMap,
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use s3db::{
    Backend, FailPoint,
    cloud::model::{Answer, Faults},
    paper::Variant,
    simulation::{Plan, PrintedPlan, PrintedReport, Report, replay, run, run_printed},
};

const USAGE: &str = "\
Runs seeded schedules of whole clusters in virtual time and checks the store's invariants.

usage: s3db-simulate [--seeds N] [--from SEED] [--backend s3-log|sqs-standard|sqs-fifo]
                     [--plan PLAN] [--mode today|2007] [--fail-points] [--printed]
                     [--drill POINT] [--replay SEED]

  --seeds N     how many seeds per backend (default 1000)
  --from SEED   the first one (default 0)
  --backend B   only this backend (default: all three)
  --plan P      what the clients do and what goes wrong (default usual)
  --mode M      today: strong consistency, every invariant must hold (default)
                2007: reads may be 60 s old; what does not hold is counted and shown
  --fail-points crashes at each place between two steps that has a name, at one per run: every
                invariant must hold, and each must be crashed at
  --drill POINT the same, at this one alone, in place of a plan
  --printed     the protocols of 2008 as they are printed; what they lose is counted and shown
  --replay S    one seed, with a trace of every call; needs --backend

examples:
  s3db-simulate --seeds 20000
  s3db-simulate --seeds 20 --fail-points
  s3db-simulate --seeds 200 --printed --mode 2007
  s3db-simulate --backend s3-log --plan deaths --replay 4711
";

/// Lines of a trace that are shown with the first seed that fails: how it ended.
const TAIL_LINES: usize = 40;

fn usage() -> String {
    format!("{USAGE}\nplans: {}\n", Plan::NAMES.join(", "))
}

/// What is run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Clusters,
    FailPoints,
    Printed,
}

#[derive(Clone)]
struct Options {
    what: What,
    seeds: u64,
    from: u64,
    backends: Vec<Backend>,
    plan: Plan,
    /// What of the arguments chose that.
    chosen: String,
    is_2007: bool,
    replay: Option<u64>,
}

fn main() -> ExitCode {
    match parse(std::env::args().skip(1)) {
        Ok(Some(options)) => match (options.what, options.replay) {
            (What::Clusters, Some(seed)) => one(&options, seed),
            (What::Clusters, None) => many(&options),
            (What::FailPoints, _) => fail_points(&options),
            (What::Printed, _) => printed(&options),
        },
        Ok(None) => {
            print!("{}", usage());
            ExitCode::SUCCESS
        }
        Err(what) => {
            eprintln!("s3db-simulate: {what}\n\n{}", usage());
            ExitCode::from(2)
        }
    }
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Option<Options>, String> {
    let mut options = Options {
        what: What::Clusters,
        seeds: 1000,
        from: 0,
        backends: Backend::ALL.to_vec(),
        plan: Plan::default(),
        chosen: "--plan usual".to_owned(),
        is_2007: false,
        replay: None,
    };
    let mut drill = None;
    while let Some(arg) = args.next() {
        if arg == "--help" || arg == "-h" {
            return Ok(None);
        }
        let what = match arg.as_str() {
            "--fail-points" => Some(What::FailPoints),
            "--printed" => Some(What::Printed),
            _ => None,
        };
        if let Some(what) = what {
            options.what = what;
            continue;
        }
        let value = args.next().ok_or_else(|| format!("{arg} needs a value"))?;
        let number = || value.parse::<u64>().map_err(|_| format!("{arg} {value}: not a number"));
        match arg.as_str() {
            "--seeds" => options.seeds = number()?,
            "--from" => options.from = number()?,
            "--replay" => options.replay = Some(number()?),
            "--backend" => {
                let known = Backend::named(&value);
                options.backends = vec![known.ok_or_else(|| format!("no backend {value}"))?];
            }
            "--plan" => {
                options.plan = Plan::named(&value).ok_or_else(|| format!("no plan {value}"))?;
                options.chosen = format!("--plan {value}");
            }
            "--drill" => {
                let point = FailPoint::ALL.into_iter().find(|point| point.name() == value);
                drill = Some(point.ok_or_else(|| format!("no fail point {value}"))?);
                options.chosen = format!("--drill {value}");
            }
            "--mode" => {
                options.is_2007 = match value.as_str() {
                    "today" => false,
                    "2007" => true,
                    _ => return Err(format!("no mode {value}")),
                }
            }
            _ => return Err(format!("no option {arg}")),
        }
    }
    if let Some(point) = drill {
        let backend = options.backends[0];
        let plan = Plan::drill(point, backend);
        let nobody = || format!("with {} nobody comes to {}", backend.name(), point.name());
        options.plan = plan.ok_or_else(nobody)?;
        options.backends.truncate(1);
    }
    Ok(Some(options))
}

fn plan(options: &Options, backend: Backend) -> Plan {
    let mut plan = Plan { backend, ..options.plan.clone() };
    if options.is_2007 {
        plan.faults.stale_max = STALE;
    }
    plan
}

/// How old what is read may be in 2007.
const STALE: Option<Duration> = Some(Duration::from_secs(60));

/// The arguments that lead to the same run.
fn replay_args(options: &Options, seed: u64, backend: Backend) -> String {
    let mode = if options.is_2007 { " --mode 2007" } else { "" };
    let (backend, chosen) = (backend.name(), &options.chosen);
    format!("--backend {backend} {chosen} --replay {seed}{mode}")
}

/// What went wrong with a seed, and how to see it again.
fn complain(options: &Options, report: &Report, backend: Backend) {
    for violation in report.violations.iter().take(3) {
        println!("  seed {}: {violation}", report.seed);
    }
    println!("  replay: s3db-simulate {}", replay_args(options, report.seed, backend));
}

/// How a run of `plan` ended.
fn show_tail(plan: &Plan, seed: u64) {
    let trace = replay(plan, seed).trace;
    for line in &trace[trace.len().saturating_sub(TAIL_LINES)..] {
        println!("    {line}");
    }
}

fn one(options: &Options, seed: u64) -> ExitCode {
    let report = replay(&plan(options, options.backends[0]), seed);
    for line in &report.trace {
        println!("{line}");
    }
    show(&report);
    if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn show(report: &Report) {
    for violation in &report.violations {
        println!("seed {}: {violation}", report.seed);
    }
    println!(
        "seed {}: {} committed, {} uncertain, {} failed, {} crashes, {} calls, {} leaves, {} s",
        report.seed,
        report.committed,
        report.uncertain,
        report.failed,
        report.crashes,
        report.calls,
        report.leaves,
        report.virtual_time.as_secs()
    );
}

/// Runs `options.seeds` seeds on all cores, and gives what came of each to `take`, in any order.
fn all_seeds<T: Send>(
    options: &Options,
    name: &str,
    one: impl Fn(u64) -> T + Sync,
    take: impl FnMut(T) + Send,
) {
    let began = Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicU64::new(options.from);
    let end = options.from.saturating_add(options.seeds);
    let take = Mutex::new(take);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        break;
                    }
                    let done = one(seed);
                    let mut take = take.lock().expect("no thread panics with it");
                    (*take)(done);
                    drop(take);
                    let count = seed + 1 - options.from;
                    if count.is_multiple_of(1000) {
                        let s = began.elapsed().as_secs_f64();
                        eprintln!("{name}: {count} of {} seeds, {s:.0} s", options.seeds);
                    }
                }
            });
        }
    });
}

/// Adds up what runs say.
fn add(total: &mut Report, report: &Report) {
    total.committed += report.committed;
    total.uncertain += report.uncertain;
    total.failed += report.failed;
    total.crashes += report.crashes;
    total.calls += report.calls;
    total.leaves += report.leaves;
    total.collected += report.collected;
    total.virtual_time += report.virtual_time;
    for (answer, count) in &report.answers {
        *total.answers.entry(*answer).or_default() += count;
    }
    for (point, (reached, crashed)) in &report.fail_points {
        let count = total.fail_points.entry(*point).or_default();
        count.0 += reached;
        count.1 += crashed;
    }
}

fn many(options: &Options) -> ExitCode {
    let began = Instant::now();
    let mut failed = 0;
    for &backend in &options.backends {
        let plan = plan(options, backend);
        let (mut total, mut bad) = (Report::default(), Vec::new());
        all_seeds(
            options,
            backend.name(),
            |seed| run(&plan, seed),
            |report| {
                add(&mut total, &report);
                if !report.violations.is_empty() {
                    bad.push(report);
                }
            },
        );
        bad.sort_by_key(|report| report.seed);
        println!(
            "{}: {} seeds, {} committed, {} uncertain, {} failed, {} crashes, {} calls, {} pages collected, {:.1} leaves each, {} h of virtual time: {} seeds with violations",
            backend.name(),
            options.seeds,
            total.committed,
            total.uncertain,
            total.failed,
            total.crashes,
            total.calls,
            total.collected,
            total.leaves as f64 / options.seeds.max(1) as f64,
            total.virtual_time.as_secs() / 3600,
            bad.len()
        );
        let answers: Vec<String> =
            total.answers.iter().map(|(it, count)| format!("{} {count}", it.name())).collect();
        println!("  answers: {}", answers.join(", "));
        if options.is_2007 {
            by_invariant(&bad);
        }
        for report in bad.iter().take(if options.is_2007 { 1 } else { 5 }) {
            complain(options, report, backend);
        }
        if let Some(report) = bad.first().filter(|_| !options.is_2007) {
            show_tail(&plan, report.seed);
        }
        failed += bad.len();
        // What is there to go wrong must have gone wrong somewhere.
        let is_enough = options.seeds >= ANSWERS_SEEDS && plan.faults.internal_error > 0.0;
        let unheard = Answer::ALL.into_iter().filter(|it| total.answers.get(it) == Some(&0));
        // To what is deleted while somebody is about to replace it: hardly ever, and only by design.
        let unheard = unheard.filter(|it| *it != Answer::Missing);
        let unheard: Vec<&str> = unheard.map(Answer::name).collect();
        if is_enough && !unheard.is_empty() {
            println!("  no call was answered {}", unheard.join(", nor "));
            failed += 1;
        }
    }
    println!("{:.1} s", began.elapsed().as_secs_f64());
    // The mode of 2007 shows what the paper gives up; it is no failure.
    if failed > 0 && !options.is_2007 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Seeds in which every answer that a service can give must have been given.
const ANSWERS_SEEDS: u64 = 5000;

/// How often each invariant did not hold.
fn by_invariant(bad: &[Report]) {
    let mut counts: BTreeMap<u8, (usize, usize)> = BTreeMap::new();
    for report in bad {
        let mut here: Vec<u8> = report.violations.iter().map(|it| it.invariant).collect();
        here.iter().for_each(|invariant| counts.entry(*invariant).or_default().0 += 1);
        here.sort_unstable();
        here.dedup();
        here.iter().for_each(|invariant| counts.entry(*invariant).or_default().1 += 1);
    }
    for (invariant, (violations, seeds)) in counts {
        println!("  invariant {invariant}: {violations} violations in {seeds} seeds");
    }
}

/// How many times as many seeds as were asked for are run at most, until somebody crashes.
const DRILLS_MAX: u64 = 20;

/// Crashes at each named place, one per run.
fn fail_points(options: &Options) -> ExitCode {
    let began = Instant::now();
    let mut failed = 0;
    for point in FailPoint::ALL {
        for &backend in &options.backends {
            let Some(plan) = Plan::drill(point, backend) else { continue };
            let (mut total, mut bad, mut seeds) = (Report::default(), Vec::new(), 0);
            let crashes = |total: &Report| total.fail_points.get(&point).map_or(0, |it| it.1);
            // Where hardly anybody comes it takes longer.
            while seeds < options.seeds * DRILLS_MAX && crashes(&total) == 0 {
                let from = options.from + seeds;
                all_seeds(
                    &Options { from, ..options.clone() },
                    point.name(),
                    |seed| run(&plan, seed),
                    |report| {
                        add(&mut total, &report);
                        if !report.violations.is_empty() {
                            bad.push(report);
                        }
                    },
                );
                seeds += options.seeds;
            }
            let (reached, crashed) = total.fail_points.get(&point).copied().unwrap_or_default();
            println!(
                "{:10} {:12} {seeds} seeds, {reached} times there, {crashed} crashes there: {} seeds with violations",
                point.name(),
                backend.name(),
                bad.len()
            );
            bad.sort_by_key(|report| report.seed);
            let chosen = format!("--drill {}", point.name());
            for report in bad.iter().take(2) {
                complain(&Options { chosen: chosen.clone(), ..options.clone() }, report, backend);
            }
            if crashed == 0 {
                println!("  nobody crashed there");
            }
            failed += bad.len() + usize::from(crashed == 0);
        }
    }
    println!("{:.1} s", began.elapsed().as_secs_f64());
    if failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// What the protocols of 2008 lose, under the same faults.
fn printed(options: &Options) -> ExitCode {
    let began = Instant::now();
    let year = if options.is_2007 { "services of 2007" } else { "services of today" };
    for variant in Variant::ALL {
        let usual = PrintedPlan::new(variant);
        let stale_max = if options.is_2007 { STALE } else { None };
        let plans = [
            ("nothing goes wrong", Faults { stale_max, ..Faults::NONE }),
            ("everything does", Faults { stale_max, ..usual.faults.clone() }),
            ("tokens of locks are lost", Faults { lost_token: 0.01, stale_max, ..Faults::NONE }),
        ];
        for (what, faults) in plans {
            let plan = PrintedPlan { faults, ..usual.clone() };
            let mut total = PrintedReport::default();
            let mut first_broken: Option<u64> = None;
            let one = |seed| (seed, run_printed(&plan, seed));
            all_seeds(options, variant.name(), one, |(seed, report)| {
                if report.broken > 0 {
                    first_broken = Some(first_broken.map_or(seed, |first| first.min(seed)));
                }
                total += report;
            });
            let counts: Vec<String> =
                total.counts().iter().map(|(name, count)| format!("{name} {count}")).collect();
            println!(
                "{} as printed, {year}, {what}: {} of {} seeds broken; of {} committed: {}",
                variant.name(),
                total.broken,
                total.runs,
                total.committed,
                counts.join(", ")
            );
            if let Some(seed) = first_broken {
                let mode = if options.is_2007 { " --mode 2007" } else { "" };
                println!("  one of them: s3db-simulate --printed --from {seed} --seeds 1{mode}");
            }
        }
    }
    println!("{:.1} s", began.elapsed().as_secs_f64());
    // It is what the hardened protocols are for.
    ExitCode::SUCCESS
}
