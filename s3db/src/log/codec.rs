//! The bytes of a log record.
//!
//! ```text
//!  0      4      5      6          8             12       20        28          36
//!  +------+------+------+----------+-------------+--------+---------+-----------+- - -+- - - -+-----+
//!  | s3dL | vers | kind | key len  | payload len | clock  | client  | sequence  | key | pay-  | CRC |
//!  |      |      |  u8  |   u16    |     u32     |  u64   |  u64    |   u64     |     | load  | 32C |
//!  +------+------+------+----------+-------------+--------+---------+-----------+- - -+- - - -+-----+
//! ```
//!
//! In version 1 the kind is 1 insert, 2 delete or 3 update; in version 2 it is 4: the record has the
//! blob that the payload names (see `blob`). Whoever knows version 1 alone refuses that.
//!
//! Numbers are little-endian. The checksum is CRC-32C of every byte before it. It finds every
//! single flipped bit and every burst up to 32 bits; it is no defence against an enemy.

use crate::{
    blob::Blob,
    frame::crc32c,
    log::{Change, LogRecord},
    record::{BoundError, INLINE_BYTES_MAX, KEY_BYTES_MAX, Key, Payload},
    stamp::Stamp,
};

const MAGIC: [u8; 4] = *b"s3dL";
const VERSION: u8 = 1;
/// Of records that name blobs.
const BLOB_VERSION: u8 = 2;
const INSERT: u8 = 1;
const DELETE: u8 = 2;
const UPDATE: u8 = 3;
const BLOB: u8 = 4;
const HEAD_BYTES: usize = 36;
const CHECKSUM_BYTES: usize = 4;

/// Bytes of the shortest log record: a key of one byte and no payload.
pub const FRAME_BYTES_MIN: usize = HEAD_BYTES + 1 + CHECKSUM_BYTES;
/// Bytes of the longest log record. A decoder needs no more at once.
pub const FRAME_BYTES_MAX: usize = HEAD_BYTES + KEY_BYTES_MAX + INLINE_BYTES_MAX + CHECKSUM_BYTES;

// The lengths must hold what the bounds allow.
const _: () = assert!(KEY_BYTES_MAX <= u16::MAX as usize);
const _: () = assert!(INLINE_BYTES_MAX <= u32::MAX as usize);

/// Why bytes are no log record. Offsets count from the record's first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// There are too few bytes. More of them may make a record.
    #[error("the record ends after {have} of {need} bytes")]
    Truncated {
        /// Bytes there are.
        have: usize,
        /// Bytes needed at least, as far as is known.
        need: usize,
    },
    /// The bytes do not start as a log record does.
    #[error("bytes 0..4 are {0:02x?}, not the start of a log record")]
    Magic([u8; 4]),
    /// A version from the future. A newer program can read it.
    #[error("byte 4: version {0}, where this program knows versions up to {BLOB_VERSION}")]
    Version(u8),
    /// No known kind of change.
    #[error("byte 5: {0} is no kind of change")]
    Kind(u8),
    /// No name of a blob.
    #[error("the record names no blob")]
    Blob,
    /// A length that no record has.
    #[error("bytes 6..12: {0}")]
    Bound(#[from] BoundError),
    /// The bytes are not those that were written.
    #[error("checksum {stored:08x} is stored and {found:08x} was found: the bytes were damaged")]
    Checksum {
        /// What the record says.
        stored: u32,
        /// What its bytes give.
        found: u32,
    },
}

