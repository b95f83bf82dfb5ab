//! Which pages of a range were written: asynchronous write protection (Linux 6.7).
//!
//! ```text
//!   protect ---> first write to a page ----> take: written since, and protected anew
//!                the kernel unprotects it    PAGEMAP_SCAN, in one step: no write falls between
//!                without an event
//! ```
//!
//! A feature bit says that the kernel has it; a seccomp filter or a missing `/proc` may still be in
//! the way, so it is tried.

use std::{
    fs::File,
    io,
    ops::Range,
    os::fd::AsRawFd,
    sync::{Arc, OnceLock},
};

use userfaultfd::RegisterMode;

use super::{
    mapping::{Mapping, PAGE},
    uffd::{Descriptor, FEATURE_WP_ASYNC, FEATURE_WP_UNPOPULATED, Route, handshake, open_raw},
};

/// `PM_SCAN_WP_MATCHING` and `PM_SCAN_CHECK_WPASYNC`, from `linux/fs.h`: protect what is listed, and
/// fail where the range is not registered for it.
const SCAN_FLAGS: u64 = 1 | 1 << 1;
const PAGE_IS_WRITTEN: u64 = 1 << 1;
/// A page that is in neither state is not there: the kernel counts it as written where its mark is gone, as the
/// discard of a whole span has it.
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;

/// Ranges that one call lists.
const RANGES: usize = 64;

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

#[repr(C)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

nix::ioctl_readwrite!(pagemap_scan, b'f', 16, ScanArg);

/// A mapping whose writes are seen.
pub(crate) struct Tracked {
    mapping: Arc<Mapping>,
    pagemap: Pagemap,
    /// Held: the protection goes with it.
    _descriptor: Descriptor,
}

impl Tracked {
    /// Protects all of `mapping`. Writes from now on are seen, those before are not.
    pub(crate) fn new(mapping: Arc<Mapping>) -> io::Result<Tracked> {
        let features = FEATURE_WP_ASYNC | FEATURE_WP_UNPOPULATED;
        // The kernel serves these faults itself, those of system calls too.
        let fd = open_raw(Route::UserModeOnly)?;
        handshake(&fd, features)?;
        let descriptor = Descriptor::new(fd, features);
        descriptor.register_for(mapping.addr(), mapping.len(), RegisterMode::WRITE_PROTECT)?;
        let pagemap = Pagemap::open()?;
        let tracked = Tracked { mapping, pagemap, _descriptor: descriptor };
        tracked.take()?;
        Ok(tracked)
    }

    /// The pages that were written since the last time: see [`Pagemap::take_written`].
    pub(crate) fn take(&self) -> io::Result<Vec<Range<usize>>> {
        self.pagemap.take_written(&self.mapping, 0..self.mapping.len())
    }
}

/// The kernel's books of this process's pages.
pub(crate) struct Pagemap(File);

impl Pagemap {
    pub(crate) fn open() -> io::Result<Pagemap> {
        Ok(Pagemap(File::open("/proc/self/pagemap")?))
    }

    /// The pages of `range`, page aligned and in `mapping`, that are there and were written since they were
    /// protected, as ranges of bytes from the mapping's start, in ascending order. Each is protected anew
    /// before this returns; a write that happens meanwhile is in this answer or in the next.
    pub(crate) fn take_written(
        &self,
        mapping: &Mapping,
        range: Range<usize>,
    ) -> io::Result<Vec<Range<usize>>> {
        assert!(range.start <= range.end && range.end <= mapping.len());
        let base = mapping.addr() as u64;
        let end = base + range.end as u64;
        let (mut at, mut written) = (base + range.start as u64, Vec::<Range<usize>>::new());
        while at < end {
            let mut found = [PageRegion::default(); RANGES];
            let mut arg = ScanArg {
                size: size_of::<ScanArg>() as u64,
                flags: SCAN_FLAGS,
                start: at,
                end,
                walk_end: 0,
                vec: found.as_mut_ptr() as u64,
                vec_len: RANGES as u64,
                max_pages: 0,
                category_inverted: 0,
                category_mask: PAGE_IS_WRITTEN,
                category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
                return_mask: PAGE_IS_WRITTEN,
            };
            // SAFETY: `arg` and the ranges it points to are valid and exclusive during the call, which
            // writes at most `vec_len` of them. Protecting pages changes no byte of theirs.
            let count = unsafe { pagemap_scan(self.0.as_raw_fd(), &mut arg) };
            let count = usize::try_from(count.map_err(io::Error::from)?).unwrap_or(0);
            for found in &found[..count.min(RANGES)] {
                let found = (found.start - base) as usize..(found.end - base) as usize;
                match written.last_mut() {
                    Some(last) if last.end == found.start => last.end = found.end,
                    _ => written.push(found),
                }
            }
            if arg.walk_end <= at {
                return Err(io::Error::other("PAGEMAP_SCAN does not advance"));
            }
            at = arg.walk_end;
        }
        Ok(written)
    }
}

