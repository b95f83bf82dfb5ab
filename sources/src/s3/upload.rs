//! An object of S3, written in parts: complete, or not there at all.
//!
//! ```text
//!   write() --> part 1, held back | part 2 | part 3 ...      a few under way at once
//!   finish() -> when all others are there: part 1 -> complete
//!   dropped before that, or a part that cannot be sent -> abort
//! ```
//!
//! What is at the key is untouched until the upload is completed, which S3 does at once or not at
//! all. Part 1 goes last, so that not even who lists the parts of unfinished uploads finds the head
//! of an object that has no end. A process that is killed leaves the parts that it sent, which S3
//! keeps, and charges for, until they are aborted: a lifecycle rule of the bucket
//! (`AbortIncompleteMultipartUpload`) does that.
//!
//! Each request is tried again by itself, like a read. An object that fits in one part is put with
//! one request.

use std::{
    io::{self, Write},
    ops::Range,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use aws_sdk_s3::{
    primitives::ByteStream,
    types::{CompletedMultipartUpload, CompletedPart},
};
use bytes::Bytes;
use pager::SourceError;
use tokio::{sync::mpsc as queue, task::JoinSet};

use super::{failure::Asked, status_of};
use crate::{
    aws::Aws,
    chance::Chance,
    retry::{Effort, RetryPolicy},
};

/// The most parts of an object, and the least and the most bytes of one but the last (Amazon S3
/// User Guide, "Amazon S3 multipart upload limits").
const PARTS_MAX: u64 = 10_000;
const PART_BYTES_MIN: u64 = 5 << 20;
pub(super) const PART_BYTES_MAX: u64 = 5 << 30;
/// Sizes of parts are multiples of this.
const PART_STEP: u64 = 1 << 20;
/// A slow line brings so many bytes in a second at least; each part is given the time it takes.
pub(super) const RATE_MIN_BYTES_PER_S: u64 = 256 << 10;
/// The name, in an object's metadata, of the mark that its upload put there. When the answer to a
/// conditional request is lost, the next attempt finds an object: ours if it bears our mark. Length
/// and ETag may be those of another's.
pub(super) const MARK: &str = "extmem-upload";
/// The longest that giving up may take: somebody waits for the error.
pub(super) const ABORT_MAX: Duration = Duration::from_secs(10);

/// How an object is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadOptions {
    /// Bytes of a part, from 5 MiB to 5 GiB; more where 10,000 parts would not do. Default: 8 MiB.
    pub part_bytes: u64,
    /// Parts under way at once, at least 1. Default: 4. Memory for two more is needed: the first
    /// one, and the one being filled.
    pub parts_at_once: usize,
    /// Whether an object that is there already is replaced. Default: no, and then finishing fails.
    /// Not every service but Amazon's heeds it.
    pub replace: bool,
    /// How requests are tried again.
    pub retry: RetryPolicy,
}

impl Default for UploadOptions {
    fn default() -> UploadOptions {
        UploadOptions {
            part_bytes: 8 << 20,
            parts_at_once: 4,
            replace: false,
            retry: RetryPolicy::default(),
        }
    }
}

impl UploadOptions {
    /// Bytes of a part of an object of `len` bytes, or `None` if there is no such object.
    fn part_bytes_for(&self, len: u64) -> Option<u64> {
        part_bytes_for(self.part_bytes, len)
    }
}

/// Bytes of a part of an object of `len` bytes, where `wanted` are wished for, or `None` if there is no such
/// object.
pub(super) fn part_bytes_for(wanted: u64, len: u64) -> Option<u64> {
    let wanted = wanted.clamp(PART_BYTES_MIN, PART_BYTES_MAX);
    let needed = len.div_ceil(PARTS_MAX).next_multiple_of(PART_STEP);
    Some(wanted.max(needed)).filter(|&bytes| bytes <= PART_BYTES_MAX)
}

