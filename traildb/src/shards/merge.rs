//! The trails of all shards in the order of UUIDs, the events of each in the order of time.
//!
//! ```text
//!   shard 0   a . c d      heap of next UUIDs --> c: shards 0 and 2 --> heap of next times
//!   shard 1   . b . d                             of equal times, those of the first shard first
//!   shard 2   . . c .
//! ```
//!
//! Memory is a window of UUIDs and a cursor for each shard, however many trails there are.

use std::{cmp::Reverse, collections::BinaryHeap, fmt};

use super::Opened;
use crate::{
    error::Error,
    filter::Filter,
    index::Matching,
    item::Uuid,
    read::{Event, Reader, Trail, View},
    storage::Storage,
};

/// UUIDs read at a time where all are.
const WINDOW_ALL: u64 = 4096;
/// Trails looked up and announced together where they are scattered, unless told otherwise.
const WINDOW_SCATTERED: usize = 256;

/// The trails of shards that are open.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # for (name, time) in [("monday.tdb", 1), ("tuesday.tdb", 2)] {
/// #     let mut builder = traildb::Builder::new(&["user"])?;
/// #     builder.add(traildb::Uuid::default(), time, &["alice"])?;
/// #     builder.finish(dir.path().join(name))?;
/// # }
/// # let mut shards = traildb::Shards::new();
/// # for name in ["monday.tdb", "tuesday.tdb"] {
/// #     let path = dir.path().join(name);
/// #     shards.add(name, move || Ok(traildb::Reader::open(&path)?));
/// # }
/// let open = shards.open_all(2)?;
/// let mut merge = traildb::shards::Merge::new(&open)?;
/// while let Some(uuid) = merge.next_trail()? {
///     while let Some(next) = merge.next_event()? {
///         println!("{uuid} {} of {}", next.event.time, open[next.place].name);
///     }
/// }
/// # Ok(())
/// # }
/// ```
pub struct Merge<'r, S: Storage> {
    sources: Vec<Source<'r, S>>,
    /// The next UUID of each shard that has one.
    uuids: BinaryHeap<Reverse<(u128, usize)>>,
    /// Shards whose next UUID is still to be read.
    stale: Vec<usize>,
    /// Shards that the current UUID was found in, ascending.
    group: Vec<usize>,
    /// Whether that was one shard alone.
    alone: bool,
    /// Of several of those, the next event of each that has one.
    times: BinaryHeap<Reverse<(u64, usize)>>,
    /// Shards of the group whose next event is still to be read.
    behind: Vec<usize>,
}

/// An event of one of the shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardEvent<'a> {
    /// The place of the shard among those that are merged, from 0.
    pub place: usize,
    /// The event, whose items are of the database of that shard.
    pub event: Event<'a>,
}

/// What reading a shard has returned. The shard has left the merge, and the others go on.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct ShardError {
    /// The place of the shard among those that are merged, from 0.
    pub place: usize,
    /// What it has returned.
    pub error: Error,
}

/// One shard, and where in it the merge is.
struct Source<'r, S: Storage> {
    view: View<'r, S>,
    trails: Trails<S>,
    window_max: usize,
    /// The next trails and their UUIDs, last first.
    window: Vec<(u64, Uuid)>,
    /// The trail whose UUID is in the heap.
    next: u64,
    cursor: Option<Trail<'r, S>>,
}

/// Which trails of a shard.
enum Trails<S: Storage> {
    /// All from here on.
    All(u64),
    /// Those that can match.
    Matching(Box<Matching<S>>),
    /// These from here on, in the order of UUIDs.
    Named(Vec<(u64, Uuid)>, usize),
}

impl<'r, S: Storage> Merge<'r, S> {
    /// All events of these shards.
    ///
    /// # Errors
    /// Those of reading the UUIDs of a shard of version 0, which are in no order and are sorted.
    pub fn new(open: &'r [Opened<S>]) -> Result<Merge<'r, S>, ShardError> {
        let source = |opened: &'r Opened<S>| Source {
            view: opened.reader.view(),
            trails: Trails::All(0),
            window_max: WINDOW_SCATTERED,
            window: Vec::new(),
            next: 0,
            cursor: None,
        };
        let mut sources: Vec<Source<'r, S>> = open.iter().map(source).collect();
        if sources.len() > 1 {
            for (place, source) in sources.iter_mut().enumerate() {
                source.sort().map_err(|error| ShardError { place, error })?;
            }
        }
        Ok(Merge {
            stale: (0..sources.len()).collect(),
            sources,
            uuids: BinaryHeap::new(),
            group: Vec::new(),
            alone: false,
            times: BinaryHeap::new(),
            behind: Vec::new(),
        })
    }

