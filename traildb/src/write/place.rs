//! A file or a directory that takes its name only when it is whole.
//!
//! ```text
//!   x.tdb.<pid>-<n>.part, locked --> written --> fsync --> rename to x.tdb --> fsync of the folder
//! ```
//!
//! Whatever happens, at `x.tdb` is what was there before, or the whole new database. A process that
//! is killed leaves its part behind, without the lock, which dies with it: the next one that writes
//! to the same name removes it. Indexes, and what commands print into files, are written like this
//! too. A program that a signal is about to end removes them itself: [`Unfinished::remove_all`].

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, OpenOptions},
    io::{
        self,
        ErrorKind::{AlreadyExists, InvalidInput, NotFound, PermissionDenied, Unsupported},
    },
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use super::litter;

/// A file or a directory under a temporary name beside the one that it takes when it is whole.
/// Removed on drop, unless it was put in place.
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("report.csv");
/// use std::io::Write;
///
/// let unfinished = traildb::Unfinished::file(&path, false)?;
/// unfinished.as_file().write_all(b"uuid time\n")?;
/// assert!(!path.exists());
/// unfinished.place()?;
/// assert!(path.exists());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Unfinished {
    /// Where it goes.
    target: PathBuf,
    path: PathBuf,
    /// The file, or the directory; its lock says that somebody is at work.
    file: File,
    directory: bool,
    /// Whether it takes the place of what is at the target.
    replace: bool,
    placed: bool,
}

/// Ends the names of parts.
const SUFFIX: &str = ".part";

/// What is said of a target that is not to be replaced.
const IN_THE_WAY: &str = "exists already, and is not overwritten";

/// Tells the parts of one process apart.
static NEXT: AtomicU64 = AtomicU64::new(0);

impl Unfinished {
    /// A new file that will go to `target`, in place of a file that is there if it may `replace` one.
    /// Removes what dead processes left for the same place.
    ///
    /// # Errors
    /// What the system says, and [`AlreadyExists`](io::ErrorKind::AlreadyExists) if a directory is
    /// there, or anything that is not to be replaced.
    pub fn file(target: impl AsRef<Path>, replace: bool) -> io::Result<Unfinished> {
        Unfinished::create(target.as_ref(), false, replace)
    }

    /// A new file, or directory, that will go to `target`.
    pub(crate) fn create(target: &Path, directory: bool, replace: bool) -> io::Result<Unfinished> {
        let name = target
            .file_name()
            .ok_or_else(|| io::Error::new(InvalidInput, "this is no name for a database"))?;
        check_target(target, directory, replace)?;
        let folder = folder(target);
        let stem = stem(name);
        remove_stale(folder, stem)?;
        // Somebody who removes what is stale may take ours for it before it is locked: try again.
        for _ in 0..100 {
            let mut part = stem.to_owned();
            let n = NEXT.fetch_add(1, Ordering::Relaxed);
            part.push(format!(".{}-{n}{SUFFIX}", std::process::id()));
            let path = folder.join(part);
            let mut begun = litter::begun();
            let created = match directory {
                true => fs::create_dir(&path).and_then(|()| File::open(&path)),
                false => OpenOptions::new().write(true).create_new(true).open(&path),
            };
            let file = match created {
                Err(error) if error.kind() == AlreadyExists => continue,
                created => created?,
            };
            begun.insert(path.clone());
            drop(begun);
            let target = target.to_owned();
            let unfinished = Unfinished { target, path, file, directory, replace, placed: false };
            unfinished.file.lock()?;
            if same(&unfinished.file, &unfinished.path) {
                return Ok(unfinished);
            }
        }
        Err(io::Error::other("no name was free for what is being written"))
    }

    /// Removes all that is unfinished of this process, and the temporary files of builders: for one that a
    /// signal is about to end. Nothing is begun or put in place any more: threads that are about to do that
    /// wait for the end, which should follow.
    pub fn remove_all() {
        litter::remove_all();
    }

    /// Whether a file name is one of something unfinished: `NAME.PID-N.part`.
    pub fn is_name(name: &OsStr) -> bool {
        let name = name.as_encoded_bytes().strip_suffix(SUFFIX.as_bytes());
        let mark = name.and_then(|name| name.rsplit(|&b| b == b'.').next());
        mark.is_some_and(|mark| !mark.is_empty() && is_mark(mark))
    }

