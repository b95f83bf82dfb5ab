//! Writing: events in any order become a database.
//!
//! ```text
//!   add() -> batch -> values, trails (numbered) -> rows, in buckets of trails
//!   finish() -> group (by trail, by time, only what changes) -> model (codes) -> encode
//!            -> gather (by UUID) -> pack -> place
//! ```
//!
//! Equal input and options give equal bytes, whatever the threads and the memory.

mod varint; // numbers in as few bytes as they need
mod values; // the distinct values of a field, numbered
mod trails; // UUIDs, numbered
mod batch; // events by column, numbered in parallel
mod rows; // events as they were added
mod stream; // trails as the stages hand them on
mod append; // events of another database
mod group; // rows into trails
mod sample; // the part that statistics are made from
mod count; // how often items and pairs occur
mod symbols; // what code words stand for
mod huffman; // code lengths of at most 16 bits
mod choose; // which symbols get code words
mod model; // the code
mod encode; // trails as bits
mod gather; // encoded trails by UUID
mod pack; // members into a package or a directory
mod place; // a name only for what is whole
mod parallel; // the same work on many parts

use std::path::Path;

pub use self::append::Appender;
use self::{
    batch::{Batches, Tables},
    sample::{Sample, Sampler},
    symbols::Literals,
};
use crate::{
    bits,
    error::{Error, InputError},
    item::{DELTA_MAX, Uuid},
    member::{fields::Fields, info::Info},
};

/// The longest value, in bytes (FORMAT.md L5).
const VALUE_BYTES_MAX: u64 = 1 << 58;
/// The least memory that can be allowed.
const MEMORY_MIN: u64 = 64 << 20;
/// More threads than these gain nothing: what is left to one of them takes as long.
const THREADS_MAX: usize = 64;

/// Whether pairs of items get code words of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Bigrams {
    /// If they make the database smaller, which a sample tells (default).
    #[default]
    Auto,
    /// Where they save anything.
    On,
    /// Never. Writing is quicker.
    Off,
}

/// How a database is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// A directory with a file for each member instead of a package. Default: a package.
    pub directory: bool,
    /// The most memory that events and values may take, in bytes; 0 for no limit (default).
    pub memory_bytes: u64,
    /// Whether pairs of items get code words. Default: if they make the database smaller.
    pub bigrams: Bigrams,
    /// Threads to write with, the caller's included; 0 for as many as there are processors
    /// (default).
    pub threads: usize,
}

impl Options {
    /// Writes a directory.
    pub fn directory(mut self, directory: bool) -> Options {
        self.directory = directory;
        self
    }

    /// Refuses events beyond `bytes` bytes of memory, which are 64 MiB or more.
    pub fn memory_bytes(mut self, bytes: u64) -> Options {
        self.memory_bytes = bytes;
        self
    }

    /// Says whether pairs of items get code words.
    pub fn bigrams(mut self, bigrams: Bigrams) -> Options {
        self.bigrams = bigrams;
        self
    }

    /// Writes with so many threads; 0 for as many as there are processors.
    pub fn threads(mut self, threads: usize) -> Options {
        self.threads = threads;
        self
    }
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Number of trails.
    pub trails: u64,
    /// Number of events.
    pub events: u64,
    /// Bytes of the package, or of all members of the directory.
    pub bytes: u64,
}

/// Collects events and writes them as a database.
///
/// Events may come in any order. Within a trail they are sorted by time; events of equal times keep
/// the order in which they were added.
#[derive(Debug)]
pub struct Builder {
    options: Options,
    threads: usize,
    fields: Fields,
    batches: Batches,
    totals: Totals,
    /// Why no more events can be added: a limit is near, or the memory allowed is used up.
    refused: Option<InputError>,
}

/// What is known of all events added.
#[derive(Clone, Copy, Debug)]
struct Totals {
    events: u64,
    /// Times, and values that are not NULL.
    cells: u64,
    time_min: u64,
    time_max: u64,
}

impl Builder {
    /// A builder for events with these user fields, in this order. The time is not one of them.
    ///
    /// # Errors
    /// [`InputError`] for a name that is reserved, malformed or used twice, and for too many fields.
    pub fn new<N: AsRef<str>>(fields: &[N]) -> Result<Builder, Error> {
        Builder::with_options(fields, Options::default())
    }

    /// [`new`](Builder::new) with options.
    ///
    /// # Errors
    /// As for `new`.
    pub fn with_options<N: AsRef<str>>(fields: &[N], options: Options) -> Result<Builder, Error> {
        let fields = Fields::new(fields)?;
        if (1..MEMORY_MIN).contains(&options.memory_bytes) {
            return Err(InputError::Memory { limit: options.memory_bytes }.into());
        }
        let threads = match options.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let threads = threads.min(THREADS_MAX);
        let batches = Batches::new(fields.len(), threads);
        let totals = Totals { events: 0, cells: 0, time_min: u64::MAX, time_max: 0 };
        Ok(Builder { options, threads, fields, batches, totals, refused: None })
    }

