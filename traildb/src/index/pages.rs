//! The bytes of an index file: pages with a checksum each (FORMAT.md K2).
//!
//! ```text
//!   file     | 4092 bytes | crc | 4092 bytes | crc | ...     the last page is filled with zeros
//!   inside   0            4092               8184            positions count what is not a checksum
//! ```
//!
//! Whatever is read is checked, so that a flipped bit never hides a trail, and what is not needed is
//! not read, so that an index far away answers in a few requests.

use std::{
    io::{self, Write},
    ops::Range,
};

use crc_fast::{CrcAlgorithm, checksum};

use super::MEMBER;
use crate::{
    container::{Member, Members, Plan},
    error::Error,
    storage::Storage,
};

/// Bytes of a page in the file.
pub(super) const PAGE: u64 = 4096;
/// Bytes of a page that hold something.
pub(super) const PAYLOAD: u64 = PAGE - 4;

/// The checksum of page `number`: CRC-32C of what it holds, and its place, so that a page in the
/// wrong place is found.
fn seal(payload: &[u8], number: u64) -> [u8; 4] {
    let crc = checksum(CrcAlgorithm::Crc32Iscsi, payload) as u32;
    crc.wrapping_add(number as u32).to_le_bytes()
}

/// The pages that hold the positions `range`.
fn pages(range: &Range<u64>) -> Range<u64> {
    range.start / PAYLOAD..range.end.div_ceil(PAYLOAD)
}

/// An index file behind a storage.
#[derive(Debug)]
pub(super) struct Pages<S: Storage> {
    members: Members<S>,
    member: Member,
}

impl<S: Storage> Pages<S> {
    pub(super) fn new(storage: S) -> Result<Pages<S>, Error> {
        let members = Members::single(MEMBER, storage);
        let member = members.need(MEMBER)?;
        if member.len == 0 || member.len % PAGE != 0 {
            let reason = format!("{} bytes are no whole pages: this is no index", member.len);
            return Err(member.damaged(&members, 0, reason));
        }
        Ok(Pages { members, member })
    }

    pub(super) fn members(&self) -> &Members<S> {
        &self.members
    }

    /// Positions go up to this.
    pub(super) fn len(&self) -> u64 {
        self.member.len / PAGE * PAYLOAD
    }

    /// The error for a broken rule at a position.
    pub(super) fn damaged(&self, at: u64, reason: impl Into<String>) -> Error {
        // The position may be one that a damaged index made up.
        let at = at.min(self.len());
        let offset = at / PAYLOAD * PAGE + at % PAYLOAD;
        self.member.damaged(&self.members, offset, reason)
    }

    /// Announces the positions `range`, as far as they exist.
    pub(super) fn plan(&self, plan: &mut Plan, range: Range<u64>) {
        let pages = pages(&range);
        plan.add(&self.member, pages.start.saturating_mul(PAGE)..pages.end.saturating_mul(PAGE));
    }

    /// Reads the bytes at `range` into `out`, which is cleared. The pages are checked.
    ///
    /// The caller bounds the length: memory for it is taken before anything is read.
    pub(super) fn read(&self, range: Range<u64>, out: &mut Vec<u8>) -> Result<(), Error> {
        out.clear();
        if range.start > range.end || range.end > self.len() {
            let reason = format!("{}..{} is outside the index", range.start, range.end);
            return Err(self.damaged(range.start, reason));
        }
        if range.is_empty() {
            return Ok(());
        }
        let pages = pages(&range);
        out.resize(((pages.end - pages.start) * PAGE) as usize, 0);
        self.members.read(&self.member, pages.start * PAGE, out)?;
        // Payloads are moved together in place: each goes to where it is, or before it.
        for (k, number) in pages.clone().enumerate() {
            let from = k * PAGE as usize;
            let (payload, crc) = out[from..from + PAGE as usize].split_at(PAYLOAD as usize);
            if seal(payload, number) != *crc {
                let reason = format!("page {number} is damaged: its checksum does not fit");
                return Err(self.damaged(number * PAYLOAD, reason));
            }
            out.copy_within(from..from + PAYLOAD as usize, k * PAYLOAD as usize);
        }
        let skip = (range.start - pages.start * PAYLOAD) as usize;
        out.truncate(skip + (range.end - range.start) as usize);
        out.drain(..skip);
        Ok(())
    }
}

