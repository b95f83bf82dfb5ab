//! What one process shares: pages, the log, the catalogue, and the work that is due.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use pager::pool::Pool;

#[cfg(feature = "encryption")]
use crate::cloud::{
    Objects,
    sealed::{Keyring, Sealed, Sealer},
};
use crate::{
    catalog::{self, Backend, CATALOG, Collection, Database, Index, Isolation},
    checkpoint::{self, Checkpointed, owner::Owners},
    client::CLIENTS,
    cloud::{Cloud, ETag, Fault, Listing, PutIf, queue::BATCH_MAX},
    error::StoreError,
    fail_point::{FailPoint, reached},
    log::{self, Left, Log, Scope},
    page::{INDEXES_MAX, Page, PageId},
    pool::{PageManager, PoolCounts, Tier, Tiered},
    retry::Attempts,
    search_by::SearchBy,
    sequence::{self, Sequencer},
    settings::{Rule, Settings},
    tag::Tag,
    tree::{Freshness, Nodes},
};

/// Scopes that wait for a checkpoint. More than a database has shards and streams are not there.
const DUE_MAX: usize = 100_000;
/// Indexes that are remembered as probed.
const PROBED_MAX: usize = 100_000;
/// Names that one list returns.
const LIST_MAX: usize = 1000;
/// Batches of one scope within one sweep: what arrives faster than this waits for the next one.
const SWEEP_ROUNDS_MAX: usize = 1000;

/// Batches of one scope that are taken on before others have their turn.
const VISIT_ROUNDS_MAX: usize = 32;
/// Rounds of work after which what becomes due all the time is left to the next one who works.
const WORK_ROUNDS_MAX: usize = 32;

/// Turns in which less comes in than was asked for, after which it is what others hold or send.
const TRICKLES_MAX: u32 = 10;

/// Failures within one round of work after which it is the services that fail.
const FAILURES_MAX: u32 = 16;

/// Work on many things, of which one that fails is not in the way of the others.
#[derive(Default)]
struct Round {
    first: Option<StoreError>,
    failures: u32,
}

impl Round {
    /// Remembers a failure. Whether it is time to stop.
    fn fails(&mut self, error: StoreError) -> bool {
        self.failures += 1;
        self.first.get_or_insert(error);
        self.failures >= FAILURES_MAX
    }

    fn end(self, done: Checkpointed) -> Result<Checkpointed, StoreError> {
        match self.first {
            Some(error) => Err(error),
            None => Ok(done),
        }
    }
}

/// Batches of one scope, until nothing is left that was there before.
#[derive(Default)]
struct Turns {
    /// Messages that are still to be received, from the first trickle on, or the first batch that held
    /// others back.
    owed: Option<u64>,
    trickles: u32,
}

impl Turns {
    /// Whether all is done after a batch of `taken` messages that left `left` behind.
    ///
    /// A receive is given fewer messages than there are, and after a turn nobody waits for full ones:
    /// so a trickle is the end only when as many were received since the first one as were there then.
    async fn are_over(
        &mut self,
        log: &dyn Log,
        scope: Scope,
        taken: u64,
        left: Left,
    ) -> Result<bool, StoreError> {
        self.owed = self.owed.map(|owed| owed.saturating_sub(taken));
        match left {
            Left::Nothing => return Ok(true),
            Left::Backlog => return Ok(false),
            Left::Trickle => self.trickles += 1,
            // What is held by others comes to nothing in the next turn.
            Left::Held => {}
        }
        let owed = match self.owed {
            Some(owed) => owed,
            None => log.waiting(scope).await?,
        };
        self.owed = Some(owed);
        Ok(owed == 0 || self.trickles > TRICKLES_MAX)
    }
}

/// A scope that somebody works on. If that ends before it is done, it is due again.
struct Taken<'a> {
    store: &'a Store,
    scope: Option<Scope>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some(scope) = self.scope.take() {
            self.store.make_due(scope);
        }
    }
}

