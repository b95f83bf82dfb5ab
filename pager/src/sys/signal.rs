//! Page faults without userfaultfd: a handler of SIGSEGV, in which the thread that touched waits.
//!
//! ```text
//!   touch of a closed page --> SIGSEGV --> whose address? --- nobody's ---> the handler from before,
//!                                               |                           by default the end
//!                                               | a region's
//!                                               v
//!       bell of its pager <-- asks --- a seat: address, state --- waits ---> the touch is tried again
//!            |                                  ^
//!            v                                  | go on
//!       fault thread --> as for userfaultfd --> in place, or a page that raises SIGBUS
//! ```
//!
//! What the handler looks at are atomics in places that are never freed. It allocates nothing, takes no lock
//! and touches no ledger: the thread may have been stopped anywhere. There is one handler for the process, and
//! it stays when the last pager goes.
//!
//! It runs on the stack for signals where a thread has one, because the handler that it passes a stack's end
//! on to needs that. There is little room there, so other signals wait as long as the thread waits; but
//! those that end or stop the process by default get through.

use std::{
    io,
    ops::Range,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{
            AtomicBool, AtomicI32, AtomicU32, AtomicUsize,
            Ordering::{Acquire, Relaxed, Release, SeqCst},
            fence,
        },
    },
};

use nix::{
    errno::Errno,
    sys::{
        eventfd::{EfdFlags, EventFd},
        memfd::{MFdFlags, memfd_create},
        signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction},
    },
};

/// Regions that are open at a time, of all pagers of the process.
const REGIONS_MAX: usize = 4096;
/// Threads that wait at a time. Those of more try again every millisecond.
const SEATS_MAX: usize = 1024;
/// How long a thread waits before it looks whether a signal has to get through.
const SLICE_MS: i64 = 100;
/// `MFD_NOEXEC_SEAL`: a system may refuse memory files that do not say so (`vm.memfd_noexec` = 2).
const NO_PROGRAM: MFdFlags = MFdFlags::from_bits_retain(8);

/// Where a watched range is that nobody has made, or that somebody is about to fill.
const FREE: usize = 0;
const TAKEN: usize = 1;

static WATCHED: [Watched; REGIONS_MAX] = [const { Watched::new() }; REGIONS_MAX];
/// Places of `WATCHED` from here on have never been used.
static WATCHED_END: AtomicUsize = AtomicUsize::new(0);
static SEATS: [Seat; SEATS_MAX] = [const { Seat::new() }; SEATS_MAX];
/// Seats from here on have never been used.
static SEATS_END: AtomicUsize = AtomicUsize::new(0);
/// What was done before ours was there.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();
/// A handler in it is no more: it was to be called once, or has taken itself out.
static SPENT: AtomicBool = AtomicBool::new(false);
/// What the kernel knows of ours, once it is set.
static OURS: OnceLock<libc::sigaction> = OnceLock::new();
/// One thread at a time sets it, in the process that is named here.
static SETS: Mutex<libc::pid_t> = Mutex::new(0);
static NEXT_LINE: AtomicU32 = AtomicU32::new(1);

/// Addresses whose faults are a pager's.
struct Watched {
    start: AtomicUsize,
    /// Odd while the rest of it changes.
    turn: AtomicU32,
    end: AtomicUsize,
    /// Whose addresses they are. A forked child has no such memory.
    process: AtomicI32,
    line: AtomicU32,
    bell: AtomicI32,
}

/// Whom a fault is told to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Listener {
    line: u32,
    /// The descriptor that tells the pager.
    bell: i32,
}

impl Watched {
    const fn new() -> Watched {
        Watched {
            start: AtomicUsize::new(FREE),
            turn: AtomicU32::new(0),
            end: AtomicUsize::new(0),
            process: AtomicI32::new(0),
            line: AtomicU32::new(0),
            bell: AtomicI32::new(-1),
        }
    }

    /// Who watches an address, if anybody does. For a handler.
    fn at(address: usize) -> Option<Listener> {
        WATCHED.iter().take(WATCHED_END.load(SeqCst)).find_map(|place| place.listener_for(address))
    }

    /// Whoever has this place, if `address` is theirs. What changes hands meanwhile is not that of an address
    /// that somebody reads: its region is there, and so is its place.
    fn listener_for(&self, address: usize) -> Option<Listener> {
        let turn = self.turn.load(Acquire);
        let start = self.start.load(Acquire);
        let is_theirs = start > TAKEN
            && (start..self.end.load(Relaxed)).contains(&address)
            && self.process.load(Relaxed) == this_process();
        let listener = Listener { line: self.line.load(Relaxed), bell: self.bell.load(Relaxed) };
        // All of it was read before this look at the turn.
        fence(Acquire);
        let is_whole = turn.is_multiple_of(2) && self.turn.load(Relaxed) == turn;
        (is_theirs && is_whole).then_some(listener)
    }

