//! A disk of this machine that keeps copies of pages, for as long as it likes.
//!
//! Nothing depends on it. What comes back may be older than what was written, cut off, damaged, another
//! file's, or not there: whoever reads checks all of it, and asks the object store whether it is still
//! current. So nothing is synced, and no lock is held: files are written aside and renamed into place,
//! and any number of processes may read, replace and remove them at once.

use std::{
    fmt,
    fs::{self, File},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use bytes::Bytes;

use crate::{cloud::own_disk, error::StoreError};

/// What names of files end with, so that no file of anybody else's is ever touched.
const PAGE: &str = ".s3db-page";
/// The same of those that are being written.
const TEMPORARY: &str = ".s3db-temporary";
/// A temporary file this old belongs to nobody any more.
const TEMPORARY_AGE: Duration = Duration::from_secs(3600);
/// A file that is read is marked as used no more often than this.
const USED_AGE: Duration = Duration::from_secs(60);
/// Bytes that a file takes at least.
const BLOCK: u64 = 4096;

/// A file on a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Its name.
    pub name: String,
    /// Bytes that it takes.
    pub bytes: u64,
    /// When it was used last, about: greater is later. Of no meaning otherwise.
    pub used: u64,
}

/// A disk, or something with as few promises.
///
/// - **Names.** Up to 80 lower-case letters, digits and `-`.
/// - **Whole files.** A write replaces the file in one step. What is read is some write, or anything else.
/// - **Cancelling.** A dropped future leaves the outcome open.
#[async_trait]
pub trait Disk: Send + Sync {
    /// The file `name`, if it is there and no longer than `bytes_max`.
    ///
    /// # Errors
    /// Whatever the disk says.
    async fn read(&self, name: &str, bytes_max: u64) -> io::Result<Option<Bytes>>;

    /// Writes `bytes` as the file `name`.
    ///
    /// # Errors
    /// Whatever the disk says.
    async fn write(&self, name: &str, bytes: Bytes) -> io::Result<()>;

    /// Removes the file `name`, if it is there.
    ///
    /// # Errors
    /// Whatever the disk says.
    async fn remove(&self, name: &str) -> io::Result<()>;

    /// All files, of all databases.
    ///
    /// # Errors
    /// Whatever the disk says.
    async fn list(&self) -> io::Result<Vec<Kept>>;
}

/// A part of a disk.
#[derive(Clone)]
pub struct DiskSpace {
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// Bytes that may be used there, by all processes and databases together. Up to four processes that
    /// write as fast as they can stay below it; each more may go past it by a sixteenth.
    pub bytes: u64,
}

impl DiskSpace {
    /// `bytes` bytes in the folder `path`, which is made when it is needed. Any number of processes of one
    /// machine, and any number of databases, may share it.
    ///
    /// # Errors
    /// As [`Folder::open`].
    pub fn folder(path: &Path, bytes: u64) -> Result<DiskSpace, StoreError> {
        Ok(DiskSpace { disk: Arc::new(Folder::open(path)?), bytes })
    }
}

impl fmt::Debug for DiskSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DiskSpace({} bytes)", self.bytes)
    }
}

/// A folder of a disk. Any number of processes of one machine, and any number of databases, share one.
#[derive(Clone)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// The folder `path`, which is made when something is written there first.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] when it lies on a network file system, or it cannot be told what it lies on.
    /// Nothing would be lost there; but a call to a server that has gone cannot be given up, and a process
    /// that waits in one cannot even be killed. And it is no nearer than the object store.
    pub fn open(path: &Path) -> Result<Folder, StoreError> {
        Folder::open_on(path, own_disk::magic)
    }

    /// The same, where `magic` says what file system a folder lies on.
    fn open_on(
        path: &Path,
        magic: impl Fn(&Path) -> io::Result<u32>,
    ) -> Result<Folder, StoreError> {
        let why =
            "a server that has gone would stop this process; keep pages on a local disk, or none";
        own_disk::require(path, magic, why)?;
        Ok(Folder { path: path.to_owned() })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}{PAGE}"))
    }

    fn read_now(&self, name: &str, bytes_max: u64) -> io::Result<Option<Bytes>> {
        let mut file = match File::open(self.path(name)) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let about = file.metadata()?;
        if about.len() > bytes_max {
            // Of one who keeps longer pages, or nobody's: it goes when there is too much.
            return Ok(None);
        }
        let mut bytes = Vec::with_capacity(about.len() as usize);
        (&mut file).take(bytes_max).read_to_end(&mut bytes)?;
        let age =
            about.modified().ok().and_then(|used| SystemTime::now().duration_since(used).ok());
        if age.is_some_and(|age| age > USED_AGE) {
            // For those who look for what nobody uses. Whoever may only read leaves it.
            let _ = file.set_modified(SystemTime::now());
        }
        Ok(Some(bytes.into()))
    }

    fn write_now(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let random = getrandom::u64().map_err(io::Error::other)?;
        let aside = self.path.join(format!("{name}-{random:016x}{TEMPORARY}"));
        // Pages of a bucket that others of this machine may not read.
        let create = || File::options().write(true).create_new(true).mode(0o600).open(&aside);
        let file = match create() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.path)?;
                create()?
            }
            file => file?,
        };
        let put = |mut file: File| {
            file.write_all(bytes)?;
            fs::rename(&aside, self.path(name))
        };
        put(file).inspect_err(|_| {
            let _ = fs::remove_file(&aside);
        })
    }

    fn remove_now(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.path(name)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn list_now(&self) -> io::Result<Vec<Kept>> {
        let mut all = Vec::new();
        let entries = match fs::read_dir(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(all),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let Ok(file) = entry.file_name().into_string() else { continue };
            // Others remove files meanwhile.
            let Ok(about) = entry.metadata() else { continue };
            let used = about.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            if file.ends_with(TEMPORARY) {
                let age = SystemTime::now().duration_since(used).unwrap_or_default();
                if age > TEMPORARY_AGE {
                    let _ = fs::remove_file(entry.path());
                }
                continue;
            }
            let Some(name) = file.strip_suffix(PAGE) else { continue };
            let since = used.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            all.push(Kept {
                name: name.to_owned(),
                bytes: about.len().next_multiple_of(BLOCK),
                used: since.as_micros() as u64,
            });
        }
        Ok(all)
    }
}

