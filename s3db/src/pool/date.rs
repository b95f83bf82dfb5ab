//! The object store's time, as its answers tell it.
//!
//! Between answers it is counted on by this machine's monotonic clock. Each answer came after it was asked
//! for, and tells whole seconds, so it bounds the time now from both sides: a clock that runs fast is set
//! right by it.
//!
//! An answer can be wrong: it may come from a front end whose clock is, or from a machine in between. So one
//! answer alone moves nothing by more than [`JUMP_MS_MAX`]. It is *doubted*, until the next one says the
//! same, or this machine's own clock does, as after a sleep.

/// What an answer may differ by from what was told before, and is believed at once: as much as stamps may
/// be ahead by default, and more than clocks drift and answers take.
const JUMP_MS_MAX: u64 = 300_000;
/// What the store's time and this machine's clock may differ by, or nothing is committed or collected: the
/// day that a tombstone stays longer than anything is on its way.
const APART_MS_MAX: u64 = 24 * 3_600_000;
/// A machine whose clock is before 2025 has none: this program is younger.
const CLOCK_MS_MIN: u64 = 1_735_689_600_000;

/// The store's time at some moment of the monotonic clock.
#[derive(Clone, Copy, Debug)]
struct Told {
    date_ms: u64,
    at_us: u64,
}

impl Told {
    fn now_ms(self, now_us: u64) -> u64 {
        self.date_ms.saturating_add(now_us.saturating_sub(self.at_us) / 1000)
    }

    /// What this and an answer of now, which means a time from `date_ms` to `most_ms`, say together; `None`
    /// if they contradict each other.
    fn joined(self, date_ms: u64, most_ms: u64, now_us: u64) -> Option<Told> {
        let known_ms = self.now_ms(now_us);
        let joined_ms = known_ms.clamp(date_ms, most_ms);
        if joined_ms == known_ms {
            return Some(self);
        }
        let is_near = joined_ms.abs_diff(known_ms) <= JUMP_MS_MAX;
        is_near.then_some(Told { date_ms: joined_ms, at_us: now_us })
    }
}

/// Why the store's time cannot be gone by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// Its answers contradict each other, or one answer and this machine's clock do.
    Unsure {
        /// By so many milliseconds the newer one, or the store, is ahead.
        ahead_ms: i64,
    },
    /// The store and this machine's clock are further apart than they may be, whatever is asked.
    Apart {
        /// By so many milliseconds the store is ahead.
        ahead_ms: i64,
    },
}

/// What is known of the store's time. See the module.
#[derive(Debug, Default)]
pub(super) struct StoreDate {
    known: Option<Told>,
    /// The last answer, if it contradicts that.
    doubted: Option<Told>,
    /// Two answers said so, or one and this machine's clock.
    is_confirmed: bool,
}

impl StoreDate {
    /// Milliseconds since 1970, now; 0 before the first answer.
    pub(super) fn now_ms(&self, now_us: u64) -> u64 {
        self.known.map_or(0, |known| known.now_ms(now_us))
    }

    /// Takes the time of an answer to what was asked at `asked_us`. Returns what is to be taken for it.
    pub(super) fn saw(
        &mut self,
        date_ms: u64,
        asked_us: u64,
        now_us: u64,
        wall_us: impl Fn() -> u64,
    ) -> u64 {
        if date_ms == 0 {
            return 0;
        }
        let told = Told { date_ms, at_us: now_us };
        let most_ms = date_ms.saturating_add(1000 + now_us.saturating_sub(asked_us) / 1000);
        let Some(known) = self.known else {
            self.known = Some(told);
            return date_ms;
        };
        let joined = |told: Told| told.joined(date_ms, most_ms, now_us);
        // As after a sleep.
        let wall_agrees = || {
            let wall_ms = wall_us() / 1000;
            wall_ms >= CLOCK_MS_MIN && wall_ms.abs_diff(date_ms) <= JUMP_MS_MAX
        };
        let believed = joined(known)
            .or_else(|| self.doubted.and_then(joined))
            .or_else(|| wall_agrees().then_some(told));
        match believed {
            Some(believed) => {
                (self.known, self.doubted) = (Some(believed), None);
                self.is_confirmed = true;
                date_ms
            }
            None => {
                self.doubted = Some(told);
                known.now_ms(now_us)
            }
        }
    }

    /// What a client does that believes each answer.
    pub(super) fn believe(&mut self, date_ms: u64, now_us: u64) -> u64 {
        if date_ms > 0 {
            (self.known, self.doubted) = (Some(Told { date_ms, at_us: now_us }), None);
        }
        date_ms
    }

    /// Whether the last answer contradicts what was told before: the next one tells.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.doubted.is_some()
    }

    /// Why this cannot be gone by, if so. Where nothing is known nothing is doubted. One answer is enough
    /// if this machine's clock says about the same. `is_strict` is for those who delete: where there is no
    /// clock that could contradict, they do not.
    pub(super) fn doubt(&self, now_us: u64, wall_us: u64, is_strict: bool) -> Option<Doubt> {
        let known_ms = self.known?.now_ms(now_us);
        if let Some(doubted) = self.doubted {
            return Some(Doubt::Unsure { ahead_ms: ahead(doubted.now_ms(now_us), known_ms) });
        }
        let wall_ms = wall_us / 1000;
        let (apart_ms, ahead_ms) = (wall_ms.abs_diff(known_ms), ahead(known_ms, wall_ms));
        let has_clock = wall_ms >= CLOCK_MS_MIN;
        if apart_ms > APART_MS_MAX && (has_clock || is_strict) {
            return Some(match self.is_confirmed {
                true => Doubt::Apart { ahead_ms },
                false => Doubt::Unsure { ahead_ms },
            });
        }
        let is_told_once = !self.is_confirmed && apart_ms > JUMP_MS_MAX;
        is_told_once.then_some(Doubt::Unsure { ahead_ms })
    }
}

