//! `extmem serve --unix`: our own protocol, its client in `sources`, and clients in other languages.

use std::{
    io::{Read, Write},
    os::fd::AsFd,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::TryStreamExt;
use pager::{BlockSource, Pager, SourceError};
use sources::{
    Options, RetryPolicy, conformance,
    server::{
        frames::{FILES, Request},
        socket::{Incoming, Socket},
    },
};

use crate::{
    origin::{Origin, Page, sample},
    serve::Server,
};

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        Place { folder: tempfile::tempdir().expect("a folder") }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("extmem.sock")
    }

    fn start(&self, origin: &Origin, args: &[&str]) -> Server {
        let socket = self.socket();
        let mut all = vec!["--allow", origin.base(), "--max-bytes", "128MiB", "--unix"];
        all.push(socket.to_str().expect("text"));
        all.extend(args);
        Server::start(&self.folder.path().join("cache"), &all)
    }

    /// An address through the server.
    fn url(&self, url: &str, options: &str) -> String {
        let url = url.replace('%', "%25").replace('&', "%26");
        format!("server+unix://{}?url={url}{options}", self.socket().display())
    }
}

/// A client that says what it likes.
struct Raw {
    stream: UnixStream,
    ids: u64,
}

impl Raw {
    fn connect(place: &Place) -> Raw {
        let mut raw = Raw::bare(place);
        let (kind, _) = raw.ask(1, b"extmem-1\x01\0\0\0\0\0");
        assert_eq!(kind, 129, "a welcome");
        raw
    }

    fn bare(place: &Place) -> Raw {
        let stream = UnixStream::connect(place.socket()).expect("a connection");
        // What is never answered must fail.
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a time");
        Raw { stream, ids: 0 }
    }

    fn say(&mut self, kind: u8, body: &[u8]) -> std::io::Result<()> {
        self.ids += 1;
        let mut frame = (body.len() as u32).to_le_bytes().to_vec();
        frame.extend([kind, 0, 0, 0]);
        frame.extend(self.ids.to_le_bytes());
        frame.extend(body);
        self.stream.write_all(&frame)
    }

    fn hear(&mut self) -> std::io::Result<(u8, Vec<u8>)> {
        let mut head = [0; 16];
        self.stream.read_exact(&mut head)?;
        let mut body = vec![0; u32::from_le_bytes(head[..4].try_into().unwrap()) as usize];
        self.stream.read_exact(&mut body)?;
        Ok((head[4], body))
    }

    fn ask(&mut self, kind: u8, body: &[u8]) -> (u8, Vec<u8>) {
        self.say(kind, body).expect("send");
        self.hear().expect("an answer")
    }

