//! The bytes of a sealed frame, for those who hold no key: which key opens it, and what is in it, sealed.
//!
//! | bytes | field of a frame of magic `s3dE`, version 1 |
//! | --- | --- |
//! | 4 | number of the key, from 1 on |
//! | 32 | salt |
//! | rest | ciphertext, and a tag of 16 |

use bytes::Bytes;

use crate::frame::{FrameError, Reader, SEALED, Writer};

const VERSION: u8 = 1;
pub(crate) const SALT_BYTES: usize = 32;
pub(crate) const TAG_BYTES: usize = 16;

/// An object or a message of a database that is encrypted, as it lies there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedFrame {
    /// The number of the key that opens it.
    pub key: u32,
    /// Random in each frame: of this and the key comes the key of the frame.
    pub salt: [u8; SALT_BYTES],
    /// Ciphertext, and a tag of 16 bytes.
    pub sealed: Bytes,
}

impl SealedFrame {
    /// What a frame begins with: a writer goes on behind that.
    pub(crate) fn head(key: u32, salt: &[u8; SALT_BYTES], room: usize) -> Writer {
        let mut to = Writer::with_room(SEALED, VERSION, room);
        to.u32(key);
        to.raw(salt);
        to
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut to = SealedFrame::head(self.key, &self.salt, self.sealed.len() + 64);
        to.raw(&self.sealed);
        to.finish()
    }

    pub(crate) fn decode(frame: &Bytes) -> Result<SealedFrame, FrameError> {
        let mut from = Reader::new(frame, SEALED, VERSION)?;
        let (key, salt, rest) = (from.u32()?, from.array()?, from.rest());
        if key == 0 || rest < TAG_BYTES {
            return Err(from.field("no number of a key, or shorter than its tag"));
        }
        Ok(SealedFrame { key, salt, sealed: from.raw(rest)? })
    }
}
