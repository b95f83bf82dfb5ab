//! The three things that the pager does to memory: install a unit, discard it, make it fail.
//!
//! ```text
//!             install                evict             fail
//!   Copy      UFFDIO_COPY            MADV_DONTNEED     UFFDIO_POISON
//!   Move      UFFDIO_MOVE            UFFDIO_MOVE       UFFDIO_POISON
//!   Remap     mremap of a copy       mmap, PROT_NONE   mmap, no bytes    faults by SIGSEGV
//!   Plain     memcpy                 MADV_DONTNEED     -                 no faults, checked API only
//! ```
//!
//! Every mechanism serves the same policy code. COPY wins at small units; MOVE from some size on,
//! where allocating, zeroing and copying cost more than changing page tables.

use std::{io, ops::Range, sync::Arc};

use nix::errno::Errno;

use super::{
    arena::{Arena, Content, move_all},
    frames::FramePool,
    mapping::{Mapping, PAGE, Pages},
    uffd::{Descriptor, FEATURE_MOVE, FEATURE_POISON},
    watch::Watch,
};
use crate::{budget::Reservation, frame::Frame};

/// How units are put in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mechanism {
    /// `UFFDIO_COPY` from a frame.
    Copy,
    /// `UFFDIO_MOVE` of a frame's pages, in and out: what leaves goes on being the same memory, and is
    /// filled with other bytes. See [`Mapped`](crate::Mapped) for what must not keep a reference to it.
    Move,
    /// A copy whose pages are mapped over closed memory. Where SIGSEGV tells of faults, and there only.
    Remap,
    /// A plain copy into memory that only the checked API shows. No fault mechanism.
    Plain,
}

/// Installs, discards and fails whole units of a region's mapping. The caller holds the unit's
/// state word in a state that makes it the only one to do so, and the lock of the unit's span.
pub(crate) trait Port: Send + Sync {
    /// Puts the whole `frame` (unit-sized, every byte meant) at `offset` and wakes waiters.
    fn install(&self, mapping: &Mapping, offset: usize, frame: Frame) -> io::Result<()>;

    /// [`install`](Port::install) for a thread that others wait for: copies `copied_max` bytes at most, and
    /// leaves the spent frame to the caller, because it takes locks on its way home. False if it takes more
    /// than that: then the frame is as it was. After an error part of the unit may be there, and the
    /// frame's bytes are gone.
    fn try_install(
        &self,
        _mapping: &Mapping,
        _offset: usize,
        _frame: &mut Frame,
        _copied_max: usize,
    ) -> io::Result<bool> {
        Ok(false)
    }

    /// Takes the pages of `offset .. offset + len` away; the next touch faults.
    fn discard(&self, mapping: &Mapping, offset: usize, len: usize) -> io::Result<()> {
        mapping.discard(offset, len)
    }

    /// Takes the resident unit at `leaving` away, and with it whatever lies in its page-table span
    /// `span`, if that is given: nothing else is resident there. The unit's bytes and their
    /// `charge` may be kept for `content`, where pages can be moved.
    fn evict(
        &self,
        mapping: &Mapping,
        leaving: Range<usize>,
        span: Option<Range<usize>>,
        _content: Content,
        charge: Reservation,
    ) -> io::Result<()> {
        let whole = span.unwrap_or(leaving);
        self.discard(mapping, whole.start, whole.len())?;
        drop(charge);
        Ok(())
    }

    /// Makes touches of the unit raise SIGBUS. `Unsupported` where the kernel has no poison.
    fn fail(&self, mapping: &Mapping, offset: usize, len: usize) -> io::Result<()>;

    /// Whether [`fail`](Port::fail) is supported.
    fn can_fail(&self) -> bool;

    /// Wakes whoever waits for the unit, to look again.
    fn wake(&self, mapping: &Mapping, offset: usize, len: usize) -> io::Result<()>;

    /// The unit's word says what has become of it. Whoever has asked since [`install`](Port::install) or
    /// [`fail`](Port::fail), and found the word from before, waits: a kernel that knows who waits has looked
    /// whether the page is there, and only where it is none of its business there is something to be done.
    fn settled(&self, _mapping: &Mapping, _offset: usize, _len: usize) {}

    /// Whether a page table goes when all of its span is taken away. Else it stays until the mapping
    /// goes.
    fn frees_tables(&self) -> bool {
        true
    }
}

