//! A page: one node of a B-link tree, one object.
//!
//! ```text
//!        parent    [ low -> child | key -> child | ... ]
//!                     |              |
//!        leaves    [low .. high) -> [high .. high') -> ... -> [.. infinity)      right pointers
//!                    slot slot slot
//! ```
//!
//! A page owns the keys from its `low` fence up to, not including, its `high` fence. A slot of a
//! leaf holds a key, the stamp of the write that made it, and a payload, the name of one that is a blob,
//! or a tombstone; of an inner page a key and the child that starts there.
//!
//! Applying a record is rule H1: it changes a slot only if its stamp is greater than the slot's. So
//! any records applied in any order, any number of times, give the same page.

mod codec; // its bytes

use bytes::Bytes;

use crate::{
    blob::{Blob, Value},
    search_by::SearchBy,
    stamp::Stamp,
};

pub use crate::{names::PAGES, page_id::PageId};
pub use codec::PAGE_VERSION;
pub(crate) use codec::slot_bytes;

/// Bytes of the longest key of a slot: a search key and a record key of a secondary index, with
/// the bytes that keep them apart.
pub const SLOT_KEY_BYTES_MAX: usize = 4 * crate::record::KEY_BYTES_MAX + 8;

/// Secondary indexes of one collection: as many as a leaf can name.
pub const INDEXES_MAX: usize = 64;

/// One stream of log objects: an incarnation of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Stream {
    /// The client.
    pub client: u64,
    /// Which of its lives.
    pub epoch: u64,
}

/// One key of a leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// In the order of its bytes.
    pub key: Bytes,
    /// Of the write that made it so.
    pub stamp: Stamp,
    /// What belongs to the key; `None` is a tombstone.
    pub payload: Option<Value>,
}

impl Slot {
    /// The blob that it names.
    pub fn blob(&self) -> Option<&Blob> {
        match &self.payload {
            Some(Value::Blob(blob)) => Some(blob),
            _ => None,
        }
    }
}

/// One key of an inner page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The low fence of the child, as far as the parent knows.
    pub key: Bytes,
    /// The page that owns keys from here on.
    pub child: PageId,
}

/// A secondary index that follows what is put into a leaf: whoever puts one changes its entries first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Follower {
    /// Names its tree.
    pub root: PageId,
    /// Where it finds search keys.
    pub by: SearchBy,
}

/// What a page holds between its fences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entries {
    /// Records and tombstones, by key.
    Leaf(Vec<Slot>),
    /// Children, by key.
    Inner(Vec<Link>),
}

/// One node of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Its name.
    pub id: PageId,
    /// 0 for leaves; a parent is one above its children.
    pub level: u8,
    /// Empty for ever: whoever comes here goes right.
    pub dead: bool,
    /// The first key that can be here. Empty: from the beginning.
    pub low: Bytes,
    /// The first key that cannot be here. `None`: to the end.
    pub high: Option<Bytes>,
    /// The page that owns keys from `high` on.
    pub right: Option<PageId>,
    /// Plus one at each put.
    pub version: u64,
    /// Random at each put: no two puts of any page have equal bytes, so no ETag comes back (H2),
    /// and whoever gets no answer can recognise its own put (H3).
    pub write_id: u128,
    /// When it was put, by the clock of the object store: milliseconds since 1970.
    pub checkpoint_ms: u64,
    /// The key that encrypts the entries; 0 for none.
    pub key_id: u32,
    /// The page, and its version, whose split made this page. While that version stands, the
    /// client that split it may still be about to link this page.
    pub origin: Option<(PageId, u64)>,
    /// Up to which number something is applied here: of leaves with versions, commits (see `sequence`); of the
    /// paper's pages, messages of clients. Others have none, or what programs before this one noted and never
    /// asked, which goes when the page is put again.
    pub applied: Vec<(Stream, u64)>,
    /// Of a leaf: the indexes that follow it. None is ever taken out again, and what a leaf is split
    /// into has them too.
    pub followers: Vec<Follower>,
    /// What is in it.
    pub entries: Entries,
}

/// What applying one record to a page did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// The slot is now the record's.
    Changed,
    /// The slot is as new or newer.
    Stale,
}

impl Page {
    /// An empty leaf that owns every key, never put yet.
    pub fn root(id: PageId) -> Page {
        Page {
            id,
            level: 0,
            dead: false,
            low: Bytes::new(),
            high: None,
            right: None,
            version: 0,
            write_id: 0,
            checkpoint_ms: 0,
            key_id: 0,
            origin: None,
            applied: Vec::new(),
            followers: Vec::new(),
            entries: Entries::Leaf(Vec::new()),
        }
    }

    /// Whether `key` is left of the high fence.
    pub fn ends_after(&self, key: &[u8]) -> bool {
        self.high.as_ref().is_none_or(|high| key < &high[..])
    }

    /// Whether `key` is between the fences.
    pub fn owns(&self, key: &[u8]) -> bool {
        &self.low[..] <= key && self.ends_after(key)
    }

