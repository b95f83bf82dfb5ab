//! Invariants that are looked at where they can be broken: at each change of the services.
//!
//! ```text
//!   3   a message or log object is let go of         its records are on their pages, in the store
//!   9   an object is deleted                         nothing leads to it, nothing on its way names it
//!       a page or a transaction arrives              what it leads to, or names, was not deleted
//!   5   a page is put over another one               its right neighbour is there
//! ```
//!
//! What only shows when everything has come to rest is checked there (see `check`). Here the moment
//! itself is judged, so that it takes no crash in the right place to see that two steps are in the
//! wrong order.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;

use crate::{
    blob::Blob,
    blob_id,
    catalog::Collection,
    client,
    cloud::model::{Auditor, Event, Scene},
    log::{
        Entry, Transaction,
        objects::{LogObject, decode, parse},
        transaction::Body,
    },
    names::{BLOBS, CATALOG, LOG, PAGES, QUARANTINE, SPILLED},
    page::{Page, PageId, Stream},
    sequence::{
        Numbers,
        codec::{NUMBERS, decode_data},
    },
    stamp::Stamp,
    tag::Tag,
};

/// Pages that one way through a tree may meet.
const HOPS_MAX: usize = 10_000;

/// Looks at every change of one run.
#[derive(Default)]
pub(super) struct Audit {
    /// Pages as they are, by their bytes.
    pages: HashMap<PageId, (Bytes, Option<Arc<Page>>)>,
    /// Records that were sent on to shards: tree, key, stamp.
    sent: HashSet<(PageId, Bytes, Stamp)>,
    /// Objects of transactions all of whose records were.
    sent_on: HashSet<String>,
    /// The greatest stamp of a tombstone that a page has shown of a key: it may be dropped since.
    buried: HashMap<Bytes, Stamp>,
    /// Pages that roots lead to, and blobs that leaves name; until a page or the catalogue changes.
    reached: Option<(HashSet<PageId>, HashSet<Stamp>)>,
}

impl Auditor for Audit {
    fn see(&mut self, event: &Event<'_>, there: &Scene<'_>) -> Option<(u8, String)> {
        match *event {
            Event::Sent { queue, body } => self.sent(queue, body, there),
            Event::Acknowledged { queue, body } => self.acknowledged(queue, body, there),
            Event::Freed { name } if name.starts_with(LOG) => self.freed(name, there),
            Event::Freed { .. } => None,
            // Sealed with another key, and nothing else: a page that others have is the same page.
            Event::Put { name, bytes, .. } if there.objects.bytes(name) == Some(bytes) => None,
            Event::Put { name, bytes, is_swap } if name.starts_with(PAGES) => {
                self.page_put(name, bytes, is_swap, there)
            }
            Event::Put { name, bytes, is_swap } if name.starts_with(LOG) => {
                // One that is emptied is let go of.
                let freed = if is_swap { self.freed(name, there) } else { None };
                freed.or_else(|| {
                    let entries = entries_of(name, bytes);
                    self.names_what_is_gone(name, &entries, there)
                })
            }
            Event::Put { name: NUMBERS, bytes, .. } => {
                let commits = waiting_blobs(bytes, there).into_iter();
                let mut gone = commits.filter(|(_, blob)| there.objects.is_gone(&blob.object(0)));
                let (number, _) = gone.next()?;
                Some((9, format!("commit {number} names a blob that was deleted")))
            }
            Event::Put { name, .. } => {
                if name.starts_with(CATALOG) {
                    self.reached = None;
                }
                None
            }
            Event::Deleted { name } if name.starts_with(PAGES) => self.page_deleted(name, there),
            Event::Deleted { name } if name.starts_with(LOG) => log_deleted(name, there),
            Event::Deleted { name } if name.starts_with(BLOBS) => self.blob_deleted(name, there),
            Event::Deleted { name } if name.starts_with(SPILLED) => self.spill_deleted(name, there),
            Event::Deleted { .. } => None,
        }
    }
}

/// The records of a log object; none of a fence or of noise.
fn entries_of(name: &str, bytes: &Bytes) -> Vec<Entry> {
    let Some((stream, number)) = parse(name) else { return Vec::new() };
    let Ok(LogObject::Transactions { frames, .. }) = decode(bytes, stream, number) else {
        return Vec::new();
    };
    frames.iter().filter_map(here).flat_map(|transaction| transaction.entries).collect()
}

