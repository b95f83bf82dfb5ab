//! S3-FIFO: three static queues, first in, first out.
//!
//! J. Yang, Y. Zhang, Z. Qiu, Y. Yue, K. V. Rashmi, "FIFO Queues are All You Need for Cache
//! Eviction", SOSP 2023, section 4.1 and algorithm 1. Most objects are asked for once; a small queue
//! sheds them quickly, so that the main queue is left to those that come back.
//!
//! ```text
//!   nobody asked --> guess --+ touched
//!                      |     v              twice                  ___
//!   a demand --------> | -> small -----------------------> main <-'   | asked for since
//!                      |     | less                         |  '------'
//!                      v     v                              v
//!                    out    out --> ghost (keys only)      out
//!                                     |                     ^
//!   a demand of a ghost --------------+---------------> main
//! ```
//!
//! Where this differs from the paper, and why:
//!
//! - **Weights.** Shares are of bytes: small has a tenth of what is resident, as in the paper, and
//!   ghosts stand for nine tenths. The capacity is not known here; when a victim is asked for, what
//!   is resident is nearly it.
//! - **Guesses.** Speculative entries wait in a queue of their own. It yields first beyond a quarter
//!   of the bytes, which is what a pager allows speculation. Below that it yields in place of small,
//!   as if its entries had aged twice as fast: a wrong guess leaves earlier than anything that was
//!   asked for once, but a window that has just come is not the first to go, or each of its units
//!   would push out the one before. The first touch makes a guess an entry of small; that touch is
//!   the access with which others begin, and is not counted.
//! - **Ghosts** are entries that were victims, and that somebody had asked for. What leaves by a
//!   hint or because its owner closed proves nothing about reuse, nor does an untouched guess.

use super::{EvictionPolicy, entries::Entries};

const GUESS: usize = 0;
const SMALL: usize = 1;
const MAIN: usize = 2;
const GHOST: usize = 3;
const RESIDENT: [usize; 3] = [GUESS, SMALL, MAIN];

/// Small yields beyond one part in so many of the resident bytes: section 4.1 of the paper.
const SMALL_PARTS: u128 = 10;
/// Guesses yield beyond one part in so many.
const GUESS_PARTS: u128 = 4;
/// Touches that carry an entry from small to main: "accessed more than once" in the paper.
const PROMOTE_AT: u64 = 2;
/// Ghosts are also bounded in number, lest a few large entries keep the ghosts of many tiny ones.
const GHOSTS_MIN: usize = 1024;

/// S3-FIFO: see the module's page. The default.
#[derive(Clone, Debug, Default)]
pub struct S3Fifo {
    entries: Entries<4>,
    /// Installs so far: the clock of ages.
    now: u64,
}

impl S3Fifo {
    /// A policy without entries.
    pub fn new() -> S3Fifo {
        S3Fifo::default()
    }

    /// The queue that yields next among those that are not `spent`: all of it refused.
    fn yielding(&self, spent: &[bool; 3]) -> Option<usize> {
        let has = |queue: usize| !spent[queue] && self.entries.queue(queue).len() > 0;
        let bytes = |queue: usize| self.entries.queue(queue).bytes();
        let total = bytes(GUESS) + bytes(SMALL) + bytes(MAIN);
        if has(GUESS) && bytes(GUESS) * GUESS_PARTS > total {
            return Some(GUESS);
        }
        if has(MAIN) && bytes(SMALL) * SMALL_PARTS <= total {
            return Some(MAIN);
        }
        match (has(GUESS), has(SMALL)) {
            (true, true) => Some(if self.guess_is_older() { GUESS } else { SMALL }),
            (true, false) => Some(GUESS),
            (false, true) => Some(SMALL),
            (false, false) => has(MAIN).then_some(MAIN),
        }
    }

    /// Compares the oldest guess, at twice its age, with the oldest of small.
    fn guess_is_older(&self) -> bool {
        let age = |queue: usize| {
            self.entries.queue(queue).tail().map_or(0, |at| self.entries.age(at, self.now))
        };
        2 * age(GUESS) >= age(SMALL)
    }

