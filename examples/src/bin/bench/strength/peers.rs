//! The same file, all of it in order, through a region, through LLNL UMap, and through a mount of FUSE.
//!
//! ```text
//!   the file, in the kernel's cache --+-- pread --> frame, moved ----------------> region
//!                                     +-- pread --> buffer --> UFFDIO_COPY ------> UMap       peer-umap
//!   the same in a server's memory ----+-- /dev/fuse --> the kernel's cache ------> the mount  peer-fuse
//! ```
//!
//! Neither is part of this project: `make peer-umap` and `make peer-fuse` build them, outside of it. What is
//! not built is left out, and the section says so.

use std::{
    fs::File,
    io::Read,
    path::Path,
    time::{Duration, Instant},
};

use examples::{
    measure::{self, Cost, cpu, ms, ratio, wall},
    report::{Aim, Goal},
};
use memmap2::{Advice, Mmap};
use pager::{Hint, Mechanism, Pager, Region, RegionOptions};
use sources::Local;
use tempfile::TempDir;

use super::{peer::Peer, sum};

/// Units of a region, pages of UMap, and how much of UMap's time a region may take.
const UNITS: [(u64, f64); 2] = [(2048, 0.6), (256, 0.7)];
/// How much of the time of a mount's first pass.
const OF_FUSE: f64 = 0.45;
/// Bytes that a pass over memory sums, on both sides: as in `pager/peer/umap.cpp`.
const PLAIN_MAX: usize = 64 << 20;
/// What is read(2) at once: a buffer that stays in a processor's cache.
const READ: usize = 128 << 10;
/// Has room for the fewest units of 2 MiB: what a file smaller than the bench's own needs.
const BUDGET_MIN: u64 = 80 << 20;
const UMAP: &str = "peer-umap";
const FUSE: &str = "peer-fuse";

/// A way to read the file. Nobody is told beforehand what will be read, except where it says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Mmap,
    /// With the frames of an earlier region, or with a new pager.
    Region {
        kib: u64,
        new: bool,
    },
    /// With all pages announced to it beforehand, or none.
    Umap {
        kib: u64,
        announced: bool,
    },
    /// Mapped, or by read(2).
    Fuse {
        mapped: bool,
    },
}

impl Way {
    fn is_ours(self) -> bool {
        matches!(self, Way::Mmap | Way::Region { .. })
    }

    fn name(self) -> String {
        match self {
            Way::Mmap => "`mmap` of the file".to_owned(),
            Way::Region { kib, new: false } => format!("a region, unit {kib} KiB"),
            Way::Region { kib, new: true } => format!("a region of a new pager, unit {kib} KiB"),
            Way::Umap { kib, announced: false } => format!("UMap, pages of {kib} KiB"),
            Way::Umap { kib, announced: true } => {
                format!("UMap, pages of {kib} KiB, all announced by `umap_prefetch`")
            }
            Way::Fuse { mapped: true } => "FUSE, first pass, mapped (`MADV_SEQUENTIAL`)".to_owned(),
            Way::Fuse { mapped: false } => {
                format!("FUSE, first pass, read(2) of {} KiB", READ >> 10)
            }
        }
    }
}

/// What reads the file.
struct Readers<'a> {
    path: &'a Path,
    len: u64,
    expected: u64,
    /// Unit, pager, and a region that stays open, and with it what the pager recycles.
    pagers: Vec<(u64, Pager, Region)>,
    umap: Vec<(u64, Peer)>,
    fuse: Option<(Peer, TempDir)>,
    /// What of the peers is missing, and why.
    missing: Vec<String>,
    /// What the peers say of themselves.
    told: String,
}

/// Room for all of a file: UMap begins to evict at nine tenths of it.
fn room(len: u64) -> u64 {
    len + len / 4
}

fn text(error: impl ToString) -> String {
    error.to_string()
}

