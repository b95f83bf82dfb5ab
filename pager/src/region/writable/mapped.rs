//! A part of the object as one slice that is written without asking.
//!
//! ```text
//!   map_mut(range): lent for writing; its units kept, as if dirty; pages that are there protected
//!        |
//!        |   a missing page is fetched when it is touched, or ahead of that, and comes protected
//!        v
//!   dropped: the pages that were written are dirty, and their units kept; the other units are let go
//! ```
//!
//! All units of the range are kept from the start: whatever is written has room, nothing is evicted between
//! a write and the look at what was written, and no write has to fail. That is why a map is of a range,
//! and a quarter of the budget is the most that can be mapped.

use std::{
    collections::BTreeSet,
    fmt,
    ops::{Deref, DerefMut, Range},
};

use super::{
    RegionMut, Shared, State, WAIT,
    lends::{Access, Span, Taken},
};
use crate::{block_on::block_on, cache::Kept, error::Error, sync::lock, units::Geometry};

/// What is mapped for writing. Outlives a map that is leaked.
#[derive(Debug)]
pub(super) struct Window {
    range: Range<u64>,
    lend: u64,
    /// Units of the range that are kept, and are not dirty.
    kept: BTreeSet<u64>,
}

impl Window {
    /// Takes over what keeps `unit`, if that is mapped.
    pub(super) fn takes(&mut self, geometry: Geometry, unit: u64) -> bool {
        geometry.units_of(&self.range).contains(&unit) && self.kept.insert(unit)
    }
}

/// A range of the object as memory to write: touching a missing unit faults, and the fault fetches it.
///
/// The pages that were written are dirty when it is dropped (see
/// [`WriteTracking`](crate::WriteTracking)); of one that is leaked, when the region is used next.
pub struct MappedMut<'a> {
    region: &'a mut RegionMut,
    range: Range<u64>,
}

impl RegionMut {
    /// The bytes `range` of the object as a slice to write, whose missing units are fetched when they are
    /// touched, or before that, as the pager's prefetch policy has it. Its units count as dirty while it lives,
    /// and as pinned: a quarter of the budget at most. Where it is not seen which pages are written
    /// ([`WriteTracking::Units`](crate::WriteTracking::Units)), none is fetched before it is touched.
    /// Waits for a flush of some of these bytes.
    ///
    /// A touch of bytes that cannot be had raises SIGBUS, as of [`Region::map`](crate::Region::map), and
    /// in user mode only a system call on a missing page fails.
    ///
    /// # Errors
    /// [`Error::NotMappable`] where no fault mechanism exists; [`Error::DirtyLimit`] and
    /// [`Error::PinLimit`] when the range is too much beside what is dirty and pinned already: flush, or
    /// map less; [`Error::Lent`] where a leaked guard has some of these bytes; [`Error::OutOfBounds`];
    /// [`Error::Closed`].
    pub fn map_mut(&mut self, range: Range<u64>) -> Result<MappedMut<'_>, Error> {
        self.0.close_window();
        self.0.region.check(&range)?;
        if let Some(reason) = &self.0.region.0.unmappable {
            let (object, reason) = (self.name().to_owned(), reason.clone());
            return Err(Error::NotMappable { object, reason });
        }
        if !range.is_empty() {
            self.0.open_window(&range)?;
        }
        Ok(MappedMut { region: self, range })
    }
}

impl Shared {
    fn open_window(&self, range: &Range<u64>) -> Result<(), Error> {
        loop {
            let released = self.released.notified();
            let lent = lock(&self.state).lends.lend(range.clone(), Access::Write, Span::Guard);
            match lent {
                Ok(lend) => {
                    let window = Window { range: range.clone(), lend, kept: BTreeSet::new() };
                    lock(&self.state).window = Some(window);
                    break;
                }
                Err(Taken::ForNow) => {
                    let _ = block_on(released, WAIT);
                }
                Err(Taken::ByGuard(by)) => return Err(self.lent(range.clone(), by)),
            }
        }
        let opened = self.keep_units(range).and_then(|()| {
            // One that was chosen as a victim before it was kept goes still, and what is written to it with
            // it. It leaves once: none leaves that is kept.
            for unit in self.ledger().geometry().units_of(range) {
                self.wait_while(|| self.ledger().is_leaving(unit));
            }
            self.watch_pages(range)
        });
        if opened.is_err() {
            self.end_window(false);
        }
        opened
    }

    fn keep_units(&self, range: &Range<u64>) -> Result<(), Error> {
        let ledger = self.ledger();
        // What nobody touched would count as written where only units are known.
        let ahead = self.watch.as_ref().is_some_and(|watch| watch.tells_pages());
        for unit in ledger.geometry().units_of(range) {
            let mut state = lock(&self.state);
            let State { dirty, window, .. } = &mut *state;
            let kept = &mut window.as_mut().expect("opened above").kept;
            // A flush may have cleaned it meanwhile, and handed it over.
            if dirty.has(unit) || kept.contains(&unit) {
                continue;
            }
            match ledger.keep_untouched(unit, ahead) {
                Kept::Yes => {
                    kept.insert(unit);
                }
                Kept::NoRoom => return Err(self.no_room(range.clone())),
                Kept::PinRefused => {
                    drop(state);
                    let budget = ledger.budget();
                    return Err(Error::PinLimit {
                        object: self.region.name().to_owned(),
                        wanted: ledger.unit_cost(),
                        pinned: budget.pinned(),
                        limit: budget.pin_limit(),
                    });
                }
            }
        }
        Ok(())
    }

