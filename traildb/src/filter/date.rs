//! Points in time as text: seconds since 1970, or ISO 8601 in UTC.
//!
//! ```text
//!   1456790400              as it is, in the unit that the database counts in
//!   2016-03                 the month          a date means all of its seconds: `time<=2016-03-01`
//!   2016-03-01              the day            includes that day, `time>2016-03-01` starts after it
//!   2016-03-01T08           the hour
//!   2016-03-01T08:30        the minute
//!   2016-03-01T08:30:05     the second         a `Z` or an offset like +02:00 may follow a time
//!   2016-03-01T08:30:05.25  between two        no timestamp equals it, those of later seconds are above it
//! ```

const DAY: i64 = 86_400;
/// Days from 0000-03-01 to 1970-01-01.
const EPOCH_DAY: i64 = 719_468;

/// The first and the last timestamp that `text` means, or what is wrong with it and at which byte. What lies
/// between two seconds comes before the first and behind the last: these are the one after and the one before.
pub(super) fn parse(text: &str) -> Result<(u64, u64), (usize, &'static str)> {
    if text.is_empty() {
        return Err((0, "a time is expected: seconds since 1970, or a date like 2016-01-31"));
    }
    if text.bytes().all(|b| b.is_ascii_digit()) {
        let time = text.parse().map_err(|_| (0, "the time exceeds 64 bits"))?;
        return Ok((time, time));
    }
    let mut scan = Scan { text: text.as_bytes(), at: 0 };
    let year = scan.number(4, 0..=9999, "a year of four digits is expected")?;
    scan.expect(b'-', "a date is written like 2016-01-31")?;
    let month = scan.number(2, 1..=12, "a month from 01 to 12 is expected")?;
    let day = match scan.take(b"-") {
        Some(_) => {
            let days = days_in(year, month);
            Some(scan.number(2, 1..=days, "the month has no such day")?)
        }
        None => None,
    };
    let start = days_since_epoch(year, month, day.unwrap_or(1)) * DAY;
    let mut seconds = match day {
        None => days_in(year, month) * DAY,
        Some(_) => DAY,
    };
    let (mut start, mut is_between) = (start, false);
    if day.is_some() && scan.take(b"Tt ").is_some() {
        start += scan.number(2, 0..=23, "an hour from 00 to 23 is expected")? * 3600;
        seconds = 3600;
        if scan.take(b":").is_some() {
            start += scan.number(2, 0..=59, "a minute from 00 to 59 is expected")? * 60;
            seconds = 60;
            if scan.take(b":").is_some() {
                start += scan.number(2, 0..=59, "a second from 00 to 59 is expected")?;
                seconds = 1;
                // Either is a decimal sign to ISO 8601.
                if scan.take(b".,").is_some() {
                    is_between = scan.fraction()?;
                }
            }
        }
        match scan.take(b"Zz+-") {
            None | Some(b'Z' | b'z') => {}
            Some(sign) => {
                let hours = scan.number(2, 0..=23, "an offset is written like +02:00")?;
                let colon = scan.take(b":").is_some();
                let minutes = match colon || scan.at < scan.text.len() {
                    true => scan.number(2, 0..=59, "an offset is written like +02:00")?,
                    false => 0,
                };
                let offset = hours * 3600 + minutes * 60;
                start += if sign == b'+' { -offset } else { offset };
            }
        }
    }
    if scan.at < scan.text.len() {
        return Err((scan.at, "the time should end here: it is written like 2016-01-31T23:59:59Z"));
    }
    let first = u64::try_from(start).map_err(|_| (0, "a time before 1970 cannot be"))?;
    // A date ends in the year 9999 or 10000: far from 2^63.
    match is_between {
        true => Ok((first + 1, first)),
        false => Ok((first, first + seconds as u64 - 1)),
    }
}

/// Days from 1970-01-01 to a date of the Gregorian calendar, by counting years from March, so that
/// the day of the leap year comes last.
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let month = (month + 9) % 12;
    // 153 days in five months from March on.
    let in_year = (153 * month + 2) / 5 + day - 1;
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + in_year
        - EPOCH_DAY
}

fn days_in(year: i64, month: i64) -> i64 {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

struct Scan<'t> {
    text: &'t [u8],
    at: usize,
}

