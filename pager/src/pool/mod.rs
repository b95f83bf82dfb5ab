//! A pool of weighted entries under a budget: what regions and a database's pages share.
//!
//! ```text
//!   reserve(bytes) --> free bytes? --> Reservation
//!        |  no
//!        v
//!   policy names a victim --> its tenant gives it up --> bytes come back --> again
//!        |  none left
//!        v
//!   the other pools of the same budget give something up --> again, or None
//! ```
//!
//! A [`Pool`] holds no bytes and no values: it knows keys, weights and an [`EvictionPolicy`]. The
//! bytes belong to *tenants*: a region of a pager, or [`Pages`], the typed pool that a database
//! keeps its pages in.

mod pages;

pub use pages::{Page, Pages, Share};

use std::cell::RefCell;

use crate::{
    budget::{Budget, Reclaim, Reservation},
    policy::EvictionPolicy,
    sync::{Arc, AtomicU64, Mutex, Ordering, Weak, lock},
};

/// Bits of a key that name the entry within its tenant; the rest names the tenant.
const ENTRY_BITS: u32 = 48;

/// Tenants that a pool can have at a time.
const TENANTS_MAX: usize = 1 << (64 - ENTRY_BITS);

/// Who owns entries of a pool.
///
/// A tenant removes all its entries from the policy (see [`Tenancy::removed`]) before it goes away;
/// dropping it must not call the pool, because the pool may be the last to hold it.
pub trait Tenant: Send + Sync {
    /// Whether `entry` could be given up now. Called with the policy locked: must not call the
    /// pool, block, or do I/O.
    fn evictable(&self, entry: u64) -> Evictable;

    /// Gives `entry` up: calls [`Tenancy::removed`] and lets its bytes go. Returns false, and
    /// changes nothing, if it has been pinned since.
    fn evict(&self, entry: u64) -> bool;

    /// Gives back what is counted as pinned and is not. A tenant that keeps such counts, to make
    /// the next pin cheap, is asked when the limit is reached. By default there are none.
    fn release_idle_pins(&self) {}
}

/// What a tenant says about one of its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evictable {
    /// It may go.
    Yes,
    /// It is pinned, or not resident at the moment.
    No,
    /// It has been used since the pool last asked: the policy should hear of that first.
    Touched,
}

/// Entries of any number of tenants under one policy. Cheap to clone.
#[derive(Clone)]
pub struct Pool(Arc<Shared>);

struct Shared {
    budget: Budget,
    state: Mutex<State>,
    /// Entries given up to make room, since somebody took the number.
    evicted: AtomicU64,
}

struct State {
    policy: Box<dyn EvictionPolicy>,
    tenants: Vec<Weak<dyn Tenant>>,
}

/// A tenant's place in its pool.
pub struct Tenancy {
    pool: Pool,
    id: u64,
}

impl Pool {
    /// A pool under `budget` that evicts by `policy`.
    pub fn new(budget: &Budget, policy: Box<dyn EvictionPolicy>) -> Pool {
        let state = State { policy, tenants: Vec::new() };
        let (budget, state) = (budget.clone(), Mutex::new(state));
        let shared = Arc::new(Shared { budget, state, evicted: AtomicU64::new(0) });
        let reclaim: Arc<dyn Reclaim> = shared.clone();
        shared.budget.join(Arc::downgrade(&reclaim));
        Pool(shared)
    }

    /// Entries given up to make room, since this was asked last.
    pub(crate) fn take_evicted(&self) -> u64 {
        self.0.evicted.swap(0, Ordering::Relaxed)
    }

    /// The budget that this pool takes from.
    pub fn budget(&self) -> &Budget {
        &self.0.budget
    }

    /// Entries that are resident now.
    pub fn len(&self) -> usize {
        lock(&self.0.state).policy.len()
    }

    /// Whether no entry is resident.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Gives a tenant its place. `None` when 65,536 tenants are alive already.
    pub fn join(&self, tenant: Weak<dyn Tenant>) -> Option<Tenancy> {
        let mut state = lock(&self.0.state);
        let vacant = state.tenants.iter().position(|tenant| tenant.strong_count() == 0);
        let id = match vacant {
            Some(id) => {
                state.tenants[id] = tenant;
                id
            }
            None if state.tenants.len() < TENANTS_MAX => {
                state.tenants.push(tenant);
                state.tenants.len() - 1
            }
            None => return None,
        };
        Some(Tenancy { pool: self.clone(), id: id as u64 })
    }

    /// Reserves `bytes` bytes, evicting as needed; `None` when too much is pinned or on its way.
    pub fn reserve(&self, bytes: u64) -> Option<Reservation> {
        if bytes > self.0.budget.limit() {
            return None;
        }
        loop {
            if let Some(reservation) = self.0.budget.try_reserve(bytes) {
                return Some(reservation);
            }
            if self.0.budget.reclaim_idle(bytes) > 0 || self.make_room(bytes) {
                continue;
            }
            // Somebody may have released bytes while this thread looked for victims.
            return self.0.budget.try_reserve(bytes);
        }
    }

