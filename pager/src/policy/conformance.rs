//! What every policy is held to, ours and yours.
//!
//! ```
//! use pager::policy::{Clock, Stride, conformance};
//!
//! conformance::check_eviction(|| Box::new(Clock::new()));
//! conformance::check_prefetch(|| Box::new(Stride::new()));
//! ```
//!
//! Both run seeded scripts of calls against a model that is too simple to be wrong, and panic with
//! the name of the clause that does not hold, the script and the call. They take a second or less.
//!
//! | clause of an eviction policy | |
//! | --- | --- |
//! | `count` | `len` and `is_empty` agree with what was installed and not removed |
//! | `resident` | a victim is installed and not removed |
//! | `allowed` | `can_evict` holds for a victim |
//! | `offered` | `can_evict` is asked about resident entries only |
//! | `found` | `None` only if `can_evict` refuses every entry |
//! | `stays` | naming a victim does not remove it |
//! | `bounded` | one call asks at most [`QUESTIONS_EACH`] times per entry, and a few more |
//! | `constant` | where nothing is refused, many calls ask a few times each on average |
//! | `replay` | the same calls lead to the same victims |
//!
//! | clause of a prefetch policy | |
//! | --- | --- |
//! | `pushes` | what was in `wants` before stays there |
//! | `inside` | a want is a range of at least one unit, inside the region |
//! | `marker` | a marker is one of the units of its want |
//! | `count` | one call pushes at most [`WANTS_MAX`] wants |
//! | `window` | the units of one call are at most `window_max` |
//! | `once` | one call wants no unit twice |
//! | `random` | after [`Advice::Random`], signals lead to no wants where there are no hints |
//! | `replay` | the same calls lead to the same wants |

use std::{cell::Cell, collections::BTreeMap, ops::Range};

use super::{
    EvictionPolicy, PrefetchPolicy,
    prefetch::{Advice, Limits, Signal, WANTS_MAX, Want},
};

/// How often a policy may ask about each entry in one call of `victim`. Once would do; a few rounds
/// keep a policy simple.
pub const QUESTIONS_EACH: usize = 8;

const SEEDS: u64 = 8;

