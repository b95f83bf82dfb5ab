//! Many events at once, of databases with few fields: the cursor hands them out one by one.
//!
//! ```text
//!   bits    t0 ........| t1 ...| t2 ....| t3 .............| ...
//!   lane 0  t0 ........ t3 .............                      one symbol of this,
//!   lane 1  t1 ... t4 ...                                     one symbol of that,
//!   lane 2  t2 .... t5 ..                                     and one of the third
//!
//!   rows    free | event | event | ... | free | event | ...       of a lane, trail after trail
//!   row     time | item of field 1 | item of field 2 | ...        as wide as a power of two
//! ```
//!
//! Where a symbol starts is known when the one before it was looked up, so a trail is a chain of looks
//! that the processor waits for. Three trails are three chains, and it waits for all of them at once.
//! What a symbol is of changes no branch, since it could not be guessed: each symbol writes to a row, the
//! next one if it is a time. A lane that is full leaves the others to themselves.
//!
//! So written, rows are sparse: they have the items that changed. Reading a row back, to copy it to the
//! next one, would make every symbol wait for what was stored just before; it is done when all symbols
//! are decoded ([`fill`]), and not at all for trails in which a filter finds nothing.
//!
//! Nothing is reported here: where a rule is broken, the cursor decodes once more, symbol by symbol,
//! and says what is wrong.

use std::ops::Range;

use crate::{bits, item::Item, member::codebook::Codebook};

/// Chains of looks.
pub(super) const LANES: usize = 3;
/// Most rows of a lane: all lanes stay in the second cache.
pub(super) const LANE_ROWS: usize = 2048;
/// The same where rows have values beside them.
pub(super) const LANE_ROWS_VALUES: usize = 1024;
/// Rows of a lane in the first block: who reads a few trails in order does not pay for thousands.
const LANE_ROWS_MIN: usize = 256;
/// Rows of a trail that is decoded alone.
pub(super) const TRAIL_ROWS: usize = 128;
/// What a sparse row has in place of an item that did not change: the item of no field.
pub(super) const SAME: Item = Item(0);
/// No time above this is decoded here, so that no sum can overflow: a delta has at most 48 bits.
pub(super) const TIME_MAX: u64 = 1 << 62;

/// The broken rule is found by who decodes again.
pub(super) struct Damaged;

/// Where decoding is in a trail.
#[derive(Clone, Copy, Default)]
struct At {
    bit: u64,
    /// Stop at this bit, which is the end of the trail, or before it.
    end: u64,
    /// The row of the event that symbols are of.
    row: usize,
    time: u64,
}

impl At {
    /// Whether there is another symbol, and a row for it: the last one is only begun.
    #[inline(always)]
    fn goes_on(&self, last: usize) -> bool {
        self.bit < self.end && self.row < last
    }

    /// Decodes a symbol into its row.
    #[inline(always)]
    fn step<const N: usize, const ROWS: usize>(
        &mut self,
        codebook: &Codebook,
        bytes: &[u8],
        rows: &mut [[Item; N]; ROWS],
    ) -> Result<(), Damaged> {
        const { assert!(N.is_power_of_two() && ROWS.is_power_of_two()) };
        let word = bits::peek(bytes, self.bit);
        let look = codebook.look(word);
        let (mut first, mut second, mut length) = (look.first, look.second, look.bits);
        let (mut first_field, mut second_field) = (first & 127, second & 127);
        if length == 0 || !look.exists {
            let (symbol, n) = codebook.rare_symbol(bytes, self.bit, word).map_err(|_| Damaged)?;
            (first, second, length) = (symbol.first, symbol.second, u64::from(n));
            first_field = u64::from(symbol.first_field);
            second_field = u64::from(symbol.second_field);
        }
        // All ones for a time, else 0.
        let is_time = ((first_field as i64).wrapping_sub(1) >> 63) as u64;
        // The sum is in bounds, as TIME_MAX has it.
        self.time = self.time.wrapping_add(first >> 8 & is_time);
        self.bit = self.bit.wrapping_add(length);
        self.row = self.row.wrapping_sub(is_time as usize);
        let row = &mut rows[self.row & (ROWS - 1)];
        // What is of no field goes where the time then is.
        row[first_field as usize & (N - 1)] = Item(first);
        row[second_field as usize & (N - 1)] = Item(second);
        row[0] = Item(self.time);
        Ok(())
    }
}

/// How far a trail was decoded.
#[derive(Clone, Copy)]
pub(super) struct Decoded {
    /// The row of the last event, of which symbols may be missing unless the trail is at its end.
    pub(super) row: usize,
    /// The next bit.
    pub(super) bit: u64,
}

