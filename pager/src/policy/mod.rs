//! Which entry to give up, and what to fetch before it is asked for.
//!
//! Policies decide and nothing else: they hold no bytes, do no I/O and read no clock, so that a
//! recorded trace always replays to the same decisions. One file per policy; anyone's policy can
//! be checked with [`conformance`].

pub mod eviction;
pub mod s3fifo; // the default
pub mod clock;
pub mod prefetch;
pub mod plan; // what hints say
pub mod sequential; // windows that double
pub mod stride; // every n-th unit
pub mod adaptive; // the default: plan, else sequential, else stride
pub mod conformance; // what every policy is held to, ours and yours
#[cfg(test)]
mod simulation; // a model of a pager and its link, for tests
mod entries; // what eviction policies keep: slab, queues, index

pub use adaptive::Adaptive;
pub use clock::Clock;
pub use eviction::EvictionPolicy;
pub use plan::Plan;
pub use prefetch::{NoPrefetch, PrefetchPolicy};
pub use s3fifo::S3Fifo;
pub use sequential::Sequential;
pub use stride::Stride;

/// The eviction policy of a pager that was given none: [`S3Fifo`].
pub fn default_eviction() -> Box<dyn EvictionPolicy> {
    Box::new(S3Fifo::new())
}

/// The prefetch policy of a region that was given none: [`Adaptive`].
pub fn default_prefetch() -> Box<dyn PrefetchPolicy> {
    Box::new(Adaptive::new())
}
