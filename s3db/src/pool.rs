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
//! page *and* ETag, so that bytes of two versions never mix. Those who want the same page at the
//! same time wait for one request, and any of them carries it on: whoever made it may rest meanwhile, as a
//! scan does that reads ahead.
//!
//! Here are the rules H2 (a put replaces exactly the version that was changed) and H3 (after a put
//! without an answer the object itself is asked).

use std::{
    collections::HashMap,
    ops::Deref,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _, Shared, WeakShared};
use pager::pool::{Pages, Pool};

use crate::{
    cloud::{Cloud, Delete, ETag, Get, Put, PutIf, ledger::as_now},
    error::StoreError,
    fail_point::{self, FailPoint},
    page::{Page, PageId},
    retry::Attempts,
    settings::{Rule, Rules, Settings},
    tree::{Freshness, Held, Nodes, Swap},
};

/// Pages whose newest known version is remembered: some 100 bytes each.
const HEADS_MAX: usize = 1 << 20;

/// What the page manager did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolCounts {
    /// Pages served from memory without a request.
    pub hits: u64,
    /// Pages asked for again and found unchanged (304).
    pub revalidated: u64,
    /// Pages fetched.
    pub fetched: u64,
    /// Fetched pages that were older than one seen before: only a cache in between does that.
    pub too_old: u64,
    /// Puts that replaced a page.
    pub puts: u64,
    /// Puts that another client's put made void.
    pub puts_lost: u64,
    /// Puts whose outcome had to be read back.
    pub puts_unclear: u64,
}

#[derive(Default)]
struct Counters {
    hits: AtomicU64,
    revalidated: AtomicU64,
    fetched: AtomicU64,
    too_old: AtomicU64,
    puts: AtomicU64,
    puts_lost: AtomicU64,
    puts_unclear: AtomicU64,
}

/// What is known of a page's newest version.
#[derive(Clone)]
struct Head {
    etag: ETag,
    version: u64,
    /// When the object store last said so, by our monotonic clock.
    checked_us: u64,
    date_ms: u64,
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
    heads: Mutex<HashMap<PageId, Head>>,
    pages: Pages<(PageId, ETag), Arc<Page>>,
    /// Pages that are being fetched, each under a number of its own, for as long as anybody waits.
    flights: Mutex<HashMap<PageId, (u64, WeakShared<Flight>)>>,
    flights_so_far: AtomicU64,
    counters: Counters,
    /// The object store's clock in its newest answer, and when that came, by our monotonic clock.
    date: Mutex<(u64, u64)>,
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
    pub(crate) fn new(cloud: Cloud, settings: Settings, pool: &Pool) -> Result<Self, StoreError> {
        let pages = Pages::new(pool)
            .ok_or_else(|| StoreError::Invalid("the pool has too many tenants".into()))?;
        Ok(PageManager(Arc::new(State {
            cloud,
            settings,
            heads: Mutex::default(),
            pages,
            flights: Mutex::default(),
            flights_so_far: AtomicU64::new(0),
            counters: Counters::default(),
            date: Mutex::default(),
            expired_us: AtomicU64::new(0),
        })))
    }

