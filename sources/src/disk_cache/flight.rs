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
    collections::{HashMap, VecDeque},
    ops::Range,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use pager::SourceError;
use tokio::{
    sync::{Notify, oneshot},
    time::timeout,
};
use tracing::debug;

/// How long another reader's request may bring nothing before one of our own is made: its runtime may
/// have stopped for good. Longer than a source that tries again is silent.
const FLIGHT_WAIT: Duration = Duration::from_secs(20);

/// Blocks that are remembered: all that can be written while somebody looks at the disk.
const WRITTEN_MAX: usize = 4096;

/// What a waiter gets. A sender that is dropped without an answer says: look again.
pub(super) type Answer = Result<Bytes, SourceError>;

/// A block that somebody brings.
pub(super) type Coming = oneshot::Receiver<Answer>;

/// Blocks that somebody brings, and that somebody else has passed over.
pub(super) struct Passed {
    blocks: Range<u64>,
    /// The last of them.
    coming: Coming,
    flight: Arc<Flight>,
}

impl Passed {
    /// Waits for them. `Some` where nobody brings them any more; not where the request failed: whoever
    /// asks for them is told what is wrong with them.
    pub(super) async fn arrive(self, flights: &Flights) -> Option<Range<u64>> {
        let answer = flights.answer(self.coming, &self.flight).await;
        answer.is_none().then_some(self.blocks)
    }
}

/// The flights of one object.
#[derive(Default)]
pub(super) struct Flights {
    list: Mutex<List>,
    written: Notify,
}

#[derive(Default)]
struct List {
    flights: Vec<Arc<Flight>>,
    /// Goes up whenever a block leaves memory for the disk: who looked for it there before must look
    /// again.
    generation: u64,
    /// The blocks that did so last.
    written: VecDeque<u64>,
}

impl List {
    fn note(&mut self, block: u64) {
        self.generation += 1;
        self.written.truncate(WRITTEN_MAX - 1);
        self.written.push_front(block);
    }

    /// The first of `blocks` that may have been written since `generation`.
    fn written_since(&self, generation: u64, blocks: &Range<u64>) -> Option<u64> {
        let count = self.generation - generation;
        if count > self.written.len() as u64 {
            return Some(blocks.start);
        }
        let written = self.written.iter().take(count as usize).copied();
        written.filter(|block| blocks.contains(block)).min()
    }
}

/// Where a block is, if not on disk.
pub(super) enum Found {
    /// On its way to the disk.
    Here(Bytes),
    /// On its way to us, by this flight.
    Coming(Coming, Arc<Flight>),
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

    /// Whether `block` is on its way, to us or to the disk.
    pub(super) fn has(&self, block: u64) -> bool {
        self.with(|list| {
            let mut flights = list.flights.iter().filter(|flight| flight.blocks.contains(&block));
            flights.any(|flight| {
                flight.with(|state| {
                    state.unwritten.contains_key(&block) || (!state.over && block >= state.next)
                })
            })
        })
    }

