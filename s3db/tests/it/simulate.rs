//! Whole clusters under every fault: every invariant holds, on every backend.

use std::{collections::BTreeMap, time::Duration};

use s3db::{
    Backend, FailPoint, Rule, Rules,
    cloud::{
        ETag, Put, PutIf,
        model::{Answer, Faults, Latency, Mishap, Process, World},
    },
    paper::Variant,
    simulation::{Decided, Plan, PrintedPlan, PrintedReport, replay, run, run_printed},
};

use crate::printed;

/// Seeds of one backend here; `make simulate` runs as many as one likes.
const SEEDS: u64 = 300;

fn hold(name: &str, backend: Backend, seeds: std::ops::Range<u64>) {
    let plan = Plan { backend, ..Plan::named(name).unwrap() };
    let (mut committed, mut leaves, mut collected, mut probed) = (0, 0, 0, 0);
    let (mut blobs, mut blobs_collected, mut spills_collected) = (0, 0, 0);
    let (mut disk, mut decided) = ((0, 0), Decided::default());
    for seed in seeds {
        let report = run(&plan, seed);
        assert!(
            report.violations.is_empty(),
            "seed {seed}: {}; replay: make simulate \
             SIMULATE_ARGS='--backend {} --plan {name} --replay {seed}'",
            report.violations[0],
            backend.name(),
        );
        committed += report.committed;
        leaves += report.leaves;
        collected += report.collected;
        probed += report.probed;
        blobs += report.blobs;
        blobs_collected += report.blobs_collected;
        spills_collected += report.spills_collected;
        disk = (disk.0 + report.disk.0, disk.1 + report.disk.1);
        decided += report.decided;
    }
    // A run in which nothing happens proves nothing.
    assert!(committed > 0 && leaves > 0, "{committed} {leaves}");
    assert!(name != "deaths" || collected > 0, "{backend:?}: nothing died");
    let has_index = matches!(name, "version-index" | "version-build");
    assert!(!has_index || probed > 100, "{backend:?}: {probed} records found");
    let has_blobs = name.starts_with("blob") || matches!(name, "version-blobs" | "version-build");
    assert!(!has_blobs || blobs > 0, "{backend:?}: there are no blobs");
    assert!(name != "disk" || (disk.0 > 1000 && disk.1 > 100), "{backend:?}: {disk:?}");
    let Decided { approved, again, rejected, replaced, forged, .. } = decided;
    let all = [approved, again, rejected, replaced, forged];
    assert!(name != "curated" || !all.contains(&0), "{backend:?}: {decided:?}");
    assert!(name != "spill-deaths" || spills_collected > 0, "{backend:?}: nothing was given up");
    assert!(
        !matches!(name, "blob-deaths" | "dates" | "version-blobs") || blobs_collected > 0,
        "{backend:?}: no blob went"
    );
}

#[test]
fn every_invariant_holds_under_every_fault() {
    std::thread::scope(|scope| {
        for backend in Backend::ALL {
            scope.spawn(move || hold("usual", backend, 0..SEEDS));
        }
    });
}

#[test]
fn a_crowd_on_few_keys() {
    for backend in Backend::ALL {
        hold("crowd", backend, 0..20);
    }
}

#[test]
fn many_splits_at_once() {
    for backend in Backend::ALL {
        hold("splits", backend, 0..20);
    }
}

/// Memory holds a few pages, and the disk beneath it keeps them for all processes: some of them cut off,
/// damaged, older ones, or others.
#[test]
fn a_disk_that_lies_is_not_believed() {
    for backend in Backend::ALL {
        hold("disk", backend, 0..20);
    }
}

/// A transaction over two collections is in both of them or in neither.
#[test]
fn a_transaction_is_whole_across_collections() {
    for backend in Backend::ALL {
        hold("two", backend, 0..40);
    }
    // Sent to the queues of either tree one by one, it is not.
    let mut torn = Plan { backend: Backend::SqsStandard, ..Plan::named("two").unwrap() };
    torn.rules = Rules::HARDENED.without(Rule::WholeTransaction);
    (torn.faults.crash_before, torn.faults.crash_after) = (0.02, 0.02);
    let is_torn = |seed: u64| run(&torn, seed).violations.iter().any(|it| it.invariant == 2);
    assert!((0..100).any(is_torn), "nothing is torn");
}

/// All that lies there is sealed, and midway with another key, which opens everything in the end.
#[test]
fn what_is_sealed_is_as_safe() {
    for backend in Backend::ALL {
        hold("sealed", backend, 0..20);
    }
}

/// Owners that stall and die, that renew their claims and do nothing, and that claim by a wrong clock:
/// nothing depends on any of them.
#[test]
fn claims_of_the_log_are_thrift_and_nothing_else() {
    for backend in Backend::ALL {
        hold("owners", backend, 0..20);
    }
}

