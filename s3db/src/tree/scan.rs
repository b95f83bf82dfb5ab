//! Leaves from left to right.
//!
//! The paper ends with the lack of chained I/O as its limit: a scan there waits for each page. Here
//! the parent tells which leaves come next, and a number of them is fetched at once.

use bytes::Bytes;

use crate::{
    error::StoreError,
    page::PageId,
    tree::{Freshness, Held, Nodes, search::search},
};

/// Leaves fetched ahead of the one that is looked at.
const AHEAD_MAX: usize = 16;

/// A walk over the leaves that own keys from some key on.
pub(crate) struct Leaves {
    root: PageId,
    age: Freshness,
    /// The first key not yet seen; `None` at the end.
    next: Option<Bytes>,
}

impl Leaves {
    pub(crate) fn new(root: PageId, from: Bytes, age: Freshness) -> Leaves {
        Leaves { root, age, next: Some(from) }
    }

    /// The next leaf. Its keys before where the walk stands were seen before.
    pub(crate) async fn next(
        &mut self,
        nodes: &(impl Nodes + ?Sized),
    ) -> Result<Option<Held>, StoreError> {
        let Some(key) = self.next.take() else { return Ok(None) };
        let Some(found) = search(nodes, self.root, &key, 0, self.age).await? else {
            return Err(StoreError::Tree { page: self.root, what: "has no leaves" });
        };
        let ahead = found.following.len().min(AHEAD_MAX);
        if ahead > 0 {
            nodes.prefetch(&found.following[..ahead]).await;
        }
        // By key, not by right pointer: a leaf that was split or died meanwhile is found again.
        self.next = found.held.page.high.clone();
        Ok(Some(found.held))
    }
}
