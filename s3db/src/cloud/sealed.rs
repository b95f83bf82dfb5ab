//! Objects and messages that only holders of a key can read: AES-256-GCM, a key for each of them.
//!
//! ```text
//!   protocol code --> Sealed --> Metered --> S3, SQS, a directory
//!                       |
//!   key of 32 bytes --HKDF-SHA256, a random salt, the database's id--> key of this frame
//!   body --AES-256-GCM, header and name as associated data--> ciphertext and tag
//!
//!    0      4         5        9      41                    n-20   n-4      n
//!    +------+---------+--------+------+--- - - - - - - - ---+-----+--------+
//!    | s3dE | version | key id | salt | ciphertext          | tag | CRC32C |
//!    +------+---------+--------+------+--- - - - - - - - ---+-----+--------+
//! ```
//!
//! Every frame has a key of its own, so that its nonce may be zero and no number of frames brings two
//! of them together (NIST SP 800-38D, section 8.3, bounds those under one key). The database's id is in
//! the key and the name of the object or queue in the associated data: a frame opens in its own
//! database and under its own name, nowhere else. An *older* frame of the same name opens, too: whoever
//! can write to the bucket can put back what was there before, and can delete.
//!
//! What stays in the clear: names of objects, and with them of collections; sizes; times; numbers of
//! keys; groups of FIFO queues, which are names of pages; and the object `database`, which says that all
//! others are sealed. The primitives are those of `aws-lc-rs`.

use std::{fmt, path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    error::Unspecified,
    hkdf::{HKDF_SHA256, Salt},
    rand,
};
use bytes::Bytes;

use crate::{
    cloud::{
        Cloud, Delete, ETag, Fault, Get, Listing, Message, Objects, Put, PutIf, Queue,
        QueueSettings, Receipt, Sent, ToSend,
        sealed_frame::{SALT_BYTES, SealedFrame, TAG_BYTES},
    },
    error::StoreError,
    frame::{FrameError, UNOPENED, Unopened},
    names::{APPROVED, DATABASE, LOG, SPILLED},
};

/// Magic, version, key id and salt.
const HEAD_BYTES: usize = 5 + 4 + SALT_BYTES;
/// Bytes by which a sealed frame is longer than what is in it.
pub const SEAL_BYTES: usize = HEAD_BYTES + TAG_BYTES + 4;

/// Keys that a keyring can hold.
pub const KEYS_MAX: usize = 64;

/// Keys of 32 bytes, each with a number from 1 on. The first one seals, all of them open.
///
/// Keys are changed by a new one in front and the old ones behind it: see [`Store::rekey`].
///
/// [`Store::rekey`]: crate::Store::rekey
#[derive(Clone, PartialEq, Eq)]
pub struct Keyring(Arc<[(u32, [u8; 32])]>);

impl Keyring {
    /// Keys with their numbers, the one that seals first. They should be random.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] when there is none, or more than [`KEYS_MAX`], when a number is 0, or there
    /// twice.
    pub fn new(keys: &[(u32, [u8; 32])]) -> Result<Keyring, StoreError> {
        let invalid = |why: String| Err(StoreError::Invalid(format!("keys: {why}")));
        if keys.is_empty() || keys.len() > KEYS_MAX {
            return invalid(format!("there are {}, where 1 to {KEYS_MAX} can be", keys.len()));
        }
        for (at, (id, _)) in keys.iter().enumerate() {
            if *id == 0 {
                return invalid("0 is no number of a key".to_owned());
            }
            if keys[..at].iter().any(|(before, _)| before == id) {
                return invalid(format!("number {id} is there twice"));
            }
        }
        Ok(Keyring(keys.into()))
    }

