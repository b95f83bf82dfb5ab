//! A page in use, and the bytes that it takes meanwhile.
//!
//! ```text
//!   pinned     the pool has it, counts it, and does not evict it      pins: half of the budget at most
//!   shared     beyond that: the same, for moments                     as long as there are bytes for it
//!   counted    the pool does not have it: its bytes are its reader's
//! ```
//!
//! So what anybody reads counts, whether the pool keeps it or not, and gives its bytes back when it is
//! dropped. Nobody waits for anybody's pins: see [`PageManager::room`](crate::pool::PageManager).

use std::{
    fmt,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use pager::{budget::Reservation, pool};

use crate::{
    cloud::ETag,
    page::{Page, PageId},
};

/// What pages are kept under: bytes of two versions never mix.
pub(crate) type Name = (PageId, ETag);

/// A page in use. Clones share it.
#[derive(Clone)]
pub(crate) struct Lent(Arc<Loan>);

struct Loan {
    page: Arc<Page>,
    hold: Hold,
}

/// What keeps a page's bytes counted.
enum Hold {
    Pinned { _pin: pool::Page<Name, Arc<Page>> },
    Shared { _share: pool::Share },
    Counted { _room: Reservation },
}

impl Lent {
    pub(crate) fn pinned(pin: pool::Page<Name, Arc<Page>>) -> Lent {
        let page = Arc::clone(&pin);
        Lent(Arc::new(Loan { page, hold: Hold::Pinned { _pin: pin } }))
    }

    pub(crate) fn shared(page: Arc<Page>, share: pool::Share) -> Lent {
        Lent(Arc::new(Loan { page, hold: Hold::Shared { _share: share } }))
    }

    pub(crate) fn counted(page: Arc<Page>, room: Reservation) -> Lent {
        Lent(Arc::new(Loan { page, hold: Hold::Counted { _room: room } }))
    }

    /// Whether it may be kept for as long as its user likes. What is no pin takes what others need to
    /// go on: it is to be let go of before anything is waited for that its user decides.
    pub(crate) fn may_stay(&self) -> bool {
        matches!(self.0.hold, Hold::Pinned { .. })
    }
}

impl Deref for Lent {
    type Target = Page;

    fn deref(&self) -> &Page {
        &self.0.page
    }
}

impl fmt::Debug for Lent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.page.fmt(f)
    }
}

/// A share of what may be read ahead, given back on drop.
pub(crate) struct Ahead {
    bytes: u64,
    of: Arc<AtomicU64>,
}

impl Ahead {
    /// `bytes` more of `of`, unless that makes more than `most`.
    pub(crate) fn take(of: &Arc<AtomicU64>, bytes: u64, most: u64) -> Option<Ahead> {
        let raised = |now: u64| now.checked_add(bytes).filter(|&sum| sum <= most);
        of.fetch_update(Ordering::Relaxed, Ordering::Relaxed, raised).ok()?;
        Some(Ahead { bytes, of: of.clone() })
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.of.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
