//! What does a region cost over `mmap`, when the bytes are already on this machine?
//!
//! A 512 MiB object is scanned through a fresh mapping each time: the kernel's `mmap` of a cached
//! file, and a region over a source that holds the same bytes in memory, by unit and mechanism (`Remap` hears of faults by SIGSEGV). Run
//! in turn, so that a machine whose speed drifts cancels out of the ratios, and each round in another
//! order: whoever touches memory that the host of a virtual machine has not given yet, or has taken
//! back, pays several times the cost, and who comes after takes what that one gave back. For the
//! same reason the bytes are copied into plain new memory as well: with room for all of the object a
//! region cannot cost less than that. Medians.

mod shared;

use std::{io::Write, time::Instant};

use pager::{Bytes, Hint, Mapped, Mechanism, ModeRequest, Pager, RegionOptions};
use shared::{Folios, Memory, cpu, median, ns_per_byte, shuffled, sum, words, work_of};

const LEN: usize = 512 << 20;
const ROUNDS: usize = 11;
/// Room for all of the object, and for about a seventh of it: 36 units of 2 MiB.
const BUDGETS: [u64; 2] = [1 << 30, 80 << 20];
/// Units in KiB, and how they are put in place.
const UNITS: [(u64, Mechanism); 5] = [
    (64, Mechanism::Copy),
    (256, Mechanism::Move),
    (2048, Mechanism::Move),
    (64, Mechanism::Remap),
    (2048, Mechanism::Remap),
];

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
    let bytes = words(LEN);
    let mut file = tempfile::tempfile().expect("a file for mmap");
    file.write_all(&bytes).expect("room for 512 MiB");
    let plain = sum(&bytes, 0);
    let bytes = Bytes::from(bytes);

    let two_ns = work_of(2.0, &bytes);
    for (title, work) in [("bare sum of u64", 0u32), ("about 2 ns of work per byte", two_ns)] {
        let expected = if work == 0 { plain } else { sum(&bytes, work) };
        let per_byte = ns_per_byte(&bytes, work);
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
                        let builder = match mechanism {
                            Mechanism::Remap => builder.mode(ModeRequest::Signals),
                            _ => builder,
                        };
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
                if let Kept::Mmap(mapped) = &kept {
                    baseline = format!("the file's cache has {}", Folios::of(mapped));
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
