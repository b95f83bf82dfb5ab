//! The invariants (design, section 17), on what is there when nothing moves any more.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
};

use bytes::Bytes;

use crate::{
    blob::{Blob, Part},
    catalog::Collection,
    cloud::{
        CallKind, Ledger,
        model::{Version, World},
    },
    commit::Level,
    log::objects::{LogObject, decode, parse},
    names::{BLOBS, CATALOG, PAGES, SPILLED},
    page::{Page, PageId, Slot},
    simulation::{Attempt, Outcome, PART_BYTES, history::History},
    stamp::Stamp,
    tree::secondary,
};

/// An invariant that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Its number in the design, section 17; 0 when a client cannot work that should, 11 when an
    /// index is not what its records say, 12 when a read is not as of its snapshot, 13 when a history shows an
    /// anomaly, 14 when one of compare and swap is not linearizable, 15 when a stamp is further ahead of the
    /// object store's date than may be.
    pub invariant: u8,
    /// What was seen.
    pub what: String,
}

impl Violation {
    pub(super) fn new(invariant: u8, what: String) -> Violation {
        Violation { invariant, what }
    }

    pub(super) fn session(guarantee: &str, what: String) -> Violation {
        Violation { invariant: 4, what: format!("{guarantee}: {what}") }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invariant {}: {}", self.invariant, self.what)
    }
}

/// The tree at the end.
#[derive(Default)]
pub(super) struct Tree {
    pub(super) leaves: Vec<Page>,
    pub(super) slots: BTreeMap<Bytes, Slot>,
}

/// Invariant 5: the leaves, in order; fences meet; every key is found, also through any inner page
/// that ever was.
pub(super) fn tree(world: &World, root: PageId) -> (Tree, Vec<Violation>) {
    let mut broken = Vec::new();
    let mut newest: HashMap<PageId, Page> = HashMap::new();
    let mut stale_inner: Vec<Page> = Vec::new();
    // Inner pages of other trees lead elsewhere.
    let roots = collections(world)
        .into_iter()
        .flat_map(|of| of.indexes.into_iter().map(|index| index.root).chain([of.root]))
        .filter(|there| *there != root);
    let foreign = pages_of(world, roots);
    for (name, versions) in world.history(PAGES) {
        let pages: Vec<Option<Page>> = versions
            .iter()
            .map(|version| version.bytes.as_ref().and_then(|bytes| Page::decode(bytes).ok()))
            .collect();
        if let (Some(id), Some(Some(page))) = (PageId::of_object(&name), pages.last()) {
            newest.insert(id, page.clone());
        }
        let is_inner = |page: &Page| page.level > 0 && !foreign.contains(&page.id);
        stale_inner.extend(pages.into_iter().flatten().filter(is_inner));
    }
    let mut tree = Tree::default();
    let Some(mut page) = newest.get(&root) else {
        return (tree, vec![Violation::new(5, "the root is not there".into())]);
    };
    while page.level > 0 {
        let Some(child) = page.links().first().and_then(|link| newest.get(&link.child)) else {
            broken.push(Violation::new(5, format!("page {:?} has no first child", page.id)));
            return (tree, broken);
        };
        page = child;
    }
    let mut met = HashSet::new();
    let mut low = Bytes::new();
    let mut after_dead = false;
    loop {
        if !met.insert(page.id) {
            broken.push(Violation::new(5, "right pointers form a circle".into()));
            break;
        }
        // Who stands behind dead leaves owns their keys, whether its header says so yet or not.
        if page.low != low && !page.dead && !(after_dead && page.low > low) {
            let what = format!(
                "leaf {:?} begins at {:?}, its neighbour ends at {low:?}",
                page.id, page.low
            );
            broken.push(Violation::new(5, what));
        }
        for slot in page.slots() {
            tree.slots.insert(slot.key.clone(), slot.clone());
        }
        tree.leaves.push(page.clone());
        after_dead = page.dead;
        let Some(right) = page.right else { break };
        if let (Some(high), false) = (&page.high, page.dead) {
            low = high.clone();
        }
        let Some(next) = newest.get(&right) else {
            broken.push(Violation::new(5, format!("leaf {:?} is linked and not there", right)));
            break;
        };
        page = next;
    }
    for inner in &stale_inner {
        for key in tree.slots.keys().filter(|key| inner.owns(key)) {
            if let Err(what) = reach(&newest, root, inner, key) {
                let what =
                    format!("{:?} from page {:?} version {}: {what}", key, inner.id, inner.version);
                broken.push(Violation::new(5, what));
            }
        }
    }
    broken.truncate(5);
    (tree, broken)
}

