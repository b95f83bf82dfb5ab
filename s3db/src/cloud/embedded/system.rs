//! This machine's clock and randomness.

use std::{
    cell::Cell,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;

use crate::cloud::{Chance, Clock, chance::unit};

/// The time of the machine, and random numbers of its operating system.
pub struct System {
    begun: Instant,
}

impl System {
    /// Begins to measure time.
    pub fn new() -> System {
        System { begun: Instant::now() }
    }
}

impl Default for System {
    fn default() -> System {
        System::new()
    }
}

/// Milliseconds since 1970, by this machine's clock.
pub(super) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[async_trait]
impl Clock for System {
    fn monotonic_us(&self) -> u64 {
        // Zero means "never" to those who remember times.
        self.begun.elapsed().as_micros() as u64 + 1
    }

    fn wall_us(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
    }

    async fn sleep(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }
}

impl Chance for System {
    fn next_u64(&self) -> u64 {
        getrandom::u64().expect("the operating system has random numbers")
    }

    /// Each read of a page may ask: a call of the operating system costs as much as all the rest of one.
    fn with_probability(&self, p: f64) -> bool {
        thread_local! {
            static STATE: Cell<Option<u64>> = const { Cell::new(None) };
        }
        let state = STATE.get().unwrap_or_else(|| self.next_u64()).wrapping_add(WEYL);
        STATE.set(Some(state));
        unit(mix(state)) < p
    }
}

/// The step of SplitMix64 (Steele, Lea and Flood 2014, <https://doi.org/10.1145/2660193.2660195>).
const WEYL: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64's output of a state.
fn mix(state: u64) -> u64 {
    let state = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let state = (state ^ state >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ state >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_probable_happens_as_often_as_it_should() {
        // The reference's first outputs for the seed 1234567.
        let outputs = [1, 2, 3].map(|n| mix(1_234_567_u64.wrapping_add(WEYL.wrapping_mul(n))));
        let expected =
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!(outputs, expected);
        let system = System::new();
        let often = |p| (0..100_000).filter(|_| system.with_probability(p)).count();
        assert_eq!((often(0.0), often(1.0)), (0, 100_000));
        // Ten standard deviations of a binomial distribution.
        let quarter = often(0.25);
        assert!((23_600..26_400).contains(&quarter), "{quarter}");
    }
}
