//! The ledger of a region: which of its units are where, and the only place that changes it.
//!
//! ```text
//!   fault thread --- fault(unit) ---+
//!   load --------- pin(unit) -------+--> claim, join, or nothing to do
//!   prefetch ----- speculate(unit) -+
//!
//!   fault thread - place(unit) -------------------> resident, if the bytes are in memory; then
//!   engine ------- announce(unit) ----------------> the policy and waiters are told
//!   fetch -------- install / stage / fail(unit) --> resident, staged, poisoned; waiters are told
//!   pool --------- evict(unit)                  --> absent, or fetched again if wanted meanwhile
//! ```
//!
//! The ledger owns no bytes of the object: they lie in the region's mapping, which it hands to the
//! [`Port`] that installs and discards.

mod changes;
#[cfg(all(test, shuttle))]
mod model;
mod state;
mod waiters;
mod words;

use std::io;

pub(crate) use state::State;
pub(crate) use waiters::{Decided, Tidings, Waiter, WaitsBy};

use self::{
    changes::Changes,
    state::{
        COUNTED, DEMANDED, FAULTED, HEALING, KEPT, SPECULATIVE, TOUCHED, UNTOLD, WAITERS, Word,
    },
    waiters::Waiters,
    words::Words,
};
use crate::{
    budget::{Budget, Reservation},
    error::SourceError,
    frame::Frame,
    pool::{Evictable, Tenancy, Tenant},
    stats::{Counters, add},
    sync::{Arc, AtomicU32, AtomicU64, Mutex, Ordering, lock, try_lock},
    sys::{LazyWords, Mapping, PAGE, Port},
    units::{Geometry, SPAN_BYTES, UnitIndex},
};

/// In the count of a span: its page table is there and charged, though nothing is resident.
const TABLE: u32 = 1 << 31;

/// Locks over page-table spans; a span's lock is the one at its number modulo this.
const SPAN_LOCKS: usize = 64;

/// How often the pin limit is looked at again, after what only seemed to be pinned was given back,
/// before a load is refused: others may have taken that.
const COUNT_ATTEMPTS: usize = 8;

/// Wrong guesses that are remembered until the prefetch policy is told; more are forgotten.
const UNUSED_MAX: usize = 1024;

/// Bytes that [`Ledger::place`] copies at most: more would hold up the faults behind it.
const COPIED_MAX: usize = 64 << 10;

/// What a request for a unit comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Resident: nothing to do.
    Resident,
    /// Resident, and a guess until now: the prefetch policy should hear that it was of use.
    Used,
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

/// The bytes of a whole unit, padded, and what they are charged with.
///
/// To drop it may take locks, as frames and bytes of the budget go back to where others wait for them.
pub(crate) struct Held {
    pub(crate) frame: Frame,
    pub(crate) charge: Reservation,
}

/// States of all units of one region, over its memory.
pub(crate) struct Ledger {
    /// The number of the region in its pager.
    region: u64,
    geometry: Geometry,
    words: Words,
    /// Resident units of each span, and [`TABLE`].
    span_counts: LazyWords,
    span_locks: [Mutex<()>; SPAN_LOCKS],
    memory: Option<Mapping>,
    port: Arc<dyn Port>,
    waiters: Waiters,
    changes: Changes,
    /// Frames of staged units.
    staged: Mutex<std::collections::HashMap<u64, Held>>,
    unused: Mutex<Vec<u64>>,
    /// Units that count against the pin limit, pinned or not. A count is given back under this
    /// lock, so that whoever finds the limit reached, takes it, and looks again, finds what is
    /// really pinned.
    counted: Mutex<std::collections::HashSet<u64>>,
    budget: Budget,
    /// Units that are guesses which nobody has confirmed: what this region has of speculation's
    /// share.
    guesses: AtomicU64,
    tenancy: std::sync::OnceLock<Tenancy>,
    counters: Arc<Counters>,
    /// Asks for a unit that was wanted while it was leaving.
    again: Box<dyn Fn(u64) + Send + Sync>,
}

