//! Chance that can be replayed: the same seed, the same numbers.
//!
//! SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014):
//! one 64-bit state, good enough to spread retries and to schedule faults, and nothing else.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// A seeded generator that many tasks may share.
#[derive(Debug)]
pub(crate) struct Chance(Mutex<u64>);

impl Chance {
    pub(crate) fn seeded(seed: u64) -> Chance {
        Chance(Mutex::new(seed))
    }

    /// A seed that differs between processes and between calls.
    pub(crate) fn any_seed() -> u64 {
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        // The address of a fresh allocation differs between processes that start together.
        let place = Box::new(0u8);
        (nanos as u64)
            ^ ((&raw const *place) as u64).rotate_left(32)
            ^ u64::from(std::process::id())
    }

    pub(crate) fn next(&self) -> u64 {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `0.0..1.0`.
    pub(crate) fn unit(&self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `0..n`, or 0 for `n` = 0. The bias of the remainder is below n / 2^64.
    pub(crate) fn below(&self, n: u64) -> u64 {
        self.next().checked_rem(n).unwrap_or(0)
    }

    /// Uniform from zero up to `longest`.
    pub(crate) fn up_to(&self, longest: Duration) -> Duration {
        longest.mul_f64(self.unit())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_replays() {
        let (a, b) = (Chance::seeded(7), Chance::seeded(7));
        let left: Vec<u64> = (0..100).map(|_| a.next()).collect();
        let right: Vec<u64> = (0..100).map(|_| b.next()).collect();
        assert_eq!(left, right);
    }

    #[test]
    fn unit_is_spread_over_its_range() {
        let chance = Chance::seeded(1);
        let mean = (0..10_000).map(|_| chance.unit()).sum::<f64>() / 10_000.0;
        assert!((0.48..0.52).contains(&mean), "{mean}");
        assert_eq!(chance.below(0), 0);
    }
}
