//! Bytes that cannot be had: values for `load`, a signal for a bare read, and health afterwards.

use std::{os::unix::process::ExitStatusExt, sync::Arc};

use pager::{Error, SourceError, Strength, Version, policy::NoPrefetch};

use crate::support::{
    Behaviour, Known, alone, builder, byte_at, bytes_of, can_fault, is_full, passed, probe, until,
};

fn reset() -> SourceError {
    SourceError::transient_read("test://known", 0..1, "connection reset", None)
}

#[test]
fn every_error_of_the_source_comes_out_of_load() {
    let source = Known::new(1 << 20);
    let builder = builder().budget_bytes(8 << 20).prefetch(|| Box::new(NoPrefetch));
    let region = builder.build().unwrap().open(source.clone()).unwrap();
    let pager = region.pager();
    let object = "test://known".to_owned();
    let errors = [
        SourceError::NotFound { object: object.clone(), cause: None },
        SourceError::Changed { object: object.clone(), expected: "1".into(), found: "2".into() },
        SourceError::Throttled {
            object: object.clone(),
            what: "read",
            range: None,
            attempts: 1,
            retry_after: None,
            cause: None,
        },
        SourceError::Denied { object: object.clone(), reason: "no".into(), cause: None },
        reset(),
        SourceError::Permanent { object, reason: "no ranges".into(), cause: None },
    ];
    for (n, expected) in errors.into_iter().enumerate() {
        source.behave(Behaviour::Fail(expected.clone()));
        let at = n as u64 * 65536;
        match region.load(at..at + 1).unwrap_err() {
            Error::Source(got) => assert_eq!(got.kind(), expected.kind()),
            other => panic!("{other}"),
        }
        source.behave(Behaviour::Serve);
        assert_eq!(region.load(at..at + 1).unwrap()[0], byte_at(at), "healthy again");
    }
    assert_eq!(pager.budget().pinned(), 0);
}

#[test]
fn a_short_body_keeps_the_units_that_came_whole() {
    let source = Known::new(1 << 20);
    let pager = builder().budget_bytes(8 << 20).build().unwrap();
    let region = pager.open(source.clone()).unwrap();
    source.behave(Behaviour::Truncate(65536 + 100));
    let error = region.load(0..4 * 65536).unwrap_err();
    assert!(matches!(&error, Error::Source(SourceError::Corrupt { .. })), "{error}");
    assert!(error.to_string().contains("65536..131072"), "names the bytes: {error}");
    source.behave(Behaviour::Serve);
    let before = source.requests().len();
    assert_eq!(region.load(0..65536).unwrap()[..], bytes_of(0..65536)[..]);
    assert_eq!(source.requests().len(), before, "unit 0 came whole the first time");
}

/// A body that went on was noted and taken: what comes after its range may mean that it is another's.
#[test]
fn a_body_with_bytes_too_many_is_damage_to_its_last_unit() {
    let source = Known::new(1 << 20);
    let builder = builder().budget_bytes(8 << 20).prefetch(|| Box::new(NoPrefetch));
    let region = builder.build().unwrap().open(source.clone()).unwrap();
    let long = |range: std::ops::Range<u64>| {
        let error = region.load(range).map(drop).unwrap_err();
        assert!(matches!(&error, Error::Source(SourceError::Corrupt { .. })), "{error}");
        assert!(error.to_string().contains("were asked for"), "{error}");
    };
    source.behave(Behaviour::Excess(1));
    long(0..4 * 65_536);
    source.behave(Behaviour::Serve);
    let before = source.requests().len();
    assert_eq!(region.load(0..3 * 65_536).unwrap()[..], bytes_of(0..3 * 65_536)[..]);
    assert_eq!(source.requests().len(), before, "the units before the last one are whole");
    assert_eq!(region.load(3 * 65_536..4 * 65_536).unwrap()[0], byte_at(3 * 65_536));
    // The same by the way that frames are filled.
    source.0.frames.store(true, std::sync::atomic::Ordering::SeqCst);
    source.behave(Behaviour::Excess(1));
    long(500_000..500_001);
}

#[test]
fn a_body_that_brings_all_and_does_not_end_is_not_waited_for() {
    let source = Known::new(1 << 20);
    // The default deadline, a minute, is longer than a test may hang.
    let pager = builder().budget_bytes(8 << 20).build().unwrap();
    let region = pager.open(source.clone()).unwrap();
    source.behave(Behaviour::NoEnd);
    assert_eq!(region.load(0..200_000).unwrap()[..], bytes_of(0..200_000)[..]);
    assert_eq!(region.stats().errors, 0);
}

#[test]
fn all_who_wait_for_one_unit_get_the_error() {
    let source = Known::new(1 << 20);
    let pager = builder().budget_bytes(8 << 20).build().unwrap();
    let region = pager.open(source.clone()).unwrap();
    source.delay(std::time::Duration::from_millis(30));
    source.behave(Behaviour::Fail(reset()));
    std::thread::scope(|scope| {
        let loads: Vec<_> = (0..8).map(|_| scope.spawn(|| region.load(0..1).is_err())).collect();
        assert!(loads.into_iter().all(|load| load.join().unwrap()));
    });
}

