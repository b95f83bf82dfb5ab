//! `extmem serve --http`: the page in a browser, what Prometheus scrapes, and who may not ask.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    origin::{Origin, Page, sample},
    serve::Server,
};

const BLOCK: u64 = 64 << 10;

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples")
}

/// Status, head and body of what a request is answered with.
fn send(http: &str, request: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(http).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a time");
    stream.write_all(request.as_bytes()).expect("send");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("a status");
    (status, head.to_ascii_lowercase(), body.to_owned())
}

fn get_as(http: &str, path: &str, host: &str) -> (u16, String, String) {
    send(http, &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"))
}

pub(crate) fn get(http: &str, path: &str) -> String {
    let (status, _, body) = get_as(http, path, http);
    assert_eq!(status, 200, "{path}: {body}");
    body
}

fn state(http: &str) -> Value {
    serde_json::from_str(&get(http, "/api/state")).expect("JSON")
}

/// The state once it is as `wanted` says.
fn state_when(http: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let in_time = Instant::now() + Duration::from_secs(20);
    loop {
        let state = state(http);
        if wanted(&state) {
            return state;
        }
        assert!(Instant::now() < in_time, "{state:#}");
        // The picture is looked at twice a second.
        thread::sleep(Duration::from_millis(100));
    }
}

/// A value of `/metrics`, by its whole name with labels.
pub(crate) fn metric(text: &str, name: &str) -> f64 {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = lines.next().unwrap_or_else(|| panic!("no {name} in\n{text}"));
    value.parse().expect("a number")
}

/// A server with a page, one block to a fetch.
fn start(dir: &Path, origin: &Origin, args: &[&str]) -> (Server, String) {
    let mut all = vec!["--allow", origin.base(), "--max-bytes", "64MiB", "--block-bytes", "64KiB"];
    if !args.contains(&"--http") {
        all.extend(["--http", "127.0.0.1:0"]);
    }
    all.extend(args);
    let server = Server::start(dir, &all);
    let http = server.http.clone().expect("an address");
    (server, http)
}

#[test]
fn the_state_tells_what_clients_did() {
    let (origin, folder) = (Origin::start(), tempfile::tempdir().expect("a folder"));
    let object = sample(3_000_000, 31);
    let signed = "/object?X-Amz-Signature=hidden";
    origin.put(signed, &object, "1");
    let (server, http) = start(folder.path(), &origin, &[]);
    let empty = state(&http);
    assert_eq!(empty["objects"], serde_json::json!([]));
    assert_eq!(empty["connections"]["open"], 0);
    let mut client = server.client();
    let url = origin.url(signed);
    let read = |client: &mut crate::v000::Client, block: u64| {
        let bytes = client.read(&url, block * BLOCK, 4096).expect("an answer").expect("OKOK");
        assert!(bytes == object[(block * BLOCK) as usize..][..bytes.len()]);
    };
    assert!(client.hello(&url).expect("an answer").is("OKOK"));
    read(&mut client, 7);
    let one = state_when(&http, |state| state["objects"][0]["cached_bytes"] == BLOCK);
    let shown = &one["objects"][0];
    assert_eq!(shown["name"], format!("{}?...", origin.url("/object")), "{one:#}");
    let parts = 3_000_000u64.div_ceil(BLOCK) as usize;
    let mut resident = vec![0; parts];
    resident[7] = 100;
    assert_eq!(shown["resident"], serde_json::json!(resident));
    assert_eq!(shown["heat"], format!("{}1{}", "0".repeat(7), "0".repeat(parts - 8)));
    assert_eq!(one["clients"][0]["requests"], 2);
    assert_eq!(one["clients"][0]["protocol"], "V000");
    assert_eq!(
        (one["source"]["gets"].as_u64(), one["source"]["bytes"].as_u64()),
        (Some(1), Some(BLOCK))
    );
    // Again and again: hot, and saved.
    for _ in 0..20 {
        read(&mut client, 7);
    }
    let hot =
        state_when(&http, |state| state["objects"][0]["heat"].as_str().unwrap_or("").contains('3'));
    assert_eq!(hot["cache"]["hit_blocks"], 20);
    assert_eq!(hot["source"]["gets"], 1);
    assert!(hot["saved"]["usd_internet"].as_f64() > Some(0.0), "{hot:#}");
    // What failed is told, without what signs it.
    for _ in 0..3 {
        let missing = origin.url("/missing?X-Amz-Signature=hidden");
        assert!(client.hello(&missing).expect("an answer").is("MISS"));
    }
    let failed = state(&http);
    assert_eq!(failed["failures"][0]["times"], 3, "{failed:#}");
    assert!(failed["failures"][0]["what"].as_str().expect("text").contains("/missing"));
    assert_eq!(failed["requests"]["failed"], 3);
    drop(client);
    let gone = state_when(&http, |state| state["connections"]["open"] == 0);
    assert_eq!(gone["connections"]["total"], 1);
    for path in ["/api/state", "/metrics", "/"] {
        assert!(!get(&http, path).contains("hidden\u{22}"), "{path}");
        assert!(!get(&http, path).contains("Signature"), "{path}");
    }
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn clients_of_a_socket_are_listed_by_name() {
    let (origin, folder) = (Origin::start(), tempfile::tempdir().expect("a folder"));
    origin.put("/object", &sample(100_000, 32), "1");
    let socket = folder.path().join("extmem.sock");
    let args = ["--unix", socket.to_str().expect("text")];
    let (_server, http) = start(&folder.path().join("cache"), &origin, &args);
    let connected = std::os::unix::net::UnixStream::connect(&socket).expect("a connection");
    let state = state_when(&http, |state| state["connections"]["open"] == 1);
    let who = state["clients"][0]["who"].as_str().expect("text");
    let pid = std::process::id();
    assert!(who.contains(&format!("(pid {pid}, uid ")), "{who}");
    assert_eq!(state["clients"][0]["protocol"], "blocks");
    assert_eq!(metric(&get(&http, "/metrics"), "extmem_connections{protocol=\"blocks\"}"), 1.0);
    connected.shutdown(Shutdown::Both).expect("shutdown");
    state_when(&http, |state| state["connections"]["open"] == 0);
}

#[test]
fn metrics_are_in_the_form_that_prometheus_reads() {
    let (origin, folder) = (Origin::start(), tempfile::tempdir().expect("a folder"));
    let object = sample(1_000_000, 33);
    origin.put("/object", &object, "1");
    let (server, http) = start(folder.path(), &origin, &[]);
    let (mut client, url) = (server.client(), origin.url("/object"));
    assert!(client.hello(&url).expect("an answer").is("OKOK"));
    for at in [0, 0, 500_000] {
        client.read(&url, at, 100).expect("an answer").expect("OKOK");
    }
    let (status, head, text) = get_as(&http, "/metrics", &http);
    assert_eq!(status, 200);
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    let known = check_form(&text);
    let cases = [
        ("extmem_requests_total", 4.0),
        ("extmem_cache_blocks_total{what=\"hit\"}", 1.0),
        ("extmem_cache_blocks_total{what=\"miss\"}", 2.0),
        ("extmem_source_requests_total{op=\"read\"}", 2.0),
        ("extmem_source_bytes_total", 2.0 * BLOCK as f64),
        ("extmem_connections{protocol=\"V000\"}", 1.0),
        ("extmem_request_seconds_bucket{le=\"+Inf\"}", 4.0),
        ("extmem_request_seconds_count", 4.0),
        ("extmem_cache_max_bytes", 64.0 * 1024.0 * 1024.0),
        ("extmem_requests_failed_total", 0.0),
    ];
    for (name, expected) in cases {
        assert_eq!(metric(&text, name), expected, "{name}");
    }
    assert!(metric(&text, "extmem_cache_used_bytes") >= 2.0 * BLOCK as f64);
    // The dashboard asks for nothing that is not there.
    let dashboard = fs::read_to_string(examples().join("serve/dashboard.json")).expect("a file");
    let dashboard: Value = serde_json::from_str(&dashboard).expect("JSON");
    let mut asked = BTreeSet::new();
    let mut panels = 0;
    for panel in dashboard["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let question = target["expr"].as_str().expect("a question");
            let words = question.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let names: Vec<_> = words.filter(|word| word.starts_with("extmem_")).collect();
            assert!(!names.is_empty(), "{question}");
            asked.extend(names.into_iter().map(str::to_owned));
            panels += 1;
        }
    }
    assert!(panels >= 8, "{panels} questions");
    let missing: Vec<_> = asked.difference(&known).collect();
    assert!(missing.is_empty(), "the dashboard asks for {missing:?}");
}

/// Checks the text format: each name has help and type before it, and its samples together; buckets
/// do not go down. Returns the names.
fn check_form(text: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let (mut family, mut kind, mut last) = ("", "", 0.0);
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a text");
            assert!(!help.is_empty() && !names.contains(name), "{line}");
            (family, last) = (name, 0.0);
            continue;
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, what) = rest.split_once(' ').expect("a type");
            assert_eq!(name, family, "{line}");
            assert!(["counter", "gauge", "histogram"].contains(&what), "{line}");
            assert_eq!(what == "counter", name.ends_with("_total"), "{line}");
            kind = what;
            continue;
        }
        let (name, value) = line.rsplit_once(' ').expect("a value");
        let value: f64 = value.parse().expect("a number");
        assert!(value >= 0.0, "{line}");
        let name = name.split('{').next().expect("a name");
        let of = match kind {
            "histogram" => name
                .strip_suffix("_bucket")
                .or(name.strip_suffix("_sum"))
                .or(name.strip_suffix("_count"))
                .expect("a part of a histogram"),
            _ => name,
        };
        assert_eq!(of, family, "{line}");
        if name.ends_with("_bucket") {
            assert!(value >= last, "{line}");
            last = value;
        }
        names.insert(name.to_owned());
    }
    names
}

