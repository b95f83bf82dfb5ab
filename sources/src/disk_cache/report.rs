//! What is in a cache, for people: lists, removes, checks.

use std::{collections::BTreeMap, fs::File, io, os::unix::fs::MetadataExt};

use super::{
    Cache,
    encryption::{CacheKey, hex},
    layout::{ObjectKey, SegmentId},
    meta::{Found, Meta},
    segment::{Header, ReadFault, Segment},
};

/// One version of an object in a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedObject {
    /// Names it in this cache.
    pub id: String,
    /// The source's name; `None` where it is encrypted with another key, or damaged.
    pub name: Option<String>,
    /// The version's token, likewise.
    pub version: Option<String>,
    /// The key that it is encrypted with: [`CacheKey::id`].
    pub key_id: Option<String>,
    /// The object's length in bytes.
    pub len: u64,
    /// Blocks on disk.
    pub blocks: u64,
    /// Their bytes.
    pub cached_bytes: u64,
    /// What it takes on disk, tables included.
    pub disk_bytes: u64,
    /// Segments: files.
    pub segments: u64,
    /// Those of them that were asked for again since they came.
    pub hot_segments: u64,
}

/// One version of an object as a picture: parts of about equal size, from its start to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectMap {
    /// Names it in this cache: [`CachedObject::id`].
    pub id: String,
    /// The source's name; `None` where it cannot be read.
    pub name: Option<String>,
    /// The version's token, likewise.
    pub version: Option<String>,
    /// The object's length in bytes.
    pub len: u64,
    /// Its blocks have so many bytes; block b of n lies in part b * parts / n.
    pub block_bytes: u64,
    /// Bytes of it on disk.
    pub cached_bytes: u64,
    /// The parts.
    pub cells: Vec<Cell>,
}

/// A part of an object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    /// Percent of its blocks that are on disk.
    pub resident: u8,
    /// How often its hottest segment was asked for lately: 0 to 3.
    pub heat: u8,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Segments that were read.
    pub segments: u64,
    /// Blocks that are what was written.
    pub good_blocks: u64,
    /// Their bytes.
    pub good_bytes: u64,
    /// Blocks that are not.
    pub damaged_blocks: u64,
    /// Segments with such blocks, or without a sound header, by path below the directory.
    pub damaged: Vec<String>,
    /// Of those, how many were removed.
    pub removed: u64,
    /// Segments encrypted with another key than the cache's: checked only against what is on disk.
    pub sealed_segments: u64,
}

