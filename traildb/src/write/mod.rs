//! Writing: events in any order become a database.
//!
//! ```text
//!   add() -> batch -> values, trails (numbered) -> rows, in buckets of trails
//!   finish() -> group (by trail, by time, only what changes) -> model (codes) -> encode
//!            -> gather (by UUID) -> pack -> place
//!
//!   memory is full -> group -> spill (sorted runs in temporary files); at the end merge -> model ...
//! ```
//!
//! Equal input and options give equal bytes, whatever the threads and the memory.

mod options; // how
mod varint; // numbers in as few bytes as they need
mod values; // the distinct values of a field, numbered
mod trails; // UUIDs, numbered
mod batch; // events by column, numbered in parallel
mod rows; // events as they were added
mod window; // bytes in memory or in a temporary file, from first to last
mod stream; // trails as the stages hand them on
mod append; // events of another database
mod group; // rows into trails
mod spill; // what does not fit in memory
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
mod litter; // what is begun and not placed yet
mod sink; // a package that becomes no file here
mod parallel; // the same work on many parts

use std::{env, io, path::Path};

pub use self::{
    append::Appender,
    options::{Bigrams, Options},
    place::Unfinished,
    sink::Sink,
};
use self::{
    batch::Batches,
    gather::Gathered,
    group::Block,
    model::Model,
    pack::{Lexicons, Parts},
    sample::{Sample, Sampler},
    spill::{Joined, Spill, Spilled, remove_stale},
    symbols::Literals,
};
use crate::{
    bits,
    error::{Error, InputError},
    item::{DELTA_MAX, Uuid, VALUES_MAX},
    member::{fields::Fields, info::Info},
};

