//! Trails of which a filter asks an item are skimmed: rows are made of the events that have it, and of no
//! others.
//!
//! ```text
//!   bits    t0 ........| t1 ...| t2 ....| t3 .............| ...
//!   lane 0  t0 ........ t3 .............
//!   lane 1  t1 ... t4 ...                     the same number of words in each lane
//!   lane 2  t2 .... t5 ..
//!
//!   word    a symbol: where it is in the tables, and the value of a literal
//!   mark    of a trail that has a symbol with the item --> items --> state --> rows --> events
//! ```
//!
//! As in [`rows`](super::rows), three trails are three chains of looks at a time. To find the next symbol
//! of each is all that a step does, and a lane goes from one trail to the next without leaving the loop.
//! What the symbols say is asked only in trails where one is marked: which symbols have the item is found
//! once for the filter, as a bit beside their lengths ([`Codebook::mark`]).
//!
//! There, symbol after symbol changes one row, the state. Up to a mark no event has the item, and nothing is
//! asked; from there on what is known at the end of an event is copied, until another item is in the place.
//! Behind the last mark nothing is looked at.
//!
//! Nothing is reported here either: a trail that breaks a rule is decoded once more by the cursor.

use super::rows::{LANES, Rest, SAME};
use crate::{
    bits,
    item::Item,
    member::codebook::{Codebook, LENGTH, MARK, Marked, Marks, Word},
};

/// Words of a lane. All lanes stay in the second cache.
const WORDS: usize = 4096;
/// From here on no trail is begun, so that those that are can end.
const WORDS_BEGIN: usize = WORDS / 4 * 3;
/// The same in the first block: who reads a few trails in order does not pay for thousands.
const WORDS_BEGIN_MIN: usize = 384;
/// Past every end.
const BIT_DAMAGED: u64 = u64::MAX;

/// Above the place of a symbol that may have the item that was looked for.
const MARKED: u32 = 1 << 31;
/// The place of a symbol that is not found, and has a word whose value is the bit that it starts at.
const PLACE_RARE: u32 = u32::MAX;

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
        let found = self.codebook.find(marks, bits::peek(self.bytes, bit));
        found.or_else(|| self.rare_word(bit))
    }

    /// The same, marked above its place, and its length alone.
    #[inline(always)]
    pub(super) fn marked_word(self, marks: Marks<'_>, bit: u64) -> Option<(Word, u64)> {
        let (mut word, length) = self.word(marks, bit)?;
        word.place |= u32::from(length & MARK) << (MARKED.trailing_zeros() - MARK.trailing_zeros());
        Some((word, u64::from(length & LENGTH)))
    }

    /// The same of one that is not found, which may have any item.
    #[cold]
    #[inline(never)]
    fn rare_word(self, bit: u64) -> Option<(Word, u8)> {
        let symbol = self.codebook.rare_symbol(self.bytes, bit, bits::peek(self.bytes, bit));
        let (_, length) = symbol.ok()?;
        // At most 1 + 14 + 48 bits.
        Some((Word { place: PLACE_RARE, value: bit }, length as u8 | MARK))
    }

    /// Both items of a symbol, as in a sparse row.
    #[inline(always)]
    fn items(self, word: Word) -> [u64; 2] {
        match word.place {
            PLACE_RARE => rare_items(self.codebook, self.bytes, word.value),
            // The codebook passes over what is above the place.
            _ => self.codebook.entries().items(word),
        }
    }

    /// The symbols that words of this stream are of.
    pub(super) fn symbols(self, words: &'b [Word]) -> Symbols<'b> {
        Symbols { stream: self, words, marked: words.len(), by_marks: false }
    }
}

/// Not of the stream as it is, which is in registers where its address is not asked for.
#[cold]
#[inline(never)]
fn rare_items(codebook: &Codebook, bytes: &[u8], bit: u64) -> [u64; 2] {
    let symbol = codebook.rare_symbol(bytes, bit, bits::peek(bytes, bit));
    // There is no word of a broken one.
    symbol.map_or([0; 2], |(symbol, _)| symbol.sparse())
}

