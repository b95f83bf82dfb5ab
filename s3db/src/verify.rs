//! Every tree walked, every invariant of a store at rest checked.
//!
//! ```text
//!   trees       each level from left to right: fences meet, keys rise, links lead to pages that are
//!               there and begin where the link says, no circle
//!   pages       each one is in a tree, or an orphan that garbage collection will take
//!   blobs       each part of each blob that a record names is there, and is what was written
//!   log         each object decodes; its records are on their pages, or wait, and their blobs are there
//!   beside      transactions in objects, approvals, proposals, clients and claims are what their names say
//!   sequencer   it is there if a collection needs it, with all that waits in it, and no leaf has commits
//!               that it does not know
//! ```
//!
//! Others may work meanwhile: a page is checked as it is when it is read, and what changed between
//! two reads is read again before it counts as a problem.

mod beside; // what lies beside the trees and the log

use std::collections::HashSet;

use bytes::Bytes;

use crate::{
    blob::{Blob, Value},
    blob_id,
    catalog::Collection,
    checkpoint::fate::{Fate, fate},
    content::Content,
    error::{StoreError, with_cause},
    gc::NOBODY_NAMES,
    log::{Entry, Pending},
    names::{BLOBS, PAGES, QUARANTINE},
    page::{Page, PageId, Slot},
    sequence::{self, SequencerState},
    stamp::Stamp,
    store::Store,
    tag::Tag,
    tree::{Freshness, Nodes, search::search},
};

/// Problems that a report names; more are counted.
const PROBLEMS_MAX: usize = 100;
/// How often two pages that do not fit together are read again: someone may be at work.
const REREADS: u32 = 3;

/// What a check of a whole store found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Trees: one per collection and index.
    pub trees: u64,
    /// Pages that are part of a tree.
    pub pages: u64,
    /// Bytes of these pages.
    pub bytes: u64,
    /// Levels of the highest tree.
    pub levels: u64,
    /// Records on leaves, and entries of indexes.
    pub records: u64,
    /// Tombstones on leaves.
    pub tombstones: u64,
    /// Pages that nothing leads to: of splits that lost, or dead. Garbage collection takes them.
    pub orphans: u64,
    /// Blobs that records name.
    pub blobs: u64,
    /// Bytes in these.
    pub blob_bytes: u64,
    /// Blobs that no record names: of transactions that are not committed, or not on their pages yet,
    /// and of records that were written again. Garbage collection takes them when they are old.
    pub blob_orphans: u64,
    /// Records of the log, of approvals and of the sequencer that are not on their pages yet. Of queues, whose
    /// messages are not looked into: messages, each of which has up to all records of a commit.
    pub waiting: u64,
    /// The sequencer; `None` if no collection needs one.
    pub sequencer: Option<SequencerState>,
    /// Log objects and messages that are there, applied or not.
    pub log: u64,
    /// Records of the log that no page will show, the first hundred: of a tree that is not there, of records
    /// without versions where there are versions, or of a client that may not write there. A sweep puts them
    /// into quarantine, or has, and not let go of the log object yet.
    pub strays: Vec<String>,
    /// How many of these there are.
    pub stray_count: u64,
    /// Bodies in quarantine.
    pub quarantined: u64,
    /// What must not be, the first hundred.
    pub problems: Vec<String>,
    /// How many problems there are.
    pub problem_count: u64,
}

/// What there is, from lists and counts alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Pages, orphans included.
    pub pages: u64,
    /// Clients that have begun and are not forgotten.
    pub clients: u64,
    /// Log objects, or queues with messages in them.
    pub log: u64,
    /// Records of log objects, applied or not, or messages.
    pub waiting: u64,
    /// Bodies in quarantine.
    pub quarantined: u64,
    /// The sequencer; `None` if no collection needs one.
    pub sequencer: Option<SequencerState>,
}

impl Verified {
    fn problem(&mut self, what: String) {
        self.problem_count += 1;
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(what);
        }
    }

    fn stray(&mut self, entry: &Entry) {
        self.stray_count += 1;
        if self.strays.len() < PROBLEMS_MAX {
            let (key, tree) = (entry.leaf_key(), entry.tree);
            let client = entry.record.stamp.client;
            self.strays.push(format!(
                "record {} of tree {tree}, committed by client {client:016x}",
                key.escape_ascii()
            ));
        }
    }
}