/// A database, as one process sees it. Sessions share it.
pub struct Store {
    pub(crate) cloud: Cloud,
    /// Of a database that is encrypted: what seals it, and the objects as they lie there.
    #[cfg(feature = "encryption")]
    pub(crate) sealing: Option<Sealed<dyn Objects>>,
    pub(crate) settings: Settings,
    database: Database,
    pub(crate) pages: PageManager,
    pub(crate) log: Arc<dyn Log>,
    pub(crate) sequencer: Sequencer,
    due: Mutex<BTreeSet<Scope>>,
    /// What becomes due when the checkpoint interval is over, if nothing else makes it due before.
    due_later: Mutex<BTreeSet<Scope>>,
    /// Held by who works on what is due: whoever comes next finds it done, or due again.
    working: tokio::sync::Mutex<()>,
    /// Who has made what its own.
    pub(crate) owners: Owners,
    /// Indexes that were ready when all copies of pages were last forgotten for one of them: no copy
    /// of theirs is of the time before they were filled.
    probed: Mutex<BTreeSet<PageId>>,
    /// How far the wall clock was ahead of the monotonic one when that was last looked at; 0 if never.
    apart_us: AtomicU64,
}

/// A database that is there, and what the object store's clock said when it was asked.
struct Found {
    database: Database,
    date_ms: u64,
    asked_us: u64,
}

impl Found {
    async fn find(cloud: &Cloud, settings: &Settings) -> Result<Found, StoreError> {
        let asked_us = cloud.clock.monotonic_us();
        let (database, date_ms) = catalog::read_database(cloud, settings)
            .await?
            .ok_or_else(|| StoreError::NotFound("database here: create one first".into()))?;
        Ok(Found { database, date_ms, asked_us })
    }
}

/// `cloud` with a tier beneath its pages, as they lie there.
fn tiered(cloud: Cloud, tier: Option<Tier>) -> (Cloud, Option<Arc<Tier>>) {
    let Some(tier) = tier.map(Arc::new) else { return (cloud, None) };
    let objects = Tiered { inner: cloud.objects, tier: tier.clone() };
    (Cloud { objects: Arc::new(objects), ..cloud }, Some(tier))
}

/// By how much more the wall clock must have gone on than the monotonic one for a sleep.
const SLEEP_US: u64 = 60_000_000;

impl Store {
    /// Creates a database in `cloud`, which holds none.
    ///
    /// # Errors
    /// [`StoreError::Exists`] when there is one, whatever it was created with.
    pub async fn create(
        cloud: &Cloud,
        settings: &Settings,
        backend: Backend,
        shards: u32,
    ) -> Result<Database, StoreError> {
        Store::create_as(cloud, settings, backend, shards, false).await
    }

    /// The same; what is put into it will be sealed, by all who open it with its keys
    /// ([`Store::open_with_keys`]). This call needs none.
    ///
    /// # Errors
    /// As [`Store::create`].
    #[cfg(feature = "encryption")]
    pub async fn create_encrypted(
        cloud: &Cloud,
        settings: &Settings,
        backend: Backend,
        shards: u32,
    ) -> Result<Database, StoreError> {
        Store::create_as(cloud, settings, backend, shards, true).await
    }

    async fn create_as(
        cloud: &Cloud,
        settings: &Settings,
        backend: Backend,
        shards: u32,
        is_encrypted: bool,
    ) -> Result<Database, StoreError> {
        if !(1..=1000).contains(&shards) {
            return Err(StoreError::Invalid(format!("{shards} shards: 1 to 1,000 are possible")));
        }
        let id = cloud.chance.next_u128();
        let has_tags = true;
        let database = Database { id, backend, shards, is_encrypted, has_tags };
        if catalog::create_database(cloud, settings, &database).await? {
            return Ok(database);
        }
        Err(StoreError::Exists("the database".into()))
    }

