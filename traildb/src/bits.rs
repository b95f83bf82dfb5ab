//! The only place that shifts: bit streams, least significant bit first (FORMAT.md T3).
//!
//! ```text
//!   byte      0          1          2
//!   bit    76543210   76543210   76543210
//!   stream 7......0  15......8  23.....16     bit j of the stream is bit j % 8 of byte j / 8
//! ```

/// Number of binary digits of `x`, at least 1 (FORMAT.md N1).
pub(crate) fn width(x: u64) -> u32 {
    64 - (x | 1).leading_zeros()
}

/// So many bits of a [`peek`] are good.
pub(crate) const PEEK_BITS: u32 = 57;

/// The bits of `bytes` from bit `at` on: at least 57 of them are good, the rest are zero.
///
/// # Panics
/// When fewer than 8 bytes start at byte `at / 8`: windows carry a guard.
#[inline(always)]
pub(crate) fn peek(bytes: &[u8], at: u64) -> u64 {
    let byte = (at >> 3) as usize;
    let word: [u8; 8] = bytes[byte..byte + 8].try_into().expect("eight bytes were sliced");
    u64::from_le_bytes(word) >> (at & 7)
}

/// The lowest `n` bits of `word`; `n` is at most 63.
#[inline(always)]
pub(crate) fn low(word: u64, n: u32) -> u64 {
    word & ((1u64 << n) - 1)
}

/// Collects bits into bytes, least significant bit first.
#[derive(Debug, Default)]
pub(crate) struct BitWriter {
    bytes: Vec<u8>,
    /// Bits that do not fill a word yet, in the low end.
    pending: u64,
    /// Fewer than 64.
    pending_bits: u32,
}

impl BitWriter {
    /// Appends the low `n` bits of `value`; `n` is at most 63 and `value` has no higher bits.
    #[inline]
    pub(crate) fn put(&mut self, value: u64, n: u32) {
        debug_assert!(n < 64 && value >> n == 0);
        self.pending |= value << self.pending_bits;
        let bits = self.pending_bits + n;
        if bits < 64 {
            self.pending_bits = bits;
            return;
        }
        self.bytes.extend_from_slice(&self.pending.to_le_bytes());
        // What did not fit is the top of the value. Here n > 0, and some bits did fit: the shift is
        // of 1 to 63.
        self.pending = value >> (64 - self.pending_bits);
        self.pending_bits = bits - 64;
    }

    /// Fills the last byte with zeros. Returns how many bits that took, 0 to 7.
    pub(crate) fn align(&mut self) -> u32 {
        let bytes = self.pending_bits.div_ceil(8);
        let unused = bytes * 8 - self.pending_bits;
        self.bytes.extend_from_slice(&self.pending.to_le_bytes()[..bytes as usize]);
        (self.pending, self.pending_bits) = (0, 0);
        unused
    }

    /// Number of whole bytes that can be taken or patched so far.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Sets bits in a byte that is already complete.
    pub(crate) fn patch(&mut self, byte: usize, bits: u8) {
        self.bytes[byte] |= bits;
    }

    /// The whole bytes so far.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Forgets the whole bytes, which have been taken.
    pub(crate) fn clear_bytes(&mut self) {
        self.bytes.clear();
    }

    /// The bytes collected. Call [`align`](BitWriter::align) first.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        debug_assert_eq!(self.pending_bits, 0);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn width_of_every_edge() {
        let cases = [(0, 1), (1, 1), (2, 2), (3, 2), (4, 3), (255, 8), (256, 9), (u64::MAX, 64)];
        for (x, bits) in cases {
            assert_eq!(width(x), bits, "bits({x})");
        }
    }

    #[test]
    fn what_is_put_is_peeked() {
        let parts: [(u64, u32); 10] = [
            (1, 1),
            (0, 3),
            (0x1234, 16),
            (0, 0),
            ((1 << 47) - 2, 47),
            (1 << 55, 56),
            (5, 3),
            // Ends at bit 128, then starts a word, then ends one bit before its end.
            (1, 2),
            ((1 << 57) - 1, 57),
            (33, 6),
        ];
        let mut writer = BitWriter::default();
        for (value, n) in parts {
            writer.put(value, n);
        }
        let total: u32 = parts.iter().map(|p| p.1).sum();
        assert_eq!(writer.align(), (8 - total % 8) % 8);
        let mut bytes = writer.into_bytes();
        bytes.extend([0; 8]);
        let mut at = 0;
        for (value, n) in parts {
            assert_eq!(low(peek(&bytes, at), n), value, "{n} bits at {at}");
            at += u64::from(n);
        }
    }
}
