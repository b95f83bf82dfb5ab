//! Services and clocks that do what a test tells them to, over others that behave.

use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use s3db::cloud::{
    Clock, Cloud, Delete, ETag, Fault, Get, Listing, Message, Objects, Put, PutIf, Queue,
    QueueSettings, Receipt, Sent, ToSend,
};

/// What becomes of a put or a send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It happens, and no answer comes.
    LostAnswer,
    /// It does not happen, and no answer comes.
    LostRequest,
    /// It happens, and whoever asked waits for ever.
    Stuck,
    /// No answer comes, and it happens when the test says so.
    Late,
    /// It is refused for good.
    Denied,
    /// It is refused for now.
    Throttled,
}

type Once = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Stands between a store and its services.
pub(crate) struct Meddler {
    beneath: Cloud,
    /// Fates of puts of names that start so; those that follow are let through.
    puts: Mutex<(String, VecDeque<Fate>)>,
    /// So many gets of names that start so are refused for now.
    gets: Mutex<(String, usize)>,
    /// So many answers to gets of each name that starts so are damaged on their way; and how many were.
    damaged: Mutex<(String, usize, BTreeMap<String, usize>)>,
    sends: Mutex<VecDeque<Fate>>,
    late: Mutex<Vec<(String, Bytes, PutIf)>>,
    /// What happens after the first list of this prefix.
    after_list: Mutex<Option<(String, Once)>>,
    /// What happens before the next put of a name that starts so.
    before_put: Mutex<Option<(String, Once)>>,
    /// The same of a delete.
    before_delete: Mutex<Option<(String, Once)>>,
    /// Messages that one receive is given at most.
    messages_max: AtomicUsize,
    /// Whether the service takes receives for nonsense.
    is_confused: AtomicBool,
}

impl Meddler {
    /// `cloud` with a meddler before it.
    pub(crate) fn over(cloud: &Cloud) -> (Arc<Meddler>, Cloud) {
        let meddler = Arc::new(Meddler {
            beneath: cloud.clone(),
            puts: Mutex::default(),
            gets: Mutex::default(),
            damaged: Mutex::default(),
            sends: Mutex::default(),
            late: Mutex::default(),
            after_list: Mutex::default(),
            before_put: Mutex::default(),
            before_delete: Mutex::default(),
            messages_max: AtomicUsize::new(usize::MAX),
            is_confused: AtomicBool::new(false),
        });
        let cloud = Cloud { objects: meddler.clone(), queue: meddler.clone(), ..cloud.clone() };
        (meddler, cloud)
    }

    /// The next puts of names that start with `prefix` go this way.
    pub(crate) fn puts(&self, prefix: &str, fates: &[Fate]) {
        *self.puts.lock().unwrap() = (prefix.to_owned(), fates.iter().copied().collect());
    }

    /// So many gets of names that start with `prefix` are refused for now.
    pub(crate) fn refuses_gets(&self, prefix: &str, count: usize) {
        *self.gets.lock().unwrap() = (prefix.to_owned(), count);
    }

    /// From now on the first `count` answers to gets of each name that starts with `prefix` are damaged, each in
    /// another byte. What lies there is as it was.
    pub(crate) fn damages_gets(&self, prefix: &str, count: usize) {
        *self.damaged.lock().unwrap() = (prefix.to_owned(), count, BTreeMap::new());
    }

    /// How many answers were.
    pub(crate) fn damaged(&self) -> usize {
        self.damaged.lock().unwrap().2.values().sum()
    }

    /// The next sends go this way.
    pub(crate) fn sends(&self, fates: &[Fate]) {
        *self.sends.lock().unwrap() = fates.iter().copied().collect();
    }

    /// Puts that were told to be late happen now.
    pub(crate) async fn deliver(&self) -> Vec<Put> {
        let late = std::mem::take(&mut *self.late.lock().unwrap());
        let mut outcomes = Vec::new();
        for (name, bytes, condition) in late {
            outcomes.push(self.beneath.objects.put(&name, bytes, condition).await);
        }
        outcomes
    }