#[test]
fn leaves_die_while_others_write() {
    for backend in Backend::ALL {
        hold("deaths", backend, 0..20);
    }
}

/// No life is kept from committing by what an earlier one claimed: that is a violation.
#[test]
fn lives_that_follow_each_other_on_wrong_clocks() {
    for backend in Backend::ALL {
        hold("restarts", backend, 0..20);
    }
    // A process that stalled while it claimed went by the time that it had read before.
    hold("restarts", Backend::S3Log, 34..35);
}

/// Clocks are set and machines sleep: nobody is kept from committing, and no order is lost.
#[test]
fn clocks_that_jump() {
    for backend in Backend::ALL {
        hold("clocks", backend, 0..30);
    }
}

/// What goes by the object store's time is deleted for good: one answer that is wrong may not have its way.
#[test]
fn dates_that_jump() {
    for backend in Backend::ALL {
        hold("dates", backend, 0..20);
    }
}

/// That clients go on working when nothing goes wrong any more is looked at: here one call in three hundred
/// has no end.
#[test]
fn a_client_that_waits_for_ever_is_noticed() {
    let hung = Plan::named("hung").unwrap();
    let like = |name: &str| Plan {
        faults: hung.faults.clone(),
        second_life: 0.0,
        ..Plan::named(name).unwrap()
    };
    let plans =
        [("usual", hung.clone()), ("snapshot", like("snapshot")), ("curated", like("curated"))];
    for backend in Backend::ALL {
        for (name, plan) in &plans {
            let plan = Plan { backend, ..plan.clone() };
            let noticed = (0..40).find(|&seed| {
                let violations = run(&plan, seed).violations;
                violations.iter().any(|it| it.invariant == 0 && it.what.contains("does not go on"))
            });
            assert!(noticed.is_some(), "{name}, {backend:?}: in 40 seeds nobody waits for ever");
        }
    }
}

/// Whoever finds a collection half created goes on with it.
#[test]
fn everybody_creates_the_collection() {
    for backend in Backend::ALL {
        hold("founders", backend, 0..60);
    }
}

/// Every place between two steps that has a name is crashed at, on each log where somebody comes there.
#[test]
fn each_fail_point_is_crashed_at() {
    let drill = |point: FailPoint, backend: Backend| {
        let Some(plan) = Plan::drill(point, backend) else { return };
        let mut crashed = 0;
        for seed in 0..SEEDS {
            let report = run(&plan, seed);
            let name = format!("{} on {} seed {seed}", point.name(), backend.name());
            assert!(report.violations.is_empty(), "{name}: {}", report.violations[0]);
            crashed += report.fail_points.get(&point).map_or(0, |count| count.1);
            if crashed >= 3 {
                return;
            }
        }
        assert!(crashed > 0, "{} on {}: nobody crashed", point.name(), backend.name());
    };
    std::thread::scope(|scope| {
        for backend in Backend::ALL {
            scope.spawn(move || FailPoint::ALL.into_iter().for_each(|point| drill(point, backend)));
        }
    });
}

/// What services can answer they answer, each apart, within the seeds that every change is checked with.
#[test]
fn every_answer_is_given() {
    let mut heard = BTreeMap::new();
    for seed in 0..100 {
        for (answer, count) in run(&Plan::default(), seed).answers {
            *heard.entry(answer).or_insert(0) += count;
        }
    }
    let unheard: Vec<Answer> = Answer::ALL.into_iter().filter(|it| heard[it] == 0).collect();
    // What is replaced is there, but for what is deleted at that very moment.
    assert_eq!(unheard, [Answer::Missing], "{heard:?}");
    let world = World::new(1, Faults::NONE, Latency::ROUGH);
    let cloud = world.cloud(Process(0));
    let put = printed::run(&world, async move {
        cloud.objects.put("a", "x".into(), PutIf::Matches(ETag::new("\"none\""))).await
    });
    assert_eq!((put, world.answers()[&Answer::Missing]), (Put::Missing, 1));
}

