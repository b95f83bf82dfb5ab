//! Do several readers share a link without loss?
//!
//! Objects behind one link of 400 MB/s, 90 MB/s per connection, 30 ms to the first byte, all of it
//! simulated by timers. Each of N readers scans its share through a handle of its own, under one
//! pager. What is fetched twice, and what the link stood idle, is what sharing costs.

use std::{
    ops::Range,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::StreamExt;
use pager::{
    BlockSource, ByteStream, Bytes, Hint, ObjectStat, Pager, RegionOptions, SourceError, Version,
    async_trait,
};

const LEN: u64 = 1 << 30;
const CHUNK: u64 = 64 << 10;
const FIRST_BYTE: Duration = Duration::from_millis(30);
const CONNECTION: f64 = 90e6;
const LINK: f64 = 400e6;

/// When the link is free again.
struct Link(Mutex<Instant>);

#[derive(Clone)]
struct Far {
    link: Arc<Link>,
    bytes: Bytes,
}

#[async_trait]
impl BlockSource for Far {
    fn name(&self) -> &str {
        "bench://far"
    }
    async fn stat(&self) -> Result<ObjectStat, SourceError> {
        Ok(ObjectStat::new(LEN, Version::strong("1")))
    }
    async fn read(&self, _: &Version, range: Range<u64>) -> Result<ByteStream, SourceError> {
        tokio::time::sleep(FIRST_BYTE).await;
        let (this, mut ready) = (self.clone(), Instant::now());
        let starts = (range.start..range.end).step_by(CHUNK as usize);
        let chunks = futures::stream::iter(starts).then(move |start| {
            let len = CHUNK.min(range.end - start);
            let took = |rate: f64| Duration::from_secs_f64(len as f64 / rate);
            let sent = {
                let mut free = this.link.0.lock().unwrap();
                *free = (*free).max(Instant::now()) + took(LINK);
                *free
            };
            ready = sent.max(ready + took(CONNECTION));
            let (bytes, wait) = (this.bytes.slice(..len as usize), ready);
            async move {
                // Timers are coarse: a little early now is a little later next time.
                if wait > Instant::now() + Duration::from_millis(2) {
                    tokio::time::sleep_until(wait.into()).await;
                }
                Ok(bytes)
            }
        });
        Ok(chunks.boxed())
    }
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let counts: Vec<u64> = args.iter().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    let counts = if counts.is_empty() { vec![1, 2, 4, 8, 16, 32] } else { counts };
    println!("| unit | hint | readers | MB/s | fetched / read | requests | late | unused |");
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    for (unit, hint) in [(64 << 10, false), (64 << 10, true), (2 << 20, false), (2 << 20, true)] {
        for &count in &counts {
            let link = Arc::new(Link(Mutex::new(Instant::now())));
            let far = Far { link, bytes: Bytes::from(vec![7; CHUNK as usize]) };
            let pager = Pager::builder().budget_bytes(512 << 20).build().expect("userfaultfd");
            let start = Instant::now();
            let share = LEN / count;
            let stats: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..count)
                    .map(|n| {
                        let (pager, far) = (&pager, far.clone());
                        scope.spawn(move || {
                            let options = RegionOptions::default().unit_bytes(unit);
                            let region = pager.open_with(far, options).expect("open");
                            if hint {
                                region.advise(Hint::Sequential).expect("advise");
                            }
                            let mapped = region.map().expect("map");
                            let mine = &mapped[(n * share) as usize..((n + 1) * share) as usize];
                            for page in mine.iter().step_by(4096) {
                                assert_eq!(*page, 7);
                            }
                            region.stats()
                        })
                    })
                    .collect();
                threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
            });
            let time = start.elapsed().as_secs_f64();
            let sum = |of: fn(&pager::RegionStats) -> u64| stats.iter().map(of).sum::<u64>();
            println!(
                "| {} KiB | {} | {count} | {:.0} | {:.3} | {} | {} | {} |",
                unit >> 10,
                if hint { "sequential" } else { "none" },
                LEN as f64 / 1e6 / time,
                sum(|s| s.bytes_fetched) as f64 / LEN as f64,
                sum(|s| s.gets),
                sum(|s| s.faults) - sum(|s| s.marker_faults),
                sum(|s| s.prefetch_unused),
            );
        }
    }
}
