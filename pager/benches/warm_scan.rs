//! What does a region cost over `mmap`, when the bytes are already on this machine?
//!
//! A 512 MiB object is scanned through a fresh mapping each time: the kernel's `mmap` of a cached
//! file, and a region over a source that holds the same bytes in memory, by unit and mechanism. Run
//! in turn, so that a machine whose speed drifts cancels out of the ratios, and each round in another
//! order: whoever touches memory that the host of a virtual machine has not given yet, or has taken
//! back, pays several times the cost, and who comes after takes what that one gave back. For the
//! same reason the bytes are copied into plain new memory as well: with room for all of the object a
//! region cannot cost less than that. Medians.

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
/// Rounds of arithmetic on each word, to see how long they take.
const ROUNDS_TRIED: u32 = 32;
/// Room for all of the object, and for about a seventh of it: 36 units of 2 MiB.
const BUDGETS: [u64; 2] = [1 << 30, 80 << 20];
/// Units in KiB, and how they are put in place.
const UNITS: [(u64, Mechanism); 3] =
    [(64, Mechanism::Copy), (256, Mechanism::Move), (2048, Mechanism::Move)];

struct Memory(Bytes);

#[async_trait]
impl BlockSource for Memory {
    fn name(&self) -> &str {
        "bench://memory"
    }
    async fn stat(&self) -> Result<ObjectStat, SourceError> {
        Ok(ObjectStat::new(self.0.len() as u64, Version::strong("1")))
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

/// Where `n` comes in an order that looks like chance.
fn shuffled(n: u64) -> u64 {
    let word = n.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (word ^ (word >> 31)).wrapping_mul(0xBF58_476D_1CE4_E5B9)
}

/// User and system time of this process.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("procfs");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("a name").split_whitespace().collect();
    let ticks: u64 =
        fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime");
    Duration::from_millis(ticks * 10)
}

/// One way to read the object.
#[derive(Clone, Copy)]
enum Way {
    Mmap,
    /// One copy into memory of this process, without a region.
    Fresh {
        huge: bool,
    },
    Region {
        kib: u64,
        mechanism: Mechanism,
        budget: u64,
        hinted: bool,
    },
}

impl Way {
    fn name(self) -> String {
        match self {
            Way::Mmap => "mmap".to_owned(),
            Way::Fresh { huge: false } => "copied into new memory".to_owned(),
            Way::Fresh { huge: true } => "copied into new memory, huge pages".to_owned(),
            Way::Region { kib, mechanism, budget, hinted } => format!(
                "region, unit {kib} KiB, {mechanism:?}{}{}",
                if budget < LEN as u64 { ", budget 80 MiB" } else { "" },
                if hinted { ", sequential hint" } else { "" }
            ),
        }
    }
}

/// What was read, until its time has been taken.
#[allow(dead_code, reason = "held, so that giving it back is not measured")]
enum Kept {
    Mmap(memmap2::Mmap),
    Fresh(memmap2::MmapMut),
    Region(Mapped),
}

struct Row {
    name: String,
    wall: Vec<f64>,
    cpu: f64,
}

impl Row {
    fn new(name: String) -> Row {
        Row { name, wall: Vec::new(), cpu: 0.0 }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    // `--only TEXT` measures the regions whose names contain it, `--rounds N` in so many rounds.
    let args: Vec<String> = std::env::args().collect();
    let option = |name: &str| args.windows(2).find(|two| two[0] == name).map(|two| &two[1]);
    let rounds = option("--rounds").map_or(ROUNDS, |n| n.parse().expect("a number of rounds"));
    let mut ways = vec![Way::Mmap, Way::Fresh { huge: false }, Way::Fresh { huge: true }];
    for (kib, mechanism) in UNITS {
        for budget in BUDGETS {
            for hinted in [false, true] {
                let way = Way::Region { kib, mechanism, budget, hinted };
                if option("--only").is_none_or(|only| way.name().contains(only.as_str())) {
                    ways.push(way);
                }
            }
        }
    }
    // Filled with words that compress to nothing special; the sum is checked.
    let bytes: Vec<u8> = (0..LEN as u64 / 8)
        .flat_map(|n| n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes())
        .collect();
    let mut file = tempfile::tempfile().expect("a file for mmap");
    file.write_all(&bytes).expect("room for 512 MiB");
    let plain = sum(&bytes, 0);
    let bytes = Bytes::from(bytes);

    let per_byte = |bytes: &[u8], work| {
        let start = Instant::now();
        std::hint::black_box(sum(bytes, work));
        start.elapsed().as_secs_f64() * 1e9 / bytes.len() as f64
    };
    // So many rounds of arithmetic as take 2 ns on this machine, by the median of some short runs.
    let tried = (0..9).map(|_| per_byte(&bytes[..16 << 20], ROUNDS_TRIED)).collect();
    let two_ns = (f64::from(ROUNDS_TRIED) * 2.0 / median(tried)).round().max(1.0) as u32;
    for (title, work) in [("bare sum of u64", 0u32), ("about 2 ns of work per byte", two_ns)] {
        let expected = if work == 0 { plain } else { sum(&bytes, work) };
        let per_byte = per_byte(&bytes, work);
        let mut rows: Vec<Row> = ways.iter().map(|way| Row::new(way.name())).collect();
        let mut baseline = String::new();
        for round in 0..rounds {
            let mut order: Vec<usize> = (0..ways.len()).collect();
            order.sort_by_key(|&at| shuffled((round * ways.len() + at) as u64));
            for at in order {
                let (before, start) = (cpu(), Instant::now());
                let kept = match ways[at] {
                    Way::Mmap => {
                        // SAFETY: the file is this program's own, unlinked, and not written any more.
                        let mapped = unsafe { memmap2::Mmap::map(&file) }.expect("mmap");
                        assert_eq!(sum(&mapped, work), expected);
                        Kept::Mmap(mapped)
                    }
                    Way::Fresh { huge } => {
                        let mut memory = memmap2::MmapMut::map_anon(LEN).expect("memory");
                        if huge {
                            memory.advise(memmap2::Advice::HugePage).expect("huge pages");
                        }
                        memory.copy_from_slice(&bytes);
                        assert_eq!(sum(&memory, work), expected);
                        Kept::Fresh(memory)
                    }
                    Way::Region { kib, mechanism, budget, hinted } => {
                        let builder = Pager::builder().budget_bytes(budget).mechanism(mechanism);
                        let pager = builder.build().expect("this needs userfaultfd with MOVE");
                        let options = RegionOptions::default().unit_bytes(kib << 10);
                        let region = pager.open_with(Memory(bytes.clone()), options).expect("open");
                        if hinted {
                            region.advise(Hint::Sequential).expect("advise");
                        }
                        let mapped = region.map().expect("map");
                        assert_eq!(sum(&mapped, work), expected);
                        Kept::Region(mapped)
                    }
                };
                rows[at].wall.push(start.elapsed().as_secs_f64());
                rows[at].cpu += (cpu() - before).as_secs_f64() / rounds as f64;
                if matches!(kept, Kept::Mmap(_)) {
                    baseline = folios();
                }
            }
        }
        println!("\n#### {title} (measured: {per_byte:.2} ns per byte), {rounds} rounds in turn\n");
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
