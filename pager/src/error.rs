//! What can go wrong, sorted by what the caller can do about it.

use std::{error::Error as StdError, io, ops::Range, sync::Arc, time::Duration};

use crate::sink::SinkError;

/// The cause beneath a [`SourceError`], shared by everyone who waited for the same bytes.
pub type Cause = Arc<dyn StdError + Send + Sync>;

/// Why bytes could not be had from a source.
///
/// Each variant says what the caller can do next. The texts name the object and, where there is
/// one, the byte range; the cause stays in [`source`](std::error::Error::source) and is not printed
/// twice. Errors are cheap to clone, because many readers can wait for one request.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// There is no such object. Check the address.
    #[error("{object} not found")]
    NotFound {
        /// The source's name.
        object: String,
        /// What the transport said.
        #[source]
        cause: Option<Cause>,
    },

    /// The object is not the one that was opened. Open it again.
    #[error("{object} changed: opened at version {expected}, found {found}; open it again")]
    Changed {
        /// The source's name.
        object: String,
        /// The version that the read named.
        expected: String,
        /// The version found instead, or what is known of it.
        found: String,
    },

    /// The source asks for fewer requests. Try again, not before `retry_after`.
    #[error("{object}: {what}{} was throttled, {attempts} attempt(s); slow down", range_text(.range))]
    Throttled {
        /// The source's name.
        object: String,
        /// What was being done: `stat`, `read`.
        what: &'static str,
        /// The bytes asked for.
        range: Option<Range<u64>>,
        /// How often it was tried.
        attempts: u32,
        /// How long the source asked to wait, if it said.
        retry_after: Option<Duration>,
        /// What the transport said.
        #[source]
        cause: Option<Cause>,
    },

    /// The credentials do not allow it. Change them, or the object's policy.
    #[error("{object}: access denied: {reason}")]
    Denied {
        /// The source's name.
        object: String,
        /// What was refused, without secrets.
        reason: String,
        /// What the transport said.
        #[source]
        cause: Option<Cause>,
    },

    /// The transport failed: a reset, a timeout, a 5xx. The same request may succeed later.
    #[error("{object}: {what}{} failed after {attempts} attempt(s): {reason}", range_text(.range))]
    Transient {
        /// The source's name.
        object: String,
        /// What was being done: `stat`, `read`.
        what: &'static str,
        /// The bytes asked for.
        range: Option<Range<u64>>,
        /// How often it was tried.
        attempts: u32,
        /// What went wrong, in a few words.
        reason: String,
        /// What the transport said.
        #[source]
        cause: Option<Cause>,
    },

    /// The body is not the bytes that were asked for: too short, too long, or of another place.
    /// The same request may succeed later.
    #[error("{object}: damaged body for{}: {reason}", range_text(.range))]
    Corrupt {
        /// The source's name.
        object: String,
        /// The bytes asked for.
        range: Option<Range<u64>>,
        /// What was wrong with the answer.
        reason: String,
    },

    /// It cannot work, however often it is tried: a malformed address, a server without ranges.
    #[error("{object}: {reason}")]
    Permanent {
        /// The source's name.
        object: String,
        /// What is wrong and what to do about it.
        reason: String,
        /// What the transport said.
        #[source]
        cause: Option<Cause>,
    },
}

fn range_text(range: &Option<Range<u64>>) -> String {
    match range {
        Some(range) => format!(" bytes {}..{}", range.start, range.end),
        None => String::new(),
    }
}

