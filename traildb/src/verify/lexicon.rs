//! `lexicon.<name>`: offsets that ascend, values that differ (FORMAT.md X1-X4).

use std::{
    hash::{BuildHasher, Hasher},
    ops::Range,
};

use super::{
    Log, Pace, need,
    stream::{CHUNK, Stream, number},
};
use crate::{
    container::{Member, Members},
    error::Error,
    member::lexicon::{LexiconMember, number_width},
    storage::Storage,
};

/// Values whose hashes are held at once, at 16 bytes each: 128 MiB. More take another pass each.
const HASHES_MAX: u64 = 8 << 20;

/// Checks the lexicon of the field `name`. Gives the number of its values if that is known.
pub(super) fn check<S: Storage>(
    members: &Members<S>,
    name: &str,
    version: u64,
    log: &Log,
    pace: &Pace<'_>,
) -> Result<Option<u64>, Error> {
    let name = format!("lexicon.{name}");
    let Some(member) = need(members, &name, log) else { return Ok(None) };
    let opened = log.take(LexiconMember::open(members, member.clone(), version))?;
    let Some(lexicon) = opened else {
        pace.add(member.len);
        return Ok(None);
    };
    let check =
        Check { members, member: &member, count: lexicon.count, zero_ended: version == 0, log };
    let sound = check.offsets(pace)?;
    if sound {
        check.distinct(pace)?;
    } else {
        pace.add(member.len.saturating_sub(check.width() * (lexicon.count + 2)));
    }
    Ok(Some(lexicon.count))
}

struct Check<'c, S> {
    members: &'c Members<S>,
    member: &'c Member,
    count: u64,
    zero_ended: bool,
    log: &'c Log,
}

impl<S: Storage> Check<'_, S> {
    fn width(&self) -> u64 {
        number_width(self.member.len)
    }

    /// Where the offsets are: C + 1 of them, or C in version 0.
    fn table(&self) -> Range<u64> {
        let (width, count) = (self.width(), self.count);
        let whole = width * (count + 2);
        match self.zero_ended {
            // The last offset may be absent, and is not used if it is there.
            true => width..width * (count + 1),
            false => width..whole,
        }
    }

    /// Checks the offsets (X2, X3). Returns whether values can be read by them.
    fn offsets(&self, pace: &Pace<'_>) -> Result<bool, Error> {
        let (name, len, width) = (&self.member.name, self.member.len, self.width());
        let first = self.table().end;
        let mut table = Stream::new(self.members, self.member, self.table(), pace);
        let mut sound = true;
        let mut before = None;
        let numbers = table.left() / width;
        for k in 0..numbers {
            let offset = number(table.next(width as usize)?);
            let at = width * (k + 1);
            if offset < first || offset > len {
                self.log.error(
                    name,
                    at,
                    format!("value {} at {offset} is outside {first}..{len}", k + 1),
                );
                sound = false;
            } else if before.is_some_and(|before| offset <= before) {
                let reason = format!("value {k} is empty or ends before it starts, at {offset}");
                self.log.error(name, at, reason);
                sound = false;
            }
            if k == 0 && !self.zero_ended && offset != first && offset <= len {
                let reason = format!("the first value starts at {offset}, not at {first} (X3)");
                self.log.warning(name, at, reason);
            }
            before = Some(offset);
        }
        if let Some(end) = before.filter(|&end| !self.zero_ended && sound && end < len) {
            let reason = format!("{} bytes follow the last value", len - end);
            self.log.warning(name, end, reason);
        }
        Ok(sound)
    }

    /// Checks that no value occurs twice.
    fn distinct(&self, pace: &Pace<'_>) -> Result<(), Error> {
        let hasher = hashbrown::DefaultHashBuilder::default();
        let passes = self.count.div_ceil(HASHES_MAX).max(1);
        let silent = Pace { done: Default::default(), total: 0, watch: None };
        for pass in 0..passes {
            let mut hashes: Vec<(u64, u64)> = Vec::new();
            // Bytes count once, whatever the number of passes.
            let pace = if pass == 0 { pace } else { &silent };
            self.each_hash(&hasher, pace, |hash, value| {
                if hash % passes == pass {
                    hashes.push((hash, value));
                }
            })?;
            hashes.sort_unstable();
            for pair in hashes.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
                let (first, second) = (pair[0].1, pair[1].1);
                if self.equal(first, second)? {
                    let at = self.width() * second;
                    let reason = format!("value {second} equals value {first}");
                    self.log.error(&self.member.name, at, reason);
                }
            }
        }
        Ok(())
    }

    /// Gives the hash and the number of each value. The offsets are sound.
    fn each_hash(
        &self,
        hasher: &impl BuildHasher,
        pace: &Pace<'_>,
        mut give: impl FnMut(u64, u64),
    ) -> Result<(), Error> {
        if self.count == 0 {
            return Ok(());
        }
        let width = self.width() as usize;
        let quiet = Pace { done: Default::default(), total: 0, watch: None };
        let mut table = Stream::new(self.members, self.member, self.table(), &quiet);
        let mut start = number(table.next(width)?);
        let behind = start..self.member.len;
        let mut values = Stream::new(self.members, self.member, behind, pace);
        for value in 1..=self.count {
            let end = match table.left() {
                0 => self.member.len,
                _ => number(table.next(width)?),
            };
            let mut state = hasher.build_hasher();
            let mut ended = false;
            let mut left = end - start;
            while left > 0 {
                let n = left.min(CHUNK as u64) as usize;
                let bytes = values.next(n)?;
                left -= n as u64;
                if ended {
                    continue;
                }
                let zero = if self.zero_ended { bytes.iter().position(|&b| b == 0) } else { None };
                ended = zero.is_some();
                state.write(&bytes[..zero.unwrap_or(n)]);
            }
            if self.zero_ended && !ended {
                let reason = format!("value {value} has no NUL byte at its end (X4)");
                self.log.error(&self.member.name, start, reason);
            }
            give(state.finish(), value);
            start = end;
        }
        Ok(())
    }

    fn span(&self, value: u64) -> Result<Range<u64>, Error> {
        let width = self.width();
        let start = self.members.number(self.member, width * value, width)?;
        let end = match self.zero_ended && value == self.count {
            true => self.member.len,
            false => self.members.number(self.member, width * (value + 1), width)?,
        };
        Ok(start..end)
    }

    /// Whether two values have the same bytes.
    fn equal(&self, a: u64, b: u64) -> Result<bool, Error> {
        let (mut a, mut b) = (self.span(a)?, self.span(b)?);
        if !self.zero_ended && a.end - a.start != b.end - b.start {
            return Ok(false);
        }
        let mut bytes = [vec![0; CHUNK], vec![0; CHUNK]];
        while !a.is_empty() && !b.is_empty() {
            let n = (a.end - a.start).min(b.end - b.start).min(CHUNK as u64);
            let [x, y] = &mut bytes;
            let (x, y) = (&mut x[..n as usize], &mut y[..n as usize]);
            self.members.read(self.member, a.start, x)?;
            self.members.read(self.member, b.start, y)?;
            if self.zero_ended {
                let end = |bytes: &[u8]| bytes.iter().position(|&b| b == 0);
                if let (Some(p), Some(q)) = (end(x), end(y)) {
                    return Ok(x[..p] == y[..q]);
                }
            }
            if x != y {
                return Ok(false);
            }
            a.start += n;
            b.start += n;
        }
        Ok(a.is_empty() && b.is_empty())
    }
}
