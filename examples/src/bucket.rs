//! Puts a file into a bucket, in parts, unless it is there.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path, sync::Arc};

use aws_config::{BehaviorVersion, retry::RetryConfig};
use aws_sdk_s3::{
    Client,
    config::{Builder, Region},
    error::DisplayErrorContext,
    primitives::ByteStream,
    types::{CompletedMultipartUpload, CompletedPart},
};
use futures::{StreamExt, TryStreamExt, stream};

/// Bytes of one part. S3 takes 10,000 parts of at least 5 MiB.
const PART_BYTES: u64 = 16 << 20;
/// Parts on their way at once: each is held in memory.
const PARTS_AT_ONCE: usize = 4;

/// Where an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The bucket.
    pub bucket: String,
    /// The key.
    pub key: String,
}

impl Address {
    /// Takes `s3://bucket/key` apart; options behind a `?` belong to whoever opens it.
    pub fn parse(url: &str) -> Option<Address> {
        let path = url.strip_prefix("s3://")?.split('?').next()?;
        let (bucket, key) = path.split_once('/')?;
        let whole = !bucket.is_empty() && !key.is_empty();
        whole.then(|| Address { bucket: bucket.to_owned(), key: key.to_owned() })
    }
}

/// A bucket's client, as the AWS tools would make it: the default chain of credentials, or the
/// endpoint that is given.
pub async fn client(endpoint: Option<&str>) -> Client {
    let config = aws_config::defaults(BehaviorVersion::latest())
        .retry_config(RetryConfig::standard())
        .load()
        .await;
    let mut builder = Builder::from(&config);
    if config.region().is_none() {
        builder = builder.region(Region::new("us-east-1"));
    }
    if let Some(endpoint) = endpoint {
        builder = builder.endpoint_url(endpoint).force_path_style(true);
    }
    Client::from_conf(builder.build())
}

/// Length of the object in bytes, or `None` if there is none.
///
/// # Errors
/// When the bucket does not say.
pub async fn object_len(client: &Client, at: &Address) -> Result<Option<u64>, String> {
    let head = client.head_object().bucket(&at.bucket).key(&at.key).send().await;
    match head {
        Ok(head) => Ok(Some(head.content_length().unwrap_or(0).max(0) as u64)),
        Err(error) if error.as_service_error().is_some_and(|e| e.is_not_found()) => Ok(None),
        Err(error) => Err(DisplayErrorContext(error).to_string()),
    }
}

/// Uploads the file at `path`, telling `progress` the bytes of each part.
///
/// # Errors
/// When a part does not arrive for all retries; the upload is then aborted.
pub async fn upload(
    client: &Client,
    at: &Address,
    path: &Path,
    progress: impl Fn(u64) + Sync,
) -> Result<(), String> {
    let file = File::open(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let len = file.metadata().map_err(|e| format!("{}: {e}", path.display()))?.len();
    let begin = client.create_multipart_upload().bucket(&at.bucket).key(&at.key).send().await;
    let begun = begin.map_err(|e| DisplayErrorContext(e).to_string())?;
    let id = begun.upload_id().ok_or("the bucket named no upload")?;

    let parts = send_parts(client, at, id, Arc::new(file), len, &progress).await;
    let done = match parts {
        Ok(parts) => {
            let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
            let complete = client.complete_multipart_upload().bucket(&at.bucket).key(&at.key);
            let complete = complete.upload_id(id).multipart_upload(parts).send().await;
            complete.map(drop).map_err(|e| DisplayErrorContext(e).to_string())
        }
        Err(error) => Err(error),
    };
    if done.is_err() {
        // Parts of an open upload are billed. The first error is the one to tell.
        let abort = client.abort_multipart_upload().bucket(&at.bucket).key(&at.key);
        let _ = abort.upload_id(id).send().await;
    }
    done
}

async fn send_parts(
    client: &Client,
    at: &Address,
    id: &str,
    file: Arc<File>,
    len: u64,
    progress: &(impl Fn(u64) + Sync),
) -> Result<Vec<CompletedPart>, String> {
    let mut parts: Vec<_> = stream::iter((1..).zip((0..len).step_by(PART_BYTES as usize)))
        .map(|(number, start)| {
            let file = file.clone();
            async move {
                let bytes = len.min(start + PART_BYTES) - start;
                let body = read(file, start, bytes).await.map_err(|e| e.to_string())?;
                let part = client.upload_part().bucket(&at.bucket).key(&at.key).upload_id(id);
                let part = part.part_number(number).body(ByteStream::from(body)).send().await;
                let part = part.map_err(|e| DisplayErrorContext(e).to_string())?;
                progress(bytes);
                let tag = part.e_tag().ok_or("the bucket named no tag of a part")?;
                Ok::<_, String>(CompletedPart::builder().part_number(number).e_tag(tag).build())
            }
        })
        .buffer_unordered(PARTS_AT_ONCE)
        .try_collect()
        .await?;
    parts.sort_by_key(CompletedPart::part_number);
    Ok(parts)
}

async fn read(file: Arc<File>, start: u64, bytes: u64) -> io::Result<Vec<u8>> {
    let work = move || {
        let mut body = vec![0; bytes as usize];
        file.read_exact_at(&mut body, start).map(|()| body)
    };
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_apart() {
        let address = |bucket: &str, key: &str| {
            Some(Address { bucket: bucket.to_owned(), key: key.to_owned() })
        };
        let cases = [
            ("s3://b/k", address("b", "k")),
            ("s3://b/k/l?region=x", address("b", "k/l")),
            ("s3://b/", None),
            ("s3://b", None),
            ("http://b/k", None),
        ];
        for (url, expected) in cases {
            assert_eq!(Address::parse(url), expected, "{url}");
        }
    }
}
