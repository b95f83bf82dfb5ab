//! Local files, read at positions on the runtime's blocking threads.
//!
//! The version is weak: inode, modification time in nanoseconds and length. A file that is written
//! in place twice within one tick of the kernel's clock can keep all three; who knows better may
//! map it as immutable.

use std::{
    fs::{self, File, Metadata},
    io,
    ops::Range,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::stream;
use pager::{BlockSource, ByteStream, Frame, ObjectStat, SourceError, Version};

use crate::{allow::AllowList, body::check_range};

/// One chunk of a stream: long enough to pay for the way to a blocking thread and back.
const CHUNK_BYTES: u64 = 1 << 20;

/// A file of this machine.
#[derive(Clone, Debug)]
pub struct Local {
    file: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    name: String,
    path: PathBuf,
    /// Where it may lie, links resolved. `None`: anywhere.
    folders: Option<Vec<PathBuf>>,
    /// The descriptor that `stat` opened. A file that is replaced by renaming keeps its old bytes
    /// here, so a region goes on reading what it opened.
    open: Mutex<Option<Arc<File>>>,
}

impl Local {
    /// A source for the file at `path`. Nothing is opened before the first `stat` or `read`.
    pub fn new(path: impl Into<PathBuf>) -> Local {
        let path = path.into();
        let name = path.display().to_string();
        Local { file: Arc::new(Shared { name, path, folders: None, open: Mutex::new(None) }) }
    }

    /// The same, refused if what is opened lies outside these folders, which must be real paths:
    /// links are followed, and the place that they lead to is what counts.
    pub fn within(self, folders: Vec<PathBuf>) -> Local {
        let Shared { name, path, .. } = &*self.file;
        let (name, path) = (name.clone(), path.clone());
        let file = Shared { name, path, folders: Some(folders), open: Mutex::new(None) };
        Local { file: Arc::new(file) }
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// Runs `work` where it may block.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> Result<T, SourceError> + Send + 'static,
    ) -> Result<T, SourceError> {
        let file = self.file.clone();
        let task = tokio::task::spawn_blocking(move || work(&file));
        task.await.unwrap_or_else(|stopped| {
            let cause: pager::Cause = Arc::new(stopped);
            Err(SourceError::Transient {
                object: self.file.name.clone(),
                what: "read",
                range: None,
                attempts: 1,
                reason: "the runtime stopped".to_owned(),
                cause: Some(cause),
            })
        })
    }
}

impl Shared {
    fn opened(&self) -> Option<Arc<File>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Opens the path anew and keeps the descriptor.
    fn reopen(&self) -> Result<(Arc<File>, Metadata), SourceError> {
        let failed = |error| self.error("open", None, error);
        // Asked before opening: opening a device may do something to it.
        if let Some(folders) = &self.folders {
            // Before anything is told about a file that is none of theirs.
            match fs::canonicalize(&self.path) {
                Ok(real) => self.check_place(folders, &real)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let parent = self.path.parent().unwrap_or(Path::new("/"));
                    let parent = fs::canonicalize(parent).map_err(|_| self.outside())?;
                    self.check_place(folders, &parent)?;
                    return Err(failed(error));
                }
                Err(_) => return Err(self.outside()),
            }
        }
        let kind = fs::metadata(&self.path).map_err(failed)?;
        self.check_kind(&kind)?;
        // Asked again of what was opened, without waiting for the other end of a pipe: somebody may
        // have put another file there meanwhile.
        let mut open = fs::OpenOptions::new();
        let file = open.read(true).custom_flags(libc::O_NONBLOCK).open(&self.path);
        let file = Arc::new(file.map_err(failed)?);
        let found = file.metadata().map_err(failed)?;
        self.check_kind(&found)?;
        self.check_empty(&file, &found)?;
        if let Some(folders) = &self.folders {
            // And once more, of what was opened: a link may have been turned meanwhile.
            let real = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
            self.check_place(folders, &real.map_err(failed)?)?;
        }
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = Some(file.clone());
        Ok((file, found))
    }

    fn outside(&self) -> SourceError {
        self.permanent("no such file may be opened here".to_owned())
    }

    fn check_place(&self, folders: &[PathBuf], real: &Path) -> Result<(), SourceError> {
        match AllowList::has_file(folders, real) {
            true => Ok(()),
            false => Err(self.outside()),
        }
    }

    fn check_kind(&self, found: &Metadata) -> Result<(), SourceError> {
        if found.is_file() {
            return Ok(());
        }
        let kind = if found.is_dir() { "a directory" } else { "no regular file" };
        Err(self
            .permanent(format!("it is {kind}, and only regular files can be read at positions")))
    }

    /// Refuses files that have bytes and say that they have none: the kernel makes them up as they
    /// are read.
    fn check_empty(&self, file: &File, found: &Metadata) -> Result<(), SourceError> {
        if found.len() > 0 || file.read_at(&mut [0], 0).is_ok_and(|got| got == 0) {
            return Ok(());
        }
        let reason = "it has bytes and tells no length, as files in /proc do; copy it and open the \
                      copy";
        Err(self.permanent(reason.to_owned()))
    }

    fn permanent(&self, reason: String) -> SourceError {
        SourceError::Permanent { object: self.name.clone(), reason, cause: None }
    }

    /// A descriptor of the file at `version`, and the file's length.
    fn at_version(&self, version: &Version) -> Result<(Arc<File>, u64), SourceError> {
        if let Some(file) = self.opened() {
            let found = file.metadata().map_err(|error| self.error("stat", None, error))?;
            if version_of(&found) == *version {
                return Ok((file, found.len()));
            }
        }
        let (file, found) = self.reopen()?;
        self.check(version, &found)?;
        Ok((file, found.len()))
    }

    fn check(&self, version: &Version, found: &Metadata) -> Result<(), SourceError> {
        let found = version_of(found);
        if found == *version {
            return Ok(());
        }
        Err(SourceError::Changed {
            object: self.name.clone(),
            expected: version.to_string(),
            found: found.to_string(),
        })
    }

    /// Fills `into` from `at`. Looks at the version again afterwards: a writer may have come
    /// between.
    fn fill(
        &self,
        file: &File,
        version: &Version,
        at: u64,
        into: &mut [u8],
    ) -> Result<(), SourceError> {
        let range = at..at + into.len() as u64;
        let read = file.read_exact_at(into, at);
        let found = file.metadata().map_err(|error| self.error("stat", None, error))?;
        self.check(version, &found)?;
        read.map_err(|error| self.error("read", Some(range), error))
    }

    fn error(
        &self,
        what: &'static str,
        range: Option<Range<u64>>,
        error: io::Error,
    ) -> SourceError {
        let object = self.name.clone();
        let reason = error.to_string();
        let kind = error.kind();
        let cause: Option<pager::Cause> = Some(Arc::new(error));
        match kind {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                SourceError::NotFound { object, cause }
            }
            io::ErrorKind::PermissionDenied => SourceError::Denied { object, reason, cause },
            io::ErrorKind::InvalidInput | io::ErrorKind::InvalidFilename => {
                SourceError::Permanent { object, reason, cause }
            }
            // Shorter than it says, and still the same file: some in /sys are.
            io::ErrorKind::UnexpectedEof => {
                let reason = "the file ended before its length".to_owned();
                SourceError::Corrupt { object, range, reason }
            }
            _ => SourceError::Transient { object, what, range, attempts: 1, reason, cause },
        }
    }
}

