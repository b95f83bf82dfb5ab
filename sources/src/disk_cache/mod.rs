//! A wrapper that keeps what was read on a local disk, for this process, others, and the next one.
//!
//! ```text
//!   DiskCache(Retry(Limit(leaf)))
//!      |
//!      +-- in memory?  on disk?  under way for somebody?  --> those bytes
//!      +-- none of these: one request to the source, its blocks to the reader and to the disk
//! ```
//!
//! ```no_run
//! use sources::{Cache, CachePolicy, DiskCache};
//! # fn run(source: std::sync::Arc<dyn sources::BlockSource>) -> std::io::Result<()> {
//! let cache = Cache::open("/var/cache/extmem", CachePolicy::default())?;
//! let source = DiskCache::new(source, cache);
//! # let _ = source; Ok(()) }
//! ```
//!
//! **What is promised.** A block is served only if it is what was written: it is bound to its
//! object, version, length and place, and checked at every read; what is handed out as a file
//! ([`DiskCache::place`]) is checked once by whoever has opened it. So neither a process that is killed
//! nor a loss of power nor a disk that flips bits brings wrong bytes; it costs a request. The bytes
//! on disk stay below a bound and leave some of the disk free. Any number of processes may use one
//! directory at the same time. A disk that is full or fails is left alone for a while, with one
//! warning: reads go on without the cache.
//!
//! **What is cached.** Objects with a strong version; weak ones only if [`CachePolicy::weak`] says
//! so. `stat` always asks the source, and so do reads of versions that `stat` has not named: a cache
//! cannot know whether an object has changed, nor who may read it.
//!
//! **What stays.** S3-FIFO decides (`sweep`): what is read once passes through a tenth of the room,
//! and only what is asked for a second time enters the rest.
//!
//! **By address.** [`open`](crate::open()) wraps what it opens when the option `cache` or the variable
//! `EXTMEM_CACHE` names a directory; `EXTMEM_CACHE_BYTES`, `EXTMEM_CACHE_FREE` and
//! `EXTMEM_CACHE_KEY_FILE` say how it is to be ([`CachePolicy::from_environment`]).
//!
//! **On disk** (`segment`, `directory`): files laid out like the object, of 2 MiB and more, written once
//! in each place and freed by `unlink`, so that they can be mapped while they are in use. The
//! directory is made for its owner alone (mode 0700). With [`CachePolicy::key`] everything in it is
//! encrypted, names included.

mod announced; // before anybody asks
mod core; // what all objects of a cache share
mod directory; // the directory, its lock, its bound
mod encryption; // sealed blocks
mod flight; // requests under way
mod health; // a disk that fails
mod layout; // blocks, segments, names
mod meta; // which object a folder belongs to
mod place; // bytes as they lie on the disk
mod reading; // one range, from wherever it is
mod report; // what is there, for people
mod segment; // one file
pub(crate) mod shared; // the caches of this process, as the environment names them
mod sweep; // who leaves
mod writer; // the thread that writes

pub use shared::flush_all;

