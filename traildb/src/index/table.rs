//! Which number a value has: a hash table in a file (FORMAT.md K6).
//!
//! ```text
//!   slots   | . | n7 | n2 | . | n9 | n1 | n4 | . |      home = hash * homes / 2^64
//!                 ^ home of n7 and n2        empty: no value with a home before it lies behind
//! ```
//!
//! Values are placed in the order of their hashes, each at its home or at the first free slot
//! behind it, so that the table is written front to back. A slot is the value's number, and the low
//! 16 bits of its hash to tell it from its neighbours without a look at the lexicon.

use std::io;

use crc_fast::{CrcAlgorithm, checksum};

use super::{
    layout::{Entry, TAG_BYTES, homes, number, table_width, width},
    pages::{PAYLOAD, Pages},
};
use crate::{container::Plan, error::Error, storage::Storage};

/// Slots that are looked at in one go: runs of taken slots are rarely as long.
const LOOK: u64 = 64;
/// No run of taken slots is longer, unless somebody made up values to that end: then the lexicon is
/// asked instead.
const RUN_MAX: u64 = 1 << 13;
/// Nor have more values in reach the same bits of their hashes.
const CANDIDATES_MAX: usize = 16;

/// The hash of a value: CRC-64/NVME, its bits mixed once more, since a checksum of short values
/// leaves the high bits poor. Both steps can be undone, so different checksums stay different.
pub(super) fn hash(value: &[u8]) -> u64 {
    let mut hash = checksum(CrcAlgorithm::Crc64Nvme, value) ^ value.len() as u64;
    hash = (hash ^ hash >> 32).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    hash ^ hash >> 29
}

fn home(hash: u64, homes: u64) -> u64 {
    (u128::from(hash) * u128::from(homes) >> 64) as u64
}

fn slot(hash: u64, value: u64, count: u64) -> u64 {
    value | (hash & 0xFFFF) << (8 * width(count))
}

/// Writes the table of a field with `count` values, whose hashes and numbers come in ascending
/// order. Returns the number of slots.
pub(super) fn write(
    count: u64,
    mut next: impl FnMut() -> io::Result<Option<(u64, u64)>>,
    mut put: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<u64> {
    let (homes, width) = (homes(count), table_width(count) as usize);
    let mut slots = 0;
    while let Some((hash, value)) = next()? {
        while slots < home(hash, homes) {
            put(&[0; 8][..width])?;
            slots += 1;
        }
        put(&slot(hash, value, count).to_le_bytes()[..width])?;
        slots += 1;
    }
    // One empty slot at least ends the last run.
    while slots < homes + 1 {
        put(&[0; 8][..width])?;
        slots += 1;
    }
    Ok(slots)
}

/// Announces where a value would be.
pub(super) fn plan<S: Storage>(pages: &Pages<S>, entry: &Entry, hash: u64, plan: &mut Plan) {
    let start = home(hash, homes(entry.count));
    let end = entry.table_slots.min(start + LOOK);
    let at = |slot: u64| entry.table_at + slot * entry.table_width;
    pages.plan(plan, at(start)..at(end));
}

/// The numbers that a value of this hash can have, the smallest first; `None` if they are too many,
/// or too far from its home.
pub(super) fn find<S: Storage>(
    pages: &Pages<S>,
    entry: &Entry,
    hash: u64,
) -> Result<Option<Vec<u64>>, Error> {
    let mut found = Vec::new();
    let mut at = home(hash, homes(entry.count));
    let first = at;
    let number_width = (entry.table_width - TAG_BYTES) as usize;
    let mut bytes = Vec::new();
    while at < entry.table_slots && at - first < RUN_MAX {
        let end = entry.table_slots.min(at + LOOK);
        let position = |slot: u64| entry.table_at + slot * entry.table_width;
        pages.read(position(at)..position(end), &mut bytes)?;
        for slot in bytes.chunks_exact(entry.table_width as usize) {
            let value = number(&slot[..number_width]);
            if value == 0 {
                return Ok(Some(found));
            }
            if value > entry.count {
                return Err(pages.damaged(position(at), "a value that does not exist"));
            }
            if number(&slot[number_width..]) == hash & 0xFFFF {
                if found.len() == CANDIDATES_MAX {
                    return Ok(None);
                }
                found.push(value);
            }
        }
        at = end;
    }
    Ok((at == entry.table_slots).then_some(found))
}

// What is looked at in one go lies in two pages at most.
const _: () = assert!(LOOK * 8 <= PAYLOAD);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::pages::PageWriter;

    #[test]
    fn every_value_is_found() {
        for count in [0u64, 1, 2, 255, 256, 5000, 70_000] {
            let value = |n: u64| format!("value {n}").into_bytes();
            let mut pairs: Vec<(u64, u64)> = (1..=count).map(|n| (hash(&value(n)), n)).collect();
            pairs.sort_unstable();
            let mut pairs = pairs.into_iter();
            let mut file = PageWriter::new(Vec::new(), 0);
            let slots = write(count, || Ok(pairs.next()), |b| file.write(b)).unwrap();
            assert!(slots <= homes(count) + 64, "{slots} slots for {count}");
            let entry = Entry {
                count,
                table_slots: slots,
                table_width: table_width(count),
                ..Entry::default()
            };
            let pages = Pages::new(file.finish().unwrap());
            let pages = match pages {
                Ok(pages) => pages,
                Err(error) => panic!("{count}: {error}"),
            };
            let mut candidates = 0;
            for n in 1..=count {
                let found = find(&pages, &entry, hash(&value(n))).unwrap().unwrap();
                assert!(found.contains(&n), "{n} of {count}");
                candidates += found.len() as u64;
            }
            assert!(candidates <= count + count / 100, "{candidates} looks for {count} values");
            let strangers = (0..1000).map(|n| hash(format!("stranger {n}").as_bytes()));
            let looks: usize =
                strangers.map(|h| find(&pages, &entry, h).unwrap().unwrap().len()).sum();
            assert!(looks < 10, "{looks} looks for 1000 strangers among {count}");
        }
    }

    fn table(count: u64, hash: u64) -> (Pages<Vec<u8>>, Entry) {
        let mut file = PageWriter::new(Vec::new(), 0);
        let mut pairs = (1..=count).map(|n| (hash, n));
        let slots = write(count, || Ok(pairs.next()), |b| file.write(b)).unwrap();
        let (table_slots, table_width) = (slots, table_width(count));
        let entry = Entry { count, table_slots, table_width, ..Entry::default() };
        (Pages::new(file.finish().unwrap()).unwrap(), entry)
    }

    #[test]
    fn values_with_one_hash_come_in_order_unless_they_are_many() {
        let (pages, entry) = table(16, u64::MAX);
        assert_eq!(find(&pages, &entry, u64::MAX).unwrap(), Some((1..=16).collect()));
        let (pages, entry) = table(17, u64::MAX);
        assert_eq!(find(&pages, &entry, u64::MAX).unwrap(), None);
    }

    #[test]
    fn a_run_without_end_is_given_up() {
        let (pages, entry) = table(RUN_MAX + 1000, 0);
        // Of another value: none has its bits.
        assert_eq!(find(&pages, &entry, 1).unwrap(), None);
        assert_eq!(find(&pages, &entry, u64::MAX).unwrap(), Some(Vec::new()), "far behind the run");
    }
}
