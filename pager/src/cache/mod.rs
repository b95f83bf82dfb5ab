//! The ledger of a region: which of its units are where, and the only place that changes it.
//!
//! ```text
//!   fault thread --- fault(unit) ---+
//!   load --------- pin(unit) -------+--> claim, join, or nothing to do
//!   prefetch ----- speculate(unit) -+
//!
//!   fetch -------- install / stage / fail(unit) --> resident, staged, poisoned; waiters are told
//!   pool --------- evict(unit)                  --> absent, or fetched again if wanted meanwhile
//! ```
//!
//! The ledger owns no bytes of the object: they lie in the region's mapping, which it hands to the
//! [`Port`] that installs and discards.

mod state;
mod waiters;

use std::io;

pub(crate) use state::State;
pub(crate) use waiters::{Decided, Waiter};

use self::{
    state::{DEMANDED, FAULTED, SPECULATIVE, TOUCHED, WAITERS, Word, update},
    waiters::Waiters,
};
use crate::{
    budget::{Budget, Reservation},
    error::SourceError,
    frame::Frame,
    pool::{Evictable, Tenancy, Tenant},
    stats::{Counters, add},
    sync::{Arc, Mutex, Ordering, lock},
    sys::{LazyWords, Mapping, PAGE, Port},
    units::{Geometry, SPAN_BYTES, UnitIndex},
};

/// Locks over page-table spans; a span's lock is the one at its number modulo this.
const SPAN_LOCKS: usize = 64;

/// Wrong guesses that are remembered until the prefetch policy is told; more are forgotten.
const UNUSED_MAX: usize = 1024;

/// What a request for a unit comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Resident: nothing to do.
    Resident,
    /// The caller has claimed the unit and must have it fetched.
    Claimed,
    /// On its way as a guess until now; the caller must say that it is wanted.
    Late,
    /// Staged; the caller must have it put in place.
    Marker,
    /// Somebody else sees to it.
    Coming,
}

/// The pin limit stood in the way.
pub(crate) struct PinRefused;

/// States of all units of one region, over its memory.
pub(crate) struct Ledger {
    geometry: Geometry,
    words: LazyWords,
    /// Resident units of each span.
    span_counts: LazyWords,
    span_locks: [Mutex<()>; SPAN_LOCKS],
    memory: Option<Mapping>,
    port: Arc<dyn Port>,
    waiters: Waiters,
    /// Frames of staged units.
    staged: Mutex<std::collections::HashMap<u64, (Frame, Reservation)>>,
    unused: Mutex<Vec<u64>>,
    budget: Budget,
    tenancy: std::sync::OnceLock<Tenancy>,
    counters: Arc<Counters>,
    /// Asks for a unit that was wanted while it was leaving.
    again: Box<dyn Fn(u64) + Send + Sync>,
}

impl Ledger {
    /// A ledger of absent units over `memory` (`None` for an empty object).
    pub(crate) fn new(
        geometry: Geometry,
        memory: Option<Mapping>,
        port: Arc<dyn Port>,
        budget: Budget,
        counters: Arc<Counters>,
        again: Box<dyn Fn(u64) + Send + Sync>,
    ) -> io::Result<Ledger> {
        let too_large = |_| io::Error::from(io::ErrorKind::OutOfMemory);
        let units = usize::try_from(geometry.units()).map_err(too_large)?;
        let spans =
            usize::try_from(geometry.mapped_len().div_ceil(SPAN_BYTES)).map_err(too_large)?;
        Ok(Ledger {
            geometry,
            words: LazyWords::new(units)?,
            span_counts: LazyWords::new(spans)?,
            span_locks: std::array::from_fn(|_| Mutex::new(())),
            memory,
            port,
            waiters: Waiters::default(),
            staged: Mutex::default(),
            unused: Mutex::default(),
            budget,
            tenancy: std::sync::OnceLock::new(),
            counters,
            again,
        })
    }

    /// Gives the ledger its place in the pool, once, before anything is asked of it.
    pub(crate) fn settle(&self, tenancy: Tenancy) {
        assert!(self.tenancy.set(tenancy).is_ok(), "a ledger is settled once");
    }

    pub(crate) fn budget(&self) -> &Budget {
        &self.budget
    }

