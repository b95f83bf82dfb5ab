//! In which trails an item is: a list of ascending numbers (FORMAT.md K5).
//!
//! ```text
//!   slot      0                    in none
//!             trail * 2 + 1        in this one alone
//!             (position + 1) * 2   in those of the list at this position of the field's lists
//!
//!   list      bytes of what follows, as a varint; kind; body
//!   kind 0    gaps      the first trail, then how many lie between it and the next, as varints
//!   kind 1    bits      one for each trail of the database
//!   kind 2    others    like kind 0, of the trails that the item is not in
//! ```
//!
//! The shortest of the three is written, so a list never takes more than a bit for each trail.

use std::ops::Range;

use super::pages::Pages;
use crate::{container::Plan, error::Error, storage::Storage};

const GAPS: u8 = 0;
const BITS: u8 = 1;
const OTHERS: u8 = 2;

/// The longest varint of 64 bits.
const VARINT_MAX: u64 = 10;
/// Of a list, so much is read at a time.
const READ_BYTES: u64 = 32 << 10;
/// What is announced of a list before its length is known.
pub(super) const HEAD_BYTES: u64 = 4 << 10;

/// Appends `n` in groups of seven bits, the lowest first; all but the last have their high bit set.
pub(super) fn put_varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// Reads a varint at `at` and moves behind it; `None` if it is cut short or exceeds 64 bits.
pub(super) fn take_varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut n = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        let part = u64::from(byte & 0x7F);
        if shift == 63 && part > 1 {
            return None;
        }
        n |= part << shift;
        if byte < 0x80 {
            return Some(n);
        }
    }
    None
}

/// Collects the list of one item and writes it in its shortest form.
#[derive(Debug, Default)]
pub(super) struct ListWriter {
    /// Gaps of what was pushed.
    gaps: Vec<u8>,
    count: u64,
    first: u64,
    next: u64,
    /// Trails of the database.
    trails: u64,
}

/// What a list has become.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Written {
    None,
    One(u64),
    /// Bytes were appended.
    List,
}

impl ListWriter {
    pub(super) fn new(trails: u64) -> ListWriter {
        ListWriter { trails, ..ListWriter::default() }
    }

    /// Adds a trail, greater than those before.
    #[inline]
    pub(super) fn push(&mut self, trail: u64) {
        debug_assert!(trail >= self.next && trail < self.trails);
        if self.count == 0 {
            self.first = trail;
        }
        put_varint(&mut self.gaps, trail - self.next);
        self.next = trail + 1;
        self.count += 1;
    }

    /// Writes what was pushed, or with `inverted` all trails but those, and starts anew.
    pub(super) fn finish(&mut self, inverted: bool, out: &mut Vec<u8>) -> Written {
        let ListWriter { count, first, trails, .. } = *self;
        let members = if inverted { trails - count } else { count };
        let written = match members {
            0 => Written::None,
            1 if !inverted => Written::One(first),
            _ => {
                self.put(inverted, out);
                Written::List
            }
        };
        (self.count, self.first, self.next) = (0, 0, 0);
        self.gaps.clear();
        written
    }

    fn put(&self, inverted: bool, out: &mut Vec<u8>) {
        let bits_len = self.trails.div_ceil(8);
        let mut others = Vec::new();
        // The other form is worth trying where it can be shorter: it has a byte for each at least.
        if self.trails - self.count < (self.gaps.len() as u64).min(bits_len) {
            let mut next = 0;
            let mut put_gap = |trail: u64| {
                put_varint(&mut others, trail - next);
                next = trail + 1;
            };
            let mut at = 0;
            for trail in Gaps::new(&self.gaps) {
                (at..trail).for_each(&mut put_gap);
                at = trail + 1;
            }
            (at..self.trails).for_each(put_gap);
        } else {
            others = Vec::new();
        }
        let use_others = self.trails - self.count < (self.gaps.len() as u64).min(bits_len)
            && others.len() < self.gaps.len();
        let best = if use_others { &others } else { &self.gaps };
        if bits_len < best.len() as u64 {
            let mut bits = vec![if inverted { 0xFF } else { 0 }; bits_len as usize];
            for trail in Gaps::new(&self.gaps) {
                bits[(trail / 8) as usize] ^= 1 << (trail % 8);
            }
            if let Some(last) = bits.last_mut()
                && !self.trails.is_multiple_of(8)
            {
                *last &= (1 << (self.trails % 8)) - 1;
            }
            put_list(out, BITS, &bits);
        } else {
            put_list(out, if use_others == inverted { GAPS } else { OTHERS }, best);
        }
    }
}

