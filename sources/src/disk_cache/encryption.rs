//! Blocks that only the holder of a key can read: AES-256-GCM, a key for each segment.
//!
//! ```text
//!   key of 32 bytes --HKDF-SHA256, salt of the segment--> segment's key
//!   block --AES-256-GCM, random nonce, (object, block) as associated data--> same length + tag
//! ```
//!
//! Nonce and tag stand in the segment's table, so that encrypted blocks lie where plain ones would.
//! A key for each segment keeps the number of random nonces under one key far from where two could
//! meet (NIST SP 800-38D, section 8.3). The primitives are those of `aws-lc-rs`.

use std::{fmt, io, path::Path};

/// The key that a cache is encrypted with.
#[derive(Clone, PartialEq, Eq)]
pub struct CacheKey {
    secret: [u8; 32],
}

impl CacheKey {
    /// A key of 32 bytes, which should be random.
    pub fn new(secret: [u8; 32]) -> CacheKey {
        CacheKey { secret }
    }

    /// A key written as 64 hexadecimal digits.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn from_hex(text: &str) -> io::Result<CacheKey> {
        let wrong = || {
            let text = "a key of the cache is 64 hexadecimal digits, or a file of 32 bytes; \
                        `openssl rand -hex 32` makes one";
            io::Error::new(io::ErrorKind::InvalidInput, text)
        };
        let text = text.trim();
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let mut secret = [0; 32];
        for (byte, digits) in secret.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| wrong())?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| wrong())?;
        }
        Ok(CacheKey { secret })
    }

    /// The key in a file: 32 bytes as they are, or 64 hexadecimal digits.
    ///
    /// # Errors
    /// When the file cannot be read, or holds anything else.
    pub fn from_file(path: &Path) -> io::Result<CacheKey> {
        let named = |error: io::Error| {
            io::Error::new(error.kind(), format!("key file {}: {error}", path.display()))
        };
        let bytes = std::fs::read(path).map_err(named)?;
        if let Ok(secret) = <[u8; 32]>::try_from(&bytes[..]) {
            return Ok(CacheKey { secret });
        }
        CacheKey::from_hex(&String::from_utf8_lossy(&bytes)).map_err(named)
    }

    /// What the headers of segments say about the key: tells keys apart, and nothing about them.
    pub fn id(&self) -> String {
        hex(&self.id_bytes())
    }

    pub(super) fn id_bytes(&self) -> [u8; 8] {
        use sha2::{Digest, Sha256};
        let mut hash = Sha256::new();
        hash.update(b"extmem disk cache key id");
        hash.update(self.secret);
        let hash = hash.finalize();
        let mut id = [0; 8];
        id.copy_from_slice(&hash[..8]);
        id
    }

    pub(super) fn secret(&self) -> &[u8] {
        &self.secret
    }
}

impl fmt::Debug for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CacheKey({})", self.id())
    }
}

/// Bytes as names of files and keys are written.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a sealed block needs besides its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seal {
    pub(super) nonce: [u8; 12],
    pub(super) tag: [u8; 16],
}

#[cfg(feature = "encryption")]
mod cipher {
    use std::io;

    use aws_lc_rs::{
        aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
        hkdf::{HKDF_SHA256, Salt},
        rand,
    };

    use super::{CacheKey, Seal};

    /// The key of one segment.
    pub(crate) struct SegmentKey(LessSafeKey);

    fn failed(what: &str) -> io::Error {
        io::Error::other(format!("cannot {what} with AES-256-GCM"))
    }

    impl SegmentKey {
        pub(crate) fn derive(key: &CacheKey, salt: &[u8; 32]) -> io::Result<SegmentKey> {
            let secret = Salt::new(HKDF_SHA256, salt).extract(&key.secret);
            let okm = secret.expand(&[b"extmem segment"], &AES_256_GCM);
            let okm = okm.map_err(|_| failed("derive a key"))?;
            Ok(SegmentKey(LessSafeKey::new(UnboundKey::from(okm))))
        }