/// Checks an eviction policy against the clauses in the module's page.
///
/// # Panics
/// When a clause does not hold, with its name.
pub fn check_eviction(make: impl Fn() -> Box<dyn EvictionPolicy>) {
    type Script = fn(&mut Evictor, &mut Chance);
    let scripts: [(&'static str, Script); 4] = [
        ("mixed calls", mixed_calls),
        ("a weighted cache", weighted_cache),
        ("fill and drain", fill_and_drain),
        ("a needle", needle),
    ];
    for (script, run) in scripts {
        for seed in 0..SEEDS {
            let victims = || {
                let mut evictor = Evictor::new(make(), format!("{script}, seed {seed}"));
                run(&mut evictor, &mut Chance(seed));
                evictor.victims
            };
            let (first, second) = (victims(), victims());
            let differs = first.iter().zip(&second).position(|(a, b)| a != b);
            assert!(
                first.len() == second.len() && differs.is_none(),
                "eviction policy breaks `replay` ({script}, seed {seed}): the same calls led to \
                 other victims, first at number {differs:?}"
            );
        }
    }
}

/// An eviction policy beside a model of it.
struct Evictor {
    policy: Box<dyn EvictionPolicy>,
    /// Resident keys and their weights, in an order that does not depend on chance.
    model: BTreeMap<u64, u64>,
    bytes: u128,
    victims: Vec<Option<u64>>,
    questions: usize,
    script: String,
    calls: u64,
}

impl Evictor {
    fn new(policy: Box<dyn EvictionPolicy>, script: String) -> Evictor {
        let (model, victims) = (BTreeMap::new(), Vec::new());
        let evictor = Evictor { policy, model, bytes: 0, victims, questions: 0, script, calls: 0 };
        evictor.check_count("a new policy");
        evictor
    }

    fn breaks(&self, clause: &str, what: std::fmt::Arguments<'_>) -> ! {
        panic!("eviction policy breaks `{clause}` ({}, call {}): {what}", self.script, self.calls)
    }

    fn check_count(&self, after: &str) {
        let (len, expected) = (self.policy.len(), self.model.len());
        if len != expected {
            self.breaks("count", format_args!("len() is {len} with {expected} resident, {after}"));
        }
        if self.policy.is_empty() != (expected == 0) {
            self.breaks("count", format_args!("is_empty() with {expected} resident, {after}"));
        }
    }

    fn install(&mut self, key: u64, weight: u64, speculative: bool) {
        self.calls += 1;
        self.policy.installed(key, weight, speculative);
        assert!(self.model.insert(key, weight).is_none(), "the script installs {key} twice");
        self.bytes += u128::from(weight);
        self.check_count("after installed()");
    }

    fn touch(&mut self, key: u64) {
        self.calls += 1;
        self.policy.touched(key);
        self.check_count("after touched()");
    }

    fn remove(&mut self, key: u64) {
        self.calls += 1;
        self.policy.removed(key);
        let weight = self.model.remove(&key).expect("the script removes what is resident");
        self.bytes -= u128::from(weight);
        self.check_count("after removed()");
    }

    fn victim(&mut self, allowed: &dyn Fn(u64) -> bool) -> Option<u64> {
        self.calls += 1;
        let asked = Cell::new(0);
        let most = QUESTIONS_EACH * self.model.len() + 16;
        let victim = self.policy.victim(&|key| {
            asked.set(asked.get() + 1);
            if asked.get() > most {
                let len = self.model.len();
                let what = format_args!("{most} questions did not do for {len} entries");
                panic!(
                    "eviction policy breaks `bounded` ({}, call {}): {what}",
                    self.script, self.calls
                );
            }
            if !self.model.contains_key(&key) {
                panic!(
                    "eviction policy breaks `offered` ({}, call {}): can_evict({key}) was asked, \
                     which is not resident",
                    self.script, self.calls
                );
            }
            allowed(key)
        });
        self.questions += asked.get();
        match victim {
            Some(key) if !self.model.contains_key(&key) => {
                self.breaks("resident", format_args!("{key} is the victim, and not resident"))
            }
            Some(key) if !allowed(key) => {
                self.breaks("allowed", format_args!("{key} is the victim, and refused"))
            }
            None => {
                if let Some(key) = self.model.keys().find(|&&key| allowed(key)) {
                    self.breaks("found", format_args!("no victim, although {key} may be evicted"));
                }
            }
            Some(_) => {}
        }
        let (len, expected) = (self.policy.len(), self.model.len());
        if len != expected {
            let what = format_args!("victim() changed len() from {expected} to {len}");
            self.breaks("stays", what);
        }
        self.victims.push(victim);
        victim
    }

    fn evict(&mut self, allowed: &dyn Fn(u64) -> bool) -> Option<u64> {
        let victim = self.victim(allowed);
        if let Some(key) = victim {
            self.remove(key);
        }
        victim
    }

    /// A resident key, if there is one.
    fn any(&self, chance: &mut Chance, keys: u64) -> Option<u64> {
        let from = chance.below(keys);
        let mut later = self.model.range(from..).chain(self.model.range(..from));
        later.next().map(|(&key, _)| key)
    }
}

/// Every call there is, over few keys, so that these come, leave and come back.
fn mixed_calls(evictor: &mut Evictor, chance: &mut Chance) {
    const KEYS: u64 = 150;
    const WEIGHTS: [u64; 5] = [1, 4096, 65_536, 2 << 20, 1 << 40];
    for _ in 0..6000 {
        let key = chance.below(KEYS);
        let resident = evictor.model.contains_key(&key);
        match chance.below(10) {
            0..4 if !resident => {
                let weight = WEIGHTS[chance.below(5) as usize];
                evictor.install(key, weight, chance.below(3) == 0);
            }
            0..6 if resident => evictor.touch(key),
            6 if resident => evictor.remove(key),
            7 => {
                // Named, and not evicted after all: it may be named again.
                evictor.victim(&|_| true);
            }
            8 => {
                // Some are refused, by a rule that changes from call to call.
                let (share, salt) = (chance.below(8), chance.next());
                evictor.evict(&|key| mix(key ^ salt) % 8 >= share);
            }
            9 if chance.below(20) == 0 => {
                evictor.victim(&|_| false);
            }
            _ => {
                if let Some(only) = evictor.any(chance, KEYS) {
                    evictor.evict(&|key| key == only);
                }
            }
        }
    }
}

/// A cache of a byte budget, some entries of which are pinned, as a pager uses a policy.
fn weighted_cache(evictor: &mut Evictor, chance: &mut Chance) {
    const BUDGET: u128 = 8 << 20;
    let mut pinned: Vec<u64> = Vec::new();
    for _ in 0..8000 {
        // Four of five reads go to a tenth of the keys.
        let key = if chance.below(5) == 0 { chance.below(4000) } else { chance.below(400) };
        if evictor.model.contains_key(&key) {
            evictor.touch(key);
            continue;
        }
        let weight = 4096 << chance.below(6);
        while evictor.bytes + u128::from(weight) > BUDGET {
            let victim = evictor.evict(&|key| !pinned.contains(&key));
            let len = evictor.model.len();
            assert!(victim.is_some(), "at most 8 of {len} are pinned, and one can be evicted");
        }
        evictor.install(key, weight, chance.below(4) == 0);
        if pinned.len() == 8 {
            pinned.remove(0);
        }
        pinned.push(key);
        // A hint or a closing region takes some out, pinned or not.
        if chance.below(50) == 0
            && let Some(key) = evictor.any(chance, 4000)
        {
            evictor.remove(key);
        }
    }
}

/// Many entries, evicted to the last, and then all over again.
fn fill_and_drain(evictor: &mut Evictor, chance: &mut Chance) {
    const ENTRIES: u64 = 5000;
    for round in 0..3 {
        // The second round brings the same keys back, the third brings others.
        let first = (round / 2) * ENTRIES;
        for key in first..first + ENTRIES {
            evictor.install(mix(key), 4096, chance.below(4) == 0);
        }
        for key in first..first + ENTRIES {
            for _ in 0..chance.below(3) {
                evictor.touch(mix(key));
            }
        }
        evictor.questions = 0;
        for left in (0..ENTRIES).rev() {
            if evictor.evict(&|_| true).is_none() {
                evictor.breaks("found", format_args!("no victim with {} resident", left + 1));
            }
            let questions = evictor.questions;
            if questions > QUESTIONS_EACH * ENTRIES as usize {
                let what =
                    format_args!("{questions} questions for {ENTRIES} entries, none refused");
                evictor.breaks("constant", what);
            }
        }
        if let Some(key) = evictor.victim(&|_| true) {
            evictor.breaks("resident", format_args!("{key} is the victim of an empty policy"));
        }
    }
}

/// One entry of many may be evicted, and it is a different one each time.
fn needle(evictor: &mut Evictor, chance: &mut Chance) {
    for key in 0..400 {
        evictor.install(key, 1, chance.below(2) == 0);
        for _ in 0..chance.below(6) {
            evictor.touch(key);
        }
    }
    for step in 0..400 {
        let only = step * 89 % 400;
        evictor.evict(&|key| key == only);
        if chance.below(2) == 0 {
            evictor.install(400 + step, 1, false);
        }
        if let Some(key) = evictor.any(chance, 800) {
            evictor.touch(key);
        }
    }
}

/// Checks a prefetch policy against the clauses in the module's page.
///
/// # Panics
/// When a clause does not hold, with its name.
pub fn check_prefetch(make: impl Fn() -> Box<dyn PrefetchPolicy>) {
    type Script = fn(&mut Prefetcher, &mut Chance);
    let scripts: [(&'static str, Script); 5] = [
        ("streams and strides", streams_and_strides),
        ("anything", anything),
        ("edges of the region", edges),
        ("hints", hints),
        ("random", random_advice),
    ];
    // 2^52 units of 4 KiB are all the bytes that an offset can name.
    for units in [1, 2, 3, 17, 1000, 1 << 20, 1 << 52] {
        for (window_max, extent_max) in
            [(1, 1), (2, 16), (7, 3), (64, 16), (4096, 256), (1 << 52, 256)]
        {
            let limits = Limits { units, window_max, extent_max };
            for (seed, (script, run)) in scripts.into_iter().enumerate() {
                let wants = || {
                    let mut prefetcher = Prefetcher::new(make(), limits, script);
                    run(&mut prefetcher, &mut Chance(seed as u64));
                    prefetcher.log
                };
                let (first, second) = (wants(), wants());
                let differs = first.iter().zip(&second).position(|(a, b)| a != b);
                assert!(
                    first.len() == second.len() && differs.is_none(),
                    "prefetch policy breaks `replay` ({script}, {limits:?}): the same calls led to \
                     other wants, first at number {differs:?}"
                );
            }
        }
    }
}

/// A prefetch policy, and what it answered lately.
struct Prefetcher {
    policy: Box<dyn PrefetchPolicy>,
    limits: Limits,
    script: &'static str,
    calls: u64,
    /// Where a reader would go that follows the latest wants.
    next: Option<Want>,
    /// A digest of each answer.
    log: Vec<u64>,
    /// Whether wants are against the advice.
    silent: bool,
}

impl Prefetcher {
    fn new(policy: Box<dyn PrefetchPolicy>, limits: Limits, script: &'static str) -> Prefetcher {
        let log = Vec::new();
        Prefetcher { policy, limits, script, calls: 0, next: None, log, silent: false }
    }

    fn demand(&mut self, at: u64, signal: Signal) {
        let limits = self.limits;
        let call = format!("demand({at}, {signal:?})");
        self.call(&call, |policy, wants| policy.demand(at, signal, &limits, wants));
    }

    fn missed(&mut self, units: Range<u64>) {
        let limits = self.limits;
        let call = format!("missed({units:?})");
        self.call(&call, |policy, wants| policy.missed(units, &limits, wants));
    }

    fn advise(&mut self, advice: &Advice) {
        let limits = self.limits;
        let call = match advice {
            Advice::WillNeed(ranges) => format!("advise(WillNeed of {} ranges)", ranges.len()),
            other => format!("advise({other:?})"),
        };
        self.call(&call, |policy, wants| policy.advise(advice, &limits, wants));
    }

    fn call(&mut self, call: &str, act: impl FnOnce(&mut dyn PrefetchPolicy, &mut Vec<Want>)) {
        self.calls += 1;
        let before = Want { units: 0..1, marker: Some(0) };
        let mut wants = vec![before.clone()];
        act(&mut *self.policy, &mut wants);
        let limits = self.limits;
        let breaks = |clause: &str, what: std::fmt::Arguments<'_>| -> ! {
            panic!(
                "prefetch policy breaks `{clause}` ({}, call {}: {call}, {limits:?}): {what}",
                self.script, self.calls
            )
        };
        if wants.first() != Some(&before) {
            breaks("pushes", format_args!("what was in `wants` before the call is gone"));
        }
        wants.remove(0);
        if wants.len() > WANTS_MAX {
            breaks("count", format_args!("{} wants in one call", wants.len()));
        }
        let mut len = 0u128;
        for Want { units, marker } in &wants {
            if units.start >= units.end || units.end > limits.units {
                breaks("inside", format_args!("{units:?} is wanted"));
            }
            if marker.is_some_and(|marker| !units.contains(&marker)) {
                breaks("marker", format_args!("{marker:?} is the marker of {units:?}"));
            }
            len += u128::from(units.end - units.start);
        }
        if len > u128::from(limits.window_max) {
            breaks("window", format_args!("{len} units in one call"));
        }
        let mut sorted: Vec<&Range<u64>> = wants.iter().map(|want| &want.units).collect();
        sorted.sort_by_key(|units| units.start);
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0].end > pair[1].start) {
            breaks("once", format_args!("{:?} and {:?} overlap", pair[0], pair[1]));
        }
        if self.silent && !wants.is_empty() {
            breaks("random", format_args!("{:?} is wanted against the advice", wants[0].units));
        }
        let digest = wants.iter().fold(0, |digest, want| {
            let Want { units, marker } = want;
            mix(mix(mix(digest ^ units.start) ^ units.end) ^ marker.map_or(0, mix))
        });
        self.log.push(digest);
        if !wants.is_empty() {
            self.next = wants.into_iter().next();
        }
    }

    /// Reads at the marker of the latest wants, which are staged, coming or gone.
    fn follow(&mut self, chance: &mut Chance) {
        let Some(Want { units, marker }) = self.next.take() else { return };
        let at = match chance.below(4) {
            0 => units.end - 1,
            1 => units.start,
            _ => marker.unwrap_or(units.start),
        };
        let signals = [Signal::Marker, Signal::Marker, Signal::Late, Signal::Hit, Signal::Miss];
        self.demand(at, signals[chance.below(5) as usize]);
    }
}

