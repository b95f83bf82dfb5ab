//! Which segments leave when room is needed: S3-FIFO over what the files themselves remember.
//!
//! ```text
//!   new ---> small (a tenth) ---- asked for again ----> main ---- asked for again --+
//!   (ghost ----------------------------------------->)    ^                         |
//!              | not asked for again                      +-------------------------+
//!              v                                          | not asked for again
//!            leaves, and its name becomes a ghost         v  leaves
//! ```
//!
//! Yang, Zhang, Qiu, Yue, Rashmi: "FIFO queues are all you need for cache eviction", SOSP 2023.
//! Bytes that were read once pass through a tenth of the room; only a second touch admits them to
//! the rest. The same policy as the pager's, but its state is in the segments (tier, frequency, time
//! of entry) instead of one process: any process may sweep, and a restart forgets nothing.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
};

use super::{
    layout::SegmentId,
    segment::{Heat, Tier},
};

/// The share of the room that is for segments on trial.
const SMALL_SHARE: u64 = 10;

/// A segment on disk.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) id: SegmentId,
    /// Bytes that it takes.
    pub(super) bytes: u64,
    pub(super) heat: Heat,
}

/// What a sweep decided.
#[derive(Debug, Default)]
pub(super) struct Decision {
    /// Who leaves.
    pub(super) victims: Vec<SegmentId>,
    /// Of those, who leaves from small and is remembered.
    pub(super) ghosts: Vec<u64>,
    /// Who stays, and is known differently from now on.
    pub(super) changed: Vec<(SegmentId, Heat)>,
}

/// Chooses victims until `wanted` bytes are free or nothing is left.
///
/// `room` is what the cache may hold in all. Times of entry that the sweep gives are from `now` on.
pub(super) fn decide(candidates: Vec<Candidate>, room: u64, wanted: u64, mut now: u64) -> Decision {
    let mut bytes = [0u64; 2];
    let mut queues: [BinaryHeap<Reverse<(u64, usize)>>; 2] = Default::default();
    let mut heats: Vec<Heat> = candidates.iter().map(|candidate| candidate.heat).collect();
    let queue_of = |tier: Tier| usize::from(tier == Tier::Main);
    for (at, candidate) in candidates.iter().enumerate() {
        let queue = queue_of(candidate.heat.tier);
        queues[queue].push(Reverse((candidate.heat.entered, at)));
        bytes[queue] += candidate.bytes;
        // Clocks go back: what comes to a head comes behind everything that is there.
        now = now.max(candidate.heat.entered.saturating_add(1));
    }
    let mut decision = Decision::default();
    let mut changed: HashMap<usize, Heat> = HashMap::new();
    let mut freed = 0;
    // Ends: each step takes a segment out, moves one from small to main for good, or lowers one of
    // frequencies that are at most three.
    while freed < wanted {
        let small_yields = bytes[0] > room / SMALL_SHARE || queues[1].is_empty();
        let queue = if small_yields && !queues[0].is_empty() { 0 } else { 1 };
        let Some(Reverse((_, at))) = queues[queue].pop() else { break };
        let candidate = &candidates[at];
        let heat = &mut heats[at];
        bytes[queue] -= candidate.bytes;
        if heat.frequency > 0 {
            // On trial, one touch is enough; in main, every touch is worth one round.
            heat.frequency = if queue == 0 { 0 } else { heat.frequency - 1 };
            (heat.tier, heat.entered) = (Tier::Main, now);
            queues[1].push(Reverse((now, at)));
            bytes[1] += candidate.bytes;
            now = now.saturating_add(1);
            changed.insert(at, *heat);
            continue;
        }
        freed += candidate.bytes;
        changed.remove(&at);
        if queue == 0 {
            decision.ghosts.push(candidate.id.hash());
        }
        decision.victims.push(candidate.id.clone());
    }
    decision.changed =
        changed.into_iter().map(|(at, heat)| (candidates[at].id.clone(), heat)).collect();
    decision
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn candidate(index: u64, tier: Tier, frequency: u8) -> Candidate {
        let id = SegmentId { object: "o".to_owned(), index };
        Candidate { id, bytes: 10, heat: Heat { tier, frequency, entered: index } }
    }

    fn indices(ids: &[SegmentId]) -> Vec<u64> {
        ids.iter().map(|id| id.index).collect()
    }

    #[test]
    fn a_scan_leaves_and_what_was_asked_for_again_stays() {
        // Ten in main; ten came since by a scan, one of which was asked for again.
        let main = (0..10).map(|n| candidate(n, Tier::Main, 0));
        let small = (10..20).map(|n| candidate(n, Tier::Small, u8::from(n == 12)));
        let decision = decide(main.chain(small).collect(), 200, 70, 1000);
        assert_eq!(indices(&decision.victims), [10, 11, 13, 14, 15, 16, 17]);
        assert_eq!(decision.ghosts.len(), 7);
        let changed = &decision.changed[0];
        assert_eq!((changed.0.index, changed.1.tier, changed.1.frequency), (12, Tier::Main, 0));
    }

    #[test]
    fn main_goes_round_while_it_is_asked_for() {
        let decision = decide(
            vec![
                candidate(0, Tier::Main, 2),
                candidate(1, Tier::Main, 0),
                candidate(2, Tier::Main, 1),
            ],
            100,
            20,
            1000,
        );
        assert_eq!(indices(&decision.victims), [1, 2]);
        assert_eq!(decision.ghosts.len(), 0, "who leaves main had its chance");
        assert_eq!(decision.changed[0].1.frequency, 0);
        assert!(decision.changed[0].1.entered >= 1000);
    }

    #[test]
    fn a_tenth_is_left_to_newcomers() {
        let mut all: Vec<_> = (0..19).map(|n| candidate(n, Tier::Main, 0)).collect();
        all.push(candidate(100, Tier::Small, 0));
        let decision = decide(all, 200, 10, 1000);
        assert_eq!(indices(&decision.victims), [0], "one newcomer is within its share");
    }

    proptest! {
        #[test]
        fn room_is_found_whatever_the_files_say(
            segments in prop::collection::vec((any::<bool>(), any::<u8>(), any::<u64>(), 0..50u64), 0..60),
            wanted in 0..4000u64,
        ) {
            let all: Vec<_> = segments.iter().enumerate().map(|(index, &(main, frequency, entered, bytes))| {
                let tier = if main { Tier::Main } else { Tier::Small };
                let id = SegmentId { object: "o".to_owned(), index: index as u64 };
                Candidate { id, bytes, heat: Heat { tier, frequency: frequency % 4, entered } }
            }).collect();
            let sum: u64 = all.iter().map(|one| one.bytes).sum();
            let decision = decide(all.clone(), 1000, wanted, 0);
            let victims: HashSet<_> = decision.victims.iter().collect();
            prop_assert_eq!(victims.len(), decision.victims.len(), "twice");
            let freed: u64 = all.iter().filter(|one| victims.contains(&one.id)).map(|one| one.bytes).sum();
            prop_assert!(freed >= wanted.min(sum));
            prop_assert!(decision.changed.iter().all(|(id, _)| !victims.contains(id)));
        }
    }
}
