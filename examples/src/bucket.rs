//! Puts a file into a bucket, in parts, unless it is there.

use std::{error::Error, fs::File, io, os::unix::fs::FileExt, path::Path, sync::Arc};

use aws_sdk_s3::{
    Client,
    config::retry::RetryConfig,
    primitives::ByteStream,
    types::{CompletedMultipartUpload, CompletedPart},
};
use futures::{StreamExt, TryStreamExt, stream};
use sources::Options;

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

/// The object that `url` names and a client for its bucket: the one that would read it, with the
/// same options, but with retries of its own.
///
/// # Errors
/// When `url` is no address like `s3://bucket/key`, or one of its options is wrong.
pub async fn open(url: &str) -> Result<(Client, Address), String> {
    let (bucket, key, aws) = Options::default().s3_place(url).map_err(|e| e.to_string())?;
    let client = aws.s3().await.map_err(|e| e.to_string())?;
    let config = client.config().to_builder().retry_config(RetryConfig::standard()).build();
    Ok((Client::from_conf(config), Address { bucket, key }))
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
        Err(error) => Err(told(at, &error)),
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
    let begun = begin.map_err(|e| told(at, &e))?;
    let id = begun.upload_id().ok_or("the bucket named no upload")?;

    let parts = send_parts(client, at, id, Arc::new(file), len, &progress).await;
    let done = match parts {
        Ok(parts) => {
            let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
            let complete = client.complete_multipart_upload().bucket(&at.bucket).key(&at.key);
            let complete = complete.upload_id(id).multipart_upload(parts).send().await;
            complete.map(drop).map_err(|e| told(at, &e))
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
                let part = part.map_err(|e| told(at, &e))?;
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

/// An error and its causes in one line. (The SDK's own text of a failure has the whole of its
/// structures in it.)
fn told(at: &Address, error: &dyn Error) -> String {
    let mut text = format!("s3://{}/{}", at.bucket, at.key);
    let mut next = Some(error);
    while let Some(error) = next {
        let more = error.to_string();
        if !text.contains(&more) {
            text += &format!(": {more}");
        }
        next = error.source();
    }
    text
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

    /// A dump of the SDK's structures was what somebody without a bucket got to see.
    #[tokio::test]
    async fn failures_are_told_in_one_line() {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = server.local_addr().expect("an address").port();
        drop(server);
        let url = format!("s3://nobody/key?region=x&anonymous&endpoint=http://127.0.0.1:{port}");
        let (client, at) = open(&url).await.expect("an address");
        let error = object_len(&client, &at).await.expect_err("nobody listens");
        assert!(error.starts_with("s3://nobody/key: "), "{error}");
        assert!(error.contains("refused"), "{error}");
        assert!(!error.contains('{') && !error.contains('\n'), "{error}");
    }

    /// The object that is written is the one that is read.
    #[tokio::test]
    async fn addresses_mean_what_they_mean_to_readers() {
        let cases = [
            ("s3://b/k?region=x", Some(("b", "k"))),
            ("s3://b/a%20k/%3F?region=x&anonymous", Some(("b", "a k/?"))),
            ("s3://b/", None),
            ("s3://b", None),
            ("http://b/k", None),
            ("s3://b/k?colour=red", None),
        ];
        for (url, expected) in cases {
            let opened = open(url).await.ok().map(|(client, at)| {
                assert_eq!(
                    client.config().region().map(|region| region.as_ref()),
                    Some("x"),
                    "{url}"
                );
                (at.bucket, at.key)
            });
            let expected = expected.map(|(bucket, key)| (bucket.to_owned(), key.to_owned()));
            assert_eq!(opened, expected, "{url}");
        }
    }
}
