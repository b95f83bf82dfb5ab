//! How many requests one source is sent at a time, and how long they are: what its answers say.
//!
//! ```text
//!   allowed  ^  most
//!            |      \     /\      /\          + most/16   where the change before paid
//!            |        \ /    \  /    \        x 0.9       where it did not
//!            |                 '      |       x 0.7       where the source asks for fewer
//!            |                         \ /
//!            +----------------------------->  rounds: twice as many answers as are allowed
//! ```
//!
//! Additive increase, multiplicative decrease (Chiu, Jain: "Analysis of the Increase and Decrease Algorithms
//! for Congestion Avoidance", 1989). A change has paid where bytes per second followed it by at least half:
//! beyond that, more requests only share the link, and wait for each other. Nothing is judged while fewer are
//! sent than are allowed.
//!
//! A request is worth its wait where it streams for a while. The lengths of settings and presets are for S3,
//! whose first byte comes after 30 ms and whose connections give 90 MB/s. Where latency times throughput of a
//! connection is a multiple of that, a long range is cut into pieces that are as many times as long.
//!
//! A source of `extmem-sources` that tries again by itself limits its requests by itself, too, for all
//! objects of a server: this one hears of what is left.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    stats::Counters,
    sync::{Arc, AtomicU64, Mutex, Ordering, lock},
};

/// Never fewer than this, so that one slow answer does not hold up all.
const LEAST: f64 = 4.0;
/// The parts of the most that are allowed more at a time.
const STEPS: f64 = 16.0;
/// What a complaint leaves.
const CUT_THROTTLED: f64 = 0.7;
/// What is left of a limit that is not worth its requests.
const CUT_IDLE: f64 = 0.9;
/// The part of a change of requests that bytes per second must follow.
const PAYS: f64 = 0.5;
/// Answers of a round: few would be chance.
const ANSWERS_MIN: f64 = 32.0;
/// The share of the newest answer in what is smoothed.
const SMOOTHING: f64 = 1.0 / 8.0;
/// A body from which on its time says something: less is in a socket's buffer when it is looked at.
const BODY_MIN: u64 = 256 << 10;
/// Latency times throughput of S3: 30 ms of 90 MB/s, in bytes.
const USUAL_PRODUCT: f64 = 0.030 * 90e6;
/// Doublings of the shortest piece at most. The setting's longest request bounds it as well.
const DOUBLINGS_MAX: f64 = 6.0;

/// What one request has come to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Answer {
    /// From the request to the head of its answer, where that was seen.
    pub(super) first_byte: Option<Duration>,
    /// What was waited for the bytes behind that.
    pub(super) body: Duration,
    pub(super) bytes: u64,
}

/// The pace of requests to the source of one object.
pub(crate) struct Pace {
    most: f64,
    state: Mutex<State>,
    counters: Arc<Counters>,
}

struct State {
    allowed: f64,
    round: Round,
    /// Bytes per second of the round before, and what was allowed in it.
    before: Option<(f64, f64)>,
    /// Requests that began before this have been answered for.
    cut_at: Option<Instant>,
    /// Smoothed, in seconds, and in bytes per second of one connection.
    first_byte: Option<f64>,
    rate: Option<f64>,
}

#[derive(Default)]
struct Round {
    since: Option<Instant>,
    answers: f64,
    bytes: u64,
    /// Something had to wait for its turn.
    pressed: bool,
}

impl Pace {
    /// At most `most` requests at a time, which is what it begins with.
    pub(crate) fn new(most: usize, counters: Arc<Counters>) -> Pace {
        let most = most.max(1) as f64;
        let pace = Pace {
            most,
            state: Mutex::new(State {
                allowed: most,
                round: Round::default(),
                before: None,
                cut_at: None,
                first_byte: None,
                rate: None,
            }),
            counters,
        };
        pace.show(most);
        pace
    }

    /// Whether one more request may start beside `running` others, if there is a `lane` for it.
    pub(super) fn may_start(&self, lane: bool, running: usize) -> bool {
        let mut state = lock(&self.state);
        let may = lane && (running as f64) + 1.0 <= state.allowed;
        state.round.pressed |= !may;
        may
    }

    /// A request begins, and no other is under way: what comes is a new round.
    pub(super) fn begins(&self, now: Instant) {
        let mut state = lock(&self.state);
        state.round = Round { since: Some(now), ..Round::default() };
    }

