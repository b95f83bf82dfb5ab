//! Events as they were added, in buckets of trails, as bytes.
//!
//! ```text
//!   row     trail in the bucket, time - time of the row before, n, n x (field - field before, value)
//!   bucket  rows of 1024 trails, in segments, in the order in which they were added
//! ```
//!
//! All are numbers of [`varint`], and NULL is not written: an event of the usual kind takes a dozen
//! bytes. A bucket is small enough to be sorted within the second cache, and buckets are sorted in
//! parallel. They are made by the number of the trail, not by its UUID, so that they stay even
//! whatever UUIDs look like.

use super::varint::{self, unzigzag, zigzag};

const BUCKET_BITS: u32 = 10;
/// Trails of a bucket.
pub(super) const BUCKET_TRAILS: usize = 1 << BUCKET_BITS;
/// Bytes of a segment, unless a row alone is longer.
const SEGMENT_BYTES: usize = 16 << 10;

/// All rows.
#[derive(Debug, Default)]
pub(super) struct Rows {
    buckets: Vec<Bucket>,
    scratch: Vec<u8>,
    /// Bytes that the segments have room for.
    memory: u64,
    /// Bytes, and rows, of the fullest bucket.
    bytes_max: u64,
    rows_max: u64,
}

/// The rows of [`BUCKET_TRAILS`] trails.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    segments: Vec<Vec<u8>>,
    rows: u64,
    bytes: u64,
    /// The time of the last row.
    time: u64,
}

impl Rows {
    /// Appends an event: its value numbers by ascending field, 0 for NULL.
    #[inline]
    pub(super) fn push(&mut self, trail: u32, time: u64, items: impl Iterator<Item = (u16, u32)>) {
        let bucket = (trail >> BUCKET_BITS) as usize;
        if bucket >= self.buckets.len() {
            self.buckets.resize_with(bucket + 1, Bucket::default);
        }
        let bucket = &mut self.buckets[bucket];
        let row = &mut self.scratch;
        row.clear();
        // The values first, since their number goes before them.
        let (mut n, mut before) = (0u64, 0);
        for (field, value) in items {
            if value != 0 {
                varint::put(row, u64::from(field - before));
                varint::put(row, u64::from(value));
                (n, before) = (n + 1, field);
            }
        }
        let room = row.len() + 3 * varint::BYTES_MAX;
        let fits = |segment: &&mut Vec<u8>| segment.capacity() - segment.len() >= room;
        let segment = match bucket.segments.last_mut().filter(fits) {
            Some(segment) => segment,
            None => {
                bucket.segments.push(Vec::with_capacity(SEGMENT_BYTES.max(room)));
                let segment = bucket.segments.last_mut().expect("pushed just now");
                self.memory += segment.capacity() as u64;
                segment
            }
        };
        let before = segment.len();
        varint::put(segment, u64::from(trail) & (BUCKET_TRAILS as u64 - 1));
        varint::put(segment, zigzag(time.wrapping_sub(bucket.time)));
        varint::put(segment, n);
        segment.extend_from_slice(row);
        bucket.time = time;
        bucket.rows += 1;
        bucket.bytes += (segment.len() - before) as u64;
        self.bytes_max = self.bytes_max.max(bucket.bytes);
        self.rows_max = self.rows_max.max(bucket.rows);
    }

    /// Whether a bucket may outgrow the numbers that it is sorted by, of 32 bits, within `more`
    /// bytes of rows.
    pub(super) fn is_full(&self, more: u64) -> bool {
        self.bytes_max + more >= u64::from(u32::MAX)
    }

    /// Number of buckets.
    pub(super) fn buckets(&self) -> usize {
        self.buckets.len()
    }

    /// Bytes of memory taken.
    pub(super) fn memory(&self) -> u64 {
        self.memory
    }

    /// Bytes of memory that sorting the fullest bucket takes besides: a copy, four arrays with a
    /// number for each row, and the result.
    pub(super) fn sorting_memory(&self) -> u64 {
        self.bytes_max * 2 + self.rows_max * (2 + 8 + 4 + 4)
    }

    /// All buckets, by ascending numbers of trails. What comes next starts anew.
    pub(super) fn take_buckets(&mut self) -> Vec<Bucket> {
        std::mem::take(self).buckets
    }
}

impl Bucket {
    /// Number of rows.
    pub(super) fn rows(&self) -> usize {
        self.rows as usize
    }

    /// The bytes of all rows.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.bytes as usize);
        // Each is freed as soon as it is copied.
        self.segments.into_iter().for_each(|segment| bytes.extend_from_slice(&segment));
        bytes
    }
}

/// Reads rows one after another.
pub(super) struct RowReader<'b> {
    bytes: &'b [u8],
    at: usize,
    time: u64,
}

/// A row: its trail in the bucket, its time, and where its items are.
pub(super) struct Row {
    pub(super) trail: u16,
    pub(super) time: u64,
    /// For [`items`].
    pub(super) items: u32,
}

impl<'b> RowReader<'b> {
    pub(super) fn new(bytes: &'b [u8]) -> RowReader<'b> {
        RowReader { bytes, at: 0, time: 0 }
    }
}

impl Iterator for RowReader<'_> {
    type Item = Row;

    #[inline]
    fn next(&mut self) -> Option<Row> {
        if self.at == self.bytes.len() {
            return None;
        }
        let (bytes, at) = (self.bytes, &mut self.at);
        let trail = varint::take(bytes, at) as u16;
        self.time = self.time.wrapping_add(unzigzag(varint::take(bytes, at)));
        let items = *at as u32;
        for _ in 0..2 * varint::take(bytes, at) {
            varint::take(bytes, at);
        }
        Some(Row { trail, time: self.time, items })
    }
}

/// The items of a row, field above value, into `out`.
#[inline]
pub(super) fn items(bytes: &[u8], at: u32, out: &mut Vec<u64>) {
    out.clear();
    let mut at = at as usize;
    let mut field = 0;
    for _ in 0..varint::take(bytes, &mut at) {
        field += varint::take(bytes, &mut at);
        out.push(super::stream::key(field as u16, varint::take(bytes, &mut at)));
    }
}
