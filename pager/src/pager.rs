//! Settings, the threads they need, and how an object becomes a region.
//!
//! ```text
//!   Builder --check--> Plan --> Pager: budget, pool, runtime, fault thread --open--> Region
//! ```

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    time::Duration,
};

use tokio::{
    runtime::{Handle as RuntimeHandle, Runtime},
    sync::{mpsc, oneshot},
};

use crate::{
    block_on::block_on,
    budget::Budget,
    cache::Ledger,
    error::{ConfigError, Error, SourceError},
    failure::stop_process,
    fault::{Atlas, Placed, THREADS_MAX, Team, Trap},
    fetch::{Engine, Lanes, Object, Pace, Request},
    log::Log,
    policy::{EvictionPolicy, PrefetchPolicy},
    pool::Pool,
    preset::{self, Extents, Preset},
    region::{Handle, Region, RegionMut, Standing},
    signals::SignalsBlocked,
    sink::BlockSink,
    source::{BlockSource, ObjectStat, Strength},
    stats::{Counters, RegionReport},
    sync::{Arc, AtomicBool, AtomicU64, Mutex, Ordering, Weak, lock},
    sys::{
        Descriptor, FEATURE_WP_ASYNC, FEATURE_WRITE_FAULTS, FramePool, Line, Mapping, Mechanism,
        Mode, ModeRequest, PAGE, Pagemap, Port, Probe, RemapPort, Traits, Watch, WriteTracking,
        is_heard, open_descriptor, open_descriptor_for, port_for, port_for_writing, units_max,
    },
    trace::Recorder,
    units::{Geometry, OBJECT_BYTES_MAX, SPAN_BYTES, UNIT_BYTES_MAX, UNIT_BYTES_MIN},
};

/// The fewest units that a budget must hold. Half may be pinned, eight are protected; with 32,
/// something can always move.
pub const UNITS_MIN: u64 = 32;

/// Frames that the smallest budget must hold beside its units.
const FRAMES_MIN: u64 = 4;

/// From this unit on, a whole huge page, moving costs less than copying (`benches/warm_scan`).
const MOVE_FROM: u64 = 2 << 20;

/// Makes the prefetch policy of each region.
pub type PrefetchFactory = Arc<dyn Fn() -> Box<dyn PrefetchPolicy> + Send + Sync>;

/// Collects settings; [`build`](Builder::build) checks them together.
pub struct Builder {
    budget: Budget,
    unit_bytes: u64,
    /// Whether the unit may be a smaller one where the budget asks for it.
    unit_fits: bool,
    extents: Extents,
    deadline: Duration,
    sink_deadline: Duration,
    demand_requests_max: usize,
    guess_requests_max: usize,
    mode: ModeRequest,
    signal_faults: bool,
    mechanism: Option<Mechanism>,
    poison: bool,
    page_tables_stay: Option<bool>,
    tracking: Option<WriteTracking>,
    eviction: Option<Box<dyn EvictionPolicy>>,
    prefetch: PrefetchFactory,
    recorder: Option<Recorder>,
}

impl Default for Builder {
    fn default() -> Builder {
        Builder {
            budget: Budget::new(1 << 30),
            // S3 takes some 30 ms to a first byte and then sends 64 KiB in less than one: smaller
            // units save no time, larger ones waste memory on random reads.
            unit_bytes: 64 << 10,
            unit_fits: false,
            extents: Extents::default(),
            deadline: Duration::from_secs(60),
            // A sink tries again by itself, and bounds that; what is cut off sooner may have succeeded. The
            // longest of ours is a completion in S3 of 10,000 parts: twice 10 minutes.
            sink_deadline: Duration::from_secs(30 * 60),
            // A region may have three quarters: 128.
            demand_requests_max: 170,
            guess_requests_max: 128,
            mode: ModeRequest::Auto,
            signal_faults: false,
            mechanism: None,
            poison: true,
            page_tables_stay: None,
            tracking: None,
            eviction: None,
            prefetch: Arc::new(crate::policy::default_prefetch),
            recorder: None,
        }
    }
}

impl Builder {
    /// Memory for everything the pager holds, in bytes. Default: 1 GiB.
    pub fn budget_bytes(self, bytes: u64) -> Builder {
        self.budget(&Budget::new(bytes))
    }

    /// A budget that is shared with other pagers and pools.
    pub fn budget(mut self, budget: &Budget) -> Builder {
        self.budget = budget.clone();
        self
    }

    /// The unit of residency of regions that do not choose their own: a power of two, 4 KiB to
    /// 2 MiB. Default: 64 KiB.
    pub fn unit_bytes(mut self, bytes: u64) -> Builder {
        self.unit_bytes = bytes;
        self.unit_fits = false;
        self
    }

    /// Units, lengths of requests and their number for what the program cares about most: the table
    /// stands in [`preset`](crate::preset). Default: none, which suits most.
    pub fn preset(mut self, preset: Preset) -> Builder {
        let settings = preset.settings();
        self.unit_bytes = settings.unit;
        self.unit_fits = true;
        self.extents = settings.extents;
        self.demand_requests_max = settings.demand_requests;
        self.guess_requests_max = settings.guess_requests;
        self
    }

