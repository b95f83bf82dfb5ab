//! Majority stride, as in Leap: every n-th unit, forwards or backwards.
//!
//! H. Al Maruf, M. Chowdhury, "Effectively Prefetching Remote Memory with Leap", USENIX ATC 2020,
//! section 4.1. The differences between successive accesses are kept for a while; if one of them
//! makes up more than half of the latest, it is the trend, even if other accesses interrupt it. A
//! majority is found in constant space by the vote of R. S. Boyer and J S. Moore, "MJRTY - A Fast
//! Majority Vote Algorithm", 1981. The latest quarter of the history is asked first, then twice as
//! much, up to all of it (algorithm 1 of the paper).
//!
//! ```text
//!   accesses  100  107  114   3   121  128  135     wants  142 149, then 156 163 170 177, ...
//!   deltas       7    7  -111  118   7    7                ^ marker      ^ marker
//! ```
//!
//! Where this differs from the paper, and why: what is mapped gives no signal when it is used, so
//! hits cannot be counted. As in [`super::sequential`], entering the newest window tells that the
//! one before was read, and doubles the next; the steps in between count as accesses.

use std::collections::VecDeque;

use super::prefetch::{Advice, Limits, PrefetchPolicy, Signal, Want};

/// Differences that are remembered: `Hsize` of the paper.
const HISTORY: usize = 32;
/// The share of them that is asked first: `Nsplit` of the paper is 2 to 8.
const SPLIT: usize = 4;
/// A trend of fewer equal differences is chance.
const VOTES_MIN: usize = 3;
const WINDOW_FIRST: u64 = 2;
/// Units of the longest window. Each is a request: 64 of 64 KiB hide 30 ms at 130 MB/s.
const WINDOW_MAX: u64 = 64;

/// Majority stride: see the module's page.
#[derive(Clone, Debug, Default)]
pub struct Stride {
    /// The latest last.
    deltas: VecDeque<i64>,
    last: Option<u64>,
    run: Option<Run>,
    random: bool,
}

/// A stride that holds. Steps count from the access that showed it.
///
/// ```text
///   read      last window    newest window    not asked for
///   ---------|--------------|----------------|-------------
///            before         start            end
/// ```
#[derive(Clone, Copy, Debug)]
struct Run {
    origin: u64,
    stride: i64,
    before: u64,
    start: u64,
    end: u64,
    /// Furthest step that the reader is known to have reached.
    reached: u64,
    window: u64,
    /// Units that left unread since the newest window was asked for.
    unread: u64,
}

impl Run {
    /// Steps from the origin to `at`, if it lies on the way.
    fn step_of(&self, at: u64) -> Option<u64> {
        let distance = i128::from(at) - i128::from(self.origin);
        let stride = i128::from(self.stride);
        (distance % stride == 0).then(|| u64::try_from(distance / stride).ok()).flatten()
    }

    /// The unit of a step, if there is one.
    fn unit_of(&self, step: u64, units: u64) -> Option<u64> {
        let at = i128::from(self.origin) + i128::from(step) * i128::from(self.stride);
        u64::try_from(at).ok().filter(|&at| at < units)
    }
}

impl Stride {
    /// A policy without history.
    pub fn new() -> Stride {
        Stride::default()
    }

    fn record(&mut self, delta: i64) {
        if self.deltas.len() == HISTORY {
            self.deltas.pop_front();
        }
        self.deltas.push_back(delta);
    }

    /// The difference that makes up more than half of the latest ones, by more than the one vote
    /// that two differences in turn give to either.
    fn trend(&self) -> Option<i64> {
        let mut len = HISTORY / SPLIT;
        loop {
            let latest = || self.deltas.iter().rev().take(len).copied();
            let mut candidate = 0;
            let mut lead = 0;
            for delta in latest() {
                if lead == 0 {
                    candidate = delta;
                }
                lead = if delta == candidate { lead + 1 } else { lead - 1 };
            }
            let votes = latest().filter(|&delta| delta == candidate).count();
            if votes >= VOTES_MIN && votes * 2 > latest().count() + 1 {
                return Some(candidate);
            }
            if len >= self.deltas.len() {
                return None;
            }
            len *= 2;
        }
    }

