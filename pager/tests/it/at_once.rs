//! Sources that are read by one blocking call: a page fault waits for no more than that, and for what goes wrong
//! there is the other way.

use std::{
    ops::Range,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use pager::{
    BlockSource, ByteStream, Frame, Hint, ObjectStat, Pager, ReadAtOnce, Region, SourceError,
    Version, async_trait,
};

use crate::support::{
    Behaviour, Known, Random, builder, byte_at, bytes_of, can_fault, is_full, probe, until,
};

const UNIT: u64 = 4096;
/// Reads of this kind that a pager has under way at most.
const READS_MAX: u64 = 3;

/// What a blocking read does.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Does {
    Serve,
    Fail,
    Panic,
    /// Gives the frame back with a byte less than it should have.
    Short,
    /// Gives another frame back.
    Other,
    /// Waits until it does something else.
    Hang,
}

/// [`Known`], that is read by a blocking call as well.
#[derive(Clone)]
struct AtOnce {
    known: Known,
    does: Arc<(Mutex<Does>, Condvar)>,
    /// Blocking reads that began, and those that did not end.
    begun: Arc<AtomicU64>,
    waiting: Arc<AtomicU64>,
}

impl AtOnce {
    fn new(len: u64, does: Does) -> AtOnce {
        let does = Arc::new((Mutex::new(does), Condvar::new()));
        AtOnce { known: Known::new(len), does, begun: Arc::default(), waiting: Arc::default() }
    }

    fn begun(&self) -> u64 {
        self.begun.load(Ordering::SeqCst)
    }

    fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::SeqCst)
    }

    fn now(&self, does: Does) {
        *self.does.0.lock().unwrap() = does;
        self.does.1.notify_all();
    }
}

#[async_trait]
impl BlockSource for AtOnce {
    fn name(&self) -> &str {
        self.known.name()
    }

    async fn stat(&self) -> Result<ObjectStat, SourceError> {
        self.known.stat().await
    }

    async fn read(&self, version: &Version, range: Range<u64>) -> Result<ByteStream, SourceError> {
        self.known.read(version, range).await
    }

    fn at_once(&self) -> Option<&dyn ReadAtOnce> {
        Some(self)
    }
}

impl ReadAtOnce for AtOnce {
    fn read_at_once(
        &self,
        version: &Version,
        range: Range<u64>,
        mut frame: Frame,
    ) -> Result<Frame, SourceError> {
        assert_eq!(version.token(), "v1");
        self.begun.fetch_add(1, Ordering::SeqCst);
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let does = {
            let does = self.does.0.lock().unwrap();
            *self.does.1.wait_while(does, |does| *does == Does::Hang).unwrap()
        };
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        let mut bytes = bytes_of(range.clone());
        match does {
            Does::Serve => {}
            Does::Fail => {
                return Err(SourceError::transient_read("test://known", range, "reset", None));
            }
            Does::Panic => panic!("the test asked for it"),
            Does::Short => bytes.truncate(bytes.len() - 1),
            Does::Other => frame = Frame::with_capacity(UNIT as usize),
            Does::Hang => unreachable!("it waits for something else"),
        }
        frame.put(&bytes);
        Ok(frame)
    }
}

fn open(source: &AtOnce, budget: u64) -> (Pager, Region) {
    let pager = builder().unit_bytes(UNIT).budget_bytes(budget).build().unwrap();
    let region = pager.open(source.clone()).unwrap();
    region.advise(Hint::Random).unwrap();
    (pager, region)
}

