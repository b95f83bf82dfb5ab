//! Making an index.
//!
//! ```text
//!   trails --threads--> (item, trail) --sorted--> lists and slots of each field
//!   values --threads--> (hash, number) --sorted--> table of each field --> head --> rename
//! ```
//!
//! An item is in a trail if an event has it. Events are stored as changes, so it is enough to look
//! at those; only NULL needs care, which a field also has until its first change. Of NULL the trails
//! are noted that never have it: these are few where fields are many.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
};

use super::{
    layout::{self, Entry, Head, table_width, width},
    pages::{PAGE, PAYLOAD, PageWriter},
    postings::{ListWriter, Written},
    sorter::{Merge, Sorted, Sorter, Spill, merge},
    table,
};
use crate::{
    error::Error,
    item::Item,
    read::{Chunk, Reader},
    storage::Storage,
    write::Unfinished,
};

/// Values that a thread hashes at a time.
const VALUES_CHUNK: u64 = 1 << 16;
/// Slots kept in memory before they are known to need how many bytes.
const SLOTS_MEMORY: usize = 1 << 17;
const MEMORY_MIN: u64 = 1 << 20;

/// Makes the index of a database.
///
/// ```no_run
/// # fn main() -> Result<(), traildb::Error> {
/// use traildb::index::{Build, path_of};
///
/// let reader = traildb::Reader::open("events.tdb")?;
/// let built = Build::new(&reader).threads(4).write(path_of("events.tdb".as_ref()))?;
/// println!("{} bytes", built.bytes);
/// # Ok(())
/// # }
/// ```
pub struct Build<'r, S: Storage> {
    reader: &'r Reader<S>,
    threads: usize,
    memory_bytes: u64,
    temp_dir: Option<PathBuf>,
    on_progress: Box<dyn Fn(Progress) + Send + Sync + 'r>,
}

/// How far the making of an index is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Trails that were read.
    pub trails: u64,
    /// Trails that there are.
    pub trails_total: u64,
    /// Values that were hashed.
    pub values: u64,
    /// Values that there are.
    pub values_total: u64,
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Built {
    /// Size of the index, in bytes.
    pub bytes: u64,
    /// Items of the database that are in a trail, NULLs not counted.
    pub items: u64,
    /// Pairs of such an item and a trail that it is in.
    pub pairs: u64,
}

impl<'r, S: Storage> Build<'r, S> {
    /// The index of `reader`'s database.
    pub fn new(reader: &'r Reader<S>) -> Build<'r, S> {
        Build {
            reader,
            threads: 1,
            memory_bytes: 256 << 20,
            temp_dir: None,
            on_progress: Box::new(|_| {}),
        }
    }

    /// How many threads work. Default: 1. The bytes written do not depend on it.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.clamp(1, 1024);
        self
    }

    /// About how much memory is used, in bytes, at least 1 MiB; beyond it, sorted runs go to
    /// temporary files. Default: 256 MiB. The bytes written do not depend on it.
    #[must_use]
    pub fn memory_bytes(mut self, bytes: u64) -> Self {
        self.memory_bytes = bytes.max(MEMORY_MIN);
        self
    }

