//! A record: a key, and the bytes that belong to it.
//!
//! Both are byte strings without meaning to the store. Together they must fit into a page with room
//! to spare, since a page that holds a single record cannot be split; larger payloads are objects of
//! their own, named by their records (see `blob`).

use std::{fmt, sync::Arc};

use bytes::Bytes;

/// Bytes of the longest key. Keys are copied into every level of an index.
pub const KEY_BYTES_MAX: usize = 1 << 10;
/// Bytes of the longest payload that lies in its page and in the log: a record of this size and its
/// key fit three times into a page of 100 KB.
pub const INLINE_BYTES_MAX: usize = 32 << 10;
/// Bytes of the longest payload that is held in memory as a whole. Larger ones, up to
/// [`BLOB_BYTES_MAX`](crate::BLOB_BYTES_MAX), are written and read in parts.
pub const PAYLOAD_BYTES_MAX: usize = 32 << 20;

/// What names a record within its collection. It never changes; 1 to [`KEY_BYTES_MAX`] bytes, in
/// the order of its bytes.
///
/// Shown with everything but printable ASCII escaped. Clones share the bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<[u8]>);

/// What a record holds besides its key: 0 to [`PAYLOAD_BYTES_MAX`] bytes.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Payload(Arc<[u8]>);

/// A key and its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The name.
    pub key: Key,
    /// The rest.
    pub payload: Payload,
}

/// A key or a payload that the store does not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BoundError {
    /// A key without bytes would sort before every fence.
    #[error("a key has at least 1 byte")]
    EmptyKey,
    /// The key is too long.
    #[error("a key of {0} bytes: at most {KEY_BYTES_MAX} are allowed")]
    LongKey(usize),
    /// The payload is too long.
    #[error(
        "a payload of {0} bytes: at most {PAYLOAD_BYTES_MAX} are held in memory; larger ones are \
         written and read in parts"
    )]
    LongPayload(usize),
    /// In the log there are no such payloads: they are blobs.
    #[error("a payload of {0} bytes in the log: at most {INLINE_BYTES_MAX} are there")]
    LongInline(usize),
}

impl Key {
    /// Takes `bytes` as a key.
    ///
    /// # Errors
    /// When there are none, or more than [`KEY_BYTES_MAX`].
    pub fn new(bytes: impl AsRef<[u8]>) -> Result<Key, BoundError> {
        let bytes = bytes.as_ref();
        match bytes.len() {
            0 => Err(BoundError::EmptyKey),
            len if len > KEY_BYTES_MAX => Err(BoundError::LongKey(len)),
            _ => Ok(Key(bytes.into())),
        }
    }

    /// The bytes: at least one.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Payload {
    /// Takes `bytes` as a payload.
    ///
    /// # Errors
    /// When there are more than [`PAYLOAD_BYTES_MAX`].
    pub fn new(bytes: impl AsRef<[u8]>) -> Result<Payload, BoundError> {
        let bytes = bytes.as_ref();
        match bytes.len() {
            len if len > PAYLOAD_BYTES_MAX => Err(BoundError::LongPayload(len)),
            _ => Ok(Payload(bytes.into())),
        }
    }

    /// The bytes, of which there may be none.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The same, shared.
    pub(crate) fn to_bytes(&self) -> Bytes {
        Bytes::from_owner(self.0.clone())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.escape_ascii(), f)
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.escape_ascii(), f)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({self})")
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_checked_at_the_door() {
        let cases = [
            ("no byte", 0, Err(BoundError::EmptyKey)),
            ("one byte", 1, Ok(())),
            ("as long as may be", KEY_BYTES_MAX, Ok(())),
            ("one too many", KEY_BYTES_MAX + 1, Err(BoundError::LongKey(KEY_BYTES_MAX + 1))),
        ];
        for (what, len, expected) in cases {
            assert_eq!(Key::new(vec![7; len]).map(drop), expected, "{what}");
        }
        assert!(Payload::new([]).is_ok());
        assert!(Payload::new(vec![7; PAYLOAD_BYTES_MAX]).is_ok());
        let long = PAYLOAD_BYTES_MAX + 1;
        assert_eq!(Payload::new(vec![7; long]), Err(BoundError::LongPayload(long)));
    }

    #[test]
    fn keys_sort_as_their_bytes() {
        let mut keys = ["b", "a\u{0}", "a", "\u{ff}"].map(|key| Key::new(key).unwrap());
        keys.sort();
        assert_eq!(keys.map(|key| key.to_string()), ["a", r"a\x00", "b", r"\xc3\xbf"]);
    }
}
