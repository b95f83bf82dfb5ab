//! What clusters of simulated processes stand on, whatever their transactions promise.

use std::{
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::future::{Either, select};

use crate::{
    cloud::{
        Cloud, Ledger,
        ledger::Metered,
        model::{Process, World},
    },
    simulation::recorder::{Record, Recorder},
};

/// Polls of one run: far beyond what one takes; more is a livelock.
pub(super) const STEPS_MAX: u64 = 3_000_000;

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The services as `process` has them: its calls are counted, and what it does to objects is recorded.
pub(super) fn recorded(
    world: &World,
    record: &Arc<Mutex<Record>>,
    ledger: &Arc<Ledger>,
    process: Process,
) -> Cloud {
    let raw = world.cloud(process);
    let (inner, time, record) = (raw.objects, world.time.clone(), record.clone());
    let recorder = Recorder { inner, time, record };
    Cloud {
        objects: Arc::new(Metered::new(Arc::new(recorder), ledger.clone())),
        queue: Arc::new(Metered::new(raw.queue, ledger.clone())),
        ..raw
    }
}

/// What `doing` comes to, unless that takes longer: then nobody knows.
pub(super) async fn within<T>(
    world: &World,
    patience_us: u64,
    doing: impl Future<Output = T>,
) -> Option<T> {
    match select(pin!(doing), world.time.sleep(patience_us)).await {
        Either::Left((outcome, _)) => Some(outcome),
        Either::Right(_) => None,
    }
}
