//! Many databases as one.
//!
//! ```text
//!   openers --> each: open, work, close      on threads, results in the order of shards
//!           |         query                    counts; trails in the order of UUIDs
//!           +-> open_all --> Merge           trails in the order of UUIDs, events in that of time
//! ```
//!
//! A shard is opened when its turn comes and closed when it is done with, so that a query goes over
//! any number of them; only a merge needs all of them at once. One that cannot be read ends the
//! query, or is passed over and kept note of.

mod merge; // trails and events of all shards in order
mod query; // how much matches

use std::{
    fmt,
    sync::{Mutex, PoisonError},
};

pub use merge::{Merge, ShardError, ShardEvent};
pub use query::{Found, Match, Query};

use crate::{
    error::Error,
    filter::BindError,
    read::{Reader, ordered},
    storage::Storage,
};

/// Shards open at the same time, unless told otherwise. Each takes a megabyte or two once its events
/// are read, most of it for the code.
const OPEN_MAX: usize = 256;

/// Databases that are queried as one, and how each is opened.
///
/// `E` is what openers fail with; whatever reading a database returns becomes one as well.
///
/// ```
/// # fn main() -> Result<(), traildb::filter::BindError> {
/// # let dir = tempfile::tempdir().unwrap();
/// # for (name, user) in [("monday.tdb", "alice"), ("tuesday.tdb", "bob")] {
/// #     let mut builder = traildb::Builder::new(&["user"])?;
/// #     builder.add(traildb::Uuid::default(), 3, &[user])?;
/// #     builder.finish(dir.path().join(name))?;
/// # }
/// use traildb::{Reader, Shards, filter, shards::Query};
///
/// let mut shards = Shards::new();
/// for name in ["monday.tdb", "tuesday.tdb"] {
///     let path = dir.path().join(name);
///     shards.add(name, move || Ok(Reader::open(&path)?));
/// }
/// let alice = filter::parse("user=alice")?;
/// let found = shards.query(Query::default().filter(&alice).threads(2))?;
/// assert_eq!((found.events, found.events_all, found.users), (1, 2, 1));
/// # Ok(())
/// # }
/// ```
///
/// Those that a pattern, a prefix, a directory or a list names, all under one budget (`Expand` is of
/// the crate `extmem-sources`):
///
/// ```no_run
/// # #[cfg(feature = "pager")]
/// # fn query() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// use traildb::{Reader, Shards, filter, shards::Query};
///
/// let pager = pager::Pager::builder().budget_bytes(256 << 20).build()?;
/// let mut shards = Shards::default();
/// for url in sources::Expand::new(".tdb").names(&["s3://bucket/2016-*/*.tdb", "logs", "@list"])? {
///     let pager = pager.clone();
///     shards.add(url.clone(), move || -> Result<_, Box<dyn std::error::Error + Send + Sync>> {
///         Ok(Reader::new(pager.open(sources::open(&url)?)?)?)
///     });
/// }
/// let alice = filter::parse("user=alice")?;
/// let found = shards.query(Query::default().filter(&alice).threads(2))?;
/// # Ok(())
/// # }
/// ```
pub struct Shards<'o, S: Storage, E = BindError> {
    shards: Vec<Shard<'o, S, E>>,
    open_max: usize,
    passes: Option<Box<Passes<'o, E>>>,
    losses: Mutex<Vec<Loss>>,
}

type Open<'o, S, E> = dyn Fn() -> Result<Reader<S>, E> + Send + Sync + 'o;
type Passes<'o, E> = dyn Fn(&str, &E) -> bool + Send + Sync + 'o;

struct Shard<'o, S: Storage, E> {
    name: String,
    open: Box<Open<'o, S, E>>,
}

/// A shard that was passed over, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Loss {
    /// The number of the shard, from 0.
    pub shard: usize,
    /// Its name.
    pub name: String,
    /// The text of the error.
    pub reason: String,
}

/// A shard that is open.
#[derive(Debug)]
pub struct Opened<S: Storage> {
    /// The number of the shard, from 0.
    pub shard: usize,
    /// Its name.
    pub name: String,
    /// The database.
    pub reader: Reader<S>,
}

impl<S: Storage, E> Default for Shards<'_, S, E> {
    fn default() -> Self {
        Shards { shards: Vec::new(), open_max: OPEN_MAX, passes: None, losses: Mutex::default() }
    }
}

impl<S: Storage> Shards<'_, S> {
    /// No shards yet. Openers that fail with an error of their own start from `Shards::default()`.
    pub fn new() -> Self {
        Shards::default()
    }
}

