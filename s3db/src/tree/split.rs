//! One page into several, without any I/O.

use bytes::Bytes;

use crate::page::{Entries, Link, Page, PageId};

/// A page that is too large, in pieces of which each has room to grow.
pub(crate) struct Pieces {
    /// Pages that do not exist yet, from left to right. They are created before `head` is put.
    pub(crate) created: Vec<Page>,
    /// What the page becomes: its left part, or, for a root, the parent of all pieces.
    pub(crate) head: Page,
}

/// Splits `page` so that no piece has more than about `bytes_max / 2` of entries. `None` if it has
/// fewer than two entries, or fits.
///
/// `is_root` makes it grow in place: all entries move to new pages, and the page becomes their
/// parent. `page.version` is that of the copy it was made from; the pieces name it as their origin.
pub(crate) fn split(
    page: &Page,
    is_root: bool,
    bytes_max: usize,
    mut fresh_id: impl FnMut() -> PageId,
) -> Option<Pieces> {
    let bytes = page.encoded_bytes();
    if bytes <= bytes_max {
        return None;
    }
    let parts = cut(&page.entries, bytes_max)?;
    let first_key = |entries: &Entries| match entries {
        Entries::Leaf(slots) => slots[0].key.clone(),
        Entries::Inner(links) => links[0].key.clone(),
    };
    // The keys at which pieces begin: the page's own low fence, then first keys.
    let lows: Vec<Bytes> = parts
        .iter()
        .enumerate()
        .map(|(n, part)| if n == 0 { page.low.clone() } else { first_key(part) })
        .collect();
    let ids: Vec<PageId> =
        (0..parts.len()).map(|n| if n == 0 && !is_root { page.id } else { fresh_id() }).collect();
    let mut pieces: Vec<Page> = Vec::with_capacity(parts.len());
    for (n, entries) in parts.into_iter().enumerate() {
        let mut piece = page.clone();
        piece.id = ids[n];
        piece.low = lows[n].clone();
        if let Some(low) = lows.get(n + 1) {
            piece.high = Some(low.clone());
            piece.right = Some(ids[n + 1]);
        }
        piece.entries = entries;
        if piece.id != page.id {
            piece.version = 0;
            piece.origin = Some((page.id, page.version));
        }
        pieces.push(piece);
    }
    if !is_root {
        let created = pieces.split_off(1);
        return Some(Pieces { created, head: pieces.remove(0) });
    }
    let mut head = page.clone();
    head.level += 1;
    head.applied.clear();
    head.followers.clear();
    head.entries =
        Entries::Inner(lows.into_iter().zip(ids).map(|(key, child)| Link { key, child }).collect());
    Some(Pieces { created: pieces, head })
}

/// Cuts entries into at least two parts of about equal bytes.
fn cut(entries: &Entries, bytes_max: usize) -> Option<Vec<Entries>> {
    fn parts<T: Clone>(all: &[T], bytes: impl Fn(&T) -> usize, max: usize) -> Option<Vec<Vec<T>>> {
        if all.len() < 2 {
            return None;
        }
        let total: usize = all.iter().map(&bytes).sum();
        let count = total.div_ceil((max / 2).max(1)).clamp(2, all.len());
        let mut parts: Vec<Vec<T>> = vec![Vec::new()];
        let mut before = 0;
        for (n, entry) in all.iter().enumerate() {
            let (made, left) = (parts.len(), all.len() - n);
            let is_full = before * count >= total * made || left + made <= count;
            let last = parts.last_mut().expect("starts with one");
            if is_full && !last.is_empty() && made < count {
                parts.push(vec![entry.clone()]);
            } else {
                last.push(entry.clone());
            }
            before += bytes(entry);
        }
        (parts.len() > 1).then_some(parts)
    }
    Some(match entries {
        Entries::Leaf(slots) => parts(slots, crate::page::slot_bytes, bytes_max)?
            .into_iter()
            .map(Entries::Leaf)
            .collect(),
        Entries::Inner(links) => parts(links, |link| 18 + link.key.len(), bytes_max)?
            .into_iter()
            .map(Entries::Inner)
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stamp::Stamp;

    fn leaf(count: usize, payload: usize) -> Page {
        let mut page = Page::root(PageId(7));
        page.version = 3;
        for n in 0..count {
            let key = Bytes::from(format!("key{n:04}"));
            page.apply(
                &key,
                Stamp { clock: 1, ..Stamp::default() },
                Some(Bytes::from(vec![0; payload]).into()),
            );
        }
        page
    }

    #[test]
    fn pieces_meet_at_their_fences_and_hold_everything() {
        for (count, payload, bytes_max) in
            [(2, 500, 600), (40, 30, 900), (400, 10, 700), (3, 0, 100)]
        {
            for is_root in [false, true] {
                let page = leaf(count, payload);
                let mut next = 100;
                let ids = || {
                    next += 1;
                    PageId(next)
                };
                let pieces = split(&page, is_root, bytes_max, ids).expect("too large");
                let mut leaves = pieces.created;
                if is_root {
                    assert_eq!((pieces.head.id, pieces.head.level), (page.id, 1));
                    assert_eq!(pieces.head.links().len(), leaves.len());
                } else {
                    leaves.insert(0, pieces.head);
                }
                assert!(leaves.len() > 1);
                assert_eq!(leaves[0].low, page.low);
                for pair in leaves.windows(2) {
                    assert_eq!(pair[0].high.as_ref(), Some(&pair[1].low));
                    assert_eq!(pair[0].right, Some(pair[1].id));
                }
                assert_eq!(leaves.last().unwrap().high, None);
                let slots: Vec<_> = leaves.iter().flat_map(|leaf| leaf.slots()).cloned().collect();
                assert_eq!(slots, page.slots(), "{count} {payload} {bytes_max}");
                for leaf in &leaves {
                    assert!(leaf.slots().iter().all(|slot| leaf.owns(&slot.key)));
                    assert_eq!(Page::decode(&leaf.encode()).as_ref(), Ok(leaf));
                }
            }
        }
    }

    #[test]
    fn a_single_record_is_never_split() {
        assert!(split(&leaf(1, 5000), false, 100, || PageId(1)).is_none());
    }
}
