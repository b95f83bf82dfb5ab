//! What the pager makes of a file, beside `mmap` and beside others: from memory, from disk, with less memory
//! than the file has bytes, and from far away. What needs no file the pager measures itself.

mod far; // an S3 far away, beside eight connections
mod peer; // a program that is not ours, told a line at a time
mod peers; // LLNL UMap and FUSE

use std::{
    env,
    fs::{self, File},
    io::Write,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use clap::ValueEnum;
use examples::{
    measure::{self, Cost, cpu, ms, ratio, wall},
    report::{Aim, Goal, Section},
};
use memmap2::{Advice, Mmap};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use pager::{Hint, Pager, RegionOptions};
use sources::Local;

use crate::{Setup, children};

/// The file. A region with a quarter of it as memory still has room for the fewest units of 2 MiB.
const LEN: u64 = 512 << 20;
/// What a region may hold of it where nothing is short.
const BUDGET: u64 = 128 << 20;
/// What it may hold under a limit of a quarter: the rest of that is the program's, and the kernel's.
const BUDGET_LIMITED: u64 = 80 << 20;
const PAGE: u64 = 4096;
/// Random reads of a run.
const READS: u64 = 2_000;
/// A command that runs another one with so many bytes of memory as stand for `{}` in it.
const LIMIT: &str = "BENCH_LIMIT";

/// What is measured in this section.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// What needs no file: scans, random reads, single units.
    Memory,
    /// From a disk.
    Cold,
    /// With a quarter of the file as memory.
    Limited,
    /// Beside LLNL UMap and FUSE.
    Peers,
    /// From an S3 far away.
    Far,
}

/// A way to read the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Mmap,
    Region,
}

pub(crate) fn run(setup: &Setup) -> Result<Section, String> {
    let (mut goals, mut parts) = (Vec::new(), Vec::new());
    if setup.wants(Part::Memory) {
        let (found, warm) = figures(&children::printed("full_strength")?);
        goals.extend(found);
        parts.push(format!(
            "What is aimed for is in the table; \"no copy\" means units that are moved back out of frames that \
             have the bytes already, as zero-copy as a region gets today, and \"one copy\" a source in \
             memory.\n\n{}",
            warm.replace("#### ", "### ").trim(),
        ));
    }
    let file = object().map_err(|e| format!("a file of {} MiB: {e}", LEN >> 20))?;
    for (part, measure) in [
        (Part::Cold, cold as fn(&Path, usize, &mut Vec<Goal>) -> Result<String, String>),
        (Part::Limited, limited),
        (Part::Peers, peers::run),
        (Part::Far, far::run),
    ] {
        if setup.wants(part) {
            parts.push(measure(file.path(), setup.rounds, &mut goals)?);
        }
    }
    let body = parts.join("\n\n");
    Ok(Section {
        name: "strength",
        title: "10. The pager at full strength",
        question: "How near does each way of putting bytes in place come to what the kernel does with \
                   the same file: in memory, on disk, and with too little memory? And to what others do?",
        body,
        goals,
    })
}

/// The goals that a benchmark of the pager prints, and the rest of it.
fn figures(printed: &str) -> (Vec<Goal>, String) {
    let (mut goals, mut rest) = (Vec::new(), String::new());
    for line in printed.lines() {
        let parts: Vec<&str> = line.split(" | ").collect();
        match parts[..] {
            ["goal", what, measured, most, _] => {
                let number = |text: &str| text.parse().unwrap_or(f64::NAN);
                goals.push(Goal::new(what, number(measured), Aim::AtMost(number(most))));
            }
            _ => rest += &format!("{line}\n"),
        }
    }
    (goals, rest)
}

/// A file of words that compress to nothing special, all of it on the disk.
fn object() -> std::io::Result<tempfile::NamedTempFile> {
    let mut file = tempfile::NamedTempFile::new()?;
    for part in 0..LEN >> 20 {
        let words = (part << 17..(part + 1) << 17).map(|n| n.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        file.write_all(&words.flat_map(u64::to_le_bytes).collect::<Vec<u8>>())?;
    }
    file.as_file().sync_all()?;
    Ok(file)
}

/// Takes the file out of the kernel's memory.
fn drop_cache(path: &Path) -> Result<(), String> {
    let file = File::open(path).map_err(|e| e.to_string())?;
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).map_err(|e| e.to_string())
}

/// Bytes that this process had read from disks.
fn read_bytes() -> u64 {
    let io = fs::read_to_string("/proc/self/io").unwrap_or_default();
    let line = io.lines().find_map(|line| line.strip_prefix("read_bytes: "));
    line.and_then(|n| n.trim().parse().ok()).unwrap_or(0)
}

fn sum(bytes: &[u8]) -> u64 {
    let (words, _) = bytes.as_chunks::<8>();
    words.iter().fold(0, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word)))
}

/// The places of random reads: pages, none of them twice.
fn places() -> Vec<u64> {
    let key = |n: &u64| n.wrapping_add(1).wrapping_mul(0xBF58_476D_1CE4_E5B9).rotate_left(31);
    let mut pages: Vec<u64> = (0..LEN / PAGE).collect();
    pages.sort_by_key(key);
    pages.truncate(READS as usize);
    pages
}