fn put_list(out: &mut Vec<u8>, kind: u8, body: &[u8]) {
    put_varint(out, 1 + body.len() as u64);
    out.push(kind);
    out.extend_from_slice(body);
}

/// The numbers of gaps that this process has just written.
struct Gaps<'b> {
    bytes: &'b [u8],
    at: usize,
    next: u64,
}

impl<'b> Gaps<'b> {
    fn new(bytes: &'b [u8]) -> Gaps<'b> {
        Gaps { bytes, at: 0, next: 0 }
    }
}

impl Iterator for Gaps<'_> {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let number = self.next + take_varint(self.bytes, &mut self.at)?;
        self.next = number + 1;
        Some(number)
    }
}

/// A list that is read along ascending windows of trails.
#[derive(Debug)]
pub(super) struct List {
    kind: Kind,
    /// Positions of the body that were not read yet.
    rest: Range<u64>,
    /// Positions that were announced.
    announced: u64,
    /// The part that was read, and how far it was used.
    part: Vec<u8>,
    used: usize,
    /// The next number of gaps, and whether there is one.
    next: Option<u64>,
    /// Numbers are at least this.
    least: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    One,
    Gaps,
    Others,
    Bits,
}

impl List {
    /// The list of one trail.
    pub(super) fn one(trail: u64) -> List {
        List {
            kind: Kind::One,
            rest: 0..0,
            announced: 0,
            part: Vec::new(),
            used: 0,
            next: Some(trail),
            least: 0,
        }
    }

    /// The list at a position, whose body must end before `end`.
    pub(super) fn open<S: Storage>(
        pages: &Pages<S>,
        at: u64,
        end: u64,
        trails: u64,
    ) -> Result<List, Error> {
        let mut part = Vec::new();
        pages.read(at..end.min(at + HEAD_BYTES), &mut part)?;
        let mut used = 0;
        let len = take_varint(&part, &mut used).filter(|&len| len > 0 && len <= end - at);
        let body = at + used as u64;
        let (Some(len), Some(&kind)) = (len, part.get(used)) else {
            return Err(pages.damaged(at, "a list of trails is cut short"));
        };
        if body + len > end {
            return Err(pages.damaged(at, "a list of trails goes beyond the lists of its field"));
        }
        let kind = match kind {
            GAPS => Kind::Gaps,
            OTHERS => Kind::Others,
            BITS if len == 1 + trails.div_ceil(8) => Kind::Bits,
            _ => return Err(pages.damaged(at, "a list of trails of an unknown kind or length")),
        };
        // Of what was read, the body's part is kept.
        part.truncate(used + (len as usize).min(part.len() - used));
        // It was read as whole pages, and of a filter with many values many lists are open.
        part.shrink_to_fit();
        let read = at + part.len() as u64;
        let announced = at + HEAD_BYTES;
        let mut list = List {
            kind,
            rest: read..body + len,
            announced,
            part,
            used: used + 1,
            next: None,
            least: 0,
        };
        if kind != Kind::Bits {
            list.step(pages, trails)?;
        }
        Ok(list)
    }

    /// Announces what is read next of a long list.
    pub(super) fn plan<S: Storage>(&mut self, pages: &Pages<S>, plan: &mut Plan) {
        let end = self.rest.end.min(self.rest.start.saturating_add(16 * READ_BYTES));
        if self.rest.start < end && self.announced < self.rest.start + 8 * READ_BYTES {
            pages.plan(plan, self.rest.start..end);
            self.announced = end;
        }
    }

