//! S3-FIFO: three static queues, first in, first out.
//!
//! J. Yang, Y. Zhang, Z. Qiu, Y. Yue, K. V. Rashmi, "FIFO Queues are All You Need for Cache
//! Eviction", SOSP 2023, section 4.1 and algorithm 1. Most objects are asked for once; a small queue
//! sheds them quickly, so that the main queue is left to those that come back.
//!
//! ```text
//!                                          twice                  ___
//!   a demand, a guess --------> small -----------------------> main <-'   | asked for since
//!                                 | less                        |  '------'
//!                                 v                             v
//!                          out --> ghost (keys only)           out
//!                                    |
//!   a demand of a ghost -------------+-----------------------> main
//! ```
//!
//! Where this differs from the paper, and why:
//!
//! - **Weights.** Shares are of bytes: small has a tenth of what is resident, as in the paper, and
//!   ghosts stand for nine tenths. The capacity is not known here; when a victim is asked for, what
//!   is resident is nearly it.
//! - **Guesses** enter small and leave by its old end like what was asked for once, unless somebody
//!   asks for them twice. The first touch of a guess is the access with which others begin, and is
//!   not counted. Until then a guess does not count for the share of small, so that a window that
//!   has just come pushes out neither itself nor what was read lately. Beyond a third of all bytes
//!   guesses make small yield, where a pager allows speculation a quarter: the oldest of them were
//!   read unseen, or will not be read.
//! - **Refusals.** What may not be evicted is in use, and counts as new. A guess that is refused was
//!   right, and keeps its place: a pager that learns of touches only when it asks would otherwise
//!   pass over all that was read, and be left with what is to be read next.
//! - **Ghosts** are entries that were victims, and that somebody had asked for. What leaves by a
//!   hint or because its owner closed proves nothing about reuse, nor does an untouched guess.

use super::{
    EvictionPolicy,
    entries::{Entries, Flag},
};

const SMALL: usize = 0;
const MAIN: usize = 1;
const GHOST: usize = 2;

/// Small yields beyond one part in so many of the resident bytes: section 4.1 of the paper.
const SMALL_PARTS: u128 = 10;
/// Guesses make small yield beyond one part in so many.
const GUESS_PARTS: u128 = 3;
/// Touches that carry an entry from small to main: "accessed more than once" in the paper.
const PROMOTE_AT: u64 = 2;
/// Ghosts are also bounded in number, lest a few large entries keep the ghosts of many tiny ones.
const GHOSTS_MIN: usize = 1024;

/// S3-FIFO: see the module's page. The default.
#[derive(Clone, Debug, Default)]
pub struct S3Fifo {
    entries: Entries<3>,
    /// Bytes of small that are guesses.
    guessed: u128,
}

impl S3Fifo {
    /// A policy without entries.
    pub fn new() -> S3Fifo {
        S3Fifo::default()
    }

    /// The queue that yields next among those that are not `spent`: all of it refused.
    fn yielding(&self, spent: &[bool; 2]) -> Option<usize> {
        let has = |queue: usize| !spent[queue] && self.entries.queue(queue).len() > 0;
        let small = self.entries.queue(SMALL).bytes();
        let total = small + self.entries.queue(MAIN).bytes();
        let small_is_over =
            (small - self.guessed) * SMALL_PARTS > total || self.guessed * GUESS_PARTS > total;
        match (has(SMALL), has(MAIN)) {
            (true, true) => Some(if small_is_over { SMALL } else { MAIN }),
            (true, false) => Some(SMALL),
            (false, true) => Some(MAIN),
            (false, false) => None,
        }
    }

    /// Takes an entry for one that was asked for. Returns whether it was a guess.
    fn accept(&mut self, at: u32) -> bool {
        let guess = self.entries.has(at, Flag::Guess);
        if guess {
            self.entries.set(at, Flag::Guess, false);
            self.guessed -= u128::from(self.entries.weight(at));
        }
        guess
    }

