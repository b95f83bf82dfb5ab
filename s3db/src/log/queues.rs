//! Backends sqs-standard and sqs-fifo: pending updates in queues.
//!
//! ```text
//!   atomic:   whole transaction --> atomic-N --forward--> pu-SHARD --> checkpoint
//!   others, and atomic within one shard:  one message --> pu-SHARD --> checkpoint
//! ```
//!
//! Queues are per shard of pages, not per page (W15). A whole transaction is one message, so the
//! send itself commits it and there is no commit record that could be missed (W11); one that does
//! not fit lies in an object that was created before, and the message names it. Anyone can forward
//! any queue (W12).
//!
//! The ordered variant sends each message to the group of its page, under its stamps as
//! deduplication id: the service then keeps order and drops what is sent twice within five minutes.
//! Nothing here relies on either.
//!
//! Neither variant can refuse what a zombie sends. What it sends is whole, though, and has stamps
//! of its time.

mod forward; // whole transactions, sent on to shards
mod look; // what is in the queues, for a fresh read

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;

use crate::{
    cloud::{
        Cloud, Fault, Message, Put, PutIf, QueueSettings, Sent, ToSend,
        queue::{BATCH_MAX, MESSAGE_BYTES_MAX},
    },
    error::StoreError,
    fail_point::{FailPoint, reached},
    log::{
        Append, Appender, Batch, Entry, Forwarded, Left, Log, Pending, PendingPart, Poison, Scope,
        Ticket, Transaction, fingerprint, transaction::Body,
    },
    names::{QUARANTINE, SpilledName},
    page::{PageId, Stream},
    retry::Attempts,
    settings::{Rule, Settings},
};

/// Fourteen days, the longest there is. The default of SQS is four.
const RETENTION: Duration = Duration::from_secs(14 * 24 * 3600);

/// How long a receive waits for a first message: then the service asks all its servers, and an
/// empty answer means something.
const WAIT: Duration = Duration::from_secs(1);

/// How long a drain goes on while messages come in one by one, before others have their turn.
const TURN: Duration = Duration::from_secs(1);

/// Bytes of the largest transaction that goes into a message, and of all of one batch: what a message
/// takes, less what sealing adds to each.
const BODY_BYTES_MAX: usize = MESSAGE_BYTES_MAX - BATCH_MAX * 64;

/// Bytes of messages after which a drain receives no more: those that are no transactions count for
/// nothing else.
const DRAIN_BYTES_MAX: usize = 16 << 20;

/// Queues of whole transactions, which clients share: a fixed number, so that clients that live for
/// a second do not leave a queue each. Nobody needs one alone, since anyone may forward anything.
const ATOMIC_QUEUES: u64 = 8;

/// The shard of a page, of so many.
pub(crate) fn shard_of(page: PageId, shards: u32) -> u32 {
    // Names are random already, in their second half.
    (page.0 as u64 % u64::from(shards.max(1))) as u32
}

#[derive(Clone)]
pub(crate) struct Queues {
    cloud: Cloud,
    settings: Settings,
    shards: u32,
    is_fifo: bool,
    /// Queues that exist, as far as this process made sure.
    made: Arc<Mutex<HashSet<String>>>,
}

impl Queues {
    pub(crate) fn new(cloud: Cloud, settings: Settings, shards: u32, is_fifo: bool) -> Queues {
        Queues { cloud, settings, shards: shards.max(1), is_fifo, made: Arc::default() }
    }

    fn shard(&self, page: PageId) -> u32 {
        shard_of(page, self.shards)
    }

    fn name(scope: Scope) -> String {
        match scope {
            Scope::Shard(shard) => format!("pu-{shard}"),
            Scope::Client(client) => format!("atomic-{}", client % ATOMIC_QUEUES),
            Scope::Stream(stream) => format!("stream-{:016x}-{}", stream.client, stream.epoch),
        }
    }

