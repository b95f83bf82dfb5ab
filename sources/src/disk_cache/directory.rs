//! The directory of a cache: what stands in it, its one lock, and how much it may hold.
//!
//! ```text
//!   DIR/cache.json        format, size of blocks and of segments: chosen once
//!   DIR/lock              held by whoever writes or removes; holds the bytes in use, and their bound
//!   DIR/ghosts            segments that left while on trial
//!   DIR/tmp/              files that have no name yet; swept by whoever opens
//!   DIR/objects/ID/meta   which object, version and length
//!   DIR/objects/ID/N.seg  segments
//! ```
//!
//! Many processes read without any lock: what they read is checked, never rewritten, and stays
//! readable after it was unlinked. One at a time writes: reserving bytes, writing them and making
//! room happen under one `flock`, which the kernel takes from a process that dies. So the bytes in
//! use are never more than what is reserved, and what is reserved is never more than allowed.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use nix::sys::statvfs::statvfs;
use serde::{Deserialize, Serialize};

use super::{
    CachePolicy,
    layout::{BLOCK_BYTES, Layout, PAGE, SEGMENT_BYTES, SegmentId},
    segment::{Header, Heat, Tier, is_read_only, set_heat},
    sweep::{Candidate, decide},
};

/// What `cache.json` says now.
const FORMAT: u32 = 1;
/// How long a writer waits for its turn. Beyond it, another process is stuck, and its blocks are
/// just not cached.
const LOCK_WAIT: Duration = Duration::from_secs(2);
/// A sweep frees this share of what is there at least, so that sweeps are rare.
const SWEEP_SHARE: u64 = 16;
/// Ghosts that are remembered.
const GHOSTS_MAX: usize = 16_384;
/// What a folder and its `meta` take.
pub(super) const OBJECT_OVERHEAD: u64 = 4 * PAGE;

/// What was chosen when the directory was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Shape {
    format: u32,
    pub(super) block_bytes: u64,
    pub(super) segment_bytes: u64,
}

/// An open directory.
#[derive(Debug)]
pub(super) struct Directory {
    root: PathBuf,
    pub(super) shape: Shape,
    /// What this process was told; the directory's own bound is in its lock.
    bytes_max: Option<u64>,
    free_bytes_min: u64,
    /// `None` where this process may only read.
    lock: Option<Mutex<File>>,
    temporaries: AtomicU64,
    pub(super) evicted: AtomicU64,
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

impl Directory {
    /// Opens the cache in `root`; makes one if there is nothing.
    pub(super) fn open(root: &Path, policy: &CachePolicy) -> io::Result<Directory> {
        let named = |error: io::Error| {
            io::Error::new(error.kind(), format!("cache {}: {error}", root.display()))
        };
        check(policy).map_err(named)?;
        let open = || {
            DirBuilder::new().recursive(true).mode(0o700).create(root)?;
            // Before anything is put there: a folder that is something else stays as it is.
            let is_cache = || root.join("cache.json").exists();
            if !is_cache()
                && let Err(error) = must_be_empty(root)
                // Another process may have made it one meanwhile.
                && !is_cache()
            {
                return Err(error);
            }
            let mut how = OpenOptions::new();
            how.read(true).write(true).create(true).truncate(false).mode(0o600);
            let lock = match how.open(root.join("lock")) {
                Ok(file) => Some(Mutex::new(file)),
                // Somebody else's cache, or one on a disk that cannot be written: still readable.
                Err(error) if is_read_only(&error) && root.join("cache.json").exists() => None,
                Err(error) => return Err(error),
            };
            let shape = Shape {
                format: FORMAT,
                block_bytes: policy.block_bytes,
                segment_bytes: policy.segment_bytes.max(policy.block_bytes),
            };
            let mut directory = Directory {
                root: root.to_owned(),
                shape,
                bytes_max: policy.bytes_max,
                free_bytes_min: policy.free_bytes_min,
                lock,
                temporaries: AtomicU64::new(0),
                evicted: AtomicU64::new(0),
            };
            directory.shape = directory.settle(shape)?;
            Ok(directory)
        };
        open().map_err(named)
    }

