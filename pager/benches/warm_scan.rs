//! What does a region cost over `mmap`, when the bytes are already on this machine?
//!
//! A 512 MiB object is scanned through a fresh mapping each time: the kernel's `mmap` of a cached
//! file, and a region over a source that holds the same bytes in memory, by unit and mechanism. Run
//! in turn, so that a machine whose speed drifts cancels out of the ratios; medians.

use std::{
    io::Write,
    ops::Range,
    time::{Duration, Instant},
};

use futures::StreamExt;
use pager::{
    BlockSource, ByteStream, Bytes, Frame, Hint, Mapped, Mechanism, ObjectStat, Pager,
    RegionOptions, SourceError, Version, async_trait,
};

const LEN: usize = 512 << 20;
const ROUNDS: usize = 11;

struct Memory(Bytes);

#[async_trait]
impl BlockSource for Memory {
    fn name(&self) -> &str {
        "bench://memory"
    }
    async fn stat(&self) -> Result<ObjectStat, SourceError> {
        Ok(ObjectStat {
            len: self.0.len() as u64,
            version: Version::strong("1"),
            alignment: 1,
            part_bytes: 8 << 20,
        })
    }
    async fn read(&self, _: &Version, range: Range<u64>) -> Result<ByteStream, SourceError> {
        let bytes = self.0.slice(range.start as usize..range.end as usize);
        Ok(futures::stream::once(async { Ok(bytes) }).boxed())
    }
    async fn read_into(
        &self,
        _: &Version,
        range: Range<u64>,
        mut frame: Frame,
    ) -> Result<Frame, SourceError> {
        frame.put(&self.0[range.start as usize..range.end as usize]);
        Ok(frame)
    }
    fn fills_frames(&self) -> bool {
        true
    }
}

/// The sum of all words, and `work` rounds of arithmetic on each.
fn sum(bytes: &[u8], work: u32) -> u64 {
    let (words, tail) = bytes.as_chunks::<8>();
    assert!(tail.is_empty(), "whole words");
    let mut total = 0u64;
    for word in words {
        let mut word = u64::from_le_bytes(*word);
        for _ in 0..work {
            word = (word ^ (word >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        }
        total = total.wrapping_add(word);
    }
    total
}

/// User and system time of this process.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("procfs");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("a name").split_whitespace().collect();
    let ticks: u64 =
        fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime");
    Duration::from_millis(ticks * 10)
}

struct Row {
    name: String,
    wall: Vec<f64>,
    cpu: f64,
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    // `--only TEXT` measures the regions whose names contain it.
    let args: Vec<String> = std::env::args().collect();
    let only = args.iter().position(|arg| arg == "--only").and_then(|at| args.get(at + 1));
    // Filled with words that compress to nothing special; the sum is checked.
    let bytes: Vec<u8> = (0..LEN as u64 / 8)
        .flat_map(|n| n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes())
        .collect();
    let mut file = tempfile::tempfile().expect("a file for mmap");
    file.write_all(&bytes).expect("room for 512 MiB");
    let plain = sum(&bytes, 0);
    let bytes = Bytes::from(bytes);

    for (title, work) in [("bare sum of u64", 0u32), ("about 2 ns of work per byte", 45)] {
        let expected = if work == 0 { plain } else { sum(&bytes, work) };
        let per_byte = {
            let start = Instant::now();
            std::hint::black_box(sum(&bytes, work));
            start.elapsed().as_secs_f64() * 1e9 / LEN as f64
        };
        let mut rows: Vec<Row> = Vec::new();
        let mut baseline = String::new();
        for round in 0..ROUNDS {
            let mut n = 0;
            let mut record = |name: String, wall: Duration, spent: Duration| {
                if rows.len() == n {
                    rows.push(Row { name, wall: Vec::new(), cpu: 0.0 });
                }
                rows[n].wall.push(wall.as_secs_f64());
                rows[n].cpu += spent.as_secs_f64() / ROUNDS as f64;
                n += 1;
            };
            let (before, start) = (cpu(), Instant::now());
            // SAFETY: the file is this program's own, unlinked, and not written any more.
            let mapped = unsafe { memmap2::Mmap::map(&file) }.expect("mmap");
            assert_eq!(sum(&mapped, work), expected);
            record("mmap".into(), start.elapsed(), cpu() - before);
            if round == 0 {
                baseline = folios();
            }
            drop(mapped);
            for (unit, mechanism) in [
                (64 << 10, Mechanism::Copy),
                (256 << 10, Mechanism::Move),
                (2 << 20, Mechanism::Move),
            ] {
                for hinted in [false, true] {
                    let name = format!(
                        "region, unit {} KiB, {mechanism:?}{}",
                        unit >> 10,
                        if hinted { ", sequential hint" } else { "" }
                    );
                    if only.is_some_and(|only| !name.contains(only.as_str())) {
                        continue;
                    }
                    let pager = Pager::builder()
                        .budget_bytes(1 << 30)
                        .mechanism(mechanism)
                        .build()
                        .expect("this benchmark needs userfaultfd with MOVE");
                    let (before, start) = (cpu(), Instant::now());
                    let options = RegionOptions::default().unit_bytes(unit);
                    let region = pager.open_with(Memory(bytes.clone()), options).expect("open");
                    if hinted {
                        region.advise(Hint::Sequential).expect("advise");
                    }
                    let mapped: Mapped = region.map().expect("map");
                    assert_eq!(sum(&mapped, work), expected);
                    record(name, start.elapsed(), cpu() - before);
                }
            }
        }
        println!("\n#### {title} (measured: {per_byte:.2} ns per byte), {ROUNDS} rounds in turn\n");
        println!("Baseline: {baseline}\n");
        println!("| scan of 512 MiB | wall, median | / mmap, median of pairs | CPU / mmap |");
        println!("| --- | --- | --- | --- |");
        for row in &rows {
            let ratios = row.wall.iter().zip(&rows[0].wall).map(|(a, b)| a / b).collect();
            println!(
                "| {} | {:.3} s | {:.2} | {:.2} |",
                row.name,
                median(row.wall.clone()),
                median(ratios),
                row.cpu / rows[0].cpu.max(0.001)
            );
        }
    }
}

/// Whether the kernel maps the file by huge pages.
fn folios() -> String {
    let smaps = std::fs::read_to_string("/proc/self/smaps").expect("procfs");
    let kib: u64 = smaps
        .lines()
        .filter_map(|line| line.strip_prefix("FilePmdMapped:"))
        .filter_map(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .sum();
    if kib > LEN as u64 >> 11 {
        format!("the file's cache has large folios ({kib} KiB mapped by 2 MiB entries)")
    } else {
        format!("the file's cache has small folios ({kib} KiB mapped by 2 MiB entries)")
    }
}
