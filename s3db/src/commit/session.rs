//! A client at work: what it reads, what it remembers of that, and how it commits.
//!
//! Three things make up the session guarantees. None needs a clock or a counter per client.
//!
//! - *Own writes*: changes that are committed and not yet seen on a page are laid over what is
//!   read. Each is kept until a fetched page shows its stamp, or a greater one (W9).
//! - *Monotonic reads*: the stamp of what was read last, or met by a scan, is remembered by key; a
//!   copy that shows an older one is fetched again. Page versions, in the pool, do the same by page
//!   (W10).
//! - *Write follows read*: reading pushes the stamps of later writes past what was read.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt as _, future::BoxFuture, stream::FuturesOrdered};
use tokio::sync::OnceCell;

use crate::{
    blob::{self, Blob, PART_BYTES_MAX, Value, Whole, Writing},
    catalog::{Backend, Index},
    checkpoint::Checkpointed,
    client::Incarnation,
    cloud::{Fault, ledger::in_background},
    commit::{Committed, Level, Txn, Write, fresh::Look},
    content::Content,
    error::StoreError,
    fail_point::{FailPoint, reached},
    lent::Lent,
    log::{Append, Appender, Entry, Scope, Transaction},
    names::WRITERS,
    page::{Page, PageId, Stream},
    record::{INLINE_BYTES_MAX, Key, Payload},
    sequence::is_versioned,
    settings::Rule,
    stamp::Stamp,
    store::Store,
    tag::Tag,
    tree::{Freshness, Nodes as _, scan::Leaves, search::search, secondary},
};

/// Keys whose last seen stamp is remembered.
const SEEN_MAX: usize = 100_000;
/// Bytes that one own change takes besides its key and its payload, about.
const OWN_FIXED_BYTES: usize = 160;
/// How many times what is meant to be remembered may be remembered, when no checkpoint succeeds,
/// before commits are refused.
const OWN_EXCESS_MAX: usize = 4;
/// Reads of the newest copy before an older state is taken for what there is: a tombstone that was
/// dropped looks like one.
const REREADS_MAX: u32 = 3;

/// Pages that a commit fetches at the same time.
const HINTS_AT_ONCE: usize = 16;

/// What a commit has to know of a record that it changes.
struct Hint {
    /// Its leaf, or one that was.
    page: PageId,
    /// Of the stamp of what is there.
    clock: Option<u64>,
}

/// One life of one client. It begins with the first commit: who only reads leaves no trace.
pub struct Session {
    store: Arc<Store>,
    client: u64,
    life: OnceCell<Life>,
    /// A life that was claimed, and whose beginning failed after that: the next attempt goes on.
    claimed: Mutex<Option<Incarnation>>,
    /// The highest clock of a stamp that was read.
    observed: AtomicU64,
    memory: Mutex<Memory>,
    transactions: AtomicU64,
    /// Whether this life has a stream in the log, as far as it made one.
    has_appended: AtomicBool,
}

/// What it takes to commit.
struct Life {
    me: Incarnation,
    appender: Box<dyn Appender>,
}

/// Own changes that no fetched page has shown yet, and those of others that were seen in the log, by tree
/// and leaf key.
#[derive(Default)]
struct Own {
    changes: BTreeMap<(PageId, Bytes), (Stamp, Option<Value>)>,
    /// What they take, nearly.
    bytes: usize,
}

impl Own {
    fn insert(&mut self, at: (PageId, Bytes), stamp: Stamp, payload: Option<Value>) {
        // Commits return in any order, and one that was unclear may be committed again after others.
        if self.changes.get(&at).is_some_and(|(there, _)| *there >= stamp) {
            return;
        }
        self.remove(&at);
        self.bytes += Own::weight(&at, payload.as_ref());
        self.changes.insert(at, (stamp, payload));
    }

    fn remove(&mut self, at: &(PageId, Bytes)) {
        if let Some((_, payload)) = self.changes.remove(at) {
            self.bytes -= Own::weight(at, payload.as_ref());
        }
    }

    fn weight(at: &(PageId, Bytes), payload: Option<&Value>) -> usize {
        OWN_FIXED_BYTES + at.1.len() + payload.map_or(0, Value::weight)
    }
}

#[derive(Default)]
struct Memory {
    own: Own,
    /// The stamps of what was read last.
    seen: HashMap<(PageId, Bytes), Stamp>,
    /// The keys of these in their order, for scans: a read of what was read before needs none of it.
    order: BTreeSet<(PageId, Bytes)>,
    /// Indexes that were probed, by the roots of their collections: own changes of records imply own
    /// entries there.
    probed: HashMap<PageId, Vec<Index>>,
}

impl Memory {
    /// An own change: it, and the entry that it implies in every index that was probed. The entry of
    /// what it replaces stays: probes read the record.
    fn insert(&mut self, at: (PageId, Bytes), stamp: Stamp, payload: Option<Value>) {
        for index in self.probed.get(&at.0).into_iter().flatten() {
            if let Some(pair) = entry_of(index, &at.1, payload.as_ref()) {
                self.own.insert((index.root, pair), stamp, Some(Value::EMPTY));
            }
        }
        self.own.insert(at, stamp, payload);
    }

    /// Whether this is an own entry of an index whose record pages have shown, or that was written
    /// again since: then the newest page of the index says all there is to say. Of a record that
    /// others had replaced before there was an index it never says anything.
    fn is_settled(&self, at: &(PageId, Bytes)) -> bool {
        let has = |indexes: &[Index]| indexes.iter().any(|index| index.root == at.0);
        let of = self.probed.iter().find(|(_, indexes)| has(indexes));
        let (Some((of, _)), Some((_, key))) = (of, secondary::divide(&at.1)) else { return false };
        let stamp_of = |at| self.own.changes.get(at).map(|(stamp, _)| *stamp);
        stamp_of(&(*of, Bytes::copy_from_slice(key))) != stamp_of(at)
    }
}

/// The leaf key of the entry that a record has in an index.
fn entry_of(index: &Index, key: &[u8], payload: Option<&Value>) -> Option<Bytes> {
    let search = index.by.as_ref()?.key(payload?.here()?)?;
    Some(secondary::join(search.as_bytes(), key))
}

/// What a key holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// The stamp of the write that made it so; zero if there never was one.
    pub(crate) stamp: Stamp,
    pub(crate) payload: Option<Value>,
}

impl Seen {
    fn of((stamp, payload): &(Stamp, Option<Value>)) -> Seen {
        Seen { stamp: *stamp, payload: payload.clone() }
    }
}

impl Session {
    /// Begins a life of `client`. Any earlier one is over: with backend s3-log it can commit
    /// nothing more, with the others what it still sends counts as a commit of its time.
    ///
    /// # Errors
    /// Whatever the services say.
    pub async fn open(store: Arc<Store>, client: u64) -> Result<Session, StoreError> {
        let session = Session::reader(store, client);
        session.life().await?;
        Ok(session)
    }

    /// A session whose life begins with its first commit.
    pub fn reader(store: Arc<Store>, client: u64) -> Session {
        let (life, claimed, memory, observed, transactions) = Default::default();
        let has_appended = AtomicBool::new(false);
        Session { store, client, life, claimed, observed, memory, transactions, has_appended }
    }