impl Ledger {
    /// A ledger of absent units over `memory` (`None` for an empty object).
    pub(crate) fn new(
        region: u64,
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
            region,
            geometry,
            words: Words::new(units)?,
            span_counts: LazyWords::new(spans)?,
            span_locks: std::array::from_fn(|_| Mutex::new(())),
            memory,
            port,
            waiters: Waiters::default(),
            changes: Changes::default(),
            staged: Mutex::default(),
            unused: Mutex::default(),
            counted: Mutex::default(),
            budget,
            guesses: AtomicU64::new(0),
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

    fn change(
        &self,
        unit: u64,
        step: impl FnMut(Word) -> Option<Word>,
    ) -> Result<(Word, Word), Word> {
        self.words.change(unit, step)
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
        let asked = self.change(unit, |word| match word.state() {
            // A poisoned page whose marker went with its span faults again: another chance.
            State::Absent => Some(word.to(State::Fetching).with(flags)),
            State::Poisoned => Some(word.to(State::Fetching).with(flags | HEALING)),
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
        // Mostly it counts against the limit already.
        let pinned = self.change(unit, |word| if word.has(COUNTED) { pinned(word) } else { None });
        let before = match pinned {
            Ok((before, _)) => before,
            Err(word) if word.has(COUNTED) => return Err(PinRefused),
            Err(_) => self.count_and_pin(unit)?,
        };
        if before.state() == State::Resident && before.has(SPECULATIVE) {
            self.guess_was_right();
            return Ok(Asked::Used);
        }
        Ok(self.asked(before))
    }

    /// Pins `unit`, which did not count against the pin limit a moment ago.
    fn count_and_pin(&self, unit: u64) -> Result<Word, PinRefused> {
        self.count_and_pin_by(unit, pinned)
    }

    /// The same by `step`, which gives the word one pin more.
    fn count_and_pin_by(
        &self,
        unit: u64,
        step: impl Fn(Word) -> Option<Word>,
    ) -> Result<Word, PinRefused> {
        for _ in 0..COUNT_ATTEMPTS {
            // Whether a unit counts changes under this lock only, so that of several who pin it
            // first, one counts it and no other finds its room taken by that.
            let mut counted = lock(&self.counted);
            let counts = self.words.get(unit).has(COUNTED);
            if counts || self.budget.try_pin_at_once(self.unit_cost()) {
                return match self.change(unit, |word| Some(step(word)?.with(COUNTED))) {
                    Ok((before, _)) => {
                        counted.insert(unit);
                        Ok(before)
                    }
                    Err(_) => {
                        if !counts {
                            self.budget.unpin(self.unit_cost());
                        }
                        Err(PinRefused)
                    }
                };
            }
            drop(counted);
            self.budget.release_idle_pins();
        }
        Err(PinRefused)
    }

    /// Ends one pin of `unit`.
    pub(crate) fn unpin(&self, unit: u64) {
        self.unpin_by(unit, Word::unpinned);
    }

    fn unpin_by(&self, unit: u64, step: impl Fn(Word) -> Word) {
        let Ok((_, after)) = self.change(unit, |word| Some(step(word))) else { return };
        if after.pins() == 0 {
            if after.state() != State::Resident {
                self.uncount(unit);
            }
            // It may be what somebody waits to evict.
            self.budget.nudge();
        }
    }

    /// Keeps `unit`, which the caller has pinned, because it is written to: one pin more until
    /// [`unkeep`](Ledger::unkeep). False if the share of the budget that may be dirty has no room.
    pub(crate) fn keep(&self, unit: u64) -> bool {
        if !self.budget.try_dirty(self.unit_cost()) {
            return false;
        }
        let kept = self.pin(unit).is_ok();
        if !kept {
            self.budget.undirty(self.unit_cost());
        }
        kept
    }

    /// [`keep`](Ledger::keep) for a unit that is about to be written, wherever it is: nothing is asked for
    /// before it is touched. It may be fetched `ahead` of that all the same, as if nobody had it; one caller at
    /// a time keeps a unit like that.
    pub(crate) fn keep_untouched(&self, unit: u64, ahead: bool) -> Kept {
        if !self.budget.try_dirty(self.unit_cost()) {
            return Kept::NoRoom;
        }
        let keep = |word: Word| Some(word.pinned()?.with(if ahead { KEPT } else { 0 }));
        let held = self.change(unit, |word| if word.has(COUNTED) { keep(word) } else { None });
        if held.is_ok() || self.count_and_pin_by(unit, keep).is_ok() {
            return Kept::Yes;
        }
        self.budget.undirty(self.unit_cost());
        Kept::PinRefused
    }

    /// Resolves when `done` holds, which looks at states of units. Looks again whenever one has changed to
    /// what is not on its way to somewhere else.
    pub(crate) async fn until(&self, done: impl Fn() -> bool) {
        self.changes.until(done).await;
    }

    /// Whether `unit` is in place.
    pub(crate) fn is_resident(&self, unit: u64) -> bool {
        self.words.get(unit).state() == State::Resident
    }

    /// Whether `unit` is fetched, or about to be put in place.
    pub(crate) fn is_coming(&self, unit: u64) -> bool {
        let word = self.words.get(unit);
        // A marker that was touched is put in place from where it is.
        word.state() == State::Fetching || word.state() == State::Staged && word.has(DEMANDED)
    }

    /// Whether `unit` is just being given up: its pages may be there, and go.
    pub(crate) fn is_leaving(&self, unit: u64) -> bool {
        self.words.get(unit).state() == State::Leaving
    }

    /// Whether `unit` could not be had.
    pub(crate) fn is_poisoned(&self, unit: u64) -> bool {
        self.words.get(unit).state() == State::Poisoned
    }

    /// Calls `work` with the bytes of `units` that lie in each page-table span, while nothing is put in place
    /// there or given up.
    pub(crate) fn in_each_span(
        &self,
        units: std::ops::Range<u64>,
        mut work: impl FnMut(&Mapping, std::ops::Range<usize>) -> io::Result<()>,
    ) -> io::Result<()> {
        let (mut at, end) = (self.offset(units.start), self.offset(units.end));
        while at < end {
            let span = at / SPAN_BYTES as usize;
            let next = ((span + 1) * SPAN_BYTES as usize).min(end);
            let _span = lock(&self.span_locks[span % SPAN_LOCKS]);
            work(self.mapping(), at..next)?;
            at = next;
        }
        Ok(())
    }

    /// What was written to `unit` is in the object, or nobody writes to it any more.
    pub(crate) fn unkeep(&self, unit: u64) {
        self.budget.undirty(self.unit_cost());
        // What is dirty is there. So where a map and what it wrote before keep a unit, it is no matter which of
        // them goes first.
        self.unpin_by(unit, |word| word.without(KEPT).unpinned());
    }

    /// Gives back what `unit` counts against the pin limit, unless it is pinned.
    fn uncount(&self, unit: u64) {
        let mut counted = lock(&self.counted);
        if self.clear_count(unit) {
            counted.remove(&unit);
        }
    }

    /// Called with `counted` locked. False if the unit is pinned.
    fn clear_count(&self, unit: u64) -> bool {
        let cleared = self.change(unit, |word| {
            (word.has(COUNTED) && word.pins() == 0).then(|| word.without(COUNTED))
        });
        match cleared {
            Ok(_) => self.budget.unpin(self.unit_cost()),
            Err(word) => return word.pins() == 0,
        }
        true
    }

    fn asked(&self, before: Word) -> Asked {
        match before.state() {
            State::Resident => Asked::Resident,
            State::Absent | State::Poisoned => Asked::Claimed,
            // The first to ask, whether the stream has passed it already or not.
            State::Fetching | State::Staged if !before.has(DEMANDED) => {
                if before.has(SPECULATIVE) {
                    self.guess_was_right();
                }
                if before.state() == State::Staged { Asked::Marker } else { Asked::Late }
            }
            State::Fetching | State::Staged | State::Leaving => Asked::Coming,
        }
    }

    /// One guess less counts against speculation's share.
    fn guess_no_more(&self) {
        self.budget.unspeculate(self.unit_cost());
        self.guesses.fetch_sub(1, Ordering::Relaxed);
    }

    /// Units that are guesses which nobody has confirmed.
    pub(crate) fn guesses(&self) -> u64 {
        self.guesses.load(Ordering::Relaxed)
    }

    fn guess_was_right(&self) {
        self.guess_no_more();
        add(&self.counters.prefetch_used, 1);
    }

    /// Registers `waiter` for `unit`, which the caller has pinned. False if it is resident.
    pub(crate) fn wait(&self, unit: u64, waiter: &Arc<Waiter>) -> bool {
        self.waiters.add_if(unit, waiter, || {
            self.change(unit, |word| match word.state() {
                State::Resident => None,
                _ => Some(word.with(WAITERS)),
            })
            .is_ok()
        })
    }

    /// Claims `unit`, which the caller has pinned, if nobody is seeing to it.
    pub(crate) fn claim_if_idle(&self, unit: u64) -> bool {
        self.change(unit, |word| match word.state() {
            State::Absent => Some(word.to(State::Fetching).with(DEMANDED)),
            State::Poisoned => Some(word.to(State::Fetching).with(DEMANDED | HEALING)),
            _ => None,
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
            if counts[span as usize].load(Ordering::Relaxed) & !TABLE == 0 {
                continue;
            }
            let first = (span * per_span).max(units.start);
            for unit in first..((span + 1) * per_span).min(units.end) {
                let word = self.words.get(unit);
                // The policy must know it, too, before it hears that it left. What somebody waits for stays:
                // the engine is about to tell of it.
                if word.has(UNTOLD) && !word.has(WAITERS) {
                    drop(self.announce(unit));
                }
                self.evict(unit);
            }
        }
    }

    /// Whether somebody has asked for `unit`, which is on its way.
    pub(crate) fn is_demanded(&self, unit: u64) -> bool {
        self.words.get(unit).has(DEMANDED)
    }

    // ---- speculation ----------------------------------------------------------------------------

    /// Claims `unit` as a guess if it is absent and speculation's share has room.
    pub(crate) fn speculate(&self, unit: u64) -> Speculated {
        if !is_free(self.words.get(unit)) {
            return Speculated::NotAbsent;
        }
        let cost = self.unit_cost();
        if !self.budget.try_speculate(cost) {
            return Speculated::NoRoom;
        }
        // Counted before the claim is visible: whoever confirms it counts it out.
        add(&self.guesses, 1);
        let claimed = self.change(unit, |word| {
            is_free(word)
                .then(|| word.to(State::Fetching).with(SPECULATIVE).without(DEMANDED | FAULTED))
        });
        match claimed {
            Ok(_) => Speculated::Claimed,
            Err(_) => {
                self.guess_no_more();
                Speculated::NotAbsent
            }
        }
    }

    /// Claims `unit` if it is absent, to bring back what is still in memory. That costs no byte, so it is
    /// nobody's share of speculation. [`unclaim`](Ledger::unclaim) takes it back.
    pub(crate) fn claim_back(&self, unit: u64) -> bool {
        self.change(unit, |word| {
            is_free(word).then(|| word.to(State::Fetching).without(DEMANDED | FAULTED))
        })
        .is_ok()
    }

    /// The stream has passed `unit`: if it was a guess, it was right.
    pub(crate) fn confirm(&self, unit: u64) {
        let confirmed =
            self.change(unit, |word| word.has(SPECULATIVE).then(|| word.without(SPECULATIVE)));
        if let Ok((_, after)) = confirmed {
            self.guess_was_right();
            self.pass_over(unit, after);
        }
    }

    /// Gives up `unit` if it is a guess that nobody has confirmed. Returns whether it did.
    pub(crate) fn drop_guess(&self, unit: u64) -> bool {
        let word = self.words.get(unit);
        if !word.has(SPECULATIVE) {
            return false;
        }
        match word.state() {
            State::Resident => self.evict(unit) || self.write_off(unit),
            State::Staged => self.unstage(unit),
            _ => false,
        }
    }

    /// Counts `unit` as a wrong guess, which a map keeps and so cannot be given up. Its bytes are in the share
    /// of what may be dirty, and need none of speculation's.
    fn write_off(&self, unit: u64) -> bool {
        let wrong = SPECULATIVE | KEPT;
        let written_off = self.change(unit, |word| {
            (word.0 & wrong == wrong && word.state() == State::Resident)
                .then(|| word.without(SPECULATIVE))
        });
        if written_off.is_ok() {
            self.guess_was_wrong(unit);
        }
        written_off.is_ok()
    }

    /// Whether `unit` is a guess that nobody has confirmed.
    pub(crate) fn is_guess(&self, unit: u64) -> bool {
        self.words.get(unit).has(SPECULATIVE)
    }

    /// Counts `unit`, if it is a guess that nobody has confirmed, as a guess no more.
    pub(crate) fn forget_guess(&self, unit: u64) {
        let forgotten =
            self.change(unit, |word| word.has(SPECULATIVE).then(|| word.without(SPECULATIVE)));
        if let Ok((_, after)) = forgotten {
            self.guess_no_more();
            self.pass_over(unit, after);
        }
    }

    /// `unit` is a guess no more. A marker that its reader passed over goes: staged, and nobody's guess,
    /// it would be no victim of the pool and no part of speculation, and stay until the region closes.
    fn pass_over(&self, unit: u64, word: Word) {
        if word.state() == State::Staged {
            self.unstage(unit);
        }
    }

    fn unstage(&self, unit: u64) -> bool {
        // The word changes under the lock: a new claim of this unit can stage bytes again only
        // after the old ones are gone.
        let mut staged = lock(&self.staged);
        let dropped = self.change(unit, |word| {
            (word.state() == State::Staged && !word.has(DEMANDED) && word.claims() == 0)
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
        self.guess_no_more();
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

    /// Puts a claimed unit in place. `frame` holds the whole unit, padded; `charge` is
    /// [`unit_cost`](Ledger::unit_cost). Who waits is told when what this returns is dropped.
    pub(crate) fn install(
        &self,
        unit: u64,
        frame: Frame,
        mut charge: Reservation,
    ) -> io::Result<Tidings> {
        assert_eq!(frame.filled().len(), self.unit_len(), "units are installed whole");
        let word = self.words.get(unit);
        let demanded = word.has(DEMANDED) || word.claims() > 0;
        self.tenancy().installed(unit, self.geometry.unit_bytes(), demanded);
        let span = self.geometry.span_of(UnitIndex(unit)) as usize;
        {
            let _span = lock(&self.span_locks[span % SPAN_LOCKS]);
            if let Err(error) = self.port.install(self.mapping(), self.offset(unit), frame) {
                // Part of it may be there, and nobody would know.
                self.discard_pages(self.offset(unit), self.unit_len());
                self.tenancy().removed(unit);
                return Err(error);
            }
            let before = self.span_counts.as_slice()[span].fetch_add(1, Ordering::Relaxed);
            if before > 0 {
                charge.shrink_to(self.geometry.unit_bytes());
            }
        }
        charge.leak();
        let before = self.arrive(unit, 0);
        self.changes.tell();
        match before.has(WAITERS) {
            true => Ok(self.announce(unit)),
            false => Ok(Tidings::none()),
        }
    }

    /// [`install`](Ledger::install) on the fault thread: waits for no lock, runs no code of the program's
    /// own, copies 64 KiB at most, and drops nothing. False if it takes more than that: then nothing has
    /// changed.
    ///
    /// A unit that is in place is no victim until somebody else says so: see
    /// [`announce`](Ledger::announce). What is left in `held` then is a spent frame, and bytes that the
    /// unit turned out not to need. After an error the bytes are gone, and the unit is claimed still.
    pub(crate) fn place(&self, unit: u64, held: &mut Held) -> io::Result<bool> {
        assert_eq!(held.frame.filled().len(), self.unit_len(), "units are installed whole");
        if !self.top_up(&mut held.charge) {
            return Ok(false);
        }
        let span = self.geometry.span_of(UnitIndex(unit)) as usize;
        let Some(locked) = try_lock(&self.span_locks[span % SPAN_LOCKS]) else { return Ok(false) };
        let (mapping, offset) = (self.mapping(), self.offset(unit));
        match self.port.try_install(mapping, offset, &mut held.frame, COPIED_MAX) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(error) => {
                self.discard_pages(offset, self.unit_len());
                return Err(error);
            }
        }
        let before = self.span_counts.as_slice()[span].fetch_add(1, Ordering::Relaxed);
        drop(locked);
        let table = if before == 0 { PAGE as u64 } else { 0 };
        held.charge.split(self.geometry.unit_bytes() + table).leak();
        self.arrive(unit, UNTOLD);
        Ok(true)
    }

    /// The claimed `unit` is in place: says so in its word, with `more` flags. Returns the word before.
    fn arrive(&self, unit: u64, more: u32) -> Word {
        add(&self.counters.units_installed, 1);
        add(&self.counters.units_resident, 1);
        let flags = DEMANDED | FAULTED | HEALING;
        let (before, _) = self
            .change(unit, |word| {
                let touched = if word.has(DEMANDED) { 0 } else { TOUCHED };
                Some(word.to(State::Resident).without(flags | touched).with(more))
            })
            .expect("every word can become resident");
        self.port.settled(self.mapping(), self.offset(unit), self.unit_len());
        if before.has(HEALING) {
            add(&self.counters.healed, 1);
        }
        before
    }

    /// Tells the policy of `unit`, if it was [placed](Ledger::place), and takes those who wait for it. From
    /// here on it may be evicted. Nothing is done about a unit that somebody else has announced, or that
    /// has left since.
    pub(crate) fn announce(&self, unit: u64) -> Tidings {
        // Under one lock, so that of several who come here one tells the policy, before the unit can leave.
        let tidings = self.waiters.take_if(unit, || {
            if self.words.get(unit).has(UNTOLD) {
                self.tenancy().installed(unit, self.geometry.unit_bytes(), true);
            }
            let kept = UNTOLD | WAITERS;
            self.change(unit, |word| {
                (word.state() == State::Resident && word.has(kept)).then(|| word.without(kept))
            })
            .is_ok()
        });
        // It was put in place by a thread that tells nobody.
        self.changes.tell();
        // It may be what somebody waits to evict.
        self.budget.nudge();
        tidings
    }

    /// Makes `charge` enough for a unit. False if the budget has no room for that now.
    fn top_up(&self, charge: &mut Reservation) -> bool {
        let missing = self.unit_cost().saturating_sub(charge.bytes());
        if missing == 0 {
            return true;
        }
        match self.budget.try_reserve(missing) {
            Some(rest) => {
                charge.merge(rest);
                true
            }
            None => false,
        }
    }

    /// `frame`, which is that of an evicted unit, and the charge that it has kept.
    pub(crate) fn held(&self, mut frame: Frame) -> Held {
        let charge = frame.take_charge().unwrap_or_else(|| self.budget.adopt(0));
        Held { frame, charge }
    }

    /// Keeps a marker's bytes without mapping them, if it is a guess still and nobody has asked for it
    /// meanwhile; else puts it in place, as [`install`](Ledger::install) does.
    pub(crate) fn stage(
        &self,
        unit: u64,
        frame: Frame,
        charge: Reservation,
    ) -> io::Result<Tidings> {
        lock(&self.staged).insert(unit, Held { frame, charge });
        let staged = self.change(unit, |word| {
            let is_guess = word.has(SPECULATIVE) && !word.has(DEMANDED) && word.claims() == 0;
            is_guess.then(|| word.to(State::Staged))
        });
        match staged {
            Ok(_) => {
                self.changes.tell();
                Ok(Tidings::none())
            }
            Err(_) => self.install_staged(unit),
        }
    }

    /// Puts the bytes of a claimed unit in place, or stages it as a `marker`: bytes that are still in memory
    /// since it was evicted. After an error they are gone, and the unit must be fetched.
    pub(crate) fn restore(&self, unit: u64, held: Held, marker: bool) -> io::Result<Tidings> {
        let Held { frame, mut charge } = held;
        if !self.top_up(&mut charge) {
            return Err(io::Error::other("the budget has no room for a page table"));
        }
        match marker {
            true => self.stage(unit, frame, charge),
            false => self.install(unit, frame, charge),
        }
    }

    /// Puts the bytes of a staged unit that somebody has asked for in place, as
    /// [`install`](Ledger::install) does.
    pub(crate) fn install_staged(&self, unit: u64) -> io::Result<Tidings> {
        let entry = lock(&self.staged).remove(&unit);
        match entry {
            Some(Held { frame, charge }) => self.install(unit, frame, charge),
            // Put in place by somebody else already.
            None => Ok(Tidings::none()),
        }
    }

    /// The bytes of a staged unit that the caller is the first to ask for. `None` too while somebody else
    /// has the lock: for the fault thread, which must not wait.
    pub(crate) fn try_take_staged(&self, unit: u64) -> Option<Held> {
        try_lock(&self.staged)?.remove(&unit)
    }

    /// Bytes of a claimed unit cannot be had: poisons the unit if a fault waits. Returns the state that it
    /// left the unit in, and the loads that wait, which are told when that is dropped; the error is the
    /// kernel's, when it cannot poison.
    ///
    /// Unless the cause was `told`, a unit that a fault waits for stays as it is (`Fetching`): the
    /// caller tells it first, because SIGBUS may leave no time for that afterwards.
    pub(crate) fn fail(
        &self,
        unit: u64,
        error: &SourceError,
        told: bool,
    ) -> io::Result<(State, Tidings)> {
        let flags = DEMANDED | FAULTED | WAITERS | SPECULATIVE | HEALING;
        let (before, next) = loop {
            let word = self.words.get(unit);
            let span = self.geometry.span_of(UnitIndex(unit)) as usize;
            // Held until the word has changed: whoever discards the span, and the marker with it,
            // comes before the marker is set or after the word says so.
            let _span = lock(&self.span_locks[span % SPAN_LOCKS]);
            let next = if word.has(FAULTED) {
                if !told && self.port.can_fail() {
                    return Ok((word.state(), Tidings::none()));
                }
                self.port.fail(self.mapping(), self.offset(unit), self.unit_len())?;
                State::Poisoned
            } else if word.has(HEALING) {
                // The marker of the last time is still there.
                State::Poisoned
            } else {
                State::Absent
            };
            let flagged = |word: Word| (word.has(FAULTED), word.has(HEALING));
            let changed = self.change(unit, |now| {
                (flagged(now) == flagged(word)).then(|| now.to(next).without(flags))
            });
            if let Ok((before, _)) = changed {
                break (before, next);
            }
        };
        if next == State::Poisoned {
            self.port.settled(self.mapping(), self.offset(unit), self.unit_len());
        }
        if next == State::Poisoned && !before.has(HEALING) {
            add(&self.counters.poisoned, 1);
            metrics::counter!("pager.poison.units").increment(1);
        }
        self.changes.tell();
        if before.has(SPECULATIVE) {
            self.guess_no_more();
        }
        let tidings = match before.has(WAITERS) {
            true => self.waiters.fail(unit, error),
            false => Tidings::none(),
        };
        Ok((next, tidings))
    }

    /// Takes back a claim for nobody that was not served, so that the unit can be claimed again.
    /// True if somebody has asked for it meanwhile: then it stays claimed, and must be fetched.
    pub(crate) fn unclaim(&self, unit: u64) -> bool {
        let released = self.change(unit, |word| {
            (word.state() == State::Fetching && !word.has(DEMANDED))
                .then(|| word.to(State::Absent).without(SPECULATIVE))
        });
        match released {
            Ok((before, _)) => {
                self.changes.tell();
                if before.has(SPECULATIVE) {
                    self.guess_no_more();
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
        self.release_idle_pins();
    }

    /// Takes pages away, under the lock of their span.
    fn discard_pages(&self, offset: usize, len: usize) {
        if let Err(error) = self.port.discard(self.mapping(), offset, len) {
            stop_for(&error);
        }
    }

    /// One unit less is resident in `span`, whose lock is held. True if its page table is charged no
    /// more: then all of the span is to be taken away, with which the table goes if the kernel lets
    /// it.
    fn leave_span(&self, span: usize) -> bool {
        let count = &self.span_counts.as_slice()[span];
        let left = count.fetch_sub(1, Ordering::Relaxed) - 1;
        if left != 0 {
            return false;
        }
        if !self.port.frees_tables() {
            if self.budget.try_keep_tables(PAGE as u64) {
                count.store(TABLE, Ordering::Relaxed);
                return false;
            }
            metrics::counter!("pager.table.uncharged").increment(1);
        }
        true
    }

    /// Discards `unit`, which is in `Leaving`, and decides what becomes of it.
    fn leave(&self, unit: u64, before: Word) {
        self.tenancy().removed(unit);
        let span = self.geometry.span_of(UnitIndex(unit)) as usize;
        let mut freed = self.geometry.unit_bytes();
        {
            let _span = lock(&self.span_locks[span % SPAN_LOCKS]);
            let mapping = self.mapping();
            let leaving = self.offset(unit)..self.offset(unit) + self.unit_len();
            let span = self.leave_span(span).then(|| {
                freed += PAGE as u64;
                let start = span * SPAN_BYTES as usize;
                start..(start + SPAN_BYTES as usize).min(mapping.len())
            });
            let (content, charge) = ((self.region, unit), self.budget.adopt(freed));
            if let Err(error) = self.port.evict(mapping, leaving, span, content, charge) {
                stop_for(&error);
            }
        }
        add(&self.counters.units_evicted, 1);
        self.counters.units_resident.fetch_sub(1, Ordering::Relaxed);
        metrics::counter!("pager.evict.units").increment(1);
        if before.has(SPECULATIVE) {
            self.guess_was_wrong(unit);
        }
        let (_, after) = self
            .change(unit, |word| {
                let word = word.without(SPECULATIVE | TOUCHED);
                Some(word.to(if word.has(DEMANDED) { State::Fetching } else { State::Absent }))
            })
            .expect("every word can leave");
        self.changes.tell();
        if after.has(COUNTED) && after.pins() == 0 {
            self.uncount(unit);
        }
        if after.state() == State::Fetching {
            (self.again)(unit);
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        // Guesses that were claimed and never sent for: no engine is left to take them back.
        self.budget.unspeculate(self.guesses() * self.unit_cost());
        // The memory goes before the charge of its page tables.
        drop(self.memory.take());
        if !self.port.frees_tables() {
            let kept = |count: &&AtomicU32| count.load(Ordering::Relaxed) & TABLE != 0;
            let tables = self.span_counts.as_slice().iter().filter(kept).count() as u64;
            self.budget.unkeep_tables(tables * PAGE as u64);
            drop(self.budget.adopt(tables * PAGE as u64));
        }
    }
}

/// Whether nobody has the unit or is about to: a load that pins an absent unit has just failed, or will
/// claim it for itself. A map that keeps it does not.
fn is_free(word: Word) -> bool {
    word.state() == State::Absent && word.claims() == 0 && !word.has(WAITERS)
}

/// The word of a unit that a load asks for, with one pin more. `None` at the most that it can count.
fn pinned(word: Word) -> Option<Word> {
    let pinned = word.pinned()?;
    Some(match word.state() {
        State::Absent => pinned.to(State::Fetching).with(DEMANDED),
        State::Poisoned => pinned.to(State::Fetching).with(DEMANDED | HEALING),
        State::Fetching | State::Staged => pinned.with(DEMANDED).without(SPECULATIVE),
        State::Leaving => pinned.with(DEMANDED),
        State::Resident => pinned.with(TOUCHED).without(SPECULATIVE),
    })
}

/// Only a mapping that is not ours any more refuses to be discarded; going on would show old bytes
/// as new ones.
fn stop_for(error: &io::Error) -> ! {
    crate::failure::stop_process(&format!("cannot discard a unit: {error}"))
}

/// What [`Ledger::keep_untouched`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// The unit stays.
    Yes,
    /// The share that may be dirty has no room.
    NoRoom,
    /// The pin limit stood in the way.
    PinRefused,
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
        let word = self.words.get(entry);
        // Who waits for it, or the policy itself, is yet to hear of it.
        if word.state() != State::Resident || word.pins() > 0 || word.has(UNTOLD | WAITERS) {
            return Evictable::No;
        }
        if word.has(TOUCHED) {
            let _ = self.change(entry, |word| word.has(TOUCHED).then(|| word.without(TOUCHED)));
            return Evictable::Touched;
        }
        Evictable::Yes
    }

    fn evict(&self, entry: u64) -> bool {
        let left = self.change(entry, |word| {
            let told = !word.has(UNTOLD | WAITERS);
            let idle = word.state() == State::Resident && word.pins() == 0 && told;
            // Who confirms a guess from now on finds nothing to confirm: it is counted here.
            idle.then(|| word.to(State::Leaving).without(SPECULATIVE))
        });
        match left {
            Ok((before, _)) => {
                self.leave(entry, before);
                true
            }
            Err(_) => false,
        }
    }

    fn release_idle_pins(&self) {
        lock(&self.counted).retain(|&unit| !self.clear_count(unit));
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::{pool::Pool, sys::Mapping};
    use std::sync::{OnceLock, Weak};

    type Hook = Box<dyn Fn(&Ledger) + Send + Sync>;
    #[derive(Default)]
    struct Fake {
        keeps_tables: bool,
        ledger: OnceLock<Weak<Ledger>>,
        on_discard: OnceLock<Hook>,
        after_fail: OnceLock<Hook>,
    }
    impl Port for Fake {
        fn install(&self, _: &Mapping, _: usize, _: Frame) -> io::Result<()> {
            Ok(())
        }
        fn try_install(
            &self,
            _: &Mapping,
            _: usize,
            frame: &mut Frame,
            copied_max: usize,
        ) -> io::Result<bool> {
            Ok(frame.filled().len() <= copied_max)
        }
        fn discard(&self, _: &Mapping, _: usize, _: usize) -> io::Result<()> {
            if let Some(hook) = self.on_discard.get() {
                hook(&self.ledger.get().unwrap().upgrade().unwrap())
            }
            Ok(())
        }
        fn fail(&self, _: &Mapping, _: usize, _: usize) -> io::Result<()> {
            if let Some(hook) = self.after_fail.get() {
                hook(&self.ledger.get().unwrap().upgrade().unwrap())
            }
            Ok(())
        }
        fn wake(&self, _: &Mapping, _: usize, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn can_fail(&self) -> bool {
            true
        }
        fn frees_tables(&self) -> bool {
            !self.keeps_tables
        }
    }

    fn ledger() -> (Arc<Ledger>, Arc<Fake>, Budget) {
        ledger_over(1, false)
    }

    fn ledger_over(spans: u64, keeps_tables: bool) -> (Arc<Ledger>, Arc<Fake>, Budget) {
        let budget = Budget::new(8 << 20);
        let pool = Pool::new(&budget, Box::new(crate::policy::Clock::default()));
        let port = Arc::new(Fake { keeps_tables, ..Fake::default() });
        let len = spans * SPAN_BYTES;
        let memory = Mapping::reserve(len as usize, SPAN_BYTES as usize).unwrap();
        let ledger = Arc::new(
            Ledger::new(
                0,
                Geometry::new(len, 12),
                Some(memory),
                port.clone(),
                budget.clone(),
                Arc::default(),
                Box::new(|_| {}),
            )
            .unwrap(),
        );
        let tenant: Arc<dyn Tenant> = ledger.clone();
        ledger.settle(pool.join(Arc::downgrade(&tenant)).unwrap());
        port.ledger.set(Arc::downgrade(&ledger)).unwrap();
        (ledger, port, budget)
    }

    fn put(ledger: &Ledger, budget: &Budget, unit: u64) {
        let mut frame = Frame::with_capacity(4096);
        frame.put(&[1; 4096]);
        drop(ledger.install(unit, frame, budget.try_reserve(8192).unwrap()).unwrap());
    }

    fn held(budget: &Budget) -> Held {
        let mut frame = Frame::with_capacity(4096);
        frame.put(&[1; 4096]);
        Held { frame, charge: budget.try_reserve(4096).unwrap() }
    }

    /// A load of `unit` that waits, and how often it was woken.
    fn waiting(ledger: &Ledger, unit: u64) -> (Arc<Waiter>, Arc<Woken>) {
        let waiter = Waiter::new(WaitsBy::Task);
        assert!(ledger.pin(unit).is_ok() && ledger.wait(unit, &waiter));
        let woken = Arc::new(Woken(AtomicU32::new(0)));
        let waker = std::task::Waker::from(woken.clone());
        let mut context = std::task::Context::from_waker(&waker);
        let mut decided = Decided(waiter.clone());
        assert!(std::pin::Pin::new(&mut decided).poll(&mut context).is_pending());
        (waiter, woken)
    }

    struct Woken(AtomicU32);

    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    impl Woken {
        fn times(&self) -> u32 {
            self.0.load(Ordering::SeqCst)
        }
    }

    /// Wakers and policies are code of the program's, and it may wait for a reader that waits for the
    /// fault thread.
    #[test]
    fn what_the_fault_thread_puts_in_place_another_tells_of() {
        let (ledger, _, budget) = ledger();
        let policy = ledger.tenancy().pool().clone();
        assert_eq!(ledger.fault(3), Asked::Claimed);
        let (_waiter, woken) = waiting(&ledger, 3);
        let mut first = held(&budget);
        assert!(ledger.place(3, &mut first).unwrap());
        assert_eq!(first.charge.bytes(), 0, "its page and the first table of its span");
        assert!(matches!(ledger.pin(3), Ok(Asked::Resident)));
        assert_eq!((woken.times(), policy.len()), (0, 0), "nobody was told");
        // Even when nobody is left who waits.
        ledger.unpin(3);
        ledger.unpin(3);
        assert!(matches!(ledger.evictable(3), Evictable::No));
        let tidings = ledger.announce(3);
        assert_eq!((woken.times(), policy.len()), (0, 1));
        drop(tidings);
        assert_eq!(woken.times(), 1);
        // A pin touched it.
        assert!(matches!(ledger.evictable(3), Evictable::Touched));
        assert!(matches!(ledger.evictable(3), Evictable::Yes));

        assert_eq!(ledger.fault(4), Asked::Claimed);
        let mut second = held(&budget);
        assert!(ledger.place(4, &mut second).unwrap());
        assert_eq!(second.charge.bytes(), 4096, "the table was there: the caller drops the rest");
        drop((first, second, ledger.announce(4)));
        assert_eq!((budget.used(), policy.len()), (3 * 4096, 2));
        ledger.retire();
        assert_eq!((budget.used(), policy.len()), (0, 0));
    }

    /// A load that came after the unit had left was told that it is there, and showed a page that is not.
    #[test]
    fn nobody_is_told_of_a_unit_that_has_left() {
        let (ledger, _, budget) = ledger();
        let policy = ledger.tenancy().pool().clone();
        assert_eq!(ledger.fault(3), Asked::Claimed);
        let (_, early) = waiting(&ledger, 3);
        assert!(ledger.place(3, &mut held(&budget)).unwrap());
        // That load is dropped, but its waker is not. Who gives a hint does not run it: the engine is about to.
        ledger.unpin(3);
        assert!(!ledger.evict(3), "the pool does not know it yet");
        ledger.discard(3..4);
        assert_eq!(ledger.words.get(3).state(), State::Resident);
        assert_eq!((early.times(), policy.len()), (0, 0));
        drop(ledger.announce(3));
        assert_eq!((early.times(), policy.len()), (1, 1));
        ledger.discard(3..4);
        assert_eq!(ledger.words.get(3).state(), State::Absent);
        assert_eq!((early.times(), policy.len()), (1, 0), "the policy heard of both");
        let (_, late) = waiting(&ledger, 3);
        drop(ledger.announce(3));
        assert_eq!((late.times(), policy.len()), (0, 0));
        put(&ledger, &budget, 3);
        assert_eq!((early.times(), late.times(), policy.len()), (1, 1, 1));
        ledger.unpin(3);
        ledger.retire();
        assert_eq!((budget.used(), policy.len()), (0, 0));
    }

    #[test]
    fn the_fault_thread_waits_for_no_lock() {
        let (ledger, _, budget) = ledger();
        assert_eq!(ledger.fault(3), Asked::Claimed);
        let mut bytes = held(&budget);
        {
            let _span = lock(&ledger.span_locks[0]);
            assert!(!ledger.place(3, &mut bytes).unwrap(), "somebody is at work in this span");
        }
        let others = budget.try_reserve(budget.limit() - budget.used()).unwrap();
        let mut poor = Held { frame: bytes.frame, charge: bytes.charge.split(4096) };
        assert!(!ledger.place(3, &mut poor).unwrap(), "nothing is left for a page table");
        drop(others);
        assert_eq!(ledger.words.get(3).state(), State::Fetching, "the engine has it to do");
        drop(ledger.restore(3, poor, false).unwrap());
        assert_eq!(ledger.words.get(3).state(), State::Resident);

        assert_eq!(ledger.speculate(4), Speculated::Claimed);
        let Held { frame, charge } = held(&budget);
        drop(ledger.stage(4, frame, charge).unwrap());
        assert_eq!(ledger.fault(4), Asked::Marker);
        {
            let _staged = lock(&ledger.staged);
            assert!(ledger.try_take_staged(4).is_none());
        }
        assert!(ledger.try_take_staged(4).is_some());
    }

    /// The engine confirms a window (`Windows::reached`) while another thread evicts its unit.
    #[test]
    fn a_guess_confirmed_while_it_leaves_is_counted_once() {
        let (ledger, port, budget) = ledger();
        assert_eq!(ledger.speculate(3), Speculated::Claimed);
        put(&ledger, &budget, 3);
        assert_eq!(budget.speculative(), 8192);
        assert!(port.on_discard.set(Box::new(|ledger| ledger.confirm(3))).is_ok());
        assert!(ledger.evict(3));
        assert_eq!(budget.speculative(), 0);
    }

    /// A kernel that keeps page tables has them charged: once each, as long as they are there, and no
    /// more than leaves room to read with.
    #[test]
    fn page_tables_that_stay_are_charged_until_the_region_closes() {
        let (ledger, _, budget) = ledger_over(600, true);
        let (page, per_span) = (PAGE as u64, SPAN_BYTES / 4096);
        for round in 0..2 {
            for unit in [0, 1, per_span] {
                put(&ledger, &budget, unit);
            }
            assert_eq!(budget.used(), 5 * page, "round {round}: three units, two tables");
            ledger.discard(0..ledger.geometry().units());
            assert_eq!((budget.used(), budget.page_tables()), (2 * page, 2 * page), "{round}");
        }
        (0..600).for_each(|span| put(&ledger, &budget, span * per_span));
        assert_eq!(budget.used(), 1200 * page);
        ledger.discard(0..ledger.geometry().units());
        let most = budget.limit() / 8;
        assert_eq!((budget.used(), budget.page_tables()), (most, most));
        ledger.retire();
        drop(ledger);
        assert_eq!((budget.used(), budget.page_tables()), (0, 0));

        let (ledger, _, budget) = ledger_over(1, false);
        put(&ledger, &budget, 0);
        ledger.discard(0..1);
        assert_eq!(budget.used(), 0, "a kernel that frees them has nothing to charge");
    }

    /// Guesses were claimed, and then the engine that was to send for them ended.
    #[test]
    fn guesses_that_nobody_sent_for_are_given_back() {
        let (ledger, _, budget) = ledger();
        assert_eq!(ledger.speculate(3), Speculated::Claimed);
        assert_eq!(ledger.speculate(4), Speculated::Claimed);
        assert_eq!(ledger.fault(4), Asked::Late);
        assert_eq!(budget.speculative(), 8192);
        ledger.retire();
        drop(ledger);
        assert_eq!(budget.speculative(), 0);
    }

    /// A guard at the limit of pins goes while another of the same unit comes: the unit's word said
    /// "not pinned" before the budget had room again, and the second was refused.
    #[test]
    fn a_unit_that_is_pinned_all_the_time_is_never_refused() {
        let (ledger, _, budget) = ledger();
        let cost = ledger.unit_cost();
        assert!(budget.try_pin_at_once(budget.pin_limit() - cost), "room for one unit is left");
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..100_000 {
                        assert!(ledger.pin(3).is_ok(), "refused, though its own count has room");
                        ledger.unpin(3);
                    }
                });
            }
        });
        assert!(ledger.pin(4).is_ok(), "what is not pinned any more makes room");
        assert!(ledger.pin(5).is_err(), "what is pinned does not");
        ledger.unpin(4);
        assert_eq!(budget.pinned(), budget.pin_limit() - cost);
        assert!((3..6).all(|unit| !ledger.words.get(unit).has(COUNTED)));
    }

    /// A guess fails while a reader comes: it must be told, by a request of its own, whichever of
    /// the two comes first.
    #[test]
    fn who_joins_a_guess_as_it_fails_is_served() {
        type Join = fn(&Ledger) -> Asked;
        let joins: [(&str, Join); 2] = [
            ("a load", |ledger| ledger.pin(3).unwrap_or_else(|_| panic!("no limit is near"))),
            ("a fault", |ledger| ledger.fault(3)),
        ];
        for (what, join) in joins {
            let (ledger, _, _) = ledger();
            assert_eq!(ledger.speculate(3), Speculated::Claimed);
            assert_eq!(join(&ledger), Asked::Late, "{what}");
            assert!(ledger.unclaim(3), "{what}: the claim stays, the transfer asks again");
            assert_eq!(ledger.words.get(3).state(), State::Fetching, "{what}");

            let (ledger, _, _) = self::ledger();
            assert_eq!(ledger.speculate(3), Speculated::Claimed);
            assert!(!ledger.unclaim(3), "{what}: nobody has come yet");
            assert_eq!(join(&ledger), Asked::Claimed, "{what}");

            // The same of what was to come back with a neighbour, which is no guess.
            let (ledger, _, budget) = self::ledger();
            assert!(ledger.claim_back(3) && !ledger.claim_back(3), "{what}");
            assert_eq!((ledger.guesses(), budget.speculative()), (0, 0), "{what}");
            assert!(!ledger.unclaim(3) && ledger.claim_back(3), "{what}: nobody has come yet");
            assert_eq!(join(&ledger), Asked::Late, "{what}");
            assert!(ledger.unclaim(3), "{what}: it must be fetched");
            assert!(!ledger.claim_back(3), "{what}");
            assert_eq!((ledger.guesses(), budget.speculative()), (0, 0), "{what}");
        }
        // Upgraded guesses fail like demand: a load that comes between must find it idle.
        let (ledger, _, _) = ledger();
        let error = SourceError::transient_read("x", 0..1, "reset", None);
        assert_eq!(ledger.speculate(3), Speculated::Claimed);
        assert_eq!(ledger.pin(3).unwrap_or_else(|_| panic!("no limit is near")), Asked::Late);
        assert_eq!(ledger.fail(3, &error, true).unwrap().0, State::Absent);
        assert!(ledger.wait(3, &Waiter::new(WaitsBy::Thread)) && ledger.claim_if_idle(3));
    }

    /// A map keeps a unit, and it is guessed all the same: fetched, staged, or given up as any other, but for
    /// one that is there, which may have been written.
    #[test]
    fn what_a_map_keeps_is_fetched_ahead_and_stays() {
        let (ledger, _, budget) = ledger();
        let cost = ledger.unit_cost();
        assert_eq!(ledger.keep_untouched(3, false), Kept::Yes);
        assert_eq!(ledger.speculate(3), Speculated::NotAbsent, "where that would count as written");
        ledger.unkeep(3);
        for unit in 3..7 {
            assert_eq!(ledger.keep_untouched(unit, true), Kept::Yes);
            assert_eq!(ledger.speculate(unit), Speculated::Claimed);
            assert_eq!(ledger.speculate(unit), Speculated::NotAbsent, "on its way");
        }
        // One is a marker until it is touched, one is given up, and one comes.
        let bytes = || {
            let held = held(&budget);
            let mut charge = held.charge;
            charge.merge(budget.try_reserve(4096).unwrap());
            (held.frame, charge)
        };
        for unit in [3, 4] {
            let (frame, charge) = bytes();
            drop(ledger.stage(unit, frame, charge).unwrap());
            assert_eq!(ledger.words.get(unit).state(), State::Staged);
        }
        assert_eq!(ledger.fault(3), Asked::Marker);
        drop(ledger.install_staged(3).unwrap());
        assert!(ledger.drop_guess(4) && ledger.words.get(4).state() == State::Absent);
        assert!(!ledger.unclaim(5) && ledger.claim_back(5) && !ledger.unclaim(5));
        let (frame, charge) = bytes();
        drop(ledger.install(6, frame, charge).unwrap());
        assert_eq!((ledger.guesses(), budget.speculative()), (1, cost));
        // What is there is no victim, whoever wants its room; and needs no room of speculation's.
        assert!(!ledger.evict(3) && !ledger.evict(6));
        assert!(ledger.drop_guess(6) && ledger.is_resident(6));
        assert_eq!((ledger.guesses(), budget.speculative()), (0, 0));
        assert_eq!(ledger.take_unused(), [4, 6]);
        // A load has a claim of its own, and its guess is not for another to take back.
        assert!(matches!(ledger.pin(4), Ok(Asked::Claimed)));
        assert_eq!(ledger.words.get(4).claims(), 1);
        let error = SourceError::transient_read("x", 0..1, "reset", None);
        drop(ledger.fail(4, &error, true).unwrap());
        assert_eq!(ledger.speculate(4), Speculated::NotAbsent, "its load has not heard of it yet");
        ledger.unpin(4);
        assert_eq!(ledger.speculate(4), Speculated::Claimed);
        assert!(!ledger.unclaim(4));
        for unit in 3..7 {
            ledger.unkeep(unit);
            assert_eq!(
                (ledger.words.get(unit).pins(), ledger.words.get(unit).has(KEPT)),
                (0, false)
            );
        }
        assert!(ledger.evict(3) && ledger.evict(6));
        ledger.retire();
        assert_eq!((budget.pinned(), budget.dirty(), budget.used()), (0, 0, 0));
    }

    /// Who waits for what is half done hears of its end, whatever that is. These waits looked again and again.
    #[test]
    fn the_end_of_what_is_half_done_is_told() {
        const LONGEST: std::time::Duration = std::time::Duration::from_secs(30);
        let frame = || {
            let mut frame = Frame::with_capacity(4096);
            frame.put(&[1; 4096]);
            frame
        };
        type End = fn(&Ledger, Frame, Reservation);
        let ends: [(&str, End); 6] = [
            ("installed", |ledger, frame, charge| drop(ledger.install(3, frame, charge).unwrap())),
            ("staged", |ledger, frame, charge| drop(ledger.stage(3, frame, charge).unwrap())),
            ("placed", |ledger, frame, charge| {
                assert!(ledger.place(3, &mut Held { frame, charge }).unwrap());
                drop(ledger.announce(3));
            }),
            ("taken back", |ledger, _, _| assert!(!ledger.unclaim(3))),
            ("left", |ledger, _, _| assert!(ledger.evict(3))),
            ("failed", |ledger, _, _| {
                let error = SourceError::transient_read("x", 0..1, "reset", None);
                drop(ledger.fail(3, &error, true).unwrap());
            }),
        ];
        for (what, end) in ends {
            let (ledger, port, budget) = ledger();
            let looks = Arc::new(AtomicU32::new(0));
            let waits = std::thread::spawn({
                let (ledger, looks) = (ledger.clone(), looks.clone());
                let is_over = move || {
                    looks.fetch_add(1, Ordering::SeqCst);
                    let begun = looks.load(Ordering::SeqCst) > 1;
                    begun && !ledger.is_leaving(3) && !ledger.is_coming(3)
                };
                let ledger = port.ledger.get().unwrap().upgrade().unwrap();
                move || crate::block_on::block_on(ledger.until(is_over), LONGEST).is_some()
            });
            let looked = move || {
                while looks.load(Ordering::SeqCst) == 0 {
                    std::thread::yield_now();
                }
            };
            if what == "left" {
                put(&ledger, &budget, 3);
                let hook = move |ledger: &Ledger| {
                    assert!(ledger.is_leaving(3));
                    looked();
                };
                assert!(port.on_discard.set(Box::new(hook)).is_ok());
            } else {
                assert_eq!(ledger.speculate(3), Speculated::Claimed);
                looked();
            }
            end(&ledger, frame(), budget.try_reserve(8192).unwrap());
            assert!(waits.join().unwrap(), "{what}: nobody told");
        }
    }

    /// The marker must not leave with its span before the word says that there is one.
    #[test]
    fn a_span_cannot_leave_between_poison_and_its_word() {
        let (ledger, port, _) = ledger();
        let error = SourceError::transient_read("x", 0..1, "reset", None);
        assert_eq!(ledger.fault(3), Asked::Claimed);
        let locked = |ledger: &Ledger| assert!(ledger.span_locks[0].try_lock().is_err());
        assert!(port.after_fail.set(Box::new(locked)).is_ok());
        let (untold, _) = ledger.fail(3, &error, false).unwrap();
        assert_eq!(untold, State::Fetching, "nothing changes before the cause is told");
        assert_eq!(ledger.fail(3, &error, true).unwrap().0, State::Poisoned);
        assert!(ledger.span_locks[0].try_lock().is_ok());
        assert_eq!(ledger.fault(3), Asked::Claimed, "a fault that finds no marker tries again");
    }
}
