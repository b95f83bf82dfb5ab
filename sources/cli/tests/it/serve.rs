//! `extmem serve`, and protocol V000: what the first clients need, and what the first server did
//! wrong.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use pager::BlockSource;
use sources::server::{Link, Place, Served};

use crate::{
    origin::{Origin, Page, sample},
    v000::{Client, Reply, frame},
};

const MIB: u64 = 1 << 20;

pub(crate) struct Server {
    child: Child,
    address: String,
    /// Where it serves our own protocol by TCP.
    pub(crate) tcp: Option<String>,
    /// Where it serves the page.
    pub(crate) http: Option<String>,
    /// What it said before it was ready.
    pub(crate) lines: Vec<String>,
}

impl Server {
    pub(crate) fn start(dir: &Path, args: &[&str]) -> Server {
        Server::start_in(dir, args, &[])
    }

    /// With variables of the environment besides.
    pub(crate) fn start_in(dir: &Path, args: &[&str], environment: &[(&str, &str)]) -> Server {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("extmem"));
        command.args(["serve", "--listen", "127.0.0.1:0", "--free-bytes", "0", "--dir"]).arg(dir);
        command.args(args).env_remove("EXTMEM_CACHE_KEY").env_remove("EXTMEM_CACHE_KEY_FILE");
        command.envs(environment.iter().copied());
        let child = command.stdout(Stdio::piped()).spawn().expect("the server");
        Server::ready(child)
    }

    /// With these arguments and no others.
    pub(crate) fn run(args: &[&str]) -> Server {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("extmem"));
        command.arg("serve").args(args);
        command.env_remove("EXTMEM_CACHE_KEY").env_remove("EXTMEM_CACHE_KEY_FILE");
        Server::ready(command.stdout(Stdio::piped()).spawn().expect("the server"))
    }

    /// One that is started otherwise.
    pub(crate) fn of_command(mut command: Command) -> Server {
        command.env_remove("EXTMEM_CACHE_KEY").env_remove("EXTMEM_CACHE_KEY_FILE");
        Server::ready(command.stdout(Stdio::piped()).spawn().expect("the server"))
    }

    /// Waits until it says that it is.
    fn ready(mut child: Child) -> Server {
        let out = BufReader::new(child.stdout.take().expect("its output"));
        let lines = out.lines().map_while(Result::ok);
        let lines: Vec<_> = lines.take_while(|line| line != "extmem: ready").collect();
        let after = |text: &str| {
            let mut found = lines.iter().filter_map(|line| line.strip_prefix(text));
            found.next().map(str::to_owned)
        };
        let address = after("extmem: serving V000 on ").unwrap_or_default();
        let http = after("extmem: serving a page on http://");
        let http = http.map(|url| url.trim_end_matches('/').to_owned());
        let tcp = after("extmem: serving blocks on tcp://");
        Server { address, tcp, http, lines, child }
    }

    /// For an origin alone, with 32 MiB.
    fn of(dir: &Path, origin: &Origin) -> Server {
        Server::start(dir, &["--allow", origin.base(), "--max-bytes", "64MiB"])
    }

    /// Where it serves V000.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.address).expect("a connection")
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().expect("kill -9");
        self.child.wait().expect("it is dead");
    }

    /// SIGTERM. Returns the exit code.
    pub(crate) fn stop(mut self) -> Option<i32> {
        self.signal("TERM");
        self.child.wait().expect("an end").code()
    }

    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().expect("kill").success());
    }

    /// The exit code, if it ends in time.
    fn wait(&mut self, in_time: Duration) -> Option<Option<i32>> {
        let end = Instant::now() + in_time;
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return Some(status.code());
            }
            thread::sleep(Duration::from_millis(50));
        }
        None
    }

    /// The most memory that it ever had.
    pub(crate) fn peak_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("/proc");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a line");
        peak.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    pub(crate) fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("/proc").count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

/// What a directory takes on disk, as `du` counts it.
fn du(path: &Path) -> u64 {
    // What vanishes meanwhile takes nothing.
    let Ok(found) = fs::symlink_metadata(path) else { return 0 };
    let entries = match found.is_dir() {
        true => fs::read_dir(path).into_iter().flatten().flatten().map(|one| one.path()).collect(),
        false => Vec::<PathBuf>::new(),
    };
    found.blocks() * 512 + entries.iter().map(|entry| du(entry)).sum::<u64>()
}

/// Reads, and compares whatever the answer says is good.
fn check(client: &mut Client, url: &str, object: &[u8], offset: u64, size: u64) -> u64 {
    let bytes = client.read(url, offset, size).expect("an answer").expect("OKOK");
    let rest = object.len() as u64 - offset;
    assert!(bytes.len() as u64 >= size.min(rest), "{} for {size} at {offset}", bytes.len());
    assert!(bytes.len() as u64 <= rest, "no byte behind the end");
    assert!(bytes == object[offset as usize..][..bytes.len()], "wrong bytes at {offset}");
    bytes.len() as u64
}

fn refused(kind: &str) -> Reply {
    Reply { kind: kind.to_owned(), offset: 0, size: 0, path: String::new() }
}

