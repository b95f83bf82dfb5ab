//! What this process would leave behind if it ended now.
//!
//! ```text
//!   part of a database, folder of temporary files --> begun --> here --> removed, or put in place
//!   a signal that ends the process ------------------------------> all of them removed, nothing begun
//! ```

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// How often it is tried to remove a directory into which others write.
const TRIES: usize = 100;

static BEGUN: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Files and directories that are begun. While this is held, nothing else is begun or put in place.
pub(super) fn begun() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    BEGUN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes a file or a directory that was begun.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    let removed = remove_at(path);
    begun().remove(path);
    removed
}

/// Removes everything that was begun, and lets nothing be begun any more.
pub(super) fn remove_all() {
    let begun = begun();
    for path in begun.iter() {
        // Where files come to be while it is removed, it is not empty at the end.
        let is_gone = |_: &usize| {
            let _ = remove_at(path);
            path.symlink_metadata().is_err()
        };
        let _ = (0..TRIES).find(is_gone);
    }
    std::mem::forget(begun);
}

/// Removes a file, or a directory with all that is in it.
pub(super) fn remove_at(path: &Path) -> io::Result<()> {
    if path.symlink_metadata()?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}
