//! Versions on leaves: each is a slot of its own, the newest of a record first.
//!
//! ```text
//!   leaf key: key, as in an index | 0x00 0x01 | the commit's number, all bits turned over
//!   payload:  0 for a delete, or 1 and the record's payload; where that lies in a blob, the name of the blob
//! ```
//!
//! A delete is no tombstone: it stays until the horizon has passed it, whatever the clock says.
//!
//! Which commits a leaf has is told by two streams among those that it notes (`page.applied`), which no
//! client has, since an epoch is the time when a life began, in microseconds, and 0 is nobody's: [`COMMITS`], up to which number it has everything; and [`PRUNED`], up to which replaced
//! versions are gone. A leaf of a versioned collection has the first one from its root on, which is how
//! anyone tells it from others.

use bytes::Bytes;

use crate::{
    blob::Value,
    page::{Entries, Page, Slot, Stream},
    settings::{Rule, Rules},
    stamp::Stamp,
    tree::secondary,
};

/// The leaf has every commit up to this number, of the keys that it owns.
const COMMITS: Stream = Stream { client: 0, epoch: 0 };
/// Of what was replaced up to this number, only the newest version is on the leaf.
const PRUNED: Stream = Stream { client: 1, epoch: 0 };

const DELETED: u8 = 0;
const LIVE: u8 = 1;

/// One version of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) key: Vec<u8>,
    /// The commit that wrote it.
    pub(super) number: u64,
    /// `None`: it deleted the record.
    pub(super) payload: Option<Value>,
}

/// Where a version is. Newer ones are before older ones.
pub(super) fn leaf_key(key: &[u8], number: u64) -> Bytes {
    secondary::join(key, &(!number).to_be_bytes())
}

/// Behind all versions of a record.
pub(super) fn end_of(key: &[u8]) -> Bytes {
    secondary::end(key)
}

/// Before all versions of records from this key on.
pub(super) fn begin_of(key: &[u8]) -> Bytes {
    secondary::begin(key)
}

/// The slot of a version.
pub(super) fn slot(key: &[u8], number: u64, client: u64, payload: Option<&Value>) -> Slot {
    let payload = match payload {
        None => Value::Here(Bytes::from_static(&[DELETED])),
        Some(Value::Here(payload)) => Value::Here([&[LIVE], &payload[..]].concat().into()),
        Some(Value::Blob(blob)) => Value::Blob(*blob),
    };
    let stamp = Stamp { clock: number, client, sequence: 0 };
    Slot { key: leaf_key(key, number), stamp, payload: Some(payload) }
}

/// The version of a slot; `None` if it is none.
pub(super) fn version(slot: &Slot) -> Option<Version> {
    let (key, number) = secondary::divide(&slot.key)?;
    let number = !u64::from_be_bytes(*number.first_chunk::<8>().filter(|_| number.len() == 8)?);
    let payload = match slot.payload.as_ref()? {
        Value::Blob(blob) => Some(Value::Blob(*blob)),
        Value::Here(bytes) => match *bytes.first()? {
            LIVE => Some(Value::Here(bytes.slice(1..))),
            DELETED if bytes.len() == 1 => None,
            _ => return None,
        },
    };
    Some(Version { key, number, payload })
}

fn mark(page: &Page, stream: Stream) -> Option<u64> {
    let at = page.applied.binary_search_by_key(&stream, |(stream, _)| *stream).ok()?;
    Some(page.applied[at].1)
}

/// Whether a leaf holds versions.
pub(crate) fn is_versioned(page: &Page) -> bool {
    page.level == 0 && mark(page, COMMITS).is_some()
}

/// Makes an empty root that of a versioned collection.
pub(crate) fn make_versioned(page: &mut Page) {
    page.mark_applied(COMMITS, 0);
}

/// Up to which commit a leaf has everything.
pub(super) fn complete_to(page: &Page) -> u64 {
    mark(page, COMMITS).unwrap_or(0)
}

/// The oldest snapshot that can be read from it.
pub(super) fn readable_from(page: &Page) -> u64 {
    mark(page, PRUNED).unwrap_or(0)
}

/// Looks whether a leaf is one of a versioned collection. Returns up to which commit it has everything.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn examine_leaf(page: &Page) -> Result<u64, &'static str> {
    if !is_versioned(page) {
        return Err("holds no versions, and its collection was created for isolation");
    }
    let complete = complete_to(page);
    for slot in page.slots() {
        match version(slot) {
            None => return Err("holds a record that is no version"),
            Some(version) if version.number > complete => {
                return Err("holds a version of a commit that it says it does not have");
            }
            Some(_) => {}
        }
    }
    Ok(complete)
}

/// Adds versions that the leaf does not have: those of commits that it is not complete to yet. From now on
/// it is complete to `through`. Returns how many were added.
///
/// # Panics
/// On an inner page.
pub(super) fn add(page: &mut Page, versions: &[(u64, Slot)], through: u64, rules: Rules) -> usize {
    let complete = if rules.hold(Rule::AddOnce) { complete_to(page) } else { 0 };
    let Entries::Leaf(slots) = &mut page.entries else { panic!("versions live in leaves") };
    let mut added = 0;
    for (_, slot) in versions.iter().filter(|(number, _)| *number > complete) {
        if let Err(at) = slots.binary_search_by(|there| there.key.cmp(&slot.key)) {
            slots.insert(at, slot.clone());
            added += 1;
        }
    }
    if added > 0 {
        page.mark_applied(COMMITS, through);
    }
    added
}

