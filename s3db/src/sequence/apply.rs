//! From the window to the pages. Anyone may do it at any time, and any number at once.
//!
//! ```text
//!   1  read the newest numbers, with all that is not on its pages     crash: nothing happened
//!   2  for each leaf, in the order of keys:
//!        add the versions that it is not complete to yet, say up to where it is now,
//!        drop what the horizon has passed, put it by compare and swap  crash: some pages are ahead
//!   3  swap in up to where all of it is there, and put aside what
//!      cannot be put                                                  crash: done again, without effect
//! ```
//!
//! A leaf takes each commit once, in order, whoever brings it: it says up to which it is complete, and
//! whoever comes late adds nothing. So nothing that was pruned comes back.
//!
//! A commit that writes to a leaf which cannot be read is put *aside* in step 3: it stays in the numbers, beside the
//! window, so that the others go on, and each who applies tries again. Whoever reads such a leaf when it was
//! restored finds there what was put aside, whether it was brought to the leaf yet or not. What would follow it to
//! the same leaf is refused when it is committed (`sequencer`). There is room for half a window aside; with so many
//! damaged leaves that it is full, the window fills as well, and no transaction is committed any more: all are told
//! why, and which page it is. A leaf that holds no versions takes nothing: its writes are put into quarantine.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::{
    Checkpointed,
    cloud::ledger::for_tree,
    error::StoreError,
    fail_point::{FailPoint, reached},
    lent::Lent,
    log::{Poison, fingerprint, queues::quarantine},
    page::{Page, PageId, Slot},
    retry::Attempts,
    sequence::{
        batch,
        codec::{NUMBERS, Numbers, Write, encode_data},
        health::is_behind,
        sequencer::{Swapped, newest, swap_freely},
        versions,
        window::View,
    },
    settings::{Rule, Settings},
    store::Store,
    tree::{Freshness, Nodes, search::search, update::update_likely},
};

/// Bytes of writes after which an object in quarantine ends.
const ASIDE_BYTES_MAX: usize = 4 << 20;

/// Versions of one tree, in the order of leaf keys.
type Versions = Vec<(u64, Slot)>;

/// Applies all that is in the window. See the head of this file.
pub(crate) async fn apply(store: &Store) -> Result<Checkpointed, StoreError> {
    apply_in(store, false).await
}

/// The same, by who has the turn to swap, if `has_turn`.
pub(super) async fn apply_in(store: &Store, has_turn: bool) -> Result<Checkpointed, StoreError> {
    let mut done = Checkpointed::default();
    let view = newest(store).await?;
    let numbers = &view.numbers;
    if numbers.applied == numbers.last && numbers.aside.is_empty() {
        return Ok(done);
    }
    let rules = store.settings.rules;
    if !rules.hold(Rule::AppliedLast) {
        declare(store, &view, None).await?;
    }
    let mut trees: BTreeMap<PageId, Versions> = BTreeMap::new();
    for (number, commit) in numbers.waiting() {
        done.records += commit.writes.len() as u64;
        for write in &*commit.writes {
            let slot = versions::slot(&write.key, number, commit.client, write.payload.as_ref());
            trees.entry(write.tree).or_default().push((number, slot));
        }
    }
    let mut failed: Option<Failed> = None;
    for (root, mut versions) in trees {
        versions.sort_by(|a, b| a.1.key.cmp(&b.1.key));
        let applied = for_tree(root.0, apply_to(store, &view, root, &versions, &mut done)).await;
        if let Err(more) = applied {
            // The services fail: nothing else would come of the others.
            if more.error.is_passing() {
                return Err(failed.map_or(more.error, |failed| failed.error));
            }
            failed = Some(more.after(failed));
        }
    }
    // Beside those who commit one after the other it would always come too late.
    let _turn = match has_turn {
        true => None,
        false => Some(store.sequencer.turn().await),
    };
    declare(store, &view, failed.as_ref()).await?;
    failed.map_or(Ok(done), |failed| Err(failed.error))
}

/// What could not be brought to its pages, and why.
struct Failed {
    /// Commits that write to a leaf which cannot be read, or is not there: it has to be restored.
    unreadable: BTreeSet<u64>,
    /// Commits that wait for something else.
    others: BTreeSet<u64>,
    /// The first of all errors.
    error: StoreError,
}

impl Failed {
    fn new(versions: &[(u64, Slot)], error: StoreError) -> Failed {
        let numbers = versions.iter().map(|(number, _)| *number).collect();
        let (unreadable, others) = match error {
            StoreError::Damaged { .. } | StoreError::Lost { .. } | StoreError::Tree { .. } => {
                (numbers, BTreeSet::new())
            }
            _ => (BTreeSet::new(), numbers),
        };
        Failed { unreadable, others, error }
    }