/// The longest value, in bytes (FORMAT.md L5).
const VALUE_BYTES_MAX: u64 = 1 << 58;
/// The longest name of a field whose lexicon is a file: file systems allow 255 bytes in all.
const DIRECTORY_NAME_BYTES_MAX: usize = 255 - "lexicon.".len();
/// The least memory that can be allowed.
const MEMORY_MIN: u64 = 64 << 20;
/// What the process, the batches and the model take, about.
const MEMORY_OTHER: u64 = 16 << 20;
/// One part in so many is left to the allocator: it keeps a heap for each thread, and what was freed
/// in one is not used by the others. How much that comes to hangs on which thread ran when; with all
/// on one core, the same events have been seen to take 54 and 71 MiB.
const MEMORY_HEAPS: u64 = 8;
/// The memory for joining what was spilled, when there is no limit to it.
const MEMORY_JOIN: u64 = 256 << 20;
/// More threads than these gain nothing: what is left to one of them takes as long.
const THREADS_MAX: usize = 64;

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
    spill: Option<Spill>,
    /// Why spilling failed. Events are lost then, and nothing goes any further.
    failed: Option<(std::path::PathBuf, io::ErrorKind, String)>,
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
        // In a directory each field has a file, whose name has a bound of its own.
        let too_long = |name: &&str| options.directory && name.len() > DIRECTORY_NAME_BYTES_MAX;
        if let Some(name) = fields.names().find(too_long) {
            return Err(InputError::NameTooLong(name.chars().take(64).collect()).into());
        }
        let threads = match options.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let threads = threads.min(THREADS_MAX);
        // Whether this one will spill or not, it is the next one there.
        if options.memory_bytes > 0 {
            let parent = options.temporary_directory.clone();
            remove_stale(&parent.unwrap_or_else(env::temp_dir));
        }
        let batches = Batches::new(fields.len(), threads);
        let totals = Totals { events: 0, cells: 0, time_min: u64::MAX, time_max: 0 };
        Ok(Builder { options, threads, fields, batches, totals, spill: None, failed: None })
    }

    /// Number of events so far.
    pub fn events(&self) -> u64 {
        self.totals.events
    }

    /// Adds an event: one value for each field, the empty string for NULL. `time` is a number of
    /// any unit, usually seconds since 1970.
    ///
    /// Any time is taken. In the file an event lies no more than 2^47 - 2 behind the one before it in
    /// its trail, the first of a trail behind the earliest of all, and that one behind 0. Events may
    /// come in any order, so whatever is too far away now may get others between, or one that is
    /// earlier: not before the end is it known, and there [`finish`](Builder::finish) tells, before it
    /// writes anything at its path.
    ///
    /// # Errors
    /// [`InputError`] when the number of values is not that of the fields, or one is too long: the
    /// event has not been added then. [`Error::File`] when a temporary file cannot be written: then
    /// events are lost, and no later call succeeds.
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
        self.check()?;
        let mut cells = 1;
        for value in values {
            let len = value.as_ref().len() as u64;
            check_value(len)?;
            cells += u64::from(len > 0);
        }
        self.totals.add(time, cells);
        if self.batches.push(uuid, time, values) {
            self.batches.settle();
            let (events, bytes) = self.batches.filling();
            // After this batch there may be one more, about as large.
            self.make_room(2 * events, 2 * bytes + bytes / 2, 0)?;
            self.batches.submit();
        }
        Ok(())
    }

    /// The error that spilling ended with.
    fn check(&self) -> Result<(), Error> {
        match &self.failed {
            None => Ok(()),
            Some((path, kind, text)) => {
                Err(Error::file(path, io::Error::new(*kind, text.as_str())))
            }
        }
    }

    /// Spills if the memory is full, `others` bytes of which the caller has, or so many more events,
    /// with so many bytes of values, might use up the numbers that there are. Everything submitted must
    /// have been settled.
    fn make_room(&mut self, events: usize, bytes: usize, others: u64) -> Result<(), Error> {
        let limit = match self.options.memory_bytes {
            0 => u64::MAX,
            bytes => {
                let limit = bytes - bytes / MEMORY_HEAPS - MEMORY_OTHER;
                // Else every event would be a run of its own.
                limit - self.options.reserved_bytes.min(limit / 2)
            }
        };
        let tables = self.batches.tables();
        let (of_values, of_events) = (tables.values_memory(), tables.events_memory(self.threads));
        let values_are_full = of_values > limit / 3 || tables.values_are_full(events, bytes);
        let spills = values_are_full
            || of_values.saturating_add(of_events).saturating_add(others) > limit
            || tables.events_are_full(events);
        if !spills {
            return Ok(());
        }
        let spilled = self.spill_events().and_then(|()| match values_are_full {
            true => self.spill_values(),
            false => Ok(()),
        });
        if let Err(Error::File { path, source }) = &spilled {
            self.failed = Some((path.clone(), source.kind(), source.to_string()));
        }
        spilled
    }

    fn spill_events(&mut self) -> Result<(), Error> {
        let spill = match &mut self.spill {
            Some(spill) => spill,
            none => {
                let parent = self.options.temporary_directory.clone();
                none.insert(Spill::new(&parent.unwrap_or_else(env::temp_dir))?)
            }
        };
        // First events are counted from 0 here: the earliest time of all is not known yet.
        spill.events(&group(self.batches.tables(), self.threads, 0, u64::MAX)?)
    }

    fn spill_values(&mut self) -> Result<(), Error> {
        let tables = self.batches.tables().fields.iter().map(batch::lock);
        self.spill.as_mut().expect("events were spilled before").values(tables)
    }

    /// How much was spilled so far.
    fn spilled(&self) -> Spilled {
        self.spill.as_ref().map_or(Spilled::default(), Spill::spilled)
    }

    /// Numbers what was added.
    fn settle(&mut self) {
        self.batches.settle();
        self.batches.submit();
        self.batches.settle();
    }

    /// Writes the database to `path`, under another name until it is whole and on the disk.
    ///
    /// # Errors
    /// [`InputError`] when timestamps lie too far apart for the format ([`InputError::Delta`] names
    /// the trail and both times), or there are too many values, before anything is written but
    /// temporary files; [`Error::File`] when the system refuses to write. What was at `path` before is
    /// untouched then.
    pub fn finish(self, path: impl AsRef<Path>) -> Result<Written, Error> {
        let options = self.options.clone();
        let parts = self.into_parts()?;
        let bytes = pack::write(path.as_ref(), &parts, &options)?;
        Ok(Written { trails: parts.info.trails, events: parts.info.events, bytes })
    }

    /// [`finish`](Builder::finish), into a sink. Only a package can go there.
    ///
    /// # Errors
    /// As for `finish`, and [`Error::Sink`] when the sink fails.
    pub fn finish_to<S: Sink>(self, sink: S) -> Result<Written, Error> {
        if self.options.directory {
            let text = "a directory of files cannot go into one object; write a package";
            return Err(Error::Sink(io::Error::new(io::ErrorKind::InvalidInput, text)));
        }
        let parts = self.into_parts()?;
        let bytes = pack::write_to(sink, &parts)?;
        Ok(Written { trails: parts.info.trails, events: parts.info.events, bytes })
    }

    /// All that is to be written.
    fn into_parts(mut self) -> Result<Parts, Error> {
        self.check()?;
        self.settle();
        if self.totals.events > 0 && self.totals.time_min > DELTA_MAX {
            return Err(InputError::FirstTime(self.totals.time_min).into());
        }
        match self.spill.is_some() {
            true => self.into_spilled_parts(),
            false => self.into_memory_parts(),
        }
    }

    fn into_memory_parts(self) -> Result<Parts, Error> {
        let Builder { options, threads, fields, batches, totals, .. } = self;
        let tables = batches.into_tables();
        tables.fields.iter().for_each(|values| batch::lock(values).close());
        let blocks = group(&tables, threads, totals.time_min, DELTA_MAX)?;
        let lexicons = Lexicons::Memory(tables.into_values());
        let trails = blocks.iter().map(|block| block.trails.len() as u64).sum();
        let delta_max = blocks.iter().map(|block| block.delta_max).max().unwrap_or(0);
        let keys = blocks.iter().map(|block| block.keys).sum();

        let sample = Sample::of_blocks(&blocks, Sampler::new(totals.cells));
        let literals = literals(delta_max, &lexicons);
        let model = Model::of(sample, keys, literals, options.bigrams, threads)?;
        let encoded = parallel::map(threads, blocks, |block| encode::block(block, &model));
        let trails_data = Gathered::of_blocks(encoded.into_iter().collect::<Result<_, _>>()?);
        let info = totals.info(trails, delta_max);
        let codebook = model.codebook();
        Ok(Parts { info, fields, lexicons, codebook, trails: trails_data, spill: None })
    }

    fn into_spilled_parts(mut self) -> Result<Parts, Error> {
        self.spill_events()?;
        if self.spill.as_ref().is_some_and(Spill::has_values) {
            self.spill_values()?;
        }
        let Builder { options, threads, fields, batches, totals, spill, .. } = self;
        let mut spill = spill.expect("asked before");
        let memory = match options.memory_bytes {
            0 => MEMORY_JOIN,
            // What the caller has freed by now may be kept by the heap that it is of.
            bytes => (bytes - options.reserved_bytes.min(bytes / 4)) / 3,
        };
        let mut values = batches.into_tables().into_values();
        values.iter_mut().for_each(values::Values::close);
        let sampler = Sampler::new(totals.cells);
        let Joined { merged, lexicons } =
            spill.join(memory, totals.time_min, DELTA_MAX, sampler)?;
        let lexicons = match lexicons {
            None => Lexicons::Memory(values),
            Some(lexicons) => Lexicons::Files(lexicons),
        };
        for (field, (count, _)) in lexicons.sizes().into_iter().enumerate() {
            if count > VALUES_MAX {
                let name = fields.name(field as u16 + 1).expect("a lexicon for each field");
                return Err(InputError::TooManyValues(name.to_owned()).into());
            }
        }

        let sample = match &merged.sample {
            None => Sample::of_files(&merged.chunks, sampler),
            Some(files) => Sample::of_hashed(files, sampler),
        };
        let literals = literals(merged.delta_max, &lexicons);
        let model = Model::of(sample, merged.keys, literals, options.bigrams, threads)?;
        let files = encode::chunks(spill.folder(), &merged.chunks, &model, threads)?;
        let info = totals.info(merged.trails, merged.delta_max);
        let (codebook, trails) = (model.codebook(), Gathered::Files(files));
        Ok(Parts { info, fields, lexicons, codebook, trails, spill: Some(spill) })
    }
}

