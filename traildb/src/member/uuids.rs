//! `uuids`: which trail is whose (FORMAT.md U1-U3).
//!
//! UUIDs are close to uniform, so where one lies is known up to a few standard deviations before a
//! byte was read. Of T uniform keys the rank of one deviates by at most `sqrt(T) / 2`:
//!
//! ```text
//!   first round    |.............[ +-3.5 sqrt(T)/2 around key / 2^128 * T ].....................|
//!   missed left    |..p..p..p..p.[ 4x ].|                       probes and a neighbouring window
//!   last round     |     [ all that is left ]
//! ```
//!
//! A blind bisection would cost a round trip for each bit of T.

use std::ops::Range;

use crate::{
    container::{Member, Members, Plan},
    error::Error,
    item::Uuid,
    storage::Storage,
};

use super::trails::Trails;

const ENTRY: u64 = 16;
/// A bracket of so many entries (64 KiB) is read whole.
const FINAL_ENTRIES: u64 = 4096;
/// Places looked at in one round where interpolation has failed: the bracket shrinks by as much.
const PROBES: u64 = 32;
/// UUIDs looked for in one round. Bounds what is announced at once.
const BATCH: usize = 256;
/// Entries read at a time where all are passed over.
const SCAN_ENTRIES: u64 = (1 << 20) / ENTRY;

/// The member, its size checked.
#[derive(Clone, Debug)]
pub(crate) struct Uuids {
    member: Member,
    trails: u64,
    /// Version 0 (`cookies`): in no order.
    sorted: bool,
}

/// What is known of the place of one UUID.
struct Search {
    wanted: u128,
    /// Where it can be.
    bracket: Range<u64>,
    /// What to read next.
    window: Range<u64>,
}

impl Uuids {
    pub(crate) fn open<S: Storage>(
        members: &Members<S>,
        trails: u64,
        version: u64,
    ) -> Result<Uuids, Error> {
        let member = members.need(if version == 0 { "cookies" } else { "uuids" })?;
        if member.len != trails * ENTRY {
            let reason =
                format!("{} bytes where {trails} trails need {}", member.len, trails * ENTRY);
            return Err(member.damaged(members, 0, reason));
        }
        Ok(Uuids { member, trails, sorted: version > 0 })
    }

    pub(crate) fn member(&self) -> &Member {
        &self.member
    }

    /// Announces the UUID of a trail.
    pub(crate) fn plan(&self, plan: &mut Plan, trail: u64) {
        plan.add(&self.member, trail * ENTRY..(trail + 1) * ENTRY);
    }

    /// The UUID of a trail that exists.
    pub(crate) fn get<S: Storage>(&self, members: &Members<S>, trail: u64) -> Result<Uuid, Error> {
        let mut bytes = [0; 16];
        members.read(&self.member, trail * ENTRY, &mut bytes)?;
        Ok(Uuid(bytes))
    }

    /// The UUIDs of `trails`, all of which exist.
    pub(crate) fn window<S: Storage>(
        &self,
        members: &Members<S>,
        trails: Range<u64>,
    ) -> Result<Vec<Uuid>, Error> {
        let mut bytes = vec![0; ((trails.end - trails.start) * ENTRY) as usize];
        members.read(&self.member, trails.start * ENTRY, &mut bytes)?;
        let keys: Vec<Uuid> =
            bytes.chunks_exact(16).map(|c| Uuid(c.try_into().expect("sixteen bytes"))).collect();
        if self.sorted
            && let Some(k) = keys.windows(2).position(|pair| pair[0] >= pair[1])
        {
            let at = (trails.start + k as u64 + 1) * ENTRY;
            let reason = format!("{} after {} is not ascending", keys[k + 1], keys[k]);
            return Err(self.member.damaged(members, at, reason));
        }
        Ok(keys)
    }

