//! Items and UUIDs: the small values that everything else passes around.

use std::{cmp::Ordering, fmt, str::FromStr};

/// The most user fields of a database (FORMAT.md L1).
pub const FIELDS_MAX: usize = (1 << 14) - 2;
/// The greatest value number of a field (FORMAT.md L2).
pub const VALUES_MAX: u64 = (1 << 40) - 2;
/// The most trails of a database (FORMAT.md L3).
pub const TRAILS_MAX: u64 = (1 << 59) - 1;
/// The greatest difference between neighbouring events of a trail, and the greatest first timestamp
/// of a database (FORMAT.md L4).
pub const DELTA_MAX: u64 = (1 << 47) - 2;

/// A field and the number of one of its values, packed in 64 bits (FORMAT.md I1).
///
/// ```text
///   narrow   bits 0-6 field | bit 7 = 0 | bits 8-31 value
///   wide     bits 0-6 field, low | bit 7 = 1 | bits 8-14 field, high | bit 15 = 0 | 16-63 value
/// ```
///
/// The form is canonical, so equal items are equal integers. Value number 0 is NULL, the empty
/// string. Numbers mean something only within the database that they come from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Item(pub(crate) u64);

const WIDE: u64 = 1 << 7;

impl Item {
    /// The item of value number `value` in `field`.
    ///
    /// # Panics
    /// When `field` exceeds [`FIELDS_MAX`] or `value` needs more than 48 bits.
    pub fn new(field: u16, value: u64) -> Item {
        assert!(usize::from(field) <= FIELDS_MAX, "field {field}");
        assert!(value >> 48 == 0, "value number {value}");
        Item::pack(field, value)
    }

    /// The item of a field and a value that are known to fit.
    #[inline(always)]
    pub(crate) fn pack(field: u16, value: u64) -> Item {
        let field = u64::from(field);
        if field <= 127 && value < 1 << 24 {
            Item(field | value << 8)
        } else {
            Item(field & 127 | WIDE | field >> 7 << 8 | value << 16)
        }
    }

    /// The item packed in `raw`, or `None` if `raw` is not the canonical form of any item.
    pub fn from_raw(raw: u64) -> Option<Item> {
        let item = Item(raw);
        let canonical = usize::from(item.field()) <= FIELDS_MAX
            && (raw & WIDE != 0 || raw >> 32 == 0)
            && Item::new(item.field(), item.value()) == item;
        canonical.then_some(item)
    }

    /// The 64 bits.
    #[inline]
    pub fn raw(self) -> u64 {
        self.0
    }

    /// The field: 0 is the time, user fields start at 1.
    #[inline]
    pub fn field(self) -> u16 {
        if self.0 & WIDE == 0 {
            (self.0 & 127) as u16
        } else {
            (self.0 & 127 | (self.0 >> 8 & 127) << 7) as u16
        }
    }

    /// The number of the value within its field, 0 for NULL.
    #[inline]
    pub fn value(self) -> u64 {
        if self.0 & WIDE == 0 { self.0 >> 8 & 0xFFFF_FFFF } else { self.0 >> 16 }
    }

    /// Whether the value is NULL, the empty string.
    #[inline]
    pub fn is_null(self) -> bool {
        self.value() == 0
    }
}

impl fmt::Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Item({}:{})", self.field(), self.value())
    }
}

/// What names a trail: 16 bytes, ordered as a little-endian number (FORMAT.md U2).
///
/// The hexadecimal form prints byte 0 first, so it does not sort like the value.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// The number by which trails are ordered: byte 15 is the most significant.
    #[inline]
    pub fn number(self) -> u128 {
        u128::from_le_bytes(self.0)
    }

    /// The UUID of that [`number`](Uuid::number).
    pub fn from_number(number: u128) -> Uuid {
        Uuid(number.to_le_bytes())
    }
}

impl PartialOrd for Uuid {
    fn partial_cmp(&self, other: &Uuid) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Uuid {
    fn cmp(&self, other: &Uuid) -> Ordering {
        self.number().cmp(&other.number())
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Uuid({self})")
    }
}

/// A text that is not 32 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a UUID: 32 hexadecimal digits are")]
pub struct UuidError(pub String);

impl FromStr for Uuid {
    type Err = UuidError;

    fn from_str(text: &str) -> Result<Uuid, UuidError> {
        let refuse = || UuidError(text.chars().take(64).collect());
        let digits: &[u8; 32] = text.as_bytes().try_into().map_err(|_| refuse())?;
        let mut bytes = [0; 16];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |c: u8| char::from(c).to_digit(16).ok_or_else(refuse);
            *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
        }
        Ok(Uuid(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_pack_as_the_format_says() {
        let cases = [
            ("NULL of a narrow field", 5, 0, 5),
            ("narrow", 127, 3, 127 | 3 << 8),
            ("the last narrow value", 1, (1 << 24) - 1, 1 | ((1 << 24) - 1) << 8),
            ("the first wide value", 1, 1 << 24, 1 | 128 | (1 << 24) << 16),
            ("the first wide field", 128, 7, 128 | 1 << 8 | 7 << 16),
            ("NULL of a wide field", 300, 0, 300 & 127 | 128 | (300 >> 7) << 8),
            ("everything at its end", 16382, VALUES_MAX, 126 | 128 | 127 << 8 | VALUES_MAX << 16),
        ];
        for (what, field, value, raw) in cases {
            let item = Item::new(field, value);
            assert_eq!(item.raw(), raw, "{what}");
            assert_eq!((item.field(), item.value()), (field, value), "{what}");
            assert_eq!(Item::from_raw(raw), Some(item), "{what}");
        }
    }

    #[test]
    fn other_forms_are_refused() {
        let cases = [
            ("wide where narrow would do", 1 | 128 | 3 << 16),
            ("bit 15 set", 128 | 1 << 8 | 1 << 15 | 7 << 16),
            ("narrow with high bits", 5 | 1 << 32),
            ("narrow with a wide value", 5 | 0x0100_0000 << 8),
            ("field 16383", 127 | 128 | 127 << 8 | 1 << 16),
        ];
        for (what, raw) in cases {
            assert_eq!(Item::from_raw(raw), None, "{what}");
        }
    }

    #[test]
    fn uuids_sort_by_their_last_byte_first() {
        let small: Uuid = "ff000000000000000000000000000000".parse().unwrap();
        let large: Uuid = "00000000000000000000000000000001".parse().unwrap();
        assert!(small < large);
        assert_eq!(large.to_string(), "00000000000000000000000000000001");
        for bad in ["", "0", "zz000000000000000000000000000000", "+f000000000000000000000000000000"]
        {
            assert!(bad.parse::<Uuid>().is_err(), "{bad}");
        }
    }
}