/// Readers that go on by ones, by more, backwards and in turn, and that read what was fetched.
fn streams_and_strides(prefetcher: &mut Prefetcher, chance: &mut Chance) {
    let units = prefetcher.limits.units;
    let mut readers: Vec<(u64, i64)> = Vec::new();
    for stride in [1, 1, -1, 7, -100, 3, 1] {
        readers.push((chance.below(units), stride));
    }
    for step in 0..600 {
        let turn = if step < 300 { chance.below(7) as usize } else { (step / 50) % 7 };
        let (at, stride) = readers[turn];
        match chance.below(4) {
            0 => prefetcher.demand(at, Signal::Miss),
            1 => prefetcher.missed(at..(at + 1 + chance.below(3)).min(units)),
            2 => prefetcher.demand(at, Signal::Late),
            _ => prefetcher.follow(chance),
        }
        let next = at.checked_add_signed(stride).filter(|&at| at < units);
        readers[turn].0 = next.unwrap_or_else(|| chance.below(units));
        if chance.below(30) == 0 {
            prefetcher.policy.unused(chance.below(units));
        }
    }
    // One reader that is never late, until its windows are as long as they get.
    prefetcher.next = None;
    for at in 0..3.min(units) {
        prefetcher.demand(at, Signal::Miss);
    }
    for _ in 0..60 {
        let Some(Want { units, marker }) = prefetcher.next.take() else { break };
        prefetcher.demand(marker.unwrap_or(units.start), Signal::Marker);
    }
}

