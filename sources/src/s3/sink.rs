//! An object of S3, replaced by one with other bytes in places.
//!
//! ```text
//!   object |== part ==|== part ==|== part ==|== part ==|== part ==|=|
//!   writes      x                               x
//!              upload   |------- copy -------|  upload  |-- copy ---|     UploadPart, UploadPartCopy
//!                 \ what is between the writes: one GET for a part, of the old version
//!   commit: CompleteMultipartUpload, If-Match: the old version's ETag
//! ```
//!
//! Runs of parts without a write are copied by the service, up to 5 GiB in one request; no byte of theirs
//! travels. An object of one part is put with one request, with the same condition. Every request names the
//! old version, so an object that somebody else replaces meanwhile is found out as soon as it is touched, and
//! at the latest by the last one.
//!
//! **The answer is lost.** The new object bears a mark in its metadata, which no other does. Who finds it at
//! the key after a request without an answer has been answered.
//!
//! **What is kept.** Type, encoding, language, disposition, cache control and metadata of the old object. Its
//! storage class, encryption, tags and access rights are those that the bucket gives to new objects.
//!
//! A process that is killed leaves the parts that it sent, as [`upload`](super::upload) says.

use std::{ops::Range, sync::Arc, time::Duration};

use async_trait::async_trait;
use aws_sdk_s3::{
    error::ProvideErrorMetadata,
    operation::head_object::HeadObjectOutput,
    primitives::ByteStream,
    types::{CompletedMultipartUpload, CompletedPart},
};
use bytes::Bytes;
use futures::TryStreamExt;
use pager::{BlockSink, BlockSource, SinkError, SourceError, Version, Writing};
use tokio::task::JoinSet;

use super::{
    Pin, S3, S3Options,
    failure::Asked,
    status_of,
    upload::{ABORT_MAX, MARK, PART_BYTES_MAX, RATE_MIN_BYTES_PER_S, mark, part_bytes_for},
    version_of,
};
use crate::{
    aws::Aws,
    chance::Chance,
    encoding::path_text,
    retry::{Effort, Retry, RetryPolicy},
};

/// How an object is replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3SinkOptions {
    /// Bytes of a part, from 5 MiB to 5 GiB; more where 10,000 parts would not do. An object that is not
    /// longer is put whole. Default: 8 MiB.
    pub part_bytes: u64,
    /// Parts that are sent or copied at once, at least 1. Default: 4. Memory for one more is needed, outside
    /// of any pager's budget.
    pub parts_at_once: usize,
    /// How requests are tried again.
    pub retry: RetryPolicy,
}

/// How long a completion may take at least.
const COMPLETION_MIN: Duration = Duration::from_secs(60);

impl Default for S3SinkOptions {
    fn default() -> S3SinkOptions {
        let retry = RetryPolicy::default();
        S3SinkOptions { part_bytes: 8 << 20, parts_at_once: 4, retry }
    }
}

/// Replaces an object in a bucket: a [`BlockSink`], whose versions are those of [`S3`].
///
/// The service has to heed `If-Match` where objects are written, as Amazon's does. One that ignores it when an
/// upload is completed is asked for the object's version a moment before, and what comes in that moment is
/// overlooked.
///
/// The new version keeps type, encoding, language, disposition, cache control and metadata of the old one. Its
/// storage class and encryption are the bucket's defaults; tags, access rights, `Expires`, redirects and locks
/// are not carried over.
#[derive(Clone)]
pub struct S3Sink(Arc<Place>);

struct Place {
    name: String,
    bucket: String,
    key: String,
    aws: Aws,
    options: S3SinkOptions,
    chance: Arc<Chance>,
    /// For what lies between writes.
    old: Retry<S3>,
}