    async fn life(&self) -> Result<&Life, StoreError> {
        let begin = || async {
            let store = &self.store;
            let claim = || {
                let date_ms = move || store.sure_date_ms();
                Incarnation::claim(&store.cloud, &store.settings, self.client, date_ms)
            };
            let claimed = self.claimed().take();
            let me = match claimed {
                Some(me) => me,
                None => match claim().await {
                    // Ahead of what the object store said last, which may be long ago; or nobody
                    // knows.
                    Err(
                        StoreError::Clock { .. }
                        | StoreError::Claimed { .. }
                        | StoreError::Date { .. },
                    ) => {
                        store.ask_date().await?;
                        claim().await?
                    }
                    me => me?,
                },
            };
            let ends_others = async {
                let fence_from = me.fence_from().await;
                if !store.settings.rules.hold(Rule::FenceFirst) {
                    me.fenced().await?;
                }
                let appender = store.log.open(self.client, me.epoch, fence_from).await?;
                me.fenced().await.map(|()| appender)
            };
            let appender = match ends_others.await {
                Ok(appender) => appender,
                Err(error) => {
                    // Not an epoch for each attempt, unless this one is over already.
                    *self.claimed() = me.check_goes_on().is_ok().then_some(me);
                    return Err(error);
                }
            };
            // For the first time, mostly: then nobody is asked.
            let _ = store.ask_date_after_sleep().await;
            // What an earlier life left to be sent on.
            store.make_due(Scope::Client(self.client));
            Ok(Life { me, appender })
        };
        self.life.get_or_try_init(begin).await
    }

    fn claimed(&self) -> std::sync::MutexGuard<'_, Option<Incarnation>> {
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The client's name.
    pub fn client(&self) -> u64 {
        self.client
    }

    /// Which of the client's lives this is: greater than the epochs of those before; 0 before it
    /// has begun.
    pub fn epoch(&self) -> u64 {
        self.life.get().map_or(0, |life| life.me.epoch)
    }

    /// Looks ahead for a session that has begun: claims stamps for the next commits before those
    /// that are claimed are used up, so that no commit waits for that; and shows that this client is
    /// there, if it wrote nothing for long. Garbage collection forgets clients that wrote nothing for
    /// longer than a tombstone stays ([`Settings::tombstone_age`](crate::Settings)), and a client
    /// that is forgotten commits nothing more once it has to claim stamps, which it is told then.
    ///
    /// To be called about once a second, in the background, as an open [`Db`](crate::Db) does. Most
    /// calls ask no service; a client that goes on writing puts one object in a minute. Without it a
    /// commit does that, in passing.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] when it is forgotten, or its next life has begun; and whatever the
    /// services say. What failed is tried again by the next call.
    pub async fn keep_alive(&self) -> Result<(), StoreError> {
        match self.life.get() {
            Some(life) => {
                self.store.ask_date_after_sleep().await?;
                life.me.keep_alive(self.store.asked_date_ms().await?).await
            }
            None => Ok(()),
        }
    }

    /// The client and its life, which goes on as far as is known.
    pub(crate) async fn identity(&self) -> Result<(u64, u64), StoreError> {
        let me = &self.life().await?.me;
        me.check_goes_on()?;
        Ok((self.client, me.epoch))
    }

    /// Where this session's changes are, before they are on their pages.
    fn stream(&self) -> Stream {
        Stream { client: self.client, epoch: self.epoch() }
    }

    /// Checkpoints what this session committed, and retires its client for ever if nothing of it is
    /// left in the log. For clients whose name is never used again; any other is just dropped.
    /// A session that is finished commits nothing more.
    /// Returns whether the client is retired; if not, garbage collection does it some day.
    ///
    /// # Errors
    /// Whatever the services say. What was committed is committed, and the session commits nothing more
    /// after an error, too; it can be finished again.
    pub async fn finish(&self) -> Result<bool, StoreError> {
        let Some(life) = self.life.get() else { return Ok(true) };
        let store = &self.store;
        store.work_off().await?;
        if store.database().backend != Backend::S3Log {
            // Messages are anyone's to send on and to apply: nothing there needs the client.
            return life.me.retire().await;
        }
        if !self.has_appended.load(Ordering::Relaxed) {
            // Who only proposed has no stream, and perhaps no right to look for one.
            return life.me.retire().await;
        }
        let stream = self.stream();
        store.drain(Scope::Stream(stream)).await?;
        if !life.me.retire().await? {
            return Ok(false);
        }
        store.log.retire_stream(stream).await
    }

    /// Gives back the stamps that are claimed and not used, so that the next life of this client, if
    /// it begins soon, is not ahead of others. For a session that commits nothing more for now; if it
    /// does, it claims anew. One put.
    ///
    /// # Errors
    /// Whatever the services say. Nothing is lost but what the next life could have used.
    pub async fn rest(&self) -> Result<(), StoreError> {
        match self.life.get() {
            Some(life) => life.me.give_back().await,
            None => Ok(()),
        }
    }

