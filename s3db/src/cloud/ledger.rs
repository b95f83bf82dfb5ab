//! Every call counted by kind and bytes, and priced.
//!
//! [`Metered`] wraps any [`Objects`] and [`Queue`]: what goes through it is charged to a [`Ledger`],
//! whatever the outcome, since the services charge for refused and empty answers too.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;

use crate::cloud::{
    Delete, ETag, Fault, Get, Listing, Message, Objects, Put, PutIf, Queue, QueueSettings, Receipt,
    Sent, ToSend,
};

/// Bytes of payload that SQS charges as one request.
pub const QUEUE_UNIT_BYTES: u64 = 64 << 10;

/// What is charged for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum CallKind {
    /// Reading an object, 304 and 404 included.
    Get,
    /// Storing an object, 412 and 409 included.
    Put,
    /// Deleting an object.
    Delete,
    /// One part of a list of names.
    List,
    /// Sending a batch.
    Send,
    /// Receiving, empty answers included.
    Receive,
    /// Deleting messages.
    DeleteMessage,
    /// Everything else that is asked of a queue.
    QueueOther,
}

impl CallKind {
    /// All kinds, in the order in which tables show them.
    pub const ALL: [CallKind; 8] = [
        CallKind::Get,
        CallKind::Put,
        CallKind::Delete,
        CallKind::List,
        CallKind::Send,
        CallKind::Receive,
        CallKind::DeleteMessage,
        CallKind::QueueOther,
    ];

    /// As tables show it.
    pub fn name(self) -> &'static str {
        match self {
            CallKind::Get => "get",
            CallKind::Put => "put",
            CallKind::Delete => "delete",
            CallKind::List => "list",
            CallKind::Send => "send",
            CallKind::Receive => "receive",
            CallKind::DeleteMessage => "delete-message",
            CallKind::QueueOther => "queue-other",
        }
    }
}

/// What one kind of call adds up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Charge {
    /// Calls made.
    pub calls: u64,
    /// What the service counts: calls for objects, started 64 KiB for queues.
    pub requests: u64,
    /// Payload bytes sent.
    pub bytes_out: u64,
    /// Payload bytes received.
    pub bytes_in: u64,
}

/// Counters of calls. Cheap to share; adding is one atomic addition each.
#[derive(Debug, Default)]
pub struct Ledger {
    cells: [[AtomicU64; 4]; CallKind::ALL.len()],
}

impl Ledger {
    /// An empty ledger.
    pub fn new() -> Arc<Ledger> {
        Arc::default()
    }

    /// What calls of `kind` add up to.
    pub fn charge(&self, kind: CallKind) -> Charge {
        let [calls, requests, bytes_out, bytes_in] =
            [0, 1, 2, 3].map(|n: usize| self.cells[kind as usize][n].load(Ordering::Relaxed));
        Charge { calls, requests, bytes_out, bytes_in }
    }

    /// US dollars for everything so far.
    pub fn dollars(&self, prices: &Prices) -> f64 {
        CallKind::ALL.iter().map(|&kind| prices.of(kind, self.charge(kind))).sum()
    }

    pub(crate) fn add(&self, kind: CallKind, bytes_out: u64, bytes_in: u64) {
        let requests = match kind {
            CallKind::Get | CallKind::Put | CallKind::Delete | CallKind::List => 1,
            _ => (bytes_out + bytes_in).div_ceil(QUEUE_UNIT_BYTES).max(1),
        };
        for (cell, more) in self.cells[kind as usize].iter().zip([1, requests, bytes_out, bytes_in])
        {
            cell.fetch_add(more, Ordering::Relaxed);
        }
    }
}

/// What calls cost, in US dollars. Storage is not in it: it is charged by time, not by call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prices {
    /// Per million gets.
    pub get: f64,
    /// Per million puts and lists.
    pub put: f64,
    /// Per million requests that send messages.
    pub send: f64,
    /// Per million other requests to queues.
    pub queue: f64,
    /// Per GB (10^9 bytes) to objects.
    pub gb_in: f64,
    /// Per GB (10^9 bytes) from objects.
    pub gb_out: f64,
}

impl Prices {
    /// S3 Standard and standard SQS queues in us-east-1, list prices of 2026, from machines in the
    /// same region.
    pub const TODAY: Prices =
        Prices { get: 0.40, put: 5.00, send: 0.40, queue: 0.40, gb_in: 0.0, gb_out: 0.0 };

    /// November 2007. The paper prints $0.01 per 1,000 messages; its own tables follow only from ten
    /// times that, and for every request to a queue. Table 4: seven sends are its $0.7 of Basic and
    /// three its $0.3 of Atomicity. Figure 3: where every commit is followed by seven checkpoints, of
    /// three requests to queues each, these are 2.1 of Basic's 2.3 dollars beside the transaction.
    pub const OF_2007: Prices =
        Prices { get: 1.0, put: 10.0, send: 100.0, queue: 100.0, gb_in: 0.10, gb_out: 0.18 };

