//! S3 behind a switch of faults: each ends in the right bytes or the right error, in time.

use std::time::{Duration, Instant};

use futures::TryStreamExt;
use sources::{BlockSource, Options, RetryPolicy, SourceError, Traffic};

use crate::servers::{Bucket, FAULT_PORT, sample, variable};

const LEN: u64 = 3 << 20;

pub(crate) struct Switch {
    pub(crate) base: String,
    pub(crate) client: reqwest::Client,
}

impl Switch {
    pub(crate) async fn set(&self, query: &str) {
        let url = format!("{}/__fault?{query}", self.base);
        let answer = self.client.get(url).send().await.expect("the switch");
        answer.error_for_status().expect("the switch");
    }

    pub(crate) async fn hits(&self) -> u64 {
        let url = format!("{}/__fault", self.base);
        let answer = self.client.get(url).send().await.expect("the switch");
        let text = answer.text().await.expect("the switch");
        let hits = text.lines().find_map(|line| line.strip_prefix("hits="));
        hits.and_then(|hits| hits.parse().ok()).expect("a count")
    }
}

pub(crate) fn policy() -> RetryPolicy {
    RetryPolicy {
        attempts_max: 5,
        backoff_min: Duration::from_millis(10),
        throttle_min: Duration::from_millis(20),
        backoff_max: Duration::from_millis(200),
        deadline: Duration::from_secs(10),
        stall: Duration::from_secs(1),
        seed: Some(1),
    }
}