/// Decodes from `bit` on, up to `end` or a little further, into the rows behind the first, which is the
/// event that symbols from `bit` on are of. That row is full, the others will be sparse.
pub(super) fn trail<const N: usize>(
    codebook: &Codebook,
    bytes: &[u8],
    rows: &mut [Item],
    bit: u64,
    end: u64,
) -> Result<Decoded, Damaged> {
    let rows: &mut [[Item; N]; TRAIL_ROWS] = array(rows);
    rows[1..].fill([SAME; N]);
    let mut at = At { bit, end, row: 0, time: rows[0][0].0 };
    while at.goes_on(TRAIL_ROWS - 1) {
        at.step(codebook, bytes, rows)?;
    }
    Ok(Decoded { row: at.row, bit: at.bit })
}

/// Gives sparse rows the items that did not change, the first of them those of `before`.
pub(super) fn fill<const N: usize>(rows: &mut [Item], before: &[Item]) {
    let (rows, _) = rows.as_chunks_mut::<N>();
    let mut last: [Item; N] = *before.first_chunk().expect("a row is as wide");
    for row in rows {
        for (item, last) in row[1..].iter_mut().zip(&mut last[1..]) {
            let filled = if *item == SAME { *last } else { *item };
            (*item, *last) = (filled, filled);
        }
    }
}

/// Where the first rows start and end that have `item` in its place, or, negated, do not.
pub(super) fn first_run<const N: usize>(
    rows: &[Item],
    place: usize,
    item: Item,
    negated: bool,
) -> Range<usize> {
    let (rows, _) = rows.as_chunks::<N>();
    let matches = |row: &[Item; N]| (row[place & (N - 1)] == item) != negated;
    let start = rows.iter().position(matches).unwrap_or(rows.len());
    let run = rows[start..].iter().position(|row| !matches(row));
    start * N..run.map_or(rows.len(), |run| start + run) * N
}

/// Whether any row has `item` in its place.
pub(super) fn have<const N: usize>(rows: &[Item], place: usize, item: Item) -> bool {
    let (rows, _) = rows.as_chunks::<N>();
    // Without a way out in the middle, which could not be guessed.
    rows.iter().fold(false, |any, row| any | (row[place & (N - 1)] == item))
}

/// The first rows of a lane.
fn array<const N: usize, const ROWS: usize>(rows: &mut [Item]) -> &mut [[Item; N]; ROWS] {
    let (rows, _) = rows.as_chunks_mut::<N>();
    rows.first_chunk_mut().expect("the cursor makes so many rows")
}

/// Events of trails that follow one another.
#[derive(Default)]
pub(super) struct Block {
    /// The trail of the first entry, and the first one that is still to be had.
    first: u64,
    from: u64,
    trails: Vec<Entry>,
    /// Rows of a lane that were used.
    rows: usize,
}

/// A trail of a block.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    pub(super) lane: usize,
    /// Its events are in these rows of the lane.
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) rest: Rest,
}

/// What is left of a trail of a block.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    Nothing,
    /// The row `end` is of an event whose symbols go on at `bit`; the trail ends at `end_bit`.
    Symbols {
        bit: u64,
        end_bit: u64,
    },
    /// All: it is damaged.
    Damaged,
}

impl Block {
    /// Forgets all trails.
    pub(super) fn clear(&mut self) {
        self.trails.clear();
    }

    /// Forgets `trail` and those before it.
    pub(super) fn pass(&mut self, trail: u64) {
        self.from = self.from.max(trail.saturating_add(1));
    }

    #[inline]
    pub(super) fn get(&self, trail: u64) -> Option<&Entry> {
        if trail < self.from {
            return None;
        }
        self.trails.get(trail.wrapping_sub(self.first) as usize)
    }

