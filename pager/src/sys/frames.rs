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
        let mut have = 0;
        loop {
            while (frames.len() as u64) < units
                && let Some(frame) = arena.take_idle()
            {
                have += frame.charged().min(cost);
                frames.push(frame);
            }
            let rest = whole - have;
            if let Some(charge) = self.pool.budget().try_reserve(rest) {
                return Some(Supply { frames, charge, units, cost });
            }
            // What this pool evicts becomes frames of this arena, mostly.
            if self.pool.budget().reclaim_idle(rest) == 0 && !self.pool.make_room(rest) {
                return None;
            }
        }
    }

    /// The next frame of `supply`. `None` while too many are out. A part is kept for demand.
    pub(crate) fn next(&self, supply: &mut Supply, speculative: bool) -> Option<Frame> {
        match &self.kind {
            Kind::Staging(staging) => staging.take(speculative),
            Kind::Recycled(arena) => match supply.frames.pop() {
                Some(frame) => Some(frame),
                None => {
                    let charge = supply.charge.try_split(supply.cost)?;
                    let fresh = arena.take_fresh(charge);
                    if fresh.is_none() {
                        // The system is out of memory: the charge is for another try.
                        let again = self.pool.budget().try_reserve(supply.cost);
                        again.into_iter().for_each(|charge| supply.charge.merge(charge));
                    }
                    fresh
                }
            },
        }
    }

    /// Another frame beside the one that is kept for a staged unit, if that needs one.
    pub(crate) fn spare(&self) -> Spare {
        match &self.kind {
            Kind::Staging(staging) => staging.take(true).map_or(Spare::None, Spare::Frame),
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

    /// Whether anything can be recalled.
    pub(crate) fn has_limbo(&self) -> bool {
        self.arena().is_some_and(Arena::has_limbo)
    }
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
