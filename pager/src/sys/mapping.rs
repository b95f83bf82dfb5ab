//! Address ranges that this process owns.

use std::{io, ptr::NonNull, sync::Arc};

use crate::budget::Reservation;

/// The kernel's page on the machines that the pager supports.
pub(crate) const PAGE: usize = 4096;

/// The kernel's huge page.
pub(crate) const HUGE: usize = 2 << 20;

/// Bytes that a processor takes from memory at a time.
const LINE: usize = 64;

/// What [`Mapping::prepare`] asks for at most: the processor itself goes on in longer slices.
const PREPARED_MAX: usize = 512;

/// `MADV_DONTNEED` for locked memory too; from `linux/mman.h`.
const MADV_DONTNEED_LOCKED: libc::c_int = 24;

/// An anonymous, private, zero-filled address range, unmapped on drop.
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping is an address range without thread affinity; access to its bytes goes through
// `&self` and `&mut self` of its owners, which decide about aliasing.
unsafe impl Send for Mapping {}
// SAFETY: as above; `&Mapping` gives out the address only.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Reserves `len` bytes (a multiple of the page size, not zero), aligned to `align` bytes (a
    /// power of two, at least a page). No memory is committed until a page is touched or installed,
    /// even where the program locks its future memory (`mlockall`): a locked range would be filled
    /// with zeros here and now, which readers would take for the object's bytes.
    pub(crate) fn reserve(len: usize, align: usize) -> io::Result<Mapping> {
        let mapping = Mapping::closed(len, align)?;
        mapping.open()?;
        Ok(mapping)
    }

    /// The same, closed: to touch it raises SIGSEGV.
    pub(crate) fn reserve_closed(len: usize, align: usize) -> io::Result<Mapping> {
        let mapping = Mapping::closed(len, align)?;
        mapping.unlock()?;
        Ok(mapping)
    }

    /// `len` bytes (a multiple of the page size, not zero) whose pages are all there.
    pub(super) fn populated(len: usize) -> io::Result<Mapping> {
        assert!(len > 0 && len.is_multiple_of(PAGE));
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        // SAFETY: with a null hint and no MAP_FIXED the kernel picks an unused range, so no
        // existing mapping is replaced.
        let raw = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) };
        if raw == libc::MAP_FAILED {
            return Err(refusal(len, io::Error::last_os_error()));
        }
        let base = NonNull::new(raw.cast()).expect("mmap without MAP_FIXED is never null");
        Ok(Mapping { base, len })
    }

    fn closed(len: usize, align: usize) -> io::Result<Mapping> {
        assert!(len > 0 && len.is_multiple_of(PAGE) && align.is_power_of_two() && align >= PAGE);
        let padded = len
            .checked_add(align - PAGE)
            .ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: with a null hint and no MAP_FIXED the kernel picks an unused range, so no
        // existing mapping is replaced. Nothing may be touched in it yet, so nothing is filled.
        let raw =
            unsafe { libc::mmap(std::ptr::null_mut(), padded, libc::PROT_NONE, flags, -1, 0) };
        if raw == libc::MAP_FAILED {
            return Err(refusal(padded, io::Error::last_os_error()));
        }
        let start = raw as usize;
        let aligned = start.next_multiple_of(align);
        let (head, tail) = (aligned - start, padded - len - (aligned - start));
        for (at, n) in [(start, head), (aligned + len, tail)] {
            if n > 0 {
                // SAFETY: both ranges are parts of the mapping just made that nobody has seen.
                let rc = unsafe { libc::munmap(at as *mut libc::c_void, n) };
                debug_assert_eq!(rc, 0, "munmap: {}", io::Error::last_os_error());
            }
        }
        let base = NonNull::new(aligned as *mut u8).expect("mmap without MAP_FIXED is never null");
        Ok(Mapping { base, len })
    }

    /// Takes the lock off that every new mapping inherits, where the program locks its future memory.
    fn unlock(&self) -> io::Result<()> {
        // SAFETY: the range is ours, and its bytes stay what they are.
        let rc = unsafe { libc::munlock(self.base.as_ptr().cast(), self.len) };
        if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Lets the range be touched, locked no more.
    fn open(&self) -> io::Result<()> {
        self.unlock()?;
        let start = self.base.as_ptr().cast::<libc::c_void>();
        // Writable for the kernel's sake: UFFDIO_MOVE refuses a read-only target.
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the range is ours, and nobody has seen it: no reference exists whose access could change.
        let rc = unsafe { libc::mprotect(start, self.len, prot) };
        if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(crate) fn addr(&self) -> usize {
        self.base.as_ptr() as usize
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Says that the first bytes of `offset .. offset + len` are read next, so that they come from memory
    /// while something else is done. Reads nothing: a page that is missing stays so.
    pub(crate) fn prepare(&self, offset: usize, len: usize) {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len));
        let start = self.addr() + offset;
        // A slice may begin in the middle of a line, and then has a part of one more.
        for line in (start - start % LINE..start + len.min(PREPARED_MAX)).step_by(LINE) {
            prefetch(line);
        }
    }

    /// `madvise` on `offset .. offset + len`.
    pub(crate) fn advise(&self, offset: usize, len: usize, advice: libc::c_int) -> io::Result<()> {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len));
        // SAFETY: the range lies inside this mapping. What the advice does to its bytes is the
        // business of the owner, who calls this with no reference to bytes it would change.
        let rc = unsafe { libc::madvise(self.base.as_ptr().add(offset).cast(), len, advice) };
        if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Takes the pages of `offset .. offset + len` away, locked or not.
    pub(crate) fn discard(&self, offset: usize, len: usize) -> io::Result<()> {
        match self.advise(offset, len, libc::MADV_DONTNEED) {
            // The program has locked its memory, ours included (Linux 5.18).
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                self.advise(offset, len, MADV_DONTNEED_LOCKED)
            }
            outcome => outcome,
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `reserve` made this exact range, nothing else unmaps it, and every borrow of its
        // bytes is tied to an owner of `self`, which is going away.
        let rc = unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert_eq!(rc, 0, "munmap: {}", io::Error::last_os_error());
    }
}

