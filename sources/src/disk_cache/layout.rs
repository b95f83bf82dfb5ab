//! The arithmetic between an object, its blocks and its segments, and the names of both on disk.
//!
//! ```text
//!   object    |b0|b1|b2|b3| ... |b31|b32| ...            |b63|b64|  (the last one may be short)
//!   segments  |<------- 0.seg ----->|<------- 1.seg -------->|<-- 2.seg
//! ```

use std::{
    ops::{Range, RangeInclusive},
    path::PathBuf,
};

use pager::Version;
use sha2::{Digest, Sha256};

use super::encryption::{CacheKey, hex};

/// Data of a segment is mapped by pages, so that its table starts at one.
pub(super) const PAGE: u64 = 4096;

/// How small and how large a block may be.
pub(super) const BLOCK_BYTES: RangeInclusive<u64> = 4 << 10..=64 << 20;

/// The same of a segment: from the size of a huge page.
pub(super) const SEGMENT_BYTES: RangeInclusive<u64> = 2 << 20..=1 << 30;

/// How one object is divided. Both sizes are powers of two and belong to the cache's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) object_len: u64,
    pub(super) block_bytes: u64,
    pub(super) segment_bytes: u64,
}

/// No object is longer: S3 ends at 50 TB, and sums of offsets must not overflow.
pub(super) const OBJECT_BYTES_MAX: u64 = 1 << 62;

impl Layout {
    /// Whether the numbers can be reckoned with. They may come from a file.
    pub(super) fn is_sound(&self) -> bool {
        self.block_bytes.is_power_of_two()
            && self.segment_bytes.is_power_of_two()
            && BLOCK_BYTES.contains(&self.block_bytes)
            && SEGMENT_BYTES.contains(&self.segment_bytes)
            && self.block_bytes <= self.segment_bytes
            && self.object_len <= OBJECT_BYTES_MAX
    }

    pub(super) fn block_of(&self, at: u64) -> u64 {
        at / self.block_bytes
    }

    /// The bytes of a block, in the object.
    pub(super) fn block_range(&self, block: u64) -> Range<u64> {
        let start = block * self.block_bytes;
        start..(start + self.block_bytes).min(self.object_len)
    }

    /// The bytes of some blocks, in the object.
    pub(super) fn range_of(&self, blocks: &Range<u64>) -> Range<u64> {
        let end = blocks.end.saturating_mul(self.block_bytes).min(self.object_len);
        blocks.start * self.block_bytes..end
    }

    pub(super) fn blocks_of(&self, range: &Range<u64>) -> Range<u64> {
        range.start / self.block_bytes..range.end.div_ceil(self.block_bytes)
    }

    pub(super) fn block_len(&self, block: u64) -> usize {
        let range = self.block_range(block);
        (range.end - range.start) as usize
    }

    pub(super) fn segment_of(&self, block: u64) -> u64 {
        block / self.blocks_per_segment()
    }

    pub(super) fn blocks_per_segment(&self) -> u64 {
        self.segment_bytes / self.block_bytes
    }

    /// The blocks of a segment, numbered in the object.
    pub(super) fn segment_blocks(&self, segment: u64) -> Range<u64> {
        let start = segment * self.blocks_per_segment();
        start..(start + self.blocks_per_segment()).min(self.object_len.div_ceil(self.block_bytes))
    }

    /// Number of segments of the whole object.
    pub(super) fn segments(&self) -> u64 {
        self.object_len.div_ceil(self.segment_bytes)
    }

    /// Bytes of the object that a segment has room for.
    pub(super) fn data_bytes(&self, segment: u64) -> u64 {
        let start = segment * self.segment_bytes;
        self.segment_bytes.min(self.object_len.saturating_sub(start))
    }

    /// Where a block starts in its segment's file.
    pub(super) fn place(&self, block: u64) -> u64 {
        block % self.blocks_per_segment() * self.block_bytes
    }
}

/// What a cached object is known by: source, version and length, hashed.
///
/// With encryption the key of the encryption goes in, so that the names of files do not tell who
/// guesses an object's name whether it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ObjectKey(pub(super) [u8; 32]);

impl ObjectKey {
    pub(super) fn of(
        name: &str,
        scope: &str,
        version: &Version,
        len: u64,
        key: Option<&CacheKey>,
    ) -> ObjectKey {
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        part(b"extmem disk cache 1");
        part(key.map_or(&[][..], CacheKey::secret));
        part(name.as_bytes());
        part(scope.as_bytes());
        part(&[matches!(version.strength(), pager::Strength::Strong) as u8]);
        part(version.token().as_bytes());
        part(&len.to_le_bytes());
        ObjectKey(hash.finalize().into())
    }

    /// The name of the object's folder: half of the hash, which nobody finds a second source of.
    pub(super) fn id(&self) -> String {
        hex(&self.0[..16])
    }
}

/// A segment of an object: what is evicted as one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct SegmentId {
    /// [`ObjectKey::id`].
    pub(super) object: String,
    pub(super) index: u64,
}

impl SegmentId {
    /// Its file, below the folder of objects.
    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(&self.object).join(format!("{}.seg", self.index))
    }

    /// A short name for the list of those that left.
    pub(super) fn hash(&self) -> u64 {
        let text = format!("{}/{}", self.object, self.index);
        crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_and_segments_at_every_edge() {
        // Two segments of four blocks, of which the last is one byte.
        let layout = Layout { object_len: 7 * 4096 + 1, block_bytes: 4096, segment_bytes: 16384 };
        assert_eq!(layout.segments(), 2);
        assert_eq!((layout.segment_blocks(0), layout.segment_blocks(1)), (0..4, 4..8));
        assert_eq!((layout.data_bytes(0), layout.data_bytes(1)), (16384, 3 * 4096 + 1));
        assert_eq!((layout.data_bytes(2), layout.block_len(7)), (0, 1));
        assert_eq!((layout.place(3), layout.place(4), layout.segment_of(4)), (12288, 0, 1));
        assert_eq!(layout.blocks_of(&(4095..4097)), 0..2);
        assert_eq!(layout.range_of(&(6..8)), 6 * 4096..7 * 4096 + 1);
    }

    #[test]
    fn everything_that_names_an_object_changes_its_key() {
        let key =
            |name, scope, version: Version, len| ObjectKey::of(name, scope, &version, len, None);
        let one = key("s3://b/k", "", Version::strong("v"), 10);
        assert!(one == key("s3://b/k", "", Version::strong("v"), 10));
        for other in [
            key("s3://b/k2", "", Version::strong("v"), 10),
            key("s3://b/", "k", Version::strong("v"), 10),
            key("s3://b/k", "http://other", Version::strong("v"), 10),
            key("s3://b/k", "", Version::strong("w"), 10),
            key("s3://b/k", "", Version::weak("v"), 10),
            key("s3://b/k", "", Version::strong("v"), 11),
        ] {
            assert!(one != other);
        }
    }
}