    /// Reads the shape of the directory, or gives it this one.
    fn settle(&self, shape: Shape) -> io::Result<Shape> {
        if self.lock.is_none() {
            return self.read_shape();
        }
        let mut turn = self.turn()?;
        let found = match self.read_shape() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                must_be_empty(&self.root)?;
                self.make(shape)?;
                shape
            }
            other => other?,
        };
        // Whoever says a number sets it for all; whoever says none heeds what is there.
        if let Some(bytes_max) = self.bytes_max {
            turn.bytes_max = bytes_max;
            turn.note()?;
        }
        // Nobody else is writing now: what is here was left by the dead.
        for left in fs::read_dir(self.root.join("tmp"))?.flatten() {
            let _ = fs::remove_file(left.path());
        }
        drop(turn);
        Ok(found)
    }

    fn read_shape(&self) -> io::Result<Shape> {
        let text = fs::read_to_string(self.root.join("cache.json"))?;
        let wrong = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        let shape: Shape = serde_json::from_str(&text).map_err(|error| {
            wrong(format!(
                "cache.json cannot be understood: {error}; it is only a cache: remove the \
                 directory, or give it another"
            ))
        })?;
        if shape.format != FORMAT {
            return Err(wrong(format!(
                "this is a cache of format {}, and this program knows format {FORMAT}; give it \
                 another directory",
                shape.format
            )));
        }
        let Shape { block_bytes, segment_bytes, .. } = shape;
        match (Layout { object_len: 0, block_bytes, segment_bytes }).is_sound() {
            true => Ok(shape),
            false => Err(wrong(format!("cache.json has impossible sizes: {shape:?}"))),
        }
    }

    fn make(&self, shape: Shape) -> io::Result<()> {
        for folder in ["tmp", "objects"] {
            DirBuilder::new().recursive(true).mode(0o700).create(self.root.join(folder))?;
        }
        // https://bford.info/cachedir: programs that make backups pass over it.
        let tag = "Signature: 8a477f597d28d172789f06886806bc55\n\
                   # This directory is a cache of extmem: `extmem cache ls`.\n";
        fs::write(self.root.join("CACHEDIR.TAG"), tag)?;
        let text = serde_json::to_string(&shape).map_err(io::Error::other)?;
        self.publish(&self.root.join("cache.json"), text.as_bytes())
    }

    /// Writes a small file as a whole, under its name or not at all.
    pub(super) fn publish(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let temporary = self.temporary();
        let mut how = OpenOptions::new();
        let file = how.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all_at(bytes, 0)?;
        fs::rename(&temporary, path)
    }

    /// A name that nobody uses.
    pub(super) fn temporary(&self) -> PathBuf {
        let number = self.temporaries.fetch_add(1, Relaxed);
        self.root.join("tmp").join(format!("{}-{number}", std::process::id()))
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn objects(&self) -> PathBuf {
        self.root.join("objects")
    }

    pub(super) fn path(&self, id: &SegmentId) -> PathBuf {
        self.objects().join(id.path())
    }

    /// Whether this process may write.
    pub(super) fn is_writable(&self) -> bool {
        self.lock.is_some()
    }

    /// Waits for the turn to write.
    ///
    /// # Errors
    /// [`TimedOut`](io::ErrorKind::TimedOut) when another process holds the lock for too long, and
    /// [`PermissionDenied`](io::ErrorKind::PermissionDenied) where this one may only read.
    pub(super) fn turn(&self) -> io::Result<Turn<'_>> {
        let Some(lock) = &self.lock else {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the cache is read-only"));
        };
        let file = lock.lock().unwrap_or_else(PoisonError::into_inner);
        let began = Instant::now();
        let mut pause = Duration::from_micros(100);
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(fs::TryLockError::WouldBlock) if began.elapsed() < LOCK_WAIT => {
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_millis(5));
                }
                Err(fs::TryLockError::WouldBlock) => {
                    let text = "another process has held the lock of the cache for too long";
                    return Err(io::Error::new(io::ErrorKind::TimedOut, text));
                }
                Err(fs::TryLockError::Error(error)) => return Err(error),
            }
        }
        let number = |at: u64| {
            let mut bytes = [0; 16];
            file.read_exact_at(&mut bytes, at).ok()?;
            let number = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"));
            let check = u64::from_le_bytes(bytes[8..].try_into().expect("8 bytes"));
            (number == !check).then_some(number)
        };
        let (used, bytes_max) = (number(0), number(16));
        let bytes_max = bytes_max.or(self.bytes_max).unwrap_or(CachePolicy::BYTES_MAX);
        let mut turn = Turn { directory: self, file, used: 0, bytes_max };
        turn.used = match used {
            Some(used) => used,
            None => turn.survey().1,
        };
        Ok(turn)
    }

    /// Bytes that are free on its disk.
    fn free_bytes(&self) -> io::Result<u64> {
        let found = statvfs(&self.root)?;
        Ok((found.blocks_available() as u64).saturating_mul(found.fragment_size() as u64))
    }

    /// Of those, the ones that need not stay free.
    pub(super) fn spare_bytes(&self) -> io::Result<u64> {
        Ok(self.free_bytes()?.saturating_sub(self.free_bytes_min))
    }

    /// Why there is no room for `bytes` more.
    pub(super) fn no_room(&self, bytes: u64) -> String {
        match self.spare_bytes() {
            Ok(spare) if spare < bytes => format!(
                "the disk of {} has less than {bytes} bytes to spare beside the {} that must stay \
                 free",
                self.root.display(),
                self.free_bytes_min
            ),
            _ => format!("{} holds as much as it may", self.root.display()),
        }
    }

    /// The folders of objects.
    pub(super) fn object_ids(&self) -> io::Result<Vec<String>> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(self.objects())? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_id = name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
            if is_id && entry.file_type()?.is_dir() {
                ids.push(name);
            }
        }
        Ok(ids)
    }

    /// The segments of an object, by number.
    pub(super) fn segment_ids(&self, object: &str) -> io::Result<Vec<SegmentId>> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(self.objects().join(object))? {
            let entry = entry?;
            let name = entry.file_name();
            let index = name.to_str().and_then(|name| name.strip_suffix(".seg"));
            let Some(index) = index.and_then(|index| index.parse().ok()) else { continue };
            if entry.file_type()?.is_file() {
                ids.push(SegmentId { object: object.to_owned(), index });
            }
        }
        ids.sort();
        Ok(ids)
    }
}

