//! Mappings of sealed memory files, side by side.

use std::{fs::File, io, os::fd::AsRawFd, ptr::NonNull};

use super::mapping::PAGE;

/// A read-only address range made of parts of files, unmapped on drop.
pub(crate) struct Shared {
    base: NonNull<u8>,
    /// A multiple of the page.
    len: usize,
}

// SAFETY: the range is readable only, from any thread, as long as the value lives.
unsafe impl Send for Shared {}
// SAFETY: as above; `&Shared` gives out the address only.
unsafe impl Sync for Shared {}

impl Shared {
    /// Reserves `len` bytes (not zero), rounded up to whole pages. They cannot be touched before
    /// [`put`](Shared::put).
    pub(crate) fn reserve(len: usize) -> io::Result<Shared> {
        let len = len.checked_next_multiple_of(PAGE).filter(|len| *len > 0);
        let len = len.ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: with a null hint and no MAP_FIXED the kernel picks an unused range, so no existing
        // mapping is replaced.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).expect("mmap without MAP_FIXED is never null");
        Ok(Shared { base, len })
    }

    /// Maps `len` bytes of `file` from `from` on at `at`, where nothing was put yet. All but `len`
    /// are multiples of the page; the rest of the last page is part of the mapping.
    pub(crate) fn put(&mut self, at: usize, file: &File, from: u64, len: usize) -> io::Result<()> {
        let end = at.checked_add(len).and_then(|end| end.checked_next_multiple_of(PAGE));
        let inside = end.is_some_and(|end| end <= self.len);
        let from = libc::off_t::try_from(from).ok().filter(|from| from % PAGE as libc::off_t == 0);
        assert!(len > 0 && inside && at.is_multiple_of(PAGE), "a part of the range, in pages");
        let from = from.ok_or(io::ErrorKind::InvalidInput)?;
        // Private, since older kernels take a shared mapping of a sealed file for one that could become
        // writable. Nobody writes, so its pages are the file's own either way.
        let flags = libc::MAP_PRIVATE | libc::MAP_FIXED;
        // SAFETY: the range replaced is part of the one that `reserve` made for this value, which was
        // just checked, and `&mut self` says that nobody looks at it.
        let done = unsafe {
            let place = self.base.as_ptr().add(at).cast();
            libc::mmap(place, len, libc::PROT_READ, flags, file.as_raw_fd(), from)
        };
        match done == libc::MAP_FAILED {
            true => Err(io::Error::last_os_error()),
            false => Ok(()),
        }
    }

    /// Where it begins.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: `reserve` made this range, nothing else unmaps it, and every borrow of its bytes
        // is tied to `self`, which is going away.
        let rc = unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert_eq!(rc, 0, "munmap: {}", io::Error::last_os_error());
    }
}
