//! Sorting more numbers than fit in memory, and leaving each out but once.
//!
//! ```text
//!   push --> buffer --sorted--> run, run, run in a file without a name --merged--> ascending
//! ```

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    ffi::OsStr,
    fs::{self, File},
    io::{
        self,
        ErrorKind::{AlreadyExists, NotFound},
    },
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use nix::fcntl::OFlag;

use super::postings::{put_varint, take_varint};

/// A run is written and read by so many bytes at a time.
const READ_BYTES: usize = 64 << 10;
/// The least that is read at a time when there are very many runs.
const READ_BYTES_MIN: usize = 4 << 10;
/// Two numbers of at most 64 bits.
const PAIR_BYTES_MAX: usize = 20;

/// Names of a process are tried so often: a dead one of the same number may have left some.
const TRIES: usize = 1000;

/// Tells the files of one process apart.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Where spilled runs go: a file without a name, so that it vanishes with the process.
#[derive(Debug)]
pub(super) struct Spill {
    dir: PathBuf,
}

impl Spill {
    /// Removes what processes left there that were killed before they could take a name away.
    pub(super) fn new(dir: &Path) -> Spill {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            // A living process has opened its file and is about to remove the name itself.
            if is_name(&entry.file_name()) && entry.file_type().is_ok_and(|kind| kind.is_file()) {
                let _ = fs::remove_file(entry.path());
            }
        }
        Spill { dir: dir.to_owned() }
    }

    pub(super) fn file(&self) -> io::Result<File> {
        let mut options = File::options();
        let unnamed = options.read(true).write(true).custom_flags(OFlag::O_TMPFILE.bits());
        // Not every file system has such files; what else is wrong, the other way says as well.
        unnamed.open(&self.dir).or_else(|_| self.named())
    }

    /// A file whose name is taken away as soon as it is open.
    fn named(&self) -> io::Result<File> {
        for _ in 0..TRIES {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = self.dir.join(format!("{PREFIX}{}-{number}{SUFFIX}", std::process::id()));
            let file = match File::options().read(true).write(true).create_new(true).open(&path) {
                Err(error) if error.kind() == AlreadyExists => continue,
                opened => opened?,
            };
            match fs::remove_file(&path) {
                // Another process has taken it for a dead one's.
                Err(error) if error.kind() == NotFound => {}
                removed => removed?,
            }
            return Ok(file);
        }
        Err(io::Error::other("no name was free for a temporary file"))
    }
}

const PREFIX: &str = ".tdbidx-";
const SUFFIX: &str = ".tmp";

/// Whether a file may be called so by a process that is at work: `.tdbidx-PID-N.tmp`.
fn is_name(name: &OsStr) -> bool {
    let name = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    name.and_then(|name| name.split_once('-')).is_some_and(|(a, b)| is_number(a) && is_number(b))
}

/// Collects numbers, in memory up to a limit.
#[derive(Debug)]
pub(super) struct Sorter {
    buffer: Vec<u128>,
    numbers_max: usize,
    spill: Arc<Spill>,
    file: Option<File>,
    /// Where the runs are in the file.
    runs: Vec<(u64, u64)>,
    end: u64,
}

impl Sorter {
    /// Takes at most `memory_bytes` for its numbers, and spills beyond that.
    pub(super) fn new(memory_bytes: u64, spill: Arc<Spill>) -> Sorter {
        let numbers_max = (memory_bytes / 16).clamp(1024, 1 << 40) as usize;
        Sorter { buffer: Vec::new(), numbers_max, spill, file: None, runs: Vec::new(), end: 0 }
    }

    #[inline]
    pub(super) fn push(&mut self, number: u128) -> io::Result<()> {
        if self.buffer.len() >= self.numbers_max {
            self.make_room()?;
        }
        self.buffer.push(number);
        Ok(())
    }

    fn sort(&mut self) {
        self.buffer.sort_unstable();
        self.buffer.dedup();
    }

