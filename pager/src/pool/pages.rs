//! The typed pool: values by key, loaded once however many ask, pinned while they are used.

use std::{future::Future, hash::Hash, ops::Deref};

use dashmap::{DashMap, Entry};
use tokio::sync::OnceCell;

use super::{Evictable, Pool, Tenancy, Tenant};
use crate::{
    budget::{Budget, Reservation},
    sync::{Arc, AtomicBool, AtomicU32, AtomicU64, Ordering},
};

/// Values of type `V` under keys `K`, in a [`Pool`] and so under its budget and policy.
///
/// A value is loaded by the first who asks; those who ask meanwhile wait for the same load. While a
/// [`Page`] is alive its value stays. Cheap to clone.
pub struct Pages<K: Clone + Eq + Hash, V>(Arc<Inner<K, V>>);

struct Inner<K: Clone + Eq + Hash, V> {
    table: Arc<Table<K, V>>,
    tenancy: Tenancy,
}

/// What the pool holds as its tenant.
struct Table<K, V> {
    slots: DashMap<K, Arc<Slot<V>>>,
    keys: DashMap<u64, K>,
    next_id: AtomicU64,
    tenancy: OnceCell<Tenancy>,
    /// Bytes of the values that are resident.
    bytes: AtomicU64,
    /// Values given up to make room.
    evicted: AtomicU64,
    /// Nobody can ask any more: what is unpinned leaves at once.
    closed: AtomicBool,
}

struct Slot<V> {
    id: u64,
    /// Bytes, as the first who asked said: what is reserved and what a pin counts.
    weight: u64,
    /// Rises under the exclusive lock of the slot's shard, so that pins and an eviction exclude each other.
    /// It falls without: whoever finds it 0 under that lock knows that nobody has the value.
    pins: AtomicU32,
    touched: AtomicBool,
    value: OnceCell<Loaded<V>>,
}

struct Loaded<V> {
    value: V,
    reservation: Arc<Reservation>,
}

impl<V> Loaded<V> {
    fn new(value: V, reservation: Reservation) -> Loaded<V> {
        Loaded { value, reservation: Arc::new(reservation) }
    }

    fn is_shared(&self) -> bool {
        Arc::strong_count(&self.reservation) > 1
    }
}

/// A share in the bytes of a value beyond what pins may hold: see [`Pages::share`].
pub struct Share {
    of: Option<Arc<Reservation>>,
    budget: Budget,
}

impl Drop for Share {
    fn drop(&mut self) {
        drop(self.of.take());
        // It may be evicted now.
        self.budget.nudge();
    }
}

/// Why a page could not be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageError<E> {
    /// The loader failed. The next who asks tries again.
    #[error(transparent)]
    Load(E),
    /// The budget has no room that could be freed: too much is pinned or on its way.
    #[error("the budget has no room for {weight} more bytes: drop pages or raise it")]
    Full {
        /// The bytes that were wanted.
        weight: u64,
    },
    /// Pins may hold half of the budget, and this page would exceed that.
    #[error("{weight} more bytes cannot be pinned: drop pages or raise the budget")]
    PinLimit {
        /// The bytes that were wanted.
        weight: u64,
    },
}

impl<K: Clone + Eq + Hash, V> Clone for Pages<K, V> {
    fn clone(&self) -> Self {
        Pages(self.0.clone())
    }
}

