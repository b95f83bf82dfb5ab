//! The protocols of 2008 as they are printed, to be compared with and to be seen to fail.
//!
//! M. Brantner, D. Florescu, D. Graf, D. Kossmann, T. Kraska: Building a Database on S3, SIGMOD
//! 2008. Sections 4 to 8 of the paper: PU, LOCK and ATOMIC queues, one PU and one LOCK queue per
//! page, unconditional puts, a lock timeout, counters per client in page headers, timestamps of
//! local clocks. Only databases made for comparison use this; where it loses data is in PROTOCOL.md,
//! section 2.
//!
//! Pages are those of the store, and so is the record format. What a page's header calls `applied`
//! holds the paper's counters here. They are counted per data page, for updates: where those of a
//! B-tree lie, whose records go to many leaves, the paper does not say, and inserts and deletes are
//! applied as they come.

pub mod tree; // section 5.2: inserts and deletes, splits
pub mod evaluation; // tables 3 and 4, figure 3
pub mod today; // the hardened store: dollars, freshness, scaling
pub mod ceiling; // how many commits go through one sequencer

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;

use crate::{
    cloud::{Cloud, ETag, Fault, Get, Message, Put, PutIf, QueueSettings, Sent, ToSend},
    error::StoreError,
    log::{self, Entry, LogRecord, Transaction, transaction},
    page::{Entries, Page, PageId, Stream},
    record::{Key, Payload},
    stamp::Stamp,
};

/// Messages that one receive of 2007 could return.
const RECEIVE_MAX: usize = 256;
/// Fetches of a page that is older than one seen before, until a client of ours gives up. The
/// printed one never does.
const REFETCHES_MAX: u32 = 100;

/// The four variants of the paper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Variant {
    /// Puts every dirty page. Durable, and loses updates.
    Naive,
    /// Log records to PU queues.
    Basic,
    /// And counters and timestamps for session guarantees.
    Monotonicity,
    /// And ATOMIC queues.
    Atomicity,
}

impl Variant {
    /// In the order of the paper's tables.
    pub const ALL: [Variant; 4] =
        [Variant::Naive, Variant::Basic, Variant::Monotonicity, Variant::Atomicity];

    /// As the paper's tables name it.
    pub fn name(self) -> &'static str {
        match self {
            Variant::Naive => "Naive",
            Variant::Basic => "Basic",
            Variant::Monotonicity => "Monotonicity",
            Variant::Atomicity => "Atomicity",
        }
    }
}

/// The paper's parameters, section 6 of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PaperSettings {
    /// Which protocol.
    pub variant: Variant,
    /// Age from which a cached page is revalidated. 100 s in the paper.
    pub ttl: Duration,
    /// Age of the last checkpoint from which a commit starts one. 15 s.
    pub checkpoint_interval: Duration,
    /// How long a LOCK token is hidden. 2 s.
    pub lock_timeout: Duration,
    /// What must be left of it for the put. The paper has no number: 1 s here, half of the timeout.
    pub padding: Duration,
    /// Bytes of one message. 8 KB over HTTP.
    pub message_bytes_max: usize,
    /// Bytes above which a checkpoint splits a page. The paper's were 100 KB; those of its evaluation,
    /// here, keep their size.
    pub page_bytes_max: usize,
    /// Pages in the client's cache. 5 MB of 100 KB each.
    pub cache_pages: usize,
    /// Whether the sends of a commit go out together. The paper's did not.
    pub is_parallel: bool,
    /// Whether a transaction that fits into one message is one, and its own commit record. The
    /// paper's was not.
    pub is_one_message: bool,
}

impl PaperSettings {
    /// The values of the paper's experiments.
    pub fn new(variant: Variant) -> PaperSettings {
        PaperSettings {
            variant,
            ttl: Duration::from_secs(100),
            checkpoint_interval: Duration::from_secs(15),
            lock_timeout: Duration::from_secs(2),
            padding: Duration::from_secs(1),
            message_bytes_max: 8 << 10,
            page_bytes_max: usize::MAX,
            cache_pages: 50,
            is_parallel: false,
            is_one_message: false,
        }
    }
}

/// A change of a record: where its log record goes is the paper's section 4.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The B-tree, by its root.
    pub tree: PageId,
    /// The data page that holds the key, as this client sees the tree.
    pub page: PageId,
    /// Its key.
    pub key: Key,
    /// What happens to it.
    pub kind: ChangeKind,
}

