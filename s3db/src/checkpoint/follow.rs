//! What changes of a leaf mean to the indexes that follow it.
//!
//! A write of a record under a stamp says two things of an index: the entry of the record is there
//! since that stamp, and every other entry of the same record is gone since. Both are true for ever,
//! so they can be applied by anyone, in any order, any number of times (H1). A record whose payload is
//! a blob has no entry.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::{
    blob::Value,
    log::{Entry, transaction},
    page::{Follower, Page},
    record::Key,
    stamp::Stamp,
};

/// The changes of entries that must be on their pages before `changes`, which `page` owns and which
/// are in the order of their keys, are put there: for each record the entry of what wins, and that
/// nothing else is left, neither of what the page holds now nor of what loses.
pub(super) fn implied(page: &Page, changes: &[(Bytes, Entry)]) -> Vec<Entry> {
    let mut implied = Vec::new();
    if page.followers.is_empty() {
        return implied;
    }
    for same in changes.chunk_by(|(a, _), (b, _)| a == b) {
        let leaf_key = &same[0].0;
        // Too long for a record: an entry of an index, sent here by mistake.
        let Ok(key) = Key::new(leaf_key) else { continue };
        let there = page.slot(leaf_key).map(|slot| (slot.stamp, slot.payload.clone()));
        let all: Vec<(Stamp, Option<Value>)> = there
            .iter()
            .cloned()
            .chain(same.iter().map(|(_, entry)| (entry.record.stamp, entry.leaf_payload())))
            .collect();
        let Some((stamp, payload)) = all.iter().max_by_key(|(stamp, _)| *stamp) else { continue };
        let is_new = there.as_ref().is_none_or(|(there, _)| there < stamp);
        for follower in &page.followers {
            let search = |payload: &Option<Value>| follower.by.key(payload.as_ref()?.here()?);
            let now = search(payload);
            if let (true, Some(now)) = (is_new, &now) {
                implied.extend(entry(follower, *stamp, now.clone(), &key, true));
            }
            let lost = all.iter().filter(|(lost, _)| lost < stamp);
            let gone: BTreeSet<Key> = lost.filter_map(|(_, payload)| search(payload)).collect();
            for search in gone.into_iter().filter(|gone| now.as_ref() != Some(gone)) {
                implied.extend(entry(follower, *stamp, search, &key, false));
            }
        }
    }
    implied
}

/// The entries of what a leaf holds.
pub(crate) fn entries(page: &Page, follower: &Follower) -> Vec<Entry> {
    let of = |slot: &crate::page::Slot| {
        let (key, search) =
            (Key::new(&slot.key).ok()?, follower.by.key(slot.payload.as_ref()?.here()?)?);
        entry(follower, slot.stamp, search, &key, true)
    };
    page.slots().iter().filter_map(of).collect()
}

/// An entry that comes or goes. `None` is impossible: a key of a record fits into an entry.
pub(crate) fn entry(
    follower: &Follower,
    stamp: Stamp,
    search: Key,
    record: &Key,
    is_there: bool,
) -> Option<Entry> {
    let root = follower.root;
    transaction::secondary(root, root, stamp, search, record, is_there).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        page::PageId,
        record::{Payload, Record},
        search_by::SearchBy,
    };

    fn write(clock: u64, key: &str, payload: Option<&str>) -> (Bytes, Entry) {
        let stamp = Stamp { clock, ..Stamp::default() };
        let payload = payload.map(|payload| Payload::new(payload).unwrap());
        let key = Key::new(key).unwrap();
        let entry = transaction::primary(PageId(1), PageId(1), stamp, key, payload);
        (entry.leaf_key(), entry)
    }

    fn followed() -> Page {
        let mut page = Page::root(PageId(1));
        page.add_follower(&Follower { root: PageId(9), by: SearchBy::Payload });
        page
    }

    fn show(entries: &[Entry]) -> Vec<String> {
        let show = |entry: &Entry| {
            let sign = if entry.leaf_payload().is_some() { '+' } else { '-' };
            let change = &entry.record.change;
            let record =
                Record { key: change.key().clone(), payload: change.payload().cloned().unwrap() };
            format!("{sign}{}:{}@{}", record.key, record.payload, entry.record.stamp.clock)
        };
        entries.iter().map(show).collect()
    }

    #[test]
    fn who_wins_has_an_entry_and_nobody_else() {
        let mut page = followed();
        let change = |page: &Page, changes: &[(Bytes, Entry)]| show(&implied(page, changes));
        assert_eq!(change(&page, &[write(5, "k", Some("a"))]), ["+a:k@5"]);
        page.apply(
            &Bytes::from_static(b"k"),
            write(5, "k", None).1.record.stamp,
            Some(Bytes::from("a").into()),
        );
        // Replaced, deleted, written again as it was, and beaten by what is there.
        assert_eq!(change(&page, &[write(6, "k", Some("b"))]), ["+b:k@6", "-a:k@6"]);
        assert_eq!(change(&page, &[write(6, "k", None)]), ["-a:k@6"]);
        assert_eq!(change(&page, &[write(6, "k", Some("a"))]), ["+a:k@6"]);
        assert_eq!(change(&page, &[write(4, "k", Some("b"))]), ["-b:k@5"]);
        assert_eq!(change(&page, &[write(5, "k", Some("a"))]), [""; 0], "it came again");
        // Of several in one batch.
        let batch = [write(7, "k", Some("c")), write(6, "k", Some("b")), write(1, "l", Some("c"))];
        assert_eq!(change(&page, &batch), ["+c:k@7", "-a:k@7", "-b:k@7", "+c:l@1"]);
        page.followers.clear();
        assert_eq!(change(&page, &batch), [""; 0], "nothing follows");
    }

    proptest! {
        /// Whatever order writes come in, in whatever batches, again and again: what is implied
        /// makes exactly the index of what the leaf holds in the end.
        #[test]
        fn any_order_makes_the_same_index(
            writes in prop::collection::vec((0..3usize, prop::option::of(0..3usize)), 1..12),
            order in prop::collection::vec((any::<prop::sample::Index>(), 1..4usize), 0..20),
        ) {
            let all: Vec<(Bytes, Entry)> = writes
                .iter()
                .enumerate()
                .map(|(n, (key, payload))| {
                    write(n as u64 + 1, ["k", "l", "m"][*key], payload.map(|it| ["a", "b", "c"][it]))
                })
                .collect();
            let mut page = followed();
            let mut index = Page::root(PageId(9));
            let batches = order.iter().map(|(at, len)| {
                let at = at.index(all.len());
                all[at..all.len().min(at + len)].to_vec()
            });
            for mut batch in batches.chain([all.clone()]) {
                batch.sort_by(|(a, _), (b, _)| a.cmp(b));
                for entry in implied(&page, &batch) {
                    index.apply(&entry.leaf_key(), entry.record.stamp, entry.leaf_payload());
                }
                for (key, entry) in &batch {
                    page.apply(key, entry.record.stamp, entry.leaf_payload());
                }
                let live = |page: &Page| -> Vec<(Bytes, Stamp)> {
                    let live = page.slots().iter().filter(|slot| slot.payload.is_some());
                    live.map(|slot| (slot.key.clone(), slot.stamp)).collect()
                };
                let mut derived = Page::root(PageId(9));
                for entry in entries(&page, &page.followers[0]) {
                    derived.apply(&entry.leaf_key(), entry.record.stamp, entry.leaf_payload());
                }
                prop_assert_eq!(live(&index), live(&derived));
            }
        }
    }
}
