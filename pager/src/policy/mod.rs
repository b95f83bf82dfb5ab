//! Which entry to give up, and what to fetch before it is asked for.
//!
//! Policies decide and nothing else: they hold no bytes, do no I/O and read no clock, so that a
//! recorded trace always replays to the same decisions. One file per policy; anyone's policy can
//! be checked with `conformance`.

pub mod eviction;
pub mod s3fifo; // the default
pub mod clock;
pub mod prefetch;
pub mod sequential; // windows that double
#[cfg(test)]
mod simulation; // a model of a pager and its link, for tests
mod entries; // what eviction policies keep: slab, queues, index

pub use clock::Clock;
pub use eviction::EvictionPolicy;
pub use prefetch::{NoPrefetch, PrefetchPolicy};
pub use s3fifo::S3Fifo;
pub use sequential::Sequential;
