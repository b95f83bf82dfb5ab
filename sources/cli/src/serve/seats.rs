//! Who is served: places for connections, turns for requests, room for answers that nobody has read
//! yet, and what else there is so much of.
//!
//! Each listener has places of its own, and each of its clients, an address or a user of this machine,
//! at most so many of them, and half of everything that is shared: whatever one does, the others find
//! some. Who is turned away takes one of a few places beside them, for as long as that takes to say.
//!
//! Who has just come and said nothing is a newcomer. Where there is no place left, the newcomer that has
//! been silent for longest gives way to the next: of its client, if that has all it may have, else of
//! the listener. Where there are places, any number may come at once.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// Connections that are being told that they are not served.
const REFUSED_MAX: usize = 16;
/// Bytes of answers that wait to be read, of all connections: half of them for one client.
const UNREAD_BYTES: u64 = 256 << 20;
/// They are counted by this.
const UNIT: u64 = 4096;
/// Announcements of readers that are followed at once.
const ANNOUNCED_MAX: usize = 64;
/// What one client's open objects may take in texts: addresses and versions.
const HANDLE_BYTES: u64 = 64 << 20;
/// They are counted by this, and an object takes so much besides.
const HANDLE_UNIT: u64 = 64;
const HANDLE_BESIDE: u64 = 512;

/// Who is on the other end, and by which listener it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Peer {
    V000(IpAddr),
    User(u32),
    Tcp(IpAddr),
    /// Somebody who is not to be served.
    Refused,
}

impl Peer {
    fn listener(self) -> usize {
        match self {
            Peer::V000(_) => 0,
            Peer::User(_) => 1,
            Peer::Tcp(_) => 2,
            Peer::Refused => 3,
        }
    }
}

/// What is shared out, and how much of it there is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shares {
    /// Requests that are worked on.
    pub(super) requests: usize,
    /// Descriptors that are on their way to clients.
    pub(super) files: usize,
    /// Parts of objects that are being put into memory.
    pub(super) fills: usize,
}

/// What is left of it: for all, or for one client.
struct Left {
    requests: Arc<Semaphore>,
    unread: Arc<Semaphore>,
    announced: Arc<Semaphore>,
    files: Arc<Semaphore>,
    fills: Arc<Semaphore>,
}

impl Left {
    /// All of it, divided by `parts`, and not less than one of each.
    fn of(shares: Shares, parts: usize) -> Arc<Left> {
        let some = |count: usize| Arc::new(Semaphore::new(count.div_ceil(parts).max(1)));
        Arc::new(Left {
            requests: some(shares.requests),
            unread: some(units(UNREAD_BYTES)),
            announced: some(ANNOUNCED_MAX),
            files: some(shares.files),
            fills: some(shares.fills),
        })
    }
}

/// See the module.
pub(super) struct Seats {
    /// Of one listener, and of one client of it.
    listener_max: usize,
    client_max: usize,
    shares: Shares,
    left: Arc<Left>,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    clients: HashMap<Peer, Client>,
    listeners: [usize; 4],
    /// Those who have said nothing yet, in the order in which they came.
    newcomers: BTreeMap<u64, Newcomer>,
    next: u64,
}

struct Newcomer {
    peer: Peer,
    leave: Arc<Notify>,
}

impl Held {
    /// The place of a connection that came from `peer` is free.
    fn free(&mut self, peer: Peer) {
        self.listeners[peer.listener()] -= 1;
        if let Some(client) = self.clients.get_mut(&peer) {
            client.seats -= 1;
            if client.seats == 0 {
                self.clients.remove(&peer);
            }
        }
    }

    /// Takes the place of the newcomer that came first, of those that `concerns`.
    fn oust(&mut self, concerns: impl Fn(Peer) -> bool) {
        let first = self.newcomers.iter().find(|(_, one)| concerns(one.peer));
        let Some(number) = first.map(|(number, _)| *number) else { return };
        if let Some(newcomer) = self.newcomers.remove(&number) {
            newcomer.leave.notify_one();
            self.free(newcomer.peer);
        }
    }
}

struct Client {
    seats: usize,
    left: Arc<Left>,
    handles: Arc<Semaphore>,
    hosts: Arc<Hosts>,
}

/// A client's requests by the host that they ask. One that does not answer takes three quarters of them
/// at most, and leaves the rest to other hosts.
struct Hosts {
    most: usize,
    left: Mutex<HashMap<String, Arc<Semaphore>>>,
}

impl Hosts {
    /// Of a client that may have so many requests worked on.
    fn of(requests: usize) -> Arc<Hosts> {
        Arc::new(Hosts { most: (requests * 3 / 4).max(1), left: Mutex::default() })
    }

