//! Indexes of collections whose records have versions: their entries have versions, too.
//!
//! ```text
//!   the numbers name an index: which collection, which tree, where it finds search keys, whether it is ready
//!   commit    what replaces a record deletes its entry and writes the new one: in the same commit
//!   build     1  name it in the catalogue, put its root, name it in the numbers   crash: goes on with that
//!             2  for each part of the records: commit the entries that are missing at a snapshot
//!             3  say in the numbers that it is ready, then in the catalogue       crash: the same
//!   drop      1  take it out of the catalogue                                     crash: gc goes on with that
//!             2  take it out of the numbers; bring what waits to its pages; delete the root
//! ```
//!
//! An entry is a key of the index's tree, the pair of a search key and a record's key. Whoever commits works
//! entries out from what the record holds at his snapshot; nobody wrote the record since, or he is aborted. So at
//! every snapshot the index is what its records say: nobody who finds an entry has to doubt it, and a range of
//! entries that a serializable transaction read is a range as any other.
//!
//! Nobody misses an index: who was to commit without knowing it, or with one that is gone, is aborted, since the
//! numbers that he swaps name others than he knew. Whoever builds takes his snapshots after it was named there, so
//! what he does not see is by somebody who knows it; and of a record that changes beside him one of the two is
//! aborted, if both write the same entry, and if not neither depends on the other.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;

use crate::{
    blob::Value,
    catalog::{Collection, Index, Isolation},
    error::{AbortCause, StoreError},
    fail_point::{FailPoint, reached},
    index::{IndexCheck, divide},
    page::{Follower, PageId, SLOT_KEY_BYTES_MAX},
    record::KEY_BYTES_MAX,
    retry::Attempts,
    search_by::SearchBy,
    sequence::{
        apply::apply,
        batch::{INLINE_BYTES, NO_LIFE, Submission},
        codec::{NUMBERS, Numbers, SequencedIndex, Write},
        scan::{Part, SnapshotScan},
        sequencer::{Swapped, find, newest, submit, swap_freely},
        transaction::{at, put_writes},
        versions,
        window::{Reads, View},
    },
    store::Store,
    tree::secondary,
};

/// Indexes of all collections together: each swap puts them.
const INDEXES_MAX: usize = 256;
/// Entries that building commits together.
const ENTRIES_MAX: usize = 1000;

/// The entry of a record that holds this. What lies in a blob has none.
pub(super) fn pair(by: &SearchBy, key: &[u8], value: Option<&Value>) -> Option<Bytes> {
    let search = by.key(value?.here()?)?;
    Some(secondary::join(search.as_bytes(), key))
}

/// Whether a page has room for an entry. It has none for the longest, of keys of zero bytes, each of which takes
/// three there: no such entry is ever made, looked for, or deleted.
fn has_room(pair: &Bytes) -> bool {
    versions::leaf_key(pair, 0).len() <= SLOT_KEY_BYTES_MAX
}

/// That the entry of the record `key` can be made.
fn check_pair(pair: &Bytes, key: &[u8]) -> Result<(), StoreError> {
    match has_room(pair) {
        false => Err(StoreError::Invalid(format!(
            "record {}: its entry in an index has {} bytes of both keys, too many of them zero: of zero bytes \
             there can be about {KEY_BYTES_MAX}",
            key.escape_ascii(),
            pair.len()
        ))),
        true => Ok(()),
    }
}

/// What whoever commits goes by.
#[derive(Default)]
pub(super) struct Known {
    /// The snapshot that entries were worked out at, if there are any to work out.
    pub(super) snapshot: Option<u64>,
    /// The collections that are written to, and the indexes of each.
    pub(super) indexes: Vec<(PageId, Vec<PageId>)>,
}

impl Known {
    fn of(numbers: &Numbers, writes: &[Write]) -> Known {
        let mut known = Known::default();
        known.add(numbers, writes.iter().map(|write| write.tree).collect());
        known
    }

    /// Adds the indexes of these collections.
    pub(super) fn add(&mut self, numbers: &Numbers, trees: BTreeSet<PageId>) {
        let roots = |tree| numbers.indexes_of(tree).iter().map(|index| index.root).collect();
        self.indexes.extend(trees.into_iter().map(|tree| (tree, roots(tree))));
    }

    fn has_some(&self) -> bool {
        self.indexes.iter().any(|(_, roots)| !roots.is_empty())
    }
}

