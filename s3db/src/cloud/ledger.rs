//! Every call counted by kind and bytes, and priced.
//!
//! ```text
//!   charged_to(transaction, charged_to(collection, read)) --> Metered --> service
//!                                                                |
//!                             total, collection and transaction each count the call
//! ```
//!
//! [`Metered`] wraps any [`Objects`] and [`Queue`]: what goes through it is charged to a [`Ledger`],
//! whatever the outcome, since the services charge for refused and empty answers too; and to the
//! accounts that whoever calls said to be working for. Where several wait for one call, the one that
//! made it pays.
//!
//! A [`Limit`] refuses calls before they are made: first those of work in the background.

use std::{
    collections::BTreeMap,
    str::FromStr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;

use crate::{
    cloud::{
        Clock, Delete, ETag, Fault, Get, Listing, Message, Objects, Put, PutIf, Queue,
        QueueSettings, Receipt, Sent, ToSend,
    },
    names::BLOBS,
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
    /// Reading a part of a blob.
    GetBlob,
    /// Storing a part of a blob.
    PutBlob,
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
    /// A fresh read's look into the log: reading an object of it.
    LookGet,
    /// The same: one part of the list of what is in it.
    LookList,
    /// The same: receiving what waits in a queue, empty answers included.
    LookReceive,
}

impl CallKind {
    /// All kinds, in the order in which tables show them.
    pub const ALL: [CallKind; 13] = [
        CallKind::Get,
        CallKind::Put,
        CallKind::GetBlob,
        CallKind::PutBlob,
        CallKind::Delete,
        CallKind::List,
        CallKind::Send,
        CallKind::Receive,
        CallKind::DeleteMessage,
        CallKind::QueueOther,
        CallKind::LookGet,
        CallKind::LookList,
        CallKind::LookReceive,
    ];

    /// Of a get of this object, made now.
    pub(crate) fn get(object: &str) -> CallKind {
        match object.starts_with(BLOBS) {
            true => CallKind::GetBlob,
            false if is_look() => CallKind::LookGet,
            false => CallKind::Get,
        }
    }

    /// Of a list that is made now.
    pub(crate) fn list() -> CallKind {
        if is_look() { CallKind::LookList } else { CallKind::List }
    }

    /// Of a receive that is made now.
    pub(crate) fn receive() -> CallKind {
        if is_look() { CallKind::LookReceive } else { CallKind::Receive }
    }

    /// Of a put of this object.
    pub(crate) fn put(object: &str) -> CallKind {
        if object.starts_with(BLOBS) { CallKind::PutBlob } else { CallKind::Put }
    }

    /// As tables show it.
    pub fn name(self) -> &'static str {
        match self {
            CallKind::Get => "get",
            CallKind::Put => "put",
            CallKind::GetBlob => "get-blob",
            CallKind::PutBlob => "put-blob",
            CallKind::Delete => "delete",
            CallKind::List => "list",
            CallKind::Send => "send",
            CallKind::Receive => "receive",
            CallKind::DeleteMessage => "delete-message",
            CallKind::QueueOther => "queue-other",
            CallKind::LookGet => "look-get",
            CallKind::LookList => "look-list",
            CallKind::LookReceive => "look-receive",
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

    /// Adds a call that is about to be made, with the bytes that it sends.
    pub(crate) fn add(&self, kind: CallKind, bytes_out: u64) {
        self.add_all(kind, [1, requests(kind, bytes_out), bytes_out, 0]);
    }

    /// Adds the bytes of an answer. Whoever does not wait for it is charged for the call alone.
    pub(crate) fn add_answer(&self, kind: CallKind, bytes_in: u64) {
        // One request is charged already.
        self.add_all(kind, [0, requests(kind, bytes_in) - 1, 0, bytes_in]);
    }

    fn add_all(&self, kind: CallKind, more: [u64; 4]) {
        for (cell, more) in self.cells[kind as usize].iter().zip(more) {
            cell.fetch_add(more, Ordering::Relaxed);
        }
    }
}

/// What a call of so many bytes counts as: at least one request.
fn requests(kind: CallKind, bytes: u64) -> u64 {
    match kind {
        CallKind::Get
        | CallKind::Put
        | CallKind::GetBlob
        | CallKind::PutBlob
        | CallKind::Delete
        | CallKind::List
        | CallKind::LookGet
        | CallKind::LookList => 1,
        _ => bytes.div_ceil(QUEUE_UNIT_BYTES).max(1),
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

    /// These prices, but for those that `text` names, as in `get=0.4,put=5`. The names are those of the
    /// fields; `queue` without `send` sets both.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn with(self, text: &str) -> Result<Prices, String> {
        let mut prices = self;
        let (mut send, mut queue) = (None, None);
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').ok_or_else(|| {
                format!("{part}: a price is NAME=DOLLARS, as in put=5.00,get=0.40")
            })?;
            let dollars: f64 = value.trim().parse().map_err(|_| format!("{part}: not a number"))?;
            if !dollars.is_finite() || dollars < 0.0 {
                return Err(format!("{part}: a price is a number of at least zero"));
            }
            match name.trim() {
                "get" => prices.get = dollars,
                "put" => prices.put = dollars,
                "send" => send = Some(dollars),
                "queue" => queue = Some(dollars),
                "gb_in" => prices.gb_in = dollars,
                "gb_out" => prices.gb_out = dollars,
                other => {
                    return Err(format!(
                        "no price is named {other}: get, put, send, queue (per million), gb_in and \
                         gb_out are"
                    ));
                }
            }
        }
        prices.queue = queue.unwrap_or(prices.queue);
        prices.send = send.or(queue).unwrap_or(prices.send);
        Ok(prices)
    }

    /// US dollars for calls of one kind.
    pub fn of(&self, kind: CallKind, charge: Charge) -> f64 {
        let per_million = match kind {
            CallKind::Get | CallKind::GetBlob | CallKind::LookGet => self.get,
            CallKind::Put | CallKind::PutBlob | CallKind::List | CallKind::LookList => self.put,
            CallKind::Delete => 0.0,
            CallKind::Send => self.send,
            CallKind::Receive
            | CallKind::DeleteMessage
            | CallKind::QueueOther
            | CallKind::LookReceive => self.queue,
        };
        let transfer = match kind {
            CallKind::Get
            | CallKind::Put
            | CallKind::GetBlob
            | CallKind::PutBlob
            | CallKind::LookGet => {
                charge.bytes_out as f64 * self.gb_in + charge.bytes_in as f64 * self.gb_out
            }
            _ => 0.0,
        };
        charge.requests as f64 * per_million / 1e6 + transfer / 1e9
    }
}

