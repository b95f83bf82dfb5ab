//! Objects in a directory.
//!
//! ```text
//!   ROOT/objects/page/0123..@       an object: its name, and '@', which no name has
//!   ROOT/lock/00 .. ff              one lock for all names with the same hash
//!   ROOT/temporary/...              written and synced before it is renamed into place
//! ```
//!
//! A put is: temporary, fsync, lock, compare, rename, fsync of the directory, unlock. A reader takes
//! the same lock, shared, so that it never sees what a power cut could take back. The lock goes with
//! the process that holds it, so a killed one is in nobody's way: while a directory is changed and
//! not synced yet, its name stands in the lock file, and whoever takes the lock next syncs it first.

use std::{
    fs::{self, File, TryLockError},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use async_trait::async_trait;
use bytes::Bytes;
use crc_fast::{CrcAlgorithm, checksum};

use super::{check, system::now_ms, tag};
use crate::{
    cloud::{
        Delete, ETag, Fault, Get, Listing, Objects, Put, PutIf, objects::OBJECT_BYTES_MAX, own_disk,
    },
    error::StoreError,
    names::DATABASE,
};

/// Follows the name of each object's file, so that `a` and `a/b` can both be there.
const MARK: char = '@';
/// Lock files: processes that work on different names rarely meet.
const LOCKS: u32 = 256;
/// A temporary this old belongs to nobody any more.
const TEMPORARY_AGE: Duration = Duration::from_secs(3600);
/// A directory can go between its creation and a rename into it: how often it is made again.
const RENAMES_MAX: u32 = 10;

/// How long a lock is waited for: whoever holds it works on one or two files.
const LOCK_MAX: Duration = Duration::from_secs(30);
/// Bytes of the longest name of a directory in a lock file.
const UNSYNCED_BYTES_MAX: u64 = 256;

/// A bucket that is a directory of this machine.
#[derive(Clone)]
pub struct Files {
    root: PathBuf,
    lock_max: Duration,
    /// Whether remains of killed processes were looked for.
    is_tidy: Arc<AtomicBool>,
    /// Makes what was changed in a directory durable.
    sync: fn(&Path) -> io::Result<()>,
}

/// The lock of some names, held.
struct Lock(File);

impl Files {
    /// A bucket in `root`. Nothing is created before the first put.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] when `root` is on a network file system, or it cannot be told what it is on, or
    /// no directory.
    pub fn open(root: &Path) -> Result<Files, StoreError> {
        Files::open_on(root, own_disk::magic)
    }

    /// The same, where `magic` says what file system a folder lies on.
    fn open_on(root: &Path, magic: impl Fn(&Path) -> io::Result<u32>) -> Result<Files, StoreError> {
        let shown = root.display();
        let invalid = |what: String| StoreError::Invalid(what);
        let root = std::path::absolute(root).map_err(|e| invalid(format!("{shown}: {e}")))?;
        if root.exists() && !root.is_dir() {
            return Err(invalid(format!("{shown}: is no directory")));
        }
        let why = "its locks and renames promise too little; use a local disk, or S3";
        own_disk::require(&root, magic, why)?;
        Ok(Files { root, lock_max: LOCK_MAX, is_tidy: Arc::default(), sync })
    }

    /// Removes what processes left that were killed in the middle of a put: once, and only where a database
    /// is. Any folder can be named by mistake, and have another's files in one of this name.
    fn tidy(&self) {
        if self.is_tidy.load(Ordering::Relaxed) || !self.path(DATABASE).is_file() {
            return;
        }
        self.is_tidy.store(true, Ordering::Relaxed);
        let Ok(entries) = fs::read_dir(self.root.join("temporary")) else { return };
        for entry in entries.flatten() {
            // Of what a link leads to this says nothing.
            let Ok(about) = entry.metadata() else { continue };
            if !about.is_file() || !entry.file_name().to_str().is_some_and(Temporary::is_name) {
                continue;
            }
            let age =
                about.modified().ok().and_then(|at| SystemTime::now().duration_since(at).ok());
            if age.is_some_and(|age| age > TEMPORARY_AGE) {
                // Someone else may have removed it.
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn objects(&self) -> PathBuf {
        self.root.join("objects")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.objects().join(format!("{name}{MARK}"))
    }

    /// The lock of `name`; `None` when there is no such file and `creates` is false.
    fn lock(&self, name: &str, is_shared: bool, creates: bool) -> io::Result<Option<Lock>> {
        let number = checksum(CrcAlgorithm::Crc32Iscsi, name.as_bytes()) as u32 % LOCKS;
        let path = self.root.join("lock").join(format!("{number:02x}"));
        // Whoever only reads may be somebody who may write nothing here. Where there is no such file nobody writes
        // what has it.
        let open = || match is_shared {
            true => File::open(&path),
            false => {
                File::options().read(true).write(true).create(true).truncate(false).open(&path)
            }
        };
        let file = match open() {
            Err(error) if error.kind() == ErrorKind::NotFound && creates => {
                make_directories(&self.root.join("lock"))?;
                open()?
            }
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let began = Instant::now();
        let mut wait = Duration::from_micros(50);
        loop {
            let taken = if is_shared { file.try_lock_shared() } else { file.try_lock() };
            match taken {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if began.elapsed() < self.lock_max => {
                    // The kernel waits for a lock without any limit, or not at all.
                    std::thread::sleep(wait);
                    wait = (wait * 2).min(Duration::from_millis(5));
                }
                Err(error) => return Err(error.into()),
            }
        }
        let mut unsynced = Vec::new();
        (&file).take(UNSYNCED_BYTES_MAX).read_to_end(&mut unsynced)?;
        if !unsynced.is_empty() {
            // Whoever had the lock was killed, or could not sync: what it did may yet be undone.
            let name = String::from_utf8_lossy(&unsynced);
            if check(&name).is_ok() {
                self.sync_up(&self.objects().join(&*name))?;
            }
            if !is_shared {
                file.set_len(0)?;
            }
        }
        Ok(Some(Lock(file)))
    }

    /// Notes in the lock file that `directory` is about to be changed.
    fn begin(&self, lock: &Lock, directory: &Path) -> io::Result<()> {
        let name = directory.strip_prefix(self.objects()).ok().and_then(Path::to_str);
        // What lies beside all directories is in none.
        lock.0.write_all_at(name.filter(|name| !name.is_empty()).unwrap_or("-").as_bytes(), 0)
    }

    /// Makes durable what was changed in `directory` since [`Files::begin`]. After an error the next
    /// one who takes the lock tries again.
    fn end(&self, lock: &Lock, directory: &Path) -> io::Result<()> {
        self.sync_up(directory)?;
        // If this fails, somebody syncs once more.
        let _ = lock.0.set_len(0);
        Ok(())
    }

    /// Syncs a directory, or, where it was removed since, the one above it that is there.
    fn sync_up(&self, directory: &Path) -> io::Result<()> {
        let mut directory = directory;
        loop {
            match (self.sync)(directory) {
                Err(error) if error.kind() == ErrorKind::NotFound && directory != self.root => {
                    directory = directory.parent().unwrap_or(&self.root);
                }
                done => return done,
            }
        }
    }

    fn get_now(&self, name: &str, unless: Option<&ETag>) -> io::Result<Get> {
        let mut lock = self.lock(name, true, false)?;
        let mut found = read(&self.path(name))?;
        if lock.is_none() && found.is_some() {
            // Objects that came here without their locks, as from a backup. Or somebody puts the first one of these,
            // and is not done.
            lock = self.lock(name, true, false)?;
            found = if lock.is_some() { read(&self.path(name))? } else { found };
        }
        let Some(bytes) = found else { return Ok(Get::Absent) };
        let (etag, date_ms) = (tag(&bytes), now_ms());
        if unless == Some(&etag) {
            return Ok(Get::Unchanged { date_ms });
        }
        Ok(Get::Found { bytes: bytes.into(), etag, date_ms })
    }

    fn put_now(&self, name: &str, bytes: &[u8], condition: &PutIf) -> io::Result<Put> {
        self.tidy();
        let temporary = Temporary::write(&self.root.join("temporary"), bytes)?;
        let path = self.path(name);
        let Some(lock) = self.lock(name, false, true)? else {
            return Err(io::Error::other("the lock file vanished"));
        };
        let there = match condition {
            PutIf::Always => None,
            PutIf::Absent if path.try_exists()? => return Ok(Put::Refused),
            PutIf::Absent => None,
            PutIf::Matches(_) => read(&path)?.map(|bytes| tag(&bytes)),
        };
        match (condition, there) {
            (PutIf::Matches(_), None) => return Ok(Put::Missing),
            (PutIf::Matches(expected), Some(there)) if *expected != there => {
                return Ok(Put::Refused);
            }
            _ => {}
        }
        let parent = path.parent().expect("objects lie in a directory");
        self.begin(&lock, parent)?;
        for attempt in 0.. {
            match fs::rename(&temporary.path, &path) {
                Ok(()) => break,
                Err(e) if e.kind() == ErrorKind::NotFound && attempt < RENAMES_MAX => {
                    match make_directories(parent) {
                        // One of them went again.
                        Err(error) if error.kind() == ErrorKind::NotFound => {}
                        made => made?,
                    }
                }
                Err(error) => return Err(error),
            }
        }
        if let Err(error) = self.end(&lock, parent) {
            // It is there, and a power cut may take it back. Nobody sees it before it is synced.
            let cause = error.to_string();
            return Ok(Put::Unknown(Fault::Unknown { what: name.to_owned(), cause }));
        }
        Ok(Put::Stored(tag(bytes)))
    }

    fn delete_now(&self, name: &str, only: Option<&ETag>) -> io::Result<Delete> {
        let Some(lock) = self.lock(name, false, false)? else { return Ok(Delete::Gone) };
        let path = self.path(name);
        if let Some(only) = only {
            match read(&path)? {
                None => return Ok(Delete::Gone),
                Some(bytes) if tag(&bytes) != *only => return Ok(Delete::Refused),
                Some(_) => {}
            }
        }
        let parent = path.parent().expect("objects lie in a directory");
        self.begin(&lock, parent)?;
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let _ = lock.0.set_len(0);
                return Ok(Delete::Gone);
            }
            Err(error) => return Err(error),
        }
        if let Err(error) = self.end(&lock, parent) {
            let cause = error.to_string();
            return Ok(Delete::Unknown(Fault::Unknown { what: name.to_owned(), cause }));
        }
        // Clients and their streams come and go. A directory that is not empty stays.
        let objects = self.objects();
        let mut directory = parent;
        while directory != objects && fs::remove_dir(directory).is_ok() {
            let Some(above) = directory.parent() else { break };
            // An empty directory that a power cut brings back is in nobody's way.
            let _ = (self.sync)(above);
            directory = above;
        }
        Ok(Delete::Gone)
    }

    fn list_now(&self, prefix: &str, after: Option<&str>, max: usize) -> io::Result<Listing> {
        let mut walk =
            Walk { prefix, after: after.unwrap_or(""), most: max + 1, names: Vec::new() };
        walk.directory(&self.objects(), "")?;
        let mut names = walk.names;
        let more = names.len() > max;
        names.truncate(max);
        Ok(Listing { names, more })
    }
}

/// A walk over a directory in the order of the names of its objects.
struct Walk<'a> {
    prefix: &'a str,
    after: &'a str,
    most: usize,
    names: Vec<String>,
}

impl Walk<'_> {
    /// Visits what lies in `path`, whose objects' names begin with `base`.
    fn directory(&mut self, path: &Path, base: &str) -> io::Result<()> {
        let entries = match fs::read_dir(path) {
            // Gone meanwhile, or a file that is none of ours.
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                return Ok(());
            }
            entries => entries?,
        };
        // With its '/' a directory sorts as the names in it do.
        let mut parts = Vec::new();
        for entry in entries {
            let entry = entry?;
            let Ok(part) = entry.file_name().into_string() else { continue };
            match part.strip_suffix(MARK) {
                Some(part) => parts.push(format!("{base}{part}")),
                None => parts.push(format!("{base}{part}/")),
            }
        }
        parts.sort_unstable();
        for name in parts {
            if self.names.len() == self.most {
                break;
            }
            if name.ends_with('/') {
                let leads_on = name.starts_with(self.prefix) || self.prefix.starts_with(&name);
                let is_over = *name <= *self.after && !self.after.starts_with(&name);
                if leads_on && !is_over {
                    let part = name.strip_prefix(base).unwrap_or(&name);
                    self.directory(&path.join(part), &name)?;
                }
            } else if name.starts_with(self.prefix) && *name > *self.after {
                self.names.push(name);
            }
        }
        Ok(())
    }
}