#[test]
fn only_this_machine_may_ask_and_nothing_can_be_changed() {
    let (origin, folder) = (Origin::start(), tempfile::tempdir().expect("a folder"));
    let (server, http) = start(folder.path(), &origin, &["--http-host", "cache.example"]);
    let port = http.rsplit_once(':').expect("a port").1;
    for path in ["/", "/page.js", "/api/state", "/metrics", "/healthz", "/nothing"] {
        for host in ["evil.example".to_owned(), format!("127.0.0.1.evil.example:{port}")] {
            let (status, _, body) = get_as(&http, path, &host);
            assert_eq!(status, 421, "{path} of {host}: {body}");
        }
    }
    for host in [format!("localhost:{port}"), "CACHE.example".to_owned()] {
        assert_eq!(get_as(&http, "/healthz", &host).0, 200, "{host}");
    }
    let bare = "GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n";
    assert_eq!(send(&http, bare).0, 421, "no host at all");
    let (status, head, body) = get_as(&http, "/", &http);
    assert_eq!(status, 200);
    for expected in [
        "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'",
        "frame-ancestors 'none'",
        "x-content-type-options: nosniff",
        "cross-origin-resource-policy: same-origin",
        "content-type: text/html; charset=utf-8",
    ] {
        assert!(head.contains(expected), "{expected}: {head}");
    }
    assert!(!head.contains("access-control"), "{head}");
    assert!(!body.contains("//"), "nothing from elsewhere: {body}");
    for method in ["POST", "PUT", "DELETE"] {
        let request =
            format!("{method} /api/state HTTP/1.1\r\nHost: {http}\r\nConnection: close\r\n\r\n");
        assert_eq!(send(&http, &request).0, 405, "{method}");
    }
    assert_eq!(get_as(&http, "/nothing", &http).0, 404);
    assert_eq!(server.stop(), Some(0));
    // Others reach it only if that is said.
    let open =
        ["serve", "--listen", "127.0.0.1:0", "--http", "0.0.0.0:0", "--free-bytes", "0", "--dir"];
    let output = crate::extmem()
        .args(open)
        .arg(folder.path())
        .timeout(Duration::from_secs(20))
        .output()
        .expect("output");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && text.contains("--http-anyone"), "{text}");
    let (server, http) = start(folder.path(), &origin, &["--http", "0.0.0.0:0", "--http-anyone"]);
    let port = http.rsplit_once(':').expect("a port").1;
    assert_eq!(get(&format!("127.0.0.1:{port}"), "/healthz"), "alive\n");
    drop(server);
}

