//! A database in use: collections, transactions, and the work that goes on in the background.
//!
//! ```text
//!   Db --begin--> Transaction: create read update put delete scan range --commit--> durable
//!    |
//!    +-- in the background: checkpoints once per interval, a sweep now and then
//! ```

use std::{
    collections::BTreeMap,
    ops::Bound,
    pin::pin,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::future::{Either, select};
use pager::{Budget, pool::Pool};
use tokio::sync::Notify;

#[cfg(feature = "encryption")]
use crate::cloud::sealed::Keyring;
use crate::{
    address::Address,
    blob::{Value, Writing},
    catalog::{Backend, Collection, Isolation},
    checkpoint::Checkpointed,
    cloud::{
        Cloud, DiskSpace, Ledger, Spending,
        ledger::{Limit, Metered, Trees, charged_to, for_many},
    },
    commit::{Committed, Level, Scan, Session, Txn},
    content::Content,
    error::StoreError,
    index::{Found, IndexCheck},
    pool::{Eviction, PoolCounts},
    record::{Key, Payload, Record},
    search_by::SearchBy,
    sequence::{Isolated, IsolatedFound, IsolatedScan},
    settings::{Rule, Settings},
    store::Store,
};

/// How often work in the background looks for what there is to do.
const TICK: Duration = Duration::from_secs(1);

/// How a database is opened.
#[derive(Clone)]
pub struct Options {
    /// How this client works.
    pub settings: Settings,
    /// Bytes of memory for pages, in a budget of their own: those in use, those that are kept, those on
    /// their way, and what is known of them. Never more; some megabytes at least. Default: 64 MiB.
    pub budget_bytes: u64,
    /// A budget in place of `budget_bytes`, which others share: regions of a pager, other databases.
    pub budget: Option<Budget>,
    /// Which pages are given up when the budget is full. Default: [`Eviction::S3Fifo`].
    pub eviction: Eviction,
    /// A pool in place of all of these, which other databases share: one policy for the pages of all.
    pub pool: Option<Pool>,
    /// A part of a disk that keeps copies of pages beside memory, for this process and others, and
    /// beyond them. Default: none.
    pub disk: Option<DiskSpace>,
    /// The client's name. Each name has one life at a time: a second one ends the first. Default: a
    /// random name, forgotten when the database is closed.
    pub client: Option<u64>,
    /// Checkpoints and sweeps in the background. Without them what is committed stays in the log
    /// until [`Db::checkpoint`], or until another process sweeps. Default: true.
    pub has_worker: bool,
    /// How often the worker looks for what clients left that are gone. Default: 5 min.
    pub sweep_interval: Duration,
    /// Parts of the log that this client makes its own, if nobody else has, and checkpoints at every
    /// interval: queues of pending updates by their numbers, or 0 for all of a log of objects. Others then
    /// only append there ([`Store::own`]). For one that runs all the time. Needs `has_worker`. Default:
    /// none.
    pub owns: Vec<u32>,
    /// What may be spent on calls. When a share of it is spent work in the background waits, and when
    /// all of it is, everything fails until the next period. Default: anything.
    pub spending: Option<Spending>,
    /// Every transaction reads what waits in the log, too: see [`Transaction::fresh`]. Default: false.
    pub fresh: bool,
    /// Keys of the database, if it is encrypted; and if it is created, it will be. Default: none.
    #[cfg(feature = "encryption")]
    pub keys: Option<Keyring>,
    /// Log backend, if the database is created. Default: s3-log, which needs no queues.
    pub backend: Backend,
    /// Queues of pending updates, if the database is created with a backend that has them: 1 to
    /// 1,000. Default: 16.
    pub shards: u32,
    /// Of a database that is created: whether its collections can name the clients that may write to them
    /// ([`Db::create_for_writers`]). Default: no, and so it stays.
    pub has_writers: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            settings: Settings::default(),
            budget_bytes: 64 << 20,
            budget: None,
            eviction: Eviction::default(),
            pool: None,
            disk: None,
            client: None,
            has_worker: true,
            sweep_interval: Duration::from_secs(300),
            owns: Vec::new(),
            spending: None,
            fresh: false,
            #[cfg(feature = "encryption")]
            keys: None,
            backend: Backend::default(),
            shards: 16,
            has_writers: false,
        }
    }
}

/// A database, as one client uses it. Needs a Tokio runtime with its clock.
///
/// Dropped, it leaves what is committed and not checkpointed to others; [`Db::close`] does that
/// work before.
pub struct Db {
    session: Arc<Session>,
    ledger: Arc<Ledger>,
    books: Arc<Books>,
    limit: Option<Arc<Limit>>,
    worker: Option<Worker>,
    is_named: bool,
    is_fresh: bool,
}

