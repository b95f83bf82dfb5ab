//! Recycled frames: memory that goes into a region and comes back, and is zeroed only once.
//!
//! ```text
//!              fill             MOVE
//!   idle ----> frame ---------------------> resident in a region
//!    ^  ^        | dropped                       |
//!    |  +--------+                               | evicted: MOVE back
//!    +-------------------------------------------+
//!    | taken back for others
//!    v
//!   hole ----(a fresh page from the nursery is moved in)----> frame
//! ```
//!
//! An arena is a range of slots of one size, registered with the userfaultfd of its regions, because
//! only a registered range may be the target of a MOVE. A slot is handed out only when its pages are
//! there. Who touches a hole all the same, which is the kernel when a program locks its memory, would
//! wait for ever: the fault thread marks the page as poisoned. Every slot that has pages and no holder carries
//! the reservation of its bytes: what is idle counts, and whoever needs bytes can have them.
//!
//! An idle slot keeps what it held (*limbo*). The oldest is used first; until then a unit that was
//! evicted too early comes back without a request. That is the second chance of T. Babaoglu and
//! W. Joy, "Converting a Swap-Based System to do Paging in an Architecture Lacking Page-Referenced
//! Bits", SOSP 1981, section 4.

use std::{
    collections::{HashMap, VecDeque},
    io,
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicUsize, Ordering},
    },
};

use nix::errno::Errno;

use super::{
    FrameMemory, Mapping, PAGE,
    mapping::{HUGE, Pages},
    uffd::Descriptor,
};
use crate::{
    budget::{Reclaim, Reservation},
    frame::{Frame, Home},
    pool::Pool,
};

/// Address space of an arena at most; more memory than that is never in it at a time.
const ARENA_BYTES_MAX: u64 = 1 << 40;

/// A unit of a region, by the numbers that the pager gave them.
pub(crate) type Content = (u64, u64);

/// Recycled frames of one size. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Arena(Arc<Shared>);

struct Shared {
    /// Unmapped before `uffd` is closed.
    slots: Arc<Mapping>,
    slot_bytes: usize,
    /// Where fresh pages come from: not registered, so that a touch brings them.
    nursery: Mutex<Mapping>,
    uffd: Arc<Descriptor>,
    state: Mutex<State>,
    /// Regions that are open.
    users: AtomicUsize,
    pool: Pool,
}

#[derive(Default)]
struct State {
    /// Slots with pages that nobody holds, the oldest first; `None` where one was called back.
    idle: VecDeque<Option<Idle>>,
    /// Number of the first of `idle`, counted from the beginning of time.
    first: u64,
    /// Where in `idle`, in the same count, the bytes of a unit are.
    limbo: HashMap<Content, u64>,
    /// Number of `idle` that are not `None`.
    kept: usize,
    /// Slots without pages that were used before.
    holes: Vec<usize>,
    /// Slots from here on were never used.
    fresh: usize,
}

/// A slot with pages that nobody holds.
pub(super) struct Idle {
    slot: usize,
    charge: Reservation,
    content: Option<Content>,
}

impl Idle {
    /// Bytes that it is charged with.
    pub(super) fn charged(&self) -> u64 {
        self.charge.bytes()
    }
}

