//! Who is served: places for connections, turns for requests, and room for answers that nobody has read
//! yet.
//!
//! Each listener has places of its own, and each of its clients, an address or a user of this machine,
//! at most so many of them, and half of all turns: whatever one does, the others find a place. Who is turned away takes one
//! of a few places beside them, for as long as that takes to say.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections that are being told that they are not served.
const REFUSED_MAX: usize = 16;
/// Bytes of answers that wait to be read, of all connections, and of those of one client.
const UNREAD_BYTES: u64 = 256 << 20;
const UNREAD_BYTES_PER_CLIENT: u64 = 128 << 20;
/// They are counted by this.
const UNIT: u64 = 4096;

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

/// See the module.
pub(super) struct Seats {
    /// Of one listener, and of one client of it.
    listener_max: usize,
    client_max: usize,
    held: Mutex<Held>,
    unread: Arc<Semaphore>,
    /// Requests that are worked on, and how many of them for one client.
    requests: Arc<Semaphore>,
    requests_per_client: usize,
}

#[derive(Default)]
struct Held {
    clients: HashMap<Peer, Client>,
    listeners: [usize; 4],
}

struct Client {
    seats: usize,
    unread: Arc<Semaphore>,
    requests: Arc<Semaphore>,
}

/// A connection's place. Free again when dropped.
pub(super) struct Seat {
    seats: Arc<Seats>,
    peer: Peer,
    /// Room of its client for answers.
    unread: Arc<Semaphore>,
    /// Turns of its client.
    requests: Arc<Semaphore>,
}

/// A request that is worked on.
pub(super) struct Turn {
    _client: Option<OwnedSemaphorePermit>,
    _all: Option<OwnedSemaphorePermit>,
}

/// Room for an answer, until it is read.
pub(super) struct Room {
    _client: Option<OwnedSemaphorePermit>,
    _all: Option<OwnedSemaphorePermit>,
}

fn units(bytes: u64) -> usize {
    (bytes / UNIT) as usize
}

impl Seats {
    pub(super) fn new(listener_max: usize, client_max: usize, requests_max: usize) -> Arc<Seats> {
        Arc::new(Seats {
            listener_max,
            client_max,
            held: Mutex::default(),
            unread: Arc::new(Semaphore::new(units(UNREAD_BYTES))),
            requests: Arc::new(Semaphore::new(requests_max)),
            requests_per_client: requests_max.div_ceil(2),
        })
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
        let (unread, requests) = self.with(|held| {
            let seats = held.clients.get(&peer).map_or(0, |client| client.seats);
            let taken = &mut held.listeners[peer.listener()];
            if *taken >= listener_max || seats >= client_max {
                return None;
            }
            *taken += 1;
            let client = held.clients.entry(peer).or_insert_with(|| Client {
                seats: 0,
                unread: Arc::new(Semaphore::new(units(UNREAD_BYTES_PER_CLIENT))),
                requests: Arc::new(Semaphore::new(self.requests_per_client)),
            });
            client.seats += 1;
            Some((client.unread.clone(), client.requests.clone()))
        })?;
        Some(Seat { seats: self.clone(), peer, unread, requests })
    }
}

impl Seat {
    /// Waits until one more request may be worked on.
    pub(super) async fn turn(&self) -> Turn {
        // In this order, as below.
        let client = self.requests.clone().acquire_owned().await.ok();
        let all = self.seats.requests.clone().acquire_owned().await.ok();
        Turn { _client: client, _all: all }
    }

    /// Waits until there is room for an answer of so many bytes.
    pub(super) async fn room(&self, bytes: u64) -> Room {
        let units = bytes.div_ceil(UNIT) as u32;
        // In this order: who waits for all holds up its own client alone.
        let client = self.unread.clone().acquire_many_owned(units).await.ok();
        let all = self.seats.unread.clone().acquire_many_owned(units).await.ok();
        Room { _client: client, _all: all }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.with(|held| {
            held.listeners[self.peer.listener()] -= 1;
            if let Some(client) = held.clients.get_mut(&self.peer) {
                client.seats -= 1;
                if client.seats == 0 {
                    held.clients.remove(&self.peer);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_or_listener_leaves_places_to_the_others() {
        let seats = Seats::new(3, 2, 1);
        let (one, two) = (Peer::User(1), Peer::User(2));
        let first = seats.take(one).expect("a place");
        let _second = seats.take(one).expect("a place");
        assert!(seats.take(one).is_none(), "two for each client");
        let _third = seats.take(two).expect("a place");
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

    #[tokio::test]
    async fn one_client_leaves_room_to_the_others() {
        let seats = Seats::new(10, 10, 1);
        let slow = seats.take(Peer::User(1)).expect("a place");
        let held = slow.room(UNREAD_BYTES_PER_CLIENT).await;
        let more = slow.room(1);
        let other = seats.take(Peer::User(2)).expect("a place");
        other.room(UNREAD_BYTES_PER_CLIENT / 2).await;
        assert!(futures::FutureExt::now_or_never(more).is_none());
        drop(held);
        slow.room(1).await;
    }

    #[tokio::test]
    async fn one_client_leaves_turns_to_the_others() {
        let seats = Seats::new(10, 10, 5);
        let (slow, too) = (seats.take(Peer::User(1)), seats.take(Peer::User(1)));
        let (slow, too) = (slow.expect("a place"), too.expect("another of its connections"));
        let mut held = vec![slow.turn().await, too.turn().await, slow.turn().await];
        let more = too.turn();
        let other = seats.take(Peer::User(2)).expect("a place");
        let _others = (other.turn().await, other.turn().await);
        assert!(futures::FutureExt::now_or_never(more).is_none(), "three of five, rounded up");
        held.pop();
        slow.turn().await;
    }
}
