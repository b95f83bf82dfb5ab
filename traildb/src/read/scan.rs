//! Passing over many trails with several threads, with results in order.
//!
//! ```text
//!   trails   |....|....|....|....|....|...      cut into chunks of about equal bytes
//!   threads    A    B    A    B    B            each takes the next chunk when it is done
//!   results    1    2    3    4    5            merged in the order of chunks, by the caller
//! ```
//!
//! A thread that is far ahead of the merge waits, so that results do not pile up.

use std::{collections::VecDeque, fmt, ops::Range};

use super::{Reader, Trail, View, ordered};
use crate::{error::Error, storage::Storage};

/// Trails of a chunk, unless they are listed.
const CHUNK_TRAILS: u64 = 1024;
/// Trails of the first chunk, when they are listed, and of all where they are near. Far away a chunk
/// waits for where its trails are and then for the first of them, so each has twice as many as the one
/// before it, up to the most.
const CHUNK_LISTED_MIN: usize = 256;
const CHUNK_LISTED_MAX: usize = 4096;
/// Of listed trails so many bytes are announced ahead of the cursor, by each thread.
const LISTED_AHEAD_BYTES: u64 = 16 << 20;
/// The most threads.
const THREADS_MAX: usize = 1024;

/// A pass over trails of a view, all of them unless told otherwise.
///
/// ```
/// # fn main() -> Result<(), traildb::Error> {
/// # let dir = tempfile::tempdir().unwrap();
/// # let mut builder = traildb::Builder::new(&["user"])?;
/// # builder.add(traildb::Uuid::default(), 3, &["alice"])?;
/// # builder.finish(dir.path().join("events.tdb"))?;
/// let reader = traildb::Reader::open(dir.path().join("events.tdb"))?;
/// let mut events = 0;
/// reader.view().scan().threads(2).run(
///     |chunk| {
///         let mut count = 0;
///         while let Some(trail) = chunk.next_trail()? {
///             count += trail.count_rest()?;
///         }
///         Ok::<u64, traildb::Error>(count)
///     },
///     |count| {
///         events += count;
///         Ok(())
///     },
/// )?;
/// assert_eq!(events, reader.events());
/// # Ok(())
/// # }
/// ```
pub struct Scan<'r, S: Storage> {
    view: View<'r, S>,
    threads: usize,
    trails: Trails<'r>,
}

enum Trails<'r> {
    Range(Range<u64>),
    /// And how many of them the next chunk has, and one has at most.
    Listed(Box<dyn Iterator<Item = Result<u64, Error>> + Send + 'r>, usize, usize),
}

impl Trails<'_> {
    /// Takes the trails of the next chunk; `None` when there are no more.
    fn next_chunk(&mut self, range_max: u64) -> Option<Result<ChunkTrails, Error>> {
        match self {
            Trails::Range(range) => {
                let end = range.end.min(range.start.saturating_add(range_max));
                let chunk = range.start..end;
                range.start = end;
                (!chunk.is_empty()).then_some(Ok(ChunkTrails::Range(chunk)))
            }
            Trails::Listed(trails, len, most) => {
                let list: Result<Vec<u64>, Error> = trails.take(*len).collect();
                *len = (2 * *len).min(*most);
                match list {
                    Ok(list) if list.is_empty() => None,
                    list => Some(list.map(|list| ChunkTrails::Listed(Listed::new(list)))),
                }
            }
        }
    }
}

/// Some trails of a scan, with the cursor of the thread that works on them.
#[derive(Debug)]
pub struct Chunk<'c, 'r, S: Storage> {
    cursor: &'c mut Trail<'r, S>,
    trails: ChunkTrails,
}

#[derive(Debug)]
enum ChunkTrails {
    Range(Range<u64>),
    Listed(Listed),
}

/// Trails one by one, announced ahead.
#[derive(Debug)]
struct Listed {
    trails: Vec<u64>,
    /// The next one.
    at: usize,
    /// Those before this one were announced.
    announced: usize,
    /// How many bytes are announced of the trails from the next one on.
    ahead: VecDeque<u64>,
    ahead_bytes: u64,
}

impl Listed {
    fn new(trails: Vec<u64>) -> Listed {
        Listed { trails, at: 0, announced: 0, ahead: VecDeque::new(), ahead_bytes: 0 }
    }

    /// The next trail. Those behind it are announced when half of what may be under way is not.
    fn next<S: Storage>(&mut self, reader: &Reader<S>) -> Result<Option<u64>, Error> {
        let Some(&trail) = self.trails.get(self.at) else { return Ok(None) };
        let announced = self.announce(reader);
        // Whatever came of it: who goes on after an error comes to the end.
        self.at += 1;
        self.ahead_bytes -= self.ahead.pop_front().unwrap_or(0);
        announced.map(|()| Some(trail))
    }

