//! From the window to the pages. Anyone may do it at any time, and any number at once.
//!
//! ```text
//!   1  read the newest numbers, with all that is not on its pages     crash: nothing happened
//!   2  for each leaf, in the order of keys:
//!        add the versions that it is not complete to yet, say up to where it is now,
//!        drop what the horizon has passed, put it by compare and swap  crash: some pages are ahead
//!   3  swap in up to where all of it is there                         crash: done again, without effect
//! ```
//!
//! A leaf takes each commit once, in order, whoever brings it: it says up to which it is complete, and
//! whoever comes late adds nothing. So nothing that was pruned comes back.
//!
//! A leaf that cannot be read keeps its commits in the window, and those behind them, though what these write on
//! other leaves is put. When the window is full of them no transaction is committed any more, and all are told
//! why, and which page it is. A leaf that holds no versions takes nothing: its writes are put into quarantine.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::{
    Checkpointed,
    cloud::ledger::for_tree,
    error::StoreError,
    fail_point::{FailPoint, reached},
    lent::Lent,
    log::{Poison, queues::quarantine},
    page::{Page, PageId, Slot},
    retry::Attempts,
    sequence::{
        batch,
        codec::{NUMBERS, Write, encode_data},
        health::is_behind,
        sequencer::{Swapped, newest, swap_freely},
        versions,
        window::View,
    },
    store::Store,
    tree::{Freshness, Nodes, search::search, update::update},
};

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
    if numbers.applied == numbers.last {
        return Ok(done);
    }
    let mut trees: BTreeMap<PageId, Versions> = BTreeMap::new();
    for (number, commit) in numbers.numbered().filter(|(number, _)| *number > numbers.applied) {
        done.records += commit.writes.len() as u64;
        for write in &*commit.writes {
            let slot = versions::slot(&write.key, number, commit.client, write.payload.as_ref());
            trees.entry(write.tree).or_default().push((number, slot));
        }
    }
    // The first commit of which something is not on its page.
    let mut stuck: Option<u64> = None;
    let mut outcome = Ok(());
    for (root, mut versions) in trees {
        versions.sort_by(|a, b| a.1.key.cmp(&b.1.key));
        let applied = for_tree(root.0, apply_to(store, &view, root, &versions, &mut done)).await;
        if let Err((number, error)) = applied {
            stuck = Some(stuck.map_or(number, |first| first.min(number)));
            // The services fail: nothing else would come of the others.
            let is_over = error.is_passing();
            outcome = outcome.and(Err(error));
            if is_over {
                return outcome.map(|()| done);
            }
        }
    }
    let through = stuck.map_or(numbers.last, |number| number - 1);
    // Beside those who commit one after the other it would always come too late.
    let _turn = match has_turn {
        true => None,
        false => Some(store.sequencer.turn().await),
    };
    declare(store, &view, through).await?;
    outcome.map(|()| done)
}

/// Says that all commits up to `through` are on their pages.
async fn declare(store: &Store, view: &View, through: u64) -> Result<(), StoreError> {
    let mut attempts = Attempts::new(&store.cloud, &store.settings);
    let mut now = newest(store).await?;
    debug_assert!(now.numbers.last >= view.numbers.last, "strong consistency");
    while now.numbers.applied < through {
        let mut next = now.numbers.clone();
        next.applied = through;
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
    Ok(())
}

/// Puts versions on the leaves of one tree. An error comes with the first commit that it concerns.
async fn apply_to(
    store: &Store,
    view: &View,
    root: PageId,
    versions: &[(u64, Slot)],
    done: &mut Checkpointed,
) -> Result<(), (u64, StoreError)> {
    let first_of = |versions: &[(u64, Slot)]| versions.iter().map(|(number, _)| *number).min();
    let whole = first_of(versions).unwrap_or(0);
    // A tree that the catalogue does not name takes nothing, and is not in the way.
    match store.pages.node(root, Freshness::Cached).await {
        Ok(Some(_)) => {}
        Ok(None) => match store.has_tree(root).await {
            Ok(true) => return Err((whole, StoreError::Lost { object: root.object() })),
            Ok(false) => {
                let aside = put_aside(store, root, versions, done).await;
                return aside.map_err(|error| (whole, error));
            }
            Err(error) => return Err((whole, error)),
        },
        Err(error) => return Err((whole, error)),
    }
    let mut failed: Option<(u64, StoreError)> = None;
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
                versions::prune(page, view.numbers.horizon);
            }
            added > 0
        };
        let outcome = match update(&store.pages, root, 0, &first.key, &mut change).await {
            // Then these are done with.
            Ok(Some(_)) if is_foreign && taken > 0 => {
                put_aside(store, root, &rest[..taken], done).await
            }
            Ok(Some(_)) if taken > 0 => match ahead {
                Some((page, complete)) => is_behind(store, page, complete).await,
                None => Ok(()),
            },
            Ok(_) => Err(StoreError::Tree { page: root, what: "no leaf owns a key" }),
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            // Other leaves go on, unless it is the services that fail.
            let is_over = error.is_passing();
            taken = rest.iter().take_while(|(_, slot)| slot.key == first.key).count();
            let number = first_of(if is_over { rest } else { &rest[..taken] }).unwrap_or(whole);
            let both = match failed.take() {
                Some((there, earlier)) => (there.min(number), earlier),
                None => (number, error),
            };
            if is_over {
                return Err(both);
            }
            failed = Some(both);
        } else if added > 0 {
            reached(&store.cloud, FailPoint::Versioned).await;
        }
        done.leaves += 1;
        done.applied += added as u64;
        rest = &rest[taken..];
    }
    failed.map_or(Ok(()), Err)
}

/// Puts writes into quarantine that are for a tree of no versions, or for none.
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
    let writes: Vec<Write> = writes.into_values().collect();
    let bytes = encode_data(root.0, &writes);
    let name = format!("no-versions-{number:016x}-{:08x}", crate::frame::crc32c(&bytes));
    quarantine(&store.cloud, &store.settings, &Poison { name, bytes }).await?;
    done.poison += 1;
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
            sequencer.cover(&page, view.numbers.applied);
            return Ok(page);
        }
        let holds = store.settings.rules.hold(crate::settings::Rule::NoHoles);
        if sequencer.covers(&page) >= view.floor || !holds {
            return Ok(page);
        }
        age = Freshness::Newest;
    }
}