    /// The slots of a leaf; none of an inner page.
    pub fn slots(&self) -> &[Slot] {
        match &self.entries {
            Entries::Leaf(slots) => slots,
            Entries::Inner(_) => &[],
        }
    }

    /// The links of an inner page; none of a leaf.
    pub fn links(&self) -> &[Link] {
        match &self.entries {
            Entries::Inner(links) => links,
            Entries::Leaf(_) => &[],
        }
    }

    /// The slot of `key` in a leaf, tombstones included.
    pub fn slot(&self, key: &[u8]) -> Option<&Slot> {
        let slots = self.slots();
        slots.binary_search_by(|slot| slot.key[..].cmp(key)).ok().map(|at| &slots[at])
    }

    /// The child of an inner page to descend to for `key`.
    pub fn child(&self, key: &[u8]) -> Option<PageId> {
        let links = self.links();
        let after = links.partition_point(|link| &link.key[..] <= key);
        // A first child may have died and taken the page's lowest link along; its right neighbour
        // then owns what was its. Descending too far left is always mended by going right, so
        // nothing is ever left of the first child.
        links.get(after.saturating_sub(1)).map(|link| link.child)
    }

    /// Applies one write by rule H1: only if `stamp` is greater than what is there.
    ///
    /// # Panics
    /// On an inner page.
    pub fn apply(&mut self, key: &Bytes, stamp: Stamp, payload: Option<Value>) -> Applied {
        self.apply_if(key, stamp, payload, |there| stamp > there)
    }

    /// [`Page::apply`] under a rule of the caller's: whether a write may replace one with the stamp
    /// that is `there`. The printed protocols have none.
    pub(crate) fn apply_if(
        &mut self,
        key: &Bytes,
        stamp: Stamp,
        payload: Option<Value>,
        may_replace: impl Fn(Stamp) -> bool,
    ) -> Applied {
        let Entries::Leaf(slots) = &mut self.entries else { panic!("records live in leaves") };
        let slot = Slot { key: key.clone(), stamp, payload };
        match slots.binary_search_by(|slot| slot.key.cmp(key)) {
            Ok(at) if !may_replace(slots[at].stamp) => return Applied::Stale,
            Ok(at) => slots[at] = slot,
            Err(at) => slots.insert(at, slot),
        }
        Applied::Changed
    }

    /// Adds or replaces the link of `key`. Returns whether the page changed.
    ///
    /// # Panics
    /// On a leaf.
    pub fn link(&mut self, key: &Bytes, child: PageId) -> bool {
        let Entries::Inner(links) = &mut self.entries else { panic!("leaves have no children") };
        match links.binary_search_by(|link| link.key.cmp(key)) {
            Ok(at) if links[at].child == child => return false,
            Ok(at) => links[at].child = child,
            Err(at) => links.insert(at, Link { key: key.clone(), child }),
        }
        true
    }

    /// From the next put on an index follows this leaf. False if it did already.
    pub(crate) fn add_follower(&mut self, follower: &Follower) -> bool {
        let is_new = !self.followers.contains(follower);
        if is_new {
            self.followers.push(follower.clone());
        }
        is_new
    }

    /// From the next put on these indexes do not follow this leaf. False if none of them did.
    pub(crate) fn forget_followers(&mut self, is_gone: impl Fn(PageId) -> bool) -> bool {
        let had = self.followers.len();
        self.followers.retain(|follower| !is_gone(follower.root));
        self.followers.len() < had
    }

    /// Bytes of the page's frame.
    pub fn encoded_bytes(&self) -> usize {
        codec::encoded_bytes(self)
    }

    /// Bytes that the page takes in memory, if it was decoded: its frame, which its entries share, and
    /// what it has besides.
    pub fn weight(&self) -> u64 {
        let entries = match &self.entries {
            Entries::Leaf(slots) => size_of_val(&slots[..]),
            Entries::Inner(links) => size_of_val(&links[..]),
        };
        let noted = size_of_val(&self.applied[..]) + size_of_val(&self.followers[..]);
        (self.encoded_bytes() + entries + noted + size_of::<Page>()) as u64
    }

    /// Drops tombstones whose write is older than `before_us` on the stamps' clock. The caller
    /// knows that no log record as old can still arrive.
    pub fn prune(&mut self, before_us: u64) -> usize {
        let Entries::Leaf(slots) = &mut self.entries else { return 0 };
        let had = slots.len();
        slots.retain(|slot| slot.payload.is_some() || slot.stamp.clock >= before_us);
        had - slots.len()
    }

