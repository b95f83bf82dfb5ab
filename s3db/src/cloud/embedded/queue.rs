//! Queues over objects: each message an object, taken by compare and swap.
//!
//! ```text
//!   queue/NAME/settings      whether it is FIFO
//!   queue/NAME/m/SEQUENCE    a message: until when it is hidden, and from whom
//!   queue/NAME/d/HASH        FIFO: when a message of this deduplication id was sent; removed later
//! ```
//!
//! Nothing expires here: a message stays until it is deleted. A batch is as many puts as it has
//! messages, which is right for one machine and would not be for a cloud.
//!
//! A message is a frame (see `frame`) of magic `s3dQ`, version 1: hidden until, in milliseconds
//! since 1970 (8), receives (4), who received it last (16), group (2 + n), body (4 + n).

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use crc_fast::{CrcAlgorithm, checksum};
use futures::future::join_all;

use crate::{
    cloud::{
        Chance, Clock, Delete, ETag, Fault, Get, Message, Objects, Put, PutIf, Queue,
        QueueSettings, Receipt, Sent, ToSend,
        queue::{BATCH_MAX, MESSAGE_BYTES_MAX},
    },
    frame::{FrameError, Reader, Writer, is_number},
};

const MAGIC: &str = "s3dQ";
const VERSION: u8 = 1;
/// Names that one list returns.
const LIST_MAX: usize = 1000;
/// How long a message that was sent keeps its deduplication id taken: what SQS does.
const DEDUPLICATION_MS: u64 = 300_000;
/// Numbers that a send finds taken before it gives up: others send at the same time.
const TAKEN_MAX: u32 = 1000;

/// Messages that are remembered as taken here.
const HELD_MAX: usize = 10_000;

/// A queue service over any [`Objects`].
pub struct ObjectQueue {
    objects: Arc<dyn Objects>,
    clock: Arc<dyn Clock>,
    chance: Arc<dyn Chance>,
    /// Of each queue that was used: whether it is FIFO, and a number that may be free.
    known: Mutex<HashMap<String, (bool, u64)>>,
    /// Of each FIFO queue: when ids that are over were last removed.
    tidied_ms: Mutex<HashMap<String, u64>>,
    /// Messages that were taken here, by their objects: until when nobody else can have them, and their groups.
    /// Who has no receipt cannot change that, so that they need not be read again to be passed over.
    held: Mutex<HashMap<String, (u64, Option<String>)>>,
}

/// A message as it lies in its object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Nobody receives it before this, in milliseconds since 1970.
    pub hidden_until_ms: u64,
    /// How often it was received.
    pub receives: u32,
    /// Drawn at random by whoever sent it or received it last.
    pub holder: u128,
    /// FIFO: the group in which messages keep their order. Never empty.
    pub group: Option<String>,
    /// What was sent.
    pub body: Bytes,
}

impl Stored {
    pub(crate) fn encode(&self) -> Bytes {
        let mut to = Writer::new(MAGIC, VERSION);
        to.u64(self.hidden_until_ms);
        to.u32(self.receives);
        to.u128(self.holder);
        to.short(self.group.as_deref().unwrap_or("").as_bytes());
        to.long(&self.body);
        to.finish()
    }

    pub(crate) fn decode(bytes: &Bytes) -> Result<Stored, FrameError> {
        let mut from = Reader::new(bytes, MAGIC, VERSION)?;
        let (hidden_until_ms, receives, holder) = (from.u64()?, from.u32()?, from.u128()?);
        if !is_number(hidden_until_ms) {
            return Err(from.field("a time after which there is none"));
        }
        let group = from.short()?;
        let group =
            std::str::from_utf8(&group).map_err(|_| from.field("a group that is no text"))?;
        let stored = Stored {
            hidden_until_ms,
            receives,
            holder,
            group: (!group.is_empty()).then(|| group.to_owned()),
            body: from.long()?,
        };
        from.done()?;
        Ok(stored)
    }
}

/// The number in the name of a message.
fn number(name: &str) -> Option<u64> {
    let digits = name.rsplit('/').next().filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok().filter(|&number| is_number(number))
}

fn prefix(queue: &str) -> String {
    format!("queue/{queue}/m/")
}

