//! What no commit names, and what no snapshot needs.
//!
//! The data of a transaction lies in an object of its own before the swap that names it. Of those that
//! nothing names, which may go? None that a swap can still name:
//!
//! ```text
//!   1  list the objects; those are old that were put longer ago than a tombstone stays
//!   2  swap the numbers for the same with another write id
//!   3  delete what is old and not named by what 2 put
//! ```
//!
//! Whoever swaps after that has read the numbers after 2, and looks at the age of its data after that:
//! what is older than half of what a tombstone stays is refused (`batch`).

use std::collections::HashSet;

use crate::{
    cloud::Delete,
    error::StoreError,
    page::{Page, PageId},
    retry::Attempts,
    sequence::{
        codec::{DATA, NUMBERS, date_of},
        sequencer::{Swapped, newest, swap_freely},
        versions,
    },
    store::Store,
    tree::{Freshness, Nodes, Swap, scan::Leaves},
};

/// Deletes data that nothing names and nothing can name any more. Returns how many objects went.
pub(crate) async fn collect(store: &Store) -> Result<u64, StoreError> {
    store.ask_date().await?;
    let now_ms = store.certain_date_ms().await?;
    let age_ms = store.settings.tombstone_age.as_millis() as u64;
    let before_ms = now_ms.saturating_sub(age_ms);
    let is_old = |name: &String| date_of(name).is_some_and(|date_ms| date_ms < before_ms);
    let mut old: Vec<String> = Vec::new();
    store.each_name(DATA, |name| old.extend(Some(name).filter(is_old))).await?;
    if old.is_empty() {
        return Ok(0);
    }
    let mut attempts = Attempts::new(&store.cloud, &store.settings);
    let now = loop {
        let view = newest(store).await?;
        match swap_freely(store, &view, view.numbers.clone()).await? {
            Swapped::Done(now) => break now,
            Swapped::Lost { .. } => attempts.after_loss(NUMBERS).await?,
        }
    };
    let aside = now.numbers.aside.iter().map(|(_, commit)| commit);
    let objects = now.numbers.commits.iter().chain(aside);
    let objects = objects.filter_map(|commit| commit.object.as_ref());
    let named: HashSet<&String> = objects.map(|(name, _)| name).collect();
    let mut gone = 0;
    for name in old.into_iter().filter(|name| !named.contains(name)) {
        // What fails is tried again next time.
        gone += u64::from(store.cloud.objects.delete(&name, None).await == Delete::Gone);
    }
    Ok(gone)
}

/// Drops versions that no snapshot sees any more from the leaves of a tree. Returns how many went.
pub(crate) async fn tidy(store: &Store, root: PageId) -> Result<u64, StoreError> {
    let horizon = newest(store).await?.numbers.horizon;
    let mut leaves = Leaves::new(root, bytes::Bytes::new(), None, Freshness::Newest);
    let mut gone = 0;
    while let Some(held) = leaves.next(&store.pages).await? {
        let mut page: Page = (*held.page).clone();
        if !versions::is_versioned(&page) {
            continue;
        }
        let pruned = versions::prune(&mut page, horizon);
        if pruned > 0 && matches!(store.pages.replace(&held, page).await?, Swap::Done) {
            gone += pruned as u64;
        }
    }
    Ok(gone)
}
