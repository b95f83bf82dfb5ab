//! What a reader sees when bytes cannot be had, and who is told why.

use std::{
    io,
    sync::mpsc::{SyncSender, sync_channel},
};

use crate::{error::SourceError, units::ByteOffset};

/// Causes that wait to be logged; more are dropped.
const CAUSES_MAX: usize = 256;

/// Where the causes of failed units go: a thread of its own writes them to the log, because the
/// thread that waits in the fault may hold the logger's lock, or that of stderr.
#[derive(Clone)]
pub(crate) struct Causes(SyncSender<String>);

impl Causes {
    /// Starts the thread. It ends with the last clone.
    pub(crate) fn start() -> io::Result<Causes> {
        let (sender, receiver) = sync_channel::<String>(CAUSES_MAX);
        std::thread::Builder::new().name("pager-log".to_owned()).spawn(move || {
            for text in receiver {
                tracing::error!("{text}");
            }
        })?;
        Ok(Causes(sender))
    }

    /// A reader of the unit that starts at byte `start` of `object` gets SIGBUS because of `error`.
    /// Never waits.
    pub(crate) fn poisoned(&self, object: &str, start: ByteOffset, error: &SourceError) {
        let start = start.0;
        self.note(format!(
            "{object}: the unit at byte {start} is poisoned, reading it raises SIGBUS: {error}"
        ));
    }

    /// Anything else that is worth a line. Never waits.
    pub(crate) fn note(&self, text: String) {
        // A full queue means that many causes are on their way already.
        let _ = self.0.try_send(text);
    }
}

/// Ends the process with a cause on stderr, past every lock.
pub(crate) fn stop_process(cause: &str) -> ! {
    let text = format!("extmem pager: {cause}\n");
    // The descriptor itself: the lock of `std::io::stderr` may belong to a thread that waits for
    // this very failure.
    let _ = nix::unistd::write(io::stderr(), text.as_bytes());
    std::process::abort()
}
