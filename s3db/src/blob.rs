//! Payloads that do not fit into a page: blobs, each of one or more objects.
//!
//! ```text
//!   blob/CLIENT/CLOCK-SEQUENCE/0  1  2 ...      created once each, before the commit that names them
//!                             /unnamed-DATE     no record names it any more, since then (see `gc`)
//!        slot or log record --names--> stamp, bytes, bytes of a part, CRC-32C
//! ```
//!
//! A blob has a stamp of its own, which nobody has a second time, and its objects are named after it: an
//! object with that name is this blob's, or nobody's. No part is ever put again. So whoever reads the name
//! reads these bytes, or learns which object is damaged or gone; and whoever has not read the name, since
//! nothing that names it is committed, finds nothing.
//!
//! Each part is a frame (see `frame`) of magic `s3dB`, version 1: the blob's stamp (3 x 8), the number of
//! the part (4), its bytes. The name of a blob in a slot or a log record is its stamp (3 x 8), its bytes
//! (8), bytes of each part but the last (4), CRC-32C of all of it (4).

use std::{
    future::Future,
    sync::atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::Semaphore;

use crate::{
    blob_id::{PARTS_MAX, object},
    cloud::{Cloud, Fault, Get, Put, PutIf},
    error::StoreError,
    frame::{FrameError, Reader, Writer, crc32c, is_number},
    record::PAYLOAD_BYTES_MAX,
    retry::Attempts,
    settings::Settings,
    stamp::Stamp,
};

pub use crate::names::BLOBS;

/// Bytes of the largest blob.
pub const BLOB_BYTES_MAX: u64 = 16 << 30;
/// Bytes of the largest part of a blob.
pub const PART_BYTES_MAX: usize = 64 << 20;
/// Bytes of what names a blob.
pub(crate) const REFERENCE_BYTES: usize = 40;
/// Parts that are on their way together.
const AT_ONCE: usize = 4;

const MAGIC: &str = "s3dB";
const VERSION: u8 = 1;
const PART_FIXED_BYTES: usize = 9 + 24 + 4;

/// What names a blob, and says what is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Blob {
    stamp: Stamp,
    bytes: u64,
    part_bytes: u32,
    sum: u32,
}

/// What belongs to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// The payload.
    Here(Bytes),
    /// The payload lies in this blob.
    Blob(Blob),
}

impl Value {
    /// A payload of no bytes.
    pub const EMPTY: Value = Value::Here(Bytes::new());

    /// The payload, if it is here.
    pub fn here(&self) -> Option<&Bytes> {
        match self {
            Value::Here(payload) => Some(payload),
            Value::Blob(_) => None,
        }
    }

    /// Bytes of the payload, wherever it lies.
    pub fn bytes(&self) -> u64 {
        match self {
            Value::Here(payload) => payload.len() as u64,
            Value::Blob(blob) => blob.bytes,
        }
    }

    /// Bytes of memory, about.
    pub(crate) fn weight(&self) -> usize {
        self.here().map_or(REFERENCE_BYTES, Bytes::len)
    }
}

impl From<Bytes> for Value {
    fn from(payload: Bytes) -> Value {
        Value::Here(payload)
    }
}

impl Blob {
    /// `None` when there is no such blob: nothing in it, too much, or too many parts.
    pub fn new(stamp: Stamp, bytes: u64, part_bytes: u32, sum: u32) -> Option<Blob> {
        let blob = Blob { stamp, bytes, part_bytes, sum };
        let is_sound = is_number(stamp.clock)
            && (1..=BLOB_BYTES_MAX).contains(&bytes)
            && (1..=PART_BYTES_MAX as u32).contains(&part_bytes)
            && bytes.div_ceil(u64::from(part_bytes)) <= PARTS_MAX;
        is_sound.then_some(blob)
    }

    /// Of a payload that is in memory.
    pub(crate) fn of(stamp: Stamp, payload: &[u8], part_bytes: usize) -> Option<Blob> {
        Blob::new(stamp, payload.len() as u64, u32::try_from(part_bytes).ok()?, crc32c(payload))
    }

    /// Its own stamp, not that of the record that names it.
    pub fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// How many bytes it holds.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many parts there are: at least one.
    pub fn parts(&self) -> u32 {
        self.bytes.div_ceil(u64::from(self.part_bytes)) as u32
    }