    pub(crate) fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The region's memory; `None` for an empty object.
    pub(crate) fn memory(&self) -> Option<&Mapping> {
        self.memory.as_ref()
    }

    /// Bytes to reserve for one unit before it is requested: the unit, and a page table that it may
    /// turn out to need.
    pub(crate) fn unit_cost(&self) -> u64 {
        self.geometry.unit_bytes() + PAGE as u64
    }

    fn tenancy(&self) -> &Tenancy {
        self.tenancy.get().expect("a ledger is settled before it is used")
    }

    fn mapping(&self) -> &Mapping {
        self.memory.as_ref().expect("an object with units has memory")
    }

    fn word(&self, unit: u64) -> &crate::sync::AtomicU32 {
        &self.words.as_slice()[unit as usize]
    }

    fn offset(&self, unit: u64) -> usize {
        self.geometry.start_of(UnitIndex(unit)).0 as usize
    }

    fn unit_len(&self) -> usize {
        self.geometry.unit_bytes() as usize
    }

    // ---- demand ---------------------------------------------------------------------------------

    /// A thread waits in a page fault on `unit`. Called by the fault thread: atomics only.
    pub(crate) fn fault(&self, unit: u64) -> Asked {
        let flags = DEMANDED | FAULTED;
        let asked = update(self.word(unit), |word| match word.state() {
            // A poisoned page whose marker went with its span faults again: another chance.
            State::Absent | State::Poisoned => Some(word.to(State::Fetching).with(flags)),
            State::Fetching | State::Staged => Some(word.with(flags).without(SPECULATIVE)),
            State::Leaving => Some(word.with(flags)),
            State::Resident => None,
        });
        match asked {
            // Installed between the fault and this look. Its wake-up may have passed.
            Err(_) => {
                let _ = self.port.wake(self.mapping(), self.offset(unit), self.unit_len());
                Asked::Resident
            }
            Ok((before, _)) => self.asked(before),
        }
    }

    /// A load wants `unit`: pins it, whatever its state, and claims it if it is absent.
    pub(crate) fn pin(&self, unit: u64) -> Result<Asked, PinRefused> {
        let unit_bytes = self.geometry.unit_bytes();
        let mut counted = false;
        let outcome = update(self.word(unit), |word| {
            if word.pins() == 0 && !counted {
                // Counted before the pin is visible, so that pins never exceed their share.
                if !self.budget.try_pin(unit_bytes) {
                    return None;
                }
                counted = true;
            }
            let pinned = word.pinned()?;
            Some(match word.state() {
                State::Absent | State::Poisoned => pinned.to(State::Fetching).with(DEMANDED),
                State::Fetching | State::Staged => pinned.with(DEMANDED).without(SPECULATIVE),
                State::Leaving => pinned.with(DEMANDED),
                State::Resident => pinned.with(TOUCHED).without(SPECULATIVE),
            })
        });
        match outcome {
            Ok((before, _)) => {
                if counted && before.pins() > 0 {
                    // Somebody else's pin came first and counts.
                    self.budget.unpin(unit_bytes);
                }
                if before.state() == State::Resident && before.has(SPECULATIVE) {
                    self.guess_was_right();
                }
                Ok(self.asked(before))
            }
            Err(_) => {
                if counted {
                    self.budget.unpin(unit_bytes);
                }
                Err(PinRefused)
            }
        }
    }

    /// Ends one pin of `unit`.
    pub(crate) fn unpin(&self, unit: u64) {
        let unpinned = update(self.word(unit), |word| Some(word.unpinned()));
        if unpinned.is_ok_and(|(_, after)| after.pins() == 0) {
            self.budget.unpin(self.geometry.unit_bytes());
        }
    }

    fn asked(&self, before: Word) -> Asked {
        match before.state() {
            State::Resident => Asked::Resident,
            State::Poisoned => {
                add(&self.counters.healed, 1);
                Asked::Claimed
            }
            State::Absent => Asked::Claimed,
            State::Fetching | State::Staged if before.has(SPECULATIVE) => {
                self.guess_was_right();
                if before.state() == State::Staged { Asked::Marker } else { Asked::Late }
            }
            State::Staged if !before.has(DEMANDED) => Asked::Marker,
            State::Fetching | State::Staged | State::Leaving => Asked::Coming,
        }
    }

