//! Pages that nothing leads to: found, made safe to delete, deleted.
//!
//! ```text
//!   settle    sweep, so that no log record older than the tombstones to go can still arrive
//!   tidy      left to right over the leaves: prune tombstones, bury empty leaves, unlink the dead, forget
//!             indexes that were dropped
//!   collect   1  walk all trees, list all pages: candidates are old and not met
//!             2  touch the page that a candidate was split from, if it is still that version
//!             3  walk again: delete what is still not met, if it is still the version that was seen
//! ```
//!
//! Blobs are collected by the same walk: what was listed before it and no leaf names, and is so old that
//! nothing in the log, and no client that may still commit, can name it. A client commits no record that
//! names a blob older than half of what a tombstone stays ([`Settings::commit_age_us`]), and what is in the log is
//! younger than a tombstone stays, or no blob goes (`horizon_us`): so a blob that is older than both
//! together is named by leaves alone, and by what lies in quarantine, which keeps it. What isolated transactions
//! have committed waits in the sequencer instead: what that names is asked for after blobs were listed and before
//! the leaves are read, in such a way that nobody who read it before can commit any more (`sequence::named`). While
//! a page is missing none goes. Nothing that is put again keeps it: names of blobs are in no other page, and its name is
//! used once.
//!
//! Whoever reads an old blob when its record is written again has its time: what is found to be named by
//! nobody is marked, by an object beside it whose name has the date, and goes `grace` after that.
//!
//! Transactions that lie in objects, too large for a message, are deleted by who sends them on. What is left of
//! commits that were given up, and of deletes that failed, goes when it is as old as an unnamed blob: no message
//! that waits can name it, and no client that may still commit.
//!
//! Two things must not happen. A page must not go while a cached copy of another still leads to it:
//! so a candidate's last put is older than any cache and any scan (`grace`), and a reader that meets
//! a hole reads the newest parent. And a page must not go that a stalled client is about to link:
//! that client needs the version of the page that it split, so step 2 puts another one. Whoever has
//! linked it before step 2 is met by the walk of step 3.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt as _, stream};

use crate::{
    blob::{self, Line},
    blob_id,
    catalog::Backend,
    client,
    cloud::{Delete, ETag, PutIf},
    error::StoreError,
    fail_point::{FailPoint, reached},
    inspect::Inspected,
    names::{BLOBS, QUARANTINE, SPILLED, parse_spilled},
    page::{Entries, Page, PageId},
    sequence,
    settings::{Rule, Settings},
    stamp::Stamp,
    store::Store,
    tag::Tag,
    tree::{Freshness, Held, Nodes, Swap, update::update},
};

/// What is said of pages that cannot be known to be garbage.
pub(crate) const NOBODY_NAMES: &str = "is of a collection that the catalogue does not name, and that nobody dropped: \
                                       restore its entry in catalog/ from a copy, or drop the collection by its name";

/// Blobs that go together, and objects of each of them.
const BLOBS_AT_ONCE: usize = 4;
const OBJECTS_AT_ONCE: usize = 8;

/// What was tidied and collected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Tombstones that were dropped.
    pub pruned: u64,
    /// Empty leaves that died.
    pub buried: u64,
    /// Dead leaves that nothing leads to any more.
    pub unlinked: u64,
    /// Leaves that named an index which was dropped, and do not any more.
    pub unfollowed: u64,
    /// Pages that were put again, so that nobody can link what is to be deleted.
    pub touched: u64,
    /// Pages that were deleted.
    pub deleted: u64,
    /// Pages that may go next time.
    pub waiting: u64,
    /// Clients that wrote nothing for longer than a tombstone stays, and are forgotten.
    pub retired: u64,
    /// Blobs that no record names and no transaction can name any more, which were deleted.
    pub blobs: u64,
    /// Blobs that no record names yet, or no longer, which may go when they are older, or were found to be
    /// named by nobody long enough ago.
    pub blobs_waiting: u64,
    /// Lives of such clients whose log objects were deleted.
    pub log: u64,
    /// Versions of records that no snapshot sees any more, which were dropped.
    pub versions: u64,
    /// Objects of transactions that were too large for a message, which no message can name any more, that were
    /// deleted.
    pub spilled: u64,
    /// Objects with what transactions write, which no commit names any more, that were deleted.
    pub data: u64,
}

