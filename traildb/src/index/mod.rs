//! An index: in which trails an item is, and which number a value has.
//!
//! ```text
//!   head | field 1: lists, slots, table | field 2: ... |      FORMAT.md K1-K6
//!
//!   value --hash--> table --> number --> slot --> list of trails
//! ```
//!
//! The file stands beside its database and belongs to it alone: it holds what the database is known
//! by, and is refused for another. It is read like a database, from any
//! [`Storage`], so a query of a database far away
//! takes a handful of round trips: it need not read the lexicon to find an item, nor trails that
//! cannot match.

mod build; // from a database
mod layout; // the head
mod matching; // trails that can match a filter
mod pages; // bytes with checksums
mod postings; // lists of trails
mod sorter; // more numbers than fit in memory
mod table; // values by hash

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, RwLock},
};

pub use build::{Build, Built, Progress};
pub use matching::Matching;
pub(crate) use matching::restricts;

use self::{
    layout::{Entry, Head},
    pages::Pages,
};
use crate::{
    container::Plan, error::Error, filter::Filter, item::Item, read::Reader, storage::Storage,
};

/// What is added to the name of a database to name its index.
pub const SUFFIX: &str = ".tdbidx";

/// What [`Error::Damaged`] calls the member, where an index is what is damaged.
pub const MEMBER: &str = "index";

/// Where the index of the database at `path` is by convention: `events.tdb` has
/// `events.tdb.tdbidx`, and the directory `events` has `events.tdbidx`.
pub fn path_of(path: &Path) -> PathBuf {
    // A slash at the end of a directory's name is none of its name.
    let mut name = path.components().as_path().as_os_str().to_owned();
    name.push(SUFFIX);
    name.into()
}

/// Whether a file that starts with these bytes, eight at least, is meant to be an index.
pub fn is_index(head: &[u8]) -> bool {
    head.starts_with(&layout::MAGIC)
}

/// An open index.
///
/// Everything that is read of it is checked. It can be shared between threads.
#[derive(Debug)]
pub struct Index<S: Storage> {
    pages: Pages<S>,
    head: Head,
    /// Entries of fields that were asked for.
    entries: RwLock<HashMap<u16, Entry>>,
}

impl<S: Storage> Index<S> {
    /// Opens the index in `storage` for `reader`.
    ///
    /// # Errors
    /// [`Error::IndexMismatch`] if it is the index of another database, or of this one before it was
    /// written anew. [`Error::IndexVersion`] and [`Error::Damaged`] if it is not an index that this
    /// crate reads.
    pub fn open<D: Storage>(storage: S, reader: &Reader<D>) -> Result<Index<S>, Error> {
        reader.announce_identity()?;
        let pages = Pages::new(storage)?;
        let head = Head::read(&pages)?;
        let index = Index { pages, head, entries: RwLock::default() };
        index.check(reader)?;
        Ok(index)
    }

    /// Makes sure that this is the index of `reader`'s database.
    pub(crate) fn check<D: Storage>(&self, reader: &Reader<D>) -> Result<(), Error> {
        let fits = self.head.trails == reader.trails()
            && self.head.fields as usize == reader.fields()?.len()
            && self.head.identity == reader.identity()?;
        match fits {
            true => Ok(()),
            false => Err(Error::IndexMismatch {
                index: self.pages.members().object().to_owned(),
                database: reader.object().to_owned(),
            }),
        }
    }

    /// The storage.
    pub fn storage(&self) -> &S {
        &self.pages.members().stores()[0]
    }

    fn entry(&self, field: u16) -> Result<Entry, Error> {
        if field == 0 || u32::from(field) > self.head.fields {
            return Err(Error::NoSuchField { field: field.to_string() });
        }
        let known = self.entries.read().ok().and_then(|map| map.get(&field).copied());
        if let Some(entry) = known {
            return Ok(entry);
        }
        let entry = Entry::read(&self.pages, &self.head, field)?;
        if let Ok(mut entries) = self.entries.write() {
            entries.insert(field, entry);
        }
        Ok(entry)
    }

