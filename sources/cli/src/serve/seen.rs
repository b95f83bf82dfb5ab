//! What the page and the metrics tell: who is connected, what failed, how long answers took, and which
//! parts of objects were asked for lately.
//!
//! All of it is bounded, and nothing here is on the way of an answer for longer than a short lock.
//! What a client reads from a descriptor that it keeps is not seen: the server has no part in it.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use pager::Version;
use sources::{SourceError, disk_cache::ObjectMap, server::socket::Socket};

/// Failures that are kept for people, the latest ones.
const FAILURES_MAX: usize = 32;
/// Letters of a text from outside that are kept: an address, an error.
const TEXT_MAX: usize = 512;
/// Objects whose heat is known, the latest ones.
const OBJECTS_MAX: usize = 64;
/// Parts of an object in a picture.
pub(super) const CELLS_MAX: usize = 256;
/// After so long, a question counts half.
const HALF_LIFE: Duration = Duration::from_secs(30);
/// Upper edges of the histogram's buckets, in microseconds. The last one is open.
pub(super) const BUCKETS_US: [u64; 11] =
    [100, 500, 1_000, 5_000, 10_000, 50_000, 100_000, 500_000, 1_000_000, 5_000_000, 10_000_000];

/// See the module.
pub(super) struct Seen {
    begun: Instant,
    clients: Mutex<Clients>,
    failures: Mutex<VecDeque<Failed>>,
    heat: Mutex<HashMap<(String, String), Heat>>,
    under_way: AtomicU64,
    pub(super) times: Times,
}

/// How long requests took.
#[derive(Default)]
pub(super) struct Times {
    pub(super) buckets: [AtomicU64; BUCKETS_US.len() + 1],
    pub(super) sum_us: AtomicU64,
}

#[derive(Default)]
struct Clients {
    next: u64,
    all: BTreeMap<u64, Arc<Client>>,
}

/// A connection.
pub(super) struct Client {
    /// `V000` or `blocks`.
    pub(super) protocol: &'static str,
    /// Who is on the other end, as well as is known.
    pub(super) who: String,
    pub(super) since: Instant,
    pub(super) requests: AtomicU64,
}

/// A request that failed.
#[derive(Clone)]
pub(super) struct Failed {
    pub(super) at: Instant,
    pub(super) who: String,
    pub(super) what: String,
    /// One after the other, the same: so many.
    pub(super) times: u64,
}

/// Which parts of an object were asked for, in questions that count less as time goes by.
struct Heat {
    used: Instant,
    cells: Vec<(f32, Instant)>,
}

/// A connection that is listed as long as this lives.
pub(super) struct Listed {
    server: Arc<super::Server>,
    id: u64,
    pub(super) client: Arc<Client>,
}

/// A request that is worked on as long as this lives.
pub(super) struct Turn<'a> {
    seen: &'a Seen,
    began: Instant,
}

impl Default for Seen {
    fn default() -> Seen {
        Seen {
            begun: Instant::now(),
            clients: Mutex::default(),
            failures: Mutex::default(),
            heat: Mutex::default(),
            under_way: AtomicU64::new(0),
            times: Times::default(),
        }
    }
}