#[test]
fn the_frames_are_those_of_the_text() {
    let (origin, folder) = (Origin::start(), folder());
    let object = sample(3_000_000, 1);
    origin.put("/object", &object, "1");
    let server = Server::of(folder.path(), &origin);
    let mut client = server.client();
    let url = origin.url("/object");
    // Sent in pieces, as networks do.
    for byte in frame(b"V000", 0, 0, url.as_bytes()) {
        client.send(&[byte]).expect("send");
    }
    let mut bytes = [0xff; 24];
    client.stream.read_exact(&mut bytes).expect("an answer");
    assert_eq!(&bytes, b"OKOK\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", "a hello's answer is bare");
    // As the original opens: the header first, and a page of a member that starts at 512 * n.
    let reply = client.ask(b"READ", 0, 65_000, &url).expect("an answer");
    assert!(reply.is("OKOK") && reply.offset == 0 && reply.size >= 65_000, "{reply:?}");
    assert!(Path::new(&reply.path).starts_with(folder.path()), "{reply:?}");
    let file = fs::read(&reply.path).expect("the file");
    assert!(file[..65_000] == object[..65_000]);
    let reply = client.ask(b"READ", 3 * 512 + 4096, 4096, &url).expect("an answer");
    assert_eq!(reply.offset, 3 * 512 + 4096, "position in a file laid out like the object");
    assert!(reply.size > 64 << 10, "the rest of the block, to look ahead: {reply:?}");
    // Everything again on a connection that never said hello, and two requests at once.
    let mut other = server.client();
    other.send(&frame(b"READ", 5, 7, url.as_bytes())).expect("send");
    other.send(&frame(b"READ", 2_999_999, 4096, url.as_bytes())).expect("send");
    assert!(other.reply().expect("an answer").size >= 7);
    let last = other.reply().expect("an answer");
    assert!(last.is("OKOK") && last.size == 1, "one byte is left: {last:?}");
    assert!(other.ask(b"READ", 9, 0, &url).expect("an answer").size > 0, "nothing is the least");
    client.send(&frame(b"EXIT", 0, 0, url.as_bytes())).expect("send");
    assert_eq!(client.stream.read(&mut bytes).expect("the end"), 0, "EXIT has no answer");
}

#[test]
fn every_request_is_answered_and_what_fails_may_work_later() {
    let (origin, folder) = (Origin::start(), folder());
    let server = Server::of(folder.path(), &origin);
    let mut client = server.client();
    let url = origin.url("/object");
    for _ in 0..3 {
        assert_eq!(client.hello(&url).expect("an answer"), refused("MISS"));
    }
    assert_eq!(client.ask(b"READ", 0, 1, &url).expect("an answer"), refused("MISS"));
    let object = sample(300_000, 2);
    origin.put("/object", &object, "1");
    assert!(client.hello(&url).expect("an answer").is("OKOK"), "and now it is there");
    for offset in [300_000, 300_001, 1 << 40, u64::MAX] {
        for _ in 0..2 {
            let reply = client.ask(b"READ", offset, 4096, &url).expect("an answer");
            assert_eq!(reply, refused("FAIL"), "past the end, at {offset}");
        }
    }
    origin.set("/object", Page::Status(403));
    for _ in 0..2 {
        let reply = client.ask(b"READ", 0, 4096, &url).expect("an answer");
        assert_eq!(reply, refused("FAIL"), "denied");
    }
    origin.put("/object", &object, "1");
    check(&mut client, &url, &object, 0, 4096);
    check(&mut client, &url, &object, 0, u64::MAX);
    assert_eq!(client.ask(b"V001", 0, 0, &url).expect("an answer"), refused("PROT"));
    assert_eq!(client.ask(b"\0\0\0\0", 0, 0, &url).expect("an answer"), refused("PROT"));
    for url in ["gopher://x/y", "s3://b/k", "/etc/passwd", "abc", "", "file:///etc/passwd"] {
        assert_eq!(client.hello(url).expect("an answer"), refused("PROT"), "{url}");
        assert_eq!(client.ask(b"READ", 0, 1, url).expect("an answer"), refused("PROT"), "{url}");
    }
    check(&mut client, &url, &object, 100_000, 4096);
}

#[test]
fn frames_that_are_none_end_one_connection_and_no_other() {
    let (origin, folder) = (Origin::start(), folder());
    let object = sample(300_000, 3);
    origin.put("/object", &object, "1");
    let server = Server::of(folder.path(), &origin);
    let url = origin.url("/object");
    let mut good = server.client();
    assert!(good.hello(&url).expect("an answer").is("OKOK"));
    for len in [1024u32, 1049, 65_536, u32::MAX] {
        let mut bytes = frame(b"READ", 0, 1, b"");
        bytes[20..].copy_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(b"s3://bucket/key");
        let mut client = server.client();
        client.send(&bytes).expect("send");
        assert_eq!(client.reply().expect("an answer"), refused("FAIL"), "{len}");
        assert_eq!(client.stream.read(&mut [0]).unwrap_or(0), 0, "{len}: closed");
    }
    let longest = format!("{}{}", origin.url("/"), "x".repeat(1023 - origin.url("/").len()));
    assert_eq!(good.hello(&longest).expect("an answer"), refused("MISS"), "1023 bytes are allowed");
    for path in [&b"http://\0"[..], b"\xff\xfe", b"http://[", b"s3://"] {
        let mut client = server.client();
        client.send(&frame(b"V000", 0, 0, path)).expect("send");
        assert!(!client.reply().expect("an answer").is("OKOK"), "{path:?}");
    }
    // Half a frame, and then nothing: it costs that client its connection, after ten seconds.
    let mut half = server.client();
    let began = Instant::now();
    half.send(b"READ\0\0").expect("send");
    check(&mut good, &url, &object, 0, 4096);
    assert_eq!(half.reply().expect("an answer"), refused("FAIL"));
    assert!(began.elapsed() > Duration::from_secs(8), "{:?}", began.elapsed());
    assert_eq!(half.stream.read(&mut [0]).unwrap_or(0), 0);
    check(&mut good, &url, &object, 200_000, 4096);
}

