//! Several objects, or parts of objects, as one: a concatenation.
//!
//! ```text
//!   parts      [ a, whole ][ b, 100..200 ][ c, 0..5000 ][ b, 700..900 ]
//!   addresses  0 ........ a           a+100          a+5100        a+5300
//!   asked      at once      at its first touch          with the first touch of b
//! ```
//!
//! - **Lazily.** Where a part says which bytes it has, its object is asked for length and version
//!   when it is first touched, and never if the version was given, too: a list of ten thousand
//!   objects with their lengths opens without a request. The others are asked when the whole is
//!   opened, [`STATS_AT_ONCE`] at a time.
//! - **One version.** What an object was at its first touch it is from then on, in all its parts. One
//!   that has changed is [`SourceError::Changed`], with the name of that object; other parts stay
//!   readable, but for units of a region that have bytes of both. To see the objects as they are now,
//!   make another `Concat`.
//! - **The version of the whole** is made of the versions of its parts where all are known when it is
//!   opened: then the same parts have the same version in any process, and a disk cache may stand
//!   around the whole. Otherwise it is one that nobody else has.
//! - **Reads over an edge** ask all parts that they touch. What comes out of turn is kept in memory, at
//!   most [`AHEAD_BYTES_MAX`] for all reads of one `Concat` together.
//!
//! Wrappers go around the parts, as [`Options::open`](crate::Options::open) puts them: each part is
//! retried, limited and counted for itself.

use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasher, RandomState},
    ops::Range,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt, future, stream};
use pager::{
    BlockSource, ByteStream, Frame, ObjectStat, ReadAtOnce, SourceError, Strength, Version,
    source::collect_into,
};
use sha2::{Digest, Sha256};
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};

use crate::body::{Body, WAIT_MAX, check_range};

/// Parts that one `Concat` may have: some 200 MB of them with their sources.
pub const PARTS_MAX: usize = 1 << 20;

/// Objects that are asked for length and version at a time.
pub const STATS_AT_ONCE: usize = 16;

/// Bytes kept in memory, for all reads together, that arrived before what stands in front of them.
pub const AHEAD_BYTES_MAX: u64 = 16 << 20;

/// The same for one request. What it reads beyond is asked for when it is reached.
const GROUP_AHEAD_MAX: u64 = 4 << 20;
/// Parts of one request that are asked for before the first byte of it is handed on: 2 MiB of list.
const GROUP_PIECES_MAX: usize = 1 << 16;
/// A request of no more than this waits for all its parts at once: one round trip instead of two.
const COLLECTED_WHOLE: u64 = 256 << 10;
/// Parts of one request that are read at a time.
const PIECES_AT_ONCE: usize = 16;
/// The best request where no part says which: longer ones touch more parts than they gain.
const PART_BYTES: u64 = 4 << 20;

/// One part of a [`Concat`]: an object, or a range of one. The same `Arc` in several parts is one
/// object, asked once.
#[derive(Clone)]
pub struct Part {
    source: Arc<dyn BlockSource>,
    range: Option<Range<u64>>,
    version: Option<Version>,
}

impl Part {
    /// The whole object, however long it is: asked when the concatenation is opened.
    pub fn whole(source: Arc<dyn BlockSource>) -> Part {
        Part { source, range: None, version: None }
    }

    /// These bytes of the object, which is asked when it is first touched. For an object whose length
    /// is known from a listing: `0..len`.
    pub fn of(source: Arc<dyn BlockSource>, range: Range<u64>) -> Part {
        Part { source, range: Some(range), version: None }
    }

    /// Reads this version of the object, as an earlier `stat` of it gave it. A part with a range and a
    /// version is never asked for either.
    #[must_use]
    pub fn at(self, version: Version) -> Part {
        Part { version: Some(version), ..self }
    }
}

/// Objects and parts of objects, one behind the other, as one object.
///
/// ```
/// # async fn run() -> Result<(), sources::SourceError> {
/// use std::sync::Arc;
/// use sources::{BlockSource, Concat, Memory, Part};
/// let (head, rest) = (Arc::new(Memory::new("a", "never ")), Arc::new(Memory::new("b", "zeros!")));
/// let both = Concat::new("both", [Part::whole(head), Part::of(rest, 0..5)])?;
/// assert_eq!(both.stat().await?.len, 11);
/// # Ok(()) }
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
/// #     .block_on(run()).unwrap();
/// ```
#[derive(Clone)]
pub struct Concat(Arc<Inner>);