impl S3Sink {
    /// A sink for the object `key` of `bucket`. Nothing is sent before a new version begins.
    ///
    /// # Errors
    /// When bucket or key are empty.
    pub fn new(
        bucket: impl Into<String>,
        key: impl Into<String>,
        aws: Aws,
        options: S3SinkOptions,
    ) -> Result<S3Sink, SourceError> {
        let (bucket, key) = (bucket.into(), key.into());
        let source = S3::new(&*bucket, &*key, aws.clone(), S3Options::default())?;
        let name = source.name().to_owned();
        let old = Retry::with(source, options.retry.clone());
        let seed = options.retry.seed.unwrap_or_else(Chance::any_seed);
        let chance = Arc::new(Chance::seeded(seed));
        Ok(S3Sink(Arc::new(Place { name, bucket, key, aws, options, chance, old })))
    }
}

#[async_trait]
impl BlockSink for S3Sink {
    fn name(&self) -> &str {
        &self.0.name
    }

    async fn begin(&self, base: &Version, len: u64) -> Result<Box<dyn Writing>, SinkError> {
        let place = self.0.clone();
        let etag = match Pin::of(base) {
            Some(Pin::Tag { etag, .. }) => etag.to_owned(),
            _ => return Err(place.conflict(base, "an object to which no such version can belong")),
        };
        let head = place.head().await.map_err(|error| place.gone(base, error))?;
        if head.e_tag() != Some(etag.as_str()) {
            return Err(place.conflict(base, head.e_tag().unwrap_or("an object without an ETag")));
        }
        let found = head.content_length().and_then(|len| u64::try_from(len).ok());
        let Some(part_bytes) = part_bytes_for(place.options.part_bytes, len) else {
            return Err(place.permanent(format!("{len} bytes are more than an object can have")));
        };
        if found != Some(len) {
            return Err(place.permanent(format!("it has {found:?} bytes, not {len}")));
        }
        Ok(Box::new(Replacing {
            base: base.clone(),
            etag,
            len,
            part_bytes,
            mark: mark(),
            old: head,
            part: None,
            upto: 0,
            upload: None,
            parts: 0,
            under_way: JoinSet::new(),
            sent: Vec::new(),
            whole: None,
            asked: false,
            place,
        }))
    }
}

