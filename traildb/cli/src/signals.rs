//! Signals that end us: what is unfinished goes first.

use std::{fs, process, thread};

use nix::sys::signal::{SigSet, Signal, raise};
use traildb::Unfinished;

/// Those by which people, terminals and systems end a program.
const ENDING: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// Lets a thread of its own take the signals that end us, but for those that we were told to ignore. It
/// removes what is unfinished, and then the signal does what it always does. Called before there are other
/// threads.
pub(crate) fn watch() {
    let ignored = ignored();
    let mut signals = SigSet::empty();
    ENDING.into_iter().filter(|&signal| ignored & bit(signal) == 0).for_each(|s| signals.add(s));
    // Of all threads to come as well: they are born like this.
    if signals.thread_block().is_err() {
        return;
    }
    let watcher = thread::Builder::new().name("tdb-signals".to_owned()).spawn(move || {
        let Ok(signal) = signals.wait() else { return };
        Unfinished::remove_all();
        // Who waits for us sees what it was.
        let _ = signals.thread_unblock();
        let _ = raise(signal);
        process::exit(128 + signal as i32);
    });
    if watcher.is_err() {
        let _ = signals.thread_unblock();
    }
}

fn bit(signal: Signal) -> u64 {
    1 << (signal as i32 - 1)
}

/// A bit for each signal that is ignored. While one is blocked it would come all the same, and `nohup` has
/// told us to live.
fn ignored() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
