//! What a commit promises.

/// How much a transaction asks for. Each level promises what those before it do, and more.
///
/// No level loses a committed record, and at every one of them a commit takes one round trip and
/// waits for no other client. When others see it is another matter: within the checkpoint interval
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
}

impl Level {
    /// All levels, weakest first.
    pub const ALL: [Level; 3] = [Level::Basic, Level::Monotonic, Level::Atomic];

    /// As commands and tables name it.
    pub fn name(self) -> &'static str {
        match self {
            Level::Basic => "basic",
            Level::Monotonic => "monotonic",
            Level::Atomic => "atomic",
        }
    }

    /// Whether sessions keep their guarantees at this level.
    pub(crate) fn is_session(self) -> bool {
        self >= Level::Monotonic
    }
}