/// The entries that writes of records imply, which are by tree and key, at a snapshot if there is one, or now.
pub(super) async fn implied(
    store: &Store,
    snapshot: Option<&Arc<View>>,
    writes: &[Write],
) -> Result<(Known, Vec<Write>), StoreError> {
    // One from before serves who writes to no index: who leads compares it with the newest.
    let mut view = match snapshot.cloned().or_else(|| store.sequencer.view()) {
        Some(view) => view,
        None => newest(store).await?,
    };
    let mut known = Known::of(&view.numbers, writes);
    if !known.has_some() {
        return Ok((known, Vec::new()));
    }
    if snapshot.is_none() {
        view = newest(store).await?;
        known = Known::of(&view.numbers, writes);
    }
    known.snapshot = Some(view.numbers.last);
    let mut entries = Vec::new();
    for write in writes {
        let indexes = view.numbers.indexes_of(write.tree);
        if indexes.is_empty() {
            continue;
        }
        let (_, before) = at(store, &view, write.tree, &write.key).await?;
        for index in indexes {
            let old = pair(&index.by, &write.key, before.as_ref());
            let new = pair(&index.by, &write.key, write.payload.as_ref());
            if old == new {
                continue;
            }
            if let Some(new) = &new {
                check_pair(new, &write.key)?;
            }
            let gone =
                old.filter(has_room).map(|key| Write { tree: index.root, key, payload: None });
            let there = new.map(|key| Write { tree: index.root, key, payload: Some(Value::EMPTY) });
            entries.extend(gone.into_iter().chain(there));
        }
    }
    Ok((known, entries))
}

/// Changes the indexes that the numbers name. `change` says whether it did, and so does this.
async fn change(
    store: &Store,
    change: impl Fn(&mut Vec<SequencedIndex>) -> Result<bool, StoreError>,
) -> Result<bool, StoreError> {
    // Beside those who commit one after the other it would always come too late.
    let _turn = store.sequencer.turn().await;
    let mut attempts = Attempts::new(&store.cloud, &store.settings);
    loop {
        let view = newest(store).await?;
        let mut next = view.numbers.clone();
        if !change(&mut next.indexes)? {
            return Ok(false);
        }
        match swap_freely(store, &view, next).await? {
            Swapped::Done(_) => return Ok(true),
            Swapped::Lost { .. } => attempts.after_loss(NUMBERS).await?,
        }
    }
}

/// Names an index in the numbers. From now on nobody commits without it. Says whether it was not named there.
async fn declare(store: &Store, index: &SequencedIndex) -> Result<bool, StoreError> {
    change(store, |all| {
        let place = all.binary_search_by_key(&(index.of, index.root), |it| (it.of, it.root));
        let Err(place) = place else { return Ok(false) };
        if all.len() >= INDEXES_MAX {
            return Err(StoreError::Invalid(format!(
                "collections for isolation have {INDEXES_MAX} indexes together, which is the most there can be"
            )));
        }
        all.insert(place, index.clone());
        Ok(true)
    })
    .await
}

/// Takes indexes out of the numbers, which the catalogue does not name any more, and never will.
pub(crate) async fn forget(store: &Store, roots: &[PageId]) -> Result<(), StoreError> {
    change(store, |all| {
        let had = all.len();
        all.retain(|index| !roots.contains(&index.root));
        Ok(all.len() < had)
    })
    .await
    .map(drop)
}

