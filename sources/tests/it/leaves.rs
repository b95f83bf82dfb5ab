//! The conformance suite over every leaf, bare and as `open` dresses it.

use sources::{BlockSource, Local, Memory, Options, SourceError, Strength, conformance::check};

use crate::servers::{Bucket, WebFile, sample, variable};

/// More than one part, and no multiple of anything.
const LEN: usize = (9 << 20) + 12_345;

#[tokio::test]
async fn memory() {
    for len in [0, 1, 4096, 100_001, LEN] {
        let bytes = sample(len);
        check(Memory::new("x", bytes.clone()), &bytes).await.expect("conformance");
    }
}

#[tokio::test]
async fn local_files() {
    let folder = tempfile::tempdir().expect("a folder");
    for len in [0, 1, 4096, LEN] {
        let path = folder.path().join(format!("file of {len}"));
        let bytes = sample(len);
        std::fs::write(&path, &bytes).expect("a file");
        check(Local::new(&path), &bytes).await.expect("conformance");
        let text = path.to_str().expect("a path in UTF-8");
        check(sources::open(text).expect("a path"), &bytes).await.expect("conformance");
        let url = format!("file://{}", text.replace(' ', "%20"));
        check(sources::open(&url).expect("an address"), &bytes).await.expect("conformance");
    }
}

#[tokio::test]
async fn http() {
    let Some(base) = variable("TEST_HTTP_BASE", "http conformance") else { return };
    let Some(root) = variable("TEST_HTTP_ROOT", "http conformance") else { return };
    for len in [0, 1, LEN] {
        let bytes = sample(len);
        let file = WebFile::make(&root, &format!("http-{len}"), &bytes);
        let url = format!("{base}/{}", file.place);
        let source = sources::open(&url).expect("an address");
        check(source.clone(), &bytes).await.expect("conformance");
        let stat = source.stat().await.expect("stat");
        assert_eq!(stat.version.strength(), Strength::Strong);
        for path in ["no-etag", "redirect"] {
            let url = format!("{base}/{path}/{}", file.place);
            let source = sources::open(&url).expect("an address");
            check(source.clone(), &bytes).await.unwrap_or_else(|wrong| panic!("{path}: {wrong}"));
            let expected = if path == "no-etag" { Strength::Weak } else { Strength::Strong };
            assert_eq!(source.stat().await.expect("stat").version.strength(), expected, "{path}");
        }
        let hedged = sources::open(&format!("{url}#extmem:hedge&retries=2")).expect("an address");
        check(hedged, &bytes).await.expect("conformance");
    }
}

