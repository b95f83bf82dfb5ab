//! The hard memory budget: bytes are reserved before they are asked for.
//!
//! ```text
//!   limit  |==========================================================|
//!   used   |== mapped ==|== in flight ==|= frames =|= a database's pages =|
//!   pinned |== at most half ==|          speculative |= at most a quarter =|
//! ```
//!
//! One budget serves any number of regions and pools. Whoever finds it full asks the pools that
//! share it to give something up; what is pinned or on its way stays.

use std::{collections::VecDeque, fmt};

use tokio::sync::Notify;

use crate::sync::{Arc, AtomicBool, AtomicU64, Mutex, Ordering, Weak, lock};

/// A number of bytes that regions and pools share. Cheap to clone; clones are the same budget.
#[derive(Clone)]
pub struct Budget(Arc<Shared>);

struct Shared {
    limit: u64,
    used: AtomicU64,
    pinned: AtomicU64,
    speculative: AtomicU64,
    dirty: AtomicU64,
    peak: AtomicU64,
    tables: AtomicU64,
    /// Set by those who wait for bytes, so that releasing costs nothing while nobody does.
    wanted: AtomicBool,
    freed: Notify,
    pools: Mutex<Vec<Weak<dyn Reclaim>>>,
    latest: Mutex<Latest>,
}

/// The latest entries installed because somebody asked, of all pools together, oldest first.
#[derive(Default)]
struct Latest {
    entries: VecDeque<Recent>,
    bytes: u64,
}

struct Recent {
    pool: usize,
    key: u64,
    weight: u64,
}

/// The latest entries installed because somebody asked are no victims, so that a load that
/// straddles several units, or an instruction that touches two, always makes progress. So many at
/// the most, of all pools together, and at most a quarter of the budget.
pub const PROTECTED_LATEST: usize = 8;

/// Something that can give reserved bytes back.
pub(crate) trait Reclaim: Send + Sync {
    /// Gives up about `bytes` bytes if it can; returns how many it did.
    fn reclaim(&self, bytes: u64) -> u64;

    /// Gives up about `bytes` bytes of what nobody uses, as far as there is any; returns how many.
    fn reclaim_idle(&self, _bytes: u64) -> u64 {
        0
    }

    /// Bytes that [`reclaim_idle`](Reclaim::reclaim_idle) could give up now.
    fn idle(&self) -> u64 {
        0
    }

    /// Gives back what is counted as pinned and is not.
    fn release_idle_pins(&self) {}
}

impl Budget {
    /// A budget of `bytes` bytes.
    pub fn new(bytes: u64) -> Budget {
        Budget(Arc::new(Shared {
            limit: bytes,
            used: AtomicU64::new(0),
            pinned: AtomicU64::new(0),
            speculative: AtomicU64::new(0),
            dirty: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            tables: AtomicU64::new(0),
            wanted: AtomicBool::new(false),
            freed: Notify::new(),
            pools: Mutex::default(),
            latest: Mutex::default(),
        }))
    }

    /// The most bytes that may be reserved at a time.
    pub fn limit(&self) -> u64 {
        self.0.limit
    }

    /// Bytes reserved now: mapped, in flight, staged, and the pages of other pools.
    pub fn used(&self) -> u64 {
        self.0.used.load(Ordering::Relaxed)
    }

    /// The most bytes that were ever reserved at a time.
    pub fn peak(&self) -> u64 {
        self.0.peak.load(Ordering::Relaxed)
    }

    /// Bytes that guards pin now. Looks at every unit that was pinned lately.
    pub fn pinned(&self) -> u64 {
        self.release_idle_pins();
        self.0.pinned.load(Ordering::Relaxed)
    }

    /// The most bytes that may be pinned: half of the limit.
    pub fn pin_limit(&self) -> u64 {
        self.0.limit / 2
    }

    /// Bytes held by speculation: fetched or being fetched, and not yet asked for.
    pub fn speculative(&self) -> u64 {
        self.0.speculative.load(Ordering::Relaxed)
    }

    /// The most bytes that speculation may hold: a quarter of the limit.
    pub fn speculative_limit(&self) -> u64 {
        self.0.limit / 4
    }

    /// Bytes of units that were written and not flushed since, of all regions: see
    /// [`RegionMut`](crate::RegionMut). They are part of what is [pinned](Budget::pinned).
    pub fn dirty(&self) -> u64 {
        self.0.dirty.load(Ordering::Relaxed)
    }

    /// The most bytes that may be dirty: a quarter of the limit, so that half of what may be pinned is
    /// left to read with, and to write what is dirty already.
    pub fn dirty_limit(&self) -> u64 {
        self.0.limit / 4
    }

    /// Counts `bytes` more bytes as dirty, unless that exceeds the limit.
    pub(crate) fn try_dirty(&self, bytes: u64) -> bool {
        raise(&self.0.dirty, bytes, self.dirty_limit())
    }

