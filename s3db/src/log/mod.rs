//! What a commit sends and a checkpoint applies.
//!
//! ```text
//!   commit --append--> [ sqs-standard | sqs-fifo | s3-log ] --drain--> checkpoint --ack--> gone
//! ```
//!
//! A [`Transaction`] is the unit of a commit: changes of any trees, all with stamps. A backend makes
//! it durable by one call ([`Appender::append`]: the commit point), gives its changes out to whoever
//! checkpoints ([`Log::drain`]), and lets go of them once they are on their pages ([`Log::ack`]).
//! Between the two it may give any change out again, to anyone, in any order: rule H1 makes that
//! harmless.

pub(crate) mod codec; // the bytes of a log record
pub(crate) mod stream; // one after the other, as a message or a log object holds them
pub(crate) mod transaction; // a commit's records and where they belong
pub(crate) mod queues; // backends sqs-standard and sqs-fifo
pub(crate) mod objects; // backend s3-log
#[cfg(test)]
mod conformance; // what all of them promise

use std::sync::Arc;

use async_trait::async_trait;
use sha2::{Digest as _, Sha256};

pub use transaction::{Entry, Transaction};

use crate::{
    blob::{Blob, REFERENCE_BYTES},
    catalog::Backend,
    cloud::{Cloud, Fault, Receipt},
    error::StoreError,
    page::Stream,
    record::Key,
    record::Payload,
    settings::Settings,
    stamp::Stamp,
};

/// What the names of bytes in quarantine end with, so that the same bytes get the same name and others another
/// one: the first 64 bits of their SHA-256. A CRC would not do: of a frame that ends in its own it is always
/// the same.
pub(crate) fn fingerprint(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// One change of one index or record. Redo only: it says what holds afterwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRecord {
    /// Decides against other writes of the same key.
    pub stamp: Stamp,
    /// What holds afterwards.
    pub change: Change,
}

/// The kinds of change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The key belongs to the index, with this payload. In a secondary index the key is the search
    /// key and the payload names the record.
    Insert(Key, Payload),
    /// The key does not belong to the index. Search keys repeat, so in a secondary index the
    /// payload names the record whose entry goes; in a primary one it is empty.
    Delete(Key, Payload),
    /// The record of this key has this payload: the whole new state, not a difference.
    Update(Key, Payload),
    /// The record of this key has what this blob holds. Only in primary indexes.
    Blob(Key, Blob),
}

impl Change {
    /// The key that the change is about.
    pub fn key(&self) -> &Key {
        let (Change::Insert(key, _)
        | Change::Delete(key, _)
        | Change::Update(key, _)
        | Change::Blob(key, _)) = self;
        key
    }

    /// The payload of an insert or update; of a delete, the record whose entry goes. `None` where
    /// the payload is a blob.
    pub fn payload(&self) -> Option<&Payload> {
        match self {
            Change::Insert(_, payload)
            | Change::Delete(_, payload)
            | Change::Update(_, payload) => Some(payload),
            Change::Blob(..) => None,
        }
    }

    /// Bytes of the payload, or of what names the blob.
    pub(crate) fn payload_bytes(&self) -> usize {
        self.payload().map_or(REFERENCE_BYTES, |payload| payload.as_bytes().len())
    }

    /// `insert`, `delete`, `update` or `blob`.
    pub fn name(&self) -> &'static str {
        match self {
            Change::Insert(..) => "insert",
            Change::Delete(..) => "delete",
            Change::Update(..) => "update",
            Change::Blob(..) => "blob",
        }
    }
}

/// What came of an append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Append {
    /// It is durable, all of it: the transaction is committed.
    Committed,
    /// This incarnation is over. The transaction is not committed.
    Fenced,
    /// It may be durable. Appending it again is safe.
    Unknown(Fault),
    /// It is not durable.
    Failed(Fault),
}

