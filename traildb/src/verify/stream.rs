//! A member from one place to another, in order, announced ahead where that pays.

use std::ops::Range;

use super::Pace;
use crate::{
    container::{Member, Members, Plan},
    error::Error,
    storage::Storage,
};

/// Bytes read at a time, and the most that [`Stream::next`] gives.
pub(super) const CHUNK: usize = 256 << 10;
/// Bytes announced ahead of a remote read.
const AHEAD: u64 = 8 << 20;

/// Reads a range of a member once.
pub(super) struct Stream<'m, S: Storage> {
    members: &'m Members<S>,
    member: &'m Member,
    pace: &'m Pace<'m>,
    /// What is not read yet.
    rest: Range<u64>,
    announced: u64,
    buffer: Vec<u8>,
    at: usize,
}

impl<'m, S: Storage> Stream<'m, S> {
    /// Reads `range`, which lies inside the member.
    pub(super) fn new(
        members: &'m Members<S>,
        member: &'m Member,
        range: Range<u64>,
        pace: &'m Pace<'m>,
    ) -> Stream<'m, S> {
        let announced = range.start;
        Stream { members, member, pace, rest: range, announced, buffer: Vec::new(), at: 0 }
    }

    /// Bytes that are left.
    pub(super) fn left(&self) -> u64 {
        self.rest.end - self.rest.start + (self.buffer.len() - self.at) as u64
    }

    /// The next `n` bytes: at most [`CHUNK`], and at most what is left.
    pub(super) fn next(&mut self, n: usize) -> Result<&[u8], Error> {
        debug_assert!(n <= CHUNK && n as u64 <= self.left());
        if self.buffer.len() - self.at < n {
            self.fill()?;
        }
        let bytes = &self.buffer[self.at..self.at + n];
        self.at += n;
        Ok(bytes)
    }

    fn fill(&mut self) -> Result<(), Error> {
        self.buffer.drain(..self.at);
        self.at = 0;
        let have = self.buffer.len();
        let n = (self.rest.end - self.rest.start).min((2 * CHUNK - have) as u64);
        if self.members.is_remote() && self.announced < self.rest.end.min(self.rest.start + AHEAD) {
            let mut plan = Plan::default();
            plan.add(self.member, self.announced..self.rest.end.min(self.rest.start + 2 * AHEAD));
            plan.announce(self.members)?;
            self.announced = self.rest.start + 2 * AHEAD;
        }
        self.buffer.resize(have + n as usize, 0);
        self.members.read(self.member, self.rest.start, &mut self.buffer[have..])?;
        self.rest.start += n;
        self.pace.add(n);
        Ok(())
    }
}

/// A little-endian number of at most 8 bytes.
pub(super) fn number(bytes: &[u8]) -> u64 {
    let mut wide = [0; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(wide)
}
