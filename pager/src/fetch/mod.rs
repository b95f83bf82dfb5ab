//! Wanted units in, bytes out.
//!
//! ```text
//!   faults, loads ---> demand queue ---+
//!         |                            +--> reserve budget --> range request --> units in place
//!         v                            |      (demand first)     (Transfer)
//!   PrefetchPolicy --> guess queue ----+
//! ```
//!
//! One task, the engine, owns the queues and talks to the prefetch policies; each request runs as a
//! task of its own on the pager's runtime. A unit is claimed (`Absent` to `Fetching`) before it
//! comes here, so there is one request for it however many threads wait. What a source answers by one
//! blocking call a page fault does not wait for the engine for: see `direct`.

mod direct;
mod hints;
mod object;
mod pace;
mod queue;
mod transfer;
mod windows;

pub(crate) use direct::{Claim, Direct};
pub(crate) use hints::Hints;
pub(crate) use object::Object;
pub(crate) use pace::Pace;

use std::{
    collections::HashMap,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender},
    task::AbortHandle,
};

use self::{
    queue::{Job, Queue},
    transfer::Transfer,
    windows::Windows,
};
use crate::{
    cache::{Held, Speculated, Tidings},
    fault::Placed,
    log::Log,
    policy::prefetch::{Limits, PrefetchPolicy, Signal, Want},
    pool::Pool,
    stats::add,
    sync::{Arc, lock},
    sys::{PAGE, Supply},
    trace::Kind,
};

/// What the engine is told. The channel has no bound of its own, because the fault thread must not
/// wait; what is in it is bounded by the threads that wait (one fault or load each), by the
/// requests under way, by the units that are guesses, by those that were given up and are still in
/// memory, and by the regions (one word of hints each, and one list of them for each that closes).
pub(crate) enum Request {
    /// An object was opened.
    Open(Arc<Object>),
    /// The last handle of a region is gone.
    Close { region: u64 },
    /// These units were claimed for a reader that waits.
    Missing { region: u64, units: Range<u64> },
    /// A reader waits for a unit that was a guess.
    Late { region: u64, unit: u64 },
    /// A reader waits for a unit that is staged.
    Marker { region: u64, unit: u64 },
    /// A page fault on a unit that was claimed for it, or is staged, and what the fault thread `found` and did
    /// about it: as [`Missing`](Request::Missing) or [`Marker`](Request::Marker) if it found nothing. The
    /// object comes along, so that the fault thread is never the last to hold it.
    Found { object: Arc<Object>, unit: u64, origin: Origin, found: Option<Found> },
    /// A reader found a unit missing, and it is [read](Direct) without the engine.
    Missed { region: u64, unit: u64 },
    /// A load found a unit there that was a guess.
    Used { region: u64, unit: u64 },
    /// The application has said what it will do: see [`Object::hints`].
    Advised { region: u64 },
    /// A guess failed while a reader had come to wait for it, or a [`Direct`] read did not come to its end.
    Again { region: u64, unit: u64 },
    /// A request has ended.
    Done { guess: bool },
    /// What the fault thread was the last to hold, to be dropped.
    Outlived(Vec<Placed>),
}

/// Why the bytes of a unit that a fault asked for may be in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The unit was given up, and nobody has used its frame since.
    GivenUp,
    /// It was a marker.
    Staged,
}

/// Bytes that the fault thread found.
pub(crate) struct Found {
    /// The bytes, or what is left to drop where they are in place.
    pub(crate) held: Held,
    /// What became of them: see [`Ledger::place`](crate::cache::Ledger::place).
    pub(crate) placed: std::io::Result<bool>,
}

/// How much may be under way at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lanes {
    /// Requests for what somebody waits for.
    pub(crate) demand: usize,
    /// Requests for guesses, beside those.
    pub(crate) guesses: usize,
}

/// How often a blocked queue is looked at again, in case a wake-up was lost.
const BLOCKED_WAIT: Duration = Duration::from_millis(50);

/// Units, and their bytes, that come back together where one of them was touched. They are aligned to as many.
const NEIGHBOURS_MAX: u64 = 16;
const NEIGHBOURS_BYTES: u64 = 32 << 20;