#[test]
fn blocks_are_aligned_so_that_nothing_is_fetched_twice() {
    let (origin, folder) = (Origin::start(), folder());
    let object = sample(20_000_000, 4);
    origin.put("/object", &object, "1");
    let server = Server::of(folder.path(), &origin);
    let url = origin.url("/object");
    // Backwards, at odd places, by two clients, and over every edge of a file.
    let mut clients = [server.client(), server.client()];
    for n in (0..200u64).rev() {
        let client = &mut clients[n as usize % 2];
        check(client, &url, &object, n * 99_000 + 17, 4096);
    }
    check(&mut clients[1], &url, &object, 19_999_999, 1);
    for edge in 1..9 {
        check(&mut clients[0], &url, &object, edge * 2 * MIB - 2000, 4096);
    }
    // One answer names one file with all of it, over as many edges as it takes.
    check(&mut clients[0], &url, &object, 0, 9_065_000.min(16 * MIB / 2 - 65_536));
    check(&mut clients[1], &url, &object, 5 * MIB - 1, 3 * MIB);
    let (_, fetched) = origin.count();
    assert_eq!(fetched, object.len() as u64, "every byte once");
}

#[test]
fn the_cache_stays_below_its_bound() {
    let (origin, folder) = (Origin::start(), folder());
    let object = sample(128 << 20, 5);
    origin.put("/object", &object, "1");
    let url = origin.url("/object");
    // Whatever its blocks are.
    for (block, mib) in [("1MiB", 32), ("4KiB", 32), ("16MiB", 96)] {
        let (dir, bound) = (folder.path().join(block), format!("{mib}MiB"));
        let args = ["--allow", origin.base(), "--max-bytes", &bound, "--block-bytes", block];
        let server = Server::start(&dir, &args);
        let mut client = server.client();
        let mut at = 0;
        while at < object.len() as u64 {
            at += check(&mut client, &url, &object, at, 256 << 10);
            let taken = du(&dir);
            assert!(taken <= (mib << 20) + (128 << 10), "{block}: {taken} bytes at {at}");
        }
        assert!(du(&dir) > 8 << 20, "{block}: and it is used");
        // More than it has room for at once.
        let reply = client.ask(b"READ", 0, 70 << 20, &url).expect("an answer");
        assert_eq!(reply, refused("FAIL"));
    }
}

/// Every file below a folder, and what is in it.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.path() {
            path if path.is_dir() => found.extend(files(&path)),
            path => found.push(path),
        }
    }
    found
}

#[test]
fn a_download_that_breaks_off_leaves_nothing_behind() {
    let (origin, folder) = (Origin::start(), folder());
    let object = sample(3_000_000, 40);
    origin.put("/object", &object, "1");
    let server = Server::of(folder.path(), &origin);
    let mut client = server.client();
    let url = origin.url("/object");
    assert!(client.hello(&url).expect("an answer").is("OKOK"));
    let before = files(folder.path());
    origin.set("/object", Page::Cut(Arc::new(object.clone()), "\"1\"".to_owned()));
    for _ in 0..2 {
        let reply = client.ask(b"READ", 0, 4096, &url).expect("an answer");
        assert_eq!(reply, refused("FAIL"));
    }
    // A file may have been made for what comes; nothing that can be read is in it.
    for file in files(folder.path()).iter().filter(|file| !before.contains(file)) {
        let bytes = fs::read(file).expect("read");
        let has = |part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
        assert!(!file.starts_with(folder.path().join("tmp")), "{file:?}");
        assert!(!has(&object[..64]), "{file:?} has half a block");
    }
    origin.put("/object", &object, "1");
    check(&mut client, &url, &object, 0, 4096);
    assert_eq!(server.stop(), Some(0));
    let checked = crate::extmem().args(["cache", "verify", "--dir"]).arg(folder.path()).output();
    assert!(checked.expect("verify").status.success());
}

#[test]
fn a_replaced_object_is_never_mixed() {
    let (origin, folder) = (Origin::start(), folder());
    let (old, new) = (sample(5_000_000, 6), sample(5_000_000, 7));
    origin.put("/object", &old, "old");
    let server = Server::of(folder.path(), &origin);
    let url = origin.url("/object");
    let mut first = server.client();
    assert!(first.hello(&url).expect("an answer").is("OKOK"));
    check(&mut first, &url, &old, 0, 4096);
    origin.put("/object", &new, "new");
    // What is there of the old one is served; the rest fails. A lost connection changes nothing.
    check(&mut first, &url, &old, 8192, 4096);
    let reply = first.ask(b"READ", 4_500_000, 4096, &url).expect("an answer");
    assert_eq!(reply, refused("FAIL"));
    drop(first);
    let mut again = server.client();
    check(&mut again, &url, &old, 8192, 4096);
    assert_eq!(again.ask(b"READ", 4_500_000, 4096, &url).expect("an answer"), refused("FAIL"));
    // Nor does a restart.
    server.kill();
    let server = Server::of(folder.path(), &origin);
    let mut again = server.client();
    check(&mut again, &url, &old, 8192, 4096);
    assert_eq!(again.ask(b"READ", 4_500_000, 4096, &url).expect("an answer"), refused("FAIL"));
    // A new handle reads the new one, and from then on nobody guesses.
    let mut second = server.client();
    assert!(second.hello(&url).expect("an answer").is("OKOK"));
    check(&mut second, &url, &new, 0, 4096);
    check(&mut second, &url, &new, 4_500_000, 4096);
    check(&mut again, &url, &old, 8192, 4096);
    let mut lost = server.client();
    assert_eq!(lost.ask(b"READ", 8192, 4096, &url).expect("an answer"), refused("FAIL"));
    again.send(&frame(b"EXIT", 0, 0, url.as_bytes())).expect("send");
    assert_eq!(again.stream.read(&mut [0]).expect("the end"), 0);
    // The old one has left for good, so who comes back reads the new one.
    let mut lost = server.client();
    check(&mut lost, &url, &new, 8192, 4096);
}

