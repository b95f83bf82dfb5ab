//! What a view of the sequencer knows: the newest commits, and what they mean to a transaction.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use bytes::Bytes;

use crate::{
    blob::Value,
    cloud::ETag,
    page::{Page, PageId},
    sequence::{
        codec::{Numbers, Write},
        versions,
    },
};

/// Records, and ranges that do not meet, of one collection that a transaction remembers to have read, before it
/// is taken to have read all of it.
const READS_MAX: usize = 10_000;

/// The sequencer as it was once.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(super) numbers: Numbers,
    pub(super) etag: ETag,
    /// What commits after this write is known here. What others write is on pages.
    pub(super) floor: u64,
}

/// What a record holds: since which commit, and what; without a payload it was deleted.
pub(super) type Held = (u64, Option<Value>);

impl View {
    /// What commits of the window made of a record, up to `snapshot`.
    pub(super) fn read(&self, tree: PageId, key: &[u8], snapshot: u64) -> Option<Held> {
        let known = self.numbers.numbered().rev().take_while(|(number, _)| *number > self.floor);
        known.filter(|(number, _)| *number <= snapshot).find_map(|(number, commit)| {
            let at = commit.writes.binary_search_by(|write| write.at().cmp(&(tree, key))).ok()?;
            Some((number, commit.writes[at].payload.clone()))
        })
    }

    /// The same of all records from `from` to before `to`.
    pub(super) fn range(
        &self,
        tree: PageId,
        from: &[u8],
        to: Option<&[u8]>,
        snapshot: u64,
    ) -> BTreeMap<Bytes, Held> {
        let mut held = BTreeMap::new();
        let known = self.numbers.numbered().skip_while(|(number, _)| *number <= self.floor);
        for (number, commit) in known.take_while(|(number, _)| *number <= snapshot) {
            let begin = commit.writes.partition_point(|write| write.at() < (tree, from));
            let is_in =
                |write: &&Write| write.tree == tree && to.is_none_or(|to| &write.key[..] < to);
            for write in commit.writes[begin..].iter().take_while(is_in) {
                held.insert(write.key.clone(), (number, write.payload.clone()));
            }
        }
        held
    }
}

/// What was put aside, for those who look at a leaf that does not have it yet: one that was restored, mostly.
impl View {
    /// What the commits that were put aside write to a leaf of `tree` and is not there, in the order of commits.
    fn missing<'a>(
        &'a self,
        tree: PageId,
        page: &'a Page,
    ) -> impl DoubleEndedIterator<Item = (u64, &'a Write)> {
        let complete = versions::complete_to(page);
        let aside = self.numbers.aside.iter().filter(move |(number, _)| *number > complete);
        aside.flat_map(move |(number, commit)| {
            let from = commit.writes.partition_point(|write| write.tree < tree);
            let of = commit.writes[from..].iter().take_while(move |write| write.tree == tree);
            let is_here = move |write: &&Write| page.owns(&versions::leaf_key(&write.key, *number));
            of.filter(is_here).map(|write| (*number, write)).collect::<Vec<_>>()
        })
    }

    /// Whether a leaf of `tree` lacks something that was put aside.
    pub(super) fn lacks(&self, tree: PageId, page: &Page) -> bool {
        self.missing(tree, page).next().is_some()
    }

    /// What was put aside and is not on a leaf of `tree`, the newest of each record.
    pub(super) fn put_aside(&self, tree: PageId, page: &Page) -> BTreeMap<Bytes, Held> {
        let held =
            |(number, write): (u64, &Write)| (write.key.clone(), (number, write.payload.clone()));
        self.missing(tree, page).map(held).collect()
    }

    /// Trees that commits which were put aside write to.
    pub(super) fn aside_trees(&self) -> BTreeSet<PageId> {
        let writes = self.numbers.aside.iter().flat_map(|(_, commit)| commit.writes.iter());
        writes.map(|write| write.tree).collect()
    }
}

