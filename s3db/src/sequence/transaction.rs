//! Reads and writes at a snapshot, and the commit.
//!
//! A payload that is too long for a page is put before the submission that names it, as a blob: so it counts with
//! its transaction, or nobody ever sees it. A version names its blob as long as it is there itself, and it is
//! there as long as a snapshot from the horizon on sees it: a blob that is gone is lost, or the snapshot is too old.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Bound,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use tokio::sync::OnceCell;

use crate::{
    blob::{self, Blob, REFERENCE_BYTES, Value, Whole},
    catalog::{Collection, Isolation},
    cloud::{Put, PutIf},
    commit::{BLOBS_BYTES_MAX, Committed, Session},
    content::Content,
    error::{AbortCause, StoreError},
    fail_point::{FailPoint, reached},
    index::divide,
    page::{Page, PageId},
    record::{INLINE_BYTES_MAX, Key, Payload, Record},
    retry::Attempts,
    sequence::{
        apply::leaf,
        batch::{INLINE_BYTES, Submission, WRITES_BYTES_MAX},
        codec::{NUMBERS, SequencedIndex, WRITE_FIXED_BYTES, Write, data_name, encode_data},
        follow,
        scan::SnapshotScan,
        sequencer::{newest, submit},
        versions,
        window::{Held, Reads, View},
    },
    settings::Rule,
    store::Store,
    tree::secondary,
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
    /// Collections of which an index was probed: their indexes are to be the same at the commit.
    probed: Mutex<BTreeSet<PageId>>,
    /// Payloads are here, however long, but for those that were written part by part.
    writes: BTreeMap<(PageId, Bytes), Option<Value>>,
    bytes: usize,
    /// Of payloads that become blobs.
    blob_bytes: usize,
    /// Set by the first attempt to commit: each later one is the same.
    submission: Option<Arc<Submission>>,
}

impl Session {
    /// Begins a transaction at the snapshot or the serializable level.
    pub fn isolated(&self, isolation: Isolation) -> Isolated<'_> {
        let (view, reads, probed, writes, submission) = Default::default();
        let id = self.store().cloud.chance.next_u128();
        let (bytes, blob_bytes) = (0, 0);
        Isolated {
            session: self,
            isolation,
            id,
            view,
            reads,
            probed,
            writes,
            bytes,
            blob_bytes,
            submission,
        }
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

    /// The payload of `key`, as of the snapshot, or as this transaction wrote it. A blob is read whole.
    ///
    /// # Errors
    /// [`StoreError::Aborted`] when the snapshot is older than what is kept; [`StoreError::Invalid`]
    /// when the collection was not created for this level; [`BoundError::LongPayload`](crate::BoundError) when it
    /// is a blob that is too large to be held in memory ([`Isolated::open_content`] reads it),
    /// [`StoreError::Lost`] when a part of a blob is not there; and whatever the services say.
    pub async fn read(&self, of: &Collection, key: &Key) -> Result<Option<Payload>, StoreError> {
        let (_, value) = self.read_numbered(of, key).await?;
        let Some(value) = value else { return Ok(None) };
        Ok(Some(Payload::new(self.load(&value).await?)?))
    }

    /// Whether there is a record of `key`, as of the snapshot, or as this transaction wrote it. No blob is read.
    ///
    /// # Errors
    /// As [`Isolated::read`].
    pub async fn contains(&self, of: &Collection, key: &Key) -> Result<bool, StoreError> {
        Ok(self.read_numbered(of, key).await?.1.is_some())
    }

    /// The payload of `key`, to be read part by part, however large it is: as of the snapshot, or as this
    /// transaction wrote it.
    ///
    /// # Errors
    /// As [`Isolated::read`].
    pub async fn open_content(
        &self,
        of: &Collection,
        key: &Key,
    ) -> Result<Option<Content>, StoreError> {
        match self.read_numbered(of, key).await?.1 {
            Some(value) => Ok(Some(self.content(value).await?)),
            None => Ok(None),
        }
    }