/// Both clients may come back after a restart, and one of them leaves for good.
#[test]
fn a_restart_forgets_no_client() {
    let (origin, folder) = (Origin::start(), folder());
    let (old, new) = (sample(300_000, 30), sample(300_000, 31));
    origin.put("/object", &old, "old");
    let server = Server::of(folder.path(), &origin);
    let url = origin.url("/object");
    for _ in 0..2 {
        assert!(server.client().hello(&url).expect("an answer").is("OKOK"));
    }
    server.kill();
    let server = Server::of(folder.path(), &origin);
    let mut one = server.client();
    check(&mut one, &url, &old, 8192, 4096);
    one.send(&frame(b"EXIT", 0, 0, url.as_bytes())).expect("send");
    assert_eq!(one.stream.read(&mut [0]).expect("the end"), 0);
    origin.put("/object", &new, "new");
    let mut third = server.client();
    assert!(third.hello(&url).expect("an answer").is("OKOK"));
    check(&mut third, &url, &new, 8192, 4096);
    let reply = server.client().ask(b"READ", 8192, 4096, &url).expect("an answer");
    assert_eq!(reply, refused("FAIL"), "the second one has the old object mapped");
    // What is written down names no address: it may be signed.
    let written = fs::read_dir(folder.path().join("serve/handles")).expect("a folder");
    for entry in written {
        let text = fs::read_to_string(entry.expect("an entry").path()).expect("text");
        assert!(!text.contains("/object"), "{text}");
    }
}

/// Who never said hello has nobody's goodbye to say.
#[test]
fn a_goodbye_takes_no_other_client_along() {
    let (origin, folder) = (Origin::start(), folder());
    let (old, new) = (sample(300_000, 32), sample(300_000, 33));
    origin.put("/object", &old, "old");
    let server = Server::of(folder.path(), &origin);
    let url = origin.url("/object");
    let mut first = server.client();
    assert!(first.hello(&url).expect("an answer").is("OKOK"));
    let mut stranger = server.client();
    check(&mut stranger, &url, &old, 8192, 4096);
    stranger.send(&frame(b"EXIT", 0, 0, url.as_bytes())).expect("send");
    assert_eq!(stranger.stream.read(&mut [0]).expect("the end"), 0);
    origin.put("/object", &new, "new");
    let mut third = server.client();
    assert!(third.hello(&url).expect("an answer").is("OKOK"));
    drop(first);
    let reply = server.client().ask(b"READ", 8192, 4096, &url).expect("an answer");
    assert_eq!(reply, refused("FAIL"), "the first one has the old object mapped");
}

