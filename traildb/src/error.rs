//! What can go wrong, sorted by what the caller can do about it.

use std::{io, ops::Range, path::PathBuf};

/// What reading or writing a database can return.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The storage could not give the bytes: a source that failed, a pin limit, a bad disk.
    #[error("{object}: member {member}, bytes {}..{}: {source}", range.start, range.end)]
    Storage {
        /// The storage's name.
        object: String,
        /// The member that was read.
        member: String,
        /// The bytes of the member that were wanted.
        range: Range<u64>,
        /// What the storage said. A pager's error is inside, for `downcast_ref`.
        source: io::Error,
    },

    /// The bytes are no database, or break a rule of FORMAT.md. Get the file again.
    #[error("{object}: damaged: member {member}, offset {offset}: {reason}")]
    Damaged {
        /// The storage's name.
        object: String,
        /// The member at fault.
        member: String,
        /// The offset in the member, in bytes.
        offset: u64,
        /// The rule that was broken.
        reason: String,
    },

    /// The file is of a version that this reader does not know.
    #[error("{object}: format version {version}; this reader knows versions 0 and 1")]
    Version {
        /// The storage's name.
        object: String,
        /// The version of the file.
        version: u64,
    },

    /// There is no such trail.
    #[error("trail {trail}: the database has {trails}, numbered from 0")]
    NoSuchTrail {
        /// The trail asked for.
        trail: u64,
        /// Number of trails.
        trails: u64,
    },

    /// There is no such field.
    #[error("there is no field {field}")]
    NoSuchField {
        /// The name or the number asked for.
        field: String,
    },

    /// The field has no value of that number.
    #[error("field {field} has no value number {value}; its numbers go to {count}")]
    NoSuchValue {
        /// The field.
        field: u16,
        /// The number asked for.
        value: u64,
        /// The number of values.
        count: u64,
    },

    /// A filter looks at all items of an event, and the cursor gives only those that changed.
    #[error("a cursor that gives only changed items cannot have a filter")]
    FilterOfChanges,

    /// The index belongs to another database, or to this one before it was written anew. Make it
    /// again.
    #[error("{index} is not the index of {database}: make it again")]
    IndexMismatch {
        /// The index's name.
        index: String,
        /// The database's name.
        database: String,
    },

    /// The index is of a version that this reader does not know. Make it again.
    #[error("{object}: index version {version}; this reader knows version 2: make it again")]
    IndexVersion {
        /// The index's name.
        object: String,
        /// The version of the index.
        version: u64,
    },

    /// A merge needs all shards at once, and these are more than may be open. Merge some of them into
    /// one first, or allow more.
    #[error("{shards} databases are merged where {open_max} may be open at the same time")]
    TooManyShards {
        /// Number of shards.
        shards: usize,
        /// The most that may be open.
        open_max: usize,
    },

    /// What was given to the builder cannot be part of a database.
    #[error(transparent)]
    Input(#[from] InputError),

    /// A sink could not take a database. Nothing was made there.
    #[error("{0}")]
    Sink(#[source] io::Error),

    /// The operating system refused to read or write a file.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What a builder refuses, and why. Nothing has been written when it does.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InputError {
    /// `time` is the built-in field.
    #[error("the field name `time` is reserved")]
    ReservedName,
    /// Two fields have the same name.
    #[error("the field name {0:?} occurs twice")]
    DuplicateName(String),
    /// A name that cannot be part of a member's name.
    #[error("the field name {0:?} is not 1 to 511 of the bytes A-Z a-z 0-9 _ - %")]
    MalformedName(String),
    /// A name that cannot be part of a file's name: a directory has a file for each field.
    #[error(
        "the field name {0:?}... has more than 247 bytes, which is too long for a directory; write a \
         package"
    )]
    NameTooLong(String),
    /// The format numbers fields in 14 bits.
    #[error("{0} fields are too many: 16382 are possible")]
    TooManyFields(usize),
    /// An event has one value for each field.
    #[error("an event with {got} values where the database has {expected} fields")]
    Arity {
        /// Values given.
        got: usize,
        /// Fields of the database.
        expected: usize,
    },
    /// A value is longer than the format allows.
    #[error("a value of {0} bytes is too long")]
    ValueTooLong(u64),
    /// A field has more distinct values than the format numbers: 2^40 - 2.
    #[error("field {0:?} has too many distinct values")]
    TooManyValues(String),
    /// A database to be appended does not have the fields of the builder, or not all its items.
    #[error("the fields to be appended are not those of the new database, in the same order")]
    OtherFields,
    /// The first timestamp of the database does not fit.
    #[error("the earliest timestamp {0} is too large: the format allows up to 2^47 - 2")]
    FirstTime(u64),
    /// Two neighbouring events of a trail are too far apart, or its first event is too far from the
    /// earliest of all.
    #[error(
        "trail {uuid}: {} from time {before} to {time} is too large: the format allows up to \
         2^47 - 2", time - before
    )]
    Delta {
        /// The trail.
        uuid: crate::Uuid,
        /// The time of the event before, or the earliest of all events.
        before: u64,
        /// The time of the event.
        time: u64,
    },
    /// So little memory is not enough to write a database with.
    #[error("{limit} bytes of memory are too few: allow 64 MiB or more")]
    Memory {
        /// The limit set by the options, in bytes.
        limit: u64,
    },
}

impl Error {
    pub(crate) fn file(path: impl Into<PathBuf>, source: io::Error) -> Error {
        Error::File { path: path.into(), source }
    }

    /// Whether the bytes themselves are at fault, not the way to them.
    pub fn is_damage(&self) -> bool {
        matches!(self, Error::Damaged { .. } | Error::Version { .. })
    }
}