    fn watch_pages(&self, range: &Range<u64>) -> Result<(), Error> {
        let (ledger, Some(watch)) = (self.ledger(), &self.watch) else { return Ok(()) };
        let units = ledger.geometry().units_of(range);
        let unit = ledger.geometry().unit_bytes();
        watch.start(&((units.start * unit) as usize..(units.end * unit) as usize));
        ledger
            .in_each_span(units, |mapping, bytes| watch.protect(mapping, bytes))
            .map_err(|error| Error::system("pages cannot be protected from writing", error))
    }

    /// Has what was written through a map dirty, if there was one. Called when nobody has it any more.
    pub(super) fn close_window(&self) {
        self.end_window(true);
    }

    /// The same; nobody has written where nobody `had` it.
    pub(super) fn end_window(&self, had: bool) {
        if lock(&self.state).window.is_none() {
            return;
        }
        // Of a leaked map any thread may be the one. Until its end a flush finds the window, and hands units over.
        let _one_at_a_time = lock(&self.ending);
        let Some(mapped) = lock(&self.state).window.as_ref().map(|window| window.range.clone())
        else {
            return;
        };
        let (ledger, geometry) = (self.ledger(), self.ledger().geometry());
        let units = geometry.units_of(&mapped);
        let written = self.watch.as_ref().and_then(|watch| {
            let mut written = Some(Vec::new());
            // What is fetched ahead comes at any moment.
            let _ = ledger.in_each_span(units.clone(), |mapping, bytes| {
                match (&mut written, watch.stop(mapping, bytes)) {
                    (Some(written), Some(more)) => written.extend(more),
                    (written, _) => *written = None,
                }
                Ok(())
            });
            watch.end();
            written
        });
        let ranges: Vec<Range<u64>> = match written {
            Some(ranges) if had => {
                ranges.into_iter().map(|range| range.start as u64..range.end as u64).collect()
            }
            // What was touched is there: all of that.
            None if had => {
                let there = units.filter(|&unit| self.is_there(unit));
                there.map(|unit| geometry.bytes_of(&(unit..unit + 1))).collect()
            }
            _ => Vec::new(),
        };
        // Of the first and the last unit only what was mapped; the page that the object ends in ends there.
        let page = crate::sys::PAGE as u64;
        let start = mapped.start / page * page;
        let end = mapped.end.next_multiple_of(page).min(geometry.object_len());
        let clipped = ranges
            .into_iter()
            .map(|range| range.start.max(start)..range.end.min(end))
            .filter(|range| range.start < range.end);
        // What could not be had was not written, though the kernel's mark for it looks like that.
        let had_at_all = clipped.flat_map(|range| {
            let units = geometry.units_of(&range).filter(|&unit| !ledger.is_poisoned(unit));
            units.map(move |unit| {
                let unit = geometry.bytes_of(&(unit..unit + 1));
                range.start.max(unit.start)..range.end.min(unit.end)
            })
        });
        let written: Vec<Range<u64>> = had_at_all.collect();
        let mut state = lock(&self.state);
        let Some(window) = state.window.take() else { return };
        state.dirty.adopt(ledger, window.kept, &written);
        state.lends.give_back(window.lend);
        drop(state);
        self.released.notify_waiters();
    }

    /// Whether `unit`, which is kept, is in place. One that is on its way is waited for: its pages may be
    /// there already, and be written, a moment before the ledger says so.
    fn is_there(&self, unit: u64) -> bool {
        self.wait_while(|| self.ledger().is_coming(unit));
        self.ledger().is_resident(unit)
    }

    /// Waits while the ledger `is` like that.
    fn wait_while(&self, is: impl Fn() -> bool) {
        while block_on(self.ledger().until(|| !is()), WAIT).is_none() {}
    }

    fn slice_of(&self, range: &Range<u64>) -> Option<(*mut u8, usize)> {
        let len = (range.end - range.start) as usize;
        let memory = self.ledger().memory().filter(|_| len > 0)?;
        Some((memory.base().as_ptr().wrapping_add(range.start as usize), len))
    }
}

impl MappedMut<'_> {
    /// Where in the object the bytes lie.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }
}

impl Deref for MappedMut<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let Some((start, len)) = self.region.0.slice_of(&self.range) else { return &[] };
        // SAFETY: the range was checked against the object and so lies inside the mapping, which lives as
        // long as the region. Each page is missing, in which case a touch waits until the kernel has put the
        // object's bytes there, or has its bytes, which are not given up: its unit is kept. The range is
        // lent to this map, so neither guard nor flush has a byte of it for writing.
        unsafe { std::slice::from_raw_parts(start, len) }
    }
}

impl DerefMut for MappedMut<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        let Some((start, len)) = self.region.0.slice_of(&self.range) else { return &mut [] };
        // SAFETY: as above; and it is lent for writing, so nobody else has a byte of it at all.
        unsafe { std::slice::from_raw_parts_mut(start, len) }
    }
}

impl Drop for MappedMut<'_> {
    fn drop(&mut self) {
        self.region.0.close_window();
    }
}

impl fmt::Debug for MappedMut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MappedMut({}..{})", self.range.start, self.range.end)
    }
}
