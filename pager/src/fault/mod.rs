//! The loop that answers the kernel.
//!
//! ```text
//!   userfaultfd --> addresses --> (region, unit) --> claim --> request to the engine
//!                     ^                                |                 ^
//!   SIGSEGV ----------+  bytes that are in memory <----+---> in place ---+ what is left to do
//! ```
//!
//! It does no I/O, touches no region, waits for no lock and runs no code of the program's own, so that
//! a reader which waits here never waits for a thread that waits for it. Bytes that are in memory, staged
//! or given up a moment ago, it puts in place itself, which is a change of page tables or a copy of 64 KiB
//! at most; the locks that this takes it only tries. Where it cannot have one, and for all that comes
//! after (policies, wakers, frames that go home), there is the engine. What it has held it passes on, so
//! that nothing ends here.

use std::{
    io,
    ops::Range,
    os::fd::BorrowedFd,
    panic::{AssertUnwindSafe, catch_unwind},
};

use arc_swap::ArcSwap;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use tokio::sync::mpsc::UnboundedSender;

use crate::{
    cache::{Asked, Held, Ledger},
    failure::stop_process,
    fetch::{Found, Object, Origin, Request},
    stats::Counters,
    stats::add,
    sync::{Arc, Mutex, Weak, lock},
    sys::{Descriptor, Fault, Line, Listening, PAGE, Wakeup, Watch},
    trace::{Kind, Traced},
    units::ByteOffset,
};

/// Events read at a time.
const BATCH: usize = 64;

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

/// Runs until `stop` is raised. A failure of the loop ends the process: threads that wait in a
/// fault would otherwise wait for ever, or read zeros when the descriptor closes.
pub(crate) fn run(trap: &Trap, atlas: &Atlas, stop: &Wakeup, engine: &UnboundedSender<Request>) {
    stop_unless_well(|| answer(trap, atlas, stop, engine));
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

fn answer(
    trap: &Trap,
    atlas: &Atlas,
    stop: &Wakeup,
    engine: &UnboundedSender<Request>,
) -> io::Result<()> {
    let mut buffer = userfaultfd::EventBuffer::new(BATCH);
    let mut faults: Vec<Fault> = Vec::with_capacity(BATCH);
    let mut touched = Vec::with_capacity(BATCH);
    loop {
        let mut fds = [
            PollFd::new(trap.as_fd(), PollFlags::POLLIN),
            PollFd::new(stop.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if fds[1].any().unwrap_or(false) {
            return Ok(());
        }
        faults.clear();
        match trap {
            Trap::Uffd(uffd) => uffd.faults(&mut buffer, &mut faults)?,
            Trap::Signals(line) => {
                line.faults(&mut touched);
                faults.extend(touched.drain(..).map(|addr| Fault { addr, writes: false }));
            }
        }
        let regions = atlas.sorted.load_full();
        for &Fault { addr, writes } in &faults {
            let found = match writes {
                true => let_write(addr, &regions),
                false => translate(addr, &regions, engine),
            };
            if !found {
                match trap {
                    Trap::Uffd(uffd) => refuse(uffd, addr, &atlas.frames.load()),
                    // It is looked at again, and belongs to nobody by then.
                    Trap::Signals(line) => line.wake(&(addr..addr + 1)),
                }
            }
        }
        // A region was closed meanwhile, and its ledger must not end here.
        if let Some(outlived) = Arc::into_inner(regions) {
            send(engine, Request::Outlived(outlived));
        }
    }
}

/// Tells the engine, which outlives every region; without it the process is going down, and what `request`
/// holds is kept from ending here.
fn send(engine: &UnboundedSender<Request>, request: Request) {
    if let Err(unsent) = engine.send(request) {
        std::mem::forget(unsent);
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

/// Asks for what was touched at `addr`. False if no region is there.
fn translate(addr: usize, regions: &[Placed], engine: &UnboundedSender<Request>) -> bool {
    let Some((placed, offset)) = placed_at(addr, regions) else { return false };
    add(&placed.counters.faults, 1);
    placed.metric.increment(1);
    let geometry = placed.ledger.geometry();
    // Padding behind the object's last byte belongs to its last unit.
    let last = ByteOffset(geometry.object_len() - 1);
    let unit = geometry.unit_of(ByteOffset(offset as u64).min(last)).expect("inside the object").0;
    let region = placed.region;
    if let Some(traced) = &placed.traced {
        traced.note(unit..unit + 1, Kind::Fault);
    }
    let request = match placed.ledger.fault(unit) {
        Asked::Resident | Asked::Used | Asked::Coming => return true,
        Asked::Claimed => {
            recall(placed, unit).unwrap_or(Request::Missing { region, units: unit..unit + 1 })
        }
        Asked::Late => Request::Late { region, unit },
        Asked::Marker => unstage(placed, unit).unwrap_or(Request::Marker { region, unit }),
    };
    send(engine, request);
    true
}

/// Puts the claimed `unit` in place if its bytes are still there since it was given up.
fn recall(placed: &Placed, unit: u64) -> Option<Request> {
    let object = placed.object.upgrade()?;
    // Also where nothing is found the object goes on: this may be the last to hold it.
    let frame = object.frames.try_recall(object.id, unit);
    let held = frame.map(|frame| object.ledger.held(frame));
    Some(put(object, unit, Origin::GivenUp, held))
}

/// Puts the staged `unit` in place.
fn unstage(placed: &Placed, unit: u64) -> Option<Request> {
    let object = placed.object.upgrade()?;
    let held = object.ledger.try_take_staged(unit);
    if held.is_some() {
        // Before the reader goes on, who may look.
        add(&object.counters.marker_faults, 1);
    }
    Some(put(object, unit, Origin::Staged, held))
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
        run(&Trap::Uffd(Arc::new(broken)), &Atlas::default(), &Wakeup::new().unwrap(), &engine);
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
