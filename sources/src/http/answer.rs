//! What the head of an answer says.

use std::{ops::Range, time::SystemTime};

use pager::{SourceError, Strength, Version};
use reqwest::{
    Response, StatusCode,
    header::{
        ACCEPT_RANGES, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap,
        HeaderName, LAST_MODIFIED, RETRY_AFTER, TRANSFER_ENCODING,
    },
};

use crate::wire::{self, ContentRange, Failure};

/// The head of one answer.
pub(super) struct Answer {
    object: String,
    status: StatusCode,
    headers: HeaderMap,
}

impl Answer {
    pub(super) fn new(object: &str, response: &Response) -> Answer {
        Answer {
            object: object.to_owned(),
            status: response.status(),
            headers: response.headers().clone(),
        }
    }

    fn header(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim)
    }

    pub(super) fn validators(&self) -> Validators {
        Validators {
            etag: self.header(ETAG).map(str::to_owned),
            modified: self.header(LAST_MODIFIED).map(str::to_owned),
        }
    }

    /// The length that the answer to a HEAD tells, if it is that of the bytes themselves.
    pub(super) fn head_len(&self) -> Option<u64> {
        if self.is_encoded() || self.headers.contains_key(TRANSFER_ENCODING) {
            return None;
        }
        self.header(CONTENT_LENGTH)?.parse().ok()
    }

    pub(super) fn accepts_ranges(&self) -> bool {
        self.header(ACCEPT_RANGES).is_some_and(|unit| unit.eq_ignore_ascii_case("bytes"))
    }

    fn is_encoded(&self) -> bool {
        self.header(CONTENT_ENCODING)
            .is_some_and(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case("identity"))
    }

    /// Refuses a compressed body: its offsets are not those of the object.
    pub(super) fn check_encoding(&self) -> Result<(), SourceError> {
        if !self.is_encoded() {
            return Ok(());
        }
        Err(SourceError::Permanent {
            object: self.object.clone(),
            reason: format!(
                "the server sends it in the coding {:?} although `identity` was asked for, so its \
                 ranges are not ranges of the object",
                self.header(CONTENT_ENCODING).unwrap_or("")
            ),
            cause: None,
        })
    }

    pub(super) fn content_range(&self, asked: &Range<u64>) -> Result<ContentRange, SourceError> {
        let header = self.header(CONTENT_RANGE);
        header.and_then(ContentRange::parse).ok_or_else(|| SourceError::Corrupt {
            object: self.object.clone(),
            range: Some(asked.clone()),
            reason: match header {
                Some(header) => format!("a partial answer with the Content-Range {header:?}"),
                None => "a partial answer without Content-Range".to_owned(),
            },
        })
    }

    /// The length in `Content-Range: bytes */LENGTH` of a 416.
    pub(super) fn unsatisfied_len(&self) -> Option<u64> {
        self.header(CONTENT_RANGE)?.strip_prefix("bytes */")?.trim().parse().ok()
    }

    /// That the answer is of the version that was asked for.
    pub(super) fn check_version(&self, version: &Version) -> Result<(), SourceError> {
        let validators = self.validators();
        let same = match version.strength() {
            Strength::Strong => validators.etag.as_deref() == Some(version.token()),
            Strength::Weak => {
                Validators::modified_in(version) == validators.modified.as_deref()
                    && Validators::tag_in(version) == validators.weak_tag()
            }
        };
        if same { Ok(()) } else { Err(self.changed(version)) }
    }

    /// The same for an answer that tells the object's length, which is part of weak versions.
    pub(super) fn check_version_of(
        &self,
        version: &Version,
        len: Option<u64>,
    ) -> Result<(), SourceError> {
        if version.strength() == Strength::Strong {
            return self.check_version(version);
        }
        let found = self.validators().version(len.unwrap_or(0));
        if found == *version {
            return Ok(());
        }
        let (object, expected) = (self.object.clone(), version.to_string());
        Err(SourceError::Changed { object, expected, found: found.to_string() })
    }

    /// The same for answers that need not name a version.
    pub(super) fn check_version_if_told(&self, version: &Version) -> Result<(), SourceError> {
        let told = match version.strength() {
            Strength::Strong => self.headers.contains_key(ETAG),
            Strength::Weak => self.headers.contains_key(LAST_MODIFIED),
        };
        if told { self.check_version(version) } else { Ok(()) }
    }

    pub(super) fn changed(&self, version: &Version) -> SourceError {
        let validators = self.validators();
        let told = match version.strength() {
            Strength::Strong => validators.etag,
            Strength::Weak => validators.modified,
        };
        let found = match told {
            Some(told) if told != version.token() => told,
            _ => format!("an answer {} that names no version", self.status.as_u16()),
        };
        SourceError::Changed { object: self.object.clone(), expected: version.to_string(), found }
    }

    pub(super) fn ignores_ranges(&self) -> SourceError {
        SourceError::Permanent {
            object: self.object.clone(),
            reason: "the server ignores range requests: it answered 200 with the whole object; \
                     serve it from a server that answers 206, or download it and open the file"
                .to_owned(),
            cause: None,
        }
    }

    /// The error for an answer that is no success.
    pub(super) fn failure(&self, what: &'static str, range: Option<Range<u64>>) -> SourceError {
        let wait = self.header(RETRY_AFTER);
        let failure = Failure {
            object: &self.object,
            what,
            range,
            status: self.status.as_u16(),
            phrase: self.status.canonical_reason().unwrap_or(""),
            retry_after: wait.and_then(|wait| wire::retry_after(wait, SystemTime::now())),
            cause: None,
        };
        failure.error()
    }
}