    /// `then` happens after the next list of `prefix`, before its answer arrives.
    pub(crate) fn after_list(&self, prefix: &str, then: impl Future<Output = ()> + Send + 'static) {
        *self.after_list.lock().unwrap() = Some((prefix.to_owned(), Box::pin(then)));
    }
}

impl Meddler {
    /// `then` happens before the next put of a name that starts with `prefix`.
    pub(crate) fn before_put(&self, prefix: &str, then: impl Future<Output = ()> + Send + 'static) {
        *self.before_put.lock().unwrap() = Some((prefix.to_owned(), Box::pin(then)));
    }

    /// `then` happens before the next delete of a name that starts with `prefix`.
    pub(crate) fn before_delete(
        &self,
        prefix: &str,
        then: impl Future<Output = ()> + Send + 'static,
    ) {
        *self.before_delete.lock().unwrap() = Some((prefix.to_owned(), Box::pin(then)));
    }

    /// A receive is given so many messages at most, however many there are.
    pub(crate) fn gives_at_most(&self, messages: usize) {
        self.messages_max.store(messages, Ordering::Relaxed);
    }

    /// Receives are refused for good from now on.
    pub(crate) fn refuses_receives(&self) {
        self.is_confused.store(true, Ordering::Relaxed);
    }
}

fn lost(what: &str) -> Fault {
    Fault::Unknown { what: what.to_owned(), cause: "lost".into() }
}

fn denied(what: &str) -> Fault {
    Fault::Denied { what: what.to_owned(), cause: "the test says so".into() }
}

#[async_trait]
impl Objects for Meddler {
    async fn get(&self, name: &str, unless: Option<&ETag>) -> Result<Get, Fault> {
        {
            let mut gets = self.gets.lock().unwrap();
            if gets.1 > 0 && name.starts_with(&gets.0) {
                gets.1 -= 1;
                return Err(Fault::Throttled { what: name.to_owned() });
            }
        }
        // As S3 tells it: in whole seconds.
        let whole = |date_ms: u64| date_ms / 1000 * 1000;
        Ok(match self.beneath.objects.get(name, unless).await? {
            Get::Found { mut bytes, etag, date_ms } => {
                let (prefix, count, seen) = &mut *self.damaged.lock().unwrap();
                if *count > 0 && name.starts_with(&**prefix) {
                    let seen = seen.entry(name.to_owned()).or_default();
                    if *seen < *count {
                        let mut other = bytes.to_vec();
                        let at = (other.len() / 2 + *seen) % other.len();
                        other[at] ^= 0x10;
                        (bytes, *seen) = (other.into(), *seen + 1);
                    }
                }
                Get::Found { bytes, etag, date_ms: whole(date_ms) }
            }
            Get::Unchanged { date_ms } => Get::Unchanged { date_ms: whole(date_ms) },
            Get::Absent => Get::Absent,
        })
    }

    async fn put(&self, name: &str, bytes: Bytes, condition: PutIf) -> Put {
        let then = {
            let mut hook = self.before_put.lock().unwrap();
            hook.take_if(|(of, _)| name.starts_with(&**of))
        };
        if let Some((_, then)) = then {
            then.await;
        }
        let fate = {
            let mut puts = self.puts.lock().unwrap();
            if name.starts_with(&puts.0) { puts.1.pop_front() } else { None }
        };
        match fate {
            None => self.beneath.objects.put(name, bytes, condition).await,
            Some(Fate::LostRequest) => Put::Unknown(lost(name)),
            Some(Fate::Stuck) => {
                self.beneath.objects.put(name, bytes, condition).await;
                std::future::pending().await
            }
            Some(Fate::LostAnswer) => {
                self.beneath.objects.put(name, bytes, condition).await;
                Put::Unknown(lost(name))
            }
            Some(Fate::Late) => {
                self.late.lock().unwrap().push((name.to_owned(), bytes, condition));
                Put::Unknown(lost(name))
            }
            Some(Fate::Denied) => Put::Failed(denied(name)),
            Some(Fate::Throttled) => Put::Failed(Fault::Throttled { what: name.to_owned() }),
        }
    }

