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
    /// 403 to a get or a list: credentials that not all machines of the service know yet, or a clock that is too
    /// wrong to sign by. Nobody tries that again at once.
    pub denied: f64,
    /// 409 to a conditional put.
    pub conflict: f64,
    /// 409 to a conditional delete.
    pub conflict_delete: f64,
    /// Per message of a receive: it comes although it is hidden, or was deleted before.
    pub redelivered: f64,
    /// Per message: the delete does not stick.
    pub undeleted: f64,
    /// Per message of a standard queue: it was accepted, and nobody can receive it for a while; `late_max` at
    /// most.
    pub delayed: f64,
    /// Per message of a receive that does not wait: it is left out. The paper has seen 0.9.
    pub sampled: f64,
    /// How old a message gets, whatever the queue was told: then it vanishes, applied or not.
    pub expires: Option<Duration>,
    /// Per time that somebody receives the token of a LOCK queue: it is gone. Printed protocols alone have
    /// tokens.
    pub lost_token: f64,
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
        denied: 0.0,
        conflict: 0.0,
        conflict_delete: 0.0,
        redelivered: 0.0,
        undeleted: 0.0,
        delayed: 0.0,
        sampled: 0.0,
        expires: None,
        lost_token: 0.0,
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
        denied: 0.003,
        conflict: 0.01,
        conflict_delete: 0.05,
        redelivered: 0.03,
        undeleted: 0.02,
        delayed: 0.02,
        sampled: 0.5,
        expires: None,
        lost_token: 0.0,
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
        denied: 0.0,
        conflict_delete: 0.0,
        delayed: 0.0,
        clock_jump: 0.0,
        ..Faults::ALL
    };

    /// How likely one is. Of what is no chance of a call: 1 where it can happen, and 0 where it cannot.
    pub fn chance(&self, mishap: Mishap) -> f64 {
        // Each field is here, so that none is forgotten below.
        let Faults {
            crash_before,
            crash_after,
            stall,
            crash_at,
            crash_only_at: _,
            stall_max: _,
            lost_answer,
            lost_request,
            late_effect,
            late_max: _,
            suspended,
            throttled,
            hung,
            too_many,
            internal_error,
            denied,
            conflict,
            conflict_delete,
            redelivered,
            undeleted,
            delayed,
            sampled,
            expires,
            lost_token,
            refused_message,
            poisoned,
            stale_max,
            disk,
            skew_max,
            date_jump,
            clock_jump,
        } = self;
        let can = |can: bool| f64::from(u8::from(can));
        match mishap {
            Mishap::CrashBefore => *crash_before,
            Mishap::CrashAfter => *crash_after,
            Mishap::CrashAt => *crash_at,
            Mishap::Stall => *stall,
            Mishap::Suspended => *suspended,
            Mishap::LostAnswer => *lost_answer,
            Mishap::LostRequest => *lost_request,
            Mishap::LateEffect => *late_effect,
            Mishap::Throttled => *throttled,
            Mishap::Hung => *hung,
            Mishap::TooMany => *too_many,
            Mishap::InternalError => *internal_error,
            Mishap::Denied => *denied,
            Mishap::Conflict => *conflict,
            Mishap::ConflictDelete => *conflict_delete,
            Mishap::Redelivered => *redelivered,
            Mishap::Undeleted => *undeleted,
            Mishap::Delayed => *delayed,
            Mishap::Sampled => *sampled,
            Mishap::Expired => can(expires.is_some()),
            Mishap::LostToken => *lost_token,
            Mishap::RefusedMessage => *refused_message,
            Mishap::Poisoned => *poisoned,
            // Of those who are late, which is up to others.
            Mishap::StaleReceipt => 1.0,
            Mishap::StaleRead => can(stale_max.is_some()),
            Mishap::Disk => *disk,
            Mishap::Skew => can(!skew_max.is_zero()),
            Mishap::DateJump => *date_jump,
            Mishap::ClockJump => *clock_jump,
        }
    }
}

/// One way in which something goes wrong: a field of [`Faults`], but for those that say how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mishap {
    /// `crash_before`.
    CrashBefore,
    /// `crash_after`.
    CrashAfter,
    /// `crash_at`.
    CrashAt,
    /// `stall`.
    Stall,
    /// `suspended`.
    Suspended,
    /// `lost_answer`.
    LostAnswer,
    /// `lost_request`.
    LostRequest,
    /// `late_effect`.
    LateEffect,
    /// `throttled`.
    Throttled,
    /// `hung`.
    Hung,
    /// `too_many`.
    TooMany,
    /// `internal_error`.
    InternalError,
    /// `denied`.
    Denied,
    /// `conflict`.
    Conflict,
    /// `conflict_delete`.
    ConflictDelete,
    /// `redelivered`.
    Redelivered,
    /// `undeleted`.
    Undeleted,
    /// `delayed`.
    Delayed,
    /// `sampled`.
    Sampled,
    /// `expires`: a message that nobody had deleted.
    Expired,
    /// `lost_token`.
    LostToken,
    /// `refused_message`.
    RefusedMessage,
    /// `poisoned`.
    Poisoned,
    /// No field: a message was to be deleted, or hidden, by a receipt that counts no more.
    StaleReceipt,
    /// `stale_max`: an answer was not of the newest version.
    StaleRead,
    /// `disk`.
    Disk,
    /// `skew_max`: a machine's clock is wrong.
    Skew,
    /// `date_jump`.
    DateJump,
    /// `clock_jump`.
    ClockJump,
}

impl Mishap {
    /// All of them, in their order.
    pub const ALL: [Mishap; 29] = [
        Mishap::CrashBefore,
        Mishap::CrashAfter,
        Mishap::CrashAt,
        Mishap::Stall,
        Mishap::Suspended,
        Mishap::LostAnswer,
        Mishap::LostRequest,
        Mishap::LateEffect,
        Mishap::Throttled,
        Mishap::Hung,
        Mishap::TooMany,
        Mishap::InternalError,
        Mishap::Denied,
        Mishap::Conflict,
        Mishap::ConflictDelete,
        Mishap::Redelivered,
        Mishap::Undeleted,
        Mishap::Delayed,
        Mishap::Sampled,
        Mishap::Expired,
        Mishap::LostToken,
        Mishap::RefusedMessage,
        Mishap::Poisoned,
        Mishap::StaleReceipt,
        Mishap::StaleRead,
        Mishap::Disk,
        Mishap::Skew,
        Mishap::DateJump,
        Mishap::ClockJump,
    ];
}

/// How often each was met.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Met([u64; Mishap::ALL.len()]);

impl Met {
    pub(super) fn count(&mut self, mishap: Mishap) {
        self.0[mishap as usize] += 1;
    }

    pub(super) fn of(&self, mishap: Mishap) -> u64 {
        self.0[mishap as usize]
    }

    /// Whether it happens now. What cannot takes nothing of what is random, so that it can be added to a
    /// model without changing schedules.
    pub(super) fn roll(
        &mut self,
        random: &mut fastrand::Rng,
        faults: &Faults,
        mishap: Mishap,
    ) -> bool {
        let p = faults.chance(mishap);
        let happens = p > 0.0 && random.f64() < p;
        self.0[mishap as usize] += u64::from(happens);
        happens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counters go by their place.
    #[test]
    fn all_mishaps_are_in_their_order() {
        for (at, mishap) in Mishap::ALL.into_iter().enumerate() {
            assert_eq!(mishap as usize, at);
        }
    }
}
