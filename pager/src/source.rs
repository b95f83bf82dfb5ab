//! Where bytes come from: one object, of one length, at one version, read by ranges.
//!
//! ```text
//!   stat() -----> ObjectStat { len, version, part_bytes, .. }
//!                                 |
//!   read(&version, range) --------+---> stream of Bytes, exactly `range.end - range.start` of them
//!   read_into(&version, range, frame) -> the same bytes, appended to a frame of the pool
//!   at_once().read_at_once(..) --------> the same by one blocking call, where that is all it takes
//! ```
//!
//! A source is a leaf (S3, HTTP, a file) or a wrapper around another source (retry, hedge, limit,
//! cache). A leaf makes one attempt and reports what happened; trying again is a wrapper's work.

use std::{fmt, ops::Range, pin::Pin, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{Stream, StreamExt};

use crate::{error::SourceError, frame::Frame};

/// The body of one range request: chunks of any size, in order, from the first byte of the range.
///
/// After an `Err` the stream is over. Empty chunks mean nothing. A stream that ends early, or yields
/// more bytes than the range has, is a broken body; whoever consumes it reports
/// [`SourceError::Corrupt`]. A region does so for the unit in which the stream ended, or for the last
/// unit of the range where bytes beyond it are there together with that one: in the same chunk, or at
/// once when the stream is polled again. It waits for no more bytes than it asked for, nor for the
/// end, which may take another round trip. [`collect_into`] reads to the end.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes, SourceError>> + Send>>;

/// How far a [`Version`] can be trusted to name one sequence of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Strength {
    /// Two objects with this version are the same bytes: a strong ETag, a version id, a content hash.
    Strong,
    /// The object may have changed unnoticed: a modification time, `Last-Modified`.
    Weak,
}

/// What names the bytes of an object at one moment. Opaque to everyone but the source that made it.
///
/// A read that names a version returns bytes of that version or fails with
/// [`SourceError::Changed`]. That is what makes `&[u8]` over a remote object honest.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Version {
    strength: Strength,
    token: Arc<str>,
}

impl Version {
    /// A version that names the bytes themselves.
    pub fn strong(token: impl Into<Arc<str>>) -> Version {
        Version { strength: Strength::Strong, token: token.into() }
    }

    /// A version that usually differs when the bytes differ, and may not.
    pub fn weak(token: impl Into<Arc<str>>) -> Version {
        Version { strength: Strength::Weak, token: token.into() }
    }

    /// Whether equal versions promise equal bytes.
    pub fn strength(&self) -> Strength {
        self.strength
    }

    /// The source's own text for this version.
    pub fn token(&self) -> &str {
        &self.token
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.strength {
            Strength::Strong => write!(f, "{}", self.token),
            Strength::Weak => write!(f, "{} (weak)", self.token),
        }
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Version({self})")
    }
}

/// What a source knows about its object without reading it. Begin with [`ObjectStat::new`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ObjectStat {
    /// Length of the object in bytes.
    pub len: u64,
    /// The version that reads should name.
    pub version: Version,
    /// Requests cost least when they start and end at multiples of this many bytes. At least 1.
    /// Every request of the pager starts and ends at an edge of its unit, which is a multiple of
    /// any smaller power of two; where the alignment is larger than the unit, a long range is cut
    /// into requests at multiples of it, so that no two of them share a block of the source.
    pub alignment: u64,
    /// Size in bytes at which one request of a long stream is best, e.g. 8 MiB for S3. At least 1.
    pub part_bytes: u64,
}

impl ObjectStat {
    /// An object of `len` bytes at `version`, read at any place and in parts of 8 MiB.
    pub fn new(len: u64, version: Version) -> ObjectStat {
        ObjectStat { len, version, alignment: 1, part_bytes: 8 << 20 }
    }

    /// The same with another [`alignment`](ObjectStat::alignment), in bytes; 0 is taken for 1.
    #[must_use]
    pub fn with_alignment(mut self, alignment: u64) -> ObjectStat {
        self.alignment = alignment.max(1);
        self
    }

    /// The same with another [size of parts](ObjectStat::part_bytes), in bytes; 0 is taken for 1.
    #[must_use]
    pub fn with_part_bytes(mut self, part_bytes: u64) -> ObjectStat {
        self.part_bytes = part_bytes.max(1);
        self
    }
}