/// What a transaction has read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reads {
    points: BTreeMap<PageId, BTreeSet<Bytes>>,
    /// From, and to before that. No two of them meet, so that one look tells whether a record is in any: each
    /// write of the window is looked up, by who has the turn that all wait for.
    ranges: BTreeMap<PageId, BTreeMap<Bytes, Option<Bytes>>>,
    whole: BTreeSet<PageId>,
}

impl Reads {
    /// A record was read, whether there was one or not.
    pub(super) fn point(&mut self, tree: PageId, key: &[u8]) {
        if self.whole.contains(&tree) {
            return;
        }
        let points = self.points.entry(tree).or_default();
        points.insert(Bytes::copy_from_slice(key));
        if points.len() > READS_MAX {
            self.all_of(tree);
        }
    }

    /// All records of a range were read, and that there are no others.
    pub(super) fn range(&mut self, tree: PageId, from: Bytes, to: Option<Bytes>) {
        if self.whole.contains(&tree) || to.as_ref().is_some_and(|to| *to <= from) {
            return;
        }
        let ranges = self.ranges.entry(tree).or_default();
        let (mut from, mut to) = (from, to);
        // Of those that begin before its end, the last one ends last: if that ends before it begins, all do.
        while let Some((begin, end)) = {
            let until = to.as_deref().map_or(Bound::Unbounded, Bound::Included);
            let last = ranges.range::<[u8], _>((Bound::Unbounded, until)).next_back();
            let last = last.filter(|(_, end)| end.as_ref().is_none_or(|end| *end >= from));
            last.map(|(begin, end)| (begin.clone(), end.clone()))
        } {
            ranges.remove(&begin);
            from = from.min(begin);
            to = to.zip(end).map(|(to, end)| to.max(end));
        }
        ranges.insert(from, to);
        if ranges.len() > READS_MAX {
            self.all_of(tree);
        }
    }

    fn all_of(&mut self, tree: PageId) {
        self.points.remove(&tree);
        self.ranges.remove(&tree);
        self.whole.insert(tree);
    }

    /// One of these writes that changes what was read.
    pub(super) fn changed_by<'a>(&self, writes: &'a [Write]) -> Option<&'a Write> {
        writes.iter().find(|write| self.has(write))
    }

    fn has(&self, write: &Write) -> bool {
        let has_point = |points: &BTreeSet<Bytes>| points.contains(&write.key);
        let has_range = |ranges: &BTreeMap<Bytes, Option<Bytes>>| {
            let last = ranges.range::<Bytes, _>(..=&write.key).next_back();
            last.is_some_and(|(_, to)| to.as_ref().is_none_or(|to| write.key < *to))
        };
        self.whole.contains(&write.tree)
            || self.points.get(&write.tree).is_some_and(has_point)
            || self.ranges.get(&write.tree).is_some_and(has_range)
    }
}

