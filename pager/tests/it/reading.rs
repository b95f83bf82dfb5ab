//! The right bytes, by every door, in every mode, with every mechanism.

use std::sync::{Arc, Mutex};

use pager::{
    Hint, Mechanism, ModeRequest, Pager, RegionOptions,
    policy::{Clock, EvictionPolicy, NoPrefetch, S3Fifo},
};

use crate::support::{
    Behaviour, Known, all_of, builder, byte_at, bytes_of, copying, give_up, modes, probe, until,
};

const LEN: u64 = 3 * (2 << 20) + 12_345;

fn small(mode: ModeRequest, unit: u64) -> Pager {
    builder().mode(mode).unit_bytes(unit).budget_bytes(80 * (unit + 4096)).build().unwrap()
}

#[test]
fn loads_and_maps_show_the_objects_bytes_in_every_mode() {
    for mode in modes() {
        for unit in [4096, 65536, 2 << 20] {
            let pager = small(mode, unit);
            let region = pager.open(Known::new(LEN)).unwrap();
            let ranges = [0..1, 0..LEN.min(unit), unit - 1..unit + 1, LEN - 1..LEN, 7..7, LEN..LEN];
            for range in ranges {
                let guard = region.load(range.clone()).unwrap();
                assert!(*guard == *bytes_of(range.clone()), "{mode:?}, unit {unit}, {range:?}");
            }
            let mut buf = vec![0; LEN as usize];
            region.read_at(0, &mut buf).unwrap();
            assert!(buf == bytes_of(0..LEN), "{mode:?}, unit {unit}: read_at");
            if mode == ModeRequest::CheckedOnly {
                let error = region.map().unwrap_err().to_string();
                assert!(error.contains("load()") && error.contains("CheckedOnly"), "{error}");
                continue;
            }
            let mapped = region.map().unwrap();
            assert_eq!(mapped.len() as u64, LEN);
            for at in (0..LEN).step_by(4099).chain([LEN - 1]) {
                assert_eq!(mapped[at as usize], byte_at(at), "{mode:?}, unit {unit}, at {at}");
            }
        }
    }
}

#[test]
fn copy_and_move_put_the_same_bytes_in_place_under_eviction() {
    let probe = probe();
    let mut mechanisms = vec![copying()];
    if probe.can_move {
        mechanisms.push(Mechanism::Move);
    }
    if !crate::support::can_fault() {
        return println!("left out: mechanisms: no userfaultfd");
    }
    for mechanism in mechanisms {
        let unit = 256 << 10;
        let len = 64 * unit + 1;
        let pager = builder()
            .mechanism(mechanism)
            .unit_bytes(unit)
            .budget_bytes(40 * (unit + 4096))
            .build()
            .unwrap();
        let region = pager.open(Known::new(len)).unwrap();
        let mapped = region.map().unwrap();
        for round in 0..2 {
            for at in (0..len).step_by(65_537) {
                assert_eq!(mapped[at as usize], byte_at(at), "{mechanism:?}, round {round}");
            }
        }
        assert!(region.stats().units_evicted > 0, "{mechanism:?}: the budget was too large");
        assert!(pager.budget().peak() <= pager.budget().limit());
    }
}

#[test]
fn an_empty_object_is_an_empty_slice() {
    for mode in modes() {
        let region = small(mode, 4096).open(Known::new(0)).unwrap();
        assert!(region.is_empty() && region.load(0..0).unwrap().is_empty());
        assert!(region.map().unwrap().is_empty());
        assert!(region.load(0..1).is_err());
    }
}

#[test]
fn hints_fetch_and_give_up() {
    let pager = builder().budget_bytes(64 << 20).build().unwrap();
    let source = Known::new(8 << 20);
    let region = pager.open(source.clone()).unwrap();
    let wanted = [0..10, 1 << 20..(1 << 20) + 200_000, (8 << 20) - 1..8 << 20];
    region.advise(Hint::WillNeed(&wanted)).unwrap();
    for range in &wanted {
        assert!(*region.load(range.clone()).unwrap() == *bytes_of(range.clone()));
    }
    let before = region.stats();
    region.advise(Hint::DontNeed(0..8 << 20)).unwrap();
    assert!(region.stats().units_evicted > before.units_evicted);
    assert_eq!(region.load(5..6).unwrap()[0], byte_at(5));
    assert!(region.advise(Hint::WillNeed(std::slice::from_ref(&(0..9 << 20)))).is_err());
}