    /// Makes sure that at least `n` unused bytes are in `part`, or all that are left.
    fn fill_part<S: Storage>(&mut self, pages: &Pages<S>, n: usize) -> Result<(), Error> {
        if self.part.len() - self.used >= n || self.rest.is_empty() {
            return Ok(());
        }
        if pages.members().is_remote() {
            let mut plan = Plan::default();
            self.plan(pages, &mut plan);
            plan.announce(pages.members())?;
        }
        let mut more = Vec::new();
        let wanted = READ_BYTES.max(n as u64);
        let end = self.rest.end.min(self.rest.start + wanted);
        pages.read(self.rest.start..end, &mut more)?;
        self.rest.start = end;
        self.part.drain(..self.used);
        self.used = 0;
        self.part.extend_from_slice(&more);
        Ok(())
    }

    /// Goes on to the next number of gaps.
    fn step<S: Storage>(&mut self, pages: &Pages<S>, trails: u64) -> Result<(), Error> {
        self.next = None;
        if self.kind == Kind::One {
            return Ok(());
        }
        self.fill_part(pages, VARINT_MAX as usize)?;
        if self.used == self.part.len() {
            return Ok(());
        }
        let gap = take_varint(&self.part, &mut self.used);
        let number = gap.and_then(|gap| self.least.checked_add(gap)).filter(|n| *n < trails);
        let Some(number) = number else {
            let reason = "a list of trails names one that does not exist, or is cut short";
            return Err(pages.damaged(self.rest.start, reason));
        };
        (self.next, self.least) = (Some(number), number + 1);
        Ok(())
    }

    /// Sets the bits of the trails of `window` that are in this list. Windows ascend, start at a
    /// multiple of 8 and touch one another; `bits` has a bit for each trail of the window.
    pub(super) fn fill<S: Storage>(
        &mut self,
        pages: &Pages<S>,
        window: Range<u64>,
        trails: u64,
        bits: &mut [u8],
    ) -> Result<(), Error> {
        match self.kind {
            Kind::Bits => {
                let n = (window.end - window.start).div_ceil(8) as usize;
                self.fill_part(pages, n)?;
                let Some(part) = self.part.get(self.used..self.used + n) else {
                    return Err(pages.damaged(self.rest.start, "a list of bits is cut short"));
                };
                bits.iter_mut().zip(part).for_each(|(to, from)| *to |= from);
                self.used += n;
            }
            Kind::One | Kind::Gaps => {
                while let Some(trail) = self.next.filter(|&trail| trail < window.end) {
                    let at = trail - window.start;
                    bits[(at / 8) as usize] |= 1 << (at % 8);
                    self.step(pages, trails)?;
                }
            }
            Kind::Others => {
                let mut at = window.start;
                loop {
                    let gap = self.next.filter(|&trail| trail < window.end);
                    set(bits, at - window.start..gap.unwrap_or(window.end) - window.start);
                    let Some(gap) = gap else { break };
                    at = gap + 1;
                    self.step(pages, trails)?;
                }
            }
        }
        Ok(())
    }
}

