//! From a server to memory: regions of the pager over real servers, while these fail.

use std::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use pager::{BlockSource, ByteStream, Error, Hint, Mapped, ObjectStat, Pager, Region, Version};
use sources::{
    Faulty, Gate, Limit, Memory, Options, Retry, RetryPolicy, SourceError, async_trait,
    faulty::{Fault, Schedule},
    limit::LimitPolicy,
};

use crate::{
    fake::{Fake, answer},
    faults::{Switch, policy},
    servers::{Bucket, FAULT_PORT, WebFile, sample, variable},
};

const LEN: usize = 3 << 20;
/// Less than the object, so that bytes are evicted and fetched again.
const BUDGET: u64 = 2 << 20;
const UNIT: u64 = 32 << 10;
const PIECE: usize = 300_000;

fn pager() -> Pager {
    let builder = Pager::builder().budget_bytes(BUDGET).unit_bytes(UNIT);
    builder.deadline(Duration::from_secs(15)).build().expect("a pager")
}

/// The whole object in pieces that a pin may hold.
fn load_all(region: &Region, bytes: &[u8]) -> Result<(), Error> {
    for start in (0..bytes.len()).step_by(PIECE) {
        let end = (start + PIECE).min(bytes.len());
        let guard = region.load(start as u64..end as u64)?;
        assert!(*guard == bytes[start..end], "wrong bytes in {start}..{end}");
    }
    Ok(())
}

/// `None` where the kernel has no way to map, which a test says and CI does not accept.
fn map(region: &Region, what: &str) -> Option<Mapped> {
    match region.map() {
        Ok(mapped) => Some(mapped),
        Err(error @ Error::NotMappable { .. }) => {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "CI maps {what}: {error}");
            println!("left out: {what}, mapped: {error}");
            None
        }
        Err(error) => panic!("{what}: {error}"),
    }
}

