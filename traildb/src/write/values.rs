//! The distinct values of a field, numbered from 1 in the order in which they first occur.
//!
//! ```text
//!   slots   | tag 24 | place 40 |  ...     open addressing; 0 is a free slot
//!                         |
//!   arena   ... | number, length, bytes | ...     segments of 1 MiB, in the order of numbers
//! ```
//!
//! To find a value costs two misses of the cache: its slot, and its bytes with their number before
//! them. A slot whose tag differs costs none, and neighbouring slots share a line. Values come in
//! batches, so that the misses of one value overlap with those of the next.

use std::hash::{BuildHasher, Hasher};

use hashbrown::DefaultHashBuilder;

use super::{batch::Cells, varint};

/// Bytes of an arena segment. A longer value gets a segment of its own.
const SEGMENT_BYTES: usize = 1 << SEGMENT_BITS;
const SEGMENT_BITS: u32 = 20;
/// Bits of a place: segment and offset.
const PLACE_BITS: u32 = 40;
const SEGMENTS_MAX: usize = 1 << (PLACE_BITS - SEGMENT_BITS);
/// Values looked at together.
const GROUP: usize = 16;
const SLOTS_MIN: usize = 16;
/// Bytes before a value: its number and its length.
const ENTRY_HEAD_MAX: usize = 4 + varint::BYTES_MAX;

/// Values one after another, and a table that finds them.
#[derive(Debug, Default)]
pub(super) struct Values {
    /// A power of two of them, at most three quarters taken.
    slots: Vec<u64>,
    arena: Vec<Vec<u8>>,
    /// Bytes that the segments have room for.
    arena_bytes: u64,
    count: u32,
    value_bytes: u64,
    /// Seeded by chance, against input that is made to collide. No number depends on it.
    hasher: DefaultHashBuilder,
}

impl Values {
    /// The numbers of a column of values, appended to `numbers`: 0 for the empty string, a new one
    /// for a value that has not occurred.
    pub(super) fn number_all(&mut self, cells: &Cells, numbers: &mut Vec<u32>) {
        let mut hashes = [0u64; GROUP];
        let mut at = 0;
        while at < cells.len() {
            let group = at..(at + GROUP).min(cells.len());
            // Three passes without dependence from one value to the next: the processor waits for
            // many lines of memory at once. What the first two read, the third finds in the cache.
            for (hash, k) in hashes.iter_mut().zip(group.clone()) {
                *hash = self.hash(cells.get(k));
            }
            if !self.slots.is_empty() {
                let mut touched = 0u8;
                let mut places = [0u64; GROUP];
                for (place, hash) in places.iter_mut().zip(hashes) {
                    *place = self.slots[self.home(hash)];
                }
                for (slot, hash) in places.into_iter().zip(hashes) {
                    if slot != 0 && tag(slot) == tag(hash) {
                        touched ^= self.entry(slot)[0];
                    }
                }
                std::hint::black_box(touched);
            }
            for (hash, k) in hashes.into_iter().zip(group.clone()) {
                let value = cells.get(k);
                numbers.push(if value.is_empty() { 0 } else { self.number_hashed(value, hash) });
            }
            at = group.end;
        }
    }

    /// The number of `value`: 0 for the empty string, a new one if it has not occurred.
    pub(super) fn number(&mut self, value: &[u8]) -> u32 {
        if value.is_empty() { 0 } else { self.number_hashed(value, self.hash(value)) }
    }

    #[inline]
    fn number_hashed(&mut self, value: &[u8], hash: u64) -> u32 {
        // At most three quarters are taken, also after this one.
        if (self.count as usize + 1) * 4 > self.slots.len() * 3 {
            self.grow();
        }
        let mask = self.slots.len() - 1;
        let mut at = self.home(hash);
        loop {
            let slot = self.slots[at];
            if slot == 0 {
                self.slots[at] = tag(hash) << PLACE_BITS | self.push(value);
                return self.count;
            }
            if tag(slot) == tag(hash) {
                let (number, found) = parse(self.entry(slot));
                if found == value {
                    return number;
                }
            }
            at = (at + 1) & mask;
        }
    }

