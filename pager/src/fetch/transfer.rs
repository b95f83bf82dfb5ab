//! One range request: from the source's stream to units in place, as each part arrives.

use std::{ops::Range, time::Duration};

use futures::{FutureExt, StreamExt};
use tokio::{
    sync::mpsc::UnboundedSender,
    time::{Instant, timeout, timeout_at},
};

use super::{Object, Request, pace::Answer, queue::Job, tell};
use crate::{
    cache::State,
    error::SourceError,
    failure::stop_process,
    frame::Frame,
    log::{self, Log},
    source::ByteStream,
    stats::add,
    sync::Arc,
    sys::{Next, Spare, Supply},
};

/// How long to sleep at most while waiting for a frame: a lost wake-up costs this and no more.
const FRAME_WAIT: Duration = Duration::from_millis(20);

/// How long a body stays open while no frame is free for what it brings.
const BODY_HELD: Duration = Duration::from_secs(1);

/// How long a transfer waits at most, over all its units, until it is told why their readers get
/// SIGBUS. A reader may hold the lock that telling takes, so the wait must end without that.
const TELL_WAIT: Duration = Duration::from_secs(1);

/// Chunks looked at, at most, for bytes beyond the end of a range.
const EXCESS_LOOKS: usize = 16;

/// A request under way. Units are settled from the front; whatever ends the transfer early (an
/// error, a panic in the source, the end of the runtime) fails the rest.
pub(super) struct Transfer {
    object: Arc<Object>,
    /// Units claimed and not yet settled.
    left: Range<u64>,
    marker: Option<u64>,
    guess: bool,
    supply: Option<Supply>,
    frame: Option<Frame>,
    requests: UnboundedSender<Request>,
    log: Log,
    start: Instant,
    /// Units put in place so far.
    installed: u64,
    /// What the source makes of it.
    answer: Answer,
    /// For who listens.
    told: Option<log::Fetch>,
}

impl Transfer {
    /// A transfer of `job`, whose bytes are reserved in `supply`.
    pub(super) fn new(
        job: Job,
        supply: Supply,
        requests: UnboundedSender<Request>,
        log: Log,
    ) -> Transfer {
        let object = &job.object;
        let told =
            log.fetch(&object.name, object.ledger.geometry().bytes_of(&job.units), job.guess);
        Transfer {
            start: Instant::now(),
            installed: 0,
            answer: Answer::default(),
            told,
            left: job.units,
            marker: job.marker,
            guess: job.guess,
            supply: Some(supply),
            frame: None,
            requests,
            log,
            object: job.object,
        }
    }

    pub(super) async fn run(mut self) {
        let outcome = if self.object.source.fills_frames() {
            self.run_by_frames().await
        } else {
            self.run_by_stream().await
        };
        self.object.fetch_us.record(self.start.elapsed().as_micros() as f64);
        match &outcome {
            Ok(()) => self.object.pace.answered(self.answer, Instant::now()),
            Err(SourceError::Throttled { .. }) => {
                self.object.pace.throttled(self.start, Instant::now());
            }
            Err(_) => {}
        }
        if let Err(error) = outcome {
            add(&self.object.counters.errors, 1);
            metrics::counter!("pager.fetch.errors", "kind" => error.kind()).increment(1);
            if let Some(told) = &mut self.told {
                told.failed(error.kind());
            }
            // The request is over, whatever the wait below takes.
            drop(self.told.take());
            self.fail(&error).await;
        }
    }

