//! A second request for the slowest few.
//!
//! ```text
//!   request 1  |-------------- p95 of first bytes ------ ... (stuck)
//!   request 2                                  |-------> bytes; request 1 is dropped
//! ```
//!
//! After Dean, Barroso: "The Tail at Scale", Communications of the ACM, 2013. The threshold is the
//! 95th percentile of what was measured lately, and at most 2 % of the requests are sent twice, so
//! that a server which is slow for everybody is not asked twice for everything.

use std::{
    ops::Range,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{
    StreamExt,
    future::{Either, select},
    stream,
};
use pager::{
    BlockSource, ByteStream, Frame, ObjectStat, ReadAtOnce, SourceError, Version,
    source::collect_into,
};
use tokio::time::Instant;

use crate::counters;

/// Latest first-byte times that the percentile is taken of.
const SAMPLES: usize = 256;
/// Fewer say nothing about a 95th percentile.
const SAMPLES_MIN: usize = 32;
/// How many new times make the percentile be taken anew: sorting costs a few microseconds.
const REFRESH: u64 = 16;
/// One extra request for so many: 2 %.
const REQUESTS_PER_HEDGE: u64 = 50;

/// A source that sends a GET a second time when its first byte is late, and takes the answer that
/// comes first. Only `read` is hedged, and `read_into` where that is not native.
pub struct Hedge<S> {
    source: S,
    pace: Mutex<Pace>,
}

#[derive(Default)]
struct Pace {
    /// A ring of first-byte times.
    times: Vec<Duration>,
    noted: u64,
    late: Option<Duration>,
    requests: u64,
    hedges: u64,
}

impl Pace {
    fn note(&mut self, took: Duration) {
        let place = self.noted as usize % SAMPLES;
        match self.times.get_mut(place) {
            Some(time) => *time = took,
            None => self.times.push(took),
        }
        self.noted += 1;
        if self.times.len() >= SAMPLES_MIN && self.noted.is_multiple_of(REFRESH) {
            let mut sorted = self.times.clone();
            let at = sorted.len() * 95 / 100;
            self.late = Some(*sorted.select_nth_unstable(at).1);
        }
    }

    fn may_hedge(&mut self) -> bool {
        let allowed = (self.hedges + 1) * REQUESTS_PER_HEDGE <= self.requests;
        self.hedges += u64::from(allowed);
        allowed
    }
}

/// A body whose first chunk has come.
type Begun = (Option<Bytes>, ByteStream);

impl<S: BlockSource> Hedge<S> {
    /// Hedges the reads of `source`.
    pub fn new(source: S) -> Hedge<S> {
        Hedge { source, pace: Mutex::default() }
    }

    /// Requests so far, and how many of them were sent twice.
    pub fn requests_and_hedges(&self) -> (u64, u64) {
        self.with(|pace| (pace.requests, pace.hedges))
    }

    fn with<T>(&self, work: impl FnOnce(&mut Pace) -> T) -> T {
        work(&mut self.pace.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn begin(&self, version: &Version, range: Range<u64>) -> Result<Begun, SourceError> {
        let mut body = self.source.read(version, range).await?;
        let first = body.next().await.transpose()?;
        Ok((first, body))
    }

    async fn hedged(&self, version: &Version, range: Range<u64>) -> Result<Begun, SourceError> {
        let began = Instant::now();
        let late = self.with(|pace| {
            pace.requests += 1;
            pace.late
        });
        let mut first = pin!(self.begin(version, range.clone()));
        let Some(late) = late else {
            let begun = first.await?;
            self.with(|pace| pace.note(began.elapsed()));
            return Ok(begun);
        };
        let waited = tokio::time::timeout(late, first.as_mut()).await;
        if let Ok(answer) = waited {
            let begun = answer?;
            self.with(|pace| pace.note(began.elapsed()));
            return Ok(begun);
        }
        if !self.with(Pace::may_hedge) {
            let begun = first.await?;
            self.with(|pace| pace.note(began.elapsed()));
            return Ok(begun);
        }
        counters::hedged();
        let second = pin!(self.begin(version, range));
        let begun = match select(first, second).await {
            Either::Left((Ok(begun), _)) => begun,
            Either::Left((Err(_), second)) => second.await?,
            Either::Right((Ok(begun), _)) => {
                counters::hedge_won();
                begun
            }
            Either::Right((Err(_), first)) => first.await?,
        };
        // The first one took at least as long.
        self.with(|pace| pace.note(began.elapsed()));
        Ok(begun)
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl<S: BlockSource> BlockSource for Hedge<S> {
    fn name(&self) -> &str {
        self.source.name()
    }

    async fn stat(&self) -> Result<ObjectStat, SourceError> {
        self.source.stat().await
    }

    async fn read(&self, version: &Version, range: Range<u64>) -> Result<ByteStream, SourceError> {
        let (first, rest) = self.hedged(version, range).await?;
        Ok(Box::pin(stream::iter(first.map(Ok)).chain(rest)))
    }

    async fn read_into(
        &self,
        version: &Version,
        range: Range<u64>,
        frame: Frame,
    ) -> Result<Frame, SourceError> {
        if self.source.fills_frames() {
            // There is one frame, and nothing to gain: such a source has no round trip.
            return self.source.read_into(version, range, frame).await;
        }
        let body = self.read(version, range.clone()).await?;
        collect_into(self.name(), body, range, frame).await
    }

    fn fills_frames(&self) -> bool {
        self.source.fills_frames()
    }

    fn at_once(&self) -> Option<&dyn ReadAtOnce> {
        // There is no second request to overtake a thread that is blocked.
        None
    }
}

/// Sharing the source is sharing its pace.
impl<S> Hedge<S> {
    /// The same behind an `Arc`, for several owners.
    pub fn shared(self) -> Arc<Hedge<S>> {
        Arc::new(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        faulty::{Fault, Faulty, Schedule},
        memory::Memory,
    };

    /// 10 ms for each, but for every `slow_each`-th, which takes 5 s.
    fn sometimes_slow(count: u64, slow_each: u64) -> Faulty<Memory> {
        let delays = (1..=count).map(move |n| {
            let slow = n % slow_each == 0;
            Some(Fault::Delay(Duration::from_millis(if slow { 5000 } else { 10 })))
        });
        Faulty::new(Memory::new("x", vec![5u8; 1000]), Schedule::script(delays))
    }

    async fn read_all(source: &impl BlockSource, version: &Version) -> (usize, Duration) {
        let began = Instant::now();
        let mut body = source.read(version, 0..1000).await.expect("read");
        let mut got = 0;
        while let Some(chunk) = body.next().await {
            got += chunk.expect("bytes").len();
        }
        (got, began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn the_slow_few_are_overtaken() {
        let source = Hedge::new(sometimes_slow(2000, 100));
        let version = source.stat().await.expect("stat").version;
        let mut slow = 0;
        for _ in 0..1000 {
            let (got, took) = read_all(&source, &version).await;
            assert_eq!(got, 1000);
            slow += u32::from(took > Duration::from_secs(1));
        }
        let (requests, hedges) = source.requests_and_hedges();
        assert_eq!(requests, 1000);
        assert!((5..=20).contains(&hedges), "{hedges}");
        assert!(slow <= 1, "{slow} of about ten slow ones were not overtaken");
    }

    /// Answers after the n-th of these times, and counts who waits.
    struct Waits {
        answers: Mutex<std::vec::IntoIter<(Duration, bool)>>,
        running: Arc<std::sync::atomic::AtomicU32>,
    }

    struct Running(Arc<std::sync::atomic::AtomicU32>);

    impl Drop for Running {
        fn drop(&mut self) {
            self.0.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
        }
    }

    #[async_trait]
    impl BlockSource for Waits {
        fn name(&self) -> &str {
            "waits"
        }

        async fn stat(&self) -> Result<ObjectStat, SourceError> {
            let version = Version::strong("v");
            Ok(ObjectStat::new(1, version).with_part_bytes(1))
        }

        async fn read(&self, _: &Version, range: Range<u64>) -> Result<ByteStream, SourceError> {
            self.running.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let _running = Running(self.running.clone());
            let next = self.answers.lock().expect("a script").next();
            let (after, good) = next.unwrap_or((Duration::from_millis(10), true));
            tokio::time::sleep(after).await;
            match good {
                true => Ok(Box::pin(stream::iter([Ok(Bytes::from_static(b"x"))]))),
                false => Err(SourceError::transient_read("waits", range, "told to", None)),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_loser_is_cancelled_and_two_failures_are_one() {
        let ms = Duration::from_millis;
        let quick = [(ms(10), true); 100];
        // Who is first and second, after which time, and what comes of it.
        let cases = [
            ("the second wins", [(ms(5000), true), (ms(20), true)], true, 30),
            ("the first wins after all", [(ms(15), true), (ms(9000), true)], true, 15),
            ("the first fails late", [(ms(100), false), (ms(200), true)], true, 210),
            ("the second fails", [(ms(300), true), (ms(20), false)], true, 300),
            ("both fail", [(ms(100), false), (ms(200), false)], false, 210),
        ];
        for (what, last, good, took) in cases {
            let running = Arc::new(std::sync::atomic::AtomicU32::new(0));
            let answers = Mutex::new([&quick[..], &last[..]].concat().into_iter());
            let source = Hedge::new(Waits { answers, running: running.clone() });
            let version = source.stat().await.expect("stat").version;
            for _ in 0..quick.len() {
                drop(source.read(&version, 0..1).await.expect("quick"));
            }
            let began = Instant::now();
            let got = source.read(&version, 0..1).await;
            assert_eq!(got.is_ok(), good, "{what}");
            assert_eq!(source.requests_and_hedges(), (101, 1), "{what}");
            let elapsed = began.elapsed();
            assert!((ms(took)..=ms(took + 5)).contains(&elapsed), "{what}: {elapsed:?}");
            let left = running.load(std::sync::atomic::Ordering::Relaxed);
            assert_eq!(left, 0, "{what}: a request is still under way");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn never_more_than_two_in_a_hundred() {
        // Every fourth is slow: the percentile is slow too, or the cap bites.
        let source = Hedge::new(sometimes_slow(4000, 4));
        let version = source.stat().await.expect("stat").version;
        for _ in 0..1000 {
            read_all(&source, &version).await;
        }
        let (requests, hedges) = source.requests_and_hedges();
        assert!(hedges * 50 <= requests, "{hedges} of {requests}");
    }
}