use std::{
    collections::HashMap,
    fmt, io,
    ops::Range,
    path::Path,
    sync::{Arc, Mutex, PoisonError, Weak, atomic::Ordering::Relaxed},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream;
use pager::{
    BlockSource, ByteStream, Frame, ObjectStat, ReadAtOnce, SourceError, Strength, Version,
    source::collect_into,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

pub use self::{
    announced::Announced,
    encryption::CacheKey,
    place::Placed,
    report::{CachedObject, Cell, ObjectMap, Verified},
};
use self::{
    core::{Core, Identity},
    directory::Directory,
    flight::Flights,
    health::Health,
    layout::{Layout, OBJECT_BYTES_MAX, ObjectKey, PAGE},
    meta::Meta,
    reading::Reading,
    writer::{Job, Writer},
};
use crate::{body::check_range, counters};

/// Bytes that may wait to be written. Readers wait for room here, and not for long.
const UNWRITTEN_BYTES: u64 = 64 << 20;
/// How long. A disk slower than that is no help.
const ROOM_WAIT: Duration = Duration::from_secs(2);
/// How long the disk may take nothing while it is waited for.
const FLUSH_WAIT: Duration = Duration::from_secs(10);
/// How long the disk may take to answer before the source is asked.
const DISK_WAIT: Duration = Duration::from_secs(5);
/// Looks at the disk at once. Each has a thread for as long as the disk takes, and a runtime has some 500
/// that may block.
const LOOKS_MAX: usize = 64;
/// Of those that may take longer, beside them.
const LONG_LOOKS_MAX: usize = 16;
/// Versions of an object that one source remembers from `stat`.
const VERSIONS_MAX: usize = 16;

/// How a cache is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachePolicy {
    /// The most that the directory may take, in bytes. At least four segments. It belongs to the
    /// directory: whoever opens it with a number sets it for all who use it, and `None` leaves it.
    /// Default: `None`; a directory that was never given one has 16 GiB.
    pub bytes_max: Option<u64>,
    /// Bytes of the file system that must stay free. Default: 1 GiB.
    pub free_bytes_min: u64,
    /// What is fetched, checked and kept as one: a power of two from 4 KiB to 64 MiB. A directory
    /// keeps the size it was made with. Default: 64 KiB, the pager's unit.
    pub block_bytes: u64,
    /// What is evicted as one, and one file: a power of two from 2 MiB to 1 GiB. A directory keeps
    /// the size it was made with. Default: 2 MiB.
    pub segment_bytes: u64,
    /// Whether objects are cached whose version is weak: then a change that their source does not
    /// show is not seen either. Default: `false`.
    pub weak: bool,
    /// Encrypts everything with this key. Default: `None`.
    pub key: Option<CacheKey>,
}

impl CachePolicy {
    /// The bound of a directory that was given none.
    const BYTES_MAX: u64 = 16 << 30;
}

impl Default for CachePolicy {
    fn default() -> CachePolicy {
        CachePolicy {
            bytes_max: None,
            free_bytes_min: 1 << 30,
            block_bytes: 64 << 10,
            segment_bytes: 2 << 20,
            weak: false,
            key: None,
        }
    }
}

/// What went through a cache since this process opened it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheCount {
    /// Blocks that came from disk.
    pub hit_blocks: u64,
    /// Their bytes.
    pub hit_bytes: u64,
    /// Blocks that came from the source.
    pub missed_blocks: u64,
    /// Blocks that were under way already for another reader.
    pub joined_blocks: u64,
    /// Blocks written to disk.
    pub stored_blocks: u64,
    /// Their bytes.
    pub stored_bytes: u64,
    /// Blocks that were not written: no room, no leave, or a disk that failed.
    pub skipped_blocks: u64,
    /// Blocks on disk that were not what was written, and were thrown away.
    pub damaged_blocks: u64,
    /// Bytes that left to make room.
    pub evicted_bytes: u64,
}

/// An open directory of cached blocks. Clones are the same; give one to many sources.
#[derive(Clone)]
pub struct Cache {
    inner: Arc<Inner>,
}

/// What is open.
pub(crate) struct Inner {
    core: Arc<Core>,
    weak: bool,
    objects: Mutex<HashMap<ObjectKey, Weak<Object>>>,
    /// In pages.
    room: Arc<Semaphore>,
    looks: Arc<Semaphore>,
    long_looks: Arc<Semaphore>,
    writer: Writer,
}

/// One version of an object, as this process uses it.
struct Object {
    identity: Identity,
    flights: Flights,
}