impl Place {
    fn asked(&self, what: &'static str) -> Asked<'_> {
        Asked { object: &self.name, what, range: None, version: None }
    }

    fn conflict(&self, base: &Version, found: &str) -> SinkError {
        SinkError::Conflict {
            object: self.name.clone(),
            expected: base.to_string(),
            found: found.to_owned(),
        }
    }

    /// The same, after an attempt that was not answered: it may have been the one that was replaced.
    fn overtaken(&self, base: &Version, found: &str) -> SinkError {
        SinkError::Overtaken {
            object: self.name.clone(),
            expected: base.to_string(),
            found: found.to_owned(),
        }
    }

    fn permanent(&self, reason: String) -> SinkError {
        SourceError::Permanent { object: self.name.clone(), reason, cause: None }.into()
    }

    /// What was asked of the old version.
    fn gone(&self, base: &Version, error: SourceError) -> SinkError {
        match error {
            SourceError::Changed { found, .. } => self.conflict(base, &found),
            SourceError::NotFound { .. } => self.conflict(base, "no object"),
            other => other.into(),
        }
    }

    /// Tries a request, for which so many bytes move, until it succeeds or there is no use.
    async fn again<T, F>(
        &self,
        what: &'static str,
        bytes: u64,
        attempt: impl Fn() -> F,
    ) -> Result<T, SourceError>
    where
        F: Future<Output = Result<T, SourceError>>,
    {
        let extra = Duration::from_secs(bytes / RATE_MIN_BYTES_PER_S);
        let mut policy = self.options.retry.clone();
        policy.deadline = policy.deadline.saturating_add(extra.saturating_mul(2));
        let mut effort = Effort::new(what, &self.name, policy, self.chance.clone());
        loop {
            effort.attempt();
            match effort.wait_for_answer(None, extra, attempt()).await.and_then(|a| a) {
                Ok(answer) => return Ok(answer),
                Err(error) => effort.recover(error).await?,
            }
        }
    }

    async fn head(&self) -> Result<HeadObjectOutput, SourceError> {
        self.again("stat", 0, || async {
            let head = self.aws.s3().await?.head_object().bucket(&self.bucket).key(&self.key);
            head.send().await.map_err(|error| self.asked("stat").failed(error))
        })
        .await
    }

    async fn read(&self, base: &Version, range: Range<u64>) -> Result<Vec<u8>, SinkError> {
        let mut bytes = Vec::with_capacity((range.end - range.start) as usize);
        let gone = |error| self.gone(base, error);
        let mut body = self.old.read(base, range).await.map_err(gone)?;
        while let Some(chunk) = body.try_next().await.map_err(gone)? {
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    async fn send_part(
        &self,
        id: &str,
        number: i32,
        bytes: Bytes,
    ) -> Result<CompletedPart, SourceError> {
        let asked = self.asked("upload a part");
        self.again("upload", bytes.len() as u64, || async {
            let part = self.aws.s3().await?.upload_part().bucket(&self.bucket).key(&self.key);
            let part = part.upload_id(id).part_number(number);
            let sent = part.body(ByteStream::from(bytes.clone())).send().await;
            let answer = sent.map_err(|error| asked.failed(error))?;
            let Some(tag) = answer.e_tag() else {
                return Err(asked.transient("an answer without an ETag".to_owned(), None));
            };
            Ok(CompletedPart::builder().part_number(number).e_tag(tag).build())
        })
        .await
    }

    /// Has the service copy `range` of the version that `etag` names.
    async fn copy_part(
        &self,
        id: &str,
        number: i32,
        base: &Version,
        etag: &str,
        range: Range<u64>,
    ) -> Result<CompletedPart, SourceError> {
        let asked = Asked {
            object: &self.name,
            what: "copy a part",
            range: Some(range.clone()),
            version: Some(base),
        };
        // Some 100 MB/s within the service; a request that moves 5 GiB gets the time.
        self.again("copy", (range.end - range.start) / 64, || async {
            let copy = self.aws.s3().await?.upload_part_copy().bucket(&self.bucket).key(&self.key);
            let copy = copy.upload_id(id).part_number(number);
            let copy = copy.copy_source(copy_source(&self.bucket, &self.key));
            let copy = copy.copy_source_if_match(etag);
            let copy = copy.copy_source_range(format!("bytes={}-{}", range.start, range.end - 1));
            let answer = copy.send().await.map_err(|error| asked.failed(error))?;
            let Some(tag) = answer.copy_part_result().and_then(|result| result.e_tag()) else {
                return Err(asked.transient("an answer without an ETag".to_owned(), None));
            };
            Ok(CompletedPart::builder().part_number(number).e_tag(tag).build())
        })
        .await
    }

    async fn abort(&self, id: &str) {
        let asked = self.asked("abort an upload");
        let work = self.again("upload", 0, || async {
            let client = self.aws.s3().await?;
            let abort = client.abort_multipart_upload().bucket(&self.bucket).key(&self.key);
            match abort.upload_id(id).send().await {
                Ok(_) => Ok(()),
                Err(error) if status_of(&error) == Some(404) => Ok(()),
                Err(error) => Err(asked.failed(error)),
            }
        });
        if !matches!(tokio::time::timeout(ABORT_MAX, work).await, Ok(Ok(()))) {
            tracing::warn!(object = %self.name, upload = %id, "an upload could not be aborted");
        }
    }
}

/// The part that writes are in.
struct Part {
    range: Range<u64>,
    writes: Vec<(u64, Bytes)>,
}

impl Part {
    /// The hull of the bytes that no write has. `None` if each byte is written.
    fn gaps(&self) -> Option<Range<u64>> {
        let mut at = self.range.start;
        let mut hull: Option<Range<u64>> = None;
        let ends = self.writes.iter().map(|(start, bytes)| (*start, start + bytes.len() as u64));
        for (start, end) in ends.chain([(self.range.end, self.range.end)]) {
            if at < start {
                hull = Some(hull.map_or(at, |hull| hull.start)..start);
            }
            at = end;
        }
        hull
    }
}

/// A new version on its way.
struct Replacing {
    place: Arc<Place>,
    base: Version,
    etag: String,
    len: u64,
    part_bytes: u64,
    mark: String,
    /// The old object's headers.
    old: HeadObjectOutput,
    part: Option<Part>,
    /// Everything before this is in a part that was sent, or is on its way.
    upto: u64,
    upload: Option<Arc<str>>,
    parts: i32,
    under_way: JoinSet<Result<CompletedPart, SourceError>>,
    sent: Vec<CompletedPart>,
    /// An object of one part.
    whole: Option<Bytes>,
    /// The last request was sent, and its answer may have been lost.
    asked: bool,
}

#[async_trait]
impl Writing for Replacing {
    async fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        let end = offset.checked_add(bytes.len() as u64).filter(|&end| end <= self.len);
        if end.is_none() {
            return Err(SourceError::bad_range(&self.place.name, offset..u64::MAX, self.len).into());
        }
        let (mut offset, mut bytes) = (offset, bytes);
        while !bytes.is_empty() {
            let first = offset / self.part_bytes * self.part_bytes;
            let range = first..(first + self.part_bytes).min(self.len);
            let (now, later) = bytes.split_at(bytes.len().min((range.end - offset) as usize));
            if self.part.as_ref().is_some_and(|part| part.range != range) {
                self.finish_part().await?;
            }
            let part = self.part.get_or_insert_with(|| Part { range, writes: Vec::new() });
            part.writes.push((offset, Bytes::copy_from_slice(now)));
            offset += now.len() as u64;
            bytes = later;
        }
        Ok(())
    }

    async fn commit(&mut self) -> Result<Version, SinkError> {
        if !self.asked {
            self.finish_part().await?;
            if self.len > self.part_bytes {
                self.copy_to(self.len).await?;
                self.wait(0).await?;
                if self.sent.len() != self.parts as usize {
                    // Whoever asks again after a part failed must not have an object without it.
                    return Err(self.place.permanent("a part of it was lost before".to_owned()));
                }
                self.sent.sort_unstable_by_key(CompletedPart::part_number);
                // Not every service heeds the condition of what follows.
                let head = self.place.head().await;
                let head = head.map_err(|error| self.place.gone(&self.base, error))?;
                if head.e_tag() != Some(self.etag.as_str()) {
                    let found = head.e_tag().unwrap_or("an object without an ETag");
                    return Err(self.place.conflict(&self.base, found));
                }
            } else if self.whole.is_none() {
                self.whole = Some(self.part_body(0..self.len, Vec::new()).await?);
            }
        }
        self.replace().await
    }

    async fn abort(mut self: Box<Self>) {
        self.under_way.shutdown().await;
        if let Some(id) = self.upload.take() {
            self.place.abort(&id).await;
        }
    }
}

impl Drop for Replacing {
    fn drop(&mut self) {
        let Some(id) = self.upload.take() else { return };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (place, mut parts) = (self.place.clone(), std::mem::take(&mut self.under_way));
            runtime.spawn(async move {
                parts.shutdown().await;
                place.abort(&id).await;
            });
        }
    }
}

impl Replacing {
    /// The bytes of `range`: what was written, and what the old version has in between.
    async fn part_body(
        &self,
        range: Range<u64>,
        writes: Vec<(u64, Bytes)>,
    ) -> Result<Bytes, SinkError> {
        let part = Part { range, writes };
        let start = part.range.start;
        let mut body = vec![0; (part.range.end - start) as usize];
        if let Some(gaps) = part.gaps() {
            let old = self.place.read(&self.base, gaps.clone()).await?;
            body[(gaps.start - start) as usize..(gaps.end - start) as usize].copy_from_slice(&old);
        }
        for (at, bytes) in &part.writes {
            body[(at - start) as usize..][..bytes.len()].copy_from_slice(bytes);
        }
        Ok(body.into())
    }