    /// One request for the whole range; units are put in place as the stream delivers them.
    ///
    /// An open body may hold what the bodies of others wait for in the middle: a turn at a shared
    /// limit, a flight of a cache. Those others have frames in hand. So a body is not held while no
    /// frame comes free; the rest is asked for anew, with a frame at hand, and each such request
    /// brings a unit.
    async fn run_by_stream(&mut self) -> Result<(), SourceError> {
        let object = self.object.clone();
        // Units of a request: after a body that was let go one, and twice as many each time all came,
        // so that little is asked for twice while frames are short.
        let mut most = u64::MAX;
        while !self.left.is_empty() {
            let end = self.left.end.min(self.left.start.saturating_add(most));
            let range = object.ledger.geometry().bytes_of(&(self.left.start..end));
            self.count_request();
            let asked = Instant::now();
            let open = object.source.read(&object.version, range.clone());
            let mut body = Body {
                stream: self.within_deadline(&range, open).await?,
                chunk: Default::default(),
            };
            self.answer.first_byte.get_or_insert(asked.elapsed());
            while self.left.start < end {
                let Ok(frame) = timeout(BODY_HELD, self.frame()).await else { break };
                let (unit, mut frame) = (self.left.start, frame?);
                let bytes = object.ledger.geometry().bytes_of(&(unit..unit + 1));
                let since = Instant::now();
                let filled =
                    self.within_deadline(&bytes, body.fill(&object.name, &bytes, &mut frame));
                filled.await?;
                self.answer.body += since.elapsed();
                if unit + 1 == end {
                    body.check_end(&object.name, &range)?;
                }
                self.settle(unit, frame, bytes.end - bytes.start)?;
            }
            if self.left.start < end {
                drop(body);
                self.frame = Some(self.frame().await?);
                most = 1;
                continue;
            }
            most = most.saturating_mul(2);
        }
        Ok(())
    }

    /// The source writes into frames itself: one cheap call per unit.
    async fn run_by_frames(&mut self) -> Result<(), SourceError> {
        let object = self.object.clone();
        while self.left.start < self.left.end {
            let unit = self.left.start;
            let frame = self.frame().await?;
            let given = frame.addr();
            let bytes = object.ledger.geometry().bytes_of(&(unit..unit + 1));
            self.count_request();
            let read = object.source.read_into(&object.version, bytes.clone(), frame);
            let frame = self.within_deadline(&bytes, read).await?;
            let got = check_frame(&object, &bytes, given, &frame)?;
            self.settle(unit, frame, got)?;
        }
        Ok(())
    }

    fn count_request(&mut self) {
        if let Some(told) = &mut self.told {
            told.asked();
        }
        count_request(&self.object);
    }

    async fn within_deadline<T>(
        &self,
        range: &Range<u64>,
        work: impl Future<Output = Result<T, SourceError>>,
    ) -> Result<T, SourceError> {
        let deadline = self.object.deadline;
        match timeout(deadline, work).await {
            Ok(outcome) => outcome,
            Err(_) => Err(SourceError::transient_read(
                &self.object.name,
                range.clone(),
                format!("no answer within the pager's deadline of {deadline:?}"),
                None,
            )),
        }
    }

    fn other_frame(&self) -> SourceError {
        other_frame(&self.object)
    }

    /// The frame at hand, or the next one that is free. Whoever holds frames finishes without this
    /// transfer, and what is staged leaves others over; all the same the wait ends at the deadline.
    async fn frame(&mut self) -> Result<Frame, SourceError> {
        if let Some(frame) = self.frame.take() {
            return Ok(frame);
        }
        let start = Instant::now();
        let budget = self.object.ledger.budget().clone();
        loop {
            budget.want();
            let freed = budget.freed().notified();
            let wanted = !self.guess || self.object.ledger.is_demanded(self.left.start);
            let supply = self.supply.as_mut().expect("supplied until all is settled");
            let late = start.elapsed() >= self.object.deadline;
            match self.object.frames.next(supply, !wanted) {
                Next::Frame(frame) => return Ok(frame),
                Next::Busy if late => {
                    let range = self.object.ledger.geometry().bytes_of(&self.left);
                    let reason = format!("no frame came free within {:?}", self.object.deadline);
                    let name = &self.object.name;
                    return Err(SourceError::transient_read(name, range, reason, None));
                }
                Next::NoMemory(error) if late => {
                    return Err(SourceError::Permanent {
                        object: self.object.name.to_string(),
                        reason: "the system has no memory for a frame".to_owned(),
                        cause: Some(Arc::new(error)),
                    });
                }
                Next::Busy | Next::NoMemory(_) => {}
                // Each unit has its share of the supply, unless somebody else took it.
                Next::Spent => return Err(self.other_frame()),
            }
            let _ = timeout(FRAME_WAIT, freed).await;
        }
    }

