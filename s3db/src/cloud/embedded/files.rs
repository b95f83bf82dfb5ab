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
//! the process that holds it, so a killed one is in nobody's way.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use bytes::Bytes;
use crc_fast::{CrcAlgorithm, checksum};

use super::{check, system::now_ms, tag};
use crate::{
    cloud::{Delete, ETag, Fault, Get, Listing, Objects, Put, PutIf},
    error::StoreError,
};

/// Follows the name of each object's file, so that `a` and `a/b` can both be there.
const MARK: char = '@';
/// Lock files: processes that work on different names rarely meet.
const LOCKS: u32 = 256;
/// A temporary this old belongs to nobody any more.
const TEMPORARY_AGE: Duration = Duration::from_secs(3600);
/// A directory can go between its creation and a rename into it: how often it is made again.
const RENAMES_MAX: u32 = 10;

/// A bucket that is a directory of this machine.
#[derive(Clone)]
pub struct Files {
    root: PathBuf,
}

impl Files {
    /// A bucket in `root`. Nothing is created before the first put.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] when `root` is on a network file system, or no directory.
    pub fn open(root: &Path) -> Result<Files, StoreError> {
        let shown = root.display();
        let invalid = |what: String| StoreError::Invalid(what);
        let root = std::path::absolute(root).map_err(|e| invalid(format!("{shown}: {e}")))?;
        if root.exists() && !root.is_dir() {
            return Err(invalid(format!("{shown}: is no directory")));
        }
        let there = root.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        if let Some(kind) = network_file_system(there) {
            let why = "its locks and renames promise too little; use a local disk, or S3";
            return Err(invalid(format!("{shown} lies on {kind}: {why}")));
        }
        let files = Files { root };
        files.tidy();
        Ok(files)
    }

    /// Removes what processes left that were killed in the middle of a put.
    fn tidy(&self) {
        let Ok(entries) = fs::read_dir(self.root.join("temporary")) else { return };
        for entry in entries.flatten() {
            let age = entry.metadata().and_then(|about| about.modified());
            let age = age.ok().and_then(|at| SystemTime::now().duration_since(at).ok());
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

    /// The lock of `name`; `None` when nothing was ever put here and `creates` is false.
    fn lock(&self, name: &str, is_shared: bool, creates: bool) -> io::Result<Option<File>> {
        let number = checksum(CrcAlgorithm::Crc32Iscsi, name.as_bytes()) as u32 % LOCKS;
        let path = self.root.join("lock").join(format!("{number:02x}"));
        let open =
            || File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = match open() {
            Err(error) if error.kind() == ErrorKind::NotFound && creates => {
                make_directories(&self.root.join("lock"))?;
                open()?
            }
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        if is_shared {
            file.lock_shared()?
        } else {
            file.lock()?
        }
        Ok(Some(file))
    }

    fn get_now(&self, name: &str, unless: Option<&ETag>) -> io::Result<Get> {
        let Some(_lock) = self.lock(name, true, false)? else { return Ok(Get::Absent) };
        let Some(bytes) = read(&self.path(name))? else { return Ok(Get::Absent) };
        let (etag, date_ms) = (tag(&bytes), now_ms());
        if unless == Some(&etag) {
            return Ok(Get::Unchanged { date_ms });
        }
        Ok(Get::Found { bytes: bytes.into(), etag, date_ms })
    }

    fn put_now(&self, name: &str, bytes: &[u8], condition: &PutIf) -> io::Result<Put> {
        let temporary = Temporary::write(&self.root.join("temporary"), bytes)?;
        let path = self.path(name);
        let _lock = self.lock(name, false, true)?;
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
        for attempt in 0.. {
            match fs::rename(&temporary.path, &path) {
                Ok(()) => break,
                Err(e) if e.kind() == ErrorKind::NotFound && attempt < RENAMES_MAX => {
                    make_directories(parent)?;
                }
                Err(error) => return Err(error),
            }
        }
        if let Err(error) = sync(parent) {
            // Everyone sees it, and a power cut may take it back.
            let cause = error.to_string();
            return Ok(Put::Unknown(Fault::Unknown { what: name.to_owned(), cause }));
        }
        Ok(Put::Stored(tag(bytes)))
    }

    fn delete_now(&self, name: &str, only: Option<&ETag>) -> io::Result<Delete> {
        let Some(_lock) = self.lock(name, false, false)? else { return Ok(Delete::Gone) };
        let path = self.path(name);
        if let Some(only) = only {
            match read(&path)? {
                None => return Ok(Delete::Gone),
                Some(bytes) if tag(&bytes) != *only => return Ok(Delete::Refused),
                Some(_) => {}
            }
        }
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Delete::Gone),
            Err(error) => return Err(error),
        }
        if let Some(parent) = path.parent() {
            match sync(parent) {
                // An empty directory of a stream was removed by its last delete.
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            // Streams of clients come and go. A directory that is not empty stays.
            if parent != self.objects() && fs::remove_dir(parent).is_ok() {
                let _ = parent.parent().map(sync);
            }
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
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
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
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
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

/// The kind of network file system that `path` lies on, if it does.
#[cfg(target_os = "linux")]
fn network_file_system(path: &Path) -> Option<&'static str> {
    // statfs(2) lists these.
    const KINDS: [(u32, &str); 10] = [
        (0x6969, "NFS"),
        (0x517b, "SMB"),
        (0xff53_4d42, "CIFS"),
        (0xfe53_4d42, "SMB2"),
        (0x6573_5546, "FUSE"),
        (0x0102_1997, "9P"),
        (0x00c3_6400, "Ceph"),
        (0x5346_414f, "AFS"),
        (0x0bd0_0bd0, "Lustre"),
        (0x0116_1970, "GFS2"),
    ];
    let kind = nix::sys::statfs::statfs(path).ok()?.filesystem_type().0 as u32;
    KINDS.iter().find(|(magic, _)| *magic == kind).map(|(_, name)| *name)
}

#[cfg(not(target_os = "linux"))]
fn network_file_system(_path: &Path) -> Option<&'static str> {
    None
}

/// What an error of the file system means to a caller.
fn fault(name: &str, error: &io::Error) -> Fault {
    let (what, cause) = (name.to_owned(), error.to_string());
    match error.kind() {
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
