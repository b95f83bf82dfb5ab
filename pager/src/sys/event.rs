//! A descriptor that one thread polls and any thread can raise.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// Raised once, stays raised: tells the fault thread to end.
pub(crate) struct Wakeup(EventFd);

impl Wakeup {
    pub(crate) fn new() -> io::Result<Wakeup> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Wakeup(EventFd::from_value_and_flags(0, flags)?))
    }

    pub(crate) fn raise(&self) {
        // A full counter (EAGAIN) means that it is raised already.
        let _ = self.0.write(1);
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
