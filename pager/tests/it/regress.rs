//! What once broke, named for what broke.
use crate::support::*;
use futures::StreamExt;
use pager::{
    BlockSource, Budget, ByteStream, Bytes, Error, Frame, Hint, Mechanism, ObjectStat,
    RegionOptions, SourceError, Version, async_trait,
    policy::{NoPrefetch, prefetch::*},
    pool::Pages,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::sync::Semaphore;

/// What only a failure waits for: a machine that stands still for a second is none.
const NEVER: Duration = Duration::from_secs(10);

// Pins counted the unit alone, which costs twice that with its page table: "half" was the whole.
#[test]
fn pins_leave_half_of_the_budget_to_others() {
    let pager = builder()
        .unit_bytes(4096)
        .budget_bytes(1 << 20)
        .deadline(NEVER)
        .prefetch(|| Box::new(NoPrefetch))
        .build()
        .unwrap();
    let region = pager.open(Known::new(1 << 30)).unwrap();
    let mut guards = vec![];
    for n in 0..256u64 {
        match region.load(n * (2 << 20)..n * (2 << 20) + 1) {
            Ok(guard) => guards.push(guard),
            Err(Error::PinLimit { .. }) => break,
            Err(other) => panic!("after {} guards, {:?}: {other}", guards.len(), pager.budget()),
        }
    }
    assert!(
        pager.budget().used() <= pager.budget().limit() / 2 + (1 << 18),
        "{:?}",
        pager.budget()
    );
}

// The same for guesses and their quarter.
#[test]
fn guesses_cost_at_most_a_quarter() {
    let source = Known::new(1 << 30);
    let pager = builder().unit_bytes(4096).budget_bytes(4 << 20).build().unwrap();
    let region = pager.open(source.clone()).unwrap();
    source.behave(Behaviour::Hang);
    let ranges: Vec<_> = (0..500u64).map(|n| n * (2 << 20)..n * (2 << 20) + (64 << 10)).collect();
    region.advise(Hint::WillNeed(&ranges)).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(pager.budget().used() <= (4 << 20) / 4 + (1 << 18), "{:?}", pager.budget());
}

// Eight unpinned pages of an eighth of the budget were all protected: nothing could move.
#[test]
fn unpinned_pages_give_way_to_a_region() {
    let pager = builder().budget_bytes(8 << 20).deadline(NEVER).build().unwrap();
    let region = pager.open(Known::new(32 << 20)).unwrap();
    let pages: Pages<u64, u8> = Pages::new(pager.pool()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for n in 0..8u64 {
        let page = pages.get(&n, 1 << 20, async { Ok::<_, std::convert::Infallible>(1) });
        drop(runtime.block_on(page).unwrap());
    }
    assert_eq!(pager.budget().pinned(), 0);
    assert_eq!(
        region.load(0..1).map(|g| g[0]).map_err(|e| format!("{e} {:?}", pager.budget())),
        Ok(byte_at(0))
    );
}

// Five pagers under one budget, nothing pinned, protected eight units each.
#[test]
fn five_pagers_share_the_smallest_budget() {
    let budget = Budget::new(32 * 8192 + 4 * 4096);
    let mut all = vec![];
    for n in 0..5u64 {
        let pager = builder()
            .unit_bytes(4096)
            .budget(&budget)
            .prefetch(|| Box::new(NoPrefetch))
            .deadline(NEVER)
            .build()
            .unwrap();
        let region = pager.open(Known::new(64 << 20)).unwrap();
        for at in (0..20u64).map(|n| n * (2 << 20)) {
            let got = region
                .load(at..at + 1)
                .map(|g| g[0])
                .map_err(|e| format!("pager {n}: {e}, {budget:?}"));
            assert_eq!(got, Ok(byte_at(at)));
        }
        all.push(region);
    }
}

// Idle frames were never given back.
#[test]
fn idle_frames_give_way() {
    let budget = Budget::new(8 << 20);
    let mut all = vec![];
    for _ in 0..12 {
        let pager = builder().budget(&budget).prefetch(|| Box::new(NoPrefetch)).build().unwrap();
        let source = Known::new(64 << 20);
        let region = pager.open(source.delay(Duration::from_millis(20))).unwrap();
        std::thread::scope(|scope| {
            for n in 0..8u64 {
                let region = &region;
                scope.spawn(move || drop(region.load(n * (4 << 20)..n * (4 << 20) + 1).unwrap()));
            }
        });
        region.advise(Hint::DontNeed(0..64 << 20)).unwrap();
        all.push(region);
    }
    // Nothing is resident, in flight or pinned.
    let pool = pager::pool::Pool::new(&budget, Box::new(pager::policy::Clock::default()));
    assert!(pool.reserve(4 << 20).is_some(), "{budget:?}");
}

// One page alive kept all values of a dropped set reserved, out of everybody's reach.
#[test]
fn a_page_that_outlives_its_pool_keeps_itself_only() {
    let budget = Budget::new(100);
    let pool = pager::pool::Pool::new(&budget, Box::new(pager::policy::Clock::default()));
    let pages: Pages<u64, u8> = Pages::new(&pool).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut held = None;
    for n in 0..9u64 {
        held = Some(
            runtime
                .block_on(pages.get(&n, 10, async { Ok::<_, std::convert::Infallible>(1) }))
                .unwrap(),
        );
    }
    drop(pages);
    assert!(pool.reserve(50).is_some(), "{budget:?}");
    drop(held);
}

// A policy that panics must not leave readers waiting: the process ends with the cause.
struct Panics;
impl PrefetchPolicy for Panics {
    fn demand(&mut self, _: u64, _: Signal, _: &Limits, _: &mut Vec<Want>) {
        panic!("policy")
    }
    fn unused(&mut self, _: u64) {}
    fn advise(&mut self, _: &Advice, _: &Limits, _: &mut Vec<Want>) {}
}
#[test]
fn a_policy_that_panics_does_not_hang_readers() {
    const TEST: &str = "regress::a_policy_that_panics_does_not_hang_readers";
    let judge = |output: std::process::Output| {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && !text.contains("hangs"), "{text}");
    };
    if alone(TEST, judge) {
        let pager = builder().budget_bytes(8 << 20).build().unwrap();
        let region = pager
            .open_with(Known::new(1 << 20), RegionOptions::default().prefetch(|| Box::new(Panics)))
            .unwrap();
        let other = pager.open(Known::new(1 << 20)).unwrap();
        std::thread::spawn(move || drop(region.load(0..1)));
        std::thread::spawn(move || {
            let mapped = other.map().unwrap();
            loop {
                std::hint::black_box(mapped[5]);
                other.advise(Hint::DontNeed(0..1 << 20)).unwrap();
            }
        });
        // The process ends long before that, and does not wait for it.
        std::thread::sleep(Duration::from_secs(60));
        eprintln!("hangs");
        std::process::exit(1);
    }
}

#[test]
fn an_object_of_all_bytes_is_refused() {
    for len in [1 << 62, 1 << 63, u64::MAX - 70_000, u64::MAX] {
        for unit in [4096, 65536, 2 << 20] {
            let pager = builder().unit_bytes(unit).budget_bytes(80 << 20).build().unwrap();
            assert!(pager.open(Known::new(len)).is_err(), "{len} {unit}");
        }
    }
}

// State words stayed behind, outside the budget.
#[test]
fn touches_all_over_a_tebibyte_stay_within_the_budget() {
    const TEST: &str = "regress::touches_all_over_a_tebibyte_stay_within_the_budget";
    if !alone(TEST, passed) {
        return;
    }
    let memory = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        ["RssAnon:", "VmPTE:"]
            .iter()
            .map(|key| {
                status
                    .lines()
                    .find(|l| l.starts_with(key))
                    .unwrap()
                    .split_whitespace()
                    .nth(1)
                    .unwrap()
                    .parse::<u64>()
                    .unwrap()
            })
            .sum::<u64>()
            << 10
    };
    let before = memory();
    let pager = builder().unit_bytes(4096).budget_bytes(8 << 20).build().unwrap();
    let region = pager.open(Known::new(1 << 40)).unwrap();
    for n in 0..20_000u64 {
        let at = n * (4 << 20);
        assert_eq!(region.load(at..at + 1).unwrap()[0], byte_at(at));
    }
    let most = memory() - before;
    assert!(most <= (8 << 20) + (32 << 20), "{} MiB", most >> 20);
}

