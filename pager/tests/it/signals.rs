//! Page faults by a handler of SIGSEGV: that it answers what is a region's, and nothing else.
//!
//! Here is what only this way of hearing of faults does. All other tests run by it too:
//! `PAGER_TEST_MODE=signals`, which [`all_that_touches_memory_works_by_sigsegv`] sets.

use std::{
    os::unix::process::ExitStatusExt,
    process::Output,
    sync::{
        Mutex,
        atomic::{AtomicI32, AtomicU32, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    libc,
    sys::signal::{
        SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, pthread_sigmask, raise,
        sigaction,
    },
};
use pager::{
    ConfigError, Error, Hint, Mechanism, Mode, ModeRequest, Pager, Region, RegionOptions,
    SourceError, policy::NoPrefetch,
};

use crate::support::{
    Behaviour, Known, Random, alone, by_signals, byte_at, bytes_of, passed, until,
};

fn pager(budget: u64) -> Pager {
    let builder = Pager::builder().mode(ModeRequest::Signals).budget_bytes(budget);
    builder.prefetch(|| Box::new(NoPrefetch)).build().unwrap()
}

fn died_of(signal: Signal) -> impl FnOnce(Output) {
    move |output| {
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(signal as i32), "{}: {text}", output.status);
        assert!(!text.contains("panicked"), "{text}");
    }
}

/// The tests of reading, failure, memory and threads, again.
#[test]
fn all_that_touches_memory_works_by_sigsegv() {
    if by_signals() {
        return println!("left out: this run is by SIGSEGV itself");
    }
    let modules =
        ["reading", "runtimes", "wakers", "failure", "kernel", "memory", "seeing", "regress"];
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(modules.map(|module| format!("{module}::")))
        .env("PAGER_TEST_MODE", "signals")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let ran = text.matches("... ok").count();
    passed(output);
    assert!(ran > 60, "{ran} tests ran: {text}");
}

/// Has the kernel refuse userfaultfd to this process, by the call and by the device, as seccomp profiles of
/// containers do.
fn forbid_userfaultfd() {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let skip_unless = |k: u32, by: u8| libc::sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jt: 0,
        jf: by,
        k,
    };
    let load = |at: u32| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at);
    let answer = |k: u32| statement(libc::BPF_RET | libc::BPF_K, k);
    let refuse = answer(libc::SECCOMP_RET_ERRNO | libc::EPERM as u32);
    // In `seccomp_data` the number of the call is at 0, and the low half of its second argument at 24.
    let mut filter = [
        load(0),
        skip_unless(libc::SYS_userfaultfd as u32, 1),
        refuse,
        skip_unless(libc::SYS_ioctl as u32, 3),
        load(24),
        skip_unless(0xAA00, 1),
        refuse,
        answer(libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: a valid program, for this thread and those that it starts; neither call touches memory.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let set = libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program);
        assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    }
}