/// One test, because the switch is one for the whole port.
#[tokio::test]
async fn every_fault_ends_in_the_right_bytes_or_the_right_error() {
    let Some(endpoint) = variable("TEST_S3_FAULT_ENDPOINT", "s3 faults") else { return };
    let Some(plain) = variable("TEST_S3_ENDPOINT", "s3 faults") else { return };
    let _turn = FAULT_PORT.lock().await;
    let switch = Switch { base: endpoint.clone(), client: reqwest::Client::new() };
    switch.set("mode=off").await;
    let bucket = Bucket::make(&plain, "faults").await;
    let bytes = sample(LEN as usize);
    bucket.put("object", &bytes).await;
    let traffic = Traffic::default();
    let options = Options::default().endpoint(endpoint).retry(policy()).traffic(traffic.clone());
    let source = options.open(&format!("s3://{}/object", bucket.name)).expect("an address");
    let version = source.stat().await.expect("stat").version;
    let only_ours = format!("match={}/object", bucket.name);

    // Faults that go away: the right bytes. Name, switch, least requests that it takes.
    let passing = [
        ("no fault", "mode=off", 1),
        ("SlowDown twice", "mode=503&n=2", 3),
        ("an internal error", "mode=500&n=1", 2),
        ("closed without an answer", "mode=close&n=1", 2),
        ("reset", "mode=reset&n=2", 3),
        ("an answer that never arrives", "mode=close_after&n=1", 2),
        ("a body cut near its start", "mode=truncate&at=10&n=1", 2),
        ("a body cut in its middle, thrice", "mode=truncate&at=700000&n=3", 4),
        ("no answer for long", "mode=stall&ms=3000&n=1", 2),
    ];
    for (what, mode, requests) in passing {
        switch.set(&format!("{mode}&{only_ours}")).await;
        let before = traffic.count();
        let began = Instant::now();
        let chunks: Result<Vec<_>, _> = match source.read(&version, 0..LEN).await {
            Ok(body) => body.try_collect().await,
            Err(error) => Err(error),
        };
        let got = chunks.unwrap_or_else(|error| panic!("{what}: {error}")).concat();
        assert!(got == bytes, "{what}: wrong bytes");
        assert!(began.elapsed() < Duration::from_secs(10), "{what}: {:?}", began.elapsed());
        let gets = traffic.count().gets - before.gets;
        assert!(gets >= requests, "{what}: {gets} requests, at least {requests} were expected");
        if mode != "mode=off" {
            assert!(switch.hits().await >= requests - 1, "{what}: the fault did not happen");
        }
        // The same through a frame.
        switch.set(&format!("{mode}&{only_ours}")).await;
        let frame = sources::Frame::with_capacity(LEN as usize);
        let frame = source.read_into(&version, 0..LEN, frame).await;
        let frame = frame.unwrap_or_else(|error| panic!("{what}, into a frame: {error}"));
        assert!(frame.filled() == bytes, "{what}, into a frame: wrong bytes");
    }

    // A cut body is resumed where it broke, not begun again.
    switch.set(&format!("mode=truncate&at=2000000&n=1&{only_ours}")).await;
    let before = traffic.count();
    let body = source.read(&version, 0..LEN).await.expect("read");
    let got: Vec<_> = body.try_collect().await.expect("bytes");
    assert!(got.concat() == bytes);
    let twice = traffic.count().bytes - before.bytes;
    assert!(twice <= LEN, "{twice} bytes came for an object of {LEN}");

    // Faults that stay: the right error, in time. Name, switch, kind.
    let staying = [
        ("SlowDown for ever", "mode=503", "throttled"),
        ("internal errors for ever", "mode=500", "transient"),
        ("closed for ever", "mode=close", "transient"),
        ("no answer for ever", "mode=stall&ms=20000", "transient"),
    ];
    for (what, mode, kind) in staying {
        switch.set(&format!("{mode}&{only_ours}")).await;
        let began = Instant::now();
        let read = match source.read(&version, 0..LEN).await {
            Ok(body) => body.try_collect::<Vec<_>>().await.map(drop),
            Err(error) => Err(error),
        };
        let error = read.expect_err(what);
        assert_eq!(error.kind(), kind, "{what}: {error}");
        assert!(began.elapsed() < Duration::from_secs(12), "{what}: {:?}", began.elapsed());
        if let SourceError::Transient { attempts, range, .. }
        | SourceError::Throttled { attempts, range, .. } = error
        {
            let least = if kind == "throttled" { 2 } else { 5 };
            assert!(attempts >= least, "{what}: {attempts} attempts");
            assert!(range.is_some(), "{what}: no range");
        }
        assert!(source.stat().await.is_err(), "{what}: stat");
    }

    // Without TLS a flipped bit passes: ranges of objects have no checksum (`tls` has the other half).
    // Everything else stays in place.
    switch.set(&format!("mode=corrupt&at=5&n=1&{only_ours}")).await;
    let body = source.read(&version, 0..100).await.expect("read");
    let got = body.try_collect::<Vec<_>>().await.expect("bytes").concat();
    let wrong = (0..100).filter(|&at| got[at] != bytes[at]).count();
    assert_eq!((got.len(), wrong), (100, 1), "one bit of one byte");

    // The object changes while it is read, and goes away.
    switch.set(&format!("mode=truncate&at=100000&n=1&{only_ours}")).await;
    let mut body = source.read(&version, 0..LEN).await.expect("read");
    let first = body.try_next().await.expect("bytes").expect("a chunk");
    assert!(bytes.starts_with(&first));
    bucket.put("object", &vec![9u8; LEN as usize]).await;
    let error = body.try_collect::<Vec<_>>().await.expect_err("changed in the middle");
    assert!(matches!(error, SourceError::Changed { .. }), "{error}");

    switch.set("mode=off").await;
    let version = source.stat().await.expect("stat").version;
    switch.set(&format!("mode=truncate&at=100000&n=1&{only_ours}")).await;
    let mut body = source.read(&version, 0..LEN).await.expect("read");
    body.try_next().await.expect("bytes").expect("a chunk");
    bucket.delete("object").await;
    let error = body.try_collect::<Vec<_>>().await.expect_err("gone in the middle");
    assert!(matches!(error, SourceError::NotFound { .. }), "{error}");
    switch.set("mode=off").await;
}
