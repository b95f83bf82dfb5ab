//! A region that can be written: what was written goes back to the object when it is flushed.
//!
//! ```text
//!   load(range)     --> SharedGuard   like a region's guard
//!   load_mut(range) --> GuardMut      &mut [u8], resident and pinned; nobody else has these bytes
//!   read_at, write_at                 bytes copied out and in
//!   map_mut(range)  --> MappedMut     &mut [u8]; touching a missing unit fetches it
//!   flush()         --> the object is replaced through its sink, whole, if it is still the one read
//! ```
//!
//! ```text
//!             load_mut, write_at                        flush succeeded
//!   clean ----------------------> dirty: pinned -----------------------> clean, of the new version
//!                                   ^     |
//!                                   +-----+ flush failed, or was refused
//! ```
//!
//! Who has which bytes is looked up when they are asked for (`lends`): two guards of the same bytes, of
//! which one may write, are an error of the second. A dirty unit is pinned and so is no victim until a
//! flush has succeeded (`dirty`). What a map writes, which nobody sees, the kernel is asked for (`mapped`). What is fetched during a flush was not written, and both versions have
//! the same bytes there (`standing`).

mod dirty;
mod flush;
mod lends;
mod mapped;
mod standing;

pub use flush::Flushed;
pub use mapped::MappedMut;
pub(crate) use standing::Standing;

use std::{
    fmt,
    ops::{Deref, DerefMut, Range},
    time::Duration,
};

use tokio::sync::Notify;

use self::{
    dirty::{Dirty, NoRoom},
    lends::{Access, Lends, Span, Taken},
    mapped::Window,
};
use super::{Guard, Hint, Region};
use crate::{
    block_on::block_on,
    cache::Ledger,
    error::Error,
    pager::Pager,
    sink::{BlockSink, Writing},
    source::Version,
    stats::RegionStats,
    sync::{Arc, Mutex, lock},
    sys::Watch,
};

/// One object that is read and written as memory, and replaced by [`flush`](RegionMut::flush). Its
/// length is that of the object, and stays.
///
/// What was written is seen here at once, and by others after a flush. It counts as pinned against the
/// budget until then: a quarter of that at most, and a write beyond it is [`Error::DirtyLimit`]. Dropped
/// with dirty pages, these are lost: nothing is flushed unasked.
///
/// Any number of threads may read, write and flush through one `RegionMut` at a time.
pub struct RegionMut(Arc<Shared>);

struct Shared {
    region: Region,
    standing: Arc<Standing>,
    sink: Arc<dyn BlockSink>,
    /// The longest that one call of the sink may take.
    sink_deadline: Duration,
    state: Mutex<State>,
    /// Something was given back.
    released: Notify,
    /// Where the region can be mapped.
    watch: Option<Arc<Watch>>,
    /// Held by who finds out what was written through a map.
    ending: Mutex<()>,
    /// Held by a flush. A version that may have been committed or not.
    unsettled: tokio::sync::Mutex<Option<Box<dyn Writing>>>,
}

#[derive(Default)]
struct State {
    lends: Lends,
    dirty: Dirty,
    /// What is mapped for writing.
    window: Option<Window>,
}

impl RegionMut {
    /// `region` reads through `standing`, and nobody else has it.
    pub(crate) fn new(
        region: Region,
        standing: Arc<Standing>,
        sink: Arc<dyn BlockSink>,
        sink_deadline: Duration,
        watch: Option<Arc<Watch>>,
    ) -> RegionMut {
        let (state, released) = (Mutex::default(), Notify::new());
        let (ending, unsettled) = (Mutex::default(), tokio::sync::Mutex::new(None));
        RegionMut(Arc::new(Shared {
            region,
            standing,
            sink,
            sink_deadline,
            state,
            released,
            watch,
            ending,
            unsettled,
        }))
    }

    /// Length of the object in bytes.
    pub fn len(&self) -> u64 {
        self.0.region.len()
    }

