//! The distinct values of a field, numbered from 1 in the order in which they first occur.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;

use crate::{
    error::{Error, InputError},
    member::fields::Fields,
};

/// The longest value, in bytes (FORMAT.md L5).
const VALUE_BYTES_MAX: u64 = 1 << 58;

/// Values one after another, and a table that finds them.
#[derive(Debug, Default)]
pub(super) struct Values {
    bytes: Vec<u8>,
    /// Where each value ends; value number n ends at `ends[n - 1]`.
    ends: Vec<u64>,
    /// Numbers, by the hash of their values. Which numbers they are does not depend on it.
    table: HashTable<u32>,
    hasher: RandomState,
}

impl Values {
    /// Whether `value` may be a value of this field.
    pub(super) fn check(&self, value: &[u8], fields: &Fields, at: usize) -> Result<(), Error> {
        if value.len() as u64 > VALUE_BYTES_MAX {
            return Err(InputError::ValueTooLong(value.len() as u64).into());
        }
        if self.ends.len() >= u32::MAX as usize {
            let name = fields.name(at as u16 + 1).unwrap_or_default();
            return Err(InputError::TooManyValues(name.to_owned()).into());
        }
        Ok(())
    }

    /// The number of `value`: 0 for the empty string, a new one if it has not occurred.
    pub(super) fn number(&mut self, value: &[u8]) -> u32 {
        if value.is_empty() {
            return 0;
        }
        let Values { bytes, ends, table, hasher } = self;
        let hash = hasher.hash_one(value);
        let found = table.entry(
            hash,
            |&number| slice(bytes, ends, number) == value,
            |&number| hasher.hash_one(slice(bytes, ends, number)),
        );
        match found {
            hashbrown::hash_table::Entry::Occupied(entry) => *entry.get(),
            hashbrown::hash_table::Entry::Vacant(entry) => {
                let number = ends.len() as u32 + 1;
                entry.insert(number);
                bytes.extend_from_slice(value);
                ends.push(bytes.len() as u64);
                number
            }
        }
    }

    /// How many there are, without NULL.
    pub(super) fn count(&self) -> u64 {
        self.ends.len() as u64
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn ends(&self) -> &[u64] {
        &self.ends
    }

    pub(super) fn memory(&self) -> usize {
        self.bytes.capacity() + self.ends.capacity() * 8 + self.table.capacity() * 5
    }
}

fn slice<'a>(bytes: &'a [u8], ends: &[u64], number: u32) -> &'a [u8] {
    let at = number as usize - 1;
    let start = at.checked_sub(1).map_or(0, |before| ends[before]);
    &bytes[start as usize..ends[at] as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_follow_the_first_occurrence() {
        let mut values = Values::default();
        let cases: [(&[u8], u32); 6] =
            [(b"b", 1), (b"", 0), (b"a", 2), (b"b", 1), (b"\0", 3), (b"a", 2)];
        for (value, number) in cases {
            assert_eq!(values.number(value), number, "{value:?}");
        }
        assert_eq!(
            (values.count(), values.bytes(), values.ends()),
            (3, &b"ba\0"[..], &[1, 2, 3][..])
        );
    }
}
