//! The budget is hard, as the kernel counts it.

use pager::{Error, Hint, Mechanism, Pager};

use crate::support::{Known, Random, alone, byte_at, bytes_of, can_fault, passed, until};

/// Anonymous memory and page tables of this process, in bytes.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let kib = |key: &str| -> u64 {
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    (kib("RssAnon:") + kib("VmPTE:")) << 10
}

const SLACK: u64 = 32 << 20;

#[test]
fn memory_stays_within_the_budget() {
    const TEST: &str = "memory::memory_stays_within_the_budget";
    if !alone(TEST, passed) {
        return;
    }
    let mechanisms = match (can_fault(), Pager::probe().can_move) {
        (true, true) => vec![None, Some(Mechanism::Copy), Some(Mechanism::Move)],
        (true, false) => vec![None],
        _ => vec![],
    };
    for unit in [4096, 65536, 2 << 20] {
        for &mechanism in &mechanisms {
            let budget = if unit == 4096 { 24 << 20 } else { 96 << 20 };
            let before = memory();
            let mut builder = Pager::builder().unit_bytes(unit).budget_bytes(budget);
            if let Some(mechanism) = mechanism {
                builder = builder.mechanism(mechanism);
            }
            let pager = builder.build().unwrap();
            let region = pager.open(Known::new(300 << 20)).unwrap();
            let mapped = region.map().unwrap();
            let mut random = Random(1);
            let mut most = 0;
            for n in 0..3 * budget / unit {
                // A stream, random touches, loads.
                let stream = (n * 40_000) % (300 << 20);
                assert_eq!(mapped[stream as usize], byte_at(stream));
                let at = random.below((300 << 20) - 1);
                assert_eq!(mapped[at as usize], byte_at(at));
                if n % 64 == 0 {
                    most = most.max(memory().saturating_sub(before));
                }
            }
            assert!(region.stats().units_evicted > 0);
            assert!(pager.budget().peak() <= budget);
            assert!(
                most <= budget + SLACK,
                "unit {unit}, {mechanism:?}: {most} bytes under a budget of {budget}"
            );
        }
    }
}

#[test]
fn a_tebibyte_opens_at_once_and_costs_little() {
    const TEST: &str = "memory::a_tebibyte_opens_at_once_and_costs_little";
    if !alone(TEST, passed) {
        return;
    }
    let before = memory();
    let start = std::time::Instant::now();
    let pager = Pager::builder().unit_bytes(4096).budget_bytes(8 << 20).build().unwrap();
    let region = pager.open(Known::new(1 << 40)).unwrap();
    assert!(start.elapsed() < std::time::Duration::from_secs(1));
    let untouched = memory().saturating_sub(before);
    assert!(untouched < SLACK, "{untouched} bytes before the first touch");
    let mut random = Random(2);
    for _ in 0..2000 {
        let at = random.below(1 << 40);
        assert_eq!(region.load(at..at + 1).unwrap()[0], byte_at(at));
        if can_fault() {
            let at = random.below(1 << 40);
            assert_eq!(region.map().unwrap()[at as usize], byte_at(at));
        }
    }
    let most = memory().saturating_sub(before);
    assert!(most <= (8 << 20) + SLACK, "{most} bytes after 4,000 touches all over a tebibyte");
}

#[test]
fn a_load_that_straddles_two_units_makes_progress_under_the_smallest_budget() {
    let least = 32 * (4096 + 4096) + 4 * 4096;
    let pager = Pager::builder().unit_bytes(4096).budget_bytes(least).build().unwrap();
    let region = pager.open(Known::new(4 << 20)).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let region = &region;
            scope.spawn(move || {
                let mut random = Random(thread);
                for _ in 0..300 {
                    let edge = (random.below(1023) + 1) * 4096;
                    let guard = region.load(edge - 3..edge + 3).unwrap();
                    assert_eq!(guard[..], bytes_of(edge - 3..edge + 3)[..]);
                    if can_fault() {
                        let mapped = region.map().unwrap();
                        let word = &mapped[edge as usize - 4..edge as usize + 4];
                        assert_eq!(word, &bytes_of(edge - 4..edge + 4)[..]);
                    }
                }
            });
        }
    });
    assert!(pager.budget().peak() <= least);
}

#[test]
fn pins_take_half_and_more_is_an_error_at_once() {
    let pager = Pager::builder().unit_bytes(65536).budget_bytes(4 << 20).build().unwrap();
    let region = pager.open(Known::new(64 << 20)).unwrap();
    // A unit counts with the page table that it may need: 30 of them are all but half.
    let pinned = 30 * (65_536 + 4096);
    let guard = region.load(0..30 * 65_536).unwrap();
    assert_eq!(pager.budget().pinned(), pinned);
    let same = region.load(100..200).unwrap();
    assert_eq!(pager.budget().pinned(), pinned, "a unit counts once however often it is pinned");
    let error = region.load(10 << 20..(10 << 20) + 1).unwrap_err();
    assert!(matches!(error, Error::PinLimit { limit: 0x20_0000, .. }), "{error}");
    assert!(matches!(region.load(0..2 << 20).unwrap_err(), Error::PinLimit { .. }));
    // Bare reads and other regions go on in the other half.
    if can_fault() {
        let mapped = region.map().unwrap();
        for at in (4 << 20..40 << 20).step_by(65_536) {
            assert_eq!(mapped[at], byte_at(at as u64));
        }
    }
    assert_eq!(guard[..], bytes_of(0..30 * 65_536)[..], "pinned bytes are not evicted");
    drop((guard, same));
    assert_eq!(pager.budget().pinned(), 0);
    assert_eq!(region.load(10 << 20..(10 << 20) + 1).unwrap()[0], byte_at(10 << 20));
}

