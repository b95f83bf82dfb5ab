//! What every source promises, checked: call [`check`] on yours.
//!
//! ```
//! # async fn run() -> Result<(), sources::conformance::Violation> {
//! let bytes: Vec<u8> = (0..100_000u32).map(|n| (n * 31 >> 3) as u8).collect();
//! let source = sources::Memory::new("sample", bytes.clone());
//! sources::conformance::check(source, &bytes).await?;
//! # Ok(()) }
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
//! #     .block_on(run()).unwrap();
//! ```
//!
//! | check | what is promised |
//! | --- | --- |
//! | `name` | not empty, the same at every call, no `@` before the host and no signature |
//! | `stat` | the object's length; the same twice; alignment and part of at least 1 |
//! | `whole` | the whole object in one read, if it is not empty |
//! | `ranges` | first byte, last byte, halves, around parts and alignments, some at random |
//! | `read_into` | appends exactly the range, and leaves what the frame held |
//! | `at_once` | the same by one blocking call, where the source is read so, and the same refusals |
//! | `refuses` | empty, reversed and outside ranges are `Permanent`, from `read` and `read_into` |
//! | `version` | a version that is not the object's is `Changed` |
//! | `concurrent` | many reads at once, from several tasks |
//! | `dropped` | bodies and futures dropped half way; later reads are not disturbed |
//!
//! The object must hold still meanwhile. The more bytes it has the more the checks see: 100 KB are
//! a good start, and more than one `part_bytes` is best.

mod sinks; // what goes back

pub use sinks::check as check_sink;

use std::{fmt, ops::Range, sync::Arc};

use futures::{FutureExt, StreamExt, future::try_join_all};
use pager::{BlockSource, Frame, ObjectStat, SourceError, Strength, Version};

use crate::chance::Chance;

/// Reads of one check that run at once.
const READERS: u64 = 16;
/// Ranges tried at random.
const RANDOM_RANGES: u64 = 24;
/// The longest range of those: the suite is about edges, not about speed.
const RANDOM_BYTES_MAX: u64 = 300_000;

/// A promise that a source did not keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The check, as named in the table above.
    pub check: &'static str,
    /// What was expected, and what came.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.check, self.detail)
    }
}

impl std::error::Error for Violation {}

type Checked = Result<(), Violation>;

fn violated<T>(check: &'static str, detail: impl Into<String>) -> Result<T, Violation> {
    Err(Violation { check, detail: detail.into() })
}

/// Checks `source`, whose object has the bytes `expected`, on the present tokio runtime.
///
/// # Errors
/// The first promise that was not kept.
pub async fn check(source: impl BlockSource, expected: &[u8]) -> Checked {
    let source: Arc<dyn BlockSource> = Arc::new(source);
    let expected: Arc<[u8]> = expected.into();
    let name = source.name().to_owned();
    name_is_public(&name)?;
    let stat = stat_is_steady(&*source, expected.len() as u64).await?;
    let subject = Subject { source, expected, stat };
    if !subject.expected.is_empty() {
        subject.whole().await?;
        subject.ranges().await?;
        subject.read_into().await?;
    }
    subject.at_once().await?;
    subject.refuses().await?;
    if !subject.expected.is_empty() {
        subject.version().await?;
        subject.concurrent().await?;
        subject.dropped().await?;
    }
    if subject.source.name() != name {
        return violated("name", format!("it was {name:?} and became another"));
    }
    let again = subject.source.stat().await;
    match again {
        Ok(stat) if stat == subject.stat => Ok(()),
        other => violated("stat", format!("after the checks: {other:?}, not {:?}", subject.stat)),
    }
}

fn name_is_public(name: &str) -> Checked {
    if name.is_empty() {
        return violated("name", "it is empty");
    }
    let authority = name.split_once("://").map_or("", |(_, rest)| rest);
    if authority.split('/').next().is_some_and(|host| host.contains('@')) {
        return violated("name", "it holds credentials");
    }
    let lower = name.to_ascii_lowercase();
    for secret in
        ["x-amz-signature", "x-amz-security-token", "x-goog-signature", "sig=", "password="]
    {
        if lower.contains(secret) {
            return violated("name", format!("it holds a secret: {secret}..."));
        }
    }
    Ok(())
}

async fn stat_is_steady(source: &dyn BlockSource, len: u64) -> Result<ObjectStat, Violation> {
    let failed = |error: SourceError| Violation { check: "stat", detail: error.to_string() };
    let first = source.stat().await.map_err(failed)?;
    let second = source.stat().await.map_err(failed)?;
    if first != second {
        return violated("stat", format!("two answers: {first:?} and {second:?}"));
    }
    if first.len != len {
        return violated("stat", format!("{} bytes, where the object has {len}", first.len));
    }
    if first.alignment == 0 || first.part_bytes == 0 {
        return violated("stat", format!("alignment and part must be at least 1: {first:?}"));
    }
    Ok(first)
}