/// All pages that these roots ever led to, and what was split from those.
fn pages_of(world: &World, roots: impl IntoIterator<Item = PageId>) -> HashSet<PageId> {
    let mut found: HashSet<PageId> = roots.into_iter().collect();
    if found.is_empty() {
        return found;
    }
    let pages: Vec<Page> = world
        .history(PAGES)
        .into_iter()
        .flat_map(|(_, versions)| versions)
        .filter_map(|version| Page::decode(&version.bytes?).ok())
        .collect();
    loop {
        let before = found.len();
        for page in &pages {
            if found.contains(&page.id) {
                found.extend(page.links().iter().map(|link| link.child).chain(page.right));
            } else if page.origin.is_some_and(|(origin, _)| found.contains(&origin)) {
                found.insert(page.id);
            }
        }
        if found.len() == before {
            return found;
        }
    }
}

/// The collections as the catalogue has them in the end.
fn collections(world: &World) -> Vec<Collection> {
    let decode = |(name, versions): (String, Vec<Version>)| {
        let bytes = versions.last()?.bytes.clone()?;
        Collection::decode(name.trim_start_matches(CATALOG), &bytes).ok()
    };
    world.history(CATALOG).into_iter().filter_map(decode).collect()
}

/// The root of a collection.
pub(super) fn root(world: &World, name: &str) -> Option<PageId> {
    collections(world).into_iter().find(|of| of.name == name).map(|of| of.root)
}

/// Invariant 5: no tree ever gets another root.
pub(super) fn roots(world: &World) -> Vec<Violation> {
    let mut broken = Vec::new();
    for (name, versions) in world.history(CATALOG) {
        let mut roots: BTreeMap<String, PageId> = BTreeMap::new();
        for version in versions {
            let Some(bytes) = version.bytes else {
                roots.clear();
                continue;
            };
            let collection = name.trim_start_matches(CATALOG);
            let Ok(of) = Collection::decode(collection, &bytes) else { continue };
            let indexes =
                of.indexes.into_iter().map(|index| (format!("index {}", index.name), index.root));
            for (tree, root) in indexes.chain([("records".to_owned(), of.root)]) {
                let first = *roots.entry(tree.clone()).or_insert(root);
                if first != root {
                    let what = format!("{name}, {tree}: the root was {first}, and is {root}");
                    broken.push(Violation::new(5, what));
                }
            }
        }
    }
    broken
}

/// Invariant 11: every index is ready, and is exactly what its records say: an entry for each, under
/// its stamp, and no other. Each leaf of the records says that the index follows it.
pub(super) fn index(world: &World, name: &str, records: &Tree) -> Vec<Violation> {
    let of = collections(world).into_iter().find(|of| of.name == name);
    let Some(of) = of.filter(|of| !of.indexes.is_empty()) else {
        return vec![Violation::new(11, "there is no index".into())];
    };
    let mut broken = Vec::new();
    for index in of.indexes {
        if !index.is_ready {
            broken.push(Violation::new(11, format!("index {} is not ready", index.name)));
            continue;
        }
        let (tree, found) = tree(world, index.root);
        broken.extend(found);
        let live = |tree: &Tree| -> Vec<Slot> {
            tree.slots.values().filter(|slot| slot.payload.is_some()).cloned().collect()
        };
        let mut due: BTreeMap<Bytes, Stamp> = BTreeMap::new();
        for record in live(records) {
            let search =
                index.by.as_ref().zip(record.payload).and_then(|(by, it)| by.key(it.here()?));
            if let Some(search) = search {
                due.insert(secondary::join(search.as_bytes(), &record.key), record.stamp);
            }
        }
        for entry in live(&tree) {
            let pair = entry.key.escape_ascii();
            match due.remove(&entry.key) {
                Some(stamp) if stamp == entry.stamp => {}
                Some(stamp) => {
                    let what = format!("entry {pair} is of {}, its record of {stamp}", entry.stamp);
                    broken.push(Violation::new(11, what));
                }
                None => {
                    let what = format!("entry {pair} at {} is of no record", entry.stamp);
                    broken.push(Violation::new(11, what));
                }
            }
        }
        for (pair, stamp) in due {
            let what = format!("entry {} at {stamp} is missing", pair.escape_ascii());
            broken.push(Violation::new(11, what));
        }
        let is_followed =
            |leaf: &&Page| leaf.dead || leaf.followers.iter().any(|it| it.root == index.root);
        for leaf in records.leaves.iter().filter(|leaf| !is_followed(leaf)) {
            let what = format!("leaf {:?} does not name index {}", leaf.id, index.name);
            broken.push(Violation::new(11, what));
        }
    }
    broken
}

