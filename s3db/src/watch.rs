//! What is there and what waits, again and again, without taking any of it.
//!
//! ```text
//!   s3-log    list the log, read each object once, and look whether its records are on their pages
//!   queues    ask each how many messages it has, and one that has some for a few of them, hidden from nobody
//! ```
//!
//! The *lag* is the age of the oldest record that is on no page yet, by its stamp and the object store's
//! clock. Of a queue only some messages are seen: it is at least that.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use bytes::Bytes;

use crate::{
    blob::{self, Line},
    catalog::Backend,
    checkpoint::fate::{Fate, fate},
    error::StoreError,
    log::{Scope, objects},
    names::{LOG, PAGES, QUARANTINE},
    page::{PageId, Stream},
    sequence::{self, SequencerState},
    stamp::Stamp,
    store::Store,
};

/// Pages that a look counts: counting a million would take a thousand calls each time.
pub const PAGES_COUNTED_MAX: u64 = 10_000;

/// Records of log objects that are remembered from one look to the next.
const KNOWN_MAX: usize = 200_000;

/// A part of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogPart {
    /// A queue, or the client and the epoch whose objects these are.
    pub name: String,
    /// Messages, hidden ones included; or log objects, applied or not.
    pub messages: u64,
    /// Records that are on no page yet, but for those that no page will show, which quarantine is for; of a
    /// queue, of the few messages that were seen.
    pub waiting: u64,
    /// The age of the oldest of these, in milliseconds. `None` where none was seen.
    pub lag_ms: Option<u64>,
}

/// What was there at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Look {
    /// The object store's clock, milliseconds since 1970.
    pub date_ms: u64,
    /// Pages, orphans included: the first [`PAGES_COUNTED_MAX`] of them.
    pub pages: u64,
    /// Clients that have begun and are not forgotten.
    pub clients: u64,
    /// Bodies in quarantine.
    pub quarantined: u64,
    /// Names in the log that are none of its own, and objects there that cannot be decoded.
    pub damaged: u64,
    /// Parts of the log that have anything.
    pub parts: Vec<LogPart>,
    /// The sequencer; `None` if no collection needs one, or if this client may not read it.
    pub sequencer: Option<SequencerState>,
    /// Log objects that were put since the first look. `None` where that cannot be seen: queues count
    /// nothing.
    pub appended: Option<u64>,
}

impl Look {
    /// Messages or log objects in all.
    pub fn messages(&self) -> u64 {
        self.parts.iter().map(|part| part.messages).sum()
    }

    /// Records in all that are on no page yet, as far as they were seen.
    pub fn waiting(&self) -> u64 {
        self.parts.iter().map(|part| part.waiting).sum()
    }

    /// The age of the oldest record that is on no page yet, in milliseconds; of those in the sequencer, of
    /// their oldest commit.
    pub fn lag_ms(&self) -> Option<u64> {
        let oldest_ms = self.sequencer.as_ref().and_then(|it| it.oldest_ms);
        let sequenced = oldest_ms.map(|oldest_ms| self.date_ms.saturating_sub(oldest_ms));
        self.parts.iter().filter_map(|part| part.lag_ms).chain(sequenced).max()
    }
}

/// A record that was in the log.
#[derive(Clone)]
struct Waiting {
    tree: PageId,
    key: Bytes,
    stamp: Stamp,
}

/// Looks at a database again and again.
pub struct Watcher {
    store: Arc<Store>,
    /// Log objects that were read, and what of each was on no page.
    known: HashMap<String, Vec<Waiting>>,
    /// The newest number of each stream.
    newest: HashMap<Stream, u64>,
    appended: u64,
    has_looked: bool,
}

impl Watcher {
    /// Of `store`, whose TTL is how old the pages may be by which this tells what waits.
    pub fn new(store: Arc<Store>) -> Watcher {
        let (known, newest, appended, has_looked) = Default::default();
        Watcher { store, known, newest, appended, has_looked }
    }

    /// What there is now: a list per thousand names, one read of each log object that was not there the
    /// last time, and a get, mostly a 304, of each leaf that something waits for; or a call for each queue,
    /// and another one if it has messages.
    ///
    /// # Errors
    /// Whatever the services say. It can be called again.
    pub async fn look(&mut self) -> Result<Look, StoreError> {
        let store = self.store.clone();
        store.ask_date().await?;
        let clients = store.clients().await?;
        let mut look = Look {
            date_ms: store.pages.date_ms(),
            pages: self.pages().await?,
            clients: clients.len() as u64,
            quarantined: store.count(QUARANTINE).await?,
            ..Look::default()
        };
        look.sequencer = match sequence::examine(&store).await {
            Err(StoreError::Denied { .. }) => None,
            state => state?,
        };
        match store.database().backend {
            Backend::S3Log => self.look_at_objects(&mut look).await?,
            _ => self.look_at_queues(&clients, &mut look).await?,
        }
        Ok(look)
    }