/// Writes pages one after the other.
#[derive(Debug)]
pub(super) struct PageWriter<W> {
    out: W,
    page: Vec<u8>,
    number: u64,
}

impl<W: Write> PageWriter<W> {
    /// Pages from `number` on; `out` is where that page starts.
    pub(super) fn new(out: W, number: u64) -> PageWriter<W> {
        PageWriter { out, page: Vec::with_capacity(PAGE as usize), number }
    }

    /// The position that is written next.
    pub(super) fn position(&self) -> u64 {
        self.number * PAYLOAD + self.page.len() as u64
    }

    pub(super) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let n = bytes.len().min(PAYLOAD as usize - self.page.len());
            self.page.extend_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
            if self.page.len() == PAYLOAD as usize {
                self.flush_page()?;
            }
        }
        Ok(())
    }

    fn flush_page(&mut self) -> io::Result<()> {
        self.page.resize(PAYLOAD as usize, 0);
        let crc = seal(&self.page, self.number);
        self.page.extend_from_slice(&crc);
        self.out.write_all(&self.page)?;
        self.page.clear();
        self.number += 1;
        Ok(())
    }

    /// Fills the last page.
    pub(super) fn finish(mut self) -> io::Result<W> {
        if !self.page.is_empty() {
            self.flush_page()?;
        }
        Ok(self.out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(len: usize) -> (Vec<u8>, Vec<u8>) {
        let bytes: Vec<u8> = (0..len).map(|k| (k * 7 + k / 251) as u8).collect();
        let mut writer = PageWriter::new(Vec::new(), 0);
        for part in bytes.chunks(1000) {
            writer.write(part).unwrap();
        }
        assert_eq!(writer.position(), len as u64);
        (bytes, writer.finish().unwrap())
    }

    #[test]
    fn what_is_written_is_read_anywhere() {
        let (bytes, file) = file(3 * PAYLOAD as usize + 17);
        assert_eq!(file.len(), 4 * PAGE as usize);
        let pages = Pages::new(file).unwrap();
        let len = bytes.len() as u64;
        let p = PAYLOAD;
        let mut out = Vec::new();
        for range in [0..0, 0..1, 0..p, p - 1..p + 1, p..2 * p, 5..3 * p + 5, 0..len, len..len] {
            pages.read(range.clone(), &mut out).unwrap();
            assert_eq!(out, bytes[range.start as usize..range.end as usize], "{range:?}");
        }
        let end = pages.len();
        pages.read(len..end, &mut out).unwrap();
        assert!(out.iter().all(|&b| b == 0) && out.len() as u64 == end - len);
        assert!(pages.read(end - 1..end + 1, &mut out).is_err());
        assert!(pages.read(u64::MAX - 1..u64::MAX, &mut out).is_err());
    }

    #[test]
    fn damage_is_found_where_it_is() {
        let (_, good) = file(2 * PAYLOAD as usize);
        let mut flipped = good.clone();
        flipped[PAGE as usize + 9] ^= 4;
        let pages = Pages::new(flipped).unwrap();
        let mut out = Vec::new();
        assert!(pages.read(0..PAYLOAD, &mut out).is_ok());
        let error = pages.read(PAYLOAD - 1..PAYLOAD + 1, &mut out).unwrap_err();
        assert!(error.is_damage() && error.to_string().contains("offset 4096"), "{error}");
        let mut swapped = good.clone();
        swapped.rotate_left(PAGE as usize);
        assert!(Pages::new(swapped).unwrap().read(0..1, &mut out).is_err());
        assert!(Pages::new(good[..5000].to_vec()).is_err());
        assert!(Pages::new(Vec::new()).is_err());
    }
}