    /// Rows of each lane that the last block used.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Decodes trails from `first` on, as many as there is room for in lanes of at most `rows_max` rows,
    /// into sparse rows. `next` says at which bits the next one has its events, and `time` is from when
    /// on their deltas count.
    #[expect(clippy::too_many_arguments, reason = "what decoding needs, once")]
    pub(super) fn decode<const N: usize>(
        &mut self,
        codebook: &Codebook,
        bytes: &[u8],
        rows: &mut [Item],
        rows_max: usize,
        time: u64,
        first: u64,
        next: impl FnMut() -> Option<(u64, u64)>,
    ) {
        // Behind a trail that cannot be had others may be, each of which ends the use of a block.
        let mut next = std::iter::from_fn(next).fuse();
        let goes_on = first == self.first.saturating_add(self.trails.len() as u64);
        self.rows = if goes_on { self.rows * 2 } else { 0 }.clamp(LANE_ROWS_MIN, rows_max);
        (self.first, self.from) = (first, first);
        self.trails.clear();
        let mut of_lanes = rows.chunks_exact_mut(LANE_ROWS * N);
        let mut rows: [&mut [[Item; N]; LANE_ROWS]; LANES] =
            std::array::from_fn(|_| array(of_lanes.next().expect("as many as lanes")));
        for rows in &mut rows {
            rows[..self.rows].fill([SAME; N]);
        }
        let mut lanes: [Lane; LANES] = std::array::from_fn(Lane::new);
        let last = self.rows - 1;
        // Lanes that go on come first.
        let (mut going, mut open) = (LANES, true);
        loop {
            let mut k = 0;
            while k < going {
                if lanes[k].at.goes_on(last) {
                    k += 1;
                    continue;
                }
                // So may others be behind a damaged one.
                open &= lanes[k].close(&mut self.trails, rows[k]);
                if !(open && lanes[k].open(&mut self.trails, last, time, &mut next)) {
                    going -= 1;
                    lanes.swap(k, going);
                    rows.swap(k, going);
                }
            }
            match going {
                3 => together::<3, N>(codebook, bytes, &mut rows, &mut lanes, last),
                2 => together::<2, N>(codebook, bytes, &mut rows, &mut lanes, last),
                1 => together::<1, N>(codebook, bytes, &mut rows, &mut lanes, last),
                _ => break,
            }
        }
    }
}

/// Decodes until one of the first lanes is at its end.
#[inline(never)]
fn together<const L: usize, const N: usize>(
    codebook: &Codebook,
    bytes: &[u8],
    rows: &mut [&mut [[Item; N]; LANE_ROWS]; LANES],
    lanes: &mut [Lane; LANES],
    last: usize,
) {
    let lanes: &mut [Lane; L] = lanes.first_chunk_mut().expect("so many lanes");
    let rows: &mut [_; L] = rows.first_chunk_mut().expect("so many lanes");
    let mut all: [At; L] = lanes.each_ref().map(|lane| lane.at);
    'decode: while all.iter().all(|at| at.goes_on(last)) {
        for (at, rows) in all.iter_mut().zip(rows.iter_mut()) {
            if at.step(codebook, bytes, rows).is_err() {
                at.bit = BIT_DAMAGED;
                break 'decode;
            }
        }
    }
    for (lane, at) in lanes.iter_mut().zip(all) {
        lane.at = at;
    }
}

/// Past every end.
const BIT_DAMAGED: u64 = u64::MAX;

/// One of the chains of looks.
struct Lane {
    number: usize,
    at: At,
    /// Its trail among those of the block.
    entry: usize,
    /// Rows before this one are of trails that are done.
    used: usize,
}

impl Lane {
    fn new(number: usize) -> Lane {
        Lane { number, at: At::default(), entry: usize::MAX, used: 0 }
    }

    /// Starts with the next trail, if there is one and room for it.
    fn open(
        &mut self,
        trails: &mut Vec<Entry>,
        last: usize,
        time: u64,
        next: &mut impl Iterator<Item = (u64, u64)>,
    ) -> bool {
        if self.used >= last {
            return false;
        }
        let Some((bit, end)) = next.next() else { return false };
        // The row before its first one stays free.
        self.at = At { bit, end, row: self.used, time };
        self.entry = trails.len();
        let start = self.used + 1;
        trails.push(Entry { lane: self.number, start, end: start, rest: Rest::Damaged });
        true
    }

    /// Notes how far its trail was decoded. Returns whether it is sound.
    fn close<const N: usize>(
        &mut self,
        trails: &mut [Entry],
        rows: &[[Item; N]; LANE_ROWS],
    ) -> bool {
        let At { bit, end, row, .. } = self.at;
        let Some(entry) = trails.get_mut(self.entry) else { return true };
        self.entry = usize::MAX;
        self.used = row + 1;
        // The first symbol is a time (T7): items before one are where none have to be.
        let starts = row >= entry.start && rows[entry.start - 1][1..].iter().all(|&i| i == SAME);
        if bit > end || !starts {
            return false;
        }
        (entry.end, entry.rest) = match bit == end {
            true => (row + 1, Rest::Nothing),
            false => (row, Rest::Symbols { bit, end_bit: end }),
        };
        true
    }
}
