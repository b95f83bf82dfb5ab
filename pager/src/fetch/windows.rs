//! Guesses that are out: which ranges were prefetched, so that a stream that passes confirms them
//! and one that turned away gives them back.
//!
//! ```text
//!   share of all guesses   |== region A ==|== region B ==|== region C ==|    an even part for each
//!                                                                            region that goes on
//! ```
//!
//! Who wants more than there is room for takes it from guesses that nobody follows any more, and
//! from regions that have more than their part: what these would read last. It never takes what
//! another reader is about to touch: that would be fetched again, and take the room back in the
//! same way.

use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
};

use super::Object;
use crate::{policy::prefetch::Want, sync::Arc};

/// Windows remembered. Older ones are forgotten: their units then count as any other.
const WINDOWS_MAX: usize = 4096;

/// The latest windows of a region are never taken back to make room for its next.
const KEPT_LATEST: usize = 2;

/// Windows looked at, from the oldest, for one that has something to give back to demand. What is
/// still on its way cannot be.
const LOOKS: usize = 16;

/// A reader that was not heard of while so many times the share was wanted has stopped. One that
/// goes at the pace of all others is heard of once in half a share.
const SHARES_UNTIL_STALE: u64 = 2;

struct Window {
    object: Arc<Object>,
    units: Range<u64>,
    backwards: bool,
    /// The clock when it was wanted, or when its reader was last seen in it.
    moved: u64,
    /// Whether its reader was seen in it.
    entered: bool,
    /// Whether it goes on from a window that was entered.
    proven: bool,
}

impl Window {
    /// Gives up what can be given up. Returns whether something was, and whether something is left,
    /// on its way still.
    fn give_up(&self) -> (bool, bool) {
        let (mut dropped, mut kept) = (false, false);
        let ledger = &self.object.ledger;
        for unit in self.units.clone() {
            dropped |= ledger.drop_guess(unit);
            kept |= ledger.is_guess(unit);
        }
        (dropped, kept)
    }

    /// Gives up the one that would be read last of what can be given up. False if there is none.
    fn shorten(&mut self) -> bool {
        let ledger = &self.object.ledger;
        let mut left = self.units.clone();
        // What would be read later and is on its way still: the window goes on to that.
        let mut beyond = false;
        while let Some(unit) = if self.backwards { left.next() } else { left.next_back() } {
            if ledger.drop_guess(unit) {
                if !beyond {
                    self.units = left;
                }
                return true;
            }
            beyond |= ledger.is_guess(unit);
        }
        false
    }
}

/// All windows of one pager, oldest first.
pub(super) struct Windows {
    all: VecDeque<Window>,
    /// Bytes that guesses may have, of all regions together.
    share: u64,
    /// Bytes that were wanted so far, room or not: the clock.
    clock: u64,
    /// Regions, and the clock when they last went on. Those that have stopped leave with time.
    active: HashMap<u64, u64>,
}

impl Windows {
    /// No windows yet, under a share of `share` bytes.
    pub(super) fn new(share: u64) -> Windows {
        Windows { all: VecDeque::new(), share, clock: 0, active: HashMap::new() }
    }

    /// The bytes that guesses of the region `id` may have: an even part of the share.
    pub(super) fn part_of(&self, id: u64) -> u64 {
        let stale = self.stale_before();
        let others = self.active.iter().filter(|&(&other, &moved)| other != id && moved >= stale);
        self.share / (others.count() as u64 + 1)
    }

    fn stale_before(&self) -> u64 {
        self.clock.saturating_sub(SHARES_UNTIL_STALE * self.share)
    }

    /// `bytes` bytes are wanted for `object`.
    pub(super) fn wanted(&mut self, object: &Object, bytes: u64) {
        self.clock = self.clock.saturating_add(bytes);
        let stale = self.stale_before();
        self.active.insert(object.id, self.clock);
        self.active.retain(|_, moved| *moved >= stale);
    }

    /// `want` was claimed.
    pub(super) fn push(&mut self, object: &Arc<Object>, want: Want) {
        if self.all.len() == WINDOWS_MAX
            && let Some(Window { object, mut units, .. }) = self.all.pop_front()
        {
            // Nobody will say of these whether they were right: they must not count for ever.
            units.by_ref().for_each(|unit| object.ledger.forget_guess(unit));
        }
        let Want { units, backwards, .. } = want;
        let proven = self.all.iter().rev().any(|before| {
            let meets = match backwards {
                false => before.units.end == units.start,
                true => before.units.start == units.end,
            };
            meets
                && Arc::ptr_eq(&before.object, object)
                && before.backwards == backwards
                && (before.entered || before.proven)
        });
        let (object, moved) = (object.clone(), self.clock);
        self.all.push_back(Window { object, units, backwards, moved, entered: false, proven });
    }

