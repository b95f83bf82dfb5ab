//! Tries again, from the byte reached, for a bounded time.
//!
//! ```text
//!   read(0..100) --> |=== 0..37 ===x            attempt 1: the body breaks at 37
//!                      wait: random in 0..50 ms
//!                    |             == 37..37 x  attempt 2: 503 SlowDown, Retry-After: 1
//!                      wait: 1 s or more
//!                    |             ==== 37..100 ====>   attempt 3
//! ```
//!
//! The waits follow "full jitter" (Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture
//! Blog, 2015): uniform between zero and a bound that doubles, so that clients which failed together
//! do not come back together.

use std::{ops::Range, pin::pin, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{FutureExt, StreamExt, stream};
use pager::{BlockSource, ByteStream, Frame, ObjectStat, ReadAtOnce, SourceError, Version};
use tokio::time::Instant;
use tracing::debug;

use crate::{
    body::{WAIT_MAX, check_shape},
    chance::Chance,
    counters,
    limit::{TURN, Turn},
};

/// An attempt that brought this many bytes was worth it, and does not count against the attempts:
/// a long body over a bad line breaks often and still gets there.
const PROGRESS_BYTES: u64 = 64 << 10;

/// Bytes earn time, at this rate: the deadline is for what stands still, not for what is long.
const RATE_MIN_BYTES_PER_S: u64 = 256 << 10;

/// When to try again, and when to stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts, the first included, before giving up; one that brought 64 KiB does not count.
    /// At least 1. Default: 8.
    pub attempts_max: u32,
    /// The bound of the first wait after a failure. Doubles with every further one. Default: 50 ms.
    pub backoff_min: Duration,
    /// The same after a throttled request whose source did not say how long to wait. Default:
    /// 250 ms.
    pub throttle_min: Duration,
    /// No wait is longer, but for a longer `Retry-After`. Default: 5 s.
    pub backoff_max: Duration,
    /// The longest that one call may take over all its attempts and waits, plus one second for
    /// every 256 KiB that it brought. A wait that would end later is not begun. Default: 45 s,
    /// which lets the cause come out before the pager's own 60 s are over.
    pub deadline: Duration,
    /// The longest silence of one attempt: to its first byte, and between chunks. A `read_into`,
    /// whose progress nobody can see, gets one more second for every 256 KiB. Waiting for a turn at
    /// a [`Gate`](crate::Gate) is no silence; the deadline counts it. Default: 10 s.
    pub stall: Duration,
    /// Seeds the jitter, so that a test can replay it. Default: `None`, a seed of its own.
    pub seed: Option<u64>,
}

impl Default for RetryPolicy {
    fn default() -> RetryPolicy {
        RetryPolicy {
            attempts_max: 8,
            backoff_min: Duration::from_millis(50),
            throttle_min: Duration::from_millis(250),
            backoff_max: Duration::from_secs(5),
            deadline: Duration::from_secs(45),
            stall: Duration::from_secs(10),
            seed: None,
        }
    }
}

impl RetryPolicy {
    /// The longest wait after `failures` failures in a row, the latest of which was `error`.
    fn bound(&self, failures: u32, error: &SourceError) -> Duration {
        let first = match error {
            SourceError::Throttled { .. } => self.throttle_min,
            _ => self.backoff_min,
        };
        let doubled = first.saturating_mul(1 << failures.saturating_sub(1).min(20));
        doubled.min(self.backoff_max)
    }

    /// How long to wait this time.
    fn wait(&self, failures: u32, error: &SourceError, chance: &Chance) -> Duration {
        let wait = chance.up_to(self.bound(failures, error));
        match error {
            // On top of what was asked for, so that those who were told the same do not return
            // together.
            SourceError::Throttled { retry_after: Some(asked), .. } => wait.saturating_add(*asked),
            _ => wait,
        }
    }
}

/// A source that tries again when the one within says that trying again may help: throttled,
/// transient or corrupt. Other errors pass through at once.
///
/// A body that breaks is resumed at the byte reached, in `read` and in `read_into`. Never resumed is
/// a body that turned out to be something else than the range (longer than it): its bytes are not
/// to be trusted.
pub struct Retry<S> {
    source: Arc<S>,
    policy: RetryPolicy,
    chance: Arc<Chance>,
}

impl<S: BlockSource> Retry<S> {
    /// Wraps `source` with the default policy.
    pub fn new(source: S) -> Retry<S> {
        Retry::with(source, RetryPolicy::default())
    }

    /// Wraps `source` with this policy.
    pub fn with(source: S, policy: RetryPolicy) -> Retry<S> {
        let chance = Arc::new(Chance::seeded(policy.seed.unwrap_or_else(Chance::any_seed)));
        Retry { source: Arc::new(source), policy, chance }
    }