/// Runs what blocks where it may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[async_trait]
impl Disk for Folder {
    async fn read(&self, name: &str, bytes_max: u64) -> io::Result<Option<Bytes>> {
        let (folder, name) = (self.clone(), name.to_owned());
        blocking(move || folder.read_now(&name, bytes_max)).await
    }

    async fn write(&self, name: &str, bytes: Bytes) -> io::Result<()> {
        let (folder, name) = (self.clone(), name.to_owned());
        blocking(move || folder.write_now(&name, &bytes)).await
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        let (folder, name) = (self.clone(), name.to_owned());
        blocking(move || folder.remove_now(&name)).await
    }

    async fn list(&self) -> io::Result<Vec<Kept>> {
        let folder = self.clone();
        blocking(move || folder.list_now()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nobody waits for a server that may never answer.
    #[test]
    fn a_network_file_system_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a");
        for (answer, what) in [(Ok(0xff53_4d42), "lies on CIFS"), (Err(()), "cannot be told")] {
            let magic = |_: &Path| answer.map_err(|()| io::Error::other("no answer"));
            let Err(error) = Folder::open_on(&path, magic) else { panic!("opened: {what}") };
            assert!(error.to_string().contains(what), "{error}");
        }
        Folder::open_on(&path, |_| Ok(0x5846_5342)).unwrap();
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn files_come_and_go_and_others_are_left_alone() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/b");
        let disk = Folder::open(&path).unwrap();
        assert_eq!(disk.read("x", 5000).await.unwrap(), None);
        assert_eq!(disk.list().await.unwrap(), []);
        disk.remove("x").await.unwrap();
        disk.write("x", "one".into()).await.unwrap();
        disk.write("x", "two".into()).await.unwrap();
        disk.write("y", vec![7; 5000].into()).await.unwrap();
        fs::write(path.join("notes.txt"), "somebody's").unwrap();
        let left = path.join(format!("x-0{TEMPORARY}"));
        fs::write(&left, "killed").unwrap();
        assert_eq!(disk.read("x", 5000).await.unwrap().unwrap(), "two");
        let mut all = disk.list().await.unwrap();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        let sizes: Vec<_> = all.iter().map(|kept| (&kept.name[..], kept.bytes)).collect();
        assert_eq!(sizes, [("x", 4096), ("y", 8192)]);
        assert!(left.exists(), "somebody may be about to rename it");
        let old = SystemTime::now() - 2 * TEMPORARY_AGE;
        File::options().write(true).open(&left).unwrap().set_modified(old).unwrap();
        File::options().write(true).open(disk.path("y")).unwrap().set_modified(old).unwrap();
        let used = |all: &[Kept]| all.iter().find(|kept| kept.name == "y").unwrap().used;
        let before = used(&disk.list().await.unwrap());
        assert!(!left.exists());
        disk.read("y", 5000).await.unwrap();
        assert!(used(&disk.list().await.unwrap()) > before, "what is read is used");
        assert_eq!(disk.read("y", 4999).await.unwrap(), None, "nobody wants so much");
        disk.remove("x").await.unwrap();
        assert_eq!(disk.read("x", 5000).await.unwrap(), None);
        assert!(path.join("notes.txt").exists());
    }
}
