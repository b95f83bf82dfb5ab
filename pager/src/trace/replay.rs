//! A trace on other policies and budgets.
//!
//! Each access of a recorded reader is an access here, in the recorded order. What is not in place is
//! fetched: units next to each other in one access are one GET of up to 16 MiB. Nothing is fetched
//! ahead, so that the numbers are those of eviction alone; what prefetch made of the same accesses
//! stands in the trace as requests ([`Overview`]).

use std::{collections::HashSet, ops::Range};

use super::{
    Kind,
    format::{COUNT_MAX, Record, RegionInfo, TraceError},
};
use crate::{
    policy::{Clock, EvictionPolicy, S3Fifo},
    sys::PAGE,
};

/// Units that one simulated cache, or the overview, keeps in mind: some hundreds of MB of them.
const UNITS_KEPT_MAX: usize = 1 << 24;
/// Bytes of one simulated request.
const EXTENT_BYTES: u64 = 16 << 20;
/// Bits of a key that name the unit within its region, as in the pager's pool.
const UNIT_BITS: u32 = 48;

type Make = fn() -> Box<dyn EvictionPolicy>;

/// What is tried.
const POLICIES: [(&str, Make); 2] =
    [("S3-FIFO", || Box::new(S3Fifo::new())), ("CLOCK", || Box::new(Clock::new()))];

/// What a trace holds, without any simulation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Overview {
    /// Loads that found everything in place.
    pub hits: u64,
    /// Loads that had to wait.
    pub waits: u64,
    /// Page faults.
    pub faults: u64,
    /// Accesses that are missing.
    pub lost: u64,
    /// Requests that were sent for readers who waited.
    pub fetches: u64,
    /// Requests that were sent for guesses.
    pub guesses: u64,
    /// Bytes of all these requests.
    pub bytes_fetched: u64,
    /// Distinct units that a reader asked for.
    pub units_touched: u64,
    /// What a budget costs that holds them all: their bytes, and a page for each.
    pub bytes_touched: u64,
    /// Time of the last record, in microseconds from the start.
    pub ends_us: u64,
    regions: Vec<RegionInfo>,
    touched: HashSet<u64>,
    /// Where the rest of the latest access would begin, if its record is as long as they get.
    cut: Option<(u64, u32, u64, Kind)>,
}

impl Overview {
    /// Nothing seen yet.
    pub fn new() -> Overview {
        Overview::default()
    }

    /// Takes the next record.
    ///
    /// # Errors
    /// [`TraceError::TooLarge`] for more distinct units than are kept in memory, 16 million.
    pub fn record(&mut self, record: &Record) -> Result<(), TraceError> {
        match record {
            Record::Opened { info, .. } => self.regions.push(info.clone()),
            Record::Closed { .. } => {}
            Record::Lost { records } => self.lost = self.lost.saturating_add(*records),
            Record::Access { at_us, region, units, kind } => {
                self.ends_us = *at_us;
                let info = &self.regions[*region as usize];
                let goes_on = self.cut.take() == Some((*at_us, *region, units.start, *kind));
                if units.end - units.start == COUNT_MAX {
                    self.cut = Some((*at_us, *region, units.end, *kind));
                }
                let count = match kind {
                    Kind::Hit => &mut self.hits,
                    Kind::Wait => &mut self.waits,
                    Kind::Fault => &mut self.faults,
                    Kind::Fetch => &mut self.fetches,
                    Kind::Guess => &mut self.guesses,
                };
                *count += u64::from(!goes_on);
                if !kind.is_access() {
                    self.bytes_fetched += info.bytes_of(units);
                    return Ok(());
                }
                let cost = cost_of(info);
                for unit in units.clone() {
                    if self.touched.insert(key(*region, unit)) {
                        self.units_touched += 1;
                        self.bytes_touched += cost;
                    }
                }
                if self.touched.len() > UNITS_KEPT_MAX {
                    return Err(too_large());
                }
            }
        }
        Ok(())
    }