#[tokio::test]
async fn http_servers_without_ranges_are_refused_when_opened() {
    let Some(base) = variable("TEST_HTTP_BASE", "http without ranges") else { return };
    let Some(root) = variable("TEST_HTTP_ROOT", "http without ranges") else { return };
    let file = WebFile::make(&root, "no-ranges.txt", &sample(10_000));
    for path in ["no-range", "gzip", "chunked"] {
        let source = sources::open(&format!("{base}/{path}/{}", file.place)).expect("an address");
        match source.stat().await {
            Err(SourceError::Permanent { reason, .. }) => {
                assert!(reason.contains("range"), "{path}: {reason}");
            }
            // `identity` was asked for, so this path may serve plain ranges after all.
            Ok(_) if path == "gzip" => check(source, &sample(10_000)).await.expect("conformance"),
            other => panic!("{path}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn http_objects_that_change_are_changed() {
    let Some(base) = variable("TEST_HTTP_BASE", "http changes") else { return };
    let Some(root) = variable("TEST_HTTP_ROOT", "http changes") else { return };
    let file = WebFile::make(&root, "changing", &sample(10_000));
    for path in ["", "no-etag/"] {
        file.write(&sample(10_000));
        let source = sources::open(&format!("{base}/{path}{}", file.place)).expect("an address");
        let stat = source.stat().await.expect("stat");
        // `Last-Modified` counts seconds, so another length stands in for another second.
        file.write(&sample(10_001));
        let error = source.read(&stat.version, 0..100).await.map(drop).expect_err("changed");
        assert!(matches!(error, SourceError::Changed { .. }), "{path}: {error}");
    }
    let gone = sources::open(&format!("{base}/{}", file.place)).expect("an address");
    let stat = gone.stat().await.expect("stat");
    drop(file);
    let error = gone.read(&stat.version, 0..100).await.map(drop).expect_err("gone");
    assert!(matches!(error, SourceError::NotFound { .. }), "{error}");
    assert!(matches!(gone.stat().await, Err(SourceError::NotFound { .. })));
}

#[tokio::test]
async fn https_needs_its_authority() {
    let Some(base) = variable("TEST_HTTPS_BASE", "https") else { return };
    let Some(root) = variable("TEST_HTTP_ROOT", "https") else { return };
    let Some(ca) = variable("TEST_CA", "https") else { return };
    let bytes = sample(100_000);
    let file = WebFile::make(&root, "https", &bytes);
    let url = format!("{base}/{}", file.place);
    let stranger = sources::open(&url).expect("an address");
    let error = stranger.stat().await.expect_err("a certificate that nobody vouches for");
    assert!(matches!(error, SourceError::Permanent { .. }), "{error}");
    assert!(error.to_string().contains("`ca`"), "{error}");
    let known = sources::open(&format!("{url}#extmem:ca={ca}")).expect("an address");
    check(known, &bytes).await.expect("conformance");
}

#[tokio::test]
async fn s3() {
    let Some(endpoint) = variable("TEST_S3_ENDPOINT", "s3 conformance") else { return };
    let bucket = Bucket::make(&endpoint, "plain").await;
    for (key, len) in [("empty", 0), ("one", 1), ("a key/with %, ? and \u{e4}", LEN)] {
        let bytes = sample(len);
        bucket.put(key, &bytes).await;
        let written = key.replace('%', "%25").replace('?', "%3F");
        let url = format!("s3://{}/{written}?endpoint={endpoint}", bucket.name);
        let source = sources::open(&url).expect("an address");
        assert_eq!(source.name(), format!("s3://{}/{key}", bucket.name));
        check(source, &bytes).await.unwrap_or_else(|wrong| panic!("{key}: {wrong}"));
    }
    let missing = format!("s3://{}/missing?endpoint={endpoint}", bucket.name);
    let missing = sources::open(&missing).expect("an address");
    assert!(matches!(missing.stat().await, Err(SourceError::NotFound { .. })));
}

#[tokio::test]
async fn s3_versions_stay_readable_and_objects_without_are_changed() {
    let Some(endpoint) = variable("TEST_S3_ENDPOINT", "s3 versions") else { return };
    let (first, second) = (sample(50_000), vec![7u8; 50_000]);
    let options = Options::default().endpoint(endpoint.clone());
    let plain = Bucket::make(&endpoint, "unversioned").await;
    plain.put("k", &first).await;
    let source = options.open(&format!("s3://{}/k", plain.name)).expect("an address");
    let stat = source.stat().await.expect("stat");
    plain.put("k", &second).await;
    let error = source.read(&stat.version, 0..100).await.map(drop).expect_err("changed");
    assert!(matches!(error, SourceError::Changed { .. }), "{error}");
    plain.delete("k").await;
    let error = source.read(&stat.version, 0..100).await.map(drop).expect_err("gone");
    assert!(matches!(error, SourceError::NotFound { .. }), "{error}");

    let kept = Bucket::make(&endpoint, "versioned").await;
    kept.keep_versions().await;
    kept.put("k", &first).await;
    let source = options.open(&format!("s3://{}/k", kept.name)).expect("an address");
    check(source.clone(), &first).await.expect("conformance");
    let stat = source.stat().await.expect("stat");
    let (_, id) = stat.version.token().split_once(" version-id ").expect("a version id");
    kept.put("k", &second).await;
    let frame = sources::Frame::with_capacity(first.len());
    let whole = source.read_into(&stat.version, 0..first.len() as u64, frame).await;
    assert_eq!(whole.expect("the old version").filled(), first);
    let url = format!("s3://{}/k?version_id={id}", kept.name);
    check(options.open(&url).expect("an address"), &first).await.expect("conformance");
}

#[tokio::test]
async fn s3_over_tls() {
    let Some(endpoint) = variable("TEST_S3_TLS_ENDPOINT", "s3 over TLS") else { return };
    let Some(plain) = variable("TEST_S3_ENDPOINT", "s3 over TLS") else { return };
    let Some(ca) = variable("TEST_CA", "s3 over TLS") else { return };
    let bytes = sample(100_000);
    let bucket = Bucket::make(&plain, "tls").await;
    bucket.put("k", &bytes).await;
    let url = format!("s3://{}/k?endpoint={endpoint}", bucket.name);
    let known = sources::open(&format!("{url}&ca={ca}")).expect("an address");
    check(known, &bytes).await.expect("conformance");
    let stranger = sources::open(&url).expect("an address");
    let error = stranger.stat().await.expect_err("a certificate that nobody vouches for");
    assert!(matches!(error, SourceError::Permanent { .. }), "{error}");
}

/// The benchmarks read from a web server that answers as S3 does.
#[tokio::test]
async fn s3_from_a_web_server() {
    let Some(base) = variable("TEST_HTTP_BASE", "s3 from a web server") else { return };
    let Some(root) = variable("TEST_HTTP_ROOT", "s3 from a web server") else { return };
    let bytes = sample(LEN);
    let file = WebFile::make(&root, "as-s3", &bytes);
    for options in ["", "&anonymous"] {
        let url = format!("s3://{}?endpoint={base}{options}", file.place);
        let source = sources::open(&url).expect("an address");
        check(source, &bytes).await.expect("conformance");
    }
}
