//! Objects in S3, or in what speaks like it.
//!
//! ```text
//!   stat:  HeadObject ---------------------> length, ETag, version id
//!   read:  GetObject bytes=a-b, If-Match: ETag, versionId --> 206, Content-Range checked
//! ```
//!
//! **Version.** The ETag is pinned on every read, and the version id where the bucket keeps
//! versions: then an object that is overwritten goes on being readable as it was opened. Who may
//! read objects but not versions (`s3:GetObjectVersion`) is served by the ETag alone, which is
//! found out at the first read.
//!
//! **Integrity.** Length, place and version of every answer are checked, its bytes are not: S3 keeps
//! checksums of whole objects, and of the parts that these were uploaded in, and sends one along
//! (`x-amz-checksum-mode`) only with a whole object or a whole part. A page of an object is neither,
//! and an ETag is no digest of the bytes where they were uploaded in parts or are encrypted with a
//! key of KMS. What protects a range on its way is TLS: a byte that changes under `https` breaks the
//! connection, which [`Retry`](crate::Retry) mends. Over an `http` endpoint nobody notices but a
//! checksum in the object itself. At rest S3 checks its own copies.
//!
//! **Attempts.** One; wrap it in [`Retry`](crate::Retry).

mod failure;
mod list;
mod sink; // objects replaced in places
pub mod upload; // objects written in parts

use std::{
    ops::Range,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use aws_sdk_s3::{
    operation::{
        get_object::{GetObjectError, GetObjectOutput},
        head_object::HeadObjectError,
    },
    primitives::DateTime,
    types::RequestPayer,
};
use aws_smithy_runtime_api::{client::result::SdkError, http};
use futures::stream;
use pager::{BlockSource, ByteStream, ObjectStat, SourceError, Strength, Version};

use self::failure::Asked;
pub(crate) use self::list::list_each;
pub use self::{
    list::{Listed, list},
    sink::{S3Sink, S3SinkOptions},
};
use crate::{
    aws::Aws,
    body::{Body, WAIT_MAX, check_range, check_shape},
    wire::{self, ContentRange},
};

/// What is asked for, and how long to wait for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Options {
    /// Read this version, not the latest. Default: the latest at the time of `stat`.
    pub version_id: Option<String>,
    /// Whether we pay for the requests to a bucket whose owner does not. Default: `false`.
    pub requester_pays: bool,
    /// The longest from sending a request to the head of its answer, connecting and fetching
    /// credentials included. Default: 10 s.
    pub first_byte: Duration,
    /// The longest silence within a body. Default: 10 s.
    pub stall: Duration,
}

impl Default for S3Options {
    fn default() -> S3Options {
        S3Options {
            version_id: None,
            requester_pays: false,
            first_byte: Duration::from_secs(10),
            stall: Duration::from_secs(10),
        }
    }
}

/// An object in a bucket.
pub struct S3 {
    name: String,
    bucket: String,
    key: String,
    aws: Aws,
    options: S3Options,
    /// Reads that name a version id were denied; the ETag serves.
    versions_denied: AtomicBool,
    /// What `stat` found last: the length for which `Content-Range` is checked.
    known: Mutex<Option<(Version, u64)>>,
}

impl S3 {
    /// A source for the object `key` of `bucket`. Nothing is sent before the first `stat` or
    /// `read`.
    ///
    /// # Errors
    /// When bucket or key are empty.
    pub fn new(
        bucket: impl Into<String>,
        key: impl Into<String>,
        aws: Aws,
        options: S3Options,
    ) -> Result<S3, SourceError> {
        let (bucket, key) = (bucket.into(), key.into());
        let name = format!("s3://{bucket}/{key}");
        if bucket.is_empty() || key.is_empty() {
            return Err(SourceError::Permanent {
                object: name,
                reason: "an object needs a bucket and a key: s3://bucket/key".to_owned(),
                cause: None,
            });
        }
        let versions_denied = AtomicBool::new(false);
        Ok(S3 { name, bucket, key, aws, options, versions_denied, known: Mutex::new(None) })
    }