    /// Accesses of readers.
    pub fn accesses(&self) -> u64 {
        self.hits + self.waits + self.faults
    }
}

/// What a policy at a budget makes of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outcome {
    /// The policy's name.
    pub policy: &'static str,
    /// The budget in bytes. As in a pager, each unit costs a page besides its bytes.
    pub budget: u64,
    /// Units that were asked for, each time counted.
    pub units: u64,
    /// Of these, units that were in place.
    pub hits: u64,
    /// Requests.
    pub gets: u64,
    /// Bytes of these requests.
    pub bytes: u64,
}

impl Outcome {
    /// Share of the units that were in place, 0 to 1; 1 where nothing was asked for.
    pub fn hit_ratio(&self) -> f64 {
        if self.units == 0 { 1.0 } else { self.hits as f64 / self.units as f64 }
    }
}

/// Runs every policy at every budget over a trace, in one pass.
pub struct Replayer {
    regions: Vec<RegionInfo>,
    caches: Vec<Simulated>,
}

impl Replayer {
    /// Empty caches: S3-FIFO and CLOCK, each at each of `budgets` (bytes).
    pub fn new(budgets: &[u64]) -> Replayer {
        let caches = POLICIES.iter().flat_map(|&(name, make)| {
            budgets.iter().map(move |&budget| Simulated::new(name, budget, make()))
        });
        Replayer { regions: Vec::new(), caches: caches.collect() }
    }

    /// Empty caches with a policy of one's own, beside those there are.
    #[must_use]
    pub fn with(
        mut self,
        name: &'static str,
        budgets: &[u64],
        make: impl Fn() -> Box<dyn EvictionPolicy>,
    ) -> Replayer {
        self.caches.extend(budgets.iter().map(|&budget| Simulated::new(name, budget, make())));
        self
    }

    /// The policies that [`new`](Replayer::new) tries.
    pub fn policies() -> impl Iterator<Item = &'static str> {
        POLICIES.iter().map(|&(name, _)| name)
    }

    /// Takes the next record.
    ///
    /// # Errors
    /// [`TraceError::TooLarge`] for more units in place than are kept in memory, 16 million.
    pub fn record(&mut self, record: &Record) -> Result<(), TraceError> {
        match record {
            Record::Opened { info, .. } => {
                self.regions.push(info.clone());
                self.caches.iter_mut().for_each(|cache| cache.resident.push(HashSet::new()));
            }
            Record::Closed { region } => {
                let cost = cost_of(&self.regions[*region as usize]);
                self.caches.iter_mut().for_each(|cache| cache.close(*region, cost));
            }
            Record::Access { at_us, region, units, kind } if kind.is_access() => {
                for cache in &mut self.caches {
                    cache.access(*at_us, *region, units, &self.regions)?;
                }
            }
            Record::Access { .. } | Record::Lost { .. } => {}
        }
        Ok(())
    }

    /// What came of it so far: the budgets of one policy, then those of the next.
    pub fn outcomes(&self) -> Vec<Outcome> {
        self.caches.iter().map(|cache| cache.outcome.clone()).collect()
    }
}

fn key(region: u32, unit: u64) -> u64 {
    u64::from(region) << UNIT_BITS | unit
}

fn cost_of(info: &RegionInfo) -> u64 {
    info.unit_bytes + PAGE as u64
}

fn too_large() -> TraceError {
    TraceError::TooLarge(format!("more than {UNITS_KEPT_MAX} units would be kept in mind"))
}

/// A pager's pool without bytes.
struct Simulated {
    policy: Box<dyn EvictionPolicy>,
    /// For each region, its units in place.
    resident: Vec<HashSet<u64>>,
    used: u64,
    outcome: Outcome,
    /// The end of a record as long as they get: the next may be of the same access.
    cut: Option<Cut>,
}

