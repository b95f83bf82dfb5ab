//! How few requests it takes.

use std::{
    collections::BTreeSet,
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::StreamExt;
use pager::{
    BlockSource, ByteStream, Bytes, Hint, ObjectStat, Pager, RegionOptions, SourceError, Version,
    async_trait,
    policy::{
        NoPrefetch, PrefetchPolicy,
        prefetch::{Advice, Limits, Signal, Want},
    },
};

use crate::support::{Behaviour, Known, builder, byte_at, bytes_of, can_fault, until};

#[test]
fn one_request_per_extent_however_many_threads_wait() {
    let source = Known::new(8 << 20);
    let builder = builder().budget_bytes(64 << 20).prefetch(|| Box::new(NoPrefetch));
    let pager = builder.build().unwrap();
    let region = pager.open(source.delay(Duration::from_millis(20))).unwrap();
    let mapped = can_fault().then(|| region.map().unwrap());
    std::thread::scope(|scope| {
        for thread in 0..16u64 {
            let (region, mapped) = (&region, &mapped);
            scope.spawn(move || match mapped {
                Some(mapped) if thread % 2 == 0 => {
                    let at = 300_000 + thread as usize;
                    assert_eq!(mapped[at], byte_at(at as u64));
                }
                _ => {
                    let guard = region.load(300_000..320_000).unwrap();
                    assert_eq!(guard[..], bytes_of(300_000..320_000)[..]);
                }
            });
        }
    });
    assert_eq!(source.requests(), vec![262_144..327_680]);
}

#[test]
fn neighbours_share_a_request_and_a_load_is_one() {
    let source = Known::new(8 << 20);
    let builder = builder().budget_bytes(64 << 20).prefetch(|| Box::new(NoPrefetch));
    let pager = builder.build().unwrap();
    let region = pager.open(source.clone()).unwrap();
    drop(region.load(65_536..4 * 65_536).unwrap());
    assert_eq!(source.requests(), vec![65_536..262_144]);
    // What is resident in the middle splits the rest.
    drop(region.load(0..6 * 65_536).unwrap());
    // The two go out side by side, in any order.
    let mut rest = source.requests().split_off(1);
    rest.sort_by_key(|range| range.start);
    assert_eq!(rest, [0..65_536, 262_144..393_216]);
}

#[test]
fn an_isolated_miss_fetches_one_unit() {
    let source = Known::new(64 << 20);
    let pager = builder().budget_bytes(64 << 20).build().unwrap();
    let region = pager.open(source.clone()).unwrap();
    for at in [40 << 20, 3 << 20, 57 << 20, 20 << 20] {
        assert_eq!(region.load(at..at + 1).unwrap()[0], byte_at(at));
    }
    assert!(source.requests().iter().all(|range| range.end - range.start == 65_536));
    assert_eq!(source.requests().len(), 4);
}

#[test]
fn a_stream_takes_few_large_requests() {
    let len = 64 << 20;
    let source = Known::new(len);
    let pager = builder().budget_bytes(256 << 20).build().unwrap();
    let region = pager.open(source.clone()).unwrap();
    let units = len / 65_536;
    if can_fault() {
        let mapped = region.map().unwrap();
        for at in (0..len as usize).step_by(4096) {
            assert_eq!(mapped[at], byte_at(at as u64));
        }
        // A fault may wait for a unit that is on its way. How often is a matter of who runs when.
        let stats = region.stats();
        assert!(units - stats.prefetched < units / 4, "{stats:?}: most units are guessed");
    } else {
        for at in (0..len).step_by(65_536) {
            assert_eq!(region.load(at..at + 1).unwrap()[0], byte_at(at));
        }
    }
    let stats = region.stats();
    assert!(stats.gets < units / 4, "{stats:?}: units share requests");
    assert_eq!(stats.bytes_fetched, len, "each byte is fetched once");
}

#[test]
fn will_need_fetches_its_ranges_side_by_side() {
    let source = Known::new(64 << 20);
    let pager = builder().budget_bytes(64 << 20).build().unwrap();
    let region = pager.open(source.clone()).unwrap();
    let ranges: Vec<_> = (0..16u64).map(|n| n * (4 << 20)..n * (4 << 20) + 100).collect();
    let gate = source.hold();
    region.advise(Hint::WillNeed(&ranges)).unwrap();
    until("all are asked for before one is answered", || source.under_way() == 16);
    gate.add_permits(16);
    for range in &ranges {
        assert_eq!(region.load(range.clone()).unwrap()[..], bytes_of(range.clone())[..]);
    }
    assert_eq!(source.requests().len(), 16);
}

/// A scan announces piece by piece what it will touch, in two places in turn, as a cursor does of
/// trails and of where they lie. That a piece was read nobody told: guesses that were right filled
/// speculation's share, what was announced then found no room, and each unit of it was a miss.
#[test]
fn what_is_announced_piece_by_piece_is_fetched_once_and_in_pieces() {
    if !can_fault() {
        return println!("left out: page faults");
    }
    const UNIT: u64 = 65_536;
    const PIECE: u64 = 8 * UNIT;
    const PIECES: u64 = 40;
    let len = 2 * PIECES * PIECE;
    let source = Known::new(len);
    let pager = builder().budget_bytes(16 << 20).build().unwrap();
    let region = pager.open(source.delay(Duration::from_millis(10))).unwrap();
    let mapped = region.map().unwrap();
    let places = [0, len / 2];
    let check = |at: u64| assert_eq!(mapped[at as usize], byte_at(at));
    let announce = |piece: u64| {
        for place in places {
            let start = place + piece * PIECE;
            region.advise(Hint::WillNeed(std::slice::from_ref(&(start..start + PIECE)))).unwrap();
        }
    };
    announce(0);
    until("the first pieces are asked for", || source.requests().len() == 2);
    // They are on their way: whoever waits for one has been seen in it, and goes on.
    places.into_iter().for_each(check);
    for piece in 0..PIECES {
        let announced = (piece + 2).min(PIECES);
        if piece + 1 < PIECES {
            announce(piece + 1);
        }
        // From here on bytes are there before they are touched, and only markers tell of it.
        let what = format!("{announced} pieces were announced, and come");
        until(&what, || region.stats().bytes_fetched >= 2 * announced * PIECE);
        for place in places {
            (0..8).for_each(|unit| check(place + piece * PIECE + unit * UNIT));
        }
    }
    let stats = region.stats();
    assert_eq!(stats.bytes_fetched, len, "{stats:?}: each byte is fetched once");
    assert_eq!(stats.gets, 2 * PIECES, "{stats:?}: a piece is one request");
    until("all of it is known to be read", || pager.budget().speculative() == 0);
}

/// The end of a hint was there already, and with it went the marker that tells that the rest was read.
#[test]
fn a_hint_whose_end_is_there_is_known_to_be_read() {
    if !can_fault() {
        return println!("left out: page faults");
    }
    const UNIT: u64 = 65_536;
    for there in [14..16, 8..16] {
        let source = Known::new(16 * UNIT);
        let pager = builder().budget_bytes(16 << 20).build().unwrap();
        let region = pager.open(source.clone()).unwrap();
        drop(region.load(there.start * UNIT..there.end * UNIT).unwrap());
        region.advise(Hint::WillNeed(std::slice::from_ref(&(0..16 * UNIT)))).unwrap();
        until("all of it came", || region.stats().bytes_fetched == 16 * UNIT);
        let mapped = region.map().unwrap();
        for at in (0..16 * UNIT).step_by(UNIT as usize) {
            assert_eq!(mapped[at as usize], byte_at(at));
        }
        until("all of it is known to be read", || pager.budget().speculative() == 0);
        assert_eq!(region.stats().bytes_fetched, 16 * UNIT, "{there:?}: each byte once");
    }
}

/// Each of many pieces has a unit staged in a frame until it is read: those that come later need
/// frames as well.
#[test]
fn what_is_announced_and_not_read_leaves_frames_for_others() {
    const PIECE: u64 = 8 * 4096;
    const PIECES: u64 = 240;
    let source = Known::new(PIECES * PIECE);
    let pager = builder().budget_bytes(64 << 20).unit_bytes(4096).build().unwrap();
    let region = pager.open(source.clone()).unwrap();
    for piece in 0..PIECES {
        let end = (piece + 1) * PIECE;
        region.advise(Hint::WillNeed(std::slice::from_ref(&(end - PIECE..end)))).unwrap();
        until("what was announced comes", || region.stats().bytes_fetched == end);
    }
}

#[test]
fn demand_overtakes_a_long_line_of_guesses() {
    let source = Known::new(512 << 20);
    let pager = builder().budget_bytes(1 << 30).guess_requests_max(1).build().unwrap();
    let region = pager.open(source.clone()).unwrap();
    let gate = source.hold();
    region.advise(Hint::WillNeed(std::slice::from_ref(&(0..200 << 20)))).unwrap();
    until("the guesses run", || source.under_way() == 1);
    std::thread::scope(|scope| {
        // One that nobody guessed, and one at the end of the line.
        for at in [500 << 20, 199 << 20] {
            let region = &region;
            scope.spawn(move || assert_eq!(region.load(at..at + 1).unwrap()[0], byte_at(at)));
            until("it is asked for", || source.requests().iter().any(|asked| asked.contains(&at)));
        }
        assert_eq!(source.requests().len(), 3, "and the first guess is not answered yet");
        gate.add_permits(1000);
    });
}

#[test]
fn long_ranges_are_cut_where_the_source_likes() {
    // Blocks of 4 MiB, read from the middle of the first to the middle of the ninth.
    let block = 4 << 20;
    let source = Known::new(64 << 20);
    source.0.alignment.store(block, Ordering::SeqCst);
    let builder = builder().budget_bytes(256 << 20).prefetch(|| Box::new(NoPrefetch));
    let region = builder.build().unwrap().open(source.clone()).unwrap();
    drop(region.load(2 << 20..34 << 20).unwrap());
    let mut requests = source.requests();
    requests.sort_by_key(|range| range.start);
    assert!(requests.len() > 4, "{requests:?}");
    assert_eq!((requests[0].start, requests.last().unwrap().end), (2 << 20, 34 << 20));
    for pair in requests.windows(2) {
        assert_eq!(pair[0].end, pair[1].start);
        assert_eq!(pair[0].end % block, 0, "{requests:?}");
    }
}

/// The window of a descending reader was taken for read as soon as its first unit, the last in the
/// object, had been.
#[test]
fn a_descending_reader_confirms_what_it_has_passed() {
    if !can_fault() {
        return println!("left out: page faults: no userfaultfd");
    }
    let unit = 65_536;
    let source = Known::new(1000 * unit);
    let pager = builder().budget_bytes(256 << 20).build().unwrap();
    let options = RegionOptions::default();
    let options = options.prefetch(|| Box::new(pager::policy::Sequential::new()));
    let region = pager.open_with(source.clone(), options).unwrap();
    let mapped = region.map().unwrap();
    let touch = |n: u64| assert_eq!(mapped[(n * unit) as usize], byte_at(n * unit));
    let (mut asked, mut passed) = (0, 0);
    // Two misses bring 2 units, and the first of each window brings the next, twice as long.
    touch(999);
    touch(998);
    let mut next = 997;
    for len in [2, 4, 8, 16] {
        asked += len;
        until("the window has come", || {
            let stats = region.stats();
            let fetched = stats.bytes_fetched == (2 + asked) * unit;
            // A body goes when all of it is in place, and the marker is staged.
            let settled = source.under_way() == 0;
            stats.prefetched == asked && fetched && settled
        });
        touch(next);
        until("the next window is asked for", || region.stats().prefetched == asked + 2 * len);
        let stats = region.stats();
        assert_eq!(stats.prefetch_used, passed + 1, "of a window of {len} one is read: {stats:?}");
        (1..len).for_each(|n| touch(next - n));
        next -= len;
        passed += len;
    }
    assert_eq!(region.stats().faults, 2 + 4, "the markers, and nothing else");
}

// Readers that shared speculation's part took each other's units back before they were read, and
// fetched everything three to ten times.
#[test]
fn several_readers_fetch_each_byte_once() {
    if !can_fault() {
        return println!("left out: page faults: no userfaultfd");
    }
    let share = 16 << 20;
    for hint in [Hint::Normal, Hint::Sequential] {
        let pager = builder().budget_bytes(64 << 20).build().unwrap();
        let open = |_| {
            let source = Known::new(share).delay(Duration::from_millis(4));
            let region = pager.open(source).unwrap();
            region.advise(hint.clone()).unwrap();
            region
        };
        let regions: Vec<_> = (0..6).map(open).collect();
        std::thread::scope(|scope| {
            for region in &regions {
                scope.spawn(move || {
                    let mapped = region.map().unwrap();
                    for at in (0..share).step_by(4096) {
                        assert_eq!(mapped[at as usize], byte_at(at));
                    }
                });
            }
        });
        let fetched: u64 = regions.iter().map(|region| region.stats().bytes_fetched).sum();
        assert!(fetched <= 6 * share * 5 / 4, "{hint:?}: {} MiB", fetched >> 20);
    }
}

// The signal of a load that finds a guess in place was written down and never sent.
#[test]
fn a_load_of_what_was_guessed_tells_the_policy_once() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let policy = Told(seen.clone());
    let pager = builder()
        .budget_bytes(64 << 20)
        .prefetch(move || Box::new(policy.clone()))
        .build()
        .unwrap();
    let region = pager.open(Known::new(1 << 20)).unwrap();
    drop(region.load(0..1).unwrap());
    until("the guesses are there", || region.stats().units_resident == 4);
    for _ in 0..3 {
        // The unit that was missed is no guess, and a guess is one until it is asked for.
        drop(region.load(0..3 * 65_536).unwrap());
    }
    let expected = [(0, Signal::Miss), (1, Signal::Hit), (2, Signal::Hit)];
    until("the policy has heard", || seen.lock().unwrap().len() >= expected.len());
    // Whatever else was on its way is there before the answer to the next miss.
    drop(region.load(10 * 65_536..10 * 65_536 + 1).unwrap());
    until("the policy has heard of the miss", || seen.lock().unwrap().len() > expected.len());
    assert_eq!(seen.lock().unwrap()[..3], expected);
    assert_eq!(seen.lock().unwrap()[3..], [(10, Signal::Miss)]);
    assert_eq!(region.stats().prefetch_used, 2);
}