/// A record that both write.
pub(super) fn both_write<'a>(ours: &[Write], theirs: &'a [Write]) -> Option<&'a Write> {
    let is_ours = |write: &&Write| ours.binary_search_by(|our| our.at().cmp(&write.at())).is_ok();
    theirs.iter().find(is_ours)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::sequence::codec::Commit;

    fn write(tree: u128, key: &'static str, payload: Option<&'static str>) -> Write {
        let bytes = |text: &'static str| Bytes::from_static(text.as_bytes());
        let payload = payload.map(|text| Value::Here(bytes(text)));
        Write { tree: PageId(tree), key: bytes(key), payload }
    }

    fn view() -> View {
        let commit = |id, writes: Vec<Write>| Commit {
            id,
            client: 1,
            epoch: 1,
            date_ms: 0,
            object: None,
            writes: Arc::from(writes),
        };
        let commits = vec![
            commit(1, vec![write(1, "a", Some("1"))]),
            commit(2, vec![write(1, "a", Some("2")), write(1, "b", Some("2"))]),
            commit(3, vec![write(1, "b", None), write(2, "a", Some("3"))]),
        ];
        let numbers = Numbers { last: 12, applied: 10, commits, ..Numbers::default() };
        View { floor: numbers.floor(), numbers, etag: ETag::new("e") }
    }

    #[test]
    fn nothing_newer_than_the_snapshot_is_seen() {
        let view = view();
        let held = |number, payload: Option<&'static str>| {
            let value = |text: &'static str| Value::Here(Bytes::from_static(text.as_bytes()));
            Some((number, payload.map(value)))
        };
        let cases = [
            (1, "a", 9, None),
            (1, "a", 10, held(10, Some("1"))),
            (1, "a", 11, held(11, Some("2"))),
            (1, "a", 12, held(11, Some("2"))),
            (1, "b", 11, held(11, Some("2"))),
            (1, "b", 12, held(12, None)),
            (2, "a", 11, None),
            (2, "a", 12, held(12, Some("3"))),
        ];
        for (tree, key, snapshot, expected) in cases {
            let found = view.read(PageId(tree), key.as_bytes(), snapshot);
            assert_eq!(found, expected, "{key} of {tree} at {snapshot}");
            let range = view.range(PageId(tree), key.as_bytes(), None, snapshot);
            assert_eq!(range.get(key.as_bytes()).cloned(), expected, "{key} of {tree}: range");
        }
        assert_eq!(view.range(PageId(1), b"a", Some(b"b"), 12).len(), 1);
        // What a commit writes that nobody could read is not known to be nothing.
        let dim = View { floor: 10, ..view };
        assert_eq!(dim.read(PageId(1), b"a", 10), None);
    }

    proptest::proptest! {
        /// Ranges that were made one tell the same as all of them, one by one.
        #[test]
        fn ranges_are_what_was_put_into_them(
            all in proptest::collection::vec((0..20u8, proptest::option::of(0..20u8)), 0..12),
        ) {
            let mut reads = Reads::default();
            let bytes = |byte: u8| Bytes::copy_from_slice(&[byte]);
            for (from, to) in &all {
                reads.range(PageId(1), bytes(*from), to.map(bytes));
            }
            for key in 0..22u8 {
                let write = Write { tree: PageId(1), key: bytes(key), payload: None };
                let is_in = |(from, to): &(u8, Option<u8>)| {
                    (*from..to.unwrap_or(u8::MAX)).contains(&key)
                };
                proptest::prop_assert_eq!(reads.has(&write), all.iter().any(is_in));
            }
        }
    }

    #[test]
    fn what_was_read_is_changed_by_what_is_in_it() {
        let mut reads = Reads::default();
        reads.point(PageId(1), b"k");
        reads.range(PageId(1), Bytes::from_static(b"p"), Some(Bytes::from_static(b"r")));
        reads.range(PageId(2), Bytes::from_static(b"x"), None);
        let cases = [
            (1, "k", true),
            (1, "l", false),
            (1, "p", true),
            (1, "q", true),
            (1, "r", false),
            (2, "k", false),
            (2, "xx", true),
        ];
        for (tree, key, is_changed) in cases {
            let found = reads.changed_by(&[write(tree, key, None)]).is_some();
            assert_eq!(found, is_changed, "{key} of {tree}");
        }
        // One behind the other they are one.
        let key = |n: usize| Bytes::copy_from_slice(&(n as u64).to_be_bytes());
        for n in 0..=2 * READS_MAX {
            reads.range(PageId(4), key(n), Some(key(n + 1)));
        }
        assert_eq!((reads.ranges[&PageId(4)].len(), reads.whole.len()), (1, 0));
        for n in 0..=READS_MAX {
            reads.range(PageId(5), key(2 * n), Some(key(2 * n + 1)));
        }
        assert!(reads.whole.contains(&PageId(5)), "so many apart from each other are all of it");
        for n in 0..=READS_MAX {
            reads.point(PageId(3), &n.to_be_bytes());
        }
        assert!(reads.changed_by(&[write(3, "anything", None)]).is_some(), "it is all of it now");
        assert!(reads.points.len() <= 2, "and takes no memory");
    }
}
