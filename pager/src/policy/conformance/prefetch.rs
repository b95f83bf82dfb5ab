//! The clauses of [`PrefetchPolicy`].

use std::{iter, ops::Range};

use super::{Chance, mix};
use crate::policy::{
    PrefetchPolicy,
    prefetch::{Advice, Limits, Signal, WANTS_MAX, Want},
};

/// Checks a prefetch policy against the clauses in the [page of the module](super).
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
        let before = Want::new(0..1).with_marker(0);
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
        for Want { units, marker, .. } in &wants {
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
            let Want { units, marker, .. } = want;
            mix(mix(mix(digest ^ units.start) ^ units.end) ^ marker.map_or(0, mix))
        });
        self.log.push(digest);
        if !wants.is_empty() {
            self.next = wants.into_iter().next();
        }
    }

    /// Reads at the marker of the latest wants, which are staged, coming or gone.
    fn follow(&mut self, chance: &mut Chance) {
        let Some(Want { units, marker, .. }) = self.next.take() else { return };
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
        let Some(Want { units, marker, .. }) = prefetcher.next.take() else { break };
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
        Vec::from_iter(iter::once(0..units)),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{
        Adaptive, NoPrefetch, Plan, Sequential, Stride,
        conformance::tests::{complaint, salt},
        default_prefetch,
    };

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
            Wrong { error, random: false, salt: salt() }
        }
    }

    impl PrefetchPolicy for Wrong {
        fn demand(&mut self, at: u64, _: Signal, limits: &Limits, wants: &mut Vec<Want>) {
            let next = at + 1..(at + 2).min(limits.units);
            let want = Want::new;
            if self.random && self.error != Error::Deaf {
                return;
            }
            match self.error {
                Error::Clears => wants.clear(),
                Error::Empty => wants.push(want(at..at)),
                Error::PastTheEnd => wants.push(want(at + 1..at + 2)),
                Error::MarkerElsewhere => {
                    return wants.push(Want::new(at..at + 1).with_marker(at + 1));
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
                Error::Differs if self.salt.is_multiple_of(2) => return,
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