    fn trim_ghosts(&mut self) {
        let resident = self.entries.queue(SMALL).bytes() + self.entries.queue(MAIN).bytes();
        let count_max = GHOSTS_MIN.max(self.len());
        while let Some(at) = self.entries.queue(GHOST).tail() {
            let ghosts = self.entries.queue(GHOST);
            if ghosts.bytes() * 10 <= resident * 9 && ghosts.len() <= count_max {
                break;
            }
            self.entries.remove(at);
        }
    }
}

impl EvictionPolicy for S3Fifo {
    fn installed(&mut self, key: u64, weight: u64, speculative: bool) {
        let mut ghost = false;
        if let Some(at) = self.entries.find(key) {
            ghost = self.entries.queue_of(at) == GHOST;
            self.accept(at);
            self.entries.remove(at);
        }
        let queue = if ghost && !speculative { MAIN } else { SMALL };
        let at = self.entries.insert(key, weight, queue);
        if speculative {
            self.entries.set(at, Flag::Guess, true);
            self.guessed += u128::from(self.entries.weight(at));
            // A guess remembers that it was a ghost until somebody asks for it.
            self.entries.set_frequency(at, u64::from(ghost));
        }
    }

    fn touched(&mut self, key: u64) {
        let Some(at) = self.entries.find(key) else { return };
        if self.entries.queue_of(at) == GHOST {
            return;
        }
        let frequency = self.entries.frequency(at);
        if !self.accept(at) {
            self.entries.set_frequency(at, frequency + 1);
        } else if frequency > 0 {
            self.entries.set_frequency(at, 0);
            self.entries.move_to_head(at, MAIN);
        }
    }

    fn removed(&mut self, key: u64) {
        let Some(at) = self.entries.find(key) else { return };
        let guess = self.accept(at);
        match self.entries.queue_of(at) {
            GHOST => {}
            SMALL if self.entries.has(at, Flag::Named) && !guess => {
                self.entries.move_to_head(at, GHOST);
                self.trim_ghosts();
            }
            _ => self.entries.remove(at),
        }
    }

    fn victim(&mut self, can_evict: &dyn Fn(u64) -> bool) -> Option<u64> {
        // Ends: each step refuses an entry, which `refused` counts up to the queue's length, takes one
        // for no guess any more, moves one from small to main for good, or lowers a frequency, of
        // which there are three.
        let mut refused = [0; 2];
        let mut spent = [false; 2];
        while let Some(queue) = self.yielding(&spent) {
            let at = self.entries.queue(queue).tail().expect("a queue that yields is not empty");
            let frequency = self.entries.frequency(at);
            match queue {
                SMALL if frequency >= PROMOTE_AT => {
                    self.entries.set_frequency(at, 0);
                    self.entries.move_to_head(at, MAIN);
                }
                MAIN if frequency > 0 => {
                    self.entries.set_frequency(at, frequency - 1);
                    self.entries.move_to_head(at, MAIN);
                }
                _ if can_evict(self.entries.key(at)) => {
                    self.entries.set(at, Flag::Named, true);
                    return Some(self.entries.key(at));
                }
                _ if self.accept(at) => {}
                _ => {
                    self.entries.set(at, Flag::Named, false);
                    self.entries.move_to_head(at, queue);
                    refused[queue] += 1;
                }
            }
            spent[queue] = refused[queue] >= self.entries.queue(queue).len();
        }
        // Main gives up after as many refusals as it has entries, some of them of the same entry:
        // it may hold entries that were asked for and that nobody has offered yet.
        let mut next = self.entries.queue(MAIN).tail();
        while let Some(at) = next {
            if can_evict(self.entries.key(at)) {
                self.entries.set(at, Flag::Named, true);
                return Some(self.entries.key(at));
            }
            next = self.entries.newer(at);
        }
        None
    }

