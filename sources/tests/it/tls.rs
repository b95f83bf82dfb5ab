//! What TLS is good for beside secrets: a byte that changes on the way is noticed, and asked for again.
//! (Without it nobody notices: `faults` has that.)

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::SeqCst},
};

use futures::TryStreamExt;
use sources::{BlockSource, Options, RetryPolicy, SourceError};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::servers::{Bucket, WebFile, sample, variable};

const LEN: usize = 100_000;
/// The byte of what the server sends on a connection: within the body, behind certificates.
const AT: u64 = 20_000;

/// A line between a client and a server, bad as long as there are flips left.
struct BadLine {
    port: u16,
    left: Arc<AtomicU64>,
    flipped: Arc<AtomicU64>,
}

impl BadLine {
    async fn to(server: String) -> BadLine {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (left, flipped) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let counts = (left.clone(), flipped.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&server).await.expect("the server");
                let (mut from_client, to_client) = client.into_split();
                let (from_server, mut to_server) = server.into_split();
                tokio::spawn(async move {
                    let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
                    let _ = to_server.shutdown().await;
                });
                tokio::spawn(pass(from_server, to_client, counts.clone()));
            }
        });
        BadLine { port, left, flipped }
    }
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    (left, flipped): (Arc<AtomicU64>, Arc<AtomicU64>),
) {
    let mut buffer = vec![0; 16 << 10];
    let mut passed = 0;
    while let Ok(len @ 1..) = from.read(&mut buffer).await {
        let at = AT.checked_sub(passed).filter(|at| *at < len as u64);
        let spend = |left: u64| left.checked_sub(1);
        if let Some(at) = at
            && left.fetch_update(SeqCst, SeqCst, spend).is_ok()
        {
            buffer[at as usize] ^= 1;
            flipped.fetch_add(1, SeqCst);
        }
        passed += len as u64;
        if to.write_all(&buffer[..len]).await.is_err() {
            return;
        }
    }
}

/// The address with the port of a bad line to it.
async fn behind_a_bad_line(base: &str) -> (String, BadLine) {
    let (host, port) = base.rsplit_once(':').expect("a port");
    let name = host.trim_start_matches("https://");
    let line = BadLine::to(format!("{name}:{port}")).await;
    (format!("{host}:{}", line.port), line)
}

async fn read(source: &dyn BlockSource) -> Result<Vec<u8>, SourceError> {
    let version = source.stat().await?.version;
    let body = source.read(&version, 0..LEN as u64).await?;
    Ok(body.try_collect::<Vec<_>>().await?.concat())
}

async fn check(url: &str, line: &BadLine, bytes: &[u8]) {
    let policy = RetryPolicy { attempts_max: 3, ..RetryPolicy::default() };
    let source = Options::default().retry(policy).open(url).expect("an address");
    assert!(read(&*source).await.expect("a line that is good") == bytes);

    // Once: the right bytes.
    let source = sources::open(url).expect("an address");
    line.left.store(1, SeqCst);
    assert!(read(&*source).await.expect("asked for again") == bytes, "wrong bytes of {url}");
    assert_eq!(line.flipped.load(SeqCst), 1, "{url}");

    // As often as it is asked for: the right error.
    let policy = RetryPolicy { attempts_max: 3, ..RetryPolicy::default() };
    let source = Options::default().retry(policy).open(url).expect("an address");
    line.left.store(u64::MAX, SeqCst);
    match read(&*source).await {
        // What came before the bad record is not asked for again, so a later request may be shorter
        // than the way to the bad byte.
        Ok(got) => assert!(got == bytes, "wrong bytes of {url}"),
        Err(error) => assert_eq!(error.kind(), "transient", "{error}"),
    }
    assert!(line.flipped.load(SeqCst) > 1, "{url}");
    line.left.store(0, SeqCst);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bit_that_flips_on_the_way_of_https_is_asked_for_again() {
    let Some(base) = variable("TEST_HTTPS_BASE", "https") else { return };
    let Some(root) = variable("TEST_HTTP_ROOT", "https") else { return };
    let Some(ca) = variable("TEST_CA", "https") else { return };
    let bytes = sample(LEN);
    let file = WebFile::make(&root, "flipped", &bytes);
    let (base, line) = behind_a_bad_line(&base).await;
    check(&format!("{base}/{}#extmem:ca={ca}", file.place), &line, &bytes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bit_that_flips_on_the_way_of_s3_is_asked_for_again() {
    let Some(endpoint) = variable("TEST_S3_TLS_ENDPOINT", "s3 over TLS") else { return };
    let Some(plain) = variable("TEST_S3_ENDPOINT", "s3 over TLS") else { return };
    let Some(ca) = variable("TEST_CA", "s3 over TLS") else { return };
    let bytes = sample(LEN);
    let bucket = Bucket::make(&plain, "flipped").await;
    bucket.put("k", &bytes).await;
    let (endpoint, line) = behind_a_bad_line(&endpoint).await;
    let url = format!("s3://{}/k?endpoint={endpoint}&ca={ca}", bucket.name);
    check(&url, &line, &bytes).await;
}