impl Cache {
    /// Opens the cache in `directory`, or makes one there. Blocks the thread for as long as a few
    /// small files take, and up to two seconds while others write.
    ///
    /// # Errors
    /// When the directory cannot be made or read, holds something else, or was made by a later
    /// version of this program; and for sizes that the policy does not allow.
    pub fn open(directory: impl AsRef<Path>, policy: CachePolicy) -> io::Result<Cache> {
        let directory = Directory::open(directory.as_ref(), &policy)?;
        if policy.key.is_some() {
            // Refuses now what could not work later.
            encryption::random::<1>()?;
        }
        let core = Arc::new(Core::new(directory, policy.key));
        let writer = Writer::start(core.clone())?;
        Ok(Cache {
            inner: Arc::new(Inner {
                core,
                weak: policy.weak,
                objects: Mutex::default(),
                room: Arc::new(Semaphore::new((UNWRITTEN_BYTES / PAGE) as usize)),
                looks: Arc::new(Semaphore::new(LOOKS_MAX)),
                long_looks: Arc::new(Semaphore::new(LONG_LOOKS_MAX)),
                writer,
            }),
        })
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        self.inner.core.directory.root()
    }

    /// What went through it so far.
    pub fn count(&self) -> CacheCount {
        self.inner.core.count()
    }

    /// Why what is read is not kept, or not found, at the moment: a disk that has no room, fails, or is
    /// slow. For people.
    pub fn trouble(&self) -> Option<String> {
        let core = &self.inner.core;
        [&core.room, &core.writes, &core.reads].into_iter().find_map(Health::trouble)
    }

    /// How many bytes its disk can take until no more is free than must stay so.
    ///
    /// # Errors
    /// What the system says.
    pub fn spare_bytes(&self) -> io::Result<u64> {
        self.inner.core.directory.spare_bytes()
    }

    /// Evicts what it takes until its disk has so many [to spare](Cache::spare_bytes), if it has fewer, or
    /// nothing is left. Blocks the thread, up to two seconds while others write.
    ///
    /// # Errors
    /// What the system says.
    pub fn make_spare(&self, bytes: u64) -> io::Result<()> {
        self.inner.core.make_spare(bytes)
    }

    /// Waits until everything that was read is on its way to the disk, so that another process can
    /// see it.
    ///
    /// # Errors
    /// [`TimedOut`](io::ErrorKind::TimedOut) when the disk has taken nothing for ten seconds.
    pub async fn flush(&self) -> io::Result<()> {
        loop {
            let before = self.inner.core.taken();
            let all = self.inner.room.acquire_many((UNWRITTEN_BYTES / PAGE) as u32);
            if timeout(FLUSH_WAIT, all).await.is_ok() {
                return Ok(());
            }
            if self.inner.core.taken() == before {
                let text = format!(
                    "cache {}: its disk has taken nothing for {FLUSH_WAIT:?}; what was read last is \
                     not kept",
                    self.directory().display()
                );
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
        }
    }

    pub(crate) fn downgrade(&self) -> Weak<Inner> {
        Arc::downgrade(&self.inner)
    }

    pub(crate) fn upgrade(inner: &Weak<Inner>) -> Option<Cache> {
        inner.upgrade().map(|inner| Cache { inner })
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("directory", &self.directory()).finish_non_exhaustive()
    }
}

impl Inner {
    fn object(&self, name: &str, scope: &str, version: &Version, len: u64) -> Arc<Object> {
        let key = ObjectKey::of(name, scope, version, len, self.core.key.as_ref());
        let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(object) = objects.get(&key).and_then(Weak::upgrade) {
            return object;
        }
        objects.retain(|_, object| object.strong_count() > 0);
        let shape = self.core.directory.shape;
        let layout = Layout {
            object_len: len,
            block_bytes: shape.block_bytes,
            segment_bytes: shape.segment_bytes,
        };
        let meta = Arc::new(Meta::of(name, version, len));
        let identity = Identity { key, layout, meta };
        let object = Arc::new(Object { identity, flights: Flights::default() });
        objects.insert(key, Arc::downgrade(&object));
        object
    }

