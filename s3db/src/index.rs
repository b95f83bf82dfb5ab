//! Secondary indexes: records found by what they say.
//!
//! ```text
//!   index leaf    (search key, record key) -> nothing          a tree of its own
//!   put           a leaf names the indexes that follow it; entries are there before it is put
//!   probe         entries in order; each record is read before it is believed (W19)
//!   build         name it in the catalogue, make each leaf name it, insert its entries, ready
//! ```
//!
//! A client that commits need not know of any index. The page that a record comes to says which
//! follow it, and whoever puts that page, by compare and swap, sees what is replaced. So no record
//! is without its entry, however old what anybody knows of the catalogue is (see `checkpoint`).
//!
//! Building inserts entries under the stamps of the records as they are, which is what whoever puts
//! a record does. So it is safe beside writers and other builders, and can be done again at any time.
//!
//! Of collections that were created for isolation entries are committed with their records: see `sequence`.

use std::{collections::BTreeSet, ops::Bound};

use bytes::Bytes;

use crate::{
    blob::Value,
    catalog::{Collection, Index},
    checkpoint::{apply_to_indexes, follow},
    commit::{Scan, Session, Txn, Write},
    error::StoreError,
    fail_point::{FailPoint, reached},
    log::Entry,
    names::CATALOG,
    page::{Follower, INDEXES_MAX, Page, PageId, Slot},
    record::{Key, Payload, Record},
    search_by::SearchBy,
    sequence,
    settings::Rule,
    stamp::Stamp,
    store::Store,
    tree::{Freshness, Held, scan::Leaves, search::search, secondary, update::update},
};

/// Entries that building holds before it applies them.
const BUILD_ENTRIES_MAX: usize = 50_000;

/// What a look at an index found, or building it did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexCheck {
    /// Records that belong into the index.
    pub records: u64,
    /// Entries that it has.
    pub entries: u64,
    /// Records without an entry. Building adds them.
    pub missing: u64,
    /// Records whose entry was taken out by a newer write, which is not on the record's page yet.
    pub changing: u64,
    /// Entries of what a record said before, or of one that is not there at all and older than any
    /// that is on its way. Probes pass them over, and building again removes them.
    pub dangling: u64,
    /// Keys that are no entries: put there by hand. Probes pass them over, and they stay.
    pub strange: u64,
    /// Of a collection that was created for isolation: at every snapshot its indexes are what its records say, so
    /// that entries without a record are not passed over but an error.
    pub is_exact: bool,
}

impl IndexCheck {
    /// Whether probes miss records, or fail.
    pub fn is_wrong(&self) -> bool {
        self.missing > 0 || self.is_exact && self.dangling + self.strange > 0
    }
}

/// Records that an index leads to, in the order of their search keys and, where these are equal,
/// of their keys. See [`Session::find`].
pub struct Found<'a> {
    session: &'a Session,
    txn: &'a Txn,
    scan: Scan<'a>,
    /// The next entry of the scan.
    ahead: Option<Bytes>,
    /// Entries of what the transaction itself wrote, or saw in the log.
    own: BTreeSet<Bytes>,
    root: PageId,
    by: SearchBy,
    /// The tree of the index, and what it is called.
    index: PageId,
    name: String,
}

