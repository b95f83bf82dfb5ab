//! The budget is hard, as the kernel counts it.

use nix::libc;
use pager::{Error, Hint, Mechanism};

use crate::support::{
    Known, Random, alone, builder, byte_at, bytes_of, can_fault, passed, probe, until,
};

/// Anonymous memory and page tables of this process, in bytes.
fn memory() -> u64 {
    field("RssAnon:") + field("VmPTE:")
}

/// A figure of this process that the kernel gives in KiB, in bytes.
fn field(key: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(key)).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}

const SLACK: u64 = 32 << 20;

#[test]
fn memory_stays_within_the_budget() {
    const TEST: &str = "memory::memory_stays_within_the_budget";
    if !alone(TEST, passed) {
        return;
    }
    let mechanisms = match (can_fault(), probe().can_move) {
        (true, true) => vec![None, Some(Mechanism::Copy), Some(Mechanism::Move)],
        (true, false) => vec![None],
        _ => vec![],
    };
    for unit in [4096, 65536, 2 << 20] {
        for &mechanism in &mechanisms {
            let budget = if unit == 4096 { 24 << 20 } else { 96 << 20 };
            let before = memory();
            let mut builder = builder().unit_bytes(unit).budget_bytes(budget);
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

/// Where the kernel gives no huge pages, a unit that is moved away leaves its page table behind.
#[test]
fn page_tables_go_with_units_that_are_moved_away() {
    const TEST: &str = "memory::page_tables_go_with_units_that_are_moved_away";
    if !can_fault() || !probe().can_move {
        return println!("left out: moved units: this kernel or user cannot move pages");
    }
    if !alone(TEST, passed) {
        return;
    }
    // SAFETY: only says that this process gets no huge pages from now on.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) }, 0);
    let unit = 2 << 20;
    let builder = builder().unit_bytes(unit).mechanism(Mechanism::Move);
    let pager = builder.budget_bytes(40 * (unit + 4096)).build().unwrap();
    let region = pager.open(Known::new(1 << 30)).unwrap();
    region.advise(Hint::Random).unwrap();
    let load =
        |n: u64| assert_eq!(region.load(n * unit..n * unit + 1).unwrap()[0], byte_at(n * unit));
    (0..60).for_each(load);
    let before = field("VmPTE:");
    (60..260).for_each(load);
    assert!(region.stats().units_evicted >= 200);
    let grown = field("VmPTE:").saturating_sub(before);
    assert!(grown <= 50 * 4096, "200 units passed through, and left {grown} bytes of page tables");
}

#[test]
fn a_tebibyte_opens_at_once_and_costs_little() {
    const TEST: &str = "memory::a_tebibyte_opens_at_once_and_costs_little";
    if !alone(TEST, passed) {
        return;
    }
    let before = memory();
    let start = std::time::Instant::now();
    let pager = builder().unit_bytes(4096).budget_bytes(8 << 20).build().unwrap();
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
    let pager = builder().unit_bytes(4096).budget_bytes(least).build().unwrap();
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

/// Some sixteen units may be pinned here, and the seventeenth reader was refused.
#[test]
fn any_number_of_threads_read_at_under_the_smallest_plan() {
    let unit = 65_536u64;
    let least = 36 * unit + 32 * 4096;
    let pager = builder().unit_bytes(unit).budget_bytes(least).build().unwrap();
    let len = 16 << 20;
    let region = pager.open(Known::new(len)).unwrap();
    std::thread::scope(|scope| {
        for seed in 0..32 {
            let region = &region;
            scope.spawn(move || {
                let mut random = Random(seed);
                let mut buf = vec![0; 5000];
                for _ in 0..100 {
                    let at = random.below(len - 5000);
                    region.read_at(at, &mut buf).unwrap();
                    assert_eq!(buf, bytes_of(at..at + 5000), "at {at}");
                }
            });
        }
    });
    assert!(pager.budget().peak() <= least);
    assert_eq!(pager.budget().pinned(), 0);
}

/// A reader waits for the guards of others, and for as long as the deadline at most.
#[test]
fn read_at_waits_for_guards_to_go() {
    let builder = builder().unit_bytes(65_536).budget_bytes(4 << 20);
    let pager = builder.deadline(std::time::Duration::from_secs(2)).build().unwrap();
    let region = pager.open(Known::new(64 << 20)).unwrap();
    let guard = region.load(0..30 * 65_536).unwrap();
    let mut byte = [0];
    let error = region.read_at(40 << 20, &mut byte).unwrap_err();
    assert!(matches!(error, Error::PinLimit { .. }), "{error}");
    drop(guard);
    region.read_at(40 << 20, &mut byte).unwrap();
    assert_eq!(byte[0], byte_at(40 << 20));
}

#[test]
fn pins_take_half_and_more_is_an_error_at_once() {
    let pager = builder().unit_bytes(65536).budget_bytes(4 << 20).build().unwrap();
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
    let pager = builder().budget_bytes(8 << 20).build().unwrap();
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
    let pager = builder().budget_bytes(16 << 20).build().unwrap();
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
    let pagers = [(); 2].map(|()| builder().budget(&budget).build().unwrap());
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
    let pager = builder().budget_bytes(64 * cost).build().unwrap();
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
    let pager = builder().budget_bytes(64 * cost).build().unwrap();
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

/// Where units are moved, one that leaves stays charged as an idle frame until it is used: guesses
/// went on being given up, a whole share of them for one unit.
#[test]
fn one_unit_of_demand_takes_one_guess() {
    let (unit, cost) = (65_536, 65_536 + 4096);
    let mut mechanisms = vec![None];
    if can_fault() && probe().can_move {
        mechanisms.push(Some(Mechanism::Move));
    }
    for mechanism in mechanisms {
        let mut builder = builder().budget_bytes(64 * cost);
        if let Some(mechanism) = mechanism {
            builder = builder.mechanism(mechanism);
        }
        let pager = builder.build().unwrap();
        let region = pager.open(Known::new(1 << 30)).unwrap();
        region.advise(Hint::Random).unwrap();
        let load = |n: u64| {
            let at = n * (4 << 20);
            assert_eq!(region.load(at..at + 1).unwrap()[0], byte_at(at));
        };
        (0..20).for_each(load);
        let guesses: Vec<_> = (100..116).map(|n| n * (4 << 20)..n * (4 << 20) + unit).collect();
        region.advise(Hint::WillNeed(&guesses)).unwrap();
        until("guessed", || region.stats().units_resident == 36);
        let mut loaded = 20;
        while region.stats().units_evicted == 0 {
            load(loaded);
            loaded += 1;
        }
        for more in 1..=4 {
            load(loaded);
            loaded += 1;
            let stats = region.stats();
            assert!(stats.units_evicted <= 2 + more, "{mechanism:?}, {more} more: {stats:?}");
        }
    }
}

/// Where units are moved, giving one up frees no byte by itself: who asked for little got everything.
#[test]
fn another_pool_takes_what_it_asks_for() {
    let (unit, cost) = (65_536, 65_536 + 4096);
    let mut mechanisms = vec![None];
    if can_fault() && probe().can_move {
        mechanisms.push(Some(Mechanism::Move));
    }
    for mechanism in mechanisms {
        let budget = pager::Budget::new(64 * cost);
        let mut builder = builder().budget(&budget);
        if let Some(mechanism) = mechanism {
            builder = builder.mechanism(mechanism);
        }
        let pager = builder.build().unwrap();
        let region = pager.open(Known::new(1 << 30)).unwrap();
        region.advise(Hint::Random).unwrap();
        for n in 0..80u64 {
            let at = n * (4 << 20);
            assert_eq!(region.load(at..at + 1).unwrap()[0], byte_at(at));
        }
        let evicted = region.stats().units_evicted;
        assert!(evicted > 0, "{mechanism:?}: the budget is full");
        let other = pager::pool::Pool::new(&budget, Box::new(pager::policy::Clock::default()));
        let taken = other.reserve(4 * unit).expect("most can be given up");
        let more = region.stats().units_evicted - evicted;
        assert!((1..=6).contains(&more), "{mechanism:?}: {more} units went for 4");
        drop(taken);
    }
}

/// A kernel that keeps page tables: they take an eighth of the budget at most, and reading goes on in
/// the rest of it.
#[test]
fn page_tables_that_stay_leave_room_to_read() {
    let least = 32 * (4096 + 4096) + 4 * 4096;
    for budget in [least, 2 << 20] {
        let builder = builder().unit_bytes(4096).budget_bytes(budget);
        let pager = builder.page_tables_stay(true).build().unwrap();
        let region = pager.open(Known::new(4 << 30)).unwrap();
        region.advise(Hint::Random).unwrap();
        let mapped = can_fault().then(|| region.map().unwrap());
        for n in 0..600u64 {
            let at = n * (4 << 20) + n;
            match &mapped {
                Some(mapped) if n % 2 == 0 => assert_eq!(mapped[at as usize], byte_at(at)),
                _ => assert_eq!(region.load(at..at + 1).unwrap()[0], byte_at(at)),
            }
        }
        let tables = pager.budget().page_tables();
        assert!(tables > budget / 8 - 4096 && tables <= budget / 8, "{tables} of {budget}");
        assert!(pager.budget().peak() <= budget);
        // Half of the budget can still be pinned, and more read.
        let guards: Vec<_> = (0..budget / 2 / 8192)
            .map(|n| region.load(n * (4 << 20)..n * (4 << 20) + 1).unwrap())
            .collect();
        assert!(
            guards.iter().enumerate().all(|(n, guard)| guard[0] == byte_at(n as u64 * (4 << 20)))
        );
        if let Some(mapped) = &mapped {
            for at in ((2 << 30)..(2 << 30) + (64 << 20)).step_by(1 << 20) {
                assert_eq!(mapped[at], byte_at(at as u64));
            }
        }
        drop(guards);
        drop((mapped, region));
        until("closing gives everything back", || pager.budget().page_tables() == 0);
        until("and the units", || pager.pool().is_empty());
    }
}
