//! Clocks that jump: nothing in the pager may wait by the time of day.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::{Duration, Instant, SystemTime},
};

use nix::libc;
use pager::{Error, Hint, trace::Recorder};

use crate::support::{Behaviour, Known, alone, builder, byte_at, can_fault, passed, until};

/// Ten years, in seconds.
const JUMP: i64 = 10 * 365 * 86_400;

/// By how much the time of day is wrong, if it is. It changes its sign at each look.
static WRONG_BY: AtomicI64 = AtomicI64::new(0);

/// Stands before the C library's in this program: the kernel's answer, and the time of day wrong.
// SAFETY: the signature is that of clock_gettime(3), and so is what it does, but for the time it tells.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(
    clock: libc::clockid_t,
    time: *mut libc::timespec,
) -> libc::c_int {
    // SAFETY: the caller's pointer, which the kernel checks.
    let outcome = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) };
    if outcome == 0 && clock == libc::CLOCK_REALTIME {
        let turned = |wrong: i64| Some(-wrong);
        let wrong = WRONG_BY.fetch_update(Ordering::SeqCst, Ordering::SeqCst, turned).unwrap_or(0);
        // SAFETY: the kernel has just written there.
        unsafe { (*time).tv_sec += wrong };
    }
    outcome as libc::c_int
}

/// Deadlines, waits and traces go by a clock that never jumps. By the time of day a request would be
/// given up at once, or wait for ten years.
#[test]
fn nothing_waits_by_the_time_of_day() {
    const TEST: &str = "clock::nothing_waits_by_the_time_of_day";
    if !alone(TEST, passed) {
        return;
    }
    WRONG_BY.store(JUMP, Ordering::SeqCst);
    let jump = || {
        let before = SystemTime::now();
        SystemTime::now().duration_since(before).unwrap_or_else(|back| back.duration())
    };
    // Another thread may look in between.
    let far = Duration::from_secs(JUMP as u64);
    assert!((0..100).any(|_| jump() > far), "the time of day jumps");

    let folder = tempfile::tempdir().unwrap();
    let recorder = Recorder::create(&folder.path().join("trace")).unwrap();
    let deadline = Duration::from_secs(600);
    let builder = builder().budget_bytes(8 << 20).deadline(deadline).record(&recorder);
    let pager = builder.build().unwrap();
    let source = Known::new(32 << 20).delay(Duration::from_millis(2));
    let region = pager.open(source).unwrap();
    for hint in [Hint::Sequential, Hint::Random] {
        region.advise(hint).unwrap();
        for at in (0..32 << 20).step_by(1 << 18) {
            assert_eq!(region.load(at..at + 1).unwrap()[0], byte_at(at));
            if can_fault() {
                assert_eq!(region.map().unwrap()[at as usize + 70_000], byte_at(at + 70_000));
            }
        }
    }
    assert!(region.stats().units_evicted > 0, "{:?}", region.stats());
    recorder.finish().unwrap();

    let deadline = Duration::from_millis(50);
    let pager = crate::support::builder().budget_bytes(8 << 20).deadline(deadline).build().unwrap();
    let source = Known::new(1 << 20);
    let region = pager.open(source.clone()).unwrap();
    source.behave(Behaviour::Hang);
    let start = Instant::now();
    let loaded = std::thread::spawn(move || region.load(0..1).map(drop));
    until("the deadline is met", || loaded.is_finished());
    let error = loaded.join().unwrap().unwrap_err();
    assert!(matches!(error, Error::Source(_)) && error.to_string().contains("deadline"), "{error}");
    assert!(start.elapsed() >= deadline, "not before its time: {:?}", start.elapsed());
}
