//! A web server that this process plays: objects that change, vanish, fail and take their time.

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

/// What a path answers.
#[derive(Clone)]
pub(crate) enum Page {
    /// These bytes, with this ETag.
    Object(Arc<Vec<u8>>, String),
    /// These bytes, with nothing that tells them from others.
    Bare(Arc<Vec<u8>>),
    /// This status.
    Status(u16),
    /// These bytes, with this ETag; but no more than the first thousand ever arrive.
    Cut(Arc<Vec<u8>>, String),
    /// These bytes, with this ETag; but no more than so many of each answer, until they are let go.
    Held(Arc<Vec<u8>>, String, usize),
    /// These bytes, with this ETag; one at a time, and the last never.
    Endless(Arc<Vec<u8>>, String),
    /// Look there.
    Redirect(String),
}

pub(crate) struct Origin {
    base: String,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    pages: Mutex<HashMap<String, Page>>,
    delay_ms: AtomicU64,
    gets: AtomicU64,
    bytes: AtomicU64,
    let_go: Mutex<bool>,
    went: Condvar,
}

/// Bytes with no period that a range could hide in.
pub(crate) fn sample(len: usize, seed: u64) -> Vec<u8> {
    let mut state = 0x1234_5678_9abc_def1u64 ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

impl Origin {
    pub(crate) fn start() -> Origin {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared::default());
        let served = shared.clone();
        // Ends with the process.
        thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                let shared = served.clone();
                thread::spawn(move || while shared.answer(&socket) == Some(()) {});
            }
        });
        Origin { base, shared }
    }

    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    pub(crate) fn set(&self, path: &str, page: Page) {
        self.shared.pages.lock().unwrap().insert(path.to_owned(), page);
    }

    pub(crate) fn put(&self, path: &str, bytes: &[u8], tag: &str) {
        self.set(path, Page::Object(Arc::new(bytes.to_vec()), format!("\"{tag}\"")));
    }

    /// How long every answer takes from now on.
    pub(crate) fn delay(&self, delay: Duration) {
        self.shared.delay_ms.store(delay.as_millis() as u64, Relaxed);
    }

    /// Lets go what was held.
    pub(crate) fn let_go(&self) {
        *self.shared.let_go.lock().unwrap() = true;
        self.shared.went.notify_all();
    }

    /// GETs and bytes of their bodies so far.
    pub(crate) fn count(&self) -> (u64, u64) {
        (self.shared.gets.load(Relaxed), self.shared.bytes.load(Relaxed))
    }
}

impl Shared {
    /// One request. `None` at the end of the connection.
    fn answer(&self, mut socket: &TcpStream) -> Option<()> {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            socket.read_exact(&mut byte).ok()?;
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).ok()?;
        let mut words = head.split(' ');
        let (method, path) = (words.next()?, words.next()?);
        let header = |name: &str| {
            head.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
            })
        };
        thread::sleep(Duration::from_millis(self.delay_ms.load(Relaxed)));
        let page = self.pages.lock().unwrap().get(path).cloned().unwrap_or(Page::Status(404));
        let (status, headers, body) = match &page {
            Page::Status(status) => (*status, String::new(), &[][..]),
            Page::Redirect(to) => (302, format!("Location: {to}\r\n"), &[][..]),
            Page::Object(bytes, _)
            | Page::Bare(bytes)
            | Page::Cut(bytes, _)
            | Page::Endless(bytes, _)
            | Page::Held(bytes, ..) => {
                let mut headers = "Accept-Ranges: bytes\r\n".to_owned();
                let tag = match &page {
                    Page::Object(_, tag)
                    | Page::Cut(_, tag)
                    | Page::Endless(_, tag)
                    | Page::Held(_, tag, _) => tag.as_str(),
                    _ => "",
                };
                if !tag.is_empty() {
                    headers.push_str(&format!("ETag: {tag}\r\n"));
                }
                if header("if-match").is_some_and(|wanted| wanted != tag) {
                    (412, headers, &[][..])
                } else if let Some(range) = header("range") {
                    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
                    let first: usize = first.parse().ok()?;
                    let last = last.parse().unwrap_or(usize::MAX).min(bytes.len() - 1);
                    let place = format!("Content-Range: bytes {first}-{last}/{}\r\n", bytes.len());
                    headers.push_str(&place);
                    (206, headers, bytes.get(first..=last)?)
                } else {
                    (200, headers, &bytes[..])
                }
            }
        };
        let head =
            format!("HTTP/1.1 {status} so\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
        socket.write_all(head.as_bytes()).ok()?;
        if method == "GET" {
            self.gets.fetch_add(1, Relaxed);
            if let Page::Cut(..) = page {
                let first = header("range").is_none_or(|range| range.starts_with("bytes=0-"));
                socket.write_all(&body[..if first { 1000 } else { 0 }]).ok()?;
                socket.shutdown(std::net::Shutdown::Both).ok()?;
                return None;
            }
            if let Page::Endless(..) = page {
                // Until whoever reads has left.
                for byte in body.chunks(1) {
                    socket.write_all(byte).ok()?;
                    thread::sleep(Duration::from_millis(200));
                }
                return None;
            }
            self.bytes.fetch_add(body.len() as u64, Relaxed);
            let mut body = body;
            if let Page::Held(_, _, most) = page {
                let first = body.split_off(..most.min(body.len()))?;
                socket.write_all(first).ok()?;
                let held = self.let_go.lock().unwrap();
                drop(self.went.wait_while(held, |let_go| !*let_go).unwrap());
            }
            socket.write_all(body).ok()?;
        }
        Some(())
    }
}