impl Store {
    /// Checks everything. Reads every page and every log object, changes nothing. `progress` hears
    /// how many pages were read, of how many.
    ///
    /// # Errors
    /// Whatever the services say. What is damaged is a problem in the report, no error.
    pub async fn verify(&self, progress: impl Fn(u64, u64)) -> Result<Verified, StoreError> {
        let mut found = Verified::default();
        let mut met = HashSet::new();
        let listed = self.list_pages().await?;
        let blobs = self.list_blobs().await?;
        let mut named = HashSet::new();
        let (mut ahead, mut roots) = (None, Vec::new());
        for name in self.collections().await? {
            let collection = match self.peek_collection(&name).await {
                Ok(collection) => collection,
                Err(error @ (StoreError::Damaged { .. } | StoreError::Misled { .. })) => {
                    found.problem(error.to_string());
                    // Its pages are not lost, nor dropped: nobody knows which they are.
                    let tags = [false, true].map(|curated| Tag::of(&name, curated));
                    roots.extend(tags.map(|tag| tag.page(PageId(0))));
                    continue;
                }
                Err(error) => return Err(error),
            };
            let indexes = collection.indexes.iter().map(|index| (&index.name, index.root));
            let ready = collection.indexes.iter().filter(|it| it.is_ready && it.by.is_some());
            let mut ready: Vec<PageId> = ready.map(|index| index.root).collect();
            if collection.isolation.is_some() {
                // Leaves name none: the sequencer does.
                for root in std::mem::take(&mut ready) {
                    self.verify_named(&collection, root, &mut found).await?;
                }
            }
            for (tree, root) in std::iter::once((&name, collection.root)).chain(indexes) {
                found.trees += 1;
                roots.push(root);
                let followers = if root == collection.root { &ready[..] } else { &[] };
                let has_versions = collection.isolation.is_some();
                let ahead = has_versions.then_some(&mut ahead);
                let (met, named, found) = (&mut met, &mut named, &mut found);
                let mut walk =
                    Walk { store: self, tree, root, followers, ahead, met, named, found };
                walk.tree(root, &|pages| progress(pages, listed.len() as u64)).await?;
            }
        }
        let unmet = listed.iter().filter(|id| !met.contains(*id)).copied();
        for page in self.lost_collections(unmet, roots.into_iter()).await?.into_values() {
            found.problem(format!("page {page}: {NOBODY_NAMES}"));
        }
        found.orphans = listed.iter().filter(|id| !met.contains(*id)).count() as u64;
        found.blob_orphans = blobs.difference(&named).count() as u64;
        found.quarantined = self.count(QUARANTINE).await?;
        self.verify_log(&mut found).await?;
        self.verify_beside(&mut found).await?;
        self.verify_sequencer(ahead, &mut found).await?;
        Ok(found)
    }