/// Nothing tells one version of it from the next.
#[test]
fn what_cannot_be_told_apart_is_not_kept() {
    let (origin, folder) = (Origin::start(), folder());
    let (old, new) = (sample(300_000, 34), sample(300_000, 35));
    origin.set("/object", Page::Bare(old.into()));
    let socket = folder.path().join("sock");
    let args = [
        "--allow",
        origin.base(),
        "--max-bytes",
        "64MiB",
        "--unix",
        socket.to_str().expect("text"),
    ];
    let server = Server::start(&folder.path().join("cache"), &args);
    let url = origin.url("/object");
    assert_eq!(server.client().hello(&url).expect("an answer"), refused("PROT"));
    let reply = server.client().ask(b"READ", 0, 4096, &url).expect("an answer");
    assert_eq!(reply, refused("PROT"), "V000 names files, and there is none");
    // Our own protocol carries bytes, which come from the source each time.
    let read = || {
        let output = crate::extmem()
            .env("EXTMEM_SERVER", format!("unix://{}", socket.display()))
            .args(["cat", &url])
            .output()
            .expect("output");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    assert!(read().len() == 300_000);
    origin.set("/object", Page::Bare(new.clone().into()));
    assert!(read() == new, "not what was there before");
}

#[test]
fn killed_at_any_moment_it_is_whole() {
    let (origin, folder) = (Origin::start(), folder());
    let object = Arc::new(sample(24_000_000, 8));
    origin.put("/object", &object, "1");
    let url = origin.url("/object");
    for round in 0..8u64 {
        let server = Server::of(folder.path(), &origin);
        let stop = Arc::new(AtomicBool::new(false));
        let readers: Vec<_> = (0..4u64)
            .map(|n| {
                let mut client = server.client();
                let (object, url, stop) = (object.clone(), url.clone(), stop.clone());
                thread::spawn(move || {
                    let mut at = n * 5_777_777 + round * 1_234_567;
                    while !stop.load(Relaxed) {
                        at = (at + 1_111_111) % (object.len() as u64 - 1);
                        // A server that dies is an error of the connection, and nothing worse.
                        let Ok(got) = client.read(&url, at, 4096) else { return };
                        let got = got.expect("OKOK");
                        assert!(got == object[at as usize..][..got.len()], "wrong bytes at {at}");
                    }
                })
            })
            .collect();
        thread::sleep(Duration::from_millis(20 + round * 37 % 150));
        server.kill();
        stop.store(true, Relaxed);
        for reader in readers {
            reader.join().expect("no wrong byte, and no hang");
        }
    }
    let server = Server::of(folder.path(), &origin);
    let left: Vec<_> = ["tmp", "serve/spans"]
        .iter()
        .flat_map(|name| fs::read_dir(folder.path().join(name)).expect("a folder"))
        .collect();
    assert_eq!(left.len(), 0, "left behind: {left:?}");
    let (_, before) = origin.count();
    let mut client = server.client();
    let mut at = 0;
    while at < object.len() as u64 {
        at += check(&mut client, &url, &object, at, 4096);
    }
    let (_, after) = origin.count();
    assert!(after - before < object.len() as u64, "a restart keeps what was there");
    let checked = crate::extmem().args(["cache", "verify", "--dir"]).arg(folder.path()).output();
    assert!(checked.expect("verify").status.success());
}

#[test]
fn told_to_stop_it_answers_what_it_has_begun() {
    let (origin, folder) = (Origin::start(), folder());
    let object = sample(3_000_000, 9);
    origin.put("/object", &object, "1");
    let server = Server::of(folder.path(), &origin);
    let url = origin.url("/object");
    let mut client = server.client();
    let mut idle = server.client();
    assert!(client.hello(&url).expect("an answer").is("OKOK"));
    assert!(idle.hello(&url).expect("an answer").is("OKOK"));
    origin.set("/object", Page::Held(Arc::new(object.clone()), "\"1\"".to_owned(), 0));
    client.send(&frame(b"READ", 0, 4096, url.as_bytes())).expect("send");
    let in_time = Instant::now() + Duration::from_secs(20);
    while origin.count().0 == 0 {
        assert!(Instant::now() < in_time, "it was never asked for");
        thread::sleep(Duration::from_millis(5));
    }
    let address = server.address.clone();
    let stopped = thread::spawn(move || server.stop());
    // It has heard of it by then, and if it has not, then this tells less.
    thread::sleep(Duration::from_millis(500));
    origin.let_go();
    let reply = client.reply().expect("an answer");
    assert!(reply.is("OKOK"), "{reply:?}");
    assert_eq!(client.stream.read(&mut [0]).expect("the end"), 0);
    assert_eq!(idle.stream.read(&mut [0]).expect("the end"), 0);
    assert_eq!(stopped.join().expect("an end"), Some(0));
    assert!(Client::connect(&address).is_err(), "nobody listens");
    // What was fetched is there.
    let (before, _) = origin.count();
    let server = Server::of(folder.path(), &origin);
    check(&mut server.client(), &url, &object, 0, 4096);
    assert_eq!(origin.count().0, before);
}

/// A request without end, on either protocol, does not keep the server from ending: what it has begun has
/// ten seconds, and what is done by then is answered.
#[test]
fn told_to_stop_it_does_not_wait_for_ever() {
    let (origin, folder) = (Origin::start(), folder());
    let object = sample(3_000_000, 61);
    origin.put("/object", &object, "1");
    let socket = folder.path().join("extmem.sock");
    let args = ["--allow", origin.base(), "--unix", socket.to_str().expect("text")];
    let mut server = Server::start(&folder.path().join("cache"), &args);
    let url = origin.url("/object");
    let mut clients = [server.client(), server.client()];
    for client in &mut clients {
        assert!(client.hello(&url).expect("an answer").is("OKOK"));
    }
    let [mut waiting, mut served] = clients;
    check(&mut served, &url, &object, 2_900_000, 10);
    let gets = origin.count().0;
    origin.set("/object", Page::Endless(Arc::new(object.clone()), "\"1\"".to_owned()));
    waiting.send(&frame(b"READ", 0, 4096, url.as_bytes())).expect("send");
    let reading = thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let link = Link::new(Place::Unix(socket), String::new());
        let source = Served::new(&url, &url, link).expect("a source");
        runtime.block_on(async {
            let version = source.stat().await?.version;
            let frame = pager::Frame::with_capacity(4096);
            source.read_into(&version, 1_500_000..1_504_096, frame).await.map(drop)
        })
    });
    wait_until("both are asked for", || origin.count().0 >= gets + 2);
    let began = Instant::now();
    server.signal("TERM");
    assert_eq!(
        served.stream.read(&mut [0]).expect("the end"),
        0,
        "who asks nothing is told at once"
    );
    let code = server.wait(Duration::from_secs(120)).expect("it waits for ever");
    assert_eq!(code, Some(0));
    // It did wait for them.
    assert!(began.elapsed() >= Duration::from_secs(9), "{:?}", began.elapsed());
    // Its source would have been given up later, and that would have been an answer.
    assert_eq!(waiting.stream.read(&mut [0]).unwrap_or(0), 0, "it got no answer, and an end");
    drop(server);
    let error = reading.join().expect("no panic").expect_err("nobody serves it");
    assert!(error.is_retryable(), "{error}");
}