/// A place that bytes come from: one object.
///
/// - **Shape.** `stat` once, then any number of `read`s, from any number of tasks at once. Every
///   range lies inside the object as `stat` described it and is not empty; a source refuses others
///   with [`SourceError::Permanent`].
/// - **Version.** Every read names the version it wants. A source that cannot promise it returns
///   [`SourceError::Changed`]; it never returns bytes of another version.
/// - **Attempts.** A leaf tries once. Retry, hedge, limit and cache are wrappers around a source.
/// - **Cancellation.** Dropping a future or a stream abandons the request and frees what it holds.
/// - **Where it runs.** On the runtime of the pager that opened it. A source must not block the
///   thread it is polled on; blocking work goes to `tokio::task::spawn_blocking`. One that does stops
///   what else this thread would do: requests of other regions, and the timers that keep deadlines.
///   Only `Pager::open` and `Region::load` give up by themselves then, after twice the deadline and a
///   second; bare reads and the async calls wait for as long as the source blocks.
/// - **Secrets.** [`name`](BlockSource::name) and every error leave out credentials and signatures.
#[async_trait]
pub trait BlockSource: Send + Sync + 'static {
    /// A name for metrics and errors, such as `s3://bucket/key`.
    fn name(&self) -> &str;

    /// Asks for length and version. One round trip at most, unless redirects demand more. Must not
    /// block its thread, as under "Where it runs".
    async fn stat(&self) -> Result<ObjectStat, SourceError>;

    /// Starts to read `range` (bytes from the start of the object) of `version`.
    ///
    /// Resolves when the source has accepted the request and checked what it can check before the
    /// body (status, version, `Content-Range`); the bytes follow in the stream. Neither this nor the
    /// stream may block its thread, as under "Where it runs".
    async fn read(&self, version: &Version, range: Range<u64>) -> Result<ByteStream, SourceError>;

    /// Reads `range` of `version` and appends it to what `frame` already holds.
    ///
    /// The frame must have room: `range.end - range.start <= frame.room()`. On success exactly that
    /// many bytes were appended. On failure the frame is dropped, that is returned to its pool; a
    /// wrapper that wants it back, with the bytes that did arrive, uses [`Frame::lend`].
    ///
    /// The default copies from [`read`](BlockSource::read). A source that can receive straight into
    /// memory overrides it together with [`fills_frames`](BlockSource::fills_frames). A wrapper
    /// forwards both.
    async fn read_into(
        &self,
        version: &Version,
        range: Range<u64>,
        frame: Frame,
    ) -> Result<Frame, SourceError> {
        let stream = self.read(version, range.clone()).await?;
        collect_into(self.name(), stream, range, frame).await
    }

    /// Whether `read_into` is native and a request has no round trip worth saving, so that a long
    /// range may be cut into frames at no cost. True for memory and local files.
    fn fills_frames(&self) -> bool {
        false
    }

    /// The way to read this source by one blocking call, if there is one. In a region whose reads have no order
    /// ([`Hint::Random`](crate::Hint::Random)) a page fault is then answered by the thread that hears of it,
    /// which saves as many wake-ups of other threads as the way through the runtime takes. For what a disk
    /// answers, or memory, and not for what a network does. None by default, and of a wrapper whose own work
    /// needs the runtime.
    fn at_once(&self) -> Option<&dyn ReadAtOnce> {
        None
    }
}

/// Reads by one blocking call: see [`BlockSource::at_once`].
pub trait ReadAtOnce: Send + Sync {
    /// [`read_into`](BlockSource::read_into), under the same contract, on the calling thread, which waits.
    ///
    /// A few threads of the pager are for this. Where the answer takes more than a quarter of a second, or of
    /// the pager's deadline if that is less, the unit is asked for by `read_into` as well, and the first of
    /// the two to answer is taken. After an error `read_into` is asked, too, and what it says counts. Must take
    /// no lock that a reader of the object may hold, as everything that a source does for a page fault.
    ///
    /// # Errors
    /// Those of [`read_into`](BlockSource::read_into).
    fn read_at_once(
        &self,
        version: &Version,
        range: Range<u64>,
        frame: Frame,
    ) -> Result<Frame, SourceError>;
}

/// Copies a body into `frame` and checks that it has exactly the bytes of `range`: reads it to its
/// end, with no deadline of its own.
///
/// # Errors
/// The stream's error; [`SourceError::Corrupt`] for a body that is shorter or longer than `range`. The
/// frame goes back to its pool.
///
/// # Panics
/// When `frame` has less room than `range` has bytes: a caller's mistake.
pub async fn collect_into(
    object: &str,
    mut stream: ByteStream,
    range: Range<u64>,
    mut frame: Frame,
) -> Result<Frame, SourceError> {
    let wanted = range.end.saturating_sub(range.start);
    assert!(wanted <= frame.room() as u64, "the frame has room for the range");
    let mut got = 0u64;
    while let Some(chunk) = stream.next().await {
        let chunk = chunk?;
        if chunk.is_empty() {
            // A stream that has always another one must not keep the task from its deadline.
            tokio::task::yield_now().await;
        }
        got += chunk.len() as u64;
        if got > wanted {
            return Err(SourceError::long_body(object, range, got));
        }
        frame.put(&chunk);
    }
    if got < wanted {
        return Err(SourceError::short_body(object, range, got));
    }
    Ok(frame)
}

/// A pointer to a source is a source.
macro_rules! forward {
    ($pointer:ident) => {
        #[async_trait]
        impl<S: BlockSource + ?Sized> BlockSource for $pointer<S> {
            fn name(&self) -> &str {
                (**self).name()
            }

            async fn stat(&self) -> Result<ObjectStat, SourceError> {
                (**self).stat().await
            }

            async fn read(
                &self,
                version: &Version,
                range: Range<u64>,
            ) -> Result<ByteStream, SourceError> {
                (**self).read(version, range).await
            }

            async fn read_into(
                &self,
                version: &Version,
                range: Range<u64>,
                frame: Frame,
            ) -> Result<Frame, SourceError> {
                (**self).read_into(version, range, frame).await
            }

            fn fills_frames(&self) -> bool {
                (**self).fills_frames()
            }

            fn at_once(&self) -> Option<&dyn ReadAtOnce> {
                (**self).at_once()
            }
        }
    };
}

forward!(Arc);
forward!(Box);
