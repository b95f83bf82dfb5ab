//! A region of the pager as the storage of a database.
//!
//! Bytes are pinned while they are looked at, a source that fails is an error of the cursor, and a
//! plan of ranges becomes prefetch.

use std::{io, ops::Range};

use pager::{Guard, Hint, Region};

use crate::storage::Storage;

impl Storage for Region {
    type Bytes<'a> = Guard<'a>;

    fn len(&self) -> u64 {
        Region::len(self)
    }

    fn name(&self) -> &str {
        Region::name(self)
    }

    fn bytes(&self, range: Range<u64>) -> io::Result<Guard<'_>> {
        Ok(self.load(range)?)
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        Ok(self.read_at(at, buf)?)
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn will_need(&self, ranges: &[Range<u64>]) -> io::Result<()> {
        Ok(self.advise(Hint::WillNeed(ranges))?)
    }
}
