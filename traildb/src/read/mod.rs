//! Reading: any storage, its members, a cursor over a trail.
//!
//! ```text
//!   Storage -> container -> member -> Trail (cursor) -> Event
//!
//!   round trips of a remote package       1  length and version of the object
//!   (FORMAT.md has no say in this)        2  head and index
//!                                         3  fields, codebook, heads of lexicons, uuids, toc
//!                                         4  trails                        -> events
//!                                         5  offsets of values
//!                                         6  values
//! ```

mod cursor; // events of a trail
mod rows; // many events of short trails at once
mod skim; // the events that have an item
mod long; // those of long trails
mod batch; // events in bulk
mod multi; // many trails in the order of time
mod view; // which events are seen
mod scan; // many trails with many threads
pub mod ordered; // work on threads, its results in order
mod lookup; // numbers of values, in memory
mod values; // values of events that follow one another
mod row_values; // values of many events at once

use std::{
    io,
    ops::Range,
    path::Path,
    sync::{Arc, OnceLock},
};

use crc_fast::{CrcAlgorithm, checksum};

pub use batch::Batch;
pub use cursor::{Event, Trail, Valued};
pub use multi::{MultiBatch, MultiCursor, MultiEvent};
pub use scan::{Chunk, Scan};
pub use values::LastValues;
pub use view::View;

use lookup::Lookups;

use crate::{
    container::{Member, Members, Plan, directory, package},
    error::Error,
    index::Index,
    item::{Item, Uuid},
    member::{
        codebook::{Codebook, Literals},
        fields::Fields,
        info::{self, Info},
        lexicon::{self, LexiconMember, Value},
        trails::Trails,
        uuids::Uuids,
    },
    storage::{File, Storage},
};

/// Of one trail, so many bytes are fetched ahead; the rest follows when the cursor gets there.
const TRAIL_AHEAD_BYTES: u64 = 1 << 20;
/// Values and trails announced in one round. Bounds the memory of a plan, and what a storage with a
/// small budget is asked to hold at once.
const BATCH: usize = 4096;

/// An open database.
///
/// Opening reads the head of the file and announces the members that every query needs, without
/// waiting for them; everything else is read, and checked, when it is first used. A failure of the
/// storage is an `Err` of what was being done, and can be tried again.
///
/// A reader can be shared between threads; each cursor belongs to one.
#[derive(Debug)]
pub struct Reader<S: Storage> {
    members: Members<S>,
    version: u64,
    info: Info,
    /// `None` if there are no trails: such a database need not have the members (E1).
    content: Option<Content>,
    fields: OnceLock<Fields>,
    lexicons: OnceLock<Vec<LexiconMember>>,
    codebook: OnceLock<Codebook>,
    identity: OnceLock<u64>,
    index: Option<Arc<Index<S>>>,
    lookups: Lookups,
}

#[derive(Debug)]
struct Content {
    uuids: Uuids,
    trails: Trails,
    codebook: Member,
}

impl Reader<File> {
    /// Opens the database at `path`: a package, or a directory. If there is nothing at `path`,
    /// `path.tdb` is tried.
    ///
    /// # Errors
    /// [`Error::File`] when there is no such file or it cannot be read; those of
    /// [`new`](Reader::new).
    pub fn open(path: impl AsRef<Path>) -> Result<Reader<File>, Error> {
        let path = existing(path.as_ref());
        let failed = |source| Error::file(&path, source);
        if path.metadata().map_err(failed)?.is_dir() {
            return Reader::open_directory(|name| match File::open(path.join(name)) {
                Ok(file) => Ok(Some(file)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => {
                    let text = format!("{}: {error}", path.join(name).display());
                    Err(io::Error::new(error.kind(), text))
                }
            });
        }
        Reader::new(File::open(&path).map_err(failed)?)
    }
}

/// `path`, or `path.tdb` if only that exists.
pub fn existing(path: &Path) -> std::path::PathBuf {
    let mut longer = path.as_os_str().to_owned();
    longer.push(".tdb");
    if !path.exists() && Path::new(&longer).exists() { longer.into() } else { path.to_owned() }
}

impl<S: Storage> Reader<S> {
    /// Opens a database in the package form: one storage holds it all.
    ///
    /// # Errors
    /// [`Error::Version`] for a version that is not known; [`Error::Storage`] when bytes cannot be
    /// had, [`Error::Damaged`] when they break a rule of the format.
    pub fn new(storage: S) -> Result<Reader<S>, Error> {
        let members = package::open(storage)?;
        let version = info::read_version(&members)?;
        let reader = Reader::with_members(members, version)?;
        reader.announce_common()?;
        Ok(reader)
    }