    /// Hands a place that was taken to `listener`.
    fn give(&self, range: Range<usize>, listener: Listener) {
        self.turn.fetch_add(1, Relaxed);
        // Nothing of it is seen before the odd turn.
        fence(Release);
        self.end.store(range.end, Relaxed);
        self.process.store(this_process(), Relaxed);
        self.line.store(listener.line, Relaxed);
        self.bell.store(listener.bell, Relaxed);
        self.start.store(range.start, Release);
        self.turn.fetch_add(1, Release);
    }
}

impl Listener {
    /// Has the pager look at the seats.
    fn ring(self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight bytes of our own. The descriptor is open as long as a region that it is for, which
        // the thread here is reading. A counter that is full says the same.
        let _ = unsafe { libc::write(self.bell, one.as_ptr().cast(), one.len()) };
    }
}

fn this_process() -> libc::pid_t {
    // SAFETY: it takes nothing and cannot fail; a handler may call it.
    unsafe { libc::getpid() }
}

/// Where one thread waits. The state is one of those below in the low bits, and the number of the line above.
struct Seat {
    state: AtomicU32,
    address: AtomicUsize,
}

const STATES: u32 = 7;
/// Nobody is there.
const EMPTY: u32 = 0;
/// Somebody sits down.
const SITS: u32 = 1;
/// The pager is to hear of it.
const ASKED: u32 = 2;
/// The pager has.
const HEARD: u32 = 3;
/// Whoever sits here is to try again.
const GO_ON: u32 = 4;

impl Seat {
    const fn new() -> Seat {
        Seat { state: AtomicU32::new(EMPTY), address: AtomicUsize::new(0) }
    }

    /// A seat for a thread that has touched `address`. None if all are taken.
    fn take(line: u32, address: usize) -> Option<&'static Seat> {
        let is_free =
            |seat: &Seat| seat.state.compare_exchange(EMPTY, SITS, SeqCst, Relaxed).is_ok();
        let (at, seat) = SEATS.iter().enumerate().find(|(_, seat)| is_free(seat))?;
        // Before anybody is asked: who wakes looks no further than this.
        SEATS_END.fetch_max(at + 1, SeqCst);
        seat.address.store(address, SeqCst);
        seat.state.store(line << 3 | ASKED, SeqCst);
        Some(seat)
    }

    /// Those that somebody may sit on.
    fn all() -> &'static [Seat] {
        &SEATS[..SEATS_END.load(SeqCst).min(SEATS_MAX)]
    }
}

/// The way by which one pager hears of faults.
pub(crate) struct Line {
    /// Not zero, and below 2^29.
    id: u32,
    bell: EventFd,
    /// A memory file without a byte: to touch a page of it raises SIGBUS.
    nothing: Option<OwnedFd>,
}

impl Line {
    /// Sets the handler, if it is not set.
    pub(crate) fn open() -> io::Result<Line> {
        listen()?;
        let id = NEXT_LINE.fetch_add(1, Relaxed);
        if id >= 1 << 29 {
            return Err(io::Error::other("this process has made 536,870,911 pagers of this kind"));
        }
        let bell =
            EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let nothing = match memfd_create("extmem-nothing", MFdFlags::MFD_CLOEXEC | NO_PROGRAM) {
            Err(Errno::EINVAL) => memfd_create("extmem-nothing", MFdFlags::MFD_CLOEXEC),
            made => made,
        };
        Ok(Line { id, bell, nothing: nothing.ok() })
    }