/// Symbols that follow one another.
#[derive(Clone, Copy)]
pub(super) struct Symbols<'b> {
    stream: Stream<'b>,
    words: &'b [Word],
    /// Those behind so many do not have the item that was looked for, and nothing follows them.
    marked: usize,
    /// Whether only those that are marked have it.
    by_marks: bool,
}

impl Symbols<'_> {
    /// So many rows have room for all their events, for the row before, and for one more.
    pub(super) fn rows_max(&self) -> usize {
        self.words.len() + 2
    }

    /// The same, of which only those that are marked have the item that is asked for, if that is so.
    pub(super) fn by_marks(self, by_marks: bool) -> Self {
        Symbols { by_marks, ..self }
    }

    /// The same, of which any may have the item that is asked for next.
    pub(super) fn of_any_item(self) -> Self {
        Symbols { marked: self.words.len(), by_marks: false, ..self }
    }

    /// The items of each, as in a sparse row: the field of one that is alone is in place of the other,
    /// which it covers when it is written last.
    #[inline(always)]
    fn items(self) -> impl Iterator<Item = [u64; 2]> {
        self.words.iter().map(move |&word| self.stream.items(word))
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
    /// their number. The row behind them is that of the last event, or of one that does not have the item
    /// and is before it, where nothing follows.
    pub(super) fn pick<const N: usize>(
        self,
        before: &[Item],
        (place, item): (usize, Item),
        rows: &mut [Item],
    ) -> usize {
        let (rows, _) = rows.as_chunks_mut::<N>();
        let place = place & (N - 1);
        let mut row: [Item; N] = *before.first_chunk().expect("a row is as wide");
        let Symbols { stream, words, marked, by_marks } = self;
        let entries = stream.codebook.entries();
        let items = |word: Word| match word.place {
            PLACE_RARE => rare_items(stream.codebook, stream.bytes, word.value),
            _ => entries.items(word),
        };
        let (mut time, mut picked) = (row[0].0, 0);
        let mut at = 0;
        loop {
            // No event has it up to a mark.
            if by_marks && row[place] != item {
                if at >= marked {
                    break;
                }
                let mut unmarked = words[at..marked].iter();
                let passed = unmarked.clone();
                while let Some(&word) = unmarked.as_slice().first() {
                    if word.place >= MARKED {
                        break;
                    }
                    unmarked.next();
                    let [first, second] = entries.items(word);
                    time = time.wrapping_add(delta(first));
                    row[second as usize & (N - 1)] = Item(second);
                    row[first as usize & (N - 1)] = Item(first);
                }
                at += passed.len() - unmarked.len();
                if at == marked {
                    break;
                }
            }
            // From a mark on, or where nothing is marked. Where an event ends cannot be guessed, where one ends
            // that has the item mostly can: that is the only branch.
            let mut has = row[place] == item;
            while let Some(&word) = words.get(at) {
                at += 1;
                let [first, second] = items(word);
                if has && first & 127 == 0 {
                    row[0] = Item(time);
                    rows[picked] = row;
                    picked += 1;
                }
                // In bounds, as TIME_MAX has it.
                time = time.wrapping_add(delta(first));
                // A time goes where the time is put in the end.
                row[second as usize & (N - 1)] = Item(second);
                row[first as usize & (N - 1)] = Item(first);
                // What is in the row by now, which to read at once would mean to wait for it.
                let (at_first, at_second) = (first as usize & (N - 1), second as usize & (N - 1));
                has = match (at_first == place, at_second == place) {
                    (true, _) => Item(first) == item,
                    (false, true) => Item(second) == item,
                    (false, false) => has,
                };
                if by_marks && !has {
                    break;
                }
            }
            if has || !by_marks {
                // There are no more symbols.
                break;
            }
        }
        row[0] = Item(time);
        rows[picked] = row;
        picked
    }
}

