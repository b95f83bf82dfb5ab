//! This machine's clock and randomness.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;

use crate::cloud::{Chance, Clock};

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
}