#[test]
fn a_bare_read_of_bytes_that_cannot_be_had_raises_sigbus() {
    const TEST: &str = "failure::a_bare_read_of_bytes_that_cannot_be_had_raises_sigbus";
    if !can_fault() || !probe().can_poison {
        return println!("left out: poison: this kernel or user has none");
    }
    let died_of_sigbus = |output: std::process::Output| {
        assert_eq!(output.status.signal(), Some(nix::libc::SIGBUS), "{:?}", output.status);
    };
    if alone(TEST, died_of_sigbus) {
        let source = Known::new(1 << 20);
        let pager = builder().budget_bytes(8 << 20).build().unwrap();
        let mapped = pager.open(source.clone()).unwrap().map().unwrap();
        source.behave(Behaviour::Fail(reset()));
        println!("read {}", mapped[100_000]);
    }
}

/// The log's thread had nobody to tell but `tracing`, and SIGBUS did not wait for it.
#[test]
fn without_a_subscriber_stderr_has_why_a_bare_read_ends_the_process() {
    const TEST: &str = "failure::without_a_subscriber_stderr_has_why_a_bare_read_ends_the_process";
    if !can_fault() || !probe().can_poison {
        return println!("left out: poison: this kernel or user has none");
    }
    let told = |output: std::process::Output| {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.signal(), Some(nix::libc::SIGBUS), "{text}");
        let line = text.lines().find(|line| line.starts_with("extmem pager: ")).unwrap_or(&text);
        for part in
            ["test://known", "bytes 524288..589824", "connection reset", "SIGBUS", "by a peer"]
        {
            assert!(line.contains(part), "{part} in {text}");
        }
    };
    if alone(TEST, told) {
        let source = Known::new(1 << 20);
        let builder = builder().budget_bytes(8 << 20).prefetch(|| Box::new(NoPrefetch));
        let mapped = builder.build().unwrap().open(source.clone()).unwrap().map().unwrap();
        assert_eq!(mapped[0], byte_at(0));
        let peer: pager::Cause = Arc::new(std::io::Error::other("by a\npeer"));
        let error = SourceError::transient_read(
            "test://known",
            524_288..589_824,
            "connection reset",
            Some(peer),
        );
        source.behave(Behaviour::Fail(error));
        // The reader holds stderr's lock, which must not keep the text from coming out.
        let _lock = std::io::stderr().lock();
        println!("read {}", mapped[524_299]);
    }
}

#[test]
fn a_poisoned_page_heals_when_a_later_fetch_succeeds() {
    if !is_full() || !probe().can_poison {
        return println!("left out: healing: needs full userfaultfd with poison");
    }
    for unit in [65536, 2 << 20] {
        let source = Known::new(8 << 20);
        let pager = builder().unit_bytes(unit).budget_bytes(80 << 20).build().unwrap();
        let region = pager.open(source.clone()).unwrap();
        let mapped = region.map().unwrap();
        source.behave(Behaviour::Fail(reset()));
        // A system call that reads the page gets EFAULT where the program itself would get SIGBUS.
        let (_read, write) = nix::unistd::pipe().unwrap();
        let touched = nix::unistd::write(&write, &mapped[100_000..100_001]);
        assert_eq!(touched, Err(nix::errno::Errno::EFAULT), "unit {unit}");
        until("the poison is counted", || region.stats().poisoned == 1);
        assert!(region.load(100_000..100_001).is_err(), "still failing");
        source.behave(Behaviour::Serve);
        assert_eq!(region.load(100_000..100_001).unwrap()[0], byte_at(100_000));
        assert_eq!(mapped[100_001], byte_at(100_001), "unit {unit}: the bare read is healed too");
        assert!(region.stats().healed >= 1);
    }
}

#[test]
fn a_fault_that_joins_a_failed_guess_gets_a_request_of_its_own() {
    let source = Known::new(8 << 20);
    let pager = builder().budget_bytes(64 << 20).build().unwrap();
    let region = pager.open(source.clone()).unwrap();
    let gate = source.hold();
    source.behave(Behaviour::Fail(reset()));
    region.advise(pager::Hint::WillNeed(&[0..65536, 65536..131_072])).unwrap();
    until("the guess is out", || source.requests().len() == 1);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| region.load(0..1).map(|guard| guard[0]));
        until("the reader waits for the guess", || region.stats().loads == 1);
        gate.add_permits(1);
        until("the reader has a request of its own", || source.requests().len() == 2);
        source.behave(Behaviour::Serve);
        gate.add_permits(1);
        assert_eq!(load.join().unwrap().unwrap(), byte_at(0));
    });
}