    /// How many trails of the shard at `place` are looked up together where they are scattered: of a
    /// shard far away, they are announced in one round. Default: 256.
    pub fn window(&mut self, place: usize, trails: usize) {
        if let Some(source) = self.sources.get_mut(place) {
            source.window_max = trails.max(1);
        }
    }

    /// Leaves out all events but those that match: a filter for each shard, in their order. Where a
    /// shard has an index, trails that cannot match are not looked at; the others are, and can be
    /// without events.
    ///
    /// # Errors
    /// Those of reading an index.
    pub fn filter(&mut self, filters: impl IntoIterator<Item = Filter>) -> Result<(), ShardError> {
        for (place, (source, filter)) in self.sources.iter_mut().zip(filters).enumerate() {
            source.filter(filter).map_err(|error| ShardError { place, error })?;
        }
        Ok(())
    }

    /// Leaves out all trails but those of these UUIDs. Returns for each of them, as they are given,
    /// whether any shard has it.
    ///
    /// # Errors
    /// Those of looking them up.
    pub fn select(&mut self, uuids: &[Uuid]) -> Result<Vec<bool>, ShardError> {
        let mut sorted: Vec<(Uuid, usize)> = uuids.iter().copied().zip(0..).collect();
        sorted.sort_unstable();
        let mut wanted: Vec<Uuid> = sorted.iter().map(|&(uuid, _)| uuid).collect();
        wanted.dedup();
        let mut known = vec![false; wanted.len()];
        let alone = self.sources.len() == 1;
        for (place, source) in self.sources.iter_mut().enumerate() {
            let ids = source.view.reader().trail_ids(&wanted);
            let ids = ids.map_err(|error| ShardError { place, error })?;
            let mut list = Vec::new();
            for ((id, &uuid), known) in ids.into_iter().zip(&wanted).zip(&mut known) {
                let Some(id) = id else { continue };
                *known = true;
                list.push((id, uuid));
            }
            if alone {
                // The order of the database, which differs in version 0.
                list.sort_unstable_by_key(|&(trail, _)| trail);
            }
            source.trails = Trails::Named(list, 0);
        }
        let mut found = vec![false; uuids.len()];
        for (uuid, at) in sorted {
            found[at] = wanted.binary_search(&uuid).is_ok_and(|k| known[k]);
        }
        Ok(found)
    }

    /// Number of trails to come, at most: with an index, that of all trails.
    pub fn trails_max(&self) -> u64 {
        let of = |source: &Source<'r, S>| match &source.trails {
            Trails::All(at) => source.reader().trails() - at,
            Trails::Matching(_) => source.reader().trails(),
            Trails::Named(list, at) => (list.len() - at) as u64,
        };
        self.sources.iter().map(of).sum()
    }

    /// Goes on to the next UUID that any shard has a trail of. What is left of the current one is
    /// passed over. `None` when there are no more.
    ///
    /// # Errors
    /// Those of a shard, which leaves the merge. The next call goes on with the others.
    pub fn next_trail(&mut self) -> Result<Option<Uuid>, ShardError> {
        self.times.clear();
        self.behind.clear();
        self.stale.append(&mut self.group);
        while let Some(place) = self.stale.pop() {
            let next = self.sources[place].next_trail();
            if let Some((trail, uuid)) = next.map_err(|error| ShardError { place, error })? {
                self.sources[place].next = trail;
                self.uuids.push(Reverse((uuid.number(), place)));
            }
        }
        let Some(Reverse((uuid, first))) = self.uuids.pop() else { return Ok(None) };
        self.group.push(first);
        while let Some(&Reverse((other, place))) = self.uuids.peek()
            && other == uuid
        {
            self.uuids.pop();
            self.group.push(place);
        }
        self.alone = self.group.len() == 1;
        // Last first: a shard is taken from the end, and one that fails is out.
        self.behind.extend(self.group.iter().rev());
        for k in (0..self.group.len()).rev() {
            let place = self.group[k];
            if let Err(error) = self.sources[place].open() {
                self.drop_shard(place);
                // The others of the group are not lost: they come again.
                for &place in &self.group {
                    self.uuids.push(Reverse((uuid, place)));
                }
                self.group.clear();
                self.behind.clear();
                return Err(ShardError { place, error });
            }
        }
        Ok(Some(Uuid::from_number(uuid)))
    }

    /// The places of the shards that have a trail of the current UUID, ascending.
    pub fn places(&self) -> &[usize] {
        &self.group
    }

    /// The next event of the current UUID, of whatever shard, or `None` when there are no more.
    ///
    /// # Errors
    /// Those of a shard, which leaves the merge. The next call goes on with the others.
    #[inline]
    pub fn next_event(&mut self) -> Result<Option<ShardEvent<'_>>, ShardError> {
        if let [place] = *self.group
            && self.alone
        {
            let advanced = self.sources[place].cursor().advance();
            return match advanced {
                Ok(true) => Ok(Some(self.event(place))),
                Ok(false) => Ok(None),
                Err(error) => {
                    self.drop_shard(place);
                    Err(ShardError { place, error })
                }
            };
        }
        while let Some(place) = self.behind.pop() {
            match self.sources[place].cursor().advance() {
                Ok(true) => {
                    let time = self.sources[place].cursor().current().time;
                    self.times.push(Reverse((time, place)));
                }
                Ok(false) => {}
                Err(error) => {
                    self.drop_shard(place);
                    return Err(ShardError { place, error });
                }
            }
        }
        let Some(Reverse((_, place))) = self.times.pop() else { return Ok(None) };
        self.behind.push(place);
        Ok(Some(self.event(place)))
    }

    fn event(&self, place: usize) -> ShardEvent<'_> {
        let cursor = self.sources[place].cursor.as_ref().expect("opened with the trail");
        ShardEvent { place, event: cursor.current() }
    }

    /// Takes the shard at `place` out of the merge: none of its events comes any more. For callers
    /// whom something else of it fails, a value of an event say.
    pub fn leave(&mut self, place: usize) {
        self.drop_shard(place);
        self.stale.retain(|&other| other != place);
        self.times.retain(|Reverse((_, other))| *other != place);
        self.uuids.retain(|Reverse((_, other))| *other != place);
    }

    /// Takes a shard out of the current trail, and out of those to come.
    fn drop_shard(&mut self, place: usize) {
        self.group.retain(|&other| other != place);
        self.behind.retain(|&other| other != place);
    }
}

