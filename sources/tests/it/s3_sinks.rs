//! Objects of S3 that are replaced in places: what goes over the line, what is kept, and lost answers.

use std::{
    io::{BufRead, BufReader},
    time::Duration,
};

use aws_sdk_s3::primitives::ByteStream;
use endpoint::{
    Endpoint, Settings,
    faults::{Fault, Mode},
    line::Shape,
    store::{Condition, Meta},
};
use futures::TryStreamExt;
use pager::{BlockSink, BlockSource, Error, Hint, Pager, SinkError, Version};
use sources::{
    Retry, RetryPolicy, S3, S3Sink, S3SinkOptions,
    aws::{Aws, AwsOptions},
    conformance::check_sink,
    s3::S3Options,
};

use crate::{
    servers::{Bucket, sample, variable},
    sinks::{Step, Stops, stamp},
};

const MIB: usize = 1 << 20;
/// A part is 5 MiB at least.
const PART: usize = 5 * MIB;

fn small_parts() -> S3SinkOptions {
    let retry = RetryPolicy { backoff_min: Duration::from_millis(1), ..RetryPolicy::default() };
    S3SinkOptions { part_bytes: PART as u64, parts_at_once: 2, retry }
}

/// Runs the calling test in a process of its own, which has the endpoint's credentials where programs have
/// them: in its environment. True in that process.
fn with_credentials(test: &str) -> bool {
    const CHILD: &str = "SOURCES_TEST_S3_CHILD";
    if std::env::var(CHILD).is_ok_and(|name| name == test) {
        return true;
    }
    let (key, secret) = Settings::default().credentials;
    let output = std::process::Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(CHILD, test)
        .env("AWS_ACCESS_KEY_ID", key)
        .env("AWS_SECRET_ACCESS_KEY", secret)
        .env_remove("AWS_SESSION_TOKEN")
        .output()
        .expect("a child");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
    false
}

/// An endpoint of our own, with a bucket named `box`.
struct Server {
    endpoint: Endpoint,
    aws: Aws,
}

impl Server {
    fn start() -> Server {
        let endpoint = Endpoint::start(Settings { shape: Shape::UNSHAPED, ..Settings::default() });
        let endpoint = endpoint.expect("a free port");
        endpoint.store().create_bucket("box").expect("a bucket");
        let options = AwsOptions {
            endpoint: Some(endpoint.url()),
            region: Some("us-east-1".to_owned()),
            ..AwsOptions::default()
        };
        Server { endpoint, aws: Aws::new(options) }
    }

    fn put(&self, key: &str, bytes: &[u8]) {
        let (bytes, meta) = (bytes.to_vec().into(), Meta::default());
        self.endpoint.store().put("box", key, bytes, meta, &Condition::None).expect("put");
    }

    fn bytes(&self, key: &str) -> Vec<u8> {
        self.endpoint.store().get("box", key).expect("the object").bytes.to_vec()
    }

    fn source(&self, key: &str) -> Retry<S3> {
        source(&self.aws, "box", key)
    }

    fn sink(&self, key: &str) -> S3Sink {
        S3Sink::new("box", key, self.aws.clone(), small_parts()).expect("a sink")
    }
}

fn source(aws: &Aws, bucket: &str, key: &str) -> Retry<S3> {
    Retry::new(S3::new(bucket, key, aws.clone(), S3Options::default()).expect("a source"))
}