/// What can go wrong goes wrong, each field of `Faults` apart, within few seeds of the plans that have it.
#[test]
fn every_fault_is_met() {
    let mut met = BTreeMap::new();
    let mut add = |plan: &Plan, seed| {
        let more = run(plan, seed).met.into_iter();
        more.for_each(|(it, count)| *met.entry(it).or_insert(0) += count);
    };
    for (name, seeds) in [("usual", 60), ("dates", 4), ("disk", 6), ("fresh", 20), ("hung", 10)] {
        for seed in 0..seeds {
            // Each log has its turn.
            let backend = Backend::ALL[seed as usize % Backend::ALL.len()];
            add(&Plan { backend, ..Plan::named(name).unwrap() }, seed);
        }
    }
    let stale_max = Some(Duration::from_secs(60));
    let old = Plan { faults: Faults { stale_max, ..Faults::ALL }, ..Plan::default() };
    (0..3).for_each(|seed| add(&old, seed));
    (0..20).for_each(|seed| add(&unswept(Backend::SqsStandard), seed));
    // Of a token of a lock, see below: no hardened protocol has one.
    let unmet: Vec<Mishap> = Mishap::ALL.into_iter().filter(|it| met[it] == 0).collect();
    assert_eq!(unmet, [Mishap::LostToken], "{met:?}");
}

/// Messages expire, soon, and the sweeper comes when they have.
fn unswept(backend: Backend) -> Plan {
    let sweeps_every = Some(Duration::from_secs(24 * 3600));
    let faults = Faults { expires: Some(Duration::from_secs(8)), ..Faults::ALL };
    Plan { backend, sweeps_every, faults, ..Plan::named("expiry").unwrap() }
}

/// W6: messages that nobody brings to their pages in time are gone, and with them what was committed. With
/// somebody who does they never are.
#[test]
fn messages_expire_where_nobody_sweeps() {
    for backend in Backend::ALL {
        hold("expiry", backend, 0..40);
    }
    for backend in [Backend::SqsStandard, Backend::SqsFifo] {
        let plan = unswept(backend);
        let is_lost = |seed: u64| run(&plan, seed).violations.iter().any(|it| it.invariant == 1);
        assert!((0..60).any(is_lost), "{backend:?}: nothing is lost");
    }
}

/// W6, as printed: without its token a queue can never be checkpointed, and what is in it stays there.
#[test]
fn a_lock_whose_token_is_lost_stays_locked() {
    for variant in [Variant::Monotonicity, Variant::Atomicity] {
        let all = |faults: Faults| {
            let plan = PrintedPlan {
                clients: 1,
                faults,
                page_bytes_max: usize::MAX,
                ..PrintedPlan::new(variant)
            };
            let mut total = PrintedReport::default();
            (0..10).for_each(|seed| total += run_printed(&plan, seed));
            total
        };
        let (with, without) = (all(Faults { lost_token: 0.05, ..Faults::NONE }), all(Faults::NONE));
        assert!(without.stuck == 0 && without.tokens_gone == 0, "{without:?}");
        assert!(with.tokens_gone > 0 && with.stuck > 0 && with.lost > 0, "{with:?}");
    }
}

/// The protocols of 2008 do what they are meant to where nothing goes wrong, nobody is beside them, and no
/// page is split; and lose what was committed where anything is as it is.
#[test]
fn printed_protocols_lose_what_is_committed() {
    for variant in Variant::ALL {
        let alone = PrintedPlan {
            clients: 1,
            faults: Faults::NONE,
            page_bytes_max: usize::MAX,
            ..PrintedPlan::new(variant)
        };
        let crowd = PrintedPlan::new(variant);
        let all = |plan: &PrintedPlan, seeds| {
            let mut total = PrintedReport::default();
            (0..seeds).for_each(|seed| total += run_printed(plan, seed));
            total
        };
        let (alone, crowd) = (all(&alone, 10), all(&crowd, 30));
        println!("{}: {alone:?} {crowd:?}", variant.name());
        // Basic applies what one batch holds in any order; and a page that was read again lacks what still
        // waits in its queue (W9).
        let promised = match variant {
            Variant::Basic => PrintedReport { stuck: alone.stuck, ..PrintedReport::default() },
            _ => PrintedReport { back: 0, ..alone },
        };
        assert!(promised.is_sound() && alone.committed > 0, "{}: {alone:?}", variant.name());
        assert!(crowd.lost > 0 && crowd.committed > 0, "{}: {crowd:?}", variant.name());
    }
}

/// Each index is exact in the end, whatever went wrong.
#[test]
fn indexes_follow_their_records() {
    for backend in Backend::ALL {
        hold("index", backend, 0..40);
        hold("index-deaths", backend, 0..5);
    }
}

#[test]
fn an_index_is_made_while_others_write() {
    for backend in Backend::ALL {
        hold("build", backend, 0..40);
        hold("build-deaths", backend, 0..5);
    }
}

/// No blob that a record names is lost, none is seen before its commit, and none is left over.
#[test]
fn blobs_are_there_as_their_records_are() {
    for backend in Backend::ALL {
        hold("blobs", backend, 0..60);
        hold("blob-index", backend, 0..15);
        hold("blob-deaths", backend, 0..60);
    }
}