    /// Asks for the next window of the run.
    fn extend(&mut self, limits: &Limits, wants: &mut Vec<Want>) {
        let Some(run) = &mut self.run else { return };
        run.window = run.window.clamp(1, WINDOW_MAX);
        // The window that is being read and the one that is on its way share the limit.
        let len = run.window.min(limits.window_max / 2).max(1);
        let first = run.end;
        let units = (first..first.saturating_add(len)).map_while(|s| run.unit_of(s, limits.units));
        let units: Vec<u64> = units.collect();
        let Some(&marker) = units.first() else { return };
        (run.before, run.start, run.end) = (run.start, first, first + units.len() as u64);
        run.unread = 0;
        match run.stride {
            1 => wants.push(Want::new(marker..marker + len_of(&units)).with_marker(marker)),
            -1 => {
                let units = marker + 1 - len_of(&units)..marker + 1;
                wants.push(Want::new(units).with_marker(marker).backwards());
            }
            _ => wants.extend(units.into_iter().map(|at| Want {
                units: at..at + 1,
                marker: (at == marker).then_some(marker),
                backwards: false,
            })),
        }
    }

    /// Follows the run, if `at` lies on it. Returns whether it does.
    fn advance(&mut self, at: u64, signal: Signal, limits: &Limits, wants: &mut Vec<Want>) -> bool {
        let Some(run) = &mut self.run else { return false };
        let Some(step) = run.step_of(at) else { return false };
        if !(run.before..=run.end).contains(&step) {
            return false;
        }
        let stride = run.stride;
        let steps = step.saturating_sub(run.reached);
        run.reached = run.reached.max(step);
        let mut moves = true;
        if signal == Signal::Miss && step < run.end {
            // Asked for, yet not there: dropped over a limit, or evicted before it was read.
            run.window /= 2;
            (run.before, run.start, run.end, run.reached) = (step, step, step + 1, step);
        } else if step >= run.start {
            run.window *= 2;
            run.end = run.end.max(step + 1);
        } else {
            moves = false;
        }
        for _ in 0..steps.min(HISTORY as u64) {
            self.record(stride);
        }
        self.last = Some(at);
        if moves {
            self.extend(limits, wants);
        }
        true
    }
}

fn len_of(units: &[u64]) -> u64 {
    units.len() as u64
}

impl PrefetchPolicy for Stride {
    fn demand(&mut self, at: u64, signal: Signal, limits: &Limits, wants: &mut Vec<Want>) {
        if self.random || at >= limits.units || self.advance(at, signal, limits, wants) {
            return;
        }
        // What is resident may be read in any order at no cost: it proves nothing.
        if signal == Signal::Hit {
            return;
        }
        let Some(last) = self.last.replace(at) else { return };
        // Objects have fewer than 2^63 units; where they do not, this is no stride.
        let Ok(delta) = i64::try_from(i128::from(at) - i128::from(last)) else { return };
        if delta == 0 {
            return;
        }
        self.record(delta);
        if self.trend() != Some(delta) {
            return;
        }
        self.run = Some(Run {
            origin: at,
            stride: delta,
            before: 0,
            start: 0,
            end: 1,
            reached: 0,
            window: WINDOW_FIRST,
            unread: 0,
        });
        self.extend(limits, wants);
    }

    fn unused(&mut self, at: u64) {
        let Some(run) = &mut self.run else { return };
        let ahead = |&step: &u64| run.reached < step && step < run.end;
        if run.step_of(at).filter(ahead).is_none() {
            return;
        }
        if run.unread == 0 {
            run.window = (run.window / 2).max(1);
        }
        run.unread += 1;
        if run.unread * 2 > run.end - run.start {
            self.run = None;
            self.deltas.clear();
        }
    }

