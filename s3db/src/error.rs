//! What can go wrong, by what the caller can do next.

use crate::{
    cloud::Fault,
    frame::{FrameError, Unopened},
    names::{LOG, PAGES, SEQUENCER, SPILLED},
    page_id::PageId,
    record::BoundError,
};

/// Why the store could not do something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A call failed after every attempt that is allowed.
    #[error("gave up after {attempts} attempts")]
    Cloud {
        /// How often it was tried.
        attempts: u32,
        /// What the last attempt met.
        #[source]
        source: Fault,
    },
    /// An object does not hold what it should. It is left as it is.
    #[error("{object} is damaged or foreign: {}", way_out(.object))]
    Damaged {
        /// The object's name.
        object: String,
        /// What is wrong, and at which byte.
        #[source]
        source: FrameError,
    },
    /// The tree does not hang together at this page. `s3db verify` tells more.
    #[error("page {page}: {what}")]
    Tree {
        /// Where it was found.
        page: PageId,
        /// What is wrong.
        what: &'static str,
    },
    /// The services do not let this client do that. Nothing was done.
    #[error("{object}: not allowed to {action}: who has the right {right} may ({cause})")]
    Denied {
        /// The object, or the queue.
        object: String,
        /// What was tried: get, put, delete, list, send, receive; or write, where a collection names its writers.
        action: &'static str,
        /// Which right, as `s3db policy` prints it, lets somebody do that.
        right: &'static str,
        /// What the service said.
        cause: String,
    },
    /// Other clients changed the same object at every attempt. Nothing was changed; try again.
    #[error("{object} was changed by others at each of {attempts} attempts")]
    Contended {
        /// The object's name.
        object: String,
        /// How often it was tried.
        attempts: u32,
    },
    /// A newer incarnation of this client exists; or it was taken for gone: it wrote nothing for
    /// longer than a tombstone stays, and nobody called [`Session::keep_alive`](crate::Session); or it has
    /// ended itself, to call off a commit that had no answer until it was too old.
    /// This one must stop: it can commit nothing more. Open the database again.
    #[error(
        "client {client:x} was started again elsewhere, or forgotten for having written nothing for \
         long, or has called off a commit that had no answer for long: epoch {epoch} is over, open the \
         database again"
    )]
    Fenced {
        /// The client.
        client: u64,
        /// The epoch that ended.
        epoch: u64,
    },
    /// It is not known whether the transaction is committed. Committing the same transaction again
    /// is safe: it has the same stamps, so that its records count once.
    #[error("the commit may or may not have happened: commit the same transaction again")]
    CommitUnknown {
        /// What the last attempt met.
        #[source]
        source: Fault,
    },
    /// A curator's approval stands, and what it approves is not on its pages yet. Any sweep goes on with it.
    #[error("{id} is approved, and not on its pages yet: sweep")]
    Unapplied {
        /// The proposal.
        id: String,
        /// What was in the way.
        #[source]
        source: Box<StoreError>,
    },
    /// A transaction at the snapshot or the serializable level is not committed, and cannot be. Begin
    /// another one: it sees what this one missed.
    #[error("the transaction is aborted: {why}; begin it again")]
    Aborted {
        /// What was in its way.
        why: AbortCause,
    },
    /// So many commits at the snapshot and the serializable level wait for pages that no other is taken, in
    /// the whole database, and they wait for something that does not pass by itself: mostly one page, which
    /// `why` names. The transaction is not committed. When that is mended, a sweep makes room, and the same
    /// one can be committed.
    #[error(
        "{commits} commits wait for their pages, and no other is taken before a sweep comes to its end: {why}"
    )]
    Stuck {
        /// How many wait.
        commits: u64,
        /// What is in their way, and what can be done about it.
        why: String,
    },
    /// This machine's clock is ahead of the store's, and a commit would win against later ones.
    #[error("this machine's clock is {ahead_ms} ms ahead of the object store's: set it right")]
    Clock {
        /// How far ahead the next stamp would be.
        ahead_ms: u64,
    },
    /// The object store's answers tell a time that contradicts this machine's clock by more than a day, or
    /// each other by more than some minutes. Nothing was committed or deleted by it.
    #[error(
        "the object store tells a time that is {ahead_ms} ms ahead of what this machine's clock, or its answer \
         before, makes of it: set the clock right, or find out who answers in the store's place"
    )]
    Date {
        /// How far ahead it is; below zero: behind.
        ahead_ms: i64,
    },
    /// An earlier life of this client, on a machine whose clock was ahead, claimed stamps up to a
    /// time that is far off. The next one can only begin there.
    #[error(
        "client {client:x} has claimed all stamps until {ahead_ms} ms after the object store's time: \
         wait for that, or use another name"
    )]
    Claimed {
        /// The client.
        client: u64,
        /// How far ahead its next stamp would be.
        ahead_ms: u64,
    },
    /// There is already something of this name.
    #[error("{0} exists already")]
    Exists(String),
    /// A part of a record's blob, which is committed, is not there, or a page that was put once. Nothing
    /// takes its place.
    #[error(
        "{object} is not there, and {} names it: restore it from a copy, or from an \
         older version, unless its collection or index was dropped",
        namer(.object)
    )]
    Lost {
        /// The object's name.
        object: String,
    },
    /// A record was written again, or deleted, while its payload was read part by part, and what it held is
    /// collected by now. Read it again, from the beginning.
    #[error(
        "{object} is gone: its record was written again or deleted while it was read, so long ago that it \
         is collected; read it again from the beginning"
    )]
    Replaced {
        /// The object's name.
        object: String,
    },
    /// More waits in the log than a fresh read takes on
    /// ([`Settings::look_bytes_max`](crate::Settings)), or than the session may remember of what it saw
    /// there. A sweep makes it less; any other read needs none of it.
    #[error("more waits in the log than a fresh read takes on ({what}): sweep, or read without it")]
    Backlog {
        /// How much, and how much may be.
        what: String,
    },
    /// A collection's entry in the catalogue leads to a page that is none of that collection.
    #[error(
        "{object} leads to page {page}, which belongs to another collection: restore it from a copy, or from \
         an older version"
    )]
    Misled {
        /// The entry.
        object: String,
        /// Where it leads.
        page: PageId,
    },
    /// There is nothing of this name.
    #[error("there is no {0}")]
    NotFound(String),
    /// The budget has no room for a page, and had none for a while: it is smaller than the page, or too
    /// much of it is pinned, by scans that are held open or by regions that share it.
    #[error(
        "no room for {bytes} bytes of a page in a budget of {limit}: raise it, or hold fewer scans open at a time"
    )]
    Full {
        /// The bytes that were wanted.
        bytes: u64,
        /// The budget.
        limit: u64,
    },
    /// The database is encrypted, and no keys are given.
    #[error("the database is encrypted: open it with its keys")]
    Encrypted,
    /// A key, a payload or a transaction that the store does not take.
    #[error(transparent)]
    Bound(#[from] BoundError),
    /// A setting, or a wish, that makes no sense.
    #[error("{0}")]
    Invalid(String),
}

