//! Does the pager hold, hour after hour? Threads read many regions at random through a budget that is
//! far too small, from sources that fail all the time, and compare every byte.
//!
//! ```text
//!   8 threads --> load, read_at, touch, hint, close and open --> 20 regions, 2 pagers --> 1 budget
//!                                                                     |
//!                        Words (bytes that can be computed) <-- Faulty <-- Retry
//! ```
//!
//! Ends with 1 after a wrong byte, an error, a thread that stands still, memory that grows or a budget
//! that is passed or not given back.

#![forbid(unsafe_code)]

use std::{
    error::Error,
    ops::Range,
    process::ExitCode,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use clap::Parser;
use futures::{StreamExt, stream};
use pager::{
    BlockSource, Budget, ByteStream, Bytes, Hint, Mapped, Mechanism, ObjectStat, Pager, Region,
    RegionOptions, SourceError, Version, async_trait,
};
use sources::{
    Faulty, Retry, RetryPolicy,
    faulty::{Rates, Schedule},
};

#[derive(Parser)]
#[command(
    version,
    about = "Reads many regions at random through a small budget, from sources that fail, and compares every byte",
    after_help = "Examples:\n  soak --seconds 600\n  soak --seconds 60 --seed 7 --threads 16 --json"
)]
struct Args {
    /// How long, in seconds
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// Threads that read
    #[arg(long, default_value_t = 8)]
    threads: u64,
    /// Regions that are open at a time
    #[arg(long, default_value_t = 20)]
    regions: u64,
    /// Bytes of all objects together, in MiB; the budget is an eighth
    #[arg(long, default_value_t = 1024)]
    mebibytes: u64,
    /// Of the operations and the faults
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print the outcome as a JSON object
    #[arg(long)]
    json: bool,
}

/// SplitMix64: G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number generators", OOPSLA
/// 2014.
fn mix(state: u64) -> u64 {
    let z = state.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Word `at` of object `object`.
fn word(object: u64, at: u64) -> [u8; 8] {
    mix((object << 40) ^ at ^ 0x5EED).to_le_bytes()
}

fn byte(object: u64, at: u64) -> u8 {
    word(object, at / 8)[(at % 8) as usize]
}

fn bytes_of(object: u64, range: Range<u64>) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        (range.start / 8..range.end.div_ceil(8)).flat_map(|at| word(object, at)).collect();
    bytes.truncate((range.end - range.start / 8 * 8) as usize);
    bytes.drain(..(range.start % 8) as usize);
    bytes
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mix(self.0)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
}

/// An object whose bytes nobody keeps.
struct Words {
    name: String,
    object: u64,
    len: u64,
}

#[async_trait]
impl BlockSource for Words {
    fn name(&self) -> &str {
        &self.name
    }

    async fn stat(&self) -> Result<ObjectStat, SourceError> {
        let (len, version) = (self.len, Version::strong("1"));
        Ok(ObjectStat::new(len, version).with_part_bytes(4 << 20))
    }

    async fn read(&self, _: &Version, range: Range<u64>) -> Result<ByteStream, SourceError> {
        let (object, end) = (self.object, range.end);
        // Of an odd length, so that units and chunks never line up.
        let parts = range.step_by(60_007);
        let chunks =
            parts.map(move |at| Ok(Bytes::from(bytes_of(object, at..end.min(at + 60_007)))));
        Ok(stream::iter(chunks).boxed())
    }
}

/// One object and the region of it that is open now.
struct Place {
    object: u64,
    len: u64,
    unit: u64,
    open: RwLock<Arc<Open>>,
}

struct Open {
    region: Region,
    /// `None` where this machine or user has no page faults.
    mapped: Option<Mapped>,
}

/// What all threads share.
struct Soak {
    pagers: Vec<Pager>,
    places: Vec<Place>,
    seed: u64,
    generation: AtomicU64,
    faults: Mutex<Vec<Arc<Faults>>>,
    injected: AtomicU64,
    stop: AtomicBool,
    failures: Mutex<Vec<String>>,
    /// What the threads have done, by kind.
    done: [AtomicU64; KINDS.len()],
    compared: AtomicU64,
    /// Operations of each thread.
    steps: Vec<AtomicU64>,
}