    /// What `look` finds on the disk. `None` where it fails or hangs: then it is left alone for a while.
    ///
    /// # Errors
    /// Where the runtime is shut down: what is on the disk is not missing because nobody looks any
    /// more.
    async fn look<T: Send + 'static>(
        &self,
        name: &str,
        range: &Range<u64>,
        look: impl FnOnce(&Core) -> io::Result<T> + Send + 'static,
    ) -> Result<Option<T>, SourceError> {
        match timeout(DISK_WAIT, self.look_in(&self.looks, name, range, look)).await {
            Ok(found) => found,
            Err(_) => Ok(self.cannot_be_read(&format!("no answer for {DISK_WAIT:?}"))),
        }
    }

    /// The same, for what may take longer: `None` also where it does, and the disk is well.
    async fn look_long<T: Send + 'static>(
        &self,
        name: &str,
        range: &Range<u64>,
        look: impl FnOnce(&Core) -> io::Result<T> + Send + 'static,
    ) -> Result<Option<T>, SourceError> {
        let found = timeout(DISK_WAIT, self.look_in(&self.long_looks, name, range, look)).await;
        found.unwrap_or(Ok(None))
    }

    /// Looks with one of `places`, which is taken until the disk has answered, also when nobody waits
    /// for that any more.
    async fn look_in<T: Send + 'static>(
        &self,
        places: &Arc<Semaphore>,
        name: &str,
        range: &Range<u64>,
        look: impl FnOnce(&Core) -> io::Result<T> + Send + 'static,
    ) -> Result<Option<T>, SourceError> {
        let core = self.core.clone();
        let Ok(place) = places.clone().acquire_owned().await else { return Ok(None) };
        let look = move || {
            let found = look(&core);
            drop(place);
            found
        };
        match tokio::task::spawn_blocking(look).await {
            Ok(Ok(found)) => Ok(Some(found)),
            Ok(Err(error)) => Ok(self.cannot_be_read(&error)),
            Err(error) if error.is_cancelled() => Err(SourceError::Transient {
                object: name.to_owned(),
                what: "read",
                range: Some(range.clone()),
                attempts: 1,
                reason: "the runtime stopped".to_owned(),
                cause: None,
            }),
            Err(_) => Ok(None),
        }
    }

    fn cannot_be_read<T>(&self, error: &dyn fmt::Display) -> Option<T> {
        self.core.reads.failed("the disk cache cannot be read", error);
        None
    }

    /// Whether the disk takes what is fetched, and gives it again.
    fn is_kept(&self) -> bool {
        self.core.reads.is_well() && self.takes()
    }

    /// Whether it takes what is fetched, as far as is known.
    fn takes(&self) -> bool {
        let core = &self.core;
        core.writes.is_well() && core.room.is_well() && core.directory.is_writable()
    }

    fn missed(&self) {
        self.core.counts.missed_blocks.fetch_add(1, Relaxed);
        counters::cache("miss", 1);
    }

    fn joined(&self) {
        self.core.counts.joined_blocks.fetch_add(1, Relaxed);
        counters::cache("joined", 1);
    }

    /// Room in memory for a block until it is written. `None` where it will not be.
    async fn room_for(&self, bytes: &Bytes) -> Option<OwnedSemaphorePermit> {
        let core = &self.core;
        if !core.directory.is_writable() || !core.writes.is_well() {
            core.counts.skipped_blocks.fetch_add(1, Relaxed);
            return None;
        }
        let pages = (bytes.len() as u64).div_ceil(PAGE) as u32;
        let room = self.room.clone().acquire_many_owned(pages);
        match timeout(ROOM_WAIT, room).await {
            Ok(room) => room.ok(),
            Err(_) => {
                core.counts.skipped_blocks.fetch_add(1, Relaxed);
                let text = format!("nothing was written for {ROOM_WAIT:?}");
                core.writes.failed("the disk of the cache is too slow", &text);
                None
            }
        }
    }

    fn write(&self, job: Job) {
        self.writer.write(job);
    }
}