    fn move_to_head(&mut self, at: u32, queue: usize) {
        self.entries.set_named(at, false);
        self.entries.set_stamp(at, self.now);
        self.entries.move_to_head(at, queue);
    }

    fn trim_ghosts(&mut self) {
        let resident: u128 = RESIDENT.iter().map(|&q| self.entries.queue(q).bytes()).sum();
        let count_max = GHOSTS_MIN.max(self.len());
        while let Some(at) = self.entries.queue(GHOST).tail() {
            let ghosts = self.entries.queue(GHOST);
            if ghosts.bytes() * 10 <= resident * 9 && ghosts.len() <= count_max {
                break;
            }
            self.entries.remove(at);
        }
    }
}

impl EvictionPolicy for S3Fifo {
    fn installed(&mut self, key: u64, weight: u64, speculative: bool) {
        self.now += 1;
        let mut ghost = false;
        if let Some(at) = self.entries.find(key) {
            ghost = self.entries.queue_of(at) == GHOST;
            self.entries.remove(at);
        }
        let queue = match (speculative, ghost) {
            (true, _) => GUESS,
            (false, false) => SMALL,
            (false, true) => MAIN,
        };
        let at = self.entries.insert(key, weight, queue);
        self.entries.set_stamp(at, self.now);
        // A guess remembers that it was a ghost until somebody asks for it.
        self.entries.set_frequency(at, u64::from(speculative && ghost));
    }

    fn touched(&mut self, key: u64) {
        let Some(at) = self.entries.find(key) else { return };
        match self.entries.queue_of(at) {
            GHOST => {}
            GUESS => {
                let queue = if self.entries.frequency(at) > 0 { MAIN } else { SMALL };
                self.entries.set_frequency(at, 0);
                self.move_to_head(at, queue);
            }
            _ => {
                self.entries.set_named(at, false);
                self.entries.set_frequency(at, self.entries.frequency(at) + 1);
            }
        }
    }

    fn removed(&mut self, key: u64) {
        let Some(at) = self.entries.find(key) else { return };
        match self.entries.queue_of(at) {
            GHOST => {}
            SMALL if self.entries.is_named(at) => {
                self.entries.move_to_head(at, GHOST);
                self.trim_ghosts();
            }
            _ => self.entries.remove(at),
        }
    }

    fn victim(&mut self, can_evict: &dyn Fn(u64) -> bool) -> Option<u64> {
        // Ends: each step refuses an entry, which `refused` counts up to the queue's length, moves
        // one from small to main for good, or lowers a frequency, of which there are three.
        let mut refused = [0; 3];
        let mut spent = [false; 3];
        while let Some(queue) = self.yielding(&spent) {
            let at = self.entries.queue(queue).tail().expect("a queue that yields is not empty");
            let frequency = self.entries.frequency(at);
            match queue {
                SMALL if frequency >= PROMOTE_AT => {
                    self.entries.set_frequency(at, 0);
                    self.move_to_head(at, MAIN);
                }
                MAIN if frequency > 0 => {
                    self.entries.set_frequency(at, frequency - 1);
                    self.move_to_head(at, MAIN);
                }
                _ if can_evict(self.entries.key(at)) => {
                    self.entries.set_named(at, true);
                    return Some(self.entries.key(at));
                }
                _ => {
                    // Refused means in use: it counts as new.
                    self.move_to_head(at, queue);
                    refused[queue] += 1;
                }
            }
            spent[queue] = refused[queue] >= self.entries.queue(queue).len();
        }
        // Main gives up after as many refusals as it has entries, some of them of the same entry:
        // it may hold entries that were asked for and that nobody has offered yet.
        let mut next = self.entries.queue(MAIN).tail();
        while let Some(at) = next {
            if can_evict(self.entries.key(at)) {
                self.entries.set_named(at, true);
                return Some(self.entries.key(at));
            }
            next = self.entries.newer(at);
        }
        None
    }

    fn len(&self) -> usize {
        RESIDENT.iter().map(|&queue| self.entries.queue(queue).len()).sum()
    }
}
