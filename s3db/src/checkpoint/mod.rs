//! From the log to the pages. Anyone may do it at any time, and any number at once.
//!
//! ```text
//!   1  drain       some changes, leased for a while                crash: they come back
//!   2  put aside   what cannot be decoded                          crash: found again, same name
//!   3  for each leaf, in the order of keys:
//!        read the newest
//!        indexes follow it? put what the changes imply there       crash: they come back, H1
//!        apply by H1, put by compare and swap                      crash: they come back, H1
//!   4  acknowledge all of it                                       crash: they come back, H1
//! ```
//!
//! Step 4 happens only when every put of step 3 is confirmed. Each step is safe to repeat. A record
//! goes to the leaf that owns its key now, whatever leaf it names (W5). What comes by the log for a
//! collection whose records have versions is put aside: only the sequencer orders those (`sequence`).

pub(crate) mod due; // what waits for a checkpoint
pub(crate) mod fate; // of a record, for who only looks
pub(crate) mod follow; // what changes of a leaf mean to its indexes
pub(crate) mod owner; // who checkpoints what
pub(crate) mod work; // what is due, and all there is, for who sweeps

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures::future::join_all;

use crate::{
    cloud::ledger::for_tree,
    error::StoreError,
    fail_point::{FailPoint, reached},
    log::{Batch, Entry, Left, Poison, Scope, Transaction, fingerprint, queues::quarantine},
    page::{Applied, Page, PageId},
    sequence::is_versioned,
    settings::Rule,
    stamp::Stamp,
    store::Store,
    tree::{Freshness, Nodes, search::search, update::update},
};

/// What a checkpoint did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checkpointed {
    /// Log records that were drained.
    pub records: u64,
    /// Of these, records that changed a page. The others were there already, or newer ones were.
    pub applied: u64,
    /// Leaves that were looked at.
    pub leaves: u64,
    /// Bodies that could not be decoded and lie in quarantine now.
    pub poison: u64,
}

impl std::ops::AddAssign for Checkpointed {
    fn add_assign(&mut self, more: Checkpointed) {
        self.records += more.records;
        self.applied += more.applied;
        self.leaves += more.leaves;
        self.poison += more.poison;
    }
}

/// What batches that were drained beside each other hold of one tree.
#[derive(Default)]
struct Together {
    /// Each with the client whose it is: in s3-log the one of the stream, which services know, and otherwise
    /// the one that its stamp tells.
    entries: Vec<(u64, Entry)>,
    /// Which batches these are.
    batches: Vec<usize>,
}

/// Checkpoints up to a batch of what each of `scopes` holds: batches are drained beside each other and
/// applied as if they were one, so that a leaf which several of them change is put once. Says of each, in
/// this order, how many messages or objects that was, and what is left. One that fails is in the way of those
/// alone that have records of the same tree.
pub(crate) async fn checkpoint_together(
    store: &Store,
    scopes: &[Scope],
    done: &mut Checkpointed,
) -> Vec<Result<(u64, Left), StoreError>> {
    let rules = store.settings.rules;
    let most = store.settings.records_per_checkpoint_max;
    let drains = scopes.iter().map(|scope| store.log.drain(*scope, most));
    let mut drained = join_all(drains).await;
    reached(&store.cloud, FailPoint::Drained).await;
    let mut trees: BTreeMap<PageId, Together> = BTreeMap::new();
    let mut outcomes = Vec::with_capacity(scopes.len());
    for (at, batch) in drained.iter_mut().enumerate() {
        outcomes.push(match batch {
            Ok(batch) => begin(store, batch, done).await,
            Err(error) => Err(error.clone()),
        });
        let Ok(batch) = batch else { continue };
        if outcomes[at].is_err() {
            // Not even begun: it comes again, and nothing of it is passed over.
            batch.tickets.clear();
            continue;
        }
        for entry in std::mem::take(&mut batch.entries) {
            if !rules.hold(Rule::Fences) {
                let applied = apply_where_named(store, entry, done).await;
                outcomes[at] = outcomes[at].clone().and_then(|outcome| applied.map(|()| outcome));
                continue;
            }
            let together = trees.entry(entry.tree).or_default();
            if together.batches.last() != Some(&at) {
                together.batches.push(at);
            }
            let client = match scopes[at] {
                Scope::Stream(stream) => stream.client,
                Scope::Shard(_) | Scope::Client(_) => entry.record.stamp.client,
            };
            together.entries.push((client, entry));
        }
    }
    for (root, Together { entries, batches }) in trees {
        let applied = match store.is_curated(root) && rules.hold(Rule::Approval) {
            // What a curator approved comes another way.
            true => {
                let entries = entries.into_iter().map(|(_, entry)| entry).collect();
                put_aside(store, "not-approved", entries, done).await
            }
            false => apply_of_writers(store, root, entries, done).await,
        };
        // One tree that is damaged is not in the way of the others. What is not on its page is not
        // acknowledged.
        let Err(error) = applied else { continue };
        for at in batches {
            if outcomes[at].is_ok() {
                outcomes[at] = Err(error.clone());
            }
        }
    }
    let ends = drained.into_iter().zip(outcomes).map(async |(batch, outcome)| {
        let (tickets, failed) =
            batch.map(|batch| (batch.tickets, batch.failed)).unwrap_or_default();
        match &outcome {
            Ok(_) => store.log.ack(tickets).await?,
            Err(error) if !error.is_passing() => store.log.pass_over(&tickets),
            Err(_) => {}
        }
        // What could not be read was in nobody's way.
        match failed {
            Some(error) if outcome.is_ok() => Err(error),
            _ => outcome,
        }
    });
    join_all(ends).await
}