        /// Encrypts in place.
        pub(crate) fn seal(&self, about: &[u8], bytes: &mut [u8]) -> io::Result<Seal> {
            let nonce = random::<12>()?;
            let tag = self.0.seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(about),
                bytes,
            );
            let tag = tag.map_err(|_| failed("encrypt"))?;
            let tag = tag.as_ref().try_into().map_err(|_| failed("encrypt"))?;
            Ok(Seal { nonce, tag })
        }

        /// Decrypts in place. `false` if these are not the bytes that were sealed.
        pub(crate) fn open(&self, about: &[u8], seal: &Seal, bytes: &mut [u8]) -> bool {
            let nonce = Nonce::assume_unique_for_key(seal.nonce);
            self.0.open_in_place_separate_tag(nonce, Aad::from(about), &seal.tag, bytes).is_ok()
        }
    }

    pub(crate) fn random<const N: usize>() -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        rand::fill(&mut bytes).map_err(|_| failed("find random bytes"))?;
        Ok(bytes)
    }
}

#[cfg(not(feature = "encryption"))]
mod cipher {
    use std::io;

    use super::{CacheKey, Seal};

    /// There is none without the feature.
    pub(crate) enum SegmentKey {}

    impl SegmentKey {
        pub(crate) fn derive(_: &CacheKey, _: &[u8; 32]) -> io::Result<SegmentKey> {
            Err(without())
        }

        pub(crate) fn seal(&self, _: &[u8], _: &mut [u8]) -> io::Result<Seal> {
            match *self {}
        }

        pub(crate) fn open(&self, _: &[u8], _: &Seal, _: &mut [u8]) -> bool {
            match *self {}
        }
    }

    pub(crate) fn random<const N: usize>() -> io::Result<[u8; N]> {
        Err(without())
    }

    fn without() -> io::Error {
        io::Error::new(
            io::ErrorKind::Unsupported,
            "the cache is encrypted, and this program was built without the feature `encryption`",
        )
    }
}

pub(super) use cipher::{SegmentKey, random};

#[cfg(all(test, feature = "encryption"))]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_key_and_the_same_place_open_a_block() {
        let key = CacheKey::new([7; 32]);
        let salt = random::<32>().expect("random bytes");
        let segment = SegmentKey::derive(&key, &salt).expect("a key");
        let mut bytes = b"the bytes of a block".to_vec();
        let seal = segment.seal(b"block 3", &mut bytes).expect("sealed");
        assert_ne!(bytes, b"the bytes of a block");
        let try_open = |key: &CacheKey, salt: &[u8; 32], about: &[u8], flip: usize| {
            let mut copy = bytes.clone();
            if flip < copy.len() {
                copy[flip] ^= 1;
            }
            let opened =
                SegmentKey::derive(key, salt).expect("a key").open(about, &seal, &mut copy);
            opened.then_some(copy)
        };
        let far = usize::MAX;
        assert_eq!(
            try_open(&key, &salt, b"block 3", far).as_deref(),
            Some(&b"the bytes of a block"[..])
        );
        assert_eq!(try_open(&key, &salt, b"block 4", far), None);
        assert_eq!(try_open(&key, &salt, b"block 3", 0), None);
        assert_eq!(try_open(&key, &[0; 32], b"block 3", far), None);
        assert_eq!(try_open(&CacheKey::new([8; 32]), &salt, b"block 3", far), None);
    }

    #[test]
    fn keys_as_people_write_them() {
        let hex = "0123456789abcdef".repeat(4);
        let key = CacheKey::from_hex(&format!("{hex}\n")).expect("64 digits");
        assert!(!format!("{key:?}").contains("0123456789abcdef"), "secrets are not shown");
        for text in ["", "0123", &hex[1..], &"g".repeat(64), &"\u{e9}".repeat(32)] {
            assert!(CacheKey::from_hex(text).is_err(), "{text}");
        }
    }
}
