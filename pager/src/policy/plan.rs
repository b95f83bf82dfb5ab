//! A plan from hints: what the application says it will need, in its order, as room frees.
//!
//! The oldest idea of prefetching, and the one that never guesses: R. H. Patterson, G. A. Gibson,
//! E. Ginting, D. Stodolsky, J. Zelenka, "Informed Prefetching and Caching", SOSP 1995.
//!
//! ```text
//!   hint    [======== A ========] [=== B ===] [============= C =============]
//!                   ^ reader           ^ next: from here on nothing was asked for
//!                   |<---- out ------->|
//! ```
//!
//! - **At once.** A hint is asked for at once as far as it fits into what speculation may hold. If
//!   all of it fits, there is nothing to follow; but a long range ends in a marker, which says that
//!   it was read: a scan that announces piece by piece would else fill with what lies behind it what
//!   speculation may hold.
//! - **Then.** What does not fit is kept. Four markers in each batch tell how far the reader has
//!   come; when a quarter of what may be out is read, more is asked for.
//! - **Order.** Hints are read in the order they give. A newer hint comes first; a reader that
//!   misses elsewhere in the plan moves the plan to where it reads, starting small.
//! - **Lost.** A miss where something was asked for means that it was dropped over a limit or left
//!   too early: the plan goes back to that place and asks for less.
//! - **Bounds.** At most [`RANGES_MAX`] ranges are kept: the oldest hints are forgotten first.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use super::prefetch::{Advice, Limits, PrefetchPolicy, Signal, WANTS_MAX, Want};

/// Ranges that a plan keeps; about 100 bytes each.
pub const RANGES_MAX: usize = 4096;
/// Units asked for where the reader has left the order of the plan.
const WINDOW_FIRST: u64 = 4;
/// Markers in a batch that is not the last.
const MARKERS: usize = 4;
/// In the last batch a range has a marker at its end from so many units on: that fault costs far less
/// time than so much takes to come.
const MARKED_FROM: u64 = 8;

/// Prefetch from hints only: see the module's page.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Start of each range -> its end and the rank of its hint. Ranges do not overlap.
    ranges: BTreeMap<u64, Planned>,
    /// The same ranges in the order of need.
    order: BTreeSet<Place>,
    /// Ranks given so far.
    ranks: u64,
    /// Where the reader is known to be: never behind `next`.
    reader: Place,
    /// What lies before was asked for or passed over.
    next: Place,
    /// Units from `reader` to `next`.
    out: u64,
    /// How many units may be out.
    window: u64,
    /// Whether a unit left unread since the latest batch.
    unread: bool,
}

#[derive(Clone, Copy, Debug)]
struct Planned {
    end: u64,
    rank: u64,
}

/// A place in the plan. Ranges that were cut share a rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    rank: u64,
    unit: u64,
}

impl Plan {
    /// An empty plan.
    pub fn new() -> Plan {
        Plan::default()
    }

    /// One access to `units`. Returns whether the last of them belongs to the plan.
    pub(super) fn follow(
        &mut self,
        units: Range<u64>,
        signal: Signal,
        limits: &Limits,
        wants: &mut Vec<Want>,
    ) -> bool {
        let Some(at) = units.end.checked_sub(1) else { return false };
        let Some((_, planned)) = self.range_of(at) else { return false };
        let here = Place { rank: planned.rank, unit: at };
        if here < self.next && signal != Signal::Miss {
            if here < self.reader {
                return true;
            }
            self.out = self.out.saturating_sub(self.units_between(self.reader, here));
            self.reader = here;
            self.window = self.window.saturating_mul(2);
        } else {
            let caught_up =
                |(place, _): (Place, u64)| place.rank == here.rank && units.contains(&place.unit);
            self.window = if self.from(self.next).is_some_and(caught_up) {
                // The reader has caught up with the plan.
                self.window.saturating_mul(2)
            } else if self.reader <= here && here < self.next {
                self.window / 2
            } else {
                WINDOW_FIRST
            };
            let behind = Place { unit: at + 1, ..here };
            (self.reader, self.next, self.out) = (behind, behind, 0);
        }
        self.window = self.window.clamp(WINDOW_FIRST, limits.window_max.max(WINDOW_FIRST));
        if self.out <= self.window - self.window / 4 {
            self.ask(limits, wants);
        }
        true
    }

    /// The first planned unit at or behind `place`, and the end of its range.
    fn from(&self, place: Place) -> Option<(Place, u64)> {
        match self.range_of(place.unit) {
            Some((_, planned)) if planned.rank == place.rank => Some((place, planned.end)),
            _ => {
                let &start = self.order.range(place..).next()?;
                Some((start, self.ranges[&start.unit].end))
            }
        }
    }

