//! The values of all fields, when they do not fit in memory together.
//!
//! ```text
//!   epoch 0   values numbered 1, 2, 3, ...   --> values, in this order; and sorted by hash
//!   epoch 1   the same from 1 on, once again --> values; sorted
//!                                                   |
//!   resolve   merge the sorted: which value is met first, and in which epoch
//!             --> a bit for each value: is it the first time?
//!             --> for the others, sorted by epoch: where was the first time?
//! ```
//!
//! An epoch ends when the values take too much memory. The runs of its events use its numbers, and
//! are written anew once it is known what these become: the numbers that one table of unlimited
//! size would have given. Two bits for each value of each epoch stay in memory for it.

use super::{
    super::{
        values::Values,
        varint,
        window::{self, Part, Window},
    },
    folder::{Folder, Writer},
    sort::{Merge, RunWriter},
};
use crate::error::Error;

/// Field, hash, epoch and number: the head of a record that is sorted by hash.
const SORTED_HEAD: usize = 2 + 8 + 4 + 4;
/// Epoch, field and number of a value, and epoch and number of the first time.
const AGAIN_BYTES: usize = 4 + 2 + 4 + 4 + 4;

type Again = [u8; AGAIN_BYTES];

/// The values of one epoch, by field.
#[derive(Debug)]
pub(in super::super) struct Epoch {
    fields: Vec<Spilled>,
    sorted: Part,
}

/// The values of one field in one epoch.
#[derive(Debug)]
struct Spilled {
    count: u32,
    /// length, bytes; in the order of numbers.
    values: Part,
}

impl Epoch {
    /// Writes the values of all fields to files, and empties the tables. Epochs are numbered from 0.
    pub(in super::super) fn write<V: std::ops::DerefMut<Target = Values>>(
        folder: &Folder,
        epoch: usize,
        tables: impl Iterator<Item = V>,
    ) -> Result<Epoch, Error> {
        let mut out = folder.writer("values")?;
        let mut sorted = RunWriter::new(folder)?;
        let mut fields = Vec::new();
        for (mut values, field) in tables.zip(1u16..) {
            values.close();
            fields.push(Spilled::write(&mut out, &values)?);
            let mut head = [0; SORTED_HEAD];
            head[..2].copy_from_slice(&field.to_be_bytes());
            head[10..14].copy_from_slice(&(epoch as u32).to_be_bytes());
            for (hash, place) in values.by_hash() {
                let (number, value) = values.at(place);
                head[2..10].copy_from_slice(&hash.to_be_bytes());
                head[14..].copy_from_slice(&number.to_be_bytes());
                sorted.put(&head, value)?;
            }
            values.reset();
        }
        out.flush()?;
        Ok(Epoch { fields, sorted: sorted.finish()? })
    }
}

impl Spilled {
    fn write(out: &mut Writer, values: &Values) -> Result<Spilled, Error> {
        let start = out.len();
        let mut longest = 0;
        for value in values.iter() {
            longest = longest.max(value.len());
            varint::put(&mut out.buffer, value.len() as u64);
            out.write(value)?;
        }
        let part = out.part_from(start, longest + varint::BYTES_MAX);
        Ok(Spilled { count: values.count() as u32, values: part })
    }
}

/// Bits that are set, and how many are set before each word.
#[derive(Debug)]
struct Bits {
    words: Vec<u64>,
    before: Vec<u64>,
}

impl Bits {
    fn new(count: u32) -> Bits {
        Bits { words: vec![0; count as usize / 64 + 1], before: Vec::new() }
    }

    fn set(&mut self, at: u32) {
        self.words[at as usize / 64] |= 1 << (at % 64);
    }

    fn get(&self, at: u32) -> bool {
        self.words[at as usize / 64] >> (at % 64) & 1 == 1
    }

    /// Counts, from `start` on. Returns where the next ones go on.
    fn count(&mut self, start: u64) -> u64 {
        let mut sum = start;
        self.before.reserve_exact(self.words.len());
        for word in &self.words {
            self.before.push(sum);
            sum += u64::from(word.count_ones());
        }
        sum
    }

    /// How many are set before `at`, and the start of the count.
    fn rank(&self, at: u32) -> u64 {
        let low = self.words[at as usize / 64] & ((1 << (at % 64)) - 1);
        self.before[at as usize / 64] + u64::from(low.count_ones())
    }
}

/// What the numbers of each epoch become. Ask for the epochs in their order.
#[derive(Debug)]
pub(super) struct Resolved {
    lexicons: Vec<Lexicon>,
    /// Values met before, by epoch, field and number.
    again: Merge,
    /// The next of them.
    next: Option<Again>,
}