/// What an answer offers to tell one version from another.
pub(super) struct Validators {
    etag: Option<String>,
    modified: Option<String>,
}

/// Weak tags that are longer are not made part of a version.
const TAG_BYTES_MAX: usize = 256;

impl Validators {
    /// The best version that can be had: a strong tag; else a weak one, the date and the length, as
    /// far as they are told: `tag W/"x", modified Sun, 06 Nov 1994 08:49:37 GMT, 7 bytes`.
    pub(super) fn version(&self, len: u64) -> Version {
        if let Some(etag) = self.etag.as_deref().filter(|etag| wire::is_strong_etag(etag)) {
            return Version::strong(etag);
        }
        let tag = self.weak_tag().map_or_else(String::new, |tag| format!("tag {tag}, "));
        let date =
            self.modified.as_ref().map_or_else(String::new, |date| format!("modified {date}, "));
        Version::weak(format!("{tag}{date}{len} bytes"))
    }

    /// A tag that promises too little to be pinned, and yet tells one object from another.
    fn weak_tag(&self) -> Option<&str> {
        let etag = self.etag.as_deref()?;
        // No spaces, so that it ends where the text of a version goes on.
        let plain = etag.bytes().all(|byte| byte.is_ascii_graphic());
        let good = plain && (1..=TAG_BYTES_MAX).contains(&etag.len());
        (good && !wire::is_strong_etag(etag)).then_some(etag)
    }

    /// The weak tag in a weak version made here, and what follows it.
    fn split(version: &Version) -> (Option<&str>, &str) {
        let tagged = version.token().strip_prefix("tag ").and_then(|rest| rest.split_once(", "));
        match tagged {
            Some((tag, rest)) => (Some(tag), rest),
            None => (None, version.token()),
        }
    }

    fn tag_in(version: &Version) -> Option<&str> {
        Validators::split(version).0
    }

    /// The date in a weak version made here.
    pub(super) fn modified_in(version: &Version) -> Option<&str> {
        let rest = Validators::split(version).1;
        let (date, _) = rest.strip_prefix("modified ")?.rsplit_once(", ")?;
        Some(date)
    }

    /// The length in a weak version made here.
    pub(super) fn len_in(version: &Version) -> Option<u64> {
        if version.strength() == Strength::Strong {
            return None;
        }
        version.token().rsplit(", ").next()?.strip_suffix(" bytes")?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_carry_what_they_are_checked_against() {
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        let some = |text: &str| Some(text.to_owned());
        let cases = [
            ("strong tag", some("\"x\""), some(date), Strength::Strong, None, None),
            ("date alone", None, some(date), Strength::Weak, Some(date), Some(7)),
            ("weak tag", some("W/\"x\""), some(date), Strength::Weak, Some(date), Some(7)),
            ("weak tag alone", some("W/\"x\""), None, Strength::Weak, None, Some(7)),
            ("a tag without quotes", some("x"), None, Strength::Weak, None, Some(7)),
            ("two words", some("W/\"x, y\""), some(date), Strength::Weak, Some(date), Some(7)),
            ("nothing", None, None, Strength::Weak, None, Some(7)),
        ];
        for (what, etag, modified, strength, date, len) in cases {
            let version = Validators { etag: etag.clone(), modified }.version(7);
            assert_eq!(version.strength(), strength, "{what}");
            assert_eq!(Validators::modified_in(&version), date, "{what}");
            assert_eq!(Validators::len_in(&version), len, "{what}");
            let tag =
                etag.as_deref().filter(|_| strength == Strength::Weak && !what.contains("two"));
            assert_eq!(Validators::tag_in(&version), tag, "{what}");
        }
    }
}