/// Messages handled before requests are started, so that neighbours can meet.
const BATCH_MAX: usize = 256;

/// The one task that decides what is requested.
pub(crate) struct Engine {
    requests: UnboundedReceiver<Request>,
    /// For the transfers, which report here.
    sender: UnboundedSender<Request>,
    pool: Pool,
    lanes: Lanes,
    log: Log,
    objects: HashMap<u64, Arc<Object>>,
    demand: Queue,
    guesses: Queue,
    windows: Windows,
    running_demand: usize,
    running_guesses: usize,
    /// By region, to end them with it. At most as many as there are lanes.
    running: HashMap<u64, Vec<Running>>,
    wants: Vec<Want>,
}

/// A request under way.
struct Running {
    guess: bool,
    task: AbortHandle,
}

impl Lanes {
    /// Those that one region may have of them. None takes every lane: a source that does not answer must not
    /// stop the others.
    pub(crate) fn of_one_region(self) -> Lanes {
        let share = |lanes: usize| lanes - lanes / 4;
        Lanes { demand: share(self.demand), guesses: share(self.guesses) }
    }
}

impl Engine {
    pub(crate) fn new(
        requests: UnboundedReceiver<Request>,
        sender: UnboundedSender<Request>,
        pool: Pool,
        lanes: Lanes,
        log: Log,
    ) -> Engine {
        let windows = Windows::new(pool.budget().speculative_limit());
        Engine {
            requests,
            sender,
            pool,
            lanes,
            log,
            objects: HashMap::new(),
            demand: Queue::default(),
            guesses: Queue::default(),
            windows,
            running_demand: 0,
            running_guesses: 0,
            running: HashMap::new(),
            wants: Vec::new(),
        }
    }

    /// Runs until the runtime ends.
    pub(crate) async fn run(mut self) {
        let budget = self.pool.budget().clone();
        loop {
            // Whatever is released after this line ends the wait below.
            budget.want();
            let freed = budget.freed().notified();
            let blocked = self.start_what_fits();
            self.log.evicted(self.pool.take_evicted(), budget.used(), budget.limit());
            let request = tokio::select! {
                request = self.requests.recv() => request,
                _ = freed, if blocked => continue,
                _ = tokio::time::sleep(BLOCKED_WAIT), if blocked => continue,
            };
            let Some(request) = request else { return };
            self.handle(request);
            for _ in 1..BATCH_MAX {
                let Ok(request) = self.requests.try_recv() else { break };
                self.handle(request);
            }
        }
    }

    fn handle(&mut self, request: Request) {
        match request {
            Request::Open(object) => {
                let geometry = object.ledger.geometry();
                let (bytes, unit) = (geometry.object_len(), geometry.unit_bytes());
                self.log.opened(&object.name, bytes, unit, object.mechanism);
                self.objects.insert(object.id, object);
            }
            Request::Close { region } => self.close(region),
            Request::Missing { region, units } => {
                let Some(object) = self.objects.get(&region).cloned() else { return };
                for units in recall(&object, units.clone(), None) {
                    self.demand_of(&object, units);
                }
                self.missed(&object, units);
            }
            Request::Found { object, unit, origin, found: Some(found) } => {
                self.found(&object, unit, origin, found);
            }
            Request::Found { object, unit, origin, found: None } => {
                let region = object.id;
                self.handle(match origin {
                    Origin::GivenUp => Request::Missing { region, units: unit..unit + 1 },
                    Origin::Staged => Request::Marker { region, unit },
                });
            }
            Request::Missed { region, unit } => {
                let Some(object) = self.objects.get(&region).cloned() else { return };
                self.missed(&object, unit..unit + 1);
            }
            Request::Again { region, unit } => {
                let Some(object) = self.objects.get(&region).cloned() else { return };
                self.demand_of(&object, unit..unit + 1);
            }
            Request::Late { region, unit } => {
                let Some(object) = self.objects.get(&region).cloned() else { return };
                // Still queued: it overtakes the other guesses, with what follows it.
                if let Some(job) = self.guesses.take(region, unit) {
                    self.upgrade(job, unit);
                }
                self.windows.reached(&object, unit);
                self.signal(&object, unit, Signal::Late);
            }
            Request::Marker { region, unit } => {
                let Some(object) = self.objects.get(&region).cloned() else { return };
                add(&object.counters.marker_faults, 1);
                let installed = object.ledger.install_staged(unit);
                self.unstaged(&object, unit, installed);
            }
            Request::Used { region, unit } => {
                let Some(object) = self.objects.get(&region).cloned() else { return };
                self.windows.reached(&object, unit);
                self.signal(&object, unit, Signal::Hit);
            }
            Request::Advised { region } => {
                let Some(object) = self.objects.get(&region).cloned() else { return };
                let hints = lock(&object.hints).take();
                for advice in hints {
                    self.ask_policy(&object, |policy, limits, wants| {
                        policy.advise(&advice, limits, wants);
                    });
                }
            }
            Request::Done { guess: true } => self.running_guesses -= 1,
            Request::Done { guess: false } => self.running_demand -= 1,
            Request::Outlived(outlived) => drop(outlived),
        }
    }

