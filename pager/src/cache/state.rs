//! The life of a unit, in one atomic word.
//!
//! ```text
//!            wanted            bytes arrive            chosen by the policy
//!   Absent --------> Fetching ---------------> Resident ------------------> Leaving
//!    ^  ^              |  |                       ^                            |
//!    |  |  no bytes    |  | bytes of a marker     | touched                    |
//!    |  +--------------+  +---------> Staged -----+                            |
//!    |                 |                                                       |
//!    |                 +--> Poisoned --(a load tries again)--> Fetching        |
//!    |   bytes cannot be had, a reader waits                                   |
//!    +-------------------------------------------------------------------------+
//!                                                             discarded
//! ```
//!
//! ```text
//!   bit    0..3     3          4         5           6         7         8         9         10        11     12..32
//!   word   state    demanded   faulted   speculative waiters   touched   healing   counted   untold    kept   pins
//! ```
//!
//! A reader waits in `Fetching` and reads in `Resident`. In `Leaving` it may read or fault; a fault
//! sets `demanded`, and whoever discards sees it and fetches again. Pins may be taken in every
//! state: a load pins what it waits for, so that nothing can evict it before the load has seen it.

/// What a unit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Absent,
    Fetching,
    Resident,
    Leaving,
    Staged,
    Poisoned,
}

/// Somebody asked for the unit since it was claimed.
pub(crate) const DEMANDED: u32 = 1 << 3;
/// A thread waits in a page fault, so a failure must poison.
pub(crate) const FAULTED: u32 = 1 << 4;
/// Nobody has asked for the unit yet: it counts against speculation's share.
pub(crate) const SPECULATIVE: u32 = 1 << 5;
/// Loads wait: whoever completes the unit must look into the table of waiters. A resident unit keeps it
/// until they were taken from there, and is no victim as long.
pub(crate) const WAITERS: u32 = 1 << 6;
/// A load used the unit since the policy last looked.
pub(crate) const TOUCHED: u32 = 1 << 7;

/// The unit was poisoned and is being fetched again.
pub(crate) const HEALING: u32 = 1 << 8;

/// The unit counts against the pin limit. Set with the first pin and kept after the last, so that
/// the next pin is one instruction; taken back when somebody finds the limit reached, or when the
/// unit is not resident any more.
pub(crate) const COUNTED: u32 = 1 << 9;

/// The fault thread has put the unit in place, and the pool's policy has not heard of it: no victim until
/// it has.
pub(crate) const UNTOLD: u32 = 1 << 10;

/// One of the pins is that of a map that is written through: it keeps the unit wherever that is, and asks for
/// nothing. So the unit may be guessed all the same.
pub(crate) const KEPT: u32 = 1 << 11;

const PIN: u32 = 1 << 12;
const PINS_MAX: u32 = (1 << 20) - 1;

/// A snapshot of a unit's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word(pub(crate) u32);

impl Word {
    pub(crate) fn state(self) -> State {
        match self.0 & 7 {
            0 => State::Absent,
            1 => State::Fetching,
            2 => State::Resident,
            3 => State::Leaving,
            4 => State::Staged,
            5 => State::Poisoned,
            _ => unreachable!("a unit's word has one of six states"),
        }
    }

    /// The same word in another state.
    #[must_use]
    pub(crate) fn to(self, state: State) -> Word {
        Word(self.0 & !7 | state as u32)
    }

    pub(crate) fn has(self, flag: u32) -> bool {
        self.0 & flag != 0
    }

    #[must_use]
    pub(crate) fn with(self, flags: u32) -> Word {
        Word(self.0 | flags)
    }

    #[must_use]
    pub(crate) fn without(self, flags: u32) -> Word {
        Word(self.0 & !flags)
    }

    pub(crate) fn pins(self) -> u32 {
        self.0 / PIN
    }

    /// Pins of those who have asked for the unit: all but that of a map.
    pub(crate) fn claims(self) -> u32 {
        self.pins().saturating_sub(u32::from(self.has(KEPT)))
    }

    /// One pin more, or `None` at the most that the word can count.
    pub(crate) fn pinned(self) -> Option<Word> {
        (self.pins() < PINS_MAX).then(|| Word(self.0 + PIN))
    }

    #[must_use]
    pub(crate) fn unpinned(self) -> Word {
        assert!(self.pins() > 0, "a unit is unpinned as often as it was pinned");
        Word(self.0 - PIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_flags_and_pins_do_not_disturb_each_other() {
        let mut word = Word(0);
        assert_eq!((word.state(), word.pins()), (State::Absent, 0));
        word = word.with(DEMANDED | WAITERS).pinned().unwrap().pinned().unwrap();
        for state in
            [State::Fetching, State::Staged, State::Resident, State::Leaving, State::Poisoned]
        {
            word = word.to(state);
            assert_eq!((word.state(), word.pins()), (state, 2));
            assert!(word.has(DEMANDED) && word.has(WAITERS) && !word.has(SPECULATIVE));
        }
        word = word.without(DEMANDED | WAITERS).unpinned().unpinned().to(State::Absent);
        assert_eq!(word.0, 0);
        assert!(Word(!7).pinned().is_none());
        assert_eq!(Word(COUNTED).pinned().unwrap().pins(), 1);
        let kept = Word(KEPT | COUNTED | UNTOLD).pinned().unwrap();
        assert_eq!((kept.pins(), kept.claims()), (1, 0));
        assert_eq!(kept.pinned().unwrap().claims(), 1);
        assert_eq!((kept.without(KEPT).claims(), Word(0).claims()), (1, 0));
    }
}
