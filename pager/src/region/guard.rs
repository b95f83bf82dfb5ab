//! Bytes that stay while somebody looks at them.

use std::{
    fmt,
    ops::{Deref, Range},
};

use crate::cache::Ledger;

/// Units pinned so far, unpinned on drop.
pub(crate) struct Pins<'a> {
    ledger: &'a Ledger,
    units: Range<u64>,
}

impl<'a> Pins<'a> {
    /// No pins yet; the first will be of unit `first`.
    pub(crate) fn new(ledger: &'a Ledger, first: u64) -> Pins<'a> {
        Pins { ledger, units: first..first }
    }

    /// The next unit has been pinned.
    pub(crate) fn extend(&mut self) {
        self.units.end += 1;
    }
}

impl Drop for Pins<'_> {
    fn drop(&mut self) {
        for unit in self.units.clone() {
            self.ledger.unpin(unit);
        }
    }
}

/// Bytes of a region, resident and pinned while this is alive. A slice that is safe to give to
/// system calls, as long as they are under way: of one that goes on after it has returned (`vmsplice`,
/// `MSG_ZEROCOPY`, asynchronous I/O), until its end is known. Pins take at most half of the budget: keep guards short.
pub struct Guard<'a> {
    pins: Pins<'a>,
    range: Range<u64>,
}

impl<'a> Guard<'a> {
    /// The bytes `range`, whose units `pins` holds, all resident.
    pub(crate) fn new(pins: Pins<'a>, range: Range<u64>) -> Guard<'a> {
        Guard { pins, range }
    }

    /// Where in the object the bytes lie.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }
}

impl Deref for Guard<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let len = (self.range.end - self.range.start) as usize;
        let Some(memory) = self.pins.ledger.memory().filter(|_| len > 0) else { return &[] };
        // SAFETY: the range was checked against the object and so lies inside the mapping, which
        // the ledger keeps as long as this borrow; its units are resident, were published by the
        // state word that the pin read, and are neither discarded nor written while pinned.
        unsafe {
            let start = memory.base().as_ptr().add(self.range.start as usize);
            std::slice::from_raw_parts(start, len)
        }
    }
}

impl AsRef<[u8]> for Guard<'_> {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Guard<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Guard({}..{})", self.range.start, self.range.end)
    }
}