impl<'o, S: Storage, E> Shards<'o, S, E> {
    /// Adds a shard. `open` is called when its turn comes, from any thread, and again for each
    /// query. The name is for errors.
    pub fn add(
        &mut self,
        name: impl Into<String>,
        open: impl Fn() -> Result<Reader<S>, E> + Send + Sync + 'o,
    ) {
        self.shards.push(Shard { name: name.into(), open: Box::new(open) });
    }

    /// The most shards that are open at the same time, at least 1. Default: 256.
    #[must_use]
    pub fn open_max(mut self, shards: usize) -> Self {
        self.open_max = shards.max(1);
        self
    }

    /// Goes on past shards that fail, if `passes` says so of the name of the shard and its error. It
    /// is called once for each, from the thread of the caller, so it may tell somebody.
    #[must_use]
    pub fn keep_going(mut self, passes: impl Fn(&str, &E) -> bool + Send + Sync + 'o) -> Self {
        self.passes = Some(Box::new(passes));
        self
    }

    /// The number of shards.
    pub fn len(&self) -> usize {
        self.shards.len()
    }

    /// Whether there are no shards.
    pub fn is_empty(&self) -> bool {
        self.shards.is_empty()
    }

    /// The names of the shards, as they were added.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.shards.iter().map(|shard| shard.name.as_str())
    }

    /// The shards that were passed over so far, in the order in which they failed.
    pub fn losses(&self) -> Vec<Loss> {
        self.losses.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl<S: Storage, E: From<Error> + fmt::Display + Send> Shards<'_, S, E> {
    /// Opens each shard and runs `work` on it, on up to `threads` threads; `merge` takes the results
    /// on the thread of the caller, in the order of shards. Both get the number of the shard. A reader
    /// that `work` does not give away is closed.
    ///
    /// # Errors
    /// The first failure in the order of shards, unless it is [passed over](Shards::keep_going), and
    /// any error of `merge`.
    pub fn each<T: Send>(
        &self,
        threads: usize,
        work: impl Fn(usize, Reader<S>) -> Result<T, E> + Sync,
        mut merge: impl FnMut(usize, T) -> Result<(), E>,
    ) -> Result<(), E> {
        let threads = threads.clamp(1, self.open_max).min(self.shards.len().max(1));
        ordered::run(
            threads,
            ordered::AHEAD * threads as u64,
            self.shards.iter().enumerate(),
            || (),
            |(), (number, shard)| (number, (shard.open)().and_then(|reader| work(number, reader))),
            |(number, done)| match done {
                Ok(made) => merge(number, made),
                Err(error) => self.pass_over(number, error),
            },
        )
    }

    /// Opens all shards, several at a time, and reads the names of their fields: for a [`Merge`].
    ///
    /// # Errors
    /// As [`each`](Shards::each), and [`Error::TooManyShards`] if there are more than may be open at
    /// the same time.
    pub fn open_all(&self, threads: usize) -> Result<Vec<Opened<S>>, E> {
        if self.shards.len() > self.open_max {
            let (shards, open_max) = (self.shards.len(), self.open_max);
            return Err(Error::TooManyShards { shards, open_max }.into());
        }
        let mut open = Vec::with_capacity(self.shards.len());
        self.each(
            threads,
            |_, reader| {
                reader.fields()?;
                Ok(reader)
            },
            |shard, reader| {
                open.push(Opened { shard, name: self.shards[shard].name.clone(), reader });
                Ok(())
            },
        )?;
        Ok(open)
    }

    /// Notes that a shard is passed over because of `error`, or gives it back: what a caller of
    /// [`Merge`] does with the errors of shards.
    ///
    /// # Errors
    /// `error`, unless [`keep_going`](Shards::keep_going) says otherwise.
    ///
    /// # Panics
    /// When there is no such shard.
    pub fn pass_over(&self, shard: usize, error: E) -> Result<(), E> {
        let name = &self.shards[shard].name;
        if !self.passes.as_ref().is_some_and(|passes| passes(name, &error)) {
            return Err(error);
        }
        let loss = Loss { shard, name: name.clone(), reason: error.to_string() };
        self.losses.lock().unwrap_or_else(PoisonError::into_inner).push(loss);
        Ok(())
    }
}

impl<S: Storage, E> fmt::Debug for Shards<'_, S, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shards").field("names", &self.names().collect::<Vec<_>>()).finish()
    }
}
