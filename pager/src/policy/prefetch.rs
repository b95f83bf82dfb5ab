//! The contract of a prefetch policy.
//!
//! ```text
//!   demand(at, Miss)   --> wants: units 8..12, marker 10
//!                                         |
//!   reader goes on, touches unit 10, which is staged but not mapped
//!                                         v
//!   demand(10, Marker) --> wants: units 12..20, marker 14
//! ```
//!
//! A unit that is mapped gives no signal when it is used. So each window names a *marker*: a unit
//! that is fetched, staged, and left unmapped, so that touching it faults and says that the stream
//! goes on. Installing a staged unit costs no request.

use std::ops::Range;

/// What just happened at a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Signal {
    /// A reader asked for a unit that was neither resident nor on its way.
    Miss,
    /// A reader asked for a unit that is on its way because this policy wanted it: the stream goes
    /// on, faster than the bytes come.
    Late,
    /// A reader touched a marker that was staged.
    Marker,
    /// `load` or `read_at` was the first to ask for a unit that is resident because this policy
    /// wanted it. What was resident for another reason gives no signal, nor does a touch.
    Hit,
}

/// What the application says it will do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Advice {
    /// Reads will run forwards through the object.
    Sequential,
    /// Reads have no order: fetch nothing that was not asked for.
    Random,
    /// These units will be read, in this order.
    WillNeed(Vec<Range<u64>>),
    /// Back to no advice.
    Normal,
}

/// What bounds a policy, in units of the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Number of units in the region. Wants beyond it are cut off.
    pub units: u64,
    /// The most units that speculation may hold at this moment; at least 1. Windows larger than
    /// this are cut off.
    pub window_max: u64,
    /// The most units that one request should have, at least 1: 8 to 16 MiB in units.
    pub extent_max: u64,
}

/// Units that a policy wants fetched, with the marker of their window if it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Want {
    /// The units. Resident ones are passed over.
    pub units: Range<u64>,
    /// A unit of `units` to stage without mapping it.
    pub marker: Option<u64>,
    /// Whether the reader comes from the end of `units`: what lies behind it has been read, what
    /// lies before it has not.
    pub backwards: bool,
}

impl Want {
    /// Wants `units`, for a reader that goes forwards, without a marker.
    pub fn new(units: Range<u64>) -> Want {
        Want { units, marker: None, backwards: false }
    }

    /// Stages `unit`, one of the wanted, without mapping it.
    #[must_use]
    pub fn with_marker(self, unit: u64) -> Want {
        Want { marker: Some(unit), ..self }
    }

    /// The same for a reader that goes backwards.
    #[must_use]
    pub fn backwards(self) -> Want {
        Want { backwards: true, ..self }
    }
}

/// The most wants that one call may push.
pub const WANTS_MAX: usize = 1024;

/// Chooses what to fetch before it is asked for. One instance serves one region.
///
/// - **Shape.** `demand` for each signal, or `missed` for a miss of several units, in the order in
///   which the pager learns of them; `unused` for each speculative unit that left without having been asked for.
/// - **Bounds.** One call pushes at most [`WANTS_MAX`] wants, which together have at most
///   [`Limits::window_max`] units, none of them twice.
/// - **Cost.** Amortised constant time per signal, or logarithmic in the number of hints, and
///   memory bounded by a constant.
/// - **Freedom.** Wants are wishes: the pager drops what is resident, on its way, over its limits.
pub trait PrefetchPolicy: Send {
    /// A reader asked for unit `at`. Push what should be fetched behind it to `wants`; the unit
    /// itself is fetched anyway.
    fn demand(&mut self, at: u64, signal: Signal, limits: &Limits, wants: &mut Vec<Want>);

    /// A reader asked for several units at once, none of them resident or on its way: one access,
    /// however many units it has. By default a [`Signal::Miss`] at the first of them.
    fn missed(&mut self, units: Range<u64>, limits: &Limits, wants: &mut Vec<Want>) {
        self.demand(units.start, Signal::Miss, limits, wants);
    }

    /// A speculative unit left without having been asked for: the guess was wrong, or too early.
    fn unused(&mut self, at: u64);

    /// The application says what it will do. Push what should be fetched now.
    fn advise(&mut self, advice: &Advice, limits: &Limits, wants: &mut Vec<Want>);
}

/// Fetches nothing that was not asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoPrefetch;

impl PrefetchPolicy for NoPrefetch {
    fn demand(&mut self, _: u64, _: Signal, _: &Limits, _: &mut Vec<Want>) {}

    fn unused(&mut self, _: u64) {}

    fn advise(&mut self, _: &Advice, _: &Limits, _: &mut Vec<Want>) {}
}