    /// The name of a part's object.
    pub fn object(&self, part: u32) -> String {
        object(self.stamp, part)
    }

    /// Bytes of a part.
    fn bytes_of(&self, part: u32) -> u64 {
        let begin = u64::from(part) * u64::from(self.part_bytes);
        self.bytes.saturating_sub(begin).min(u64::from(self.part_bytes))
    }

    pub(crate) fn to_bytes(self) -> [u8; REFERENCE_BYTES] {
        let mut bytes = [0; REFERENCE_BYTES];
        bytes[..8].copy_from_slice(&self.stamp.clock.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.stamp.client.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.stamp.sequence.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.bytes.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.part_bytes.to_le_bytes());
        bytes[36..].copy_from_slice(&self.sum.to_le_bytes());
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8; REFERENCE_BYTES]) -> Option<Blob> {
        let number = |at: usize, len: usize| {
            let mut number = [0; 8];
            number[..len].copy_from_slice(&bytes[at..at + len]);
            u64::from_le_bytes(number)
        };
        let stamp = Stamp { clock: number(0, 8), client: number(8, 8), sequence: number(16, 8) };
        // Of four bytes each.
        Blob::new(stamp, number(24, 8), number(32, 4) as u32, number(36, 4) as u32)
    }

    pub(crate) fn from_slice(bytes: &[u8]) -> Option<Blob> {
        Blob::from_bytes(bytes.try_into().ok()?)
    }
}

/// One part of a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Of the blob.
    pub stamp: Stamp,
    /// From 0 on.
    pub number: u32,
    /// What it holds.
    pub body: Bytes,
}

impl Part {
    /// The frame.
    pub fn encode(&self) -> Bytes {
        let len = PART_FIXED_BYTES + self.body.len();
        let mut to = Writer::with_room(MAGIC, VERSION, len);
        to.u64(self.stamp.clock);
        to.u64(self.stamp.client);
        to.u64(self.stamp.sequence);
        to.u32(self.number);
        to.raw(&self.body);
        to.finish()
    }

    /// Decodes a frame.
    ///
    /// # Errors
    /// When the bytes are no part of a blob, or were damaged.
    pub fn decode(frame: &Bytes) -> Result<Part, FrameError> {
        let mut from = Reader::new(frame, MAGIC, VERSION)?;
        let stamp = Stamp { clock: from.u64()?, client: from.u64()?, sequence: from.u64()? };
        let number = from.u32()?;
        let body = from.raw(from.rest())?;
        if body.is_empty() || body.len() > PART_BYTES_MAX {
            return Err(from.field("a part of no bytes, or of too many"));
        }
        Ok(Part { stamp, number, body })
    }
}

/// What parts share that are on their way together. Each has the time of one, in which a slow line may
/// carry one and not four: whenever there was no answer one fewer goes at a time, down to one.
pub(crate) struct Line {
    turns: Semaphore,
    width: AtomicUsize,
}

impl Line {
    pub(crate) fn new() -> Line {
        Line { turns: Semaphore::new(AT_ONCE), width: AtomicUsize::new(AT_ONCE) }
    }

    /// Makes a call when it is its turn.
    async fn call<T>(&self, call: impl Future<Output = T>, has_answer: impl Fn(&T) -> bool) -> T {
        // Never closed.
        let turn = self.turns.acquire().await;
        let answer = call.await;
        if !has_answer(&answer)
            && self.narrows()
            && let Ok(turn) = turn
        {
            turn.forget();
        }
        answer
    }

    fn narrows(&self) -> bool {
        let fewer = |width: usize| (width > 1).then(|| width - 1);
        self.width.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer).is_ok()
    }
}

/// Puts one part. Nobody else has its name: what is there is of an earlier attempt.
async fn put_part(
    cloud: &Cloud,
    settings: &Settings,
    part: &Part,
    line: &Line,
) -> Result<(), StoreError> {
    let name = object(part.stamp, part.number);
    let bytes = part.encode();
    let mut attempts = Attempts::new(cloud, settings);
    loop {
        let put = cloud.objects.put(&name, bytes.clone(), PutIf::Absent);
        let fault = match line.call(put, |put| !matches!(put, Put::Unknown(_))).await {
            Put::Stored(_) => return Ok(()),
            Put::Refused | Put::Missing => match get(cloud, settings, &name, line).await? {
                Some(there) if there == bytes => return Ok(()),
                Some(there) => {
                    let source = Part::decode(&there).err();
                    let what = "the bytes of another blob";
                    let source = source.unwrap_or(FrameError::Field { at: 9, what });
                    return Err(StoreError::Damaged { object: name, source });
                }
                None => Fault::Throttled { what: name.clone() },
            },
            Put::Conflict => Fault::Throttled { what: name.clone() },
            Put::Unknown(fault) | Put::Failed(fault) => fault,
        };
        attempts.after(fault).await?;
    }
}

