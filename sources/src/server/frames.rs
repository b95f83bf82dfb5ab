//! The frames of our own protocol (PROTOCOL.md, part 2).
//!
//! ```text
//!   0             4      5       6       8              16
//!   +-------------+------+-------+-------+--------------+-------- - -
//!   |  length u32 | kind |   0   |   0   |  request id  |  body
//!   +-------------+------+-------+-------+--------------+-------- - -
//! ```
//!
//! Every request but `AHEAD` has one answer with its id, in any order. Numbers are little-endian;
//! texts are UTF-8 behind a `u16` that says how many bytes they have.

use std::{fmt, time::Duration};

use pager::{SourceError, Strength, Version};

/// Bytes before the body.
pub const HEAD_BYTES: usize = 16;
/// What a hello begins with.
pub const MAGIC: &[u8; 8] = b"extmem-1";
/// The longest body of a request, and of every answer but `BYTES`.
pub const BODY_BYTES_MAX: usize = 16 << 10;
/// The most bytes that one `READ` may ask for.
pub const READ_BYTES_MAX: u64 = 4 << 20;
/// The longest text.
pub const TEXT_BYTES_MAX: usize = 8 << 10;
/// The handle that no server gives to anybody: to close it is allowed, and has an answer at once.
pub const NO_HANDLE: u32 = u32::MAX;

/// Wants files where it can have them; in an answer: may have them.
pub const FILES: u32 = 1;
/// Wants sealed memory where it can have it; in an answer: may ask for it ([`Request::Memory`]).
pub const MEMORY: u32 = 2;

/// The head of a frame, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// What it is.
    pub kind: u8,
    /// The request's number, which its answer repeats.
    pub id: u64,
    /// Bytes of the body.
    pub body_bytes: usize,
}

/// A frame that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a broken frame: {0}")]
pub struct Broken(&'static str);

/// What a client says.
#[derive(Clone, PartialEq, Eq)]
pub enum Request {
    /// Kind 1, the first one.
    Hello {
        /// What it wants: [`FILES`], [`MEMORY`].
        wants: u32,
        /// The secret of a TCP listener; empty on a Unix socket.
        token: String,
    },
    /// Kind 2: opens an object.
    Open {
        /// Its address.
        url: String,
        /// The version to go on with, and its length; the one that it has now, if none is named.
        pinned: Option<(Version, u64)>,
    },
    /// Kind 3: reads a range.
    Read {
        /// What `Opened` said.
        handle: u32,
        /// The first byte.
        offset: u64,
        /// How many, 1 to [`READ_BYTES_MAX`].
        length: u64,
        /// Whether a file will do.
        file: bool,
    },
    /// Kind 4: a range that will be wanted. Has no answer.
    Ahead {
        /// What `Opened` said.
        handle: u32,
        /// The first byte.
        offset: u64,
        /// How many.
        length: u64,
    },
    /// Kind 5: a handle that is no longer used.
    Close {
        /// What `Opened` said.
        handle: u32,
    },
    /// Kind 6: the piece with this byte, as sealed memory.
    Memory {
        /// What `Opened` said.
        handle: u32,
        /// Any byte of it.
        offset: u64,
    },
}

/// Without the token, and without what may sign an address.
impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Request::Hello { wants, .. } => {
                f.debug_struct("Hello").field("wants", wants).finish_non_exhaustive()
            }
            Request::Open { url, pinned } => {
                let url = url.split(['?', '#']).next().unwrap_or_default();
                f.debug_struct("Open").field("url", &url).field("pinned", pinned).finish()
            }
            Request::Read { handle, offset, length, file } => {
                f.debug_tuple("Read").field(handle).field(offset).field(length).field(file).finish()
            }
            Request::Ahead { handle, offset, length } => {
                f.debug_tuple("Ahead").field(handle).field(offset).field(length).finish()
            }
            Request::Close { handle } => f.debug_tuple("Close").field(handle).finish(),
            Request::Memory { handle, offset } => {
                f.debug_tuple("Memory").field(handle).field(offset).finish()
            }
        }
    }
}