    /// The trails of `wanted`, in that order. Announces what `trails` will say of them as well.
    pub(crate) fn find<S: Storage>(
        &self,
        members: &Members<S>,
        trails: &Trails,
        wanted: &[Uuid],
    ) -> Result<Vec<Option<u64>>, Error> {
        if !self.sorted {
            return self.find_by_scan(members, wanted);
        }
        if !members.is_remote() {
            return wanted.iter().map(|uuid| self.bisect(members, uuid.number())).collect();
        }
        let window = 2 * self.half_window();
        if (wanted.len() as u64).saturating_mul(window) > self.trails {
            return self.find_by_scan(members, wanted);
        }
        let mut found = Vec::with_capacity(wanted.len());
        for batch in wanted.chunks(BATCH) {
            found.extend(self.find_batch(members, trails, batch)?);
        }
        Ok(found)
    }

    /// Half of the first window, in entries: 3.5 standard deviations of a rank in the middle, which
    /// misses one key in two thousand, and some for small databases.
    fn half_window(&self) -> u64 {
        (self.trails as f64).sqrt().mul_add(1.75, 16.0) as u64
    }

    fn find_batch<S: Storage>(
        &self,
        members: &Members<S>,
        trails: &Trails,
        batch: &[Uuid],
    ) -> Result<Vec<Option<u64>>, Error> {
        let mut found = vec![None; batch.len()];
        let start = |uuid: &Uuid| {
            let (wanted, bracket) = (uuid.number(), 0..self.trails);
            let window = around(interpolate(wanted, self.trails), self.half_window(), &bracket);
            Search { wanted, bracket, window }
        };
        let mut open: Vec<(usize, Search)> = batch.iter().map(start).enumerate().collect();
        // Each round narrows every open bracket by a factor of PROBES at least.
        let mut probed = false;
        while !open.is_empty() {
            let mut plan = Plan::default();
            for (_, search) in &open {
                let Range { start, end } = search.window;
                plan.add(&self.member, start * ENTRY..end * ENTRY);
                trails.plan_offsets(&mut plan, search.window.clone());
                if probed {
                    for at in probes(&search.bracket) {
                        plan.add(&self.member, at * ENTRY..(at + 1) * ENTRY);
                    }
                }
            }
            plan.announce(members)?;
            let mut still_open = Vec::new();
            for (slot, mut search) in open {
                if probed {
                    for at in probes(&search.bracket.clone()) {
                        if search.bracket.contains(&at) {
                            let key = self.get(members, at)?.number();
                            search.narrow(at, key);
                        }
                    }
                }
                match self.look(members, &mut search)? {
                    Looked::Found(trail) => found[slot] = Some(trail),
                    Looked::Absent => {}
                    Looked::Missed => still_open.push((slot, search)),
                }
            }
            open = still_open;
            probed = true;
        }
        Ok(found)
    }

    /// Looks for the key in its window, and narrows its bracket if it is not there.
    fn look<S: Storage>(&self, members: &Members<S>, search: &mut Search) -> Result<Looked, Error> {
        let window = search.window.start.max(search.bracket.start)
            ..search.window.end.min(search.bracket.end);
        if search.bracket.is_empty() {
            return Ok(Looked::Absent);
        }
        if window.start < window.end {
            let keys = self.window(members, window.clone())?;
            match keys.binary_search_by_key(&search.wanted, |uuid| uuid.number()) {
                Ok(k) => return Ok(Looked::Found(window.start + k as u64)),
                Err(0) => search.bracket.end = window.start,
                Err(k) if k == keys.len() => search.bracket.start = window.end,
                Err(_) => return Ok(Looked::Absent),
            }
            if search.bracket.is_empty() {
                return Ok(Looked::Absent);
            }
        }
        let left = search.bracket.end - search.bracket.start;
        search.window = if left <= FINAL_ENTRIES {
            search.bracket.clone()
        } else if search.bracket.start >= window.end {
            // Just missed: the neighbourhood on that side, with probes further out.
            let end = search.bracket.start + (8 * self.half_window()).min(left).min(FINAL_ENTRIES);
            search.bracket.start..end
        } else {
            let start = search.bracket.end - (8 * self.half_window()).min(left).min(FINAL_ENTRIES);
            start..search.bracket.end
        };
        Ok(Looked::Missed)
    }

