//! Units that are put in place by mapping others over what is there: what is left where there is no
//! userfaultfd.
//!
//! ```text
//!   closed (PROT_NONE) --install--> pages of a copy, moved there at once (mremap)
//!        ^   |                          |
//!        |   +--fail--> a page that     |
//!        |    raises SIGBUS (a map of   |
//!        |    a file without bytes)     |
//!        +---------- discard -----------+
//! ```
//!
//! A touch of what is closed raises SIGSEGV, which [`signal`](super::signal) handles. Each change is one call
//! of the kernel, so that no thread sees half of a unit. A unit that is in place is a mapping of its own, and
//! so may be what lies between two: of these a process has some 65,530 (`vm.max_map_count`), of which units
//! take three quarters at most.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    ops::Range,
    os::fd::{AsRawFd, BorrowedFd},
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use super::{
    mapping::{HUGE, Mapping},
    port::Port,
    signal::Line,
};
use crate::{
    frame::Frame,
    sync::{Arc, Mutex, MutexGuard, lock, try_lock},
};

/// Mappings that a unit in place may take: its own, and what is closed behind it.
const MAPPINGS_PER_UNIT: u64 = 2;
/// Units of a region that raise SIGBUS at a time. The oldest of more are closed: who touches them has them
/// asked for again.
const FAILED_MAX: usize = 1024;

/// Units in place, or failed, of all regions of the process.
static UNITS: AtomicU64 = AtomicU64::new(0);

/// None of the units that were counted is in this process, which was forked.
pub(super) fn forget_units() {
    UNITS.store(0, Relaxed);
}

/// The most units that may be in place at a time in this process.
pub(crate) fn units_max() -> u64 {
    static MOST: OnceLock<u64> = OnceLock::new();
    *MOST.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap_or_default();
        let mappings: u64 = text.trim().parse().unwrap_or(65_530);
        mappings / 4 * 3 / MAPPINGS_PER_UNIT
    })
}

/// Installs, discards and fails the units of one region.
pub(crate) struct RemapPort {
    line: Arc<Line>,
    can_fail: bool,
    frees_tables: bool,
    open: Mutex<Open>,
}

/// What of a region is not closed.
#[derive(Default)]
struct Open {
    /// By offset: the length, and whether touches raise SIGBUS.
    units: BTreeMap<usize, (usize, bool)>,
    /// Offsets of units that failed, the oldest first. Some may have been put in place since.
    failed: VecDeque<usize>,
}

impl RemapPort {
    /// For the regions of the pager that hears of faults by `line`.
    pub(crate) fn new(line: Arc<Line>, poison: bool, frees_tables: bool) -> RemapPort {
        let can_fail = poison && line.nothing().is_some();
        RemapPort { line, can_fail, frees_tables, open: Mutex::default() }
    }

    /// Has the pages of `copy` be those at `offset`.
    fn put(
        &self,
        mut open: MutexGuard<'_, Open>,
        mapping: &Mapping,
        offset: usize,
        copy: Mapping,
    ) -> io::Result<()> {
        let len = copy.len();
        let is_new = !open.units.contains_key(&offset);
        if is_new {
            count_one()?;
        }
        match move_over(copy, mapping, offset) {
            Ok(()) => open.units.insert(offset, (len, false)),
            Err(error) => {
                uncount(u64::from(is_new));
                return Err(error);
            }
        };
        Ok(())
    }
}

impl Open {
    /// Closes `range`, or of it only `at_least` where the kernel has no mappings left to do so.
    fn close(&mut self, mapping: &Mapping, range: Range<usize>) -> io::Result<()> {
        let inside: Vec<_> =
            self.units.range(range.clone()).map(|(at, (len, _))| *at..at + len).collect();
        if inside.is_empty() {
            return Ok(());
        }
        if close(mapping, range.clone()).is_err() {
            // To cut the edges of the range out of what is closed already takes mappings, which the process
            // has no more of. Each unit is one by itself.
            inside.iter().try_for_each(|unit| close(mapping, unit.clone()))?;
        }
        for unit in inside {
            self.units.remove(&unit.start);
            uncount(1);
        }
        Ok(())
    }
}

