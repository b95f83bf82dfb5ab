//! HTTP servers that refuse, redirect, lie and break off.

use std::time::{Duration, Instant};

use futures::TryStreamExt;
use sources::{
    BlockSource, Options, SourceError, Version,
    http::{Client, ClientOptions, Credentials, Http},
};

use crate::fake::{Fake, answer};

const OBJECT: &[u8] = b"0123456789";

/// What has a limit of a second or two ends by then on any machine, and what has none never ends.
const IN_TIME: Duration = Duration::from_secs(20);

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
        ("not modified", answer("304 Not Modified", &[tag], b""), Err("permanent")),
        (
            "several ranges",
            partial(&[tag, "Content-Type: multipart/byteranges"], b"2345"),
            Err("corrupt"),
        ),
        ("another total", partial(&[tag, "Content-Range: bytes 2-5/11"], b"2345"), Ok(b"2345")),
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
        // Whole lines: `if-range` is a condition of its own, for servers that do not know `if-match`.
        for line in
            ["range: bytes=2-5", "if-match: \"v\"", "if-range: \"v\"", "accept-encoding: identity"]
        {
            let is_there = head.lines().any(|had| had == line);
            assert!(is_there, "{what}: {line} is missing in {head}");
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
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_server_that_says_nothing_is_left_in_time() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let source = bare(&format!("http://{}/x", listener.local_addr().expect("an address")));
    let began = Instant::now();
    let error = source.stat().await.expect_err("silence");
    assert!(matches!(error, SourceError::Transient { .. }), "{error}");
    assert!(began.elapsed() < IN_TIME, "{:?}", began.elapsed());
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

/// A place that is gone is not asked for ever: the start may know another.
#[tokio::test]
async fn a_remembered_place_that_is_gone_is_looked_for_again() {
    for gone in ["closed", "503 Busy"] {
        let place = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
        let told = place.clone();
        let first = Fake::start(move |_| {
            let place = format!("Location: {}/object", told.lock().expect("a place"));
            answer("302 Found", &[&place], b"")
        })
        .await;
        let down = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let is_down = down.clone();
        let old =
            Fake::start(move |head| match is_down.load(std::sync::atomic::Ordering::Relaxed) {
                true if gone == "closed" => Vec::new(),
                true => answer(gone, &[], b""),
                false => serves_object(head),
            })
            .await;
        *place.lock().expect("a place") = old.base.clone();
        let url = format!("{}#extmem:retries=2", first.base);
        let source = sources::open(&url).expect("an address");
        let version = source.stat().await.expect("stat").version;
        assert_eq!(read(&*source, &version).await.expect("bytes"), b"2345");
        let new = Fake::start(serves_object).await;
        *place.lock().expect("a place") = new.base.clone();
        down.store(true, std::sync::atomic::Ordering::Relaxed);
        let got = read(&*source, &version).await;
        assert_eq!(got.unwrap_or_else(|error| panic!("{gone}: {error}")), b"2345");
        assert_eq!(new.seen().len(), 1, "{gone}");
    }
}

/// Opening again asks where the object is now.
#[tokio::test]
async fn stat_follows_a_redirect_that_leads_elsewhere_today() {
    let old = Fake::start(serves_object).await;
    let new = Fake::start(|_| {
        answer("200 OK", &["ETag: \"w\"", "Accept-Ranges: bytes", "Content-Length: 20"], b"")
    })
    .await;
    let (old_base, new_base) = (old.base.clone(), new.base.clone());
    let turn = std::sync::atomic::AtomicU32::new(0);
    let first = Fake::start(move |_| {
        let turn = turn.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let base = if turn == 0 { &old_base } else { &new_base };
        answer("302 Found", &[&format!("Location: {base}/object")], b"")
    })
    .await;
    let source = bare(&first.base);
    assert_eq!(source.stat().await.expect("stat").len, 10);
    assert_eq!(source.stat().await.expect("stat").len, 20);
}

/// Servers may answer 200 where the range is the whole object.
#[tokio::test]
async fn the_whole_object_may_come_as_such() {
    let tag = "ETag: \"v\"";
    for scheme in ["http", "s3"] {
        let fake = Fake::start(move |head| match head.starts_with("head") {
            true => answer("200 OK", &[tag, "Accept-Ranges: bytes", "Content-Length: 10"], b""),
            false => answer("200 OK", &[tag], OBJECT),
        })
        .await;
        let url = match scheme {
            "http" => format!("{}/x#extmem:retries=0", fake.base),
            _ => format!("s3://b/x?endpoint={}&retries=0&anonymous", fake.base),
        };
        let source = sources::open(&url).expect("an address");
        let version = source.stat().await.expect("stat").version;
        let body = source.read(&version, 0..10).await.unwrap_or_else(|e| panic!("{scheme}: {e}"));
        assert_eq!(body.try_collect::<Vec<_>>().await.expect("bytes").concat(), OBJECT, "{scheme}");
        // Anything less is not what was asked for.
        for range in [0..9, 1..10] {
            let error = source.read(&version, range).await.map(drop).expect_err(scheme);
            assert!(matches!(error, SourceError::Permanent { .. }), "{scheme}: {error}");
        }
        let other = Version::strong("\"w\"");
        let error = source.read(&other, 0..10).await.map(drop).expect_err(scheme);
        assert!(matches!(error, SourceError::Changed { .. }), "{scheme}: {error}");
    }
    // One byte is the first and the whole object.
    let fake = Fake::start(|head| match head.starts_with("head") {
        true => answer("405 Method Not Allowed", &[], b""),
        false => answer("200 OK", &["ETag: \"v\""], b"x"),
    })
    .await;
    assert_eq!(bare(&fake.base).stat().await.expect("stat").len, 1);
}

/// A weak tag promises little; that it differs still says that the object does.
#[tokio::test]
async fn a_weak_tag_that_changes_is_a_change() {
    let date = "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT";
    let heads =
        [("date and tag", vec![date, "ETag: W/\"1\""]), ("tag alone", vec!["ETag: W/\"1\""])];
    for (what, head_lines) in heads {
        let again = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (changed, lines) = (again.clone(), head_lines.clone());
        let fake = Fake::start(move |head| {
            let changed = changed.load(std::sync::atomic::Ordering::Relaxed);
            let mut lines: Vec<&str> = lines.clone();
            if changed {
                lines.pop();
                lines.push("ETag: W/\"2\"");
            }
            if head.starts_with("head") {
                lines.extend(["Accept-Ranges: bytes", "Content-Length: 10"]);
                return answer("200 OK", &lines, b"");
            }
            lines.push("Content-Range: bytes 2-5/10");
            answer("206 Partial Content", &lines, b"2345")
        })
        .await;
        let source = bare(&fake.base);
        let version = source.stat().await.expect("stat").version;
        assert_eq!(version.strength(), sources::Strength::Weak, "{what}");
        assert_eq!(read(&source, &version).await.expect(what), b"2345");
        again.store(true, std::sync::atomic::Ordering::Relaxed);
        let error = read(&source, &version).await.expect_err(what);
        assert!(matches!(error, SourceError::Changed { .. }), "{what}: {error}");
    }
}

/// Endless heads and bodies that drip end with the attempt or the call.
#[tokio::test]
async fn servers_that_never_come_to_an_end_are_left() {
    type Piece = (&'static str, &'static str, Duration);
    let tag = "HTTP/1.1 206 Partial Content\r\nETag: \"v\"\r\nContent-Range: bytes 2-5/10\r\n";
    let cases: [(Piece, &str); 4] = [
        (("endless headers", "X-More: and more\r\n", Duration::ZERO), tag),
        (("dripping headers", "X-A: b\r\n", Duration::from_millis(100)), tag),
        (("early answers", "HTTP/1.1 103 Early Hints\r\n\r\n", Duration::from_millis(1)), ""),
        (("an empty chunk at a time", "", Duration::from_millis(100)), tag),
    ];
    for ((what, piece, pause), start) in cases {
        let base = endless(start, piece, pause).await;
        let source = bare(&base);
        let began = Instant::now();
        let error = read(&source, &Version::strong("\"v\"")).await.expect_err(what);
        assert!(error.is_retryable(), "{what}: {error}");
        assert!(began.elapsed() < IN_TIME, "{what}: {:?}", began.elapsed());
    }
    // A byte every 300 ms is no silence of half a second: the call ends it.
    let start = "HTTP/1.1 206 Partial Content\r\nETag: \"v\"\r\nContent-Length: 100\r\n\
                 Content-Range: bytes 0-99/100\r\n\r\n";
    let base = endless(start, "x", Duration::from_millis(300)).await;
    let source = sources::open(&format!("{base}/x#extmem:stall_ms=500&deadline_ms=2000"));
    let source = source.expect("an address");
    let began = Instant::now();
    let body = source.read(&Version::strong("\"v\""), 0..100).await.expect("the head comes");
    let error = body.try_collect::<Vec<_>>().await.expect_err("a drip");
    assert!(matches!(error, SourceError::Transient { .. }), "{error}");
    assert!(began.elapsed() < IN_TIME, "{:?}", began.elapsed());
}

/// A server that answers `start`, and then `piece` for ever. Its address.
async fn endless(start: &'static str, piece: &'static str, pause: Duration) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let base = format!("http://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut part = [0u8; 4096];
                let _ = socket.read(&mut part).await;
                let mut sent = socket.write_all(start.as_bytes()).await;
                while sent.is_ok() {
                    if !pause.is_zero() {
                        tokio::time::sleep(pause).await;
                    }
                    sent = socket.write_all(piece.as_bytes()).await;
                }
            });
        }
    });
    base
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
        // Trying again is for our own wrapper, which was told not to.
        assert_eq!(fake.seen().len(), 1, "{status} {code}: the SDK asked again");
    }
}