/// What is named costs that, the rest what it costs today ([`Prices::with`]).
impl FromStr for Prices {
    type Err = String;

    fn from_str(text: &str) -> Result<Prices, String> {
        Prices::TODAY.with(text)
    }
}

tokio::task_local! {
    /// Who works, innermost first.
    static PAYERS: Arc<Payer>;
}

struct Payer {
    account: Option<Arc<Ledger>>,
    trees: Option<Arc<Trees>>,
    is_background: bool,
    /// What is done is a look into the log.
    is_look: bool,
    next: Option<Arc<Payer>>,
}

impl Payer {
    /// Nobody more than pays already.
    fn nobody() -> Payer {
        Payer { account: None, trees: None, is_background: false, is_look: false, next: payer() }
    }
}

/// Which account pays for which tree: how work that is for many finds who pays for a part of it.
#[derive(Default)]
pub(crate) struct Trees(Mutex<BTreeMap<u128, Arc<Ledger>>>);

impl Trees {
    /// `account` pays for the tree of this root from now on.
    pub(crate) fn set(&self, root: u128, account: &Arc<Ledger>) {
        let mut trees = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        trees.insert(root, account.clone());
    }

    pub(crate) fn get(&self, root: u128) -> Option<Arc<Ledger>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&root).cloned()
    }
}

fn payer() -> Option<Arc<Payer>> {
    PAYERS.try_with(Arc::clone).ok()
}

fn payers() -> impl Iterator<Item = Arc<Payer>> {
    std::iter::successors(payer(), |payer| payer.next.clone())
}

