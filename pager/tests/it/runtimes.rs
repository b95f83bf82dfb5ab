//! The pager inside async code: nothing that a consumer blocks can block the pager.

use std::{
    os::unix::process::ExitStatusExt,
    time::{Duration, Instant},
};

use pager::{Error, Pager};

use crate::support::{Behaviour, Known, alone, builder, byte_at, can_fault, passed, probe, until};

fn current_thread() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn open_and_bare_read_inside_a_current_thread_runtime() {
    current_thread().block_on(async {
        let pager = builder().budget_bytes(8 << 20).build().unwrap();
        let source = Known::new(1 << 20).delay(Duration::from_millis(5));
        let region = pager.open(source).unwrap();
        assert_eq!(region.load(70_000..70_001).unwrap()[0], byte_at(70_000));
        assert_eq!(region.load_async(9..10).await.unwrap()[0], byte_at(9));
        if can_fault() {
            let mapped = region.map().unwrap();
            assert_eq!(mapped[1_000_000], byte_at(1_000_000));
        }
        // The last handles go here, inside the runtime.
    });
}

#[test]
fn dropping_everything_with_requests_in_flight_hangs_nowhere() {
    let start = Instant::now();
    let source = Known::new(1 << 20);
    source.behave(Behaviour::Serve);
    let pager = builder().budget_bytes(8 << 20).build().unwrap();
    let region = pager.open(source.clone()).unwrap();
    source.behave(Behaviour::Hang);
    let waiting = std::thread::spawn({
        let region = region.clone();
        move || {
            let load = region.load_async(0..1);
            // Polled once, so that the request is out, then dropped.
            let runtime = current_thread();
            runtime.block_on(async {
                let soon = tokio::time::sleep(Duration::from_millis(10));
                tokio::select! {
                    _ = load => panic!("the source never answers"),
                    _ = soon => {}
                }
            });
        }
    });
    until("the request is out", || !source.requests().is_empty());
    drop(pager);
    waiting.join().unwrap();
    drop(region);
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_source_that_never_answers_meets_the_deadline() {
    let source = Known::new(1 << 20);
    let builder = builder().budget_bytes(8 << 20).deadline(Duration::from_millis(50));
    let pager = builder.build().unwrap();
    let region = pager.open(source.clone()).unwrap();
    source.behave(Behaviour::Hang);
    let start = Instant::now();
    let error = region.load(0..1).unwrap_err();
    assert!(matches!(error, Error::Source(_)), "{error}");
    assert!(error.to_string().contains("deadline"), "{error}");
    let error = pager.open(source).unwrap_err();
    assert!(matches!(error, Error::Deadline { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("length and version") && text.contains("deadline of 50ms"), "{text}");
    assert!(start.elapsed() < Duration::from_secs(5));
}

/// A stream that is always ready kept its task from ever looking at the time.
#[test]
fn a_source_that_answers_with_nothing_for_ever_meets_the_deadline() {
    for frames in [false, true] {
        let source = Known::new(1 << 20);
        source.0.frames.store(frames, std::sync::atomic::Ordering::SeqCst);
        let builder = builder().budget_bytes(8 << 20).deadline(Duration::from_millis(50));
        let region = builder.build().unwrap().open(source.clone()).unwrap();
        source.behave(Behaviour::Empty);
        current_thread().block_on(async {
            let load = tokio::time::timeout(Duration::from_secs(60), region.load_async(0..1));
            let error = load.await.expect("an answer, some time").unwrap_err();
            assert!(matches!(error, Error::Source(_)), "{error}");
            assert!(error.to_string().contains("deadline of 50ms"), "{error}");
        });
    }
}

#[test]
fn a_bare_read_of_what_never_comes_ends_in_sigbus() {
    const TEST: &str = "runtimes::a_bare_read_of_what_never_comes_ends_in_sigbus";
    if !can_fault() || !probe().can_poison {
        return println!("left out: poison: this kernel or user has none");
    }
    let judge = |output: std::process::Output| {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.signal(), Some(nix::libc::SIGBUS), "{text}");
        assert!(text.contains("deadline of 50ms"), "{text}");
    };
    if alone(TEST, judge) {
        // A hang ends in another signal.
        nix::unistd::alarm::set(60);
        let source = Known::new(1 << 20);
        let builder = builder().budget_bytes(8 << 20).deadline(Duration::from_millis(50));
        let mapped = builder.build().unwrap().open(source.clone()).unwrap().map().unwrap();
        source.behave(Behaviour::Empty);
        println!("read {}", mapped[100_000]);
    }
}

#[test]
fn a_source_that_panics_is_an_error() {
    let source = Known::new(1 << 20);
    let pager = builder().budget_bytes(8 << 20).build().unwrap();
    let region = pager.open(source.clone()).unwrap();
    source.behave(Behaviour::Panic);
    assert!(region.load(0..1).unwrap_err().to_string().contains("panicked"));
    assert!(pager.open(source.clone()).unwrap_err().to_string().contains("panicked"));
    source.behave(Behaviour::Serve);
    assert_eq!(region.load(0..1).unwrap()[0], byte_at(0));
}

#[test]
fn a_cancelled_load_unpins_and_the_next_one_works() {
    let source = Known::new(1 << 20);
    let pager = builder().budget_bytes(8 << 20).build().unwrap();
    let region = pager.open(source.clone()).unwrap();
    let gate = source.hold();
    current_thread().block_on(async {
        for _ in 0..3 {
            let soon = tokio::time::sleep(Duration::from_millis(1));
            tokio::select! {
                _ = region.load_async(0..1) => panic!("the source has not answered"),
                _ = soon => {}
            }
        }
        assert_eq!(pager.budget().pinned(), 0);
        gate.add_permits(1);
        assert_eq!(region.load_async(0..1).await.unwrap()[0], byte_at(0));
    });
    assert_eq!(source.requests().len(), 1, "one request, however many waited");
}

#[test]
fn closing_refuses_and_keeps_what_is_alive() {
    let pager = builder().budget_bytes(8 << 20).build().unwrap();
    let region = pager.open(Known::new(1 << 20)).unwrap();
    let guard = region.load(5..6).unwrap();
    let mapped = can_fault().then(|| region.map().unwrap());
    region.clone().close();
    assert!(matches!(region.load(0..1).unwrap_err(), Error::Closed { .. }));
    assert!(region.map().is_err() && region.advise(pager::Hint::Random).is_err());
    assert_eq!(guard[0], byte_at(5));
    drop(guard);
    drop((region, pager));
    if let Some(mapped) = mapped {
        assert_eq!(mapped[999_999], byte_at(999_999), "a map outlives its region and pager");
    }
}

#[test]
fn a_closed_region_gives_its_bytes_back() {
    let pager = builder().budget_bytes(8 << 20).build().unwrap();
    for _ in 0..3 {
        let region = pager.open(Known::new(4 << 20)).unwrap();
        let mut buf = vec![0; 4 << 20];
        region.read_at(0, &mut buf).unwrap();
        assert!(pager.budget().used() >= 4 << 20);
        drop(region);
        // What is left are the idle frames, a sixteenth of the budget at most.
        until("the units are gone", || pager.pool().is_empty());
        until("the bytes are back", || pager.budget().used() <= (8 << 20) / 16);
        until("no guess is left", || pager.budget().speculative() == 0);
    }
}

#[test]
fn a_thousand_regions_open_read_and_close() {
    let pager = builder().unit_bytes(4096).budget_bytes(32 << 20).build().unwrap();
    let regions: Vec<_> = (0..1000).map(|n| pager.open(Known::new(10_000 + n)).unwrap()).collect();
    for (n, region) in regions.iter().enumerate() {
        let at = (n as u64 * 7) % region.len();
        if can_fault() {
            assert_eq!(region.map().unwrap()[at as usize], byte_at(at));
        } else {
            assert_eq!(region.load(at..at + 1).unwrap()[0], byte_at(at));
        }
    }
}

#[test]
fn closing_a_region_ends_its_requests() {
    let source = Known::new(1 << 20);
    let pager = builder().budget_bytes(8 << 20).build().unwrap();
    let region = pager.open(source.clone()).unwrap();
    source.behave(Behaviour::Hang);
    region.advise(pager::Hint::WillNeed(&[0..10, 500_000..500_010])).unwrap();
    until("the guesses are out", || source.requests().len() == 2);
    drop(region);
    until("nothing is under way", || source.under_way() == 0);
    until("no guess is left", || pager.budget().speculative() == 0);
}

#[test]
fn handles_go_between_threads() {
    fn check<T: Send + Sync>() {}
    check::<Pager>();
    check::<pager::Region>();
    check::<pager::Guard<'static>>();
    check::<pager::Mapped>();
    check::<Error>();
}

/// Where the kernel cannot poison, a failure ends the process: closing must not be taken for one.
#[test]
fn closing_with_faults_in_flight_where_nothing_can_be_poisoned() {
    const TEST: &str = "runtimes::closing_with_faults_in_flight_where_nothing_can_be_poisoned";
    if !can_fault() {
        return println!("left out: page faults: no userfaultfd");
    }
    if !alone(TEST, passed) {
        return;
    }
    let source = Known::new(1 << 20);
    let pager = builder().budget_bytes(8 << 20).poison(false).build().unwrap();
    let region = pager.open(source.clone()).unwrap();
    let mapped = region.map().unwrap();
    source.delay(Duration::from_millis(100));
    let readers: Vec<_> = [0usize, 300_000, 900_000]
        .into_iter()
        .map(|at| {
            let mapped = mapped.clone();
            std::thread::spawn(move || assert_eq!(mapped[at], byte_at(at as u64)))
        })
        .collect();
    until("the faults are out", || source.requests().len() == 3);
    region.close();
    assert!(matches!(region.load(0..1).unwrap_err(), Error::Closed { .. }));
    // The last handles but those of the readers, whose bytes are still on their way.
    drop((region, mapped, pager));
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    until("everything is closed", || std::sync::Arc::strong_count(&source.0) == 1);
}