/// Waits for something that another process does.
fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let in_time = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < in_time, "never: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn limits_hold_and_leave_others_alone() {
    let (origin, folder) = (Origin::start(), folder());
    let object = sample(3_000_000, 10);
    origin.put("/object", &object, "1");
    let args = ["--allow", origin.base(), "--connections-per-client", "3", "--requests-max", "2"];
    let server = Server::start(folder.path(), &args);
    let url = origin.url("/object");
    let mut clients: Vec<_> = (0..3).map(|_| server.client()).collect();
    for client in &mut clients {
        assert!(client.hello(&url).expect("an answer").is("OKOK"));
    }
    let mut fourth = server.client();
    assert!(fourth.hello(&url).is_err(), "the fourth is closed");
    clients.pop();
    // The seat is free as soon as the server has seen the end.
    let in_time = Instant::now() + Duration::from_secs(20);
    let mut third = loop {
        let mut client = server.client();
        if client.hello(&url).is_ok_and(|reply| reply.is("OKOK")) {
            break client;
        }
        assert!(Instant::now() < in_time, "its seat is never free");
    };
    check(&mut third, &url, &object, 2_000_000, 4096);
    let before = server.descriptors();
    for _ in 0..50 {
        let mut client = server.client();
        let _ = client.send(b"READ\0");
    }
    let in_time = Instant::now() + Duration::from_secs(20);
    while server.descriptors() > before + 1 {
        assert!(Instant::now() < in_time, "{} of {before}", server.descriptors());
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn only_what_is_allowed_is_served() {
    let (origin, elsewhere, folder) = (Origin::start(), Origin::start(), folder());
    let object = sample(300_000, 11);
    for path in ["/pub/object", "/secret", "/pub/../secret", "/pub/%2e%2e/secret", "/public/x"] {
        origin.put(path, &object, "1");
    }
    elsewhere.put("/pub/object", &object, "1");
    origin.set("/pub/out", Page::Redirect(elsewhere.url("/pub/object")));
    origin.set("/pub/up", Page::Redirect("/secret".to_owned()));
    origin.set("/pub/within", Page::Redirect("/pub/object".to_owned()));
    let files = folder.path().join("files");
    fs::create_dir_all(files.join("data")).expect("a folder");
    fs::write(files.join("data/object"), &object).expect("write");
    fs::write(files.join("secret"), &object).expect("write");
    std::os::unix::fs::symlink(files.join("secret"), files.join("data/link")).expect("a link");
    std::os::unix::fs::symlink(&files, files.join("data/up")).expect("a link");
    std::os::unix::fs::symlink(files.join("data/object"), files.join("in")).expect("a link");
    let data = format!("file://{}", files.join("data").display());
    let prefix = origin.url("/pub/");
    let args = ["--allow", prefix.as_str(), "--allow", data.as_str()];
    let server = Server::start(&folder.path().join("cache"), &args);
    let mut client = server.client();
    let file = |name: &str| format!("file://{}", files.join(name).display());
    let good =
        [origin.url("/pub/object"), origin.url("/pub/within"), file("data/object"), file("in")];
    for url in good {
        assert!(client.hello(&url).expect("an answer").is("OKOK"), "{url}");
        check(&mut client, &url, &object, 100_000, 4096);
    }
    let bad = [
        origin.url("/secret"),
        origin.url("/public/x"),
        origin.url("/pub/../secret"),
        origin.url("/pub/%2e%2e/secret"),
        origin.url("/pub/..%2fsecret"),
        origin.url("/pub/%252e%252e/secret"),
        origin.url("/pub/out"),
        origin.url("/pub/up"),
        elsewhere.url("/pub/object"),
        format!("{}#extmem:cache={}", origin.url("/pub/object"), files.display()),
        format!("{}#extmem:ca=/etc/shadow", origin.url("/pub/object")),
        format!("s3://bucket/key?endpoint={}", elsewhere.base()),
        file("secret"),
        file("data/link"),
        file("data/../secret"),
        file("data/%2e%2e/secret"),
        file("data/up/secret"),
        file("nothing"),
        files.join("secret").display().to_string(),
    ];
    for url in bad {
        assert_eq!(client.hello(&url).expect("an answer"), refused("PROT"), "{url}");
        assert_eq!(client.ask(b"READ", 0, 9, &url).expect("an answer"), refused("PROT"), "{url}");
    }
    assert_eq!(client.hello(&file("data/nothing")).expect("an answer"), refused("MISS"));
    assert_eq!(elsewhere.count().0, 0, "nobody asked there");
}

#[test]
fn what_cannot_be_served_is_said_at_the_start() {
    let folder = folder();
    let cases: [(&[&str], &str, i32); 13] = [
        (&["--block-bytes", "5000"], "power of two", 2),
        (&["--allow", "ftp://x"], "no such kind", 1),
        (&["--allow", "file:///there/is/nothing"], "No such file", 1),
        (&["--max-bytes", "1MiB"], "use at least 24MiB", 2),
        (&["--max-bytes", "many"], "a size is", 2),
        (&["--max-bytes", "128MiB", "--block-bytes", "64MiB"], "use at least 288MiB", 1),
        (&["--listen", "203.0.113.1:1"], "203.0.113.1", 1),
        (&["--listen", "nowhere"], "--listen", 2),
        (&["--listen", "none"], "nobody could ask", 1),
        (&["--connections-max", "0"], "--connections-max", 2),
        (&["--memory-bytes", "1GiB"], "--unix", 2),
        (&["--token-file", "/nowhere"], "--tcp", 2),
        (&["--tcp", "127.0.0.1:0"], "--token-file", 2),
    ];
    for (args, expected, code) in cases {
        let mut command = crate::extmem();
        command.args(["serve", "--listen", "127.0.0.1:0", "--dir"]).arg(folder.path().join("c"));
        // The last of an option given twice is what counts, or the parser says so.
        let args: Vec<&str> = args.to_vec();
        if args[0] == "--listen" {
            command = crate::extmem();
            command.args(["serve", "--dir"]).arg(folder.path().join("c"));
        }
        let output = command.args(&args).timeout(Duration::from_secs(20)).output().expect("output");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains(expected), "{args:?}: {text}");
        assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
    }
    // A folder of something else is left as it was.
    let other = folder.path().join("other");
    std::fs::create_dir(&other).expect("a folder");
    std::fs::write(other.join("letter"), "dear").expect("a file");
    let output = crate::extmem()
        .args(["serve", "--listen", "127.0.0.1:0", "--dir"])
        .arg(&other)
        .timeout(Duration::from_secs(20))
        .output()
        .expect("output");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("not empty") && text.contains("other"), "{text}");
    let left: Vec<_> =
        std::fs::read_dir(&other).expect("it").map(|it| it.unwrap().file_name()).collect();
    assert_eq!(left, ["letter"]);
    let output = crate::extmem()
        .args(["serve", "--listen", "127.0.0.1:0", "--dir"])
        .arg(folder.path().join("c"))
        .env("EXTMEM_CACHE_KEY", "00")
        .timeout(Duration::from_secs(20))
        .output()
        .expect("output");
    assert!(String::from_utf8_lossy(&output.stderr).contains("encrypted"), "{output:?}");
}