/// What comes before a batch is applied. Says how many messages or objects it is, and what it leaves.
async fn begin(
    store: &Store,
    batch: &mut Batch,
    done: &mut Checkpointed,
) -> Result<(u64, Left), StoreError> {
    let rules = store.settings.rules;
    done.records += batch.entries.len() as u64;
    let taken = batch.tickets.len() as u64;
    if !rules.hold(Rule::AcknowledgeLast) {
        store.log.ack(std::mem::take(&mut batch.tickets)).await?;
    }
    for poison in std::mem::take(&mut batch.poison) {
        if !rules.hold(Rule::Quarantine) {
            return Err(StoreError::Invalid(format!("{}: cannot be decoded", poison.name)));
        }
        quarantine(&store.cloud, &store.settings, &poison).await?;
        reached(&store.cloud, FailPoint::PutAside).await;
        done.poison += 1;
    }
    Ok((taken, batch.left))
}

/// Applies entries of one tree that are of clients which may write to it, and puts aside the others.
async fn apply_of_writers(
    store: &Store,
    root: PageId,
    entries: Vec<(u64, Entry)>,
    done: &mut Checkpointed,
) -> Result<(), StoreError> {
    let (entries, strange) = store.part_by_writers(root, entries).await?;
    if !strange.is_empty() {
        put_aside(store, "not-its-writer", strange, done).await?;
    }
    match entries.is_empty() {
        true => Ok(()),
        false => apply_to_tree(store, root, entries, done).await,
    }
}

/// Applies entries of one tree, in any order, under H1 to H3.
pub(crate) async fn apply_to_tree(
    store: &Store,
    root: PageId,
    entries: Vec<Entry>,
    done: &mut Checkpointed,
) -> Result<(), StoreError> {
    for_tree(root.0, apply_to(store, root, entries, done)).await
}

async fn apply_to(
    store: &Store,
    root: PageId,
    entries: Vec<Entry>,
    done: &mut Checkpointed,
) -> Result<(), StoreError> {
    if store.pages.node(root, Freshness::Cached).await?.is_none() {
        if store.has_tree(root).await? {
            // Lost. What was committed waits in the log until it is restored.
            return Err(StoreError::Lost { object: root.object() });
        }
        // No tree: the record is from nowhere. Kept, and counted, and not in the way.
        return put_aside(store, "no-tree", entries, done).await;
    }
    let entries = in_order(entries);
    match apply(store, root, &entries, done).await {
        // Dropped since the copy of its root was read.
        Err(error) if store.is_dropped(root, &error).await? => {
            let entries = entries.into_iter().map(|(_, entry)| entry).collect();
            put_aside(store, "no-tree", entries, done).await
        }
        applied => applied,
    }
}

