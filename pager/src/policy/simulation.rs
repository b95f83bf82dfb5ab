//! A model of a pager and of the link behind it, in steps of a quarter millisecond: what a prefetch
//! policy is worth in time and in bytes, without a network and without chance.

use std::{collections::VecDeque, ops::Range};

use super::prefetch::{Advice, Limits, PrefetchPolicy, Signal, Want};

const STEP_US: u64 = 250;
/// A simulated minute and a half: nothing here takes longer unless somebody starves.
const STEPS_MAX: u64 = 360_000;

/// The world around a policy.
#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) units: u64,
    pub(super) unit_bytes: u64,
    /// Speculation may hold so many units that nobody has read.
    pub(super) quota: u64,
    /// The most units of one request.
    pub(super) extent_max: u64,
    /// Bytes per microsecond, which is MB/s, of all connections together.
    pub(super) link: u64,
    /// The same for one connection.
    pub(super) connection: u64,
    /// From a request to its first byte, give or take a quarter: requests that keep step would end
    /// together and leave the link idle together, which no real ones do.
    pub(super) first_byte_us: u64,
    pub(super) connections_max: usize,
    /// Whether readers touch mapped units, of which only markers tell, or call `load`.
    pub(super) mapped: bool,
}

impl Default for World {
    /// The paced S3 of the benchmarks, seen through a budget of 1 GiB.
    fn default() -> World {
        World {
            units: 16 << 10,
            unit_bytes: 64 << 10,
            quota: 4 << 10,
            extent_max: 256,
            link: 400,
            connection: 90,
            first_byte_us: 30_000,
            connections_max: 64,
            mapped: true,
        }
    }
}

impl World {
    pub(super) fn limits(&self) -> Limits {
        Limits { units: self.units, window_max: self.quota, extent_max: self.extent_max }
    }
}

/// Somebody who reads units in an order.
pub(super) struct Reader {
    order: Box<dyn Iterator<Item = u64>>,
    /// Work for each unit.
    work_us: u64,
    at: Option<u64>,
    /// Work left on the unit that is being read; `None` before its bytes are there.
    left_us: Option<u64>,
    asked: bool,
}

impl Reader {
    pub(super) fn new(work_us: u64, order: impl IntoIterator<Item = u64> + 'static) -> Reader {
        let mut order: Box<dyn Iterator<Item = u64>> = Box::new(order.into_iter());
        let at = order.next();
        Reader { order, work_us, at, left_us: None, asked: false }
    }
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Outcome {
    pub(super) time_us: u64,
    /// Share of what the link could have moved, between a tenth and nine tenths of the units read.
    /// Nothing where less is read.
    pub(super) utilisation: f64,
    /// Units that were fetched.
    pub(super) fetched: u64,
    /// Units that were wanted, fetched and never read.
    pub(super) wasted: u64,
    /// Units that were read.
    pub(super) read: u64,
    /// Units that a policy wanted over its quota.
    pub(super) dropped: u64,
    /// Calls that wanted anything.
    pub(super) windows: u64,
    /// Longest window.
    pub(super) window_max: u64,
    pub(super) misses: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Absent,
    Flying { guess: bool, marker: bool },
    Here { guess: bool, marker: bool },
}

struct Get {
    units: Range<u64>,
    ready_us: u64,
    /// Bytes of the unit at the start of `units` that have come.
    bytes: u64,
}

struct Run<'a> {
    world: &'a World,
    policy: &'a mut dyn PrefetchPolicy,
    units: Vec<Unit>,
    gets: Vec<Get>,
    queue: VecDeque<Range<u64>>,
    held: u64,
    out: Outcome,
}

/// Lets `readers` read to their ends.
pub(super) fn run(world: &World, policy: &mut dyn PrefetchPolicy, readers: Vec<Reader>) -> Outcome {
    run_advised(world, policy, &Advice::Normal, readers)
}

/// Lets `readers` read to their ends, after some advice.
pub(super) fn run_advised(
    world: &World,
    policy: &mut dyn PrefetchPolicy,
    advice: &Advice,
    mut readers: Vec<Reader>,
) -> Outcome {
    let mut run = Run {
        world,
        policy,
        units: vec![Unit::Absent; world.units as usize],
        gets: Vec::new(),
        queue: VecDeque::new(),
        held: 0,
        out: Outcome::default(),
    };
    let mut wants = Vec::new();
    run.policy.advise(advice, &world.limits(), &mut wants);
    run.fetch(wants);
    let (mut began, mut ended) = (None, None);
    for step in 0..STEPS_MAX {
        let now = step * STEP_US;
        run.receive(now);
        for reader in &mut readers {
            run.read(reader, now);
        }
        let moved = run.out.fetched * world.unit_bytes;
        if began.is_none() && run.out.read * 10 >= world.units {
            began = Some((now, moved));
        }
        if run.out.read * 10 <= world.units * 9 {
            ended = Some((now, moved));
        }
        if readers.iter().all(|reader| reader.at.is_none()) {
            run.out.time_us = now;
            let (from, to) = (began.unwrap_or_default(), ended.unwrap_or_default());
            let could = (to.0.saturating_sub(from.0)) * world.link;
            run.out.utilisation = to.1.saturating_sub(from.1) as f64 / could.max(1) as f64;
            let unread = |unit: &&Unit| {
                matches!(unit, Unit::Here { guess: true, .. } | Unit::Flying { guess: true, .. })
            };
            run.out.wasted = run.units.iter().filter(unread).count() as u64;
            return run.out;
        }
    }
    panic!("readers starve: {:?}", run.out);
}