/// A file that is removed unless it was renamed.
struct Temporary {
    path: PathBuf,
}

impl Temporary {
    /// Whether [`Temporary::write`] gives such names.
    fn is_name(name: &str) -> bool {
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        name.split_once('-').is_some_and(|(process, random)| {
            process.parse::<u32>().is_ok_and(|id| id.to_string() == process)
                && random.len() == 16
                && random.bytes().all(is_hex)
        })
    }

    fn write(folder: &Path, bytes: &[u8]) -> io::Result<Temporary> {
        let random = getrandom::u64().map_err(io::Error::other)?;
        let path = folder.join(format!("{}-{random:016x}", std::process::id()));
        let create = || File::options().write(true).create_new(true).open(&path);
        let mut file = match create() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                make_directories(folder)?;
                create()?
            }
            file => file?,
        };
        let temporary = Temporary { path: path.clone() };
        file.write_all(bytes)?;
        file.sync_all()?;
        Ok(temporary)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Not there after the rename.
        let _ = fs::remove_file(&self.path);
    }
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let len = file.metadata()?.len();
    if len > OBJECT_BYTES_MAX as u64 {
        let what = format!("{len} bytes, where an object has at most {OBJECT_BYTES_MAX}");
        return Err(io::Error::new(ErrorKind::FileTooLarge, what));
    }
    let mut bytes = Vec::with_capacity(len as usize);
    // It is renamed into place whole; what grows nevertheless is none of ours.
    file.take(OBJECT_BYTES_MAX as u64).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Makes `path` and what leads to it, each durable in its parent.