    /// Opens a database in the directory form: `open` gives the storage of each member by its name,
    /// or `None` if there is no such member.
    ///
    /// # Errors
    /// What `open` returns, as [`Error::Storage`]; else those of [`new`](Reader::new).
    pub fn open_directory(
        open: impl FnMut(&str) -> io::Result<Option<S>>,
    ) -> Result<Reader<S>, Error> {
        let mut opener = directory::Opener::new(open);
        opener.add("version")?;
        let version = info::read_version(opener.members())?;
        for name in ["info", "fields"] {
            opener.add(name)?;
        }
        let member = opener.members().need("fields")?;
        let fields = Fields::read(opener.members(), &member)?;
        for name in fields.names() {
            opener.add(&format!("lexicon.{name}"))?;
        }
        let uuids = if version == 0 { "cookies" } else { "uuids" };
        for name in ["trails.codebook", "trails.toc", "trails.data", uuids] {
            opener.add(name)?;
        }
        let reader = Reader::with_members(opener.finish(), version)?;
        reader.fields.set(fields).expect("set here for the first time");
        reader.announce_common()?;
        Ok(reader)
    }

    pub(crate) fn with_members(members: Members<S>, version: u64) -> Result<Reader<S>, Error> {
        let info = Info::read(&members, &members.need("info")?)?;
        let content = match info.trails {
            0 => None,
            trails => Some(Content {
                uuids: Uuids::open(&members, trails, version)?,
                trails: Trails::open(&members, trails)?,
                codebook: members.need("trails.codebook")?,
            }),
        };
        members.need("fields")?;
        Ok(Reader {
            members,
            version,
            info,
            content,
            fields: OnceLock::new(),
            lexicons: OnceLock::new(),
            codebook: OnceLock::new(),
            identity: OnceLock::new(),
            index: None,
            lookups: Lookups::default(),
        })
    }

    /// Announces what every query needs: names, code, and how many values each field has.
    fn announce_common(&self) -> Result<(), Error> {
        let mut plan = Plan::default();
        for member in self.members.iter() {
            if &*member.name == "fields" {
                plan.add(member, 0..member.len);
            } else if &*member.name == "trails.codebook" && self.content.is_some() {
                plan.add(member, 0..Codebook::bytes(self.version));
            } else if member.name.starts_with("lexicon.") {
                plan.add(member, lexicon::head(member));
            }
        }
        plan.announce(&self.members)
    }

    /// The format version of the file: 0 or 1.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Number of trails.
    pub fn trails(&self) -> u64 {
        self.info.trails
    }

    /// Number of events.
    pub fn events(&self) -> u64 {
        self.info.events
    }

    /// The earliest timestamp, or `None` if there are no events.
    pub fn time_min(&self) -> Option<u64> {
        (self.info.trails > 0).then_some(self.info.time_min)
    }

    /// The latest timestamp, or `None` if there are no events.
    pub fn time_max(&self) -> Option<u64> {
        (self.info.trails > 0).then_some(self.info.time_max)
    }

    /// The members of the database and their sizes in bytes, by name.
    pub fn members(&self) -> Vec<(&str, u64)> {
        let mut list: Vec<_> = self.members.iter().map(|m| (&*m.name, m.len)).collect();
        list.sort_unstable();
        list
    }

    /// The storages: one of a package, one for each member of a directory.
    pub fn storages(&self) -> &[S] {
        self.members.stores()
    }

    /// The user fields.
    ///
    /// # Errors
    /// [`Error::Storage`] when bytes cannot be had, [`Error::Damaged`] when they break a rule of
    /// the format.
    pub fn fields(&self) -> Result<&Fields, Error> {
        once(&self.fields, || Fields::read(&self.members, &self.members.need("fields")?))
    }

    /// The number of the field `name`, as an error if there is none.
    ///
    /// # Errors
    /// [`Error::NoSuchField`]; those of [`fields`](Reader::fields).
    pub fn field(&self, name: &str) -> Result<u16, Error> {
        self.fields()?.find(name).ok_or_else(|| Error::NoSuchField { field: name.into() })
    }

    /// Number of distinct values of `field` (from 1), NULL not counted. Value numbers go from 1 to
    /// this; 0 is NULL.
    ///
    /// # Errors
    /// [`Error::NoSuchField`]; [`Error::Storage`] when bytes cannot be had, [`Error::Damaged`] when
    /// they break a rule of the format.
    pub fn values(&self, field: u16) -> Result<u64, Error> {
        Ok(self.lexicon(field)?.count)
    }