/// What a symbol adds to the time.
#[inline(always)]
fn delta(first: u64) -> u64 {
    if first & 127 == 0 { first >> 8 } else { 0 }
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
    /// Words behind this one do not have what was looked for.
    marked: usize,
    /// Whether words are marked: else any may have it.
    has_marks: bool,
    /// What is left, where the last event may have more symbols. A damaged trail has no words to look at.
    pub(super) rest: Rest,
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

    /// The last item that symbols were marked for, and the marks.
    pub(super) fn marked(&self) -> Option<(Item, &Marked)> {
        self.marked.as_ref().map(|(item, marked)| (*item, marked))
    }

    /// What was decoded of a trail, from that stream.
    pub(super) fn symbols<'b>(&'b self, trail: u64, stream: Stream<'b>) -> Symbols<'b> {
        match self.get(trail) {
            Some(entry) => entry.symbols(&self.words, stream),
            // It is not asked for.
            None => stream.symbols(&[]),
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
        let marked = self.marked.as_ref().filter(|marked| marked.0 == item);
        let marks = marked.map_or(stream.codebook.unmarked(), |marked| marked.1.marks());
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
            has_marks: marked.is_some(),
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
            // A trail starts with a time (T7). One that is sound has a word.
            let first = self.words[entry.lane * WORDS + entry.start];
            if entry.rest != Rest::Damaged && stream.items(first)[0] & 127 != 0 {
                entry.rest = Rest::Damaged;
            }
        }
    }
}

impl Entry {
    /// Whether it may have what was looked for, in what was decoded.
    pub(super) fn may_have(&self) -> bool {
        self.marked > self.start
    }

    fn symbols<'b>(&self, words: &'b [Word], stream: Stream<'b>) -> Symbols<'b> {
        let symbols = stream.symbols(&words[self.lane * WORDS..][self.start..self.end]);
        match self.rest {
            Rest::Nothing => {
                Symbols { marked: self.marked - self.start, by_marks: self.has_marks, ..symbols }
            }
            // What follows goes on from the last event.
            _ => Symbols { by_marks: self.has_marks, ..symbols },
        }
    }
}

/// Decodes until there is nothing more for one of these lanes, and returns which one; `None` if there is
/// no more room. All of them have `words_n` words.
#[allow(
    clippy::needless_range_loop,
    reason = "counted loops are unrolled, chained iterators were not"
)]
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
    // Counted loops, which are unrolled: what a lane has stays in registers.
    let ended = 'decode: loop {
        if n >= WORDS {
            break None;
        }
        for k in 0..L {
            if all[k].bit >= all[k].end {
                lanes[k].at = all[k];
                if !queue.turn(&mut lanes[k], n) {
                    break 'decode Some(k);
                }
                all[k] = lanes[k].at;
            }
        }
        for k in 0..L {
            words[k][n] = all[k].step(stream, marks, n, &mut lanes[k].marked);
        }
        n += 1;
    };
    for k in 0..L {
        lanes[k].at = all[k];
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
}

impl At {
    #[inline(always)]
    fn step(&mut self, stream: Stream<'_>, marks: Marks<'_>, n: usize, marked: &mut usize) -> Word {
        let Some((mut word, length)) = stream.word(marks, self.bit) else {
            self.bit = BIT_DAMAGED;
            return Word::default();
        };
        // Rare enough for a branch, which it stays since it writes to memory.
        if length >= MARK {
            word.place |= MARKED;
            *marked = n + 1;
        }
        self.bit = self.bit.wrapping_add(u64::from(length & LENGTH));
        word
    }
}

/// One of the chains of looks.
struct Lane {
    number: usize,
    at: At,
    /// Words from this one on have no mark. Not in `at`, which is in registers.
    marked: usize,
    /// Its trail among those of the block.
    entry: usize,
}

impl Lane {
    fn new(number: usize) -> Lane {
        Lane { number, at: At::default(), marked: 0, entry: usize::MAX }
    }
}