    /// Opens the database in `cloud`. Its pages are kept in `pool`, under that pool's budget.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is none, [`StoreError::Encrypted`] when it is encrypted, and
    /// whatever the object store says.
    pub async fn open(
        cloud: Cloud,
        settings: Settings,
        pool: &Pool,
    ) -> Result<Arc<Store>, StoreError> {
        let found = Found::find(&cloud, &settings).await?;
        if found.database.is_encrypted {
            return Err(StoreError::Encrypted);
        }
        let id = found.database.id;
        let tier = cloud.disk.clone().map(|space| Tier::new(space, id, cloud.clock.clone()));
        let (cloud, tier) = tiered(cloud, tier);
        Ok(Arc::new(Store::over(cloud, settings, pool, &found, tier)?))
    }

    /// The same, of a database that is encrypted: one of `keys` seals what is put, all of them open
    /// what is there.
    ///
    /// # Errors
    /// As [`Store::open`]; [`StoreError::Invalid`] when it is *not* encrypted. That the keys are wrong
    /// shows when the first object is read.
    #[cfg(feature = "encryption")]
    pub async fn open_with_keys(
        cloud: Cloud,
        settings: Settings,
        pool: &Pool,
        keys: &Keyring,
    ) -> Result<Arc<Store>, StoreError> {
        let found = Found::find(&cloud, &settings).await?;
        if !found.database.is_encrypted {
            let text = "the database is not encrypted: open it without keys";
            return Err(StoreError::Invalid(text.to_owned()));
        }
        let id = found.database.id;
        let sealer = Arc::new(Sealer::new(keys, id));
        let tier = cloud.disk.clone().map(|space| Tier::new(space, id, cloud.clock.clone()));
        let (cloud, tier) = tiered(cloud, tier.map(|tier| tier.sealed(sealer)));
        let (cloud, raw) = Sealed::beneath(cloud, keys, id);
        let mut store = Store::over(cloud, settings, pool, &found, tier)?;
        store.sealing = Some(raw);
        Ok(Arc::new(store))
    }

    fn over(
        cloud: Cloud,
        settings: Settings,
        pool: &Pool,
        found: &Found,
        tier: Option<Arc<Tier>>,
    ) -> Result<Store, StoreError> {
        let database = found.database;
        let log = log::of(database.backend, database.shards, &cloud, settings);
        let pages = PageManager::new(cloud.clone(), settings, pool, tier)?;
        pages.saw_date(found.date_ms, found.asked_us);
        let (due, due_later, working, probed, owners) = Default::default();
        let apart_us = AtomicU64::new(0);
        Ok(Store {
            cloud,
            #[cfg(feature = "encryption")]
            sealing: None,
            settings,
            database,
            pages,
            log,
            sequencer: Sequencer::default(),
            due,
            due_later,
            working,
            owners,
            probed,
            apart_us,
        })
    }

    /// What the database was created with.
    pub fn database(&self) -> Database {
        self.database
    }

    /// Asks the object store for its time. Between answers it is counted on by this machine's
    /// clock, which may stand still while the machine is suspended.
    pub(crate) async fn ask_date(&self) -> Result<(), StoreError> {
        let asked_us = self.cloud.clock.monotonic_us();
        if let Some((_, date_ms)) = catalog::read_database(&self.cloud, &self.settings).await? {
            self.pages.saw_date(date_ms, asked_us);
        }
        Ok(())
    }

    /// The same, if the machine seems to have slept since the last call: its wall clock went on
    /// without the other. The first call asks nobody.
    pub(crate) async fn ask_date_after_sleep(&self) -> Result<(), StoreError> {
        let clock = &self.cloud.clock;
        let apart_us = clock.wall_us().saturating_sub(clock.monotonic_us()).max(1);
        let before_us = self.apart_us.load(Ordering::Relaxed);
        if before_us > 0 && apart_us.abs_diff(before_us) > SLEEP_US {
            self.ask_date().await?;
        }
        self.apart_us.store(apart_us, Ordering::Relaxed);
        Ok(())
    }