    fn payer(&self) -> Option<RequestPayer> {
        self.options.requester_pays.then_some(RequestPayer::Requester)
    }

    fn known_len(&self, version: &Version) -> Option<u64> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.as_ref().filter(|(known, _)| known == version).map(|(_, len)| *len)
    }

    /// Waits for the head of an answer as long as is allowed.
    async fn in_time<T>(
        &self,
        asked: &Asked<'_>,
        work: impl Future<Output = Result<T, SourceError>>,
    ) -> Result<T, SourceError> {
        let wait = self.options.first_byte.min(WAIT_MAX);
        let answer = tokio::time::timeout(wait, work).await;
        answer.unwrap_or_else(|_| Err(asked.transient(format!("no answer for {wait:?}"), None)))
    }

    async fn get(
        &self,
        pin: &Pin<'_>,
        version_id: Option<&str>,
        range: &Range<u64>,
    ) -> Result<Result<GetObjectOutput, SdkError<GetObjectError, http::Response>>, SourceError>
    {
        let mut request = self.aws.s3().await?.get_object().bucket(&self.bucket).key(&self.key);
        request = request.range(wire::range_header(range));
        request = request.set_version_id(version_id.map(str::to_owned));
        request = request.set_request_payer(self.payer());
        request = match pin {
            Pin::Tag { etag, .. } => request.if_match(*etag),
            Pin::Modified(seconds) => request.if_unmodified_since(DateTime::from_secs(*seconds)),
        };
        Ok(request.send().await)
    }

    /// The range, with the version id as long as that is allowed.
    async fn get_pinned(
        &self,
        asked: &Asked<'_>,
        pin: &Pin<'_>,
        range: &Range<u64>,
    ) -> Result<GetObjectOutput, SourceError> {
        let fixed = self.options.version_id.as_deref();
        let denied = self.versions_denied.load(Ordering::Relaxed);
        let version_id = fixed.or_else(|| pin.version_id().filter(|_| !denied));
        let error = match self.get(pin, version_id, range).await? {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let optional = version_id.is_some() && fixed.is_none();
        if status_of(&error) != Some(403) || !optional {
            return Err(asked.failed(error));
        }
        let answer = self.get(pin, None, range).await?.map_err(|error| asked.failed(error))?;
        // Remembered only now that it is known to help: else the object itself is denied.
        self.versions_denied.store(true, Ordering::Relaxed);
        Ok(answer)
    }

    /// What a HEAD was refused for, told by a GET: the answer to a HEAD has no body, and so no code,
    /// that could tell an expired token from a wrong clock or another region. Where the GET works,
    /// it says what the HEAD should have said.
    async fn stat_by_range(
        &self,
        asked: &Asked<'_>,
        refused: SdkError<HeadObjectError, http::Response>,
    ) -> Result<(Option<i64>, Option<Version>), SourceError> {
        let request = self.aws.s3().await?.get_object().bucket(&self.bucket).key(&self.key);
        let request = request.range(wire::range_header(&(0..1)));
        let request = request.set_version_id(self.options.version_id.clone());
        match request.set_request_payer(self.payer()).send().await {
            Ok(answer) => {
                let sent = answer.content_range().and_then(ContentRange::parse);
                let len = sent.and_then(|sent| sent.total).and_then(|len| i64::try_from(len).ok());
                let (etag, id) = (answer.e_tag(), answer.version_id());
                Ok((len, version_of(etag, id, answer.last_modified())))
            }
            // An empty object has no first byte to tell more.
            Err(error) if status_of(&error) == Some(416) => Err(asked.failed(refused)),
            Err(error) => Err(asked.failed(error)),
        }
    }

    /// That the answer is the range and the version that were asked for.
    fn check(
        &self,
        answer: &GetObjectOutput,
        version: &Version,
        pin: &Pin<'_>,
        range: &Range<u64>,
        len: Option<u64>,
    ) -> Result<(), SourceError> {
        let found = match pin {
            Pin::Tag { etag, .. } => (answer.e_tag() != Some(*etag)).then(|| answer.e_tag()),
            Pin::Modified(seconds) => {
                let found = answer.last_modified().map(|date| date.secs());
                (found != Some(*seconds)).then_some(None)
            }
        };
        if let Some(found) = found {
            return Err(SourceError::Changed {
                object: self.name.clone(),
                expected: version.to_string(),
                found: found.unwrap_or("an answer that names no version").to_owned(),
            });
        }
        let body = answer.content_length().and_then(|body| u64::try_from(body).ok());
        let Some(header) = answer.content_range() else {
            // Some servers answer so when the range is the whole object.
            if range.start == 0 && len == Some(range.end) && body == len {
                return Ok(());
            }
            return Err(SourceError::Permanent {
                object: self.name.clone(),
                reason: "the server ignores range requests: it answered without Content-Range"
                    .to_owned(),
                cause: None,
            });
        };
        let Some(sent) = ContentRange::parse(header) else {
            return Err(SourceError::Corrupt {
                object: self.name.clone(),
                range: Some(range.clone()),
                reason: format!("a partial answer with the Content-Range {header:?}"),
            });
        };
        sent.check(&self.name, range, len)?;
        let wanted = range.end - range.start;
        match body {
            Some(body) if body > wanted => {
                Err(SourceError::long_body(&self.name, range.clone(), body))
            }
            Some(body) if body < wanted => {
                Err(SourceError::short_body(&self.name, range.clone(), body))
            }
            _ => Ok(()),
        }
    }
}

