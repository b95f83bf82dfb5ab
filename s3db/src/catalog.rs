//! What all clients of a database agree upon: one object for the database, one per collection.
//!
//! Both are frames (see `frame`), of versions 1 to 5:
//!
//! | object | magic | body |
//! | --- | --- | --- |
//! | `database` | `s3dD` | id (16), log backend (1), shards (4); in versions 2 to 4: cipher (1): 1 is AES-256-GCM, 0, in versions 3 and 4, none |
//! | `catalog/NAME` | `s3dC` | root of the primary index (16), number of secondary indexes (2); each: name (2 + n), root (16), 1 if it can be probed (1), kind of search key (1), what it needs (2 + n) |
//!
//! Kinds of search keys: 1 the payload; 2 a part: separator (1), number (2); 3 a JSON field: its name;
//! 0 none: whoever writes records writes the entries too. In version 1 of a collection the last two
//! fields are not there, and all are of that kind; in version 2 some are not. A collection is named here
//! before its root is put; version 3 is as version 2, and says that the root was put: if it is not there it
//! is lost, and no empty one may take its place. Version 4 is that of collections whose records have
//! versions (`sequence`): behind the root are 1 if that was put (1), and the level that transactions must
//! have at least: 1 snapshot, 2 serializable (1); version 5 is that of those among them that have indexes, whose
//! entries have versions, too. A database of version 2, or of
//! version 3 or 4 with a cipher, is encrypted: all other objects, and all messages, are sealed (`cloud::sealed`).
//! In one of version 3 or 4 the names of pages begin with the tag of their collection (`tag`), and collections
//! can be curated (`curate`); in one of version 4 they can name who may write to them (`writers`).

use bytes::Bytes;

use crate::{
    cloud::{Cloud, ETag, Get, Prices, Put, PutIf},
    error::StoreError,
    frame::{FrameError, Reader, Writer},
    names::{CATALOG, DATABASE},
    page::{INDEXES_MAX, PageId},
    retry::Attempts,
    search_by::SearchBy,
    settings::Settings,
    tag::Tag,
};

const DATABASE_MAGIC: &str = "s3dD";
const COLLECTION_MAGIC: &str = "s3dC";
const VERSION: u8 = 1;
/// Of collections that have rules for search keys.
const RULES_VERSION: u8 = 2;
/// Of those whose root was put.
const ROOT_VERSION: u8 = 3;
/// Of those whose records have versions.
const ISOLATION_VERSION: u8 = 4;
/// Of these, those that have indexes. Programs that know none there would bury leaves of these.
const ENTRIES_VERSION: u8 = 5;
/// Of databases that are encrypted.
const ENCRYPTED_VERSION: u8 = 2;
/// Of those whose pages have tags. Programs that know none would make pages without.
const TAGS_VERSION: u8 = 3;
/// Of those whose collections can name their writers. Programs that know none would let everybody's records in.
const WRITERS_VERSION: u8 = 4;
/// What encrypts them: AES-256-GCM.
const CIPHER: u8 = 1;
/// Bytes of the longest name of a collection or an index.
pub const NAME_BYTES_MAX: usize = 100;

/// Which log carries the commits of a database. Chosen once, when it is created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Backend {
    /// Standard queues.
    SqsStandard,
    /// FIFO queues.
    SqsFifo,
    /// Objects. Nothing expires, and a commit is one put.
    #[default]
    S3Log,
}

impl Backend {
    /// All of them.
    pub const ALL: [Backend; 3] = [Backend::S3Log, Backend::SqsStandard, Backend::SqsFifo];

    /// What calls cost today that a database with this log makes: a request to a FIFO queue costs more.
    pub fn prices(self) -> Prices {
        match self {
            Backend::SqsFifo => Prices { send: 0.50, queue: 0.50, ..Prices::TODAY },
            Backend::S3Log | Backend::SqsStandard => Prices::TODAY,
        }
    }