#[test]
fn one_pager_serves_regions_of_different_units() {
    let pager = builder().budget_bytes(128 << 20).build().unwrap();
    let regions: Vec<_> = [4096, 65536, 2 << 20]
        .iter()
        .map(|&unit| {
            let options = RegionOptions::default().unit_bytes(unit);
            pager.open_with(Known::new(LEN), options).unwrap()
        })
        .collect();
    for at in (0..LEN).step_by(100_003) {
        for region in &regions {
            assert_eq!(region.load(at..at + 1).unwrap()[0], byte_at(at));
        }
    }
    assert!(pager.open_with(Known::new(1), RegionOptions::default().unit_bytes(3)).is_err());
}

/// What comes back from where it was given up counts as asked for a moment ago, whatever the policy: it
/// stays, and what is older goes first.
#[test]
fn what_came_back_is_not_the_next_to_go() {
    if !crate::support::can_fault() || !probe().can_move {
        return println!("left out: recycled frames: this kernel or user cannot move pages");
    }
    const UNIT: u64 = 65_536;
    let policies: [(&str, Box<dyn EvictionPolicy>); 2] =
        [("CLOCK", Box::new(Clock::new())), ("S3-FIFO", Box::new(S3Fifo::new()))];
    for (policy, eviction) in policies {
        let source = Known::new(128 * UNIT);
        let pager = builder()
            .mechanism(Mechanism::Move)
            .eviction(eviction)
            .unit_bytes(UNIT)
            .budget_bytes(64 * (UNIT + 4096))
            .build()
            .unwrap();
        let region = pager.open(source.clone()).unwrap();
        region.advise(Hint::Random).unwrap();
        let load = |unit: u64| {
            let range = unit * UNIT..(unit + 1) * UNIT;
            assert!(*region.load(range.clone()).unwrap() == *bytes_of(range), "{policy}: {unit}");
        };
        (0..40).for_each(load);
        region.advise(Hint::DontNeed(0..UNIT)).unwrap();
        let mapped = region.map().unwrap();
        assert_eq!(mapped[77], byte_at(77));
        until("it came back", || region.stats().units_recalled == 1);
        // Until some of those that are older than its coming back had to go, and not all.
        let evicted = || region.stats().units_evicted - 1;
        (40..128).take_while(|_| evicted() < 8).for_each(load);
        assert!((8..30).contains(&evicted()), "{policy}: {}", evicted());
        let brought = || (source.requests().len(), region.stats().units_recalled);
        let before = brought();
        load(0);
        assert_eq!(brought(), before, "{policy}: it was there");
        load(1);
        until("the one after it had left", || brought() != before);
    }
}

