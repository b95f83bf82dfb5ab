//! A transaction, or a part of one: records and where they belong. It is the body of every message
//! and a piece of every log object.
//!
//! A frame (see `frame`) of magic `s3dT`, version 1, with this body:
//!
//! | bytes | field |
//! | --- | --- |
//! | 8, 8, 8 | client, epoch, number of the transaction on this client |
//! | 4 | records of the whole transaction |
//! | 1 | 0: the records follow; 1: they lie in an object, whose name follows (2 + n) |
//! | 4 | number of records here |
//! | each | root of the tree (16), page that owned the key (16), 1 if secondary (1), log record |

use bytes::Bytes;

use crate::{
    blob::{Blob, Value},
    frame::{FrameError, Reader, Writer, is_number},
    log::{Change, LogRecord},
    names::is_spilled,
    page::PageId,
    record::{BoundError, KEY_BYTES_MAX, Key, Payload},
    stamp::Stamp,
    tree::secondary,
};

const MAGIC: &str = "s3dT";
const VERSION: u8 = 1;
const ENTRY_FIXED_BYTES: usize = 33;

/// A log record and where it belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The tree, by its root.
    pub tree: PageId,
    /// The leaf that owned the key, as the client that committed saw it. A hint: it decides which
    /// queue takes the record, not where it is applied.
    pub page: PageId,
    /// Whether the tree is a secondary index: then its keys are pairs.
    pub is_secondary: bool,
    /// What changes.
    pub record: LogRecord,
}

impl Entry {
    /// The key in the tree's leaves.
    pub(crate) fn leaf_key(&self) -> Bytes {
        let change = &self.record.change;
        match change.payload() {
            Some(record) if self.is_secondary => {
                secondary::join(change.key().as_bytes(), record.as_bytes())
            }
            _ => Bytes::copy_from_slice(change.key().as_bytes()),
        }
    }

    /// What the leaf holds afterwards; `None` is a tombstone.
    pub(crate) fn leaf_payload(&self) -> Option<Value> {
        match &self.record.change {
            Change::Delete(..) => None,
            _ if self.is_secondary => Some(Value::EMPTY),
            Change::Insert(_, payload) | Change::Update(_, payload) => {
                Some(Value::Here(Bytes::copy_from_slice(payload.as_bytes())))
            }
            Change::Blob(_, blob) => Some(Value::Blob(*blob)),
        }
    }

    /// The blob that it names.
    pub(crate) fn blob(&self) -> Option<&Blob> {
        match &self.record.change {
            Change::Blob(_, blob) => Some(blob),
            _ => None,
        }
    }

    /// The clock of the oldest stamp in it: its own, or that of the blob that it names.
    pub(crate) fn oldest_us(&self) -> u64 {
        let own = self.record.stamp.clock;
        self.blob().map_or(own, |blob| blob.stamp().clock.min(own))
    }

    /// Bytes within a transaction's frame.
    pub(crate) fn bytes(&self) -> usize {
        let change = &self.record.change;
        let bytes = change.key().as_bytes().len() + change.payload_bytes();
        ENTRY_FIXED_BYTES + super::codec::FRAME_BYTES_MIN - 1 + bytes
    }
}

/// What one commit writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// Who committed.
    pub client: u64,
    /// In which of its lives.
    pub epoch: u64,
    /// The client's count of its transactions.
    pub number: u64,
    /// Records of the whole transaction, of which `entries` may be a part.
    pub total: u32,
    /// The records.
    pub entries: Vec<Entry>,
}

/// What a frame of a transaction holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    Here(Transaction),
    /// Its frame is this object.
    Spilled(Transaction, String),
}

impl Transaction {
    /// The same transaction with only some of its records.
    pub(crate) fn part(&self, entries: Vec<Entry>) -> Transaction {
        Transaction { entries, ..*self }
    }

    /// The frame.
    pub fn encode(&self) -> Bytes {
        let mut to = self.head();
        to.u8(0);
        to.u32(self.entries.len() as u32);
        let mut bytes = Vec::new();
        for entry in &self.entries {
            to.u128(entry.tree.0);
            to.u128(entry.page.0);
            to.u8(u8::from(entry.is_secondary));
            bytes.clear();
            entry.record.encode(&mut bytes);
            to.raw(&bytes);
        }
        to.finish()
    }

    /// The frame that says that the records lie in `object`.
    pub(crate) fn encode_spilled(&self, object: &str) -> Bytes {
        let mut to = self.head();
        to.u8(1);
        to.short(object.as_bytes());
        to.u32(0);
        to.finish()
    }

    fn head(&self) -> Writer {
        let mut to = Writer::new(MAGIC, VERSION);
        to.u64(self.client);
        to.u64(self.epoch);
        to.u64(self.number);
        to.u32(self.total);
        to
    }

    /// Bytes of the frame.
    pub(crate) fn encoded_bytes(&self) -> usize {
        9 + 28 + 5 + self.entries.iter().map(Entry::bytes).sum::<usize>()
    }