    /// Where it is for now.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The file, to be written.
    pub fn as_file(&self) -> &File {
        &self.file
    }

    /// Puts it on the disk and gives it its name. What it replaces is gone then.
    ///
    /// # Errors
    /// What the system says, and [`AlreadyExists`](io::ErrorKind::AlreadyExists) if something came to
    /// be there in the meantime that is not to be replaced: that stays as it is.
    pub fn place(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        let mut begun = litter::begun();
        check_target(&self.target, self.directory, self.replace)?;
        if !self.replace {
            rename_new(&self.path, &self.target, self.directory)?;
        } else if self.directory && self.target.exists() {
            // Two directories cannot replace each other by `rename`; they can change names, so that
            // at no moment there is none.
            exchange(&self.path, &self.target)?;
            self.placed = true;
            drop(begun);
            sync_folder(&self.target)?;
            return litter::remove(&self.path);
        } else {
            fs::rename(&self.path, &self.target)?;
        }
        self.placed = true;
        begun.remove(&self.path);
        drop(begun);
        sync_folder(&self.target)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.placed {
            // The error that led here is the one to tell.
            let _ = litter::remove(&self.path);
        }
    }
}

/// Refuses to replace what is no database of that form, or with `replace` unset anything.
fn check_target(target: &Path, directory: bool, replace: bool) -> io::Result<()> {
    let kind = match target.symlink_metadata() {
        Err(error) if error.kind() == NotFound => return Ok(()),
        found => found?.file_type(),
    };
    let refuse = |text| Err(io::Error::new(AlreadyExists, text));
    match (directory, kind.is_dir()) {
        _ if !replace => refuse(IN_THE_WAY),
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
            .is_some_and(is_mark);
        if ours {
            remove_if_unowned(&entry.path());
        }
    }
    Ok(())
}

/// The start of a name, with room behind it for what tells parts apart: names have 255 bytes at most.
/// Long names may have it in common, which does no harm, since a part that has an owner is left alone.
fn stem(name: &OsStr) -> &OsStr {
    const NAME_BYTES_MAX: usize = 255;
    // A process's number has 10 digits at most, and one of its parts 20.
    const MARK_BYTES_MAX: usize = ".4294967295-18446744073709551615".len() + SUFFIX.len();
    let bytes = name.as_bytes();
    let mut end = bytes.len().min(NAME_BYTES_MAX - MARK_BYTES_MAX);
    // Not inside a character, where there are any: some file systems take whole ones only.
    if let Some(text) = name.to_str() {
        end = text.floor_char_boundary(end);
    }
    OsStr::from_bytes(&bytes[..end])
}

/// Whether this is what tells parts of one name apart: the process, and its number there.
fn is_mark(mark: &[u8]) -> bool {
    mark.iter().all(|b| b.is_ascii_digit() || *b == b'-')
}

/// Removes a file or a directory that nobody has locked. What cannot be removed is left: it is in
/// nobody's way.
pub(super) fn remove_if_unowned(path: &Path) {
    let Ok(file) = File::open(path) else { return };
    // Checked under the lock: an owner who was about to lock it finds it gone, and takes a new one.
    if file.try_lock().is_ok() && same(&file, path) {
        let _ = litter::remove_at(path);
    }
}