impl Scan<'_> {
    fn number(
        &mut self,
        digits: usize,
        allowed: std::ops::RangeInclusive<i64>,
        expected: &'static str,
    ) -> Result<i64, (usize, &'static str)> {
        let part = self.text.get(self.at..self.at + digits);
        let part = part.filter(|part| part.iter().all(u8::is_ascii_digit));
        let number = part.map(|part| part.iter().fold(0, |n, b| n * 10 + i64::from(b - b'0')));
        let number = number.filter(|n| allowed.contains(n)).ok_or((self.at, expected))?;
        self.at += digits;
        Ok(number)
    }

    /// Digits of a part of a second: whether it is more than none.
    fn fraction(&mut self) -> Result<bool, (usize, &'static str)> {
        let digits = self.text[self.at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits == 0 {
            return Err((self.at, "digits are expected behind the decimal sign"));
        }
        let part = &self.text[self.at..self.at + digits];
        self.at += digits;
        Ok(part.iter().any(|&digit| digit != b'0'))
    }

    fn take(&mut self, any: &[u8]) -> Option<u8> {
        let next = *self.text.get(self.at).filter(|b| any.contains(b))?;
        self.at += 1;
        Some(next)
    }

    fn expect(&mut self, byte: u8, reason: &'static str) -> Result<(), (usize, &'static str)> {
        self.take(&[byte]).map(drop).ok_or((self.at, reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_that_are_read() {
        let cases = [
            ("0", 0, 0),
            ("18446744073709551615", u64::MAX, u64::MAX),
            ("1970-01-01", 0, 86_399),
            ("1970-01-01T00:00:00Z", 0, 0),
            ("2016-01-01", 1_451_606_400, 1_451_692_799),
            ("2016-02", 1_454_284_800, 1_454_284_800 + 29 * 86_400 - 1),
            ("2016-02-29T23", 1_456_786_800, 1_456_790_399),
            ("2016-03-01T08:30", 1_456_821_000, 1_456_821_059),
            ("2016-03-01 08:30:05", 1_456_821_005, 1_456_821_005),
            ("2016-03-01T10:30:05+02:00", 1_456_821_005, 1_456_821_005),
            ("2016-03-01T00:30:05-0800", 1_456_821_005, 1_456_821_005),
            ("2016-03-01T09:30:05+01", 1_456_821_005, 1_456_821_005),
            ("1970-01-01T01:00+01:00", 0, 59),
            ("2016-03-01T08:30:05.000Z", 1_456_821_005, 1_456_821_005),
            ("2016-03-01T08:30:05.5Z", 1_456_821_006, 1_456_821_005),
            ("2016-03-01T10:30:05,250+02:00", 1_456_821_006, 1_456_821_005),
            ("9999-12-31T23:59:59", 253_402_300_799, 253_402_300_799),
        ];
        for (text, first, last) in cases {
            assert_eq!(parse(text), Ok((first, last)), "{text}");
        }
    }

    #[test]
    fn times_that_are_refused() {
        let cases = [
            ("", 0),
            ("yesterday", 0),
            ("18446744073709551616", 0),
            ("16-01-01", 0),
            ("2016-1-01", 5),
            ("2016-13", 5),
            ("2015-02-29", 8),
            ("2100-02-29", 8),
            ("2016-01-01T24", 11),
            ("2016-01-01T23:60", 14),
            ("2016-01-01T23:59:60", 17),
            ("2016-01-01T23:59:59.", 20),
            ("2016-01-01T23:59:59.x", 20),
            ("2016-01-01T23:59.5", 16),
            ("1969-12-31T23:59:59.5Z", 0),
            ("2016-01T23", 7),
            ("2016-01-01Z", 10),
            ("2016-01-01T00:00+1", 17),
            ("1970-01-01T00:30+01:00", 0),
            ("1969-12-31", 0),
            ("2016-01-\u{661}1", 8),
        ];
        for (text, at) in cases {
            assert_eq!(parse(text).map_err(|e| e.0), Err(at), "{text}");
        }
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let mut expected = days_since_epoch(0, 1, 1);
        for year in 0..=2400 {
            for month in 1..=12 {
                for day in 1..=days_in(year, month) {
                    assert_eq!(days_since_epoch(year, month, day), expected);
                    expected += 1;
                }
            }
        }
        assert_eq!(days_since_epoch(1970, 1, 1), 0);
    }
}