    /// Keys as a file has them: a line `NUMBER HEX` for each, with 64 hexadecimal digits, the one that
    /// seals first. Empty lines and what stands behind a `#` do not count.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] with the line, without what stands there, and as [`Keyring::new`].
    pub fn parse(text: &str) -> Result<Keyring, StoreError> {
        let mut keys = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let mut words = line.split_ascii_whitespace();
            let id = words.next().and_then(|id| id.parse().ok());
            let secret = words.next().and_then(secret);
            let (Some(id), Some(secret), None) = (id, secret, words.next()) else {
                return Err(StoreError::Invalid(format!(
                    "keys: line {}: a number and 64 hexadecimal digits belong here, as in `1 \
                     $(openssl rand -hex 32)`",
                    number + 1
                )));
            };
            keys.push((id, secret));
        }
        Keyring::new(&keys)
    }

    /// The keys in a file: see [`Keyring::parse`].
    ///
    /// # Errors
    /// [`StoreError::Invalid`] when the file cannot be read or has more than 64 KiB, and as
    /// [`Keyring::parse`].
    pub fn from_file(path: &Path) -> Result<Keyring, StoreError> {
        use std::io::Read;
        let invalid = |why: String| StoreError::Invalid(format!("{}: {why}", path.display()));
        let file = std::fs::File::open(path).map_err(|error| invalid(error.to_string()))?;
        let mut text = String::new();
        let read = file.take(1 + (64 << 10)).read_to_string(&mut text);
        read.map_err(|error| invalid(error.to_string()))?;
        if text.len() > 64 << 10 {
            return Err(invalid("a file of keys has at most 64 KiB".to_owned()));
        }
        Keyring::parse(&text).map_err(|error| invalid(error.to_string()))
    }

    /// The number of the key that seals.
    pub fn current(&self) -> u32 {
        self.0[0].0
    }

    /// The numbers of all keys, that of the one that seals first.
    pub fn ids(&self) -> Vec<u32> {
        self.0.iter().map(|(id, _)| *id).collect()
    }

    fn secret(&self, id: u32) -> Option<&[u8; 32]> {
        self.0.iter().find(|(of, _)| *of == id).map(|(_, secret)| secret)
    }
}

/// The numbers alone.
impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyring({:?})", self.ids())
    }
}

fn secret(digits: &str) -> Option<[u8; 32]> {
    let digits: &[u8; 64] = digits.as_bytes().try_into().ok()?;
    let mut secret = [0; 32];
    for (byte, digits) in secret.iter_mut().zip(digits.chunks(2)) {
        let nibble = |digit: u8| char::from(digit).to_digit(16);
        *byte = (nibble(digits[0])? << 4 | nibble(digits[1])?) as u8;
    }
    Some(secret)
}

/// Why a frame did not open.
pub(crate) enum Closed {
    /// It needs a key that nobody gave.
    NoKey(u32),
    /// It is damaged, forged, or not where it belongs.
    Foreign(Unopened),
}

/// Seals and opens the frames of one database.
pub(crate) struct Sealer {
    keys: Keyring,
    database: u128,
}

/// What a name in the associated data is the name of.
#[derive(Clone, Copy)]
pub(crate) enum Of<'a> {
    Object(&'a str),
    Queue(&'a str),
}

impl Of<'_> {
    /// Whether what is there can be committed and on no page yet: whoever finds it damaged puts it aside and
    /// lets go of it.
    fn is_committed(self) -> bool {
        match self {
            Of::Object(name) => [LOG, SPILLED, APPROVED].iter().any(|it| name.starts_with(it)),
            Of::Queue(_) => true,
        }
    }
}

impl Sealer {
    pub(crate) fn new(keys: &Keyring, database: u128) -> Sealer {
        Sealer { keys: keys.clone(), database }
    }

    pub(crate) fn keys(&self) -> &Keyring {
        &self.keys
    }

    fn frame_key(&self, secret: &[u8; 32], salt: &[u8]) -> Result<LessSafeKey, Unspecified> {
        let secret = Salt::new(HKDF_SHA256, salt).extract(secret);
        let database = self.database.to_le_bytes();
        let info = [&b"s3db sealed frame"[..], &database];
        Ok(LessSafeKey::new(UnboundKey::from(secret.expand(&info, &AES_256_GCM)?)))
    }

    /// The header, and where the frame belongs.
    fn about(head: &[u8], of: Of<'_>) -> Aad<Vec<u8>> {
        let (kind, name) = match of {
            Of::Object(name) => ("object ", name),
            Of::Queue(name) => ("queue ", name),
        };
        Aad::from([head, kind.as_bytes(), name.as_bytes()].concat())
    }

    /// A frame that holds `body`.
    pub(crate) fn seal(&self, of: Of<'_>, body: &[u8]) -> Result<Bytes, Unspecified> {
        let mut salt = [0; SALT_BYTES];
        rand::fill(&mut salt)?;
        self.seal_salted(of, body, &salt)
    }

    fn seal_salted(
        &self,
        of: Of<'_>,
        body: &[u8],
        salt: &[u8; SALT_BYTES],
    ) -> Result<Bytes, Unspecified> {
        let (id, secret) = &self.keys.0[0];
        let key = self.frame_key(secret, salt)?;
        let mut to = SealedFrame::head(*id, salt, body.len() + SEAL_BYTES);
        let about = Sealer::about(to.so_far(), of);
        to.raw(body);
        let tag = key.seal_in_place_separate_tag(
            Nonce::assume_unique_for_key([0; 12]),
            about,
            &mut to.so_far_mut()[HEAD_BYTES..],
        )?;
        to.raw(tag.as_ref());
        Ok(to.finish())
    }

