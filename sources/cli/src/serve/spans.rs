//! Ranges that lie in no single file of the cache: copied into one of their own.
//!
//! An answer of V000 names one file that has all bytes asked for, so a range that crosses two
//! segments needs a file with both. Spans are written under a temporary name, renamed, never
//! changed, and leave by `unlink`, oldest use first. They are made anew after a restart.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    ops::Range,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use futures::StreamExt;
use pager::{BlockSource, SourceError};
use sources::server::v000::PATH_BYTES_MAX;

use super::{digest, handles::Pinned, objects::Object, recent::Recent};

/// Spans begin and end at multiples of this, so that neighbours find the same one.
const EDGE_BYTES: u64 = 64 << 10;
/// Pages that are told to nobody still take disk.
const PAGE: u64 = 4096;

/// See the module.
#[derive(Debug)]
pub(super) struct Spans {
    folder: PathBuf,
    bytes_max: u64,
    held: Mutex<Held>,
    temporaries: AtomicU64,
}

#[derive(Debug, Default)]
struct Held {
    spans: Recent<String, ()>,
    /// Bytes of those that are being written.
    reserved: u64,
}

/// Why there is no span.
#[derive(Debug)]
pub(super) enum NoSpan {
    /// The source's error.
    Source(SourceError),
    /// The disk's, or no room.
    Disk(io::Error),
}

/// A span on disk.
#[derive(Debug)]
pub(super) struct Span {
    pub(super) path: PathBuf,
    /// Where the first byte asked for is.
    pub(super) at: u64,
    /// Bytes from there on.
    pub(super) len: u64,
}

impl Spans {
    /// Uses `folder`, and removes what is there.
    pub(super) fn open(folder: &Path, bytes_max: u64) -> io::Result<Spans> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        for entry in fs::read_dir(folder)? {
            fs::remove_file(entry?.path())?;
        }
        let (held, temporaries) = (Mutex::default(), AtomicU64::new(0));
        Ok(Spans { folder: folder.to_owned(), bytes_max, held, temporaries })
    }

    /// Refuses a directory whose files have names that no answer has room for.
    pub(super) fn check_path_len(&self) -> io::Result<()> {
        // A span's name is the longest: 64 digits and two numbers.
        let longest = self.folder.as_os_str().len() + 1 + 64 + 2 * 21;
        let text = match self.folder.to_str() {
            Some(_) if longest <= PATH_BYTES_MAX => return Ok(()),
            Some(_) => format!("the directory's path is too long: at most {PATH_BYTES_MAX} bytes"),
            None => "the directory's path is no text, and answers are".to_owned(),
        };
        Err(io::Error::new(io::ErrorKind::InvalidInput, text))
    }

    /// The most that one span may have.
    pub(super) fn span_bytes_max(&self) -> u64 {
        self.bytes_max / 2
    }

    fn with<T>(&self, work: impl FnOnce(&mut Held) -> T) -> T {
        work(&mut self.held.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The span with all of `range`, if there is one.
    pub(super) fn find(&self, url: &str, pinned: &Pinned, range: &Range<u64>) -> Option<Span> {
        let (name, _, span) = self.named(url, pinned, range);
        let is_here = self.with(|held| held.spans.touch(&name).is_some()) && span.path.exists();
        is_here.then_some(span)
    }

    /// What the span of `range` is called, which bytes it has, and where it will be.
    fn named(&self, url: &str, pinned: &Pinned, range: &Range<u64>) -> (String, Range<u64>, Span) {
        let start = range.start - range.start % EDGE_BYTES;
        let end = range.end.next_multiple_of(EDGE_BYTES).min(pinned.len);
        let version = &pinned.version;
        let what =
            format!("{}\0{}\0{:?}\0{}", url, version.token(), version.strength(), pinned.len);
        let name = format!("{}-{start}-{end}", digest(what.as_bytes()));
        let path = self.folder.join(&name);
        let span = Span { path, at: range.start - start, len: end - range.start };
        (name, start..end, span)
    }

    /// A file with all of `range`, made if there is none.
    pub(super) async fn get(
        &self,
        object: &Object,
        url: &str,
        pinned: &Pinned,
        range: Range<u64>,
    ) -> Result<Span, NoSpan> {
        let (name, all, span) = self.named(url, pinned, &range);
        let bytes = all.end - all.start;
        if bytes > self.span_bytes_max() {
            let text = format!("{bytes} bytes are more than this server has room for at once");
            return Err(NoSpan::Disk(io::Error::other(text)));
        }
        if let Some(span) = self.find(url, pinned, &range) {
            return Ok(span);
        }
        let bytes = bytes.next_multiple_of(PAGE);
        let cache = object.cache().clone();
        let make = move || cache.make_spare(bytes).map(|()| cache);
        let made = tokio::task::spawn_blocking(make).await;
        let made = made.unwrap_or_else(|_| Err(io::Error::other("the server stops")));
        let cache = made.map_err(NoSpan::Disk)?;
        let room = self.reserve(bytes, &|| cache.spare_bytes()).map_err(NoSpan::Disk)?;
        let number = self.temporaries.fetch_add(1, Relaxed);
        let temporary = Temporary(self.folder.join(format!("{number}.tmp")));
        let mut how = OpenOptions::new();
        let file = how.write(true).create_new(true).mode(0o600).open(&temporary.0);
        let mut file = file.map_err(NoSpan::Disk)?;
        let body = object.read(&pinned.version, all).await;
        let mut body = body.map_err(NoSpan::Source)?;
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(NoSpan::Source)?;
            file = blocking(move || file.write_all(&chunk).map(|()| file)).await?;
        }
        drop(file);
        fs::rename(&temporary.0, &span.path).map_err(NoSpan::Disk)?;
        room.keep(name);
        Ok(span)
    }

    /// Takes room before it is used, from spans that were not used for longest. Of the disk, too, of which
    /// so much is to `spare` that what must stay free does.
    fn reserve(&self, bytes: u64, spare: &dyn Fn() -> io::Result<u64>) -> io::Result<Room<'_>> {
        let short = bytes.saturating_sub(spare()?);
        let leaving = self.with(|held| held.make_room(bytes, self.bytes_max, short));
        for name in leaving {
            let _ = fs::remove_file(self.folder.join(name));
        }
        if short > 0 && spare()? < bytes {
            let text = "the disk has less free than must stay free (--free-bytes)";
            return Err(io::Error::new(io::ErrorKind::StorageFull, text));
        }
        match self.with(|held| held.reserve(bytes, self.bytes_max)) {
            true => Ok(Room { spans: self, bytes }),
            false => Err(io::Error::other("too many ranges across files are under way")),
        }
    }
}