impl Cache {
    /// Lists what is there, by name. Blocks the thread; reads the table of every segment.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn list(&self) -> io::Result<Vec<CachedObject>> {
        let core = &self.inner.core;
        let mut objects = Vec::new();
        for id in core.directory.object_ids()? {
            let mut object = CachedObject {
                id: id.clone(),
                name: None,
                version: None,
                key_id: None,
                len: 0,
                blocks: 0,
                cached_bytes: 0,
                disk_bytes: 0,
                segments: 0,
                hot_segments: 0,
            };
            let meta = std::fs::read(core.directory.objects().join(&id).join("meta"));
            match Meta::decode(&meta.unwrap_or_default(), core.key.as_ref()) {
                Found::Plain(meta) => {
                    object.len = meta.len;
                    object.name = Some(meta.name);
                    object.version = Some(meta.version);
                }
                Found::Sealed { key_id } => object.key_id = Some(hex(&key_id)),
                Found::Damaged => {}
            }
            // What vanishes meanwhile was evicted.
            for id in core.directory.segment_ids(&id).unwrap_or_default() {
                let Some((file, header)) = self.header(&id) else { continue };
                object.segments += 1;
                object.disk_bytes += file.metadata()?.blocks() * 512;
                object.hot_segments += u64::from(header.heat.frequency > 0);
                object.len = header.layout.object_len;
                object.key_id = header.key_id.map(|key_id| hex(&key_id));
                if let Some(segment) = self.open_as_it_is(&id, &header) {
                    let blocks = header.layout.segment_blocks(id.index);
                    for block in blocks.filter(|&block| segment.holds(block)) {
                        object.blocks += 1;
                        object.cached_bytes += header.layout.block_len(block) as u64;
                    }
                }
            }
            objects.push(object);
        }
        objects.sort_by(|a, b| (&a.name, &a.version, &a.id).cmp(&(&b.name, &b.version, &b.id)));
        Ok(objects)
    }

    /// Pictures of at most `objects_max` objects, those with most bytes here, in at most `cells_max`
    /// parts each. Blocks the thread; reads the table of every segment of theirs.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn maps(&self, objects_max: usize, cells_max: usize) -> io::Result<Vec<ObjectMap>> {
        let directory = &self.inner.core.directory;
        let mut all: Vec<_> = directory
            .object_ids()?
            .into_iter()
            .map(|id| (directory.segment_ids(&id).unwrap_or_default(), id))
            .collect();
        all.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then_with(|| a.1.cmp(&b.1)));
        all.truncate(objects_max);
        // What vanishes meanwhile was evicted.
        let maps = all.into_iter().filter_map(|(ids, id)| self.map(&id, &ids, cells_max));
        Ok(maps.collect())
    }

    fn map(&self, object: &str, ids: &[SegmentId], cells_max: usize) -> Option<ObjectMap> {
        let core = &self.inner.core;
        let mut map: Option<(ObjectMap, Vec<u64>)> = None;
        let mut blocks_all = 0;
        for id in ids {
            let Some((_, header)) = self.header(id) else { continue };
            let layout = header.layout;
            let (map, held) = map.get_or_insert_with(|| {
                blocks_all = layout.object_len.div_ceil(layout.block_bytes);
                let cells = (cells_max as u64).clamp(1, blocks_all.max(1)) as usize;
                let map = ObjectMap {
                    id: object.to_owned(),
                    name: None,
                    version: None,
                    len: layout.object_len,
                    block_bytes: layout.block_bytes,
                    cached_bytes: 0,
                    cells: vec![Cell::default(); cells],
                };
                (map, vec![0; cells])
            });
            // A file of another shape than the first one's would be painted in the wrong place.
            if layout.object_len != map.len {
                continue;
            }
            let cells = map.cells.len() as u64;
            let Some(segment) = self.open_as_it_is(id, &header) else { continue };
            for block in layout.segment_blocks(id.index).filter(|&block| segment.holds(block)) {
                let cell =
                    (u128::from(block) * u128::from(cells) / u128::from(blocks_all)) as usize;
                let cell = cell.min(held.len() - 1);
                held[cell] += 1;
                map.cached_bytes += layout.block_len(block) as u64;
                map.cells[cell].heat = map.cells[cell].heat.max(header.heat.frequency);
            }
        }
        let (mut map, held) = map?;
        let cells = map.cells.len() as u64;
        for (at, (cell, held)) in map.cells.iter_mut().zip(held).enumerate() {
            let edge = |at: u64| (at * blocks_all).div_ceil(cells);
            let blocks = (edge(at as u64 + 1) - edge(at as u64)).max(1);
            cell.resident = (held * 100).div_ceil(blocks).min(100) as u8;
        }
        let meta = std::fs::read(core.directory.objects().join(object).join("meta"));
        if let Found::Plain(meta) = Meta::decode(&meta.unwrap_or_default(), core.key.as_ref()) {
            (map.name, map.version) = (Some(meta.name), Some(meta.version));
        }
        Some(map)
    }

    /// Removes all versions of an object, named by [`CachedObject::id`] or by the source's name.
    /// Returns the bytes that are free now.
    ///
    /// # Errors
    /// When the directory cannot be read or written.
    pub fn remove(&self, which: &str) -> io::Result<u64> {
        let matching =
            |object: &CachedObject| object.id == which || object.name.as_deref() == Some(which);
        self.remove_those(&matching)
    }

    /// Removes everything. Returns the bytes that are free now.
    ///
    /// # Errors
    /// When the directory cannot be read or written.
    pub fn clear(&self) -> io::Result<u64> {
        self.remove_those(&|_| true)
    }

    fn remove_those(&self, matching: &dyn Fn(&CachedObject) -> bool) -> io::Result<u64> {
        let directory = &self.inner.core.directory;
        let mut freed = 0;
        for object in self.list()?.iter().filter(|object| matching(object)) {
            for id in directory.segment_ids(&object.id)? {
                freed += directory.turn()?.remove(&id)?;
            }
        }
        Ok(freed)
    }

    /// Bytes that the cache takes, as its directory counts them.
    ///
    /// # Errors
    /// When the lock of the cache cannot be had.
    pub fn used_bytes(&self) -> io::Result<u64> {
        Ok(self.inner.core.directory.turn()?.used())
    }

    /// Reads every block and checks it; removes what is damaged if `repair` says so. Calls
    /// `progress` with the segments done and all of them. Blocks the thread.
    ///
    /// # Errors
    /// When the directory cannot be read. A damaged file is no error, but what is looked for.
    pub fn verify(&self, repair: bool, mut progress: impl FnMut(u64, u64)) -> io::Result<Verified> {
        let directory = &self.inner.core.directory;
        let mut by_object = BTreeMap::new();
        for object in directory.object_ids()? {
            let ids = directory.segment_ids(&object).unwrap_or_default();
            by_object.insert(object, ids);
        }
        let all: u64 = by_object.values().map(|ids| ids.len() as u64).sum();
        let mut verified = Verified::default();
        for id in by_object.into_values().flatten() {
            progress(verified.segments, all);
            verified.segments += 1;
            if self.verify_segment(&id, &mut verified)? {
                continue;
            }
            verified.damaged.push(format!("objects/{}", id.path().display()));
            if repair {
                directory.turn()?.remove(&id)?;
                verified.removed += 1;
            }
        }
        progress(verified.segments, all);
        Ok(verified)
    }

    /// Whether a segment is sound, or gone.
    fn verify_segment(&self, id: &SegmentId, verified: &mut Verified) -> io::Result<bool> {
        if !self.inner.core.directory.path(id).exists() {
            return Ok(true);
        }
        let Some((_, header)) = self.header(id) else { return Ok(false) };
        let object = ObjectKey(header.object);
        if object.id() != id.object || header.index != id.index {
            return Ok(false);
        }
        let Some(segment) = self.open_as_it_is(id, &header) else { return Ok(false) };
        verified.sealed_segments +=
            u64::from(header.key_id.is_some() && self.key_of(&header).is_none());
        let mut sound = true;
        for block in header.layout.segment_blocks(id.index) {
            if !segment.holds(block) {
                continue;
            }
            let mut bytes = vec![0; header.layout.block_len(block)];
            match segment.read(&(block..block + 1), &mut bytes) {
                Ok(()) => {
                    verified.good_blocks += 1;
                    verified.good_bytes += bytes.len() as u64;
                }
                Err(ReadFault::Damaged { .. } | ReadFault::Io(_)) => {
                    verified.damaged_blocks += 1;
                    sound = false;
                }
            }
        }
        Ok(sound)
    }

    fn header(&self, id: &SegmentId) -> Option<(File, Header)> {
        let file = File::open(self.inner.core.directory.path(id)).ok()?;
        let len = file.metadata().ok()?.len();
        let header = Header::read(&file, len).ok()??;
        Some((file, header))
    }

    fn key_of(&self, header: &Header) -> Option<&CacheKey> {
        self.inner.core.key.as_ref().filter(|key| header.key_id == Some(key.id_bytes()))
    }

    /// Opens a segment as what its header says; without its key, for its checksums alone.
    fn open_as_it_is(&self, id: &SegmentId, header: &Header) -> Option<Segment> {
        let path = self.inner.core.directory.path(id);
        Segment::inspect(&path, header, self.key_of(header)).ok()
    }
}
