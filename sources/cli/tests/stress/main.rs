//! Two hundred clients of both protocols, most of whom behave badly, while the server is killed and
//! comes back: no wrong byte, nobody stuck, nothing left open.
//!
//! `EXTMEM_STRESS_SECONDS` says for how long; 10 if it says nothing. A program of its own: other
//! tests beside it would have no disk and no processor left.

#[allow(dead_code, reason = "shared with the other tests")]
#[path = "../it/origin.rs"]
mod origin;
#[path = "../it/v000.rs"]
mod v000;

use std::{
    collections::BTreeMap,
    fs,
    io::{self, BufRead, BufReader, ErrorKind, Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use futures::TryStreamExt;
use sources::{Options, RetryPolicy};

use crate::{
    origin::{Origin, sample},
    v000::{Client, frame},
};

/// Threads, each a client of V000 or of our own protocol, and tasks that read through the library.
const OF_V000: u64 = 90;
const OF_BLOCKS: u64 = 80;
const OF_LIBRARY: u64 = 30;
/// No answer after so long: stuck. The server may take 10 s, and its source a moment.
const STUCK: Duration = Duration::from_secs(25);
const KILLS: u32 = 4;

/// A server in a process of its own.
struct Server(Child);

fn program() -> PathBuf {
    assert_cmd::cargo::cargo_bin!("extmem").to_path_buf()
}

impl Server {
    /// Waits until it says that it is ready.
    fn start(mut command: Command) -> Server {
        command.env_remove("EXTMEM_CACHE_KEY").env_remove("EXTMEM_CACHE_KEY_FILE");
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        let mut server = Server(command.spawn().expect("the server"));
        let lines = BufReader::new(server.0.stdout.take().expect("its output")).lines();
        assert!(lines.map_while(Result::ok).any(|line| line == "extmem: ready"), "it ended");
        server
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    fn kill(mut self) {
        self.0.kill().expect("kill -9");
        self.0.wait().expect("it is dead");
    }

    /// SIGTERM. Returns the exit code.
    fn stop(mut self) -> Option<i32> {
        let pid = self.pid().to_string();
        assert!(Command::new("kill").arg(&pid).status().expect("kill").success());
        self.0.wait().expect("an end").code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What all clients know.
struct Shared {
    object: Vec<u8>,
    url: String,
    tcp: String,
    unix: PathBuf,
    http: String,
    end: Instant,
    /// Answers that were right, of V000, of blocks, through the library, of the page.
    right: [AtomicU64; 4],
    /// Set while no server is there: then anything may fail.
    stopped: AtomicBool,
}

struct Dice(u64);

impl Dice {
    fn below(&mut self, below: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

impl Shared {
    fn is_over(&self) -> bool {
        Instant::now() >= self.end
    }

    fn check(&self, at: u64, got: &[u8], who: usize) {
        assert!(got == &self.object[at as usize..][..got.len()], "wrong bytes at {at}");
        self.right[who].fetch_add(1, Relaxed);
    }
}

/// A connection that failed is over; one that is silent is a mistake of the server.
fn is_lost(error: &io::Error) {
    let silent = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
    assert!(!silent, "no answer in {STUCK:?}");
}

/// A wait between attempts, while there is no server.
fn pause() {
    thread::sleep(Duration::from_millis(20));
}

fn client_of_v000(shared: &Shared, dice: &mut Dice) -> io::Result<()> {
    let mut client = Client::connect(&shared.tcp)?;
    client.stream.set_read_timeout(Some(STUCK))?;
    let url = &shared.url;
    if dice.below(3) > 0 {
        client.hello(url)?;
    }
    for _ in 0..dice.below(20) {
        let at = dice.below(shared.object.len() as u64 - 1);
        match dice.below(40) {
            // Half a frame, one that is too long, one whose answer nobody waits for, nothing at all.
            0 => return client.send(b"READ\x01\x02"),
            1 => {
                let mut bad = frame(b"READ", at, 1, b"");
                bad[20..].fill(0xff);
                client.send(&bad)?;
                let reply = client.reply()?;
                assert!(reply.is("FAIL"), "{reply:?}");
                return Ok(());
            }
            2 => return client.send(&frame(b"READ", at, 4096, url.as_bytes())),
            3 => return Ok(()),
            _ => match client.read(url, at, 1 + dice.below(20_000))? {
                // A version that is unclear, or a source or a disk in trouble.
                Err(reply) => assert!(reply.is("FAIL"), "{reply:?}"),
                Ok(got) => shared.check(at, &got, 0),
            },
        }
    }
    client.send(&frame(b"EXIT", 0, 0, b""))
}

/// A connection of our own protocol, made by hand.
struct Blocks(UnixStream);

impl Blocks {
    fn send(&mut self, kind: u8, id: u64, body: &[u8]) -> io::Result<()> {
        let mut bytes = (body.len() as u32).to_le_bytes().to_vec();
        bytes.extend([kind, 0, 0, 0]);
        bytes.extend(id.to_le_bytes());
        bytes.extend(body);
        self.0.write_all(&bytes)
    }

    fn receive(&mut self) -> io::Result<(u8, u64, Vec<u8>)> {
        let mut head = [0; 16];
        self.0.read_exact(&mut head)?;
        let len = u32::from_le_bytes(head[..4].try_into().expect("4 bytes")) as usize;
        assert!(len <= 4 << 20, "a body of {len} bytes");
        let mut body = vec![0; len];
        self.0.read_exact(&mut body)?;
        Ok((head[4], u64::from_le_bytes(head[8..].try_into().expect("8 bytes")), body))
    }
}

fn client_of_blocks(shared: &Shared, dice: &mut Dice) -> io::Result<()> {
    let mut client = Blocks(UnixStream::connect(&shared.unix)?);
    client.0.set_read_timeout(Some(STUCK))?;
    client.0.set_write_timeout(Some(STUCK))?;
    if dice.below(30) == 0 {
        // No hello.
        return client.send(3, 1, &[0; 21]);
    }
    client.send(1, 0, b"extmem-1\0\0\0\0\0\0")?;
    assert_eq!(client.receive()?.0, 129);
    let mut open = vec![0];
    open.extend((shared.url.len() as u16).to_le_bytes());
    open.extend(shared.url.as_bytes());
    client.send(2, 1, &open)?;
    let (kind, _, opened) = client.receive()?;
    if kind != 130 {
        assert_eq!(kind, 255, "neither opened nor failed");
        return Ok(());
    }
    let read = |at: u64, len: u64| {
        let mut body = opened[..4].to_vec();
        body.extend(at.to_le_bytes());
        body.extend(len.to_le_bytes());
        body.push(0);
        body
    };
    for _ in 0..dice.below(12) {
        match dice.below(30) {
            0 => return client.0.write_all(&[21, 0, 0, 0, 3, 0]),
            1 => {
                // A body of 4 GiB, then nothing of it.
                client
                    .0
                    .write_all(&[0xff, 0xff, 0xff, 0xff, 3, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0])?;
                assert_eq!(client.receive()?.0, 255, "it is refused");
                return Ok(());
            }
            2 => return Ok(()),
            3 => {
                // Past the end, and a handle that is none: refused, and the connection stays.
                client.send(3, 7, &read(u64::MAX - 5, 100))?;
                assert_eq!(client.receive()?.0, 255);
                client.send(5, 8, &[0xee; 4])?;
                assert_eq!(client.receive()?.0, 133);
            }
            _ => {
                // Some side by side, of whom the client may not wait for all.
                let mut asked = BTreeMap::new();
                for id in 0..1 + dice.below(8) {
                    let at = dice.below(shared.object.len() as u64 - 40_000);
                    let len = 1 + dice.below(40_000);
                    client.send(3, id, &read(at, len))?;
                    asked.insert(id, (at, len));
                }
                if dice.below(20) == 0 {
                    return Ok(());
                }
                while !asked.is_empty() {
                    let (kind, id, body) = client.receive()?;
                    let (at, len) = asked.remove(&id).expect("one that was asked for");
                    if kind == 131 {
                        assert_eq!(body.len() as u64, len);
                        shared.check(at, &body, 1);
                    } else {
                        assert_eq!(kind, 255);
                    }
                }
            }
        }
    }
    Ok(())
}

fn thread_of(
    shared: &Arc<Shared>,
    seed: u64,
    client: fn(&Shared, &mut Dice) -> io::Result<()>,
) -> JoinHandle<()> {
    let shared = shared.clone();
    thread::spawn(move || {
        let mut dice = Dice(seed);
        while !shared.is_over() {
            if let Err(error) = client(&shared, &mut dice) {
                is_lost(&error);
                pause();
            }
        }
    })
}

/// The client of `sources`, with descriptors; it is told to be patient, so every read must succeed.
fn through_the_library(shared: &Arc<Shared>) -> JoinHandle<()> {
    let shared = shared.clone();
    thread::spawn(move || {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(2).enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut tasks = tokio::task::JoinSet::new();
            for seed in 0..OF_LIBRARY {
                let shared = shared.clone();
                tasks.spawn(async move {
                    let mut dice = Dice(seed ^ 0xabcd);
                    let url = format!("server+unix://{}?url={}", shared.unix.display(), shared.url);
                    while !shared.is_over() {
                        let backoff_max = Duration::from_millis(100);
                        let patient = RetryPolicy {
                            attempts_max: 500,
                            backoff_max,
                            ..RetryPolicy::default()
                        };
                        let source =
                            Options::default().retry(patient).open(&url).expect("a source");
                        let version = source.stat().await.expect("stat").version;
                        for _ in 0..dice.below(30) {
                            let at = dice.below(shared.object.len() as u64 - 300_000);
                            let end = at + 1 + dice.below(300_000);
                            let read = async {
                                let mut body = source.read(&version, at..end).await?;
                                let mut got = Vec::new();
                                while let Some(chunk) = body.try_next().await? {
                                    got.extend(chunk);
                                }
                                Ok::<_, sources::SourceError>(got)
                            };
                            if dice.below(20) == 0 {
                                // Half a read is dropped.
                                let _ =
                                    tokio::time::timeout(Duration::from_micros(200), read).await;
                                continue;
                            }
                            let got =
                                tokio::time::timeout(STUCK * 2, read).await.expect("it is stuck");
                            shared.check(at, &got.expect("bytes"), 2);
                        }
                    }
                });
            }
            while let Some(done) = tasks.join_next().await {
                done.expect("a client");
            }
        });
    })
}

/// Looks at the page all the time.
fn watcher(shared: &Arc<Shared>) -> JoinHandle<()> {
    let shared = shared.clone();
    thread::spawn(move || {
        let ask = |path: &str| -> io::Result<String> {
            let mut stream = TcpStream::connect(&shared.http)?;
            stream.set_read_timeout(Some(STUCK))?;
            let http = &shared.http;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: {http}\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            answer
                .split_once("\r\n\r\n")
                .map(|(_, body)| body.to_owned())
                .ok_or(ErrorKind::UnexpectedEof.into())
        };
        while !shared.is_over() {
            match ask("/api/state") {
                Ok(body) => {
                    // A server that was killed may have said half of it.
                    match serde_json::from_str::<serde_json::Value>(&body) {
                        Ok(state) => {
                            assert!(state["clients"].as_array().expect("clients").len() <= 50);
                            shared.right[3].fetch_add(1, Relaxed);
                        }
                        Err(error) => assert!(shared.stopped.load(Relaxed), "{error}: {body}"),
                    }
                }
                Err(error) => is_lost(&error),
            }
            thread::sleep(Duration::from_millis(50));
        }
    })
}

/// What a process has open, apart from the files of its cache and connections to `origin`, which are
/// kept for the next request.
fn open_files(pid: u32, cache: &Path, origin: &Origin) -> Vec<String> {
    let port: u16 = origin.base().rsplit_once(':').expect("a port").1.parse().expect("a number");
    let table = fs::read_to_string("/proc/net/tcp").expect("/proc");
    let to_origin: Vec<String> = table
        .lines()
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let is_there = words[2].ends_with(&format!(":{port:04X}"));
            is_there.then(|| format!("socket:[{}]", words[9]))
        })
        .collect();
    let folder = fs::read_dir(format!("/proc/{pid}/fd")).expect("/proc");
    let links = folder.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    let others = links.filter(|link| !link.starts_with(cache));
    let others = others.map(|link| link.display().to_string());
    others.filter(|link| !to_origin.contains(link)).collect()
}

#[test]
fn no_wrong_byte_nobody_stuck_nothing_left_open() {
    let seconds = std::env::var("EXTMEM_STRESS_SECONDS").ok().and_then(|text| text.parse().ok());
    let seconds: u32 = seconds.unwrap_or(10);
    let (origin, folder) = (Origin::start(), tempfile::tempdir().expect("a folder"));
    let object = sample(30_000_000, 41);
    origin.put("/object", &object, "1");
    let cache = folder.path().join("cache");
    let unix = folder.path().join("extmem.sock");
    let free = || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.local_addr().expect("an address").to_string()
    };
    let (tcp, http) = (free(), free());
    let start = || {
        let mut command = Command::new(program());
        command.args(["serve", "--free-bytes", "0", "--max-bytes", "48MiB", "--dir"]).arg(&cache);
        command.args(["--allow", origin.base(), "--listen", &tcp, "--http", &http, "--unix"]);
        command.arg(&unix);
        Server::start(command)
    };
    let mut server = start();
    let shared = Arc::new(Shared {
        url: origin.url("/object"),
        object,
        tcp: tcp.clone(),
        unix: unix.clone(),
        http: http.clone(),
        end: Instant::now() + Duration::from_secs(seconds.into()),
        right: Default::default(),
        stopped: AtomicBool::new(false),
    });
    let mut clients: Vec<_> =
        (0..OF_V000).map(|seed| thread_of(&shared, seed * 7919, client_of_v000)).collect();
    clients.extend((0..OF_BLOCKS).map(|seed| thread_of(&shared, seed * 104_729, client_of_blocks)));
    clients.push(through_the_library(&shared));
    clients.push(watcher(&shared));
    for _ in 0..KILLS {
        thread::sleep(Duration::from_secs(seconds.into()) / (KILLS + 1));
        shared.stopped.store(true, Relaxed);
        server.kill();
        server = start();
        shared.stopped.store(false, Relaxed);
    }
    for client in clients {
        client.join().expect("a client");
    }
    let right: Vec<u64> = shared.right.iter().map(|count| count.load(Relaxed)).collect();
    println!("right answers of V000, blocks, the library, the page: {right:?}");
    let least = [OF_V000, OF_BLOCKS, OF_LIBRARY, u64::from(seconds)];
    for (who, (&got, least)) in right.iter().zip(least).enumerate() {
        assert!(got > least, "too few answers of {who}: {right:?}");
    }
    // All have left, and this one is as a new one is: what it has open besides the cache is what
    // another has that nobody ever spoke to.
    let elsewhere = tempfile::tempdir().expect("a folder");
    let socket = elsewhere.path().join("extmem.sock");
    let mut command = Command::new(program());
    command.args(["serve", "--free-bytes", "0", "--listen", "127.0.0.1:0", "--dir"]);
    command.arg(elsewhere.path()).args(["--http", "127.0.0.1:0", "--unix"]).arg(socket);
    let fresh = Server::start(command);
    let expected = open_files(fresh.pid(), elsewhere.path(), &origin).len();
    let in_time = Instant::now() + Duration::from_secs(20);
    loop {
        let open = open_files(server.pid(), &cache, &origin);
        if open.len() <= expected {
            break;
        }
        assert!(Instant::now() < in_time, "{expected} expected, open are {open:#?}");
        thread::sleep(Duration::from_millis(100));
    }
    let all = fs::read_dir(format!("/proc/{}/fd", server.pid())).expect("/proc").count();
    assert!(all < 200, "{all} descriptors, with those of the cache");
    let mut last = Client::connect(&tcp).expect("a connection");
    last.hello(&shared.url).expect("an answer");
    let got = last.read(&shared.url, 12_345_678, 4096).expect("an answer").expect("OKOK");
    shared.check(12_345_678, &got, 0);
    drop(last);
    assert_eq!(server.stop(), Some(0));
    let checked = Command::new(program()).args(["cache", "verify", "--dir"]).arg(&cache).output();
    let checked = checked.expect("verify");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}
