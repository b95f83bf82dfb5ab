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
    names::PAGES,
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
    /// Deleted, or put without a condition: not of those.
    others: BTreeSet<String>,
}

impl Record {
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
    name.starts_with(PAGES) || name == NUMBERS
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
        let did = Did::Put { old: old.clone(), new: text(&tag(&bytes)), is_known: false };
        let begun = Call { from: self.time.now_us(), to: u64::MAX, did };
        let place = {
            let mut record = lock(&self.record);
            let calls = record.calls.entry(name.to_owned()).or_default();
            calls.push(Some(begun));
            calls.len() - 1
        };
        let outcome = self.inner.put(name, bytes, condition).await;
        let mut record = lock(&self.record);
        let there = &mut record.calls.entry(name.to_owned()).or_default()[place];
        let to = self.time.now_us();
        match (&outcome, there.as_mut()) {
            (Put::Stored(_), Some(call)) => {
                call.to = to;
                if let Did::Put { is_known, .. } = &mut call.did {
                    *is_known = true;
                }
            }
            (Put::Refused | Put::Missing, Some(call)) => {
                (call.to, call.did) = (to, Did::Refused(old));
            }
            (Put::Conflict | Put::Failed(_), _) => *there = None,
            _ => {}
        }
        outcome
    }

    async fn delete(&self, name: &str, only: Option<&ETag>) -> Delete {
        if is_swapped(name) {
            lock(&self.record).others.insert(name.to_owned());
        }
        self.inner.delete(name, only).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> Result<Listing, Fault> {
        self.inner.list(prefix, after, max).await
    }
}
