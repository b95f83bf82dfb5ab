//! Addresses to sources, opened once.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use sources::{AllowList, BlockSource, Cache, DiskCache, Options, SourceError, Traffic, Version};

use super::seats::{Part, Seat};

/// Sources that are kept open. Beyond that, those that nobody uses are closed.
const OPEN_MAX: usize = 1024;

/// An object as the cache reads it.
pub(super) type Object = DiskCache<Arc<dyn BlockSource>>;

/// A turn to ask the source of `object` for `range`, which the disk may spare it: what is there waits for
/// no source.
pub(super) async fn turn_for(
    seat: &Seat,
    (url, object): (&str, &Object),
    version: &Version,
    range: &Range<u64>,
) -> Option<Part> {
    match seat.turn_now(url) {
        Some(turn) => Some(turn),
        None if object.holds(version, range.clone()).await => None,
        None => Some(seat.turn(url).await),
    }
}

/// See the module.
pub(super) struct Objects {
    options: Options,
    traffic: Traffic,
    cache: Cache,
    open: Mutex<HashMap<String, Arc<Object>>>,
}

impl Objects {
    pub(super) fn new(cache: Cache, allow: AllowList) -> Objects {
        let traffic = Traffic::default();
        let options = Options::default().traffic(traffic.clone()).allow(allow);
        Objects { options, traffic, cache, open: Mutex::default() }
    }

    pub(super) fn cache(&self) -> &Cache {
        &self.cache
    }

    pub(super) fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Makes ready what the first request would have to make.
    pub(super) async fn warm_up(&self) {
        self.options.warm_up_s3().await;
    }

    /// The object at `url`. Nothing is sent.
    ///
    /// # Errors
    /// [`SourceError::Permanent`] for an address that is not served.
    pub(super) fn get(&self, url: &str) -> Result<Arc<Object>, SourceError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(object) = open.get(url) {
            return Ok(object.clone());
        }
        if open.len() >= OPEN_MAX {
            open.retain(|_, object| Arc::strong_count(object) > 1);
        }
        let object = Arc::new(self.options.open_cached(url, self.cache.clone())?);
        if open.len() < OPEN_MAX {
            open.insert(url.to_owned(), object.clone());
        }
        Ok(object)
    }
}
