//! The operating system: mappings, userfaultfd, frames. The only unsafe code of the crate, but for
//! the lines of `region` and `sealed` that make a slice.

mod mapping;
mod shared; // sealed memory files
mod words;
mod uffd;
mod event;
mod staging; // frames to copy from
mod arena; // frames to move, and back
mod frames; // either
mod port;
mod signal; // faults without userfaultfd
mod remap; // and what puts units in place then
#[cfg(all(test, not(shuttle)))]
mod partial; // copies that stop half way
mod tables; // of pages, and whether they go
mod writes; // which pages were written
mod watch; // how that is found of a region
mod probe;
mod names; // of files that a program maps by itself
#[cfg(any(test, feature = "bench"))]
#[cfg_attr(not(feature = "bench"), allow(unreachable_pub, reason = "for its own tests"))]
pub mod bench; // the mechanisms alone, for benchmarks

pub(crate) use event::Wakeup;
pub(crate) use frames::{FramePool, Next, Spare, Supply};
pub(crate) use mapping::{FrameMemory, Mapping, PAGE, Pages};
pub use names::MapName;
pub use port::Mechanism;
pub(crate) use port::{Port, Traits, port_for, port_for_writing};
pub use probe::{Mode, ModeRequest, Probe};
pub(crate) use probe::{open_descriptor, open_descriptor_for};
pub(crate) use remap::{RemapPort, units_max};
pub(crate) use shared::Shared;
pub(crate) use signal::{Line, Listening, is_heard};
pub(crate) use uffd::{Descriptor, FEATURE_WP_ASYNC, FEATURE_WRITE_FAULTS, Fault};
pub(crate) use watch::Watch;
pub use watch::WriteTracking;
pub(crate) use words::LazyWords;
pub(crate) use writes::Pagemap;