impl<K, V> Pages<K, V>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    /// An empty set of pages in `pool`. `None` when the pool has 65,536 tenants already.
    pub fn new(pool: &Pool) -> Option<Pages<K, V>> {
        let table = Arc::new(Table {
            slots: DashMap::new(),
            keys: DashMap::new(),
            next_id: AtomicU64::new(0),
            tenancy: OnceCell::new(),
            bytes: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        });
        let tenant: Arc<dyn Tenant> = table.clone();
        let tenancy = pool.join(Arc::downgrade(&tenant))?;
        let second = Tenancy { pool: tenancy.pool.clone(), id: tenancy.id };
        assert!(table.tenancy.set(second).is_ok(), "set once, here");
        Some(Pages(Arc::new(Inner { table, tenancy })))
    }

    /// The value under `key`, pinned; `load` makes it, of at most `weight` bytes, if it is absent.
    ///
    /// # Errors
    /// The loader's error, or that the budget has no room. Never waits for room.
    pub async fn get<E>(
        &self,
        key: &K,
        weight: u64,
        load: impl Future<Output = Result<V, E>>,
    ) -> Result<Page<K, V>, PageError<E>> {
        let weight = weight.max(1);
        let page = self.pin(key, weight).ok_or(PageError::PinLimit { weight })?;
        page.slot
            .value
            .get_or_try_init(|| async {
                let (pool, weight) = (self.0.tenancy.pool(), page.slot.weight);
                let reservation = pool.reserve(weight).ok_or(PageError::Full { weight })?;
                let value = load.await.map_err(PageError::Load)?;
                self.0.table.bytes.fetch_add(weight, Ordering::Relaxed);
                self.0.tenancy.installed(page.slot.id, weight, true);
                Ok(Loaded::new(value, reservation))
            })
            .await?;
        Ok(page)
    }

    /// The value under `key`, pinned, if it is resident and the pin limit allows.
    pub fn get_resident(&self, key: &K) -> Option<Page<K, V>> {
        let table = &self.0.table;
        self.at_pin_limit(|| {
            let slot = table.slots.get_mut(key)?;
            slot.value.get()?;
            let pinned = slot.raise_pin(self.budget());
            Some(pinned.then(|| Page { table: table.clone(), slot: slot.clone() }))
        })?
    }

    /// A copy of the value under `key`, if it is resident, and a share in its bytes: they stay reserved,
    /// and the value is no victim, as long as anybody has one. It is no pin and has no limit, so it is
    /// for moments, in which nothing is waited for that others have to give up.
    pub fn share(&self, key: &K) -> Option<(V, Share)>
    where
        V: Clone,
    {
        // Its shard is held until the share is there: nobody evicts it before.
        let slot = self.0.table.slots.get(key)?;
        let loaded = slot.value.get()?;
        slot.touched.store(true, Ordering::Relaxed);
        Some((loaded.value.clone(), self.share_of(loaded)))
    }

    fn share_of(&self, loaded: &Loaded<V>) -> Share {
        Share { of: Some(loaded.reservation.clone()), budget: self.budget().clone() }
    }

    /// Whether a value is resident under `key`.
    pub fn has(&self, key: &K) -> bool {
        self.0.table.slots.get(key).is_some_and(|slot| slot.value.get().is_some())
    }

    /// Keeps `value` under `key`, pinned: its bytes are `reservation`, which is of the pool's budget.
    ///
    /// # Errors
    /// Gives both back when there is a value under `key`, or one is being loaded, and when pins hold as
    /// much as they may.
    pub fn insert(
        &self,
        key: &K,
        value: V,
        reservation: Reservation,
    ) -> Result<Page<K, V>, (V, Reservation)> {
        let (table, budget) = (&self.0.table, self.budget());
        let weight = reservation.bytes();
        let pin = || Some(budget.try_pin_at_once(weight).then_some(()));
        // Without a lock of the table: see `at_pin_limit`.
        if weight == 0 || self.at_pin_limit(pin).flatten().is_none() {
            return Err((value, reservation));
        }
        let id = table.next_id.fetch_add(1, Ordering::Relaxed);
        let slot = match table.slots.entry(key.clone()) {
            Entry::Occupied(there) => {
                drop(there);
                budget.unpin(weight);
                return Err((value, reservation));
            }
            Entry::Vacant(place) => {
                table.keys.insert(id, key.clone());
                let loaded = Loaded::new(value, reservation);
                let (pins, touched) = (AtomicU32::new(1), AtomicBool::new(true));
                let value = OnceCell::new_with(Some(loaded));
                let slot = Arc::new(Slot { id, weight, pins, touched, value });
                place.insert(slot.clone());
                slot
            }
        };
        table.bytes.fetch_add(weight, Ordering::Relaxed);
        // Pinned since it is there, so that nobody can have evicted it.
        self.0.tenancy.installed(id, weight, true);
        Ok(Page { table: table.clone(), slot })
    }

    /// The same, pinned by nobody: it may leave once its share is gone. See [`Pages::share`].
    ///
    /// # Errors
    /// Gives both back when there is a value under `key`, or one is being loaded.
    pub fn keep(
        &self,
        key: &K,
        value: V,
        reservation: Reservation,
    ) -> Result<Share, (V, Reservation)> {
        let table = &self.0.table;
        let weight = reservation.bytes();
        let id = table.next_id.fetch_add(1, Ordering::Relaxed);
        // The policy hears of it first, and not of one that is gone already; while it is not there it
        // cannot be evicted.
        self.0.tenancy.installed_for_a_share(id, weight.max(1));
        let outcome = match table.slots.entry(key.clone()) {
            Entry::Occupied(_) => Err((value, reservation)),
            Entry::Vacant(place) => {
                table.keys.insert(id, key.clone());
                table.bytes.fetch_add(weight, Ordering::Relaxed);
                let loaded = Loaded::new(value, reservation);
                let share = self.share_of(&loaded);
                let (pins, touched) = (AtomicU32::new(0), AtomicBool::new(false));
                let value = OnceCell::new_with(Some(loaded));
                place.insert(Arc::new(Slot { id, weight, pins, touched, value }));
                Ok(share)
            }
        };
        if outcome.is_err() {
            self.0.tenancy.removed(id);
        }
        outcome
    }

    /// Tells the policy that what is resident under `key` was asked for again and again: as a value that takes,
    /// under a key of its own, the place of one that was.
    pub fn warm(&self, key: &K) {
        let Some(id) = self.0.table.slots.get(key).map(|slot| slot.id) else { return };
        // More than once: what was asked for once is what a scan leaves behind.
        for _ in 0..2 {
            self.0.tenancy.touched(id);
        }
    }

    /// Bytes of the values that are resident, as whoever loaded them said.
    pub fn bytes(&self) -> u64 {
        self.0.table.bytes.load(Ordering::Relaxed)
    }

    /// Values that were given up to make room, so far.
    pub fn evicted(&self) -> u64 {
        self.0.table.evicted.load(Ordering::Relaxed)
    }

    /// Forgets the value under `key` unless it is pinned. Returns whether it is gone.
    pub fn remove(&self, key: &K) -> bool {
        let id = match self.0.table.slots.get(key) {
            Some(slot) => slot.id,
            None => return true,
        };
        self.0.table.evict_idle(id)
    }

    /// Number of keys resident or being loaded.
    pub fn len(&self) -> usize {
        self.0.table.slots.len()
    }

    /// Whether nothing is resident or being loaded.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn pin(&self, key: &K, weight: u64) -> Option<Page<K, V>> {
        let table = &self.0.table;
        let page = self.at_pin_limit(|| {
            let slot = table.slots.entry(key.clone()).or_insert_with(|| {
                let id = table.next_id.fetch_add(1, Ordering::Relaxed);
                table.keys.insert(id, key.clone());
                Arc::new(Slot {
                    id,
                    weight,
                    pins: AtomicU32::new(0),
                    touched: AtomicBool::new(false),
                    value: OnceCell::new(),
                })
            });
            let pinned = slot.raise_pin(self.budget());
            Some(pinned.then(|| Page { table: table.clone(), slot: slot.clone() }))
        });
        if page.as_ref().is_none_or(Option::is_none) {
            table.forget_if_empty(key);
        }
        page?
    }

    fn budget(&self) -> &Budget {
        self.0.tenancy.pool().budget()
    }

    /// `pin`, and once more if it finds the pin limit reached (`Some(None)`), after everybody gave back
    /// what is not pinned any more. For that each pool is asked under its lock, and who holds that lock
    /// looks for victims in the shards here: so no shard is held meanwhile.
    fn at_pin_limit<T>(&self, pin: impl Fn() -> Option<Option<T>>) -> Option<Option<T>> {
        match pin() {
            Some(None) => {
                self.budget().release_idle_pins();
                pin()
            }
            done => done,
        }
    }
}