/// Puts all parts of payloads that are in memory, some of them at a time.
pub(crate) async fn put_all(
    cloud: &Cloud,
    settings: &Settings,
    payloads: &[(Blob, Bytes)],
) -> Result<(), StoreError> {
    let mut parts = Vec::new();
    for (blob, payload) in payloads {
        let mut begin = 0;
        for number in 0..blob.parts() {
            let end = begin + blob.bytes_of(number) as usize;
            parts.push(Part { stamp: blob.stamp, number, body: payload.slice(begin..end) });
            begin = end;
        }
    }
    let line = &Line::new();
    let puts =
        stream::iter(parts).map(|part| async move { put_part(cloud, settings, &part, line).await });
    let mut puts = puts.buffer_unordered(AT_ONCE);
    while puts.try_next().await?.is_some() {}
    Ok(())
}

/// Reads an object. `None` when it is not there.
pub(crate) async fn get(
    cloud: &Cloud,
    settings: &Settings,
    name: &str,
    line: &Line,
) -> Result<Option<Bytes>, StoreError> {
    let mut attempts = Attempts::new(cloud, settings);
    let has_answer = |got: &Result<Get, Fault>| {
        !matches!(got, Err(Fault::Unknown { .. } | Fault::Unanswered { .. }))
    };
    loop {
        match line.call(cloud.objects.get(name, None), has_answer).await {
            Ok(Get::Found { bytes, .. }) => return Ok(Some(bytes)),
            Ok(_) => return Ok(None),
            Err(fault) => attempts.after(fault).await?,
        }
    }
}

/// Reads one part. `None` when it is not there.
pub(crate) async fn part(
    cloud: &Cloud,
    settings: &Settings,
    blob: &Blob,
    number: u32,
    line: &Line,
) -> Result<Option<Bytes>, StoreError> {
    let name = blob.object(number);
    let Some(bytes) = get(cloud, settings, &name, line).await? else { return Ok(None) };
    let part = Part::decode(&bytes).and_then(|part| {
        let is_it = (part.stamp, part.number) == (blob.stamp, number);
        let what = "a part of another name, or of another length";
        match is_it && part.body.len() as u64 == blob.bytes_of(number) {
            true => Ok(part.body),
            false => Err(FrameError::Field { at: 5, what }),
        }
    });
    part.map(Some).map_err(|source| StoreError::Damaged { object: name, source })
}

/// What there is of a blob.
pub(crate) enum Whole {
    All(Bytes),
    /// This part is not there.
    Without(u32),
}

/// Reads a blob whole: at most [`PAYLOAD_BYTES_MAX`].
pub(crate) async fn whole(
    cloud: &Cloud,
    settings: &Settings,
    blob: &Blob,
) -> Result<Whole, StoreError> {
    // Of 16 GiB at most, where a count has 64 bits.
    if blob.bytes > PAYLOAD_BYTES_MAX as u64 {
        return Err(crate::record::BoundError::LongPayload(blob.bytes as usize).into());
    }
    let line = &Line::new();
    let parts =
        stream::iter(0..blob.parts()).map(|number| part(cloud, settings, blob, number, line));
    let mut parts = parts.buffered(AT_ONCE);
    let mut all = Vec::with_capacity(blob.bytes as usize);
    let mut number = 0;
    while let Some(part) = parts.try_next().await? {
        let Some(part) = part else { return Ok(Whole::Without(number)) };
        all.extend_from_slice(&part);
        number += 1;
    }
    let mut sum = Digest::new(CrcAlgorithm::Crc32Iscsi);
    sum.update(&all);
    check(blob, &sum)?;
    Ok(Whole::All(all.into()))
}

