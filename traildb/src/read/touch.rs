//! Values that will be looked up are brought near, many at once.
//!
//! A value is two reads of memory, the second where the first says, and few of them are near. Looked
//! up event by event, they are waited for nearly one by one; asked for in a row, first all offsets and
//! then all values, a processor waits for ten at a time.

use std::hint::black_box;

use super::Reader;
use crate::{error::Error, item::Item, member::lexicon::Slices, storage::Storage};

/// What is in memory of the values, by field.
pub(super) struct Touch<'r> {
    fields: Box<[Field<'r>]>,
}

struct Field<'r> {
    slices: Slices<'r>,
    /// Numbers of the values that were noted.
    numbers: Vec<u64>,
    /// Where they start and end.
    spans: Vec<(usize, usize)>,
}

impl<'r> Touch<'r> {
    pub(super) fn new<S: Storage>(reader: &'r Reader<S>) -> Result<Touch<'r>, Error> {
        let fields = reader.lexicons()?.iter().map(|lexicon| Field {
            slices: lexicon.in_memory(&reader.members),
            numbers: Vec::new(),
            spans: Vec::new(),
        });
        Ok(Touch { fields: fields.collect() })
    }

    /// Notes the values in `rows`, one event after the other, that the event before does not have.
    pub(super) fn add(&mut self, rows: &[Item], stride: usize) {
        for (place, field) in (1..).zip(&mut self.fields) {
            let (mut at, mut last) = (place, Item(0));
            while let Some(&item) = rows.get(at) {
                if item != last {
                    field.numbers.push(item.value());
                    last = item;
                }
                at = at.wrapping_add(stride);
            }
        }
    }

    /// Reads the first and the last byte of each value that was noted. What a longer one has between
    /// them comes when it is read in order.
    pub(super) fn read(&mut self) {
        for Field { slices, numbers, spans } in &mut self.fields {
            // Nothing but reads, so that a processor has many of them under way.
            spans.clear();
            spans.extend(numbers.drain(..).map(|number| slices.span(number).unwrap_or_default()));
            let byte = |&(start, end): &(usize, usize)| {
                slices.byte(start) ^ slices.byte(end.wrapping_sub(1))
            };
            // The bytes are wanted for nothing else, which must not be noticed.
            black_box(spans.iter().map(byte).fold(0, |sum, byte| sum ^ byte));
        }
    }
}