impl Port for RemapPort {
    fn install(&self, mapping: &Mapping, offset: usize, frame: Frame) -> io::Result<()> {
        let copy = copy_of(frame.filled())?;
        self.put(lock(&self.open), mapping, offset, copy)
    }

    fn try_install(
        &self,
        mapping: &Mapping,
        offset: usize,
        frame: &mut Frame,
        copied_max: usize,
    ) -> io::Result<bool> {
        if frame.filled().len() > copied_max {
            return Ok(false);
        }
        let Some(open) = try_lock(&self.open) else { return Ok(false) };
        self.put(open, mapping, offset, copy_of(frame.filled())?)?;
        Ok(true)
    }

    fn discard(&self, mapping: &Mapping, offset: usize, len: usize) -> io::Result<()> {
        lock(&self.open).close(mapping, offset..offset + len)
    }

    fn fail(&self, mapping: &Mapping, offset: usize, len: usize) -> io::Result<()> {
        let nothing = match self.line.nothing() {
            Some(nothing) if self.can_fail => nothing,
            _ => return Err(io::ErrorKind::Unsupported.into()),
        };
        let mut open = lock(&self.open);
        if !open.units.contains_key(&offset) {
            // Whatever the limit says, as without this the process ends: there are few of them, and a quarter
            // of the mappings is left for such.
            UNITS.fetch_add(1, Relaxed);
        }
        // Counted whatever becomes of it: after an error the process ends.
        open.units.insert(offset, (len, true));
        map_nothing(mapping, offset..offset + len, nothing)?;
        open.failed.push_back(offset);
        while open.failed.len() > FAILED_MAX {
            let oldest = open.failed.pop_front().expect("more than none");
            // It may have failed again since, and then is among the youngest too.
            let is_last = !open.failed.contains(&oldest);
            if is_last && let Some(&(len, true)) = open.units.get(&oldest) {
                open.close(mapping, oldest..oldest + len)?;
            }
        }
        Ok(())
    }

    fn can_fail(&self) -> bool {
        self.can_fail
    }

    fn wake(&self, mapping: &Mapping, offset: usize, len: usize) -> io::Result<()> {
        let start = mapping.addr() + offset;
        self.line.wake(&(start..start + len));
        Ok(())
    }

    fn settled(&self, mapping: &Mapping, offset: usize, len: usize) {
        let _ = self.wake(mapping, offset, len);
    }

    fn frees_tables(&self) -> bool {
        self.frees_tables
    }
}

impl Drop for RemapPort {
    fn drop(&mut self) {
        uncount(lock(&self.open).units.len() as u64);
    }
}

/// So many units are in place no more. Those of a process that this one was forked from were never counted.
fn uncount(units: u64) {
    let _ = UNITS.fetch_update(Relaxed, Relaxed, |counted| Some(counted.saturating_sub(units)));
}

/// One unit more is in place.
fn count_one() -> io::Result<()> {
    let most = units_max();
    let counted = UNITS.fetch_update(Relaxed, Relaxed, |units| (units < most).then_some(units + 1));
    counted.map(drop).map_err(|_| {
        io::Error::other(format!(
            "{most} units are in place, with which this process has three quarters of its mappings: use \
             larger units, or raise vm.max_map_count"
        ))
    })
}

/// Memory of its own with these bytes, which no forked child has.
fn copy_of(bytes: &[u8]) -> io::Result<Mapping> {
    let is_huge = bytes.len().is_multiple_of(HUGE);
    let copy = match is_huge {
        true => Mapping::reserve(bytes.len(), HUGE)?,
        false => Mapping::populated(bytes.len())?,
    };
    copy.advise(0, copy.len(), libc::MADV_DONTFORK)?;
    if is_huge {
        // One page instead of 512, which is moved as one.
        let _ = copy.advise(0, copy.len(), libc::MADV_HUGEPAGE);
    }
    // SAFETY: the mapping is as long as the bytes, was just made, and nobody else has it.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), copy.base().as_ptr(), bytes.len()) };
    Ok(copy)
}