/// Whether a value may be so long.
fn check_value(len: u64) -> Result<(), InputError> {
    match len {
        0..=VALUE_BYTES_MAX => Ok(()),
        _ => Err(InputError::ValueTooLong(len)),
    }
}

/// Groups all rows, and forgets them and their trails.
fn group(
    tables: &batch::Tables,
    threads: usize,
    base: u64,
    delta_max: u64,
) -> Result<Vec<Block>, Error> {
    let uuids = batch::lock(&tables.trails).take_uuids();
    let buckets = batch::lock(&tables.rows).take_buckets();
    let buckets: Vec<_> = buckets.into_iter().zip(uuids.chunks(rows::BUCKET_TRAILS)).collect();
    let blocks = parallel::map(threads, buckets, |(bucket, uuids)| {
        group::block(bucket, uuids, base, delta_max)
    });
    Ok(blocks.into_iter().collect::<Result<_, _>>()?)
}

/// What a literal of each field takes.
fn literals(delta_max: u64, lexicons: &Lexicons) -> Literals {
    let mut value_bits = vec![bits::width(delta_max)];
    value_bits.extend(lexicons.sizes().into_iter().map(|(count, _)| bits::width(count)));
    Literals { field_bits: bits::width(value_bits.len() as u64), value_bits }
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// What to do between two events.
    #[derive(Clone, Copy, Debug)]
    enum Then {
        Nothing,
        SpillEvents,
        SpillValues,
    }

    fn any_event() -> impl Strategy<Value = (u8, u64, [u8; 3], Then)> {
        let then = prop_oneof![
            20 => Just(Then::Nothing),
            2 => Just(Then::SpillEvents),
            1 => Just(Then::SpillValues),
        ];
        let time = prop_oneof![8 => 0..50u64, 1 => 0..1u64 << 46];
        // Many values: some are met in one epoch alone, some in all.
        (0..6u8, time, prop::array::uniform3(0..40u8), then)
    }

    #[test]
    fn no_value_is_longer_than_a_lexicon_can_say() {
        for len in [0, 1, u64::from(u32::MAX) + 1, VALUE_BYTES_MAX] {
            assert_eq!(check_value(len).map_err(|error| error.to_string()), Ok(()), "{len}");
        }
        for len in [VALUE_BYTES_MAX + 1, u64::MAX] {
            let error = check_value(len).expect_err("too long").to_string();
            assert!(error.contains(&len.to_string()), "{error}");
        }
    }

    /// Grouping, modelling and encoding have more than one part, and are told to use all threads.
    #[test]
    fn every_stage_is_given_all_threads() {
        let folder = tempfile::tempdir().unwrap();
        for (spills, of_mod, encodes) in [(false, 2, "mod.rs"), (true, 1, "encode.rs")] {
            let options = Options::default().threads(2).temporary_directory(folder.path());
            let mut builder = Builder::with_options(&["a"], options.bigrams(Bigrams::On)).unwrap();
            for n in 0..8 * rows::BUCKET_TRAILS as u64 {
                let value = format!("value {}", n % 100);
                builder.add(Uuid::from_number(u128::from(n / 2) << 64), n, &[value]).unwrap();
            }
            parallel::calls::take();
            if spills {
                builder.settle();
                builder.spill_events().unwrap();
            }
            builder.finish(folder.path().join("a.tdb")).unwrap();
            let calls = parallel::calls::take();
            // What was spilled is so little that it is one chunk.
            let least = if spills { 1 } else { 2 };
            let lines = |file: &str| -> BTreeSet<u32> {
                let of_it = calls.iter().filter(|call| call.by.file().ends_with(file));
                of_it.filter(|call| call.parts >= least).map(|call| call.by.line()).collect()
            };
            assert!(calls.iter().all(|call| call.threads == 2), "{calls:?}");
            // One call there is grouping, and the other one encoding, unless that is elsewhere.
            assert_eq!(lines("write/mod.rs").len(), of_mod, "{calls:?}");
            assert!(!lines(&format!("write/{encodes}")).is_empty(), "{calls:?}");
            assert!(!lines("write/count.rs").is_empty(), "counting, {calls:?}");
            assert!(!lines("write/model.rs").is_empty(), "covering with pairs, {calls:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// When and how often events and values are spilled changes no byte of the database.
        #[test]
        fn spills_leave_no_trace(
            events in prop::collection::vec(any_event(), 0..300),
            threads in 1..4usize,
            directory in any::<bool>(),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let write = |spills: bool, threads: usize| {
                let options = Options::default()
                    .threads(threads)
                    .directory(directory)
                    .temporary_directory(folder.path());
                let mut builder = Builder::with_options(&["a", "b", "c"], options).unwrap();
                for &(trail, time, values, then) in &events {
                    let values = values.map(|value| match value {
                        0 => String::new(),
                        value => format!("value {value}"),
                    });
                    builder.add(Uuid([trail; 16]), time, &values).unwrap();
                    if spills && !matches!(then, Then::Nothing) {
                        builder.settle();
                        builder.spill_events().unwrap();
                        if matches!(then, Then::SpillValues) {
                            builder.spill_values().unwrap();
                        }
                    }
                }
                let path = folder.path().join(format!("{spills}.tdb"));
                let written = builder.finish(&path).unwrap();
                let mut members = vec![path.clone()];
                if directory {
                    members = std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()).collect();
                    members.sort();
                }
                let bytes: Vec<_> =
                    members.iter().map(|member| std::fs::read(member).unwrap()).collect();
                (written, bytes)
            };
            prop_assert!(write(true, threads) == write(false, 1));
            let left = std::fs::read_dir(folder.path()).unwrap().count();
            prop_assert_eq!(left, 2, "temporary files are gone");
        }
    }
}