/// Without userfaultfd nothing changes for who did not ask for the handler, and who did can map.
#[test]
fn where_userfaultfd_is_forbidden_who_asks_for_it_can_map() {
    const TEST: &str = "signals::where_userfaultfd_is_forbidden_who_asks_for_it_can_map";
    if !alone(TEST, passed) {
        return;
    }
    forbid_userfaultfd();
    let handler = || {
        let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: asks what is set, and sets nothing.
        unsafe {
            assert_eq!(libc::sigaction(libc::SIGSEGV, std::ptr::null(), action.as_mut_ptr()), 0);
            action.assume_init().sa_sigaction
        }
    };
    let before = handler();
    let plain = Pager::builder().budget_bytes(8 << 20).build().unwrap();
    assert_eq!(plain.mode(), Mode::CheckedOnly, "{}", plain.probed());
    let region = plain.open(Known::new(1 << 20)).unwrap();
    let refused = region.map().unwrap_err().to_string();
    assert!(refused.contains("signal_faults"), "{refused}");
    assert_eq!(region.load(7..8).unwrap()[0], byte_at(7));
    let checked = Pager::builder().mode(ModeRequest::CheckedOnly).signal_faults(true);
    assert_eq!(checked.budget_bytes(8 << 20).build().unwrap().mode(), Mode::CheckedOnly);
    assert_eq!(handler(), before, "nobody asked for a handler");

    for mode in [ModeRequest::Auto, ModeRequest::UserModeOnly] {
        let builder = Pager::builder().mode(mode).signal_faults(true).budget_bytes(8 << 20);
        let pager = builder.build().unwrap();
        assert_eq!(pager.mode(), Mode::Signals);
        let tried = &pager.probed().tried;
        assert_eq!(tried.last().unwrap(), &("SIGSEGV handler".to_owned(), "works".to_owned()));
        assert!(tried.len() > 1 && pager.probed().can_poison, "{}", pager.probed());
        let region = pager.open(Known::new(24 << 20)).unwrap();
        let mapped = region.map().unwrap();
        for at in (0..24 << 20).step_by(30_011) {
            assert_eq!(mapped[at as usize], byte_at(at));
        }
        assert!(region.stats().units_evicted > 0 && region.stats().faults > 0);
        assert_eq!(pager.regions()[0].mechanism, Mechanism::Remap);
    }
    assert_ne!(handler(), before);
}

/// What the kernel has is better, and is taken.
#[test]
fn where_userfaultfd_works_the_permission_changes_nothing() {
    let found = Pager::probe().mode;
    if found == Mode::CheckedOnly {
        return println!("left out: userfaultfd: there is none");
    }
    let pager = Pager::builder().signal_faults(true).budget_bytes(8 << 20).build().unwrap();
    assert_eq!(pager.mode(), found);
    let remap = Pager::builder().mechanism(Mechanism::Remap).budget_bytes(8 << 20).build();
    assert!(remap.is_err(), "it goes with SIGSEGV only");
    for mechanism in [Mechanism::Copy, Mechanism::Move, Mechanism::Plain] {
        let builder = Pager::builder().mode(ModeRequest::Signals).mechanism(mechanism);
        assert!(builder.budget_bytes(8 << 20).build().is_err(), "{mechanism:?}");
    }
}

static FOREIGN_AT: AtomicUsize = AtomicUsize::new(0);
static FOREIGN_CALLS: AtomicU32 = AtomicU32::new(0);
static FOREIGN_MASK: AtomicU32 = AtomicU32::new(0);

/// Opens the page that was touched, as a collector of garbage might.
extern "C" fn foreign(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: of a SIGSEGV that the kernel sent there is an address; the page is this test's.
    unsafe {
        let address = (*info).si_addr() as usize;
        FOREIGN_AT.store(address, SeqCst);
        FOREIGN_CALLS.fetch_add(1, SeqCst);
        let mut mask = std::mem::zeroed();
        libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &mut mask);
        let blocked = [libc::SIGUSR1, libc::SIGUSR2, libc::SIGSEGV, libc::SIGTERM];
        let bits = blocked.map(|signal| libc::sigismember(&mask, signal) as u32);
        FOREIGN_MASK.store(bits.iter().fold(0, |all, bit| all << 1 | bit), SeqCst);
        libc::mprotect((address & !4095) as *mut libc::c_void, 4096, libc::PROT_READ);
    }
}