#[test]
fn regions_and_a_databases_pages_share_one_budget() {
    let pager = Pager::builder().budget_bytes(8 << 20).build().unwrap();
    let region = pager.open(Known::new(32 << 20)).unwrap();
    let pages: pager::pool::Pages<u64, Vec<u8>> = pager::pool::Pages::new(pager.pool()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for n in 0..200u64 {
        let at = n * 150_000;
        assert_eq!(region.load(at..at + 1).unwrap()[0], byte_at(at));
        let load = async { Ok::<_, std::convert::Infallible>(vec![n as u8; 100_000]) };
        let page = runtime.block_on(pages.get(&n, 100_000, load)).unwrap();
        assert_eq!(page[99_999], n as u8);
        assert!(pager.budget().used() <= 8 << 20);
    }
    assert!(region.stats().units_evicted > 0 && pages.len() < 100, "both gave way");
}

#[test]
fn speculation_takes_at_most_a_quarter() {
    let pager = Pager::builder().budget_bytes(16 << 20).build().unwrap();
    let region = pager.open(Known::new(256 << 20)).unwrap();
    region.advise(Hint::WillNeed(&[0..100 << 20, 150 << 20..200 << 20])).unwrap();
    for at in (0..64 << 20).step_by(65_536) {
        assert_eq!(region.load(at..at + 1).unwrap()[0], byte_at(at));
        assert!(pager.budget().speculative() <= 4 << 20);
    }
}

#[test]
fn two_pagers_share_one_budget() {
    let budget = pager::Budget::new(8 << 20);
    let pagers = [(); 2].map(|()| Pager::builder().budget(&budget).build().unwrap());
    let regions = pagers.each_ref().map(|pager| pager.open(Known::new(32 << 20)).unwrap());
    for at in (0..32 << 20).step_by(200_000) {
        for region in &regions {
            assert_eq!(region.load(at..at + 1).unwrap()[0], byte_at(at));
        }
        assert!(budget.used() <= 8 << 20);
    }
    assert!(regions.iter().all(|region| region.stats().units_evicted > 0), "both gave way");
}

/// Guesses that nobody follows any more go before anything that somebody has asked for.
#[test]
fn prefetch_yields_first() {
    let (unit, cost) = (65_536, 65_536 + 4096);
    let pager = Pager::builder().budget_bytes(64 * cost).build().unwrap();
    let region = pager.open(Known::new(1 << 30)).unwrap();
    region.advise(Hint::Random).unwrap();
    let load = |n: u64| {
        let at = n * (4 << 20);
        assert_eq!(region.load(at..at + 1).unwrap()[0], byte_at(at));
    };
    // Spans of their own, so that each unit costs its page table too.
    (0..20).for_each(load);
    let guesses: Vec<_> = (100..116).map(|n| n * (4 << 20)..n * (4 << 20) + unit).collect();
    region.advise(Hint::WillNeed(&guesses)).unwrap();
    until("guessed", || region.stats().units_resident == 36);
    let mut loaded = 20;
    while region.stats().units_evicted < 12 {
        load(loaded);
        loaded += 1;
    }
    let stats = region.stats();
    assert_eq!(stats.prefetch_unused, stats.units_evicted, "guesses and nothing else: {stats:?}");
    (0..loaded).for_each(load);
    assert_eq!(region.stats().load_hits - stats.load_hits, loaded, "all that was asked for stayed");
}

/// Whatever presses on the budget, the latest eight units that somebody asked for stay.
#[test]
fn the_latest_units_are_no_victims() {
    let cost = 65_536 + 4096;
    let pager = Pager::builder().budget_bytes(64 * cost).build().unwrap();
    let region = pager.open(Known::new(4 << 30)).unwrap();
    region.advise(Hint::Random).unwrap();
    let load = |n: u64| {
        let at = n * (4 << 20);
        assert_eq!(region.load(at..at + 1).unwrap()[0], byte_at(at));
    };
    for round in 0..4 {
        let latest = round * 8..round * 8 + 8;
        latest.clone().for_each(load);
        // Takes all that can be had.
        let reserve = || pager.pool().reserve(cost);
        let taken: Vec<_> = std::iter::from_fn(reserve).collect();
        assert!(taken.len() > 40, "round {round}: little pressed: {:?}", pager.budget());
        let before = region.stats().load_hits;
        latest.for_each(load);
        assert_eq!(region.stats().load_hits - before, 8, "round {round}");
    }
}
