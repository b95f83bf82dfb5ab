//! Fresher reads (paper, section 11; the paper names them and gives no detail).
//!
//! ```text
//!   1  look       what waits in the log, committed all of it, without taking any of it
//!   2  remember   the moment after the look
//!   3  read       pages that were asked for after that moment
//!   4  lay over   what the look found, by stamps: the page or the log, whichever is newer
//! ```
//!
//! What is committed before the look is in the log then, or on its page already: the log lets go of it
//! only after that. So step 3 comes after step 1: a copy of a page from before could lack what the log
//! had let go of by then. A transaction looks once, at its first read.
//!
//! What a session has seen so it remembers like its own writes, until pages show it: the next read of
//! any transaction of the session has it, fresh or not.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use tokio::sync::OnceCell;

use crate::{
    blob::Value,
    cloud::ledger::looking,
    commit::{Session, Txn},
    error::StoreError,
    log::Entry,
    page::PageId,
    settings::Rule,
    stamp::Stamp,
    tree::Freshness,
};

/// A change that waits: its stamp, and what the key holds afterwards.
type Waits = (Stamp, Option<Value>);

/// What one look into the log found. Nothing was taken.
#[derive(Debug, Default)]
pub(crate) struct Look {
    /// The moment after it, by the monotonic clock.
    after_us: u64,
    /// By tree and leaf key, the newest change of each.
    changes: HashMap<PageId, BTreeMap<Bytes, Waits>>,
}

/// A look that is made when it is needed first.
pub(crate) type LookCell = OnceCell<Look>;

impl Look {
    fn add(&mut self, entry: &Entry) {
        let of_tree = self.changes.entry(entry.tree).or_default();
        let stamp = entry.record.stamp;
        let there = of_tree.entry(entry.leaf_key()).or_insert_with(|| (stamp, None));
        if stamp >= there.0 {
            *there = (stamp, entry.leaf_payload());
        }
    }

    /// How new a page has to be on which this is laid.
    pub(crate) fn age(&self) -> Freshness {
        Freshness::After(self.after_us)
    }

    /// What waits for one key.
    pub(crate) fn get(&self, tree: PageId, key: &[u8]) -> Option<&Waits> {
        self.changes.get(&tree)?.get(key)
    }

    /// What waits for a tree, from a key on, in the order of keys.
    pub(crate) fn from<'a>(
        &'a self,
        tree: PageId,
        key: &Bytes,
    ) -> impl Iterator<Item = (&'a Bytes, &'a Waits)> + use<'a> {
        self.changes.get(&tree).into_iter().flat_map({
            let key = key.clone();
            move |of_tree| of_tree.range(key.clone()..)
        })
    }
}

impl Txn {
    /// Reads of this transaction are fresh from now on: the first one looks into the log, and what
    /// waits there counts as if it were on its page. So it shows whatever was committed before that
    /// first read, by whom and at which level ever, if the log is s3-log. Queues show a sample: see
    /// PROTOCOL.md, 1.11. It costs calls of kinds of their own ([`CallKind`](crate::cloud::CallKind)),
    /// and a get for each leaf that is read.
    pub fn fresh(&mut self) {
        self.look.get_or_insert_default();
    }

    /// Whether its reads are fresh.
    pub fn is_fresh(&self) -> bool {
        self.look.is_some()
    }
}

impl Session {
    /// What a fresh transaction found in the log, at its first call.
    ///
    /// # Errors
    /// [`StoreError::Backlog`], and whatever the services say.
    pub(crate) async fn look<'a>(&self, txn: &'a Txn) -> Result<Option<&'a Look>, StoreError> {
        let Some(cell) = &txn.look else { return Ok(None) };
        cell.get_or_try_init(|| self.look_now()).await.map(Some)
    }

    async fn look_now(&self) -> Result<Look, StoreError> {
        self.make_room_to_see().await?;
        let store = self.store();
        let most = store.settings.look_bytes_max;
        let found = looking(store.log.look(most)).await?;
        // Copies of pages from before the look may lack what the log let go of before it.
        let after_us = match store.settings.rules.hold(Rule::LookFirst) {
            true => store.cloud.clock.monotonic_us(),
            false => 0,
        };
        let mut look = Look { after_us, ..Look::default() };
        for entry in found.iter().flat_map(|some| some.iter()) {
            // What is in the log of a curated collection nobody approved; and what is of a client that may not
            // write there comes to no page.
            let client = entry.record.stamp.client;
            if !store.is_curated(entry.tree) && store.may_write(entry.tree, client).await? {
                look.add(entry);
            }
        }
        Ok(look)
    }

    /// What waits in the log for a tree, if `txn` is fresh.
    pub(crate) async fn waiting<'a>(
        &self,
        txn: &'a Txn,
        tree: PageId,
    ) -> Result<impl Iterator<Item = (&'a Bytes, &'a Waits)> + use<'a>, StoreError> {
        let look = self.look(txn).await?;
        Ok(look.into_iter().flat_map(move |look| look.from(tree, &Bytes::new())))
    }

    /// The clock of the oldest stamp that is laid over pages: the tombstone of anything older may be gone
    /// from its page, while it is still the newest object of a stream.
    pub(crate) fn look_floor_us(&self) -> u64 {
        let store = self.store();
        let age_us = store.settings.tombstone_age.as_micros() as u64;
        // Not by a time that may be wrong.
        (store.sure_date_ms().unwrap_or(0) * 1000).saturating_sub(age_us - age_us / 10)
    }
}
