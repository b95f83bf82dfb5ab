//! The values of many events, looked up before they are asked for.
//!
//! A value is two reads of memory, the second where the first says, and few of them are near. Looked
//! up event by event, they are waited for nearly one by one; asked for in a row, first all offsets and
//! then all values, a processor waits for dozens at a time.
//!
//! ```text
//!   rows (sparse)  --> places and items, by field --> slices of the lexicon --> values
//!   values         a slice beside each item of a row, filled up as rows are
//! ```

use super::{Reader, rows};
use crate::{
    error::Error,
    item::Item,
    member::lexicon::{AT_ONCE, Slices},
    storage::Storage,
};

/// Values beside the items of rows.
pub(super) struct RowValues<'r> {
    /// What is in memory of the values, by field.
    lexicons: Box<[Slices<'r>]>,
    /// Beside each item of a row its value, where it was looked up.
    values: Vec<&'r [u8]>,
    /// The items of one field that rows have, and in which rows they are; and values of some.
    items: Vec<Item>,
    places: Vec<u32>,
    found: Vec<&'r [u8]>,
}

impl<'r> RowValues<'r> {
    /// Of a database whose values are in memory; `None` if they are not.
    pub(super) fn new<S: Storage>(reader: &'r Reader<S>) -> Result<Option<RowValues<'r>>, Error> {
        let lexicons = reader.lexicons()?.iter().map(|lexicon| {
            let slices = lexicon.in_memory(&reader.members);
            slices.are_there().then_some(slices)
        });
        Ok(lexicons.collect::<Option<_>>().map(|lexicons| RowValues {
            lexicons,
            values: Vec::new(),
            items: Vec::new(),
            places: Vec::new(),
            found: vec![&[]; AT_ONCE],
        }))
    }

    /// Looks up the values of the items that sparse rows have, of which the first is at `from`. Returns
    /// whether all are in memory, and keep the rules.
    pub(super) fn look_up<const N: usize>(&mut self, rows: &[Item], from: usize) -> bool {
        let (rows, _) = rows.as_chunks::<N>();
        let end = from + rows.len() * N;
        if self.values.len() < end {
            self.values.resize(end, &[]);
        }
        let (values, _) = self.values[from..end].as_chunks_mut::<N>();
        // One more, for what is written behind the last.
        self.items.resize(self.items.len().max(rows.len() + 1), rows::SAME);
        self.places.resize(self.places.len().max(rows.len() + 1), 0);
        let mut whole = true;
        for (k, lexicon) in self.lexicons.iter().enumerate() {
            let field = (k + 1) & (N - 1);
            let (items, places) = (&mut self.items[..=rows.len()], &mut self.places[..=rows.len()]);
            let mut n = 0;
            for (place, row) in (0..).zip(rows) {
                // Which rows have an item cannot be guessed: all are written, and those without one
                // written over.
                (items[n], places[n]) = (row[field], place);
                n += usize::from(row[field] != rows::SAME);
            }
            for (items, places) in items[..n].chunks(AT_ONCE).zip(places.chunks(AT_ONCE)) {
                let found = &mut self.found[..items.len()];
                whole &= lexicon.get_all(items, found);
                for (&value, &place) in found.iter().zip(places) {
                    values[place as usize][field] = value;
                }
            }
        }
        whole
    }

    /// Gives the values of rows, of which the first is at `from`, to those that have none since their
    /// item did not change; it is NULL before the first. The rows are still sparse.
    pub(super) fn fill<const N: usize>(&mut self, rows: &[Item], from: usize) {
        let (rows, _) = rows.as_chunks::<N>();
        let (values, _) = self.values[from..from + rows.len() * N].as_chunks_mut::<N>();
        let mut last: [&[u8]; N] = [&[]; N];
        for (row, values) in rows.iter().zip(values) {
            for ((item, value), last) in row[1..].iter().zip(&mut values[1..]).zip(&mut last[1..]) {
                let filled = if *item == rows::SAME { *last } else { *value };
                (*value, *last) = (filled, filled);
            }
        }
    }

    /// The values of the row at `row`, one for each field.
    #[inline(always)]
    pub(super) fn of(&self, row: usize) -> &[&'r [u8]] {
        &self.values[row + 1..row + 1 + self.lexicons.len()]
    }
}