/// The sum of all, in order, or of the pages at `places`.
fn read(bytes: &[u8], places: Option<&[u64]>) -> u64 {
    let page = |&page: &u64| sum(&bytes[(page * PAGE) as usize..((page + 1) * PAGE) as usize]);
    match places {
        None => sum(bytes),
        Some(places) => places.iter().map(page).fold(0, u64::wrapping_add),
    }
}

/// Reads the file by `way`, from the opening on.
fn scan(path: &Path, way: Way, budget: u64, places: Option<&[u64]>) -> Result<u64, String> {
    match way {
        Way::Mmap => {
            let file = File::open(path).map_err(|e| e.to_string())?;
            // SAFETY: the file is this program's own, and was written once.
            #[expect(unsafe_code, reason = "what is compared is a file that nobody changes")]
            let map = unsafe { Mmap::map(&file) }.map_err(|e| e.to_string())?;
            if places.is_some() {
                map.advise(Advice::Random).map_err(|e| e.to_string())?;
            }
            Ok(read(&map, places))
        }
        Way::Region => {
            let pager = Pager::builder().budget_bytes(budget).build().map_err(|e| e.to_string())?;
            let (unit, hint) = match places {
                None => (2 << 20, Hint::Sequential),
                Some(_) => (PAGE, Hint::Random),
            };
            let options = RegionOptions::default().unit_bytes(unit);
            let region =
                pager.open_with(Local::new(path).direct(), options).map_err(|e| e.to_string())?;
            region.advise(hint).map_err(|e| e.to_string())?;
            // SAFETY: as above: a local file's version alone does not promise that.
            #[expect(unsafe_code, reason = "what is compared is a file that nobody changes")]
            let map = unsafe { region.map_assuming_immutable() }.map_err(|e| e.to_string())?;
            Ok(read(&map, places))
        }
    }
}

/// What each way cost, and the bytes that each had from the disk, the kernel's first.
type Pairs = ([Vec<Cost>; 2], [u64; 2]);

/// What both ways cost in pairs, each with a cold cache, and the bytes that each had from the disk. `None`
/// where they do not come from one, as those of a file system in memory.
fn pairs(path: &Path, rounds: usize, places: Option<&[u64]>) -> Result<Option<Pairs>, String> {
    let needed = places.map_or(LEN, |places| places.len() as u64 * PAGE);
    let (mut costs, mut disk) = ([Vec::new(), Vec::new()], [0, 0]);
    let mut expected = None;
    for round in 0..rounds {
        for turn in 0..2 {
            let at = (round + turn) % 2;
            drop_cache(path)?;
            let before = read_bytes();
            let way = [Way::Mmap, Way::Region][at];
            let (got, cost) = measure::cost(|| scan(path, way, BUDGET, places))?;
            if *expected.get_or_insert(got) != got {
                return Err(format!("{way:?} read other bytes"));
            }
            disk[at] = read_bytes() - before;
            if disk[at] < needed / 10 * 9 {
                return Ok(None);
            }
            costs[at].push(cost);
        }
    }
    Ok(Some((costs, disk)))
}

/// From a disk, with nothing of it in memory.
fn cold(path: &Path, rounds: usize, goals: &mut Vec<Goal>) -> Result<String, String> {
    let places = places();
    let mut rows = String::new();
    for (what, of, places, most) in [
        ("all of it in order", "default `mmap`", None, 0.6),
        ("pages at random", "`MADV_RANDOM`", Some(&places[..]), 1.0),
    ] {
        let Some(([theirs, ours], disk)) = pairs(path, rounds, places)? else {
            let folder = path.parent().unwrap_or(path).display();
            return Ok(format!(
                "### From a local disk\n\nNot measured: what lies in {folder} does not come from a disk. \
                 `TMPDIR` names a folder that is on one.",
            ));
        };
        let over = ratio(&ours, &theirs);
        let pure = match places {
            None => "sequential",
            Some(_) => "random 4 KiB",
        };
        goals.push(Goal::new(format!("cold disk, {pure} / {of}"), over, Aim::AtMost(most)));
        for (way, costs, disk) in [(of, &theirs, disk[0]), ("a region", &ours, disk[1])] {
            rows += &format!(
                "| {what}, {way} | {} | {} | {:.1} MiB |\n",
                ms(wall(costs)),
                ms(cpu(costs)),
                disk as f64 / f64::from(1 << 20),
            );
        }
    }
    Ok(format!(
        "### From a local disk, {rounds} rounds in turn\n\nA file of {} MiB, dropped from the kernel's \
         cache before each (`POSIX_FADV_DONTNEED`), and `read_bytes` of `/proc/self/io` says that it was \
         read from the disk. What the host of a virtual machine caches of its disk nobody here can drop. \
         {READS} reads at random, by one thread. Units of 2 MiB with the hint sequential, and of 4 KiB \
         with the hint random; a region reads past the kernel's cache \
         (`Local::direct`).\n\n| read | wall | CPU | from the disk |\n| --- | --- | --- | --- |\n{rows}",
        LEN >> 20,
    ))
}