    /// What is left for the host of `url`.
    fn left(&self, url: &str) -> Arc<Semaphore> {
        let host = host(url);
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(left) = left.get(host) {
            return left.clone();
        }
        // Whoever asks a host, or waits to, has it.
        left.retain(|_, left| Arc::strong_count(left) > 1);
        let fresh = Arc::new(Semaphore::new(self.most));
        left.insert(host.to_owned(), fresh.clone());
        fresh
    }
}

/// An address to the end of its host, or bucket.
fn host(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |end| start + end);
    &url[..end]
}

/// A connection's place. Free again when dropped.
pub(super) struct Seat {
    seats: Arc<Seats>,
    peer: Peer,
    /// Of the newcomer that it was.
    number: u64,
    leave: Arc<Notify>,
    has_begun: AtomicBool,
    /// What is left for its client.
    own: Arc<Left>,
    handles: Arc<Semaphore>,
    hosts: Arc<Hosts>,
}

/// A part of what is shared, given back when it is dropped.
pub(super) struct Part {
    _client: Option<OwnedSemaphorePermit>,
    _all: Option<OwnedSemaphorePermit>,
    /// Of requests alone.
    _host: Option<OwnedSemaphorePermit>,
}

impl Part {
    /// Waits for so many. In this order: who waits for all holds up its own client alone.
    async fn of(client: &Arc<Semaphore>, all: &Arc<Semaphore>, count: u32) -> Part {
        let client = client.clone().acquire_many_owned(count).await.ok();
        let all = all.clone().acquire_many_owned(count).await.ok();
        Part { _client: client, _all: all, _host: None }
    }

    /// So many, if they are there now.
    fn now(client: &Arc<Semaphore>, all: &Arc<Semaphore>, count: u32) -> Option<Part> {
        let client = client.clone().try_acquire_many_owned(count).ok()?;
        let all = all.clone().try_acquire_many_owned(count).ok()?;
        Some(Part { _client: Some(client), _all: Some(all), _host: None })
    }
}

fn units(bytes: u64) -> usize {
    bytes.div_ceil(UNIT) as usize
}

impl Seats {
    pub(super) fn new(listener_max: usize, client_max: usize, shares: Shares) -> Arc<Seats> {
        let (left, held) = (Left::of(shares, 1), Mutex::default());
        Arc::new(Seats { listener_max, client_max, shares, left, held })
    }

