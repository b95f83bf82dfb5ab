//! Regions that are written: what is seen when, what a flush takes along, and what it leaves when it fails.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use futures::FutureExt;
use pager::{Error, Hint, Pager, RegionMut, RegionOptions, SinkError, SourceError, Version};
use proptest::prelude::*;

use crate::{
    mapped_mut::trackings,
    store::{Fate, Store, all, give_up},
    support::{Known, Random, all_of, builder, bytes_of, modes, until},
};

const PAGE: usize = 4096;

fn pager(budget: u64) -> Pager {
    builder().budget_bytes(budget).unit_bytes(16 << 10).build().unwrap()
}

fn open(pager: &Pager, store: &Store) -> RegionMut {
    pager.open_mut(store.clone(), store.clone()).unwrap()
}

#[test]
fn what_is_written_is_seen_here_at_once_and_there_after_a_flush() {
    const LEN: u64 = 1_000_003;
    for mode in modes() {
        for unit in [4 << 10, 64 << 10, 2 << 20] {
            let builder = Pager::builder().mode(mode).budget_bytes(160 << 20);
            let pager = builder.unit_bytes(unit).build().unwrap();
            let store = Store::known(LEN);
            let region = open(&pager, &store);
            let mut expected = bytes_of(0..LEN);
            let first = region.version();

            let mut guard = region.load_mut(70_000..140_001).unwrap();
            guard.fill(1);
            assert!(guard.iter().all(|&byte| byte == 1));
            drop(guard);
            expected[70_000..140_001].fill(1);
            region.write_at(LEN - 5, &[2; 5]).unwrap();
            expected[LEN as usize - 5..].fill(2);
            region.write_at(0, &[]).unwrap();
            drop(region.load_mut(5..5).unwrap());
            assert!(all(&region) == expected, "{mode:?}, {unit}");
            assert_eq!(region.load(139_999..140_002).unwrap()[..], expected[139_999..140_002]);
            // 18 pages of the first, and the one that the object ends in.
            assert_eq!(region.dirty_bytes(), 18 * 4096 + LEN % 4096);
            assert!(store.bytes() == bytes_of(0..LEN), "nobody sees it yet");

            give_up(&region);
            assert!(all(&region) == expected, "what is dirty stays");
            let flushed = region.flush().unwrap();
            assert_eq!(flushed.bytes, 18 * 4096 + LEN % 4096);
            assert_eq!((&flushed.version, region.version()), (&store.now(), store.now()));
            assert_ne!(first, store.now());
            assert!(store.bytes() == expected, "{mode:?}, {unit}");
            assert_eq!((region.dirty_bytes(), pager.budget().dirty()), (0, 0));
            give_up(&region);
            assert_eq!(region.stats().units_resident, 0, "nothing is pinned any more");
            assert!(all(&region) == expected, "from the new version");
            assert_eq!(region.flush().unwrap().bytes, 0);
            assert_eq!(region.version(), flushed.version);

            // What is dropped unflushed is lost, and holds nothing.
            region.write_at(77, b"lost").unwrap();
            drop(region);
            until("the region is gone", || pager.regions().is_empty());
            until("the budget is free", || {
                drop(pager.pool().reserve(all_of(&pager)));
                pager.budget().pinned() == 0 && pager.budget().dirty() == 0
            });
            assert!(store.bytes() == expected);
        }
    }
}

#[test]
fn what_cannot_be_written_says_so() {
    let pager = pager(8 << 20);
    let weak = Known::with_version(10, Version::weak("yesterday"));
    let error = pager.open_mut(weak, Store::known(10)).unwrap_err();
    assert!(matches!(error, Error::NotWritable { .. }), "{error}");
    assert!(error.to_string().contains("yesterday"), "{error}");

    let empty = open(&pager, &Store::known(0));
    assert!(empty.is_empty() && empty.load_mut(0..0).unwrap().is_empty());
    assert_eq!(empty.flush().unwrap().bytes, 0);

    let region = open(&pager, &Store::known(100));
    for outcome in [
        region.load_mut(0..101).map(drop),
        region.load_mut(101..102).map(drop),
        region.write_at(99, &[0; 2]),
        region.write_at(u64::MAX, &[0; 2]),
    ] {
        assert!(matches!(outcome, Err(Error::OutOfBounds { .. })), "{outcome:?}");
    }
    region.close();
    assert!(matches!(region.write_at(0, &[0]), Err(Error::Closed { .. })));
    assert!(matches!(region.flush(), Err(Error::Closed { .. })));
}