#[test]
fn a_slow_load_that_goes_on_is_not_late() {
    let source = Known::new(64 << 20);
    let pager = builder()
        .budget_bytes(32 << 20)
        .deadline(Duration::from_millis(200))
        .demand_requests_max(1)
        .prefetch(|| Box::new(NoPrefetch))
        .build()
        .unwrap();
    source.0.frames.store(true, std::sync::atomic::Ordering::SeqCst);
    let region = pager.open(source.delay(Duration::from_millis(50))).unwrap();
    let got = region.load(0..40 * 65536).map(|g| g.len()).map_err(|e| e.to_string());
    assert_eq!(got, Ok(40 * 65536));
}

// The front of a queued guess that was cut in the middle was nobody's.
#[test]
fn demand_overtakes_the_front_of_a_guess_that_was_cut() {
    let source = Known::new(512 << 20);
    let pager =
        builder().budget_bytes(1 << 30).guess_requests_max(1).deadline(NEVER).build().unwrap();
    let region = pager.open(source.clone()).unwrap();
    source.behave(Behaviour::Hang);
    region.advise(Hint::WillNeed(&[400 << 20..(400 << 20) + 1, 0..16 * 65536])).unwrap();
    until("the guess runs", || !source.requests().is_empty());
    source.behave(Behaviour::Serve);
    assert_eq!(region.load(10 * 65536..10 * 65536 + 1).unwrap()[0], byte_at(10 * 65536));
    assert_eq!(region.load(0..1).unwrap()[0], byte_at(0));
    // What waits for the guess goes on when that has failed.
    assert_eq!(region.stats().errors, 0, "the guess is under way still");
}

