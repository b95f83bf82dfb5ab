//! One open object, as the fetching side sees it.

use std::time::Duration;

use super::{Hints, Pace};
use crate::{
    cache::Ledger,
    policy::PrefetchPolicy,
    source::{BlockSource, Version},
    stats::Counters,
    sync::{Arc, AtomicBool, Mutex},
    sys::{FramePool, Mechanism},
    trace::Traced,
};

/// Everything that a request for bytes needs to know. Alive as long as a handle or a request is.
pub(crate) struct Object {
    pub(crate) id: u64,
    pub(crate) name: Arc<str>,
    pub(crate) source: Arc<dyn BlockSource>,
    pub(crate) version: Version,
    pub(crate) mechanism: Mechanism,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) frames: FramePool,
    /// The most units of one request.
    pub(crate) extent_max: u64,
    /// Long ranges are cut at multiples of this many units: the source's alignment, at least 1.
    pub(crate) align: u64,
    /// The fewest units that are worth a request of their own when a long range is split.
    pub(crate) extent_min: u64,
    /// What its answers make of that, and of how many there are at a time.
    pub(crate) pace: Pace,
    /// Whether a page fault can be answered by a blocking read of the source: see [`Direct`](super::Direct).
    pub(crate) at_once: bool,
    /// Whether reads have no order, by the application's word.
    pub(crate) random: AtomicBool,
    /// The longest that one unit may take to arrive.
    pub(crate) deadline: Duration,
    /// What the application has said and the engine has not heard yet.
    pub(crate) hints: Mutex<Hints>,
    /// Called by the engine only.
    pub(crate) prefetch: Mutex<Box<dyn PrefetchPolicy>>,
    pub(crate) counters: Arc<Counters>,
    /// Handles, because looking a metric up may take the recorder's lock.
    pub(crate) first_unit_us: metrics::Histogram,
    pub(crate) fetch_us: metrics::Histogram,
    /// Where what happens is recorded, if it is.
    pub(crate) traced: Option<Traced>,
}

impl Drop for Object {
    fn drop(&mut self) {
        // No handle and no request is left: what is resident goes back to the budget. The memory
        // itself goes with the ledger.
        self.ledger.retire();
        self.frames.leave();
        if let Some(traced) = &self.traced {
            traced.closed();
        }
    }
}