    #[inline]
    fn hash(&self, value: &[u8]) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(value);
        hasher.finish()
    }

    /// Where the search for a hash starts. The tag is made of other bits.
    #[inline]
    fn home(&self, hash: u64) -> usize {
        hash as usize & (self.slots.len() - 1)
    }

    /// The arena from the entry of a taken slot on.
    #[inline]
    fn entry(&self, slot: u64) -> &[u8] {
        let place = (slot & ((1 << PLACE_BITS) - 1)) - 1;
        &self.arena[(place >> SEGMENT_BITS) as usize][place as usize & (SEGMENT_BYTES - 1)..]
    }

    /// Appends a value under the next number. Returns what a slot says of its place: one more than
    /// it, so that no slot is 0.
    fn push(&mut self, value: &[u8]) -> u64 {
        let room = ENTRY_HEAD_MAX + value.len();
        if self.arena.last().is_none_or(|last| last.len() + room > SEGMENT_BYTES) {
            assert!(self.arena.len() < SEGMENTS_MAX, "the owner asks `is_full` in time");
            // Grows like any vector: most fields of a wide table need little.
            let first = Vec::with_capacity(if room > SEGMENT_BYTES { room } else { 0 });
            self.arena_bytes += first.capacity() as u64;
            self.arena.push(first);
        }
        let segment = self.arena.len() - 1;
        let bytes = &mut self.arena[segment];
        let (at, before) = (bytes.len(), bytes.capacity());
        self.count += 1;
        bytes.extend_from_slice(&self.count.to_le_bytes());
        varint::put(bytes, value.len() as u64);
        bytes.extend_from_slice(value);
        self.arena_bytes += (bytes.capacity() - before) as u64;
        self.value_bytes += value.len() as u64;
        ((segment << SEGMENT_BITS | at) + 1) as u64
    }

    fn grow(&mut self) {
        let len = (self.slots.len() * 2).max(SLOTS_MIN);
        // The old slots say nothing that the arena does not: they go first.
        self.slots = Vec::new();
        self.slots = vec![0; len];
        for (segment, bytes) in self.arena.iter().enumerate() {
            let mut at = 0;
            while at < bytes.len() {
                let (_, value) = parse(&bytes[at..]);
                let hash = self.hash(value);
                let mut slot = self.home(hash);
                while self.slots[slot] != 0 {
                    slot = (slot + 1) & (len - 1);
                }
                let place = ((segment << SEGMENT_BITS | at) + 1) as u64;
                self.slots[slot] = tag(hash) << PLACE_BITS | place;
                at += entry_len(value);
            }
        }
    }

    /// How many there are, without NULL.
    pub(super) fn count(&self) -> u64 {
        u64::from(self.count)
    }

    /// Bytes of all values together.
    pub(super) fn value_bytes(&self) -> u64 {
        self.value_bytes
    }

    /// The values in the order of their numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.arena.iter().flat_map(|segment| {
            let mut at = 0;
            std::iter::from_fn(move || {
                let rest = segment.get(at..).filter(|rest| !rest.is_empty())?;
                let (_, value) = parse(rest);
                at += entry_len(value);
                Some(value)
            })
        })
    }

    /// The hash and the place of each value, by ascending hash. Places are for [`at`](Values::at).
    pub(super) fn by_hash(&self) -> Vec<(u64, u64)> {
        let mut places = Vec::with_capacity(self.count as usize);
        for (segment, bytes) in self.arena.iter().enumerate() {
            let mut at = 0;
            while at < bytes.len() {
                let (_, value) = parse(&bytes[at..]);
                places.push((self.hash(value), (segment << SEGMENT_BITS | at) as u64));
                at += entry_len(value);
            }
        }
        places.sort_unstable();
        places
    }

    /// Number and bytes of the value at a place.
    pub(super) fn at(&self, place: u64) -> (u32, &[u8]) {
        let segment = &self.arena[(place >> SEGMENT_BITS) as usize];
        parse(&segment[place as usize & (SEGMENT_BYTES - 1)..])
    }

    /// Forgets all values. Hashes stay what they are.
    pub(super) fn reset(&mut self) {
        *self = Values { hasher: self.hasher.clone(), ..Values::default() };
    }

    /// Gives up the means to find values again. What is left is what is written.
    pub(super) fn close(&mut self) {
        self.slots = Vec::new();
    }

    /// Whether numbers or places may run out within `more` values of `bytes` bytes in all.
    pub(super) fn is_full(&self, more: usize, bytes: usize) -> bool {
        // Any two neighbouring segments hold more than one has room for.
        let segments = 2 * ((bytes + more * ENTRY_HEAD_MAX) >> SEGMENT_BITS) + 2;
        self.count as usize + more >= u32::MAX as usize
            || self.arena.len() + segments > SEGMENTS_MAX
    }

    /// Bytes of memory taken.
    pub(super) fn memory(&self) -> u64 {
        self.arena_bytes + self.slots.capacity() as u64 * 8
    }
}