#[test]
fn a_page_fault_is_one_blocking_read() {
    if !can_fault() {
        return println!("left out: page faults");
    }
    const LEN: u64 = 64 * UNIT + 100;
    let source = AtOnce::new(LEN, Does::Serve);
    let (_pager, region) = open(&source, 4 << 20);
    let mapped = region.map().unwrap();
    for (n, unit) in (0..=64).rev().enumerate() {
        let at = (unit * UNIT + 99).min(LEN - 1);
        assert_eq!(mapped[at as usize], byte_at(at), "unit {unit}");
        // Who touched a unit goes on when its pages are there, a moment before it is counted.
        until("it is counted", || region.stats().units_installed == n as u64 + 1);
        if n as u64 + 1 == READS_MAX {
            assert_eq!((source.begun(), source.known.requests().len()), (READS_MAX, 0));
        }
    }
    assert!(mapped[..] == bytes_of(0..LEN));
    let stats = region.stats();
    // Threads that have put a unit in place, and were held up since, are not there for the next one.
    let (begun, others) = (source.begun(), source.known.requests().len() as u64);
    assert!(begun + others == 65 && begun >= 33, "{begun} at once, {others} otherwise");
    assert_eq!((stats.gets, stats.bytes_fetched, stats.units_installed), (65, LEN, 65));
    assert_eq!((stats.errors, stats.faults), (0, 65));
    // `load` has no fault to answer, and asks by its own way.
    region.advise(Hint::DontNeed(0..UNIT)).unwrap();
    assert!(*region.load(0..UNIT).unwrap() == *bytes_of(0..UNIT));
    assert_eq!((source.begun(), source.known.requests().len() as u64), (begun, others + 1));
}

/// Threads fault on more than the budget holds, each unit again and again.
#[test]
fn many_readers_share_a_small_budget() {
    if !can_fault() {
        return println!("left out: page faults");
    }
    const UNITS: u64 = 256;
    let source = AtOnce::new(UNITS * UNIT, Does::Serve);
    let (pager, region) = open(&source, 64 * 2 * UNIT);
    let mapped = region.map().unwrap();
    std::thread::scope(|scope| {
        for seed in 0..6 {
            let (mapped, source) = (&mapped, &source);
            scope.spawn(move || {
                let mut random = Random(seed);
                for n in 0..2_000 {
                    // Now and then what fails is asked for by the other way.
                    if n % 200 == 0 {
                        source.now(if n % 400 == 0 { Does::Serve } else { Does::Fail });
                    }
                    let at = random.below(UNITS * UNIT);
                    assert_eq!(mapped[at as usize], byte_at(at), "at {at}");
                }
            });
        }
    });
    let stats = region.stats();
    assert!(source.begun() > 500, "few were read at once: {stats:?}");
    assert!(stats.units_evicted > 500, "the budget was too large: {stats:?}");
    assert!(pager.budget().peak() <= pager.budget().limit());
    drop(mapped);
    drop(region);
    until("everything comes back", || pager.pool().is_empty());
}

#[test]
fn what_goes_wrong_is_asked_for_by_the_other_way() {
    if !can_fault() {
        return println!("left out: page faults");
    }
    for does in [Does::Fail, Does::Panic, Does::Short, Does::Other] {
        let source = AtOnce::new(8 * UNIT, does);
        let (_pager, region) = open(&source, 4 << 20);
        let mapped = region.map().unwrap();
        for unit in [5, 2, 7] {
            let at = unit * UNIT;
            assert_eq!(mapped[at as usize], byte_at(at), "{does:?}: unit {unit}");
        }
        assert_eq!((source.begun(), source.known.requests().len()), (3, 3), "{does:?}");
        let errors = if does == Does::Panic { 0 } else { 3 };
        assert_eq!(region.stats().errors, errors, "{does:?}");
        // What cannot be had either way is an error of `load`, and its own.
        let refused = SourceError::Denied {
            object: "test://known".to_owned(),
            reason: "the test asked for it".to_owned(),
            cause: None,
        };
        source.known.behave(Behaviour::Fail(refused));
        assert!(region.load(0..1).is_err(), "{does:?}");
    }
}

