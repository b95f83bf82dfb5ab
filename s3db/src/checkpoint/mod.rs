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
use futures::{StreamExt as _, future::join_all, stream};

use crate::{
    cloud::ledger::for_tree,
    error::StoreError,
    fail_point::{FailPoint, reached},
    log::{
        Batch, Entry, Left, Poison, Scope, Transaction, fingerprint,
        queues::{parts, quarantine},
    },
    page::{Applied, Page, PageId},
    sequence::is_versioned,
    settings::Rule,
    stamp::Stamp,
    store::Store,
    tree::{Freshness, Nodes, search::search, update::update_likely},
};

/// Objects that are put into quarantine at the same time, each of at most a message.
const ASIDE_AT_ONCE: usize = 8;

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
    /// Messages that named the object of a large transaction which is not there: they came a second time, as
    /// queues may have them, or somebody else deleted the object, and the transaction is lost.
    pub gone: u64,
}

impl std::ops::AddAssign for Checkpointed {
    fn add_assign(&mut self, more: Checkpointed) {
        self.records += more.records;
        self.applied += more.applied;
        self.leaves += more.leaves;
        self.poison += more.poison;
        self.gone += more.gone;
    }
}

/// What batches that were drained beside each other hold of one tree.
#[derive(Default)]
struct Together {
    /// Each piece with the client whose it is: in s3-log the one of the stream, which services know, and
    /// otherwise the one that its stamps tell.
    pieces: Vec<(u64, Vec<Entry>)>,
    /// The last of these as it was drained, which may be more pieces here: of several clients.
    last: Option<(usize, usize)>,
    /// Which batches these are.
    batches: Vec<usize>,
}