/// A source whose bytes are kept on disk.
///
/// Reads are made in whole blocks. Readers of the same block share one request, also through other
/// sources of the same object in this process. A read that is dropped lets the block under way
/// arrive, and no more.
pub struct DiskCache<S> {
    source: Arc<S>,
    cache: Cache,
    scope: String,
    /// Whether weak versions are kept, if that is not for the cache to say.
    weak: Option<bool>,
    known: Mutex<Vec<(Version, u64)>>,
}

impl<S: BlockSource> DiskCache<S> {
    /// Keeps what is read from `source` in `cache`. Put it outside of
    /// [`Retry`](crate::Retry) and [`Limit`](crate::Limit): what is on disk needs neither.
    pub fn new(source: S, cache: Cache) -> DiskCache<S> {
        let (scope, known) = (String::new(), Mutex::default());
        DiskCache { source: Arc::new(source), cache, scope, weak: None, known }
    }

    /// Tells apart objects that have the same name and are not the same, such as those of two S3
    /// services. Part of the key of the object, and written nowhere.
    pub fn scope(mut self, scope: impl Into<String>) -> DiskCache<S> {
        self.scope = scope.into();
        self
    }

    /// Keeps this object although its version is weak, or does not, whatever the cache's policy says
    /// of weak versions.
    pub fn weak(mut self, weak: bool) -> DiskCache<S> {
        self.weak = Some(weak);
        self
    }

    /// The cache.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Whether this version is kept: a weak one only where that was said.
    pub fn keeps(&self, version: &Version) -> bool {
        let weak = self.weak.unwrap_or(self.cache.inner.weak);
        weak || version.strength() == Strength::Strong
    }

    /// The same object as an earlier `stat`, perhaps of another process, found it: at this version,
    /// with this length. It can then be read from the disk although the source has another by now.
    /// Nobody else hears of the length, which need not be true: blocks of another length are others.
    pub fn at(&self, version: &Version, len: u64) -> DiskCache<S> {
        DiskCache {
            source: self.source.clone(),
            cache: self.cache.clone(),
            scope: self.scope.clone(),
            weak: self.weak,
            known: Mutex::new(vec![(version.clone(), len)]),
        }
    }