/// Drops what no snapshot from `horizon` on sees: versions that were replaced by then, and deletes of which
/// nothing older is left anywhere. Returns how many went.
pub(super) fn prune(page: &mut Page, horizon: u64, rules: Rules) -> usize {
    let high = page.high.clone();
    let Entries::Leaf(slots) = &mut page.entries else { return 0 };
    let had = slots.len();
    // The key of which a version up to the horizon was met: older ones go.
    let mut settled: Option<Vec<u8>> = None;
    slots.retain(|slot| {
        let Some(version) = version(slot) else { return true };
        if settled.as_ref() == Some(&version.key) {
            return false;
        }
        if version.number > horizon {
            return true;
        }
        // What is older than a delete must be here, to go along with it; or it would be back.
        let has_all = high.as_ref().is_none_or(|high| *high >= end_of(&version.key))
            || !rules.hold(Rule::DeleteStays);
        let stays = version.payload.is_some() || !has_all;
        settled = Some(version.key);
        stays
    });
    let pruned = had - slots.len();
    if pruned > 0 {
        page.mark_applied(PRUNED, horizon);
    }
    pruned
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::page::PageId;

    fn read(page: &Page, key: &[u8], snapshot: u64) -> Option<Value> {
        let found = page.slots().iter().filter_map(version);
        let newest = found.filter(|it| it.key == key && it.number <= snapshot);
        newest.max_by_key(|it| it.number).and_then(|it| it.payload)
    }

    /// Some payloads lie in blobs.
    fn value(byte: u8, number: u64) -> Value {
        let stamp = Stamp { clock: number, client: 1, sequence: 0 };
        match byte {
            2 => Value::Blob(crate::blob::Blob::new(stamp, 50_000, 50_000, 0).unwrap()),
            byte => Value::Here(Bytes::from(vec![byte])),
        }
    }

    /// Applied after it was pruned, an old commit brought back what a later one had deleted.
    #[test]
    fn what_was_applied_once_is_not_applied_again() {
        let mut page = Page::root(PageId(1));
        make_versioned(&mut page);
        let put = (1, slot(b"k", 1, 7, Some(&Bytes::from_static(b"a").into())));
        let delete = (2, slot(b"k", 2, 7, None));
        assert_eq!(add(&mut page, std::slice::from_ref(&put), 1, Rules::HARDENED), 1);
        assert_eq!(add(&mut page, &[put.clone(), delete], 2, Rules::HARDENED), 1);
        assert_eq!(prune(&mut page, 2, Rules::HARDENED), 2);
        assert!(page.slots().is_empty());
        assert_eq!((complete_to(&page), readable_from(&page)), (2, 2));
        assert_eq!(add(&mut page, &[put], 1, Rules::HARDENED), 0);
        assert!(page.slots().is_empty());
        assert_eq!(Page::decode(&page.encode()).unwrap(), page);
    }

    /// Older versions of a record were on the next leaf, and a delete on this one went before them.
    #[test]
    fn a_delete_stays_while_older_versions_may_be_elsewhere() {
        let mut page = Page::root(PageId(1));
        make_versioned(&mut page);
        add(&mut page, &[(5, slot(b"k", 5, 7, None))], 5, Rules::HARDENED);
        page.high = Some(leaf_key(b"k", 3));
        page.right = Some(PageId(2));
        assert_eq!(prune(&mut page, 9, Rules::HARDENED), 0);
        page.high = Some(end_of(b"k"));
        assert_eq!(prune(&mut page, 9, Rules::HARDENED), 1);
    }

    proptest! {
        /// Whatever is pruned, every snapshot from the horizon on reads the same.
        #[test]
        fn pruning_changes_nothing_from_the_horizon_on(
            writes in prop::collection::vec((0..4u8, prop::option::of(0..3u8)), 1..20),
            horizon in 0..25u64,
        ) {
            let mut page = Page::root(PageId(1));
            make_versioned(&mut page);
            let all: Vec<(u64, Slot)> = (1u64..).zip(&writes).map(|(number, (key, payload))| {
                let payload = payload.map(|byte| value(byte, number));
                (number, slot(&[*key], number, 7, payload.as_ref()))
            }).collect();
            let last = all.len() as u64;
            add(&mut page, &all, last, Rules::HARDENED);
            prop_assert!(page.slots().iter().all(|slot| version(slot).is_some()));
            prop_assert_eq!(&Page::decode(&page.encode()).unwrap(), &page);
            let whole = page.clone();
            let pruned = prune(&mut page, horizon, Rules::HARDENED);
            prop_assert_eq!(readable_from(&page), if pruned > 0 { horizon } else { 0 });
            for snapshot in readable_from(&page)..=last {
                for key in 0..4u8 {
                    prop_assert_eq!(read(&page, &[key], snapshot), read(&whole, &[key], snapshot));
                }
            }
        }
    }
}