    /// The same of an error that tells nothing of the leaf.
    fn other(versions: &[(u64, Slot)], error: StoreError) -> Failed {
        let others = versions.iter().map(|(number, _)| *number).collect();
        Failed { unreadable: BTreeSet::new(), others, error }
    }

    /// Both, this being the later one.
    fn after(self, earlier: Option<Failed>) -> Failed {
        let Some(mut all) = earlier else { return self };
        all.unreadable.extend(self.unreadable);
        all.others.extend(self.others);
        all
    }
}

/// What the numbers are to be after all of `view` is on its pages but for what failed.
fn declared(now: &Numbers, view: &View, failed: Option<&Failed>, settings: &Settings) -> Numbers {
    let mut next = now.clone();
    let is_in = |set: fn(&Failed) -> &BTreeSet<u64>, number: u64| {
        failed.is_some_and(|failed| set(failed).contains(&number))
    };
    let is_unreadable = |number| is_in(|failed| &failed.unreadable, number);
    let is_other = |number| is_in(|failed| &failed.others, number);
    let last = view.numbers.last;
    next.aside.retain(|(number, _)| *number > last || is_unreadable(*number) || is_other(*number));
    for (number, commit) in now.numbered().filter(|(number, _)| *number > now.applied) {
        if number > last || is_other(number) {
            break;
        }
        if is_unreadable(number) {
            if !batch::has_room_aside(&next, commit, settings) {
                break;
            }
            next.aside.push((number, commit.clone()));
        }
        next.applied = number;
    }
    next
}

/// Says which commits are on their pages, and puts aside what waits for a leaf that cannot be read.
async fn declare(store: &Store, view: &View, failed: Option<&Failed>) -> Result<(), StoreError> {
    let mut attempts = Attempts::new(&store.cloud, &store.settings);
    let mut now = newest(store).await?;
    debug_assert!(now.numbers.last >= view.numbers.last, "strong consistency");
    let grows = store.settings.rules.hold(Rule::AppliedGrows);
    loop {
        let mut next = declared(&now.numbers, view, failed, &store.settings);
        if !grows && failed.is_none() {
            next.applied = view.numbers.last;
        }
        if grows
            && (next.applied, next.aside.len()) == (now.numbers.applied, now.numbers.aside.len())
        {
            return Ok(());
        }
        batch::advance(&mut next, store.asked_date_ms().await?, &store.settings);
        batch::trim(&mut next, &store.settings);
        match swap_freely(store, &now, next).await? {
            Swapped::Done(_) => {
                reached(&store.cloud, FailPoint::Advanced).await;
                return Ok(());
            }
            Swapped::Lost { .. } => {
                attempts.after_loss(NUMBERS).await?;
                now = newest(store).await?;
            }
        }
    }
}

/// Puts versions on the leaves of one tree. An error comes with the commits that it concerns.
async fn apply_to(
    store: &Store,
    view: &View,
    root: PageId,
    versions: &[(u64, Slot)],
    done: &mut Checkpointed,
) -> Result<(), Failed> {
    // A tree that the catalogue does not name takes nothing, and is not in the way.
    match store.pages.node(root, Freshness::Cached).await {
        Ok(Some(_)) => {}
        Ok(None) => match store.has_tree(root).await {
            Ok(true) => {
                return Err(Failed::new(versions, StoreError::Lost { object: root.object() }));
            }
            Ok(false) => {
                let aside = put_aside(store, root, versions, done).await;
                return aside.map_err(|error| Failed::other(versions, error));
            }
            Err(error) => return Err(Failed::other(versions, error)),
        },
        Err(error) => return Err(Failed::new(versions, error)),
    }
    let mut failed: Option<Failed> = None;
    let mut rest = versions;
    while let Some((_, first)) = rest.first() {
        let (mut taken, mut added, mut is_foreign) = (0, 0, false);
        // A leaf that has more than the sequencer: whoever applied it saw a newer one, or this is an old copy.
        let mut ahead = None;
        let mut change = |page: &mut Page| {
            taken = rest.iter().take_while(|(_, slot)| page.ends_after(&slot.key)).count();
            added = 0;
            is_foreign = !versions::is_versioned(page);
            if is_foreign {
                return false;
            }
            let complete = versions::complete_to(page);
            ahead = (complete > view.numbers.last).then_some((page.id, complete));
            // All that it owns, those included that failed before: it is complete afterwards.
            let from = versions.partition_point(|(_, slot)| slot.key < page.low);
            let len = versions[from..].iter().take_while(|(_, slot)| page.ends_after(&slot.key));
            let len = len.count();
            let (slots, last) = (&versions[from..from + len], view.numbers.last);
            added = versions::add(page, slots, last, store.settings.rules);
            if added > 0 {
                versions::prune(page, view.numbers.horizon, store.settings.rules);
            }
            added > 0
        };
        let of: fn(&[(u64, Slot)], StoreError) -> Failed;
        let outcome = match update_likely(&store.pages, root, 0, &first.key, &mut change).await {
            // Then these are done with.
            Ok(Some(_)) if is_foreign && taken > 0 => {
                of = Failed::other;
                put_aside(store, root, &rest[..taken], done).await
            }
            Ok(Some(_)) if taken > 0 => {
                of = Failed::other;
                match ahead {
                    Some((page, complete)) => is_behind(store, page, complete).await,
                    None => Ok(()),
                }
            }
            Ok(_) => {
                of = Failed::new;
                Err(StoreError::Tree { page: root, what: "no leaf owns a key" })
            }
            Err(error) => {
                of = Failed::new;
                Err(error)
            }
        };
        if let Err(error) = outcome {
            // Other leaves go on, unless it is the services that fail: then nothing was tried of the rest.
            if error.is_passing() {
                return Err(Failed::other(rest, error).after(failed));
            }
            taken = rest.iter().take_while(|(_, slot)| slot.key == first.key).count();
            failed = Some(of(&rest[..taken], error).after(failed.take()));
        } else if added > 0 {
            reached(&store.cloud, FailPoint::Versioned).await;
        }
        done.leaves += 1;
        done.applied += added as u64;
        rest = &rest[taken..];
    }
    failed.map_or(Ok(()), Err)
}