    /// The first of `blocks` that is on no way, or their end, and the number that belongs to what was
    /// seen. For what others bring somebody waits from now on, in `coming`: so they go on.
    pub(super) fn pass(&self, blocks: Range<u64>, coming: &mut Vec<Passed>) -> (u64, u64) {
        self.with(|list| {
            let mut at = blocks.start;
            'next: while at < blocks.end {
                for flight in list.flights.iter().filter(|flight| flight.blocks.contains(&at)) {
                    let passed = flight.with(|state| {
                        if state.unwritten.contains_key(&at) {
                            return Some(at + 1);
                        }
                        if state.over || at < state.next {
                            return None;
                        }
                        let end = flight.blocks.end.min(blocks.end);
                        let (sender, receiver) = oneshot::channel();
                        state.waiters.push((end - 1, sender));
                        let (blocks, flight) = (at..end, flight.clone());
                        coming.push(Passed { blocks, coming: receiver, flight });
                        Some(end)
                    });
                    if let Some(passed) = passed {
                        flight.news.notify_one();
                        at = passed;
                        continue 'next;
                    }
                }
                break;
            }
            (at, list.generation)
        })
    }

    /// What `flight` brings. `None` where it does not, or not now: look again.
    pub(super) async fn answer(&self, coming: Coming, flight: &Arc<Flight>) -> Option<Answer> {
        let reached = flight.reached();
        match timeout(FLIGHT_WAIT, coming).await {
            Ok(Ok(answer)) => return Some(answer),
            // It ended early: its reader left.
            Ok(Err(_)) => {}
            Err(_) if flight.reached() == reached => {
                debug!(reached, "another reader's request brings nothing");
                self.over(flight);
            }
            Err(_) => {}
        }
        None
    }

    /// Begins a flight for `blocks`, or for those before the first one that another flight brings or
    /// has brought. `None` if that is the first of them, or it was written since `generation`: look
    /// again.
    pub(super) fn begin(&self, blocks: Range<u64>, generation: Option<u64>) -> Option<Arc<Flight>> {
        self.with(|list| {
            let mut blocks = blocks;
            let written = generation.and_then(|seen| list.written_since(seen, &blocks));
            blocks.end = written.unwrap_or(blocks.end);
            for flight in &list.flights {
                let (next, here) = flight.with(|state| {
                    let next = if state.over { u64::MAX } else { state.next };
                    // In memory, and not on the disk where they were looked for.
                    let here = state.unwritten.keys().filter(|block| blocks.contains(block));
                    (next, here.min().copied())
                });
                blocks.end = here.unwrap_or(blocks.end);
                let coming = next.max(flight.blocks.start)..flight.blocks.end;
                if coming.contains(&blocks.start) {
                    return None;
                }
                if coming.start > blocks.start && coming.start < coming.end {
                    blocks.end = blocks.end.min(coming.start);
                }
            }
            if blocks.is_empty() {
                return None;
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
            list.note(block);
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
        assert!(flights.begin(3..4, Some(seen)).is_none(), "look again: it went to the disk");
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
    fn what_has_arrived_is_not_fetched_again() {
        let flights = Flights::default();
        let seen = nowhere(&flights, 0);
        let first = flights.begin(4..8, Some(seen)).expect("a flight");
        for block in 4..8 {
            first.arrived(block, &bytes(block), true);
        }
        // None of them is coming any more. The disk had none of them when it was looked at.
        let range = |blocks| flights.begin(blocks, Some(seen)).map(|flight| flight.blocks.clone());
        assert_eq!(range(2..10), Some(2..4), "four wait to be written");
        assert_eq!(range(5..10), None);
        for block in 4..8 {
            flights.written(&first, block);
        }
        flights.over(&first);
        assert_eq!(range(1..10), Some(1..2), "and the flight from 2 is under way");
        assert_eq!(range(6..10), None, "they were written since");
        assert_eq!(range(8..10), Some(8..10), "these were not");
        for block in 0..2 * WRITTEN_MAX as u64 {
            flights.written(&first, 1000 + block);
        }
        assert_eq!(range(20..30), None, "too much has happened: look again");
    }

    #[test]
    fn what_is_on_its_way_is_passed_over_and_kept_going() {
        let flights = Flights::default();
        let first = flights.begin(2..6, None).expect("a flight");
        let second = flights.begin(6..8, None).expect("a flight");
        first.arrived(2, &bytes(2), true);
        let mut coming = Vec::new();
        assert_eq!(flights.pass(1..9, &mut coming).0, 1, "nobody brings it");
        assert!(coming.is_empty() && !first.is_wanted(3));
        assert_eq!(flights.pass(2..9, &mut coming).0, 8, "one waits to be written");
        assert_eq!(coming.len(), 2);
        assert!(first.is_wanted(5) && second.is_wanted(7) && !second.is_wanted(8));
        assert!(flights.has(2) && flights.has(7) && !flights.has(1) && !flights.has(8));
        coming.clear();
        assert!(!first.is_wanted(3), "who waited has left");
        assert_eq!(flights.pass(2..5, &mut coming).0, 5, "no further than was asked for");
        assert!(first.is_wanted(4) && !first.is_wanted(5));
        flights.over(&second);
        assert_eq!(flights.pass(5..9, &mut coming).0, 6, "it brings nothing any more");
        assert!(!flights.has(6));
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
