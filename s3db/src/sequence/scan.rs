//! What a snapshot sees of a range of one tree, leaf by leaf: of records, or of entries of an index.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::{
    error::StoreError,
    lent::Lent,
    page::{PageId, Slot},
    sequence::{
        apply::leaf,
        transaction::check_age,
        versions,
        window::{Held, View},
    },
    store::Store,
    tree::{Freshness, scan::Leaves, secondary},
};

/// A walk over a range of keys, at one snapshot.
pub(super) struct SnapshotScan {
    tree: PageId,
    /// The first key that is not given out.
    from: Bytes,
    to: Option<Bytes>,
    /// The same as leaf keys: where the next leaf begins, and the end.
    at: Bytes,
    end: Option<Bytes>,
    leaves: Leaves,
    /// The key of which the version that the snapshot sees was met; older ones follow it.
    settled: Option<Vec<u8>>,
    /// What leaves hold of keys that can go on on the next leaf.
    held: BTreeMap<Bytes, Held>,
    is_done: bool,
}

/// A part of the range.
pub(super) struct Part {
    /// From this key on.
    pub(super) from: Bytes,
    /// Up to before this one; `None`: to the end of the tree.
    pub(super) until: Option<Bytes>,
    /// What there is, or was until a delete that the snapshot sees.
    pub(super) shown: BTreeMap<Bytes, Held>,
}

impl SnapshotScan {
    /// Of keys from `from` to before `to` (`None`: to the end).
    pub(super) fn new(tree: PageId, from: Bytes, to: Option<Bytes>) -> SnapshotScan {
        let at = versions::begin_of(&from);
        let end = to.as_ref().map(|to| versions::begin_of(to));
        let leaves = Leaves::new(tree, at.clone(), end.clone(), Freshness::Cached);
        let (settled, held, is_done) = Default::default();
        SnapshotScan { tree, from, to, at, end, leaves, settled, held, is_done }
    }

    /// Takes one leaf; `None` at the end. State is changed when it is there.
    pub(super) async fn step(
        &mut self,
        store: &Store,
        view: &View,
    ) -> Result<Option<Part>, StoreError> {
        if self.is_done {
            return Ok(None);
        }
        let page = self.leaf(store, view).await?;
        let snapshot = view.numbers.last;
        check_age(store, &page, snapshot)?;
        let is_in = |slot: &&Slot| {
            slot.key >= self.at && self.end.as_ref().is_none_or(|end| slot.key < *end)
        };
        for slot in page.slots().iter().filter(is_in) {
            let version = versions::version(slot);
            let version =
                version.ok_or(StoreError::Tree { page: page.id, what: "holds no version" })?;
            if version.number > snapshot || self.settled.as_ref() == Some(&version.key) {
                continue;
            }
            let held = (version.number, version.payload);
            hold(&mut self.held, Bytes::from(version.key.clone()), held);
            self.settled = Some(version.key);
        }
        let is_in = |key: &Bytes| *key >= self.from && self.to.as_ref().is_none_or(|to| key < to);
        for (key, held) in view.put_aside(self.tree, &page) {
            if is_in(&key) {
                hold(&mut self.held, key, held);
            }
        }
        // Keys before the one at which the leaf ends are all here.
        // Copied: what is shared keeps the page's bytes, which nobody counts.
        let high =
            page.high.as_ref().filter(|high| self.end.as_ref().is_none_or(|end| *high < end));
        let high = high.map(|high| Bytes::copy_from_slice(high));
        let until = match &high {
            None => self.to.clone(),
            Some(high) => {
                let divided = secondary::divide(high);
                let what = "ends at no version";
                let (key, _) = divided.ok_or(StoreError::Tree { page: page.id, what })?;
                Some(Bytes::from(key))
            }
        };
        let rest = match &until {
            Some(until) => self.held.split_off(until),
            None => BTreeMap::new(),
        };
        let mut shown = std::mem::replace(&mut self.held, rest);
        let window = view.range(self.tree, &self.from, until.as_deref(), snapshot);
        window.into_iter().for_each(|(key, held)| hold(&mut shown, key, held));
        let from = match &until {
            Some(until) => std::mem::replace(&mut self.from, until.clone()),
            None => self.from.clone(),
        };
        match high {
            Some(high) => self.at = high,
            None => self.is_done = true,
        }
        Ok(Some(Part { from, until, shown }))
    }

    /// The next leaf, in a copy without holes.
    async fn leaf(&mut self, store: &Store, view: &View) -> Result<Lent, StoreError> {
        if let Some(held) = self.leaves.next(&store.pages).await?
            && versions::is_versioned(&held.page)
            && held.page.owns(&self.at)
            && store.sequencer.covers(&held.page) >= view.floor
        {
            return Ok(held.page);
        }
        let page = leaf(store, view, self.tree, &self.at).await?;
        // It may end elsewhere than the copy did.
        let next = page.high.clone().unwrap_or_else(|| self.at.clone());
        self.leaves = Leaves::new(self.tree, next, self.end.clone(), Freshness::Cached);
        Ok(page)
    }
}

/// Takes what a key holds, unless something newer is known.
fn hold(known: &mut BTreeMap<Bytes, Held>, key: Bytes, held: Held) {
    let there = known.entry(key).or_insert_with(|| held.clone());
    if there.0 < held.0 {
        *there = held;
    }
}