/// Every call in any order, with limits that change.
fn anything(prefetcher: &mut Prefetcher, chance: &mut Chance) {
    let Limits { units, window_max, extent_max } = prefetcher.limits;
    for _ in 0..1500 {
        let signals = [Signal::Miss, Signal::Late, Signal::Marker, Signal::Hit];
        let near = chance.below(units.min(64));
        match chance.below(12) {
            0..4 => prefetcher.demand(near, signals[chance.below(4) as usize]),
            4 => prefetcher.demand(chance.below(units), signals[chance.below(4) as usize]),
            5 => prefetcher.missed(near..(near + 1 + chance.below(40)).min(units)),
            // What was evicted may be of an older window, or was cut off by the pager.
            6 => prefetcher.policy.unused(near),
            7 => prefetcher.policy.unused(chance.below(units.saturating_mul(2))),
            8 => {
                prefetcher.limits.window_max = 1 + chance.below(window_max);
                prefetcher.limits.extent_max = 1 + chance.below(extent_max);
            }
            9 => {
                let ranges = (0..chance.below(4)).map(|_| {
                    let start = chance.below(units);
                    start..start.saturating_add(chance.below(20))
                });
                let ranges = ranges.collect();
                prefetcher.advise(&Advice::WillNeed(ranges));
            }
            10 if chance.below(20) == 0 => {
                let advice = [Advice::Sequential, Advice::Random, Advice::Normal];
                prefetcher.advise(&advice[chance.below(3) as usize]);
            }
            _ => prefetcher.follow(chance),
        }
    }
}

