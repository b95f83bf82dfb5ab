//! What a bare slice writes, found in one of three ways.
//!
//! ```text
//!             before                  a write                        after
//!   Scan      protect, PAGEMAP_SCAN   the kernel notes it            PAGEMAP_SCAN lists the pages
//!   Faults    protect                 a fault: noted, unprotected    the pages that were noted
//!   Units     -                       -                              every unit that is there
//! ```
//!
//! Pages that come while somebody writes are put in place protected, in the first two.

use std::{
    io,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use arc_swap::ArcSwapOption;
use nix::errno::Errno;

use super::{
    mapping::{Mapping, PAGE},
    uffd::Descriptor,
    writes::Pagemap,
};

/// How pages are found that were written through [`MappedMut`](crate::MappedMut).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WriteTracking {
    /// The kernel notes the first write to a page, and lists the pages afterwards: asynchronous write
    /// protection and `PAGEMAP_SCAN` (Linux 6.7).
    Scan,
    /// The first write to a page is a fault that the pager answers (Linux 5.7). A system call that writes
    /// to such a page gets EFAULT in user mode only.
    Faults,
    /// Not at all: each unit that is there afterwards counts as written.
    Units,
}

/// Who watches the writes to one region. Used by one window at a time, and by the fault thread.
pub(crate) struct Watch {
    way: Way,
    /// Pages in these bytes of the mapping are put in place protected.
    from: AtomicUsize,
    upto: AtomicUsize,
}

enum Way {
    Scan(Arc<Pagemap>),
    Faults { uffd: Arc<Descriptor>, written: ArcSwapOption<Bits> },
    Units,
}

/// A bit for each page of a range.
struct Bits {
    first: usize,
    words: Box<[AtomicU64]>,
}

impl Bits {
    fn new(range: &Range<usize>) -> Bits {
        let pages = range.len().div_ceil(PAGE);
        let words = (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Bits { first: range.start / PAGE, words }
    }

    fn set(&self, page: usize) {
        let word = page.checked_sub(self.first).and_then(|page| self.words.get(page / 64));
        if let Some(word) = word {
            word.fetch_or(1 << ((page - self.first) % 64), Ordering::SeqCst);
        }
    }

    fn has(&self, page: usize) -> bool {
        let word = page.checked_sub(self.first).and_then(|page| self.words.get(page / 64));
        word.is_some_and(|word| word.load(Ordering::SeqCst) >> ((page - self.first) % 64) & 1 != 0)
    }

    /// The pages among the bytes `within` that are set, as ranges of bytes.
    fn ranges(&self, within: &Range<usize>) -> Vec<Range<usize>> {
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for page in within.start / PAGE..within.end.div_ceil(PAGE) {
            if !self.has(page) {
                continue;
            }
            let start = page * PAGE;
            match ranges.last_mut() {
                Some(last) if last.end == start => last.end += PAGE,
                _ => ranges.push(start..start + PAGE),
            }
        }
        ranges
    }
}

impl Watch {
    pub(crate) fn by_scan(pagemap: Arc<Pagemap>) -> Watch {
        Watch::new(Way::Scan(pagemap))
    }

    pub(crate) fn by_faults(uffd: Arc<Descriptor>) -> Watch {
        Watch::new(Way::Faults { uffd, written: ArcSwapOption::empty() })
    }

    pub(crate) fn by_units() -> Watch {
        Watch::new(Way::Units)
    }

    fn new(way: Way) -> Watch {
        Watch { way, from: AtomicUsize::new(0), upto: AtomicUsize::new(0) }
    }

    /// Whether it tells a page that was written from one that is only there.
    pub(crate) fn tells_pages(&self) -> bool {
        !matches!(self.way, Way::Units)
    }

    /// Whether the unit at `offset` is to be put in place protected. Asked under the lock of its span.
    pub(crate) fn protects(&self, offset: usize) -> bool {
        (self.from.load(Ordering::SeqCst)..self.upto.load(Ordering::SeqCst)).contains(&offset)
    }

    /// The pages of `range`, whole units, are about to be written. What is put in place there from now on is
    /// protected; what is there already [`protect`](Watch::protect) sees to.
    pub(crate) fn start(&self, range: &Range<usize>) {
        if let Way::Faults { written, .. } = &self.way {
            written.store(Some(Arc::new(Bits::new(range))));
        }
        if self.tells_pages() {
            self.from.store(range.start, Ordering::SeqCst);
            self.upto.store(range.end, Ordering::SeqCst);
        }
    }

