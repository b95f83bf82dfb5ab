//! The pages that were written and are in no version yet.
//!
//! A unit with one of them is pinned, so that nothing evicts it, and counts against the share of the
//! budget that may be dirty: a quarter, so that as much again is left for guards.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use crate::{
    cache::Ledger,
    sys::PAGE,
    units::{SPAN_BYTES, UNIT_BYTES_MAX},
};

const WORDS: usize = UNIT_BYTES_MAX as usize / PAGE / 64;

// A unit is one span at most, and its pages are bits of whole words.
const _: () = assert!(UNIT_BYTES_MAX == SPAN_BYTES && WORDS * 64 * PAGE == UNIT_BYTES_MAX as usize);

/// Pages of one unit, by number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct PageSet([u64; WORDS]);

impl PageSet {
    fn insert(&mut self, pages: Range<u64>) {
        for page in pages {
            self.0[page as usize / 64] |= 1 << (page % 64);
        }
    }

    fn remove(&mut self, pages: Range<u64>) {
        for page in pages {
            self.0[page as usize / 64] &= !(1 << (page % 64));
        }
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(|&word| word == 0)
    }

    fn pages(&self) -> impl Iterator<Item = u64> + '_ {
        (0..WORDS as u64 * 64).filter(|&page| self.0[page as usize / 64] >> (page % 64) & 1 != 0)
    }
}

/// The share of the budget that may be dirty has no room.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoRoom;

/// The dirty pages of one region. Empty it with [`clean`](Dirty::clean) before it is dropped.
#[derive(Debug, Default)]
pub(super) struct Dirty(BTreeMap<u64, PageSet>);

impl Dirty {
    /// The pages that the bytes `range` touch are dirty from now on. The caller has pinned them.
    pub(super) fn mark(&mut self, ledger: &Ledger, range: &Range<u64>) -> Result<(), NoRoom> {
        let geometry = ledger.geometry();
        let units = geometry.units_of(range);
        let mut fresh = Vec::new();
        for unit in units.clone() {
            if self.0.contains_key(&unit) {
                continue;
            }
            if !ledger.keep(unit) {
                for unit in fresh {
                    self.0.remove(&unit);
                    ledger.unkeep(unit);
                }
                return Err(NoRoom);
            }
            self.0.insert(unit, PageSet::default());
            fresh.push(unit);
        }
        for unit in units {
            let set = self.0.get_mut(&unit).expect("inserted above");
            set.insert(pages_in(range, unit, geometry.unit_bytes()));
        }
        Ok(())
    }

    /// Whether `unit` has a dirty page.
    pub(super) fn has(&self, unit: u64) -> bool {
        self.0.contains_key(&unit)
    }

    /// The pages of `ranges` were written. They lie in units that are dirty or in `kept`, which are
    /// kept as dirty ones are; those of `kept` that were not written are no more.
    pub(super) fn adopt(
        &mut self,
        ledger: &Ledger,
        mut kept: BTreeSet<u64>,
        ranges: &[Range<u64>],
    ) {
        let geometry = ledger.geometry();
        for range in ranges {
            for unit in geometry.units_of(range) {
                if kept.remove(&unit) && !self.insert(unit) {
                    // Written by another way, too, since a map was leaked: kept twice.
                    ledger.unkeep(unit);
                }
                if let Some(set) = self.0.get_mut(&unit) {
                    set.insert(pages_in(range, unit, geometry.unit_bytes()));
                }
            }
        }
        for unit in kept {
            ledger.unkeep(unit);
        }
    }

    /// Begins with a unit that is kept; false if it was begun before.
    fn insert(&mut self, unit: u64) -> bool {
        let mut is_new = false;
        self.0.entry(unit).or_insert_with(|| {
            is_new = true;
            PageSet::default()
        });
        is_new
    }

    /// The dirty pages as ranges of bytes of the object: ascending, and apart.
    pub(super) fn ranges(&self, ledger: &Ledger) -> Vec<Range<u64>> {
        let (unit_bytes, len) = (ledger.geometry().unit_bytes(), ledger.geometry().object_len());
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for (unit, set) in &self.0 {
            for page in set.pages() {
                let start = unit * unit_bytes + page * PAGE as u64;
                let end = (start + PAGE as u64).min(len);
                match ranges.last_mut() {
                    Some(last) if last.end == start => last.end = end,
                    _ => ranges.push(start..end),
                }
            }
        }
        ranges
    }

    /// The pages of `ranges`, which [`ranges`](Dirty::ranges) gave, are in a version now. A unit without another
    /// is let go, unless somebody `takes` over what keeps it.
    pub(super) fn clean(
        &mut self,
        ledger: &Ledger,
        ranges: &[Range<u64>],
        mut takes: impl FnMut(u64) -> bool,
    ) {
        let geometry = ledger.geometry();
        for range in ranges {
            for unit in geometry.units_of(range) {
                let Some(set) = self.0.get_mut(&unit) else { continue };
                set.remove(pages_in(range, unit, geometry.unit_bytes()));
                if set.is_empty() {
                    self.0.remove(&unit);
                    if !takes(unit) {
                        ledger.unkeep(unit);
                    }
                }
            }
        }
    }

    /// Bytes of dirty pages.
    pub(super) fn bytes(&self, ledger: &Ledger) -> u64 {
        self.ranges(ledger).iter().map(|range| range.end - range.start).sum()
    }
}

/// The pages of `unit` that `range` touches, numbered within the unit.
fn pages_in(range: &Range<u64>, unit: u64, unit_bytes: u64) -> Range<u64> {
    let first = unit * unit_bytes;
    let start = range.start.max(first) - first;
    let end = range.end.min(first + unit_bytes) - first;
    start / PAGE as u64..end.div_ceil(PAGE as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_units_at_every_edge() {
        let (unit, page) = (65_536, PAGE as u64);
        let cases = [
            ("a byte", 0..1, 0, 0..1),
            ("the last byte of a page", page - 1..page, 0, 0..1),
            ("two bytes of two pages", page - 1..page + 1, 0, 0..2),
            ("the last byte of a unit", unit - 1..unit, 0, 15..16),
            ("two units, in the first", unit - 1..unit + 1, 0, 15..16),
            ("two units, in the second", unit - 1..unit + 1, 1, 0..1),
            ("a unit in the middle", 5..10 * unit, 4, 0..16),
        ];
        for (what, range, in_unit, expected) in cases {
            assert_eq!(pages_in(&range, in_unit, unit), expected, "{what}");
        }
        let mut set = PageSet::default();
        set.insert(60..70);
        set.insert(511..512);
        set.remove(62..69);
        assert_eq!(set.pages().collect::<Vec<_>>(), [60, 61, 69, 511]);
        set.remove(0..512);
        assert!(set.is_empty());
    }
}