    async fn make(&self, scope: Scope) -> Result<String, StoreError> {
        let name = Queues::name(scope);
        let is_made = |made: &Mutex<HashSet<String>>| {
            made.lock().unwrap_or_else(PoisonError::into_inner).contains(&name)
        };
        if is_made(&self.made) {
            return Ok(name);
        }
        let settings = QueueSettings { fifo: self.is_fifo, retention: RETENTION };
        let mut attempts = Attempts::new(&self.cloud, &self.settings);
        while let Err(fault) = self.cloud.queue.create(&name, settings).await {
            attempts.after(fault).await?;
        }
        self.made.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone());
        Ok(name)
    }

    /// One message. Its group and its deduplication id follow from what it holds.
    fn message(&self, transaction: &Transaction, body: Bytes, scope: Scope) -> ToSend {
        if !self.is_fifo {
            return ToSend { body, ..ToSend::default() };
        }
        let group = match scope {
            Scope::Client(client) => format!("{client:016x}"),
            _ => transaction.entries.first().map_or("none".into(), |entry| entry.page.to_string()),
        };
        // Of one transaction at most one message goes to a group with the same first record.
        let first = transaction.entries.first().map(|entry| entry.record.stamp);
        let stamp = first.unwrap_or_default();
        let deduplication =
            format!("{:x}-{stamp}-{}", transaction.epoch, transaction.entries.len());
        ToSend { body, group: Some(group), deduplication: Some(deduplication) }
    }

    /// Sends all of `messages`, again and again where it must. Whenever the service took one, it has all its
    /// attempts again: a backlog of a thousand calls meets more failures than any of them may.
    async fn send(&self, queue: &str, messages: Vec<ToSend>) -> Result<(), StoreError> {
        let mut messages = VecDeque::from(messages);
        let mut attempts = Attempts::new(&self.cloud, &self.settings);
        while !messages.is_empty() {
            let (mut count, mut bytes) = (0, 0);
            for message in messages.iter().take(BATCH_MAX) {
                bytes += message.body.len();
                if count > 0 && bytes > BODY_BYTES_MAX {
                    break;
                }
                count += 1;
            }
            let batch: Vec<ToSend> = messages.drain(..count).collect();
            let mut outcomes = self.cloud.queue.send(queue, &batch).await.into_iter();
            let (mut fault, mut left) = (None, Vec::new());
            for message in batch {
                match outcomes.next() {
                    Some(Sent::Accepted) => {}
                    // Sending again what arrived makes a duplicate, which is harmless.
                    Some(Sent::Unknown(why) | Sent::Failed(why)) => {
                        left.push(message);
                        fault = Some(why);
                    }
                    None => {
                        left.push(message);
                        let (what, cause) = (queue.to_owned(), "no outcome".into());
                        fault = Some(Fault::Unknown { what, cause });
                    }
                }
            }
            if left.len() < count {
                attempts = Attempts::new(&self.cloud, &self.settings);
            }
            left.into_iter().rev().for_each(|message| messages.push_front(message));
            if let Some(fault) = fault {
                attempts.after(fault).await?;
            }
        }
        Ok(())
    }

    /// Whether all of a transaction goes into one message.
    fn fits(&self, transaction: &Transaction) -> bool {
        let most = self.settings.message_bytes_max.min(BODY_BYTES_MAX);
        transaction.encoded_bytes() <= most
    }

    /// The shard, and in FIFO queues the group, that all of a transaction belongs to, if it is one
    /// message there.
    fn only_shard(&self, transaction: &Transaction) -> Option<u32> {
        let (first, rest) = transaction.entries.split_first()?;
        let shard = self.shard(first.page);
        let is_together = |entry: &Entry| match self.is_fifo {
            true => entry.page == first.page,
            false => self.shard(entry.page) == shard,
        };
        (self.fits(transaction) && rest.iter().all(is_together)).then_some(shard)
    }

    /// Sends the records of transactions to their shards: what goes to the same one goes together, ten
    /// messages a call.
    async fn distribute(&self, transactions: &[Transaction]) -> Result<(), StoreError> {
        let mut queues: BTreeMap<u32, Vec<ToSend>> = BTreeMap::new();
        for transaction in transactions {
            let mut parted: BTreeMap<(u32, Option<PageId>), Vec<Entry>> = BTreeMap::new();
            for entry in &transaction.entries {
                // In order within a group means one group per message.
                let group = self.is_fifo.then_some(entry.page);
                parted.entry((self.shard(entry.page), group)).or_default().push(entry.clone());
            }
            for ((shard, _), entries) in parted {
                let messages = parts(transaction, entries)
                    .into_iter()
                    .map(|part| self.message(&part, part.encode(), Scope::Shard(shard)));
                queues.entry(shard).or_default().extend(messages);
            }
        }
        let mut sends = Vec::new();
        for (shard, messages) in queues {
            let queue = self.make(Scope::Shard(shard)).await?;
            sends.push(async move { self.send(&queue, messages).await });
        }
        // All at once: the paper names its one-by-one sends as what costs a commit its time.
        futures::future::join_all(sends).await.into_iter().collect()
    }

    async fn receive(&self, queue: &str, most: usize) -> Result<Vec<Message>, StoreError> {
        let mut attempts = Attempts::new(&self.cloud, &self.settings);
        loop {
            let max = most.clamp(1, BATCH_MAX);
            match self.cloud.queue.receive(queue, max, self.settings.lease, WAIT).await {
                Ok(messages) => return Ok(messages),
                Err(fault) => attempts.after(fault).await?,
            }
        }
    }

    /// Whether a receive of fewer messages than were `asked` for, after a turn, ends the drain. Each
    /// of those who commit more often than once per [`WAIT`] would keep it from its end.
    fn is_trickle(&self, received: usize, asked: usize, began_us: u64) -> bool {
        let turn_us = self.cloud.clock.monotonic_us().saturating_sub(began_us);
        received < asked.min(BATCH_MAX) && turn_us >= TURN.as_micros() as u64
    }

    async fn depth(&self, queue: &str) -> Result<u64, StoreError> {
        let mut attempts = Attempts::new(&self.cloud, &self.settings);
        loop {
            match self.cloud.queue.depth(queue).await {
                Ok(depth) => return Ok(depth),
                Err(fault) => attempts.after(fault).await?,
            }
        }
    }
}

