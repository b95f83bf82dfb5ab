//! The object store that both stand on: one in memory, and what a bucket's latencies add to it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use s3db::cloud::{Delete, ETag, Fault, Get, Listing, Objects, Put, PutIf, embedded::Memory};

/// What an object store takes for a call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Latency {
    /// A get of no bytes, a list, a delete.
    get_us: f64,
    /// More for each byte.
    byte_us: f64,
    /// A put takes as many times what a get does.
    put_factor: f64,
    /// Up to this share more or less.
    jitter: f64,
}

impl Latency {
    /// Memory as it is.
    pub(crate) const MEMORY: Latency =
        Latency { get_us: 0.0, byte_us: 0.0, put_factor: 1.0, jitter: 0.0 };
    /// S3 Standard from the same region: those by which `s3db bench paper` measures today's costs.
    pub(crate) const S3: Latency =
        Latency { get_us: 20_000.0, byte_us: 0.011, put_factor: 1.6, jitter: 0.3 };
}

/// Calls that were made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Calls {
    /// Gets, and what else is priced as they are.
    pub(crate) gets: u64,
    /// Puts and lists, which are priced alike.
    pub(crate) puts: u64,
}

impl std::ops::Sub for Calls {
    type Output = Calls;

    fn sub(self, before: Calls) -> Calls {
        Calls { gets: self.gets - before.gets, puts: self.puts - before.puts }
    }
}

/// Objects in memory, behind a latency. Calls are counted.
pub(crate) struct Store {
    pub(crate) objects: Memory,
    latency: Latency,
    /// Whether calls take what they take. They need not where nothing is measured.
    is_slow: AtomicBool,
    random: AtomicU64,
    gets: AtomicU64,
    puts: AtomicU64,
}

impl Store {
    pub(crate) fn new(latency: Latency) -> Arc<Store> {
        let [random, gets, puts] = [1, 0, 0].map(AtomicU64::new);
        let is_slow = AtomicBool::new(true);
        Arc::new(Store { objects: Memory::new(), latency, is_slow, random, gets, puts })
    }

    /// Whether calls take their time from now on.
    pub(crate) fn be_slow(&self, is_slow: bool) {
        self.is_slow.store(is_slow, Ordering::Relaxed);
    }

    pub(crate) fn calls(&self) -> Calls {
        let [gets, puts] = [&self.gets, &self.puts].map(|count| count.load(Ordering::Relaxed));
        Calls { gets, puts }
    }

    /// Waits as a get does that returns so many bytes, or a delete.
    pub(crate) async fn get_of(&self, bytes: usize) {
        self.gets.fetch_add(1, Ordering::Relaxed);
        self.wait(1.0, bytes).await;
    }

    /// Waits as a put of so many bytes does.
    pub(crate) async fn put_of(&self, bytes: usize) {
        self.puts.fetch_add(1, Ordering::Relaxed);
        self.wait(self.latency.put_factor, bytes).await;
    }

    /// Waits as a list does.
    pub(crate) async fn list_of(&self) {
        self.puts.fetch_add(1, Ordering::Relaxed);
        self.wait(1.0, 0).await;
    }

    async fn wait(&self, factor: f64, bytes: usize) {
        let Latency { get_us, byte_us, jitter, .. } = self.latency;
        let us = (get_us + byte_us * bytes as f64) * factor * (1.0 + jitter * self.swing());
        if us > 0.0 && self.is_slow.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_secs_f64(us / 1e6)).await;
        }
    }

    /// Between -1 and 1: splitmix64 (Steele, Lea and Flood, 2014).
    fn swing(&self) -> f64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let state = self.random.fetch_add(STEP, Ordering::Relaxed);
        let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ mixed >> 31) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }
}

/// As extmem-s3db has it: the latency of a get passes before its answer, that of a put before it
/// happens.
#[async_trait]
impl Objects for Store {
    async fn get(&self, name: &str, unless: Option<&ETag>) -> Result<Get, Fault> {
        let answer = self.objects.get(name, unless).await?;
        self.get_of(if let Get::Found { bytes, .. } = &answer { bytes.len() } else { 0 }).await;
        Ok(answer)
    }

    async fn put(&self, name: &str, bytes: Bytes, condition: PutIf) -> Put {
        self.put_of(bytes.len()).await;
        self.objects.put(name, bytes, condition).await
    }

    async fn delete(&self, name: &str, only: Option<&ETag>) -> Delete {
        self.get_of(0).await;
        self.objects.delete(name, only).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> Result<Listing, Fault> {
        self.list_of().await;
        self.objects.list(prefix, after, max).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn calls_take_their_time_and_are_counted() {
        let store = Store::new(Latency::S3);
        let began = std::time::Instant::now();
        let put = Objects::put(&*store, "a", Bytes::from_static(b"x"), PutIf::Absent).await;
        assert!(matches!(put, Put::Stored(_)), "{put:?}");
        // 32 ms, 30 % less at least.
        assert!(began.elapsed() >= Duration::from_micros(22_400));
        assert!(matches!(Objects::get(&*store, "a", None).await, Ok(Get::Found { .. })));
        assert!(matches!(Objects::get(&*store, "b", None).await, Ok(Get::Absent)));
        assert_eq!(store.calls(), Calls { gets: 2, puts: 1 });
        for _ in 0..1000 {
            assert!((-1.0..=1.0).contains(&store.swing()));
        }
    }
}
