//! S3 as [`Objects`].

use async_trait::async_trait;
use aws_sdk_s3::{Client, primitives::ByteStream};
use bytes::Bytes;
use sources::aws::Aws;
use tokio::{sync::OnceCell, time::timeout};

use super::{CALL_MAX, Dated, Failed, call_max, timed_out, unread, unusable};
use crate::cloud::{
    Delete, ETag, Fault, Get, Listing, Objects, Put, PutIf, objects::OBJECT_BYTES_MAX,
};

/// A bucket, or the part of one below a prefix.
pub struct S3 {
    aws: Aws,
    bucket: String,
    prefix: String,
    client: OnceCell<Client>,
}

impl S3 {
    /// Objects of `bucket` whose names begin with `prefix`.
    pub fn new(aws: Aws, bucket: &str, prefix: &str) -> S3 {
        let (bucket, prefix) = (bucket.to_owned(), prefix.to_owned());
        S3 { aws, bucket, prefix, client: OnceCell::new() }
    }

    async fn client(&self) -> Result<&Client, Fault> {
        let make = || async {
            let shared = self.aws.s3().await.map_err(|error| unusable(&error))?;
            Ok(shared.clone())
        };
        self.client.get_or_try_init(make).await
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// What errors call an object.
    fn shown(&self, name: &str) -> String {
        format!("s3://{}/{}{name}", self.bucket, self.prefix)
    }

    async fn try_get(&self, name: &str, unless: Option<&ETag>) -> Result<Get, Fault> {
        let shown = self.shown(name);
        let call = self.client().await?.get_object().bucket(&self.bucket).key(self.key(name));
        let call = call.set_if_none_match(unless.map(|etag| etag.as_str().to_owned()));
        let dated = Dated::default();
        let call = call.customize().interceptor(dated.clone());
        let Ok(sent) = timeout(CALL_MAX, call.send()).await else {
            return Err(unread(&shown, CALL_MAX));
        };
        match sent {
            Ok(answer) => {
                let unknown = |cause: &str| {
                    let cause = cause.to_owned();
                    Fault::Unanswered { what: shown.clone(), cause }
                };
                let tag = answer.e_tag().ok_or_else(|| unknown("an answer without a tag"))?;
                let etag = ETag::new(tag);
                // Memory only for what can be there.
                let len = answer.content_length().and_then(|len| usize::try_from(len).ok());
                let len = len.ok_or_else(|| unknown("an answer without a length"))?;
                if len > OBJECT_BYTES_MAX {
                    let cause =
                        format!("{len} bytes, where an object has at most {OBJECT_BYTES_MAX}");
                    return Err(Fault::Invalid { what: shown, cause });
                }
                let Ok(body) = timeout(call_max(len), answer.body.collect()).await else {
                    return Err(unread(&shown, call_max(len)));
                };
                let bytes = body.map_err(|error| unknown(&error.to_string()))?.into_bytes();
                Ok(Get::Found { bytes, etag, date_ms: dated.ms() })
            }
            Err(error) => {
                let failed = Failed::of((shown.as_str(), "get"), &error, false);
                match (failed.status, failed.code.as_str()) {
                    (Some(304), _) => Ok(Get::Unchanged { date_ms: dated.ms() }),
                    (Some(404), code) if code != "NoSuchBucket" => Ok(Get::Absent),
                    _ => Err(failed.fault),
                }
            }
        }
    }

    async fn try_put(&self, name: &str, bytes: Bytes, condition: PutIf) -> Result<Put, Fault> {
        let shown = self.shown(name);
        let call = self.client().await?.put_object().bucket(&self.bucket).key(self.key(name));
        let call = match condition {
            PutIf::Always => call,
            PutIf::Absent => call.if_none_match("*"),
            PutIf::Matches(etag) => call.if_match(etag.as_str()),
        };
        match call.body(ByteStream::from(bytes)).send().await {
            Ok(answer) => Ok(match answer.e_tag() {
                Some(etag) => Put::Stored(ETag::new(etag)),
                None => {
                    let cause = "stored, and no tag in the answer".into();
                    Put::Unknown(Fault::Unknown { what: shown, cause })
                }
            }),
            Err(error) => {
                let failed = Failed::of((shown.as_str(), "put"), &error, true);
                Ok(match (failed.status, failed.code.as_str()) {
                    (Some(412), _) => Put::Refused,
                    (Some(409), _) => Put::Conflict,
                    (Some(404), code) if code != "NoSuchBucket" => Put::Missing,
                    _ if matches!(failed.fault, Fault::Unknown { .. }) => {
                        Put::Unknown(failed.fault)
                    }
                    _ => Put::Failed(failed.fault),
                })
            }
        }
    }

    async fn try_delete(&self, name: &str, only: Option<&ETag>) -> Result<Delete, Fault> {
        let shown = self.shown(name);
        let call = self.client().await?.delete_object().bucket(&self.bucket).key(self.key(name));
        let call = call.set_if_match(only.map(|etag| etag.as_str().to_owned()));
        match call.send().await {
            Ok(_) => Ok(Delete::Gone),
            Err(error) => {
                let failed = Failed::of((shown.as_str(), "delete"), &error, true);
                Ok(match (failed.status, failed.code.as_str()) {
                    (Some(412), _) => Delete::Refused,
                    (Some(409), _) => Delete::Conflict,
                    (Some(404), code) if code != "NoSuchBucket" => Delete::Gone,
                    _ if matches!(failed.fault, Fault::Unknown { .. }) => {
                        Delete::Unknown(failed.fault)
                    }
                    _ => Delete::Failed(failed.fault),
                })
            }
        }
    }
}

#[async_trait]
impl Objects for S3 {
    async fn get(&self, name: &str, unless: Option<&ETag>) -> Result<Get, Fault> {
        self.try_get(name, unless).await
    }

    async fn put(&self, name: &str, bytes: Bytes, condition: PutIf) -> Put {
        if bytes.len() > OBJECT_BYTES_MAX {
            let cause = format!("an object has at most {OBJECT_BYTES_MAX} bytes");
            return Put::Failed(Fault::Invalid { what: self.shown(name), cause });
        }
        let most = call_max(bytes.len());
        match timeout(most, self.try_put(name, bytes, condition)).await {
            Ok(Ok(put)) => put,
            Ok(Err(fault)) => Put::Failed(fault),
            Err(_) => Put::Unknown(timed_out(&self.shown(name), most)),
        }
    }

    async fn delete(&self, name: &str, only: Option<&ETag>) -> Delete {
        match timeout(CALL_MAX, self.try_delete(name, only)).await {
            Ok(Ok(delete)) => delete,
            Ok(Err(fault)) => Delete::Failed(fault),
            Err(_) => Delete::Unknown(timed_out(&self.shown(name), CALL_MAX)),
        }
    }

    async fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> Result<Listing, Fault> {
        let shown = self.shown(prefix);
        let call = self.client().await?.list_objects_v2().bucket(&self.bucket);
        let call = call
            .prefix(self.key(prefix))
            .set_start_after(after.map(|after| self.key(after)))
            .max_keys(i32::try_from(max).unwrap_or(1000).clamp(1, 1000));
        let answer = match timeout(CALL_MAX, call.send()).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(Failed::of((shown.as_str(), "list"), &error, false).fault),
            Err(_) => return Err(unread(&shown, CALL_MAX)),
        };
        let keys = answer.contents().iter().filter_map(|object| object.key());
        let names = keys.filter_map(|key| Some(key.strip_prefix(&self.prefix)?.to_owned()));
        Ok(Listing { names: names.collect(), more: answer.is_truncated().unwrap_or(false) })
    }
}