/// With a quarter of the object as memory, which the kernel keeps to.
fn limited(path: &Path, rounds: usize, goals: &mut Vec<Goal>) -> Result<String, String> {
    let head = "### With a quarter of the object as memory";
    let Some(limit) = env::var(LIMIT).ok().filter(|limit| !limit.trim().is_empty()) else {
        return Ok(format!(
            "{head}\n\nNot measured: that takes a command that runs another one under a limit, which \
             `{LIMIT}` names: `sh examples/limit.sh {{}}` for root, or `systemd-run --user --scope -q -p \
             MemoryMax={{}} -p MemorySwapMax=0`.",
        ));
    };
    let mut walls: [Vec<Duration>; 2] = [Vec::new(), Vec::new()];
    for round in 0..rounds {
        for turn in 0..2 {
            let at = (round + turn) % 2;
            drop_cache(path)?;
            walls[at].push(under(&limit, path, [Way::Mmap, Way::Region][at])?);
        }
    }
    let pairs = walls[1].iter().zip(&walls[0]);
    let ratios: Vec<f64> = pairs.map(|(a, b)| a.as_secs_f64() / b.as_secs_f64()).collect();
    let over = measure::median(&ratios);
    goals.push(Goal::new("scan, limit of a quarter / mmap", over, Aim::AtMost(1.0)));
    let [theirs, ours] = walls.map(|walls| ms(measure::median(&walls)));
    Ok(format!(
        "{head}\n\n{rounds} rounds in turn. A process of its own under `{limit}`, which finds the limit in \
         its cgroup, scans the file of {} MiB with a cold cache: `mmap` in {theirs}, a region of {} MiB \
         with the hint sequential in {ours}.",
        LEN >> 20,
        BUDGET_LIMITED >> 20,
    ))
}

/// Has a child scan the file under a limit; what that took by its own account.
fn under(limit: &str, path: &Path, way: Way) -> Result<Duration, String> {
    let bytes = (LEN / 4).to_string();
    let mut words = limit.split_whitespace().map(|word| word.replace("{}", &bytes));
    let program = words.next().unwrap_or_default();
    let output = Command::new(&program)
        .args(words)
        .arg(env::current_exe().map_err(|e| e.to_string())?)
        .arg("--limited-child")
        .arg(if way == Way::Mmap { "mmap" } else { "region" })
        .arg(path)
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| format!("{program}: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let us = text.lines().last().and_then(|line| line.parse().ok());
    match us.filter(|_| output.status.success()) {
        Some(us) => Ok(Duration::from_micros(us)),
        None => Err(format!("{limit}: {}: {text}", output.status)),
    }
}

/// What runs under the limit: prints the microseconds of a scan.
pub(crate) fn child(way: &str, path: &Path) -> Result<(), String> {
    let way = match way {
        "mmap" => Way::Mmap,
        "region" => Way::Region,
        other => return Err(format!("no way to read: {other}")),
    };
    match sources::available::limit() {
        // The kernel rounds to pages.
        Some(limit) if limit <= LEN / 4 + PAGE => {}
        found => return Err(format!("the limit of this process is {found:?}, not {}", LEN / 4)),
    }
    let (_, cost) = measure::cost(|| scan(path, way, BUDGET_LIMITED, None))?;
    println!("{}", cost.wall.as_micros());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_come_out_of_what_is_printed() {
        let printed = "\n#### Title\n\n| a | b |\n| --- | --- |\n| mmap | 1.00 |\n\n\
            goal | a sum, no copy / mmap | 1.078 | 1.15 | met\ngoal | x | 2.000 | 1.1 | missed\n";
        let (goals, rest) = figures(printed);
        assert_eq!(rest, "\n#### Title\n\n| a | b |\n| --- | --- |\n| mmap | 1.00 |\n\n");
        let told: Vec<_> = goals.iter().map(|goal| (&goal.what[..], goal.met())).collect();
        assert_eq!(told, [("a sum, no copy / mmap", Some(true)), ("x", Some(false))]);
    }

    #[test]
    fn a_command_under_a_limit_gets_so_much_memory_and_no_more() {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/limit.sh");
        // Who wants the last 150 MB of a stream keeps them.
        let counted = |mib: u64| {
            let hungry = "head -c 200000000 /dev/zero | tail -c 150000000 | wc -c";
            let bytes = (mib << 20).to_string();
            let output = Command::new("sh").args([script, &bytes, "sh", "-c", hungry]).output();
            let output = output.expect("a shell");
            (String::from_utf8_lossy(&output.stdout).trim().to_owned(), output.stderr)
        };
        let (enough, told) = counted(512);
        if enough.is_empty() && String::from_utf8_lossy(&told).starts_with("limit: ") {
            println!("left out: a limit of memory: {}", String::from_utf8_lossy(&told).trim());
            return;
        }
        assert_eq!(enough, "150000000");
        assert_ne!(counted(32).0, "150000000");
    }
}