    #[cold]
    fn make_room(&mut self) -> io::Result<()> {
        self.sort();
        // Where many were equal, there is room again.
        if self.buffer.len() < self.numbers_max / 2 {
            return Ok(());
        }
        if self.file.is_none() {
            self.file = Some(self.spill.file()?);
        }
        let file = self.file.as_ref().expect("made above");
        let start = self.end;
        let mut bytes = Vec::with_capacity(READ_BYTES + PAIR_BYTES_MAX);
        let mut last = (0, 0);
        for &number in &self.buffer {
            let (high, low) = ((number >> 64) as u64, number as u64);
            put_varint(&mut bytes, high - last.0);
            put_varint(&mut bytes, if high == last.0 { low - last.1 } else { low });
            last = (high, low);
            if bytes.len() >= READ_BYTES {
                file.write_all_at(&bytes, self.end)?;
                self.end += bytes.len() as u64;
                bytes.clear();
            }
        }
        file.write_all_at(&bytes, self.end)?;
        self.end += bytes.len() as u64;
        self.runs.push((start, self.end));
        self.buffer.clear();
        Ok(())
    }

    /// Nothing more will be pushed.
    pub(super) fn finish(mut self) -> Sorted {
        self.sort();
        if !self.runs.is_empty() {
            self.buffer.shrink_to_fit();
        }
        Sorted { memory: self.buffer, file: self.file.map(Arc::new), runs: self.runs }
    }
}

/// What a sorter has collected.
#[derive(Debug)]
pub(super) struct Sorted {
    memory: Vec<u128>,
    file: Option<Arc<File>>,
    runs: Vec<(u64, u64)>,
}

/// All numbers of some sorters, ascending, each once. Reading the runs takes `memory_bytes` in all,
/// or a page for each of them.
pub(super) fn merge(parts: Vec<Sorted>, memory_bytes: u64) -> io::Result<Merge> {
    let runs: usize = parts.iter().map(|part| part.runs.len()).sum();
    let each = (memory_bytes / runs.max(1) as u64) as usize;
    let read_bytes = each.clamp(READ_BYTES_MIN, READ_BYTES);
    let mut merge = Merge { sources: Vec::new(), heap: BinaryHeap::new(), last: None };
    for part in parts {
        if !part.memory.is_empty() {
            merge.sources.push(Source::Memory(part.memory.into_iter()));
        }
        for (start, end) in part.runs {
            let file = part.file.clone().expect("runs are in a file");
            merge.sources.push(Source::Run(Run {
                file,
                at: start,
                end,
                read_bytes,
                bytes: Vec::new(),
                used: 0,
                last: (0, 0),
            }));
        }
    }
    for (which, source) in merge.sources.iter_mut().enumerate() {
        if let Some(number) = source.next()? {
            merge.heap.push(Reverse((number, which)));
        }
    }
    Ok(merge)
}

#[derive(Debug)]
pub(super) struct Merge {
    sources: Vec<Source>,
    heap: BinaryHeap<Reverse<(u128, usize)>>,
    last: Option<u128>,
}

impl Merge {
    pub(super) fn next(&mut self) -> io::Result<Option<u128>> {
        while let Some(mut head) = self.heap.peek_mut() {
            let Reverse((number, which)) = *head;
            match self.sources[which].next()? {
                Some(next) => *head = Reverse((next, which)),
                None => drop(std::collections::binary_heap::PeekMut::pop(head)),
            }
            if self.last != Some(number) {
                self.last = Some(number);
                return Ok(Some(number));
            }
        }
        Ok(None)
    }
}

#[derive(Debug)]
enum Source {
    Memory(std::vec::IntoIter<u128>),
    Run(Run),
}

#[derive(Debug)]
struct Run {
    file: Arc<File>,
    at: u64,
    end: u64,
    read_bytes: usize,
    bytes: Vec<u8>,
    used: usize,
    last: (u64, u64),
}

impl Source {
    fn next(&mut self) -> io::Result<Option<u128>> {
        match self {
            Source::Memory(numbers) => Ok(numbers.next()),
            Source::Run(run) => run.next(),
        }
    }
}

