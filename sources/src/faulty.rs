//! Fails on a schedule, so that what stands around a source can be tried.
//!
//! A schedule is a script (the n-th read gets the n-th fault) or a seed with rates; both replay.

use std::{
    ops::Range,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, future, stream};
use pager::{BlockSource, ByteStream, Frame, ObjectStat, ReadAtOnce, SourceError, Version};

use crate::chance::Chance;

/// One thing that goes wrong with one read.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Fault {
    /// The answer comes late.
    Delay(Duration),
    /// The body ends after so many bytes, as if that were all.
    Truncate {
        /// Bytes that come.
        after: u64,
    },
    /// The body breaks after so many bytes, with a transient error.
    Break {
        /// Bytes that come.
        after: u64,
    },
    /// One bit of the byte at this place of the body is flipped. Nobody can see it but a checksum.
    Corrupt {
        /// Place in the body; beyond its end nothing happens.
        at: u64,
    },
    /// Nothing comes any more after so many bytes: with 0 not even the head of an answer.
    Stall {
        /// Bytes that come.
        after: u64,
    },
    /// The request is refused.
    Fail(Failure),
    /// The object is another one from now on: this read and all later ones end in `Changed`.
    Change,
}

/// How a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Failure {
    /// There is no such object.
    NotFound,
    /// It is not allowed.
    Denied,
    /// Too many requests.
    Throttled {
        /// How long the source asks to wait.
        retry_after: Option<Duration>,
    },
    /// A reset, a timeout, a 5xx.
    Transient,
    /// It can never work.
    Permanent,
}

/// How often each fault happens to a read: probabilities from 0 to 1, tried in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Of [`Fault::Change`].
    pub change: f64,
    /// Of [`Fault::Stall`], at a random place.
    pub stall: f64,
    /// Of [`Fault::Fail`], throttled or transient.
    pub fail: f64,
    /// Of [`Fault::Truncate`], at a random place.
    pub truncate: f64,
    /// Of [`Fault::Break`], at a random place.
    pub broken: f64,
    /// Of [`Fault::Corrupt`], at a random place.
    pub corrupt: f64,
    /// Of [`Fault::Delay`].
    pub delay: f64,
    /// The longest delay.
    pub delay_max: Duration,
}

/// Which read gets which fault.
#[derive(Debug)]
pub struct Schedule {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Script(Mutex<std::vec::IntoIter<Option<Fault>>>),
    Seeded(Chance, Rates),
}

impl Schedule {
    /// The n-th read gets the n-th fault; reads after the last one are well.
    pub fn script(faults: impl IntoIterator<Item = Option<Fault>>) -> Schedule {
        let faults: Vec<_> = faults.into_iter().collect();
        Schedule { kind: Kind::Script(Mutex::new(faults.into_iter())) }
    }

    /// Faults at random, the same ones for the same seed and the same order of reads.
    pub fn seeded(seed: u64, rates: Rates) -> Schedule {
        Schedule { kind: Kind::Seeded(Chance::seeded(seed), rates) }
    }

    fn next(&self, len: u64) -> Option<Fault> {
        match &self.kind {
            Kind::Script(faults) => {
                faults.lock().unwrap_or_else(PoisonError::into_inner).next().flatten()
            }
            Kind::Seeded(chance, rates) => draw(chance, rates, len),
        }
    }
}

fn draw(chance: &Chance, rates: &Rates, len: u64) -> Option<Fault> {
    let hit = |rate: f64| chance.unit() < rate;
    if hit(rates.change) {
        return Some(Fault::Change);
    }
    if hit(rates.stall) {
        return Some(Fault::Stall { after: chance.below(len) });
    }
    if hit(rates.fail) {
        let throttled = Failure::Throttled { retry_after: None };
        let failure = if chance.below(2) == 0 { throttled } else { Failure::Transient };
        return Some(Fault::Fail(failure));
    }
    if hit(rates.truncate) {
        return Some(Fault::Truncate { after: chance.below(len) });
    }
    if hit(rates.broken) {
        return Some(Fault::Break { after: chance.below(len) });
    }
    if hit(rates.corrupt) {
        return Some(Fault::Corrupt { at: chance.below(len) });
    }
    hit(rates.delay).then(|| Fault::Delay(chance.up_to(rates.delay_max)))
}