    /// The store.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Begins a transaction.
    pub fn begin(&self, level: Level) -> Txn {
        Txn::new(level, self.inline_bytes_max())
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Own changes that no page has shown yet.
    pub fn unseen_writes(&self) -> usize {
        self.memory().own.changes.len()
    }

    /// The payload of `key` in the primary index `tree`, as `txn` sees it. A blob is read whole.
    ///
    /// # Errors
    /// [`BoundError::LongPayload`](crate::BoundError) when it is a blob that is too large to be held
    /// in memory ([`Session::open_content`] reads it), [`StoreError::Lost`] when a part of a blob is not there, and
    /// whatever the object store says.
    pub async fn read(
        &self,
        txn: &Txn,
        tree: PageId,
        key: &Key,
    ) -> Result<Option<Payload>, StoreError> {
        let mut value = self.read_value(txn, tree, key).await?;
        let store = &self.store;
        loop {
            let blob = match value {
                None => return Ok(None),
                Some(Value::Here(payload)) => return Ok(Some(Payload::new(&payload)?)),
                Some(Value::Blob(blob)) => blob,
            };
            value = match blob::whole(&store.cloud, &store.settings, &blob).await? {
                Whole::All(bytes) => return Ok(Some(Payload::new(bytes)?)),
                Whole::Without(part) => self.instead(txn, tree, key.as_bytes(), blob, part).await?,
            };
        }
    }

    /// The same, to be read part by part, however large it is.
    ///
    /// # Errors
    /// [`StoreError::Lost`] when the first part of a blob is not there, and whatever the object store
    /// says.
    pub async fn open_content(
        &self,
        txn: &Txn,
        tree: PageId,
        key: &Key,
    ) -> Result<Option<Content>, StoreError> {
        let Some(value) = self.read_value(txn, tree, key).await? else { return Ok(None) };
        self.content(txn, tree, key.as_bytes(), value).await
    }

    /// What a value that was read for a key holds, part by part.
    pub(crate) async fn content(
        &self,
        txn: &Txn,
        tree: PageId,
        key: &[u8],
        value: Value,
    ) -> Result<Option<Content>, StoreError> {
        let store = &self.store;
        let mut value = Some(value);
        while let Some(there) = value {
            if let Some(content) =
                Content::open(&store.cloud, &store.settings, there.clone()).await?
            {
                return Ok(Some(content.of(store, tree, key)));
            }
            let Value::Blob(blob) = there else { break };
            value = self.instead(txn, tree, key, blob, 0).await?;
        }
        Ok(None)
    }

    /// What a key holds instead of a blob of which a part is not there: its record was written again since
    /// the copy of the page was put that was read here.
    async fn instead(
        &self,
        txn: &Txn,
        tree: PageId,
        key: &[u8],
        blob: Blob,
        part: u32,
    ) -> Result<Option<Value>, StoreError> {
        let same = Some(Value::Blob(blob));
        let look = self.look(txn).await?;
        let newest = || self.read_at(tree, key, txn.level, Freshness::Newest, look);
        let now = match txn.own_value(tree, key) {
            Some(own) => own,
            None => {
                let now = newest().await?.payload;
                match now == same && self.forget_outlived(tree, key) {
                    true => newest().await?.payload,
                    false => now,
                }
            }
        };
        match now == same {
            true => Err(StoreError::Lost { object: blob.object(part) }),
            false => Ok(now),
        }
    }

    /// Forgets an own change that no page has shown for longer than a tombstone stays: others deleted the
    /// record since, of which nothing is left.
    fn forget_outlived(&self, tree: PageId, key: &[u8]) -> bool {
        let store = &self.store;
        let age_us = store.settings.tombstone_age.as_micros() as u64;
        // Not by a time that may be wrong.
        let before_us = (store.sure_date_ms().unwrap_or(0) * 1000).saturating_sub(age_us);
        let at = (tree, Bytes::copy_from_slice(key));
        let mut memory = self.memory();
        let own = memory.own.changes.get(&at);
        let is_outlived = own.is_some_and(|(stamp, _)| stamp.clock < before_us);
        if is_outlived {
            memory.own.remove(&at);
        }
        is_outlived
    }

    /// What `key` holds in the primary index `tree`, as `txn` sees it. No blob is read.
    pub(crate) async fn read_value(
        &self,
        txn: &Txn,
        tree: PageId,
        key: &Key,
    ) -> Result<Option<Value>, StoreError> {
        match txn.own_value(tree, key.as_bytes()) {
            Some(own) => Ok(own),
            None => Ok(self.read_stamped(txn, tree, key.as_bytes()).await?.payload),
        }
    }

    /// Begins to write a payload of any length, up to [`BLOB_BYTES_MAX`](crate::BLOB_BYTES_MAX). What
    /// comes of it can be put by a transaction that is committed soon: one that names a blob begun longer
    /// ago than half of [`Settings::tombstone_age`](crate::Settings) is refused.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub async fn write_blob(&self) -> Result<Writing, StoreError> {
        let stamp = self.stamp(&self.life().await?.me, &mut false).await?;
        Ok(Writing::new(self.store.cloud.clone(), self.store.settings, stamp))
    }

    /// What a leaf key holds, and since which write; but for what `txn` itself wrote.
    pub(crate) async fn read_stamped(
        &self,
        txn: &Txn,
        tree: PageId,
        key: &[u8],
    ) -> Result<Seen, StoreError> {
        let look = self.look(txn).await?;
        let age = look.map_or(Freshness::Cached, Look::age);
        self.read_at(tree, key, txn.level, age, look).await
    }

    /// The same, by copies of pages that are as new as that.
    async fn read_at(
        &self,
        tree: PageId,
        key: &[u8],
        level: Level,
        mut age: Freshness,
        look: Option<&Look>,
    ) -> Result<Seen, StoreError> {
        let waits = look.and_then(|look| look.get(tree, key));
        let waits = waits.filter(|(stamp, _)| stamp.clock >= self.look_floor_us());
        for reread in 0.. {
            let found = search(&self.store.pages, tree, key, 0, age).await?;
            let found = found.ok_or(StoreError::Tree { page: tree, what: "has no leaves" })?;
            let page = found.held.page;
            check_plain(&page)?;
            let mut seen = match page.slot(key) {
                Some(slot) => Seen { stamp: slot.stamp, payload: slot.payload.clone() },
                None => Seen::default(),
            };
            self.reader_rule(&page);
            let waits = waits.filter(|(stamp, _)| *stamp > seen.stamp);
            if let Some((stamp, _)) = waits {
                // Whatever is written after it counts after it, at every level.
                self.observed.fetch_max(stamp.clock, Ordering::Relaxed);
            }
            if !level.is_session() {
                return Ok(waits.map_or(seen, Seen::of));
            }
            let at = (tree, Bytes::copy_from_slice(key));
            let mut memory = self.memory();
            if let Some((stamp, payload)) = waits {
                // Not to be gone for the next read, which may be an ordinary one.
                memory.insert(at.clone(), *stamp, payload.clone());
            }
            self.lay_over(&mut memory, &at, &mut seen);
            if let Some(floor) = memory.seen.get_mut(&at) {
                if seen.stamp < *floor && reread < REREADS_MAX {
                    age = Freshness::Newest;
                    continue;
                }
                *floor = seen.stamp;
            } else {
                self.remember(&mut memory, at, seen.stamp);
            }
            drop(memory);
            self.observed.fetch_max(seen.stamp.clock, Ordering::Relaxed);
            return Ok(seen);
        }
        unreachable!("the last reread returns")
    }

    /// Takes note of what was read.
    fn remember(&self, memory: &mut Memory, at: (PageId, Bytes), stamp: Stamp) {
        if memory.seen.len() >= SEEN_MAX {
            memory.seen.clear();
            memory.order.clear();
            // What comes next is as new as the object store has it, so newer than all of it.
            self.store.pages.expire_all();
        }
        memory.order.insert(at.clone());
        memory.seen.insert(at, stamp);
    }

    /// Lays an own write over what a page shows, or forgets it if the page shows it.
    fn lay_over(&self, memory: &mut Memory, at: &(PageId, Bytes), seen: &mut Seen) {
        let Some((stamp, payload)) = memory.own.changes.get(at) else { return };
        if seen.stamp >= *stamp {
            memory.own.remove(at);
        } else if self.store.settings.rules.hold(Rule::Overlay) {
            *seen = Seen { stamp: *stamp, payload: payload.clone() };
        }
    }

    /// The reader rule (paper, 5.3): the longer ago a page's last checkpoint, the less likely it is
    /// that something waits for it.
    fn reader_rule(&self, page: &Page) {
        let settings = &self.store.settings;
        let interval = settings.checkpoint_interval.as_millis() as f64;
        let age = self.store.pages.date_ms().abs_diff(page.checkpoint_ms) as f64;
        if age <= interval {
            return;
        }
        let p = (settings.reader_factor * interval / age).min(1.0);
        if self.store.cloud.chance.with_probability(p) {
            self.store.make_due_for_reader(page.id);
        }
    }

