//! What the pagers of this machine are doing, for people who watch: `extmem top`.
//!
//! ```text
//!   Monitor::start(&pager, dir) --twice a second--> dir/extmem-<pid>-<n>.json --> read(dir) --> top
//! ```
//!
//! A process that wants to be seen writes what its pager has counted into a file of its own in a
//! directory that was named to it. Nobody is asked, so nobody can be held up: a file is replaced as a
//! whole, readable by its owner alone, and goes with its writer. One whose writer was killed is passed
//! over once it is [`STALE`] old, and removed by the next writer that finds it a minute old.
//!
//! | variable | meaning |
//! | --- | --- |
//! | `EXTMEM_STATS` | the directory; `extmem cat` and `tdb` write into it, `extmem top` reads it |

use std::{
    env, fs,
    fs::OpenOptions,
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use pager::{Pager, RegionReport};
use serde::{Deserialize, Serialize};
use tracing::warn;

/// How often a file is written.
pub const INTERVAL: Duration = Duration::from_millis(500);

/// A file that was not written for so long has no writer any more.
pub const STALE: Duration = Duration::from_secs(5);

/// Such files are removed when they are as old as this.
const REMOVED_AFTER: Duration = Duration::from_secs(60);

/// Regions that one file tells of: those with the most requests.
pub const REGIONS_MAX: usize = 256;

/// Files that are read, and files that are looked at.
const FILES_MAX: usize = 1024;
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Bytes of a name.
const NAME_MAX: usize = 1024;

/// What one pager has counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Snapshot {
    /// The process.
    pub pid: u32,
    /// Its program's name.
    pub program: String,
    /// When it was written, in microseconds from 1970.
    pub at_us: u64,
    /// The budget, in bytes.
    pub budget: u64,
    /// Of it, bytes in use.
    pub used: u64,
    /// Of it, bytes that guards pin.
    pub pinned: u64,
    /// The open regions, at most [`REGIONS_MAX`].
    pub regions: Vec<RegionCount>,
    /// Open regions that were left out.
    pub regions_left_out: u64,
}

/// What one region has counted: the numbers of [`pager::RegionStats`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(default)]
pub struct RegionCount {
    /// The object's name.
    pub name: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// Bytes of a unit.
    pub unit_bytes: u64,
    /// Page faults.
    pub faults: u64,
    /// Loads.
    pub loads: u64,
    /// Of these, those that found everything in place.
    pub load_hits: u64,
    /// Range requests.
    pub gets: u64,
    /// Bytes that came.
    pub bytes_fetched: u64,
    /// Units in place now.
    pub units_resident: u64,
    /// Units given up.
    pub units_evicted: u64,
    /// Units fetched before anybody asked.
    pub prefetched: u64,
    /// Of these, units that somebody then asked for.
    pub prefetch_used: u64,
    /// Of these, units that were given up unasked.
    pub prefetch_unused: u64,
    /// Requests that failed.
    pub errors: u64,
}

impl RegionCount {
    fn of(report: &RegionReport) -> RegionCount {
        let stats = &report.stats;
        let mut end = report.name.len().min(NAME_MAX);
        while !report.name.is_char_boundary(end) {
            end -= 1;
        }
        RegionCount {
            name: report.name[..end].to_owned(),
            bytes: report.len,
            unit_bytes: report.unit_bytes,
            faults: stats.faults,
            loads: stats.loads,
            load_hits: stats.load_hits,
            gets: stats.gets,
            bytes_fetched: stats.bytes_fetched,
            units_resident: stats.units_resident,
            units_evicted: stats.units_evicted,
            prefetched: stats.prefetched,
            prefetch_used: stats.prefetch_used,
            prefetch_unused: stats.prefetch_unused,
            errors: stats.errors,
        }
    }
}

impl Snapshot {
    /// What `pager` has counted so far.
    pub fn take(pager: &Pager) -> Snapshot {
        let mut regions: Vec<RegionCount> = pager.regions().iter().map(RegionCount::of).collect();
        // Those that cost most stay. The order of opening among equals.
        regions.sort_by_key(|region| std::cmp::Reverse(region.gets));
        let left_out = regions.len().saturating_sub(REGIONS_MAX) as u64;
        regions.truncate(REGIONS_MAX);
        let budget = pager.budget();
        Snapshot {
            pid: std::process::id(),
            program: program(),
            at_us: now_us(),
            budget: budget.limit(),
            used: budget.used(),
            pinned: budget.pinned(),
            regions,
            regions_left_out: left_out,
        }
    }
}