    fn advise(&mut self, advice: &Advice, _: &Limits, _: &mut Vec<Want>) {
        match advice {
            Advice::Random => *self = Stride { random: true, ..Stride::default() },
            Advice::Normal | Advice::Sequential => self.random = false,
            // Which is for a plan.
            Advice::WillNeed(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::simulation::{Reader, World, run};

    const LIMITS: Limits = Limits { units: 10_000, window_max: 4096, extent_max: 256 };

    /// The units that a signal brings, in their order, and the marker.
    fn step(policy: &mut Stride, at: u64, signal: Signal) -> (Vec<u64>, Option<u64>) {
        let mut wants = Vec::new();
        policy.demand(at, signal, &LIMITS, &mut wants);
        let marker = wants.first().and_then(|want| want.marker);
        (wants.into_iter().flat_map(|want| want.units).collect(), marker)
    }

    #[test]
    fn strides_are_followed() {
        use Signal::*;
        type Steps = Vec<(u64, Signal, Vec<u64>)>;
        let cases: Vec<(&str, Steps)> = vec![
            (
                "every seventh, mapped: markers tell",
                vec![
                    (100, Miss, vec![]),
                    (107, Miss, vec![]),
                    (114, Miss, vec![]),
                    (121, Miss, vec![128, 135]),
                    (128, Marker, vec![142, 149, 156, 163]),
                    (135, Hit, vec![]),
                    (142, Marker, vec![170, 177, 184, 191, 198, 205, 212, 219]),
                ],
            ),
            (
                "backwards, to the first unit",
                vec![
                    (500, Miss, vec![]),
                    (400, Miss, vec![]),
                    (300, Miss, vec![]),
                    (200, Miss, vec![100, 0]),
                    (100, Late, vec![]),
                    (0, Late, vec![]),
                ],
            ),
            (
                "an interruption, as drawn in the module's page",
                vec![
                    (100, Miss, vec![]),
                    (107, Miss, vec![]),
                    (114, Miss, vec![]),
                    (3, Miss, vec![]),
                    (121, Miss, vec![]),
                    (128, Miss, vec![]),
                    (135, Miss, vec![142, 149]),
                    (142, Marker, vec![156, 163, 170, 177]),
                ],
            ),
            (
                "no majority",
                vec![
                    (0, Miss, vec![]),
                    (5, Miss, vec![]),
                    (16, Miss, vec![]),
                    (21, Miss, vec![]),
                    (32, Miss, vec![]),
                    (37, Miss, vec![]),
                    (48, Miss, vec![]),
                ],
            ),
            (
                "what was lost is asked for again, and less of it",
                vec![
                    (0, Miss, vec![]),
                    (10, Miss, vec![]),
                    (20, Miss, vec![]),
                    (30, Miss, vec![40, 50]),
                    (40, Marker, vec![60, 70, 80, 90]),
                    (60, Miss, vec![70, 80]),
                ],
            ),
        ];
        for (what, steps) in cases {
            let mut policy = Stride::new();
            for (at, signal, units) in steps {
                let (got, marker) = step(&mut policy, at, signal);
                assert_eq!(got, units, "{what}: {signal:?} at {at}");
                assert_eq!(marker, units.first().copied(), "{what}: {signal:?} at {at}");
            }
        }
    }

    #[test]
    fn a_stride_of_one_is_a_range() {
        let cases = [
            ([7, 8, 9, 10], Want::new(11..13).with_marker(11)),
            ([9, 8, 7, 6], Want::new(4..6).with_marker(5).backwards()),
        ];
        for (order, want) in cases {
            let mut policy = Stride::new();
            let mut wants = Vec::new();
            for at in order {
                policy.demand(at, Signal::Miss, &LIMITS, &mut wants);
            }
            assert_eq!(wants, [want]);
        }
    }

    #[test]
    fn a_wrong_stride_stops() {
        let mut policy = Stride::new();
        for at in [0, 10, 20, 30] {
            step(&mut policy, at, Signal::Miss);
        }
        step(&mut policy, 40, Signal::Marker);
        policy.unused(20);
        policy.unused(61);
        assert_eq!(policy.run.map(|run| run.window), Some(4), "neither lies ahead on the way");
        policy.unused(90);
        assert_eq!(policy.run.map(|run| run.window), Some(2));
        policy.unused(80);
        policy.unused(70);
        assert!(policy.run.is_none());
        assert_eq!(step(&mut policy, 60, Signal::Miss).0, []);
    }

    #[test]
    fn random_reads_want_nothing() {
        let mut policy = Stride::new();
        let mut state = 7u64;
        for _ in 0..10_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = (state >> 33) % LIMITS.units;
            assert_eq!(step(&mut policy, at, Signal::Miss).0, [], "at {at}");
        }
    }

    #[test]
    fn a_strided_reader_is_ahead_of_the_round_trips() {
        // Every tenth unit, 2 ms of work each: alone, each would cost 31 ms.
        let world = World { units: 20_000, ..World::default() };
        let order = (0..20_000).step_by(10);
        let out = run(&world, &mut Stride::new(), vec![Reader::new(2000, order)]);
        println!("{out:?}");
        assert!(out.time_us < 2000 * 2000 * 11 / 10, "{out:?}");
        assert_eq!(out.wasted, 0, "{out:?}");
    }
}
