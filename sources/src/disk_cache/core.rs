//! What all objects of an open cache share: the directory, open segments, counts, and the two sides
//! of the disk. Everything here may block, and runs where that is allowed.

use std::{
    collections::{HashMap, VecDeque},
    fs::DirBuilder,
    io,
    ops::Range,
    os::unix::fs::DirBuilderExt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use tracing::{debug, warn};

use super::{
    CacheCount,
    directory::{Directory, OBJECT_OVERHEAD, Turn},
    encryption::CacheKey,
    health::Health,
    layout::{Layout, ObjectKey, PAGE, SegmentId},
    meta::Meta,
    segment::{ReadFault, Segment, overhead_bytes},
};
use crate::counters;

/// Segments that are kept open. Each is a descriptor, and disk that cannot be freed meanwhile.
const OPEN_MAX: usize = 256;
/// How often those that lost their names are looked for.
const PRUNE_EACH: Duration = Duration::from_secs(1);
/// Bytes that are read at once.
const READ_BYTES: u64 = 256 << 10;
/// Missing blocks that are asked for with one request: a few parts of what S3 likes.
const MISS_BYTES: u64 = 64 << 20;

/// See the module.
pub(super) struct Core {
    pub(super) directory: Directory,
    pub(super) key: Option<CacheKey>,
    pub(super) reads: Health,
    pub(super) writes: Health,
    /// Whether there was room for what was written last.
    pub(super) room: Health,
    pub(super) counts: Counts,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    segments: HashMap<(ObjectKey, u64), Arc<Segment>>,
    order: VecDeque<(ObjectKey, u64)>,
    pruned: Option<Instant>,
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) hit_blocks: AtomicU64,
    pub(super) hit_bytes: AtomicU64,
    pub(super) missed_blocks: AtomicU64,
    pub(super) joined_blocks: AtomicU64,
    pub(super) stored_blocks: AtomicU64,
    pub(super) stored_bytes: AtomicU64,
    pub(super) skipped_blocks: AtomicU64,
    pub(super) damaged_blocks: AtomicU64,
}

/// What the disk has of some blocks.
#[derive(Debug)]
pub(super) enum Survey {
    /// The bytes of the first block and of those behind it.
    Hit(Bytes),
    /// So many blocks are not there.
    Miss(u64),
}

/// An object as its files know it.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub(super) key: ObjectKey,
    pub(super) layout: Layout,
    pub(super) meta: Arc<Meta>,
}

impl Core {
    pub(super) fn new(directory: Directory, key: Option<CacheKey>) -> Core {
        Core {
            directory,
            key,
            reads: Health::default(),
            writes: Health::default(),
            room: Health::default(),
            counts: Counts::default(),
            open: Mutex::default(),
        }
    }

    pub(super) fn count(&self) -> CacheCount {
        let counts = &self.counts;
        CacheCount {
            hit_blocks: counts.hit_blocks.load(Relaxed),
            hit_bytes: counts.hit_bytes.load(Relaxed),
            missed_blocks: counts.missed_blocks.load(Relaxed),
            joined_blocks: counts.joined_blocks.load(Relaxed),
            stored_blocks: counts.stored_blocks.load(Relaxed),
            stored_bytes: counts.stored_bytes.load(Relaxed),
            skipped_blocks: counts.skipped_blocks.load(Relaxed),
            damaged_blocks: counts.damaged_blocks.load(Relaxed),
            evicted_bytes: self.directory.evicted.load(Relaxed),
        }
    }

    /// Goes up with every block that was written, or will not be.
    pub(super) fn taken(&self) -> u64 {
        self.counts.stored_blocks.load(Relaxed) + self.counts.skipped_blocks.load(Relaxed)
    }

