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
//! Step 2 moves the horizon, too: where nothing is committed any more, nobody else does.
//!
//! Whoever swaps after that has read the numbers after 2, and looks at the age of its data after that:
//! what is older than half of what a tombstone stays is refused (`batch`).
//!
//! Blobs are named by commits, too, which are on no page for a while, and by whoever swaps late. Who collects
//! them (`gc`) does step 2 after they were listed, and takes what that has to be named, before the leaves are
//! read: what a commit names is in the one, or on the others. What no snapshot needs any more no version names,
//! since that is pruned before; whoever reads at an older one is told that it is too old (`transaction`).

use std::{collections::HashSet, sync::Arc};

use crate::{
    blob::Blob,
    cloud::Delete,
    error::StoreError,
    page::{Page, PageId},
    retry::Attempts,
    sequence::{
        batch,
        codec::{DATA, NUMBERS, date_of},
        sequencer::{Swapped, find, newest, swap_freely},
        versions,
        window::View,
    },
    settings::Rule,
    stamp::Stamp,
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
    let now = match store.settings.rules.hold(Rule::NumbersAgain) {
        true => renew(store).await?,
        false => newest(store).await?,
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

/// Swaps the numbers for the same with another write id. Whoever swaps later has read them after that.
async fn renew(store: &Store) -> Result<Arc<View>, StoreError> {
    let mut attempts = Attempts::new(&store.cloud, &store.settings);
    loop {
        let view = newest(store).await?;
        let mut next = view.numbers.clone();
        batch::advance(&mut next, store.certain_date_ms().await?, &store.settings);
        match swap_freely(store, &view, next).await? {
            Swapped::Done(now) => return Ok(now),
            Swapped::Lost { .. } => attempts.after_loss(NUMBERS).await?,
        }
    }
}

/// The blobs that commits name which are not on their pages. What is committed from now on names none that is
/// older than half of what a tombstone stays now.
pub(crate) async fn named(store: &Store) -> Result<HashSet<Stamp>, StoreError> {
    if find(store).await?.is_none() {
        return Ok(HashSet::new());
    }
    let now = renew(store).await?;
    let writes = now.numbers.waiting().flat_map(|(_, commit)| &*commit.writes);
    Ok(writes.filter_map(|write| write.blob().map(Blob::stamp)).collect())
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
        let pruned = versions::prune(&mut page, horizon, store.settings.rules);
        if pruned > 0 && matches!(store.pages.replace(&held, page).await?, Swap::Done) {
            gone += pruned as u64;
        }
    }
    Ok(gone)
}