    /// Its name in commands and reports.
    pub fn name(self) -> &'static str {
        match self {
            Backend::SqsStandard => "sqs-standard",
            Backend::SqsFifo => "sqs-fifo",
            Backend::S3Log => "s3-log",
        }
    }

    /// The backend of this name.
    pub fn named(name: &str) -> Option<Backend> {
        Backend::ALL.into_iter().find(|backend| backend.name() == name)
    }
}

/// What a collection was created for, when its transactions are to be isolated from each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Isolation {
    /// All that a transaction reads is of one moment, and of two that overlap and write the same record
    /// one is aborted.
    Snapshot,
    /// And all are as if they had run one after the other: one that read what another changed meanwhile is
    /// aborted, too.
    Serializable,
}

impl Isolation {
    /// Both, the weaker one first.
    pub const ALL: [Isolation; 2] = [Isolation::Snapshot, Isolation::Serializable];

    /// Its name in commands and reports.
    pub fn name(self) -> &'static str {
        match self {
            Isolation::Snapshot => "snapshot",
            Isolation::Serializable => "serializable",
        }
    }

    /// The one of this name.
    pub fn named(name: &str) -> Option<Isolation> {
        Isolation::ALL.into_iter().find(|isolation| isolation.name() == name)
    }
}

/// What a database is created with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Database {
    /// Random: tells databases apart.
    pub id: u128,
    /// The log.
    pub backend: Backend,
    /// Queues of pending updates, for the backends that have them: 1 to 1,000.
    pub shards: u32,
    /// Whether all other objects, and all messages, are sealed with keys that its clients have.
    pub is_encrypted: bool,
    /// Whether the names of pages tell their collection. Not so in databases of before there were
    /// curated collections and rights by collection: those cannot have any.
    pub has_tags: bool,
    /// Whether collections can name the clients that may write to them.
    pub has_writers: bool,
}

/// A secondary index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// Its name within the collection.
    pub name: String,
    /// Names its tree.
    pub root: PageId,
    /// Whether all records that were there before it are in it.
    pub is_ready: bool,
    /// Where it finds search keys. `None`: entries are written by hand ([`Txn::index`](crate::Txn::index)).
    pub by: Option<SearchBy>,
}

/// A collection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collection {
    /// Its name.
    pub name: String,
    /// Names the tree of its primary index, which holds the records.
    pub root: PageId,
    /// Its secondary indexes.
    pub indexes: Vec<Index>,
    /// Whether the root was put, as far as the catalogue knows: one that is not there is lost.
    pub has_root: bool,
    /// The least level of its transactions, if its records have versions.
    pub isolation: Option<Isolation>,
}

impl Database {
    /// The frame.
    pub fn encode(&self) -> Bytes {
        let version = match (self.has_tags, self.is_encrypted) {
            (true, _) if self.has_writers => WRITERS_VERSION,
            (true, _) => TAGS_VERSION,
            (false, true) => ENCRYPTED_VERSION,
            (false, false) => VERSION,
        };
        let mut to = Writer::new(DATABASE_MAGIC, version);
        to.u128(self.id);
        to.u8(match self.backend {
            Backend::SqsStandard => 0,
            Backend::SqsFifo => 1,
            Backend::S3Log => 2,
        });
        to.u32(self.shards);
        if version != VERSION {
            to.u8(if self.is_encrypted { CIPHER } else { 0 });
        }
        to.finish()
    }