/// Idle connections take no place for ever from others, who wait meanwhile, nor from clients.
#[test]
fn many_who_say_nothing_hold_nobody_up() {
    let (origin, folder) = (Origin::start(), tempfile::tempdir().expect("a folder"));
    let object = sample(100_000, 34);
    origin.put("/object", &object, "1");
    let (server, http) = start(folder.path(), &origin, &[]);
    let mut silent: Vec<_> =
        (0..63).map(|_| TcpStream::connect(&http).expect("a connection")).collect();
    for stream in &mut silent {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: ").expect("send");
    }
    assert_eq!(get(&http, "/healthz"), "alive\n");
    let more: Vec<_> = (0..100).map(|_| TcpStream::connect(&http).expect("a connection")).collect();
    let mut client = server.client();
    assert!(client.hello(&origin.url("/object")).expect("an answer").is("OKOK"));
    // As soon as they have left there is room again.
    drop((silent, more));
    assert_eq!(get(&http, "/healthz"), "alive\n");
    // A head without end.
    let mut endless = TcpStream::connect(&http).expect("a connection");
    endless.set_write_timeout(Some(Duration::from_secs(30))).expect("a time");
    endless.write_all(b"GET / HTTP/1.1\r\n").expect("send");
    let line = [b"a: ".as_slice(), &[b'b'; 4096], b"\r\n"].concat();
    let mut sent = 0;
    while endless.write_all(&line).is_ok() {
        sent += line.len();
        assert!(sent < 64 << 20, "it reads on and on");
    }
    drop(client);
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn it_is_not_ready_while_it_stops_and_ends_after_all_others() {
    let (origin, folder) = (Origin::start(), tempfile::tempdir().expect("a folder"));
    let object = Arc::new(sample(1_000_000, 35));
    origin.set("/object", Page::Held(object, "\"1\"".to_owned(), 0));
    let (server, http) = start(folder.path(), &origin, &[]);
    let (mut client, url) = (server.client(), origin.url("/object"));
    assert!(client.hello(&url).expect("an answer").is("OKOK"));
    assert_eq!(get(&http, "/readyz"), "ready\n");
    // One that stays open, as a browser's does.
    let mut kept = TcpStream::connect(&http).expect("a connection");
    kept.set_read_timeout(Some(Duration::from_secs(30))).expect("a time");
    write!(kept, "GET /healthz HTTP/1.1\r\nHost: {http}\r\n\r\n").expect("send");
    let mut first = [0];
    kept.read_exact(&mut first).expect("an answer");
    client.send(&crate::v000::frame(b"READ", 0, 4096, url.as_bytes())).expect("send");
    state_when(&http, |state| state["requests"]["under_way"] == 1);
    let stopping = thread::spawn(move || server.stop());
    let in_time = Instant::now() + Duration::from_secs(10);
    loop {
        let (status, _, body) = get_as(&http, "/readyz", &http);
        if status == 503 {
            assert_eq!(body, "stopping\n");
            break;
        }
        assert!(Instant::now() < in_time, "it is ready for ever");
    }
    assert_eq!(metric(&get(&http, "/metrics"), "extmem_stopping"), 1.0);
    origin.let_go();
    assert!(client.reply().expect("an answer").is("OKOK"));
    assert_eq!(stopping.join().expect("an end"), Some(0));
    let mut rest = Vec::new();
    let _ = kept.read_to_end(&mut rest);
    let again = TcpStream::connect(&http).expect_err("nobody listens");
    assert_eq!(again.kind(), ErrorKind::ConnectionRefused);
}

/// The program that drives the browser.
struct Browser {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Browser {
    /// `None` where this machine has none, and why.
    fn start(http: &str) -> Result<Browser, String> {
        let folder = examples().join("page-test");
        if !folder.join("node_modules/playwright-core").exists() {
            return Err("run `npm ci` in examples/page-test".to_owned());
        }
        let mut command = Command::new("node");
        command.arg("page.mjs").arg(format!("http://{http}/")).current_dir(folder);
        // Where to put pictures of it, for people.
        command.args(std::env::var_os("EXTMEM_PAGE_PICTURES"));
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = spawned.map_err(|error| format!("node: {error}"))?;
        let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        Ok(Browser { child, lines })
    }

    /// The next step that it has done.
    fn step(&mut self) -> String {
        self.lines.next().expect("it has ended").expect("a line")
    }

    fn next(&mut self, expected: &str) {
        assert_eq!(self.step(), expected);
    }

    fn go_on(&mut self) {
        let input = self.child.stdin.as_mut().expect("its input");
        input.write_all(b"\n").expect("it is there");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It ends with its input, and takes its browser with it.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

#[test]
fn a_browser_shows_a_block_that_turns_warm_while_a_client_reads() {
    let (origin, folder) = (Origin::start(), tempfile::tempdir().expect("a folder"));
    let object = sample(9_000_000, 36);
    origin.put("/events.tdb?X-Amz-Signature=hidden-from-view", &object, "1");
    let files = folder.path().join("files");
    fs::create_dir(&files).expect("a folder");
    let markup = "<img src=x onerror=document.title=1>.tdb";
    fs::write(files.join(markup), &object[..2_000_000]).expect("write");
    let allow = format!("file://{}", files.display());
    let dir = folder.path().join("cache");
    let (server, http) = start(&dir, &origin, &["--allow", &allow]);
    let mut browser = match Browser::start(&http) {
        Ok(browser) => browser,
        Err(why) => return left_out(&why),
    };
    match &*browser.step() {
        "empty" => {}
        "missing: chromium" => return left_out("there is no Chromium"),
        other => panic!("{other}"),
    }
    let (mut client, url) =
        (server.client(), origin.url("/events.tdb?X-Amz-Signature=hidden-from-view"));
    assert!(client.hello(&url).expect("an answer").is("OKOK"));
    let mut read = |url: &str, at: u64, len: u64| {
        let bytes = client.read(url, at, len).expect("an answer").expect("OKOK");
        assert!(bytes == object[at as usize..][..bytes.len()]);
    };
    read(&url, 5 * BLOCK + 100, 50);
    browser.go_on();
    browser.next("warm");
    for _ in 0..30 {
        read(&url, 5 * BLOCK + 100, 50);
    }
    for block in 6..70 {
        read(&url, block * BLOCK, 50);
        for _ in 0..block % 9 {
            read(&url, (block * 7 % 64 + 6) * BLOCK, 50);
        }
    }
    browser.go_on();
    browser.next("hot");
    let marked = format!("file://{}", files.join(markup).display());
    let mut other = server.client();
    assert!(other.hello(&marked).expect("an answer").is("OKOK"), "{marked}");
    other.read(&marked, 0, 700_000).expect("an answer").expect("OKOK");
    for missing in [
        format!("file://{}/<b>gone", files.display()),
        origin.url("/gone?X-Amz-Signature=hidden-from-view"),
    ] {
        assert!(other.hello(&missing).expect("an answer").is("MISS"), "{missing}");
    }
    browser.go_on();
    browser.next("shown");
    server.kill();
    browser.go_on();
    browser.next("lost");
    let (server, again) = start(&dir, &origin, &["--http", &http, "--allow", &allow]);
    assert_eq!(again, http);
    browser.go_on();
    browser.next("back");
    browser.go_on();
    assert!(browser.child.wait().expect("an end").success());
    assert_eq!(server.stop(), Some(0));
}

fn left_out(why: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "CI needs a browser: {why}");
    println!("left out: the page in a browser: {why}");
}

/// A hundred requests that never came in whole kept everybody out, and whoever restarts a server that does
/// not answer would have restarted it.
#[test]
fn requests_that_are_slow_do_not_keep_others_out() {
    let (origin, folder) = (Origin::start(), tempfile::tempdir().expect("a folder"));
    let (_server, http) = start(folder.path(), &origin, &[]);
    let slow: Vec<_> = (0..200)
        .map(|_| {
            let mut stream = TcpStream::connect(&http).expect("a connection");
            stream.write_all(b"GET / HTTP/1.1\r\nHost: loc").expect("send");
            stream
        })
        .collect();
    for path in ["/healthz", "/readyz"] {
        let mut stream = TcpStream::connect(&http).expect("a connection");
        // Sooner than the slow ones are given up by themselves.
        stream.set_read_timeout(Some(Duration::from_secs(15))).expect("a time");
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("send");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert!(answer.starts_with("HTTP/1.1 200 "), "{path}: {answer}");
    }
    drop(slow);
}