async fn version_of(source: &impl BlockSource) -> Version {
    source.stat().await.expect("stat").version
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sink_keeps_its_promises() {
    if !with_credentials("s3_sinks::the_sink_keeps_its_promises") {
        return;
    }
    let server = Server::start();
    for len in [1, 100_001, PART, PART + 1, 3 * PART + 77] {
        let bytes = sample(len);
        let key = format!("folder/object of {len} bytes, 100%");
        server.put(&key, &bytes);
        let checked = check_sink(server.source(&key), server.sink(&key), &bytes).await;
        checked.unwrap_or_else(|wrong| panic!("{len}: {wrong}"));
    }
    // What was dropped is aborted a moment later.
    for _ in 0..200 {
        if server.endpoint.store().open_uploads() == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(server.endpoint.store().open_uploads(), 0, "no upload is left open");
}

/// Against the S3 of the test servers, too. It does not heed the condition of a completion, which the look
/// just before makes up for, but for several at once: so that is left to objects of one part.
#[tokio::test(flavor = "multi_thread")]
async fn the_sink_keeps_its_promises_elsewhere() {
    let Some(address) = variable("TEST_S3_ENDPOINT", "an S3 that is replaced") else { return };
    let bucket = Bucket::make(&address, "sinks").await;
    let aws = Aws::new(AwsOptions { endpoint: Some(address), ..AwsOptions::default() });
    for len in [1, 100_001] {
        let bytes = sample(len);
        bucket.put("small", &bytes).await;
        let sink = S3Sink::new(&*bucket.name, "small", aws.clone(), small_parts()).expect("a sink");
        let checked = check_sink(source(&aws, &bucket.name, "small"), sink, &bytes).await;
        checked.unwrap_or_else(|wrong| panic!("{len}: {wrong}"));
    }
    let mut bytes = sample(3 * PART + 77);
    bucket.put("large", &bytes).await;
    let sink = S3Sink::new(&*bucket.name, "large", aws.clone(), small_parts()).expect("a sink");
    let reader = source(&aws, &bucket.name, "large");
    let base = version_of(&reader).await;
    let replaced = |base: Version, byte: u8| {
        let sink = sink.clone();
        async move {
            let mut writing = sink.begin(&base, 3 * PART as u64 + 77).await?;
            writing.write(PART as u64 + 5, &[byte; 100]).await?;
            let outcome = writing.commit().await;
            writing.abort().await;
            outcome
        }
    };
    let version = replaced(base.clone(), 1).await.expect("replaced");
    bytes[PART + 5..PART + 105].fill(1);
    let error = replaced(base, 2).await.expect_err("it is not that version any more");
    assert!(matches!(error, SinkError::Conflict { .. }), "{error}");
    assert_eq!(version_of(&reader).await, version);
    let body = reader.read(&version, 0..bytes.len() as u64).await.expect("a body");
    let got: Vec<bytes::Bytes> = body.try_collect().await.expect("all of it");
    assert!(got.concat() == bytes);
}

/// A byte of a large object costs one part, down and up; the rest is copied where it lies. What the object
/// says of itself stays.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_unchanged_stays_where_it_is() {
    if !with_credentials("s3_sinks::what_is_unchanged_stays_where_it_is") {
        return;
    }
    let server = Server::start();
    let bytes = sample(8 * PART + 77);
    let client = server.aws.s3().await.expect("a client");
    let put = client.put_object().bucket("box").key("k").content_type("text/x-log");
    let put = put.metadata("owner", "somebody").body(ByteStream::from(bytes.clone()));
    put.send().await.expect("put");
    let base = version_of(&server.source("k")).await;
    let before = server.endpoint.counters();
    let mut writing = server.sink("k").begin(&base, bytes.len() as u64).await.expect("begun");
    writing.write(4 * PART as u64 + 1, &[9]).await.expect("written");
    writing.commit().await.expect("committed");
    let after = server.endpoint.counters();
    // The endpoint counts what a head promises, also where no body follows.
    let heads = (after.heads - before.heads) * bytes.len() as u64;
    let down = after.bytes_out - before.bytes_out - heads;
    assert!(down < PART as u64 + (64 << 10), "{down} bytes came");
    assert_eq!(after.gets - before.gets, 1);
    // Begin, copy, part, copy, complete.
    assert_eq!(after.writes - before.writes, 5);
    let mut expected = bytes;
    expected[4 * PART + 1] = 9;
    assert!(server.bytes("k") == expected);
    let head = client.head_object().bucket("box").key("k").send().await.expect("head");
    assert_eq!(head.content_type(), Some("text/x-log"));
    assert_eq!(
        head.metadata().and_then(|all| all.get("owner")).map(String::as_str),
        Some("somebody")
    );

    // Parts that are written whole are not read.
    let base = version_of(&server.source("k")).await;
    let before = server.endpoint.counters();
    let mut writing = server.sink("k").begin(&base, expected.len() as u64).await.expect("begun");
    for n in 0..5 {
        let at = 2 * PART + n * MIB;
        writing.write(at as u64, &vec![n as u8; MIB]).await.expect("written");
        expected[at..at + MIB].fill(n as u8);
    }
    writing.commit().await.expect("committed");
    assert_eq!(server.endpoint.counters().gets, before.gets);
    assert!(server.bytes("k") == expected);
}

/// The answer of the last request is lost, once or always, before or after it was done.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_lost_is_found_out() {
    if !with_credentials("s3_sinks::an_answer_that_is_lost_is_found_out") {
        return;
    }
    for len in [1000, 2 * PART + 77] {
        let server = Server::start();
        let last = if len > PART { "POST /box/k?uploadId" } else { "PUT /box/k" };
        for (mode, times) in
            [(Mode::CloseAfter, 1), (Mode::Close, 1), (Mode::InternalError, 2), (Mode::SlowDown, 1)]
        {
            let bytes = sample(len);
            server.put("k", &bytes);
            let base = version_of(&server.source("k")).await;
            let mut writing = server.sink("k").begin(&base, len as u64).await.expect("begun");
            writing.write(7, b"new").await.expect("written");
            let fault = Fault::always(mode).times(times).matching(last);
            server.endpoint.faults().set(Some(fault));
            let version = writing.commit().await;
            let version = version.unwrap_or_else(|error| panic!("{len}, {mode:?}: {error}"));
            assert_eq!(server.endpoint.faults().hits(), times, "{len}, {mode:?}");
            server.endpoint.faults().set(None);
            assert_eq!(version_of(&server.source("k")).await, version, "{len}, {mode:?}");
            assert_eq!(server.bytes("k")[7..10], *b"new");
        }

        // It was done, and no answer ever comes: the object tells. It was not, and nothing tells: the next
        // commit does it. It was done, and the object does not tell: the next commit finds it.
        for (mode, requests, known) in [
            (Mode::CloseAfter, last, true),
            (Mode::Close, last, false),
            (Mode::CloseAfter, "/box/k", false),
        ] {
            if requests != last && len > PART {
                continue;
            }
            server.put("k", &sample(len));
            let base = version_of(&server.source("k")).await;
            let retry = RetryPolicy { attempts_max: 2, ..small_parts().retry };
            let options = S3SinkOptions { retry, ..small_parts() };
            let sink = S3Sink::new("box", "k", server.aws.clone(), options).expect("a sink");
            let mut writing = sink.begin(&base, len as u64).await.expect("begun");
            let mut bytes = sample(len);
            bytes[7..10].copy_from_slice(b"new");
            // All of it, so that nothing has to be read.
            writing.write(0, &bytes).await.expect("written");
            server.endpoint.faults().set(Some(Fault::always(mode).matching(requests)));
            let outcome = writing.commit().await;
            server.endpoint.faults().set(None);
            let version = match (outcome, known) {
                (Ok(version), true) => version,
                (Err(SinkError::Unsettled { .. }), false) => {
                    writing.commit().await.expect("now it is known")
                }
                (other, _) => panic!("{len}, {mode:?}, {requests}: {other:?}"),
            };
            assert_eq!(version_of(&server.source("k")).await, version, "{len}, {mode:?}");
            assert!(server.bytes("k") == bytes, "{len}, {mode:?}");
        }
    }
}