impl ObjectQueue {
    /// Queues over `objects`.
    pub fn new(
        objects: Arc<dyn Objects>,
        clock: Arc<dyn Clock>,
        chance: Arc<dyn Chance>,
    ) -> ObjectQueue {
        let (known, tidied_ms, held) = Default::default();
        ObjectQueue { objects, clock, chance, known, tidied_ms, held }
    }

    fn held_here(&self) -> MutexGuard<'_, HashMap<String, (u64, Option<String>)>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        self.clock.wall_us() / 1000
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, (bool, u64)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn is_fifo(&self, queue: &str) -> Result<bool, Fault> {
        if let Some((is_fifo, _)) = self.known().get(queue) {
            return Ok(*is_fifo);
        }
        match self.objects.get(&format!("queue/{queue}/settings"), None).await? {
            Get::Found { bytes, .. } => {
                let is_fifo = bytes.first() == Some(&1);
                self.known().entry(queue.to_owned()).or_insert((is_fifo, 0));
                Ok(is_fifo)
            }
            _ => Err(Fault::NoQueue { what: queue.to_owned() }),
        }
    }

    async fn numbers(&self, queue: &str) -> Result<Vec<String>, Fault> {
        let prefix = prefix(queue);
        let mut names: Vec<String> = Vec::new();
        loop {
            let after = names.last().map(String::as_str);
            let part = self.objects.list(&prefix, after, LIST_MAX).await?;
            let is_end = !part.more || part.names.is_empty();
            names.extend(part.names);
            if is_end {
                // What has no number that a message can have is none.
                names.retain(|name| number(name).is_some());
                return Ok(names);
            }
        }
    }

    /// Whether a message with this id was sent in the last five minutes.
    async fn is_sent(&self, queue: &str, message: &ToSend) -> Result<bool, Fault> {
        let Some(object) = deduplication(queue, message) else { return Ok(false) };
        Ok(match self.objects.get(&object, None).await? {
            Get::Found { bytes, .. } => {
                let at_ms = bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
                self.now_ms().saturating_sub(at_ms) < DEDUPLICATION_MS
            }
            _ => false,
        })
    }

    async fn send_one(&self, queue: &str, message: &ToSend) -> Sent {
        let is_fifo = match self.is_fifo(queue).await {
            Ok(is_fifo) => is_fifo,
            Err(fault) => return Sent::Failed(fault),
        };
        if message.body.len() > MESSAGE_BYTES_MAX {
            let cause = format!("a message has at most {MESSAGE_BYTES_MAX} bytes");
            return Sent::Failed(Fault::Invalid { what: queue.to_owned(), cause });
        }
        if is_fifo {
            match self.is_sent(queue, message).await {
                Ok(true) => return Sent::Accepted,
                Ok(false) => {}
                Err(fault) => return Sent::Failed(fault),
            }
        }
        let stored = Stored {
            hidden_until_ms: 0,
            receives: 0,
            // Tells equal messages apart.
            holder: self.chance.next_u128(),
            group: message.group.clone(),
            body: message.body.clone(),
        };
        let bytes = stored.encode();
        let mut number = self.known().get(queue).map_or(0, |(_, next)| *next);
        let mut is_stored = false;
        for _ in 0..TAKEN_MAX {
            let name = format!("{}{number:016x}", prefix(queue));
            match self.objects.put(&name, bytes.clone(), PutIf::Absent).await {
                Put::Stored(_) => {
                    is_stored = true;
                    break;
                }
                Put::Refused => match self.numbers(queue).await {
                    // After the last one, in the order of sending.
                    Ok(names) => {
                        let last = names.last().and_then(|name| self::number(name));
                        number = last.map_or(number, |last| last.max(number)) + 1;
                    }
                    Err(fault) => return Sent::Failed(fault),
                },
                Put::Conflict | Put::Missing => {}
                Put::Unknown(fault) => return Sent::Unknown(fault),
                Put::Failed(fault) => return Sent::Failed(fault),
            }
        }
        if !is_stored {
            // Others were faster each time. Nothing was sent, and the sender tries again later.
            return Sent::Failed(Fault::Throttled { what: queue.to_owned() });
        }
        if let Some((_, next)) = self.known().get_mut(queue) {
            *next = (*next).max(number + 1);
        }
        // Afterwards: a crash in between makes a duplicate, not a loss.
        if is_fifo && let Some(object) = deduplication(queue, message) {
            let now = Bytes::copy_from_slice(&self.now_ms().to_le_bytes());
            let _: Put = self.objects.put(&object, now, PutIf::Always).await;
            self.tidy(queue).await;
        }
        Sent::Accepted
    }

