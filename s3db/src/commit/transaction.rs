//! A write set: changes that nobody sees before the commit.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;

use crate::{
    blob::{Blob, REFERENCE_BYTES, Value},
    commit::{Level, fresh::LookCell},
    curate::ProposalId,
    error::StoreError,
    log::{Entry, transaction},
    page::PageId,
    record::{Key, Payload},
    stamp::Stamp,
    tree::secondary,
};

/// Changes in one transaction.
const WRITES_MAX: usize = 100_000;
/// Bytes of all changes of one transaction, as a log object holds them: what one put can carry in
/// a bounded time.
pub const TRANSACTION_BYTES_MAX: usize = 64 << 20;
/// Bytes of all payloads of one transaction that become blobs, and are in memory until they are put.
pub(crate) const BLOBS_BYTES_MAX: usize = 256 << 20;
/// Bytes of one change besides its key and its payload, at most.
const WRITE_FIXED_BYTES: usize = 80;

/// A transaction under way: everything written since [`Session::begin`](crate::Session::begin).
///
/// It lives in this client's memory alone. To abort it, drop it.
#[derive(Clone, Debug)]
pub struct Txn {
    pub(crate) level: Level,
    /// By tree and leaf key. The last write of a key counts.
    pub(crate) writes: BTreeMap<(PageId, Bytes), Write>,
    /// Bytes of the longest payload that is no blob.
    inline_bytes_max: usize,
    /// In the log.
    bytes: usize,
    /// Of payloads that become blobs.
    blob_bytes: usize,
    /// Set by the first attempt to commit: a second one must be the same transaction.
    pub(crate) sealed: Option<(u64, Vec<Entry>)>,
    /// An attempt to commit it was made, however long ago.
    pub(crate) was_tried: bool,
    /// Of blobs that it names and that are not put yet, what is in them.
    pub(crate) unput: Vec<(Blob, Bytes)>,
    /// An attempt to commit it was made whose outcome is not known: it may be durable, whatever
    /// comes of the next.
    pub(crate) is_unclear: bool,
    /// If it reads what waits in the log: that, once it has looked.
    pub(crate) look: Option<Arc<LookCell>>,
}

#[derive(Clone, Debug)]
pub(crate) enum Write {
    Primary(Key, Option<Payload>),
    /// A record whose payload is a blob that is there already.
    Blob(Key, Blob),
    Secondary {
        search: Key,
        record: Key,
        is_there: bool,
    },
}

/// A commit that succeeded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// The client's count of its transactions; at the snapshot and the serializable level, the number of
    /// the commit among those of all clients. 0 for one without changes.
    pub number: u64,
    /// How many records it changed, or is to change.
    pub records: u32,
    /// Of a transaction that changes a curated collection: what waits for a curator. Nothing is changed yet.
    pub proposed: Option<ProposalId>,
}

impl Txn {
    pub(crate) fn new(level: Level, inline_bytes_max: usize) -> Txn {
        let (writes, unput, bytes, blob_bytes) = Default::default();
        let (sealed, was_tried, is_unclear) = (None, false, false);
        Txn {
            level,
            writes,
            inline_bytes_max,
            bytes,
            blob_bytes,
            sealed,
            was_tried,
            unput,
            is_unclear,
            look: None,
        }
    }

    /// What was written to one tree.
    pub(crate) fn writes_of(&self, tree: PageId) -> impl Iterator<Item = &Write> {
        let from = (tree, Bytes::new());
        self.writes.range(from..).take_while(move |((of, _), _)| *of == tree).map(|(_, it)| it)
    }

    /// The level it will be committed at.
    pub fn level(&self) -> Level {
        self.level
    }

    /// How many records and index entries it changes.
    pub fn len(&self) -> usize {
        self.writes.len()
    }

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// The record of `key` in the primary index `tree` shall have this payload.
    ///
    /// # Errors
    /// When the transaction has too many changes, or an attempt to commit it was made.
    pub fn put(&mut self, tree: PageId, key: &Key, payload: Payload) -> Result<(), StoreError> {
        self.write(tree, leaf_key(key), Write::Primary(key.clone(), Some(payload)))
    }

