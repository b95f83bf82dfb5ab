//! How many events, trails and users match, over all shards.

use super::Shards;
use crate::{
    error::Error,
    filter::{BindError, Expr, UnknownFields},
    item::Uuid,
    read::Reader,
    storage::Storage,
};

/// A question to shards: which events, of which trails.
#[derive(Clone, Copy, Debug, Default)]
pub struct Query<'q> {
    filter: Option<&'q Expr>,
    uuids: Option<&'q [Uuid]>,
    unknown: UnknownFields,
    threads: usize,
    list: bool,
}

impl<'q> Query<'q> {
    /// Only events that match. In a shard that lacks a field of the filter, the field has no value,
    /// not even the empty one.
    #[must_use]
    pub fn filter(mut self, filter: &'q Expr) -> Self {
        self.filter = Some(filter);
        self
    }

    /// What to make of a field of the filter that no shard has. Default: an error.
    #[must_use]
    pub fn unknown_fields(mut self, unknown: UnknownFields) -> Self {
        self.unknown = unknown;
        self
    }

    /// Only trails of these UUIDs.
    #[must_use]
    pub fn uuids(mut self, uuids: &'q [Uuid]) -> Self {
        self.uuids = Some(uuids);
        self
    }

    /// How many threads work: each on a shard while there are enough of those, then several on each.
    /// Default: 1.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Gives the trails that match, not only their number: 48 bytes of memory for each.
    #[must_use]
    pub fn list_trails(mut self) -> Self {
        self.list = true;
        self
    }
}

/// What matches in the trails of one UUID, over all shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Match {
    /// The UUID.
    pub uuid: Uuid,
    /// Number of events that match.
    pub events: u64,
    /// The time of the first of them.
    pub first: u64,
    /// The time of the last of them.
    pub last: u64,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Found {
    /// Shards that were asked, those that were passed over left out.
    pub shards: u64,
    /// Shards of which an index said which trails cannot match.
    pub indexed: u64,
    /// Trails with events that match, those of different shards counted each.
    pub trails: u64,
    /// Distinct UUIDs of those trails.
    pub users: u64,
    /// Events that match.
    pub events: u64,
    /// All trails of the shards, matching or not.
    pub trails_all: u64,
    /// All events of the shards, matching or not.
    pub events_all: u64,
    /// The time of the first event that matches.
    pub first: Option<u64>,
    /// The time of the last event that matches.
    pub last: Option<u64>,
    /// In the order of UUIDs, if the [query](Query::list_trails) asks for them.
    pub matches: Vec<Match>,
}

impl<S, E> Shards<'_, S, E>
where
    S: Storage,
    E: From<Error> + From<BindError> + std::fmt::Display + Send,
{
    /// Asks all shards.
    ///
    /// # Errors
    /// A shard that cannot be read, unless it is [passed over](Shards::keep_going); a filter with a
    /// field that no shard has.
    pub fn query(&self, query: Query<'_>) -> Result<Found, E> {
        self.query_with(query, |_, _| ())
    }

    /// Like [`query`](Shards::query); gives away the readers, after they were asked, to `done`, which
    /// is called on any thread with the number of the shard.
    ///
    /// # Errors
    /// As [`query`](Shards::query).
    pub fn query_with(
        &self,
        query: Query<'_>,
        done: impl Fn(usize, Reader<S>) + Sync,
    ) -> Result<Found, E> {
        let threads = query.threads.max(1);
        let at_once = threads.min(self.len().max(1));
        let uuids = query.uuids.map(|uuids| {
            let mut uuids = uuids.to_vec();
            uuids.sort_unstable();
            uuids.dedup();
            uuids
        });
        let asked = Asked {
            filter: query.filter,
            uuids: uuids.as_deref(),
            threads: threads / at_once,
            // Users are told apart by their UUIDs as soon as there are two shards.
            list: query.list || self.len() > 1,
        };
        let mut unknown: Vec<&str> = query.filter.map(Expr::fields).unwrap_or_default();
        let mut found = Found::default();
        self.each(
            at_once,
            |number, reader| {
                let one = asked.one(&reader)?;
                let names: Vec<String> = reader.fields()?.names().map(str::to_owned).collect();
                done(number, reader);
                Ok((one, names))
            },
            |_, (one, names)| {
                unknown.retain(|name| !names.iter().any(|known| known == name));
                found.add(one);
                Ok(())
            },
        )?;
        if let (Some(name), Some(filter), UnknownFields::Refuse) =
            (unknown.first(), query.filter, query.unknown)
            && found.shards > 0
        {
            return Err(BindError::Text(filter.no_such_field(name)).into());
        }
        found.finish(asked.list, query.list);
        Ok(found)
    }
}