/// Parts of at most a message each.
pub(crate) fn parts(transaction: &Transaction, entries: Vec<Entry>) -> Vec<Transaction> {
    let mut parts = vec![transaction.part(Vec::new())];
    for entry in entries {
        let last = parts.last_mut().expect("starts with one");
        if !last.entries.is_empty() && last.encoded_bytes() + entry.bytes() > BODY_BYTES_MAX {
            parts.push(transaction.part(vec![entry]));
        } else {
            last.entries.push(entry);
        }
    }
    parts
}

struct QueueAppender {
    queues: Queues,
    client: u64,
}

impl QueueAppender {
    /// The object that a transaction lies in which is too large for a message.
    fn object_of(transaction: &Transaction) -> String {
        let Transaction { client, epoch, number, .. } = *transaction;
        let clock = transaction.entries.first().map_or(0, |entry| entry.record.stamp.clock);
        SpilledName { client, epoch, number, clock }.to_string()
    }

    /// Puts the records into that object.
    async fn spill(&self, transaction: &Transaction) -> Result<(), Append> {
        let object = QueueAppender::object_of(transaction);
        let bytes = transaction.encode();
        let cloud = &self.queues.cloud;
        let mut attempts = Attempts::new(cloud, &self.queues.settings);
        loop {
            let fault = match cloud.objects.put(&object, bytes.clone(), PutIf::Absent).await {
                // Refused: an earlier attempt of the same transaction, since no other has its name.
                Put::Stored(_) | Put::Refused => break,
                Put::Conflict | Put::Missing => Fault::Throttled { what: object.clone() },
                Put::Unknown(fault) | Put::Failed(fault) => fault,
            };
            // Nothing names the object yet: whatever became of it, nothing is committed.
            if attempts.after(fault.clone()).await.is_err() {
                return Err(Append::Failed(fault));
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Appender for QueueAppender {
    async fn append(&self, transaction: &Transaction, is_whole: bool) -> Append {
        let queues = &self.queues;
        if !is_whole || !queues.settings.rules.hold(Rule::WholeTransaction) {
            return match queues.distribute(std::slice::from_ref(transaction)).await {
                Ok(()) => Append::Committed,
                Err(StoreError::Cloud { source, .. }) => Append::Unknown(source),
                Err(error) => Append::Unknown(Fault::Unknown {
                    what: "the pending update queues".into(),
                    cause: error.to_string(),
                }),
            };
        }
        // Where one message is the whole of it, that message commits it, wherever it goes.
        let scope = queues.only_shard(transaction).map_or(Scope::Client(self.client), Scope::Shard);
        let queue = match queues.make(scope).await {
            Ok(queue) => queue,
            Err(StoreError::Cloud { source, .. }) => return Append::Failed(source),
            Err(error) => {
                let (what, cause) = ("the queue of a commit".into(), error.to_string());
                return Append::Failed(Fault::Invalid { what, cause });
            }
        };
        let (is_large, puts_first) =
            (!queues.fits(transaction), queues.settings.rules.hold(Rule::LargeFirst));
        let body = match is_large {
            true => transaction.encode_spilled(&QueueAppender::object_of(transaction)),
            false => transaction.encode(),
        };
        if is_large && puts_first {
            if let Err(outcome) = self.spill(transaction).await {
                return outcome;
            }
            reached(&queues.cloud, FailPoint::LargePut).await;
        }
        let message = queues.message(transaction, body, scope);
        let mut attempts = Attempts::new(&queues.cloud, &queues.settings);
        let mut is_unclear = false;
        loop {
            let batch = std::slice::from_ref(&message);
            let outcome = queues.cloud.queue.send(&queue, batch).await.into_iter().next();
            let fault = match outcome {
                Some(Sent::Accepted) if is_large && !puts_first => {
                    return self.spill(transaction).await.err().unwrap_or(Append::Committed);
                }
                Some(Sent::Accepted) => return Append::Committed,
                Some(Sent::Failed(fault)) => fault,
                Some(Sent::Unknown(fault)) => {
                    is_unclear = true;
                    fault
                }
                None => Fault::Unknown { what: queue.clone(), cause: "no outcome".into() },
            };
            if attempts.after(fault.clone()).await.is_err() {
                return if is_unclear { Append::Unknown(fault) } else { Append::Failed(fault) };
            }
        }
    }
}

#[async_trait]
impl Log for Queues {
    async fn open(
        &self,
        client: u64,
        _epoch: u64,
        _fence_from: u64,
    ) -> Result<Box<dyn Appender>, StoreError> {
        Ok(Box::new(QueueAppender { queues: self.clone(), client }))
    }

    async fn scopes(&self, _clients: &[u64]) -> Result<Vec<Scope>, StoreError> {
        Ok((0..self.shards).map(Scope::Shard).collect())
    }

    fn scope_of(&self, page: PageId, _stream: Stream) -> Scope {
        Scope::Shard(self.shard(page))
    }

    fn forwards(&self, _clients: &[u64]) -> Vec<u64> {
        (0..ATOMIC_QUEUES).collect()
    }

    async fn forward(&self, client: u64, most: usize) -> Result<Forwarded, StoreError> {
        self.forward_from(client, most).await
    }

    async fn drain(&self, scope: Scope, most: usize) -> Result<Batch, StoreError> {
        let queue = self.make(scope).await?;
        let mut batch = Batch { left: Left::Backlog, ..Batch::default() };
        let began_us = self.cloud.clock.monotonic_us();
        let mut bytes = 0;
        // A bounded number of receives, however little each returns (W18).
        for _ in 0..most.div_ceil(BATCH_MAX).max(1) {
            let asked = most - batch.entries.len().min(most - 1);
            let messages = self.receive(&queue, asked).await?;
            if messages.is_empty() {
                // No more of a group comes while some of it are held, as those of this batch are now.
                let is_behind = self.is_fifo && !batch.tickets.is_empty();
                batch.left = if is_behind { Left::Held } else { Left::Nothing };
                break;
            }
            let is_trickle = self.is_trickle(messages.len(), asked, began_us);
            for message in messages {
                bytes += message.body.len();
                if let Some(source) = message.closed {
                    batch.failed.get_or_insert(StoreError::Cloud { attempts: 1, source });
                    continue;
                }
                let ticket = Ticket::Message { queue: queue.clone(), receipt: message.receipt };
                match Transaction::decode(&message.body) {
                    Ok(Body::Here(transaction)) => batch.add(transaction),
                    _ => batch.poison.push(poison(&queue, message.body)),
                }
                batch.tickets.push(ticket);
            }
            if batch.entries.len() >= most || bytes >= DRAIN_BYTES_MAX {
                break;
            }
            if is_trickle {
                batch.left = Left::Trickle;
                break;
            }
        }
        Ok(batch)
    }

    async fn waiting(&self, scope: Scope) -> Result<u64, StoreError> {
        let queue = self.make(scope).await?;
        self.depth(&queue).await
    }

    async fn look(&self, bytes_max: usize) -> Result<Vec<Arc<Vec<Entry>>>, StoreError> {
        self.look_at_queues(bytes_max).await
    }

    async fn peek(&self, scope: Scope) -> Result<(String, u64, Vec<Entry>), StoreError> {
        let queue = Queues::name(scope);
        let mut attempts = Attempts::new(&self.cloud, &self.settings);
        let depth = loop {
            match self.cloud.queue.depth(&queue).await {
                Ok(depth) => break depth,
                // It is not there.
                Err(Fault::NoQueue { .. }) => break 0,
                Err(fault) => attempts.after(fault).await?,
            }
        };
        if depth == 0 {
            return Ok((queue, 0, Vec::new()));
        }
        let messages = loop {
            let none = Duration::ZERO;
            match self.cloud.queue.receive(&queue, BATCH_MAX, none, none).await {
                Ok(messages) => break messages,
                Err(fault) => attempts.after(fault).await?,
            }
        };
        let bodies =
            messages.iter().filter_map(|message| match Transaction::decode(&message.body) {
                Ok(Body::Here(transaction)) => Some(transaction.entries),
                _ => None,
            });
        Ok((queue, depth, bodies.flatten().collect()))
    }

    async fn pending(
        &self,
        clients: &[u64],
        _after: Option<&str>,
    ) -> Result<PendingPart, StoreError> {
        let mut part = PendingPart::default();
        let scopes = self.forwards(clients).into_iter().map(Scope::Client);
        for scope in (0..self.shards).map(Scope::Shard).chain(scopes) {
            let queue = self.make(scope).await?;
            let depth = self.depth(&queue).await?;
            if depth > 0 {
                part.found.push(Pending::Messages(depth));
            }
        }
        Ok(part)
    }

    async fn retire(&self) -> Result<u64, StoreError> {
        // Messages expire; a queue without any costs nothing.
        Ok(0)
    }

    async fn retire_stream(&self, _stream: Stream) -> Result<bool, StoreError> {
        Ok(false)
    }

    async fn settle(&self, _before_us: u64) -> Result<bool, StoreError> {
        // No queue keeps a message for as long as a tombstone stays.
        Ok(true)
    }

    async fn ack(&self, tickets: Vec<Ticket>) -> Result<(), StoreError> {
        let mut queues: BTreeMap<String, Vec<_>> = BTreeMap::new();
        for ticket in tickets {
            if let Ticket::Message { queue, receipt } = ticket {
                queues.entry(queue).or_default().push(receipt);
            }
        }
        for (queue, receipts) in queues {
            for receipts in receipts.chunks(BATCH_MAX) {
                let mut attempts = Attempts::new(&self.cloud, &self.settings);
                while let Err(fault) = self.cloud.queue.delete(&queue, receipts).await {
                    attempts.after(fault).await?;
                }
            }
        }
        Ok(())
    }
}

/// Bytes out of a queue that nobody can decode: under the same name however often they are found.
fn poison(queue: &str, bytes: Bytes) -> Poison {
    Poison { name: format!("{queue}-{}", fingerprint(&bytes)), bytes }
}

/// Puts bytes that nobody can decode where somebody can look at them.
pub(crate) async fn quarantine(
    cloud: &Cloud,
    settings: &Settings,
    poison: &Poison,
) -> Result<(), StoreError> {
    let object = format!("{QUARANTINE}{}", poison.name);
    let mut attempts = Attempts::new(cloud, settings);
    loop {
        let fault = match cloud.objects.put(&object, poison.bytes.clone(), PutIf::Absent).await {
            Put::Stored(_) | Put::Refused => return Ok(()),
            Put::Conflict | Put::Missing => Fault::Throttled { what: object.clone() },
            Put::Unknown(fault) | Put::Failed(fault) => fault,
        };
        attempts.after(fault).await?;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::cloud::{
        Queue, Receipt,
        embedded::{self, Memory},
    };

    /// What is no transaction counted for nothing: a drain held a thousand of the largest messages.
    #[tokio::test]
    async fn drains_are_bounded_by_bytes() {
        let cloud = embedded::memory(Arc::new(Memory::new()));
        let queues = Queues::new(cloud.clone(), Settings::default(), 1, false);
        let queue = queues.make(Scope::Shard(0)).await.unwrap();
        let count = 40;
        for _ in 0..count {
            let noise = ToSend { body: vec![7; 700 << 10].into(), ..ToSend::default() };
            assert_eq!(cloud.queue.send(&queue, &[noise]).await, [Sent::Accepted]);
        }
        let batch = queues.drain(Scope::Shard(0), 1000).await.unwrap();
        let bytes: usize = batch.poison.iter().map(|poison| poison.bytes.len()).sum();
        assert!(bytes < DRAIN_BYTES_MAX + BATCH_MAX * BODY_BYTES_MAX, "{bytes}");
        assert_eq!(batch.left, Left::Backlog);
        let rest = queues.drain(Scope::Shard(0), 1000).await.unwrap();
        assert_eq!(batch.poison.len() + rest.poison.len(), count);
    }

    /// Whoever cannot apply what else is in its batch finds the same again and again: each time under
    /// another name it filled quarantine without end.
    #[tokio::test]
    async fn the_same_poison_has_the_same_name() {
        let cloud = embedded::memory(Arc::new(Memory::new()));
        let settings = Settings { lease: Duration::ZERO, ..Settings::default() };
        let queues = Queues::new(cloud.clone(), settings, 1, false);
        let queue = queues.make(Scope::Shard(0)).await.unwrap();
        let send = async |text: &'static str| {
            let message = ToSend { body: text.into(), ..ToSend::default() };
            assert_eq!(cloud.queue.send(&queue, &[message]).await, [Sent::Accepted]);
        };
        let found = async || {
            let batch = queues.drain(Scope::Shard(0), 10).await.unwrap();
            let mut names: Vec<String> = batch.poison.into_iter().map(|it| it.name).collect();
            names.sort();
            names
        };
        send("noise").await;
        let first = found().await;
        assert_eq!(first.len(), 1);
        assert_eq!(found().await, first);
        send("other noise").await;
        let both = found().await;
        assert!(both.len() == 2 && both[0] != both[1] && both.contains(&first[0]), "{both:?}");
    }

    /// Takes most of what is sent: every twentieth message is throttled, and the first calls have no outcome.
    struct Busy {
        beneath: Arc<dyn Queue>,
        seen: AtomicUsize,
    }

    #[async_trait]
    impl Queue for Busy {
        async fn create(&self, queue: &str, settings: QueueSettings) -> Result<(), Fault> {
            self.beneath.create(queue, settings).await
        }

        async fn send(&self, queue: &str, batch: &[ToSend]) -> Vec<Sent> {
            let mut all = Vec::new();
            for message in batch {
                all.push(match self.seen.fetch_add(1, Ordering::Relaxed) {
                    0..3 => return Vec::new(),
                    n if n % 20 == 0 => Sent::Failed(Fault::Throttled { what: queue.into() }),
                    _ => self.beneath.send(queue, std::slice::from_ref(message)).await.remove(0),
                });
            }
            all
        }

        async fn receive(
            &self,
            queue: &str,
            max: usize,
            visibility: Duration,
            wait: Duration,
        ) -> Result<Vec<Message>, Fault> {
            self.beneath.receive(queue, max, visibility, wait).await
        }

        async fn delete(&self, queue: &str, receipts: &[Receipt]) -> Result<(), Fault> {
            self.beneath.delete(queue, receipts).await
        }

        async fn change_visibility(
            &self,
            queue: &str,
            receipt: &Receipt,
            visibility: Duration,
        ) -> Result<(), Fault> {
            self.beneath.change_visibility(queue, receipt, visibility).await
        }

        async fn depth(&self, queue: &str) -> Result<u64, Fault> {
            self.beneath.depth(queue).await
        }
    }

    /// What is sent on in many calls meets more failures than one call may. It failed as a whole, and
    /// began again with the first message.
    #[tokio::test]
    async fn many_messages_have_attempts_for_each() {
        let cloud = embedded::memory(Arc::new(Memory::new()));
        let queue = Arc::new(Busy { beneath: cloud.queue.clone(), seen: AtomicUsize::new(0) });
        let busy = Cloud { queue, ..cloud.clone() };
        let settings = Settings { backoff: Duration::from_millis(1), ..Settings::default() };
        let queues = Queues::new(busy, settings, 1, false);
        let name = queues.make(Scope::Shard(0)).await.unwrap();
        let count = 400;
        let messages = (0..count).map(|n: u32| {
            let body = Bytes::copy_from_slice(&n.to_le_bytes());
            ToSend { body, ..ToSend::default() }
        });
        queues.send(&name, messages.collect()).await.unwrap();
        assert_eq!(cloud.queue.depth(&name).await, Ok(u64::from(count)));
    }
}