    /// Sends the part that writes are in, and has those before it copied.
    async fn finish_part(&mut self) -> Result<(), SinkError> {
        let Some(Part { range, writes }) = &self.part else { return Ok(()) };
        let (range, writes) = (range.clone(), writes.clone());
        if self.len > self.part_bytes {
            self.copy_to(range.start).await?;
        }
        let body = self.part_body(range.clone(), writes).await?;
        if self.len <= self.part_bytes {
            self.whole = Some(body);
        } else {
            let (id, number) = self.next_part().await?;
            let place = self.place.clone();
            self.under_way.spawn(async move { place.send_part(&id, number, body).await });
            self.upto = range.end;
        }
        self.part = None;
        Ok(())
    }

    /// Has the service copy what lies between the last part and `end`.
    async fn copy_to(&mut self, end: u64) -> Result<(), SinkError> {
        while self.upto < end {
            let most = PART_BYTES_MAX / self.part_bytes * self.part_bytes;
            let range = self.upto..end.min(self.upto + most);
            let (id, number) = self.next_part().await?;
            self.upto = range.end;
            let (place, base, etag) = (self.place.clone(), self.base.clone(), self.etag.clone());
            self.under_way
                .spawn(async move { place.copy_part(&id, number, &base, &etag, range).await });
        }
        Ok(())
    }

