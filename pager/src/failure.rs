//! The end of a process whose readers cannot be told otherwise.

use std::io;

/// Ends the process with a cause on stderr, past every lock.
pub(crate) fn stop_process(cause: &str) -> ! {
    let text = format!("extmem pager: {cause}\n");
    // The descriptor itself: the lock of `std::io::stderr` may belong to a thread that waits for
    // this very failure.
    let _ = nix::unistd::write(io::stderr(), text.as_bytes());
    std::process::abort()
}