    /// The record of `key` in the primary index `tree` shall have what was written before, by
    /// [`Session::write_blob`](crate::Session::write_blob).
    ///
    /// # Errors
    /// As [`Txn::put`].
    pub fn put_value(&mut self, tree: PageId, key: &Key, value: Value) -> Result<(), StoreError> {
        match value {
            Value::Here(payload) => self.put(tree, key, Payload::new(&payload)?),
            Value::Blob(blob) => self.write(tree, leaf_key(key), Write::Blob(key.clone(), blob)),
        }
    }

    /// The primary index `tree` shall have no record of `key`.
    ///
    /// # Errors
    /// As [`Txn::put`].
    pub fn delete(&mut self, tree: PageId, key: &Key) -> Result<(), StoreError> {
        self.write(tree, leaf_key(key), Write::Primary(key.clone(), None))
    }

    /// The secondary index `tree` shall say, or no longer say, that `search` leads to `record`.
    ///
    /// # Errors
    /// As [`Txn::put`].
    pub fn index(
        &mut self,
        tree: PageId,
        search: &Key,
        record: &Key,
        is_there: bool,
    ) -> Result<(), StoreError> {
        let leaf_key = secondary::join(search.as_bytes(), record.as_bytes());
        let (search, record) = (search.clone(), record.clone());
        self.write(tree, leaf_key, Write::Secondary { search, record, is_there })
    }

    fn write(&mut self, tree: PageId, key: Bytes, write: Write) -> Result<(), StoreError> {
        if self.sealed.is_some() {
            let what = "a commit of this transaction was tried: it can only be tried again";
            return Err(StoreError::Invalid(what.into()));
        }
        let at = (tree, key);
        let before = self.writes.get(&at);
        if self.writes.len() >= WRITES_MAX && before.is_none() {
            let what = format!("a transaction has at most {WRITES_MAX} changes");
            return Err(StoreError::Invalid(what));
        }
        let most = self.inline_bytes_max;
        let (had, has) = (before.map_or((0, 0), |it| it.bytes(most)), write.bytes(most));
        let (bytes, blob_bytes) = (self.bytes - had.0 + has.0, self.blob_bytes - had.1 + has.1);
        if bytes > TRANSACTION_BYTES_MAX {
            let what = format!("a transaction has at most {} MiB", TRANSACTION_BYTES_MAX >> 20);
            return Err(StoreError::Invalid(what));
        }
        if blob_bytes > BLOBS_BYTES_MAX {
            return Err(StoreError::Invalid(format!(
                "payloads of more than {most} bytes, of which a transaction holds {} MiB at most in memory: \
                 write them part by part",
                BLOBS_BYTES_MAX >> 20
            )));
        }
        (self.bytes, self.blob_bytes) = (bytes, blob_bytes);
        self.writes.insert(at, write);
        Ok(())
    }

    /// What this transaction itself wrote: `None` if nothing, else the payload, or that it is gone.
    pub(crate) fn own_value(&self, tree: PageId, key: &[u8]) -> Option<Option<Value>> {
        let write = self.writes.get(&(tree, Bytes::copy_from_slice(key)))?;
        (!matches!(write, Write::Secondary { .. })).then(|| write.value())
    }
}

impl Write {
    /// Bytes in a log object, at most; and of what becomes a blob, where longer payloads than this do.
    fn bytes(&self, inline_bytes_max: usize) -> (usize, usize) {
        let (key, payload, blob) = match self {
            Write::Primary(key, payload) => {
                let len = payload.as_ref().map_or(0, |payload| payload.as_bytes().len());
                match len > inline_bytes_max {
                    true => (key, REFERENCE_BYTES, len),
                    false => (key, len, 0),
                }
            }
            Write::Blob(key, _) => (key, REFERENCE_BYTES, 0),
            Write::Secondary { search, record, .. } => (search, record.as_bytes().len(), 0),
        };
        (WRITE_FIXED_BYTES + key.as_bytes().len() + payload, blob)
    }