/// That the parts, each of which is sound, are those that were written together.
pub(crate) fn check(blob: &Blob, sum: &Digest) -> Result<(), StoreError> {
    let found = sum.finalize() as u32;
    if found == blob.sum {
        return Ok(());
    }
    let source = FrameError::Checksum { stored: blob.sum, found };
    Err(StoreError::Damaged { object: blob.object(0), source })
}

/// Writes a payload of unknown length, part by part. What is short enough to lie in a page stays in
/// memory; parts of what is dropped before it is finished, or never committed, are garbage that gc takes.
pub struct Writing {
    cloud: Cloud,
    settings: Settings,
    stamp: Stamp,
    buffer: Vec<u8>,
    /// Parts that are put.
    parts: u32,
    /// Bytes of these.
    put: u64,
    bytes: u64,
    sum: Digest,
}

impl Writing {
    pub(crate) fn new(cloud: Cloud, settings: Settings, stamp: Stamp) -> Writing {
        let sum = Digest::new(CrcAlgorithm::Crc32Iscsi);
        Writing { cloud, settings, stamp, buffer: Vec::new(), parts: 0, put: 0, bytes: 0, sum }
    }

    fn part_bytes(&self) -> usize {
        self.settings.part_bytes.clamp(1, PART_BYTES_MAX)
    }