    pub(crate) fn undirty(&self, bytes: u64) {
        lower(&self.0.dirty, bytes);
    }

    /// Bytes charged, as part of [`used`](Budget::used), for page tables of spans where nothing is
    /// resident any more: what the kernel does not free before their region closes. Always 0 where
    /// [`Probe::frees_page_tables`](crate::Probe::frees_page_tables) holds.
    pub fn page_tables(&self) -> u64 {
        self.0.tables.load(Ordering::Relaxed)
    }

    /// Counts `bytes` of what is reserved as page tables that stay. False at an eighth of the limit:
    /// beyond that nothing would be left to read with, so the memory of further ones is nobody's.
    pub(crate) fn try_keep_tables(&self, bytes: u64) -> bool {
        raise(&self.0.tables, bytes, self.0.limit / 8)
    }

    /// What was counted with [`try_keep_tables`](Budget::try_keep_tables) is so no more.
    pub(crate) fn unkeep_tables(&self, bytes: u64) {
        lower(&self.0.tables, bytes);
    }

    /// Reserves `bytes` bytes if they are free. Evicts nothing: see [`crate::pool::Pool::reserve`].
    pub fn try_reserve(&self, bytes: u64) -> Option<Reservation> {
        raise(&self.0.used, bytes, self.0.limit).then(|| {
            self.0.peak.fetch_max(self.0.used.load(Ordering::Relaxed), Ordering::Relaxed);
            Reservation { budget: self.clone(), bytes }
        })
    }

    /// Takes over bytes whose reservation was leaked.
    pub(crate) fn adopt(&self, bytes: u64) -> Reservation {
        Reservation { budget: self.clone(), bytes }
    }

    /// Counts `bytes` more bytes as pinned, unless that exceeds the limit. Some of what counts may be idle:
    /// see [`release_idle_pins`](Budget::release_idle_pins).
    pub(crate) fn try_pin_at_once(&self, bytes: u64) -> bool {
        raise(&self.0.pinned, bytes, self.pin_limit())
    }

    pub(crate) fn unpin(&self, bytes: u64) {
        self.unpin_quietly(bytes);
        self.nudge();
    }

    /// [`unpin`](Budget::unpin) by who holds a lock: [`nudge`](Budget::nudge) is to follow without it.
    pub(crate) fn unpin_quietly(&self, bytes: u64) {
        lower(&self.0.pinned, bytes);
    }

    /// Asks everybody to give back what counts as pinned and is not.
    pub(crate) fn release_idle_pins(&self) {
        for pool in self.pools() {
            pool.release_idle_pins();
        }
    }

    fn pools(&self) -> Vec<Arc<dyn Reclaim>> {
        let mut pools = lock(&self.0.pools);
        pools.retain(|pool| pool.strong_count() > 0);
        pools.iter().filter_map(Weak::upgrade).collect()
    }

    /// Counts `bytes` more bytes as speculative, unless that exceeds the limit.
    pub(crate) fn try_speculate(&self, bytes: u64) -> bool {
        raise(&self.0.speculative, bytes, self.speculative_limit())
    }

    pub(crate) fn unspeculate(&self, bytes: u64) {
        lower(&self.0.speculative, bytes);
    }

    /// Asks every pool but `but` for `bytes` bytes; returns what they gave up.
    pub(crate) fn reclaim_from_others(&self, but: *const (), bytes: u64) -> u64 {
        let mut got = 0;
        for pool in self.pools() {
            if got >= bytes {
                break;
            }
            if Arc::as_ptr(&pool).cast::<()>() != but {
                got += pool.reclaim(bytes - got);
            }
        }
        got
    }

    /// Asks for `bytes` bytes of what nobody uses; returns what was given up.
    pub(crate) fn reclaim_idle(&self, bytes: u64) -> u64 {
        let mut got = 0;
        for pool in self.pools() {
            if got >= bytes {
                break;
            }
            got += pool.reclaim_idle(bytes - got);
        }
        got
    }

    /// Bytes that are reserved and that nobody uses: whoever needs bytes can have these first.
    pub(crate) fn idle(&self) -> u64 {
        self.pools().iter().map(|pool| pool.idle()).sum()
    }

    /// `key` of `pool` is the latest that somebody asked for.
    pub(crate) fn protect(&self, pool: usize, key: u64, weight: u64) {
        let mut latest = lock(&self.0.latest);
        latest.entries.push_back(Recent { pool, key, weight });
        latest.bytes += weight;
        while latest.entries.len() > PROTECTED_LATEST || latest.bytes > self.0.limit / 4 {
            let Some(oldest) = latest.entries.pop_front() else { break };
            latest.bytes -= oldest.weight;
        }
    }

    /// `key` of `pool` has left.
    pub(crate) fn unprotect(&self, pool: usize, key: u64) {
        let mut latest = lock(&self.0.latest);
        let Latest { entries, bytes } = &mut *latest;
        entries.retain(|recent| {
            let stays = recent.pool != pool || recent.key != key;
            *bytes -= if stays { 0 } else { recent.weight };
            stays
        });
    }