    fn bisect<S: Storage>(&self, members: &Members<S>, wanted: u128) -> Result<Option<u64>, Error> {
        let mut bracket = 0..self.trails;
        while bracket.start < bracket.end {
            let middle = bracket.start + (bracket.end - bracket.start) / 2;
            let key = self.get(members, middle)?.number();
            match key.cmp(&wanted) {
                std::cmp::Ordering::Equal => return Ok(Some(middle)),
                std::cmp::Ordering::Less => bracket.start = middle + 1,
                std::cmp::Ordering::Greater => bracket.end = middle,
            }
        }
        Ok(None)
    }

    /// Passes over all entries once: for version 0, or for so many keys that windows would overlap.
    fn find_by_scan<S: Storage>(
        &self,
        members: &Members<S>,
        wanted: &[Uuid],
    ) -> Result<Vec<Option<u64>>, Error> {
        let mut order: Vec<usize> = (0..wanted.len()).collect();
        order.sort_unstable_by_key(|&k| wanted[k]);
        let mut found = vec![None; wanted.len()];
        let mut missing = wanted.len();
        let mut at = 0;
        while at < self.trails && missing > 0 {
            let end = (at + SCAN_ENTRIES).min(self.trails);
            let mut plan = Plan::default();
            plan.add(&self.member, at * ENTRY..end.saturating_add(4 * SCAN_ENTRIES) * ENTRY);
            plan.announce(members)?;
            for (k, uuid) in self.window(members, at..end)?.iter().enumerate() {
                let first = order.partition_point(|&w| wanted[w] < *uuid);
                for &slot in order[first..].iter().take_while(|&&w| wanted[w] == *uuid) {
                    // The first of equal keys counts; only version 0 can have them.
                    if found[slot].is_none() {
                        found[slot] = Some(at + k as u64);
                        missing -= 1;
                    }
                }
            }
            at = end;
        }
        Ok(found)
    }
}

enum Looked {
    Found(u64),
    Absent,
    Missed,
}

impl Search {
    /// Takes into account that entry `at` has `key`.
    fn narrow(&mut self, at: u64, key: u128) {
        // The entry itself stays in the bracket when it is the one, so that `look` finds it.
        if key < self.wanted {
            self.bracket.start = self.bracket.start.max(at + 1);
        } else if key > self.wanted {
            self.bracket.end = self.bracket.end.min(at);
        } else {
            self.bracket = at..at + 1;
            self.window = at..at + 1;
        }
    }
}

/// Where a key would be among `trails` uniform ones.
fn interpolate(key: u128, trails: u64) -> u64 {
    // The high 64 bits are plenty: the product of two 64-bit numbers fits in 128.
    ((key >> 64) * u128::from(trails) >> 64) as u64
}

fn around(middle: u64, half: u64, within: &Range<u64>) -> Range<u64> {
    middle.saturating_sub(half).max(within.start)..middle.saturating_add(half).min(within.end)
}

/// Evenly spaced places inside a bracket that is too large to be read whole.
fn probes(bracket: &Range<u64>) -> impl Iterator<Item = u64> + use<> {
    let (start, len) = (bracket.start, bracket.end - bracket.start);
    let n = if len > FINAL_ENTRIES { PROBES } else { 0 };
    (1..=n).map(move |k| start + (u128::from(len) * u128::from(k) / u128::from(n + 1)) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpolation_reaches_both_ends() {
        assert_eq!(interpolate(0, 1000), 0);
        assert_eq!(interpolate(u128::MAX, 1000), 999);
        assert_eq!(interpolate(1 << 127, 1000), 500);
        assert_eq!(interpolate(u128::MAX, 1 << 59), (1 << 59) - 1);
    }
}