// A source that hangs held all frames, and other regions waited for it.
#[test]
fn a_source_that_hangs_does_not_stop_other_regions() {
    let pager = builder()
        .unit_bytes(4096)
        .budget_bytes(32 * 8192 + 4 * 4096)
        .prefetch(|| Box::new(NoPrefetch))
        .build()
        .unwrap();
    let bad = Known::new(1 << 20);
    let (a, b) = (
        pager.open(bad.clone()).unwrap(),
        pager.open_with(Known::new(1 << 20), RegionOptions::default().unit_bytes(4096)).unwrap(),
    );
    let gate = bad.hold();
    std::thread::scope(|scope| {
        for n in 0..5u64 {
            let a = &a;
            scope.spawn(move || a.load(n * 100_000..n * 100_000 + 1).unwrap()[0]);
        }
        until("all wait", || a.stats().loads == 5);
        b.load(0..1).unwrap();
        assert_eq!(a.stats().bytes_fetched, 0, "nothing was answered in the meantime");
        gate.add_permits(5);
    });
}

#[test]
fn locked_memory_is_evicted() {
    const TEST: &str = "regress::locked_memory_is_evicted";
    if !alone(TEST, passed) {
        return;
    }
    let pager = builder().unit_bytes(4096).budget_bytes(1 << 20).build().unwrap();
    let region = pager.open(Known::new(4 << 20)).unwrap();
    let guard = region.load(0..4096).unwrap();
    // SAFETY: the page is mapped as long as the guard lives.
    assert_eq!(unsafe { nix::libc::mlock(guard.as_ptr().cast(), 4096) }, 0);
    drop(guard);
    region.advise(Hint::DontNeed(0..4096)).unwrap();
}

