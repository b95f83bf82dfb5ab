//! Local files, replaced by renaming.
//!
//! ```text
//!   begin:  a new file beside the old one; a clone of it where the file system has reflinks
//!   write:  what lies in between is copied by the kernel, then these bytes
//!   commit: the rest is copied --> fsync --> is the old file the one that was read? --> rename --> fsync
//!                                            '------ under a lock of the folder ------'
//! ```
//!
//! A crash leaves the old file or the new one. A new file that a process left behind when it was killed
//! is taken away by the next that begins one in that folder.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use pager::{BlockSink, SinkError, SourceError, Version, Writing};

use super::version_of;
use crate::chance::Chance;

/// New files begin with this, and with a number that is theirs.
const PREFIX: &str = ".extmem-new-";

/// Others have the lock of a folder for as long as it takes to look, to rename and to reach the disk.
const LOCK_WAIT: Duration = Duration::from_secs(30);

/// Where the kernel has a file's access control list.
const ACL: &str = "system.posix_acl_access";
/// The most that an extended attribute can have.
const XATTR_BYTES_MAX: usize = 64 << 10;

/// Bytes that are copied in one call, where the kernel cannot do it by itself.
const COPIED_AT_A_TIME: u64 = 1 << 20;

/// Replaces a file of this machine as a whole: a [`BlockSink`].
///
/// Its versions are those of [`Local::only_replaced`](super::Local::only_replaced), and so is the
/// condition: sinks keep out of each other's way by a lock of the folder (`flock`), which other programs
/// do not know. Who writes the file in place, or renames another over it without that lock just as this
/// one looks and renames, is overlooked.
///
/// The new file has the permissions of the old one, its owner and group where this process may give
/// files away, and then its access control list (POSIX). What cannot be given to the new file lets nobody in
/// whom the old one kept out. Other extended attributes stay behind. Another hard link of the file goes on being the old one; a symbolic link is followed.
#[derive(Clone, Debug)]
pub struct LocalSink {
    name: String,
    path: PathBuf,
}

impl LocalSink {
    /// A sink for the file at `path`. Nothing is opened before a new version begins.
    pub fn new(path: impl Into<PathBuf>) -> LocalSink {
        let path = path.into();
        LocalSink { name: path.display().to_string(), path }
    }
}

#[async_trait]
impl BlockSink for LocalSink {
    fn name(&self) -> &str {
        &self.name
    }

    async fn begin(&self, base: &Version, len: u64) -> Result<Box<dyn Writing>, SinkError> {
        let (sink, base) = (self.clone(), base.clone());
        let file = blocking(&self.name, move || NewFile::begin(&sink, base, len)).await?;
        Ok(Box::new(Replacing(Some(Arc::new(file)))))
    }
}

/// Runs `work` where it may block.
async fn blocking<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> Result<T, SinkError> + Send + 'static,
) -> Result<T, SinkError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|stopped| {
        Err(SinkError::Unsettled {
            object: name.to_owned(),
            reason: "the runtime stopped".to_owned(),
            cause: Some(Arc::new(stopped)),
        })
    })
}

struct Replacing(Option<Arc<NewFile>>);

impl Replacing {
    fn file(&self) -> &Arc<NewFile> {
        self.0.as_ref().expect("there until it is dropped")
    }
}

impl Drop for Replacing {
    fn drop(&mut self) {
        // The last descriptor of a large file that is gone takes its time to close.
        let file = self.0.take();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || drop(file));
        }
    }
}

#[async_trait]
impl Writing for Replacing {
    async fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        let (file, bytes) = (self.file().clone(), bytes.to_vec());
        blocking(&self.file().name, move || file.write(offset, &bytes)).await
    }

    async fn commit(&mut self) -> Result<Version, SinkError> {
        let file = self.file().clone();
        blocking(&self.file().name, move || file.commit()).await
    }

    async fn abort(mut self: Box<Self>) {
        let file = self.0.take();
        let _ = tokio::task::spawn_blocking(move || drop(file)).await;
    }
}

/// A file that is about to take the place of another. Taken away on drop, unless it did.
struct NewFile {
    name: String,
    /// What was asked for.
    asked: PathBuf,
    /// Where the old file is, links resolved.
    path: PathBuf,
    folder: PathBuf,
    base: Version,
    len: u64,
    old: File,
    new: File,
    place: PathBuf,
    /// How far the new file has its bytes.
    done: Mutex<u64>,
    renamed: AtomicBool,
}