#[test]
fn two_have_the_same_bytes_only_to_read() {
    let pager = pager(8 << 20);
    let store = Store::known(100_000);
    let region = open(&pager, &store);
    let lent = |outcome: Result<(), Error>| match outcome {
        Ok(()) => false,
        Err(Error::Lent { .. }) => true,
        Err(error) => panic!("{error}"),
    };
    let reader = region.load(10..20_000).unwrap();
    assert!(!lent(region.load(0..100_000).map(drop)));
    assert!(lent(region.load_mut(19_999..20_001).map(drop)));
    assert!(lent(region.write_at(0, &[0; 11])));
    assert_eq!(region.dirty_bytes(), 0, "who gets nothing writes nothing");
    // A byte beside it, of the same page.
    let mut writer = region.load_mut(20_000..20_001).unwrap();
    writer[0] = 77;
    assert!(lent(region.load(0..100_000).map(drop)));
    assert!(lent(region.load_mut(20_000..20_002).map(drop)));
    let mut buf = [0; 10];
    assert!(lent(region.read_at(19_995, &mut buf)));
    assert!(!lent(region.read_at(19_990, &mut buf)));
    // A flush would read the byte that is being written. A reader is in nobody's way.
    assert!(lent(region.flush().map(drop)));
    assert!(store.bytes() == bytes_of(0..100_000) && region.dirty_bytes() == 4096);
    drop(writer);
    region.flush().unwrap();
    assert_eq!(reader[..], bytes_of(10..20_000)[..]);
    drop(reader);
    assert!(!lent(region.load_mut(0..100_000).map(drop)));
    assert_eq!(store.bytes()[20_000], 77);

    // One that is leaked keeps its bytes, and only these.
    std::mem::forget(region.load_mut(50_000..50_001).unwrap());
    assert!(lent(region.load(50_000..50_001).map(drop)) && lent(region.flush().map(drop)));
    assert!(!lent(region.load(0..50_000).map(drop)));
}

/// Dirty units were victims like any other, and what was pinned by them alone could never be freed.
#[test]
fn what_is_dirty_stays_and_leaves_room_for_others() {
    let unit = 16u64 << 10;
    let cost = unit + 4096;
    let pager = pager(64 * cost);
    let store = Store::known(200 * unit);
    let region = open(&pager, &store);
    let other = pager.open(Known::new(200 * unit)).unwrap();
    let mut expected = store.bytes();
    // A quarter of 64, in every twelfth unit.
    let places: Vec<u64> = (0..16).map(|n| n * 12 * unit + 5).collect();
    for &at in &places {
        region.write_at(at, b"dirty").unwrap();
        expected[at as usize..][..5].copy_from_slice(b"dirty");
    }
    assert_eq!(pager.budget().dirty(), pager.budget().dirty_limit());
    for outcome in [region.write_at(unit, b"more"), region.load_mut(unit..unit + 1).map(drop)] {
        let error = outcome.unwrap_err();
        assert!(matches!(error, Error::DirtyLimit { .. }), "{error}");
        assert!(error.to_string().contains("flush"), "{error}");
    }
    // What is dirty already may be written again, and as much as is dirty may be pinned besides.
    region.write_at(places[3] + 5000, b"again").unwrap();
    expected[places[3] as usize + 5000..][..5].copy_from_slice(b"again");
    drop(other.load(0..16 * unit).unwrap());
    assert!(matches!(other.load(0..17 * unit), Err(Error::PinLimit { .. })));
    // More goes through than the budget holds, several times.
    for _ in 0..2 {
        let mut bytes = vec![0; 200 * unit as usize];
        other.read_at(0, &mut bytes).unwrap();
        assert!(bytes == bytes_of(0..200 * unit));
        assert!(all(&region) == expected);
    }
    region.flush().unwrap();
    assert!(store.bytes() == expected);
    assert_eq!(pager.budget().dirty(), 0);
    region.write_at(unit, b"more").unwrap();
}

