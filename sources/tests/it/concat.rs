//! Several objects as one: under the suite, in regions, while their parts fail and change.

use std::{io::Write, ops::Range, sync::Arc, time::Duration};

use futures::TryStreamExt;
use pager::{Error, Pager, Region};
use sources::{
    BlockSource, Concat, Counted, Faulty, Gate, Limit, Local, Memory, Options, Part, Retry,
    RetryPolicy, SourceError, Traffic,
    conformance::check,
    faulty::{Rates, Schedule},
    limit::LimitPolicy,
};
use tokio::time::timeout;

use crate::{
    faults::{Switch, policy},
    servers::{Bucket, FAULT_PORT, WebFile, sample, variable},
};

/// Longer than anything here may take.
const LONG: Duration = Duration::from_secs(60);

/// `bytes` cut at `edges`, each piece as an object of its own.
fn cut(bytes: &[u8], edges: &[usize]) -> Vec<Arc<Memory>> {
    let starts = std::iter::once(0).chain(edges.iter().copied());
    let ends = edges.iter().copied().chain(std::iter::once(bytes.len()));
    let pieces = starts.zip(ends).enumerate();
    let piece = |(n, (start, end))| Memory::new(format!("part-{n}"), bytes[start..end].to_vec());
    pieces.map(|piece_of| Arc::new(piece(piece_of))).collect()
}

fn pager(budget: u64, unit: u64) -> Pager {
    let builder = Pager::builder().budget_bytes(budget).unit_bytes(unit);
    builder.deadline(Duration::from_secs(15)).build().expect("a pager")
}

fn same(region: &Region, bytes: &[u8], range: Range<usize>) {
    let guard = region.load(range.start as u64..range.end as u64);
    let guard = guard.unwrap_or_else(|error| panic!("{range:?}: {error}"));
    assert!(*guard == bytes[range.clone()], "wrong bytes in {range:?}");
}