    /// Planned units from one place up to another.
    fn units_between(&self, mut from: Place, to: Place) -> u64 {
        let mut units = 0;
        while let Some((place, end)) = self.from(from)
            && place < to
        {
            let end = if place.rank == to.rank { end.min(to.unit) } else { end };
            units += end - place.unit;
            from = Place { unit: end, ..place };
        }
        units
    }

    fn range_of(&self, at: u64) -> Option<(u64, Planned)> {
        let (&start, &planned) = self.ranges.range(..=at).next_back()?;
        (at < planned.end).then_some((start, planned))
    }

    fn insert(&mut self, units: Range<u64>, rank: u64) {
        if !units.is_empty() {
            self.ranges.insert(units.start, Planned { end: units.end, rank });
            self.order.insert(Place { rank, unit: units.start });
        }
    }

    fn remove(&mut self, start: u64) -> Planned {
        let planned = self.ranges.remove(&start).expect("the caller has found it");
        self.order.remove(&Place { rank: planned.rank, unit: start });
        planned
    }

    /// Makes `at` the start of a range, if it lies in one.
    fn cut_at(&mut self, at: u64) {
        if let Some((start, planned)) = self.range_of(at)
            && start < at
        {
            self.remove(start);
            self.insert(start..at, planned.rank);
            self.insert(at..planned.end, planned.rank);
        }
    }

    /// Adds a range of a hint whose ranks begin at `first`. What older hints said of these units is
    /// forgotten, what this hint has said already stays.
    fn add(&mut self, units: Range<u64>, first: u64) {
        let rank = self.ranks;
        self.ranks += 1;
        self.cut_at(units.start);
        self.cut_at(units.end);
        let overlapping = self.ranges.range(units.clone());
        let overlapping: Vec<_> = overlapping.map(|(&start, &planned)| (start, planned)).collect();
        let mut free = units.start;
        for (start, planned) in overlapping {
            if planned.rank >= first {
                self.insert(free..start, rank);
                free = planned.end;
            } else {
                self.remove(start);
            }
        }
        self.insert(free..units.end, rank);
    }

    /// Asks for what comes next, as far as the window allows.
    fn ask(&mut self, limits: &Limits, wants: &mut Vec<Want>) {
        let first_want = wants.len();
        let extent_max = limits.extent_max.max(1);
        let mut room = self.window.min(limits.window_max).saturating_sub(self.out);
        while room > 0 && wants.len() < WANTS_MAX {
            let Some((place, end)) = self.from(self.next) else { break };
            let longest = room.min(extent_max);
            let units = place.unit..end.min(place.unit.saturating_add(longest));
            self.next = Place { unit: units.end, ..place };
            room -= units.end - units.start;
            self.out += units.end - units.start;
            wants.push(Want::new(units));
        }
        self.unread = false;
        let goes_on = self.from(self.next).is_some();
        let batch = &mut wants[first_want..];
        if goes_on {
            for quarter in 0..MARKERS.min(batch.len()) {
                let want = &mut batch[quarter * batch.len() / MARKERS.min(batch.len())];
                want.marker = Some(want.units.start);
            }
            return;
        }
        let mut run = 0;
        for at in 0..batch.len() {
            let Range { start, end } = batch[at].units;
            run += end - start;
            if batch.get(at + 1).is_some_and(|next| next.units.start == end) {
                continue;
            }
            if run >= MARKED_FROM {
                batch[at].marker = Some(end - 1);
            }
            run = 0;
        }
    }

    fn will_need(&mut self, hint: &[Range<u64>], limits: &Limits, wants: &mut Vec<Want>) {
        let first = self.ranks;
        let mut hint = hint.iter().map(|units| units.start..units.end.min(limits.units)).peekable();
        while let Some(mut units) = hint.next() {
            // Neighbours that follow each other are one range.
            while let Some(next) =
                hint.next_if(|next| (units.start..=units.end).contains(&next.start))
            {
                units.end = units.end.max(next.end);
            }
            if units.is_empty() {
                continue;
            }
            // The oldest hints make room: a range adds itself, and cuts one in two at most twice.
            while self.ranges.len() + 3 > RANGES_MAX {
                match self.order.first() {
                    Some(&oldest) if oldest.rank < first => drop(self.remove(oldest.unit)),
                    _ => break,
                }
            }
            if self.ranges.len() + 3 > RANGES_MAX {
                break;
            }
            self.add(units, first);
        }
        let start = Place { rank: first, unit: 0 };
        (self.reader, self.next, self.out) = (start, start, 0);
        self.window = limits.window_max;
        self.ask(limits, wants);
    }
}