#[test]
fn weak_versions_are_not_mapped_by_safe_code() {
    if !can_fault() {
        return println!("left out: mapping: no userfaultfd");
    }
    let source = Known::with_version(1 << 20, Version::weak("mtime 7"));
    let pager = builder().budget_bytes(8 << 20).build().unwrap();
    let region = pager.open(source).unwrap();
    assert_eq!(region.version().strength(), Strength::Weak);
    assert!(region.map().unwrap_err().to_string().contains("mtime 7"));
    // SAFETY: the test's object never changes.
    let mapped = unsafe { region.map_assuming_immutable() }.unwrap();
    assert_eq!(mapped[77_777], byte_at(77_777));
    assert_eq!(region.load(3..4).unwrap()[0], byte_at(3));
}

#[test]
fn causes_of_poison_reach_the_log_and_not_the_reader() {
    const TEST: &str = "failure::causes_of_poison_reach_the_log_and_not_the_reader";
    if !is_full() || !probe().can_poison {
        return println!("left out: causes: needs full userfaultfd with poison");
    }
    if alone(TEST, passed) {
        let seen = Arc::new(std::sync::Mutex::new(String::new()));
        tracing::subscriber::set_global_default(Collect(seen.clone())).unwrap();
        let source = Known::new(1 << 20);
        let pager = builder().budget_bytes(8 << 20).build().unwrap();
        let mapped = pager.open(source.clone()).unwrap().map().unwrap();
        source.behave(Behaviour::Fail(reset()));
        // The reader holds the lock that the log needs: nothing on the way to it may wait for that.
        let log = seen.lock().unwrap();
        let (_read, write) = nix::unistd::pipe().unwrap();
        assert!(nix::unistd::write(&write, &mapped[..1]).is_err());
        drop(log);
        until("the cause is logged", || {
            let log = seen.lock().unwrap();
            log.contains("connection reset") && log.contains("test://known")
        });
    }
}

/// Collects the text of events.
struct Collect(Arc<std::sync::Mutex<String>>);

impl tracing::Subscriber for Collect {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::ERROR
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        struct Text<'a>(&'a mut String);
        impl tracing::field::Visit for Text<'_> {
            fn record_debug(&mut self, _: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0.push_str(&format!("{value:?}\n"));
            }
        }
        event.record(&mut Text(&mut self.0.lock().unwrap()));
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn without_poison_the_process_ends_with_the_errors_text() {
    const TEST: &str = "failure::without_poison_the_process_ends_with_the_errors_text";
    if !can_fault() {
        return println!("left out: page faults: no userfaultfd");
    }
    let aborted = |output: std::process::Output| {
        assert_eq!(output.status.signal(), Some(nix::libc::SIGABRT), "{:?}", output.status);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains("test://known") && text.contains("connection reset"), "{text}");
    };
    if alone(TEST, aborted) {
        let source = Known::new(1 << 20);
        let pager = builder().budget_bytes(8 << 20).poison(false).build().unwrap();
        let mapped = pager.open(source.clone()).unwrap().map().unwrap();
        source.behave(Behaviour::Fail(reset()));
        // The reader holds stderr's lock, which must not keep the text from coming out.
        let _lock = std::io::stderr().lock();
        println!("read {}", mapped[100_000]);
    }
}

/// Another version is an error by every door, for what was resident before as well: never a mixture.
#[test]
fn an_object_that_changes_under_a_region_is_never_a_mixture() {
    let source = Known::new(1 << 20);
    let builder = builder().budget_bytes(8 << 20).prefetch(|| Box::new(NoPrefetch));
    let region = builder.build().unwrap().open(source.clone()).unwrap();
    assert_eq!(region.load(0..2 * 65_536).unwrap()[..], bytes_of(0..2 * 65_536)[..]);
    source.behave(Behaviour::Fail(SourceError::Changed {
        object: "test://known".to_owned(),
        expected: "v1".to_owned(),
        found: "v2".to_owned(),
    }));
    let changed = |range: std::ops::Range<u64>| {
        let error = region.load(range.clone()).map(drop).unwrap_err();
        assert!(matches!(error, Error::Source(SourceError::Changed { .. })), "{range:?}: {error}");
    };
    changed(500_000..500_001);
    changed(65_536..3 * 65_536);
    assert_eq!(region.load(1..2).unwrap()[0], byte_at(1), "what is resident is of one version");
    region.advise(pager::Hint::DontNeed(0..65_536)).unwrap();
    changed(0..1);
    changed(0..2 * 65_536);
    if is_full() && probe().can_poison {
        let mapped = region.map().unwrap();
        let (_read, write) = nix::unistd::pipe().unwrap();
        for at in [0, 500_000] {
            let touched = nix::unistd::write(&write, &mapped[at..at + 1]);
            assert_eq!(touched, Err(nix::errno::Errno::EFAULT), "at {at}");
        }
        assert_eq!(mapped[65_536], byte_at(65_536));
    }
}
