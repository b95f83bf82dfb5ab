//! Values that will be looked up are brought near, many at once.
//!
//! A value is two reads of memory, the second where the first says, and few of them are near. Looked
//! up event by event, they are waited for nearly one by one; asked for in a row, first all offsets and
//! then all values, a processor waits for ten at a time.

use std::hint::black_box;

use super::Reader;
use crate::{error::Error, item::Item, member::lexicon::Slices, storage::Storage};

/// What is in memory of the values.
pub(super) struct Touch<'r> {
    fields: Box<[Slices<'r>]>,
    /// Where values start, and of which field they are.
    starts: Vec<(usize, u16)>,
}

impl<'r> Touch<'r> {
    pub(super) fn new<S: Storage>(reader: &'r Reader<S>) -> Result<Touch<'r>, Error> {
        let fields = reader.lexicons()?.iter().map(|x| x.in_memory(&reader.members));
        Ok(Touch { fields: fields.collect(), starts: Vec::new() })
    }

    /// Notes the values in `rows`, one event after the other, that the event before does not have.
    pub(super) fn add(&mut self, rows: &[Item], stride: usize) {
        let mut before: &[Item] = &[];
        for row in rows.chunks_exact(stride) {
            let items = &row[1..=self.fields.len()];
            for (field, (&item, slices)) in items.iter().zip(&self.fields).enumerate() {
                if before.get(field) != Some(&item)
                    && let Some(start) = slices.start(item.value())
                {
                    self.starts.push((start, field as u16));
                }
            }
            before = items;
        }
    }

    /// Reads a byte of each value that was noted. What a longer one has beyond a line of the cache
    /// comes when it is read from its start.
    pub(super) fn read(&mut self) {
        let mut bytes = 0;
        for (start, field) in self.starts.drain(..) {
            bytes ^= self.fields[usize::from(field)].byte(start);
        }
        // They are wanted for nothing else, which must not be noticed.
        black_box(bytes);
    }
}
