//! Leaves from left to right.
//!
//! The paper ends with the lack of chained I/O as its limit: a scan there waits for each page. Here
//! parents tell which leaves come next, and so many of them are on their way at any time:
//!
//! ```text
//!   given out   |  wanted  |  read ahead, 16 to 64 at most    |  known
//!   leaf  leaf  |   leaf   |  leaf  leaf  leaf  ...  leaf     |  leaf  leaf ...    next parent
//! ```
//!
//! As the walk goes on, more of those that are known are begun with each that is given out; the next
//! parent is read before they run out. A walk that has not come far reads [`AHEAD_FIRST`] leaves ahead, one
//! that goes on as many as it has given out, up to [`AHEAD_MAX`]: so nobody who stops early has paid
//! for more leaves than he has seen and those first ones, and a scan waits for one round trip per
//! `AHEAD_MAX + 1` leaves in the end, and for the way down once. All scans of a process together read no
//! more ahead than a quarter of the budget holds: what comes before it is wanted must still be there
//! then.

use std::{collections::VecDeque, future::poll_fn, pin::pin, task::Poll};

use bytes::Bytes;
use futures::{
    StreamExt as _,
    future::{BoxFuture, FutureExt as _},
    stream::FuturesUnordered,
};

use crate::{
    error::StoreError,
    lent::{self, Lent},
    page::{Page, PageId},
    tree::{Freshness, Held, Nodes, search::search},
};

/// Leaves read ahead of the one that is wanted, by a walk that begins.
const AHEAD_FIRST: usize = 16;
/// And by one that has given out as many. S3 gives each of them some 90 MB/s at once; that many pages
/// of the usual size fill what one machine gets from it.
const AHEAD_MAX: usize = 64;

/// A walk over the leaves that own keys from some key on.
pub(crate) struct Leaves {
    root: PageId,
    age: Freshness,
    /// The first key not yet seen; `None` at the end.
    next: Option<Bytes>,
    ahead: Ahead,
}

/// What is read before it is wanted. What fails here will fail again then.
struct Ahead {
    age: Freshness,
    /// How many were given out.
    given: usize,
    /// Nothing is wanted from here on.
    to: Option<Bytes>,
    /// Leaves behind the one that is wanted, nearest first, each with its first key as its parent
    /// knows it.
    coming: VecDeque<(Bytes, PageId)>,
    /// Shares of what may be read ahead: so many of them, the nearest, are on their way or were.
    begun: VecDeque<lent::Ahead>,
    /// The first key of the parent behind these. `None` at the end, and while that parent is read.
    parent: Option<Bytes>,
    /// Reads under way: of leaves, and of a parent, which they return.
    reads: FuturesUnordered<BoxFuture<'static, Option<Lent>>>,
}

/// A key of a page that does not keep the page's bytes.
fn copy(key: &Bytes) -> Bytes {
    Bytes::copy_from_slice(key)
}

impl Ahead {
    fn is_wanted(&self, key: &Bytes) -> bool {
        self.to.as_ref().is_none_or(|to| key < to)
    }

    /// Leaves that may be on their way, or have come and wait.
    fn most(&self) -> usize {
        self.given.clamp(AHEAD_FIRST, AHEAD_MAX)
    }

    /// The leaf that owns `key` is wanted now.
    fn pass(&mut self, key: &Bytes) {
        while self.coming.front().is_some_and(|(first, _)| first <= key) {
            self.coming.pop_front();
            self.begun.pop_front();
        }
    }

    /// Begins what can be begun.
    fn begin(&mut self, nodes: &(impl Nodes + ?Sized), root: PageId) {
        let (age, most) = (self.age, self.most());
        if self.coming.len() < 2 * most
            && let Some(key) = self.parent.take()
        {
            let nodes = nodes.shared();
            let read = async move {
                let found = search(&*nodes, root, &key, 1, Freshness::Cached).await;
                found.ok().flatten().map(|found| found.held.page)
            };
            self.reads.push(read.boxed());
        }
        while self.begun.len() < self.coming.len().min(most)
            && self.reads.len() <= most
            && let Some(share) = nodes.ahead()
        {
            let (nodes, id) = (nodes.shared(), self.coming[self.begun.len()].1);
            self.begun.push_back(share);
            let read = async move {
                let _ = nodes.node(id, age).await;
                None
            };
            self.reads.push(read.boxed());
        }
    }

    /// Takes the children of a parent, behind those that are known and behind `key`.
    fn know(&mut self, parent: &Page, key: &Bytes) {
        for link in parent.links() {
            let last = self.coming.back().map_or(key, |(first, _)| first);
            if link.key > *last && self.is_wanted(&link.key) {
                self.coming.push_back((copy(&link.key), link.child));
            }
        }
        self.parent = parent.high.as_ref().map(copy).filter(|high| self.is_wanted(high));
    }
}

impl Leaves {
    /// Leaves from the one that owns `from` on. Those that begin at or behind `to` are not read ahead.
    ///
    /// With [`Freshness::Newest`] nothing is read ahead: it would be older than when it is wanted, and
    /// asked for again.
    pub(crate) fn new(root: PageId, from: Bytes, to: Option<Bytes>, age: Freshness) -> Leaves {
        let ahead = Ahead {
            age,
            given: 0,
            to,
            coming: VecDeque::new(),
            begun: VecDeque::new(),
            parent: Some(from.clone()).filter(|_| age != Freshness::Newest),
            reads: FuturesUnordered::new(),
        };
        Leaves { root, age, next: Some(from), ahead }
    }

    /// The next leaf. Its keys before where the walk stands were seen before. After an error, or where
    /// nobody waited for it, it is the next one still.
    pub(crate) async fn next(
        &mut self,
        nodes: &(impl Nodes + ?Sized),
    ) -> Result<Option<Held>, StoreError> {
        let Some(key) = self.next.clone() else { return Ok(None) };
        let (root, ahead) = (self.root, &mut self.ahead);
        ahead.pass(&key);
        ahead.begin(nodes, root);
        let mut wanted = pin!(search(nodes, root, &key, 0, self.age));
        let found = poll_fn(|context| {
            while let Poll::Ready(Some(read)) = ahead.reads.poll_next_unpin(context) {
                if let Some(parent) = read {
                    ahead.know(&parent, &key);
                }
                ahead.begin(nodes, root);
            }
            wanted.as_mut().poll(context)
        });
        let Some(found) = found.await? else {
            return Err(StoreError::Tree { page: root, what: "has no leaves" });
        };
        // By key, not by right pointer: a leaf that was split or died meanwhile is found again.
        self.next = found.held.page.high.as_ref().map(copy);
        self.ahead.given += 1;
        Ok(Some(found.held))
    }
}