/// The name that this process goes by.
fn program() -> String {
    let name = env::args_os().next().map(PathBuf::from);
    let name = name.as_ref().and_then(|path| path.file_name()).map(|name| name.to_string_lossy());
    name.map_or_else(|| "?".to_owned(), |name| name.chars().take(64).collect())
}

fn now_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

/// Writes what a pager counts as long as it lives. Keeps the pager alive.
#[derive(Debug)]
pub struct Monitor {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
    path: PathBuf,
}

impl Monitor {
    /// Begins to write what `pager` counts into `directory`, which is made where it is not there, for
    /// its owner alone.
    ///
    /// # Errors
    /// What the system says to the directory, to the first file, and to a thread.
    pub fn start(pager: &Pager, directory: &Path) -> io::Result<Monitor> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let mut builder = fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.recursive(true).create(directory)?;
        remove_stale(directory);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(format!("extmem-{}-{n}.json", std::process::id()));
        write(&path, &Snapshot::take(pager))?;
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let (stopped, place, pager) = (stop.clone(), path.clone(), pager.clone());
        let thread = std::thread::Builder::new().name("extmem-stats".to_owned());
        let thread = thread.spawn(move || {
            let (stop, wake) = &*stopped;
            let mut told = false;
            let mut stop = stop.lock().unwrap_or_else(PoisonError::into_inner);
            loop {
                let waited = wake.wait_timeout_while(stop, INTERVAL, |stop| !*stop);
                stop = waited.unwrap_or_else(PoisonError::into_inner).0;
                if *stop {
                    return;
                }
                // Once: a full disk stays full.
                if let Err(error) = write(&place, &Snapshot::take(&pager))
                    && !std::mem::replace(&mut told, true)
                {
                    warn!("{}: {error}", place.display());
                }
            }
        })?;
        Ok(Monitor { stop, thread: Some(thread), path })
    }

    /// The same, into the directory that `EXTMEM_STATS` names; `None` if it names none. That nobody can
    /// watch is no reason not to work: what fails is told to the log.
    pub fn of_environment(pager: &Pager) -> Option<Monitor> {
        let directory = PathBuf::from(env::var_os("EXTMEM_STATS").filter(|name| !name.is_empty())?);
        Monitor::start(pager, &directory)
            .inspect_err(|error| warn!("EXTMEM_STATS={}: {error}", directory.display()))
            .ok()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        *self.stop.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.1.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = fs::remove_file(&self.path);
    }
}

/// Replaces the file at `path` as a whole.
fn write(path: &Path, snapshot: &Snapshot) -> io::Result<()> {
    let fresh = path.with_extension("new");
    // Left behind by a process of the same number that was killed; or put there by somebody else.
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    file.write_all(&serde_json::to_vec(snapshot)?)?;
    drop(file);
    fs::rename(&fresh, path)
}