    /// That the sequencer names an index that the catalogue says to be ready.
    async fn verify_named(
        &self,
        of: &Collection,
        root: PageId,
        found: &mut Verified,
    ) -> Result<(), StoreError> {
        match sequence::is_ready(self, of.root, root).await {
            Ok(true) => {}
            // Dropped since the collection was read.
            Ok(false) if !self.has_index(&of.name, root).await? => {}
            Ok(false) => {
                let index = of.indexes.iter().find(|index| index.root == root);
                let index = index.map_or("", |index| &index.name);
                let what = "is not named by the sequencer: build it again";
                found.problem(format!("{}: index {index} {what}", of.name));
            }
            // Told below.
            Err(StoreError::Lost { .. } | StoreError::Damaged { .. }) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// `ahead`: of all leaves, the one that has the newest commits.
    async fn verify_sequencer(
        &self,
        ahead: Option<(PageId, u64)>,
        found: &mut Verified,
    ) -> Result<(), StoreError> {
        found.sequencer = sequence::examine(self).await?;
        let Some(state) = &found.sequencer else { return Ok(()) };
        if let Some(what) = state.problem.clone() {
            found.problem(what);
            return Ok(());
        }
        let waiting = sequence::examine_data(self).await?;
        found.waiting += waiting.records;
        for (number, key, blob) in waiting.blobs {
            // Brought to its page since, and written again, perhaps.
            if let Some(error) = self.check_blob(&blob).await?
                && sequence::is_waiting(self, number).await?
            {
                let key = key.escape_ascii();
                found.problem(format!("sequencer: record {key}: {}", with_cause(&error)));
            }
        }
        if let Some(what) = waiting.problem {
            found.problem(what);
            return Ok(());
        }
        if let Some((page, complete)) = ahead {
            match sequence::is_behind(self, page, complete).await {
                Err(error @ StoreError::Tree { .. }) => found.problem(with_cause(&error)),
                outcome => outcome?,
            }
        }
        Ok(())
    }

    /// What there is now. A list per thousand pages, and a read of every log object.
    ///
    /// # Errors
    /// Whatever the services say.
    pub async fn status(&self) -> Result<Status, StoreError> {
        let clients = self.clients().await?;
        let mut now = Status {
            pages: self.count(PAGES).await?,
            clients: clients.len() as u64,
            quarantined: self.count(QUARANTINE).await?,
            sequencer: sequence::examine(self).await?,
            ..Status::default()
        };
        let mut after = None::<String>;
        loop {
            let part = self.log.pending(&clients, after.as_deref()).await?;
            for pending in part.found {
                now.log += 1;
                now.waiting += match pending {
                    Pending::Records(entries) => entries.len() as u64,
                    Pending::Messages(count) => count,
                    Pending::Damaged(_) => 0,
                };
            }
            after = part.next;
            if after.is_none() {
                return Ok(now);
            }
        }
    }

    async fn list_blobs(&self) -> Result<HashSet<Stamp>, StoreError> {
        let (mut blobs, mut after) = (HashSet::new(), None::<String>);
        loop {
            let part = self.list_after(BLOBS, after.as_deref()).await?;
            blobs.extend(part.names.iter().filter_map(|name| Some(blob_id::parse(name)?.0)));
            after = part.names.into_iter().next_back();
            if !part.more || after.is_none() {
                return Ok(blobs);
            }
        }
    }

    /// What is wrong with a blob, if anything is. Reads all of it, part by part.
    async fn check_blob(&self, blob: &Blob) -> Result<Option<StoreError>, StoreError> {
        let read = async {
            let value = Value::Blob(*blob);
            let Some(mut content) = Content::open(&self.cloud, &self.settings, value).await? else {
                return Err(StoreError::Lost { object: blob.object(0) });
            };
            while content.next().await?.is_some() {}
            Ok(())
        };
        match read.await {
            Ok(()) => Ok(None),
            Err(error @ (StoreError::Damaged { .. } | StoreError::Lost { .. })) => Ok(Some(error)),
            Err(error) => Err(error),
        }
    }

    /// The blob of a record that waits in the log.
    async fn verify_waiting(&self, entry: &Entry, found: &mut Verified) -> Result<(), StoreError> {
        let Some(blob) = entry.blob() else { return Ok(()) };
        let Some(error) = self.check_blob(blob).await? else { return Ok(()) };
        let settings = &self.settings;
        let age_us = settings.tombstone_age.as_micros() as u64 + settings.commit_age_us();
        if blob.stamp().clock < (self.pages.date_ms() * 1000).saturating_sub(age_us) {
            // It is in no log any more: the record went since that was read.
            return Ok(());
        }
        let key = entry.leaf_key();
        let now = search(&self.pages, entry.tree, &key, 0, Freshness::Newest).await;
        let now = now.ok().flatten().and_then(|leaf| Some(leaf.held.page.slot(&key)?.stamp));
        // Someone may have brought it to its page, or beaten it.
        if now.is_none_or(|now| now < entry.record.stamp) {
            let what = format!("log: record {}: {}", key.escape_ascii(), with_cause(&error));
            found.problem(what);
        }
        Ok(())
    }

    async fn verify_log(&self, found: &mut Verified) -> Result<(), StoreError> {
        let clients = self.clients().await?;
        let mut after = None::<String>;
        loop {
            let part = self.log.pending(&clients, after.as_deref()).await?;
            for pending in part.found {
                self.verify_pending(pending, found).await?;
            }
            after = part.next;
            if after.is_none() {
                return Ok(());
            }
        }
    }

    async fn verify_pending(
        &self,
        pending: Pending,
        found: &mut Verified,
    ) -> Result<(), StoreError> {
        found.log += 1;
        match pending {
            Pending::Records(entries) => {
                for entry in entries {
                    let key = entry.leaf_key();
                    let fate = fate(self, entry.tree, &key, entry.record.stamp).await;
                    match fate.unwrap_or(Fate::Waits) {
                        Fate::Shown => {}
                        Fate::PutAside => found.stray(&entry),
                        Fate::Waits => {
                            found.waiting += 1;
                            self.verify_waiting(&entry, found).await?;
                        }
                    }
                }
            }
            Pending::Messages(count) => found.waiting += count,
            Pending::Damaged(what) => found.problem(what),
        }
        Ok(())
    }
}

/// A walk over one tree.
struct Walk<'a> {
    store: &'a Store,
    tree: &'a str,
    root: PageId,
    /// Indexes that must follow its leaves.
    followers: &'a [PageId],
    /// Of a collection with isolation: the leaf that has the newest commits, of all so far.
    ahead: Option<&'a mut Option<(PageId, u64)>>,
    met: &'a mut HashSet<PageId>,
    /// Blobs that were met.
    named: &'a mut HashSet<Stamp>,
    found: &'a mut Verified,
}

impl Walk<'_> {
    async fn page(&mut self, id: PageId) -> Result<Option<Page>, StoreError> {
        match self.store.pages.node(id, Freshness::Newest).await {
            Ok(Some(held)) => Ok(Some((*held.page).clone())),
            Ok(None) => Ok(None),
            Err(error @ (StoreError::Damaged { .. } | StoreError::Tree { .. })) => {
                self.problem(id, &with_cause(&error));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn problem(&mut self, id: PageId, what: &str) {
        let tree = self.tree;
        self.found.problem(format!("{tree}: page {id}: {what}"));
    }

    async fn tree(&mut self, root: PageId, progress: &impl Fn(u64)) -> Result<(), StoreError> {
        let mut first = Some(root);
        let mut levels = 0;
        while let Some(id) = first {
            levels += 1;
            first = self.level(root, id, progress).await?;
        }
        self.found.levels = self.found.levels.max(levels);
        Ok(())
    }

    /// One level from its first page on. Returns the first page of the level below.
    async fn level(
        &mut self,
        root: PageId,
        first: PageId,
        progress: &impl Fn(u64),
    ) -> Result<Option<PageId>, StoreError> {
        let Some(mut page) = self.page(first).await? else {
            let what = "is the first of its level, and not there: restore its object from a copy";
            self.problem(first, what);
            return Ok(None);
        };
        let below = page.links().first().map(|link| link.child);
        if !page.low.is_empty() {
            self.problem(page.id, "is the first of its level, and does not begin at the beginning");
        }
        loop {
            if !self.met.insert(page.id) {
                self.problem(
                    page.id,
                    "was met before: right pointers form a circle, or trees share it",
                );
                return Ok(below);
            }
            self.look(&page).await?;
            progress(self.found.pages);
            let Some(right) = page.right else {
                if page.high.is_some() && !page.dead {
                    self.problem(page.id, "ends before the end, with nothing to the right");
                }
                return Ok(below);
            };
            match self.step(root, &page, right).await? {
                Some(next) => page = next,
                None => return Ok(below),
            }
        }
    }

    /// The page to the right, if the two fit together.
    async fn step(
        &mut self,
        root: PageId,
        page: &Page,
        right: PageId,
    ) -> Result<Option<Page>, StoreError> {
        let mut page = page.clone();
        let mut right = right;
        for reread in 0..=REREADS {
            let next = self.page(right).await?;
            let fits = match &next {
                None => false,
                Some(next) => {
                    // Who stands behind dead pages owns their keys, whether its header says so yet
                    // or not; a dead page itself owns nothing.
                    let meets = page.high.as_ref().is_some_and(|high| next.low == *high);
                    meets || page.dead || next.dead
                }
            };
            if fits || reread == REREADS {
                match &next {
                    None => self.problem(right, "is linked from the left, and not there"),
                    Some(next) if next.level != page.level => {
                        self.problem(right, "is of another level than its left neighbour");
                        return Ok(None);
                    }
                    Some(_) if !fits => {
                        let what = format!("does not begin where page {} ends", page.id);
                        self.problem(right, &what);
                    }
                    Some(_) => {}
                }
                return Ok(next);
            }
            // Someone may have split or unlinked between the two reads.
            let Some(again) = self.page(page.id).await? else { return Ok(None) };
            if again.level != page.level && again.id == root {
                return Ok(None);
            }
            let Some(there) = again.right else { return Ok(None) };
            (page, right) = (again, there);
        }
        Ok(None)
    }

    /// The blob of a record, part by part.
    async fn blob(&mut self, slot: &Slot) -> Result<(), StoreError> {
        let Some(blob) = slot.blob() else { return Ok(()) };
        self.named.insert(blob.stamp());
        self.found.blobs += 1;
        self.found.blob_bytes += blob.bytes();
        let Some(error) = self.store.check_blob(blob).await? else { return Ok(()) };
        // Someone may have written the record again, and collected what it held.
        let (pages, key) = (&self.store.pages, &slot.key);
        let now = search(pages, self.root, key, 0, Freshness::Newest).await?;
        if now.is_some_and(|leaf| leaf.held.page.slot(key) == Some(slot)) {
            let (tree, key) = (self.tree, key.escape_ascii());
            self.found.problem(format!("{tree}: record {key}: {}", with_cause(&error)));
        }
        Ok(())
    }

    /// What one page says about itself and its children.
    async fn look(&mut self, page: &Page) -> Result<(), StoreError> {
        self.found.pages += 1;
        self.found.bytes += page.encoded_bytes() as u64;
        let keys: Vec<&Bytes> = match page.level {
            0 => page.slots().iter().map(|slot| &slot.key).collect(),
            _ => page.links().iter().map(|link| &link.key).collect(),
        };
        if !keys.is_sorted_by(|a, b| a < b) {
            self.problem(page.id, "its keys do not rise");
        }
        if page.dead {
            if !page.slots().is_empty() {
                self.problem(page.id, "is dead, and holds records");
            }
            return Ok(());
        }
        if page.level == 0 {
            if let Some(ahead) = &mut self.ahead {
                match sequence::examine_leaf(page) {
                    Ok(complete) if ahead.is_none_or(|(_, most)| most < complete) => {
                        **ahead = Some((page.id, complete));
                    }
                    Ok(_) => {}
                    Err(what) => self.problem(page.id, what),
                }
            }
            let gone = page.slots().iter().filter(|slot| slot.payload.is_none()).count() as u64;
            self.found.tombstones += gone;
            self.found.records += page.slots().len() as u64 - gone;
            for slot in page.slots() {
                self.blob(slot).await?;
            }
            let is_named = |root: &PageId| page.followers.iter().any(|it| it.root == *root);
            if !self.followers.iter().all(is_named) {
                self.problem(page.id, "does not name an index that is ready: build it again");
            }
            // What is left of the low fence came by way of a dead neighbour.
            if keys.iter().any(|key| !page.ends_after(key)) {
                self.problem(page.id, "holds keys right of its fence");
            }
            return Ok(());
        }
        if page.links().is_empty() {
            self.problem(page.id, "is an inner page without children");
        }
        for link in page.links() {
            match self.store.pages.node(link.child, Freshness::Cached).await {
                // Deleted after it died; searches go around, and garbage collection unlinks it.
                Ok(None) | Err(StoreError::Damaged { .. } | StoreError::Tree { .. }) => {}
                Ok(Some(child)) if child.page.level + 1 != page.level => {
                    self.problem(page.id, &format!("its child {} is of a wrong level", link.child));
                }
                Ok(Some(child)) if child.page.low > link.key && !child.page.dead => {
                    let what = format!("its child {} begins after the link", link.child);
                    self.problem(page.id, &what);
                }
                Ok(Some(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