impl Run {
    fn next(&mut self) -> io::Result<Option<u128>> {
        if self.bytes.len() - self.used < PAIR_BYTES_MAX && self.at < self.end {
            self.bytes.drain(..self.used);
            self.used = 0;
            let have = self.bytes.len();
            let more = (self.end - self.at).min(self.read_bytes as u64) as usize;
            self.bytes.resize(have + more, 0);
            self.file.read_exact_at(&mut self.bytes[have..], self.at)?;
            self.at += more as u64;
        }
        if self.used == self.bytes.len() {
            return Ok(None);
        }
        let mut take = || {
            take_varint(&self.bytes, &mut self.used)
                .ok_or_else(|| io::Error::other("a temporary file was changed"))
        };
        let (high, low) = (take()?, take()?);
        // What this process wrote ascends; what somebody else may have written must not overflow.
        let low = if high == 0 { self.last.1.wrapping_add(low) } else { low };
        self.last = (self.last.0.wrapping_add(high), low);
        Ok(Some(u128::from(self.last.0) << 64 | u128::from(low)))
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, io::Write as _};

    use super::*;

    /// Numbers of processes come again, and so do names, in a container from the first one on.
    #[test]
    fn what_a_dead_process_left_is_not_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let left = |number| {
            let name = format!(".tdbidx-{}-{number}.tmp", std::process::id());
            dir.path().join(name)
        };
        let spill = Spill::new(dir.path());
        let next = NEXT.load(Ordering::Relaxed);
        // Other tests of this process take numbers as well, but not so many.
        let names: Vec<_> = (next..next + 200).map(left).collect();
        names.iter().for_each(|name| fs::write(name, "left").unwrap());
        for mut file in [spill.file().unwrap(), spill.named().unwrap()] {
            assert_eq!(file.metadata().unwrap().len(), 0);
            file.write_all(b"ours").unwrap();
        }
        assert!(names.iter().all(|name| fs::read(name).unwrap() == b"left"));

        // The next one removes them, and nothing else.
        let others = [".tdbidx-1-.tmp", ".tdbidx-1-2", ".tdbidx-a-2.tmp", "x.tdbidx-1-2.tmp"];
        others.iter().for_each(|name| fs::write(dir.path().join(name), "other").unwrap());
        fs::create_dir(dir.path().join(".tdbidx-1-3.tmp")).unwrap();
        Spill::new(dir.path());
        let entries = fs::read_dir(dir.path()).unwrap();
        let mut kept: Vec<_> = entries.map(|e| e.unwrap().file_name()).collect();
        kept.sort_unstable();
        let mut expected = [&others[..], &[".tdbidx-1-3.tmp"]].concat();
        expected.sort_unstable();
        assert_eq!(kept, expected);
    }

    #[test]
    fn sorts_with_and_without_spills() {
        let dir = tempfile::tempdir().unwrap();
        let spill = Arc::new(Spill::new(dir.path()));
        for (what, count, memory) in [("none", 0, 0), ("few", 500, 0), ("many", 60_000, 1 << 15)] {
            let mut expected = BTreeSet::new();
            let mut sorters: Vec<Sorter> =
                (0..3).map(|_| Sorter::new(memory, spill.clone())).collect();
            let mut seed = 1u64;
            for k in 0..count {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
                let high = [0, seed >> 58, u64::MAX][k % 3];
                let number = u128::from(high) << 64 | u128::from(seed >> (k % 64));
                expected.insert(number);
                sorters[k % 3].push(number).unwrap();
                sorters[(k + 1) % 3].push(number).unwrap();
            }
            let spilled = sorters.iter().any(|sorter| !sorter.runs.is_empty());
            assert_eq!(spilled, count > 1000, "{what}");
            let mut merged =
                merge(sorters.into_iter().map(Sorter::finish).collect(), 1 << 20).unwrap();
            for number in expected {
                assert_eq!(merged.next().unwrap(), Some(number), "{what}");
            }
            assert_eq!(merged.next().unwrap(), None, "{what}");
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "no litter");
        }
    }
}