/// The trails that are still to be decoded, and those that were begun.
struct Queue<'b, I> {
    next: I,
    trails: &'b mut Vec<Entry>,
    begin: usize,
    /// Whether symbols are marked: else any may be one.
    has_marks: bool,
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
        let rest = Rest::Damaged;
        let (lane_n, has_marks) = (lane.number, self.has_marks);
        self.trails.push(Entry { lane: lane_n, start: n, end: n, marked: n, has_marks, rest });
        if self.open {
            (lane.at, lane.marked) = (At { bit, end }, n);
            lane.entry = self.trails.len() - 1;
        }
        self.open
    }

    /// Notes how far the trail of this lane was decoded, and that its words end at `n`.
    fn close(&mut self, lane: &mut Lane, n: usize) {
        let Some(entry) = self.trails.get_mut(lane.entry) else { return };
        lane.entry = usize::MAX;
        let At { bit, end } = lane.at;
        (entry.end, entry.marked) = (n, if self.has_marks { lane.marked } else { n });
        entry.rest = match bit {
            _ if bit > end => Rest::Damaged,
            _ if bit == end => Rest::Nothing,
            _ => Rest::Symbols { bit, end_bit: end },
        };
        self.open &= entry.rest != Rest::Damaged;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Builder, Reader, Uuid};

    /// What is found changes no event, so it is seen here alone.
    #[test]
    fn trails_are_found_that_have_the_item_and_no_others() {
        const TRAILS: u64 = 4000;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.tdb");
        let mut builder = Builder::new(&["few", "many"]).unwrap();
        let mut state = 5u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
            (state >> 33) % below
        };
        for trail in 0..TRAILS {
            let mut time = 0;
            for _ in 0..1 + random(12) {
                time += random(5000);
                let values = [random(7) * random(7), random(3000) * random(3)];
                let values = values.map(|value| value.to_string());
                builder.add(Uuid::from_number(trail.into()), time, &values).unwrap();
            }
        }
        builder.finish(&path).unwrap();
        let reader = Reader::new(std::fs::read(&path).unwrap()).unwrap();
        let trails = &reader.content.as_ref().unwrap().trails;
        let mut ends = Vec::new();
        trails.offsets(&reader.members, 0, TRAILS + 1, &mut ends).unwrap();
        let mut bytes = reader.members.in_memory(&trails.data).unwrap().to_vec();
        bytes.extend([0; 16]);
        let stream = Stream { codebook: reader.codebook().unwrap(), bytes: &bytes };
        let span = |pair: &[u64]| {
            let unused = bits::low(bits::peek(&bytes, pair[0] * 8), 3);
            (pair[0] * 8 + 3, pair[1] * 8 - unused)
        };

        let mut skimmed = Skimmed::default();
        // Those of few values have code words, most of the others have none.
        let many = reader.values(2).unwrap();
        let many = [many / 3, many / 2, many, 1 << 24].map(|value| Item::new(2, value));
        for item in [Item::new(1, 1), Item::new(1, 3)].into_iter().chain(many) {
            let needed = (usize::from(item.field()), item);
            let (mut first, mut having, mut lacking) = (1, 0, 0);
            while first < TRAILS {
                let mut ahead = ends[first as usize..].windows(2).map(span);
                skimmed.decode(stream, needed, first, || ahead.next());
                let marked = skimmed.marked.as_ref().is_some_and(|marked| marked.0 == item);
                let behind = first + skimmed.trails.len() as u64;
                for trail in first..behind {
                    let entry = skimmed.get(trail).unwrap();
                    assert!(entry.rest == Rest::Nothing, "trail {trail}");
                    let symbols: Vec<_> = skimmed.symbols(trail, stream).items().collect();
                    let last = symbols.iter().rposition(|items| items.contains(&item.0));
                    let upto = entry.start + last.map_or(0, |last| last + 1);
                    let expected = if marked { upto } else { entry.end };
                    assert_eq!(entry.marked, expected, "trail {trail}, {item:?}");
                    having += u64::from(last.is_some());
                    lacking += u64::from(!entry.may_have());
                }
                assert!(behind > first);
                first = behind;
            }
            assert!(lacking > TRAILS / 20, "{lacking} without {item:?}");
            // No event has one that is wide.
            assert_eq!(having > 0, item.value() < 1 << 24, "{having} with {item:?}");
        }
    }
}
