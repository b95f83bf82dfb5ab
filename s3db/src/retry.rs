//! Trying again what fails in passing.

use std::time::Duration;

use bytes::Bytes;

use crate::{
    cloud::{Cloud, Fault, Get},
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

/// Answers to one get that are looked at before it is given up: each of them was another one, and none sound.
const READS_MAX: u32 = 5;

/// What is in an object that is let go of where it is not sound; `None` when it is not there. An answer can be
/// damaged on its way while the object is not: what is not sound comes back only if it came twice.
///
/// # Errors
/// Whatever the object store says, and [`Fault::Invalid`] when it answers otherwise each time.
pub(crate) async fn read_surely(
    cloud: &Cloud,
    settings: &Settings,
    object: &str,
    is_sound: impl Fn(&Bytes) -> bool + Send + Sync,
) -> Result<Option<Bytes>, StoreError> {
    let mut before: Option<Bytes> = None;
    for _ in 0..READS_MAX {
        let Some(bytes) = read(cloud, settings, object).await? else { return Ok(None) };
        if is_sound(&bytes) || before.as_ref() == Some(&bytes) {
            return Ok(Some(bytes));
        }
        before = Some(bytes);
    }
    let cause = "it is damaged in each answer, and in each of them otherwise".to_owned();
    let source = Fault::Invalid { what: object.to_owned(), cause };
    Err(StoreError::Cloud { attempts: READS_MAX, source })
}

async fn read(
    cloud: &Cloud,
    settings: &Settings,
    object: &str,
) -> Result<Option<Bytes>, StoreError> {
    let mut attempts = Attempts::new(cloud, settings);
    loop {
        match cloud.objects.get(object, None).await {
            Ok(Get::Found { bytes, .. }) => return Ok(Some(bytes)),
            Ok(_) => return Ok(None),
            Err(fault) => attempts.after(fault).await?,
        }
    }
}
