//! Changing the page that owns a key, by compare and swap.
//!
//! ```text
//!   1  read the newest copy of the page, or guess which it is             crash: nothing happened
//!   2  change a copy of it
//!   3  too large? create the new right pages, which nothing points to     crash: orphans, for gc
//!   4  put the page if it is still the version of 1                       this makes it real
//!        412: throw the copy away, delete the pages of 3, go to 1
//!        no answer, and another version is there: throw the copy away, leave the pages of 3 to gc
//!   5  tell the parent of the new pages                                   crash: slower, not wrong
//! ```
//!
//! A guess is the copy that this process put last, where nobody else seems to put the page. It costs nobody a
//! read, and the put tells whether it was right: a wrong one is refused, as any copy that is too old. Where
//! there is nothing to put, nothing tells, and the newest is read after all.

use bytes::Bytes;

use crate::{
    error::StoreError,
    fail_point::FailPoint,
    page::{Page, PageId},
    settings::Rule,
    tag::Tag,
    tree::{
        Freshness, Nodes, Swap,
        search::{Found, search},
        split,
    },
};

/// Changes the page of `level` that owns `key`.
///
/// `change` gets a copy of the newest version and says whether it changed anything; it is called
/// again with another copy whenever someone else was faster. It may use every key that the page
/// owns. Returns the page as it was when the change was put, or when nothing had to be; `None` when
/// the tree is not that high.
pub(crate) async fn update(
    nodes: &(impl Nodes + ?Sized),
    root: PageId,
    level: u8,
    key: &[u8],
    change: &mut (dyn FnMut(&mut Page) -> bool + Send),
) -> Result<Option<Page>, StoreError> {
    update_from(nodes, root, level, key, Freshness::Newest, change).await
}

/// The same, which begins with a guess where one is likely to be right. The time that the page says it was put
/// at is then by our own clock, counted on from what the object store said last: for records, and not for what
/// goes by how long ago a page was put.
pub(crate) async fn update_likely(
    nodes: &(impl Nodes + ?Sized),
    root: PageId,
    level: u8,
    key: &[u8],
    change: &mut (dyn FnMut(&mut Page) -> bool + Send),
) -> Result<Option<Page>, StoreError> {
    update_from(nodes, root, level, key, Freshness::Likely, change).await
}

async fn update_from(
    nodes: &(impl Nodes + ?Sized),
    root: PageId,
    level: u8,
    key: &[u8],
    mut age: Freshness,
    change: &mut (dyn FnMut(&mut Page) -> bool + Send),
) -> Result<Option<Page>, StoreError> {
    let mut lost = 0;
    loop {
        let Some(found) = search(nodes, root, key, level, age).await? else {
            return Ok(None);
        };
        age = Freshness::Newest;
        let Found { held, inherited_low, unlinked, .. } = found;
        let mut page = (*held.page).clone();
        if let Some(low) = inherited_low {
            page.low = low.min(page.low);
        }
        if !change(&mut page) {
            if held.is_guess {
                continue;
            }
            repair(nodes, root, unlinked).await;
            return Ok(Some(page));
        }
        let pieces = split::split(&page, page.id == root, nodes.bytes_max(level), || {
            Tag::of_page(root).page(nodes.fresh_id())
        });
        let (created, head) = match pieces {
            None => (Vec::new(), page.clone()),
            Some(pieces) => (pieces.created, pieces.head),
        };
        let ids: Vec<PageId> = created.iter().map(|new| new.id).collect();
        let mut links = Vec::new();
        if head.level == level {
            links.extend(created.iter().map(|new| (level + 1, new.low.clone(), new.id)));
        }
        let rules = nodes.rules();
        // In another order only where a test asks what the order is there for.
        let (before, after) = match rules.hold(Rule::RightFirst) {
            true => (created, Vec::new()),
            false => (Vec::new(), created),
        };
        create(nodes, root, before).await?;
        if !ids.is_empty() {
            nodes.reached(FailPoint::Created).await;
        }
        if !rules.hold(Rule::ParentLast) {
            repair(nodes, root, std::mem::take(&mut links)).await;
        }
        let outcome = nodes.replace(&held, head).await?;
        if matches!(outcome, Swap::Done) && !ids.is_empty() {
            nodes.reached(FailPoint::Split).await;
        }
        create(nodes, root, after).await?;
        match outcome {
            Swap::Done => {
                repair(nodes, root, unlinked).await;
                repair(nodes, root, links).await;
                return Ok(Some(page));
            }
            outcome @ (Swap::Lost | Swap::Unclear) => {
                // Only what certainly nobody has seen may go: after a put without an answer, someone
                // may have followed our right pointer before they put their own version.
                if matches!(outcome, Swap::Lost) || !rules.hold(Rule::KeepUnclear) {
                    for id in ids {
                        nodes.discard(id).await;
                        nodes.reached(FailPoint::Discarded).await;
                    }
                }
                lost += 1;
                nodes.back_off(held.page.id, lost).await?;
            }
        }
    }
}

/// Creates the right pages of a split.
async fn create(
    nodes: &(impl Nodes + ?Sized),
    root: PageId,
    pages: Vec<Page>,
) -> Result<(), StoreError> {
    for page in pages {
        if !matches!(nodes.create(page).await?, Swap::Done) {
            return Err(StoreError::Tree { page: root, what: "a random name was taken" });
        }
    }
    Ok(())
}

/// Tells parents of pages that they do not know. Best effort: a tree without these links is right,
/// and the next who comes by tries again.
pub(crate) async fn repair(
    nodes: &(impl Nodes + ?Sized),
    root: PageId,
    links: Vec<(u8, Bytes, PageId)>,
) {
    for (level, key, child) in links {
        // The child may have died since it was seen. What a reader makes of a link to a deleted
        // page is in `search`; here it is only made rare.
        match nodes.node(child, Freshness::Cached).await {
            Ok(Some(held)) if !held.page.dead => {}
            _ => continue,
        }
        let mut change = |page: &mut Page| {
            // Never another child for a key that is there: it would be older news.
            let known = page.links().iter().any(|link| link.key == key);
            page.owns(&key) && !known && page.link(&key, child)
        };
        // Split parents have parents in turn: as deep as the tree is high.
        let _ = Box::pin(update(nodes, root, level, &key, &mut change)).await;
    }
}