fn source_error<T>(result: Result<T, Error>) -> SourceError {
    match result.map(drop) {
        Err(Error::Source(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_concatenation_conforms() {
    let bytes = sample(300_001);
    let edges = [1, 2, 4096, 4097, 4097, 100_000, 262_143, 300_000];
    let whole = |source: Arc<Memory>| Part::whole(source);
    let parts = cut(&bytes, &edges).into_iter().map(whole);
    check(Concat::new("native", parts).expect("parts"), &bytes).await.expect("native");
    // Not native, and listed by their lengths.
    let lazy = |source: Arc<Memory>, len: usize| {
        let source = Faulty::new(source, Schedule::script([]));
        Part::of(Arc::new(source), 0..len as u64)
    };
    let lens = edges.iter().copied().chain([bytes.len()]);
    let lens = lens.scan(0, |before, end| Some(end - std::mem::replace(before, end)));
    let parts = cut(&bytes, &edges).into_iter().zip(lens).map(|(part, len)| lazy(part, len));
    check(Concat::new("streamed", parts).expect("parts"), &bytes).await.expect("streamed");
    // Larger than what is kept out of turn.
    let bytes = sample(11 << 20);
    let edges = [5 << 20, (5 << 20) + 3, 6 << 20];
    let parts = cut(&bytes, &edges)
        .into_iter()
        .map(|source| Part::whole(Arc::new(Faulty::new(source, Schedule::script([])))));
    check(Concat::new("large", parts).expect("parts"), &bytes).await.expect("large");
    check(Concat::new("nothing", []).expect("no parts"), &[]).await.expect("nothing");
}

/// Real faults of a real map, over parts that fail, through a budget that does not hold them.
#[test]
fn parts_that_fail_are_right_bytes_in_memory() {
    let bytes = sample(6 << 20);
    let edges = [70_000, 70_001, 1 << 20, 4_500_000];
    let rates = Rates {
        fail: 0.1,
        truncate: 0.1,
        broken: 0.1,
        delay: 0.3,
        delay_max: Duration::from_millis(3),
        ..Rates::default()
    };
    let retry = RetryPolicy {
        attempts_max: 50,
        backoff_min: Duration::from_millis(1),
        throttle_min: Duration::from_millis(1),
        backoff_max: Duration::from_millis(5),
        seed: Some(5),
        ..RetryPolicy::default()
    };
    let parts = cut(&bytes, &edges).into_iter().enumerate().map(|(n, part)| {
        let faulty = Faulty::new(part, Schedule::seeded(n as u64, rates));
        Part::whole(Arc::new(Retry::with(faulty, retry.clone())))
    });
    let pager = pager(2 << 20, 32 << 10);
    let region = pager.open(Concat::new("faulty parts", parts).expect("parts")).expect("a region");
    for edge in edges {
        same(&region, &bytes, edge - 10..edge + 10);
    }
    for start in (0..bytes.len()).step_by(300_000) {
        same(&region, &bytes, start..(start + 300_000).min(bytes.len()));
    }
    match region.map() {
        Ok(mapped) => assert!(*mapped == bytes[..], "wrong bytes in the map"),
        Err(error @ Error::NotMappable { .. }) => {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "CI maps: {error}");
            println!("left out: mapping a concatenation: {error}");
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_part_that_changed_is_named_and_the_others_stay() {
    let bytes = sample(3 << 16);
    let parts = cut(&bytes, &[1 << 16, 2 << 16]);
    let listed = parts.iter().map(|part| Part::whole(part.clone()));
    let pager = pager(4 << 20, 4096);
    let region = pager.open(Concat::new("three", listed).expect("parts")).expect("a region");
    same(&region, &bytes, 0..100);
    parts[1].replace(vec![9; 1 << 16]);
    let error = source_error(region.load(70_000..70_001));
    assert!(matches!(error, SourceError::Changed { .. }), "{error}");
    assert_eq!(error.object(), "memory:part-1");
    same(&region, &bytes, 100..65_536);
    same(&region, &bytes, 131_072..196_608);
    // Also where one read touches all three.
    let error = source_error(region.load(61_000..140_000));
    assert_eq!((error.kind(), error.object()), ("changed", "memory:part-1"));
}

/// What stands before the part that fails is handed on first.
#[tokio::test]
async fn a_part_fails_in_its_turn() {
    for (what, len, edges) in
        [("small", 3000, [1000, 2000]), ("streamed", 3_000_000, [1000, 2_900_000])]
    {
        let bytes = sample(len);
        let parts = cut(&bytes, &edges);
        let listed = parts.iter().map(|part| Part::whole(part.clone()));
        let whole = Concat::new("three", listed).expect("parts");
        let version = whole.stat().await.expect("stat").version;
        parts[1].replace(vec![9; 5]);
        let mut body = whole.read(&version, 0..len as u64).await.expect("the first part is well");
        let mut got = Vec::new();
        let error = loop {
            match body.try_next().await {
                Ok(Some(chunk)) => got.extend_from_slice(&chunk),
                Ok(None) => panic!("{what}: the body ended after {} bytes", got.len()),
                Err(error) => break error,
            }
        };
        assert_eq!(error.object(), "memory:part-1", "{what}: {error}");
        assert!(got == bytes[..edges[0]], "{what}: {} bytes came", got.len());
        assert!(matches!(body.try_next().await, Ok(None)), "{what}: after an error it is over");
        parts[0].replace(vec![9; 5]);
        let error =
            whole.read(&version, 0..len as u64).await.err().expect("the first part changed");
        assert_eq!(error.object(), "memory:part-0", "{what}: {error}");
    }
}

#[test]
fn objects_are_asked_when_they_are_touched_and_once() {
    let bytes = sample(40_000);
    let objects = cut(&bytes, &[10_000, 20_000, 30_000]);
    let traffic: Vec<Traffic> = objects.iter().map(|_| Traffic::default()).collect();
    let counted = |n: usize| -> Arc<dyn BlockSource> {
        Arc::new(Counted::new(objects[n].clone(), traffic[n].clone()))
    };
    let asked = || -> Vec<u64> { traffic.iter().map(|count| count.count().stats).collect() };
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let given = runtime.block_on(objects[3].stat()).expect("stat").version;
    let second = counted(1);
    let parts = [
        Part::whole(counted(0)),
        Part::of(second.clone(), 0..5000),
        Part::of(counted(2), 0..10_000),
        Part::of(second, 5000..10_000),
        Part::of(counted(3), 0..10_000).at(given),
    ];
    let mut expected = bytes.clone();
    expected[15_000..30_000].rotate_left(5000);
    let builder = Pager::builder().budget_bytes(4 << 20).unit_bytes(4096);
    let pager = builder.prefetch(|| Box::new(pager::policy::NoPrefetch)).build().expect("a pager");
    let region = pager.open(Concat::new("lazy", parts).expect("parts")).expect("a region");
    assert_eq!((region.len(), asked()), (40_000, vec![1, 0, 0, 0]));
    same(&region, &expected, 11_000..11_001);
    assert_eq!(asked(), [1, 1, 0, 0], "8192..12288 touches the first and the second");
    same(&region, &expected, 29_000..29_001);
    assert_eq!(asked(), [1, 1, 0, 0], "the second object's other part");
    same(&region, &expected, 31_000..40_000);
    assert_eq!(asked(), [1, 1, 0, 0], "its version was given");
    same(&region, &expected, 0..40_000);
    assert_eq!(asked(), [1, 1, 1, 0]);
}

#[test]
fn objects_that_are_not_what_was_listed_are_refused() {
    let bytes = sample(10_000);
    let object = || Arc::new(Memory::new("listed", bytes.clone()));
    let pager = pager(4 << 20, 4096);
    let parts = [Part::whole(object()), Part::of(object(), 0..10_001)];
    let region = pager.open(Concat::new("x", parts).expect("parts")).expect("a region");
    same(&region, &bytes, 0..8192);
    let error = source_error(region.load(15_000..15_001));
    assert_eq!((error.kind(), error.object()), ("permanent", "memory:listed"));
    assert!(error.to_string().contains("10000 bytes"), "{error}");
    // At another version than was said: found at open where it is asked, else at the first touch.
    let other = sources::Version::strong("other");
    for part in [Part::whole(object()), Part::of(object(), 0..10_000)] {
        let whole = Concat::new("x", [part.at(other.clone())]).expect("parts");
        let opened = pager.open(whole);
        let error = source_error(opened.and_then(|region| region.load(0..1).map(drop)));
        assert_eq!((error.kind(), error.object()), ("changed", "memory:listed"));
    }
    let same_object = object();
    let one = sources::Version::strong("one");
    let reversed = Range { start: 5, end: 4 };
    let cases = [
        ("a name", "", vec![]),
        ("no range", "x", vec![Part::of(object(), reversed)]),
        (
            "at one and at other",
            "x",
            vec![
                Part::of(same_object.clone(), 0..5).at(one),
                Part::of(same_object, 5..6).at(other),
            ],
        ),
    ];
    for (says, name, parts) in cases {
        let error = Concat::new(name, parts).expect_err(says);
        assert!(error.to_string().contains(says), "{error}");
    }
    let most = u64::MAX - 5;
    let parts = [Part::of(object(), 0..most), Part::of(object(), 0..most)];
    let error = source_error(pager.open(Concat::new("x", parts).expect("parts")));
    assert!(error.to_string().contains("2^64"), "{error}");
}

#[test]
fn weak_parts_are_accepted_or_refused() {
    let bytes = sample(10_000);
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(&bytes).expect("a file");
    let local = || Arc::new(Local::new(file.path().to_owned()));
    let pager = pager(4 << 20, 4096);
    let open = |whole: Concat| pager.open(whole).expect("a region");
    let lazy = || Concat::new("x", [Part::of(local(), 0..10_000)]).expect("parts");
    let error = source_error(open(lazy()).load(0..1));
    assert!(error.to_string().contains("accept weak versions"), "{error}");
    let asked_at_once = Concat::new("x", [Part::whole(local())]).expect("parts");
    for whole in [lazy().accept_weak(), asked_at_once] {
        let region = open(whole);
        same(&region, &bytes, 0..10_000);
        assert!(matches!(region.map(), Err(Error::NotMappable { .. })), "a weak version is mapped");
    }
}

/// One connection for all parts, many readers, every read over many edges: nobody waits for a
/// connection that somebody holds who waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_over_edges_share_few_connections() {
    let bytes = sample(8 << 20);
    let edges: Vec<usize> = (1..320).map(|n| n * 26_000).collect();
    for requests in [1, 3] {
        let policy = LimitPolicy { requests_max: requests, ..LimitPolicy::default() };
        let gate = Gate::new("x", policy);
        let parts = cut(&bytes, &edges).into_iter().map(|part| {
            let faulty = Faulty::new(part, Schedule::script([]));
            Part::whole(Arc::new(Limit::new(faulty, gate.clone())))
        });
        // Half of the object; and twice of what eight readers can pin together.
        let builder = Pager::builder().budget_bytes(4 << 20).unit_bytes(8192);
        let pager = builder.deadline(LONG).build().expect("a pager");
        let whole = Concat::new("gated", parts).expect("parts");
        let region = pager.open_async(whole).await.expect("a region");
        let readers = (0..8).map(|reader| {
            let (region, bytes) = (region.clone(), bytes.clone());
            tokio::task::spawn_blocking(move || {
                for n in 0..40 {
                    let start = (reader * 7919 * 31 + n * 104_729) % (bytes.len() - 60_000);
                    let mut buf = vec![0; 60_000];
                    region.read_at(start as u64, &mut buf).expect("bytes");
                    assert!(buf == bytes[start..start + 60_000], "wrong bytes at {start}");
                }
            })
        });
        let all = futures::future::try_join_all(readers);
        timeout(LONG, all).await.expect("nobody hangs").expect("readers");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_of_different_servers_while_one_fails() {
    let what = "a concatenation over servers";
    let Some(endpoint) = variable("TEST_S3_FAULT_ENDPOINT", what) else { return };
    let Some(plain) = variable("TEST_S3_ENDPOINT", what) else { return };
    let Some(base) = variable("TEST_HTTP_BASE", what) else { return };
    let Some(root) = variable("TEST_HTTP_ROOT", what) else { return };
    let _turn = FAULT_PORT.lock().await;
    let switch = Switch { base: endpoint.clone(), client: reqwest::Client::new() };
    switch.set("mode=off").await;
    let bytes = sample(5 << 20);
    let (first, second) = bytes.split_at(2_000_003);
    let bucket = Bucket::make(&plain, "concat").await;
    bucket.put("object", first).await;
    let file = WebFile::make(&root, "concat", second);
    let options = Options::default().endpoint(endpoint).retry(policy());
    let s3 = options.open(&format!("s3://{}/object", bucket.name)).expect("an address");
    let web = options.open(&format!("{base}/{}", file.place)).expect("an address");
    let parts = [Part::of(s3, 0..2_000_003), Part::whole(web)];
    let whole = Concat::new("both", parts).expect("parts");
    let pager = pager(2 << 20, 32 << 10);
    let region = pager.open_async(whole).await.expect("a region");
    let ours = format!("match=GET%20/{}/object", bucket.name);
    for mode in ["mode=503&n=2", "mode=reset&n=2", "mode=truncate&at=10&n=2"] {
        switch.set(&format!("{mode}&{ours}")).await;
        let mut got = vec![0; bytes.len()];
        region.read_at(0, &mut got).unwrap_or_else(|error| panic!("{mode}: {error}"));
        assert!(got == bytes, "{mode}: wrong bytes");
        assert!(switch.hits().await >= 1, "{mode}: the fault did not happen");
    }
    switch.set("mode=off").await;
    bucket.put("object", &vec![7; 2_000_003]).await;
    let mut got = vec![0; bytes.len()];
    let error = source_error(region.read_at(0, &mut got));
    assert_eq!(error.kind(), "changed", "{error}");
    assert!(error.object().ends_with("/object"), "{error}");
    // The other part is what it was, from the first unit on that has nothing of this one.
    let from = first.len().next_multiple_of(32 << 10);
    let mut got = vec![0; bytes.len() - from];
    region.read_at(from as u64, &mut got).expect("the other part");
    assert!(got == bytes[from..], "wrong bytes");
}