fn source_error(result: Result<(), Error>) -> SourceError {
    match result {
        Err(Error::Source(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_that_fails_is_right_bytes_in_memory() {
    let Some(endpoint) = variable("TEST_S3_FAULT_ENDPOINT", "regions over s3 faults") else {
        return;
    };
    let Some(plain) = variable("TEST_S3_ENDPOINT", "regions over s3 faults") else { return };
    let _turn = FAULT_PORT.lock().await;
    let switch = Switch { base: endpoint.clone(), client: reqwest::Client::new() };
    switch.set("mode=off").await;
    let bucket = Bucket::make(&plain, "regions").await;
    let bytes = sample(LEN);
    bucket.put("object", &bytes).await;
    let url = format!("s3://{}/object", bucket.name);
    let ours = format!("match=GET%20/{}/object", bucket.name);
    // Switch, and how often it must have hit.
    let passing = [
        ("mode=503&n=2", 2),
        ("mode=500&n=1", 1),
        ("mode=close&n=1", 1),
        ("mode=reset&n=2", 2),
        ("mode=close_after&n=1", 1),
        ("mode=truncate&at=10&n=2", 2),
        ("mode=stall&ms=3000&n=1", 1),
    ];
    for (mode, hits) in passing {
        let options = Options::default().endpoint(endpoint.clone()).retry(policy());
        let pager = pager();
        let source = options.open(&url).expect("an address");
        let region = pager.open_async(source).await.expect("a region");
        switch.set(&format!("{mode}&{ours}")).await;
        load_all(&region, &bytes).unwrap_or_else(|error| panic!("{mode}: {error}"));
        assert!(switch.hits().await >= hits, "{mode}: the fault did not happen");
        region.advise(Hint::DontNeed(0..LEN as u64)).expect("advice");
        switch.set(&format!("{mode}&{ours}")).await;
        if let Some(mapped) = map(&region, "regions over s3 faults") {
            assert!(*mapped == bytes[..], "{mode}: wrong bytes in the map");
            assert!(switch.hits().await >= hits, "{mode}: the fault did not happen to the map");
        }
    }
    // What does not go away is its own error, in time.
    for (mode, kind) in
        [("mode=503", "throttled"), ("mode=500", "transient"), ("mode=reset", "transient")]
    {
        let options = Options::default().endpoint(endpoint.clone()).retry(policy());
        let pager = pager();
        let source = options.open(&url).expect("an address");
        let region = pager.open_async(source).await.expect("a region");
        switch.set(&format!("{mode}&{ours}")).await;
        let began = Instant::now();
        let error = source_error(region.load(0..1000).map(drop));
        assert_eq!(error.kind(), kind, "{mode}: {error}");
        assert!(began.elapsed() < Duration::from_secs(12), "{mode}: {:?}", began.elapsed());
        // And what failed once is fetched once it can be.
        switch.set("mode=off").await;
        load_all(&region, &bytes).unwrap_or_else(|error| panic!("after {mode}: {error}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_that_change_under_a_region_are_changed() {
    let (first, second) = (sample(LEN), vec![7u8; LEN]);
    if let Some(endpoint) = variable("TEST_S3_ENDPOINT", "regions over a changing s3 object") {
        let bucket = Bucket::make(&endpoint, "changing").await;
        bucket.put("object", &first).await;
        let options = Options::default().endpoint(endpoint).retry(policy());
        let source = options.open(&format!("s3://{}/object", bucket.name)).expect("an address");
        let pager = pager();
        let region = pager.open_async(source).await.expect("a region");
        load_all(&region, &first).expect("the first object");
        bucket.put("object", &second).await;
        let error = source_error(load_all(&region, &first));
        assert!(matches!(error, SourceError::Changed { .. }), "{error}");
    }
    let Some(base) = variable("TEST_HTTP_BASE", "regions over a changing file") else { return };
    let Some(root) = variable("TEST_HTTP_ROOT", "regions over a changing file") else { return };
    let file = WebFile::make(&root, "region-changing", &first);
    let pager = pager();
    let options = Options::default().retry(policy());
    let source = options.open(&format!("{base}/{}", file.place)).expect("an address");
    let region = pager.open_async(source).await.expect("a region");
    load_all(&region, &first).expect("the first object");
    // nginx makes its tags of seconds and length.
    file.write(&second[1..]);
    let error = source_error(load_all(&region, &first));
    assert!(matches!(error, SourceError::Changed { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_at_a_distance_is_loaded_and_mapped() {
    let Some(base) = variable("TEST_HTTP_SLOW_BASE", "regions over slow http") else { return };
    let Some(root) = variable("TEST_HTTP_ROOT", "regions over slow http") else { return };
    let bytes = sample(LEN);
    let file = WebFile::make(&root, "region-slow", &bytes);
    let pager = pager();
    let options = Options::default();
    let source = options.open(&format!("{base}/{}", file.place)).expect("an address");
    let region = pager.open_async(source).await.expect("a region");
    load_all(&region, &bytes).expect("the object");
    if let Some(mapped) = map(&region, "regions over slow http") {
        assert!(*mapped == bytes[..], "wrong bytes in the map");
    }
    let weak = options.open(&format!("{base}/no-etag/{}", file.place)).expect("an address");
    let region = pager.open_async(weak).await.expect("a region");
    load_all(&region, &bytes).expect("a weak version can be loaded");
    let refused = region.map().map(drop);
    assert!(matches!(refused, Err(Error::NotMappable { .. })), "{refused:?}");
}

/// A web server that refuses every third request and breaks off every other body.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_that_fails_is_right_bytes_in_memory() {
    let bytes = sample(1 << 20);
    let (object, asked) = (bytes.clone(), AtomicU64::new(0));
    let server = Fake::start(move |head| {
        let len = object.len();
        let common = ["ETag: \"one\"", "Accept-Ranges: bytes"];
        if head.starts_with("head ") {
            let long = format!("Content-Length: {len}");
            return answer("200 OK", &[common[0], common[1], &long], b"");
        }
        let turn = asked.fetch_add(1, Relaxed);
        if turn % 3 == 0 {
            return answer("503 Service Unavailable", &[], b"");
        }
        let range = head.lines().find_map(|line| line.strip_prefix("range: bytes="));
        let (first, last) = range.and_then(|range| range.split_once('-')).expect("a range");
        let (first, last): (usize, usize) =
            (first.parse().expect("a number"), last.parse().expect("a number"));
        let body = &object[first..=last];
        let place = format!("Content-Range: bytes {first}-{last}/{len}");
        let long = format!("Content-Length: {}", body.len());
        let sent = if turn % 3 == 1 { &body[..body.len() / 2] } else { body };
        answer("206 Partial Content", &[common[0], common[1], &place, &long], sent)
    })
    .await;
    let pager = pager();
    let options = Options::default().retry(policy());
    let source = options.open(&format!("{}/object", server.base)).expect("an address");
    let region = pager.open_async(source).await.expect("a region");
    load_all(&region, &bytes).expect("the object");
    region.advise(Hint::DontNeed(0..bytes.len() as u64)).expect("advice");
    if let Some(mapped) = map(&region, "regions over http that fails") {
        assert!(*mapped == bytes[..], "wrong bytes in the map");
    }
    let refusals = server.seen().iter().filter(|head| head.starts_with("get ")).count();
    assert!(refusals >= 3, "{refusals} requests: the faults did not happen");
}

/// Bodies that arrive in parts, as those of a server do, and not in frames.
struct InParts(Memory);

#[async_trait]
impl BlockSource for InParts {
    fn name(&self) -> &str {
        self.0.name()
    }

    async fn stat(&self) -> Result<ObjectStat, SourceError> {
        self.0.stat().await
    }

    async fn read(&self, version: &Version, range: Range<u64>) -> Result<ByteStream, SourceError> {
        self.0.read(version, range).await
    }
}

/// Those whose bodies had broken stood at the gate with all the buffers that the smallest budget has;
/// those who had all the turns waited for the buffers. It ended with an error at the deadline of `Retry`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_bodies_go_on_where_turns_and_buffers_are_few() {
    const UNIT: u64 = 64 << 10;
    // The least that 64 KiB may have: two buffers.
    let budget = 32 * (UNIT + 4096) + 4 * UNIT;
    let bytes = sample(32 * UNIT as usize);
    // Each first body breaks in the midst of its unit, and so does the next.
    let breaks = (0..24).map(|_| Some(Fault::Break { after: 10_000 }));
    let broken = Faulty::new(InParts(Memory::new("x", bytes.clone())), Schedule::script(breaks));
    let four = LimitPolicy {
        requests_min: 1,
        requests_start: 4,
        requests_max: 4,
        ..LimitPolicy::default()
    };
    let gate = Gate::new("x", four);
    let source = Retry::with(Limit::new(broken, gate.clone()), RetryPolicy::default());
    let pager = Pager::builder().budget_bytes(budget).unit_bytes(UNIT).build().expect("a pager");
    let region = pager.open_async(source).await.expect("a region");
    // No neighbours: each is a request of its own.
    let loads = (0..12).map(|n| {
        let (region, bytes) = (&region, &bytes);
        async move {
            let range = 2 * n * UNIT..(2 * n + 1) * UNIT;
            let guard = region.load_async(range.clone()).await?;
            assert!(*guard == bytes[range.start as usize..range.end as usize], "{range:?}");
            Ok::<_, Error>(())
        }
    });
    futures::future::try_join_all(loads).await.expect("the bytes");
    // A request ends after its last unit is in place.
    let all_back = async {
        while gate.running() > 0 {
            tokio::task::yield_now().await;
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(20), all_back).await;
    in_time.expect("all turns are given back");
}