    fn len_of(&self, version: &Version) -> Option<u64> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().find(|(known, _)| known == version).map(|(_, len)| *len)
    }

    fn remember(&self, version: &Version, len: u64) {
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(known, _)| known != version);
        all.insert(0, (version.clone(), len));
        all.truncate(VERSIONS_MAX);
    }

    /// The object as cached, or `None` if it is not to be.
    async fn object(&self, version: &Version) -> Option<Arc<Object>> {
        if !self.keeps(version) {
            return None;
        }
        let len = match self.len_of(version) {
            Some(len) => len,
            None => {
                // Nobody asked yet. Whatever goes wrong here will go wrong in the read, and be told.
                let stat = self.source.stat().await.ok()?;
                self.remember(&stat.version, stat.len);
                self.len_of(version)?
            }
        };
        if len > OBJECT_BYTES_MAX {
            return None;
        }
        Some(self.cache.inner.object(self.source.name(), &self.scope, version, len))
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl<S: BlockSource> BlockSource for DiskCache<S> {
    fn name(&self) -> &str {
        self.source.name()
    }

    async fn stat(&self) -> Result<ObjectStat, SourceError> {
        let mut stat = self.source.stat().await?;
        self.remember(&stat.version, stat.len);
        let block = self.cache.inner.core.directory.shape.block_bytes;
        if block.is_multiple_of(stat.alignment) {
            stat.alignment = block;
        }
        Ok(stat)
    }

    async fn read(&self, version: &Version, range: Range<u64>) -> Result<ByteStream, SourceError> {
        let Some(object) = self.object(version).await else {
            return self.source.read(version, range).await;
        };
        check_range(self.name(), &range, object.identity.layout.object_len)?;
        let mut reading = Reading::new(self, object, version, range, false);
        // The first bytes before the body: what the source refuses is refused here.
        let first = reading.next().await?;
        Ok(Box::pin(stream::unfold((first, Some(reading)), |(first, reading)| async move {
            if let Some(first) = first {
                return Some((Ok(first), (None, reading)));
            }
            let mut reading = reading?;
            match reading.next().await {
                Ok(bytes) => bytes.map(|bytes| (Ok(bytes), (None, Some(reading)))),
                Err(error) => Some((Err(error), (None, None))),
            }
        })))
    }

    async fn read_into(
        &self,
        version: &Version,
        range: Range<u64>,
        frame: Frame,
    ) -> Result<Frame, SourceError> {
        let body = self.read(version, range.clone()).await?;
        collect_into(self.name(), body, range, frame).await
    }

    fn fills_frames(&self) -> bool {
        // What is missing has a round trip, even where the source has none.
        false
    }

    fn at_once(&self) -> Option<&dyn ReadAtOnce> {
        // What is missing is fetched on the runtime.
        None
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures::{FutureExt, future::join_all};
    use tokio::task::unconstrained;

    use super::*;

    /// Whether a thread is left for what may block.
    fn others_run() -> bool {
        let (done, end) = mpsc::channel();
        tokio::task::spawn_blocking(move || done.send(()));
        end.recv_timeout(Duration::from_secs(60)).is_ok()
    }

    /// Whoever looked at a disk that hangs left a thread there, and so did all who came after him, until
    /// a runtime had none left for other disks.
    #[test]
    fn a_disk_that_hangs_keeps_few_threads() {
        let folder = tempfile::tempdir().expect("a folder");
        let policy = CachePolicy { free_bytes_min: 0, ..CachePolicy::default() };
        let cache = Cache::open(folder.path().join("cache"), policy).expect("a cache");
        let inner = &cache.inner;
        // Two more than there are places.
        let threads = LOOKS_MAX + LONG_LOOKS_MAX + 2;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .max_blocking_threads(threads)
            .enable_all()
            .start_paused(true)
            .build()
            .expect("a runtime");
        let hung = Arc::new(std::sync::RwLock::new(()));
        let until_it_answers = hung.write().expect("nobody has it");
        let (began, begins) = mpsc::channel();
        let hang = || {
            let (hung, began) = (hung.clone(), began.clone());
            move |_: &Core| {
                let _ = began.send(());
                drop(hung.read());
                io::Result::Ok(())
            }
        };
        let range = 0..1;
        runtime.block_on(async {
            let long = (0..threads).map(|_| inner.look_long("object", &range, hang()));
            let mut long = Box::pin(unconstrained(join_all(long)));
            assert!(long.as_mut().now_or_never().is_none());
            (0..LONG_LOOKS_MAX).for_each(|_| begins.recv().expect("it looks"));
            assert!(others_run(), "of {threads} threads");
            // Others look meanwhile, at what answers.
            let found = inner.look("object", &range, |_| Ok(7)).await;
            assert_eq!(found.expect("a runtime"), Some(7));
            let short = (0..threads).map(|_| inner.look("object", &range, hang()));
            let mut short = Box::pin(unconstrained(join_all(short)));
            assert!(short.as_mut().now_or_never().is_none());
            (0..LOOKS_MAX).for_each(|_| begins.recv().expect("it looks"));
            assert!(others_run(), "of {threads} threads");
            assert!(begins.try_recv().is_err(), "no more look than may");
            // Who has left keeps the place as long as the disk does not answer.
            drop(short);
            let late = inner.look("object", &range, |_| Ok(9));
            assert!(late.now_or_never().is_none());
        });
        drop(until_it_answers);
    }
}