/// What is in memory, given up or staged, is put in place by the thread that hears of the fault. It took
/// the engine, which runs where sources do: one that blocks these threads held up what needs no source.
#[test]
fn what_is_in_memory_waits_for_no_thread_of_a_source() {
    if !crate::support::can_fault() || !probe().can_move {
        return println!("left out: recycled frames: this kernel or user cannot move pages");
    }
    const UNIT: u64 = 65_536;
    let source = Known::new(256 * UNIT);
    let builder = builder().mechanism(Mechanism::Move).unit_bytes(UNIT);
    let pager = builder.budget_bytes(256 * (UNIT + 4096)).build().unwrap();
    let region = pager.open(source.clone()).unwrap();
    let mapped = region.map().unwrap();
    drop(region.load(0..UNIT).unwrap());
    // The last of a range that is announced is staged, if the range is so long.
    region.advise(Hint::WillNeed(std::slice::from_ref(&(8 * UNIT..16 * UNIT)))).unwrap();
    until("all have come", || region.stats().bytes_fetched == 9 * UNIT);
    // A request is over when what it brought has been put where it goes.
    until("the last is staged", || source.under_way() == 0);
    assert_eq!(region.stats().units_resident, 8, "{:?}", region.stats());

    let gate = Arc::new(Mutex::new(()));
    let held = gate.lock().unwrap();
    source.behave(Behaviour::Block(gate.clone()));
    let threads = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8) as u64;
    let came = std::thread::scope(|scope| {
        for n in 0..threads {
            let region = &region;
            scope.spawn(move || drop(region.load((32 + 2 * n) * UNIT..(32 + 2 * n) * UNIT + 1)));
        }
        until("every thread of the runtime is blocked", || source.under_way() == threads);
        // Only now, when nothing takes its memory any more.
        region.advise(Hint::DontNeed(0..UNIT)).unwrap();
        assert_eq!(region.stats().units_evicted, 1, "{:?}", region.stats());
        let reader = scope.spawn(|| [77, 16 * UNIT - 77].map(|at| mapped[at as usize]));
        let start = std::time::Instant::now();
        while !reader.is_finished() && start.elapsed().as_secs() < 20 {
            std::thread::yield_now();
        }
        let came = reader.is_finished();
        // Whatever came of it, so that all threads end.
        drop(held);
        assert_eq!(reader.join().unwrap(), [77, 16 * UNIT - 77].map(byte_at));
        came
    });
    assert!(came, "{:?}", region.stats());
    until("what was found is counted", || region.stats().units_recalled == 1);
    assert_eq!(region.stats().marker_faults, 1, "{:?}", region.stats());
}

/// A fault each for what is in memory took longer than all the rest of a first pass.
#[test]
fn what_was_given_up_comes_back_with_its_neighbours() {
    if !crate::support::can_fault() || !probe().can_move {
        return println!("left out: recycled frames: this kernel or user cannot move pages");
    }
    const GROUP: u64 = 16;
    for unit in [65_536, 2 << 20] {
        for hint in [None, Some(Hint::Random)] {
            let (cost, len) = (unit + 4096, 2 * GROUP * unit - 77);
            let source = Known::new(len);
            let builder = builder().mechanism(Mechanism::Move).unit_bytes(unit);
            let builder = builder.budget_bytes(5 * GROUP * cost);
            let pager = builder.prefetch(|| Box::new(NoPrefetch)).build().unwrap();
            let region = pager.open(source.clone()).unwrap();
            if let Some(hint) = hint {
                region.advise(hint).unwrap();
            }
            let mapped = region.map().unwrap();
            drop(region.load(0..len).unwrap());
            give_up(&region, 2 * GROUP);
            let (requests, faults) = (source.requests().len(), region.stats().faults);
            let touch = |nth: u64| {
                let at = (nth * unit + 77).min(len - 1);
                assert_eq!(mapped[at as usize], byte_at(at), "unit {unit}, at {at}");
            };
            for (n, nth) in (1..).zip([5, 2 * GROUP - 1]) {
                touch(nth);
                until("the group is there", || region.stats().units_recalled == n * GROUP);
            }
            (0..2 * GROUP).rev().for_each(touch);
            let stats = region.stats();
            assert!(stats.faults - faults <= 4 && stats.prefetched == 0, "{stats:?}");
            assert!(mapped[..] == bytes_of(0..len)[..], "unit {unit}");

            // Where little is left but what was given up, each comes back by itself.
            give_up(&region, 2 * GROUP);
            let free = pager.budget().limit() - pager.budget().used();
            let held = pager.budget().try_reserve(free - 2 * 4096).expect("free");
            (0..2 * GROUP).for_each(touch);
            until("all are there", || region.stats().units_recalled == 4 * GROUP);
            let again = region.stats().faults - stats.faults;
            assert!(again >= 2 * GROUP, "unit {unit}: {:?}", region.stats());
            drop(held);
            assert_eq!(source.requests().len(), requests, "nothing was fetched again");
        }
    }
}