/// Who pays for what.
#[derive(Default)]
struct Books {
    trees: Arc<Trees>,
    collections: Mutex<BTreeMap<String, Arc<Ledger>>>,
}

impl Books {
    /// The account of a collection.
    fn of(&self, collection: &Collection) -> Arc<Ledger> {
        let mut all = self.collections.lock().unwrap_or_else(PoisonError::into_inner);
        let account = match all.get(&collection.name) {
            Some(account) => account.clone(),
            None => {
                let account = Ledger::new();
                self.trees.set(collection.root.0, &account);
                all.insert(collection.name.clone(), account.clone());
                account
            }
        };
        // Also those that were made since it was used first.
        for index in &collection.indexes {
            self.trees.set(index.root.0, &account);
        }
        account
    }
}

/// Work in the background, ended with its handle.
struct Worker {
    task: tokio::task::JoinHandle<()>,
    stop: Arc<Notify>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Db {
    /// Opens the database at `url`: see [`Address`]. In memory it is created if it is not there.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is none, [`StoreError::Invalid`] when `url` is no
    /// address, and whatever the services say.
    pub async fn open(url: &str) -> Result<Db, StoreError> {
        Db::open_with(url, &Options::default()).await
    }

    /// [`Db::open`], with options.
    ///
    /// # Errors
    /// As [`Db::open`].
    pub async fn open_with(url: &str, options: &Options) -> Result<Db, StoreError> {
        let address = Address::from_str(url)?;
        let cloud = address.cloud()?;
        if let Address::Memory(_) = address {
            match create(&cloud, options).await {
                Ok(()) | Err(StoreError::Exists(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Db::over(cloud, options).await
    }

    /// Creates a database at `url`, where none is, and opens it.
    ///
    /// # Errors
    /// [`StoreError::Exists`] when there is one, and as [`Db::open`].
    pub async fn create(url: &str, options: &Options) -> Result<Db, StoreError> {
        let cloud = Address::from_str(url)?.cloud()?;
        create(&cloud, options).await?;
        Db::over(cloud, options).await
    }

    /// Opens the database in services of the caller's.
    ///
    /// # Errors
    /// As [`Db::open`].
    pub async fn over(cloud: Cloud, options: &Options) -> Result<Db, StoreError> {
        let ledger = Ledger::new();
        let is_named = options.client.is_some();
        let client = options.client.unwrap_or_else(|| cloud.chance.next_u64());
        let limit = options.spending.map(|spending| Limit::new(spending, cloud.clock.clone()));
        let objects = Metered::new(cloud.objects, ledger.clone()).limited(limit.clone());
        let queue = Metered::new(cloud.queue, ledger.clone()).limited(limit.clone());
        let disk = options.disk.clone().or(cloud.disk);
        let (objects, queue) = (Arc::new(objects), Arc::new(queue));
        let metered = Cloud { objects, queue, disk, clock: cloud.clock, chance: cloud.chance };
        let books = Arc::<Books>::default();
        let pool = options.pool.clone().unwrap_or_else(|| {
            let budget = options.budget.clone();
            let budget = budget.unwrap_or_else(|| Budget::new(options.budget_bytes));
            Pool::new(&budget, options.eviction.policy())
        });
        let store = open(metered, options, &pool).await?;
        let session = Arc::new(Session::reader(store, client));
        let worker = options.has_worker.then(|| {
            let stop = Arc::new(Notify::new());
            let pace = Pace { tick: TICK, sweep_interval: options.sweep_interval };
            let task_stop = stop.clone();
            let (of, owns) = (session.clone(), options.owns.clone());
            // Beside the work, which may take long.
            let task = async move {
                tokio::select! {
                    () = work(&of, pace, &owns, &task_stop) => {}
                    () = look_ahead(&of) => {}
                }
            };
            let books = books.clone();
            let task = tokio::spawn(async move { for_many(&books.trees, true, task).await });
            Worker { task, stop }
        });
        let is_fresh = options.fresh;
        Ok(Db { session, ledger, books, limit, worker, is_named, is_fresh })
    }

    /// What goes on beneath: pages, log, catalogue.
    pub fn store(&self) -> &Arc<Store> {
        self.session.store()
    }

    /// This client's name.
    pub fn client(&self) -> u64 {
        self.session.client()
    }

    /// Every call that was made, counted.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// The calls that were made for each collection that was used: reads, scans and probes, commits
    /// that changed nothing else, indexes that were created, and checkpoints. What is for several, as
    /// a log that is drained, is in [`Db::ledger`] alone, and so is what is written part by part
    /// ([`Db::write_blob`]). One transaction's calls are in
    /// [`Transaction::ledger`].
    pub fn collection_ledgers(&self) -> BTreeMap<String, Arc<Ledger>> {
        self.books.collections.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What became of the pages that were asked for, and what they take.
    pub fn pool_counts(&self) -> PoolCounts {
        self.store().pool_counts()
    }

    /// Calls that [`Options::spending`] refused.
    pub fn refused_calls(&self) -> u64 {
        self.limit.as_ref().map_or(0, |limit| limit.refused())
    }

    /// Creates a collection, or finds that it is there: both are success.
    ///
    /// # Errors
    /// A name that is none, [`StoreError::Lost`] when it was there and has no root any more, and whatever
    /// the services say.
    pub async fn create_collection(&self, name: &str) -> Result<Collection, StoreError> {
        self.store().create_collection(name).await
    }

    /// Creates a curated collection, or finds that it is there. What is committed there becomes true when a
    /// curator approves it: [`Committed::proposed`] names it, and [`Store`] has what curators call.
    ///
    /// # Errors
    /// As [`Store::create_curated`].
    pub async fn create_curated(&self, name: &str) -> Result<Collection, StoreError> {
        self.store().create_curated(name).await
    }

    /// Creates a collection that these clients alone write to ([`Options::client`]), or finds that it is there
    /// with the same ones.
    ///
    /// # Errors
    /// As [`Store::create_for_writers`].
    pub async fn create_for_writers(
        &self,
        name: &str,
        clients: &[u64],
    ) -> Result<Collection, StoreError> {
        self.store().create_for_writers(name, clients).await
    }

    /// Creates a collection whose transactions are isolated from each other: they are at this level, or a
    /// higher one ([`Db::begin_for`]). If it is there that is success.
    ///
    /// # Errors
    /// [`StoreError::Exists`] when there is one that was created for something else, and as
    /// [`Db::create_collection`].
    pub async fn create_isolated_collection(
        &self,
        name: &str,
        isolation: Isolation,
    ) -> Result<Collection, StoreError> {
        self.store().create_collection_for(name, Some(isolation)).await
    }

    /// Finds a collection.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Lost`] when its root is not there any more, and whatever the
    /// services say.
    pub async fn collection(&self, name: &str) -> Result<Collection, StoreError> {
        self.store().collection(name).await
    }

    /// Creates a secondary index of a collection and fills it, or goes on with one that is there.
    /// Every record that reaches a page from now on brings its entry along, whoever committed it.
    ///
    /// # Errors
    /// [`StoreError::Exists`] when there is another one of this name, and whatever the services say.
    /// The index is ready only after success; calling it again goes on.
    pub async fn create_index(
        &self,
        of: &Collection,
        index: &str,
        by: &SearchBy,
    ) -> Result<IndexCheck, StoreError> {
        let store = self.store();
        let made = async {
            self.books.of(&store.create_index(&of.name, index, by).await?);
            store.build_index(&of.name, index, |_| {}).await
        };
        charged_to(&self.books.of(of), made).await
    }

    /// Drops an index of a collection. See [`Store::drop_index`].
    ///
    /// # Errors
    /// As [`Store::drop_index`].
    pub async fn drop_index(&self, of: &Collection, index: &str) -> Result<(), StoreError> {
        charged_to(&self.books.of(of), self.store().drop_index(&of.name, index)).await
    }

    /// Drops a collection, with its indexes and all of its records. See [`Store::drop_collection`].
    ///
    /// # Errors
    /// As [`Store::drop_collection`].
    pub async fn drop_collection(&self, name: &str) -> Result<(), StoreError> {
        self.store().drop_collection(name).await
    }

    /// Begins to write a payload of any length, up to [`BLOB_BYTES_MAX`](crate::BLOB_BYTES_MAX), part by
    /// part. Nobody sees it before a transaction is committed that puts what comes of it
    /// ([`Transaction::put_value`]), which must be soon: within half of
    /// [`Settings::tombstone_age`](crate::Settings).
    ///
    /// # Errors
    /// Whatever the services say.
    pub async fn write_blob(&self) -> Result<Writing, StoreError> {
        self.session.write_blob().await
    }

    /// Begins a transaction at the atomic level.
    pub fn begin(&self) -> Transaction<'_> {
        self.begin_at(Level::default())
    }

    /// Begins a transaction at the level that a collection was created for; at the atomic level, if at
    /// none.
    pub fn begin_for(&self, of: &Collection) -> Transaction<'_> {
        self.begin_at(match of.isolation {
            None => Level::default(),
            Some(Isolation::Snapshot) => Level::Snapshot,
            Some(Isolation::Serializable) => Level::Serializable,
        })
    }

    /// Begins a transaction. One at the snapshot or the serializable level is for collections that were
    /// created for it, one at a lower level for all others.
    pub fn begin_at(&self, level: Level) -> Transaction<'_> {
        let transaction = Transaction {
            session: &self.session,
            txn: self.session.begin(level),
            isolated: level.isolation().map(|isolation| self.session.isolated(isolation)),
            books: &self.books,
            ledger: Ledger::new(),
            written: Vec::new(),
        };
        if self.is_fresh { transaction.fresh() } else { transaction }
    }

    /// Brings what this client committed to its pages, where others see it. What another client is just
    /// bringing there, as it may where the log is queues, is waited for; for a lease at most
    /// ([`Settings::lease`]), after which it is anybody's again.
    ///
    /// # Errors
    /// Whatever the services say. Nothing is lost.
    pub async fn checkpoint(&self) -> Result<Checkpointed, StoreError> {
        for_many(&self.books.trees, false, self.session.bring_home()).await
    }

    /// Stops the work in the background and does what is left of it for this client.
    ///
    /// # Errors
    /// Whatever the services say. What was committed is committed.
    pub async fn close(mut self) -> Result<(), StoreError> {
        if let Some(mut worker) = self.worker.take() {
            // Not in the middle of a checkpoint: what that holds would be hidden from others until
            // its lease is over.
            worker.stop.notify_one();
            let _ = (&mut worker.task).await;
        }
        if self.is_named {
            // What others have of it they bring to its page.
            for_many(&self.books.trees, false, self.store().work_off()).await?;
            // Thrift for those who write beside the next life: what fails costs them nothing else.
            let _ = self.session.rest().await;
            return Ok(());
        }
        for_many(&self.books.trees, false, self.session.finish()).await.map(drop)
    }
}

async fn create(cloud: &Cloud, options: &Options) -> Result<(), StoreError> {
    let Options { settings, backend, shards, has_writers, .. } = options;
    #[cfg(feature = "encryption")]
    let is_encrypted = options.keys.is_some();
    #[cfg(not(feature = "encryption"))]
    let is_encrypted = false;
    let as_what = (is_encrypted, *has_writers);
    Store::create_as(cloud, settings, *backend, *shards, as_what).await.map(drop)
}

async fn open(cloud: Cloud, options: &Options, pool: &Pool) -> Result<Arc<Store>, StoreError> {
    #[cfg(feature = "encryption")]
    if let Some(keys) = &options.keys {
        return Store::open_with_keys(cloud, options.settings, pool, keys).await;
    }
    Store::open(cloud, options.settings, pool).await
}

/// How often there is work in the background.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// How often it looks for what there is to do, at least as often as an interval is over.
    pub(crate) tick: Duration,
    pub(crate) sweep_interval: Duration,
}

/// Work in the background, by the client's clock, until it is told to stop. What fails is due again, and
/// tried again.
pub(crate) async fn work(session: &Session, pace: Pace, owns: &[u32], stop: &Notify) {
    let store = session.store();
    let sweep_interval = pace.sweep_interval;
    let interval = store.settings().checkpoint_interval.max(Duration::from_millis(10));
    // What is overdue is not to wait for a whole interval.
    let tick = interval.min(pace.tick);
    let clock = &store.cloud.clock;
    let mut intervals = Every::new(interval, clock.monotonic_us());
    let mut sweeps = Every::new(sweep_interval, clock.monotonic_us());
    loop {
        if let Either::Left(_) = select(pin!(stop.notified()), clock.sleep(tick)).await {
            break;
        }
        if intervals.is_over(clock.monotonic_us()) {
            store.make_all_due();
            if !owns.is_empty() {
                let own = store.own(session.client(), owns).await.unwrap_or_default();
                let _ = store.tend(&own).await;
            }
        }
        let _ = store.work().await;
        let holds = store.settings().rules.hold(Rule::Sweep);
        if holds && sweeps.is_over(clock.monotonic_us()) {
            let _ = store.sweep().await;
        }
    }
    if !owns.is_empty() {
        let _ = store.disown(session.client()).await;
    }
}

/// What is to be done again and again, by a clock that goes on whatever takes long: counted in turns, a round of
/// work that took a minute put off all the others by that.
struct Every {
    interval_us: u64,
    /// When it was done last.
    last_us: u64,
}

impl Every {
    fn new(interval: Duration, now_us: u64) -> Every {
        Every { interval_us: interval.as_micros() as u64, last_us: now_us }
    }

    /// Whether it is time. What was missed is not made up for: the next time is an interval from now.
    fn is_over(&mut self, now_us: u64) -> bool {
        let is_over = now_us.saturating_sub(self.last_us) >= self.interval_us;
        if is_over {
            self.last_us = now_us;
        }
        is_over
    }
}

/// Keeps commits from waiting for a claim of stamps. Does not end.
async fn look_ahead(session: &Session) {
    loop {
        tokio::time::sleep(TICK).await;
        // What fails is tried again, at last by the commit that needs it.
        let _ = session.keep_alive().await;
    }
}

/// Changes that become durable together. Dropped without a commit it leaves no trace.
pub struct Transaction<'a> {
    session: &'a Session,
    txn: Txn,
    /// In place of `txn`, at the levels that are isolated.
    isolated: Option<Isolated<'a>>,
    books: &'a Books,
    ledger: Arc<Ledger>,
    /// Accounts of the collections that it changes.
    written: Vec<Arc<Ledger>>,
}

impl<'a> Transaction<'a> {
    /// The same, whose reads, scans and probes show what was committed before the first of them, also what
    /// is on no page yet: that one looks into the log. With queues it shows what a sample of them had.
    ///
    /// It costs a list and a get for each log object that is new (s3-log), or a few receives of each queue;
    /// and a get, mostly a 304, for each leaf that is read. The bill has kinds of its own for the look. A
    /// read fails with [`StoreError::Backlog`] when more waits than
    /// [`Settings::look_bytes_max`](crate::Settings).
    pub fn fresh(mut self) -> Transaction<'a> {
        self.txn.fresh();
        self
    }

