//! From the root to the page that owns a key.

use std::collections::HashSet;

use bytes::Bytes;

use crate::{
    error::StoreError,
    page::{Page, PageId},
    tree::{Freshness, Held, Nodes},
};

/// Pages that one search may visit. A tree is a few levels deep; more hops than this are a circle.
const HOPS_MAX: usize = 10_000;

/// The page that a search ended at.
pub(crate) struct Found {
    pub(crate) held: Held,
    /// The page's low fence is this, if lower than what it says: the search came through dead
    /// pages, whose keys their right neighbour inherits.
    pub(crate) inherited_low: Option<Bytes>,
    /// Pages of which their parent does not know yet: level of the parent, first key, page.
    pub(crate) unlinked: Vec<(u8, Bytes, PageId)>,
}

/// Pages that a search was led to, and could not read.
#[derive(Default)]
struct Holes {
    /// They are not there, as the newest inner pages have it.
    missing: HashSet<PageId>,
    /// Why the last one may not be read. Of a page that is not there S3 says the same, to who may not list.
    denied: Option<StoreError>,
}

/// Searches the page of `level` that owns `key`. `None` when the tree is not that high.
///
/// Inner pages may be old copies; the page found is as new as `age` says.
pub(crate) async fn search(
    nodes: &(impl Nodes + ?Sized),
    root: PageId,
    key: &[u8],
    level: u8,
    age: Freshness,
) -> Result<Option<Found>, StoreError> {
    let mut holes = Holes::default();
    // A page that is not there was deleted after a copy of its parent was cached: what the newest
    // inner pages know comes next, and what they name in vain is left out.
    let mut inner_age = if age == Freshness::Hint { age } else { Freshness::Cached };
    loop {
        // A neighbour of the goal's level can be as old as a parent.
        let age = if inner_age == Freshness::Newest { Freshness::Newest } else { age };
        let found = attempt(nodes, root, key, level, age, inner_age, &mut holes).await;
        let found = match (found, &holes.denied) {
            // For want of a page that may not be read.
            (Err(StoreError::Tree { .. }), Some(denied)) => Err(denied.clone()),
            (found, _) => found,
        };
        match found? {
            Ok(found) => return Ok(found),
            Err(gone) if gone == root => {
                return Err(StoreError::Lost { object: root.object() });
            }
            Err(gone) => {
                if inner_age == Freshness::Newest && !holes.missing.insert(gone) {
                    if let Some(denied) = holes.denied {
                        return Err(denied);
                    }
                    return Err(StoreError::Tree { page: gone, what: "is linked, but not there" });
                }
                inner_age = Freshness::Newest;
            }
        }
    }
}

/// One way down. The inner error is a page that was not there, or that may not be read.
async fn attempt(
    nodes: &(impl Nodes + ?Sized),
    root: PageId,
    key: &[u8],
    level: u8,
    age: Freshness,
    inner_age: Freshness,
    holes: &mut Holes,
) -> Result<Result<Option<Found>, PageId>, StoreError> {
    let mut unlinked = Vec::new();
    let mut inherited_low: Option<Bytes> = None;
    let mut id = root;
    // What level the page `id` must have; nobody knows that of the root.
    let mut expected: Option<u8> = None;
    for _ in 0..HOPS_MAX {
        let wanted = if expected == Some(level) { age } else { inner_age };
        // A root that was the goal when it was seen last is asked for below: nobody asks for it twice.
        let is_goal = |held: &Held| held.page.level == level && age != inner_age;
        let at_once = match wanted {
            Freshness::Hint => nodes.at_once(id, wanted),
            Freshness::Cached => nodes.at_once(id, wanted).or_else(|| {
                let root =
                    if expected.is_none() { nodes.at_once(id, Freshness::Hint) } else { None };
                root.filter(is_goal)
            }),
            _ => None,
        };
        let fetched = match at_once {
            Some(held) => Ok(Some(held)),
            None => nodes.node(id, wanted).await,
        };
        let fetched = match fetched {
            Err(error @ StoreError::Denied { .. }) if id != root => {
                holes.denied = Some(error);
                None
            }
            fetched => fetched?,
        };
        let Some(mut held) = fetched else { return Ok(Err(id)) };
        if expected.is_none() && is_goal(&held) {
            // The root is the goal.
            let Some(newest) = nodes.node(id, age).await? else { return Ok(Err(id)) };
            held = newest;
        }
        let page = held.page.clone();
        if expected.is_some_and(|expected| page.level != expected) {
            // Only the root's level changes, and the way down starts there.
            return Err(StoreError::Tree { page: id, what: "is not on its parent's next level" });
        }
        if page.level < level {
            return Ok(Ok(None));
        }
        if page.dead || !page.ends_after(key) {
            let Some(right) = page.right else {
                return Err(StoreError::Tree { page: id, what: "ends with no right neighbour" });
            };
            if page.dead {
                let low =
                    inherited_low.take().map_or(page.low.clone(), |low| low.min(page.low.clone()));
                inherited_low = Some(low);
            } else {
                inherited_low = None;
                if let (Some(high), true) = (&page.high, expected.is_some()) {
                    unlinked.push((page.level + 1, high.clone(), right));
                }
            }
            (id, expected) = (right, Some(page.level));
            continue;
        }
        if page.level == level {
            return Ok(Ok(Some(Found { held, inherited_low, unlinked })));
        }
        let Some(child) = choose(&page, key, &holes.missing) else {
            return Err(StoreError::Tree { page: id, what: "is an inner page without a child" });
        };
        inherited_low = None;
        (id, expected) = (child, Some(page.level - 1));
    }
    Err(StoreError::Tree {
        page: root,
        what: "a search does not end: right pointers form a circle",
    })
}

/// The last child at or before `key` that is not `missing`.
fn choose(page: &Page, key: &[u8], missing: &HashSet<PageId>) -> Option<PageId> {
    let links = page.links();
    let after = links.partition_point(|link| &link.key[..] <= key).max(1).min(links.len());
    let mut children = links[..after].iter().rev().map(|link| link.child);
    children.find(|child| !missing.contains(child))
}