    /// The longest that a request may take to deliver its next unit, 1 ms to 1 h. Default: 60 s.
    pub fn deadline(mut self, deadline: Duration) -> Builder {
        self.deadline = deadline;
        self
    }

    /// The longest that one call of a sink may take, 1 ms to 24 h: to begin a new version, to take 1 MiB of
    /// it, to make it the object. Default: 30 min, more than a sink of `extmem-sources` takes with all its own
    /// attempts. A flush that meets it fails: see [`RegionMut::flush`].
    pub fn sink_deadline(mut self, deadline: Duration) -> Builder {
        self.sink_deadline = deadline;
        self
    }

    /// Requests under way at a time for what readers wait for, 1 to 1024. Default: 170. Of four or
    /// more, one region has at most three quarters, so that a source that does not answer leaves the
    /// rest to others; and beside them are up to three units of page faults whose source is
    /// [read at once](crate::source::ReadAtOnce).
    pub fn demand_requests_max(mut self, requests: usize) -> Builder {
        self.demand_requests_max = requests;
        self
    }

    /// Requests under way at a time for guesses, beside those, 1 to 1024, divided in the same way.
    /// Default: 128.
    pub fn guess_requests_max(mut self, requests: usize) -> Builder {
        self.guess_requests_max = requests;
        self
    }

    /// Which fault mechanism to use. Default: the best that the kernel gives.
    pub fn mode(mut self, mode: ModeRequest) -> Builder {
        self.mode = mode;
        self
    }

    /// Whether page faults may be served by a handler of SIGSEGV where `mode` finds no userfaultfd: in
    /// containers that forbid it, and on kernels without. Default: no, and `map` is refused there.
    /// [`ModeRequest::Signals`] has it everywhere.
    ///
    /// A thread that touches what is missing waits in the handler until it is there. The slice is as good as by
    /// userfaultfd for who reads it, but the handler is the whole process's, so know its limits:
    ///
    /// - It is set by the first such pager, passes on what is not a region's to the handler that was there
    ///   before, by default the end of the process with its core, and stays. Who sets another one later and
    ///   does not pass on what it does not know ends the process at the next missing unit: set it before, or
    ///   have it call ours. `map` is refused while ours is not the one that is set.
    /// - A thread that blocks SIGSEGV is ended by the kernel at a missing unit, and the process with it.
    /// - While a thread waits, signals that have a handler wait too, until the unit is there or has failed
    ///   ([`deadline`](Builder::deadline)); those that end or stop the process by default come within 100 ms.
    ///   1,024 threads can wait at a time, and more try again every millisecond.
    /// - It runs on the thread's stack for signals where there is one (`sigaltstack`, which Rust gives its
    ///   threads), and so do handlers from before; else on the thread's own.
    /// - A system call on missing units fails with EFAULT, as in [`Mode::UserModeOnly`]: load first.
    /// - A forked child has no region: to touch one ends it by SIGSEGV.
    /// - A debugger stops at each SIGSEGV (gdb: `handle SIGSEGV nostop noprint pass`), and a core has only what
    ///   was resident.
    /// - A unit in place is a mapping of its own, and so may be what lies between two. A process has 65,530
    ///   (`vm.max_map_count`), of which units take three quarters at most, 24,573 units. To open an
    ///   object of which the budget has room for more is refused. All pagers of the process share it: where
    ///   they reach it, what is wanted cannot be had.
    /// - It is slower than userfaultfd at small units, by up to two times at 64 KiB: each unit is copied, and
    ///   mapping it stops other faults of the process for a moment.
    ///
    /// What cannot be had raises SIGBUS as elsewhere. Touched again it is asked for again, at the latest when
    /// 1,024 other units of its region have failed since.
    pub fn signal_faults(mut self, allowed: bool) -> Builder {
        self.signal_faults = allowed;
        self
    }

    /// How units are put in place. Default: MOVE for units of 2 MiB where the kernel has it, else
    /// COPY. A mechanism that this kernel or mode lacks is refused by `build`.
    pub fn mechanism(mut self, mechanism: Mechanism) -> Builder {
        self.mechanism = Some(mechanism);
        self
    }

    /// Whether a bare read of bytes that cannot be had raises SIGBUS, where the kernel can do that
    /// (default), or ends the process with the error's text, as on kernels that cannot.
    pub fn poison(mut self, poison: bool) -> Builder {
        self.poison = poison;
        self
    }

    /// Whether page tables are taken to stay when nothing is resident in their span any more, and so
    /// to count against the budget until their region closes. Default: as this kernel does it, see
    /// [`Probe::frees_page_tables`].
    pub fn page_tables_stay(mut self, stay: bool) -> Builder {
        self.page_tables_stay = Some(stay);
        self
    }

    /// How writes through [`MappedMut`](crate::MappedMut) are found. Default: the first of
    /// [`Scan`](WriteTracking::Scan), [`Faults`](WriteTracking::Faults) and
    /// [`Units`](WriteTracking::Units) that this kernel has. One that it lacks is refused by `build`, and
    /// so is any without page faults.
    pub fn write_tracking(mut self, tracking: WriteTracking) -> Builder {
        self.tracking = Some(tracking);
        self
    }

    /// What to evict. Default: S3-FIFO.
    pub fn eviction(mut self, policy: Box<dyn EvictionPolicy>) -> Builder {
        self.eviction = Some(policy);
        self
    }