/// It was done, no answer came, and somebody else has replaced it by the time that anybody looks: nobody says
/// that nothing was written.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_replaced_since_is_not_said_not_to_be_written() {
    if !with_credentials("s3_sinks::what_was_replaced_since_is_not_said_not_to_be_written") {
        return;
    }
    let server = Server::start();
    let len = 100_001;
    server.put("k", &sample(len));
    let base = version_of(&server.source("k")).await;
    let retry = RetryPolicy { attempts_max: 2, ..small_parts().retry };
    let options = S3SinkOptions { retry, ..small_parts() };
    let sink = S3Sink::new("box", "k", server.aws.clone(), options).expect("a sink");
    let mut writing = sink.begin(&base, len as u64).await.expect("begun");
    let mut bytes = sample(len);
    bytes[7..10].copy_from_slice(b"new");
    writing.write(0, &bytes).await.expect("written");
    server.endpoint.faults().set(Some(Fault::always(Mode::CloseAfter).matching("/box/k")));
    let error = writing.commit().await.expect_err("no answer came");
    assert!(matches!(error, SinkError::Unsettled { .. }), "{error}");
    server.endpoint.faults().set(None);
    assert!(server.bytes("k") == bytes, "it was done");
    // Somebody read that, and made the next version of it.
    server.put("k", &vec![7; len]);
    let error = writing.commit().await.expect_err("it is not ours any more");
    assert!(matches!(error, SinkError::Overtaken { .. }), "{error}");
    assert!(server.bytes("k") == vec![7; len]);
}