/// The files of monitors in `directory`, with their pids.
fn files(directory: &Path) -> io::Result<Vec<(u32, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)?.take(FILES_MAX) {
        let entry = entry?;
        let name = entry.file_name();
        let middle = name.to_str().and_then(|name| name.strip_prefix("extmem-"));
        let middle = middle.and_then(|name| name.strip_suffix(".json"));
        let pid = middle.and_then(|middle| middle.split_once('-')?.0.parse().ok());
        if let Some(pid) = pid {
            found.push((pid, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

fn age(path: &Path) -> Option<Duration> {
    let written = fs::symlink_metadata(path).and_then(|meta| meta.modified()).ok()?;
    // Of the future, for a clock that was set back: not old.
    Some(SystemTime::now().duration_since(written).unwrap_or_default())
}

/// Removes what killed processes have left.
fn remove_stale(directory: &Path) {
    for (_, path) in files(directory).unwrap_or_default() {
        if age(&path).is_some_and(|age| age > REMOVED_AFTER) {
            let _ = fs::remove_file(path);
        }
    }
}

/// What the monitors of `directory` have written last, in the order of their processes. Files that are
/// stale, or that no monitor wrote, are passed over.
///
/// # Errors
/// What the system says to the directory.
pub fn read(directory: &Path) -> io::Result<Vec<Snapshot>> {
    let fresh = |path: &PathBuf| age(path).is_some_and(|age| age <= STALE);
    let files = files(directory)?.into_iter().filter(|(_, path)| fresh(path));
    Ok(files.filter_map(|(_, path)| read_one(&path).ok()).collect())
}

fn read_one(path: &Path) -> io::Result<Snapshot> {
    // Neither through a link nor into a pipe that nobody fills.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(ErrorKind::InvalidData.into());
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(ErrorKind::InvalidData.into());
    }
    Ok(serde_json::from_slice(&bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;

    fn pager() -> Pager {
        Pager::builder().budget_bytes(4 << 20).unit_bytes(4096).build().expect("a pager")
    }

    #[test]
    fn a_pager_is_seen_as_long_as_it_is_watched() {
        let folder = tempfile::tempdir().expect("a folder");
        let directory = folder.path().join("new");
        let pager = pager();
        let region = pager.open(Memory::new("x", vec![0; 100_000])).expect("a region");
        let other = pager.open(Memory::new("y", vec![0; 10])).expect("a region");
        drop(region.load(0..5000).expect("bytes"));
        drop(region.load(0..1).expect("bytes"));
        let monitor = Monitor::start(&pager, &directory).expect("a monitor");
        let second = Monitor::start(&pager, &directory).expect("another");
        let seen = read(&directory).expect("a directory");
        assert_eq!(seen.len(), 2);
        let snapshot = &seen[0];
        assert_eq!((snapshot.pid, snapshot.budget), (std::process::id(), 4 << 20));
        assert_eq!(snapshot.used, pager.budget().used());
        let names: Vec<&str> = snapshot.regions.iter().map(|region| &region.name[..]).collect();
        assert_eq!(names, ["memory:x", "memory:y"]);
        let (count, stats) = (&snapshot.regions[0], region.stats());
        assert_eq!((count.loads, count.load_hits), (2, 1));
        assert_eq!((count.gets, count.bytes_fetched), (stats.gets, stats.bytes_fetched));
        // What is closed is not told of any more.
        drop(other);
        assert_eq!(Snapshot::take(&pager).regions.len(), 1);
        drop(second);
        assert_eq!(read(&directory).expect("a directory").len(), 1);
        drop(monitor);
        assert_eq!(fs::read_dir(&directory).expect("a directory").count(), 0, "nothing is left");
    }

    #[test]
    fn files_of_strangers_are_passed_over() {
        let folder = tempfile::tempdir().expect("a folder");
        let place = |name: &str| folder.path().join(name);
        let monitor = Monitor::start(&pager(), folder.path()).expect("a monitor");
        let own = read(folder.path()).expect("a directory");
        assert_eq!(own.len(), 1);
        fs::write(place("extmem-1-0.json"), "{").expect("a file");
        fs::write(place("extmem-2-0.json"), "[1e999]").expect("a file");
        fs::write(place("extmem-3-0.json"), vec![b' '; FILE_BYTES_MAX as usize + 1])
            .expect("a file");
        fs::write(place("extmem-x-0.json"), "{}").expect("a file");
        fs::write(place("passwords"), "secret").expect("a file");
        std::os::unix::fs::symlink(place("passwords"), place("extmem-4-0.json")).expect("a link");
        fs::create_dir(place("extmem-5-0.json")).expect("a folder");
        let pipe = place("extmem-6-0.json");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).expect("a pipe");
        let deep = "[".repeat(100_000);
        fs::write(place("extmem-7-0.json"), deep).expect("a file");
        let seen = read(folder.path()).expect("a directory");
        assert_eq!(seen.iter().map(|one| one.pid).collect::<Vec<_>>(), [std::process::id()]);
        drop(monitor);
        assert!(read(&place("none")).is_err());
    }

    #[test]
    fn what_killed_processes_left_is_passed_over_and_then_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let left = folder.path().join("extmem-1-0.json");
        write(&left, &Snapshot { pid: 1, ..Snapshot::default() }).expect("a file");
        assert_eq!(read(folder.path()).expect("a directory").len(), 1);
        let back = |by: Duration| {
            let file = fs::File::options().write(true).open(&left).expect("a file");
            file.set_modified(SystemTime::now() - by).expect("a time");
        };
        back(STALE + Duration::from_secs(1));
        assert_eq!(read(folder.path()).expect("a directory").len(), 0);
        drop(Monitor::start(&pager(), folder.path()).expect("a monitor"));
        assert!(left.exists(), "its writer may only be slow");
        back(REMOVED_AFTER + Duration::from_secs(1));
        drop(Monitor::start(&pager(), folder.path()).expect("a monitor"));
        assert!(!left.exists());
    }

    /// Another process's file of the same name is not written through.
    #[test]
    fn a_link_in_the_way_is_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let (precious, path) =
            (folder.path().join("precious"), folder.path().join("extmem-1-0.json"));
        fs::write(&precious, "precious").expect("a file");
        for link in [&path, &path.with_extension("new")] {
            std::os::unix::fs::symlink(&precious, link).expect("a link");
        }
        write(&path, &Snapshot::default()).expect("a file");
        assert_eq!(fs::read_to_string(&precious).expect("a file"), "precious");
        assert!(!fs::symlink_metadata(&path).expect("a file").is_symlink());
    }
}
