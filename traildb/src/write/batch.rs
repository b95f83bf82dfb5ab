//! Events in batches, so that adding one copies a few bytes, and columns are numbered in parallel.
//!
//! ```text
//!   add() -> filling |          | work: column 0 (trails) \
//!                    | submit   |       column 1           > last one done: rows
//!            running |--------> |       column 2          /
//! ```
//!
//! Each column of a batch (the UUIDs, and each field) is a task that whoever is free takes. While
//! the workers number one batch, the caller fills the next; when that is full and the first is not
//! done yet, the caller helps. A batch is done before the next one starts, so the numbers are those
//! of one thread.

use std::{
    mem,
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
};

use super::{group, rows::Rows, spill, trails::Trails, values::Values, varint};
use crate::item::Uuid;

/// A batch is full at so many values, or bytes of them. It stays within the second cache.
const CELLS: usize = 1 << 16;
const BYTES: usize = 1 << 20;

/// What batches are numbered by, and where their rows go.
#[derive(Debug)]
pub(super) struct Tables {
    pub(super) trails: Mutex<Trails>,
    pub(super) fields: Vec<Mutex<Values>>,
    pub(super) rows: Mutex<Rows>,
}

impl Tables {
    pub(super) fn new(fields: usize) -> Tables {
        Tables {
            trails: Mutex::default(),
            fields: (0..fields).map(|_| Mutex::default()).collect(),
            rows: Mutex::default(),
        }
    }

    /// Whether trails or rows may run out of numbers within so many events.
    pub(super) fn events_are_full(&self, events: usize) -> bool {
        // A row has its trail, time and number of values, and two numbers for each value.
        let row = varint::BYTES_MAX * (3 + 2 * self.fields.len());
        lock(&self.trails).is_full(events) || lock(&self.rows).is_full((events * row) as u64)
    }

    /// Whether a field may run out of numbers within so many values of so many bytes in all.
    pub(super) fn values_are_full(&self, values: usize, bytes: usize) -> bool {
        self.fields.iter().any(|field| lock(field).is_full(values, bytes))
    }

    /// Bytes of memory that trails and rows take, and sorting them with so many threads.
    pub(super) fn events_memory(&self, threads: usize) -> u64 {
        let rows = lock(&self.rows);
        let threads = threads.min(rows.buckets()) as u64;
        let trails = lock(&self.trails);
        // Each trail is in a block, in a stream, and in the order of a run.
        let grouping = trails.len() * (group::TRAIL_BYTES + spill::TRAIL_BYTES);
        trails.memory() + grouping + rows.memory() + threads * rows.sorting_memory()
    }

    /// Bytes of memory that values take.
    pub(super) fn values_memory(&self) -> u64 {
        self.fields.iter().map(|values| lock(values).memory()).sum()
    }

    pub(super) fn into_values(self) -> Vec<Values> {
        self.fields.into_iter().map(|values| values.into_inner().expect("settled")).collect()
    }
}

/// The values of one field, one after another.
#[derive(Debug, Default)]
pub(super) struct Cells {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Cells {
    #[inline]
    pub(super) fn push(&mut self, value: &[u8]) {
        self.bytes.extend_from_slice(value);
        self.ends.push(self.bytes.len());
    }

    #[inline]
    pub(super) fn get(&self, at: usize) -> &[u8] {
        let start = if at == 0 { 0 } else { self.ends[at - 1] };
        &self.bytes[start..self.ends[at]]
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }
}

/// Events by column.
#[derive(Debug, Default)]
pub(super) struct Batch {
    uuids: Vec<Uuid>,
    times: Vec<u64>,
    columns: Vec<Cells>,
    bytes: usize,
    /// What the columns become: trail numbers, then the value numbers of each field.
    numbers: Vec<Mutex<Vec<u32>>>,
    /// The next column to be taken.
    next: AtomicUsize,
    /// Columns that are not numbered yet.
    left: AtomicUsize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    Done,
    Panicked,
}

impl Batch {
    fn new(fields: usize) -> Batch {
        Batch {
            columns: (0..fields).map(|_| Cells::default()).collect(),
            numbers: (0..=fields).map(|_| Mutex::default()).collect(),
            ..Batch::default()
        }
    }

    fn is_full(&self) -> bool {
        self.bytes >= BYTES || self.uuids.len() * (self.columns.len() + 1) >= CELLS
    }

    fn clear(&mut self) {
        self.uuids.clear();
        self.times.clear();
        self.columns.iter_mut().for_each(Cells::clear);
        self.bytes = 0;
        *lock_mut(&mut self.state) = State::Open;
    }

    fn open(&mut self) {
        *self.next.get_mut() = 0;
        *self.left.get_mut() = self.columns.len() + 1;
    }

    /// Takes columns until none is left. Whoever numbers the last one appends the rows.
    fn work(&self, tables: &Tables) {
        let watch = Watch(self);
        loop {
            let column = self.next.fetch_add(1, Ordering::Relaxed);
            if column > self.columns.len() {
                break;
            }
            self.number(column, tables);
            // The numbers of the others are seen through their locks.
            if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
                self.append(&mut lock(&tables.rows));
                self.end(State::Done);
            }
        }
        mem::forget(watch);
    }

    fn number(&self, column: usize, tables: &Tables) {
        let mut numbers = lock(&self.numbers[column]);
        numbers.clear();
        match column.checked_sub(1) {
            None => lock(&tables.trails).number_all(&self.uuids, &mut numbers),
            Some(field) => {
                lock(&tables.fields[field]).number_all(&self.columns[field], &mut numbers);
            }
        }
    }

