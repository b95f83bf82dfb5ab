//! Databases through URLs: file, HTTP, S3, with a budget smaller than the file.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
};

use pager::trace::{Overview, Reader};
use serde_json::Value as Json;
use tempfile::TempDir;

use crate::support::{Fixture, fixtures, printed, run, server, stderr, tdb, three};

/// Every fixture has a codebook of 1.3 MB, so this is a quarter of the smallest.
const SMALL: [&str; 4] = ["--budget", "320KiB", "--unit", "4KiB"];

fn check(fixtures: &[Fixture], root: &Path, url_of: impl Fn(&str) -> String) {
    for fixture in fixtures {
        let relative = fixture.path.strip_prefix(root).expect("unpacked there");
        let mut path = relative.to_str().expect("a plain path").to_owned();
        if fixture.path.is_dir() {
            path.push('/');
        }
        let url = url_of(&path);
        for map in [false, true] {
            let mut args = vec!["dump", "-i", &url, "--json-trails", "--stats=json"];
            args.extend(SMALL);
            if map {
                args.push("--map");
            }
            let output = run(&args);
            let text = stderr(&output);
            if map && url.starts_with("file:") {
                // Nothing promises that a file stays as it is.
                assert_eq!(output.status.code(), Some(1), "{url}: {text}");
                assert!(text.contains("cannot be mapped"), "{url}: {text}");
                continue;
            }
            if map && text.contains("cannot be mapped") {
                println!("left out: {url} through page faults: {text}");
                continue;
            }
            assert_eq!(output.status.code(), Some(0), "{url}: {text}");
            assert!(
                output.stdout == fixture.lines.as_bytes(),
                "{url}: not the bytes of the .jsonl"
            );
            let stats: Json = serde_json::from_str(&text).expect("one JSON object");
            assert!(stats["gets"].as_u64() > Some(0), "{url}: {stats}");
            let way = if map { "faults" } else { "loads" };
            assert!(stats[way].as_u64() > Some(0), "{url}: {stats}");
            assert!(stats["cost_usd"].as_f64() > Some(0.0), "{url}: {stats}");
        }
    }
}

#[test]
fn golden_files_by_file_url() {
    let directory = TempDir::new().expect("a temporary directory");
    let root = directory.path();
    check(&fixtures(root), root, |path| format!("file://{}/{path}", root.display()));
}

/// Unpacks the fixtures where the web server finds them.
fn served(what: &str) -> Option<(TempDir, String, String)> {
    let base = server(what, "TEST_HTTP_BASE")?;
    let root = server(what, "TEST_HTTP_ROOT")?;
    let directory = TempDir::with_prefix_in("tdb-cli-", &root).expect("a directory to serve from");
    // The server may run as somebody else.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(directory.path(), open).expect("ours to open");
    let name = directory.path().file_name().expect("a name").to_str().expect("plain").to_owned();
    Some((directory, base.trim_end_matches('/').to_owned(), name))
}

#[test]
fn golden_files_over_http() {
    let Some((directory, base, name)) = served("golden files over HTTP") else { return };
    let root = directory.path();
    check(&fixtures(root), root, |path| format!("{base}/{name}/{path}"));
}

/// The web server also answers as S3 does, for reading: the directory is the bucket.
#[test]
fn golden_files_over_s3() {
    let Some((directory, base, name)) = served("golden files over S3") else { return };
    let root = directory.path();
    check(&fixtures(root), root, |path| {
        format!("s3://{name}/{path}?endpoint={base}&region=us-east-1&anonymous&path_style=true")
    });
}

/// A server that checks what S3 checks: signatures, conditions, versions of its own making.
#[test]
fn golden_files_over_signed_s3() {
    let what = "golden files over signed S3";
    let Some(endpoint) = server(what, "TEST_S3_ENDPOINT") else { return };
    let directory = TempDir::new().expect("a temporary directory");
    let root = directory.path();
    let fixtures = fixtures(root);
    let bucket = format!("tdb-cli-{}", std::process::id());
    let options = format!("?endpoint={endpoint}&region=us-east-1");
    put_all(root, &bucket, &options);
    check(&fixtures, root, |path| format!("s3://{bucket}/{path}{options}"));
}

