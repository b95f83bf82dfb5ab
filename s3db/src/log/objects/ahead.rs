//! Reading log objects ahead: several are asked for at a time, and given out in the order of their names.
//!
//! What is held is bounded by how many are asked for, and that by the largest that came: [`AHEAD_BYTES_MAX`]
//! where objects are alike, and never more than [`AT_ONCE`] of them. Before the first came nothing is known
//! of their size, and it is asked for alone.

use std::future::ready;

use bytes::Bytes;
use futures::{StreamExt as _, future::BoxFuture, stream::FuturesOrdered};

use super::ObjectLog;
use crate::{error::StoreError, page::Stream};

/// Calls for log objects that are under way at the same time, in one drain or one look.
pub(super) const AT_ONCE: usize = 16;
/// The same before the first object came: it can be as large as a transaction.
const AT_FIRST: usize = 1;
/// Bytes that the objects which were asked for may have together, if none is larger than those that came.
const AHEAD_BYTES_MAX: usize = 8 << 20;

/// An object of the log.
pub(super) enum Wanted {
    Named(String),
    /// One that is let go of afterwards: what is damaged is asked for once more.
    Surely(Stream, u64),
    /// The same; what this process put is taken from its memory, if it is there (see `own`).
    Own(Stream, u64),
}

/// Objects of the log, on their way.
pub(super) struct Ahead<'a> {
    log: &'a ObjectLog,
    /// Those that were not asked for.
    left: std::vec::IntoIter<Wanted>,
    coming: FuturesOrdered<BoxFuture<'a, Result<Option<Bytes>, StoreError>>>,
    /// Bytes of the largest that came, if any did.
    largest: Option<usize>,
}