    /// A request has ended well.
    pub(super) fn answered(&self, answer: Answer, now: Instant) {
        let mut state = lock(&self.state);
        if let Some(first) = answer.first_byte {
            smooth(&mut state.first_byte, first.as_secs_f64());
            store(&self.counters.first_byte_us, state.first_byte.unwrap_or(0.0) * 1e6);
            if answer.bytes >= BODY_MIN && !answer.body.is_zero() {
                smooth(&mut state.rate, answer.bytes as f64 / answer.body.as_secs_f64());
                store(&self.counters.connection_bytes_per_s, state.rate.unwrap_or(0.0));
            }
        }
        state.round.answers += 1.0;
        state.round.bytes += answer.bytes;
        if state.round.answers < (2.0 * state.allowed).max(ANSWERS_MIN) {
            return;
        }
        let round = std::mem::take(&mut state.round);
        state.round.since = Some(now);
        let took = round.since.map_or(0.0, |since| (now - since).as_secs_f64());
        if !round.pressed || took <= 0.0 {
            state.before = None;
            return;
        }
        self.judge(&mut state, round.bytes as f64 / took);
    }

    /// Decides what is allowed in the next round, after one of `rate` bytes per second.
    fn judge(&self, state: &mut State, rate: f64) {
        let now = (rate, state.allowed);
        let more = match state.before.replace(now) {
            Some(before) if before.1 != now.1 => pays(before, now),
            // What would more bring, or less?
            _ => state.allowed < self.most,
        };
        let least = LEAST.min(self.most);
        state.allowed = match more {
            true => (state.allowed + (self.most / STEPS).max(1.0)).min(self.most),
            false => (state.allowed * CUT_IDLE).max(least),
        };
        self.show(state.allowed);
    }

    /// The source asks for fewer requests: those that began at `began` were too many. One cut for all that
    /// were under way together: their complaints are about the same load.
    pub(super) fn throttled(&self, began: Instant, now: Instant) {
        self.counters.throttled.fetch_add(1, Ordering::Relaxed);
        metrics::counter!("pager.fetch.throttled").increment(1);
        let mut state = lock(&self.state);
        if state.cut_at.is_some_and(|cut_at| began <= cut_at) {
            return;
        }
        state.cut_at = Some(now);
        state.allowed = (state.allowed * CUT_THROTTLED).max(LEAST.min(self.most));
        state.before = None;
        state.round = Round { since: Some(now), ..Round::default() };
        self.show(state.allowed);
    }

    /// The fewest units that are worth a request of their own, where the settings say `least`, and `most` in one
    /// request.
    pub(super) fn extent_min(&self, least: u64, most: u64) -> u64 {
        let state = lock(&self.state);
        let product = state.first_byte.zip(state.rate).map_or(0.0, |(first, rate)| first * rate);
        let doublings = (product / USUAL_PRODUCT).log2().floor().clamp(0.0, DOUBLINGS_MAX);
        // A multiple that is less than double is none: the estimate is no better than that.
        least.saturating_mul(1 << doublings as u32).min(most.max(least))
    }

    fn show(&self, allowed: f64) {
        store(&self.counters.requests_allowed, allowed.floor());
    }
}

/// Whether bytes per second followed requests, between two rounds: (bytes per second, requests).
fn pays(a: (f64, f64), b: (f64, f64)) -> bool {
    let (few, many) = if a.1 < b.1 { (a, b) } else { (b, a) };
    many.0 - few.0 >= few.0 * PAYS * (many.1 / few.1 - 1.0)
}

fn smooth(value: &mut Option<f64>, new: f64) {
    *value = Some(value.map_or(new, |old| old + (new - old) * SMOOTHING));
}