    fn effort(&self, what: &'static str) -> Effort {
        Effort::new(what, self.source.name(), self.policy.clone(), self.chance.clone())
    }
}

/// What one call has tried so far, and what it may still try.
pub(crate) struct Effort {
    what: &'static str,
    object: String,
    policy: RetryPolicy,
    chance: Arc<Chance>,
    attempts: u32,
    failures: u32,
    /// Bytes handed on.
    brought: u64,
    brought_at_failure: u64,
    /// Time spent in earlier polls. Time in which nobody asked for the next chunk is not counted.
    spent: Duration,
    since: Instant,
    turn: Turn,
}

impl Effort {
    pub(crate) fn new(
        what: &'static str,
        object: &str,
        policy: RetryPolicy,
        chance: Arc<Chance>,
    ) -> Effort {
        Effort {
            what,
            object: object.to_owned(),
            policy,
            chance,
            attempts: 0,
            failures: 0,
            brought: 0,
            brought_at_failure: 0,
            spent: Duration::ZERO,
            since: Instant::now(),
            turn: Turn::default(),
        }
    }

    /// Begins the next attempt. Returns its number, from 1.
    pub(crate) fn attempt(&mut self) -> u32 {
        self.attempts += 1;
        self.attempts
    }

    fn resume(&mut self) {
        self.since = Instant::now();
    }

    fn pause(&mut self) {
        self.spent += self.since.elapsed();
    }

    fn left(&self) -> Duration {
        let earned =
            Duration::from_millis(self.brought.saturating_mul(1000) / RATE_MIN_BYTES_PER_S);
        let spent = self.spent + self.since.elapsed();
        self.policy.deadline.saturating_add(earned).saturating_sub(spent)
    }

    /// Waits for the next part of a body, no longer than one attempt may be silent or the call may
    /// take.
    async fn wait_for<T>(
        &self,
        range: &Range<u64>,
        work: impl Future<Output = T>,
    ) -> Result<T, SourceError> {
        let allowed = self.policy.stall.min(self.left()).min(WAIT_MAX);
        let answer = tokio::time::timeout(allowed, work).await;
        answer.map_err(|_| self.silent(Some(range), format!("no byte for {allowed:?}")))
    }

    /// The same for an answer, `extra` later than usual. The time in which the request waited for
    /// its turn at a gate counts for the call and not for the attempt: else a queue that is long
    /// would be taken for a server that is silent, and those in it would lose their places.
    pub(crate) async fn wait_for_answer<T>(
        &self,
        range: Option<&Range<u64>>,
        extra: Duration,
        work: impl Future<Output = T>,
    ) -> Result<T, SourceError> {
        let began = Instant::now();
        self.turn.next_attempt();
        let silence = self.policy.stall.saturating_add(extra).min(WAIT_MAX);
        let mut work = pin!(TURN.scope(self.turn.clone(), work));
        let patience = || {
            let waited = self.turn.waited();
            let allowed = silence.saturating_add(waited).saturating_sub(began.elapsed());
            allowed.min(self.left())
        };
        loop {
            if let Ok(answer) = tokio::time::timeout(patience(), work.as_mut()).await {
                return Ok(answer);
            }
            if patience().is_zero() {
                break;
            }
        }
        let waited = self.turn.waited();
        let reason = match self.turn.is_waiting() {
            true => format!("no turn for {waited:?}: other requests to this server are under way"),
            false => format!("no answer for {:?}", began.elapsed().saturating_sub(waited)),
        };
        Err(self.silent(range, reason))
    }

    fn silent(&self, range: Option<&Range<u64>>, reason: String) -> SourceError {
        SourceError::Transient {
            object: self.object.clone(),
            what: self.what,
            range: range.cloned(),
            attempts: self.attempts,
            reason,
            cause: None,
        }
    }

    /// After a failure: sleeps until the next attempt, or gives up.
    pub(crate) async fn recover(&mut self, error: SourceError) -> Result<(), SourceError> {
        if !error.is_retryable() {
            return Err(error);
        }
        let worth_it = self.brought - self.brought_at_failure >= PROGRESS_BYTES;
        self.failures = if worth_it { 1 } else { self.failures + 1 };
        self.brought_at_failure = self.brought;
        if self.failures >= self.policy.attempts_max {
            return Err(self.give_up(error));
        }
        let wait = self.policy.wait(self.failures, &error, &self.chance);
        if wait >= self.left() {
            return Err(self.give_up(error));
        }
        debug!(object = %self.object, attempts = self.attempts, ?wait, %error, "trying again");
        counters::retried(self.what, error.kind());
        // Others may have the turn meanwhile.
        self.turn.lend();
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// The error with the number of all attempts in it.
    fn give_up(&self, error: SourceError) -> SourceError {
        match error {
            SourceError::Transient { object, what, range, reason, cause, .. } => {
                let attempts = self.attempts;
                SourceError::Transient { object, what, range, attempts, reason, cause }
            }
            SourceError::Throttled { object, what, range, retry_after, cause, .. } => {
                let attempts = self.attempts;
                SourceError::Throttled { object, what, range, attempts, retry_after, cause }
            }
            other => other,
        }
    }
}

/// One range, read by as many requests as it takes.
struct Resuming<S> {
    source: Arc<S>,
    version: Version,
    range: Range<u64>,
    /// Everything before this byte was handed on.
    reached: u64,
    body: Option<ByteStream>,
    /// Where the present body started.
    body_from: u64,
    effort: Effort,
    over: bool,
}

impl<S: BlockSource> Resuming<S> {
    fn rest(&self) -> Range<u64> {
        self.reached..self.range.end
    }