struct Inner {
    name: String,
    objects: Vec<Object>,
    parts: Vec<Listed>,
    accept_weak: bool,
    /// What is known once the objects that must be asked were.
    layout: OnceCell<Layout>,
    /// One permit a KiB that is kept out of turn.
    ahead: Arc<Semaphore>,
}

/// One object, however many parts are of it.
struct Object {
    source: Arc<dyn BlockSource>,
    given: Option<Version>,
    /// Whether a part is all of it, so that its length must be known.
    eager: bool,
    /// The largest end of its parts that say which bytes they have.
    needed: u64,
    /// What it said when it was asked: what it is from then on.
    found: OnceCell<ObjectStat>,
}

struct Listed {
    object: usize,
    range: Option<Range<u64>>,
}

/// Where each part lies.
struct Layout {
    /// For each part, where it ends in the whole.
    ends: Vec<u64>,
    /// For each part, where it starts in its object.
    starts: Vec<u64>,
    stat: ObjectStat,
}

/// Bytes of one object that lie together in the whole.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Piece {
    object: usize,
    range: Range<u64>,
}

impl Piece {
    fn len(&self) -> u64 {
        self.range.end - self.range.start
    }
}

impl Concat {
    /// `parts` one behind the other, under `name` in metrics and errors. Nothing is asked before the
    /// source is used.
    ///
    /// # Errors
    /// [`SourceError::Permanent`] for more than [`PARTS_MAX`] parts, for a part whose range is
    /// reversed, for an object that is given two versions, and for an empty name.
    pub fn new(
        name: impl Into<String>,
        parts: impl IntoIterator<Item = Part>,
    ) -> Result<Concat, SourceError> {
        let name = name.into();
        let refuse =
            |reason: String| SourceError::Permanent { object: name.clone(), reason, cause: None };
        if name.is_empty() {
            return Err(SourceError::Permanent {
                object: "a concatenation".to_owned(),
                reason: "it needs a name".to_owned(),
                cause: None,
            });
        }
        let (mut objects, mut listed) = (Vec::<Object>::new(), Vec::new());
        let mut known: HashMap<*const (), usize> = HashMap::new();
        for (n, Part { source, range, version }) in parts.into_iter().enumerate() {
            if n == PARTS_MAX {
                return Err(refuse(format!("it has more than {PARTS_MAX} parts")));
            }
            if let Some(range) = range.as_ref().filter(|range| range.start > range.end) {
                let (start, end, part) = (range.start, range.end, source.name());
                return Err(refuse(format!(
                    "part {n}: bytes {start}..{end} of {part} are no range"
                )));
            }
            let object = *known.entry(Arc::as_ptr(&source).cast()).or_insert(objects.len());
            if object == objects.len() {
                let found = OnceCell::new();
                objects.push(Object { source, given: None, eager: false, needed: 0, found });
            }
            let of = &mut objects[object];
            match &range {
                Some(range) => of.needed = of.needed.max(range.end),
                None => of.eager = true,
            }
            match (&of.given, version) {
                (_, None) => {}
                (Some(one), Some(other)) if *one != other => {
                    let part = of.source.name();
                    let reason = format!("part {n}: {part} is to be read at {one} and at {other}");
                    return Err(refuse(reason));
                }
                (_, version) => of.given = version,
            }
            listed.push(Listed { object, range });
        }
        let ahead = Arc::new(Semaphore::new((AHEAD_BYTES_MAX >> 10) as usize));
        let layout = OnceCell::new();
        let inner = Inner { name, objects, parts: listed, accept_weak: false, layout, ahead };
        Ok(Concat(Arc::new(inner)))
    }

    /// Lets parts that are asked at their first touch have versions that cannot show every change.
    /// The version of the whole is then weak: it can be loaded and not mapped. Without this such a
    /// part is refused when it is touched. Parts that are asked at once need no leave: a weak one
    /// makes the whole weak.
    ///
    /// # Panics
    /// When the source has been cloned or used.
    #[must_use]
    pub fn accept_weak(mut self) -> Concat {
        let inner = Arc::get_mut(&mut self.0).expect("a concatenation is set up before it is used");
        inner.accept_weak = true;
        self
    }

