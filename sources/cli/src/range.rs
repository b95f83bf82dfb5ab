//! Byte ranges as people type them.

use std::{ops::Range, str::FromStr};

/// Part of an object whose length is not known yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ByteRange {
    /// From here to there, exclusive.
    Between(u64, u64),
    /// From here to the end.
    From(u64),
    /// The last so many bytes.
    Last(u64),
}

impl ByteRange {
    /// The bytes of an object of `len` bytes, or why there are none such.
    pub(crate) fn of(self, len: u64) -> Result<Range<u64>, String> {
        let range = match self {
            ByteRange::Between(start, end) => start..end,
            ByteRange::From(start) => start..len,
            ByteRange::Last(count) => len.saturating_sub(count)..len,
        };
        match range.start <= range.end && range.end <= len {
            true => Ok(range),
            false => Err(format!(
                "bytes {}..{} do not lie inside the object, which has {len}",
                range.start, range.end
            )),
        }
    }
}

impl FromStr for ByteRange {
    type Err = String;

    fn from_str(text: &str) -> Result<ByteRange, String> {
        let number = |text: &str| -> Result<u64, String> {
            // `u64::from_str` would let a sign pass.
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            let number = text.parse().ok().filter(|_| digits);
            number.ok_or_else(|| format!("{text:?} is not a number of bytes"))
        };
        if let Some((start, end)) = text.split_once("..") {
            let start = if start.is_empty() { 0 } else { number(start)? };
            return match end {
                "" => Ok(ByteRange::From(start)),
                end => Ok(ByteRange::Between(start, number(end)?)),
            };
        }
        match text.split_once('-') {
            Some(("", count)) => Ok(ByteRange::Last(number(count)?)),
            Some((start, "")) => Ok(ByteRange::From(number(start)?)),
            Some((start, last)) => {
                let (start, last) = (number(start)?, number(last)?);
                let end = last.checked_add(1).ok_or_else(|| format!("{last} is too large"))?;
                match start < end {
                    true => Ok(ByteRange::Between(start, end)),
                    false => Err(format!("the last byte, {last}, lies before the first, {start}")),
                }
            }
            None => Err("use FIRST-LAST, FIRST-, -COUNT or START..END".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_as_people_type_them() {
        let cases = [
            ("0-99", Some(0..100)),
            ("10-", Some(10..1000)),
            ("-10", Some(990..1000)),
            ("-2000", Some(0..1000)),
            ("5..7", Some(5..7)),
            ("..7", Some(0..7)),
            ("7..", Some(7..1000)),
            ("1000..1000", Some(1000..1000)),
            ("999-1000", None),
            ("7..5", None),
            ("1001-", None),
        ];
        for (text, expected) in cases {
            let range: ByteRange = text.parse().unwrap();
            assert_eq!(range.of(1000).ok(), expected, "{text}");
        }
        let wrong = [
            "",
            "x",
            "1",
            "-",
            "1-x",
            "..x",
            "5-4",
            "+1-5",
            "1-+5",
            "1-2-3",
            "0-18446744073709551615",
            "99999999999999999999-",
        ];
        for text in wrong {
            assert!(text.parse::<ByteRange>().is_err(), "{text}");
        }
    }
}