struct Subject {
    source: Arc<dyn BlockSource>,
    expected: Arc<[u8]>,
    stat: ObjectStat,
}

impl Subject {
    fn len(&self) -> u64 {
        self.stat.len
    }

    fn bytes(&self, range: &Range<u64>) -> &[u8] {
        &self.expected[range.start as usize..range.end as usize]
    }

    /// Reads `range`, compares every chunk where it belongs, and counts.
    async fn same(&self, check: &'static str, range: Range<u64>) -> Checked {
        let failed = |error: SourceError| Violation {
            check,
            detail: format!("bytes {}..{}: {error}", range.start, range.end),
        };
        let mut body = self.source.read(&self.stat.version, range.clone()).await.map_err(failed)?;
        let mut at = range.start;
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(failed)?;
            let end = at + chunk.len() as u64;
            if end > range.end {
                return violated(check, format!("bytes {range:?}: the body goes on to {end}"));
            }
            if chunk != self.bytes(&(at..end)) {
                return violated(check, format!("bytes {range:?}: wrong bytes in {at}..{end}"));
            }
            at = end;
        }
        if at != range.end {
            return violated(check, format!("bytes {range:?}: the body ends at {at}"));
        }
        Ok(())
    }

    async fn whole(&self) -> Checked {
        self.same("whole", 0..self.len()).await
    }

    /// Ranges at every edge that a source may care about.
    fn edges(&self) -> Vec<Range<u64>> {
        let len = self.len();
        let mut edges = vec![0..1, len - 1..len, 0..len.div_ceil(2), len / 2..len];
        for step in [self.stat.alignment, self.stat.part_bytes, 4096, 64 << 10, 256 << 10, 1 << 20]
        {
            let around = [step - 1, step, step + 1];
            for start in around {
                for end in [start + 1, start + 2, start.saturating_mul(2)] {
                    edges.push(start..end);
                }
            }
        }
        let chance = Chance::seeded(len);
        for _ in 0..RANDOM_RANGES {
            let start = chance.below(len);
            let most = (len - start).min(RANDOM_BYTES_MAX);
            edges.push(start..start + 1 + chance.below(most));
        }
        edges.retain(|range| range.start < range.end && range.end <= len);
        edges.sort_by_key(|range| (range.start, range.end));
        edges.dedup();
        edges
    }

    async fn ranges(&self) -> Checked {
        for range in self.edges() {
            self.same("ranges", range).await?;
        }
        Ok(())
    }

    async fn read_into(&self) -> Checked {
        const HELD: &[u8] = b"what the frame held before";
        for range in self.edges() {
            let wanted = (range.end - range.start) as usize;
            // Exactly enough room in one case, more in the other (rounded up to pages).
            for spare in [0, 4096] {
                let mut frame = Frame::with_capacity(HELD.len() + wanted + spare);
                frame.put(HELD);
                let read = self.source.read_into(&self.stat.version, range.clone(), frame);
                let frame = read.await.map_err(|error| Violation {
                    check: "read_into",
                    detail: format!("bytes {range:?}: {error}"),
                })?;
                let (held, got) = frame.filled().split_at(HELD.len().min(frame.filled().len()));
                if held != HELD {
                    return violated("read_into", format!("bytes {range:?}: overwrote the frame"));
                }
                if got.len() != wanted {
                    let detail = format!("bytes {range:?}: appended {} bytes", got.len());
                    return violated("read_into", detail);
                }
                if got != self.bytes(&range) {
                    return violated("read_into", format!("bytes {range:?}: wrong bytes"));
                }
            }
        }
        Ok(())
    }

    /// What is read by one blocking call is what `read_into` makes of it, errors included.
    async fn at_once(&self) -> Checked {
        const HELD: &[u8] = b"what the frame held before";
        let (len, pinned) = (self.len(), self.stat.version.clone());
        let other = match pinned.strength() {
            Strength::Strong => Version::strong(format!("{}x", pinned.token())),
            Strength::Weak => Version::weak(format!("{}x", pinned.token())),
        };
        // A version, a range, and how that is refused, if it is.
        let mut cases = vec![
            (pinned.clone(), 0..0, Some("permanent")),
            (pinned.clone(), len..len + 1, Some("permanent")),
        ];
        if len > 0 {
            cases.extend(self.edges().into_iter().map(|range| (pinned.clone(), range, None)));
            cases.push((other, 0..1, Some("changed")));
        }
        for (version, range, refused) in cases {
            let (source, wanted) = (self.source.clone(), range.clone());
            let read = tokio::task::spawn_blocking(move || {
                let mut frame =
                    Frame::with_capacity(HELD.len() + (range.end - range.start) as usize);
                frame.put(HELD);
                Some(source.at_once()?.read_at_once(&version, range, frame))
            });
            let outcome = match (read.await, refused) {
                // Nothing is promised.
                (Ok(None), _) => return Ok(()),
                (Ok(Some(Ok(frame))), None) => {
                    let got = frame.filled().strip_prefix(HELD);
                    match got == Some(self.bytes(&wanted)) {
                        true => continue,
                        false => "other bytes".to_owned(),
                    }
                }
                (Ok(Some(Err(error))), Some(kind)) if error.kind() == kind => continue,
                (Ok(Some(Ok(_))), Some(kind)) => format!("bytes instead of {kind}"),
                (Ok(Some(Err(error))), _) => format!("{}: {error}", error.kind()),
                (Err(panicked), _) => panicked.to_string(),
            };
            return violated("at_once", format!("bytes {wanted:?}: {outcome}"));
        }
        Ok(())
    }

    async fn refuses(&self) -> Checked {
        let len = self.len();
        let reversed = Range { start: len.min(2), end: 1 };
        let cases = [
            ("an empty range", 0..0),
            ("an empty range at the end", len..len),
            ("a reversed range", reversed),
            ("one byte too many", 0..len + 1),
            ("a range past the end", len..len + 1),
            ("a range far past the end", len + (1 << 20)..len + (1 << 20) + 5),
        ];
        for (what, range) in cases {
            if range.start < range.end && range.end <= len {
                continue;
            }
            match self.collect(range.clone()).await {
                Err(SourceError::Permanent { .. }) => {}
                Ok(got) => return violated("refuses", format!("{what}: {got} bytes came")),
                Err(error) => {
                    let detail = format!("{what}: {} instead of permanent: {error}", error.kind());
                    return violated("refuses", detail);
                }
            }
            let frame = Frame::with_capacity((range.end.saturating_sub(range.start)) as usize + 1);
            match self.source.read_into(&self.stat.version, range, frame).await {
                Err(SourceError::Permanent { .. }) => {}
                other => return violated("refuses", format!("{what}, into a frame: {other:?}")),
            }
        }
        Ok(())
    }

    async fn collect(&self, range: Range<u64>) -> Result<usize, SourceError> {
        let mut body = self.source.read(&self.stat.version, range).await?;
        let mut got = 0;
        while let Some(chunk) = body.next().await {
            got += chunk?.len();
        }
        Ok(got)
    }

    async fn version(&self) -> Checked {
        let token = format!("{}x", self.stat.version.token());
        let others = match self.stat.version.strength() {
            Strength::Strong => [Version::strong(token), Version::strong("\"some-other-version\"")],
            Strength::Weak => [Version::weak(token), Version::weak("some other version")],
        };
        for other in others {
            match self.source.read(&other, 0..1).await.map(drop) {
                Err(SourceError::Changed { .. }) => {}
                Ok(()) => return violated("version", format!("{other:?} was read")),
                Err(error) => {
                    let detail = format!("{other:?}: {} instead of changed: {error}", error.kind());
                    return violated("version", detail);
                }
            }
            let frame = Frame::with_capacity(1);
            match self.source.read_into(&other, 0..1, frame).await {
                Err(SourceError::Changed { .. }) => {}
                got => return violated("version", format!("{other:?}, into a frame: {got:?}")),
            }
        }
        Ok(())
    }

    async fn concurrent(&self) -> Checked {
        let len = self.len();
        let part = len.div_ceil(READERS);
        let reads = (0..READERS).map(|reader| {
            let start = (reader * part).min(len - 1);
            // Neighbours overlap by a byte.
            let end = (start + part + 1).min(len);
            self.same("concurrent", start..end)
        });
        try_join_all(reads).await.map(drop)
    }

    async fn dropped(&self) -> Checked {
        for _ in 0..READERS {
            let read = self.source.read(&self.stat.version, 0..self.len());
            let failed =
                |error: SourceError| Violation { check: "dropped", detail: error.to_string() };
            let mut body = read.await.map_err(failed)?;
            // Some after one chunk, some before it is there.
            let _ = body.next().now_or_never();
            drop(body);
            let _ = self.source.read(&self.stat.version, 0..1).now_or_never();
            let frame = Frame::with_capacity(1);
            let _ = self.source.read_into(&self.stat.version, 0..1, frame).now_or_never();
        }
        self.same("dropped", 0..self.len()).await
    }
}
