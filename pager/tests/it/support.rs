//! A source whose bytes are known and whose behaviour a test chooses.

use std::{
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::StreamExt;
use pager::{
    BlockSource, Builder, ByteStream, Bytes, Hint, Mechanism, Mode, ModeRequest, ObjectStat, Pager,
    Probe, Region, SourceError, Version, async_trait,
};
use tokio::sync::Semaphore;

/// The byte at `at` of every test object.
pub(crate) fn byte_at(at: u64) -> u8 {
    // Not periodic in any power of two, so that bytes of the wrong unit show.
    (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8
}

pub(crate) fn bytes_of(range: Range<u64>) -> Vec<u8> {
    range.map(byte_at).collect()
}

/// What a read of the source does.
#[derive(Clone, Debug)]
pub(crate) enum Behaviour {
    Serve,
    Fail(SourceError),
    /// Sends this many bytes, then ends the stream.
    Truncate(u64),
    /// Sends this many bytes after those that were asked for, in a chunk of their own.
    Excess(usize),
    /// Sends what was asked for, then neither more nor an end.
    NoEnd,
    /// Sends chunks without a byte in them, as fast as they are taken, for ever.
    Empty,
    /// Never answers.
    Hang,
    /// Blocks the thread of the runtime until the lock is free, then serves.
    Block(Arc<Mutex<()>>),
    Panic,
}

pub(crate) struct Inner {
    pub(crate) len: u64,
    pub(crate) version: Version,
    pub(crate) delay: Mutex<Duration>,
    pub(crate) behaviour: Mutex<Behaviour>,
    pub(crate) requests: Mutex<Vec<Range<u64>>>,
    pub(crate) in_flight: AtomicU64,
    pub(crate) frames: AtomicBool,
    pub(crate) alignment: AtomicU64,
    /// What reads wait at, where they are held.
    pub(crate) gate: Mutex<Option<Arc<Semaphore>>>,
}

/// A source of `byte_at`.
#[derive(Clone)]
pub(crate) struct Known(pub Arc<Inner>);

impl Known {
    pub(crate) fn new(len: u64) -> Known {
        Known::with_version(len, Version::strong("v1"))
    }

    pub(crate) fn with_version(len: u64, version: Version) -> Known {
        Known(Arc::new(Inner {
            len,
            version,
            delay: Mutex::default(),
            behaviour: Mutex::new(Behaviour::Serve),
            requests: Mutex::default(),
            in_flight: AtomicU64::new(0),
            frames: AtomicBool::new(false),
            alignment: AtomicU64::new(1),
            gate: Mutex::default(),
        }))
    }

    pub(crate) fn behave(&self, behaviour: Behaviour) {
        *self.0.behaviour.lock().unwrap() = behaviour;
    }

    pub(crate) fn delay(&self, delay: Duration) -> Known {
        *self.0.delay.lock().unwrap() = delay;
        self.clone()
    }

    /// From now on a read is answered when it is given a permit of what this returns.
    pub(crate) fn hold(&self) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        *self.0.gate.lock().unwrap() = Some(gate.clone());
        gate
    }

    /// Requests that are not over.
    pub(crate) fn under_way(&self) -> u64 {
        self.0.in_flight.load(Ordering::SeqCst)
    }

    pub(crate) fn requests(&self) -> Vec<Range<u64>> {
        self.0.requests.lock().unwrap().clone()
    }
}

/// Counts a request as long as it lives.
struct Flight(Arc<Inner>);

impl Flight {
    fn start(inner: &Arc<Inner>) -> Flight {
        inner.in_flight.fetch_add(1, Ordering::SeqCst);
        Flight(inner.clone())
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl BlockSource for Known {
    fn name(&self) -> &str {
        "test://known"
    }

    async fn stat(&self) -> Result<ObjectStat, SourceError> {
        let behaviour = self.0.behaviour.lock().unwrap().clone();
        match behaviour {
            Behaviour::Hang => std::future::pending().await,
            Behaviour::Panic => panic!("the test asked for it"),
            Behaviour::Fail(error) => Err(error),
            _ => {
                let mut stat = ObjectStat::new(self.0.len, self.0.version.clone());
                // As it is, 0 too.
                stat.alignment = self.0.alignment.load(Ordering::SeqCst);
                Ok(stat)
            }
        }
    }

    async fn read(&self, version: &Version, range: Range<u64>) -> Result<ByteStream, SourceError> {
        assert!(range.start < range.end && range.end <= self.0.len, "a range inside the object");
        assert_eq!(*version, self.0.version);
        self.0.requests.lock().unwrap().push(range.clone());
        let flight = Flight::start(&self.0);
        let delay = *self.0.delay.lock().unwrap();
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let gate = self.0.gate.lock().unwrap().clone();
        if let Some(gate) = gate {
            gate.acquire().await.unwrap().forget();
        }
        let behaviour = self.0.behaviour.lock().unwrap().clone();
        if let Behaviour::Block(gate) = &behaviour {
            drop(gate.lock().unwrap());
        }
        let end = match behaviour.clone() {
            Behaviour::Serve | Behaviour::Block(_) | Behaviour::Excess(_) | Behaviour::NoEnd => {
                range.end
            }
            Behaviour::Empty => {
                return Ok(futures::stream::repeat_with(|| Ok(Bytes::new())).boxed());
            }
            Behaviour::Fail(error) => return Err(error),
            Behaviour::Truncate(n) => range.end.min(range.start + n),
            Behaviour::Hang => std::future::pending().await,
            Behaviour::Panic => panic!("the test asked for it"),
        };
        // Chunks of an odd size, so that units and chunks never line up.
        let chunks = (range.start..end).step_by(10_007).map(move |start| {
            let _while_streaming = &flight;
            Ok(Bytes::from(bytes_of(start..end.min(start + 10_007))))
        });
        let body = futures::stream::iter(chunks);
        Ok(match behaviour {
            // An empty chunk before the others hides nothing.
            Behaviour::Excess(n) => {
                let more = [Ok(Bytes::new()), Ok(Bytes::from(vec![0xEE; n]))];
                body.chain(futures::stream::iter(more)).boxed()
            }
            Behaviour::NoEnd => body.chain(futures::stream::pending()).boxed(),
            _ => body.boxed(),
        })
    }

    fn fills_frames(&self) -> bool {
        self.0.frames.load(Ordering::SeqCst)
    }
}

/// Whether these tests run as on a machine without userfaultfd, by SIGSEGV: `PAGER_TEST_MODE=signals`.
pub(crate) fn by_signals() -> bool {
    std::env::var("PAGER_TEST_MODE").is_ok_and(|mode| mode == "signals")
}

/// What the tests build their pagers with.
pub(crate) fn builder() -> Builder {
    match by_signals() {
        true => Pager::builder().mode(ModeRequest::Signals),
        false => Pager::builder(),
    }
}

/// What such a pager finds.
pub(crate) fn probe() -> Probe {
    match by_signals() {
        true => builder().build().unwrap().probed().clone(),
        false => Pager::probe(),
    }
}

/// The mechanism that copies units.
pub(crate) fn copying() -> Mechanism {
    if by_signals() { Mechanism::Remap } else { Mechanism::Copy }
}

/// The modes that this machine and user have, best first.
pub(crate) fn modes() -> Vec<ModeRequest> {
    if by_signals() {
        return vec![ModeRequest::Signals, ModeRequest::CheckedOnly];
    }
    let mut modes = vec![];
    match Pager::probe().mode {
        Mode::Signals => unreachable!("nobody asked for it"),
        Mode::Full => modes.extend([ModeRequest::Auto, ModeRequest::UserModeOnly]),
        Mode::UserModeOnly => modes.push(ModeRequest::UserModeOnly),
        Mode::CheckedOnly => println!("left out: page faults: {}", Pager::probe()),
    }
    modes.extend([ModeRequest::Signals, ModeRequest::CheckedOnly]);
    modes
}

/// Whether a pager of this machine and user can map.
pub(crate) fn can_fault() -> bool {
    probe().mode != Mode::CheckedOnly
}

/// Whether this user's faults serve system calls too.
pub(crate) fn is_full() -> bool {
    probe().mode == Mode::Full
}

/// Runs the calling test alone in a process of its own, for what a process shares: its memory
/// figures, its signals. Returns true in that process; false, after it has ended as `judge` likes,
/// in the calling one.
pub(crate) fn alone(test: &str, judge: impl FnOnce(std::process::Output)) -> bool {
    const CHILD: &str = "PAGER_TEST_CHILD";
    if std::env::var(CHILD).is_ok_and(|name| name == test) {
        return true;
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(CHILD, test)
        .output()
        .unwrap();
    judge(output);
    false
}

/// The child must have passed.
pub(crate) fn passed(output: std::process::Output) {
    assert!(
        output.status.success(),
        "{}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// All bytes of the budget that can be had when nothing is resident.
pub(crate) fn all_of(pager: &Pager) -> u64 {
    pager.budget().limit() - pager.budget().page_tables()
}

/// Takes the memory of all that was given up, so that it does not come back without a request.
pub(crate) fn use_idle_frames(pager: &Pager) {
    drop(pager.pool().reserve(pager.budget().limit()));
}

/// Waits until `done` holds, or panics with `what` after ten seconds.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(60), "still not after a minute: {what}");
        std::thread::yield_now();
    }
}

/// Gives up the `units` units of `region`, all that are there or about to be. Who touches one goes on
/// when its pages are in place, a moment before the unit may leave.
pub(crate) fn give_up(region: &Region, units: u64) {
    let before = region.stats().units_evicted;
    until("the units leave", || {
        region.advise(Hint::DontNeed(0..region.len())).unwrap();
        region.stats().units_evicted >= before + units
    });
    assert_eq!(region.stats().units_resident, 0, "{:?}", region.stats());
}

/// A seeded generator for tests that want random numbers: SplitMix64 (Steele et al., OOPSLA 2014).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}
