//! Requests under way: who asks for a block that somebody is fetching waits for it.
//!
//! ```text
//!   reader 1 --begin--> Flight 0..8 --read--> source
//!      ^                  |   |
//!      +----- channel ----+   +--> writer: to disk, one block after the other
//!   reader 2 --find(5)----^
//!      ^                  |
//!      +---- block 5 -----+
//! ```
//!
//! A flight goes as far as somebody wants it to: as the reader that began it takes blocks out of a
//! bounded channel, or as others wait for blocks further on. A slow reader holds up nobody else: when
//! others want more, it loses its channel, and finds the blocks on disk. When nobody wants any more,
//! the flight ends with the block that it is at.

use std::{
    collections::HashMap,
    ops::Range,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use pager::SourceError;
use tokio::sync::{Notify, oneshot};

/// What a waiter gets. A sender that is dropped without an answer says: look again.
type Answer = Result<Bytes, SourceError>;

/// The flights of one object.
#[derive(Default)]
pub(super) struct Flights {
    list: Mutex<List>,
    written: Notify,
}

#[derive(Default)]
struct List {
    flights: Vec<Arc<Flight>>,
    /// Goes up whenever a block leaves memory for the disk: who looked at the disk before must look
    /// again.
    generation: u64,
}

/// Where a block is, if not on disk.
pub(super) enum Found {
    /// On its way to the disk.
    Here(Bytes),
    /// On its way to us, by this flight.
    Coming(oneshot::Receiver<Answer>, Arc<Flight>),
    /// Neither. The number belongs to what was seen.
    Nowhere(u64),
}

/// One request under way.
pub(super) struct Flight {
    pub(super) blocks: Range<u64>,
    state: Mutex<State>,
    news: Notify,
}

#[derive(Default)]
struct State {
    /// The first block that has not arrived.
    next: u64,
    /// Blocks that wait to be written.
    unwritten: HashMap<u64, Bytes>,
    waiters: Vec<(u64, oneshot::Sender<Answer>)>,
    over: bool,
}

impl Flights {
    fn with<T>(&self, work: impl FnOnce(&mut List) -> T) -> T {
        work(&mut self.list.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Looks for a block, and joins the flight that brings it.
    pub(super) fn find(&self, block: u64) -> Found {
        self.with(|list| {
            for flight in &list.flights {
                if !flight.blocks.contains(&block) {
                    continue;
                }
                let joined = flight.with(|state| {
                    if let Some(bytes) = state.unwritten.get(&block) {
                        return Some(Found::Here(bytes.clone()));
                    }
                    if state.over || block < state.next {
                        return None;
                    }
                    let (sender, receiver) = oneshot::channel();
                    state.waiters.push((block, sender));
                    Some(Found::Coming(receiver, flight.clone()))
                });
                if let Some(joined) = joined {
                    flight.news.notify_one();
                    return joined;
                }
            }
            Found::Nowhere(list.generation)
        })
    }

    /// Begins a flight for `blocks`, or for those before the first one that another flight brings.
    /// `None` if something happened since `generation`, or it is coming: look again.
    pub(super) fn begin(&self, blocks: Range<u64>, generation: Option<u64>) -> Option<Arc<Flight>> {
        self.with(|list| {
            if generation.is_some_and(|generation| list.generation != generation) {
                return None;
            }
            let mut blocks = blocks;
            for flight in &list.flights {
                let next = flight.with(|state| if state.over { u64::MAX } else { state.next });
                let coming = next.max(flight.blocks.start)..flight.blocks.end;
                if coming.contains(&blocks.start) {
                    return None;
                }
                if coming.start > blocks.start && coming.start < coming.end {
                    blocks.end = blocks.end.min(coming.start);
                }
            }
            let state = State { next: blocks.start, ..State::default() };
            let flight = Arc::new(Flight { blocks, state: Mutex::new(state), news: Notify::new() });
            list.flights.push(flight.clone());
            Some(flight)
        })
    }

    /// `block` is on disk, or will not get there.
    pub(super) fn written(&self, flight: &Arc<Flight>, block: u64) {
        self.with(|list| {
            list.generation += 1;
            let done = flight.with(|state| {
                state.unwritten.remove(&block);
                state.over && state.unwritten.is_empty()
            });
            if done {
                list.flights.retain(|other| !Arc::ptr_eq(other, flight));
            }
        });
        self.written.notify_waiters();
    }

    /// Resolves when none of `blocks` waits to be written.
    pub(super) async fn settled(&self, blocks: &Range<u64>) {
        loop {
            let mut written = pin!(self.written.notified());
            // From now on nothing is missed.
            written.as_mut().enable();
            let waiting = self.with(|list| {
                list.flights.iter().any(|flight| {
                    flight.with(|state| state.unwritten.keys().any(|block| blocks.contains(block)))
                })
            });
            if !waiting {
                return;
            }
            written.await;
        }
    }

    /// Nothing more will arrive, or nobody believes that it will: then what still does is written,
    /// and not waited for.
    pub(super) fn over(&self, flight: &Arc<Flight>) {
        let waiters = self.with(|list| {
            list.generation += 1;
            let (waiters, done) = flight.with(|state| {
                state.over = true;
                (std::mem::take(&mut state.waiters), state.unwritten.is_empty())
            });
            if done {
                list.flights.retain(|other| !Arc::ptr_eq(other, flight));
            }
            waiters
        });
        // Outside the lock: they look again at once.
        drop(waiters);
    }
}

impl Flight {
    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The first block that has not arrived: what goes up while a flight does.
    pub(super) fn reached(&self) -> u64 {
        self.with(|state| state.next)
    }

    /// `block` has arrived. With `stored` it will be written, and stays here until then.
    pub(super) fn arrived(&self, block: u64, bytes: &Bytes, stored: bool) {
        let served: Vec<_> = self.with(|state| {
            assert_eq!(block, state.next, "blocks arrive in their order");
            state.next = block + 1;
            if stored {
                state.unwritten.insert(block, bytes.clone());
            }
            state.waiters.extract_if(.., |waiter| waiter.0 == block).collect()
        });
        for (_, waiter) in served {
            let _ = waiter.send(Ok(bytes.clone()));
        }
    }

    /// It cannot go on: everyone who waits is told why.
    pub(super) fn failed(&self, error: &SourceError) {
        let waiters = self.with(|state| std::mem::take(&mut state.waiters));
        for (_, waiter) in waiters {
            let _ = waiter.send(Err(error.clone()));
        }
    }

    /// Whether anybody waits for `block` or one behind it.
    pub(super) fn is_wanted(&self, block: u64) -> bool {
        self.with(|state| {
            state.waiters.retain(|(_, waiter)| !waiter.is_closed());
            state.waiters.iter().any(|(wanted, _)| *wanted >= block)
        })
    }

    /// Resolves when somebody waits for `block` or one behind it.
    pub(super) async fn wanted(&self, block: u64) {
        while !self.is_wanted(block) {
            self.news.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(n: u64) -> Bytes {
        Bytes::from(vec![n as u8; 4])
    }

    fn nowhere(flights: &Flights, block: u64) -> u64 {
        match flights.find(block) {
            Found::Nowhere(generation) => generation,
            _ => panic!("block {block} should be nowhere"),
        }
    }

    #[test]
    fn a_block_is_coming_then_here_then_on_disk() {
        let flights = Flights::default();
        let generation = nowhere(&flights, 3);
        let flight = flights.begin(2..6, Some(generation)).expect("nothing happened");
        let Found::Coming(mut waiting, _) = flights.find(3) else { panic!("it is coming") };
        assert!(flight.is_wanted(3) && !flight.is_wanted(4));
        flight.arrived(2, &bytes(2), true);
        flight.arrived(3, &bytes(3), true);
        assert_eq!(waiting.try_recv().expect("an answer").expect("bytes"), bytes(3));
        let Found::Here(here) = flights.find(3) else { panic!("it waits to be written") };
        assert_eq!(here, bytes(3));
        let seen = nowhere(&flights, 7);
        flights.written(&flight, 3);
        nowhere(&flights, 3);
        assert!(flights.begin(7..8, Some(seen)).is_none(), "look again: a block went to the disk");
        flights.over(&flight);
        assert!(matches!(flights.find(2), Found::Here(_)), "what was not written stays");
        flights.written(&flight, 2);
        assert!(flights.with(|list| list.flights.is_empty()));
    }

    #[test]
    fn flights_do_not_overlap() {
        let flights = Flights::default();
        let first = flights.begin(4..8, None).expect("a flight");
        let before = flights.begin(0..10, None).expect("a flight");
        assert_eq!(before.blocks, 0..4);
        assert!(flights.begin(5..6, None).is_none(), "it is coming");
        assert!(flights.begin(8..9, None).is_some());
        first.arrived(4, &bytes(4), false);
        let again = flights.begin(4..8, None).expect("4 came and was not kept");
        assert_eq!(again.blocks, 4..5);
    }

    #[test]
    fn who_waits_for_a_flight_that_ends_looks_again_or_is_told() {
        let flights = Flights::default();
        let flight = flights.begin(0..4, None).expect("a flight");
        let (Found::Coming(mut one, _), Found::Coming(mut two, _)) =
            (flights.find(1), flights.find(2))
        else {
            panic!("they are coming")
        };
        let error = SourceError::NotFound { object: "x".to_owned(), cause: None };
        flight.failed(&error);
        for waiting in [&mut one, &mut two] {
            assert!(waiting.try_recv().expect("an answer").is_err());
        }
        let Found::Coming(mut three, _) = flights.find(3) else { panic!("it is coming") };
        flights.over(&flight);
        assert!(three.try_recv().is_err(), "dropped: look again");
        nowhere(&flights, 3);
    }
}
