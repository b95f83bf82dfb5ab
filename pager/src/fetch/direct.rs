//! A page fault that is answered by one blocking read, on a thread of the pager that is for nothing else.
//!
//! ```text
//!   claimed unit --> bytes of the budget, a frame --> the source --> in place
//!                          |                              |
//!                          +---- none, an error, slow ----+--> the engine, which asks once more
//! ```
//!
//! What the way through the engine costs is wake-ups of threads: of the engine, of a thread that may block,
//! of the transfer. Where the answer is one read of a disk they take longer than that. So this knows only the
//! straight way, for reads without an order, after which nothing is fetched ahead. Whatever is in it is left to
//! the engine: guesses that must yield, frames that are out, a source that fails, with its poison and its causes.

use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use super::{
    Object, Request, tell,
    transfer::{check_frame, count_request, other_frame, take_in},
};
use crate::{
    budget::Reservation,
    error::SourceError,
    frame::Frame,
    log::{Fetch, Log},
    stats::add,
    sync::{Arc, AtomicBool, Ordering},
    sys::Next,
    trace::Kind,
};

/// After so long the engine asks as well.
const LONGEST: Duration = Duration::from_millis(250);

/// A unit that was claimed for a page fault, to be read.
pub(crate) struct Direct {
    object: Arc<Object>,
    unit: u64,
    claim: Arc<Claim>,
}

/// Who answers for a claimed unit: the thread that reads it, or the engine once that has taken too long. Whoever
/// takes it first.
pub(crate) struct Claim {
    region: u64,
    unit: u64,
    until: Instant,
    taken: AtomicBool,
}

impl Claim {
    /// When the engine is to be asked.
    pub(crate) fn until(&self) -> Instant {
        self.until
    }

    /// Whether somebody has answered for it.
    pub(crate) fn is_taken(&self) -> bool {
        self.taken.load(Ordering::SeqCst)
    }

    fn take(&self) -> bool {
        !self.taken.swap(true, Ordering::SeqCst)
    }

    /// What the engine is to be told if nobody has answered by now.
    pub(crate) fn overdue(&self, now: Instant) -> Option<Request> {
        let (region, unit) = (self.region, self.unit);
        (now >= self.until && self.take()).then_some(Request::Again { region, unit })
    }
}

impl Direct {
    /// A read of `unit`, which the caller has claimed.
    pub(crate) fn new(object: Arc<Object>, unit: u64) -> Direct {
        let longest = LONGEST.min(object.deadline / 4);
        let claim = Claim {
            region: object.id,
            unit,
            until: Instant::now() + longest,
            taken: AtomicBool::new(false),
        };
        Direct { object, unit, claim: Arc::new(claim) }
    }

    pub(crate) fn claim(&self) -> &Arc<Claim> {
        &self.claim
    }

    /// The fault, for the policies. Nobody is in a hurry to hear of it where reads have no order.
    pub(crate) fn missed(&self) -> Request {
        Request::Missed { region: self.object.id, unit: self.unit }
    }

    /// Reads the unit and puts it in place. What is left for the engine to do, if anything is.
    pub(crate) fn run(self, log: &Log) -> Option<Request> {
        let Direct { object, unit, claim } = &self;
        let start = Instant::now();
        let again = || claim.take().then_some(Request::Again { region: object.id, unit: *unit });
        let mut told = None;
        // A source that panics is asked by the engine, whose transfers end with their source.
        let read = catch_unwind(AssertUnwindSafe(|| read(object, *unit, log, &mut told)));
        let (frame, charge) = match read {
            Ok(Ok(Some(whole))) => whole,
            Ok(Err(error)) => {
                add(&object.counters.errors, 1);
                metrics::counter!("pager.fetch.errors", "kind" => error.kind()).increment(1);
                if let Some(told) = &mut told {
                    told.failed(error.kind());
                }
                return again();
            }
            Ok(Ok(None)) | Err(_) => return again(),
        };
        let installing = Instant::now();
        // Else the engine has it read, and these bytes come too late.
        if !claim.take() {
            return None;
        }
        let Ok(tidings) = object.ledger.install(*unit, frame, charge) else {
            return Some(Request::Again { region: object.id, unit: *unit });
        };
        tell(tidings);
        if let Some(told) = &mut told {
            told.installed(installing);
        }
        let took = start.elapsed().as_micros() as f64;
        object.first_unit_us.record(took);
        object.fetch_us.record(took);
        None
    }
}

/// The bytes of `unit`, padded, and what they are charged with. `None` where the engine must make room first.
fn read(
    object: &Object,
    unit: u64,
    log: &Log,
    told: &mut Option<Fetch>,
) -> Result<Option<(Frame, Reservation)>, SourceError> {
    let (ledger, cost) = (&object.ledger, object.ledger.unit_cost());
    let budget = ledger.budget();
    // Guesses that nobody follows go before what somebody has read, and only the engine knows them.
    if budget.speculative() > 0 && budget.limit().saturating_sub(budget.used()) < cost {
        return Ok(None);
    }
    let Some(source) = object.source.at_once() else { return Ok(None) };
    let Some(mut supply) = object.frames.supply(1, cost) else { return Ok(None) };
    // As for a guess, which leaves frames over: reads that do not end would keep the engine's from it for ever.
    let Next::Frame(frame) = object.frames.next(&mut supply, true) else { return Ok(None) };
    let units: Range<u64> = unit..unit + 1;
    let bytes = ledger.geometry().bytes_of(&units);
    if let Some(traced) = &object.traced {
        traced.note(units, Kind::Fetch);
    }
    *told = log.fetch(&object.name, bytes.clone(), false);
    if let Some(told) = told {
        told.asked();
    }
    count_request(object);
    let given = frame.addr();
    let mut frame = source.read_at_once(&object.version, bytes.clone(), frame)?;
    let len = check_frame(object, &bytes, given, &frame)?;
    take_in(object, &mut frame, len);
    let charge = supply.charge(&mut frame).ok_or_else(|| other_frame(object))?;
    Ok(Some((frame, charge)))
}
