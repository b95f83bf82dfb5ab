//! S3's operations over the store: what a request means, and what it is told.

use std::time::SystemTime;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use s3s::{
    Body, S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result, TrailingHeaders,
    access::{S3Access, S3AccessContext},
    checksum::ChecksumHasher,
    crypto::{Checksum as _, Crc32, Crc32c, Crc64Nvme, Sha1, Sha256},
    dto::*,
    s3_error,
};

use crate::store::{Condition, Meta, Object as Stored, Query, Refusal, Store};

/// S3's own bound on one PUT, and on one part.
const PUT_BYTES_MAX: i64 = 5 << 30;
/// S3's own bound on one page of a listing.
const LIST_MAX: i32 = 1_000;
/// What S3 says of objects that were stored without a type.
const DEFAULT_CONTENT_TYPE: &str = "binary/octet-stream";

pub(crate) struct Service {
    pub(crate) store: Store,
}

/// Signed requests may do anything; unsigned ones may read, where the endpoint is told so.
pub(crate) struct Access {
    pub(crate) anonymous_reads: bool,
}

#[async_trait::async_trait]
impl S3Access for Access {
    async fn check(&self, cx: &mut S3AccessContext<'_>) -> S3Result<()> {
        let reads = matches!(cx.s3_op().name(), "GetObject" | "HeadObject" | "ListObjectsV2");
        if cx.credentials().is_some() || (self.anonymous_reads && reads) {
            return Ok(());
        }
        Err(s3_error!(AccessDenied, "this endpoint wants signed requests"))
    }
}

#[async_trait::async_trait]
impl S3 for Service {
    async fn create_bucket(
        &self,
        req: S3Request<CreateBucketInput>,
    ) -> S3Result<S3Response<CreateBucketOutput>> {
        self.store.create_bucket(&req.input.bucket).map_err(refuse)?;
        let location = Some(format!("/{}", req.input.bucket));
        Ok(S3Response::new(CreateBucketOutput { location }))
    }

    async fn head_bucket(
        &self,
        req: S3Request<HeadBucketInput>,
    ) -> S3Result<S3Response<HeadBucketOutput>> {
        self.store.check_bucket(&req.input.bucket).map_err(refuse)?;
        Ok(S3Response::new(HeadBucketOutput::default()))
    }

    async fn delete_bucket(
        &self,
        req: S3Request<DeleteBucketInput>,
    ) -> S3Result<S3Response<DeleteBucketOutput>> {
        self.store.delete_bucket(&req.input.bucket).map_err(refuse)?;
        Ok(S3Response::new(DeleteBucketOutput::default()))
    }

    async fn list_buckets(
        &self,
        _: S3Request<ListBucketsInput>,
    ) -> S3Result<S3Response<ListBucketsOutput>> {
        let named = |name| Bucket { name: Some(name), ..Default::default() };
        let buckets = Some(self.store.buckets().into_iter().map(named).collect());
        Ok(S3Response::new(ListBucketsOutput { buckets, ..Default::default() }))
    }