    /// Asks for `units`, which are claimed for a reader.
    fn demand_of(&mut self, object: &Arc<Object>, units: Range<u64>) {
        self.demand.push(Job { object: object.clone(), units, marker: None, guess: false });
    }

    /// A reader found `units` missing, wherever their bytes come from.
    fn missed(&mut self, object: &Arc<Object>, units: Range<u64>) {
        self.windows.missed(object, &units);
        self.ask_policy(object, |policy, limits, wants| policy.missed(units, limits, wants));
    }

    /// Does what is left to do about bytes that the fault thread `found`.
    fn found(&mut self, object: &Arc<Object>, unit: u64, origin: Origin, found: Found) {
        let Found { held, placed } = found;
        // Of a region that is closed nobody waits for anything, and what is in place goes with it.
        if !self.objects.contains_key(&object.id) {
            return;
        }
        let installed = match placed {
            Ok(true) => {
                let tidings = object.ledger.announce(unit);
                // What the unit did not need is there for what is asked for next.
                drop(held);
                Ok(tidings)
            }
            Ok(false) => object.ledger.restore(unit, held, false),
            Err(error) => Err(error),
        };
        match origin {
            Origin::GivenUp => {
                let mut units = unit..unit + 1;
                match installed {
                    Ok(tidings) => {
                        recalled(object, tidings);
                        units.end = self.bring_neighbours(object, unit);
                    }
                    Err(_) => self.demand_of(object, units.clone()),
                }
                // One access to all of them: who comes behind them next goes on with it.
                self.missed(object, units);
            }
            Origin::Staged => self.unstaged(object, unit, installed),
        }
    }

    /// A reader came to `unit`, which had been given up: brings back what was given up around it, while that
    /// reader goes on. A fault each would cost more than all of them, and no byte is asked for. Returns the end
    /// of those that came back right behind `unit`.
    fn bring_neighbours(&mut self, object: &Arc<Object>, unit: u64) -> u64 {
        let (geometry, budget) = (object.ledger.geometry(), self.pool.budget());
        let most = (NEIGHBOURS_BYTES / geometry.unit_bytes()).clamp(1, NEIGHBOURS_MAX);
        // While bytes are short, what was given up is what others need next, and a touch of one says nothing
        // of another.
        let free = budget.limit().saturating_sub(budget.used());
        let room = free + budget.idle();
        // What comes back brings its bytes, and needs room for little more than tables of pages: some of that
        // must be free, or its bytes would be thrown away.
        if free < most * PAGE as u64 || room < 2 * most * object.ledger.unit_cost() {
            return unit + 1;
        }
        let mut end = unit + 1;
        let first = unit - unit % most;
        for unit in object.frames.kept_of(object.id, first..first + most) {
            if !object.ledger.claim_back(unit) {
                continue;
            }
            let came = object.frames.recall(object.id, unit).is_some_and(|frame| {
                let held = object.ledger.held(frame);
                let installed = object.ledger.restore(unit, held, false);
                installed.map(|tidings| recalled(object, tidings)).is_ok()
            });
            if came && unit == end {
                end += 1;
            }
            // Somebody used its frame meanwhile, and somebody may wait for it.
            if !came && object.ledger.unclaim(unit) {
                self.demand_of(object, unit..unit + 1);
            }
        }
        end
    }