    /// Decodes a frame.
    ///
    /// # Errors
    /// When the bytes are no such frame.
    pub fn decode(bytes: &Bytes) -> Result<Database, FrameError> {
        let (mut from, version) = match Reader::new(bytes, DATABASE_MAGIC, WRITERS_VERSION) {
            Err(FrameError::Version { found: found @ VERSION..=TAGS_VERSION, .. }) => {
                (Reader::new(bytes, DATABASE_MAGIC, found)?, found)
            }
            from => (from?, WRITERS_VERSION),
        };
        let id = from.u128()?;
        let backend = match from.u8()? {
            0 => Backend::SqsStandard,
            1 => Backend::SqsFifo,
            2 => Backend::S3Log,
            _ => return Err(from.field("no known log backend")),
        };
        let shards = from.u32()?;
        if !(1..=1000).contains(&shards) {
            return Err(from.field("1 to 1,000 shards"));
        }
        let (has_tags, has_writers) = (version >= TAGS_VERSION, version == WRITERS_VERSION);
        let is_encrypted = match version {
            VERSION => false,
            _ => match from.u8()? {
                CIPHER => true,
                0 if has_tags => false,
                _ => return Err(from.field("no known cipher")),
            },
        };
        from.done()?;
        Ok(Database { id, backend, shards, is_encrypted, has_tags, has_writers })
    }
}

impl Collection {
    /// Whether changes of it wait for a curator: it was created so.
    pub fn is_curated(&self) -> bool {
        Tag::of_page(self.root) == Tag::of(&self.name, true)
    }

    /// The first page that it names and that is none of its own, in a database whose pages have tags.
    pub(crate) fn foreign_page(&self) -> Option<PageId> {
        let own = [true, false].map(|is_curated| Tag::of(&self.name, is_curated));
        let tag = Tag::of_page(self.root);
        if !own.contains(&tag) {
            return Some(self.root);
        }
        self.indexes.iter().map(|index| index.root).find(|root| Tag::of_page(*root) != tag)
    }

    /// The frame. The name is that of the object.
    pub fn encode(&self) -> Bytes {
        let version = match self.indexes.iter().any(|index| index.by.is_some()) {
            _ if self.isolation.is_some() && !self.indexes.is_empty() => ENTRIES_VERSION,
            _ if self.isolation.is_some() => ISOLATION_VERSION,
            _ if self.has_root => ROOT_VERSION,
            true => RULES_VERSION,
            false => VERSION,
        };
        let has_rules = version != VERSION;
        let mut to = Writer::new(COLLECTION_MAGIC, version);
        to.u128(self.root.0);
        if let Some(isolation) = self.isolation {
            to.u8(u8::from(self.has_root));
            to.u8(1 + isolation as u8);
        }
        to.u16(self.indexes.len() as u16);
        for index in &self.indexes {
            to.short(index.name.as_bytes());
            to.u128(index.root.0);
            to.u8(u8::from(index.is_ready));
            if has_rules {
                let (kind, of) = index.by.as_ref().map(SearchBy::to_parts).unwrap_or_default();
                to.u8(kind);
                to.short(&of);
            }
        }
        to.finish()
    }

    /// Decodes a frame of the collection `name`.
    ///
    /// # Errors
    /// When the bytes are no such frame.
    pub fn decode(name: &str, bytes: &Bytes) -> Result<Collection, FrameError> {
        let (mut from, version) = Reader::up_to(bytes, COLLECTION_MAGIC, ENTRIES_VERSION)?;
        let has_rules = version != VERSION;
        let root = PageId(from.u128()?);
        let (mut has_root, mut isolation) = (version == ROOT_VERSION, None);
        if version >= ISOLATION_VERSION {
            has_root = match from.u8()? {
                0 => false,
                1 => true,
                _ => return Err(from.field("neither put nor not")),
            };
            isolation = Some(match from.u8()? {
                1 => Isolation::Snapshot,
                2 => Isolation::Serializable,
                _ => return Err(from.field("no known level of isolation")),
            });
        }
        let count = usize::from(from.u16()?);
        if count > INDEXES_MAX {
            return Err(from.field("more indexes than a collection has"));
        }
        let mut indexes = Vec::with_capacity(count);
        for _ in 0..count {
            let bytes = from.short()?;
            let name = std::str::from_utf8(&bytes).ok().filter(|name| check_name(name).is_ok());
            let name = name.ok_or_else(|| from.field("no name of an index"))?.to_owned();
            let root = PageId(from.u128()?);
            let is_ready = match from.u8()? {
                0 => false,
                1 => true,
                _ => return Err(from.field("neither ready nor not")),
            };
            let (kind, of) = match has_rules {
                true => (from.u8()?, from.short()?),
                false => Default::default(),
            };
            let by = match (kind, &of[..]) {
                (0, []) => None,
                _ => Some(
                    SearchBy::from_parts(kind, &of)
                        .ok_or_else(|| from.field("no known kind of search key"))?,
                ),
            };
            indexes.push(Index { name, root, is_ready, by });
        }
        if version == RULES_VERSION && indexes.iter().all(|index| index.by.is_none()) {
            return Err(from.field("version 2 without a rule, which is version 1"));
        }
        // Version 4 with some is of a program that could not make any.
        if version == ENTRIES_VERSION && indexes.is_empty() {
            return Err(from.field("version 5 without an index, which is version 4"));
        }
        if version == ISOLATION_VERSION && !indexes.is_empty() {
            return Err(from.field("version 4 with an index, which is version 5"));
        }
        from.done()?;
        Ok(Collection { name: name.to_owned(), root, indexes, has_root, isolation })
    }
}