impl Found<'_> {
    /// The next search key and the record that it was found in; `None` at the end.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when the index was dropped, and whatever the services say.
    pub async fn next(&mut self) -> Result<Option<(Key, Record)>, StoreError> {
        loop {
            if self.ahead.is_none() {
                let next = self.scan.next_raw().await;
                if let Err(error) = &next
                    && self.session.store().is_dropped(self.index, error).await?
                {
                    // Whoever asks again is told of the one that was made since.
                    self.session.forget_tree(self.index);
                    return Err(StoreError::NotFound(self.name.clone()));
                }
                self.ahead = next?.map(|(key, _)| key);
            }
            let pair = match (&self.ahead, self.own.first()) {
                (Some(ahead), Some(own)) => ahead.min(own),
                (Some(one), None) | (None, Some(one)) => one,
                (None, None) => return Ok(None),
            };
            let pair = pair.clone();
            let Some((search, record)) = divide(&pair) else {
                self.pass(&pair);
                continue;
            };
            // The entry says that the record said so once. Only the record says what it is.
            let read = self.session.read_value(self.txn, self.root, &record).await;
            // What can be read when it is asked for again, or nobody waited for, is the next one still.
            if !read.as_ref().is_err_and(StoreError::is_passing) {
                self.pass(&pair);
            }
            let value = read?;
            // What lies in a blob has no entry. Nor has what the transaction itself is to put into one;
            // others may keep longer payloads in their pages than this client.
            let most = match self.txn.own_value(self.root, record.as_bytes()) {
                Some(_) => self.session.inline_bytes_max(),
                None => usize::MAX,
            };
            let payload = value.as_ref().and_then(Value::here).filter(|it| it.len() <= most);
            let Some(payload) = payload else { continue };
            let payload = Payload::new(payload)?;
            let verifies = self.session.store().settings.rules.hold(Rule::Verify);
            if !verifies || self.by.key(payload.as_bytes()).as_ref() == Some(&search) {
                return Ok(Some((search, Record { key: record, payload })));
            }
        }
    }

    /// Goes on behind `pair`.
    fn pass(&mut self, pair: &Bytes) {
        self.ahead.take_if(|ahead| ahead == pair);
        self.own.remove(pair);
    }
}

/// The search key and the record's key of an entry. `None` when it is no entry: anyone can put records
/// of any key into any tree, and one of them is not in the way of the others.
pub(crate) fn divide(pair: &[u8]) -> Option<(Key, Key)> {
    let (search, record) = secondary::divide(pair)?;
    Some((Key::new(search).ok()?, Key::new(record).ok()?))
}

impl Session {
    /// Records of `of` whose search keys by the index `index` lie between two bounds, as `txn` sees
    /// them. An index is as old as any page: who sees a record may not find it yet.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is no such index, [`StoreError::Invalid`] while it is
    /// being built, and whatever the services say.
    pub async fn find<'a>(
        &'a self,
        txn: &'a Txn,
        of: &Collection,
        index: &str,
        from: Bound<&Key>,
        to: Bound<&Key>,
    ) -> Result<Found<'a>, StoreError> {
        let there = match self.probed(of.root, index) {
            Some(there) => there,
            None => {
                let mut there = named(of, index).ok().filter(|index| index.is_ready).cloned();
                if there.is_none() {
                    // Made or made ready since.
                    there = Some(named(&self.store().collection(&of.name).await?, index)?.clone());
                }
                let Some(there) = there.filter(|index| index.is_ready) else {
                    let what = format!("index {index} of {} is being built", of.name);
                    return Err(StoreError::Invalid(what));
                };
                self.begin_to_probe(of.root, &there);
                there
            }
        };
        let by = there.by.ok_or_else(|| no_rule(of, index))?;
        let from = match from {
            Bound::Unbounded => Bytes::new(),
            Bound::Included(key) => secondary::begin(key.as_bytes()),
            Bound::Excluded(key) => secondary::end(key.as_bytes()),
        };
        let to = match to {
            Bound::Unbounded => None,
            Bound::Included(key) => Some(secondary::end(key.as_bytes())),
            Bound::Excluded(key) => Some(secondary::begin(key.as_bytes())),
        };
        let mut own = BTreeSet::new();
        for write in txn.writes_of(of.root) {
            if let Write::Primary(key, Some(payload)) = write
                && payload.as_bytes().len() <= self.inline_bytes_max()
                && let Some(search) = by.key(payload.as_bytes())
            {
                own.insert(secondary::join(search.as_bytes(), key.as_bytes()));
            }
        }
        // What waits in the log has no entry yet. What is not so any more by now is passed over.
        for (key, (_, value)) in self.waiting(txn, of.root).await? {
            if let Some(search) = value.as_ref().and_then(Value::here).and_then(|it| by.key(it)) {
                own.insert(secondary::join(search.as_bytes(), key));
            }
        }
        own.retain(|pair| *pair >= from && to.as_ref().is_none_or(|to| pair < to));
        let is_empty = to.as_ref().is_some_and(|to| *to <= from);
        // A range that ends before it begins has nothing in it.
        let to = if is_empty { Some(from.clone()) } else { to };
        Ok(Found {
            session: self,
            txn,
            scan: self.scan_raw(txn, there.root, from, to),
            ahead: None,
            own: if is_empty { BTreeSet::new() } else { own },
            root: of.root,
            by,
            index: there.root,
            name: format!("index {index} of {}", of.name),
        })
    }
}