    fn guess_was_right(&self) {
        self.budget.unspeculate(self.geometry.unit_bytes());
        add(&self.counters.prefetch_used, 1);
    }

    /// Registers `waiter` for `unit`, which the caller has pinned. False if it is resident.
    pub(crate) fn wait(&self, unit: u64, waiter: &Arc<Waiter>) -> bool {
        self.waiters.add_if(unit, waiter, || {
            update(self.word(unit), |word| match word.state() {
                State::Resident => None,
                _ => Some(word.with(WAITERS)),
            })
            .is_ok()
        })
    }

    /// Claims `unit`, which the caller has pinned, if nobody is seeing to it.
    pub(crate) fn claim_if_idle(&self, unit: u64) -> bool {
        update(self.word(unit), |word| {
            matches!(word.state(), State::Absent | State::Poisoned)
                .then(|| word.to(State::Fetching).with(DEMANDED))
        })
        .is_ok()
    }

    /// Discards the units of `units` that are resident and not pinned. Costs time by what is
    /// resident, not by the length of the range.
    pub(crate) fn discard(&self, units: std::ops::Range<u64>) {
        if units.is_empty() {
            return;
        }
        let per_span = (SPAN_BYTES / self.geometry.unit_bytes()).max(1);
        let counts = self.span_counts.as_slice();
        for span in units.start / per_span..=(units.end - 1) / per_span {
            if counts[span as usize].load(Ordering::Relaxed) == 0 {
                continue;
            }
            let first = (span * per_span).max(units.start);
            for unit in first..((span + 1) * per_span).min(units.end) {
                self.evict(unit);
            }
        }
    }

    /// Whether somebody has asked for `unit`, which is on its way.
    pub(crate) fn is_demanded(&self, unit: u64) -> bool {
        Word(self.word(unit).load(Ordering::SeqCst)).has(DEMANDED)
    }

    // ---- speculation ----------------------------------------------------------------------------

    /// Claims `unit` as a guess if it is absent and speculation's share has room.
    pub(crate) fn speculate(&self, unit: u64) -> Speculated {
        if Word(self.word(unit).load(Ordering::SeqCst)).state() != State::Absent {
            return Speculated::NotAbsent;
        }
        let unit_bytes = self.geometry.unit_bytes();
        if !self.budget.try_speculate(unit_bytes) {
            return Speculated::NoRoom;
        }
        let claimed = update(self.word(unit), |word| {
            (word.state() == State::Absent)
                .then(|| word.to(State::Fetching).with(SPECULATIVE).without(DEMANDED | FAULTED))
        });
        match claimed {
            Ok(_) => Speculated::Claimed,
            Err(_) => {
                self.budget.unspeculate(unit_bytes);
                Speculated::NotAbsent
            }
        }
    }

    /// The stream has passed `unit`: if it was a guess, it was right.
    pub(crate) fn confirm(&self, unit: u64) {
        let confirmed = update(self.word(unit), |word| {
            word.has(SPECULATIVE).then(|| word.without(SPECULATIVE))
        });
        if confirmed.is_ok() {
            self.guess_was_right();
        }
    }

    /// Gives up `unit` if it is a guess that nobody has confirmed. Returns whether it did.
    pub(crate) fn drop_guess(&self, unit: u64) -> bool {
        let word = Word(self.word(unit).load(Ordering::SeqCst));
        if !word.has(SPECULATIVE) {
            return false;
        }
        match word.state() {
            State::Resident => self.evict(unit),
            State::Staged => self.unstage(unit),
            _ => false,
        }
    }

    fn unstage(&self, unit: u64) -> bool {
        // The word changes under the lock: a new claim of this unit can stage bytes again only
        // after the old ones are gone.
        let mut staged = lock(&self.staged);
        let dropped = update(self.word(unit), |word| {
            (word.state() == State::Staged && !word.has(DEMANDED) && word.pins() == 0)
                .then(|| word.to(State::Absent).without(SPECULATIVE))
        });
        let Ok((before, _)) = dropped else { return false };
        let entry = staged.remove(&unit);
        drop(staged);
        drop(entry);
        if before.has(SPECULATIVE) {
            self.guess_was_wrong(unit);
        }
        true
    }