/// Entries with their keys, in the order of leaves.
fn in_order(entries: Vec<Entry>) -> Vec<(Bytes, Entry)> {
    let mut entries: Vec<(Bytes, Entry)> =
        entries.into_iter().map(|entry| (entry.leaf_key(), entry)).collect();
    entries.sort_by(|(a, _), (b, _)| a.cmp(b));
    entries
}

/// Applies entries of one tree whose root is there, in the order of their keys.
async fn apply(
    store: &Store,
    root: PageId,
    entries: &[(Bytes, Entry)],
    done: &mut Checkpointed,
) -> Result<(), StoreError> {
    let rules = store.settings.rules;
    let uses_stamps = rules.hold(Rule::Stamps);
    let mut rest = entries;
    // The version of the leaf to whose indexes it was applied what the changes imply, and how often
    // another one was there afterwards.
    let (mut followed, mut lost) = (None, 0);
    // What is confirmed to be there for that leaf. It stays true whoever else puts the leaf, so that
    // after a lost swap only what is new on the leaf is put.
    let mut confirmed: BTreeSet<(PageId, Bytes, Stamp)> = BTreeSet::new();
    let name = |entry: &Entry| (entry.tree, entry.leaf_key(), entry.record.stamp);
    while let Some((first, _)) = rest.first() {
        let mut taken = 0;
        let mut applied = 0;
        let mut implied = Vec::new();
        let mut ahead = None;
        let mut has_versions = false;
        let mut change = |page: &mut Page| {
            has_versions = is_versioned(page);
            if has_versions {
                return false;
            }
            // A lost swap starts again with another page, which may own fewer keys.
            taken = rest.iter().take_while(|(key, _)| page.ends_after(key)).count();
            applied = 0;
            let version = (page.id, page.write_id);
            ahead = None;
            if followed != Some(version) && (followed.is_none() || rules.hold(Rule::FollowSwap)) {
                implied = follow::implied(page, &rest[..taken]);
                implied.retain(|entry| !confirmed.contains(&name(entry)));
                if !implied.is_empty() && rules.hold(Rule::EntriesFirst) {
                    ahead = Some(version);
                    return false;
                }
            }
            for (key, entry) in &rest[..taken] {
                let (stamp, payload) = (entry.record.stamp, entry.leaf_payload());
                let outcome =
                    page.apply_if(key, stamp, payload, |there| !uses_stamps || stamp > there);
                applied += u64::from(outcome == Applied::Changed);
            }
            if applied == 0 {
                return false;
            }
            // How far streams were applied, as older programs noted it. Nobody asks: stamps tell (H1).
            page.applied.clear();
            true
        };
        let outcome = update(&store.pages, root, 0, first, &mut change).await?;
        if has_versions {
            let entries = entries.iter().map(|(_, entry)| entry.clone()).collect();
            return put_aside(store, "no-versions", entries, done).await;
        }
        if outcome.is_none() || taken == 0 {
            return Err(StoreError::Tree { page: root, what: "no leaf owns a key" });
        }
        if !implied.is_empty() {
            let names: Vec<_> = implied.iter().map(name).collect();
            apply_to_indexes(store, implied).await?;
            reached(&store.cloud, FailPoint::Implied).await;
            confirmed.extend(names);
        }
        if let Some(version) = ahead {
            if followed.is_some() {
                lost += 1;
                store.pages.back_off(version.0, lost).await?;
            }
            followed = Some(version);
            continue;
        }
        if applied > 0 {
            reached(&store.cloud, FailPoint::Put).await;
        }
        (followed, lost) = (None, 0);
        confirmed.clear();
        done.leaves += 1;
        done.applied += applied;
        rest = &rest[taken..];
    }
    Ok(())
}

