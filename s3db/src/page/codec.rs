//! The bytes of a page: a frame (see `frame`) of magic `s3dP`, version 1 or 2, with this body.
//!
//! | bytes | field |
//! | --- | --- |
//! | 1 | kind: 0 leaf, 1 inner |
//! | 1 | level |
//! | 1 | flags: 1 dead, 2 has a high fence, 4 has a right neighbour, 8 has an origin, 16 indexes follow |
//! | 16 | id |
//! | 8 | version |
//! | 16 | write id |
//! | 8 | checkpoint time, milliseconds since 1970 |
//! | 4 | encryption key id, 0 for none |
//! | 2 + n | low fence |
//! | 2 + n | high fence, where flagged |
//! | 16 | right neighbour, where flagged |
//! | 16 + 8 | origin and its version, where flagged |
//! | 2 + 24 each | applied: client, epoch, sequence; of leaves with versions alone (`sequence::versions`), and as older programs left it on others |
//! | 2, and each | indexes, where flagged, of a leaf alone: root (16), kind of search key (1), what it needs (2 + n), as in the catalogue |
//! | 4 | number of entries |
//! | each | leaf: key (2 + n), stamp (3 x 8), 1 byte: 0 tombstone, 1 payload (4 + n), in version 2 also: 2 blob (40, see `blob`) |
//! | each | inner: key (2 + n), child (16) |
//!
//! Keys rise strictly and lie between the fences. A decoder refuses what does not. A page is of version
//! 2 exactly if it names a blob: whoever knows version 1 alone reads all others.

use bytes::Bytes;

use crate::{
    blob::{Blob, REFERENCE_BYTES, Value},
    frame::{FrameError, Reader, Writer, is_number},
    page::{Entries, Follower, INDEXES_MAX, Link, Page, PageId, SLOT_KEY_BYTES_MAX, Slot, Stream},
    search_by::SearchBy,
    stamp::Stamp,
};

const MAGIC: &str = "s3dP";
/// The newest version of the format of pages that this program writes and reads.
pub const PAGE_VERSION: u8 = 2;
/// That of pages that name no blob.
const PLAIN_VERSION: u8 = 1;
/// Levels above the leaves that no tree reaches: with two children each, 64 make all page names.
const LEVEL_MAX: u8 = 64;
const DEAD: u8 = 1;
const HIGH: u8 = 2;
const RIGHT: u8 = 4;
const ORIGIN: u8 = 8;
const FOLLOWED: u8 = 16;

/// Frame, fixed fields, and the counts of applied streams and entries.
const FIXED_BYTES: usize = 9 + 3 + 16 + 8 + 16 + 8 + 4 + 2 + 2 + 4;
const SLOT_FIXED_BYTES: usize = 2 + 24 + 1;
const LINK_FIXED_BYTES: usize = 2 + 16;

impl Page {
    /// The page's frame.
    pub fn encode(&self) -> Bytes {
        let names_blob = self.slots().iter().any(|slot| slot.blob().is_some());
        let mut to = Writer::new(MAGIC, if names_blob { PAGE_VERSION } else { PLAIN_VERSION });
        to.u8(u8::from(matches!(self.entries, Entries::Inner(_))));
        to.u8(self.level);
        to.u8(DEAD * u8::from(self.dead)
            | HIGH * u8::from(self.high.is_some())
            | RIGHT * u8::from(self.right.is_some())
            | ORIGIN * u8::from(self.origin.is_some())
            | FOLLOWED * u8::from(!self.followers.is_empty()));
        to.u128(self.id.0);
        to.u64(self.version);
        to.u128(self.write_id);
        to.u64(self.checkpoint_ms);
        to.u32(self.key_id);
        to.short(&self.low);
        if let Some(high) = &self.high {
            to.short(high);
        }
        if let Some(right) = self.right {
            to.u128(right.0);
        }
        if let Some((page, version)) = self.origin {
            to.u128(page.0);
            to.u64(version);
        }
        to.u16(u16::try_from(self.applied.len()).expect("bounded by whoever adds to it"));
        for (stream, sequence) in &self.applied {
            to.u64(stream.client);
            to.u64(stream.epoch);
            to.u64(*sequence);
        }
        if !self.followers.is_empty() {
            to.u16(u16::try_from(self.followers.len()).expect("no more than a collection has"));
            for follower in &self.followers {
                to.u128(follower.root.0);
                let (kind, of) = follower.by.to_parts();
                to.u8(kind);
                to.short(&of);
            }
        }
        match &self.entries {
            Entries::Leaf(slots) => {
                to.u32(slots.len() as u32);
                for slot in slots {
                    to.short(&slot.key);
                    to.u64(slot.stamp.clock);
                    to.u64(slot.stamp.client);
                    to.u64(slot.stamp.sequence);
                    match &slot.payload {
                        None => to.u8(0),
                        Some(Value::Here(payload)) => {
                            to.u8(1);
                            to.long(payload);
                        }
                        Some(Value::Blob(blob)) => {
                            to.u8(2);
                            to.raw(&blob.to_bytes());
                        }
                    }
                }
            }
            Entries::Inner(links) => {
                to.u32(links.len() as u32);
                for link in links {
                    to.short(&link.key);
                    to.u128(link.child.0);
                }
            }
        }
        to.finish()
    }