/// Puts every file below `root` into a new bucket, under its path.
fn put_all(root: &Path, bucket: &str, options: &str) {
    let place = sources::Options::default().s3_place(&format!("s3://{bucket}/any{options}"));
    let (_, _, aws) = place.expect("an address");
    let mut files = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let client = aws.s3().await.expect("a client");
        client.create_bucket().bucket(bucket).send().await.expect("a bucket");
        for file in files {
            let key = file.strip_prefix(root).expect("below it").to_str().expect("a plain path");
            let body = std::fs::read(&file).expect("a file");
            let put = client.put_object().bucket(bucket).key(key).body(body.into());
            put.send().await.unwrap_or_else(|error| panic!("{key}: {error}"));
        }
    });
}

#[test]
fn a_few_users_of_many_cost_little() {
    let directory = TempDir::new().expect("a temporary directory");
    let path = directory.path().join("s.tdb");
    let path = path.to_str().expect("a plain path");
    printed(&["synth", "--events", "400000", "-o", path]);
    let lines = printed(&["dump", "-i", path, "--json-trails", "-f", "time"]);
    let every = lines.lines().count() / 10;
    let uuids: Vec<&str> = lines.lines().step_by(every.max(1)).map(|line| &line[9..41]).collect();
    let list = uuids.join(",");
    let url = format!("file://{path}");
    let output = run(&["dump", "-i", &url, "-j", "-u", &list, "--stats=json", "--unit", "4KiB"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(output.stdout == printed(&["dump", "-i", path, "-j", "-u", &list]).as_bytes());
    let stats: Json = serde_json::from_slice(&output.stderr).expect("one JSON object");
    let percent = stats["percent_of_database"].as_f64().expect("a number");
    assert!(percent > 0.0 && percent < 50.0, "{stats}");
}

#[test]
fn a_whole_dump_fetches_what_there_is_once() {
    let directory = TempDir::new().expect("a temporary directory");
    let path = directory.path().join("s.tdb");
    let path = path.to_str().expect("a plain path");
    printed(&["synth", "--events", "400000", "-o", path]);
    let url = format!("file://{path}");
    let output = run(&["dump", "-i", &url, "--json-trails", "--stats=json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(output.stdout == printed(&["dump", "-i", path, "--json-trails"]).as_bytes());
    let stats: Json = serde_json::from_slice(&output.stderr).expect("one JSON object");
    let percent = stats["percent_of_database"].as_f64().expect("a number");
    // The budget holds it all; a unit that two plans ask for may be on its way twice.
    assert!(percent > 50.0 && percent < 110.0, "{stats}");
}

#[test]
fn a_frugal_dump_sends_fewer_requests_and_may_be_recorded() {
    let directory = TempDir::new().expect("a temporary directory");
    let path = directory.path().join("s.tdb");
    let path = path.to_str().expect("a plain path");
    printed(&["synth", "--events", "400000", "-o", path]);
    let url = format!("file://{path}");
    let trace = directory.path().join("trace");
    let gets = |preset: &[&str]| {
        let args = [&["dump", "-i", &url, "--json-trails", "--stats=json"], preset].concat();
        let output = tdb(&args).env("EXTMEM_TRACE", &trace).output().expect("the command starts");
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let stats: Json = serde_json::from_slice(&output.stderr).expect("one JSON object");
        // What is recorded is what was counted; on a machine that is busy the recorder may lose some,
        // of whatever kind, and says how many.
        let file = std::fs::File::open(&trace).expect("a trace");
        let mut reader = Reader::new(std::io::BufReader::new(file)).expect("a trace");
        let mut overview = Overview::new();
        while let Some(record) = reader.next_record().expect("a record") {
            overview.record(&record).expect("a small trace");
        }
        assert!(reader.is_complete());
        let counted = |name: &str| stats[name].as_u64().expect("a number");
        for (recorded, name) in [(overview.accesses(), "loads"), (overview.hits, "load_hits")] {
            let most = counted(name);
            let least = most.saturating_sub(overview.lost);
            assert!((least..=most).contains(&recorded), "{recorded} {name}: {stats}");
        }
        std::fs::remove_file(&trace).expect("ours");
        (overview.fetches + overview.guesses, overview.lost)
    };
    let ((usual, lost), (frugal, _)) = (gets(&[]), gets(&["--preset", "frugal"]));
    assert!(frugal * 2 < usual + lost, "{frugal} requests where the default takes {usual}");
}

/// SIGBUS, or the end where the kernel has no poison, came without a word.
#[test]
fn a_dump_through_page_faults_says_why_it_ends() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/refused.tdb", listener.local_addr().expect("bound"));
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            std::thread::spawn(move || refuse_reads(connection));
        }
    });
    let output = run(&["dump", "-i", &url, "--map"]);
    let text = stderr(&output);
    if text.contains("cannot be mapped") {
        return println!("left out: the end of a dump through page faults: {text}");
    }
    assert_eq!(output.status.code(), None, "ended by a signal: {text}");
    for part in [url.as_str(), "denied", "bytes 0.."] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

/// Says what there is to one request, and gives nothing of it.
fn refuse_reads(mut connection: TcpStream) {
    let (mut head, mut piece) = (Vec::<u8>::new(), [0u8; 1024]);
    while !head.ends_with(b"\r\n\r\n") {
        match connection.read(&mut piece) {
            Ok(n) if n > 0 => head.extend_from_slice(&piece[..n]),
            _ => return,
        }
    }
    let answer = match head.starts_with(b"HEAD ") {
        true => "200 OK\r\nAccept-Ranges: bytes\r\nETag: \"1\"\r\nContent-Length: 1000000",
        false => "403 Forbidden\r\nContent-Length: 0",
    };
    // Who is gone needs no answer.
    let _ = write!(connection, "HTTP/1.1 {answer}\r\nConnection: close\r\n\r\n");
}

#[test]
fn stats_of_a_local_file_cost_nothing() {
    let directory = TempDir::new().expect("a temporary directory");
    let path = directory.path().join("s.tdb");
    let path = path.to_str().expect("a plain path");
    printed(&["synth", "--events", "1000", "-o", path]);
    let output = run(&["info", "-i", path, "--stats"]);
    let text = stderr(&output);
    for part in ["requests  0 GET, 0 HEAD", "$0.0000000", "$0.0004 per 1,000 requests"] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

/// A bucket of the service that `TEST_S3_ENDPOINT` names, with these objects.
fn bucket(endpoint: &str, name: &str, objects: &[(&str, Vec<u8>)]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let url = format!("s3://{name}/x?endpoint={endpoint}&region=us-east-1&path_style=true");
        let (.., aws) = sources::Options::default().s3_place(&url).expect("a place");
        let s3 = aws.s3().await.expect("a client");
        s3.create_bucket().bucket(name).send().await.expect("a bucket");
        for (key, bytes) in objects {
            let body = bytes.clone().into();
            s3.put_object().bucket(name).key(*key).body(body).send().await.expect("an object");
        }
    });
}