    /// What to prefetch: makes the policy of each region that does not choose its own.
    pub fn prefetch(
        mut self,
        factory: impl Fn() -> Box<dyn PrefetchPolicy> + Send + Sync + 'static,
    ) -> Builder {
        self.prefetch = Arc::new(factory);
        self
    }

    /// Records what readers of this pager's regions ask for: see [`trace`](crate::trace). Default: nothing
    /// is recorded.
    pub fn record(mut self, recorder: &Recorder) -> Builder {
        self.recorder = Some(recorder.clone());
        self
    }

    /// Checks the settings, asks the kernel, and starts the pager's threads.
    ///
    /// # Errors
    /// [`Error::Config`] for settings that cannot work, [`Error::System`] when the system refuses a
    /// thread or a descriptor.
    pub fn build(self) -> Result<Pager, Error> {
        let plan = self.plan()?;
        let mut opened = open_descriptor_for(self.mode, self.tracking);
        let uffd = opened.descriptor.map(Arc::new);
        let wants_signals = match self.mode {
            ModeRequest::Signals => true,
            ModeRequest::Auto | ModeRequest::UserModeOnly => self.signal_faults,
            ModeRequest::CheckedOnly => false,
        };
        let mut line = None;
        if wants_signals && uffd.is_none() {
            let opened_line = Line::open();
            opened.probe.add_signals(&opened_line);
            line = opened_line.ok().map(Arc::new);
        }
        let tracking = match &uffd {
            Some(uffd) if uffd.has(FEATURE_WP_ASYNC) && opened.probe.can_track_writes => {
                Some(WriteTracking::Scan)
            }
            Some(uffd) if uffd.has(FEATURE_WRITE_FAULTS) => Some(WriteTracking::Faults),
            Some(_) => Some(WriteTracking::Units),
            None => line.as_ref().map(|_| WriteTracking::Units),
        };
        if self.tracking.is_some() && tracking != self.tracking {
            return Err(Error::system(
                "the way to find writes that was asked for is not offered by this kernel in this mode",
                std::io::ErrorKind::Unsupported.into(),
            ));
        }
        let pagemap = match tracking {
            Some(WriteTracking::Scan) => Some(Arc::new(
                Pagemap::open()
                    .map_err(|error| Error::system("/proc/self/pagemap is refused", error))?,
            )),
            _ => None,
        };
        if let Some(mechanism) = self.mechanism {
            let offered = match mechanism {
                Mechanism::Copy => uffd.is_some(),
                Mechanism::Move => uffd.is_some() && opened.probe.can_move,
                Mechanism::Remap => line.is_some(),
                Mechanism::Plain => uffd.is_none() && line.is_none(),
            };
            if !offered {
                return Err(Error::system(
                    "the mechanism asked for is not offered by this kernel in this mode",
                    std::io::ErrorKind::Unsupported.into(),
                ));
            }
        }
        // The pager's threads take no signals: a handler of the program that touched a region there
        // would wait for the very thread that it interrupted.
        let _masked = SignalsBlocked::new();
        let policy = self.eviction.unwrap_or_else(crate::policy::default_eviction);
        let pool = Pool::new(&self.budget, policy);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8))
            .thread_name("pager-io")
            .enable_all()
            .build()
            .map_err(|error| Error::system("the pager's runtime cannot start", error))?;
        let system = |what| move |error| Error::system(what, error);
        let log = Log::start().map_err(system("the pager's log thread cannot start"))?;
        let (sender, requests) = mpsc::unbounded_channel();
        let engine = Engine::new(requests, sender.clone(), pool.clone(), plan.lanes, log.clone());
        let engine = runtime.spawn(engine.run());
        runtime.spawn(async move {
            if let Err(error) = engine.await
                && error.is_panic()
            {
                stop_process(&format!("the pager's engine failed: {error}"));
            }
        });
        let atlas = Arc::new(Atlas::default());
        let trap = uffd.clone().map(Trap::Uffd).or(line.map(Trap::Signals));
        let team = match &trap {
            Some(trap) => {
                let (atlas, runtime) = (atlas.clone(), runtime.handle().clone());
                let team = Team::start(trap.clone(), atlas, sender.clone(), log, runtime);
                Some(team.map_err(system("the page-fault thread cannot start"))?)
            }
            None => None,
        };
        Ok(Pager(Arc::new(Inner {
            plan,
            budget: self.budget,
            pool,
            mechanism: self.mechanism,
            traits: Traits {
                poison: self.poison,
                frees_tables: self
                    .page_tables_stay
                    .map_or(opened.probe.frees_page_tables, |stay| !stay),
            },
            prefetch: self.prefetch,
            recorder: self.recorder,
            probe: opened.probe,
            tracking,
            pagemap,
            uffd,
            trap,
            atlas,
            team,
            engine: sender,
            runtime_handle: runtime.handle().clone(),
            runtime: Mutex::new(Some(runtime)),
            next_region: AtomicU64::new(0),
            objects: Mutex::default(),
            frames: Mutex::default(),
        })))
    }

    /// Checks the settings, alone and together, without starting anything.
    ///
    /// # Errors
    /// The first setting that cannot work.
    pub fn plan(&self) -> Result<Plan, ConfigError> {
        let in_range = |name, value: usize| match value {
            1..=1024 => Ok(value),
            _ => Err(ConfigError::OutOfRange { name, value: value as u64, allowed: "1 to 1024" }),
        };
        let lasts = |name, time: Duration, hours: u64, allowed| match (Duration::from_millis(1)
            ..=Duration::from_secs(hours * 3600))
            .contains(&time)
        {
            true => Ok(time),
            false => {
                let value = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
                Err(ConfigError::OutOfRange { name, value, allowed })
            }
        };
        let deadline = lasts("deadline in ms", self.deadline, 1, "1 ms to 1 h")?;
        let sink_deadline = lasts("sink_deadline in ms", self.sink_deadline, 24, "1 ms to 24 h")?;
        let unit = match self.unit_fits {
            true => preset::fitted(self.unit_bytes, &self.budget),
            false => self.unit_bytes,
        };
        Ok(Plan {
            unit_shift: check_unit(unit, self.budget.limit())?,
            extents: self.extents,
            budget_bytes: self.budget.limit(),
            deadline,
            sink_deadline,
            lanes: Lanes {
                demand: in_range("demand_requests_max", self.demand_requests_max)?,
                guesses: in_range("guess_requests_max", self.guess_requests_max)?,
            },
        })
    }
}

