//! Reads and writes at a snapshot, and the commit.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use tokio::sync::OnceCell;

use crate::{
    catalog::{Collection, Isolation},
    cloud::{Put, PutIf},
    commit::{Committed, Session},
    error::{AbortCause, StoreError},
    fail_point::{FailPoint, reached},
    lent::Lent,
    page::{Page, PageId},
    record::{INLINE_BYTES_MAX, Key, Payload},
    retry::Attempts,
    sequence::{
        apply::leaf,
        batch::{INLINE_BYTES, Submission, WRITES_BYTES_MAX},
        codec::{WRITE_FIXED_BYTES, Write, data_name, encode_data},
        sequencer::{newest, submit},
        versions,
        window::{Held, Reads, View},
    },
    settings::Rule,
    store::Store,
    tree::{Freshness, scan::Leaves},
};

/// Records that one transaction writes.
const WRITES_MAX: usize = 100_000;

/// A transaction at the snapshot or the serializable level, in collections that were created for it.
///
/// Its snapshot is taken by the first read: all it reads is as it was then, and its own writes over that.
/// It lives in this client's memory alone; to abort it, drop it.
pub struct Isolated<'a> {
    session: &'a Session,
    isolation: Isolation,
    id: u128,
    view: OnceCell<Arc<View>>,
    reads: Mutex<Reads>,
    writes: BTreeMap<(PageId, Bytes), Option<Bytes>>,
    bytes: usize,
    /// Set by the first attempt to commit: each later one is the same.
    submission: Option<Arc<Submission>>,
}

impl Session {
    /// Begins a transaction at the snapshot or the serializable level.
    pub fn isolated(&self, isolation: Isolation) -> Isolated<'_> {
        let (view, reads, writes, submission) = Default::default();
        let id = self.store().cloud.chance.next_u128();
        Isolated { session: self, isolation, id, view, reads, writes, bytes: 0, submission }
    }
}

impl<'a> Isolated<'a> {
    fn store(&self) -> &Arc<Store> {
        self.session.store()
    }

    /// Its level.
    pub fn isolation(&self) -> Isolation {
        self.isolation
    }

    /// What tells it from all others.
    #[cfg(feature = "simulation")]
    pub(crate) fn id(&self) -> u128 {
        self.id
    }

    /// How many records it writes.
    pub fn len(&self) -> usize {
        self.writes.len()
    }

    /// Whether it writes nothing.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// The number of the commit up to which it sees everything; `None` before it has read anything.
    pub fn snapshot(&self) -> Option<u64> {
        self.view.get().map(|view| view.numbers.last)
    }

    async fn view(&self) -> Result<Arc<View>, StoreError> {
        let view = self.view.get_or_try_init(|| newest(self.store())).await?;
        match self.store().settings().rules.hold(Rule::SnapshotBound) {
            true => Ok(view.clone()),
            false => newest(self.store()).await,
        }
    }