    /// How many parts there are.
    pub fn parts(&self) -> usize {
        self.0.parts.len()
    }
}

impl fmt::Debug for Concat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Concat({}, {} parts)", self.0.name, self.0.parts.len())
    }
}

impl Object {
    /// Asks for length and version, once.
    async fn find(&self) -> Result<&ObjectStat, SourceError> {
        let ask = || async {
            let stat = self.source.stat().await?;
            if let Some(given) = self.given.as_ref().filter(|given| **given != stat.version) {
                return Err(SourceError::Changed {
                    object: self.source.name().to_owned(),
                    expected: given.to_string(),
                    found: stat.version.to_string(),
                });
            }
            if stat.len < self.needed {
                let (len, needed) = (stat.len, self.needed);
                return Err(SourceError::Permanent {
                    object: self.source.name().to_owned(),
                    reason: format!(
                        "it has {len} bytes, and a part of it goes up to {needed}: it is not the \
                         object that was listed"
                    ),
                    cause: None,
                });
            }
            Ok(stat)
        };
        self.found.get_or_try_init(ask).await
    }

    /// The version, where it is known without asking.
    fn known(&self) -> Option<&Version> {
        self.given.as_ref().or_else(|| self.found.get().map(|stat| &stat.version))
    }
}

impl Inner {
    async fn layout(&self) -> Result<&Layout, SourceError> {
        let ask = || async {
            let all = 0..self.objects.len();
            let eager: Vec<usize> = all.filter(|&n| self.objects[n].eager).collect();
            stream::iter(eager)
                .map(|n| async move { self.objects[n].find().await.map(drop) })
                .buffer_unordered(STATS_AT_ONCE)
                .try_collect::<()>()
                .await?;
            self.lay_out()
        };
        self.layout.get_or_try_init(ask).await
    }

    /// Puts the parts, all of known length, one behind the other.
    fn lay_out(&self) -> Result<Layout, SourceError> {
        let (mut starts, mut ends) = (Vec::new(), Vec::new());
        let (mut at, mut part_bytes, mut alignment) = (0u64, None, 1);
        for part in &self.parts {
            let found = self.objects[part.object].found.get();
            let range = match (&part.range, found) {
                (Some(range), _) => range.clone(),
                (None, found) => 0..found.map_or(0, |stat| stat.len),
            };
            at = at.checked_add(range.end - range.start).ok_or_else(|| SourceError::Permanent {
                object: self.name.clone(),
                reason: "its parts have more than 2^64 bytes together".to_owned(),
                cause: None,
            })?;
            starts.push(range.start);
            ends.push(at);
            if let Some(stat) = found {
                part_bytes = part_bytes.max(Some(stat.part_bytes));
                alignment = alignment.max(stat.alignment);
            }
        }
        // The parts' alignment is that of the whole only where every part keeps its own place.
        let begins = ends.iter().zip(&starts).zip([0].iter().chain(&ends));
        let keep =
            begins.into_iter().all(|((_, start), begin)| begin.abs_diff(*start) % alignment == 0);
        let part_bytes = match (self.parts.len(), part_bytes) {
            (1, Some(bytes)) => bytes,
            (_, bytes) => bytes.unwrap_or(PART_BYTES).min(PART_BYTES),
        };
        let version = self.version();
        let alignment = if keep { alignment } else { 1 };
        Ok(Layout {
            starts,
            ends,
            stat: ObjectStat::new(at, version)
                .with_alignment(alignment)
                .with_part_bytes(part_bytes),
        })
    }

