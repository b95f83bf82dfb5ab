//! What goes wrong, and how often. All of section 17 of the design.

use std::time::Duration;

use crate::FailPoint;

/// How far ahead a wrong date of an answer is at most: as far as anything here is old.
pub const DATE_JUMP_MAX: Duration = Duration::from_secs(60 * 24 * 3600);

/// Probabilities are per call, unless said otherwise.
#[derive(Clone, Debug, PartialEq)]
pub struct Faults {
    /// The process crashes before the call has an effect.
    pub crash_before: f64,
    /// The process crashes after the call has had its effect.
    pub crash_after: f64,
    /// The process stalls before a call that changes something: between what it checked and what it
    /// does. This is where the printed protocol loses data, so schedules are biased to it.
    pub stall: f64,
    /// The process crashes at a fail point: per time that it comes to one.
    pub crash_at: f64,
    /// Only at this one.
    pub crash_only_at: Option<FailPoint>,
    /// The longest stall.
    pub stall_max: Duration,
    /// The call has its effect and the answer is lost.
    pub lost_answer: f64,
    /// The call has no effect and the answer is lost.
    pub lost_request: f64,
    /// The answer is lost, and the effect comes later.
    pub late_effect: f64,
    /// How much later at most.
    pub late_max: Duration,
    /// Of stalls: the machine sleeps, and its monotonic clock stands still meanwhile.
    pub suspended: f64,
    /// 503: "slow down". No effect.
    pub throttled: f64,
    /// Nothing happens, no answer comes, and whoever asked waits for ever: which no client of a service may do.
    /// Only to see that it would be noticed.
    pub hung: f64,
    /// 429: too many requests. No effect.
    pub too_many: f64,
    /// 500, at once. As often as not it had its effect nevertheless.
    pub internal_error: f64,
    /// 409 to a conditional put.
    pub conflict: f64,
    /// Per message of a receive: it comes although it is hidden, or was deleted before.
    pub redelivered: f64,
    /// Per message: the delete does not stick.
    pub undeleted: f64,
    /// A receive returns only a part of what there is.
    pub sampled: f64,
    /// Per message of a batch: it alone fails.
    pub refused_message: f64,
    /// Per message: bytes that are none of ours arrive beside it.
    pub poisoned: f64,
    /// Reads and lists may be as old as this: the object store of 2007.
    pub stale_max: Option<Duration>,
    /// Per file that is read or written: the disk fails, or keeps or tells something else: cut off, damaged,
    /// an older one, another file's.
    pub disk: f64,
    /// How wrong clocks of machines are at most.
    pub skew_max: Duration,
    /// Per get: its answer tells a time that is ahead of the object store's, by an hour to [`DATE_JUMP_MAX`].
    pub date_jump: f64,
    /// The machine's clock is set, and is wrong by something else from then on: forth or back, by up to
    /// twice `skew_max`.
    pub clock_jump: f64,
}

impl Faults {
    /// Services that answer, machines that run.
    pub const NONE: Faults = Faults {
        crash_before: 0.0,
        crash_after: 0.0,
        stall: 0.0,
        crash_at: 0.0,
        crash_only_at: None,
        stall_max: Duration::ZERO,
        lost_answer: 0.0,
        lost_request: 0.0,
        late_effect: 0.0,
        late_max: Duration::ZERO,
        suspended: 0.0,
        throttled: 0.0,
        hung: 0.0,
        too_many: 0.0,
        internal_error: 0.0,
        conflict: 0.0,
        redelivered: 0.0,
        undeleted: 0.0,
        sampled: 0.0,
        refused_message: 0.0,
        poisoned: 0.0,
        stale_max: None,
        disk: 0.0,
        skew_max: Duration::ZERO,
        date_jump: 0.0,
        clock_jump: 0.0,
    };

    /// Everything goes wrong now and then.
    pub const ALL: Faults = Faults {
        crash_before: 0.003,
        crash_after: 0.003,
        stall: 0.02,
        crash_at: 0.003,
        crash_only_at: None,
        stall_max: Duration::from_secs(60),
        suspended: 0.2,
        lost_answer: 0.01,
        lost_request: 0.01,
        late_effect: 0.01,
        late_max: Duration::from_secs(20),
        throttled: 0.007,
        hung: 0.0,
        too_many: 0.003,
        internal_error: 0.006,
        conflict: 0.01,
        redelivered: 0.03,
        undeleted: 0.02,
        sampled: 0.5,
        refused_message: 0.01,
        poisoned: 0.01,
        stale_max: None,
        disk: 0.1,
        skew_max: Duration::from_secs(30),
        date_jump: 0.0,
        clock_jump: 0.004,
    };

    /// The same without what was added to it later: schedules that were found with these stay what they
    /// are.
    pub const BEFORE: Faults = Faults {
        crash_at: 0.0,
        suspended: 0.0,
        throttled: 0.01,
        too_many: 0.0,
        internal_error: 0.0,
        clock_jump: 0.0,
        ..Faults::ALL
    };
}