    /// Records of `tree` from `from` to before `to` (`None`: to the end), in order.
    pub fn scan<'a>(
        &'a self,
        txn: &'a Txn,
        tree: PageId,
        from: Option<&Key>,
        to: Option<&Key>,
    ) -> Scan<'a> {
        let from = from.map_or_else(Bytes::new, |key| Bytes::copy_from_slice(key.as_bytes()));
        let to = to.map(|key| Bytes::copy_from_slice(key.as_bytes()));
        self.scan_raw(txn, tree, from, to)
    }

    pub(crate) fn scan_raw<'a>(
        &'a self,
        txn: &'a Txn,
        tree: PageId,
        from: Bytes,
        to: Option<Bytes>,
    ) -> Scan<'a> {
        let leaves = Leaves::new(tree, from.clone(), to.clone(), Freshness::Cached);
        let (ready, look, page, rereads) = Default::default();
        let is_done = false;
        Scan { session: self, txn, tree, from, to, leaves, look, ready, page, rereads, is_done }
    }

    /// An index that was probed by this session before.
    pub(crate) fn probed(&self, of: PageId, name: &str) -> Option<Index> {
        let memory = self.memory();
        memory.probed.get(&of)?.iter().find(|index| index.name == name).cloned()
    }

    /// Forgets what is remembered of a tree that was dropped.
    pub(crate) fn forget_tree(&self, tree: PageId) {
        let mut memory = self.memory();
        let own = memory.own.changes.range((tree, Bytes::new())..);
        let gone: Vec<_> = own.map(|(at, _)| at).take_while(|at| at.0 == tree).cloned().collect();
        gone.iter().for_each(|at| memory.own.remove(at));
        memory.seen.retain(|at, _| at.0 != tree);
        memory.probed.remove(&tree);
        memory.probed.values_mut().for_each(|indexes| indexes.retain(|index| index.root != tree));
    }

    /// From now on own changes of the collection imply own entries in `index`, which is ready. Those
    /// that no page has shown yet do at once; what pages have shown is in the index's pages, as the
    /// object store has them: so copies of before are not used any more.
    pub(crate) fn begin_to_probe(&self, of: PageId, index: &Index) {
        let mut memory = self.memory();
        let probed = memory.probed.entry(of).or_default();
        if probed.iter().any(|there| there.root == index.root) {
            return;
        }
        probed.push(index.clone());
        let own = memory.own.changes.range((of, Bytes::new())..);
        let implied: Vec<(Bytes, Stamp)> = own
            .take_while(|((tree, _), _)| *tree == of)
            .filter_map(|((_, key), (stamp, payload))| {
                Some((entry_of(index, key, payload.as_ref())?, *stamp))
            })
            .collect();
        for (pair, stamp) in implied {
            memory.own.insert((index.root, pair), stamp, Some(Value::EMPTY));
        }
        drop(memory);
        // Who committed nothing has nothing that the copies could lack.
        let wrote = self.transactions.load(Ordering::Relaxed) > 0;
        self.store.begin_to_probe(index.root, wrote);
    }

    /// Keys of records that the secondary index `tree` lists under search keys from `from` on to
    /// before `to`; with no `to` under `from` alone. The caller verifies each against the record
    /// itself: indexes and records reach their pages at different times (W19).
    ///
    /// # Errors
    /// Whatever the object store says.
    pub async fn probe(
        &self,
        txn: &Txn,
        tree: PageId,
        from: &Key,
        to: Option<&Key>,
    ) -> Result<Vec<(Key, Key)>, StoreError> {
        let begin = secondary::begin(from.as_bytes());
        let end = match to {
            Some(to) => secondary::begin(to.as_bytes()),
            None => secondary::end(from.as_bytes()),
        };
        let mut scan = self.scan_raw(txn, tree, begin, Some(end));
        let mut pairs = Vec::new();
        while let Some((key, _)) = scan.next_raw().await? {
            pairs.extend(crate::index::divide(&key));
        }
        Ok(pairs)
    }

    /// Commits a transaction. When this returns, it is durable.
    ///
    /// # Errors
    /// After [`StoreError::CommitUnknown`] the same `txn` may be committed again: its records count
    /// once. After any other error it is not committed; at the basic and monotonic level a part of
    /// it may be. [`StoreError::Invalid`] also when it is committed again after more than half of
    /// [`Settings::tombstone_age`](crate::Settings): what is as old may not come into the log any more.
    /// A payload that was written part by part is put by the client that wrote it.
    pub async fn commit(&self, txn: &mut Txn) -> Result<Committed, StoreError> {
        if txn.is_empty() {
            return Ok(Committed::default());
        }
        if txn.level.isolation().is_some() {
            let what = "transactions of this level are begun by Session::isolated".to_owned();
            return Err(StoreError::Invalid(what));
        }
        // Where it becomes true when a curator says so, it is put where curators look.
        let curated = txn.curated(&self.store)?;
        if !txn.is_unclear {
            if curated.is_none() {
                self.check_writers(txn).await?;
            }
            self.make_room().await?;
        }
        let was_tried = std::mem::replace(&mut txn.was_tried, true);
        let was_sealed = txn.sealed.is_some();
        self.seal(txn).await?;
        reached(&self.store.cloud, FailPoint::Stamped).await;
        let puts_first = self.store.settings.rules.hold(Rule::BlobFirst);
        let mut age = Ok(());
        // Of before this call: what is tried again, and payloads that were written part by part.
        if was_tried || txn.writes.values().any(|write| matches!(write, Write::Blob(..))) {
            age = self.check_age(txn, true).await;
        } else if was_sealed {
            // Whoever sealed it may have rested since.
            age = self.check_age(txn, false).await;
        }
        if age.is_ok() && puts_first && !txn.unput.is_empty() {
            self.put_blobs(txn).await?;
            reached(&self.store.cloud, FailPoint::PartsPut).await;
            // Which may have taken long.
            age = self.check_age(txn, false).await;
        }
        let too_old = match age {
            Ok(()) => None,
            Err(error) if !txn.is_unclear => return Err(error),
            Err(StoreError::Cloud { source, .. }) => {
                return Err(StoreError::CommitUnknown { source });
            }
            // Nobody knows how old it is.
            Err(error @ StoreError::Date { .. }) => {
                let (what, cause) = ("the object store's date".to_owned(), error.to_string());
                return Err(StoreError::CommitUnknown { source: Fault::Unknown { what, cause } });
            }
            Err(error) => Some(error.to_string()),
        };
        let Some((number, entries)) = txn.sealed.clone() else { return Ok(Committed::default()) };
        let total = entries.len() as u32;
        let (client, epoch) = (self.client, self.epoch());
        let transaction = Transaction { client, epoch, number, total, entries };
        let is_whole = txn.level == Level::Atomic;
        let life = self.life().await?;
        if !txn.is_unclear {
            life.me.check_goes_on()?;
        }
        if let (Some(tag), None) = (curated, &too_old) {
            return self.propose(txn, tag, &transaction).await;
        }
        self.has_appended.store(true, Ordering::Relaxed);
        // What an earlier attempt sent can still arrive, whatever comes of this one. And this one
        // may end here, with its future.
        let was_unclear = std::mem::replace(&mut txn.is_unclear, true);
        let outcome = match too_old {
            None => life.appender.append(&transaction, is_whole).await,
            Some(cause) => match life.appender.outcome(number).await {
                Append::Unknown(_) | Append::Failed(_) => {
                    Append::Unknown(Fault::Invalid { what: "a commit".to_owned(), cause })
                }
                outcome => outcome,
            },
        };
        let entries = transaction.entries;
        match outcome {
            Append::Committed => {}
            Append::Fenced => return Err(StoreError::Fenced { client, epoch }),
            Append::Unknown(source) => return Err(StoreError::CommitUnknown { source }),
            Append::Failed(source) if was_unclear => {
                return Err(StoreError::CommitUnknown { source });
            }
            Append::Failed(source) => {
                txn.is_unclear = false;
                let attempts = self.store.settings.attempts_max;
                return Err(StoreError::Cloud { attempts, source });
            }
        }
        reached(&self.store.cloud, FailPoint::Appended).await;
        self.after_commit(&entries, is_whole);
        if !puts_first {
            self.put_blobs(txn).await?;
        }
        Ok(Committed { number, records: total, proposed: None })
    }

    /// Finds out where each change goes, and stamps it: once, so that every attempt to commit is
    /// the same transaction. Returns the changes.
    pub(crate) async fn seal(&self, txn: &mut Txn) -> Result<Vec<Entry>, StoreError> {
        if let Some((_, entries)) = &txn.sealed {
            return Ok(entries.clone());
        }
        let me = &self.life().await?.me;
        // Write follows read.
        me.observe(self.observed.load(Ordering::Relaxed));
        let mut entries = Vec::with_capacity(txn.writes.len());
        let mut blobs = Vec::new();
        let mut was_asked = false;
        let hints = self.hints(txn).await?;
        for (((tree, key), write), hint) in txn.writes.iter().zip(hints) {
            // A blind write counts after what it replaces, as far as that can be seen here.
            if let Some(clock) = hint.clock {
                me.observe(clock);
            }
            // And after what was seen of it that is on no page yet.
            let own = {
                let memory = self.memory();
                memory.own.changes.get(&(*tree, key.clone())).map(|(stamp, _)| stamp.clock)
            };
            if let Some(clock) = own {
                me.observe(clock);
            }
            if let Write::Blob(_, blob) = write {
                self.check_written(blob)?;
            }
            let mut blob = None;
            if let Write::Primary(_, Some(payload)) = write
                && payload.as_bytes().len() > self.inline_bytes_max()
            {
                let bytes = payload.to_bytes();
                let whole = self.blob_for(&bytes, &mut was_asked).await?;
                blobs.push((whole, bytes));
                blob = Some(whole);
            }
            let stamp = self.stamp(me, &mut was_asked).await?;
            entries.push(write.entry(*tree, hint.page, stamp, blob)?);
        }
        txn.unput = blobs;
        let number = self.transactions.fetch_add(1, Ordering::Relaxed) + 1;
        txn.sealed = Some((number, entries.clone()));
        Ok(entries)
    }

    /// Where each record of a transaction is. What is not in memory is fetched together, as far as there is room
    /// for pages that nobody uses yet: a commit waits about as long for many pages as for one.
    async fn hints(&self, txn: &Txn) -> Result<Vec<Hint>, StoreError> {
        let mut hints = Vec::with_capacity(txn.writes.len());
        let mut coming: FuturesOrdered<BoxFuture<'_, Result<Hint, StoreError>>> =
            FuturesOrdered::new();
        for (tree, key) in txn.writes.keys() {
            let mut share = None;
            while !coming.is_empty() {
                if coming.len() < HINTS_AT_ONCE {
                    share = self.store.pages.ahead();
                }
                if share.is_some() {
                    break;
                }
                hints.extend(coming.next().await.transpose()?);
            }
            let hint = self.hint(*tree, key.clone());
            coming.push_back(Box::pin(async move {
                let _share = share;
                hint.await
            }));
        }
        while let Some(hint) = coming.next().await {
            hints.push(hint?);
        }
        Ok(hints)
    }

    /// Where a record is, as far as copies of pages tell that are here, even where somebody is known to have put
    /// the page since. The record goes to the leaf that owns it when it is applied, whatever is said here: so a
    /// commit fetches what was not here for long, and never waits because of others.
    async fn hint(&self, tree: PageId, key: Bytes) -> Result<Hint, StoreError> {
        let found = search(&self.store.pages, tree, &key, 0, Freshness::Hint).await?;
        let Some(page) = found.map(|found| found.held.page) else {
            return Ok(Hint { page: tree, clock: None });
        };
        check_plain(&page)?;
        Ok(Hint { page: page.id, clock: page.slot(&key).map(|slot| slot.stamp.clock) })
    }

    /// The blob that a payload is to lie in, of a name that nothing else has.
    pub(crate) async fn blob_for(
        &self,
        payload: &Bytes,
        was_asked: &mut bool,
    ) -> Result<Blob, StoreError> {
        let part = self.store.settings.part_bytes;
        let stamp = self.stamp(&self.life().await?.me, was_asked).await?;
        let whole = Blob::of(stamp, payload, part.clamp(1, PART_BYTES_MAX));
        whole.ok_or_else(|| StoreError::Invalid(format!("no payload has parts of {part} bytes")))
    }

    /// The next stamp of this life. The object store's date is asked once.
    async fn stamp(&self, me: &Incarnation, was_asked: &mut bool) -> Result<Stamp, StoreError> {
        let date_ms = || self.store.sure_date_ms();
        match me.stamp(date_ms).await {
            // Ahead of what the object store said last, which may be long ago.
            Err(StoreError::Clock { .. } | StoreError::Date { .. }) if !*was_asked => {
                *was_asked = true;
                self.store.ask_date().await?;
                me.stamp(date_ms).await
            }
            stamp => stamp,
        }
    }

    /// Bytes of the longest payload that is no blob.
    pub(crate) fn inline_bytes_max(&self) -> usize {
        self.store.settings.inline_bytes_max.min(INLINE_BYTES_MAX)
    }

    /// That nothing in a transaction is so old that garbage collection could take a blob before what
    /// names it is on its page, or a tombstone that is newer than it: see `gc`. With `asks` the object
    /// store is asked for its date, which is not counted on from what it said before.
    async fn check_age(&self, txn: &Txn, asks: bool) -> Result<(), StoreError> {
        let Some((_, entries)) = &txn.sealed else { return Ok(()) };
        match asks {
            true => self.store.ask_date().await?,
            false => self.store.ask_date_after_sleep().await?,
        }
        let now_us = self.store.sure_date_ms()? * 1000;
        let most_us = match self.store.settings.rules.hold(Rule::CommitAge) {
            true => self.store.settings.commit_age_us(),
            false => u64::MAX,
        };
        for entry in entries {
            let stamp = entry.record.stamp;
            let age_us = now_us.max(stamp.clock).saturating_sub(entry.oldest_us());
            if age_us <= most_us {
                continue;
            }
            let (age, most) = (age_us / 1_000_000, most_us / 1_000_000);
            return Err(StoreError::Invalid(match entry.blob() {
                Some(blob) => format!(
                    "blob {} was begun {age} s ago, and must be committed within {most} s: write it again",
                    blob.object(0),
                ),
                None => format!(
                    "this transaction was committed {age} s ago for the first time, and could be again \
                     within {most} s: begin another one"
                ),
            }));
        }
        Ok(())
    }

    /// That a blob was written by this client, and so in this database: nothing else tells where one is.
    pub(crate) fn check_written(&self, blob: &Blob) -> Result<(), StoreError> {
        let (writer, me) = (blob.stamp().client, self.client);
        if writer == me {
            return Ok(());
        }
        Err(StoreError::Invalid(format!(
            "this payload was written by client {writer:x}, and only that can put it: this one is {me:x}"
        )))
    }

    /// Puts what a transaction has in memory of its blobs.
    async fn put_blobs(&self, txn: &mut Txn) -> Result<(), StoreError> {
        let Store { cloud, settings, .. } = &*self.store;
        blob::put_all(cloud, settings, &txn.unput).await?;
        txn.unput.clear();
        Ok(())
    }

    /// That this client may write to all that a transaction changes: anything else would come to no page.
    async fn check_writers(&self, txn: &Txn) -> Result<(), StoreError> {
        let mut trees: Vec<PageId> = txn.writes.keys().map(|(tree, _)| *tree).collect();
        trees.dedup();
        for tree in trees {
            if !self.store.may_write(tree, self.client).await? {
                return Err(StoreError::Denied {
                    object: format!("{WRITERS}{}", Tag::of_page(tree)),
                    action: "write",
                    right: "write, as one of the writers of the collection",
                    cause: format!("client {:x} is none of them", self.client),
                });
            }
        }
        Ok(())
    }

    /// Forgets own changes that are on their pages, when there are too many: who only writes never
    /// reads the pages that would tell.
    async fn make_room(&self) -> Result<(), StoreError> {
        let store = &self.store;
        let most = store.settings.own_bytes_max;
        let bytes = || self.memory().own.bytes;
        if bytes() <= most {
            return Ok(());
        }
        let outcome = async {
            self.forget_shown(Freshness::Newest).await?;
            if bytes() <= most / 2 {
                return Ok(());
            }
            store.work_off().await?;
            if store.database().backend == Backend::S3Log {
                store.drain(Scope::Stream(self.stream())).await?;
            }
            self.forget_shown(Freshness::Newest).await?;
            if bytes() > most.saturating_mul(OWN_EXCESS_MAX) {
                // What fresh reads saw of others waits where these committed it.
                store.sweep().await?;
                self.forget_shown(Freshness::Newest).await?;
            }
            Ok::<(), StoreError>(())
        };
        // Out of what others are spared for commits only when there is no other way.
        let is_pressing = bytes() > most.saturating_mul(OWN_EXCESS_MAX);
        let outcome = if is_pressing { outcome.await } else { in_background(outcome).await };
        if bytes() <= most.saturating_mul(OWN_EXCESS_MAX) {
            // What went wrong goes wrong again when it matters.
            return Ok(());
        }
        outcome?;
        // Others hold what is to be checkpointed, or a page takes nothing.
        let what = "own changes that wait for a checkpoint".to_owned();
        Err(StoreError::Cloud { attempts: 1, source: Fault::Throttled { what } })
    }

    /// That there is room to remember what the log shows: who only reads never commits, which would make
    /// some.
    pub(crate) async fn make_room_to_see(&self) -> Result<(), StoreError> {
        let most = self.store.settings.own_bytes_max;
        let bytes = || self.memory().own.bytes;
        if bytes() > most {
            self.forget_shown(Freshness::Newest).await?;
        }
        match bytes() {
            bytes if bytes > most => {
                let what = format!("{bytes} bytes that were seen and are on no page yet");
                Err(StoreError::Backlog { what })
            }
            _ => Ok(()),
        }
    }

    /// Brings what this session committed to its pages, also what others have taken from a queue: that they
    /// bring there, or it comes back when their lease is over. For longer than a lease it waits for nobody.
    pub(crate) async fn bring_home(&self) -> Result<Checkpointed, StoreError> {
        let Store { cloud, settings, .. } = &*self.store;
        let mut done = self.store.work_off().await?;
        // Nobody takes a log object from anybody.
        if self.store.database().backend == Backend::S3Log {
            return Ok(done);
        }
        let began_us = cloud.clock.monotonic_us();
        // What was put here is known here.
        self.forget_shown(Freshness::Cached).await?;
        let mut wait = settings.backoff;
        while self.has_unseen() {
            // What came back is found by the round after that, at last.
            let is_last = cloud.clock.monotonic_us() - began_us > settings.lease.as_micros() as u64;
            for shard in 0..self.store.database().shards {
                self.store.make_due(Scope::Shard(shard));
            }
            self.store.make_due(Scope::Client(self.client));
            done += self.store.work_off().await?;
            self.forget_shown(Freshness::Newest).await?;
            if is_last {
                break;
            }
            cloud.clock.sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(1));
        }
        Ok(done)
    }

    /// Whether something of this session is on no page yet that nobody has to approve.
    fn has_unseen(&self) -> bool {
        self.memory().own.changes.keys().any(|(tree, _)| !self.store.is_curated(*tree))
    }

    /// Forgets own changes that pages as new as `age` show.
    async fn forget_shown(&self, age: Freshness) -> Result<(), StoreError> {
        let pages = &self.store.pages;
        let all: Vec<((PageId, Bytes), bool)> = {
            let memory = self.memory();
            memory.own.changes.keys().map(|at| (at.clone(), memory.is_settled(at))).collect()
        };
        let mut rest = &all[..];
        while let Some(((tree, key), _)) = rest.first() {
            let found = match search(pages, *tree, key, 0, age).await {
                // No page will ever show it.
                Err(error) if self.store.is_dropped(*tree, &error).await? => {
                    self.forget_tree(*tree);
                    rest = &rest[rest.partition_point(|(at, _)| at.0 <= *tree)..];
                    continue;
                }
                found => found?,
            };
            let found = found.ok_or(StoreError::Tree { page: *tree, what: "has no leaves" })?;
            let page = found.held.page;
            let is_here =
                |(at, _): &&((PageId, Bytes), bool)| at.0 == *tree && page.ends_after(&at.1);
            let count = rest.iter().take_while(is_here).count().max(1);
            let mut memory = self.memory();
            for (at, is_settled) in &rest[..count] {
                let shown = page.slot(&at.1).map(|slot| slot.stamp);
                let own = memory.own.changes.get(at).map(|(stamp, _)| *stamp);
                let is_shown = own.is_some_and(|own| shown.is_some_and(|shown| shown >= own));
                // Not if it was written again meanwhile.
                let is_newest = age == Freshness::Newest;
                if is_shown || (is_newest && *is_settled && memory.is_settled(at)) {
                    memory.own.remove(at);
                }
                // As if it had been read there: a copy from before a split shows less of the same key, and is
                // not to be gone back to.
                if let (true, Some(shown)) = (is_shown, shown)
                    && memory.seen.get(at).is_none_or(|seen| *seen < shown)
                {
                    self.remember(&mut memory, at.clone(), shown);
                }
            }
            rest = &rest[count..];
        }
        Ok(())
    }

    fn after_commit(&self, entries: &[Entry], is_whole: bool) {
        let store = &self.store;
        let stream = self.stream();
        let mut is_due = false;
        let interval_ms = store.settings.checkpoint_interval.as_millis() as u64;
        let now_ms = store.pages.date_ms();
        let mut memory = self.memory();
        for entry in entries {
            let at = (entry.tree, entry.leaf_key());
            memory.insert(at, entry.record.stamp, entry.leaf_payload());
            // The writer rule (paper, 5.3). The difference has no sign: a time from the future must
            // not keep a page from being checkpointed.
            let last_ms = store.pages.checkpoint_ms(entry.page).unwrap_or(0);
            let scope = store.log.scope_of(entry.page, stream);
            if now_ms.abs_diff(last_ms) > interval_ms {
                is_due = true;
                store.make_due(scope);
            } else {
                store.make_due_later(scope);
            }
        }
        if is_whole {
            // Nobody drains what is sent on before its shards are due. Until then it waits, and goes
            // together with what is committed meanwhile.
            let scope = Scope::Client(self.client);
            match is_due {
                true => store.make_due(scope),
                false => store.make_due_later(scope),
            }
        }
    }
}

