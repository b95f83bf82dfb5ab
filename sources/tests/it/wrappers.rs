//! The conformance suite over every wrapper, and retrying on a paused clock.

use std::time::Duration;

use futures::TryStreamExt;
use proptest::prelude::*;
use sources::{
    BlockSource, Counted, Faulty, Frame, Gate, Hedge, Limit, Memory, Retry, RetryPolicy,
    SourceError, Traffic,
    conformance::check,
    faulty::{Failure, Fault, Rates, Schedule},
    limit::LimitPolicy,
};
use tokio::time::Instant;

use crate::servers::sample;

#[tokio::test]
async fn every_wrapper_conforms() {
    let bytes = sample(300_001);
    let leaf = || Memory::new("x", bytes.clone());
    let gate = || Gate::new("x", LimitPolicy { requests_max: 3, ..LimitPolicy::default() });
    check(Retry::new(leaf()), &bytes).await.expect("retry");
    check(Limit::new(leaf(), gate()), &bytes).await.expect("limit");
    check(Hedge::new(leaf()), &bytes).await.expect("hedge");
    check(Counted::new(leaf(), Traffic::default()), &bytes).await.expect("counted");
    check(Faulty::new(leaf(), Schedule::script([])), &bytes).await.expect("faulty");
    let all = Retry::new(Limit::new(Hedge::new(Counted::new(leaf(), Traffic::default())), gate()));
    check(all, &bytes).await.expect("all");
}

/// Only a leaf that fails now and then shows what Retry is for.
#[tokio::test(start_paused = true)]
async fn retry_around_faults_conforms() {
    let bytes = sample(300_001);
    let rates = Rates {
        fail: 0.1,
        truncate: 0.1,
        broken: 0.1,
        stall: 0.05,
        delay: 0.3,
        delay_max: Duration::from_millis(50),
        ..Rates::default()
    };
    for seed in 0..4 {
        let leaf = Faulty::new(Memory::new("x", bytes.clone()), Schedule::seeded(seed, rates));
        let policy =
            RetryPolicy { attempts_max: 50, deadline: Duration::from_secs(3600), ..seeded(seed) };
        check(Retry::with(leaf, policy), &bytes).await.unwrap_or_else(|wrong| {
            panic!("seed {seed}: {wrong}");
        });
    }
}

fn seeded(seed: u64) -> RetryPolicy {
    RetryPolicy { seed: Some(seed), ..RetryPolicy::default() }
}

/// What reads of a kilobyte through both ways end in, and how long they take.
async fn both_ways(
    faults: &[Fault],
    policy: &RetryPolicy,
) -> [(Result<(), SourceError>, Duration); 2] {
    let bytes = sample(1024);
    let script = || Schedule::script(faults.iter().cloned().map(Some));
    let source =
        || Retry::with(Faulty::new(Memory::new("x", bytes.clone()), script()), policy.clone());
    let (streamed, framed) = (source(), source());
    let version = streamed.stat().await.expect("stat").version;
    let began = Instant::now();
    let stream = async {
        let body = streamed.read(&version, 0..1024).await?;
        let got = body.try_collect::<Vec<_>>().await?.concat();
        assert!(got == bytes, "{faults:?}: wrong bytes");
        Ok(())
    };
    let first = (stream.await, began.elapsed());
    let version = framed.stat().await.expect("stat").version;
    let began = Instant::now();
    let mut frame = Frame::with_capacity(2048);
    frame.put(b"before");
    let result = framed.read_into(&version, 0..1024, frame).await;
    let result = result.map(|frame| {
        assert!(frame.filled()[6..] == bytes && frame.filled().starts_with(b"before"));
    });
    [first, (result, began.elapsed())]
}