/// Whether `path` still names the open file.
pub(super) fn same(file: &File, path: &Path) -> bool {
    match (file.metadata(), path.symlink_metadata()) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

fn folder(target: &Path) -> &Path {
    target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn sync_folder(target: &Path) -> io::Result<()> {
    File::open(folder(target))?.sync_all()
}

/// Renames, unless something has the new name: in one step, so that nothing that comes to be there in
/// the meantime is lost.
fn rename_new(from: &Path, to: &Path, directory: bool) -> io::Result<()> {
    let done = match rename_exclusive(from, to) {
        // The file system does not know how.
        Err(error) if matches!(error.kind(), Unsupported | InvalidInput) => {
            link_new(from, to, directory)
        }
        done => done,
    };
    done.map_err(|error| match error.kind() {
        AlreadyExists => io::Error::new(AlreadyExists, IN_THE_WAY),
        _ => error,
    })
}

/// The same where the file system renames only by replacing. A second name for a file is refused
/// where something has it, and a directory is renamed only to what is an empty one. Where files have
/// no second names either (FAT), it is looked before, and what comes in between is replaced.
fn link_new(from: &Path, to: &Path, directory: bool) -> io::Result<()> {
    if !directory {
        match fs::hard_link(from, to) {
            Err(error) if matches!(error.kind(), Unsupported | PermissionDenied) => {}
            Err(error) => return Err(error),
            Ok(()) => {
                // The next writer removes it otherwise.
                let _ = fs::remove_file(from);
                return Ok(());
            }
        }
    }
    match to.symlink_metadata() {
        Ok(_) => Err(AlreadyExists.into()),
        Err(error) if error.kind() == NotFound => fs::rename(from, to),
        Err(error) => Err(error),
    }
}

#[cfg(target_os = "linux")]
fn rename_exclusive(from: &Path, to: &Path) -> io::Result<()> {
    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    Ok(renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE)?)
}

#[cfg(not(target_os = "linux"))]
fn rename_exclusive(_: &Path, _: &Path) -> io::Result<()> {
    Err(Unsupported.into())
}

#[cfg(target_os = "linux")]
fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    Ok(renameat2(AT_FDCWD, a, AT_FDCWD, b, RenameFlags::RENAME_EXCHANGE)?)
}

#[cfg(not(target_os = "linux"))]
fn exchange(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::Error::new(
        Unsupported,
        "this system cannot replace a directory at once; remove the old one first",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Rename = fn(&Path, &Path, bool) -> io::Result<()>;

    /// By the system's own way and by the one for file systems that lack it.
    #[test]
    fn nothing_is_replaced_that_is_not_to_be() {
        for (how, rename) in [("rename", rename_new as Rename), ("link", link_new)] {
            let folder = tempfile::tempdir().unwrap();
            let at = |name: &str| folder.path().join(name);
            fs::write(at("new"), "new").unwrap();
            fs::write(at("old"), "old").unwrap();
            fs::create_dir(at("new.dir")).unwrap();
            fs::write(at("new.dir/info"), "new").unwrap();
            fs::create_dir(at("old.dir")).unwrap();
            fs::write(at("old.dir/info"), "old").unwrap();
            for (from, to, directory) in
                [("new", "old", false), ("new.dir", "old.dir", true), ("new.dir", "old", true)]
            {
                let error = rename(&at(from), &at(to), directory).unwrap_err();
                assert_eq!(error.kind(), AlreadyExists, "{how}: {from} to {to}: {error}");
            }
            assert_eq!(fs::read(at("old")).unwrap(), b"old", "{how}");
            assert_eq!(fs::read(at("old.dir/info")).unwrap(), b"old", "{how}");
            rename(&at("new"), &at("a"), false).unwrap();
            rename(&at("new.dir"), &at("b"), true).unwrap();
            assert_eq!(fs::read(at("a")).unwrap(), b"new", "{how}");
            assert_eq!(fs::read(at("b/info")).unwrap(), b"new", "{how}");
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4, "{how}: no litter");
        }
    }

    #[test]
    fn a_name_may_be_as_long_as_names_are() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["x".repeat(255), "\u{20ac}".repeat(85)] {
            let target = folder.path().join(&name);
            let unfinished = Unfinished::file(&target, false).unwrap();
            let part = unfinished.path().file_name().unwrap().to_owned();
            assert!(Unfinished::is_name(&part) && part.to_str().is_some(), "{part:?}");
            drop(unfinished);
            // One that a dead process left, whose lock is gone with it.
            let stale = part.to_str().unwrap().replace(&format!("{}-", std::process::id()), "1-");
            fs::write(folder.path().join(&stale), "").unwrap();
            Unfinished::file(&target, false).unwrap().place().unwrap();
            assert!(target.exists());
            fs::remove_file(&target).unwrap();
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "no litter");
        }
    }

    #[test]
    fn names_of_what_is_unfinished() {
        for (name, expected) in [
            ("a.tdb.12-0.part", true),
            ("a.tdb.tdbidx.1-3.part", true),
            ("a.tdb.part", false),
            ("my.part", false),
            ("a.tdb", false),
            ("x..part", false),
        ] {
            assert_eq!(Unfinished::is_name(name.as_ref()), expected, "{name}");
        }
    }
}