/// The first and the last units, each with each signal.
fn edges(prefetcher: &mut Prefetcher, _: &mut Chance) {
    let units = prefetcher.limits.units;
    let edge = units.min(6);
    for advice in [Advice::Normal, Advice::Sequential, Advice::Normal] {
        prefetcher.advise(&advice);
        for signal in [Signal::Miss, Signal::Late, Signal::Marker, Signal::Hit] {
            for distance in 0..edge {
                prefetcher.demand(units - edge + distance, signal);
            }
            for distance in 0..edge {
                prefetcher.demand(edge - 1 - distance, signal);
            }
            for _ in 0..3 {
                prefetcher.demand(units - 1, signal);
                prefetcher.demand(0, signal);
            }
        }
        prefetcher.missed(0..units);
        prefetcher.missed(units - 1..units);
        for at in [0, units - 1, units, u64::MAX] {
            prefetcher.policy.unused(at);
        }
    }
}

/// Hints of every shape, and readers in and out of their order.
fn hints(prefetcher: &mut Prefetcher, chance: &mut Chance) {
    let units = prefetcher.limits.units;
    let spread = |chance: &mut Chance, count: u64, len: u64| {
        (0..count)
            .map(|_| {
                let start = chance.below(units);
                start..start.saturating_add(1 + chance.below(len))
            })
            .collect::<Vec<_>>()
    };
    let odd = vec![0..0, Range { start: 5, end: 2 }, units..u64::MAX, units - 1..u64::MAX];
    let shapes = [
        vec![],
        odd,
        vec![0..units],
        vec![0..units, 0..units, 0..1],
        (0..3000).map(|i| i * 2..i * 2 + 1).collect(),
        (0..3000).rev().map(|i| i..i + 1).collect(),
        spread(chance, 200, 50),
        spread(chance, 6000, 3),
        spread(chance, 20, u64::MAX / 2),
    ];
    for ranges in shapes {
        prefetcher.advise(&Advice::WillNeed(ranges.clone()));
        // In order, one unit or the whole range at a time; then anywhere.
        for range in ranges.iter().take(100) {
            let range = range.start.min(units - 1)..range.end.clamp(1, units);
            prefetcher.demand(range.start, Signal::Marker);
            if range.start < range.end && chance.below(2) == 0 {
                prefetcher.missed(range);
            }
            prefetcher.follow(chance);
        }
        for range in spread(chance, 40, 2) {
            prefetcher.demand(range.start, Signal::Miss);
            prefetcher.policy.unused(range.start);
        }
    }
}