    /// Decodes a page. Its keys and payloads share the memory of `frame`.
    ///
    /// # Errors
    /// When the bytes are no page, were damaged, or hold what no page holds.
    pub fn decode(frame: &Bytes) -> Result<Page, FrameError> {
        let (mut from, version) = Reader::up_to(frame, MAGIC, PAGE_VERSION)?;
        let (kind, level, flags) = (from.u8()?, from.u8()?, from.u8()?);
        if kind > 1 || (kind == 0) != (level == 0) {
            return Err(from.field("leaves, and only leaves, have level 0"));
        }
        if level > LEVEL_MAX {
            return Err(from.field("a level that no tree has"));
        }
        if flags > DEAD | HIGH | RIGHT | ORIGIN | FOLLOWED {
            return Err(from.field("unknown flags"));
        }
        let has = |flag| flags & flag != 0;
        if has(FOLLOWED) && kind != 0 {
            return Err(from.field("indexes follow leaves"));
        }
        if has(HIGH) != has(RIGHT) {
            return Err(from.field("a page ends exactly where it has a right neighbour"));
        }
        let mut page = Page::root(PageId(from.u128()?));
        (page.level, page.dead) = (level, has(DEAD));
        page.version = from.u64()?;
        page.write_id = from.u128()?;
        page.checkpoint_ms = from.u64()?;
        if !is_number(page.version) || !is_number(page.checkpoint_ms) {
            return Err(from.field("a version or a time after which there is none"));
        }
        page.key_id = from.u32()?;
        page.low = from.short()?;
        if has(HIGH) {
            page.high = Some(from.short()?);
        }
        if !page.ends_after(&page.low) {
            return Err(from.field("the high fence is not above the low one"));
        }
        if has(RIGHT) {
            page.right = Some(PageId(from.u128()?));
        }
        if has(ORIGIN) {
            page.origin = Some((PageId(from.u128()?), from.u64()?));
        }
        for _ in 0..from.u16()? {
            let stream = Stream { client: from.u64()?, epoch: from.u64()? };
            if page.applied.last().is_some_and(|(last, _)| *last >= stream) {
                return Err(from.field("applied streams that do not rise"));
            }
            page.applied.push((stream, from.u64()?));
        }
        if has(FOLLOWED) {
            let count = usize::from(from.u16()?);
            if !(1..=INDEXES_MAX).contains(&count) {
                return Err(from.field("more indexes than a collection has"));
            }
            for _ in 0..count {
                let root = PageId(from.u128()?);
                let (kind, of) = (from.u8()?, from.short()?);
                let by = SearchBy::from_parts(kind, &of);
                let by = by.ok_or_else(|| from.field("no known kind of search key"))?;
                if !page.add_follower(&Follower { root, by }) {
                    return Err(from.field("an index that follows twice"));
                }
            }
        }
        let count = from.u32()? as usize;
        let each_min = if kind == 0 { SLOT_FIXED_BYTES } else { LINK_FIXED_BYTES };
        // Memory only for what can be there.
        if count > from.rest() / each_min {
            return Err(from.field("more entries than bytes"));
        }
        if page.dead && count > 0 {
            return Err(from.field("a dead page is empty"));
        }
        page.entries = if kind == 0 {
            let mut slots: Vec<Slot> = Vec::with_capacity(count);
            for _ in 0..count {
                let key = key(&mut from, &page, slots.last().map(|slot| &slot.key))?;
                let stamp =
                    Stamp { clock: from.u64()?, client: from.u64()?, sequence: from.u64()? };
                if !is_number(stamp.clock) {
                    return Err(from.field("a stamp after which there is none"));
                }
                let payload = match from.u8()? {
                    0 => None,
                    1 => Some(Value::Here(from.long()?)),
                    2 if version == PAGE_VERSION => {
                        let blob = Blob::from_bytes(&from.array()?);
                        Some(Value::Blob(blob.ok_or_else(|| from.field("no name of a blob"))?))
                    }
                    _ => return Err(from.field("neither payload nor tombstone")),
                };
                slots.push(Slot { key, stamp, payload });
            }
            Entries::Leaf(slots)
        } else {
            let mut links: Vec<Link> = Vec::with_capacity(count);
            for _ in 0..count {
                let key = key(&mut from, &page, links.last().map(|link| &link.key))?;
                links.push(Link { key, child: PageId(from.u128()?) });
            }
            Entries::Inner(links)
        };
        if version == PAGE_VERSION && !page.slots().iter().any(|slot| slot.blob().is_some()) {
            return Err(from.field("version 2 without a blob, which is version 1"));
        }
        from.done()?;
        Ok(page)
    }
}