    /// What a value holds that this transaction saw, whole.
    pub(crate) async fn load(&self, value: &Value) -> Result<Bytes, StoreError> {
        let store = self.store();
        let blob = match value {
            Value::Here(payload) => return Ok(payload.clone()),
            Value::Blob(blob) => blob,
        };
        match blob::whole(&store.cloud, &store.settings, blob).await? {
            Whole::All(payload) => Ok(payload),
            Whole::Without(part) => Err(self.gone(blob, part).await?),
        }
    }

    /// What it means that a part of a blob is not there.
    async fn gone(&self, blob: &Blob, part: u32) -> Result<StoreError, StoreError> {
        let object = blob.object(part);
        let is_own = |value: &Option<Value>| *value == Some(Value::Blob(*blob));
        if self.writes.values().any(is_own) {
            // It is on no page, and so long ago that it would not be committed either.
            return Ok(StoreError::Aborted { why: AbortCause::Late { object } });
        }
        gone(self.store(), self.snapshot(), object).await
    }

    /// The same, part by part.
    async fn content(&self, value: Value) -> Result<Content, StoreError> {
        let store = self.store();
        if let Some(content) = Content::open(&store.cloud, &store.settings, value.clone()).await? {
            return Ok(content.seen_at(store, self.snapshot()));
        }
        match value {
            Value::Blob(blob) => Err(self.gone(&blob, 0).await?),
            Value::Here(_) => Err(StoreError::Invalid("a payload is not there".into())),
        }
    }