    /// Whether the object has no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.region.is_empty()
    }

    /// The source's name for the object.
    pub fn name(&self) -> &str {
        self.0.region.name()
    }

    /// The version that everything here has which is not dirty: the one that was opened, or that of the
    /// latest flush.
    pub fn version(&self) -> Version {
        self.0.standing.base().0
    }

    /// Bytes of one unit of residency. A unit with a dirty page is pinned as a whole.
    pub fn unit_bytes(&self) -> u64 {
        self.0.region.unit_bytes()
    }

    /// The pager that this region belongs to.
    pub fn pager(&self) -> &Pager {
        self.0.region.pager()
    }

    /// What this region has done so far.
    pub fn stats(&self) -> RegionStats {
        self.0.region.stats()
    }

    /// Bytes of pages that were written, or lent for writing, and not flushed since.
    pub fn dirty_bytes(&self) -> u64 {
        lock(&self.0.state).dirty.bytes(self.0.ledger())
    }

    /// Makes `range` (bytes) resident and pins it while the guard lives, as [`Region::load`] does.
    /// Meanwhile nobody gets these bytes for writing.
    ///
    /// # Errors
    /// Those of [`Region::load`]; [`Error::Lent`] where a guard for writing has some of these bytes.
    pub fn load(&self, range: Range<u64>) -> Result<SharedGuard<'_>, Error> {
        self.0.close_window();
        Ok(SharedGuard(self.0.lend(self.0.region.load(range)?, Access::Read, Span::Guard)?))
    }

    /// Makes `range` (bytes) resident and lends it for writing. Nobody else gets these bytes while the
    /// guard lives, and its pages are dirty from now on, written or not. Waits while a flush writes them.
    ///
    /// # Errors
    /// Those of [`Region::load`]; [`Error::Lent`] where another guard has some of these bytes, at once;
    /// [`Error::DirtyLimit`] when more than a quarter of the budget would be dirty: flush first.
    pub fn load_mut(&self, range: Range<u64>) -> Result<GuardMut<'_>, Error> {
        self.0.close_window();
        self.0.until_unflushed(&range);
        Ok(GuardMut(self.0.lend(self.0.region.load(range)?, Access::Write, Span::Guard)?))
    }

    /// Copies `buf.len()` bytes from `offset` on into `buf`, as [`Region::read_at`] does.
    ///
    /// # Errors
    /// Those of [`Region::read_at`]; [`Error::Lent`] where a guard for writing has some of these bytes.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        self.0.close_window();
        let mut done = 0;
        self.0.region.each_piece(offset, buf.len(), |guard| {
            let piece = self.0.lend(guard, Access::Read, Span::Moment)?;
            let to = &mut buf[done..done + piece.bytes().len()];
            to.copy_from_slice(piece.bytes());
            done += to.len();
            Ok(())
        })
    }

    /// Copies `bytes` to `offset`, in pieces where they are many, and waits while a flush writes what is
    /// there. The units are fetched first, those that are written whole, too.
    ///
    /// # Errors
    /// Those of [`Region::read_at`]; [`Error::Lent`] where a guard has some of these bytes;
    /// [`Error::DirtyLimit`]. Pieces before the one that failed are written then, from the front: write
    /// again after a flush, or after the guard is dropped.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        self.0.close_window();
        self.0.until_unflushed(&(offset..offset.saturating_add(bytes.len() as u64)));
        let mut rest = bytes;
        self.0.region.each_piece(offset, bytes.len(), |guard| {
            let mut piece = self.0.lend(guard, Access::Write, Span::Moment)?;
            let into = piece.bytes_mut();
            let (head, tail) = rest.split_at(into.len());
            into.copy_from_slice(head);
            rest = tail;
            Ok(())
        })
    }

    /// Tells the pager what will be read, or will not: see [`Region::advise`]. Dirty units stay.
    ///
    /// # Errors
    /// Those of [`Region::advise`].
    pub fn advise(&self, hint: Hint<'_>) -> Result<(), Error> {
        self.0.region.advise(hint)
    }

    /// Replaces the object by one with all pages that are dirty now. What is written meanwhile is dirty
    /// afterwards: who writes to a page that is being flushed waits for the end. Of several flushes at a
    /// time one goes after the other. Without a dirty page there is nothing to do.
    ///
    /// Afterwards the region stands on the new version. Blocks for as long as the sink takes, but no longer
    /// than [`Builder::sink_deadline`](crate::Builder::sink_deadline) for each thing that it is asked to do:
    /// where it does not answer the flush has failed, or is unsettled if that was the commit.
    ///
    /// # Errors
    /// [`Error::Lent`] while a guard for writing is alive, whose bytes nobody else may read. Else
    /// [`Error::Sink`]: the object was replaced by somebody else (`Conflict`), or this failed (`Failed`):
    /// then nothing was written. Or that could not be found out (`Unsettled`), and the next flush asks
    /// first. Until then bytes that are not here may be `Changed`. Each time all that was dirty still is.
    pub fn flush(&self) -> Result<Flushed, Error> {
        loop {
            if let Some(outcome) = block_on(self.flush_async(), Duration::MAX) {
                return outcome;
            }
        }
    }

    /// [`flush`](RegionMut::flush) for async code. Once begun it goes on to its end, also when the future
    /// is dropped.
    ///
    /// # Errors
    /// Those of [`flush`](RegionMut::flush).
    pub async fn flush_async(&self) -> Result<Flushed, Error> {
        self.0.close_window();
        self.0.region.open()?;
        let task = self.pager().spawn(flush::run(self.0.clone()));
        task.await.unwrap_or_else(|stopped| Err(self.0.stopped(stopped)))
    }

    /// Refuses everything from now on. What is dirty is lost.
    pub fn close(&self) {
        self.0.region.close();
    }
}

impl fmt::Debug for RegionMut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, len, version) = (self.name(), self.len(), self.version());
        write!(f, "RegionMut({name}, {len} bytes, version {version})")
    }
}

impl Shared {
    fn ledger(&self) -> &Ledger {
        &self.region.object().ledger
    }

    /// Waits while a flush has some of `range`: before anything is pinned, since a flush may take long and pins
    /// are what others read with.
    fn until_unflushed(&self, range: &Range<u64>) {
        loop {
            let released = self.released.notified();
            if range.is_empty() || !lock(&self.state).lends.is_kept_by_flush(range) {
                return;
            }
            let _ = block_on(released, WAIT);
        }
    }

