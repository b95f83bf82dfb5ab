//! The bytes of the sequencer, and of what a large transaction writes.
//!
//! `sequencer/numbers` is a frame (see `frame`) of magic `s3dN`, version 1, or 2 where commits are put aside, or 3 where
//! a blob is named, or 4 where there is an index, or a write whose key is longer than that of a record:
//!
//! | bytes | field |
//! | --- | --- |
//! | 16 | write id, random at each put |
//! | 8, 8, 8 | the last commit's number; up to which all are on their pages; up to which pages may be pruned |
//! | 2, and each | dates of commits: number (8), milliseconds since 1970 (8) |
//! | 2, and each | lives: client (8), epoch (8), number of its last commit (8) |
//! | 2, and each | version 4: indexes, rising: tree of the collection (16), tree of the index (16), kind of search key (1), what it needs (2 + n), as in the catalogue, and 1 if it has all records (1) |
//! | 2, and each | the last commits, in order: id (16), client (8), epoch (8), date (8), then 0 and writes, or 1 and the object that has them: name (2 + n), its length (4) |
//! | 2, and each | versions 2 to 4: commits that were put aside, in order: number (8), and as above. In version 2 there is one at least |
//!
//! The numbers of the commits end with the last one. Writes are a count (4), and each: tree (16), key
//! (2 + n), 0 for a delete, 1 and the payload (4 + n), or 2 and the name of the blob that it lies in (40, see
//! `blob`); they rise by tree and key. An object `sequencer/data/DATE-RANDOM` is a frame of magic `s3dV`, version
//! 1, or 2 where a blob is named, or 3 where a key is longer than that of a record, as entries of indexes can be: the
//! commit's id (16), and writes. Frames in which there is no such thing are of the versions before: programs that do
//! not know it are told so, and read all others.

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    blob::{Blob, REFERENCE_BYTES, Value},
    frame::{FrameError, Reader, Writer, is_number},
    page::{PageId, SLOT_KEY_BYTES_MAX},
    record::{INLINE_BYTES_MAX, KEY_BYTES_MAX},
    search_by::SearchBy,
    sequence::versions,
};

const MAGIC: &str = "s3dN";
const DATA_MAGIC: &str = "s3dV";
const VERSION: u8 = 1;
/// With commits that were put aside.
const VERSION_ASIDE: u8 = 2;
/// With a commit that names a blob, and perhaps with some that were put aside.
const VERSION_BLOBS: u8 = 3;
/// With an index, or an entry of one that is longer than a key, and perhaps with all of the others.
const VERSION_INDEXES: u8 = 4;
/// Of data that names a blob.
const DATA_VERSION_BLOBS: u8 = 2;
/// Of data with an entry that is longer than a key, and perhaps with blobs.
const DATA_VERSION_ENTRIES: u8 = 3;
/// Bytes of the longest key of a write: an entry of an index, which is a pair of keys, the first one escaped.
const WRITE_KEY_BYTES_MAX: usize = 3 * KEY_BYTES_MAX + 2;
/// The object that orders all commits.
pub(crate) const NUMBERS: &str = "sequencer/numbers";
/// What the names of objects start with that hold what a transaction writes.
pub(crate) const DATA: &str = "sequencer/data/";
/// Bytes of one write besides its key and its payload.
pub(super) const WRITE_FIXED_BYTES: usize = 16 + 2 + 1 + 4;
/// Bytes of one commit besides its writes.
const COMMIT_FIXED_BYTES: usize = 16 + 8 + 8 + 8 + 1 + 4;

/// A record that a transaction writes; without a payload, one that it deletes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The collection, by the root of its tree.
    pub tree: PageId,
    /// The record's key.
    pub key: Bytes,
    /// What it holds from then on: the payload, or the blob that it lies in.
    pub payload: Option<Value>,
}

/// One commit of the window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Random: whoever had no answer finds its own by it.
    pub id: u128,
    /// Who committed, in which life.
    pub client: u64,
    /// Which of the client's lives.
    pub epoch: u64,
    /// When, by the object store's clock as the committer knew it: milliseconds since 1970.
    pub date_ms: u64,
    /// The object that has its writes, and its length; `None` when they are here.
    pub object: Option<(String, u32)>,
    /// What it writes, by tree and key. Empty until its object was read.
    pub writes: Arc<[Write]>,
}