/// Where a range of a mapping lies.
fn place(mapping: &Mapping, range: &Range<usize>) -> *mut libc::c_void {
    assert!(range.start < range.end && range.end <= mapping.len(), "a part of the mapping");
    mapping.base().as_ptr().wrapping_add(range.start).cast()
}

/// Has the pages of `copy` be those at `offset` of `mapping`, which is a unit that no slice shows.
fn move_over(copy: Mapping, mapping: &Mapping, offset: usize) -> io::Result<()> {
    let len = copy.len();
    let to = place(mapping, &(offset..offset + len));
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: what is replaced lies inside the mapping, where nobody relies on what is there, since it is closed
    // or raises SIGBUS; whoever touches it meanwhile waits for the kernel, and then sees all of the copy.
    let moved = unsafe { libc::mremap(copy.base().as_ptr().cast(), len, len, flags, to) };
    if moved != libc::MAP_FAILED {
        // It has been taken out of the copy's place, where others may map something from now on.
        std::mem::forget(copy);
        return Ok(());
    }
    let error = io::Error::last_os_error();
    // Mostly nothing has changed. But a kernel without memory may have taken away what was there, and nobody
    // else must have that place.
    let flags = CLOSED | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: only what is mapped by nobody is taken, and it is inside of what the mapping's owner unmaps.
    let closed = unsafe { libc::mmap(to, len, libc::PROT_NONE, flags, -1, 0) };
    if closed != libc::MAP_FAILED && closed != to {
        // A kernel that does not know the flag (before 4.17) took the place for a wish.
        // SAFETY: it was just made, and nobody has seen it.
        unsafe { libc::munmap(closed, len) };
    }
    Err(error)
}

/// What closed memory is mapped as.
const CLOSED: libc::c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// Closes `range`: its pages go, and a touch raises SIGSEGV.
fn close(mapping: &Mapping, range: Range<usize>) -> io::Result<()> {
    let (to, len) = (place(mapping, &range), range.len());
    // SAFETY: what is replaced lies inside the mapping. Slices show it still, and whoever reads them there waits
    // until the same bytes are back.
    let closed = unsafe { libc::mmap(to, len, libc::PROT_NONE, CLOSED | libc::MAP_FIXED, -1, 0) };
    if closed == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // As what lies beside it, so that they become one. Should that be refused it is closed all the same.
    // SAFETY: neither changes a byte; a child that has this memory nevertheless finds it closed.
    unsafe {
        libc::madvise(to, len, libc::MADV_DONTFORK);
        libc::munlock(to, len);
    }
    Ok(())
}