fn key(from: &mut Reader, page: &Page, last: Option<&Bytes>) -> Result<Bytes, FrameError> {
    let key = from.short()?;
    if key.len() > SLOT_KEY_BYTES_MAX {
        return Err(from.field("a key that is too long"));
    }
    if last.is_some_and(|last| *last >= key) || !page.owns(&key) {
        return Err(from.field("keys that do not rise between the fences"));
    }
    Ok(key)
}

pub(crate) fn encoded_bytes(page: &Page) -> usize {
    let fences = page.low.len() + page.high.as_ref().map_or(0, |high| 2 + high.len());
    let links = 16 * usize::from(page.right.is_some()) + 24 * usize::from(page.origin.is_some());
    let follower_bytes = |it: &Follower| 16 + 1 + 2 + it.by.to_parts().1.len();
    let followers: usize = match page.followers.is_empty() {
        true => 0,
        false => 2 + page.followers.iter().map(follower_bytes).sum::<usize>(),
    };
    let entries: usize = match &page.entries {
        Entries::Leaf(slots) => slots.iter().map(slot_bytes).sum(),
        Entries::Inner(links) => links.iter().map(|link| LINK_FIXED_BYTES + link.key.len()).sum(),
    };
    FIXED_BYTES + fences + links + 24 * page.applied.len() + followers + entries
}

/// Bytes of one slot.
pub(crate) fn slot_bytes(slot: &Slot) -> usize {
    let payload = match &slot.payload {
        None => 0,
        Some(Value::Here(payload)) => 4 + payload.len(),
        Some(Value::Blob(_)) => REFERENCE_BYTES,
    };
    SLOT_FIXED_BYTES + slot.key.len() + payload
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers to which nothing can be added stopped whoever added to them.
    #[test]
    fn numbers_have_room_after_them() {
        let sound = Page::root(PageId(1));
        assert!(Page::decode(&sound.encode()).is_ok());
        let inner = |level| Page { level, entries: Entries::Inner(Vec::new()), ..sound.clone() };
        assert!(Page::decode(&inner(LEVEL_MAX).encode()).is_ok());
        let mut clocked = sound.clone();
        let stamp = Stamp { clock: u64::MAX, ..Stamp::default() };
        clocked.apply(&Bytes::from_static(b"k"), stamp, None);
        let pages = [
            Page { version: u64::MAX, ..sound.clone() },
            Page { checkpoint_ms: u64::MAX, ..sound.clone() },
            inner(u8::MAX),
            clocked,
        ];
        for page in pages {
            let decoded = Page::decode(&page.encode());
            assert!(matches!(decoded, Err(FrameError::Field { .. })), "{page:?}");
        }
    }

    /// What is wrong with the names of indexes is found, and what is right comes back.
    #[test]
    fn indexes_follow_leaves() {
        let follower = |root, by: &str| Follower { root: PageId(root), by: by.parse().unwrap() };
        let mut leaf = Page::root(PageId(1));
        for (root, by) in [(2, "payload"), (3, "part:,:7"), (4, "json:born")] {
            assert!(leaf.add_follower(&follower(root, by)));
            assert!(!leaf.add_follower(&follower(root, by)));
        }
        let frame = leaf.encode();
        assert_eq!(frame.len(), leaf.encoded_bytes());
        assert_eq!(Page::decode(&frame).unwrap(), leaf);
        leaf.dead = true;
        assert_eq!(Page::decode(&leaf.encode()).unwrap(), leaf);
        let many = (0..=INDEXES_MAX as u128).map(|root| follower(root, "payload")).collect();
        let twice = vec![follower(2, "payload"); 2];
        let wrong = [
            Page { followers: many, ..leaf.clone() },
            Page { followers: twice, ..leaf.clone() },
            Page { level: 1, entries: Entries::Inner(Vec::new()), dead: false, ..leaf.clone() },
        ];
        for page in wrong {
            let decoded = Page::decode(&page.encode());
            assert!(matches!(decoded, Err(FrameError::Field { .. })), "{decoded:?}");
        }
        // Kind, and what it needs.
        let mut short = Writer::new(MAGIC, PLAIN_VERSION);
        short.raw(&frame[5..frame.len() - 4]);
        assert_eq!(short.finish(), frame);
        let lies: [(&[u8], &[u8]); 2] =
            [(&[1, 0, 0], &[9, 0, 0]), (&[2, 3, 0, b','], &[2, 0, 0, 3])];
        for (of, with) in lies {
            let at = frame.windows(of.len()).rposition(|bytes| bytes == of).unwrap();
            let mut bytes = frame[5..frame.len() - 4].to_vec();
            bytes[at - 5..at - 5 + of.len()].copy_from_slice(with);
            let mut to = Writer::new(MAGIC, PLAIN_VERSION);
            to.raw(&bytes);
            let decoded = Page::decode(&to.finish());
            assert!(matches!(decoded, Err(FrameError::Field { .. })), "{decoded:?}");
        }
    }
}