    fn len(&self) -> usize {
        self.entries.queue(SMALL).len() + self.entries.queue(MAIN).len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Clock;
    use std::collections::{HashMap, VecDeque};

    fn evict(policy: &mut S3Fifo) -> Option<u64> {
        let key = policy.victim(&|_| true)?;
        policy.removed(key);
        Some(key)
    }

    /// Keys of a queue, oldest first.
    fn keys(policy: &S3Fifo, queue: usize) -> Vec<u64> {
        let mut keys = Vec::new();
        let mut next = policy.entries.queue(queue).tail();
        while let Some(at) = next {
            keys.push(policy.entries.key(at));
            next = policy.entries.newer(at);
        }
        keys
    }

    fn demanded(count: u64) -> S3Fifo {
        let mut policy = S3Fifo::new();
        for key in 0..count {
            policy.installed(key, 1, false);
        }
        policy
    }

    #[test]
    fn asked_for_once_leaves_and_twice_stays() {
        let mut policy = demanded(10);
        for key in [0, 1, 1, 2, 2, 2, 2, 2] {
            policy.touched(key);
        }
        assert_eq!(evict(&mut policy), Some(0), "one touch is not enough");
        assert_eq!(evict(&mut policy), Some(3), "1 and 2 went to main");
        assert_eq!(keys(&policy, MAIN), [1, 2]);
        assert_eq!(keys(&policy, GHOST), [0, 3]);
        assert_eq!(policy.len(), 8);
    }

    #[test]
    fn a_ghost_comes_back_to_main() {
        let mut policy = demanded(10);
        assert_eq!(evict(&mut policy), Some(0));
        policy.installed(0, 1, false);
        assert_eq!((keys(&policy, MAIN), keys(&policy, GHOST)), (vec![0], vec![]));
    }

    #[test]
    fn main_goes_round_while_it_is_asked_for() {
        let mut policy = demanded(4);
        for key in [0, 0, 1, 1, 2, 2, 3, 3] {
            policy.touched(key);
        }
        assert_eq!(evict(&mut policy), Some(0), "all moved to main, and marks were cleared");
        for key in [1, 2, 2] {
            policy.touched(key);
        }
        assert_eq!(evict(&mut policy), Some(3), "the only one that nobody asked for since");
        assert_eq!(evict(&mut policy), Some(1), "one chance, where 2 had two");
        assert_eq!(evict(&mut policy), Some(2));
        assert_eq!(evict(&mut policy), None);
    }

    #[test]
    fn what_makes_a_ghost() {
        type Act = fn(&mut S3Fifo);
        let cases: [(&str, Act, Vec<u64>); 4] = [
            ("a victim that was asked for", |p| assert_eq!(evict(p), Some(0)), vec![0]),
            ("left by a hint", |p| p.removed(0), vec![]),
            (
                "a victim that was refused later, then left by a hint",
                |p| {
                    assert_eq!(p.victim(&|_| true), Some(0));
                    assert_eq!(p.victim(&|key| key != 0), Some(1));
                    p.removed(0);
                },
                vec![],
            ),
            (
                "two named before either left",
                |p| {
                    assert_eq!(p.victim(&|_| true), Some(0));
                    assert_eq!(p.victim(&|key| key > 2), Some(3));
                    p.removed(3);
                },
                vec![3],
            ),
        ];
        for (what, act, ghosts) in cases {
            let mut policy = demanded(10);
            act(&mut policy);
            assert_eq!(keys(&policy, GHOST), ghosts, "{what}");
        }
        let mut policy = S3Fifo::new();
        policy.installed(1, 1, true);
        assert_eq!(evict(&mut policy), Some(1));
        assert_eq!(keys(&policy, GHOST), [], "a guess that nobody asked for");
    }

    #[test]
    fn guesses_yield_but_not_to_each_other() {
        // 100 entries asked for, 80 of them twice; then a window of 20 units comes, for each of
        // which a victim is needed.
        let mut policy = demanded(100);
        for key in 0..80 {
            policy.touched(key);
            policy.touched(key);
        }
        for key in 1000..1020 {
            let victim = evict(&mut policy).expect("there are entries");
            assert!(victim < 100, "guess {victim} was pushed out by the next of its window");
            policy.installed(key, 1, true);
        }
        // Nobody asks for them: they leave before whatever came after them, and what stays is what
        // was asked for twice.
        let mut gone = 0;
        for key in 2000..2060 {
            let victim = evict(&mut policy).expect("there are entries");
            assert!(victim < 2000 || gone == 20, "{victim} left before a wrong guess");
            gone += u64::from((1000..2000).contains(&victim));
            policy.installed(key, 1, false);
        }
        assert_eq!((gone, policy.guessed), (20, 0));
        assert!(keys(&policy, MAIN).len() > 50, "{:?}", keys(&policy, MAIN));
    }

    #[test]
    fn guesses_beyond_a_third_go_in_their_order() {
        // A mapped scan: nothing but guesses, and nobody is seen to touch them. What was read first
        // is what leaves first.
        let mut policy = S3Fifo::new();
        for key in 0..100 {
            policy.installed(key, 1, true);
        }
        for key in 0..50 {
            assert_eq!(evict(&mut policy), Some(key));
            policy.installed(100 + key, 1, true);
        }
    }

    #[test]
    fn a_scan_never_loses_what_it_reads_next() {
        assert_scan_keeps_its_windows(&mut S3Fifo::new());
        assert_scan_keeps_its_windows(&mut Clock::new());
    }

    /// A pager learns of touches when it asks what may be evicted: what was touched since is refused
    /// for once, and reported after the call. A scan reads through a quarter of guesses.
    fn assert_scan_keeps_its_windows(policy: &mut dyn EvictionPolicy) {
        const CAPACITY: u64 = 256;
        const WINDOW: u64 = CAPACITY / 4;
        let touched = std::cell::RefCell::new(std::collections::BTreeSet::new());
        let mut fetched = 0;
        for read in 0..20 * CAPACITY {
            while fetched < read + WINDOW {
                while policy.len() as u64 == CAPACITY {
                    let late = std::cell::RefCell::new(Vec::new());
                    let victim = policy.victim(&|key| {
                        let refused = touched.borrow_mut().remove(&key);
                        late.borrow_mut().extend(refused.then_some(key));
                        !refused
                    });
                    late.into_inner().into_iter().for_each(|key| policy.touched(key));
                    if let Some(key) = victim {
                        assert!(key < read, "{key} left, and {read} is what is read now");
                        policy.removed(key);
                    }
                }
                policy.installed(fetched, 4096, true);
                fetched += 1;
            }
            touched.borrow_mut().insert(read);
        }
    }

    #[test]
    fn a_guess_that_was_asked_for_is_like_any_other() {
        let mut policy = demanded(10);
        policy.installed(100, 1, true);
        policy.touched(100);
        assert_eq!((policy.guessed, policy.len()), (0, 11));
        assert_eq!(keys(&policy, SMALL).last(), Some(&100));
        // It was a ghost when it was guessed: asked for, it has come back.
        assert_eq!(evict(&mut policy), Some(0));
        policy.installed(0, 1, true);
        assert_eq!((policy.guessed, keys(&policy, MAIN)), (1, vec![]));
        policy.touched(0);
        assert_eq!(keys(&policy, MAIN), [0]);
    }

    #[test]
    fn ghosts_are_bounded() {
        let mut policy = demanded(100);
        for key in 100..10_000 {
            evict(&mut policy);
            policy.installed(key, 1, false);
        }
        assert_eq!(policy.len(), 100);
        assert_eq!(policy.entries.queue(GHOST).len(), 89, "nine tenths of what stayed");
        // One large entry must not keep the ghosts of a million tiny ones.
        let mut policy = S3Fifo::new();
        policy.installed(0, 1 << 30, false);
        for key in 1..10_000 {
            policy.installed(key, 1, false);
            assert_eq!(policy.victim(&|k| k == key), Some(key));
            policy.removed(key);
        }
        assert_eq!(policy.entries.queue(GHOST).len(), GHOSTS_MIN);
    }

    #[test]
    fn shares_are_of_bytes() {
        // Small has one entry, of half of the bytes: it yields although main has nine.
        let mut policy = demanded(9);
        for key in 0..9 {
            policy.touched(key);
            policy.touched(key);
        }
        assert_eq!(policy.victim(&|_| false), None, "which moves them to main");
        assert_eq!(keys(&policy, MAIN).len(), 9);
        policy.installed(100, 9, false);
        assert_eq!(evict(&mut policy), Some(100));
        policy.installed(101, 1, false);
        assert_eq!(evict(&mut policy).map(|key| key < 9), Some(true), "a tenth is its share");
    }

    #[test]
    fn a_million_entries() {
        let mut policy = S3Fifo::new();
        for key in 0..1_000_000 {
            policy.installed(key, 4096, key % 3 == 0);
        }
        for key in 1_000_000..2_000_000u64 {
            policy.touched(key.wrapping_mul(2_654_435_761) % key);
            evict(&mut policy);
            policy.installed(key, 4096, false);
        }
        assert_eq!(policy.len(), 1_000_000);
    }

    /// First in, first out: what the others have to beat.
    #[derive(Default)]
    struct Fifo(VecDeque<u64>);

    impl EvictionPolicy for Fifo {
        fn installed(&mut self, key: u64, _: u64, _: bool) {
            self.0.push_back(key);
        }

        fn touched(&mut self, _: u64) {}

        fn removed(&mut self, key: u64) {
            if self.0.front() == Some(&key) {
                self.0.pop_front();
            } else {
                self.0.retain(|&k| k != key);
            }
        }

        fn victim(&mut self, can_evict: &dyn Fn(u64) -> bool) -> Option<u64> {
            self.0.iter().copied().find(|&key| can_evict(key))
        }

        fn len(&self) -> usize {
            self.0.len()
        }
    }

    struct Random(u64);

    impl Random {
        /// From 0 up to 1.
        fn fraction(&mut self) -> f64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (self.0 >> 11) as f64 / (1u64 << 53) as f64
        }
    }

