//! The same promises, kept by S3 and SQS: or by what stands in for them on this machine.

use std::{
    env,
    io::{Read as _, Write as _},
    net::TcpListener,
    thread,
    time::Duration,
};

use s3db::{
    Address, Backend, Options,
    cloud::{Cloud, ETag, Get, QueueSettings, Receipt, aws::Place},
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

/// An administrator's queue keeps messages for as long as they say, or for four days.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_others_made_keeps_messages_long_enough() {
    use aws_sdk_sqs::types::QueueAttributeName::{FifoQueue, MessageRetentionPeriod};
    let Some(s3) = variable("TEST_S3_ENDPOINT", "retention in SQS") else { return };
    let Some(sqs) = variable("TEST_SQS_ENDPOINT", "retention in SQS") else { return };
    let url = bucket(&s3, Some(&sqs), "kept").await;
    let Address::Aws(place) = url.parse().unwrap() else { panic!("not AWS") };
    let aws = Aws::new(AwsOptions::default());
    let config = aws_sdk_sqs::config::Builder::from(aws.config().await.unwrap()).endpoint_url(&sqs);
    let client = aws_sdk_sqs::Client::from_conf(config.build());
    let cloud = cloud(&url);
    let day = Duration::from_secs(24 * 3600);
    for (queue, fifo, theirs, ours, expected) in [
        ("theirs", false, "60", 14 * day, "1209600"),
        ("ordered", true, "60", 14 * day, "1209600"),
        ("longer", false, "1209600", day, "1209600"),
        ("same", false, "1209600", 14 * day, "1209600"),
    ] {
        let suffix = if fifo { ".fifo" } else { "" };
        let name = format!("{}{queue}{suffix}", place.names().queues);
        let mut call = client.create_queue().queue_name(&name);
        call = call.attributes(MessageRetentionPeriod, theirs);
        if fifo {
            call = call.attributes(FifoQueue, "true");
        }
        let made = call.send().await.unwrap();
        cloud.queue.create(queue, QueueSettings { fifo, retention: ours }).await.unwrap();
        let call = client.get_queue_attributes().queue_url(made.queue_url().unwrap());
        let found = call.attribute_names(MessageRetentionPeriod).send().await.unwrap();
        let found = found.attributes().and_then(|all| all.get(&MessageRetentionPeriod)).cloned();
        assert_eq!(found.as_deref(), Some(expected), "{queue}");
    }
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
    let url = "s3://no-such-bucket/db?endpoint=http://user:SECRET@127.0.0.1:9&sqs=http://SECRET@h";
    let Address::Aws(place) = url.parse().unwrap() else { panic!("not AWS") };
    assert_eq!(place.bucket, "no-such-bucket");
    let fault = cloud(url).objects.get("database", None).await.unwrap_err();
    let text = fault.to_string();
    assert!(text.contains("s3://no-such-bucket/db/database"), "{text}");
    assert!(!text.contains("SECRET") && text.len() < 1000, "{text}");
    assert!(!format!("{:?}", url.parse::<Address>().unwrap()).contains("SECRET"));
    let place = Place { bucket: "Not_A_Bucket".into(), ..Place::default() };
    assert!(s3db::cloud::aws::connect(&place).is_err());
}

/// Whether a request has come to the end of its body.
fn is_whole(request: &[u8]) -> bool {
    let Some(head) = request.windows(4).position(|end| end == b"\r\n\r\n") else { return false };
    let text = String::from_utf8_lossy(&request[..head]).to_ascii_lowercase();
    let len = text.lines().find_map(|line| line.strip_prefix("content-length:"));
    let len: usize = len.and_then(|len| len.trim().parse().ok()).unwrap_or(0);
    request.len() >= head + 4 + len
}

/// A service that gives these answers, one for each connection. Returns its address.
fn answers(answers: Vec<String>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().expect("a connection");
            let (mut request, mut bytes) = (Vec::new(), [0; 4096]);
            while !is_whole(&request) {
                assert!(request.len() < 64 << 10, "no request here is that long");
                match stream.read(&mut bytes).expect("a request") {
                    0 => break,
                    count => request.extend_from_slice(&bytes[..count]),
                }
            }
            stream.write_all(answer.as_bytes()).expect("an answer");
        }
    });
    address
}

