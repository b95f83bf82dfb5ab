//! What lies beneath the store: objects, queues, time and chance, all passed in.
//!
//! ```text
//!            protocol code (commit, log, checkpoint, tree)
//!                 |           |          |        |
//!              Objects      Queue      Clock    Chance        <- the traits of this room
//!                 |           |          |        |
//!   real:       S3          SQS       tokio      seeded by the system
//!   embedded:   files or memory       tokio      seeded by the system
//!   model:      seeded faults         virtual    seeded by a number
//! ```
//!
//! The protocols are async functions over these traits and nothing else. A crash is a future that
//! is dropped at an await, a stall is one that is not polled for long: so the same code that runs in
//! production is the code that the simulator cuts to pieces.

pub mod objects; // get, put, delete and list under conditions
pub mod queue; // send, receive, delete
pub mod clock; // time, and waiting for it
pub mod chance; // randomness
pub mod disk; // copies of pages on this machine
pub(crate) mod own_disk; // whether a folder lies on this machine
pub mod ledger; // every call counted, and priced
#[cfg(feature = "encryption")]
pub mod sealed; // objects and messages that only holders of a key can read
pub(crate) mod sealed_frame; // their bytes, for who holds none
pub mod embedded; // the services in a directory or in memory
#[cfg(feature = "aws")]
pub mod aws; // S3 and SQS
#[cfg(feature = "simulation")]
pub mod model; // services and machines in virtual time, and everything that goes wrong

use std::sync::Arc;

pub use crate::cloud::{
    chance::Chance,
    clock::Clock,
    disk::{Disk, DiskSpace},
    ledger::{CallKind, Ledger, Prices, Spending},
    objects::{Delete, ETag, Get, Listing, Objects, Put, PutIf},
    queue::{Message, Queue, QueueSettings, Receipt, Sent, ToSend},
};

/// Everything that a protocol may touch. Cheap to clone.
#[derive(Clone)]
pub struct Cloud {
    /// Where pages, logs and the catalogue lie.
    pub objects: Arc<dyn Objects>,
    /// What carries commits, for the log backends that use queues.
    pub queue: Arc<dyn Queue>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness: page names, write ids, jitter.
    pub chance: Arc<dyn Chance>,
    /// Where copies of pages are kept beside memory, if anywhere.
    pub disk: Option<DiskSpace>,
}

/// Why a call did nothing, as far as is known.
///
/// Variants follow what the caller can do next. Texts name the object or queue and never hold a
/// credential or a signed address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The service asks for less: 503 "slow down", 429, or a quota of SQS. The call had no effect.
    #[error("{what}: the service asks to slow down")]
    Throttled {
        /// The object or queue.
        what: String,
    },
    /// No answer, or one that says nothing about the effect. It may have happened, if it was to change something.
    #[error("{what}: no answer ({cause}); it may or may not have happened")]
    Unknown {
        /// The object or queue.
        what: String,
        /// What the transport said.
        cause: String,
    },
    /// No answer to what changes nothing, a get or a list, or one that says nothing.
    #[error("{what}: no answer ({cause})")]
    Unanswered {
        /// The object or queue.
        what: String,
        /// What the transport or the service said.
        cause: String,
    },
    /// Not allowed. Trying again cannot help.
    #[error("{what}: access denied ({cause})")]
    Denied {
        /// The object or queue.
        what: String,
        /// What the service said.
        cause: String,
    },
    /// The service knows who asks, and does not let him. Trying again cannot help.
    #[error("{what}: {action}: not allowed ({cause})")]
    Forbidden {
        /// The object or queue.
        what: String,
        /// What was asked for: `get`, `put`, `delete`, `list`; of a queue `create`, `send`, `receive`,
        /// `acknowledge`, `depth`.
        action: &'static str,
        /// What the service said.
        cause: String,
    },
    /// Not called: what may be spent is spent ([`Spending`]).
    #[error("{what}: not called, for {cause}")]
    Spent {
        /// The object or queue.
        what: String,
        /// What is spent, and how much more there would be.
        cause: String,
    },
    /// There is no such queue: nothing was ever sent to it.
    #[error("{what}: no such queue")]
    NoQueue {
        /// The queue.
        what: String,
    },
    /// The service will never do this: too large, a bad name, no such bucket.
    #[error("{what}: {cause}")]
    Invalid {
        /// The object or queue.
        what: String,
        /// What the service said.
        cause: String,
    },
}

impl Fault {
    /// Whether the same call can succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Fault::Throttled { .. } | Fault::Unknown { .. } | Fault::Unanswered { .. })
    }
}