type Faults = Faulty<Words>;

const KINDS: [&str; 8] =
    ["load", "load, held", "read_at", "touch", "run of touches", "hint", "give up", "close, open"];

impl Soak {
    fn new(args: &Args) -> Result<Soak, Box<dyn Error>> {
        let budget = Budget::new((args.mebibytes << 20) / 8);
        let builder = || Pager::builder().budget(&budget).deadline(Duration::from_secs(60));
        // What this machine has best, and copies for all units.
        let mut pagers = vec![builder().build()?];
        if pagers[0].probed().can_move {
            pagers.push(builder().mechanism(Mechanism::Copy).build()?);
        }
        let mut soak = Soak {
            pagers,
            places: Vec::new(),
            seed: args.seed,
            generation: AtomicU64::new(0),
            faults: Mutex::default(),
            injected: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            failures: Mutex::default(),
            done: Default::default(),
            compared: AtomicU64::new(0),
            steps: (0..args.threads).map(|_| AtomicU64::new(0)).collect(),
        };
        let len = (args.mebibytes << 20) / args.regions.max(1);
        for object in 0..args.regions {
            let unit = [4096, 65_536, 262_144, 2 << 20][object as usize % 4];
            // The last unit is never whole.
            let len = len + 4096 * object + 77;
            let open = RwLock::new(Arc::new(soak.open(object, len, unit)?));
            soak.places.push(Place { object, len, unit, open });
        }
        Ok(soak)
    }

    fn open(&self, object: u64, len: u64, unit: u64) -> Result<Open, pager::Error> {
        let generation = self.generation.fetch_add(1, Relaxed);
        let rates = Rates {
            stall: 0.002,
            fail: 0.05,
            truncate: 0.03,
            broken: 0.03,
            delay: 0.3,
            delay_max: Duration::from_millis(3),
            ..Rates::default()
        };
        let words = Words { name: format!("soak://{object}"), object, len };
        let schedule = Schedule::seeded(mix(self.seed ^ generation), rates);
        let faulty = Arc::new(Faulty::new(words, schedule));
        lock(&self.faults).push(faulty.clone());
        let policy = RetryPolicy {
            attempts_max: 30,
            backoff_min: Duration::from_millis(1),
            throttle_min: Duration::from_millis(2),
            backoff_max: Duration::from_millis(20),
            stall: Duration::from_millis(500),
            ..RetryPolicy::default()
        };
        let pager = &self.pagers[(generation % self.pagers.len() as u64) as usize];
        let options = RegionOptions::default().unit_bytes(unit);
        let region = pager.open_with(Retry::with(faulty, policy), options)?;
        let mapped = match region.map() {
            Ok(mapped) => Some(mapped),
            Err(pager::Error::NotMappable { .. }) => None,
            Err(error) => return Err(error),
        };
        Ok(Open { region, mapped })
    }

    fn fail(&self, what: String) {
        self.stop.store(true, Relaxed);
        let mut failures = lock(&self.failures);
        // The first few say it.
        if failures.len() < 20 {
            failures.push(what);
        }
    }

    /// One thread, until all stop.
    fn read(&self, thread: u64) {
        let mut random = Random(mix(self.seed ^ (thread << 32)));
        while !self.stop.load(Relaxed) {
            let place = &self.places[random.below(self.places.len() as u64) as usize];
            if let Err(what) = self.step(place, &mut random) {
                self.fail(format!("thread {thread}, object {}: {what}", place.object));
            }
            self.steps[thread as usize].fetch_add(1, Relaxed);
        }
    }

