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
//! So written, rows are sparse: they have the items that changed, and the delta where the time goes.
//! Reading a row back, to copy it to the next one, would make every symbol wait for what was stored just
//! before; it is done when all symbols are decoded ([`fill`]), and not at all for trails in which a
//! filter finds nothing. Where the item is that a filter needs is marked in all rows of a block at once.
//!
//! A step is some fifty instructions, and of three lanes that is what takes the time: what can be left
//! to who reads a row is not done for each symbol.
//!
//! Nothing is reported here: where a rule is broken, the cursor decodes once more, symbol by symbol,
//! and says what is wrong.

use std::ops::Range;

use crate::{bits, item::Item, member::codebook::Codebook};

/// Chains of looks.
pub(super) const LANES: usize = 3;
/// Most rows of a lane: all lanes stay in the second cache.
pub(super) const LANE_ROWS: usize = 2048;
/// Rows from the start of a lane to that of the next one: one more, which is cleared ahead, and as many
/// as make a whole word of marks.
pub(super) const LANE_STRIDE: usize = LANE_ROWS + 64;
/// The same as `LANE_ROWS` where rows have values beside them.
pub(super) const LANE_ROWS_VALUES: usize = 1024;
/// Rows of a lane in the first block: who reads a few trails in order does not pay for thousands.
const LANE_ROWS_MIN: usize = 256;
/// Rows of a trail that is decoded alone.
pub(super) const TRAIL_ROWS: usize = 128;
/// And one that is cleared ahead.
pub(super) const TRAIL_STRIDE: usize = TRAIL_ROWS + 1;
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
}

impl At {
    /// Whether there is another symbol, and a row for it: the last one is only begun.
    #[inline(always)]
    fn goes_on(&self, last: usize) -> bool {
        self.bit < self.end && self.row < last
    }