#[test]
fn databases_of_a_bucket_are_found_by_pattern_and_prefix() {
    let Some(endpoint) = server("patterns in S3", "TEST_S3_ENDPOINT") else { return };
    let sample = three();
    let read = |name: &str| std::fs::read(sample.beside(&format!("logs/{name}.tdb"))).expect(name);
    let name = format!("tdb-shards-{}", std::process::id());
    let objects = [
        ("2016-01/a.tdb", read("a")),
        ("2016-01/odd %?#[1].tdb", read("b")),
        ("2016-02/deep/c.tdb", read("c")),
        ("2016-02/notes.txt", b"no database".to_vec()),
        ("2016-01/a.tdb.tdbidx", b"no database either".to_vec()),
    ];
    bucket(&endpoint, &name, &objects);
    let url = |key: &str| {
        format!("s3://{name}/{key}?endpoint={endpoint}&region=us-east-1&path_style=true")
    };
    let whole = printed(&["dump", &sample.beside("logs"), "-j"]);
    for (keys, dbs, events) in [
        (vec!["2016-*/*.tdb"], 2, 6),
        (vec!["2016-*/**/*.tdb"], 3, 7),
        (vec!["2016-01/"], 2, 6),
        (vec!["2016-02/"], 1, 1),
        (vec!["2016-01/a.tdb", "2016-02/deep/*"], 2, 4),
        (vec![""], 3, 7),
    ] {
        let urls: Vec<String> = keys.iter().map(|key| url(key)).collect();
        let mut args = vec!["query", "--json"];
        args.extend(urls.iter().map(String::as_str));
        let json: Json = serde_json::from_str(&printed(&args)).expect("JSON");
        let got = (json["databases"].as_u64(), json["events"].as_u64());
        assert_eq!(got, (Some(dbs), Some(events)), "{keys:?}");
    }
    let dumped = printed(&["dump", &url("2016-*/**/*.tdb"), "-j", "--budget", "8MiB"]);
    assert_eq!(dumped.lines().count(), whole.lines().count());
    let none = run(&["dump", &url("2017-*/*.tdb")]);
    assert_eq!(none.status.code(), Some(1), "{}", stderr(&none));
    assert!(stderr(&none).contains("no database is there"), "{}", stderr(&none));
    let none = run(&["dump", &url("2016-02/notes*")]);
    assert_eq!(none.status.code(), Some(1), "{}", stderr(&none));
}