fn named<'a>(of: &'a Collection, index: &str) -> Result<&'a Index, StoreError> {
    let there = of.indexes.iter().find(|there| there.name == index);
    there.ok_or_else(|| StoreError::NotFound(format!("index {index} of {}", of.name)))
}

fn no_rule(of: &Collection, index: &str) -> StoreError {
    let what = format!("index {index} of {} has no rule: its entries are written by hand", of.name);
    StoreError::Invalid(what)
}

/// An index, as the leaves of its collection name it.
fn followed<'a>(of: &'a Collection, index: &str) -> Result<(&'a Index, Follower), StoreError> {
    let there = named(of, index)?;
    let by = there.by.clone().ok_or_else(|| no_rule(of, index))?;
    Ok((there, Follower { root: there.root, by }))
}

/// Why a record has no entry.
enum Lack {
    /// None was put.
    Missing,
    /// It is gone since a write that the record's page does not show yet: entries go first.
    Changing,
}

impl Store {
    /// Fills an index with what was there before it, and declares it ready. It can be stopped at any
    /// moment and begun again. Done for an index that is ready it mends it: adds what is missing,
    /// removes what is left of what records said before. `progress` hears how many records were
    /// looked at.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], also when it was dropped meanwhile, whatever has its name by now;
    /// [`StoreError::Invalid`] when the index has no rule, and whatever the services say.
    pub async fn build_index(
        &self,
        name: &str,
        index: &str,
        progress: impl Fn(u64),
    ) -> Result<IndexCheck, StoreError> {
        // This makes sure that the root of the index is there, before any leaf names it.
        let of = self.collection(name).await?;
        let (index, follower) = followed(&of, index)?;
        if of.isolation.is_some() {
            return sequence::build(self, &of, index, &follower, progress).await;
        }
        if !index.is_ready && !self.settings.rules.hold(Rule::ReadyLast) {
            self.declare_ready(name, index).await?;
        }
        let mut found = IndexCheck::default();
        let mut entries: Vec<Entry> = Vec::new();
        let mut next = Some(Bytes::new());
        while let Some(key) = next {
            let marks_first = self.settings.rules.hold(Rule::FollowerFirst);
            let mut before = Vec::new();
            if !marks_first && let Some(leaf) = self.leaf(of.root, &key).await? {
                before = follow::entries(&leaf.page, &follower);
            }
            // More names than a page can be read with: those of a catalogue that was lost count, too.
            let has_room = |page: &Page| page.followers.len() < INDEXES_MAX;
            let mut mark = |page: &mut Page| has_room(page) && page.add_follower(&follower);
            let leaf = update(&self.pages, of.root, 0, &key, &mut mark).await?;
            let leaf = leaf.ok_or(StoreError::Tree { page: of.root, what: "has no leaves" })?;
            if !leaf.followers.contains(&follower) {
                return Err(StoreError::Invalid(format!(
                    "page {} of {name} names {INDEXES_MAX} other indexes, which is the most there can \
                     be, some of them not in the catalogue: if they were dropped, s3db gc takes them out; if \
                     object {CATALOG}{name} was lost, restore it from a copy that has them, and before any gc",
                    leaf.id
                )));
            }
            reached(&self.cloud, FailPoint::Followed).await;
            // Whoever puts this leaf from now on puts the entries of what changes.
            let now = if marks_first { follow::entries(&leaf, &follower) } else { before };
            found.records += now.len() as u64;
            entries.extend(now);
            progress(found.records);
            next = leaf.high;
            if next.is_none() || entries.len() >= BUILD_ENTRIES_MAX {
                let done = apply_to_indexes(self, std::mem::take(&mut entries)).await?;
                found.missing += done.applied;
            }
        }
        if index.is_ready {
            self.walk_entries(&of, &follower, true, &mut found).await?;
        } else {
            found.entries = found.records;
            reached(&self.cloud, FailPoint::Filled).await;
            self.declare_ready(name, index).await?;
        }
        Ok(found)
    }