    /// A reader has reached `unit`: what its stream prefetched before was of use.
    pub(super) fn reached(&mut self, object: &Arc<Object>, unit: u64) {
        let holds =
            |window: &Window| Arc::ptr_eq(&window.object, object) && window.units.contains(&unit);
        let Some(at) = self.all.iter().rposition(holds) else { return };
        self.active.insert(object.id, self.clock);
        let Window { units, backwards, moved, entered, .. } = &mut self.all[at];
        let backwards = *backwards;
        (*moved, *entered) = (self.clock, true);
        // Where the window met the one before it.
        let edge = if backwards { units.end } else { units.start };
        let passed = if backwards { unit..units.end } else { units.start..unit + 1 };
        *units = if backwards { units.start..unit } else { unit + 1..units.end };
        passed.for_each(|unit| object.ledger.confirm(unit));
        self.confirm_up_to(object, backwards, edge);
        self.all.retain(|window| !window.units.is_empty());
    }

    /// A reader asks for `units`, which nobody had guessed. Where a window ends there, the reader has
    /// come through it, and its marker was not there to say so.
    pub(super) fn missed(&mut self, object: &Arc<Object>, units: &Range<u64>) {
        self.confirm_up_to(object, false, units.start);
        self.confirm_up_to(object, true, units.end);
    }

    /// A reader has passed `edge`: confirms the window that ends there and those before it. Windows
    /// of one stream lie end to start.
    fn confirm_up_to(&mut self, object: &Arc<Object>, backwards: bool, mut edge: u64) {
        while let Some(before) = self.all.iter().position(|window| {
            let met = if backwards { window.units.start } else { window.units.end };
            Arc::ptr_eq(&window.object, object)
                && window.backwards == backwards
                && met == edge
                && !window.units.is_empty()
        }) {
            let window = self.all.remove(before).expect("the position was just found");
            edge = if backwards { window.units.end } else { window.units.start };
            window.units.for_each(|unit| object.ledger.confirm(unit));
        }
    }

    /// Makes room for about `bytes` more bytes of guesses of `object`. False if there is none that
    /// it may have.
    pub(super) fn make_room(&mut self, object: &Arc<Object>, bytes: u64) -> bool {
        let stale = self.stale_before();
        let mine = |window: &Window| Arc::ptr_eq(&window.object, object);
        let mut kept_from = self.all.len();
        let mut latest = (0..self.all.len()).rev().filter(|&at| mine(&self.all[at]));
        if let Some(at) = latest.nth(KEPT_LATEST - 1) {
            kept_from = at;
        }
        // Where nobody goes on, or nobody was seen to.
        let mut at = 0;
        while at < self.all.len() {
            let window = &self.all[at];
            let led_nowhere = mine(window) && !window.proven && !window.entered && at < kept_from;
            if window.moved >= stale && !led_nowhere {
                at += 1;
                continue;
            }
            let (dropped, kept) = window.give_up();
            if kept {
                at += 1;
            } else {
                self.all.remove(at);
                kept_from -= usize::from(at < kept_from);
            }
            if dropped {
                return true;
            }
        }
        // From those who have more than their part, if this one has less.
        let held = |object: &Object| object.ledger.guesses() * object.ledger.unit_cost();
        let part = self.part_of(object.id);
        if held(object) >= part {
            return false;
        }
        let others = self.all.iter().map(|window| &window.object);
        let others = others.filter(|other| !Arc::ptr_eq(other, object));
        let Some(most) = others.max_by_key(|other| held(other)).cloned() else { return false };
        let over = held(&most).saturating_sub(part);
        let (mut freed, cost) = (0, most.ledger.unit_cost());
        for window in self.all.iter_mut().rev().filter(|w| Arc::ptr_eq(&w.object, &most)) {
            while freed < over.min(bytes) && window.shorten() {
                freed += cost;
            }
        }
        freed > 0
    }

    /// Makes room for demand until there is `enough`, from guesses that nobody follows any more:
    /// the oldest first, but not the latest windows of an object, which are what a reader that goes
    /// on is about to touch. False if there is nothing more to give.
    pub(super) fn yield_until(&mut self, enough: impl Fn() -> bool) -> bool {
        let mut at = 0;
        while at < self.all.len().min(LOOKS) {
            if enough() {
                return true;
            }
            let window = &self.all[at];
            let later = self.all.iter().skip(at + 1);
            let later = later.filter(|later| Arc::ptr_eq(&later.object, &window.object));
            let is_latest = later.take(KEPT_LATEST).count() < KEPT_LATEST;
            // Else on its way still, or given up already.
            if is_latest || !self.all[at].shorten() {
                at += 1;
            }
        }
        enough()
    }

    /// The same where there is no other way: even the latest.
    pub(super) fn drop_any(&mut self) -> bool {
        let mut at = 0;
        while at < self.all.len().min(LOOKS) {
            let (dropped, kept) = self.all[at].give_up();
            if kept {
                // It can be given up later.
                at += 1;
            } else {
                self.all.remove(at);
            }
            if dropped {
                return true;
            }
        }
        false
    }

    pub(super) fn forget(&mut self, id: u64) {
        self.all.retain(|window| window.object.id != id);
        self.active.remove(&id);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        budget::Budget,
        cache::{Asked, Ledger, Speculated},
        error::SourceError,
        frame::Frame,
        policy::{Clock, NoPrefetch},
        pool::{Pool, Tenant},
        source::{BlockSource, ByteStream, ObjectStat, Version},
        sys::{FramePool, Mapping, Mechanism, Traits, port_for},
        units::Geometry,
    };

