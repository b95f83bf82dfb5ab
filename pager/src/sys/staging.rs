//! Staging frames: buffers from which units are copied into place, charged to the budget beside them.

use std::sync::{Arc, Mutex, PoisonError};

use super::{FrameMemory, frames::Next, mapping::Pages};
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

    /// An empty frame; `Busy` when too many are out or the budget has no room for one more. A
    /// quarter of the frames, at least one, is kept for demand.
    pub(crate) fn take(&self, speculative: bool) -> Next {
        self.take_of(if speculative { self.shared.frames_max.div_ceil(4) } else { 0 })
    }

    /// One more for whoever has a frame that stays out until a reader comes: only half may be out
    /// for that, so that what passes through others does not wait for readers.
    pub(crate) fn spare(&self) -> Next {
        self.take_of(self.shared.frames_max.div_ceil(2))
    }

    /// An empty frame, if more than `kept` are left.
    fn take_of(&self, kept: usize) -> Next {
        let shared = &self.shared;
        let has_room = |state: &State| state.out + kept < shared.frames_max;
        let mut state = shared.lock();
        if !has_room(&state) {
            return Next::Busy;
        }
        if state.out == state.charges.len() {
            drop(state);
            // Making room may evict, so not under the lock.
            let Some(charge) = shared.pool.reserve(shared.frame_bytes as u64) else {
                return Next::Busy;
            };
            state = shared.lock();
            if !has_room(&state) || state.charges.len() >= shared.frames_max {
                return Next::Busy;
            }
            state.charges.push(charge);
        }
        let memory = match state.idle.pop() {
            Some(memory) => memory,
            None => match FrameMemory::anonymous(shared.frame_bytes) {
                Ok(memory) => memory,
                Err(error) => return Next::NoMemory(error),
            },
        };
        state.out += 1;
        drop(state);
        Next::Frame(Frame::new(memory, 0, Some(shared.clone() as Arc<dyn Home>)))
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