/// A part of the log that is drained on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Scope {
    /// A queue of pending updates: those of the pages whose names hash to it.
    Shard(u32),
    /// The queue that a client commits whole transactions to, shared with others: what is there may
    /// not have been sent on.
    Client(u64),
    /// The log objects of one incarnation.
    Stream(Stream),
}

/// Changes given out by a drain, and what acknowledges them.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) entries: Vec<Entry>,
    /// Behind which of them each piece ends, rising: a transaction, or what one message has of it. However much is
    /// drained with it, a piece comes whole.
    pub(crate) ends: Vec<usize>,
    /// Bodies that cannot be decoded, each with why, and an own name for it.
    pub(crate) poison: Vec<Poison>,
    /// Messages and objects to let go of, when everything above is safe.
    pub(crate) tickets: Vec<Ticket>,
    /// The first of what could not be read here and stays where it is: to be told when the rest is done.
    pub(crate) failed: Option<StoreError>,
    /// What it leaves behind.
    pub(crate) left: Left,
}

impl Batch {
    /// Takes in a piece.
    fn add(&mut self, piece: Transaction) {
        self.entries.extend(piece.entries);
        self.ends.push(self.entries.len());
    }
}

/// What a drain leaves behind, as far as it looked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Left {
    /// There was nothing more.
    #[default]
    Nothing,
    /// It comes in while it is taken out: who waits for the end of that may wait for ever.
    Trickle,
    /// The batch is full: there may be more.
    Backlog,
    /// There may be more of what an ordered queue gives out only when this batch is acknowledged.
    Held,
}

/// What became of whole transactions that were to be sent on.
#[derive(Debug, Default)]
pub(crate) struct Forwarded {
    /// Messages that were let go of.
    pub(crate) taken: u64,
    /// Of these, those that lie in quarantine now.
    pub(crate) poison: u64,
    /// Of these, those that named an object which is gone.
    pub(crate) gone: u64,
    /// What it leaves behind.
    pub(crate) left: Left,
}

/// Bytes that are no transaction.
#[derive(Debug)]
pub(crate) struct Poison {
    pub(crate) name: String,
    pub(crate) bytes: bytes::Bytes,
}

/// A part of the log as `verify` and `watch` see it.
#[derive(Debug)]
pub(crate) enum Pending {
    /// Records of one log object, applied or not.
    Records(Vec<Entry>),
    /// A queue with about so many messages.
    Messages(u64),
    /// Bytes that cannot be decoded.
    Damaged(String),
}

/// Some of what is in the log, and where the next part begins; `None` at the end.
#[derive(Debug, Default)]
pub(crate) struct PendingPart {
    pub(crate) found: Vec<Pending>,
    pub(crate) next: Option<String>,
}

/// Acknowledges a part of a batch.
#[derive(Debug)]
pub(crate) enum Ticket {
    Message { queue: String, receipt: Receipt },
    Object { name: String },
}

/// Makes transactions of one incarnation durable.
#[async_trait]
pub(crate) trait Appender: Send + Sync {
    /// Appends a transaction: when this returns `Committed`, it is committed.
    ///
    /// `is_whole` asks that all of it becomes durable or none (the atomic level). Without it the
    /// records may become durable one by one.
    async fn append(&self, transaction: &Transaction, is_whole: bool) -> Append;

    /// What came of earlier attempts to append a transaction that is too old to be appended again, by its
    /// number. Appends nothing.
    async fn outcome(&self, _number: u64) -> Append {
        // A message that was sent without an answer leaves no trace that could be asked for.
        let (what, cause) = ("a commit".to_owned(), "too old to be sent again".to_owned());
        Append::Unknown(Fault::Unknown { what, cause })
    }
}