impl Arena {
    /// An arena of frames of `slot_bytes` bytes under the budget of `pool`. Commits no memory.
    pub(crate) fn new(slot_bytes: usize, pool: Pool, uffd: Arc<Descriptor>) -> io::Result<Arena> {
        // One more than the budget has room for: a slot is looked for before a page leaves.
        let most = pool.budget().limit().min(ARENA_BYTES_MAX) / slot_bytes as u64 + 1;
        let len = usize::try_from(most)
            .ok()
            .and_then(|slots| slots.checked_mul(slot_bytes))
            .ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let slots = Mapping::reserve(len, HUGE)?;
        let nursery = Mapping::reserve(slot_bytes, slot_bytes.clamp(PAGE, HUGE))?;
        for mapping in [&slots, &nursery] {
            // Shared with a forked child, pages could not be moved.
            mapping.advise(0, mapping.len(), libc::MADV_DONTFORK)?;
            // One huge page moves at the cost of one entry. Kernels without them refuse both, and
            // move 512 small ones.
            let huge = slot_bytes.is_multiple_of(HUGE);
            let advice = if huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
            let _ = mapping.advise(0, mapping.len(), advice);
        }
        uffd.register(slots.addr(), slots.len())?;
        let shared = Arc::new(Shared {
            slots: Arc::new(slots),
            slot_bytes,
            nursery: Mutex::new(nursery),
            uffd,
            state: Mutex::default(),
            users: AtomicUsize::new(0),
            pool,
        });
        let reclaim: Arc<dyn Reclaim> = shared.clone();
        shared.pool.budget().join(Arc::downgrade(&reclaim));
        Ok(Arena(shared))
    }

    /// Addresses of all slots.
    pub(super) fn addrs(&self) -> Range<usize> {
        self.0.slots.addr()..self.0.slots.addr() + self.0.slots.len()
    }

    /// What was idle longest. `None` if nothing is.
    pub(super) fn take_idle(&self) -> Option<Idle> {
        self.0.lock().oldest()
    }

    /// The frame of what was idle, with its charge.
    pub(super) fn frame_of(&self, idle: Idle) -> Frame {
        self.frame(idle.slot, idle.charge, 0)
    }

    /// Puts back what was taken last, in the order in which it was taken, as if it had not been.
    pub(super) fn put_back(&self, taken: Vec<Idle>) {
        let mut state = self.0.lock();
        taken.into_iter().rev().for_each(|idle| state.put_back(idle));
    }

    /// A frame of fresh pages, which are zero, under `charge`. Gives the charge back when the system
    /// has no memory left, with its answer.
    pub(crate) fn take_fresh(
        &self,
        charge: Reservation,
    ) -> Result<Frame, (Reservation, io::Error)> {
        let Some(slot) = self.0.lock().hole(self.0.slots.len() / self.0.slot_bytes) else {
            return Err((charge, io::Error::other("every frame is in use")));
        };
        match self.0.populate(slot) {
            Ok(()) => Ok(self.frame(slot, charge, 0)),
            Err(error) => {
                self.0.empty(slot);
                Err((charge, error))
            }
        }
    }

    /// Makes the system refuse memory for fresh frames, or give it again.
    #[cfg(test)]
    pub(super) fn forbid_fresh(&self, forbid: bool) {
        let nursery = self.0.nursery.lock().unwrap_or_else(PoisonError::into_inner);
        let prot = if forbid { libc::PROT_NONE } else { libc::PROT_READ | libc::PROT_WRITE };
        let start = nursery.base().as_ptr().cast::<libc::c_void>();
        // SAFETY: the range is the arena's own, and nobody holds a reference to its bytes.
        let rc = unsafe { libc::mprotect(start, nursery.len(), prot) };
        assert_eq!(rc, 0, "{}", io::Error::last_os_error());
    }

    /// The bytes of a unit that was evicted and whose frame nobody has used since.
    pub(crate) fn recall(&self, content: Content) -> Option<Frame> {
        self.recall_from(self.0.lock(), content)
    }

