//! `lexicon.<name>`: the distinct values of a field (FORMAT.md X1-X4).
//!
//! ```text
//!   0     w     2w          w(C+1)      w(C+2)
//!   +-----+-----+-- - - --+-----------+------------ - - -
//!   |  C  | o_1 |         |  o_(C+1)  | values, one after another
//!   +-----+-----+-- - - --+-----------+------------ - - -
//!   w = 4 if the member has at most 2^32 - 1 bytes, else 8; offsets count from the member's start
//! ```

use std::{
    collections::HashMap,
    hint::black_box,
    ops::{Deref, Range},
};

use crate::{
    container::{MERGE_GAP, Member, Members, Plan},
    error::Error,
    item::{Item, VALUES_MAX},
    storage::Storage,
};

/// Bytes read at a time where a member is scanned.
const CHUNK_BYTES: u64 = 64 << 10;
/// Where a value is looked for far away, those of its length are asked for together: at first as many as
/// lie in so many places, since the first may be the one, then in twice as many each time.
const APART_MIN: usize = 8;
/// And no more than this.
const APART_MAX: usize = 256;
/// Bytes of values asked for together, at most.
const ANNOUNCED_BYTES: u64 = 4 << 20;

/// Where a lexicon is and how many values it has.
#[derive(Clone, Debug)]
pub(crate) struct LexiconMember {
    pub(crate) member: Member,
    /// Number of values, NULL not counted.
    pub(crate) count: u64,
    /// Bytes of a number.
    width: u64,
    /// Version 0: values end with a NUL byte, and the last offset may be absent.
    zero_ended: bool,
}

/// Bytes of a number in a lexicon (or a table of trails) whose member has `len` bytes.
pub(crate) fn number_width(len: u64) -> u64 {
    if len <= u64::from(u32::MAX) { 4 } else { 8 }
}

/// The head of a lexicon, which its count is in.
pub(crate) fn head(member: &Member) -> Range<u64> {
    0..number_width(member.len)
}

impl LexiconMember {
    pub(crate) fn open<S: Storage>(
        members: &Members<S>,
        member: Member,
        version: u64,
    ) -> Result<LexiconMember, Error> {
        let width = number_width(member.len);
        let zero_ended = version == 0;
        let count = members.number(&member, 0, width)?;
        // A count of C needs C + 2 numbers; version 0 may do with one less.
        let numbers = u128::from(count) + if zero_ended { 1 } else { 2 };
        if count > VALUES_MAX || numbers * u128::from(width) > u128::from(member.len) {
            let reason = format!("{count} values do not fit in {} bytes", member.len);
            return Err(member.damaged(members, 0, reason));
        }
        Ok(LexiconMember { member, count, width, zero_ended })
    }

    /// Announces the offsets of value `number` (1 to count).
    pub(crate) fn plan_offsets(&self, plan: &mut Plan, number: u64) {
        plan.add(&self.member, self.width * number..self.width * (number + 2));
    }

    /// Where value `number` (1 to count) is: checked to lie behind the offsets and inside.
    ///
    /// In version 0 the end is the next value's start, or the end of the member: the value proper
    /// ends at the first NUL byte before it.
    pub(crate) fn span<S: Storage>(
        &self,
        members: &Members<S>,
        number: u64,
    ) -> Result<Range<u64>, Error> {
        debug_assert!((1..=self.count).contains(&number), "value numbers are checked before");
        let at = self.width * number;
        let mut pair = [0; 16];
        let last = self.zero_ended && number == self.count;
        let pair = &mut pair[..(if last { self.width } else { 2 * self.width }) as usize];
        members.read(&self.member, at, pair)?;
        let (start, end) = pair.split_at(self.width as usize);
        let start = le_number(start);
        let end = if last { self.member.len } else { le_number(end) };
        self.check_span(members, number, start..end)
    }

    fn check_span<S: Storage>(
        &self,
        members: &Members<S>,
        number: u64,
        span: Range<u64>,
    ) -> Result<Range<u64>, Error> {
        let behind = self.width * (self.count + if self.zero_ended { 1 } else { 2 });
        if span.start < behind || span.start >= span.end || span.end > self.member.len {
            let reason = format!(
                "value {number} at {}..{} is empty or outside {behind}..{}",
                span.start, span.end, self.member.len
            );
            return Err(self.member.damaged(members, self.width * number, reason));
        }
        Ok(span)
    }