impl<'a> Readers<'a> {
    /// Of the file at `path`, all of which is in the kernel's cache after this.
    fn new(path: &'a Path) -> Result<Readers<'a>, String> {
        let bytes = std::fs::read(path).map_err(text)?;
        let (len, expected) = (bytes.len() as u64, sum(&bytes));
        drop(bytes);
        let mut readers = Readers {
            path,
            len,
            expected,
            pagers: Vec::new(),
            umap: Vec::new(),
            fuse: None,
            missing: Vec::new(),
            told: String::new(),
        };
        for (kib, _) in UNITS {
            let pager = readers.pager()?;
            let region = readers.open(&pager, kib)?;
            readers.pagers.push((kib, pager, region));
        }
        readers.start_umap();
        readers.start_fuse();
        Ok(readers)
    }

    fn pager(&self) -> Result<Pager, String> {
        let budget = room(self.len).max(BUDGET_MIN);
        Pager::builder().budget_bytes(budget).build().map_err(text)
    }

    fn open(&self, pager: &Pager, kib: u64) -> Result<Region, String> {
        let options = RegionOptions::default().unit_bytes(kib << 10);
        pager.open_with(Local::new(self.path), options).map_err(text)
    }

    /// A process for each size of a page: it is read once, from the environment.
    fn start_umap(&mut self) {
        let Some(program) = Peer::built(UMAP) else {
            let how = "`make peer-umap UMAP=/its/source` builds what measures it";
            self.missing.push(format!("LLNL UMap was left out: {how}."));
            return;
        };
        for (kib, _) in UNITS {
            let pages = room(self.len) / (kib << 10);
            let variables =
                [("UMAP_PAGESIZE", (kib << 10).to_string()), ("UMAP_BUFSIZE", pages.to_string())];
            let started = Peer::start(&program, &[self.path.as_os_str()], &variables);
            let started = started.and_then(|mut peer| peer.ask::<3>("read").map(|_| peer));
            match started {
                Ok(peer) => self.umap.push((kib, peer)),
                Err(error) => self.missing.push(format!(
                    "LLNL UMap with pages of {kib} KiB was left out, as it did not start: {error}."
                )),
            }
        }
    }

    fn start_fuse(&mut self) {
        match self.mount_once() {
            Ok(fuse) => self.fuse = Some(fuse),
            Err(why) => self.missing.push(format!("FUSE was left out: {why}.")),
        }
    }

    /// The server, if it can mount.
    fn mount_once(&mut self) -> Result<(Peer, TempDir), String> {
        let program = Peer::built(FUSE).ok_or("`make peer-fuse` builds what measures it")?;
        let folder = TempDir::new().map_err(text)?;
        let args = [self.path.as_os_str(), folder.path().as_os_str()];
        let mut peer = Peer::start(&program, &args, &[])?;
        let wrong = |why: String| format!("it could not be mounted, which root may: {why}");
        let [ahead] = peer.ask("mount").map_err(wrong)?;
        let sum = read_mounted(&folder.path().join("object"));
        let [largest] = peer.ask("unmount")?;
        if sum? != self.expected {
            return Err("it read other bytes".to_owned());
        }
        self.told = format!(
            "The kernel read {ahead} KiB ahead over FUSE, and asked for {largest} KiB at most at once."
        );
        Ok((peer, folder))
    }

    /// How the regions put bytes in place.
    fn mechanisms(&self) -> String {
        let of = |(kib, pager, _): &(u64, Pager, Region)| {
            let verb = match pager.regions().first().map(|report| report.mechanism) {
                Some(Mechanism::Move) => "moves",
                _ => "copies too",
            };
            format!("{verb} with units of {kib} KiB")
        };
        self.pagers.iter().map(of).collect::<Vec<_>>().join(", ")
    }

    /// All ways that there are here.
    fn ways(&self) -> Vec<Way> {
        let mut ways = vec![Way::Mmap];
        for (kib, _) in UNITS {
            ways.extend([Way::Region { kib, new: false }, Way::Region { kib, new: true }]);
        }
        for &(kib, _) in &self.umap {
            ways.extend([false, true].map(|announced| Way::Umap { kib, announced }));
        }
        if self.fuse.is_some() {
            ways.extend([true, false].map(|mapped| Way::Fuse { mapped }));
        }
        ways
    }

    /// What reading all of the file takes, from its opening on. What is kept of it is given up off the clock.
    fn read(&mut self, way: Way) -> Result<Cost, String> {
        let (found, cost) = match way {
            Way::Mmap => {
                let (found, cost) = measure::cost(|| mapped(self.path, None))?;
                (found.0, cost)
            }
            Way::Region { kib, new } => self.read_region(kib, new)?,
            Way::Umap { kib, announced } => {
                let peer = self.umap.iter_mut().find(|(size, _)| *size == kib);
                let (_, peer) = peer.ok_or("UMap is not there")?;
                let [found, wall, cpu] = peer.ask(if announced { "announced" } else { "read" })?;
                let [wall, cpu] = [wall, cpu].map(Duration::from_nanos);
                (found, Cost { wall, cpu })
            }
            Way::Fuse { mapped } => self.read_fuse(mapped)?,
        };
        if found != self.expected {
            return Err(format!("{way:?} read other bytes"));
        }
        Ok(cost)
    }

    fn read_region(&self, kib: u64, new: bool) -> Result<(u64, Cost), String> {
        let known = self.pagers.iter().find(|(size, ..)| *size == kib);
        let (_, known, _) = known.ok_or("no pager of this unit")?;
        let ((found, map, region, _pager), cost) = measure::cost(|| {
            let pager = if new { self.pager()? } else { known.clone() };
            let region = self.open(&pager, kib)?;
            // SAFETY: the file is this program's own, and was written once; a local file's version alone does
            // not promise that.
            #[expect(unsafe_code, reason = "what is compared is a file that nobody changes")]
            let map = unsafe { region.map_assuming_immutable() }.map_err(text)?;
            Ok((sum(&map), map, region, pager))
        })?;
        drop(map);
        // Its frames go back to where the next region takes them.
        region.advise(Hint::DontNeed(0..self.len)).map_err(text)?;
        Ok((found, cost))
    }

    /// Over a mount of which the kernel has nothing in its memory. The processor time is also the server's.
    fn read_fuse(&mut self, by_mapping: bool) -> Result<(u64, Cost), String> {
        let (peer, folder) = self.fuse.as_mut().ok_or("FUSE is not there")?;
        let [_ahead] = peer.ask("mount")?;
        let object = folder.path().join("object");
        let before = measure::cpu_time_of(peer.pid());
        let (found, mut cost) = match by_mapping {
            true => {
                let read = measure::cost(|| mapped(&object, Some(Advice::Sequential)));
                read.map(|((found, _), cost)| (found, cost))?
            }
            false => measure::cost(|| read_mounted(&object))?,
        };
        cost.cpu += measure::cpu_time_of(peer.pid()).saturating_sub(before);
        let [_largest] = peer.ask("unmount")?;
        Ok((found, cost))
    }
}

/// The sum of a file by its mapping, which is to be dropped later.
fn mapped(path: &Path, advice: Option<Advice>) -> Result<(u64, Mmap), String> {
    let file = File::open(path).map_err(text)?;
    // SAFETY: the file is this program's own, or shows the same bytes, and was written once.
    #[expect(unsafe_code, reason = "what is compared is a file that nobody changes")]
    let map = unsafe { Mmap::map(&file) }.map_err(text)?;
    if let Some(advice) = advice {
        map.advise(advice).map_err(text)?;
    }
    Ok((sum(&map), map))
}

/// The sum of a file by read(2).
fn read_mounted(path: &Path) -> Result<u64, String> {
    let mut file = File::open(path).map_err(text)?;
    let (mut buffer, mut total) = (vec![0; READ], 0u64);
    loop {
        let mut filled = 0;
        while filled < READ {
            match file.read(&mut buffer[filled..]).map_err(text)? {
                0 => break,
                read => filled += read,
            }
        }
        total = total.wrapping_add(sum(&buffer[..filled]));
        if filled < READ {
            return Ok(total);
        }
    }
}

/// What the sum alone takes over bytes that are in memory, in ns per byte: ours, and that of UMap's program.
fn plain(readers: &mut Readers<'_>, rounds: usize) -> Result<String, String> {
    let mut bytes = std::fs::read(readers.path).map_err(text)?;
    bytes.truncate(PLAIN_MAX);
    let len = bytes.len() as f64;
    let [mut ours, mut theirs] = [(); 2].map(|()| Vec::new());
    for _ in 0..rounds {
        let start = Instant::now();
        std::hint::black_box(sum(&bytes));
        ours.push(start.elapsed().as_secs_f64() * 1e9 / len);
        if let Some((_, peer)) = readers.umap.first_mut() {
            let [_, wall, _] = peer.ask("plain")?;
            theirs.push(wall as f64 / len);
        }
    }
    let ours = measure::median(&ours);
    Ok(match theirs.is_empty() {
        true => format!("The sum alone takes {ours:.3} ns per byte."),
        false => {
            let theirs = measure::median(&theirs);
            format!(
                "The sum alone takes {ours:.3} ns per byte here, {theirs:.3} in UMap's program."
            )
        }
    })
}

/// Reads the file at `path` by each way in turn; puts down what of the peers' times a region takes.
pub(super) fn run(path: &Path, rounds: usize, goals: &mut Vec<Goal>) -> Result<String, String> {
    let mut readers = Readers::new(path)?;
    let work = plain(&mut readers, rounds)?;
    let mut rows: Vec<(Way, Vec<Cost>)> =
        readers.ways().into_iter().map(|way| (way, Vec::new())).collect();
    // The first round is what a program pays once.
    for round in 0..=rounds {
        let mut order: Vec<Way> = rows.iter().map(|row| row.0).collect();
        order.rotate_left(round % rows.len());
        // Every other round goes backwards, so that nobody always follows the same.
        if round % 2 == 1 {
            order.reverse();
        }
        for way in order {
            match readers.read(way) {
                Ok(cost) if round > 0 => {
                    let row = rows.iter_mut().find(|row| row.0 == way);
                    row.ok_or("no such row")?.1.push(cost);
                }
                Ok(_) => {}
                Err(error) if way.is_ours() => return Err(error),
                Err(error) => {
                    readers.missing.push(format!("{} was left out: {error}.", way.name()));
                    rows.retain(|row| row.0 != way);
                }
            }
        }
    }
    let costs = |way: Way| rows.iter().find(|row| row.0 == way).map(|row| &row.1[..]);
    // A peer is measured by the better of its two ways.
    let best = |ways: [Way; 2]| {
        let costs = ways.into_iter().filter_map(costs);
        costs.min_by_key(|costs| wall(costs))
    };
    for (kib, most) in UNITS {
        let ours = costs(Way::Region { kib, new: false }).unwrap_or_default();
        let theirs = best([false, true].map(|announced| Way::Umap { kib, announced }));
        if let Some(theirs) = theirs {
            let what = format!("file in memory, unit {kib} KiB / UMap, pages of {kib} KiB");
            goals.push(Goal::new(what, ratio(ours, theirs), Aim::AtMost(most)));
        }
    }
    let kib = UNITS[0].0;
    let ours = costs(Way::Region { kib, new: false }).unwrap_or_default();
    if let Some(theirs) = best([true, false].map(|mapped| Way::Fuse { mapped })) {
        let what = format!("file in memory, unit {kib} KiB / first pass over FUSE");
        goals.push(Goal::new(what, ratio(ours, theirs), Aim::AtMost(OF_FUSE)));
    }
    Ok(told(&readers, &rows, &work, rounds))
}

fn told(readers: &Readers<'_>, rows: &[(Way, Vec<Cost>)], work: &str, rounds: usize) -> String {
    let mapped = rows.iter().find(|row| row.0 == Way::Mmap).map(|row| &row.1[..]);
    let mut table = String::new();
    for (way, costs) in rows {
        let over = mapped.map_or(f64::NAN, |mapped| ratio(costs, mapped));
        let (wall, cpu) = (ms(wall(costs)), ms(cpu(costs)));
        table += &format!("| {} | {wall} | {over:.2} | {cpu} |\n", way.name());
    }
    let mut missing = readers.missing.join("\n\n");
    if !missing.is_empty() {
        missing += "\n\n";
    }
    format!(
        "### Beside UMap and FUSE, {rounds} rounds in turn\n\n{missing}All of a file of {} MiB in order, from \
         the opening on, with room for all of it; the kernel has it in its cache, and FUSE's server has it in \
         its own memory. {work} A region and UMap both have the bytes by pread(2), which UMap copies \
         into place, and a region {}. A region's pager has frames that an earlier region used, as in the \
         tables above; where it says so it is new. UMap keeps nothing between two mappings, and starts its threads \
         for each. FUSE is mounted anew for each pass, off the clock, so that the kernel has nothing of it. \
         {} Each peer has two ways to be used, and its better one is what the goal compares with. Processor \
         time counts FUSE's server.\n\n| read | wall, median | / mmap | CPU |\n| --- | --- | --- | --- \
         |\n{table}",
        readers.len >> 20,
        readers.mechanisms(),
        readers.told,
    )
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn every_way_reads_the_same_bytes_and_missing_peers_are_told() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        let words = (0..2u64 << 20).map(|n| n.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        file.write_all(&bytes).expect("room for it");
        let mut goals = Vec::new();
        let text = run(file.path(), 2, &mut goals).expect("all of them read it");
        for (name, rows) in [("LLNL UMap", "| UMap, pages"), ("FUSE", "| FUSE, first pass")] {
            let left_out = text.contains(&format!("{name} was left out"));
            assert!(left_out || text.contains(rows), "{text}");
            if left_out {
                println!(
                    "left out: {name}: the program that measures it is not built, or cannot run"
                );
            }
        }
        assert!(
            text.contains("a region, unit 2048 KiB") && text.contains("file of 16 MiB"),
            "{text}"
        );
        let told: Vec<&str> = goals.iter().map(|goal| &goal.what[..]).collect();
        let has = |what: &str| told.iter().any(|goal| goal.ends_with(what));
        assert_eq!(has("first pass over FUSE"), text.contains("| FUSE"), "{told:?}");
        assert_eq!(
            has("UMap, pages of 256 KiB"),
            text.contains("| UMap, pages of 256"),
            "{told:?}"
        );
        println!("{text}\n{goals:?}");
    }
}
