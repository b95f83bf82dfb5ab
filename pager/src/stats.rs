//! What is counted, with units.
//!
//! Metrics of the `metrics` facade are listed in the table of the crate's README; a test holds it and
//! the code together.

use crate::{
    sync::{AtomicU64, Ordering},
    sys::Mechanism,
};

/// Counters of one region.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) faults: AtomicU64,
    pub(crate) marker_faults: AtomicU64,
    pub(crate) load_hits: AtomicU64,
    pub(crate) load_waits: AtomicU64,
    pub(crate) requests: AtomicU64,
    pub(crate) bytes_fetched: AtomicU64,
    pub(crate) units_installed: AtomicU64,
    pub(crate) units_recalled: AtomicU64,
    pub(crate) units_evicted: AtomicU64,
    pub(crate) units_resident: AtomicU64,
    pub(crate) units_prefetched: AtomicU64,
    pub(crate) prefetch_used: AtomicU64,
    pub(crate) prefetch_unused: AtomicU64,
    pub(crate) errors: AtomicU64,
    pub(crate) throttled: AtomicU64,
    pub(crate) requests_allowed: AtomicU64,
    pub(crate) first_byte_us: AtomicU64,
    pub(crate) connection_bytes_per_s: AtomicU64,
    pub(crate) poisoned: AtomicU64,
    pub(crate) healed: AtomicU64,
}

pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

/// What a region has done since it was opened. All numbers only grow, but for `units_resident` and the three
/// that say what is known of its source now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RegionStats {
    /// Page faults on missing units.
    pub faults: u64,
    /// Faults on marker units, whose bytes were there already.
    pub marker_faults: u64,
    /// Calls of `load`, `load_async` and `read_at`.
    pub loads: u64,
    /// Of these, calls that found everything resident.
    pub load_hits: u64,
    /// Range requests sent to the source: for S3, GETs, not counting retries beneath.
    pub gets: u64,
    /// Bytes received from the source.
    pub bytes_fetched: u64,
    /// Units put in place.
    pub units_installed: u64,
    /// Of these, units that had been given up and whose memory nobody had used since: they came back
    /// without a request.
    pub units_recalled: u64,
    /// Units given up.
    pub units_evicted: u64,
    /// Units resident now.
    pub units_resident: u64,
    /// Units fetched before anybody asked for them.
    pub prefetched: u64,
    /// Of these, units that somebody was then seen to ask for.
    pub prefetch_used: u64,
    /// Of these, units given up before anybody was seen to ask.
    pub prefetch_unused: u64,
    /// Range requests that failed.
    pub errors: u64,
    /// Of these, requests whose source asked for fewer, after all its own retries.
    pub throttled: u64,
    /// Requests that may be under way at a time for this region, as its source bears them and as they bring
    /// more bytes per second.
    pub requests_allowed: u64,
    /// Time from a request to the head of its answer, in microseconds, smoothed. 0 where that is not known, as
    /// of a source that fills frames.
    pub first_byte_us: u64,
    /// Bytes per second of one request behind its first byte, smoothed. 0 where that is not known.
    pub connection_bytes_per_s: u64,
    /// Units poisoned: touching them raises SIGBUS until a fetch succeeds.
    pub poisoned: u64,
    /// Poisoned units whose bytes were had later.
    pub healed: u64,
}

/// One of the open regions of a pager: see [`Pager::regions`](crate::Pager::regions).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RegionReport {
    /// The source's name for the object.
    pub name: String,
    /// Length of the object in bytes.
    pub len: u64,
    /// Bytes of one unit of residency.
    pub unit_bytes: u64,
    /// How its units are put in place.
    pub mechanism: Mechanism,
    /// What it has done so far.
    pub stats: RegionStats,
}

impl Counters {
    pub(crate) fn snapshot(&self) -> RegionStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RegionStats {
            faults: get(&self.faults),
            marker_faults: get(&self.marker_faults),
            loads: get(&self.load_hits) + get(&self.load_waits),
            load_hits: get(&self.load_hits),
            gets: get(&self.requests),
            bytes_fetched: get(&self.bytes_fetched),
            units_installed: get(&self.units_installed),
            units_recalled: get(&self.units_recalled),
            units_evicted: get(&self.units_evicted),
            units_resident: get(&self.units_resident),
            prefetched: get(&self.units_prefetched),
            prefetch_used: get(&self.prefetch_used),
            prefetch_unused: get(&self.prefetch_unused),
            errors: get(&self.errors),
            throttled: get(&self.throttled),
            requests_allowed: get(&self.requests_allowed),
            first_byte_us: get(&self.first_byte_us),
            connection_bytes_per_s: get(&self.connection_bytes_per_s),
            poisoned: get(&self.poisoned),
            healed: get(&self.healed),
        }
    }
}
