//! What becomes of a record of the log, without a checkpoint: for who only looks.

use super::is_versioned;
use crate::{
    error::StoreError,
    page::PageId,
    stamp::Stamp,
    store::Store,
    tree::{Freshness, Nodes as _, search::search},
};

/// Where a record of the log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Its page shows it, or what beat it.
    Shown,
    /// It will come to its page.
    Waits,
    /// No page ever shows it: a checkpoint puts it into quarantine, and has perhaps.
    PutAside,
}

/// The fate of the record with this stamp at `key` of a tree: a leaf's key, as pages have it.
///
/// # Errors
/// Whatever the services say; a page that is damaged or lost has nothing on it.
pub(crate) async fn fate(
    store: &Store,
    root: PageId,
    key: &[u8],
    stamp: Stamp,
) -> Result<Fate, StoreError> {
    if store.is_curated(root) || !store.may_write(root, stamp.client).await? {
        return Ok(Fate::PutAside);
    }
    match search(&store.pages, root, key, 0, Freshness::Cached).await {
        Ok(Some(leaf)) if is_versioned(&leaf.held.page) => Ok(Fate::PutAside),
        Ok(Some(leaf)) => {
            let shown = leaf.held.page.slot(key).map(|slot| slot.stamp);
            Ok(if shown.is_some_and(|shown| shown >= stamp) { Fate::Shown } else { Fate::Waits })
        }
        found @ (Ok(None)
        | Err(
            StoreError::Damaged { .. } | StoreError::Lost { .. } | StoreError::Tree { .. },
        )) => {
            // Its root is not there: lost, or never was. Or other pages are not, of one that was dropped.
            let is_broken = found.is_err()
                || matches!(store.pages.node(root, Freshness::Cached).await, Ok(None));
            let is_nowhere = is_broken && !store.has_tree(root).await.unwrap_or(true);
            Ok(if is_nowhere { Fate::PutAside } else { Fate::Waits })
        }
        Err(error) => Err(error),
    }
}