impl Found {
    fn add(&mut self, one: Found) {
        self.shards += one.shards;
        self.indexed += one.indexed;
        self.trails += one.trails;
        self.events += one.events;
        self.trails_all += one.trails_all;
        self.events_all += one.events_all;
        self.first = [self.first, one.first].into_iter().flatten().min();
        self.last = [self.last, one.last].into_iter().flatten().max();
        self.matches.extend(one.matches);
    }

    fn take(&mut self, first: u64, last: u64, events: u64) {
        self.trails += 1;
        self.events += events;
        self.first = Some(self.first.map_or(first, |known| known.min(first)));
        self.last = Some(self.last.map_or(last, |known| known.max(last)));
    }

    /// Joins the matches of one UUID, and counts users.
    fn finish(&mut self, listed: bool, keep: bool) {
        if !listed {
            // In one database a UUID has one trail.
            self.users = self.trails;
            return;
        }
        // Each shard's are sorted, which this sort makes use of.
        self.matches.sort_by_key(|one| one.uuid);
        self.matches.dedup_by(|next, kept| {
            let same = next.uuid == kept.uuid;
            if same {
                kept.events += next.events;
                kept.first = kept.first.min(next.first);
                kept.last = kept.last.max(next.last);
            }
            same
        });
        self.users = self.matches.len() as u64;
        if !keep {
            self.matches = Vec::new();
        }
    }
}

/// What each shard is asked.
struct Asked<'q> {
    filter: Option<&'q Expr>,
    /// Ascending, each once.
    uuids: Option<&'q [Uuid]>,
    threads: usize,
    list: bool,
}

impl Asked<'_> {
    fn one<S: Storage>(&self, reader: &Reader<S>) -> Result<Found, BindError> {
        let mut view = reader.view();
        if let Some(filter) = self.filter {
            view = view.with_filter(filter.bind_with(reader, UnknownFields::NoMatch)?);
        }
        let mut found = Found {
            shards: 1,
            indexed: u64::from(reader.index().is_some()),
            trails_all: reader.trails(),
            events_all: reader.events(),
            ..Found::default()
        };
        let scan = match self.uuids {
            None => view.scan_matching()?,
            Some(uuids) => {
                let mut trails: Vec<u64> = reader.trail_ids(uuids)?.into_iter().flatten().collect();
                trails.sort_unstable();
                view.scan().trails(trails)
            }
        };
        let mut matching = Vec::new();
        scan.threads(self.threads).run(
            |chunk| {
                let mut trails = Vec::new();
                while let Some(trail) = chunk.next_trail()? {
                    let Some(event) = trail.next_event()? else { continue };
                    let (first, mut last, mut events) = (event.time, event.time, 1u64);
                    while let Some(event) = trail.next_event()? {
                        last = event.time;
                        events += 1;
                    }
                    trails.push((trail.id().unwrap_or_default(), events, first, last));
                }
                Ok::<_, Error>(trails)
            },
            |trails| {
                for &(_, events, first, last) in &trails {
                    found.take(first, last, events);
                }
                if self.list {
                    matching.extend(trails);
                }
                Ok(())
            },
        )?;
        let trails: Vec<u64> = matching.iter().map(|&(trail, ..)| trail).collect();
        let uuids = reader.uuids_of(&trails)?;
        let matches = uuids.into_iter().zip(matching);
        found.matches = matches
            .map(|(uuid, (_, events, first, last))| Match { uuid, events, first, last })
            .collect();
        Ok(found)
    }
}
