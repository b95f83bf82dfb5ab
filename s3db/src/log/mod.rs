//! What a commit sends and a checkpoint applies: log records.

pub(crate) mod codec; // their bytes
pub(crate) mod stream; // one after the other, as a message or a log object holds them

use crate::{record::Key, record::Payload, stamp::Stamp};

/// One change of one index or record. Redo only: it says what holds afterwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRecord {
    /// Decides against other writes of the same key.
    pub stamp: Stamp,
    /// What holds afterwards.
    pub change: Change,
}

/// The three kinds of change.
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
}

impl Change {
    /// The key that the change is about.
    pub fn key(&self) -> &Key {
        let (Change::Insert(key, _) | Change::Delete(key, _) | Change::Update(key, _)) = self;
        key
    }

    /// The payload of an insert or update; of a delete, the record whose entry goes.
    pub fn payload(&self) -> &Payload {
        let (Change::Insert(_, payload) | Change::Delete(_, payload) | Change::Update(_, payload)) =
            self;
        payload
    }

    /// `insert`, `delete` or `update`.
    pub fn name(&self) -> &'static str {
        match self {
            Change::Insert(..) => "insert",
            Change::Delete(..) => "delete",
            Change::Update(..) => "update",
        }
    }
}
