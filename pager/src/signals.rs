//! Threads that take no signals of the program.

use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};

/// While this lives, the calling thread takes only the signals of its own mistakes. Threads that it
/// starts inherit that.
pub(crate) struct SignalsBlocked {
    before: Option<SigSet>,
}

impl SignalsBlocked {
    pub(crate) fn new() -> SignalsBlocked {
        let mut blocked = SigSet::all();
        let own = [
            Signal::SIGSEGV,
            Signal::SIGBUS,
            Signal::SIGFPE,
            Signal::SIGILL,
            Signal::SIGTRAP,
            Signal::SIGABRT,
            Signal::SIGSYS,
        ];
        for signal in own {
            blocked.remove(signal);
        }
        let mut before = SigSet::empty();
        // It can only fail for arguments that are wrong in themselves; then nothing has changed.
        let done = pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&blocked), Some(&mut before));
        SignalsBlocked { before: done.is_ok().then_some(before) }
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(before), None);
        }
    }
}
