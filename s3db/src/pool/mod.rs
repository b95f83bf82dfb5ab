//! The page manager: pages held, aged and revalidated, and put by compare and swap.
//!
//! ```text
//!   node(id) --> known and younger than the TTL? --> resident? --> the copy
//!                   | no                                | no
//!                   +--> get, unless it is still this ETag
//!                           304: the copy is young again     200: decode, keep, drop the old one
//! ```
//!
//! Bytes are kept in a [`pager::pool`], under one [`pager::Budget`] with any region beside it, by
//! page *and* ETag, so that bytes of two versions never mix. All that is held here counts in it: pages,
//! those that are on their way, before they are asked for, what is known of them (`heads`), and what
//! anybody reads just now (`lent`). Those who want the same page at the
//! same time wait for one request, and any of them carries it on: whoever made it may rest meanwhile, as a
//! scan does that reads ahead.
//!
//! Here are the rules H2 (a put replaces exactly the version that was changed) and H3 (after a put
//! without an answer the object itself is asked).

mod date; // the object store's time
pub(crate) mod disk; // pages on a disk of this machine
mod heads; // what is known of pages' newest versions

use std::{
    collections::HashMap,
    fmt,
    ops::Deref,
    str::FromStr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _, Shared, WeakShared};
use pager::{
    budget::Reservation,
    policy::{self, EvictionPolicy},
    pool::{Pages, Pool},
};

pub(crate) use date::Doubt;
pub(crate) use disk::{Tier, Tiered};

use crate::{
    cloud::{Cloud, Delete, ETag, Get, Put, PutIf, ledger::as_now},
    error::StoreError,
    fail_point::{self, FailPoint},
    lent::{Ahead, Lent, Name},
    page::{Page, PageId},
    pool::{
        date::StoreDate,
        disk::DiskCounters,
        heads::{Head, Heads, Remembered, Trust},
    },
    retry::Attempts,
    settings::{Rule, Rules, Settings},
    tag::Tag,
    tree::{Freshness, Held, Nodes, Swap},
};

/// Bytes that the pool has of a page besides what it takes itself: its name in two tables, its place
/// there, and in the policy.
const KEPT_BYTES: u64 = 320;
/// The part of the budget that is kept reserved for pages to come, so that it need not be made for each.
const SPARE_PART: u64 = 16;
/// The part that pages may take that are read before anybody wants them: as in a pager.
const AHEAD_PART: u64 = 4;

/// Which pages a full budget gives up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Eviction {
    /// Those that were asked for once, before those that were asked for again: [`policy::S3Fifo`]. One
    /// scan does not drive out what others use.
    #[default]
    S3Fifo,
    /// The oldest, with a second chance for what was asked for since: [`policy::Clock`].
    Clock,
}

impl Eviction {
    /// All of them.
    pub const ALL: [Eviction; 2] = [Eviction::S3Fifo, Eviction::Clock];

    /// As [`FromStr`] reads it.
    pub fn name(self) -> &'static str {
        match self {
            Eviction::S3Fifo => "s3fifo",
            Eviction::Clock => "clock",
        }
    }

    /// A policy without entries, for a [`Pool`].
    pub fn policy(self) -> Box<dyn EvictionPolicy> {
        match self {
            Eviction::S3Fifo => Box::new(policy::S3Fifo::new()),
            Eviction::Clock => Box::new(policy::Clock::new()),
        }
    }
}

impl fmt::Display for Eviction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Eviction {
    type Err = String;

    fn from_str(text: &str) -> Result<Eviction, String> {
        let found = Eviction::ALL.into_iter().find(|eviction| eviction.name() == text);
        found.ok_or_else(|| "an eviction policy is s3fifo or clock".to_owned())
    }
}

/// What the page manager did so far, and what it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolCounts {
    /// Pages served from memory without a request.
    pub hits: u64,
    /// Pages asked for where a cached copy would do, and that no young one was there of.
    pub misses: u64,
    /// Pages asked for again and found unchanged (304).
    pub revalidated: u64,
    /// Pages fetched.
    pub fetched: u64,
    /// Answers about a page that were older than what was seen before: put here meanwhile, or by a cache in
    /// between.
    pub too_old: u64,
    /// Pages given up to make room for others.
    pub evicted: u64,
    /// Pages served from the disk without a request: memory had let go of them, and they were young.
    pub disk_hits: u64,
    /// Pages served from the disk after the object store said that they are still the newest.
    pub disk_confirmed: u64,
    /// Pages that were looked for on the disk in vain.
    pub disk_misses: u64,
    /// Files on the disk that were not what they should be, and were removed.
    pub disk_damaged: u64,
    /// Pages written to the disk.
    pub disk_written: u64,
    /// Files removed from the disk to make room.
    pub disk_removed: u64,
    /// 1 if the disk failed again and again, and is left alone since.
    pub disk_off: u64,
    /// Pages handed out beyond what pins may hold, counted and not kept.
    pub past_pins: u64,
    /// Times that something waited for room in the budget.
    pub waits: u64,
    /// Puts that replaced a page.
    pub puts: u64,
    /// Puts that another client's put made void.
    pub puts_lost: u64,
    /// Puts whose outcome had to be read back.
    pub puts_unclear: u64,
    /// Bytes of pages that are in memory now, whoever uses them.
    pub bytes: u64,
    /// Pages whose newest version is known now.
    pub heads: u64,
    /// Bytes reserved in the budget now, by this and whatever shares it: pages, those on their way, what
    /// is known of them.
    pub budget_used: u64,
    /// The most that ever was.
    pub budget_peak: u64,
    /// The most that can be.
    pub budget_limit: u64,
    /// Bytes that are pinned in the budget now: half of it at most.
    pub budget_pinned: u64,
}