/// 24 bits that tell hashes and slots apart.
#[inline]
fn tag(word: u64) -> u64 {
    word >> PLACE_BITS
}

/// Number and bytes of the value whose entry starts here.
#[inline]
fn parse(entry: &[u8]) -> (u32, &[u8]) {
    let number = u32::from_le_bytes(entry[..4].try_into().expect("four bytes"));
    let mut at = 4;
    let len = varint::take(entry, &mut at) as usize;
    (number, &entry[at..at + len])
}

fn entry_len(value: &[u8]) -> usize {
    4 + crate::bits::width(value.len() as u64).div_ceil(7) as usize + value.len()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn numbers_follow_the_first_occurrence() {
        let mut values = Values::default();
        let cases: [(&[u8], u32); 6] =
            [(b"b", 1), (b"", 0), (b"a", 2), (b"b", 1), (b"\0", 3), (b"a", 2)];
        for (value, number) in cases {
            let mut cells = Cells::default();
            cells.push(value);
            let mut got = Vec::new();
            values.number_all(&cells, &mut got);
            assert_eq!(got, [number], "{value:?}");
        }
        assert_eq!((values.count(), values.value_bytes()), (3, 3));
        assert_eq!(values.iter().collect::<Vec<_>>(), [b"b", b"a", b"\0"]);
    }

    /// The table agrees with a map, over growth, segments, and values longer than a segment.
    #[test]
    fn a_column_is_numbered_as_a_map_would() {
        let mut values = Values::default();
        let mut model: HashMap<Vec<u8>, u32> = HashMap::new();
        let mut order = Vec::new();
        let mut cells = Cells::default();
        let mut expected = Vec::new();
        for n in 0..60_000u32 {
            let value = match n % 5000 {
                77 => vec![b'x'; SEGMENT_BYTES + n as usize % 3],
                78 => vec![b'y'; SEGMENT_BYTES - 10],
                k if k % 3 == 0 => Vec::new(),
                _ => (n.wrapping_mul(2_654_435_761) >> 12).to_string().into_bytes(),
            };
            cells.push(&value);
            let next = model.len() as u32 + 1;
            expected.push(match value.is_empty() {
                true => 0,
                false => *model.entry(value.clone()).or_insert_with(|| {
                    order.push(value);
                    next
                }),
            });
        }
        let mut got = Vec::new();
        values.number_all(&cells, &mut got);
        assert_eq!(got, expected);
        assert!(values.iter().eq(order.iter().map(Vec::as_slice)));
        assert_eq!(values.value_bytes(), order.iter().map(|v| v.len() as u64).sum::<u64>());
        let held: u64 = values.arena.iter().map(|s| s.capacity() as u64).sum();
        assert_eq!(values.memory(), held + values.slots.capacity() as u64 * 8);
    }
}
