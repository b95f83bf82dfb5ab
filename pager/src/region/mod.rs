//! What a consumer holds: one object, readable as memory.
//!
//! ```text
//!   load(range)   --> Guard   resident and pinned; errors are values; works everywhere
//!   read_at       --> bytes copied out
//!   map()         --> Mapped  &[u8] of the whole object; touching a missing unit fetches it
//! ```
//!
//! `load` and the kernel's faults enter by the same queue: two doors, one path.

mod guard;
mod mapped;
mod writable; // and written

pub use guard::Guard;
pub use mapped::Mapped;
pub(crate) use writable::Standing;
pub use writable::{Flushed, GuardMut, MappedMut, RegionMut, SharedGuard};

use std::{
    fmt,
    ops::Range,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::UnboundedSender;

use self::guard::Pins;
use crate::{
    block_on::block_on,
    cache::{Asked, Decided, Waiter, WaitsBy},
    error::Error,
    fetch::{Object, Request},
    pager::Pager,
    policy::prefetch::Advice,
    source::Version,
    stats::{RegionStats, add},
    sync::{Arc, AtomicBool, Ordering, lock},
    trace::Kind,
};

/// What the application says it will do with a region.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Hint<'a> {
    /// Reads will run forwards through the object: fetch far ahead.
    Sequential,
    /// Reads have no order: fetch nothing that was not asked for, and have page faults answered at once by a
    /// source that can ([`BlockSource::at_once`](crate::BlockSource::at_once)).
    Random,
    /// Back to guessing.
    Normal,
    /// These byte ranges will be read, in this order. They are fetched together, neighbours in one
    /// request, as far as speculation's quarter of the budget goes.
    WillNeed(&'a [Range<u64>]),
    /// These bytes will not be read soon. Units that lie wholly inside are given up, unless pinned.
    DontNeed(Range<u64>),
}

/// How long to sleep at most while waiting for a pin: a lost wake-up costs this and no more.
const UNPIN_WAIT: Duration = Duration::from_millis(20);

/// One object at one version, readable as memory. Cheap to clone; clones are the same region.
#[derive(Clone)]
pub struct Region(Arc<Handle>);

/// What keeps a region open: regions, their guards and their maps share it.
pub(crate) struct Handle {
    pub(crate) object: Arc<Object>,
    engine: UnboundedSender<Request>,
    closed: AtomicBool,
    /// A handle, because looking a metric up costs more than a load of what is resident.
    loads: metrics::Counter,
    wait_us: metrics::Histogram,
    /// Why `map` is refused, if it is.
    unmappable: Option<String>,
    pager: Pager,
}

impl Handle {
    pub(crate) fn new(
        object: Arc<Object>,
        engine: UnboundedSender<Request>,
        unmappable: Option<String>,
        pager: Pager,
    ) -> Handle {
        let loads = metrics::counter!("pager.load.count");
        let wait_us = metrics::histogram!("pager.load.wait_us");
        let closed = AtomicBool::new(false);
        Handle { object, engine, closed, loads, wait_us, unmappable, pager }
    }

    /// A load has waited since `since`, and has its bytes now.
    fn waits(&self, since: Instant) {
        self.wait_us.record(since.elapsed().as_micros() as f64);
    }

    fn ask(&self, request: Request) {
        // The engine lives as long as the pager, which this handle keeps.
        let _ = self.engine.send(request);
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.pager.forget(self.object.id);
        self.ask(Request::Close { region: self.object.id });
    }
}

impl Region {
    pub(crate) fn new(handle: Handle) -> Region {
        Region(Arc::new(handle))
    }

    fn object(&self) -> &Object {
        &self.0.object
    }

    /// Length of the object in bytes.
    pub fn len(&self) -> u64 {
        self.object().ledger.geometry().object_len()
    }

    /// Whether the object has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The source's name for the object.
    pub fn name(&self) -> &str {
        &self.object().name
    }

    /// The version that every byte of this region has.
    pub fn version(&self) -> &Version {
        &self.object().version
    }

    /// Bytes of one unit of residency.
    pub fn unit_bytes(&self) -> u64 {
        self.object().ledger.geometry().unit_bytes()
    }

    /// The pager that this region belongs to.
    pub fn pager(&self) -> &Pager {
        &self.0.pager
    }

    /// What this region has done so far.
    pub fn stats(&self) -> RegionStats {
        self.object().counters.snapshot()
    }

    /// Makes `range` (bytes) resident and pins it while the guard lives. Blocks the calling thread,
    /// inside or outside an async runtime, until the bytes are there.
    ///
    /// The guard is a slice that may be given to system calls.
    ///
    /// # Errors
    /// The source's error; [`Error::PinLimit`] when guards would pin more than half of the budget,
    /// at once, without waiting; [`Error::Deadline`] when nothing came; [`Error::OutOfBounds`];
    /// [`Error::Closed`].
    pub fn load(&self, range: Range<u64>) -> Result<Guard<'_>, Error> {
        let units = self.check(&range)?;
        self.prepare(&range);
        let mut pins = Pins::new(&self.object().ledger, units.start);
        let waiters = self.pin(&units, &range, &mut pins, WaitsBy::Thread)?;
        if !waiters.is_empty() {
            let since = Instant::now();
            // Each request keeps the deadline itself; this one, between two units, is for a runtime
            // that a source has blocked, where nobody is left to keep it.
            let deadline = self.object().deadline;
            let longest = deadline.saturating_mul(2) + Duration::from_secs(1);
            for waiter in waiters {
                block_on(Decided(waiter), longest).ok_or_else(|| Error::Deadline {
                    object: self.name().to_owned(),
                    range: range.clone(),
                    deadline,
                })??;
            }
            self.0.waits(since);
        }
        Ok(Guard::new(pins, range))
    }

    /// [`load`](Region::load) for async code. May be dropped at any point.
    ///
    /// Deadlines are kept by the pager's own runtime. A source that blocks the threads it is polled
    /// on stops that, and this waits as long as it does; only `load` has a limit of its own.
    ///
    /// # Errors
    /// Those of [`load`](Region::load). A source that does not answer is
    /// [`SourceError::Transient`](crate::SourceError::Transient) after the deadline.
    pub async fn load_async(&self, range: Range<u64>) -> Result<Guard<'_>, Error> {
        let units = self.check(&range)?;
        self.prepare(&range);
        let mut pins = Pins::new(&self.object().ledger, units.start);
        let waiters = self.pin(&units, &range, &mut pins, WaitsBy::Task)?;
        if !waiters.is_empty() {
            let since = Instant::now();
            for waiter in waiters {
                Decided(waiter).await?;
            }
            self.0.waits(since);
        }
        Ok(Guard::new(pins, range))
    }

    /// Copies `buf.len()` bytes from `offset` on into `buf`, in pieces where they are many. Pins a
    /// piece no longer than it takes to come and be copied, so any number of threads may do this at a
    /// time: where their pins meet the limit, they wait for each other.
    ///
    /// # Errors
    /// As for [`load`](Region::load), but [`Error::PinLimit`] only when nothing could be pinned for
    /// as long as the pager's deadline, because of guards that others hold, or the caller.
    /// `buf` may then hold part of the bytes.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        let mut done = 0;
        self.each_piece(offset, buf.len(), |guard| {
            buf[done..done + guard.len()].copy_from_slice(&guard);
            done += guard.len();
            Ok(())
        })
    }

    /// Has `take` look at `len` bytes from `offset` on, piece by piece, each pinned no longer than that takes.
    fn each_piece<'a>(
        &'a self,
        offset: u64,
        len: usize,
        mut take: impl FnMut(Guard<'a>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let end = offset.saturating_add(len as u64);
        self.check(&(offset..end))?;
        let mut at = offset;
        // A quarter of what may be pinned, so that a few readers at a time do not refuse each other.
        let (unit, cost) = (self.unit_bytes(), self.object().ledger.unit_cost());
        let mut piece = (self.0.pager.budget().pin_limit() / 4 / cost).clamp(1, 64) * unit;
        while at < end {
            // Up to the next edge of a piece: a piece that straddles units pins one more.
            let n = (piece - at % piece).min(end - at);
            let loaded = match self.load(at..at + n) {
                Err(Error::PinLimit { .. }) if piece > unit => {
                    piece = unit;
                    continue;
                }
                Err(Error::PinLimit { .. }) => self.load_when_others_unpin(at..at + n),
                other => other,
            };
            take(loaded?)?;
            at += n;
        }
        Ok(())
    }

    /// [`load`](Region::load), again and again while it meets the pin limit, until the deadline.
    fn load_when_others_unpin(&self, range: Range<u64>) -> Result<Guard<'_>, Error> {
        let budget = self.0.pager.budget();
        let start = Instant::now();
        loop {
            // Whatever is unpinned after this line ends the wait below.
            budget.want();
            let freed = budget.freed().notified();
            match self.load(range.clone()) {
                Err(Error::PinLimit { .. }) if start.elapsed() < self.object().deadline => {
                    let _ = block_on(freed, UNPIN_WAIT);
                }
                outcome => return outcome,
            }
        }
    }

    /// Tells the pager what will be read, or will not. Never waits: hints that come faster than the
    /// pager takes them are joined, and ranges beyond 65,536 that wait are left out.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] for a range that does not lie inside the object; [`Error::Closed`].
    pub fn advise(&self, hint: Hint<'_>) -> Result<(), Error> {
        let geometry = self.object().ledger.geometry();
        let advice = match hint {
            Hint::Sequential => Advice::Sequential,
            Hint::Random => Advice::Random,
            Hint::Normal => Advice::Normal,
            Hint::WillNeed(ranges) => {
                let mut units = Vec::with_capacity(ranges.len());
                for range in ranges {
                    let range = self.check(range)?;
                    if !range.is_empty() {
                        units.push(range);
                    }
                }
                Advice::WillNeed(units)
            }
            Hint::DontNeed(range) => {
                self.check(&range)?;
                let unit = geometry.unit_bytes();
                let whole_end = if range.end == geometry.object_len() {
                    geometry.units()
                } else {
                    range.end / unit
                };
                self.object().ledger.discard(range.start.div_ceil(unit)..whole_end);
                return Ok(());
            }
        };
        self.open()?;
        match advice {
            Advice::Random => self.object().random.store(true, Ordering::Relaxed),
            Advice::Sequential | Advice::Normal => {
                self.object().random.store(false, Ordering::Relaxed);
            }
            _ => {}
        }
        if lock(&self.object().hints).push(advice) {
            self.0.ask(Request::Advised { region: self.object().id });
        }
        Ok(())
    }

    /// The whole object as a slice whose missing units are fetched when they are touched.
    ///
    /// A touch of bytes that cannot be had, after all retries of the source, raises SIGBUS in the
    /// thread that touched them, which ends a process that does not handle it. The cause is told
    /// before that, as an error of `tracing`, or on stderr where no subscriber takes it.
    /// Use [`load`](Region::load) where errors must be values. In user mode only or by SIGSEGV (see
    /// [`Pager::mode`]), a system call given a slice of it fails with EFAULT on missing units.
    ///
    /// # Errors
    /// [`Error::NotMappable`] where no fault mechanism exists, or where the object's version is
    /// weak, so that nothing promises that it stays as it is.
    pub fn map(&self) -> Result<Mapped, Error> {
        self.mappable()?;
        if self.version().strength() == crate::source::Strength::Weak && !self.is_empty() {
            return Err(Error::NotMappable {
                object: self.name().to_owned(),
                reason: format!(
                    "its version, {}, does not promise that its bytes stay the same",
                    self.version()
                ),
            });
        }
        Ok(Mapped::new(self.0.clone()))
    }

    /// [`map`](Region::map) for an object whose version is weak.
    ///
    /// # Safety
    /// The caller promises that the object's bytes do not change while the map is alive. A unit
    /// that is evicted and fetched again would otherwise change under a `&[u8]`.
    ///
    /// # Errors
    /// [`Error::NotMappable`] where no fault mechanism exists.
    pub unsafe fn map_assuming_immutable(&self) -> Result<Mapped, Error> {
        self.mappable()?;
        Ok(Mapped::new(self.0.clone()))
    }

    /// Whether somebody answers when a missing unit is touched.
    fn mappable(&self) -> Result<(), Error> {
        self.open()?;
        match self.0.unmappable.clone().or_else(|| self.pager().why_unheard()) {
            Some(reason) => Err(Error::NotMappable { object: self.name().to_owned(), reason }),
            None => Ok(()),
        }
    }

    /// Refuses everything from now on, in all clones. Guards and maps that are alive stay valid;
    /// the memory goes when the last of them and the last clone are gone.
    pub fn close(&self) {
        self.0.closed.store(true, Ordering::SeqCst);
    }

    fn open(&self) -> Result<(), Error> {
        if self.0.closed.load(Ordering::SeqCst) {
            return Err(Error::Closed { object: self.name().to_owned() });
        }
        Ok(())
    }

    /// Checks that the region is open and holds `range`; the units that it touches.
    fn check(&self, range: &Range<u64>) -> Result<Range<u64>, Error> {
        self.open()?;
        let geometry = self.object().ledger.geometry();
        if range.start > range.end || range.end > geometry.object_len() {
            return Err(Error::OutOfBounds {
                object: self.name().to_owned(),
                range: range.clone(),
                len: geometry.object_len(),
            });
        }
        Ok(geometry.units_of(range))
    }

    /// Has the first bytes of `range`, which was checked, on their way while it is pinned: a pin lets nothing
    /// overtake it, and what follows would wait for memory only after it.
    fn prepare(&self, range: &Range<u64>) {
        if let Some(memory) = self.object().ledger.memory() {
            memory.prepare(range.start as usize, (range.end - range.start) as usize);
        }
    }

    /// Pins `units`, asks for those that are missing, and returns what to wait for.
    fn pin(
        &self,
        units: &Range<u64>,
        range: &Range<u64>,
        pins: &mut Pins<'_>,
        by: WaitsBy,
    ) -> Result<Vec<Arc<Waiter>>, Error> {
        let (object, budget) = (&self.0.object, self.0.pager.budget());
        let cost = object.ledger.unit_cost();
        let refused = |wanted| Error::PinLimit {
            object: self.name().to_owned(),
            wanted,
            pinned: budget.pinned(),
            limit: budget.pin_limit(),
        };
        let wanted = (units.end - units.start).saturating_mul(cost);
        if wanted > budget.pin_limit() {
            return Err(refused(wanted));
        }
        let region = object.id;
        let mut waiters = Vec::new();
        let mut missing: Option<Range<u64>> = None;
        let mut outcome = Ok(());
        for unit in units.clone() {
            let asked = match object.ledger.pin(unit) {
                Ok(asked) => asked,
                Err(_) => {
                    outcome = Err(refused((units.end - unit) * cost));
                    break;
                }
            };
            pins.extend();
            if asked == Asked::Used {
                self.0.ask(Request::Used { region, unit });
            }
            if matches!(asked, Asked::Resident | Asked::Used) {
                continue;
            }
            // Registered before the request goes out, so that its outcome cannot be missed.
            let waiter = Waiter::new(by);
            let waits = object.ledger.wait(unit, &waiter);
            if waits {
                waiters.push(waiter);
            }
            // Somebody else's claim may have failed between the pin and the registration.
            if asked == Asked::Claimed || (waits && object.ledger.claim_if_idle(unit)) {
                match &mut missing {
                    Some(run) if run.end == unit => run.end = unit + 1,
                    _ => {
                        let run = missing.replace(unit..unit + 1);
                        self.ask_for(run);
                    }
                }
            } else if asked == Asked::Late {
                self.0.ask(Request::Late { region, unit });
            } else if asked == Asked::Marker {
                self.0.ask(Request::Marker { region, unit });
            }
        }
        self.ask_for(missing);
        // What is refused reads nothing.
        outcome?;
        let counters = &object.counters;
        add(if waiters.is_empty() { &counters.load_hits } else { &counters.load_waits }, 1);
        self.0.loads.increment(1);
        if let Some(traced) = &object.traced {
            traced.note(units.clone(), if waiters.is_empty() { Kind::Hit } else { Kind::Wait });
        }
        debug_assert!(range.start <= range.end);
        Ok(waiters)
    }

    fn ask_for(&self, missing: Option<Range<u64>>) {
        if let Some(units) = missing {
            self.0.ask(Request::Missing { region: self.object().id, units });
        }
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Region({}, {} bytes, version {})", self.name(), self.len(), self.version())
    }
}