/// A region that is dropped with a flush of which nobody knows what came takes its upload away, on whatever thread.
#[test]
fn a_region_leaves_no_upload_behind() {
    if !with_credentials("s3_sinks::a_region_leaves_no_upload_behind") {
        return;
    }
    let server = Server::start();
    let len = PART + 4321;
    server.put("k", &sample(len));
    let pager = Pager::builder().budget_bytes(32 << 20).build().expect("a pager");
    let retry = RetryPolicy { attempts_max: 2, ..small_parts().retry };
    let options = S3SinkOptions { retry, ..small_parts() };
    let sink = S3Sink::new("box", "k", server.aws.clone(), options).expect("a sink");
    let region = pager.open_mut(server.source("k"), sink).expect("the object");
    region.write_at(3, b"new").expect("written");
    server.endpoint.faults().set(Some(Fault::always(Mode::Close).matching("POST /box/k?uploadId")));
    let error = region.flush().expect_err("no answer ever comes");
    assert!(matches!(error, Error::Sink(SinkError::Unsettled { .. })), "{error}");
    server.endpoint.faults().set(None);
    assert_eq!(server.endpoint.store().open_uploads(), 1);
    drop(region);
    for _ in 0..400 {
        if server.endpoint.store().open_uploads() == 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("an upload is left");
}

/// A region over all of it, as a program has it.
#[test]
fn a_region_is_written_back_to_s3() {
    if !with_credentials("s3_sinks::a_region_is_written_back_to_s3") {
        return;
    }
    let server = Server::start();
    let len = 4 * PART + 4321;
    let mut expected = sample(len);
    server.put("k", &expected);
    let pager = Pager::builder().budget_bytes(32 << 20).build().expect("a pager");
    let region = pager.open_mut(server.source("k"), server.sink("k")).expect("the object");
    for round in 1..4u8 {
        for at in [3usize, 2 * PART - 2, 4 * PART + 4000] {
            region.write_at(at as u64, &[round; 5]).expect("written");
            expected[at..at + 5].fill(round);
        }
        let flushed = region.flush().expect("flushed");
        assert_eq!(flushed.version, region.version());
        assert!(server.bytes("k") == expected, "round {round}");
        region.advise(Hint::DontNeed(0..len as u64)).expect("advised");
        let mut got = vec![0; len];
        region.read_at(0, &mut got).expect("read");
        assert!(got == expected, "round {round}");
    }
    // Somebody else puts an object there.
    region.write_at(0, b"ours").expect("written");
    server.put("k", &vec![7; len]);
    let error = region.flush().expect_err("it is not ours any more");
    assert!(matches!(error, Error::Sink(SinkError::Conflict { .. })), "{error}");
    assert!(server.bytes("k") == vec![7; len]);
    assert_eq!(region.load(0..4).expect("still here")[..], *b"ours");
    assert_eq!(server.endpoint.store().open_uploads(), 0);
}

/// `kill -9` in the middle of a flush leaves all of the old bytes or all of the new ones.
#[test]
fn what_a_killed_process_leaves_in_s3_is_one_version() {
    const TEST: &str = "s3_sinks::what_a_killed_process_leaves_in_s3_is_one_version";
    const KILLED: &str = "SOURCES_TEST_S3_KILLED";
    if !with_credentials(TEST) {
        return;
    }
    let steps = [Step::Begun, Step::Wrote, Step::Commits, Step::Committed, Step::Never];
    if let Ok(order) = std::env::var(KILLED) {
        let mut order = order.split(' ');
        let mut next = || order.next().expect("a step, an address and a key");
        let at = steps[next().parse::<usize>().expect("a number")];
        let endpoint = Some(next().to_owned());
        let region = Some("us-east-1".to_owned());
        let aws = Aws::new(AwsOptions { endpoint, region, ..AwsOptions::default() });
        let key = next();
        let sink = S3Sink::new("box", key, aws.clone(), small_parts()).expect("a sink");
        return stamp(source(&aws, "box", key), Stops { sink, at });
    }
    let server = Server::start();
    for (key, len) in [("small", 300_001), ("large", 2 * PART + 77)] {
        let kills = (0..4usize).map(|step| (step, 0)).chain((0..6).map(|n| (4, n * 7_001)));
        for (step, after_us) in kills {
            server.put(key, &vec![0; len]);
            let mut child = std::process::Command::new(std::env::current_exe().expect("this"))
                .args(["--exact", TEST, "--nocapture", "--test-threads=1"])
                .env(KILLED, format!("{step} {} {key}", server.endpoint.url()))
                .stdout(std::process::Stdio::piped())
                .spawn()
                .expect("a child");
            let mut said = BufReader::new(child.stdout.take().expect("its output")).lines();
            let word = if steps[step] == Step::Never { "flushed" } else { "stopped" };
            let reached = said.any(|line| line.expect("a line").ends_with(word));
            assert!(reached, "the child ended before");
            std::thread::sleep(Duration::from_micros(after_us));
            child.kill().expect("killed");
            child.wait().expect("waited for");
            let found = server.bytes(key);
            assert_eq!(found.len(), len);
            let stamp = found[0];
            assert!(found.iter().all(|&byte| byte == stamp), "{key}, {:?}: two", steps[step]);
            match steps[step] {
                Step::Never => assert!(stamp > 0, "{key}: one was committed"),
                Step::Committed => assert_eq!(stamp, 1, "{key}"),
                early => assert_eq!(stamp, 0, "{key}, {early:?}"),
            }
        }
    }
}