/// An object being written, from its first byte to its last.
///
/// Requests run on a thread of its own, so it works inside and outside of runtimes; `write` blocks
/// when as many parts as allowed are under way.
#[derive(Debug)]
pub struct Upload {
    name: String,
    len: u64,
    written: u64,
    part_bytes: usize,
    parts_at_once: usize,
    buffer: Vec<u8>,
    /// Part 1, once it is full and there is more to come.
    first: Option<Bytes>,
    parts: i32,
    under_way: usize,
    /// Why it cannot be finished any more.
    failed: Option<SourceError>,
    /// `None` tells the thread to end.
    commands: Option<queue::UnboundedSender<Command>>,
    done: mpsc::Receiver<Result<(), SourceError>>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread is told. Each is answered once.
enum Command {
    /// A whole object.
    Put(Bytes),
    /// Begin an object of several parts.
    Begin,
    Part(i32, Bytes),
    /// All parts are there.
    Complete,
}

impl Upload {
    /// Begins to write the object `key` of `bucket`, which will have `len` bytes.
    ///
    /// # Errors
    /// When bucket or key are empty, when no object can be so long, and when the service refuses to
    /// begin an upload of several parts.
    pub fn begin(
        bucket: &str,
        key: &str,
        aws: &Aws,
        len: u64,
        options: UploadOptions,
    ) -> Result<Upload, SourceError> {
        let name = format!("s3://{bucket}/{key}");
        let refuse =
            |reason: String| SourceError::Permanent { object: name.clone(), reason, cause: None };
        if bucket.is_empty() || key.is_empty() {
            return Err(refuse("an object needs a bucket and a key: s3://bucket/key".to_owned()));
        }
        let Some(part_bytes) = options.part_bytes_for(len) else {
            return Err(refuse(format!("{len} bytes are more than an object can have")));
        };
        let parts_at_once = options.parts_at_once.max(1);
        let object = Object {
            name: name.clone(),
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            // Its connections belong to the thread's own runtime.
            aws: Aws::new(aws.options().clone()),
            mark: mark(),
            options,
            chance: Arc::new(Chance::seeded(Chance::any_seed())),
        };
        let (commands, queued) = queue::unbounded_channel();
        let (answers, done) = mpsc::channel();
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            match runtime {
                Ok(runtime) => runtime.block_on(serve(Arc::new(object), queued, answers)),
                Err(error) => {
                    let reason = format!("no runtime: {error}");
                    let object = object.name.clone();
                    // Whoever waits for the first answer gets this one.
                    let _ =
                        answers.send(Err(SourceError::Permanent { object, reason, cause: None }));
                }
            }
        };
        let thread = thread::Builder::new().name("extmem-upload".to_owned()).spawn(run);
        let thread = thread.map_err(|error| refuse(format!("no thread: {error}")))?;
        let mut upload = Upload {
            name,
            len,
            written: 0,
            part_bytes: part_bytes as usize,
            parts_at_once,
            buffer: Vec::new(),
            first: None,
            parts: 0,
            under_way: 0,
            failed: None,
            commands: Some(commands),
            done,
            thread: Some(thread),
        };
        if len > part_bytes {
            upload.send(Command::Begin);
            upload.wait(0)?;
        }
        Ok(upload)
    }