/// Does `work`, and charges what it calls to `account` as well: beside the ledger of whatever it
/// calls, and beside accounts that were named around it. Work that it spawns is not in it.
pub async fn charged_to<F: Future>(account: &Arc<Ledger>, work: F) -> F::Output {
    let payer = Payer { account: Some(account.clone()), ..Payer::nobody() };
    PAYERS.scope(Arc::new(payer), work).await
}

/// Does `work` that is for many trees: what is for one is charged to that tree's account. A [`Limit`]
/// refuses it first if it `is_background`.
pub(crate) async fn for_many<F: Future>(
    trees: &Arc<Trees>,
    is_background: bool,
    work: F,
) -> F::Output {
    let payer = Payer { trees: Some(trees.clone()), is_background, ..Payer::nobody() };
    PAYERS.scope(Arc::new(payer), work).await
}

/// Does `work` that a [`Limit`] refuses before the work that it is part of.
pub(crate) async fn in_background<F: Future>(work: F) -> F::Output {
    let payer = Payer { is_background: true, ..Payer::nobody() };
    PAYERS.scope(Arc::new(payer), work).await
}

/// `work`, charged to who pays for what is done now, whoever carries it on.
pub(crate) fn as_now<F: Future>(work: F) -> impl Future<Output = F::Output> {
    PAYERS.scope(payer().unwrap_or_else(|| Arc::new(Payer::nobody())), work)
}

/// Does `work`, a look into the log: its calls are of kinds of their own.
pub(crate) async fn looking<F: Future>(work: F) -> F::Output {
    let payer = Payer { is_look: true, ..Payer::nobody() };
    PAYERS.scope(Arc::new(payer), work).await
}

fn is_look() -> bool {
    payers().any(|payer| payer.is_look)
}

/// Does `work`, a part of work for many, which is for the tree of this root: it is charged to that
/// tree's account, if it has one.
pub(crate) async fn for_tree<F: Future>(root: u128, work: F) -> F::Output {
    let account = payers().find_map(|payer| payer.trees.as_ref()?.get(root));
    match account {
        Some(account) => charged_to(&account, work).await,
        None => work.await,
    }
}

/// What may be spent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spending {
    /// US dollars per period.
    pub dollars: f64,
    /// How long a period is. The first one begins with the first call.
    pub period: Duration,
    /// What calls cost.
    pub prices: Prices,
    /// The share of it, 0 to 1, that work in the background may use: beyond that checkpoints and
    /// sweeps wait, and the rest is for reads and commits. What is committed meanwhile is durable,
    /// and others see it later. A commit that makes room for what its session remembers
    /// ([`Settings::own_bytes_max`](crate::Settings)) counts as background, until that is four times
    /// as much as it should be.
    pub background_share: f64,
}

impl Spending {
    /// So much per day, of which work in the background leaves a fifth. What calls cost depends on the log
    /// (`Backend::prices`).
    pub fn per_day(dollars: f64, prices: Prices) -> Spending {
        let period = Duration::from_secs(24 * 3600);
        Spending { dollars, period, prices, background_share: 0.8 }
    }
}

/// Refuses calls when what may be spent is spent.
pub struct Limit {
    spending: Spending,
    clock: Arc<dyn Clock>,
    /// When the period began, and what was spent until then.
    period: Mutex<Option<(u64, f64)>>,
    refused: AtomicU64,
}

impl Limit {
    /// A limit whose periods are those of `clock`.
    pub fn new(spending: Spending, clock: Arc<dyn Clock>) -> Arc<Limit> {
        let (period, refused) = Default::default();
        Arc::new(Limit { spending, clock, period, refused })
    }

