//! What a commit promises.

use crate::catalog::Isolation;

/// How much a transaction asks for. Each level promises what those before it do, and more.
///
/// No level loses a committed record. Up to the atomic one a commit takes one round trip and
/// waits for no other client; the higher ones take turns at one object. When others see it is another matter: within the checkpoint interval
/// and the TTL of their caches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Level {
    /// Every record counts once and for ever. After a crash in the middle of a commit a part of
    /// the transaction may.
    Basic,
    /// And a session never sees an older state after a newer one, always sees its own writes, and
    /// what it writes counts after what it read.
    Monotonic,
    /// And all of a transaction counts or none. Others may see a part in passing, while its
    /// records are on their way to different pages.
    #[default]
    Atomic,
    /// In collections that were created for it ([`Isolation`]), which take no lower level: all that a
    /// transaction reads is of one moment, others see all of it or nothing, and of two that overlap and
    /// write the same record one is aborted.
    Snapshot,
    /// The same, and all are as if they had run one after the other.
    Serializable,
}

impl Level {
    /// All levels, weakest first.
    pub const ALL: [Level; 5] =
        [Level::Basic, Level::Monotonic, Level::Atomic, Level::Snapshot, Level::Serializable];

    /// Those whose commits go into the log.
    pub const LOGGED: [Level; 3] = [Level::Basic, Level::Monotonic, Level::Atomic];

    /// As commands and tables name it.
    pub fn name(self) -> &'static str {
        match self {
            Level::Basic => "basic",
            Level::Monotonic => "monotonic",
            Level::Atomic => "atomic",
            Level::Snapshot => "snapshot",
            Level::Serializable => "serializable",
        }
    }

    /// What collections must have been created for; `None` for levels whose commits go into the log.
    pub fn isolation(self) -> Option<Isolation> {
        match self {
            Level::Snapshot => Some(Isolation::Snapshot),
            Level::Serializable => Some(Isolation::Serializable),
            _ => None,
        }
    }

    /// Whether sessions keep their guarantees at this level.
    pub(crate) fn is_session(self) -> bool {
        self >= Level::Monotonic
    }
}
