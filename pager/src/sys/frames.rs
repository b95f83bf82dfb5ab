//! Where frames come from, and the bytes of the budget that they stand for.
//!
//! ```text
//!   Staging    unit charged, frame charged beside it     COPY: the frame is used again at once
//!   Arena      the frame is the unit, charged once       MOVE: its pages go into the region
//! ```

use std::sync::Arc;

use super::{arena::Arena, staging::Staging, uffd::Descriptor};
use crate::{budget::Reservation, frame::Frame, pool::Pool};

/// Frames for the units of regions of one unit size and mechanism. Cheap to clone.
#[derive(Clone)]
pub(crate) struct FramePool {
    pool: Pool,
    kind: Kind,
}

#[derive(Clone)]
enum Kind {
    Staging(Staging),
    Recycled(Arena),
}

/// Bytes of the budget for some units, and frames for as many of them as had one already.
pub(crate) struct Supply {
    /// Each with a charge of its own, of at least a unit.
    frames: Vec<Frame>,
    charge: Reservation,
    units: u64,
    /// Bytes to reserve for one unit.
    cost: u64,
}

impl FramePool {
    /// Frames of `bytes` bytes to copy from, at most `frames_max` at a time. `None` when the budget
    /// has no room for two.
    pub(crate) fn staging(bytes: usize, frames_max: usize, pool: &Pool) -> Option<FramePool> {
        let staging = Staging::new(bytes, frames_max, pool.clone())?;
        Some(FramePool { pool: pool.clone(), kind: Kind::Staging(staging) })
    }

    /// Frames of `bytes` bytes to move into regions of `uffd` and back.
    pub(crate) fn recycled(
        bytes: usize,
        pool: &Pool,
        uffd: Arc<Descriptor>,
    ) -> std::io::Result<FramePool> {
        let arena = Arena::new(bytes, pool.clone(), uffd)?;
        Ok(FramePool { pool: pool.clone(), kind: Kind::Recycled(arena) })
    }

    pub(super) fn arena(&self) -> Option<&Arena> {
        match &self.kind {
            Kind::Staging(_) => None,
            Kind::Recycled(arena) => Some(arena),
        }
    }

    /// Where frames lie that are registered as regions are, and are none; `None` if no frame is.
    pub(crate) fn registered(&self) -> Option<std::ops::Range<usize>> {
        self.arena().map(Arena::addrs)
    }

    /// Reserves `cost` bytes for each of `units` units, evicting as needed; `None` when too much is
    /// pinned or on its way.
    pub(crate) fn supply(&self, units: u64, cost: u64) -> Option<Supply> {
        let whole = units.checked_mul(cost)?;
        let mut frames = Vec::new();
        let Kind::Recycled(arena) = &self.kind else {
            return Some(Supply { frames, charge: self.pool.reserve(whole)?, units, cost });
        };
        if whole > self.pool.budget().limit() {
            return None;
        }
        let (mut have, mut taken) = (0, Vec::new());
        loop {
            while (taken.len() as u64) < units
                && let Some(idle) = arena.take_idle()
            {
                have += idle.charged().min(cost);
                taken.push(idle);
            }
            let rest = whole - have;
            if let Some(charge) = self.pool.budget().try_reserve(rest) {
                frames.extend(taken.into_iter().map(|idle| arena.frame_of(idle)));
                return Some(Supply { frames, charge, units, cost });
            }
            // What this pool evicts becomes frames of this arena, mostly.
            if self.pool.budget().reclaim_idle(rest) == 0 && !self.pool.make_room(rest) {
                // With what they hold, and in silence: who waits for bytes is the one who asks here.
                arena.put_back(taken);
                return None;
            }
        }
    }

    /// The next frame of `supply`. A part is kept for demand.
    pub(crate) fn next(&self, supply: &mut Supply, speculative: bool) -> Next {
        match &self.kind {
            Kind::Staging(staging) => match staging.take(speculative) {
                Ok(Some(frame)) => Next::Frame(frame),
                Ok(None) => Next::Busy,
                Err(error) => Next::NoMemory(error),
            },
            Kind::Recycled(arena) => {
                if let Some(frame) = supply.frames.pop() {
                    return Next::Frame(frame);
                }
                let Some(charge) = supply.charge.try_split(supply.cost) else { return Next::Spent };
                match arena.take_fresh(charge) {
                    Ok(frame) => Next::Frame(frame),
                    Err((charge, error)) => {
                        supply.charge.merge(charge);
                        Next::NoMemory(error)
                    }
                }
            }
        }
    }

    /// Another frame beside `staged`, which is kept for a staged unit, if that needs one.
    pub(crate) fn spare(&self, staged: &mut Frame) -> Spare {
        match &self.kind {
            Kind::Staging(staging) => staging.spare(staged).map_or(Spare::None, Spare::Frame),
            Kind::Recycled(_) => Spare::NotNeeded,
        }
    }

    /// A region will use these frames.
    pub(crate) fn enter(&self) {
        if let Some(arena) = self.arena() {
            arena.enter();
        }
    }

    /// A region that has entered is gone.
    pub(crate) fn leave(&self) {
        if let Some(arena) = self.arena() {
            arena.leave();
        }
    }

    /// The bytes of an evicted unit, if they are still in memory.
    pub(crate) fn recall(&self, region: u64, unit: u64) -> Option<Frame> {
        self.arena()?.recall((region, unit))
    }

    /// [`recall`](FramePool::recall) for a thread that must not wait: `None` too while others hold a lock.
    pub(crate) fn try_recall(&self, region: u64, unit: u64) -> Option<Frame> {
        self.arena()?.try_recall((region, unit))
    }

