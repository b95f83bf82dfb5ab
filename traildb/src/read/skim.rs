//! Trails of which a filter asks an item are skimmed: rows are made of the events that have it, and of no
//! others.
//!
//! ```text
//!   bits    t0 ........| t1 ...| t2 ....| t3 .............| ...
//!   lane 0  t0 ........ t3 .............
//!   lane 1  t1 ... t4 ...                     the same number of words in each lane
//!   lane 2  t2 .... t5 ..
//!
//!   word    a symbol: where it is in the tables, and in the stream
//!   mark    of a trail that has a symbol with the item --> items --> state --> rows --> events
//! ```
//!
//! As in [`rows`](super::rows), three trails are three chains of looks at a time. To find the next symbol
//! of each is all that a step does, and a lane goes from one trail to the next without leaving the loop.
//! What the symbols say is asked only in trails where one is marked: which symbols have the item is found
//! once for the filter, as a bit beside their lengths ([`Codebook::mark`]).
//!
//! There, symbol after symbol changes one row, the state, and what is known at the end of an event is
//! copied if it has the item.
//!
//! Nothing is reported here either: a trail that breaks a rule is decoded once more by the cursor.

use super::rows::{LANES, Rest, SAME};
use crate::{
    bits,
    item::Item,
    member::codebook::{Codebook, LENGTH, MARK, Marked, Marks, Place},
};

/// Words of a lane. All lanes stay in the second cache.
const WORDS: usize = 4096;
/// From here on no trail is begun, so that those that are can end.
const WORDS_BEGIN: usize = WORDS / 4 * 3;
/// The same in the first block: who reads a few trails in order does not pay for thousands.
const WORDS_BEGIN_MIN: usize = 384;
/// Past every end.
const BIT_DAMAGED: u64 = u64::MAX;

/// A symbol, that is where to find it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Word {
    place: Place,
    /// The lowest bits of the number of the bit that it starts at.
    bit: u32,
}

impl Word {
    /// In place of a symbol at `bit` that is none.
    pub(super) fn broken(bit: u64) -> Word {
        Word { place: Place::BROKEN, bit: bit as u32 }
    }

    pub(super) fn is_broken(self) -> bool {
        self.place == Place::BROKEN
    }

    /// The bit that it starts at: `from`, or one of the 2^32 behind that.
    #[inline(always)]
    pub(super) fn start(self, from: u64) -> u64 {
        from.wrapping_add(u64::from(self.bit.wrapping_sub(from as u32)))
    }
}

/// What is decoded, and by what.
#[derive(Clone, Copy)]
pub(super) struct Stream<'b> {
    pub(super) codebook: &'b Codebook,
    pub(super) bytes: &'b [u8],
}

impl<'b> Stream<'b> {
    /// The symbol at `bit`, and its length, with [`MARK`] if it may have the item that is marked. `None`
    /// if it is broken.
    #[inline(always)]
    pub(super) fn word(self, marks: Marks<'_>, bit: u64) -> Option<(Word, u8)> {
        let (place, length) = match self.codebook.find(marks, bits::peek(self.bytes, bit)) {
            Some(found) => found,
            None => (Place::RARE, self.rare_length(bit)?),
        };
        Some((Word { place, bit: bit as u32 }, length))
    }

    /// The length of a symbol that is not found, which may have any item.
    #[cold]
    #[inline(never)]
    fn rare_length(self, bit: u64) -> Option<u8> {
        let symbol = self.codebook.rare_symbol(self.bytes, bit, bits::peek(self.bytes, bit));
        // At most 1 + 14 + 48 bits.
        symbol.ok().map(|(_, length)| length as u8 | MARK)
    }

    /// Both items of the symbol at `bit`, as in a sparse row.
    #[inline(always)]
    fn items(self, place: Place, bit: u64) -> [u64; 2] {
        if place == Place::RARE {
            return self.rare_items(bit);
        }
        self.codebook.items(place, bits::peek(self.bytes, bit))
    }

