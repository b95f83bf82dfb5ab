//! The pool of frames: unit-sized buffers, charged to the budget, used again.

use std::sync::{Arc, Mutex, PoisonError};

use super::FrameMemory;
use crate::{
    budget::Reservation,
    frame::{Frame, Home},
    pool::Pool,
};

/// Frames of one size. A frame's memory is charged from its first use until the pool goes.
#[derive(Clone)]
pub(crate) struct FramePool {
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
    idle: Vec<(FrameMemory, Reservation)>,
    /// Charges of the frames that are out, in no order: all are equal.
    out: Vec<Reservation>,
}

impl FramePool {
    /// At most `frames_max` (at least 2) frames of `frame_bytes` bytes each, charged to the budget
    /// of `pool`.
    pub(crate) fn new(frame_bytes: usize, frames_max: usize, pool: Pool) -> FramePool {
        let frames_max = frames_max.max(2);
        let state = Mutex::default();
        FramePool { shared: Arc::new(Shared { frame_bytes, frames_max, state, pool }) }
    }

    /// An empty frame; `None` when too many are out or the budget has no room for one more. A
    /// quarter of the frames, at least one, is kept for demand.
    pub(crate) fn take(&self, speculative: bool) -> Option<Frame> {
        let shared = &self.shared;
        let kept = if speculative { shared.frames_max.div_ceil(4) } else { 0 };
        let mut state = shared.lock();
        if state.out.len() + kept >= shared.frames_max {
            return None;
        }
        if let Some((memory, charge)) = state.idle.pop() {
            state.out.push(charge);
            return Some(shared.lend(memory));
        }
        drop(state);
        // Making room may evict, so not under the lock.
        let charge = shared.pool.reserve(shared.frame_bytes as u64)?;
        // Out of address space or memory: the caller waits for a frame to come back.
        let memory = FrameMemory::anonymous(shared.frame_bytes).ok()?;
        let mut state = shared.lock();
        if state.out.len() + kept >= shared.frames_max {
            return None;
        }
        state.out.push(charge);
        Some(shared.lend(memory))
    }
}

impl Shared {
    fn lend(self: &Arc<Shared>, memory: FrameMemory) -> Frame {
        Frame::new(memory, Some(self.clone() as Arc<dyn Home>))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Home for Shared {
    fn take_back(&self, memory: FrameMemory, _filled: usize) {
        let mut state = self.lock();
        let charge = state.out.pop().expect("a frame that comes back was out");
        state.idle.push((memory, charge));
        drop(state);
        // Somebody may wait for a frame just as for bytes.
        self.pool.budget().nudge();
    }
}
