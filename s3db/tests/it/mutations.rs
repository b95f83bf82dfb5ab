//! Each rule of the hardened protocol is there for a reason: without it, and with everything else
//! as it is, an invariant is seen to break within a bounded number of seeds; with it, never.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

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

/// Seeds within which it must be seen: most are within ten.
const SEEDS: u64 = 1000;
/// With the rule on four times as many are run, but no more than this, and no fewer than it took.
const HELD_MAX: u64 = 300;

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
    let crashes = || only(|faults| (faults.crash_after, faults.crash_before) = (0.02, 0.02));
    let crashes_at =
        |p, point| only(|faults| (faults.crash_at, faults.crash_only_at) = (p, Some(point)));
    let (log, queues) = (Backend::S3Log, Backend::SqsStandard);
    // Most transactions belong to several shards.
    let over_shards =
        |faults| Plan { shards: 8, keys: 60, leaf_bytes_max: 500, ..plan(queues, faults) };
    // What is put is soon as old as may be, and nobody else changes the numbers.
    let alone = || Plan {
        clients: 1,
        transactions: 40,
        tombstone_age: Duration::from_secs(4),
        faults: stalls(),
        ..Plan::named("snapshot").unwrap()
    };
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
            weakness: "W6: messages expire, and the one who is there has nothing to do with them",
            rule: Rule::Sweep,
            invariants: &[1],
            plan: Plan {
                comes_back: 0.0,
                has_janitor: false,
                idle: Duration::from_secs(15 * 24 * 3600),
                ..plan(queues, only(|faults| faults.crash_after = 0.02))
            },
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
            plan: over_shards(crashes()),
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
            weakness: "W13: a life is said to be over before it is, and nobody ends it any more",
            rule: Rule::FenceFirst,
            invariants: &[8],
            plan: Plan { second_life: 0.1, comes_back: 1.0, ..plan(log, crashes()) },
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
            weakness: "W14: a page lands, the answer is lost, the retry is refused",
            rule: Rule::OwnPut,
            invariants: &[1, 5, 9],
            plan: Plan {
                second_life: 0.0,
                faults: only(|faults| {
                    (faults.lost_answer, faults.lost_request) = (0.05, 0.05);
                }),
                ..Plan::named("splits").unwrap()
            },
        },
        Case {
            weakness: "W14: a page does not land, and silence is taken for success",
            rule: Rule::Silence,
            invariants: &[3],
            plan: plan(queues, only(|faults| faults.lost_request = 0.05)),
        },
        Case {
            weakness: "W14: and what it held is in the log no more",
            rule: Rule::Silence,
            invariants: &[1],
            plan: plan(queues, only(|faults| faults.lost_request = 0.05)),
        },
        Case {
            weakness: "W16: a machine's clock is minutes ahead, and its stamps win until then",
            rule: Rule::ClockLimit,
            invariants: &[15],
            plan: plan(log, only(|faults| faults.skew_max = Duration::from_secs(600))),
        },
        Case {
            weakness: "W16: one answer from the future is believed, and garbage goes by it",
            rule: Rule::TwoDates,
            invariants: &[1, 9],
            plan: Plan {
                faults: only(|faults| faults.date_jump = 0.02),
                ..Plan::named("dates").unwrap()
            },
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
            plan: Plan { second_life: 0.0, faults: crashes(), ..Plan::named("index").unwrap() },
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
            weakness: "index: it is ready before its entries are there",
            rule: Rule::ReadyLast,
            invariants: &[4],
            plan: Plan {
                second_life: 0.0,
                clients: 8,
                transactions: 60,
                keys: 8,
                faults: only(|faults| {
                    (faults.stall, faults.stall_max) = (0.4, Duration::from_secs(10));
                }),
                ..Plan::named("build").unwrap()
            },
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
            weakness: "s3-log: a fence lies in a number that was freed, and ends nothing",
            rule: Rule::FenceLast,
            invariants: &[8],
            plan: Plan { second_life: 0.1, ..plan(log, stalls()) },
        },
        Case {
            weakness: "s3-log: and who reads stops there",
            rule: Rule::PastFences,
            invariants: &[1],
            plan: Plan {
                second_life: 0.1,
                ..plan(log, Faults { crash_after: 0.02, crash_before: 0.02, ..stalls() })
            },
        },
        Case {
            weakness: "s3-log: a number is put before the one before is confirmed",
            rule: Rule::InOrder,
            invariants: &[3],
            plan: plan(
                log,
                only(|faults| {
                    faults.late_effect = 0.3;
                    faults.late_max = Duration::from_secs(20);
                }),
            ),
        },
        Case {
            weakness: "s3-log: what the newest object says comes back when the tombstone is gone",
            rule: Rule::EmptyFirst,
            invariants: &[1],
            plan: Plan::named("deaths").unwrap(),
        },
        Case {
            weakness: "lives: a stamp is used that is not claimed, and the next life begins below",
            rule: Rule::ClaimFirst,
            invariants: &[4],
            plan: Plan::named("clocks").unwrap(),
        },
        Case {
            weakness: "lives: what was stamped long ago is committed",
            rule: Rule::CommitAge,
            invariants: &[1, 9],
            plan: Plan { faults: Faults::NONE, ..Plan::named("blob-deaths").unwrap() },
        },
        Case {
            weakness: "root: the catalogue says that it was put, and nobody puts it any more",
            rule: Rule::PlantFirst,
            invariants: &[1],
            plan: Plan { faults: crashes(), ..Plan::named("founders").unwrap() },
        },
        Case {
            weakness: "gc: keys of a dead leaf are nobody's",
            rule: Rule::HeirFirst,
            invariants: &[5],
            plan: Plan {
                faults: crashes_at(0.3, FailPoint::Forgotten),
                ..Plan::named("deaths").unwrap()
            },
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
            weakness: "gc: a blob goes while somebody reads it, by a copy of its page that counts",
            rule: Rule::Grace,
            invariants: &[9],
            plan: Plan {
                second_life: 0.0,
                transactions: 80,
                keys: 30,
                clients: 6,
                faults: Faults::NONE,
                tombstone_age: Duration::from_secs(12),
                work: Duration::from_secs(150),
                ..Plan::named("blobs").unwrap()
            },
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
            plan: Plan { second_life: 0.0, faults: crashes(), ..Plan::named("blobs").unwrap() },
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
            plan: Plan { faults: crashes(), ..Plan::named("curated").unwrap() },
        },
        Case {
            weakness: "curated: what is approved is let go of, and a crash keeps it from its page",
            rule: Rule::ApplyFirst,
            invariants: &[1],
            plan: Plan { faults: crashes(), ..Plan::named("curated").unwrap() },
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
            weakness: "snapshot: who does not know of an index commits without its entries",
            rule: Rule::KnownIndexes,
            invariants: &[11, 12],
            plan: Plan { faults: Faults::NONE, ..Plan::named("version-build").unwrap() },
        },
        Case {
            weakness: "snapshot: a blob goes that a commit names which is on no page yet",
            rule: Rule::BlobInWindow,
            invariants: &[1, 9],
            plan: Plan {
                // Who is stalled between the look at the ages and the swap, with nobody else there.
                clients: 1,
                transactions: 60,
                second_life: 0.0,
                is_sluggish: false,
                faults: stalls(),
                tombstone_age: Duration::from_secs(6),
                work: Duration::from_secs(300),
                ..Plan::named("version-blobs").unwrap()
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
            weakness: "snapshot: commits are said to be on their pages, and never come there",
            rule: Rule::AppliedLast,
            invariants: &[1, 12],
            plan: Plan { faults: crashes(), ..Plan::named("snapshot").unwrap() },
        },
        Case {
            weakness: "snapshot: and fewer are than were before",
            rule: Rule::AppliedGrows,
            invariants: &[12],
            plan: Plan { faults: Faults::NONE, ..Plan::named("snapshot").unwrap() },
        },
        Case {
            weakness: "snapshot: a delete goes, and what it deleted is on the next leaf",
            rule: Rule::DeleteStays,
            invariants: &[1, 12],
            plan: Plan {
                snapshot_age: Duration::from_secs(3),
                leaf_bytes_max: 300,
                keys: 10,
                faults: Faults::NONE,
                ..Plan::named("snapshot").unwrap()
            },
        },
        Case {
            weakness: "snapshot: a commit names what it wrote, which is collected",
            rule: Rule::DataAge,
            invariants: &[1],
            plan: Plan { clients: 2, work: Duration::from_secs(120), ..alone() },
        },
        Case {
            weakness: "snapshot: and somebody stands still in between, who read the numbers before",
            rule: Rule::NumbersAgain,
            invariants: &[1],
            plan: alone(),
        },
        Case {
            weakness: "step order: a message is sent before the object that it names is there",
            rule: Rule::LargeFirst,
            invariants: &[9],
            plan: Plan {
                backend: queues,
                second_life: 0.0,
                faults: Faults::NONE,
                ..Plan::named("spills").unwrap()
            },
        },
        Case {
            weakness: "step order: and a crash keeps that from coming",
            rule: Rule::LargeFirst,
            invariants: &[1],
            plan: Plan {
                backend: queues,
                second_life: 0.0,
                faults: crashes(),
                ..Plan::named("spills").unwrap()
            },
        },
        Case {
            weakness: "step order: a whole transaction is deleted before it is sent on, at that moment",
            rule: Rule::SendFirst,
            invariants: &[3],
            plan: over_shards(Faults::NONE),
        },
        Case {
            weakness: "step order: and a crash keeps it from being sent on",
            rule: Rule::SendFirst,
            invariants: &[1],
            plan: over_shards(crashes()),
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
            plan: plan(queues, crashes()),
        },
    ]
}