    /// Where temporary files go. Default: the folder of the index. They have no names, so nothing
    /// stays behind. Where a file system has no files without names, they have one for a moment
    /// (`.tdbidx-PID-N.tmp`); what a process leaves that is killed just then, the next index that has
    /// its temporary files there removes.
    #[must_use]
    pub fn temp_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.temp_dir = Some(dir.into());
        self
    }

    /// Calls `report` now and then, from any thread.
    #[must_use]
    pub fn on_progress(mut self, report: impl Fn(Progress) + Send + Sync + 'r) -> Self {
        self.on_progress = Box::new(report);
        self
    }

    /// Writes the index to `path`, which it replaces when it is complete.
    ///
    /// # Errors
    /// Those of reading the database, and of writing.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<Built, Error> {
        let path = path.as_ref();
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let failed = |source| Error::file(path, source);
        let spill = Arc::new(Spill::new(self.temp_dir.as_deref().unwrap_or(folder)));
        let unfinished = Unfinished::file(path, true).map_err(failed)?;
        let built = self.write_to(unfinished.as_file(), &spill, &failed)?;
        unfinished.place().map_err(failed)?;
        Ok(built)
    }

    fn write_to(
        &self,
        file: &File,
        spill: &Arc<Spill>,
        failed: &(dyn Fn(io::Error) -> Error + Sync),
    ) -> Result<Built, Error> {
        let fields = self.reader.fields()?.len() as u16;
        let counts: Vec<u64> =
            (1..=fields).map(|field| self.reader.values(field)).collect::<Result<_, _>>()?;
        let head_pages = layout::len(u32::from(fields)).div_ceil(PAYLOAD);
        let out = Positioned { file, at: head_pages * PAGE };
        let mut out = PageWriter::new(BufWriter::with_capacity(1 << 20, out), head_pages);
        let mut built = Built { bytes: 0, items: 0, pairs: 0 };

        let values_total = counts.iter().sum();
        let trails_total = self.reader.trails();
        let progress = |trails, values| Progress { trails, trails_total, values, values_total };
        let pairs = self.sort_trails(spill, failed, &|trails| progress(trails, 0))?;
        let mut pairs = merge(pairs, self.memory_bytes / 4).map_err(failed)?;
        let mut head = pairs.next().map_err(failed)?;
        let mut entries = Vec::with_capacity(counts.len());
        for (field, &count) in (1..).zip(&counts) {
            let mut lists = Lists { pairs: &mut pairs, head: &mut head, spill };
            let entry = lists.write(field, count, trails_total, &mut out, &mut built);
            entries.push(entry.map_err(failed)?);
        }
        // Values are sorted in the memory that these had.
        drop(pairs);

        let hashes =
            self.sort_values(&counts, spill, failed, &|values| progress(trails_total, values))?;
        let mut hashes = merge(hashes, self.memory_bytes / 4).map_err(failed)?;
        let mut head = hashes.next().map_err(failed)?;
        for (field, entry) in (1..).zip(&mut entries) {
            entry.table_at = out.position();
            entry.table_width = table_width(entry.count);
            let next = || match head {
                Some(key) if (key >> 104) as u16 == field => {
                    head = hashes.next()?;
                    Ok(Some(((key >> 40) as u64, key as u64 & ((1 << 40) - 1))))
                }
                _ => Ok(None),
            };
            let slots = table::write(entry.count, next, |bytes| out.write(bytes));
            entry.table_slots = slots.map_err(failed)?;
        }

        let len = out.position();
        let mut out = out.finish().map_err(failed)?;
        out.flush().map_err(failed)?;
        built.bytes = len.div_ceil(PAYLOAD) * PAGE;
        let identity = self.reader.identity()?;
        let head = Head { fields: u32::from(fields), identity, trails: trails_total, len };
        let out = Positioned { file, at: 0 };
        let mut out = PageWriter::new(BufWriter::new(out), 0);
        out.write(&head.write(&entries)).map_err(failed)?;
        out.finish().and_then(|mut out| out.flush()).map_err(failed)?;
        Ok(built)
    }

    /// Pairs of items and the trails they are in: field and number high, trail low. Under number 0,
    /// the trails that never have NULL.
    fn sort_trails(
        &self,
        spill: &Arc<Spill>,
        failed: &(dyn Fn(io::Error) -> Error + Sync),
        progress: &(dyn Fn(u64) -> Progress + Sync),
    ) -> Result<Vec<Sorted>, Error> {
        let workers = Workers::new(self.threads, self.memory_bytes, spill);
        let scan = self.reader.view().only_changes().scan().threads(self.threads);
        let done = AtomicU64::new(0);
        scan.run(
            |chunk| {
                let mut worker = workers.take();
                let read = worker.trails(chunk, failed);
                workers.put(worker);
                let read = done.fetch_add(read?, Ordering::Relaxed);
                (self.on_progress)(progress(read));
                Ok(())
            },
            |()| Ok::<(), Error>(()),
        )?;
        (self.on_progress)(progress(done.into_inner()));
        Ok(workers.finish())
    }

    /// Hashes and numbers of all values: field, hash, number.
    fn sort_values(
        &self,
        counts: &[u64],
        spill: &Arc<Spill>,
        failed: &(dyn Fn(io::Error) -> Error + Sync),
        progress: &(dyn Fn(u64) -> Progress + Sync),
    ) -> Result<Vec<Sorted>, Error> {
        let chunks = (1u16..).zip(counts).flat_map(|(field, &count)| {
            (0..count.div_ceil(VALUES_CHUNK)).map(move |chunk| {
                let start = 1 + chunk * VALUES_CHUNK;
                (field, start..(count + 1).min(start + VALUES_CHUNK))
            })
        });
        let chunks = Mutex::new(chunks);
        let workers = Workers::new(self.threads, self.memory_bytes, spill);
        let (done, failures) = (AtomicU64::new(0), AtomicUsize::new(0));
        let work = || -> Result<(), Error> {
            let mut worker = workers.take();
            let next = || chunks.lock().unwrap_or_else(PoisonError::into_inner).next();
            while let Some((field, numbers)) = next()
                && failures.load(Ordering::Relaxed) == 0
            {
                let n = numbers.end - numbers.start;
                let mut pushed = Ok(());
                let read = self.reader.each_value(field, numbers, |number, value| {
                    let hash = u128::from(table::hash(value));
                    let key = u128::from(field) << 104 | hash << 40 | u128::from(number);
                    if pushed.is_ok() {
                        pushed = worker.sorter.push(key);
                    }
                });
                if let Err(error) = read.and(pushed.map_err(failed)) {
                    failures.fetch_add(1, Ordering::Relaxed);
                    return Err(error);
                }
                (self.on_progress)(progress(n + done.fetch_add(n, Ordering::Relaxed)));
            }
            workers.put(worker);
            Ok(())
        };
        let results: Vec<Result<(), Error>> = thread::scope(|scope| {
            let threads: Vec<_> = (1..self.threads).map(|_| scope.spawn(work)).collect();
            let first = work();
            let rest = threads.into_iter().map(|thread| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            std::iter::once(first).chain(rest).collect()
        });
        results.into_iter().collect::<Result<(), Error>>()?;
        Ok(workers.finish())
    }
}