struct Cut {
    /// Time, region and unit with which the rest would begin.
    place: (u64, u32, u64),
    /// Units of the request that was being made.
    run: u64,
}

impl Simulated {
    fn new(policy: &'static str, budget: u64, made: Box<dyn EvictionPolicy>) -> Simulated {
        let outcome = Outcome { policy, budget, units: 0, hits: 0, gets: 0, bytes: 0 };
        Simulated { policy: made, resident: Vec::new(), used: 0, outcome, cut: None }
    }

    fn access(
        &mut self,
        at_us: u64,
        region: u32,
        units: &Range<u64>,
        regions: &[RegionInfo],
    ) -> Result<(), TraceError> {
        let info = &regions[region as usize];
        let cost = cost_of(info);
        let extent = (EXTENT_BYTES / info.unit_bytes).max(1);
        let here = (at_us, region, units.start);
        // Units of the request that is being made: 0 behind one that was in place.
        let mut run = self.cut.take().filter(|cut| cut.place == here).map_or(0, |cut| cut.run);
        for unit in units.clone() {
            self.outcome.units += 1;
            if self.resident[region as usize].contains(&unit) {
                self.policy.touched(key(region, unit));
                self.outcome.hits += 1;
                run = 0;
                continue;
            }
            if run == 0 || run == extent {
                self.outcome.gets += 1;
                run = 0;
            }
            run += 1;
            self.outcome.bytes += info.bytes_of(&(unit..unit + 1));
            self.install(region, unit, cost, regions);
        }
        if units.end - units.start == COUNT_MAX {
            self.cut = Some(Cut { place: (at_us, region, units.end), run });
        }
        match self.policy.len() > UNITS_KEPT_MAX {
            true => Err(too_large()),
            false => Ok(()),
        }
    }

    fn install(&mut self, region: u32, unit: u64, cost: u64, regions: &[RegionInfo]) {
        while self.used + cost > self.outcome.budget {
            // Less room than one unit needs: it is read and not kept.
            let Some(victim) = self.policy.victim(&|_| true) else { return };
            let of = (victim >> UNIT_BITS) as usize;
            self.policy.removed(victim);
            self.resident[of].remove(&(victim & ((1 << UNIT_BITS) - 1)));
            self.used -= cost_of(&regions[of]);
        }
        self.policy.installed(key(region, unit), cost, false);
        self.resident[region as usize].insert(unit);
        self.used += cost;
    }