    /// Ready to be read when somebody has asked.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// A file whose pages raise SIGBUS; `None` where the kernel has none.
    pub(crate) fn nothing(&self) -> Option<BorrowedFd<'_>> {
        self.nothing.as_ref().map(AsFd::as_fd)
    }

    /// Has faults in `range` come here, as long as what this returns lives.
    pub(crate) fn watch(&self, range: Range<usize>) -> io::Result<Listening> {
        let is_free =
            |place: &Watched| place.start.compare_exchange(FREE, TAKEN, Acquire, Relaxed).is_ok();
        let Some((at, place)) = WATCHED.iter().enumerate().find(|(_, place)| is_free(place)) else {
            return Err(io::Error::other("4,096 regions with a handler of SIGSEGV are open"));
        };
        WATCHED_END.fetch_max(at + 1, SeqCst);
        place.give(range, Listener { line: self.id, bell: self.bell.as_fd().as_raw_fd() });
        Ok(Listening { place })
    }

    /// The addresses that were touched since the last time.
    pub(crate) fn faults(&self, addresses: &mut Vec<usize>) {
        // What is asked after this rings again.
        let _ = self.bell.read();
        let (asked, heard) = (self.id << 3 | ASKED, self.id << 3 | HEARD);
        for seat in Seat::all() {
            if seat.state.compare_exchange(asked, heard, SeqCst, Relaxed).is_ok() {
                addresses.push(seat.address.load(SeqCst));
            }
        }
    }

    /// Has whoever touched an address of `range` try again.
    pub(crate) fn wake(&self, range: &Range<usize>) {
        let (asked, heard) = (self.id << 3 | ASKED, self.id << 3 | HEARD);
        for seat in Seat::all() {
            let mut state = seat.state.load(SeqCst);
            // Should another thread sit here by now, it tries once for nothing.
            while (state == asked || state == heard) && range.contains(&seat.address.load(SeqCst)) {
                match seat.state.compare_exchange(state, self.id << 3 | GO_ON, SeqCst, SeqCst) {
                    Ok(_) => {
                        futex_wake(&seat.state);
                        break;
                    }
                    Err(now) => state = now,
                }
            }
        }
    }
}

/// Faults in a range come to a [`Line`] as long as this lives, which is no longer than the line.
pub(crate) struct Listening {
    place: &'static Watched,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.place.start.store(FREE, Release);
    }
}

/// Whether faults come to us: nobody has set another handler since.
pub(crate) fn is_heard() -> bool {
    let ours = OURS.get().map(|ours| ours.sa_sigaction);
    current().is_ok_and(|action| Some(action.sa_sigaction) == ours)
}