impl<'r, S: Storage> Source<'r, S> {
    fn reader(&self) -> &'r Reader<S> {
        self.view.reader()
    }

    fn cursor(&mut self) -> &mut Trail<'r, S> {
        self.cursor.as_mut().expect("opened with the trail")
    }

    fn filter(&mut self, filter: Filter) -> Result<(), Error> {
        self.view = self.view.clone().with_filter(filter);
        self.cursor = None;
        // Those of a database of version 0 among others were sorted, and are named.
        if matches!(self.trails, Trails::All(_)) && self.view.skips_trails() {
            self.trails = Trails::Matching(Box::new(self.view.matching_trails()?));
        }
        Ok(())
    }

    /// The next trail and its UUID.
    fn next_trail(&mut self) -> Result<Option<(u64, Uuid)>, Error> {
        if let Some(next) = self.window.pop() {
            return Ok(Some(next));
        }
        let reader = self.view.reader();
        match &mut self.trails {
            Trails::All(at) => {
                let end = reader.trails().min(*at + WINDOW_ALL);
                self.window.extend((*at..end).zip(reader.uuids(*at..end)?));
                *at = end;
            }
            Trails::Matching(matching) => {
                let trails: Result<Vec<u64>, Error> =
                    matching.by_ref().take(self.window_max).collect();
                let trails = trails?;
                reader.prefetch_trails(&trails)?;
                let uuids = reader.uuids_of(&trails)?;
                self.window.extend(trails.into_iter().zip(uuids));
            }
            Trails::Named(list, at) => {
                let end = list.len().min(*at + self.window_max);
                self.window.extend_from_slice(&list[*at..end]);
                *at = end;
                let trails: Vec<u64> = self.window.iter().map(|&(trail, _)| trail).collect();
                reader.prefetch_trails(&trails)?;
            }
        }
        self.window.reverse();
        Ok(self.window.pop())
    }

    /// Sorts the trails of a database of version 0, whose UUIDs have no order.
    fn sort(&mut self) -> Result<(), Error> {
        let reader = self.reader();
        if reader.version() > 0 {
            return Ok(());
        }
        let mut list: Vec<(u64, Uuid)> =
            (0..reader.trails()).zip(reader.uuids(0..reader.trails())?).collect();
        list.sort_unstable_by_key(|&(trail, uuid)| (uuid, trail));
        self.trails = Trails::Named(list, 0);
        Ok(())
    }

    /// Puts the cursor on the next trail.
    fn open(&mut self) -> Result<(), Error> {
        // A cursor of its own for each trail that is named: one that goes on to the next reads ahead.
        match (&mut self.cursor, &self.trails) {
            (Some(cursor), Trails::All(_)) => cursor.seek(self.next)?,
            (cursor, _) => *cursor = Some(self.view.trail(self.next)?),
        }
        Ok(())
    }
}

impl<S: Storage> fmt::Debug for Merge<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Merge").field("group", &self.group).finish_non_exhaustive()
    }
}
