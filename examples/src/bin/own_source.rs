//! A source of one's own, in fourteen lines, that gets retry, cache, prefetch and metrics.
//!
//! The object here is a book of a billion squares that nobody has written down: each read computes
//! its bytes. Every fourth read fails, as networks do. Around it stand the wrappers of `sources`,
//! and on top a region of the pager.

#![forbid(unsafe_code)]

use std::{
    error::Error,
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

use futures::stream;
use pager::{
    BlockSource, ByteStream, Bytes, Hint, ObjectStat, Pager, SourceError, Version, async_trait,
};
use sources::{Counted, Retry, Traffic};

/// Number `n` of the book, a little-endian u64, is `n * n`.
const NUMBERS: u64 = 1_000_000_000;

/// Counts its reads.
#[derive(Default)]
struct Squares(AtomicU64);

#[async_trait]
impl BlockSource for Squares {
    fn name(&self) -> &str {
        "squares"
    }
    async fn stat(&self) -> Result<ObjectStat, SourceError> {
        Ok(ObjectStat::new(NUMBERS * 8, Version::strong("1")).with_part_bytes(1 << 20))
    }
    async fn read(&self, _: &Version, range: Range<u64>) -> Result<ByteStream, SourceError> {
        self.fail_sometimes(&range)?;
        let bytes = range.map(|at| (at / 8).pow(2).to_le_bytes()[(at % 8) as usize]);
        Ok(Box::pin(stream::iter([Ok(bytes.collect::<Bytes>())])))
    }
}

impl Squares {
    fn fail_sometimes(&self, range: &Range<u64>) -> Result<(), SourceError> {
        if self.0.fetch_add(1, Ordering::Relaxed) % 4 < 3 {
            return Ok(());
        }
        Err(SourceError::transient_read(self.name(), range.clone(), "every fourth fails", None))
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let traffic = Traffic::default();
    let source = Retry::new(Counted::new(Squares::default(), traffic.clone()));
    let pager = Pager::builder().budget_bytes(16 << 20).build()?;
    let region = pager.open(source)?;
    let number = |n: u64| -> Result<u64, pager::Error> {
        let bytes = region.load(n * 8..n * 8 + 8)?;
        Ok(u64::from_le_bytes(bytes[..].try_into().expect("eight bytes were loaded")))
    };

    println!("{} bytes opened; a few of its numbers:", region.len());
    for n in [3, 12_345, 987_654_321, 12_345] {
        println!("  {n} squared is {}", number(n)?);
        assert_eq!(number(n)?, n * n);
    }
    region.advise(Hint::Sequential)?;
    let sum: u64 = (0..500_000).map(number).sum::<Result<_, _>>()?;
    println!("  the first half million add up to {sum}");
    assert_eq!(sum, (0..500_000u64).map(|n| n * n).sum::<u64>());

    let (count, stats) = (traffic.count(), region.stats());
    println!("Retry:    {} of {} reads failed and were tried again", count.errors, count.gets);
    println!("Cache:    {} of {} loads found their bytes", stats.load_hits, stats.loads);
    println!("Prefetch: {} units came before they were asked for", stats.prefetched);
    println!(
        "Metrics:  {} bytes fetched, {} units given up",
        stats.bytes_fetched, stats.units_evicted
    );
    assert!(count.errors > 0 && stats.load_hits > 0 && stats.prefetched > 0);
    Ok(())
}
