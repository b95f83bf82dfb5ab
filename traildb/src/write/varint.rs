//! Numbers in as few bytes as they need: seven bits a byte, the lowest first, the eighth bit says
//! that more follow. What the writer keeps in memory and in its temporary files is made of these.

/// The most bytes that a number takes.
pub(super) const BYTES_MAX: usize = 10;

/// Appends `number`.
#[inline]
pub(super) fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// The number at `at`, which is moved behind it.
///
/// # Panics
/// When the number does not end in `bytes`: they are our own.
#[inline]
pub(super) fn take(bytes: &[u8], at: &mut usize) -> u64 {
    let first = bytes[*at];
    *at += 1;
    if first < 0x80 {
        return u64::from(first);
    }
    let mut number = u64::from(first & 0x7F);
    let mut shift = 7;
    loop {
        let byte = bytes[*at];
        *at += 1;
        number |= u64::from(byte & 0x7F) << shift;
        if byte < 0x80 {
            return number;
        }
        shift += 7;
    }
}

/// A difference as a number that is small when the difference is, whatever its sign.
#[inline]
pub(super) fn zigzag(difference: u64) -> u64 {
    difference << 1 ^ ((difference as i64) >> 63) as u64
}

/// The difference that [`zigzag`] made `number` of.
#[inline]
pub(super) fn unzigzag(number: u64) -> u64 {
    number >> 1 ^ (number & 1).wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_is_taken() {
        let numbers = [0, 1, 127, 128, 16_383, 16_384, u64::from(u32::MAX), 1 << 63, u64::MAX];
        let mut bytes = Vec::new();
        for number in numbers {
            put(&mut bytes, number);
        }
        let mut at = 0;
        for number in numbers {
            assert_eq!(take(&bytes, &mut at), number);
            assert_eq!(unzigzag(zigzag(number)), number);
            assert_eq!(zigzag(unzigzag(number)), number);
        }
        assert_eq!(at, bytes.len());
        assert_eq!((zigzag(0), zigzag(1u64.wrapping_neg()), zigzag(1)), (0, 1, 2));
    }
}
