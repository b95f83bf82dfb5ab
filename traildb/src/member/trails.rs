//! `trails.toc` and `trails.data`: where each trail is (FORMAT.md T1-T2).

use std::ops::Range;

use crate::{
    container::{Member, Members, Plan},
    error::Error,
    storage::Storage,
};

/// Zero bytes after the last trail, for readers that look ahead (T2).
pub(crate) const PADDING: u64 = 8;

/// No trail is longer: its bits must have numbers.
const TRAIL_BYTES_MAX: u64 = 1 << 60;

/// The two members, sizes checked.
#[derive(Clone, Debug)]
pub(crate) struct Trails {
    toc: Member,
    pub(crate) data: Member,
    /// Bytes of an offset in the toc.
    width: u64,
}

/// Bytes of an offset, when `trails.data` has `len` bytes, padding included. Unlike in a lexicon,
/// 2^32 - 1 is already too long.
pub(crate) fn offset_width(len: u64) -> u64 {
    if len < u64::from(u32::MAX) { 4 } else { 8 }
}

impl Trails {
    pub(crate) fn open<S: Storage>(members: &Members<S>, trails: u64) -> Result<Trails, Error> {
        let (toc, data) = (members.need("trails.toc")?, members.need("trails.data")?);
        let width = offset_width(data.len);
        // At most 2^59 trails (checked by `info`), so this is less than 2^63.
        if toc.len != (trails + 1) * width {
            let reason =
                format!("{} bytes where {trails} trails need {}", toc.len, (trails + 1) * width);
            return Err(toc.damaged(members, 0, reason));
        }
        Ok(Trails { toc, data, width })
    }

    /// Announces the offsets of `trails`.
    pub(crate) fn plan_offsets(&self, plan: &mut Plan, trails: Range<u64>) {
        plan.add(&self.toc, trails.start * self.width..(trails.end + 1) * self.width);
    }

    /// Announces the first `max` bytes of a trail.
    pub(crate) fn plan_data(&self, plan: &mut Plan, span: &Range<u64>, max: u64) {
        plan.add(&self.data, span.start..span.end.min(span.start.saturating_add(max)));
    }

    /// Where trail `trail` (which exists) is in `trails.data`: not empty, and inside.
    pub(crate) fn span<S: Storage>(
        &self,
        members: &Members<S>,
        trail: u64,
    ) -> Result<Range<u64>, Error> {
        let mut ends = [0; 16];
        let ends = &mut ends[..2 * self.width as usize];
        members.read(&self.toc, trail * self.width, ends)?;
        let (start, end) = ends.split_at(self.width as usize);
        self.check(members, trail, number(start)..number(end))
    }

    /// The offsets `from..from + n` of the toc, all of which exist: each is where a trail starts and the
    /// one before it ends. They are for [`check`](Trails::check).
    pub(crate) fn offsets<S: Storage>(
        &self,
        members: &Members<S>,
        from: u64,
        n: u64,
        out: &mut Vec<u64>,
    ) -> Result<(), Error> {
        let mut bytes = vec![0; (n * self.width) as usize];
        members.read(&self.toc, from * self.width, &mut bytes)?;
        out.clear();
        match self.width {
            4 => {
                let (numbers, _) = bytes.as_chunks();
                out.extend(numbers.iter().map(|&bytes| u64::from(u32::from_le_bytes(bytes))));
            }
            _ => {
                let (numbers, _) = bytes.as_chunks();
                out.extend(numbers.iter().map(|&bytes| u64::from_le_bytes(bytes)));
            }
        }
        Ok(())
    }

    /// Makes sure that the bytes of a trail are some, and inside.
    #[inline]
    pub(crate) fn check<S: Storage>(
        &self,
        members: &Members<S>,
        trail: u64,
        span: Range<u64>,
    ) -> Result<Range<u64>, Error> {
        let Range { start, end } = span;
        if start >= end || end > self.data.len || end - start > TRAIL_BYTES_MAX {
            let reason = format!(
                "trail {trail} at {start}..{end} is empty or outside trails.data, which has {}",
                self.data.len
            );
            return Err(self.toc.damaged(members, trail * self.width, reason));
        }
        Ok(start..end)
    }
}

fn number(bytes: &[u8]) -> u64 {
    let mut wide = [0; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(wide)
}

/// Makes the bytes of `trails.toc`: number 0, and then where each trail ends.
pub(crate) struct TocWriter {
    width: usize,
    bytes: [u8; 8],
}

impl TocWriter {
    /// For a `trails.data` of `len` bytes, padding included.
    pub(crate) fn new(len: u64) -> TocWriter {
        TocWriter { width: offset_width(len) as usize, bytes: [0; 8] }
    }

    #[inline]
    pub(crate) fn number(&mut self, number: u64) -> &[u8] {
        self.bytes = number.to_le_bytes();
        &self.bytes[..self.width]
    }
}
