//! HTTP servers that refuse, redirect, lie and break off.

use std::time::{Duration, Instant};

use futures::TryStreamExt;
use sources::{
    BlockSource, Options, SourceError, Version,
    http::{Client, ClientOptions, Credentials, Http},
};

use crate::fake::{Fake, answer};

const OBJECT: &[u8] = b"0123456789";

fn bare(url: &str) -> Http {
    let options = ClientOptions {
        first_byte: Duration::from_millis(500),
        stall: Duration::from_millis(500),
        ..ClientOptions::default()
    };
    let client = Client::new(&options).expect("a client");
    Http::new(url, client, Credentials::default()).expect("an address")
}

async fn read(source: &dyn BlockSource, version: &Version) -> Result<Vec<u8>, SourceError> {
    let body = source.read(version, 2..6).await?;
    Ok(body.try_collect::<Vec<_>>().await?.concat())
}

/// Name, answer, and the bytes or the kind of error that a read makes of it.
type Case = (&'static str, Vec<u8>, Result<&'static [u8], &'static str>);

/// What a read of bytes 2..6 at the tag "v" makes of each answer.
#[tokio::test]
async fn answers_to_a_range() {
    let tag = "ETag: \"v\"";
    let good = "Content-Range: bytes 2-5/10";
    let partial = |headers: &[&str], body: &[u8]| answer("206 Partial Content", headers, body);
    let cases: Vec<Case> = vec![
        ("the range", partial(&[tag, good], b"2345"), Ok(b"2345")),
        ("an unknown total", partial(&[tag, "Content-Range: bytes 2-5/*"], b"2345"), Ok(b"2345")),
        ("another range", partial(&[tag, "Content-Range: bytes 3-6/10"], b"3456"), Err("corrupt")),
        ("no Content-Range", partial(&[tag], b"2345"), Err("corrupt")),
        ("nonsense", partial(&[tag, "Content-Range: bytes 5-2/10"], b"2345"), Err("corrupt")),
        ("a short body", partial(&[tag, good], b"234"), Err("corrupt")),
        ("a long body", partial(&[tag, good], b"23456"), Err("corrupt")),
        ("a cut body", partial(&[tag, good, "Content-Length: 4"], b"23"), Err("transient")),
        ("another tag", partial(&["ETag: \"w\"", good], b"2345"), Err("changed")),
        ("no tag", partial(&[good], b"2345"), Err("changed")),
        ("compressed", partial(&[tag, good, "Content-Encoding: gzip"], b"2345"), Err("permanent")),
        ("the whole object", answer("200 OK", &[tag], OBJECT), Err("permanent")),
        ("another whole object", answer("200 OK", &["ETag: \"w\""], OBJECT), Err("changed")),
        ("unauthorized", answer("401 Unauthorized", &[], b""), Err("denied")),
        ("forbidden", answer("403 Forbidden", &[], b""), Err("denied")),
        ("not found", answer("404 Not Found", &[], b""), Err("not_found")),
        ("gone", answer("410 Gone", &[], b""), Err("not_found")),
        ("precondition", answer("412 Precondition Failed", &[], b""), Err("changed")),
        ("out of range", answer("416 Range Not Satisfiable", &[tag], b""), Err("permanent")),
        ("too many", answer("429 Too Many Requests", &[], b""), Err("throttled")),
        ("internal", answer("500 Internal Server Error", &[], b""), Err("transient")),
        ("bad gateway", answer("502 Bad Gateway", &[], b""), Err("transient")),
        ("unavailable", answer("503 Service Unavailable", &[], b""), Err("throttled")),
        ("teapot", answer("418 I'm a teapot", &[], b""), Err("permanent")),
        ("no http", b"hello\r\n\r\n".to_vec(), Err("transient")),
        ("nothing", Vec::new(), Err("transient")),
    ];
    let version = Version::strong("\"v\"");
    for (what, bytes, expected) in cases {
        let fake = Fake::start(move |_| bytes.clone()).await;
        let source = bare(&fake.base);
        let got = read(&source, &version).await;
        match (&got, expected) {
            (Ok(got), Ok(expected)) => assert_eq!(got, expected, "{what}"),
            (Err(error), Err(kind)) => assert_eq!(error.kind(), kind, "{what}: {error}"),
            _ => panic!("{what}: {got:?} instead of {expected:?}"),
        }
        let head = &fake.seen()[0];
        for line in ["range: bytes=2-5", "if-match: \"v\"", "accept-encoding: identity"] {
            assert!(head.contains(line), "{what}: {line} is missing in {head}");
        }
    }
}

#[tokio::test]
async fn a_retry_after_is_kept_and_waited_for() {
    let fake = Fake::start(|_| answer("503 Busy", &["Retry-After: 7"], b"")).await;
    match bare(&fake.base).stat().await {
        Err(SourceError::Throttled { retry_after, .. }) => {
            assert_eq!(retry_after, Some(Duration::from_secs(7)));
        }
        other => panic!("{other:?}"),
    }
    // Longer than the deadline: given up at once, not after it.
    let url = format!("{}#extmem:deadline_ms=5000", fake.base);
    let began = Instant::now();
    let error = sources::open(&url).expect("an address").stat().await.expect_err("busy");
    assert!(matches!(error, SourceError::Throttled { .. }), "{error}");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_server_that_says_nothing_is_left_in_time() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let source = bare(&format!("http://{}/x", listener.local_addr().expect("an address")));
    let began = Instant::now();
    let error = source.stat().await.expect_err("silence");
    assert!(matches!(error, SourceError::Transient { .. }), "{error}");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_head_that_is_refused_is_asked_as_a_range() {
    for status in ["403 Forbidden", "405 Method Not Allowed", "501 Not Implemented"] {
        let refusal = answer(status, &[], b"");
        let fake = Fake::start(move |head| {
            if head.starts_with("head") {
                return refusal.clone();
            }
            let headers = ["ETag: \"v\"", "Content-Range: bytes 0-0/10"];
            answer("206 Partial Content", &headers, b"0")
        });
        let fake = fake.await;
        let stat = bare(&fake.base).stat().await.expect(status);
        assert_eq!((stat.len, stat.version.token()), (10, "\"v\""), "{status}");
    }
}

fn serves_object(head: &str) -> Vec<u8> {
    let tag = "ETag: \"v\"";
    if head.starts_with("head") {
        return answer("200 OK", &[tag, "Accept-Ranges: bytes", "Content-Length: 10"], b"");
    }
    answer("206 Partial Content", &[tag, "Content-Range: bytes 2-5/10"], b"2345")
}

#[tokio::test]
async fn credentials_go_to_their_origin_and_no_further() {
    let other = Fake::start(serves_object).await;
    let place = format!("Location: {}/object", other.base);
    let first = Fake::start(move |_| answer("302 Found", &[&place], b"")).await;
    let address = first.base.replace("http://", "http://user:pa%20ss@");
    let credentials = Credentials::default().header("x-token", "mine").expect("a header");
    let source = Options::default().credentials(credentials).open(&address).expect("an address");
    assert!(!source.name().contains("user"), "{}", source.name());
    let stat = source.stat().await.expect("stat");
    assert_eq!(read(&source, &stat.version).await.expect("bytes"), b"2345");
    // base64 of user:pa ss, in the lower case of the recorded heads.
    let basic = "authorization: basic dxnlcjpwysbzcw==";
    assert!(first.seen()[0].contains(basic), "{:?}", first.seen());
    assert!(first.seen()[0].contains("x-token: mine"), "{:?}", first.seen());
    assert_eq!(first.seen().len(), 1, "the place was remembered");
    for head in other.seen() {
        assert!(!head.contains("authorization") && !head.contains("x-token"), "{head}");
    }
    assert_eq!(other.seen().len(), 2);
}

#[tokio::test]
async fn a_remembered_place_that_expires_is_looked_for_again() {
    let other = Fake::start(|head| match head.contains("object-1") && head.starts_with("get") {
        true => answer("403 Expired", &[], b""),
        false => serves_object(head),
    })
    .await;
    let (base, turn) = (other.base.clone(), std::sync::atomic::AtomicU32::new(1));
    let first = Fake::start(move |_| {
        let turn = turn.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        answer("307 Temporary Redirect", &[&format!("Location: {base}/object-{turn}")], b"")
    })
    .await;
    let source = bare(&first.base);
    let stat = source.stat().await.expect("stat");
    assert_eq!(read(&source, &stat.version).await.expect("bytes"), b"2345");
    assert_eq!(first.seen().len(), 2);
}

#[tokio::test]
async fn redirects_end() {
    let loops = Fake::start(|_| answer("301 Moved", &["Location: /again"], b"")).await;
    let error = bare(&loops.base).stat().await.expect_err("a loop");
    assert!(error.to_string().contains("redirects"), "{error}");
    assert_eq!(loops.seen().len(), 11);
    for place in ["Location: ftp://host/x", "X-Nothing: 1"] {
        let nowhere = Fake::start(move |_| answer("302 Found", &[place], b"")).await;
        let error = bare(&nowhere.base).stat().await.expect_err("nowhere");
        assert!(matches!(error, SourceError::Permanent { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_bearer_token_is_sent_and_not_shown() {
    let fake = Fake::start(|_| answer("401 Unauthorized", &[], b"")).await;
    let credentials = Credentials::default().bearer("s3cret").expect("a token");
    let source = Options::default().credentials(credentials).open(&fake.base).expect("an address");
    let error = source.stat().await.expect_err("denied");
    assert!(matches!(error, SourceError::Denied { .. }), "{error}");
    assert!(!format!("{error:?}").contains("s3cret"));
    assert!(fake.seen()[0].contains("authorization: bearer s3cret"));
}

/// S3 clients meet the same kinds of servers.
#[tokio::test]
async fn s3_errors_say_what_to_do() {
    let xml = |code: &str| {
        format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>m</Message></Error>")
    };
    let cases = [
        ("403 Forbidden", "AccessDenied", "denied", "AccessDenied"),
        ("403 Forbidden", "RequestTimeTooSkewed", "denied", "clock"),
        ("403 Forbidden", "InvalidObjectState", "permanent", "archived"),
        ("404 Not Found", "NoSuchKey", "not_found", "not found"),
        ("404 Not Found", "NoSuchVersion", "changed", "changed"),
        ("412 Precondition Failed", "PreconditionFailed", "changed", "changed"),
        ("416 Range Not Satisfiable", "InvalidRange", "permanent", "range"),
        ("301 Moved", "PermanentRedirect", "permanent", "region=eu-west-9"),
        ("400 Bad Request", "ExpiredToken", "denied", "ExpiredToken"),
        ("400 Bad Request", "RequestTimeout", "transient", "RequestTimeout"),
        ("500 Internal Server Error", "InternalError", "transient", "InternalError"),
        ("503 Service Unavailable", "SlowDown", "throttled", "slow down"),
        ("200 OK", "", "permanent", "Content-Range"),
    ];
    for (status, code, kind, text) in cases {
        let body = if code.is_empty() { String::from("0123") } else { xml(code) };
        let headers = ["ETag: \"v\"", "x-amz-bucket-region: eu-west-9"];
        let fake = Fake::start(move |_| answer(status, &headers, body.as_bytes())).await;
        let url = format!("s3://bucket/key?endpoint={}&retries=0&anonymous", fake.base);
        let source = sources::open(&url).expect("an address");
        let got = read(&source, &Version::strong("\"v\"")).await;
        let error = got.expect_err(code);
        assert_eq!(error.kind(), kind, "{status} {code}: {error}");
        assert!(error.to_string().contains(text), "{status} {code}: {error}");
    }
}

#[tokio::test]
async fn s3_without_the_right_to_versions_reads_by_tag() {
    let fake = Fake::start(|head| {
        let tag = ["ETag: \"v\"", "Content-Range: bytes 2-5/10"];
        match head.contains("versionid=") {
            true => answer("403 Forbidden", &[], b""),
            false => answer("206 Partial Content", &tag, b"2345"),
        }
    })
    .await;
    let url = format!("s3://bucket/key?endpoint={}&retries=0&requester_pays&anonymous", fake.base);
    let options = Options::default();
    let source = options.open(&url).expect("an address");
    let version = Version::strong("\"v\" version-id 17");
    for expected_requests in [2, 3] {
        assert_eq!(read(&source, &version).await.expect("bytes"), b"2345");
        assert_eq!(fake.seen().len(), expected_requests, "denied once, then remembered");
    }
    for head in fake.seen() {
        assert!(head.contains("if-match: \"v\""), "{head}");
        assert!(head.contains("x-amz-request-payer: requester"), "{head}");
    }
    let fixed = format!("{url}&version_id=17");
    let source = options.open(&fixed).expect("an address");
    let error = read(&source, &version).await.expect_err("asked for by name");
    assert!(matches!(error, SourceError::Denied { .. }), "{error}");
}