fn version_of(found: &Metadata) -> Version {
    Version::weak(format!(
        "inode {}:{} modified {}.{:09} length {}",
        found.dev(),
        found.ino(),
        found.mtime(),
        found.mtime_nsec(),
        found.len()
    ))
}

#[async_trait]
impl BlockSource for Local {
    fn name(&self) -> &str {
        &self.file.name
    }

    async fn stat(&self) -> Result<ObjectStat, SourceError> {
        let found = self.blocking(|file| file.reopen().map(|(_, found)| found)).await?;
        Ok(ObjectStat::new(found.len(), version_of(&found)).with_alignment(4096))
    }

    async fn read(&self, version: &Version, range: Range<u64>) -> Result<ByteStream, SourceError> {
        let wanted = (version.clone(), range.clone());
        let opened = self.blocking(move |shared| {
            let (file, len) = shared.at_version(&wanted.0)?;
            check_range(&shared.name, &wanted.1, len)?;
            Ok(file)
        });
        let file = opened.await?;
        let state = Some((self.clone(), file, version.clone(), range));
        Ok(Box::pin(stream::unfold(state, |state| async move {
            let (local, file, version, range) = state?;
            if range.is_empty() {
                return None;
            }
            let end = range.end.min(range.start + CHUNK_BYTES);
            let part = range.start..end;
            let (descriptor, wanted) = (file.clone(), version.clone());
            let chunk = local.blocking(move |shared| {
                let mut bytes = BytesMut::zeroed((part.end - part.start) as usize);
                shared.fill(&descriptor, &wanted, part.start, &mut bytes)?;
                Ok(Bytes::from(bytes))
            });
            match chunk.await {
                Ok(chunk) => Some((Ok(chunk), Some((local, file, version, end..range.end)))),
                Err(error) => Some((Err(error), None)),
            }
        })))
    }

