//! What readers ask for, recorded, to be tried on other policies and budgets.
//!
//! ```text
//!   loads, faults --> Recorder --(bounded channel)--> writer thread --> file
//!   file --> Reader --> Replayer: every policy at every budget --> hit ratio, bytes, GETs
//! ```
//!
//! **What is seen.** Every `load`, `load_async` and `read_at`, whether or not it found its units in
//! place, and every page fault. A bare touch of a unit that is mapped does not enter the kernel: nobody
//! sees it, and it is missing here. Record what reads by `load`, or a map under a budget so small that
//! most touches fault.
//!
//! **What it costs.** A reading of the clock and a place in a queue for each call. Where the queue is
//! full, because the disk is slow, accesses are left out and counted as lost; a reader never waits.
//!
//! The file, numbers little-endian, `varint` as in LEB128, `text` a varint of at most 4096 and so many
//! bytes of UTF-8:
//!
//! | bytes | what |
//! | --- | --- |
//! | `extmtrc` 1 | head: seven letters and the version |
//! | 8 | microseconds from 1970 to the start |
//! | 1, varint *id*, 1 byte *shift*, varint *len*, text *name*, text *version* | a region was opened: ids count from 0, its units have 2^shift bytes |
//! | 2, varint *id* | it was closed |
//! | 3, varint *n* | so many accesses are missing here |
//! | 16 to 20, varint *dt*, varint *id*, varint *start*, varint *count* | an access: *dt* microseconds after the one before; *count* units, 1 to 64; a longer one goes on in the next record, 0 later. *start* is the first of them less the end of the access before it in the region, zigzag |
//! | 0 | the end: a file without it was cut off |
//!
//! | code | kind |
//! | --- | --- |
//! | 16 | a load that found all its units in place |
//! | 17 | a load that had to wait |
//! | 18 | a page fault |
//! | 19 | a request was sent for units that somebody waits for |
//! | 20 | a request was sent for guesses |

mod format;
mod recorder;
mod replay;

pub use format::{Reader, Record, RegionInfo, TraceError};
pub(crate) use recorder::Traced;
pub use recorder::{Recorder, Summary};
pub use replay::{Outcome, Overview, Replayer};

/// How an access went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// A load that found all its units in place.
    Hit,
    /// A load that had to wait for a unit.
    Wait,
    /// A page fault.
    Fault,
    /// Not an access: a request was sent for units that somebody waits for.
    Fetch,
    /// Not an access: a request was sent for guesses.
    Guess,
}

impl Kind {
    /// Whether a reader asked.
    pub fn is_access(self) -> bool {
        matches!(self, Kind::Hit | Kind::Wait | Kind::Fault)
    }
}

/// The largest trace: recording stops there, and longer files are refused.
pub const TRACE_BYTES_MAX: u64 = 1 << 30;

/// Regions in one trace.
pub const REGIONS_MAX: u32 = 1 << 16;