    /// Removes deduplication ids that are over, now and then. Best effort: one that stays costs some
    /// bytes.
    async fn tidy(&self, queue: &str) {
        let now_ms = self.now_ms();
        {
            let mut tidied = self.tidied_ms.lock().unwrap_or_else(PoisonError::into_inner);
            let last = tidied.entry(queue.to_owned()).or_insert(0);
            if now_ms.saturating_sub(*last) < DEDUPLICATION_MS {
                return;
            }
            *last = now_ms;
        }
        let prefix = format!("queue/{queue}/d/");
        let mut after: Option<String> = None;
        loop {
            let Ok(part) = self.objects.list(&prefix, after.as_deref(), LIST_MAX).await else {
                return;
            };
            for name in &part.names {
                let Ok(Get::Found { bytes, etag, .. }) = self.objects.get(name, None).await else {
                    continue;
                };
                let at_ms = bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
                if now_ms.saturating_sub(at_ms) >= DEDUPLICATION_MS {
                    // Only this version: the id may be sent again at this moment.
                    let _: Delete = self.objects.delete(name, Some(&etag)).await;
                }
            }
            after = part.names.into_iter().next_back();
            if !part.more || after.is_none() {
                return;
            }
        }
    }

    /// Remembers that a message is hidden until then, by somebody here.
    fn hold(&self, name: &str, until_ms: u64, group: &Option<String>) {
        let mut held = self.held_here();
        if held.len() < HELD_MAX || held.contains_key(name) {
            held.insert(name.to_owned(), (until_ms, group.clone()));
        }
    }

    /// Takes what can be taken now.
    async fn take(
        &self,
        queue: &str,
        max: usize,
        visibility: Duration,
        is_fifo: bool,
    ) -> Result<Vec<Message>, Fault> {
        let mut taken = Vec::new();
        let mut busy: HashSet<Option<String>> = HashSet::new();
        let now_ms = self.now_ms();
        let mut names = self.numbers(queue).await?;
        if visibility.is_zero() && !is_fifo && !names.is_empty() {
            // Nothing is hidden, and the next receive would be given the same.
            let first = self.chance.below(names.len() as u64) as usize;
            names.rotate_left(first);
        }
        self.held_here().retain(|_, (until_ms, _)| *until_ms > now_ms);
        for name in names {
            if taken.len() == max {
                break;
            }
            if let Some((_, group)) = self.held_here().get(&name) {
                if is_fifo {
                    busy.insert(group.clone());
                }
                continue;
            }
            let Get::Found { bytes, etag, .. } = self.objects.get(&name, None).await? else {
                continue;
            };
            let Ok(mut stored) = Stored::decode(&bytes) else {
                // Whoever drains the queue decides what to do with it.
                let receipt = receipt(&name, Err(&etag));
                let (receives, closed, group) = (1, None, None);
                if !visibility.is_zero() {
                    // Nothing can be written to it: others may be given it meanwhile, this process is not.
                    self.hold(&name, now_ms + visibility.as_millis() as u64, &None);
                }
                taken.push(Message { body: bytes, closed, receipt, receives, group });
                continue;
            };
            if is_fifo && busy.contains(&stored.group) {
                continue;
            }
            if stored.hidden_until_ms > now_ms {
                busy.insert(stored.group);
                continue;
            }
            if visibility.is_zero() {
                // Nothing changes but the count, which is not worth a put to whoever only looks.
                let Stored { body, group, receives, holder, .. } = stored;
                let receipt = receipt(&name, Ok(holder));
                let receives = receives.saturating_add(1);
                taken.push(Message { body, closed: None, receipt, receives, group });
                continue;
            }
            stored.hidden_until_ms = now_ms + visibility.as_millis() as u64;
            stored.receives = stored.receives.saturating_add(1);
            stored.holder = self.chance.next_u128();
            match self.objects.put(&name, stored.encode(), PutIf::Matches(etag)).await {
                Put::Stored(_) => {
                    let Stored { hidden_until_ms, body, group, receives, holder } = stored;
                    let receipt = receipt(&name, Ok(holder));
                    self.hold(&name, hidden_until_ms, &group);
                    taken.push(Message { body, closed: None, receipt, receives, group });
                }
                // Someone else took it.
                _ => drop(busy.insert(stored.group)),
            }
        }
        Ok(taken)
    }
}