/// What happens to a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It is new: to the PU queue of the tree.
    Insert(Payload),
    /// It is gone: to the PU queue of the tree.
    Delete,
    /// It has this payload: to the PU queue of the data page.
    Update(Payload),
}

/// A client of 2008. Its pages are given; what it changes are records on them.
pub struct PaperClient {
    settings: PaperSettings,
    /// For what the application waits for.
    front: Cloud,
    /// For checkpoints and the ATOMIC queue.
    back: Cloud,
    id: u64,
    state: Mutex<State>,
    transactions: AtomicU64,
}

#[derive(Default)]
struct State {
    cache: HashMap<PageId, Cached>,
    uses: u64,
    /// Per page, raised at each commit to it: monotonic writes.
    /// Updates, and what goes to its tree, on their own.
    counters: HashMap<(PageId, bool), u64>,
    /// The highest timestamp seen of each page: monotonic reads.
    newest_ms: HashMap<PageId, u64>,
}

struct Cached {
    page: Page,
    etag: ETag,
    fetched_us: u64,
    used: u64,
}

fn pu(page: PageId) -> String {
    format!("pu-{page}")
}

/// The PU queue that a log record goes to.
fn queue_of(entry: &Entry) -> String {
    match entry.record.change {
        log::Change::Update(..) => pu(entry.page),
        _ => tree::pu(entry.tree),
    }
}

fn lock_queue(page: PageId) -> String {
    format!("lock-{page}")
}

/// Creates a page with its queues and its one token.
///
/// # Errors
/// Whatever the services say.
pub async fn create_page(cloud: &Cloud, page: &Page) -> Result<(), StoreError> {
    let settings = QueueSettings { fifo: false, retention: Duration::from_secs(14 * 24 * 3600) };
    let failed = |source| StoreError::Cloud { attempts: 1, source };
    for queue in [pu(page.id), lock_queue(page.id)] {
        cloud.queue.create(&queue, settings).await.map_err(failed)?;
    }
    let token = [ToSend { body: Bytes::from_static(b"token"), ..ToSend::default() }];
    for sent in cloud.queue.send(&lock_queue(page.id), &token).await {
        accepted(sent)?;
    }
    stored(cloud.objects.put(&page.id.object(), page.encode(), PutIf::Always).await).map(drop)
}

fn accepted(sent: Sent) -> Result<(), StoreError> {
    match sent {
        Sent::Accepted => Ok(()),
        Sent::Unknown(source) | Sent::Failed(source) => {
            Err(StoreError::Cloud { attempts: 1, source })
        }
    }
}

fn stored(put: Put) -> Result<ETag, StoreError> {
    match put {
        Put::Stored(etag) => Ok(etag),
        Put::Unknown(source) | Put::Failed(source) => {
            Err(StoreError::Cloud { attempts: 1, source })
        }
        other => Err(StoreError::Invalid(format!("a put without a condition: {other:?}"))),
    }
}

impl PaperClient {
    /// A client `id` that calls `front` for what the application waits for, `back` for the rest.
    ///
    /// # Errors
    /// Whatever the services say.
    pub async fn new(
        settings: PaperSettings,
        id: u64,
        front: Cloud,
        back: Cloud,
    ) -> Result<PaperClient, StoreError> {
        let client = PaperClient {
            settings,
            front,
            back,
            id,
            state: Mutex::default(),
            transactions: AtomicU64::new(0),
        };
        let kept = QueueSettings { fifo: false, retention: Duration::from_secs(14 * 24 * 3600) };
        let created = client.back.queue.create(&client.atomic(), kept).await;
        created.map_err(|source| StoreError::Cloud { attempts: 1, source })?;
        Ok(client)
    }

