//! `extmem serve`: objects mapped by many, in memory once.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use pager::{BlockSource, SourceError, Version};
use sources::server::{
    Link, Place, Served, ServedMap,
    frames::{Answer, Code, HEAD_BYTES, Head, MEMORY, Request},
    socket::{Incoming, Socket},
};

use crate::{
    origin::{Origin, sample},
    page::{get, metric},
    serve::Server,
};

fn socket(folder: &Path) -> PathBuf {
    folder.join("extmem.sock")
}

fn start(folder: &Path, origin: &Origin, memory: &str) -> Server {
    start_with(folder, origin, memory, &[])
}

fn start_with(folder: &Path, origin: &Origin, memory: &str, more: &[&str]) -> Server {
    let socket = socket(folder);
    let args =
        ["--allow", origin.base(), "--max-bytes", "128MiB", "--memory-bytes", memory, "--unix"];
    let args = [&args[..], &[socket.to_str().expect("text")], more].concat();
    Server::start(&folder.join("cache"), &args)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// A client with a connection of its own.
fn served(folder: &Path, url: &str) -> Served {
    let link = Link::new(Place::Unix(socket(folder)), String::new());
    Served::new(url, url, link).expect("a source")
}

async fn map(folder: &Path, url: &str) -> Result<ServedMap, SourceError> {
    let served = served(folder, url);
    let version = served.stat().await?.version;
    is_send(served.map(&version)).await
}

/// Whoever maps may do so in a task.
fn is_send<T: Send>(value: T) -> T {
    value
}

/// How often this process has mapped each memory file of a server, by its inode.
fn mapped() -> BTreeMap<String, usize> {
    let maps = fs::read_to_string("/proc/self/maps").expect("/proc");
    let mut count = BTreeMap::new();
    for line in maps.lines().filter(|line| line.contains("memfd:extmem")) {
        let inode = line.split_whitespace().nth(4).expect("an inode").to_owned();
        *count.entry(inode).or_default() += 1;
    }
    count
}

/// How often this process has each file of a cache open.
fn open_below(folder: &Path) -> BTreeMap<PathBuf, usize> {
    let folder = folder.canonicalize().expect("a folder");
    let mut count = BTreeMap::new();
    for one in fs::read_dir("/proc/self/fd").expect("/proc").flatten() {
        // What others close meanwhile has no name.
        let Ok(path) = fs::read_link(one.path()) else { continue };
        if path.starts_with(folder.join("cache")) {
            *count.entry(path).or_default() += 1;
        }
    }
    count
}

/// Nobody has to know of `--memory-bytes`: there was none unless somebody did.
#[test]
fn a_server_has_memory_where_nothing_is_said() {
    let (origin, folder) = (Origin::start(), tempfile::tempdir().expect("a folder"));
    let object = sample(3_000_000, 62);
    origin.put("/object", &object, "1");
    let socket = socket(folder.path());
    let args = ["--allow", origin.base(), "--http", "127.0.0.1:0", "--unix"];
    let args = [&args[..], &[socket.to_str().expect("text")]].concat();
    let server = Server::start(&folder.path().join("cache"), &args);
    let url = origin.url("/object");
    let metrics = || get(server.http.as_deref().expect("a page"), "/metrics");
    let room = metric(&metrics(), "extmem_memory_max_bytes");
    let total = fs::read_to_string("/proc/meminfo").expect("/proc");
    let total = total.lines().find_map(|line| line.strip_prefix("MemTotal:")).expect("a line");
    let total: f64 = total.trim().trim_end_matches(" kB").parse().expect("a number");
    assert!(room > 0.0 && room <= total * 1024.0 / 4.0, "{room} of {total} KiB");
    assert_eq!(metric(&metrics(), "extmem_memory_bytes"), 0.0, "none is taken yet");
    runtime().block_on(async {
        let mapped = map(folder.path(), &url).await.expect("a map");
        assert!(mapped[..] == object);
    });
    assert_eq!(metric(&metrics(), "extmem_memory_bytes"), 3_002_368.0, "whole pages");
    let lines = server.lines.join("\n");
    assert!(lines.contains("for clients that map objects"), "{lines}");
}

#[test]
fn an_object_is_in_memory_once_however_many_map_it() {
    let (origin, folder) = (Origin::start(), tempfile::tempdir().expect("a folder"));
    let object = sample(5_000_001, 51);
    origin.put("/object", &object, "1");
    origin.put("/empty", &[], "1");
    let url = origin.url("/object");
    let server = start(folder.path(), &origin, "16MiB");
    runtime().block_on(async {
        let maps = futures::future::join_all((0..4).map(|_| map(folder.path(), &url))).await;
        let maps: Vec<_> = maps.into_iter().map(|map| map.expect("a map")).collect();
        for map in &maps {
            assert!(map[..] == object);
        }
        assert_eq!(origin.count().1, object.len() as u64, "every byte once");
        let inodes = mapped();
        assert_eq!(inodes.len(), 5, "pieces of 1 MiB: {inodes:?}");
        assert!(inodes.values().all(|times| *times == 4), "the same memory for all: {inodes:?}");
        assert!(map(folder.path(), &origin.url("/empty")).await.expect("a map").is_empty());
        // Whatever happens to the server.
        server.kill();
        for map in &maps {
            assert!(map[..] == object);
        }
    });
}

#[test]
fn memory_is_bounded_and_comes_back_when_clients_leave() {
    let (origin, folder) = (Origin::start(), tempfile::tempdir().expect("a folder"));
    let (one, two, large) = (sample(3_000_000, 52), sample(3_000_000, 53), sample(5_000_000, 54));
    origin.put("/one", &one, "1");
    origin.put("/two", &two, "1");
    origin.put("/large", &large, "1");
    let _server = start(folder.path(), &origin, "4MiB");
    let url = |name: &str| origin.url(name);
    runtime().block_on(async {
        let first = map(folder.path(), &url("/one")).await.expect("a map");
        let full = map(folder.path(), &url("/two")).await.map(drop).expect_err("no room");
        let text = full.to_string();
        assert!(
            matches!(full, SourceError::Permanent { .. }) && text.contains("mapped by"),
            "{text}"
        );
        assert!(
            text.contains("a region over the same source") && text.contains("2.9 MiB"),
            "{text}"
        );
        // Others read all the same: as files, which are in the page cache once for all of them.
        let before = origin.count().1;
        let sources = [served(folder.path(), &url("/two")), served(folder.path(), &url("/two"))];
        let in_time = Instant::now() + Duration::from_secs(20);
        loop {
            for source in &sources {
                let version = source.stat().await.expect("stat").version;
                let frame = pager::Frame::with_capacity(3_000_000);
                let frame = source.read_into(&version, 0..3_000_000, frame).await.expect("bytes");
                assert!(frame.filled() == two);
            }
            // On its way to the disk it is bytes. Of the last file, which has one block of it, there is a
            // descriptor for each.
            let open = open_below(folder.path());
            if open.len() == 2 && open.values().all(|times| *times >= 2) {
                break;
            }
            assert!(Instant::now() < in_time, "{open:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(origin.count().1 - before <= two.len() as u64, "no byte twice");
        assert!(first[..] == one);
        drop(first);
        // As soon as the server has seen that the client is gone.
        let in_time = Instant::now() + Duration::from_secs(10);
        let second = loop {
            match map(folder.path(), &url("/two")).await {
                Ok(map) => break map,
                Err(error) => assert!(Instant::now() < in_time, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert!(second[..] == two);
        drop(second);
        let never = map(folder.path(), &url("/large")).await.map(drop).expect_err("too large");
        assert!(matches!(never, SourceError::Permanent { .. }), "{never}");
    });
}

/// A map that outlives its connection was nobody's: others were given the same room again.
#[test]
fn what_is_mapped_counts_as_long_as_it_is() {
    let (origin, folder) = (Origin::start(), tempfile::tempdir().expect("a folder"));
    let (one, two) = (sample(3_000_000, 58), sample(3_000_000, 59));
    origin.put("/one", &one, "1");
    origin.put("/two", &two, "1");
    let server = start_with(folder.path(), &origin, "4MiB", &["--http", "127.0.0.1:0"]);
    let first = runtime().block_on(map(folder.path(), &origin.url("/one"))).expect("a map");
    // Its connection went with its runtime.
    let in_time = Instant::now() + Duration::from_secs(20);
    let http = server.http.as_deref().expect("a page");
    let connections = || metric(&get(http, "/metrics"), "extmem_connections{protocol=\"blocks\"}");
    while connections() > 0.0 {
        assert!(Instant::now() < in_time, "{} connections", connections());
        std::thread::sleep(Duration::from_millis(20));
    }
    runtime().block_on(async {
        let full = map(folder.path(), &origin.url("/two")).await.map(drop).expect_err("no room");
        assert!(full.to_string().contains("mapped by"), "{full}");
        assert!(first[..] == one);
        // The pieces that there was room for go with their connection.
        drop(first);
        let in_time = Instant::now() + Duration::from_secs(20);
        let second = loop {
            match map(folder.path(), &origin.url("/two")).await {
                Ok(map) => break map,
                Err(error) => assert!(Instant::now() < in_time, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert!(second[..] == two);
    });
}

/// What a map was given stayed given as long as the link lived, which many objects share: one after
/// the other, or one attempt too large, took the memory from everybody.
#[test]
fn maps_of_one_link_give_their_memory_back() {
    let (origin, folder) = (Origin::start(), tempfile::tempdir().expect("a folder"));
    let _server = start(folder.path(), &origin, "4MiB");
    let link = Link::new(Place::Unix(socket(folder.path())), String::new());
    runtime().block_on(async {
        for (n, len) in [(0, 3_000_000), (1, 3_000_000), (2, 5_000_000), (3, 3_000_000)] {
            let (path, object) = (format!("/{n}"), sample(len, n));
            origin.put(&path, &object, "1");
            let url = origin.url(&path);
            let served = Served::new(&url, &url, link.clone()).expect("a source");
            let version = served.stat().await.expect("stat").version;
            let in_time = Instant::now() + Duration::from_secs(20);
            // As soon as the server has seen that the map before is gone.
            loop {
                match served.map(&version).await {
                    Ok(map) => {
                        assert!(len < 4 << 20 && map[..] == object, "{n}");
                        break;
                    }
                    Err(error) if len > 4 << 20 => {
                        assert!(matches!(error, SourceError::Permanent { .. }), "{error}");
                        break;
                    }
                    Err(error) => assert!(Instant::now() < in_time, "{n}: {error}"),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    });
}

#[test]
fn what_cannot_be_mapped_is_said() {
    let (origin, folder) = (Origin::start(), tempfile::tempdir().expect("a folder"));
    let object = sample(3_000_000, 55);
    origin.put("/object", &object, "old");
    let url = origin.url("/object");
    let server = start(folder.path(), &origin, "0B");
    runtime().block_on(async {
        let error = map(folder.path(), &url).await.map(drop).expect_err("no memory");
        let text = error.to_string();
        assert!(text.contains("--memory-bytes") && text.contains("a region over"), "{text}");
        // And it does.
        origin.put("/other", &object, "1");
        let source = served(folder.path(), &origin.url("/other"));
        let read = tokio::task::spawn_blocking(move || {
            let pager = pager::Pager::builder().budget_bytes(16 << 20).build().expect("a pager");
            pager.open(source).expect("a region").load(0..3_000_000).expect("bytes").to_vec()
        });
        assert!(read.await.expect("no panic") == object);
        assert!(server.lines.iter().any(|line| line.contains("no memory for")));
        drop(server);
        let _server = start(folder.path(), &origin, "16MiB");
        let served = served(folder.path(), &url);
        let version = served.stat().await.expect("stat").version;
        let other = served.map(&Version::strong("never")).await.map(drop).expect_err("unknown");
        assert!(!matches!(other, SourceError::Transient { .. }), "{other}");
        // Replaced before a byte of it was read: never the new one's bytes under the old name.
        origin.put("/object", &sample(3_000_000, 56), "new");
        let changed = served.map(&version).await.map(drop).expect_err("replaced");
        assert!(matches!(changed, SourceError::Changed { .. }), "{changed}");
        let fresh = map(folder.path(), &url).await.expect("a map");
        assert!(fresh[..] == sample(3_000_000, 56));
    });
}

/// A client's lock for itself alone kept a piece from everybody else.
#[test]
fn what_a_client_locks_for_itself_others_have_all_the_same() {
    let (origin, folder) = (Origin::start(), tempfile::tempdir().expect("a folder"));
    let object = sample(100_000, 60);
    origin.put("/object", &object, "1");
    let url = origin.url("/object");
    let _server = start(folder.path(), &origin, "16MiB");
    runtime().block_on(async {
        let stream = tokio::net::UnixStream::connect(socket(folder.path())).await;
        let raw = Socket::Unix(stream.expect("a connection"));
        let (mut incoming, wait) = (Incoming::with_files(), Duration::from_secs(20));
        let open = Request::Open { url: url.clone(), pinned: None };
        let hello = Request::Hello { wants: MEMORY, token: String::new() };
        let mut handle = None;
        for request in [hello, open] {
            raw.send(&[request.encode(1).into()], None, wait).await.expect("send");
            let answer = incoming.frame(&raw, 1 << 20, wait).await.expect("a frame");
            let (head, body) = answer.expect("an answer");
            if let Answer::Opened { handle: number, .. } =
                Answer::decode(head.kind, &body).expect("an answer")
            {
                handle = Some(number);
            }
        }
        let request = Request::Memory { handle: handle.expect("opened"), offset: 0 };
        raw.send(&[request.encode(2).into()], None, wait).await.expect("send");
        incoming.frame(&raw, 1 << 20, wait).await.expect("a frame").expect("an answer");
        let file = fs::File::from(incoming.file().expect("its file"));
        file.try_lock().expect("it is the only one");
        for _ in 0..2 {
            assert!(map(folder.path(), &url).await.expect("a map")[..] == object);
        }
    });
}

/// A client that asks for what it was not offered, or for what is not there.
#[test]
fn requests_for_memory_are_checked() {
    let (origin, folder) = (Origin::start(), tempfile::tempdir().expect("a folder"));
    origin.put("/object", &sample(100_000, 57), "1");
    let _server = start(folder.path(), &origin, "16MiB");
    let connect = |wants: u32| {
        let mut stream = UnixStream::connect(socket(folder.path())).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a time");
        let mut ask = move |request: &Request| {
            stream.write_all(&request.encode(1)).expect("send");
            let mut head = [0; HEAD_BYTES];
            stream.read_exact(&mut head).expect("an answer");
            let head = Head::decode(&head, 1 << 20).expect("a head");
            let mut body = vec![0; head.body_bytes];
            stream.read_exact(&mut body).expect("a body");
            Answer::decode(head.kind, &body).expect("an answer")
        };
        let welcome = ask(&Request::Hello { wants, token: String::new() });
        assert!(matches!(welcome, Answer::Welcome { has, .. } if has == wants), "{welcome:?}");
        let opened = ask(&Request::Open { url: origin.url("/object"), pinned: None });
        let Answer::Opened { handle, .. } = opened else { panic!("{opened:?}") };
        (ask, handle)
    };
    let is_refused =
        |answer: Answer| matches!(answer, Answer::Failed { code: Code::Malformed, .. });
    let (mut ask, handle) = connect(0);
    assert!(is_refused(ask(&Request::Memory { handle, offset: 0 })), "it was not offered");
    let (mut ask, handle) = connect(MEMORY);
    for (handle, offset) in [(handle, 100_000), (handle, u64::MAX), (handle + 7, 0)] {
        assert!(is_refused(ask(&Request::Memory { handle, offset })), "{handle} {offset}");
    }
    let good = ask(&Request::Memory { handle, offset: 99_999 });
    assert_eq!(good, Answer::File { position: 99_999, length: 1 });
}
