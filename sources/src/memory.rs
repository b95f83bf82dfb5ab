//! A source over bytes in memory: for tests, for examples, and for objects that are made up.

use std::{
    ops::Range,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream;
use pager::{
    BlockSink, BlockSource, ByteStream, Frame, ObjectStat, SinkError, SourceError, Version, Writing,
};

use crate::body::check_range;

/// Chunks of a stream, so that consumers meet more than one.
const CHUNK_BYTES: usize = 256 << 10;

/// An object that lies in memory. Its version is strong, and new with every
/// [`replace`](Memory::replace). A [`BlockSink`] too; clones are the same object.
#[derive(Clone, Debug)]
pub struct Memory {
    name: String,
    object: Arc<RwLock<(Bytes, Version)>>,
}

impl Memory {
    /// An object of these bytes, named `memory:<name>` in metrics and errors.
    pub fn new(name: impl AsRef<str>, bytes: impl Into<Bytes>) -> Memory {
        Memory {
            name: format!("memory:{}", name.as_ref()),
            object: Arc::new(RwLock::new((bytes.into(), fresh_version()))),
        }
    }

    /// Puts other bytes in the place of these, under a new version: reads of the old one end in
    /// [`SourceError::Changed`].
    pub fn replace(&self, bytes: impl Into<Bytes>) {
        let fresh = (bytes.into(), fresh_version());
        *self.object.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = fresh;
    }

    fn object(&self) -> (Bytes, Version) {
        self.object.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    fn bytes_of(&self, version: &Version, range: &Range<u64>) -> Result<Bytes, SourceError> {
        let (bytes, current) = self.object();
        if *version != current {
            return Err(SourceError::Changed {
                object: self.name.clone(),
                expected: version.to_string(),
                found: current.to_string(),
            });
        }
        check_range(&self.name, range, bytes.len() as u64)?;
        Ok(bytes.slice(range.start as usize..range.end as usize))
    }
}

/// Unique in this process, which is as far as such an object can be seen.
fn fresh_version() -> Version {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    Version::strong(format!("memory-{}", NEXT.fetch_add(1, Ordering::Relaxed)))
}

#[async_trait]
impl BlockSource for Memory {
    fn name(&self) -> &str {
        &self.name
    }

    async fn stat(&self) -> Result<ObjectStat, SourceError> {
        let (bytes, version) = self.object();
        Ok(ObjectStat::new(bytes.len() as u64, version))
    }

    async fn read(&self, version: &Version, range: Range<u64>) -> Result<ByteStream, SourceError> {
        let mut rest = self.bytes_of(version, &range)?;
        let chunks = std::iter::from_fn(move || {
            (!rest.is_empty()).then(|| Ok(rest.split_to(rest.len().min(CHUNK_BYTES))))
        });
        Ok(Box::pin(stream::iter(chunks)))
    }

    async fn read_into(
        &self,
        version: &Version,
        range: Range<u64>,
        mut frame: Frame,
    ) -> Result<Frame, SourceError> {
        frame.put(&self.bytes_of(version, &range)?);
        Ok(frame)
    }

    fn fills_frames(&self) -> bool {
        true
    }
}

#[async_trait]
impl BlockSink for Memory {
    fn name(&self) -> &str {
        &self.name
    }

    async fn begin(&self, base: &Version, len: u64) -> Result<Box<dyn Writing>, SinkError> {
        let (bytes, current) = self.object();
        self.is_at(base, &current)?;
        if bytes.len() as u64 != len {
            let reason = format!("it has {} bytes, not {len}", bytes.len());
            let object = self.name.clone();
            return Err(SourceError::Permanent { object, reason, cause: None }.into());
        }
        Ok(Box::new(Patched { memory: self.clone(), base: base.clone(), bytes: bytes.to_vec() }))
    }
}

impl Memory {
    fn is_at(&self, base: &Version, current: &Version) -> Result<(), SinkError> {
        if base == current {
            return Ok(());
        }
        Err(SinkError::Conflict {
            object: self.name.clone(),
            expected: base.to_string(),
            found: current.to_string(),
        })
    }
}

/// A copy of the object, on its way to be the object.
struct Patched {
    memory: Memory,
    base: Version,
    bytes: Vec<u8>,
}

#[async_trait]
impl Writing for Patched {
    async fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        let range = offset..offset.saturating_add(bytes.len() as u64);
        check_range(&self.memory.name, &range, self.bytes.len() as u64)?;
        self.bytes[range.start as usize..range.end as usize].copy_from_slice(bytes);
        Ok(())
    }

    async fn commit(&mut self) -> Result<Version, SinkError> {
        let mut object = self.memory.object.write().unwrap_or_else(PoisonError::into_inner);
        self.memory.is_at(&self.base, &object.1)?;
        let version = fresh_version();
        *object = (std::mem::take(&mut self.bytes).into(), version.clone());
        Ok(version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_replaced_object_is_changed() {
        let memory = Memory::new("x", vec![1u8; 10]);
        let old = memory.stat().await.expect("stat").version;
        memory.replace(vec![2u8; 10]);
        let error = memory.read(&old, 0..10).await.err().expect("the old version is gone");
        assert!(matches!(error, SourceError::Changed { .. }), "{error}");
    }
}
