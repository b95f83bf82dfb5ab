//! The end of a process whose readers cannot be told otherwise, and its last words.

use std::io;

use nix::errno::Errno;

/// Ends the process with a cause on stderr, past every lock.
pub(crate) fn stop_process(cause: &str) -> ! {
    say(cause);
    std::process::abort()
}

/// Writes one line to stderr, past every lock. May wait for whoever reads stderr.
pub(crate) fn say(text: &str) {
    // Parts of it are what a server said: nothing of that may move the cursor of a terminal.
    let line = format!("extmem pager: {}\n", text.replace(char::is_control, " "));
    let mut rest = line.as_bytes();
    while !rest.is_empty() {
        // The descriptor itself: the lock of `std::io::stderr` may belong to a thread that waits for
        // this very failure.
        match nix::unistd::write(io::stderr(), rest) {
            Ok(0) => return,
            Ok(written) => rest = &rest[written..],
            Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}