fn locked<T, R>(what: &Mutex<T>, work: impl FnOnce(&mut T) -> R) -> R {
    work(&mut what.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Who is on the other end.
pub(super) fn who(socket: &Socket) -> String {
    match socket {
        Socket::Tcp(stream) => {
            stream.peer_addr().map_or("gone".to_owned(), |peer| peer.to_string())
        }
        Socket::Unix(stream) => match stream.peer_cred() {
            Ok(peer) => {
                let name = peer.pid().and_then(|pid| {
                    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
                    Some(format!("{} (pid {pid}, ", shown(name.trim())))
                });
                match name {
                    Some(name) => format!("{name}uid {})", peer.uid()),
                    None => format!("uid {}", peer.uid()),
                }
            }
            Err(_) => "gone".to_owned(),
        },
    }
}

/// A text from outside as people may see it: one line, not long, and of every address in it neither
/// user nor query nor options, which may hold a password, a token or a signature.
pub(super) fn shown(text: &str) -> String {
    let mut out = String::new();
    for (n, word) in text.split(|c: char| c.is_whitespace() || c.is_control()).enumerate() {
        if n > 0 {
            out.push(' ');
        }
        match word.split_once("://") {
            Some((scheme, rest)) => {
                let end = rest.find(['?', '#']).unwrap_or(rest.len());
                let (kept, cut) = rest.split_at(end);
                let authority = kept.find('/').unwrap_or(kept.len());
                let host = kept[..authority].rfind('@').map_or(0, |at| at + 1);
                out.push_str(scheme);
                out.push_str("://");
                out.push_str(&kept[host..]);
                // What an error says behind the address stays.
                if !cut.is_empty() {
                    out.push_str("?...");
                    out.extend(cut.chars().next_back().filter(|c| matches!(c, ':' | ',' | ';')));
                }
            }
            // A path, with what would be a query if it were an address.
            None => match word.find(['?', '#']).filter(|&end| word[..end].contains('/')) {
                Some(end) => {
                    out.push_str(&word[..end]);
                    out.push_str("?...");
                }
                None => out.push_str(word),
            },
        }
        if out.len() > TEXT_MAX {
            let end = out.floor_char_boundary(TEXT_MAX);
            out.truncate(end);
            out.push_str("...");
            break;
        }
    }
    out
}

impl Seen {
    /// Since the server began.
    pub(super) fn uptime(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Requests that are worked on.
    pub(super) fn under_way(&self) -> u64 {
        self.under_way.load(Relaxed)
    }

    /// A request of `client` begins.
    pub(super) fn turn(&self, client: &Client) -> Turn<'_> {
        client.requests.fetch_add(1, Relaxed);
        self.under_way.fetch_add(1, Relaxed);
        Turn { seen: self, began: Instant::now() }
    }

    /// A request of `client` failed.
    pub(super) fn failed(&self, client: &Client, error: &SourceError) {
        self.note(client, shown(&crate::with_causes(error)));
    }

    /// `client` may ask for nothing, the latest of `times` such ones.
    pub(super) fn denied(&self, client: &Client, why: &str, times: u64) {
        self.note(client, format!("denied: {why}"));
        // Who tries again and again does not fill the log.
        if times.is_power_of_two() {
            tracing::warn!(who = client.who, why, times, "a client may ask for nothing");
        }
    }

    fn note(&self, client: &Client, what: String) {
        let at = Instant::now();
        locked(&self.failures, |failures| {
            if let Some(last) = failures.front_mut().filter(|last| last.what == what) {
                (last.at, last.times) = (at, last.times + 1);
                last.who.clone_from(&client.who);
                return;
            }
            failures.truncate(FAILURES_MAX - 1);
            failures.push_front(Failed { at, who: client.who.clone(), what, times: 1 });
        });
    }

    /// What failed, the latest first.
    pub(super) fn failures(&self) -> Vec<Failed> {
        locked(&self.failures, |failures| failures.iter().cloned().collect())
    }

    /// At most `max` connections, those that have been there for longest first, and how many there
    /// are of each protocol.
    pub(super) fn clients(&self, max: usize) -> (Vec<Arc<Client>>, BTreeMap<&'static str, usize>) {
        locked(&self.clients, |clients| {
            let mut count = BTreeMap::from([("V000", 0), ("blocks", 0)]);
            for client in clients.all.values() {
                *count.entry(client.protocol).or_default() += 1;
            }
            (clients.all.values().take(max).cloned().collect(), count)
        })
    }

    /// Somebody asked for `range` of an object with blocks of `block_bytes`.
    pub(super) fn asked(
        &self,
        object: &super::objects::Object,
        version: &Version,
        len: u64,
        range: &Range<u64>,
    ) {
        use pager::BlockSource;
        self.asked_of((object.name(), version.token()), len, object.block_bytes(), range);
    }

    fn asked_of(&self, key: (&str, &str), len: u64, block_bytes: u64, range: &Range<u64>) {
        let blocks = len.div_ceil(block_bytes).max(1);
        let cells = blocks.min(CELLS_MAX as u64);
        let cell = |block: u64| {
            let cell = u128::from(block) * u128::from(cells) / u128::from(blocks);
            (cell as usize).min(cells as usize - 1)
        };
        let now = Instant::now();
        let key = (key.0.to_owned(), key.1.to_owned());
        locked(&self.heat, |heat| {
            if heat.len() >= OBJECTS_MAX && !heat.contains_key(&key) {
                let oldest = heat.iter().min_by_key(|(_, heat)| heat.used);
                if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                    heat.remove(&oldest);
                }
            }
            let fresh = || Heat { used: now, cells: vec![(0.0, now); cells as usize] };
            let heat = heat.entry(key).or_insert_with(fresh);
            if heat.cells.len() != cells as usize {
                *heat = fresh();
            }
            heat.used = now;
            let last = cell((range.end.max(range.start + 1) - 1) / block_bytes);
            for (count, at) in &mut heat.cells[cell(range.start / block_bytes)..=last] {
                *count = faded(*count, *at, now) + 1.0;
                *at = now;
            }
        });
    }

    /// How hot the parts of an object are: 0 to 3.
    pub(super) fn heat(&self, map: &ObjectMap) -> Vec<u8> {
        let name = |text: &Option<String>| text.clone().unwrap_or_default();
        let now = Instant::now();
        locked(&self.heat, |heat| match heat.get(&(name(&map.name), name(&map.version))) {
            Some(heat) if heat.cells.len() == map.cells.len() => {
                heat.cells.iter().map(|&(count, at)| level(faded(count, at, now))).collect()
            }
            _ => vec![0; map.cells.len()],
        })
    }
}

fn faded(count: f32, at: Instant, now: Instant) -> f32 {
    let halves = now.saturating_duration_since(at).as_secs_f32() / HALF_LIFE.as_secs_f32();
    count * (-halves).exp2()
}

/// Once lately, some times, often.
fn level(count: f32) -> u8 {
    match count {
        _ if count < 0.25 => 0,
        _ if count < 1.5 => 1,
        _ if count < 6.0 => 2,
        _ => 3,
    }
}

impl super::Server {
    /// Lists a connection.
    pub(super) fn list(self: &Arc<Self>, protocol: &'static str, who: String) -> Listed {
        let (since, requests) = (Instant::now(), AtomicU64::new(0));
        let client = Arc::new(Client { protocol, who, since, requests });
        let id = locked(&self.seen.clients, |clients| {
            clients.next += 1;
            clients.all.insert(clients.next, client.clone());
            clients.next
        });
        Listed { server: self.clone(), id, client }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        locked(&self.server.seen.clients, |clients| clients.all.remove(&self.id));
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let us = self.began.elapsed().as_micros() as u64;
        let times = &self.seen.times;
        times.buckets[BUCKETS_US.partition_point(|&edge| edge < us)].fetch_add(1, Relaxed);
        times.sum_us.fetch_add(us, Relaxed);
        self.seen.under_way.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_a_secret_is_not_shown() {
        let cases = [
            ("https://host/a?X-Amz-Signature=abc: status 403", "https://host/a?...: status 403"),
            ("https://user:word@host/a@b", "https://host/a@b"),
            ("(s3://bucket/key#extmem:token=x)", "(s3://bucket/key?..."),
            ("two\nlines\u{1b}[2J", "two lines [2J"),
            ("/tmp/none?X-Sig=SECRET: no such", "/tmp/none?... no such"),
            ("a plain? text, 5 # of them", "a plain? text, 5 # of them"),
        ];
        for (text, expected) in cases {
            assert_eq!(shown(text), expected);
        }
        let long = shown(&"\u{e4}".repeat(5000));
        assert!(long.len() <= TEXT_MAX + 3 && long.ends_with("\u{e4}..."), "{}", long.len());
    }

    #[test]
    fn heat_is_of_the_blocks_that_were_asked_for_and_fades() {
        let seen = Seen::default();
        let ask = |range| seen.asked_of(("o", "1"), 10 * 4096, 4096, &range);
        let map = |cells| ObjectMap {
            id: String::new(),
            name: Some("o".to_owned()),
            version: Some("1".to_owned()),
            len: 10 * 4096,
            block_bytes: 4096,
            cached_bytes: 0,
            cells: vec![Default::default(); cells],
        };
        ask(4096..8192);
        for _ in 0..3 {
            ask(2 * 4096..2 * 4096 + 1);
        }
        for _ in 0..20 {
            ask(9 * 4096..10 * 4096);
        }
        assert_eq!(seen.heat(&map(10)), [0, 1, 2, 0, 0, 0, 0, 0, 0, 3]);
        assert_eq!(seen.heat(&map(9)), [0; 9], "another shape");
        let now = Instant::now();
        let half = faded(8.0, now, now + HALF_LIFE);
        assert!((half - 4.0).abs() < 1e-3, "{half}");
        // However many objects there are.
        for n in 0..OBJECTS_MAX + 10 {
            seen.asked_of((&n.to_string(), ""), 1 << 60, 4096, &(0..1 << 60));
        }
        locked(&seen.heat, |heat| assert_eq!(heat.len(), OBJECTS_MAX));
    }
}