/// That a leaf holds no versions: those are read and written through the sequencer alone.
fn check_plain(page: &Page) -> Result<(), StoreError> {
    if !is_versioned(page) {
        return Ok(());
    }
    let what = "this collection was created for isolation: it takes transactions at level snapshot or \
                serializable";
    Err(StoreError::Invalid(what.to_owned()))
}

/// Records in the order of their keys. See [`Session::scan`].
pub struct Scan<'a> {
    session: &'a Session,
    txn: &'a Txn,
    tree: PageId,
    /// The first key that is not in `ready` yet.
    from: Bytes,
    to: Option<Bytes>,
    leaves: Leaves,
    /// Of a fresh transaction, once the scan has begun.
    look: Option<&'a Look>,
    ready: VecDeque<(Bytes, Stamp, Value)>,
    /// The page whose bytes these share.
    page: Option<Lent>,
    /// How often the next leaf was fetched again, since its copy was older than what was seen before.
    rereads: u32,
    is_done: bool,
}

impl Scan<'_> {
    /// The next record; `None` at the end. A blob is read whole.
    ///
    /// Nothing is passed over because a service failed, or because nobody waited: the next call goes on
    /// with the same record. One whose blob is too long, damaged or lost is passed over.
    ///
    /// # Errors
    /// As [`Session::read`].
    pub async fn next(&mut self) -> Result<Option<(Key, Payload)>, StoreError> {
        loop {
            self.fill().await?;
            let Some((key, _, value)) = self.ready.front() else { return Ok(None) };
            let read = async {
                let key = Key::new(key)?;
                let payload = match value {
                    Value::Here(payload) => Some(Payload::new(payload)?),
                    // As it is now: gone since, or another one.
                    Value::Blob(_) => self.session.read(self.txn, self.tree, &key).await?,
                };
                Ok(payload.map(|payload| (key, payload)))
            };
            let read = read.await;
            if let Some(record) = self.pass(read)? {
                return Ok(Some(record));
            }
        }
    }

    /// The next record, whose payload is read part by part.
    ///
    /// # Errors
    /// As [`Session::open_content`].
    pub async fn next_content(&mut self) -> Result<Option<(Key, Content)>, StoreError> {
        loop {
            self.fill().await?;
            let Some((key, _, value)) = self.ready.front() else { return Ok(None) };
            let read = async {
                let content = self.session.content(self.txn, self.tree, key, value.clone()).await?;
                let Some(content) = content else { return Ok(None) };
                Ok(Some((Key::new(key)?, content)))
            };
            let read = read.await;
            if let Some(record) = self.pass(read)? {
                return Ok(Some(record));
            }
        }
    }

    /// Passes over the first of what is ready, unless the same can succeed when it is asked for again.
    fn pass<T>(&mut self, read: Result<T, StoreError>) -> Result<T, StoreError> {
        if !read.as_ref().is_err_and(StoreError::is_passing) {
            self.ready.pop_front();
        }
        read
    }

    /// The next key. No blob is read.
    ///
    /// # Errors
    /// Whatever the object store says.
    pub async fn next_key(&mut self) -> Result<Option<Key>, StoreError> {
        Ok(self.next_raw().await?.map(|(key, _)| Key::new(&key)).transpose()?)
    }

    pub(crate) async fn next_raw(&mut self) -> Result<Option<(Bytes, Value)>, StoreError> {
        self.fill().await?;
        Ok(self.ready.pop_front().map(|(key, _, value)| (key, value)))
    }

    /// The same, and since which write; the stamp is zero for what the transaction itself wrote.
    #[cfg(feature = "simulation")]
    pub(crate) async fn next_stamped(&mut self) -> Result<Option<(Key, Stamp, Value)>, StoreError> {
        self.fill().await?;
        let Some((key, stamp, value)) = self.ready.pop_front() else { return Ok(None) };
        Ok(Some((Key::new(&key)?, stamp, value)))
    }

    /// The leaves that are still to come, by copies as new as that.
    fn walk(&self, age: Freshness) -> Leaves {
        Leaves::new(self.tree, self.from.clone(), self.to.clone(), age)
    }

    /// Whether this is a read of what it meets, as those of the session are.
    fn is_session(&self) -> bool {
        self.txn.level.is_session() && self.session.store.settings.rules.hold(Rule::ScanReads)
    }

    /// Reads leaves until something is ready, or nothing is left.
    async fn fill(&mut self) -> Result<(), StoreError> {
        if self.look.is_none()
            && let Some(look) = self.session.look(self.txn).await?
        {
            self.leaves = self.walk(look.age());
            self.look = Some(look);
        }
        if self.ready.is_empty() {
            self.page = None;
        }
        while self.ready.is_empty() && !self.is_done {
            self.page = None;
            let Some(held) = self.leaves.next(&self.session.store.pages).await? else {
                self.is_done = true;
                break;
            };
            check_plain(&held.page)?;
            self.session.reader_rule(&held.page);
            let high = held.page.high.clone();
            let is_last = match (&high, &self.to) {
                (None, _) => true,
                (Some(high), Some(to)) => high >= to,
                (Some(_), None) => false,
            };
            let until = if is_last { self.to.clone() } else { high.clone() };
            if self.rereads < REREADS_MAX && self.is_behind(&held.page, until.as_ref()) {
                self.rereads += 1;
                self.leaves = self.walk(Freshness::Newest);
                continue;
            }
            self.take(&held.page, until.as_ref());
            if let Some(high) = high {
                self.from = Bytes::copy_from_slice(&high);
            }
            self.is_done = is_last;
            if std::mem::take(&mut self.rereads) > 0 && !is_last {
                self.leaves = self.walk(self.look.map_or(Freshness::Cached, Look::age));
            }
            if held.page.may_stay() {
                self.page = Some(held.page);
            }
        }
        Ok(())
    }

    /// Whether a copy of a leaf shows less than this session has seen there.
    fn is_behind(&self, page: &Lent, until: Option<&Bytes>) -> bool {
        if !self.is_session() {
            return false;
        }
        let memory = self.session.memory();
        let known = memory.order.range((self.tree, self.from.clone())..);
        known
            .take_while(|(tree, key)| *tree == self.tree && until.is_none_or(|until| key < until))
            .any(|at| {
                let floor = memory.seen.get(at).copied().unwrap_or_default();
                let shown = page.slot(&at.1).map_or(Stamp::default(), |slot| slot.stamp);
                shown < floor && memory.own.changes.get(at).is_none_or(|(stamp, _)| *stamp < floor)
            })
    }

    /// Takes what a leaf shows from `from` to `until`, own writes laid over. It stays pinned until all of
    /// that was asked for, which may be never; where it cannot be, this scan has a copy of its own.
    fn take(&mut self, page: &Lent, until: Option<&Bytes>) {
        let is_in = |key: &Bytes| *key >= self.from && until.is_none_or(|until| key < until);
        let mut merged: BTreeMap<Bytes, Seen> = page
            .slots()
            .iter()
            .filter(|slot| is_in(&slot.key))
            .map(|slot| {
                let seen = Seen { stamp: slot.stamp, payload: slot.payload.clone() };
                (slot.key.clone(), seen)
            })
            .collect();
        let floor_us = self.session.look_floor_us();
        let waiting = self.look.into_iter().flat_map(|look| look.from(self.tree, &self.from));
        for (key, waits) in waiting.take_while(|(key, _)| is_in(key)) {
            let shown = merged.get(key).map_or(Stamp::default(), |seen| seen.stamp);
            if waits.0 <= shown || waits.0.clock < floor_us {
                continue;
            }
            self.session.observed.fetch_max(waits.0.clock, Ordering::Relaxed);
            if self.is_session() {
                // As in a read of this key; what is laid over below is this.
                let at = (self.tree, key.clone());
                self.session.memory().insert(at, waits.0, waits.1.clone());
            } else {
                merged.insert(key.clone(), Seen::of(waits));
            }
        }
        if self.is_session() {
            let mut memory = self.session.memory();
            let own: Vec<Bytes> = memory
                .own
                .changes
                .range((self.tree, self.from.clone())..)
                .take_while(|((tree, key), _)| *tree == self.tree && is_in(key))
                .map(|((_, key), _)| key.clone())
                .collect();
            for key in own {
                let seen = merged.entry(key.clone()).or_default();
                self.session.lay_over(&mut memory, &(self.tree, key), seen);
            }
            if self.rereads > 0 {
                // It is what there is: a tombstone that was dropped looks like an older state.
                let begin = (self.tree, self.from.clone());
                let known = memory.order.range(begin..).take_while(|(tree, key)| {
                    *tree == self.tree && until.is_none_or(|until| key < until)
                });
                let known = known.filter(|(_, key)| !merged.contains_key(key));
                let gone: Vec<_> = known.cloned().collect();
                for at in &gone {
                    memory.seen.remove(at);
                    memory.order.remove(at);
                }
            }
            for (key, seen) in &merged {
                let mut at = (self.tree, key.clone());
                if let Some(there) = memory.seen.get_mut(&at) {
                    *there = seen.stamp;
                } else {
                    // Not to keep the bytes of the page.
                    at.1 = Bytes::copy_from_slice(key);
                    self.session.remember(&mut memory, at, seen.stamp);
                }
            }
            drop(memory);
            let newest = merged.values().map(|seen| seen.stamp.clock).max().unwrap_or(0);
            self.session.observed.fetch_max(newest, Ordering::Relaxed);
        }
        for ((_, key), write) in self
            .txn
            .writes
            .range((self.tree, self.from.clone())..)
            .take_while(|((tree, key), _)| *tree == self.tree && is_in(key))
        {
            let payload = write.value();
            merged.insert(key.clone(), Seen { stamp: Stamp::default(), payload });
        }
        let shown =
            merged.into_iter().filter_map(|(key, seen)| Some((key, seen.stamp, seen.payload?)));
        let copies = !page.may_stay();
        let copy = |bytes: Bytes| if copies { Bytes::copy_from_slice(&bytes) } else { bytes };
        let shown = shown.map(|(key, stamp, value)| match value {
            Value::Here(payload) => (copy(key), stamp, Value::Here(copy(payload))),
            blob => (copy(key), stamp, blob),
        });
        self.ready.extend(shown);
    }
}

