//! What the kernel does with missing pages: system calls, forks.

use std::{
    io::{Read, Write},
    os::unix::fs::MetadataExt,
};

use nix::{
    libc,
    sys::{
        signal::Signal,
        wait::{WaitStatus, waitpid},
    },
};
use pager::{Hint, Mechanism, Mode, ModeRequest, SourceError};

use crate::support::{
    Behaviour, Known, alone, builder, by_signals, byte_at, bytes_of, can_fault, copying, give_up,
    is_full, modes, passed, probe, until, use_idle_frames,
};

#[test]
fn system_calls_on_missing_pages_in_each_mode() {
    for mode in modes() {
        let pager = builder().mode(mode).budget_bytes(8 << 20).build().unwrap();
        let region = pager.open(Known::new(1 << 20)).unwrap();
        let (mut read, mut write) = std::io::pipe().unwrap();
        // A guard is safe to hand to a system call in every mode.
        let guard = region.load(65_530..65_540).unwrap();
        write.write_all(&guard).unwrap();
        let mut got = [0; 10];
        read.read_exact(&mut got).unwrap();
        assert_eq!(got[..], bytes_of(65_530..65_540)[..], "{mode:?}");
        if mode == ModeRequest::CheckedOnly {
            continue;
        }
        let mapped = region.map().unwrap();
        let outcome = nix::unistd::write(&write, &mapped[500_000..500_010]);
        match pager.mode() {
            Mode::Full => {
                assert_eq!(outcome, Ok(10), "{mode:?}");
                read.read_exact(&mut got).unwrap();
                assert_eq!(got[..], bytes_of(500_000..500_010)[..]);
            }
            _ => assert_eq!(outcome, Err(nix::errno::Errno::EFAULT), "{mode:?}"),
        }
    }
}

/// A kernel without userfaultfd, or a probe that overlooks it, leaves most of these tests out. Not
/// where CI runs: root has everything there, and an ordinary user what user mode has.
#[test]
fn ci_leaves_no_mode_out() {
    if std::env::var_os("CI").is_none() {
        return println!("left out: the modes that CI has: this is not CI");
    }
    if by_signals() {
        return println!("left out: the modes that CI has: this run has one of them");
    }
    let probe = probe();
    let is_root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
    let expected = match is_root {
        true => Mode::Full,
        false => Mode::UserModeOnly,
    };
    assert_eq!(probe.mode, expected, "{probe}");
    assert!(probe.can_move && probe.can_poison, "{probe}");
    assert_eq!(modes().len(), if expected == Mode::Full { 4 } else { 3 }, "{:?}", modes());
}

#[test]
fn a_forked_child_cannot_read_zeros() {
    if !can_fault() {
        return println!("left out: fork: no userfaultfd");
    }
    let pager = builder().budget_bytes(8 << 20).build().unwrap();
    let mapped = pager.open(Known::new(1 << 20)).unwrap().map().unwrap();
    assert_eq!(mapped[0], byte_at(0));
    for at in [0usize, 700_000] {
        // SAFETY: the child only reads memory and leaves; it allocates nothing and takes no lock.
        match unsafe { nix::unistd::fork() }.unwrap() {
            nix::unistd::ForkResult::Child => {
                let seen = std::hint::black_box(mapped[at]);
                // SAFETY: ends the child at once, without running what belongs to the parent.
                unsafe { libc::_exit(i32::from(seen)) }
            }
            nix::unistd::ForkResult::Parent { child } => {
                let status = waitpid(child, None).unwrap();
                let died = matches!(status, WaitStatus::Signaled(_, Signal::SIGSEGV, _));
                assert!(died, "resident or not, the child has no such memory: {status:?}");
            }
        }
    }
    assert_eq!(mapped[700_000], byte_at(700_000));
}

/// What a program does to a part of a unit splits the kernel's view of it, and a COPY, MOVE or POISON
/// across the split is refused: the unit could not be read again after it had left.
#[test]
fn a_unit_that_is_locked_or_advised_in_part_leaves_and_comes_back() {
    const TEST: &str = "kernel::a_unit_that_is_locked_or_advised_in_part_leaves_and_comes_back";
    if !can_fault() {
        return println!("left out: mapping: no userfaultfd");
    }
    if !alone(TEST, passed) {
        return;
    }
    let probe = probe();
    let mut cases = vec![(copying(), 65_536), (copying(), 2 << 20)];
    if probe.can_move {
        cases.extend([(Mechanism::Move, 65_536), (Mechanism::Move, 2 << 20)]);
    }
    type Change = fn(&[u8]) -> libc::c_int;
    // SAFETY: both are given memory that is mapped, and change no byte of it.
    let lock: Change = |part| unsafe { libc::mlock(part.as_ptr().cast(), part.len()) };
    // SAFETY: as above.
    let leave_out: Change = |part| unsafe {
        libc::madvise(part.as_ptr().cast_mut().cast(), part.len(), libc::MADV_DONTDUMP)
    };
    for (mechanism, unit) in cases {
        for (what, change) in [("locked", lock), ("advised", leave_out)] {
            let what = format!("{what}, {mechanism:?}, unit {unit}");
            let source = Known::new(4 * unit);
            let builder = builder().mechanism(mechanism).unit_bytes(unit);
            let pager = builder.budget_bytes(40 * (unit + 4096)).build().unwrap();
            let region = pager.open(source.clone()).unwrap();
            region.advise(Hint::Random).unwrap();
            let mapped = region.map().unwrap();
            let (at, end) = (unit as usize, 2 * unit as usize);
            drop(region.load(unit..2 * unit).unwrap());
            assert_eq!(change(&mapped[at + 8192..at + 12_288]), 0, "{what}");
            let leave = || give_up(&region, 1);
            // By a load, and by a touch; from the source, and from what was given up.
            leave();
            let guard =
                region.load(unit..2 * unit).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(*guard == *bytes_of(unit..2 * unit), "{what}");
            drop(guard);
            leave();
            use_idle_frames(&pager);
            assert!(mapped[at..end] == bytes_of(unit..2 * unit)[..], "{what}");
            if !is_full() || !probe.can_poison {
                continue;
            }
            leave();
            use_idle_frames(&pager);
            let gone = SourceError::NotFound { object: "test://known".to_owned(), cause: None };
            source.behave(Behaviour::Fail(gone));
            let (_read, write) = nix::unistd::pipe().unwrap();
            for touched in [at, at + 8192, end - 1] {
                let touched = nix::unistd::write(&write, &mapped[touched..touched + 1]);
                assert_eq!(touched, Err(nix::errno::Errno::EFAULT), "{what}");
            }
            until("the poison is counted", || region.stats().poisoned == 1);
            source.behave(Behaviour::Serve);
            drop(region.load(unit..unit + 1).unwrap_or_else(|error| panic!("{what}: {error}")));
            assert!(mapped[at..end] == bytes_of(unit..2 * unit)[..], "{what}: healed");
        }
    }
}
