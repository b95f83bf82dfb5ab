//! CLOCK: first in, first out, with a second chance for what was asked for.
//!
//! F. J. Corbato, "A Paging Experiment with the Multics System", MIT Project MAC, 1968. The hand of
//! the clock is the oldest end of a queue: what was asked for since the hand last passed goes back
//! to the newest end and loses its mark, the rest is a victim.
//!
//! Weights do not enter the choice: every entry is as good a victim as any other of its age, and
//! the pool asks again until enough bytes are free.

use super::{
    EvictionPolicy,
    entries::{Entries, Flag},
};

const QUEUE: usize = 0;

/// Second chance: see the module's page.
///
/// Entries start marked, speculative ones too, and the first touch of a guess is the access with
/// which others begin: a window that waits to be read must not look colder than what was read
/// before it.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// Frequency 1: marked.
    entries: Entries<1>,
}

impl Clock {
    /// A policy without entries.
    pub fn new() -> Clock {
        Clock::default()
    }
}

impl EvictionPolicy for Clock {
    fn installed(&mut self, key: u64, weight: u64, speculative: bool) {
        if let Some(at) = self.entries.find(key) {
            self.entries.remove(at);
        }
        let at = self.entries.insert(key, weight, QUEUE);
        self.entries.set_frequency(at, 1);
        self.entries.set(at, Flag::Guess, speculative);
    }

    fn touched(&mut self, key: u64) {
        let Some(at) = self.entries.find(key) else { return };
        if !self.entries.has(at, Flag::Guess) {
            self.entries.set_frequency(at, 1);
        }
        self.entries.set(at, Flag::Guess, false);
    }

    fn removed(&mut self, key: u64) {
        if let Some(at) = self.entries.find(key) {
            self.entries.remove(at);
        }
    }

    fn victim(&mut self, can_evict: &dyn Fn(u64) -> bool) -> Option<u64> {
        // After one round nothing is marked, so two are enough. Marked entries are asked about as
        // well: a pager that learns of touches only when it is asked then reports all of a round,
        // and what was read long ago does not outlive what is to be read next.
        for _ in 0..2 * self.len() {
            let at = self.entries.queue(QUEUE).tail()?;
            let marked = self.entries.frequency(at) > 0;
            if can_evict(self.entries.key(at)) && !marked {
                return Some(self.entries.key(at));
            }
            self.entries.set_frequency(at, 0);
            self.entries.move_to_head(at, QUEUE);
        }
        None
    }

    fn len(&self) -> usize {
        self.entries.queue(QUEUE).len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evict(clock: &mut Clock) -> Option<u64> {
        let key = clock.victim(&|_| true)?;
        clock.removed(key);
        Some(key)
    }

    #[test]
    fn a_touch_buys_one_round() {
        let mut clock = Clock::new();
        for key in 1..=3 {
            clock.installed(key, 1, false);
        }
        assert_eq!(evict(&mut clock), Some(1), "all were marked alike: the oldest goes");
        clock.touched(2);
        clock.installed(4, 1, false);
        assert_eq!(evict(&mut clock), Some(3), "2 was asked for");
        assert_eq!(evict(&mut clock), Some(2), "its chance is used up; 4 came marked");
        assert_eq!(evict(&mut clock), Some(4));
        assert_eq!(evict(&mut clock), None);
    }

    #[test]
    fn the_first_touch_of_a_guess_is_no_second_chance() {
        let mut clock = Clock::new();
        for key in 1..=3 {
            clock.installed(key, 1, true);
        }
        assert_eq!(clock.victim(&|_| true), Some(1), "which unmarks all");
        for key in [1, 2, 2] {
            clock.touched(key);
        }
        assert_eq!(evict(&mut clock), Some(1));
        assert_eq!(evict(&mut clock), Some(3), "2 was asked for twice");
    }

    #[test]
    fn what_comes_back_was_asked_for() {
        let mut clock = Clock::new();
        for key in 1..=4 {
            clock.installed(key, 1, false);
        }
        assert_eq!(evict(&mut clock), Some(1), "which unmarks all");
        clock.installed(1, 1, false);
        for key in [2, 3] {
            assert_eq!(evict(&mut clock), Some(key), "1 came back after it was seen last");
        }
        clock.touched(4);
        assert_eq!(
            evict(&mut clock),
            Some(4),
            "as good as one that was asked for while it was here"
        );
        assert_eq!(evict(&mut clock), Some(1));
    }

    #[test]
    fn refused_entries_are_passed_over_and_kept() {
        let mut clock = Clock::new();
        for key in 0..10 {
            clock.installed(key, 1, false);
        }
        assert_eq!(clock.victim(&|key| key == 7), Some(7));
        assert_eq!(clock.victim(&|_| false), None);
        assert_eq!(clock.len(), 10);
    }
}