    /// Protects the pages of `range` that are there. The caller keeps others from being put in place.
    pub(crate) fn protect(&self, mapping: &Mapping, range: Range<usize>) -> io::Result<()> {
        match &self.way {
            // What was written until now is somebody else's business.
            Way::Scan(pagemap) => pagemap.take_written(mapping, range).map(drop),
            Way::Faults { uffd, .. } => set(uffd, mapping, range, true),
            Way::Units => Ok(()),
        }
    }

    /// Called by the fault thread: somebody waits to write to the page at `offset`.
    pub(crate) fn note(&self, mapping: usize, offset: usize) {
        let Way::Faults { uffd, written } = &self.way else { return };
        let page = offset / PAGE;
        // Before the page is let go: who looks at what was written finds the writer's page.
        if let Some(bits) = &*written.load() {
            bits.set(page);
        }
        let addr = mapping + page * PAGE;
        if uffd.write_protect(addr, PAGE, false).is_err() {
            // The books are being changed: the writer looks again.
            let _ = uffd.wake(addr, PAGE);
        }
    }

    /// Nobody writes to the pages of `range` any more: they may be written by whoever may. Returns those that
    /// were written since [`start`](Watch::start); `None` where that is not known. Called upwards, for what
    /// was started, by who keeps others from being put in place: what comes afterwards is not protected, and
    /// was not there when the pages were looked at.
    pub(crate) fn stop(&self, mapping: &Mapping, range: Range<usize>) -> Option<Vec<Range<usize>>> {
        self.from.store(range.end, Ordering::SeqCst);
        match &self.way {
            Way::Scan(pagemap) => pagemap.take_written(mapping, range).ok(),
            Way::Faults { uffd, written } => {
                let ranges = written.load().as_ref()?.ranges(&range);
                // A page that is left out is let go when it is written.
                let _ = set(uffd, mapping, range, false);
                Some(ranges)
            }
            Way::Units => None,
        }
    }

    /// All of what was started is stopped.
    pub(crate) fn end(&self) {
        self.upto.store(0, Ordering::SeqCst);
        if let Way::Faults { written, .. } = &self.way {
            written.store(None);
        }
    }
}

/// Protects the pages of `range` that are there, or lets them go.
fn set(uffd: &Descriptor, mapping: &Mapping, range: Range<usize>, on: bool) -> io::Result<()> {
    const ATTEMPTS_MAX: u32 = 64;
    let (mut at, mut step, mut attempts) = (range.start, range.len(), 0);
    while at < range.end {
        match uffd.write_protect(mapping.addr() + at, step.min(range.end - at), on) {
            Ok(()) => at += step,
            // A part of it was locked or advised: the kernel's books have several mappings there.
            Err(Errno::ENOENT) if step > PAGE => step = PAGE,
            Err(Errno::EAGAIN) if attempts < ATTEMPTS_MAX => {
                attempts += 1;
                std::thread::yield_now();
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_the_pages_of_their_range() {
        let bits = Bits::new(&(10 * PAGE..200 * PAGE));
        for page in [9, 10, 11, 73, 74, 75, 199, 100_000] {
            bits.set(page);
        }
        let pages = |range: Range<usize>| range.start * PAGE..range.end * PAGE;
        assert_eq!(bits.ranges(&pages(0..300)), [pages(10..12), pages(73..76), pages(199..200)]);
        assert_eq!(bits.ranges(&pages(11..75)), [pages(11..12), pages(73..75)]);
    }

    #[test]
    fn pages_are_protected_where_a_map_is_and_not_beside_it() {
        let protects = |watch: &Watch| -> Vec<usize> {
            (0..6).filter(|unit| watch.protects(unit * PAGE)).collect()
        };
        let watch = Watch::new(Way::Units);
        watch.start(&(PAGE..4 * PAGE));
        assert_eq!(protects(&watch), [0; 0], "nobody looks at these");
        let Ok(pagemap) = Pagemap::open() else { return println!("left out: page maps") };
        let watch = Watch::by_scan(Arc::new(pagemap));
        watch.start(&(PAGE..4 * PAGE));
        assert_eq!(protects(&watch), [1, 2, 3]);
        let mapping = Mapping::reserve(2 << 20, 2 << 20).unwrap();
        // It is not registered: what the kernel says of it is no matter here.
        let _ = watch.stop(&mapping, PAGE..2 * PAGE);
        assert_eq!(protects(&watch), [2, 3], "what comes later than the look is as it was");
        watch.end();
        assert_eq!(protects(&watch), [0; 0]);
    }
}