impl PrefetchPolicy for Plan {
    fn demand(&mut self, at: u64, signal: Signal, limits: &Limits, wants: &mut Vec<Want>) {
        self.follow(at..at.saturating_add(1), signal, limits, wants);
    }

    fn missed(&mut self, units: Range<u64>, limits: &Limits, wants: &mut Vec<Want>) {
        self.follow(units, Signal::Miss, limits, wants);
    }

    fn unused(&mut self, at: u64) {
        let Some((_, planned)) = self.range_of(at) else { return };
        let here = Place { rank: planned.rank, unit: at };
        if here > self.reader && here < self.next && !self.unread {
            self.unread = true;
            self.window = (self.window / 2).max(WINDOW_FIRST);
        }
    }

    fn advise(&mut self, advice: &Advice, limits: &Limits, wants: &mut Vec<Want>) {
        match advice {
            Advice::WillNeed(hint) => self.will_need(hint, limits, wants),
            Advice::Normal => *self = Plan::default(),
            // Neither takes back what was said of single units.
            Advice::Sequential | Advice::Random => {}
        }
    }
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "hints of one range are meant")]
mod tests {
    use super::*;
    use crate::policy::simulation::{Reader, World, run_advised};

    const LIMITS: Limits = Limits { units: 1000, window_max: 100, extent_max: 16 };

    fn hint(policy: &mut Plan, ranges: &[Range<u64>]) -> Vec<Want> {
        let mut wants = Vec::new();
        policy.advise(&Advice::WillNeed(ranges.to_vec()), &LIMITS, &mut wants);
        wants
    }

    fn step(policy: &mut Plan, at: u64, signal: Signal) -> Vec<Range<u64>> {
        let mut wants = Vec::new();
        policy.demand(at, signal, &LIMITS, &mut wants);
        units(&wants)
    }

    fn units(wants: &[Want]) -> Vec<Range<u64>> {
        wants.iter().map(|want| want.units.clone()).collect()
    }

    #[test]
    fn hints_are_asked_for_at_once() {
        type Ranges = Vec<Range<u64>>;
        let cases: [(&str, Ranges, Ranges); 7] = [
            ("in their order", vec![50..52, 3..4, 7..9], vec![50..52, 3..4, 7..9]),
            ("neighbours joined", vec![3..4, 4..6, 5..7, 9..10], vec![3..7, 9..10]),
            ("each unit once", vec![10..14, 0..20], vec![10..14, 0..10, 14..20]),
            ("cut to full requests", vec![0..40], vec![0..16, 16..32, 32..40]),
            ("cut at the region's end", vec![998..2000, 5000..6000], vec![998..1000]),
            ("empty and reversed", vec![5..5, Range { start: 9, end: 3 }], vec![]),
            (
                "as far as it fits",
                vec![0..90, 200..300],
                vec![0..16, 16..32, 32..48, 48..64, 64..80, 80..90, 200..210],
            ),
        ];
        for (what, ranges, expected) in cases {
            let wants = hint(&mut Plan::new(), &ranges);
            assert_eq!(units(&wants), expected, "{what}");
            let markers: Vec<u64> = wants.iter().filter_map(|want| want.marker).collect();
            let at_the_end: &[u64] = match what {
                "as far as it fits" => &[0, 16, 48, 80],
                "each unit once" => &[9],
                "cut to full requests" => &[39],
                _ => &[],
            };
            assert_eq!(
                markers, at_the_end,
                "{what}: the end of a long range tells that it was read"
            );
        }
    }

    #[test]
    fn the_rest_comes_as_the_reader_goes_on() {
        let mut policy = Plan::new();
        let wants = hint(&mut policy, &[0..90, 200..300]);
        let markers: Vec<u64> = wants.iter().filter_map(|want| want.marker).collect();
        assert_eq!(markers, [0, 16, 48, 80]);
        assert_eq!(step(&mut policy, 0, Signal::Marker), []);
        assert_eq!(step(&mut policy, 16, Signal::Marker), [], "more than half is still out");
        assert_eq!(step(&mut policy, 64, Signal::Marker), [210..226, 226..242, 242..258, 258..274]);
        assert_eq!(step(&mut policy, 20, Signal::Hit), [], "behind the reader");
        assert_eq!(step(&mut policy, 999, Signal::Miss), [], "not in the plan");
        assert_eq!(step(&mut policy, 250, Signal::Late), [274..290, 290..300]);
    }

    #[test]
    fn what_was_lost_is_asked_for_again() {
        let mut policy = Plan::new();
        hint(&mut policy, &[0..500]);
        // Dropped over a limit from unit 40 on.
        assert_eq!(step(&mut policy, 40, Signal::Miss), [41..57, 57..73, 73..89, 89..91]);
        // The reader jumps far ahead: it is believed in small steps.
        assert_eq!(step(&mut policy, 400, Signal::Miss), [401..405]);
        assert_eq!(step(&mut policy, 401, Signal::Late), [405..409]);
        assert_eq!(step(&mut policy, 405, Signal::Late), [409..421]);
        // And back to what it passed over.
        assert_eq!(step(&mut policy, 200, Signal::Miss), [201..205]);
    }