    /// The calls that were made for it so far: reads, scans, probes and commits. What a commit leaves
    /// to be done in the background is not in it. Of transactions that share a log object one pays.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    fn writes(&mut self, of: &Collection) {
        let account = self.books.of(of);
        if !self.written.iter().any(|there| Arc::ptr_eq(there, &account)) {
            self.written.push(account);
        }
    }

    /// The payload of `key`, as this transaction sees it; `None` when there is no such record.
    ///
    /// # Errors
    /// [`BoundError::LongPayload`](crate::BoundError) when it is larger than 32 MiB
    /// ([`Transaction::open_content`] reads it), [`StoreError::Lost`] when a part of it is not there, and
    /// whatever the services say.
    pub async fn read(&self, of: &Collection, key: &Key) -> Result<Option<Payload>, StoreError> {
        let account = self.books.of(of);
        if let Some(isolated) = &self.isolated {
            return charged_to(&self.ledger, charged_to(&account, isolated.read(of, key))).await;
        }
        let read = self.session.read(&self.txn, of.root, key);
        charged_to(&self.ledger, charged_to(&account, read)).await
    }

    /// Whether there is a record of `key`, as this transaction sees it. No blob is read.
    ///
    /// # Errors
    /// Whatever the services say.
    pub async fn contains(&self, of: &Collection, key: &Key) -> Result<bool, StoreError> {
        let account = self.books.of(of);
        if let Some(isolated) = &self.isolated {
            let read = isolated.contains(of, key);
            return charged_to(&self.ledger, charged_to(&account, read)).await;
        }
        let read = self.session.read_value(&self.txn, of.root, key);
        let value = charged_to(&self.ledger, charged_to(&account, read)).await?;
        Ok(value.is_some())
    }

    /// The payload of `key`, to be read part by part: for those that are too large to be held in
    /// memory. `None` when there is no such record.
    ///
    /// # Errors
    /// Whatever the services say.
    pub async fn open_content(
        &self,
        of: &Collection,
        key: &Key,
    ) -> Result<Option<Content>, StoreError> {
        let account = self.books.of(of);
        let opened = async {
            match &self.isolated {
                Some(isolated) => isolated.open_content(of, key).await,
                None => self.session.open_content(&self.txn, of.root, key).await,
            }
        };
        let content = charged_to(&self.ledger, charged_to(&account, opened)).await?;
        Ok(content.map(|content| content.paid_by([self.ledger.clone(), account])))
    }

    /// A new record.
    ///
    /// Nobody is asked whether another client creates the same key at this moment: then the later
    /// stamp stays. Names that must be unique are the application's to choose, as random ones are.
    ///
    /// # Errors
    /// [`StoreError::Exists`] when this client sees a record of that key.
    pub async fn create(
        &mut self,
        of: &Collection,
        key: &Key,
        payload: Payload,
    ) -> Result<(), StoreError> {
        match self.contains(of, key).await? {
            true => Err(StoreError::Exists(format!("record {key} of {}", of.name))),
            false => self.put(of, key, payload),
        }
    }

    /// A new payload for a record that is there.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when this client sees no record of that key.
    pub async fn update(
        &mut self,
        of: &Collection,
        key: &Key,
        payload: Payload,
    ) -> Result<(), StoreError> {
        match self.contains(of, key).await? {
            true => self.put(of, key, payload),
            false => Err(StoreError::NotFound(format!("record {key} in {}", of.name))),
        }
    }

    /// The record of `key` shall have this payload, whether there is one or not. Reads nothing.
    ///
    /// # Errors
    /// When the transaction has too many changes, or an attempt to commit it was made.
    pub fn put(&mut self, of: &Collection, key: &Key, payload: Payload) -> Result<(), StoreError> {
        self.writes(of);
        match &mut self.isolated {
            Some(isolated) => isolated.put(of, key, &payload),
            None => self.txn.put(of.root, key, payload),
        }
    }

    /// The record of `key` shall have what was written before ([`Db::write_blob`]), whether there is one
    /// or not. Reads nothing. Every change of this transaction, blobs included, counts or none.
    ///
    /// # Errors
    /// As [`Transaction::put`], and [`StoreError::Invalid`] when another client wrote it.
    pub fn put_value(
        &mut self,
        of: &Collection,
        key: &Key,
        value: Value,
    ) -> Result<(), StoreError> {
        if let (Value::Blob(blob), None) = (&value, &self.isolated) {
            self.session.check_written(blob)?;
        }
        self.writes(of);
        match &mut self.isolated {
            // Looks by itself whose blob it is.
            Some(isolated) => isolated.put_value(of, key, value),
            None => self.txn.put_value(of.root, key, value),
        }
    }

    /// There shall be no record of `key`, whether there is one or not. Reads nothing.
    ///
    /// # Errors
    /// As [`Transaction::put`].
    pub fn delete(&mut self, of: &Collection, key: &Key) -> Result<(), StoreError> {
        self.writes(of);
        match &mut self.isolated {
            Some(isolated) => isolated.delete(of, key),
            None => self.txn.delete(of.root, key),
        }
    }

    /// Records of which the index `index` says that they have this search key, as this transaction
    /// sees them, in the order of their keys.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is no such index, [`StoreError::Invalid`] while it is
    /// being built, or at an isolated level when that was so at the snapshot, and whatever the services say.
    pub async fn probe(
        &self,
        of: &Collection,
        index: &str,
        search: &Key,
    ) -> Result<IndexRecords<'_>, StoreError> {
        self.probe_range(of, index, Bound::Included(search), Bound::Included(search)).await
    }

    /// Records in a range of search keys, in the order of these, then of their keys.
    ///
    /// # Errors
    /// As [`Transaction::probe`].
    pub async fn probe_range(
        &self,
        of: &Collection,
        index: &str,
        from: Bound<&Key>,
        to: Bound<&Key>,
    ) -> Result<IndexRecords<'_>, StoreError> {
        let accounts = [self.ledger.clone(), self.books.of(of)];
        let found = async {
            Ok::<_, StoreError>(match &self.isolated {
                Some(isolated) => Probed::Isolated(isolated.probe(of, index, from, to).await?),
                None => Probed::Logged(self.session.find(&self.txn, of, index, from, to).await?),
            })
        };
        let found = charged_to(&accounts[0], charged_to(&accounts[1], found)).await?;
        Ok(IndexRecords { found, accounts })
    }

    /// All records, in the order of their keys.
    pub fn scan(&self, of: &Collection) -> Records<'_> {
        self.range(of, Bound::Unbounded, Bound::Unbounded)
    }

    /// Records in a range of keys, in their order. Up to sixteen of the next leaves
    /// are on their way meanwhile, as far as they are in the range.
    pub fn range(&self, of: &Collection, from: Bound<&Key>, to: Bound<&Key>) -> Records<'_> {
        // A key with a zero byte more is the next one.
        let next = |key: &Key| Bytes::from([key.as_bytes(), &[0]].concat());
        let same = |key: &Key| Bytes::copy_from_slice(key.as_bytes());
        let from = match from {
            Bound::Unbounded => Bytes::new(),
            Bound::Included(key) => same(key),
            Bound::Excluded(key) => next(key),
        };
        let to = match to {
            Bound::Unbounded => None,
            Bound::Excluded(key) => Some(same(key)),
            Bound::Included(key) => Some(next(key)),
        };
        let scan = match &self.isolated {
            Some(isolated) => Scanned::Isolated(isolated.scan(of, from, to)),
            None => Scanned::Logged(self.session.scan_raw(&self.txn, of.root, from, to)),
        };
        Records { scan, accounts: [self.ledger.clone(), self.books.of(of)] }
    }

    /// How many records it changes so far.
    pub fn changes(&self) -> usize {
        self.isolated.as_ref().map_or(self.txn.len(), Isolated::len)
    }

    /// Commits: when this returns, all changes are durable, whatever happens to this process.
    ///
    /// # Errors
    /// After [`StoreError::CommitUnknown`] call it again: it is the same transaction, and counts
    /// once. [`StoreError::Aborted`], at the snapshot and the serializable level, when another one was in
    /// its way: begin it again. After any other error it is not committed; at the basic and monotonic level a part of
    /// it may be.
    pub async fn commit(&mut self) -> Result<Committed, StoreError> {
        let commit = async {
            match &mut self.isolated {
                Some(isolated) => isolated.commit().await,
                None => self.session.commit(&mut self.txn).await,
            }
        };
        match &self.written[..] {
            [only] => charged_to(&self.ledger, charged_to(only, commit)).await,
            _ => charged_to(&self.ledger, commit).await,
        }
    }

    /// Forgets all changes. Calls no service.
    pub fn abort(self) {}
}