/// What is done at SIGSEGV.
fn current() -> io::Result<libc::sigaction> {
    // SAFETY: zeros are a value of it, nothing is set, and the kernel's answer goes to our own.
    unsafe {
        let mut action = std::mem::zeroed();
        match libc::sigaction(libc::SIGSEGV, std::ptr::null(), &mut action) {
            0 => Ok(action),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Sets the handler, once.
fn listen() -> io::Result<()> {
    let mut of = SETS.lock().unwrap_or_else(PoisonError::into_inner);
    if std::mem::replace(&mut *of, this_process()) != this_process() {
        // A forked child has none of the threads that sat here, and none of the units.
        SEATS.iter().for_each(|seat| seat.state.store(EMPTY, SeqCst));
        super::remap::forget_units();
    }
    if OURS.get().is_some() {
        return Ok(());
    }
    // Known before ours can be called. What another thread sets between these lines is lost.
    let before = current()?;
    BEFORE.get_or_init(|| before);
    let flags = SaFlags::SA_ONSTACK | SaFlags::SA_RESTART;
    let ours = SigAction::new(SigHandler::SigAction(on_sigsegv), flags, SigSet::all());
    // SAFETY: the handler reads atomics, and calls getpid, write, futex, raise, sigpending,
    // sigaction, pthread_sigmask and what reads and sets errno, all of which a handler may. It neither
    // allocates nor takes a lock. The handler from before is called as the kernel would call it.
    unsafe { sigaction(Signal::SIGSEGV, &ours) }?;
    let set = current()?;
    OURS.get_or_init(|| set);
    Ok(())
}

extern "C" fn on_sigsegv(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    let errno = Errno::last_raw();
    // SAFETY: the kernel hands this over, since the handler was set with SA_SIGINFO, and of SIGSEGV, where it
    // sent that itself, it has an address. Where a process sent it the same bytes are something else, which
    // is not looked at.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    let is_sent = code <= 0;
    let listener = if is_sent { None } else { Watched::at(address) };
    match listener {
        Some(listener) => wait(listener, address, &interrupted(context)),
        None => pass_on(signal, info, context, is_sent),
    }
    Errno::set_raw(errno);
}

/// Waits until the pager says that the touch is to be tried again.
fn wait(listener: Listener, address: usize, blocked: &libc::sigset_t) {
    let Some(seat) = Seat::take(listener.line, address) else {
        // The touch is tried again, and comes back here.
        futex_wait(&AtomicU32::new(0), 0, 1);
        return;
    };
    listener.ring();
    loop {
        let state = seat.state.load(SeqCst);
        if state & STATES == GO_ON {
            break;
        }
        if !futex_wait(&seat.state, state, SLICE_MS) {
            let_through(blocked);
            match Watched::at(address) {
                Some(now) if now == listener => now.ring(),
                // Nobody's any more, or somebody else's, who does not look at this seat; and its bell may be
                // another descriptor by now. The touch is tried again, and told to whom it concerns.
                _ => break,
            }
        }
    }
    seat.state.store(EMPTY, SeqCst);
}

/// Lets those signals through that came meanwhile and that nobody handles: an end or a stop of the process
/// needs no stack. Those that the thread itself has `blocked` stay so.
fn let_through(blocked: &libc::sigset_t) {
    let mut through = no_signals();
    // SAFETY: all sets are our own, and what is asked for is known to be a signal. With no new action none
    // changes.
    unsafe {
        let mut pending = no_signals();
        if libc::sigpending(&mut pending) != 0 {
            return;
        }
        for signal in 1..=64 {
            if libc::sigismember(&pending, signal) != 1 || libc::sigismember(blocked, signal) == 1 {
                continue;
            }
            let mut action = std::mem::zeroed::<libc::sigaction>();
            let known = libc::sigaction(signal, std::ptr::null(), &mut action) == 0;
            if known && action.sa_sigaction == libc::SIG_DFL {
                libc::sigaddset(&mut through, signal);
            }
        }
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &through, std::ptr::null_mut());
    }
}

fn no_signals() -> libc::sigset_t {
    // SAFETY: zeros are a value of it, and the empty set is put there.
    unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        none
    }
}

/// The signals that the thread had blocked when this one came.
fn interrupted(context: *const libc::c_void) -> libc::sigset_t {
    let mut blocked = no_signals();
    for signal in 1..=64 {
        // SAFETY: the kernel hands a `ucontext_t` over, and has written the first 64 signals of its set,
        // which are those that are looked at.
        unsafe {
            let context = context.cast::<libc::ucontext_t>();
            if libc::sigismember(&raw const (*context).uc_sigmask, signal) == 1 {
                libc::sigaddset(&mut blocked, signal);
            }
        }
    }
    blocked
}

/// A signal that is not ours: does what would have been done.
fn pass_on(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
    is_sent: bool,
) {
    let Some(before) = BEFORE.get() else { return by_default(is_sent) };
    match before.sa_sigaction {
        libc::SIG_DFL => return by_default(is_sent),
        // The kernel does not ignore what a thread cannot go on from.
        libc::SIG_IGN if is_sent => return,
        libc::SIG_IGN => return by_default(false),
        _ => {}
    }
    let only_once = before.sa_flags & libc::SA_RESETHAND != 0;
    if SPENT.fetch_or(only_once, SeqCst) {
        return by_default(is_sent);
    }
    let mut mask = interrupted(context);
    // SAFETY: the mask is our own, and becomes what the kernel would have made it for this handler; it is put
    // back when that returns to what was interrupted. The address is that of a handler of the kind that its
    // flags say, since whoever set it promised that.
    unsafe {
        for blocked in 1..=64 {
            if libc::sigismember(&before.sa_mask, blocked) == 1 {
                libc::sigaddset(&mut mask, blocked);
            }
        }
        if before.sa_flags & libc::SA_NODEFER == 0 {
            libc::sigaddset(&mut mask, signal);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &mask, std::ptr::null_mut());
        if before.sa_flags & libc::SA_SIGINFO != 0 {
            type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
            std::mem::transmute::<usize, Handler>(before.sa_sigaction)(signal, info, context);
        } else {
            std::mem::transmute::<usize, extern "C" fn(libc::c_int)>(before.sa_sigaction)(signal);
        }
        // That of Rust has the default done next, for the sake of a touch that is about to be tried again. Here
        // none is, and regions need ours.
        if is_sent
            && !is_heard()
            && let Some(ours) = OURS.get()
        {
            SPENT.store(true, SeqCst);
            libc::sigaction(libc::SIGSEGV, ours, std::ptr::null_mut());
        }
    }
}

/// Has the kernel do what it does where nobody handles the signal, with a core where there is one.
fn by_default(is_sent: bool) {
    let action = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: what raised the signal is tried again when this returns, and then meets the default.
    let _ = unsafe { sigaction(Signal::SIGSEGV, &action) };
    if is_sent {
        // Nothing is tried again: it comes when this returns.
        let _ = raise(Signal::SIGSEGV);
    }
}

/// Waits `ms` milliseconds, less than a second, at most while `word` is `value`. False if that is over.
fn futex_wait(word: &AtomicU32, value: u32, ms: i64) -> bool {
    let slice = libc::timespec { tv_sec: 0, tv_nsec: ms * 1_000_000 };
    let op = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: the word outlives the call, and so does the time.
    let outcome =
        unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), op, value, &raw const slice) };
    outcome == 0 || Errno::last() != Errno::ETIMEDOUT
}