impl LogRecord {
    /// Appends the record's bytes to `out` and returns how many there are. A payload of more than
    /// [`INLINE_BYTES_MAX`] has no place in the log: nobody decodes what this makes of it.
    pub fn encode(&self, out: &mut Vec<u8>) -> usize {
        let begin = out.len();
        let key = self.change.key().as_bytes();
        let named;
        let (version, kind, payload) = match &self.change {
            Change::Insert(_, payload) => (VERSION, INSERT, payload.as_bytes()),
            Change::Delete(_, payload) => (VERSION, DELETE, payload.as_bytes()),
            Change::Update(_, payload) => (VERSION, UPDATE, payload.as_bytes()),
            Change::Blob(_, blob) => {
                named = blob.to_bytes();
                (BLOB_VERSION, BLOB, &named[..])
            }
        };
        out.reserve(HEAD_BYTES + key.len() + payload.len() + CHECKSUM_BYTES);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[version, kind]);
        // Both lengths were checked when the key and the payload were made.
        out.extend_from_slice(&(key.len() as u16).to_le_bytes());
        out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        for number in [self.stamp.clock, self.stamp.client, self.stamp.sequence] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(key);
        out.extend_from_slice(payload);
        let sum = crc32c(&out[begin..]);
        out.extend_from_slice(&sum.to_le_bytes());
        out.len() - begin
    }

    /// The record's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.encode(&mut bytes);
        bytes
    }

    /// Decodes the record at the start of `bytes`, and says how many bytes it has.
    ///
    /// Nothing is believed before it is checked, and nothing is allocated before the checksum held.
    ///
    /// # Errors
    /// See [`DecodeError`]. Only [`DecodeError::Truncated`] can be mended by more bytes.
    pub fn decode(bytes: &[u8]) -> Result<(LogRecord, usize), DecodeError> {
        let truncated = |need| DecodeError::Truncated { have: bytes.len(), need };
        // What is there of the magic already tells a foreign file from a short one.
        if !MAGIC.starts_with(&bytes[..bytes.len().min(MAGIC.len())]) {
            let mut magic = [0; 4];
            for (to, from) in magic.iter_mut().zip(bytes) {
                *to = *from;
            }
            return Err(DecodeError::Magic(magic));
        }
        let version = bytes.get(4).copied().unwrap_or(VERSION);
        if !(VERSION..=BLOB_VERSION).contains(&version) {
            return Err(DecodeError::Version(version));
        }
        let head: &[u8; HEAD_BYTES] =
            bytes.first_chunk().ok_or_else(|| truncated(FRAME_BYTES_MIN))?;
        let kind = head[5];
        let key_len = usize::from(u16::from_le_bytes([head[6], head[7]]));
        let payload_len = u32::from_le_bytes([head[8], head[9], head[10], head[11]]) as usize;
        match key_len {
            0 => return Err(BoundError::EmptyKey.into()),
            len if len > KEY_BYTES_MAX => return Err(BoundError::LongKey(len).into()),
            _ => {}
        }
        if payload_len > INLINE_BYTES_MAX {
            return Err(BoundError::LongInline(payload_len).into());
        }
        let body = HEAD_BYTES + key_len + payload_len;
        let (summed, rest) = bytes.split_at_checked(body).ok_or_else(|| truncated(body + 4))?;
        let stored = rest.first_chunk().ok_or_else(|| truncated(body + 4))?;
        let (stored, found) = (u32::from_le_bytes(*stored), crc32c(summed));
        if stored != found {
            return Err(DecodeError::Checksum { stored, found });
        }

        let number = |at: usize| {
            let mut number = [0; 8];
            number.copy_from_slice(&head[at..at + 8]);
            u64::from_le_bytes(number)
        };
        let stamp = Stamp { clock: number(12), client: number(20), sequence: number(28) };
        let key = Key::new(&summed[HEAD_BYTES..HEAD_BYTES + key_len])?;
        let payload = Payload::new(&summed[HEAD_BYTES + key_len..])?;
        let change = match (version, kind) {
            (VERSION, INSERT) => Change::Insert(key, payload),
            (VERSION, DELETE) => Change::Delete(key, payload),
            (VERSION, UPDATE) => Change::Update(key, payload),
            (BLOB_VERSION, BLOB) => {
                Change::Blob(key, Blob::from_slice(payload.as_bytes()).ok_or(DecodeError::Blob)?)
            }
            _ => return Err(DecodeError::Kind(kind)),
        };
        Ok((LogRecord { stamp, change }, body + CHECKSUM_BYTES))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_crc32c() {
        // The check value of the CRC catalogue, and RFC 3720, B.4: 32 bytes of zeros.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }
}
