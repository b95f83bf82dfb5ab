//! Which events of a database are seen: filters at three levels, and events as changes.
//!
//! ```text
//!   cursor    Trail::set_filter             overrides
//!   trail     View::with_trail_filter       overrides
//!   database  View::with_filter
//! ```
//!
//! Only the strongest filter that is set counts; filters of different levels are not combined.

use std::{collections::HashMap, sync::Arc};

use super::{Reader, Scan, Trail};
use crate::{
    error::Error,
    filter::Filter,
    index::{Matching, restricts},
    storage::Storage,
};

/// A reader and which of its events are to be seen.
///
/// A view of some trails: [`Filter::none`] for the database, and [`Filter::all`] for each of them.
/// A view without some trails is the reverse.
///
/// Cloning is cheap, and a view can be shared between threads.
pub struct View<'r, S: Storage> {
    reader: &'r Reader<S>,
    levels: Arc<Levels>,
}

/// What the cursors of a view have in common.
#[derive(Clone, Debug, Default)]
pub(super) struct Levels {
    database: Option<Arc<Filter>>,
    trails: HashMap<u64, Arc<Filter>>,
    /// Whether events have the items that changed, not all.
    pub(super) only_changes: bool,
    /// Whether values of events will be looked up.
    pub(super) values_ahead: bool,
}

impl Levels {
    /// The filter that holds for a trail, unless its cursor has one of its own.
    pub(super) fn of_trail(&self, trail: u64) -> Option<&Arc<Filter>> {
        match self.trails.is_empty() {
            true => self.database.as_ref(),
            false => self.trails.get(&trail).or(self.database.as_ref()),
        }
    }

    /// Whether trails differ in their filters.
    pub(super) fn differ(&self) -> bool {
        !self.trails.is_empty()
    }

    fn has_filters(&self) -> bool {
        self.database.is_some() || !self.trails.is_empty()
    }
}

impl<'r, S: Storage> View<'r, S> {
    pub(super) fn new(reader: &'r Reader<S>) -> View<'r, S> {
        View { reader, levels: Arc::default() }
    }

    /// The reader.
    pub fn reader(&self) -> &'r Reader<S> {
        self.reader
    }

    /// The filter of the database, if one is set.
    pub fn filter(&self) -> Option<&Arc<Filter>> {
        self.levels.database.as_ref()
    }

    /// Sets the filter of the database: it holds for every trail that has none of its own.
    #[must_use]
    pub fn with_filter(mut self, filter: impl Into<Arc<Filter>>) -> View<'r, S> {
        Arc::make_mut(&mut self.levels).database = Some(filter.into());
        self
    }

    /// Sets the filter of one trail, which holds in place of the database's.
    #[must_use]
    pub fn with_trail_filter(mut self, trail: u64, filter: impl Into<Arc<Filter>>) -> View<'r, S> {
        Arc::make_mut(&mut self.levels).trails.insert(trail, filter.into());
        self
    }

    /// Events hold only the items that differ from the event before, in the order in which they are
    /// stored; before the first event of a trail all fields are NULL, and whether its NULLs are
    /// among its items is up to the file's writer.
    ///
    /// A filter looks at all items of an event, so cursors of such a view cannot have one.
    #[must_use]
    pub fn only_changes(mut self) -> View<'r, S> {
        Arc::make_mut(&mut self.levels).only_changes = true;
        self
    }

    /// Says that values of the events will be looked up, by
    /// [`Trail::next_with_values`](crate::Trail::next_with_values).
    ///
    /// Where bytes are in memory ([`Storage::in_memory`]), a cursor then looks up the values of all
    /// events that it decodes at once, so that memory answers to many questions at a time. Without a
    /// look at the values this is wasted.
    #[must_use]
    pub fn values_ahead(mut self) -> View<'r, S> {
        Arc::make_mut(&mut self.levels).values_ahead = true;
        self
    }

    /// Whether events have the items that changed alone.
    pub(crate) fn shows_only_changes(&self) -> bool {
        self.levels.only_changes
    }

    /// A cursor that is on no trail yet. See [`Reader::cursor`].
    ///
    /// # Errors
    /// [`Error::FilterOfChanges`] if the view is one of changes, and has a filter.
    pub fn cursor(&self) -> Result<Trail<'r, S>, Error> {
        if self.levels.only_changes && self.levels.has_filters() {
            return Err(Error::FilterOfChanges);
        }
        Trail::new(self.reader, self.levels.clone())
    }

    /// A cursor over the events of a trail.
    ///
    /// # Errors
    /// As [`cursor`](View::cursor), and if there is no such trail.
    pub fn trail(&self, trail: u64) -> Result<Trail<'r, S>, Error> {
        self.reader.content_of(trail)?;
        let mut cursor = self.cursor()?;
        cursor.seek(trail)?;
        Ok(cursor)
    }

    /// Number of events of a trail that this view shows. Decodes the trail.
    ///
    /// # Errors
    /// As [`trail`](View::trail).
    pub fn trail_len(&self, trail: u64) -> Result<u64, Error> {
        self.trail(trail)?.count_rest()
    }

    /// The trails that can have events in this view, ascending: with an index, only those that have
    /// the items that the database's filter asks for, else all. A trail may be among them and show
    /// no event; none is left out that shows one.
    ///
    /// # Errors
    /// Those of reading the index.
    pub fn matching_trails(&self) -> Result<Matching<S>, Error> {
        let can = |filter: &Filter| filter.times().is_some() && !filter.is_none();
        let own = self.levels.trails.iter().map(|(&trail, filter)| (trail, can(filter)));
        let index = self.reader.index().cloned();
        let filter = self.levels.database.as_deref();
        Matching::new(index, filter, own.collect(), self.reader.trails())
    }

    /// Whether [`matching_trails`](View::matching_trails) can leave out any trail.
    pub(crate) fn skips_trails(&self) -> bool {
        let can = |filter: &Arc<Filter>| filter.times().is_some() && !filter.is_none();
        match &self.levels.database {
            Some(filter) => !can(filter) || self.reader.index().is_some() && restricts(filter),
            None => self.levels.trails.values().any(|filter| !can(filter)),
        }
    }

    /// A scan of the trails that can have events in this view ([`View::matching_trails`]).
    ///
    /// # Errors
    /// Those of reading the index.
    pub fn scan_matching(&self) -> Result<Scan<'r, S>, Error> {
        match self.skips_trails() {
            true => Ok(self.scan().try_trails(self.matching_trails()?)),
            false => Ok(self.scan()),
        }
    }

    /// Passes over the trails with several threads. See [`Scan`].
    pub fn scan(&self) -> Scan<'r, S> {
        Scan::new(self.clone())
    }
}

impl<S: Storage> Clone for View<'_, S> {
    fn clone(&self) -> Self {
        View { reader: self.reader, levels: self.levels.clone() }
    }
}

impl<S: Storage> std::fmt::Debug for View<'_, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("levels", &self.levels).finish_non_exhaustive()
    }
}