    /// A reader has come to the staged `unit`, which is in place now, or else is lost.
    fn unstaged(&mut self, object: &Arc<Object>, unit: u64, installed: std::io::Result<Tidings>) {
        match installed {
            Ok(tidings) => tell(tidings),
            Err(error) => {
                // The bytes are gone with the frame; ask for them again.
                let name = &object.name;
                self.log.note(format!("{name}: staged unit {unit} was lost: {error}"));
                self.demand_of(object, unit..unit + 1);
            }
        }
        self.windows.reached(object, unit);
        self.signal(object, unit, Signal::Marker);
    }

    /// A queued guess turns out to be wanted from `unit` on.
    fn upgrade(&mut self, job: Job, unit: u64) {
        let Job { object, units, marker, .. } = job;
        if units.start < unit {
            let before = units.start..unit;
            let marker = marker.filter(|marker| before.contains(marker));
            let object = object.clone();
            self.guesses.push(Job { object, units: before, marker, guess: true });
        }
        let wanted = unit..units.end;
        let marker = marker.filter(|marker| wanted.contains(marker));
        self.demand.push(Job { object, units: wanted, marker, guess: false });
    }

    fn close(&mut self, region: u64) {
        let Some(object) = self.objects.remove(&region) else { return };
        for running in self.running.remove(&region).unwrap_or_default() {
            running.task.abort();
        }
        self.windows.forget(region);
        for job in self.demand.take_all(region).into_iter().chain(self.guesses.take_all(region)) {
            for unit in job.units {
                object.ledger.unclaim(unit);
            }
        }
    }

    fn signal(&mut self, object: &Arc<Object>, at: u64, signal: Signal) {
        self.ask_policy(object, |policy, limits, wants| policy.demand(at, signal, limits, wants));
    }

    /// Tells the policy of `object` what happened and claims what it wants.
    fn ask_policy(
        &mut self,
        object: &Arc<Object>,
        tell: impl FnOnce(&mut dyn PrefetchPolicy, &Limits, &mut Vec<Want>),
    ) {
        let limits = self.limits(object);
        let mut wants = std::mem::take(&mut self.wants);
        {
            let mut policy = lock(&object.prefetch);
            for unit in object.ledger.take_unused() {
                policy.unused(unit);
            }
            tell(&mut **policy, &limits, &mut wants);
        }
        self.speculate(object, &mut wants);
        self.wants = wants;
    }

    fn limits(&self, object: &Object) -> Limits {
        let part = self.windows.part_of(object.id);
        let geometry = object.ledger.geometry();
        Limits {
            units: geometry.units(),
            window_max: (part / object.ledger.unit_cost()).max(1),
            extent_max: object.extent_max,
        }
    }

    /// Claims the wanted units that are absent, as far as speculation's share goes, and queues
    /// them. Empties `wants`.
    fn speculate(&mut self, object: &Arc<Object>, wants: &mut Vec<Want>) {
        let limits = self.limits(object);
        let cost = object.ledger.unit_cost();
        let mut room = true;
        for want in wants.drain(..) {
            let all = want.units.start..want.units.end.min(limits.units);
            let len = (all.end.saturating_sub(all.start)).min(limits.window_max);
            self.windows.wanted(object, len * cost);
            // What is being claimed, and the run before it.
            let (mut run, mut last): (Option<Range<u64>>, Option<Range<u64>>) = (None, None);
            let mut marker = want.marker;
            // What is nearest to the reader first, in case that there is not room for all.
            for n in 0..if room { len } else { 0 } {
                let unit = if want.backwards { all.end - 1 - n } else { all.start + n };
                let claimed = self.claim_guess(object, unit, (len - n) * cost);
                if claimed == Speculated::Claimed {
                    let longer = run
                        .take()
                        .map_or(unit..unit + 1, |run| run.start.min(unit)..run.end.max(unit + 1));
                    run = Some(longer);
                } else if let Some(run) = run.take()
                    && let Some(before) = last.replace(run)
                {
                    self.queue_guess(object, Want { units: before, ..want.clone() }, &mut marker);
                }
                if claimed == Speculated::NoRoom {
                    // Nor for what comes after it: the reader, when it arrives there, says so.
                    room = false;
                    break;
                }
            }
            if run.is_some()
                && let Some(before) = last.take()
            {
                self.queue_guess(object, Want { units: before, ..want.clone() }, &mut marker);
            }
            if let Some(run) = run.or(last) {
                // A marker behind all that was claimed: nothing else would tell that the end is near.
                marker = marker.map(|at| match want.backwards {
                    false => at.min(run.end - 1),
                    true => at.max(run.start),
                });
                self.queue_guess(object, Want { units: run, ..want.clone() }, &mut marker);
            }
        }
    }