#[test]
fn faults_of_others_go_to_the_handler_that_was_there_before() {
    const TEST: &str = "signals::faults_of_others_go_to_the_handler_that_was_there_before";
    if !alone(TEST, passed) {
        return;
    }
    let mut blocks = SigSet::empty();
    blocks.add(Signal::SIGUSR1);
    let action = SigAction::new(SigHandler::SigAction(foreign), SaFlags::SA_ONSTACK, blocks);
    // SAFETY: the handler calls what a handler may.
    unsafe { sigaction(Signal::SIGSEGV, &action) }.unwrap();
    let pager = pager(8 << 20);
    let mapped = pager.open(Known::new(24 << 20)).unwrap().map().unwrap();
    let closed = |n: u32| {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a page of our own, wherever the kernel likes.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_NONE, flags, -1, 0) }
            as *const u8;
        // SAFETY: the handler lets the page be read, which is full of zeros.
        assert_eq!(unsafe { page.add(77).read_volatile() }, 0);
        assert_eq!(FOREIGN_AT.load(SeqCst), page as usize + 77);
        assert_eq!(FOREIGN_CALLS.load(SeqCst), n);
        // SIGUSR1 by its action, and SIGSEGV since it is being handled; not what the pager's handler blocks.
        assert_eq!(FOREIGN_MASK.load(SeqCst), 0b1010);
    };
    closed(1);
    for at in (0..24 << 20).step_by(65_536) {
        assert_eq!(mapped[at + 5], byte_at(at as u64 + 5));
    }
    assert_eq!(FOREIGN_CALLS.load(SeqCst), 1, "what is a region's does not get there");
    closed(2);
    let mut mask = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_BLOCK, None, Some(&mut mask)).unwrap();
    assert_eq!(mask, SigSet::empty(), "all is as it was");
    drop((mapped, pager));
    closed(3);
}

/// With the handler that Rust sets, without any, and where it is ignored.
#[test]
fn a_stray_pointer_ends_the_process_as_ever() {
    const TEST: &str = "signals::a_stray_pointer_ends_the_process_as_ever";
    let how = std::env::var("PAGER_TEST_HOW").unwrap_or_default();
    if how.is_empty() {
        for how in ["rust null", "rust sent", "default null", "default sent", "ignored null"] {
            let output = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", TEST, "--nocapture"])
                .env("PAGER_TEST_HOW", how)
                .output()
                .unwrap();
            assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{how}: {output:?}");
        }
        return;
    }
    let before = match how.split_once(' ').unwrap().0 {
        "default" => Some(SigHandler::SigDfl),
        "ignored" => Some(SigHandler::SigIgn),
        _ => None,
    };
    if let Some(before) = before {
        let action = SigAction::new(before, SaFlags::empty(), SigSet::empty());
        // SAFETY: no handler of ours.
        unsafe { sigaction(Signal::SIGSEGV, &action) }.unwrap();
    }
    let mapped = pager(8 << 20).open(Known::new(1 << 20)).unwrap().map().unwrap();
    assert_eq!(mapped[77_777], byte_at(77_777));
    match how.ends_with("sent") {
        true => {
            // Rust's handler lets the first pass, and has the next one end the process; in between all is well.
            raise(Signal::SIGSEGV).unwrap();
            assert!(how.starts_with("rust"), "{how}");
            assert_eq!(mapped[300_000], byte_at(300_000));
            raise(Signal::SIGSEGV).unwrap();
        }
        false => {
            let nowhere = std::hint::black_box(std::ptr::without_provenance::<u8>(16));
            // SAFETY: none; it is what the test is about. Nothing is mapped there.
            println!("{}", unsafe { nowhere.read_volatile() });
        }
    }
    unreachable!("the process is over");
}

#[test]
fn the_end_of_a_stack_is_told_as_ever() {
    const TEST: &str = "signals::the_end_of_a_stack_is_told_as_ever";
    let told = |output: Output| {
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{text}");
        assert!(text.contains("has overflowed its stack"), "{text}");
    };
    if !alone(TEST, told) {
        return;
    }
    fn deep(n: u64) -> u64 {
        let here = std::hint::black_box([n; 64]);
        if n == u64::MAX { 0 } else { here[7] ^ deep(n + 1) ^ here[3] }
    }
    let mapped = pager(8 << 20).open(Known::new(1 << 20)).unwrap().map().unwrap();
    let thread = std::thread::Builder::new().stack_size(256 << 10).spawn(move || {
        assert_eq!(mapped[77_777], byte_at(77_777));
        deep(0)
    });
    println!("{:?}", thread.unwrap().join());
}