    /// The item of a value of a field of `reader`; `None` if the database does not have it.
    ///
    /// [`Reader::item`] does the same once the index is [attached](Reader::attach); this is for an
    /// index on a storage of another kind.
    ///
    /// # Errors
    /// Those of reading the index or the lexicon.
    pub fn item<D: Storage>(
        &self,
        reader: &Reader<D>,
        field: u16,
        value: &[u8],
    ) -> Result<Option<Item>, Error> {
        Ok(self.items(reader, field, &[value])?[0])
    }

    /// The trails that can match a filter, ascending; see
    /// [`View::matching_trails`](crate::View::matching_trails), which does the same once the index
    /// is [attached](Reader::attach).
    ///
    /// # Errors
    /// Those of reading the index.
    pub fn matching_trails<D: Storage>(
        self: &Arc<Self>,
        reader: &Reader<D>,
        filter: &Filter,
    ) -> Result<Matching<S>, Error> {
        self.check(reader)?;
        Matching::new(Some(self.clone()), Some(filter), Vec::new(), reader.trails())
    }

    /// The items of values of a field of `reader`, in their order; `None` for a value that the
    /// database does not have. All are looked up together, in three rounds of requests: where they
    /// would be, where their bytes are, and those bytes, which have to be the same.
    pub(crate) fn items<D: Storage>(
        &self,
        reader: &Reader<D>,
        field: u16,
        values: &[&[u8]],
    ) -> Result<Vec<Option<Item>>, Error> {
        /// Values looked up in one round: bounds the memory of plans and answers.
        const BATCH: usize = 4096;
        let entry = self.entry(field)?;
        if entry.count != reader.values(field)? {
            let reason = format!("field {field} has {} values in the index", entry.count);
            return Err(self.pages.damaged(0, reason));
        }
        let mut items = Vec::with_capacity(values.len());
        for batch in values.chunks(BATCH) {
            let hashes: Vec<u64> = batch.iter().map(|value| table::hash(value)).collect();
            let mut plan = Plan::default();
            for &hash in &hashes {
                table::plan(&self.pages, &entry, hash, &mut plan);
            }
            plan.announce(self.pages.members())?;
            let mut candidates = Vec::with_capacity(batch.len());
            for (value, &hash) in batch.iter().zip(&hashes) {
                candidates.push(match value.is_empty() {
                    true => Some(Vec::new()),
                    false => table::find(&self.pages, &entry, hash)?,
                });
            }
            let all = candidates.iter().flatten().flatten().map(|&number| Item::new(field, number));
            let all: Vec<Item> = all.collect();
            // What comes next, should the value be the one, is asked for at the same time.
            self.announce_slots(&all)?;
            reader.prefetch_values(&all)?;
            self.announce_lists(&all)?;
            let mut bytes = Vec::new();
            for (value, numbers) in batch.iter().zip(candidates) {
                let Some(numbers) = numbers else {
                    items.push(reader.item_by_scan(field, value)?);
                    continue;
                };
                let mut found = value.is_empty().then(|| Item::new(field, 0));
                for number in numbers {
                    if found.is_some() {
                        break;
                    }
                    let item = Item::new(field, number);
                    bytes.clear();
                    reader.append_value(item, &mut bytes)?;
                    found = (bytes == *value).then_some(item);
                }
                items.push(found);
            }
        }
        Ok(items)
    }

    /// Announces the slots of items.
    fn announce_slots(&self, items: &[Item]) -> Result<(), Error> {
        if !self.pages.members().is_remote() {
            return Ok(());
        }
        let mut plan = Plan::default();
        for &item in items {
            let entry = self.entry(item.field())?;
            let at = entry.slots_at + item.value() * entry.slot_width;
            self.pages.plan(&mut plan, at..at + entry.slot_width);
        }
        plan.announce(self.pages.members())
    }
}
