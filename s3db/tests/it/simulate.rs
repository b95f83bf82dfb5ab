//! Whole clusters under every fault: every invariant holds, on every backend.

use std::time::Duration;

use s3db::{
    Backend,
    cloud::model::Faults,
    simulation::{Plan, replay, run},
};

const BACKENDS: [Backend; 3] = [Backend::S3Log, Backend::SqsStandard, Backend::SqsFifo];

/// Seeds of one backend here; `make simulate` runs as many as one likes.
const SEEDS: u64 = 300;

fn hold(plan: &Plan, seeds: std::ops::Range<u64>) {
    let (mut committed, mut crashes, mut leaves) = (0, 0, 0);
    for seed in seeds {
        let report = run(plan, seed);
        assert!(
            report.violations.is_empty(),
            "{:?} seed {seed}: {}; replay: make simulate SIMULATE_ARGS='--backend ... --replay {seed}'",
            plan.backend,
            report.violations[0]
        );
        committed += report.committed;
        crashes += report.crashes;
        leaves += report.leaves;
    }
    // A run in which nothing happens proves nothing.
    assert!(committed > 0 && crashes > 0 && leaves > 0, "{committed} {crashes} {leaves}");
}

#[test]
fn every_invariant_holds_under_every_fault() {
    std::thread::scope(|scope| {
        for backend in BACKENDS {
            scope.spawn(move || hold(&Plan { backend, ..Plan::default() }, 0..SEEDS));
        }
    });
}

#[test]
fn a_crowd_on_few_keys() {
    let plan = Plan { clients: 8, keys: 3, transactions: 5, shards: 1, ..Plan::default() };
    for backend in BACKENDS {
        hold(&Plan { backend, ..plan.clone() }, 0..20);
    }
}

#[test]
fn many_splits_at_once() {
    let plan =
        Plan { clients: 4, keys: 300, transactions: 20, leaf_bytes_max: 500, ..Plan::default() };
    for backend in BACKENDS {
        hold(&Plan { backend, ..plan.clone() }, 0..20);
    }
}

/// Leaves that lose all their records die, and their keys go to the right, while others write there.
#[test]
fn leaves_die_while_others_write() {
    let plan = Plan {
        clients: 4,
        keys: 40,
        transactions: 30,
        leaf_bytes_max: 300,
        faults: Faults::NONE,
        // Everything is on its page within half a minute here.
        tombstone_age: Duration::from_secs(40),
        second_life: 0.0,
        work: Duration::from_secs(240),
        ..Plan::default()
    };
    for backend in BACKENDS {
        let mut collected = 0;
        for seed in 0..20 {
            let report = run(&Plan { backend, ..plan.clone() }, seed);
            assert!(report.violations.is_empty(), "{backend:?} {seed}: {}", report.violations[0]);
            collected += report.collected;
        }
        assert!(collected > 0, "{backend:?}: nothing died");
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for backend in BACKENDS {
        let plan = Plan { backend, ..Plan::default() };
        let (first, second) = (replay(&plan, 7), replay(&plan, 7));
        assert!(first.trace.len() > 100);
        assert_eq!(first.trace, second.trace);
    }
}

/// The services of 2007 give up more than the paper could promise; what must not happen even then
/// is that a run hangs, or that the ledger is wrong.
#[test]
fn eventual_consistency_ends_and_is_charged() {
    let mut faults = Faults::ALL;
    faults.stale_max = Some(Duration::from_secs(10));
    for backend in BACKENDS {
        for seed in 0..10 {
            let report = run(&Plan { backend, faults: faults.clone(), ..Plan::default() }, seed);
            let other = report.violations.iter().find(|violation| violation.invariant == 10);
            assert_eq!(other, None, "{backend:?} seed {seed}");
        }
    }
}