/// Neighbours bring their bytes, but may need tables of pages. Where none was free for these, their bytes were
/// thrown away on the way back, and asked for once more.
#[test]
fn neighbours_come_back_only_where_room_is_free() {
    if !crate::support::can_fault() || !Pager::probe().can_move {
        return println!("left out: recycled frames: this kernel or user cannot move pages");
    }
    const UNIT: u64 = 65_536;
    const GROUP: u64 = 16;
    const GROUPS: u64 = 4;
    let len = GROUPS * GROUP * UNIT;
    let source = Known::new(len);
    let builder = Pager::builder().mechanism(Mechanism::Move).unit_bytes(UNIT);
    let builder = builder.budget_bytes(4 * GROUPS * GROUP * (UNIT + 4096));
    let pager = builder.prefetch(|| Box::new(NoPrefetch)).build().unwrap();
    let region = pager.open(source.clone()).unwrap();
    region.advise(Hint::Random).unwrap();
    let mapped = region.map().unwrap();
    drop(region.load(0..len).unwrap());
    give_up(&region, GROUPS * GROUP);
    let requests = source.requests().len();
    let budget = pager.budget();
    // Much is idle, but less is free than a table for each neighbour.
    let free = budget.limit() - budget.used();
    let held = budget.try_reserve(free - (GROUP - 1) * 4096).expect("free");
    let used = budget.used();
    for group in 0..GROUPS {
        let at = (group * GROUP + 3) * UNIT;
        assert_eq!(mapped[at as usize], byte_at(at));
        // When the engine has heard of this one it is through with the one before.
        until("it is counted", || region.stats().units_recalled > group);
        assert_eq!(region.stats().units_recalled, group + 1, "no neighbour came along");
    }
    // All units lie in two spans of a table each: nothing else was charged, or thrown away.
    assert!((used..=used + 2 * 4096).contains(&budget.used()), "{} of {used}", budget.used());
    drop(held);
    let at = (GROUP + 9) * UNIT;
    assert_eq!(mapped[at as usize], byte_at(at));
    until("the rest of its group is there", || region.stats().units_recalled == GROUPS + GROUP - 1);
    assert!(mapped[..] == bytes_of(0..len)[..]);
    assert_eq!(source.requests().len(), requests, "nothing was fetched again");
}

/// What was given up comes back without a request as long as nobody has used its memory, and then
/// with one.
#[test]
fn what_left_too_early_comes_back_without_a_request() {
    if !crate::support::can_fault() || !probe().can_move {
        return println!("left out: recycled frames: this kernel or user cannot move pages");
    }
    for unit in [65_536, 2 << 20] {
        let len = 16 * unit - 77;
        let source = Known::new(len);
        let pager = builder()
            .mechanism(Mechanism::Move)
            .unit_bytes(unit)
            .budget_bytes(64 * (unit + 4096))
            .build()
            .unwrap();
        let region = pager.open(source.clone()).unwrap();
        region.advise(Hint::Random).unwrap();
        drop(region.load(0..len).unwrap());
        give_up(&region, 16);
        let requests = source.requests().len();
        // By a load, by touches, and as guesses.
        let first = region.load(0..4 * unit).unwrap();
        assert!(*first == *bytes_of(0..4 * unit), "unit {unit}");
        let mapped = region.map().unwrap();
        region.advise(Hint::WillNeed(std::slice::from_ref(&(8 * unit..len)))).unwrap();
        // The last of them is staged.
        until("the guesses are there", || region.stats().units_recalled == 12);
        for at in (4 * unit..8 * unit).step_by(4096) {
            assert_eq!(mapped[at as usize], byte_at(at), "unit {unit}, at {at}");
        }
        until("the touched are there", || region.stats().units_recalled == 16);
        assert!(mapped[..] == bytes_of(0..len)[..], "unit {unit}");
        assert_eq!(source.requests().len(), requests, "unit {unit}: nothing was fetched again");
        assert_eq!(region.stats().units_recalled, 16, "unit {unit}");
        drop(first);
        // Its memory is free for others, and then it is fetched again. What the engine has still to hear of
        // touches may bring some of it back once more.
        let mut all = None;
        until("nothing is resident", || {
            region.advise(Hint::DontNeed(0..len)).unwrap();
            all = pager.pool().reserve(all_of(&pager));
            all.is_some()
        });
        assert_eq!(pager.budget().used(), pager.budget().limit());
        drop(all);
        assert!(mapped[..] == bytes_of(0..len)[..], "unit {unit}");
        assert!(source.requests().len() > requests, "unit {unit}");
        drop((mapped, region));
        until("closing gives everything back", || pager.budget().used() == 0);
    }
}
