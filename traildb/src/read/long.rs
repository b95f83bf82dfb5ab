//! A long trail is decoded at three places at once.
//!
//! ```text
//!   bits     |........................|........................|.........................|...
//!   lane 0   s  s  s  s  s   s  s  s  s s
//!   lane 1                            ?  ? ? s  s   s  s  s  s   s s      meets lane 0 at a symbol
//!   lane 2                                                      ? ? s  s  s   s  s        and this lane 1
//! ```
//!
//! Nothing says where a symbol starts but the one before it. A lane that starts anywhere takes bits for
//! symbols that are none; but codes synchronize themselves: after a few symbols it nearly always is at
//! the start of one (Ferguson and Rabinowitz, Self-synchronizing Huffman codes, 1984). That is no guess:
//! the lane before it goes on until it comes to where this one has been, and from there on both read the
//! same. If they do not meet, what the later lanes read is given up.
//!
//! What is no symbol may look like a broken one, behind which the next bit is tried. A symbol is broken
//! where the lane before has come to it.

use super::{
    rows::LANES,
    skim::{Stream, Symbols},
};
use crate::{
    item::Item,
    member::codebook::{FIELDS_NARROW, Marked, Marks, Word},
};

/// Most words of a lane, and of what is decoded between two of them.
const WORDS: usize = 2048;
/// Most bits between the starts of lanes: fewer than so many words mostly take.
const BITS_MAX: u64 = 16 << 10;
/// A lane that has not met the one before it in so many symbols is given up.
const MEET: usize = 256;
/// Fewer bits between them are not worth it.
const BITS_MIN: u64 = 2 << 10;
/// More than a symbol has, so that none of a lane passes the end of the trail.
const BITS_SPARE: u64 = 64;

/// A part of a trail, behind an event that is open.
#[derive(Default)]
pub(super) struct Long {
    lanes: Vec<Lane>,
    /// Words of the trail.
    words: Vec<Word>,
    /// The row of the event that is open.
    before: [Item; FIELDS_NARROW],
    /// What words are marked for, if they are.
    marked_for: Option<Item>,
}

impl Long {
    pub(super) fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// The row of the event that the first symbols are of.
    pub(super) fn before(&self) -> &[Item] {
        &self.before
    }

    /// Whether those words alone are marked that may have that item.
    pub(super) fn is_marked_for(&self, item: Item) -> bool {
        self.marked_for == Some(item)
    }

    /// The symbols of the part, from the stream that it was decoded from.
    pub(super) fn symbols<'b>(&'b self, stream: Stream<'b>) -> Symbols<'b> {
        stream.symbols(&self.words).by_marks(self.marked_for.is_some())
    }

    /// Decodes symbols from `bit` on, of an event with that row and of those behind it, that start before
    /// `limit` and end before `end`, which is not before that. They are marked for the item of `marked`.
    /// Returns the bit behind them. Where none are left, the next one is broken.
    pub(super) fn decode(
        &mut self,
        stream: Stream<'_>,
        marked: Option<(Item, &Marked)>,
        before: [Item; FIELDS_NARROW],
        bit: u64,
        limit: u64,
        end: u64,
    ) -> u64 {
        (self.before, self.marked_for) = (before, marked.map(|(item, _)| item));
        let marks = marked.map_or(stream.codebook.unmarked(), |(_, marked)| marked.marks());
        self.words.clear();
        let apart = limit.saturating_sub(bit).saturating_sub(BITS_SPARE) / LANES as u64;
        if apart < BITS_MIN {
            return self.decode_alone(stream, marks, bit, limit, end);
        }
        let apart = apart.min(BITS_MAX);
        self.lanes.resize_with(LANES, Lane::new);
        let lanes: &mut [Lane; LANES] = self.lanes.first_chunk_mut().expect("so many lanes");
        let n = together(stream, marks, lanes, bit, apart);
        let mut at = bit;
        for lane in lanes {
            match lane.join(stream, marks, n, at, &mut self.words) {
                Ok(bit) => at = bit,
                Err(bit) => return bit,
            }
        }
        at
    }

    /// The same at one place.
    fn decode_alone(
        &mut self,
        stream: Stream<'_>,
        marks: Marks<'_>,
        mut bit: u64,
        limit: u64,
        end: u64,
    ) -> u64 {
        while bit < limit && self.words.len() < WORDS {
            let Some((word, length)) = stream.marked_word(marks, bit) else { break };
            let next = bit + length;
            if next > end {
                break;
            }
            self.words.push(word);
            bit = next;
        }
        bit
    }
}

