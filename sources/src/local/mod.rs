//! Local files, read at positions on the runtime's blocking threads, or on that which hears of a page fault.
//!
//! The version is weak: inode, modification time in nanoseconds and length. A file that is written
//! in place twice within one tick of the kernel's clock can keep all three; who knows better may
//! map it as immutable, or say that it is [only replaced](Local::only_replaced).

mod sink;

pub use sink::LocalSink;

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
use pager::{BlockSource, ByteStream, Frame, ObjectStat, ReadAtOnce, SourceError, Version};

use crate::{allow::AllowList, body::check_range};

/// What is read past the kernel's cache begins and ends at multiples of this, in the file and in memory: the
/// logical block of any disk, or several.
const BLOCK_BYTES: usize = 4096;

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
    /// Whether frames are filled past the kernel's cache.
    direct: bool,
    /// Whether the file is only ever replaced, by the word of the program.
    strong: bool,
    /// What `stat` opened. A file that is replaced by renaming keeps its old bytes here, so a region goes on
    /// reading what it opened.
    open: Mutex<Option<Arc<Opened>>>,
}

#[derive(Debug)]
struct Opened {
    file: File,
    /// The same file, past the kernel's cache.
    direct: Option<File>,
}

impl Local {
    /// A source for the file at `path`. Nothing is opened before the first `stat` or `read`.
    pub fn new(path: impl Into<PathBuf>) -> Local {
        let path = path.into();
        let name = path.display().to_string();
        let (folders, direct, strong, open) = (None, false, false, Mutex::new(None));
        Local::of(Shared { name, path, folders, direct, strong, open })
    }

    fn of(shared: Shared) -> Local {
        Local { file: Arc::new(shared) }
    }

    /// The same file with other settings and nothing open.
    fn anew(&self, change: impl FnOnce(&mut Shared)) -> Local {
        let Shared { name, path, folders, direct, strong, .. } = &*self.file;
        let (name, path, folders) = (name.clone(), path.clone(), folders.clone());
        let (direct, strong, open) = (*direct, *strong, Mutex::new(None));
        let mut shared = Shared { name, path, folders, direct, strong, open };
        change(&mut shared);
        Local::of(shared)
    }

    /// The same, refused if what is opened lies outside these folders, which must be real paths:
    /// links are followed, and the place that they lead to is what counts.
    pub fn within(self, folders: Vec<PathBuf>) -> Local {
        self.anew(|file| file.folders = Some(folders))
    }

    /// The same, read past the kernel's cache into the frames of a pager (`O_DIRECT`): no copy is made, and
    /// none stays there beside the pager's. For files that are read once, or that the pager's budget has
    /// room for; what another pass needs again comes from the disk again, even what the kernel's cache has.
    /// Where file system or place allow none of it, the kernel's cache is read as ever.
    pub fn direct(self) -> Local {
        self.anew(|file| file.direct = true)
    }