/// Who steps back within what is on its way came late for it, whether it waits on or not. That unit is no part
/// of the window any more, and counted as a miss: a stream was begun anew where one went on.
#[test]
fn who_steps_back_within_what_is_on_its_way_has_missed_nothing() {
    const UNIT: u64 = 65_536;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let policy = Told(seen.clone());
    let builder = Pager::builder().budget_bytes(64 << 20).unit_bytes(UNIT);
    let pager = builder.prefetch(move || Box::new(policy.clone())).build().unwrap();
    let source = Known::new(1 << 20);
    let region = pager.open(source.clone()).unwrap();
    let gate = source.hold();
    let asks = |unit: u64| {
        let mut load = Box::pin(region.load_async(unit * UNIT..unit * UNIT + 1));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(load.as_mut().poll(&mut context).is_pending(), "the source has not answered");
        load
    };
    let first = asks(0);
    until("the guesses are on their way, too", || source.under_way() == 2);
    // The end of the window, so that it is passed; then back to its begin, where a reader gives up.
    let waits = asks(3);
    until("the policy has heard", || seen.lock().unwrap().len() == 2);
    drop(asks(1));
    until("the policy has heard", || seen.lock().unwrap().len() == 3);
    gate.add_permits(3);
    drop((first, waits));
    assert_eq!(region.load(UNIT..UNIT + 1).unwrap()[0], byte_at(UNIT));
    drop(region.load(10 * UNIT..10 * UNIT + 1).unwrap());
    until("the policy has heard of the miss", || seen.lock().unwrap().len() > 3);
    let expected = [(0, Signal::Miss), (3, Signal::Late), (1, Signal::Late), (10, Signal::Miss)];
    assert_eq!(*seen.lock().unwrap(), expected);
    let mut requests = source.requests();
    requests.sort_by_key(|range| range.start);
    assert_eq!(requests, [0..UNIT, UNIT..4 * UNIT, 10 * UNIT..11 * UNIT]);
}

