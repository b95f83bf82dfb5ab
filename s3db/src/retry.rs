//! Trying again what fails in passing.

use std::time::Duration;

use crate::{
    cloud::{Cloud, Fault},
    error::StoreError,
    names::right_for,
    settings::Settings,
};

/// Attempts at one thing: counted, and further and further apart.
pub(crate) struct Attempts<'a> {
    cloud: &'a Cloud,
    wait: Duration,
    left: u32,
    max: u32,
}

impl<'a> Attempts<'a> {
    pub(crate) fn new(cloud: &'a Cloud, settings: &Settings) -> Attempts<'a> {
        let max = settings.attempts_max.max(1);
        Attempts { cloud, wait: settings.backoff, left: max, max }
    }

    /// Waits before the next attempt. False when there is none left.
    pub(crate) async fn again(&mut self) -> bool {
        self.left -= 1;
        if self.left == 0 {
            return false;
        }
        // Full jitter: clients that met once shall not meet again.
        let us = self.cloud.chance.below(self.wait.as_micros() as u64 + 1);
        self.cloud.clock.sleep(Duration::from_micros(us)).await;
        self.wait = (self.wait * 2).min(Duration::from_secs(5));
        true
    }

    /// The same, after `fault`.
    pub(crate) async fn after(&mut self, fault: Fault) -> Result<(), StoreError> {
        let made = self.max - self.left + 1;
        if fault.is_transient() && self.again().await {
            return Ok(());
        }
        Err(match fault {
            Fault::Forbidden { what: object, action, cause } => {
                let right = right_for(&object, action);
                StoreError::Denied { object, action, right, cause }
            }
            source => StoreError::Cloud { attempts: made, source },
        })
    }

    /// The same, after someone else was faster at `object`.
    pub(crate) async fn after_loss(&mut self, object: &str) -> Result<(), StoreError> {
        if self.again().await {
            return Ok(());
        }
        Err(StoreError::Contended { object: object.to_owned(), attempts: self.max })
    }
}