fn make_directories(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let Some(parent) = path.parent() else { return Ok(()) };
    make_directories(parent)?;
    match fs::create_dir(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => sync(parent),
    }
}

/// What an error of the file system means to a caller.
fn fault(name: &str, error: &io::Error) -> Fault {
    let (what, cause) = (name.to_owned(), error.to_string());
    match error.kind() {
        // Only a lock that is not had in time says so, before anything is done.
        ErrorKind::WouldBlock => Fault::Throttled { what },
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            Fault::Denied { what, cause }
        }
        _ => Fault::Invalid { what, cause },
    }
}

/// Runs what blocks where it may.
async fn blocking<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Fault> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(fault(name, &error)),
        Err(error) => Err(Fault::Unknown { what: name.to_owned(), cause: error.to_string() }),
    }
}

#[async_trait]
impl Objects for Files {
    async fn get(&self, name: &str, unless: Option<&ETag>) -> Result<Get, Fault> {
        check(name)?;
        let (files, object, unless) = (self.clone(), name.to_owned(), unless.cloned());
        blocking(name, move || files.get_now(&object, unless.as_ref())).await
    }

    async fn put(&self, name: &str, bytes: Bytes, condition: PutIf) -> Put {
        if let Err(fault) = check(name) {
            return Put::Failed(fault);
        }
        if bytes.len() > OBJECT_BYTES_MAX {
            let cause = format!("an object has at most {OBJECT_BYTES_MAX} bytes");
            return Put::Failed(Fault::Invalid { what: name.to_owned(), cause });
        }
        let (files, object) = (self.clone(), name.to_owned());
        match blocking(name, move || files.put_now(&object, &bytes, &condition)).await {
            Ok(put) => put,
            Err(fault @ Fault::Unknown { .. }) => Put::Unknown(fault),
            Err(fault) => Put::Failed(fault),
        }
    }