    pub(crate) fn counts(&self) -> PoolCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let from = &self.counters;
        PoolCounts {
            hits: read(&from.hits),
            revalidated: read(&from.revalidated),
            fetched: read(&from.fetched),
            too_old: read(&from.too_old),
            puts: read(&from.puts),
            puts_lost: read(&from.puts_lost),
            puts_unclear: read(&from.puts_unclear),
        }
    }

    /// The object store's clock now, milliseconds since 1970, as far as its answers tell; 0 before
    /// the first.
    pub(crate) fn date_ms(&self) -> u64 {
        let (date_ms, at_us) = *lock(&self.date);
        match date_ms {
            0 => 0,
            _ => date_ms + self.cloud.clock.monotonic_us().saturating_sub(at_us) / 1000,
        }
    }

    /// Takes the clock of an answer to what was asked at `asked_us`, by our monotonic clock.
    ///
    /// The answer came after that, and tells whole seconds: so it bounds the time now from both sides.
    /// A clock of ours that runs fast is set right by it, and so is an answer that was wrong.
    pub(crate) fn saw_date(&self, date_ms: u64, asked_us: u64) {
        if date_ms == 0 {
            return;
        }
        let now_us = self.cloud.clock.monotonic_us();
        let most_ms = date_ms.saturating_add(1000 + now_us.saturating_sub(asked_us) / 1000);
        let known_ms = self.date_ms();
        let date_ms = known_ms.clamp(date_ms, most_ms);
        if date_ms != known_ms {
            *lock(&self.date) = (date_ms, now_us);
        }
    }

    /// Forgets how young the copy of `id` is: the next read asks.
    pub(crate) fn expire(&self, id: PageId) {
        if let Some(head) = lock(&self.heads).get_mut(&id) {
            head.checked_us = 0;
        }
    }

    /// Forgets how young every copy is, those that are on their way included.
    pub(crate) fn expire_all(&self) {
        self.expired_us.fetch_max(self.cloud.clock.monotonic_us(), Ordering::Relaxed);
    }

    /// When a page was last checkpointed, as far as is known here.
    pub(crate) fn checkpoint_ms(&self, id: PageId) -> Option<u64> {
        let head = self.head(id)?;
        Some(self.resident(id, &head)?.page.checkpoint_ms)
    }

    fn head(&self, id: PageId) -> Option<Head> {
        lock(&self.heads).get(&id).cloned()
    }

    fn resident(&self, id: PageId, head: &Head) -> Option<Held> {
        let page = self.pages.get_resident(&(id, head.etag.clone()))?;
        Some(Held { page: Arc::clone(&page), etag: head.etag.clone(), date_ms: head.date_ms })
    }

    fn is_young(&self, head: &Head) -> bool {
        let now = self.cloud.clock.monotonic_us();
        head.checked_us > self.expired_us.load(Ordering::Relaxed)
            && now.saturating_sub(head.checked_us) < self.settings.ttl.as_micros() as u64
    }

    /// The fetch of a page that is under way, or a new one; whether it is new.
    fn flight(&self, id: PageId) -> (Shared<Flight>, bool) {
        let mut flights = lock(&self.flights);
        if let Some(flight) = flights.get(&id).and_then(|(_, flight)| flight.upgrade()) {
            return (flight, false);
        }
        let number = self.flights_so_far.fetch_add(1, Ordering::Relaxed);
        let landing = Landing { pages: self.clone(), id, number };
        let fetch = async move { landing.pages.fetch(landing.id).await };
        let flight = as_now(fetch).boxed().shared();
        flights.extend(flight.downgrade().map(|weak| (id, (number, weak))));
        (flight, true)
    }

    async fn fetch(&self, id: PageId) -> Result<Option<Held>, StoreError> {
        let object = id.object();
        let mut attempts = Attempts::new(&self.cloud, &self.settings);
        loop {
            let known = self.head(id).and_then(|head| Some((self.resident(id, &head)?, head)));
            let asked_us = self.cloud.clock.monotonic_us();
            let unless = known.as_ref().map(|(held, _)| &held.etag);
            match self.cloud.objects.get(&object, unless).await {
                Ok(Get::Unchanged { date_ms }) => {
                    let Some((mut held, mut head)) = known else {
                        let what = "304 to a request without a condition";
                        return Err(StoreError::Invalid(format!("{object}: {what}")));
                    };
                    bump(&self.counters.revalidated);
                    self.saw_date(date_ms, asked_us);
                    held.date_ms = date_ms;
                    (head.checked_us, head.date_ms) = (asked_us, date_ms);
                    self.remember(id, head);
                    return Ok(Some(held));
                }
                Ok(Get::Absent) => return Ok(None),
                Ok(Get::Found { bytes, etag, date_ms }) => {
                    bump(&self.counters.fetched);
                    self.saw_date(date_ms, asked_us);
                    let page = self.decode(id, &object, bytes)?;
                    let newest = self.head(id).map_or(0, |head| head.version);
                    if page.version < newest {
                        // Monotonic reads: a version that this process has been past.
                        bump(&self.counters.too_old);
                        attempts.after_loss(&object).await?;
                        continue;
                    }
                    return Ok(Some(self.keep(page, etag, asked_us, date_ms).await));
                }
                Err(fault) => attempts.after(fault).await?,
            }
        }
    }

    fn decode(&self, id: PageId, object: &str, bytes: Bytes) -> Result<Page, StoreError> {
        let damaged = |source| StoreError::Damaged { object: object.to_owned(), source };
        let page = Page::decode(&bytes).map_err(damaged)?;
        if page.id != id {
            return Err(StoreError::Tree { page: id, what: "its object holds another page" });
        }
        Ok(page)
    }

    /// Takes a page that the object store has.
    async fn keep(&self, page: Page, etag: ETag, checked_us: u64, date_ms: u64) -> Held {
        let (id, version, weight) = (page.id, page.version, page.weight());
        let page = Arc::new(page);
        let old = self.head(id).filter(|old| old.etag != etag);
        self.remember(
            id,
            Head { etag: etag.clone(), version, checked_us: checked_us.max(1), date_ms },
        );
        if let Some(old) = old {
            self.pages.remove(&(id, old.etag));
        }
        let shared = page.clone();
        let load = async { Ok::<_, std::convert::Infallible>(shared) };
        // A budget without room means that the page is not kept, not that it cannot be used.
        let _ = self.pages.get(&(id, etag.clone()), weight, load).await;
        Held { page, etag, date_ms }
    }

    fn remember(&self, id: PageId, head: Head) {
        let mut heads = lock(&self.heads);
        if heads.len() >= HEADS_MAX && !heads.contains_key(&id) {
            // With a consistent object store a forgotten version costs a request, nothing else.
            heads.clear();
        }
        match heads.get_mut(&id) {
            // A slow answer must not undo a newer one.
            Some(old) if old.version > head.version => {}
            Some(old) => *old = head,
            None => {
                heads.insert(id, head);
            }
        }
    }

    /// Puts `page`, whose header is complete, under `condition`, and finds out what came of it.
    async fn put(&self, page: &Page, condition: PutIf) -> Result<Outcome, StoreError> {
        let object = page.id.object();
        let bytes = page.encode();
        let rules = self.settings.rules;
        let mut attempts = Attempts::new(&self.cloud, &self.settings);
        let mut is_unclear = false;
        loop {
            let fault =
                match self.cloud.objects.put(&object, bytes.clone(), condition.clone()).await {
                    Put::Stored(etag) => return Ok(Outcome::Done(etag)),
                    // An earlier attempt of ours may be what is in the way.
                    Put::Refused | Put::Missing if is_unclear && rules.hold(Rule::ReadBack) => {
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
                        if !rules.hold(Rule::ReadBack) {
                            // What a client does that takes silence for success.
                            return Ok(Outcome::Done(ETag::new("\"unknown\"")));
                        }
                        if let Some(etag) = self.is_ours(page).await? {
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
                Freshness::Cached => self.is_young(&head),
                // Asked after we were: as new as our own request would be.
                Freshness::Newest => head.checked_us > asked_us,
                Freshness::After(us) => head.checked_us > us,
            };
            self.resident(id, &head).filter(|_| is_fresh)
        };
        let asked_us = self.cloud.clock.monotonic_us();
        if let Some(held) = fresh(asked_us) {
            bump(&self.counters.hits);
            return Ok(Some(held));
        }
        loop {
            let (flight, is_ours) = self.flight(id);
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

    fn shared(&self) -> Arc<dyn Nodes> {
        Arc::new(self.clone())
    }

    async fn create(&self, mut page: Page) -> Result<Swap, StoreError> {
        page.version = 1;
        page.write_id = self.cloud.chance.next_u128();
        page.checkpoint_ms = self.date_ms();
        let asked_us = self.cloud.clock.monotonic_us();
        match self.put(&page, PutIf::Absent).await? {
            Outcome::Done(etag) => {
                let date_ms = page.checkpoint_ms;
                self.keep(page, etag, asked_us, date_ms).await;
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
        match self.put(&page, condition).await? {
            Outcome::Done(etag) => {
                bump(&self.counters.puts);
                let date_ms = page.checkpoint_ms;
                self.keep(page, etag, asked_us, date_ms).await;
                Ok(Swap::Done)
            }
            outcome => {
                bump(&self.counters.puts_lost);
                self.expire(page.id);
                Ok(if let Outcome::Lost = outcome { Swap::Lost } else { Swap::Unclear })
            }
        }
    }

    async fn discard(&self, id: PageId) {
        let Some(head) = self.head(id) else { return };
        if let Delete::Gone = self.cloud.objects.delete(&id.object(), Some(&head.etag)).await {
            self.pages.remove(&(id, head.etag));
            lock(&self.heads).remove(&id);
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

    /// Nobody waits for it: it is not in the way of the next one, and keeps nothing.
    #[test]
    fn a_fetch_that_is_given_up_leaves_nothing() {
        let pool = Pool::new(&Budget::new(1 << 20), policy::default_eviction());
        let cloud = embedded::memory(Arc::new(Memory::new()));
        let pages = PageManager::new(cloud, Settings::default(), &pool).unwrap();
        let (first, is_new) = pages.flight(PageId(1));
        let (second, is_other) = pages.flight(PageId(1));
        assert_eq!((is_new, is_other), (true, false));
        drop(first);
        assert_eq!(lock(&pages.flights).len(), 1);
        drop(second);
        assert_eq!(lock(&pages.flights).len(), 0);
    }

    /// Or a read would be refused what only work in the background may not spend any more.
    #[tokio::test]
    async fn a_fetch_is_charged_to_who_began_it() {
        let pool = Pool::new(&Budget::new(1 << 20), policy::default_eviction());
        let cloud = embedded::memory(Arc::new(Memory::new()));
        let metered = Metered::new(cloud.objects.clone(), Ledger::new());
        let cloud = Cloud { objects: Arc::new(metered), ..cloud };
        let pages = PageManager::new(cloud, Settings::default(), &pool).unwrap();
        let [first, second] = [Ledger::new(), Ledger::new()];
        let (flight, _) = charged_to(&first, async { pages.flight(PageId(1)) }).await;
        assert!(charged_to(&second, flight).await.unwrap().is_none());
        assert_eq!([first, second].map(|account| account.charge(CallKind::Get).calls), [1, 0]);
    }

    /// The store's time went ahead only: one answer from the future, or a clock of ours that runs
    /// fast, was believed for the life of the process.
    #[test]
    fn the_time_of_the_store_is_set_right_in_both_directions() {
        let pool = Pool::new(&Budget::new(1 << 20), policy::default_eviction());
        let cloud = embedded::memory(Arc::new(Memory::new()));
        let pages = PageManager::new(cloud.clone(), Settings::default(), &pool).unwrap();
        let hour_ms = 3_600_000;
        let date_ms = 1_763_690_400_000;
        let now_us = cloud.clock.monotonic_us();
        let is_about = |ms: u64| (ms..ms + hour_ms / 2).contains(&pages.date_ms());
        pages.saw_date(0, now_us);
        assert_eq!(pages.date_ms(), 0, "an answer without a date");
        pages.saw_date(date_ms, now_us);
        assert!(is_about(date_ms), "{}", pages.date_ms());
        pages.saw_date(date_ms + hour_ms, now_us);
        assert!(is_about(date_ms + hour_ms), "{}", pages.date_ms());
        pages.saw_date(date_ms, now_us);
        assert!(is_about(date_ms), "{}", pages.date_ms());
        // Whole seconds: the end of one is not set back to its beginning.
        pages.saw_date(date_ms + 900, now_us);
        let before = pages.date_ms();
        pages.saw_date(date_ms, now_us);
        assert!(pages.date_ms() >= before);
    }
}