    /// Which key a frame was sealed with, if it is one and whole.
    pub(crate) fn key_id(frame: &Bytes) -> Result<u32, FrameError> {
        Ok(SealedFrame::decode(frame)?.key)
    }

    /// What is in a frame.
    pub(crate) fn open(&self, of: Of<'_>, frame: &Bytes) -> Result<Bytes, Closed> {
        let foreign = |why| Closed::Foreign(why);
        let sealed = SealedFrame::decode(frame).map_err(|error| {
            foreign(match error {
                FrameError::Magic { .. } => Unopened::Plain,
                _ => Unopened::Damaged,
            })
        })?;
        let id = sealed.key;
        let secret = self.keys.secret(id).ok_or(Closed::NoKey(id))?;
        let wrong = |_| foreign(Unopened::Key(id));
        let key = self.frame_key(secret, &sealed.salt).map_err(wrong)?;
        let mut body = Vec::from(sealed.sealed);
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        let about = Sealer::about(&frame[..HEAD_BYTES], of);
        let len = key.open_in_place(nonce, about, &mut body).map_err(wrong)?.len();
        body.truncate(len);
        Ok(body.into())
    }

    /// What is said when a key is missing.
    pub(crate) fn no_key(&self, name: &str, id: u32) -> Fault {
        let cause = format!(
            "it is sealed with key {id}, and the keys given are {:?}: add it to them",
            self.keys.ids()
        );
        Fault::Denied { what: name.to_owned(), cause }
    }

    /// What is said when a whole frame does not open with the key of its number.
    fn wrong_key(name: &str, id: u32) -> Fault {
        let cause = format!(
            "it is sealed with key {id}, and does not open with the key {id} that was given: give the one \
             that it was sealed with; or it was put there by somebody else"
        );
        Fault::Denied { what: name.to_owned(), cause }
    }

    /// The same; or a fault, where a key is missing; or, where the frame is nobody's, bytes that no
    /// decoder takes and that say why: what is done about damaged bytes is done about them.
    ///
    /// Of what is let go of when it is damaged, a whole frame that does not open is no damage: with another
    /// key than the right one nothing opens, and all that is committed and on no page would go.
    pub(crate) fn open_or_mark(&self, of: Of<'_>, frame: &Bytes) -> Result<Bytes, Fault> {
        let (Of::Object(name) | Of::Queue(name)) = of;
        match self.open(of, frame) {
            Ok(body) => Ok(body),
            Err(Closed::NoKey(id)) => Err(self.no_key(name, id)),
            Err(Closed::Foreign(Unopened::Key(id))) if of.is_committed() => {
                Err(Sealer::wrong_key(name, id))
            }
            Err(Closed::Foreign(why)) => {
                let mut marked = UNOPENED.to_vec();
                marked.extend(why.to_bytes());
                marked.extend_from_slice(frame);
                Ok(marked.into())
            }
        }
    }
}

fn cannot_seal(name: &str) -> Fault {
    Fault::Invalid { what: name.to_owned(), cause: "AES-256-GCM cannot seal it".to_owned() }
}

/// Objects or queues whose bytes are sealed on their way out and opened on their way in.
pub(crate) struct Sealed<T: ?Sized> {
    pub(crate) inner: Arc<T>,
    pub(crate) sealer: Arc<Sealer>,
}

impl Sealed<dyn Objects> {
    /// `cloud` with everything sealed, and how its objects lie there.
    pub(crate) fn beneath(
        cloud: Cloud,
        keys: &Keyring,
        database: u128,
    ) -> (Cloud, Sealed<dyn Objects>) {
        let sealer = Arc::new(Sealer::new(keys, database));
        let raw = Sealed { inner: cloud.objects.clone(), sealer: sealer.clone() };
        let objects = Sealed { inner: cloud.objects, sealer: sealer.clone() };
        let queue = Sealed { inner: cloud.queue, sealer };
        (Cloud { objects: Arc::new(objects), queue: Arc::new(queue), ..cloud }, raw)
    }
}