impl Store {
    /// Prunes, buries and unlinks in all trees, then deletes what nothing leads to and was last put
    /// more than `grace` ago. Any process may do it at any time.
    ///
    /// `grace` must be longer than the TTL of any client's cache and than its longest scan. A blob goes when
    /// it was found to be named by nobody more than `grace` before: in two calls at the earliest, unless
    /// `grace` is zero.
    ///
    /// # Errors
    /// The first error. A tree or a part of the log that cannot be read is not in the way of the
    /// others; nothing is deleted while any page cannot be read or is not there, since it may lead to
    /// anything.
    pub async fn collect_garbage(&self, grace: Duration) -> Result<Collected, StoreError> {
        let mut done = Collected::default();
        // Before what waits is brought to its pages: nothing comes to those of a dropped index after that.
        let mut outcome = sequence::forget_dropped(self).await;
        let trees = self.trees().await?;
        let horizon_us = self.horizon_us().await.unwrap_or_else(|error| {
            outcome = Err(error);
            0
        });
        reached(&self.cloud, FailPoint::Settled).await;
        let mut tidied = Ok(());
        for tree in &trees {
            tidied = tidied.and(tree.tidy(self, horizon_us, &mut done).await);
        }
        if tidied.is_ok() {
            outcome = outcome.and(collect(self, grace, horizon_us, &mut done).await);
        }
        outcome = outcome.and(tidied);
        if horizon_us > 0 && self.database().backend != Backend::S3Log {
            let before_us = horizon_us.saturating_sub(self.settings.commit_age_us());
            match collect_spilled(self, before_us).await {
                Ok(count) => done.spilled += count,
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        for client in self.clients().await? {
            let is_over = client::retire(&self.cloud, &self.settings, client, horizon_us).await?;
            done.retired += u64::from(is_over);
        }
        done.log += self.log.retire().await?;
        if sequence::find(self).await?.is_some() {
            done.data += sequence::collect(self).await?;
        }
        outcome.map(|()| done)
    }

    /// Tombstones of writes before this may go: nothing as old is in the log any more.
    pub(crate) async fn horizon_us(&self) -> Result<u64, StoreError> {
        self.certain_date_ms().await?;
        self.sweep().await?;
        let age_us = self.settings.tombstone_age.as_micros() as u64;
        let horizon_us = (self.certain_date_ms().await? * 1000).saturating_sub(age_us);
        let empties_first = self.settings.rules.hold(Rule::EmptyFirst);
        Ok(if !empties_first || self.log.settle(horizon_us).await? { horizon_us } else { 0 })
    }

    /// All trees, as the catalogue has them. No root is put here: one that is not there may be lost.
    async fn trees(&self) -> Result<Vec<Tree>, StoreError> {
        let mut trees = Vec::new();
        for name in self.collections().await? {
            let of = self.peek_collection(&name).await?;
            let has_root = of.has_root;
            let has_versions = of.isolation.is_some();
            trees.push(Tree { root: of.root, has_root, records_of: Some(name), has_versions });
            let indexes = of.indexes.iter();
            trees.extend(indexes.map(|it| Tree {
                root: it.root,
                has_root: it.is_ready,
                records_of: None,
                has_versions,
            }));
        }
        Ok(trees)
    }
}

struct Tree {
    root: PageId,
    /// The root was put once. One that is not there is lost.
    has_root: bool,
    /// The collection whose records it holds; `None` for an index.
    records_of: Option<String>,
    /// Its leaves hold versions. None of them dies: what a leaf says of the commits that it has is not
    /// true of the keys of another.
    has_versions: bool,
}

impl Tree {
    async fn tidy(
        &self,
        store: &Store,
        horizon_us: u64,
        done: &mut Collected,
    ) -> Result<(), StoreError> {
        if newest(store, self.root).await?.is_none() {
            return self.lacks_root();
        }
        if self.has_versions {
            done.versions += sequence::tidy(store, self.root).await?;
            return Ok(());
        }
        tidy(store, self, horizon_us, done).await
    }

    /// What it means that the root is not there.
    fn lacks_root(&self) -> Result<(), StoreError> {
        match &self.records_of {
            _ if self.has_root => Err(StoreError::Lost { object: self.root.object() }),
            // Whoever creates it is about to put the root; or a program that does not write down that it
            // was put did so, and it is lost.
            Some(name) => Err(StoreError::Invalid(format!(
                "collection {name} has no root yet: create it again, then garbage can be collected; or, \
                 if it has had records, restore object {} from a copy before",
                self.root.object()
            ))),
            // An index that is being built: what it had is put again.
            None => Ok(()),
        }
    }
}

async fn newest(store: &Store, id: PageId) -> Result<Option<Held>, StoreError> {
    store.pages.node(id, Freshness::Newest).await
}

/// What is left of a leaf.
enum Left {
    /// Nothing: only its parent leads to it.
    None,
    Live(Held),
    /// Something that was changed on the way here.
    Changed,
}

/// The first leaf of a tree, dead or alive.
async fn leftmost(store: &Store, root: PageId) -> Result<PageId, StoreError> {
    let mut id = root;
    // As deep as levels can be counted.
    for _ in 0..=u8::MAX {
        let Some(held) = newest(store, id).await? else { break };
        match held.page.links().first() {
            Some(link) => id = link.child,
            None => return Ok(id),
        }
    }
    Err(StoreError::Tree { page: id, what: "is no way to the first leaf" })
}

/// One walk over the leaves of a tree.
async fn tidy(
    store: &Store,
    tree: &Tree,
    horizon_us: u64,
    done: &mut Collected,
) -> Result<(), StoreError> {
    let (pages, root) = (&store.pages, tree.root);
    let mut named = Named::default();
    let mut before = Left::None;
    let mut next = Some(leftmost(store, root).await?);
    let mut met = HashSet::new();
    while let Some(id) = next {
        if !met.insert(id) {
            return Err(StoreError::Tree { page: id, what: "right pointers form a circle" });
        }
        let Some(held) = newest(store, id).await? else {
            return Err(StoreError::Lost { object: id.object() });
        };
        next = held.page.right;
        if held.page.dead {
            let is_out = unlink(store, root, &before, &held).await?;
            done.unlinked += u64::from(is_out);
            before = match before {
                Left::None if is_out => Left::None,
                // It was put again, or will be: it is met in its newest version next time.
                _ => Left::Changed,
            };
            continue;
        }
        let mut page = (*held.page).clone();
        let pruned = page.prune(horizon_us) as u64;
        let has_forgotten = named.tidy(store, tree, &mut page).await?;
        let mut is_empty = page.slots().is_empty() && page.id != root;
        if is_empty {
            is_empty = is_inherited(store, &page).await?;
        }
        if is_empty {
            page.dead = true;
            page.applied.clear();
        }
        if pruned > 0 || is_empty || has_forgotten {
            if let Swap::Done = pages.replace(&held, page).await? {
                done.pruned += pruned;
                done.unfollowed += u64::from(has_forgotten);
                done.buried += u64::from(is_empty);
                if is_empty {
                    reached(&store.cloud, FailPoint::Buried).await;
                }
            }
            before = Left::Changed;
            continue;
        }
        before = Left::Live(held);
    }
    Ok(())
}

/// Indexes that leaves name.
#[derive(Default)]
struct Named {
    there: HashSet<PageId>,
    /// Dropped: for good, since a name is used once.
    gone: HashSet<PageId>,
}

impl Named {
    /// Takes out of a leaf the names of indexes that were dropped, after which it was not put again, or that
    /// somebody was still building. Whether there are any.
    ///
    /// An index is in the catalogue before any leaf names it. So what is not there, read after the leaf, was
    /// dropped. Its root goes before the first leaf does not name it any more: else whoever probes it, with a
    /// handle of before, would miss what comes to that leaf, and not be told.
    async fn tidy(
        &mut self,
        store: &Store,
        tree: &Tree,
        page: &mut Page,
    ) -> Result<bool, StoreError> {
        let Some(name) = &tree.records_of else { return Ok(false) };
        let is_known = |root: &PageId| self.there.contains(root) || self.gone.contains(root);
        let mut roots: Vec<PageId> = page.followers.iter().map(|follower| follower.root).collect();
        roots.retain(|root| !is_known(root));
        if !roots.is_empty() {
            let of = store.peek_collection(name).await?;
            if of.root != tree.root {
                // Dropped meanwhile, and made again.
                return Ok(false);
            }
            self.there.extend(of.indexes.iter().map(|index| index.root));
            for root in roots.into_iter().filter(|root| !self.there.contains(root)) {
                // Nobody names it so but who wants it gone.
                if store.has_tree(root).await? {
                    let what = "names the root of another collection as that of an index: restore it from a \
                                copy";
                    return Err(StoreError::Tree { page: page.id, what });
                }
                store.let_go(&root.object()).await?;
                self.gone.insert(root);
            }
        }
        Ok(page.forget_followers(|root| self.gone.contains(&root)))
    }
}

/// Whether the right neighbour of a leaf may own its keys: it is there, and followed by every index
/// that follows the leaf. Else records would come to those keys behind the back of who builds one.
async fn is_inherited(store: &Store, page: &Page) -> Result<bool, StoreError> {
    let Some(right) = page.right else { return Ok(false) };
    if page.followers.is_empty() {
        return Ok(true);
    }
    let Some(heir) = newest(store, right).await? else { return Ok(false) };
    Ok(page.followers.iter().all(|follower| heir.page.followers.contains(follower)))
}

/// Takes a dead leaf out of the tree: its right neighbour says that it owns the keys, its left one
/// points past it, its parent forgets it. Each step is right without the next. Returns whether all
/// of them are done.
async fn unlink(
    store: &Store,
    root: PageId,
    before: &Left,
    dead: &Held,
) -> Result<bool, StoreError> {
    let pages = &store.pages;
    let (id, low) = (dead.page.id, dead.page.low.clone());
    let Some(right) = dead.page.right else { return Ok(false) };
    let Some(heir) = newest(store, right).await? else { return Ok(false) };
    if heir.page.dead {
        // The heir goes first: the walk comes to it next.
        return Ok(false);
    }
    let mut forget = |page: &mut Page| forget(page, id, right);
    // In another order only where a test asks what the order is there for.
    let is_heir_first = pages.rules().hold(Rule::HeirFirst);
    if !is_heir_first {
        update(pages, root, 1, &low, &mut forget).await?;
        reached(&store.cloud, FailPoint::Forgotten).await;
    }
    if heir.page.low > low {
        let mut page = (*heir.page).clone();
        page.low = low.clone();
        if !matches!(pages.replace(&heir, page).await?, Swap::Done) {
            return Ok(false);
        }
        reached(&store.cloud, FailPoint::Inherited).await;
    }
    if is_heir_first {
        update(pages, root, 1, &low, &mut forget).await?;
        reached(&store.cloud, FailPoint::Forgotten).await;
    }
    let before = match before {
        Left::None => return Ok(true),
        Left::Changed => return Ok(false),
        Left::Live(before) => before,
    };
    if before.page.right != Some(id) {
        return Ok(false);
    }
    let mut page = (*before.page).clone();
    page.right = Some(right);
    Ok(matches!(pages.replace(before, page).await?, Swap::Done))
}

/// Removes the links of a page to `gone`. Its lowest link always stays, to lead somewhere.
fn forget(page: &mut Page, gone: PageId, heir: PageId) -> bool {
    let Entries::Inner(links) = &mut page.entries else { return false };
    let had = links.clone();
    let low = page.low.clone();
    links.retain(|link| link.child != gone || link.key <= low);
    links.iter_mut().filter(|link| link.child == gone).for_each(|link| link.child = heir);
    *links != had
}

/// Everything that leads somewhere.
struct Walk {
    met: HashSet<PageId>,
    /// Stamps of blobs that leaves name, of those that were asked for.
    blobs: HashSet<Stamp>,
    /// Links to pages that are not there: parent's level, key, child.
    dangling: Vec<(PageId, u8, Bytes, PageId)>,
    /// A right neighbour that is not there: it is lost, and nobody knows what it named.
    hole: Option<PageId>,
    /// Others unlinked and deleted pages meanwhile: something may not have been met.
    is_torn: bool,
}

/// What led to a page.
enum Way {
    Root,
    /// Its left neighbour.
    Left(PageId),
    /// A parent of this level, by this key.
    Parent(u8, Bytes),
}

async fn walk(store: &Store, trees: &[Tree], blobs: &Blobs) -> Result<Walk, StoreError> {
    let (met, blobs_met, dangling) = Default::default();
    let mut walk = Walk { met, blobs: blobs_met, dangling, hole: None, is_torn: false };
    for tree in trees {
        let root = tree.root;
        let mut stack = vec![(root, Way::Root)];
        while let Some((id, way)) = stack.pop() {
            if walk.met.contains(&id) {
                continue;
            }
            let Some(held) = newest(store, id).await? else {
                match way {
                    Way::Root => tree.lacks_root()?,
                    Way::Parent(level, key) => walk.dangling.push((root, level, key, id)),
                    // Read long ago, perhaps: what it led to may have died since, and be gone.
                    Way::Left(left) => match newest(store, left).await? {
                        Some(left) if left.page.right == Some(id) => walk.hole = Some(id),
                        Some(now) => {
                            stack.extend(now.page.right.map(|right| (right, Way::Left(left))));
                        }
                        None => walk.is_torn = true,
                    },
                }
                continue;
            };
            walk.met.insert(id);
            let named = held.page.slots().iter().filter_map(|slot| Some(slot.blob()?.stamp()));
            walk.blobs.extend(named.filter(|stamp| blobs.has(stamp)));
            stack.extend(held.page.right.map(|right| (right, Way::Left(id))));
            for link in held.page.links() {
                stack.push((link.child, Way::Parent(held.page.level, link.key.clone())));
            }
        }
    }
    Ok(walk)
}

async fn collect(
    store: &Store,
    grace: Duration,
    horizon_us: u64,
    done: &mut Collected,
) -> Result<(), StoreError> {
    let pages = &store.pages;
    let grace = if store.settings.rules.hold(Rule::Grace) { grace } else { Duration::ZERO };
    let blobs = Blobs::list(store, oldest_us(&store.settings, horizon_us)).await?;
    // 1. The list comes before the walk: what is created after it is no candidate. And before the
    // catalogue is read, which names every root before it is put: a tree of which any page is
    // listed is walked, whenever it was created.
    let listed = store.list_pages().await?;
    let trees = &store.trees().await?;
    // What these do not name, since it was dropped a moment ago, nobody commits to any more.
    sequence::forget_dropped(store).await?;
    // What commits of the sequencer name is there now, or on the leaves that are read after that.
    let in_window = match !blobs.old.is_empty() && store.settings.rules.hold(Rule::BlobInWindow) {
        true => sequence::named(store).await?,
        false => HashSet::new(),
    };
    let mut first = walk(store, trees, &blobs).await?;
    first.blobs.extend(in_window);
    // What is lost may be restored, with all that it led to.
    if let Some(lost) = first.hole {
        return Err(StoreError::Lost { object: lost.object() });
    }
    // So may the entry of a collection, with all that has its tag.
    let unmet = listed.iter().filter(|id| !first.met.contains(id)).copied();
    let lost = store.lost_collections(unmet, trees.iter().map(|tree| tree.root)).await?;
    // A link may lead to what died and is gone, or to what is lost: it is forgotten below, and the next
    // time tells.
    let is_whole = first.dangling.is_empty() && !first.is_torn && lost.is_empty();
    blobs.collect(store, &first.blobs, is_whole, grace, done).await?;
    if first.is_torn {
        return Ok(());
    }
    // In an order, so that the same seed is the same run, and parents before their children: what somebody still
    // has of a tree that was dropped ends where its root is not there, if this is cut.
    let mut candidates: BTreeMap<(Reverse<u8>, PageId), ETag> = BTreeMap::new();
    let oldest_ms = store.certain_date_ms().await?.saturating_sub(grace.as_millis() as u64);
    let mut origins = HashSet::new();
    let is_of_lost = |id: &PageId| lost.contains_key(&Tag::of_page(*id));
    for id in listed.into_iter().filter(|id| !first.met.contains(id) && !is_of_lost(id)) {
        let Some(held) = newest(store, id).await? else { continue };
        if held.page.checkpoint_ms > oldest_ms {
            done.waiting += 1;
            continue;
        }
        // 2. Whoever split the origin in this version can still link the candidate.
        if store.settings.rules.hold(Rule::TouchOrigin)
            && let Some((origin, version)) = held.page.origin
            && origins.insert((origin, version))
            && let Some(there) = newest(store, origin).await?
            && there.page.version <= version
        {
            let page = (*there.page).clone();
            match pages.replace(&there, page).await? {
                Swap::Done => {
                    done.touched += 1;
                    reached(&store.cloud, FailPoint::Touched).await;
                }
                // Another version is there by now, which is all that is wanted.
                Swap::Lost | Swap::Unclear => {}
            }
        }
        candidates.insert((Reverse(held.page.level), id), held.etag);
    }
    for (root, level, key, child) in first.dangling {
        let mut forget = |page: &mut Page| {
            let Entries::Inner(links) = &mut page.entries else { return false };
            let had = links.len();
            links.retain(|link| link.child != child || link.key <= page.low);
            links.len() < had
        };
        update(pages, root, level, &key, &mut forget).await?;
    }
    let outcome = match lost.values().next() {
        Some(page) => Err(StoreError::Tree { page: *page, what: NOBODY_NAMES }),
        None => Ok(()),
    };
    if candidates.is_empty() {
        return outcome;
    }
    // 3
    let second = walk(store, trees, &Blobs::default()).await?;
    if let Some(lost) = second.hole {
        return Err(StoreError::Lost { object: lost.object() });
    }
    if second.is_torn {
        done.waiting += candidates.len() as u64;
        return outcome;
    }
    for ((_, id), etag) in candidates {
        if second.met.contains(&id) {
            continue;
        }
        match store.cloud.objects.delete(&id.object(), Some(&etag)).await {
            Delete::Gone => {
                done.deleted += 1;
                reached(&store.cloud, FailPoint::Deleted).await;
            }
            // Next time.
            _ => done.waiting += 1,
        }
    }
    outcome
}

/// Deletes spilled transactions whose stamps are from before this. Nobody puts one again.
async fn collect_spilled(store: &Store, before_us: u64) -> Result<u64, StoreError> {
    let (mut gone, mut after) = (0, None::<String>);
    loop {
        let part = store.list_after(SPILLED, after.as_deref()).await?;
        let is_old = |name: &&String| parse_spilled(name).is_some_and(|it| it.clock < before_us);
        let old: Vec<String> = part.names.iter().filter(is_old).cloned().collect();
        // What fails goes the next time.
        let each = stream::iter(old).map(|name| async move {
            store.cloud.objects.delete(&name, None).await == Delete::Gone
        });
        let mut each = each.buffer_unordered(OBJECTS_AT_ONCE);
        while let Some(is_gone) = each.next().await {
            gone += u64::from(is_gone);
        }
        after = part.names.into_iter().next_back();
        if !part.more || after.is_none() {
            return Ok(gone);
        }
    }
}

/// Blobs begun before this, microseconds since 1970, can be named by leaves alone.
fn oldest_us(settings: &Settings, horizon_us: u64) -> u64 {
    let (rules, age_us) = (settings.rules, settings.tombstone_age.as_micros() as u64);
    match (rules.hold(Rule::BlobAge), rules.hold(Rule::BlobInLog)) {
        (false, _) => u64::MAX,
        // Half of one and a half.
        (true, false) => horizon_us.saturating_add(age_us / 4),
        (true, true) => horizon_us.saturating_sub(settings.commit_age_us()),
    }
}

/// Blobs that are there.
#[derive(Default)]
struct Blobs {
    /// Those that are old enough to go.
    old: BTreeMap<Stamp, Listed>,
    young: HashSet<Stamp>,
}

/// What there is of a blob.
#[derive(Default)]
struct Listed {
    /// The last of its parts.
    last: Option<u32>,
    /// Since when nobody names it, by each who did not find that somebody had found out.
    marks: Vec<u64>,
}

impl Blobs {
    async fn list(store: &Store, oldest_us: u64) -> Result<Blobs, StoreError> {
        let mut blobs = Blobs::default();
        let mut after: Option<String> = None;
        loop {
            let part = store.list_after(BLOBS, after.as_deref()).await?;
            for (stamp, name) in part.names.iter().filter_map(|name| blob_id::parse(name)) {
                if stamp.clock >= oldest_us {
                    blobs.young.insert(stamp);
                    continue;
                }
                let listed = blobs.old.entry(stamp).or_default();
                match name {
                    blob_id::Name::Part(number) => listed.last = listed.last.max(Some(number)),
                    blob_id::Name::Unnamed(since_ms) => listed.marks.push(since_ms),
                }
            }
            after = part.names.into_iter().next_back();
            if !part.more || after.is_none() {
                return Ok(blobs);
            }
        }
    }

    fn has(&self, stamp: &Stamp) -> bool {
        self.old.contains_key(stamp) || self.young.contains(stamp)
    }

    /// Deletes those that nobody names, by a walk that came after they were listed. Without `is_whole` it
    /// missed something.
    async fn collect(
        self,
        store: &Store,
        named: &HashSet<Stamp>,
        is_whole: bool,
        grace: Duration,
        done: &mut Collected,
    ) -> Result<(), StoreError> {
        let is_unnamed = |stamp: &&Stamp| !named.contains(*stamp);
        done.blobs_waiting += self.young.iter().filter(is_unnamed).count() as u64;
        if !is_whole {
            done.blobs_waiting += self.old.keys().filter(is_unnamed).count() as u64;
            return Ok(());
        }
        let (kept, old): (Vec<_>, Vec<_>) =
            self.old.into_iter().partition(|(stamp, _)| named.contains(stamp));
        if old.is_empty() && kept.iter().all(|(_, listed)| listed.marks.is_empty()) {
            return Ok(());
        }
        // The page that names them was put back: they are to have their time again.
        for (stamp, listed) in kept {
            delete(store, listed.marks_of(stamp)).await;
        }
        let quarantined = &quarantined(store).await?;
        let now_ms = store.certain_date_ms().await?;
        let grace_ms = match store.settings.rules.hold(Rule::BlobAge) {
            true => grace.as_millis() as u64,
            false => 0,
        };
        let each = stream::iter(old).map(|(stamp, listed)| async move {
            if quarantined.contains(&stamp) {
                return false;
            }
            let since_ms = listed.marks.iter().copied().min();
            if now_ms.saturating_sub(since_ms.unwrap_or(now_ms)) >= grace_ms {
                return listed.delete(store, stamp).await;
            }
            if since_ms.is_none() {
                // Without success it begins to wait the next time.
                let mark = blob_id::mark(stamp, now_ms);
                store.cloud.objects.put(&mark, Bytes::new(), PutIf::Absent).await;
                reached(&store.cloud, FailPoint::Marked).await;
            }
            false
        });
        let mut each = each.buffer_unordered(BLOBS_AT_ONCE);
        while let Some(is_gone) = each.next().await {
            *(if is_gone { &mut done.blobs } else { &mut done.blobs_waiting }) += 1;
        }
        Ok(())
    }
}

impl Listed {
    /// Deletes what there is. What stays goes the next time.
    async fn delete(&self, store: &Store, stamp: Stamp) -> bool {
        let parts = 0..self.last.map_or(0, |last| last + 1);
        let parts = parts.map(|part| blob_id::object(stamp, part)).collect();
        // While there are parts it is known since when.
        if !delete(store, parts).await {
            return false;
        }
        reached(&store.cloud, FailPoint::Unparted).await;
        delete(store, self.marks_of(stamp)).await
    }

    fn marks_of(&self, stamp: Stamp) -> Vec<String> {
        self.marks.iter().map(|since_ms| blob_id::mark(stamp, *since_ms)).collect()
    }
}

/// Deletes objects that nobody ever puts again. Whether all of them are gone.
async fn delete(store: &Store, names: Vec<String>) -> bool {
    let each = stream::iter(names)
        .map(|name| async move { store.cloud.objects.delete(&name, None).await == Delete::Gone });
    let mut each = each.buffer_unordered(OBJECTS_AT_ONCE);
    let mut are_gone = true;
    while let Some(is_gone) = each.next().await {
        are_gone &= is_gone;
    }
    are_gone
}

/// Blobs that are named by what lies in quarantine, as far as it can be decoded: somebody is to look at it.
async fn quarantined(store: &Store) -> Result<HashSet<Stamp>, StoreError> {
    let (mut named, line) = (HashSet::new(), Line::new());
    let mut after = None::<String>;
    loop {
        let part = store.list_after(QUARANTINE, after.as_deref()).await?;
        for name in &part.names {
            let bytes = blob::get(&store.cloud, &store.settings, name, &line).await?;
            if let Some(Ok(found)) = bytes.map(|bytes| Inspected::decode(&bytes)) {
                found.blobs(&mut named);
            }
        }
        after = part.names.into_iter().next_back().filter(|_| part.more);
        if after.is_none() {
            return Ok(named);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pager::{Budget, policy, pool::Pool};

    use super::*;
    use crate::{
        Backend, Key, Level, Payload, SearchBy, Session, Settings,
        catalog::{self, Database},
        cloud::embedded::{self, Memory},
        page::Follower,
        tree::scan::Leaves,
    };

    /// Where names of pages do not tell their collection, a leaf that named the root of another one as that of
    /// an index had it deleted.
    #[tokio::test]
    async fn the_root_of_another_collection_is_no_index_that_was_dropped() {
        let cloud = embedded::memory(Arc::new(Memory::new()));
        let settings = Settings::default();
        let (is_encrypted, has_tags, has_writers) = (false, false, false);
        let (id, backend, shards) = (1, Backend::S3Log, 1);
        let old = Database { id, backend, shards, is_encrypted, has_tags, has_writers };
        assert!(catalog::create_database(&cloud, &settings, &old).await.unwrap());
        let open = async || {
            let pool = Pool::new(&Budget::new(1 << 20), policy::default_eviction());
            Store::open(cloud.clone(), settings, &pool).await.unwrap()
        };
        let store = open().await;
        let own = store.create_collection("own").await.unwrap();
        let victim = store.create_collection("victim").await.unwrap();
        let follower = Follower { root: victim.root, by: SearchBy::Payload };
        let mut mark = |page: &mut Page| page.add_follower(&follower);
        update(&store.pages, own.root, 0, b"", &mut mark).await.unwrap().unwrap();
        let collected = store.collect_garbage(Duration::ZERO).await;
        assert!(matches!(collected, Err(StoreError::Tree { .. })), "{collected:?}");
        // It is not lost.
        assert_eq!(open().await.collection("victim").await.unwrap().root, victim.root);
    }

    /// Commits that were given up between the put and the send left objects for ever.
    #[tokio::test]
    async fn large_transactions_that_nobody_names_go_when_they_are_old() {
        for backend in [Backend::SqsStandard, Backend::SqsFifo] {
            let cloud = embedded::memory(Arc::new(Memory::new()));
            let tombstone_age = Duration::from_secs(100);
            let settings = Settings { tombstone_age, ..Settings::default() };
            Store::create(&cloud, &settings, backend, 1).await.unwrap();
            let pool = Pool::new(&Budget::new(1 << 20), policy::default_eviction());
            let store = Store::open(cloud.clone(), settings, &pool).await.unwrap();
            let before = |s: u64| {
                let clock = cloud.clock.wall_us() - s * 1_000_000;
                crate::names::SpilledName { client: 1, epoch: 1, number: s, clock }.to_string()
            };
            // A message may name it until a tombstone would go, and be sent half as long after it was put.
            let (old, young) = (before(200), before(120));
            let foreign = format!("{SPILLED}7/2/5");
            for name in [&old, &young, &foreign] {
                cloud.objects.put(name, Bytes::new(), PutIf::Absent).await;
            }
            assert_eq!(store.collect_garbage(Duration::ZERO).await.unwrap().spilled, 1);
            let mut left = store.list(SPILLED).await.unwrap();
            left.sort();
            let mut expected = [young, foreign];
            expected.sort();
            assert_eq!(left, expected);
        }
    }

    /// The leaves of a tree that own keys, from left to right.
    async fn leaves(store: &Store, root: PageId) -> Vec<Page> {
        let mut walk = Leaves::new(root, Bytes::new(), None, Freshness::Newest);
        let mut all = Vec::new();
        while let Some(leaf) = walk.next(&store.pages).await.unwrap() {
            all.push((*leaf.page).clone());
        }
        all
    }

    /// Its keys would come to a leaf that no index follows, behind the one who builds it, and a split
    /// there would leave them where that one never looks again.
    #[tokio::test]
    async fn a_leaf_dies_only_beside_one_that_the_same_indexes_follow() {
        let cloud = embedded::memory(Arc::new(Memory::new()));
        let settings =
            Settings { leaf_bytes_max: 600, tombstone_age: Duration::ZERO, ..Settings::default() };
        Store::create(&cloud, &settings, Backend::S3Log, 1).await.unwrap();
        let pool = Pool::new(&Budget::new(1 << 20), policy::default_eviction());
        let store = Store::open(cloud, settings, &pool).await.unwrap();
        let root = store.create_collection("t").await.unwrap().root;
        let session = Session::open(store.clone(), 1).await.unwrap();
        let key = |n: u32| Key::new(format!("{n:03}")).unwrap();
        let mut txn = session.begin(Level::Atomic);
        for n in 0..40 {
            txn.put(root, &key(n), Payload::new("payload").unwrap()).unwrap();
        }
        session.commit(&mut txn).await.unwrap();
        store.sweep().await.unwrap();
        let of = store.create_index("t", "i", &SearchBy::Payload).await.unwrap();
        // Who builds has come as far as the first leaf, and that loses all it has.
        let follower = Follower { root: of.indexes[0].root, by: SearchBy::Payload };
        let mut mark = |page: &mut Page| page.add_follower(&follower);
        let first = update(&store.pages, root, 0, b"", &mut mark).await.unwrap().unwrap();
        let mut txn = session.begin(Level::Atomic);
        first.slots().iter().for_each(|slot| {
            txn.delete(root, &Key::new(&slot.key).unwrap()).unwrap();
        });
        session.commit(&mut txn).await.unwrap();
        store.sweep().await.unwrap();
        // Tombstones go one millisecond after the other, as they came.
        let mut there = leaves(&store, root).await;
        while !there[0].slots().is_empty() {
            let tidied = store.collect_garbage(Duration::ZERO).await.unwrap();
            assert_eq!(tidied.buried, 0, "{tidied:?}");
            there = leaves(&store, root).await;
        }
        assert!(there.len() > 2 && there[0].id == first.id);
        assert_eq!([there[0].followers.len(), there[1].followers.len()], [1, 0]);

        store.build_index("t", "i", |_| {}).await.unwrap();
        assert_eq!(store.collect_garbage(Duration::ZERO).await.unwrap().buried, 1);
        let after = leaves(&store, root).await;
        assert_eq!(after.len(), there.len() - 1);
        assert!(after.iter().all(|leaf| leaf.followers == [follower.clone()]));
    }
}
