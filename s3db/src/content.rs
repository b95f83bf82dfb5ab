//! A payload that is read part by part, and what it means that a part of it is not there.

use std::sync::Arc;

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest};

use crate::{
    blob::{self, Blob, Line, Value},
    cloud::{Cloud, Ledger, ledger::charged_to},
    error::StoreError,
    page::{PageId, Slot},
    sequence,
    settings::Settings,
    store::Store,
    tree::{Freshness, search::search},
};

/// Reads a payload part by part, wherever it lies. Each part is checked before it is given out, and all
/// of them together at the end.
pub struct Content {
    cloud: Cloud,
    settings: Settings,
    value: Value,
    /// Read ahead: whether the first part is there was asked already.
    first: Option<Bytes>,
    next: u32,
    sum: Digest,
    /// What it is read for.
    record: Option<Origin>,
    /// Accounts of whoever reads.
    payers: Option<[Arc<Ledger>; 2]>,
}

/// A record whose payload is read.
enum Origin {
    /// As it is now.
    Newest { store: Arc<Store>, tree: PageId, key: Bytes },
    /// As of a snapshot, if one was taken.
    Snapshot { store: Arc<Store>, snapshot: Option<u64> },
}

impl Content {
    /// `None` when the first part is not there.
    pub(crate) async fn open(
        cloud: &Cloud,
        settings: &Settings,
        value: Value,
    ) -> Result<Option<Content>, StoreError> {
        // A copy: whoever reads it slowly is not to keep the bytes of a page.
        let value = match value {
            Value::Here(payload) => Value::Here(Bytes::copy_from_slice(&payload)),
            blob => blob,
        };
        let first = match &value {
            Value::Here(payload) => Some(payload.clone()),
            Value::Blob(blob) => blob::part(cloud, settings, blob, 0, &Line::new()).await?,
        };
        if first.is_none() {
            return Ok(None);
        }
        let sum = Digest::new(CrcAlgorithm::Crc32Iscsi);
        let (cloud, settings) = (cloud.clone(), *settings);
        let (record, payers) = (None, None);
        Ok(Some(Content { cloud, settings, value, first, next: 1, sum, record, payers }))
    }

    /// The same, for a record: if a part is not there it tells whether that still names the blob.
    pub(crate) fn of(self, store: &Arc<Store>, tree: PageId, key: &[u8]) -> Content {
        let (store, key) = (store.clone(), Bytes::copy_from_slice(key));
        Content { record: Some(Origin::Newest { store, tree, key }), ..self }
    }

    /// The same, for one of which a version is read: if a part is not there it tells whether that is because
    /// the snapshot is too old.
    pub(crate) fn seen_at(self, store: &Arc<Store>, snapshot: Option<u64>) -> Content {
        Content { record: Some(Origin::Snapshot { store: store.clone(), snapshot }), ..self }
    }

    /// The same; the rest is charged to these accounts.
    pub(crate) fn paid_by(self, payers: [Arc<Ledger>; 2]) -> Content {
        Content { payers: Some(payers), ..self }
    }

    /// How many bytes there are in all.
    pub fn bytes(&self) -> u64 {
        self.value.bytes()
    }

    /// The next bytes; `None` at the end, after everything was found to be what was written.
    ///
    /// # Errors
    /// [`StoreError::Replaced`] when the record was written again since, and what it held is collected
    /// (by [`Store::collect_garbage`], `grace` after that found it unnamed), and [`StoreError::Aborted`] in place
    /// of it when it is read at a snapshot, which is too old then; [`StoreError::Damaged`] and
    /// [`StoreError::Lost`], which name the object; and whatever the object store says.
    pub async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        match self.payers.clone() {
            Some([one, other]) => charged_to(&one, charged_to(&other, self.read())).await,
            None => self.read().await,
        }
    }

    async fn read(&mut self) -> Result<Option<Bytes>, StoreError> {
        let Value::Blob(blob) = self.value else {
            return Ok(self.first.take().filter(|payload| !payload.is_empty()));
        };
        let bytes = match self.first.take() {
            Some(first) => first,
            None if self.next >= blob.parts() => {
                blob::check(&blob, &self.sum)?;
                return Ok(None);
            }
            None => {
                let number = self.next;
                let line = Line::new();
                let part = blob::part(&self.cloud, &self.settings, &blob, number, &line).await?;
                let Some(part) = part else {
                    return Err(hole(self.record.as_ref(), &blob, number).await?);
                };
                // Whoever asks again after an error, or gave up waiting, gets the same part.
                self.next += 1;
                part
            }
        };
        self.sum.update(&bytes);
        Ok(Some(bytes))
    }
}

/// What it means that a part is not there.
async fn hole(record: Option<&Origin>, blob: &Blob, number: u32) -> Result<StoreError, StoreError> {
    let object = blob.object(number);
    let (store, tree, key) = match record {
        None => return Ok(StoreError::Lost { object }),
        Some(Origin::Snapshot { store, snapshot }) => {
            return sequence::gone(store, *snapshot, object).await;
        }
        Some(Origin::Newest { store, tree, key }) => (store, tree, key),
    };
    let leaf = search(&store.pages, *tree, key, 0, Freshness::Newest).await?;
    let is_named = leaf.is_some_and(|leaf| {
        leaf.held.page.slot(key).and_then(Slot::blob).is_some_and(|there| there == blob)
    });
    Ok(match is_named {
        true => StoreError::Lost { object },
        false => StoreError::Replaced { object },
    })
}