/// A flush that failed half-way left pages clean that were in no version.
#[test]
fn a_flush_that_fails_changes_nothing_and_the_next_one_has_it_all() {
    let pager = pager(8 << 20);
    let lost = |happens| Fate::Lost { happens };
    let cases: [(&str, &[Fate], &[Fate]); 8] = [
        ("the first write", &[Fate::Fails], &[]),
        ("the third write", &[Fate::Goes, Fate::Goes, Fate::Fails], &[]),
        ("a write that nobody heard of", &[Fate::Goes, lost(false)], &[]),
        ("the commit", &[], &[Fate::Fails]),
        ("a panic in a write", &[Fate::Goes, Fate::Panics], &[]),
        ("a panic in the commit", &[], &[Fate::Panics]),
        ("an answer that was lost", &[], &[lost(false)]),
        ("twice", &[Fate::Fails], &[lost(false), lost(false)]),
    ];
    for (what, writes, commits) in cases {
        let store = Store::known(200_000);
        let region = open(&pager, &store);
        let mut expected = bytes_of(0..200_000);
        for at in [0, 40_000, 80_000, 199_999] {
            region.write_at(at, &[0xDD]).unwrap();
            expected[at as usize] = 0xDD;
        }
        let dirty = region.dirty_bytes();
        store.0.writes.lock().unwrap().extend(writes);
        store.0.commits.lock().unwrap().extend(commits);
        let failures = usize::from(writes.iter().any(|fate| *fate != Fate::Goes)) + commits.len();
        for _ in 0..failures {
            let error = region.flush().unwrap_err();
            assert!(matches!(error, Error::Sink(_)), "{what}: {error}");
            assert_eq!(region.dirty_bytes(), dirty, "{what}");
            assert!(store.bytes() == bytes_of(0..200_000), "{what}");
            give_up(&region);
            assert!(all(&region) == expected, "{what}");
            // Who was waiting for it is let go.
            region.write_at(80_001, &[0xEE]).unwrap();
            expected[80_001] = 0xEE;
        }
        region.flush().unwrap();
        assert!(store.bytes() == expected, "{what}");
        assert_eq!(region.dirty_bytes(), 0, "{what}");
        give_up(&region);
        assert!(all(&region) == expected, "{what}");
    }
}

/// An answer was lost, and the object was replaced, by us. That is no conflict.
#[test]
fn a_commit_that_nobody_heard_of_is_found_out() {
    let pager = pager(8 << 20);
    let store = Store::known(200_000);
    let region = open(&pager, &store);
    region.write_at(1, b"first").unwrap();
    region.advise(Hint::Random).unwrap();
    drop(region.load(100_000..100_001).unwrap());
    store.0.commits.lock().unwrap().extend([Fate::Lost { happens: true }; 2]);
    for _ in 0..2 {
        let error = region.flush().unwrap_err();
        assert!(matches!(error, Error::Sink(SinkError::Unsettled { .. })), "{error}");
        assert_eq!(store.bytes()[1..6], *b"first");
        assert_eq!(region.dirty_bytes(), 4096);
        // What is not here is of a version that nobody knows: an error, and no mixture.
        let error = region.load(180_000..180_001).unwrap_err();
        assert!(matches!(error, Error::Source(SourceError::Changed { .. })), "{error}");
    }
    region.write_at(3, b"second").unwrap();
    region.write_at(100_000, b"third").unwrap();
    assert_eq!(region.flush().unwrap().version, store.now());
    assert_eq!(store.bytes()[1..9], *b"fisecond");
    assert_eq!(store.bytes()[100_000..100_005], *b"third");
    assert_eq!(region.dirty_bytes(), 0);
    give_up(&region);
    assert!(all(&region) == store.bytes());
}