/// The log of a database, as one process sees it.
pub(crate) fn of(backend: Backend, shards: u32, cloud: &Cloud, settings: Settings) -> Arc<dyn Log> {
    match backend {
        Backend::SqsStandard => {
            Arc::new(queues::Queues::new(cloud.clone(), settings, shards, false))
        }
        Backend::SqsFifo => Arc::new(queues::Queues::new(cloud.clone(), settings, shards, true)),
        Backend::S3Log => Arc::new(objects::ObjectLog::new(cloud.clone(), settings)),
    }
}

/// A log backend.
#[async_trait]
pub(crate) trait Log: Send + Sync {
    /// Makes what the log needs, for `client` to append to it as incarnation `epoch`. Earlier
    /// incarnations can append nothing more where the backend can see to that; those before
    /// `fence_from` are over already.
    async fn open(
        &self,
        client: u64,
        epoch: u64,
        fence_from: u64,
    ) -> Result<Box<dyn Appender>, StoreError>;

    /// Where there may be changes. `clients` are all that ever were.
    async fn scopes(&self, clients: &[u64]) -> Result<Vec<Scope>, StoreError>;

    /// The scope where changes of `page` by `stream` arrive.
    fn scope_of(&self, page: crate::page::PageId, stream: Stream) -> Scope;

    /// One client for each queue of whole transactions, so that forwarding for each of them is
    /// forwarding everything. `clients` are all that ever were.
    fn forwards(&self, clients: &[u64]) -> Vec<u64>;

    /// Sends about `most` whole transactions on to where checkpoints look for them.
    ///
    /// # Errors
    /// The first one. What failed with one transaction stays, and the others were sent on.
    async fn forward(&self, client: u64, most: usize) -> Result<Forwarded, StoreError>;

    /// Gives out about `most` changes, or what is there.
    async fn drain(&self, scope: Scope, most: usize) -> Result<Batch, StoreError>;

    /// About how many messages of `scope` there are, those that others hold included.
    async fn waiting(&self, _scope: Scope) -> Result<u64, StoreError> {
        Ok(0)
    }

    /// What is committed and not known here to be on its pages, without taking or hiding any of it: so
    /// many bytes at most. Makes no queue. Nothing of a transaction is in it that is not committed.
    /// Queues show a sample, and nothing of what others hold.
    ///
    /// # Errors
    /// [`StoreError::Backlog`] when there is more, and whatever the services say.
    async fn look(&self, bytes_max: usize) -> Result<Vec<Arc<Vec<Entry>>>, StoreError>;

    /// What `scope` is called, about how many messages it has, and some of the changes in them, which stay
    /// where they are and are hidden from nobody. Makes no queue.
    async fn peek(&self, scope: Scope) -> Result<(String, u64, Vec<Entry>), StoreError> {
        Ok((format!("{scope:?}"), 0, Vec::new()))
    }

    /// What there is, without taking any of it: a part of it, behind what `after` says, which is where the part
    /// before ended.
    async fn pending(
        &self,
        clients: &[u64],
        after: Option<&str>,
    ) -> Result<PendingPart, StoreError>;

    /// Lets go for good of what clients left that are retired (see `client`), if all of it was
    /// seen applied by this process. Returns how many objects went.
    async fn retire(&self) -> Result<u64, StoreError>;

    /// [`Log::retire`] for the stream of one retired client. Returns whether all of it is gone.
    async fn retire_stream(&self, stream: Stream) -> Result<bool, StoreError>;

    /// Makes sure that no change with a stamp older than `before_us` is given out any more, so that
    /// tombstones as old may go. To be called after a sweep. False: one still can be.
    async fn settle(&self, before_us: u64) -> Result<bool, StoreError>;

    /// What was drained cannot be brought to its pages, and will fail again: what lies behind it is
    /// given out first from now on. Nothing is let go of.
    fn pass_over(&self, _tickets: &[Ticket]) {}

    /// Lets go of what was drained. Only after all its changes are on their pages.
    async fn ack(&self, tickets: Vec<Ticket>) -> Result<(), StoreError>;
}
