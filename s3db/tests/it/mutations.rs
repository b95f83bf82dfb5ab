//! Each rule of the hardened protocol is there for a reason: without it, and with everything else
//! as it is, an invariant is seen to break within a bounded number of seeds; with it, never.

use std::time::Duration;

use s3db::{
    Backend, FailPoint, Rule, Rules,
    cloud::model::Faults,
    simulation::{Plan, run},
};

struct Case {
    /// The schedule of PROTOCOL.md, section 2, that it plays.
    weakness: &'static str,
    rule: Rule,
    /// Invariants of which one breaks.
    invariants: &'static [u8],
    plan: Plan,
}

/// Seeds within which it must be seen.
const SEEDS: u64 = 300;

/// Nothing goes wrong but what is named.
fn only(change: impl FnOnce(&mut Faults)) -> Faults {
    let mut faults = Faults::NONE;
    change(&mut faults);
    faults
}

fn cases() -> Vec<Case> {
    let plan = |backend, faults| Plan { backend, faults, second_life: 0.0, ..Plan::default() };
    let stalls = || {
        only(|faults| {
            faults.stall = 0.15;
            faults.stall_max = Duration::from_secs(40);
        })
    };
    let (log, queues) = (Backend::S3Log, Backend::SqsStandard);
    vec![
        Case {
            weakness: "W1: a zombie checkpointer puts an old page",
            rule: Rule::CompareAndSwap,
            invariants: &[1],
            plan: plan(queues, stalls()),
        },
        Case {
            weakness: "W2: a put arrives late",
            rule: Rule::CompareAndSwap,
            invariants: &[1],
            plan: plan(
                queues,
                only(|faults| {
                    faults.late_effect = 0.1;
                    faults.late_max = Duration::from_secs(20);
                }),
            ),
        },
        Case {
            weakness: "W3: two checkpoints of one page, nobody slow and nobody dead",
            rule: Rule::CompareAndSwap,
            invariants: &[1],
            plan: Plan { clients: 10, transactions: 12, keys: 12, ..plan(queues, Faults::NONE) },
        },
        Case {
            weakness: "W4: a message comes again after its delete",
            rule: Rule::Stamps,
            invariants: &[1],
            plan: plan(queues, only(|faults| faults.redelivered = 0.2)),
        },
        Case {
            weakness: "W5: the leaf was split between commit and checkpoint",
            rule: Rule::Fences,
            invariants: &[1, 5],
            plan: Plan { keys: 100, leaf_bytes_max: 500, ..plan(queues, Faults::NONE) },
        },
        Case {
            weakness: "W6: messages expire",
            rule: Rule::Sweep,
            invariants: &[1],
            plan: plan(queues, stalls()),
        },
        Case {
            weakness: "W9: a newer page lacks the client's own record",
            rule: Rule::Overlay,
            invariants: &[4],
            plan: plan(queues, Faults::NONE),
        },
        Case {
            weakness: "W9: and a scan of it, too",
            rule: Rule::ScanReads,
            invariants: &[4],
            plan: plan(queues, Faults::NONE),
        },
        Case {
            weakness: "W11: a part of a transaction arrives",
            rule: Rule::WholeTransaction,
            invariants: &[2],
            plan: Plan {
                shards: 8,
                keys: 60,
                leaf_bytes_max: 500,
                ..plan(
                    queues,
                    only(|faults| (faults.crash_after, faults.crash_before) = (0.02, 0.02)),
                )
            },
        },
        Case {
            weakness: "W12: a client never returns",
            rule: Rule::Adoption,
            invariants: &[1],
            plan: Plan {
                comes_back: 0.0,
                ..plan(queues, only(|faults| faults.crash_after = 0.02))
            },
        },
        Case {
            weakness: "W13: two lives of one client",
            rule: Rule::EpochFence,
            invariants: &[8],
            plan: Plan { second_life: 0.05, ..plan(log, Faults::NONE) },
        },
        Case {
            weakness: "W14: a log object lands, the answer is lost, the retry is refused",
            rule: Rule::ReadBack,
            invariants: &[1, 2],
            plan: plan(
                log,
                only(|faults| (faults.lost_answer, faults.lost_request) = (0.05, 0.05)),
            ),
        },
        Case {
            weakness: "W17: bytes that nobody can decode",
            rule: Rule::Quarantine,
            invariants: &[1],
            plan: plan(queues, only(|faults| faults.poisoned = 0.1)),
        },
        Case {
            weakness: "W19: an index leads to a record that says something else by now",
            rule: Rule::Verify,
            invariants: &[4],
            plan: Plan { faults: Faults::NONE, ..Plan::named("index").unwrap() },
        },
        Case {
            weakness: "index: a crash between a leaf and the entries of what was put there",
            rule: Rule::EntriesFirst,
            invariants: &[11],
            plan: Plan {
                second_life: 0.0,
                faults: only(|faults| (faults.crash_after, faults.crash_before) = (0.02, 0.02)),
                ..Plan::named("index").unwrap()
            },
        },
        Case {
            weakness: "index: the entry of what someone else put meanwhile stays",
            rule: Rule::FollowSwap,
            invariants: &[11],
            plan: Plan { second_life: 0.0, faults: stalls(), ..Plan::named("index").unwrap() },
        },
        Case {
            weakness: "index: a record is put between the look of who builds and the name",
            rule: Rule::FollowerFirst,
            invariants: &[11],
            plan: Plan { second_life: 0.0, faults: stalls(), ..Plan::named("build").unwrap() },
        },
        Case {
            weakness: "split: the page is put before what it leads to",
            rule: Rule::RightFirst,
            invariants: &[5],
            plan: Plan { faults: Faults::NONE, second_life: 0.0, ..Plan::named("splits").unwrap() },
        },
        Case {
            weakness: "split: and nobody ever puts that",
            rule: Rule::RightFirst,
            invariants: &[1],
            plan: Plan {
                second_life: 0.0,
                faults: only(|faults| {
                    faults.crash_at = 0.2;
                    faults.crash_only_at = Some(FailPoint::Split);
                }),
                ..Plan::named("splits").unwrap()
            },
        },
        Case {
            weakness: "split: the parent learns of a page that is taken back",
            rule: Rule::ParentLast,
            invariants: &[1, 5],
            plan: Plan { second_life: 0.0, faults: stalls(), ..Plan::named("splits").unwrap() },
        },
        Case {
            weakness: "split: what others may have linked is taken back",
            rule: Rule::KeepUnclear,
            invariants: &[1, 5, 9],
            plan: Plan {
                second_life: 0.0,
                faults: only(|faults| (faults.lost_answer, faults.late_effect) = (0.05, 0.05)),
                ..Plan::named("splits").unwrap()
            },
        },
        Case {
            weakness: "s3-log: the number of the newest object is free for a zombie",
            rule: Rule::KeepNewest,
            invariants: &[9],
            plan: plan(log, Faults::NONE),
        },
        Case {
            weakness: "gc: a page goes that a stalled client is about to link",
            rule: Rule::TouchOrigin,
            invariants: &[1, 5],
            plan: Plan { keys: 100, leaf_bytes_max: 400, transactions: 20, ..plan(log, stalls()) },
        },
        Case {
            weakness: "gc: and that client links it, at that moment",
            rule: Rule::TouchOrigin,
            invariants: &[9],
            plan: Plan { keys: 100, leaf_bytes_max: 400, transactions: 20, ..plan(log, stalls()) },
        },
        Case {
            weakness: "gc: a blob goes that is on its way, at that moment",
            rule: Rule::BlobAge,
            invariants: &[9],
            plan: Plan { second_life: 0.0, faults: stalls(), ..Plan::named("blobs").unwrap() },
        },
        Case {
            weakness: "gc: a blob goes before what names it is on its page",
            rule: Rule::BlobAge,
            invariants: &[1],
            plan: Plan { second_life: 0.0, faults: stalls(), ..Plan::named("blobs").unwrap() },
        },
        Case {
            weakness: "gc: a blob goes that is half as old as it must be, and just committed",
            rule: Rule::BlobInLog,
            invariants: &[1],
            plan: Plan { faults: Faults::NONE, ..Plan::named("blob-deaths").unwrap() },
        },
        Case {
            weakness: "s3-log: what was left open is put when what it names is collected",
            rule: Rule::OpenAge,
            invariants: &[1],
            plan: Plan { faults: Faults::NONE, ..Plan::named("blob-deaths").unwrap() },
        },
        Case {
            weakness: "step order: a blob is put after the commit that names it",
            rule: Rule::BlobFirst,
            invariants: &[1],
            plan: Plan {
                second_life: 0.0,
                faults: only(|faults| (faults.crash_after, faults.crash_before) = (0.02, 0.02)),
                ..Plan::named("blobs").unwrap()
            },
        },
        Case {
            weakness: "step order: a page is read before the look into the log",
            rule: Rule::LookFirst,
            invariants: &[4],
            plan: Plan { second_life: 0.0, faults: Faults::NONE, ..Plan::named("fresh").unwrap() },
        },
        Case {
            weakness: "curated: a record comes by the log, which nobody approved",
            rule: Rule::Approval,
            invariants: &[2],
            plan: Plan { faults: Faults::NONE, ..Plan::named("curated").unwrap() },
        },
        Case {
            weakness: "curated: other bytes lie under the name of a proposal",
            rule: Rule::ShownBytes,
            invariants: &[1],
            plan: Plan { faults: Faults::NONE, ..Plan::named("curated").unwrap() },
        },
        Case {
            weakness: "curated: a proposal waits no more, and a crash keeps it from being approved",
            rule: Rule::ApprovedFirst,
            invariants: &[1],
            plan: Plan {
                faults: only(|faults| (faults.crash_after, faults.crash_before) = (0.02, 0.02)),
                ..Plan::named("curated").unwrap()
            },
        },
        Case {
            weakness: "snapshot: two write the same record, and one update is lost",
            rule: Rule::WriteCheck,
            invariants: &[13],
            plan: Plan { faults: Faults::NONE, ..Plan::named("snapshot").unwrap() },
        },
        Case {
            weakness: "serializable: each reads what the other writes",
            rule: Rule::ReadCheck,
            invariants: &[13],
            plan: Plan { faults: Faults::NONE, ..Plan::named("serializable").unwrap() },
        },
        Case {
            weakness: "snapshot: what is read is of two moments",
            rule: Rule::SnapshotBound,
            invariants: &[13],
            plan: Plan { faults: Faults::NONE, ..Plan::named("snapshot").unwrap() },
        },
        Case {
            weakness: "snapshot: a stale leaf, and a window that has moved on",
            rule: Rule::NoHoles,
            invariants: &[12],
            plan: Plan { faults: Faults::NONE, ..Plan::named("snapshot").unwrap() },
        },
        Case {
            weakness: "snapshot: and a life that is over commits",
            rule: Rule::EpochFence,
            invariants: &[8],
            plan: Plan { second_life: 0.05, ..Plan::named("snapshot").unwrap() },
        },
        Case {
            weakness: "snapshot: a leaf that was pruned beyond it",
            rule: Rule::Pruned,
            invariants: &[12],
            plan: Plan {
                snapshot_age: Duration::from_millis(500),
                faults: Faults::NONE,
                ..Plan::named("snapshot").unwrap()
            },
        },
        Case {
            weakness: "snapshot: a zombie applies what was pruned",
            rule: Rule::AddOnce,
            invariants: &[1, 12],
            plan: Plan {
                snapshot_age: Duration::from_millis(500),
                faults: stalls(),
                ..Plan::named("snapshot").unwrap()
            },
        },
        Case {
            weakness: "step order: acknowledged at the moment when it is not on its page",
            rule: Rule::AcknowledgeLast,
            invariants: &[3],
            plan: plan(queues, Faults::NONE),
        },
        Case {
            weakness: "step order: and a log object is let go of",
            rule: Rule::AcknowledgeLast,
            invariants: &[3],
            plan: plan(log, Faults::NONE),
        },
        Case {
            weakness: "step order: acknowledged before it is on its page",
            rule: Rule::AcknowledgeLast,
            invariants: &[1],
            plan: plan(
                queues,
                only(|faults| (faults.crash_after, faults.crash_before) = (0.02, 0.02)),
            ),
        },
    ]
}

#[test]
fn every_rule_is_missed() {
    for Case { weakness, rule, invariants, plan } in cases() {
        let without = Plan { rules: Rules::HARDENED.without(rule), ..plan.clone() };
        let seen = (0..SEEDS).find(|&seed| {
            let report = run(&without, seed);
            report.violations.iter().any(|violation| invariants.contains(&violation.invariant))
        });
        let Some(seen) = seen else {
            panic!("{weakness}: without {rule:?} nothing breaks in {SEEDS} seeds");
        };
        println!("{weakness}: without {rule:?} seen at seed {seen}");
        // The same schedules, and more of them.
        for seed in 0..(4 * seen + 20).min(SEEDS) {
            let report = run(&plan, seed);
            assert!(
                report.violations.is_empty(),
                "{weakness}: seed {seed}: {}",
                report.violations[0]
            );
        }
    }
}
