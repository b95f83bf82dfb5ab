//! A leaf: an object that a block server reads for us.
//!
//! ```text
//!   read(range) --READ--> server --> cache --> source, once for all programs
//!        ^                  |
//!        +-- from a file <--+  whose descriptor it sent: bytes never cross the socket
//! ```

use std::{
    collections::VecDeque,
    fs::File,
    ops::Range,
    os::unix::fs::FileExt,
    sync::{Arc, LazyLock, Mutex, PoisonError, Weak},
    time::Duration,
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::stream;
use nix::sys::resource::{Resource, getrlimit};
use pager::{
    BlockSource, ByteStream, Frame, ObjectStat, ReadAtOnce, SourceError, Strength, Version,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use super::{
    client::{Connection, Link, Lost, Reply},
    frames::{Answer, Code, Request, TEXT_BYTES_MAX},
};
use crate::body::{check_range, check_shape};

/// Files of one object that are kept open: each is a part of it that needs no more questions.
const FILES_MAX: usize = 64;
/// Of all objects: at most so many, and this share of the descriptors that this process may have.
const FILES_OF_ALL_MAX: usize = 1024;
const FILES_SHARE: u64 = 4;
/// Versions whose lengths are remembered.
const VERSIONS_MAX: usize = 16;
/// Bytes that are read from a file at once, or asked for where no file will come.
const CHUNK_BYTES: u64 = 1 << 20;
/// Bytes that are asked for where the answer may be a file, which has more than these; or they
/// themselves, as soon as the last one has come. So the last parts of a range are small.
const ASKED_BYTES: u64 = 256 << 10;
const ASKED_BYTES_MIN: u64 = 64 << 10;
/// A range this long is announced, so that the server fetches it as one: parts of it may be asked for
/// one after the other, and lie in several of its blocks.
const AHEAD_BYTES: u64 = 128 << 10;

/// How often a server that cannot be reached is asked for. The link itself waits longer between attempts.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// In so many calls its return is waited for: after that they fail at once.
const PATIENT_CALLS: u32 = 4;

/// Places for open files, of the whole process: it has use for descriptors of its own.
static PLACES: LazyLock<Arc<Semaphore>> = LazyLock::new(|| {
    let open_max = getrlimit(Resource::RLIMIT_NOFILE).map_or(256, |(soft, _)| soft);
    let places = usize::try_from(open_max / FILES_SHARE).unwrap_or(usize::MAX);
    Arc::new(Semaphore::new(places.min(FILES_OF_ALL_MAX)))
});

/// An object behind a block server.
///
/// It has the server's version of the object, which is the one that its own source has, so that a
/// reader may change between both. A connection that is lost is made anew, and reading goes on with
/// the same version. One attempt per call: put a [`Retry`](crate::Retry) around it.
pub struct Served {
    pub(super) shared: Arc<Shared>,
    fallback: Option<Arc<dyn BlockSource>>,
}

pub(super) struct Shared {
    pub(super) name: String,
    url: String,
    pub(super) link: Link,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// How long one call waits for a server that cannot be reached.
    patience: Duration,
    /// Since when it cannot be, and when that was seen last.
    away: Option<(Instant, Instant)>,
    versions: VecDeque<(Version, u64)>,
    /// Of this connection, which has this number.
    connection: Weak<Connection>,
    generation: u64,
    handles: Vec<(Version, u32)>,
    files: VecDeque<Part>,
}

/// A part of the object in an open file.
#[derive(Clone)]
struct Part {
    version: Version,
    range: Range<u64>,
    file: Arc<Kept>,
    position: u64,
}

/// An open file, and its place.
struct Kept {
    file: File,
    _place: OwnedSemaphorePermit,
}

impl Part {
    fn place(&self, at: u64) -> u64 {
        self.position + (at - self.range.start)
    }
}

/// Why the server did not help.
pub(super) enum Failed {
    /// It could not be reached.
    Lost(Lost),
    /// It said so.
    Told(SourceError),
}

impl From<Lost> for Failed {
    fn from(lost: Lost) -> Failed {
        Failed::Lost(lost)
    }
}

impl From<SourceError> for Failed {
    fn from(error: SourceError) -> Failed {
        Failed::Told(error)
    }
}

impl Served {
    /// The object at `url`, as the server knows addresses. `name` is for metrics and errors: the
    /// address without secrets.
    ///
    /// # Errors
    /// [`SourceError::Permanent`] for an address that no frame has room for.
    pub fn new(name: &str, url: &str, link: Link) -> Result<Served, SourceError> {
        if url.len() > TEXT_BYTES_MAX {
            let reason = format!("an address of {} bytes is too long", url.len());
            return Err(SourceError::Permanent { object: name.to_owned(), reason, cause: None });
        }
        let shared =
            Shared { name: name.to_owned(), url: url.to_owned(), link, known: Mutex::default() };
        Ok(Served { shared: Arc::new(shared), fallback: None })
    }

    /// Reads from `source`, which must be the same object, while the server cannot be reached.
    pub fn fallback(self, source: Arc<dyn BlockSource>) -> Served {
        Served { fallback: Some(source), ..self }
    }

    /// Waits up to `patience` in each call for a server that cannot be reached, such as one that is being
    /// started anew, and up to four times that in calls that follow each other. Where there is a
    /// [`fallback`](Served::fallback), `stat` and `read` use it after that, and `read_into` at once. Default: zero.
    pub fn patience(self, patience: Duration) -> Served {
        self.shared.with(|known| known.patience = patience);
        self
    }
}

impl Shared {
    fn with<T>(&self, work: impl FnOnce(&mut Known) -> T) -> T {
        work(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The connection. A server that cannot be reached is tried for as long as patience lasts.
    async fn connection(&self) -> Result<Arc<Connection>, Lost> {
        let began = Instant::now();
        loop {
            match self.link.connection().await {
                Err(lost) if !lost.refused && self.is_patient(began) => {
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                found => {
                    if found.is_ok() {
                        self.with(|known| known.away = None);
                    }
                    return found;
                }
            }
        }
    }

    /// Whether a call that `began` then goes on to wait for a server that is away.
    fn is_patient(&self, began: Instant) -> bool {
        self.with(|known| {
            let (patience, now) = (known.patience, Instant::now());
            // It was away before, and nobody has asked for it for long.
            let since = known.away.filter(|(_, seen)| now - *seen < patience);
            let since = since.map_or(now, |(since, _)| since);
            known.away = Some((since, now));
            now - began + LOOK_AGAIN < patience && now - since < patience * PATIENT_CALLS
        })
    }

    pub(super) fn len_of(&self, version: &Version) -> Option<u64> {
        self.with(|known| {
            known.versions.iter().find(|(one, _)| one == version).map(|(_, len)| *len)
        })
    }

    /// Opens the object, at a version or at the one that it has, for whoever closes the handle.
    pub(super) async fn open_once(
        &self,
        connection: &Connection,
        pinned: Option<(Version, u64)>,
    ) -> Result<(u32, ObjectStat), Failed> {
        let expected = pinned.clone();
        let request = Request::Open { url: self.url.clone(), pinned };
        match connection.ask(&request).await? {
            Reply::Answer(Answer::Opened { handle, len, alignment, part_bytes, version }) => {
                // One version has one length: whoever reads on has counted on it.
                if let Some((_, expected)) =
                    expected.filter(|(one, had)| *one == version && *had != len)
                {
                    connection.close(handle);
                    let reason = format!("a version of {expected} bytes has {len} by now");
                    let object = self.name.clone();
                    return Err(Failed::Told(SourceError::Corrupt { object, range: None, reason }));
                }
                let (alignment, part_bytes) = (alignment.max(1), part_bytes.max(1));
                Ok((
                    handle,
                    ObjectStat::new(len, version)
                        .with_alignment(alignment)
                        .with_part_bytes(part_bytes),
                ))
            }
            other => Err(self.unexpected(other, None, None)),
        }
    }

    /// Opens the object, at a version or at the one that it has. One handle serves all.
    async fn open(
        &self,
        connection: &Arc<Connection>,
        pinned: Option<(Version, u64)>,
    ) -> Result<(u32, ObjectStat), Failed> {
        let (handle, stat) = self.open_once(connection, pinned).await?;
        let (before, oldest) = self.with(|known| {
            if known.generation != connection.generation {
                known.generation = connection.generation;
                known.connection = Arc::downgrade(connection);
                known.handles.clear();
            }
            // One handle for each version, and not for every time that somebody asked. The first one
            // stays: others may be about to use it.
            let before = known.handles.iter().find(|(version, _)| *version == stat.version);
            let before = before.map(|(_, handle)| *handle);
            if before.is_none() {
                known.handles.push((stat.version.clone(), handle));
            }
            let oldest = (known.handles.len() > VERSIONS_MAX).then(|| known.handles.remove(0).1);
            known.versions.retain(|(version, _)| *version != stat.version);
            known.versions.push_front((stat.version.clone(), stat.len));
            known.versions.truncate(VERSIONS_MAX);
            (before, oldest)
        });
        if let Some(oldest) = oldest {
            connection.close(oldest);
        }
        match before {
            Some(before) => {
                connection.close(handle);
                Ok((before, stat))
            }
            None => Ok((handle, stat)),
        }
    }

    /// The handle of a version on this connection.
    pub(super) async fn handle(
        &self,
        connection: &Arc<Connection>,
        version: &Version,
    ) -> Result<u32, Failed> {
        let known = self.with(|known| {
            let mut handles = known.handles.iter().rev();
            let is_this = known.generation == connection.generation;
            handles.find(|(one, _)| is_this && one == version).map(|(_, handle)| *handle)
        });
        if let Some(handle) = known {
            return Ok(handle);
        }
        let pinned = self.len_of(version).map(|len| (version.clone(), len));
        let (handle, stat) = self.open(connection, pinned).await?;
        if stat.version != *version {
            return Err(Failed::Told(self.changed(version, stat.version.to_string())));
        }
        Ok(handle)
    }

    pub(super) fn changed(&self, expected: &Version, found: String) -> SourceError {
        let (object, expected) = (self.name.clone(), expected.to_string());
        SourceError::Changed { object, expected, found }
    }

    fn transient(
        &self,
        what: &'static str,
        range: Option<Range<u64>>,
        reason: String,
    ) -> SourceError {
        let object = self.name.clone();
        SourceError::Transient { object, what, range, attempts: 1, reason, cause: None }
    }

    pub(super) fn failed(
        &self,
        what: &'static str,
        range: Option<&Range<u64>>,
        failed: Failed,
    ) -> SourceError {
        match failed {
            Failed::Told(error) => error,
            Failed::Lost(Lost { reason, refused: true }) => {
                SourceError::Denied { object: self.name.clone(), reason, cause: None }
            }
            Failed::Lost(Lost { reason, .. }) => self.transient(what, range.cloned(), reason),
        }
    }

    /// An answer that is none to the question: mostly an error.
    pub(super) fn unexpected(
        &self,
        reply: Reply,
        version: Option<&Version>,
        range: Option<&Range<u64>>,
    ) -> Failed {
        let object = self.name.clone();
        let Reply::Answer(Answer::Failed { code, retry_after_ms, text }) = reply else {
            return Failed::Lost(Lost::new("the block server answered another question"));
        };
        let retry_after = Duration::from_millis(retry_after_ms.into());
        Failed::Told(match code {
            Code::NotFound => SourceError::NotFound { object, cause: None },
            Code::Changed => {
                let expected = version.map_or_else(String::new, Version::to_string);
                SourceError::Changed { object, expected, found: text }
            }
            Code::Throttled => {
                let retry_after = Some(retry_after).filter(|wait| !wait.is_zero());
                let (what, range) = (if range.is_some() { "read" } else { "stat" }, range.cloned());
                SourceError::Throttled {
                    object,
                    what,
                    range,
                    attempts: 1,
                    retry_after,
                    cause: None,
                }
            }
            Code::Denied | Code::Unauthorized => {
                SourceError::Denied { object, reason: text, cause: None }
            }
            Code::Corrupt => SourceError::Corrupt { object, range: range.cloned(), reason: text },
            Code::Permanent | Code::Malformed => {
                SourceError::Permanent { object, reason: text, cause: None }
            }
            Code::Transient => self.transient("read", range.cloned(), text),
        })
    }

    /// A file that is open already and has the byte at `at`.
    fn part(&self, version: &Version, at: u64) -> Option<Part> {
        self.with(|known| {
            let has = |part: &Part| part.version == *version && part.range.contains(&at);
            let found = known.files.iter().position(has)?;
            let part = known.files.remove(found)?;
            known.files.push_front(part.clone());
            Some(part)
        })
    }

    fn keep(&self, part: Part) {
        self.with(|known| {
            // A later answer may know of more bytes of the same file.
            known.files.retain(|other| {
                other.version != part.version
                    || other.range.start < part.range.start
                    || other.range.end > part.range.end
            });
            known.files.push_front(part);
            known.files.truncate(FILES_MAX);
        });
    }

    /// A place for one more file. Where there is none, the file of this object that was not used for
    /// longest makes way, if it has any.
    fn place(&self) -> Option<OwnedSemaphorePermit> {
        let place = || PLACES.clone().try_acquire_owned().ok();
        place().or_else(|| {
            let oldest = self.with(|known| known.files.pop_back())?;
            drop(oldest);
            place()
        })
    }

    /// Bytes from the start of `range`: a part that has them, or they themselves.
    async fn next(&self, version: &Version, range: &Range<u64>) -> Result<Next, Failed> {
        if let Some(part) = self.part(version, range.start) {
            return Ok(Next::Part(part));
        }
        let connection = self.connection().await?;
        let handle = self.handle(&connection, version).await?;
        let place = if connection.has_files { self.place() } else { None };
        let file = place.is_some();
        // What has no strong version is seldom kept in a file, and bytes come in larger parts.
        let is_strong = version.strength() == Strength::Strong;
        let left = range.end - range.start;
        let length = left.min(connection.read_bytes_max).min(match file && is_strong {
            true => {
                (left / 2).next_multiple_of(ASKED_BYTES_MIN).clamp(ASKED_BYTES_MIN, ASKED_BYTES)
            }
            false => CHUNK_BYTES,
        });
        let request = Request::Read { handle, offset: range.start, length, file };
        let asked = range.start..range.start + length;
        match connection.ask(&request).await? {
            Reply::Bytes(bytes) if bytes.len() as u64 == length => Ok(Next::Bytes(bytes)),
            Reply::File { file, position, length } if length > 0 => {
                let Some(place) = place else {
                    return Err(Failed::Told(self.damaged(&asked, "a file instead of bytes")));
                };
                let end = range
                    .start
                    .checked_add(length)
                    .filter(|_| position.checked_add(length).is_some());
                let end =
                    end.ok_or_else(|| self.damaged(&asked, "a file with impossible places"))?;
                let part = Part {
                    version: version.clone(),
                    range: range.start..end,
                    file: Arc::new(Kept { file, _place: place }),
                    position,
                };
                self.keep(part.clone());
                Ok(Next::Part(part))
            }
            Reply::Bytes(bytes) => {
                let reason = format!("{} bytes instead of {length}", bytes.len());
                Err(Failed::Told(self.damaged(&asked, &reason)))
            }
            other => Err(self.unexpected(other, Some(version), Some(&asked))),
        }
    }

    fn damaged(&self, range: &Range<u64>, reason: &str) -> SourceError {
        let object = self.name.clone();
        SourceError::Corrupt { object, range: Some(range.clone()), reason: reason.to_owned() }
    }

    /// Tells the server what will be asked for.
    async fn announce(&self, version: &Version, range: &Range<u64>) {
        let has = self.part(version, range.start).is_some_and(|part| part.range.end >= range.end);
        if has || range.end - range.start < AHEAD_BYTES {
            return;
        }
        let Ok(connection) = self.link.connection().await else { return };
        let Ok(handle) = self.handle(&connection, version).await else { return };
        let (offset, length) = (range.start, range.end - range.start);
        connection.tell(&Request::Ahead { handle, offset, length });
    }

    /// The next chunk of a body.
    async fn chunk(&self, version: &Version, range: &Range<u64>) -> Result<Bytes, Failed> {
        let part = match self.next(version, range).await? {
            Next::Bytes(bytes) => return Ok(bytes),
            Next::Part(part) => part,
        };
        let end = range.end.min(part.range.end).min(range.start + CHUNK_BYTES);
        let (at, place) = (range.start..end, part.place(range.start));
        let read = tokio::task::spawn_blocking(move || {
            let mut bytes = BytesMut::zeroed((end - at.start) as usize);
            part.file.file.read_exact_at(&mut bytes, place).map(|()| bytes.freeze())
        });
        self.read_done(read.await, range.start..end)
    }

    fn read_done<T>(
        &self,
        done: Result<std::io::Result<T>, tokio::task::JoinError>,
        range: Range<u64>,
    ) -> Result<T, Failed> {
        match done {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                self.with(|known| known.files.clear());
                let reason = format!("a file of the block server cannot be read: {error}");
                Err(Failed::Told(self.transient("read", Some(range), reason)))
            }
            Err(_) => {
                let reason = "the runtime stopped".to_owned();
                Err(Failed::Told(self.transient("read", Some(range), reason)))
            }
        }
    }

    /// Appends `range` to `frame`, straight from files where it can.
    async fn fill(
        &self,
        version: &Version,
        range: Range<u64>,
        mut frame: Frame,
    ) -> Result<Frame, Failed> {
        let mut at = range.start;
        while at < range.end {
            let part = match self.next(version, &(at..range.end)).await? {
                Next::Bytes(bytes) => {
                    frame.put(&bytes);
                    at += bytes.len() as u64;
                    continue;
                }
                Next::Part(part) => part,
            };
            let end = range.end.min(part.range.end);
            let (count, place) = ((end - at) as usize, part.place(at));
            let read = tokio::task::spawn_blocking(move || {
                part.file.file.read_exact_at(&mut frame.unfilled()[..count], place)?;
                frame.advance(count);
                Ok(frame)
            });
            frame = self.read_done(read.await, at..end)?;
            at = end;
        }
        Ok(frame)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let known = self.known.get_mut().unwrap_or_else(PoisonError::into_inner);
        let Some(connection) = known.connection.upgrade() else { return };
        for (_, handle) in known.handles.drain(..) {
            connection.close(handle);
        }
    }
}

enum Next {
    Part(Part),
    Bytes(Bytes),
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl BlockSource for Served {
    fn name(&self) -> &str {
        &self.shared.name
    }

    async fn stat(&self) -> Result<ObjectStat, SourceError> {
        let opened = async {
            let connection = self.shared.connection().await?;
            self.shared.open(&connection, None).await
        };
        match opened.await {
            Ok((_, stat)) => Ok(stat),
            Err(Failed::Lost(lost)) => match &self.fallback {
                Some(source) => {
                    let stat = source.stat().await?;
                    self.shared.with(|known| {
                        known.versions.push_front((stat.version.clone(), stat.len));
                        known.versions.truncate(VERSIONS_MAX);
                    });
                    Ok(stat)
                }
                None => Err(self.shared.failed("stat", None, Failed::Lost(lost))),
            },
            Err(Failed::Told(error)) => Err(error),
        }
    }

    async fn read(&self, version: &Version, range: Range<u64>) -> Result<ByteStream, SourceError> {
        let shared = self.shared.clone();
        match shared.len_of(version) {
            Some(len) => check_range(self.name(), &range, len)?,
            None => check_shape(self.name(), &range)?,
        }
        shared.announce(version, &range).await;
        // What the server refuses is refused here, before the body.
        let first = match shared.chunk(version, &range).await {
            Ok(first) => first,
            Err(Failed::Lost(lost)) => {
                return match &self.fallback {
                    Some(source) => source.read(version, range).await,
                    None => Err(shared.failed("read", Some(&range), Failed::Lost(lost))),
                };
            }
            Err(Failed::Told(error)) => return Err(error),
        };
        let state = (shared, version.clone(), range, Some(Ok(first)));
        Ok(Box::pin(stream::unfold(state, |(shared, version, mut range, first)| async move {
            if range.start == range.end {
                return None;
            }
            let chunk = match first {
                Some(first) => first,
                None => shared
                    .chunk(&version, &range)
                    .await
                    .map_err(|failed| shared.failed("read", Some(&range), failed)),
            };
            match &chunk {
                Ok(bytes) => range.start += bytes.len() as u64,
                Err(_) => range.start = range.end,
            }
            Some((chunk, (shared, version, range, None)))
        })))
    }

    async fn read_into(
        &self,
        version: &Version,
        range: Range<u64>,
        frame: Frame,
    ) -> Result<Frame, SourceError> {
        let shared = &self.shared;
        match shared.len_of(version) {
            Some(len) => check_range(self.name(), &range, len)?,
            None => check_shape(self.name(), &range)?,
        }
        if let Some(source) = &self.fallback
            && shared.part(version, range.start).is_none()
            && shared.link.connection().await.is_err()
        {
            return source.read_into(version, range, frame).await;
        }
        shared.announce(version, &range).await;
        let filled = shared.fill(version, range.clone(), frame).await;
        filled.map_err(|failed| shared.failed("read", Some(&range), failed))
    }

    fn fills_frames(&self) -> bool {
        // What the server does not have yet has a round trip.
        false
    }

    fn at_once(&self) -> Option<&dyn ReadAtOnce> {
        // What the server does not have yet has a round trip.
        None
    }
}