/// Has touches of `range` raise SIGBUS.
fn map_nothing(mapping: &Mapping, range: Range<usize>, nothing: BorrowedFd<'_>) -> io::Result<()> {
    let (to, len) = (place(mapping, &range), range.len());
    let flags = libc::MAP_SHARED | libc::MAP_FIXED;
    // SAFETY: as for `close`, but that reading ends there. The file has no byte that could be read, and nobody
    // gives it one.
    let mapped = unsafe { libc::mmap(to, len, libc::PROT_READ, flags, nothing.as_raw_fd(), 0) };
    if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::{super::mapping::PAGE, *};

    const UNIT: usize = 16 * PAGE;

    fn frame(byte: u8) -> Frame {
        let mut frame = Frame::with_capacity(UNIT);
        frame.put(&[byte; UNIT]);
        frame
    }

    /// Whether the kernel may read there, and what there is: unlike this program it gets an error where not.
    fn seen(mapping: &Mapping, offset: usize) -> Option<u8> {
        let (read, write) = nix::unistd::pipe().unwrap();
        // SAFETY: the kernel checks the place, which is part of a mapping that lives.
        let at = unsafe { std::slice::from_raw_parts(mapping.base().as_ptr().add(offset), 1) };
        nix::unistd::write(write, at).ok()?;
        let mut byte = [0];
        nix::unistd::read(read, &mut byte).ok()?;
        Some(byte[0])
    }

    /// Mappings of this process that are within `mapping`.
    fn mappings(mapping: &Mapping) -> usize {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let starts =
            maps.lines().filter_map(|line| usize::from_str_radix(line.split_once('-')?.0, 16).ok());
        starts.filter(|at| (mapping.addr()..mapping.addr() + mapping.len()).contains(at)).count()
    }

    #[test]
    fn units_come_whole_leave_whole_and_fail() {
        let line = Arc::new(Line::open().unwrap());
        let mapping = Mapping::reserve_closed(16 << 20, HUGE).unwrap();
        mapping.advise(0, mapping.len(), libc::MADV_DONTFORK).unwrap();
        let port = RemapPort::new(line.clone(), true, true);
        let all = |offset: usize| [0, PAGE, UNIT - 1].map(|at| seen(&mapping, offset + at));
        assert_eq!(all(0), [None; 3], "closed");
        for round in 1..=3 {
            for unit in [3, 1, 2, 100] {
                port.install(&mapping, unit * UNIT, frame(round)).unwrap();
                assert_eq!(all(unit * UNIT), [Some(round); 3]);
            }
            // What is there is replaced, and so is what failed.
            port.install(&mapping, UNIT, frame(round + 100)).unwrap();
            assert_eq!(all(UNIT), [Some(round + 100); 3]);
            port.fail(&mapping, 5 * UNIT, UNIT).unwrap();
            assert_eq!(all(5 * UNIT), [None; 3]);
            port.install(&mapping, 5 * UNIT, frame(7)).unwrap();
            assert_eq!(all(5 * UNIT), [Some(7); 3]);
            port.discard(&mapping, UNIT, UNIT).unwrap();
            assert_eq!((all(UNIT), all(2 * UNIT)), ([None; 3], [Some(round); 3]));
            // A span, with what is in it; and what is closed already costs nothing.
            port.discard(&mapping, 0, HUGE).unwrap();
            port.discard(&mapping, 0, HUGE).unwrap();
            assert_eq!((all(2 * UNIT), all(100 * UNIT)), ([None; 3], [Some(round); 3]));
            port.discard(&mapping, 100 * UNIT, UNIT).unwrap();
            assert_eq!(mappings(&mapping), 1, "all of it is one again");
        }
    }

    /// A process has only so many mappings, and failures have no budget.
    #[test]
    fn the_oldest_of_many_failures_is_closed_again() {
        let line = Arc::new(Line::open().unwrap());
        let units = FAILED_MAX + 40;
        let mapping = Mapping::reserve_closed((units * UNIT).next_multiple_of(HUGE), HUGE).unwrap();
        let port = RemapPort::new(line, true, true);
        for unit in 0..units {
            port.fail(&mapping, unit * UNIT, UNIT).unwrap();
            if unit == 5 {
                // This one is healed, so that it is not closed when its turn comes.
                port.install(&mapping, 2 * UNIT, frame(9)).unwrap();
            }
        }
        let failed = |unit: usize| lock(&port.open).units.get(&(unit * UNIT)).map(|unit| unit.1);
        assert_eq!((failed(0), failed(39), failed(40)), (None, None, Some(true)));
        assert_eq!((failed(2), seen(&mapping, 2 * UNIT)), (Some(false), Some(9)));
        assert_eq!(lock(&port.open).units.len(), FAILED_MAX + 1);
        assert_eq!(lock(&port.open).failed.len(), FAILED_MAX);
    }

    #[test]
    fn who_may_not_copy_much_leaves_all_as_it_is() {
        let mapping = Mapping::reserve_closed(HUGE, HUGE).unwrap();
        let port = RemapPort::new(Arc::new(Line::open().unwrap()), true, true);
        let mut frame = frame(7);
        assert!(!port.try_install(&mapping, 0, &mut frame, UNIT - 1).unwrap());
        assert_eq!(seen(&mapping, 0), None);
        let held = lock(&port.open);
        assert!(!port.try_install(&mapping, 0, &mut frame, UNIT).unwrap(), "it does not wait");
        drop(held);
        assert!(port.try_install(&mapping, 0, &mut frame, UNIT).unwrap());
        assert_eq!(seen(&mapping, UNIT - 1), Some(7));
        let none = RemapPort::new(Arc::new(Line::open().unwrap()), false, true);
        assert!(!none.can_fail() && none.fail(&mapping, 0, UNIT).is_err());
    }
}