    /// The version of the whole: see the module's page.
    fn version(&self) -> Version {
        let versions: Vec<_> = self.objects.iter().map(Object::known).collect();
        let is_weak = |version: &&Version| version.strength() == Strength::Weak;
        let weak = self.accept_weak || versions.iter().flatten().any(is_weak);
        let token = if versions.iter().all(Option::is_some) {
            let mut hash = Sha256::new();
            for part in &self.parts {
                let version = versions[part.object].map_or("", Version::token);
                // Lengths first, so that no two lists run together to the same text.
                for text in [self.objects[part.object].source.name(), version] {
                    hash.update((text.len() as u64).to_le_bytes());
                    hash.update(text);
                }
                let range = part.range.clone().unwrap_or(0..u64::MAX);
                hash.update(range.start.to_le_bytes());
                hash.update(range.end.to_le_bytes());
            }
            let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
            format!("concat-{hex}")
        } else {
            // 128 bits that the system chose for this process, and for each call anew.
            let chance = RandomState::new();
            format!("concat-{:016x}{:016x}", chance.hash_one(0), chance.hash_one(1))
        };
        if weak { Version::weak(token) } else { Version::strong(token) }
    }

    fn check(
        &self,
        layout: &Layout,
        version: &Version,
        range: &Range<u64>,
    ) -> Result<(), SourceError> {
        let stat = &layout.stat;
        if *version != stat.version {
            return Err(SourceError::Changed {
                object: self.name.clone(),
                expected: version.to_string(),
                found: stat.version.to_string(),
            });
        }
        check_range(&self.name, range, stat.len)
    }

    /// What `range` of the whole is made of. Ranges of one object that follow each other are one.
    fn pieces<'a>(&'a self, layout: &'a Layout, range: Range<u64>) -> impl Iterator<Item = Piece> {
        let mut part = layout.ends.partition_point(|&end| end <= range.start);
        let mut at = range.start;
        std::iter::from_fn(move || {
            let mut piece: Option<Piece> = None;
            while at < range.end {
                let begin = if part == 0 { 0 } else { layout.ends[part - 1] };
                let until = layout.ends[part].min(range.end);
                let (object, start) = (self.parts[part].object, layout.starts[part] + (at - begin));
                let more = start..start + (until - at);
                match &mut piece {
                    _ if more.is_empty() => {}
                    None => piece = Some(Piece { object, range: more }),
                    Some(piece) if piece.object == object && piece.range.end == more.start => {
                        piece.range.end = more.end;
                    }
                    Some(_) => break,
                }
                at = until;
                part += 1;
            }
            piece
        })
    }

    /// The front of `range` that one answer is made of, and where it ends.
    fn group(&self, layout: &Layout, range: Range<u64>) -> (Vec<Piece>, u64) {
        let (mut group, mut at) = (Vec::new(), range.start);
        let (mut sum, mut largest) = (0u64, 0u64);
        for piece in self.pieces(layout, range) {
            let len = piece.len();
            let ahead = sum + len - largest.max(len);
            if !group.is_empty() && (ahead > GROUP_AHEAD_MAX || group.len() == GROUP_PIECES_MAX) {
                break;
            }
            (sum, largest, at) = (sum + len, largest.max(len), at + len);
            group.push(piece);
        }
        (group, at)
    }

    /// The version at which an object is read: asked for now if it never was.
    async fn pinned(&self, object: usize) -> Result<&Version, SourceError> {
        let object = &self.objects[object];
        if let Some(known) = object.known() {
            return Ok(known);
        }
        let found = &object.find().await?.version;
        let whole = self.layout.get().map(|layout| layout.stat.version.strength());
        if found.strength() == Strength::Weak && whole == Some(Strength::Strong) {
            return Err(SourceError::Permanent {
                object: object.source.name().to_owned(),
                reason: format!(
                    "its version, {found}, cannot show every change, and the version of {} promises \
                     that it does; list it without a range, or let the concatenation accept weak \
                     versions",
                    self.name
                ),
                cause: None,
            });
        }
        Ok(found)
    }

    async fn start(&self, piece: &Piece) -> Result<ByteStream, SourceError> {
        let version = self.pinned(piece.object).await?;
        self.objects[piece.object].source.read(version, piece.range.clone()).await
    }

    /// A body that has exactly the bytes of `piece`: what is short in one part must not be made up for
    /// by another.
    async fn start_exact(&self, piece: &Piece) -> Result<ByteStream, SourceError> {
        let body = self.start(piece).await?;
        let name = self.objects[piece.object].source.name();
        Ok(Body::stream(name, piece.range.clone(), WAIT_MAX, body))
    }

    async fn collect(&self, piece: &Piece) -> Result<Vec<Bytes>, SourceError> {
        self.start_exact(piece).await?.try_collect().await
    }

    /// The bytes of `group`, in order.
    ///
    /// All parts but the largest are read to their ends first, and then the largest is opened: who
    /// holds one of few connections goes on reading from it, and never waits for a second one
    /// meanwhile. A part that fails fails in its turn: what stands before it is handed on.
    async fn open(&self, group: &[Piece]) -> Result<ByteStream, SourceError> {
        if let [piece] = group {
            return self.start_exact(piece).await;
        }
        let all: u64 = group.iter().map(Piece::len).sum();
        let largest = (0..group.len()).max_by_key(|&n| group[n].len());
        let streamed = largest.filter(|_| all > COLLECTED_WHOLE);
        let ahead = all - streamed.map_or(0, |n| group[n].len());
        let permits = ahead.div_ceil(1 << 10) as u32;
        let permit = self.ahead.clone().acquire_many_owned(permits).await;
        let permit = permit.expect("the semaphore is never closed");
        let collected = stream::iter(0..group.len())
            .map(|n| async move {
                match streamed == Some(n) {
                    // Only asked for its version, if it never was.
                    true => self.pinned(group[n].object).await.map(|_| Vec::new()),
                    false => self.collect(&group[n]).await,
                }
            })
            .buffered(PIECES_AT_ONCE)
            .collect::<Vec<_>>()
            .await;
        let mut bodies: Vec<ByteStream> = Vec::new();
        for (n, outcome) in collected.into_iter().enumerate() {
            let body = match outcome {
                Ok(_) if streamed == Some(n) => self.start_exact(&group[n]).await,
                Ok(chunks) => Ok(Box::pin(stream::iter(chunks.into_iter().map(Ok))) as ByteStream),
                Err(error) => Err(error),
            };
            match body {
                Ok(body) => bodies.push(body),
                Err(error) if n == 0 => return Err(error),
                Err(error) => {
                    bodies.push(Box::pin(stream::once(future::ready(Err(error)))));
                    break;
                }
            }
        }
        let inner: ByteStream = Box::pin(stream::iter(bodies).flatten());
        Ok(Box::pin(Ahead { inner, _permit: permit }))
    }
}