/// Why the kernel gives no address space of `len` bytes.
fn refusal(len: usize, error: io::Error) -> io::Error {
    match error.raw_os_error() {
        // Which `mmap` says in this case only.
        Some(libc::EAGAIN) => io::Error::new(
            io::ErrorKind::OutOfMemory,
            format!(
                "this program locks its future memory (mlockall with MCL_FUTURE), and {len} bytes \
                 exceed what it may lock (RLIMIT_MEMLOCK): lock current memory only, or raise the \
                 limit"
            ),
        ),
        _ => error,
    }
}

/// Has the line at `addr` brought into the processor's cache.
#[inline(always)]
fn prefetch(addr: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which no address can make fault; SSE is part of this architecture.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(addr as *const i8);
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{}]", in(reg) addr, options(nostack, readonly, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = addr;
}

/// What is left of a frame's pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pages {
    /// All are there.
    Whole,
    /// Some have been moved into a region.
    Torn,
    /// All have been moved into a region.
    Gone,
}

/// The memory of one frame: private, initialised (zero or old bytes), owned by one holder.
pub(crate) struct FrameMemory {
    mapping: Arc<Mapping>,
    offset: usize,
    capacity: usize,
    pages: Pages,
    /// What its bytes are charged with, where that goes with the memory.
    charge: Option<Reservation>,
}

impl FrameMemory {
    /// Memory for `capacity` bytes, rounded up to pages. Kept out of forked children, whose copy on
    /// write would make the pages unmovable.
    pub(crate) fn anonymous(capacity: usize) -> io::Result<FrameMemory> {
        let len = capacity.max(1).next_multiple_of(PAGE);
        let align = if len.is_multiple_of(HUGE) { HUGE } else { PAGE };
        let mapping = Mapping::reserve(len, align)?;
        mapping.advise(0, len, libc::MADV_DONTFORK)?;
        if len.is_multiple_of(HUGE) {
            // Filled at the cost of one fault instead of 512.
            let _ = mapping.advise(0, len, libc::MADV_HUGEPAGE);
        }
        Ok(FrameMemory::part(Arc::new(mapping), 0, len))
    }

    /// The part `offset .. offset + len` of `mapping`, whose pages are all there and which nobody
    /// else holds.
    pub(super) fn part(mapping: Arc<Mapping>, offset: usize, len: usize) -> FrameMemory {
        assert!(offset + len <= mapping.len());
        FrameMemory { mapping, offset, capacity: len, pages: Pages::Whole, charge: None }
    }

    pub(super) fn with_charge(self, charge: Reservation) -> FrameMemory {
        FrameMemory { charge: Some(charge), ..self }
    }

    pub(crate) fn take_charge(&mut self) -> Option<Reservation> {
        self.charge.take()
    }

    pub(crate) fn addr(&self) -> usize {
        self.mapping.addr() + self.offset
    }

    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    pub(crate) fn pages(&self) -> Pages {
        self.pages
    }

    /// Some or all of the pages have been moved away: nobody may look at the bytes any more.
    pub(crate) fn set_pages(&mut self, pages: Pages) {
        self.pages = pages;
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        assert_eq!(self.pages, Pages::Whole, "a frame whose pages were moved has no bytes");
        // SAFETY: this part of the mapping is private to `self`, readable and zero-filled or
        // written, its pages are there, and it is written only through `&mut self`.
        unsafe { std::slice::from_raw_parts(self.addr() as *const u8, self.capacity) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        assert_eq!(self.pages, Pages::Whole, "a frame whose pages were moved has no bytes");
        // SAFETY: as in `as_slice`, and `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.addr() as *mut u8, self.capacity) }
    }
}