    fn with_open<T>(&self, work: impl FnOnce(&mut Open) -> T) -> T {
        work(&mut self.open.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Closes segments that were evicted, here or by another process: their disk is free then.
    fn prune(&self) {
        let due = self.with_open(|open| {
            let due = open.pruned.is_none_or(|last| last.elapsed() >= PRUNE_EACH);
            if due {
                open.pruned = Some(Instant::now());
            }
            due
        });
        if due {
            self.close_gone();
        }
    }

    fn close_gone(&self) {
        self.with_open(|open| {
            let segments = &mut open.segments;
            segments.retain(|_, segment| !segment.is_gone());
            open.order.retain(|key| segments.contains_key(key));
        });
    }

    /// Reserves bytes. What making room evicts takes disk as long as we have it open, so it is
    /// closed, and then there may be room after all.
    fn reserve(&self, turn: &mut Turn<'_>, bytes: u64) -> io::Result<bool> {
        let evicted = self.directory.evicted.load(Relaxed);
        let reserved = turn.reserve(bytes)?;
        if self.directory.evicted.load(Relaxed) == evicted {
            return Ok(reserved);
        }
        self.close_gone();
        match reserved {
            true => Ok(true),
            false => turn.reserve(bytes),
        }
    }

    /// Evicts until the disk has `bytes` to spare, or nothing is left.
    pub(super) fn make_spare(&self, bytes: u64) -> io::Result<()> {
        if self.directory.spare_bytes()? < bytes {
            self.directory.turn()?.sweep(bytes)?;
            self.close_gone();
        }
        Ok(())
    }

    fn keep(&self, key: (ObjectKey, u64), segment: &Arc<Segment>) {
        self.with_open(|open| {
            if open.segments.insert(key, segment.clone()).is_none() {
                open.order.push_back(key);
            }
            while open.segments.len() > OPEN_MAX {
                let Some(oldest) = open.order.pop_front() else { break };
                open.segments.remove(&oldest);
            }
        });
    }

    pub(super) fn forget(&self, key: (ObjectKey, u64)) {
        self.with_open(|open| {
            open.segments.remove(&key);
            open.order.retain(|other| *other != key);
        });
    }

    /// An open segment, or `None` if there is no file.
    ///
    /// # Errors
    /// [`InvalidData`](io::ErrorKind::InvalidData) for one that is not sound, and what the disk says.
    fn open_segment(&self, object: &Identity, index: u64) -> io::Result<Option<Arc<Segment>>> {
        self.prune();
        let key = (object.key, index);
        if let Some(segment) = self.with_open(|open| open.segments.get(&key).cloned()) {
            return Ok(Some(segment));
        }
        let id = SegmentId { object: object.key.id(), index };
        let path = self.directory.path(&id);
        let opened = Segment::open(&path, object.key, index, object.layout, self.key.as_ref())?;
        let segment = opened.map(Arc::new);
        if let Some(segment) = &segment {
            self.keep(key, segment);
        }
        Ok(segment)
    }

    /// The same; one that is not sound is thrown away.
    pub(super) fn segment(
        &self,
        object: &Identity,
        index: u64,
    ) -> io::Result<Option<Arc<Segment>>> {
        match self.open_segment(object, index) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                self.discard(object, index, &error.to_string());
                Ok(None)
            }
            other => other,
        }
    }

    /// Throws a damaged segment away: its blocks will be fetched again, into a new file.
    pub(super) fn discard(&self, object: &Identity, index: u64, why: &str) {
        self.forget((object.key, index));
        let id = SegmentId { object: object.key.id(), index };
        let removed = self.directory.turn().and_then(|mut turn| turn.remove(&id));
        let path = self.directory.path(&id);
        match removed {
            Ok(_) => warn!(path = %path.display(), "damaged and thrown away: {why}"),
            Err(error) => debug!(path = %path.display(), %error, "damaged, and not removed: {why}"),
        }
    }