impl<S: Storage> std::fmt::Debug for Build<'_, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Build").field("threads", &self.threads).finish_non_exhaustive()
    }
}

/// A file from some place on.
struct Positioned<'f> {
    file: &'f File,
    at: u64,
}

impl Write for Positioned<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write_at(bytes, self.at)?;
        self.at += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the threads work with, while they do not.
struct Workers {
    idle: Mutex<Vec<Worker>>,
    memory_bytes: u64,
    spill: Arc<Spill>,
}

impl Workers {
    /// Half of the memory is for numbers: sorting and reading take their part.
    fn new(threads: usize, memory_bytes: u64, spill: &Arc<Spill>) -> Workers {
        let memory_bytes = memory_bytes / 2 / threads as u64;
        Workers { idle: Mutex::default(), memory_bytes, spill: spill.clone() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Worker>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Worker {
        let idle = self.lock().pop();
        idle.unwrap_or_else(|| Worker {
            sorter: Sorter::new(self.memory_bytes, self.spill.clone()),
            first: Vec::new(),
            nulled: Vec::new(),
        })
    }

    fn put(&self, worker: Worker) {
        self.lock().push(worker);
    }

    fn finish(self) -> Vec<Sorted> {
        let workers = self.idle.into_inner().unwrap_or_else(PoisonError::into_inner);
        workers.into_iter().map(|worker| worker.sorter.finish()).collect()
    }
}

struct Worker {
    sorter: Sorter,
    /// Fields that the first event of the trail gives a value.
    first: Vec<u16>,
    /// Fields that become NULL later.
    nulled: Vec<u16>,
}

impl Worker {
    /// Notes the items of the trails of a chunk. Returns how many trails there were.
    fn trails<S: Storage>(
        &mut self,
        chunk: &mut Chunk<'_, '_, S>,
        failed: &(dyn Fn(io::Error) -> Error + Sync),
    ) -> Result<u64, Error> {
        let mut trails = 0;
        while let Some(cursor) = chunk.next_trail()? {
            let trail = cursor.id().unwrap_or_default();
            let pair = |item: Item| {
                u128::from(u64::from(item.field()) << 40 | item.value()) << 64 | u128::from(trail)
            };
            self.first.clear();
            self.nulled.clear();
            let mut is_first = true;
            while let Some(event) = cursor.next_event()? {
                for &item in event.items {
                    if item.is_null() {
                        self.nulled.push(item.field());
                        continue;
                    }
                    if is_first {
                        self.first.push(item.field());
                    }
                    self.sorter.push(pair(item)).map_err(failed)?;
                }
                is_first = false;
                // A trail that goes back and forth must not take memory for each time.
                if self.nulled.len() > 1 << 16 {
                    self.nulled.sort_unstable();
                    self.nulled.dedup();
                }
            }
            self.nulled.sort_unstable();
            for &field in &self.first {
                if self.nulled.binary_search(&field).is_err() {
                    self.sorter.push(pair(Item::new(field, 0))).map_err(failed)?;
                }
            }
            trails += 1;
        }
        Ok(trails)
    }
}

/// Turns sorted pairs into lists and slots.
struct Lists<'m> {
    pairs: &'m mut Merge,
    head: &'m mut Option<u128>,
    spill: &'m Spill,
}

impl Lists<'_> {
    fn write<W: Write>(
        &mut self,
        field: u16,
        count: u64,
        trails: u64,
        out: &mut PageWriter<W>,
        built: &mut Built,
    ) -> io::Result<Entry> {
        let lists_at = out.position();
        let mut list = ListWriter::new(trails);
        let mut slots = Slots::default();
        let mut bytes = Vec::new();
        for value in 0..=count {
            let item = u64::from(field) << 40 | value;
            while let Some(pair) = self.head.filter(|pair| (pair >> 64) as u64 == item) {
                list.push(pair as u64);
                built.pairs += u64::from(value > 0);
                *self.head = self.pairs.next()?;
            }
            bytes.clear();
            let at = out.position() - lists_at;
            let slot = match list.finish(value == 0, &mut bytes) {
                Written::None => 0,
                Written::One(trail) => trail << 1 | 1,
                Written::List => (at + 1) << 1,
            };
            built.items += u64::from(value > 0 && slot > 0);
            out.write(&bytes)?;
            slots.push(slot, self.spill)?;
        }
        let lists_len = out.position() - lists_at;
        let slots_at = out.position();
        let slot_width = width(slots.max);
        slots.write(slot_width, |bytes| out.write(bytes))?;
        Ok(Entry { count, lists_at, lists_len, slots_at, slot_width, ..Entry::default() })
    }
}