    fn close(&mut self, region: u32, cost: u64) {
        let gone = std::mem::take(&mut self.resident[region as usize]);
        self.used -= cost * gone.len() as u64;
        let mut gone: Vec<u64> = gone.into_iter().collect();
        // In an order of their own, so that a replay is the same each time.
        gone.sort_unstable();
        gone.into_iter().for_each(|unit| self.policy.removed(key(region, unit)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: u64 = 64 << 10;
    const COST: u64 = UNIT + PAGE as u64;

    fn opened(region: u32, len: u64) -> Record {
        Record::Opened { region, info: RegionInfo::new("test://x", "v", len, UNIT) }
    }

    fn access(region: u32, units: Range<u64>) -> Record {
        Record::Access { at_us: 0, region, units, kind: Kind::Wait }
    }

    fn run(budgets: &[u64], records: &[Record]) -> Vec<Outcome> {
        let mut replayer = Replayer::new(budgets);
        records.iter().for_each(|record| replayer.record(record).expect("a small trace"));
        replayer.outcomes()
    }

    #[test]
    fn hits_misses_and_gets_are_counted() {
        // A last unit of one byte.
        let len = 999 * UNIT + 1;
        let records = [
            opened(0, len),
            access(0, 0..4),      // one GET of four units
            access(0, 0..4),      // all there
            access(0, 2..6),      // two there, one GET of two
            access(0, 10..11),    // one
            access(0, 8..12),     // two and one, around the one that is there
            access(0, 999..1000), // one byte
            Record::Access { at_us: 9, region: 0, units: 0..64, kind: Kind::Guess },
            Record::Lost { records: 5 },
        ];
        for outcome in run(&[1 << 30], &records) {
            let Outcome { units, hits, gets, bytes, policy, .. } = outcome;
            assert_eq!((units, hits, gets), (18, 7, 6), "{policy}");
            assert_eq!(bytes, 10 * UNIT + 1, "{policy}");
        }
        let mut overview = Overview::new();
        records.iter().for_each(|record| overview.record(record).expect("a small trace"));
        assert_eq!((overview.waits, overview.guesses, overview.lost), (6, 1, 5));
        assert_eq!((overview.units_touched, overview.bytes_touched), (11, 11 * COST));
        assert_eq!((overview.bytes_fetched, overview.ends_us), (64 * UNIT, 9));
        assert_eq!(overview.accesses(), 6);
    }

    #[test]
    fn long_misses_are_requests_of_16_mib() {
        // 256 units are 16 MiB; a record has at most 64 of them, and what follows it is more of it.
        let mut records = vec![opened(0, 1 << 30)];
        records.extend((0..4).map(|n| access(0, n * 64..n * 64 + 64)));
        let of = |records: &[Record]| run(&[0], records)[0].clone();
        assert_eq!((of(&records).gets, of(&records).bytes), (1, 256 * UNIT));
        records.push(access(0, 256..257));
        assert_eq!((of(&records).gets, of(&records).hits), (2, 0), "nothing is kept in no budget");
        let mut overview = Overview::new();
        records.iter().for_each(|record| overview.record(record).expect("a small trace"));
        assert_eq!(overview.waits, 1, "one load of 257 units");
        // Another access at the same place, and one that is elsewhere.
        records.push(access(0, 257..321));
        assert_eq!(of(&records).gets, 3);
        records.push(access(0, 322..323));
        assert_eq!(of(&records).gets, 4);
    }

    #[test]
    fn a_scan_beside_a_working_set_tells_policies_apart() {
        let (small, all) = (20 * COST, 1 << 30);
        let mut records = vec![opened(0, 1 << 30), opened(1, 1 << 30)];
        for round in 0..50u64 {
            // Ten units are wanted three times in a row, again and again; a scan passes once.
            let thrice = (0..30).map(|n| access(0, n / 3..n / 3 + 1));
            records.extend(thrice);
            records.extend((0..100).map(|n| access(1, round * 100 + n..round * 100 + n + 1)));
        }
        let outcomes = run(&[small, all], &records);
        let of = |policy, budget| {
            let found = outcomes.iter().find(|o| o.policy == policy && o.budget == budget);
            found.expect("each policy at each budget")
        };
        for policy in Replayer::policies() {
            assert_eq!(of(policy, all).hits, 1490, "{policy}: all but the first of each");
            assert_eq!(of(policy, all).gets, 10 + 5000, "{policy}");
            assert_eq!(of(policy, small).units, 50 * 130, "{policy}");
            assert!(of(policy, small).hits >= 1000, "{policy}: the second and third of each three");
        }
        let (s3fifo, clock) = (of("S3-FIFO", small), of("CLOCK", small));
        assert!(s3fifo.hits > clock.hits + 300, "the scan passes by: {s3fifo:?}, {clock:?}");
        assert!(s3fifo.gets < clock.gets, "{s3fifo:?}, {clock:?}");
    }

    #[test]
    fn a_region_that_is_closed_gives_its_room_back() {
        let records = [
            opened(0, 1 << 30),
            opened(1, 1 << 30),
            access(0, 0..8),
            access(1, 0..2),
            Record::Closed { region: 0 },
            access(1, 10..18),
            access(1, 0..2),
            Record::Closed { region: 0 },
        ];
        for outcome in run(&[10 * COST], &records) {
            assert_eq!(outcome.hits, 2, "{}: nobody had to leave", outcome.policy);
        }
    }
}
