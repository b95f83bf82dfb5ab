//! A file or a directory that takes its name only when it is whole.
//!
//! ```text
//!   x.tdb.<pid>-<n>.part, locked --> written --> fsync --> rename to x.tdb --> fsync of the folder
//! ```
//!
//! Whatever happens, at `x.tdb` is what was there before, or the whole new database. A process that
//! is killed leaves its part behind, without the lock, which dies with it: the next one that writes
//! to the same name removes it.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

/// A database under its temporary name. Removed on drop, unless it was put in place.
#[derive(Debug)]
pub(super) struct Unfinished {
    /// Where it goes.
    target: PathBuf,
    path: PathBuf,
    /// The file, or the directory; its lock says that somebody is at work.
    file: File,
    directory: bool,
    placed: bool,
}

/// Ends the names of parts.
const SUFFIX: &str = ".part";

/// Tells the parts of one process apart.
static NEXT: AtomicU64 = AtomicU64::new(0);

impl Unfinished {
    /// A new file, or directory, that will go to `target`. Removes what dead processes left there.
    pub(super) fn create(target: &Path, directory: bool) -> io::Result<Unfinished> {
        let name = target.file_name().ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "this is no name for a database")
        })?;
        check_target(target, directory)?;
        let folder = folder(target);
        remove_stale(folder, name)?;
        // Somebody who removes what is stale may take ours for it before it is locked: try again.
        for _ in 0..100 {
            let mut part = name.to_owned();
            let n = NEXT.fetch_add(1, Ordering::Relaxed);
            part.push(format!(".{}-{n}{SUFFIX}", std::process::id()));
            let path = folder.join(part);
            let created = match directory {
                true => fs::create_dir(&path).and_then(|()| File::open(&path)),
                false => OpenOptions::new().write(true).create_new(true).open(&path),
            };
            let file = match created {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                created => created?,
            };
            let unfinished =
                Unfinished { target: target.into(), path, file, directory, placed: false };
            unfinished.file.lock()?;
            if same(&unfinished.file, &unfinished.path) {
                return Ok(unfinished);
            }
        }
        Err(io::Error::other("no name was free for what is being written"))
    }

    /// Where it is for now.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The file, to be written.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Puts it on the disk and gives it its name. What had the name before is gone then.
    pub(super) fn place(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        check_target(&self.target, self.directory)?;
        if self.directory && self.target.exists() {
            // Two directories cannot replace each other by `rename`; they can change names, so that
            // at no moment there is none.
            exchange(&self.path, &self.target)?;
            self.placed = true;
            sync_folder(&self.target)?;
            return fs::remove_dir_all(&self.path);
        }
        fs::rename(&self.path, &self.target)?;
        self.placed = true;
        sync_folder(&self.target)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.placed {
            // The error that led here is the one to tell.
            let _ = remove(&self.path);
        }
    }
}

/// Refuses to replace what is no database of that form.
fn check_target(target: &Path, directory: bool) -> io::Result<()> {
    let kind = match target.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?.file_type(),
    };
    let refuse = |text| Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
    match (directory, kind.is_dir()) {
        (false, true) => refuse("a directory is there; name another file, or write a directory"),
        (true, false) => refuse("a file is there; remove it first, or write a package"),
        (true, true) if !is_database(target)? => {
            refuse("the directory there is no database: it will not be replaced")
        }
        _ => Ok(()),
    }
}

/// Whether a directory holds the members of a database and no directory.
fn is_database(path: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(path)? {
        if entry?.file_type()?.is_dir() {
            return Ok(false);
        }
    }
    Ok(["info", "fields", "trails.data"].iter().all(|member| path.join(member).is_file()))
}

/// Removes the parts for `name` whose owners are dead.
fn remove_stale(folder: &Path, name: &std::ffi::OsStr) -> io::Result<()> {
    let mut start: OsString = name.to_owned();
    start.push(".");
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let part = entry.file_name();
        let bytes = part.as_encoded_bytes();
        let ours = bytes
            .strip_prefix(start.as_encoded_bytes())
            .and_then(|rest| rest.strip_suffix(SUFFIX.as_bytes()))
            .is_some_and(|rest| rest.iter().all(|b| b.is_ascii_digit() || *b == b'-'));
        if ours {
            remove_if_unowned(&entry.path());
        }
    }
    Ok(())
}

/// Removes a file or a directory that nobody has locked. What cannot be removed is left: it is in
/// nobody's way.
pub(super) fn remove_if_unowned(path: &Path) {
    let Ok(file) = File::open(path) else { return };
    // Checked under the lock: an owner who was about to lock it finds it gone, and takes a new one.
    if file.try_lock().is_ok() && same(&file, path) {
        let _ = remove(path);
    }
}

/// Whether `path` still names the open file.
pub(super) fn same(file: &File, path: &Path) -> bool {
    match (file.metadata(), path.symlink_metadata()) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

fn remove(path: &Path) -> io::Result<()> {
    if path.symlink_metadata()?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

fn folder(target: &Path) -> &Path {
    target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn sync_folder(target: &Path) -> io::Result<()> {
    File::open(folder(target))?.sync_all()
}

#[cfg(target_os = "linux")]
fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    Ok(renameat2(AT_FDCWD, a, AT_FDCWD, b, RenameFlags::RENAME_EXCHANGE)?)
}

#[cfg(not(target_os = "linux"))]
fn exchange(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        "this system cannot replace a directory at once; remove the old one first",
    ))
}