/// The newest date of any answer was given out with every later one: one that was wrong, from whoever
/// stands in between, was believed for the life of the process.
#[tokio::test]
async fn the_date_of_an_answer_is_its_own() {
    const RIGHT: &str = "Fri, 21 Nov 2025 02:00:00 GMT";
    const WRONG: &str = "Fri, 01 Jan 2100 00:00:00 GMT";
    const RIGHT_MS: u64 = 1_763_690_400_000;
    let answer = |status: &str, date: &str, body: &str| {
        let date = if date.is_empty() { String::new() } else { format!("Date: {date}\r\n") };
        let len = body.len();
        format!(
            "HTTP/1.1 {status}\r\n{date}ETag: \"t\"\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n{body}"
        )
    };
    // What is answered, and the date that the caller is told; `None` for an error.
    let cases = [
        ("503 Service Unavailable", WRONG, "", None),
        ("200 OK", RIGHT, "x", Some(RIGHT_MS)),
        ("200 OK", WRONG, "x", Some(4_102_444_800_000)),
        ("200 OK", RIGHT, "x", Some(RIGHT_MS)),
        ("304 Not Modified", RIGHT, "", Some(RIGHT_MS)),
        ("200 OK", "", "x", Some(0)),
    ];
    let endpoint =
        answers(cases.iter().map(|(status, date, body, _)| answer(status, date, body)).collect());
    let aws = AwsOptions { endpoint: Some(endpoint), anonymous: true, ..AwsOptions::default() };
    let place = Place { bucket: "bucket".into(), aws, ..Place::default() };
    let cloud = s3db::cloud::aws::connect(&place).expect("a place");
    let known = ETag::new("\"t\"");
    for (status, date, _, expected) in cases {
        let told = match cloud.objects.get("database", Some(&known)).await {
            Ok(Get::Found { date_ms, .. } | Get::Unchanged { date_ms }) => Some(date_ms),
            Ok(Get::Absent) => panic!("{status} {date}: absent"),
            Err(_) => None,
        };
        assert_eq!(told, expected, "{status} {date}");
    }
}

/// A receipt that counts no more is an error of FIFO queues, and the message comes again: that is no failure of
/// the others, and nobody who calls it needs to know. What is the service's own fault is tried again.
#[tokio::test]
async fn a_receipt_that_has_expired_is_no_error() {
    // SQS knows nobody without credentials: those of the test servers.
    let Some(_) = variable("TEST_SQS_ENDPOINT", "receipts that have expired") else { return };
    let answer = |status: &str, body: &str| {
        let len = body.len();
        let head = "Content-Type: application/x-amz-json-1.0\r\nConnection: close";
        format!("HTTP/1.1 {status}\r\n{head}\r\nContent-Length: {len}\r\n\r\n{body}")
    };
    let none = r#"{"__type":"com.amazonaws.sqs#QueueDoesNotExist","message":"none"}"#;
    let failed = |is_theirs: bool| {
        let why = "Value r0 for parameter ReceiptHandle is invalid. Reason: The receipt handle has expired.";
        let failed = format!(
            r#"{{"Id":"0","SenderFault":{is_theirs},"Code":"InvalidParameterValue","Message":"{why}"}}"#
        );
        format!(r#"{{"Successful":[{{"Id":"1"}}],"Failed":[{failed}]}}"#)
    };
    let endpoint = answers(vec![
        answer("400 Bad Request", none),
        answer("200 OK", r#"{"QueueUrl":"http://127.0.0.1/1/q.fifo"}"#),
        answer("200 OK", &failed(true)),
        answer("200 OK", &failed(false)),
    ]);
    let place = Place { bucket: "bucket".into(), sqs_endpoint: Some(endpoint), ..Place::default() };
    let cloud = s3db::cloud::aws::connect(&place).expect("a place");
    let receipts = ["r0", "r1"].map(Receipt::new);
    assert_eq!(cloud.queue.delete("pu-0", &receipts).await, Ok(()));
    let fault = cloud.queue.delete("pu-0", &receipts).await.unwrap_err();
    assert!(fault.is_transient(), "{fault}");
}