    struct Nowhere;

    #[async_trait::async_trait]
    impl BlockSource for Nowhere {
        fn name(&self) -> &str {
            "test://nowhere"
        }
        async fn stat(&self) -> Result<ObjectStat, SourceError> {
            unreachable!("the test installs units itself")
        }
        async fn read(&self, _: &Version, _: Range<u64>) -> Result<ByteStream, SourceError> {
            unreachable!("the test installs units itself")
        }
    }

    pub(in crate::fetch) fn object(budget: &Budget, units: u64) -> Arc<Object> {
        let pool = Pool::new(budget, Box::new(Clock::default()));
        let memory = Mapping::reserve(units as usize * 4096, 2 << 20).unwrap();
        let traits = Traits { poison: true, frees_tables: true };
        let port = port_for(Mechanism::Plain, None, None, traits);
        let geometry = Geometry::new(units * 4096, 12);
        let again = Box::new(|_| {});
        let ledger = Arc::new(
            Ledger::new(1, geometry, Some(memory), port, budget.clone(), Arc::default(), again)
                .unwrap(),
        );
        let tenant: Arc<dyn Tenant> = ledger.clone();
        ledger.settle(pool.join(Arc::downgrade(&tenant)).unwrap());
        Arc::new(Object {
            id: 1,
            name: "test://nowhere".into(),
            source: Arc::new(Nowhere),
            version: Version::strong("1"),
            mechanism: Mechanism::Plain,
            ledger,
            frames: FramePool::staging(4096, 2, &pool).unwrap(),
            extent_max: 256,
            align: 1,
            extent_min: 16,
            pace: crate::fetch::Pace::new(8, Arc::default()),
            at_once: false,
            random: crate::sync::AtomicBool::new(false),
            deadline: Duration::from_secs(1),
            hints: Default::default(),
            prefetch: crate::sync::Mutex::new(Box::new(NoPrefetch)),
            counters: Arc::default(),
            first_unit_us: metrics::Histogram::noop(),
            fetch_us: metrics::Histogram::noop(),
            traced: None,
        })
    }

    /// A window that gave up one of its units forgot those behind it that were on their way: they
    /// counted against all guesses for as long as they stayed.
    #[test]
    fn a_shorter_window_keeps_what_is_still_on_its_way() {
        for backwards in [false, true] {
            let budget = Budget::new(4 << 20);
            let object = object(&budget, 64);
            let mut windows = Windows::new(budget.speculative_limit());
            let ledger = &object.ledger;
            let arrive = |unit| {
                let mut frame = Frame::with_capacity(4096);
                frame.put(&[1; 4096]);
                let charge = budget.try_reserve(ledger.unit_cost()).unwrap();
                drop(ledger.install(unit, frame, charge).unwrap());
            };
            for unit in 10..20 {
                assert_eq!(ledger.speculate(unit), Speculated::Claimed);
            }
            let want = Want::new(10..20);
            windows.push(&object, if backwards { want.backwards() } else { want });
            (12..18).for_each(arrive);
            // What would be read last of what has arrived.
            assert!(windows.all[0].shorten());
            let given_up = if backwards { 12 } else { 17 };
            assert!(!ledger.is_guess(given_up));
            assert_eq!(ledger.guesses(), 9);
            // The reader goes through it all, and what comes late comes in time for that.
            [10, 11, 18, 19].into_iter().for_each(arrive);
            windows.reached(&object, if backwards { 10 } else { 19 });
            assert_eq!((ledger.guesses(), budget.speculative()), (0, 0), "backwards: {backwards}");
            assert!(windows.all.is_empty());
        }
    }
    /// It was nobody's guess any more, and no victim either: its frame and its charge stayed until the
    /// region closed. Many of them were a budget that no reader could get a unit of.
    #[test]
    fn a_marker_that_its_reader_passes_over_is_let_go() {
        let budget = Budget::new(4 << 20);
        let object = object(&budget, 64);
        let mut windows = Windows::new(budget.speculative_limit());
        let ledger = &object.ledger;
        let before = budget.used();
        let stage = |unit| {
            let mut frame = Frame::with_capacity(4096);
            frame.put(&[1; 4096]);
            let charge = budget.try_reserve(ledger.unit_cost()).unwrap();
            ledger.stage(unit, frame, charge).unwrap();
        };
        (10..14).for_each(|unit| assert_eq!(ledger.speculate(unit), Speculated::Claimed));
        windows.push(&object, Want::new(10..12));
        windows.push(&object, Want::new(12..14));
        stage(10);
        stage(13);
        assert_eq!(budget.used(), before + 2 * ledger.unit_cost());
        // Past the first window's marker, and past the second's end, on to what nobody guessed.
        windows.reached(&object, 11);
        windows.missed(&object, &(14..15));
        assert_eq!((ledger.guesses(), budget.used()), (0, before), "nothing is kept for nobody");
        // What comes only now is mapped: nobody's marker.
        stage(12);
        assert!(matches!(ledger.pin(12), Ok(Asked::Resident)), "it can be evicted");
    }
}