/// Records that an index leads to. See [`Transaction::probe_range`].
pub struct IndexRecords<'a> {
    found: Probed<'a>,
    /// Of the transaction and of the collection.
    accounts: [Arc<Ledger>; 2],
}

impl IndexRecords<'_> {
    /// The next search key and the record that it was found in; `None` at the end.
    ///
    /// # Errors
    /// Whatever the services say.
    pub async fn next(&mut self) -> Result<Option<(Key, Record)>, StoreError> {
        let [transaction, collection] = &self.accounts;
        let next = async {
            match &mut self.found {
                Probed::Logged(found) => found.next().await,
                Probed::Isolated(found) => found.next().await,
            }
        };
        charged_to(transaction, charged_to(collection, next)).await
    }
}

/// What an index leads to, by how its collection is read.
enum Probed<'a> {
    Logged(Found<'a>),
    Isolated(IsolatedFound<'a>),
}

/// Records of a scan or a range, in the order of their keys.
pub struct Records<'a> {
    scan: Scanned<'a>,
    /// Of the transaction and of the collection.
    accounts: [Arc<Ledger>; 2],
}

/// A scan, by how its collection is read.
enum Scanned<'a> {
    Logged(Scan<'a>),
    /// Or why there is none: said by the first call.
    Isolated(Result<IsolatedScan<'a>, StoreError>),
}

impl Scanned<'_> {
    async fn next(&mut self) -> Result<Option<(Key, Payload)>, StoreError> {
        match self {
            Scanned::Logged(scan) => scan.next().await,
            Scanned::Isolated(scan) => scan.as_mut().map_err(|error| error.clone())?.next().await,
        }
    }

    async fn next_content(&mut self) -> Result<Option<(Key, Content)>, StoreError> {
        match self {
            Scanned::Logged(scan) => scan.next_content().await,
            Scanned::Isolated(scan) => {
                scan.as_mut().map_err(|error| error.clone())?.next_content().await
            }
        }
    }

    async fn next_key(&mut self) -> Result<Option<Key>, StoreError> {
        match self {
            Scanned::Logged(scan) => scan.next_key().await,
            Scanned::Isolated(scan) => {
                scan.as_mut().map_err(|error| error.clone())?.next_key().await
            }
        }
    }
}

