//! The userfaultfd descriptor: the ioctls that the `userfaultfd` crate lacks, and its own.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use nix::errno::Errno;
use userfaultfd::{Event, EventBuffer, FaultKind, RegisterMode, Uffd};

/// Feature bits of `linux/userfaultfd.h`.
pub(crate) const FEATURE_WRITE_FAULTS: u64 = 1 << 0;
/// Pages that nobody has touched can be protected, too. Comes with asynchronous write protection.
pub(crate) const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
pub(crate) const FEATURE_POISON: u64 = 1 << 14;
pub(crate) const FEATURE_WP_ASYNC: u64 = 1 << 15;
pub(crate) const FEATURE_MOVE: u64 = 1 << 16;

const USER_MODE_ONLY: libc::c_int = 1;

/// `UFFDIO_COPY_MODE_WP` and `UFFDIO_WRITEPROTECT_MODE_WP`.
const COPY_PROTECTED: u64 = 1 << 1;
const PROTECT: u64 = 1 << 0;

#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioCopy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copy: i64,
}

#[repr(C)]
struct UffdioMove {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    moved: i64,
}

#[repr(C)]
struct UffdioPoison {
    start: u64,
    len: u64,
    mode: u64,
    updated: i64,
}

#[repr(C)]
struct UffdioWriteprotect {
    start: u64,
    len: u64,
    mode: u64,
}

/// A thread that waits for a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) addr: usize,
    /// The page is there, and protected.
    pub(crate) writes: bool,
}

nix::ioctl_readwrite!(uffdio_api, 0xAA, 0x3F, UffdioApi);
nix::ioctl_readwrite!(uffdio_copy, 0xAA, 0x03, UffdioCopy);
nix::ioctl_readwrite!(uffdio_writeprotect, 0xAA, 0x06, UffdioWriteprotect);
nix::ioctl_readwrite!(uffdio_move, 0xAA, 0x05, UffdioMove);
nix::ioctl_readwrite!(uffdio_poison, 0xAA, 0x08, UffdioPoison);

/// How a descriptor was obtained. The first two serve faults of system calls too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// `userfaultfd(2)`, with kernel faults.
    SystemCall,
    /// `/dev/userfaultfd`, with kernel faults.
    Device,
    /// `userfaultfd(2)` with `UFFD_USER_MODE_ONLY`.
    UserModeOnly,
}