/// Whether writes are seen here. Tried once.
pub(crate) fn are_seen() -> bool {
    static SEEN: OnceLock<bool> = OnceLock::new();
    *SEEN.get_or_init(|| try_once().unwrap_or(false))
}

fn try_once() -> io::Result<bool> {
    const PAGES: usize = 4;
    let mapping = Arc::new(Mapping::reserve(PAGES * PAGE, PAGE)?);
    let tracked = Tracked::new(mapping.clone())?;
    write(&mapping, 2);
    let expected = Range { start: 2 * PAGE, end: 3 * PAGE };
    Ok(tracked.take()? == [expected] && tracked.take()?.is_empty())
}

/// Writes to a page of an anonymous mapping.
fn write(mapping: &Mapping, page: usize) {
    assert!(page < mapping.len() / PAGE);
    // SAFETY: the byte lies inside the mapping, which is writable; nobody has a reference to it.
    unsafe { mapping.base().as_ptr().add(page * PAGE).write_volatile(1) };
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::sys::{ModeRequest, open_descriptor};

    fn pages_of(ranges: &[Range<usize>]) -> BTreeSet<usize> {
        ranges.iter().flat_map(|range| range.start / PAGE..range.end / PAGE).collect()
    }

    fn tracked(pages: usize) -> Option<(Arc<Mapping>, Tracked)> {
        if !are_seen() {
            let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
            assert!(!ci, "CI needs asynchronous write protection");
            println!("left out: writes: no asynchronous write protection here");
            return None;
        }
        let mapping = Arc::new(Mapping::reserve(pages * PAGE, PAGE).unwrap());
        // Small pages, whatever the system does with large ranges.
        let _ = mapping.advise(0, mapping.len(), libc::MADV_NOHUGEPAGE);
        let tracked = Tracked::new(mapping.clone()).unwrap();
        Some((mapping, tracked))
    }

    #[test]
    fn what_was_written_is_told_once() {
        let Some((mapping, tracked)) = tracked(1024) else { return };
        assert_eq!(tracked.take().unwrap(), []);
        for page in [3, 7, 8, 9, 1023] {
            write(&mapping, page);
        }
        let expected = [3 * PAGE..4 * PAGE, 7 * PAGE..10 * PAGE, 1023 * PAGE..1024 * PAGE];
        assert_eq!(tracked.take().unwrap(), expected);
        assert_eq!(tracked.take().unwrap(), []);
        // Again, and more ranges than one call lists.
        let many: BTreeSet<usize> = (0..1024).step_by(3).collect();
        many.iter().for_each(|page| write(&mapping, *page));
        let told = tracked.take().unwrap();
        assert!(told.len() > 4 * RANGES, "{} ranges", told.len());
        assert_eq!(pages_of(&told), many);
        // Reading what is there is no writing. What is not comes protected, or not.
        // SAFETY: inside the mapping, which is readable.
        unsafe { mapping.base().as_ptr().add(6 * PAGE).read_volatile() };
        assert_eq!(tracked.take().unwrap(), []);
    }

    /// The kernel lists what is not there as written where its mark is gone.
    #[test]
    fn what_left_was_not_written() {
        let Some((mapping, tracked)) = tracked(1024) else { return };
        for page in [3, 600] {
            write(&mapping, page);
        }
        assert_eq!(tracked.take().unwrap().len(), 2);
        mapping.advise(0, mapping.len(), libc::MADV_DONTNEED).unwrap();
        assert_eq!(tracked.take().unwrap(), []);
    }

    /// What is written while the pages are being listed is in one answer or in the next.
    #[test]
    fn no_write_falls_between_two_answers() {
        let Some((mapping, tracked)) = tracked(512) else { return };
        let mut told = BTreeSet::new();
        let written: BTreeSet<usize> = std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let pages = (0..20_000usize).map(|n| n * 7_919 % 512).filter(|page| page % 5 > 0);
                pages.inspect(|page| write(&mapping, *page)).collect()
            });
            while !writer.is_finished() {
                told.extend(pages_of(&tracked.take().unwrap()));
            }
            writer.join().unwrap()
        });
        told.extend(pages_of(&tracked.take().unwrap()));
        assert_eq!(told, written);
        // Each page written after its last answer, once more.
        written.iter().for_each(|page| write(&mapping, *page));
        assert_eq!(pages_of(&tracked.take().unwrap()), written);
    }

    #[test]
    fn the_probe_says_whether_writes_are_seen() {
        let probe = open_descriptor(ModeRequest::Auto).probe;
        let has_it = probe.features & FEATURE_WP_ASYNC != 0;
        assert_eq!(probe.can_track_writes, has_it && are_seen());
    }
}