/// Under systemd, whose socket it tells when it is ready and when it ends, and with the first protocol off.
#[test]
fn a_service_says_when_it_is_ready() {
    use std::os::unix::net::UnixDatagram;
    let folder = folder();
    let told = folder.path().join("notify");
    let socket = UnixDatagram::bind(&told).expect("a socket");
    socket.set_read_timeout(Some(Duration::from_secs(30))).expect("a limit");
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("extmem"));
    command.args(["serve", "--max-bytes", "1GiB", "--free-bytes", "0", "--dir"]);
    command.arg(folder.path().join("c")).args(["--listen", "127.0.0.1:0", "--unix"]);
    command.arg(folder.path().join("sock")).env("NOTIFY_SOCKET", &told);
    // The last one counts: the options of a machine stand behind those of its unit.
    command.args(["--listen", "none", "--max-bytes", "24MiB"]);
    let server = Server::of_command(command);
    assert_eq!(server.address(), "", "{:?}", server.lines);
    let hear = || {
        let mut bytes = [0; 100];
        let len = socket.recv(&mut bytes).expect("a word");
        String::from_utf8_lossy(&bytes[..len]).trim().to_owned()
    };
    assert_eq!(hear(), "READY=1");
    assert!(folder.path().join("sock").exists());
    assert_eq!(server.stop(), Some(0));
    assert_eq!(hear(), "STOPPING=1");
}

/// Two hundred who come at the same moment, and speak later, are all served.
#[test]
fn many_come_at_once() {
    let (origin, folder) = (Origin::start(), folder());
    origin.put("/object", b"bytes", "1");
    let server = Server::of(folder.path(), &origin);
    let mut clients: Vec<_> = (0..200).map(|_| server.client()).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        let answer = client.hello(&origin.url("/object"));
        assert!(answer.is_ok_and(|answer| answer.is("OKOK")), "client {n}");
    }
}

/// One connection has 64 addresses; more are refused, and those that it has go on.
#[test]
fn a_connection_asks_for_no_more_addresses_than_it_may() {
    let (origin, folder) = (Origin::start(), folder());
    let object = sample(10_000, 37);
    let paths: Vec<_> = (0..65).map(|n| format!("/object-{n}")).collect();
    paths.iter().for_each(|path| origin.put(path, &object, "1"));
    let server = Server::of(folder.path(), &origin);
    let mut client = server.client();
    for (n, path) in paths.iter().enumerate() {
        let answer = client.hello(&origin.url(path)).expect("an answer");
        assert!(answer.is(if n < 64 { "OKOK" } else { "FAIL" }), "{n}");
    }
    check(&mut client, &origin.url("/object-0"), &object, 2000, 4096);
    assert!(client.hello(&origin.url("/object-63")).expect("an answer").is("OKOK"), "once more");
    // Another connection has as many.
    let answer = server.client().hello(&origin.url("/object-64")).expect("an answer");
    assert!(answer.is("OKOK"));
}

/// What is asked for once makes no room for itself at the cost of what is asked for again.
#[test]
fn a_scan_takes_nothing_away() {
    let (origin, folder) = (Origin::start(), folder());
    let (hot, long) = (sample(8 << 20, 36), sample(160 << 20, 37));
    origin.put("/hot", &hot, "1");
    origin.put("/long", &long, "1");
    let server = Server::of(folder.path(), &origin);
    let mut client = server.client();
    let mut scan = |path: &str, object: &[u8]| {
        let mut at = 0;
        while at < object.len() as u64 {
            at += check(&mut client, &origin.url(path), object, at, 4096);
        }
    };
    for _ in 0..3 {
        scan("/hot", &hot);
    }
    scan("/long", &long);
    let (_, before) = origin.count();
    scan("/hot", &hot);
    let (_, after) = origin.count();
    assert!(after - before < 1 << 20, "{} bytes again", after - before);
}

