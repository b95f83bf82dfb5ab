//! Staging frames: buffers from which units are copied into place, charged to the budget beside them.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use super::{FrameMemory, mapping::Pages};
use crate::{
    budget::{Reclaim, Reservation},
    frame::{Frame, Home},
    pool::Pool,
};

/// Frames of one size. A frame's memory is charged from its first use until the pool goes.
#[derive(Clone)]
pub(crate) struct Staging {
    shared: Arc<Shared>,
}

struct Shared {
    frame_bytes: usize,
    frames_max: usize,
    state: Mutex<State>,
    pool: Pool,
}

#[derive(Default)]
struct State {
    /// Frames that nobody holds. Those at the front have been idle longest.
    idle: Vec<FrameMemory>,
    /// Frames that somebody holds.
    out: usize,
    /// Of these, those with a staged unit.
    staged: usize,
    /// Charges of all frames, idle, out or not made yet; one each.
    charges: Vec<Reservation>,
}

/// Frames that a pool can always make: whoever has claimed all bytes of the budget for units needs
/// a frame to fill them.
const FRAMES_KEPT: usize = 2;

impl Staging {
    /// At most `frames_max` (at least 2) frames of `frame_bytes` bytes each, charged to the budget
    /// of `pool`. `None` when that has no room for two.
    pub(crate) fn new(frame_bytes: usize, frames_max: usize, pool: Pool) -> Option<Staging> {
        let mut state = State::default();
        for _ in 0..FRAMES_KEPT {
            state.charges.push(pool.reserve(frame_bytes as u64)?);
        }
        let frames_max = frames_max.max(FRAMES_KEPT);
        let state = Mutex::new(state);
        let shared = Arc::new(Shared { frame_bytes, frames_max, state, pool });
        let reclaim: Arc<dyn Reclaim> = shared.clone();
        shared.pool.budget().join(Arc::downgrade(&reclaim));
        Some(Staging { shared })
    }

    /// An empty frame; `None` when too many are out or the budget has no room for one more. A
    /// quarter of the frames, at least one, is kept for demand.
    ///
    /// # Errors
    /// When the system has no memory for one.
    pub(crate) fn take(&self, speculative: bool) -> io::Result<Option<Frame>> {
        let shared = &self.shared;
        let kept = if speculative { shared.frames_max.div_ceil(4) } else { 0 };
        let has_room = |state: &State| state.out + kept < shared.frames_max;
        let mut state = shared.lock();
        if !has_room(&state) {
            return Ok(None);
        }
        if state.out == state.charges.len() {
            drop(state);
            // Making room may evict, so not under the lock.
            let Some(charge) = shared.pool.reserve(shared.frame_bytes as u64) else {
                return Ok(None);
            };
            state = shared.lock();
            if !has_room(&state) || state.charges.len() >= shared.frames_max {
                return Ok(None);
            }
            state.charges.push(charge);
        }
        let memory = match state.idle.pop() {
            Some(memory) => memory,
            None => FrameMemory::anonymous(shared.frame_bytes)?,
        };
        state.out += 1;
        drop(state);
        Ok(Some(Frame::new(memory, 0, Some(shared.clone() as Arc<dyn Home>))))
    }

    /// Another frame for whoever has `staged`, which stays out until a reader comes. Fewer than half may
    /// be out for that, so that what passes through others does not wait for readers.
    pub(crate) fn spare(&self, staged: &mut Frame) -> Option<Frame> {
        let shared = &self.shared;
        {
            let mut state = shared.lock();
            if state.staged + 1 >= shared.frames_max / 2 {
                return None;
            }
            state.staged += 1;
        }
        let Ok(Some(frame)) = self.take(true) else {
            shared.lock().staged -= 1;
            return None;
        };
        staged.go_home(|home| Arc::new(Staged { home, shared: shared.clone() }));
        Some(frame)
    }
}

/// The way home of a frame with a staged unit.
struct Staged {
    home: Arc<dyn Home>,
    shared: Arc<Shared>,
}

impl Home for Staged {
    fn take_back(&self, memory: FrameMemory, filled: usize) {
        self.shared.lock().staged -= 1;
        self.home.take_back(memory, filled);
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Home for Shared {
    fn take_back(&self, mut memory: FrameMemory, _filled: usize) {
        // What was moved away comes back, as zeros, when it is touched.
        memory.set_pages(Pages::Whole);
        let mut state = self.lock();
        state.out -= 1;
        state.idle.push(memory);
        drop(state);
        // Somebody may wait for a frame just as for bytes.
        self.pool.budget().nudge();
    }
}

impl Reclaim for Shared {
    fn reclaim(&self, bytes: u64) -> u64 {
        let mut state = self.lock();
        // One beside those that are out: these may be out until a reader comes, and what its bytes come
        // through must not have to wait for them.
        let spare = state.charges.len().saturating_sub((state.out + 1).max(FRAMES_KEPT));
        let count = spare.min(bytes.div_ceil(self.frame_bytes as u64) as usize);
        let charges: Vec<Reservation> = state.charges.drain(..count).collect();
        let over = state.idle.len().saturating_sub(state.charges.len() - state.out);
        let idle: Vec<FrameMemory> = state.idle.drain(..over).collect();
        drop(state);
        // The memory goes before its charge.
        drop(idle);
        charges.iter().map(Reservation::bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{budget::Budget, policy::Clock};

    /// Whoever passes bytes through frames, however many, took the places of staged units, so that
    /// streams had no markers where much was under way.
    #[test]
    fn what_passes_through_takes_no_places_of_staged_units() {
        let budget = Budget::new(1 << 20);
        let pool = Pool::new(&budget, Box::new(Clock::default()));
        let staging = Staging::new(4096, 16, pool).expect("room for two");
        let take = || staging.take(true).expect("memory");
        let mut passing: Vec<Frame> = (0..8).map_while(|_| take()).collect();
        let mut staged = Vec::new();
        for (n, frame) in passing.iter_mut().take(3).enumerate() {
            let next = staging.spare(frame);
            let next = next.unwrap_or_else(|| panic!("{n} are staged, and {} are out", 8 + n));
            staged.push(std::mem::replace(frame, next));
        }
        drop(passing.drain(1..));
        for n in 3..7 {
            let next = staging.spare(&mut passing[0]).unwrap_or_else(|| panic!("{n} are staged"));
            staged.push(std::mem::replace(&mut passing[0], next));
        }
        assert!(staging.spare(&mut passing[0]).is_none(), "the eighth would be half of all");
        let others: Vec<Frame> = (0..16).map_while(|_| take()).collect();
        assert_eq!(others.len(), 4, "16, less 8 that are out and a quarter for demand");
        drop((staged, others));
        assert!(staging.spare(&mut passing[0]).is_some(), "they were read");
        drop(passing);
        let state = staging.shared.lock();
        assert_eq!((state.out, state.staged), (0, 0));
    }
}
