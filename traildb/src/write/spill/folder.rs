//! A folder of its own for the temporary files of one builder.
//!
//! It is locked while its builder lives, and removed with it. A process that is killed leaves it
//! behind without the lock; the next builder whose folder would be beside it removes it. A file of a
//! name that nobody else gives says that a folder is one of these.

use std::{
    ffi::OsStr,
    fs::{self, DirBuilder, File},
    io::{self, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::super::{litter, place, window::Part};
use crate::error::Error;

/// Starts the names of such folders.
const PREFIX: &str = "traildb-spill-";

/// Bytes that are written at once.
const WRITE_BYTES: usize = 256 << 10;

/// The file that says what a folder is.
pub(super) const MARKER: &str = "traildb-spill";

static NEXT: AtomicU64 = AtomicU64::new(0);

/// The folder.
#[derive(Debug)]
pub(in super::super) struct Folder {
    path: PathBuf,
    /// Holds the lock.
    _file: File,
    next: AtomicU64,
}

impl Folder {
    /// A new folder in `parent`.
    pub(in super::super) fn create(parent: &Path) -> Result<Folder, Error> {
        let create = || {
            for _ in 0..100 {
                let n = NEXT.fetch_add(1, Ordering::Relaxed);
                let path = parent.join(format!("{PREFIX}{}-{n}", std::process::id()));
                let mut begun = litter::begun();
                // Nobody else's business: events are in it.
                match DirBuilder::new().mode(0o700).create(&path) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                    created => created?,
                }
                // Somebody may take it for stale before it is locked, and then it is gone.
                let Ok(file) = File::open(&path) else { continue };
                file.lock()?;
                if place::same(&file, &path) {
                    begun.insert(path.clone());
                    drop(begun);
                    let folder = Folder { path, _file: file, next: AtomicU64::new(0) };
                    File::create_new(folder.path.join(MARKER))?;
                    return Ok(folder);
                }
            }
            Err(io::Error::other("no name was free for a folder of temporary files"))
        };
        create().map_err(|source| Error::file(parent, source))
    }

    /// A new file.
    pub(in super::super) fn writer(&self, what: &str) -> Result<Writer, Error> {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let path: Arc<Path> = self.path.join(format!("{what}-{n}")).into();
        // Else the folder could not be removed in the meantime.
        let _begun = litter::begun();
        let file = File::options().read(true).write(true).create_new(true).open(&path);
        let file = file.map_err(|source| Error::file(&*path, source))?;
        Ok(Writer { path, file, buffer: Vec::new(), flushed: 0 })
    }
}

/// Removes the folders in `parent` whose owners are dead. What cannot be looked at or removed is left.
pub(in super::super) fn remove_stale(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder && is_name(&entry.file_name()) && is_marked(&entry.path()) {
            place::remove_if_unowned(&entry.path());
        }
    }
}

/// Whether a folder has the marker, or nothing in it: then its owner was killed before there was one.
fn is_marked(folder: &Path) -> bool {
    let is_empty = || fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none());
    folder.join(MARKER).symlink_metadata().is_ok_and(|marker| marker.is_file()) || is_empty()
}

/// Whether a name is the prefix, a process and a number.
fn is_name(name: &OsStr) -> bool {
    let rest = name.as_encoded_bytes().strip_prefix(PREFIX.as_bytes());
    rest.is_some_and(|rest| rest.iter().all(|b| b.is_ascii_digit() || *b == b'-'))
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next one.
        let _ = litter::remove(&self.path);
    }
}

/// Removes a temporary file that has been read for the last time.
pub(in super::super) fn remove(path: &Path) {
    let _ = fs::remove_file(path);
}

/// Writes a temporary file from first to last.
#[derive(Debug)]
pub(in super::super) struct Writer {
    path: Arc<Path>,
    file: File,
    pub(in super::super) buffer: Vec<u8>,
    flushed: u64,
}

impl Writer {
    /// Bytes so far.
    pub(in super::super) fn len(&self) -> u64 {
        self.flushed + self.buffer.len() as u64
    }

    /// Writes the buffer when there is enough in it. Call it after putting something there.
    #[inline]
    pub(in super::super) fn spill(&mut self) -> Result<(), Error> {
        if self.buffer.len() < WRITE_BYTES { Ok(()) } else { self.flush() }
    }

    /// Writes the buffer.
    pub(in super::super) fn flush(&mut self) -> Result<(), Error> {
        let buffer = std::mem::take(&mut self.buffer);
        self.put(&buffer)?;
        self.buffer = buffer;
        self.buffer.clear();
        Ok(())
    }

    /// Appends bytes.
    pub(in super::super) fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if bytes.len() < WRITE_BYTES {
            self.buffer.extend_from_slice(bytes);
            return self.spill();
        }
        self.flush()?;
        self.put(bytes)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let written = self.file.write_all(bytes);
        written.map_err(|source| Error::file(&*self.path, source))?;
        self.flushed += bytes.len() as u64;
        Ok(())
    }

    /// Sets bits of a byte that was put before.
    pub(in super::super) fn patch(&mut self, at: u64, bits: u8) -> Result<(), Error> {
        use std::os::unix::fs::FileExt;
        if let Some(at) = at.checked_sub(self.flushed) {
            self.buffer[at as usize] |= bits;
            return Ok(());
        }
        let patch = || {
            let mut byte = [0];
            self.file.read_exact_at(&mut byte, at)?;
            self.file.write_all_at(&[byte[0] | bits], at)
        };
        patch().map_err(|source| Error::file(&*self.path, source))
    }

    /// The file as a part to be read, whose records have at most `record_max` bytes.
    pub(in super::super) fn finish(mut self, record_max: usize) -> Result<Part, Error> {
        self.flush()?;
        Ok(Part { range: 0..self.flushed, path: self.path, record_max })
    }

    /// A part of the file up to what was put so far.
    pub(in super::super) fn part_from(&self, start: u64, record_max: usize) -> Part {
        Part { path: self.path.clone(), range: start..self.len(), record_max }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_of_dead_owners_are_removed() {
        let parent = tempfile::tempdir().unwrap();
        let at = |name: &str| parent.path().join(name);
        let made: [(&str, &[&str]); 5] = [
            ("traildb-spill-1-0", &[MARKER, "data-0"]),
            ("traildb-spill-1-1", &[]),
            ("traildb-spill-1-2", &["thesis.tex"]),
            ("traildb-spill-mine", &[MARKER]),
            ("logs", &[MARKER]),
        ];
        for (folder, files) in made {
            fs::create_dir(at(folder)).unwrap();
            files.iter().for_each(|file| fs::write(at(folder).join(file), "x").unwrap());
        }
        let living = Folder::create(parent.path()).unwrap();
        remove_stale(parent.path());
        assert!(living.path.join(MARKER).exists(), "it has an owner");
        drop(living);
        let left = fs::read_dir(parent.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut left: Vec<_> = left.map(|name| name.into_string().unwrap()).collect();
        left.sort();
        assert_eq!(left, ["logs", "traildb-spill-1-2", "traildb-spill-mine"]);
    }
}