/// What the kernel does, or is taken to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Traits {
    /// Without it, or a kernel that has it, [`Port::fail`] is unsupported.
    pub(crate) poison: bool,
    /// See [`Port::frees_tables`].
    pub(crate) frees_tables: bool,
}

/// The port for one mechanism; `descriptor` is `None` exactly for `Plain`, and `frames` are what
/// `Move` moves. That for `Remap` is [`RemapPort`](super::RemapPort).
pub(crate) fn port_for(
    mechanism: Mechanism,
    descriptor: Option<Arc<Descriptor>>,
    frames: Option<&FramePool>,
    traits: Traits,
) -> Arc<dyn Port> {
    match (mechanism, descriptor) {
        (Mechanism::Copy, Some(uffd)) => Arc::new(CopyPort { uffd, traits, watch: None }),
        (Mechanism::Move, Some(uffd)) => {
            assert!(uffd.has(FEATURE_MOVE), "the probe offered MOVE");
            let arena = frames.and_then(FramePool::arena).cloned();
            Arc::new(MovePort { arena, copy: CopyPort { uffd, traits, watch: None } })
        }
        (Mechanism::Plain, _) => Arc::new(PlainPort { traits }),
        (Mechanism::Remap, _) => {
            unreachable!("units are mapped over where no descriptor tells of faults")
        }
        (_, None) => unreachable!("COPY and MOVE come with a descriptor"),
    }
}

/// The port of a region that is written: `watch` says whether pages are put in place protected.
pub(crate) fn port_for_writing(
    uffd: Arc<Descriptor>,
    traits: Traits,
    watch: Arc<Watch>,
) -> Arc<dyn Port> {
    Arc::new(CopyPort { uffd, traits, watch: Some(watch) })
}

/// How often an install starts over, after pages that were left there or contention. Both end
/// after one repetition when the state machine is right.
const ATTEMPTS_MAX: u32 = 64;

pub(super) struct CopyPort {
    uffd: Arc<Descriptor>,
    traits: Traits,
    /// Of a region that is written.
    watch: Option<Arc<Watch>>,
}

/// How much of a unit is asked for in one call.
///
/// The kernel takes a range only if all of it is one mapping in its books, and a program that locks or
/// advises a part of a unit (`mlock`, `madvise`) makes several of it. Pages are never divided.
struct Step(usize);

impl Step {
    fn whole(len: usize) -> Step {
        Step(len)
    }

    fn of(&self, left: usize) -> usize {
        self.0.min(left)
    }

    /// The kernel knows no mapping that holds the range. True if a shorter range is worth a try.
    fn shorten(&mut self) -> bool {
        std::mem::replace(&mut self.0, PAGE) > PAGE
    }
}

impl CopyPort {
    #[cfg(all(test, not(shuttle)))]
    pub(super) fn new(uffd: Arc<Descriptor>, traits: Traits) -> CopyPort {
        CopyPort { uffd, traits, watch: None }
    }

    /// Copies the whole `frame` to `offset`.
    fn copy_whole(&self, mapping: &Mapping, offset: usize, frame: &Frame) -> io::Result<()> {
        let bytes = frame.filled();
        let (dst, src, len) = (mapping.addr() + offset, bytes.as_ptr() as usize, bytes.len());
        assert!(offset + len <= mapping.len());
        let (mut done, mut attempts, mut step) = (0, 0, Step::whole(len));
        // Asked under the lock of the unit's span, which who begins to watch takes, too.
        let protected = self.watch.as_ref().is_some_and(|watch| watch.protects(offset));
        while done < len {
            let step_len = step.of(len - done);
            // SAFETY: `frame` keeps the source alive and unchanged, the destination lies inside
            // the registered mapping, and the unit is not resident: no slice shows its bytes as
            // anything but these, which are the object's at the pinned version.
            match unsafe { self.uffd.copy(dst + done, src + done, step_len, protected) } {
                Ok(copied) if copied > 0 => {
                    done += copied;
                    continue;
                }
                Err(Errno::ENOENT) if step.shorten() => continue,
                Ok(_) | Err(Errno::EAGAIN) => std::thread::yield_now(),
                // Something lies there already, a poison marker on some kernels: start clean.
                Err(Errno::EEXIST) => {
                    self.discard(mapping, offset, len)?;
                    done = 0;
                }
                Err(errno) => return Err(errno.into()),
            }
            attempts += 1;
            if attempts == ATTEMPTS_MAX {
                return Err(io::Error::other("UFFDIO_COPY made no progress in 64 attempts"));
            }
        }
        if attempts > 0 {
            // A discard in between leaves waiters whose wake-up has passed.
            self.wake(mapping, offset, len)?;
        }
        Ok(())
    }

