//! A database whose bytes come through page faults.

use std::{io, ops::Range};

use pager::{Hint, Mapped, Region};
use traildb::Storage;

/// A mapped region as the storage of a database: bytes are a slice, and touching one that is not
/// there fetches it. What the reader announces becomes prefetch.
pub struct Faulting {
    region: Region,
    mapped: Mapped,
    announced: bool,
}

impl Faulting {
    /// Maps `region`.
    ///
    /// # Errors
    /// Where no fault mechanism exists, or the object's version is weak.
    pub fn new(region: Region) -> Result<Faulting, pager::Error> {
        let mapped = region.map()?;
        Ok(Faulting { region, mapped, announced: true })
    }

    /// The same, but what the reader announces is not passed on: bytes come when they are touched.
    ///
    /// # Errors
    /// As for [`new`](Faulting::new).
    pub fn bare(region: Region) -> Result<Faulting, pager::Error> {
        Ok(Faulting { announced: false, ..Faulting::new(region)? })
    }
}

impl Storage for Faulting {
    type Bytes<'a> = &'a [u8];

    fn len(&self) -> u64 {
        self.region.len()
    }

    fn name(&self) -> &str {
        self.region.name()
    }

    fn bytes(&self, range: Range<u64>) -> io::Result<&[u8]> {
        let inside = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
        let slice = inside.and_then(|(start, end)| self.mapped.get(start..end));
        slice.ok_or_else(|| {
            let text = format!("bytes {}..{} of {}", range.start, range.end, self.mapped.len());
            io::Error::new(io::ErrorKind::UnexpectedEof, text)
        })
    }

    fn is_remote(&self) -> bool {
        self.announced
    }

    fn will_need(&self, ranges: &[Range<u64>]) -> io::Result<()> {
        match self.announced {
            true => Ok(self.region.advise(Hint::WillNeed(ranges))?),
            false => Ok(()),
        }
    }
}
