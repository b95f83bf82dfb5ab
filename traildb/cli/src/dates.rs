//! Times for people.

/// The least and greatest times that are taken for seconds since 1970: 1990 to 2100.
const PLAUSIBLE: std::ops::Range<u64> = 631_152_000..4_102_444_800;

/// `2016-01-31T23:59:59Z`, if `time` looks like seconds since 1970. A database does not say what
/// its times count.
pub(crate) fn shown(time: u64) -> Option<String> {
    if !PLAUSIBLE.contains(&time) {
        return None;
    }
    let (days, seconds) = (time / 86400, time % 86400);
    // Days are counted from 1 March of year 0, so that a leap day comes last in its year. Source:
    // Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days.
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    Some(format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        let cases = [
            (0, None),
            (631_152_000, Some("1990-01-01T00:00:00Z")),
            (951_782_400, Some("2000-02-29T00:00:00Z")),
            (1_456_703_999, Some("2016-02-28T23:59:59Z")),
            (1_456_704_000, Some("2016-02-29T00:00:00Z")),
            (1_483_228_799, Some("2016-12-31T23:59:59Z")),
            (4_102_444_799, Some("2099-12-31T23:59:59Z")),
            (4_102_444_800, None),
            (u64::MAX, None),
        ];
        for (time, expected) in cases {
            assert_eq!(shown(time).as_deref(), expected, "{time}");
        }
    }
}