/// What a server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Kind 129, to a hello.
    Welcome {
        /// What it may have: [`FILES`], [`MEMORY`].
        has: u32,
        /// Requests that may be under way on this connection.
        requests_max: u32,
        /// The most bytes of one read.
        read_bytes_max: u64,
    },
    /// Kind 130.
    Opened {
        /// Names it on this connection.
        handle: u32,
        /// Length of the object in bytes.
        len: u64,
        /// Reads cost least at multiples of this.
        alignment: u64,
        /// The best size of one request of a long stream.
        part_bytes: u64,
        /// What is read from now on.
        version: Version,
    },
    /// Kind 131: the bytes follow as the body; here is only how many.
    Bytes {
        /// As many as were asked for.
        length: u64,
    },
    /// Kind 132: they are in the file whose descriptor comes with this frame's first byte.
    File {
        /// Where the first byte asked for is in it.
        position: u64,
        /// How many are good from there on: at least as many as were asked for.
        length: u64,
    },
    /// Kind 133, to a close.
    Closed,
    /// Kind 255.
    Failed {
        /// What the client can do about it.
        code: Code,
        /// Not before so many milliseconds; 0 if that is not known.
        retry_after_ms: u32,
        /// For people.
        text: String,
    },
}

/// What a client can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Code {
    /// There is no such object.
    NotFound = 1,
    /// It has another version by now: open it again.
    Changed = 2,
    /// Ask less often.
    Throttled = 3,
    /// The server may not read it.
    Denied = 4,
    /// Try again.
    Transient = 5,
    /// What came was damaged: try again.
    Corrupt = 6,
    /// Never.
    Permanent = 7,
    /// This client may not ask here.
    Unauthorized = 8,
    /// The frame, or the request, broke the rules.
    Malformed = 9,
}

impl Code {
    fn of(number: u16) -> Code {
        use Code::{
            Changed, Corrupt, Denied, Malformed, NotFound, Permanent, Throttled, Transient,
            Unauthorized,
        };
        let all = [
            NotFound,
            Changed,
            Throttled,
            Denied,
            Transient,
            Corrupt,
            Permanent,
            Unauthorized,
            Malformed,
        ];
        // One of a later version: trying again is always allowed.
        all.into_iter().find(|code| *code as u16 == number).unwrap_or(Transient)
    }
}

impl Head {
    /// Reads a head. A body longer than `body_bytes_max` is an error.
    ///
    /// # Errors
    /// When nobody can tell where the next frame begins.
    pub fn decode(bytes: &[u8; HEAD_BYTES], body_bytes_max: usize) -> Result<Head, Broken> {
        let length = u32::from_le_bytes(bytes[..4].try_into().expect("4 bytes")) as usize;
        if length > body_bytes_max {
            return Err(Broken("it claims a body that is too long"));
        }
        if bytes[5..8] != [0; 3] {
            return Err(Broken("what must be zero is not"));
        }
        let id = u64::from_le_bytes(bytes[8..].try_into().expect("8 bytes"));
        Ok(Head { kind: bytes[4], id, body_bytes: length })
    }

    /// The bytes of the head.
    pub fn encode(&self) -> [u8; HEAD_BYTES] {
        let mut bytes = [0; HEAD_BYTES];
        bytes[..4].copy_from_slice(&(self.body_bytes as u32).to_le_bytes());
        bytes[4] = self.kind;
        bytes[8..].copy_from_slice(&self.id.to_le_bytes());
        bytes
    }
}