    fn lexicons(&self) -> Result<&[LexiconMember], Error> {
        let lexicons = once(&self.lexicons, || {
            let open = |name| {
                let member = self.members.need(&format!("lexicon.{name}"))?;
                LexiconMember::open(&self.members, member, self.version)
            };
            self.fields()?.names().map(open).collect()
        })?;
        Ok(lexicons)
    }

    #[inline]
    fn known_lexicon(&self, field: u16) -> Option<&LexiconMember> {
        self.lexicons.get()?.get(usize::from(field).checked_sub(1)?)
    }

    fn lexicon(&self, field: u16) -> Result<&LexiconMember, Error> {
        let index = usize::from(field).checked_sub(1);
        index
            .and_then(|index| self.lexicons().map(|all| all.get(index)).transpose())
            .unwrap_or_else(|| Err(Error::NoSuchField { field: field.to_string() }))
    }

    /// The value of an item, in place. Empty for NULL.
    ///
    /// An item of the time field has no value: [`Error::NoSuchField`].
    ///
    /// # Errors
    /// [`Error::NoSuchField`] and [`Error::NoSuchValue`] for an item that this database cannot
    /// have; [`Error::Storage`] when bytes cannot be had, [`Error::Damaged`] when they break a rule
    /// of the format.
    #[inline]
    pub fn value(&self, item: Item) -> Result<Value<'_, S>, Error> {
        match self.located(item)? {
            None => Ok(Value::NULL),
            Some(lexicon) => lexicon.value(&self.members, item.value()),
        }
    }

    /// The value of an item, if it is a slice of memory; empty for NULL.
    #[inline]
    fn value_in_memory(&self, item: Item) -> Result<Option<&[u8]>, Error> {
        Ok(match self.located(item)? {
            None => Some(&[]),
            Some(lexicon) => lexicon.value_in_memory(&self.members, item.value()),
        })
    }

