//! What is known of pages' newest versions: bounded, and counted in the budget.
//!
//! Heads live in two generations. One that is asked for moves to the young one; when that is half of
//! what may be there it becomes the old one, and what was old and nobody asked for is forgotten. With a
//! consistent object store a forgotten version costs a request, nothing else, if no answer is on its way
//! that is older: so those of pages that are just being fetched stay.

use std::collections::{HashMap, hash_map::Entry};

use pager::{budget::Reservation, pool::Pool};

use crate::{cloud::ETag, page::PageId};

/// Bytes that one takes, with its part of two tables that are half full, about.
const HEAD_BYTES: u64 = 256;
/// Heads whose bytes are reserved at a time.
const STEP: usize = 16;
/// Bytes that are reserved at a time.
pub(super) const STEP_BYTES: u64 = STEP as u64 * HEAD_BYTES;
/// Heads at most, whatever the budget is.
const HEADS_MAX: u64 = 1 << 20;
/// Heads at most, however small it is: a tree is some levels deep.
const HEADS_MIN: u64 = 32;
/// The part of the budget that heads may take.
const PART: u64 = 8;

/// What is known of a page's newest version.
#[derive(Clone)]
pub(super) struct Head {
    pub(super) etag: ETag,
    pub(super) version: u64,
    /// When the object store last said so, by our monotonic clock.
    pub(super) checked_us: u64,
    pub(super) date_ms: u64,
    /// When the page was put.
    pub(super) checkpoint_ms: u64,
    /// Bytes that it takes in memory.
    pub(super) weight: u64,
    /// A put of another version is known to have come in between.
    pub(super) is_outdated: bool,
    /// This process put it.
    pub(super) is_own: bool,
    /// Whether the newest version is likely to be that.
    pub(super) trust: Trust,
}

/// How likely it is that nobody else puts a page: by how often it was asked for, and was still what this
/// process had put.
///
/// A guess that is right saves a get, and one that is wrong costs a put that is refused, which is priced as
/// [`Trust::PUT_GETS`] gets. So after a wrong one so many have to find what was put here before there is
/// another: who guesses pays at most twice what who never does pays for asking, and one put for each page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Trust(i8);

impl Trust {
    /// What a put costs, in gets: 12.5 at list prices.
    const PUT_GETS: i8 = 13;

    /// It was asked for, and is what was put here.
    pub(super) fn confirmed(self) -> Trust {
        Trust(self.0.saturating_add(1))
    }

    /// It was asked for, and is what somebody else put.
    pub(super) fn is_others(self) -> Trust {
        Trust(self.0.min(0))
    }

    /// A guess was wrong.
    pub(super) fn was_wrong(self) -> Trust {
        Trust(1 - Trust::PUT_GETS)
    }

    /// Whether it is worth a guess.
    pub(super) fn is_enough(self) -> bool {
        self.0 > 0
    }
}

/// What became of a head that was to be remembered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Remembered {
    /// It is.
    Yes,
    /// A newer version is known.
    Older,
    /// There is no room for any.
    NoRoom,
}

pub(super) struct Heads {
    young: HashMap<PageId, Head>,
    old: HashMap<PageId, Head>,
    max: usize,
    room: Vec<Reservation>,
}

impl Heads {
    pub(super) fn new(pool: &Pool) -> Heads {
        let max = (pool.budget().limit() / PART / HEAD_BYTES).clamp(HEADS_MIN, HEADS_MAX);
        let (young, old, room) = Default::default();
        Heads { young, old, max: max as usize, room }
    }

    pub(super) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    pub(super) fn get(&mut self, id: PageId) -> Option<&mut Head> {
        match self.young.entry(id) {
            Entry::Occupied(there) => Some(there.into_mut()),
            Entry::Vacant(place) => self.old.remove(&id).map(|head| place.insert(head)),
        }
    }

    pub(super) fn remove(&mut self, id: PageId) {
        self.young.remove(&id);
        self.old.remove(&id);
    }

    /// Whether there is room for one more only with [`STEP_BYTES`] more.
    pub(super) fn wants_room(&mut self, id: PageId) -> bool {
        self.len() >= self.room.len() * STEP && self.get(id).is_none()
    }

