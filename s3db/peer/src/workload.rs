//! What is measured: the same for whoever it is.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    Peer,
    model::{Calls, Latency, Store},
};

/// Bytes of each value.
pub(crate) const PAYLOAD_BYTES: usize = 100;
/// Puts that are under way at the same time.
pub(crate) const AT_ONCE: u32 = 8;
/// Records that are read with nothing in memory, each far from the next.
const COLD: u32 = 16;
/// Records that are read again and again.
const WARM: u32 = 1024;
/// Records between two that follow one another, so that they look as if by chance. A prime.
const FAR: u64 = 7919;

/// The key of a record: 8 bytes of text.
pub(crate) fn key(number: u32) -> String {
    format!("{number:08}")
}

/// Puts after which a window is over before its time: what they leave is brought to pages and tables.
pub(crate) const PUTS_MAX: usize = 2000;

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) records: u32,
    pub(crate) window: Duration,
    /// Puts in the log of a process that is killed.
    pub(crate) left: u32,
}

/// Samples of one operation, and the calls that all of them made.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples {
    pub(crate) values: Vec<f64>,
    pub(crate) calls: Calls,
    /// Operations that made them.
    pub(crate) operations: u64,
}

impl Samples {
    fn of(values: Vec<f64>, operations: u64, store: &Store, before: Calls) -> Samples {
        Samples { values, operations, calls: store.calls() - before }
    }

    pub(crate) fn add(&mut self, more: Samples) {
        self.values.extend(more.values);
        self.calls.gets += more.calls.gets;
        self.calls.puts += more.calls.puts;
        self.operations += more.operations;
    }

    /// The value that a share `q` of all is not above; `None` if nothing was measured.
    pub(crate) fn quantile(&self, q: f64) -> Option<f64> {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().checked_sub(1)?;
        sorted.get((last as f64 * q).ceil() as usize).copied()
    }
}

/// One round of everything.
#[derive(Clone, Debug, Default)]
pub(crate) struct Round {
    /// Milliseconds.
    pub(crate) open: Samples,
    pub(crate) first_get: Samples,
    pub(crate) cold_get: Samples,
    /// Records per second.
    pub(crate) scan: Samples,
    /// Microseconds.
    pub(crate) warm_get: Samples,
    /// Milliseconds.
    pub(crate) put: Samples,
    pub(crate) put_near: Samples,
    /// Per second.
    pub(crate) together: Samples,
    pub(crate) apart: Samples,
    /// Milliseconds.
    pub(crate) recovery: Samples,
}

