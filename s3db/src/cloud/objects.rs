//! Objects under conditions: the compare and swap that the store stands on.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;

use crate::cloud::Fault;

/// Bytes of the largest object that is stored or read: a log object of the largest transaction, and
/// those that share it.
pub const OBJECT_BYTES_MAX: usize = 80 << 20;

/// What identifies the bytes of one version of an object, as the service wrote it, quotes and all.
///
/// It is derived from content on S3: equal bytes can have equal tags. Whoever relies on a change of
/// tag puts something random into the bytes (rule H2: the `write_id` of every page).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ETag(Arc<str>);

impl ETag {
    /// Takes the service's text.
    pub fn new(text: &str) -> ETag {
        ETag(text.into())
    }

    /// The service's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ETag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Answer to a get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Get {
    /// 200: the bytes, the tag of exactly these bytes, and the service's clock when it answered.
    Found {
        /// The whole object.
        bytes: Bytes,
        /// Of these bytes.
        etag: ETag,
        /// The `Date` of the answer, milliseconds since 1970. 0 when there was none.
        date_ms: u64,
    },
    /// 304: the caller's copy is the newest.
    Unchanged {
        /// As in `Found`.
        date_ms: u64,
    },
    /// 404: there is no such object.
    Absent,
}

/// Under which condition a put may happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PutIf {
    /// Whatever is there. No hardened protocol uses this; the printed ones of 2008 do.
    Always,
    /// `If-None-Match: *`: the object must not exist.
    Absent,
    /// `If-Match`: the object must exist in exactly this version.
    Matches(ETag),
}

/// Outcome of a put. None of these may be taken for another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Put {
    /// 200: it is stored, and every later get sees it.
    Stored(ETag),
    /// 412: the condition was false. Nothing was changed by this call.
    Refused,
    /// 409: another conditional call was under way. Nothing was changed; try again.
    Conflict,
    /// 404 to an `If-Match`: there is no such object any more. Nothing was changed.
    Missing,
    /// No answer: it may have happened, or may still happen. Only reading the object tells (H3).
    Unknown(Fault),
    /// It certainly did not happen.
    Failed(Fault),
}

/// Outcome of a delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delete {
    /// It is gone, or was not there.
    Gone,
    /// 412: the condition was false; the object is another version.
    Refused,
    /// 409: another call was under way. Nothing was changed; try again.
    Conflict,
    /// No answer: it may have happened, or may still happen.
    Unknown(Fault),
    /// It certainly did not happen.
    Failed(Fault),
}

/// One part of a list of names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Names in the order of their bytes.
    pub names: Vec<String>,
    /// Whether there are more after the last of these.
    pub more: bool,
}

/// A bucket, or something with the same promises.
///
/// - **Names.** ASCII letters, digits and `/ - _ .`; at most 200 bytes. An implementation may put a
///   prefix before them.
/// - **Whole objects.** A get returns the bytes of exactly one put, and the tag of those bytes. What
///   is larger than [`OBJECT_BYTES_MAX`] is refused, in both directions.
/// - **Consistency.** After `Stored`, `Gone` or a list, every later call of any client sees it. The
///   model's 2007 mode breaks this on purpose.
/// - **One attempt.** A call is tried once. In particular a conditional put is never repeated by
///   the layer beneath: a second attempt would report 412 for its own first success (W14).
/// - **Cancelling.** A dropped future leaves the outcome open, as a crash of the process does.
/// - **Cost.** One request each, also for 304.
#[async_trait]
pub trait Objects: Send + Sync {
    /// Reads the object `name`, unless it is still the version `unless`.
    ///
    /// # Errors
    /// Any [`Fault`]. A read has no effect, so `Unknown` only says that there was no answer.
    async fn get(&self, name: &str, unless: Option<&ETag>) -> Result<Get, Fault>;

    /// Stores `bytes` as the whole object `name` if `condition` holds.
    async fn put(&self, name: &str, bytes: Bytes, condition: PutIf) -> Put;

    /// Deletes `name`, if it is the version `only` where one is given.
    async fn delete(&self, name: &str, only: Option<&ETag>) -> Delete;

    /// Names that start with `prefix` and sort after `after`, at most `max` (1 to 1,000) of them.
    ///
    /// # Errors
    /// Any [`Fault`].
    async fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> Result<Listing, Fault>;
}
