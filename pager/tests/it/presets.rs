//! What presets take: GETs, counted by the source. The table in `pager::preset` has these numbers.

use std::{collections::BTreeMap, time::Duration};

use pager::{Hint, Preset, Region};

use crate::support::{Known, builder, byte_at, bytes_of, until};

const LEN: u64 = 64 << 20;
const BUDGET: u64 = 256 << 20;

/// A region with a preset, or without, over a source that is some way off: requests overlap.
fn open(preset: Option<Preset>) -> (Known, Region) {
    let source = Known::new(LEN);
    let builder = builder().budget_bytes(BUDGET);
    let builder = match preset {
        Some(preset) => builder.preset(preset),
        None => builder,
    };
    let region = builder.build().unwrap().open(source.delay(Duration::from_millis(2))).unwrap();
    (source, region)
}

fn name(preset: Option<Preset>) -> &'static str {
    preset.map_or("default", Preset::name)
}

fn each() -> impl Iterator<Item = Option<Preset>> {
    std::iter::once(None).chain(Preset::ALL.map(Some))
}

fn scan(region: &Region) {
    for at in (0..LEN).step_by(64 << 10) {
        assert_eq!(region.load(at..at + (64 << 10)).unwrap()[17], byte_at(at + 17));
    }
}

/// Reads of 4 KiB around ten places, as of an index and what it leads to.
fn random(region: &Region) {
    let mut state = 88_172_645_463_325_252u64;
    for n in 0..400 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let place = (n % 10) * (LEN / 10);
        let at = (place + state % (1 << 20)) & !4095;
        assert_eq!(region.load(at..at + 4096).unwrap()[..], bytes_of(at..at + 4096)[..]);
    }
}

#[test]
fn frugal_takes_the_fewest_requests() {
    let mut gets: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for preset in each() {
        let (source, region) = open(preset);
        scan(&region);
        gets.insert(("scan", name(preset)), source.requests().len());
        let (source, region) = open(preset);
        random(&region);
        gets.insert(("random", name(preset)), source.requests().len());
        let (source, region) = open(preset);
        drop(region.load(0..2 << 20).unwrap());
        gets.insert(("read", name(preset)), source.requests().len());
        assert_eq!(region.stats().gets, source.requests().len() as u64, "{}", name(preset));
    }
    println!("{gets:?}");
    let of = |what, preset| gets[&(what, preset)];
    for what in ["scan", "random", "read"] {
        for other in ["default", "latency"] {
            assert!(of(what, "frugal") <= of(what, other), "{what}: {gets:?}");
        }
    }
    assert!(of("scan", "frugal") <= of("scan", "throughput"), "{gets:?}");
    // Units are the same there, so are misses at random places: no more than the guesses differ,
    // whose number hangs on when the reader comes.
    assert!(of("random", "frugal") <= of("random", "throughput") + 5, "{gets:?}");
    // 64 MiB in requests that double up to what a window may hold: 7, or more where the reader
    // overtakes them; on the average of two units each at least.
    assert!(of("scan", "frugal") <= 16, "{gets:?}");
    // One for each 2 MiB that the ten places lie in, and few for guesses.
    assert!(of("random", "frugal") <= 24, "{gets:?}");
    assert_eq!(of("read", "frugal"), 1, "{gets:?}");
    assert_eq!(of("read", "throughput"), 1, "{gets:?}");
    assert_eq!(of("read", "latency"), 8, "{gets:?}");
}

/// What is asked for together is on its way together.
#[test]
fn latency_spreads_a_read_over_connections() {
    for (preset, at_once) in [(Preset::Latency, 8), (Preset::Frugal, 1)] {
        let (source, region) = open(Some(preset));
        let gate = source.hold();
        std::thread::scope(|scope| {
            scope.spawn(|| drop(region.load(0..2 << 20).unwrap()));
            until("all of them are under way", || source.under_way() == at_once);
            gate.add_permits(100);
        });
        assert_eq!(source.requests().len() as u64, at_once, "{preset}");
    }
}

/// Hints that lie close together meet in few requests.
#[test]
fn frugal_joins_what_is_wanted_next_to_each_other() {
    let (source, region) = open(Some(Preset::Frugal));
    let ranges: Vec<_> = (0..100u64).map(|n| n * 300_000..n * 300_000 + 1000).collect();
    region.advise(Hint::WillNeed(&ranges)).unwrap();
    for range in &ranges {
        assert_eq!(region.load(range.clone()).unwrap()[..], bytes_of(range.clone())[..]);
    }
    let requests = source.requests();
    assert!(requests.len() <= 2, "{requests:?}");
}

#[test]
fn small_budgets_have_smaller_units() {
    let unit = |budget: u64, preset| {
        builder().budget_bytes(budget).preset(preset).plan().unwrap().unit_bytes()
    };
    assert_eq!(unit(1 << 30, Preset::Frugal), 2 << 20);
    assert_eq!(unit(64 << 20, Preset::Frugal), 512 << 10);
    assert_eq!(unit(64 << 20, Preset::Latency), 64 << 10);
    // What is set by itself is not changed, and refused where it cannot work.
    let builder = builder().budget_bytes(64 << 20).preset(Preset::Frugal);
    assert!(builder.unit_bytes(2 << 20).plan().is_err());
    // And works through a budget that it had to shrink for.
    let source = Known::new(LEN);
    let builder = crate::support::builder().budget_bytes(16 << 20).preset(Preset::Frugal);
    let region = builder.build().unwrap().open(source).unwrap();
    scan(&region);
}