    /// How this process works.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What the page manager did so far.
    pub fn pool_counts(&self) -> PoolCounts {
        self.pages.counts()
    }

    /// What the disk said that is not used for pages any more ([`Cloud::disk`]): it failed again and
    /// again. `None` while it is used, or where there is none.
    pub fn disk_failure(&self) -> Option<String> {
        self.pages.disk_failure()
    }

    /// That an index, which is ready, is probed: copies of its pages can be of the time before it was
    /// filled. Those of a session that `wrote` are not used any more either: they may lack what pages
    /// have shown.
    pub(crate) fn begin_to_probe(&self, root: PageId, wrote: bool) {
        let mut probed = self.probed.lock().unwrap_or_else(PoisonError::into_inner);
        if wrote || !probed.contains(&root) {
            self.pages.expire_all();
        }
        if probed.len() < PROBED_MAX {
            probed.insert(root);
        }
    }

    /// Creates a collection, or finds that it is there: both are success.
    ///
    /// # Errors
    /// A name that is none, and whatever the object store says.
    pub async fn create_collection(&self, name: &str) -> Result<Collection, StoreError> {
        self.create_collection_as(name, false, None).await
    }

    /// The same, of a curated collection: changes of it are proposed by whoever commits them, and nobody sees
    /// them before a curator approves ([`Store::approve`]).
    ///
    /// # Errors
    /// As [`Store::create_collection`]; [`StoreError::Exists`] when it is there and not curated, and
    /// [`StoreError::Invalid`] when the database was made before there were any.
    pub async fn create_curated(&self, name: &str) -> Result<Collection, StoreError> {
        if !self.database.has_tags {
            let what =
                "this database was made before there were curated collections: make a new one";
            return Err(StoreError::Invalid(what.into()));
        }
        let of = self.create_collection_as(name, true, None).await?;
        match of.is_curated() {
            true => Ok(of),
            false => Err(StoreError::Exists(format!("collection {name}, which is not curated,"))),
        }
    }

    /// The same, of a collection whose transactions are isolated from each other, if that is given: they
    /// are at that level, or a higher one.
    ///
    /// # Errors
    /// As [`Store::create_collection`]; [`StoreError::Exists`] when there is one that was created for
    /// something else.
    pub async fn create_collection_for(
        &self,
        name: &str,
        isolation: Option<Isolation>,
    ) -> Result<Collection, StoreError> {
        if isolation.is_some() {
            catalog::check_name(name)?;
            sequence::plant(self).await?;
        }
        self.create_collection_as(name, false, isolation).await
    }

    async fn create_collection_as(
        &self,
        name: &str,
        is_curated: bool,
        isolation: Option<Isolation>,
    ) -> Result<Collection, StoreError> {
        let (mut root, indexes) = (self.pages.fresh_id(), Vec::new());
        if self.database.has_tags {
            root = Tag::of(name, is_curated).page(root);
        }
        let name_owned = name.to_owned();
        let collection = Collection { name: name_owned, root, indexes, has_root: false, isolation };
        catalog::write_collection(&self.cloud, &self.settings, &collection, PutIf::Absent).await?;
        reached(&self.cloud, FailPoint::Named).await;
        let there = self.collection(name).await?;
        if there.isolation != isolation {
            let level = there.isolation.map_or("levels without isolation", Isolation::name);
            return Err(StoreError::Exists(format!("collection {name}, for {level},")));
        }
        Ok(there)
    }

    /// A collection as the catalogue has it, whether its roots are there or not.
    pub(crate) async fn peek_collection(&self, name: &str) -> Result<Collection, StoreError> {
        Ok(self.find_collection(name).await?.0)
    }

