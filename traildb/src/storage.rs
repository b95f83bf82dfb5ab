//! Where the bytes of a database are: memory, a file, a region of the pager, or something of yours.
//!
//! ```text
//!   will_need(ranges) --> one round of requests        (a plan; costs nothing in memory)
//!   bytes(range) -------> a guard: the bytes stay put while it lives
//!   read(at, buf) ------> a copy: nothing stays pinned
//! ```

use std::{
    fs, io,
    ops::{Deref, Range},
    path::Path,
    sync::Arc,
};

/// Bytes that a database can be read from.
///
/// - **Constancy.** The bytes do not change while the storage lives.
/// - **Ranges.** Callers check ranges against [`len`](Storage::len). A storage answers a range
///   outside with an error, not a panic.
/// - **Errors.** An `io::Error` becomes the `Err` of whatever the reader was doing, and the reader
///   can be asked again: nothing is remembered of a failure.
/// - **Guards.** The reader holds a guard no longer than it needs, except for the values that it
///   hands out.
pub trait Storage: Send + Sync {
    /// What keeps bytes in place: free for memory, a pin for a region.
    type Bytes<'a>: Deref<Target = [u8]>
    where
        Self: 'a;

    /// Length in bytes.
    fn len(&self) -> u64;

    /// Whether there are no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A name for errors, such as a path or an address.
    fn name(&self) -> &str {
        "memory"
    }

    /// The bytes of `range`, in place while the guard lives.
    ///
    /// # Errors
    /// Of any kind, when the bytes cannot be had; [`UnexpectedEof`](io::ErrorKind::UnexpectedEof)
    /// for a range past the end.
    fn bytes(&self, range: Range<u64>) -> io::Result<Self::Bytes<'_>>;

    /// Copies the bytes from `at` on into `buf`.
    ///
    /// # Errors
    /// As for [`bytes`](Storage::bytes).
    fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let end =
            at.checked_add(buf.len() as u64).ok_or_else(|| outside(at..u64::MAX, self.len()))?;
        buf.copy_from_slice(&self.bytes(at..end)?);
        Ok(())
    }

    /// All bytes, where they are a slice for as long as the storage lives: values are then found in
    /// place, without a guard for each.
    fn in_memory(&self) -> Option<&[u8]> {
        None
    }

    /// Whether a read can wait for a round trip, so that announcing what will be needed pays.
    fn is_remote(&self) -> bool {
        false
    }

    /// Announces ranges that will be read soon, to be fetched together. Does not wait for them.
    ///
    /// # Errors
    /// For a range past the end, or when nothing more can be asked for. Whoever reads meets what is
    /// wrong.
    fn will_need(&self, ranges: &[Range<u64>]) -> io::Result<()> {
        let _ = ranges;
        Ok(())
    }
}

fn outside(range: Range<u64>, len: u64) -> io::Error {
    let text = format!("bytes {}..{} of {len}", range.start, range.end);
    io::Error::new(io::ErrorKind::UnexpectedEof, text)
}

fn slice(bytes: &[u8], range: Range<u64>) -> io::Result<&[u8]> {
    let inside = || {
        let (start, end) = (range.start.try_into().ok()?, range.end.try_into().ok()?);
        bytes.get::<Range<usize>>(start..end)
    };
    inside().ok_or_else(|| outside(range.clone(), bytes.len() as u64))
}

impl Storage for &[u8] {
    type Bytes<'a>
        = &'a [u8]
    where
        Self: 'a;

    fn len(&self) -> u64 {
        <[u8]>::len(self) as u64
    }

    fn bytes(&self, range: Range<u64>) -> io::Result<&[u8]> {
        slice(self, range)
    }

    fn in_memory(&self) -> Option<&[u8]> {
        Some(self)
    }
}

impl Storage for Vec<u8> {
    type Bytes<'a> = &'a [u8];

    fn len(&self) -> u64 {
        self.as_slice().len() as u64
    }

    fn bytes(&self, range: Range<u64>) -> io::Result<&[u8]> {
        slice(self, range)
    }

    fn in_memory(&self) -> Option<&[u8]> {
        Some(self)
    }
}

impl<S: Storage> Storage for Arc<S> {
    type Bytes<'a>
        = S::Bytes<'a>
    where
        S: 'a;

    fn len(&self) -> u64 {
        (**self).len()
    }

    fn name(&self) -> &str {
        (**self).name()
    }

    fn bytes(&self, range: Range<u64>) -> io::Result<S::Bytes<'_>> {
        (**self).bytes(range)
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        (**self).read(at, buf)
    }

    fn in_memory(&self) -> Option<&[u8]> {
        (**self).in_memory()
    }

    fn is_remote(&self) -> bool {
        (**self).is_remote()
    }

    fn will_need(&self, ranges: &[Range<u64>]) -> io::Result<()> {
        (**self).will_need(ranges)
    }
}

/// Anything that is a slice for as long as it lives: a file map, `Arc<[u8]>`, `bytes::Bytes`.
#[derive(Debug)]
pub struct Memory<T> {
    bytes: T,
    name: String,
}

impl<T: AsRef<[u8]> + Send + Sync> Memory<T> {
    /// Wraps `bytes`, with a name for errors.
    pub fn new(bytes: T, name: impl Into<String>) -> Memory<T> {
        Memory { bytes, name: name.into() }
    }
}

impl<T: AsRef<[u8]> + Send + Sync> Storage for Memory<T> {
    type Bytes<'a>
        = &'a [u8]
    where
        Self: 'a;

    fn len(&self) -> u64 {
        self.bytes.as_ref().len() as u64
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn bytes(&self, range: Range<u64>) -> io::Result<&[u8]> {
        slice(self.bytes.as_ref(), range)
    }

    fn in_memory(&self) -> Option<&[u8]> {
        Some(self.bytes.as_ref())
    }
}

/// A local file, read by position. Needs no assumption about who else writes to it, and copies.
#[derive(Debug)]
pub struct File {
    file: fs::File,
    len: u64,
    name: String,
}

impl File {
    /// Opens the file at `path` for reading.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(path: impl AsRef<Path>) -> io::Result<File> {
        let path = path.as_ref();
        let file = fs::File::open(path)?;
        let stat = file.metadata()?;
        if !stat.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok(File { file, len: stat.len(), name: path.display().to_string() })
    }
}

impl Storage for File {
    type Bytes<'a> = Vec<u8>;

    fn len(&self) -> u64 {
        self.len
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn bytes(&self, range: Range<u64>) -> io::Result<Vec<u8>> {
        // Checked before anything is allocated: the range may come from a damaged file.
        if range.start > range.end || range.end > self.len {
            return Err(outside(range, self.len));
        }
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.read(range.start, &mut bytes)?;
        Ok(bytes)
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, buf, at)
    }
}