/// Reads that do not end hold up neither their own readers for long nor anybody else.
#[test]
fn who_hangs_is_passed_by() {
    if !can_fault() {
        return println!("left out: page faults");
    }
    let source = AtOnce::new(64 * UNIT, Does::Hang);
    let (pager, region) = open(&source, 4 << 20);
    let mapped = region.map().unwrap();
    std::thread::scope(|scope| {
        for unit in 0..READS_MAX {
            let mapped = &mapped;
            scope.spawn(move || {
                let (at, start) = (unit * UNIT, Instant::now());
                assert_eq!(mapped[at as usize], byte_at(at));
                let took = start.elapsed();
                assert!(
                    took >= Duration::from_millis(100),
                    "the other way was in a hurry: {took:?}"
                );
            });
        }
        until("all hang that may", || source.waiting() == READS_MAX);
        // Nobody is left to read, but somebody to hear.
        for unit in 10..20 {
            let at = unit * UNIT;
            assert_eq!(mapped[at as usize], byte_at(at));
        }
        assert_eq!(source.begun(), READS_MAX);
    });
    // What is next to each other may be one request.
    let asked: u64 = source.known.requests().iter().map(|range| range.end - range.start).sum();
    assert_eq!(asked, (READS_MAX + 10) * UNIT);
    until("all are counted", || region.stats().units_resident == READS_MAX + 10);
    assert_eq!(region.stats().poisoned, 0);
    // They come too late, and others read again.
    source.now(Does::Serve);
    until("they end", || source.waiting() == 0);
    until("somebody is free", || {
        let at = (20 + source.known.requests().len() as u64) * UNIT;
        let before = source.begun();
        assert_eq!(mapped[at as usize], byte_at(at));
        source.begun() > before
    });
    assert!(pager.budget().peak() <= pager.budget().limit());

    // Nor do they hold up the end.
    source.now(Does::Hang);
    let mut unit = 63;
    until("one hangs", || {
        assert_eq!(mapped[(unit * UNIT) as usize], byte_at(unit * UNIT));
        unit -= 1;
        source.waiting() == 1
    });
    let (start, budget) = (Instant::now(), pager.budget().clone());
    drop(mapped);
    drop((region, pager));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert!(budget.used() > 0, "it has a frame");
    source.now(Does::Serve);
    until("it ends", || source.waiting() == 0);
    until("all that it held comes back", || budget.used() == 0);
}

/// With two frames for all, a read that does not end has one of them, and no more.
#[test]
fn who_hangs_leaves_a_frame() {
    if !can_fault() {
        return println!("left out: page faults");
    }
    const UNIT: u64 = 65536;
    let hung = AtOnce::new(8 * UNIT, Does::Hang);
    let pager = builder().unit_bytes(UNIT).budget_bytes(40 * UNIT).build().unwrap();
    let region = pager.open(hung.clone()).unwrap();
    region.advise(Hint::Random).unwrap();
    let mapped = region.map().unwrap();
    std::thread::scope(|scope| {
        for unit in 0..READS_MAX {
            let mapped = &mapped;
            scope.spawn(move || assert_eq!(mapped[(unit * UNIT) as usize], byte_at(unit * UNIT)));
        }
    });
    assert_eq!(hung.waiting(), 1, "the others found no frame");
    // Another region of this pager has the other one for its own.
    let other = pager.open(Known::new(8 * UNIT)).unwrap();
    assert!(*other.load(0..8 * UNIT).unwrap() == *bytes_of(0..8 * UNIT));
    hung.now(Does::Serve);
    until("it ends", || hung.waiting() == 0);
}