    /// The keys of `pool` that are no victims now; at most `PROTECTED_LATEST`.
    pub(crate) fn protected(&self, pool: usize) -> Vec<u64> {
        let latest = lock(&self.0.latest);
        let mine = latest.entries.iter().filter(|recent| recent.pool == pool);
        mine.map(|recent| recent.key).collect()
    }

    pub(crate) fn join(&self, pool: Weak<dyn Reclaim>) {
        lock(&self.0.pools).push(pool);
    }

    /// Says that somebody waits for bytes. Wait on [`freed`](Budget::freed) after another look.
    pub(crate) fn want(&self) {
        self.0.wanted.store(true, Ordering::SeqCst);
    }

    /// Resolves when bytes, frames or pins were released since [`want`](Budget::want).
    pub(crate) fn freed(&self) -> &Notify {
        &self.0.freed
    }

    /// Tells those who wait that something was released.
    pub(crate) fn nudge(&self) {
        if self.0.wanted.load(Ordering::SeqCst) && self.0.wanted.swap(false, Ordering::SeqCst) {
            self.0.freed.notify_waiters();
            self.0.freed.notify_one();
        }
    }
}

/// Adds `bytes` to `counter` unless the sum exceeds `limit`.
fn raise(counter: &AtomicU64, bytes: u64, limit: u64) -> bool {
    counter
        .fetch_update(Ordering::SeqCst, Ordering::Relaxed, |now| {
            now.checked_add(bytes).filter(|&sum| sum <= limit)
        })
        .is_ok()
}

fn lower(counter: &AtomicU64, bytes: u64) {
    let lowered = counter.fetch_update(Ordering::SeqCst, Ordering::Relaxed, |now| {
        // Checked first: a counter that wraps would stop everything that comes after.
        now.checked_sub(bytes)
    });
    assert!(lowered.is_ok(), "released {bytes} bytes of {lowered:?}");
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Budget({} of {} bytes, {} pinned, {} speculative)",
            self.used(),
            self.limit(),
            self.pinned(),
            self.speculative()
        )
    }
}

/// Bytes taken from a budget, given back on drop.
pub struct Reservation {
    budget: Budget,
    bytes: u64,
}

impl Reservation {
    /// The bytes reserved.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes `bytes` bytes out of this reservation into one of its own.
    ///
    /// # Panics
    /// When it has fewer.
    pub fn split(&mut self, bytes: u64) -> Reservation {
        assert!(bytes <= self.bytes, "split {bytes} of {} bytes", self.bytes);
        self.bytes -= bytes;
        Reservation { budget: self.budget.clone(), bytes }
    }

    /// [`split`](Reservation::split), or `None` when it has fewer.
    pub(crate) fn try_split(&mut self, bytes: u64) -> Option<Reservation> {
        (bytes <= self.bytes).then(|| self.split(bytes))
    }

    /// Keeps the bytes reserved without this value; [`Budget::adopt`] takes them over.
    pub(crate) fn leak(mut self) -> u64 {
        std::mem::take(&mut self.bytes)
    }

    /// Adds the bytes of `other`, which must be of the same budget.
    ///
    /// # Panics
    /// When it is of another budget.
    pub fn merge(&mut self, mut other: Reservation) {
        assert!(Arc::ptr_eq(&self.budget.0, &other.budget.0), "reservations of one budget");
        self.bytes += std::mem::take(&mut other.bytes);
    }

    /// Gives back all but `bytes` bytes.
    ///
    /// # Panics
    /// When it has fewer.
    pub fn shrink_to(&mut self, bytes: u64) {
        drop(self.split(self.bytes.checked_sub(bytes).expect("a reservation shrinks")));
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.bytes > 0 {
            lower(&self.budget.0.used, self.bytes);
            self.budget.nudge();
        }
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reservation({} bytes)", self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_never_exceeded_and_everything_comes_back() {
        let budget = Budget::new(100);
        let mut a = budget.try_reserve(60).unwrap();
        assert!(budget.try_reserve(41).is_none());
        assert!(budget.try_reserve(u64::MAX).is_none());
        let b = a.split(20);
        assert_eq!((a.bytes(), b.bytes(), budget.used()), (40, 20, 60));
        a.shrink_to(10);
        assert_eq!(budget.used(), 30);
        a.merge(b);
        drop(a);
        assert_eq!((budget.used(), budget.peak()), (0, 60));
    }

    #[test]
    fn pins_and_speculation_have_shares_of_their_own() {
        let budget = Budget::new(100);
        assert!(budget.try_pin_at_once(50) && !budget.try_pin_at_once(1));
        assert!(budget.try_speculate(25) && !budget.try_speculate(1));
        budget.unpin(50);
        budget.unspeculate(25);
        assert_eq!((budget.pinned(), budget.speculative()), (0, 0));
    }
}
