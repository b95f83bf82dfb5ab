//! A B-link tree over pages that are handed to it: Lehman and Yao 1981, without latches.
//!
//! ```text
//!   search    down by links, right by fences; stale inner pages only cost hops
//!   update    one leaf at a time, by compare and swap
//!   split     new right pages first, then the old page: the second put makes it real
//!   repair    the parent learns of new pages later, from whoever meets them
//!   scan      leaf by leaf to the right, the next ones on their way meanwhile
//! ```
//!
//! The root keeps its name for ever: it splits in place, into new pages below itself. A tree is
//! named by it.

pub(crate) mod search; // from the root to the page that owns a key
pub(crate) mod update; // change a page, split it if it must be
pub(crate) mod split; // one page into several, without any I/O
pub(crate) mod scan; // leaves from left to right
pub(crate) mod secondary; // keys of secondary indexes

use std::sync::Arc;

use async_trait::async_trait;

use crate::{
    cloud::ETag,
    error::StoreError,
    fail_point::FailPoint,
    lent::{Ahead, Lent},
    page::{Page, PageId},
    settings::Rules,
};

/// How old a copy of a page may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Freshness {
    /// As old as the cache allows.
    Cached,
    /// As old as the cache allows, even where somebody is known to have put another version since: for who
    /// wants no more than a hint, and must not wait because of others.
    Hint,
    /// The copy that this process put last, where that is likely to be the newest; as new as the object store
    /// has it otherwise. For who puts a page in its place, and so learns whether it was.
    Likely,
    /// As new as the object store has it.
    Newest,
    /// Asked for after this moment of the monotonic clock, in microseconds.
    After(u64),
}

/// A page, and the version that it is.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) page: Lent,
    pub(crate) etag: ETag,
    /// The object store's clock at the last answer about this page; of a guess, now, as far as is known.
    pub(crate) date_ms: u64,
    /// Nobody was asked whether it is the newest ([`Freshness::Likely`]).
    pub(crate) is_guess: bool,
}

/// What became of a compare and swap.
#[derive(Clone, Debug)]
pub(crate) enum Swap {
    /// It is the newest version now.
    Done,
    /// Another version was there: read it and start again. It certainly was not put.
    Lost,
    /// An attempt had no answer, and another version is there now: it may have been put, and been
    /// replaced by someone who saw it. Read and start again, and take nothing back.
    Unclear,
}

/// Where a tree's pages are read and written.
#[async_trait]
pub(crate) trait Nodes: Send + Sync {
    /// The page `id`; `None` when there is none.
    async fn node(&self, id: PageId, age: Freshness) -> Result<Option<Held>, StoreError>;

    /// The page `id`, if a copy of it is in memory that is as young as `age` wants it, [`Freshness::Hint`] or
    /// [`Freshness::Cached`]: what [`node`](Nodes::node) gives, without a future.
    fn at_once(&self, id: PageId, age: Freshness) -> Option<Held>;

    /// The same, for reads that go on beside whoever began them.
    fn shared(&self) -> Arc<dyn Nodes>;

    /// A share of what may be read before it is wanted, for one page: to be kept until it is. `None`
    /// when others have all of it.
    fn ahead(&self) -> Option<Ahead>;

    /// Creates a page that nothing points to yet.
    async fn create(&self, page: Page) -> Result<Swap, StoreError>;

    /// Puts `page` in the place of `old`: compare and swap.
    async fn replace(&self, old: &Held, page: Page) -> Result<Swap, StoreError>;

    /// Deletes a page that was created and never linked. Best effort.
    async fn discard(&self, id: PageId);

    /// A name that no page has.
    fn fresh_id(&self) -> PageId;

    /// Waits a little after losing against another client, or gives up: `lost` counts from 1.
    async fn back_off(&self, page: PageId, lost: u32) -> Result<(), StoreError>;

    /// Bytes above which a page of `level` is split.
    fn bytes_max(&self, level: u8) -> usize;

    /// Which rules hold.
    fn rules(&self) -> Rules;

    /// Hears that a split has come to `point`.
    async fn reached(&self, point: FailPoint);
}