/// An index that whoever commits to a collection has to follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SequencedIndex {
    /// The collection, by the root of its tree.
    pub of: PageId,
    /// The index, by the root of its tree.
    pub root: PageId,
    /// Where it finds search keys.
    pub by: SearchBy,
    /// Whether it has all records: of any snapshot that sees this.
    pub is_ready: bool,
}

/// What `sequencer/numbers` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Random at each put.
    pub write_id: u128,
    /// The number of the last commit. The first one is 1.
    pub last: u64,
    /// All commits up to this are on their pages, but for those that were put aside.
    pub applied: u64,
    /// Pages may forget what is replaced up to this.
    pub horizon: u64,
    /// When some commits were made, by number: what `horizon` is moved by.
    pub dates: Vec<(u64, u64)>,
    /// The newest life of each client that committed lately: client, epoch, its last commit.
    pub lives: Vec<(u64, u64, u64)>,
    /// Indexes of the collections, by collection and root.
    pub indexes: Vec<SequencedIndex>,
    /// The last commits; those that are on their pages first.
    pub commits: Vec<Commit>,
    /// Commits up to `applied`, by number, of which something waits for a leaf that cannot be read.
    pub aside: Vec<(u64, Commit)>,
}

impl Write {
    /// Bytes of it.
    pub(super) fn bytes(&self) -> usize {
        WRITE_FIXED_BYTES + self.key.len() + self.payload.as_ref().map_or(0, Value::weight)
    }

    pub(super) fn at(&self) -> (PageId, &[u8]) {
        (self.tree, &self.key)
    }

    /// The blob that it names.
    pub(crate) fn blob(&self) -> Option<&Blob> {
        match &self.payload {
            Some(Value::Blob(blob)) => Some(blob),
            _ => None,
        }
    }
}

impl Commit {
    /// Bytes of it in the sequencer.
    pub(super) fn bytes(&self) -> usize {
        COMMIT_FIXED_BYTES
            + match &self.object {
                Some((name, _)) => 2 + name.len(),
                None => self.writes.iter().map(Write::bytes).sum(),
            }
    }

    /// Bytes of what it writes, wherever that lies.
    pub(super) fn data_bytes(&self) -> usize {
        match &self.object {
            Some((_, len)) => *len as usize,
            None => self.writes.iter().map(Write::bytes).sum(),
        }
    }
}

impl Numbers {
    /// The number of the commit before the first one of the window.
    pub(super) fn floor(&self) -> u64 {
        self.last - self.commits.len() as u64
    }

    /// The indexes of a collection.
    pub(super) fn indexes_of(&self, tree: PageId) -> &[SequencedIndex] {
        let begin = self.indexes.partition_point(|index| index.of < tree);
        let len = self.indexes[begin..].partition_point(|index| index.of == tree);
        &self.indexes[begin..begin + len]
    }

    /// The commits of the window with their numbers.
    pub(crate) fn numbered(&self) -> impl DoubleEndedIterator<Item = (u64, &Commit)> {
        let floor = self.floor();
        self.commits.iter().enumerate().map(move |(n, commit)| (floor + 1 + n as u64, commit))
    }