impl NewFile {
    fn begin(sink: &LocalSink, base: Version, len: u64) -> Result<NewFile, SinkError> {
        let name = sink.name.clone();
        let failed = |what| {
            let name = name.clone();
            move |error: io::Error| failure(&name, what, error)
        };
        let path = fs::canonicalize(&sink.path).map_err(failed("find"))?;
        let folder = path.parent().unwrap_or(Path::new("/")).to_owned();
        // A pipe would wait for its other end.
        let old = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path);
        let old = old.map_err(failed("open"))?;
        let found = old.metadata().map_err(failed("stat"))?;
        check(&name, &base, Some(&found))?;
        if !found.is_file() || found.len() != len {
            let reason = format!("it is no file of {len} bytes");
            return Err(SourceError::Permanent { object: name, reason, cause: None }.into());
        }
        let (new, place) = {
            let _locked = lock(&name, &folder)?;
            sweep(&folder);
            create(&folder).map_err(failed("create"))?
        };
        let renamed = AtomicBool::new(false);
        let done = Mutex::new(0);
        let asked = sink.path.clone();
        let file = NewFile { name, asked, path, folder, base, len, old, new, place, done, renamed };
        file.dress(&found).map_err(|error| failure(&file.name, "give away", error))?;
        // All bytes at once, and no byte written, where the file system can share them.
        if rustix::fs::ioctl_ficlone(&file.new, &file.old).is_ok() {
            *file.done.lock().unwrap_or_else(PoisonError::into_inner) = len;
        }
        Ok(file)
    }

    /// Permissions and, if we may, owner of the old file.
    fn dress(&self, old: &Metadata) -> io::Result<()> {
        let new = self.new.metadata()?;
        let same = (new.uid(), new.gid()) == (old.uid(), old.gid())
            || std::os::unix::fs::fchown(&self.new, Some(old.uid()), Some(old.gid())).is_ok();
        // What the folder has for new files is not what the old one had.
        let _ = rustix::fs::fremovexattr(&self.new, ACL);
        // What it may do as its owner or for its group is not for another one.
        let mode = old.mode() & if same { 0o7777 } else { 0o707 };
        let list = access_list(&self.old);
        // Beside a list these bits are the most that anybody on it may do, and say nothing of the group.
        let mode = if list.is_some() { mode & !0o070 } else { mode };
        self.new.set_permissions(fs::Permissions::from_mode(mode))?;
        if let (Some(list), true) = (list, same) {
            // Where it cannot be set, fewer may do what they did.
            let _ = rustix::fs::fsetxattr(&self.new, ACL, &list, rustix::fs::XattrFlags::empty());
        }
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        let end = offset.checked_add(bytes.len() as u64).filter(|&end| end <= self.len);
        let Some(end) = end else {
            let error = SourceError::bad_range(&self.name, offset..u64::MAX, self.len);
            return Err(error.into());
        };
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        self.copy(*done, offset).map_err(|error| failure(&self.name, "copy", error))?;
        self.new
            .write_all_at(bytes, offset)
            .map_err(|error| failure(&self.name, "write", error))?;
        *done = end.max(*done);
        Ok(())
    }

    /// Copies the bytes `from..to` of the old file. Nothing if that is less than nothing.
    fn copy(&self, mut from: u64, to: u64) -> io::Result<()> {
        while from < to {
            let (mut read, mut written) = (from, from);
            let n = (to - from).min(1 << 30) as usize;
            let copied = rustix::fs::copy_file_range(
                &self.old,
                Some(&mut read),
                &self.new,
                Some(&mut written),
                n,
            );
            match copied {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => from += n as u64,
                Err(rustix::io::Errno::INTR) => {}
                // Not every file system can.
                Err(_) => {
                    let mut bytes = vec![0; (to - from).min(COPIED_AT_A_TIME) as usize];
                    self.old.read_exact_at(&mut bytes, from)?;
                    self.new.write_all_at(&bytes, from)?;
                    from += bytes.len() as u64;
                }
            }
        }
        Ok(())
    }

    /// Renames the new file over the old one, if that is still there. The lock of the folder is held.
    fn replace(&self, new: &Metadata) -> Result<(), SinkError> {
        // A link may have been turned to another file meanwhile.
        let now = fs::canonicalize(&self.asked).ok().filter(|now| *now == self.path);
        let found = now.and_then(|now| fs::metadata(now).ok());
        check(&self.name, &self.base, found.as_ref())?;
        let renamed = fs::rename(&self.place, &self.path);
        let is_there = || {
            fs::metadata(&self.path)
                .is_ok_and(|found| (found.dev(), found.ino()) == (new.dev(), new.ino()))
        };
        match renamed {
            Err(error) if !is_there() => Err(failure(&self.name, "rename", error)),
            _ => {
                self.renamed.store(true, Ordering::SeqCst);
                Ok(())
            }
        }
    }

    fn commit(&self) -> Result<Version, SinkError> {
        let failed = |what| move |error| failure(&self.name, what, error);
        if !self.renamed.load(Ordering::SeqCst) {
            let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
            self.copy(*done, self.len).map_err(failed("copy"))?;
            *done = self.len;
            // It may have been written in place while it was copied.
            check(&self.name, &self.base, Some(&self.old.metadata().map_err(failed("stat"))?))?;
            self.new.sync_all().map_err(failed("sync"))?;
        }
        let new = self.new.metadata().map_err(failed("stat"))?;
        if !self.renamed.load(Ordering::SeqCst) {
            let _locked = lock(&self.name, &self.folder)?;
            // An attempt that nobody waited for may have come first.
            if !self.renamed.load(Ordering::SeqCst) {
                self.replace(&new)?;
            }
        }
        // Everybody sees it. Whether a crash of the machine leaves it so, the disk has to say.
        let synced = File::open(&self.folder).and_then(|folder| folder.sync_all());
        match synced {
            Ok(()) => Ok(version_of(&new, true)),
            Err(error) => Err(SinkError::Unsettled {
                object: self.name.clone(),
                reason: format!("its folder did not reach the disk: {error}"),
                cause: Some(Arc::new(error)),
            }),
        }
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.renamed.load(Ordering::SeqCst) {
            let _ = fs::remove_file(&self.place);
        }
    }
}