    /// Those of `units` of `region` that can be recalled.
    pub(crate) fn kept_of(&self, region: u64, units: std::ops::Range<u64>) -> Vec<u64> {
        self.arena().map(|arena| arena.kept_of(region, units)).unwrap_or_default()
    }

    /// Whether anything can be recalled.
    pub(crate) fn has_limbo(&self) -> bool {
        self.arena().is_some_and(Arena::has_limbo)
    }
}

/// What [`FramePool::next`] has.
pub(crate) enum Next {
    /// A frame.
    Frame(Frame),
    /// Too many are out: one comes back without whoever asks here.
    Busy,
    /// The system has no memory for one, and says why. Another try may find some.
    NoMemory(std::io::Error),
    /// Nothing is left of the supply.
    Spent,
}

/// What [`FramePool::spare`] has.
pub(crate) enum Spare {
    /// A frame.
    Frame(Frame),
    /// None is free.
    None,
    /// The next frame comes with its own unit.
    NotNeeded,
}

impl Supply {
    /// Units that bytes are reserved for, less those that were charged.
    pub(crate) fn units(&self) -> u64 {
        self.units
    }

    /// The charge of the unit that `frame` holds. `None` when the frame is not one of this supply.
    pub(crate) fn charge(&mut self, frame: &mut Frame) -> Option<Reservation> {
        let charge = match frame.take_charge() {
            Some(mut charge) => {
                if charge.bytes() < self.cost {
                    charge.merge(self.charge.try_split(self.cost - charge.bytes())?);
                }
                charge
            }
            None => self.charge.try_split(self.cost)?,
        };
        self.units -= 1;
        Some(charge)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::{
        super::{
            Mapping, open_descriptor,
            port::{Mechanism, Traits, port_for},
            probe::ModeRequest,
            uffd::FEATURE_MOVE,
        },
        *,
    };
    use crate::{budget::Budget, policy::Clock};

    const UNIT: usize = 65_536;
    const COST: u64 = UNIT as u64 + 4096;

    /// Frames to move, and the descriptor of their regions; `None` where nothing can be moved.
    fn recycled(budget: &Budget) -> Option<(FramePool, Arc<Descriptor>)> {
        let uffd = Arc::new(open_descriptor(ModeRequest::Auto).descriptor?);
        if !uffd.has(FEATURE_MOVE) {
            return None;
        }
        let pool = Pool::new(budget, Box::new(Clock::default()));
        Some((FramePool::recycled(UNIT, &pool, uffd.clone()).unwrap(), uffd))
    }

    fn next(frames: &FramePool, supply: &mut Supply) -> Frame {
        match frames.next(supply, false) {
            Next::Frame(frame) => frame,
            _ => panic!("the supply has a frame"),
        }
    }

    /// A request that could not be afforded threw away what had been given up a moment ago, and woke
    /// the engine to try again at once.
    #[test]
    fn who_cannot_afford_frames_leaves_what_is_idle_alone() {
        let budget = Budget::new(8 * COST);
        let Some((frames, uffd)) = recycled(&budget) else {
            return println!("left out: recycled frames: this kernel or user cannot move pages");
        };
        let region = Mapping::reserve(2 << 20, 2 << 20).unwrap();
        uffd.register(region.addr(), region.len()).unwrap();
        let traits = Traits { poison: true, frees_tables: true };
        let port = port_for(Mechanism::Move, Some(uffd), Some(&frames), traits);
        let mut supply = frames.supply(3, COST).unwrap();
        let all = [(); 3].map(|()| next(&frames, &mut supply));
        for (unit, mut frame) in (0..).zip(all) {
            frame.put(&[unit as u8 + 1; UNIT]);
            let charge = supply.charge(&mut frame).unwrap();
            let at = unit as usize * UNIT;
            port.install(&region, at, frame).unwrap();
            port.evict(&region, at..at + UNIT, None, (7, unit), charge).unwrap();
        }
        let others = budget.try_reserve(budget.limit() - budget.used()).unwrap();
        budget.want();
        let woken = budget.freed().notified();
        for units in [4, 8, 100] {
            assert!(frames.supply(units, COST).is_none());
        }
        assert!(woken.now_or_never().is_none(), "nothing was released");
        drop(others);
        // All of it is there, and the oldest is still the first to be used for others.
        let mut supply = frames.supply(1, COST).unwrap();
        drop(next(&frames, &mut supply));
        assert!(frames.recall(7, 0).is_none());
        for unit in 1..3u64 {
            let frame = frames.recall(7, unit).expect("still there");
            assert!(frame.filled().iter().all(|&byte| u64::from(byte) == unit + 1));
        }
    }

    /// When the system had no memory for a frame and others took its bytes, its request waited for
    /// ever.
    #[test]
    fn a_frame_that_cannot_be_made_costs_the_supply_nothing() {
        let budget = Budget::new(8 * COST);
        let Some((frames, _uffd)) = recycled(&budget) else {
            return println!("left out: recycled frames: this kernel or user cannot move pages");
        };
        let mut supply = frames.supply(2, COST).unwrap();
        let others = budget.try_reserve(budget.limit() - budget.used()).unwrap();
        frames.arena().unwrap().forbid_fresh(true);
        for _ in 0..3 {
            assert!(matches!(frames.next(&mut supply, false), Next::NoMemory(_)));
        }
        frames.arena().unwrap().forbid_fresh(false);
        let two = [next(&frames, &mut supply), next(&frames, &mut supply)];
        assert!(matches!(frames.next(&mut supply, false), Next::Spent));
        assert_eq!(budget.used(), budget.limit());
        drop((two, supply, others));
        budget.reclaim_idle(u64::MAX);
        assert_eq!(budget.used(), 0);
    }
}