    /// Lends what `guard` has pinned, once what ends by itself is out of the way.
    fn lend<'a>(&'a self, guard: Guard<'a>, access: Access, span: Span) -> Result<Lent<'a>, Error> {
        let range = guard.range();
        if range.is_empty() {
            return Ok(Lent { shared: self, id: None, access, guard });
        }
        loop {
            let released = self.released.notified();
            let lent = lock(&self.state).lend(self.ledger(), &range, access, span);
            match lent {
                Ok(id) => return Ok(Lent { shared: self, id: Some(id), access, guard }),
                Err(Refused::Taken(Taken::ForNow)) => {
                    let _ = block_on(released, WAIT);
                }
                Err(Refused::Taken(Taken::ByGuard(by))) => return Err(self.lent(range, by)),
                Err(Refused::NoRoom) => return Err(self.no_room(range)),
            }
        }
    }

    fn no_room(&self, range: Range<u64>) -> Error {
        let (object, budget) = (self.region.name().to_owned(), self.ledger().budget());
        Error::DirtyLimit { object, range, dirty: budget.dirty(), limit: budget.dirty_limit() }
    }

    fn lent(&self, range: Range<u64>, by: Range<u64>) -> Error {
        Error::Lent { object: self.region.name().to_owned(), range, by }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Nobody can write any more, nor flush: what was written is nobody's.
        self.end_window(false);
        let state = std::mem::take(&mut *lock(&self.state));
        let (mut dirty, ledger) = (state.dirty, self.ledger());
        let all = dirty.ranges(ledger);
        dirty.clean(ledger, &all, |_| false);
        // What a flush left open is taken away where the sink can: on the pager's runtime, whatever thread this is.
        if let Some(writing) = self.unsettled.get_mut().take() {
            self.region.pager().spawn(async move { writing.abort().await });
        }
    }
}

/// How long to wait at most for what is lent for a moment: a lost wake-up costs this and no more.
const WAIT: Duration = Duration::from_millis(100);

enum Refused {
    Taken(Taken),
    NoRoom,
}

impl State {
    /// Lends `range`, whose units the caller has pinned; for writing, its pages are dirty with it.
    fn lend(
        &mut self,
        ledger: &Ledger,
        range: &Range<u64>,
        access: Access,
        span: Span,
    ) -> Result<u64, Refused> {
        let id = self.lends.lend(range.clone(), access, span).map_err(Refused::Taken)?;
        if access == Access::Write
            && let Err(NoRoom) = self.dirty.mark(ledger, range)
        {
            self.lends.give_back(id);
            return Err(Refused::NoRoom);
        }
        Ok(id)
    }
}

/// Bytes that are pinned, and lent until this is dropped.
struct Lent<'a> {
    shared: &'a Shared,
    /// `None` where there are no bytes.
    id: Option<u64>,
    access: Access,
    guard: Guard<'a>,
}

impl Lent<'_> {
    fn bytes(&self) -> &[u8] {
        &self.guard
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        assert_eq!(self.access, Access::Write, "bytes that are lent for writing");
        let range = self.guard.range();
        let len = (range.end - range.start) as usize;
        let Some(memory) = self.shared.ledger().memory().filter(|_| len > 0) else {
            return &mut [];
        };
        // SAFETY: as for `Guard`, which keeps the range resident and inside the mapping. It is lent for
        // writing until `self` is dropped: no other guard, copy or flush has a byte of it, because each
        // asks `Lends` first, and nobody else has this region.
        unsafe {
            let start = memory.base().as_ptr().add(range.start as usize);
            std::slice::from_raw_parts_mut(start, len)
        }
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            lock(&self.shared.state).lends.give_back(id);
            self.shared.released.notify_waiters();
        }
    }
}

/// Bytes of a writable region to read, resident and pinned while this is alive. Nobody writes them
/// meanwhile. Keep it short, like a [`Guard`].
pub struct SharedGuard<'a>(Lent<'a>);

impl SharedGuard<'_> {
    /// Where in the object the bytes lie.
    pub fn range(&self) -> Range<u64> {
        self.0.guard.range()
    }
}

impl Deref for SharedGuard<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.bytes()
    }
}

impl fmt::Debug for SharedGuard<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedGuard({}..{})", self.range().start, self.range().end)
    }
}

/// Bytes of a writable region to write, resident and pinned while this is alive, and nobody else's. A
/// flush is refused meanwhile: keep it short. One that is leaked (`mem::forget`) keeps its bytes.
pub struct GuardMut<'a>(Lent<'a>);

impl GuardMut<'_> {
    /// Where in the object the bytes lie.
    pub fn range(&self) -> Range<u64> {
        self.0.guard.range()
    }
}

impl Deref for GuardMut<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.bytes()
    }
}

impl DerefMut for GuardMut<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.0.bytes_mut()
    }
}

impl fmt::Debug for GuardMut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GuardMut({}..{})", self.range().start, self.range().end)
    }
}