#[test]
fn what_somebody_else_wrote_is_a_conflict_and_stays() {
    let pager = pager(8 << 20);
    let store = Store::known(200_000);
    let region = open(&pager, &store);
    region.write_at(7, b"ours").unwrap();
    let gate = store.0.commit.close();
    thread::scope(|scope| {
        let flush = scope.spawn(|| region.flush());
        store.0.commit.until_reached("the flush is about to commit");
        store.replace(vec![9; 200_000]);
        gate.add_permits(1);
        let error = flush.join().unwrap().unwrap_err();
        assert!(matches!(error, Error::Sink(SinkError::Conflict { .. })), "{error}");
    });
    store.0.commit.open();
    assert!(store.bytes() == vec![9; 200_000]);
    // It is here still, and a flush says the same again.
    assert_eq!(region.load(7..11).unwrap()[..], *b"ours");
    assert!(matches!(region.flush(), Err(Error::Sink(SinkError::Conflict { .. }))));
    assert_eq!(region.dirty_bytes(), 4096);
    // What is not here cannot be had any more: no mixture of the two.
    let error = region.load(100_000..100_001).unwrap_err();
    assert!(matches!(error, Error::Source(SourceError::Changed { .. })), "{error}");
    assert_eq!(*store.0.aborts.lock().unwrap(), 2);
}

/// What is written while a flush is under way is in it or is dirty after it.
#[test]
fn who_writes_during_a_flush_loses_nothing() {
    let pager = pager(8 << 20);
    let store = Store::known(200_000);
    let region = open(&pager, &store);
    region.write_at(0, b"flushed").unwrap();
    let gate = store.0.commit.close();
    let waited = AtomicBool::new(true);
    thread::scope(|scope| {
        let flush = scope.spawn(|| region.flush().unwrap());
        store.0.commit.until_reached("the flush is about to commit");
        // Another page, and another unit: at once. To read: at once.
        region.write_at(5000, b"beside").unwrap();
        region.write_at(100_000, b"far").unwrap();
        assert_eq!(region.load(0..7).unwrap()[..], *b"flushed");
        let writers = [0u64, 4].map(|at| {
            let (region, waited, store) = (&region, &waited, &store);
            scope.spawn(move || {
                if at == 0 {
                    region.load_mut(0..4).unwrap().copy_from_slice(b"late");
                } else {
                    region.write_at(at, b"R").unwrap();
                }
                waited.fetch_and(store.bytes()[..7] == *b"flushed", Ordering::SeqCst);
            })
        });
        thread::sleep(Duration::from_millis(50));
        assert!(writers.iter().all(|writer| !writer.is_finished()), "they wait for the flush");
        gate.add_permits(1);
        assert_eq!(flush.join().unwrap().bytes, 4096);
        for writer in writers {
            writer.join().unwrap();
        }
    });
    assert!(waited.into_inner(), "who waited came after the commit");
    store.0.commit.open();
    assert_eq!(store.bytes()[..7], *b"flushed");
    assert_eq!(store.bytes()[5000..5006], bytes_of(5000..5006)[..]);
    assert_eq!(region.load(0..7).unwrap()[..], *b"lateRed");
    assert_eq!(region.dirty_bytes(), 3 * 4096);
    region.flush().unwrap();
    assert_eq!(store.bytes()[..7], *b"lateRed");
    assert_eq!(store.bytes()[5000..5006], *b"beside");
    assert_eq!(store.bytes()[100_000..100_003], *b"far");
}

/// Who waits for a flush held what it had pinned, and nobody could load meanwhile.
#[test]
fn who_waits_for_a_flush_pins_nothing() {
    let pager = pager(8 << 20);
    let store = Store::known(6 << 20);
    let region = open(&pager, &store);
    region.write_at(0, b"flushed").unwrap();
    let gate = store.0.commit.close();
    thread::scope(|scope| {
        let flush = scope.spawn(|| region.flush().unwrap());
        store.0.commit.until_reached("the flush is about to commit");
        // Three units less than may be pinned, which is more than may be dirty.
        let most = pager.budget().pin_limit() / (20 << 10) - 3;
        let greedy = scope.spawn({
            let region = &region;
            move || region.load_mut(0..most * (16 << 10)).map(drop)
        });
        thread::sleep(Duration::from_millis(50));
        drop(region.load(5 << 20..(5 << 20) + (64 << 10)).unwrap());
        assert!(!greedy.is_finished());
        gate.add_permits(1);
        flush.join().unwrap();
        assert!(matches!(greedy.join().unwrap(), Err(Error::DirtyLimit { .. })));
    });
}