#[cfg(test)]
mod tests {
    use pager::{Budget, policy, pool::Pool};

    use super::*;
    use crate::{
        cloud::{
            Cloud,
            embedded::{self, Memory},
        },
        settings::Settings,
    };

    /// A copy of a leaf that shows less than the session has seen there is fetched again by a scan, as by a
    /// read; and taken for what there is when the newest one shows no more.
    #[tokio::test]
    async fn a_scan_does_not_go_back() {
        let cloud = embedded::memory(Arc::new(Memory::new()));
        let settings = Settings { leaf_bytes_max: 300, ..Settings::default() };
        Store::create(&cloud, &settings, Backend::S3Log, 1).await.unwrap();
        let open = async |cloud: &Cloud| {
            let pool = Pool::new(&Budget::new(1 << 20), policy::default_eviction());
            Store::open(cloud.clone(), settings, &pool).await.unwrap()
        };
        let store = open(&cloud).await;
        let root = store.create_collection("things").await.unwrap().root;
        let keys: Vec<Key> = (0..20).map(|n| Key::new(format!("{n:02}")).unwrap()).collect();
        let writer = Session::open(store.clone(), 1).await.unwrap();
        let put = async |key: &Key, text: &'static str| {
            let mut txn = writer.begin(Level::Atomic);
            txn.put(root, key, Payload::new(text).unwrap()).unwrap();
            writer.commit(&mut txn).await.unwrap();
            store.sweep().await.unwrap();
        };
        for key in &keys {
            put(key, "old").await;
        }
        let session = Session::reader(open(&cloud).await, 2);
        let txn = session.begin(Level::Monotonic);
        let scanned = async || {
            let (mut scan, mut all) = (session.scan(&txn, root, None, None), Vec::new());
            while let Some((key, payload)) = scan.next().await.unwrap() {
                all.push((key, payload.as_bytes().to_vec()));
            }
            all
        };
        let all = |changed: &[usize]| -> Vec<(Key, Vec<u8>)> {
            let text = |n| if changed.contains(&n) { b"new".to_vec() } else { b"old".to_vec() };
            keys.iter().enumerate().map(|(n, key)| (key.clone(), text(n))).collect()
        };
        assert_eq!(scanned().await, all(&[]));
        for n in [3, 12] {
            put(&keys[n], "new").await;
        }
        assert_eq!(scanned().await, all(&[]), "its copies are young");
        // One of them it has seen, by what way ever.
        let at = (root, Bytes::copy_from_slice(keys[12].as_bytes()));
        let found = search(&store.pages, root, &at.1, 0, Freshness::Newest).await.unwrap();
        let stamp = found.unwrap().held.page.slot(&at.1).unwrap().stamp;
        session.remember(&mut session.memory(), at, stamp);
        assert_eq!(scanned().await, all(&[12]), "and the rest is as young as it was");
        // What nobody has any more is given up; the leaves behind that are read as before.
        let fetched = || session.store.pool_counts().revalidated;
        for lost in [&keys[12], &Key::new("12-gone").unwrap()] {
            let before = fetched();
            let stamp = Stamp { clock: stamp.clock + 1, ..stamp };
            let at = (root, Bytes::copy_from_slice(lost.as_bytes()));
            session.remember(&mut session.memory(), at, stamp);
            assert_eq!(scanned().await, all(&[12]));
            let again = fetched();
            assert_eq!(again - before, u64::from(REREADS_MAX), "{lost}");
            assert_eq!(scanned().await, all(&[12]));
            assert_eq!(fetched(), again, "{lost}: once");
        }
        assert!(session.observed.load(Ordering::Relaxed) >= stamp.clock);
    }
}
