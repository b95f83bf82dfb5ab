//! What waits to be requested: demand before guesses, neighbours together.

use std::{collections::VecDeque, ops::Range};

use super::Object;
use crate::sync::Arc;

/// Units of one object that are claimed and not yet requested.
pub(super) struct Job {
    pub(super) object: Arc<Object>,
    pub(super) units: Range<u64>,
    /// A unit to stage instead of mapping it.
    pub(super) marker: Option<u64>,
    /// Whether nobody has asked for any of it.
    pub(super) guess: bool,
}

/// Jobs of one kind, in the order in which they are to be started.
#[derive(Default)]
pub(super) struct Queue(VecDeque<Job>);

/// Requests that a long job is cut into: enough to fill a link of which one connection has a part.
const PIECES: u64 = 8;

/// How many of the latest jobs a new one is compared with, to find its neighbour.
const NEIGHBOURS: usize = 32;

impl Queue {
    pub(super) fn push_front(&mut self, job: Job) {
        self.0.push_front(job);
    }

    /// Takes out the first job of an object that `may` start one.
    pub(super) fn pop(&mut self, may: impl Fn(&Object) -> bool) -> Option<Job> {
        let mut refused = None;
        let at = self.0.iter().position(|job| {
            let id = job.object.id;
            // Neighbours in the queue are mostly of one object: one question answers for them.
            let ok = refused != Some(id) && may(&job.object);
            if !ok {
                refused = Some(id);
            }
            ok
        })?;
        self.0.remove(at)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Appends `job`, cut into pieces that are worth a request each, or joins it to the job before
    /// it in the object.
    pub(super) fn push(&mut self, job: Job) {
        let len = job.units.end - job.units.start;
        let extent_min = job.object.pace.extent_min(job.object.extent_min, job.object.extent_max);
        let least = extent_min.max(job.object.align);
        let mut piece = (len / PIECES).max(least).min(job.object.extent_max);
        // A few units that are left over would be a request of their own, as slow as the others: the
        // pieces before them take them.
        if len > piece && len % piece < piece / 2 {
            let longer = len.div_ceil(len / piece).next_multiple_of(job.object.align);
            piece = if longer <= job.object.extent_max { longer } else { piece };
        }
        for joined in self.0.iter_mut().rev().take(NEIGHBOURS) {
            let together = job.units.end.saturating_sub(joined.units.start);
            if Arc::ptr_eq(&joined.object, &job.object)
                && joined.units.end == job.units.start
                && together <= extent_min.max(piece)
                && (joined.marker.is_none() || job.marker.is_none())
            {
                joined.units.end = job.units.end;
                joined.marker = joined.marker.or(job.marker);
                return;
            }
        }
        let mut start = job.units.start;
        while start < job.units.end {
            let mut end = (start + piece).min(job.units.end);
            let aligned = end - end % job.object.align;
            if end < job.units.end && aligned > start {
                // Both sides of a cut elsewhere would make the source touch the same block.
                end = aligned;
            }
            self.0.push_back(Job {
                object: job.object.clone(),
                units: start..end,
                marker: job.marker.filter(|marker| (start..end).contains(marker)),
                guess: job.guess,
            });
            start = end;
        }
    }

    /// Takes out the job that holds `unit` of the object `id`.
    pub(super) fn take(&mut self, id: u64, unit: u64) -> Option<Job> {
        let at = self.0.iter().position(|job| job.object.id == id && job.units.contains(&unit))?;
        self.0.remove(at)
    }

    /// Takes out the jobs of the object `id`.
    pub(super) fn take_all(&mut self, id: u64) -> Vec<Job> {
        let (gone, kept) = self.0.drain(..).partition(|job| job.object.id == id);
        self.0 = kept;
        let gone: VecDeque<Job> = gone;
        gone.into()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::windows::tests::object, *};
    use crate::budget::Budget;

    /// Of 481 units one was left over. It was a request of its own, and came last.
    #[test]
    fn no_request_is_for_what_is_left_over() {
        let object = object(&Budget::new(4 << 20), 4096);
        let pieces = |len: u64| {
            let mut queue = Queue::default();
            let (object, units) = (object.clone(), 3..3 + len);
            queue.push(Job { object, units, marker: None, guess: true });
            let ends: Vec<u64> = queue.0.iter().map(|job| job.units.end).collect();
            assert!(
                queue
                    .0
                    .iter()
                    .skip(1)
                    .map(|job| job.units.start)
                    .eq(ends[..ends.len() - 1].iter().copied())
            );
            assert_eq!((queue.0[0].units.start, ends.last()), (3, Some(&(3 + len))));
            queue.0.iter().map(|job| job.units.end - job.units.start).collect::<Vec<_>>()
        };
        assert_eq!(pieces(1), [1]);
        assert_eq!(pieces(17), [17]);
        assert_eq!(pieces(31), [16, 15]);
        assert_eq!(pieces(128), [16; 8]);
        assert_eq!(pieces(129), [17, 17, 17, 17, 17, 17, 17, 10]);
        assert_eq!(pieces(481), [61, 61, 61, 61, 61, 61, 61, 54]);
        // Where a request may have no more, there are as many as it takes.
        assert_eq!(pieces(2049), [[256; 8].as_slice(), &[1]].concat());
    }
}
