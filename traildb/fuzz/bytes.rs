//! Memory as a storage that may say that it is far away.

use std::{io, ops::Range};

use traildb::Storage;

/// Memory that makes plans when told to.
pub struct Bytes {
    pub bytes: Vec<u8>,
    pub remote: bool,
}

impl Storage for Bytes {
    type Bytes<'a> = &'a [u8];

    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn bytes(&self, range: Range<u64>) -> io::Result<&[u8]> {
        // Nothing outside is asked for: that this is checked is part of what is searched for.
        Ok(&self.bytes[range.start as usize..range.end as usize])
    }

    fn is_remote(&self) -> bool {
        self.remote
    }

    fn will_need(&self, ranges: &[Range<u64>]) -> io::Result<()> {
        for range in ranges {
            assert!(range.start < range.end && range.end <= self.len(), "a plan of {range:?}");
        }
        Ok(())
    }
}
