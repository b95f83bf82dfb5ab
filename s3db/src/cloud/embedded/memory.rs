//! Objects in memory: for tests, and for stores that nobody needs tomorrow.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Tagged, check, system::now_ms, tag};
use crate::cloud::{Delete, ETag, Fault, Get, Listing, Objects, Put, PutIf};

/// A bucket in this process's memory.
#[derive(Default)]
pub struct Memory {
    objects: Mutex<BTreeMap<String, Tagged>>,
}

impl Memory {
    /// An empty bucket.
    pub fn new() -> Memory {
        Memory::default()
    }

    fn objects(&self) -> MutexGuard<'_, BTreeMap<String, Tagged>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Objects for Memory {
    async fn get(&self, name: &str, unless: Option<&ETag>) -> Result<Get, Fault> {
        check(name)?;
        let date_ms = now_ms();
        Ok(match self.objects().get(name).cloned() {
            None => Get::Absent,
            Some((_, etag)) if unless == Some(&etag) => Get::Unchanged { date_ms },
            Some((bytes, etag)) => Get::Found { bytes, etag, date_ms },
        })
    }

    async fn put(&self, name: &str, bytes: Bytes, condition: PutIf) -> Put {
        if let Err(fault) = check(name) {
            return Put::Failed(fault);
        }
        let mut objects = self.objects();
        match (&condition, objects.get(name)) {
            (PutIf::Always, _) | (PutIf::Absent, None) => {}
            (PutIf::Absent, Some(_)) => return Put::Refused,
            (PutIf::Matches(_), None) => return Put::Missing,
            (PutIf::Matches(expected), Some((_, etag))) if expected != etag => return Put::Refused,
            (PutIf::Matches(_), Some(_)) => {}
        }
        let etag = tag(&bytes);
        objects.insert(name.to_owned(), (bytes, etag.clone()));
        Put::Stored(etag)
    }

    async fn delete(&self, name: &str, only: Option<&ETag>) -> Delete {
        if let Err(fault) = check(name) {
            return Delete::Failed(fault);
        }
        let mut objects = self.objects();
        match (objects.get(name), only) {
            (Some((_, etag)), Some(only)) if etag != only => return Delete::Refused,
            _ => drop(objects.remove(name)),
        }
        Delete::Gone
    }

    async fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> Result<Listing, Fault> {
        let objects = self.objects();
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let mut names: Vec<String> = objects
            .range::<str, _>((from, Bound::Unbounded))
            .map(|(name, _)| name)
            .take_while(|name| name.starts_with(prefix))
            .take(max + 1)
            .cloned()
            .collect();
        let more = names.len() > max;
        names.truncate(max);
        Ok(Listing { names, more })
    }
}