    /// Makes sure that there is a body to read from.
    async fn open(&mut self) -> Result<(), SourceError> {
        while self.body.is_none() {
            self.effort.attempt();
            let rest = self.rest();
            let read = self.source.read(&self.version, rest.clone());
            let answer = self.effort.wait_for_answer(Some(&rest), Duration::ZERO, read).await;
            match answer.and_then(|answer| answer) {
                Ok(body) => (self.body, self.body_from) = (Some(body), self.reached),
                Err(error) => self.effort.recover(error).await?,
            }
        }
        Ok(())
    }

    async fn chunk(&mut self) -> Result<Option<Bytes>, SourceError> {
        loop {
            self.open().await?;
            let rest = self.rest();
            let body = self.body.as_mut().expect("`open` returned without an error");
            if rest.is_empty() {
                // Looks once for bytes too many, and does not wait for the end of the body.
                return match body.next().now_or_never() {
                    Some(Some(Ok(more))) if !more.is_empty() => Err(self.long_body(more.len())),
                    _ => Ok(None),
                };
            }
            let next = self.effort.wait_for(&rest, body.next()).await;
            let error = match next {
                Ok(Some(Ok(chunk))) if chunk.len() as u64 > rest.end - rest.start => {
                    return Err(self.long_body(chunk.len()));
                }
                Ok(Some(Ok(chunk))) => {
                    if chunk.is_empty() {
                        // A source that spins on empty chunks must not keep us from the timer.
                        tokio::task::yield_now().await;
                        continue;
                    }
                    self.reached += chunk.len() as u64;
                    self.effort.brought += chunk.len() as u64;
                    return Ok(Some(chunk));
                }
                Ok(None) => self.short_body(),
                Ok(Some(Err(error))) => {
                    if self.is_untrusted(&error) {
                        return Err(error);
                    }
                    error
                }
                Err(silent) => silent,
            };
            // The reader may hold what others wait for who have their turns: no queue for this one.
            self.effort.turn.keep();
            self.body = None;
            self.effort.recover(error).await?;
        }
    }

    fn body_range(&self) -> Range<u64> {
        self.body_from..self.range.end
    }

    fn body_got(&self) -> u64 {
        self.reached - self.body_from
    }

    fn short_body(&self) -> SourceError {
        SourceError::short_body(self.source.name(), self.body_range(), self.body_got())
    }

    fn long_body(&self, more: usize) -> SourceError {
        let got = self.body_got() + more as u64;
        SourceError::long_body(self.source.name(), self.body_range(), got)
    }

