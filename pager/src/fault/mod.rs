//! The loop that answers the kernel, and the threads that take turns at it.
//!
//! ```text
//!   userfaultfd --> addresses --> (region, unit) --> claim --> request to the engine
//!                     ^                                |                 ^
//!   SIGSEGV ----------+  bytes that are in memory <----+---> in place ---+ what is left to do
//!                                                      |
//!                        one blocking read <-----------+   by this thread, while another one leads
//! ```
//!
//! Who leads does no I/O, touches no region, waits for no lock that is held for long and runs no code of the
//! program's own, so that a reader which waits here never waits for a thread that waits for it. Bytes that are
//! in memory, staged or given up a moment ago, it puts in place itself, which is a change of page tables or a
//! copy of 64 KiB at most; the locks that this takes it only tries. Where it cannot have one, and for all that
//! comes after (policies, wakers, frames that go home), there is the engine. What it has held it passes on, so
//! that nothing ends here.
//!
//! Where a source is [read at once](crate::source::ReadAtOnce), and reads have no order, the thread that has
//! heard of a fault reads the unit itself and puts it in place. First it lets the next thread lead (leader and
//! followers: Schmidt et al., "Pattern-Oriented Software Architecture", volume 2). The last one never reads.

mod outbox;

use std::{
    collections::VecDeque,
    io,
    ops::Range,
    os::fd::BorrowedFd,
    panic::{AssertUnwindSafe, catch_unwind},
    thread::JoinHandle,
    time::Instant,
};

use arc_swap::ArcSwap;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, ppoll},
    sys::time::TimeSpec,
};
use tokio::{runtime::Handle as RuntimeHandle, sync::mpsc::UnboundedSender};

use self::outbox::Outbox;
use crate::{
    cache::{Asked, Held, Ledger},
    failure::stop_process,
    fetch::{Claim, Direct, Found, Object, Origin, Request},
    log::Log,
    signals::SignalsBlocked,
    stats::Counters,
    stats::add,
    sync::{Arc, AtomicBool, AtomicU32, Mutex, Ordering, Weak, lock},
    sys::{Descriptor, Fault, Line, Listening, PAGE, Wakeup, Watch},
    trace::{Kind, Traced},
    units::ByteOffset,
};

/// Events read at a time.
const BATCH: usize = 64;

/// Threads of a pager with a source that is read at once: all but one of them read at a time.
pub(crate) const THREADS_MAX: usize = 4;

/// One region's place in the address space.
#[derive(Clone)]
pub(crate) struct Placed {
    /// What has SIGSEGV of this place come here, where that tells of faults. First, since it must have ended
    /// before the ledger, and with it the memory, goes: the place may be another pager's then.
    pub(crate) _listening: Option<Arc<Listening>>,
    pub(crate) addr: usize,
    pub(crate) len: usize,
    pub(crate) region: u64,
    pub(crate) ledger: Arc<Ledger>,
    /// For bytes that are in memory.
    pub(crate) object: Weak<Object>,
    pub(crate) counters: Arc<Counters>,
    /// A handle, because looking a metric up may take the recorder's lock.
    pub(crate) metric: metrics::Counter,
    /// Where faults are recorded, if they are.
    pub(crate) traced: Option<Traced>,
    /// Of a region that is written.
    pub(crate) watch: Option<Arc<Watch>>,
}

/// Which region lies where, and which memory of ours is none. Read by the fault thread without a
/// lock.
#[derive(Default)]
pub(crate) struct Atlas {
    sorted: ArcSwap<Vec<Placed>>,
    /// Addresses of recycled frames, which stay as long as the pager.
    frames: ArcSwap<Vec<Range<usize>>>,
    change: Mutex<()>,
}

impl Atlas {
    pub(crate) fn insert(&self, placed: Placed) {
        let _one_at_a_time = lock(&self.change);
        let mut next = Vec::clone(&self.sorted.load());
        let at = next.partition_point(|other| other.addr < placed.addr);
        next.insert(at, placed);
        self.sorted.store(Arc::new(next));
    }

