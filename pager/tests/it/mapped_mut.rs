//! What is written through a map, in each way to find it.

use std::{
    io::Write,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use futures::FutureExt;
use pager::{Error, Hint, ModeRequest, Pager, RegionMut, WriteTracking};

use crate::{
    store::{Store, all, give_up},
    support::{Known, Random, builder, by_signals, byte_at, bytes_of, can_fault, modes, until},
};

const PAGE: u64 = 4096;

/// The ways that this kernel and user have, best first.
pub(crate) fn trackings() -> Vec<WriteTracking> {
    let all = [WriteTracking::Scan, WriteTracking::Faults, WriteTracking::Units];
    let has = |way| builder().write_tracking(way).budget_bytes(8 << 20).build().is_ok();
    all.into_iter().filter(|&way| can_fault() && has(way)).collect()
}

/// `None` where this mode has no such way: a handler of SIGSEGV sees no writes.
fn pager(way: WriteTracking, mode: ModeRequest, unit: u64) -> Option<Pager> {
    let budget = 160 * (unit + PAGE);
    let builder = Pager::builder().mode(mode).write_tracking(way);
    let built = builder.budget_bytes(budget).unit_bytes(unit).build();
    let has_it = mode != ModeRequest::Signals || way == WriteTracking::Units;
    assert_eq!(built.is_ok(), has_it, "{mode:?}, {way:?}");
    built.ok()
}

/// All ways, in all modes that have faults.
fn pagers(unit: u64) -> Vec<(String, Pager, WriteTracking)> {
    let mut pagers = Vec::new();
    for mode in modes().into_iter().filter(|mode| *mode != ModeRequest::CheckedOnly) {
        for way in trackings() {
            let Some(pager) = pager(way, mode, unit) else { continue };
            assert_eq!(pager.write_tracking(), Some(way));
            pagers.push((format!("{way:?}, {mode:?}, units of {unit}"), pager, way));
        }
    }
    if pagers.is_empty() {
        println!("left out: maps to write: no userfaultfd");
    }
    pagers
}

fn open(pager: &Pager, store: &Store) -> RegionMut {
    pager.open_mut(store.clone(), store.clone()).unwrap()
}

/// The best way is what is taken, and CI has all of them.
#[test]
fn ci_leaves_no_way_to_find_writes_out() {
    let ways = trackings();
    println!("ways to find writes here: {ways:?}");
    if let Some(best) = ways.first() {
        assert_eq!(builder().build().unwrap().write_tracking(), Some(*best));
    }
    let checked = Pager::builder().mode(ModeRequest::CheckedOnly);
    assert_eq!(checked.build().unwrap().write_tracking(), None);
    let refused = Pager::builder().mode(ModeRequest::CheckedOnly);
    assert!(refused.write_tracking(WriteTracking::Units).build().is_err());
    if std::env::var_os("CI").is_some() && !by_signals() {
        assert_eq!(ways.len(), 3, "{ways:?}");
    }
}

#[test]
fn what_a_map_writes_is_found_and_nothing_else() {
    for unit in [4 << 10, 64 << 10, 2 << 20] {
        for (what, pager, way) in pagers(unit) {
            let len = 20 * unit.max(16 << 10) + 77;
            let store = Store::known(len);
            let mut region = open(&pager, &store);
            let mut expected = bytes_of(0..len);
            region.advise(Hint::Random).unwrap();
            // Some of it is there, was written, and is dirty or not.
            region.write_at(5 * unit + 1, b"flushed").unwrap();
            expected[5 * unit as usize + 1..][..7].copy_from_slice(b"flushed");
            region.flush().unwrap();
            region.write_at(6 * unit + 1, b"dirty").unwrap();
            expected[6 * unit as usize + 1..][..5].copy_from_slice(b"dirty");
            drop(region.load(3 * unit..8 * unit).unwrap());
            let before = region.dirty_bytes();
            assert_eq!(before, PAGE);

            let range = 3 * unit + 5..19 * unit - 5;
            let mut map = region.map_mut(range.clone()).unwrap();
            assert_eq!((map.range(), map.len() as u64), (range.clone(), range.end - range.start));
            assert!(map[..] == expected[range.start as usize..range.end as usize], "{what}");
            // The first byte, the last one, and pages that are apart, of units that were there or not.
            let writes = [range.start, 5 * unit + 2, 10 * unit, 10 * unit + 1, range.end - 1];
            for at in writes {
                map[(at - range.start) as usize] = 0xAB;
                expected[at as usize] = 0xAB;
            }
            drop(map);
            let pages = match way {
                WriteTracking::Units => continue_with_units(&region, &range, unit),
                _ => 4 + 1,
            };
            assert_eq!(region.dirty_bytes(), pages * PAGE, "{what}");
            assert!(all(&region) == expected, "{what}");
            assert_eq!(region.flush().unwrap().bytes, pages * PAGE, "{what}");
            assert!(store.bytes() == expected, "{what}");
            // What was only read is nobody's any more, and neither is what was flushed.
            assert_eq!((pager.budget().dirty(), pager.budget().pinned()), (0, 0), "{what}");
            give_up(&region);
            assert!(all(&region) == expected, "{what}");

            // Once more over what was found before: it is found again, and only that.
            for round in 1..4 {
                let mut map = region.map_mut(10 * unit..11 * unit).unwrap();
                map[0] = round;
                expected[10 * unit as usize] = round;
                drop(map);
                let pages = if way == WriteTracking::Units { unit / PAGE } else { 1 };
                assert_eq!(region.dirty_bytes(), pages * PAGE, "{what}");
                region.flush().unwrap();
                drop(region.map_mut(10 * unit..11 * unit).unwrap());
                let untouched = if way == WriteTracking::Units { unit } else { 0 };
                assert_eq!(region.dirty_bytes(), untouched, "{what}");
                region.flush().unwrap();
                assert!(store.bytes() == expected, "{what}");
            }
        }
    }
}

/// Where nothing is watched, all that was read counts, within what was mapped.
fn continue_with_units(region: &RegionMut, range: &std::ops::Range<u64>, unit: u64) -> u64 {
    assert!(region.dirty_bytes() > 0);
    assert!(range.end - range.start < 16 * unit);
    (range.end.next_multiple_of(PAGE) - range.start / PAGE * PAGE) / PAGE
}

#[test]
fn what_cannot_be_mapped_says_so_and_holds_nothing() {
    let checked = Pager::builder().mode(ModeRequest::CheckedOnly).budget_bytes(8 << 20);
    let mut region = open(&checked.build().unwrap(), &Store::known(100));
    assert!(matches!(region.map_mut(0..100), Err(Error::NotMappable { .. })));
    let unit = 16 << 10;
    for (what, pager, _) in pagers(unit) {
        let mut region = open(&pager, &Store::known(100 * unit));
        assert!(matches!(region.map_mut(0..100 * unit + 1), Err(Error::OutOfBounds { .. })));
        assert!(region.map_mut(7..7).unwrap().is_empty());
        // A quarter of 160 units.
        let error = region.map_mut(0..41 * unit).unwrap_err();
        assert!(matches!(error, Error::DirtyLimit { .. }), "{what}: {error}");
        assert_eq!((pager.budget().dirty(), pager.budget().pinned()), (0, 0), "{what}");
        assert_eq!(region.map_mut(0..40 * unit).unwrap().len() as u64, 40 * unit);
        region.flush().unwrap();
        // What is dirty already counts once.
        region.write_at(0, b"dirty").unwrap();
        drop(region.map_mut(0..40 * unit).unwrap());
        region.flush().unwrap();
        region.write_at(90 * unit, b"dirty").unwrap();
        assert!(matches!(region.map_mut(0..40 * unit), Err(Error::DirtyLimit { .. })), "{what}");
        assert_eq!(region.dirty_bytes(), PAGE, "{what}");
        // A leaked guard has its bytes still.
        std::mem::forget(region.load_mut(5..6).unwrap());
        assert!(matches!(region.map_mut(0..10), Err(Error::Lent { .. })), "{what}");
        drop(region.map_mut(6..10).unwrap());
    }
}

/// A map that is leaked has been written all the same.
#[test]
fn a_leaked_map_loses_nothing() {
    for (what, pager, _) in pagers(16 << 10) {
        let store = Store::known(200_000);
        let mut region = open(&pager, &store);
        for turn in 0..4u8 {
            let mut map = region.map_mut(1000..150_000).unwrap();
            map[0] = turn;
            map[100_000] = turn;
            std::mem::forget(map);
            match turn {
                0 => drop(region.flush().unwrap()),
                1 => assert_eq!(region.load(1000..1001).unwrap()[0], turn, "{what}"),
                2 => region.map_mut(0..2000).unwrap()[999] = 0xEE,
                _ => region.write_at(1001, b"x").unwrap(),
            }
            region.flush().unwrap();
            assert_eq!((store.bytes()[1000], store.bytes()[101_000]), (turn, turn), "{what}");
        }
        assert_eq!(store.bytes()[999..1002], [0xEE, 3, b'x'], "{what}");
        std::mem::forget(region.map_mut(0..100_000).unwrap());
        drop(region);
        until("nothing is held", || pager.budget().dirty() == 0 && pager.budget().pinned() == 0);
    }
}

/// A flush that is under way has the pages first, and the map comes after it.
#[test]
fn a_map_waits_for_the_flush_of_its_bytes() {
    for (what, pager, _) in pagers(16 << 10) {
        let store = Store::known(200_000);
        let mut region = open(&pager, &store);
        region.write_at(50_000, b"flushed").unwrap();
        let gate = store.0.commit.close();
        assert!(region.flush_async().now_or_never().is_none());
        store.0.commit.until_reached("the flush is about to commit");
        // Elsewhere at once.
        drop(region.map_mut(100_000..150_000).unwrap());
        let mapped = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut map = region.map_mut(0..100_000).unwrap();
                mapped.store(true, Ordering::SeqCst);
                map[50_000..50_007].copy_from_slice(b"written");
            });
            thread::sleep(Duration::from_millis(30));
            assert!(!mapped.load(Ordering::SeqCst), "{what}");
            gate.add_permits(1);
        });
        store.0.commit.open();
        assert_eq!(store.bytes()[50_000..50_007], *b"flushed", "{what}");
        assert_eq!(region.dirty_bytes() % PAGE, 0);
        region.flush().unwrap();
        assert_eq!(store.bytes()[50_000..50_007], *b"written", "{what}");
    }
}