    #[cold]
    #[inline(never)]
    fn rare_items(self, bit: u64) -> [u64; 2] {
        let symbol = self.codebook.rare_symbol(self.bytes, bit, bits::peek(self.bytes, bit));
        // There is no word of a broken one.
        symbol.map_or([0; 2], |(symbol, _)| symbol.sparse())
    }

    /// The symbols of `words`, of which none starts before the bit `from`, or 2^32 bits behind it.
    pub(super) fn symbols(self, words: &'b [Word], from: u64) -> Symbols<'b> {
        Symbols { stream: self, words, from }
    }
}

/// Symbols that follow one another.
#[derive(Clone, Copy)]
pub(super) struct Symbols<'b> {
    stream: Stream<'b>,
    words: &'b [Word],
    from: u64,
}

impl Symbols<'_> {
    /// So many rows have room for all their events, for the row before, and for one more.
    pub(super) fn rows_max(&self) -> usize {
        self.words.len() + 2
    }

    /// The items of each, as in a sparse row: the field of one that is alone is in place of the other,
    /// which it covers when it is written last.
    #[inline(always)]
    fn items(self) -> impl Iterator<Item = [u64; 2]> {
        self.words.iter().map(move |word| self.stream.items(word.place, word.start(self.from)))
    }

    /// Whether the first is a time, as T7 has it for a trail.
    fn start_with_time(self) -> bool {
        self.items().next().is_some_and(|[first, _]| first & 127 == 0)
    }

    /// Writes them into sparse rows, of which the first is that of the event before. Returns the row of
    /// the last event.
    pub(super) fn sparse<const N: usize>(self, rows: &mut [Item]) -> usize {
        let (rows, _) = rows.as_chunks_mut::<N>();
        let mut row = 0;
        for [first, second] in self.items() {
            if first & 127 == 0 {
                row += 1;
                rows[row] = [SAME; N];
            }
            rows[row][second as usize & (N - 1)] = Item(second);
            rows[row][first as usize & (N - 1)] = Item(first);
        }
        row
    }

    /// Writes full rows, one behind the other, of the events that have `item` in its place: of the one
    /// before, whose row is `before`, and of all but the last, which is not known to be whole. Returns
    /// their number. The row behind them is that of the last event.
    pub(super) fn pick<const N: usize>(
        self,
        before: &[Item],
        (place, item): (usize, Item),
        rows: &mut [Item],
    ) -> usize {
        let (rows, _) = rows.as_chunks_mut::<N>();
        let mut state: [Item; N] = *before.first_chunk().expect("a row is as wide");
        let mut time = state[0].0;
        let mut picked = 0;
        for [first, second] in self.items() {
            // Where an event ends cannot be guessed, where one that has the item does mostly can: that is
            // the only branch.
            let field = first & 127;
            if (state[place & (N - 1)].0 ^ item.0) | field == 0 {
                state[0] = Item(time);
                rows[picked] = state;
                picked += 1;
            }
            let delta = if field == 0 { first >> 8 } else { 0 };
            // In bounds, as TIME_MAX has it.
            time = time.wrapping_add(delta);
            // A time goes where the time is put above.
            state[second as usize & (N - 1)] = Item(second);
            state[first as usize & (N - 1)] = Item(first);
        }
        state[0] = Item(time);
        rows[picked] = state;
        picked
    }
}

/// Trails that follow one another, as words.
#[derive(Default)]
pub(super) struct Skimmed {
    /// The trail of the first entry.
    first: u64,
    trails: Vec<Entry>,
    /// Words of all lanes, one lane after the other.
    words: Vec<Word>,
    /// What was looked for, and its place in a row.
    needed: Option<(usize, Item)>,
    /// The last such item that symbols were marked for.
    marked: Option<(Item, Marked)>,
    /// Up to where in a lane trails are begun.
    begin: usize,
}

/// A trail that was skimmed.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    lane: usize,
    start: usize,
    end: usize,
    /// Where its events start.
    bit: u64,
    /// What is left, where the last event may have more symbols. A damaged trail has no words to look at.
    pub(super) rest: Rest,
    /// Whether it may have what was looked for, in what was decoded.
    pub(super) found: bool,
}

