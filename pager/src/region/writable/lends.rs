//! Who has which bytes of a writable region, now.
//!
//! ```text
//!                 asks for    shared      write
//!   has it
//!   guard, shared             yes         refused
//!   guard for writing         refused     refused
//!   read_at, a moment         yes         waits
//!   write_at, a moment        waits       waits
//!   a flush                   yes         waits
//! ```
//!
//! What may take as long as the program likes is refused, so that nobody waits for itself; what ends
//! by itself is waited for. A flush asks as a reader does.

use std::ops::Range;

/// What somebody does with bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

/// How long it may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Span {
    /// As long as the program likes.
    Guard,
    /// The time of a copy.
    Moment,
}

/// Why bytes cannot be had now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// A guard has these bytes.
    ByGuard(Range<u64>),
    /// They come back by themselves.
    ForNow,
}

#[derive(Debug)]
struct Lend {
    id: u64,
    range: Range<u64>,
    access: Access,
    span: Span,
}

/// The bytes that are lent, of one region. A look takes time by the number of those who have some.
#[derive(Debug, Default)]
pub(super) struct Lends {
    all: Vec<Lend>,
    next: u64,
    /// What a flush reads: in ascending order, apart from each other.
    flushed: Vec<Range<u64>>,
    /// A flush waits for who writes just now, and nobody begins to write before it.
    flush_waits: bool,
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

impl Lends {
    /// Lends `range`, which is not empty; the number to give it back by.
    pub(super) fn lend(
        &mut self,
        range: Range<u64>,
        access: Access,
        span: Span,
    ) -> Result<u64, Taken> {
        debug_assert!(range.start < range.end);
        self.look(&range, access)?;
        if access == Access::Write && (self.flush_waits || self.is_flushed(&range)) {
            return Err(Taken::ForNow);
        }
        let id = self.next;
        self.next += 1;
        self.all.push(Lend { id, range, access, span });
        Ok(id)
    }

    fn look(&self, range: &Range<u64>, access: Access) -> Result<(), Taken> {
        let mut outcome = Ok(());
        for lend in &self.all {
            let shares = access == Access::Read && lend.access == Access::Read;
            if shares || !overlap(&lend.range, range) {
                continue;
            }
            match lend.span {
                Span::Guard => return Err(Taken::ByGuard(lend.range.clone())),
                Span::Moment => outcome = Err(Taken::ForNow),
            }
        }
        outcome
    }

    fn is_flushed(&self, range: &Range<u64>) -> bool {
        let at = self.flushed.partition_point(|flushed| flushed.end <= range.start);
        self.flushed.get(at).is_some_and(|flushed| overlap(flushed, range))
    }

    /// Whether a flush keeps `range` from being written now.
    pub(super) fn is_kept_by_flush(&self, range: &Range<u64>) -> bool {
        self.flush_waits || self.is_flushed(range)
    }

    /// Lends `ranges`, ascending and apart, to the one flush that there is at a time.
    pub(super) fn lend_to_flush(&mut self, ranges: &[Range<u64>]) -> Result<(), Taken> {
        debug_assert!(self.flushed.is_empty(), "one flush at a time");
        self.flush_waits = false;
        let mut waits = false;
        for range in ranges {
            match self.look(range, Access::Read) {
                Err(taken @ Taken::ByGuard(_)) => return Err(taken),
                Err(Taken::ForNow) => waits = true,
                Ok(()) => {}
            }
        }
        if waits {
            self.flush_waits = true;
            return Err(Taken::ForNow);
        }
        self.flushed = ranges.to_vec();
        Ok(())
    }

    /// What `id` names is lent no more.
    pub(super) fn give_back(&mut self, id: u64) {
        if let Some(at) = self.all.iter().position(|lend| lend.id == id) {
            self.all.swap_remove(at);
        }
    }

    /// The flush is over, or waits no more.
    pub(super) fn flush_gives_back(&mut self) {
        self.flush_waits = false;
        self.flushed.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Access::{Read, Write};
    use Span::{Guard, Moment};

    #[test]
    fn who_may_have_what_somebody_has() {
        let by_guard = || Err(Taken::ByGuard(10..20));
        let cases = [
            (Read, Guard, Read, Ok(())),
            (Read, Guard, Write, by_guard()),
            (Write, Guard, Read, by_guard()),
            (Write, Guard, Write, by_guard()),
            (Read, Moment, Read, Ok(())),
            (Read, Moment, Write, Err(Taken::ForNow)),
            (Write, Moment, Read, Err(Taken::ForNow)),
            (Write, Moment, Write, Err(Taken::ForNow)),
        ];
        for (has, span, asks, expected) in cases {
            let mut lends = Lends::default();
            let id = lends.lend(10..20, has, span).unwrap();
            for range in [0..11, 19..30, 12..13, 0..100] {
                let got = lends.lend(range.clone(), asks, Moment).map(|id| lends.give_back(id));
                assert_eq!(got, expected, "{has:?} {span:?}, {asks:?} {range:?}");
            }
            for apart in [0..10, 20..21] {
                let id = lends.lend(apart, Write, Guard).unwrap();
                lends.give_back(id);
            }
            lends.give_back(id);
            assert!(lends.lend(0..100, Write, Guard).is_ok());
        }
    }

    #[test]
    fn a_flush_reads_and_keeps_writers_waiting() {
        let mut lends = Lends::default();
        let reader = lends.lend(0..8192, Read, Guard).unwrap();
        let writer = lends.lend(9000..9001, Write, Guard).unwrap();
        let pages = [0..4096, 8192..12_288];
        assert_eq!(lends.lend_to_flush(&pages), Err(Taken::ByGuard(9000..9001)));
        lends.give_back(writer);
        let writer = lends.lend(0..1, Write, Moment);
        assert_eq!(writer, Err(Taken::ByGuard(0..8192)));
        lends.give_back(reader);
        let writer = lends.lend(0..1, Write, Moment).unwrap();
        assert_eq!(lends.lend_to_flush(&pages), Err(Taken::ForNow));
        // Writers that never stop would keep it from its turn.
        assert_eq!(lends.lend(50_000..50_001, Write, Moment), Err(Taken::ForNow));
        let reader = lends.lend(50_000..50_001, Read, Moment).unwrap();
        lends.give_back(reader);
        lends.give_back(writer);
        lends.lend_to_flush(&pages).unwrap();
        for (range, free) in [(4000..4097, false), (4096..8192, true), (12_287..20_000, false)] {
            assert_eq!(lends.look(&range, Read), Ok(()));
            let written = lends.lend(range.clone(), Write, Guard);
            assert_eq!(written.is_ok(), free, "{range:?}");
            if let Ok(id) = written {
                lends.give_back(id);
            }
        }
        lends.flush_gives_back();
        assert!(lends.lend(0..20_000, Write, Guard).is_ok());
    }
}