impl<V> Slot<V> {
    /// Called with the slot's shard locked exclusively.
    fn raise_pin(&self, budget: &Budget) -> bool {
        // Who drops the last page meanwhile takes no lock: its pin is not counted any more.
        let one_more = |pins: u32| (pins > 0).then(|| pins + 1);
        if self.pins.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_more).is_err() {
            if !budget.try_pin_at_once(self.weight) {
                return false;
            }
            self.pins.store(1, Ordering::SeqCst);
        }
        self.touched.store(true, Ordering::Relaxed);
        true
    }
}

impl<K: Clone + Eq + Hash, V> Table<K, V> {
    /// Forgets a loaded value that nobody has pinned, and tells the policy.
    fn evict_idle(&self, entry: u64) -> bool {
        let Some(key) = self.keys.get(&entry).map(|key| key.clone()) else { return false };
        let idle = |slot: &Arc<Slot<V>>| {
            slot.id == entry && slot.pins.load(Ordering::SeqCst) == 0 && slot.value.get().is_some()
        };
        let Some((_, slot)) = self.slots.remove_if(&key, |_, slot| idle(slot)) else {
            return false;
        };
        self.keys.remove(&entry);
        self.bytes.fetch_sub(slot.weight, Ordering::Relaxed);
        self.tenancy.get().expect("set before the first page").removed(slot.id);
        true
    }

