//! Members by name, whatever holds them: one package file, or a directory of files.
//!
//! ```text
//!   package     one storage    members are ranges of it, found in the index `tar.toc`
//!   directory   many storages  a member is a storage of its own
//! ```

pub(crate) mod directory;
pub(crate) mod package;

use std::{collections::HashMap, ops::Range};

use crate::{error::Error, storage::Storage};

/// One member: a name and where its bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) name: Box<str>,
    /// Which storage holds it.
    store: u32,
    /// Where it starts there.
    start: u64,
    pub(crate) len: u64,
}

impl Member {
    /// Where the member starts in its storage.
    pub(crate) fn start(&self) -> u64 {
        self.start
    }

    /// The error for a broken rule at `offset` of this member.
    pub(crate) fn damaged<S: Storage>(
        &self,
        members: &Members<S>,
        offset: u64,
        reason: impl Into<String>,
    ) -> Error {
        Error::Damaged {
            object: members.stores[self.store as usize].name().to_owned(),
            member: self.name.clone().into(),
            offset,
            reason: reason.into(),
        }
    }
}

/// All members of a database, over the storages that hold them.
#[derive(Debug)]
pub(crate) struct Members<S> {
    stores: Vec<S>,
    by_name: HashMap<Box<str>, Member>,
}

impl<S: Storage> Members<S> {
    /// One member called `name`, all of a storage.
    pub(crate) fn single(name: &str, storage: S) -> Members<S> {
        let member = Member { name: name.into(), store: 0, start: 0, len: storage.len() };
        Members { stores: vec![storage], by_name: HashMap::from([(name.into(), member)]) }
    }

    /// The member `name`, which the format demands.
    pub(crate) fn need(&self, name: &str) -> Result<Member, Error> {
        self.find(name).ok_or_else(|| Error::Damaged {
            object: self.object().to_owned(),
            member: name.to_owned(),
            offset: 0,
            reason: "the member is missing".into(),
        })
    }

    /// The member `name`, if the database has it.
    pub(crate) fn find(&self, name: &str) -> Option<Member> {
        self.by_name.get(name).cloned()
    }

    /// Every member, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Member> {
        self.by_name.values()
    }

    /// The whole first storage as if it were a member: what lies between members is read by it.
    pub(crate) fn whole(&self, name: &str) -> Member {
        let len = self.stores.first().map_or(0, |store| store.len());
        Member { name: name.into(), store: 0, start: 0, len }
    }

    /// The name of the first storage: the package file, or the first member of a directory.
    pub(crate) fn object(&self) -> &str {
        self.stores.first().map_or("database", |store| store.name())
    }

    /// Whether plans pay.
    pub(crate) fn is_remote(&self) -> bool {
        self.stores.iter().any(|store| store.is_remote())
    }

    /// The storages, for those who want their figures.
    pub(crate) fn stores(&self) -> &[S] {
        &self.stores
    }

    /// All bytes of `member`, where its storage has them in memory.
    #[inline]
    pub(crate) fn in_memory(&self, member: &Member) -> Option<&[u8]> {
        let bytes = self.stores[member.store as usize].in_memory()?;
        let (start, len) = (usize::try_from(member.start).ok()?, usize::try_from(member.len).ok()?);
        bytes.get(start..)?.get(..len)
    }

    /// The bytes `range` of `member`.
    pub(crate) fn bytes(&self, member: &Member, range: Range<u64>) -> Result<S::Bytes<'_>, Error> {
        let absolute = self.absolute(member, &range)?;
        let failed = |source| self.failed(member, range.clone(), source);
        let bytes = self.stores[member.store as usize].bytes(absolute).map_err(failed)?;
        if bytes.len() as u64 != range.end - range.start {
            return Err(failed(std::io::Error::other("the storage returned another length")));
        }
        Ok(bytes)
    }

    /// Copies bytes of `member` from `at` on.
    pub(crate) fn read(&self, member: &Member, at: u64, buf: &mut [u8]) -> Result<(), Error> {
        let range = at..at.saturating_add(buf.len() as u64);
        let absolute = self.absolute(member, &range)?;
        let store = &self.stores[member.store as usize];
        store.read(absolute.start, buf).map_err(|source| self.failed(member, range, source))
    }

    /// All bytes of a member that the format keeps small, at most `max` of them.
    pub(crate) fn read_whole(&self, member: &Member, max: u64) -> Result<Vec<u8>, Error> {
        if member.len > max {
            let reason =
                format!("{} bytes are too long for this member: at most {max}", member.len);
            return Err(member.damaged(self, 0, reason));
        }
        let mut bytes = vec![0; member.len as usize];
        self.read(member, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// A little-endian number of `width` (4 or 8) bytes at `at`.
    pub(crate) fn number(&self, member: &Member, at: u64, width: u64) -> Result<u64, Error> {
        let mut bytes = [0; 8];
        self.read(member, at, &mut bytes[..width as usize])?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn absolute(&self, member: &Member, range: &Range<u64>) -> Result<Range<u64>, Error> {
        if range.start > range.end || range.end > member.len {
            let reason = format!(
                "bytes {}..{} are outside the member, which has {}",
                range.start, range.end, member.len
            );
            return Err(member.damaged(self, range.start, reason));
        }
        // Members lie inside their storage (checked when they were found), so this cannot overflow.
        Ok(member.start + range.start..member.start + range.end)
    }

    fn failed(&self, member: &Member, range: Range<u64>, source: std::io::Error) -> Error {
        let object = self.stores[member.store as usize].name().to_owned();
        Error::Storage { object, member: member.name.clone().into(), range, source }
    }
}

/// Ranges that will be needed, announced together: one round of requests.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    ranges: Vec<(u32, Range<u64>)>,
}

/// Ranges closer than this are announced as one.
pub(crate) const MERGE_GAP: u64 = 4 << 10;

impl Plan {
    /// Adds the part of `range` that lies inside `member`.
    pub(crate) fn add(&mut self, member: &Member, range: Range<u64>) {
        let (start, end) = (range.start.min(member.len), range.end.min(member.len));
        if start < end {
            self.ranges.push((member.store, member.start + start..member.start + end));
        }
    }

    /// Adds the first `len` bytes of a storage.
    pub(crate) fn add_head(&mut self, store: u32, len: u64) {
        self.ranges.push((store, 0..len));
    }

    /// Announces all ranges, neighbours merged. A plan is a wish: what the storage cannot fetch
    /// ahead, it fetches when it is read.
    pub(crate) fn announce<S: Storage>(mut self, members: &Members<S>) -> Result<(), Error> {
        if self.ranges.is_empty() || !members.is_remote() {
            return Ok(());
        }
        self.ranges.sort_by_key(|(store, range)| (*store, range.start));
        let mut at = 0;
        while at < self.ranges.len() {
            let store = self.ranges[at].0;
            let mut merged: Vec<Range<u64>> = Vec::new();
            while let Some((_, range)) = self.ranges.get(at).filter(|(s, _)| *s == store) {
                match merged.last_mut() {
                    Some(last) if range.start <= last.end.saturating_add(MERGE_GAP) => {
                        last.end = last.end.max(range.end);
                    }
                    _ => merged.push(range.clone()),
                }
                at += 1;
            }
            let storage = &members.stores[store as usize];
            storage.will_need(&merged).map_err(|source| Error::Storage {
                object: storage.name().to_owned(),
                member: "(plan)".into(),
                range: merged[0].clone(),
                source,
            })?;
        }
        Ok(())
    }
}