fn here(frame: &Bytes) -> Option<Transaction> {
    match Transaction::decode(frame) {
        Ok(Body::Here(transaction)) => Some(transaction),
        _ => None,
    }
}

/// The blobs that commits of the sequencer name which are not on their pages, each with the commit's number.
fn waiting_blobs(numbers: &Bytes, there: &Scene<'_>) -> Vec<(u64, Blob)> {
    let Ok(numbers) = Numbers::decode(numbers) else { return Vec::new() };
    let mut blobs = Vec::new();
    for (number, commit) in numbers.waiting() {
        let writes = match &commit.object {
            None => commit.writes.to_vec(),
            Some((object, _)) => {
                let data = there.objects.bytes(object).and_then(|bytes| decode_data(bytes).ok());
                data.map_or(Vec::new(), |(_, writes)| writes)
            }
        };
        blobs.extend(writes.iter().filter_map(|write| Some((number, *write.blob()?))));
    }
    blobs
}

/// What a message says: its records, or those of the object that it names.
enum Said {
    Records(Vec<Entry>),
    /// That object is not there.
    Nowhere(String),
    Noise,
}

fn said(body: &Bytes, there: &Scene<'_>) -> Said {
    match Transaction::decode(body) {
        Ok(Body::Here(transaction)) => Said::Records(transaction.entries),
        Ok(Body::Spilled(_, object)) => match there.objects.bytes(&object) {
            Some(bytes) => {
                here(bytes).map_or(Said::Noise, |transaction| Said::Records(transaction.entries))
            }
            None => Said::Nowhere(object),
        },
        Err(_) => Said::Noise,
    }
}

fn is_in_quarantine(bytes: &Bytes, there: &Scene<'_>) -> bool {
    there.objects.with_prefix(QUARANTINE).any(|(_, aside)| aside == bytes)
}

fn show(entry: &Entry) -> String {
    format!("{} at {}", entry.leaf_key().escape_ascii(), entry.record.stamp)
}

impl Audit {
    fn page(&mut self, id: PageId, there: &Scene<'_>) -> Option<Arc<Page>> {
        let bytes = there.objects.bytes(&id.object())?;
        let is_same = |old: &Bytes| old.as_ptr() == bytes.as_ptr() && old.len() == bytes.len();
        if let Some((old, page)) = self.pages.get(&id)
            && is_same(old)
        {
            return page.clone();
        }
        let page = Page::decode(bytes).ok().map(Arc::new);
        self.pages.insert(id, (bytes.clone(), page.clone()));
        page
    }

    /// The leaf that owns a key now. `None` where there is no such tree.
    fn leaf(&mut self, root: PageId, key: &[u8], there: &Scene<'_>) -> Option<Arc<Page>> {
        let mut page = self.page(root, there)?;
        for _ in 0..HOPS_MAX {
            let next = if page.dead || !page.ends_after(key) {
                page.right.and_then(|right| self.page(right, there))?
            } else if page.level == 0 {
                return Some(page);
            } else {
                let links = page.links();
                let after =
                    links.partition_point(|link| &link.key[..] <= key).max(1).min(links.len());
                // A child that died and is gone is passed on the left, as readers do.
                let mut children = links[..after].iter().rev().map(|link| link.child);
                children.find_map(|child| self.page(child, there))?
            };
            page = next;
        }
        None
    }

    /// Whether the store shows a record, or what came after it.
    fn is_shown(&mut self, entry: &Entry, there: &Scene<'_>) -> bool {
        let (key, stamp) = (entry.leaf_key(), entry.record.stamp);
        if Tag::of_page(entry.tree).is_curated() {
            // It comes to no page by the log.
            let mut aside = there.objects.with_prefix(QUARANTINE).filter_map(|(_, it)| here(it));
            return aside.any(|transaction| transaction.entries.contains(entry));
        }
        let Some(leaf) = self.leaf(entry.tree, &key, there) else {
            // Of no tree: put aside.
            return there.objects.with_prefix(QUARANTINE).next().is_some();
        };
        match leaf.slot(&key) {
            Some(slot) => slot.stamp >= stamp,
            // It was deleted, and that is so long ago that nothing is left.
            None => self.buried.get(&key).is_some_and(|last| *last >= stamp),
        }
    }