    /// Copies what a move has left, `src .. src + len`, to `offset`.
    fn copy_rest(
        &self,
        mapping: &Mapping,
        offset: usize,
        src: usize,
        len: usize,
    ) -> io::Result<()> {
        let dst = mapping.addr() + offset;
        let (mut done, mut attempts, mut step) = (0, 0, Step::whole(len));
        while done < len {
            // SAFETY: as for the move, which left the rest of the frame, and of the unit, as it was.
            match unsafe { self.uffd.copy(dst + done, src + done, step.of(len - done), false) } {
                Ok(copied) if copied > 0 => done += copied,
                Err(Errno::ENOENT) if step.shorten() => {}
                Ok(_) | Err(Errno::EAGAIN) if attempts < ATTEMPTS_MAX => {
                    attempts += 1;
                    std::thread::yield_now();
                }
                // Something lies there already.
                Err(Errno::EEXIST) if attempts < ATTEMPTS_MAX => {
                    attempts += 1;
                    self.discard(mapping, offset + done, len - done)?;
                }
                Ok(_) => return Err(io::Error::other("UFFDIO_COPY made no progress")),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

impl Port for CopyPort {
    fn install(&self, mapping: &Mapping, offset: usize, frame: Frame) -> io::Result<()> {
        self.copy_whole(mapping, offset, &frame)
    }

    fn try_install(
        &self,
        mapping: &Mapping,
        offset: usize,
        frame: &mut Frame,
        copied_max: usize,
    ) -> io::Result<bool> {
        if frame.filled().len() > copied_max {
            return Ok(false);
        }
        self.copy_whole(mapping, offset, frame)?;
        Ok(true)
    }

    fn fail(&self, mapping: &Mapping, offset: usize, len: usize) -> io::Result<()> {
        if !self.can_fail() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let addr = mapping.addr() + offset;
        let (mut done, mut attempts, mut step) = (0, 0, Step::whole(len));
        while done < len {
            match self.uffd.poison(addr + done, step.of(len - done)) {
                Ok(marked) if marked > 0 => done += marked,
                Err(Errno::ENOENT) if step.shorten() => {}
                Ok(_) | Err(Errno::EAGAIN) if attempts < ATTEMPTS_MAX => {
                    attempts += 1;
                    std::thread::yield_now();
                }
                Err(Errno::EEXIST) if attempts < ATTEMPTS_MAX => {
                    attempts += 1;
                    self.discard(mapping, offset, len)?;
                    done = 0;
                }
                Ok(_) => return Err(io::Error::other("UFFDIO_POISON made no progress")),
                Err(errno) => return Err(errno.into()),
            }
        }
        self.wake(mapping, offset, len)
    }

    fn wake(&self, mapping: &Mapping, offset: usize, len: usize) -> io::Result<()> {
        self.uffd.wake(mapping.addr() + offset, len)
    }

    fn can_fail(&self) -> bool {
        self.traits.poison && self.uffd.has(FEATURE_POISON)
    }

    fn frees_tables(&self) -> bool {
        self.traits.frees_tables
    }
}

struct MovePort {
    /// Where evicted units go; without one they are discarded.
    arena: Option<Arena>,
    /// Serves what MOVE cannot: pages that a device has pinned, that a fork shares, or that a program
    /// has locked.
    copy: CopyPort,
}

impl Port for MovePort {
    fn install(&self, mapping: &Mapping, offset: usize, mut frame: Frame) -> io::Result<()> {
        let installed = self.try_install(mapping, offset, &mut frame, usize::MAX)?;
        debug_assert!(installed, "any number of bytes may be copied");
        Ok(())
    }

    fn try_install(
        &self,
        mapping: &Mapping,
        offset: usize,
        frame: &mut Frame,
        copied_max: usize,
    ) -> io::Result<bool> {
        let (src, len) = (frame.addr(), frame.filled().len());
        let dst = mapping.addr() + offset;
        assert!(offset + len <= mapping.len());
        for attempt in 0..ATTEMPTS_MAX {
            // SAFETY: `frame` owns the source pages and lends them to nobody; the destination is as
            // for COPY.
            match unsafe { move_all(&self.copy.uffd, dst, src, len) } {
                Ok(()) => {
                    frame.set_pages(Pages::Gone);
                    if attempt > 0 {
                        // A discard in between leaves waiters whose wake-up has passed.
                        self.wake(mapping, offset, len)?;
                    }
                    return Ok(true);
                }
                Err((0, Errno::EEXIST)) => self.discard(mapping, offset, len)?,
                // Pages that a device has pinned, or memory of a kind that does not move.
                Err((0, _)) => return self.copy.try_install(mapping, offset, frame, copied_max),
                Err((moved, errno)) => {
                    // The rest of the frame can still be copied.
                    frame.set_pages(Pages::Torn);
                    if len - moved > copied_max {
                        return Err(errno.into());
                    }
                    self.copy.copy_rest(mapping, offset + moved, src + moved, len - moved)?;
                    self.wake(mapping, offset, len)?;
                    return Ok(true);
                }
            }
        }
        Err(io::Error::other("UFFDIO_MOVE finds pages in a unit that was discarded"))
    }

    fn evict(
        &self,
        mapping: &Mapping,
        leaving: Range<usize>,
        span: Option<Range<usize>>,
        content: Content,
        charge: Reservation,
    ) -> io::Result<()> {
        let kept = match &self.arena {
            Some(arena) => arena.keep(mapping.addr() + leaving.start, content, charge),
            None => Err(charge),
        };
        let rest = match (&kept, span) {
            // A huge page takes its page table along; a table of small pages stays, empty, and where
            // the system gives no huge pages a whole span is small pages too.
            (Ok(()), span) => span,
            (Err(_), span) => Some(span.unwrap_or(leaving)),
        };
        if let Some(rest) = rest {
            self.discard(mapping, rest.start, rest.len())?;
        }
        Ok(())
    }

    fn fail(&self, mapping: &Mapping, offset: usize, len: usize) -> io::Result<()> {
        self.copy.fail(mapping, offset, len)
    }

    fn can_fail(&self) -> bool {
        self.copy.can_fail()
    }

    fn wake(&self, mapping: &Mapping, offset: usize, len: usize) -> io::Result<()> {
        self.copy.wake(mapping, offset, len)
    }

    fn frees_tables(&self) -> bool {
        self.copy.frees_tables()
    }
}

struct PlainPort {
    traits: Traits,
}

impl Port for PlainPort {
    fn install(&self, mapping: &Mapping, offset: usize, frame: Frame) -> io::Result<()> {
        let bytes = frame.filled();
        assert!(offset + bytes.len() <= mapping.len());
        // SAFETY: the destination lies inside the mapping, the frame is other memory, and the unit
        // is not resident, so that no guard shows these bytes; without a fault mechanism there is
        // no bare slice.
        unsafe {
            let dst = mapping.base().as_ptr().add(offset);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), dst, bytes.len());
        }
        Ok(())
    }

    fn fail(&self, _: &Mapping, _: usize, _: usize) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn can_fail(&self) -> bool {
        false
    }

    fn wake(&self, _: &Mapping, _: usize, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn frees_tables(&self) -> bool {
        self.traits.frees_tables
    }
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::{
        super::{open_descriptor, probe::ModeRequest},
        *,
    };

    /// Pages in the middle of a unit are there already: of a unit that was put there in part. The kernel
    /// installs what comes before them, wakes who waits for that, and then refuses.
    #[test]
    fn what_lies_in_the_middle_of_a_unit_is_replaced_and_all_are_woken() {
        const LEN: usize = 16 * PAGE;
        let Some(uffd) = open_descriptor(ModeRequest::Auto).descriptor.map(Arc::new) else {
            return println!("left out: page faults");
        };
        let traits = Traits { poison: true, frees_tables: true };
        let frame = || {
            let mut frame = Frame::with_capacity(LEN);
            frame.put(&[7; LEN]);
            frame
        };
        let can_move = uffd.has(FEATURE_MOVE).then_some(Mechanism::Move);
        for mechanism in [Mechanism::Copy].into_iter().chain(can_move) {
            let mapping = Mapping::reserve(2 << 20, 2 << 20).unwrap();
            uffd.register(mapping.addr(), mapping.len()).unwrap();
            let port = port_for(mechanism, Some(uffd.clone()), None, traits);
            let old = Frame::with_capacity(2 * PAGE);
            // SAFETY: the pages are of this test's mapping, and nobody has seen them yet.
            let put = unsafe { uffd.copy(mapping.addr() + 5 * PAGE, old.addr(), 2 * PAGE, false) };
            assert_eq!(put, Ok(2 * PAGE));
            let (installed, seen) = std::thread::scope(|scope| {
                let readers = [0, 4, 7, 15].map(|page| {
                    let at = mapping.addr() + page * PAGE;
                    // SAFETY: a byte of the mapping, which outlives the scope. It is read as it is.
                    scope.spawn(move || unsafe { (at as *const u8).read_volatile() })
                });
                let mut addrs = Vec::new();
                let mut buffer = userfaultfd::EventBuffer::new(16);
                while addrs.len() < readers.len() {
                    let mut fds = [PollFd::new(uffd.as_fd(), PollFlags::POLLIN)];
                    poll(&mut fds, PollTimeout::NONE).unwrap();
                    uffd.faults(&mut buffer, &mut addrs).unwrap();
                }
                let installed = port.install(&mapping, 0, frame());
                if installed.is_err() {
                    // So that the threads end.
                    mapping.discard(0, LEN).unwrap();
                    CopyPort { uffd: uffd.clone(), traits, watch: None }
                        .install(&mapping, 0, frame())
                        .unwrap();
                }
                (installed, readers.map(|reader| reader.join().unwrap()))
            });
            installed.unwrap_or_else(|error| panic!("{mechanism:?}: {error}"));
            assert_eq!(seen, [7; 4], "{mechanism:?}");
            // SAFETY: the unit was just installed and nobody discards it meanwhile.
            let all = unsafe { std::slice::from_raw_parts(mapping.base().as_ptr(), LEN) };
            assert!(all.iter().all(|&byte| byte == 7), "{mechanism:?}");
        }
    }

    /// Another thread puts a page of the unit in place while it is installed: before the kernel comes
    /// there, which then stops half way and next refuses, or after it. All of the unit is the frame's in
    /// the end, and nobody is left waiting.
    #[test]
    fn a_page_that_comes_from_elsewhere_meanwhile_is_replaced() {
        const PAGES: usize = 64;
        const LEN: usize = PAGES * PAGE;
        const ROUNDS: usize = 400;
        let Some(uffd) = open_descriptor(ModeRequest::Auto).descriptor.map(Arc::new) else {
            return println!("left out: page faults");
        };
        let traits = Traits { poison: true, frees_tables: true };
        let can_move = uffd.has(FEATURE_MOVE).then_some(Mechanism::Move);
        for mechanism in [Mechanism::Copy].into_iter().chain(can_move) {
            let mapping = Mapping::reserve(2 << 20, 2 << 20).unwrap();
            uffd.register(mapping.addr(), mapping.len()).unwrap();
            let port = port_for(mechanism, Some(uffd.clone()), None, traits);
            let old = Frame::with_capacity(PAGE);
            let both = std::sync::Barrier::new(2);
            // What is wrong is told at the end: neither thread may leave the other at the barrier.
            let mut wrong = Vec::new();
            let put = std::thread::scope(|scope| {
                let (uffd, mapping, both, old) = (&uffd, &mapping, &both, old.addr());
                // SAFETY: a page of this test's mapping, which nobody relies on.
                let put = move |page: usize| unsafe {
                    uffd.copy(mapping.addr() + page * PAGE, old, PAGE, false)
                };
                let other = scope.spawn(move || {
                    let in_round = |round: usize| {
                        both.wait();
                        // Later and later, from well before the other is done to after it.
                        (0..round * 16).for_each(|_| std::hint::spin_loop());
                        let outcome = put(round % PAGES);
                        both.wait();
                        both.wait();
                        outcome
                    };
                    (0..ROUNDS).map(in_round).collect::<Vec<_>>()
                });
                for round in 0..ROUNDS {
                    let mut frame = Frame::with_capacity(LEN);
                    frame.put(&[7; LEN]);
                    both.wait();
                    let installed = port.install(mapping, 0, frame);
                    both.wait();
                    // Where a page is missing a read would wait for ever.
                    let is_whole = (0..PAGES).all(|page| put(page) == Err(Errno::EEXIST));
                    let is_right = is_whole && {
                        let start = mapping.base().as_ptr();
                        // SAFETY: all of the unit is there, and nobody discards it meanwhile.
                        let all = unsafe { std::slice::from_raw_parts(start, LEN) };
                        all.iter().all(|&byte| byte == 7)
                    };
                    if installed.is_err() || !is_right {
                        wrong.push((round, installed, is_whole));
                    }
                    mapping.discard(0, LEN).unwrap();
                    both.wait();
                }
                other.join().unwrap()
            });
            assert!(wrong.is_empty(), "{mechanism:?}: {wrong:?}");
            let late = [Err(Errno::EEXIST), Err(Errno::EAGAIN)];
            assert!(put.iter().all(|put| *put == Ok(PAGE) || late.contains(put)), "{put:?}");
        }
    }

    /// Pages that cannot be moved are copied, but not by who must not copy much: the fault thread would hold
    /// up every other fault.
    #[test]
    fn what_takes_a_longer_copy_is_left_alone() {
        const LEN: usize = 32 * PAGE;
        let Some(uffd) = open_descriptor(ModeRequest::Auto).descriptor.map(Arc::new) else {
            return println!("left out: page faults");
        };
        let traits = Traits { poison: true, frees_tables: true };
        let can_move = uffd.has(FEATURE_MOVE).then_some(Mechanism::Move);
        for mechanism in [Mechanism::Copy].into_iter().chain(can_move) {
            let mapping = Mapping::reserve(2 << 20, 2 << 20).unwrap();
            uffd.register(mapping.addr(), mapping.len()).unwrap();
            let port = port_for(mechanism, Some(uffd.clone()), None, traits);
            let mut frame = Frame::with_capacity(LEN);
            frame.put(&[7; LEN]);
            // The kernel moves no page between memory that is locked and memory that is not.
            let start = frame.addr() as *const libc::c_void;
            // SAFETY: the frame's own memory, whose bytes stay what they are.
            if unsafe { libc::mlock(start, LEN) } != 0 {
                return println!("left out: locked memory: {}", io::Error::last_os_error());
            }
            for most in [0, LEN - 1] {
                let installed = port.try_install(&mapping, 0, &mut frame, most);
                assert!(!installed.unwrap(), "{mechanism:?}, {most}");
                assert!(frame.filled().iter().all(|&byte| byte == 7), "as it was");
            }
            // SAFETY: a page of this test's mapping, which nobody has seen yet.
            let put = unsafe { uffd.copy(mapping.addr() + 5 * PAGE, frame.addr(), PAGE, false) };
            assert_eq!(put, Ok(PAGE), "nothing was there");
            mapping.discard(0, LEN).unwrap();
            assert!(port.try_install(&mapping, 0, &mut frame, LEN).unwrap(), "{mechanism:?}");
            // SAFETY: the unit was just installed and nobody discards it meanwhile.
            let all = unsafe { std::slice::from_raw_parts(mapping.base().as_ptr(), LEN) };
            assert!(all.iter().all(|&byte| byte == 7), "{mechanism:?}");
        }
    }

    /// Installs, discards and installs again, in every mechanism that this kernel has, and reads
    /// the bytes back through the mapping.
    #[test]
    fn every_mechanism_puts_the_same_bytes_in_place() {
        let opened = open_descriptor(ModeRequest::Auto).descriptor.map(Arc::new);
        let mut mechanisms = vec![Mechanism::Plain];
        if let Some(uffd) = &opened {
            mechanisms.push(Mechanism::Copy);
            if uffd.has(FEATURE_MOVE) {
                mechanisms.push(Mechanism::Move);
            }
        }
        for mechanism in mechanisms {
            for len in [4096, 65536, 2 << 20] {
                let mapping = Mapping::reserve(4 << 20, 2 << 20).unwrap();
                if len == 2 << 20 {
                    mapping.advise(0, mapping.len(), libc::MADV_HUGEPAGE).unwrap();
                }
                let descriptor = (mechanism != Mechanism::Plain).then(|| opened.clone()).flatten();
                if let Some(uffd) = &descriptor {
                    uffd.register(mapping.addr(), mapping.len()).unwrap();
                }
                let traits = Traits { poison: true, frees_tables: true };
                let port = port_for(mechanism, descriptor, None, traits);
                for round in 1..=3u8 {
                    let mut frame = Frame::with_capacity(len);
                    frame.put(&vec![round; len]);
                    port.install(&mapping, 2 << 20, frame).unwrap();
                    // SAFETY: the unit was just installed and nobody discards it meanwhile.
                    let seen = unsafe {
                        std::slice::from_raw_parts(mapping.base().as_ptr().add(2 << 20), len)
                    };
                    assert!(seen.iter().all(|&b| b == round), "{mechanism:?} at {len}");
                    port.discard(&mapping, 2 << 20, len).unwrap();
                }
            }
        }
    }
}