    fn step(&self, place: &Place, random: &mut Random) -> Result<(), String> {
        let open = place.open.read().unwrap_or_else(PoisonError::into_inner).clone();
        let (region, unit) = (&open.region, place.unit);
        let longest = (2 * unit + 9000).min(place.len);
        let start = random.below(place.len);
        let range = start..(start + 1 + random.below(longest)).min(place.len);
        let kind = match random.below(1000) {
            0..250 => 0,
            250..300 => 1,
            300..550 => 2,
            550..850 => 3,
            850..920 => 4,
            920..980 => 5,
            980..995 => 6,
            _ => 7,
        };
        let said = |error: pager::Error| format!("{}, bytes {range:?}: {error}", KINDS[kind]);
        match kind {
            0 => self.compare(place, range.start, &region.load(range.clone()).map_err(said)?)?,
            1 => {
                // Held while another comes and others leave.
                let held = region.load(range.clone()).map_err(said)?;
                let at = random.below(place.len);
                drop(region.load(at..at + 1).map_err(said)?);
                self.compare(place, range.start, &held)?;
            }
            2 => {
                let mut bytes = vec![0; (range.end - range.start) as usize];
                region.read_at(range.start, &mut bytes).map_err(said)?;
                self.compare(place, range.start, &bytes)?;
            }
            3 | 4 => {
                let Some(mapped) = &open.mapped else { return Ok(()) };
                // Here and there; or a stream, so that what is guessed and staged is read.
                let long = if kind == 4 { 12 * unit } else { unit };
                let end = (start + long).min(place.len);
                let step = if kind == 4 { 1021 } else { 1 + random.below(unit) };
                for at in (start..end).step_by(step as usize) {
                    let (found, right) = (mapped[at as usize], byte(place.object, at));
                    if found != right {
                        return Err(format!("byte {at} is {found} in the map, not {right}"));
                    }
                    self.compared.fetch_add(1, Relaxed);
                }
            }
            5 => {
                let far = random.below(place.len);
                let two = [range.clone(), far..(far + 5 * unit).min(place.len)];
                let hint = match random.below(5) {
                    0 => Hint::Sequential,
                    1 => Hint::Random,
                    2 => Hint::Normal,
                    _ => Hint::WillNeed(&two),
                };
                region.advise(hint).map_err(said)?;
            }
            6 => region.advise(Hint::DontNeed(range.clone())).map_err(said)?,
            _ => {
                let fresh = self.open(place.object, place.len, unit).map_err(said)?;
                let mut place = place.open.write().unwrap_or_else(PoisonError::into_inner);
                *place = Arc::new(fresh);
            }
        }
        self.done[kind].fetch_add(1, Relaxed);
        Ok(())
    }

    fn compare(&self, place: &Place, start: u64, bytes: &[u8]) -> Result<(), String> {
        let right = bytes_of(place.object, start..start + bytes.len() as u64);
        self.compared.fetch_add(bytes.len() as u64, Relaxed);
        match bytes.iter().zip(&right).position(|(found, right)| found != right) {
            None => Ok(()),
            Some(at) => {
                let (found, right, at) = (bytes[at], right[at], start + at as u64);
                Err(format!("byte {at} is {found}, not {right}"))
            }
        }
    }

    /// Forgets the sources of regions that are closed, and keeps what they had counted.
    fn count_faults(&self) -> u64 {
        lock(&self.faults).retain(|faulty| {
            let alive = Arc::strong_count(faulty) > 1;
            if !alive {
                self.injected.fetch_add(faulty.injected(), Relaxed);
            }
            alive
        });
        let open: u64 = lock(&self.faults).iter().map(|faulty| faulty.injected()).sum();
        self.injected.load(Relaxed) + open
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Resident memory of this process, in bytes.
fn resident() -> Result<u64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).ok_or("no VmRSS")?;
    Ok(kib.parse::<u64>()? << 10)
}

/// A thread that has done nothing for this long stands still: no request takes longer with all its
/// retries.
const STILL: Duration = Duration::from_secs(150);

