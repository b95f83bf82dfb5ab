//! Which number a value has: a hash table in memory, of a field that is asked again.
//!
//! ```text
//!   first question about a field     passes over its lexicon: 4 bytes for each value, and those that
//!                                    are as long as the wanted one; no memory
//!   second                           makes the table, 10 bytes for each value
//!   from then on                     a look at one or two slots, and at the value found there
//! ```
//!
//! Values of a lexicon are in no order (FORMAT.md X3), so the C library passes over it for every
//! question. A lexicon far away is not read whole to make a table: there an [`Index`](crate::Index)
//! answers, and where there is none, every question passes over the offsets, and reads the values that
//! are as long as the wanted one (of version 0, whose values end with a NUL byte, all of them).

use std::{
    hash::BuildHasher,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use hashbrown::DefaultHashBuilder;

use crate::{container::Members, error::Error, member::lexicon::LexiconMember, storage::Storage};

/// Memory that the tables of a reader may take, unless it is told otherwise: those of 25 million
/// values.
const MEMORY_BYTES: u64 = 256 << 20;
/// A slot is a value's number and, above it, bits of its hash.
const NUMBER_BITS: u32 = 40;
const NUMBER: u64 = (1 << NUMBER_BITS) - 1;

/// The tables of a reader.
#[derive(Debug)]
pub(super) struct Lookups {
    memory_max: u64,
    memory: AtomicU64,
    fields: OnceLock<Box<[Field]>>,
}

#[derive(Debug, Default)]
struct Field {
    asked: AtomicBool,
    /// `None` if the memory does not suffice.
    table: OnceLock<Option<Table>>,
    /// Held by who makes the table, so that others wait for it rather than make their own.
    making: Mutex<()>,
}

impl Default for Lookups {
    fn default() -> Lookups {
        Lookups::new(MEMORY_BYTES)
    }
}

impl Lookups {
    pub(super) fn new(memory_max: u64) -> Lookups {
        Lookups { memory_max, memory: AtomicU64::new(0), fields: OnceLock::new() }
    }

    /// The numbers of values of a field, as [`LexiconMember::find_all`] gives them. `field` counts
    /// from 0 here, and there are `fields`.
    pub(super) fn find_all<S: Storage>(
        &self,
        members: &Members<S>,
        (field, fields): (usize, usize),
        lexicon: &LexiconMember,
        values: &[&[u8]],
    ) -> Result<Vec<Option<u64>>, Error> {
        match self.table(members, (field, fields), lexicon)? {
            None => lexicon.find_all(members, values),
            Some(table) => {
                let find = |value: &&[u8]| table.find(members, lexicon, value);
                values.iter().map(find).collect()
            }
        }
    }

    /// The table of a field, if it is time for one and it fits.
    fn table<S: Storage>(
        &self,
        members: &Members<S>,
        (field, fields): (usize, usize),
        lexicon: &LexiconMember,
    ) -> Result<Option<&Table>, Error> {
        if self.memory_max == 0 || members.is_remote() {
            return Ok(None);
        }
        let all = self.fields.get_or_init(|| (0..fields).map(|_| Field::default()).collect());
        let Some(field) = all.get(field) else { return Ok(None) };
        if let Some(table) = field.table.get() {
            return Ok(table.as_ref());
        }
        if !field.asked.swap(true, Ordering::Relaxed) {
            return Ok(None);
        }
        let _making = field.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = field.table.get() {
            return Ok(table.as_ref());
        }
        let table = match self.reserve(Table::bytes(lexicon.count)) {
            true => Some(Table::new(members, lexicon).inspect_err(|_| {
                self.memory.fetch_sub(Table::bytes(lexicon.count), Ordering::Relaxed);
            })?),
            false => None,
        };
        Ok(field.table.get_or_init(|| table).as_ref())
    }

    fn reserve(&self, bytes: u64) -> bool {
        let fits = |used: u64| used.checked_add(bytes).filter(|&sum| sum <= self.memory_max);
        self.memory.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }
}

/// Open addressing: a value is at its home or in the first free slot behind it.
#[derive(Debug)]
struct Table {
    slots: Box<[u64]>,
    /// Seeded by chance: values that somebody made up collide no more than others.
    hasher: DefaultHashBuilder,
}

impl Table {
    /// Slots for `count` values: four of five are taken, and one at least is free.
    fn slots(count: u64) -> u64 {
        count + count / 4 + 1
    }

    fn bytes(count: u64) -> u64 {
        Table::slots(count) * 8
    }

    fn new<S: Storage>(members: &Members<S>, lexicon: &LexiconMember) -> Result<Table, Error> {
        let slots = vec![0; Table::slots(lexicon.count) as usize].into_boxed_slice();
        let mut table = Table { slots, hasher: DefaultHashBuilder::default() };
        lexicon.each(members, 1..lexicon.count + 1, |number, value| table.insert(number, value))?;
        Ok(table)
    }

    /// Where a value of this hash would be, and what tells it from its neighbours.
    fn home(&self, hash: u64) -> (usize, u64) {
        let home = (u128::from(hash) * self.slots.len() as u128 >> 64) as usize;
        (home, hash << NUMBER_BITS)
    }

    fn insert(&mut self, number: u64, value: &[u8]) {
        let (mut at, tag) = self.home(self.hasher.hash_one(value));
        while self.slots[at] != 0 {
            at = if at + 1 == self.slots.len() { 0 } else { at + 1 };
        }
        self.slots[at] = number | tag;
    }

    /// The number of a value, 0 for the empty one. Of equal values, which a sound lexicon does not
    /// have, the first: it was inserted first, so it is met first.
    fn find<S: Storage>(
        &self,
        members: &Members<S>,
        lexicon: &LexiconMember,
        value: &[u8],
    ) -> Result<Option<u64>, Error> {
        if value.is_empty() {
            return Ok(Some(0));
        }
        let (mut at, tag) = self.home(self.hasher.hash_one(value));
        while self.slots[at] != 0 {
            let slot = self.slots[at];
            if slot & !NUMBER == tag && *lexicon.value(members, slot & NUMBER)? == *value {
                return Ok(Some(slot & NUMBER));
            }
            at = if at + 1 == self.slots.len() { 0 } else { at + 1 };
        }
        Ok(None)
    }
}