fn status_of<E>(error: &SdkError<E, http::Response>) -> Option<u16> {
    error.raw_response().map(|response| response.status().as_u16())
}

/// What a version of this source pins a read to.
enum Pin<'a> {
    Tag {
        etag: &'a str,
        version_id: Option<&'a str>,
    },
    /// Seconds since 1970: for servers that send no ETag.
    Modified(i64),
}

/// Between ETag and version id in the text of a version. An ETag cannot hold a space.
const VERSION_ID: &str = " version-id ";

impl Pin<'_> {
    fn of(version: &Version) -> Option<Pin<'_>> {
        match version.strength() {
            Strength::Weak => {
                Some(Pin::Modified(version.token().strip_prefix("modified ")?.parse().ok()?))
            }
            Strength::Strong => {
                let (etag, version_id) = match version.token().split_once(VERSION_ID) {
                    Some((etag, id)) => (etag, Some(id)),
                    None => (version.token(), None),
                };
                let sendable = |text: &str| text.bytes().all(|byte| (0x21..0x7f).contains(&byte));
                let good = sendable(etag) && version_id.is_none_or(sendable) && !etag.is_empty();
                good.then_some(Pin::Tag { etag, version_id })
            }
        }
    }

    fn version_id(&self) -> Option<&str> {
        match self {
            Pin::Tag { version_id, .. } => *version_id,
            Pin::Modified(_) => None,
        }
    }
}

fn version_of(
    etag: Option<&str>,
    version_id: Option<&str>,
    modified: Option<&DateTime>,
) -> Option<Version> {
    // Objects of a bucket that once kept no versions have the version id `null`, which a later
    // object can take over.
    let version_id = version_id.filter(|id| *id != "null" && !id.is_empty());
    match (etag.filter(|etag| !etag.starts_with("W/") && !etag.is_empty()), version_id, modified) {
        (Some(etag), Some(id), _) => Some(Version::strong(format!("{etag}{VERSION_ID}{id}"))),
        (Some(etag), None, _) => Some(Version::strong(etag)),
        (None, _, Some(date)) => Some(Version::weak(format!("modified {}", date.secs()))),
        (None, _, None) => None,
    }
}

#[async_trait]
impl BlockSource for S3 {
    fn name(&self) -> &str {
        &self.name
    }