/// Looks after the threads until the time is over or something fails. Returns resident bytes, one
/// sample each half second since the budget was full.
fn watch(soak: &Soak, args: &Args) -> Result<Vec<u64>, Box<dyn Error>> {
    let start = Instant::now();
    let mut seen: Vec<(u64, Instant)> = soak.steps.iter().map(|_| (0, start)).collect();
    let mut samples = Vec::new();
    let mut told = start;
    let budget = soak.pagers[0].budget();
    while start.elapsed().as_secs() < args.seconds && !soak.stop.load(Relaxed) {
        std::thread::sleep(Duration::from_millis(500));
        let rss = resident()?;
        // Memory grows until the budget is full.
        if budget.peak() >= budget.limit() / 10 * 9 {
            samples.push(rss);
        }
        let (used, limit) = (budget.used(), budget.limit());
        if used > limit {
            soak.fail(format!("{used} bytes are used of a budget of {limit}"));
        }
        for (thread, (steps, seen)) in soak.steps.iter().zip(&mut seen).enumerate() {
            let now = steps.load(Relaxed);
            if now != seen.0 {
                *seen = (now, Instant::now());
            } else if seen.1.elapsed() > STILL {
                // It cannot be joined: the process ends here.
                eprintln!("thread {thread} has stood still for {STILL:?}, after {now} operations");
                std::process::exit(1);
            }
        }
        if told.elapsed() > Duration::from_secs(10) {
            told = Instant::now();
            eprintln!(
                "{:>4} s: {} operations, {} MB compared, {} faults, {} MiB resident",
                start.elapsed().as_secs(),
                seen.iter().map(|(steps, _)| steps).sum::<u64>(),
                soak.compared.load(Relaxed) / 1_000_000,
                soak.count_faults(),
                rss >> 20,
            );
        }
    }
    Ok(samples)
}

/// The median of a part of the samples.
fn median(samples: &[u64]) -> u64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or(0)
}

fn run(args: &Args) -> Result<bool, Box<dyn Error>> {
    let soak = Soak::new(args)?;
    eprintln!(
        "{} threads, {} regions, {} MiB through {} MiB, seed {}, {} s: {}",
        args.threads,
        args.regions,
        args.mebibytes,
        args.mebibytes / 8,
        args.seed,
        args.seconds,
        soak.pagers[0].probed()
    );
    let samples = std::thread::scope(|scope| {
        for thread in 0..args.threads {
            let soak = &soak;
            scope.spawn(move || soak.read(thread));
        }
        let watched = watch(&soak, args);
        soak.stop.store(true, Relaxed);
        watched
    })?;
    // The second quarter against the last, of what is long enough to say something.
    let quarter = samples.len() / 4;
    let (before, after) = (median(&samples[quarter..2 * quarter]), median(&samples[3 * quarter..]));
    if quarter >= 10 && after > before + before / 10 + (16 << 20) {
        soak.fail(format!(
            "{before} bytes were resident in the second quarter, {after} at the end"
        ));
    }
    let faults = soak.count_faults();
    let Soak { pagers, places, failures, done, compared, .. } = soak;
    let budget = pagers[0].budget().clone();
    // A pager keeps the frames that it copies from.
    drop((places, pagers));
    let start = Instant::now();
    while budget.used() > 0 && start.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    if budget.used() > 0 {
        failures.push(format!("{} bytes of the budget were not given back", budget.used()));
    }
    let done: Vec<u64> = done.into_iter().map(AtomicU64::into_inner).collect();
    if args.json {
        let kinds: serde_json::Map<_, _> =
            KINDS.iter().zip(&done).map(|(kind, n)| ((*kind).to_owned(), (*n).into())).collect();
        let report = serde_json::json!({
            "operations": kinds,
            "bytes_compared": compared.into_inner(),
            "faults": faults,
            "budget_bytes": budget.limit(),
            "budget_peak_bytes": budget.peak(),
            "resident_bytes": { "second_quarter": before, "last_quarter": after },
            "failures": failures,
        });
        println!("{report}");
    } else {
        for (kind, n) in KINDS.iter().zip(&done) {
            println!("{n:>12}  {kind}");
        }
        println!("{:>12}  bytes compared", compared.into_inner());
        println!("{faults:>12}  faults of the sources");
        println!("{:>12}  bytes of the budget at its peak, of {}", budget.peak(), budget.limit());
        println!("{before:>12}  bytes resident in the second quarter");
        println!("{after:>12}  bytes resident in the last quarter");
        for failure in &failures {
            println!("FAILED: {failure}");
        }
        println!("{}", if failures.is_empty() { "It holds." } else { "It does not hold." });
    }
    Ok(failures.is_empty())
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("soak: {error}");
            ExitCode::FAILURE
        }
    }
}
