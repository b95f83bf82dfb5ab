//! Which object a folder of the cache belongs to: for people, never for reading.
//!
//! JSON, or with encryption the same sealed: `extmmeta`, key id 8, salt 32, nonce 12, tag 16, bytes.

use std::io;

use pager::{Strength, Version};
use serde::{Deserialize, Serialize};

use super::encryption::{CacheKey, Seal, SegmentKey, random};

const MAGIC: &[u8; 8] = b"extmmeta";
const HEAD_BYTES: usize = 8 + 8 + 32 + 12 + 16;
/// Names and versions are short; a file that claims more is none of ours.
const META_BYTES_MAX: usize = 64 << 10;

/// What an object is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Meta {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) strong: bool,
    pub(super) len: u64,
}

/// A `meta` that was read.
pub(super) enum Found {
    Plain(Meta),
    /// By another key than the one given, or by one where none was given.
    Sealed {
        key_id: [u8; 8],
    },
    Damaged,
}

impl Meta {
    pub(super) fn of(name: &str, version: &Version, len: u64) -> Meta {
        Meta {
            name: name.to_owned(),
            version: version.token().to_owned(),
            strong: version.strength() == Strength::Strong,
            len,
        }
    }

    pub(super) fn encode(&self, key: Option<&CacheKey>) -> io::Result<Vec<u8>> {
        let mut text = serde_json::to_vec(self).map_err(io::Error::other)?;
        let Some(key) = key else { return Ok(text) };
        let salt = random::<32>()?;
        let seal = SegmentKey::derive(key, &salt)?.seal(MAGIC, &mut text)?;
        let parts: [&[u8]; 6] = [MAGIC, &key.id_bytes(), &salt, &seal.nonce, &seal.tag, &text];
        Ok(parts.concat())
    }

    pub(super) fn decode(bytes: &[u8], key: Option<&CacheKey>) -> Found {
        if bytes.len() > META_BYTES_MAX {
            return Found::Damaged;
        }
        if !bytes.starts_with(MAGIC) {
            return serde_json::from_slice(bytes).map_or(Found::Damaged, Found::Plain);
        }
        let Some((head, rest)) = bytes.split_at_checked(HEAD_BYTES) else {
            return Found::Damaged;
        };
        let key_id: [u8; 8] = head[8..16].try_into().expect("8 bytes");
        let Some(key) = key.filter(|key| key.id_bytes() == key_id) else {
            return Found::Sealed { key_id };
        };
        let salt: [u8; 32] = head[16..48].try_into().expect("32 bytes");
        let seal = Seal {
            nonce: head[48..60].try_into().expect("12 bytes"),
            tag: head[60..76].try_into().expect("16 bytes"),
        };
        let mut text = rest.to_vec();
        let opened =
            SegmentKey::derive(key, &salt).is_ok_and(|key| key.open(MAGIC, &seal, &mut text));
        match opened {
            true => serde_json::from_slice(&text).map_or(Found::Damaged, Found::Plain),
            false => Found::Damaged,
        }
    }
}