    /// Frames lie at the addresses `range` from now on.
    pub(crate) fn insert_frames(&self, range: Range<usize>) {
        let _one_at_a_time = lock(&self.change);
        let mut next = Vec::clone(&self.frames.load());
        next.push(range);
        self.frames.store(Arc::new(next));
    }

    pub(crate) fn remove(&self, region: u64) {
        let _one_at_a_time = lock(&self.change);
        let mut next = Vec::clone(&self.sorted.load());
        next.retain(|placed| placed.region != region);
        self.sorted.store(Arc::new(next));
    }
}

/// How a pager hears of faults.
#[derive(Clone)]
pub(crate) enum Trap {
    /// From the kernel.
    Uffd(Arc<Descriptor>),
    /// From a handler of SIGSEGV.
    Signals(Arc<Line>),
}

impl Trap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Trap::Uffd(uffd) => uffd.as_fd(),
            Trap::Signals(line) => line.as_fd(),
        }
    }
}

/// The threads that answer the faults of one pager.
pub(crate) struct Team {
    shared: Arc<Shared>,
    members: Mutex<Vec<Member>>,
}

struct Member {
    thread: JoinHandle<()>,
    /// Whether it reads. Set while it leads.
    reads: Arc<AtomicBool>,
}

struct Shared {
    trap: Trap,
    atlas: Arc<Atlas>,
    stop: Wakeup,
    outbox: Outbox,
    log: Log,
    runtime: RuntimeHandle,
    /// Held by who leads, also while it sleeps.
    lead: Mutex<Lead>,
    /// Threads there are.
    size: AtomicU32,
    /// Units that are read, or about to be: fewer than threads. Who leads counts them up.
    reading: AtomicU32,
}

/// What who leads has in hand.
struct Lead {
    buffer: userfaultfd::EventBuffer,
    faults: Vec<Fault>,
    touched: Vec<usize>,
    /// Units to be read. Not more than threads that can.
    reads: VecDeque<Direct>,
    /// Units that are read, as far as nobody has seen the end of it.
    claims: Vec<Arc<Claim>>,
}

impl Team {
    /// A thread that answers what `trap` hears. A failure of it ends the process: threads that wait in a fault
    /// would otherwise wait for ever, or read zeros when the descriptor closes.
    pub(crate) fn start(
        trap: Trap,
        atlas: Arc<Atlas>,
        engine: UnboundedSender<Request>,
        log: Log,
        runtime: RuntimeHandle,
    ) -> io::Result<Team> {
        let shared = Arc::new(Shared {
            trap,
            atlas,
            stop: Wakeup::new()?,
            outbox: Outbox::new(engine),
            log,
            runtime,
            lead: Mutex::new(Lead::new()),
            size: AtomicU32::new(0),
            reading: AtomicU32::new(0),
        });
        let team = Team { shared, members: Mutex::default() };
        team.add(1)?;
        Ok(team)
    }

    /// Has as many threads as there may be, or as the system gives: an object is opened that is read at once.
    pub(crate) fn grow(&self) {
        while matches!(self.add(THREADS_MAX), Ok(true)) {}
    }

    /// Adds a thread, unless there are as many as `most`.
    fn add(&self, most: usize) -> io::Result<bool> {
        // The pager's threads take no signals: a handler of the program that touched a region there would
        // wait for the very thread that it interrupted.
        let _masked = SignalsBlocked::new();
        let mut members = lock(&self.members);
        if members.len() >= most {
            return Ok(false);
        }
        let reads = Arc::new(AtomicBool::new(false));
        let (shared, mine) = (self.shared.clone(), reads.clone());
        let thread =
            std::thread::Builder::new().name("pager-fault".to_owned()).spawn(move || {
                // Where wakers of the program run.
                let _runtime = shared.runtime.enter();
                stop_unless_well(|| shared.serve(&mine));
            })?;
        members.push(Member { thread, reads });
        self.shared.size.fetch_add(1, Ordering::SeqCst);
        Ok(true)
    }

