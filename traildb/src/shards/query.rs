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
    /// Trails of the [UUIDs](Query::uuids) that were asked for, matching or not, those of different
    /// shards counted each; without UUIDs all trails.
    pub trails_asked: u64,
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
    /// Asks all shards. One that is [passed over](Shards::keep_going) counts nothing, with those of
    /// its trails that could be read: a count that lacks an unknown part is no count.
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
        let mut matches = Matches::new(JOIN_AT);
        self.each(
            at_once,
            |number, reader| {
                let one = asked.one(&reader)?;
                let names: Vec<String> = reader.fields()?.names().map(str::to_owned).collect();
                done(number, reader);
                Ok((one, names))
            },
            |_, (mut one, names)| {
                unknown.retain(|name| !names.iter().any(|known| known == name));
                matches.add(std::mem::take(&mut one.matches));
                found.add(&one);
                Ok(())
            },
        )?;
        if let (Some(name), Some(filter), UnknownFields::Refuse) =
            (unknown.first(), query.filter, query.unknown)
            && found.shards > 0
        {
            return Err(BindError::Text(filter.no_such_field(name)).into());
        }
        // In one database a UUID has one trail.
        found.users = found.trails;
        if asked.list {
            let matches = matches.finish();
            found.users = matches.len() as u64;
            found.matches = if query.list { matches } else { Vec::new() };
        }
        Ok(found)
    }
}

impl Found {
    /// Adds what was found in a shard, but for its matches.
    fn add(&mut self, one: &Found) {
        self.shards += one.shards;
        self.indexed += one.indexed;
        self.trails += one.trails;
        self.events += one.events;
        // What a file says of itself, which nobody has counted.
        self.trails_asked = self.trails_asked.saturating_add(one.trails_asked);
        self.trails_all = self.trails_all.saturating_add(one.trails_all);
        self.events_all = self.events_all.saturating_add(one.events_all);
        self.first = [self.first, one.first].into_iter().flatten().min();
        self.last = [self.last, one.last].into_iter().flatten().max();
    }

    fn take(&mut self, first: u64, last: u64, events: u64) {
        self.trails += 1;
        self.events += events;
        self.first = Some(self.first.map_or(first, |known| known.min(first)));
        self.last = Some(self.last.map_or(last, |known| known.max(last)));
    }
}

/// Matches that are kept before those of one UUID are joined: 48 MiB.
const JOIN_AT: usize = 1 << 20;

/// The matches of the shards so far.
///
/// Shards mostly have users in common, so those are joined whenever there may be twice as many as
/// there were users: memory goes with users, not with users times shards.
struct Matches {
    list: Vec<Match>,
    /// They are joined when there are so many.
    join_at: usize,
    /// And never before there are so many.
    least: usize,
}

impl Matches {
    fn new(least: usize) -> Matches {
        Matches { list: Vec::new(), join_at: least, least }
    }

    /// Adds those of a shard, in any order.
    fn add(&mut self, more: Vec<Match>) {
        if self.list.is_empty() {
            self.list = more;
        } else {
            self.list.extend(more);
        }
        if self.list.len() >= self.join_at {
            self.join();
            self.join_at = self.least.max(2 * self.list.len());
        }
    }

    fn join(&mut self) {
        // Each shard's are sorted, which this sort makes use of.
        self.list.sort_by_key(|one| one.uuid);
        self.list.dedup_by(|next, kept| {
            let same = next.uuid == kept.uuid;
            if same {
                kept.events += next.events;
                kept.first = kept.first.min(next.first);
                kept.last = kept.last.max(next.last);
            }
            same
        });
    }

    /// One match for each UUID, in their order.
    fn finish(mut self) -> Vec<Match> {
        self.join();
        self.list
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
            trails_asked: reader.trails(),
            trails_all: reader.trails(),
            events_all: reader.events(),
            ..Found::default()
        };
        let scan = match self.uuids {
            None => view.scan_matching()?,
            Some(uuids) => {
                let mut trails: Vec<u64> = reader.trail_ids(uuids)?.into_iter().flatten().collect();
                trails.sort_unstable();
                found.trails_asked = trails.len() as u64;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten shards with the same users take the memory of two.
    #[test]
    fn matches_of_one_user_are_joined_along_the_way() {
        let mut matches = Matches::new(8);
        for shard in 0..10u64 {
            let one = |user| Match {
                uuid: Uuid::from_number(u128::from(user) << 100),
                events: 1,
                first: 100 - shard,
                last: 200 + shard,
            };
            matches.add((0..1000u64).map(one).collect());
            assert!(matches.list.len() <= 2000, "{} after shard {shard}", matches.list.len());
        }
        let all = matches.finish();
        assert_eq!(all.len(), 1000);
        assert!(all.is_sorted_by_key(|one| one.uuid));
        assert!(all.iter().all(|one| (one.events, one.first, one.last) == (10, 91, 209)));
    }
}