    /// Appends bytes. Puts parts as they fill.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] when it would have more than [`BLOB_BYTES_MAX`], and whatever the object
    /// store says. After an error it is to be begun again.
    pub async fn write(&mut self, mut bytes: &[u8]) -> Result<(), StoreError> {
        self.bytes += bytes.len() as u64;
        let parts = self.bytes.div_ceil(self.part_bytes() as u64);
        if self.bytes > BLOB_BYTES_MAX || parts > PARTS_MAX {
            let most = BLOB_BYTES_MAX.min(PARTS_MAX * self.part_bytes() as u64);
            return Err(StoreError::Invalid(format!("a blob has at most {most} bytes")));
        }
        self.sum.update(bytes);
        // What may still lie in a page is kept until it may not.
        let most = self.part_bytes().max(self.settings.inline_bytes_max);
        while self.buffer.len() + bytes.len() > most {
            let (now, rest) = bytes.split_at(most - self.buffer.len());
            self.buffer.extend_from_slice(now);
            bytes = rest;
            self.put(self.part_bytes()).await?;
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    async fn put(&mut self, bytes: usize) -> Result<(), StoreError> {
        let body = Bytes::copy_from_slice(&self.buffer[..bytes]);
        let part = Part { stamp: self.stamp, number: self.parts, body };
        put_part(&self.cloud, &self.settings, &part, &Line::new()).await?;
        self.parts += 1;
        self.put += bytes as u64;
        self.buffer.drain(..bytes);
        Ok(())
    }

    /// Puts the rest. The result is what a transaction can say that a record holds
    /// ([`Transaction::put_value`](crate::Transaction::put_value)).
    ///
    /// # Errors
    /// Whatever the object store says.
    /// [`StoreError::Invalid`] if a [`write`](Writing::write) has failed, or was given up: something is missing.
    pub async fn finish(mut self) -> Result<Value, StoreError> {
        if self.put + self.buffer.len() as u64 != self.bytes {
            let text = "a part of this payload was not written: begin it again".to_owned();
            return Err(StoreError::Invalid(text));
        }
        if self.parts == 0 && self.buffer.len() <= self.settings.inline_bytes_max {
            return Ok(Value::Here(self.buffer.into()));
        }
        while !self.buffer.is_empty() {
            self.put(self.buffer.len().min(self.part_bytes())).await?;
        }
        let sum = self.sum.finalize() as u32;
        let blob = Blob::new(self.stamp, self.bytes, self.part_bytes() as u32, sum);
        blob.map(Value::Blob).ok_or_else(|| StoreError::Invalid("no such blob can be".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::cloud::{
        Delete, ETag, Listing, Objects,
        embedded::{self, Memory},
    };

    fn stamp() -> Stamp {
        Stamp { clock: 1_763_690_400_000_000, client: 0xfeed, sequence: 3 }
    }

    #[test]
    fn parts_cover_all_of_it() {
        let blob = Blob::new(stamp(), 10, 4, 7).unwrap();
        assert_eq!(blob.parts(), 3);
        assert_eq!((0..4).map(|part| blob.bytes_of(part)).collect::<Vec<_>>(), [4, 4, 2, 0]);
    }

    #[test]
    fn what_no_blob_is_is_refused() {
        let new = |bytes, part_bytes| Blob::new(stamp(), bytes, part_bytes, 0);
        let blob = new(BLOB_BYTES_MAX, PART_BYTES_MAX as u32).unwrap();
        assert_eq!(Blob::from_bytes(&blob.to_bytes()), Some(blob));
        for (bytes, part_bytes) in [
            (0, 1),
            (1, 0),
            (BLOB_BYTES_MAX + 1, PART_BYTES_MAX as u32),
            (1, PART_BYTES_MAX as u32 + 1),
            // More parts than anyone lists.
            (BLOB_BYTES_MAX, 1),
        ] {
            assert_eq!(new(bytes, part_bytes), None, "{bytes} {part_bytes}");
        }
        let late = Stamp { clock: u64::MAX, ..stamp() };
        assert_eq!(Blob::new(late, 1, 1, 0), None);
        assert_eq!(Blob::from_slice(&blob.to_bytes()[1..]), None);
    }

    /// A line that carries what goes alone. Whatever goes together has no answer.
    struct Slow {
        beneath: Arc<dyn Objects>,
        under_way: AtomicUsize,
        unanswered: AtomicUsize,
    }

    impl Slow {
        async fn is_alone(&self) -> bool {
            let mut is_alone = self.under_way.fetch_add(1, Ordering::Relaxed) == 0;
            for _ in 0..10 {
                tokio::task::yield_now().await;
                is_alone &= self.under_way.load(Ordering::Relaxed) == 1;
            }
            self.under_way.fetch_sub(1, Ordering::Relaxed);
            self.unanswered.fetch_add(usize::from(!is_alone), Ordering::Relaxed);
            is_alone
        }
    }

    fn late(name: &str) -> Fault {
        Fault::Unknown { what: name.to_owned(), cause: "it took too long".to_owned() }
    }

    #[async_trait::async_trait]
    impl Objects for Slow {
        async fn get(&self, name: &str, unless: Option<&ETag>) -> Result<Get, Fault> {
            match self.is_alone().await {
                true => self.beneath.get(name, unless).await,
                false => Err(late(name)),
            }
        }

        async fn put(&self, name: &str, bytes: Bytes, condition: PutIf) -> Put {
            match self.is_alone().await {
                true => self.beneath.put(name, bytes, condition).await,
                false => Put::Unknown(late(name)),
            }
        }

        async fn delete(&self, name: &str, only: Option<&ETag>) -> Delete {
            self.beneath.delete(name, only).await
        }

        async fn list(
            &self,
            prefix: &str,
            after: Option<&str>,
            max: usize,
        ) -> Result<Listing, Fault> {
            self.beneath.list(prefix, after, max).await
        }
    }

    /// Four parts that went together had the time of one each, at every attempt: where the line was too slow
    /// for that, none of them ever arrived.
    #[tokio::test]
    async fn parts_go_one_by_one_where_the_line_is_slow() {
        let raw = embedded::memory(Arc::new(Memory::new()));
        let slow = Arc::new(Slow {
            beneath: raw.objects.clone(),
            under_way: AtomicUsize::new(0),
            unanswered: AtomicUsize::new(0),
        });
        let cloud = Cloud { objects: slow.clone(), ..raw };
        let backoff = std::time::Duration::ZERO;
        let settings = Settings { attempts_max: 10, backoff, ..Settings::default() };
        let payload = Bytes::from((0..200u8).collect::<Vec<u8>>());
        let blob = Blob::of(stamp(), &payload, 10).unwrap();
        put_all(&cloud, &settings, &[(blob, payload.clone())]).await.unwrap();
        let unanswered = slow.unanswered.swap(0, Ordering::Relaxed);
        assert!((2..20).contains(&unanswered), "{unanswered}");
        match whole(&cloud, &settings, &blob).await.unwrap() {
            Whole::All(there) => assert_eq!(there, payload),
            Whole::Without(part) => panic!("no part {part}"),
        }
        let unanswered = slow.unanswered.load(Ordering::Relaxed);
        assert!((2..20).contains(&unanswered), "{unanswered}");
        // What is not there is named.
        assert_eq!(cloud.objects.delete(&blob.object(7), None).await, Delete::Gone);
        let there = whole(&cloud, &settings, &blob).await.unwrap();
        assert!(matches!(there, Whole::Without(7)));
    }
}