impl Round {
    pub(crate) fn all(&self) -> [(&'static str, &Samples); 10] {
        [
            ("put, one after the other, ms", &self.put),
            ("put, beside the one before, ms", &self.put_near),
            ("puts per second, 8 at once in one process", &self.together),
            ("puts per second, 8 processes with one each", &self.apart),
            ("get, warm, us", &self.warm_get),
            ("open, ms", &self.open),
            ("the first get after it, ms", &self.first_get),
            ("get, cold, ms", &self.cold_get),
            ("records per second, scan of all, cold", &self.scan),
            ("recovery after a kill, ms", &self.recovery),
        ]
    }

    pub(crate) fn add(&mut self, more: Round) {
        self.open.add(more.open);
        self.first_get.add(more.first_get);
        self.cold_get.add(more.cold_get);
        self.scan.add(more.scan);
        self.warm_get.add(more.warm_get);
        self.put.add(more.put);
        self.put_near.add(more.put_near);
        self.together.add(more.together);
        self.apart.add(more.apart);
        self.recovery.add(more.recovery);
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, String> {
    let built = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    built.map_err(|error| format!("no runtime: {error}"))
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// A store with all records in it. Nothing of it is measured.
pub(crate) fn filled<P: Peer>(latency: Latency, size: Size) -> Result<Arc<Store>, String> {
    let store = Store::new(latency);
    store.be_slow(false);
    runtime()?.block_on(async {
        let peer = P::open(&store).await?;
        peer.fill(size.records).await?;
        peer.close().await
    })?;
    store.be_slow(true);
    Ok(store)
}

/// A round. Whether `several` processes can put at the same time is theirs to say.
pub(crate) fn round<P: Peer>(
    store: &Arc<Store>,
    latency: Latency,
    size: Size,
    several: bool,
) -> Result<Round, String> {
    let mut round = Round::default();
    runtime()?.block_on(reads::<P>(store, size, &mut round))?;
    runtime()?.block_on(puts::<P>(store, size, several, &mut round))?;
    round.recovery = recovery::<P>(latency, size)?;
    Ok(round)
}

async fn reads<P: Peer>(store: &Arc<Store>, size: Size, round: &mut Round) -> Result<(), String> {
    let (before, began) = (store.calls(), Instant::now());
    let peer = P::open(store).await?;
    round.open = Samples::of(vec![ms(began)], 1, store, before);
    // In the middle of each of as many stretches.
    let stretch = size.records / (COLD + 1);
    let far = |n: u32| n * stretch + stretch / 2;
    let (before, began) = (store.calls(), Instant::now());
    found(&peer, far(COLD)).await?;
    round.first_get = Samples::of(vec![ms(began)], 1, store, before);
    let (before, mut times) = (store.calls(), Vec::new());
    for n in 0..COLD {
        let began = Instant::now();
        found(&peer, far(n)).await?;
        times.push(ms(began));
    }
    round.cold_get = Samples::of(times, u64::from(COLD), store, before);
    // Once, that all of it is in memory.
    let warm: Vec<u32> =
        (0..WARM).map(|n| (u64::from(n) * FAR % u64::from(size.records)) as u32).collect();
    for n in &warm {
        found(&peer, *n).await?;
    }
    let (before, mut times, began) = (store.calls(), Vec::new(), Instant::now());
    while times.is_empty() || began.elapsed() < size.window {
        for n in &warm {
            let began = Instant::now();
            found(&peer, *n).await?;
            times.push(began.elapsed().as_secs_f64() * 1e6);
        }
    }
    let count = times.len() as u64;
    round.warm_get = Samples::of(times, count, store, before);
    close(peer, store).await?;

    let peer = P::open(store).await?;
    let (before, began) = (store.calls(), Instant::now());
    let count = peer.scan().await?;
    let per_s = f64::from(count) / began.elapsed().as_secs_f64();
    if count != size.records {
        return Err(format!("a scan found {count} records of {}", size.records));
    }
    round.scan = Samples::of(vec![per_s], 1, store, before);
    close(peer, store).await
}

async fn found<P: Peer>(peer: &P, number: u32) -> Result<(), String> {
    match peer.get(number).await? {
        true => Ok(()),
        false => Err(format!("record {number} is not there")),
    }
}

async fn puts<P: Peer>(
    store: &Arc<Store>,
    size: Size,
    several: bool,
    round: &mut Round,
) -> Result<(), String> {
    let peer = P::open(store).await?;
    // One, for what the first one does once.
    peer.put(0).await?;
    for (step, samples) in [(1, &mut round.put_near), (FAR, &mut round.put)] {
        let before = store.calls();
        let times = puts_by(&peer, 0, step, size).await?;
        let count = times.len() as u64;
        *samples = Samples::of(times, count, store, before);
    }

    let (before, began) = (store.calls(), Instant::now());
    let all = (0..AT_ONCE).map(|n| puts_by(&peer, n, FAR, size));
    let all = futures::future::try_join_all(all).await?;
    round.together = rate(&all, began, store, before);
    close(peer, store).await?;

    if several {
        let mut peers = Vec::new();
        for _ in 0..AT_ONCE {
            let peer = P::open(store).await?;
            peer.put(0).await?;
            peers.push(peer);
        }
        let (before, began) = (store.calls(), Instant::now());
        let all = peers.iter().zip(0..).map(|(peer, n)| puts_by(peer, n, FAR, size));
        let all = futures::future::try_join_all(all).await?;
        round.apart = rate(&all, began, store, before);
        for peer in peers {
            close(peer, store).await?;
        }
    }
    Ok(())
}

/// What is left to be done at the end is not measured, and need not take long.
async fn close<P: Peer>(peer: P, store: &Store) -> Result<(), String> {
    store.be_slow(false);
    let closed = peer.close().await;
    store.be_slow(true);
    closed
}

/// Puts one after the other, `step` records apart: milliseconds of each.
async fn puts_by<P: Peer>(peer: &P, who: u32, step: u64, size: Size) -> Result<Vec<f64>, String> {
    let (began, mut times) = (Instant::now(), Vec::new());
    while times.is_empty() || (times.len() < PUTS_MAX && began.elapsed() < size.window) {
        let number =
            (times.len() as u64 * step + u64::from(who) * 104_729) % u64::from(size.records);
        let began = Instant::now();
        peer.put(number as u32).await?;
        times.push(ms(began));
    }
    Ok(times)
}

fn rate(all: &[Vec<f64>], began: Instant, store: &Store, before: Calls) -> Samples {
    let count: usize = all.iter().map(Vec::len).sum();
    let per_s = count as f64 / began.elapsed().as_secs_f64();
    Samples::of(vec![per_s], count as u64, store, before)
}

/// A process puts, one after the other, and is gone; the next one opens, and reads what was last put.
fn recovery<P: Peer>(latency: Latency, size: Size) -> Result<Samples, String> {
    let store = Store::new(latency);
    store.be_slow(false);
    let first = runtime()?;
    let peer = first.block_on(async {
        let peer = P::open(&store).await?;
        for number in 0..size.left {
            peer.put(number).await?;
        }
        Ok::<P, String>(peer)
    })?;
    // Its tasks go where they stand, and nothing closes it: as when a process is killed.
    first.shutdown_background();
    std::mem::forget(peer);
    store.be_slow(true);
    let before = store.calls();
    runtime()?.block_on(async {
        let began = Instant::now();
        let peer = P::recover(&store).await?;
        found(&peer, size.left - 1).await?;
        let samples = Samples::of(vec![ms(began)], 1, &store, before);
        for number in 0..size.left {
            found(&peer, number).await?;
        }
        close(peer, &store).await?;
        Ok(samples)
    })
}
