//! Objects that are written in parts: complete, or not there.

use std::{io::Write, time::Duration};

use pager::SourceError;
use sources::{
    RetryPolicy,
    aws::{Aws, AwsOptions},
    s3::upload::{Upload, UploadOptions},
};

use crate::servers::{Bucket, sample, variable};

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