    fn note(&self, note: impl FnOnce(&mut Reads)) {
        if self.isolation == Isolation::Serializable {
            note(&mut self.reads.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// The payload of `key`, as of the snapshot, or as this transaction wrote it.
    ///
    /// # Errors
    /// [`StoreError::Aborted`] when the snapshot is older than what pages keep; [`StoreError::Invalid`]
    /// when the collection was not created for this level; and whatever the services say.
    pub async fn read(&self, of: &Collection, key: &Key) -> Result<Option<Payload>, StoreError> {
        let (_, payload) = self.read_numbered(of, key).await?;
        Ok(payload.map(Payload::new).transpose()?)
    }

    /// The same, and which commit wrote it: 0 if there is nothing, or if this transaction did.
    pub(crate) async fn read_numbered(
        &self,
        of: &Collection,
        key: &Key,
    ) -> Result<Held, StoreError> {
        self.check(of)?;
        let bytes = key.as_bytes();
        if let Some(own) = self.writes.get(&(of.root, Bytes::copy_from_slice(bytes))) {
            return Ok((0, own.clone()));
        }
        self.note(|reads| reads.point(of.root, bytes));
        let view = self.view().await?;
        match view.read(of.root, bytes, view.numbers.last) {
            Some(held) => Ok(held),
            None => on_pages(self.store(), &view, of.root, bytes).await,
        }
    }

    /// Records from `from` to before `to` (`None`: to the end), in order, as of the snapshot and with what
    /// this transaction wrote.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] when the collection was not created for this level.
    pub fn scan<'t>(
        &'t self,
        of: &Collection,
        from: Bytes,
        to: Option<Bytes>,
    ) -> Result<IsolatedScan<'t>, StoreError> {
        self.check(of)?;
        self.note(|reads| reads.range(of.root, from.clone(), to.clone()));
        let at = versions::begin_of(&from);
        let end = to.as_ref().map(|to| versions::begin_of(to));
        let leaves = Leaves::new(of.root, at.clone(), end.clone(), Freshness::Cached);
        let (settled, held, ready) = Default::default();
        let (tree, is_done) = (of.root, false);
        Ok(IsolatedScan {
            txn: self,
            tree,
            from,
            to,
            at,
            end,
            leaves,
            settled,
            held,
            ready,
            is_done,
        })
    }

    /// The record of `key` shall have this payload.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] when the collection was not created for this level, when the payload is too
    /// long for a page (such collections have no blobs), when there are too many changes, or an attempt to
    /// commit was made.
    pub fn put(&mut self, of: &Collection, key: &Key, payload: &Payload) -> Result<(), StoreError> {
        let (len, most) = (payload.as_bytes().len(), self.payload_bytes_max());
        if len > most {
            return Err(StoreError::Invalid(format!(
                "a payload of {len} bytes in {}, which was created for isolation: at most {most} are \
                 possible, and no blobs",
                of.name
            )));
        }
        self.write(of, key, Some(payload.to_bytes()))
    }

    /// There shall be no record of `key`.
    ///
    /// # Errors
    /// As [`Isolated::put`].
    pub fn delete(&mut self, of: &Collection, key: &Key) -> Result<(), StoreError> {
        self.write(of, key, None)
    }

    /// A version has one byte more than its payload.
    fn payload_bytes_max(&self) -> usize {
        self.session.inline_bytes_max().min(INLINE_BYTES_MAX) - 1
    }

    fn write(
        &mut self,
        of: &Collection,
        key: &Key,
        payload: Option<Bytes>,
    ) -> Result<(), StoreError> {
        self.check(of)?;
        if self.submission.is_some() {
            let what = "a commit of this transaction was tried: it can only be tried again";
            return Err(StoreError::Invalid(what.into()));
        }
        let at = (of.root, Bytes::copy_from_slice(key.as_bytes()));
        let bytes = |payload: &Option<Bytes>| {
            WRITE_FIXED_BYTES + key.as_bytes().len() + payload.as_ref().map_or(0, Bytes::len)
        };
        let had = self.writes.get(&at);
        if had.is_none() && self.writes.len() >= WRITES_MAX {
            let what = format!("a transaction has at most {WRITES_MAX} changes");
            return Err(StoreError::Invalid(what));
        }
        let new = self.bytes - had.map_or(0, bytes) + bytes(&payload);
        if new > WRITES_BYTES_MAX {
            return Err(StoreError::Invalid(format!(
                "a transaction at this level has at most {} MiB",
                WRITES_BYTES_MAX >> 20
            )));
        }
        self.bytes = new;
        self.writes.insert(at, payload);
        Ok(())
    }

    /// Whether transactions of this level may use a collection.
    fn check(&self, of: &Collection) -> Result<(), StoreError> {
        let (name, ours) = (&of.name, self.isolation.name());
        match of.isolation {
            Some(least) if self.isolation >= least => Ok(()),
            Some(least) => Err(StoreError::Invalid(format!(
                "collection {name} was created for level {}, and this transaction is at level {ours}",
                least.name()
            ))),
            None => Err(StoreError::Invalid(format!(
                "collection {name} was not created for level {ours}: it takes basic, monotonic and \
                 atomic transactions"
            ))),
        }
    }

    /// Commits. When this returns, all changes are durable, and whoever begins from now on sees them.
    /// A transaction that changed nothing asks nobody: it is as of its snapshot.
    ///
    /// # Errors
    /// [`StoreError::Aborted`] when it is not committed, since another one wrote what it writes (or, at the
    /// serializable level, what it read) after its snapshot, or because the snapshot is too old to tell:
    /// begin another one. After [`StoreError::CommitUnknown`], or when this future was dropped, call it
    /// again: it is committed once at most. After any other error it is not committed.
    pub async fn commit(&mut self) -> Result<Committed, StoreError> {
        if self.writes.is_empty() {
            return Ok(Committed::default());
        }
        let submission = match &self.submission {
            Some(submission) => submission.clone(),
            None => {
                let submission = Arc::new(self.seal().await?);
                self.submission = Some(submission.clone());
                submission
            }
        };
        let number = submit(self.store(), &submission).await?;
        Ok(Committed { number, records: self.writes.len() as u32, proposed: None })
    }

    /// What is submitted; what it writes is put before, if it is large.
    async fn seal(&self) -> Result<Submission, StoreError> {
        let life = self.session.identity().await?;
        let store = self.store();
        let id = self.id;
        let write = |((tree, key), payload): (&(PageId, Bytes), &Option<Bytes>)| Write {
            tree: *tree,
            key: key.clone(),
            payload: payload.clone(),
        };
        let writes: Arc<[Write]> = self.writes.iter().map(write).collect();
        let mut object = None;
        if self.bytes > INLINE_BYTES {
            store.ask_date_after_sleep().await?;
            // Another one at each attempt: what was written in between is not in what an earlier one put.
            // By a wrong one garbage collection would take it at once, or never.
            let date_ms = store.asked_date_ms().await?;
            let name = data_name(date_ms, store.cloud.chance.next_u128());
            let len = put_data(store, &name, encode_data(id, &writes)).await?;
            reached(&store.cloud, FailPoint::Spilled).await;
            object = Some((name, len));
        }
        let reads = self.reads.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (snapshot, isolation) = (self.snapshot(), self.isolation);
        Ok(Submission::new(id, life, snapshot, isolation, reads, writes, object))
    }
}

/// Puts an object whose name nobody else has.
async fn put_data(store: &Store, name: &str, bytes: Bytes) -> Result<u32, StoreError> {
    let len = bytes.len() as u32;
    let mut attempts = Attempts::new(&store.cloud, &store.settings);
    loop {
        match store.cloud.objects.put(name, bytes.clone(), PutIf::Absent).await {
            // Refused: an earlier attempt of this very put.
            Put::Stored(_) | Put::Refused => return Ok(len),
            Put::Conflict | Put::Missing => attempts.after_loss(name).await?,
            Put::Failed(fault) | Put::Unknown(fault) => attempts.after(fault).await?,
        }
    }
}

/// That a page still has what a snapshot sees.
fn check_age(store: &Store, page: &Page, snapshot: u64) -> Result<(), StoreError> {
    let oldest = versions::readable_from(page);
    match snapshot < oldest && store.settings.rules.hold(Rule::Pruned) {
        true => Err(StoreError::Aborted { why: AbortCause::Old { snapshot, oldest } }),
        false => Ok(()),
    }
}

/// What pages hold of a record.
async fn on_pages(
    store: &Store,
    view: &View,
    tree: PageId,
    key: &[u8],
) -> Result<Held, StoreError> {
    let snapshot = view.numbers.last;
    let (mut at, end) = (versions::leaf_key(key, snapshot), versions::end_of(key));
    loop {
        let page = leaf(store, view, tree, &at).await?;
        check_age(store, &page, snapshot)?;
        // What was put aside and is not on its leaf is newer than all that is.
        if let Some(held) = view.put_aside(tree, &page).remove(key) {
            return Ok(held);
        }
        let slots = page.slots();
        let first = slots.partition_point(|slot| slot.key < at);
        if let Some(slot) = slots.get(first) {
            let version = versions::version(slot);
            let version =
                version.ok_or(StoreError::Tree { page: page.id, what: "holds no version" })?;
            return Ok(match version.key == key {
                true => (version.number, version.payload),
                false => (0, None),
            });
        }
        match &page.high {
            // Older versions are on the next leaf.
            Some(high) if *high < end => at = high.clone(),
            _ => return Ok((0, None)),
        }
    }
}

/// Records in the order of their keys. See [`Isolated::scan`].
pub struct IsolatedScan<'t> {
    txn: &'t Isolated<'t>,
    tree: PageId,
    /// The first key that is not given out, or ready.
    from: Bytes,
    to: Option<Bytes>,
    /// The same as leaf keys: where the next leaf begins, and the end.
    at: Bytes,
    end: Option<Bytes>,
    leaves: Leaves,
    /// The record of which the version that the snapshot sees was met; older ones follow it.
    settled: Option<Vec<u8>>,
    /// What leaves hold of records that can go on on the next leaf.
    held: BTreeMap<Bytes, Held>,
    ready: VecDeque<(Key, Payload, u64)>,
    is_done: bool,
}