    async fn find_collection(&self, name: &str) -> Result<(Collection, ETag), StoreError> {
        let found = catalog::read_collection(&self.cloud, &self.settings, name).await?;
        let found = found.ok_or_else(|| StoreError::NotFound(format!("collection {name}")))?;
        match found.0.foreign_page().filter(|_| self.database.has_tags) {
            // Whoever may write this entry may not write, or have others write, what is not of its name.
            Some(page) => Err(StoreError::Misled { object: format!("{CATALOG}{name}"), page }),
            None => Ok(found),
        }
    }

    /// Finds a collection.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Lost`] when its root was put once and is not there, and
    /// whatever the object store says.
    pub async fn collection(&self, name: &str) -> Result<Collection, StoreError> {
        let mut collection = self.peek_collection(name).await?;
        if collection.has_root {
            if self.pages.node(collection.root, Freshness::Cached).await?.is_none() {
                return Err(StoreError::Lost { object: collection.root.object() });
            }
        } else {
            self.plant(collection.root, collection.isolation.is_some()).await?;
            // Before anything is committed that an empty root in its place would hide.
            self.declare_root(name).await?;
            collection.has_root = true;
        }
        for index in collection.indexes.iter().filter(|index| !index.is_ready) {
            // That of one that is ready was there. If it is not, it is lost, and an empty one in its
            // place would say that no record is to be found.
            self.plant(index.root, false).await?;
        }
        Ok(collection)
    }

    /// Makes sure that a root is there. The catalogue names it first, so that no root is ever an
    /// orphan: whoever created the collection may have stopped in between.
    async fn plant(&self, root: PageId, has_versions: bool) -> Result<(), StoreError> {
        if self.pages.node(root, Freshness::Cached).await?.is_none() {
            let mut page = Page::root(root);
            if has_versions {
                sequence::make_versioned(&mut page);
            }
            self.pages.create(page).await?;
            reached(&self.cloud, FailPoint::Planted).await;
        }
        Ok(())
    }

    /// Writes down that the root of a collection was put.
    async fn declare_root(&self, name: &str) -> Result<(), StoreError> {
        let declare = |of: &mut Collection| Ok(!std::mem::replace(&mut of.has_root, true));
        match self.change_collection(name, declare).await {
            // Who may only read leaves that to those who write.
            Err(
                StoreError::Denied { .. } | StoreError::Cloud { source: Fault::Denied { .. }, .. },
            ) => Ok(()),
            declared => declared,
        }
    }