    async fn get_object(
        &self,
        req: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        let input = req.input;
        check_version(input.version_id.as_deref())?;
        let object = self.store.get(&input.bucket, &input.key).map_err(refuse)?;
        check_read(
            &object,
            input.if_match.as_ref(),
            input.if_none_match.as_ref(),
            input.if_unmodified_since.as_ref(),
            input.if_modified_since.as_ref(),
        )?;
        let (bytes, content_range) = select(&object, input.range)?;
        Ok(S3Response::new(GetObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            content_length: Some(bytes.len() as i64),
            content_range,
            content_type: Some(content_type(&object)),
            e_tag: Some(ETag::Strong(object.etag.clone())),
            last_modified: Some(object.modified.into()),
            metadata: metadata(&object),
            body: Some(StreamingBlob::from(Body::from(bytes))),
            ..Default::default()
        }))
    }

    async fn head_object(
        &self,
        req: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        let input = req.input;
        check_version(input.version_id.as_deref())?;
        let object = self.store.get(&input.bucket, &input.key).map_err(refuse)?;
        check_read(
            &object,
            input.if_match.as_ref(),
            input.if_none_match.as_ref(),
            input.if_unmodified_since.as_ref(),
            input.if_modified_since.as_ref(),
        )?;
        let (bytes, content_range) = select(&object, input.range)?;
        Ok(S3Response::new(HeadObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            content_length: Some(bytes.len() as i64),
            content_range,
            content_type: Some(content_type(&object)),
            e_tag: Some(ETag::Strong(object.etag.clone())),
            last_modified: Some(object.modified.into()),
            metadata: metadata(&object),
            ..Default::default()
        }))
    }

    async fn put_object(
        &self,
        req: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        let mut input = req.input;
        let condition = condition(input.if_match.take(), input.if_none_match.take())?;
        let claimed = Claimed {
            crc32: input.checksum_crc32.take(),
            crc32c: input.checksum_crc32c.take(),
            crc64nvme: input.checksum_crc64nvme.take(),
            sha1: input.checksum_sha1.take(),
            sha256: input.checksum_sha256.take(),
        };
        let bytes = collect(input.body.take(), input.content_length).await?;
        claimed.check(&bytes, req.trailing_headers.as_ref())?;
        let meta = meta(input.content_type.take(), input.metadata.take());
        let object = self.store.put(&input.bucket, &input.key, bytes, meta, &condition);
        let e_tag = Some(ETag::Strong(object.map_err(refuse)?.etag.clone()));
        Ok(S3Response::new(PutObjectOutput { e_tag, ..Default::default() }))
    }

    async fn delete_object(
        &self,
        req: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        let condition = condition(req.input.if_match, None)?;
        self.store.delete(&req.input.bucket, &req.input.key, &condition).map_err(refuse)?;
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn list_objects_v2(
        &self,
        req: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = req.input;
        let max_keys = input.max_keys.unwrap_or(LIST_MAX).clamp(0, LIST_MAX);
        let after = input.continuation_token.clone().or_else(|| input.start_after.clone());
        let query = Query {
            prefix: input.prefix.clone().unwrap_or_default(),
            after: after.unwrap_or_default(),
            delimiter: input.delimiter.clone().filter(|delimiter| !delimiter.is_empty()),
            limit: max_keys as usize,
        };
        let listing = self.store.list(&input.bucket, &query).map_err(refuse)?;
        let contents: Vec<_> = listing
            .objects
            .into_iter()
            .map(|(key, object)| Object {
                key: Some(key),
                e_tag: Some(ETag::Strong(object.etag.clone())),
                size: Some(object.bytes.len() as i64),
                last_modified: Some(object.modified.into()),
                ..Default::default()
            })
            .collect();
        let prefixes: Vec<_> = listing
            .prefixes
            .into_iter()
            .map(|prefix| CommonPrefix { prefix: Some(prefix) })
            .collect();
        Ok(S3Response::new(ListObjectsV2Output {
            key_count: Some((contents.len() + prefixes.len()) as i32),
            is_truncated: Some(listing.next.is_some()),
            next_continuation_token: listing.next,
            contents: Some(contents),
            common_prefixes: Some(prefixes),
            name: Some(input.bucket),
            prefix: input.prefix,
            delimiter: input.delimiter,
            start_after: input.start_after,
            continuation_token: input.continuation_token,
            max_keys: Some(max_keys),
            ..Default::default()
        }))
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let input = req.input;
        let meta = meta(input.content_type, input.metadata);
        let id = self.store.begin_upload(&input.bucket, &input.key, meta).map_err(refuse)?;
        Ok(S3Response::new(CreateMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(id),
            ..Default::default()
        }))
    }

    async fn upload_part(
        &self,
        req: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        let mut input = req.input;
        let claimed = Claimed {
            crc32: input.checksum_crc32.take(),
            crc32c: input.checksum_crc32c.take(),
            crc64nvme: input.checksum_crc64nvme.take(),
            sha1: input.checksum_sha1.take(),
            sha256: input.checksum_sha256.take(),
        };
        let bytes = collect(input.body.take(), input.content_length).await?;
        claimed.check(&bytes, req.trailing_headers.as_ref())?;
        let upload = (input.bucket.as_str(), input.key.as_str(), input.upload_id.as_str());
        let tag = self.store.put_part(upload, input.part_number, bytes).map_err(refuse)?;
        let e_tag = Some(ETag::Strong(tag));
        Ok(S3Response::new(UploadPartOutput { e_tag, ..Default::default() }))
    }

    async fn upload_part_copy(
        &self,
        req: S3Request<UploadPartCopyInput>,
    ) -> S3Result<S3Response<UploadPartCopyOutput>> {
        let input = req.input;
        let CopySource::Bucket { bucket, key, version_id } = &input.copy_source else {
            return Err(s3_error!(NotImplemented, "objects are copied from buckets"));
        };
        check_version(version_id.as_deref())?;
        let object = self.store.get(bucket, key).map_err(refuse)?;
        // S3 tells a copy that there is no 304 of it: every condition that fails is a 412.
        let held = check_read(
            &object,
            input.copy_source_if_match.as_ref(),
            input.copy_source_if_none_match.as_ref(),
            input.copy_source_if_unmodified_since.as_ref(),
            input.copy_source_if_modified_since.as_ref(),
        );
        held.map_err(|_| s3_error!(PreconditionFailed))?;
        let bytes = match input.copy_source_range.as_deref() {
            None => object.bytes.clone(),
            Some(range) => copied(&object, range)?,
        };
        let upload = (input.bucket.as_str(), input.key.as_str(), input.upload_id.as_str());
        let tag = self.store.put_part(upload, input.part_number, bytes).map_err(refuse)?;
        let result = CopyPartResult {
            e_tag: Some(ETag::Strong(tag)),
            last_modified: Some(SystemTime::now().into()),
            ..Default::default()
        };
        Ok(S3Response::new(UploadPartCopyOutput {
            copy_part_result: Some(result),
            ..Default::default()
        }))
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let input = req.input;
        let condition = condition(input.if_match, input.if_none_match)?;
        let named: Vec<_> = input
            .multipart_upload
            .and_then(|upload| upload.parts)
            .unwrap_or_default()
            .into_iter()
            .map(|part| (part.part_number.unwrap_or(0), part.e_tag.map(ETag::into_value)))
            .collect();
        let upload = (input.bucket.as_str(), input.key.as_str(), input.upload_id.as_str());
        let object = self.store.complete_upload(upload, &named, &condition).map_err(refuse)?;
        Ok(S3Response::new(CompleteMultipartUploadOutput {
            location: Some(format!("/{}/{}", input.bucket, input.key)),
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: Some(ETag::Strong(object.etag.clone())),
            ..Default::default()
        }))
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let input = &req.input;
        self.store.abort_upload((&input.bucket, &input.key, &input.upload_id)).map_err(refuse)?;
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }
}