/// Sets the bits `range`.
pub(super) fn set(bits: &mut [u8], range: Range<u64>) {
    let mut at = range.start;
    while at < range.end {
        if at.is_multiple_of(8) && range.end - at >= 8 {
            let end = range.end / 8;
            bits[(at / 8) as usize..end as usize].fill(0xFF);
            at = end * 8;
        } else {
            bits[(at / 8) as usize] |= 1 << (at % 8);
            at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::pages::PageWriter;

    #[test]
    fn varints() {
        for n in [0, 1, 127, 128, 16_383, 16_384, u64::MAX >> 1, u64::MAX] {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, n);
            let mut at = 0;
            assert_eq!((take_varint(&bytes, &mut at), at), (Some(n), bytes.len()));
            assert_eq!(take_varint(&bytes[..bytes.len() - 1], &mut 0), None, "cut short");
        }
        assert_eq!(take_varint(&[0xFF; 10], &mut 0), None, "more than 64 bits");
        assert_eq!(take_varint(&[0x80; 11], &mut 0), None, "no end");
    }

    #[test]
    fn lists_of_every_kind_read_back() {
        let trails = 200_003u64;
        type Pick = fn(u64) -> bool;
        let cases: [(&str, Pick, &[bool]); 8] = [
            ("none", |_| false, &[false, true]),
            ("one", |n| n == 77, &[false, true]),
            ("two", |n| n == 77 || n == 200_002, &[false, true]),
            ("few", |n| n % 5000 == 3, &[false, true]),
            ("half", |n| n % 2 == 0, &[false, true]),
            ("most", |n| n % 300 != 7, &[false, true]),
            ("all", |_| true, &[false, true]),
            ("runs", |n| n / 1000 % 2 == 1, &[false, true]),
        ];
        for (what, pick, modes) in cases {
            for &inverted in modes {
                let mut writer = ListWriter::new(trails);
                (0..trails).filter(|&n| pick(n)).for_each(|n| writer.push(n));
                let mut out = vec![9; 5000];
                let written = writer.finish(inverted, &mut out);
                let expected: Vec<u64> = (0..trails).filter(|&n| pick(n) != inverted).collect();
                assert!(out.len() <= 5000 + 6 + trails.div_ceil(8) as usize, "{what} is long");
                let mut file = PageWriter::new(Vec::new(), 0);
                file.write(&out).unwrap();
                let pages = Pages::new(file.finish().unwrap()).unwrap();
                let mut list = match written {
                    Written::None => {
                        assert!(expected.is_empty(), "{what}");
                        continue;
                    }
                    Written::One(trail) => List::one(trail),
                    Written::List => List::open(&pages, 5000, out.len() as u64, trails).unwrap(),
                };
                let mut found = Vec::new();
                let mut start = 0;
                while start < trails {
                    let window = start..trails.min(start + 4096);
                    let mut bits = vec![0; 512];
                    list.fill(&pages, window.clone(), trails, &mut bits).unwrap();
                    let is_set =
                        |n: &u64| bits[((n - start) / 8) as usize] >> ((n - start) % 8) & 1;
                    found.extend(window.clone().filter(|n| is_set(n) == 1));
                    start = window.end;
                }
                assert!(found == expected, "{what}, inverted: {inverted}");
                // What was in the writer is gone.
                assert_eq!(writer.finish(false, &mut out), Written::None);
            }
        }
    }

    /// Whatever was read to find it, an open list keeps its own bytes.
    #[test]
    fn a_short_list_takes_little_memory() {
        let mut writer = ListWriter::new(1 << 20);
        [3, 1000, 70_000].into_iter().for_each(|trail| writer.push(trail));
        let mut out = Vec::new();
        assert_eq!(writer.finish(false, &mut out), Written::List);
        let len = out.len();
        out.resize(100_000, 0);
        let mut file = PageWriter::new(Vec::new(), 0);
        file.write(&out).unwrap();
        let pages = Pages::new(file.finish().unwrap()).unwrap();
        let list = List::open(&pages, 0, out.len() as u64, 1 << 20).unwrap();
        let capacity = list.part.capacity();
        assert!(capacity < 4 * len, "{capacity} bytes for a list of {len}");
    }

    #[test]
    fn lists_that_are_refused() {
        let trails = 100;
        let cases: [(&str, &[u8]); 8] = [
            ("nothing", &[]),
            ("no length", &[0x80]),
            ("a length of nothing", &[0]),
            ("longer than the lists", &[9, 0, 1]),
            ("an unknown kind", &[2, 7, 1]),
            ("too few bits", &[2, 1, 0xFF]),
            ("a trail that does not exist", &[2, 0, 100]),
            ("a gap that is cut", &[3, 0, 5, 0x80]),
        ];
        for (what, bytes) in cases {
            let mut file = PageWriter::new(Vec::new(), 0);
            file.write(bytes).unwrap();
            file.write(&[0]).unwrap();
            let pages = Pages::new(file.finish().unwrap()).unwrap();
            let read = List::open(&pages, 0, bytes.len() as u64, trails)
                .and_then(|mut list| list.fill(&pages, 0..100, trails, &mut [0; 13]));
            assert!(read.is_err(), "{what}");
        }
    }
}