    /// All commits that are not on their pages, or not known to be, with their numbers.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = (u64, &Commit)> {
        let aside = self.aside.iter().map(|(number, commit)| (*number, commit));
        aside.chain(self.numbered().filter(|(number, _)| *number > self.applied))
    }

    fn version(&self) -> u8 {
        let aside = self.aside.iter().map(|(_, commit)| commit);
        let here = self.commits.iter().chain(aside).filter(|commit| commit.object.is_none());
        let writes = || here.clone().flat_map(|commit| &*commit.writes);
        match !self.indexes.is_empty() || has_entry(writes()) {
            true => VERSION_INDEXES,
            false if names_blob(writes()) => VERSION_BLOBS,
            false if self.aside.is_empty() => VERSION,
            false => VERSION_ASIDE,
        }
    }

    /// The frame.
    pub fn encode(&self) -> Bytes {
        let version = self.version();
        let mut to = Writer::new(MAGIC, version);
        to.u128(self.write_id);
        to.u64(self.last);
        to.u64(self.applied);
        to.u64(self.horizon);
        to.u16(self.dates.len() as u16);
        for (number, date_ms) in &self.dates {
            to.u64(*number);
            to.u64(*date_ms);
        }
        to.u16(self.lives.len() as u16);
        for (client, epoch, number) in &self.lives {
            to.u64(*client);
            to.u64(*epoch);
            to.u64(*number);
        }
        if version >= VERSION_INDEXES {
            to.u16(self.indexes.len() as u16);
            for index in &self.indexes {
                to.u128(index.of.0);
                to.u128(index.root.0);
                let (kind, needs) = index.by.to_parts();
                to.u8(kind);
                to.short(&needs);
                to.u8(u8::from(index.is_ready));
            }
        }
        to.u16(self.commits.len() as u16);
        self.commits.iter().for_each(|commit| put_commit(&mut to, commit));
        if version >= VERSION_ASIDE {
            to.u16(self.aside.len() as u16);
            for (number, commit) in &self.aside {
                to.u64(*number);
                put_commit(&mut to, commit);
            }
        }
        to.finish()
    }

    /// Decodes a frame. Keys and payloads share its memory.
    ///
    /// # Errors
    /// When the bytes are no such frame, were damaged, or hold what none holds.
    pub fn decode(frame: &Bytes) -> Result<Numbers, FrameError> {
        let (mut from, version) = Reader::up_to(frame, MAGIC, VERSION_INDEXES)?;
        let mut numbers = Numbers {
            write_id: from.u128()?,
            last: from.u64()?,
            applied: from.u64()?,
            horizon: from.u64()?,
            ..Numbers::default()
        };
        if !is_number(numbers.last)
            || numbers.applied > numbers.last
            || numbers.horizon > numbers.applied
        {
            return Err(from.field("numbers out of order"));
        }
        for _ in 0..from.u16()? {
            let date = (from.u64()?, from.u64()?);
            if numbers.dates.last().is_some_and(|last| last.0 >= date.0 || last.1 > date.1)
                || date.0 > numbers.last
                || !is_number(date.1)
            {
                return Err(from.field("dates that do not rise"));
            }
            numbers.dates.push(date);
        }
        for _ in 0..from.u16()? {
            let life = (from.u64()?, from.u64()?, from.u64()?);
            if numbers.lives.last().is_some_and(|last| last.0 >= life.0) {
                return Err(from.field("clients that do not rise"));
            }
            numbers.lives.push(life);
        }
        let indexes = if version >= VERSION_INDEXES { from.u16()? } else { 0 };
        for _ in 0..indexes {
            let (of, root) = (PageId(from.u128()?), PageId(from.u128()?));
            let by = SearchBy::from_parts(from.u8()?, &from.short()?);
            let by = by.ok_or_else(|| from.field("no known kind of search key"))?;
            let is_ready = match from.u8()? {
                0 => false,
                1 => true,
                _ => return Err(from.field("neither ready nor not")),
            };
            if numbers.indexes.last().is_some_and(|last| (last.of, last.root) >= (of, root)) {
                return Err(from.field("indexes that do not rise"));
            }
            numbers.indexes.push(SequencedIndex { of, root, by, is_ready });
        }
        let count = from.u16()?;
        if u64::from(count) > numbers.last || numbers.last - u64::from(count) > numbers.applied {
            return Err(from.field("a window with a hole"));
        }
        for _ in 0..count {
            numbers.commits.push(take_commit(&mut from)?);
        }
        if version >= VERSION_ASIDE {
            let count = from.u16()?;
            for _ in 0..count {
                let number = from.u64()?;
                if numbers.aside.last().is_some_and(|(last, _)| *last >= number)
                    || !(1..=numbers.applied).contains(&number)
                {
                    return Err(from.field("numbers of what was put aside that do not rise"));
                }
                numbers.aside.push((number, take_commit(&mut from)?));
            }
        }
        check_version(&from, version, numbers.version())?;
        from.done()?;
        Ok(numbers)
    }
}

/// The frame of an object that holds what commit `id` writes.
pub(crate) fn encode_data(id: u128, writes: &[Write]) -> Bytes {
    let mut to = Writer::new(DATA_MAGIC, data_version(writes));
    to.u128(id);
    put_writes(&mut to, writes);
    to.finish()
}

/// Decodes such a frame.
pub(crate) fn decode_data(frame: &Bytes) -> Result<(u128, Vec<Write>), FrameError> {
    let (mut from, version) = Reader::up_to(frame, DATA_MAGIC, DATA_VERSION_ENTRIES)?;
    let id = from.u128()?;
    let writes = take_writes(&mut from)?;
    check_version(&from, version, data_version(&writes))?;
    from.done()?;
    Ok((id, writes))
}