/// The kernel has nobody to tell then, which it says by ending the process.
#[test]
fn a_thread_that_blocks_sigsegv_ends_the_process() {
    const TEST: &str = "signals::a_thread_that_blocks_sigsegv_ends_the_process";
    if !alone(TEST, died_of(Signal::SIGSEGV)) {
        return;
    }
    let mapped = pager(8 << 20).open(Known::new(1 << 20)).unwrap().map().unwrap();
    assert_eq!(mapped[0], byte_at(0));
    let mut blocked = SigSet::empty();
    blocked.add(Signal::SIGSEGV);
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&blocked), None).unwrap();
    assert_eq!(mapped[1], byte_at(1), "what is resident is no fault");
    println!("{}", mapped[500_000]);
}

static HANDLED: AtomicU32 = AtomicU32::new(0);

extern "C" fn count(_: libc::c_int) {
    HANDLED.fetch_add(1, SeqCst);
}

/// A handler of the program does not run on what little stack there is: it waits. Then comes what nobody
/// handles, which needs no stack.
#[test]
fn signals_wait_with_the_thread_unless_they_end_the_process() {
    const TEST: &str = "signals::signals_wait_with_the_thread_unless_they_end_the_process";
    if !alone(TEST, died_of(Signal::SIGTERM)) {
        return;
    }
    let counts = SigAction::new(SigHandler::Handler(count), SaFlags::SA_ONSTACK, SigSet::empty());
    // SAFETY: it only counts.
    unsafe { sigaction(Signal::SIGUSR1, &counts) }.unwrap();
    let source = Known::new(1 << 20);
    let region = pager(8 << 20).open(source.clone()).unwrap();
    let mapped = region.map().unwrap();
    let gate = source.hold();
    let (tell, thread) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        // SAFETY: of the calling thread, which lives.
        tell.send(unsafe { libc::pthread_self() }).unwrap();
        let seen = mapped[100_000];
        let handled = HANDLED.load(SeqCst);
        (seen, handled, Errno::last_raw(), mapped)
    });
    let thread = thread.recv().unwrap();
    until("the reader waits", || source.under_way() == 1);
    // SAFETY: the thread waits for this one, which is not over.
    assert_eq!(unsafe { libc::pthread_kill(thread, libc::SIGUSR1) }, 0);
    std::thread::sleep(Duration::from_millis(250));
    assert_eq!(HANDLED.load(SeqCst), 0, "it waits");
    gate.add_permits(1);
    let (seen, handled, _, mapped) = reader.join().unwrap();
    assert_eq!((seen, handled), (byte_at(100_000), 1), "and comes before anything else");

    std::thread::spawn(move || println!("{}", mapped[500_000]));
    until("the reader waits", || source.under_way() == 1);
    // All other threads take no SIGTERM, so that it comes to the reader.
    let mut blocked = SigSet::empty();
    blocked.add(Signal::SIGTERM);
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&blocked), None).unwrap();
    let start = Instant::now();
    // SAFETY: sends a signal to this process.
    unsafe { libc::kill(libc::getpid(), libc::SIGTERM) };
    while start.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(5));
    }
    println!("the reader waits, and SIGTERM with it");
    std::process::exit(1);
}

