//! The events of many trails in the order of time.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::{Batch, Event, Trail};
use crate::{error::Error, storage::Storage};

/// Merges the events of cursors into one stream in the order of time.
///
/// **Ties.** Of events with the same timestamp, those of the cursor that was given first come first;
/// those of one cursor keep their order. So the stream is what a stable sort by time makes of all
/// events of the first cursor, then of the second, and so on.
///
/// The cursors may be of different databases, and each may have a filter. Where a trail starts,
/// and what it costs in memory, is up to its cursor: a window of at most 64 KiB each, and events that
/// are decoded at once, 8 KiB of them at most unless it passed over trails in order.
#[derive(Debug)]
pub struct MultiCursor<'r, S: Storage> {
    cursors: Vec<Trail<'r, S>>,
    /// The head of each cursor that has one: it is the cursor's current event.
    heads: BinaryHeap<Reverse<(u64, usize)>>,
    /// A cursor whose head was handed out, and is to be replaced before anything else.
    taken: Option<usize>,
    /// Whether the heads are still to be read.
    fresh: bool,
}

/// An event of one of the cursors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MultiEvent<'a> {
    /// The number of the cursor among those given, from 0.
    pub cursor: usize,
    /// The event, whose items are of the database of that cursor.
    pub event: Event<'a>,
}

/// Events of a [`MultiCursor`], copied.
#[derive(Clone, Debug, Default)]
pub struct MultiBatch {
    batch: Batch,
    cursors: Vec<usize>,
}

impl MultiBatch {
    /// A batch of up to `events_max` events.
    ///
    /// # Panics
    /// When `events_max` is 0.
    pub fn new(events_max: usize) -> MultiBatch {
        MultiBatch { batch: Batch::new(events_max), cursors: Vec::new() }
    }

    /// Number of events.
    pub fn len(&self) -> usize {
        self.batch.len()
    }

    /// Whether there are no events.
    pub fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    /// The events, in the order of time.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = MultiEvent<'_>> {
        let events = self.cursors.iter().zip(self.batch.iter());
        events.map(|(&cursor, event)| MultiEvent { cursor, event })
    }
}

impl<'r, S: Storage> MultiCursor<'r, S> {
    /// Merges `cursors`, from where each of them is.
    pub fn new(cursors: Vec<Trail<'r, S>>) -> MultiCursor<'r, S> {
        let heads = BinaryHeap::with_capacity(cursors.len());
        MultiCursor { cursors, heads, taken: None, fresh: true }
    }

    /// The cursors, as they were given.
    pub fn cursors(&self) -> &[Trail<'r, S>] {
        &self.cursors
    }

    /// Moves cursors, with [`Trail::seek`] for example, and starts anew from where they then are.
    ///
    /// # Errors
    /// What `each` returns.
    pub fn reset(
        &mut self,
        each: impl FnMut(&mut Trail<'r, S>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.heads.clear();
        (self.taken, self.fresh) = (None, true);
        self.cursors.iter_mut().try_for_each(each)
    }

    /// The next event, or `None` when all cursors are at their ends. After an error of one cursor
    /// the others go on.
    ///
    /// # Errors
    /// Those of [`Trail::next_event`], of the cursor whose turn it is.
    pub fn next_event(&mut self) -> Result<Option<MultiEvent<'_>>, Error> {
        let head = self.settle()?;
        if let Some(cursor) = head {
            self.heads.pop();
            self.taken = Some(cursor);
        }
        Ok(head.map(|cursor| self.event(cursor)))
    }

    /// The event that [`next_event`](MultiCursor::next_event) will return.
    ///
    /// # Errors
    /// Those of [`Trail::peek_event`].
    pub fn peek(&mut self) -> Result<Option<MultiEvent<'_>>, Error> {
        let head = self.settle()?;
        Ok(head.map(|cursor| self.event(cursor)))
    }

    /// Fills `batch` with the next events, up to its maximum, and returns their number: 0 at the
    /// end. In a run of events of one cursor nothing is compared but times.
    ///
    /// # Errors
    /// Those of a cursor. Events before the error are in the batch, and are not returned again.
    pub fn next_batch(&mut self, batch: &mut MultiBatch) -> Result<usize, Error> {
        batch.batch.clear();
        batch.cursors.clear();
        while !batch.batch.is_full() {
            let Some(cursor) = self.settle()? else { break };
            self.heads.pop();
            // Up to this time (and at it, if the cursor goes first) its events come before others.
            let until = self.heads.peek().map(|&Reverse(next)| next);
            loop {
                batch.batch.push(self.cursors[cursor].current());
                batch.cursors.push(cursor);
                if batch.batch.is_full() {
                    self.taken = Some(cursor);
                    break;
                }
                if !self.cursors[cursor].advance()? {
                    break;
                }
                let head = (self.cursors[cursor].current().time, cursor);
                if until.is_some_and(|until| head > until) {
                    self.heads.push(Reverse(head));
                    break;
                }
            }
        }
        Ok(batch.len())
    }

    /// Reads the heads that are missing. Returns the cursor whose head comes first.
    fn settle(&mut self) -> Result<Option<usize>, Error> {
        if self.fresh {
            // After an error all heads are looked at again: the cursor at fault is at its end, and the
            // others are where they were, since a look takes nothing.
            self.heads.clear();
            for (number, cursor) in self.cursors.iter_mut().enumerate() {
                if let Some(event) = cursor.peek_event()? {
                    self.heads.push(Reverse((event.time, number)));
                }
            }
            self.cursors.iter_mut().for_each(Trail::take_peeked);
            self.fresh = false;
        }
        if let Some(cursor) = self.taken.take()
            && self.cursors[cursor].advance()?
        {
            self.heads.push(Reverse((self.cursors[cursor].current().time, cursor)));
        }
        Ok(self.heads.peek().map(|&Reverse((_, cursor))| cursor))
    }

    fn event(&self, cursor: usize) -> MultiEvent<'_> {
        MultiEvent { cursor, event: self.cursors[cursor].current() }
    }
}