/// Slots, whose width is known when all are.
#[derive(Default)]
struct Slots {
    memory: Vec<u64>,
    file: Option<(File, u64)>,
    max: u64,
}

impl Slots {
    fn push(&mut self, slot: u64, spill: &Spill) -> io::Result<()> {
        self.max = self.max.max(slot);
        self.memory.push(slot);
        if self.memory.len() >= SLOTS_MEMORY {
            let (file, end) = match &mut self.file {
                Some(file) => file,
                None => self.file.insert((spill.file()?, 0)),
            };
            let bytes: Vec<u8> = self.memory.iter().flat_map(|slot| slot.to_le_bytes()).collect();
            file.write_all_at(&bytes, *end)?;
            *end += bytes.len() as u64;
            self.memory.clear();
        }
        Ok(())
    }

    fn write(self, width: u64, mut put: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        if let Some((file, end)) = self.file {
            let mut bytes = vec![0; SLOTS_MEMORY * 8];
            for at in (0..end).step_by(bytes.len()) {
                file.read_exact_at(&mut bytes, at)?;
                bytes.chunks_exact(8).try_for_each(|slot| put(&slot[..width as usize]))?;
            }
        }
        self.memory.iter().try_for_each(|slot| put(&slot.to_le_bytes()[..width as usize]))
    }
}