    /// The address of the object.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sends what is left, waits until the service has everything, and makes it the object.
    ///
    /// # Errors
    /// When a request failed for good, when more or fewer bytes were written than announced, or when
    /// there is an object already that is not to be replaced. Then no object was made, unless the
    /// answer to the very last request was lost and could not be asked for again; the error is
    /// `Transient` in that case.
    pub fn finish(mut self) -> Result<(), SourceError> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        if self.written != self.len {
            return Err(self.wrong_length());
        }
        let rest = Bytes::from(std::mem::take(&mut self.buffer));
        let Some(first) = self.first.take() else {
            self.send(Command::Put(rest));
            return self.wait(0);
        };
        if !rest.is_empty() {
            self.send_part(rest)?;
        }
        self.wait(0)?;
        self.send(Command::Part(1, first));
        self.wait(0)?;
        self.send(Command::Complete);
        self.wait(0)
    }

    fn wrong_length(&self) -> SourceError {
        let reason =
            format!("{} bytes were written where {} were announced", self.written, self.len);
        SourceError::Permanent { object: self.name.clone(), reason, cause: None }
    }

    /// A part other than the first.
    fn send_part(&mut self, bytes: Bytes) -> Result<(), SourceError> {
        self.wait(self.parts_at_once - 1)?;
        self.parts += 1;
        self.send(Command::Part(self.parts, bytes));
        Ok(())
    }

    fn send(&mut self, command: Command) {
        self.under_way += 1;
        // If the thread has ended, waiting tells.
        let _ = self.commands.as_ref().map(|commands| commands.send(command));
    }

    /// Waits until at most so many requests are under way.
    fn wait(&mut self, most: usize) -> Result<(), SourceError> {
        while self.under_way > most {
            let answer = self.done.recv().unwrap_or_else(|_| {
                let (object, reason) = (self.name.clone(), "the uploading thread ended".to_owned());
                Err(SourceError::Permanent { object, reason, cause: None })
            });
            self.under_way -= 1;
            answer?;
        }
        Ok(())
    }

    fn take(&mut self, mut bytes: &[u8]) -> Result<(), SourceError> {
        self.written += bytes.len() as u64;
        if self.written > self.len {
            return Err(self.wrong_length());
        }
        while !bytes.is_empty() {
            if self.buffer.len() == self.part_bytes {
                // Only now is it known that more follows.
                let full = Bytes::from(std::mem::take(&mut self.buffer));
                if self.first.is_none() {
                    (self.first, self.parts) = (Some(full), 1);
                } else {
                    self.send_part(full)?;
                }
            }
            if self.buffer.capacity() == 0 {
                let left = self.len - (self.written - bytes.len() as u64);
                self.buffer.reserve_exact(left.min(self.part_bytes as u64) as usize);
            }
            let (now, later) = bytes.split_at(bytes.len().min(self.part_bytes - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
        }
        Ok(())
    }
}

impl Write for Upload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(error) = &self.failed {
            return Err(io::Error::other(error.clone()));
        }
        if let Err(error) = self.take(bytes) {
            self.failed = Some(error.clone());
            return Err(io::Error::other(error));
        }
        Ok(bytes.len())
    }

    /// Does nothing: only whole parts can be sent, and only `finish` makes the object.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.commands = None;
        // It ends by itself, and in a bounded time; if it panicked, the answer that is missing told.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Does what it is told until nobody is there to tell any more. An upload that was not completed by
/// then is aborted.
async fn serve(
    object: Arc<Object>,
    mut commands: queue::UnboundedReceiver<Command>,
    answers: mpsc::Sender<Result<(), SourceError>>,
) {
    let mut parts = JoinSet::new();
    let mut upload: Option<Arc<str>> = None;
    let mut sent: Vec<CompletedPart> = Vec::new();
    loop {
        let command = tokio::select! {
            Some(part) = parts.join_next() => {
                let answer = match part {
                    Ok(Ok(part)) => {
                        sent.push(part);
                        Ok(())
                    }
                    Ok(Err(error)) => Err(error),
                    Err(panic) => std::panic::resume_unwind(panic.into_panic()),
                };
                let _ = answers.send(answer);
                continue;
            }
            command = commands.recv() => command,
        };
        let answer = match (command, &upload) {
            (None, _) => break,
            (Some(Command::Put(bytes)), _) => object.put(bytes).await,
            (Some(Command::Part(number, bytes)), Some(id)) => {
                let (object, id) = (object.clone(), id.clone());
                parts.spawn(async move { object.part(&id, number, bytes).await });
                continue;
            }
            (Some(Command::Complete), Some(id)) => {
                sent.sort_unstable_by_key(CompletedPart::part_number);
                let answer = object.complete(id, std::mem::take(&mut sent)).await;
                if answer.is_ok() {
                    upload = None;
                }
                answer
            }
            (Some(_), _) => object.create().await.map(|id| upload = Some(id)),
        };
        let _ = answers.send(answer);
    }
    parts.shutdown().await;
    if let Some(id) = upload {
        let aborted = tokio::time::timeout(ABORT_MAX, object.abort(&id)).await;
        if !matches!(aborted, Ok(Ok(()))) {
            tracing::warn!(object = %object.name, upload = %id, "an upload could not be aborted");
        }
    }
}

