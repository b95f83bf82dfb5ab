//! Bytes that are fetched before anybody asks for them.

use std::ops::Range;

use pager::{BlockSource, SourceError, Version};

use super::{
    DiskCache,
    flight::Coming,
    reading::{FLIGHT_WAIT, Reading},
};
use crate::body::check_range;

/// What was announced, on its way: one request after the other, one for each gap. Dropped, it lets the
/// block under way arrive, and no more.
#[must_use = "what is dropped is fetched no further"]
pub struct Announced<S> {
    reading: Reading<S>,
    /// What others bring, for whom it is worth to go on.
    coming: Vec<Coming>,
}

impl<S: BlockSource> DiskCache<S> {
    /// Begins to bring what is missing of `range`, for whoever asks for it next, which is the first
    /// time that it is asked for. Resolves when the first request is under way: who reads from now on
    /// waits for that one, and makes none. `None` where nothing is missing, or would not be kept: a
    /// version that is not, a disk that fails.
    ///
    /// # Errors
    /// [`SourceError`] for a range that is not within the object.
    pub async fn announce(
        &self,
        version: &Version,
        range: Range<u64>,
    ) -> Result<Option<Announced<S>>, SourceError> {
        let Some(object) = self.object(version).await else { return Ok(None) };
        check_range(self.name(), &range, object.identity.layout.object_len)?;
        let mut coming = Vec::new();
        let mut reading = Reading::new(self, object, version, range, true);
        let begun = reading.begin(&mut coming).await?;
        let some = begun || !coming.is_empty();
        Ok(some.then_some(Announced { reading, coming }))
    }

    /// Brings what is missing of `range`: [`announce`](DiskCache::announce), and then all of it.
    ///
    /// # Errors
    /// As for [`read`](BlockSource::read).
    pub async fn prefetch(&self, version: &Version, range: Range<u64>) -> Result<(), SourceError> {
        match self.announce(version, range).await? {
            Some(announced) => announced.arrive().await,
            None => Ok(()),
        }
    }
}

impl<S: BlockSource> Announced<S> {
    /// Waits for all of it.
    ///
    /// # Errors
    /// As for [`read`](BlockSource::read).
    pub async fn arrive(mut self) -> Result<(), SourceError> {
        loop {
            self.reading.arrive().await?;
            if !self.reading.begin(&mut self.coming).await? {
                break;
            }
        }
        for coming in self.coming {
            // Whoever asks for these bytes is told what is wrong with them.
            let _ = tokio::time::timeout(FLIGHT_WAIT, coming).await;
        }
        Ok(())
    }
}