    /// What a leaf holds afterwards; a payload is here, however large.
    pub(crate) fn value(&self) -> Option<Value> {
        match self {
            Write::Primary(_, payload) => payload.as_ref().map(|it| Value::Here(it.to_bytes())),
            Write::Blob(_, blob) => Some(Value::Blob(*blob)),
            Write::Secondary { is_there, .. } => is_there.then_some(Value::EMPTY),
        }
    }

    /// `large` is the blob that a payload is put into which is too large for a page.
    pub(crate) fn entry(
        &self,
        tree: PageId,
        page: PageId,
        stamp: Stamp,
        large: Option<Blob>,
    ) -> Result<Entry, StoreError> {
        Ok(match self {
            Write::Blob(key, blob) => transaction::in_blob(tree, page, stamp, key.clone(), *blob),
            Write::Primary(key, payload) => match large {
                Some(blob) => transaction::in_blob(tree, page, stamp, key.clone(), blob),
                None => transaction::primary(tree, page, stamp, key.clone(), payload.clone()),
            },
            Write::Secondary { search, record, is_there } => {
                transaction::secondary(tree, page, stamp, search.clone(), record, *is_there)?
            }
        })
    }
}

fn leaf_key(key: &Key) -> Bytes {
    Bytes::copy_from_slice(key.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{INLINE_BYTES_MAX, PAYLOAD_BYTES_MAX};

    /// Of any number of the largest records no more are taken than one put can carry.
    #[test]
    fn a_transaction_is_bounded_in_bytes() {
        let mut txn = Txn::new(Level::Atomic, INLINE_BYTES_MAX);
        let large = Payload::new(vec![7; INLINE_BYTES_MAX]).unwrap();
        let tree = PageId(1);
        let key = |n: usize| Key::new(format!("{n:06}")).unwrap();
        let taken = (0..WRITES_MAX).take_while(|&n| txn.put(tree, &key(n), large.clone()).is_ok());
        let taken = taken.count();
        assert!((1500..2048).contains(&taken), "{taken}");
        // What replaces a change takes its place.
        txn.put(tree, &key(0), large.clone()).unwrap();
        txn.delete(tree, &key(0)).unwrap();
        txn.put(tree, &key(taken), large.clone()).unwrap();
        assert!(txn.put(tree, &key(0), large).is_err());
        let entries: Vec<Entry> = txn
            .writes
            .values()
            .map(|write| write.entry(tree, tree, Stamp::default(), None).unwrap())
            .collect();
        let whole = crate::log::Transaction { client: 1, epoch: 1, number: 1, total: 1, entries };
        assert!(whole.encoded_bytes() <= TRANSACTION_BYTES_MAX + 100);
    }

    /// What never comes into the log counted as if it did: of two large payloads one was refused.
    #[test]
    fn blobs_are_bounded_by_memory_alone() {
        let mut txn = Txn::new(Level::Atomic, INLINE_BYTES_MAX);
        let large = Payload::new(vec![7; PAYLOAD_BYTES_MAX]).unwrap();
        let tree = PageId(1);
        let key = |n: usize| Key::new(format!("{n:06}")).unwrap();
        let taken = (0..100).take_while(|&n| txn.put(tree, &key(n), large.clone()).is_ok()).count();
        assert_eq!(taken, BLOBS_BYTES_MAX / PAYLOAD_BYTES_MAX);
        txn.delete(tree, &key(0)).unwrap();
        txn.put(tree, &key(100), large).unwrap();
        txn.put(tree, &key(101), Payload::new("small").unwrap()).unwrap();
        assert_eq!((txn.blob_bytes, txn.len()), (BLOBS_BYTES_MAX, taken + 2));
        assert!(txn.bytes < 10_000, "{}", txn.bytes);
    }
}
