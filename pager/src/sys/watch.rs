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
        atomic::{AtomicBool, AtomicU64, Ordering},
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
    /// Pages are put in place protected.
    on: AtomicBool,
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

    /// The pages that are set, as ranges of bytes.
    fn ranges(&self) -> Vec<Range<usize>> {
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for page in 0..self.words.len() * 64 {
            if self.words[page / 64].load(Ordering::SeqCst) >> (page % 64) & 1 == 0 {
                continue;
            }
            let start = (self.first + page) * PAGE;
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
        Watch { way: Way::Scan(pagemap), on: AtomicBool::new(false) }
    }

    pub(crate) fn by_faults(uffd: Arc<Descriptor>) -> Watch {
        let written = ArcSwapOption::empty();
        Watch { way: Way::Faults { uffd, written }, on: AtomicBool::new(false) }
    }

    pub(crate) fn by_units() -> Watch {
        Watch { way: Way::Units, on: AtomicBool::new(false) }
    }

    /// Whether pages are to be put in place protected.
    pub(crate) fn protects(&self) -> bool {
        self.on.load(Ordering::SeqCst)
    }

    /// The pages of `range` are about to be written. What is put in place from now on is protected; what
    /// is there already [`protect`](Watch::protect) sees to.
    pub(crate) fn start(&self, range: &Range<usize>) {
        if let Way::Faults { written, .. } = &self.way {
            written.store(Some(Arc::new(Bits::new(range))));
        }
        let protects = !matches!(self.way, Way::Units);
        self.on.store(protects, Ordering::SeqCst);
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

    /// Nobody writes any more. The pages of `range` that were written since [`start`](Watch::start); `None`
    /// where that is not known.
    pub(crate) fn stop(&self, mapping: &Mapping, range: Range<usize>) -> Option<Vec<Range<usize>>> {
        self.on.store(false, Ordering::SeqCst);
        match &self.way {
            Way::Scan(pagemap) => pagemap.take_written(mapping, range).ok(),
            Way::Faults { written, .. } => Some(written.swap(None)?.ranges()),
            Way::Units => None,
        }
    }

    /// Lets the pages of `range` be written again by whoever may, after [`stop`](Watch::stop). The caller
    /// keeps others from being put in place. A page that is left out is let go when it is written.
    pub(crate) fn release(&self, mapping: &Mapping, range: Range<usize>) {
        if let Way::Faults { uffd, .. } = &self.way {
            let _ = set(uffd, mapping, range, false);
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
        assert_eq!(bits.ranges(), [pages(10..12), pages(73..76), pages(199..200)]);
    }
}
