//! What the kernel does with missing pages: system calls, forks.

use std::io::{Read, Write};

use nix::sys::{
    signal::Signal,
    wait::{WaitStatus, waitpid},
};
use pager::{ModeRequest, Pager};

use crate::support::{Known, byte_at, bytes_of, can_fault, modes};

#[test]
fn system_calls_on_missing_pages_in_each_mode() {
    for mode in modes() {
        let pager = Pager::builder().mode(mode).budget_bytes(8 << 20).build().unwrap();
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
            pager::Mode::Full => {
                assert_eq!(outcome, Ok(10), "{mode:?}");
                read.read_exact(&mut got).unwrap();
                assert_eq!(got[..], bytes_of(500_000..500_010)[..]);
            }
            _ => assert_eq!(outcome, Err(nix::errno::Errno::EFAULT), "{mode:?}"),
        }
    }
}

#[test]
fn a_forked_child_cannot_read_zeros() {
    if !can_fault() {
        return println!("left out: fork: no userfaultfd");
    }
    let pager = Pager::builder().budget_bytes(8 << 20).build().unwrap();
    let mapped = pager.open(Known::new(1 << 20)).unwrap().map().unwrap();
    assert_eq!(mapped[0], byte_at(0));
    for at in [0usize, 700_000] {
        // SAFETY: the child only reads memory and leaves; it allocates nothing and takes no lock.
        match unsafe { nix::unistd::fork() }.unwrap() {
            nix::unistd::ForkResult::Child => {
                let seen = std::hint::black_box(mapped[at]);
                // SAFETY: ends the child at once, without running what belongs to the parent.
                unsafe { nix::libc::_exit(i32::from(seen)) }
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