/// Wants three units behind the first miss, and remembers what it is told.
#[derive(Clone)]
struct Told(Arc<Mutex<Vec<(u64, Signal)>>>);

impl PrefetchPolicy for Told {
    fn demand(&mut self, at: u64, signal: Signal, _: &Limits, wants: &mut Vec<Want>) {
        self.0.lock().unwrap().push((at, signal));
        if at == 0 && signal == Signal::Miss {
            wants.push(Want::new(1..4));
        }
    }
    fn unused(&mut self, _: u64) {}
    fn advise(&mut self, _: &Advice, _: &Limits, _: &mut Vec<Want>) {}
}

/// Sends a unit of each answer, and the next when it is told to; remembers on which threads it ran.
struct Parts {
    known: Known,
    more: Arc<tokio::sync::Semaphore>,
    threads: Arc<Mutex<BTreeSet<String>>>,
}

impl Parts {
    fn here(threads: &Mutex<BTreeSet<String>>) {
        let name = std::thread::current().name().unwrap_or("nameless").to_owned();
        threads.lock().unwrap().insert(name);
    }
}

#[async_trait]
impl BlockSource for Parts {
    fn name(&self) -> &str {
        "test://parts"
    }
    async fn stat(&self) -> Result<ObjectStat, SourceError> {
        Parts::here(&self.threads);
        self.known.stat().await
    }
    async fn read(&self, version: &Version, range: Range<u64>) -> Result<ByteStream, SourceError> {
        drop(self.known.read(version, range.clone()).await?);
        Parts::here(&self.threads);
        let (more, threads) = (self.more.clone(), self.threads.clone());
        let parts = futures::stream::iter(range.clone().step_by(65_536)).then(move |start| {
            let (more, threads, end) = (more.clone(), threads.clone(), range.end);
            async move {
                more.acquire().await.expect("never closed").forget();
                Parts::here(&threads);
                Ok(Bytes::from(bytes_of(start..end.min(start + 65_536))))
            }
        });
        Ok(parts.boxed())
    }
}