fn deduplication(queue: &str, message: &ToSend) -> Option<String> {
    let id = message.deduplication.as_deref()?;
    let sum = checksum(CrcAlgorithm::Crc64Nvme, id.as_bytes());
    Some(format!("queue/{queue}/d/{sum:016x}-{:x}", id.len()))
}

/// A receipt: the message's object, and who holds it, or, of bytes that are no message, their tag.
fn receipt(name: &str, holder: Result<u128, &ETag>) -> Receipt {
    match holder {
        Ok(holder) => Receipt::new(&format!("{name}:{holder:032x}")),
        Err(etag) => Receipt::new(&format!("{name}:={}", etag.as_str())),
    }
}

impl ObjectQueue {
    /// The message that a receipt is still good for, with its tag; `None` when it was received by
    /// someone else since, or is gone.
    async fn held(
        &self,
        queue: &str,
        receipt: &Receipt,
    ) -> Result<Option<(String, Option<Stored>, ETag)>, Fault> {
        let parts = receipt.as_str().split_once(':');
        let Some((name, holder)) = parts.filter(|(name, _)| name.starts_with(&prefix(queue)))
        else {
            let cause = "no receipt of this queue".into();
            return Err(Fault::Invalid { what: queue.to_owned(), cause });
        };
        let Get::Found { bytes, etag, .. } = self.objects.get(name, None).await? else {
            return Ok(None);
        };
        let stored = Stored::decode(&bytes).ok();
        let is_ours = match (&stored, holder.strip_prefix('=')) {
            (_, Some(expected)) => etag.as_str() == expected,
            (Some(stored), None) => format!("{:032x}", stored.holder) == holder,
            (None, None) => false,
        };
        Ok(is_ours.then(|| (name.to_owned(), stored, etag)))
    }
}

#[async_trait]
impl Queue for ObjectQueue {
    async fn create(&self, queue: &str, settings: QueueSettings) -> Result<(), Fault> {
        let object = format!("queue/{queue}/settings");
        let bytes = Bytes::copy_from_slice(&[u8::from(settings.fifo)]);
        match self.objects.put(&object, bytes, PutIf::Absent).await {
            Put::Stored(_) | Put::Refused => Ok(()),
            Put::Conflict | Put::Missing => Err(Fault::Throttled { what: object }),
            Put::Unknown(fault) | Put::Failed(fault) => Err(fault),
        }
    }

    async fn send(&self, queue: &str, batch: &[ToSend]) -> Vec<Sent> {
        assert!((1..=BATCH_MAX).contains(&batch.len()), "a batch has 1 to {BATCH_MAX} messages");
        let mut outcomes = Vec::with_capacity(batch.len());
        for message in batch {
            outcomes.push(self.send_one(queue, message).await);
        }
        outcomes
    }

    async fn receive(
        &self,
        queue: &str,
        max: usize,
        visibility: Duration,
        _wait: Duration,
    ) -> Result<Vec<Message>, Fault> {
        // One look sees all there is, so an empty answer means something without any waiting.
        let is_fifo = self.is_fifo(queue).await?;
        self.take(queue, max.clamp(1, BATCH_MAX), visibility, is_fifo).await
    }

    async fn delete(&self, queue: &str, receipts: &[Receipt]) -> Result<(), Fault> {
        let deletes = receipts.iter().map(|receipt| async move {
            let Some((name, _, etag)) = self.held(queue, receipt).await? else { return Ok(()) };
            let outcome = self.objects.delete(&name, Some(&etag)).await;
            self.held_here().remove(&name);
            match outcome {
                // Refused: it was received again since. That is no error.
                Delete::Gone | Delete::Refused => Ok(()),
                Delete::Conflict => Err(Fault::Throttled { what: queue.to_owned() }),
                Delete::Unknown(fault) | Delete::Failed(fault) => Err(fault),
            }
        });
        // All of them, whatever comes of one.
        join_all(deletes).await.into_iter().collect()
    }