    /// Remembers a head, with more `room` if it was wanted and is there. Those that are forgotten for it
    /// come back, in an order of their own; not those of pages that are `busy`.
    pub(super) fn remember(
        &mut self,
        room: Option<Reservation>,
        id: PageId,
        head: Head,
        busy: impl Fn(PageId) -> bool,
    ) -> (Remembered, Vec<(PageId, Head)>) {
        if let Some(there) = self.get(id) {
            // A slow answer must not undo a newer one.
            if there.version > head.version {
                return (Remembered::Older, Vec::new());
            }
            let is_same = there.etag == head.etag;
            let checked_us = if is_same { there.checked_us } else { 0 };
            let is_own = head.is_own || is_same && there.is_own;
            *there = Head { checked_us: checked_us.max(head.checked_us), is_own, ..head };
            return (Remembered::Yes, Vec::new());
        }
        let mut gone = Vec::new();
        if self.young.len() >= self.max / 2 {
            gone = self.turn(&busy);
        }
        if self.len() >= self.room.len() * STEP {
            match room {
                Some(room) => self.room.push(room),
                None => gone.extend(self.turn(&busy)),
            }
        }
        // All that is left is young, or busy.
        if self.len() >= self.room.len() * STEP {
            return (Remembered::NoRoom, gone);
        }
        self.young.insert(id, head);
        (Remembered::Yes, gone)
    }

    /// Forgets what is old. What is young is old now.
    fn turn(&mut self, busy: &impl Fn(PageId) -> bool) -> Vec<(PageId, Head)> {
        let old = std::mem::replace(&mut self.old, std::mem::take(&mut self.young));
        let (stays, mut gone): (Vec<_>, Vec<_>) = old.into_iter().partition(|(id, _)| busy(*id));
        self.young.extend(stays);
        // The same seed is the same run.
        gone.sort_by_key(|(id, _)| *id);
        gone
    }
}

#[cfg(test)]
mod tests {
    use pager::{Budget, policy};

    use super::*;

    fn head(version: u64) -> Head {
        let etag = ETag::new(&format!("\"{version}\""));
        let (is_outdated, is_own, trust) = Default::default();
        Head {
            etag,
            version,
            checked_us: 1,
            date_ms: 1,
            checkpoint_ms: 1,
            weight: 1,
            is_outdated,
            is_own,
            trust,
        }
    }

    /// One flood of pages must not make this forget what is used, nor what is on its way, nor grow.
    #[test]
    fn heads_are_bounded_and_what_is_used_or_on_its_way_stays() {
        let budget = Budget::new(1 << 20);
        let pool = Pool::new(&budget, policy::default_eviction());
        let mut heads = Heads::new(&pool);
        let max = (1 << 20) / PART / HEAD_BYTES;
        let busy = |id: PageId| id == PageId(1);
        let mut gone = Vec::new();
        for id in 1..20_000 {
            let room = heads.wants_room(PageId(id)).then(|| pool.reserve(STEP_BYTES)).flatten();
            let (outcome, more) = heads.remember(room, PageId(id), head(1), busy);
            assert_eq!(outcome, Remembered::Yes);
            gone.extend(more);
            assert!(heads.get(PageId(2)).is_some() || id < 2, "it is asked for all the time");
            assert!(heads.len() as u64 <= max, "{}", heads.len());
            assert!(budget.used() <= max * HEAD_BYTES);
        }
        assert!(heads.get(PageId(1)).is_some());
        assert_eq!(gone.len() + heads.len(), 19_999);
        assert!(gone.iter().all(|(id, _)| !busy(*id)));
        drop(heads);
        assert_eq!(budget.used(), 0);
    }

    /// Two who put a page by turns must not pay for guesses for ever.
    #[test]
    fn wrong_guesses_are_few() {
        let mut trust = Trust::default();
        let (mut guesses, mut gets) = (0, 0);
        for turn in 0..1000 {
            if trust.is_enough() {
                guesses += 1;
                trust = trust.was_wrong();
            }
            gets += 1;
            // Every third time it is what was put here.
            trust = if turn % 3 == 0 { trust.confirmed() } else { trust.is_others() };
        }
        assert!(guesses >= 1 && guesses * i32::from(Trust::PUT_GETS) <= gets, "{guesses}, {gets}");
        let lone = (0..3).fold(Trust::default(), |trust, _| trust.confirmed());
        assert!(lone.is_enough() && !Trust::default().is_enough());
    }

    #[test]
    fn an_older_answer_undoes_nothing_and_no_room_is_no_harm() {
        let budget = Budget::new(1 << 20);
        let pool = Pool::new(&budget, policy::default_eviction());
        let mut heads = Heads::new(&pool);
        let mut remember = |id, head| {
            let room = heads.wants_room(PageId(id)).then(|| pool.reserve(STEP_BYTES)).flatten();
            heads.remember(room, PageId(id), head, |_| false).0
        };
        assert_eq!(remember(1, head(5)), Remembered::Yes);
        assert_eq!(remember(1, head(4)), Remembered::Older);
        let all = budget.try_reserve(budget.limit() - budget.used()).unwrap();
        for id in 2..1000 {
            // Others are forgotten for it, or it is not remembered.
            assert_ne!(remember(id, head(1)), Remembered::Older);
            assert!(budget.used() <= budget.limit());
        }
        drop(all);
    }
}