    /// Value `number` (1 to count), if the member is in memory and sound there.
    #[inline]
    pub(crate) fn value_in_memory<'m, S: Storage>(
        &self,
        members: &'m Members<S>,
        number: u64,
    ) -> Option<&'m [u8]> {
        self.in_memory(members).get(number)
    }

    /// The values, as far as they are in memory.
    #[inline]
    pub(crate) fn in_memory<'m, S: Storage>(&self, members: &'m Members<S>) -> Slices<'m> {
        let bytes = members.in_memory(&self.member).filter(|_| !self.zero_ended);
        // Their numbers fit in the member, and so in memory.
        let behind = self.width * (self.count + 2);
        Slices {
            bytes: bytes.unwrap_or_default(),
            count: self.count,
            behind: behind as usize,
            wide: self.width == 8,
        }
    }

    /// Value `number` (1 to count), in place.
    #[inline]
    pub(crate) fn value<'m, S: Storage>(
        &self,
        members: &'m Members<S>,
        number: u64,
    ) -> Result<Value<'m, S>, Error> {
        if let Some(value) = self.value_in_memory(members, number) {
            return Ok(Value { bytes: Held::Slice(value) });
        }
        self.guarded(members, number)
    }

    fn guarded<'m, S: Storage>(
        &self,
        members: &'m Members<S>,
        number: u64,
    ) -> Result<Value<'m, S>, Error> {
        let span = self.span(members, number)?;
        if !self.zero_ended {
            let bytes = members.bytes(&self.member, span)?;
            return Ok(Value { bytes: Held::Guard(bytes) });
        }
        let len = self.zero_end(members, number, span.clone())?;
        let bytes = members.bytes(&self.member, span.start..span.start + len)?;
        Ok(Value { bytes: Held::Guard(bytes) })
    }

    /// Appends value `number` (1 to count) to `out`. Pins nothing, so any length will do.
    pub(crate) fn append<S: Storage>(
        &self,
        members: &Members<S>,
        number: u64,
        out: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let span = self.span(members, number)?;
        self.append_span(members, number, span, out)
    }

    /// The same, of a value that is known to be in `span`.
    fn append_span<S: Storage>(
        &self,
        members: &Members<S>,
        number: u64,
        span: Range<u64>,
        out: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let len = match self.zero_ended {
            true => self.zero_end(members, number, span.clone())?,
            false => span.end - span.start,
        };
        // Grown as bytes arrive: a false offset must not allocate what the storage cannot fill.
        let mut at = span.start;
        while at < span.start + len {
            let n = (span.start + len - at).min(1 << 20) as usize;
            let old = out.len();
            out.resize(old + n, 0);
            members.read(&self.member, at, &mut out[old..]).inspect_err(|_| out.truncate(old))?;
            at += n as u64;
        }
        Ok(())
    }

    /// Version 0: bytes before the NUL that ends the value in `span`.
    fn zero_end<S: Storage>(
        &self,
        members: &Members<S>,
        number: u64,
        span: Range<u64>,
    ) -> Result<u64, Error> {
        let mut chunk = [0; 512];
        let mut at = span.start;
        while at < span.end {
            let chunk = &mut chunk[..(span.end - at).min(512) as usize];
            members.read(&self.member, at, chunk)?;
            if let Some(zero) = chunk.iter().position(|&b| b == 0) {
                return Ok(at + zero as u64 - span.start);
            }
            at += chunk.len() as u64;
        }
        let reason = format!("value {number} has no NUL byte at its end");
        Err(self.member.damaged(members, span.start, reason))
    }

    /// Calls `each` with the values `numbers` (from 1, all of which exist) and their numbers, reading
    /// many at a time.
    pub(crate) fn each<S: Storage>(
        &self,
        members: &Members<S>,
        numbers: Range<u64>,
        mut each: impl FnMut(u64, &[u8]),
    ) -> Result<(), Error> {
        /// Values read at a time, in bytes, unless one is longer.
        const VALUES_BYTES: u64 = 256 << 10;
        let step = CHUNK_BYTES / self.width;
        let (mut offsets, mut bytes, mut value) = (Vec::new(), Vec::new(), Vec::new());
        let mut number = numbers.start;
        while number < numbers.end {
            let n = step.min(numbers.end - number);
            let end = (self.width * (number + n + 1)).min(self.member.len);
            offsets.resize((end - self.width * number) as usize, 0);
            members.read(&self.member, self.width * number, &mut offsets)?;
            let starts: Vec<u64> =
                offsets.chunks_exact(self.width as usize).map(le_number).collect();
            let mut spans = Vec::with_capacity(n as usize);
            for k in 0..n as usize {
                let last = self.zero_ended && number + k as u64 == self.count;
                let end = if last { self.member.len } else { starts[k + 1] };
                spans.push(self.check_span(members, number + k as u64, starts[k]..end)?);
            }
            // Each span ends after it starts and where the next one starts, so they follow.
            let mut k = 0;
            while k < spans.len() {
                let start = spans[k].start;
                let fits = |span: &&Range<u64>| span.end - start <= VALUES_BYTES;
                let group = spans[k..].iter().take_while(fits).count();
                if self.zero_ended || group == 0 {
                    value.clear();
                    self.append(members, number + k as u64, &mut value)?;
                    each(number + k as u64, &value);
                    k += 1;
                    continue;
                }
                bytes.resize((spans[k + group - 1].end - start) as usize, 0);
                members.read(&self.member, start, &mut bytes)?;
                for span in &spans[k..k + group] {
                    let place = (span.start - start) as usize..(span.end - start) as usize;
                    each(number + k as u64, &bytes[place]);
                    k += 1;
                }
            }
            number += n;
        }
        Ok(())
    }

    /// The numbers of the values that equal those `wanted`, 0 for the empty one, by a scan over the
    /// offsets: values are in the order of their first use.
    pub(crate) fn find_all<S: Storage>(
        &self,
        members: &Members<S>,
        wanted: &[&[u8]],
    ) -> Result<Vec<Option<u64>>, Error> {
        let mut found: HashMap<&[u8], Option<u64>> =
            wanted.iter().filter(|value| !value.is_empty()).map(|&value| (value, None)).collect();
        // Most values are of another length: a bit for each, 64 and 0 sharing one and so on, says so.
        let bit = |len: u64| 1u64 << (len % 64);
        let lengths = found.keys().fold(0, |bits, value| bits | bit(<[u8]>::len(value) as u64));
        let mut missing = found.len();
        let step = CHUNK_BYTES / self.width;
        let mut number = 1;
        let mut value = Vec::new();
        let mut offsets = Vec::new();
        let mut fitting: Vec<(u64, Range<u64>)> = Vec::new();
        let mut apart = APART_MIN;
        while number <= self.count && missing > 0 {
            let n = step.min(self.count - number + 1);
            let mut plan = Plan::default();
            plan.add(&self.member, self.width * number..self.width * (number + 2 * step + 1));
            plan.announce(members)?;
            // Version 0 may lack the last offset; then it is taken as the end of the member.
            let end = (self.width * (number + n + 1)).min(self.member.len);
            offsets.resize((end - self.width * number) as usize, 0);
            members.read(&self.member, self.width * number, &mut offsets)?;
            let starts: Vec<u64> =
                offsets.chunks_exact(self.width as usize).map(le_number).collect();
            fitting.clear();
            for k in 0..n as usize {
                let missing_end = self.zero_ended && number + k as u64 == self.count;
                let end = if missing_end { self.member.len } else { starts[k + 1] };
                let span = self.check_span(members, number + k as u64, starts[k]..end)?;
                let fits = match self.zero_ended {
                    // Longer than the value by its NUL byte, or more before the last offset. A span
                    // is no longer than the member, so one that fits is read in full.
                    true => true,
                    false => lengths & bit(span.end - span.start) != 0,
                };
                if fits {
                    fitting.push((number + k as u64, span));
                }
            }
            let mut rest = &fitting[..];
            while !rest.is_empty() && missing > 0 {
                let now = match members.is_remote() {
                    true => self.announce_values(members, rest, apart)?,
                    false => rest.len(),
                };
                apart = (2 * apart).min(APART_MAX);
                let (now, later) = rest.split_at(now);
                rest = later;
                for (number, span) in now {
                    value.clear();
                    self.append_span(members, *number, span.clone(), &mut value)?;
                    // The first of equal values counts.
                    if let Some(slot @ None) = found.get_mut(&*value) {
                        *slot = Some(*number);
                        missing -= 1;
                        if missing == 0 {
                            break;
                        }
                    }
                }
            }
            number += n;
        }
        let number = |value: &&[u8]| if value.is_empty() { Some(0) } else { found[value] };
        Ok(wanted.iter().map(number).collect())
    }

    /// Announces the first of these values, which ascend: as many as lie in `apart` places, and
    /// [`ANNOUNCED_BYTES`] from the first to the last of each. Returns how many, at least one.
    fn announce_values<S: Storage>(
        &self,
        members: &Members<S>,
        values: &[(u64, Range<u64>)],
        apart: usize,
    ) -> Result<usize, Error> {
        let mut plan = Plan::default();
        let (mut places, mut bytes, mut end) = (0, 0, None);
        let mut count = 0;
        for (_, span) in values {
            // As the plan sees it.
            let is_near = end.is_some_and(|end: u64| span.start.saturating_sub(end) <= MERGE_GAP);
            let from = end.filter(|_| is_near).unwrap_or(span.start);
            places += usize::from(!is_near);
            bytes += span.end.saturating_sub(from);
            if count > 0 && (places > apart || bytes > ANNOUNCED_BYTES) {
                break;
            }
            plan.add(&self.member, span.start..span.end.min(span.start + ANNOUNCED_BYTES));
            end = Some(span.end.max(from));
            count += 1;
        }
        plan.announce(members)?;
        Ok(count)
    }
}