impl Together {
    /// Takes in an entry of `client`, of the piece of this number in the batch of that one.
    fn add(&mut self, client: u64, from: (usize, usize), entry: Entry) {
        if self.batches.last() != Some(&from.0) {
            self.batches.push(from.0);
        }
        let begun = self.pieces.last_mut().filter(|(of, _)| *of == client);
        match begun.filter(|_| self.last == Some(from)) {
            Some((_, piece)) => piece.push(entry),
            None => self.pieces.push((client, vec![entry])),
        }
        self.last = Some(from);
    }
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
        let mut piece = 0;
        for (n, entry) in std::mem::take(&mut batch.entries).into_iter().enumerate() {
            while batch.ends.get(piece).is_some_and(|end| *end <= n) {
                piece += 1;
            }
            if !rules.hold(Rule::Fences) {
                let applied = apply_where_named(store, entry, done).await;
                outcomes[at] = outcomes[at].clone().and_then(|outcome| applied.map(|()| outcome));
                continue;
            }
            let client = match scopes[at] {
                Scope::Stream(stream) => stream.client,
                Scope::Shard(_) | Scope::Client(_) => entry.record.stamp.client,
            };
            trees.entry(entry.tree).or_default().add(client, (at, piece), entry);
        }
    }
    for (root, Together { pieces, batches, .. }) in trees {
        let applied = match store.is_curated(root) && rules.hold(Rule::Approval) {
            // What a curator approved comes another way.
            true => {
                let pieces = pieces.into_iter().map(|(_, piece)| piece).collect();
                put_aside(store, "not-approved", pieces, done).await
            }
            false => apply_of_writers(store, root, pieces, done).await,
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
    pieces: Vec<(u64, Vec<Entry>)>,
    done: &mut Checkpointed,
) -> Result<(), StoreError> {
    let (pieces, strange) = store.part_by_writers(root, pieces).await?;
    if !strange.is_empty() {
        put_aside(store, "not-its-writer", strange, done).await?;
    }
    match pieces.is_empty() {
        true => Ok(()),
        false => apply_to_tree(store, root, pieces, done).await,
    }
}

/// Applies entries of one tree, in any order, under H1 to H3: pieces of what was drained ([`Batch`]).
pub(crate) async fn apply_to_tree(
    store: &Store,
    root: PageId,
    pieces: Vec<Vec<Entry>>,
    done: &mut Checkpointed,
) -> Result<(), StoreError> {
    for_tree(root.0, apply_to(store, root, pieces, done)).await
}

async fn apply_to(
    store: &Store,
    root: PageId,
    pieces: Vec<Vec<Entry>>,
    done: &mut Checkpointed,
) -> Result<(), StoreError> {
    let is_there = match store.pages.node(root, Freshness::Cached).await {
        Err(error) if store.is_dropped(root, &error).await? => false,
        found => found?.is_some(),
    };
    if !is_there {
        if store.has_tree(root).await? {
            // Lost. What was committed waits in the log until it is restored.
            return Err(StoreError::Lost { object: root.object() });
        }
        // No tree: the record is from nowhere. Kept, and counted, and not in the way.
        return put_aside(store, "no-tree", pieces, done).await;
    }
    let ordered = Ordered::of(pieces);
    match apply(store, root, &ordered, done).await {
        // Dropped since the copy of its root was read.
        Err(error) if store.is_dropped(root, &error).await? => {
            put_aside(store, "no-tree", ordered.pieces(), done).await
        }
        applied => applied,
    }
}

/// Entries with their keys, in the order of leaves.
struct Ordered {
    entries: Vec<(Bytes, Entry)>,
    /// Of each, the number of the piece that it came with.
    of: Vec<usize>,
}

impl Ordered {
    fn of(pieces: Vec<Vec<Entry>>) -> Ordered {
        let numbered = pieces.into_iter().enumerate();
        let mut all: Vec<(Bytes, Entry, usize)> = numbered
            .flat_map(|(n, piece)| piece.into_iter().map(move |it| (it.leaf_key(), it, n)))
            .collect();
        all.sort_by(|(a, ..), (b, ..)| a.cmp(b));
        let (entries, of) = all.into_iter().map(|(key, entry, n)| ((key, entry), n)).unzip();
        Ordered { entries, of }
    }

    /// As they came, but for their order.
    fn pieces(&self) -> Vec<Vec<Entry>> {
        let mut pieces: BTreeMap<usize, Vec<Entry>> = BTreeMap::new();
        for ((_, entry), n) in self.entries.iter().zip(&self.of) {
            pieces.entry(*n).or_default().push(entry.clone());
        }
        pieces.into_values().collect()
    }
}

/// Applies entries of one tree whose root is there, in the order of their keys.
async fn apply(
    store: &Store,
    root: PageId,
    ordered: &Ordered,
    done: &mut Checkpointed,
) -> Result<(), StoreError> {
    let rules = store.settings.rules;
    let uses_stamps = rules.hold(Rule::Stamps);
    let mut rest = &ordered.entries[..];
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
        let outcome = update_likely(&store.pages, root, 0, first, &mut change).await?;
        if has_versions {
            return put_aside(store, "no-versions", ordered.pieces(), done).await;
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
        let ordered = Ordered::of(vec![entries]);
        match Box::pin(apply(store, root, &ordered, &mut done)).await {
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
            return put_aside(store, "no-versions", vec![vec![entry]], done).await;
        }
        if held.page.owns(&key) && held.page.level == 0 {
            return apply_to_tree(store, entry.tree, vec![vec![entry]], done).await;
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
///
/// Each piece by itself, and in objects of at most a message, cut in an order that follows from the piece alone.
/// So what is drained again, beside whatever else, is found there under the same names: a batch that cannot be
/// acknowledged fills nothing. And however much was drained, no object is too large to be put.
async fn put_aside(
    store: &Store,
    why: &str,
    pieces: Vec<Vec<Entry>>,
    done: &mut Checkpointed,
) -> Result<(), StoreError> {
    let cut = pieces.into_iter().flat_map(|mut entries| {
        entries.sort_by_cached_key(|entry| (entry.record.stamp, entry.leaf_key()));
        let client = entries.first().map_or(0, |entry| entry.record.stamp.client);
        let total = entries.len() as u32;
        let whole = Transaction { client, epoch: 0, number: 0, total, entries: Vec::new() };
        parts(&whole, entries)
    });
    let puts = cut.map(|part| async move {
        let bytes = part.encode();
        let name = format!("{why}-{:016x}-{}", part.client, fingerprint(&bytes));
        quarantine(&store.cloud, &store.settings, &Poison { name, bytes }).await
    });
    let mut puts = stream::iter(puts).buffer_unordered(ASIDE_AT_ONCE);
    while let Some(put) = puts.next().await {
        put?;
        done.poison += 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pager::{Budget, policy, pool::Pool};

    use super::*;
    use crate::{
        catalog::Backend,
        cloud::{
            Cloud, Get, PutIf,
            embedded::{self, Memory},
            queue::MESSAGE_BYTES_MAX,
        },
        log::{
            Append,
            transaction::{Body, primary},
        },
        names::QUARANTINE,
        page::Stream,
        record::{INLINE_BYTES_MAX, Key, Payload},
        settings::Settings,
    };

    async fn open(cloud: &Cloud) -> Arc<Store> {
        let pool = Pool::new(&Budget::new(1 << 20), policy::default_eviction());
        Store::open(cloud.clone(), Settings::default(), &pool).await.unwrap()
    }

    async fn database() -> (Cloud, Arc<Store>) {
        let cloud = embedded::memory(Arc::new(Memory::new()));
        Store::create(&cloud, &Settings::default(), Backend::S3Log, 1).await.unwrap();
        let store = open(&cloud).await;
        (cloud, store)
    }

    fn entry(tree: PageId, client: u64, sequence: u64, payload: &Payload) -> Entry {
        let stamp = Stamp { clock: sequence, client, sequence };
        let key = Key::new(format!("{sequence:06}")).unwrap();
        primary(tree, tree, stamp, key, Some(payload.clone()))
    }

    /// It was one object, of more bytes than any may have: no sweep came to its end any more.
    #[tokio::test]
    async fn what_is_put_aside_is_cut() {
        let (cloud, store) = database().await;
        let payload = Payload::new(vec![7; INLINE_BYTES_MAX]).unwrap();
        let entries: Vec<Entry> = (1..=3000).map(|n| entry(PageId(5), 9, n, &payload)).collect();
        let mut done = Checkpointed::default();
        put_aside(&store, "no-tree", vec![entries], &mut done).await.unwrap();
        let names = store.list(QUARANTINE).await.unwrap();
        assert_eq!(names.len() as u64, done.poison);
        let mut found = BTreeSet::new();
        for name in names {
            let Get::Found { bytes, .. } = cloud.objects.get(&name, None).await.unwrap() else {
                panic!("{name} is there");
            };
            assert!(bytes.len() <= MESSAGE_BYTES_MAX, "{name}: {}", bytes.len());
            let Body::Here(part) = Transaction::decode(&bytes).unwrap() else {
                panic!("{name} has records");
            };
            found.extend(part.entries.iter().map(|entry| entry.record.stamp.sequence));
        }
        assert!(found.into_iter().eq(1..=3000));
    }

    /// What was drained with it decided on its name: a batch that could not be acknowledged filled quarantine.
    #[tokio::test]
    async fn what_is_drained_again_is_put_aside_once() {
        let (cloud, store) = database().await;
        let nowhere = PageId(5);
        let bad = store.create_collection("bad").await.unwrap().root;
        let noise = Bytes::from_static(b"s3dP is what is left");
        cloud.objects.put(&bad.object(), noise, PutIf::Always).await;
        let payload = Payload::new("x").unwrap();
        let (one, other) =
            (store.log.open(1, 1, 1).await.unwrap(), store.log.open(2, 1, 1).await.unwrap());
        let transaction = |client: u64, number: u64| {
            let first = number * 10;
            let entries = vec![
                entry(nowhere, client, first, &payload),
                entry(bad, client, first + 1, &payload),
                entry(nowhere, client, first + 2, &payload),
            ];
            Transaction { client, epoch: 1, number, total: 3, entries }
        };
        let [first, second] = [1, 2].map(|client| Scope::Stream(Stream { client, epoch: 1 }));
        let sweep = async |scopes: &[Scope]| {
            // What comes of it is known to nobody who comes next.
            let store = open(&cloud).await;
            let outcomes = checkpoint_together(&store, scopes, &mut Checkpointed::default()).await;
            for outcome in outcomes {
                assert!(matches!(outcome, Err(StoreError::Damaged { .. })), "{outcome:?}");
            }
            store.list(QUARANTINE).await.unwrap().len()
        };
        assert_eq!(one.append(&transaction(1, 1), true).await, Append::Committed);
        assert_eq!(sweep(&[first]).await, 1);
        assert_eq!(other.append(&transaction(2, 1), true).await, Append::Committed);
        assert_eq!(sweep(&[first, second]).await, 2);
        assert_eq!(sweep(&[second, first]).await, 2);
        assert_eq!(one.append(&transaction(1, 2), true).await, Append::Committed);
        assert_eq!(sweep(&[first, second]).await, 3);
        assert_eq!(sweep(&[first]).await, 3);
    }
}