/// Takes a body apart.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, count: usize) -> Result<&'a [u8], Broken> {
        let (bytes, rest) = self.0.split_at_checked(count).ok_or(Broken("it is too short"))?;
        self.0 = rest;
        Ok(bytes)
    }

    fn u8(&mut self) -> Result<u8, Broken> {
        Ok(self.bytes(1)?[0])
    }

    fn u16(&mut self) -> Result<u16, Broken> {
        Ok(u16::from_le_bytes(self.bytes(2)?.try_into().expect("2 bytes")))
    }

    fn u32(&mut self) -> Result<u32, Broken> {
        Ok(u32::from_le_bytes(self.bytes(4)?.try_into().expect("4 bytes")))
    }

    fn u64(&mut self) -> Result<u64, Broken> {
        Ok(u64::from_le_bytes(self.bytes(8)?.try_into().expect("8 bytes")))
    }

    fn flag(&mut self) -> Result<bool, Broken> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Broken("a flag is 0 or 1")),
        }
    }

    fn text(&mut self) -> Result<String, Broken> {
        let len = usize::from(self.u16()?);
        if len > TEXT_BYTES_MAX {
            return Err(Broken("a text is too long"));
        }
        let text = std::str::from_utf8(self.bytes(len)?);
        text.map(str::to_owned).map_err(|_| Broken("a text is not UTF-8"))
    }

    fn version(&mut self) -> Result<Version, Broken> {
        let strong = self.flag()?;
        let token = self.text()?;
        Ok(if strong { Version::strong(token) } else { Version::weak(token) })
    }

    fn end(self) -> Result<(), Broken> {
        if self.0.is_empty() { Ok(()) } else { Err(Broken("it is too long")) }
    }
}