/// Each part of an answer is there to be read as soon as it has come, by a load and by a touch; and
/// whoever asks, the source runs on the pager's own threads.
#[test]
fn parts_are_read_as_they_arrive() {
    let unit = 65_536;
    let (more, threads) = (Arc::new(tokio::sync::Semaphore::new(0)), Arc::default());
    let parts =
        Parts { known: Known::new(4 * unit), more: more.clone(), threads: Arc::clone(&threads) };
    let known = parts.known.clone();
    let builder = builder().budget_bytes(8 << 20).prefetch(|| Box::new(NoPrefetch));
    let pager = builder.build().unwrap();
    // Inside a runtime of the caller's, which must not be the one that the source runs on.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let region = runtime.block_on(pager.open_async(parts)).unwrap();
    let mapped = can_fault().then(|| region.map().unwrap());
    let whole = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let guard = region.load(0..4 * unit).unwrap();
            whole.store(true, Ordering::SeqCst);
            assert!(*guard == *bytes_of(0..4 * unit));
        });
        until("the request is out", || known.requests().len() == 1);
        for n in 0..4u64 {
            more.add_permits(1);
            let at = n * unit + 5;
            match &mapped {
                Some(mapped) if n % 2 == 1 => assert_eq!(mapped[at as usize], byte_at(at)),
                _ => assert_eq!(
                    runtime.block_on(region.load_async(at..at + 1)).unwrap()[0],
                    byte_at(at)
                ),
            }
            assert!(n == 3 || !whole.load(Ordering::SeqCst), "part {n} is not the whole");
        }
    });
    assert_eq!(known.requests().len(), 1, "one request for all of it");
    let threads: Vec<_> = threads.lock().unwrap().iter().cloned().collect();
    assert_eq!(threads, ["pager-io"]);
}