    /// What `key` holds, and which commit wrote it: 0 if there is nothing, or if this transaction did. No blob is
    /// read.
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
        at(self.store(), &*self.view().await?, of.root, bytes).await
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
        Ok(self.scan_tree(of.root, from, to))
    }

    fn scan_tree(&self, tree: PageId, from: Bytes, to: Option<Bytes>) -> IsolatedScan<'_> {
        self.note(|reads| reads.range(tree, from.clone(), to.clone()));
        let scan = SnapshotScan::new(tree, from, to);
        IsolatedScan { txn: self, tree, scan, ready: VecDeque::new(), is_done: false }
    }

    /// Records of `of` whose search keys by the index `index` lie between two bounds, in the order of these and
    /// then of their keys: exactly those of the snapshot, and of what this transaction wrote.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is no such index, [`StoreError::Invalid`] when it had not all records at
    /// the snapshot, since it is being built or was made after that, and as [`Isolated::read`].
    pub async fn probe(
        &self,
        of: &Collection,
        index: &str,
        from: Bound<&Key>,
        to: Bound<&Key>,
    ) -> Result<IsolatedFound<'_>, StoreError> {
        self.check(of)?;
        let view = self.view().await?;
        let known = |of: &Collection| {
            let named = of.indexes.iter().find(|there| there.name == index)?;
            let all = view.numbers.indexes_of(of.root).iter();
            all.filter(|there| there.is_ready).find(|there| there.root == named.root).cloned()
        };
        let there = match known(of) {
            Some(there) => there,
            None => {
                // Made since, or made anew.
                let of = self.store().collection(&of.name).await?;
                match known(&of) {
                    Some(there) => there,
                    None if of.indexes.iter().any(|there| there.name == index) => {
                        return Err(StoreError::Invalid(format!(
                            "index {index} of {} is being built, or was made after this transaction began",
                            of.name
                        )));
                    }
                    None => {
                        let what = format!("index {index} of {}", of.name);
                        return Err(StoreError::NotFound(what));
                    }
                }
            }
        };
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
        let is_in = |pair: &Bytes| *pair >= from && to.as_ref().is_none_or(|to| pair < to);
        let own = self.writes.range((of.root, Bytes::new())..);
        let own = own.take_while(|((tree, _), _)| *tree == of.root);
        let own = own.filter_map(|((_, key), value)| {
            let here = value.as_ref().filter(|value| !self.is_for_blob(value));
            follow::pair(&there.by, key, here)
        });
        let own = own.filter(is_in).collect();
        self.probed.lock().unwrap_or_else(PoisonError::into_inner).insert(of.root);
        // A range that ends before it begins has nothing in it.
        let to = to.map(|to| to.max(from.clone()));
        let scan = self.scan_tree(there.root, from, to);
        let name = format!("index {index} of {}", of.name);
        Ok(IsolatedFound { txn: self, of: of.clone(), index: there, name, scan, ahead: None, own })
    }

    /// The record of `key` shall have this payload.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] when the collection was not created for this level, when there are too many
    /// changes, or an attempt to commit was made.
    pub fn put(&mut self, of: &Collection, key: &Key, payload: &Payload) -> Result<(), StoreError> {
        self.write(of, key, Some(Value::Here(payload.to_bytes())))
    }

    /// The record of `key` shall have what was written before, by
    /// [`Session::write_blob`](crate::Session::write_blob) of the same session. A transaction that names one
    /// begun longer ago than half of [`Settings::tombstone_age`](crate::Settings) is aborted.
    ///
    /// # Errors
    /// As [`Isolated::put`], and [`StoreError::Invalid`] when another client wrote it.
    pub fn put_value(
        &mut self,
        of: &Collection,
        key: &Key,
        value: Value,
    ) -> Result<(), StoreError> {
        if let Value::Blob(blob) = &value {
            self.session.check_written(blob)?;
        }
        self.write(of, key, Some(value))
    }

    /// There shall be no record of `key`.
    ///
    /// # Errors
    /// As [`Isolated::put`].
    pub fn delete(&mut self, of: &Collection, key: &Key) -> Result<(), StoreError> {
        self.write(of, key, None)
    }

    /// Bytes of the longest payload that is no blob: a version has one byte more than its payload.
    fn payload_bytes_max(&self) -> usize {
        self.session.inline_bytes_max().min(INLINE_BYTES_MAX) - 1
    }

    fn write(
        &mut self,
        of: &Collection,
        key: &Key,
        payload: Option<Value>,
    ) -> Result<(), StoreError> {
        self.check(of)?;
        if self.submission.is_some() {
            let what = "a commit of this transaction was tried: it can only be tried again";
            return Err(StoreError::Invalid(what.into()));
        }
        let at = (of.root, Bytes::copy_from_slice(key.as_bytes()));
        // In the sequencer, and of what becomes a blob.
        let most = self.payload_bytes_max();
        let bytes = |payload: &Option<Value>| {
            let (here, blob) = match payload {
                Some(Value::Here(payload)) if payload.len() > most => {
                    (REFERENCE_BYTES, payload.len())
                }
                payload => (payload.as_ref().map_or(0, Value::weight), 0),
            };
            (WRITE_FIXED_BYTES + key.as_bytes().len() + here, blob)
        };
        let had = self.writes.get(&at);
        if had.is_none() && self.writes.len() >= WRITES_MAX {
            let what = format!("a transaction has at most {WRITES_MAX} changes");
            return Err(StoreError::Invalid(what));
        }
        let (before, after) = (had.map_or((0, 0), bytes), bytes(&payload));
        let new = self.bytes - before.0 + after.0;
        let new_blobs = self.blob_bytes - before.1 + after.1;
        if new_blobs > BLOBS_BYTES_MAX {
            return Err(StoreError::Invalid(format!(
                "payloads of more than {most} bytes, of which a transaction holds {} MiB at most in memory: \
                 write them part by part",
                BLOBS_BYTES_MAX >> 20
            )));
        }
        if new > WRITES_BYTES_MAX {
            return Err(StoreError::Invalid(format!(
                "a transaction at this level has at most {} MiB, not counting blobs",
                WRITES_BYTES_MAX >> 20
            )));
        }
        (self.bytes, self.blob_bytes) = (new, new_blobs);
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
        let store = self.store().clone();
        let mut attempts = Attempts::new(&store.cloud, &store.settings);
        loop {
            let submission = match &self.submission {
                Some(submission) => submission.clone(),
                None => {
                    let submission = Arc::new(self.seal().await?);
                    self.submission = Some(submission.clone());
                    submission
                }
            };
            match submit(&store, &submission).await {
                Ok(number) => {
                    let records = self.writes.len() as u32;
                    return Ok(Committed { number, records, proposed: None });
                }
                // It has read nothing, but for the entries of what it replaces, which are others by now.
                Err(StoreError::Aborted { why })
                    if self.view.get().is_none() && why.is_overtaken() =>
                {
                    self.submission = None;
                    if attempts.after_loss(NUMBERS).await.is_err() {
                        return Err(StoreError::Aborted { why });
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether a payload becomes a blob.
    fn is_for_blob(&self, value: &Value) -> bool {
        value.here().is_some_and(|payload| payload.len() > self.payload_bytes_max())
    }

    /// What is submitted; what it writes is put before, if it is large, and blobs are. Each attempt that does
    /// not come to its end puts others: what it leaves is garbage.
    async fn seal(&self) -> Result<Submission, StoreError> {
        let life = self.session.identity().await?;
        let store = self.store();
        let id = self.id;
        let (mut was_asked, mut blobs) = (false, Vec::<(Blob, Bytes)>::new());
        let mut writes = Vec::with_capacity(self.writes.len());
        for ((tree, key), payload) in &self.writes {
            let payload = match payload {
                Some(value @ Value::Here(payload)) if self.is_for_blob(value) => {
                    let blob = self.session.blob_for(payload, &mut was_asked).await?;
                    blobs.push((blob, payload.clone()));
                    Some(Value::Blob(blob))
                }
                payload => payload.clone(),
            };
            writes.push(Write { tree: *tree, key: key.clone(), payload });
        }
        // As of the snapshot, if it has one.
        let (mut known, implied) = follow::implied(store, self.view.get(), &writes).await?;
        if let Some(view) = self.view.get() {
            // Nobody commits entries of one that was dropped: what it did not see there would not be known.
            let probed = self.probed.lock().unwrap_or_else(PoisonError::into_inner).clone();
            known.add(&view.numbers, probed);
        }
        let bytes = self.bytes + implied.iter().map(Write::bytes).sum::<usize>();
        if bytes > WRITES_BYTES_MAX {
            return Err(StoreError::Invalid(format!(
                "a transaction at this level has at most {} MiB with the entries of indexes",
                WRITES_BYTES_MAX >> 20
            )));
        }
        writes.extend(implied);
        writes.sort_by(|a, b| a.at().cmp(&b.at()));
        if writes.windows(2).any(|pair| pair[0].at() == pair[1].at()) {
            let what =
                "a record is written to the tree of an index, which has entries of other records";
            return Err(StoreError::Invalid(what.to_owned()));
        }
        let writes: Arc<[Write]> = writes.into();
        if !blobs.is_empty() {
            blob::put_all(&store.cloud, &store.settings, &blobs).await?;
            reached(&store.cloud, FailPoint::PartsPut).await;
        }
        let mut object = None;
        if bytes > INLINE_BYTES {
            // Another one at each attempt: what was written in between is not in what an earlier one put.
            object = Some(put_writes(store, id, &writes).await?);
        }
        let reads = self.reads.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (snapshot, isolation) = (self.snapshot().or(known.snapshot), self.isolation);
        let submission = Submission::new(id, life, snapshot, isolation, reads, writes, object);
        Ok(submission.knowing(known.indexes))
    }
}

/// Puts what is too large for the sequencer. Returns the object and its length.
pub(super) async fn put_writes(
    store: &Store,
    id: u128,
    writes: &[Write],
) -> Result<(String, u32), StoreError> {
    store.ask_date_after_sleep().await?;
    // By a wrong one garbage collection would take it at once, or never.
    let date_ms = store.asked_date_ms().await?;
    let name = data_name(date_ms, store.cloud.chance.next_u128());
    let len = put_data(store, &name, encode_data(id, writes)).await?;
    reached(&store.cloud, FailPoint::Spilled).await;
    Ok((name, len))
}

/// Records that an index leads to. See [`Isolated::probe`].
pub struct IsolatedFound<'t> {
    txn: &'t Isolated<'t>,
    of: Collection,
    index: SequencedIndex,
    /// What it is called.
    name: String,
    scan: IsolatedScan<'t>,
    /// The next entry of the scan.
    ahead: Option<Bytes>,
    /// Entries of what the transaction itself wrote.
    own: BTreeSet<Bytes>,
}

impl IsolatedFound<'_> {
    /// The next search key and the record that it was found in; `None` at the end.
    ///
    /// # Errors
    /// As [`Isolated::read`]; [`StoreError::NotFound`] when it was dropped; [`StoreError::Tree`] when the index has an
    /// entry that its record does not say.
    pub async fn next(&mut self) -> Result<Option<(Key, Record)>, StoreError> {
        loop {
            if self.ahead.is_none() {
                let next = self.scan.next_raw().await;
                if let Err(error) = &next
                    && self.txn.store().is_dropped(self.index.root, error).await?
                {
                    return Err(StoreError::NotFound(self.name.clone()));
                }
                self.ahead = next?;
            }
            let pair = match (&self.ahead, self.own.first()) {
                (Some(ahead), Some(own)) => ahead.min(own),
                (Some(one), None) | (None, Some(one)) => one,
                (None, None) => return Ok(None),
            };
            let pair = pair.clone();
            let wrong = "has an entry that its record does not say: build the index again";
            let wrong = StoreError::Tree { page: self.index.root, what: wrong };
            let Some((search, key)) = divide(&pair) else { return Err(wrong) };
            let is_own = self.own.contains(&pair);
            let at = (self.of.root, Bytes::copy_from_slice(key.as_bytes()));
            if !is_own && self.txn.writes.contains_key(&at) {
                // What it said before.
                self.pass(&pair);
                continue;
            }
            let read = self.txn.read_numbered(&self.of, &key).await;
            // What can be read when it is asked for again, or nobody waited for, is the next one still.
            if !read.as_ref().is_err_and(StoreError::is_passing) {
                self.pass(&pair);
            }
            let (_, value) = read?;
            let payload = value.as_ref().and_then(Value::here);
            return match payload.filter(|it| self.index.by.key(it).as_ref() == Some(&search)) {
                Some(payload) => {
                    Ok(Some((search, Record { key, payload: Payload::new(payload)? })))
                }
                None => Err(wrong),
            };
        }
    }

    /// Goes on behind `pair`.
    fn pass(&mut self, pair: &Bytes) {
        self.ahead.take_if(|ahead| ahead == pair);
        self.own.remove(pair);
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

/// What it means that an object is not there that a version named which a snapshot saw.
pub(crate) async fn gone(
    store: &Store,
    snapshot: Option<u64>,
    object: String,
) -> Result<StoreError, StoreError> {
    let oldest = newest(store).await?.numbers.horizon;
    Ok(match snapshot.filter(|snapshot| *snapshot < oldest) {
        Some(snapshot) => StoreError::Aborted { why: AbortCause::Old { snapshot, oldest } },
        None => StoreError::Lost { object },
    })
}

/// That a page still has what a snapshot sees.
pub(super) fn check_age(store: &Store, page: &Page, snapshot: u64) -> Result<(), StoreError> {
    let oldest = versions::readable_from(page);
    match snapshot < oldest && store.settings.rules.hold(Rule::Pruned) {
        true => Err(StoreError::Aborted { why: AbortCause::Old { snapshot, oldest } }),
        false => Ok(()),
    }
}

/// What a snapshot sees of a key, and since which commit.
pub(super) async fn at(
    store: &Store,
    view: &View,
    tree: PageId,
    key: &[u8],
) -> Result<Held, StoreError> {
    match view.read(tree, key, view.numbers.last) {
        Some(held) => Ok(held),
        None => on_pages(store, view, tree, key).await,
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

/// What is to be given out: key, value, and the commit that wrote it.
type Ready = (Bytes, Value, u64);

/// Records in the order of their keys. See [`Isolated::scan`].
pub struct IsolatedScan<'t> {
    txn: &'t Isolated<'t>,
    tree: PageId,
    scan: SnapshotScan,
    /// What is to be given out: key, value, and the commit that wrote it.
    ready: VecDeque<Ready>,
    is_done: bool,
}

impl IsolatedScan<'_> {
    /// The next record; `None` at the end. A blob is read whole.
    ///
    /// Nothing is passed over because a service failed, or because nobody waited: the next call goes on
    /// with the same record. One whose blob is too long, damaged or lost is passed over.
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
        self.fill().await?;
        let Some((_, value, _)) = self.ready.front() else { return Ok(None) };
        let read = self.txn.load(value).await;
        let Some(((key, _, number), payload)) = self.pass(read)? else { return Ok(None) };
        Ok(Some((Key::new(key)?, Payload::new(payload)?, number)))
    }

    /// The next record, whose payload is read part by part.
    ///
    /// # Errors
    /// As [`Isolated::open_content`].
    pub async fn next_content(&mut self) -> Result<Option<(Key, Content)>, StoreError> {
        self.fill().await?;
        let Some((_, value, _)) = self.ready.front() else { return Ok(None) };
        let read = self.txn.content(value.clone()).await;
        let Some(((key, ..), content)) = self.pass(read)? else { return Ok(None) };
        Ok(Some((Key::new(key)?, content)))
    }

    /// The next key. No blob is read.
    ///
    /// # Errors
    /// As [`Isolated::read`].
    pub async fn next_key(&mut self) -> Result<Option<Key>, StoreError> {
        Ok(self.next_raw().await?.map(Key::new).transpose()?)
    }

    /// The next key as it is in its tree.
    async fn next_raw(&mut self) -> Result<Option<Bytes>, StoreError> {
        self.fill().await?;
        Ok(self.ready.pop_front().map(|(key, ..)| key))
    }

    /// Reads leaves until something is ready, or nothing is left.
    async fn fill(&mut self) -> Result<(), StoreError> {
        while self.ready.is_empty() && !self.is_done {
            self.step().await?;
        }
        Ok(())
    }

    /// Passes over the first of what is ready, unless the same can succeed when it is asked for again.
    fn pass<T>(&mut self, read: Result<T, StoreError>) -> Result<Option<(Ready, T)>, StoreError> {
        if let Err(error) = &read
            && error.is_passing()
        {
            return read.map(|_| None);
        }
        let passed = self.ready.pop_front();
        Ok(passed.zip(Some(read?)))
    }

    /// Takes one leaf. State is changed when it is there.
    async fn step(&mut self) -> Result<(), StoreError> {
        let view = self.txn.view().await?;
        let Some(part) = self.scan.step(self.txn.store(), &view).await? else {
            self.is_done = true;
            return Ok(());
        };
        let mut shown = part.shown;
        let own = self.txn.writes.range((self.tree, part.from)..);
        let is_in = |key: &Bytes| part.until.as_ref().is_none_or(|until| key < until);
        for ((_, key), payload) in
            own.take_while(|((tree, key), _)| *tree == self.tree && is_in(key))
        {
            shown.insert(key.clone(), (0, payload.clone()));
        }
        for (key, (number, payload)) in shown {
            // Copied: what is shared keeps the page's bytes, which nobody counts.
            let copied = payload.map(|value| match value {
                Value::Here(payload) => Value::Here(Bytes::copy_from_slice(&payload)),
                blob => blob,
            });
            if let Some(value) = copied {
                self.ready.push_back((Bytes::copy_from_slice(&key), value, number));
            }
        }
        Ok(())
    }
}
