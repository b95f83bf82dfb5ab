//! The words of all units of a region, and how one changes.
//!
//! ```text
//!   gate of a page of words:  number of words that are not zero, or FROZEN
//!
//!   0 -> not 0    enter the gate, then change the word
//!   not 0 -> 0    change the word, then leave the gate; the last to leave freezes it, gives the
//!                 page back to the system, and thaws it
//! ```
//!
//! An absent unit that nobody wants is a zero word, so a page of such words need not exist. Without
//! this, touches all over a huge object would leave memory behind that no budget knows of.

use std::{io, ops::Range};

use super::state::Word;
use crate::{
    sync::{AtomicU32, Ordering, spin_loop},
    sys::LazyWords,
};

/// Nobody may enter: the page is on its way back to the system, which takes about a microsecond.
const FROZEN: u32 = 1 << 31;

pub(crate) struct Words {
    words: LazyWords,
    gates: LazyWords,
}

impl Words {
    pub(crate) fn new(len: usize) -> io::Result<Words> {
        let gates = len.div_ceil(LazyWords::PER_PAGE);
        Ok(Words { words: LazyWords::new(len)?, gates: LazyWords::new(gates)? })
    }

    pub(crate) fn get(&self, unit: u64) -> Word {
        Word(self.words.as_slice()[unit as usize].load(Ordering::SeqCst))
    }

    /// Changes the word of `unit` by `step` until it sticks; `None` from `step` leaves it. Returns
    /// the word before and the word after, or the word that `step` refused.
    pub(crate) fn change(
        &self,
        unit: u64,
        mut step: impl FnMut(Word) -> Option<Word>,
    ) -> Result<(Word, Word), Word> {
        let word = &self.words.as_slice()[unit as usize];
        let mut entered = false;
        let mut now = word.load(Ordering::SeqCst);
        let outcome = loop {
            let Some(next) = step(Word(now)) else { break Err(Word(now)) };
            if now == 0 && next.0 != 0 && !entered {
                self.enter(unit);
                entered = true;
                now = word.load(Ordering::SeqCst);
                continue;
            }
            match word.compare_exchange_weak(now, next.0, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => break Ok((Word(now), next)),
                Err(seen) => now = seen,
            }
        };
        // Each word that is not zero stands for one entry.
        let kept = matches!(outcome, Ok((before, after)) if before.0 == 0 && after.0 != 0);
        if entered && !kept {
            self.leave(unit);
        }
        if matches!(outcome, Ok((before, after)) if before.0 != 0 && after.0 == 0) {
            self.leave(unit);
        }
        outcome
    }

    fn gate(&self, unit: u64) -> (&AtomicU32, Range<usize>) {
        let page = unit as usize / LazyWords::PER_PAGE;
        let words = page * LazyWords::PER_PAGE..(page + 1) * LazyWords::PER_PAGE;
        (&self.gates.as_slice()[page], words)
    }

    fn enter(&self, unit: u64) {
        let (gate, _) = self.gate(unit);
        let entering = |inside: u32| (inside != FROZEN).then(|| inside + 1);
        while gate.fetch_update(Ordering::SeqCst, Ordering::SeqCst, entering).is_err() {
            spin_loop();
        }
    }

    fn leave(&self, unit: u64) {
        let (gate, words) = self.gate(unit);
        let before = gate.fetch_sub(1, Ordering::SeqCst);
        debug_assert!(before > 0 && before < FROZEN, "who leaves has entered");
        let freeze = || gate.compare_exchange(0, FROZEN, Ordering::SeqCst, Ordering::SeqCst);
        if before == 1 && freeze().is_ok() {
            // All words of the page are zero, and nobody can change one before the gate thaws.
            self.words.forget(words);
            gate.store(0, Ordering::SeqCst);
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::cache::state::State;

    #[test]
    fn words_survive_pages_that_come_and_go() {
        let words = Words::new(4096).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let words = &words;
                scope.spawn(move || {
                    // Each thread owns every fourth word: what it wrote must be there.
                    for n in 0..20_000u64 {
                        let unit = (n * 7919 % 1024) * 4 + thread;
                        let taken = words.change(unit, |word| {
                            assert_eq!(word.0, 0, "somebody else's page took it or left it");
                            Some(word.to(State::Fetching))
                        });
                        assert!(taken.is_ok());
                        assert_eq!(words.get(unit).state(), State::Fetching);
                        let left = words.change(unit, |word| Some(word.to(State::Absent)));
                        assert!(left.is_ok());
                    }
                });
            }
        });
        assert!((0..4).all(|page| words.gates.as_slice()[page].load(Ordering::SeqCst) == 0));
    }
}