    /// Calls that were refused.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Whether whoever asks may call: work in the background, or others.
    fn check(&self, ledger: &Ledger, what: &str) -> Result<(), Fault> {
        let Spending { dollars, period, prices, background_share } = self.spending;
        let now_us = self.clock.monotonic_us();
        let total = ledger.dollars(&prices);
        let spent = {
            let mut began = self.period.lock().unwrap_or_else(PoisonError::into_inner);
            let (since_us, before) = began.get_or_insert((now_us, total));
            if u128::from(now_us.saturating_sub(*since_us)) >= period.as_micros() {
                (*since_us, *before) = (now_us, total);
            }
            total - *before
        };
        let is_background = payers().any(|payer| payer.is_background);
        let share = if is_background { background_share.clamp(0.0, 1.0) } else { 1.0 };
        if spent < dollars * share {
            return Ok(());
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
        let whose = if is_background { "work in the background" } else { "all" };
        let cause = format!(
            "${spent:.6} of ${dollars:.6} are spent in this period, and {whose} may use {:.0} %: wait, \
             or raise the limit",
            share * 100.0
        );
        Err(Fault::Spent { what: what.to_owned(), cause })
    }
}

/// Charges what goes through it to a ledger.
pub struct Metered<T: ?Sized> {
    ledger: Arc<Ledger>,
    limit: Option<Arc<Limit>>,
    inner: Arc<T>,
}

impl<T: ?Sized> Metered<T> {
    /// `inner`, charged to `ledger`.
    pub fn new(inner: Arc<T>, ledger: Arc<Ledger>) -> Metered<T> {
        Metered { ledger, limit: None, inner }
    }

    /// And refused when `limit` is reached.
    pub fn limited(self, limit: Option<Arc<Limit>>) -> Metered<T> {
        Metered { limit, ..self }
    }

    fn check(&self, what: &str) -> Result<(), Fault> {
        self.limit.as_ref().map_or(Ok(()), |limit| limit.check(&self.ledger, what))
    }

    /// Charges a call, before it is made: those who come at the same time are told, and whoever
    /// does not wait for the answer pays nevertheless.
    fn charge(&self, kind: CallKind, bytes_out: u64) {
        self.each(|account| account.add(kind, bytes_out));
    }

    fn charge_answer(&self, kind: CallKind, bytes_in: u64) {
        self.each(|account| account.add_answer(kind, bytes_in));
    }

    fn each(&self, charge: impl Fn(&Ledger)) {
        charge(&self.ledger);
        payers().filter_map(|payer| payer.account.clone()).for_each(|account| charge(&account));
    }
}

#[async_trait]
impl<T: Objects + ?Sized> Objects for Metered<T> {
    async fn get(&self, name: &str, unless: Option<&ETag>) -> Result<Get, Fault> {
        self.check(name)?;
        let kind = CallKind::get(name);
        self.charge(kind, 0);
        let answer = self.inner.get(name, unless).await;
        if let Ok(Get::Found { bytes, .. }) = &answer {
            self.charge_answer(kind, bytes.len() as u64);
        }
        answer
    }

    async fn put(&self, name: &str, bytes: Bytes, condition: PutIf) -> Put {
        if let Err(fault) = self.check(name) {
            return Put::Failed(fault);
        }
        self.charge(CallKind::put(name), bytes.len() as u64);
        self.inner.put(name, bytes, condition).await
    }

    async fn delete(&self, name: &str, only: Option<&ETag>) -> Delete {
        if let Err(fault) = self.check(name) {
            return Delete::Failed(fault);
        }
        self.charge(CallKind::Delete, 0);
        self.inner.delete(name, only).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> Result<Listing, Fault> {
        self.check(prefix)?;
        self.charge(CallKind::list(), 0);
        self.inner.list(prefix, after, max).await
    }
}

#[async_trait]
impl<T: Queue + ?Sized> Queue for Metered<T> {
    async fn create(&self, queue: &str, settings: QueueSettings) -> Result<(), Fault> {
        self.check(queue)?;
        self.charge(CallKind::QueueOther, 0);
        self.inner.create(queue, settings).await
    }

    async fn send(&self, queue: &str, batch: &[ToSend]) -> Vec<Sent> {
        if let Err(fault) = self.check(queue) {
            return vec![Sent::Failed(fault); batch.len()];
        }
        let bytes = batch.iter().map(|message| message.body.len() as u64).sum();
        self.charge(CallKind::Send, bytes);
        self.inner.send(queue, batch).await
    }

    async fn receive(
        &self,
        queue: &str,
        max: usize,
        visibility: Duration,
        wait: Duration,
    ) -> Result<Vec<Message>, Fault> {
        self.check(queue)?;
        let kind = CallKind::receive();
        self.charge(kind, 0);
        let answer = self.inner.receive(queue, max, visibility, wait).await;
        let messages = answer.as_deref().unwrap_or_default();
        let bytes = messages.iter().map(|message| message.body.len() as u64).sum();
        self.charge_answer(kind, bytes);
        answer
    }