/// Names are ASCII letters, digits, `-` and `_`, so that they can be part of an object's name.
pub(crate) fn check_name(name: &str) -> Result<(), StoreError> {
    let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_fine) {
        return Ok(());
    }
    let rule = "1 to 100 ASCII letters, digits, '-' and '_'";
    Err(StoreError::Invalid(format!("{:?} is no name: {rule}", name.escape_default().to_string())))
}

/// The database, and the object store's clock, milliseconds since 1970.
pub(crate) async fn read_database(
    cloud: &Cloud,
    settings: &Settings,
) -> Result<Option<(Database, u64)>, StoreError> {
    let Some((bytes, _, date_ms)) = read(cloud, settings, DATABASE).await? else {
        return Ok(None);
    };
    let damaged = |source| StoreError::Damaged { object: DATABASE.into(), source };
    Ok(Some((Database::decode(&bytes).map_err(damaged)?, date_ms)))
}

/// False when there is a database already.
pub(crate) async fn create_database(
    cloud: &Cloud,
    settings: &Settings,
    database: &Database,
) -> Result<bool, StoreError> {
    write(cloud, settings, DATABASE, database.encode(), PutIf::Absent).await
}

pub(crate) async fn read_collection(
    cloud: &Cloud,
    settings: &Settings,
    name: &str,
) -> Result<Option<(Collection, ETag)>, StoreError> {
    check_name(name)?;
    let object = format!("{CATALOG}{name}");
    let Some((bytes, etag, _)) = read(cloud, settings, &object).await? else { return Ok(None) };
    let damaged = |source| StoreError::Damaged { object, source };
    Ok(Some((Collection::decode(name, &bytes).map_err(damaged)?, etag)))
}

/// False when another version is there.
pub(crate) async fn write_collection(
    cloud: &Cloud,
    settings: &Settings,
    collection: &Collection,
    condition: PutIf,
) -> Result<bool, StoreError> {
    check_name(&collection.name)?;
    let object = format!("{CATALOG}{}", collection.name);
    write(cloud, settings, &object, collection.encode(), condition).await
}

async fn read(
    cloud: &Cloud,
    settings: &Settings,
    object: &str,
) -> Result<Option<(Bytes, ETag, u64)>, StoreError> {
    let mut attempts = Attempts::new(cloud, settings);
    loop {
        match cloud.objects.get(object, None).await {
            Ok(Get::Found { bytes, etag, date_ms }) => return Ok(Some((bytes, etag, date_ms))),
            Ok(_) => return Ok(None),
            Err(fault) => attempts.after(fault).await?,
        }
    }
}