    fn atomic(&self) -> String {
        format!("atomic-{:016x}", self.id)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The page `id`: from the cache, or revalidated, or fetched.
    ///
    /// # Errors
    /// Whatever the object store says, and that a page stays older than one seen before (W10).
    pub async fn read(&self, id: PageId) -> Result<Page, StoreError> {
        self.fetch(&self.front, id, false).await
    }

    async fn fetch(&self, cloud: &Cloud, id: PageId, now: bool) -> Result<Page, StoreError> {
        let is_session = self.settings.variant >= Variant::Monotonicity;
        for _ in 0..REFETCHES_MAX {
            let asked_us = cloud.clock.monotonic_us();
            let known = {
                let mut state = self.state();
                state.uses += 1;
                let used = state.uses;
                match state.cache.get_mut(&id) {
                    Some(cached) => {
                        cached.used = used;
                        let age_us = asked_us - cached.fetched_us;
                        if !now && age_us < self.settings.ttl.as_micros() as u64 {
                            return Ok(cached.page.clone());
                        }
                        Some((cached.page.clone(), cached.etag.clone()))
                    }
                    None => None,
                }
            };
            let etag = known.as_ref().map(|(_, etag)| etag);
            let got = cloud.objects.get(&id.object(), etag).await;
            match got.map_err(|source| StoreError::Cloud { attempts: 1, source })? {
                Get::Unchanged { .. } => {
                    if let Some((page, etag)) = known {
                        self.keep(page.clone(), etag, asked_us);
                        return Ok(page);
                    }
                }
                Get::Absent => return Err(StoreError::NotFound(format!("page {id}"))),
                Get::Found { bytes, etag, .. } => {
                    let object = id.object();
                    let page = Page::decode(&bytes)
                        .map_err(|source| StoreError::Damaged { object, source })?;
                    let newest = self.state().newest_ms.get(&id).copied().unwrap_or(0);
                    if is_session && page.checkpoint_ms < newest {
                        // Monotonic reads (8.1): discard, fetch again.
                        cloud.clock.sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                    self.keep(page.clone(), etag, asked_us);
                    return Ok(page);
                }
            }
        }
        Err(StoreError::Contended { object: id.object(), attempts: REFETCHES_MAX })
    }

    fn keep(&self, page: Page, etag: ETag, fetched_us: u64) {
        let mut state = self.state();
        state.uses += 1;
        let (id, used) = (page.id, state.uses);
        let newest = state.newest_ms.entry(id).or_default();
        *newest = (*newest).max(page.checkpoint_ms);
        state.cache.insert(id, Cached { page, etag, fetched_us, used });
        while state.cache.len() > self.settings.cache_pages.max(1) {
            let oldest =
                state.cache.iter().min_by_key(|(_, cached)| cached.used).map(|(id, _)| *id);
            oldest.map(|id| state.cache.remove(&id));
        }
    }

    /// Commits updates of records on pages, one log record each. Returns the pages that are due for
    /// a checkpoint: the caller starts those in the background.
    ///
    /// # Errors
    /// Whatever the services say. What was sent until then stays sent.
    pub async fn commit(
        &self,
        changes: Vec<(PageId, Key, Payload)>,
    ) -> Result<Vec<PageId>, StoreError> {
        let update = |(page, key, payload)| Change {
            tree: page,
            page,
            key,
            kind: ChangeKind::Update(payload),
        };
        let changes: Vec<Change> = changes.into_iter().map(update).collect();
        let pages: Vec<PageId> = changes.iter().map(|change| change.page).collect();
        self.commit_all(changes).await?;
        match self.settings.variant {
            Variant::Naive => Ok(Vec::new()),
            _ => Ok(self.due(&pages)),
        }
    }

    /// Commits changes of any kind, one log record each.
    ///
    /// # Errors
    /// As [`PaperClient::commit`].
    pub async fn commit_all(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        let number = self.transactions.fetch_add(1, Ordering::Relaxed) + 1;
        let total = changes.len() as u32;
        let entries: Vec<Entry> = changes
            .into_iter()
            .map(|Change { tree, page, key, kind }| {
                let mut state = self.state();
                let is_update = matches!(kind, ChangeKind::Update(_));
                let counter = state.counters.entry((page, is_update)).or_default();
                *counter += 1;
                let stamp = Stamp { clock: *counter, client: self.id, sequence: number };
                let change = match kind {
                    ChangeKind::Insert(payload) => log::Change::Insert(key, payload),
                    ChangeKind::Delete => log::Change::Delete(key, Payload::default()),
                    ChangeKind::Update(payload) => log::Change::Update(key, payload),
                };
                let record = LogRecord { stamp, change };
                Entry { tree, page, is_secondary: false, record }
            })
            .collect();
        {
            // The client's own copies have the change at once.
            let mut state = self.state();
            for entry in &entries {
                if let Some(cached) = state.cache.get_mut(&entry.page) {
                    put_on(&mut cached.page, entry);
                }
            }
        }
        let whole = Transaction { client: self.id, epoch: 0, number, total, entries };
        match self.settings.variant {
            Variant::Naive => self.put_pages(&whole).await,
            Variant::Basic | Variant::Monotonicity => self.send_records(&self.front, &whole).await,
            Variant::Atomicity => self.send_atomic(&whole).await,
        }
    }

    /// Which of `pages` are due for a checkpoint now that records were sent to their PU queues: the
    /// writer rule, 5.3.
    pub fn due(&self, pages: &[PageId]) -> Vec<PageId> {
        let now_ms = self.front.clock.wall_us() / 1000;
        let interval_ms = self.settings.checkpoint_interval.as_millis() as u64;
        let state = self.state();
        let last_ms = |id| state.newest_ms.get(&id).copied().unwrap_or(0);
        let mut due = pages.to_vec();
        due.retain(|&id| now_ms.abs_diff(last_ms(id)) > interval_ms);
        due.dedup();
        due
    }

    /// Naive: the whole page, over whatever is there.
    async fn put_pages(&self, whole: &Transaction) -> Result<(), StoreError> {
        for entry in &whole.entries {
            let mut page = self.fetch(&self.front, entry.page, false).await?;
            put_on(&mut page, entry);
            page.version += 1;
            page.checkpoint_ms = self.front.clock.wall_us() / 1000;
            let at_us = self.front.clock.monotonic_us();
            let put = self.front.objects.put(&page.id.object(), page.encode(), PutIf::Always).await;
            self.keep(page, stored(put)?, at_us);
        }
        Ok(())
    }

    /// One message per log record, to the PU queue of its page.
    async fn send_records(&self, cloud: &Cloud, whole: &Transaction) -> Result<(), StoreError> {
        let send = async |entry: &Entry| {
            let body = whole.part(vec![entry.clone()]).encode();
            self.send(cloud, &queue_of(entry), body).await
        };
        if self.settings.is_parallel {
            let sends = whole.entries.iter().map(send);
            return futures::future::join_all(sends).await.into_iter().collect();
        }
        for entry in &whole.entries {
            send(entry).await?;
        }
        Ok(())
    }

    async fn send(&self, cloud: &Cloud, queue: &str, body: Bytes) -> Result<(), StoreError> {
        let message = [ToSend { body, ..ToSend::default() }];
        cloud.queue.send(queue, &message).await.into_iter().try_for_each(accepted)
    }

    /// Section 7, step 1: the records, as many as fit into a message, and last the commit record.
    async fn send_atomic(&self, whole: &Transaction) -> Result<(), StoreError> {
        let mut part = whole.part(Vec::new());
        for entry in &whole.entries {
            let is_full = part.encoded_bytes() + entry.bytes() > self.settings.message_bytes_max;
            if is_full && !part.entries.is_empty() {
                self.send(&self.front, &self.atomic(), part.encode()).await?;
                part.entries.clear();
            }
            part.entries.push(entry.clone());
        }
        let is_whole = part.entries.len() == whole.entries.len();
        self.send(&self.front, &self.atomic(), part.encode()).await?;
        if is_whole && self.settings.is_one_message {
            return Ok(());
        }
        self.send(&self.front, &self.atomic(), whole.part(Vec::new()).encode()).await
    }

    /// Section 7, steps 2 and 3, and recovery: winners are sent on and deleted, losers deleted.
    /// Returns how many transactions won.
    ///
    /// `is_recovery` makes those without a commit record losers; a client that runs leaves them, since
    /// their commit record may be on its way.
    ///
    /// # Errors
    /// Whatever the services say.
    pub async fn forward(&self, is_recovery: bool) -> Result<usize, StoreError> {
        let queue = self.atomic();
        let messages = self.receive(&queue, self.settings.lock_timeout).await?;
        /// Messages and records of one transaction, and how many its commit record names.
        type Group = (Vec<Message>, Vec<Entry>, Option<u32>);
        let mut groups: BTreeMap<u64, Group> = BTreeMap::new();
        for message in messages {
            let Ok(transaction::Body::Here(part)) = Transaction::decode(&message.body) else {
                continue;
            };
            let group = groups.entry(part.number).or_default();
            group.0.push(message);
            let is_whole = part.entries.len() as u64 == u64::from(part.total);
            if part.entries.is_empty() || (is_whole && self.settings.is_one_message) {
                group.2 = Some(part.total);
            }
            group.1.extend(part.entries);
        }
        let mut winners = 0;
        for (number, (messages, entries, total)) in groups {
            match total {
                Some(total) => {
                    let found = entries.len() as u32;
                    let whole = Transaction { client: self.id, epoch: 0, number, total, entries };
                    self.send_records(&self.back, &whole).await?;
                    // The commit record only after all records have been seen.
                    let all = found == total;
                    let done = messages.into_iter().filter(|message| {
                        let part = Transaction::decode(&message.body);
                        all || matches!(part, Ok(transaction::Body::Here(part)) if !part.entries.is_empty())
                    });
                    self.delete(&queue, done.collect()).await?;
                    winners += 1;
                }
                None if is_recovery => self.delete(&queue, messages).await?,
                None => {}
            }
        }
        Ok(winners)
    }

    async fn receive(&self, queue: &str, visibility: Duration) -> Result<Vec<Message>, StoreError> {
        let received =
            self.back.queue.receive(queue, RECEIVE_MAX, visibility, Duration::ZERO).await;
        received.map_err(|source| StoreError::Cloud { attempts: 1, source })
    }

    async fn delete(&self, queue: &str, messages: Vec<Message>) -> Result<(), StoreError> {
        for message in messages {
            let deleted: Result<(), Fault> =
                self.back.queue.delete(queue, &[message.receipt]).await;
            deleted.map_err(|source| StoreError::Cloud { attempts: 1, source })?;
        }
        Ok(())
    }

    /// Section 5.1: from the PU queue to the page. Returns how many records it applied.
    ///
    /// # Errors
    /// Whatever the services say.
    pub async fn checkpoint(&self, id: PageId) -> Result<usize, StoreError> {
        let timeout = self.settings.lock_timeout;
        // 1: someone else is at it.
        let token = self.back.queue.receive(&lock_queue(id), 1, timeout, Duration::ZERO).await;
        let began_us = self.back.clock.monotonic_us();
        if token.map_err(|source| StoreError::Cloud { attempts: 1, source })?.is_empty() {
            return Ok(0);
        }
        let left = |padding: Duration| {
            let used_us = self.back.clock.monotonic_us() - began_us;
            used_us + (padding.as_micros() as u64) < timeout.as_micros() as u64
        };
        // 2, 3. A receipt of today is void once its message is visible again, so the messages are
        // hidden for as long as the token.
        let mut page = self.fetch(&self.back, id, true).await?;
        if page.level > 0 {
            // The root was this page once, and records for it are to be found by nobody.
            return Ok(0);
        }
        let messages = self.receive(&pu(id), timeout).await?;
        let mut records = Vec::new();
        for message in messages {
            if let Ok(transaction::Body::Here(part)) = Transaction::decode(&message.body) {
                records.extend(part.entries.into_iter().map(|entry| (entry, message.clone())));
            }
        }
        // 4
        records.sort_by_key(|(entry, _)| (entry.record.stamp.client, entry.record.stamp.clock));
        let is_ordered = self.settings.variant >= Variant::Monotonicity;
        let mut done = Vec::new();
        let mut applied = 0;
        for (entry, message) in records {
            let Stamp { clock: counter, client, .. } = entry.record.stamp;
            let stream = Stream { client, epoch: 0 };
            let last = page.applied.iter().find(|(there, _)| *there == stream).map_or(0, |at| at.1);
            if is_ordered && counter > last + 1 {
                // Too early: it stays in the queue (8.2).
                continue;
            }
            if !is_ordered || counter == last + 1 {
                put_on(&mut page, &entry);
                if is_ordered {
                    page.mark_applied(stream, counter);
                }
                applied += 1;
            }
            done.push(message);
        }
        if done.is_empty() || !left(self.settings.padding) {
            // 5: nothing has been changed.
            return Ok(0);
        }
        self.put_or_split(page, None).await?;
        // 6
        if left(Duration::ZERO) {
            self.delete(&pu(id), done).await?;
        }
        Ok(applied)
    }
}

/// Applies a record over whatever is there. There are no tombstones: what is deleted is not there.
fn put_on(page: &mut Page, entry: &Entry) {
    let key = entry.leaf_key();
    match (&entry.record.change, &mut page.entries) {
        (log::Change::Delete(..), Entries::Leaf(slots)) => slots.retain(|slot| slot.key != key),
        (_, Entries::Leaf(_)) => {
            page.apply_if(&key, entry.record.stamp, entry.leaf_payload(), |_| true);
        }
        (_, Entries::Inner(_)) => {}
    }
}

/// Cheap to share.
pub type SharedClient = Arc<PaperClient>;
