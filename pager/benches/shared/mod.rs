//! What the benchmarks share: a source in memory, work on its bytes, and what was measured.

use std::{
    fmt, fs,
    io::{Read, Seek, SeekFrom},
    ops::Range,
    time::{Duration, Instant},
};

use futures::StreamExt;
use pager::{BlockSource, ByteStream, Bytes, Frame, ObjectStat, SourceError, Version, async_trait};

/// Rounds of arithmetic on each word, to see how long they take.
const ROUNDS_TRIED: u32 = 32;

/// Pages that are looked at to see how the kernel keeps a file.
const PAGES_SEEN: usize = 4096;

/// A source that holds its bytes in memory and fills frames with them.
#[derive(Clone)]
pub(crate) struct Memory(pub(crate) Bytes);

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

/// `len` bytes that compress to nothing special.
pub(crate) fn words(len: usize) -> Vec<u8> {
    let words = (0..len as u64 / 8).map(|n| n.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    words.flat_map(u64::to_le_bytes).collect()
}

/// The sum of all words, and `work` rounds of arithmetic on each.
pub(crate) fn sum(bytes: &[u8], work: u32) -> u64 {
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

/// How long a pass over `bytes` takes now, in ns per byte.
pub(crate) fn ns_per_byte(bytes: &[u8], work: u32) -> f64 {
    let start = Instant::now();
    std::hint::black_box(sum(bytes, work));
    start.elapsed().as_secs_f64() * 1e9 / bytes.len() as f64
}

/// So many rounds of arithmetic on each word as take `ns` per byte on this machine, by the median of
/// some short runs.
pub(crate) fn work_of(ns: f64, bytes: &[u8]) -> u32 {
    let tried = (0..9).map(|_| ns_per_byte(&bytes[..16 << 20], ROUNDS_TRIED)).collect();
    (f64::from(ROUNDS_TRIED) * ns / median(tried)).round().max(1.0) as u32
}

/// Where `n` comes in an order that looks like chance.
pub(crate) fn shuffled(n: u64) -> u64 {
    let word = n.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (word ^ (word >> 31)).wrapping_mul(0xBF58_476D_1CE4_E5B9)
}

/// User and system time of this process.
pub(crate) fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("procfs");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("a name").split_whitespace().collect();
    let ticks: u64 =
        fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime");
    Duration::from_millis(ticks * 10)
}

/// The median; of an even number, the upper of the two in the middle.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// In what folios the kernel keeps a file.
pub(crate) struct Folios {
    /// KiB of it that huge pages map.
    huge_kib: u64,
    /// The share of its pages that belong to a folio of several. Only the superuser is told.
    several: Option<f64>,
    len: usize,
}

impl Folios {
    /// Of the file that `mapped` shows, all of which was read.
    pub(crate) fn of(mapped: &[u8]) -> Folios {
        let huge_kib = huge_kib(mapped.as_ptr() as usize);
        Folios { huge_kib, several: compound(mapped), len: mapped.len() }
    }
}

impl fmt::Display for Folios {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = match self.several {
            _ if self.huge_kib > self.len as u64 >> 11 => "large folios",
            Some(0.0) => "folios of 4 KiB",
            Some(_) => "folios of several pages, none of them huge",
            None => "small folios",
        };
        write!(f, "{size} ({} KiB mapped by 2 MiB entries, ", self.huge_kib)?;
        match self.several {
            Some(share) => write!(f, "{:.0} % of the pages in folios of several)", share * 100.0),
            None => write!(f, "and how many pages a folio has the kernel does not tell this user)"),
        }
    }
}

/// KiB of the file's mapping at `addr` that huge pages map: `FilePmdMapped` of its part of smaps.
fn huge_kib(addr: usize) -> u64 {
    let smaps = fs::read_to_string("/proc/self/smaps").expect("procfs");
    let mut here = false;
    for line in smaps.lines() {
        // A mapping begins with its addresses, in hexadecimal.
        let (start, rest) = line.split_once('-').unwrap_or(("", ""));
        let end = rest.split(' ').next().unwrap_or("");
        let hex = |text| usize::from_str_radix(text, 16);
        if let (Ok(start), Ok(end)) = (hex(start), hex(end)) {
            here = (start..end).contains(&addr);
        } else if let Some(rest) = line.strip_prefix("FilePmdMapped:").filter(|_| here) {
            return rest.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0);
        }
    }
    0
}

/// The share of pages of `mapped` that belong to a folio of more than one, by some of them. `None` where
/// that is not for this user to know, which is for the superuser only.
fn compound(mapped: &[u8]) -> Option<f64> {
    const HEAD_OR_TAIL: u64 = 1 << 15 | 1 << 16;
    let word = |file: &mut fs::File, at: usize| -> Option<u64> {
        let mut word = [0; 8];
        file.seek(SeekFrom::Start(at as u64 * 8)).ok()?;
        file.read_exact(&mut word).ok()?;
        Some(u64::from_ne_bytes(word))
    };
    let mut pages = fs::File::open("/proc/self/pagemap").ok()?;
    let mut flags = fs::File::open("/proc/kpageflags").ok()?;
    let (first, all) = (mapped.as_ptr() as usize / 4096, mapped.len() / 4096);
    let (mut seen, mut several) = (0, 0);
    for n in 0..PAGES_SEEN.min(all) {
        let entry = word(&mut pages, first + n * (all / PAGES_SEEN.min(all)))?;
        let frame = entry & ((1 << 55) - 1);
        // Not there, or the number is not told.
        if entry >> 63 == 0 || frame == 0 {
            continue;
        }
        seen += 1;
        several += u64::from(word(&mut flags, frame as usize)? & HEAD_OR_TAIL != 0);
    }
    (seen > 0).then(|| several as f64 / f64::from(seen))
}