/// Refuses units so small that those of an object that are in place at a time take more mappings than a
/// process may have.
fn check_mappings(geometry: Geometry, budget: u64) -> Result<(), ConfigError> {
    let unit = geometry.unit_bytes();
    let (units, most) = (geometry.units().min(budget / unit), units_max());
    match units <= most {
        true => Ok(()),
        false => Err(ConfigError::Mappings { budget, unit, units, most }),
    }
}

/// Why nothing can be mapped: what each way to a userfaultfd was answered.
fn why_unmappable(probe: &Probe) -> String {
    if probe.tried.is_empty() {
        return "its pager was built with ModeRequest::CheckedOnly, without page faults".to_owned();
    }
    let mut reason =
        "this process has no userfaultfd (see Builder::signal_faults for a way without)".to_owned();
    for (way, answer) in &probe.tried {
        reason.push_str(&format!("; {way}: {answer}"));
    }
    reason
}

/// log2 of a unit that is valid by itself and under `budget`.
fn check_unit(unit: u64, budget: u64) -> Result<u32, ConfigError> {
    if !unit.is_power_of_two() || !(UNIT_BYTES_MIN..=UNIT_BYTES_MAX).contains(&unit) {
        return Err(ConfigError::UnitBytes(unit));
    }
    let needed = UNITS_MIN * (unit + PAGE as u64) + FRAMES_MIN * unit;
    if budget < needed {
        return Err(ConfigError::Budget { budget, unit, units_min: UNITS_MIN, needed });
    }
    Ok(unit.trailing_zeros())
}

/// Settings that were checked, alone and together.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    unit_shift: u32,
    extents: Extents,
    budget_bytes: u64,
    deadline: Duration,
    sink_deadline: Duration,
    lanes: Lanes,
}

impl Plan {
    /// The unit of residency of regions that choose none, in bytes.
    pub fn unit_bytes(&self) -> u64 {
        1 << self.unit_shift
    }

    /// The budget, in bytes.
    pub fn budget_bytes(&self) -> u64 {
        self.budget_bytes
    }

    /// The most bytes that guards may pin.
    pub fn pinned_bytes_max(&self) -> u64 {
        self.budget_bytes / 2
    }

    /// The most bytes that speculation may hold.
    pub fn speculative_bytes_max(&self) -> u64 {
        self.budget_bytes / 4
    }

    /// Requests under way at a time, demand and guesses together.
    pub fn requests_max(&self) -> usize {
        self.lanes.demand + self.lanes.guesses
    }

    /// The longest that a request may take to deliver its next unit.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// The longest that one call of a sink may take.
    pub fn sink_deadline(&self) -> Duration {
        self.sink_deadline
    }
}

/// Settings of one region, where it differs from its pager.
#[derive(Clone, Default)]
pub struct RegionOptions {
    unit_bytes: Option<u64>,
    prefetch: Option<PrefetchFactory>,
}

impl RegionOptions {
    /// The unit of residency: a power of two, 4 KiB to 2 MiB. 2 MiB for scans of large objects,
    /// 4 KiB to 64 KiB for random reads.
    pub fn unit_bytes(mut self, bytes: u64) -> RegionOptions {
        self.unit_bytes = Some(bytes);
        self
    }

    /// What to prefetch.
    pub fn prefetch(
        mut self,
        factory: impl Fn() -> Box<dyn PrefetchPolicy> + Send + Sync + 'static,
    ) -> RegionOptions {
        self.prefetch = Some(Arc::new(factory));
        self
    }
}

/// What a region is opened for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Read,
    Write,
}

/// Makes remote objects readable as memory, under one budget. Cheap to clone.
///
/// Its threads end when the last clone and the last region are gone. Dropping the last of them
/// waits for no request and is safe in async code.
#[derive(Clone)]
pub struct Pager(Arc<Inner>);

