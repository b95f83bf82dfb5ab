//! Who reads on and on: the next extents are fetched before they are asked for.
//!
//! A client of V000 asks again when it has used up what the last answer named, and waits. Where its
//! questions follow each other, the cache goes ahead of it, twice as far each time.

use std::{collections::VecDeque, ops::Range, sync::Arc};

use pager::Version;

use super::{Server, objects::Object};

/// Fetches ahead of readers that run at once, for all clients.
pub(super) const FETCHES_MAX: usize = 8;
/// Members of a database that a client reads side by side.
const STREAMS_MAX: usize = 16;
/// How far to go ahead, in extents.
const EXTENTS_MAX: u64 = 8;
/// A question follows an answer if it starts within so many bytes of its end: clients ask for the
/// page that the last answer held by half.
const SLACK_BYTES: u64 = 8192;

/// The streams of one connection.
#[derive(Debug, Default)]
pub(super) struct Streams {
    latest: VecDeque<Stream>,
}

#[derive(Debug)]
struct Stream {
    /// Where the last answer ended.
    end: u64,
    /// How far ahead the cache is, and how many extents it goes next time.
    fetched: u64,
    extents: u64,
}

impl Streams {
    /// Notes that `answered` was told, and says what to fetch now.
    pub(super) fn next(&mut self, answered: &Range<u64>, extent: u64, len: u64) -> Range<u64> {
        let follows = |stream: &Stream| stream.end.abs_diff(answered.start) < SLACK_BYTES;
        let known = self.latest.iter().position(follows);
        let mut stream = match known.and_then(|at| self.latest.remove(at)) {
            Some(stream) => Stream {
                end: answered.end,
                fetched: stream.fetched.max(answered.end),
                extents: (stream.extents * 2).min(EXTENTS_MAX),
            },
            // Half of one: the first question goes nowhere.
            None => Stream { end: answered.end, fetched: answered.end, extents: 0 },
        };
        let to = answered.end.saturating_add(stream.extents * extent).min(len);
        let fetch = stream.fetched..to.max(stream.fetched);
        stream.fetched = fetch.end;
        stream.extents = stream.extents.max(1);
        self.latest.truncate(STREAMS_MAX - 1);
        self.latest.push_front(stream);
        fetch
    }
}

impl Server {
    /// Fetches `range`, extent by extent, without anybody waiting for it.
    pub(super) fn fetch_ahead(
        self: &Arc<Server>,
        object: &Arc<Object>,
        version: &Version,
        range: Range<u64>,
    ) {
        let mut at = range.start;
        while at < range.end {
            let end = (at - at % self.extent_bytes + self.extent_bytes).min(range.end);
            let Ok(turn) = self.ahead.clone().try_acquire_owned() else { return };
            let (object, version) = (object.clone(), version.clone());
            tokio::spawn(async move {
                // Whoever asks for these bytes is told what is wrong with them.
                let _ = object.prefetch(&version, at..end).await;
                drop(turn);
            });
            at = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_further_ahead_of_who_reads_on() {
        let mut streams = Streams::default();
        let mib = 1 << 20;
        let len = 100 * mib;
        assert_eq!(streams.next(&(0..mib), mib, len), mib..mib, "one question is no stream");
        // Another member in between.
        assert_eq!(streams.next(&(50 * mib..51 * mib), mib, len), 51 * mib..51 * mib);
        assert_eq!(streams.next(&(mib - 100..2 * mib), mib, len), 2 * mib..4 * mib);
        assert_eq!(streams.next(&(2 * mib..3 * mib), mib, len), 4 * mib..7 * mib);
        assert_eq!(streams.next(&(51 * mib..52 * mib), mib, len), 52 * mib..54 * mib);
        assert_eq!(streams.next(&(3 * mib..4 * mib), mib, len), 7 * mib..12 * mib);
        assert_eq!(streams.next(&(4 * mib..5 * mib), mib, len), 12 * mib..13 * mib);
        assert_eq!(streams.next(&(98 * mib..99 * mib), mib, len), 99 * mib..99 * mib);
        assert_eq!(streams.next(&(99 * mib..len), mib, len), len..len, "not beyond the end");
    }
}