    /// Claims `unit`, making room for it and what follows it, `bytes` bytes together.
    fn claim_guess(&mut self, object: &Arc<Object>, unit: u64, bytes: u64) -> Speculated {
        loop {
            match object.ledger.speculate(unit) {
                Speculated::NoRoom if self.windows.make_room(object, bytes) => {}
                outcome => return outcome,
            }
        }
    }

    /// Queues a run of claimed guesses, a part of `want`. Its marker is the policy's, or, where
    /// that one was not claimed, the first unit after it that was, or else the last before it.
    fn queue_guess(&mut self, object: &Arc<Object>, want: Want, marker: &mut Option<u64>) {
        let units = want.units.clone();
        let mine = match want.backwards {
            false => marker.filter(|&at| at < units.end).map(|at| at.max(units.start)),
            true => marker.filter(|&at| at >= units.start).map(|at| at.min(units.end - 1)),
        };
        if mine.is_some() {
            *marker = None;
        }
        add(&object.counters.units_prefetched, units.end - units.start);
        metrics::counter!("pager.prefetch.units").increment(units.end - units.start);
        self.windows.push(object, want);
        for units in recall(object, units, mine) {
            let marker = mine.filter(|marker| units.contains(marker));
            self.guesses.push(Job { object: object.clone(), units, marker, guess: true });
        }
    }

    /// Starts requests, demand first. True if something must wait for bytes or frames.
    fn start_what_fits(&mut self) -> bool {
        let share = self.lanes.of_one_region();
        while self.running_demand < self.lanes.demand {
            let running = &self.running;
            let may = |object: &Object| {
                let demand = lanes_of(running, object.id, false);
                object.pace.may_start(demand < share.demand, demand)
            };
            let Some(job) = self.demand.pop(may) else { break };
            if !self.start(job) {
                return true;
            }
        }
        // While demand waits for a lane, guesses get none.
        while self.demand.is_empty() && self.running_guesses < self.lanes.guesses {
            let running = &self.running;
            // Beside what readers wait for, which is not held up by guesses.
            let may = |object: &Object| {
                let guesses = lanes_of(running, object.id, true);
                let all = guesses + lanes_of(running, object.id, false);
                object.pace.may_start(guesses < share.guesses, all)
            };
            let Some(job) = self.guesses.pop(may) else { break };
            if !self.start(job) {
                return true;
            }
        }
        false
    }