    async fn read_into(
        &self,
        version: &Version,
        range: Range<u64>,
        mut frame: Frame,
    ) -> Result<Frame, SourceError> {
        let version = version.clone();
        self.blocking(move |shared| {
            let (file, len) = shared.at_version(&version)?;
            check_range(&shared.name, &range, len)?;
            let wanted = (range.end - range.start) as usize;
            shared.fill(&file, &version, range.start, &mut frame.unfilled()[..wanted])?;
            frame.advance(wanted);
            Ok(frame)
        })
        .await
    }

    fn fills_frames(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use futures::TryStreamExt;

    use super::*;

    async fn all(source: &Local, version: &Version, len: u64) -> Result<Vec<u8>, SourceError> {
        let stream = source.read(version, 0..len).await?;
        let chunks: Vec<Bytes> = stream.try_collect().await?;
        Ok(chunks.concat())
    }

    #[tokio::test]
    async fn a_file_written_in_place_is_changed_and_one_renamed_over_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("object");
        fs::write(&path, b"first").expect("write");
        let source = Local::new(&path);
        let stat = source.stat().await.expect("stat");
        assert_eq!(stat.len, 5);

        fs::write(folder.path().join("other"), b"other").expect("write");
        fs::rename(folder.path().join("other"), &path).expect("rename");
        assert_eq!(all(&source, &stat.version, 5).await.expect("the old file"), b"first");

        let second = source.stat().await.expect("stat");
        let mut file = fs::OpenOptions::new().append(true).open(&path).expect("open");
        file.write_all(b"!").expect("append");
        let error = all(&source, &second.version, 5).await.expect_err("written in place");
        assert!(matches!(error, SourceError::Changed { .. }), "{error}");
    }

    #[tokio::test]
    async fn what_is_no_file_says_so() {
        let folder = tempfile::tempdir().expect("a folder");
        let missing = Local::new(folder.path().join("missing"));
        assert!(matches!(missing.stat().await, Err(SourceError::NotFound { .. })));
        let directory = Local::new(folder.path());
        assert!(matches!(directory.stat().await, Err(SourceError::Permanent { .. })));
        let made_up = Local::new("/proc/self/status").stat().await;
        let error = made_up.expect_err("it has bytes, and a length of 0");
        assert!(error.to_string().contains("tells no length"), "{error}");
        let empty = folder.path().join("empty");
        fs::write(&empty, b"").expect("write");
        assert_eq!(Local::new(&empty).stat().await.expect("an empty file").len, 0);
        let device = Local::new("/dev/zero");
        assert!(matches!(device.stat().await, Err(SourceError::Permanent { .. })));
    }
}