/// Where the bytes go, and the requests that take them there.
struct Object {
    name: String,
    bucket: String,
    key: String,
    aws: Aws,
    /// Stands in the object's metadata, and in no other's: see [`MARK`].
    mark: String,
    options: UploadOptions,
    chance: Arc<Chance>,
}

/// What tells one upload from every other: 128 bits that the system has drawn, by the keys of the
/// standard library's hash tables.
pub(super) fn mark() -> String {
    use std::hash::{BuildHasher, RandomState};
    let drawn = || RandomState::new().hash_one(Chance::any_seed());
    format!("{:016x}{:016x}", drawn(), drawn())
}

impl Object {
    /// Tries a request, which carries so many bytes, until it succeeds or there is no use.
    async fn again<T, F>(
        &self,
        what: &'static str,
        bytes: usize,
        attempt: impl Fn(u32) -> F,
    ) -> Result<T, SourceError>
    where
        F: Future<Output = Result<T, SourceError>>,
    {
        let extra = Duration::from_secs(bytes as u64 / RATE_MIN_BYTES_PER_S);
        let mut policy = self.options.retry.clone();
        policy.deadline = policy.deadline.saturating_add(extra.saturating_mul(2));
        let mut effort = Effort::new(what, &self.name, policy, self.chance.clone());
        loop {
            let number = effort.attempt();
            match effort.wait_for_answer(None, extra, attempt(number)).await.and_then(|a| a) {
                Ok(answer) => return Ok(answer),
                Err(error) => effort.recover(error).await?,
            }
        }
    }