    fn sent(&mut self, queue: &str, body: &Bytes, there: &Scene<'_>) -> Option<(u8, String)> {
        let entries = match said(body, there) {
            Said::Records(entries) => entries,
            // A message that came late, or again, names what is done with.
            Said::Nowhere(object) if self.sent_on.contains(&object) => return None,
            Said::Nowhere(object) => {
                return Some((9, format!("{queue}: a message names {object}, which is not there")));
            }
            Said::Noise => return None,
        };
        if queue.starts_with("pu-") {
            let name = |entry: &Entry| (entry.tree, entry.leaf_key(), entry.record.stamp);
            self.sent.extend(entries.iter().map(name));
        }
        self.names_what_is_gone(queue, &entries, there)
    }

    /// Invariant 3: of a queue.
    fn acknowledged(
        &mut self,
        queue: &str,
        body: &Bytes,
        there: &Scene<'_>,
    ) -> Option<(u8, String)> {
        let entries = match said(body, there) {
            Said::Records(entries) => entries,
            Said::Nowhere(object) if self.sent_on.contains(&object) => return None,
            Said::Nowhere(_) | Said::Noise => {
                return (!is_in_quarantine(body, there)).then(|| {
                    (3, format!("{queue}: noise is acknowledged, and was put aside by nobody"))
                });
            }
        };
        for entry in &entries {
            let name = (entry.tree, entry.leaf_key(), entry.record.stamp);
            let is_safe = !queue.starts_with("pu-") && self.sent.contains(&name);
            if !is_safe && !self.is_shown(entry, there) {
                let what = show(entry);
                return Some((3, format!("{queue}: {what} is acknowledged, and not on its page")));
            }
        }
        None
    }

    /// Whether a record is in its shard, or was.
    fn is_sent(&mut self, entry: &Entry, there: &Scene<'_>) -> bool {
        let name = (entry.tree, entry.leaf_key(), entry.record.stamp);
        self.sent.contains(&name) || self.is_shown(entry, there)
    }

    /// Invariant 9: of a transaction that is too large for a message.
    fn spill_deleted(&mut self, name: &str, there: &Scene<'_>) -> Option<(u8, String)> {
        let entries = there.objects.bytes(name).and_then(here)?.entries;
        let Some(lost) = entries.iter().find(|entry| !self.is_sent(entry, there)) else {
            self.sent_on.insert(name.to_owned());
            return None;
        };
        let is_it = |body: &Bytes| match Transaction::decode(body) {
            Ok(Body::Spilled(_, object)) => object == name,
            _ => false,
        };
        let is_named = there.queues.bodies().any(is_it);
        is_named.then(|| (9, format!("{name} is deleted, {} was not sent on", show(lost))))
    }

    /// Invariant 3: of a log object.
    fn freed(&mut self, name: &str, there: &Scene<'_>) -> Option<(u8, String)> {
        let bytes = there.objects.bytes(name)?.clone();
        let lost =
            entries_of(name, &bytes).into_iter().find(|entry| !self.is_shown(entry, there))?;
        Some((3, format!("{name}: {} is let go of, and not on its page", show(&lost))))
    }

    /// Invariants 5 and 9: what a page leads to is there.
    fn page_put(
        &mut self,
        name: &str,
        bytes: &Bytes,
        is_swap: bool,
        there: &Scene<'_>,
    ) -> Option<(u8, String)> {
        self.reached = None;
        let page = Page::decode(bytes).ok()?;
        for slot in page.slots().iter().filter(|slot| slot.payload.is_none()) {
            let last = self.buried.entry(slot.key.clone()).or_default();
            *last = (*last).max(slot.stamp);
        }
        // A page that is created is led to by nothing yet, and may come before its neighbours.
        let right = page.right.filter(|_| is_swap)?.object();
        if there.objects.bytes(&right).is_some() {
            return None;
        }
        Some(match there.objects.is_gone(&right) {
            true => (9, format!("{name} leads to {right}, which was deleted")),
            false => (5, format!("{name} leads to {right}, which is not there yet")),
        })
    }