/// The cache is the one that programs have by themselves: beside the server, and before and after it.
#[test]
fn programs_share_the_cache_of_a_server() {
    let (origin, folder) = (Origin::start(), folder());
    let (one, two) = (sample(5_000_000, 44), sample(5_000_000, 45));
    origin.put("/one", &one, "1");
    origin.put("/two", &two, "1");
    let server = Server::of(folder.path(), &origin);
    let cat = |name: &str, object: &[u8]| {
        let mut command = crate::extmem();
        command.env("EXTMEM_CACHE", folder.path()).env("EXTMEM_CACHE_FREE", "0");
        command.env("EXTMEM_CACHE_BYTES", "64MiB").args(["cat", &origin.url(name)]);
        let output = command.output().expect("output");
        assert!(output.stdout == object, "{}", String::from_utf8_lossy(&output.stderr));
    };
    let scan = |server: &Server, name: &str, object: &[u8]| {
        let (mut client, mut at) = (server.client(), 0);
        while at < object.len() as u64 {
            at += check(&mut client, &origin.url(name), object, at, 4096);
        }
    };
    scan(&server, "/one", &one);
    cat("/one", &one);
    cat("/two", &two);
    scan(&server, "/two", &two);
    assert_eq!(origin.count().1, 10_000_000, "every byte once");
    assert_eq!(server.stop(), Some(0));
    cat("/one", &one);
    scan(&Server::of(folder.path(), &origin), "/two", &two);
    assert_eq!(origin.count().1, 10_000_000, "nothing is forgotten");
}

/// One that would sweep away what the other is writing.
#[test]
fn a_directory_has_one_server() {
    let (origin, folder) = (Origin::start(), folder());
    let server = Server::of(folder.path(), &origin);
    let second = || {
        let mut command = crate::extmem();
        command.args(["serve", "--listen", "127.0.0.1:0", "--dir"]).arg(folder.path());
        command.timeout(Duration::from_secs(20)).output().expect("output")
    };
    let output = second();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && text.contains("another server"), "{text}");
    server.kill();
    Server::of(folder.path(), &origin);
}

#[test]
fn an_address_that_others_reach_is_said() {
    let folder = folder();
    let token = folder.path().join("token");
    fs::write(&token, "0123456789abcdef").expect("write");
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("extmem"));
    command.args(["serve", "--listen", "0.0.0.0:0", "--tcp", "0.0.0.0:0", "--token-file"]);
    command.arg(token).arg("--dir").arg(folder.path().join("cache"));
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("serve");
    let lines = BufReader::new(child.stderr.take().expect("its errors")).lines();
    let (told, heard) = std::sync::mpsc::channel();
    thread::spawn(move || lines.map_while(Result::ok).take(2).try_for_each(|line| told.send(line)));
    let hear = || heard.recv_timeout(Duration::from_secs(20)).ok();
    let lines: Vec<_> = [hear(), hear()].into_iter().flatten().collect();
    child.kill().expect("kill");
    child.wait().expect("an end");
    for (line, name) in lines.iter().zip(["--listen", "--tcp"]) {
        assert!(line.contains("warning") && line.contains(name), "{lines:?}");
    }
    assert_eq!(lines.len(), 2);
}

/// Prints what a person may want to know: run it alone, on a quiet machine.
#[test]
#[ignore = "a measurement"]
fn how_fast_it_is() {
    let (origin, folder) = (Origin::start(), folder());
    let object = Arc::new(sample(256 << 20, 13));
    origin.put("/object", &object, "1");
    let url = origin.url("/object");
    let server = Server::start(folder.path(), &["--allow", origin.base(), "--max-bytes", "2GiB"]);
    let mut client = server.client();
    let mut at = 0;
    let began = Instant::now();
    while at < object.len() as u64 {
        at += client.read(&url, at, 4096).expect("an answer").expect("OKOK").len() as u64;
    }
    println!("cold scan by one client of V000: {:.2?}", began.elapsed());
    let began = Instant::now();
    at = 0;
    while at < object.len() as u64 {
        at += client.read(&url, at, 4096).expect("an answer").expect("OKOK").len() as u64;
    }
    let warm = began.elapsed();
    fs::write(folder.path().join("plain"), &object[..]).expect("write");
    let began = Instant::now();
    let mut plain = fs::File::open(folder.path().join("plain")).expect("open");
    let mut piece = vec![0; 1 << 20];
    while plain.read(&mut piece).expect("read") > 0 {}
    println!("warm scan: {warm:.2?}, the same file read plainly: {:.2?}", began.elapsed());
    for clients in [1, 20, 200] {
        let end = Instant::now() + Duration::from_secs(5);
        let workers: Vec<_> = (0..clients)
            .map(|n: u64| {
                let (mut client, url) = (server.client(), url.clone());
                thread::spawn(move || {
                    let (mut state, mut count) = (n, 0u64);
                    while Instant::now() < end {
                        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        let at = (state >> 33) % (255 << 20);
                        assert!(client.ask(b"READ", at, 4096, &url).expect("an answer").is("OKOK"));
                        count += 1;
                    }
                    count
                })
            })
            .collect();
        let count: u64 = workers.into_iter().map(|one| one.join().expect("a client")).sum();
        println!("{clients} client(s): {} requests per second", count / 5);
    }
}