/// The name of such an object: when it was put, so that garbage collection can tell its age.
pub(super) fn data_name(date_ms: u64, random: u128) -> String {
    format!("{DATA}{date_ms:016x}-{random:032x}")
}

/// When an object of this name was put.
pub(super) fn date_of(name: &str) -> Option<u64> {
    let (date_ms, id) = name.strip_prefix(DATA)?.split_once('-')?;
    u128::from_str_radix(id, 16).ok()?;
    u64::from_str_radix(date_ms, 16).ok()
}

fn put_commit(to: &mut Writer, commit: &Commit) {
    to.u128(commit.id);
    to.u64(commit.client);
    to.u64(commit.epoch);
    to.u64(commit.date_ms);
    match &commit.object {
        None => {
            to.u8(0);
            put_writes(to, &commit.writes);
        }
        Some((name, len)) => {
            to.u8(1);
            to.short(name.as_bytes());
            to.u32(*len);
        }
    }
}

fn take_commit(from: &mut Reader) -> Result<Commit, FrameError> {
    let (id, client, epoch) = (from.u128()?, from.u64()?, from.u64()?);
    let date_ms = from.u64()?;
    if !is_number(date_ms) {
        return Err(from.field("a time after which there is none"));
    }
    let (object, writes) = match from.u8()? {
        0 => (None, take_writes(from)?),
        1 => {
            let name = from.short()?;
            let name = std::str::from_utf8(&name).ok();
            let name = name.filter(|name| name.starts_with(DATA) && name.is_ascii());
            let name = name.ok_or_else(|| from.field("no name of a commit's data"))?;
            (Some((name.to_owned(), from.u32()?)), Vec::new())
        }
        _ => return Err(from.field("neither writes nor a name")),
    };
    Ok(Commit { id, client, epoch, date_ms, object, writes: writes.into() })
}

fn names_blob<'a>(writes: impl IntoIterator<Item = &'a Write>) -> bool {
    writes.into_iter().any(|write| write.blob().is_some())
}

fn has_entry<'a>(writes: impl IntoIterator<Item = &'a Write>) -> bool {
    writes.into_iter().any(|write| write.key.len() > KEY_BYTES_MAX)
}

/// The version of a frame with these writes.
fn data_version(writes: &[Write]) -> u8 {
    match has_entry(writes) {
        true => DATA_VERSION_ENTRIES,
        false if names_blob(writes) => DATA_VERSION_BLOBS,
        false => VERSION,
    }
}

/// One thing has one form.
fn check_version(from: &Reader, version: u8, expected: u8) -> Result<(), FrameError> {
    match version == expected {
        true => Ok(()),
        false => Err(from.field("another version than that of what is in it")),
    }
}

fn put_writes(to: &mut Writer, writes: &[Write]) {
    to.u32(writes.len() as u32);
    for write in writes {
        to.u128(write.tree.0);
        to.short(&write.key);
        match &write.payload {
            None => to.u8(0),
            Some(Value::Here(payload)) => {
                to.u8(1);
                to.long(payload);
            }
            Some(Value::Blob(blob)) => {
                to.u8(2);
                to.raw(&blob.to_bytes());
            }
        }
    }
}