/// The same services, where all that is put and sent is sealed for the database of this id, and what is
/// got and received is opened; all but the object `database`, which says that it is so.
///
/// A get of what is sealed with a key that is not among `keys` is [`Fault::Denied`]; a message that is
/// says so itself ([`Message::closed`]), since others come with it. The same is told of a message, of a log
/// object and of an approval that are whole and do not open with the key of their number: they may be
/// committed, and the key wrong. Other bytes that are forged or damaged come as bytes that no decoder takes, and
/// that [`FrameError::Unopened`] tells apart: so they are found as damage is found, and set aside as it is.
pub fn seal(cloud: Cloud, keys: &Keyring, database: u128) -> Cloud {
    Sealed::beneath(cloud, keys, database).0
}

#[async_trait]
impl Objects for Sealed<dyn Objects> {
    async fn get(&self, name: &str, unless: Option<&ETag>) -> Result<Get, Fault> {
        let got = self.inner.get(name, unless).await?;
        match got {
            Get::Found { bytes, etag, date_ms } if name != DATABASE => {
                let bytes = self.sealer.open_or_mark(Of::Object(name), &bytes)?;
                Ok(Get::Found { bytes, etag, date_ms })
            }
            got => Ok(got),
        }
    }

    async fn put(&self, name: &str, bytes: Bytes, condition: PutIf) -> Put {
        if name == DATABASE {
            return self.inner.put(name, bytes, condition).await;
        }
        match self.sealer.seal(Of::Object(name), &bytes) {
            Ok(frame) => self.inner.put(name, frame, condition).await,
            Err(Unspecified) => Put::Failed(cannot_seal(name)),
        }
    }

    async fn delete(&self, name: &str, only: Option<&ETag>) -> Delete {
        self.inner.delete(name, only).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> Result<Listing, Fault> {
        self.inner.list(prefix, after, max).await
    }
}

#[async_trait]
impl Queue for Sealed<dyn Queue> {
    async fn create(&self, queue: &str, settings: QueueSettings) -> Result<(), Fault> {
        self.inner.create(queue, settings).await
    }

    async fn send(&self, queue: &str, batch: &[ToSend]) -> Vec<Sent> {
        let sealed = batch.iter().map(|message| {
            let body = self.sealer.seal(Of::Queue(queue), &message.body)?;
            Ok(ToSend { body, ..message.clone() })
        });
        match sealed.collect::<Result<Vec<_>, Unspecified>>() {
            Ok(sealed) => self.inner.send(queue, &sealed).await,
            Err(Unspecified) => vec![Sent::Failed(cannot_seal(queue)); batch.len()],
        }
    }

    async fn receive(
        &self,
        queue: &str,
        max: usize,
        visibility: Duration,
        wait: Duration,
    ) -> Result<Vec<Message>, Fault> {
        let messages = self.inner.receive(queue, max, visibility, wait).await?;
        // One whose key is missing is in nobody's way: the service hid all of them already.
        let open =
            |message: Message| match self.sealer.open_or_mark(Of::Queue(queue), &message.body) {
                Ok(body) => Message { body, ..message },
                Err(fault) => Message { closed: Some(fault), ..message },
            };
        Ok(messages.into_iter().map(open).collect())
    }

    async fn delete(&self, queue: &str, receipts: &[Receipt]) -> Result<(), Fault> {
        self.inner.delete(queue, receipts).await
    }

    async fn change_visibility(
        &self,
        queue: &str,
        receipt: &Receipt,
        visibility: Duration,
    ) -> Result<(), Fault> {
        self.inner.change_visibility(queue, receipt, visibility).await
    }

    async fn depth(&self, queue: &str) -> Result<u64, Fault> {
        self.inner.depth(queue).await
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sealer(id: u32, byte: u8, database: u128) -> Sealer {
        Sealer { keys: Keyring::new(&[(id, [byte; 32])]).unwrap(), database }
    }

    fn refused(opened: Result<Bytes, Closed>) -> Unopened {
        match opened {
            Err(Closed::Foreign(why)) => why,
            Err(Closed::NoKey(id)) => panic!("no key {id}"),
            Ok(_) => panic!("it opens"),
        }
    }

    /// What version 1 wrote, every later version opens.
    #[test]
    fn frames_of_version_1_still_open() {
        let sealer = sealer(7, 0x42, 0x0123_4567_89ab_cdef);
        let frame = sealer.seal_salted(Of::Object("page/1"), b"a page", &[9; 32]).unwrap();
        let golden = include_str!("../../tests/golden/sealed-v1.txt");
        let golden = golden.lines().find(|line| !line.starts_with('#')).unwrap();
        let hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, golden);
        assert_eq!(frame.len(), 6 + SEAL_BYTES);
        assert_eq!(Sealer::key_id(&frame), Ok(7));
        assert_eq!(sealer.open(Of::Object("page/1"), &frame).ok().unwrap(), "a page");
    }