    /// Everything that leads somewhere now.
    fn reach(&mut self, there: &Scene<'_>) -> (HashSet<PageId>, HashSet<Stamp>) {
        if let Some(reached) = &self.reached {
            return reached.clone();
        }
        let mut stack: Vec<PageId> = Vec::new();
        for (name, bytes) in there.objects.with_prefix(CATALOG) {
            let of = Collection::decode(name.trim_start_matches(CATALOG), bytes);
            let Ok(of) = of else { continue };
            stack.extend(of.indexes.iter().map(|index| index.root).chain([of.root]));
        }
        let (mut met, mut named) = (HashSet::new(), HashSet::new());
        while let Some(id) = stack.pop() {
            if !met.insert(id) {
                continue;
            }
            let Some(page) = self.page(id, there) else { continue };
            named.extend(page.slots().iter().filter_map(|slot| Some(slot.blob()?.stamp())));
            stack.extend(page.links().iter().map(|link| link.child).chain(page.right));
        }
        self.reached = Some((met.clone(), named.clone()));
        (met, named)
    }

    /// Invariant 9: of a page. A link of a parent to what died is no way to it: readers go past that.
    fn page_deleted(&mut self, name: &str, there: &Scene<'_>) -> Option<(u8, String)> {
        let id = PageId::of_object(name)?;
        let (met, _) = self.reach(there);
        let page = self.page(id, there)?;
        self.pages.remove(&id);
        (met.contains(&id) && !page.dead).then(|| (9, format!("{name} is deleted, and reachable")))
    }

    /// Invariant 9: of a blob.
    fn blob_deleted(&mut self, name: &str, there: &Scene<'_>) -> Option<(u8, String)> {
        let (stamp, blob_id::Name::Part(_)) = blob_id::parse(name)? else { return None };
        let (_, named) = self.reach(there);
        if named.contains(&stamp) {
            return Some((9, format!("{name} is deleted, and a leaf names it")));
        }
        if let Some(numbers) = there.objects.bytes(NUMBERS) {
            let mut waiting = waiting_blobs(numbers, there).into_iter();
            if let Some((number, _)) = waiting.find(|(_, blob)| blob.stamp() == stamp) {
                return Some((9, format!("{name} is deleted, and commit {number} is on no page")));
            }
        }
        let messages = there.queues.bodies().flat_map(|body| match said(body, there) {
            Said::Records(entries) => entries,
            Said::Nowhere(_) | Said::Noise => Vec::new(),
        });
        let objects = there.objects.with_prefix(LOG);
        let objects = objects.flat_map(|(name, bytes)| entries_of(name, bytes));
        let names = |entry: &Entry| entry.blob().is_some_and(|blob| blob.stamp() == stamp);
        let naming: Vec<Entry> = messages.chain(objects).filter(names).collect();
        let entry = naming.into_iter().find(|entry| !self.is_shown(entry, there))?;
        Some((9, format!("{name} is deleted, and {} is on its way", show(&entry))))
    }

    /// Invariant 9: nothing comes into the log that names what was deleted.
    fn names_what_is_gone(
        &mut self,
        place: &str,
        entries: &[Entry],
        there: &Scene<'_>,
    ) -> Option<(u8, String)> {
        let is_gone = |blob: &Blob| there.objects.is_gone(&blob.object(0));
        let entry = entries.iter().find(|it| it.blob().is_some_and(is_gone))?;
        if self.is_shown(entry, there) {
            return None;
        }
        Some((9, format!("{place}: {} names a blob that was deleted", show(entry))))
    }
}

/// Invariant 9: of a log object. The newest of a stream stays while its client may go on.
fn log_deleted(name: &str, there: &Scene<'_>) -> Option<(u8, String)> {
    let (stream, number) = parse(name)?;
    let Stream { client, epoch } = stream;
    let prefix = format!("{LOG}{client:016x}/{epoch:016x}/");
    let numbers: BTreeSet<u64> = there
        .objects
        .with_prefix(&prefix)
        .filter_map(|(name, _)| parse(name).map(|(_, number)| number))
        .collect();
    let is_newest = numbers.last().is_none_or(|last| *last <= number);
    let goes_on = there.objects.bytes(&client::object(client)).is_some();
    (is_newest && goes_on)
        .then(|| (9, format!("{name} is deleted, the newest of its stream: a zombie can take it")))
}