/// Applies entries of any indexes. Their roots are there: they were before any page named them.
///
/// What comes is put before what goes, in all indexes, and nothing goes before all pages that it goes
/// from can be read: where one is damaged the leaf of the records is not put, and an index that had let
/// go of them already would find them no more.
pub(crate) async fn apply_to_indexes(
    store: &Store,
    entries: Vec<Entry>,
) -> Result<Checkpointed, StoreError> {
    let (come, go): (Vec<Entry>, Vec<Entry>) =
        entries.into_iter().partition(|entry| entry.leaf_payload().is_some());
    let mut done = apply_to_each(store, come).await?;
    // As they are now: a page that is damaged since it was read is damaged. No page is kept for that.
    let mut seen: BTreeMap<PageId, Vec<(Bytes, Option<Bytes>)>> = BTreeMap::new();
    let copy = |key: &Bytes| Bytes::copy_from_slice(key);
    for entry in &go {
        let (key, fences) = (entry.leaf_key(), seen.entry(entry.tree).or_default());
        let is_in = |(low, high): &(Bytes, Option<Bytes>)| {
            *low <= key && high.as_ref().is_none_or(|high| key < *high)
        };
        if !fences.iter().any(is_in) {
            let found = search(&store.pages, entry.tree, &key, 0, Freshness::Newest).await;
            let page = match found {
                Err(error) if store.is_dropped(entry.tree, &error).await? => {
                    // Nothing has to go from what is gone, whatever its key is.
                    fences.push((Bytes::new(), None));
                    continue;
                }
                found => found?.map(|found| found.held.page),
            };
            fences.extend(page.map(|page| (copy(&page.low), page.high.as_ref().map(copy))));
        }
    }
    done += apply_to_each(store, go).await?;
    Ok(done)
}

async fn apply_to_each(store: &Store, entries: Vec<Entry>) -> Result<Checkpointed, StoreError> {
    let mut indexes: BTreeMap<PageId, Vec<Entry>> = BTreeMap::new();
    for entry in entries {
        indexes.entry(entry.tree).or_default().push(entry);
    }
    let mut done = Checkpointed::default();
    for (root, entries) in indexes {
        // Nothing follows an index: this is as deep as it goes.
        let entries = in_order(entries);
        match Box::pin(apply(store, root, &entries, &mut done)).await {
            // Dropped. The leaf that names it still, or again, forgets it.
            Err(error) if store.is_dropped(root, &error).await? => {}
            applied => applied?,
        }
    }
    Ok(done)
}

/// What the protocol of 2008 does: the record names its page, and there it goes.
async fn apply_where_named(
    store: &Store,
    entry: Entry,
    done: &mut Checkpointed,
) -> Result<(), StoreError> {
    let key = entry.leaf_key();
    for lost in 1.. {
        let Some(held) = store.pages.node(entry.page, Freshness::Newest).await? else { break };
        if is_versioned(&held.page) {
            return put_aside(store, "no-versions", vec![entry], done).await;
        }
        if held.page.owns(&key) && held.page.level == 0 {
            return apply_to_tree(store, entry.tree, vec![entry], done).await;
        }
        if held.page.level > 0 {
            break;
        }
        let mut page = (*held.page).clone();
        if page.apply(&key, entry.record.stamp, entry.leaf_payload()) == Applied::Stale {
            break;
        }
        if let crate::tree::Swap::Done = store.pages.replace(&held, page).await? {
            done.applied += 1;
            break;
        }
        store.pages.back_off(entry.page, lost).await?;
    }
    Ok(())
}

/// Puts records that belong to no page into quarantine: of a tree that does not exist, of a curated
/// collection, of one that names other writers, or of one whose records have versions.
async fn put_aside(
    store: &Store,
    why: &str,
    entries: Vec<Entry>,
    done: &mut Checkpointed,
) -> Result<(), StoreError> {
    let total = entries.len() as u32;
    let stamp = entries.first().map(|entry| entry.record.stamp).unwrap_or_default();
    let bytes = Transaction { client: stamp.client, epoch: 0, number: 0, total, entries }.encode();
    let name = format!("{why}-{:016x}-{}", stamp.client, fingerprint(&bytes));
    quarantine(&store.cloud, &store.settings, &Poison { name, bytes }).await?;
    done.poison += 1;
    Ok(())
}