    /// A look-up of values that remembers the last one of each field.
    ///
    /// # Errors
    /// Those of reading the names of fields, and how many values each has.
    pub fn last_values(&self) -> Result<LastValues<'_, S>, Error> {
        LastValues::new(self)
    }

    /// Appends the value of an item to `out`: of any length, and nothing stays pinned.
    ///
    /// # Errors
    /// Those of [`value`](Reader::value).
    pub fn append_value(&self, item: Item, out: &mut Vec<u8>) -> Result<(), Error> {
        match self.located(item)? {
            None => Ok(()),
            Some(lexicon) => lexicon.append(&self.members, item.value(), out),
        }
    }

    /// The lexicon that holds the value of `item`, or `None` for NULL.
    #[inline]
    fn located(&self, item: Item) -> Result<Option<&LexiconMember>, Error> {
        let lexicon = match self.known_lexicon(item.field()) {
            Some(lexicon) => lexicon,
            None => self.lexicon(item.field())?,
        };
        if item.value() > lexicon.count {
            let (field, value, count) = (item.field(), item.value(), lexicon.count);
            return Err(Error::NoSuchValue { field, value, count });
        }
        Ok((!item.is_null()).then_some(lexicon))
    }

    /// The item of a value, or `None` if no event has it.
    ///
    /// Values of a lexicon are in no order. With an index ([`attach`](Reader::attach)) this is a look
    /// at where the value must be. Without one, the first question about a field passes over its
    /// lexicon, and the second makes a table in memory for it and all that follow, if the storage is
    /// not remote ([`lookup_memory`](Reader::lookup_memory)).
    ///
    /// # Errors
    /// [`Error::NoSuchField`]; [`Error::Storage`] when bytes cannot be had, [`Error::Damaged`] when
    /// they break a rule of the format, of the lexicon or of the index.
    pub fn item(&self, field: u16, value: &[u8]) -> Result<Option<Item>, Error> {
        Ok(self.items(field, &[value])?[0])
    }

    /// The items of many values of a field, in their order: with an index by three rounds of requests
    /// to where they are, else as [`item`](Reader::item), passing over the lexicon at most once for
    /// all of them.
    ///
    /// # Errors
    /// Those of [`item`](Reader::item).
    pub fn items(&self, field: u16, values: &[&[u8]]) -> Result<Vec<Option<Item>>, Error> {
        let lexicon = self.lexicon(field)?;
        if let Some(index) = &self.index {
            return index.items(self, field, values);
        }
        let place = (usize::from(field) - 1, self.lexicons()?.len());
        let numbers = self.lookups.find_all(&self.members, place, lexicon, values)?;
        Ok(numbers.into_iter().map(|number| Some(Item::new(field, number?))).collect())
    }

    /// The item of a value, by passing over the lexicon.
    pub(crate) fn item_by_scan(&self, field: u16, value: &[u8]) -> Result<Option<Item>, Error> {
        let found = self.lexicon(field)?.find_all(&self.members, &[value])?;
        Ok(found[0].map(|number| Item::new(field, number)))
    }

    /// The UUID of a trail.
    ///
    /// # Errors
    /// [`Error::NoSuchTrail`]; [`Error::Storage`] when bytes cannot be had, [`Error::Damaged`] when
    /// they break a rule of the format.
    pub fn uuid(&self, trail: u64) -> Result<Uuid, Error> {
        self.content_of(trail)?.uuids.get(&self.members, trail)
    }

    /// The UUIDs of the trails `range`, which must exist.
    ///
    /// # Errors
    /// [`Error::NoSuchTrail`]; [`Error::Storage`] when bytes cannot be had, [`Error::Damaged`] when
    /// they break a rule of the format.
    pub fn uuids(&self, range: Range<u64>) -> Result<Vec<Uuid>, Error> {
        if range.start >= range.end {
            return Ok(Vec::new());
        }
        self.content_of(range.end - 1)?.uuids.window(&self.members, range)
    }

    /// The UUIDs of these trails, in their order. Those near one another are read together, and those
    /// of a remote database take one round of requests.
    ///
    /// # Errors
    /// [`Error::NoSuchTrail`]; [`Error::Storage`] when bytes cannot be had, [`Error::Damaged`] when
    /// they break a rule of the format.
    pub fn uuids_of(&self, trails: &[u64]) -> Result<Vec<Uuid>, Error> {
        /// Trails no further apart than this are read together: 1 KiB.
        const GAP: u64 = 64;
        /// And at most so many.
        const WINDOW: u64 = 4096;
        let mut uuids = Vec::with_capacity(trails.len());
        for batch in trails.chunks(BATCH) {
            let mut plan = Plan::default();
            for &trail in batch {
                self.content_of(trail)?.uuids.plan(&mut plan, trail);
            }
            plan.announce(&self.members)?;
            let mut rest = batch;
            while let Some(&start) = rest.first() {
                let near = |pair: &[u64]| {
                    pair[0] < pair[1] && pair[1] - pair[0] <= GAP && pair[1] - start < WINDOW
                };
                let n = 1 + rest.windows(2).take_while(|pair| near(pair)).count();
                let window = self.uuids(start..rest[n - 1] + 1)?;
                uuids.extend(rest[..n].iter().map(|&trail| window[(trail - start) as usize]));
                rest = &rest[n..];
            }
        }
        Ok(uuids)
    }

    /// The trail of a UUID, or `None` if there is none.
    ///
    /// # Errors
    /// [`Error::Storage`] when bytes cannot be had, [`Error::Damaged`] when they break a rule of
    /// the format.
    pub fn trail_id(&self, uuid: Uuid) -> Result<Option<u64>, Error> {
        Ok(self.trail_ids(&[uuid])?[0])
    }

    /// The trails of many UUIDs, in their order. Of a remote database they are looked for 256 at a
    /// time, each time in about as many round trips as one takes (a few more where one of them is far
    /// from where most of its kind are); all entries are read where that is less.
    ///
    /// # Errors
    /// [`Error::Storage`] when bytes cannot be had, [`Error::Damaged`] when they break a rule of
    /// the format.
    pub fn trail_ids(&self, uuids: &[Uuid]) -> Result<Vec<Option<u64>>, Error> {
        match &self.content {
            None => Ok(vec![None; uuids.len()]),
            Some(content) => content.uuids.find(&self.members, &content.trails, uuids),
        }
    }

    /// Announces that these trails will be read, so that their bytes come in one round of requests.
    ///
    /// # Errors
    /// [`Error::NoSuchTrail`]; [`Error::Storage`] when bytes cannot be had, [`Error::Damaged`] when
    /// they break a rule of the format. What was announced before the error is on its way.
    pub fn prefetch_trails(&self, trails: &[u64]) -> Result<(), Error> {
        if !self.members.is_remote() {
            return Ok(());
        }
        for batch in trails.chunks(BATCH) {
            for &trail in batch {
                self.content_of(trail)?;
            }
            self.announce_offsets(batch)?;
            self.announce_data(batch, u64::MAX)?;
        }
        Ok(())
    }

    /// Announces where these trails are, of which there are not many. What is wrong with a trail is told
    /// by who reads it.
    fn announce_offsets(&self, trails: &[u64]) -> Result<(), Error> {
        if !self.members.is_remote() {
            return Ok(());
        }
        let mut plan = Plan::default();
        for &trail in trails {
            if let Ok(content) = self.content_of(trail) {
                content.trails.plan_offsets(&mut plan, trail..trail + 1);
            }
        }
        plan.announce(&self.members)
    }

    /// Announces the bytes of the first of these trails, up to about `bytes_max` in all, and returns
    /// how many of each: none of one that is wrong, which is told by who reads it.
    fn announce_data(&self, trails: &[u64], bytes_max: u64) -> Result<Vec<u64>, Error> {
        let mut lens = Vec::new();
        if !self.members.is_remote() {
            return Ok(lens);
        }
        let (mut plan, mut bytes) = (Plan::default(), 0u64);
        for &trail in trails {
            if bytes >= bytes_max {
                break;
            }
            let found = self.content_of(trail).and_then(|content| {
                Ok((&content.trails, content.trails.span(&self.members, trail)?))
            });
            let Ok((all, span)) = found else {
                lens.push(0);
                continue;
            };
            let len = (span.end - span.start).min(TRAIL_AHEAD_BYTES);
            all.plan_data(&mut plan, &span, TRAIL_AHEAD_BYTES);
            bytes = bytes.saturating_add(len);
            lens.push(len);
        }
        plan.announce(&self.members)?;
        Ok(lens)
    }

    /// Fetches the values of these items in two rounds of requests: where they are, and themselves.
    /// Waits for the first round, not for the second.
    ///
    /// # Errors
    /// Those of [`value`](Reader::value). What was announced before the error is on its way.
    pub fn prefetch_values(&self, items: &[Item]) -> Result<(), Error> {
        if !self.members.is_remote() {
            return Ok(());
        }
        for batch in items.chunks(BATCH) {
            let mut plan = Plan::default();
            for &item in batch {
                if let Some(lexicon) = self.located(item)? {
                    lexicon.plan_offsets(&mut plan, item.value());
                }
            }
            plan.announce(&self.members)?;
            let mut plan = Plan::default();
            for &item in batch {
                if let Some(lexicon) = self.located(item)? {
                    let span = lexicon.span(&self.members, item.value())?;
                    let end = span.end.min(span.start + TRAIL_AHEAD_BYTES);
                    plan.add(&lexicon.member, span.start..end);
                }
            }
            plan.announce(&self.members)?;
        }
        Ok(())
    }

    /// All events of the database: the view that filters are set on.
    pub fn view(&self) -> View<'_, S> {
        View::new(self)
    }

    /// A cursor over the events of a trail.
    ///
    /// # Errors
    /// Those of [`Trail::seek`].
    pub fn trail(&self, trail: u64) -> Result<Trail<'_, S>, Error> {
        self.view().trail(trail)
    }

    /// Number of events of a trail. Decodes it: the file does not say.
    ///
    /// # Errors
    /// Those of [`Trail::seek`] and [`Trail::next_event`].
    pub fn trail_len(&self, trail: u64) -> Result<u64, Error> {
        self.view().trail_len(trail)
    }

    /// A cursor that is at the end of no trail: [`Trail::seek`] puts it on one. Passing over many
    /// trails with one cursor allocates nothing, and in ascending order reads ahead.
    ///
    /// # Errors
    /// [`Error::Storage`] when bytes cannot be had, [`Error::Damaged`] when they break a rule of
    /// the format, in what every trail needs: the codebook.
    pub fn cursor(&self) -> Result<Trail<'_, S>, Error> {
        self.view().cursor()
    }

    /// Lets this reader find items and trails with the help of its index.
    ///
    /// # Errors
    /// [`Error::IndexMismatch`] if the index was opened for another database.
    pub fn attach(&mut self, index: Index<S>) -> Result<(), Error> {
        index.check(self)?;
        self.index = Some(Arc::new(index));
        Ok(())
    }

    /// The index, if one is attached.
    pub fn index(&self) -> Option<&Arc<Index<S>>> {
        self.index.as_ref()
    }

    /// Sets how much memory tables of values may take, in bytes: [`item`](Reader::item) makes them, of
    /// 10 bytes for each value of a field that is asked again. Default: 256 MiB; 0 for none. Tables
    /// that were made are given up.
    #[must_use]
    pub fn lookup_memory(mut self, bytes: u64) -> Reader<S> {
        self.lookups = Lookups::new(bytes);
        self
    }

    /// The storage's name.
    pub(crate) fn object(&self) -> &str {
        self.members.object()
    }

    /// Calls `each` with the numbers and bytes of the values `numbers` of a field.
    pub(crate) fn each_value(
        &self,
        field: u16,
        numbers: Range<u64>,
        each: impl FnMut(u64, &[u8]),
    ) -> Result<(), Error> {
        self.lexicon(field)?.each(&self.members, numbers, each)
    }

    /// Announces what [`identity`](Reader::identity) reads.
    pub(crate) fn announce_identity(&self) -> Result<(), Error> {
        let mut plan = Plan::default();
        for (member, range) in self.identifying()? {
            plan.add(&member, range);
        }
        plan.announce(&self.members)
    }

    /// Parts of members that tell this database from others: those that opening and every query
    /// read anyway, and the ends of others. Values that are others of the same lengths leave all but
    /// lexicons as they are, so the ends of those are among them.
    fn identifying(&self) -> Result<Vec<(Member, Range<u64>)>, Error> {
        const END_BYTES: u64 = 4 << 10;
        /// The first so many, by name: each is a request of its own where it is far away and large.
        const LEXICONS: usize = 64;
        let end = |member: Member| {
            let len = member.len;
            (member, len.saturating_sub(END_BYTES)..len)
        };
        let mut parts = Vec::new();
        for name in ["info", "fields"] {
            let member = self.members.need(name)?;
            let len = member.len;
            parts.push((member, 0..len));
        }
        if let Some(content) = &self.content {
            parts.push((content.codebook.clone(), 0..content.codebook.len));
            parts.push(end(content.trails.data.clone()));
            parts.push(end(content.uuids.member().clone()));
            // Members are known without a look at the names of fields, which may be on their way.
            let lexicons = self.members.iter().filter(|one| one.name.starts_with("lexicon."));
            let mut lexicons: Vec<&Member> = lexicons.collect();
            lexicons.sort_unstable_by(|a, b| a.name.cmp(&b.name));
            parts.extend(lexicons.into_iter().take(LEXICONS).cloned().map(end));
        }
        Ok(parts)
    }

    /// What this database is known by (FORMAT.md K3): names and sizes of its members, and the bytes
    /// of the smaller ones. A database written anew from other events has another.
    pub(crate) fn identity(&self) -> Result<u64, Error> {
        once(&self.identity, || {
            /// Parts are small in a sound database; of another one no more is read.
            const PART_BYTES_MAX: u64 = 16 << 20;
            let mut all = Vec::new();
            for (name, len) in self.members() {
                if name != "tar.toc" && name != "version" {
                    all.extend_from_slice(format!("{name} {len}\n").as_bytes());
                }
            }
            let mut bytes = Vec::new();
            for (member, range) in self.identifying()? {
                bytes.resize((range.end - range.start).min(PART_BYTES_MAX) as usize, 0);
                self.members.read(&member, range.start, &mut bytes)?;
                let sum = checksum(CrcAlgorithm::Crc64Nvme, &bytes);
                all.extend_from_slice(&sum.to_le_bytes());
            }
            Ok(checksum(CrcAlgorithm::Crc64Nvme, &all))
        })
        .copied()
    }

    fn content_of(&self, trail: u64) -> Result<&Content, Error> {
        let trails = self.info.trails;
        let content = self.content.as_ref().filter(|_| trail < trails);
        content.ok_or(Error::NoSuchTrail { trail, trails })
    }

    fn codebook(&self) -> Result<&Codebook, Error> {
        once(&self.codebook, || {
            let counts = self.lexicons()?.iter().map(|lexicon| lexicon.count);
            let literals = Literals::new(self.info.delta_max, counts);
            match &self.content {
                Some(content) => {
                    Codebook::read(&self.members, &content.codebook, self.version, literals)
                }
                None => Ok(Codebook::empty(literals)),
            }
        })
    }
}

/// Sets a cell unless it is set. Two threads may both do the work; one result is kept.
fn once<T>(cell: &OnceLock<T>, make: impl FnOnce() -> Result<T, Error>) -> Result<&T, Error> {
    match cell.get() {
        Some(value) => Ok(value),
        None => {
            let value = make()?;
            Ok(cell.get_or_init(|| value))
        }
    }
}
