//! Takes down what is done to objects that are changed by compare and swap alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use bytes::Bytes;

use crate::{
    cloud::{
        Delete, ETag, Fault, Get, Listing, Objects, Put, PutIf,
        model::{Time, tag},
    },
    names::{CATALOG, CLIENTS, DATABASE, OWNERS, PAGES, WRITERS},
    sequence::codec::NUMBERS,
    simulation::{
        Violation,
        linear::{Call, Did, check},
        stage::lock,
    },
};

/// What was done to each object.
#[derive(Default)]
pub(super) struct Record {
    /// `None`: it did not happen.
    calls: BTreeMap<String, Vec<Option<Call>>>,
    /// Put without a condition: not of those.
    others: BTreeSet<String>,
}

impl Record {
    /// Notes that a call begins, of which nobody may ever hear. Its place.
    fn begin(&mut self, name: &str, from: u64, did: Did) -> usize {
        let calls = self.calls.entry(name.to_owned()).or_default();
        calls.push(Some(Call { from, to: u64::MAX, did }));
        calls.len() - 1
    }

    /// Notes what a call has done. `None`: nothing.
    fn end(&mut self, name: &str, place: usize, to: u64, did: Option<Did>) {
        let there = self.calls.get_mut(name).and_then(|calls| calls.get_mut(place));
        let Some(there) = there else { return };
        *there = there.take().zip(did).map(|(call, did)| Call { to, did, ..call });
    }

    /// Objects whose history is none of compare and swap.
    pub(super) fn broken(&self) -> Vec<Violation> {
        let all = self.calls.iter().filter(|(name, _)| !self.others.contains(*name));
        let wrong = all.filter_map(|(name, calls)| {
            let calls: Vec<Call> = calls.iter().flatten().cloned().collect();
            Some((name, check(None, &calls).err()?))
        });
        wrong.map(|(name, what)| Violation::new(14, format!("{name}: {what}"))).collect()
    }
}

/// Stands before objects, for one process.
pub(super) struct Recorder {
    pub(super) inner: Arc<dyn Objects>,
    pub(super) time: Time,
    pub(super) record: Arc<Mutex<Record>>,
}

fn text(etag: &ETag) -> String {
    etag.as_str().to_owned()
}

fn is_swapped(name: &str) -> bool {
    let prefixes = [PAGES, CLIENTS, CATALOG, WRITERS];
    [NUMBERS, OWNERS, DATABASE].contains(&name) || prefixes.iter().any(|it| name.starts_with(it))
}

#[async_trait]
impl Objects for Recorder {
    async fn get(&self, name: &str, unless: Option<&ETag>) -> Result<Get, Fault> {
        let from = self.time.now_us();
        let answer = self.inner.get(name, unless).await;
        if let (Ok(answer), true) = (&answer, is_swapped(name)) {
            let found = match answer {
                Get::Found { etag, .. } => Some(text(etag)),
                Get::Unchanged { .. } => unless.map(text),
                Get::Absent => None,
            };
            let call = Call { from, to: self.time.now_us(), did: Did::Got(found) };
            lock(&self.record).calls.entry(name.to_owned()).or_default().push(Some(call));
        }
        answer
    }

    async fn put(&self, name: &str, bytes: Bytes, condition: PutIf) -> Put {
        if !is_swapped(name) {
            return self.inner.put(name, bytes, condition).await;
        }
        let old = match &condition {
            PutIf::Always => {
                lock(&self.record).others.insert(name.to_owned());
                None
            }
            PutIf::Absent => None,
            PutIf::Matches(etag) => Some(text(etag)),
        };
        // Its caller may end before it does.
        let new = text(&tag(&bytes));
        let put = |is_known| Did::Put { old: old.clone(), new: new.clone(), is_known };
        let place = lock(&self.record).begin(name, self.time.now_us(), put(false));
        let outcome = self.inner.put(name, bytes, condition).await;
        let did = match &outcome {
            Put::Stored(_) => Some(put(true)),
            Put::Refused => Some(Did::Refused(old)),
            Put::Missing => Some(Did::Got(None)),
            Put::Conflict | Put::Failed(_) => None,
            Put::Unknown(_) => return outcome,
        };
        lock(&self.record).end(name, place, self.time.now_us(), did);
        outcome
    }

    async fn delete(&self, name: &str, only: Option<&ETag>) -> Delete {
        if !is_swapped(name) {
            return self.inner.delete(name, only).await;
        }
        let tag = only.map(text);
        let deleted = |is_known| Did::Deleted { only: tag.clone(), is_known };
        let place = lock(&self.record).begin(name, self.time.now_us(), deleted(false));
        let outcome = self.inner.delete(name, only).await;
        let did = match &outcome {
            Delete::Gone => Some(deleted(true)),
            Delete::Refused => Some(Did::Refused(tag)),
            Delete::Conflict | Delete::Failed(_) => None,
            Delete::Unknown(_) => return outcome,
        };
        lock(&self.record).end(name, place, self.time.now_us(), did);
        outcome
    }

