//! A write set: changes that nobody sees before the commit.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::{
    blob::{Blob, REFERENCE_BYTES, Value},
    commit::Level,
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
    bytes: usize,
    /// Set by the first attempt to commit: a second one must be the same transaction.
    pub(crate) sealed: Option<(u64, Vec<Entry>)>,
    /// An attempt to commit it was made, however long ago.
    pub(crate) was_tried: bool,
    /// Of blobs that it names and that are not put yet, what is in them.
    pub(crate) unput: Vec<(Blob, Bytes)>,
    /// An attempt to commit it was made whose outcome is not known: it may be durable, whatever
    /// comes of the next.
    pub(crate) is_unclear: bool,
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
    /// The client's count of its transactions; 0 for one without changes.
    pub number: u64,
    /// How many records it changed.
    pub records: u32,
}

impl Txn {
    pub(crate) fn new(level: Level) -> Txn {
        let (writes, unput) = Default::default();
        let (was_tried, is_unclear) = (false, false);
        Txn { level, writes, bytes: 0, sealed: None, was_tried, unput, is_unclear }
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
        let bytes = self.bytes - before.map_or(0, Write::bytes) + write.bytes();
        if bytes > TRANSACTION_BYTES_MAX {
            let what = format!("a transaction has at most {} MiB", TRANSACTION_BYTES_MAX >> 20);
            return Err(StoreError::Invalid(what));
        }
        self.bytes = bytes;
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
    /// Bytes in a log object, at most.
    fn bytes(&self) -> usize {
        WRITE_FIXED_BYTES
            + match self {
                Write::Primary(key, payload) => {
                    key.as_bytes().len() + payload.as_ref().map_or(0, |it| it.as_bytes().len())
                }
                Write::Blob(key, _) => key.as_bytes().len() + REFERENCE_BYTES,
                Write::Secondary { search, record, .. } => {
                    search.as_bytes().len() + record.as_bytes().len()
                }
            }
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
    use crate::record::INLINE_BYTES_MAX;

    /// Of any number of the largest records no more are taken than one put can carry.
    #[test]
    fn a_transaction_is_bounded_in_bytes() {
        let mut txn = Txn::new(Level::Atomic);
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
}