    /// Compares an index with its records, as they are on their pages. What is on its way to a page
    /// can have an entry already, of which the record says nothing yet.
    ///
    /// # Errors
    /// As [`Store::build_index`].
    pub async fn check_index(
        &self,
        name: &str,
        index: &str,
        progress: impl Fn(u64),
    ) -> Result<IndexCheck, StoreError> {
        let of = self.collection(name).await?;
        let (_, follower) = followed(&of, index)?;
        self.compare(&of, &follower, &progress).await
    }

    /// Compares all indexes that are ready and have a rule with their records, as [`Store::check_index`], and
    /// changes nothing. `told` hears what came of each, by the names of its collection and its own. Entries of
    /// the catalogue that cannot be read are left out: [`Store::verify`] tells them.
    ///
    /// # Errors
    /// What can be otherwise soon, such as a service that does not answer. Other errors are of one index each.
    pub async fn check_indexes(
        &self,
        progress: impl Fn(u64),
        mut told: impl FnMut(&str, &str, Result<IndexCheck, StoreError>),
    ) -> Result<(), StoreError> {
        for name in self.collections().await? {
            let of = match self.peek_collection(&name).await {
                Ok(of) => of,
                Err(error) if error.is_passing() => return Err(error),
                Err(_) => continue,
            };
            // Without a root there are no records.
            for index in of.indexes.iter().filter(|index| index.is_ready && of.has_root) {
                let Some(by) = index.by.clone() else { continue };
                let follower = Follower { root: index.root, by };
                let found = match self.compare(&of, &follower, &progress).await {
                    Err(error) if error.is_passing() => return Err(error),
                    found => found,
                };
                let is_whole = found.as_ref().is_ok_and(|found| !found.is_wrong());
                if is_whole || self.has_index(&name, index.root).await? {
                    told(&name, &index.name, found);
                }
            }
        }
        Ok(())
    }