/// Why a transaction was aborted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AbortCause {
    /// Another one wrote a record that it writes, and was committed after its snapshot.
    #[error("record {key} was written by another one after the snapshot")]
    Written {
        /// The record's key, escaped.
        key: String,
    },
    /// Another one wrote a record that it read, or that was not there when it read a range.
    #[error("record {key}, which it read, was written by another one after the snapshot")]
    Read {
        /// The record's key, escaped.
        key: String,
    },
    /// So much was committed since its snapshot, or that is so long ago, that what it needs is not kept.
    #[error("its snapshot {snapshot} is older than {oldest}, the oldest one that is kept")]
    Old {
        /// The number of the last commit that it sees.
        snapshot: u64,
        /// The oldest one that could be used.
        oldest: u64,
    },
    /// An index of a collection that it writes to was made, or dropped, after it began.
    #[error("an index of what it writes was made or dropped after it began")]
    Indexes,
    /// What it writes was put so long before the commit that garbage collection may take it.
    #[error("{object}, which has what it writes, was put too long ago")]
    Late {
        /// The object's name.
        object: String,
    },
}

impl AbortCause {
    /// Whether the same writes can be committed by a transaction that begins now.
    pub(crate) fn is_overtaken(&self) -> bool {
        match self {
            AbortCause::Written { .. } | AbortCause::Old { .. } | AbortCause::Indexes => true,
            AbortCause::Read { .. } | AbortCause::Late { .. } => false,
        }
    }
}

/// An error and its cause, as one line.
pub(crate) fn with_cause(error: &StoreError) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    format!("{error}{}", cause.unwrap_or_default())
}

/// What names an object that is lost.
fn namer(object: &str) -> &'static str {
    match object {
        _ if object.starts_with(PAGES) => "the catalogue or another page",
        _ if object.starts_with(SEQUENCER) => "the catalogue or the sequencer",
        _ => "a record",
    }
}

/// What can be done about a damaged object.
fn way_out(object: &str) -> &'static str {
    match object {
        // No message waits for it after a sweep.
        _ if object.starts_with(SPILLED) => {
            "restore it from a copy before a sweep; after one its bytes are in quarantine/, and it can be deleted"
        }
        // It may have been the newest of its stream: the number is free without it.
        _ if object.starts_with(LOG) => {
            "restore it from a copy, or, if no earlier life of its client runs any more, delete it \
             after a sweep: its bytes are in quarantine/ then"
        }
        _ => "restore it from a copy, or from an older version",
    }
}

impl StoreError {
    /// Whether an object is whole and does not open under the key that is given.
    pub(crate) fn is_of_another_key(&self) -> bool {
        let StoreError::Damaged { source, .. } = self else { return false };
        matches!(source, FrameError::Unopened(Unopened::Key(_)))
    }

    /// Whether the same can succeed soon: nothing is damaged, and nothing was wrong from the start.
    pub fn is_passing(&self) -> bool {
        match self {
            // Spent is only what there is for now.
            StoreError::Cloud { source, .. } => {
                source.is_transient() || matches!(source, Fault::Spent { .. })
            }
            StoreError::Contended { .. } | StoreError::Full { .. } => true,
            StoreError::Unapplied { source, .. } => source.is_passing(),
            _ => false,
        }
    }
}