/// Goes the way of a reader whose cache holds `from`. A page that was deleted since then sends it
/// back to the root, where it reads the newest inner pages; a hole that those lead to is passed on
/// the left. A hole behind a right pointer has no way around.
fn reach(
    newest: &HashMap<PageId, Page>,
    root: PageId,
    from: &Page,
    key: &[u8],
) -> Result<(), String> {
    let mut page = from;
    let mut is_newest = false;
    for _ in 0..10_000 {
        let next = if page.dead || !page.ends_after(key) {
            let right = page.right.ok_or("ends too early")?;
            newest.get(&right).ok_or("a right neighbour is not there")
        } else if page.level == 0 {
            return page.slot(key).map(drop).ok_or_else(|| "its leaf does not hold it".into());
        } else {
            let links = page.links();
            let after = links.partition_point(|link| &link.key[..] <= key).max(1).min(links.len());
            let mut children = links[..after].iter().rev().map(|link| newest.get(&link.child));
            let child =
                if is_newest { children.flatten().next() } else { children.next().flatten() };
            child.ok_or("a child is not there")
        };
        page = match next {
            Ok(next) => next,
            Err(what) if is_newest => return Err(what.into()),
            Err(_) => {
                is_newest = true;
                newest.get(&root).ok_or("the root is not there")?
            }
        };
    }
    Err("no end".into())
}

/// Invariants 1 and 2: what the tree holds against what clients know.
pub(super) fn contents(tree: &Tree, history: &History, prunes: bool) -> Vec<Violation> {
    let mut broken = Vec::new();
    let mut writers = HashMap::new();
    for (number, attempt) in history.attempts.iter().enumerate() {
        for (key, stamp, payload) in &attempt.writes {
            writers.insert(*stamp, (number, key, payload));
        }
    }
    // What is there was written by someone, as it is there.
    for slot in tree.slots.values() {
        match writers.get(&slot.stamp) {
            Some((_, key, payload)) if **key == slot.key && **payload == slot.payload => {}
            _ => broken.push(Violation::new(1, format!("{slot:?} was never written so"))),
        }
    }
    // A tombstone that was dropped leaves nothing: then some delete at least as late explains it.
    let mut deletes: HashMap<&Bytes, Stamp> = HashMap::new();
    if prunes {
        for (key, stamp, payload) in history.attempts.iter().flat_map(|attempt| &attempt.writes) {
            if payload.is_none() {
                let last = deletes.entry(key).or_default();
                *last = (*last).max(*stamp);
            }
        }
    }
    let is_applied = |key: &Bytes, stamp| match tree.slots.get(key) {
        Some(slot) => slot.stamp >= stamp,
        None => deletes.get(key).is_some_and(|last| *last >= stamp),
    };
    for (number, attempt) in history.attempts.iter().enumerate() {
        let what = format!("#{number} of client {} epoch {}", attempt.client, attempt.epoch);
        let mut is_seen = attempt
            .writes
            .iter()
            .any(|(key, stamp, _)| tree.slots.get(key).is_some_and(|slot| slot.stamp == *stamp));
        is_seen |= attempt.writes.iter().any(|(_, stamp, _)| history.read.contains(stamp));
        let missing = attempt.writes.iter().find(|(key, stamp, _)| !is_applied(key, *stamp));
        match (attempt.outcome, missing) {
            (Outcome::Committed, Some((key, stamp, _))) => {
                let there = tree.slots.get(key).map(|slot| slot.stamp);
                let what = format!(
                    "{what} is committed; its {} at {stamp} is lost, there is {there:?}",
                    key.escape_ascii()
                );
                broken.push(Violation::new(1, what));
            }
            (Outcome::Failed, _) if is_seen && attempt.level == Level::Atomic => {
                broken.push(Violation::new(2, format!("{what} is not committed, and was seen")));
            }
            (Outcome::Uncertain, Some(_)) if is_seen && attempt.level == Level::Atomic => {
                broken.push(Violation::new(2, format!("{what} is atomic, and half there")));
            }
            _ => {}
        }
    }
    broken
}

