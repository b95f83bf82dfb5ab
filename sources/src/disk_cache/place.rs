//! Bytes as they lie on the disk, for whoever maps them or tells others where they are.

use std::{
    fmt,
    fs::File,
    io,
    ops::Range,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use pager::{BlockSource, SourceError, Version};

use super::{
    DiskCache, Object,
    core::{Core, Identity},
    reading::Reading,
    segment::{ReadFault, Segment},
};
use crate::{body::check_range, counters};

/// How often bytes are fetched that do not stay: a cache that is too small for its readers.
const FETCHES_MAX: u32 = 3;
/// How long the disk may take to write what was fetched.
const WRITE_WAIT: Duration = Duration::from_secs(5);

/// Bytes of an object in a file of the cache, checked. The file is never changed there: it may be
/// mapped, and stays readable through [`open`](Placed::open) after it was evicted.
#[derive(Clone)]
pub struct Placed {
    path: PathBuf,
    segment: Arc<Segment>,
    at: u64,
    len: u64,
}

impl Placed {
    /// The file's path, below the cache's directory. Eviction takes it away at any time.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the first byte asked for lies in it.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// How many bytes of the object follow from there on: at least as many as were asked for.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never: at least one byte was asked for.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Opens the file anew, for reading only, also after it has lost its name.
    ///
    /// # Errors
    /// What the system says: too many open files, or no `/proc`.
    pub fn open(&self) -> io::Result<File> {
        File::open(format!("/proc/self/fd/{}", self.segment.file().as_raw_fd()))
    }
}

impl fmt::Debug for Placed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Placed({} at {}, {} bytes)", self.path.display(), self.at, self.len)
    }
}

impl<S: BlockSource> DiskCache<S> {
    /// Bytes of an object that lie in one file. [`place`](DiskCache::place) finds ranges inside a
    /// multiple of this, and no others.
    pub fn segment_bytes(&self) -> u64 {
        self.cache.inner.core.directory.shape.segment_bytes
    }

    /// What is kept as one, in bytes: as the directory was made with.
    pub fn block_bytes(&self) -> u64 {
        self.cache.inner.core.directory.shape.block_bytes
    }

    /// Brings `range` onto the disk and says where it is. What is missing is fetched by extents of
    /// `extent_bytes` (a power of two), aligned. `None` where it cannot be had there: the range
    /// crosses a segment, the cache is encrypted or had no room a moment ago, the version is weak and the cache
    /// does not take such, or the disk fails or is slow. [`read`](BlockSource::read) works all the same.
    ///
    /// # Errors
    /// As for [`read`](BlockSource::read).
    pub async fn place(
        &self,
        version: &Version,
        range: Range<u64>,
        extent_bytes: u64,
    ) -> Result<Option<Placed>, SourceError> {
        self.place_or_not(version, range, extent_bytes, FETCHES_MAX).await
    }

    /// Where `range` lies on the disk, as [`place`](DiskCache::place) says it; `None` also where some
    /// of it is not there yet. Nothing is fetched.
    ///
    /// # Errors
    /// [`SourceError`] for a range that is not within the object.
    pub async fn placed(
        &self,
        version: &Version,
        range: Range<u64>,
        extent_bytes: u64,
    ) -> Result<Option<Placed>, SourceError> {
        self.place_or_not(version, range, extent_bytes, 0).await
    }

    /// With at most so many fetches.
    async fn place_or_not(
        &self,
        version: &Version,
        range: Range<u64>,
        extent_bytes: u64,
        fetches_max: u32,
    ) -> Result<Option<Placed>, SourceError> {
        let Some(object) = self.object(version).await else { return Ok(None) };
        let inner = &self.cache.inner;
        let layout = object.identity.layout;
        check_range(self.name(), &range, layout.object_len)?;
        let blocks = layout.blocks_of(&range);
        let segment = layout.segment_of(blocks.start);
        if layout.segment_of(blocks.end - 1) != segment || inner.core.key.is_some() {
            return Ok(None);
        }
        let extent = extent_bytes.max(layout.block_bytes);
        let around = layout.range_of(&layout.segment_blocks(segment));
        let extent = (range.start - range.start % extent).max(around.start)
            ..range.end.next_multiple_of(extent).min(around.end);
        for fetches in 0.. {
            let Some(found) = self.locate(&object, &range, &extent).await? else { return Ok(None) };
            if let Some(placed) = found {
                if fetches == 0 {
                    let count = blocks.end - blocks.start;
                    inner.core.counts.hit_blocks.fetch_add(count, Relaxed);
                    inner.core.counts.hit_bytes.fetch_add(range.end - range.start, Relaxed);
                    counters::cache("hit", count);
                }
                return Ok(Some(placed));
            }
            // Where there was no room a moment ago, the bytes would have to be fetched again.
            if fetches == fetches_max || !self.cache.inner.takes() {
                return Ok(None);
            }
            // Ahead: it is asked for below, and what lies around it later.
            let mut reading = Reading::new(self, object.clone(), version, extent.clone(), true);
            while reading.next().await?.is_some() {}
            let fetched = layout.blocks_of(&extent);
            let written = object.flights.settled(&fetched);
            if tokio::time::timeout(WRITE_WAIT, written).await.is_err() {
                return Ok(None);
            }
        }
        unreachable!("the loop ends by itself")
    }