    /// How many pages there are, not all of them in memory.
    async fn pages(&self) -> Result<u64, StoreError> {
        let (mut count, mut after) = (0, None::<String>);
        while count < PAGES_COUNTED_MAX {
            let part = self.store.list_after(PAGES, after.as_deref()).await?;
            count += part.names.len() as u64;
            after = part.names.into_iter().next_back();
            if !part.more || after.is_none() {
                break;
            }
        }
        Ok(count)
    }

    async fn look_at_objects(&mut self, look: &mut Look) -> Result<(), StoreError> {
        let store = self.store.clone();
        let mut streams: BTreeMap<Stream, Vec<(u64, String)>> = BTreeMap::new();
        for name in store.list(LOG).await? {
            match objects::parse(&name) {
                Some((stream, number)) => streams.entry(stream).or_default().push((number, name)),
                None => look.damaged += 1,
            }
        }
        let mut known = HashMap::new();
        let mut count = 0;
        for (stream, names) in &streams {
            let (name, messages) = (format!("{:x}/{:x}", stream.client, stream.epoch), names.len());
            let mut part = LogPart { name, messages: messages as u64, waiting: 0, lag_ms: None };
            for (number, name) in names {
                let waiting = match self.known.get(name) {
                    Some(before) => before.clone(),
                    None => match self.records(*stream, *number, name).await? {
                        Some(records) => records,
                        None => {
                            look.damaged += 1;
                            continue;
                        }
                    },
                };
                let waiting = self.still_waiting(waiting, &mut part, look.date_ms).await?;
                count += 1 + waiting.len();
                if count < KNOWN_MAX {
                    known.insert(name.clone(), waiting);
                }
            }
            look.parts.push(part);
        }
        self.known = known;
        self.newest.retain(|stream, _| streams.contains_key(stream));
        let newest = |names: &Vec<(u64, String)>| names.iter().map(|(number, _)| *number).max();
        for (stream, names) in streams {
            let Some(now) = newest(&names) else { continue };
            let before = self.newest.insert(stream, now);
            if self.has_looked {
                let first = names.iter().map(|(number, _)| *number).min().unwrap_or(now);
                self.appended += match before {
                    Some(before) => now.saturating_sub(before),
                    None => now - first + 1,
                };
            }
        }
        self.has_looked = true;
        look.appended = Some(self.appended);
        Ok(())
    }

    /// The records of a log object. `None` if it cannot be decoded.
    async fn records(
        &self,
        stream: Stream,
        number: u64,
        name: &str,
    ) -> Result<Option<Vec<Waiting>>, StoreError> {
        let Store { cloud, settings, .. } = &*self.store;
        // Gone since the list: it is applied.
        let bytes = blob::get(cloud, settings, name, &Line::new()).await?;
        let Some(bytes) = bytes else { return Ok(Some(Vec::new())) };
        let entries = objects::entries(&bytes, stream, number);
        Ok(entries.ok().map(|entries| {
            let waiting = entries.iter().map(|entry| Waiting {
                tree: entry.tree,
                key: entry.leaf_key(),
                stamp: entry.record.stamp,
            });
            waiting.collect()
        }))
    }

    /// Those that no page shows, counted.
    async fn still_waiting(
        &self,
        records: Vec<Waiting>,
        part: &mut LogPart,
        date_ms: u64,
    ) -> Result<Vec<Waiting>, StoreError> {
        let mut waiting = Vec::new();
        for record in records {
            if fate(&self.store, record.tree, &record.key, record.stamp).await? == Fate::Waits {
                part.wait_for(record.stamp, date_ms);
                waiting.push(record);
            }
        }
        Ok(waiting)
    }

    async fn look_at_queues(&self, clients: &[u64], look: &mut Look) -> Result<(), StoreError> {
        let store = &self.store;
        let shards = (0..store.database().shards).map(Scope::Shard);
        let forwards = store.log.forwards(clients).into_iter().map(Scope::Client);
        for scope in shards.chain(forwards) {
            let (name, messages, entries) = store.log.peek(scope).await?;
            if messages == 0 {
                continue;
            }
            let mut part = LogPart { name, messages, waiting: 0, lag_ms: None };
            for entry in entries {
                part.wait_for(entry.record.stamp, look.date_ms);
            }
            look.parts.push(part);
        }
        Ok(())
    }
}

impl LogPart {
    fn wait_for(&mut self, stamp: Stamp, date_ms: u64) {
        self.waiting += 1;
        let age_ms = date_ms.saturating_sub(stamp.clock / 1000);
        self.lag_ms = self.lag_ms.max(Some(age_ms));
    }
}