/// Objects have no versions here; naming one is asking for what does not exist.
fn check_version(version_id: Option<&str>) -> S3Result<()> {
    match version_id {
        None | Some("null") => Ok(()),
        Some(_) => Err(s3_error!(NoSuchVersion)),
    }
}

/// The conditions of a read, in the order of RFC 9110, section 13.2.2.
fn check_read(
    object: &Stored,
    if_match: Option<&ETagCondition>,
    if_none_match: Option<&ETagCondition>,
    unmodified_since: Option<&Timestamp>,
    modified_since: Option<&Timestamp>,
) -> S3Result<()> {
    let matches = |condition: &ETagCondition| match condition {
        ETagCondition::Any => true,
        ETagCondition::ETag(tag) => tag.value() == object.etag,
    };
    // HTTP dates have whole seconds.
    let modified = Timestamp::from(whole_seconds(object.modified));
    match (if_match, unmodified_since) {
        (Some(condition), _) if !matches(condition) => return Err(s3_error!(PreconditionFailed)),
        (None, Some(since)) if modified > *since => return Err(s3_error!(PreconditionFailed)),
        _ => {}
    }
    match (if_none_match, modified_since) {
        (Some(condition), _) if matches(condition) => Err(not_modified(object)),
        (None, Some(since)) if modified <= *since => Err(not_modified(object)),
        _ => Ok(()),
    }
}

fn whole_seconds(time: SystemTime) -> SystemTime {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(since.as_secs())
}

fn not_modified(object: &Stored) -> S3Error {
    let mut error = s3_error!(NotModified);
    if let Ok(tag) = format!("\"{}\"", object.etag).parse() {
        let headers = [(hyper::header::ETAG, tag)].into_iter().collect();
        error.set_headers(headers);
    }
    error
}

/// The bytes that a range names, and the `Content-Range` of a partial answer.
fn select(object: &Stored, range: Option<Range>) -> S3Result<(Bytes, Option<String>)> {
    let Some(range) = range else { return Ok((object.bytes.clone(), None)) };
    let len = object.bytes.len() as u64;
    let range = range.check(len)?;
    let text = format!("bytes {}-{}/{len}", range.start, range.end.saturating_sub(1));
    // In bounds of a `Bytes`, hence of `usize`: `check` has cut the range to the object.
    Ok((object.bytes.slice(range.start as usize..range.end as usize), Some(text)))
}

/// The bytes that a part is copied from. S3 takes no range here but `bytes=first-last` within the object.
fn copied(object: &Stored, range: &str) -> S3Result<Bytes> {
    let bounds = range.strip_prefix("bytes=").and_then(|range| range.split_once('-'));
    let bounds = bounds.and_then(|(first, last)| {
        Some((first.parse::<usize>().ok()?, last.parse::<usize>().ok()?))
    });
    match bounds {
        Some((first, last)) if first <= last && last < object.bytes.len() => {
            Ok(object.bytes.slice(first..last + 1))
        }
        Some(_) => Err(s3_error!(InvalidRange)),
        None => Err(s3_error!(InvalidArgument, "the range is bytes=first-last")),
    }
}

fn condition(
    if_match: Option<ETagCondition>,
    if_none_match: Option<ETagCondition>,
) -> S3Result<Condition> {
    match (if_match, if_none_match) {
        (None, None) => Ok(Condition::None),
        (Some(ETagCondition::Any), None) => Ok(Condition::Present),
        (Some(ETagCondition::ETag(tag)), None) => Ok(Condition::Tag(tag.into_value())),
        (None, Some(ETagCondition::Any)) => Ok(Condition::Absent),
        _ => Err(s3_error!(NotImplemented, "writes take If-Match, or If-None-Match: *")),
    }
}

