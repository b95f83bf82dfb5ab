//! Events in bulk: columns of a batch that is filled again and again.

use super::Event;
use crate::item::Item;

/// Events of one trail, copied out of a cursor, up to a number that the batch was made for.
///
/// ```text
///   times   t0        t1        t2
///   items   a0 b0 c0  a1 b1 c1  a2 b2 c2      one for each user field, or only what changed
/// ```
///
/// Nothing is allocated once a batch was full.
#[derive(Clone, Debug)]
pub struct Batch {
    pub(super) times: Vec<u64>,
    pub(super) items: Vec<Item>,
    /// Where the items of each event end.
    pub(super) ends: Vec<usize>,
    events_max: usize,
}

impl Default for Batch {
    /// A batch of up to 1024 events: with ten fields they stay in the second cache.
    fn default() -> Batch {
        Batch::new(1024)
    }
}

impl Batch {
    /// A batch of up to `events_max` events.
    ///
    /// # Panics
    /// When `events_max` is 0.
    pub fn new(events_max: usize) -> Batch {
        assert!(events_max > 0, "a batch of no events");
        Batch { times: Vec::new(), items: Vec::new(), ends: Vec::new(), events_max }
    }

    /// The most events that the batch takes.
    pub fn events_max(&self) -> usize {
        self.events_max
    }

    /// Number of events.
    pub fn len(&self) -> usize {
        self.times.len()
    }

    /// Whether there are no events.
    pub fn is_empty(&self) -> bool {
        self.times.is_empty()
    }

    /// The timestamps.
    pub fn times(&self) -> &[u64] {
        &self.times
    }

    /// The items of all events, one event after the other.
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// Event `k`, or `None` if there are not so many.
    pub fn get(&self, k: usize) -> Option<Event<'_>> {
        let end = *self.ends.get(k)?;
        let start = k.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some(Event { time: self.times[k], items: &self.items[start..end] })
    }

    /// The events, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Event<'_>> {
        (0..self.len()).map(|k| self.get(k).expect("an event of the batch"))
    }

    /// Takes all events out.
    pub fn clear(&mut self) {
        self.times.clear();
        self.items.clear();
        self.ends.clear();
    }

    pub(super) fn is_full(&self) -> bool {
        self.times.len() >= self.events_max
    }

    #[inline]
    pub(super) fn push(&mut self, event: Event<'_>) {
        self.times.push(event.time);
        self.items.extend_from_slice(event.items);
        self.ends.push(self.items.len());
    }
}