    /// Number of events so far.
    pub fn events(&self) -> u64 {
        self.totals.events
    }

    /// Adds an event: one value for each field, the empty string for NULL. `time` is a number of
    /// any unit, usually seconds since 1970.
    ///
    /// # Errors
    /// [`InputError`] when the number of values is not that of the fields, or a limit is reached.
    /// The event has not been added then.
    pub fn add<V: AsRef<[u8]>>(
        &mut self,
        uuid: Uuid,
        time: u64,
        values: &[V],
    ) -> Result<(), Error> {
        let (got, expected) = (values.len(), self.fields.len());
        if got != expected {
            return Err(InputError::Arity { got, expected }.into());
        }
        if let Some(refused) = &self.refused {
            return Err(refused.clone().into());
        }
        let mut cells = 1;
        for value in values {
            let len = value.as_ref().len() as u64;
            if len > VALUE_BYTES_MAX {
                return Err(InputError::ValueTooLong(len).into());
            }
            cells += u64::from(len > 0);
        }
        self.totals.add(time, cells);
        if self.batches.push(uuid, time, values) {
            self.batches.settle();
            let (events, bytes) = self.batches.filling();
            // After this batch there may be one more, about as large.
            self.check_limits(2 * events, 2 * bytes);
            self.batches.submit();
        }
        Ok(())
    }

    /// Refuses further events if these many more, with so many bytes of values, may reach a limit.
    fn check_limits(&mut self, events: usize, bytes: usize) {
        let (limit, tables) = (self.options.memory_bytes, self.batches.tables());
        if limit > 0 && tables.memory() > limit {
            self.refused = Some(InputError::Memory { limit });
        } else if let Some(what) = tables.full(events, bytes) {
            self.refused = Some(InputError::TooMany(what));
        }
    }

    /// Writes the database to `path`, under another name until it is whole and on the disk.
    ///
    /// # Errors
    /// [`InputError`] when timestamps lie too far apart for the format, before anything is written;
    /// [`Error::File`] when the system refuses to write. What was at `path` before is untouched
    /// then.
    pub fn finish(self, path: impl AsRef<Path>) -> Result<Written, Error> {
        let Builder { options, threads, fields, mut batches, totals, .. } = self;
        batches.settle();
        batches.submit();
        batches.settle();
        if totals.events > 0 && totals.time_min > DELTA_MAX {
            return Err(InputError::FirstTime(totals.time_min).into());
        }
        let Tables { trails, fields: values, rows } = batches.into_tables();
        let mut values: Vec<_> =
            values.into_iter().map(|values| values.into_inner().expect("settled")).collect();
        values.iter_mut().for_each(values::Values::close);
        let uuids = trails.into_inner().expect("settled").into_uuids();
        let buckets = rows.into_inner().expect("settled").into_buckets();
        let buckets: Vec<_> = buckets.into_iter().zip(uuids.chunks(rows::BUCKET_TRAILS)).collect();
        let blocks = parallel::map(threads, buckets, |(bucket, uuids)| {
            group::block(bucket, uuids, totals.time_min, DELTA_MAX)
        });
        let blocks = blocks.into_iter().collect::<Result<Vec<_>, _>>()?;
        let trails = uuids.len() as u64;
        drop(uuids);
        let delta_max = blocks.iter().map(|block| block.delta_max).max().unwrap_or(0);
        let keys = blocks.iter().map(|block| block.keys).sum();

        let mut value_bits = vec![bits::width(delta_max)];
        value_bits.extend(values.iter().map(|values| bits::width(values.count())));
        let literals = Literals { field_bits: bits::width(value_bits.len() as u64), value_bits };
        let sample = Sample::new(&blocks, Sampler::new(totals.cells));
        let model = model::Model::of(sample, keys, literals, options.bigrams, threads);
        let encoded = parallel::map(threads, blocks, |block| encode::block(block, &model));
        let codebook = model.codebook();
        drop(model);
        let info = totals.info(trails, delta_max);
        let trails = gather::Gathered::new(encoded);
        let parts = pack::Parts { info, fields: &fields, values: &values, codebook, trails };
        let bytes = pack::write(path.as_ref(), &parts, options.directory)?;
        Ok(Written { trails: info.trails, events: info.events, bytes })
    }
}

impl Totals {
    fn add(&mut self, time: u64, cells: u64) {
        self.events += 1;
        self.cells += cells;
        self.time_min = self.time_min.min(time);
        self.time_max = self.time_max.max(time);
    }

    fn info(&self, trails: u64, delta_max: u64) -> Info {
        let Totals { events, time_min, time_max, .. } = *self;
        if events == 0 {
            return Info::EMPTY;
        }
        Info { trails, events, time_min, time_max, delta_max }
    }
}