/// Puts a body together.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn u8(mut self, value: u8) -> Writer {
        self.0.push(value);
        self
    }

    fn u16(mut self, value: u16) -> Writer {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u32(mut self, value: u32) -> Writer {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Writer {
        self.0.extend(value.to_le_bytes());
        self
    }

    /// A text, cut where the longest ends.
    fn text(self, text: &str) -> Writer {
        let mut end = text.len().min(TEXT_BYTES_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let mut writer = self.u16(end as u16);
        writer.0.extend_from_slice(&text.as_bytes()[..end]);
        writer
    }

    fn version(self, version: &Version) -> Writer {
        self.u8(u8::from(version.strength() == Strength::Strong)).text(version.token())
    }

    fn frame(self, kind: u8, id: u64) -> Vec<u8> {
        let head = Head { kind, id, body_bytes: self.0.len() };
        [&head.encode()[..], &self.0].concat()
    }
}

impl Request {
    /// Reads the body of a request.
    ///
    /// # Errors
    /// When it is none.
    pub fn decode(kind: u8, body: &[u8]) -> Result<Request, Broken> {
        let mut reader = Reader(body);
        let request = match kind {
            1 => {
                if reader.bytes(MAGIC.len())? != MAGIC {
                    return Err(Broken("a hello of another protocol"));
                }
                Request::Hello { wants: reader.u32()?, token: reader.text()? }
            }
            2 => {
                let pinned = match reader.flag()? {
                    true => {
                        let len = reader.u64()?;
                        Some((reader.version()?, len))
                    }
                    false => None,
                };
                Request::Open { url: reader.text()?, pinned }
            }
            3 => Request::Read {
                handle: reader.u32()?,
                offset: reader.u64()?,
                length: reader.u64()?,
                file: reader.flag()?,
            },
            4 => Request::Ahead {
                handle: reader.u32()?,
                offset: reader.u64()?,
                length: reader.u64()?,
            },
            5 => Request::Close { handle: reader.u32()? },
            6 => Request::Memory { handle: reader.u32()?, offset: reader.u64()? },
            _ => return Err(Broken("there is no such request")),
        };
        reader.end()?;
        Ok(request)
    }

    /// The bytes of the frame.
    pub fn encode(&self, id: u64) -> Vec<u8> {
        let writer = Writer::default();
        match self {
            Request::Hello { wants, token } => {
                Writer(MAGIC.to_vec()).u32(*wants).text(token).frame(1, id)
            }
            Request::Open { url, pinned } => {
                let writer = match pinned {
                    Some((version, len)) => writer.u8(1).u64(*len).version(version),
                    None => writer.u8(0),
                };
                writer.text(url).frame(2, id)
            }
            Request::Read { handle, offset, length, file } => {
                writer.u32(*handle).u64(*offset).u64(*length).u8(u8::from(*file)).frame(3, id)
            }
            Request::Ahead { handle, offset, length } => {
                writer.u32(*handle).u64(*offset).u64(*length).frame(4, id)
            }
            Request::Close { handle } => writer.u32(*handle).frame(5, id),
            Request::Memory { handle, offset } => writer.u32(*handle).u64(*offset).frame(6, id),
        }
    }
}

impl Answer {
    /// Reads the body of an answer; of `BYTES` (kind 131) only its head is needed.
    ///
    /// # Errors
    /// When it is none.
    pub fn decode(kind: u8, body: &[u8]) -> Result<Answer, Broken> {
        let mut reader = Reader(body);
        let answer = match kind {
            129 => Answer::Welcome {
                has: reader.u32()?,
                requests_max: reader.u32()?,
                read_bytes_max: reader.u64()?,
            },
            130 => Answer::Opened {
                handle: reader.u32()?,
                len: reader.u64()?,
                alignment: reader.u64()?,
                part_bytes: reader.u64()?,
                version: reader.version()?,
            },
            131 => return Ok(Answer::Bytes { length: body.len() as u64 }),
            132 => Answer::File { position: reader.u64()?, length: reader.u64()? },
            133 => Answer::Closed,
            255 => Answer::Failed {
                code: Code::of(reader.u16()?),
                retry_after_ms: reader.u32()?,
                text: reader.text()?,
            },
            _ => return Err(Broken("there is no such answer")),
        };
        reader.end()?;
        Ok(answer)
    }

    /// The bytes of the frame; of `BYTES` its head, which the bytes must follow.
    pub fn encode(&self, id: u64) -> Vec<u8> {
        let writer = Writer::default();
        match self {
            Answer::Welcome { has, requests_max, read_bytes_max } => {
                writer.u32(*has).u32(*requests_max).u64(*read_bytes_max).frame(129, id)
            }
            Answer::Opened { handle, len, alignment, part_bytes, version } => writer
                .u32(*handle)
                .u64(*len)
                .u64(*alignment)
                .u64(*part_bytes)
                .version(version)
                .frame(130, id),
            Answer::Bytes { length } => {
                Head { kind: 131, id, body_bytes: *length as usize }.encode().to_vec()
            }
            Answer::File { position, length } => writer.u64(*position).u64(*length).frame(132, id),
            Answer::Closed => writer.frame(133, id),
            Answer::Failed { code, retry_after_ms, text } => {
                writer.u16(*code as u16).u32(*retry_after_ms).text(text).frame(255, id)
            }
        }
    }

    /// An error of a source, for a client.
    pub fn failed(error: &SourceError) -> Answer {
        let (code, retry_after) = match error {
            SourceError::NotFound { .. } => (Code::NotFound, None),
            SourceError::Changed { .. } => (Code::Changed, None),
            SourceError::Throttled { retry_after, .. } => (Code::Throttled, *retry_after),
            SourceError::Denied { .. } => (Code::Denied, None),
            SourceError::Corrupt { .. } => (Code::Corrupt, None),
            SourceError::Permanent { .. } => (Code::Permanent, None),
            _ => (Code::Transient, None),
        };
        let millis = retry_after.unwrap_or(Duration::ZERO).as_millis();
        let text = match error {
            SourceError::Changed { found, .. } => found.clone(),
            other => other.to_string(),
        };
        Answer::Failed { code, retry_after_ms: u32::try_from(millis).unwrap_or(u32::MAX), text }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let url = "http://h/x?sig=secret".to_owned();
        let requests = [
            Request::Hello { wants: FILES, token: "secret".to_owned() },
            Request::Open { url, pinned: None },
        ];
        for request in requests {
            assert!(!format!("{request:?}").contains("secret"), "{request:?}");
        }
    }

    fn requests() -> Vec<Request> {
        let pinned = Some((Version::weak("w"), 5));
        vec![
            Request::Hello { wants: FILES, token: "secret".to_owned() },
            Request::Open { url: "s3://b/k".to_owned(), pinned: None },
            Request::Open { url: String::new(), pinned },
            Request::Read { handle: 1, offset: 1 << 40, length: 9, file: true },
            Request::Ahead { handle: 2, offset: 3, length: 4 },
            Request::Close { handle: u32::MAX },
            Request::Memory { handle: 9, offset: 1 << 41 },
        ]
    }

    fn answers() -> Vec<Answer> {
        let version = Version::strong("\"v\"");
        vec![
            Answer::Welcome { has: 0, requests_max: 64, read_bytes_max: READ_BYTES_MAX },
            Answer::Opened { handle: 7, len: 8, alignment: 1, part_bytes: 2, version },
            Answer::File { position: 5, length: 6 },
            Answer::Closed,
            Answer::Failed { code: Code::Changed, retry_after_ms: 20, text: "x".to_owned() },
        ]
    }

    #[test]
    fn what_is_said_is_what_is_heard_and_nothing_shorter_or_longer() {
        let split = |frame: &[u8]| {
            let head = frame[..HEAD_BYTES].try_into().expect("a head");
            let head = Head::decode(&head, BODY_BYTES_MAX).expect("sound");
            assert_eq!((head.id, head.body_bytes), (99, frame.len() - HEAD_BYTES));
            (head.kind, frame[HEAD_BYTES..].to_vec())
        };
        for request in requests() {
            let (kind, mut body) = split(&request.encode(99));
            assert_eq!(Request::decode(kind, &body), Ok(request.clone()));
            for end in 0..body.len() {
                assert!(Request::decode(kind, &body[..end]).is_err(), "{request:?} cut to {end}");
            }
            body.push(0);
            assert!(Request::decode(kind, &body).is_err(), "{request:?} and more");
        }
        for answer in answers() {
            let (kind, mut body) = split(&answer.encode(99));
            assert_eq!(Answer::decode(kind, &body), Ok(answer.clone()));
            body.push(0);
            assert!(Answer::decode(kind, &body).is_err(), "{answer:?} and more");
        }
        let bytes = Answer::Bytes { length: 3 }.encode(99);
        assert_eq!(bytes, [3, 0, 0, 0, 131, 0, 0, 0, 99, 0, 0, 0, 0, 0, 0, 0]);
    }

    /// The frames that the text shows, so that no change goes unnoticed.
    #[test]
    fn frames_are_those_of_the_text() {
        let hello = Request::Hello { wants: 1, token: String::new() }.encode(0);
        assert_eq!(hello, b"\x0e\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0extmem-1\x01\0\0\0\0\0");
        let open = Request::Open { url: "s3://b/k".to_owned(), pinned: None }.encode(1);
        assert_eq!(open, b"\x0b\0\0\0\x02\0\0\0\x01\0\0\0\0\0\0\0\0\x08\0s3://b/k");
        let read = Request::Read { handle: 7, offset: 4096, length: 512, file: false }.encode(2);
        let expected = b"\x15\0\0\0\x03\0\0\0\x02\0\0\0\0\0\0\0\x07\0\0\0\
                         \0\x10\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0";
        assert_eq!(read, expected);
    }

    #[test]
    fn a_text_is_cut_between_letters() {
        let text = "\u{e9}".repeat(TEXT_BYTES_MAX);
        let failed = Answer::Failed { code: Code::Permanent, retry_after_ms: 0, text };
        let frame = failed.encode(1);
        assert!(frame.len() < BODY_BYTES_MAX);
        let Ok(Answer::Failed { text, .. }) = Answer::decode(255, &frame[HEAD_BYTES..]) else {
            panic!("an error")
        };
        assert_eq!(text.len(), TEXT_BYTES_MAX);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_frame_or_an_error(
            head: [u8; HEAD_BYTES],
            kind: u8,
            body in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            if let Ok(head) = Head::decode(&head, 1000) {
                prop_assert!(head.body_bytes <= 1000);
            }
            if let Ok(request) = Request::decode(kind, &body) {
                prop_assert_eq!(&request.encode(5)[HEAD_BYTES..], &body[..]);
            }
            let _ = Answer::decode(kind, &body);
        }
    }
}