/// A lexicon in temporary files.
#[derive(Debug)]
pub(in super::super) struct Lexicon {
    pub(in super::super) count: u64,
    pub(in super::super) value_bytes: u64,
    /// Of each epoch, the values and which of them are met there first.
    epochs: Vec<(Spilled, Bits)>,
}

impl Lexicon {
    /// Calls `each` with the values in order.
    pub(in super::super) fn each(
        &self,
        mut each: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        for (spilled, firsts) in &self.epochs {
            let mut window = Window::part(&spilled.values, window::BUFFER_BYTES);
            for number in 1..=spilled.count {
                let (bytes, at) = window.record()?;
                let len = varint::take(bytes, at) as usize;
                let start = *at;
                *at += len;
                if firsts.get(number) {
                    each(&bytes[start..start + len])?;
                }
            }
        }
        Ok(())
    }
}

/// Finds out which values are the same, with about so much memory.
pub(super) fn resolve(folder: &Folder, epochs: Vec<Epoch>, memory: u64) -> Result<Resolved, Error> {
    let fields = epochs.first().map_or(0, |epoch| epoch.fields.len());
    let empty = || Lexicon { count: 0, value_bytes: 0, epochs: Vec::new() };
    let mut lexicons: Vec<Lexicon> = (0..fields).map(|_| empty()).collect();
    let mut sorted = Vec::with_capacity(epochs.len());
    for epoch in epochs {
        sorted.push(epoch.sorted);
        for (lexicon, spilled) in lexicons.iter_mut().zip(epoch.fields) {
            let firsts = Bits::new(spilled.count);
            lexicon.epochs.push((spilled, firsts));
        }
    }

    let mut again = AgainWriter::new(folder, memory / 2);
    let mut merge = Merge::new(folder, sorted, memory / 2)?;
    // Values of one hash, nearly always of one value. Epochs come out in ascending order, so the
    // first that has a value is the one that met it first.
    let mut same: Vec<(Vec<u8>, u32, u32)> = Vec::new();
    let mut hash = [0; 10];
    while let Some(record) = merge.next()? {
        let (head, value) = record.split_at(SORTED_HEAD);
        if hash != head[..10] {
            hash.copy_from_slice(&head[..10]);
            same.clear();
        }
        let (field, epoch, number) = (short(&head[..2]), int(&head[10..14]), int(&head[14..]));
        match same.iter().find(|(known, ..)| known == value) {
            None => {
                let lexicon = &mut lexicons[usize::from(field) - 1];
                lexicon.epochs[epoch as usize].1.set(number);
                lexicon.value_bytes += value.len() as u64;
                same.push((value.to_vec(), epoch, number));
            }
            Some(&(_, first, first_number)) => {
                again.put([epoch, number, first, first_number], field)?;
            }
        }
    }
    drop(merge);
    for lexicon in &mut lexicons {
        let count = |sum, (_, firsts): &mut (_, Bits)| firsts.count(sum);
        lexicon.count = lexicon.epochs.iter_mut().fold(0, count);
    }
    let mut resolved = Resolved { lexicons, again: again.merge(memory / 4)?, next: None };
    resolved.advance()?;
    Ok(resolved)
}

impl Resolved {
    /// By field, what each number from 1 of an epoch becomes.
    pub(super) fn maps(&mut self, epoch: usize) -> Result<Vec<Vec<u64>>, Error> {
        let mut maps = Vec::with_capacity(self.lexicons.len());
        for field in 0..self.lexicons.len() {
            let (spilled, firsts) = &self.lexicons[field].epochs[epoch];
            let mut map: Vec<u64> =
                (1..=spilled.count).map(|number| 1 + firsts.rank(number)).collect();
            let mut prefix = [0; 6];
            prefix[..4].copy_from_slice(&(epoch as u32).to_be_bytes());
            prefix[4..].copy_from_slice(&(field as u16 + 1).to_be_bytes());
            while let Some(again) = self.next.filter(|again| again[..6] == prefix) {
                let (number, first) = (int(&again[6..10]), int(&again[10..14]) as usize);
                let (_, firsts) = &self.lexicons[field].epochs[first];
                map[number as usize - 1] = 1 + firsts.rank(int(&again[14..]));
                self.advance()?;
            }
            maps.push(map);
        }
        Ok(maps)
    }

    fn advance(&mut self) -> Result<(), Error> {
        let next = self.again.next()?;
        self.next = next.map(|record| record.try_into().expect("records of one size"));
        Ok(())
    }

