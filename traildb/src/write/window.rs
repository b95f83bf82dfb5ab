//! Bytes of ours that are read from first to last: all of them in memory, or a part of a temporary
//! file through a buffer.

use std::{borrow::Cow, fs::File, ops::Range, os::unix::fs::FileExt, path::Path, sync::Arc};

use crate::error::Error;

/// Bytes of a buffer, unless one record needs more, or less memory is there. A temporary file is
/// opened for each filling and closed again: any number of them can be read at once.
pub(super) const BUFFER_BYTES: usize = 128 << 10;

/// A part of a temporary file.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) path: Arc<Path>,
    pub(super) range: Range<u64>,
    /// The longest record, in bytes.
    pub(super) record_max: usize,
}

impl Part {
    /// Number of bytes.
    pub(super) fn len(&self) -> u64 {
        self.range.end - self.range.start
    }
}

/// What is read.
#[derive(Debug)]
pub(super) struct Window<'b> {
    bytes: Cow<'b, [u8]>,
    /// Where reading is in `bytes`.
    at: usize,
    /// What follows `bytes` in a file.
    rest: Option<Rest>,
}

#[derive(Debug)]
struct Rest {
    part: Part,
    /// Bytes that are had at a time, the longest record twice at least.
    buffer: usize,
}

impl<'b> Window<'b> {
    pub(super) fn memory(bytes: &'b [u8]) -> Window<'b> {
        Window { bytes: Cow::Borrowed(bytes), at: 0, rest: None }
    }

    /// A part, through a buffer of about so many bytes.
    pub(super) fn part(part: &Part, buffer: usize) -> Window<'b> {
        let buffer = buffer.max(2 * part.record_max);
        let rest = Rest { part: part.clone(), buffer };
        Window { bytes: Cow::Owned(Vec::new()), at: 0, rest: Some(rest) }
    }

    /// Makes sure that the next record is in memory whole. Returns the bytes to read it from, and
    /// where it starts there; the caller moves that behind it.
    #[inline]
    pub(super) fn record(&mut self) -> Result<(&[u8], &mut usize), Error> {
        if let Some(rest) = &self.rest
            && self.bytes.len() - self.at < rest.part.record_max
        {
            self.fill()?;
        }
        Ok((&self.bytes, &mut self.at))
    }

    /// Whether nothing is left.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.at == self.bytes.len() && self.rest.as_ref().is_none_or(|rest| rest.part.len() == 0)
    }

    #[cold]
    fn fill(&mut self) -> Result<(), Error> {
        let Some(rest) = &mut self.rest else { return Ok(()) };
        let bytes = self.bytes.to_mut();
        bytes.drain(..self.at);
        self.at = 0;
        let more = rest.part.len().min((rest.buffer - bytes.len()) as u64) as usize;
        let old = bytes.len();
        bytes.reserve_exact(more);
        bytes.resize(old + more, 0);
        let Range { start, end } = &mut rest.part.range;
        File::open(&rest.part.path)
            .and_then(|file| file.read_exact_at(&mut bytes[old..], *start))
            .map_err(|source| Error::file(&*rest.part.path, source))?;
        *start += more as u64;
        if *start == *end {
            // The last records are shorter than the longest, and are not to be moved each time.
            self.rest = None;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the buffer, records come whole, and the part ends where it ends.
    #[test]
    fn records_of_a_part_are_read_whole() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut bytes = vec![9; 100];
        let lengths: Vec<u8> = (0..200).map(|n| (n * 7 % 50) as u8).collect();
        for &len in &lengths {
            bytes.push(len);
            bytes.extend(std::iter::repeat_n(len, len.into()));
        }
        let range = 100..bytes.len() as u64;
        bytes.extend([9; 30]);
        std::fs::write(file.path(), &bytes).unwrap();
        let part = Part { path: file.path().into(), range, record_max: 50 };
        for buffer in [0, 101, 333, 1 << 20] {
            let mut window = Window::part(&part, buffer);
            for &len in &lengths {
                assert!(!window.is_empty());
                let (bytes, at) = window.record().unwrap();
                let end = *at + 1 + usize::from(len);
                assert!(bytes[*at..end].iter().all(|&b| b == len), "{buffer}, {len}");
                *at = end;
            }
            assert!(window.is_empty(), "{buffer}");
        }
        assert!(Window::part(&Part { range: 7..7, ..part }, 1).is_empty());
    }
}