/// No folder of anything else.
fn must_be_empty(root: &Path) -> io::Result<()> {
    for entry in fs::read_dir(root)? {
        let name = entry?.file_name();
        if !["lock", "lost+found", "tmp", "objects", "CACHEDIR.TAG"]
            .iter()
            .any(|known| name == *known)
        {
            let text = "it is not empty and no cache; give an empty directory, or one that \
                        does not exist";
            return Err(invalid(text.to_owned()));
        }
    }
    Ok(())
}

fn check(policy: &CachePolicy) -> io::Result<()> {
    let sizes = [
        ("block_bytes", policy.block_bytes, BLOCK_BYTES),
        ("segment_bytes", policy.segment_bytes, SEGMENT_BYTES),
    ];
    for (name, value, allowed) in sizes {
        if !value.is_power_of_two() || !allowed.contains(&value) {
            return Err(invalid(format!(
                "{name} = {value}: use a power of two from {} to {}",
                allowed.start(),
                allowed.end()
            )));
        }
    }
    // Fewer segments than this are no queue.
    let least = 4 * policy.segment_bytes.max(policy.block_bytes);
    if let Some(bytes_max) = policy.bytes_max.filter(|&bytes| bytes < least) {
        return Err(invalid(format!("bytes_max = {bytes_max}: use at least {least}")));
    }
    Ok(())
}

/// The turn of one writer. Given back when dropped, with the bytes in use written down.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    directory: &'a Directory,
    file: MutexGuard<'a, File>,
    used: u64,
    bytes_max: u64,
}