    /// Says what the disk has of `block` and those behind it, up to `end`. Never fails: what cannot
    /// be had is a miss.
    pub(super) fn survey(&self, object: &Identity, block: u64, end: u64, ahead: bool) -> Survey {
        let layout = &object.layout;
        let most = (MISS_BYTES / layout.block_bytes).max(1);
        let end = end.min(block.saturating_add(most));
        if !self.reads.is_well() {
            return Survey::Miss(end - block);
        }
        match self.hit(object, block, end, ahead) {
            Ok(Some(bytes)) => return Survey::Hit(bytes),
            Ok(None) => {}
            Err(error) => {
                self.reads.failed("the disk cache cannot be read", &error);
                return Survey::Miss(end - block);
            }
        }
        // The run ends before the first block that is there.
        let mut next = block + 1;
        while next < end {
            let index = layout.segment_of(next);
            let segment_end = layout.segment_blocks(index).end.min(end);
            if let Ok(Some(segment)) = self.segment(object, index)
                && let Some(there) = (next..segment_end).find(|&block| segment.holds(block))
            {
                return Survey::Miss(there - block);
            }
            next = segment_end;
        }
        Survey::Miss(end - block)
    }

    /// The first of `blocks` that are not there, as far as one request goes. `None` if all are.
    pub(super) fn gap(
        &self,
        object: &Identity,
        blocks: &Range<u64>,
    ) -> io::Result<Option<Range<u64>>> {
        let layout = &object.layout;
        let most = (MISS_BYTES / layout.block_bytes).max(1);
        let mut gap: Option<Range<u64>> = None;
        let mut at = blocks.start;
        while at < blocks.end {
            let index = layout.segment_of(at);
            let end = layout.segment_blocks(index).end.min(blocks.end);
            let found = match self.named_segment(object, index)? {
                None => at..end,
                Some(segment) => {
                    if segment.run(at, end) < end - at {
                        segment.refresh()?;
                    }
                    let first = at + segment.run(at, end);
                    let next = (first..end).find(|&block| segment.holds(block));
                    first..next.unwrap_or(end)
                }
            };
            let goes_on = found.end == end;
            match &mut gap {
                // It may begin in the segment before.
                Some(gap) if found.start == at => gap.end = found.end,
                Some(_) => break,
                None if found.is_empty() => {}
                None => gap = Some(found),
            }
            if gap.as_ref().is_some_and(|gap| !goes_on || gap.end - gap.start >= most) {
                break;
            }
            at = end;
        }
        Ok(gap.map(|gap| gap.start..gap.end.min(gap.start + most)))
    }

    fn hit(
        &self,
        object: &Identity,
        block: u64,
        end: u64,
        ahead: bool,
    ) -> io::Result<Option<Bytes>> {
        let layout = &object.layout;
        let index = layout.segment_of(block);
        let end = end.min(block + (READ_BYTES / layout.block_bytes).max(1));
        let Some(mut segment) = self.segment(object, index)? else { return Ok(None) };
        if segment.run(block, end) == 0 {
            // Another process may have written it, into this file or into one that took its place.
            if segment.is_gone() {
                self.forget((object.key, index));
                let Some(other) = self.segment(object, index)? else { return Ok(None) };
                segment = other;
            } else {
                segment.refresh()?;
            }
        }
        let run = segment.run(block, end);
        if run == 0 {
            return Ok(None);
        }
        let blocks = block..block + run;
        let range = layout.range_of(&blocks);
        let mut bytes = BytesMut::zeroed((range.end - range.start) as usize);
        match segment.read(&blocks, &mut bytes) {
            Ok(()) => {}
            Err(ReadFault::Io(error)) if error.kind() != io::ErrorKind::UnexpectedEof => {
                return Err(error);
            }
            Err(fault) => {
                self.counts.damaged_blocks.fetch_add(1, Relaxed);
                counters::cache("damaged", 1);
                let why = match fault {
                    ReadFault::Damaged { block } => {
                        format!("block {block} is not what was written")
                    }
                    ReadFault::Io(error) => error.to_string(),
                };
                self.discard(object, index, &why);
                return Ok(None);
            }
        }
        if !ahead {
            segment.touched(&blocks);
            self.counts.hit_blocks.fetch_add(run, Relaxed);
            self.counts.hit_bytes.fetch_add(bytes.len() as u64, Relaxed);
            counters::cache("hit", run);
        }
        Ok(Some(bytes.freeze()))
    }