    /// US dollars for calls of one kind.
    pub fn of(&self, kind: CallKind, charge: Charge) -> f64 {
        let per_million = match kind {
            CallKind::Get => self.get,
            CallKind::Put | CallKind::List => self.put,
            CallKind::Delete => 0.0,
            CallKind::Send => self.send,
            CallKind::Receive | CallKind::DeleteMessage | CallKind::QueueOther => self.queue,
        };
        let transfer = match kind {
            CallKind::Get | CallKind::Put => {
                charge.bytes_out as f64 * self.gb_in + charge.bytes_in as f64 * self.gb_out
            }
            _ => 0.0,
        };
        charge.requests as f64 * per_million / 1e6 + transfer / 1e9
    }
}

/// Charges what goes through it to a ledger.
pub struct Metered<T: ?Sized> {
    ledger: Arc<Ledger>,
    inner: Arc<T>,
}

impl<T: ?Sized> Metered<T> {
    /// `inner`, charged to `ledger`.
    pub fn new(inner: Arc<T>, ledger: Arc<Ledger>) -> Metered<T> {
        Metered { ledger, inner }
    }
}

#[async_trait]
impl<T: Objects + ?Sized> Objects for Metered<T> {
    async fn get(&self, name: &str, unless: Option<&ETag>) -> Result<Get, Fault> {
        let answer = self.inner.get(name, unless).await;
        let bytes_in = match &answer {
            Ok(Get::Found { bytes, .. }) => bytes.len() as u64,
            _ => 0,
        };
        self.ledger.add(CallKind::Get, 0, bytes_in);
        answer
    }

    async fn put(&self, name: &str, bytes: Bytes, condition: PutIf) -> Put {
        self.ledger.add(CallKind::Put, bytes.len() as u64, 0);
        self.inner.put(name, bytes, condition).await
    }

    async fn delete(&self, name: &str, only: Option<&ETag>) -> Delete {
        self.ledger.add(CallKind::Delete, 0, 0);
        self.inner.delete(name, only).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> Result<Listing, Fault> {
        self.ledger.add(CallKind::List, 0, 0);
        self.inner.list(prefix, after, max).await
    }
}

#[async_trait]
impl<T: Queue + ?Sized> Queue for Metered<T> {
    async fn create(&self, queue: &str, settings: QueueSettings) -> Result<(), Fault> {
        self.ledger.add(CallKind::QueueOther, 0, 0);
        self.inner.create(queue, settings).await
    }

    async fn send(&self, queue: &str, batch: &[ToSend]) -> Vec<Sent> {
        let bytes = batch.iter().map(|message| message.body.len() as u64).sum();
        self.ledger.add(CallKind::Send, bytes, 0);
        self.inner.send(queue, batch).await
    }

    async fn receive(
        &self,
        queue: &str,
        max: usize,
        visibility: Duration,
        wait: Duration,
    ) -> Result<Vec<Message>, Fault> {
        let answer = self.inner.receive(queue, max, visibility, wait).await;
        let messages = answer.as_deref().unwrap_or_default();
        let bytes = messages.iter().map(|message| message.body.len() as u64).sum();
        self.ledger.add(CallKind::Receive, 0, bytes);
        answer
    }

    async fn delete(&self, queue: &str, receipts: &[Receipt]) -> Result<(), Fault> {
        self.ledger.add(CallKind::DeleteMessage, 0, 0);
        self.inner.delete(queue, receipts).await
    }

    async fn change_visibility(
        &self,
        queue: &str,
        receipt: &Receipt,
        visibility: Duration,
    ) -> Result<(), Fault> {
        self.ledger.add(CallKind::QueueOther, 0, 0);
        self.inner.change_visibility(queue, receipt, visibility).await
    }

    async fn depth(&self, queue: &str) -> Result<u64, Fault> {
        self.ledger.add(CallKind::QueueOther, 0, 0);
        self.inner.depth(queue).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_price() {
        let prices =
            Prices { get: 1.0, put: 20.0, send: 300.0, queue: 4000.0, gb_in: 0.0, gb_out: 0.0 };
        let expected = [1.0, 20.0, 0.0, 20.0, 300.0, 4000.0, 4000.0, 4000.0];
        for (kind, price) in CallKind::ALL.into_iter().zip(expected) {
            let charge = Charge { calls: 3, requests: 1_000_000, ..Charge::default() };
            assert_eq!(prices.of(kind, charge), price, "{}", kind.name());
        }
        let transfer = Prices { gb_in: 2.0, gb_out: 5.0, ..prices };
        let charge =
            Charge { bytes_out: 1_000_000_000, bytes_in: 2_000_000_000, ..Charge::default() };
        assert_eq!(transfer.of(CallKind::Get, charge), 12.0);
    }
}