fn futex_wake(word: &AtomicU32) {
    let op = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: the word is static; whoever waits there looks again.
    let _ = unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), op, 1) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One test, since the seats are the process's.
    #[test]
    fn each_line_hears_of_its_own_and_wakes_them_alone() {
        let lines = [Line::open().unwrap(), Line::open().unwrap()];
        let state = |seat: &Seat| seat.state.load(SeqCst) & STATES;
        let heard = |line: &Line| {
            let mut addresses = Vec::new();
            line.faults(&mut addresses);
            addresses
        };
        // No region is here: nobody but this test sits on a seat.
        let a = Seat::take(lines[0].id, 4096).unwrap();
        let b = Seat::take(lines[1].id, 4096).unwrap();
        let c = Seat::take(lines[0].id, 8192).unwrap();
        assert_eq!((heard(&lines[0]), heard(&lines[0])), (vec![4096, 8192], vec![]));
        lines[0].wake(&(0..4096));
        assert_eq!([a, b, c].map(state), [HEARD, ASKED, HEARD], "the range ends before them");
        // Also who has not been heard yet, and nobody of another line.
        lines[1].wake(&(4096..4097));
        lines[0].wake(&(8192..12_288));
        assert_eq!([a, b, c].map(state), [HEARD, GO_ON, GO_ON]);
        assert_eq!(heard(&lines[1]), vec![], "it goes on already");
        for seat in [a, b, c] {
            seat.state.store(EMPTY, SeqCst);
        }

        let all: Vec<_> = std::iter::from_fn(|| Seat::take(lines[1].id, 7)).collect();
        assert_eq!(all.len(), SEATS_MAX, "and whoever finds none tries again later");
        assert_eq!(heard(&lines[1]).len(), SEATS_MAX);
        for seat in all {
            seat.state.store(EMPTY, SeqCst);
        }
        assert!(
            Seat::take(lines[1].id, 7).is_some_and(|seat| seat.state.swap(EMPTY, SeqCst) != EMPTY)
        );
    }

    #[test]
    fn an_address_is_watched_as_long_as_its_listening_lives() {
        let line = Line::open().unwrap();
        let page = [0u8; 64];
        let start = page.as_ptr() as usize;
        let at = |address: usize| Watched::at(address).map(|listener| listener.line);
        let listening = line.watch(start..start + 64).unwrap();
        let seen = [start - 1, start, start + 63, start + 64].map(at);
        assert_eq!(seen, [None, Some(line.id), Some(line.id), None]);
        drop(listening);
        assert_eq!(at(start), None);
        let many: Vec<_> = (0..REGIONS_MAX).map_while(|_| line.watch(8..16).ok()).collect();
        assert!(many.len() > REGIONS_MAX - 100 && line.watch(8..16).is_err(), "{}", many.len());
    }

    /// A small range and a large one take turns at one place: the start of the one with the end of the other would
    /// have an address that neither has.
    #[test]
    fn a_place_that_changes_hands_is_never_half_of_each() {
        let place = Watched::new();
        let [small, large] = [(0x1000..0x2000, 1), (0x5000..0x9000, 2)];
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..300_000 {
                    for (range, line) in [&small, &large] {
                        place.start.store(TAKEN, Relaxed);
                        place.give(range.clone(), Listener { line: *line, bell: -(*line as i32) });
                        place.start.store(FREE, Release);
                    }
                }
                over.store(true, SeqCst);
            });
            let mut seen = 0;
            while !over.load(SeqCst) {
                assert_eq!(place.listener_for(0x3000), None, "between the two");
                for (address, line) in [(0x1800, 1), (0x6000, 2)] {
                    let Some(listener) = place.listener_for(address) else { continue };
                    assert_eq!(listener, Listener { line, bell: -(line as i32) });
                    seen += 1;
                }
            }
            println!("{seen} times it was there");
        });
    }

    /// Whoever waits on a seat that is another line's tries again, instead of waiting for one that is not asked.
    #[test]
    fn who_sits_at_the_wrong_line_gets_up() {
        let line = Line::open().unwrap();
        let page = [0u8; 64];
        let start = page.as_ptr() as usize;
        let _listening = line.watch(start..start + 64).unwrap();
        let gone = Listener { line: (1 << 29) - 1, bell: -1 };
        let (done, waits) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            wait(gone, start, &no_signals());
            let _ = done.send(());
        });
        waits.recv_timeout(std::time::Duration::from_secs(10)).expect("it waits for nobody");
    }
}