    /// Ends the threads. Nobody waits in a fault any more; one that still reads ends by itself.
    pub(crate) fn stop(&self) {
        self.shared.stop.raise();
        let mut ending = Vec::new();
        {
            // Who has it now, or comes for it later, ends. Who reads has said so under it.
            let mut lead = lock(&self.shared.lead);
            // Of units that nobody waits for.
            let unread = std::mem::take(&mut lead.reads);
            for Member { thread, reads } in lock(&self.members).drain(..) {
                let is_me = thread.thread().id() == std::thread::current().id();
                if !is_me && !reads.load(Ordering::SeqCst) {
                    ending.push(thread);
                }
            }
            drop(lead);
            drop(unread);
        }
        for thread in ending {
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Leads, and reads, until the end.
    fn serve(&self, reads: &AtomicBool) -> io::Result<()> {
        loop {
            let direct = {
                let mut lead = lock(&self.lead);
                let Some(direct) = lead.next(self)? else { return Ok(()) };
                reads.store(true, Ordering::SeqCst);
                direct
            };
            self.read(direct);
            self.reading.fetch_sub(1, Ordering::SeqCst);
            reads.store(false, Ordering::SeqCst);
        }
    }

    fn read(&self, direct: Direct) {
        let missed = direct.missed();
        if let Some(request) = direct.run(&self.log) {
            self.outbox.send(request);
        }
        self.outbox.missed(missed);
    }

    /// Whether one of the threads can read a unit of `object`, and another one leads.
    fn may_read(&self, object: &Object) -> bool {
        let others = self.size.load(Ordering::SeqCst).saturating_sub(1);
        // Where reads have an order, what comes next is fetched by the engine, which must not be overtaken.
        let is_random = object.at_once && object.random.load(Ordering::Relaxed);
        is_random && self.reading.load(Ordering::SeqCst) < others
    }
}

impl Lead {
    fn new() -> Lead {
        Lead {
            buffer: userfaultfd::EventBuffer::new(BATCH),
            faults: Vec::with_capacity(BATCH),
            touched: Vec::with_capacity(BATCH),
            reads: VecDeque::with_capacity(THREADS_MAX),
            claims: Vec::with_capacity(THREADS_MAX),
        }
    }

    /// Answers faults until there is a unit to be read, or, with `None`, the end.
    fn next(&mut self, shared: &Shared) -> io::Result<Option<Direct>> {
        loop {
            if let Some(direct) = self.reads.pop_front() {
                return Ok(Some(direct));
            }
            if !self.wait(shared)? {
                shared.outbox.flush();
                return Ok(None);
            }
            self.faults.clear();
            match &shared.trap {
                Trap::Uffd(uffd) => uffd.faults(&mut self.buffer, &mut self.faults)?,
                Trap::Signals(line) => {
                    line.faults(&mut self.touched);
                    let touched = self.touched.drain(..);
                    self.faults.extend(touched.map(|addr| Fault { addr, writes: false }));
                }
            }
            let regions = shared.atlas.sorted.load_full();
            for n in 0..self.faults.len() {
                let Fault { addr, writes } = self.faults[n];
                let found = match writes {
                    true => let_write(addr, &regions),
                    false => self.translate(addr, &regions, shared),
                };
                if !found {
                    match &shared.trap {
                        Trap::Uffd(uffd) => refuse(uffd, addr, &shared.atlas.frames.load()),
                        // It is looked at again, and belongs to nobody by then.
                        Trap::Signals(line) => line.wake(&(addr..addr + 1)),
                    }
                }
            }
            shared.outbox.flush_if_due();
            // A region was closed meanwhile, and its ledger must not end here.
            if let Some(outlived) = Arc::into_inner(regions) {
                shared.outbox.send(Request::Outlived(outlived));
            }
        }
    }

    /// Waits for faults, or until something else is to be done, and does that. False at the end.
    fn wait(&mut self, shared: &Shared) -> io::Result<bool> {
        self.claims.retain(|claim| !claim.is_taken());
        let overdue = self.claims.iter().map(|claim| claim.until()).min();
        let until = overdue.into_iter().chain(shared.outbox.due()).min();
        let timeout =
            until.map(|until| TimeSpec::from(until.saturating_duration_since(Instant::now())));
        let mut fds = [
            PollFd::new(shared.trap.as_fd(), PollFlags::POLLIN),
            PollFd::new(shared.stop.as_fd(), PollFlags::POLLIN),
        ];
        match ppoll(&mut fds, timeout, None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if !self.claims.is_empty() {
            let now = Instant::now();
            let overdue = self.claims.iter().filter_map(|claim| claim.overdue(now));
            overdue.for_each(|request| shared.outbox.send(request));
        }
        Ok(!fds[1].any().unwrap_or(false))
    }

    /// Asks for what was touched at `addr`. False if no region is there.
    fn translate(&mut self, addr: usize, regions: &[Placed], shared: &Shared) -> bool {
        let Some((placed, offset)) = placed_at(addr, regions) else { return false };
        add(&placed.counters.faults, 1);
        placed.metric.increment(1);
        let geometry = placed.ledger.geometry();
        // Padding behind the object's last byte belongs to its last unit.
        let last = ByteOffset(geometry.object_len() - 1);
        let unit =
            geometry.unit_of(ByteOffset(offset as u64).min(last)).expect("inside the object").0;
        let region = placed.region;
        if let Some(traced) = &placed.traced {
            traced.note(unit..unit + 1, Kind::Fault);
        }
        match placed.ledger.fault(unit) {
            Asked::Resident | Asked::Used | Asked::Coming => {}
            Asked::Claimed => match placed.object.upgrade() {
                Some(object) => self.have(object, unit, shared),
                None => shared.outbox.send(Request::Missing { region, units: unit..unit + 1 }),
            },
            Asked::Late => shared.outbox.send(Request::Late { region, unit }),
            Asked::Marker => match placed.object.upgrade() {
                Some(object) => shared.outbox.send(unstage(object, unit)),
                None => shared.outbox.send(Request::Marker { region, unit }),
            },
        }
        true
    }

    /// Has the claimed `unit` put in place: here if its bytes are still there since it was given up, by one of
    /// the threads here if it can be read at once, or else by the engine.
    fn have(&mut self, object: Arc<Object>, unit: u64, shared: &Shared) {
        // Also where nothing is found the object goes on: this may be the last to hold it.
        let frame = object.frames.try_recall(object.id, unit);
        if frame.is_none() && shared.may_read(&object) {
            shared.reading.fetch_add(1, Ordering::SeqCst);
            let direct = Direct::new(object, unit);
            self.claims.push(direct.claim().clone());
            self.reads.push_back(direct);
            return;
        }
        let held = frame.map(|frame| object.ledger.held(frame));
        shared.outbox.send(put(object, unit, Origin::GivenUp, held));
    }
}

/// Does `work`; an error or a panic of it ends the process.
fn stop_unless_well(work: impl FnOnce() -> io::Result<()>) {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => stop_process(&format!("the page-fault thread failed: {error}")),
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no message");
            stop_process(&format!("the page-fault thread panicked: {text}"))
        }
    }
}

/// The region at `addr`, and where in it that is.
fn placed_at(addr: usize, regions: &[Placed]) -> Option<(&Placed, usize)> {
    let at = regions.partition_point(|placed| placed.addr <= addr);
    let placed = &regions[at.checked_sub(1)?];
    let offset = addr - placed.addr;
    (offset < placed.len).then_some((placed, offset))
}

/// Lets the page at `addr` be written, which is there. False if no region is.
fn let_write(addr: usize, regions: &[Placed]) -> bool {
    let Some((placed, offset)) = placed_at(addr, regions) else { return false };
    let Some(watch) = &placed.watch else { return false };
    watch.note(placed.addr, offset);
    true
}

/// Puts the staged `unit` in place; what the engine is to hear of it.
fn unstage(object: Arc<Object>, unit: u64) -> Request {
    let held = object.ledger.try_take_staged(unit);
    if held.is_some() {
        // Before the reader goes on, who may look.
        add(&object.counters.marker_faults, 1);
    }
    put(object, unit, Origin::Staged, held)
}

/// Puts the bytes of `unit` in place, if there are any and nothing has to be waited for; what the engine is
/// to hear of it.
fn put(object: Arc<Object>, unit: u64, origin: Origin, held: Option<Held>) -> Request {
    let found = held.map(|mut held| {
        let placed = object.ledger.place(unit, &mut held);
        Found { held, placed }
    });
    Request::Found { object, unit, origin, found }
}

/// Ends the wait at `addr`, where no region is.
///
/// No reader comes here, but the kernel does: a program that locks all its memory has it touch frames
/// without pages. It takes poison for an answer and goes on; whoever uses the frame clears it away.
/// Elsewhere a region was closed, or something is about to be known: whoever is there looks again.
fn refuse(uffd: &Descriptor, addr: usize, frames: &[Range<usize>]) {
    let page = addr - addr % PAGE;
    let marked =
        frames.iter().any(|range| range.contains(&addr)) && uffd.poison(page, PAGE).is_ok();
    if !marked {
        // A frame may have a page by now.
        let _ = uffd.wake(page, PAGE);
    }
}

#[cfg(test)]
mod tests {
    use std::os::{fd::OwnedFd, unix::process::ExitStatusExt};