    async fn delete(&self, name: &str, only: Option<&ETag>) -> Delete {
        if let Err(fault) = check(name) {
            return Delete::Failed(fault);
        }
        let (files, object, only) = (self.clone(), name.to_owned(), only.cloned());
        match blocking(name, move || files.delete_now(&object, only.as_ref())).await {
            Ok(delete) => delete,
            Err(fault @ Fault::Unknown { .. }) => Delete::Unknown(fault),
            Err(fault) => Delete::Failed(fault),
        }
    }

    async fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> Result<Listing, Fault> {
        let (files, prefix, after) = (self.clone(), prefix.to_owned(), after.map(str::to_owned));
        let shown = prefix.clone();
        blocking(&shown, move || files.list_now(&prefix, after.as_deref(), max)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(root: &Path) -> Files {
        Files { lock_max: Duration::from_millis(50), ..Files::open(root).unwrap() }
    }

    fn broken(_: &Path) -> io::Result<()> {
        Err(io::Error::other("the disk is broken"))
    }

    fn lock_files(root: &Path) -> Vec<(PathBuf, u64)> {
        let entries = fs::read_dir(root.join("lock")).unwrap().map(Result::unwrap);
        entries.map(|entry| (entry.path(), entry.metadata().unwrap().len())).collect()
    }

    /// Nothing is made there, and a folder whose file system cannot be told is none either.
    #[test]
    fn a_network_file_system_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("db");
        for (answer, what) in [(Ok(0x6969), "lies on NFS: its locks"), (Err(()), "cannot be told")]
        {
            let magic = |_: &Path| answer.map_err(|()| io::Error::other("no answer"));
            let Err(error) = Files::open_on(&root, magic) else { panic!("opened: {what}") };
            assert!(error.to_string().contains(what), "{error}");
        }
        Files::open_on(&root, |_| Ok(0xef53)).unwrap();
        Files::open(&root).unwrap();
        assert!(!root.exists());
    }

    /// A process that is stopped in the middle of a put would have stopped all others for good.
    #[tokio::test]
    async fn a_lock_is_not_waited_for_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        assert!(matches!(files.put("page/a", "x".into(), PutIf::Absent).await, Put::Stored(_)));
        let held = File::open(&lock_files(folder.path())[0].0).unwrap();
        held.lock().unwrap();
        assert!(matches!(files.get("page/a", None).await, Err(Fault::Throttled { .. })));
        let put = files.put("page/a", "y".into(), PutIf::Always).await;
        assert!(matches!(put, Put::Failed(Fault::Throttled { .. })), "{put:?}");
        let delete = files.delete("page/a", None).await;
        assert!(matches!(delete, Delete::Failed(Fault::Throttled { .. })), "{delete:?}");
        held.unlock().unwrap();
        assert!(matches!(files.get("page/a", None).await, Ok(Get::Found { .. })));
    }