    /// Starts `job`, or as much of it as the budget has room for; puts back the rest. False if
    /// nothing of it could be started.
    fn start(&mut self, mut job: Job) -> bool {
        if !job.guess {
            let needed = self.units_at_once(&job) * job.object.ledger.unit_cost();
            let budget = self.pool.budget().clone();
            // What was given up may be an idle frame now, whose bytes are still charged.
            self.windows.yield_until(|| {
                let free = budget.limit() - budget.used();
                free >= needed || free + budget.idle() >= needed
            });
        }
        let mut afforded = self.afford(&job);
        // Guesses that are staged are not the pool's to evict; they yield to demand.
        while afforded.is_none() && !job.guess && self.windows.drop_any() {
            afforded = self.afford(&job);
        }
        let Some(supply) = afforded else {
            self.queue_of(job.guess).push_front(job);
            return false;
        };
        let end = job.units.start + supply.units();
        if end < job.units.end {
            let rest = end..job.units.end;
            let marker = job.marker.filter(|marker| rest.contains(marker));
            let object = job.object.clone();
            let guess = job.guess;
            self.queue_of(guess).push_front(Job { object, units: rest, marker, guess });
            job.units.end = end;
        }
        if let Some(traced) = &job.object.traced {
            let kind = if job.guess { Kind::Guess } else { Kind::Fetch };
            traced.note(job.units.clone(), kind);
        }
        if job.guess {
            self.running_guesses += 1;
        } else {
            self.running_demand += 1;
        }
        let (sender, log) = (self.sender.clone(), self.log.clone());
        let (region, guess) = (job.object.id, job.guess);
        let object = job.object.clone();
        let task = tokio::spawn(Transfer::new(job, supply, sender, log).run());
        let running = self.running.entry(region).or_default();
        running.retain(|running| !running.task.is_finished());
        if running.is_empty() {
            object.pace.begins(tokio::time::Instant::now());
        }
        running.push(Running { guess, task: task.abort_handle() });
        true
    }

    /// The most units of `job` that are asked for at once: half of what may be unpinned, so that
    /// one request does not evict all that others use.
    fn units_at_once(&self, job: &Job) -> u64 {
        let cost = job.object.ledger.unit_cost();
        (job.units.end - job.units.start).min((self.pool.budget().limit() / 4 / cost).max(1))
    }

    /// Bytes for as many units of `job` as there is room for, at least one.
    fn afford(&self, job: &Job) -> Option<Supply> {
        let cost = job.object.ledger.unit_cost();
        let mut units = self.units_at_once(job);
        while units > 0 {
            if let Some(supply) = job.object.frames.supply(units, cost) {
                return Some(supply);
            }
            units /= 2;
        }
        None
    }

    fn queue_of(&mut self, guess: bool) -> &mut Queue {
        if guess { &mut self.guesses } else { &mut self.demand }
    }
}

/// Puts those of `units`, which are claimed, in place whose bytes are still in memory, and stages
/// the marker if it is one of them. Returns the others.
fn recall(object: &Object, units: Range<u64>, marker: Option<u64>) -> Vec<Range<u64>> {
    let mut others: Vec<Range<u64>> = Vec::new();
    if !object.frames.has_limbo() {
        others.push(units);
        return others;
    }
    for unit in units {
        if let Some(frame) = object.frames.recall(object.id, unit) {
            let held = object.ledger.held(frame);
            if let Ok(tidings) = object.ledger.restore(unit, held, marker == Some(unit)) {
                recalled(object, tidings);
                continue;
            }
        }
        match others.last_mut() {
            Some(run) if run.end == unit => run.end = unit + 1,
            _ => others.push(unit..unit + 1),
        }
    }
    others
}

/// A unit that had been given up is there again, and `tidings` of it for who waits.
fn recalled(object: &Object, tidings: Tidings) {
    add(&object.counters.units_recalled, 1);
    metrics::counter!("pager.recall.units").increment(1);
    tell(tidings);
}

/// Tells who waits for a unit, without waiting for what they do then: a waker is code of the program's, which
/// may need a lock that a reader holds, and that reader a unit which only the engine can have fetched.
fn tell(tidings: Tidings) {
    // A job that is not run any more, as the pager is gone, tells them when it is dropped.
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
    // Each by itself: a waker may wait for what another load of the same unit is held up by.
    for task in tidings.tell_threads() {
        // It panics where the system has no thread left to give. The job is queued all the same, and runs on
        // the next thread that there is.
        let _ = catch_unwind(AssertUnwindSafe(|| runtime.spawn_blocking(move || drop(task))));
    }
}

/// Requests of the region `id` that are under way, of those for readers or of the guesses.
fn lanes_of(running: &HashMap<u64, Vec<Running>>, id: u64, guess: bool) -> usize {
    let counts = |one: &&Running| one.guess == guess && !one.task.is_finished();
    running.get(&id).map_or(0, |all| all.iter().filter(counts).count())
}