struct Inner {
    plan: Plan,
    budget: Budget,
    pool: Pool,
    mechanism: Option<Mechanism>,
    traits: Traits,
    prefetch: PrefetchFactory,
    recorder: Option<Recorder>,
    probe: Probe,
    tracking: Option<WriteTracking>,
    /// Where writes are found by scanning.
    pagemap: Option<Arc<Pagemap>>,
    uffd: Option<Arc<Descriptor>>,
    /// That descriptor, or what is there instead.
    trap: Option<Trap>,
    atlas: Arc<Atlas>,
    /// Who answers faults, where there are any.
    team: Option<Team>,
    engine: mpsc::UnboundedSender<Request>,
    runtime_handle: RuntimeHandle,
    /// `None` only while dropping.
    runtime: Mutex<Option<Runtime>>,
    next_region: AtomicU64,
    /// The regions that are open, by their ids.
    objects: Mutex<BTreeMap<u64, Weak<Object>>>,
    /// By unit size and whether they are moved, shared by the regions of that kind.
    frames: Mutex<HashMap<(u64, bool), FramePool>>,
}

impl Pager {
    /// Default settings, to be changed.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Asks the kernel what it offers, without starting anything.
    pub fn probe() -> Probe {
        open_descriptor(ModeRequest::Auto).probe
    }

    /// What the kernel said when this pager was built.
    pub fn probed(&self) -> &Probe {
        &self.0.probe
    }

    /// The settings that this pager was built with.
    pub fn plan(&self) -> &Plan {
        &self.0.plan
    }

    /// The mode that this pager runs in.
    pub fn mode(&self) -> Mode {
        self.0.probe.mode
    }

    /// How writes through [`MappedMut`](crate::MappedMut) are found; `None` where nothing can be mapped.
    pub fn write_tracking(&self) -> Option<WriteTracking> {
        self.0.tracking
    }

    /// The budget of everything this pager holds.
    pub fn budget(&self) -> &Budget {
        &self.0.budget
    }

    /// The pool that this pager's regions share. A database can keep its pages in it too, with
    /// [`crate::pool::Pages`], and so compete with them under one policy.
    pub fn pool(&self) -> &Pool {
        &self.0.pool
    }

    /// What the open regions have done so far, in the order in which they were opened.
    pub fn regions(&self) -> Vec<RegionReport> {
        let open: Vec<Arc<Object>> =
            lock(&self.0.objects).values().filter_map(Weak::upgrade).collect();
        let report = |object: Arc<Object>| RegionReport {
            name: object.name.to_string(),
            len: object.ledger.geometry().object_len(),
            unit_bytes: object.ledger.geometry().unit_bytes(),
            mechanism: object.mechanism,
            stats: object.counters.snapshot(),
        };
        open.into_iter().map(report).collect()
    }

    /// Opens the object of `source` as a region. Blocks for one `stat`; works on any thread, a
    /// runtime's own included.
    ///
    /// # Errors
    /// The source's error, [`Error::Deadline`], or that the system has no address space left.
    pub fn open(&self, source: impl BlockSource) -> Result<Region, Error> {
        self.open_with(source, RegionOptions::default())
    }

    /// [`open`](Pager::open) with settings of the region's own.
    ///
    /// # Errors
    /// Those of [`open`](Pager::open), and [`Error::Config`] for a unit that is none, or that is too
    /// large for the budget.
    pub fn open_with(
        &self,
        source: impl BlockSource,
        options: RegionOptions,
    ) -> Result<Region, Error> {
        let deadline = self.0.plan.deadline;
        // `stat` keeps the deadline; this one is for a runtime that a source has blocked.
        let longest = deadline.saturating_mul(2) + Duration::from_secs(1);
        let name = source.name().to_owned();
        block_on(self.open_async_with(source, options), longest)
            .unwrap_or_else(|| Err(Error::Deadline { object: name, range: 0..0, deadline }))
    }

    /// [`open`](Pager::open) for async code. Waits as long as a source blocks the threads that it is
    /// polled on; only `open` has a limit of its own.
    ///
    /// # Errors
    /// Those of [`open`](Pager::open).
    pub async fn open_async(&self, source: impl BlockSource) -> Result<Region, Error> {
        self.open_async_with(source, RegionOptions::default()).await
    }

    /// [`open_with`](Pager::open_with) for async code, as [`open_async`](Pager::open_async).
    ///
    /// # Errors
    /// Those of [`open_with`](Pager::open_with).
    pub async fn open_async_with(
        &self,
        source: impl BlockSource,
        options: RegionOptions,
    ) -> Result<Region, Error> {
        let unit_shift = match options.unit_bytes {
            Some(unit) => check_unit(unit, self.0.budget.limit())?,
            None => self.0.plan.unit_shift,
        };
        let source: Arc<dyn BlockSource> = Arc::new(source);
        let stat = self.stat(source.clone()).await?;
        let prefetch = options.prefetch.as_ref().unwrap_or(&self.0.prefetch);
        self.region(source, stat, unit_shift, prefetch, Use::Read, None)
    }

    /// Opens the object of `source` to be read and written. What is written goes back through `sink`, which
    /// is of the same object, when the region is flushed. Blocks for one `stat`, like [`open`](Pager::open).
    ///
    /// # Errors
    /// Those of [`open`](Pager::open); [`Error::NotWritable`] for a version that is weak: a flush could
    /// not tell that somebody else has written.
    pub fn open_mut(
        &self,
        source: impl BlockSource,
        sink: impl BlockSink,
    ) -> Result<RegionMut, Error> {
        self.open_mut_with(source, sink, RegionOptions::default())
    }