    fn append(&self, rows: &mut Rows) {
        let columns: Vec<MutexGuard<'_, Vec<u32>>> = self.numbers.iter().map(lock).collect();
        let (trails, fields) = columns.split_first().expect("the trails come first");
        for (event, (&trail, &time)) in trails.iter().zip(&self.times).enumerate() {
            let items = fields.iter().zip(1u16..).map(|(numbers, field)| (field, numbers[event]));
            rows.push(trail, time, items);
        }
    }

    fn end(&self, state: State) {
        *lock(&self.state) = state;
        self.changed.notify_all();
    }

    fn wait(&self) {
        let mut state = lock(&self.state);
        while *state == State::Open {
            state = self.changed.wait(state).expect("nobody panics while holding this lock");
        }
        assert!(*state == State::Done, "a thread of the builder panicked");
    }
}

/// Tells those who wait that nobody will finish the batch.
struct Watch<'a>(&'a Batch);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.0.end(State::Panicked);
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("a panic of another thread is told through the batch")
}

fn lock_mut<T>(mutex: &mut Mutex<T>) -> &mut T {
    mutex.get_mut().expect("a panic of another thread is told through the batch")
}

/// The batch being filled, the one being numbered, and the threads that do.
#[derive(Debug)]
pub(super) struct Batches {
    tables: Arc<Tables>,
    threads: usize,
    workers: Vec<Worker>,
    filling: Batch,
    running: Option<Arc<Batch>>,
}

#[derive(Debug)]
struct Worker {
    /// `None` when the thread is told to end.
    batches: Option<SyncSender<Arc<Batch>>>,
    thread: Option<JoinHandle<()>>,
}

impl Batches {
    /// Numbers with at most `threads` threads, the caller's included.
    pub(super) fn new(fields: usize, threads: usize) -> Batches {
        Batches {
            tables: Arc::new(Tables::new(fields)),
            threads,
            workers: Vec::new(),
            filling: Batch::new(fields),
            running: None,
        }
    }

    /// Adds an event. Returns whether the batch is full: then [`submit`](Batches::submit) it.
    #[inline]
    pub(super) fn push<V: AsRef<[u8]>>(&mut self, uuid: Uuid, time: u64, values: &[V]) -> bool {
        let batch = &mut self.filling;
        batch.uuids.push(uuid);
        batch.times.push(time);
        for (cells, value) in batch.columns.iter_mut().zip(values) {
            cells.push(value.as_ref());
            batch.bytes += value.as_ref().len();
        }
        batch.is_full()
    }

    /// Events and bytes of the batch being filled.
    pub(super) fn filling(&self) -> (usize, usize) {
        (self.filling.uuids.len(), self.filling.bytes)
    }

    /// Starts numbering what was filled. Call [`settle`](Batches::settle) before.
    pub(super) fn submit(&mut self) {
        debug_assert!(self.running.is_none(), "one batch at a time");
        if self.filling.uuids.is_empty() {
            return;
        }
        self.hire();
        let next = Batch::new(0);
        let mut batch = mem::replace(&mut self.filling, next);
        batch.open();
        if self.workers.is_empty() {
            batch.work(&self.tables);
            batch.wait();
            batch.clear();
            self.filling = batch;
            return;
        }
        let batch = Arc::new(batch);
        for worker in &self.workers {
            // A worker that has gone panicked, which the batch will tell.
            let _ = worker.batches.as_ref().map(|queue| queue.send(batch.clone()));
        }
        self.running = Some(batch);
        self.filling = Batch::new(self.tables.fields.len());
    }

    /// Waits until what was submitted is numbered, and helps. After that nobody holds the tables.
    pub(super) fn settle(&mut self) {
        let Some(batch) = self.running.take() else { return };
        batch.work(&self.tables);
        batch.wait();
        // Its buffers are used again, unless a worker has not let go of it yet.
        if let Ok(mut batch) = Arc::try_unwrap(batch)
            && self.filling.uuids.is_empty()
        {
            batch.clear();
            self.filling = batch;
        }
    }

    /// The tables. Settle before.
    pub(super) fn tables(&self) -> &Tables {
        debug_assert!(self.running.is_none(), "settled before");
        &self.tables
    }

    /// Ends the threads. Everything must have been submitted and settled.
    pub(super) fn into_tables(mut self) -> Tables {
        debug_assert!(self.running.is_none() && self.filling.uuids.is_empty(), "settled before");
        self.workers.clear();
        let tables = mem::replace(&mut self.tables, Arc::new(Tables::new(0)));
        Arc::into_inner(tables).expect("the workers have ended")
    }

    /// Starts the threads, at the first batch: a builder of a few events needs none.
    fn hire(&mut self) {
        while self.workers.len() + 1 < self.threads {
            // One is being numbered, so one may be on its way.
            let (batches, received) = sync_channel::<Arc<Batch>>(1);
            let tables = self.tables.clone();
            let work = move || {
                while let Ok(batch) = received.recv() {
                    batch.work(&tables);
                }
            };
            match thread::Builder::new().name("traildb-write".to_owned()).spawn(work) {
                Ok(thread) => {
                    self.workers.push(Worker { batches: Some(batches), thread: Some(thread) });
                }
                // Fewer threads do as well.
                Err(_) => self.threads = self.workers.len() + 1,
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.batches = None;
        // If it panicked, whoever waited for its batch was told.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