impl Run<'_> {
    fn receive(&mut self, now: u64) {
        let moving = self.gets.iter().filter(|get| get.ready_us <= now).count() as u64;
        let share =
            (self.world.link * STEP_US / moving.max(1)).min(self.world.connection * STEP_US);
        for get in self.gets.iter_mut().filter(|get| get.ready_us <= now) {
            get.bytes += share;
            while get.bytes >= self.world.unit_bytes && !get.units.is_empty() {
                get.bytes -= self.world.unit_bytes;
                let unit = &mut self.units[get.units.start as usize];
                let Unit::Flying { guess, marker } = *unit else { panic!("{unit:?} arrives") };
                *unit = Unit::Here { guess, marker };
                get.units.start += 1;
                self.out.fetched += 1;
            }
        }
        self.gets.retain(|get| !get.units.is_empty());
        while self.gets.len() < self.world.connections_max {
            let Some(units) = self.queue.pop_front() else { break };
            self.send(units, now);
        }
    }

    fn send(&mut self, units: Range<u64>, now: u64) {
        let spread = units.start.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54;
        let ready_us = now + self.world.first_byte_us * (1536 + spread) / 2048;
        self.gets.push(Get { units, ready_us, bytes: 0 });
    }

    fn read(&mut self, reader: &mut Reader, now: u64) {
        let mut time = STEP_US;
        while let Some(at) = reader.at {
            if let Some(left) = reader.left_us {
                let spent = left.min(time);
                time -= spent;
                if left > spent {
                    reader.left_us = Some(left - spent);
                    return;
                }
                reader.at = reader.order.next();
                reader.left_us = None;
                reader.asked = false;
                continue;
            }
            match self.units[at as usize] {
                Unit::Here { guess, marker } => {
                    if guess {
                        self.held -= 1;
                    }
                    self.units[at as usize] = Unit::Here { guess: false, marker: false };
                    self.out.read += 1;
                    reader.left_us = Some(reader.work_us);
                    if marker && !reader.asked {
                        self.signal(at, Signal::Marker);
                    } else if !self.world.mapped && !reader.asked {
                        self.signal(at, Signal::Hit);
                    }
                }
                Unit::Flying { guess, marker } => {
                    if guess && !reader.asked {
                        self.units[at as usize] = Unit::Flying { guess: false, marker };
                        self.held -= 1;
                        self.signal(at, Signal::Late);
                    }
                    reader.asked = true;
                    return;
                }
                Unit::Absent => {
                    self.out.misses += 1;
                    self.units[at as usize] = Unit::Flying { guess: false, marker: false };
                    // Demand overtakes speculation.
                    self.send(at..at + 1, now);
                    self.signal(at, Signal::Miss);
                    reader.asked = true;
                    return;
                }
            }
        }
    }

    fn signal(&mut self, at: u64, signal: Signal) {
        let mut wants = Vec::new();
        self.policy.demand(at, signal, &self.world.limits(), &mut wants);
        self.fetch(wants);
    }

    fn fetch(&mut self, wants: Vec<Want>) {
        let len: u64 = wants.iter().map(|want| want.units.end - want.units.start).sum();
        self.out.windows += u64::from(len > 0);
        self.out.window_max = self.out.window_max.max(len);
        assert!(len <= self.world.quota, "{len} units wanted of {}", self.world.quota);
        for Want { units, marker, .. } in wants {
            let mut get = units.start..units.start;
            for at in units {
                let absent = self.units[at as usize] == Unit::Absent;
                let room = self.held < self.world.quota;
                self.out.dropped += u64::from(absent && !room);
                if absent && room {
                    self.held += 1;
                    let marker = marker == Some(at);
                    self.units[at as usize] = Unit::Flying { guess: true, marker };
                    get.end = at + 1;
                } else {
                    self.request(get);
                    get = at + 1..at + 1;
                }
            }
            self.request(get);
        }
    }

    /// Cuts a run of units into requests as a pager does: about eight, none of them tiny.
    fn request(&mut self, mut units: Range<u64>) {
        let extent_max = self.world.extent_max;
        let piece = ((units.end - units.start) / 8).clamp((extent_max / 16).max(1), extent_max);
        while !units.is_empty() {
            let end = units.end.min(units.start + piece);
            self.queue.push_back(units.start..end);
            units.start = end;
        }
    }
}