impl PoolCounts {
    /// The counters by their names, for those who write them down. All but those of bytes and heads only
    /// ever rise.
    pub fn named(&self) -> [(&'static str, u64); 24] {
        [
            ("hits", self.hits),
            ("misses", self.misses),
            ("revalidated", self.revalidated),
            ("fetched", self.fetched),
            ("too_old", self.too_old),
            ("evicted", self.evicted),
            ("disk_hits", self.disk_hits),
            ("disk_confirmed", self.disk_confirmed),
            ("disk_misses", self.disk_misses),
            ("disk_damaged", self.disk_damaged),
            ("disk_written", self.disk_written),
            ("disk_removed", self.disk_removed),
            ("disk_off", self.disk_off),
            ("past_pins", self.past_pins),
            ("waits", self.waits),
            ("puts", self.puts),
            ("puts_lost", self.puts_lost),
            ("puts_unclear", self.puts_unclear),
            ("bytes", self.bytes),
            ("heads", self.heads),
            ("budget_used", self.budget_used),
            ("budget_peak", self.budget_peak),
            ("budget_limit", self.budget_limit),
            ("budget_pinned", self.budget_pinned),
        ]
    }
}

#[derive(Default)]
struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    revalidated: AtomicU64,
    fetched: AtomicU64,
    too_old: AtomicU64,
    past_pins: AtomicU64,
    waits: AtomicU64,
    puts: AtomicU64,
    puts_lost: AtomicU64,
    puts_unclear: AtomicU64,
}

/// What is known of a version of a page besides the page.
struct Told {
    etag: ETag,
    /// When it was asked for, or put, by our monotonic clock.
    checked_us: u64,
    /// The object store's clock then.
    date_ms: u64,
    /// It was put here.
    is_own: bool,
}

/// What became of a conditional put. See [`Swap`].
enum Outcome {
    Done(ETag),
    Lost,
    Unclear,
}

/// Pages of a database, as one process sees them. Clones are the same.
#[derive(Clone)]
pub(crate) struct PageManager(Arc<State>);

/// A page that is being fetched.
type Flight = BoxFuture<'static, Result<Option<Held>, StoreError>>;

pub(crate) struct State {
    cloud: Cloud,
    settings: Settings,
    pool: Pool,
    heads: Mutex<Heads>,
    pages: Pages<Name, Arc<Page>>,
    /// What is beneath them, if anything.
    tier: Option<Arc<Tier>>,
    /// Whether names of pages tell their collection.
    has_tags: bool,
    /// Pages that are being fetched, each under a number of its own, for as long as anybody waits.
    flights: Mutex<HashMap<PageId, (u64, WeakShared<Flight>)>>,
    flights_so_far: AtomicU64,
    /// Reserved for pages to come.
    spare: Mutex<Option<Reservation>>,
    /// Bytes of pages that are read ahead, about.
    ahead: Arc<AtomicU64>,
    counters: Counters,
    /// The object store's clock.
    date: Mutex<StoreDate>,
    /// What was asked for until this, by our monotonic clock, is no young copy.
    expired_us: AtomicU64,
}

impl Deref for PageManager {
    type Target = State;

    fn deref(&self) -> &State {
        &self.0
    }
}

