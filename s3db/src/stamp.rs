//! The order of all writes of all clients.

use std::fmt;

/// When a write happened, for the purpose of deciding which of two writes stays.
///
/// A record takes a log record only if that one's stamp is greater than the stamp it carries. With
/// that rule applying a log is idempotent and its order does not matter: a duplicate changes
/// nothing, and a late record does not undo a newer one.
///
/// No two writes have equal stamps: the clock decides, then the client, then its own count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp {
    /// A hybrid logical clock: microseconds since 1970, pushed past every stamp the client has
    /// seen, so that it only grows.
    pub clock: u64,
    /// The client that wrote.
    pub client: u64,
    /// The client's count of its writes.
    pub sequence: u64,
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:x}.{}", self.clock, self.client, self.sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_decides_then_the_client_then_the_count() {
        let stamp = |clock, client, sequence| Stamp { clock, client, sequence };
        let mut stamps = [stamp(2, 0, 0), stamp(1, 9, 9), stamp(1, 2, 1), stamp(1, 1, 5)];
        stamps.sort();
        assert_eq!(stamps.map(|stamp| stamp.to_string()), ["1.1.5", "1.2.1", "1.9.9", "2.0.0"]);
    }
}