    async fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> Result<Listing, Fault> {
        self.inner.list(prefix, after, max).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cloud::model::{Executor, Faults, Latency, Process, World},
        simulation::stage::STEPS_MAX,
    };

    /// What it does not do as it says.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Lie {
        Nothing,
        /// A get shows what was before the last put.
        Old,
        /// A put over a version that is not there any more is stored.
        Blind,
        /// A put that was refused has been stored.
        Stored,
        /// A delete says that it is gone, and nothing goes.
        Stays,
        /// What was deleted is replaced as if it were there.
        Revived,
    }

    struct Liar {
        inner: Arc<dyn Objects>,
        lie: Lie,
        /// What there was, the newest behind.
        versions: Mutex<Vec<(Bytes, ETag)>>,
    }

    #[async_trait]
    impl Objects for Liar {
        async fn get(&self, name: &str, unless: Option<&ETag>) -> Result<Get, Fault> {
            let before = lock(&self.versions).iter().rev().nth(1).cloned();
            if let (Lie::Old, Some((bytes, etag))) = (self.lie, before) {
                return Ok(Get::Found { bytes, etag, date_ms: 1 });
            }
            self.inner.get(name, unless).await
        }

        async fn put(&self, name: &str, bytes: Bytes, condition: PutIf) -> Put {
            let mut put = self.inner.put(name, bytes.clone(), condition).await;
            let is_stored = match (&put, self.lie) {
                (Put::Refused, Lie::Blind | Lie::Stored) => true,
                (Put::Missing, lie) => lie == Lie::Revived,
                _ => false,
            };
            if is_stored {
                let stored = self.inner.put(name, bytes.clone(), PutIf::Always).await;
                put = if self.lie == Lie::Stored { put } else { stored };
            }
            if let Put::Stored(etag) = &put {
                lock(&self.versions).push((bytes, etag.clone()));
            }
            put
        }

        async fn delete(&self, name: &str, only: Option<&ETag>) -> Delete {
            match self.lie {
                Lie::Stays => Delete::Gone,
                _ => self.inner.delete(name, only).await,
            }
        }

        async fn list(
            &self,
            prefix: &str,
            after: Option<&str>,
            max: usize,
        ) -> Result<Listing, Fault> {
            self.inner.list(prefix, after, max).await
        }
    }

    /// Creates it, replaces it, tries that once more, deletes it, tries to replace it, and looks in between.
    async fn live(objects: Recorder, name: &'static str) {
        let mut tags: Vec<ETag> = Vec::new();
        for (bytes, over) in [("one", None), ("two", Some(0)), ("three", Some(0))] {
            let condition =
                over.map_or(PutIf::Absent, |at: usize| PutIf::Matches(tags[at].clone()));
            if let Put::Stored(etag) = objects.put(name, bytes.into(), condition).await {
                tags.push(etag);
            }
            let _ = objects.get(name, None).await;
        }
        let two = tags[1].clone();
        objects.delete(name, Some(&two)).await;
        let _ = objects.get(name, None).await;
        objects.put(name, "four".into(), PutIf::Matches(two)).await;
        let _ = objects.get(name, None).await;
    }

    /// Of each kind of object that is swapped, as of pages, it is seen that it is not what its history says.
    #[test]
    fn a_broken_history_of_each_kind_is_seen() {
        let lies = [Lie::Nothing, Lie::Old, Lie::Blind, Lie::Stored, Lie::Stays, Lie::Revived];
        for name in ["page/1", "clients/1", "catalog/a", "writers/a", NUMBERS, OWNERS, DATABASE] {
            for lie in lies {
                let record: Arc<Mutex<Record>> = Arc::default();
                let world = World::new(1, Faults::NONE, Latency::ROUGH);
                let (time, inner) = (world.time.clone(), world.cloud(Process(1)).objects);
                let inner = Arc::new(Liar { inner, lie, versions: Mutex::default() });
                let recorder = Recorder { inner, time: time.clone(), record: record.clone() };
                time.spawn(Process(1), live(recorder, name));
                Executor::new(time, 1).run(u64::MAX, STEPS_MAX);
                let broken = lock(&record).broken();
                assert_eq!(
                    broken.len(),
                    usize::from(lie != Lie::Nothing),
                    "{name} {lie:?}: {broken:?}"
                );
                assert!(broken.iter().all(|it| it.invariant == 14 && it.what.starts_with(name)));
            }
        }
    }
}
