//! Objects that are written in parts: complete, or not there.

use std::{
    io::Write,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use pager::SourceError;
use sources::{
    RetryPolicy,
    aws::{Aws, AwsOptions},
    s3::upload::{Upload, UploadOptions},
};

use crate::{
    fake::{Fake, answer},
    servers::{Bucket, sample, variable},
};

/// A part is 5 MiB at least.
const PART: usize = 5 << 20;

fn options() -> UploadOptions {
    UploadOptions { part_bytes: PART as u64, parts_at_once: 2, ..UploadOptions::default() }
}

/// Writes from a thread that may block, in pieces of no special length.
async fn upload(
    aws: Aws,
    bucket: &str,
    key: &str,
    bytes: Vec<u8>,
    announced: usize,
    options: UploadOptions,
) -> Result<(), SourceError> {
    let (bucket, key) = (bucket.to_owned(), key.to_owned());
    let work = move || {
        let mut upload = Upload::begin(&bucket, &key, &aws, announced as u64, options)?;
        for piece in bytes.chunks(999_983) {
            if upload.write_all(piece).is_err() {
                // What went wrong is told at the end.
                break;
            }
        }
        upload.finish()
    };
    tokio::task::spawn_blocking(work).await.expect("no panic")
}

fn aws_of(endpoint: &str) -> Aws {
    Aws::new(AwsOptions { endpoint: Some(endpoint.to_owned()), ..AwsOptions::default() })
}

async fn open_uploads(aws: &Aws, bucket: &str) -> usize {
    let list = aws.s3().await.expect("a client").list_multipart_uploads().bucket(bucket);
    list.send().await.expect("a list").uploads().len()
}

#[tokio::test]
async fn what_is_uploaded_is_what_is_there() {
    let Some(endpoint) = variable("TEST_S3_ENDPOINT", "uploads") else { return };
    let bucket = Bucket::make(&endpoint, "uploads").await;
    let aws = aws_of(&endpoint);
    let cases = [
        ("empty", 0),
        ("small", 1000),
        ("one-part", PART),
        ("one-byte-more", PART + 1),
        ("three-parts", 3 * PART),
        ("and-some", 3 * PART + 77),
    ];
    for (key, len) in cases {
        let bytes = sample(len);
        upload(aws.clone(), &bucket.name, key, bytes.clone(), len, options()).await.expect(key);
        let get = aws.s3().await.expect("a client").get_object().bucket(&bucket.name).key(key);
        let body = get.send().await.expect(key).body.collect().await.expect("a body");
        assert!(body.into_bytes() == bytes, "{key}");
    }
    assert_eq!(open_uploads(&aws, &bucket.name).await, 0, "no upload is left open");
}

/// Whatever ends an upload early, nothing is at the key, and no parts are left.
#[tokio::test]
async fn what_is_not_finished_is_not_there() {
    let Some(endpoint) = variable("TEST_S3_ENDPOINT", "unfinished uploads") else { return };
    let bucket = Bucket::make(&endpoint, "unfinished").await;
    let aws = aws_of(&endpoint);
    let there = async |key: &str| {
        let head = aws.s3().await.expect("a client").head_object().bucket(&bucket.name).key(key);
        head.send().await.is_ok()
    };
    for (what, len, announced) in [
        ("fewer bytes", 2 * PART, 3 * PART),
        ("more bytes", 3 * PART, 2 * PART),
        ("fewer, of one part", 10, 11),
        ("more, of one part", 11, 10),
    ] {
        let failed = upload(aws.clone(), &bucket.name, what, sample(len), announced, options());
        let error = failed.await.expect_err(what);
        assert!(matches!(error, SourceError::Permanent { .. }), "{what}: {error}");
        assert!(!there(what).await, "{what}");
    }
    // Dropped in the middle, from within a runtime too.
    let mut half =
        Upload::begin(&bucket.name, "half", &aws, 3 * PART as u64, options()).expect("begun");
    half.write_all(&sample(2 * PART)).expect("written");
    assert_eq!(open_uploads(&aws, &bucket.name).await, 1, "it is under way");
    drop(half);
    assert!(!there("half").await);
    assert_eq!(open_uploads(&aws, &bucket.name).await, 0, "and then it is aborted");

    let denied = Upload::begin("no-such-bucket-at-all", "key", &aws, 3 * PART as u64, options());
    let error = denied.map(drop).expect_err("there is no such bucket");
    assert!(matches!(error, SourceError::NotFound { .. }), "{error}");
    let impatient = UploadOptions {
        retry: RetryPolicy {
            attempts_max: 2,
            deadline: Duration::from_secs(5),
            ..RetryPolicy::default()
        },
        ..options()
    };
    let nobody = aws_of("http://127.0.0.1:1");
    let error = upload(nobody, "bucket", "key", sample(10), 10, impatient).await;
    assert!(matches!(error, Err(SourceError::Transient { attempts: 2, .. })), "{error:?}");
}

/// The mark that an upload puts on its object, out of the head of a request.
fn mark(head: &str) -> Option<String> {
    let line = head.lines().find(|line| line.starts_with("x-amz-meta-extmem-upload:"))?;
    Some(line.to_owned())
}

fn anonymous(endpoint: &str) -> Aws {
    let (endpoint, region) = (Some(endpoint.to_owned()), Some("us-east-1".to_owned()));
    Aws::new(AwsOptions { endpoint, region, anonymous: true, ..AwsOptions::default() })
}

fn quick(replace: bool) -> UploadOptions {
    let retry = RetryPolicy {
        backoff_min: Duration::from_millis(1),
        throttle_min: Duration::from_millis(1),
        backoff_max: Duration::from_millis(5),
        ..RetryPolicy::default()
    };
    UploadOptions { replace, retry, ..options() }
}

const NO_UPLOAD: &[u8] = b"<?xml version=\"1.0\"?><Error><Code>NoSuchUpload</Code></Error>";
const EXISTS: &[u8] = b"<?xml version=\"1.0\"?><Error><Code>PreconditionFailed</Code></Error>";

/// The first attempt fails on its way there or on its way back; the second finds an object of the
/// same length. Only if it bears our mark was the first attempt the one that made it.
#[tokio::test]
async fn an_object_of_others_is_never_taken_for_ours() {
    for (what, ours) in [("ours", true), ("another's", false)] {
        let (puts, seen) = (AtomicU32::new(0), Mutex::new(None));
        let fake = Fake::start(move |head| {
            if head.starts_with("head ") {
                let seen = seen.lock().expect("the mark").clone();
                let mark = seen.filter(|_| ours);
                let mut headers = vec!["Content-Length: 1000", "ETag: \"x\""];
                headers.extend(mark.as_deref());
                return answer("200 OK", &headers, b"");
            }
            assert!(head.starts_with("put "), "{head}");
            if puts.fetch_add(1, Relaxed) > 0 {
                return answer("412 Precondition Failed", &[], EXISTS);
            }
            *seen.lock().expect("the mark") = mark(head);
            // Ours was made, and the answer is lost; the other's came between.
            if ours { Vec::new() } else { answer("503 Slow Down", &[], b"") }
        });
        let fake = fake.await;
        let aws = anonymous(&fake.base);
        let done = upload(aws, "bucket", "key", sample(1000), 1000, quick(false)).await;
        assert_eq!(done.is_ok(), ours, "{what}: {done:?}");
        let heads = fake.seen();
        assert!(heads.iter().any(|head| head.starts_with("head ")), "{what}: {heads:?}");
    }
}

/// The same of an upload in parts, which is gone when it is to be completed again.
#[tokio::test]
async fn an_older_object_is_never_taken_for_the_one_that_replaces_it() {
    for (what, ours) in [("ours", true), ("the older one", false)] {
        let (completed, seen) = (AtomicU32::new(0), Mutex::new(None));
        let len = 2 * PART;
        let fake = Fake::start(move |head| {
            let line = head.lines().next().unwrap_or_default();
            if line.starts_with("post ") && line.contains("uploads") {
                *seen.lock().expect("the mark") = mark(head);
                let text = "<InitiateMultipartUploadResult><Bucket>bucket</Bucket><Key>key</Key>\
                            <UploadId>u1</UploadId></InitiateMultipartUploadResult>";
                return answer("200 OK", &["Content-Type: application/xml"], text.as_bytes());
            }
            if line.starts_with("put ") {
                return answer("200 OK", &["ETag: \"part\""], b"");
            }
            if line.starts_with("post ") {
                return match completed.fetch_add(1, Relaxed) {
                    0 if ours => Vec::new(),
                    0 => answer("503 Slow Down", &[], b""),
                    _ => answer("404 Not Found", &[], NO_UPLOAD),
                };
            }
            if line.starts_with("head ") {
                let seen = seen.lock().expect("the mark").clone();
                let mark = seen.filter(|_| ours);
                let length = format!("Content-Length: {len}");
                let mut headers = vec![length.as_str(), "ETag: \"0123-2\""];
                headers.extend(mark.as_deref());
                return answer("200 OK", &headers, b"");
            }
            // The abort.
            answer("204 No Content", &[], b"")
        });
        let fake = fake.await;
        let aws = anonymous(&fake.base);
        let done = upload(aws, "bucket", "key", sample(len), len, quick(true)).await;
        assert_eq!(done.is_ok(), ours, "{what}: {done:?}");
    }
}

/// Not even who lists parts finds the head of an object that has no end: it goes when all others are
/// there, and only behind it are they put together.
#[tokio::test]
async fn the_first_part_goes_last_and_then_they_are_put_together() {
    let fake = Fake::start(|head| {
        let line = head.lines().next().unwrap_or_default();
        if line.starts_with("post ") && !line.contains("uploadid=") {
            let text = "<InitiateMultipartUploadResult><Bucket>bucket</Bucket><Key>key</Key>\
                        <UploadId>u1</UploadId></InitiateMultipartUploadResult>";
            return answer("200 OK", &["Content-Type: application/xml"], text.as_bytes());
        }
        if line.starts_with("put ") {
            return answer("200 OK", &["ETag: \"part\""], b"");
        }
        let text = "<CompleteMultipartUploadResult><Bucket>bucket</Bucket><Key>key</Key>\
                    <ETag>\"0123-4\"</ETag></CompleteMultipartUploadResult>";
        answer("200 OK", &["Content-Type: application/xml"], text.as_bytes())
    });
    let fake = fake.await;
    let len = 3 * PART + 77;
    upload(anonymous(&fake.base), "bucket", "key", sample(len), len, quick(true))
        .await
        .expect("done");
    // What each request was, in the order in which they came first: a slow one may be sent again.
    let asked = fake.seen().into_iter().map(|head| {
        let line = head.lines().next().unwrap_or_default().to_owned();
        let part = line.split(['?', '&', ' ']).find_map(|word| word.strip_prefix("partnumber="));
        match (part, line.starts_with("post "), line.contains("uploadid=")) {
            (Some(part), false, true) => part.to_owned(),
            (None, true, false) => "create".to_owned(),
            (None, true, true) => "complete".to_owned(),
            _ => panic!("{line}"),
        }
    });
    let mut known = std::collections::HashSet::new();
    let mut asked: Vec<String> = asked.filter(|what| known.insert(what.clone())).collect();
    // Those between may overtake each other.
    let between = asked.len().saturating_sub(2).max(1);
    asked[1..between].sort();
    assert_eq!(asked, ["create", "2", "3", "4", "1", "complete"]);
}
