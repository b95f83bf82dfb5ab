//! What one process shares: pages, the log, and what it knows to be due.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
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
    catalog::{self, Backend, Database},
    checkpoint::{due::Due, owner::Owners},
    cloud::{Cloud, Listing},
    error::StoreError,
    log::{self, Log},
    names::{CLIENTS, PAGES},
    page::PageId,
    pool::{Doubt, PageManager, PoolCounts, Tier, Tiered},
    retry::Attempts,
    sequence::Sequencer,
    settings::Settings,
    writers,
};

/// Indexes that are remembered as probed.
const PROBED_MAX: usize = 100_000;
/// Names that one list returns.
const LIST_MAX: usize = 1000;

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
    pub(crate) due: Due,
    /// Who has made what its own.
    pub(crate) owners: Owners,
    /// Who may write to which collection.
    pub(crate) writers: writers::Known,
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

/// What a doubt means for who wants to go by the date.
fn refused(doubt: Doubt) -> StoreError {
    match doubt {
        Doubt::Apart { ahead_ms } if ahead_ms < 0 => {
            StoreError::Clock { ahead_ms: ahead_ms.unsigned_abs() }
        }
        Doubt::Apart { ahead_ms } | Doubt::Unsure { ahead_ms } => StoreError::Date { ahead_ms },
    }
}

/// Answers that are asked for to find out what the object store's time is.
const DATES_ASKED_MAX: u32 = 3;
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
        Store::create_as(cloud, settings, backend, shards, (false, false)).await
    }

    /// The same; its collections can name the clients that may write to them
    /// ([`Store::create_for_writers`]). Programs that are older than that cannot open it.
    ///
    /// # Errors
    /// As [`Store::create`].
    pub async fn create_with_writers(
        cloud: &Cloud,
        settings: &Settings,
        backend: Backend,
        shards: u32,
    ) -> Result<Database, StoreError> {
        Store::create_as(cloud, settings, backend, shards, (false, true)).await
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
        Store::create_as(cloud, settings, backend, shards, (true, false)).await
    }

    pub(crate) async fn create_as(
        cloud: &Cloud,
        settings: &Settings,
        backend: Backend,
        shards: u32,
        (is_encrypted, has_writers): (bool, bool),
    ) -> Result<Database, StoreError> {
        if !(1..=1000).contains(&shards) {
            return Err(StoreError::Invalid(format!("{shards} shards: 1 to 1,000 are possible")));
        }
        let id = cloud.chance.next_u128();
        let has_tags = true;
        let database = Database { id, backend, shards, is_encrypted, has_tags, has_writers };
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
        let tier =
            cloud.disk.clone().map(|space| Tier::new(space, id, &settings, cloud.clock.clone()));
        let (cloud, tier) = tiered(cloud, tier);
        Ok(Arc::new(Store::over(cloud, settings, pool, &found, tier)?))
    }

    /// The same, of a database that is encrypted: one of `keys` seals what is put, all of them open
    /// what is there.
    ///
    /// # Errors
    /// As [`Store::open`]; [`StoreError::Invalid`] when it is *not* encrypted. That the keys are wrong
    /// shows when the first object is read, or a collection created.
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
        let tier =
            cloud.disk.clone().map(|space| Tier::new(space, id, &settings, cloud.clock.clone()));
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
        let pages =
            PageManager::of_database(cloud.clone(), settings, pool, tier, database.has_tags)?;
        pages.saw_date(found.date_ms, found.asked_us);
        let (due, probed, owners) = Default::default();
        let writers = writers::Known::default();
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
            owners,
            writers,
            probed,
            apart_us,
        })
    }

    /// What the database was created with.
    pub fn database(&self) -> Database {
        self.database
    }

    /// Asks the object store for its time. Between answers it is counted on by this machine's
    /// clock, which may stand still while the machine is suspended. One that contradicts what was told
    /// before is not believed alone: it is asked again.
    pub(crate) async fn ask_date(&self) -> Result<(), StoreError> {
        for _ in 0..DATES_ASKED_MAX {
            let asked_us = self.cloud.clock.monotonic_us();
            let found = catalog::read_database(&self.cloud, &self.settings).await?;
            if let Some((_, date_ms)) = found {
                self.pages.saw_date(date_ms, asked_us);
            }
            if !self.pages.is_in_doubt() {
                break;
            }
        }
        Ok(())
    }

    /// The object store's time, milliseconds since 1970 and 0 if unknown, for who commits something.
    ///
    /// # Errors
    /// [`StoreError::Date`] or [`StoreError::Clock`] when it cannot be gone by, as far as is known:
    /// [`Store::ask_date`] may help.
    pub(crate) fn sure_date_ms(&self) -> Result<u64, StoreError> {
        self.pages.doubt(false).map_or(Ok(self.pages.date_ms()), |doubt| Err(refused(doubt)))
    }

    /// The same; it is asked for where that is not known.
    pub(crate) async fn asked_date_ms(&self) -> Result<u64, StoreError> {
        match self.sure_date_ms() {
            Err(StoreError::Date { .. }) => {
                self.ask_date().await?;
                self.sure_date_ms()
            }
            date_ms => date_ms,
        }
    }

    /// The same for who deletes by it: it was told twice, or by this machine's clock as well, which does not
    /// contradict it. It is asked for where that is not known.
    pub(crate) async fn certain_date_ms(&self) -> Result<u64, StoreError> {
        if self.pages.doubt(true).is_some() {
            self.ask_date().await?;
        }
        self.pages.doubt(true).map_or(Ok(self.pages.date_ms()), |doubt| Err(refused(doubt)))
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

    /// What the disk for pages ([`Cloud::disk`]) said when it failed last; after some failures in a row it is
    /// left alone. `None` when it worked since, or where there is none.
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

    /// Names of all objects that start with `prefix`, of which there are not many.
    pub(crate) async fn list(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let mut names: Vec<String> = Vec::new();
        self.each_name(prefix, |name| names.push(name)).await?;
        Ok(names)
    }

    /// Calls `each` with the names of all objects that start with `prefix`, in order. A thousand of them are in
    /// memory at a time.
    pub(crate) async fn each_name(
        &self,
        prefix: &str,
        mut each: impl FnMut(String),
    ) -> Result<(), StoreError> {
        let mut after = None::<String>;
        loop {
            let part = self.list_after(prefix, after.as_deref()).await?;
            after = part.names.last().cloned().filter(|_| part.more);
            part.names.into_iter().for_each(&mut each);
            if after.is_none() {
                return Ok(());
            }
        }
    }

    /// How many objects there are whose names start with `prefix`.
    pub(crate) async fn count(&self, prefix: &str) -> Result<u64, StoreError> {
        let mut count = 0;
        self.each_name(prefix, |_| count += 1).await?;
        Ok(count)
    }

    /// All pages that there are, reachable or not: 16 bytes for each, and not its name.
    pub(crate) async fn list_pages(&self) -> Result<Vec<PageId>, StoreError> {
        let mut ids = Vec::new();
        self.each_name(PAGES, |name| ids.extend(PageId::of_object(&name))).await?;
        Ok(ids)
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
        let client = |name: &str| u64::from_str_radix(name.strip_prefix(CLIENTS)?, 16).ok();
        let mut clients = Vec::new();
        self.each_name(CLIENTS, |name| clients.extend(client(&name))).await?;
        Ok(clients)
    }
}