/// Decodes in all lanes, of which the first begins at `bit` and the others `apart` bits behind one another,
/// until one comes to where the next began, or there is no more room. Returns how many words each has.
#[allow(
    clippy::needless_range_loop,
    reason = "counted loops are unrolled, chained iterators were not"
)]
#[inline(never)]
fn together(
    stream: Stream<'_>,
    marks: Marks<'_>,
    lanes: &mut [Lane; LANES],
    bit: u64,
    apart: u64,
) -> usize {
    let begins: [u64; LANES] = std::array::from_fn(|lane| bit + lane as u64 * apart);
    let (mut bits, stops) = (begins, begins.map(|bit| bit + apart));
    let mut read = lanes.each_mut().map(|lane| (&mut *lane.words, &mut *lane.bits));
    let mut n = 0;
    while n < WORDS && (0..LANES).all(|k| bits[k] < stops[k]) {
        // Counted, so that it is unrolled.
        for k in 0..LANES {
            let (words, starts) = &mut read[k];
            let (word, length) = stream.marked_word(marks, bits[k]).unwrap_or((BROKEN, 1));
            (words[n], starts[n]) = (word, bits[k]);
            bits[k] = bits[k].wrapping_add(length);
        }
        n += 1;
    }
    for (lane, bit) in lanes.iter_mut().zip(bits) {
        lane.behind = bit;
    }
    n
}

/// In place of a symbol that is none.
const PLACE_BROKEN: u32 = u32::MAX - 1;
const BROKEN: Word = Word { place: PLACE_BROKEN, value: 0 };

/// What is read at one of the places.
struct Lane {
    words: Box<[Word; WORDS]>,
    /// Where they start, and where the last of them ends.
    bits: Box<[u64; WORDS]>,
    behind: u64,
}

impl Lane {
    fn new() -> Lane {
        let words = Box::new([BROKEN; WORDS]);
        Lane { words, bits: Box::new([0; WORDS]), behind: 0 }
    }

    /// Decodes from `bit` on, where a symbol starts, until one of the first `n` words of this lane starts
    /// at the same bit, and appends what there is up to there and the words from there on. Returns the bit
    /// behind them. The error is a bit, too, behind which they do not go on, or not soon, and no lane
    /// behind this one does.
    fn join(
        &self,
        stream: Stream<'_>,
        marks: Marks<'_>,
        n: usize,
        mut bit: u64,
        out: &mut Vec<Word>,
    ) -> Result<u64, u64> {
        let mut passed = 0;
        for _ in 0..WORDS {
            passed += self.bits[passed..n].iter().take_while(|&&start| start < bit).count();
            if passed == n || passed > MEET {
                break;
            }
            if self.bits[passed] == bit {
                let words = &self.words[passed..n];
                let sound = words.iter().take_while(|word| word.place != PLACE_BROKEN).count();
                out.extend_from_slice(&words[..sound]);
                return match sound == words.len() {
                    true => Ok(self.behind),
                    false => Err(self.bits[passed + sound]),
                };
            }
            let Some((word, length)) = stream.marked_word(marks, bit) else { break };
            out.push(word);
            bit += length;
        }
        Err(bit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Builder, Reader, Uuid, bits};

    /// Whether they meet changes no event, so it is seen here alone.
    #[test]
    fn lanes_meet_and_read_what_one_reads() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.tdb");
        let mut builder = Builder::new(&["first", "second"]).unwrap();
        let (mut state, mut time) = (7u64, 0);
        let mut random = |below: u64| {
            state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
            (state >> 33) % below
        };
        for _ in 0..100_000 {
            time += random(30) * random(30);
            let values = [random(9) * random(9), random(40)].map(|value| value.to_string());
            builder.add(Uuid::default(), time, &values).unwrap();
        }
        builder.finish(&path).unwrap();
        let reader = Reader::new(std::fs::read(&path).unwrap()).unwrap();
        let trails = &reader.content.as_ref().unwrap().trails;
        let span = trails.span(&reader.members, 0).unwrap();
        let mut bytes = reader.members.in_memory(&trails.data).unwrap().to_vec();
        bytes.extend([0; 16]);
        let stream = Stream { codebook: reader.codebook().unwrap(), bytes: &bytes };
        let unused = bits::low(bits::peek(&bytes, span.start * 8), 3);
        let (start, end) = (span.start * 8 + 3, span.end * 8 - unused);

        let item = Item::new(1, 2);
        let marked = stream.codebook.mark(1, item);
        let (mut one, mut bit) = (Vec::new(), start);
        while bit < end {
            let (word, length) = stream.marked_word(marked.marks(), bit).unwrap();
            one.push((word.place, word.value));
            bit += length;
        }
        assert_eq!(bit, end);

        let (mut several, mut parts, mut bit) = (Vec::new(), 0, start);
        let mut long = Long::default();
        while bit < end {
            let marked = Some((item, &marked));
            bit = long.decode(stream, marked, [Item(0); FIELDS_NARROW], bit, end, end);
            assert!(!long.is_empty(), "nothing behind bit {bit}");
            several.extend(long.words.iter().map(|word| (word.place, word.value)));
            parts += 1;
        }
        assert_eq!(bit, end);
        assert!(several == one, "{} symbols, {} by one", several.len(), one.len());
        assert!(parts * 2 * BITS_MAX < end - start, "{parts} parts of {} bits", end - start);
    }
}
