//! The thread that writes blocks behind the readers' backs, in batches.
//!
//! A thread of its own and no task: a runtime that is shut down with its last reader would take the
//! last blocks along.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;

use super::{Object, core::Core, flight::Flight};

/// Bytes that are written in one turn: others wait for theirs.
const BATCH_BYTES: usize = 1 << 20;
/// How long the end of a cache waits for its last blocks.
const END_WAIT: Duration = Duration::from_secs(5);

/// A block to be written.
pub(super) struct Job {
    pub(super) object: Arc<Object>,
    pub(super) flight: Arc<Flight>,
    pub(super) block: u64,
    pub(super) bytes: Bytes,
    /// Nobody has asked for it yet.
    pub(super) ahead: bool,
    /// Bounds the queue.
    pub(super) _room: OwnedSemaphorePermit,
}

/// The way to the thread. Dropping it waits for what is under way.
pub(super) struct Writer {
    queue: Mutex<Option<mpsc::Sender<Job>>>,
    ended: Mutex<mpsc::Receiver<()>>,
}

impl Writer {
    pub(super) fn start(core: Arc<Core>) -> io::Result<Writer> {
        let (queue, jobs) = mpsc::channel();
        let (ending, ended) = mpsc::channel::<()>();
        let run = move || {
            while let Ok(first) = jobs.recv() {
                write_batch(&core, first, &jobs);
            }
            drop(ending);
        };
        thread::Builder::new().name("extmem-cache".to_owned()).spawn(run)?;
        Ok(Writer { queue: Mutex::new(Some(queue)), ended: Mutex::new(ended) })
    }

    pub(super) fn write(&self, job: Job) {
        let (object, flight, block) = (job.object.clone(), job.flight.clone(), job.block);
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = queue.as_ref().is_some_and(|queue| queue.send(job).is_ok());
        if !sent {
            object.flights.written(&flight, block);
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Ends when the thread does. A disk that hangs must not hang us.
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = ended.recv_timeout(END_WAIT);
    }
}

/// Writes `first`, and what waits behind it, in as few turns as there are objects.
fn write_batch(core: &Core, first: Job, jobs: &mpsc::Receiver<Job>) {
    let mut bytes = first.bytes.len();
    let mut batch = vec![first];
    while bytes < BATCH_BYTES
        && let Ok(job) = jobs.try_recv()
    {
        bytes += job.bytes.len();
        batch.push(job);
    }
    batch.sort_by_key(|job| (job.object.identity.key, job.block));
    for group in batch.chunk_by(|a, b| a.object.identity.key == b.object.identity.key) {
        let blocks: Vec<_> =
            group.iter().map(|job| (job.block, job.bytes.clone(), job.ahead)).collect();
        core.store(&group[0].object.identity, &blocks);
    }
    for job in batch {
        job.object.flights.written(&job.flight, job.block);
    }
}
