//! What is dirty, made a version of the object.
//!
//! ```text
//!   settle what is unsettled --> lend the dirty pages --> begin --> write ... --> commit
//!                                      |                                            |
//!      writers to these pages wait <---+          stands on the new version --------+
//!                                                 then clean, unpinned, given back
//! ```
//!
//! In this order nothing is lost: a page stays dirty, and its unit pinned, until the version that has it
//! stands; and what is fetched from then on is of that version.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use super::{Shared, State, lends::Taken};
use crate::{
    error::{Error, SourceError},
    sink::{SinkError, Writing},
    source::Version,
    sync::{Arc, lock},
};

/// Bytes given to the sink at a time.
const PIECE_BYTES: u64 = 1 << 20;

/// What a flush has done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Flushed {
    /// The version that the region stands on now.
    pub version: Version,
    /// Bytes of pages that were dirty, and are in this version. 0 where nothing was: then it is the
    /// version from before.
    pub bytes: u64,
}

/// Flushes what is dirty, after the flushes before.
pub(super) async fn run(shared: Arc<Shared>) -> Result<Flushed, Error> {
    let since = Instant::now();
    let flushed = flush(&shared).await;
    match &flushed {
        Ok(flushed) => {
            metrics::counter!("pager.flush.bytes").increment(flushed.bytes);
            metrics::histogram!("pager.flush.us").record(since.elapsed().as_micros() as f64);
        }
        Err(Error::Sink(error)) => {
            metrics::counter!("pager.flush.errors", "kind" => error.kind()).increment(1);
        }
        Err(_) => {}
    }
    flushed
}

async fn flush(shared: &Shared) -> Result<Flushed, Error> {
    let mut unsettled = shared.unsettled.lock().await;
    if let Some(mut writing) = unsettled.take() {
        match commit(shared, &mut *writing).await {
            // What was dirty then is dirty still, and is written once more: nobody knows which of it
            // has been written since.
            Ok(_) => {}
            Err(error @ SinkError::Unsettled { .. }) => {
                *unsettled = Some(writing);
                return Err(error.into());
            }
            // Whether it was written nobody can find out any more.
            Err(error @ SinkError::Overtaken { .. }) => {
                writing.abort().await;
                return Err(error.into());
            }
            // It was not written, which is what had to be found out.
            Err(_) => abort(shared, writing).await,
        }
    }
    let base = shared.standing.base().0;
    let Some(pages) = take(shared).await? else { return Ok(Flushed { version: base, bytes: 0 }) };
    let begin = shared.sink.begin(&base, shared.region.len());
    let mut writing = within(shared, "begin of a new version", None, begin).await?;
    // Whatever a write says: what is not whole is never asked about again, but taken away.
    if let Err(error) = pages.write_to(&mut *writing).await {
        abort(shared, writing).await;
        return Err(error.into());
    }
    match commit(shared, &mut *writing).await {
        Ok(version) => Ok(Flushed { version, bytes: pages.are_clean() }),
        Err(error @ SinkError::Unsettled { .. }) => {
            *unsettled = Some(writing);
            Err(error.into())
        }
        Err(error) => {
            abort(shared, writing).await;
            Err(error.into())
        }
    }
}

/// Waits for one call of the sink before its commit, but not for ever: one that does not answer is dropped.
/// So far the object is as it was.
async fn within<T>(
    shared: &Shared,
    what: &'static str,
    range: Option<Range<u64>>,
    call: impl Future<Output = Result<T, SinkError>>,
) -> Result<T, SinkError> {
    let deadline = shared.sink_deadline;
    match tokio::time::timeout(deadline, call).await {
        Ok(outcome) => outcome,
        Err(_) => Err(SinkError::Failed(SourceError::Transient {
            object: shared.sink.name().to_owned(),
            what,
            range,
            attempts: 1,
            reason: no_answer(deadline),
            cause: None,
        })),
    }
}

fn no_answer(deadline: Duration) -> String {
    format!("no answer within the pager's deadline for sinks of {deadline:?}")
}

