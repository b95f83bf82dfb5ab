//! As many requests at once as the server bears.
//!
//! ```text
//!   allowed   ^        /|      /|          + 1 for every `allowed` requests that went well
//!             |      /  |    /  |   /      x 0.7 when the server asks for fewer
//!             |    /    |  /    | /        x 0.9 when answers take much longer than they did
//!             +------------------------>
//! ```
//!
//! Additive increase, multiplicative decrease (Chiu, Jain: "Analysis of the Increase and Decrease
//! Algorithms for Congestion Avoidance", 1989): clients that share a server end with equal shares.
//! One cut for all requests that were under way together: their complaints are about the same load.

use std::{
    collections::VecDeque,
    ops::Range,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;
use pager::{BlockSource, ByteStream, Frame, ObjectStat, ReadAtOnce, SourceError, Version};
use tokio::{sync::oneshot, time::Instant};

use crate::counters;

tokio::task_local! {
    /// The call whose attempt is being polled. [`Retry`](crate::Retry) sets it, for two reasons: waiting
    /// for one's turn is no silence of the server, and a body that broke goes on in the turn it had.
    pub(crate) static TURN: Turn;
}

/// What one call has had of gates.
#[derive(Clone, Default)]
pub(crate) struct Turn(Arc<Mutex<TurnState>>);

#[derive(Default)]
struct TurnState {
    /// Waits of this attempt that are over.
    waited: Duration,
    since: Option<Instant>,
    /// Turns without a request, where they are kept.
    kept: Option<Kept>,
}

#[derive(Default)]
struct Kept {
    seats: Vec<Seat>,
    /// Turns that gates have had back for a while.
    lent: Vec<Lent>,
}

impl Turn {
    /// The next attempt has not waited.
    pub(crate) fn next_attempt(&self) {
        self.with(|turn| (turn.waited, turn.since) = (Duration::ZERO, None));
    }

    /// Time that this attempt has spent at gates, the present wait included.
    pub(crate) fn waited(&self) -> Duration {
        self.with(|turn| turn.waited + turn.since.map_or(Duration::ZERO, |since| since.elapsed()))
    }

    /// Whether it stands at a gate now.
    pub(crate) fn is_waiting(&self) -> bool {
        self.with(|turn| turn.since.is_some())
    }

    /// From now on the turns of this call are its own until [`Turn::release`], whatever its attempts
    /// come to. Who reads a body in parts has a place ready for the next one; were he to queue up with
    /// it, those who have their turns might be waiting for that place.
    pub(crate) fn keep(&self) {
        self.with(|turn| {
            turn.kept.get_or_insert_default();
        });
    }

    /// Lets others have what is kept, until the next attempt: that one waits for nobody, so for a while
    /// more requests run than are allowed, by as many as are lent. Those are few, and what is beyond
    /// them stays here: where all bodies break at once, all come back at once.
    pub(crate) fn lend(&self) {
        let seats = self.with(|turn| {
            let kept = turn.kept.as_mut()?;
            let mut given_back = Vec::new();
            for seat in std::mem::take(&mut kept.seats) {
                match Lent::of(&seat.0) {
                    Some(lent) => {
                        kept.lent.push(lent);
                        given_back.push(seat);
                    }
                    None => kept.seats.push(seat),
                }
            }
            Some(given_back)
        });
        // Outside of the lock: each lets somebody in.
        drop(seats);
    }

    /// Gives back what was kept, and keeps nothing more.
    pub(crate) fn release(&self) {
        drop(self.with(|turn| turn.kept.take()));
    }

    /// Keeps `seat`, or returns it.
    fn put(&self, seat: Seat) -> Option<Seat> {
        self.with(|turn| match &mut turn.kept {
            Some(kept) => {
                kept.seats.push(seat);
                None
            }
            None => Some(seat),
        })
    }

    /// The turn at `gate` that was kept.
    fn take(&self, gate: &Arc<Inner>) -> Option<Seat> {
        self.with(|turn| {
            let kept = turn.kept.as_mut()?;
            if let Some(at) = kept.seats.iter().position(|seat| Arc::ptr_eq(&seat.0, gate)) {
                return Some(kept.seats.swap_remove(at));
            }
            let at = kept.lent.iter().position(|lent| Arc::ptr_eq(&lent.0, gate))?;
            gate.with(|state| state.running += 1);
            drop(kept.lent.swap_remove(at));
            Some(Seat(gate.clone()))
        })
    }

    fn begin(&self) {
        self.with(|turn| turn.since = Some(Instant::now()));
    }

    fn end(&self) {
        self.with(|turn| {
            turn.waited += turn.since.take().map_or(Duration::ZERO, |since| since.elapsed());
        });
    }

    fn with<T>(&self, work: impl FnOnce(&mut TurnState) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What a complaint leaves of the limit.
const CUT_THROTTLED: f64 = 0.7;
/// What slow answers leave of it.
const CUT_SLOW: f64 = 0.9;
/// Answers are slow when they take this many times the best ...
const SLOW_TIMES: f64 = 4.0;
/// ... and this much more, so that a server next door is not judged by microseconds.
const SLOW_AT_LEAST: Duration = Duration::from_millis(100);
/// The part of the limit that may be lent: so much is it exceeded at most.
const LENT_SHARE: f64 = 0.25;
/// The share of the newest answer in the smoothed time.
const SMOOTHING: f64 = 1.0 / 16.0;
/// The best time is forgotten after at most twice this: routes change.
const BEST_FOR: Duration = Duration::from_secs(60);

/// How many requests may run at once.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LimitPolicy {
    /// Never fewer than this, at least 1. Default: 4.
    pub requests_min: u32,
    /// At the start. Default: 64, which fills 5 GB/s at 80 MB/s a connection.
    pub requests_start: u32,
    /// Never more than this. Default: 256, well below the descriptors that a process may open.
    pub requests_max: u32,
    /// Requests that may wait for their turn; more are refused as throttled. Default: 16384.
    pub queue_max: usize,
}

impl Default for LimitPolicy {
    fn default() -> LimitPolicy {
        LimitPolicy { requests_min: 4, requests_start: 64, requests_max: 256, queue_max: 16_384 }
    }
}

/// What requests to one server wait at. Clones are the same gate: give it to every source of that
/// server.
#[derive(Clone)]
pub struct Gate {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    least: f64,
    most: f64,
    queue_max: usize,
    state: Mutex<State>,
}

struct State {
    allowed: f64,
    running: u32,
    /// Turns of those who come back without waiting.
    lent: u32,
    queue: VecDeque<oneshot::Sender<Seat>>,
    /// Requests that began before this moment have been answered for.
    cut_at: Option<Instant>,
    times: Times,
}

/// Times from request to answer, in seconds.
struct Times {
    smoothed: Option<f64>,
    best_now: f64,
    best_before: f64,
    since: Instant,
}

impl Gate {
    /// A gate for the server `name`, which is the label of its metrics.
    pub fn new(name: impl Into<String>, policy: LimitPolicy) -> Gate {
        let most = policy.requests_max.max(1);
        let least = policy.requests_min.clamp(1, most);
        let allowed = f64::from(policy.requests_start.clamp(least, most));
        let times = Times {
            smoothed: None,
            best_now: f64::INFINITY,
            best_before: f64::INFINITY,
            since: Instant::now(),
        };
        let state =
            State { allowed, running: 0, lent: 0, queue: VecDeque::new(), cut_at: None, times };
        let inner = Inner {
            name: name.into(),
            least: f64::from(least),
            most: f64::from(most),
            queue_max: policy.queue_max,
            state: Mutex::new(state),
        };
        Gate { inner: Arc::new(inner) }
    }

    /// Requests that may run at once at this moment.
    pub fn allowed(&self) -> u32 {
        self.inner.with(|state| state.allowed as u32)
    }

    /// Requests that run at this moment.
    pub fn running(&self) -> u32 {
        self.inner.with(|state| state.running)
    }

    /// Waits for a turn, first come first served.
    async fn enter(&self, object: &str) -> Result<Permit, SourceError> {
        // Nobody may be looking.
        let turn = TURN.try_with(Turn::clone).ok();
        let kept = turn.as_ref().and_then(|turn| turn.take(&self.inner));
        let seat = match kept {
            Some(seat) => seat,
            None => self.seat(object, turn.as_ref()).await?,
        };
        Ok(Permit { seat: Some(seat), turn, gate: self.inner.clone(), began: Instant::now() })
    }

    async fn seat(&self, object: &str, turn: Option<&Turn>) -> Result<Seat, SourceError> {
        let waiting = self.inner.with(|state| {
            if state.queue.is_empty() && state.has_room() {
                state.running += 1;
                return Ok(None);
            }
            if state.queue.len() >= self.inner.queue_max {
                state.queue.retain(|waiter| !waiter.is_closed());
            }
            if state.queue.len() >= self.inner.queue_max {
                return Err(());
            }
            let (sender, waiting) = oneshot::channel();
            state.queue.push_back(sender);
            Ok(Some(waiting))
        });
        let refused = || SourceError::Throttled {
            object: object.to_owned(),
            what: "a turn at this server",
            range: None,
            attempts: 1,
            retry_after: None,
            cause: Some(Arc::new(QueueFull(self.inner.queue_max))),
        };
        match waiting {
            Ok(None) => Ok(Seat(self.inner.clone())),
            Ok(Some(waiting)) => {
                let since = Instant::now();
                turn.into_iter().for_each(Turn::begin);
                let seat = waiting.await.map_err(|_| refused());
                turn.into_iter().for_each(Turn::end);
                counters::queued(since.elapsed());
                seat
            }
            Err(()) => Err(refused()),
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{0} requests already wait for their turn")]
struct QueueFull(usize);

impl State {
    fn has_room(&self) -> bool {
        f64::from(self.running) + 1.0 <= self.allowed
    }
}

impl Inner {
    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Gives turns to those who wait, as far as there is room.
    fn admit(self: &Arc<Self>) {
        loop {
            let next = self.with(|state| {
                while state.has_room() {
                    let turn = state.queue.pop_front()?;
                    if !turn.is_closed() {
                        state.running += 1;
                        return Some(turn);
                    }
                }
                None
            });
            let Some(turn) = next else { return };
            // Outside the lock: a waiter that has just left drops its turn, which locks again.
            drop(turn.send(Seat(self.clone())));
        }
    }

    fn cut(&self, began: Instant, to: f64) {
        let allowed = self.with(|state| {
            if state.cut_at.is_some_and(|cut_at| began <= cut_at) {
                return None;
            }
            state.cut_at = Some(Instant::now());
            state.allowed = (state.allowed * to).max(self.least);
            Some(state.allowed)
        });
        if let Some(allowed) = allowed {
            counters::limit(&self.name, allowed);
        }
    }

    /// The head of an answer came.
    fn answered(&self, began: Instant) {
        let took = began.elapsed();
        let slow = self.with(|state| state.times.note(took));
        if slow {
            self.cut(began, CUT_SLOW);
        }
    }

    /// A request went well to its end.
    fn went_well(&self) {
        let allowed = self.with(|state| {
            // Only a limit that is made use of has been tried.
            let in_use = f64::from(state.running) * 2.0 >= state.allowed;
            if !in_use || state.allowed >= self.most {
                return None;
            }
            let before = state.allowed;
            state.allowed = (before + 1.0 / before).min(self.most);
            (before as u32 != state.allowed as u32).then_some(state.allowed)
        });
        if let Some(allowed) = allowed {
            counters::limit(&self.name, allowed);
        }
    }
}

impl Times {
    /// Takes one time, and says whether answers have become slow.
    fn note(&mut self, took: Duration) -> bool {
        if self.since.elapsed() >= BEST_FOR {
            self.best_before = self.best_now;
            self.best_now = f64::INFINITY;
            self.since = Instant::now();
        }
        let took = took.as_secs_f64();
        self.best_now = self.best_now.min(took);
        let smoothed = match self.smoothed {
            Some(smoothed) => smoothed + (took - smoothed) * SMOOTHING,
            None => took,
        };
        self.smoothed = Some(smoothed);
        let best = self.best_now.min(self.best_before);
        smoothed > best * SLOW_TIMES && smoothed > best + SLOW_AT_LEAST.as_secs_f64()
    }
}

/// A place among those that run. Dropping it lets the next one in.
struct Seat(Arc<Inner>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.with(|state| state.running -= 1);
        self.0.admit();
    }
}

/// A turn that its owner has given back for a while.
struct Lent(Arc<Inner>);

impl Lent {
    /// `None` where enough is lent, and at least one always may be.
    fn of(gate: &Arc<Inner>) -> Option<Lent> {
        let may = gate.with(|state| {
            let may = f64::from(state.lent) + 1.0 <= (state.allowed * LENT_SHARE).max(1.0);
            state.lent += u32::from(may);
            may
        });
        may.then(|| Lent(gate.clone()))
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.0.with(|state| state.lent -= 1);
    }
}

/// The turn of one request.
struct Permit {
    /// Taken out where this is dropped.
    seat: Option<Seat>,
    turn: Option<Turn>,
    gate: Arc<Inner>,
    began: Instant,
}

impl Permit {
    fn failed(&self, error: &SourceError) {
        if let SourceError::Throttled { .. } = error {
            self.gate.cut(self.began, CUT_THROTTLED);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let (Some(seat), Some(turn)) = (self.seat.take(), &self.turn) {
            drop(turn.put(seat));
        }
    }
}

/// A source whose requests wait at a gate. A turn lasts until the body ends or is dropped; where
/// [`Retry`](crate::Retry) goes on with a body that broke, until that one does.
pub struct Limit<S> {
    source: S,
    gate: Gate,
}

impl<S: BlockSource> Limit<S> {
    /// Lets the requests of `source` through `gate`.
    pub fn new(source: S, gate: Gate) -> Limit<S> {
        Limit { source, gate }
    }

    /// The gate, to be shared with other sources of the same server.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }
}

struct LimitedBody {
    /// Before the permit, so that the request ends before the next one may begin.
    inner: Option<ByteStream>,
    permit: Option<Permit>,
}

impl Stream for LimitedBody {
    type Item = Result<Bytes, SourceError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(inner) = &mut self.inner else { return Poll::Ready(None) };
        let item = inner.as_mut().poll_next(context);
        match (&item, &self.permit) {
            (Poll::Ready(Some(Ok(_))) | Poll::Pending, _) | (_, None) => return item,
            (Poll::Ready(Some(Err(error))), Some(permit)) => permit.failed(error),
            (Poll::Ready(None), Some(permit)) => permit.gate.went_well(),
        }
        self.inner = None;
        // `Retry`, which set the turn, may go on in it: it drops this body and says whether it does.
        drop(self.permit.take_if(|permit| permit.turn.is_none()));
        item
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl<S: BlockSource> BlockSource for Limit<S> {
    fn name(&self) -> &str {
        self.source.name()
    }

    async fn stat(&self) -> Result<ObjectStat, SourceError> {
        let permit = self.gate.enter(self.name()).await?;
        let stat = self.source.stat().await.inspect_err(|error| permit.failed(error))?;
        permit.gate.went_well();
        Ok(stat)
    }

    async fn read(&self, version: &Version, range: Range<u64>) -> Result<ByteStream, SourceError> {
        let permit = self.gate.enter(self.name()).await?;
        let read = self.source.read(version, range).await;
        let inner = read.inspect_err(|error| permit.failed(error))?;
        permit.gate.answered(permit.began);
        Ok(Box::pin(LimitedBody { inner: Some(inner), permit: Some(permit) }))
    }

    async fn read_into(
        &self,
        version: &Version,
        range: Range<u64>,
        frame: Frame,
    ) -> Result<Frame, SourceError> {
        let permit = self.gate.enter(self.name()).await?;
        let read = self.source.read_into(version, range, frame).await;
        let full = read.inspect_err(|error| permit.failed(error))?;
        permit.gate.went_well();
        Ok(full)
    }

    fn fills_frames(&self) -> bool {
        self.source.fills_frames()
    }

    fn at_once(&self) -> Option<&dyn ReadAtOnce> {
        // A turn is waited for on the runtime.
        None
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, StreamExt};

    use super::*;
    use crate::{
        faulty::{Failure, Fault, Faulty, Schedule},
        memory::Memory,
    };

    fn gate(least: u32, start: u32, most: u32, queue_max: usize) -> Gate {
        let (requests_min, requests_start, requests_max) = (least, start, most);
        Gate::new("test", LimitPolicy { requests_min, requests_start, requests_max, queue_max })
    }

    #[tokio::test]
    async fn a_turn_lasts_until_the_body_ends_or_is_dropped() {
        let gate = gate(1, 2, 2, 10);
        let source = Limit::new(Memory::new("x", vec![0u8; 100]), gate.clone());
        let version = source.stat().await.expect("stat").version;
        let mut first = source.read(&version, 0..10).await.expect("read");
        let second = source.read(&version, 0..10).await.expect("read");
        assert_eq!(gate.running(), 2);
        let mut third = source.read(&version, 0..10);
        assert!((&mut third).now_or_never().is_none(), "no room for a third");
        drop(second);
        let third = third.now_or_never().expect("room").expect("read");
        while first.next().await.is_some() {}
        assert_eq!(gate.running(), 1, "the first body ended");
        drop(third);
        assert_eq!(gate.running(), 0);
    }

    #[tokio::test]
    async fn those_who_leave_the_queue_do_not_hold_it_up() {
        let gate = gate(1, 1, 1, 2);
        let source = Limit::new(Memory::new("x", vec![0u8; 100]), gate.clone());
        let version = source.stat().await.expect("stat").version;
        let held = source.read(&version, 0..10).await.expect("read");
        let mut leaves = source.read(&version, 0..10);
        let mut waits = source.read(&version, 0..10);
        assert!((&mut leaves).now_or_never().is_none());
        assert!((&mut waits).now_or_never().is_none());
        let refused = source.read(&version, 0..10).now_or_never().expect("an answer");
        assert!(matches!(refused, Err(SourceError::Throttled { .. })), "the queue is full");
        drop(leaves);
        drop(held);
        assert!(waits.now_or_never().expect("its turn").is_ok());
        assert_eq!(gate.running(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn complaints_cut_once_for_requests_that_ran_together() {
        let gate = gate(4, 64, 256, 100);
        let throttled = || Some(Fault::Fail(Failure::Throttled { retry_after: None }));
        let script = Schedule::script((0..20).map(|_| throttled()));
        let source = Faulty::new(Memory::new("x", vec![0u8; 100]), script);
        let source = Limit::new(source, gate.clone());
        let version = source.stat().await.expect("stat").version;
        tokio::time::advance(Duration::from_secs(1)).await;
        let together = (0..10).map(|_| source.read(&version, 0..10));
        for answer in futures::future::join_all(together).await {
            assert!(answer.is_err());
        }
        assert_eq!(gate.allowed(), 44, "64 x 0.7, once");
        for _ in 0..10 {
            tokio::time::advance(Duration::from_secs(1)).await;
            assert!(source.read(&version, 0..10).await.is_err());
        }
        assert_eq!(gate.allowed(), 4, "never below the least");
    }

    #[tokio::test]
    async fn success_raises_a_limit_that_is_used() {
        let gate = gate(1, 2, 3, 100);
        let source = Limit::new(Memory::new("x", vec![0u8; 100]), gate.clone());
        let version = source.stat().await.expect("stat").version;
        let held = source.read(&version, 0..10).await.expect("read");
        for _ in 0..20 {
            let mut body = source.read(&version, 0..10).await.expect("read");
            while body.next().await.is_some() {}
        }
        drop(held);
        assert_eq!(gate.allowed(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn slow_answers_lower_the_limit() {
        let gate = gate(1, 64, 64, 100);
        let quick = (0..10).map(|_| Some(Fault::Delay(Duration::from_millis(10))));
        let slow = (0..100).map(|_| Some(Fault::Delay(Duration::from_millis(800))));
        let source =
            Faulty::new(Memory::new("x", vec![0u8; 100]), Schedule::script(quick.chain(slow)));
        let source = Limit::new(source, gate.clone());
        let version = source.stat().await.expect("stat").version;
        for _ in 0..110 {
            drop(source.read(&version, 0..10).await.expect("read"));
        }
        assert!(gate.allowed() < 40, "{}", gate.allowed());
    }

    /// Of five, two were lent.
    #[test]
    fn no_more_than_its_part_is_lent() {
        for (allowed, may) in [(1, 1), (4, 1), (5, 1), (7, 1), (8, 2), (64, 16)] {
            let gate = gate(allowed, allowed, allowed, 1);
            let lent: Vec<_> = (0..100).map_while(|_| Lent::of(&gate.inner)).collect();
            assert_eq!(lent.len(), may, "of {allowed}");
            drop(lent);
            assert!(Lent::of(&gate.inner).is_some(), "what came back may be lent again");
        }
    }

    /// All bodies break, the queue has its turns, and its bodies break, too: all came back together,
    /// past the gate.
    #[tokio::test(start_paused = true)]
    async fn those_who_come_back_are_few() {
        const READERS: usize = 64;
        let gate = gate(8, 8, 8, READERS);
        let broken = (0..READERS).map(|_| Some(Fault::Break { after: 100 }));
        let source = Faulty::new(Memory::new("x", vec![7u8; 1000]), Schedule::script(broken));
        // Requests take time: who is past the gate is seen there.
        let delayed = Delayed(source);
        let source = crate::Retry::with(
            Limit::new(delayed, gate.clone()),
            crate::RetryPolicy {
                attempts_max: 100,
                seed: Some(7),
                ..crate::RetryPolicy::default()
            },
        );
        let version = source.stat().await.expect("stat").version;
        let mut readers = Box::pin(futures::future::join_all((0..READERS).map(|_| async {
            let mut body = source.read(&version, 0..1000).await.expect("a body");
            let mut got = 0;
            while let Some(chunk) = body.next().await {
                got += chunk.expect("bytes").len();
            }
            assert_eq!(got, 1000);
        })));
        let mut most = 0;
        loop {
            let tick = tokio::time::sleep(Duration::from_millis(1));
            match futures::future::select(readers.as_mut(), Box::pin(tick)).await {
                futures::future::Either::Left(_) => break,
                futures::future::Either::Right(_) => most = most.max(gate.running()),
            }
        }
        assert!((8..=10).contains(&most), "{most} requests where 8 are allowed, and 2 more");
        assert_eq!((gate.running(), gate.inner.with(|state| state.lent)), (0, 0));
    }

    /// Answers only after a while.
    struct Delayed<S>(S);

    #[async_trait]
    impl<S: BlockSource> BlockSource for Delayed<S> {
        fn name(&self) -> &str {
            self.0.name()
        }

        async fn stat(&self) -> Result<ObjectStat, SourceError> {
            self.0.stat().await
        }

        async fn read(
            &self,
            version: &Version,
            range: Range<u64>,
        ) -> Result<ByteStream, SourceError> {
            tokio::time::sleep(Duration::from_millis(20)).await;
            self.0.read(version, range).await
        }
    }
}
