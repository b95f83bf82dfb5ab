//! The arithmetic between offsets in an object and the units of a region.
//!
//! ```text
//!   object   0 ........ 64 Ki ........ 128 Ki ........ 192 Ki .. len
//!   units    |    0    |      1       |      2        |    3     |      (unit = 64 KiB)
//! ```
//!
//! A *unit* is what is resident or not, installed and discarded whole. The *extent* of one request
//! is a different number: see [`crate::policy::prefetch`].

use std::ops::Range;

/// Smallest unit: one page of every kernel that the pager runs on.
pub const UNIT_BYTES_MIN: u64 = 4 << 10;
/// Largest unit: one huge page, which one page-table page describes.
pub const UNIT_BYTES_MAX: u64 = 2 << 20;
/// What one page-table page describes. The pager drops tables of empty spans.
pub const SPAN_BYTES: u64 = 2 << 20;

/// The longest object: what a process can address, on the machines that the pager runs on. Within
/// it no sum of offsets and units wraps.
pub const OBJECT_BYTES_MAX: u64 = 1 << 47;

/// A position in an object, in bytes from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteOffset(pub u64);

/// The n-th unit of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitIndex(pub u64);

/// How a region divides its object. The only place where offsets and units meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    object_len: u64,
    /// log2 of the unit in bytes: 12 (4 KiB) to 21 (2 MiB).
    unit_shift: u32,
}

impl Geometry {
    /// Divides `object_len` bytes into units of `1 << unit_shift` bytes; the last may be partial.
    ///
    /// # Panics
    /// When `unit_shift` is not from 12 to 21: a plan has checked it. When `object_len` is above
    /// [`OBJECT_BYTES_MAX`]: no region is opened over a longer object.
    pub fn new(object_len: u64, unit_shift: u32) -> Geometry {
        assert!(object_len <= OBJECT_BYTES_MAX, "{object_len} bytes have no place in memory");
        assert!((12..=21).contains(&unit_shift), "unit_shift {unit_shift} was checked by the plan");
        Geometry { object_len, unit_shift }
    }

    /// Length of the object in bytes.
    pub fn object_len(self) -> u64 {
        self.object_len
    }

    /// Bytes of one unit.
    pub fn unit_bytes(self) -> u64 {
        1 << self.unit_shift
    }

    /// Number of units, the partial last one included.
    pub fn units(self) -> u64 {
        self.object_len.div_ceil(self.unit_bytes())
    }

    /// Bytes of address space that hold all units whole.
    pub fn mapped_len(self) -> u64 {
        self.units() << self.unit_shift
    }

    /// The unit that holds `at`, or `None` past the end of the object.
    pub fn unit_of(self, at: ByteOffset) -> Option<UnitIndex> {
        (at.0 < self.object_len).then(|| UnitIndex(at.0 >> self.unit_shift))
    }

    /// Where `unit` starts.
    pub fn start_of(self, unit: UnitIndex) -> ByteOffset {
        ByteOffset(unit.0 << self.unit_shift)
    }

    /// Bytes of the object in `unit`: a whole unit, or what is left at the end.
    pub fn len_of(self, unit: UnitIndex) -> u64 {
        self.object_len.saturating_sub(self.start_of(unit).0).min(self.unit_bytes())
    }

    /// The units that the bytes `range` touch. Empty for an empty range.
    pub fn units_of(self, range: &Range<u64>) -> Range<u64> {
        if range.start >= range.end {
            return 0..0;
        }
        range.start >> self.unit_shift..((range.end - 1) >> self.unit_shift) + 1
    }

    /// The bytes of the object that `units` hold.
    pub fn bytes_of(self, units: &Range<u64>) -> Range<u64> {
        let end = (units.end << self.unit_shift).min(self.object_len);
        (units.start << self.unit_shift).min(end)..end
    }

    /// The page-table span that holds `unit`.
    pub fn span_of(self, unit: UnitIndex) -> u64 {
        self.start_of(unit).0 / SPAN_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unit_of_at_every_edge() {
        // Two whole 4 KiB units, and a third that holds a single byte.
        let geometry = Geometry::new(8193, 12);
        let cases = [
            ("last byte of unit 0", 4095, Some(0)),
            ("first byte of unit 1", 4096, Some(1)),
            ("the lone byte of unit 2", 8192, Some(2)),
            ("one past the end", 8193, None),
            ("far past the end", u64::MAX, None),
        ];
        for (what, offset, expected) in cases {
            let got = geometry.unit_of(ByteOffset(offset));
            assert_eq!(got, expected.map(UnitIndex), "{what}: offset {offset}");
        }
        assert_eq!((geometry.units(), geometry.mapped_len()), (3, 12288));
        assert_eq!(geometry.len_of(UnitIndex(2)), 1);
    }

    #[test]
    fn nothing_wraps_at_the_longest_object() {
        for shift in 12..=21 {
            for len in [OBJECT_BYTES_MAX - 1, OBJECT_BYTES_MAX] {
                let geometry = Geometry::new(len, shift);
                assert_eq!(geometry.mapped_len(), OBJECT_BYTES_MAX);
                assert_eq!(geometry.bytes_of(&(0..geometry.units())), 0..len);
                assert_eq!(geometry.units_of(&(0..len)), 0..geometry.units());
            }
            let longer = std::panic::catch_unwind(|| Geometry::new(OBJECT_BYTES_MAX + 1, shift));
            assert!(longer.is_err(), "shift {shift}");
        }
    }

    #[test]
    fn ranges_of_units_and_bytes() {
        let geometry = Geometry::new(10_000, 12);
        let cases = [
            ("nothing", 5..5, 0..0),
            ("inside one unit", 5..6, 0..1),
            ("up to an edge", 0..4096, 0..1),
            ("over an edge", 4095..4097, 0..2),
            ("the whole object", 0..10_000, 0..3),
        ];
        for (what, bytes, units) in cases {
            assert_eq!(geometry.units_of(&bytes), units, "{what}");
        }
        assert_eq!(geometry.bytes_of(&(1..3)), 4096..10_000);
        assert_eq!(geometry.bytes_of(&(0..1)), 0..4096);
    }
}