/// Takes `writing` away, as far as the sink does that in time. What is left is not the object, and the flush
/// has told already that the sink has trouble.
async fn abort(shared: &Shared, writing: Box<dyn Writing>) {
    let _ = tokio::time::timeout(shared.sink_deadline, writing.abort()).await;
}

/// Makes `writing` the object and has the region stand on it.
async fn commit(shared: &Shared, writing: &mut dyn Writing) -> Result<Version, SinkError> {
    let (commits, deadline) = (shared.standing.commits(), shared.sink_deadline);
    // One that is cut off may happen all the same: the next flush asks.
    let Ok(outcome) = tokio::time::timeout(deadline, writing.commit()).await else {
        let (object, reason) = (shared.sink.name().to_owned(), no_answer(deadline));
        return Err(SinkError::Unsettled { object, reason, cause: None });
    };
    let version = outcome?;
    commits.stands(version.clone());
    Ok(version)
}

/// Lends all pages that are dirty. `None` if there are none.
async fn take(shared: &Shared) -> Result<Option<Pages<'_>>, Error> {
    // Gives back what it gets, and takes back what it says while it waits.
    let mut pages = Pages { shared, ranges: Vec::new() };
    loop {
        let released = shared.released.notified();
        {
            let mut state = lock(&shared.state);
            let ranges = state.dirty.ranges(shared.ledger());
            match state.lends.lend_to_flush(&ranges) {
                Ok(()) => {
                    drop(state);
                    pages.ranges = ranges;
                    return Ok((!pages.ranges.is_empty()).then_some(pages));
                }
                Err(Taken::ByGuard(by)) => {
                    drop(state);
                    return Err(shared.lent(0..shared.region.len(), by));
                }
                Err(Taken::ForNow) => {}
            }
        }
        released.await;
    }
}

/// Dirty pages that the flush has, as long as this lives.
struct Pages<'a> {
    shared: &'a Shared,
    ranges: Vec<Range<u64>>,
}

impl Pages<'_> {
    async fn write_to(&self, writing: &mut dyn Writing) -> Result<(), SinkError> {
        for range in &self.ranges {
            let mut at = range.start;
            while at < range.end {
                let end = range.end.min(at + PIECE_BYTES);
                let write = writing.write(at, self.bytes(at..end));
                within(self.shared, "write", Some(at..end), write).await?;
                at = end;
            }
        }
        Ok(())
    }

    /// The bytes of a part of one of the ranges.
    fn bytes(&self, part: Range<u64>) -> &[u8] {
        let memory = self.shared.ledger().memory().expect("an object with pages has memory");
        // SAFETY: the part lies in a dirty range: inside the object and so inside the mapping, resident,
        // and pinned as long as it is dirty, which only this flush ends. The range is lent to the flush
        // while `self` lives, so nobody has it for writing.
        unsafe {
            let start = memory.base().as_ptr().add(part.start as usize);
            std::slice::from_raw_parts(start, (part.end - part.start) as usize)
        }
    }

    /// The version that the region stands on has these pages. Returns their bytes.
    fn are_clean(self) -> u64 {
        let (ledger, mut state) = (self.shared.ledger(), lock(&self.shared.state));
        let State { dirty, window, .. } = &mut *state;
        // A unit that is mapped elsewhere is kept for the map from now on.
        dirty.clean(ledger, &self.ranges, |unit| {
            window.as_mut().is_some_and(|window| window.takes(ledger.geometry(), unit))
        });
        drop(state);
        self.ranges.iter().map(|range| range.end - range.start).sum()
    }
}

impl Drop for Pages<'_> {
    fn drop(&mut self) {
        lock(&self.shared.state).lends.flush_gives_back();
        self.shared.released.notify_waiters();
    }
}

impl Shared {
    /// The task of a flush has ended without an outcome.
    pub(super) fn stopped(&self, stopped: tokio::task::JoinError) -> Error {
        let reason = match stopped.is_panic() {
            true => "the sink panicked; what was dirty still is",
            false => "the pager stopped while it was flushed",
        };
        let (object, reason) = (self.region.name().to_owned(), reason.to_owned());
        Error::Sink(SinkError::Failed(SourceError::Permanent { object, reason, cause: None }))
    }
}