/// The same of all that was dropped by somebody who did not come to the end of it.
pub(crate) async fn forget_dropped(store: &Store) -> Result<(), StoreError> {
    let Some(view) = find(store).await? else { return Ok(()) };
    if view.numbers.indexes.is_empty() {
        return Ok(());
    }
    // The catalogue names it first, so what it does not name, read after the numbers, is gone for good. Unless it
    // has lost the collection, which may be restored with all its indexes: one of this kind is never dropped.
    let (mut trees, mut there) = (BTreeSet::new(), BTreeSet::new());
    for name in store.collections().await? {
        match store.peek_collection(&name).await {
            Ok(of) => {
                trees.insert(of.root);
                there.extend(of.indexes.iter().map(|index| index.root));
            }
            // Dropped since it was listed.
            Err(StoreError::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
    }
    let is_gone =
        |index: &&SequencedIndex| trees.contains(&index.of) && !there.contains(&index.root);
    let gone = view.numbers.indexes.iter().filter(is_gone);
    let gone: Vec<PageId> = gone.map(|index| index.root).collect();
    if gone.is_empty() {
        return Ok(());
    }
    forget(store, &gone).await?;
    // What waits for them comes to their pages before these go, or is put aside.
    match apply(store).await {
        Err(error) if error.is_passing() => Err(error),
        _ => Ok(()),
    }
}

/// Whether the numbers say of an index that it has all records.
pub(crate) async fn is_ready(store: &Store, of: PageId, root: PageId) -> Result<bool, StoreError> {
    let view = newest(store).await?;
    Ok(view.numbers.indexes_of(of).iter().any(|index| index.root == root && index.is_ready))
}

/// Names an index, commits the entries that it lacks, and says that it is ready. One that is ready it mends.
pub(crate) async fn build(
    store: &Store,
    of: &Collection,
    index: &Index,
    follower: &Follower,
    progress: impl Fn(u64),
) -> Result<IndexCheck, StoreError> {
    let builder = Builder::new(store, of, follower, true);
    let is_new = declare(store, &builder.index).await?;
    reached(&store.cloud, FailPoint::Followed).await;
    let now = store.peek_collection(&of.name).await;
    if !now.is_ok_and(|now| now.indexes.iter().any(|it| it.root == index.root)) {
        // Dropped since it was looked up, by somebody who could not know that it would be named here.
        forget_dropped(store).await?;
    }
    let mut found = IndexCheck { is_exact: true, ..IndexCheck::default() };
    builder.records(&mut found, &progress).await?;
    // One that was not named had nobody to keep its entries: from before numbers that were lost, perhaps.
    if index.is_ready || is_new {
        builder.entries(&mut found).await?;
    }
    reached(&store.cloud, FailPoint::Filled).await;
    let root = index.root;
    change(store, |all| {
        let Some(there) = all.iter_mut().find(|it| it.root == root) else {
            return Err(builder.not_found());
        };
        Ok(!std::mem::replace(&mut there.is_ready, true))
    })
    .await?;
    if !index.is_ready && !is_new {
        found.entries = found.records;
    }
    store.declare_ready(&of.name, index).await?;
    Ok(found)
}

/// Compares an index with its records.
pub(crate) async fn check(
    store: &Store,
    of: &Collection,
    follower: &Follower,
    progress: &impl Fn(u64),
) -> Result<IndexCheck, StoreError> {
    let builder = Builder::new(store, of, follower, false);
    let mut found = IndexCheck { is_exact: true, ..IndexCheck::default() };
    builder.records(&mut found, progress).await?;
    builder.entries(&mut found).await?;
    Ok(found)
}

/// Who looks at an index and its records, part by part, each at a snapshot of its own: they fit together at any.
struct Builder<'a> {
    store: &'a Store,
    of: &'a Collection,
    index: SequencedIndex,
    /// Whether what is wrong is put right.
    writes: bool,
}

impl<'a> Builder<'a> {
    fn new(store: &'a Store, of: &'a Collection, by: &Follower, writes: bool) -> Builder<'a> {
        let (root, by) = (by.root, by.by.clone());
        let index = SequencedIndex { of: of.root, root, by, is_ready: false };
        Builder { store, of, index, writes }
    }

    fn not_found(&self) -> StoreError {
        let named = self.of.indexes.iter().find(|index| index.root == self.index.root);
        let name = named.map_or("", |index| &index.name);
        StoreError::NotFound(format!("index {name} of {}", self.of.name))
    }

    /// The view now, which names the index if something is to be written.
    async fn view(&self) -> Result<Arc<View>, StoreError> {
        let view = newest(self.store).await?;
        let is_there = |index: &SequencedIndex| index.root == self.index.root;
        match self.writes && !view.numbers.indexes_of(self.of.root).iter().any(is_there) {
            true => Err(self.not_found()),
            false => Ok(view),
        }
    }

    /// What a leaf has from a key on, and the leaves behind it, if it has versions of that key alone.
    async fn part(
        &self,
        view: &View,
        tree: PageId,
        begin: Bytes,
    ) -> Result<Option<Part>, StoreError> {
        let mut scan = SnapshotScan::new(tree, begin.clone(), None);
        loop {
            let part = scan.step(self.store, view).await?;
            if part.as_ref().is_none_or(|part| part.until.as_ref() != Some(&begin)) {
                return Ok(part);
            }
        }
    }

    /// Looks for the entry of each record.
    async fn records(
        &self,
        found: &mut IndexCheck,
        progress: &impl Fn(u64),
    ) -> Result<(), StoreError> {
        let store = self.store;
        let mut from = Some(Bytes::new());
        let mut most = ENTRIES_MAX;
        let mut attempts = Attempts::new(&store.cloud, &store.settings);
        while let Some(begin) = from.clone() {
            let view = self.view().await?;
            let Some(part) = self.part(&view, self.of.root, begin).await? else { break };
            let mut next = part.until;
            let (mut records, mut missing) = (0, Vec::new());
            for (key, (_, value)) in part.shown {
                let Some(pair) = pair(&self.index.by, &key, value.as_ref()) else { continue };
                let has_room = has_room(&pair);
                if !has_room || at(store, &view, self.index.root, &pair).await?.1.is_none() {
                    if missing.len() == most {
                        // The rest of it is for the next time.
                        next = Some(key);
                        break;
                    }
                    if self.writes {
                        check_pair(&pair, &key)?;
                    }
                    missing.push((pair, Some(Value::EMPTY)));
                }
                records += 1;
            }
            let lacks = missing.len() as u64;
            match self.commit(&view, missing).await {
                Ok(()) => {}
                // Somebody changes these records meanwhile: fewer at a time.
                Err(StoreError::Aborted { .. }) => {
                    most = (most / 2).max(1);
                    attempts.after_loss(NUMBERS).await?;
                    continue;
                }
                Err(error) => return Err(error),
            }
            attempts = Attempts::new(&store.cloud, &store.settings);
            most = (most * 2).min(ENTRIES_MAX);
            found.records += records;
            found.missing += lacks;
            progress(found.records);
            from = next;
        }
        Ok(())
    }

    /// Looks for the record of each entry.
    async fn entries(&self, found: &mut IndexCheck) -> Result<(), StoreError> {
        let store = self.store;
        let mut from = Some(Bytes::new());
        let mut attempts = Attempts::new(&store.cloud, &store.settings);
        while let Some(begin) = from.clone() {
            let view = self.view().await?;
            let Some(part) = self.part(&view, self.index.root, begin).await? else { break };
            let mut now = IndexCheck::default();
            let mut gone = Vec::new();
            for (key, (_, entry)) in part.shown {
                if entry.is_none() {
                    continue;
                }
                let Some((_, record)) = divide(&key) else {
                    now.strange += 1;
                    continue;
                };
                now.entries += 1;
                let (_, value) = at(store, &view, self.of.root, record.as_bytes()).await?;
                if pair(&self.index.by, record.as_bytes(), value.as_ref()).as_ref() != Some(&key) {
                    now.dangling += 1;
                    gone.push((key, None));
                }
            }
            match self.commit(&view, gone).await {
                Err(StoreError::Aborted { .. }) => {
                    attempts.after_loss(NUMBERS).await?;
                    continue;
                }
                done => done?,
            }
            attempts = Attempts::new(&store.cloud, &store.settings);
            found.entries += now.entries;
            found.dangling += now.dangling;
            found.strange += now.strange;
            from = part.until;
        }
        Ok(())
    }

    /// Commits entries that were worked out at a snapshot, which are by key.
    async fn commit(
        &self,
        view: &View,
        entries: Vec<(Bytes, Option<Value>)>,
    ) -> Result<(), StoreError> {
        if entries.is_empty() || !self.writes {
            return Ok(());
        }
        let store = self.store;
        let tree = self.index.root;
        let mut writes: Vec<Write> =
            entries.into_iter().map(|(key, payload)| Write { tree, key, payload }).collect();
        // Records are in the order of their own keys.
        writes.sort_by(|a, b| a.at().cmp(&b.at()));
        let id = store.cloud.chance.next_u128();
        let mut object = None;
        if writes.iter().map(Write::bytes).sum::<usize>() > INLINE_BYTES {
            object = Some(put_writes(store, id, &writes).await?);
        }
        let indexes = view.numbers.indexes_of(self.of.root).iter().map(|index| index.root);
        let indexes = vec![(self.of.root, indexes.collect())];
        let (life, snapshot) = (NO_LIFE, Some(view.numbers.last));
        let (level, reads) = (Isolation::Snapshot, Reads::default());
        let submission = Submission::new(id, life, snapshot, level, reads, writes.into(), object);
        match submit(store, &Arc::new(submission.knowing(indexes))).await {
            Ok(_) => Ok(()),
            // Whether it is: the next look at these tells.
            Err(StoreError::CommitUnknown { .. }) => {
                Err(StoreError::Aborted { why: AbortCause::Indexes })
            }
            Err(error) => Err(error),
        }
    }
}