/// Between the look at what is dirty and its way to the sink, the unit was evicted.
#[test]
fn nothing_of_a_flush_is_evicted_under_it() {
    let unit = 16u64 << 10;
    let pager = pager(64 * (unit + 4096));
    let store = Store::known(200 * unit);
    let region = open(&pager, &store);
    let mut expected = store.bytes();
    for n in 0..16 {
        region.write_at(n * 12 * unit, &[n as u8; 100]).unwrap();
        expected[(n * 12 * unit) as usize..][..100].fill(n as u8);
    }
    let gate = store.0.write.close();
    thread::scope(|scope| {
        let flush = scope.spawn(|| region.flush().unwrap());
        for _ in 0..16 {
            store.0.write.until_reached("the flush is about to write");
            give_up(&region);
            let mut bytes = vec![0; 100 * unit as usize];
            region.read_at(50 * unit, &mut bytes).unwrap();
            assert!(bytes == expected[50 * unit as usize..150 * unit as usize]);
            gate.add_permits(1);
            until("it goes on", || gate.available_permits() == 0);
        }
        assert_eq!(flush.join().unwrap().bytes, 16 * 4096);
    });
    assert!(store.bytes() == expected);
}

/// Bytes of the old version came after the flush, and requests for it were refused.
#[test]
fn what_is_fetched_during_a_flush_is_of_one_version_with_it() {
    let unit = 16u64 << 10;
    let mut expected = bytes_of(0..20 * unit);
    expected[..5].copy_from_slice(b"dirty");
    for stop in ["asked before, sent after", "cut off in the middle", "refused while it commits"] {
        let pager = pager(8 << 20);
        let store = Store::known(20 * unit);
        let region = open(&pager, &store);
        region.advise(Hint::Random).unwrap();
        region.write_at(0, b"dirty").unwrap();
        let reads = match stop {
            "cut off in the middle" => &store.0.body,
            _ => &store.0.read,
        };
        let gate = reads.close();
        thread::scope(|scope| {
            let load = scope.spawn(|| region.load(10 * unit..12 * unit).unwrap().to_vec());
            reads.until_reached("the load has sent its request");
            if stop == "refused while it commits" {
                let committed = store.0.committed.close();
                let flush = scope.spawn(|| region.flush().unwrap());
                store.0.committed.until_reached("the object is replaced, and nobody knows");
                reads.open();
                thread::sleep(Duration::from_millis(20));
                assert!(!load.is_finished(), "it waits for what the commit comes to");
                committed.add_permits(1);
                flush.join().unwrap();
            } else {
                region.flush().unwrap();
                reads.open();
            }
            let range = 10 * unit as usize..12 * unit as usize;
            assert!(load.join().unwrap() == expected[range], "{stop}");
        });
        drop(gate);
        store.0.committed.open();
        assert!(store.bytes() == expected, "{stop}");
        // And what was put in place then is written like anything else.
        region.write_at(11 * unit, b"later").unwrap();
        region.flush().unwrap();
        give_up(&region);
        let mut then = expected.clone();
        then[11 * unit as usize..][..5].copy_from_slice(b"later");
        assert!(store.bytes() == then && all(&region) == then, "{stop}");
    }
}

/// The future of a flush is dropped, and the flush goes on to its end.
#[test]
fn a_flush_that_nobody_waits_for_ends_all_the_same() {
    let pager = pager(8 << 20);
    let store = Store::known(100_000);
    let region = open(&pager, &store);
    region.write_at(0, b"dirty").unwrap();
    let gate = store.0.commit.close();
    assert!(region.flush_async().now_or_never().is_none());
    store.0.commit.until_reached("it is under way");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let second = region.flush_async();
    gate.add_permits(1);
    store.0.commit.open();
    // One after the other: this one finds nothing to do.
    assert_eq!(runtime.block_on(second).unwrap().bytes, 0);
    assert_eq!(store.bytes()[..5], *b"dirty");
    assert_eq!((region.dirty_bytes(), region.version()), (0, store.now()));
    // The same with the region.
    region.write_at(0, b"again").unwrap();
    let gate = store.0.commit.close();
    assert!(region.flush_async().now_or_never().is_none());
    store.0.commit.until_reached("it is under way");
    drop((region, pager));
    gate.add_permits(1);
    until("it is written", || store.bytes()[..5] == *b"again");
}