/// A body, part of which is in memory already.
struct Ahead {
    inner: ByteStream,
    _permit: OwnedSemaphorePermit,
}

impl Stream for Ahead {
    type Item = Result<Bytes, SourceError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.inner.as_mut().poll_next(context)
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl BlockSource for Concat {
    fn name(&self) -> &str {
        &self.0.name
    }

    async fn stat(&self) -> Result<ObjectStat, SourceError> {
        Ok(self.0.layout().await?.stat.clone())
    }

    async fn read(&self, version: &Version, range: Range<u64>) -> Result<ByteStream, SourceError> {
        let inner = &self.0;
        let layout = inner.layout().await?;
        inner.check(layout, version, &range)?;
        let (group, at) = inner.group(layout, range.clone());
        if let ([piece], true) = (&group[..], at == range.end) {
            return inner.start(piece).await;
        }
        let first = inner.open(&group).await?;
        let end = range.end;
        let rest = stream::try_unfold((inner.clone(), at), move |(inner, at)| async move {
            if at == end {
                return Ok(None);
            }
            let (group, until) = inner.group(inner.layout().await?, at..end);
            let body = inner.open(&group).await?;
            Ok(Some((body, (inner, until))))
        });
        let whole = Box::pin(first.chain(rest.try_flatten()));
        // Which also ends it at its first error.
        Ok(Body::stream(&inner.name, range, WAIT_MAX, whole))
    }

    async fn read_into(
        &self,
        version: &Version,
        range: Range<u64>,
        mut frame: Frame,
    ) -> Result<Frame, SourceError> {
        let inner = &self.0;
        let layout = inner.layout().await?;
        inner.check(layout, version, &range)?;
        let native = |piece: &Piece| inner.objects[piece.object].source.fills_frames();
        let is_one = inner.pieces(layout, range.clone()).nth(1).is_none();
        if !is_one && !inner.pieces(layout, range.clone()).all(|piece| native(&piece)) {
            let body = self.read(version, range.clone()).await?;
            return collect_into(&inner.name, body, range, frame).await;
        }
        let pieces: Vec<Piece> = inner.pieces(layout, range).collect();
        for piece in pieces {
            let version = inner.pinned(piece.object).await?;
            let before = frame.filled().len();
            let source = &inner.objects[piece.object].source;
            frame = source.read_into(version, piece.range.clone(), frame).await?;
            let got = frame.filled().len().saturating_sub(before) as u64;
            if got < piece.len() {
                return Err(SourceError::short_body(source.name(), piece.range, got));
            }
            if got > piece.len() {
                return Err(SourceError::long_body(source.name(), piece.range, got));
            }
        }
        Ok(frame)
    }

    fn fills_frames(&self) -> bool {
        !self.0.objects.is_empty()
            && self.0.objects.iter().all(|object| object.source.fills_frames())
    }

    fn at_once(&self) -> Option<&dyn ReadAtOnce> {
        // A range may have parts of several objects.
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;
    use proptest::prelude::*;

    fn memory(name: &str, len: usize) -> Arc<Memory> {
        let bytes: Vec<u8> = (0..len).map(|n| (n * 7 + name.len() * 31) as u8).collect();
        Arc::new(Memory::new(name, bytes))
    }

    #[tokio::test]
    async fn neighbours_of_one_object_are_one_piece() {
        let (a, b) = (memory("a", 100), memory("b", 50));
        let parts = [
            Part::of(a.clone(), 10..20),
            Part::of(a.clone(), 20..20),
            Part::of(b.clone(), 7..7),
            Part::of(a.clone(), 20..30),
            Part::of(b, 0..5),
            Part::of(a, 5..8),
        ];
        let whole = Concat::new("x", parts).expect("parts");
        let layout = whole.0.layout().await.expect("a layout");
        let pieces = |range| -> Vec<(usize, Range<u64>)> {
            whole.0.pieces(layout, range).map(|piece| (piece.object, piece.range)).collect()
        };
        let cases = [
            ("all", 0..28, vec![(0, 10..30), (1, 0..5), (0, 5..8)]),
            ("one byte before an edge", 9..10, vec![(0, 19..20)]),
            ("one byte behind it", 10..11, vec![(0, 20..21)]),
            ("over it", 9..11, vec![(0, 19..21)]),
            ("the end", 24..28, vec![(1, 4..5), (0, 5..8)]),
            ("nothing", 5..5, vec![]),
        ];
        for (what, range, expected) in cases {
            assert_eq!(pieces(range), expected, "{what}");
        }
    }

    #[tokio::test]
    async fn what_is_kept_out_of_turn_is_bounded() {
        let big = memory("big", 20 << 20);
        let parts = |lens: &[u64]| {
            let of = |(n, len): (usize, &u64)| {
                // Not neighbours, so that each is a piece of its own.
                let start = n as u64 % 2;
                Part::of(big.clone(), start..start + len)
            };
            Concat::new("x", lens.iter().enumerate().map(of)).expect("parts")
        };
        let mib = 1u64 << 20;
        let cases = [
            ("two large ones", vec![8 * mib, 8 * mib], vec![1, 1]),
            ("a large one among small ones", vec![mib, 9 * mib, mib, mib], vec![4]),
            ("many of a middle size", vec![mib; 12], vec![5, 5, 2]),
            ("very many small ones", vec![2; 70_000], vec![65_536, 4_464]),
        ];
        for (what, lens, expected) in cases {
            let whole = parts(&lens);
            let layout = whole.0.layout().await.expect("a layout");
            let (mut at, mut groups) = (0, Vec::new());
            while at < layout.stat.len {
                let (group, end) = whole.0.group(layout, at..layout.stat.len);
                let all: u64 = group.iter().map(Piece::len).sum();
                let most = group.iter().map(Piece::len).max().expect("a piece");
                assert!(all - most <= GROUP_AHEAD_MAX, "{what}");
                assert_eq!(end - at, all, "{what}");
                groups.push(group.len());
                at = end;
            }
            assert_eq!(groups, expected, "{what}");
        }
    }

    #[tokio::test]
    async fn the_same_parts_have_the_same_version_where_it_is_known() {
        let (a, b) = (memory("a", 100), memory("b", 50));
        let version = async |parts: Vec<Part>| {
            let whole = Concat::new("x", parts).expect("parts");
            whole.stat().await.expect("stat").version
        };
        let whole = || vec![Part::whole(a.clone()), Part::whole(b.clone())];
        let other = vec![Part::whole(b.clone()), Part::whole(a.clone())];
        let lazy = || vec![Part::whole(a.clone()), Part::of(b.clone(), 0..50)];
        assert_eq!(version(whole()).await, version(whole()).await);
        assert_ne!(version(whole()).await, version(other).await);
        assert_ne!(version(lazy()).await, version(lazy()).await, "nobody knows what b is");
        let given = b.stat().await.expect("stat").version;
        let told = || {
            let parts = [Part::whole(a.clone()), Part::of(b.clone(), 0..50).at(given.clone())];
            parts.to_vec()
        };
        assert_eq!(version(told()).await, version(told()).await);
    }

    #[tokio::test]
    async fn the_alignment_is_kept_where_all_parts_keep_their_places() {
        struct Aligned(Memory);
        #[async_trait]
        impl BlockSource for Aligned {
            fn name(&self) -> &str {
                self.0.name()
            }
            async fn stat(&self) -> Result<ObjectStat, SourceError> {
                Ok(self.0.stat().await?.with_alignment(16))
            }
            async fn read(
                &self,
                v: &Version,
                range: Range<u64>,
            ) -> Result<ByteStream, SourceError> {
                self.0.read(v, range).await
            }
        }
        let object = |len| Part::whole(Arc::new(Aligned(Memory::new("x", vec![0; len]))));
        for (what, lens, expected) in [("kept", [32, 5], 16), ("moved", [33, 5], 1)] {
            let whole = Concat::new("x", lens.map(object)).expect("parts");
            assert_eq!(whole.stat().await.expect("stat").alignment, expected, "{what}");
        }
    }

    proptest! {
        /// Any list of ranges of any objects reads as these ranges one behind the other do.
        #[test]
        fn a_concatenation_is_its_parts_in_a_row(
            lens in prop::collection::vec(0..300usize, 1..5),
            picks in prop::collection::vec((0..5usize, 0..300usize, 0..300usize, any::<bool>()), 0..20),
            reads in prop::collection::vec((0..4000u64, 0..4000u64), 1..10),
        ) {
            let objects: Vec<_> =
                lens.iter().enumerate().map(|(n, &len)| memory(&"x".repeat(n), len)).collect();
            let mut expected = Vec::new();
            let mut parts = Vec::new();
            for (n, a, b, whole) in picks {
                let (n, len) = (n % lens.len(), lens[n % lens.len()]);
                let (a, b) = (a.min(len), b.min(len));
                let range = if whole { 0..len } else { a.min(b)..a.max(b) };
                let bytes: Vec<u8> =
                    (0..len).map(|at| (at * 7 + objects[n].name()["memory:".len()..].len() * 31) as u8).collect();
                expected.extend_from_slice(&bytes[range.clone()]);
                parts.push(match whole {
                    true => Part::whole(objects[n].clone()),
                    false => Part::of(objects[n].clone(), range.start as u64..range.end as u64),
                });
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let whole = Concat::new("all", parts).expect("parts");
                let stat = whole.stat().await.expect("stat");
                prop_assert_eq!(stat.len, expected.len() as u64);
                for (a, b) in reads {
                    let (a, b) = (a.min(stat.len), b.min(stat.len));
                    let range = a.min(b)..a.max(b);
                    let wanted = &expected[range.start as usize..range.end as usize];
                    if range.is_empty() {
                        prop_assert!(whole.read(&stat.version, range).await.is_err());
                        continue;
                    }
                    let body = whole.read(&stat.version, range.clone()).await.expect("read");
                    let got = body.try_collect::<Vec<_>>().await.expect("bytes").concat();
                    prop_assert_eq!(&got[..], wanted);
                    let frame = Frame::with_capacity(wanted.len());
                    let frame = whole.read_into(&stat.version, range, frame).await.expect("a frame");
                    prop_assert_eq!(frame.filled(), wanted);
                }
                Ok(())
            })?;
        }
    }
}