    /// Whether the error says that bytes which this body already brought may be wrong.
    fn is_untrusted(&self, error: &SourceError) -> bool {
        self.body_got() > 0 && is_damage(error, &self.short_body())
    }
}

/// Whether `error` is a damaged body that is not just shorter than it should be, as `short` says.
fn is_damage(error: &SourceError, short: &SourceError) -> bool {
    match (error, short) {
        (SourceError::Corrupt { reason, .. }, SourceError::Corrupt { reason: ended, .. }) => {
            reason != ended
        }
        _ => false,
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl<S: BlockSource> BlockSource for Retry<S> {
    fn name(&self) -> &str {
        self.source.name()
    }

    async fn stat(&self) -> Result<ObjectStat, SourceError> {
        let mut effort = self.effort("stat");
        loop {
            effort.attempt();
            let answer = effort.wait_for_answer(None, Duration::ZERO, self.source.stat()).await;
            match answer.and_then(|answer| answer) {
                Ok(stat) => return Ok(stat),
                Err(error) => effort.recover(error).await?,
            }
        }
    }

    async fn read(&self, version: &Version, range: Range<u64>) -> Result<ByteStream, SourceError> {
        check_shape(self.name(), &range)?;
        let mut reading = Resuming {
            source: self.source.clone(),
            version: version.clone(),
            reached: range.start,
            body_from: range.start,
            range,
            body: None,
            effort: self.effort("read"),
            over: false,
        };
        reading.open().await?;
        reading.effort.pause();
        Ok(Box::pin(stream::unfold(reading, |mut reading| async move {
            if reading.over {
                return None;
            }
            reading.effort.resume();
            let item = reading.chunk().await.transpose();
            reading.effort.pause();
            reading.over = !matches!(item, Some(Ok(_)));
            if reading.over {
                // Whatever the body holds, a connection or a turn, goes back now.
                reading.body = None;
                reading.effort.turn.release();
            }
            item.map(|item| (item, reading))
        })))
    }

    async fn read_into(
        &self,
        version: &Version,
        range: Range<u64>,
        mut frame: Frame,
    ) -> Result<Frame, SourceError> {
        check_shape(self.name(), &range)?;
        let mut effort = self.effort("read");
        let before = frame.filled().len();
        let wanted = range.end - range.start;
        loop {
            effort.attempt();
            let reached = frame.filled().len();
            let done = (reached - before) as u64;
            let rest = range.start + done..range.end;
            let extra = Duration::from_secs((wanted - done) / RATE_MIN_BYTES_PER_S);
            let (lent, lender) = frame.lend();
            let read = self.source.read_into(version, rest.clone(), lent);
            let answer = effort.wait_for_answer(Some(&rest), extra, read).await;
            let error = match answer.and_then(|answer| answer) {
                Ok(full) => {
                    let got = full.filled().len().saturating_sub(reached) as u64;
                    if got == wanted - done {
                        return Ok(full);
                    }
                    SourceError::Corrupt {
                        object: self.source.name().to_owned(),
                        range: Some(rest.clone()),
                        reason: format!(
                            "{got} bytes were put into the frame, not {}",
                            wanted - done
                        ),
                    }
                }
                Err(error) => error,
            };
            // A source that still writes to the frame, on a thread that cannot be stopped, keeps
            // it; then there is nothing to fill.
            let Some(back) = lender.recall() else {
                return Err(effort.give_up(error));
            };
            frame = back;
            let held = frame.filled().len();
            if held < reached {
                return Err(SourceError::Permanent {
                    object: self.source.name().to_owned(),
                    reason: "the source took bytes out of a frame that it was to append to".into(),
                    cause: None,
                });
            }
            let got = (held - reached) as u64;
            let short = SourceError::short_body(self.source.name(), rest, got);
            if got > wanted - done || is_damage(&error, &short) {
                frame.truncate(reached);
            }
            effort.brought = (frame.filled().len() - before) as u64;
            if effort.brought == wanted {
                // All is there: what failed came behind the last byte.
                return Ok(frame);
            }
            effort.recover(error).await?;
        }
    }

    fn fills_frames(&self) -> bool {
        self.source.fills_frames()
    }

    fn at_once(&self) -> Option<&dyn ReadAtOnce> {
        // What fails is tried again on the runtime, after a wait.
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transient() -> SourceError {
        SourceError::Transient {
            object: "x".to_owned(),
            what: "read",
            range: None,
            attempts: 1,
            reason: "reset".to_owned(),
            cause: None,
        }
    }

    /// Clients that failed together come back spread over the whole time from zero to the bound.
    #[test]
    fn waits_are_spread_from_zero_to_a_bound_that_doubles() {
        let policy = RetryPolicy::default();
        let throttled = |retry_after| {
            let object = "x".to_owned();
            let (what, range, attempts, cause) = ("read", None, 1, None);
            SourceError::Throttled { object, what, range, attempts, retry_after, cause }
        };
        let ms = Duration::from_millis;
        let cases = [
            (1, transient(), ms(0), ms(50)),
            (2, transient(), ms(0), ms(100)),
            (4, transient(), ms(0), ms(400)),
            (100, transient(), ms(0), ms(5000)),
            (1, throttled(None), ms(0), ms(250)),
            (3, throttled(None), ms(0), ms(1000)),
            // Never earlier than the server asked for, and spread behind that.
            (1, throttled(Some(ms(7000))), ms(7000), ms(250)),
        ];
        for (failures, error, least, bound) in cases {
            let waits = (0..2000).map(|seed| {
                let wait = policy.wait(failures, &error, &Chance::seeded(seed));
                let late = wait.checked_sub(least).unwrap_or_else(|| panic!("{wait:?}"));
                assert!(late <= bound, "{failures} failures, {error}: {wait:?}");
                late.as_secs_f64() / bound.as_secs_f64()
            });
            let waits: Vec<f64> = waits.collect();
            let mean = waits.iter().sum::<f64>() / waits.len() as f64;
            assert!((0.45..0.55).contains(&mean), "{failures} failures, {error}: {mean}");
            for tenth in 0..10 {
                let from = f64::from(tenth) / 10.0;
                let n = waits.iter().filter(|wait| (from..from + 0.1).contains(*wait)).count();
                assert!((100..300).contains(&n), "{failures} failures, {error}: {n} from {from}");
            }
        }
    }
}