/// Takes a flight out of the list, when it ends or nobody waits for it any more.
struct Landing {
    pages: PageManager,
    id: PageId,
    number: u64,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut flights = lock(&self.pages.flights);
        if flights.get(&self.id).is_some_and(|(number, _)| *number == self.number) {
            flights.remove(&self.id);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn bump(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl PageManager {
    /// Pages of a database in `cloud`, whose names tell their collection if it `has_tags`; kept in `pool` and,
    /// where there is a `tier`, beneath it.
    pub(crate) fn of_database(
        cloud: Cloud,
        settings: Settings,
        pool: &Pool,
        tier: Option<Arc<Tier>>,
        has_tags: bool,
    ) -> Result<Self, StoreError> {
        let pages = Pages::new(pool)
            .ok_or_else(|| StoreError::Invalid("the pool has too many tenants".into()))?;
        Ok(PageManager(Arc::new(State {
            cloud,
            settings,
            pool: pool.clone(),
            heads: Mutex::new(Heads::new(pool)),
            pages,
            tier,
            has_tags,
            flights: Mutex::default(),
            flights_so_far: AtomicU64::new(0),
            spare: Mutex::default(),
            ahead: Arc::default(),
            counters: Counters::default(),
            date: Mutex::default(),
            expired_us: AtomicU64::new(0),
        })))
    }

    pub(crate) fn counts(&self) -> PoolCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (from, budget) = (&self.counters, self.pool.budget());
        let disk = self.tier.as_ref().map(|tier| &tier.counters);
        let disk = |of: fn(&DiskCounters) -> &AtomicU64| disk.map_or(0, |disk| read(of(disk)));
        let disk_confirmed = disk(|disk| &disk.confirmed);
        PoolCounts {
            hits: read(&from.hits),
            misses: read(&from.misses),
            revalidated: read(&from.revalidated),
            // That the bytes came from the disk shows beneath this.
            fetched: read(&from.fetched).saturating_sub(disk_confirmed),
            too_old: read(&from.too_old),
            evicted: self.pages.evicted(),
            disk_hits: disk(|disk| &disk.hits),
            disk_confirmed,
            disk_misses: disk(|disk| &disk.misses),
            disk_damaged: disk(|disk| &disk.damaged),
            disk_written: disk(|disk| &disk.written),
            disk_removed: disk(|disk| &disk.removed),
            disk_off: u64::from(self.tier.as_ref().is_some_and(|tier| tier.is_off())),
            past_pins: read(&from.past_pins),
            waits: read(&from.waits),
            puts: read(&from.puts),
            puts_lost: read(&from.puts_lost),
            puts_unclear: read(&from.puts_unclear),
            bytes: self.pages.bytes(),
            heads: lock(&self.heads).len() as u64,
            budget_used: budget.used(),
            budget_peak: budget.peak(),
            budget_limit: budget.limit(),
            budget_pinned: budget.pinned(),
        }
    }

    /// What the disk said when it failed last, if nothing worked since.
    pub(crate) fn disk_failure(&self) -> Option<String> {
        self.tier.as_ref()?.failure()
    }

    /// The object store's clock now, milliseconds since 1970, as far as its answers tell; 0 before
    /// the first.
    pub(crate) fn date_ms(&self) -> u64 {
        let now_us = self.cloud.clock.monotonic_us();
        lock(&self.date).now_ms(now_us)
    }

    /// Why that cannot be gone by, if so: by who commits, or by who deletes (`is_strict`).
    pub(crate) fn doubt(&self, is_strict: bool) -> Option<Doubt> {
        let clock = &self.cloud.clock;
        let (now_us, wall_us) = (clock.monotonic_us(), clock.wall_us());
        let doubt = lock(&self.date).doubt(now_us, wall_us, is_strict);
        doubt.filter(|_| self.settings.rules.hold(Rule::TwoDates))
    }

    /// Whether the last answer contradicts what was told before.
    pub(crate) fn is_in_doubt(&self) -> bool {
        lock(&self.date).is_in_doubt()
    }

    /// Takes the clock of an answer to what was asked at `asked_us`, by our monotonic clock. Returns what
    /// is to be taken for it: an answer can be wrong.
    pub(crate) fn saw_date(&self, date_ms: u64, asked_us: u64) -> u64 {
        let clock = &self.cloud.clock;
        let now_us = clock.monotonic_us();
        if !self.settings.rules.hold(Rule::TwoDates) {
            return lock(&self.date).believe(date_ms, now_us);
        }
        lock(&self.date).saw(date_ms, asked_us, now_us, || clock.wall_us())
    }

    /// Takes the copy of `id` for outdated: the next read asks.
    pub(crate) fn expire(&self, id: PageId) {
        if let Some(head) = lock(&self.heads).get(id) {
            head.is_outdated = true;
        }
    }

    /// Forgets how young every copy is, those that are on their way included.
    pub(crate) fn expire_all(&self) {
        self.expired_us.fetch_max(self.cloud.clock.monotonic_us(), Ordering::Relaxed);
    }

    /// When a page was last checkpointed, as far as is known here.
    pub(crate) fn checkpoint_ms(&self, id: PageId) -> Option<u64> {
        lock(&self.heads).get(id).map(|head| head.checkpoint_ms)
    }

    fn head(&self, id: PageId) -> Option<Head> {
        lock(&self.heads).get(id).cloned()
    }

    /// The version that `head` knows of, if it is in memory.
    fn resident(&self, id: PageId, head: Head) -> Option<Held> {
        let name = (id, head.etag);
        let page = self.lend(&name)?;
        Some(Held { page, etag: name.1, date_ms: head.date_ms, is_guess: false })
    }

    fn lend(&self, name: &Name) -> Option<Lent> {
        if let Some(pin) = self.pages.get_resident(name) {
            return Some(Lent::pinned(pin));
        }
        // It may be there, and pins hold as much as they may.
        let (page, share) = self.pages.share(name)?;
        bump(&self.counters.past_pins);
        Some(Lent::shared(page, share))
    }

    /// Bytes in the budget, if there are any that nobody uses.
    fn try_room(&self, bytes: u64) -> Option<Reservation> {
        let from_spare = || {
            let mut spare = lock(&self.spare);
            let spare = spare.as_mut().filter(|spare| spare.bytes() >= bytes)?;
            Some(spare.split(bytes))
        };
        from_spare().or_else(|| self.pool.reserve(bytes)).or_else(|| {
            let spare = lock(&self.spare).take();
            drop(spare);
            self.pool.reserve(bytes)
        })
    }

    /// The same; waits a little for those who use them. They are in use for moments only: what a scan
    /// keeps while its caller does something else are pins, which may hold half of the budget, and what
    /// it reads ahead, which may take a quarter. So this ends, one way or the other.
    async fn room(&self, bytes: u64) -> Result<Reservation, StoreError> {
        let limit = self.pool.budget().limit();
        let mut attempts = Attempts::new(&self.cloud, &self.settings);
        if bytes <= limit {
            loop {
                if let Some(room) = self.try_room(bytes) {
                    return Ok(room);
                }
                bump(&self.counters.waits);
                if !attempts.again().await {
                    break;
                }
            }
        }
        Err(StoreError::Full { bytes, limit })
    }

    /// Keeps what was reserved for the next page, as far as that may be.
    fn spare(&self, mut room: Reservation) {
        let most = self.pool.budget().limit() / SPARE_PART;
        let excess = {
            let mut spare = lock(&self.spare);
            let there = spare.as_ref().map_or(0, Reservation::bytes);
            let stays = room.bytes().min(most.saturating_sub(there));
            let excess = room.split(room.bytes() - stays);
            match spare.as_mut() {
                Some(spare) => spare.merge(room),
                None => *spare = Some(room),
            }
            excess
        };
        // Wakes those who wait for bytes: not under a lock.
        drop(excess);
    }

    /// Bytes that a page will take of which nothing is known: its frame, as it comes and as it is opened,
    /// or the frame and its entries. Clients can have other settings, and then it is taken as it is.
    fn guess(&self) -> u64 {
        let settings = &self.settings;
        let frame = settings.leaf_bytes_max.max(settings.inner_bytes_max) as u64;
        (3 * frame + KEPT_BYTES).min(self.pool.budget().limit() / 8)
    }

    fn is_young(&self, head: &Head) -> bool {
        !head.is_outdated
            && head.checked_us > self.expired_us.load(Ordering::Relaxed)
            && self.is_within_ttl(head)
    }

    fn is_within_ttl(&self, head: &Head) -> bool {
        let now = self.cloud.clock.monotonic_us();
        now.saturating_sub(head.checked_us) < self.settings.ttl.as_micros() as u64
    }

    /// The fetch of a page that is under way, or a new one; whether it is new.
    fn flight(&self, id: PageId, age: Freshness) -> (Shared<Flight>, bool) {
        let mut flights = lock(&self.flights);
        if let Some(flight) = flights.get(&id).and_then(|(_, flight)| flight.upgrade()) {
            return (flight, false);
        }
        let number = self.flights_so_far.fetch_add(1, Ordering::Relaxed);
        let landing = Landing { pages: self.clone(), id, number };
        let fetch = async move { landing.pages.fetch(landing.id, age).await };
        let flight = as_now(fetch).boxed().shared();
        flights.extend(flight.downgrade().map(|weak| (id, (number, weak))));
        (flight, true)
    }

    async fn fetch(&self, id: PageId, age: Freshness) -> Result<Option<Held>, StoreError> {
        if matches!(age, Freshness::Hint | Freshness::Cached)
            && let Some(held) = self.on_disk(id).await?
        {
            return Ok(Some(held));
        }
        let object = id.object();
        let mut attempts = Attempts::new(&self.cloud, &self.settings);
        // That a copy was there when it was asked for, and is not any more.
        let mut is_gone = false;
        loop {
            let head = self.head(id);
            let known = head.filter(|head| !is_gone && self.pages.has(&(id, head.etag.clone())));
            // Before anything is asked for, since anything may come.
            let mut room =
                self.room(known.as_ref().map_or_else(|| self.guess(), |head| head.weight)).await?;
            let asked_us = self.cloud.clock.monotonic_us();
            let unless = known.as_ref().map(|head| &head.etag);
            match self.cloud.objects.get(&object, unless).await {
                Ok(Get::Unchanged { date_ms }) => {
                    let Some(mut head) = known else {
                        let what = "304 to a request without a condition";
                        return Err(StoreError::Invalid(format!("{object}: {what}")));
                    };
                    self.spare(room);
                    let date_ms = self.saw_date(date_ms, asked_us);
                    let Some(mut held) = self.resident(id, head.clone()) else {
                        is_gone = true;
                        continue;
                    };
                    held.date_ms = date_ms;
                    (head.checked_us, head.date_ms) = (asked_us, date_ms);
                    head.is_outdated = false;
                    if head.is_own {
                        head.trust = head.trust.confirmed();
                    }
                    if self.remember(id, head) == Remembered::Older {
                        // It was the newest when it was asked about, and is not any more.
                        bump(&self.counters.too_old);
                        drop(held);
                        attempts.after_loss(&object).await?;
                        continue;
                    }
                    bump(&self.counters.revalidated);
                    return Ok(Some(held));
                }
                Ok(Get::Absent) => {
                    self.spare(room);
                    return Ok(None);
                }
                Ok(Get::Found { bytes, etag, date_ms }) => {
                    bump(&self.counters.fetched);
                    let date_ms = self.saw_date(date_ms, asked_us);
                    let page = self.decode(id, &object, bytes)?;
                    let newest = self.head(id).map_or(0, |head| head.version);
                    if page.version < newest {
                        // Monotonic reads: a version that this process has been past.
                        bump(&self.counters.too_old);
                        self.spare(room);
                        attempts.after_loss(&object).await?;
                        continue;
                    }
                    self.fit(&mut room, &page).await?;
                    let told = Told { etag, checked_us: asked_us, date_ms, is_own: false };
                    return Ok(Some(self.keep(page, told, room)));
                }
                Err(fault) => {
                    self.spare(room);
                    attempts.after(fault).await?;
                }
            }
        }
    }

    /// A page that memory has let go of, and whose version is young, from the disk: no request.
    async fn on_disk(&self, id: PageId) -> Result<Option<Held>, StoreError> {
        let Some(tier) = &self.tier else { return Ok(None) };
        let is_young = |head: &Head| self.is_young(head);
        let Some(head) = self.head(id).filter(is_young) else { return Ok(None) };
        if self.pages.has(&(id, head.etag.clone())) {
            return Ok(None);
        }
        let mut room = self.room(head.weight.max(self.guess())).await?;
        let Some(page) = tier.page(id, &head.etag).await else {
            self.spare(room);
            return Ok(None);
        };
        self.check_names(&page)?;
        if self.head(id).is_none_or(|now| now.etag != head.etag) {
            // It was replaced meanwhile.
            self.spare(room);
            return Ok(None);
        }
        self.fit(&mut room, &page).await?;
        let Head { etag, checked_us, date_ms, is_own, .. } = head;
        Ok(Some(self.keep(page, Told { etag, checked_us, date_ms, is_own }, room)))
    }

    /// Makes a reservation that of a page.
    async fn fit(&self, room: &mut Reservation, page: &Page) -> Result<(), StoreError> {
        let weight = page.weight() + KEPT_BYTES;
        match weight.checked_sub(room.bytes()) {
            None => self.spare(room.split(room.bytes() - weight)),
            Some(0) => {}
            Some(more) => room.merge(self.room(more).await?),
        }
        Ok(())
    }

    fn decode(&self, id: PageId, object: &str, bytes: Bytes) -> Result<Page, StoreError> {
        let damaged = |source| StoreError::Damaged { object: object.to_owned(), source };
        let page = Page::decode(&bytes).map_err(damaged)?;
        if page.id != id {
            return Err(StoreError::Tree { page: id, what: "its object holds another page" });
        }
        self.check_names(&page)?;
        Ok(page)
    }

    /// That a page leads to none of another collection. Whoever may put pages of one collection alone would
    /// have others, who may do more, read, put and delete those of another for him.
    fn check_names(&self, page: &Page) -> Result<(), StoreError> {
        let tag = Tag::of_page(page.id);
        let children = page.links().iter().map(|link| link.child);
        let indexes = page.followers.iter().map(|follower| follower.root);
        let mut named = page.right.into_iter().chain(children).chain(indexes);
        match self.has_tags && named.any(|named| Tag::of_page(named) != tag) {
            true => {
                let what = "names a page of another collection: restore it from a copy";
                Err(StoreError::Tree { page: page.id, what })
            }
            false => Ok(()),
        }
    }

    /// Takes a page that the object store has, which takes `room`.
    fn keep(&self, page: Page, told: Told, room: Reservation) -> Held {
        let (id, page) = (page.id, Arc::new(page));
        let (etag, date_ms) = (told.etag.clone(), told.date_ms);
        let counted = |page, room| {
            bump(&self.counters.past_pins);
            Lent::counted(page, room)
        };
        let page = match self.take_note(&page, told, room.bytes()) {
            false => counted(page, room),
            true => {
                let name = (id, etag.clone());
                match self.pages.insert(&name, page, room) {
                    Ok(pin) => Lent::pinned(pin),
                    // It is there already, or pins hold as much as they may: the pool takes it in
                    // nevertheless.
                    Err((page, room)) => self.lend(&name).unwrap_or_else(|| {
                        match self.pages.keep(&name, page.clone(), room) {
                            Ok(share) => {
                                bump(&self.counters.past_pins);
                                Lent::shared(page, share)
                            }
                            Err((page, room)) => counted(page, room),
                        }
                    }),
                }
            }
        };
        Held { page, etag, date_ms, is_guess: false }
    }

    /// Takes a page that was put here, if there is room for it, as it lies in the object store: what its
    /// entries came from, a log object perhaps, is much larger.
    fn keep_own(&self, page: &Page, frame: &Bytes, etag: ETag, checked_us: u64, is_in_use: bool) {
        let (id, date_ms) = (page.id, page.checkpoint_ms);
        let name = (id, etag.clone());
        let told = Told { etag, checked_us, date_ms, is_own: true };
        if let Ok(page) = Page::decode(&Bytes::copy_from_slice(frame)) {
            match self.try_room(page.weight() + KEPT_BYTES) {
                Some(room) => drop(self.keep(page, told, room)),
                None => {
                    self.take_note(&page, told, self.guess());
                }
            }
        }
        // To the policy it is as new as what a scan met, and would go as soon. Where nobody had to read the page
        // to put it, it takes the place of one that is in use.
        if is_in_use {
            self.pages.warm(&name);
        }
    }

    /// Remembers a version of a page, and lets go of the one before. False if it is not to be kept: a
    /// newer one is known, or there is no room.
    fn take_note(&self, page: &Page, told: Told, weight: u64) -> bool {
        let Told { etag, checked_us, date_ms, is_own } = told;
        let there = self.head(page.id);
        let before = there.as_ref().map_or(Trust::default(), |there| there.trust);
        let trust = match &there {
            // Put on top of what it was, or asked for again after memory had let go of it.
            _ if is_own => before,
            Some(there) if there.etag == etag && there.is_own => before.confirmed(),
            _ => before.is_others(),
        };
        let old = there.filter(|old| old.etag != etag);
        let (version, checkpoint_ms) = (page.version, page.checkpoint_ms);
        let checked_us = checked_us.max(1);
        let head = Head {
            etag,
            version,
            checked_us,
            date_ms,
            checkpoint_ms,
            weight,
            is_outdated: false,
            is_own,
            trust,
        };
        let outcome = self.remember(page.id, head);
        if let (Some(old), Remembered::Yes) = (old, &outcome) {
            self.pages.remove(&(page.id, old.etag));
        }
        outcome == Remembered::Yes
    }

    fn remember(&self, id: PageId, head: Head) -> Remembered {
        // An answer that is on its way may be older than what is forgotten here: it would be taken for
        // new, by a client that has seen its own write already.
        let busy = |id| lock(&self.flights).contains_key(&id);
        let wants_room = lock(&self.heads).wants_room(id);
        // Which may have others give something up: not under the lock that every read takes.
        let room = if wants_room { self.pool.reserve(heads::STEP_BYTES) } else { None };
        let (outcome, gone) = lock(&self.heads).remember(room, id, head, busy);
        for (id, head) in gone {
            // Nobody finds it any more.
            self.pages.remove(&(id, head.etag));
        }
        outcome
    }

    /// Puts `page`, whose header is complete and whose frame is `bytes`, under `condition`, and finds out
    /// what came of it.
    async fn put(
        &self,
        page: &Page,
        bytes: &Bytes,
        condition: PutIf,
    ) -> Result<Outcome, StoreError> {
        let object = page.id.object();
        let rules = self.settings.rules;
        let mut attempts = Attempts::new(&self.cloud, &self.settings);
        let mut is_unclear = false;
        loop {
            let fault =
                match self.cloud.objects.put(&object, bytes.clone(), condition.clone()).await {
                    Put::Stored(etag) => return Ok(Outcome::Done(etag)),
                    // An earlier attempt of ours may be what is in the way.
                    Put::Refused | Put::Missing if is_unclear && rules.hold(Rule::OwnPut) => {
                        let ours = self.is_ours(page).await?;
                        return Ok(ours.map_or(Outcome::Unclear, Outcome::Done));
                    }
                    Put::Refused | Put::Missing => return Ok(Outcome::Lost),
                    Put::Conflict => {
                        attempts.after_loss(&object).await?;
                        continue;
                    }
                    Put::Failed(fault) => fault,
                    Put::Unknown(fault) => {
                        bump(&self.counters.puts_unclear);
                        is_unclear = true;
                        if !rules.hold(Rule::Silence) {
                            // What a client does that takes silence for success.
                            return Ok(Outcome::Done(ETag::new("\"unknown\"")));
                        }
                        // One that tries again, blindly, takes its own success for another's.
                        if rules.hold(Rule::OwnPut)
                            && let Some(etag) = self.is_ours(page).await?
                        {
                            return Ok(Outcome::Done(etag));
                        }
                        // Not there, or not any more. The same condition keeps a second attempt safe,
                        // even if the first one lands in between.
                        fault
                    }
                };
            attempts.after(fault).await?;
        }
    }

    /// Whether the object is this very put; its tag, if so.
    async fn is_ours(&self, page: &Page) -> Result<Option<ETag>, StoreError> {
        let object = page.id.object();
        let mut attempts = Attempts::new(&self.cloud, &self.settings);
        loop {
            match self.cloud.objects.get(&object, None).await {
                Ok(Get::Found { bytes, etag, .. }) => {
                    let there = self.decode(page.id, &object, bytes)?;
                    return Ok((there.write_id == page.write_id).then_some(etag));
                }
                Ok(_) => return Ok(None),
                Err(fault) => attempts.after(fault).await?,
            }
        }
    }
}

#[async_trait]
impl Nodes for PageManager {
    async fn node(&self, id: PageId, age: Freshness) -> Result<Option<Held>, StoreError> {
        let fresh = |asked_us: u64| {
            let head = self.head(id)?;
            let is_fresh = match age {
                Freshness::Hint => self.is_within_ttl(&head),
                Freshness::Cached => self.is_young(&head),
                Freshness::Likely if head.is_own && head.trust.is_enough() => {
                    let held = self.resident(id, head)?;
                    let date_ms = held.date_ms.max(self.date_ms());
                    return Some(Held { date_ms, is_guess: true, ..held });
                }
                // Asked after we were: as new as our own request would be.
                Freshness::Likely | Freshness::Newest => {
                    !head.is_outdated && head.checked_us > asked_us
                }
                Freshness::After(us) => !head.is_outdated && head.checked_us > us,
            };
            if is_fresh { self.resident(id, head) } else { None }
        };
        let asked_us = self.cloud.clock.monotonic_us();
        if let Some(held) = fresh(asked_us) {
            bump(&self.counters.hits);
            return Ok(Some(held));
        }
        if matches!(age, Freshness::Hint | Freshness::Cached) {
            bump(&self.counters.misses);
        }
        loop {
            let (flight, is_ours) = self.flight(id, age);
            let outcome = flight.await;
            if is_ours {
                return outcome;
            }
            // What others asked for before we came may be older than we want.
            if let Some(held) = fresh(asked_us) {
                return Ok(Some(held));
            }
        }
    }

    fn at_once(&self, id: PageId, age: Freshness) -> Option<Held> {
        let head = self.head(id)?;
        let is_fit = match age {
            Freshness::Hint => self.is_within_ttl(&head),
            _ => self.is_young(&head),
        };
        if !is_fit {
            return None;
        }
        let held = self.resident(id, head)?;
        bump(&self.counters.hits);
        Some(held)
    }

    fn shared(&self) -> Arc<dyn Nodes> {
        Arc::new(self.clone())
    }

    fn ahead(&self) -> Option<Ahead> {
        let most = self.pool.budget().limit() / AHEAD_PART;
        Ahead::take(&self.ahead, self.guess(), most)
    }

    async fn create(&self, mut page: Page) -> Result<Swap, StoreError> {
        page.version = 1;
        page.write_id = self.cloud.chance.next_u128();
        page.checkpoint_ms = self.date_ms();
        let asked_us = self.cloud.clock.monotonic_us();
        let frame = page.encode();
        match self.put(&page, &frame, PutIf::Absent).await? {
            Outcome::Done(etag) => {
                self.keep_own(&page, &frame, etag, asked_us, false);
                Ok(Swap::Done)
            }
            Outcome::Lost => Ok(Swap::Lost),
            Outcome::Unclear => Ok(Swap::Unclear),
        }
    }

    async fn replace(&self, old: &Held, mut page: Page) -> Result<Swap, StoreError> {
        page.version = old.page.version + 1;
        page.write_id = self.cloud.chance.next_u128();
        page.checkpoint_ms = old.date_ms;
        let condition = if self.settings.rules.hold(Rule::CompareAndSwap) {
            PutIf::Matches(old.etag.clone())
        } else {
            PutIf::Always
        };
        let asked_us = self.cloud.clock.monotonic_us();
        let frame = page.encode();
        match self.put(&page, &frame, condition).await? {
            Outcome::Done(etag) => {
                bump(&self.counters.puts);
                self.keep_own(&page, &frame, etag, asked_us, old.is_guess);
                Ok(Swap::Done)
            }
            outcome => {
                bump(&self.counters.puts_lost);
                self.expire(page.id);
                if old.is_guess
                    && let Some(head) = lock(&self.heads).get(page.id)
                {
                    head.trust = head.trust.was_wrong();
                }
                Ok(if let Outcome::Lost = outcome { Swap::Lost } else { Swap::Unclear })
            }
        }
    }

    async fn discard(&self, id: PageId) {
        let Some(head) = self.head(id) else { return };
        if let Delete::Gone = self.cloud.objects.delete(&id.object(), Some(&head.etag)).await {
            self.pages.remove(&(id, head.etag));
            lock(&self.heads).remove(id);
        }
    }

    fn fresh_id(&self) -> PageId {
        PageId(self.cloud.chance.next_u128())
    }

    async fn back_off(&self, page: PageId, lost: u32) -> Result<(), StoreError> {
        let settings = &self.settings;
        if lost >= settings.attempts_max.max(1) * 4 {
            return Err(StoreError::Contended { object: page.object(), attempts: lost });
        }
        let wait = settings.backoff * 2u32.saturating_pow(lost.min(6));
        let us = self.cloud.chance.below(wait.as_micros() as u64 + 1);
        self.cloud.clock.sleep(std::time::Duration::from_micros(us)).await;
        Ok(())
    }

    fn bytes_max(&self, level: u8) -> usize {
        if level == 0 { self.settings.leaf_bytes_max } else { self.settings.inner_bytes_max }
    }

    fn rules(&self) -> Rules {
        self.settings.rules
    }

    async fn reached(&self, point: FailPoint) {
        fail_point::reached(&self.cloud, point).await;
    }
}

#[cfg(test)]
mod tests {
    use pager::{Budget, policy};

    use super::*;
    use crate::cloud::{
        embedded::{self, Memory},
        ledger::{CallKind, Ledger, Metered, charged_to},
    };

    impl PageManager {
        fn new(
            cloud: Cloud,
            settings: Settings,
            pool: &Pool,
            tier: Option<Arc<Tier>>,
        ) -> Result<Self, StoreError> {
            PageManager::of_database(cloud, settings, pool, tier, false)
        }
    }

    /// Nobody waits for it: it is not in the way of the next one, and keeps nothing.
    #[test]
    fn a_fetch_that_is_given_up_leaves_nothing() {
        let pool = Pool::new(&Budget::new(1 << 20), policy::default_eviction());
        let cloud = embedded::memory(Arc::new(Memory::new()));
        let pages = PageManager::new(cloud, Settings::default(), &pool, None).unwrap();
        let (first, is_new) = pages.flight(PageId(1), Freshness::Newest);
        let (second, is_other) = pages.flight(PageId(1), Freshness::Newest);
        assert_eq!((is_new, is_other), (true, false));
        drop(first);
        assert_eq!(lock(&pages.flights).len(), 1);
        drop(second);
        assert_eq!(lock(&pages.flights).len(), 0);
    }

    /// Answers gets of one page only when the test says so, with what was there when they came.
    struct Holding {
        beneath: Arc<dyn crate::cloud::Objects>,
        page: String,
        gate: tokio::sync::Semaphore,
    }

    #[async_trait]
    impl crate::cloud::Objects for Holding {
        async fn get(&self, name: &str, unless: Option<&ETag>) -> Result<Get, crate::cloud::Fault> {
            let answer = self.beneath.get(name, unless).await;
            if name == self.page {
                self.gate.acquire().await.expect("never closed").forget();
            }
            answer
        }

        async fn put(&self, name: &str, bytes: Bytes, condition: PutIf) -> Put {
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
        ) -> Result<crate::cloud::Listing, crate::cloud::Fault> {
            self.beneath.list(prefix, after, max).await
        }
    }

    /// A client has seen its write on a page, and lays it over nothing any more. An answer about that page
    /// that was asked for before the put, and comes when its newest version has been forgotten for others,
    /// was taken for new: the write was gone again.
    #[tokio::test]
    async fn an_answer_from_before_a_put_is_older_than_it_whatever_was_forgotten() {
        let pool = Pool::new(&Budget::new(1 << 20), policy::default_eviction());
        let cloud = embedded::memory(Arc::new(Memory::new()));
        let (page, gate) = (PageId(1).object(), tokio::sync::Semaphore::new(0));
        let holding = Arc::new(Holding { beneath: cloud.objects.clone(), page, gate });
        let cloud = Cloud { objects: holding.clone(), ..cloud };
        let pages = PageManager::new(cloud, Settings::default(), &pool, None).unwrap();
        assert!(matches!(pages.create(Page::root(PageId(1))).await, Ok(Swap::Done)));
        let old = pages.node(PageId(1), Freshness::Cached).await.unwrap().unwrap();
        let (slow, _) = pages.flight(PageId(1), Freshness::Newest);
        assert!(slow.clone().now_or_never().is_none(), "its answer waits");
        assert!(matches!(pages.replace(&old, (*old.page).clone()).await, Ok(Swap::Done)));
        for id in 2..3000 {
            assert!(matches!(pages.create(Page::root(PageId(id))).await, Ok(Swap::Done)));
        }
        assert!(pages.head(PageId(2)).is_none(), "others are forgotten");
        holding.gate.add_permits(2);
        assert_eq!(slow.await.unwrap().unwrap().page.version, 2);
        assert_eq!(pages.counts().too_old, 1);
    }

    /// What was put shared its bytes with what its entries came from: a log object of megabytes stayed in
    /// memory for the sake of one record, and nobody counted it.
    #[tokio::test]
    async fn a_page_that_was_put_holds_its_own_bytes_alone() {
        let pool = Pool::new(&Budget::new(1 << 20), policy::default_eviction());
        let cloud = embedded::memory(Arc::new(Memory::new()));
        let pages = PageManager::new(cloud, Settings::default(), &pool, None).unwrap();
        let large = Bytes::from(vec![7; 1 << 20]);
        let mut page = Page::root(PageId(1));
        let stamp = crate::Stamp { clock: 1, client: 1, sequence: 1 };
        page.apply(&large.slice(..3), stamp, Some(crate::Value::Here(large.slice(5..9))));
        assert!(matches!(pages.create(page).await, Ok(Swap::Done)));
        let held = pages.node(PageId(1), Freshness::Cached).await.unwrap().unwrap();
        let slot = &held.page.slots()[0];
        let is_in = |bytes: &Bytes| large.as_ptr_range().contains(&bytes.as_ptr());
        assert!(!is_in(&slot.key) && !is_in(slot.payload.as_ref().unwrap().here().unwrap()));
        assert_eq!(pages.counts().hits, 1);
    }

    /// Or a read would be refused what only work in the background may not spend any more.
    #[tokio::test]
    async fn a_fetch_is_charged_to_who_began_it() {
        let pool = Pool::new(&Budget::new(1 << 20), policy::default_eviction());
        let cloud = embedded::memory(Arc::new(Memory::new()));
        let metered = Metered::new(cloud.objects.clone(), Ledger::new());
        let cloud = Cloud { objects: Arc::new(metered), ..cloud };
        let pages = PageManager::new(cloud, Settings::default(), &pool, None).unwrap();
        let [first, second] = [Ledger::new(), Ledger::new()];
        let (flight, _) =
            charged_to(&first, async { pages.flight(PageId(1), Freshness::Newest) }).await;
        assert!(charged_to(&second, flight).await.unwrap().is_none());
        assert_eq!([first, second].map(|account| account.charge(CallKind::Get).calls), [1, 0]);
    }

    /// The store's time went ahead only: a clock of ours that runs fast was believed for the life of the
    /// process.
    #[test]
    fn the_time_of_the_store_is_set_right_in_both_directions() {
        let pool = Pool::new(&Budget::new(1 << 20), policy::default_eviction());
        let cloud = embedded::memory(Arc::new(Memory::new()));
        let pages = PageManager::new(cloud.clone(), Settings::default(), &pool, None).unwrap();
        let minute_ms = 60_000;
        let date_ms = 1_763_690_400_000;
        let now_us = cloud.clock.monotonic_us();
        let is_about = |ms: u64| (ms..ms + minute_ms / 2).contains(&pages.date_ms());
        pages.saw_date(0, now_us);
        assert_eq!(pages.date_ms(), 0, "an answer without a date");
        for expected in [date_ms, date_ms + minute_ms, date_ms] {
            pages.saw_date(expected, now_us);
            assert!(is_about(expected), "{} for {expected}", pages.date_ms());
        }
        // Whole seconds: the end of one is not set back to its beginning.
        pages.saw_date(date_ms + 900, now_us);
        let before = pages.date_ms();
        pages.saw_date(date_ms, now_us);
        assert!(pages.date_ms() >= before);
    }
}