    /// Drops a slot that nobody holds and whose load never succeeded.
    fn forget_if_empty(&self, key: &K) {
        let empty = |slot: &Arc<Slot<V>>| {
            slot.pins.load(Ordering::SeqCst) == 0 && slot.value.get().is_none()
        };
        if let Some((_, slot)) = self.slots.remove_if(key, |_, slot| empty(slot)) {
            self.keys.remove(&slot.id);
        }
    }
}

impl<K, V> Tenant for Table<K, V>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    fn evictable(&self, entry: u64) -> Evictable {
        let Some(key) = self.keys.get(&entry).map(|key| key.clone()) else { return Evictable::No };
        let Some(slot) = self.slots.get(&key) else { return Evictable::No };
        let may_go = slot.value.get().is_some_and(|loaded| !loaded.is_shared());
        if slot.pins.load(Ordering::SeqCst) > 0 || !may_go {
            Evictable::No
        } else if slot.touched.swap(false, Ordering::Relaxed) {
            Evictable::Touched
        } else {
            Evictable::Yes
        }
    }

    fn evict(&self, entry: u64) -> bool {
        let is_gone = self.evict_idle(entry);
        self.evicted.fetch_add(u64::from(is_gone), Ordering::Relaxed);
        is_gone
    }
}

impl<K: Clone + Eq + Hash, V> Drop for Inner<K, V> {
    fn drop(&mut self) {
        // Pages hold the table but not this: what is pinned goes when its page does.
        self.table.closed.store(true, Ordering::SeqCst);
        let ids: Vec<u64> = self.table.slots.iter().map(|slot| slot.id).collect();
        for id in ids {
            self.table.evict_idle(id);
        }
    }
}

/// A pinned value. Its bytes stay reserved and it is not evicted while this is alive.
pub struct Page<K: Clone + Eq + Hash, V> {
    table: Arc<Table<K, V>>,
    slot: Arc<Slot<V>>,
}

impl<K: Clone + Eq + Hash, V> Deref for Page<K, V> {
    type Target = V;

    fn deref(&self) -> &V {
        &self.slot.value.get().expect("a page is handed out when its value is there").value
    }
}

