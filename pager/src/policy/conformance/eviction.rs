//! The clauses of [`EvictionPolicy`].

use std::{cell::Cell, collections::BTreeMap};

use super::{Chance, mix};
use crate::policy::EvictionPolicy;

/// How often a policy may ask about each entry in one call of `victim`. Once would do; a few rounds
/// keep a policy simple.
pub const QUESTIONS_EACH: usize = 8;

const SEEDS: u64 = 8;

/// Checks an eviction policy against the clauses in the [page of the module](super).
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{
        Clock, S3Fifo,
        conformance::tests::{complaint, salt},
        default_eviction,
    };
    use std::collections::{HashSet, VecDeque};

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
            Broken { keys: VecDeque::new(), gone: None, fault, salt: salt() }
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
}