    async fn stat(&self) -> Result<ObjectStat, SourceError> {
        let asked = Asked { object: &self.name, what: "stat", range: None, version: None };
        let work = async {
            let request = self.aws.s3().await?.head_object().bucket(&self.bucket).key(&self.key);
            let request = request.set_version_id(self.options.version_id.clone());
            match request.set_request_payer(self.payer()).send().await {
                Ok(answer) => {
                    let (etag, id) = (answer.e_tag(), answer.version_id());
                    let version = version_of(etag, id, answer.last_modified());
                    Ok((answer.content_length(), version))
                }
                Err(error) if matches!(status_of(&error), Some(301 | 307 | 400 | 403 | 405)) => {
                    self.stat_by_range(&asked, error).await
                }
                Err(error) => Err(asked.failed(error)),
            }
        };
        let (len, version) = self.in_time(&asked, work).await?;
        let len = len.and_then(|len| u64::try_from(len).ok());
        let (Some(len), Some(version)) = (len, version) else {
            return Err(SourceError::Permanent {
                object: self.name.clone(),
                reason: "the server tells no length, or neither ETag nor date".to_owned(),
                cause: None,
            });
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Some((version.clone(), len));
        Ok(ObjectStat::new(len, version))
    }

    async fn read(&self, version: &Version, range: Range<u64>) -> Result<ByteStream, SourceError> {
        let len = self.known_len(version);
        match len {
            Some(len) => check_range(&self.name, &range, len)?,
            None => check_shape(&self.name, &range)?,
        }
        let Some(pin) = Pin::of(version) else {
            return Err(SourceError::Changed {
                object: self.name.clone(),
                expected: version.to_string(),
                found: "an object to which no such version can belong".to_owned(),
            });
        };
        if let (Some(fixed), Some(id)) = (&self.options.version_id, pin.version_id())
            && fixed != id
        {
            return Err(SourceError::Changed {
                object: self.name.clone(),
                expected: version.to_string(),
                found: format!("the version id {fixed} that was asked for"),
            });
        }
        let asked = Asked {
            object: &self.name,
            what: "read",
            range: Some(range.clone()),
            version: Some(version),
        };
        let answer = self.in_time(&asked, self.get_pinned(&asked, &pin, &range)).await?;
        self.check(&answer, version, &pin, &range, len)?;
        let state = Some((answer.body, self.name.clone(), range.clone()));
        let chunks = stream::unfold(state, |state| async move {
            let (mut body, object, range) = state?;
            match body.next().await? {
                Ok(chunk) => Some((Ok(chunk), Some((body, object, range)))),
                Err(error) => Some((Err(failure::broken_body(&object, range, error)), None)),
            }
        });
        Ok(Body::stream(&self.name, range, self.options.stall, Box::pin(chunks)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_pin_what_the_server_told() {
        let date = DateTime::from_secs(1_700_000_000);
        let tag = Some("\"abc-2\"");
        let cases = [
            ("tag", tag, None, Some("\"abc-2\""), Strength::Strong),
            ("tag and id", tag, Some("v1"), Some("\"abc-2\" version-id v1"), Strength::Strong),
            ("tag and no id", tag, Some("null"), Some("\"abc-2\""), Strength::Strong),
            ("weak tag", Some("W/\"a\""), None, Some("modified 1700000000"), Strength::Weak),
            ("no tag", None, None, Some("modified 1700000000"), Strength::Weak),
        ];
        for (what, etag, id, token, strength) in cases {
            let version = version_of(etag, id, Some(&date)).expect(what);
            assert_eq!(Some(version.token()), token, "{what}");
            assert_eq!(version.strength(), strength, "{what}");
            let pin = Pin::of(&version).expect(what);
            assert_eq!(pin.version_id(), id.filter(|id| *id != "null"), "{what}");
        }
        assert_eq!(version_of(None, Some("v1"), None), None);
        for foreign in ["", "two words", "line\nbreak"] {
            assert!(Pin::of(&Version::strong(foreign)).is_none(), "{foreign:?}");
        }
        assert!(Pin::of(&Version::weak("yesterday")).is_none());
    }
}
