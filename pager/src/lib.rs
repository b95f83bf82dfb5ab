//! Read a remote object as if it were memory.
//!
//! ```text
//! BlockSource --> fetch --> cache --> fault --> Region --> consumer    bytes -->
//!   (async)     (async)   (ledger)  (thread)  (&[u8])                 <-- demand
//!                            ^
//!                          policy: which to evict, which to prefetch
//! ```
//!
//! ```no_run
//! # fn main() -> Result<(), pager::Error> {
//! # let source: std::sync::Arc<dyn pager::BlockSource> = unimplemented!();
//! let pager = pager::Pager::builder().budget_bytes(256 << 20).build()?;
//! let region = pager.open(source)?;
//! let head = region.load(0..4096)?; // resident, pinned, errors are values
//! let whole = region.map()?; // or the whole object as a slice
//! println!("{} of {} bytes start with {:?}", head.len(), whole.len(), &whole[..4]);
//! # Ok(())
//! # }
//! ```

pub mod units; // the arithmetic between offsets and units
pub mod source; // where bytes come from
pub mod sink; // where bytes go back to
pub mod frame; // owned buffers that a source fills in place
mod fetch; // wanted units in, bytes out
pub mod budget; // bytes reserved before they are asked for
pub mod pool; // what regions and a database's pages share
mod cache; // which units are resident; owns no bytes
pub mod policy; // which unit to evict, which to prefetch
mod fault; // the loop that answers the kernel
mod region; // what a consumer holds
pub mod sealed; // memory that a block server hands out and nobody can change
mod sys; // mmap and userfaultfd; unsafe code is here, and where region and sealed make slices
pub mod preset; // settings for what a program cares about most
mod pager; // settings, threads, how an object becomes a region
mod signals; // threads that take no signals of the program
mod error; // what can go wrong
mod failure; // the end of a process whose readers cannot be told otherwise
mod log; // what happened, told by a thread of its own
mod stats; // what is counted
pub mod trace; // what readers ask for, recorded and replayed
mod block_on; // waiting for a future on a thread of any kind
mod sync; // locks and atomics

#[cfg(feature = "bench")]
#[doc(hidden)]
pub use crate::sys::bench;
pub use crate::{
    budget::Budget,
    error::{Cause, ConfigError, Error, SourceError},
    frame::Frame,
    pager::{Builder, Pager, Plan, PrefetchFactory, RegionOptions, UNITS_MIN},
    preset::Preset,
    region::{Flushed, Guard, GuardMut, Hint, Mapped, MappedMut, Region, RegionMut, SharedGuard},
    sealed::SealedMap,
    sink::{BlockSink, SinkError, Writing},
    source::{BlockSource, ByteStream, ObjectStat, ReadAtOnce, Strength, Version},
    stats::{RegionReport, RegionStats},
    sys::{MapName, Mechanism, Mode, ModeRequest, Probe, WriteTracking},
};
pub use async_trait::async_trait;
pub use bytes::Bytes;

// Its examples are compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