    async fn delete(&self, queue: &str, receipts: &[Receipt]) -> Result<(), Fault> {
        self.check(queue)?;
        self.charge(CallKind::DeleteMessage, 0);
        self.inner.delete(queue, receipts).await
    }

    async fn change_visibility(
        &self,
        queue: &str,
        receipt: &Receipt,
        visibility: Duration,
    ) -> Result<(), Fault> {
        self.check(queue)?;
        self.charge(CallKind::QueueOther, 0);
        self.inner.change_visibility(queue, receipt, visibility).await
    }

    async fn depth(&self, queue: &str) -> Result<u64, Fault> {
        self.check(queue)?;
        self.charge(CallKind::QueueOther, 0);
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
        let expected =
            [1.0, 20.0, 1.0, 20.0, 0.0, 20.0, 300.0, 4000.0, 4000.0, 4000.0, 1.0, 20.0, 4000.0];
        for (kind, price) in CallKind::ALL.into_iter().zip(expected) {
            let charge = Charge { calls: 3, requests: 1_000_000, ..Charge::default() };
            assert_eq!(prices.of(kind, charge), price, "{}", kind.name());
        }
        let transfer = Prices { gb_in: 2.0, gb_out: 5.0, ..prices };
        let charge =
            Charge { bytes_out: 1_000_000_000, bytes_in: 2_000_000_000, ..Charge::default() };
        for kind in [CallKind::Get, CallKind::GetBlob, CallKind::LookGet] {
            assert_eq!(transfer.of(kind, charge), 12.0);
        }
    }

    /// An object store that never answers.
    struct Silent;

    #[async_trait]
    impl Objects for Silent {
        async fn get(&self, _name: &str, _unless: Option<&ETag>) -> Result<Get, Fault> {
            std::future::pending().await
        }

        async fn put(&self, _name: &str, _bytes: Bytes, _condition: PutIf) -> Put {
            std::future::pending().await
        }

        async fn delete(&self, _name: &str, _only: Option<&ETag>) -> Delete {
            std::future::pending().await
        }

        async fn list(&self, _: &str, _: Option<&str>, _: usize) -> Result<Listing, Fault> {
            std::future::pending().await
        }
    }

    /// A read that nobody waited for was billed and not counted, and of many at the same time none
    /// knew of the others.
    #[tokio::test]
    async fn calls_are_charged_when_they_are_made() {
        let ledger = Ledger::new();
        let prices = Prices { get: 1e6, put: 0.0, send: 0.0, queue: 0.0, gb_in: 0.0, gb_out: 0.0 };
        let spending = Spending { prices, ..Spending::per_day(3.0, Prices::TODAY) };
        let clock = crate::cloud::embedded::memory(Arc::default()).clock;
        let limit = Limit::new(spending, clock);
        let metered = Metered::new(Arc::new(Silent), ledger.clone()).limited(Some(limit));
        let mut reads: Vec<_> = (0..5).map(|_| metered.get("a", None)).collect();
        let mut refused = 0;
        for read in &mut reads {
            if let std::task::Poll::Ready(answer) = futures::poll!(read) {
                assert!(matches!(answer, Err(Fault::Spent { .. })), "{answer:?}");
                refused += 1;
            }
        }
        assert_eq!((ledger.charge(CallKind::Get).calls, refused), (3, 2));
        drop(reads);
        assert_eq!(ledger.charge(CallKind::Get).calls, 3);
    }

    #[test]
    fn answers_of_queues_are_charged_by_their_bytes() {
        for (bytes, requests) in
            [(0, 1), (1, 1), (64 << 10, 1), ((64 << 10) + 1, 2), (640 << 10, 10)]
        {
            let ledger = Ledger::default();
            ledger.add(CallKind::Receive, 0);
            ledger.add_answer(CallKind::Receive, bytes);
            let expected = Charge { calls: 1, requests, bytes_out: 0, bytes_in: bytes };
            assert_eq!(ledger.charge(CallKind::Receive), expected);
        }
    }
}