/// A source that fails on a schedule. `stat` is always well.
pub struct Faulty<S> {
    source: S,
    schedule: Schedule,
    injected: AtomicU64,
    changed: AtomicU64,
}

impl<S: BlockSource> Faulty<S> {
    /// Fails the reads of `source` as `schedule` says.
    pub fn new(source: S, schedule: Schedule) -> Faulty<S> {
        Faulty { source, schedule, injected: AtomicU64::new(0), changed: AtomicU64::new(0) }
    }

    /// Faults that happened so far.
    pub fn injected(&self) -> u64 {
        self.injected.load(Relaxed)
    }

    /// What happens to this read; errors and delays happen here.
    async fn meet(
        &self,
        version: &Version,
        range: &Range<u64>,
    ) -> Result<Option<Fault>, SourceError> {
        let fault = self.schedule.next(range.end.saturating_sub(range.start));
        self.injected.fetch_add(u64::from(fault.is_some()), Relaxed);
        if fault == Some(Fault::Change) || self.changed.load(Relaxed) > 0 {
            self.changed.store(1, Relaxed);
            return Err(SourceError::Changed {
                object: self.source.name().to_owned(),
                expected: version.to_string(),
                found: "a version made up by Faulty".to_owned(),
            });
        }
        match &fault {
            Some(Fault::Delay(delay)) => tokio::time::sleep(*delay).await,
            Some(Fault::Stall { after: 0 }) => future::pending().await,
            Some(Fault::Fail(failure)) => return Err(self.refuse(failure, range)),
            _ => {}
        }
        Ok(fault)
    }

    fn refuse(&self, failure: &Failure, range: &Range<u64>) -> SourceError {
        let object = self.source.name().to_owned();
        let reason = "made up by Faulty".to_owned();
        let cause = None;
        match failure {
            Failure::NotFound => SourceError::NotFound { object, cause },
            Failure::Denied => SourceError::Denied { object, reason, cause },
            Failure::Permanent => SourceError::Permanent { object, reason, cause },
            Failure::Transient => self.broken(range),
            Failure::Throttled { retry_after } => {
                let (range, retry_after) = (Some(range.clone()), *retry_after);
                let (what, attempts) = ("read", 1);
                SourceError::Throttled { object, what, range, attempts, retry_after, cause }
            }
        }
    }

    fn broken(&self, range: &Range<u64>) -> SourceError {
        SourceError::transient_read(self.source.name(), range.clone(), "made up by Faulty", None)
    }
}

/// The first `n` bytes of a body.
fn cut(body: ByteStream, n: u64) -> ByteStream {
    Box::pin(stream::unfold((body, n), |(mut body, left)| async move {
        if left == 0 {
            return None;
        }
        let item = body.next().await?;
        let item = item.map(|mut chunk: Bytes| {
            chunk.truncate(left.min(chunk.len() as u64) as usize);
            chunk
        });
        let left = left - item.as_ref().map_or(left, |chunk| chunk.len() as u64);
        Some((item, (body, left)))
    }))
}