    pub(super) fn into_lexicons(self) -> Vec<Lexicon> {
        self.lexicons
    }
}

/// Collects values met again, in sorted runs.
struct AgainWriter<'f> {
    folder: &'f Folder,
    buffer: Vec<Again>,
    buffer_max: usize,
    runs: Vec<Part>,
}

impl<'f> AgainWriter<'f> {
    fn new(folder: &'f Folder, memory: u64) -> AgainWriter<'f> {
        let buffer_max = (memory as usize / AGAIN_BYTES).clamp(1024, 1 << 22);
        AgainWriter { folder, buffer: Vec::new(), buffer_max, runs: Vec::new() }
    }

    fn put(
        &mut self,
        [epoch, number, first, first_number]: [u32; 4],
        field: u16,
    ) -> Result<(), Error> {
        let mut record = [0; AGAIN_BYTES];
        record[..4].copy_from_slice(&epoch.to_be_bytes());
        record[4..6].copy_from_slice(&field.to_be_bytes());
        record[6..10].copy_from_slice(&number.to_be_bytes());
        record[10..14].copy_from_slice(&first.to_be_bytes());
        record[14..].copy_from_slice(&first_number.to_be_bytes());
        if self.buffer.is_empty() {
            self.buffer.reserve_exact(self.buffer_max);
        }
        self.buffer.push(record);
        if self.buffer.len() == self.buffer_max { self.end_run() } else { Ok(()) }
    }

    fn end_run(&mut self) -> Result<(), Error> {
        self.buffer.sort_unstable();
        let mut out = RunWriter::new(self.folder)?;
        for record in self.buffer.drain(..) {
            out.put(&record, &[])?;
        }
        self.runs.push(out.finish()?);
        Ok(())
    }

    fn merge(mut self, memory: u64) -> Result<Merge, Error> {
        self.end_run()?;
        self.buffer = Vec::new();
        Merge::new(self.folder, self.runs, memory)
    }
}

fn short(bytes: &[u8]) -> u16 {
    u16::from_be_bytes(bytes.try_into().expect("two bytes"))
}

fn int(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes.try_into().expect("four bytes"))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// The numbers of values, and the values in order.
    type Model = (HashMap<Vec<u8>, u64>, Vec<Vec<u8>>);

    /// Numbers become those that one table of all epochs would have given.
    #[test]
    fn epochs_are_numbered_as_one() {
        let parent = tempfile::tempdir().unwrap();
        let folder = Folder::create(parent.path()).unwrap();
        let mut tables: Vec<Values> = (0..3).map(|_| Values::default()).collect();
        let mut model: [Model; 3] = Default::default();
        let mut epochs = Vec::new();
        let mut expected = Vec::new();
        for epoch in 0..5u32 {
            let mut maps = vec![Vec::new(); 3];
            for n in 0..2000u32 {
                // Field 2 has no values at all in epoch 1, and never any of field 0's.
                let (field, value) = match n % 2 {
                    0 => (0, (n * 7 + epoch * 611) % 3001),
                    _ if epoch == 1 => continue,
                    _ => (2, (n / 2 + epoch) % 500),
                };
                let value = format!("{field}-{value}").into_bytes();
                let local = tables[field].number(&value) as usize;
                let (known, order) = &mut model[field];
                let next = known.len() as u64 + 1;
                let number = *known.entry(value.clone()).or_insert(next);
                if number == next {
                    order.push(value);
                }
                if local > maps[field].len() {
                    maps[field].push(number);
                }
                assert_eq!(maps[field][local - 1], number);
            }
            expected.push(maps);
            epochs.push(Epoch::write(&folder, epoch as usize, tables.iter_mut()).unwrap());
            assert!(tables.iter().all(|values| values.count() == 0 && values.iter().count() == 0));
        }
        let mut resolved = resolve(&folder, epochs, 1 << 16).unwrap();
        for (epoch, expected) in expected.iter().enumerate() {
            assert!(resolved.maps(epoch).unwrap() == *expected, "epoch {epoch}");
        }
        for (lexicon, (_, order)) in resolved.into_lexicons().iter().zip(&model) {
            let mut values = Vec::new();
            let each = |value: &[u8]| {
                values.push(value.to_vec());
                Ok(())
            };
            lexicon.each(each).unwrap();
            assert!(values == *order);
            assert_eq!(lexicon.count, order.len() as u64);
            assert_eq!(lexicon.value_bytes, order.iter().map(|v| v.len() as u64).sum::<u64>());
        }
    }
}