    fn asked(&self, what: &'static str, range: Option<Range<u64>>) -> Asked<'_> {
        Asked { object: &self.name, what, range, version: None }
    }

    fn condition(&self) -> Option<String> {
        (!self.options.replace).then(|| "*".to_owned())
    }

    fn exists(&self) -> SourceError {
        SourceError::Permanent {
            object: self.name.clone(),
            reason: "there is an object already, which is not replaced".to_owned(),
            cause: None,
        }
    }

    async fn put(&self, bytes: Bytes) -> Result<(), SourceError> {
        let asked = self.asked("put", None);
        self.again("put", bytes.len(), |attempt| {
            let (asked, bytes) = (&asked, bytes.clone());
            async move {
                let put = self.aws.s3().await?.put_object().bucket(&self.bucket).key(&self.key);
                let put = put.set_if_none_match(self.condition()).metadata(MARK, &self.mark);
                let put = put.body(ByteStream::from(bytes));
                match put.send().await {
                    Ok(_) => Ok(()),
                    Err(error) => match status_of(&error) {
                        Some(412) => self.is_ours(attempt).await,
                        _ => Err(asked.failed(error)),
                    },
                }
            }
        })
        .await
    }

    async fn create(&self) -> Result<Arc<str>, SourceError> {
        let asked = self.asked("begin an upload", None);
        self.again("upload", 0, |_| async {
            let client = self.aws.s3().await?;
            let create = client.create_multipart_upload().bucket(&self.bucket).key(&self.key);
            let create = create.metadata(MARK, &self.mark);
            let created = create.send().await.map_err(|error| asked.failed(error))?;
            let id = created.upload_id().filter(|id| !id.is_empty());
            id.map(Arc::from)
                .ok_or_else(|| asked.transient("an answer without an upload id".to_owned(), None))
        })
        .await
    }

    async fn part(
        &self,
        id: &str,
        number: i32,
        bytes: Bytes,
    ) -> Result<CompletedPart, SourceError> {
        let asked = self.asked("upload a part", None);
        self.again("upload", bytes.len(), |_| {
            let (asked, bytes) = (&asked, bytes.clone());
            async move {
                let part = self.aws.s3().await?.upload_part().bucket(&self.bucket).key(&self.key);
                let part = part.upload_id(id).part_number(number).body(ByteStream::from(bytes));
                let answer = part.send().await.map_err(|error| asked.failed(error))?;
                let Some(tag) = answer.e_tag() else {
                    return Err(asked.transient("an answer without an ETag".to_owned(), None));
                };
                Ok(CompletedPart::builder().part_number(number).e_tag(tag).build())
            }
        })
        .await
    }

    async fn complete(&self, id: &str, parts: Vec<CompletedPart>) -> Result<(), SourceError> {
        let asked = self.asked("complete an upload", None);
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        self.again("upload", 0, |attempt| {
            let (asked, parts) = (&asked, parts.clone());
            async move {
                let client = self.aws.s3().await?;
                let complete =
                    client.complete_multipart_upload().bucket(&self.bucket).key(&self.key);
                let complete = complete.upload_id(id).multipart_upload(parts);
                match complete.set_if_none_match(self.condition()).send().await {
                    Ok(_) => Ok(()),
                    Err(error) => {
                        match status_of(&error) {
                            // The upload is gone when an earlier attempt completed it.
                            Some(404 | 412) => match self.is_ours(attempt).await {
                                Err(
                                    SourceError::Permanent { .. } | SourceError::NotFound { .. },
                                ) if status_of(&error) == Some(404) => Err(asked.failed(error)),
                                other => other,
                            },
                            _ => Err(asked.failed(error)),
                        }
                    }
                }
            }
        })
        .await
    }

    /// Whether the object that is there was made by an earlier attempt of ours whose answer was
    /// lost: it bears our mark.
    async fn is_ours(&self, attempt: u32) -> Result<(), SourceError> {
        if attempt < 2 {
            return Err(self.exists());
        }
        let asked = self.asked("stat", None);
        let head = self.aws.s3().await?.head_object().bucket(&self.bucket).key(&self.key);
        let head = head.send().await.map_err(|error| asked.failed(error))?;
        let mark = head.metadata().and_then(|metadata| metadata.get(MARK));
        if mark == Some(&self.mark) { Ok(()) } else { Err(self.exists()) }
    }

    async fn abort(&self, id: &str) -> Result<(), SourceError> {
        let asked = self.asked("abort an upload", None);
        self.again("upload", 0, |_| async {
            let client = self.aws.s3().await?;
            let abort = client.abort_multipart_upload().bucket(&self.bucket).key(&self.key);
            match abort.upload_id(id).send().await {
                Ok(_) => Ok(()),
                Err(error) if status_of(&error) == Some(404) => Ok(()),
                Err(error) => Err(asked.failed(error)),
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_every_length() {
        let bytes = |part_bytes, len| {
            UploadOptions { part_bytes, ..UploadOptions::default() }.part_bytes_for(len)
        };
        let (mib, gib) = (1u64 << 20, 1u64 << 30);
        let cases = [
            ("the wish", 8 * mib, 100 * gib / 2, Some(8 * mib)),
            ("too small a wish", 1, 10, Some(5 * mib)),
            ("too large a wish", 1 << 50, 10, Some(5 * gib)),
            ("the last that fits", 8 * mib, 80_000 * mib, Some(8 * mib)),
            ("one byte more", 8 * mib, 80_000 * mib + 1, Some(9 * mib)),
            ("the longest", mib, 50_000 * gib, Some(5 * gib)),
            ("too long", mib, 50_000 * gib + 1, None),
            ("nothing", mib, 0, Some(5 * mib)),
        ];
        for (what, part_bytes, len, expected) in cases {
            assert_eq!(bytes(part_bytes, len), expected, "{what}");
            if let Some(bytes) = expected {
                assert!(len.div_ceil(bytes) <= PARTS_MAX, "{what}");
            }
        }
    }
}