impl<'a> Ahead<'a> {
    pub(super) fn new(log: &'a ObjectLog, wanted: Vec<Wanted>) -> Ahead<'a> {
        let (left, coming) = (wanted.into_iter(), FuturesOrdered::new());
        Ahead { log, left, coming, largest: None }
    }

    /// The next object; `None` in it if it is gone, and at the end. About `wanted` more will be, this one
    /// included: no more are asked for.
    pub(super) async fn next(&mut self, wanted: usize) -> Result<Option<Bytes>, StoreError> {
        let room = match self.largest {
            Some(largest) => AHEAD_BYTES_MAX / largest.max(1),
            None => AT_FIRST,
        };
        let most = room.min(wanted).clamp(1, AT_ONCE);
        while self.coming.len() < most
            && let Some(name) = self.left.next()
        {
            let log = self.log;
            self.coming.push_back(match name {
                Wanted::Own(stream, number) => match log.own().bytes(stream, number) {
                    Some(bytes) => Box::pin(ready(Ok(Some(bytes)))),
                    None => Box::pin(log.get_surely(stream, number)),
                },
                Wanted::Surely(stream, number) => Box::pin(log.get_surely(stream, number)),
                Wanted::Named(name) => Box::pin(async move { log.get(&name).await }),
            });
        }
        let bytes = self.coming.next().await.transpose()?.flatten();
        self.largest = self.largest.max(bytes.as_ref().map(Bytes::len));
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    };

    use async_trait::async_trait;

    use super::*;
    use crate::{
        cloud::{
            Cloud, Delete, ETag, Fault, Get, Listing, Objects, Put, PutIf,
            embedded::{self, Memory},
        },
        log::objects::{DRAIN_BYTES_MAX, SETTLED_AT_ONCE, name},
        log::{Log as _, Pending, Scope, Ticket},
        page::Stream,
        settings::Settings,
    };

    /// Objects that count who waits for them.
    struct Counted {
        inner: Arc<dyn Objects>,
        gets: AtomicUsize,
        now: AtomicUsize,
        most: AtomicUsize,
    }

    impl Counted {
        async fn wait(&self) {
            self.most.fetch_max(self.now.fetch_add(1, Relaxed) + 1, Relaxed);
            tokio::task::yield_now().await;
            self.now.fetch_sub(1, Relaxed);
        }
    }

    #[async_trait]
    impl Objects for Counted {
        async fn get(&self, name: &str, unless: Option<&ETag>) -> Result<Get, Fault> {
            self.gets.fetch_add(1, Relaxed);
            self.wait().await;
            self.inner.get(name, unless).await
        }

        async fn put(&self, name: &str, bytes: Bytes, condition: PutIf) -> Put {
            self.inner.put(name, bytes, condition).await
        }

        async fn delete(&self, name: &str, only: Option<&ETag>) -> Delete {
            self.wait().await;
            self.inner.delete(name, only).await
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

    const STREAM: Stream = Stream { client: 7, epoch: 1 };

    fn names(count: u64) -> Vec<Wanted> {
        (0..count).map(|number| Wanted::Named(name(STREAM, number))).collect()
    }

    /// A log with so many objects of so many bytes each that are no log objects.
    async fn log(objects: u64, bytes: usize) -> (ObjectLog, Arc<Counted>) {
        let cloud = embedded::memory(Arc::new(Memory::new()));
        let [gets, now, most] = <[AtomicUsize; 3]>::default();
        let counted = Arc::new(Counted { inner: cloud.objects.clone(), gets, now, most });
        for number in 0..objects {
            let noise = Bytes::from(vec![7; bytes]);
            cloud.objects.put(&name(STREAM, number), noise, PutIf::Absent).await;
        }
        let cloud = Cloud { objects: counted.clone(), ..cloud };
        (ObjectLog::new(cloud, Settings::default()), counted)
    }

    /// They were read one by one, and freed one by one: a hundred took the time of two hundred calls.
    #[tokio::test]
    async fn many_are_on_their_way_but_no_more_than_memory_has_room_for() {
        for (objects, bytes, most) in [(100, 100, AT_ONCE), (6, 2 << 20, 4), (6, 5 << 20, AT_FIRST)]
        {
            let (log, counted) = log(objects, bytes).await;
            let batch = log.drain(Scope::Stream(STREAM), 1000).await.unwrap();
            let what = format!("{objects} of {bytes}");
            assert_eq!(counted.most.load(Relaxed), most, "{what}");
            let found: Vec<String> = batch.poison.iter().map(|it| it.name.clone()).collect();
            let mut sorted = found.clone();
            sorted.sort();
            assert_eq!(found, sorted, "{what}: in the order of the stream");
        }
        // Of the largest there is no second one until it is here.
        let (log, counted) = log(3, AHEAD_BYTES_MAX + 1).await;
        let mut ahead = Ahead::new(&log, names(4));
        ahead.largest = Some(AHEAD_BYTES_MAX + 1);
        for expected in [true, true, true, false] {
            assert_eq!(ahead.next(100).await.unwrap().is_some(), expected);
        }
        assert_eq!(counted.most.load(Relaxed), 1);
    }

    #[tokio::test]
    async fn no_more_are_asked_for_than_are_wanted() {
        let (log, counted) = log(100, 10).await;
        let mut ahead = Ahead::new(&log, names(100));
        for left in (1..=30).rev() {
            assert!(ahead.next(left).await.unwrap().is_some());
        }
        assert_eq!(counted.gets.load(Relaxed), 30);
    }

    /// Who only looks read them one by one, and had all of them in memory at once.
    #[tokio::test]
    async fn a_look_at_what_is_there_is_in_parts_and_waits_once_for_many() {
        let (log, counted) = log(100, 300 << 10).await;
        let (mut found, mut parts, mut after) = (Vec::new(), 0, None::<String>);
        loop {
            let part = log.pending(&[], after.as_deref()).await.unwrap();
            assert!(part.found.len() * (300 << 10) < DRAIN_BYTES_MAX + (300 << 10));
            found.extend(part.found);
            parts += 1;
            after = part.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!((found.len(), parts), (100, 2));
        for (number, pending) in (0..).zip(&found) {
            let Pending::Damaged(what) = pending else { panic!("{pending:?}") };
            assert!(what.starts_with(&name(STREAM, number)), "{what}");
        }
        assert_eq!((counted.gets.load(Relaxed), counted.most.load(Relaxed)), (100, AT_ONCE));
    }

    /// They were emptied one stream after the other, before garbage could be collected.
    #[tokio::test]
    async fn streams_are_settled_beside_each_other() {
        let (log, counted) = log(0, 0).await;
        for client in 0..40 {
            let stream = Stream { client, epoch: 1 };
            let noise = Bytes::from_static(b"noise");
            counted.inner.put(&name(stream, 0), noise, PutIf::Absent).await;
        }
        assert!(log.settle(5).await.unwrap());
        // Each was read twice: once could have been a damaged answer.
        assert_eq!((counted.gets.load(Relaxed), counted.most.load(Relaxed)), (80, SETTLED_AT_ONCE));
    }

    #[tokio::test]
    async fn what_is_applied_is_freed_together() {
        let (log, counted) = log(100, 10).await;
        let all = (0..100).map(|number| Ticket::Object { name: name(STREAM, number) });
        log.ack(all.collect()).await.unwrap();
        assert_eq!(counted.most.load(Relaxed), AT_ONCE);
        let (left, _) = log.numbers(STREAM, None).await.unwrap();
        assert_eq!(left, [99], "the newest stays");
    }
}