/// Opens a raw descriptor, close-on-exec and non-blocking.
pub(crate) fn open_raw(route: Route) -> io::Result<OwnedFd> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    let fd = match route {
        Route::SystemCall | Route::UserModeOnly => {
            let mode = if route == Route::UserModeOnly { USER_MODE_ONLY } else { 0 };
            // SAFETY: userfaultfd(2) takes flags only and returns a new descriptor or -1.
            unsafe { libc::syscall(libc::SYS_userfaultfd, flags | mode) as libc::c_int }
        }
        Route::Device => {
            let device =
                std::fs::OpenOptions::new().read(true).write(true).open("/dev/userfaultfd")?;
            // The ioctl's argument is the flags themselves, not a pointer.
            // SAFETY: USERFAULTFD_IOC_NEW takes flags by value and returns a new descriptor or -1.
            unsafe { libc::ioctl(device.as_raw_fd(), 0xAA00, flags) }
        }
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Performs the handshake, asking for `features`; returns all features that the kernel has.
pub(crate) fn handshake(fd: &OwnedFd, features: u64) -> io::Result<u64> {
    let mut api = UffdioApi { api: 0xAA, features, ioctls: 0 };
    // SAFETY: `api` is a valid, exclusive uffdio_api for the duration of the call.
    unsafe { uffdio_api(fd.as_raw_fd(), &mut api) }.map_err(io::Error::from)?;
    Ok(api.features)
}

/// One userfaultfd, after its handshake.
pub(crate) struct Descriptor {
    uffd: Uffd,
    features: u64,
}

impl Descriptor {
    /// Wraps a descriptor on which [`handshake`] has enabled `features`.
    pub(crate) fn new(fd: OwnedFd, features: u64) -> Descriptor {
        use std::os::fd::IntoRawFd;
        // SAFETY: the descriptor is owned and handed over whole; it is a userfaultfd after its
        // handshake, which is what `Uffd` expects.
        let uffd = unsafe { Uffd::from_raw_fd(fd.into_raw_fd()) };
        Descriptor { uffd, features }
    }

    pub(crate) fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.uffd.as_fd()
    }

    /// Makes missing pages of the range raise faults here. Page aligned.
    pub(crate) fn register(&self, addr: usize, len: usize) -> io::Result<()> {
        self.uffd.register(addr as *mut libc::c_void, len).map(drop).map_err(io_error)
    }

    /// Makes missing pages of the range raise faults here, and lets those that are there be protected from
    /// writing. Page aligned.
    pub(crate) fn register_for_writing(&self, addr: usize, len: usize) -> io::Result<()> {
        self.register_for(addr, len, RegisterMode::MISSING | RegisterMode::WRITE_PROTECT)
    }

    /// Makes accesses of another kind to the range known here. Page aligned.
    pub(crate) fn register_for(
        &self,
        addr: usize,
        len: usize,
        mode: RegisterMode,
    ) -> io::Result<()> {
        let registered = self.uffd.register_with_mode(addr as *mut libc::c_void, len, mode);
        registered.map(drop).map_err(io_error)
    }

    /// Wakes the threads that wait for a page of the range.
    pub(crate) fn wake(&self, addr: usize, len: usize) -> io::Result<()> {
        self.uffd.wake(addr as *mut libc::c_void, len).map_err(io_error)
    }

    /// Reads the faults that are queued, at most as many as `buffer` holds. Empty if none.
    pub(crate) fn faults(
        &self,
        buffer: &mut EventBuffer,
        faults: &mut Vec<Fault>,
    ) -> io::Result<()> {
        for event in self.uffd.read_events(buffer).map_err(io_error)? {
            if let Event::Pagefault { addr, kind, .. } = event.map_err(io_error)? {
                let writes = kind == FaultKind::WriteProtected;
                faults.push(Fault { addr: addr as usize, writes });
            }
        }
        Ok(())
    }

    /// Protects the pages of the range that are there from writing, or lets them be written and wakes who
    /// waits for that. Page aligned, of a range that was registered for it.
    pub(crate) fn write_protect(&self, addr: usize, len: usize, on: bool) -> Result<(), Errno> {
        let mode = if on { PROTECT } else { 0 };
        let mut arg = UffdioWriteprotect { start: addr as u64, len: len as u64, mode };
        // SAFETY: `arg` is valid and exclusive; protecting changes no byte.
        unsafe { uffdio_writeprotect(self.uffd.as_raw_fd(), &mut arg) }.map(drop)
    }

    /// Copies `src .. src + len` to the missing pages at `dst`, `protected` from writing or not, and wakes
    /// their waiters. Returns the bytes copied, which may be fewer; an error means none.
    ///
    /// # Safety
    /// `src .. src + len` is readable memory of this process, and `dst .. dst + len` is a
    /// registered range whose contents no reference relies on until they were installed.
    pub(crate) unsafe fn copy(
        &self,
        dst: usize,
        src: usize,
        len: usize,
        protected: bool,
    ) -> Result<usize, Errno> {
        let mode = if protected { COPY_PROTECTED } else { 0 };
        let mut arg =
            UffdioCopy { dst: dst as u64, src: src as u64, len: len as u64, mode, copy: 0 };
        // SAFETY: `arg` is valid and exclusive; the ranges are the caller's promise.
        let outcome = unsafe { uffdio_copy(self.uffd.as_raw_fd(), &mut arg) };
        progress(outcome, arg.copy)
    }

    /// Moves the pages of `src` to the missing pages at `dst` and wakes their waiters. The source
    /// range becomes a hole. Returns the bytes moved, which may be fewer; an error means none.
    ///
    /// # Safety
    /// As for `copy`; and nobody holds a reference to the source's bytes.
    pub(crate) unsafe fn move_pages(
        &self,
        dst: usize,
        src: usize,
        len: usize,
    ) -> Result<usize, Errno> {
        let mut arg =
            UffdioMove { dst: dst as u64, src: src as u64, len: len as u64, mode: 0, moved: 0 };
        // SAFETY: `arg` is valid and exclusive; the ranges are the caller's promise.
        let outcome = unsafe { uffdio_move(self.uffd.as_raw_fd(), &mut arg) };
        progress(outcome, arg.moved)
    }

    /// Makes touches of the missing pages at `addr` raise SIGBUS, and wakes their waiters into it.
    pub(crate) fn poison(&self, addr: usize, len: usize) -> Result<usize, Errno> {
        let mut arg = UffdioPoison { start: addr as u64, len: len as u64, mode: 0, updated: 0 };
        // SAFETY: `arg` is valid and exclusive; poisoning changes no byte that can be read.
        let outcome = unsafe { uffdio_poison(self.uffd.as_raw_fd(), &mut arg) };
        progress(outcome, arg.updated)
    }
}

/// The kernel reports partial progress as EAGAIN with a positive count; without any, the count is
/// a negative errno.
fn progress(outcome: nix::Result<libc::c_int>, count: i64) -> Result<usize, Errno> {
    match outcome {
        Ok(_) => Ok(count.max(0) as usize),
        Err(_) if count > 0 => {
            #[cfg(test)]
            PARTIAL.set(PARTIAL.get() + 1);
            Ok(count as usize)
        }
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
thread_local! {
    static PARTIAL: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// How often the kernel did a part of what this thread asked for.
#[cfg(all(test, not(shuttle)))]
pub(crate) fn partial() -> u64 {
    PARTIAL.get()
}

fn io_error(error: userfaultfd::Error) -> io::Error {
    match error {
        userfaultfd::Error::SystemError(errno) => errno.into(),
        userfaultfd::Error::CopyFailed(errno) | userfaultfd::Error::ZeropageFailed(errno) => {
            errno.into()
        }
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without progress the kernel's count is a negative errno: as a length it would be 16 EiB.
    #[test]
    fn a_count_that_is_an_error_is_no_progress() {
        let again = -i64::from(libc::EAGAIN);
        assert_eq!(progress(Err(Errno::EAGAIN), again), Err(Errno::EAGAIN));
        assert_eq!(progress(Err(Errno::EEXIST), -i64::from(libc::EEXIST)), Err(Errno::EEXIST));
        assert_eq!(progress(Err(Errno::EAGAIN), 0), Err(Errno::EAGAIN));
        assert_eq!(progress(Err(Errno::EAGAIN), 8192), Ok(8192));
        assert_eq!(progress(Ok(0), 65_536), Ok(65_536));
        assert_eq!(progress(Ok(0), again), Ok(0));
    }
}