/// Sets a flag when it is dropped.
struct Sets<'a>(&'a AtomicBool);

impl Drop for Sets<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Threads write all over the map, while others read more than the budget holds and the engine fetches
/// ahead: pages come at every moment, also as the watch begins.
#[test]
fn what_threads_write_under_pressure_is_found() {
    let unit = 16u64 << 10;
    for (what, pager, _) in pagers(unit) {
        let len = 100 * unit;
        let store = Store::known(len);
        let mut region = open(&pager, &store);
        let other = pager.open(Known::new(400 * unit)).unwrap();
        let mut expected = bytes_of(0..len);
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            // Also when an assertion fails.
            let _done = Sets(&done);
            scope.spawn(|| {
                let mut bytes = vec![0; 300 * unit as usize];
                while !done.load(Ordering::SeqCst) {
                    other.read_at(0, &mut bytes).unwrap();
                }
            });
            for round in 0..12u64 {
                let start = round * 7 % 60 * unit + 11;
                let range = start..start + 38 * unit;
                give_up(&region);
                region.advise(Hint::WillNeed(std::slice::from_ref(&range))).unwrap();
                let mut map = region.map_mut(range.clone()).unwrap();
                let part = map.len() / 4;
                thread::scope(|scope| {
                    for (n, part) in map.chunks_mut(part).enumerate() {
                        scope.spawn(move || {
                            let mut random = Random(round * 31 + n as u64);
                            for _ in 0..60 {
                                let at = random.below(part.len() as u64) as usize;
                                part[at] = random.next() as u8;
                                let at = random.below(part.len() as u64) as usize;
                                std::hint::black_box(part[at]);
                            }
                        });
                    }
                });
                let span = range.start as usize..range.end as usize;
                for (n, part) in expected[span].chunks_mut(part).enumerate() {
                    let mut random = Random(round * 31 + n as u64);
                    for _ in 0..60 {
                        let at = random.below(part.len() as u64) as usize;
                        part[at] = random.next() as u8;
                        random.below(part.len() as u64);
                    }
                }
                drop(map);
                give_up(&region);
                assert!(all(&region) == expected, "{what}, round {round}");
                // Another window would have no room beside what is dirty.
                region.flush().unwrap();
                assert!(store.bytes() == expected, "{what}, round {round}");
            }
        });
        region.flush().unwrap();
        assert!(store.bytes() == expected, "{what}");
    }
}