    /// Evicts something, of this pool or else about `bytes` bytes of others. False if nothing may be
    /// evicted.
    pub(crate) fn make_room(&self, bytes: u64) -> bool {
        let me: *const () = Arc::as_ptr(&self.0).cast();
        self.0.evict_one() || self.0.budget.reclaim_from_others(me, bytes) > 0
    }
}

impl Shared {
    /// What tells this pool from the others of its budget.
    fn id(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// Evicts one entry; false when there is none to evict.
    fn evict_one(&self) -> bool {
        // An entry that is pinned between the policy's choice and the eviction is passed over; the
        // bound keeps this thread from chasing pins for ever.
        for _ in 0..64 {
            let Some((tenant, entry)) = self.victim() else { return false };
            if tenant.evict(entry) {
                self.evicted.fetch_add(1, Ordering::Relaxed);
                return true;
            }
        }
        false
    }

    fn victim(&self) -> Option<(Arc<dyn Tenant>, u64)> {
        // The policy hears of entries that turn out to be in use, and is then asked again.
        for _ in 0..4 {
            let mut state = lock(&self.state);
            let State { policy, tenants } = &mut *state;
            let latest = self.budget.protected(self.id());
            let touched = RefCell::new(Vec::new());
            let victim = policy.victim(&|key| {
                if latest.contains(&key) {
                    return false;
                }
                match tenant_of(tenants, key).map(|tenant| tenant.evictable(entry_of(key))) {
                    Some(Evictable::Yes) => true,
                    Some(Evictable::Touched) => {
                        touched.borrow_mut().push(key);
                        false
                    }
                    Some(Evictable::No) | None => false,
                }
            });
            let touched = touched.into_inner();
            for &key in &touched {
                policy.touched(key);
            }
            match victim {
                Some(key) => return tenant_of(tenants, key).map(|tenant| (tenant, entry_of(key))),
                None if touched.is_empty() => return None,
                None => {}
            }
        }
        None
    }
}

fn entry_of(key: u64) -> u64 {
    key & ((1 << ENTRY_BITS) - 1)
}

fn tenant_of(tenants: &[Weak<dyn Tenant>], key: u64) -> Option<Arc<dyn Tenant>> {
    tenants.get((key >> ENTRY_BITS) as usize)?.upgrade()
}

impl Reclaim for Shared {
    fn reclaim(&self, bytes: u64) -> u64 {
        let mut evicted = 0;
        while evicted < bytes {
            let before = self.budget.used();
            if !self.evict_one() {
                break;
            }
            // Where units are moved, what leaves stays charged as an idle frame.
            let freed = match before.saturating_sub(self.budget.used()) {
                0 => self.budget.reclaim_idle(bytes - evicted),
                freed => freed,
            };
            // An entry weighs at least a byte; what others reserve meanwhile only ends this later.
            evicted += freed.max(1);
        }
        evicted
    }

    fn release_idle_pins(&self) {
        // Asked without the policy's lock: a tenant takes its own.
        let tenants = lock(&self.state).tenants.clone();
        for tenant in tenants.iter().filter_map(Weak::upgrade) {
            tenant.release_idle_pins();
        }
    }
}

impl Tenancy {
    /// The pool.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    fn key(&self, entry: u64) -> u64 {
        assert!(entry < 1 << ENTRY_BITS, "entry {entry} has more than 48 bits");
        self.id << ENTRY_BITS | entry
    }

    /// Tells the policy that `entry` becomes resident. `demanded`: somebody has asked for it.
    pub fn installed(&self, entry: u64, weight: u64, demanded: bool) {
        let key = self.key(entry);
        let mut state = lock(&self.pool.0.state);
        state.policy.installed(key, weight, !demanded);
        if demanded {
            self.pool.budget().protect(self.pool.0.id(), key, weight);
        }
    }

    /// The same of an entry whose bytes somebody has a share in, so that it need not be among the latest
    /// ones that are no victims: what these and pins keep would leave an eighth of the budget for others.
    fn installed_for_a_share(&self, entry: u64, weight: u64) {
        lock(&self.pool.0.state).policy.installed(self.key(entry), weight, false);
    }

    /// Tells the policy that somebody asked for the resident `entry`.
    pub fn touched(&self, entry: u64) {
        lock(&self.pool.0.state).policy.touched(self.key(entry));
    }

    /// Tells the policy that `entry` left. Called by the tenant, in [`Tenant::evict`] too, before
    /// the entry can be installed again.
    pub fn removed(&self, entry: u64) {
        let key = self.key(entry);
        let mut state = lock(&self.pool.0.state);
        state.policy.removed(key);
        self.pool.budget().unprotect(self.pool.0.id(), key);
    }
}