impl Skimmed {
    /// Forgets all trails.
    pub(super) fn clear(&mut self) {
        self.trails.clear();
    }

    #[inline]
    pub(super) fn get(&self, trail: u64) -> Option<&Entry> {
        self.trails.get(trail.wrapping_sub(self.first) as usize)
    }

    /// What was looked for, and its place in a row.
    pub(super) fn needed(&self) -> Option<(usize, Item)> {
        self.needed
    }

    /// What was decoded of a trail, from that stream.
    pub(super) fn symbols<'b>(&'b self, trail: u64, stream: Stream<'b>) -> Symbols<'b> {
        match self.get(trail) {
            Some(entry) => entry.symbols(&self.words, stream),
            None => stream.symbols(&[], 0),
        }
    }

    /// Decodes trails from `first` on, as many as there is room for, and looks for an item in them.
    /// `next` says at which bits the next one has its events.
    pub(super) fn decode(
        &mut self,
        stream: Stream<'_>,
        needed: (usize, Item),
        first: u64,
        next: impl FnMut() -> Option<(u64, u64)>,
    ) {
        let goes_on = first == self.first.saturating_add(self.trails.len() as u64);
        let begin = if goes_on { self.begin * 2 } else { 0 };
        self.begin = begin.clamp(WORDS_BEGIN_MIN, WORDS_BEGIN);
        (self.first, self.needed) = (first, Some(needed));
        let (place, item) = needed;
        // Marking takes as long as the first few blocks together, whose trails are said to have the item.
        if self.begin == WORDS_BEGIN && self.marked.as_ref().is_none_or(|marked| marked.0 != item) {
            self.marked = Some((item, stream.codebook.mark(place, item)));
        }
        let (marks, seen) = match &self.marked {
            Some((marked, lengths)) if *marked == item => (lengths.marks(), 0),
            _ => (stream.codebook.unmarked(), MARK),
        };
        self.trails.clear();
        self.words.resize(LANES * WORDS, Word::default());
        let mut of_lanes = self.words.as_chunks_mut().0.iter_mut();
        let mut words: [&mut [Word; WORDS]; LANES] =
            std::array::from_fn(|_| of_lanes.next().expect("as many as lanes"));
        let mut queue = Queue {
            // Behind a trail that cannot be had others may be, each of which ends the use of a block.
            next: std::iter::from_fn(next).fuse(),
            trails: &mut self.trails,
            begin: self.begin,
            seen,
            open: true,
        };
        let mut lanes: [Lane; LANES] = std::array::from_fn(Lane::new);
        // Lanes that go on come first.
        let (mut n, mut going) = (0, LANES);
        while going > 0 {
            let ended = match going {
                3 => together::<3>(stream, marks, &mut words, &mut lanes, &mut n, &mut queue),
                2 => together::<2>(stream, marks, &mut words, &mut lanes, &mut n, &mut queue),
                _ => together::<1>(stream, marks, &mut words, &mut lanes, &mut n, &mut queue),
            };
            let Some(ended) = ended else { break };
            going -= 1;
            lanes.swap(ended, going);
            words.swap(ended, going);
        }
        for lane in &mut lanes[..going] {
            queue.close(lane, n);
        }
        for entry in &mut self.trails {
            let sound = entry.rest != Rest::Damaged;
            if sound && !entry.symbols(&self.words, stream).start_with_time() {
                entry.rest = Rest::Damaged;
            }
        }
    }
}

impl Entry {
    fn symbols<'b>(&self, words: &'b [Word], stream: Stream<'b>) -> Symbols<'b> {
        stream.symbols(&words[self.lane * WORDS..][self.start..self.end], self.bit)
    }
}

