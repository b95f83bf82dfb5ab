//! Writing: events in any order become a database.
//!
//! ```text
//!   add() -> values (numbered) -> events (columns)
//!   finish() -> group (trails by UUID, events by time) -> model (codes) -> encode -> pack -> file
//! ```
//!
//! Everything is held in memory, in columns: 12 bytes an event and 4 more for each field, and each
//! distinct value once. Equal input gives equal bytes.

mod values; // the distinct values of a field, numbered
mod group; // events by trail and time
mod model; // which items get which code words
mod huffman; // code lengths of at most 16 bits
mod encode; // trails as bits
mod pack; // members into a package or a directory

use std::{collections::HashMap, path::Path};

use self::{group::Grouped, values::Values};
use crate::{
    error::{Error, InputError},
    item::{TRAILS_MAX, Uuid},
    member::{fields::Fields, info::Info},
};

/// The most events and trails of one builder: they are numbered in 32 bits.
const COUNT_MAX: usize = u32::MAX as usize;

/// How a database is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// A directory with a file for each member instead of a package. Default: a package.
    pub directory: bool,
    /// The most memory that events and values may take, in bytes; 0 for no limit (default).
    pub memory_bytes: u64,
}

impl Options {
    /// Writes a directory.
    pub fn directory(mut self, directory: bool) -> Options {
        self.directory = directory;
        self
    }

    /// Refuses events beyond `bytes` bytes of memory.
    pub fn memory_bytes(mut self, bytes: u64) -> Options {
        self.memory_bytes = bytes;
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
    fields: Fields,
    values: Vec<Values>,
    trails: HashMap<Uuid, u32>,
    events: Events,
}

/// Events in columns, in the order in which they were added.
#[derive(Debug, Default)]
struct Events {
    trail: Vec<u32>,
    time: Vec<u64>,
    /// One number for each field of each event.
    values: Vec<u32>,
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
        Ok(Builder {
            options,
            fields: Fields::new(fields)?,
            values: fields.iter().map(|_| Values::default()).collect(),
            trails: HashMap::new(),
            events: Events::default(),
        })
    }

    /// Number of events so far.
    pub fn events(&self) -> u64 {
        self.events.time.len() as u64
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
        let events = self.events.time.len();
        if events >= COUNT_MAX {
            return Err(InputError::TooMany("events").into());
        }
        let limit = self.options.memory_bytes;
        // The sum is cheap to take now and then only.
        if limit > 0 && events.is_multiple_of(1024) && self.memory() > limit {
            return Err(InputError::Memory { limit }.into());
        }
        for (field, value) in values.iter().enumerate() {
            self.values[field].check(value.as_ref(), &self.fields, field)?;
        }
        let next = self.trails.len();
        if next >= COUNT_MAX.min(TRAILS_MAX as usize) && !self.trails.contains_key(&uuid) {
            return Err(InputError::TooMany("trails").into());
        }
        let trail = *self.trails.entry(uuid).or_insert(next as u32);
        self.events.trail.push(trail);
        self.events.time.push(time);
        for (numbers, value) in self.values.iter_mut().zip(values) {
            let number = numbers.number(value.as_ref());
            self.events.values.push(number);
        }
        Ok(())
    }

    fn memory(&self) -> u64 {
        let columns = self.events.trail.capacity() * 4
            + self.events.time.capacity() * 8
            + self.events.values.capacity() * 4;
        let values: usize = self.values.iter().map(Values::memory).sum();
        (columns + values + self.trails.capacity() * 24) as u64
    }

    /// Writes the database to `path`, under another name until it is whole and on the disk.
    ///
    /// # Errors
    /// [`InputError`] when timestamps lie too far apart for the format, before anything is written;
    /// [`Error::File`] when the system refuses to write. What was at `path` before is untouched
    /// then.
    pub fn finish(self, path: impl AsRef<Path>) -> Result<Written, Error> {
        let Builder { options, fields, values, trails, events } = self;
        let grouped = Grouped::new(&events, trails, fields.len())?;
        drop(events);
        let info = grouped.info();
        let counts: Vec<u64> = values.iter().map(Values::count).collect();
        let model = model::Model::of(&grouped, &counts);
        let encoded = encode::trails(&grouped, &model);
        let uuids = grouped.into_uuids();
        let parts = pack::Parts { info, fields: &fields, values: &values, model, encoded, uuids };
        let bytes = pack::write(path.as_ref(), &parts, options.directory)?;
        Ok(Written { trails: info.trails, events: info.events, bytes })
    }
}

impl Grouped {
    fn info(&self) -> Info {
        if self.events() == 0 {
            return Info::EMPTY;
        }
        Info {
            trails: self.trails(),
            events: self.events(),
            time_min: self.time_min,
            time_max: self.time_max,
            delta_max: self.delta_max,
        }
    }
}
