//! Bytes that are fetched before anybody asks for them.

use std::ops::Range;

use futures::future::{join_all, try_join_all};
use pager::{BlockSource, SourceError, Version};

use super::{
    DiskCache,
    flight::Passed,
    reading::{Began, Reading},
};
use crate::body::check_range;

/// Requests for one announcement that are under way at once: a few gaps cost one round trip.
const REQUESTS_MAX: usize = 4;

/// What was announced, on its way: one request for each gap. Dropped, it lets the blocks under way
/// arrive, and no more.
#[must_use = "what is dropped is fetched no further"]
pub struct Announced<S> {
    reading: Reading<S>,
    /// Blocks to go on with after its own, the next ones last.
    rest: Vec<Range<u64>>,
    under_way: Vec<Began>,
    /// What others bring, for whom it is worth to go on.
    coming: Vec<Passed>,
}

impl<S: BlockSource> DiskCache<S> {
    /// Begins to bring what is missing of `range`, for whoever asks for it next, which is the first
    /// time that it is asked for. Resolves when the first requests are under way: who reads from now on
    /// waits for those, and makes none. `None` where nothing is missing, or would not be kept: a
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
        let reading = Reading::new(self, object, version, range, true);
        let (rest, under_way, coming) = (Vec::new(), Vec::new(), Vec::new());
        let mut announced = Announced { reading, rest, under_way, coming };
        announced.begin().await?;
        let some = !announced.under_way.is_empty() || !announced.coming.is_empty();
        Ok(some.then_some(announced))
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
    /// Asks for as much as may be under way.
    async fn begin(&mut self) -> Result<(), SourceError> {
        while self.under_way.len() < REQUESTS_MAX {
            match self.reading.begin(&mut self.coming).await? {
                Some(began) => self.under_way.push(began),
                None => match self.rest.pop() {
                    Some(blocks) => {
                        self.reading.turn_to(blocks);
                    }
                    None => break,
                },
            }
        }
        Ok(())
    }

    /// Waits for all of it.
    ///
    /// # Errors
    /// As for [`read`](BlockSource::read).
    pub async fn arrive(mut self) -> Result<(), SourceError> {
        loop {
            let gaps = if !self.under_way.is_empty() {
                try_join_all(self.under_way.drain(..).map(Began::arrive)).await?
            } else if !self.coming.is_empty() {
                let flights = self.reading.flights();
                join_all(self.coming.drain(..).map(|passed| passed.arrive(flights))).await
            } else {
                return Ok(());
            };
            // A request ends before its end where only others still wanted it, and they have what they
            // wanted. What it did not bring is looked for again, before what comes after it.
            for gap in gaps.into_iter().flatten().rev() {
                self.rest.push(self.reading.turn_to(gap));
            }
            self.begin().await?;
        }
    }
}
