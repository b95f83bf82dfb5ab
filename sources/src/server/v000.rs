//! The frames of protocol `V000`, which the first clients of TrailDB speak (PROTOCOL.md, part 1).
//!
//! ```text
//!   0        4                 12                20           24
//!   +--------+-----------------+-----------------+------------+-------- - -
//!   |  type  |  offset, u64 le |   size, u64 le  | length u32 |  path, no NUL
//!   +--------+-----------------+-----------------+------------+-------- - -
//! ```
//!
//! A request asks for `size` bytes of the object `path` from `offset` on; the answer says in which
//! local file, `path`, they are, from which position on, and how many bytes of that file are good.

/// Bytes before the path.
pub const HEAD_BYTES: usize = 24;
/// The longest path: the first clients have a buffer for so many and a NUL.
pub const PATH_BYTES_MAX: usize = 1023;

/// What a request wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// `V000`: is there such an object, and do we speak alike?
    Hello,
    /// `READ`: make these bytes available.
    Read,
    /// `EXIT`: the client leaves.
    Exit,
    /// Anything else, such as a later version.
    Unknown([u8; 4]),
}

/// The head of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// What it wants.
    pub want: Want,
    /// The first byte asked for, in the object.
    pub offset: u64,
    /// The fewest bytes wanted.
    pub size: u64,
    /// Bytes of the path that follows. Not checked: see [`PATH_BYTES_MAX`].
    pub path_bytes: u32,
}

impl Head {
    /// Reads a head. Every sequence of bytes is one.
    pub fn decode(bytes: &[u8; HEAD_BYTES]) -> Head {
        let kind: [u8; 4] = bytes[..4].try_into().expect("4 bytes");
        let want = match &kind {
            b"V000" => Want::Hello,
            b"READ" => Want::Read,
            b"EXIT" => Want::Exit,
            _ => Want::Unknown(kind),
        };
        Head {
            want,
            offset: u64::from_le_bytes(bytes[4..12].try_into().expect("8 bytes")),
            size: u64::from_le_bytes(bytes[12..20].try_into().expect("8 bytes")),
            path_bytes: u32::from_le_bytes(bytes[20..].try_into().expect("4 bytes")),
        }
    }
}

/// Checks the path of a request: text, without a NUL.
pub fn path(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok().filter(|path| !path.contains('\0'))
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// `OKOK` to a hello.
    Welcome,
    /// `OKOK`: the bytes are in this file.
    File {
        /// Its absolute path, of at most [`PATH_BYTES_MAX`] bytes.
        path: String,
        /// Where the byte asked for is in it.
        position: u64,
        /// How many bytes of it are good from there on.
        size: u64,
    },
    /// `PROT`: such addresses, or such requests, are not served here.
    Unsupported,
    /// `MISS`: there is no such object.
    Missing,
    /// `FAIL`: not now.
    Failed,
}

impl Answer {
    /// The bytes of the frame.
    ///
    /// # Panics
    /// When the path is longer than [`PATH_BYTES_MAX`], which whoever names files has to prevent.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, position, size, path) = match self {
            Answer::Welcome => (b"OKOK", 0, 0, ""),
            Answer::File { path, position, size } => (b"OKOK", *position, *size, path.as_str()),
            Answer::Unsupported => (b"PROT", 0, 0, ""),
            Answer::Missing => (b"MISS", 0, 0, ""),
            Answer::Failed => (b"FAIL", 0, 0, ""),
        };
        assert!(path.len() <= PATH_BYTES_MAX, "a path of {} bytes", path.len());
        let mut bytes = Vec::with_capacity(HEAD_BYTES + path.len());
        bytes.extend_from_slice(kind);
        bytes.extend_from_slice(&position.to_le_bytes());
        bytes.extend_from_slice(&size.to_le_bytes());
        bytes.extend_from_slice(&(path.len() as u32).to_le_bytes());
        bytes.extend_from_slice(path.as_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn frames_are_those_of_the_text() {
        let mut read = *b"READ\x00\x10\0\0\0\0\0\0\xe8\xfd\0\0\0\0\0\0\x03\0\0\0";
        let head = Head { want: Want::Read, offset: 4096, size: 65_000, path_bytes: 3 };
        assert_eq!(Head::decode(&read), head);
        read[..4].copy_from_slice(b"V001");
        assert_eq!(Head::decode(&read).want, Want::Unknown(*b"V001"));
        let file = Answer::File { path: "/x".to_owned(), position: 7, size: 1 << 40 };
        let bytes = b"OKOK\x07\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\x02\0\0\0/x";
        assert_eq!(file.encode(), bytes);
        for (answer, kind) in [
            (Answer::Welcome, b"OKOK"),
            (Answer::Unsupported, b"PROT"),
            (Answer::Missing, b"MISS"),
            (Answer::Failed, b"FAIL"),
        ] {
            assert_eq!(answer.encode(), [&kind[..], &[0; 20]].concat());
        }
        assert_eq!(path(b"s3://b/k"), Some("s3://b/k"));
        assert_eq!((path(b"a\0b"), path(b"\xff")), (None, None));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_head(bytes: [u8; HEAD_BYTES]) {
            let head = Head::decode(&bytes);
            let kind = match head.want {
                Want::Hello => *b"V000",
                Want::Read => *b"READ",
                Want::Exit => *b"EXIT",
                Want::Unknown(kind) => kind,
            };
            let mut back = kind.to_vec();
            back.extend(head.offset.to_le_bytes());
            back.extend(head.size.to_le_bytes());
            back.extend(head.path_bytes.to_le_bytes());
            prop_assert_eq!(&back[..], &bytes[..]);
        }
    }
}