    /// [`recall`](Arena::recall) for a thread that must not wait: `None` too while others hold the lock.
    pub(crate) fn try_recall(&self, content: Content) -> Option<Frame> {
        let state = match self.0.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(held)) => held.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        self.recall_from(state, content)
    }

    fn recall_from(&self, mut state: MutexGuard<'_, State>, content: Content) -> Option<Frame> {
        let number = state.limbo.remove(&content)?;
        let at = (number - state.first) as usize;
        let idle = state.idle[at].take().expect("limbo names idle slots");
        state.kept -= 1;
        drop(state);
        Some(self.frame(idle.slot, idle.charge, self.0.slot_bytes))
    }

    /// Those of `units` of `region` that can be called back.
    pub(crate) fn kept_of(&self, region: u64, units: Range<u64>) -> Vec<u64> {
        let state = self.0.lock();
        units.filter(|&unit| state.limbo.contains_key(&(region, unit))).collect()
    }

    /// Whether anything can be called back.
    pub(crate) fn has_limbo(&self) -> bool {
        !self.0.lock().limbo.is_empty()
    }

    /// Takes the pages at `src`, a whole unit of a region, and keeps them with their `charge` as the
    /// bytes of `content`. Gives the charge back if the pages cannot be moved whole: the caller
    /// must discard what is left of them.
    pub(crate) fn keep(
        &self,
        src: usize,
        content: Content,
        charge: Reservation,
    ) -> Result<(), Reservation> {
        let Some(slot) = self.0.lock().hole(self.0.slots.len() / self.0.slot_bytes) else {
            return Err(charge);
        };
        let (dst, len) = (self.0.addr(slot), self.0.slot_bytes);
        for _ in 0..MARKED_MAX {
            // SAFETY: the caller's unit is leaving, so that no reader relies on its bytes; the slot
            // is a hole that nobody holds.
            match unsafe { move_all(&self.0.uffd, dst, src, len) } {
                Ok(()) => {
                    self.0.lock().push(Idle { slot, charge, content: Some(content) });
                    return Ok(());
                }
                Err((0, Errno::EEXIST)) if self.0.clear(slot).is_ok() => {}
                Err(_) => break,
            }
        }
        self.0.empty(slot);
        Err(charge)
    }

    /// A region will use these frames.
    pub(crate) fn enter(&self) {
        self.0.users.fetch_add(1, Ordering::SeqCst);
    }

    /// A region is gone. The last takes what is idle with it.
    pub(crate) fn leave(&self) {
        if self.0.users.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.reclaim(u64::MAX);
        }
    }

    fn frame(&self, slot: usize, charge: Reservation, filled: usize) -> Frame {
        let memory =
            FrameMemory::part(self.0.slots.clone(), slot * self.0.slot_bytes, self.0.slot_bytes);
        Frame::new(memory.with_charge(charge), filled, Some(self.0.clone() as Arc<dyn Home>))
    }
}

impl State {
    /// A slot without pages, of `slots`.
    fn hole(&mut self, slots: usize) -> Option<usize> {
        if let Some(slot) = self.holes.pop() {
            return Some(slot);
        }
        (self.fresh < slots).then(|| {
            self.fresh += 1;
            self.fresh - 1
        })
    }

    fn push(&mut self, idle: Idle) {
        if let Some(content) = idle.content {
            self.limbo.insert(content, self.first + self.idle.len() as u64);
        }
        self.idle.push_back(Some(idle));
        self.kept += 1;
        // What was called back leaves a gap; half of them may be gaps.
        if self.idle.len() > 2 * self.kept + 64 {
            self.idle.retain(Option::is_some);
            let numbered = (self.first..).zip(self.idle.iter().flatten());
            self.limbo = numbered.filter_map(|(n, idle)| Some((idle.content?, n))).collect();
        }
    }

    fn put_back(&mut self, idle: Idle) {
        // Not below zero: it was taken from the front, which counted it.
        self.first -= 1;
        if let Some(content) = idle.content {
            self.limbo.entry(content).or_insert(self.first);
        }
        self.idle.push_front(Some(idle));
        self.kept += 1;
    }