impl IsolatedScan<'_> {
    /// The next record; `None` at the end.
    ///
    /// # Errors
    /// As [`Isolated::read`].
    pub async fn next(&mut self) -> Result<Option<(Key, Payload)>, StoreError> {
        Ok(self.next_numbered().await?.map(|(key, payload, _)| (key, payload)))
    }

    /// The same, and which commit wrote it; 0 if this transaction did.
    pub(crate) async fn next_numbered(
        &mut self,
    ) -> Result<Option<(Key, Payload, u64)>, StoreError> {
        while self.ready.is_empty() && !self.is_done {
            self.step().await?;
        }
        Ok(self.ready.pop_front())
    }

    /// Takes one leaf. State is changed when it is there.
    async fn step(&mut self) -> Result<(), StoreError> {
        let store = self.txn.store();
        let view = self.txn.view().await?;
        let page = self.leaf(store, &view).await?;
        let snapshot = view.numbers.last;
        check_age(store, &page, snapshot)?;
        let is_in = |slot: &&crate::page::Slot| {
            slot.key >= self.at && self.end.as_ref().is_none_or(|end| slot.key < *end)
        };
        for slot in page.slots().iter().filter(is_in) {
            let version = versions::version(slot);
            let version =
                version.ok_or(StoreError::Tree { page: page.id, what: "holds no version" })?;
            if version.number > snapshot || self.settled.as_ref() == Some(&version.key) {
                continue;
            }
            let held = (version.number, version.payload);
            hold(&mut self.held, Bytes::from(version.key.clone()), held);
            self.settled = Some(version.key);
        }
        let is_in = |key: &Bytes| *key >= self.from && self.to.as_ref().is_none_or(|to| key < to);
        for (key, held) in view.put_aside(self.tree, &page) {
            if is_in(&key) {
                hold(&mut self.held, key, held);
            }
        }
        // Records before the one at which the leaf ends are all here.
        // Copied: what is shared keeps the page's bytes, which nobody counts.
        let high =
            page.high.as_ref().filter(|high| self.end.as_ref().is_none_or(|end| *high < end));
        let high = high.map(|high| Bytes::copy_from_slice(high));
        let until = match &high {
            None => self.to.clone(),
            Some(high) => {
                let divided = crate::tree::secondary::divide(high);
                let what = "ends at no version";
                let (key, _) = divided.ok_or(StoreError::Tree { page: page.id, what })?;
                Some(Bytes::from(key))
            }
        };
        self.emit(&view, until)?;
        match high {
            Some(high) => self.at = high,
            None => self.is_done = true,
        }
        Ok(())
    }

    /// The next leaf, in a copy without holes.
    async fn leaf(&mut self, store: &Store, view: &View) -> Result<Lent, StoreError> {
        if let Some(held) = self.leaves.next(&store.pages).await?
            && versions::is_versioned(&held.page)
            && held.page.owns(&self.at)
            && store.sequencer.covers(&held.page) >= view.floor
        {
            return Ok(held.page);
        }
        let page = leaf(store, view, self.tree, &self.at).await?;
        // It may end elsewhere than the copy did.
        let next = page.high.clone().unwrap_or_else(|| self.at.clone());
        self.leaves = Leaves::new(self.tree, next, self.end.clone(), Freshness::Cached);
        Ok(page)
    }

    /// Makes ready what there is from `from` to before `until`: of leaves, of the window, and own writes.
    fn emit(&mut self, view: &View, until: Option<Bytes>) -> Result<(), StoreError> {
        let rest = match &until {
            Some(until) => self.held.split_off(until),
            None => BTreeMap::new(),
        };
        let mut shown = std::mem::replace(&mut self.held, rest);
        let window = view.range(self.tree, &self.from, until.as_deref(), view.numbers.last);
        window.into_iter().for_each(|(key, held)| hold(&mut shown, key, held));
        let own = self.txn.writes.range((self.tree, self.from.clone())..);
        let is_in = |key: &Bytes| until.as_ref().is_none_or(|until| key < until);
        for ((_, key), payload) in
            own.take_while(|((tree, key), _)| *tree == self.tree && is_in(key))
        {
            shown.insert(key.clone(), (0, payload.clone()));
        }
        for (key, (number, payload)) in shown {
            if let Some(payload) = payload {
                self.ready.push_back((Key::new(&key)?, Payload::new(&payload)?, number));
            }
        }
        if let Some(until) = until {
            self.from = until;
        }
        Ok(())
    }
}

/// Takes what a record holds, unless something newer is known.
fn hold(known: &mut BTreeMap<Bytes, Held>, key: Bytes, held: Held) {
    let there = known.entry(key).or_insert_with(|| held.clone());
    if there.0 < held.0 {
        *there = held;
    }
}