/// Reads that would be a stream, were it not for the advice.
fn random_advice(prefetcher: &mut Prefetcher, chance: &mut Chance) {
    let units = prefetcher.limits.units;
    // A stream that holds, before the advice comes.
    for at in 0..units.min(8) {
        prefetcher.demand(at, Signal::Miss);
        prefetcher.follow(chance);
    }
    prefetcher.silent = true;
    prefetcher.advise(&Advice::Random);
    for stride in [1, 5] {
        for at in (0..units.min(100)).step_by(stride) {
            prefetcher.demand(at, Signal::Miss);
        }
        for at in (0..units.min(100)).step_by(stride) {
            prefetcher.demand(at, Signal::Late);
            prefetcher.demand(at, Signal::Hit);
        }
    }
    for at in 0..units.min(20) {
        prefetcher.missed(at..at + 1);
    }
}

/// Numbers that are the same on every run: SplitMix64 (G. L. Steele, D. Lea, C. H. Flood, "Fast
/// Splittable Pseudorandom Number Generators", OOPSLA 2014).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// From 0 up to `limit`, which is at least 1.
    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{
        Adaptive, Clock, NoPrefetch, Plan, S3Fifo, Sequential, Stride, default_eviction,
        default_prefetch,
    };
    use std::{
        collections::{HashSet, VecDeque},
        panic::{AssertUnwindSafe, catch_unwind},
    };

    /// The text of the panic that `act` ends in.
    fn complaint(what: &str, act: impl FnOnce()) -> String {
        let error = catch_unwind(AssertUnwindSafe(act)).err();
        let error = error.unwrap_or_else(|| panic!("{what}: not found out"));
        *error.downcast::<String>().unwrap_or_else(|_| panic!("{what}: no text"))
    }

    #[test]
    fn every_eviction_policy_conforms() {
        type Make = fn() -> Box<dyn EvictionPolicy>;
        let policies: [(&str, Make); 4] = [
            ("clock", || Box::new(Clock::new())),
            ("s3fifo", || Box::new(S3Fifo::new())),
            ("the default", default_eviction),
            ("one without faults", || Box::new(Broken::new(Fault::None))),
        ];
        for (what, make) in policies {
            println!("{what}");
            check_eviction(make);
        }
    }

    #[test]
    fn every_prefetch_policy_conforms() {
        type Make = fn() -> Box<dyn PrefetchPolicy>;
        let policies: [(&str, Make); 8] = [
            ("none", || Box::new(NoPrefetch)),
            ("plan", || Box::new(Plan::new())),
            ("sequential", || Box::new(Sequential::new())),
            ("sequential, short", || Box::new(Sequential::with_window_max(3))),
            ("stride", || Box::new(Stride::new())),
            ("adaptive", || Box::new(Adaptive::new())),
            ("the default", default_prefetch),
            ("one without faults", || Box::new(Wrong::new(Error::None))),
        ];
        for (what, make) in policies {
            println!("{what}");
            check_prefetch(make);
        }
    }

    /// First in, first out, with one fault.
    struct Broken {
        keys: VecDeque<u64>,
        gone: Option<u64>,
        fault: Fault,
        /// Differs between two of the same make.
        salt: u64,
    }

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Fault {
        None,
        CountsGone,
        NamesGone,
        AsksAboutGone,
        AsksNobody,
        GivesUp,
        Removes,
        AsksForever,
        AsksMuch,
        Differs,
    }

    impl Broken {
        fn new(fault: Fault) -> Broken {
            static MADE: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
            let salt = MADE.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Broken { keys: VecDeque::new(), gone: None, fault, salt }
        }
    }

    impl EvictionPolicy for Broken {
        fn installed(&mut self, key: u64, _: u64, _: bool) {
            self.keys.push_back(key);
        }

        fn touched(&mut self, _: u64) {}

        fn removed(&mut self, key: u64) {
            self.keys.retain(|&k| k != key);
            self.gone = Some(key);
        }

        fn victim(&mut self, can_evict: &dyn Fn(u64) -> bool) -> Option<u64> {
            match self.fault {
                Fault::NamesGone if self.gone.is_some() => return self.gone,
                Fault::AsksAboutGone => drop(self.gone.map(can_evict)),
                Fault::AsksNobody => return self.keys.front().copied(),
                Fault::GivesUp => return self.keys.iter().copied().take(3).find(|&k| can_evict(k)),
                Fault::Removes => {
                    let at = self.keys.iter().position(|&key| can_evict(key))?;
                    return self.keys.remove(at);
                }
                Fault::AsksForever => loop {
                    if self.keys.is_empty() {
                        return None;
                    }
                    if let Some(&key) = self.keys.iter().find(|&&key| can_evict(key)) {
                        return Some(key);
                    }
                },
                Fault::AsksMuch => {
                    let allowed: HashSet<u64> =
                        self.keys.iter().copied().filter(|&key| can_evict(key)).collect();
                    return self.keys.iter().copied().find(|key| allowed.contains(key));
                }
                Fault::Differs => {
                    let turn = self.keys.len().min(1) * self.salt as usize;
                    let keys = self.keys.iter().copied().cycle().skip(turn % 7);
                    return keys.take(self.keys.len()).find(|&key| can_evict(key));
                }
                _ => {}
            }
            self.keys.iter().copied().find(|&key| can_evict(key))
        }

        fn len(&self) -> usize {
            self.keys.len() + usize::from(self.fault == Fault::CountsGone && self.gone.is_some())
        }
    }

    #[test]
    fn broken_eviction_policies_are_found_out() {
        let cases = [
            (Fault::CountsGone, "count"),
            (Fault::NamesGone, "resident"),
            (Fault::AsksAboutGone, "offered"),
            (Fault::AsksNobody, "allowed"),
            (Fault::GivesUp, "found"),
            (Fault::Removes, "stays"),
            (Fault::AsksForever, "bounded"),
            (Fault::AsksMuch, "constant"),
            (Fault::Differs, "replay"),
        ];
        for (fault, clause) in cases {
            let what = format!("{fault:?}");
            let text = complaint(&what, || check_eviction(|| Box::new(Broken::new(fault))));
            assert!(text.contains(&format!("breaks `{clause}`")), "{what}: {text}");
        }
    }

    /// Wants the unit behind each one, with one fault.
    struct Wrong {
        error: Error,
        random: bool,
        salt: u64,
    }

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Error {
        None,
        Clears,
        Empty,
        PastTheEnd,
        MarkerElsewhere,
        ManyWants,
        LongWindow,
        Twice,
        Deaf,
        Differs,
    }

    impl Wrong {
        fn new(error: Error) -> Wrong {
            let salt = Broken::new(Fault::None).salt;
            Wrong { error, random: false, salt }
        }
    }

    impl PrefetchPolicy for Wrong {
        fn demand(&mut self, at: u64, _: Signal, limits: &Limits, wants: &mut Vec<Want>) {
            let next = at + 1..(at + 2).min(limits.units);
            let want = |units: Range<u64>| Want { units, marker: None };
            if self.random && self.error != Error::Deaf {
                return;
            }
            match self.error {
                Error::Clears => wants.clear(),
                Error::Empty => wants.push(want(at..at)),
                Error::PastTheEnd => wants.push(want(at + 1..at + 2)),
                Error::MarkerElsewhere => {
                    return wants.push(Want { units: at..at + 1, marker: Some(at + 1) });
                }
                Error::ManyWants => {
                    let many = (0..limits.units.min(limits.window_max).min(2000)).map(|i| i..i + 1);
                    return wants.extend(many.map(want));
                }
                Error::LongWindow => {
                    let end = (at + limits.window_max + 1).min(limits.units);
                    return wants.push(want(at..end));
                }
                Error::Twice if limits.window_max > 1 => {
                    return wants.extend([want(at..at + 1), want(at..at + 1)]);
                }
                Error::Differs if self.salt % 2 == 0 => return,
                _ => {}
            }
            if !next.is_empty() {
                wants.push(want(next));
            }
        }

        fn unused(&mut self, _: u64) {}

        fn advise(&mut self, advice: &Advice, _: &Limits, _: &mut Vec<Want>) {
            self.random = *advice == Advice::Random;
        }
    }

    #[test]
    fn wrong_prefetch_policies_are_found_out() {
        let cases = [
            (Error::Clears, "pushes"),
            (Error::Empty, "inside"),
            (Error::PastTheEnd, "inside"),
            (Error::MarkerElsewhere, "marker"),
            (Error::ManyWants, "count"),
            (Error::LongWindow, "window"),
            (Error::Twice, "once"),
            (Error::Deaf, "random"),
            (Error::Differs, "replay"),
        ];
        for (error, clause) in cases {
            let what = format!("{error:?}");
            let text = complaint(&what, || check_prefetch(|| Box::new(Wrong::new(error))));
            assert!(text.contains(&format!("breaks `{clause}`")), "{what}: {text}");
        }
    }
}