    /// A number for another part, when there is room for one on its way.
    async fn next_part(&mut self) -> Result<(Arc<str>, i32), SinkError> {
        let id = match &self.upload {
            Some(id) => id.clone(),
            None => {
                let id = self.begin_upload().await?;
                self.upload = Some(id.clone());
                id
            }
        };
        self.wait(self.place.options.parts_at_once.max(1) - 1).await?;
        self.parts += 1;
        Ok((id, self.parts))
    }

    /// Waits until at most so many parts are under way.
    async fn wait(&mut self, most: usize) -> Result<(), SinkError> {
        while self.under_way.len() > most {
            match self.under_way.join_next().await {
                Some(Ok(Ok(part))) => self.sent.push(part),
                Some(Ok(Err(error))) => return Err(self.lost_part(error)),
                Some(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
                None => break,
            }
        }
        Ok(())
    }

    fn lost_part(&self, error: SourceError) -> SinkError {
        match error {
            // The old object, of a copy.
            SourceError::Changed { found, .. } => self.place.conflict(&self.base, &found),
            other => other.into(),
        }
    }

    async fn begin_upload(&self) -> Result<Arc<str>, SinkError> {
        let (place, old) = (&self.place, &self.old);
        let asked = place.asked("begin an upload");
        let begun = place.again("upload", 0, || async {
            let client = place.aws.s3().await?;
            let create = client.create_multipart_upload().bucket(&place.bucket).key(&place.key);
            let create = create
                .set_content_type(old.content_type().map(str::to_owned))
                .set_content_encoding(old.content_encoding().map(str::to_owned))
                .set_content_language(old.content_language().map(str::to_owned))
                .set_content_disposition(old.content_disposition().map(str::to_owned))
                .set_cache_control(old.cache_control().map(str::to_owned))
                .set_metadata(old.metadata().cloned())
                .metadata(MARK, &self.mark);
            let created = create.send().await.map_err(|error| asked.failed(error))?;
            let id = created.upload_id().filter(|id| !id.is_empty());
            id.map(Arc::from)
                .ok_or_else(|| asked.transient("an answer without an upload id".to_owned(), None))
        });
        Ok(begun.await?)
    }

    /// The last request, again and again until it is known what came of it.
    async fn replace(&mut self) -> Result<Version, SinkError> {
        let (place, base) = (self.place.clone(), self.base.clone());
        let extra = match &self.whole {
            Some(whole) => Duration::from_secs(whole.len() as u64 / RATE_MIN_BYTES_PER_S),
            // To put parts together takes S3 up to some minutes.
            None => COMPLETION_MIN + Duration::from_secs(self.sent.len() as u64 / 20),
        };
        let mut policy = place.options.retry.clone();
        policy.deadline = policy.deadline.saturating_add(extra.saturating_mul(2));
        let mut effort = Effort::new("replace", &place.name, policy, place.chance.clone());
        loop {
            effort.attempt();
            let before = std::mem::replace(&mut self.asked, true);
            let attempt = async {
                match &self.whole {
                    Some(whole) => self.put(whole.clone()).await,
                    None => self.complete().await,
                }
            };
            let answer = effort.wait_for_answer(None, extra, attempt).await;
            let refused = match answer {
                Ok(Ok(Answer::Done(version))) => {
                    self.upload = None;
                    return Ok(version);
                }
                // Somebody else's, or an earlier attempt of ours: the object says which.
                Ok(Ok(Answer::Refused { why, is_gone })) => (why, is_gone),
                Ok(Err(error)) | Err(error) if error.is_retryable() => {
                    match effort.recover(error).await {
                        Ok(()) => continue,
                        Err(error) => return self.find_out(error).await,
                    }
                }
                Ok(Err(error)) | Err(error) if before => return self.find_out(error).await,
                Ok(Err(error)) | Err(error) => {
                    self.asked = false;
                    return Err(error.into());
                }
            };
            // Who looks after a lost answer sees who came last, not whether we came before.
            let lost = |base: &Version, found: &str| match before {
                true => place.overtaken(base, found),
                false => place.conflict(base, found),
            };
            let head = match place.head().await {
                Ok(head) => head,
                Err(SourceError::NotFound { .. }) => {
                    return Err(lost(&base, "no object"));
                }
                Err(error) => return Err(self.unsettled(error)),
            };
            if let Some(version) = self.ours(&head) {
                self.upload = None;
                return Ok(version);
            }
            if head.e_tag() != Some(self.etag.as_str()) {
                let found = head.e_tag().unwrap_or("an object without an ETag");
                return Err(lost(&base, found));
            }
            // It is as it was. An attempt from before may be under way still, unless its upload is gone.
            let (why, is_gone) = refused;
            if before && !is_gone {
                return Err(self.unsettled(why));
            }
            self.asked = false;
            return Err(why.into());
        }
    }

    /// The version of an object that bears our mark.
    fn ours(&self, head: &HeadObjectOutput) -> Option<Version> {
        let mark = head.metadata().and_then(|metadata| metadata.get(MARK));
        if mark != Some(&self.mark) {
            return None;
        }
        version_of(head.e_tag(), head.version_id(), head.last_modified())
    }

    /// A request may have been heard, and `error` is all that was answered.
    async fn find_out(&mut self, error: SourceError) -> Result<Version, SinkError> {
        match self.place.head().await {
            Ok(head) => match self.ours(&head) {
                Some(version) => {
                    self.upload = None;
                    Ok(version)
                }
                // What is there is somebody else's. Our condition cannot hold any more; it may have.
                None if head.e_tag() != Some(self.etag.as_str()) => {
                    let found = head.e_tag().unwrap_or("an object without an ETag");
                    Err(self.place.overtaken(&self.base, found))
                }
                // It may still be on its way.
                None => Err(self.unsettled(error)),
            },
            Err(_) => Err(self.unsettled(error)),
        }
    }

    fn unsettled(&self, error: SourceError) -> SinkError {
        SinkError::Unsettled {
            object: self.place.name.clone(),
            reason: error.to_string(),
            cause: Some(Arc::new(error)),
        }
    }

    async fn put(&self, bytes: Bytes) -> Result<Answer, SourceError> {
        let (place, old) = (&self.place, &self.old);
        let asked = place.asked("put");
        let put = place.aws.s3().await?.put_object().bucket(&place.bucket).key(&place.key);
        let put = put
            .if_match(&self.etag)
            .set_content_type(old.content_type().map(str::to_owned))
            .set_content_encoding(old.content_encoding().map(str::to_owned))
            .set_content_language(old.content_language().map(str::to_owned))
            .set_content_disposition(old.content_disposition().map(str::to_owned))
            .set_cache_control(old.cache_control().map(str::to_owned))
            .set_metadata(old.metadata().cloned())
            .metadata(MARK, &self.mark)
            .body(ByteStream::from(bytes));
        match put.send().await {
            Ok(answer) => done(&asked, answer.e_tag(), answer.version_id()),
            Err(error) => match refused_status(error.code(), status_of(&error)) {
                Some(status @ (404 | 412)) => {
                    let why = format!("the object was refused ({status}); flush again");
                    Ok(Answer::Refused { why: asked.transient(why, None), is_gone: false })
                }
                // Two at once, S3 says, of which one may try again: ours still wants its old version.
                Some(409) => Err(asked.transient("another write at once".to_owned(), None)),
                _ => Err(asked.failed(error)),
            },
        }
    }

    async fn complete(&self) -> Result<Answer, SourceError> {
        let place = &self.place;
        let asked = place.asked("complete an upload");
        let Some(id) = self.upload.as_deref() else {
            return Err(asked.transient("the upload is not there any more".to_owned(), None));
        };
        let parts = CompletedMultipartUpload::builder().set_parts(Some(self.sent.clone())).build();
        let client = place.aws.s3().await?;
        let complete = client.complete_multipart_upload().bucket(&place.bucket).key(&place.key);
        let complete = complete.upload_id(id).multipart_upload(parts).if_match(&self.etag);
        match complete.send().await {
            Ok(answer) => done(&asked, answer.e_tag(), answer.version_id()),
            Err(error) => match refused_status(error.code(), status_of(&error)) {
                // The upload is gone when an earlier attempt completed it; at 409 S3 wants another one.
                Some(status @ (404 | 409 | 412)) => {
                    let why = format!("the upload was refused ({status}); flush again");
                    let is_gone = status == 404;
                    Ok(Answer::Refused { why: asked.transient(why, None), is_gone })
                }
                _ => Err(asked.failed(error)),
            },
        }
    }
}

/// How a request names the object that it copies from.
fn copy_source(bucket: &str, key: &str) -> String {
    // An access point is named by all of its ARN.
    let between = if bucket.starts_with("arn:") { "/object/" } else { "/" };
    format!("{bucket}{between}{}", path_text(key))
}

/// What the last request was told.
enum Answer {
    Done(Version),
    /// Its condition does not hold, or not any more; or there is nothing left that could be completed.
    Refused {
        why: SourceError,
        is_gone: bool,
    },
}

/// The status that an error stands for: S3 may say in the body of a 200 why it did not complete.
fn refused_status(code: Option<&str>, status: Option<u16>) -> Option<u16> {
    match code {
        Some("PreconditionFailed") => Some(412),
        Some("NoSuchUpload") => Some(404),
        Some("ConditionalRequestConflict" | "OperationAborted") => Some(409),
        _ => status,
    }
}

fn done(asked: &Asked<'_>, etag: Option<&str>, id: Option<&str>) -> Result<Answer, SourceError> {
    match version_of(etag, id, None) {
        Some(version) => Ok(Answer::Done(version)),
        // The next attempt finds our mark.
        None => Err(asked.transient("an answer without an ETag".to_owned(), None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_in_the_body_of_a_200_counts() {
        let cases = [
            (Some("PreconditionFailed"), Some(200), Some(412)),
            (Some("NoSuchUpload"), Some(200), Some(404)),
            (Some("ConditionalRequestConflict"), Some(200), Some(409)),
            (Some("InternalError"), Some(200), Some(200)),
            (None, Some(412), Some(412)),
            (None, None, None),
        ];
        for (code, status, expected) in cases {
            assert_eq!(refused_status(code, status), expected, "{code:?}");
        }
    }

    #[test]
    fn what_no_write_has_is_one_range() {
        let part = |writes: &[(u64, usize)]| {
            let bytes = |len: usize| Bytes::from(vec![1; len]);
            let writes = writes.iter().map(|&(start, len)| (start, bytes(len))).collect();
            Part { range: 10..20, writes }
        };
        // Where each write begins, and how long it is.
        type Case<'a> = (&'a [(u64, usize)], Option<Range<u64>>);
        let cases: [Case<'_>; 6] = [
            (&[], Some(10..20)),
            (&[(10, 10)], None),
            (&[(10, 5), (15, 5)], None),
            (&[(10, 2)], Some(12..20)),
            (&[(12, 3)], Some(10..20)),
            (&[(10, 2), (14, 1), (17, 3)], Some(12..17)),
        ];
        for (writes, expected) in cases {
            assert_eq!(part(writes).gaps(), expected, "{writes:?}");
        }
    }
}
