//! The disk tier: pages as they lie in the object store, on a disk that may do anything to them.
//!
//! ```text
//!   memory has it, young ............................ no request, no disk
//!   memory has let go of it, its version is young ... disk, no request
//!   not known here, or not young any more ........... disk, then "unless it is still this ETag"
//!                                                       304: that copy       200: this one, and onto disk
//! ```
//!
//! A file holds one version of one page: its name in the object store, its ETag, and its bytes as they lie
//! there, so sealed where the database is encrypted. It is believed only if its own checksum holds, it
//! is the file of this page of this database, and what is in it opens and is that page; otherwise it
//! is removed, and it was not there. Before anything is read from it that this process does not know to be
//! current, the object store is asked.
//!
//! | bytes | field of a file, a frame of magic `s3dF`, version 1 |
//! | --- | --- |
//! | 2 + n | name of the object |
//! | 2 + n | its ETag |
//! | rest | its bytes |

use std::{
    io,
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::{Either, select};

#[cfg(feature = "encryption")]
use crate::cloud::sealed::{Closed, Of, Sealer};
use crate::{
    cloud::{Clock, Delete, Disk, DiskSpace, ETag, Fault, Get, Listing, Objects, Put, PutIf},
    frame::{FrameError, Reader, Writer},
    names::PAGES,
    page::{Page, PageId},
    settings::Settings,
};

const MAGIC: &str = "s3dF";
const VERSION: u8 = 1;
/// The part of what may be there that is written before it is looked at again: others write, too. No page
/// that is longer than this is written.
const STEP_PART: u64 = 16;
/// What is left when files had to go, in sixteenths: four processes that write as fast as they can do not
/// go past the bound.
const LEFT_PARTS: u64 = 12;
/// Bytes that a file takes at least, whatever is in it.
const FILE_BYTES_MIN: u64 = 4096;
/// Bytes of the longest page that is kept, unless this client makes longer ones: what a file says of its
/// length is believed so far, beside what is reserved for a page.
const PAGE_BYTES_MAX: u64 = 1 << 20;
/// Bytes of a file besides those of its page.
const FILE_FIXED_BYTES: u64 = 4096;
/// How long a call of the disk may take.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// Failures in a row after which the disk is left alone.
const FAILURES_MAX: u64 = 3;

/// What the disk tier did so far.
#[derive(Default)]
pub(super) struct DiskCounters {
    /// Pages served without a request.
    pub(super) hits: AtomicU64,
    /// Pages served after the object store said that they are still the newest.
    pub(super) confirmed: AtomicU64,
    pub(super) misses: AtomicU64,
    pub(super) damaged: AtomicU64,
    pub(super) written: AtomicU64,
    pub(super) removed: AtomicU64,
}

/// What came of opening a file's bytes.
enum Opened {
    Body(Bytes),
    /// It needs a key that this process does not have.
    #[cfg_attr(not(feature = "encryption"), expect(dead_code, reason = "nothing is sealed"))]
    NoKey,
    /// It is none of this database.
    #[cfg_attr(not(feature = "encryption"), expect(dead_code, reason = "nothing is sealed"))]
    Foreign,
}

/// A disk that keeps pages of one database.
pub(crate) struct Tier {
    disk: Arc<dyn Disk>,
    limit: u64,
    /// Of a page.
    bytes_max: u64,
    database: u128,
    /// Opens what lies there, if the database is encrypted.
    #[cfg(feature = "encryption")]
    sealer: Option<Arc<Sealer>>,
    clock: Arc<dyn Clock>,
    /// Bytes written since it was last looked at what is there; a step before the first time.
    since: AtomicU64,
    failures: AtomicU64,
    /// What it said to the last call that failed, if it did nothing since that it is there for.
    failure: Mutex<Option<String>>,
    pub(super) counters: DiskCounters,
}

fn bump(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// What a file of the disk tier holds: one version of one page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptPage {
    /// The name of its object.
    pub object: String,
    /// The ETag of this version.
    pub etag: ETag,
    /// Its bytes as they lie in the object store.
    pub bytes: Bytes,
}

impl KeptPage {
    pub(crate) fn encode(&self) -> Bytes {
        let room = self.bytes.len() + self.object.len() + 128;
        let mut to = Writer::with_room(MAGIC, VERSION, room);
        to.short(self.object.as_bytes());
        to.short(self.etag.as_str().as_bytes());
        to.raw(&self.bytes);
        to.finish()
    }

    pub(crate) fn decode(file: &Bytes) -> Result<KeptPage, FrameError> {
        let mut from = Reader::new(file, MAGIC, VERSION)?;
        let object = from.short()?;
        let object = std::str::from_utf8(&object).map_err(|_| from.field("no name"))?.to_owned();
        let etag = from.short()?;
        let etag = ETag::new(std::str::from_utf8(&etag).map_err(|_| from.field("no ETag"))?);
        let rest = from.rest();
        Ok(KeptPage { object, etag, bytes: from.raw(rest)? })
    }
}

impl Tier {
    /// A part of a disk, for the database of this id.
    pub(crate) fn new(
        space: DiskSpace,
        database: u128,
        settings: &Settings,
        clock: Arc<dyn Clock>,
    ) -> Tier {
        let (disk, limit) = (space.disk, space.bytes);
        let frame = settings.leaf_bytes_max.max(settings.inner_bytes_max) as u64;
        // One entry makes a page longer than it should be.
        let bytes_max = frame.saturating_mul(4).max(PAGE_BYTES_MAX).min(limit / STEP_PART);
        Tier {
            disk,
            limit,
            bytes_max,
            database,
            clock,
            #[cfg(feature = "encryption")]
            sealer: None,
            since: AtomicU64::new(limit / STEP_PART),
            failures: AtomicU64::new(0),
            failure: Mutex::default(),
            counters: DiskCounters::default(),
        }
    }

    /// The same, for one whose objects are sealed.
    #[cfg(feature = "encryption")]
    pub(crate) fn sealed(self, sealer: Arc<Sealer>) -> Tier {
        Tier { sealer: Some(sealer), ..self }
    }

    /// What it said when it failed last, if it did nothing since that it is there for.
    pub(crate) fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether it is left alone.
    pub(crate) fn is_off(&self) -> bool {
        self.failures.load(Ordering::Relaxed) >= FAILURES_MAX
    }

    fn file(&self, id: PageId) -> String {
        format!("{:032x}-{:032x}", self.database, id.0)
    }

    /// What the disk says to a call, in time. One that fails again and again is left alone, and so is one
    /// that does not answer: nobody is to wait for it.
    async fn told<T>(&self, call: impl Future<Output = io::Result<T>>) -> Option<T> {
        let outcome = match select(pin!(call), self.clock.sleep(WAIT_MAX)).await {
            Either::Left((outcome, _)) => outcome,
            Either::Right(_) => Err(io::Error::from(io::ErrorKind::TimedOut)),
        };
        match outcome {
            Ok(done) => Some(done),
            Err(error) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
                *failure = Some(error.to_string());
                None
            }
        }
    }

    /// It does what it is there for. That it has no file, or lists some, says nothing: a disk that is full
    /// does as well.
    fn works(&self) {
        if !self.is_off() && self.failures.swap(0, Ordering::Relaxed) > 0 {
            *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    /// What there is of a page: its ETag, its bytes as they lie in the object store, and itself.
    async fn kept(&self, id: PageId) -> Option<(ETag, Bytes, Page)> {
        if self.is_off() {
            return None;
        }
        let name = self.file(id);
        let file = self.told(self.disk.read(&name, self.bytes_max + FILE_FIXED_BYTES)).await??;
        let object = id.object();
        let found = match KeptPage::decode(&file) {
            Ok(KeptPage { object: of, etag, bytes }) if of == object => {
                match self.opened(&object, &bytes) {
                    Opened::Body(body) => {
                        let page = Page::decode(&body).ok().filter(|page| page.id == id);
                        page.map(|page| (etag, bytes, page))
                    }
                    // Others of this machine have that key.
                    Opened::NoKey => return None,
                    Opened::Foreign => None,
                }
            }
            _ => None,
        };
        match &found {
            Some(_) => self.works(),
            None => {
                bump(&self.counters.damaged);
                self.told(self.disk.remove(&name)).await;
            }
        }
        found
    }

    /// What a frame holds.
    fn opened(&self, object: &str, bytes: &Bytes) -> Opened {
        #[cfg(feature = "encryption")]
        if let Some(sealer) = &self.sealer {
            return match sealer.open(Of::Object(object), bytes) {
                Ok(body) => Opened::Body(body),
                Err(Closed::NoKey(_)) => Opened::NoKey,
                Err(Closed::Foreign(_)) => Opened::Foreign,
            };
        }
        let _ = object;
        Opened::Body(bytes.clone())
    }

    /// The version `etag` of a page, if it is there.
    pub(super) async fn page(&self, id: PageId, etag: &ETag) -> Option<Page> {
        let found = self.kept(id).await.filter(|(there, ..)| there == etag);
        if found.is_some() {
            bump(&self.counters.hits);
        }
        found.map(|(_, _, page)| page)
    }

    async fn keep(&self, id: PageId, etag: &ETag, bytes: &Bytes) {
        let len = bytes.len() as u64;
        if self.is_off() || len > self.bytes_max {
            return;
        }
        let kept = KeptPage { object: id.object(), etag: etag.clone(), bytes: bytes.clone() };
        let (name, file) = (self.file(id), kept.encode());
        // Before it is there: whoever is dropped meanwhile may have written it.
        self.since.fetch_add(len.max(FILE_BYTES_MIN), Ordering::Relaxed);
        if self.told(self.disk.write(&name, file)).await.is_some() {
            self.works();
            bump(&self.counters.written);
            self.bound().await;
        }
    }

    /// Removes what was not used for longest, when there may be too much.
    async fn bound(&self) {
        // One look for each step, by whoever comes, and any number at once: who rests here, as a scan does
        // that reads ahead, or is dropped, is in nobody's way, and the next one comes a step later.
        let step = (self.limit / STEP_PART).max(1);
        let less = |since: u64| since.checked_sub(step);
        if self.since.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_err() {
            return;
        }
        let Some(mut all) = self.told(self.disk.list()).await else { return };
        let mut total: u64 = all.iter().map(|kept| kept.bytes).sum();
        if total <= self.limit / 16 * LEFT_PARTS {
            return;
        }
        all.sort_by(|a, b| (a.used, &a.name).cmp(&(b.used, &b.name)));
        for kept in all {
            if total <= self.limit / 16 * (LEFT_PARTS - 1) {
                break;
            }
            if self.told(self.disk.remove(&kept.name)).await.is_some() {
                bump(&self.counters.removed);
                total -= kept.bytes;
            }
        }
    }

    async fn forget(&self, id: PageId) {
        if !self.is_off() {
            self.told(self.disk.remove(&self.file(id))).await;
        }
    }
}

/// Objects whose pages are kept on a disk, too.
pub(crate) struct Tiered {
    pub(crate) inner: Arc<dyn Objects>,
    pub(crate) tier: Arc<Tier>,
}

fn page_of(name: &str) -> Option<PageId> {
    if name.starts_with(PAGES) { PageId::of_object(name) } else { None }
}

#[async_trait]
impl Objects for Tiered {
    async fn get(&self, name: &str, unless: Option<&ETag>) -> Result<Get, Fault> {
        let Some(id) = page_of(name) else { return self.inner.get(name, unless).await };
        let tier = &self.tier;
        let kept = if unless.is_none() { tier.kept(id).await } else { None };
        let condition = kept.as_ref().map(|(etag, ..)| etag).or(unless);
        let answer = self.inner.get(name, condition).await?;
        match (answer, kept) {
            (Get::Unchanged { date_ms }, Some((etag, bytes, _))) => {
                bump(&tier.counters.confirmed);
                Ok(Get::Found { bytes, etag, date_ms })
            }
            (Get::Found { bytes, etag, date_ms }, _) => {
                if unless.is_none() && !tier.is_off() {
                    bump(&tier.counters.misses);
                }
                tier.keep(id, &etag, &bytes).await;
                Ok(Get::Found { bytes, etag, date_ms })
            }
            (Get::Absent, kept) => {
                if kept.is_some() {
                    tier.forget(id).await;
                }
                Ok(Get::Absent)
            }
            (answer, None) => Ok(answer),
        }
    }

    async fn put(&self, name: &str, bytes: Bytes, condition: PutIf) -> Put {
        let put = self.inner.put(name, bytes.clone(), condition).await;
        if let (Some(id), Put::Stored(etag)) = (page_of(name), &put) {
            self.tier.keep(id, etag, &bytes).await;
        }
        put
    }

    async fn delete(&self, name: &str, only: Option<&ETag>) -> Delete {
        let delete = self.inner.delete(name, only).await;
        if let (Some(id), Delete::Gone) = (page_of(name), &delete) {
            self.tier.forget(id).await;
        }
        delete
    }

    async fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> Result<Listing, Fault> {
        self.inner.list(prefix, after, max).await
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_byte_of_a_file_counts() {
        let (object, etag) = ("page/1".to_owned(), ETag::new("\"1-2\""));
        let kept = KeptPage { object, etag, bytes: "the bytes of a page".into() };
        let file = kept.encode();
        assert_eq!(KeptPage::decode(&file), Ok(kept));
        for at in 0..file.len() {
            let mut damaged = file.to_vec();
            damaged[at] ^= 1 << (at % 8);
            assert!(KeptPage::decode(&damaged.into()).is_err(), "byte {at}");
            assert!(KeptPage::decode(&file.slice(..at)).is_err(), "cut at {at}");
        }
    }

    proptest! {
        #[test]
        fn noise_is_no_file(noise in prop::collection::vec(0..8u8, 0..200), is_framed: bool) {
            let mut file = Bytes::from(noise.clone());
            if is_framed {
                let mut to = Writer::new(MAGIC, VERSION);
                to.raw(&noise);
                file = to.finish();
            }
            // Under a checksum that holds it may be one; then it is written in this way alone.
            if let Ok(kept) = KeptPage::decode(&file) {
                prop_assert!(is_framed);
                prop_assert_eq!(kept.encode(), file);
            }
        }
    }
}