/// Who besides owner and group may do what with `file`, as the kernel has it. `None` if it has no such list.
fn access_list(file: &File) -> Option<Vec<u8>> {
    let mut list = vec![0; XATTR_BYTES_MAX];
    let len = rustix::fs::fgetxattr(file, ACL, &mut list[..]).ok()?;
    list.truncate(len);
    Some(list)
}

/// That `found` is the file at `base`.
fn check(name: &str, base: &Version, found: Option<&Metadata>) -> Result<(), SinkError> {
    let found = found.map(|found| version_of(found, true));
    if found.as_ref() == Some(base) {
        return Ok(());
    }
    Err(SinkError::Conflict {
        object: name.to_owned(),
        expected: base.to_string(),
        found: found.map_or_else(|| "no file".to_owned(), |found| found.to_string()),
    })
}

/// Keeps other sinks out of `folder` while it is held.
fn lock(name: &str, folder: &Path) -> Result<File, SinkError> {
    let folder = File::open(folder).map_err(|error| failure(name, "open the folder of", error))?;
    let start = Instant::now();
    loop {
        match folder.try_lock() {
            Ok(()) => return Ok(folder),
            Err(fs::TryLockError::WouldBlock) if start.elapsed() < LOCK_WAIT => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(failure(name, "lock the folder of", error.into())),
        }
    }
}

/// A new file of our own in `folder`, whose lock is held. Others see by its own lock that we live.
fn create(folder: &Path) -> io::Result<(File, PathBuf)> {
    let chance = Chance::seeded(Chance::any_seed());
    loop {
        let place = folder.join(format!("{PREFIX}{:016x}", chance.next()));
        // Nobody else reads it before it has the permissions of the old one.
        let options =
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&place);
        match options {
            Ok(file) => {
                if let Err(error) = file.lock() {
                    let _ = fs::remove_file(&place);
                    return Err(error);
                }
                return Ok((file, place));
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

/// Takes away new files in `folder`, whose lock is held, that no process has a lock of any more.
fn sweep(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if !entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            continue;
        }
        // Whatever bears such a name: a pipe must not keep us.
        let mut open = OpenOptions::new();
        open.read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW);
        let left = open.open(entry.path()).is_ok_and(|file| file.try_lock().is_ok());
        if left {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn failure(name: &str, what: &'static str, error: io::Error) -> SinkError {
    let object = name.to_owned();
    let reason = error.to_string();
    let kind = error.kind();
    let cause: Option<pager::Cause> = Some(Arc::new(error));
    SinkError::Failed(match kind {
        io::ErrorKind::NotFound => SourceError::NotFound { object, cause },
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            SourceError::Denied { object, reason, cause }
        }
        _ => {
            let (range, attempts) = (None, 1);
            SourceError::Transient { object, what, range, attempts, reason, cause }
        }
    })
}