/// A conditional put with H3. The random ids in `bytes` make them unlike anyone else's.
async fn write(
    cloud: &Cloud,
    settings: &Settings,
    object: &str,
    bytes: Bytes,
    condition: PutIf,
) -> Result<bool, StoreError> {
    let mut attempts = Attempts::new(cloud, settings);
    let mut is_unclear = false;
    loop {
        let fault = match cloud.objects.put(object, bytes.clone(), condition.clone()).await {
            Put::Stored(_) => return Ok(true),
            Put::Refused | Put::Missing if is_unclear => {
                let there = read(cloud, settings, object).await?;
                return Ok(there.is_some_and(|(there, ..)| there == bytes));
            }
            Put::Refused | Put::Missing => return Ok(false),
            Put::Conflict => {
                attempts.after_loss(object).await?;
                continue;
            }
            Put::Failed(fault) => fault,
            Put::Unknown(fault) => {
                is_unclear = true;
                fault
            }
        };
        attempts.after(fault).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn databases_of_all_versions() {
        let of = |is_encrypted, version: u8| Database {
            id: 7,
            backend: Backend::S3Log,
            shards: 16,
            is_encrypted,
            has_tags: version >= TAGS_VERSION,
            has_writers: version == WRITERS_VERSION,
        };
        for (database, version, cipher) in [
            (of(false, VERSION), VERSION, None),
            (of(true, VERSION), ENCRYPTED_VERSION, Some(CIPHER)),
            (of(false, TAGS_VERSION), TAGS_VERSION, Some(0)),
            (of(true, TAGS_VERSION), TAGS_VERSION, Some(CIPHER)),
            (of(false, WRITERS_VERSION), WRITERS_VERSION, Some(0)),
            (of(true, WRITERS_VERSION), WRITERS_VERSION, Some(CIPHER)),
        ] {
            let bytes = database.encode();
            assert_eq!(bytes[4], version);
            // Magic and version, 21 bytes of all versions, and a checksum.
            assert_eq!(bytes.get(5 + 21).filter(|_| bytes.len() > 30).copied(), cipher);
            assert_eq!(Database::decode(&bytes), Ok(database));
        }
    }

    /// A collection without rules is of version 1, which has no place for them, until its root is put.
    #[test]
    fn collections_of_all_versions() {
        let index = |name: &str, by: Option<&str>| Index {
            name: name.into(),
            root: PageId(7),
            is_ready: true,
            by: by.map(|by| by.parse().unwrap()),
        };
        let of = |indexes| Collection {
            name: "things".into(),
            root: PageId(1),
            indexes,
            has_root: false,
            isolation: None,
        };
        for (collection, version) in [
            (of(vec![]), VERSION),
            (of(vec![index("by-hand", None)]), VERSION),
            (of(vec![index("by-hand", None), index("a", Some("json:a"))]), RULES_VERSION),
            (of(vec![index("a", Some("part:tab:3")), index("b", Some("payload"))]), 2),
        ] {
            for has_root in [false, true] {
                let collection = Collection { has_root, ..collection.clone() };
                let bytes = collection.encode();
                assert_eq!(bytes[4], if has_root { ROOT_VERSION } else { version });
                assert_eq!(Collection::decode("things", &bytes).unwrap(), collection);
                for isolation in Isolation::ALL {
                    let collection =
                        Collection { isolation: Some(isolation), ..collection.clone() };
                    let bytes = collection.encode();
                    let is_plain = collection.indexes.is_empty();
                    assert_eq!(
                        bytes[4],
                        if is_plain { ISOLATION_VERSION } else { ENTRIES_VERSION }
                    );
                    assert_eq!(Collection::decode("things", &bytes).unwrap(), collection);
                }
            }
        }
        // One thing has one form.
        let mut to = Writer::new(COLLECTION_MAGIC, RULES_VERSION);
        to.u128(1);
        to.u16(0);
        let decoded = Collection::decode("things", &to.finish());
        assert!(matches!(decoded, Err(FrameError::Field { .. })), "{decoded:?}");
    }
}