    /// Writes blocks, in rising order, as far as there is room; each with whether it was fetched ahead
    /// of who asks for it. Never fails: what cannot be written is not cached.
    pub(super) fn store(&self, object: &Identity, blocks: &[(u64, Bytes, bool)]) {
        let stored = match self.writes.is_well() && self.directory.is_writable() {
            false => Ok(0),
            true => self.try_store(object, blocks),
        };
        let stored = stored.unwrap_or_else(|error| {
            match error.kind() {
                // Somebody holds the lock: that is no failure of the disk, unless it goes on.
                io::ErrorKind::TimedOut => self.writes.failed("the disk cache is locked", &error),
                _ => self.writes.failed("the disk cache cannot be written", &error),
            }
            0
        });
        let skipped = (blocks.len() as u64).saturating_sub(stored);
        if skipped > 0 {
            self.counts.skipped_blocks.fetch_add(skipped, Relaxed);
            counters::cache("skipped", skipped);
        }
    }

    fn try_store(&self, object: &Identity, blocks: &[(u64, Bytes, bool)]) -> io::Result<u64> {
        let layout = &object.layout;
        let mut turn = self.directory.turn()?;
        let (mut done, mut lacks) = (0, None);
        for group in blocks.chunk_by(|a, b| layout.segment_of(a.0) == layout.segment_of(b.0)) {
            let index = layout.segment_of(group[0].0);
            let cost = |bytes: &Bytes| (bytes.len() as u64).next_multiple_of(PAGE);
            let data: u64 = group.iter().map(|(_, bytes, _)| cost(bytes)).sum();
            let beside = overhead_bytes(layout, index) + OBJECT_OVERHEAD;
            // Before the segment is opened: making room may take it away.
            if !self.reserve(&mut turn, data + beside)? {
                lacks = Some(data + beside);
                continue;
            }
            let mut unused = beside;
            let segment = match self.open_segment(object, index) {
                Ok(Some(segment)) if !segment.is_gone() => {
                    segment.refresh()?;
                    segment
                }
                Err(error) if error.kind() != io::ErrorKind::InvalidData => return Err(error),
                // None, or one that is of no use: the new file takes its name.
                _ => {
                    unused = 0;
                    self.create(&turn, object, index)?
                }
            };
            for (block, bytes, ahead) in group {
                if segment.holds(*block) {
                    unused += cost(bytes);
                } else {
                    segment.write(*block, bytes, *ahead)?;
                    self.counts.stored_blocks.fetch_add(1, Relaxed);
                    self.counts.stored_bytes.fetch_add(bytes.len() as u64, Relaxed);
                    counters::cache("stored", 1);
                }
                done += 1;
            }
            if unused > 0 {
                turn.release(unused)?;
            }
        }
        match lacks {
            Some(bytes) => {
                let why = self.directory.no_room(bytes);
                self.room.failed("the disk cache has no room", &why);
            }
            None => self.room.recovered(),
        }
        Ok(done)
    }

    fn create(&self, turn: &Turn<'_>, object: &Identity, index: u64) -> io::Result<Arc<Segment>> {
        let id = SegmentId { object: object.key.id(), index };
        let folder = self.directory.objects().join(&id.object);
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let meta = folder.join("meta");
        if !meta.exists() {
            self.directory.publish(&meta, &object.meta.encode(self.key.as_ref())?)?;
        }
        let segment = Segment::create(
            &self.directory.path(&id),
            &self.directory.temporary(),
            object.key,
            index,
            object.layout,
            self.key.as_ref(),
            turn.tier_of(&id),
        )?;
        let segment = Arc::new(segment);
        self.keep((object.key, index), &segment);
        Ok(segment)
    }
}