/// What is too large for a message is in an object before that names it, is sent on as a whole, and none
/// of it is left over.
#[test]
fn large_transactions_are_as_whole_as_others() {
    for backend in [Backend::SqsStandard, Backend::SqsFifo] {
        hold("spills", backend, 0..60);
        hold("spill-deaths", backend, 0..10);
    }
}

/// What was committed before a fresh transaction began is in what it reads, and does not go again.
#[test]
fn fresh_reads_beside_ordinary_ones() {
    for backend in Backend::ALL {
        hold("fresh", backend, 0..40);
    }
}

/// Every read is as of its snapshot, and no history shows an anomaly that its level forbids.
#[test]
fn isolated_transactions_are_isolated() {
    std::thread::scope(|scope| {
        for name in ["snapshot", "serializable"] {
            scope.spawn(move || {
                hold(name, Backend::S3Log, 0..150);
                hold(name, Backend::SqsStandard, 150..170);
                hold(name, Backend::SqsFifo, 170..190);
            });
        }
    });
}

/// A blob of an isolated transaction is there as long as a version names it, or somebody can still commit it; and
/// not longer.
#[test]
fn blobs_are_there_as_long_as_versions_are() {
    hold("version-blobs", Backend::S3Log, 0..30);
    hold("version-blobs", Backend::SqsStandard, 30..36);
    hold("version-blobs", Backend::SqsFifo, 36..42);
}

/// An index of isolated records is at every snapshot what they say, and no history shows an anomaly of its ranges.
#[test]
fn indexes_of_versions_are_exact() {
    hold("version-index", Backend::S3Log, 0..60);
    hold("version-build", Backend::S3Log, 0..40);
    hold("version-index", Backend::SqsStandard, 60..66);
    hold("version-build", Backend::SqsFifo, 40..46);
}

/// Curators crash, decide twice, late and at once; somebody puts other bytes in the place of proposals, and
/// records of the collection into the log. Readers see what was approved, and nothing else.
#[test]
fn what_is_approved_is_seen_and_nothing_else() {
    for backend in Backend::ALL {
        hold("curated", backend, 0..60);
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for backend in Backend::ALL {
        for name in ["usual", "build", "fresh", "serializable", "curated"] {
            let plan = Plan { backend, ..Plan::named(name).unwrap() };
            let (first, second) = (replay(&plan, 7), replay(&plan, 7));
            assert!(first.trace.len() > 100);
            assert_eq!(first.trace, second.trace, "{name}");
        }
    }
}

/// The services of 2007 give up more than the paper could promise; what must not happen even then
/// is that a run hangs, or that the ledger is wrong.
#[test]
fn eventual_consistency_ends_and_is_charged() {
    let mut faults = Faults::ALL;
    faults.stale_max = Some(Duration::from_secs(10));
    for backend in Backend::ALL {
        for seed in 0..10 {
            let report = run(&Plan { backend, faults: faults.clone(), ..Plan::default() }, seed);
            let other = report.violations.iter().find(|violation| violation.invariant == 10);
            assert_eq!(other, None, "{backend:?} seed {seed}");
        }
    }
}

/// What is printed for a seed that fails is the command that shows it again, with what led to it.
#[test]
fn a_failing_seed_can_be_replayed() {
    let simulate = |args: &str| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_s3db-simulate"))
            .args(args.split_whitespace())
            .output()
            .expect("the simulator");
        (output.status.code(), String::from_utf8(output.stdout).expect("text"))
    };
    let violations = |text: &str| -> Vec<String> {
        let lines = text.lines().map(str::trim_start);
        lines.filter(|line| line.contains(": invariant ")).map(str::to_owned).collect()
    };
    let (code, text) = simulate("--plan hung --backend s3-log --seeds 40");
    assert_eq!(code, Some(1), "{text}");
    let replay = text.lines().find_map(|line| line.trim().strip_prefix("replay: s3db-simulate "));
    let replay = replay.expect("a command");
    let (code, again) = simulate(replay);
    assert_eq!(code, Some(1), "{replay}: {again}");
    let first = violations(&text);
    assert!(violations(&again).contains(&first[0]), "{replay}: {first:?}");
    // The end of that is with the violation already.
    let last =
        again.lines().rfind(|line| line.trim_start().starts_with(|c: char| c.is_ascii_digit()));
    assert!(text.contains(last.expect("a trace").trim()), "{text}");
    // The drill of one fail point, too.
    let (code, text) = simulate("--drill claimed --backend s3-log --replay 3");
    assert!(code == Some(0) && text.contains("seed 3: "), "{text}");
    let (_, usage) = simulate("--help");
    for name in Plan::NAMES {
        assert!(usage.contains(name), "{name} is not in {usage}");
    }
}