    /// Puts `unit`, whose `len` bytes are in `frame`, in place, or stages it.
    fn settle(&mut self, unit: u64, mut frame: Frame, len: u64) -> Result<(), SourceError> {
        let object = &self.object;
        self.answer.bytes += len;
        take_in(object, &mut frame, len);
        let supply = self.supply.as_mut().expect("supplied until all is settled");
        let Some(charge) = supply.charge(&mut frame) else { return Err(self.other_frame()) };
        // A staged unit keeps its frame, so another one may have to be free.
        let stage = self.marker == Some(unit)
            && match object.frames.spare(&mut frame) {
                Spare::Frame(spare) => {
                    self.frame = Some(spare);
                    true
                }
                Spare::None => false,
                Spare::NotNeeded => true,
            };
        let since = self.told.is_some().then(std::time::Instant::now);
        let outcome = match stage {
            true => object.ledger.stage(unit, frame, charge),
            false => object.ledger.install(unit, frame, charge),
        };
        let tidings = outcome.map_err(|error| SourceError::Permanent {
            object: object.name.to_string(),
            reason: format!("the system cannot put {} bytes in place", object.ledger.unit_cost()),
            cause: Some(Arc::new(error)),
        })?;
        self.left.start = unit + 1;
        tell(tidings);
        if let (Some(told), Some(since)) = (&mut self.told, since) {
            told.installed(since);
        }
        if self.installed == 0 {
            self.object.first_unit_us.record(self.start.elapsed().as_micros() as f64);
        }
        self.installed += 1;
        Ok(())
    }

    /// Fails what is left because of `error`. Where that raises SIGBUS, the cause is told first.
    ///
    /// From the end: readers wait from the front, and when they hear of it and try again, no unit of
    /// this transfer is left for them to join and fail with.
    async fn fail(&mut self, error: &SourceError) {
        drop(self.frame.take());
        drop(self.supply.take());
        let until = Instant::now() + TELL_WAIT;
        while let Some(unit) = self.left.clone().next_back() {
            if !self.fail_last(error, false, false) {
                let bytes = self.object.ledger.geometry().bytes_of(&(unit..unit + 1));
                let telling = self.log.poisoned(&self.object.name, bytes, error);
                let _ = timeout_at(until, telling).await;
                self.fail_last(error, true, false);
            }
        }
    }

    /// Fails the last unit that is left. False if its readers would get SIGBUS and the cause was not
    /// `told`: then nothing has changed.
    fn fail_last(&mut self, error: &SourceError, told: bool, closed: bool) -> bool {
        let object = &self.object;
        let unit = self.left.end - 1;
        // Whoever came to wait for a guess is asked for once more.
        let again = || self.requests.send(Request::Again { region: object.id, unit }).is_ok();
        if !self.guess || (object.ledger.unclaim(unit) && !again()) {
            match object.ledger.fail(unit, error, told) {
                Ok((State::Fetching, _)) => return false,
                Ok((_, tidings)) => tell(tidings),
                // Nobody waits for a region that is closed.
                Err(_) if closed => {}
                Err(system) => {
                    let bytes = object.ledger.geometry().bytes_of(&(unit..unit + 1));
                    stop_process(&format!(
                        "{error}; a thread waits for bytes {}..{} in a page fault, and this kernel \
                         cannot poison the page ({system})",
                        bytes.start, bytes.end
                    ))
                }
            }
        }
        self.left.end = unit;
        true
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        drop(self.frame.take());
        drop(self.supply.take());
        // Something is left where the source panicked, and where the region or the pager is gone.
        let closed = !std::thread::panicking();
        if !self.left.is_empty() {
            let error = SourceError::Permanent {
                object: self.object.name.to_string(),
                reason: match closed {
                    false => "the source panicked while it was read".to_owned(),
                    true => "the region was closed while it was read".to_owned(),
                },
                cause: None,
            };
            while let Some(unit) = self.left.clone().next_back() {
                // Nobody reads what is closed, so nobody is told.
                if !self.fail_last(&error, closed, closed) {
                    let bytes = self.object.ledger.geometry().bytes_of(&(unit..unit + 1));
                    self.log.poisoned_now(&self.object.name, bytes, &error);
                    self.fail_last(&error, true, closed);
                }
            }
        }
        let _ = self.requests.send(Request::Done { guess: self.guess });
    }
}