    /// Whether the collection has that index still, or it was dropped meanwhile.
    pub(crate) async fn has_index(&self, name: &str, root: PageId) -> Result<bool, StoreError> {
        match self.peek_collection(name).await {
            Ok(of) => Ok(of.indexes.iter().any(|index| index.root == root)),
            Err(StoreError::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn compare(
        &self,
        of: &Collection,
        follower: &Follower,
        progress: &impl Fn(u64),
    ) -> Result<IndexCheck, StoreError> {
        if of.isolation.is_some() {
            return sequence::check(self, of, follower, progress).await;
        }
        let mut found = IndexCheck::default();
        let mut leaves = Leaves::new(of.root, Bytes::new(), None, Freshness::Newest);
        while let Some(leaf) = leaves.next(&self.pages).await? {
            let entries = follow::entries(&leaf.page, follower);
            found.records += entries.len() as u64;
            progress(found.records);
            for entry in entries {
                match self.lacks(of, &entry).await? {
                    None => {}
                    Some(Lack::Missing) => found.missing += 1,
                    Some(Lack::Changing) => found.changing += 1,
                }
            }
        }
        self.walk_entries(of, follower, false, &mut found).await?;
        Ok(found)
    }

    /// Looks at each entry, and counts and perhaps removes those whose record was written since and
    /// says something else.
    async fn walk_entries(
        &self,
        of: &Collection,
        follower: &Follower,
        mends: bool,
        found: &mut IndexCheck,
    ) -> Result<(), StoreError> {
        let root = follower.root;
        let age_us = self.settings.tombstone_age.as_micros() as u64;
        // What is known to be gone for good, if an entry was met whose record is not there at all.
        let mut horizon_us = None;
        let mut leaves = Leaves::new(root, Bytes::new(), None, Freshness::Newest);
        while let Some(leaf) = leaves.next(&self.pages).await? {
            let mut gone = Vec::new();
            for slot in leaf.page.slots().iter().filter(|slot| slot.payload.is_some()) {
                let Some((search, record)) = divide(&slot.key) else {
                    found.strange += 1;
                    continue;
                };
                found.entries += 1;
                let mut there = self.slot(of.root, record.as_bytes(), Freshness::Cached).await?;
                let is_old = |us: u64| slot.stamp.clock < us;
                if there.is_none() && is_old((self.pages.date_ms() * 1000).saturating_sub(age_us)) {
                    // Older than any record that is on its way, and than what is left of one that was
                    // deleted; if all of that can be told. If not it stays for the next time.
                    if mends && horizon_us.is_none() {
                        horizon_us = Some(self.horizon_us().await.unwrap_or(0));
                    }
                    there = self.slot(of.root, record.as_bytes(), Freshness::Newest).await?;
                    if there.is_none() {
                        found.dangling += 1;
                        // Under a stamp that nobody has, since no clock of its client says the same
                        // twice: what is written again is above it.
                        let sequence = slot.stamp.sequence.checked_add(1);
                        if let Some(sequence) = sequence.filter(|_| is_old(horizon_us.unwrap_or(0)))
                        {
                            let stamp = Stamp { sequence, ..slot.stamp };
                            gone.extend(follow::entry(follower, stamp, search, &record, false));
                        }
                        continue;
                    }
                }
                let Some(there) = there.filter(|there| there.stamp > slot.stamp) else { continue };
                let says = there.payload.as_ref().and_then(Value::here);
                let says = says.and_then(|payload| follower.by.key(payload));
                if says.as_ref() != Some(&search) {
                    found.dangling += 1;
                    // What whoever put that record should have done.
                    gone.extend(follow::entry(follower, there.stamp, search, &record, false));
                }
            }
            if mends {
                apply_to_indexes(self, gone).await?;
            }
        }
        Ok(())
    }

    /// Why an index does not have this entry, although its record still says so. `None` if it has.
    async fn lacks(&self, of: &Collection, entry: &Entry) -> Result<Option<Lack>, StoreError> {
        let stamp = entry.record.stamp;
        let pair = entry.leaf_key();
        let mut lack = Lack::Missing;
        for age in [Freshness::Cached, Freshness::Newest] {
            let slot = self.slot(entry.tree, &pair, age).await?;
            let Some(slot) = slot.filter(|slot| slot.stamp >= stamp) else { continue };
            if slot.payload.is_some() {
                return Ok(None);
            }
            if slot.stamp > stamp {
                lack = Lack::Changing;
            }
        }
        // Changed meanwhile?
        let record = entry.record.change.payload().map_or(&[][..], Payload::as_bytes);
        let now = self.slot(of.root, record, Freshness::Newest).await?;
        Ok(now.filter(|now| now.stamp == stamp).map(|_| lack))
    }

    async fn leaf(&self, tree: PageId, key: &[u8]) -> Result<Option<Held>, StoreError> {
        Ok(search(&self.pages, tree, key, 0, Freshness::Newest).await?.map(|found| found.held))
    }

    async fn slot(
        &self,
        tree: PageId,
        key: &[u8],
        age: Freshness,
    ) -> Result<Option<Slot>, StoreError> {
        let found = search(&self.pages, tree, key, 0, age).await?;
        Ok(found.and_then(|found| found.held.page.slot(key).cloned()))
    }
}