#[test]
fn a_handler_that_came_later_is_no_place_for_a_map() {
    const TEST: &str = "signals::a_handler_that_came_later_is_no_place_for_a_map";
    if !alone(TEST, passed) {
        return;
    }
    let region = pager(8 << 20).open(Known::new(1 << 20)).unwrap();
    let mapped = region.map().unwrap();
    assert_eq!(mapped[77_777], byte_at(77_777));
    let action = SigAction::new(SigHandler::SigAction(foreign), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler calls what a handler may.
    let ours = unsafe { sigaction(Signal::SIGSEGV, &action) }.unwrap();
    let refused = region.map().unwrap_err().to_string();
    assert!(refused.contains("another handler of SIGSEGV"), "{refused}");
    assert_eq!(region.load(500_000..500_001).unwrap()[0], byte_at(500_000), "loads need none");
    // SAFETY: as it was.
    unsafe { sigaction(Signal::SIGSEGV, &ours) }.unwrap();
    assert_eq!(region.map().unwrap()[300_000], byte_at(300_000));
}

static BUS_AT: AtomicUsize = AtomicUsize::new(0);
static BUS_CODE: AtomicI32 = AtomicI32::new(0);

/// Says where it was and waits for somebody to heal it.
extern "C" fn on_bus(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: of a SIGBUS that the kernel sent there is an address.
    let (address, code) = unsafe { ((*info).si_addr() as usize, (*info).si_code) };
    BUS_CODE.store(code, SeqCst);
    BUS_AT.store(address, SeqCst);
    let wait = libc::timespec { tv_sec: 0, tv_nsec: 2_000_000 };
    // SAFETY: the time is our own.
    unsafe { libc::nanosleep(&raw const wait, std::ptr::null_mut()) };
}

/// As by the kernel's poison: SIGBUS with the address, EFAULT for system calls, and health after a fetch.
#[test]
fn what_cannot_be_had_raises_sigbus_until_it_can() {
    const TEST: &str = "signals::what_cannot_be_had_raises_sigbus_until_it_can";
    if !alone(TEST, passed) {
        return;
    }
    let action = SigAction::new(SigHandler::SigAction(on_bus), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler calls what a handler may.
    unsafe { sigaction(Signal::SIGBUS, &action) }.unwrap();
    for unit in [4096, 65_536, 2 << 20] {
        let source = Known::new(4 * unit);
        let builder = Pager::builder().mode(ModeRequest::Signals).unit_bytes(unit);
        let builder = builder.prefetch(|| Box::new(NoPrefetch)).budget_bytes(80 * (unit + 4096));
        let region = builder.build().unwrap().open(source.clone()).unwrap();
        let mapped = region.map().unwrap();
        let at = 2 * unit as usize - 9;
        let gone = SourceError::NotFound { object: "test://known".to_owned(), cause: None };
        source.behave(Behaviour::Fail(gone));
        BUS_AT.store(0, SeqCst);
        std::thread::scope(|scope| {
            let readers = [at, at - 3000].map(|at| {
                let mapped = &mapped;
                scope.spawn(move || mapped[at])
            });
            until("somebody gets SIGBUS", || BUS_AT.load(SeqCst) != 0);
            let place = BUS_AT.load(SeqCst) - mapped.as_ptr() as usize;
            assert!(place == at || place == at - 3000, "{place} is not {at}");
            assert_eq!(BUS_CODE.load(SeqCst), libc::BUS_ADRERR);
            until("it is counted", || region.stats().poisoned == 1);
            let (_read, write) = nix::unistd::pipe().unwrap();
            let touched = nix::unistd::write(&write, &mapped[at..at + 1]);
            assert_eq!(touched, Err(Errno::EFAULT), "unit {unit}");
            assert!(region.load(at as u64..at as u64 + 1).is_err(), "failing still");
            source.behave(Behaviour::Serve);
            assert_eq!(region.load(at as u64..at as u64 + 1).unwrap()[0], byte_at(at as u64));
            let seen = readers.map(|reader| reader.join().unwrap());
            assert_eq!(seen, [at, at - 3000].map(|at| byte_at(at as u64)), "unit {unit}");
        });
        assert_eq!(region.stats().healed, 1, "{:?}", region.stats());
        assert_eq!(region.load(0..4 * unit).unwrap()[..], bytes_of(0..4 * unit)[..]);
    }
}

/// Eight threads, whose regions come and go, and an eighth of the bytes has room.
#[test]
fn many_threads_read_the_right_bytes_while_units_leave_and_regions_close() {
    for (unit, budget) in [(4096, 1 << 20), (65_536, 8 << 20), (2 << 20, 80 << 20)] {
        let builder = Pager::builder().mode(ModeRequest::Signals).unit_bytes(unit);
        let pager = builder.budget_bytes(budget).build().unwrap();
        let len = 2 * budget + 777;
        let open = || pager.open(Known::new(len)).unwrap();
        let regions: Vec<Mutex<Region>> = (0..4).map(|_| Mutex::new(open())).collect();
        let end = Instant::now() + Duration::from_millis(1500);
        let reads: u64 = std::thread::scope(|scope| {
            let reader = |thread: u64| {
                let (regions, open) = (&regions, &open);
                move || {
                    let (mut random, mut reads) = (Random(thread), 0);
                    while Instant::now() < end {
                        let place = &regions[random.below(4) as usize];
                        let mapped = place.lock().unwrap().map().unwrap();
                        for _ in 0..50 {
                            let at = random.below(len - 20_000);
                            let step = random.below(5) * 4000 + 1;
                            for at in (0..5).map(|n| at + n * step % 20_000) {
                                assert_eq!(mapped[at as usize], byte_at(at), "unit {unit}");
                                reads += 1;
                            }
                        }
                        match random.below(20) {
                            // The others go on with the one that they have.
                            0 => *place.lock().unwrap() = open(),
                            1 => {
                                let region = place.lock().unwrap().clone();
                                region.advise(Hint::DontNeed(0..len)).unwrap();
                            }
                            _ => {}
                        }
                    }
                    reads
                }
            };
            let threads: Vec<_> = (0..8).map(|thread| scope.spawn(reader(thread))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert!(reads > 1000, "unit {unit}: {reads}");
        assert!(pager.budget().peak() <= budget, "unit {unit}: {:?}", pager.budget());
        drop(regions);
        until("closing gives everything back", || pager.pool().is_empty());
    }
}

/// Threads that have no stack for signals, as those of other languages, and errno as it was.
#[test]
fn a_thread_without_a_stack_for_signals_reads_as_well() {
    let mapped = pager(8 << 20).open(Known::new(24 << 20)).unwrap().map().unwrap();
    extern "C" fn read(mapped: *mut libc::c_void) -> *mut libc::c_void {
        // SAFETY: what is handed over below, which outlives this thread.
        let mapped = unsafe { &*mapped.cast::<pager::Mapped>() };
        let mut stack = std::mem::MaybeUninit::<libc::stack_t>::uninit();
        // SAFETY: asks for what there is.
        let has_none = unsafe {
            libc::sigaltstack(std::ptr::null(), stack.as_mut_ptr()) == 0
                && stack.assume_init().ss_flags & libc::SS_DISABLE != 0
        };
        let is_right = |at: usize| {
            Errno::set_raw(77);
            mapped[at] == byte_at(at as u64) && Errno::last_raw() == 77
        };
        let all = (0..24 << 20).step_by(65_536).all(is_right);
        (usize::from(has_none && all)) as *mut libc::c_void
    }
    // SAFETY: the thread is waited for, and its argument lives as long.
    unsafe {
        let mut thread = std::mem::zeroed();
        let argument = (&raw const mapped).cast_mut().cast();
        let made = libc::pthread_create(&mut thread, std::ptr::null(), read, argument);
        assert_eq!(made, 0);
        let mut answer = std::ptr::null_mut();
        assert_eq!(libc::pthread_join(thread, &mut answer), 0);
        assert_eq!(answer as usize, 1);
    }
}

/// Each unit takes mappings of the process, and there are only so many.
#[test]
fn more_units_than_a_process_has_mappings_for_are_refused() {
    let builder = Pager::builder().mode(ModeRequest::Signals).unit_bytes(4096);
    let pager = builder.budget_bytes(1 << 30).build().unwrap();
    let refused = pager.open(Known::new(1 << 30)).unwrap_err();
    assert!(matches!(refused, Error::Config(ConfigError::Mappings { units: 262_144, .. })));
    assert!(refused.to_string().contains("vm.max_map_count"), "{refused}");
    let options = RegionOptions::default().unit_bytes(65_536);
    let region = pager.open_with(Known::new(1 << 30), options).unwrap();
    assert_eq!(region.map().unwrap()[700_000_000], byte_at(700_000_000));
    // Small ones, as many as there are.
    assert_eq!(pager.open(Known::new(1 << 20)).unwrap().map().unwrap()[7], byte_at(7));
}