/// One request more goes to the source of `object`.
pub(super) fn count_request(object: &Object) {
    add(&object.counters.requests, 1);
    metrics::counter!("pager.fetch.requests").increment(1);
}

/// Checks what a source made of a frame at the address `given`: it is that one, with as many bytes as `bytes`
/// has. Returns how many.
pub(super) fn check_frame(
    object: &Object,
    bytes: &Range<u64>,
    given: usize,
    frame: &Frame,
) -> Result<u64, SourceError> {
    if frame.addr() != given {
        return Err(other_frame(object));
    }
    let got = frame.filled().len() as u64;
    match got == bytes.end - bytes.start {
        true => Ok(got),
        false => Err(SourceError::short_body(&object.name, bytes.clone(), got)),
    }
}

pub(super) fn other_frame(object: &Object) -> SourceError {
    SourceError::Permanent {
        object: object.name.to_string(),
        reason: "the source filled another frame than it was given".to_owned(),
        cause: None,
    }
}

/// Makes a whole unit of `frame`, which has the `len` bytes of one, and counts them.
pub(super) fn take_in(object: &Object, frame: &mut Frame, len: u64) {
    add(&object.counters.bytes_fetched, len);
    metrics::counter!("pager.fetch.bytes").increment(len);
    // The last unit of the object is padded: what follows it is nobody's bytes.
    let padding = frame.room();
    frame.unfilled().fill(0);
    frame.advance(padding);
}

/// A stream and the rest of the chunk that did not fit into the last unit.
struct Body {
    stream: ByteStream,
    chunk: bytes::Bytes,
}

impl Body {
    /// Fills `frame` with exactly the bytes of `range`.
    async fn fill(
        &mut self,
        object: &str,
        range: &Range<u64>,
        frame: &mut Frame,
    ) -> Result<(), SourceError> {
        let wanted = (range.end - range.start) as usize;
        while frame.filled().len() < wanted {
            if self.chunk.is_empty() {
                match self.stream.next().await {
                    // A stream that has always another empty chunk must not keep the task from its
                    // deadline.
                    Some(Ok(chunk)) if chunk.is_empty() => tokio::task::yield_now().await,
                    Some(chunk) => self.chunk = chunk?,
                    None => {
                        let got = frame.filled().len() as u64;
                        return Err(SourceError::short_body(object, range.clone(), got));
                    }
                }
            }
            let n = self.chunk.len().min(wanted - frame.filled().len());
            frame.put(&self.chunk.split_to(n));
        }
        Ok(())
    }

    /// Refuses a body that brings more than `range`, all of which has been taken, or that says
    /// itself that it is damaged. Looks at what is there: waits neither for more nor for the end.
    fn check_end(&mut self, object: &str, range: &Range<u64>) -> Result<(), SourceError> {
        let wanted = range.end - range.start;
        for _ in 0..EXCESS_LOOKS {
            if !self.chunk.is_empty() {
                let got = wanted.saturating_add(self.chunk.len() as u64);
                return Err(SourceError::long_body(object, range.clone(), got));
            }
            match self.stream.next().now_or_never() {
                Some(Some(Ok(chunk))) => self.chunk = chunk,
                Some(Some(Err(error @ SourceError::Corrupt { .. }))) => return Err(error),
                // Every byte has come. What a connection does afterwards is no matter.
                Some(Some(Err(_)) | None) | None => break,
            }
        }
        Ok(())
    }
}