    fn oldest(&mut self) -> Option<Idle> {
        loop {
            let idle = self.idle.pop_front()?;
            self.first += 1;
            if let Some(idle) = idle {
                self.kept -= 1;
                if let Some(content) = idle.content {
                    self.limbo.remove(&content);
                }
                return Some(idle);
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn addr(&self, slot: usize) -> usize {
        self.slots.addr() + slot * self.slot_bytes
    }

    /// Moves fresh pages into `slot`, a hole that nobody else has.
    fn populate(&self, slot: usize) -> io::Result<()> {
        let nursery = self.nursery.lock().unwrap_or_else(PoisonError::into_inner);
        let mut marked = 0;
        loop {
            nursery.advise(0, self.slot_bytes, libc::MADV_POPULATE_WRITE)?;
            // SAFETY: nobody but the holder of the lock knows of the nursery's pages, nor of the
            // slot.
            match unsafe { move_all(&self.uffd, self.addr(slot), nursery.addr(), self.slot_bytes) }
            {
                Ok(()) => return Ok(()),
                Err((_, Errno::EEXIST)) if marked < MARKED_MAX => {
                    marked += 1;
                    self.clear(slot)?;
                }
                Err((_, errno)) => return Err(errno.into()),
            }
        }
    }

    /// Takes away whatever `slot` has: pages, or marks of the kernel's touches.
    fn clear(&self, slot: usize) -> io::Result<()> {
        self.slots.discard(slot * self.slot_bytes, self.slot_bytes)
    }

    /// Takes whatever pages `slot` has away and makes it a hole.
    fn empty(&self, slot: usize) {
        if self.clear(slot).is_ok() {
            self.lock().holes.push(slot);
        }
        // Else its pages stay, uncharged, and it is never used again: this mapping is ours, so the
        // kernel has no reason to refuse.
    }
}

impl Home for Shared {
    fn take_back(&self, mut memory: FrameMemory, _filled: usize) {
        let slot = (memory.addr() - self.slots.addr()) / self.slot_bytes;
        match (memory.pages(), memory.take_charge()) {
            (Pages::Whole, Some(charge)) => {
                self.lock().push(Idle { slot, charge, content: None });
                // Somebody may wait for bytes, and this is as good.
                self.pool.budget().nudge();
            }
            (Pages::Gone, _) => self.lock().holes.push(slot),
            // The charge went with the bytes, which were copied.
            (Pages::Whole | Pages::Torn, _) => self.empty(slot),
        }
    }
}

impl Reclaim for Shared {
    fn reclaim(&self, bytes: u64) -> u64 {
        let mut freed = 0;
        while freed < bytes {
            let Some(idle) = self.lock().oldest() else { break };
            // The memory goes before its charge.
            self.empty(idle.slot);
            freed += idle.charge.bytes();
        }
        freed
    }

    fn reclaim_idle(&self, bytes: u64) -> u64 {
        self.reclaim(bytes)
    }

    fn idle(&self) -> u64 {
        // Some are charged with a page table besides.
        self.lock().kept as u64 * self.slot_bytes as u64
    }
}

/// How often a slot is cleared of marks before a move into it: one for each thread that has the
/// kernel touch all memory just then, and one more.
const MARKED_MAX: u32 = 4;

/// How often a move starts over under contention.
const ATTEMPTS_MAX: u32 = 64;

/// Moves `len` bytes of pages whole; the error says how many had moved.
///
/// # Safety
/// As for [`Descriptor::move_pages`].
pub(super) unsafe fn move_all(
    uffd: &Descriptor,
    dst: usize,
    src: usize,
    len: usize,
) -> Result<(), (usize, Errno)> {
    let mut done = 0;
    let mut attempts = 0;
    while done < len {
        // SAFETY: the caller's promise holds for every part of the range.
        match unsafe { uffd.move_pages(dst + done, src + done, len - done) } {
            Ok(moved) if moved > 0 => done += moved,
            Ok(_) | Err(Errno::EAGAIN) if attempts < ATTEMPTS_MAX => {
                attempts += 1;
                std::thread::yield_now();
            }
            Ok(_) => return Err((done, Errno::EAGAIN)),
            Err(errno) => return Err((done, errno)),
        }
    }
    Ok(())
}