fn ahead(one_ms: u64, other_ms: u64) -> i64 {
    i64::try_from(i128::from(one_ms) - i128::from(other_ms)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATE: u64 = 1_763_690_400_000;
    const HOUR: u64 = 3_600_000;
    const DAY: u64 = 24 * HOUR;

    /// Answers, each a second after the last, on a machine whose clock is so wrong.
    fn told(dates: &[u64], wall_ahead_ms: i64) -> (StoreDate, u64, u64) {
        let mut date = StoreDate::default();
        let wall_us = |now_us: u64| {
            (DATE + now_us / 1000).saturating_add_signed(wall_ahead_ms).saturating_mul(1000)
        };
        let mut now_us = 1;
        for &date_ms in dates {
            now_us += 1_000_000;
            date.saw(date_ms, now_us, now_us, || wall_us(now_us));
        }
        (date, now_us, wall_us(now_us))
    }

    /// One answer from the future, or from the past, was believed; that of S3 for the life of a process.
    #[test]
    fn one_wrong_answer_moves_nothing() {
        let right = DATE + HOUR / 2;
        for wrong in
            [0, 1, right - 30 * DAY, right - HOUR, right + HOUR, right + 70 * 365 * DAY, u64::MAX]
        {
            let mut date = StoreDate::default();
            // No clock that could help.
            let saw = |date: &mut StoreDate, ms: u64, at_s: u64| {
                date.saw(ms, at_s * 1_000_000, at_s * 1_000_000, || 0)
            };
            assert_eq!(saw(&mut date, right, 1), right);
            let taken = saw(&mut date, wrong, 2);
            assert!(taken == 0 && wrong == 0 || taken == right + 1000, "{wrong}: {taken}");
            assert_eq!(date.now_ms(2_000_000), right + 1000, "{wrong}");
            assert_eq!(date.is_in_doubt(), wrong != 0, "{wrong}");
            assert_eq!(saw(&mut date, right + 2000, 3), right + 2000);
            assert!(!date.is_in_doubt());
            assert_eq!(date.now_ms(3_000_000), right + 2000, "{wrong}");
        }
    }

    #[test]
    fn what_two_answers_say_is_believed() {
        for (first, wall_ahead) in
            [(DATE + 70 * 365 * DAY, -(50 * DAY as i64)), (DATE - HOUR, i64::MIN)]
        {
            let (date, now_us, _) = told(&[first, DATE, DATE + 1000], wall_ahead);
            assert_eq!(date.now_ms(now_us), DATE + 1000);
            assert!(date.is_confirmed && !date.is_in_doubt());
        }
    }

    /// It did not count the time that it slept; its other clock says where it is now.
    #[test]
    fn a_machine_that_slept_believes_the_first_answer() {
        let (mut date, now_us, _) = told(&[DATE], 0);
        let later = DATE + 8 * HOUR;
        assert_eq!(date.saw(later, now_us, now_us, || (later + 2000) * 1000), later);
        assert_eq!(date.now_ms(now_us), later);
    }

    #[test]
    fn doubts() {
        let unsure = |ms: u64| Some(Doubt::Unsure { ahead_ms: ms as i64 });
        let apart = |ahead_ms: i64| Some(Doubt::Apart { ahead_ms });
        let none = i64::MIN;
        // What was told, how far the machine's clock is ahead, what commits and collectors make of that.
        let cases: [(&str, &[u64], i64, _, _); 9] = [
            ("nothing known", &[], 0, None, None),
            ("all is well", &[DATE + 1000], 0, None, None),
            (
                "told once, and an hour from here",
                &[DATE + 1000 + HOUR],
                0,
                unsure(HOUR),
                unsure(HOUR),
            ),
            ("told twice", &[DATE + HOUR, DATE + HOUR + 1000], 0, None, None),
            ("from the future", &[DATE + 1000 + 9 * DAY], 0, unsure(9 * DAY), unsure(9 * DAY)),
            (
                "again and again",
                &[DATE + 1000 + 9 * DAY, DATE + 2000 + 9 * DAY],
                0,
                apart(9 * DAY as i64),
                apart(9 * DAY as i64),
            ),
            (
                "a clock that is ahead",
                &[DATE + 1000, DATE + 2000],
                9 * DAY as i64,
                apart(-(9 * DAY as i64)),
                apart(-(9 * DAY as i64)),
            ),
            (
                "an answer that contradicts",
                &[DATE, DATE + 1000, DATE + 2000 + HOUR],
                0,
                unsure(HOUR),
                unsure(HOUR),
            ),
            ("no clock, told once", &[DATE], none, unsure(DATE), unsure(DATE)),
        ];
        for (what, dates, wall_ahead, commits, collects) in cases {
            let (date, now_us, wall_us) = told(dates, wall_ahead);
            assert_eq!(date.doubt(now_us, wall_us, false), commits, "{what}");
            assert_eq!(date.doubt(now_us, wall_us, true), collects, "{what}");
        }
        let (date, now_us, wall_us) = told(&[DATE, DATE + 1000], none);
        assert_eq!(date.doubt(now_us, wall_us, false), None, "no clock, told twice");
        let ahead_ms = DATE as i64 + 1000;
        assert_eq!(date.doubt(now_us, wall_us, true), Some(Doubt::Apart { ahead_ms }));
    }
}