    /// Reads of `keys` keys by Zipf's law, and a scan of keys that are read once in between.
    fn zipf_with_scans(keys: usize, reads: usize, scan: u64) -> Vec<u64> {
        let mut sums = Vec::with_capacity(keys);
        let mut sum = 0.0;
        for rank in 1..=keys {
            sum += 1.0 / (rank as f64).powf(0.9);
            sums.push(sum);
        }
        let mut random = Random(42);
        let mut trace = Vec::new();
        let mut fresh = 1 << 32;
        for read in 0..reads {
            let at = random.fraction() * sum;
            trace.push(sums.partition_point(|&sum| sum < at) as u64);
            if read % 20_000 == 19_999 {
                trace.extend(fresh..fresh + scan);
                fresh += scan;
            }
        }
        trace
    }

    /// Share of the reads below 2^32, which are not of a scan, that were resident.
    fn hit_ratio(policy: &mut dyn EvictionPolicy, capacity: usize, trace: &[u64]) -> f64 {
        let mut resident: HashMap<u64, ()> = HashMap::new();
        let (mut hits, mut reads) = (0, 0);
        for &key in trace {
            reads += u64::from(key < 1 << 32);
            if resident.contains_key(&key) {
                hits += 1;
                policy.touched(key);
                continue;
            }
            if resident.len() == capacity {
                let victim = policy.victim(&|_| true).expect("it is full");
                policy.removed(victim);
                assert!(resident.remove(&victim).is_some());
            }
            policy.installed(key, 4096, false);
            resident.insert(key, ());
        }
        f64::from(hits) / reads as f64
    }

    #[test]
    fn s3fifo_hits_more_often_than_clock_and_fifo() {
        let trace = zipf_with_scans(20_000, 200_000, 4_000);
        for capacity in [200, 1_000, 4_000] {
            let s3fifo = hit_ratio(&mut S3Fifo::new(), capacity, &trace);
            let clock = hit_ratio(&mut Clock::new(), capacity, &trace);
            let fifo = hit_ratio(&mut Fifo::default(), capacity, &trace);
            println!("{capacity}: S3-FIFO {s3fifo:.4}, CLOCK {clock:.4}, FIFO {fifo:.4}");
            assert!(s3fifo > clock + 0.02, "{capacity}: S3-FIFO {s3fifo}, CLOCK {clock}");
            assert!(clock > fifo, "{capacity}: CLOCK {clock}, FIFO {fifo}");
        }
    }
}
