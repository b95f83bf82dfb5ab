//! Policies of one's own: what to give up, what to fetch ahead. Both pass the checks that the
//! pager's policies pass, and then serve a scan and random reads.

#![forbid(unsafe_code)]

use std::{collections::HashMap, error::Error};

use pager::{
    Pager, RegionOptions,
    policy::{
        EvictionPolicy, NoPrefetch, Plan, PrefetchPolicy, conformance,
        prefetch::{Advice, Limits, Signal, Want},
    },
};
use sources::Memory;

/// Gives up any entry at all. Hard to beat where reads have no pattern, and never the worst.
struct AnyEntry {
    keys: Vec<u64>,
    places: HashMap<u64, usize>,
    random: u64,
}

impl AnyEntry {
    fn new() -> AnyEntry {
        AnyEntry { keys: Vec::new(), places: HashMap::new(), random: 1 }
    }
}

impl EvictionPolicy for AnyEntry {
    fn installed(&mut self, key: u64, _weight: u64, _speculative: bool) {
        self.places.insert(key, self.keys.len());
        self.keys.push(key);
    }

    fn touched(&mut self, _key: u64) {}

    fn removed(&mut self, key: u64) {
        let Some(place) = self.places.remove(&key) else { return };
        self.keys.swap_remove(place);
        if let Some(moved) = self.keys.get(place) {
            self.places.insert(*moved, place);
        }
    }

    fn victim(&mut self, can_evict: &dyn Fn(u64) -> bool) -> Option<u64> {
        // Chance has a seed, so that a recorded trace always replays to the same victims.
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let start = (self.random >> 33) as usize % self.keys.len().max(1);
        let (before, from) = self.keys.split_at(start);
        from.iter().chain(before).copied().find(|&key| can_evict(key))
    }

    fn len(&self) -> usize {
        self.keys.len()
    }
}

/// Fetches the next few units behind every miss, and what hints announce.
#[derive(Default)]
struct NextFew {
    hints: Plan,
    told_random: bool,
}

/// Units fetched behind a miss.
const FEW: u64 = 8;

impl PrefetchPolicy for NextFew {
    fn demand(&mut self, at: u64, signal: Signal, limits: &Limits, wants: &mut Vec<Want>) {
        let before = wants.len();
        self.hints.demand(at, signal, limits, wants);
        let units = at + 1..limits.units.min(at + 1 + FEW.min(limits.window_max));
        let hinted = wants.len() > before;
        if signal == Signal::Miss && !hinted && !self.told_random && !units.is_empty() {
            wants.push(Want::new(units));
        }
    }

    fn unused(&mut self, at: u64) {
        self.hints.unused(at);
    }

    fn advise(&mut self, advice: &Advice, limits: &Limits, wants: &mut Vec<Want>) {
        match advice {
            Advice::Random => self.told_random = true,
            Advice::Sequential | Advice::Normal => self.told_random = false,
            _ => {}
        }
        self.hints.advise(advice, limits, wants);
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    conformance::check_eviction(|| Box::new(AnyEntry::new()));
    conformance::check_prefetch(|| Box::new(NextFew::default()));
    println!("Both policies keep their contracts. Reads of 64 MiB with 8 MiB of memory:");

    let bytes: Vec<u8> = (0..64u32 << 20).map(|n| (n / 4096) as u8).collect();
    type Make = fn() -> Box<dyn PrefetchPolicy>;
    let policies: [(&str, Make); 2] =
        [("NoPrefetch", || Box::new(NoPrefetch)), ("NextFew", || Box::new(NextFew::default()))];
    for (name, make) in policies {
        let source = Memory::new("sample", bytes.clone());
        let pager =
            Pager::builder().budget_bytes(8 << 20).eviction(Box::new(AnyEntry::new())).build()?;
        let region = pager.open_with(source, RegionOptions::default().prefetch(make))?;
        for at in (0..region.len()).step_by(4096) {
            assert_eq!(region.load(at..at + 1)?[0], bytes[at as usize], "byte {at}");
        }
        let stats = region.stats();
        println!(
            "  scan with {name:10}  {:4} of {} loads waited, {:4} units given up",
            stats.loads - stats.load_hits,
            stats.loads,
            stats.units_evicted
        );
    }
    Ok(())
}