/// While a stream holds, its requests grow to what the source likes best.
#[test]
fn a_long_stream_asks_for_large_parts() {
    let len = 320 << 20;
    let source = Known::new(len);
    let pager = builder().budget_bytes(1 << 30).build().unwrap();
    let region = pager.open(source.clone()).unwrap();
    for at in (0..len).step_by(65_536) {
        assert_eq!(region.load(at..at + 1).unwrap()[0], byte_at(at));
    }
    let sizes: Vec<_> = source.requests().iter().map(|range| range.end - range.start).collect();
    assert_eq!(sizes[0], 65_536, "an isolated miss fetches one unit");
    let largest = sizes.into_iter().max().unwrap();
    assert!((8 << 20..=16 << 20).contains(&largest), "{largest} bytes at most");
}

/// Who asks for fewer requests got as many as before, again and again.
#[test]
fn a_source_that_asks_for_fewer_requests_gets_fewer_at_a_time() {
    const APART: u64 = 2 << 20;
    let builder = builder().budget_bytes(256 << 20).unit_bytes(4096);
    // A region has 12 of each.
    let builder = builder.demand_requests_max(16).guess_requests_max(16);
    let pager = builder.build().unwrap();
    let source = Known::new(100 * APART);
    let region = pager.open(source.clone()).unwrap();
    assert_eq!(region.stats().requests_allowed, 24);
    let gate = source.hold();
    let throttled = SourceError::Throttled {
        object: "test://known".to_owned(),
        what: "read",
        range: None,
        attempts: 1,
        retry_after: None,
        cause: None,
    };
    source.behave(Behaviour::Fail(throttled));
    let ranges: Vec<_> = (0..90).map(|n| n * APART..n * APART + 1).collect();
    region.advise(Hint::WillNeed(&ranges)).unwrap();
    // x 0.7 for each wave of them.
    for under_way in [12, 12, 11, 8, 5, 4, 4] {
        until("as many as may are under way", || source.under_way() == under_way);
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(source.under_way(), under_way, "and no more");
        let before = region.stats().throttled;
        gate.add_permits(under_way as usize);
        until("they are refused", || region.stats().throttled == before + under_way);
    }
    assert_eq!(region.stats().requests_allowed, 4);
    // A reader is served all the same, and so is what waits.
    source.behave(Behaviour::Serve);
    gate.add_permits(1000);
    let at = 95 * APART;
    assert_eq!(region.load(at..at + 1).unwrap()[0], byte_at(at));
    until("all is there", || region.stats().units_resident >= 34);
    let stats = region.stats();
    assert_eq!((stats.throttled, stats.errors), (56, 56), "{stats:?}");
}
