//! What is in a cache, for people: lists, removes, checks.

use std::{collections::BTreeMap, fs::File, io, os::unix::fs::MetadataExt};

use super::{
    Cache,
    encryption::CacheKey,
    layout::{ObjectKey, SegmentId, hex},
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
