//! Frames: owned buffers of the pool that a source fills in place.
//!
//! ```text
//!   0              filled            capacity
//!   +----------------+------------------+
//!   |  bytes so far  |  room (old data) |     put / unfilled + advance move `filled` right
//!   +----------------+------------------+
//! ```
//!
//! A frame is owned by whoever holds it, so a read that is cancelled half way can never write into
//! memory that has been given to somebody else. Dropping it returns its memory to where it came
//! from.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    budget::Reservation,
    sys::{FrameMemory, Pages},
};

/// Where the memory of a frame goes when the frame is dropped.
pub(crate) trait Home: Send + Sync {
    fn take_back(&self, memory: FrameMemory, filled: usize);
}

/// An owned buffer of fixed capacity whose front part holds bytes.
pub struct Frame {
    /// `None` only while dropping.
    memory: Option<FrameMemory>,
    filled: usize,
    home: Option<Arc<dyn Home>>,
}

impl Frame {
    /// A frame of its own, outside every pool, with room for `capacity` bytes (rounded up to pages).
    ///
    /// # Panics
    /// When the system has no memory left to map.
    pub fn with_capacity(capacity: usize) -> Frame {
        let memory = FrameMemory::anonymous(capacity).expect("anonymous memory for a frame");
        Frame { memory: Some(memory), filled: 0, home: None }
    }

    /// A frame of `memory`, whose first `filled` bytes mean something.
    pub(crate) fn new(memory: FrameMemory, filled: usize, home: Option<Arc<dyn Home>>) -> Frame {
        Frame { memory: Some(memory), filled, home }
    }

    /// What the frame's bytes are charged with, where that goes with the frame.
    pub(crate) fn take_charge(&mut self) -> Option<Reservation> {
        self.memory_mut().take_charge()
    }

    /// Where the frame's memory begins.
    pub(crate) fn addr(&self) -> usize {
        self.memory().addr()
    }

    /// Some or all of the frame's pages are in a region now: it has no bytes any more.
    pub(crate) fn set_pages(&mut self, pages: Pages) {
        self.memory_mut().set_pages(pages);
    }

    /// Has the frame go home by way of `through`, which is given where that is.
    pub(crate) fn go_home(&mut self, through: impl FnOnce(Arc<dyn Home>) -> Arc<dyn Home>) {
        self.home = self.home.take().map(through);
    }

    fn memory(&self) -> &FrameMemory {
        self.memory.as_ref().expect("a frame has memory until it is dropped")
    }

    fn memory_mut(&mut self) -> &mut FrameMemory {
        self.memory.as_mut().expect("a frame has memory until it is dropped")
    }

    /// Bytes that the frame can hold.
    pub fn capacity(&self) -> usize {
        self.memory().capacity()
    }

    /// Bytes that can still be appended.
    pub fn room(&self) -> usize {
        self.capacity() - self.filled
    }

    /// The bytes appended so far.
    pub fn filled(&self) -> &[u8] {
        &self.memory().as_slice()[..self.filled]
    }

    /// The part that holds no bytes yet. What it contains is left over from earlier uses.
    pub fn unfilled(&mut self) -> &mut [u8] {
        let filled = self.filled;
        &mut self.memory_mut().as_mut_slice()[filled..]
    }

    /// Declares the first `n` bytes of [`unfilled`](Frame::unfilled) as filled.
    ///
    /// # Panics
    /// When there is not that much room.
    pub fn advance(&mut self, n: usize) {
        assert!(n <= self.room(), "advance by {n} with room for {}", self.room());
        self.filled += n;
    }

    /// Appends `bytes`.
    ///
    /// # Panics
    /// When there is not enough room.
    pub fn put(&mut self, bytes: &[u8]) {
        self.unfilled()[..bytes.len()].copy_from_slice(bytes);
        self.filled += bytes.len();
    }

    /// Forgets all but the first `n` bytes. Does nothing if there are fewer.
    pub fn truncate(&mut self, n: usize) {
        self.filled = self.filled.min(n);
    }

    /// Passes the frame on with a string attached: when the lent frame is dropped, even half filled
    /// by a read that failed or was cancelled, [`Lender::recall`] gets it back with what it holds.
    pub fn lend(mut self) -> (Frame, Lender) {
        let slot = Arc::new(Slot(Mutex::new(Loan {
            home: self.home.take(),
            returned: None,
            lender_waits: true,
        })));
        let memory = self.memory.take();
        let lent = Frame { memory, filled: self.filled, home: Some(slot.clone() as _) };
        (lent, Lender { slot })
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        if let (Some(memory), Some(home)) = (self.memory.take(), self.home.take()) {
            home.take_back(memory, self.filled);
        }
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frame({} of {} bytes)", self.filled, self.capacity())
    }
}

struct Loan {
    /// Where the frame goes in the end.
    home: Option<Arc<dyn Home>>,
    returned: Option<(FrameMemory, usize)>,
    lender_waits: bool,
}

struct Slot(Mutex<Loan>);

impl Home for Slot {
    fn take_back(&self, memory: FrameMemory, filled: usize) {
        let mut loan = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if loan.lender_waits {
            loan.returned = Some((memory, filled));
        } else if let Some(home) = loan.home.take() {
            drop(loan);
            home.take_back(memory, filled);
        }
    }
}

/// The other end of [`Frame::lend`]. Dropping it lets the frame find its own way home.
pub struct Lender {
    slot: Arc<Slot>,
}

impl Lender {
    /// Takes the frame back if the borrower has dropped it, with the bytes that it holds.
    pub fn recall(self) -> Option<Frame> {
        let mut loan = self.slot.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (memory, filled) = loan.returned.take()?;
        let home = loan.home.take();
        drop(loan);
        Some(Frame { memory: Some(memory), filled, home })
    }
}

impl Drop for Lender {
    fn drop(&mut self) {
        let mut loan = self.slot.0.lock().unwrap_or_else(PoisonError::into_inner);
        loan.lender_waits = false;
        let (returned, home) = (loan.returned.take(), loan.home.clone());
        drop(loan);
        if let (Some((memory, filled)), Some(home)) = (returned, home) {
            home.take_back(memory, filled);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lent_frame_comes_back_with_what_it_held() {
        let mut frame = Frame::with_capacity(4096);
        frame.put(b"abc");
        let (mut lent, lender) = frame.lend();
        lent.put(b"de");
        drop(lent);
        let frame = lender.recall().expect("the frame was dropped, so it is back");
        assert_eq!(frame.filled(), b"abcde");
        assert_eq!(frame.capacity(), 4096);
    }

    #[test]
    fn a_frame_still_out_cannot_be_recalled() {
        let (lent, lender) = Frame::with_capacity(1).lend();
        assert!(lender.recall().is_none());
        drop(lent);
    }
}