    /// [`open_mut`](Pager::open_mut) with settings of the region's own.
    ///
    /// # Errors
    /// Those of [`open_mut`](Pager::open_mut) and of [`open_with`](Pager::open_with).
    pub fn open_mut_with(
        &self,
        source: impl BlockSource,
        sink: impl BlockSink,
        options: RegionOptions,
    ) -> Result<RegionMut, Error> {
        let deadline = self.0.plan.deadline;
        // As in `open_with`.
        let longest = deadline.saturating_mul(2) + Duration::from_secs(1);
        let name = source.name().to_owned();
        block_on(self.open_mut_async_with(source, sink, options), longest)
            .unwrap_or_else(|| Err(Error::Deadline { object: name, range: 0..0, deadline }))
    }

    /// [`open_mut_with`](Pager::open_mut_with) for async code.
    ///
    /// # Errors
    /// Those of [`open_mut_with`](Pager::open_mut_with).
    pub async fn open_mut_async_with(
        &self,
        source: impl BlockSource,
        sink: impl BlockSink,
        options: RegionOptions,
    ) -> Result<RegionMut, Error> {
        let unit_shift = match options.unit_bytes {
            Some(unit) => check_unit(unit, self.0.budget.limit())?,
            None => self.0.plan.unit_shift,
        };
        let source: Arc<dyn BlockSource> = Arc::new(source);
        let stat = self.stat(source.clone()).await?;
        if stat.version.strength() == Strength::Weak {
            return Err(Error::NotWritable {
                object: source.name().to_owned(),
                reason: format!(
                    "its version, {}, does not tell whether somebody else has written",
                    stat.version
                ),
            });
        }
        let standing = Arc::new(Standing::new(source, stat.version.clone()));
        let through: Arc<dyn BlockSource> = Arc::new(standing.clone());
        let prefetch = options.prefetch.as_ref().unwrap_or(&self.0.prefetch);
        let watch = self.watch();
        let region = self.region(through, stat, unit_shift, prefetch, Use::Write, watch.clone())?;
        let deadline = self.0.plan.sink_deadline;
        Ok(RegionMut::new(region, standing, Arc::new(sink), deadline, watch))
    }

    /// Who watches the writes to a region that is opened now, where it can be mapped.
    fn watch(&self) -> Option<Arc<Watch>> {
        Some(Arc::new(match (self.0.tracking?, &self.0.pagemap, &self.0.uffd) {
            (WriteTracking::Scan, Some(pagemap), _) => Watch::by_scan(pagemap.clone()),
            (WriteTracking::Faults, _, Some(uffd)) => Watch::by_faults(uffd.clone()),
            _ => Watch::by_units(),
        }))
    }