    /// Asks until the answer is a file: bytes are, while they are on their way to the disk.
    fn until_a_file(&mut self, wants: &[u8]) {
        let in_time = Instant::now() + Duration::from_secs(40);
        while self.ask(3, wants).0 != 132 {
            assert!(Instant::now() < in_time, "it never becomes a file");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Opens a version that it claims to know.
    fn open(&mut self, url: &str, version: &str, len: u64) -> (u8, Vec<u8>) {
        let mut body = vec![1];
        body.extend(len.to_le_bytes());
        body.push(1);
        for text in [version, url] {
            body.extend((text.len() as u16).to_le_bytes());
            body.extend(text.as_bytes());
        }
        self.ask(2, &body)
    }

    /// Opens what is there.
    fn open_now(&mut self, url: &str) -> (u8, Vec<u8>) {
        let mut body = vec![0];
        body.extend((url.len() as u16).to_le_bytes());
        body.extend(url.as_bytes());
        self.ask(2, &body)
    }

    fn range(handle: &[u8], offset: u64, length: u64) -> Vec<u8> {
        let mut body = handle.to_vec();
        body.extend(offset.to_le_bytes());
        body.extend(length.to_le_bytes());
        body
    }

    /// As a file if it may be.
    fn file(handle: &[u8], offset: u64, length: u64) -> Vec<u8> {
        let mut body = Raw::range(handle, offset, length);
        body.push(1);
        body
    }
}

/// An object that its origin sends 300 kB of until it is let go, and a client that has it open.
struct Held {
    origin: Origin,
    place: Place,
    object: Vec<u8>,
    server: Server,
    client: Raw,
    handle: Vec<u8>,
}

impl Held {
    fn open(len: usize, seed: u64) -> Held {
        let (origin, place) = (Origin::start(), Place::new());
        let object = sample(len, seed);
        let tag = "\"1\"".to_owned();
        origin.set("/object", Page::Held(std::sync::Arc::new(object.clone()), tag, 300_000));
        let server = place.start(&origin, &["--block-bytes", "1MiB"]);
        let mut client = Raw::connect(&place);
        let (kind, opened) = client.open_now(&origin.url("/object"));
        assert_eq!(kind, 130, "opened");
        Held { origin, place, object, server, client, handle: opened[..4].to_vec() }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn quick() -> Options {
    let backoff_max = Duration::from_millis(100);
    Options::default().retry(RetryPolicy {
        attempts_max: 100,
        backoff_max,
        ..RetryPolicy::default()
    })
}

async fn read(
    source: &dyn BlockSource,
    range: std::ops::Range<u64>,
) -> Result<Vec<u8>, SourceError> {
    let version = source.stat().await?.version;
    let chunks: Vec<_> = source.read(&version, range).await?.try_collect().await?;
    Ok(chunks.concat())
}

#[test]
fn an_object_behind_a_server_is_a_source_like_any_other() {
    let (origin, place) = (Origin::start(), Place::new());
    let object = sample(3_000_001, 20);
    origin.put("/object", &object, "1");
    let _server = place.start(&origin, &[]);
    let url = place.url(&origin.url("/object"), "");
    runtime().block_on(async {
        for state in ["cold", "warm"] {
            let source = quick().open(&url).expect("a source");
            assert_eq!(source.name(), origin.url("/object"), "the object's name, not the server's");
            conformance::check(source, &object)
                .await
                .unwrap_or_else(|why| panic!("{state}: {why}"));
        }
    });
    assert_eq!(origin.count().1, 3_000_001, "every byte once");
    // As memory, by several readers, who are one program each as far as the server knows.
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let (url, object) = (url.clone(), object.clone());
            std::thread::spawn(move || {
                let pager = Pager::builder().budget_bytes(16 << 20).build().expect("a pager");
                let region = pager.open(quick().open(&url).expect("a source")).expect("a region");
                for at in (0..object.len()).step_by(99_991) {
                    let end = (at + 4096).min(object.len());
                    let got = region.load(at as u64..end as u64).expect("bytes");
                    assert!(got[..] == object[at..end]);
                }
            })
        })
        .collect();
    for reader in readers {
        reader.join().expect("a reader");
    }
    assert_eq!(origin.count().1, 3_000_001, "still once");
}

#[test]
fn commands_use_the_server_that_the_environment_names() {
    let (origin, place) = (Origin::start(), Place::new());
    let object = sample(5_000_000, 21);
    origin.put("/object", &object, "1");
    let url = origin.url("/object");
    let server = format!("unix://{}", place.socket().display());
    // Nobody there: an error that says so, or the object itself.
    let mut alone = crate::extmem();
    alone.env("EXTMEM_SERVER", format!("{server}?fallback=direct")).args(["cat", &url]);
    assert!(alone.output().expect("output").stdout == object);
    let before = origin.count().1;
    let _server = place.start(&origin, &[]);
    for _ in 0..2 {
        let output = crate::extmem().env("EXTMEM_SERVER", &server).args(["cat", &url]).output();
        let output = output.expect("output");
        assert!(output.stdout == object, "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(origin.count().1 - before, 5_000_000);
    let output = crate::extmem().env("EXTMEM_SERVER", "nowhere").args(["cat", &url]).output();
    let output = output.expect("output");
    assert!(String::from_utf8_lossy(&output.stderr).contains("unix:///path"), "{output:?}");
}

#[test]
fn a_server_that_dies_is_waited_for_or_gone_around() {
    let (origin, place) = (Origin::start(), Place::new());
    let object = sample(20_000_000, 22);
    origin.put("/object", &object, "1");
    let patient = place.url(&origin.url("/object"), "");
    let direct = place.url(&origin.url("/object"), "&fallback=direct");
    let mut server = Some(place.start(&origin, &[]));
    runtime().block_on(async {
        let (patient, direct) = (quick().open(&patient).unwrap(), quick().open(&direct).unwrap());
        let version = patient.stat().await.expect("stat").version;
        assert_eq!(direct.stat().await.expect("stat").version, version);
        for round in 0..6u64 {
            let at = round * 3_000_000;
            let mut body = patient.read(&version, at..at + 2_000_000).await.expect("a body");
            let first = body.try_next().await.expect("bytes").expect("a chunk");
            if let Some(server) = server.take() {
                server.kill();
            }
            let dead = Instant::now();
            let around = direct.read(&version, at + 100..at + 50_000).await.expect("a body");
            let around: Vec<_> = around.try_collect().await.expect("bytes");
            assert!(around.concat() == object[at as usize + 100..at as usize + 50_000]);
            assert!(dead.elapsed() < Duration::from_secs(3), "{:?}", dead.elapsed());
            server = Some(place.start(&origin, &[]));
            let rest: Vec<_> = body.try_collect().await.expect("the rest");
            let got = [vec![first], rest].concat().concat();
            assert!(got == object[at as usize..at as usize + 2_000_000], "round {round}");
        }
        // And without any: an error in time.
        server.take().expect("a server").kill();
        let hasty = RetryPolicy { attempts_max: 2, ..RetryPolicy::default() };
        let source = Options::default().retry(hasty).open(&place.url(&origin.url("/object"), ""));
        let error = source.unwrap().stat().await.expect_err("nobody is there");
        assert!(error.to_string().contains("block server"), "{error}");
    });
}

/// One that was stopped, or hangs, keeps its sockets open: whoever had asked it waited for minutes, also where
/// the object itself could be read.
#[test]
fn a_server_that_stands_still_is_gone_around() {
    let (origin, place) = (Origin::start(), Place::new());
    let object = sample(8 << 20, 68);
    origin.put("/object", &object, "1");
    let server = place.start(&origin, &[]);
    let url = place.url(&origin.url("/object"), "&fallback=direct");
    runtime().block_on(async {
        let source = quick().open(&url).expect("a source");
        assert!(read(&source, 0..1 << 20).await.expect("bytes") == object[..1 << 20]);
        server.signal("STOP");
        for n in 1..8 {
            let range = n << 20..(n + 1) << 20;
            let got = tokio::time::timeout(Duration::from_secs(60), read(&source, range.clone()));
            let got = got.await.expect("an end").expect("bytes");
            assert!(got == object[range.start as usize..range.end as usize], "{range:?}");
        }
        server.signal("CONT");
        assert_eq!(server.stop(), Some(0));
    });
}

#[test]
fn a_version_is_kept_over_a_restart_or_refused() {
    let (origin, place) = (Origin::start(), Place::new());
    let (old, new) = (sample(3_000_000, 23), sample(3_000_000, 24));
    origin.put("/object", &old, "old");
    let server = place.start(&origin, &[]);
    let url = place.url(&origin.url("/object"), "");
    runtime().block_on(async {
        let source = quick().open(&url).expect("a source");
        let version = source.stat().await.expect("stat").version;
        let read = async |range: std::ops::Range<u64>| -> Result<Vec<u8>, SourceError> {
            let chunks: Vec<_> = source.read(&version, range).await?.try_collect().await?;
            Ok(chunks.concat())
        };
        assert!(read(0..1000).await.expect("bytes") == old[..1000]);
        // SIGTERM: what was read is on disk.
        assert_eq!(server.stop(), Some(0));
        origin.put("/object", &new, "new");
        let _server = place.start(&origin, &[]);
        assert!(read(500..1500).await.expect("it is in the cache") == old[500..1500]);
        let error = read(2_500_000..2_500_010).await.expect_err("the rest is gone");
        assert!(matches!(error, SourceError::Changed { .. }), "{error}");
        let source = quick().open(&url).expect("a source");
        assert!(self::read(&source, 0..3_000_000).await.expect("bytes") == new);
    });
}

/// What one client says of an object is not what others read.
#[test]
fn a_length_that_is_made_up_harms_nobody() {
    let (origin, place) = (Origin::start(), Place::new());
    let object = sample(3_000_000, 27);
    origin.put("/object", &object, "1");
    let url = origin.url("/object");
    let through = place.url(&url, "");
    let server = place.start(&origin, &[]);
    runtime().block_on(async {
        let good = quick().open(&through).expect("a source");
        let version = good.stat().await.expect("stat").version;
        let end = async || {
            let body = good.read(&version, 2_900_000..3_000_000).await?;
            body.try_collect::<Vec<_>>().await.map(|chunks| chunks.concat())
        };
        let lie = || {
            let mut liar = Raw::connect(&place);
            let (kind, opened) = liar.open(&url, "\"1\"", 1_000_000);
            if kind == 130 {
                let mut wants = Raw::range(&opened[..4], 0, 4096);
                wants.push(0);
                liar.ask(3, &wants);
            }
            // So long that sums overflow.
            let (kind, opened) = liar.open(&url, "\"1\"", u64::MAX);
            if kind == 130 {
                let mut wants = Raw::range(&opened[..4], u64::MAX - 8192, 4096);
                wants.push(1);
                assert_eq!(liar.ask(3, &wants).0, 255, "refused, and answered");
            }
        };
        lie();
        assert!(end().await.expect("bytes") == object[2_900_000..]);
        // The server knows nothing after a restart: the first to speak is not believed either.
        server.kill();
        let _server = place.start(&origin, &[]);
        lie();
        assert!(end().await.expect("bytes") == object[2_900_000..]);
    });
}

#[test]
fn other_languages_speak_it_from_the_text() {
    let (origin, place) = (Origin::start(), Place::new());
    let object = sample(7_000_003, 25);
    origin.put("/object", &object, "1");
    let token = place.folder.path().join("token");
    std::fs::write(&token, "0123456789abcdef\n").expect("write");
    let token = ["--tcp", "127.0.0.1:0", "--token-file", token.to_str().expect("text")];
    let server = place.start(&origin, &token);
    let url = origin.url("/object");
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/clients");
    let python = examples.join("extmem_client.py");
    let tcp = server.tcp.clone().expect("an address");
    let socket = place.socket().display().to_string();
    let run = |args: &[&str]| Command::new("python3").arg(&python).args(args).output();
    match run(&["--help"]) {
        Err(error) => {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "CI needs python3: {error}");
            println!("left out: the Python client: python3: {error}");
        }
        Ok(_) => {
            let all = run(&[&socket, &url]).expect("python3");
            assert!(all.stdout == object, "{}", String::from_utf8_lossy(&all.stderr));
            let part = run(&[&tcp, &url, "--token", "0123456789abcdef", "--range", "100-5000000"]);
            let part = part.expect("python3");
            assert!(
                part.stdout == object[100..=5_000_000],
                "{}",
                String::from_utf8_lossy(&part.stderr)
            );
            for (args, expected) in [
                (vec![tcp.as_str(), &url, "--token", "0123456789abcdeX"], "unauthorized"),
                (vec![tcp.as_str(), &url], "unauthorized"),
                (vec![socket.as_str(), "s3://other/key"], "permanent"),
            ] {
                let refused = run(&args).expect("python3");
                let text = String::from_utf8_lossy(&refused.stderr).into_owned();
                assert!(refused.stdout.is_empty() && text.contains(expected), "{args:?}: {text}");
            }
            let missing = origin.url("/missing");
            let refused = run(&[&socket, &missing]).expect("python3");
            assert!(String::from_utf8_lossy(&refused.stderr).contains("not found"), "{refused:?}");
        }
    }
    let program = place.folder.path().join("client");
    let mut built = Command::new("cc");
    built.args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-o"]);
    built.arg(&program).arg(examples.join("extmem_client.c"));
    match built.output() {
        Err(error) => {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "CI needs cc: {error}");
            println!("left out: the C client: cc: {error}");
        }
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let all = Command::new(&program).args([&socket, &url]).output().expect("the client");
            assert!(all.stdout == object, "{}", String::from_utf8_lossy(&all.stderr));
        }
    }
    assert_eq!(origin.count().1, 7_000_003, "every byte once, for all of them");
}

/// Python as another user: the system's, as others may not be able to run one from elsewhere.
fn python_as(user: &str) -> Command {
    let system = Path::new("/usr/bin/python3");
    let mut command = Command::new("setpriv");
    command.args(["--reuid", user, "--clear-groups"]);
    command.arg(if system.is_file() { system } else { Path::new("python3") });
    command
}

/// Only root can become one.
pub(crate) fn without_other_users(why: &dyn std::fmt::Debug) {
    use std::os::unix::fs::MetadataExt;
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    let is_ci = std::env::var("CI").as_deref() == Ok("true");
    assert!(!(is_root && is_ci), "CI runs this as other users, too: {why:?}");
    println!("left out: other users: {why:?}");
}

#[test]
fn the_socket_is_for_its_owner() {
    use std::os::unix::fs::PermissionsExt;
    let (origin, place) = (Origin::start(), Place::new());
    origin.put("/object", b"bytes", "1");
    let server = place.start(&origin, &["--allow-uid", "4711", "--http", "127.0.0.1:0"]);
    // A second server does not take it away.
    let cache = place.folder.path().join("other");
    let output = crate::extmem()
        .args(["serve", "--listen", "127.0.0.1:0", "--dir"])
        .arg(cache)
        .arg("--unix")
        .arg(place.socket())
        .timeout(Duration::from_secs(20))
        .output()
        .expect("output");
    assert!(String::from_utf8_lossy(&output.stderr).contains("another server"), "{output:?}");
    // Another user, where this one may become one: 4711 is served, 4712 is not.
    std::fs::set_permissions(place.folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let python =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/clients/extmem_client.py");
    let text = std::fs::read_to_string(python).expect("the client");
    let ask = |user: &str| {
        let mut command = python_as(user);
        command.args(["-c", &text]).arg(place.socket()).arg(origin.url("/object")).output()
    };
    match ask("4712") {
        Ok(refused) if String::from_utf8_lossy(&refused.stderr).contains("unauthorized") => {
            assert!(refused.stdout.is_empty());
            let served = ask("4711").expect("setpriv");
            assert_eq!(served.stdout, b"bytes", "{}", String::from_utf8_lossy(&served.stderr));
            let metrics = crate::page::get(server.http.as_ref().expect("a page"), "/metrics");
            let name = "extmem_connections_total{what=\"denied\"}";
            assert_eq!(crate::page::metric(&metrics, name), 1.0, "4712 alone");
        }
        other => without_other_users(&other),
    }
    drop(server);
    // Killed, it left its socket; the next one takes it, and it is for the owner alone.
    let server = place.start(&origin, &[]);
    let mode = std::fs::metadata(place.socket()).expect("the socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(server.stop(), Some(0));
    assert!(!place.socket().exists());
}

/// What a client sends beside its frames is of no use to the server.
#[test]
fn descriptors_that_clients_send_are_not_kept() {
    use std::os::fd::AsFd;
    let (origin, place) = (Origin::start(), Place::new());
    let server = place.start(&origin, &[]);
    let before = server.descriptors();
    let wait = Duration::from_secs(20);
    let _clients: Vec<Socket> = runtime().block_on(async {
        let mut clients = Vec::new();
        let file = std::fs::File::open("/dev/null").expect("open");
        for _ in 0..4 {
            let stream = tokio::net::UnixStream::connect(place.socket()).await.expect("connect");
            let socket = Socket::Unix(stream);
            let hello = Request::Hello { wants: FILES, token: String::new() };
            let close = Request::Close { handle: 0 };
            let mut incoming = Incoming::default();
            for id in 0..50 {
                let frame = if id == 0 { &hello } else { &close }.encode(id);
                socket.send(&[Bytes::from(frame)], Some(file.as_fd()), wait).await.expect("send");
            }
            for _ in 0..50 {
                incoming.frame(&socket, 16 << 10, wait).await.expect("a frame").expect("one");
            }
            clients.push(socket);
        }
        clients
    });
    let now = server.descriptors();
    assert!(now <= before + 4 + 4, "{now} after {before}: a client has one");
}

/// A connection has room for so many objects at once, and programs open more in their time.
#[test]
fn objects_that_nobody_reads_any_more_make_room() {
    let (origin, place) = (Origin::start(), Place::new());
    origin.put("/object", b"bytes", "1");
    let _server = place.start(&origin, &[]);
    let (url, options) = (place.url(&origin.url("/object"), ""), quick());
    runtime().block_on(async {
        for n in 0..1100 {
            let source = options.open(&url).expect("a source");
            source.stat().await.unwrap_or_else(|error| panic!("the {n}th: {error}"));
        }
        // Others have left before they were answered.
        for _ in 0..1100 {
            let source = options.open(&url).expect("a source");
            let asked = tokio::time::timeout(Duration::from_micros(30), source.stat()).await;
            drop(asked);
        }
        let source = options.open(&url).expect("a source");
        assert_eq!(read(&source, 0..5).await.expect("bytes"), b"bytes");
    });
}

/// Runs this program again, as one of the tests below, with so many descriptors.
fn with_descriptors(limit: &str, program: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("sh");
    let line = format!("ulimit -n {limit} && exec \"$0\" \"$@\"");
    command.args(["-c", &line]).arg(program).args(args);
    command
}

#[test]
fn few_descriptors_are_enough() {
    let (origin, place) = (Origin::start(), Place::new());
    let object = sample(12_000_000, 38);
    origin.put("/object", &object, "1");
    let url = origin.url("/object");
    let small = ["--block-bytes", "64KiB"];
    let program = assert_cmd::cargo::cargo_bin!("extmem");
    let cat = |limit: &str| {
        let mut command = with_descriptors(limit, program, &["cat", &url]);
        command.env("EXTMEM_SERVER", format!("unix://{}", place.socket().display()));
        let output = command.output().expect("output");
        assert!(output.stdout == object, "{}", String::from_utf8_lossy(&output.stderr));
    };
    let server = place.start(&origin, &small);
    cat("1024");
    assert_eq!(server.stop(), Some(0));
    // Checked anew, 64 KiB at a time: each answer is a file of its own.
    let _server = place.start(&origin, &small);
    cat("50");
    assert_eq!(origin.count().1, 12_000_000);
}

#[test]
fn no_descriptor_is_enough() {
    let (origin, place) = (Origin::start(), Place::new());
    origin.put("/object", &sample(3_000_000, 39), "1");
    let _server = place.start(&origin, &[]);
    let program = std::env::current_exe().expect("this program");
    let args = ["blocks::child", "--exact", "--ignored", "--nocapture"];
    let mut command = with_descriptors("200", &program, &args);
    command.env("BLOCKS_CHILD", place.url(&origin.url("/object"), ""));
    let output = command.output().expect("output");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("1 passed"), "{text}");
}

#[test]
#[ignore = "the other process of the test above"]
fn child() {
    let Ok(url) = std::env::var("BLOCKS_CHILD") else { return };
    runtime().block_on(async {
        let source = quick().open(&url).expect("a source");
        source.stat().await.expect("stat");
        // Everything that there is, for something else.
        let mut held = Vec::new();
        while let Ok(file) = std::fs::File::open("/dev/null") {
            held.push(file);
        }
        assert!(held.len() > 100, "{}", held.len());
        assert!(read(&source, 0..3_000_000).await.expect("bytes") == sample(3_000_000, 39));
    });
}

/// Nobody will read what it announced.
#[test]
fn what_was_announced_is_not_fetched_for_those_who_left() {
    let (origin, place) = (Origin::start(), Place::new());
    let object = sample(200 << 20, 28);
    origin.put("/object", &object, "1");
    let url = origin.url("/object");
    let server = place.start(&origin, &[]);
    let mut client = Raw::connect(&place);
    let (kind, opened) = client.open_now(&url);
    assert_eq!(kind, 130, "opened");
    origin.delay(Duration::from_millis(300));
    client.say(4, &Raw::range(&opened[..4], 0, 200 << 20)).expect("send");
    // Answered, so that was read, too.
    let (kind, _) = client.ask(5, &7u32.to_le_bytes());
    assert_eq!(kind, 133, "closed");
    drop(client);
    assert_eq!(server.stop(), Some(0));
    let (_, bytes) = origin.count();
    assert!(bytes < 100 << 20, "{bytes} bytes for nobody");
}

/// A reader that fills its link announces many parts at once, and each is a request of its own.
#[test]
fn announcements_are_followed_side_by_side() {
    let (origin, place) = (Origin::start(), Place::new());
    let object = sample(48 << 20, 46);
    origin.put("/object", &object, "1");
    let _server = place.start(&origin, &[]);
    let mut client = Raw::connect(&place);
    let (kind, opened) = client.open_now(&origin.url("/object"));
    assert_eq!(kind, 130, "opened");
    // All have come before the first is done.
    origin.delay(Duration::from_secs(1));
    for part in 0..12u64 {
        client.say(4, &Raw::range(&opened[..4], part * (4 << 20), 1 << 20)).expect("send");
    }
    let in_time = Instant::now() + Duration::from_secs(30);
    while origin.count().1 < 12 << 20 {
        assert!(Instant::now() < in_time, "{:?} of what was announced", origin.count());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A read that came right behind an announcement was quicker than that, and fetched its own part: twice
/// the requests, one after the other.
#[test]
fn reads_wait_for_what_was_announced_before_them() {
    let (origin, place) = (Origin::start(), Place::new());
    let object = sample(24 << 20, 47);
    origin.put("/object", &object, "1");
    let _server = place.start(&origin, &[]);
    let mut client = Raw::connect(&place);
    let (kind, opened) = client.open_now(&origin.url("/object"));
    assert_eq!(kind, 130, "opened");
    for part in 0..12u64 {
        client.say(4, &Raw::range(&opened[..4], part * (2 << 20), 2 << 20)).expect("send");
        let mut wants = Raw::range(&opened[..4], part * (2 << 20), 4096);
        wants.push(1);
        client.say(3, &wants).expect("send");
    }
    for _ in 0..12 {
        let (kind, _) = client.hear().expect("an answer");
        assert!(kind == 131 || kind == 132, "{kind}");
    }
    let in_time = Instant::now() + Duration::from_secs(30);
    while origin.count().1 < 24 << 20 {
        assert!(Instant::now() < in_time, "{:?} of what was announced", origin.count());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(origin.count(), (12, 24 << 20), "one request for each");
}

/// A read waits for what was announced before it, and found out only then what its handle meant: another
/// object, which had been given the number of the one that was closed.
#[test]
fn a_read_is_of_the_object_that_its_handle_had_when_it_was_sent() {
    let (origin, place) = (Origin::start(), Place::new());
    let (object, other) = (sample(1 << 20, 51), sample(1 << 20, 52));
    origin.put("/object", &object, "1");
    origin.put("/other", &other, "1");
    let _server = place.start(&origin, &[]);
    let mut client = Raw::connect(&place);
    let frame = |kind: u8, id: u8, body: &[u8]| {
        let mut frame = (body.len() as u32).to_le_bytes().to_vec();
        frame.extend([kind, 0, 0, 0, id, 0, 0, 0, 0, 0, 0, 0]);
        frame.extend(body);
        frame
    };
    // A version that is named is opened at once.
    let pinned = |path: &str| {
        let mut body = vec![1];
        body.extend((1u64 << 20).to_le_bytes());
        body.push(1);
        for text in ["\"1\"", &origin.url(path)] {
            body.extend((text.len() as u16).to_le_bytes());
            body.extend(text.as_bytes());
        }
        body
    };
    let (mut open, other_bytes) = (pinned("/object"), &other[..16]);
    let mut handle = client.ask(2, &open).1[..4].to_vec();
    for round in 0..100 {
        open = if round % 2 == 0 { pinned("/other") } else { pinned("/object") };
        let expected = if round % 2 == 0 { &object[..16] } else { other_bytes };
        let mut wants = Raw::range(&handle, 0, 16);
        wants.push(0);
        let announced = frame(4, 1, &Raw::range(&handle, 0, 100_000));
        let frames = [announced, frame(3, 2, &wants), frame(5, 3, &handle), frame(2, 4, &open)];
        client.stream.write_all(&frames.concat()).expect("send");
        let before = std::mem::take(&mut handle);
        for _ in 0..3 {
            match client.hear().expect("an answer") {
                (131, bytes) => assert!(bytes == expected, "round {round}: another object's"),
                (130, opened) => handle = opened[..4].to_vec(),
                (kind, body) => assert!(kind == 133, "round {round}: {kind} {body:?}"),
            }
        }
        assert!(
            !handle.is_empty() && handle != before,
            "round {round}: its number came back at once"
        );
    }
}

/// Its second block was asked for when the first was here: a round trip more at the end of every scan.
#[test]
fn a_short_read_across_two_blocks_is_one_request() {
    let (origin, place) = (Origin::start(), Place::new());
    let object = sample(5 << 20, 50);
    origin.put("/object", &object, "1");
    let _server = place.start(&origin, &[]);
    runtime().block_on(async {
        let source = quick().open(&place.url(&origin.url("/object"), "")).expect("a source");
        assert!(
            read(&source, 900_000..1_300_000).await.expect("bytes") == object[900_000..1_300_000]
        );
        assert_eq!(origin.count(), (1, 2 << 20), "both blocks, as one");
    });
}

/// An answer waited for the whole block, on the disk.
#[test]
fn bytes_are_sent_as_they_come() {
    let (origin, place) = (Origin::start(), Place::new());
    let object = sample(8 << 20, 48);
    let tag = "\"1\"".to_owned();
    origin.set("/object", Page::Held(std::sync::Arc::new(object.clone()), tag, 300_000));
    let _server = place.start(&origin, &[]);
    let mut client = Raw::connect(&place);
    let (kind, opened) = client.open_now(&origin.url("/object"));
    assert_eq!(kind, 130, "opened");
    client.say(4, &Raw::range(&opened[..4], 0, 8 << 20)).expect("send");
    let mut wants = Raw::range(&opened[..4], 100_000, 100_000);
    wants.push(1);
    // A file, if the disk has them by now; what comes behind them is held all the same.
    let (kind, bytes) = client.ask(3, &wants);
    assert!(kind == 132 || kind == 131 && bytes == object[100_000..200_000], "{kind}");
    *wants.last_mut().expect("as bytes") = 0;
    let (kind, bytes) = client.ask(3, &wants);
    assert!(kind == 131 && bytes == object[100_000..200_000], "{kind}");
    assert_eq!(origin.count().0, 1);
    origin.let_go();
    runtime().block_on(async {
        let source = quick().open(&place.url(&origin.url("/object"), "")).expect("a source");
        assert!(read(&source, 0..8 << 20).await.expect("bytes") == object);
    });
    assert_eq!(origin.count(), (1, 8 << 20), "every byte once");
}

/// Nobody had announced it, and so it waited for all of its block, which may be 64 MiB, on the disk.
#[test]
fn a_cold_read_waits_for_its_own_bytes_alone() {
    let Held { origin, place: _place, object, server: _server, mut client, handle } =
        Held::open(8 << 20, 66);
    let wants = |offset: u64, length: u64| Raw::file(&handle, offset, length);
    let at = (2 << 20) + 100_000;
    let (kind, bytes) = client.ask(3, &wants(at, 4096));
    assert!(kind == 131 && bytes == object[at as usize..][..4096], "{kind}");
    // What lies around it comes behind, although nobody asks for it.
    origin.let_go();
    let in_time = Instant::now() + Duration::from_secs(30);
    loop {
        let (kind, body) = client.ask(3, &wants(at, 4096));
        let good = u64::from_le_bytes(body[8..16].try_into().unwrap());
        if kind == 132 && good == (3 << 20) - at {
            break;
        }
        assert!(Instant::now() < in_time, "a file to the end of the block: {kind}");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(origin.count(), (1, 1 << 20), "the block, once");
}

/// Of an extent of which some was on the disk, and the rest in memory on its way there, a read waited
/// for the disk, for up to five seconds: a scan stood still when the disk, or the thread that writes, did.
#[test]
fn what_is_in_memory_is_sent_while_the_disk_is_slow() {
    // The writer gives up what is locked for two seconds. Where getting here takes as long, once more.
    let came = (0..5).any(|_| {
        let Held { origin, place, object, server: _server, mut client, handle } =
            Held::open(1 << 20, 67);
        let wants = |offset: u64, length: u64| Raw::file(&handle, offset, length);
        client.until_a_file(&wants(0, 4096));
        // From here on nothing is written.
        let lock = std::fs::File::open(place.folder.path().join("cache/lock")).expect("its lock");
        lock.lock().expect("a turn");
        origin.let_go();
        let (kind, last) = client.ask(3, &wants((1 << 20) - 4096, 4096));
        assert!(kind == 131 && last == object[(1 << 20) - 4096..], "{kind}");
        let (kind, all) = client.ask(3, &wants(0, 1 << 20));
        assert!(kind == 131 && all == object, "{kind}");
        // What was not written would have been fetched again.
        origin.count().0 == 1
    });
    assert!(came, "it waited for the disk");
}

/// Descriptors that nobody takes are counted as the server's by the kernel. A socket has room for some
/// hundred answers that are files, so who took none was never noticed.
#[test]
fn who_takes_no_descriptors_is_given_few_and_given_up() {
    let (origin, place) = (Origin::start(), Place::new());
    let object = sample(1 << 20, 49);
    origin.put("/object", &object, "1");
    let server = place.start(&origin, &[]);
    let mut client = Raw::connect(&place);
    let (_, opened) = client.open_now(&origin.url("/object"));
    let mut wants = Raw::range(&opened[..4], 0, 4096);
    wants.push(1);
    client.until_a_file(&wants);
    for _ in 0..60 {
        client.say(3, &wants).expect("send");
    }
    // Others have theirs meanwhile.
    let mut other = Raw::connect(&place);
    let (_, theirs) = other.open_now(&origin.url("/object"));
    wants[..4].copy_from_slice(&theirs[..4]);
    for _ in 0..100 {
        assert_eq!(other.ask(3, &wants).0, 132);
    }
    let in_time = Instant::now() + Duration::from_secs(40);
    while client.say(5, &9u32.to_le_bytes()).is_ok() {
        assert!(Instant::now() < in_time, "it has its connection still");
        std::thread::sleep(Duration::from_millis(100));
    }
    let mut files = 0;
    while let Ok((kind, _)) = client.hear() {
        files += usize::from(kind == 132);
    }
    assert!((1..=17).contains(&files), "{files} descriptors that nobody took");
    assert_eq!(server.stop(), Some(0));
}

/// Descriptors in the queue of a client stay there when its connection ends: its place was free again
/// at once, for as many more.
#[test]
fn who_takes_no_descriptors_keeps_its_place() {
    let (origin, place) = (Origin::start(), Place::new());
    origin.put("/object", &sample(1 << 20, 61), "1");
    let url = origin.url("/object");
    let _server = place.start(&origin, &["--connections-per-client", "4"]);
    let held: Vec<Raw> = (0..4)
        .map(|_| {
            let mut client = Raw::connect(&place);
            let (_, opened) = client.open_now(&url);
            let mut wants = Raw::range(&opened[..4], 0, 4096);
            wants.push(1);
            client.until_a_file(&wants);
            for _ in 0..15 {
                client.say(3, &wants).expect("send");
            }
            // No request: what came before it is answered, and the connection ends.
            client.say(77, &[]).expect("send");
            let in_time = Instant::now() + Duration::from_secs(40);
            while client.say(5, &9u32.to_le_bytes()).is_ok() {
                assert!(Instant::now() < in_time, "it has its connection still");
                std::thread::sleep(Duration::from_millis(20));
            }
            client
        })
        .collect();
    let is_served = || {
        let mut client = Raw::bare(&place);
        client.say(1, b"extmem-1\x01\0\0\0\0\0").and_then(|()| client.hear()).is_ok()
    };
    for _ in 0..10 {
        assert!(!is_served(), "a fifth");
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(held);
    let in_time = Instant::now() + Duration::from_secs(40);
    while !is_served() {
        assert!(Instant::now() < in_time, "those who have left have their places still");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// All that may be on their way are somebody else's: whoever wanted a file was told to come back, until
/// he gave up.
#[test]
fn where_no_descriptor_can_be_sent_bytes_are() {
    let (origin, place) = (Origin::start(), Place::new());
    let object = sample(3_000_000, 62);
    origin.put("/object", &object, "1");
    // Root may send any number, but for one without these.
    let limited = ["--bounding-set", "-sys_resource,-sys_admin", "sh", "-c"];
    let mut refused = Command::new("setpriv");
    match refused.args(limited).arg("true").status() {
        Ok(status) if status.success() => {}
        other => return without_other_users(&other),
    }
    let socket = place.socket();
    let line = "ulimit -n 256 && exec \"$0\" \"$@\"";
    let mut command = Command::new("setpriv");
    command.args(limited).arg(line).arg(assert_cmd::cargo::cargo_bin!("extmem"));
    command.args(["serve", "--listen", "127.0.0.1:0", "--free-bytes", "0", "--allow"]);
    command.args([origin.base(), "--max-bytes", "128MiB", "--dir"]);
    command.arg(place.folder.path().join("cache")).arg("--unix").arg(&socket);
    let _server = Server::of_command(command);
    let file = std::fs::File::open("/dev/null").expect("a file");
    runtime().block_on(async {
        let source = quick().open(&place.url(&origin.url("/object"), "")).expect("a source");
        assert!(read(&source, 0..3_000_000).await.expect("bytes") == object, "they are there");
        let mut queues = Vec::new();
        for _ in 0..4 {
            let (ours, theirs) = tokio::net::UnixStream::pair().expect("a pair");
            let ours = Socket::Unix(ours);
            for _ in 0..100 {
                let one = Bytes::from_static(b"x");
                let sent = ours.send(&[one], Some(file.as_fd()), Duration::from_secs(5)).await;
                if let Err(error) = sent {
                    return without_other_users(&error);
                }
            }
            queues.push((ours, theirs));
        }
        let source = quick().open(&place.url(&origin.url("/object"), "")).expect("a source");
        assert!(read(&source, 0..3_000_000).await.expect("bytes") == object);
        drop(queues);
    });
}

/// Descriptors of clients that are stopped are counted until they go on; the other programs of the same
/// user waited for that.
#[test]
fn those_who_take_no_descriptors_leave_bytes_to_others() {
    let (origin, place) = (Origin::start(), Place::new());
    let object = sample(1 << 20, 65);
    origin.put("/object", &object, "1");
    let socket = place.socket();
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 256 && exec \"$0\" \"$@\""]);
    command.arg(assert_cmd::cargo::cargo_bin!("extmem"));
    command.args(["serve", "--listen", "127.0.0.1:0", "--free-bytes", "0", "--allow"]);
    command.args([origin.base(), "--max-bytes", "128MiB", "--dir"]);
    command.arg(place.folder.path().join("cache")).arg("--unix").arg(&socket);
    let _server = Server::of_command(command);
    runtime().block_on(async {
        let source = quick().open(&place.url(&origin.url("/object"), "")).expect("a source");
        assert!(read(&source, 0..1 << 20).await.expect("bytes") == object, "it is there");
    });
    let wants = |handle: &[u8]| {
        let mut wants = Raw::range(handle, 0, 4096);
        wants.push(1);
        wants
    };
    let mut stopped = Vec::new();
    for _ in 0..3 {
        let mut client = Raw::connect(&place);
        let (kind, opened) = client.open_now(&origin.url("/object"));
        assert_eq!(kind, 130, "opened");
        for _ in 0..20 {
            client.say(3, &wants(&opened[..4])).expect("send");
        }
        stopped.push(client);
    }
    let mut client = Raw::connect(&place);
    let (_, opened) = client.open_now(&origin.url("/object"));
    client.say(3, &wants(&opened[..4])).expect("send");
    let (kind, _) = client.hear().expect("an answer");
    assert!(kind == 131 || kind == 132, "{kind}");
}

/// What is not an object of a service has no strong version, and its files were handed out no more.
#[test]
fn files_of_this_machine_are_handed_out_as_files() {
    let place = Place::new();
    let object = sample(8 << 20, 63);
    let data = place.folder.path().join("data");
    std::fs::create_dir(&data).expect("a folder");
    std::fs::write(data.join("object"), &object).expect("write");
    let (socket, base) = (place.socket(), format!("file://{}/", data.display()));
    let args = ["--allow", &base, "--max-bytes", "128MiB", "--unix"];
    let args = [&args[..], &[socket.to_str().expect("text")]].concat();
    let cache = place.folder.path().join("cache");
    let _server = Server::start(&cache, &args);
    let cache = cache.canonicalize().expect("a folder");
    runtime().block_on(async {
        let source = quick().open(&place.url(&format!("{base}object"), "")).expect("a source");
        // As bytes as long as the disk has them not.
        let in_time = Instant::now() + Duration::from_secs(40);
        loop {
            assert!(read(&source, 0..8 << 20).await.expect("bytes") == object);
            let open = std::fs::read_dir("/proc/self/fd").expect("/proc");
            let mut open = open.filter_map(|one| std::fs::read_link(one.ok()?.path()).ok());
            if open.any(|path| path.starts_with(&cache)) {
                break;
            }
            assert!(Instant::now() < in_time, "no file of the cache is open here");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}

/// The end of what is asked for was fetched by itself where its beginning was on its way.
#[test]
fn a_read_behind_what_is_coming_makes_no_small_request() {
    let Held { origin, place: _place, server: _server, mut client, handle, .. } =
        Held::open(8 << 20, 64);
    let wants = |offset: u64, length: u64| Raw::file(&handle, offset, length);
    // The first extent, as a client that maps does it, and a read across its end.
    client.say(3, &wants(0, 4096)).expect("send");
    let in_time = Instant::now() + Duration::from_secs(20);
    while origin.count().0 < 1 {
        assert!(Instant::now() < in_time, "it was never asked for");
        std::thread::sleep(Duration::from_millis(5));
    }
    client.say(3, &wants(900 << 10, 300 << 10)).expect("send");
    origin.let_go();
    let kinds = [client.hear().expect("an answer").0, client.hear().expect("an answer").0];
    assert!(kinds.iter().all(|kind| matches!(kind, 131 | 132)), "{kinds:?}");
    for offset in [1 << 20, (1 << 20) + (600 << 10)] {
        let (kind, _) = client.ask(3, &wants(offset, 4096));
        assert!(matches!(kind, 131 | 132), "{kind}");
    }
    assert_eq!(origin.count().0, 2, "each extent once");
}

/// Answers of a byte that nobody reads kept a block each.
#[test]
fn short_answers_keep_no_blocks() {
    let (origin, place) = (Origin::start(), Place::new());
    let object = sample(8 << 20, 65);
    origin.put("/object", &object, "1");
    let url = origin.url("/object");
    let server = place.start(&origin, &[]);
    runtime().block_on(async {
        let source = quick().open(&place.url(&url, "")).expect("a source");
        assert!(read(&source, 0..8 << 20).await.expect("bytes") == object);
    });
    // More than a socket takes: a hundred wait.
    let _slow: Vec<Raw> = (0..64)
        .map(|_| {
            let mut client = Raw::connect(&place);
            let (_, opened) = client.open_now(&url);
            for n in 0..500 {
                let mut wants = Raw::range(&opened[..4], n % 128 * (64 << 10), 1);
                wants.push(0);
                client.say(3, &wants).expect("send");
            }
            client
        })
        .collect();
    let mut other = Raw::connect(&place);
    let (_, opened) = other.open_now(&url);
    let mut wants = Raw::range(&opened[..4], 0, 1 << 20);
    wants.push(0);
    let (kind, bytes) = other.ask(3, &wants);
    assert!(kind == 131 && bytes == object[..1 << 20]);
    let kib = server.peak_kib();
    assert!(kib < 192 << 10, "{kib} KiB at most");
}

/// Many who ask for all they may, and read nothing.
#[test]
fn answers_that_nobody_reads_take_no_more_than_they_may() {
    let (origin, place) = (Origin::start(), Place::new());
    let object = sample(8 << 20, 29);
    origin.put("/object", &object, "1");
    let url = origin.url("/object");
    let server = place.start(&origin, &[]);
    let _slow: Vec<Raw> = (0..24)
        .map(|_| {
            let mut client = Raw::connect(&place);
            let (kind, opened) = client.open_now(&url);
            assert_eq!(kind, 130, "opened");
            for n in 0..8 {
                let mut wants = Raw::range(&opened[..4], n % 2 * (4 << 20), 4 << 20);
                wants.push(0);
                client.say(3, &wants).expect("send");
            }
            client
        })
        .collect();
    // Others get their files at once, and bytes as soon as the slow ones are given up.
    let began = Instant::now();
    runtime().block_on(async {
        let source = quick().open(&place.url(&url, "")).expect("a source");
        assert!(read(&source, 0..8 << 20).await.expect("bytes") == object);
    });
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    let mut other = Raw::connect(&place);
    let (_, opened) = other.open_now(&url);
    let mut wants = Raw::range(&opened[..4], 0, 4 << 20);
    wants.push(0);
    other.stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time");
    let (kind, bytes) = other.ask(3, &wants);
    assert!(kind == 131 && bytes == object[..4 << 20]);
    let kib = server.peak_kib();
    assert!(kib < 320 << 10, "{kib} KiB at most");
}

/// Who may not ask takes nobody's place.
#[test]
fn users_who_are_turned_away_take_no_places() {
    use std::{io::BufRead, os::unix::fs::PermissionsExt, process::Stdio};
    let (origin, place) = (Origin::start(), Place::new());
    origin.put("/object", b"bytes", "1");
    let args = ["--allow-uid", "4711", "--connections-per-client", "4"];
    let _server = place.start(&origin, &args);
    std::fs::set_permissions(place.folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    // Both leave their connections open and say nothing.
    let hold = "import socket, sys\n\
        held = [socket.socket(socket.AF_UNIX) for _ in range(int(sys.argv[2]))]\n\
        [one.connect(sys.argv[1]) for one in held]\n\
        print('held', flush=True)\n\
        sys.stdin.read()";
    for (user, count) in [("4712", "40"), ("4711", "4")] {
        let mut command = python_as(user);
        command
            .args(["-c", hold])
            .arg(place.socket())
            .arg(count)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let held = command.spawn().and_then(|mut child| {
            let mut line = String::new();
            std::io::BufReader::new(child.stdout.take().expect("its output"))
                .read_line(&mut line)?;
            Ok((child, line))
        });
        let mut child = match held {
            Ok((child, line)) if line == "held\n" => child,
            other => return without_other_users(&other),
        };
        let (kind, _) = Raw::connect(&place).open_now(&origin.url("/object"));
        assert_eq!(kind, 130, "opened, while {user} holds {count}");
        child.kill().expect("kill");
        child.wait().expect("an end");
    }
}

/// Whoever asks a source that takes its time, for all that may be asked at once.
#[test]
fn requests_that_take_long_hold_no_other_client_up() {
    let (origin, place) = (Origin::start(), Place::new());
    let object = sample(16 << 20, 42);
    origin.put("/object", &object, "1");
    let url = origin.url("/object");
    let server = place.start(&origin, &["--requests-max", "4"]);
    let mut other = server.client();
    assert!(other.hello(&url).expect("an answer").is("OKOK"));
    assert!(other.read(&url, 0, 4096).expect("an answer").is_ok());
    let mut slow: Vec<Raw> = (0..2).map(|_| Raw::connect(&place)).collect();
    let handles: Vec<_> = slow.iter_mut().map(|client| client.open_now(&url).1).collect();
    origin.delay(Duration::from_secs(6));
    for (n, (client, opened)) in slow.iter_mut().zip(&handles).enumerate() {
        for read in 0..5 {
            let mut wants = Raw::range(&opened[..4], (2 + n as u64 * 5 + read) << 20, 4096);
            wants.push(0);
            client.say(3, &wants).expect("send");
        }
    }
    // Of another listener, and so another client; what it asks for is here.
    for _ in 0..20 {
        let got = other.read(&url, 0, 4096).expect("an answer").expect("OKOK");
        assert!(got[..4096] == object[..4096]);
    }
    // The first of the slow ones have not been answered yet.
    for client in &mut slow {
        client.stream.set_nonblocking(true).expect("a mode");
        let none = client.hear().expect_err("their source takes longer");
        assert_eq!(none.kind(), std::io::ErrorKind::WouldBlock);
        client.stream.set_nonblocking(false).expect("a mode");
    }
    // And all are in the end.
    origin.delay(Duration::ZERO);
    for client in &mut slow {
        for _ in 0..5 {
            assert_eq!(client.hear().expect("an answer").0, 131);
        }
    }
}

/// Requests of a source that does not answer had all turns of their client, and what the disk had waited
/// for them, as did other sources.
#[test]
fn a_source_that_does_not_answer_holds_up_no_hit_and_no_other_source() {
    let (origin, well, place) = (Origin::start(), Origin::start(), Place::new());
    let object = sample(3 << 20, 71);
    origin.put("/object", &object, "1");
    well.put("/object", &object, "1");
    let held = Page::Held(std::sync::Arc::new(object.clone()), "\"1\"".to_owned(), 0);
    origin.set("/held", held);
    let more = ["--requests-max", "8", "--memory-bytes", "16MiB", "--allow", well.base()];
    let server = place.start(&origin, &more);
    let wants = |handle: &[u8], offset: u64, file: u8| {
        let mut wants = Raw::range(handle, offset, 4096);
        wants.push(file);
        wants
    };
    let mut client = Raw::bare(&place);
    assert_eq!(client.ask(1, b"extmem-1\x03\0\0\0\0\0").0, 129, "a welcome");
    let (kind, here) = client.open_now(&origin.url("/object"));
    assert_eq!(kind, 130, "opened");
    client.until_a_file(&wants(&here[..4], 0, 1));
    let mut piece = here[..4].to_vec();
    piece.extend(0u64.to_le_bytes());
    assert_eq!(client.ask(6, &piece).0, 132, "memory");
    // What is on the disk, and neither in memory yet nor in a span.
    let mut other_piece = here[..4].to_vec();
    other_piece.extend((1u64 << 20).to_le_bytes());
    for at in (1 << 20..3 << 20).step_by(64 << 10) {
        client.until_a_file(&wants(&here[..4], at, 1));
    }
    let mut old = server.client();
    let url = origin.url("/object");
    assert!(old.hello(&url).expect("an answer").is("OKOK"));
    assert!(old.read(&url, 0, 4096).expect("an answer").is_ok());
    // More than one client may have worked on, in both protocols.
    let held = origin.url("/held");
    let mut slow: Vec<_> = (0..3).map(|_| (Raw::connect(&place), Vec::new())).collect();
    for (client, opened) in &mut slow {
        let (kind, answer) = client.open_now(&held);
        assert_eq!(kind, 130, "opened");
        *opened = answer;
    }
    let mut old_slow: Vec<_> = (0..6).map(|_| server.client()).collect();
    for client in &mut old_slow {
        assert!(client.hello(&held).expect("an answer").is("OKOK"));
    }
    for (n, (client, opened)) in slow.iter_mut().enumerate() {
        for read in 0..8 {
            let at = (n as u64 * 8 + read) * (64 << 10);
            client.say(3, &wants(&opened[..4], at, 0)).expect("send");
        }
    }
    for (n, client) in old_slow.iter_mut().enumerate() {
        let frame = crate::v000::frame(b"READ", n as u64 * (64 << 10), 4096, held.as_bytes());
        client.send(&frame).expect("send");
    }
    let in_time = Instant::now() + Duration::from_secs(20);
    while origin.count().0 < 3 {
        assert!(Instant::now() < in_time, "it was not asked for: {:?}", origin.count());
        std::thread::sleep(Duration::from_millis(5));
    }
    // By that its own clients see that it is there.
    slow[0].0.say(5, &u32::MAX.to_le_bytes()).expect("send");
    assert_eq!(slow[0].0.hear().expect("a sign").0, 133, "closed");
    for _ in 0..20 {
        assert_eq!(client.ask(3, &wants(&here[..4], 0, 1)).0, 132, "a file");
        let (kind, bytes) = client.ask(3, &wants(&here[..4], 0, 0));
        assert!(kind == 131 && bytes == object[..4096], "{kind}");
        assert_eq!(client.ask(6, &piece).0, 132, "memory");
        let bytes = old.read(&url, 0, 4096).expect("an answer").expect("OKOK");
        assert!(bytes == object[..bytes.len()]);
    }
    assert_eq!(client.ask(6, &other_piece).0, 132, "memory");
    // Files of so small a cache have 2 MiB.
    let across = (2 << 20) - 2048;
    let bytes = old.read(&url, across, 4096).expect("an answer").expect("OKOK");
    assert!(bytes.len() >= 4096 && object[across as usize..].starts_with(&bytes[..4096]));
    let (kind, other) = client.open_now(&well.url("/object"));
    assert_eq!(kind, 130, "opened");
    let (kind, bytes) = client.ask(3, &wants(&other[..4], 1 << 20, 0));
    assert!(kind == 131 && bytes == object[1 << 20..][..4096], "{kind}");
    origin.let_go();
}

/// It was fetched three times for the disk, which did not take it, and once more for the client; and
/// nobody was told.
#[test]
fn without_room_on_the_disk_bytes_are_fetched_once_and_people_told() {
    let (origin, place) = (Origin::start(), Place::new());
    let object = sample(16 << 20, 72);
    origin.put("/object", &object, "1");
    let (url, socket, cache) =
        (origin.url("/object"), place.socket(), place.folder.path().join("cache"));
    let server = Server::run(&[
        "--listen",
        "127.0.0.1:0",
        "--http",
        "127.0.0.1:0",
        "--free-bytes",
        "1000000TiB",
        "--max-bytes",
        "128MiB",
        "--allow",
        origin.base(),
        "--dir",
        cache.to_str().expect("text"),
        "--unix",
        socket.to_str().expect("text"),
    ]);
    let mut client = Raw::connect(&place);
    let (kind, opened) = client.open_now(&url);
    assert_eq!(kind, 130, "opened");
    for part in 0..16u64 {
        let mut wants = Raw::range(&opened[..4], part << 20, 1000);
        wants.push(1);
        let (kind, bytes) = client.ask(3, &wants);
        assert!(kind == 131 && bytes == object[(part as usize) << 20..][..1000], "{kind}");
    }
    // The first one found out.
    let (gets, bytes) = origin.count();
    assert!(gets <= 18 && bytes <= 4 << 20, "{gets} GETs, {bytes} bytes");
    let http = server.http.clone().expect("a page");
    let state: serde_json::Value =
        serde_json::from_str(&crate::page::get(&http, "/api/state")).expect("JSON");
    let told = state["failures"][0]["what"].as_str().unwrap_or_default();
    assert!(told.contains("no room") && told.contains("must stay free"), "{state:#}");
    // An answer of V000 is a file, and takes disk: there is none to spare.
    let mut old = server.client();
    assert!(old.hello(&url).expect("an answer").is("OKOK"));
    for offset in [0, 5 << 20] {
        assert!(old.ask(b"READ", offset, 65_000, &url).expect("an answer").is("FAIL"));
    }
    assert_eq!(std::fs::read_dir(cache.join("serve/spans")).expect("a folder").count(), 0);
    assert!(origin.count().0 <= gets + 2, "{:?}", origin.count());
}

/// One connection after the other that said nothing left no place for whoever knew the token.
#[test]
fn who_says_nothing_keeps_nobody_out() {
    let (origin, place) = (Origin::start(), Place::new());
    origin.put("/object", b"bytes", "1");
    let token = place.folder.path().join("token");
    std::fs::write(&token, "0123456789abcdef\n").expect("write");
    let token_file = token.to_str().expect("text");
    let args =
        ["--tcp", "127.0.0.1:0", "--token-file", token_file, "--connections-per-client", "8"];
    let server = place.start(&origin, &args);
    let tcp = server.tcp.clone().expect("an address");
    let connect = |address: &str| std::net::TcpStream::connect(address).expect("a connection");
    let silent: Vec<_> = (0..40).map(|_| connect(&tcp)).collect();
    let url = format!(
        "server+tcp://{tcp}?url={}&token_file={token_file}",
        origin.url("/object").replace('&', "%26")
    );
    runtime().block_on(async {
        let hasty = RetryPolicy { attempts_max: 1, ..RetryPolicy::default() };
        let source = Options::default().retry(hasty).open(&url).expect("a source");
        assert_eq!(read(&source, 0..5).await.expect("bytes"), b"bytes");
    });
    drop(silent);
    // V000, too; and who says nothing has ten seconds.
    let url = origin.url("/object");
    let mut silent: Vec<_> = (0..40).map(|_| connect(server.address())).collect();
    let mut client = server.client();
    assert!(client.hello(&url).expect("an answer").is("OKOK"));
    for stream in &mut silent {
        stream.set_read_timeout(Some(Duration::from_secs(40))).expect("a time");
        let end = stream.read(&mut [0]).map_err(|error| error.kind());
        assert!(matches!(end, Ok(0) | Err(std::io::ErrorKind::ConnectionReset)), "{end:?}");
    }
    // Who has said something may be silent.
    assert!(client.read(&url, 0, 1).expect("an answer").is_ok());
}

/// The pieces of what cannot be told from its next version are never mapped: to try later was no use.
#[test]
fn memory_of_a_weak_version_is_refused_for_good() {
    let (origin, place) = (Origin::start(), Place::new());
    origin.set("/bare", Page::Bare(std::sync::Arc::new(sample(100_000, 73))));
    let _server = place.start(&origin, &["--memory-bytes", "16MiB"]);
    let mut client = Raw::bare(&place);
    assert_eq!(client.ask(1, b"extmem-1\x03\0\0\0\0\0").0, 129, "a welcome");
    let (kind, opened) = client.open_now(&origin.url("/bare"));
    assert_eq!(kind, 130, "opened");
    let mut piece = opened[..4].to_vec();
    piece.extend(0u64.to_le_bytes());
    let (kind, body) = client.ask(6, &piece);
    assert_eq!((kind, &body[..2]), (255, &[7, 0][..]), "never");
}

/// What breaks the rules is told so, before the hello and after it.
#[test]
fn frames_that_break_the_rules_are_told_so() {
    let (origin, place) = (Origin::start(), Place::new());
    let _server = place.start(&origin, &[]);
    let refused = |client: &mut Raw, says: &str| {
        let (kind, body) = client.hear().expect("an answer");
        assert_eq!((kind, &body[..2]), (255, &[9, 0][..]), "malformed");
        let text = String::from_utf8_lossy(&body[8..]).into_owned();
        assert!(text.contains(says), "{text}");
        assert!(client.hear().is_err(), "and closed");
    };
    // Too long, before the hello.
    let mut client = Raw::bare(&place);
    client.stream.write_all(&[0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).expect("send");
    refused(&mut client, "too long");
    // A text that is too long in a frame that is not: an address, and a version.
    let long = "x".repeat(9000);
    let mut client = Raw::connect(&place);
    let mut body = vec![0];
    body.extend((long.len() as u16).to_le_bytes());
    body.extend(long.as_bytes());
    client.say(2, &body).expect("send");
    refused(&mut client, "too long");
    let mut client = Raw::connect(&place);
    let mut body = vec![1];
    body.extend(5u64.to_le_bytes());
    body.push(1);
    for text in [long.as_str(), "s3://bucket/key"] {
        body.extend((text.len() as u16).to_le_bytes());
        body.extend(text.as_bytes());
    }
    client.say(2, &body).expect("send");
    refused(&mut client, "too long");
    // Half a frame, after the hello and before it.
    let (mut after, mut before) = (Raw::connect(&place), Raw::bare(&place));
    for client in [&mut after, &mut before] {
        client.stream.write_all(&[4, 0, 0]).expect("send");
    }
    refused(&mut after, "10s after its first byte");
    refused(&mut before, "10s");
}

/// A server that is started anew is away for longer than eight attempts took.
#[test]
fn a_server_that_is_started_anew_is_waited_for() {
    let (origin, place) = (Origin::start(), Place::new());
    let object = sample(300_000, 74);
    origin.put("/object", &object, "1");
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("extmem"));
    command.args(["cat", &origin.url("/object")]);
    command.env("EXTMEM_SERVER", format!("unix://{}", place.socket().display()));
    let child = command.stdout(std::process::Stdio::piped()).spawn().expect("a client");
    // The waits between eight attempts are 6.35 s at most: it had given up by then.
    std::thread::sleep(Duration::from_secs(10));
    let _server = place.start(&origin, &[]);
    let output = child.wait_with_output().expect("an end");
    assert!(output.status.success() && output.stdout == object, "{:?}", output.status);
}

/// It was tried eight times, as if it might be right the next time.
#[test]
fn a_wrong_token_is_no_reason_to_try_again() {
    let (origin, place) = (Origin::start(), Place::new());
    origin.put("/object", b"bytes", "1");
    let (right, wrong) = (place.folder.path().join("right"), place.folder.path().join("wrong"));
    std::fs::write(&right, "0123456789abcdef\n").expect("write");
    std::fs::write(&wrong, "fedcba9876543210\n").expect("write");
    let token = ["--token-file", right.to_str().expect("text")];
    let args = [&["--tcp", "127.0.0.1:0", "--http", "127.0.0.1:0"], &token[..]].concat();
    let server = place.start(&origin, &args);
    let tcp = server.tcp.clone().expect("an address");
    for (options, says) in [
        (String::new(), "?token_file="),
        (format!("?token_file={}", wrong.display()), "--token-file"),
    ] {
        let mut cat = crate::extmem();
        cat.env("EXTMEM_SERVER", format!("tcp://{tcp}{options}"));
        let output = cat.args(["cat", &origin.url("/object")]).output().expect("output");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(says) && !text.contains("attempt"), "{text}");
    }
    // Whoever runs the server hears of it.
    let http = server.http.clone().expect("a page");
    let metrics = crate::page::get(&http, "/metrics");
    let denied = crate::page::metric(&metrics, "extmem_connections_total{what=\"denied\"}");
    assert_eq!(denied, 2.0);
    let state: serde_json::Value =
        serde_json::from_str(&crate::page::get(&http, "/api/state")).expect("JSON");
    assert_eq!(state["connections"]["denied"], 2);
    let told = state["failures"].as_array().expect("a list").iter();
    let told = told.filter(|one| one["what"].as_str().expect("text").contains("token"));
    assert_eq!(told.map(|one| one["times"].as_u64().expect("times")).sum::<u64>(), 2);
}

/// A client that is killed leaves nothing behind, in the cache or at the server.
#[test]
fn clients_that_are_killed_leave_nothing_behind() {
    let (origin, place) = (Origin::start(), Place::new());
    let object = sample(24_000_000, 43);
    origin.put("/object", &object, "1");
    let url = origin.url("/object");
    let server = place.start(&origin, &[]);
    let name = format!("unix://{}", place.socket().display());
    let before = server.descriptors();
    for round in 1..=6u64 {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("extmem"));
        command.args(["cat", &url]).env("EXTMEM_SERVER", &name);
        let mut child = command.stdout(std::process::Stdio::piped()).spawn().expect("a client");
        // In the middle of its work: it waits for this end to read more.
        let mut some = vec![0; (round * 1_000_000) as usize];
        child.stdout.as_mut().expect("its output").read_exact(&mut some).expect("bytes");
        assert!(some == object[..some.len()]);
        child.kill().expect("kill -9");
        child.wait().expect("it is dead");
    }
    let mut all = crate::extmem();
    let output = all.args(["cat", &url]).env("EXTMEM_SERVER", &name).output().expect("output");
    assert!(output.stdout == object, "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(origin.count().1, object.len() as u64, "every byte once");
    // Files of the cache and connections to the source are kept; clients are not.
    let in_time = Instant::now() + Duration::from_secs(20);
    while server.descriptors() > before + 64 {
        assert!(Instant::now() < in_time, "{} after {before}", server.descriptors());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(server.stop(), Some(0));
    let cache = place.folder.path().join("cache");
    let checked = crate::extmem().args(["cache", "verify", "--dir"]).arg(cache).output();
    assert!(checked.expect("verify").status.success());
}

/// Whatever comes in, the others are served.
#[test]
fn broken_frames_and_slow_readers_hold_nobody_up() {
    let (origin, place) = (Origin::start(), Place::new());
    let object = sample(8_000_000, 26);
    origin.put("/object", &object, "1");
    let server = place.start(&origin, &[]);
    let hello = b"\x0e\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0extmem-1\0\0\0\0\0\0";
    let connect = || {
        let stream = UnixStream::connect(place.socket()).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a time");
        stream
    };
    let frame = |kind: u8, id: u8, body: &[u8]| {
        let mut frame = (body.len() as u32).to_le_bytes().to_vec();
        frame.extend([kind, 0, 0, 0, id, 0, 0, 0, 0, 0, 0, 0]);
        frame.extend(body);
        frame
    };
    let mut state = 1u64;
    for round in 0..200 {
        let mut stream = connect();
        if round % 2 == 0 {
            stream.write_all(hello).expect("send");
        }
        let mut bytes = Vec::new();
        for _ in 0..1 + round % 60 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            bytes.push((state >> 40) as u8);
        }
        if round % 3 == 0 {
            // A short length makes it a whole frame.
            bytes.splice(..bytes.len().min(4), [5, 0, 0, 0]);
        }
        let _ = stream.write_all(&bytes);
        if round % 5 == 0 {
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = stream.read_to_end(&mut Vec::new());
        }
    }
    // One that is as it should be, and asks for much, and reads nothing.
    let mut slow = connect();
    slow.write_all(hello).expect("send");
    let url = origin.url("/object");
    let mut open = vec![0];
    open.extend((url.len() as u16).to_le_bytes());
    open.extend(url.as_bytes());
    slow.write_all(&frame(2, 1, &open)).expect("send");
    let mut welcome = [0; 32];
    slow.read_exact(&mut welcome).expect("a welcome");
    let mut head = [0; 16];
    slow.read_exact(&mut head).expect("opened");
    let mut opened = vec![0; u32::from_le_bytes(head[..4].try_into().unwrap()) as usize];
    slow.read_exact(&mut opened).expect("opened");
    let mut wants = opened[..4].to_vec();
    wants.extend(0u64.to_le_bytes());
    wants.extend((4u64 << 20).to_le_bytes());
    wants.push(0);
    slow.set_write_timeout(Some(Duration::from_millis(200))).expect("a time");
    for id in 0..100 {
        if slow.write_all(&frame(3, id, &wants)).is_err() {
            break;
        }
    }
    let began = Instant::now();
    let through = place.url(&url, "");
    runtime().block_on(async {
        let source = quick().open(&through).expect("a source");
        assert!(read(&source, 0..8_000_000).await.expect("bytes") == object);
    });
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    // It is given up after a while; what it gets until then is right.
    let mut got = Vec::new();
    std::thread::sleep(Duration::from_secs(11));
    let _ = slow.read_to_end(&mut got);
    assert!(got.len() < 40 << 20, "{} bytes", got.len());
    let kib = server.peak_kib();
    assert!(kib < 300 << 10, "{kib} KiB at most");
    assert_eq!(server.stop(), Some(0));
}