impl SourceError {
    /// Whether the same request may succeed later: throttled, transient or corrupt.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            SourceError::Throttled { .. }
                | SourceError::Transient { .. }
                | SourceError::Corrupt { .. }
        )
    }

    /// The name of the object that the error is about.
    pub fn object(&self) -> &str {
        match self {
            SourceError::NotFound { object, .. }
            | SourceError::Changed { object, .. }
            | SourceError::Throttled { object, .. }
            | SourceError::Denied { object, .. }
            | SourceError::Transient { object, .. }
            | SourceError::Corrupt { object, .. }
            | SourceError::Permanent { object, .. } => object,
        }
    }

    /// One short word for counters: `not_found`, `changed`, `throttled` and so on.
    pub fn kind(&self) -> &'static str {
        match self {
            SourceError::NotFound { .. } => "not_found",
            SourceError::Changed { .. } => "changed",
            SourceError::Throttled { .. } => "throttled",
            SourceError::Denied { .. } => "denied",
            SourceError::Transient { .. } => "transient",
            SourceError::Corrupt { .. } => "corrupt",
            SourceError::Permanent { .. } => "permanent",
        }
    }

    /// A body that ended after `got` bytes.
    pub fn short_body(object: &str, range: Range<u64>, got: u64) -> SourceError {
        let wanted = range.end.saturating_sub(range.start);
        SourceError::Corrupt {
            object: object.to_owned(),
            range: Some(range),
            reason: format!("the body ended after {got} of {wanted} bytes"),
        }
    }

    /// A body that went on to at least `got` bytes.
    pub fn long_body(object: &str, range: Range<u64>, got: u64) -> SourceError {
        let wanted = range.end.saturating_sub(range.start);
        SourceError::Corrupt {
            object: object.to_owned(),
            range: Some(range),
            reason: format!("the body has at least {got} bytes where {wanted} were asked for"),
        }
    }

    /// A range that is empty, reversed or past the end of the object: the caller's mistake.
    pub fn bad_range(object: &str, range: Range<u64>, len: u64) -> SourceError {
        SourceError::Permanent {
            object: object.to_owned(),
            reason: format!(
                "bytes {}..{} are not a range inside the object, which has {len} bytes",
                range.start, range.end
            ),
            cause: None,
        }
    }

    /// A failed attempt to read, with its cause.
    pub fn transient_read(
        object: &str,
        range: Range<u64>,
        reason: impl Into<String>,
        cause: Option<Cause>,
    ) -> SourceError {
        SourceError::Transient {
            object: object.to_owned(),
            what: "read",
            range: Some(range),
            attempts: 1,
            reason: reason.into(),
            cause,
        }
    }
}

/// A setting, or a set of settings, that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The unit of residency is no power of two between 4 KiB and 2 MiB.
    #[error("unit of {0} bytes: use a power of two from 4096 to 2097152")]
    UnitBytes(u64),
    /// The budget does not hold enough units to make progress.
    #[error(
        "a budget of {budget} bytes is too small for units of {unit} bytes: {units_min} units need \
         {needed} bytes with their page tables; raise the budget or lower the unit"
    )]
    Budget {
        /// The budget asked for, in bytes.
        budget: u64,
        /// The unit asked for, in bytes.
        unit: u64,
        /// The least number of units of a plan.
        units_min: u64,
        /// The bytes that these take.
        needed: u64,
    },
    /// What the budget holds of an object takes more mappings than a process may have, where each unit is
    /// one: see [`Builder::signal_faults`](crate::Builder::signal_faults).
    #[error(
        "a budget of {budget} bytes has room for {units} units of {unit} bytes, and where SIGSEGV tells of \
         faults {most} can be in place: use larger units, lower the budget, or raise vm.max_map_count"
    )]
    Mappings {
        /// The budget asked for, in bytes.
        budget: u64,
        /// The unit asked for, in bytes.
        unit: u64,
        /// The units of the object that the budget has room for.
        units: u64,
        /// The most units that can be in place.
        most: u64,
    },
    /// Another number is out of its range.
    #[error("{name} = {value}: use {allowed}")]
    OutOfRange {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: u64,
        /// What it may be.
        allowed: &'static str,
    },
}

