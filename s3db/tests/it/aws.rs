//! The same promises, kept by S3 and SQS: or by what stands in for them on this machine.

use std::env;

use s3db::{
    Address, Backend, Options,
    cloud::{Cloud, aws::Place},
};
use sources::aws::{Aws, AwsOptions};

use crate::{
    blobs, conformance,
    embedded::{self, options},
    sealed::keys,
};

/// What the test servers tell by the environment. A test without its servers is left out, and says
/// so; where the environment says CI it fails.
fn variable(name: &str, what: &str) -> Option<String> {
    if let Some(value) = env::var(name).ok().filter(|value| !value.is_empty()) {
        return Some(value);
    }
    assert!(env::var("CI").as_deref() != Ok("true"), "CI needs {name} for {what}");
    println!("left out: {what}: {name} is not set; start the test servers first");
    None
}

/// An address in a new bucket.
async fn bucket(s3: &str, sqs: Option<&str>, what: &str) -> String {
    let name = format!("s3db-{what}-{}", std::process::id());
    let aws = Aws::new(AwsOptions { endpoint: Some(s3.to_owned()), ..AwsOptions::default() });
    let client = aws.s3().await.expect("a client");
    client.create_bucket().bucket(&name).send().await.expect("a bucket");
    let sqs = sqs.map(|sqs| format!("&sqs={sqs}")).unwrap_or_default();
    format!("s3://{name}/some/prefix?endpoint={s3}{sqs}")
}

fn cloud(url: &str) -> Cloud {
    url.parse::<Address>().unwrap().cloud().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_keep_their_promises() {
    let Some(s3) = variable("TEST_S3_ENDPOINT", "objects in S3") else { return };
    let cloud = cloud(&bucket(&s3, None, "objects").await);
    conformance::objects(&*cloud.objects, "t").await;
    conformance::swaps(&*cloud.objects, "s", 4, 5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queues_keep_their_promises() {
    let Some(sqs) = variable("TEST_SQS_ENDPOINT", "queues in SQS") else { return };
    let Some(s3) = variable("TEST_S3_ENDPOINT", "queues in SQS") else { return };
    let cloud = cloud(&bucket(&s3, Some(&sqs), "queues").await);
    conformance::queue(&*cloud.queue, "standard").await;
    conformance::fifo(&*cloud.queue, "ordered").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_in_a_bucket() {
    let Some(s3) = variable("TEST_S3_ENDPOINT", "a database in S3") else { return };
    embedded::life_of_a_database(&bucket(&s3, None, "db").await, &options(Backend::S3Log)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_with_queues() {
    let Some(s3) = variable("TEST_S3_ENDPOINT", "a database with SQS") else { return };
    let Some(sqs) = variable("TEST_SQS_ENDPOINT", "a database with SQS") else { return };
    let url = bucket(&s3, Some(&sqs), "sqs").await;
    embedded::life_of_a_database(&url, &options(Backend::SqsStandard)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_encrypted_database_in_a_bucket() {
    let Some(s3) = variable("TEST_S3_ENDPOINT", "an encrypted database in S3") else { return };
    let options = Options { keys: Some(keys(&[1])), ..options(Backend::S3Log) };
    embedded::life_of_a_database(&bucket(&s3, None, "sealed").await, &options).await;
}

/// With parts as large as they are for everyone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blobs_in_a_bucket() {
    let Some(s3) = variable("TEST_S3_ENDPOINT", "blobs in S3") else { return };
    let plain = options(Backend::S3Log);
    blobs::life_of_blobs(&bucket(&s3, None, "blobs").await, &plain, 20 << 20).await;
    let sealed = Options { keys: Some(keys(&[1])), ..options(Backend::S3Log) };
    blobs::life_of_blobs(&bucket(&s3, None, "sealed-blobs").await, &sealed, 9 << 20).await;
}

/// Errors name the object and what to do, and nothing secret.
#[tokio::test]
async fn what_cannot_be_reached_is_said() {
    let url = "s3://no-such-bucket/db?endpoint=http://127.0.0.1:9";
    let Address::Aws(place) = url.parse().unwrap() else { panic!("not AWS") };
    assert_eq!(place.bucket, "no-such-bucket");
    let fault = cloud(url).objects.get("database", None).await.unwrap_err();
    let text = fault.to_string();
    assert!(text.contains("s3://no-such-bucket/db/database"), "{text}");
    let place = Place { bucket: "Not_A_Bucket".into(), ..Place::default() };
    assert!(s3db::cloud::aws::connect(&place).is_err());
}