/// So many values are looked up together.
pub(crate) const AT_ONCE: usize = 256;

/// Values in memory, none of them where they are not there, or are of version 0.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Slices<'m> {
    /// The member.
    bytes: &'m [u8],
    count: u64,
    /// Where its values start, behind their offsets.
    behind: usize,
    /// Whether an offset has 8 bytes.
    wide: bool,
}

impl<'m> Slices<'m> {
    /// Where value `number` says that it starts and ends, wherever that is.
    #[inline]
    fn span(&self, number: u64) -> Option<(usize, usize)> {
        if number.wrapping_sub(1) >= self.count {
            return None;
        }
        let number = usize::try_from(number).ok()?;
        match self.wide {
            false => {
                let pair = self.bytes.get(number.checked_mul(4)?..)?.first_chunk()?;
                let pair = u64::from_le_bytes(*pair);
                Some((pair as u32 as usize, (pair >> 32) as usize))
            }
            true => {
                let pair = self.bytes.get(number.checked_mul(8)?..)?.first_chunk()?;
                let pair = u128::from_le_bytes(*pair);
                Some((usize::try_from(pair as u64).ok()?, usize::try_from(pair >> 64).ok()?))
            }
        }
    }

    /// Whether there are any, or none only since the lexicon has none.
    pub(crate) fn are_there(&self) -> bool {
        !self.bytes.is_empty()
    }