/// Pages stay protected no longer than somebody watches: a system call may write to a guard.
#[test]
fn a_guard_can_be_written_by_the_kernel_after_a_map() {
    for (what, pager, _) in pagers(16 << 10) {
        let store = Store::known(200_000);
        let mut region = open(&pager, &store);
        let mut map = region.map_mut(0..100_000).unwrap();
        std::hint::black_box(map.iter().map(|&byte| u64::from(byte)).sum::<u64>());
        map[3] = 1;
        drop(map);
        let (read, mut write) = std::io::pipe().unwrap();
        write.write_all(b"by the kernel").unwrap();
        let mut guard = region.load_mut(50_000..50_013).unwrap();
        assert_eq!(nix::unistd::read(&read, &mut guard), Ok(13), "{what}");
        drop(guard);
        region.flush().unwrap();
        assert_eq!(store.bytes()[50_000..50_013], *b"by the kernel", "{what}");
    }
}

/// A flush of another page of a mapped unit let the unit go: what was written through the map was nobody's.
#[test]
fn a_flush_beside_a_map_leaves_it_its_units() {
    let unit = 64 << 10;
    for (what, pager, way) in pagers(unit) {
        let store = Store::known(1 << 20);
        let mut region = open(&pager, &store);
        region.write_at(10, b"flushed").unwrap();
        let gate = store.0.commit.close();
        assert!(region.flush_async().now_or_never().is_none());
        store.0.commit.until_reached("the flush is about to commit");
        let kept = pager.budget().dirty();
        let mut map = region.map_mut(4 * PAGE..8 * PAGE).unwrap();
        gate.add_permits(1);
        store.0.commit.open();
        until("the flush has ended", || store.bytes()[10..17] == *b"flushed");
        thread::sleep(Duration::from_millis(50));
        assert_eq!(pager.budget().dirty(), kept, "{what}");
        map[0] = 0xAB;
        drop(map);
        let pages = if way == WriteTracking::Units { 4 } else { 1 };
        assert_eq!(region.dirty_bytes(), pages * PAGE, "{what}");
        give_up(&region);
        region.flush().unwrap();
        assert_eq!(store.bytes()[4 * PAGE as usize], 0xAB, "{what}");
        assert_eq!((pager.budget().dirty(), pager.budget().pinned()), (0, 0), "{what}");
    }
}