/// What cannot be had either way is poisoned, as by the other way alone, and heals.
#[test]
fn what_was_poisoned_heals() {
    if !is_full() || !probe().can_poison {
        return println!("left out: healing: needs full userfaultfd with poison");
    }
    let source = AtOnce::new(8 * UNIT, Does::Fail);
    let (_pager, region) = open(&source, 4 << 20);
    let mapped = region.map().unwrap();
    source.known.behave(Behaviour::Fail(SourceError::transient_read(
        "test://known",
        0..1,
        "reset",
        None,
    )));
    // A system call gets EFAULT where the program itself would get SIGBUS.
    let (_read, write) = nix::unistd::pipe().unwrap();
    let touch = || nix::unistd::write(&write, &mapped[5000..5001]);
    assert_eq!(touch(), Err(nix::errno::Errno::EFAULT));
    until("the poison is counted", || region.stats().poisoned == 1);
    assert_eq!((source.begun(), source.known.requests().len()), (1, 1));
    // The kernel keeps its mark until the unit is fetched, by a load here, which heals the touch as well.
    source.now(Does::Serve);
    source.known.behave(Behaviour::Serve);
    assert_eq!(region.load(5000..5001).unwrap()[0], byte_at(5000));
    assert_eq!((touch(), region.stats().healed), (Ok(1), 1));
    // Given up with its mark gone, it is read at once as any other.
    region.advise(Hint::DontNeed(0..8 * UNIT)).unwrap();
    assert_eq!((touch(), source.begun()), (Ok(1), 2));
}

/// Regions end while their units are read, by reads that take a while: nobody crashes, and everything comes back.
#[test]
fn regions_end_under_reads() {
    if !can_fault() {
        return println!("left out: page faults");
    }
    let pager = builder().unit_bytes(UNIT).budget_bytes(2 << 20).build().unwrap();
    let empty = || pager.pool().is_empty();
    std::thread::scope(|scope| {
        for seed in 0..3 {
            let pager = &pager;
            scope.spawn(move || {
                let mut random = Random(seed);
                for n in 0..40 {
                    let source = AtOnce::new(64 * UNIT, Does::Serve);
                    let region = pager.open(source.clone()).unwrap();
                    region.advise(Hint::Random).unwrap();
                    let mapped = region.map().unwrap();
                    for _ in 0..8 {
                        let at = random.below(64 * UNIT);
                        assert_eq!(mapped[at as usize], byte_at(at));
                    }
                    if n % 8 == 0 {
                        // One read more, which ends after its region: the other way has answered its fault.
                        source.now(Does::Hang);
                        assert_eq!(mapped[100], byte_at(100));
                        drop((mapped, region));
                        source.now(if n % 16 == 0 { Does::Serve } else { Does::Panic });
                    }
                }
            });
        }
    });
    until("everything comes back", empty);
    until("nothing is reserved but for frames", || pager.budget().pinned() == 0);
    let stays = pager.budget().clone();
    drop(pager);
    until("the frames, too", || stays.used() == 0);
}

#[test]
fn who_wants_few_requests_has_no_more() {
    if !can_fault() {
        return println!("left out: page faults");
    }
    let source = AtOnce::new(8 * UNIT, Does::Serve);
    let pager = builder().unit_bytes(UNIT).budget_bytes(4 << 20).demand_requests_max(3);
    let region = pager.build().unwrap().open(source.clone()).unwrap();
    region.advise(Hint::Random).unwrap();
    let mapped = region.map().unwrap();
    assert_eq!(mapped[5 * UNIT as usize], byte_at(5 * UNIT));
    assert_eq!((source.begun(), source.known.requests().len()), (0, 1));
}

/// Who reads in order, or has not said, is fetched ahead, which a read of one unit would only overtake.
#[test]
fn a_stream_is_the_engines() {
    if !can_fault() {
        return println!("left out: page faults");
    }
    const UNITS: u64 = 512;
    let source = AtOnce::new(UNITS * UNIT, Does::Serve);
    let (_pager, region) = open(&source, 8 << 20);
    let mapped = region.map().unwrap();
    assert_eq!(mapped[100 * UNIT as usize], byte_at(100 * UNIT));
    assert_eq!(source.begun(), 1);
    for (hint, first) in [(Hint::Sequential, 200), (Hint::Normal, 350)] {
        region.advise(Hint::Random).unwrap();
        region.advise(hint.clone()).unwrap();
        for unit in first..first + 100 {
            let at = unit * UNIT;
            assert_eq!(mapped[at as usize], byte_at(at), "{hint:?}");
        }
        assert_eq!(source.begun(), 1, "{hint:?}");
    }
    assert!(region.stats().prefetched > 50, "{:?}", region.stats());
}