    #[test]
    fn a_newer_hint_comes_first() {
        let mut policy = Plan::new();
        hint(&mut policy, &[0..500]);
        assert_eq!(units(&hint(&mut policy, &[300..310, 20..22])), [300..310, 20..22]);
        assert_eq!(step(&mut policy, 300, Signal::Hit), []);
        assert_eq!(step(&mut policy, 120, Signal::Miss), [121..125], "the older one is kept");
        policy.advise(&Advice::Normal, &LIMITS, &mut Vec::new());
        assert_eq!(step(&mut policy, 121, Signal::Miss), []);
    }

    #[test]
    fn unread_units_shrink_the_window_once_a_batch() {
        let mut policy = Plan::new();
        hint(&mut policy, &[0..500]);
        for at in 50..60 {
            policy.unused(at);
        }
        assert_eq!(policy.window, 50);
        policy.unused(600);
        assert_eq!(policy.window, 50);
    }

    #[test]
    fn ranges_are_bounded_and_the_oldest_forgotten() {
        let limits = Limits { units: 1 << 40, window_max: 1 << 20, extent_max: 16 };
        let mut policy = Plan::new();
        let mut wants = Vec::new();
        for round in 0..5u64 {
            let ranges = (0..10_000).map(|i| {
                let at = (round << 30) + i * 2;
                at..at + 1
            });
            policy.advise(&Advice::WillNeed(ranges.collect()), &limits, &mut wants);
            assert_eq!(wants.len(), WANTS_MAX);
            assert!(policy.ranges.len() <= RANGES_MAX, "{} ranges", policy.ranges.len());
            assert_eq!(policy.ranges.len(), policy.order.len());
            wants.clear();
            let at = |i: u64| (round << 30) + i * 2;
            policy.demand(at(600), Signal::Marker, &limits, &mut wants);
            assert_eq!(wants.first().map(|w| w.units.start), Some(at(WANTS_MAX as u64)));
            wants.clear();
        }
        assert!(policy.range_of(0).is_none(), "the first hint is forgotten");
        // Cuts by a newer hint add ranges as well.
        for i in 0..10_000u64 {
            let hint = vec![0..1 << 30, i * 3..i * 3 + 1];
            policy.advise(&Advice::WillNeed(hint), &limits, &mut wants);
            wants.clear();
            let hint = vec![i * 3 + 1..i * 3 + 2];
            policy.advise(&Advice::WillNeed(hint), &limits, &mut wants);
            wants.clear();
            assert!(policy.ranges.len() <= RANGES_MAX, "{} ranges", policy.ranges.len());
        }
    }

    #[test]
    fn a_plan_of_scattered_units_takes_few_round_trips() {
        let world = World { units: 100_000, ..World::default() };
        let order: Vec<u64> = (0..500).map(|i| i * 7919 % 100_000).collect();
        let hint = order.iter().map(|&at| at..at + 1).collect();
        let advice = Advice::WillNeed(hint);
        let out = run_advised(&world, &mut Plan::new(), &advice, vec![Reader::new(0, order)]);
        println!("{out:?}");
        // Eight rounds of 64 connections: a round trip, and 10.5 ms for 64 units over one link.
        assert!(out.time_us < 8 * 41_000, "{out:?}");
        assert_eq!((out.fetched, out.misses), (500, 0), "{out:?}");
    }

    #[test]
    fn a_plan_larger_than_its_room_fills_the_link() {
        // Everything, in an order in which no stream can be seen, through an eighth of it.
        let world = World { quota: 2048, ..World::default() };
        let blocks: Vec<u64> =
            (0..world.units / 32).map(|i| i * 211 % (world.units / 32)).collect();
        let hint = blocks.iter().map(|&b| b * 32..(b + 1) * 32).collect();
        let order: Vec<u64> = blocks.iter().flat_map(|&b| b * 32..(b + 1) * 32).collect();
        for mapped in [true, false] {
            let world = World { mapped, ..world.clone() };
            let advice = Advice::WillNeed(Vec::clone(&hint));
            let reader = Reader::new(0, order.clone());
            let out = run_advised(&world, &mut Plan::new(), &advice, vec![reader]);
            println!("{out:?}");
            assert!(out.utilisation > 0.95, "{out:?}");
            assert_eq!((out.misses, out.dropped), (0, 0), "{out:?}");
        }
    }
}