    /// Whether the catalogue has a collection or an index with this root.
    pub(crate) async fn has_tree(&self, root: PageId) -> Result<bool, StoreError> {
        for name in self.collections().await? {
            let of = self.peek_collection(&name).await?;
            if of.root == root || of.indexes.iter().any(|index| index.root == root) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Names of all collections.
    ///
    /// # Errors
    /// Whatever the object store says.
    pub async fn collections(&self) -> Result<Vec<String>, StoreError> {
        let names = self.list(CATALOG).await?;
        Ok(names.iter().filter_map(|name| Some(name.strip_prefix(CATALOG)?.to_owned())).collect())
    }

    /// Adds a secondary index to a collection, or finds that it is there. It starts empty and not
    /// ready: [`Store::build_index`] makes the pages of the collection say that it follows them.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Exists`] when there is another one of this name, a
    /// rule that nobody could read again, too many indexes, and whatever the object store says.
    pub async fn create_index(
        &self,
        name: &str,
        index: &str,
        by: &SearchBy,
    ) -> Result<Collection, StoreError> {
        catalog::check_name(index)?;
        by.check()?;
        let name_of_root = self.pages.fresh_id();
        let has_tags = self.database.has_tags;
        self.change_collection(name, |collection| {
            if let Some(isolation) = collection.isolation {
                let what = format!(
                    "collection {name} was created for level {}, and has no indexes",
                    isolation.name()
                );
                return Err(StoreError::Invalid(what));
            }
            let root = match has_tags {
                true => Tag::of_page(collection.root).page(name_of_root),
                false => name_of_root,
            };
            if let Some(there) = collection.indexes.iter().find(|there| there.name == index) {
                return match &there.by {
                    Some(same) if same == by => Ok(false),
                    Some(other) => Err(StoreError::Exists(format!("index {index} by {other}"))),
                    None => Err(StoreError::Exists(format!("index {index} without a rule"))),
                };
            }
            if collection.indexes.len() == INDEXES_MAX {
                let what =
                    format!("{name} has {INDEXES_MAX} indexes, which is the most there can be");
                return Err(StoreError::Invalid(what));
            }
            let (name, by) = (index.to_owned(), Some(by.clone()));
            collection.indexes.push(Index { name, root, is_ready: false, by });
            Ok(true)
        })
        .await?;
        self.collection(name).await
    }

    /// Declares that an index holds all records: it can be probed.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], and whatever the object store says.
    pub async fn finish_index(&self, name: &str, index: &str) -> Result<Collection, StoreError> {
        // Makes sure that its root is there.
        self.collection(name).await?;
        self.declare_ready(name, index).await?;
        self.collection(name).await
    }

    /// [`Store::finish_index`] for an index whose root is there.
    pub(crate) async fn declare_ready(&self, name: &str, index: &str) -> Result<(), StoreError> {
        self.change_collection(name, |collection| {
            let there = collection.indexes.iter_mut().find(|there| there.name == index);
            let there = there.ok_or_else(|| StoreError::NotFound(format!("index {index}")))?;
            Ok(!std::mem::replace(&mut there.is_ready, true))
        })
        .await
    }

    async fn change_collection(
        &self,
        name: &str,
        change: impl Fn(&mut Collection) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        let mut attempts = Attempts::new(&self.cloud, &self.settings);
        loop {
            let (mut collection, etag) = self.find_collection(name).await?;
            if !change(&mut collection)? {
                return Ok(());
            }
            let condition = PutIf::Matches(etag);
            if catalog::write_collection(&self.cloud, &self.settings, &collection, condition)
                .await?
            {
                return Ok(());
            }
            attempts.after_loss(name).await?;
        }
    }

    /// Names of all objects that start with `prefix`.
    pub(crate) async fn list(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let mut names: Vec<String> = Vec::new();
        loop {
            let part = self.list_after(prefix, names.last().map(String::as_str)).await?;
            let is_end = !part.more || part.names.is_empty();
            names.extend(part.names);
            if is_end {
                return Ok(names);
            }
        }
    }

    /// Some of them: those behind `after`.
    pub(crate) async fn list_after(
        &self,
        prefix: &str,
        after: Option<&str>,
    ) -> Result<Listing, StoreError> {
        let mut attempts = Attempts::new(&self.cloud, &self.settings);
        loop {
            match self.cloud.objects.list(prefix, after, LIST_MAX).await {
                Ok(part) => return Ok(part),
                Err(fault) => attempts.after(fault).await?,
            }
        }
    }

    /// All clients that ever were.
    ///
    /// # Errors
    /// Whatever the object store says.
    pub async fn clients(&self) -> Result<Vec<u64>, StoreError> {
        let names = self.list(CLIENTS).await?;
        let client = |name: &String| u64::from_str_radix(name.strip_prefix(CLIENTS)?, 16).ok();
        Ok(names.iter().filter_map(client).collect())
    }

    pub(crate) fn make_due(&self, scope: Scope) {
        let mut due = self.due();
        if due.len() < DUE_MAX {
            due.insert(scope);
        }
    }

    pub(crate) fn make_due_later(&self, scope: Scope) {
        let mut later = self.due_later.lock().unwrap_or_else(PoisonError::into_inner);
        if later.len() < DUE_MAX {
            later.insert(scope);
        }
    }

    /// Makes everything due that commits left for later. To be called once per checkpoint interval,
    /// and at the end: what was written once would wait for a sweep otherwise.
    pub fn make_all_due(&self) {
        let later = {
            let mut later = self.due_later.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *later)
        };
        later.into_iter().for_each(|scope| self.make_due(scope));
        self.sequencer.make_all_due();
    }

    fn due(&self) -> MutexGuard<'_, BTreeSet<Scope>> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether commits or reads found something to do in the background.
    pub fn has_work(&self) -> bool {
        !self.due().is_empty() || self.sequencer.is_due()
    }

    /// Does what commits and reads found to be due: forwards transactions, checkpoints. What becomes
    /// due meanwhile waits for the next call. To be called again and again by a task in the
    /// background.
    ///
    /// # Errors
    /// The first error; what failed is due again, at once if the services failed, and with the next
    /// [`Store::make_all_due`] if something is damaged. What did not fail is done, and nothing is
    /// lost.
    pub async fn work(&self) -> Result<Checkpointed, StoreError> {
        self.round(false, true).await
    }

    /// One round of work, of everything if `all` is due. What others own is left to them if it `heeds` that.
    async fn round(&self, all: bool, heeds: bool) -> Result<Checkpointed, StoreError> {
        let _turn = self.working.lock().await;
        if all {
            self.make_all_due();
        }
        let mut done = Checkpointed::default();
        let mut round = Round::default();
        // Due again at the end, or they would come up again in this round's place of others.
        let mut failed = Vec::new();
        // Whole transactions are sent on before shards are drained. Those of a client that commits
        // faster than that are due again by then: shards must get their turn nevertheless.
        let now: Vec<Scope> = self.due().iter().rev().copied().collect();
        for scope in now {
            self.due().remove(&scope);
            let mut taken = Taken { store: self, scope: Some(scope) };
            match self.visit(scope, heeds).await {
                Ok(more) => {
                    taken.scope = None;
                    done += more;
                }
                Err(error) => {
                    if !error.is_passing() {
                        // It fails again at the next call, and after that.
                        taken.scope = None;
                        self.make_due_later(scope);
                    }
                    failed.push(taken);
                    if round.fails(error) {
                        break;
                    }
                }
            }
        }
        drop(failed);
        match self.sequencer.work(self).await {
            Ok(more) => done += more,
            Err(error) => {
                round.fails(error);
            }
        }
        round.end(done)
    }

    /// Does everything that is due or was left for later, and what becomes due meanwhile, until
    /// nothing is; but not for ever beside those who commit all the time.
    pub(crate) async fn work_off(&self) -> Result<Checkpointed, StoreError> {
        let mut done = self.round(true, false).await?;
        for _ in 1..WORK_ROUNDS_MAX {
            if !self.has_work() {
                break;
            }
            done += self.round(false, false).await?;
        }
        Ok(done)
    }

    /// Takes on what there is in `scope`, batch by batch: one batch per interval would fall behind
    /// a client that writes more than that. What is left is due again. Who `heeds` owners works in the
    /// background, where it is not worth a put of its page what a batch kept an ordered queue from giving
    /// out, if it is little.
    async fn visit(&self, scope: Scope, heeds: bool) -> Result<Checkpointed, StoreError> {
        let mut done = Checkpointed::default();
        if heeds && self.is_left_to_owner(scope).await {
            self.make_due_later(scope);
            return Ok(done);
        }
        let mut turns = Turns::default();
        for _ in 0..VISIT_ROUNDS_MAX {
            let (taken, left) = self.turn(scope, &mut done).await?;
            let is_over = turns.are_over(&*self.log, scope, taken, left).await?;
            let is_little = left == Left::Held
                && heeds
                && turns.owed.is_some_and(|owed| (1..BATCH_MAX as u64).contains(&owed));
            if is_over || is_little {
                if is_little || left == Left::Trickle {
                    // What came in before was given out; each page would be put for what comes in
                    // now. That waits for the next commit, or the interval.
                    self.make_due_later(scope);
                }
                return Ok(done);
            }
        }
        self.make_due(scope);
        Ok(done)
    }

    /// One batch of `scope`: how many messages or objects that was, and what is left.
    async fn turn(&self, scope: Scope, done: &mut Checkpointed) -> Result<(u64, Left), StoreError> {
        let most = self.settings.records_per_checkpoint_max;
        Ok(match scope {
            Scope::Client(client) => {
                let (forwarded, left) = self.log.forward(client, most).await?;
                (forwarded as u64, left)
            }
            Scope::Shard(_) | Scope::Stream(_) => {
                let (more, taken, left) = checkpoint::checkpoint(self, scope).await?;
                *done += more;
                (taken, left)
            }
        })
    }

    /// Looks everywhere: forwards what any client left behind, and checkpoints every part of the
    /// log until it is empty, or until it holds only what came in meanwhile. Any process may do it at
    /// any time; some process has to do it now and then, or what was written once and never again stays
    /// in the log.
    ///
    /// # Errors
    /// The first error. Nothing is lost; what failed is due again, what did not is done.
    pub async fn sweep(&self) -> Result<Checkpointed, StoreError> {
        let mut done = Checkpointed::default();
        let clients = self.clients().await?;
        let adopts = self.settings.rules.hold(Rule::Adoption);
        let forwards = if adopts { self.log.forwards(&clients) } else { Vec::new() };
        let mut round = Round::default();
        for client in forwards {
            if let Err(error) = self.sweep_scope(Scope::Client(client), &mut done).await
                && round.fails(error)
            {
                return round.end(done);
            }
        }
        for scope in self.log.scopes(&clients).await? {
            if let Err(error) = self.sweep_scope(scope, &mut done).await
                && round.fails(error)
            {
                return round.end(done);
            }
        }
        match self.sweep_approved().await {
            Ok(more) => done += more,
            Err(error) => {
                round.fails(error);
            }
        }
        match sequence::sweep(self).await {
            Ok(more) => done += more,
            Err(error) => {
                round.fails(error);
            }
        }
        round.end(done)
    }

    /// Drains these scopes, each until it holds only what came in meanwhile.
    pub(crate) async fn sweep_scopes(
        &self,
        scopes: Vec<Scope>,
    ) -> Result<Checkpointed, StoreError> {
        let (mut done, mut round) = (Checkpointed::default(), Round::default());
        for scope in scopes {
            if let Err(error) = self.sweep_scope(scope, &mut done).await
                && round.fails(error)
            {
                break;
            }
        }
        round.end(done)
    }

    /// Drains one scope, as who works on what is due does: whoever asks for a checkpoint meanwhile
    /// waits for it, and finds it due again if it failed or was given up.
    async fn sweep_scope(&self, scope: Scope, done: &mut Checkpointed) -> Result<(), StoreError> {
        let _turn = self.working.lock().await;
        let mut taken = Taken { store: self, scope: Some(scope) };
        let outcome = self.drain(scope).await;
        if !outcome.as_ref().is_err_and(StoreError::is_passing) {
            taken.scope = None;
        }
        match outcome {
            Ok(more) => *done += more,
            Err(error) => {
                if !error.is_passing() {
                    self.make_due_later(scope);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Checkpoints a part of the log, or sends it on, until nothing is left that was there before; not
    /// what comes in all the time.
    pub(crate) async fn drain(&self, scope: Scope) -> Result<Checkpointed, StoreError> {
        let mut done = Checkpointed::default();
        let mut turns = Turns::default();
        for _ in 0..SWEEP_ROUNDS_MAX {
            let (taken, left) = self.turn(scope, &mut done).await?;
            if turns.are_over(&*self.log, scope, taken, left).await? {
                break;
            }
        }
        Ok(done)
    }
}