    use super::*;

    const CHILD: &str = "PAGER_TEST_CHILD";

    /// Runs this test again in a process of its own, which must abort and say this. False within it.
    fn aborts(test: &str, says: &str) -> bool {
        if std::env::var_os(CHILD).is_some() {
            return false;
        }
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{text}");
        assert!(text.contains(says), "{text}");
        true
    }

    /// Readers would wait for ever, or read zeros, behind a fault thread that is gone: the process
    /// must end, and say why.
    #[test]
    fn a_fault_thread_that_fails_takes_the_process_with_its_cause() {
        const TEST: &str =
            "fault::tests::a_fault_thread_that_fails_takes_the_process_with_its_cause";
        if aborts(TEST, "extmem pager: the page-fault thread failed") {
            return;
        }
        // A pipe whose other end is gone reports an end of file where events are expected.
        let (read, write) = nix::unistd::pipe().unwrap();
        drop::<OwnedFd>(write);
        let broken = Descriptor::new(read, 0);
        let (engine, _requests) = tokio::sync::mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_multi_thread().build().unwrap();
        let (trap, handle) = (Trap::Uffd(Arc::new(broken)), runtime.handle().clone());
        let team = Team::start(trap, Arc::default(), engine, Log::start().unwrap(), handle);
        let members = std::mem::take(&mut *lock(&team.unwrap().members));
        for Member { thread, .. } in members {
            let _ = thread.join();
        }
    }

    #[test]
    fn a_fault_thread_that_panics_takes_the_process_with_its_message() {
        const TEST: &str =
            "fault::tests::a_fault_thread_that_panics_takes_the_process_with_its_message";
        if aborts(TEST, "extmem pager: the page-fault thread panicked: unit 7 of no region") {
            return;
        }
        let unit = std::hint::black_box(7);
        stop_unless_well(|| panic!("unit {unit} of no region"));
    }
}