/// Bytes of the bound, for a span that is being written.
struct Room<'a> {
    spans: &'a Spans,
    bytes: u64,
}

impl Room<'_> {
    /// The span is there.
    fn keep(mut self, name: String) {
        let bytes = std::mem::take(&mut self.bytes);
        self.spans.with(|held| held.add(name, bytes));
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.spans.with(|held| held.reserved -= self.bytes);
    }
}

async fn blocking(
    work: impl FnOnce() -> io::Result<File> + Send + 'static,
) -> Result<File, NoSpan> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| NoSpan::Disk(io::Error::other("the server stops")))?.map_err(NoSpan::Disk)
}

/// A file that goes unless it was renamed.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl Held {
    fn bytes(&self) -> u64 {
        self.spans.bytes() + self.reserved
    }

    fn reserve(&mut self, bytes: u64, bytes_max: u64) -> bool {
        let fits = self.bytes() + bytes <= bytes_max;
        self.reserved += if fits { bytes } else { 0 };
        fits
    }

    /// A span whose bytes were reserved is there. Two clients may have made the same one: the second
    /// takes the place of the first.
    fn add(&mut self, name: String, bytes: u64) {
        self.reserved -= bytes;
        self.spans.insert(name, (), bytes);
    }

    /// Who leaves, so that `bytes` more stay within `bytes_max`, and the disk has `short` more.
    fn make_room(&mut self, bytes: u64, bytes_max: u64, short: u64) -> Vec<String> {
        let mut over = (self.bytes() + bytes).saturating_sub(bytes_max).max(short);
        if over == 0 {
            return Vec::new();
        }
        let mut leaving = Vec::new();
        for (name, (), bytes) in self.spans.oldest_first() {
            if over == 0 {
                break;
            }
            over = over.saturating_sub(bytes);
            leaving.push(name.clone());
        }
        for name in &leaving {
            self.spans.remove(name);
        }
        leaving
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_not_used_for_longest_leaves() {
        let mut held = Held::default();
        for name in ["a", "b", "c", "a"] {
            assert!(held.reserve(4096, 1 << 20));
            held.add(name.to_owned(), 4096);
        }
        assert!(held.spans.touch("b").is_some());
        assert_eq!(held.bytes(), 3 * 4096);
        assert_eq!(held.make_room(4096, 3 * 4096, 0), ["c"]);
        assert_eq!(held.make_room(4096, 1 << 20, 8000), ["a", "b"]);
        assert_eq!((held.bytes(), held.spans.count()), (0, 0));
        assert!(held.reserve(4096, 4096) && !held.reserve(1, 4096), "what is under way counts");
        assert_eq!(held.make_room(4096, 4096, 4096).len(), 0, "and does not leave");
    }
}
