#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod cloud; // objects, queues, time and chance: what is passed in
mod names; // what lies where, and which right a call on it takes
mod page_id; // the name of a page
mod tag; // the collection that it tells
mod error; // what can go wrong
mod fail_point; // where a crash can cut a protocol
mod settings; // what can be set, and the rules that hold
mod record; // keys and what belongs to them
mod stamp; // the order of all writes
mod blob_id; // the names of a blob's objects
mod search_by; // what a record is found by besides its key
pub mod blob; // payloads that are objects of their own
mod frame; // bytes: magic, body, checksum
pub mod page; // one node of a tree
mod lent; // pages in use, and their bytes
mod tree; // a B-link tree over pages handed to it
mod policy; // who may do what, in the words of AWS
mod retry; // trying again what fails in passing
mod pool; // pages held, aged and put
mod log; // what a commit sends and a checkpoint applies
mod catalog; // what all clients agree upon
mod client; // who writes: lives and stamps
mod checkpoint; // from the log to the pages
mod commit; // transactions, sessions, levels
mod curate; // changes that wait for a curator
mod writers; // who may write to a collection
mod sequence; // snapshot and serializable transactions
mod store; // what one process shares
mod collections; // of it: created, found, changed
mod content; // a payload, read part by part
mod index; // secondary indexes: found by, built, compared
mod dropping; // of collections and indexes
mod inspect; // any object or message, by its first bytes
mod gc; // pages that nothing leads to
#[cfg(feature = "encryption")]
mod rekey; // what is sealed, sealed again with another key
mod verify; // every invariant, checked on what is there
mod watch; // what waits, looked at again and again
mod address; // where a database is
mod estimate; // what transactions will cost
mod db; // a database in use: collections, transactions, work in the background
#[cfg(feature = "simulation")]
pub mod paper; // the protocols of 2008 as printed, and the paper's tables
#[cfg(feature = "simulation")]
pub mod simulation; // whole clusters from one seed, and the invariants

pub use crate::{
    address::Address,
    blob::{BLOB_BYTES_MAX, Blob, PART_BYTES_MAX, Value, Writing},
    catalog::{Backend, Collection, Database, Index, Isolation, NAME_BYTES_MAX},
    checkpoint::Checkpointed,
    checkpoint::owner::{Claim, Claims},
    client::ClientRecord,
    cloud::sealed_frame::SealedFrame,
    commit::{Committed, Level, Scan, Session, TRANSACTION_BYTES_MAX, Txn},
    content::Content,
    curate::{Proposal, ProposalId},
    db::{Db, IndexRecords, Options, Records, Transaction},
    error::{AbortCause, StoreError},
    estimate::{Estimate, Phases, Requests, Workload},
    fail_point::FailPoint,
    frame::{FrameError, Unopened},
    gc::Collected,
    index::{Found, IndexCheck},
    inspect::Inspected,
    log::{
        Change, Entry, LogRecord, Transaction as LoggedTransaction,
        codec::{DecodeError, FRAME_BYTES_MAX, FRAME_BYTES_MIN},
        stream::{LogRecords, StreamError},
    },
    page::INDEXES_MAX,
    policy::{CollectionKind, Names, Policy, Right, Service, Wish, policy},
    pool::disk::KeptPage,
    pool::{Eviction, PoolCounts},
    record::{
        BoundError, INLINE_BYTES_MAX, KEY_BYTES_MAX, Key, PAYLOAD_BYTES_MAX, Payload, Record,
    },
    search_by::SearchBy,
    sequence::{
        Isolated, IsolatedFound, IsolatedScan, Numbers, SequencedCommit, SequencedIndex,
        SequencedWrite, SequencerState,
    },
    settings::{Rule, Rules, Settings},
    stamp::Stamp,
    store::Store,
    verify::{Status, Verified},
    watch::{LogPart, Look, PAGES_COUNTED_MAX, Watcher},
};
#[cfg(feature = "encryption")]
pub use crate::{cloud::sealed::Keyring, rekey::Rekeyed};
