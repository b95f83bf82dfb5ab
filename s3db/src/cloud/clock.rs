//! Time, and waiting for it.

use std::time::Duration;

use async_trait::async_trait;

#[cfg(feature = "simulation")]
use crate::FailPoint;

/// A client's time.
#[async_trait]
pub trait Clock: Send + Sync {
    /// Microseconds since some fixed moment; never goes back. Leases and ages are measured by it.
    fn monotonic_us(&self) -> u64;

    /// Microseconds since 1970, as far as this machine knows. May jump and may be wrong: nothing
    /// but the order of stamps depends on it.
    fn wall_us(&self) -> u64;

    /// Waits.
    async fn sleep(&self, time: Duration);

    /// Hears that a protocol has come to `point`. A simulated machine may crash there: then this does
    /// not return.
    #[cfg(feature = "simulation")]
    async fn reached(&self, _point: FailPoint) {}
}
