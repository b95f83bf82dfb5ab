//! All events of some users, with their values: the question of the demo.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use traildb::{Error, Item, Reader, Storage, Uuid};

/// What was found, and when.
#[derive(Debug)]
pub struct Answer {
    /// The users, in the order in which they were asked for.
    pub users: Vec<User>,
    /// When each stage was over, counted from the start of the query.
    pub stages: Stages,
}

/// The stages of a query, each as time since its start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stages {
    /// The database was open.
    pub opened: Duration,
    /// The users' trails were found.
    pub found: Duration,
    /// Their events were decoded.
    pub decoded: Duration,
    /// Every value of every event was there as text.
    pub answered: Duration,
}

/// A user and the events of their trail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Who.
    pub uuid: Uuid,
    /// The events in the order of time. Empty for a user the database does not know.
    pub events: Vec<Event>,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The timestamp.
    pub time: u64,
    /// The value of each field, in the order of the database's fields.
    pub values: Vec<Vec<u8>>,
}

impl Answer {
    /// Number of events.
    pub fn events(&self) -> usize {
        self.users.iter().map(|user| user.events.len()).sum()
    }
}

/// Opens a database with `open` and asks it for all events of `users`.
///
/// The questions go in batches, one for all users at a time, so that a remote storage answers each
/// stage in as few round trips as one user would take.
pub fn events_of<S: Storage>(
    open: impl FnOnce() -> Result<Reader<S>, Error>,
    users: &[Uuid],
) -> Result<Answer, Error> {
    let began = Instant::now();
    let mut stages = Stages::default();
    let reader = open()?;
    stages.opened = began.elapsed();

    let trails = reader.trail_ids(users)?;
    stages.found = began.elapsed();
    let events = events_of_trails(&reader, &trails, || stages.decoded = began.elapsed())?;
    let users = users.iter().zip(events).map(|(&uuid, events)| User { uuid, events }).collect();
    stages.answered = began.elapsed();
    Ok(Answer { users, stages })
}

/// The events of each trail, none for `None`. Calls `decoded` when all are decoded and only their
/// values are missing.
pub fn events_of_trails<S: Storage>(
    reader: &Reader<S>,
    trails: &[Option<u64>],
    decoded: impl FnOnce(),
) -> Result<Vec<Vec<Event>>, Error> {
    let known: Vec<u64> = trails.iter().copied().flatten().collect();
    reader.prefetch_trails(&known)?;
    let mut coded: Vec<Vec<(u64, Vec<Item>)>> = Vec::with_capacity(trails.len());
    for trail in trails {
        let mut events = Vec::new();
        if let Some(trail) = *trail {
            let mut cursor = reader.trail(trail)?;
            while let Some(event) = cursor.next_event()? {
                events.push((event.time, event.items.to_vec()));
            }
        }
        coded.push(events);
    }
    decoded();

    let items = coded.iter().flatten().flat_map(|(_, items)| items.iter().copied());
    let mut values: HashMap<Item, Vec<u8>> = items.map(|item| (item, Vec::new())).collect();
    let mut distinct: Vec<Item> = values.keys().copied().collect();
    distinct.sort_unstable();
    reader.prefetch_values(&distinct)?;
    for item in distinct {
        if let Some(value) = values.get_mut(&item) {
            reader.append_value(item, value)?;
        }
    }
    let named = |(time, items): (u64, Vec<Item>)| Event {
        time,
        values: items.iter().map(|item| values[item].clone()).collect(),
    };
    Ok(coded.into_iter().map(|events| events.into_iter().map(named).collect()).collect())
}