/// A body that breaks goes on in its turn; but while its retry waits, others have it.
#[tokio::test(start_paused = true)]
async fn a_turn_is_not_slept_in() {
    let bytes = sample(1024);
    let policy = LimitPolicy { requests_min: 1, requests_start: 1, requests_max: 1, queue_max: 10 };
    let gate = Gate::new("x", policy);
    let later = Some(Duration::from_secs(20));
    let script =
        [Fault::Break { after: 100 }, Fault::Fail(Failure::Throttled { retry_after: later })];
    let faulty = Faulty::new(Memory::new("x", bytes.clone()), Schedule::script(script.map(Some)));
    let broken = Retry::with(Limit::new(faulty, gate.clone()), seeded(1));
    let other = Limit::new(Memory::new("y", bytes.clone()), gate.clone());
    let version = broken.stat().await.expect("stat").version;
    let reading = tokio::spawn(async move {
        let body = broken.read(&version, 0..1024).await.expect("a body");
        body.try_collect::<Vec<_>>().await.map(|chunks| chunks.concat())
    });
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!reading.is_finished(), "it was told to wait");
    let version = other.stat().await.expect("stat").version;
    let held = tokio::time::timeout(Duration::from_secs(1), other.read(&version, 0..10)).await;
    let held = held.expect("its turn").expect("a body");
    // It goes on all the same, as others may wait for what its reader holds.
    assert!(reading.await.expect("a task").expect("bytes") == bytes);
    drop(held);
    assert_eq!(gate.running(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_retrying_ends_in() {
    let ms = Duration::from_millis;
    let throttled = |after| Fault::Fail(Failure::Throttled { retry_after: after });
    let transient = || Fault::Fail(Failure::Transient);
    // Name, faults in order, what comes out, time from and to.
    let cases: Vec<(&str, Vec<Fault>, &str, Duration, Duration)> = vec![
        ("nothing", vec![], "ok", ms(0), ms(1)),
        ("one failure", vec![transient()], "ok", ms(0), ms(50)),
        ("short bodies", vec![Fault::Truncate { after: 100 }; 5], "ok", ms(0), ms(2000)),
        ("broken bodies", vec![Fault::Break { after: 100 }; 5], "ok", ms(0), ms(2000)),
        ("a stalled body", vec![Fault::Stall { after: 5 }], "ok", ms(10_000), ms(10_100)),
        ("no answer", vec![Fault::Stall { after: 0 }], "ok", ms(10_000), ms(10_100)),
        ("asked to wait", vec![throttled(Some(ms(3000)))], "ok", ms(3000), ms(3250)),
        ("asked too much", vec![throttled(Some(ms(60_000)))], "throttled", ms(0), ms(1)),
        ("too many failures", vec![transient(); 9], "transient", ms(0), ms(20_000)),
        (
            "stalled for ever",
            vec![Fault::Stall { after: 0 }; 99],
            "transient",
            ms(40_000),
            ms(45_001),
        ),
        ("not found", vec![Fault::Fail(Failure::NotFound)], "not_found", ms(0), ms(1)),
        ("denied", vec![Fault::Fail(Failure::Denied)], "denied", ms(0), ms(1)),
        ("permanent", vec![Fault::Fail(Failure::Permanent)], "permanent", ms(0), ms(1)),
        ("changed", vec![Fault::Break { after: 9 }, Fault::Change], "changed", ms(0), ms(50)),
    ];
    for (what, faults, expected, least, most) in cases {
        for (way, (result, took)) in
            ["stream", "frame"].iter().zip(both_ways(&faults, &seeded(7)).await)
        {
            let got = result.as_ref().map_or_else(|error| error.kind(), |()| "ok");
            assert_eq!(got, expected, "{what}, {way}: {result:?}");
            assert!((least..=most).contains(&took), "{what}, {way}: took {took:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn attempts_are_told_and_replay() {
    let faults = vec![Fault::Fail(Failure::Transient); 20];
    let [(first, took), (second, _)] = both_ways(&faults, &seeded(3)).await;
    for result in [first, second] {
        match result {
            Err(SourceError::Transient { attempts, range, .. }) => {
                assert_eq!((attempts, range), (8, Some(0..1024)));
            }
            other => panic!("{other:?}"),
        }
    }
    let [(_, again), _] = both_ways(&faults, &seeded(3)).await;
    assert_eq!(took, again, "the same seed, the same waits");
}

/// The time in a queue is not the server's: the request keeps its place and is sent once.
#[tokio::test(start_paused = true)]
async fn waiting_for_a_turn_is_no_silence() {
    let bytes = sample(1000);
    let slow = Schedule::script(vec![Some(Fault::Delay(Duration::from_secs(9))); 4]);
    let traffic = Traffic::default();
    let leaf = Counted::new(Faulty::new(Memory::new("x", bytes.clone()), slow), traffic.clone());
    let policy = LimitPolicy { requests_min: 1, requests_start: 1, requests_max: 1, queue_max: 9 };
    let limited = Limit::new(leaf, Gate::new("x", policy));
    let source = Retry::with(limited, RetryPolicy { attempts_max: 1, ..seeded(1) });
    let version = source.stat().await.expect("stat").version;
    let began = Instant::now();
    // Four of nine seconds each, one at a time: the last waits for 27 and is answered at 36.
    let reads = (0..4).map(|n| {
        let (source, version, bytes) = (&source, &version, &bytes);
        async move {
            let frame = Frame::with_capacity(1000);
            if n % 2 == 0 {
                let frame = source.read_into(version, 0..1000, frame).await.expect("read");
                assert!(frame.filled() == bytes);
            } else {
                let body = source.read(version, 0..1000).await.expect("read");
                assert!(body.try_collect::<Vec<_>>().await.expect("bytes").concat() == *bytes);
            }
        }
    });
    futures::future::join_all(reads).await;
    assert_eq!(began.elapsed().as_secs(), 36);
    assert_eq!(traffic.count().gets, 4);
}

/// The deadline of the call counts the queue, and says so.
#[tokio::test(start_paused = true)]
async fn a_turn_that_never_comes_ends_with_the_deadline() {
    let policy = LimitPolicy { requests_min: 1, requests_start: 1, requests_max: 1, queue_max: 9 };
    let limited = Limit::new(Memory::new("x", sample(1000)), Gate::new("x", policy));
    let source = Retry::with(limited, seeded(1));
    let version = source.stat().await.expect("stat").version;
    let held = source.read(&version, 0..10).await.expect("read");
    let began = Instant::now();
    let error = source.read(&version, 0..10).await.map(drop).expect_err("no turn");
    assert_eq!(began.elapsed().as_secs(), 45, "{error}");
    assert!(error.to_string().contains("no turn for 45s"), "{error}");
    drop(held);
    assert!(source.read(&version, 0..10).await.is_ok());
}

/// A body that breaks is not fetched again from its start.
#[tokio::test(start_paused = true)]
async fn resumed_bodies_bring_each_byte_once() {
    let bytes = sample(1 << 20);
    let traffic = Traffic::default();
    let script = Schedule::script((0..12).map(|_| Some(Fault::Break { after: 80_000 })));
    let leaf = Counted::new(Faulty::new(Memory::new("x", bytes.clone()), script), traffic.clone());
    let source = Retry::with(leaf, RetryPolicy { attempts_max: 2, ..seeded(1) });
    let version = source.stat().await.expect("stat").version;
    let body = source.read(&version, 0..1 << 20).await.expect("read");
    // Twelve breaks with two attempts: each brought enough not to count.
    let got = body.try_collect::<Vec<_>>().await.expect("bytes").concat();
    assert!(got == bytes);
    assert_eq!(traffic.count().bytes, 1 << 20);
    assert_eq!(traffic.count().gets, 13);
}

/// A server that ignores the range and sends more is no server to resume from.
#[tokio::test(start_paused = true)]
async fn bodies_that_are_too_long_are_not_patched_up() {
    struct TooLong;
    #[sources::async_trait]
    impl BlockSource for TooLong {
        fn name(&self) -> &str {
            "too long"
        }

        async fn stat(&self) -> Result<sources::ObjectStat, SourceError> {
            let version = sources::Version::strong("v");
            Ok(sources::ObjectStat::new(100, version).with_part_bytes(100))
        }

        async fn read(
            &self,
            _: &sources::Version,
            _: std::ops::Range<u64>,
        ) -> Result<sources::ByteStream, SourceError> {
            let chunks = [Ok(vec![0u8; 30].into()), Ok(vec![1u8; 70].into())];
            Ok(Box::pin(futures::stream::iter(chunks)))
        }
    }
    let source = Retry::with(TooLong, seeded(1));
    let version = source.stat().await.expect("stat").version;
    let body = source.read(&version, 10..50).await.expect("read");
    let error = body.try_collect::<Vec<_>>().await.expect_err("too long");
    assert!(matches!(error, SourceError::Corrupt { .. }), "{error}");
    let error = source.read_into(&version, 10..50, Frame::with_capacity(40)).await;
    assert!(matches!(error, Err(SourceError::Corrupt { .. })), "{error:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever fails and goes away again, the bytes are right in both ways of reading.
    #[test]
    fn faults_that_pass_leave_no_trace(seed: u64, start in 0u64..5000, len in 1u64..5000) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let bytes = sample(10_000);
            let rates = Rates {
                fail: 0.2, truncate: 0.2, broken: 0.2, stall: 0.1, ..Rates::default()
            };
            let leaf = Faulty::new(Memory::new("x", bytes.clone()), Schedule::seeded(seed, rates));
            let policy = RetryPolicy {
                attempts_max: 1000,
                deadline: Duration::from_secs(24 * 3600),
                ..seeded(seed)
            };
            let source = Retry::with(leaf, policy);
            let version = source.stat().await.expect("stat").version;
            let range = start..start + len;
            let body = source.read(&version, range.clone()).await.expect("read");
            let got = body.try_collect::<Vec<_>>().await.expect("bytes").concat();
            let expected = &bytes[start as usize..(start + len) as usize];
            prop_assert!(got == expected);
            let frame = Frame::with_capacity(len as usize);
            let frame = source.read_into(&version, range, frame).await.expect("read");
            prop_assert!(frame.filled() == expected);
            Ok(())
        })?;
    }
}