// Where a program locks its future memory, a new range came filled with zeros, and readers took them
// for the object's bytes.
#[test]
fn a_program_that_locks_its_memory_reads_no_zeros() {
    const TEST: &str = "regress::a_program_that_locks_its_memory_reads_no_zeros";
    if !alone(TEST, passed) {
        return;
    }
    use nix::libc::{MCL_CURRENT, MCL_FUTURE};
    // SAFETY: changes whether memory may be swapped, and no bytes of it.
    if unsafe { nix::libc::mlockall(MCL_CURRENT | MCL_FUTURE) } != 0 {
        return println!("left out: locked memory: {}", std::io::Error::last_os_error());
    }
    for unit in [4096, 65536, 2 << 20] {
        let builder = builder().unit_bytes(unit).budget_bytes(40 * (unit + 4096));
        let opened = builder.build().and_then(|pager| pager.open(Known::new((1 << 30) + 1)));
        let region = match opened {
            Ok(region) => region,
            // An ordinary user may lock little, and hears of it.
            Err(error) => {
                let mut text = error.to_string();
                let mut cause = std::error::Error::source(&error);
                while let Some(error) = cause {
                    text = format!("{text}: {error}");
                    cause = error.source();
                }
                assert!(text.contains("RLIMIT_MEMLOCK"), "{text}");
                return println!("left out: locked memory: {text}");
            }
        };
        assert_eq!(region.stats().bytes_fetched, 0, "unit {unit}");
        for at in (0..1 << 30).step_by(33_333_333) {
            if can_fault() {
                assert_eq!(region.map().unwrap()[at as usize], byte_at(at), "unit {unit}");
            }
            assert_eq!(region.load(at + 1..at + 2).unwrap()[0], byte_at(at + 1), "unit {unit}");
        }
        assert!(region.stats().bytes_fetched < 1 << 28, "unit {unit}: {:?}", region.stats());
    }
}

// A burst of demand threw guesses away though the budget was empty.
#[test]
fn a_burst_of_demand_keeps_the_guesses() {
    let source = Known::new(256 << 20);
    let pager = builder().budget_bytes(64 << 20).build().unwrap();
    let region = pager.open(source.clone()).unwrap();
    let guesses: Vec<_> = (0..40u64).map(|n| n * (1 << 20)..n * (1 << 20) + 1).collect();
    region.advise(Hint::WillNeed(&guesses)).unwrap();
    until("guessed", || region.stats().bytes_fetched == 40 * 65_536 && source.under_way() == 0);
    region.advise(Hint::Random).unwrap();
    source.delay(Duration::from_millis(50));
    let small = Arc::new(region.clone());
    std::thread::scope(|scope| {
        for n in 0..80u64 {
            let region = &small;
            scope.spawn(move || {
                drop(
                    region
                        .load((100 << 20) + n * (1 << 20)..(100 << 20) + n * (1 << 20) + 1)
                        .map_err(|e| println!("{e}")),
                )
            });
        }
    });
    assert_eq!(region.stats().prefetch_unused, 0, "{:?} {:?}", region.stats(), pager.budget());
}

// The share of guesses must come back after more hints than it has room for.
#[test]
fn speculation_comes_back_after_too_many_hints() {
    let pager = builder().budget_bytes(64 << 20).build().unwrap();
    let a = pager.open(Known::new(40 << 20)).unwrap();
    let hints: Vec<_> = (0..300u64).map(|n| n * 2 * 65536..n * 2 * 65536 + 1).collect();
    a.advise(Hint::WillNeed(&hints)).unwrap();
    until("as many as have room are there", || {
        let stats = a.stats();
        stats.prefetched > 0 && stats.bytes_fetched == stats.prefetched * 65_536
    });
    let mapped = a.map().unwrap();
    for h in &hints {
        assert_eq!(mapped[h.start as usize], byte_at(h.start));
    }
    let b = pager.open(Known::new(8 << 20)).unwrap();
    let m = b.map().unwrap();
    for at in (0..8 << 20).step_by(65536) {
        assert_eq!(m[at], byte_at(at as u64));
    }
    assert!(b.stats().prefetched > 0, "{:?} {:?}", b.stats(), pager.budget());
}

// The pager's threads took every signal of the process: a handler that touched a map could wait for
// the thread that it interrupted.
#[test]
fn signals_do_not_run_on_the_pagers_threads() {
    const TEST: &str = "regress::signals_do_not_run_on_the_pagers_threads";
    if !alone(TEST, passed) {
        return;
    }
    let pager = builder().budget_bytes(8 << 20).build().unwrap();
    let region = pager.open(Known::new(32 << 20)).unwrap();
    assert_eq!(region.load(0..1).unwrap()[0], byte_at(0));
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let path = task.unwrap().path();
        let name = std::fs::read_to_string(path.join("comm")).unwrap();
        if name.starts_with("pager") {
            let status = std::fs::read_to_string(path.join("status")).unwrap();
            let blocked = status.lines().find(|l| l.starts_with("SigBlk")).unwrap().to_owned();
            assert!(!blocked.ends_with("0000000000000000"), "{} takes every signal", name.trim());
        }
    }
}