impl Records<'_> {
    /// The next one; `None` at the end.
    ///
    /// # Errors
    /// [`BoundError::LongPayload`](crate::BoundError) when its payload is larger than 32 MiB: it is passed
    /// over, and the next call gives the one behind it. [`Records::next_content`] reads any. Otherwise
    /// whatever the services say.
    pub async fn next(&mut self) -> Result<Option<Record>, StoreError> {
        let [transaction, collection] = &self.accounts;
        let next = charged_to(transaction, charged_to(collection, self.scan.next()));
        let record = next.await?;
        Ok(record.map(|(key, payload)| Record { key, payload }))
    }

    /// The next one, whose payload is read part by part.
    ///
    /// # Errors
    /// Whatever the services say.
    pub async fn next_content(&mut self) -> Result<Option<(Key, Content)>, StoreError> {
        let [transaction, collection] = &self.accounts;
        let next = charged_to(transaction, charged_to(collection, self.scan.next_content()));
        let record = next.await?;
        Ok(record.map(|(key, content)| (key, content.paid_by(self.accounts.clone()))))
    }

    /// The key of the next one. No blob is read.
    ///
    /// # Errors
    /// Whatever the services say.
    pub async fn next_key(&mut self) -> Result<Option<Key>, StoreError> {
        let [transaction, collection] = &self.accounts;
        charged_to(transaction, charged_to(collection, self.scan.next_key())).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use async_trait::async_trait;

    use super::*;
    use crate::{
        Index,
        cloud::{
            Clock, Delete, ETag, Fault, Get, Listing, Objects, Put, PutIf,
            embedded::{self, Memory},
        },
        page::PageId,
    };

    /// An index that was made after its collection was used first had no account.
    #[test]
    fn a_collection_pays_for_its_later_indexes() {
        let books = Books::default();
        let (indexes, has_root) = (Vec::new(), true);
        let (name, root, isolation) = ("a".into(), PageId(1), None);
        let mut of = Collection { name, root, indexes, has_root, isolation };
        let account = books.of(&of);
        let (name, by) = ("i".to_owned(), Some(SearchBy::Payload));
        of.indexes.push(Index { name, root: PageId(2), is_ready: false, by });
        assert!(Arc::ptr_eq(&books.of(&of), &account));
        for root in [1, 2] {
            assert!(books.trees.get(root).is_some_and(|pays| Arc::ptr_eq(&pays, &account)));
        }
    }

    /// Time that stands still, but where everybody waits.
    struct Paused {
        began: tokio::time::Instant,
        began_us: u64,
    }

    #[async_trait]
    impl Clock for Paused {
        fn monotonic_us(&self) -> u64 {
            self.began.elapsed().as_micros() as u64
        }

        fn wall_us(&self) -> u64 {
            self.began_us + self.monotonic_us()
        }

        async fn sleep(&self, time: Duration) {
            tokio::time::sleep(time).await;
        }
    }

    /// Objects by that time, of which pages are put slowly. Counts those who look for all clients, as sweeps do.
    struct Slow {
        beneath: Arc<dyn Objects>,
        clock: Arc<Paused>,
        sweeps: AtomicU64,
    }

    #[async_trait]
    impl Objects for Slow {
        async fn get(&self, name: &str, unless: Option<&ETag>) -> Result<Get, Fault> {
            let now_ms = self.clock.wall_us() / 1000;
            Ok(match self.beneath.get(name, unless).await? {
                Get::Found { bytes, etag, .. } => Get::Found { bytes, etag, date_ms: now_ms },
                Get::Unchanged { .. } => Get::Unchanged { date_ms: now_ms },
                Get::Absent => Get::Absent,
            })
        }

        async fn put(&self, name: &str, bytes: Bytes, condition: PutIf) -> Put {
            if name.starts_with("page/") {
                self.clock.sleep(Duration::from_secs(20)).await;
            }
            self.beneath.put(name, bytes, condition).await
        }

        async fn delete(&self, name: &str, only: Option<&ETag>) -> Delete {
            self.beneath.delete(name, only).await
        }

        async fn list(
            &self,
            prefix: &str,
            after: Option<&str>,
            max: usize,
        ) -> Result<Listing, Fault> {
            self.sweeps.fetch_add(u64::from(prefix == "clients/"), Ordering::Relaxed);
            self.beneath.list(prefix, after, max).await
        }
    }

    /// Intervals were counted in turns: with rounds of work that take 20 s there was a sweep every 20 minutes, where
    /// one a minute was asked for.
    #[tokio::test(start_paused = true)]
    async fn work_that_takes_long_puts_off_no_sweep() {
        let cloud = embedded::memory(Arc::new(Memory::new()));
        let (began, began_us) = (tokio::time::Instant::now(), cloud.clock.wall_us());
        let clock = Arc::new(Paused { began, began_us });
        let (beneath, sweeps) = (cloud.objects.clone(), AtomicU64::new(0));
        let slow = Arc::new(Slow { beneath, clock: clock.clone(), sweeps });
        let cloud = Cloud { objects: slow.clone(), clock: clock.clone(), ..cloud };
        let settings =
            Settings { checkpoint_interval: Duration::from_secs(1), ..Settings::default() };
        let sweep_interval = Duration::from_secs(60);
        let options = Options { settings, sweep_interval, ..Options::default() };
        Store::create(&cloud, &settings, Backend::S3Log, 1).await.unwrap();
        let db = Db::over(cloud, &options).await.unwrap();
        let of = db.create_collection("t").await.unwrap();
        let (before, from_us) = (slow.sweeps.load(Ordering::Relaxed), clock.monotonic_us());
        for n in 0..120 {
            let mut txn = db.begin();
            let payload = Payload::new(n.to_string()).unwrap();
            txn.put(&of, &Key::new("k").unwrap(), payload).unwrap();
            txn.commit().await.unwrap();
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        let minutes = (clock.monotonic_us() - from_us) / 60_000_000;
        let swept = slow.sweeps.load(Ordering::Relaxed) - before;
        assert!(minutes >= 10 && swept >= minutes / 2, "{swept} sweeps in {minutes} minutes");
        db.close().await.unwrap();
    }

    #[test]
    fn what_was_missed_is_not_made_up_for() {
        let mut every = Every::new(Duration::from_micros(10), 100);
        let over: Vec<u64> = (100..160).filter(|now| every.is_over(*now)).collect();
        assert_eq!(over, [110, 120, 130, 140, 150]);
        assert!(every.is_over(1000) && !every.is_over(1009) && every.is_over(1010));
    }
}