    /// Runs `work` on the pager's own runtime, to its end.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        self.0.runtime_handle.spawn(work)
    }

    /// Asks the source on the pager's own runtime: a pooled connection is driven by the runtime
    /// that opened it.
    async fn stat(&self, source: Arc<dyn BlockSource>) -> Result<ObjectStat, Error> {
        let deadline = self.0.plan.deadline;
        let name = source.name().to_owned();
        let (sender, answer) = oneshot::channel();
        self.0.runtime_handle.spawn(async move {
            let _ = sender.send(tokio::time::timeout(deadline, source.stat()).await);
        });
        match answer.await {
            Ok(Ok(stat)) => Ok(stat?),
            Ok(Err(_elapsed)) => Err(Error::Deadline { object: name, range: 0..0, deadline }),
            Err(_dropped) => Err(Error::Source(SourceError::Permanent {
                object: name,
                reason: "the source panicked while it was asked for the object".to_owned(),
                cause: None,
            })),
        }
    }

    fn region(
        &self,
        source: Arc<dyn BlockSource>,
        stat: ObjectStat,
        unit_shift: u32,
        prefetch: &PrefetchFactory,
        purpose: Use,
        watch: Option<Arc<Watch>>,
    ) -> Result<Region, Error> {
        let inner = &*self.0;
        if stat.len > OBJECT_BYTES_MAX {
            return Err(Error::Source(SourceError::Permanent {
                object: source.name().to_owned(),
                reason: format!("{} bytes are more than the address space has room for", stat.len),
                cause: None,
            }));
        }
        let geometry = Geometry::new(stat.len, unit_shift);
        let unit = geometry.unit_bytes();
        let system = |what| move |error| Error::system(what, error);
        let mechanism = self.mechanism_for(unit, purpose);
        let memory =
            self.reserve(geometry, purpose).map_err(system("no address space for the object"))?;
        let id = inner.next_region.fetch_add(1, Ordering::Relaxed);
        let counters = Arc::new(Counters::default());
        let mechanism = match &inner.trap {
            Some(Trap::Signals(_)) => {
                check_mappings(geometry, inner.budget.limit())?;
                Mechanism::Remap
            }
            _ => mechanism,
        };
        let frames = self.frames(unit, mechanism)?;
        let port: Arc<dyn Port> = match (&inner.trap, &watch) {
            (Some(Trap::Signals(line)), _) => {
                let Traits { poison, frees_tables } = inner.traits;
                Arc::new(RemapPort::new(line.clone(), poison, frees_tables))
            }
            (Some(Trap::Uffd(uffd)), Some(watch)) => {
                port_for_writing(uffd.clone(), inner.traits, watch.clone())
            }
            (Some(Trap::Uffd(uffd)), None) => {
                port_for(mechanism, Some(uffd.clone()), Some(&frames), inner.traits)
            }
            (None, _) => port_for(mechanism, None, Some(&frames), inner.traits),
        };
        let engine = inner.engine.clone();
        let again = Box::new(move |unit| {
            let _ = engine.send(Request::Missing { region: id, units: unit..unit + 1 });
        });
        let place = memory.as_ref().map(|memory| (memory.addr(), memory.len()));
        let budget = inner.budget.clone();
        let ledger = Ledger::new(id, geometry, memory, port, budget, counters.clone(), again)
            .map_err(system("no address space for the object's states"))?;
        let ledger = Arc::new(ledger);
        let tenant: Arc<dyn crate::pool::Tenant> = ledger.clone();
        let tenancy = inner.pool.join(Arc::downgrade(&tenant)).ok_or_else(|| {
            let cause = std::io::Error::other("65,536 regions are open");
            Error::system("the pager's pool takes no more regions", cause)
        })?;
        ledger.settle(tenancy);
        let (extents, lanes) = (inner.plan.extents, inner.plan.lanes.of_one_region());
        frames.enter();
        let recorder = inner.recorder.as_ref();
        let traced = recorder.and_then(|recorder| {
            recorder.opened(source.name(), stat.version.token(), stat.len, unit)
        });
        // A frame that is moved may still have the unit's bytes, and the engine looks for them.
        let copied = mechanism != Mechanism::Move;
        let lanes_enough = inner.plan.lanes.demand >= THREADS_MAX;
        let at_once = purpose == Use::Read && copied && lanes_enough && source.at_once().is_some();
        let object = Arc::new(Object {
            id,
            name: source.name().into(),
            source,
            version: stat.version,
            mechanism,
            ledger: ledger.clone(),
            frames,
            extent_max: extents.units_max(stat.part_bytes, unit),
            align: if stat.alignment.is_multiple_of(unit) {
                (stat.alignment / unit).max(1)
            } else {
                1
            },
            extent_min: extents.units_min(unit),
            pace: Pace::new(lanes.demand + lanes.guesses, counters.clone()),
            at_once,
            random: AtomicBool::new(false),
            deadline: inner.plan.deadline,
            hints: Mutex::default(),
            prefetch: Mutex::new(prefetch()),
            counters: counters.clone(),
            first_unit_us: metrics::histogram!("pager.fetch.first_unit_us"),
            fetch_us: metrics::histogram!("pager.fetch.us"),
            traced: traced.clone(),
        });
        if let Some(team) = inner.team.as_ref().filter(|_| at_once) {
            team.grow();
        }
        lock(&inner.objects).insert(id, Arc::downgrade(&object));
        // The engine knows the region before the first fault can name it.
        let _ = inner.engine.send(Request::Open(object.clone()));
        let unmappable = match (&inner.trap, place) {
            (Some(trap), Some((addr, len))) => {
                let metric = metrics::counter!("pager.fault.count");
                let refused = |what| {
                    move |error| {
                        self.forget(id);
                        let _ = inner.engine.send(Request::Close { region: id });
                        Error::system(what, error)
                    }
                };
                let listening =
                    match trap {
                        Trap::Signals(line) => Some(line.watch(addr..addr + len).map_err(
                            refused("SIGSEGV cannot be handled for the object's memory"),
                        )?),
                        Trap::Uffd(_) => None,
                    };
                inner.atlas.insert(Placed {
                    addr,
                    len,
                    region: id,
                    ledger,
                    object: Arc::downgrade(&object),
                    counters,
                    metric,
                    traced,
                    _listening: listening.map(Arc::new),
                    watch,
                });
                if let Trap::Uffd(uffd) = trap {
                    let registered = match purpose {
                        Use::Write if inner.tracking != Some(WriteTracking::Units) => {
                            uffd.register_for_writing(addr, len)
                        }
                        _ => uffd.register(addr, len),
                    };
                    registered.map_err(refused("userfaultfd refuses the object's memory"))?;
                }
                None
            }
            (None, Some(_)) => Some(why_unmappable(&inner.probe)),
            // An empty object maps to an empty slice everywhere.
            (_, None) => None,
        };
        Ok(Region::new(Handle::new(object, inner.engine.clone(), unmappable, self.clone())))
    }

    fn mechanism_for(&self, unit: u64, purpose: Use) -> Mechanism {
        match (&self.0.uffd, self.0.mechanism) {
            (None, _) => Mechanism::Plain,
            // Writes are seen page by page, where pages are put in place protected.
            (Some(_), _) if purpose == Use::Write => Mechanism::Copy,
            (Some(_), Some(mechanism)) => mechanism,
            (Some(_), None) if unit >= MOVE_FROM && self.0.probe.can_move => Mechanism::Move,
            (Some(_), None) => Mechanism::Copy,
        }
    }

    /// Address space for all units of an object; `None` if it has none.
    fn reserve(&self, geometry: Geometry, purpose: Use) -> std::io::Result<Option<Mapping>> {
        if geometry.units() == 0 {
            return Ok(None);
        }
        let len = usize::try_from(geometry.mapped_len())
            .map_err(|_| std::io::Error::from(std::io::ErrorKind::OutOfMemory))?;
        if let Some(Trap::Signals(_)) = &self.0.trap {
            let mapping = Mapping::reserve_closed(len, SPAN_BYTES as usize)?;
            // A child would ask a pager that it does not have.
            mapping.advise(0, len, libc::MADV_DONTFORK)?;
            return Ok(Some(mapping));
        }
        let mapping = Mapping::reserve(len, SPAN_BYTES as usize)?;
        // A child would read zeros where pages are missing; without the range it gets SIGSEGV.
        mapping.advise(0, len, libc::MADV_DONTFORK)?;
        // Before the first fault: a page table left behind makes the kernel split a moved huge
        // page. Kernels without transparent huge pages refuse both, which changes nothing.
        let huge = geometry.unit_bytes() >= SPAN_BYTES && purpose == Use::Read;
        let _ =
            mapping.advise(0, len, if huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE });
        Ok(Some(mapping))
    }

    /// The frames for units of `unit` bytes, shared by the regions of that size. Frames to copy
    /// from take at most a sixteenth of the budget.
    fn frames(&self, unit: u64, mechanism: Mechanism) -> Result<FramePool, Error> {
        let mut pools = lock(&self.0.frames);
        let key = (unit, mechanism == Mechanism::Move);
        if let Some(frames) = pools.get(&key) {
            return Ok(frames.clone());
        }
        let (pool, bytes) = (&self.0.pool, unit as usize);
        let frames = match (&self.0.trap, mechanism) {
            (Some(Trap::Uffd(uffd)), Mechanism::Move) => {
                FramePool::recycled(bytes, pool, uffd.clone())
                    .map_err(|cause| Error::system("no address space for frames", cause))?
            }
            _ => {
                let most = (self.0.budget.limit() / 16 / unit).clamp(2, 256) as usize;
                FramePool::staging(bytes, most, pool).ok_or_else(|| {
                    let cause = std::io::Error::other("too much is pinned or on its way");
                    Error::system("the budget has no room for another region's buffers", cause)
                })?
            }
        };
        if let Some(addrs) = frames.registered() {
            self.0.atlas.insert_frames(addrs);
        }
        pools.insert(key, frames.clone());
        Ok(frames)
    }

    /// Why faults do not come here any more, if they do not.
    pub(crate) fn why_unheard(&self) -> Option<String> {
        let by_signals = matches!(self.0.trap, Some(Trap::Signals(_)));
        (by_signals && !is_heard()).then(|| {
            "another handler of SIGSEGV was set after the pager's: set it before, or not at all"
                .to_owned()
        })
    }

    pub(crate) fn forget(&self, region: u64) {
        lock(&self.0.objects).remove(&region);
        self.0.atlas.remove(region);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // No region, guard or map is left, so nobody waits in a fault.
        if let Some(team) = &self.team {
            team.stop();
        }
        if let Some(runtime) = lock(&self.runtime).take() {
            // Not a blocking shutdown: this may run inside an async runtime, and a source that
            // never answers must not hold it up.
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for Pager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pager({}, {:?})", self.mode(), self.budget())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_cannot_work_are_refused_together() {
        type Change = fn(Builder) -> Builder;
        let cases: [(&str, Change, bool); 11] = [
            ("defaults", |b| b, true),
            ("no power of two", |b| b.unit_bytes(5000), false),
            ("a unit below a page", |b| b.unit_bytes(2048), false),
            ("a unit above a huge page", |b| b.unit_bytes(4 << 20), false),
            // A unit counts with a page for its table, and four frames come beside the units.
            ("32 units", |b| b.unit_bytes(4096).budget_bytes(32 * 8192 + 4 * 4096), true),
            ("a byte less", |b| b.unit_bytes(4096).budget_bytes(32 * 8192 + 4 * 4096 - 1), false),
            ("no deadline", |b| b.deadline(Duration::ZERO), false),
            ("no time for a sink", |b| b.sink_deadline(Duration::ZERO), false),
            ("a day for a sink", |b| b.sink_deadline(Duration::from_secs(86_400)), true),
            ("more than that", |b| b.sink_deadline(Duration::from_secs(86_401)), false),
            ("no requests", |b| b.demand_requests_max(0), false),
        ];
        for (what, change, works) in cases {
            assert_eq!(change(Pager::builder()).plan().is_ok(), works, "{what}");
        }
    }

    #[test]
    fn what_cannot_be_mapped_says_what_was_tried() {
        let mut probe = Pager::probe();
        probe.tried = vec![
            ("userfaultfd(2)".to_owned(), "EPERM".to_owned()),
            ("/dev/userfaultfd".to_owned(), "ENOENT".to_owned()),
        ];
        let expected = "this process has no userfaultfd (see Builder::signal_faults for a way without); \
                        userfaultfd(2): EPERM; /dev/userfaultfd: ENOENT";
        assert_eq!(why_unmappable(&probe), expected);
        probe.tried.clear();
        assert!(why_unmappable(&probe).contains("CheckedOnly"));
    }
}
