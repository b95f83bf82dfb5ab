//! The version that a writable region stands on, and reads of it while that changes.
//!
//! ```text
//!   read --> of the version of now --> Changed? --> a commit is under way, or another version stands
//!                 ^                                    |                     |
//!                 +---- when that is decided <---------+---------------------+
//! ```
//!
//! A flush replaces the object under the readers of the same region. What they fetch meanwhile are
//! units that are not in memory, so no byte of theirs was written, and both versions have the same ones.
//! So bytes of the old version may be put in place after the flush, and a request that was refused
//! because the old version is gone is made again of the new one.

use std::ops::Range;

use async_trait::async_trait;
use futures::StreamExt;
use tokio::sync::Notify;

use crate::{
    error::SourceError,
    frame::Frame,
    source::{BlockSource, ByteStream, ObjectStat, Version},
    sync::{Arc, Mutex, lock},
};

/// The source of a writable region: whatever version a read names, it is of the one that stands.
pub(crate) struct Standing {
    source: Arc<dyn BlockSource>,
    base: Mutex<Base>,
    decided: Notify,
}

struct Base {
    version: Version,
    /// Versions before this one.
    generation: u64,
    commits: bool,
}

/// A commit that is under way. Dropped without [`stands`](Commit::stands), nothing has changed.
pub(super) struct Commit<'a>(&'a Standing);

impl Standing {
    pub(crate) fn new(source: Arc<dyn BlockSource>, version: Version) -> Standing {
        let base = Mutex::new(Base { version, generation: 0, commits: false });
        Standing { source, base, decided: Notify::new() }
    }

    /// The version of now, and how many came before it.
    pub(super) fn base(&self) -> (Version, u64) {
        let base = lock(&self.base);
        (base.version.clone(), base.generation)
    }

    /// The object is about to be replaced.
    pub(super) fn commits(&self) -> Commit<'_> {
        lock(&self.base).commits = true;
        Commit(self)
    }

    /// Waits for a commit that is under way. Whether another version stands than the one after
    /// `generation` others.
    async fn moved_on(&self, generation: u64) -> bool {
        loop {
            let decided = self.decided.notified();
            {
                let base = lock(&self.base);
                if !base.commits {
                    return base.generation != generation;
                }
            }
            decided.await;
        }
    }
}

impl Commit<'_> {
    /// The object is at `version` now.
    pub(super) fn stands(self, version: Version) {
        let mut base = lock(&self.0.base);
        base.version = version;
        base.generation += 1;
    }
}

impl Drop for Commit<'_> {
    fn drop(&mut self) {
        lock(&self.0.base).commits = false;
        self.0.decided.notify_waiters();
    }
}

/// A pointer of our own: a body goes on when the source is asked anew.
#[async_trait]
impl BlockSource for Arc<Standing> {
    fn name(&self) -> &str {
        self.source.name()
    }

    async fn stat(&self) -> Result<ObjectStat, SourceError> {
        self.source.stat().await
    }

    async fn read(&self, _opened: &Version, range: Range<u64>) -> Result<ByteStream, SourceError> {
        let (body, generation) = self.body(range.clone()).await?;
        let reading = Reading { standing: self.clone(), body, generation, rest: range };
        Ok(Box::pin(futures::stream::unfold(Some(reading), |reading| async {
            let mut reading = reading?;
            match reading.next().await? {
                Ok(chunk) => Some((Ok(chunk), Some(reading))),
                Err(error) => Some((Err(error), None)),
            }
        })))
    }

    async fn read_into(
        &self,
        _opened: &Version,
        range: Range<u64>,
        mut frame: Frame,
    ) -> Result<Frame, SourceError> {
        let held = frame.filled().len();
        loop {
            let (version, generation) = self.base();
            let (lent, lender) = frame.lend();
            let error = match self.source.read_into(&version, range.clone(), lent).await {
                Ok(full) => return Ok(full),
                Err(error) => error,
            };
            if !is_changed(&error) || !self.moved_on(generation).await {
                return Err(error);
            }
            // A source that keeps the frame although it has failed has nothing to fill.
            let Some(back) = lender.recall() else { return Err(error) };
            frame = back;
            if frame.filled().len() < held {
                return Err(error);
            }
            frame.truncate(held);
        }
    }

    fn fills_frames(&self) -> bool {
        self.source.fills_frames()
    }
}

impl Standing {
    /// The bytes `range` of the version that stands, and how many came before that.
    async fn body(&self, range: Range<u64>) -> Result<(ByteStream, u64), SourceError> {
        loop {
            let (version, generation) = self.base();
            match self.source.read(&version, range.clone()).await {
                Ok(body) => return Ok((body, generation)),
                Err(error) if is_changed(&error) && self.moved_on(generation).await => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn is_changed(error: &SourceError) -> bool {
    matches!(error, SourceError::Changed { .. })
}

/// A body that goes on with that of the next version, where its own is cut off by a flush.
struct Reading {
    standing: Arc<Standing>,
    body: ByteStream,
    generation: u64,
    /// What is still to come.
    rest: Range<u64>,
}

impl Reading {
    async fn next(&mut self) -> Option<Result<bytes::Bytes, SourceError>> {
        loop {
            let error = match self.body.next().await? {
                Ok(chunk) => {
                    self.rest.start = self.rest.start.saturating_add(chunk.len() as u64);
                    return Some(Ok(chunk));
                }
                Err(error) => error,
            };
            let more = self.rest.start < self.rest.end;
            if !more || !is_changed(&error) || !self.standing.moved_on(self.generation).await {
                return Some(Err(error));
            }
            match self.standing.body(self.rest.clone()).await {
                Ok((body, generation)) => (self.body, self.generation) = (body, generation),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}
