//! Framed bytes: a magic, numbers and byte strings, and a checksum over all of it.
//!
//! Every object and message of the store is one frame, and is decoded without trusting it:
//!
//! ```text
//!  0       4         5                         n-4      n
//!  +-------+---------+--- - - - - - - - - - ---+--------+
//!  | magic | version | body                    | CRC32C |
//!  +-------+---------+--- - - - - - - - - - ---+--------+
//! ```
//!
//! Numbers are little-endian. The checksum covers everything before it.

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, checksum};

/// Why bytes are not what they should be. Offsets count from the first byte of the frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// There are too few bytes.
    #[error("the frame ends at byte {have}, where {need} are needed")]
    Truncated {
        /// Bytes there are.
        have: usize,
        /// Bytes needed at least.
        need: usize,
    },
    /// The bytes do not start as they should.
    #[error("bytes 0..4 are {found:02x?}, not {expected:?}")]
    Magic {
        /// What is there.
        found: [u8; 4],
        /// What should be, as text.
        expected: &'static str,
    },
    /// A version from the future. A newer program can read it.
    #[error("byte 4: version {found}, where this program knows version {known}")]
    Version {
        /// What is there.
        found: u8,
        /// The newest that is known.
        known: u8,
    },
    /// The bytes are not those that were written.
    #[error("checksum {stored:08x} is stored and {found:08x} was found: the bytes were damaged")]
    Checksum {
        /// What the frame says.
        stored: u32,
        /// What its bytes give.
        found: u32,
    },
    /// In a database whose objects and messages are sealed: one that does not open.
    #[error("{0}")]
    Unopened(Unopened),
    /// A field that holds what it must not.
    #[error("byte {at}: {what}")]
    Field {
        /// Where the field ends or starts.
        at: usize,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// Why bytes of a database that is encrypted are none of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unopened {
    /// They are not sealed.
    #[error("the bytes are not sealed, in a database where all are: somebody else put them there")]
    Plain,
    /// They are not those that were written.
    #[error("the bytes are sealed, and were damaged")]
    Damaged,
    /// They are whole, and do not open under the key of this number.
    #[error(
        "the bytes do not open under key {0}: they are of another object or database, or another key \
         is given under this number"
    )]
    Key(u32),
    /// They are sealed, where nobody expects that.
    #[error("the bytes are sealed: they are read through their database and its keys alone")]
    Sealed,
}

impl Unopened {
    #[cfg(feature = "encryption")]
    pub(crate) fn to_bytes(self) -> [u8; 5] {
        let (kind, id) = match self {
            Unopened::Plain => (0, 0),
            Unopened::Damaged => (1, 0),
            Unopened::Key(id) => (2, id),
            Unopened::Sealed => (3, 0),
        };
        let [a, b, c, d] = u32::to_le_bytes(id);
        [kind, a, b, c, d]
    }

    /// From what stands behind [`UNOPENED`].
    fn from_bytes(bytes: &[u8]) -> Unopened {
        match bytes {
            [0, ..] => Unopened::Plain,
            [2, a, b, c, d, ..] => Unopened::Key(u32::from_le_bytes([*a, *b, *c, *d])),
            [3, ..] => Unopened::Sealed,
            _ => Unopened::Damaged,
        }
    }
}

/// What bytes start with that did not open, before why, and what they are. No frame starts so.
pub(crate) const UNOPENED: &[u8; 4] = b"s3dX";
/// What sealed bytes start with.
pub(crate) const SEALED: &str = "s3dE";

/// What it means that bytes do not start as they should.
pub(crate) fn magic_error(bytes: &[u8], found: [u8; 4], expected: &'static str) -> FrameError {
    match &found {
        UNOPENED => FrameError::Unopened(Unopened::from_bytes(&bytes[4..])),
        found if *found == SEALED.as_bytes() => FrameError::Unopened(Unopened::Sealed),
        _ => FrameError::Magic { found, expected },
    }
}

/// Whether a number can be a time in microseconds or a count. Those beyond are nobody's, and there
/// is room to add to those that are.
pub(crate) fn is_number(number: u64) -> bool {
    i64::try_from(number).is_ok()
}

pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    // 32 bits of checksum in a 64-bit answer.
    checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// Builds a frame.
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    pub(crate) fn new(magic: &'static str, version: u8) -> Writer {
        Writer::with_room(magic, version, 256)
    }

    /// With room for a frame of `len` bytes.
    pub(crate) fn with_room(magic: &'static str, version: u8, len: usize) -> Writer {
        let mut bytes = Vec::with_capacity(len);
        bytes.extend_from_slice(magic.as_bytes());
        bytes.push(version);
        Writer(bytes)
    }

    pub(crate) fn u8(&mut self, number: u8) {
        self.0.push(number);
    }

    pub(crate) fn u16(&mut self, number: u16) {
        self.raw(&number.to_le_bytes());
    }

    pub(crate) fn u32(&mut self, number: u32) {
        self.raw(&number.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, number: u64) {
        self.raw(&number.to_le_bytes());
    }

    pub(crate) fn u128(&mut self, number: u128) {
        self.raw(&number.to_le_bytes());
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// A byte string of up to 65,535 bytes after its length.
    pub(crate) fn short(&mut self, bytes: &[u8]) {
        self.u16(u16::try_from(bytes.len()).expect("checked when the bytes were taken"));
        self.raw(bytes);
    }

    /// A byte string of up to 4 GiB after its length.
    pub(crate) fn long(&mut self, bytes: &[u8]) {
        self.u32(u32::try_from(bytes.len()).expect("checked when the bytes were taken"));
        self.raw(bytes);
    }

    /// What is written.
    #[cfg(feature = "encryption")]
    pub(crate) fn so_far(&self) -> &[u8] {
        &self.0
    }

    /// The same, to be changed.
    #[cfg(feature = "encryption")]
    pub(crate) fn so_far_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    pub(crate) fn finish(mut self) -> Bytes {
        let sum = crc32c(&self.0);
        self.u32(sum);
        self.0.into()
    }
}

/// Reads a frame whose checksum held. Byte strings share the frame's memory.
pub(crate) struct Reader {
    frame: Bytes,
    at: usize,
    end: usize,
}

impl Reader {
    pub(crate) fn new(
        frame: &Bytes,
        magic: &'static str,
        version: u8,
    ) -> Result<Reader, FrameError> {
        let have = frame.len();
        let Some(&found) = frame.first_chunk::<4>() else {
            return Err(FrameError::Truncated { have, need: 9 });
        };
        if found != magic.as_bytes() {
            return Err(magic_error(frame, found, magic));
        }
        if have < 9 {
            return Err(FrameError::Truncated { have, need: 9 });
        }
        if frame[4] != version {
            return Err(FrameError::Version { found: frame[4], known: version });
        }
        let end = have - 4;
        let stored = u32::from_le_bytes([0, 1, 2, 3].map(|n| frame[end + n]));
        let found = crc32c(&frame[..end]);
        if stored != found {
            return Err(FrameError::Checksum { stored, found });
        }
        Ok(Reader { frame: frame.clone(), at: 5, end })
    }

    /// The same of any version up to `newest`. Returns which one it is.
    pub(crate) fn up_to(
        frame: &Bytes,
        magic: &'static str,
        newest: u8,
    ) -> Result<(Reader, u8), FrameError> {
        let version = frame.get(4).copied().filter(|found| (1..=newest).contains(found));
        let version = version.unwrap_or(newest);
        Ok((Reader::new(frame, magic, version)?, version))
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let mut array = [0; N];
        array.copy_from_slice(&self.raw(N)?);
        Ok(array)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, FrameError> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16, FrameError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, FrameError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, FrameError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(crate) fn u128(&mut self) -> Result<u128, FrameError> {
        Ok(u128::from_le_bytes(self.array()?))
    }

    pub(crate) fn raw(&mut self, len: usize) -> Result<Bytes, FrameError> {
        if len > self.end - self.at {
            let need = self.at.saturating_add(len).saturating_add(4);
            return Err(FrameError::Truncated { have: self.frame.len(), need });
        }
        let bytes = self.frame.slice(self.at..self.at + len);
        self.at += len;
        Ok(bytes)
    }

    pub(crate) fn short(&mut self) -> Result<Bytes, FrameError> {
        let len = self.u16()?;
        self.raw(usize::from(len))
    }

    pub(crate) fn long(&mut self) -> Result<Bytes, FrameError> {
        let len = self.u32()?;
        self.raw(len as usize)
    }

    /// The rest of the body, which stays to be read.
    pub(crate) fn peek(&self) -> Bytes {
        self.frame.slice(self.at..self.end)
    }

    /// Bytes left of the body.
    pub(crate) fn rest(&self) -> usize {
        self.end - self.at
    }

    pub(crate) fn field(&self, what: &'static str) -> FrameError {
        FrameError::Field { at: self.at, what }
    }

    /// The body must be used up.
    pub(crate) fn done(self) -> Result<(), FrameError> {
        if self.rest() > 0 { Err(self.field("bytes that belong to nothing")) } else { Ok(()) }
    }
}