    /// The same, where the program knows that nobody writes the file in place: it is only ever replaced
    /// by another that is renamed over it, as [`LocalSink`] does. Then its version is strong, as an inode
    /// that is open here is no other file's. Writes in place are told as far as they can be seen, as ever.
    pub fn only_replaced(self) -> Local {
        self.anew(|file| file.strong = true)
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
    fn opened(&self) -> Option<Arc<Opened>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Opens the path anew and keeps the descriptor.
    fn reopen(&self) -> Result<(Arc<Opened>, Metadata), SourceError> {
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
        let file = file.map_err(failed)?;
        let found = file.metadata().map_err(failed)?;
        self.check_kind(&found)?;
        self.check_empty(&file, &found)?;
        if let Some(folders) = &self.folders {
            // And once more, of what was opened: a link may have been turned meanwhile.
            let real = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
            self.check_place(folders, &real.map_err(failed)?)?;
        }
        // By the descriptor: the path may lead elsewhere by now.
        let same = format!("/proc/self/fd/{}", file.as_raw_fd());
        let direct =
            self.direct.then(|| open.custom_flags(libc::O_DIRECT).open(same).ok()).flatten();
        let opened = Arc::new(Opened { file, direct });
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = Some(opened.clone());
        Ok((opened, found))
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

    /// The file at `version`, and its length.
    fn at_version(&self, version: &Version) -> Result<(Arc<Opened>, u64), SourceError> {
        if let Some(opened) = self.opened() {
            let found = opened.file.metadata().map_err(|error| self.error("stat", None, error))?;
            if version_of(&found, self.strong) == *version {
                return Ok((opened, found.len()));
            }
        }
        let (opened, found) = self.reopen()?;
        self.check(version, &found)?;
        Ok((opened, found.len()))
    }

    fn check(&self, version: &Version, found: &Metadata) -> Result<(), SourceError> {
        let found = version_of(found, self.strong);
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
        opened: &Opened,
        version: &Version,
        at: u64,
        into: &mut [u8],
    ) -> Result<(), SourceError> {
        let range = at..at + into.len() as u64;
        let read = opened.read_exact_at(into, at);
        let found = opened.file.metadata().map_err(|error| self.error("stat", None, error))?;
        self.check(version, &found)?;
        read.map_err(|error| self.error("read", Some(range), error))
    }

    /// Appends the bytes `range` of `version` to `frame`.
    fn read_frame(
        &self,
        version: &Version,
        range: Range<u64>,
        mut frame: Frame,
    ) -> Result<Frame, SourceError> {
        let (opened, len) = self.at_version(version)?;
        check_range(&self.name, &range, len)?;
        let wanted = (range.end - range.start) as usize;
        self.fill(&opened, version, range.start, &mut frame.unfilled()[..wanted])?;
        frame.advance(wanted);
        Ok(frame)
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

impl Opened {
    fn read_exact_at(&self, into: &mut [u8], at: u64) -> io::Result<()> {
        let done = self.direct.as_ref().map_or(0, |direct| read_blocks_at(direct, into, at));
        self.file.read_exact_at(&mut into[done..], at + done as u64)
    }
}

/// Reads whole blocks of `direct` into the front of `into`, as far as that goes; returns the bytes read. Whoever
/// reads the rest by another way finds out why no more came.
fn read_blocks_at(direct: &File, into: &mut [u8], at: u64) -> usize {
    let is_block = |n: usize| n.is_multiple_of(BLOCK_BYTES);
    let whole = into.len() - into.len() % BLOCK_BYTES;
    if !at.is_multiple_of(BLOCK_BYTES as u64) || !is_block(into.as_ptr().addr()) {
        return 0;
    }
    let mut done = 0;
    while done < whole && is_block(done) {
        match direct.read_at(&mut into[done..whole], at + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    done
}

fn version_of(found: &Metadata, strong: bool) -> Version {
    let token = format!(
        "inode {}:{} modified {}.{:09} length {}",
        found.dev(),
        found.ino(),
        found.mtime(),
        found.mtime_nsec(),
        found.len()
    );
    if strong { Version::strong(token) } else { Version::weak(token) }
}

#[async_trait]
impl BlockSource for Local {
    fn name(&self) -> &str {
        &self.file.name
    }

    async fn stat(&self) -> Result<ObjectStat, SourceError> {
        let found = self.blocking(|file| file.reopen().map(|(_, found)| found)).await?;
        let version = version_of(&found, self.file.strong);
        Ok(ObjectStat::new(found.len(), version).with_alignment(4096))
    }

    async fn read(&self, version: &Version, range: Range<u64>) -> Result<ByteStream, SourceError> {
        let wanted = (version.clone(), range.clone());
        let opened = self.blocking(move |shared| {
            let (opened, len) = shared.at_version(&wanted.0)?;
            check_range(&shared.name, &wanted.1, len)?;
            Ok(opened)
        });
        let opened = opened.await?;
        let state = Some((self.clone(), opened, version.clone(), range));
        Ok(Box::pin(stream::unfold(state, |state| async move {
            let (local, opened, version, range) = state?;
            if range.is_empty() {
                return None;
            }
            let end = range.end.min(range.start + CHUNK_BYTES);
            let part = range.start..end;
            let (from, wanted) = (opened.clone(), version.clone());
            let chunk = local.blocking(move |shared| {
                let mut bytes = BytesMut::zeroed((part.end - part.start) as usize);
                shared.fill(&from, &wanted, part.start, &mut bytes)?;
                Ok(Bytes::from(bytes))
            });
            match chunk.await {
                Ok(chunk) => Some((Ok(chunk), Some((local, opened, version, end..range.end)))),
                Err(error) => Some((Err(error), None)),
            }
        })))
    }

    async fn read_into(
        &self,
        version: &Version,
        range: Range<u64>,
        frame: Frame,
    ) -> Result<Frame, SourceError> {
        let version = version.clone();
        self.blocking(move |shared| shared.read_frame(&version, range, frame)).await
    }

    fn fills_frames(&self) -> bool {
        true
    }

    fn at_once(&self) -> Option<&dyn ReadAtOnce> {
        Some(self)
    }
}

impl ReadAtOnce for Local {
    fn read_at_once(
        &self,
        version: &Version,
        range: Range<u64>,
        frame: Frame,
    ) -> Result<Frame, SourceError> {
        self.file.read_frame(version, range, frame)
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

    /// Bytes that this process had from disks.
    fn read_bytes() -> u64 {
        let io = fs::read_to_string("/proc/self/io").expect("counters of this process");
        let line =
            io.lines().find_map(|line| line.strip_prefix("read_bytes: ")).expect("a counter");
        line.parse().expect("a number")
    }

    /// A pass over a file that is larger than memory pushed everything else out of the kernel's cache, and was
    /// slower than the disk for the copy.
    #[tokio::test]
    async fn what_is_read_directly_stays_out_of_the_kernels_cache() {
        const LEN: usize = (24 << 20) + 12_345;
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("object");
        let bytes: Vec<u8> =
            (0..LEN as u64).map(|n| (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect();
        fs::write(&path, &bytes).expect("write");
        let file = File::open(&path).expect("open");
        file.sync_all().expect("on the disk");
        let drop_cache = || {
            let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
            nix::fcntl::posix_fadvise(&file, 0, 0, advice).expect("advice");
        };
        let source =
            Local::new(&path).direct().within(vec![folder.path().canonicalize().expect("real")]);
        let stat = source.stat().await.expect("stat");
        drop_cache();
        let before = read_bytes();
        // Units of a pager, the last of them shorter than a block of the disk; and one in the middle of a block.
        for part in [0..8 << 20, 8 << 20..24 << 20, 24 << 20..LEN, 4097..9000, 4096..4097, 7..8] {
            let range = part.start as u64..part.end as u64;
            let frame = Frame::with_capacity(part.len());
            let frame = source.read_into(&stat.version, range, frame).await.expect("read");
            assert!(frame.filled() == &bytes[part.clone()], "{part:?}");
        }
        if read_bytes() - before < 24 << 20 {
            return println!("left out: direct reads: {} is on no disk", path.display());
        }
        let before = read_bytes();
        assert!(fs::read(&path).expect("read") == bytes);
        let missing = read_bytes() - before;
        assert!(missing >= 20 << 20, "only {missing} bytes had to be read again");

        // What is written meanwhile shows, as ever.
        fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .and_then(|mut f| f.write_all(b"!"))
            .expect("append");
        let read = source.read_into(&stat.version, 0..4096, Frame::with_capacity(4096)).await;
        assert!(matches!(read, Err(SourceError::Changed { .. })), "{:?}", read.err());
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