// A region took all requests that may be under way for readers, and when its source did not answer,
// every other region waited for its deadline.
#[test]
fn a_region_never_takes_every_lane() {
    let builder = builder().demand_requests_max(8).prefetch(|| Box::new(NoPrefetch));
    let pager = builder.budget_bytes(64 << 20).build().unwrap();
    let bad = Known::new(64 << 20);
    let (a, b) = (pager.open(bad.clone()).unwrap(), pager.open(Known::new(1 << 20)).unwrap());
    let gate = bad.hold();
    std::thread::scope(|scope| {
        for n in 0..16u64 {
            let a = &a;
            scope.spawn(move || drop(a.load(n << 21..(n << 21) + 1).unwrap()));
        }
        until("the lanes that it may have are taken", || bad.under_way() == 6);
        assert_eq!(b.load(0..1).unwrap()[0], byte_at(0));
        assert_eq!(a.stats().bytes_fetched, 0, "nothing was answered in the meantime");
        gate.add_permits(16);
    });
}

/// Gives back frames of its own.
struct OwnFrames(Known);

#[async_trait]
impl BlockSource for OwnFrames {
    fn name(&self) -> &str {
        self.0.name()
    }
    async fn stat(&self) -> Result<ObjectStat, SourceError> {
        self.0.stat().await
    }
    async fn read(
        &self,
        version: &Version,
        range: std::ops::Range<u64>,
    ) -> Result<ByteStream, SourceError> {
        self.0.read(version, range).await
    }
    async fn read_into(
        &self,
        version: &Version,
        range: std::ops::Range<u64>,
        frame: Frame,
    ) -> Result<Frame, SourceError> {
        let own = Frame::with_capacity(frame.capacity());
        self.0.read_into(version, range, own).await
    }
    fn fills_frames(&self) -> bool {
        true
    }
}

// Where units are moved, each frame of the source's own took the bytes of a unit that was still to
// come, which then waited for ever.
#[test]
fn a_source_that_fills_other_frames_is_told() {
    let mut mechanisms = vec![None];
    if can_fault() && probe().can_move {
        mechanisms.push(Some(Mechanism::Move));
    }
    for mechanism in mechanisms {
        let mut builder = builder().budget_bytes(16 << 20).prefetch(|| Box::new(NoPrefetch));
        if let Some(mechanism) = mechanism {
            builder = builder.mechanism(mechanism);
        }
        let region = builder.build().unwrap().open(OwnFrames(Known::new(4 << 20))).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let load = async {
            let load = region.load_async(0..8 * 65_536);
            tokio::time::timeout(Duration::from_secs(10), load).await.map(|load| load.map(drop))
        };
        let error = runtime.block_on(load).expect("never waits for ever").unwrap_err();
        assert!(error.to_string().contains("another frame"), "{mechanism:?}: {error}");
    }
}

// The kernel touches all memory that it locks, and nobody answered for frames without pages.
#[test]
fn all_memory_can_be_locked_while_regions_are_open() {
    const TEST: &str = "regress::all_memory_can_be_locked_while_regions_are_open";
    if !can_fault() {
        return println!("left out: mapping: no userfaultfd");
    }
    if !alone(TEST, passed) {
        return;
    }
    for unit in [65_536, 2 << 20] {
        let pager = builder().unit_bytes(unit).budget_bytes(80 << 20).build().unwrap();
        let region = pager.open(Known::new(8 << 20)).unwrap();
        let load = |n: u64| {
            let at = n * unit + 7;
            assert_eq!(region.load(at..at + 1).unwrap()[0], byte_at(at), "unit {unit}");
        };
        load(0);
        let (done, locked) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            // SAFETY: changes whether memory may be swapped, and no bytes of it.
            let outcome = unsafe { nix::libc::mlockall(nix::libc::MCL_CURRENT) };
            let _ = done.send((outcome, std::io::Error::last_os_error()));
        });
        let (outcome, error) = locked
            .recv_timeout(Duration::from_secs(20))
            .unwrap_or_else(|_| panic!("unit {unit}: mlockall waits for ever"));
        if outcome != 0 {
            return println!("left out: locked memory: {error}");
        }
        let used = pager.budget().used();
        assert!(used <= pager.budget().limit(), "unit {unit}: {used}");
        // Slots that the kernel has touched can still be used, all of them.
        for _ in 0..2 {
            region.advise(Hint::DontNeed(0..8 << 20)).unwrap();
            use_idle_frames(&pager);
            (0..(8 << 20) / unit).for_each(load);
        }
        // SAFETY: as above.
        assert_eq!(unsafe { nix::libc::munlockall() }, 0);
    }
}