impl<K: Clone + Eq + Hash, V> Drop for Page<K, V> {
    fn drop(&mut self) {
        if self.slot.pins.fetch_sub(1, Ordering::SeqCst) > 1 {
            return;
        }
        let budget = self.table.tenancy.get().expect("set before the first page").pool.budget();
        // Runs wakers, which may ask for this very page: no shard is held.
        budget.unpin(self.slot.weight);
        // Most pages have a value, and it is none of them that is forgotten.
        if self.slot.value.get().is_none() {
            let key = self.table.keys.get(&self.slot.id).map(|key| key.clone());
            key.into_iter().for_each(|key| self.table.forget_if_empty(&key));
        }
        if self.table.closed.load(Ordering::SeqCst) {
            self.table.evict_idle(self.slot.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, time::Duration};

    use super::*;
    use crate::policy::eviction::EvictionPolicy;

    /// First in, first out: enough for these tests, which are about the pool.
    #[derive(Default)]
    struct Fifo(std::collections::VecDeque<u64>);

    impl EvictionPolicy for Fifo {
        fn installed(&mut self, key: u64, _: u64, _: bool) {
            self.0.push_back(key);
        }
        fn touched(&mut self, _: u64) {}
        fn removed(&mut self, key: u64) {
            self.0.retain(|&k| k != key);
        }
        fn victim(&mut self, can_evict: &dyn Fn(u64) -> bool) -> Option<u64> {
            self.0.iter().copied().find(|&key| can_evict(key))
        }
        fn len(&self) -> usize {
            self.0.len()
        }
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
    }

    #[test]
    fn one_load_serves_all_who_wait_and_pages_leave_under_pressure() {
        let budget = Budget::new(100);
        let pool = Pool::new(&budget, Box::new(Fifo::default()));
        let pages: Pages<u32, String> = Pages::new(&pool).unwrap();
        runtime().block_on(async {
            let loads = AtomicU32::new(0);
            let get = || {
                pages.get(&7, 10, async {
                    loads.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    Ok::<_, Infallible>("seven".to_owned())
                })
            };
            let (a, b) = futures::join!(get(), get());
            assert!(**a.as_ref().unwrap() == "seven" && **b.as_ref().unwrap() == "seven");
            assert_eq!(loads.load(Ordering::Relaxed), 1);
            drop((a, b));
            for key in 100..140 {
                let page = pages.get(&key, 10, async { Ok::<_, Infallible>(key.to_string()) });
                assert_eq!(*page.await.unwrap(), key.to_string());
                assert!(budget.used() <= 100);
            }
            assert_eq!(pages.len(), 10);
            assert!(pages.get_resident(&7).is_none() && pages.get_resident(&139).is_some());
        });
        assert_eq!(budget.pinned(), 0);
        drop(pages);
        assert_eq!((budget.used(), pool.len()), (0, 0));
    }

    #[test]
    fn a_failed_load_leaves_nothing_behind_and_pins_have_a_limit() {
        let budget = Budget::new(100);
        let pool = Pool::new(&budget, Box::new(Fifo::default()));
        let pages: Pages<u32, u32> = Pages::new(&pool).unwrap();
        runtime().block_on(async {
            let failed = pages.get(&1, 10, async { Err::<u32, _>("no") }).await;
            assert_eq!(failed.err(), Some(PageError::Load("no")));
            assert_eq!((pages.len(), budget.used(), budget.pinned()), (0, 0, 0));
            let held = pages.get(&2, 50, async { Ok::<_, &str>(2) }).await.unwrap();
            let refused = pages.get(&3, 1, async { Ok::<_, &str>(3) }).await;
            assert_eq!(refused.err(), Some(PageError::PinLimit { weight: 1 }));
            assert_eq!(*held, 2);
        });
        assert_eq!((pages.len(), budget.pinned()), (1, 0));
    }

    /// Says that it looks for a victim, with the pool locked, and looks a while after.
    struct Slow(Fifo, std::sync::mpsc::Sender<()>);

    impl EvictionPolicy for Slow {
        fn installed(&mut self, key: u64, weight: u64, speculative: bool) {
            self.0.installed(key, weight, speculative);
        }
        fn touched(&mut self, key: u64) {
            self.0.touched(key);
        }
        fn removed(&mut self, key: u64) {
            self.0.removed(key);
        }
        fn victim(&mut self, can_evict: &dyn Fn(u64) -> bool) -> Option<u64> {
            let _ = self.1.send(());
            std::thread::sleep(Duration::from_millis(100));
            self.0.victim(can_evict)
        }
        fn len(&self) -> usize {
            self.0.len()
        }
    }

    #[test]
    fn a_pin_at_the_limit_waits_for_nobody_who_looks_for_victims() {
        let (looks, looked) = std::sync::mpsc::channel();
        let budget = Budget::new(400);
        let pool = Pool::new(&budget, Box::new(Slow(Fifo::default(), looks)));
        let pages: Pages<u32, u32> = Pages::new(&pool).unwrap();
        let (ended, ends) = std::sync::mpsc::channel();
        runtime().block_on(async {
            for key in 0..10 {
                pages.get(&key, 20, async { Ok::<_, Infallible>(key) }).await.unwrap();
            }
        });
        let held = runtime()
            .block_on(pages.get(&10, 200, async { Ok::<_, Infallible>(10) }))
            .expect("half of the budget");
        // Who wants room has the pool's lock, and looks at page 0 in a moment.
        let room = (pool.clone(), ended.clone());
        std::thread::spawn(move || {
            let _ = room.1.send(room.0.reserve(20).is_some());
        });
        looked.recv_timeout(Duration::from_secs(10)).expect("looks for a victim");
        let wanted = pages.clone();
        std::thread::spawn(move || {
            let _ = ended.send(wanted.get_resident(&0).is_none());
        });
        for _ in 0..2 {
            let end = ends.recv_timeout(Duration::from_secs(10));
            assert_eq!(end, Ok(true), "the pin waits for the pool, and the pool for the pin");
        }
        drop(held);
    }

    #[test]
    fn what_is_put_in_counts_as_what_was_reserved_for_it() {
        let budget = Budget::new(100);
        let pool = Pool::new(&budget, Box::new(Fifo::default()));
        let pages: Pages<u32, u32> = Pages::new(&pool).unwrap();
        let insert = |key, bytes| {
            pages.insert(&key, key, pool.reserve(bytes).unwrap()).map_err(|(_, room)| room.bytes())
        };
        let held = insert(1, 40).ok().unwrap();
        let there = |key| pages.share(&key).map(|(value, _)| value);
        assert_eq!((*held, there(1), pages.bytes()), (1, Some(1), 40));
        assert_eq!(insert(1, 10).err(), Some(10), "there is one");
        assert_eq!(insert(2, 20).err(), Some(20), "pins hold half of the budget at most");
        assert_eq!((budget.pinned(), budget.used(), there(2)), (40, 40, None));
        drop(held);
        for key in 10..20 {
            drop(insert(key, 30).ok().unwrap());
        }
        assert_eq!((pages.bytes(), pages.evicted(), budget.used()), (90, 8, 90));
        assert_eq!(
            pages.keep(&19, 7, pool.reserve(1).unwrap()).err().map(|(_, room)| room.bytes()),
            Some(1)
        );
        assert!(pages.keep(&30, 30, pool.reserve(10).unwrap()).is_ok());
        assert_eq!((there(30), budget.pinned(), budget.used(), pool.len()), (Some(30), 0, 100, 4));
        assert!(pages.remove(&30) && pages.remove(&19));
        assert_eq!((pages.bytes(), pages.evicted(), budget.pinned()), (60, 8, 0));
        drop(pages);
        assert_eq!((budget.used(), pool.len()), (0, 0));
    }

    #[test]
    fn what_is_shared_past_the_pins_is_no_victim_and_counts_until_it_is_let_go_of() {
        let budget = Budget::new(100);
        let pool = Pool::new(&budget, Box::new(Fifo::default()));
        let pages: Pages<u32, u32> = Pages::new(&pool).unwrap();
        let held = pages.insert(&1, 1, pool.reserve(50).unwrap()).ok();
        assert!(held.is_some(), "half of it");
        // It weighs more than half of what is left.
        let share = pages.keep(&2, 2, pool.reserve(40).unwrap()).ok().unwrap();
        assert!(pages.get_resident(&2).is_none(), "pins hold as much as they may");
        let (value, second) = pages.share(&2).unwrap();
        assert_eq!((value, budget.used(), budget.pinned()), (2, 90, 50));
        drop(share);
        assert!(pool.reserve(11).is_none() && pages.has(&2), "somebody reads it");
        drop(second);
        drop(pool.reserve(11).unwrap());
        assert!(!pages.has(&2));
        // What is removed while it is read counts for as long.
        let share = pages.keep(&3, 3, pool.reserve(40).unwrap()).ok().unwrap();
        assert!(pages.remove(&3) && !pages.has(&3));
        assert_eq!((budget.used(), pages.bytes()), (90, 50));
        drop((share, held));
        assert_eq!(budget.used(), 50);
        let share = pages.keep(&4, 4, pool.reserve(40).unwrap()).ok().unwrap();
        drop(pages);
        assert_eq!((budget.used(), pool.len()), (40, 0));
        drop(share);
        assert_eq!(budget.used(), 0);
    }

    /// Pins fall without a lock, and rise under one: by many threads, what is counted is what is pinned,
    /// and nothing is evicted that somebody has.
    #[test]
    fn pins_of_many_threads_add_up() {
        let budget = Budget::new(1000);
        let pool = Pool::new(&budget, Box::new(Fifo::default()));
        let pages: Pages<u32, u32> = Pages::new(&pool).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (pages, pool, budget) = (&pages, &pool, &budget);
                scope.spawn(move || {
                    for n in 0..20_000_u32 {
                        let key = (n + thread) % 3;
                        let page = match pages.get_resident(&key) {
                            Some(page) => page,
                            None => match pool.reserve(400) {
                                Some(room) => match pages.insert(&key, key, room) {
                                    Ok(page) => page,
                                    Err(_) => continue,
                                },
                                None => continue,
                            },
                        };
                        let other = pages.get_resident(&key);
                        assert!(pages.has(&key) && *page == key && budget.pinned() >= 400);
                        assert!(other.is_none_or(|other| *other == key));
                        assert!(budget.pinned() <= 500 && budget.used() <= 1000);
                    }
                });
            }
        });
        assert_eq!(budget.pinned(), 0);
        drop(pages);
        assert_eq!((budget.used(), pool.len()), (0, 0));
    }
}