    async fn change_visibility(
        &self,
        queue: &str,
        receipt: &Receipt,
        visibility: Duration,
    ) -> Result<(), Fault> {
        let (name, mut stored, etag) = match self.held(queue, receipt).await? {
            Some((name, Some(stored), etag)) => (name, stored, etag),
            Some((name, None, _)) => {
                self.held_here().remove(&name);
                if !visibility.is_zero() {
                    self.hold(&name, self.now_ms() + visibility.as_millis() as u64, &None);
                }
                return Ok(());
            }
            None => return Ok(()),
        };
        stored.hidden_until_ms = match visibility {
            Duration::ZERO => 0,
            _ => self.now_ms() + visibility.as_millis() as u64,
        };
        // Before it may be free again, and after that as long as it surely is not.
        self.held_here().remove(&name);
        match self.objects.put(&name, stored.encode(), PutIf::Matches(etag)).await {
            Put::Unknown(fault) | Put::Failed(fault) => Err(fault),
            Put::Stored(_) => {
                self.hold(&name, stored.hidden_until_ms, &stored.group);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn depth(&self, queue: &str) -> Result<u64, Fault> {
        self.is_fifo(queue).await?;
        Ok(self.numbers(queue).await?.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::{
        CallKind, Ledger, Listing,
        embedded::{self, Memory},
        ledger::Metered,
    };

    /// Each receive read all that were taken before it: a hundred messages were read 550 times.
    #[tokio::test]
    async fn what_was_taken_here_is_not_read_again() {
        let (memory, ledger) = (embedded::memory(Arc::new(Memory::new())), Ledger::new());
        let objects = Arc::new(Metered::new(memory.objects.clone(), ledger.clone()));
        let queue = ObjectQueue::new(objects, memory.clock.clone(), memory.chance.clone());
        let reads = || ledger.charge(CallKind::Get).calls;
        for fifo in [false, true] {
            let (name, retention) = (if fifo { "f" } else { "q" }, Duration::from_secs(3600));
            queue.create(name, QueueSettings { fifo, retention }).await.unwrap();
            for n in 0..100 {
                let (group, deduplication) = match fifo {
                    true => (Some(format!("g{n}")), Some(format!("d{n}"))),
                    false => (None, None),
                };
                let body = Bytes::from(format!("{n}"));
                let sent = queue.send(name, &[ToSend { body, group, deduplication }]).await;
                assert!(matches!(sent[..], [Sent::Accepted]), "{sent:?}");
            }
            let (before, hour) = (reads(), Duration::from_secs(3600));
            let mut receipts = Vec::new();
            for _ in 0..11 {
                let taken = queue.receive(name, 10, hour, Duration::ZERO).await.unwrap();
                receipts.extend(taken.into_iter().map(|message| message.receipt));
            }
            assert_eq!(receipts.len(), 100);
            assert!(reads() - before <= 101, "{}", reads() - before);
            // One that is given back is there again at once; the others are not.
            queue.change_visibility(name, &receipts[40], Duration::ZERO).await.unwrap();
            let taken = queue.receive(name, 10, hour, Duration::ZERO).await.unwrap();
            assert_eq!(taken.iter().map(|it| &it.body[..]).collect::<Vec<_>>(), [b"40"]);
            let last = taken[0].receipt.clone();
            receipts[40] = last;
            for batch in receipts.chunks(10) {
                queue.delete(name, batch).await.unwrap();
            }
            assert_eq!(queue.depth(name).await.unwrap(), 0);
            assert_eq!(queue.held_here().len(), 0);
        }
    }

    /// A count that has no room for one more stopped whoever looked at the message.
    #[tokio::test]
    async fn a_look_counts_no_further_than_there_are_numbers() {
        let cloud = embedded::memory(Arc::new(Memory::new()));
        let retention = Duration::from_secs(3600);
        cloud.queue.create("q", QueueSettings { fifo: false, retention }).await.unwrap();
        let mut to = Writer::new(MAGIC, VERSION);
        to.u64(0);
        to.u32(u32::MAX);
        to.u128(1);
        to.short(b"");
        to.long(b"body");
        let object = format!("queue/q/m/{:016x}", 0);
        cloud.objects.put(&object, to.finish(), PutIf::Absent).await;
        let (zero, most) = (Duration::ZERO, u32::MAX);
        for _ in 0..2 {
            let received = cloud.queue.receive("q", 10, zero, zero).await.unwrap();
            assert_eq!(received.iter().map(|it| it.receives).collect::<Vec<_>>(), [most]);
        }
    }

    /// A group that is no text became one three times as long, for which a message has no room: it
    /// stopped whoever received it. One that is hidden for ever was never received, and kept its
    /// group waiting.
    #[tokio::test]
    async fn what_is_no_message_is_handed_over_as_it_is() {
        let cloud = embedded::memory(Arc::new(Memory::new()));
        let retention = Duration::from_secs(3600);
        for (queue, hidden_until_ms, group) in
            [("group", 0, vec![0xff; 65_535]), ("hidden", u64::MAX, b"g".to_vec())]
        {
            cloud.queue.create(queue, QueueSettings { fifo: true, retention }).await.unwrap();
            let mut to = Writer::new(MAGIC, VERSION);
            to.u64(hidden_until_ms);
            to.u32(0);
            to.u128(1);
            to.short(&group);
            to.long(b"body");
            let bytes = to.finish();
            let object = format!("queue/{queue}/m/{:016x}", 0);
            cloud.objects.put(&object, bytes.clone(), PutIf::Absent).await;
            let (minute, no_time) = (Duration::from_secs(60), Duration::ZERO);
            let got = cloud.queue.receive(queue, 10, minute, no_time).await.unwrap();
            assert_eq!(got.len(), 1, "{queue}");
            assert!(got[0].body == bytes && got[0].group.is_none(), "{queue}");
            // It came again at once, took the place of what could be done, and lay in quarantine a hundred times.
            let again = cloud.queue.receive(queue, 10, minute, no_time).await.unwrap();
            assert!(again.is_empty(), "{queue}");
            let receipt = &got[0].receipt;
            cloud.queue.change_visibility(queue, receipt, minute).await.unwrap();
            assert!(cloud.queue.receive(queue, 10, minute, no_time).await.unwrap().is_empty());
            cloud.queue.change_visibility(queue, receipt, no_time).await.unwrap();
            let got = cloud.queue.receive(queue, 10, minute, no_time).await.unwrap();
            assert_eq!(got.len(), 1, "{queue}: given back");
            cloud.queue.delete(queue, &[got[0].receipt.clone()]).await.unwrap();
            assert_eq!(cloud.queue.depth(queue).await.unwrap(), 0, "{queue}");
        }
    }

    /// A bucket where another call is always under way where messages lie.
    struct Busy(Memory);

    #[async_trait]
    impl Objects for Busy {
        async fn get(&self, name: &str, unless: Option<&ETag>) -> Result<Get, Fault> {
            self.0.get(name, unless).await
        }
        async fn put(&self, name: &str, bytes: Bytes, condition: PutIf) -> Put {
            if name.contains("/m/") {
                return Put::Conflict;
            }
            self.0.put(name, bytes, condition).await
        }
        async fn delete(&self, name: &str, only: Option<&ETag>) -> Delete {
            self.0.delete(name, only).await
        }
        async fn list(
            &self,
            prefix: &str,
            after: Option<&str>,
            max: usize,
        ) -> Result<Listing, Fault> {
            self.0.list(prefix, after, max).await
        }
    }

    /// It was told that it was sent: a commit that nobody would ever see.
    #[tokio::test]
    async fn what_found_no_place_was_not_sent() {
        let of = embedded::memory(Arc::new(Memory::new()));
        let queues = ObjectQueue::new(Arc::new(Busy(Memory::new())), of.clock, of.chance);
        let retention = Duration::from_secs(3600);
        for fifo in [false, true] {
            let (queue, settings) = (format!("fifo-{fifo}"), QueueSettings { fifo, retention });
            queues.create(&queue, settings).await.unwrap();
            let message = ToSend {
                body: Bytes::from_static(b"commit"),
                group: fifo.then(|| "g".into()),
                deduplication: fifo.then(|| "once".into()),
            };
            // The second finds no deduplication id of the first, which was not sent.
            for _ in 0..2 {
                let sent = queues.send(&queue, std::slice::from_ref(&message)).await;
                assert!(matches!(sent[..], [Sent::Failed(Fault::Throttled { .. })]), "{sent:?}");
            }
        }
    }
}