    async fn delete(&self, name: &str, only: Option<&ETag>) -> Delete {
        let then = {
            let mut hook = self.before_delete.lock().unwrap();
            hook.take_if(|(of, _)| name.starts_with(&**of))
        };
        if let Some((_, then)) = then {
            then.await;
        }
        self.beneath.objects.delete(name, only).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> Result<Listing, Fault> {
        let listing = self.beneath.objects.list(prefix, after, max).await;
        let then = {
            let mut hook = self.after_list.lock().unwrap();
            hook.take_if(|(of, _)| of == prefix)
        };
        if let Some((_, then)) = then {
            then.await;
        }
        listing
    }
}

#[async_trait]
impl Queue for Meddler {
    async fn create(&self, queue: &str, settings: QueueSettings) -> Result<(), Fault> {
        self.beneath.queue.create(queue, settings).await
    }

    async fn send(&self, queue: &str, batch: &[ToSend]) -> Vec<Sent> {
        let fate = self.sends.lock().unwrap().pop_front();
        let all = |sent: Sent| vec![sent; batch.len()];
        match fate {
            None => self.beneath.queue.send(queue, batch).await,
            Some(Fate::LostAnswer) => {
                self.beneath.queue.send(queue, batch).await;
                all(Sent::Unknown(lost(queue)))
            }
            Some(Fate::LostRequest | Fate::Stuck | Fate::Late) => all(Sent::Unknown(lost(queue))),
            Some(Fate::Denied) => all(Sent::Failed(denied(queue))),
            Some(Fate::Throttled) => all(Sent::Failed(Fault::Throttled { what: queue.to_owned() })),
        }
    }

    async fn receive(
        &self,
        queue: &str,
        max: usize,
        visibility: Duration,
        wait: Duration,
    ) -> Result<Vec<Message>, Fault> {
        if self.is_confused.load(Ordering::Relaxed) {
            let cause = "400 MalformedRequest: the test says so".into();
            return Err(Fault::Invalid { what: queue.to_owned(), cause });
        }
        let max = max.min(self.messages_max.load(Ordering::Relaxed));
        self.beneath.queue.receive(queue, max, visibility, wait).await
    }

    async fn delete(&self, queue: &str, receipts: &[Receipt]) -> Result<(), Fault> {
        self.beneath.queue.delete(queue, receipts).await
    }

    async fn change_visibility(
        &self,
        queue: &str,
        receipt: &Receipt,
        visibility: Duration,
    ) -> Result<(), Fault> {
        self.beneath.queue.change_visibility(queue, receipt, visibility).await
    }

    async fn depth(&self, queue: &str) -> Result<u64, Fault> {
        self.beneath.queue.depth(queue).await
    }
}

/// A clock that is wrong, or stands still with its machine.
pub(crate) struct OddClock {
    beneath: Arc<dyn Clock>,
    /// How far the wall clock is ahead.
    pub(crate) ahead_us: AtomicI64,
    /// How long the machine was suspended: its monotonic clock does not count that.
    pub(crate) suspended_us: AtomicU64,
}

impl OddClock {
    /// `cloud` with such a clock.
    pub(crate) fn over(cloud: &Cloud) -> (Arc<OddClock>, Cloud) {
        let clock = Arc::new(OddClock {
            beneath: cloud.clock.clone(),
            ahead_us: AtomicI64::new(0),
            suspended_us: AtomicU64::new(0),
        });
        (clock.clone(), Cloud { clock, ..cloud.clone() })
    }

    /// Sets the wall clock so many seconds ahead.
    pub(crate) fn set_ahead(&self, s: i64) {
        self.ahead_us.store(s * 1_000_000, Ordering::Relaxed);
    }

    /// The machine sleeps.
    pub(crate) async fn suspend(&self, time: Duration) {
        self.beneath.sleep(time).await;
        self.suspended_us.fetch_add(time.as_micros() as u64, Ordering::Relaxed);
    }
}

#[async_trait]
impl Clock for OddClock {
    fn monotonic_us(&self) -> u64 {
        self.beneath.monotonic_us() - self.suspended_us.load(Ordering::Relaxed)
    }

    fn wall_us(&self) -> u64 {
        self.beneath.wall_us().saturating_add_signed(self.ahead_us.load(Ordering::Relaxed))
    }

    async fn sleep(&self, time: Duration) {
        self.beneath.sleep(time).await;
    }
}