    fn guess_was_wrong(&self, unit: u64) {
        self.budget.unspeculate(self.geometry.unit_bytes());
        add(&self.counters.prefetch_unused, 1);
        metrics::counter!("pager.prefetch.unused").increment(1);
        let mut unused = lock(&self.unused);
        if unused.len() < UNUSED_MAX {
            unused.push(unit);
        }
    }

    /// The wrong guesses since the last call.
    pub(crate) fn take_unused(&self) -> Vec<u64> {
        std::mem::take(&mut *lock(&self.unused))
    }

    // ---- bytes ----------------------------------------------------------------------------------

    /// Puts a claimed unit in place and tells who waits. `frame` holds the whole unit, padded;
    /// `charge` is [`unit_cost`](Ledger::unit_cost).
    pub(crate) fn install(
        &self,
        unit: u64,
        frame: Frame,
        mut charge: Reservation,
    ) -> io::Result<()> {
        assert_eq!(frame.filled().len(), self.unit_len(), "units are installed whole");
        let word = Word(self.word(unit).load(Ordering::SeqCst));
        let demanded = word.has(DEMANDED) || word.pins() > 0;
        self.tenancy().installed(unit, self.geometry.unit_bytes(), demanded);
        let span = self.geometry.span_of(UnitIndex(unit)) as usize;
        {
            let _span = lock(&self.span_locks[span % SPAN_LOCKS]);
            if let Err(error) = self.port.install(self.mapping(), self.offset(unit), frame) {
                self.tenancy().removed(unit);
                return Err(error);
            }
            let before = self.span_counts.as_slice()[span].fetch_add(1, Ordering::Relaxed);
            if before > 0 {
                charge.shrink_to(self.geometry.unit_bytes());
            }
        }
        charge.leak();
        add(&self.counters.units_installed, 1);
        add(&self.counters.units_resident, 1);
        let flags = DEMANDED | FAULTED | WAITERS;
        let (before, _) = update(self.word(unit), |word| {
            let touched = if word.has(DEMANDED) { 0 } else { TOUCHED };
            Some(word.to(State::Resident).without(flags | touched))
        })
        .expect("every word can become resident");
        if before.has(WAITERS) {
            self.waiters.complete(unit, &Ok(()));
        }
        Ok(())
    }

    /// Keeps a marker's bytes without mapping them, if nobody has asked for it meanwhile; else puts
    /// it in place.
    pub(crate) fn stage(&self, unit: u64, frame: Frame, charge: Reservation) -> io::Result<()> {
        lock(&self.staged).insert(unit, (frame, charge));
        let staged = update(self.word(unit), |word| {
            (!word.has(DEMANDED) && word.pins() == 0).then(|| word.to(State::Staged))
        });
        match staged {
            Ok(_) => Ok(()),
            Err(_) => self.install_staged(unit),
        }
    }

    /// Puts the bytes of a staged unit that somebody has asked for in place.
    pub(crate) fn install_staged(&self, unit: u64) -> io::Result<()> {
        let entry = lock(&self.staged).remove(&unit);
        match entry {
            Some((frame, charge)) => self.install(unit, frame, charge),
            // Put in place by somebody else already.
            None => Ok(()),
        }
    }

    /// Bytes of a claimed unit cannot be had: tells the loads that wait, and poisons the unit if a
    /// fault waits. Returns the state that it left the unit in; the error is the kernel's, when it
    /// cannot poison.
    pub(crate) fn fail(&self, unit: u64, error: &SourceError) -> io::Result<State> {
        let flags = DEMANDED | FAULTED | WAITERS | SPECULATIVE;
        loop {
            let word = Word(self.word(unit).load(Ordering::SeqCst));
            let next = if word.has(FAULTED) {
                let span = self.geometry.span_of(UnitIndex(unit)) as usize;
                let _span = lock(&self.span_locks[span % SPAN_LOCKS]);
                self.port.fail(self.mapping(), self.offset(unit), self.unit_len())?;
                State::Poisoned
            } else {
                State::Absent
            };
            let changed = update(self.word(unit), |now| {
                (now.has(FAULTED) == word.has(FAULTED)).then(|| now.to(next).without(flags))
            });
            let Ok((before, _)) = changed else { continue };
            if next == State::Poisoned {
                add(&self.counters.poisoned, 1);
                metrics::counter!("pager.poison.units").increment(1);
            }
            if before.has(SPECULATIVE) {
                self.budget.unspeculate(self.geometry.unit_bytes());
            }
            if before.has(WAITERS) {
                self.waiters.complete(unit, &Err(error.clone()));
            }
            return Ok(next);
        }
    }