/// Decodes until there is nothing more for one of these lanes, and returns which one; `None` if there is
/// no more room. All of them have `words_n` words.
#[inline(never)]
fn together<const L: usize>(
    stream: Stream<'_>,
    marks: Marks<'_>,
    words: &mut [&mut [Word; WORDS]; LANES],
    lanes: &mut [Lane; LANES],
    words_n: &mut usize,
    queue: &mut Queue<'_, impl Iterator<Item = (u64, u64)>>,
) -> Option<usize> {
    let lanes: &mut [Lane; L] = lanes.first_chunk_mut().expect("so many lanes");
    let words: &mut [_; L] = words.first_chunk_mut().expect("so many lanes");
    let mut all: [At; L] = lanes.each_ref().map(|lane| lane.at);
    let mut n = *words_n;
    let ended = 'decode: loop {
        if n >= WORDS {
            break None;
        }
        for (k, (at, lane)) in all.iter_mut().zip(lanes.iter_mut()).enumerate() {
            if at.bit >= at.end {
                lane.at = *at;
                if !queue.turn(lane, n) {
                    break 'decode Some(k);
                }
                *at = lane.at;
            }
        }
        for (at, words) in all.iter_mut().zip(words.iter_mut()) {
            words[n] = at.step(stream, marks);
        }
        n += 1;
    };
    for (lane, at) in lanes.iter_mut().zip(all) {
        lane.at = at;
    }
    *words_n = n;
    ended
}

/// Where decoding is in a trail.
#[derive(Clone, Copy, Default)]
struct At {
    bit: u64,
    /// The end of the trail.
    end: u64,
    /// Lengths of its symbols, of which the mark alone means something.
    seen: u8,
}

impl At {
    #[inline(always)]
    fn step(&mut self, stream: Stream<'_>, marks: Marks<'_>) -> Word {
        let Some((word, length)) = stream.word(marks, self.bit) else {
            self.bit = BIT_DAMAGED;
            return Word::default();
        };
        self.seen |= length;
        self.bit = self.bit.wrapping_add(u64::from(length & LENGTH));
        word
    }
}

/// One of the chains of looks.
struct Lane {
    number: usize,
    at: At,
    /// Its trail among those of the block.
    entry: usize,
}

impl Lane {
    fn new(number: usize) -> Lane {
        Lane { number, at: At::default(), entry: usize::MAX }
    }
}

/// The trails that are still to be decoded, and those that were begun.
struct Queue<'b, I> {
    next: I,
    trails: &'b mut Vec<Entry>,
    begin: usize,
    /// What is seen in a trail before its first symbol.
    seen: u8,
    /// Whether all that are done are sound: behind a damaged one others may be.
    open: bool,
}

impl<I: Iterator<Item = (u64, u64)>> Queue<'_, I> {
    /// The trail of this lane is at its end: gives it the next one, whose words start at `n`. Returns
    /// whether there is one.
    #[inline(never)]
    fn turn(&mut self, lane: &mut Lane, n: usize) -> bool {
        self.close(lane, n);
        if !self.open || n >= self.begin {
            return false;
        }
        let Some((bit, end)) = self.next.next() else { return false };
        // One without events is damaged.
        self.open = bit < end;
        let (number, rest, found) = (lane.number, Rest::Damaged, true);
        self.trails.push(Entry { lane: number, start: n, end: n, bit, rest, found });
        if self.open {
            lane.at = At { bit, end, seen: self.seen };
            lane.entry = self.trails.len() - 1;
        }
        self.open
    }

    /// Notes how far the trail of this lane was decoded, and that its words end at `n`.
    fn close(&mut self, lane: &mut Lane, n: usize) {
        let Some(entry) = self.trails.get_mut(lane.entry) else { return };
        lane.entry = usize::MAX;
        let At { bit, end, seen } = lane.at;
        (entry.end, entry.found) = (n, seen & MARK != 0);
        entry.rest = match bit {
            _ if bit > end => Rest::Damaged,
            _ if bit == end => Rest::Nothing,
            _ => Rest::Symbols { bit, end_bit: end },
        };
        self.open &= entry.rest != Rest::Damaged;
    }
}
