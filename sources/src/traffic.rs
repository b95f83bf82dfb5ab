//! What a set of objects has cost so far: requests, bytes, failures.

use std::{
    ops::Range,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;
use pager::{BlockSource, ByteStream, Frame, ObjectStat, ReadAtOnce, SourceError, Version};
use tokio::time::Instant;

use crate::{counters, price::Prices};

/// Counts what goes through the sources that were given it. Clones share the count.
#[derive(Clone, Debug, Default)]
pub struct Traffic {
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    stats: AtomicU64,
    gets: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
    throttles: AtomicU64,
}

/// The count at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrafficCount {
    /// Requests for length and version.
    pub stats: u64,
    /// Requests for ranges: for S3 and HTTP, GETs.
    pub gets: u64,
    /// Bytes of bodies that arrived.
    pub bytes: u64,
    /// Requests and bodies that failed, throttled ones included.
    pub errors: u64,
    /// Requests that were answered with a demand for fewer.
    pub throttles: u64,
}

impl TrafficCount {
    /// All requests.
    pub fn requests(&self) -> u64 {
        self.stats + self.gets
    }

    /// What that costs at these prices, in US dollars.
    pub fn cost_usd(&self, prices: &Prices) -> f64 {
        prices.cost_usd(self.requests(), self.bytes)
    }
}

impl Traffic {
    /// The count so far.
    pub fn count(&self) -> TrafficCount {
        let Counts { stats, gets, bytes, errors, throttles } = &*self.counts;
        TrafficCount {
            stats: stats.load(Relaxed),
            gets: gets.load(Relaxed),
            bytes: bytes.load(Relaxed),
            errors: errors.load(Relaxed),
            throttles: throttles.load(Relaxed),
        }
    }

    fn failed(&self, op: &'static str, error: &SourceError) {
        self.counts.errors.fetch_add(1, Relaxed);
        counters::failed(op, error.kind());
        if let SourceError::Throttled { .. } = error {
            self.counts.throttles.fetch_add(1, Relaxed);
            counters::throttled();
        }
    }

    fn delivered(&self, bytes: u64) {
        self.counts.bytes.fetch_add(bytes, Relaxed);
        counters::delivered(bytes);
    }
}

/// A source whose requests are counted. Put it directly around a leaf, inside the wrappers that
/// make further requests.
pub struct Counted<S> {
    source: S,
    traffic: Traffic,
}

impl<S: BlockSource> Counted<S> {
    /// Counts what goes through `source` in `traffic`.
    pub fn new(source: S, traffic: Traffic) -> Counted<S> {
        Counted { source, traffic }
    }

    fn starts(&self) {
        self.traffic.counts.gets.fetch_add(1, Relaxed);
        counters::requested("read");
    }
}

/// A body whose bytes are counted when it ends or is dropped.
struct CountedBody {
    inner: ByteStream,
    traffic: Traffic,
    asked_at: Instant,
    bytes: u64,
}

impl Stream for CountedBody {
    type Item = Result<Bytes, SourceError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let item = self.inner.as_mut().poll_next(context);
        match &item {
            Poll::Ready(Some(Ok(chunk))) => {
                if self.bytes == 0 {
                    counters::first_byte(self.asked_at.elapsed());
                }
                self.bytes += chunk.len() as u64;
            }
            Poll::Ready(Some(Err(error))) => self.traffic.failed("read", error),
            Poll::Ready(None) | Poll::Pending => {}
        }
        item
    }
}

impl Drop for CountedBody {
    fn drop(&mut self) {
        self.traffic.delivered(self.bytes);
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl<S: BlockSource> BlockSource for Counted<S> {
    fn name(&self) -> &str {
        self.source.name()
    }

    async fn stat(&self) -> Result<ObjectStat, SourceError> {
        self.traffic.counts.stats.fetch_add(1, Relaxed);
        counters::requested("stat");
        let answer = self.source.stat().await;
        answer.inspect_err(|error| self.traffic.failed("stat", error))
    }

    async fn read(&self, version: &Version, range: Range<u64>) -> Result<ByteStream, SourceError> {
        self.starts();
        let asked_at = Instant::now();
        let answer = self.source.read(version, range).await;
        let inner = answer.inspect_err(|error| self.traffic.failed("read", error))?;
        Ok(Box::pin(CountedBody { inner, traffic: self.traffic.clone(), asked_at, bytes: 0 }))
    }

    async fn read_into(
        &self,
        version: &Version,
        range: Range<u64>,
        frame: Frame,
    ) -> Result<Frame, SourceError> {
        self.starts();
        let before = frame.filled().len();
        let answer = self.source.read_into(version, range, frame).await;
        let full = answer.inspect_err(|error| self.traffic.failed("read", error))?;
        self.traffic.delivered(full.filled().len().saturating_sub(before) as u64);
        Ok(full)
    }

    fn fills_frames(&self) -> bool {
        self.source.fills_frames()
    }

    fn at_once(&self) -> Option<&dyn ReadAtOnce> {
        // What is read past the counts would cost nothing.
        None
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;
    use crate::{memory::Memory, price};

    #[tokio::test]
    async fn requests_and_bytes_are_counted_once() {
        let traffic = Traffic::default();
        let source = Counted::new(Memory::new("x", vec![0u8; 1 << 20]), traffic.clone());
        let version = source.stat().await.expect("stat").version;
        let mut whole = source.read(&version, 0..1 << 20).await.expect("read");
        while whole.next().await.is_some() {}
        let mut half = source.read(&version, 0..1 << 20).await.expect("read");
        let first = half.next().await.expect("a chunk").expect("bytes").len() as u64;
        drop((whole, half));
        let frame = Frame::with_capacity(4096);
        source.read_into(&version, 0..10, frame).await.expect("read");
        assert!(source.read(&version, 5..5).await.is_err());
        let count = traffic.count();
        let bytes = (1 << 20) + first + 10;
        assert_eq!(count, TrafficCount { stats: 1, gets: 4, bytes, errors: 1, throttles: 0 });
        let cost = count.cost_usd(&price::S3_STANDARD);
        assert!((cost - 5.0 * 0.0004 / 1000.0).abs() < 1e-12, "{cost}");
    }
}