    /// What could not be made durable was seen by readers, who then said that it was committed.
    #[tokio::test]
    async fn nobody_sees_what_is_not_durable() {
        let folder = tempfile::tempdir().unwrap();
        let good = files(folder.path());
        let bad = Files { sync: broken, ..good.clone() };
        good.put("page/a", "old".into(), PutIf::Absent).await;
        let put = bad.put("page/a", "new".into(), PutIf::Always).await;
        assert!(matches!(put, Put::Unknown(_)), "{put:?}");
        for _ in 0..2 {
            let got = bad.get("page/a", None).await;
            assert!(got.is_err(), "{got:?}");
        }
        // The next one who can makes it durable first.
        let got = good.get("page/a", None).await.unwrap();
        assert!(matches!(&got, Get::Found { bytes, .. } if bytes == "new"), "{got:?}");
        good.put("page/a", "newer".into(), PutIf::Always).await;
        let Delete::Unknown(_) = bad.delete("page/a", None).await else {
            panic!("certain of what may be undone");
        };
        assert!(bad.get("page/a", None).await.is_err());
        assert_eq!(good.get("page/a", None).await, Ok(Get::Absent));
        good.put("page/b", "x".into(), PutIf::Absent).await;
    }

    /// The same when the process was killed between the two.
    #[tokio::test]
    async fn what_a_killed_process_began_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let good = files(folder.path());
        good.put("page/a", "x".into(), PutIf::Absent).await;
        let lock = good.lock("page/a", false, true).unwrap().unwrap();
        good.begin(&lock, &good.objects().join("page")).unwrap();
        drop(lock);
        let bad = Files { sync: broken, ..good.clone() };
        assert!(bad.get("page/a", None).await.is_err());
        assert!(matches!(good.get("page/a", None).await, Ok(Get::Found { .. })));
        assert!(matches!(good.put("page/a", "y".into(), PutIf::Always).await, Put::Stored(_)));
        assert!(matches!(bad.get("page/a", None).await, Ok(Get::Found { .. })), "nothing to do");
        assert!(lock_files(folder.path()).iter().all(|(_, len)| *len == 0));
    }

    #[tokio::test]
    async fn directories_go_with_what_was_in_them() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        for name in ["log/c/1/a", "log/c/1/b", "log/d/1/a"] {
            files.put(name, "x".into(), PutIf::Absent).await;
        }
        for name in ["log/c/1/a", "log/c/1/b"] {
            assert_eq!(files.delete(name, None).await, Delete::Gone);
        }
        let log = files.objects().join("log");
        assert!(!log.join("c").exists() && log.join("d").exists());
        assert_eq!(files.delete("log/d/1/a", None).await, Delete::Gone);
        assert!(!log.exists() && files.objects().exists());
    }

    /// What was copied without its locks, which nothing says are of any use, was not there.
    #[tokio::test]
    async fn objects_without_their_locks_are_there() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        files.put("page/a", "x".into(), PutIf::Absent).await;
        fs::remove_dir_all(folder.path().join("lock")).unwrap();
        let there = async |expected: &str| match files.get("page/a", None).await.unwrap() {
            Get::Found { bytes, etag, .. } => {
                assert_eq!(bytes, expected);
                etag
            }
            other => panic!("{other:?}"),
        };
        let etag = there("x").await;
        assert!(matches!(files.get("page/b", None).await.unwrap(), Get::Absent));
        let put = files.put("page/a", "y".into(), PutIf::Matches(etag)).await;
        assert!(matches!(put, Put::Stored(_)), "{put:?}");
        there("y").await;
    }

    /// A file that somebody put among the objects made every list fail.
    #[tokio::test]
    async fn foreign_files_are_in_nobodys_way() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        files.put("page/a", "x".into(), PutIf::Absent).await;
        for stray in ["stray", "page/stray", "page/.DS_Store"] {
            fs::write(files.objects().join(stray), "noise").unwrap();
        }
        for prefix in ["", "page/", "page/s"] {
            let names = files.list(prefix, None, 10).await.unwrap().names;
            assert_eq!(names.len(), usize::from(prefix != "page/s"), "{prefix}");
        }
        // One that is as large as no object is not read.
        let huge = File::create(files.path("page/huge")).unwrap();
        huge.set_len(1 << 40).unwrap();
        let got = files.get("page/huge", None).await.unwrap_err();
        assert!(matches!(&got, Fault::Invalid { cause, .. } if cause.contains("bytes")), "{got}");
    }
}