    fn announce<S: Storage>(&mut self, reader: &Reader<S>) -> Result<(), Error> {
        if self.at == 0 {
            reader.announce_offsets(&self.trails)?;
        }
        self.announced = self.announced.max(self.at);
        if self.announced < self.trails.len() && self.ahead_bytes <= LISTED_AHEAD_BYTES / 2 {
            let room = LISTED_AHEAD_BYTES - self.ahead_bytes;
            let lens = reader.announce_data(&self.trails[self.announced..], room)?;
            self.announced += lens.len();
            self.ahead_bytes += lens.iter().sum::<u64>();
            self.ahead.extend(lens);
        }
        Ok(())
    }
}

impl<'r, S: Storage> Chunk<'_, 'r, S> {
    /// Puts the cursor on the next trail of the chunk; `None` when there are no more. Trails come in
    /// ascending order, or as they were listed.
    ///
    /// # Errors
    /// Those of [`Trail::seek`], and of the list that the trails come from. Whoever goes on comes
    /// to the end.
    pub fn next_trail(&mut self) -> Result<Option<&mut Trail<'r, S>>, Error> {
        let trail = match &mut self.trails {
            ChunkTrails::Range(range) => range.next(),
            ChunkTrails::Listed(list) => list.next(self.cursor.reader())?,
        };
        let Some(trail) = trail else { return Ok(None) };
        self.cursor.seek(trail)?;
        Ok(Some(self.cursor))
    }
}

impl<'r, S: Storage> Scan<'r, S> {
    pub(super) fn new(view: View<'r, S>) -> Scan<'r, S> {
        let trails = Trails::Range(0..view.reader().trails());
        Scan { view, threads: 1, trails }
    }

    /// How many threads work, 1 to 1024. Default: 1.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Scan<'r, S> {
        self.threads = threads.clamp(1, THREADS_MAX);
        self
    }

    /// Passes over these trails only, as far as they exist.
    #[must_use]
    pub fn range(mut self, trails: Range<u64>) -> Scan<'r, S> {
        let end = trails.end.min(self.view.reader().trails());
        self.trails = Trails::Range(trails.start.min(end)..end);
        self
    }

    /// Passes over these trails only, in this order. One that does not exist is an error of the
    /// scan.
    ///
    /// They are drawn from the iterator as threads get to them, so it may be long.
    #[must_use]
    pub fn trails<I>(self, trails: I) -> Scan<'r, S>
    where
        I: IntoIterator<Item = u64>,
        I::IntoIter: Send + 'r,
    {
        self.try_trails(trails.into_iter().map(Ok))
    }

    /// Like [`trails`](Scan::trails), with trails that are found as the scan goes on. Where finding
    /// them fails, the scan does.
    #[must_use]
    pub fn try_trails<I>(mut self, trails: I) -> Scan<'r, S>
    where
        I: IntoIterator<Item = Result<u64, Error>>,
        I::IntoIter: Send + 'r,
    {
        let far = self.view.reader().members.is_remote();
        let most = if far { CHUNK_LISTED_MAX } else { CHUNK_LISTED_MIN };
        self.trails = Trails::Listed(Box::new(trails.into_iter()), CHUNK_LISTED_MIN, most);
        self
    }

    /// Runs `work` on all chunks of trails, and `merge` on what it returns, in the order of chunks.
    ///
    /// `work` runs on the threads of the scan, several at a time; `merge` on the thread of the
    /// caller. With one thread, all runs there.
    ///
    /// # Errors
    /// The first error of `work` in the order of chunks, or an error of `merge`. Chunks before it
    /// were merged, none after it is, and threads stop after the chunk that they are at.
    ///
    /// # Panics
    /// When `work` or `merge` panics.
    pub fn run<T, E>(
        self,
        work: impl Fn(&mut Chunk<'_, 'r, S>) -> Result<T, E> + Sync,
        mut merge: impl FnMut(T) -> Result<(), E>,
    ) -> Result<(), E>
    where
        T: Send,
        E: From<Error> + Send,
    {
        let Scan { view, threads, mut trails } = self;
        let range_max = match &trails {
            // Small enough that all threads find work.
            Trails::Range(range) => {
                ((range.end - range.start) / (8 * threads as u64)).clamp(1, CHUNK_TRAILS)
            }
            Trails::Listed(..) => CHUNK_TRAILS,
        };
        let chunk = |cursor: &mut Option<Trail<'r, S>>, trails: Result<ChunkTrails, Error>| {
            let trails = trails?;
            let cursor = match cursor {
                Some(cursor) => cursor,
                None => cursor.insert(view.cursor()?),
            };
            work(&mut Chunk { cursor, trails })
        };
        ordered::run(
            threads,
            ordered::AHEAD * threads as u64,
            std::iter::from_fn(|| trails.next_chunk(range_max)),
            || None,
            chunk,
            |done| merge(done?),
        )
    }
}

impl<S: Storage> fmt::Debug for Scan<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scan").field("threads", &self.threads).finish_non_exhaustive()
    }
}