/// Threads write what is theirs, others read and flush, all at once.
#[test]
fn threads_that_write_and_flush_at_a_time() {
    const THREADS: u64 = 4;
    const LEN: u64 = 3_000_000;
    let pager = pager(2 << 20);
    let store = Store::new(vec![0; LEN as usize]);
    let region = open(&pager, &store);
    let done = AtomicBool::new(false);
    let flush = || match region.flush() {
        Ok(_) | Err(Error::Lent { .. }) => {}
        Err(error) => panic!("{error}"),
    };
    thread::scope(|scope| {
        let writers: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (region, flush) = (&region, &flush);
                scope.spawn(move || {
                    let mut random = Random(thread);
                    for round in 1..=400u32 {
                        // Words that no other thread writes, side by side with theirs.
                        let at = (random.below(LEN / 64 - 1) * 4 + thread) * 16;
                        let word = [round.to_le_bytes(); 4].concat();
                        loop {
                            let outcome = match round % 3 {
                                0 => region
                                    .load_mut(at..at + 16)
                                    .map(|mut guard| guard.copy_from_slice(&word)),
                                _ => region.write_at(at, &word),
                            };
                            match outcome {
                                Ok(()) => break,
                                Err(Error::DirtyLimit { .. }) => flush(),
                                Err(error) => panic!("{error}"),
                            }
                        }
                        let mut got = [0; 16];
                        region.read_at(at, &mut got).unwrap();
                        assert_eq!(got, word[..]);
                    }
                })
            })
            .collect();
        let flusher = scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                flush();
                thread::sleep(Duration::from_millis(1));
            }
        });
        for writer in writers {
            writer.join().unwrap();
        }
        done.store(true, Ordering::SeqCst);
        flusher.join().unwrap();
    });
    region.flush().unwrap();
    let mut expected = vec![0; LEN as usize];
    let mut turns: Vec<Vec<(u64, u32)>> = Vec::new();
    for thread in 0..THREADS {
        let mut random = Random(thread);
        let turn = |round| ((random.below(LEN / 64 - 1) * 4 + thread) * 16, round);
        turns.push((1..=400u32).map(turn).collect());
    }
    for (at, round) in turns.concat() {
        expected[at as usize..][..16].copy_from_slice(&[round.to_le_bytes(); 4].concat());
    }
    assert!(store.bytes() == expected);
    give_up(&region);
    assert!(all(&region) == expected);
}

#[derive(Clone, Debug)]
enum Op {
    Write { at: u64, len: u64, byte: u8 },
    LoadMut { at: u64, len: u64, byte: u8 },
    Read { at: u64, len: u64 },
    Load { at: u64, len: u64 },
    Map { at: u64, len: u64, step: usize, byte: u8 },
    GiveUp { at: u64, len: u64 },
    Others,
    Flush(Option<Fate>),
}