/// Invariants 1 and 9: every blob that a record names is there, as it was written; and no other is, after
/// nothing happened for long and garbage was collected. `written` is what was written, if that is not looked at
/// elsewhere. Returns how many are there.
pub(super) fn blobs(
    world: &World,
    tree: &Tree,
    written: Option<&BTreeMap<Stamp, Bytes>>,
) -> (u64, Vec<Violation>) {
    let parts: BTreeMap<String, Bytes> = world
        .history(BLOBS)
        .into_iter()
        .filter_map(|(name, versions)| Some((name, versions.last()?.bytes.clone()?)))
        .collect();
    let (mut named, mut broken, mut count) = (HashSet::new(), Vec::new(), 0);
    for slot in tree.slots.values() {
        let Some(blob) = slot.blob() else { continue };
        count += 1;
        let names: Vec<String> = (0..blob.parts()).map(|part| blob.object(part)).collect();
        let bodies = names.iter().map(|name| Some(Part::decode(parts.get(name)?).ok()?.body));
        let content = bodies.collect::<Option<Vec<Bytes>>>().map(|bodies| bodies.concat());
        let (name, key) = (blob.object(0), slot.key.escape_ascii());
        let is_it = |content: &Vec<u8>| {
            written.is_none_or(|all| all.get(&blob.stamp()).is_some_and(|it| *it == *content))
        };
        match content {
            None => broken.push(Violation::new(1, format!("{name} of {key} is lost"))),
            Some(content)
                if !is_it(&content)
                    || Blob::of(blob.stamp(), &content, PART_BYTES) != Some(*blob) =>
            {
                let what = format!("{name} of {key} is not what was written");
                broken.push(Violation::new(1, what));
            }
            Some(_) => {}
        }
        named.extend(names);
    }
    if let Some(left) = parts.keys().find(|name| !named.contains(*name)) {
        broken.push(Violation::new(9, format!("{left} is of no record, and stays")));
    }
    (count, broken)
}

/// Invariant 9: whatever was too large for a message was sent on, or collected.
pub(super) fn spills(world: &World) -> Option<Violation> {
    let last = |(name, versions): (String, Vec<_>)| Some((name, versions.into_iter().next_back()?));
    let all = world.history(SPILLED).into_iter().filter_map(last);
    let (left, _) = all.into_iter().find(|(_, version)| version.bytes.is_some())?;
    Some(Violation::new(9, format!("{left} is named by nobody, and stays")))
}

/// Invariant 8: nothing is added behind the fence that ends a stream. A fence that arrives where
/// there are higher numbers already ends nothing.
pub(super) fn fences(world: &World) -> Vec<Violation> {
    let mut events = Vec::new();
    for (name, versions) in world.history("log/") {
        let Some((stream, number)) = parse(&name) else { continue };
        for version in versions {
            let Some(bytes) = version.bytes else { continue };
            let is_fence = matches!(decode(&bytes, stream, number), Ok(LogObject::Fence { .. }));
            events.push((version.at_us, stream, number, is_fence));
        }
    }
    events.sort();
    let mut broken = Vec::new();
    let mut highest = HashMap::new();
    let mut ends = HashMap::new();
    for (_, stream, number, is_fence) in events {
        if ends.get(&stream).is_some_and(|end| number > *end) {
            broken.push(Violation::new(
                8,
                format!("{stream:?} goes on at {number}, behind its fence"),
            ));
        }
        let highest = highest.entry(stream).or_insert(None);
        if is_fence && highest.is_none_or(|highest| number > highest) {
            ends.entry(stream).or_insert(number);
        }
        *highest = Some(highest.map_or(number, |highest: u64| highest.max(number)));
    }
    broken
}

/// Invariant 8: a life that is over commits nothing more.
pub(super) fn late(history: &History) -> Vec<Violation> {
    let late = |attempt: &&Attempt| attempt.is_late && attempt.outcome == Outcome::Committed;
    let show = |attempt: &Attempt| {
        let what = format!(
            "client {} committed in epoch {}, which was over",
            attempt.client, attempt.epoch
        );
        Violation::new(8, what)
    };
    history.attempts.iter().filter(late).map(show).collect()
}

/// Invariant 10: the ledger is the sum of what was charged.
pub(super) fn ledger(counted: &Ledger, charged: &Ledger) -> Vec<Violation> {
    let differs = |kind: &CallKind| counted.charge(*kind) != charged.charge(*kind);
    let show = |kind: CallKind| {
        let (counted, charged) = (counted.charge(kind), charged.charge(kind));
        Violation::new(10, format!("{}: counted {counted:?}, charged {charged:?}", kind.name()))
    };
    CallKind::ALL.into_iter().filter(differs).map(show).collect()
}