/// When the last unit of a span leaves, the kernel forgets the marks of all of the span: what was never there
/// looked written.
#[test]
fn what_was_never_there_was_not_written() {
    let unit = 64 << 10;
    for (what, pager, _) in pagers(unit) {
        let store = Store::known(4 << 20);
        let mut region = open(&pager, &store);
        let other = pager.open(Known::new(400 * unit)).unwrap();
        drop(region.load(20 * unit..20 * unit + 1).unwrap());
        let map = region.map_mut(0..4 * unit).unwrap();
        let mut bytes = vec![0; 300 * unit as usize];
        other.read_at(0, &mut bytes).unwrap();
        drop(map);
        assert_eq!(region.dirty_bytes(), 0, "{what}");
        assert_eq!((pager.budget().dirty(), pager.budget().pinned()), (0, 0), "{what}");
    }
}

/// Whoever walks through a map waited for each unit by itself: what is kept was never fetched ahead.
#[test]
fn a_walk_through_a_map_takes_as_many_requests_as_one_of_loads() {
    let unit = 64 << 10;
    for (what, pager, way) in pagers(unit) {
        // What a map may have at most.
        let len = 40 * unit;
        let walk = |mapped: bool, hint: Hint<'_>| {
            let store = Store::known(len);
            *store.0.delay.lock().unwrap() = Duration::from_millis(2);
            let mut region = open(&pager, &store);
            region.advise(hint).unwrap();
            if mapped {
                let mut map = region.map_mut(0..len).unwrap();
                for at in (0..len as usize).step_by(PAGE as usize) {
                    assert_eq!(map[at], byte_at(at as u64), "{what}");
                }
                map[len as usize - 1] = 7;
                drop(map);
            } else {
                for at in (0..len).step_by(PAGE as usize) {
                    assert_eq!(region.load(at..at + 1).unwrap()[0], byte_at(at), "{what}");
                }
                region.write_at(len - 1, &[7]).unwrap();
            }
            let dirty = if mapped && way == WriteTracking::Units { len } else { PAGE };
            assert_eq!(region.dirty_bytes(), dirty, "{what}: what came ahead was not written");
            region.flush().unwrap();
            assert_eq!(store.bytes()[len as usize - 1], 7, "{what}");
            assert_eq!((pager.budget().dirty(), pager.budget().pinned()), (0, 0), "{what}");
            (region.stats().gets, region.stats().prefetch_used)
        };
        let (loads, _) = walk(false, Hint::Normal);
        let (mapped, used) = walk(true, Hint::Normal);
        println!("{what}: {loads} requests by loads, {mapped} through a map, {used} guesses right");
        assert_eq!(walk(true, Hint::Random).0, 40, "{what}: nobody wants anything ahead");
        if way == WriteTracking::Units {
            assert_eq!(mapped, 40, "{what}: it would count as written");
            continue;
        }
        // A guess comes in time or not, as busy as the machine is; most do, or there would be a request each.
        assert!(mapped < 20, "{what}: {mapped} requests, {loads} by loads");
        assert!(used > 20, "{what}: {used} guesses were right, of 40");
        until("no guess is left", || pager.budget().speculative() == 0);
    }
}