impl Turn<'_> {
    /// Takes `bytes` of the room, making some if there is too little. `false` if there is none.
    ///
    /// What is reserved is written down before it is used, so that whoever dies in between leaves a
    /// number that is too high, which the next sweep puts right.
    pub(super) fn reserve(&mut self, bytes: u64) -> io::Result<bool> {
        if self.lacks(bytes)? > 0 {
            self.sweep(bytes)?;
            if self.lacks(bytes)? > 0 {
                return Ok(false);
            }
        }
        self.used += bytes;
        self.note()?;
        Ok(true)
    }

    /// How many bytes must go before `bytes` more may come.
    fn lacks(&self, bytes: u64) -> io::Result<u64> {
        let directory = self.directory;
        let over = self.used.saturating_add(bytes).saturating_sub(self.bytes_max);
        let short = directory.free_bytes_min.saturating_add(bytes);
        Ok(over.max(short.saturating_sub(directory.free_bytes()?)))
    }

    /// Evicts segments until `bytes` more may come, and some more.
    pub(super) fn sweep(&mut self, bytes: u64) -> io::Result<()> {
        let directory = self.directory;
        let (candidates, measured) = self.survey();
        self.used = measured;
        self.note()?;
        let lacks = self.lacks(bytes)?;
        if lacks == 0 {
            return Ok(());
        }
        let wanted = lacks + measured / SWEEP_SHARE;
        let now = Heat::now(Tier::Small).entered;
        let sizes: std::collections::HashMap<SegmentId, u64> =
            candidates.iter().map(|one| (one.id.clone(), one.bytes)).collect();
        let decision = decide(candidates, self.bytes_max, wanted, now);
        for victim in &decision.victims {
            if fs::remove_file(directory.path(victim)).is_ok() {
                self.used = self.used.saturating_sub(sizes[victim]);
                directory.evicted.fetch_add(sizes[victim], Relaxed);
            }
            self.forget_if_empty(&victim.object);
        }
        self.note()?;
        for (id, heat) in &decision.changed {
            // A hint: whoever cannot have it written is judged by the old one.
            let _ = set_heat(&directory.path(id), *heat);
        }
        self.remember(&decision.ghosts)
    }

    /// Everything that is there, and the bytes that it takes. Files that are no segments go.
    fn survey(&self) -> (Vec<Candidate>, u64) {
        let directory = self.directory;
        let mut candidates = Vec::new();
        let mut bytes = 0u64;
        // What vanishes meanwhile, by a person's hand, takes nothing.
        for object in directory.object_ids().unwrap_or_default() {
            let ids = directory.segment_ids(&object).unwrap_or_default();
            if ids.is_empty() {
                self.forget_if_empty(&object);
                continue;
            }
            bytes += OBJECT_OVERHEAD;
            for id in ids {
                let path = directory.path(&id);
                let Ok(file) = File::open(&path) else { continue };
                let Ok(found) = file.metadata() else { continue };
                let taken = found.blocks() * 512;
                match Header::read(&file, found.len()) {
                    Ok(Some(header)) if header.index == id.index => {
                        candidates.push(Candidate { id, bytes: taken, heat: header.heat });
                        bytes += taken;
                    }
                    Ok(_) if fs::remove_file(&path).is_ok() => {}
                    _ => bytes += taken,
                }
            }
        }
        (candidates, bytes)
    }

    fn forget_if_empty(&self, object: &str) {
        let empty = self.directory.segment_ids(object).is_ok_and(|ids| ids.is_empty());
        if empty {
            let folder = self.directory.objects().join(object);
            let _ = fs::remove_file(folder.join("meta"));
            let _ = fs::remove_dir(folder);
        }
    }

    /// Removes one segment, damaged or no longer wanted. Returns the bytes that it took.
    pub(super) fn remove(&mut self, id: &SegmentId) -> io::Result<u64> {
        let path = self.directory.path(id);
        let taken = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            found => found?.blocks() * 512,
        };
        fs::remove_file(&path)?;
        self.used = self.used.saturating_sub(taken);
        self.forget_if_empty(&id.object);
        self.note()?;
        Ok(taken)
    }

    /// Gives back what was reserved and not used.
    pub(super) fn release(&mut self, bytes: u64) -> io::Result<()> {
        self.used = self.used.saturating_sub(bytes);
        self.note()
    }

    fn note(&self) -> io::Result<()> {
        let mut bytes = [0; 32];
        for (number, place) in [self.used, self.bytes_max].iter().zip(bytes.chunks_exact_mut(16)) {
            place[..8].copy_from_slice(&number.to_le_bytes());
            place[8..].copy_from_slice(&(!number).to_le_bytes());
        }
        self.file.write_all_at(&bytes, 0)
    }

    fn ghosts(&self) -> Vec<u64> {
        let bytes = fs::read(self.directory.root.join("ghosts")).unwrap_or_default();
        let chunks = bytes.chunks_exact(8).take(GHOSTS_MAX);
        chunks.map(|bytes| u64::from_le_bytes(bytes.try_into().expect("8 bytes"))).collect()
    }

    fn remember(&self, new: &[u64]) -> io::Result<()> {
        if new.is_empty() {
            return Ok(());
        }
        let mut all = self.ghosts();
        all.extend(new);
        let newest = &all[all.len().saturating_sub(GHOSTS_MAX)..];
        let bytes: Vec<u8> = newest.iter().flat_map(|ghost| ghost.to_le_bytes()).collect();
        self.directory.publish(&self.directory.root.join("ghosts"), &bytes)
    }

    /// The queue that a new segment enters: a ghost that comes back was wanted all the time.
    pub(super) fn tier_of(&self, id: &SegmentId) -> Tier {
        match self.ghosts().contains(&id.hash()) {
            true => Tier::Main,
            false => Tier::Small,
        }
    }

    /// Bytes in use, as far as is known: never fewer than there are.
    pub(super) fn used(&self) -> u64 {
        self.used
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let _ = self.file.unlock();
    }
}