fn meta(content_type: Option<String>, user: Option<Metadata>) -> Meta {
    Meta { content_type, user: user.unwrap_or_default().into_iter().collect() }
}

fn metadata(object: &Stored) -> Option<Metadata> {
    let user = &object.meta.user;
    (!user.is_empty()).then(|| user.iter().map(|(k, v)| (k.clone(), v.clone())).collect())
}

fn content_type(object: &Stored) -> String {
    object.meta.content_type.clone().unwrap_or_else(|| DEFAULT_CONTENT_TYPE.to_owned())
}

/// Reads a whole request body.
async fn collect(body: Option<StreamingBlob>, length: Option<i64>) -> S3Result<Bytes> {
    let Some(mut body) = body else { return Ok(Bytes::new()) };
    let length = length.unwrap_or(0).max(0);
    if length > PUT_BYTES_MAX {
        return Err(s3_error!(EntityTooLarge));
    }
    // A length is a claim: room for more than a part grows as the bytes come.
    let mut bytes = BytesMut::with_capacity((length as usize).min(16 << 20));
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|e| S3Error::with_source(S3ErrorCode::IncompleteBody, e))?;
        if (bytes.len() + chunk.len()) as i64 > PUT_BYTES_MAX {
            return Err(s3_error!(EntityTooLarge));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.freeze())
}

/// The checksums that a writer sent, in base64.
#[derive(Default)]
struct Claimed {
    crc32: Option<String>,
    crc32c: Option<String>,
    crc64nvme: Option<String>,
    sha1: Option<String>,
    sha256: Option<String>,
}

impl Claimed {
    /// Compares each claim, from a header or a trailer, with the bytes that came.
    fn check(mut self, bytes: &[u8], trailers: Option<&TrailingHeaders>) -> S3Result<()> {
        if let Some(trailers) = trailers.and_then(TrailingHeaders::take) {
            let trailer = |name: &str| {
                let value = trailers.get(format!("x-amz-checksum-{name}"))?;
                Some(value.to_str().unwrap_or("not a checksum").to_owned())
            };
            self.crc32 = self.crc32.or_else(|| trailer("crc32"));
            self.crc32c = self.crc32c.or_else(|| trailer("crc32c"));
            self.crc64nvme = self.crc64nvme.or_else(|| trailer("crc64nvme"));
            self.sha1 = self.sha1.or_else(|| trailer("sha1"));
            self.sha256 = self.sha256.or_else(|| trailer("sha256"));
        }
        let mut hasher = ChecksumHasher {
            crc32: self.crc32.is_some().then(Crc32::new),
            crc32c: self.crc32c.is_some().then(Crc32c::new),
            crc64nvme: self.crc64nvme.is_some().then(Crc64Nvme::new),
            sha1: self.sha1.is_some().then(Sha1::new),
            sha256: self.sha256.is_some().then(Sha256::new),
        };
        hasher.update(bytes);
        let found = hasher.finalize();
        let pairs = [
            (self.crc32, found.checksum_crc32),
            (self.crc32c, found.checksum_crc32c),
            (self.crc64nvme, found.checksum_crc64nvme),
            (self.sha1, found.checksum_sha1),
            (self.sha256, found.checksum_sha256),
        ];
        if pairs.iter().any(|(claimed, found)| claimed != found) {
            return Err(s3_error!(BadDigest, "the body is not what its checksum says"));
        }
        Ok(())
    }
}

/// S3's name for a refusal.
fn refuse(refusal: Refusal) -> S3Error {
    let code = match refusal {
        Refusal::NoSuchBucket => S3ErrorCode::NoSuchBucket,
        Refusal::NoSuchKey => S3ErrorCode::NoSuchKey,
        Refusal::NoSuchUpload => S3ErrorCode::NoSuchUpload,
        Refusal::BucketAlreadyOwnedByYou => S3ErrorCode::BucketAlreadyOwnedByYou,
        Refusal::BucketNotEmpty => S3ErrorCode::BucketNotEmpty,
        Refusal::PreconditionFailed => S3ErrorCode::PreconditionFailed,
        Refusal::InvalidPart => S3ErrorCode::InvalidPart,
        Refusal::InvalidPartOrder => S3ErrorCode::InvalidPartOrder,
        Refusal::InvalidPartNumber => S3ErrorCode::InvalidArgument,
        Refusal::EntityTooSmall => S3ErrorCode::EntityTooSmall,
        Refusal::Full | Refusal::TooManyUploads => S3ErrorCode::InvalidRequest,
    };
    S3Error::with_message(code, refusal.to_string())
}