    fn with<T>(&self, work: impl FnOnce(&mut Held) -> T) -> T {
        work(&mut self.held.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A place, or `None` if there are as many as may be.
    pub(super) fn take(self: &Arc<Seats>, peer: Peer) -> Option<Seat> {
        let (listener_max, client_max) = match peer {
            Peer::Refused => (REFUSED_MAX, REFUSED_MAX),
            _ => (self.listener_max, self.client_max),
        };
        let leave = Arc::new(Notify::new());
        let (number, own, handles, hosts) = self.with(|held| {
            let seats_of = |held: &Held| held.clients.get(&peer).map_or(0, |client| client.seats);
            let listener = peer.listener();
            if peer == Peer::Refused {
                // They are told, and go.
            } else if seats_of(held) >= client_max {
                held.oust(|other| other == peer);
            } else if held.listeners[listener] >= listener_max {
                held.oust(|other| other.listener() == listener);
            }
            let seats = seats_of(held);
            let taken = &mut held.listeners[peer.listener()];
            if *taken >= listener_max || seats >= client_max {
                return None;
            }
            *taken += 1;
            let client = held.clients.entry(peer).or_insert_with(|| Client {
                seats: 0,
                left: Left::of(self.shares, 2),
                handles: Arc::new(Semaphore::new((HANDLE_BYTES / HANDLE_UNIT) as usize)),
                hosts: Hosts::of(self.shares.requests.div_ceil(2)),
            });
            client.seats += 1;
            held.next += 1;
            held.newcomers.insert(held.next, Newcomer { peer, leave: leave.clone() });
            Some((held.next, client.left.clone(), client.handles.clone(), client.hosts.clone()))
        })?;
        let (seats, has_begun) = (self.clone(), AtomicBool::new(false));
        Some(Seat { seats, peer, number, leave, has_begun, own, handles, hosts })
    }
}

impl Seat {
    /// It is a newcomer no more. False if another has its place already.
    pub(super) fn begin(&self) -> bool {
        self.seats.with(|held| {
            if held.newcomers.remove(&self.number).is_some() {
                self.has_begun.store(true, Relaxed);
            }
        });
        self.has_begun.load(Relaxed)
    }

    /// Resolves when another has its place.
    pub(super) async fn ousted(&self) {
        self.leave.notified().await;
    }

    /// Waits until one more request for `url` may be worked on. What the disk has needs none: else a
    /// source that does not answer would hold it up.
    pub(super) async fn turn(&self, url: &str) -> Part {
        let host = self.hosts.left(url).acquire_owned().await.ok();
        let part = Part::of(&self.own.requests, &self.seats.left.requests, 1).await;
        Part { _host: host, ..part }
    }

    /// The same, if it may be now.
    pub(super) fn turn_now(&self, url: &str) -> Option<Part> {
        let host = self.hosts.left(url).try_acquire_owned().ok()?;
        let part = Part::now(&self.own.requests, &self.seats.left.requests, 1)?;
        Some(Part { _host: Some(host), ..part })
    }

    /// Waits until there is room for an answer of so many bytes, which is given back when it is read.
    pub(super) async fn room(&self, bytes: u64) -> Part {
        Part::of(&self.own.unread, &self.seats.left.unread, units(bytes) as u32).await
    }

    /// Room for an answer, if there is some now.
    pub(super) fn room_now(&self, bytes: u64) -> Option<Part> {
        Part::now(&self.own.unread, &self.seats.left.unread, units(bytes) as u32)
    }

    /// Leave to follow one more announcement, if there is any.
    pub(super) fn announcement(&self) -> Option<Part> {
        Part::now(&self.own.announced, &self.seats.left.announced, 1)
    }

    /// Waits until one more descriptor may be on its way.
    pub(super) async fn file(&self) -> Part {
        Part::of(&self.own.files, &self.seats.left.files, 1).await
    }

    /// Waits until one more part of an object may be put into memory.
    pub(super) async fn fill(&self) -> Part {
        Part::of(&self.own.fills, &self.seats.left.fills, 1).await
    }

    /// Room for one more open object, whose texts have so many bytes, if there is some.
    pub(super) fn handle(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let units = (bytes + HANDLE_BESIDE).div_ceil(HANDLE_UNIT) as u32;
        self.handles.clone().try_acquire_many_owned(units).ok()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.with(|held| {
            let is_newcomer = held.newcomers.remove(&self.number).is_some();
            if is_newcomer || self.has_begun.load(Relaxed) {
                held.free(self.peer);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn seats(listener_max: usize, client_max: usize, each: usize) -> Arc<Seats> {
        let shares = Shares { requests: each, files: each, fills: each };
        Seats::new(listener_max, client_max, shares)
    }

    #[test]
    fn one_client_or_listener_leaves_places_to_the_others() {
        let seats = seats(3, 2, 1);
        let (one, two) = (Peer::User(1), Peer::User(2));
        let take = |peer| seats.take(peer).filter(Seat::begin);
        let first = take(one).expect("a place");
        let _second = take(one).expect("a place");
        assert!(seats.take(one).is_none(), "two for each client");
        let _third = take(two).expect("a place");
        assert!(seats.take(two).is_none(), "three for the listener");
        let here = IpAddr::from([127, 0, 0, 1]);
        let _other = seats.take(Peer::V000(here)).expect("another listener has its own");
        let refused: Vec<_> = (0..50).map_while(|_| seats.take(Peer::Refused)).collect();
        assert_eq!(refused.len(), REFUSED_MAX);
        drop(first);
        assert!(seats.take(two).is_some());
        drop(refused);
        assert!(seats.take(Peer::Refused).is_some());
    }

    /// 512 connections that said nothing left no place to whoever had something to say.
    #[test]
    fn who_says_nothing_gives_way() {
        let seats = seats(5, 3, 1);
        let (one, two) = (Peer::User(1), Peer::User(2));
        let begun = seats.take(one).expect("a place");
        assert!(begun.begin() && begun.begin());
        let silent = [seats.take(one).expect("a place"), seats.take(one).expect("a place")];
        let third = seats.take(one).expect("that of the first");
        assert!(silent[0].ousted().now_or_never().is_some() && !silent[0].begin());
        assert!(silent[1].ousted().now_or_never().is_none() && silent[1].begin());
        assert!(third.begin());
        assert!(seats.take(one).is_none(), "three have begun");
        // Who was ousted has no place to give back.
        drop(silent);
        let _another = seats.take(one).filter(Seat::begin).expect("that of one of them");
        assert!(seats.take(one).is_none());
        // Of other clients, too, where the listener is full.
        let here = |n: u8| Peer::Tcp(IpAddr::from([127, 0, 0, n]));
        let many: Vec<_> = (0..5).map(|n| seats.take(here(n))).collect();
        assert!(many.iter().flatten().all(|seat| seat.ousted().now_or_never().is_none()));
        let many: Vec<_> = many.into_iter().chain([seats.take(here(5))]).collect();
        assert!(many.iter().all(Option::is_some));
        let ousted = many.iter().flatten().filter(|seat| seat.ousted().now_or_never().is_some());
        assert_eq!(ousted.count(), 1);
        assert!(seats.take(two).is_some(), "another listener has its own");
        drop(many);
        seats.with(|held| assert_eq!((held.listeners[2], held.newcomers.len()), (0, 0)));
    }

    #[tokio::test]
    async fn one_client_leaves_room_to_the_others() {
        let seats = seats(10, 10, 1);
        let slow = seats.take(Peer::User(1)).expect("a place");
        let held = slow.room(UNREAD_BYTES / 2).await;
        assert!(slow.room_now(1).is_none());
        let more = slow.room(1);
        let other = seats.take(Peer::User(2)).expect("a place");
        other.room(UNREAD_BYTES / 4).await;
        assert!(more.now_or_never().is_none());
        drop(held);
        slow.room(1).await;
        assert!(slow.room_now(1).is_some());
    }

    /// Whatever it is, by however many connections.
    #[tokio::test]
    async fn one_client_leaves_half_to_the_others() {
        let seats = seats(10, 10, 5);
        let (slow, too) = (seats.take(Peer::User(1)), seats.take(Peer::User(1)));
        let (slow, too) = (slow.expect("a place"), too.expect("another of its connections"));
        let other = seats.take(Peer::User(2)).expect("a place");
        let mut held = Vec::new();
        for (seat, url) in [(&slow, "s3://a/1"), (&too, "s3://b"), (&slow, "s3://c?x/y")] {
            held.push((seat.turn(url).await, seat.file().await, seat.fill().await));
        }
        assert!(too.turn("s3://d").now_or_never().is_none(), "three of five, rounded up");
        assert!(too.turn_now("s3://d").is_none());
        assert!(too.file().now_or_never().is_none() && too.fill().now_or_never().is_none());
        for url in ["s3://a/1", "s3://a/2"] {
            held.push((other.turn(url).await, other.file().await, other.fill().await));
        }
        held.remove(0);
        held.push((too.turn("s3://d").await, too.file().await, too.fill().await));
        let announced: Vec<_> = (0..100).map_while(|_| slow.announcement()).collect();
        assert_eq!(announced.len(), ANNOUNCED_MAX / 2);
        let others: Vec<_> = (0..100).map_while(|_| other.announcement()).collect();
        assert_eq!(others.len(), ANNOUNCED_MAX / 2);
    }

    /// A host that does not answer had all turns of its client, by however many connections.
    #[tokio::test]
    async fn one_host_leaves_a_quarter_to_the_others() {
        let seats = seats(10, 10, 16);
        let (one, two) = (seats.take(Peer::User(1)), seats.take(Peer::User(1)));
        let (one, two) = (one.expect("a place"), two.expect("a place"));
        let mut held = Vec::new();
        for n in 0..3 {
            held.push(one.turn(&format!("http://slow:80/{n}?a")).await);
            held.push(two.turn_now(&format!("http://slow:80?{n}")).expect("six of eight"));
        }
        assert!(two.turn_now("http://slow:80/x").is_none());
        assert!(one.turn("http://slow:80/x").now_or_never().is_none());
        held.push(one.turn("http://slow:81/x").await);
        held.push(two.turn_now("http://other/slow:80").expect("the last of eight"));
        assert!(one.turn_now("s3://bucket").is_none());
        drop(held);
        assert!(two.turn_now("http://slow:80/x").is_some());
        two.hosts.left("http://one-more");
        assert_eq!(two.hosts.left.lock().expect("nobody panicked").len(), 1, "those in use");
    }

    /// 1024 objects on each of 512 connections, with 16 KiB of texts each, were 8 GiB.
    #[test]
    fn the_texts_of_open_objects_are_bounded() {
        let seats = seats(10, 10, 1);
        let one = seats.take(Peer::User(1)).expect("a place");
        let held: Vec<_> = (0..100_000).map_while(|_| one.handle(16 << 10)).collect();
        assert!((3000..=4096).contains(&held.len()), "{}", held.len());
        assert!(seats.take(Peer::User(2)).expect("a place").handle(16 << 10).is_some());
        drop(held);
        assert!(one.handle(100).is_some());
    }
}