fn take_writes(from: &mut Reader) -> Result<Vec<Write>, FrameError> {
    let count = from.u32()? as usize;
    // Memory only for what can be there.
    if count > from.rest() / (WRITE_FIXED_BYTES - 4) {
        return Err(from.field("more writes than bytes"));
    }
    let mut writes: Vec<Write> = Vec::with_capacity(count);
    for _ in 0..count {
        let (tree, key) = (PageId(from.u128()?), from.short()?);
        if !(1..=WRITE_KEY_BYTES_MAX).contains(&key.len()) {
            return Err(from.field("no key of a record"));
        }
        if versions::leaf_key(&key, 0).len() > SLOT_KEY_BYTES_MAX {
            return Err(from.field("a key that has no room in a page"));
        }
        let payload = match from.u8()? {
            0 => None,
            1 => {
                let payload = from.long()?;
                if payload.len() > INLINE_BYTES_MAX {
                    return Err(from.field("a payload that is too long"));
                }
                Some(Value::Here(payload))
            }
            2 => {
                let blob = Blob::from_bytes(&from.array::<REFERENCE_BYTES>()?);
                Some(Value::Blob(blob.ok_or_else(|| from.field("no name of a blob"))?))
            }
            _ => return Err(from.field("neither a payload nor a delete")),
        };
        if writes.last().is_some_and(|last| last.at() >= (tree, &key[..])) {
            return Err(from.field("writes that do not rise"));
        }
        writes.push(Write { tree, key, payload });
    }
    Ok(writes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stamp::Stamp;

    fn write(tree: u128, key: &'static str, payload: Option<&'static str>) -> Write {
        let bytes = |text: &'static str| Bytes::from_static(text.as_bytes());
        let payload = payload.map(|text| Value::Here(bytes(text)));
        Write { tree: PageId(tree), key: bytes(key), payload }
    }

    /// One whose payload lies in a blob.
    fn in_blob(tree: u128, key: &'static str) -> Write {
        let stamp = Stamp { clock: 1_763_690_400_000_000, client: 7, sequence: 3 };
        let blob = Blob::new(stamp, 100_000, 50_000, 0xc0ffee).unwrap();
        Write { payload: Some(Value::Blob(blob)), ..write(tree, key, None) }
    }

    fn numbers() -> Numbers {
        let commit = |id, object, writes: Vec<Write>| Commit {
            id,
            client: 7,
            epoch: 2,
            date_ms: 1_763_690_400_000,
            object,
            writes: writes.into(),
        };
        let here = vec![write(1, "a", Some("x")), write(1, "b", None), write(2, "a", Some(""))];
        let name = data_name(1_763_690_400_000, 9);
        Numbers {
            write_id: 5,
            last: 12,
            applied: 10,
            horizon: 3,
            dates: vec![(4, 1), (9, 1)],
            lives: vec![(7, 2, 12), (8, 1, 11)],
            indexes: Vec::new(),
            commits: vec![commit(8, None, here), commit(9, Some((name, 77)), Vec::new())],
            aside: Vec::new(),
        }
    }

    #[test]
    fn numbers_come_back_and_what_none_holds_is_refused() {
        let sound = numbers();
        assert_eq!(Numbers::decode(&sound.encode()).unwrap(), sound);
        assert_eq!(Numbers::decode(&Numbers::default().encode()).unwrap(), Numbers::default());
        assert_eq!(sound.floor(), 10);
        let wrong = [
            ("applied behind the last", Numbers { applied: 13, ..sound.clone() }),
            ("horizon behind what is applied", Numbers { horizon: 11, ..sound.clone() }),
            ("a hole before the window", Numbers { applied: 9, horizon: 3, ..sound.clone() }),
            ("a number after which there is none", Numbers { last: u64::MAX, ..sound.clone() }),
            ("dates that fall", Numbers { dates: vec![(4, 2), (9, 1)], ..sound.clone() }),
            ("a client twice", Numbers { lives: vec![(7, 2, 1); 2], ..sound.clone() }),
        ];
        for (what, numbers) in wrong {
            assert!(Numbers::decode(&numbers.encode()).is_err(), "{what}");
        }
        let aside = |numbers: &[u64]| {
            let aside = numbers.iter().map(|number| (*number, sound.commits[0].clone()));
            Numbers { aside: aside.collect(), ..sound.clone() }
        };
        for numbers in [aside(&[1]), aside(&[3, 10])] {
            assert_eq!(Numbers::decode(&numbers.encode()).unwrap(), numbers);
            assert_eq!((numbers.encode()[4], sound.encode()[4]), (2, 1));
        }
        for numbers in [&[0][..], &[11], &[3, 3], &[4, 3]] {
            assert!(Numbers::decode(&aside(numbers).encode()).is_err(), "{numbers:?}");
        }
        let mut twice = sound.clone();
        twice.commits[0].writes = vec![write(1, "a", None); 2].into();
        assert!(Numbers::decode(&twice.encode()).is_err(), "a key twice");
        let bytes = sound.encode();
        for at in 0..bytes.len() {
            let mut damaged = bytes.to_vec();
            damaged[at] ^= 1 << (at % 8);
            assert!(Numbers::decode(&damaged.into()).is_err(), "byte {at}");
        }
    }

    /// Whoever knows no blobs is told that by the version; and where there are none he has to know of none.
    #[test]
    fn what_names_a_blob_is_of_another_version() {
        let plain = numbers();
        let mut of = plain.clone();
        of.commits[0].writes = vec![write(1, "a", Some("x")), in_blob(1, "b")].into();
        assert_eq!((plain.encode()[4], of.encode()[4]), (VERSION, VERSION_BLOBS));
        assert_eq!(Numbers::decode(&of.encode()).unwrap(), of);
        // Beside what was put aside, and in that.
        let both = Numbers { aside: vec![(3, of.commits[0].clone())], ..plain.clone() };
        assert_eq!(both.encode()[4], VERSION_BLOBS);
        assert_eq!(Numbers::decode(&both.encode()).unwrap(), both);
        // In an object of its own it is of the version of that.
        let mut far = of.clone();
        far.commits[0].object = Some((data_name(1, 1), 77));
        assert_eq!(far.encode()[4], VERSION);
        // One thing has one form.
        let as_version = |bytes: &Bytes, version: u8| {
            let mut bytes = bytes[..bytes.len() - 4].to_vec();
            bytes[4] = version;
            let sum = crate::frame::crc32c(&bytes);
            bytes.extend_from_slice(&sum.to_le_bytes());
            Bytes::from(bytes)
        };
        assert!(Numbers::decode(&as_version(&of.encode(), VERSION)).is_err());
        assert!(Numbers::decode(&as_version(&plain.encode(), VERSION_BLOBS)).is_err());
        for (writes, other) in
            [(vec![write(1, "a", None)], DATA_VERSION_BLOBS), (vec![in_blob(1, "a")], VERSION)]
        {
            let bytes = encode_data(9, &writes);
            assert!(decode_data(&as_version(&bytes, other)).is_err(), "{writes:?}");
        }
        // No more than there can be.
        let mut empty = encode_data(9, &[in_blob(1, "a")]).to_vec();
        let at = empty.len() - 4 - REFERENCE_BYTES + 24;
        empty[at..at + 8].fill(0);
        assert!(decode_data(&as_version(&empty.into(), DATA_VERSION_BLOBS)).is_err());
    }

    #[test]
    fn indexes_come_back_and_are_of_a_version_of_their_own() {
        let index = |of, root, is_ready| SequencedIndex {
            of: PageId(of),
            root: PageId(root),
            by: SearchBy::Part { separator: b',', number: 2 },
            is_ready,
        };
        let indexes = vec![index(1, 8, true), index(1, 9, false), index(3, 2, true)];
        let sound = Numbers { indexes, ..numbers() };
        assert_eq!(sound.encode()[4], VERSION_INDEXES);
        assert_eq!(Numbers::decode(&sound.encode()).unwrap(), sound);
        let roots = |of| {
            let all = sound.indexes_of(PageId(of)).iter().map(|index| index.root.0);
            all.collect::<Vec<_>>()
        };
        assert_eq!([roots(0), roots(1), roots(2), roots(3)], [vec![], vec![8, 9], vec![], vec![2]]);
        let twice = Numbers { indexes: vec![index(1, 8, true); 2], ..numbers() };
        assert!(Numbers::decode(&twice.encode()).is_err());
        // An entry can be longer than a key of a record, and no longer than a pair of these.
        for (len, is_fine) in [(KEY_BYTES_MAX, true), (WRITE_KEY_BYTES_MAX, true), (4000, false)] {
            let key = Bytes::from(vec![b'k'; len]);
            let writes = vec![Write { key, ..write(1, "k", None) }];
            let bytes = encode_data(9, &writes);
            let expected = if len > KEY_BYTES_MAX { DATA_VERSION_ENTRIES } else { VERSION };
            assert_eq!(bytes[4], expected);
            assert_eq!(decode_data(&bytes).is_ok(), is_fine, "{len}");
        }
    }

    #[test]
    fn data_comes_back_and_its_name_tells_its_age() {
        let writes = vec![write(1, "a", Some("x")), write(1, "b", None)];
        assert_eq!(decode_data(&encode_data(9, &writes)).unwrap(), (9, writes.clone()));
        let writes = [writes, vec![in_blob(2, "a")]].concat();
        assert_eq!(decode_data(&encode_data(9, &writes)).unwrap(), (9, writes));
        let name = data_name(1_763_690_400_000, u128::MAX);
        assert_eq!(date_of(&name), Some(1_763_690_400_000));
        for no_name in ["sequencer/data/", "sequencer/data/12", "sequencer/numbers"] {
            assert_eq!(date_of(no_name), None, "{no_name}");
        }
    }
}