    /// Decodes a frame.
    ///
    /// # Errors
    /// When the bytes are no transaction, were damaged, or hold what none holds.
    pub(crate) fn decode(frame: &Bytes) -> Result<Body, FrameError> {
        let mut from = Reader::new(frame, MAGIC, VERSION)?;
        let mut transaction = Transaction {
            client: from.u64()?,
            epoch: from.u64()?,
            number: from.u64()?,
            total: from.u32()?,
            entries: Vec::new(),
        };
        let object = match from.u8()? {
            0 => None,
            1 => {
                let name = from.short()?;
                let name = std::str::from_utf8(&name).ok().filter(|name| is_spilled(name));
                let not_ours = || from.field("a name that no spilled transaction has");
                Some(name.ok_or_else(not_ours)?.to_owned())
            }
            _ => return Err(from.field("neither records nor a name")),
        };
        let count = from.u32()? as usize;
        if count > from.rest() / (ENTRY_FIXED_BYTES + super::codec::FRAME_BYTES_MIN) {
            return Err(from.field("more records than bytes"));
        }
        for _ in 0..count {
            let (tree, page) = (PageId(from.u128()?), PageId(from.u128()?));
            let is_secondary = match from.u8()? {
                0 => false,
                1 => true,
                _ => return Err(from.field("neither primary nor secondary")),
            };
            let bytes = from.peek();
            let (record, len) = LogRecord::decode(&bytes)
                .map_err(|_| from.field("a log record that cannot be decoded"))?;
            from.raw(len)?;
            let named = record.change.payload().map_or(0, |payload| payload.as_bytes().len());
            if is_secondary && !(1..=KEY_BYTES_MAX).contains(&named) {
                return Err(from.field("a secondary entry that names no record"));
            }
            if !is_number(record.stamp.clock) {
                return Err(from.field("a stamp after which there is none"));
            }
            transaction.entries.push(Entry { tree, page, is_secondary, record });
        }
        from.done()?;
        Ok(match object {
            None => Body::Here(transaction),
            Some(name) => Body::Spilled(transaction, name),
        })
    }
}

/// A change of a primary index.
pub(crate) fn primary(
    tree: PageId,
    page: PageId,
    stamp: Stamp,
    key: Key,
    payload: Option<Payload>,
) -> Entry {
    let change = match payload {
        Some(payload) => Change::Update(key, payload),
        None => Change::Delete(key, Payload::default()),
    };
    Entry { tree, page, is_secondary: false, record: LogRecord { stamp, change } }
}

/// A record whose payload is a blob.
pub(crate) fn in_blob(tree: PageId, page: PageId, stamp: Stamp, key: Key, blob: Blob) -> Entry {
    let record = LogRecord { stamp, change: Change::Blob(key, blob) };
    Entry { tree, page, is_secondary: false, record }
}

/// An entry of a secondary index that comes or goes.
pub(crate) fn secondary(
    tree: PageId,
    page: PageId,
    stamp: Stamp,
    search: Key,
    record: &Key,
    is_there: bool,
) -> Result<Entry, BoundError> {
    let named = Payload::new(record.as_bytes())?;
    let change =
        if is_there { Change::Insert(search, named) } else { Change::Delete(search, named) };
    Ok(Entry { tree, page, is_secondary: true, record: LogRecord { stamp, change } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::INLINE_BYTES_MAX;

    fn decode(entry: Entry) -> bool {
        let all = Transaction { client: 1, epoch: 1, number: 1, total: 1, entries: vec![entry] };
        Transaction::decode(&all.encode()).is_ok()
    }

    /// A record's name of 32 KiB made a leaf that nobody could decode any more.
    #[test]
    fn an_entry_of_an_index_names_a_record() {
        let entry = |len: usize| {
            let (search, record) = (Key::new("s").unwrap(), Payload::new(vec![7; len]).unwrap());
            let record =
                LogRecord { stamp: Stamp::default(), change: Change::Insert(search, record) };
            Entry { tree: PageId(1), page: PageId(1), is_secondary: true, record }
        };
        for (len, is_sound) in
            [(0, false), (1, true), (KEY_BYTES_MAX, true), (KEY_BYTES_MAX + 1, false)]
        {
            assert_eq!(decode(entry(len)), is_sound, "{len}");
        }
        assert!(!decode(entry(INLINE_BYTES_MAX)));
    }

    /// A message may name no page, no approval and nothing else that its reader would take away.
    #[test]
    fn only_spilled_transactions_are_named() {
        let head = Transaction { client: 1, epoch: 1, number: 1, total: 1, entries: Vec::new() };
        let long = format!("spill/1/1/{}", "a".repeat(2000));
        let own = format!("spill/{:016x}/{:016x}/{:016x}-{:016x}", 1, 1, 1, u64::MAX);
        for (name, is_sound) in [
            (&own[..], true),
            ("spill/7/2/5", true),
            ("approved/1/2/3", false),
            ("quarantine/not-approved-1", false),
            ("spill/1/2", false),
            ("spill/1/2/3/4", false),
            ("spill/1//3", false),
            ("spill/../approved/1", false),
            (&long[..], false),
            ("", false),
        ] {
            let decoded = Transaction::decode(&head.encode_spilled(name));
            assert_eq!(decoded.is_ok(), is_sound, "{name}: {decoded:?}");
        }
    }

    #[test]
    fn stamps_have_room_after_them() {
        let entry = |clock| {
            let stamp = Stamp { clock, ..Stamp::default() };
            primary(PageId(1), PageId(1), stamp, Key::new("k").unwrap(), None)
        };
        assert!(decode(entry(i64::MAX as u64)) && !decode(entry(u64::MAX)));
    }
}