    /// The values of up to [`AT_ONCE`] items, empty for NULL and for what breaks a rule. Returns whether
    /// nothing does.
    ///
    /// Memory is asked for all offsets, then for all values, by loops of so few instructions that many
    /// rounds of them are under way at once: a processor waits for as many answers as fit in its window.
    pub(crate) fn get_all(&self, items: &[Item], values: &mut [&'m [u8]]) -> bool {
        // First nothing but reads, all of which are for nothing else, which must not be noticed.
        let mut bytes = 0;
        let shift = if self.wide { 3 } else { 2 };
        for item in items {
            // The number of a narrow item; there are few others.
            let number = (item.raw() >> 8) as u32 as usize;
            bytes ^= self.bytes.get(number << shift).copied().unwrap_or_default();
        }
        // Whatever is wrong has no span, as NULL has none.
        let mut spans = [(0, 0); AT_ONCE];
        let spans = &mut spans[..items.len()];
        for (span, item) in spans.iter_mut().zip(items) {
            *span = self.span(item.value()).unwrap_or_default();
        }
        // What a longer value has between its first and its last byte comes when it is read in order.
        for &(start, end) in &*spans {
            bytes ^= self.bytes.get(start).copied().unwrap_or_default();
            bytes ^= self.bytes.get(end.wrapping_sub(1)).copied().unwrap_or_default();
        }
        black_box(bytes);
        let mut whole = true;
        for ((value, &(start, end)), item) in values.iter_mut().zip(&*spans).zip(items) {
            let sound = start >= self.behind && start < end;
            *value = match self.bytes.get(start..end) {
                Some(value) if sound => value,
                _ => {
                    whole &= item.is_null();
                    &[]
                }
            };
        }
        whole
    }

    /// Value `number`; `None` if there is none, or it breaks a rule.
    #[inline]
    pub(crate) fn get(&self, number: u64) -> Option<&'m [u8]> {
        let (start, end) = self.span(number)?;
        match start >= self.behind && start < end {
            true => self.bytes.get(start..end),
            false => None,
        }
    }
}