    /// Decodes a symbol into its row, of the first `ROWS`. The row behind it becomes empty.
    #[inline(always)]
    fn step<const N: usize, const ROWS: usize, const STRIDE: usize>(
        &mut self,
        codebook: &Codebook,
        bytes: &[u8],
        rows: &mut [[Item; N]; STRIDE],
    ) -> Result<(), Damaged> {
        const { assert!(N.is_power_of_two() && ROWS.is_power_of_two() && ROWS < STRIDE) };
        let word = bits::peek(bytes, self.bit);
        let look = codebook.look(word);
        let (mut first, mut second, mut length) = (look.first, look.second, look.bits);
        if length == 0 || !look.exists {
            let (symbol, n) = codebook.rare_symbol(bytes, self.bit, word).map_err(|_| Damaged)?;
            ([first, second], length) = (symbol.sparse(), u64::from(n));
        }
        self.bit = self.bit.wrapping_add(length);
        // A time has nothing but its delta, from the eighth bit on.
        self.row = self.row.wrapping_add(usize::from(first as u8 == 0));
        let at = self.row & (ROWS - 1);
        // While its part of the cache is near.
        rows[at + 1] = [SAME; N];
        let row = &mut rows[at];
        // Fields are the lowest bits, also of wide items. Of a first item that is alone the second is a
        // shadow, which it covers.
        row[second as usize & (N - 1)] = Item(second);
        row[first as usize & (N - 1)] = Item(first);
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
    let rows: &mut [[Item; N]; TRAIL_STRIDE] = array(rows);
    rows[1] = [SAME; N];
    let mut at = At { bit, end, row: 0 };
    while at.goes_on(TRAIL_ROWS - 1) {
        at.step::<N, TRAIL_ROWS, TRAIL_STRIDE>(codebook, bytes, rows)?;
    }
    Ok(Decoded { row: at.row, bit: at.bit })
}

/// Gives sparse rows the items that did not change, and their times. `before` is the full row that is
/// before the first of them.
pub(super) fn fill<const N: usize>(rows: &mut [Item], before: &[Item]) {
    let (rows, _) = rows.as_chunks_mut::<N>();
    let mut last: [Item; N] = *before.first_chunk().expect("a row is as wide");
    for row in rows {
        // The sum is in bounds, as TIME_MAX has it.
        last[0] = Item(last[0].0.wrapping_add(row[0].0 >> 8));
        for (item, last) in row[1..].iter().zip(&mut last[1..]) {
            *last = if *item == SAME { *last } else { *item };
        }
        *row = last;
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

/// Notes which rows have `item` in its place, a bit for each.
fn mark<const N: usize>(rows: &[[Item; N]], place: usize, item: Item, marks: &mut [u64]) {
    for (rows, marks) in rows.chunks(64).zip(marks) {
        // Without a branch, which could not be guessed.
        *marks = rows
            .iter()
            .rev()
            .fold(0, |marks, row| marks << 1 | u64::from(row[place & (N - 1)] == item));
    }
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
    /// Rows of a lane that were there, and those that each of them used.
    rows: usize,
    used: [usize; LANES],
    /// An item, and its place in a row: which sparse rows had it, a bit for each, lane after lane.
    marked: Option<(usize, Item)>,
    marks: Vec<u64>,
}

/// A trail of a block.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    pub(super) lane: usize,
    /// Its events are in these rows of the lane.
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) rest: Rest,
    /// Whether its rows are full.
    pub(super) full: bool,
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

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.trails.is_empty()
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

    /// Notes that the rows of `trail` are full.
    pub(super) fn set_full(&mut self, trail: u64) {
        if let Some(entry) = self.trails.get_mut(trail.wrapping_sub(self.first) as usize) {
            entry.full = true;
        }
    }

    /// Notes which rows of the block have that item, all of them sparse still.
    pub(super) fn mark<const N: usize>(&mut self, rows: &[Item], needed: Option<(usize, Item)>) {
        self.marked = needed;
        let Some((place, item)) = needed else { return };
        self.marks.resize(LANES * LANE_STRIDE / 64, 0);
        for (lane, rows) in rows.chunks_exact(LANE_STRIDE * N).enumerate() {
            let marks = &mut self.marks[lane * LANE_STRIDE / 64..];
            mark::<N>(&rows.as_chunks().0[..self.used[lane]], place, item, marks);
        }
    }

    /// Whether it is known which rows have that item.
    pub(super) fn is_marked(&self, needed: (usize, Item)) -> bool {
        self.marked == Some(needed)
    }

    /// The first of these rows that has the item, counted over all lanes.
    #[inline]
    pub(super) fn first_marked(&self, rows: Range<usize>) -> Option<usize> {
        let mut at = rows.start;
        while at < rows.end {
            let left = self.marks.get(at / 64)? >> (at % 64);
            if left != 0 {
                let row = at + left.trailing_zeros() as usize;
                return (row < rows.end).then_some(row);
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }

    /// Rows of each lane that the last block used.
    pub(super) fn used(&self) -> [usize; LANES] {
        self.used
    }

    /// Decodes trails from `first` on, as many as there is room for in lanes of at most `rows_max` rows,
    /// into sparse rows. `next` says at which bits the next one has its events.
    pub(super) fn decode<const N: usize>(
        &mut self,
        codebook: &Codebook,
        bytes: &[u8],
        rows: &mut [Item],
        rows_max: usize,
        first: u64,
        next: impl FnMut() -> Option<(u64, u64)>,
    ) {
        let goes_on = first == self.first.saturating_add(self.trails.len() as u64);
        self.rows = if goes_on { self.rows * 2 } else { 0 }.clamp(LANE_ROWS_MIN, rows_max);
        (self.first, self.from) = (first, first);
        self.trails.clear();
        let mut of_lanes = rows.chunks_exact_mut(LANE_STRIDE * N);
        let mut rows: [&mut [[Item; N]; LANE_STRIDE]; LANES] =
            std::array::from_fn(|_| array(of_lanes.next().expect("as many as lanes")));
        for rows in &mut rows {
            rows[0] = [SAME; N];
        }
        let mut lanes: [Lane; LANES] = std::array::from_fn(Lane::new);
        // Behind a trail that cannot be had others may be, each of which ends the use of a block.
        let next = std::iter::from_fn(next).fuse();
        let mut queue = Queue { next, trails: &mut self.trails, last: self.rows - 1, open: true };
        // Lanes that go on come first.
        let mut going = LANES;
        while going > 0 {
            let ended = match going {
                3 => lanes_together::<3, N>(codebook, bytes, &mut rows, &mut lanes, &mut queue),
                2 => lanes_together::<2, N>(codebook, bytes, &mut rows, &mut lanes, &mut queue),
                _ => lanes_together::<1, N>(codebook, bytes, &mut rows, &mut lanes, &mut queue),
            };
            going -= 1;
            lanes.swap(ended, going);
            rows.swap(ended, going);
        }
        for lane in &lanes {
            self.used[lane.number] = lane.used;
        }
    }
}

/// Decodes until there is nothing more for one of the first lanes, and returns which one.
fn lanes_together<const L: usize, const N: usize>(
    codebook: &Codebook,
    bytes: &[u8],
    rows: &mut [&mut [[Item; N]; LANE_STRIDE]; LANES],
    lanes: &mut [Lane; LANES],
    queue: &mut Queue<'_, impl Iterator<Item = (u64, u64)>>,
) -> usize {
    let lanes: &mut [Lane; L] = lanes.first_chunk_mut().expect("so many lanes");
    let rows: &mut [_; L] = rows.first_chunk_mut().expect("so many lanes");
    loop {
        for (k, (lane, rows)) in lanes.iter_mut().zip(rows.iter_mut()).enumerate() {
            if !lane.at.goes_on(queue.last) && !lane.next(rows, queue) {
                return k;
            }
        }
        together(codebook, bytes, rows, lanes, queue.last);
    }
}

/// Decodes until one of these lanes is at its end.
#[inline(never)]
fn together<const L: usize, const N: usize>(
    codebook: &Codebook,
    bytes: &[u8],
    rows: &mut [&mut [[Item; N]; LANE_STRIDE]; L],
    lanes: &mut [Lane; L],
    last: usize,
) {
    let mut all: [At; L] = lanes.each_ref().map(|lane| lane.at);
    'decode: while all.iter().all(|at| at.goes_on(last)) {
        for (at, rows) in all.iter_mut().zip(rows.iter_mut()) {
            if at.step::<N, LANE_ROWS, LANE_STRIDE>(codebook, bytes, rows).is_err() {
                at.bit = BIT_DAMAGED;
                break 'decode;
            }
        }
    }
    for (lane, at) in lanes.iter_mut().zip(all) {
        lane.at = at;
    }
}

/// The trails that are still to be decoded, and those that were begun.
struct Queue<'b, I> {
    next: I,
    trails: &'b mut Vec<Entry>,
    /// The last row of a lane, which is not for the start of a trail.
    last: usize,
    /// Whether all that are done are sound: behind a damaged one others may be.
    open: bool,
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

    /// Starts with the next trail that has events, if there is one and room for it.
    fn next<const N: usize>(
        &mut self,
        rows: &mut [[Item; N]; LANE_STRIDE],
        queue: &mut Queue<'_, impl Iterator<Item = (u64, u64)>>,
    ) -> bool {
        loop {
            queue.open &= self.close(queue.trails, rows);
            if !queue.open || self.used >= queue.last {
                return false;
            }
            let Some((bit, end)) = queue.next.next() else { return false };
            // The row before its first one stays free.
            self.at = At { bit, end, row: self.used };
            self.entry = queue.trails.len();
            let start = self.used + 1;
            rows[start] = [SAME; N];
            queue.trails.push(Entry {
                lane: self.number,
                start,
                end: start,
                rest: Rest::Damaged,
                full: false,
            });
            if self.at.goes_on(queue.last) {
                return true;
            }
        }
    }

    /// Notes how far its trail was decoded. Returns whether it is sound.
    fn close<const N: usize>(
        &mut self,
        trails: &mut [Entry],
        rows: &[[Item; N]; LANE_STRIDE],
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