    /// Whether the disk has all of `range` now: then [`read`](BlockSource::read) asks the source for
    /// nothing, unless it is evicted before that.
    pub async fn holds(&self, version: &Version, range: Range<u64>) -> bool {
        let Some(object) = self.object(version).await else { return false };
        let layout = object.identity.layout;
        if check_range(self.name(), &range, layout.object_len).is_err() {
            return false;
        }
        let blocks = layout.blocks_of(&range);
        let look = move |core: &Core| match core.reads.is_well() {
            true => Ok(core.gap(&object.identity, &blocks)?.is_none()),
            false => Ok(false),
        };
        matches!(self.cache.inner.look(self.name(), &range, look).await, Ok(Some(true)))
    }

    /// Whether the byte at `at` is on its way: then [`read`](BlockSource::read) has it as soon as it
    /// comes, and [`place`](DiskCache::place) when the disk has.
    pub async fn is_coming(&self, version: &Version, at: u64) -> bool {
        let Some(object) = self.object(version).await else { return false };
        object.flights.has(object.identity.layout.block_of(at))
    }

    /// Where `range` lies, or that it is on no disk. `None` where the disk fails, or does not say in time:
    /// the whole extent is checked, which may take longer than a sound disk takes for a few blocks.
    async fn locate(
        &self,
        object: &Arc<Object>,
        range: &Range<u64>,
        extent: &Range<u64>,
    ) -> Result<Option<Option<Placed>>, SourceError> {
        let (object, asked, extent) = (object.clone(), range.clone(), extent.clone());
        let look = move |core: &Core| core.locate(&object.identity, &asked, &extent);
        self.cache.inner.look_long(self.name(), range, look).await
    }
}

impl Core {
    /// Where `range` lies, if all of it does, with what is known to follow it. Checks, once for each
    /// block, what lies in `extent` around it.
    fn locate(
        &self,
        object: &Identity,
        range: &Range<u64>,
        extent: &Range<u64>,
    ) -> io::Result<Option<Placed>> {
        let layout = &object.layout;
        let blocks = layout.blocks_of(range);
        let index = layout.segment_of(blocks.start);
        if !self.reads.is_well() {
            return Ok(None);
        }
        let Some(segment) = self.named_segment(object, index)? else { return Ok(None) };
        let wanted = blocks.end - blocks.start;
        if segment.run(blocks.start, blocks.end) < wanted {
            segment.refresh()?;
            if segment.run(blocks.start, blocks.end) < wanted {
                return Ok(None);
            }
        }
        let there = segment.run(blocks.start, layout.blocks_of(extent).end);
        match segment.check(&(blocks.start..blocks.start + there)) {
            Ok(()) => {}
            Err(ReadFault::Damaged { block }) => {
                self.counts.damaged_blocks.fetch_add(1, Relaxed);
                counters::cache("damaged", 1);
                self.discard(object, index, &format!("block {block} is not what was written"));
                return Ok(None);
            }
            Err(ReadFault::Io(error)) => return Err(error),
        }
        segment.touched(&blocks);
        let end = layout.range_of(&(blocks.start..segment.checked_to(blocks.start))).end;
        let first = layout.range_of(&layout.segment_blocks(index)).start;
        Ok(Some(Placed {
            path: self.directory.path(&super::layout::SegmentId { object: object.key.id(), index }),
            at: range.start - first,
            len: end - range.start,
            segment,
        }))
    }

    /// A segment that has its name still.
    pub(super) fn named_segment(
        &self,
        object: &Identity,
        index: u64,
    ) -> io::Result<Option<Arc<Segment>>> {
        match self.segment(object, index)? {
            Some(segment) if segment.is_gone() => {
                self.forget((object.key, index));
                self.segment(object, index)
            }
            other => Ok(other),
        }
    }
}