impl Case {
    /// That it is seen without the rule, and with it never: not in the same schedules, and not in more of them.
    fn prove(&self) -> Result<u64, String> {
        let Case { weakness, rule, invariants, plan } = self;
        let without = Plan { rules: Rules::HARDENED.without(*rule), ..plan.clone() };
        let is_it = |seed: &u64| {
            let violations = run(&without, *seed).violations;
            violations.iter().any(|violation| invariants.contains(&violation.invariant))
        };
        let Some(seen) = (0..SEEDS).find(is_it) else {
            return Err(format!("{weakness}: without {rule:?} nothing breaks in {SEEDS} seeds"));
        };
        for seed in 0..(4 * seen + 20).min(HELD_MAX).max(seen + 1) {
            if let Some(violation) = run(plan, seed).violations.first() {
                return Err(format!("{weakness}: with {rule:?} seed {seed}: {violation}"));
            }
        }
        Ok(seen)
    }
}

/// `S3DB_CASES=word` plays those alone whose weakness or rule has that word in it.
#[test]
fn every_rule_is_missed() {
    let wanted = std::env::var("S3DB_CASES").unwrap_or_default();
    let is_wanted =
        |case: &Case| case.weakness.contains(&wanted) || format!("{:?}", case.rule) == wanted;
    let cases: Vec<Case> = cases().into_iter().filter(is_wanted).collect();
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let play = || {
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            let (weakness, rule) = (case.weakness, case.rule);
            match case.prove() {
                Ok(seen) => println!("{weakness}: without {rule:?} seen at seed {seen}"),
                Err(what) => failed.lock().unwrap().push(what),
            }
        }
    };
    thread::scope(|scope| {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        (0..threads.min(4)).for_each(|_| drop(scope.spawn(play)));
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} of {}:\n{}", failed.len(), cases.len(), failed.join("\n"));
}

/// A rule that nobody misses is none, and one that nobody reads of is hard to keep.
#[test]
fn every_rule_has_a_case_and_a_place_in_the_protocol() {
    let cases = cases();
    let protocol = include_str!("../../PROTOCOL.md");
    for rule in Rule::ALL {
        assert!(cases.iter().any(|case| case.rule == *rule), "{rule:?} has no case");
        assert!(protocol.contains(&format!("`{rule:?}`")), "PROTOCOL.md does not name {rule:?}");
    }
}
