//! What a view of the sequencer knows: the newest commits, and what they mean to a transaction.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use bytes::Bytes;

use crate::{
    cloud::ETag,
    page::PageId,
    sequence::codec::{Numbers, Write},
};

/// Records and ranges of one collection that a transaction remembers to have read, before it is taken to
/// have read all of it.
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
pub(super) type Held = (u64, Option<Bytes>);

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

/// What a transaction has read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reads {
    points: BTreeMap<PageId, BTreeSet<Bytes>>,
    /// From, and to before that.
    ranges: BTreeMap<PageId, Vec<(Bytes, Option<Bytes>)>>,
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
        if self.whole.contains(&tree) {
            return;
        }
        let ranges = self.ranges.entry(tree).or_default();
        ranges.push((from, to));
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
        let has_range = |ranges: &Vec<(Bytes, Option<Bytes>)>| {
            ranges.iter().any(|(from, to)| {
                let to = to.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
                let is_before_end = match to {
                    Bound::Excluded(to) => write.key < *to,
                    _ => true,
                };
                *from <= write.key && is_before_end
            })
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
        Write { tree: PageId(tree), key: bytes(key), payload: payload.map(bytes) }
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
            Some((number, payload.map(|text| Bytes::from_static(text.as_bytes()))))
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
        for n in 0..=READS_MAX {
            reads.point(PageId(3), &n.to_be_bytes());
        }
        assert!(reads.changed_by(&[write(3, "anything", None)]).is_some(), "it is all of it now");
        assert!(reads.points.len() <= 2, "and takes no memory");
    }
}