fn flip(body: ByteStream, at: u64) -> ByteStream {
    let mut start = 0u64;
    Box::pin(body.map(move |item| {
        item.map(|chunk| {
            let place = at.checked_sub(start).filter(|place| *place < chunk.len() as u64);
            start += chunk.len() as u64;
            match place {
                None => chunk,
                Some(place) => {
                    let mut copy = BytesMut::from(&chunk[..]);
                    copy[place as usize] ^= 1;
                    copy.freeze()
                }
            }
        })
    }))
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl<S: BlockSource> BlockSource for Faulty<S> {
    fn name(&self) -> &str {
        self.source.name()
    }

    async fn stat(&self) -> Result<ObjectStat, SourceError> {
        self.source.stat().await
    }

    async fn read(&self, version: &Version, range: Range<u64>) -> Result<ByteStream, SourceError> {
        let fault = self.meet(version, &range).await?;
        let broken = self.broken(&range);
        let body = self.source.read(version, range).await?;
        Ok(match fault {
            Some(Fault::Truncate { after }) => cut(body, after),
            Some(Fault::Break { after }) => {
                Box::pin(cut(body, after).chain(stream::once(future::ready(Err(broken)))))
            }
            Some(Fault::Stall { after }) => Box::pin(cut(body, after).chain(stream::pending())),
            Some(Fault::Corrupt { at }) => flip(body, at),
            _ => body,
        })
    }

    async fn read_into(
        &self,
        version: &Version,
        range: Range<u64>,
        frame: Frame,
    ) -> Result<Frame, SourceError> {
        let fault = self.meet(version, &range).await?;
        let wanted = range.end.saturating_sub(range.start);
        let before = frame.filled().len();
        match fault {
            Some(Fault::Truncate { after } | Fault::Break { after } | Fault::Stall { after })
                if after < wanted =>
            {
                let part = range.start..range.start + after;
                let frame = match after {
                    0 => frame,
                    _ => self.source.read_into(version, part, frame).await?,
                };
                match fault {
                    Some(Fault::Stall { .. }) => future::pending().await,
                    Some(Fault::Break { .. }) => {}
                    _ => return Err(SourceError::short_body(self.name(), range, after)),
                }
                // Held until here, as a source holds it that fails in the midst of a body.
                drop(frame);
                Err(self.broken(&range))
            }
            Some(Fault::Corrupt { at }) if at < wanted => {
                let mut frame = self.source.read_into(version, range, frame).await?;
                let filled = frame.filled().len();
                let place = before + at as usize;
                frame.truncate(place);
                frame.unfilled()[0] ^= 1;
                frame.advance(filled - place);
                Ok(frame)
            }
            _ => self.source.read_into(version, range, frame).await,
        }
    }

    fn fills_frames(&self) -> bool {
        self.source.fills_frames()
    }

    fn at_once(&self) -> Option<&dyn ReadAtOnce> {
        // Delays are waited for on the runtime.
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;

    #[tokio::test]
    async fn faults_happen_as_scheduled_in_both_ways_of_reading() {
        let bytes: Vec<u8> = (0..=255).collect();
        let faults = [
            Some(Fault::Truncate { after: 10 }),
            Some(Fault::Break { after: 10 }),
            Some(Fault::Corrupt { at: 10 }),
            Some(Fault::Fail(Failure::NotFound)),
            None,
        ];
        let twice = faults.iter().flat_map(|fault| [fault.clone(), fault.clone()]);
        let source = Faulty::new(Memory::new("x", bytes.clone()), Schedule::script(twice));
        let version = source.stat().await.expect("stat").version;
        let mut seen = Vec::new();
        for _ in &faults {
            let streamed = match source.read(&version, 0..256).await {
                Err(error) => format!("{} before", error.kind()),
                Ok(body) => {
                    let items: Vec<_> = body.collect().await;
                    let broken = items.iter().any(Result::is_err);
                    let got: Vec<u8> = items.into_iter().flatten().flatten().collect();
                    format!("{} {} {}", got.len(), broken, got == bytes)
                }
            };
            let frame = Frame::with_capacity(256);
            let framed = match source.read_into(&version, 0..256, frame).await {
                Err(error) => error.kind().to_owned(),
                Ok(frame) => format!("{}", frame.filled() == bytes),
            };
            seen.push((streamed, framed));
        }
        let expected = [
            ("10 false false", "corrupt"),
            ("10 true false", "transient"),
            ("256 false false", "false"),
            ("not_found before", "not_found"),
            ("256 false true", "true"),
        ];
        for (seen, expected) in seen.iter().zip(expected) {
            assert_eq!((seen.0.as_str(), seen.1.as_str()), expected);
        }
        assert_eq!(source.injected(), 8);
    }

    #[test]
    fn a_seed_replays() {
        let rates = Rates { fail: 0.2, truncate: 0.2, delay: 0.5, ..Rates::default() };
        let (a, b) = (Schedule::seeded(3, rates), Schedule::seeded(3, rates));
        let left: Vec<_> = (0..200).map(|_| a.next(1000)).collect();
        let right: Vec<_> = (0..200).map(|_| b.next(1000)).collect();
        assert_eq!(left, right);
        assert!(left.iter().any(|fault| fault.is_some()));
    }
}