fn store(counter: &AtomicU64, value: f64) {
    counter.store(value.round() as u64, Ordering::Relaxed);
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    const BODY: u64 = 1 << 20;

    /// A server behind a link, in a time of its own: whoever is under way shares the link.
    struct World {
        pace: Pace,
        now: Instant,
        /// Bytes per second: of one connection, and of all.
        connection: f64,
        link: f64,
        /// More than so many at a time are refused.
        bears: usize,
        wants: usize,
    }

    impl World {
        fn new(most: usize) -> World {
            let pace = Pace::new(most, Arc::default());
            let (connection, link) = (90e6, 1.8e9);
            World { pace, now: Instant::now(), connection, link, bears: usize::MAX, wants: 1000 }
        }

        /// As many requests as may start, and their ends. Returns how many there were.
        fn turn(&mut self) -> usize {
            let mut running = 0;
            while running < self.wants && self.pace.may_start(true, running) {
                running += 1;
            }
            let began = self.now;
            let rate = self.connection.min(self.link / running as f64);
            let first_byte = Duration::from_millis(30);
            let body = Duration::from_secs_f64(BODY as f64 / rate);
            self.now += first_byte + body;
            let served = running.min(self.bears);
            for n in 0..served {
                // They do not come all at once, or a round that ends among them would have bytes that took no time.
                let at = began + (self.now - began) * (n as u32 + 1) / running as u32;
                let answer = Answer { first_byte: Some(first_byte), body, bytes: BODY };
                self.pace.answered(answer, at);
            }
            for _ in served..running {
                self.pace.throttled(began, self.now);
            }
            running
        }

        /// How many were under way at a time, at least and at most, in the latter of many turns.
        fn settled(&mut self) -> (usize, usize) {
            for _ in 0..400 {
                self.turn();
            }
            let turns: Vec<usize> = (0..200).map(|_| self.turn()).collect();
            (*turns.iter().min().unwrap(), *turns.iter().max().unwrap())
        }

        fn stats(&self) -> crate::stats::RegionStats {
            self.pace.counters.snapshot()
        }
    }

    /// Of a first byte after 30 ms and 12 ms of body, the link of twenty connections gives
    /// half of itself to fifty, and beyond that what each more brings is less than half of its own.
    #[test]
    fn more_than_the_link_takes_is_not_asked_for() {
        let mut world = World::new(224);
        assert_eq!(world.turn(), 224);
        let (least, most) = world.settled();
        println!("a link of 20 connections: {least} to {most} requests");
        assert!(least >= 35 && most <= 110, "{least} to {most}");
        assert_eq!(world.stats().first_byte_us, 30_000);
        // It becomes a wider one, and a narrow one.
        world.link = 1e12;
        let (least, most) = world.settled();
        println!("no link at all: {least} to {most} requests");
        assert!(least >= 180 && most == 224, "{least} to {most}");
        world.link = 90e6;
        let (least, most) = world.settled();
        println!("a link of one connection: {least} to {most} requests");
        assert!(least >= 4 && most <= 40, "{least} to {most}");
    }

    #[test]
    fn a_source_that_asks_for_fewer_gets_fewer() {
        let mut world = World::new(224);
        (world.link, world.bears) = (1e12, 50);
        world.turn();
        let stats = world.stats();
        assert_eq!(
            (stats.throttled, stats.requests_allowed),
            (174, 156),
            "one cut for all of them"
        );
        let (least, most) = world.settled();
        println!("50 are borne: {least} to {most} requests");
        assert!(least >= 25 && most <= 50 + 224 / 16, "{least} to {most}");
        world.bears = 0;
        world.settled();
        assert_eq!(world.stats().requests_allowed, 4, "and never none");
        let mut world = World::new(2);
        world.bears = 0;
        assert_eq!(world.settled(), (2, 2), "nor more than there are");
    }

    #[test]
    fn nothing_is_judged_while_nobody_waits_for_a_turn() {
        let mut world = World::new(224);
        (world.wants, world.link) = (10, 90e6);
        assert_eq!(world.settled(), (10, 10));
        assert_eq!(world.stats().requests_allowed, 224);
    }

    #[test]
    fn pieces_are_as_long_as_their_wait_is_worth() {
        // First byte in ms, MB/s of a connection, shortest and longest of the settings in units.
        let cases = [
            ("S3, as it is", 30, 90, (16, 256), 16),
            ("near and slow", 1, 50, (16, 256), 16),
            ("a bit more is no multiple", 50, 90, (16, 256), 16),
            ("another continent", 150, 90, (16, 256), 64),
            ("a fast line to there", 150, 400, (16, 256), 256),
            ("all the way to the longest", 1000, 1000, (16, 256), 256),
            ("where these are the same", 1000, 1000, (32, 32), 32),
            ("whatever the longest is", 1000, 1000, (16, u64::MAX), 1024),
        ];
        for (what, ms, rate, (least, most), expected) in cases {
            let pace = Pace::new(8, Arc::default());
            assert_eq!(pace.extent_min(least, most), least, "{what}: nothing is known yet");
            let (first, bytes) = (Duration::from_millis(ms), 8 << 20);
            let body = Duration::from_secs_f64(bytes as f64 / (rate as f64 * 1e6));
            let now = Instant::now();
            // Of a short body nobody knows how it came.
            let short = Answer { first_byte: Some(first), body: Duration::ZERO, bytes: 1000 };
            pace.answered(short, now);
            pace.answered(Answer { first_byte: Some(first), body, bytes }, now);
            assert_eq!(pace.extent_min(least, most), expected, "{what}");
        }
    }
}