/// The answer to a HEAD has no body that could say why it was refused. A GET is asked then.
#[tokio::test]
async fn s3_says_why_an_object_cannot_be_opened() {
    let cases = [
        ("403 Forbidden", "AccessDenied", "denied", "AccessDenied"),
        ("403 Forbidden", "RequestTimeTooSkewed", "denied", "clock"),
        ("400 Bad Request", "ExpiredToken", "denied", "ExpiredToken"),
        ("400 Bad Request", "AuthorizationHeaderMalformed", "permanent", "region=eu-west-9"),
        ("301 Moved", "PermanentRedirect", "permanent", "region=eu-west-9"),
    ];
    for (status, code, kind, text) in cases {
        let body = format!("<Error><Code>{code}</Code><Message>m\u{7f}</Message></Error>");
        let fake = Fake::start(move |head| match head.starts_with("head") {
            true => answer(status, &["x-amz-bucket-region: eu-west-9"], b""),
            false => answer(status, &["x-amz-bucket-region: eu-west-9"], body.as_bytes()),
        })
        .await;
        let url = format!("s3://bucket/key?endpoint={}&retries=0&anonymous", fake.base);
        let error = sources::open(&url).expect("an address").stat().await.expect_err(code);
        assert_eq!(error.kind(), kind, "{status} {code}: {error}");
        assert!(error.to_string().contains(text), "{status} {code}: {error}");
        assert!(!error.to_string().contains(char::is_control), "{error:?}");
        assert_eq!(fake.seen().len(), 2, "{status} {code}");
    }
    // Some let one read and not ask.
    let fake = Fake::start(|head| match head.starts_with("head") {
        true => answer("403 Forbidden", &[], b""),
        false => {
            answer("206 Partial", &["ETag: \"v\"", "Content-Range: bytes 0-0/10"], &OBJECT[..1])
        }
    })
    .await;
    let url = format!("s3://bucket/key?endpoint={}&retries=0&anonymous", fake.base);
    let stat = sources::open(&url).expect("an address").stat().await.expect("stat");
    assert_eq!((stat.len, stat.version), (10, Version::strong("\"v\"")));
}

/// Errors are read into memory by the SDK: no more than a few of them need.
#[tokio::test]
async fn s3_errors_without_an_end_are_cut() {
    for (start, kind) in [
        ("HTTP/1.1 403 Forbidden\r\nConnection: close\r\n\r\n<Error><Code>", "denied"),
        ("HTTP/1.1 503 Busy\r\nConnection: close\r\n\r\n", "throttled"),
    ] {
        let base = endless(start, "AccessDenied, and so on and on. ", Duration::ZERO).await;
        let url = format!("s3://bucket/key?endpoint={base}&retries=0&anonymous");
        let source = sources::open(&url).expect("an address");
        let began = Instant::now();
        let error = read(&*source, &Version::strong("\"v\"")).await.expect_err("no end");
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().len() < 1000, "{}", error.to_string().len());
        assert!(began.elapsed() < IN_TIME, "{:?}", began.elapsed());
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