/// Puts writes into quarantine that are for a tree of no versions, or for none, in objects of at most
/// [`ASIDE_BYTES_MAX`] and a write.
async fn put_aside(
    store: &Store,
    root: PageId,
    rest: &[(u64, Slot)],
    done: &mut Checkpointed,
) -> Result<(), StoreError> {
    let number = rest.iter().map(|(number, _)| *number).min().unwrap_or(0);
    let mut writes: BTreeMap<Bytes, Write> = BTreeMap::new();
    for version in rest.iter().rev().filter_map(|(_, slot)| versions::version(slot)) {
        let (key, payload) = (Bytes::from(version.key), version.payload);
        writes.insert(key.clone(), Write { tree: root, key, payload });
    }
    let mut writes = writes.into_values().peekable();
    while writes.peek().is_some() {
        let (mut part, mut part_bytes) = (Vec::new(), 0);
        while part_bytes < ASIDE_BYTES_MAX
            && let Some(write) = writes.next()
        {
            part_bytes += write.bytes();
            part.push(write);
        }
        let bytes = encode_data(root.0, &part);
        let name = format!("no-versions-{number:016x}-{}", fingerprint(&bytes));
        quarantine(&store.cloud, &store.settings, &Poison { name, bytes }).await?;
        done.poison += 1;
    }
    Ok(())
}

/// Whether each leaf of some trees that these writes belong to can be read, as it is now.
///
/// # Errors
/// Why one cannot.
pub(super) async fn can_be_read(
    store: &Store,
    trees: &BTreeSet<PageId>,
    writes: &[Write],
) -> Result<(), StoreError> {
    // They are in the order of trees and keys: where the last leaf ends, if it does.
    let mut seen: Option<(PageId, Option<Bytes>)> = None;
    for write in writes.iter().filter(|write| trees.contains(&write.tree)) {
        let (tree, key) = (write.tree, versions::begin_of(&write.key));
        let is_seen = seen
            .as_ref()
            .is_some_and(|(of, high)| *of == tree && high.as_ref().is_none_or(|high| key < *high));
        if is_seen {
            continue;
        }
        let found = search(&store.pages, tree, &key, 0, Freshness::Newest).await?;
        let found = found.ok_or(StoreError::Tree { page: tree, what: "has no leaves" })?;
        seen = Some((tree, found.held.page.high.clone()));
    }
    Ok(())
}

/// The leaf that owns a leaf key, in a copy that has all that the window of `view` does not.
pub(super) async fn leaf(
    store: &Store,
    view: &View,
    tree: PageId,
    key: &[u8],
) -> Result<Lent, StoreError> {
    let sequencer = &store.sequencer;
    let mut age = Freshness::Cached;
    loop {
        let found = search(&store.pages, tree, key, 0, age).await?;
        let found = found.ok_or(StoreError::Tree { page: tree, what: "has no leaves" })?;
        let page = found.held.page;
        if !versions::is_versioned(&page) {
            let what = "is of a collection without versions: use a lower level";
            return Err(StoreError::Tree { page: page.id, what });
        }
        if age == Freshness::Newest {
            if !view.lacks(tree, &page) {
                sequencer.cover(&page, view.numbers.applied);
            }
            return Ok(page);
        }
        let holds = store.settings.rules.hold(Rule::NoHoles);
        if sequencer.covers(&page) >= view.floor || !holds {
            return Ok(page);
        }
        age = Freshness::Newest;
    }
}