fn le_number(bytes: &[u8]) -> u64 {
    let mut wide = [0; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(wide)
}

/// The bytes of a value, in place while this lives; empty for NULL.
///
/// Over a region of the pager this is a pin. Drop it before taking many others, or copy the value
/// with [`Reader::append_value`](crate::Reader::append_value), which pins nothing.
pub struct Value<'a, S: Storage + 'a> {
    bytes: Held<'a, S>,
}

enum Held<'a, S: Storage + 'a> {
    Slice(&'a [u8]),
    Guard(S::Bytes<'a>),
}

impl<S: Storage> Value<'_, S> {
    pub(crate) const NULL: Self = Value { bytes: Held::Slice(&[]) };
}

impl<S: Storage> Deref for Value<'_, S> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match &self.bytes {
            Held::Slice(bytes) => bytes,
            Held::Guard(bytes) => bytes,
        }
    }
}

impl<S: Storage> std::fmt::Debug for Value<'_, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Value({})", self.escape_ascii())
    }
}

/// The size of a lexicon of `count` values with `value_bytes` bytes in all (X1).
pub(crate) fn size(count: u64, value_bytes: u64) -> u64 {
    let narrow = 4 * (count + 2) + value_bytes;
    if number_width(narrow) == 4 { narrow } else { 8 * (count + 2) + value_bytes }
}

/// Makes what goes before the values: the count, the start of the first one, and where each ends.
pub(crate) struct HeadWriter {
    width: usize,
    count: u64,
    at: u64,
    bytes: [u8; 8],
}

impl HeadWriter {
    /// For `count` values with `value_bytes` bytes in all.
    pub(crate) fn new(count: u64, value_bytes: u64) -> HeadWriter {
        let width = number_width(size(count, value_bytes));
        HeadWriter { width: width as usize, count, at: width * (count + 2), bytes: [0; 8] }
    }

    pub(crate) fn count(&mut self) -> &[u8] {
        self.number(self.count)
    }

    pub(crate) fn start(&mut self) -> &[u8] {
        self.number(self.at)
    }

    /// Where the next value ends, which has `len` bytes.
    #[inline]
    pub(crate) fn end(&mut self, len: u64) -> &[u8] {
        self.at += len;
        self.number(self.at)
    }

    fn number(&mut self, number: u64) -> &[u8] {
        self.bytes = number.to_le_bytes();
        &self.bytes[..self.width]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_of_a_lexicon() {
        let bytes = |lengths: &[u64]| {
            let mut head = HeadWriter::new(lengths.len() as u64, lengths.iter().sum());
            let mut bytes = head.count().to_vec();
            bytes.extend_from_slice(head.start());
            lengths.iter().for_each(|&len| bytes.extend_from_slice(head.end(len)));
            bytes
        };
        assert_eq!(bytes(&[]), [0, 0, 0, 0, 8, 0, 0, 0], "no values");
        assert_eq!(bytes(&[1, 3]), [2, 0, 0, 0, 16, 0, 0, 0, 17, 0, 0, 0, 20, 0, 0, 0]);
        assert_eq!(size(2, 4), 20);
        assert_eq!(size(1, u64::from(u32::MAX) - 12), u64::from(u32::MAX), "the last narrow one");
        assert_eq!(size(1, u64::from(u32::MAX) - 11), u64::from(u32::MAX) - 11 + 24);
    }
}
