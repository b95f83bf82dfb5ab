//! What HTTP says about ranges, versions and failures, for every leaf that speaks it.

use std::{
    ops::Range,
    time::{Duration, SystemTime},
};

use pager::{Cause, SourceError};

/// No server makes a request wait longer than this; a larger `Retry-After` is cut to it.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// `Content-Range: bytes 0-99/1000`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ContentRange {
    pub(crate) range: Range<u64>,
    /// `None` where the server says `*`: it does not know.
    pub(crate) total: Option<u64>,
}

impl ContentRange {
    /// Reads the header. `None` when it says anything but one satisfied range of bytes.
    pub(crate) fn parse(header: &str) -> Option<ContentRange> {
        let (unit, rest) = header.trim().split_once(' ')?;
        if !unit.eq_ignore_ascii_case("bytes") {
            return None;
        }
        let (range, total) = rest.trim().split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let (first, last) = (number(first)?, number(last)?);
        let total = match total.trim() {
            "*" => None,
            total => Some(number(total)?),
        };
        let range = first..last.checked_add(1)?;
        let inside = total.is_none_or(|total| range.end <= total);
        (!range.is_empty() && inside).then_some(ContentRange { range, total })
    }

    /// Checks that this is the range that was asked for, of an object of `len` bytes.
    pub(crate) fn check(
        &self,
        object: &str,
        asked: &Range<u64>,
        len: Option<u64>,
    ) -> Result<(), SourceError> {
        if self.range != *asked {
            return Err(SourceError::Corrupt {
                object: object.to_owned(),
                range: Some(asked.clone()),
                reason: format!(
                    "the server sent bytes {}..{} instead",
                    self.range.start, self.range.end
                ),
            });
        }
        match (self.total, len) {
            (Some(total), Some(len)) if total != len => Err(SourceError::Changed {
                object: object.to_owned(),
                expected: format!("{len} bytes"),
                found: format!("{total} bytes"),
            }),
            _ => Ok(()),
        }
    }
}

/// Digits and nothing else: `u64::from_str` would let a sign pass.
fn number(text: &str) -> Option<u64> {
    let text = text.trim();
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// The value of a `Range` header.
pub(crate) fn range_header(range: &Range<u64>) -> String {
    format!("bytes={}-{}", range.start, range.end - 1)
}

/// Reads `Retry-After`, seconds or a date, as the time to wait from `now`.
pub(crate) fn retry_after(header: &str, now: SystemTime) -> Option<Duration> {
    let header = header.trim();
    let wait = match number(header) {
        Some(seconds) => Duration::from_secs(seconds),
        None => httpdate::parse_http_date(header).ok()?.duration_since(now).unwrap_or_default(),
    };
    Some(wait.min(RETRY_AFTER_MAX))
}

/// Whether an entity tag promises equal bytes. `W/"x"` does not.
pub(crate) fn is_strong_etag(etag: &str) -> bool {
    etag.len() > 2 && etag.starts_with('"') && etag.ends_with('"')
}

/// A failed answer, sorted by what can be done about it.
pub(crate) struct Failure<'a> {
    pub(crate) object: &'a str,
    pub(crate) what: &'static str,
    pub(crate) range: Option<Range<u64>>,
    pub(crate) status: u16,
    /// What the server calls it: an S3 code, or the standard phrase. Holds no secrets.
    pub(crate) phrase: &'a str,
    pub(crate) retry_after: Option<Duration>,
    pub(crate) cause: Option<Cause>,
}

impl Failure<'_> {
    /// The error for the status, wherever the status says enough by itself. A 412 and a 416 depend
    /// on what was asked: the leaf answers them before it comes here.
    pub(crate) fn error(self) -> SourceError {
        let Failure { what, range, status, retry_after, cause, .. } = self;
        let object = self.object.to_owned();
        let reason = format!("the server answered {status} {}", self.phrase);
        match status {
            404 | 410 => SourceError::NotFound { object, cause },
            401 | 403 | 407 => SourceError::Denied { object, reason, cause },
            429 | 503 => {
                SourceError::Throttled { object, what, range, attempts: 1, retry_after, cause }
            }
            408 | 425 | 500 | 502 | 504 | 506..=599 => {
                SourceError::Transient { object, what, range, attempts: 1, reason, cause }
            }
            _ => SourceError::Permanent { object, reason: format!("{what}: {reason}"), cause },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        let cases = [
            ("bytes 0-99/1000", Some((0..100, Some(1000)))),
            ("BYTES 5-5/6", Some((5..6, Some(6)))),
            ("bytes 0-99/*", Some((0..100, None))),
            ("bytes */1000", None),
            ("bytes 99-0/1000", None),
            ("bytes 0-99/50", None),
            ("bytes -1-9/50", None),
            ("bytes +1-9/50", None),
            ("bytes 0-18446744073709551615/*", None),
            ("items 0-9/50", None),
            ("bytes 0-9", None),
            ("", None),
        ];
        for (header, expected) in cases {
            let expected = expected.map(|(range, total)| ContentRange { range, total });
            assert_eq!(ContentRange::parse(header), expected, "{header:?}");
        }
    }

    #[test]
    fn a_range_of_another_place_or_another_object() {
        let sent = ContentRange { range: 0..10, total: Some(100) };
        assert!(sent.check("o", &(0..10), Some(100)).is_ok());
        assert!(sent.check("o", &(0..10), None).is_ok());
        let error = sent.check("o", &(1..11), Some(100)).expect_err("another place");
        assert!(matches!(error, SourceError::Corrupt { .. }), "{error}");
        let error = sent.check("o", &(0..10), Some(99)).expect_err("another length");
        assert!(matches!(error, SourceError::Changed { .. }), "{error}");
    }

    #[test]
    fn retry_after_in_seconds_and_dates() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").expect("a date");
        let cases = [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", Some(10)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("99999999999", Some(3600)),
            ("-5", None),
            ("soon", None),
        ];
        for (header, seconds) in cases {
            assert_eq!(retry_after(header, now), seconds.map(Duration::from_secs), "{header:?}");
        }
    }

    #[test]
    fn statuses_by_what_to_do() {
        let cases = [
            (404, "not_found"),
            (410, "not_found"),
            (401, "denied"),
            (403, "denied"),
            (429, "throttled"),
            (503, "throttled"),
            (408, "transient"),
            (500, "transient"),
            (502, "transient"),
            (504, "transient"),
            (501, "permanent"),
            (505, "permanent"),
            (400, "permanent"),
            (302, "permanent"),
        ];
        for (status, kind) in cases {
            let failure = Failure {
                object: "o",
                what: "read",
                range: None,
                status,
                phrase: "",
                retry_after: None,
                cause: None,
            };
            assert_eq!(failure.error().kind(), kind, "{status}");
        }
    }

    #[test]
    fn entity_tags() {
        for (etag, strong) in
            [("\"a\"", true), ("W/\"a\"", false), ("\"\"", false), ("a", false), ("\"", false)]
        {
            assert_eq!(is_strong_etag(etag), strong, "{etag}");
        }
    }
}