    /// Remembers that all records of `stream` up to `sequence` are applied here.
    pub fn mark_applied(&mut self, stream: Stream, sequence: u64) {
        match self.applied.binary_search_by_key(&stream, |(stream, _)| *stream) {
            Ok(at) => self.applied[at].1 = self.applied[at].1.max(sequence),
            Err(at) => self.applied.insert(at, (stream, sequence)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{
        prelude::*,
        test_runner::{TestError, TestRunner},
    };

    use super::*;

    fn leaf(keys: &[&'static str]) -> Page {
        let mut page = Page::root(PageId(1));
        for (n, key) in keys.iter().enumerate() {
            let stamp = Stamp { clock: n as u64 + 1, ..Stamp::default() };
            page.apply(&Bytes::from_static(key.as_bytes()), stamp, Some(Value::EMPTY));
        }
        page
    }

    #[test]
    fn fences_at_every_edge() {
        let mut page = leaf(&[]);
        page.low = Bytes::from_static(b"b");
        page.high = Some(Bytes::from_static(b"d"));
        let cases = [("a", false), ("b", true), ("c", true), ("c\u{ff}", true), ("d", false)];
        for (key, owned) in cases {
            assert_eq!(page.owns(key.as_bytes()), owned, "{key}");
        }
        page.high = None;
        assert!(page.owns(&[0xff; 40]), "no high fence is infinity");
    }

    #[test]
    fn a_link_leads_to_the_child_that_starts_before_the_key() {
        let mut page = Page::root(PageId(1));
        page.entries = Entries::Inner(Vec::new());
        for (key, child) in [("", 10), ("f", 11), ("m", 12)] {
            assert!(page.link(&Bytes::from_static(key.as_bytes()), PageId(child)));
        }
        let cases = [("a", 10), ("f", 11), ("ez", 10), ("lz", 11), ("m", 12), ("zz", 12)];
        for (key, child) in cases {
            assert_eq!(page.child(key.as_bytes()), Some(PageId(child)), "{key}");
        }
    }

    /// Writes of a few keys: which, by whom, and what it holds then. Their stamps follow from where they
    /// stand.
    type Writes = Vec<(u8, u8, Option<u8>)>;

    /// Applies writes in the order of `turns`, those that are named there as often as they are, and then
    /// those that never were.
    fn applied(
        writes: &Writes,
        turns: &[prop::sample::Index],
        may_replace: fn(Stamp, Stamp) -> bool,
    ) -> Page {
        let mut page = Page::root(PageId(1));
        let all = 0..writes.len();
        let turns: Vec<usize> = turns.iter().map(|turn| turn.index(writes.len())).collect();
        let rest: Vec<usize> = all.filter(|n| !turns.contains(n)).collect();
        for n in turns.into_iter().chain(rest) {
            let (key, client, payload) = writes[n];
            // Some have equal clocks: then the client decides, and its count.
            let stamp =
                Stamp { clock: n as u64 / 3, client: u64::from(client), sequence: n as u64 };
            let payload = payload.map(|byte| Value::Here(Bytes::from(vec![byte])));
            page.apply_if(&Bytes::from(vec![key]), stamp, payload, |there| {
                may_replace(stamp, there)
            });
        }
        page
    }

    /// Invariant 7 for one rule of what replaces what.
    fn orders_do_not_matter(may_replace: fn(Stamp, Stamp) -> bool) -> Result<(), String> {
        let writes = prop::collection::vec((0..4u8, 0..3u8, any::<Option<u8>>()), 1..12);
        let turns = || prop::collection::vec(any::<prop::sample::Index>(), 0..30);
        let outcome = TestRunner::deterministic().run(
            &(writes, turns(), turns()),
            |(writes, first, second)| {
                let pages = [first, second].map(|turns| applied(&writes, &turns, may_replace));
                prop_assert_eq!(&pages[0], &pages[1]);
                prop_assert_eq!(pages[0].encode(), pages[1].encode());
                Ok(())
            },
        );
        match outcome {
            Ok(()) => Ok(()),
            Err(TestError::Fail(why, value)) => Err(format!("{why}: {value:?}")),
            Err(TestError::Abort(why)) => panic!("{why}"),
        }
    }

    /// Invariant 7: any multiset of the same writes in any order makes the same page, to the byte.
    #[test]
    fn any_order_of_writes_makes_the_same_page() {
        assert_eq!(orders_do_not_matter(|stamp, there| stamp > there), Ok(()));
    }

    /// And it is the rule that sees to it: without stamps, or by the clock alone, it does not hold.
    #[test]
    fn without_stamps_the_order_decides() {
        assert!(orders_do_not_matter(|_, _| true).is_err(), "the last to come stays");
        assert!(orders_do_not_matter(|_, _| false).is_err(), "the first to come stays");
        let by_clock = |stamp: Stamp, there: Stamp| stamp.clock > there.clock;
        assert!(orders_do_not_matter(by_clock).is_err(), "equal clocks");
    }

    #[test]
    fn pruning_takes_old_tombstones_and_nothing_else() {
        let mut page = leaf(&["a", "b"]);
        let stamp = |clock| Stamp { clock, ..Stamp::default() };
        page.apply(&Bytes::from_static(b"a"), stamp(5), None);
        page.apply(&Bytes::from_static(b"c"), stamp(9), None);
        assert_eq!(page.prune(9), 1);
        let keys: Vec<_> = page.slots().iter().map(|slot| slot.key.clone()).collect();
        assert_eq!(keys, ["b", "c"]);
    }
}
