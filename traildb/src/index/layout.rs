//! The head of an index file: what it belongs to, and where each field's part is (FORMAT.md K3-K4).

use super::pages::Pages;
use crate::{
    container::Plan,
    error::Error,
    item::{FIELDS_MAX, TRAILS_MAX, VALUES_MAX},
    storage::Storage,
};

/// The first bytes.
pub(super) const MAGIC: [u8; 8] = *b"tdbindex";
/// The version that is written, and the one that is read.
pub(super) const VERSION: u32 = 2;
/// Bytes of the head, before the fields.
const HEAD: u64 = 40;
/// Bytes of a field's entry.
const ENTRY: u64 = 64;
/// Bytes of the hash in a slot of a table of values.
pub(super) const TAG_BYTES: u64 = 2;

/// What an index belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// Number of user fields.
    pub(super) fields: u32,
    /// What the database is known by.
    pub(super) identity: u64,
    pub(super) trails: u64,
    /// Positions that mean something.
    pub(super) len: u64,
}

/// Where the parts of a field are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    /// Number of values, NULL not counted.
    pub(super) count: u64,
    pub(super) lists_at: u64,
    pub(super) lists_len: u64,
    /// `count + 1` slots, of `slot_width` bytes each.
    pub(super) slots_at: u64,
    pub(super) slot_width: u64,
    /// `table_slots` slots of the table of values, of `table_width` bytes each.
    pub(super) table_at: u64,
    pub(super) table_slots: u64,
    pub(super) table_width: u64,
}

/// Bytes that the head and the entries of `fields` take.
pub(super) fn len(fields: u32) -> u64 {
    HEAD + ENTRY * u64::from(fields)
}

/// Bytes of a number up to `max`, at least 1.
pub(super) fn width(max: u64) -> u64 {
    u64::from((64 - (max | 1).leading_zeros()).div_ceil(8))
}

/// Homes in the table of `count` values: four of five slots are taken.
pub(super) fn homes(count: u64) -> u64 {
    count + count / 4 + 1
}

/// Bytes of a slot in the table of `count` values.
pub(super) fn table_width(count: u64) -> u64 {
    width(count) + TAG_BYTES
}

/// A number of up to 8 bytes.
pub(super) fn number(bytes: &[u8]) -> u64 {
    let mut wide = [0; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(wide)
}

impl Head {
    pub(super) fn write(&self, entries: &[Entry]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len(self.fields) as usize);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.fields.to_le_bytes());
        for number in [self.identity, self.trails, self.len] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        for entry in entries {
            for number in entry.numbers() {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
        }
        bytes
    }

    pub(super) fn read<S: Storage>(pages: &Pages<S>) -> Result<Head, Error> {
        let mut plan = Plan::default();
        // Most indexes have all of their entries in here.
        pages.plan(&mut plan, 0..(64 << 10).min(pages.len()));
        plan.announce(pages.members())?;
        let mut bytes = Vec::new();
        pages.read(0..HEAD, &mut bytes)?;
        if bytes[..8] != MAGIC {
            return Err(pages.damaged(0, "this is no index of a TrailDB"));
        }
        let version = number(&bytes[8..12]);
        if version != u64::from(VERSION) {
            let object = pages.members().object().to_owned();
            return Err(Error::IndexVersion { object, version });
        }
        let at = |k: usize| number(&bytes[16 + 8 * k..24 + 8 * k]);
        let fields = number(&bytes[12..16]) as u32;
        let head = Head { fields, identity: at(0), trails: at(1), len: at(2) };
        if fields as usize > FIELDS_MAX
            || head.trails > TRAILS_MAX
            || head.len > pages.len()
            || head.len < len(fields)
        {
            return Err(pages.damaged(8, "the head says what cannot be"));
        }
        Ok(head)
    }
}

impl Entry {
    fn numbers(&self) -> [u64; 8] {
        let Entry { count, lists_at, lists_len, slots_at, slot_width, .. } = *self;
        let Entry { table_at, table_slots, table_width, .. } = *self;
        [count, lists_at, lists_len, slots_at, slot_width, table_at, table_slots, table_width]
    }

    /// The entry of a field, from 1, which the head has.
    pub(super) fn read<S: Storage>(
        pages: &Pages<S>,
        head: &Head,
        field: u16,
    ) -> Result<Entry, Error> {
        let at = HEAD + ENTRY * (u64::from(field) - 1);
        let mut bytes = Vec::new();
        pages.read(at..at + ENTRY, &mut bytes)?;
        let mut numbers = bytes.chunks_exact(8).map(number);
        let mut next = || numbers.next().expect("eight numbers");
        let entry = Entry {
            count: next(),
            lists_at: next(),
            lists_len: next(),
            slots_at: next(),
            slot_width: next(),
            table_at: next(),
            table_slots: next(),
            table_width: next(),
        };
        let inside = |at: u64, number: u64, width: u64| {
            let bytes = number.checked_mul(width);
            bytes.and_then(|bytes| bytes.checked_add(at)).is_some_and(|end| end <= head.len)
        };
        let sound = entry.count <= VALUES_MAX
            && (1..=8).contains(&entry.slot_width)
            && entry.table_width == table_width(entry.count)
            && inside(entry.lists_at, entry.lists_len, 1)
            && inside(entry.slots_at, entry.count + 1, entry.slot_width)
            && inside(entry.table_at, entry.table_slots, entry.table_width)
            && entry.table_slots >= homes(entry.count);
        match sound {
            true => Ok(entry),
            false => Err(pages.damaged(at, format!("the entry of field {field} is not sound"))),
        }
    }
}
