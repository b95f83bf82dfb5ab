//! The names of a blob's objects. Bills tell them from others by these.

use crate::{names::BLOBS, stamp::Stamp};

/// Parts of one blob.
pub(crate) const PARTS_MAX: u64 = 1 << 20;

/// The name of a part's object.
pub(crate) fn object(stamp: Stamp, part: u32) -> String {
    let Stamp { clock, client, sequence } = stamp;
    format!("{BLOBS}{client:016x}/{clock:016x}-{sequence:016x}/{part:08x}")
}

/// The name of what says that nobody names a blob, since the object store's clock was this.
pub(crate) fn mark(stamp: Stamp, since_ms: u64) -> String {
    let Stamp { clock, client, sequence } = stamp;
    format!("{BLOBS}{client:016x}/{clock:016x}-{sequence:016x}/{UNNAMED}{since_ms:016x}")
}

const UNNAMED: &str = "unnamed-";

/// What the name of an object says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    /// The part of this number.
    Part(u32),
    /// Nobody names the blob, since then: milliseconds since 1970.
    Unnamed(u64),
}

/// The stamp of the blob whose object has this name, and what it says.
pub(crate) fn parse(name: &str) -> Option<(Stamp, Name)> {
    let number = |digits: &str| u64::from_str_radix(digits, 16).ok();
    let mut words = name.strip_prefix(BLOBS)?.splitn(3, '/');
    let client = number(words.next()?)?;
    let (clock, sequence) = words.next()?.split_once('-')?;
    let stamp = Stamp { clock: number(clock)?, client, sequence: number(sequence)? };
    let last = words.next()?;
    let (again, what) = match last.strip_prefix(UNNAMED) {
        Some(since) => {
            let since_ms = number(since)?;
            (mark(stamp, since_ms), Name::Unnamed(since_ms))
        }
        None => {
            let part =
                u32::try_from(number(last)?).ok().filter(|part| u64::from(*part) < PARTS_MAX)?;
            (object(stamp, part), Name::Part(part))
        }
    };
    // Written as it is here, and not with a sign or in capitals: it is found by its name.
    (again == name).then_some((stamp, what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_in_one_way() {
        let stamp = Stamp { clock: 1_763_690_400_000_000, client: 0xfeed, sequence: 3 };
        let part = object(stamp, 2);
        assert_eq!(parse(&part), Some((stamp, Name::Part(2))));
        let since = mark(stamp, 1_763_690_400_123);
        assert_eq!(parse(&since), Some((stamp, Name::Unnamed(1_763_690_400_123))));
        for other in [
            part.to_uppercase().replace("BLOB", "blob"),
            part.replace("/0000000000", "/+000000000"),
            format!("{part}/x"),
            // More parts than there are.
            object(stamp, PARTS_MAX as u32),
            since.replace("unnamed-0", "unnamed-+"),
            since.replace("unnamed-", "Unnamed-"),
            "blob/".to_owned(),
        ] {
            assert_eq!(parse(&other), None, "{other}");
        }
    }
}