fn any_op() -> impl Strategy<Value = Op> {
    let place = || (any::<u64>(), 1..40_000u64);
    let fate = prop_oneof![
        4 => Just(None),
        1 => Just(Some(Fate::Fails)),
        1 => any::<bool>().prop_map(|happens| Some(Fate::Lost { happens })),
    ];
    prop_oneof![
        4 => (place(), any::<u8>()).prop_map(|((at, len), byte)| Op::Write { at, len, byte }),
        4 => (place(), any::<u8>())
            .prop_map(|((at, len), byte)| Op::LoadMut { at, len: len % 9000 + 1, byte }),
        2 => place().prop_map(|(at, len)| Op::Read { at, len }),
        2 => place().prop_map(|(at, len)| Op::Load { at, len: len % 9000 + 1 }),
        3 => (place(), 1..9000usize, any::<u8>())
            .prop_map(|((at, len), step, byte)| Op::Map { at, len, step, byte }),
        2 => place().prop_map(|(at, len)| Op::GiveUp { at, len: len * 20 }),
        1 => Just(Op::Others),
        2 => fate.prop_map(Op::Flush),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// A region that is written, evicted, flushed, and refused at times, is a plain `Vec<u8>`; and so
    /// is the object, as it was at the last flush.
    #[test]
    fn a_writable_region_is_a_vec(
        len in 1..1_500_000u64,
        unit_shift in 12..17u32,
        spare_units in 0..32u64,
        tracking in any::<prop::sample::Index>(),
        ops in prop::collection::vec(any_op(), 1..150),
    ) {
        let unit = 1u64 << unit_shift;
        let budget = (40 + spare_units) * (unit + 4096);
        let mut settings = builder().budget_bytes(budget).unit_bytes(unit);
        let trackings = trackings();
        if !trackings.is_empty() {
            settings = settings.write_tracking(*tracking.get(&trackings));
        }
        let pager = settings.build().unwrap();
        let store = Store::known(len);
        let options = RegionOptions::default().unit_bytes(unit);
        let mut region = pager.open_mut_with(store.clone(), store.clone(), options).unwrap();
        let other = pager.open_with(Known::new(4 * budget), RegionOptions::default().unit_bytes(unit)).unwrap();
        let mut model = bytes_of(0..len);
        let mut committed = model.clone();
        let clip = |at: u64, n: u64| {
            let at = at % len;
            at..(at + n).min(len)
        };
        for op in &ops {
            match *op {
                Op::Write { at, len, byte } => {
                    let range = clip(at, len);
                    let bytes = vec![byte; (range.end - range.start) as usize];
                    let span = range.start as usize..range.end as usize;
                    // Flushed page by page where all of it at once is too much.
                    match region.write_at(range.start, &bytes) {
                        Ok(()) => model[span].fill(byte),
                        Err(Error::DirtyLimit { .. }) => {
                            // A part from the front may be written.
                            model[span.clone()].fill(byte);
                            for page in bytes.chunks(PAGE).enumerate() {
                                let at = range.start + (page.0 * PAGE) as u64;
                                if region.write_at(at, page.1).is_err() {
                                    region.flush().unwrap();
                                    region.write_at(at, page.1).unwrap();
                                }
                            }
                            region.flush().unwrap();
                            committed = model.clone();
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
                Op::LoadMut { at, len, byte } => {
                    let range = clip(at, len);
                    match region.load_mut(range.clone()) {
                        Ok(mut guard) => {
                            let span = range.start as usize..range.end as usize;
                            prop_assert!(guard[..] == model[span.clone()]);
                            guard.fill(byte);
                            model[span].fill(byte);
                        }
                        Err(Error::DirtyLimit { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
                Op::Read { at, len } => {
                    let range = clip(at, len);
                    let mut got = vec![0; (range.end - range.start) as usize];
                    region.read_at(range.start, &mut got).unwrap();
                    prop_assert!(got == model[range.start as usize..range.end as usize]);
                }
                Op::Load { at, len } => {
                    let range = clip(at, len);
                    let guard = region.load(range.clone()).unwrap();
                    prop_assert!(guard[..] == model[range.start as usize..range.end as usize]);
                }
                Op::Map { at, len, step, byte } => {
                    let range = clip(at, len);
                    match region.map_mut(range.clone()) {
                        Ok(mut map) => {
                            let span = range.start as usize..range.end as usize;
                            for at in (0..map.len()).step_by(step) {
                                prop_assert!(map[at] == model[span.start + at]);
                                if at % 3 > 0 {
                                    map[at] = byte;
                                    model[span.start + at] = byte;
                                }
                            }
                        }
                        Err(Error::DirtyLimit { .. } | Error::NotMappable { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
                Op::GiveUp { at, len } => region.advise(Hint::DontNeed(clip(at, len))).unwrap(),
                Op::Others => {
                    let mut bytes = vec![0; budget as usize];
                    other.read_at(budget, &mut bytes).unwrap();
                }
                Op::Flush(fate) => {
                    store.0.commits.lock().unwrap().extend(fate);
                    match region.flush() {
                        Ok(_) => committed = model.clone(),
                        Err(Error::Sink(SinkError::Unsettled { .. })) => {
                            // What came of it is found out before anything else is.
                            region.flush().unwrap();
                            committed = model.clone();
                        }
                        Err(Error::Sink(SinkError::Failed(_))) => {}
                        Err(error) => panic!("{error}"),
                    }
                    store.0.commits.lock().unwrap().clear();
                }
            }
            prop_assert!(store.bytes() == committed);
            prop_assert!(pager.budget().used() <= budget);
            prop_assert!(pager.budget().dirty() <= pager.budget().dirty_limit());
        }
        region.flush().unwrap();
        prop_assert!(store.bytes() == model);
        region.advise(Hint::DontNeed(0..len)).unwrap();
        prop_assert!(all(&region) == model);
    }
}

/// A sink that did not answer held up a flush for ever, and with it whoever wrote to the same pages.
#[test]
fn a_sink_that_does_not_answer_fails_the_flush_and_loses_nothing() {
    const LEN: u64 = 100_000;
    let builder = builder().budget_bytes(64 << 20).unit_bytes(16 << 10);
    let pager = builder.sink_deadline(Duration::from_millis(50)).build().unwrap();
    let store = Store::known(LEN);
    let region = open(&pager, &store);
    let mut expected = bytes_of(0..LEN);
    let mut write = |at: usize, byte: u8| {
        region.write_at(at as u64, &[byte]).unwrap();
        expected[at] = byte;
        expected.clone()
    };
    // Before the commit nothing was written, whatever it hangs at, also in the end.
    let shelf = &store.0;
    let cases = [
        ("begin of a new version", &shelf.begin, 0),
        ("write bytes 0..4096", &shelf.write, 1),
        ("write bytes 0..4096", &shelf.write, 1),
    ];
    for (n, (what, stop, aborts)) in cases.into_iter().enumerate() {
        let before = store.bytes();
        write(10, n as u8);
        drop(stop.close());
        if n == 2 {
            drop(shelf.abort.close());
        }
        thread::scope(|scope| {
            let flush = scope.spawn(|| region.flush().unwrap_err());
            stop.until_reached("the sink hangs");
            // Waits for that, and goes on.
            write(11, n as u8);
            let error = flush.join().unwrap();
            let transient =
                matches!(&error, Error::Sink(SinkError::Failed(SourceError::Transient { .. })));
            let told = error.to_string();
            assert!(transient && told.contains(what), "{told}");
            assert!(told.contains("no answer within the pager's deadline for sinks"), "{told}");
        });
        assert_eq!((region.dirty_bytes(), store.bytes() == before), (PAGE as u64, true), "{what}");
        assert_eq!(*shelf.aborts.lock().unwrap(), aborts, "{what}");
        stop.open();
        shelf.abort.open();
        let expected = write(12, n as u8);
        assert_eq!(region.flush().unwrap().bytes, PAGE as u64, "{what}");
        assert!(store.bytes() == expected, "{what}");
    }
    // A commit that is cut off may have happened, and is asked about until that is known.
    for (happened, stop) in [(false, &shelf.commit), (true, &shelf.committed)] {
        write(20_000, u8::from(happened));
        let before = store.now();
        drop(stop.close());
        for _ in 0..2 {
            let error = region.flush().unwrap_err();
            assert!(matches!(error, Error::Sink(SinkError::Unsettled { .. })), "{error}");
            assert!(error.to_string().contains("no answer within the pager's"), "{error}");
            assert_eq!(region.dirty_bytes(), PAGE as u64);
        }
        assert_eq!(store.now() != before, happened);
        stop.open();
        let expected = write(20_001, 7 + u8::from(happened));
        region.flush().unwrap();
        assert!(store.bytes() == expected && region.version() == store.now());
        give_up(&region);
        assert!(all(&region) == expected);
        assert_eq!((region.dirty_bytes(), pager.budget().dirty()), (0, 0));
    }
}