    #[test]
    fn a_frame_opens_where_it_belongs_and_nowhere_else() {
        let of = sealer(1, 1, 5);
        let frame = of.seal(Of::Object("page/1"), b"body").unwrap();
        assert_ne!(frame, of.seal(Of::Object("page/1"), b"body").unwrap(), "equal bytes differ");
        assert_eq!(refused(of.open(Of::Object("page/2"), &frame)), Unopened::Key(1));
        assert_eq!(refused(of.open(Of::Queue("page/1"), &frame)), Unopened::Key(1));
        assert_eq!(refused(sealer(1, 1, 6).open(Of::Object("page/1"), &frame)), Unopened::Key(1));
        assert_eq!(refused(sealer(1, 2, 5).open(Of::Object("page/1"), &frame)), Unopened::Key(1));
        let other = sealer(2, 1, 5).open(Of::Object("page/1"), &frame);
        assert!(matches!(other, Err(Closed::NoKey(1))));
        // Behind another one it still opens.
        let keys = Keyring::new(&[(2, [2; 32]), (1, [1; 32])]).unwrap();
        let both = Sealer { keys, database: 5 };
        assert_eq!(both.open(Of::Object("page/1"), &frame).ok().unwrap(), "body");
        assert_eq!(refused(of.open(Of::Object("page/1"), &"s3dP plain".into())), Unopened::Plain);
    }

    /// Also where the checksum is made to hold, which is no secret.
    #[test]
    fn every_byte_counts() {
        let sealer = sealer(1, 1, 5);
        let of = Of::Object("page/1");
        let frame = sealer.seal(of, b"some bytes of a page").unwrap();
        for at in 0..frame.len() {
            for holds in [false, true] {
                let mut forged = frame.to_vec();
                forged[at] ^= 1 << (at % 8);
                if holds {
                    let body = forged.len() - 4;
                    let sum = crate::frame::crc32c(&forged[..body]);
                    forged[body..].copy_from_slice(&sum.to_le_bytes());
                }
                // In the sum alone, it was put right.
                let is_whole = holds && at >= frame.len() - 4;
                assert_eq!(sealer.open(of, &forged.into()).is_ok(), is_whole, "byte {at}");
            }
            assert!(sealer.open(of, &frame.slice(..at)).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn keys_are_read_from_lines() {
        let hex = "0f".repeat(32);
        let text = format!("# ours\n\n 2 {hex} # since May\n1\t{}\n", "AB".repeat(32));
        let keys = Keyring::parse(&text).unwrap();
        assert_eq!((keys.current(), keys.ids()), (2, vec![2, 1]));
        assert_eq!((keys.secret(2), keys.secret(1)), (Some(&[0x0f; 32]), Some(&[0xab; 32])));
        assert_eq!(format!("{keys:?}"), "Keyring([2, 1])");
        let many: String = (1..=65).map(|id| format!("{id} {hex}\n")).collect();
        for (text, why) in [
            (String::new(), "there are 0"),
            (many, "there are 65"),
            (format!("0 {hex}"), "0 is no number"),
            (format!("1 {hex}\n1 {hex}"), "twice"),
            (format!("1 {hex}\n{hex}"), "line 2"),
            (format!("1 {hex}0"), "line 1"),
            (format!("1 {hex} 2"), "line 1"),
            (format!("1 {}", "é".repeat(32)), "line 1"),
        ] {
            let error = Keyring::parse(&text).unwrap_err().to_string();
            assert!(error.contains(why) && !error.contains("0f0f"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_body_comes_back(
            body in prop::collection::vec(any::<u8>(), 0..300),
            name in "[a-z/]{1,20}",
            database: u128,
        ) {
            let sealer = sealer(3, 7, database);
            let frame = sealer.seal(Of::Queue(&name), &body).unwrap();
            prop_assert_eq!(frame.len(), body.len() + SEAL_BYTES);
            let opened = sealer.open(Of::Queue(&name), &frame).ok();
            prop_assert_eq!(opened.as_deref(), Some(&body[..]));
        }

        #[test]
        fn noise_does_not_open(
            mut noise in prop::collection::vec(any::<u8>(), 0..200),
            is_framed: bool,
        ) {
            let sealer = sealer(3, 7, 1);
            if is_framed {
                let mut to = SealedFrame::head(3, &[9; SALT_BYTES], 300);
                to.raw(&noise);
                noise = to.finish().to_vec();
            }
            prop_assert!(sealer.open(Of::Object("a"), &noise.into()).is_err());
        }
    }
}