    /// Takes a claim back that was never served, so that the unit can be claimed again. Keeps what
    /// was asked of it meanwhile: true if the unit is wanted and stays claimed.
    pub(crate) fn unclaim(&self, unit: u64) -> bool {
        let released = update(self.word(unit), |word| {
            (word.state() == State::Fetching && !word.has(DEMANDED))
                .then(|| word.to(State::Absent).without(SPECULATIVE))
        });
        match released {
            Ok((before, _)) => {
                if before.has(SPECULATIVE) {
                    self.budget.unspeculate(self.geometry.unit_bytes());
                }
                false
            }
            Err(_) => true,
        }
    }

    // ---- leaving --------------------------------------------------------------------------------

    /// Takes everything away that is resident or staged, when nobody can ask any more and no guard
    /// is left.
    pub(crate) fn retire(&self) {
        let staged: Vec<u64> = lock(&self.staged).keys().copied().collect();
        for unit in staged {
            self.unstage(unit);
        }
        self.discard(0..self.geometry.units());
    }

    /// Discards `unit`, which is in `Leaving`, and decides what becomes of it.
    fn leave(&self, unit: u64, before: Word) {
        self.tenancy().removed(unit);
        let span = self.geometry.span_of(UnitIndex(unit)) as usize;
        let mut freed = self.geometry.unit_bytes();
        {
            let _span = lock(&self.span_locks[span % SPAN_LOCKS]);
            let mapping = self.mapping();
            let left = self.span_counts.as_slice()[span].fetch_sub(1, Ordering::Relaxed) - 1;
            let (offset, len) = if left == 0 {
                // The whole span, so that the kernel frees the page table too.
                freed += PAGE as u64;
                let start = span * SPAN_BYTES as usize;
                (start, (SPAN_BYTES as usize).min(mapping.len() - start))
            } else {
                (self.offset(unit), self.unit_len())
            };
            if let Err(error) = self.port.discard(mapping, offset, len) {
                // Only a mapping that is not ours any more refuses; going on would show old bytes
                // as new ones.
                crate::fault::stop_process(&format!("cannot discard a unit: {error}"));
            }
        }
        self.budget.release(freed);
        add(&self.counters.units_evicted, 1);
        self.counters.units_resident.fetch_sub(1, Ordering::Relaxed);
        metrics::counter!("pager.evict.units").increment(1);
        if before.has(SPECULATIVE) {
            self.guess_was_wrong(unit);
        }
        let (_, after) = update(self.word(unit), |word| {
            let word = word.without(SPECULATIVE | TOUCHED);
            Some(word.to(if word.has(DEMANDED) { State::Fetching } else { State::Absent }))
        })
        .expect("every word can leave");
        if after.state() == State::Fetching {
            (self.again)(unit);
        }
    }
}

/// What became of a guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speculated {
    /// The caller must have it fetched.
    Claimed,
    /// It is here or on its way.
    NotAbsent,
    /// Speculation has used up its share.
    NoRoom,
}

impl Tenant for Ledger {
    fn evictable(&self, entry: u64) -> Evictable {
        let word = Word(self.word(entry).load(Ordering::SeqCst));
        if word.state() != State::Resident || word.pins() > 0 {
            return Evictable::No;
        }
        if word.has(TOUCHED) {
            let _ =
                update(self.word(entry), |word| word.has(TOUCHED).then(|| word.without(TOUCHED)));
            return Evictable::Touched;
        }
        Evictable::Yes
    }

    fn evict(&self, entry: u64) -> bool {
        let left = update(self.word(entry), |word| {
            (word.state() == State::Resident && word.pins() == 0).then(|| word.to(State::Leaving))
        });
        match left {
            Ok((before, _)) => {
                self.leave(entry, before);
                true
            }
            Err(_) => false,
        }
    }
}
