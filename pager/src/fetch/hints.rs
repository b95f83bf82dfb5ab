//! What the application says it will do, on its way to the engine: as much as fits, however often it
//! is said.

use std::{mem, ops::Range};

use crate::policy::prefetch::Advice;

/// Hints that wait at a time; more are told as one with those that wait.
const HINTS_MAX: usize = 64;

/// Ranges that wait at a time, in hints that follow each other. One hint alone may have more: who
/// gives it has them in memory too.
const RANGES_MAX: usize = 1 << 16;

/// Hints of one region that the engine has not taken yet, in the order in which they were given.
#[derive(Default)]
pub(crate) struct Hints {
    waiting: Vec<Advice>,
    ranges: usize,
}

impl Hints {
    /// Takes `advice` in. True if the engine must be told that something waits: it has not been.
    pub(crate) fn push(&mut self, advice: Advice) -> bool {
        let first = self.waiting.is_empty();
        match advice {
            Advice::WillNeed(units) => self.will_need(units),
            of_the_whole => self.settle(of_the_whole),
        }
        first
    }

    /// Everything that waits.
    pub(crate) fn take(&mut self) -> Vec<Advice> {
        self.ranges = 0;
        mem::take(&mut self.waiting)
    }

    fn will_need(&mut self, mut units: Vec<Range<u64>>) {
        if self.ranges > 0 {
            // What does not fit is fetched when it is read.
            units.truncate(RANGES_MAX.saturating_sub(self.ranges));
        }
        self.ranges += units.len();
        let full = self.waiting.len() >= HINTS_MAX;
        let waiting = self.waiting.iter_mut().rev().take(if full { HINTS_MAX } else { 1 });
        let joined = waiting.filter_map(|advice| match advice {
            Advice::WillNeed(before) => Some(before),
            _ => None,
        });
        match joined.last() {
            Some(before) => before.append(&mut units),
            None => self.waiting.push(Advice::WillNeed(units)),
        }
    }

    /// Of two hints about the whole object the later one holds.
    fn settle(&mut self, advice: Advice) {
        let of_the_whole = |advice: &Advice| !matches!(advice, Advice::WillNeed(_));
        let full = self.waiting.len() >= HINTS_MAX;
        if (full || self.waiting.last().is_some_and(of_the_whole))
            && let Some(at) = self.waiting.iter().rposition(of_the_whole)
        {
            self.waiting.remove(at);
        }
        self.waiting.push(advice);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_has_a_limit_and_the_last_word_counts() {
        let mut hints = Hints::default();
        assert!(hints.push(Advice::Normal), "the engine does not know yet");
        for n in 0..100_000u64 {
            let units = (0..100).map(|at| n * 100 + at..n * 100 + at + 1).collect();
            assert!(!hints.push(Advice::WillNeed(units)), "the engine knows already");
            assert!(!hints.push(if n % 2 == 0 { Advice::Sequential } else { Advice::Random }));
        }
        let waiting = hints.take();
        assert!(waiting.len() <= HINTS_MAX + 1, "{} hints", waiting.len());
        let ranges = waiting.iter().map(|advice| match advice {
            Advice::WillNeed(units) => units.len(),
            _ => 0,
        });
        assert_eq!(ranges.sum::<usize>(), RANGES_MAX);
        assert_eq!(waiting.last(), Some(&Advice::Random));
        assert!(hints.push(Advice::Normal), "all was taken");
    }

    #[test]
    fn what_is_few_comes_as_it_was_said() {
        let mut hints = Hints::default();
        let said = [
            Advice::WillNeed(vec![3..5, 8..9]),
            Advice::Random,
            Advice::WillNeed((0..1 << 17).map(|n| n..n + 1).collect()),
        ];
        for (n, advice) in said.iter().enumerate() {
            assert_eq!(hints.push(advice.clone()), n == 0);
        }
        assert_eq!(hints.take()[..2], said[..2]);
        assert!(hints.push(said[2].clone()));
        assert_eq!(hints.take(), said[2..], "one hint may be long");
    }
}