/// What an operation on a pager or a region can return.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The source could not give the bytes.
    #[error(transparent)]
    Source(#[from] SourceError),

    /// Settings that cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),

    /// A range that does not lie inside the object.
    #[error("{object}: bytes {}..{} lie outside the object, which has {len} bytes", range.start, range.end)]
    OutOfBounds {
        /// The source's name.
        object: String,
        /// The range asked for.
        range: Range<u64>,
        /// The object's length in bytes.
        len: u64,
    },

    /// Pins may hold half of the budget, and this load would exceed that. Drop guards, load less at
    /// a time, or raise the budget.
    #[error(
        "{object}: {wanted} more bytes cannot be pinned: {pinned} are, of at most {limit}; \
         drop guards, load less at a time or raise the budget"
    )]
    PinLimit {
        /// The source's name.
        object: String,
        /// Bytes that this load would have pinned, at the unit where it failed.
        wanted: u64,
        /// Bytes pinned at that moment.
        pinned: u64,
        /// The most that may be pinned.
        limit: u64,
    },

    /// A guard has some of these bytes, and only one may have them where one writes. Drop it first.
    #[error(
        "{object}: bytes {}..{} cannot be lent: a guard has bytes {}..{}; drop it first",
        range.start, range.end, by.start, by.end
    )]
    Lent {
        /// The source's name.
        object: String,
        /// The range asked for; for a flush, all of the object.
        range: Range<u64>,
        /// The range that a guard has.
        by: Range<u64>,
    },

    /// A quarter of the budget may be dirty, and this write would exceed that. Flush, or raise the
    /// budget.
    #[error(
        "{object}: bytes {}..{} cannot be written: {dirty} bytes are dirty, of at most {limit}; \
         flush or raise the budget",
        range.start, range.end
    )]
    DirtyLimit {
        /// The source's name.
        object: String,
        /// The range that was to be written.
        range: Range<u64>,
        /// Bytes of dirty units at that moment, of all regions under the budget.
        dirty: u64,
        /// The most that may be dirty.
        limit: u64,
    },

    /// The object cannot be written through a region, and why.
    #[error("{object} cannot be written: {reason}")]
    NotWritable {
        /// The source's name.
        object: String,
        /// Why, and what to do about it.
        reason: String,
    },

    /// What is dirty could not be written back. It is still dirty.
    #[error(transparent)]
    Sink(#[from] SinkError),

    /// The pager's deadline is over and its source has not answered. It may have blocked the threads
    /// that it is polled on.
    #[error(
        "{object}: {} did not come within the pager's deadline of {deadline:?}",
        awaited(.range)
    )]
    Deadline {
        /// The source's name.
        object: String,
        /// The range asked for. Empty where the object was being opened.
        range: Range<u64>,
        /// The deadline of the plan.
        deadline: Duration,
    },

    /// A bare slice cannot be had here, and why. `load` and `read_at` work all the same.
    #[error("{object} cannot be mapped: {reason}; load() and read_at() work all the same")]
    NotMappable {
        /// The source's name.
        object: String,
        /// Why, and what to do about it.
        reason: String,
    },

    /// The region or its pager is closed.
    #[error("{object}: the region is closed")]
    Closed {
        /// The source's name.
        object: String,
    },

    /// The operating system refused something that the pager needs.
    #[error("{what}: {cause}")]
    System {
        /// What was being done.
        what: &'static str,
        /// What the system said.
        cause: Arc<io::Error>,
    },
}

/// What a source was asked for: the bytes of `range`, or, where that is empty, to open its object.
fn awaited(range: &Range<u64>) -> String {
    match range.is_empty() {
        true => "its length and version".to_owned(),
        false => format!("bytes {}..{}", range.start, range.end),
    }
}

impl Error {
    pub(crate) fn system(what: &'static str, cause: io::Error) -> Error {
        Error::System { what, cause: Arc::new(cause) }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        let kind = match &error {
            Error::Source(SourceError::NotFound { .. }) => io::ErrorKind::NotFound,
            Error::Source(SourceError::Denied { .. })
            | Error::Sink(SinkError::Failed(SourceError::Denied { .. })) => {
                io::ErrorKind::PermissionDenied
            }
            Error::Deadline { .. } => io::ErrorKind::TimedOut,
            Error::OutOfBounds { .. } | Error::Config(_) => io::ErrorKind::InvalidInput,
            Error::System { cause, .. } => cause.kind(),
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}
