//! Events by trail, trails by UUID, and within a trail by time.

use std::{collections::HashMap, ops::Range};

use super::Events;
use crate::{
    error::{Error, InputError},
    item::{DELTA_MAX, Uuid},
};

/// Events in the order of the file.
#[derive(Debug)]
pub(crate) struct Grouped {
    uuids: Vec<Uuid>,
    /// Where each trail starts, and the number of events at the end.
    starts: Vec<u32>,
    times: Vec<u64>,
    values: Vec<u32>,
    fields: usize,
    pub(super) time_min: u64,
    pub(super) time_max: u64,
    /// The greatest difference to the event before, first events counted from `time_min`.
    pub(super) delta_max: u64,
}

impl Grouped {
    /// Sorts, stably, and checks that every difference fits.
    pub(super) fn new(
        events: &Events,
        trails: HashMap<Uuid, u32>,
        fields: usize,
    ) -> Result<Grouped, Error> {
        let mut by_uuid: Vec<(Uuid, u32)> = trails.into_iter().collect();
        by_uuid.sort_unstable();
        let mut rank = vec![0u32; by_uuid.len()];
        for (at, &(_, trail)) in by_uuid.iter().enumerate() {
            rank[trail as usize] = at as u32;
        }
        // A counting sort by trail keeps the order of addition within each.
        let mut starts = vec![0u32; by_uuid.len() + 1];
        for &trail in &events.trail {
            starts[rank[trail as usize] as usize + 1] += 1;
        }
        for at in 1..starts.len() {
            starts[at] += starts[at - 1];
        }
        let mut next = starts.clone();
        let mut order = vec![0u32; events.time.len()];
        for (event, &trail) in events.trail.iter().enumerate() {
            let place = &mut next[rank[trail as usize] as usize];
            order[*place as usize] = event as u32;
            *place += 1;
        }
        for trail in starts.windows(2) {
            let trail = &mut order[trail[0] as usize..trail[1] as usize];
            trail.sort_by_key(|&event| events.time[event as usize]);
        }
        let times = order.iter().map(|&event| events.time[event as usize]).collect();
        let mut values = Vec::with_capacity(events.values.len());
        for &event in &order {
            let at = event as usize * fields;
            values.extend_from_slice(&events.values[at..at + fields]);
        }
        let time_min = events.time.iter().copied().min().unwrap_or(u64::MAX);
        let time_max = events.time.iter().copied().max().unwrap_or(0);
        let uuids = by_uuid.into_iter().map(|(uuid, _)| uuid).collect();
        let mut grouped =
            Grouped { uuids, starts, times, values, fields, time_min, time_max, delta_max: 0 };
        grouped.check()?;
        Ok(grouped)
    }

    fn check(&mut self) -> Result<(), Error> {
        if self.events() == 0 {
            return Ok(());
        }
        if self.time_min > DELTA_MAX {
            return Err(InputError::FirstTime(self.time_min).into());
        }
        let mut greatest = 0;
        for trail in 0..self.uuids.len() {
            let mut before = self.time_min;
            for event in self.trail(trail) {
                let delta = self.times[event] - before;
                if delta > DELTA_MAX {
                    return Err(InputError::Delta { uuid: self.uuids[trail], delta }.into());
                }
                greatest = greatest.max(delta);
                before = self.times[event];
            }
        }
        self.delta_max = greatest;
        Ok(())
    }

    pub(super) fn trails(&self) -> u64 {
        self.uuids.len() as u64
    }

    pub(super) fn events(&self) -> u64 {
        self.times.len() as u64
    }

    pub(super) fn into_uuids(self) -> Vec<Uuid> {
        self.uuids
    }

    /// The events of the n-th trail.
    fn trail(&self, n: usize) -> Range<usize> {
        self.starts[n] as usize..self.starts[n + 1] as usize
    }

    /// Calls `event` with the delta of each event of the n-th trail and the items (field from 1,
    /// value number) that differ from the event before, NULL before the first.
    pub(super) fn edges(&self, n: usize, mut event: impl FnMut(u64, &[(u16, u32)])) {
        let mut before = self.time_min;
        let mut state = vec![0u32; self.fields];
        let mut changed = Vec::with_capacity(self.fields);
        for at in self.trail(n) {
            let delta = self.times[at] - before;
            before = self.times[at];
            changed.clear();
            let values = &self.values[at * self.fields..(at + 1) * self.fields];
            for (field, (&now, last)) in values.iter().zip(&mut state).enumerate() {
                if now != *last {
                    changed.push((field as u16 + 1, now));
                    *last = now;
                }
            }
            event(delta, &changed);
        }
    }
}