/// Bodies that need the one turn: that of the first unit to be opened, all others for their second
/// part.
struct Turns {
    known: Known,
    turns: Arc<Semaphore>,
    /// The first unit is answered when there is a permit.
    first: Semaphore,
    waiting: Arc<AtomicU64>,
}

#[async_trait]
impl BlockSource for Turns {
    fn name(&self) -> &str {
        self.known.name()
    }
    async fn stat(&self) -> Result<ObjectStat, SourceError> {
        self.known.stat().await
    }
    async fn read(
        &self,
        version: &Version,
        range: std::ops::Range<u64>,
    ) -> Result<ByteStream, SourceError> {
        if range.start == 0 {
            let turn = self.turns.clone().acquire_owned().await.unwrap();
            drop(self.first.acquire().await.unwrap());
            let body = self.known.read(version, range).await?;
            let body = body.inspect(move |_| {
                let _while_streaming = &turn;
            });
            return Ok(body.boxed());
        }
        let (turns, waiting) = (self.turns.clone(), self.waiting.clone());
        let middle = range.start + 1000;
        let begin = self.known.read(version, range.start..middle).await?;
        let rest = self.known.read(version, middle..range.end).await?;
        let turn = futures::stream::once(async move {
            waiting.fetch_add(1, SeqCst);
            drop(turns.acquire().await.unwrap());
            Ok(Bytes::new())
        });
        Ok(begin.chain(turn).chain(rest).boxed())
    }
}

// A body that waited for a frame kept its turn at a limit, and those that had the frames waited for a
// turn: all of them failed at the deadline, though the source was well.
#[test]
fn a_body_that_waits_for_a_frame_holds_nobody_up() {
    const UNIT: u64 = 65_536;
    const FRAMES: u64 = 3;
    let known = Known::new(32 * UNIT);
    let source = Arc::new(Turns {
        known: known.clone(),
        turns: Arc::new(Semaphore::new(1)),
        first: Semaphore::new(0),
        waiting: Arc::default(),
    });
    let pager = builder()
        .mechanism(copying())
        .unit_bytes(UNIT)
        .budget_bytes(FRAMES * 16 * UNIT)
        .deadline(Duration::from_secs(20))
        .prefetch(|| Box::new(NoPrefetch))
        .build()
        .unwrap();
    let region = pager.open(source.clone()).unwrap();
    let load = &|units: std::ops::Range<u64>| {
        let range = units.start * UNIT..units.end * UNIT;
        let guard = region.load(range.clone()).unwrap_or_else(|error| panic!("{units:?}: {error}"));
        assert!(*guard == *bytes_of(range), "units {units:?}");
    };
    std::thread::scope(|scope| {
        scope.spawn(|| load(0..4));
        until("the first has the turn", || source.turns.available_permits() == 0);
        for n in 1..=FRAMES {
            scope.spawn(move || load(n * 5..n * 5 + 1));
        }
        until("the others have all frames", || source.waiting.load(SeqCst) == FRAMES);
        source.first.add_permits(1);
    });
    let requests = known.requests();
    let first: Vec<u64> = requests.iter().filter(|r| r.start == 0).map(|r| r.end / UNIT).collect();
    assert_eq!(first, [4, 1], "its body was let go, and asked for anew, one unit at first");
}
