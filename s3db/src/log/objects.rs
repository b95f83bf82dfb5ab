//! Backend s3-log: transactions in objects, one stream per incarnation.
//!
//! ```text
//!   log/CLIENT/EPOCH/0  1  2  3  fence        created once each (If-None-Match: *)
//! ```
//!
//! The put of a log object is the commit point of all transactions in it: those that arrive while
//! one put is under way share the next (group commit). Number n+1 is not put before n is confirmed,
//! so a stream has no holes, and nothing that was acknowledged lies behind a fence.
//!
//! A new incarnation puts a *fence* into the first free number of each older stream: the zombie's
//! own put of that number is then refused, and it stops (W13). So the newest object of a stream,
//! which may be its fence, is never deleted here: that would free the number which the zombie is
//! about to take.
//!
//! It stays, and so whoever looks at the stream for the first time applies it again. That is harmless
//! while the tombstones of its time are there. Before they go it is *emptied*: put again under the
//! same write id, with no transactions in it ([`Log::settle`]).
//!
//! A group whose put had no answer is settled before the next one is put: by another put of the same, as
//! long as it is young. A transaction that is older than garbage collection allows for (see `gc`) may
//! not come into the log any more; then the life ends its own stream with a fence, behind which the
//! group never arrives, and is over.
//!
//! Older numbers are freed. Whatever arrives in one of those, late, is either a copy of what was
//! there or a fence that was tried and found its number taken: readers apply the first again, which
//! changes nothing, and pass over the second. To stop there would hide what lies behind it.
//!
//! An object of the log is a frame (see `frame`) of magic `s3dO`, version 1: kind (1: 0
//! transactions, 1 fence), client, epoch, sequence (8 each), write id (16), number of transactions
//! (4), and each transaction's frame (4 + n). A fence has the new epoch in place of the number of
//! transactions (8).

mod ahead; // several objects of a stream on their way
mod own; // what this process put, and need not ask for
mod look; // what is in the streams, for a fresh read

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, stream};

use self::{
    ahead::{AT_ONCE, Ahead, Wanted},
    own::{Now, Own},
};
use crate::{
    catalog, client,
    cloud::{Cloud, Delete, ETag, Fault, Get, Put, PutIf},
    error::{StoreError, with_cause},
    fail_point::{FailPoint, reached},
    frame::{FrameError, Reader, Writer, is_number},
    log::{
        Append, Appender, Batch, Entry, Forwarded, Left, Log, Pending, PendingPart, Poison, Scope,
        Ticket, Transaction, transaction::Body,
    },
    names::{DATABASE, LOG},
    page::{PageId, Stream},
    retry::{Attempts, read_surely},
    settings::{Rule, Settings},
};

const MAGIC: &str = "s3dO";
const VERSION: u8 = 1;

/// Bytes of transactions that share an object, beyond the first.
const GROUP_BYTES_MAX: usize = 4 << 20;
/// Names that one list returns.
const LIST_MAX: usize = 1000;
/// Bytes of transactions that wait for their group, of one client: sixteen groups, each of which takes a put. And
/// how many wait. Who comes when there are as many is refused, and may come again.
const PENDING_BYTES_MAX: usize = 64 << 20;
const PENDING_MAX: usize = 10_000;
/// Streams that are emptied at the same time: of each, one object is in memory.
const SETTLED_AT_ONCE: usize = 8;
/// Objects that one drain reads at most: some seconds. Who commits much fills so many between two
/// checkpoints, and each drain puts every page that they changed.
const DRAIN_OBJECTS_MAX: usize = 200;
/// Numbers of one stream that others are taken on before.
const HELD_MAX: usize = 10_000;
/// Objects within a stream that are none of it, of which one drain reads at most so many beside those
/// that are.
const STRAYS_MAX: usize = 1000;
/// Damaged objects at the end of a stream that can be told to belong to it.
const DAMAGED_MAX: usize = 16;
/// Transactions that are remembered as committed for those who ask again.
const SETTLED_MAX: usize = 100_000;
/// Bytes of objects after which a drain reads no more.
const DRAIN_BYTES_MAX: usize = 16 << 20;

fn prefix(stream: Stream) -> String {
    format!("{LOG}{:016x}/{:016x}/", stream.client, stream.epoch)
}

fn name(stream: Stream, sequence: u64) -> String {
    format!("{}{sequence:016x}", prefix(stream))
}

/// The stream and number of a log object's name.
pub(crate) fn parse(name: &str) -> Option<(Stream, u64)> {
    let mut parts = name.strip_prefix(LOG)?.split('/');
    let mut number = || u64::from_str_radix(parts.next().filter(|part| part.len() == 16)?, 16).ok();
    let (client, epoch, sequence) = (number()?, number()?, number()?);
    let is_sound = parts.next().is_none() && is_number(epoch) && is_number(sequence);
    let stream = Stream { client, epoch };
    // Written as it is here, and not with a sign or in capitals: it is found by its number.
    (is_sound && self::name(stream, sequence) == name).then_some((stream, sequence))
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LogObject {
    Transactions { write_id: u128, frames: Vec<Bytes> },
    Fence { write_id: u128, by_epoch: u64 },
}

pub(crate) fn encode(stream: Stream, sequence: u64, write_id: u128, frames: &[Bytes]) -> Bytes {
    let mut to = Writer::new(MAGIC, VERSION);
    to.u8(0);
    to.u64(stream.client);
    to.u64(stream.epoch);
    to.u64(sequence);
    to.u128(write_id);
    to.u32(frames.len() as u32);
    frames.iter().for_each(|frame| to.long(frame));
    to.finish()
}

pub(crate) fn encode_fence(stream: Stream, sequence: u64, write_id: u128, by_epoch: u64) -> Bytes {
    let mut to = Writer::new(MAGIC, VERSION);
    to.u8(1);
    to.u64(stream.client);
    to.u64(stream.epoch);
    to.u64(sequence);
    to.u128(write_id);
    to.u64(by_epoch);
    to.finish()
}

pub(crate) fn decode(
    bytes: &Bytes,
    stream: Stream,
    sequence: u64,
) -> Result<LogObject, FrameError> {
    let mut from = Reader::new(bytes, MAGIC, VERSION)?;
    let kind = from.u8()?;
    let there = (Stream { client: from.u64()?, epoch: from.u64()? }, from.u64()?);
    if there != (stream, sequence) {
        return Err(from.field("a log object of another name"));
    }
    let write_id = from.u128()?;
    let object = match kind {
        0 => {
            let count = from.u32()? as usize;
            if count > from.rest() / 4 {
                return Err(from.field("more transactions than bytes"));
            }
            let frames = (0..count).map(|_| from.long()).collect::<Result<_, _>>()?;
            LogObject::Transactions { write_id, frames }
        }
        1 => LogObject::Fence { write_id, by_epoch: from.u64()? },
        _ => return Err(from.field("neither transactions nor a fence")),
    };
    from.done()?;
    Ok(object)
}

/// The changes in a log object; none in a fence.
pub(crate) fn entries(
    bytes: &Bytes,
    stream: Stream,
    sequence: u64,
) -> Result<Vec<Entry>, FrameError> {
    let LogObject::Transactions { frames, .. } = decode(bytes, stream, sequence)? else {
        return Ok(Vec::new());
    };
    let mut entries = Vec::new();
    for frame in frames {
        if let Body::Here(transaction) = Transaction::decode(&frame)? {
            entries.extend(transaction.entries);
        }
    }
    Ok(entries)
}

/// What of a stream was read and could not be applied. Every other drain passes over it, so that it
/// is in nobody's way, and is tried again.
#[derive(Default)]
struct Held {
    numbers: BTreeSet<u64>,
    /// The next drain passes over them.
    is_next_past: bool,
}

#[derive(Clone)]
pub(crate) struct ObjectLog {
    cloud: Cloud,
    settings: Settings,
    /// The first number of each stream that this process has not seen applied.
    cursors: Arc<Mutex<HashMap<Stream, u64>>>,
    held: Arc<Mutex<HashMap<Stream, Held>>>,
    /// Objects that fresh reads have read, of those that are there.
    looked: Arc<Mutex<HashMap<(Stream, u64), look::Looked>>>,
    /// What this process put.
    own: Arc<Mutex<Own>>,
}

impl ObjectLog {
    pub(crate) fn new(cloud: Cloud, settings: Settings) -> ObjectLog {
        let (cursors, held, looked) = Default::default();
        let own = Arc::new(Mutex::new(Own::new(settings.tombstone_age)));
        ObjectLog { cloud, settings, cursors, held, looked, own }
    }

    fn own(&self) -> std::sync::MutexGuard<'_, Own> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn looked(&self) -> std::sync::MutexGuard<'_, HashMap<(Stream, u64), look::Looked>> {
        self.looked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cursors(&self) -> std::sync::MutexGuard<'_, HashMap<Stream, u64>> {
        self.cursors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self) -> std::sync::MutexGuard<'_, HashMap<Stream, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a drain passes over that finds `numbers` in its list.
    fn take_held(&self, stream: Stream, cursor: u64, numbers: &[u64]) -> BTreeSet<u64> {
        let mut all = self.held();
        let Some(held) = all.get_mut(&stream) else { return BTreeSet::new() };
        // Others applied what is gone.
        held.numbers.retain(|number| {
            *number >= cursor
                && (numbers.binary_search(number).is_ok()
                    || numbers.last().is_some_and(|last| number > last))
        });
        match std::mem::take(&mut held.is_next_past) {
            true => held.numbers.clone(),
            false => BTreeSet::new(),
        }
    }

    fn cursor(&self, stream: Stream) -> u64 {
        self.cursors().get(&stream).copied().unwrap_or(0)
    }

    async fn get(&self, name: &str) -> Result<Option<Bytes>, StoreError> {
        Ok(self.get_tagged(name).await?.map(|(bytes, _)| bytes))
    }

    /// A log object. One damaged answer is not taken for what lies there: see [`read_surely`]. What is within
    /// the object has the checksum of all of it.
    async fn get_surely(&self, stream: Stream, number: u64) -> Result<Option<Bytes>, StoreError> {
        let is_sound = |bytes: &Bytes| decode(bytes, stream, number).is_ok();
        read_surely(&self.cloud, &self.settings, &name(stream, number), is_sound).await
    }

    async fn get_tagged(&self, name: &str) -> Result<Option<(Bytes, ETag)>, StoreError> {
        let mut attempts = Attempts::new(&self.cloud, &self.settings);
        loop {
            match self.cloud.objects.get(name, None).await {
                Ok(Get::Found { bytes, etag, .. }) => return Ok(Some((bytes, etag))),
                Ok(_) => return Ok(None),
                Err(fault) => attempts.after(fault).await?,
            }
        }
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<String>,
    ) -> Result<(Vec<String>, bool), StoreError> {
        let mut attempts = Attempts::new(&self.cloud, &self.settings);
        loop {
            match self.cloud.objects.list(prefix, after.as_deref(), LIST_MAX).await {
                Ok(part) => return Ok((part.names, part.more)),
                Err(fault) => attempts.after(fault).await?,
            }
        }
    }

    /// The numbers of a stream's objects, at most [`LIST_MAX`] from the one behind `after` on; from
    /// the oldest on if there is none. And whether there are more.
    async fn numbers(
        &self,
        stream: Stream,
        after: Option<u64>,
    ) -> Result<(Vec<u64>, bool), StoreError> {
        let after = after.map(|number| name(stream, number));
        let (names, more) = self.list(&prefix(stream), after).await?;
        let numbers = names.iter().filter_map(|name| parse(name)).map(|(_, number)| number);
        Ok((numbers.collect(), more))
    }

    /// All streams, each with its highest number.
    async fn streams(&self) -> Result<BTreeMap<Stream, u64>, StoreError> {
        let (mut streams, mut own) = (BTreeMap::new(), BTreeMap::<Stream, BTreeSet<u64>>::new());
        let mut after = None;
        loop {
            let (names, more) = self.list(LOG, after).await?;
            for (stream, number) in names.iter().filter_map(|name| parse(name)) {
                streams.insert(stream, number);
                if self.own().has(stream) {
                    own.entry(stream).or_default().insert(number);
                }
            }
            after = names.into_iter().next_back();
            if !more || after.is_none() {
                own.iter().for_each(|(stream, listed)| self.own().seen(*stream, listed));
                return Ok(streams);
            }
        }
    }

    /// Deletes an object of which everything is applied.
    async fn free(&self, stream: Stream, number: u64) -> Result<(), StoreError> {
        let name = name(stream, number);
        let mut attempts = Attempts::new(&self.cloud, &self.settings);
        loop {
            match self.cloud.objects.delete(&name, None).await {
                Delete::Gone => {
                    self.own().freed(stream, number);
                    reached(&self.cloud, FailPoint::Freed).await;
                    return Ok(());
                }
                Delete::Refused | Delete::Conflict => attempts.after_loss(&name).await?,
                Delete::Unknown(fault) | Delete::Failed(fault) => attempts.after(fault).await?,
            }
        }
    }

    /// Takes out of an object what was applied, if any of it is older than `before_us`. False when
    /// that cannot be done now.
    async fn empty(&self, stream: Stream, number: u64, before_us: u64) -> Result<bool, StoreError> {
        let name = name(stream, number);
        let Some((bytes, etag)) = self.get_tagged(&name).await? else { return Ok(true) };
        let (write_id, frames) = match decode(&bytes, stream, number) {
            Ok(LogObject::Transactions { write_id, frames }) => (write_id, frames),
            Ok(LogObject::Fence { .. }) => return Ok(true),
            // In quarantine, if it is not this answer alone that is damaged.
            Err(_) => return Ok(self.get(&name).await?.is_none_or(|again| again == bytes)),
        };
        let is_old = |frame| match Transaction::decode(frame) {
            Ok(Body::Here(transaction)) => {
                transaction.entries.iter().any(|entry| entry.record.stamp.clock < before_us)
            }
            _ => false,
        };
        if !frames.iter().any(is_old) {
            return Ok(true);
        }
        if number >= self.cursor(stream) {
            // Not seen to be applied.
            return Ok(false);
        }
        // Whoever put it finds its write id, and knows that it is committed.
        let empty = encode(stream, number, write_id, &[]);
        let put = self.cloud.objects.put(&name, empty, PutIf::Matches(etag)).await;
        let is_done = matches!(put, Put::Stored(_));
        if is_done {
            reached(&self.cloud, FailPoint::Emptied).await;
        }
        Ok(is_done)
    }

    /// The highest number of a stream, and whether what has it is a log object.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when that cannot be told: what has it is no log object, and does not
    /// follow one either. It was put there by somebody else, or is damaged and the newest that was
    /// kept.
    async fn last(&self, stream: Stream) -> Result<Option<(u64, bool)>, StoreError> {
        let mut after = None;
        let mut newest = VecDeque::new();
        loop {
            let (names, more) = self.list(&prefix(stream), after).await?;
            newest.extend(names.iter().filter_map(|name| parse(name)).map(|(_, number)| number));
            while newest.len() > DAMAGED_MAX {
                newest.pop_front();
            }
            after = names.into_iter().next_back();
            if !more || after.is_none() {
                break;
            }
        }
        let last = newest.back().copied();
        let mut is_ours = true;
        while let Some(number) = newest.pop_back() {
            let Some(bytes) = self.get_surely(stream, number).await? else { break };
            let Err(source) = decode(&bytes, stream, number) else { break };
            is_ours = false;
            if number > 0 && newest.back() != Some(&(number - 1)) {
                return Err(StoreError::Damaged { object: name(stream, number), source });
            }
        }
        Ok(last.map(|last| (last, is_ours)))
    }

    /// Ends a stream. Afterwards nothing can be appended to it.
    async fn fence(&self, stream: Stream, by_epoch: u64) -> Result<(), StoreError> {
        let mut attempts = Attempts::new(&self.cloud, &self.settings);
        let mut next = self.last(stream).await?.map_or(0, |(last, _)| last);
        loop {
            // The last one may be a fence.
            if let Some(bytes) = self.get_surely(stream, next).await? {
                if let Ok(LogObject::Fence { .. }) = decode(&bytes, stream, next) {
                    if !self.settings.rules.hold(Rule::FenceLast) {
                        return Ok(());
                    }
                    // It counts only if it is the last. Between a look at a number and a put of it
                    // the stream can have grown past it, and the number been freed.
                    match self.last(stream).await? {
                        Some((last, _)) if last > next => next = last,
                        _ => return Ok(()),
                    }
                } else {
                    // Damaged or not, the number is taken.
                    next += 1;
                }
                continue;
            }
            let fence = encode_fence(stream, next, self.cloud.chance.next_u128(), by_epoch);
            match self.cloud.objects.put(&name(stream, next), fence, PutIf::Absent).await {
                // Ours or someone else's: look what is there now.
                Put::Stored(_) | Put::Refused => {}
                Put::Conflict | Put::Missing => attempts.after_loss(&name(stream, next)).await?,
                Put::Unknown(fault) | Put::Failed(fault) => attempts.after(fault).await?,
            }
        }
    }
}

/// Transactions that are put together.
struct Group {
    sequence: u64,
    write_id: u128,
    bytes: Bytes,
    tickets: Vec<u64>,
    /// Numbers of its transactions.
    numbers: Vec<u64>,
    /// The clock of the oldest stamp in it.
    oldest_us: u64,
    /// A put of it had no answer: it may have landed, or land yet, whatever comes of the next one.
    is_unclear: bool,
}

/// A transaction that is in no group yet.
struct Unsent {
    ticket: u64,
    number: u64,
    oldest_us: u64,
    frame: Bytes,
}

#[derive(Default)]
struct Waiting {
    pending: Vec<Unsent>,
    /// Bytes of these.
    bytes: usize,
    /// Those who wait: nobody else is told what came of it.
    there: HashSet<u64>,
    outcomes: HashMap<u64, Append>,
    /// Numbers of transactions that are committed, and of which nobody was told: whoever waited gave
    /// up, or had no answer before. At most [`SETTLED_MAX`], the newest.
    settled: BTreeSet<u64>,
}

impl Waiting {
    /// Takes a transaction, if there is room. There always is for one alone.
    fn enter(&mut self, unsent: Unsent) -> bool {
        let bytes = self.bytes + unsent.frame.len();
        let has_room = bytes <= PENDING_BYTES_MAX && self.pending.len() < PENDING_MAX;
        if !has_room && !self.pending.is_empty() {
            return false;
        }
        self.bytes = bytes;
        self.pending.push(unsent);
        true
    }

    /// Takes it out again, if no group has it yet: it is not put any more.
    fn leave(&mut self, ticket: u64) {
        let at = self.pending.iter().position(|unsent| unsent.ticket == ticket);
        if let Some(at) = at {
            let gone = self.pending.remove(at);
            self.bytes -= gone.frame.len();
        }
    }
}

struct AppendState {
    next: u64,
    is_fenced: bool,
    /// A group whose outcome is not known: it is settled before anything else is put.
    open: Option<Group>,
}

struct ObjectAppender {
    log: ObjectLog,
    stream: Stream,
    waiting: Mutex<Waiting>,
    state: tokio::sync::Mutex<AppendState>,
    tickets: AtomicU64,
}

impl ObjectAppender {
    fn new(log: ObjectLog, stream: Stream) -> ObjectAppender {
        let state = AppendState { next: 0, is_fenced: false, open: None };
        let (waiting, state) = (Mutex::default(), tokio::sync::Mutex::new(state));
        ObjectAppender { log, stream, waiting, state, tickets: AtomicU64::new(0) }
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a group, and finds out what came of it.
    async fn settle(&self, group: &mut Group) -> Append {
        let log = &self.log;
        let name = name(self.stream, group.sequence);
        let read_back = log.settings.rules.hold(Rule::ReadBack);
        let in_order = log.settings.rules.hold(Rule::InOrder);
        let mut attempts = Attempts::new(&log.cloud, &log.settings);
        loop {
            let put = log.cloud.objects.put(&name, group.bytes.clone(), PutIf::Absent).await;
            let fault = match put {
                Put::Stored(_) => return Append::Committed,
                // A blind client takes its own success for another's.
                Put::Refused if !read_back => {
                    let cause = "refused".to_owned();
                    return Append::Failed(Fault::Invalid { what: name, cause });
                }
                Put::Conflict | Put::Missing => Fault::Throttled { what: name.clone() },
                Put::Refused => {
                    group.is_unclear = true;
                    let cause = "refused, and then not there".to_owned();
                    Fault::Unknown { what: name.clone(), cause }
                }
                // What a client does that goes on to the next number.
                Put::Unknown(fault) if !in_order => return Append::Unknown(fault),
                Put::Unknown(fault) => {
                    group.is_unclear = true;
                    fault
                }
                Put::Failed(fault) if fault.is_transient() => fault,
                // Says nothing of an earlier attempt, which can land yet: the number stays taken.
                Put::Failed(fault) if group.is_unclear => return Append::Unknown(fault),
                Put::Failed(fault) => return Append::Failed(fault),
            };
            // Refused, or no answer: the object itself says whose it is (H3).
            if read_back && !matches!(fault, Fault::Throttled { .. }) {
                match log.get_surely(self.stream, group.sequence).await {
                    Ok(Some(bytes)) => return self.whose(group, &bytes, fault).await,
                    Ok(None) => {}
                    Err(_) => return Append::Unknown(fault),
                }
            }
            if attempts.after(fault.clone()).await.is_err() {
                return match group.is_unclear {
                    true => Append::Unknown(fault),
                    false => Append::Failed(fault),
                };
            }
        }
    }

    /// What it means for a group that this is what has its number.
    async fn whose(&self, group: &Group, bytes: &Bytes, fault: Fault) -> Append {
        match decode(bytes, self.stream, group.sequence) {
            Ok(LogObject::Transactions { write_id, .. }) if write_id == group.write_id => {
                Append::Committed
            }
            // Only a fence is put into a stream by anyone else.
            _ if !group.is_unclear => Append::Fenced,
            // One that ends the stream is the last there is. What lies behind another found this number
            // taken, by us: it was applied and freed since.
            _ => match self.log.last(self.stream).await {
                Ok(Some((last, true))) if last > group.sequence => Append::Committed,
                // Anybody's, or a fence that was damaged since: it tells nothing.
                Ok(Some((last, false))) if last > group.sequence => Append::Unknown(fault),
                Ok(_) => Append::Fenced,
                Err(_) => Append::Unknown(fault),
            },
        }
    }

    /// Settles a group that was left open. It is put again only as long as it is young.
    async fn settle_again(&self, group: &mut Group) -> Append {
        let log = &self.log;
        if !log.settings.rules.hold(Rule::OpenAge) {
            return self.settle(group).await;
        }
        // Not counted on from an earlier answer: the machine may have stood still for long.
        match catalog::read_database(&log.cloud, &log.settings).await {
            Ok(Some((_, date_ms))) => {
                let age_us = (date_ms * 1000).saturating_sub(group.oldest_us);
                match age_us <= log.settings.commit_age_us() {
                    true => self.settle(group).await,
                    false => self.end(group).await,
                }
            }
            Ok(None) => {
                let (what, cause) = (DATABASE.to_owned(), "it is gone".to_owned());
                Append::Unknown(Fault::Unknown { what, cause })
            }
            Err(StoreError::Cloud { source, .. }) => Append::Unknown(source),
            Err(error) => {
                let (what, cause) = (DATABASE.to_owned(), error.to_string());
                Append::Unknown(Fault::Unknown { what, cause })
            }
        }
    }

    /// Finds out what came of a group that may not be put any more. If it is not there the stream ends
    /// here: behind its fence the group never is.
    async fn end(&self, group: &Group) -> Append {
        let log = &self.log;
        let name = name(self.stream, group.sequence);
        let unknown = |cause: String| Fault::Unknown { what: name.clone(), cause };
        let ended = async {
            let there = log.get_surely(self.stream, group.sequence).await?;
            if there.is_some() {
                return Ok(there);
            }
            log.fence(self.stream, self.stream.epoch).await?;
            log.get_surely(self.stream, group.sequence).await
        };
        match ended.await {
            Ok(Some(bytes)) => {
                let fault = unknown("too old to be put again".to_owned());
                self.whose(group, &bytes, fault).await
            }
            // The fence lies elsewhere: either this number was taken before, and freed since, or all of
            // the stream is gone.
            Ok(None) => match log.last(self.stream).await {
                Ok(Some((last, true))) if last > group.sequence => Append::Committed,
                _ => Append::Unknown(unknown("its stream is gone".to_owned())),
            },
            Err(error) => Append::Unknown(unknown(error.to_string())),
        }
    }

    /// Takes what waits, up to a group.
    fn group(&self, sequence: u64) -> Option<Group> {
        let mut waiting = self.waiting();
        let mut bytes = 0;
        let mut count = 0;
        for unsent in &waiting.pending {
            bytes += unsent.frame.len();
            if count > 0 && bytes > GROUP_BYTES_MAX {
                break;
            }
            count += 1;
        }
        if count == 0 {
            return None;
        }
        let (mut tickets, mut numbers, mut frames) = (Vec::new(), Vec::new(), Vec::new());
        let mut oldest_us = u64::MAX;
        let rest = waiting.pending.split_off(count);
        for unsent in std::mem::replace(&mut waiting.pending, rest) {
            waiting.bytes -= unsent.frame.len();
            tickets.push(unsent.ticket);
            numbers.push(unsent.number);
            oldest_us = oldest_us.min(unsent.oldest_us);
            frames.push(unsent.frame);
        }
        let write_id = self.log.cloud.chance.next_u128();
        let bytes = encode(self.stream, sequence, write_id, &frames);
        let is_unclear = false;
        Some(Group { sequence, write_id, bytes, tickets, numbers, oldest_us, is_unclear })
    }
}

impl Drop for ObjectAppender {
    fn drop(&mut self) {
        self.log.own().forget(self.stream);
    }
}

/// A place among those who wait. Whoever stops waiting leaves nothing behind: what is in no group
/// yet is not put any more.
struct Place<'a> {
    appender: &'a ObjectAppender,
    ticket: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut waiting = self.appender.waiting();
        waiting.there.remove(&self.ticket);
        waiting.leave(self.ticket);
        waiting.outcomes.remove(&self.ticket);
    }
}

#[async_trait]
impl Appender for ObjectAppender {
    async fn append(&self, transaction: &Transaction, _is_whole: bool) -> Append {
        let number = transaction.number;
        let oldest_us = transaction.entries.iter().map(Entry::oldest_us).min().unwrap_or(u64::MAX);
        let place = self.place();
        let (ticket, frame) = (place.ticket, transaction.encode());
        if !self.waiting().enter(Unsent { ticket, number, oldest_us, frame }) {
            let what = format!("{}, where too much waits for earlier puts", prefix(self.stream));
            return Append::Failed(Fault::Throttled { what });
        }
        self.wait(&place, number).await
    }

    async fn outcome(&self, number: u64) -> Append {
        self.wait(&self.place(), number).await
    }
}

impl ObjectAppender {
    fn place(&self) -> Place<'_> {
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        self.waiting().there.insert(ticket);
        Place { appender: self, ticket }
    }

    /// Puts what waits, and settles what is open, until it is known what came of a transaction.
    async fn wait(&self, place: &Place<'_>, number: u64) -> Append {
        let ticket = place.ticket;
        loop {
            // Whoever holds the state puts for all who wait. If its future is dropped, the group
            // stays in `open`, and the next one settles it.
            let mut state = self.state.lock().await;
            let next = state.next;
            {
                let mut waiting = self.waiting();
                // In this attempt or in one before.
                if waiting.settled.remove(&number) {
                    return Append::Committed;
                }
                if let Some(outcome) = waiting.outcomes.remove(&ticket) {
                    return outcome;
                }
            }
            if state.is_fenced {
                let mut waiting = self.waiting();
                waiting.pending.clear();
                waiting.bytes = 0;
                return Append::Fenced;
            }
            match &mut state.open {
                // Whoever began to put it is gone, or had no answer.
                Some(group) => group.is_unclear = true,
                none => *none = self.group(next),
            }
            let Some(group) = &mut state.open else {
                // Neither waiting nor settled: it was in a group that could not be settled.
                let what = prefix(self.stream);
                return Append::Unknown(Fault::Unknown { what, cause: "given up".into() });
            };
            // It may be there before anybody here knows, and be so if nobody waits for it any more.
            self.log.own().doubt(self.stream, true);
            let outcome = match group.is_unclear {
                true => self.settle_again(group).await,
                false => self.settle(group).await,
            };
            let tickets = group.tickets.clone();
            match &outcome {
                Append::Committed => {
                    // After an attempt without an answer it may have been there for long.
                    let oldest_us = if group.is_unclear { 0 } else { group.oldest_us };
                    let (number, now) = (group.sequence, Now::of(&*self.log.cloud.clock));
                    self.log.own().put(self.stream, number, &group.bytes, oldest_us, now);
                    let mut waiting = self.waiting();
                    // Before those of this group: whoever waits for them is to be told.
                    let room = SETTLED_MAX.saturating_sub(group.numbers.len());
                    while waiting.settled.len() > room {
                        waiting.settled.pop_first();
                    }
                    waiting.settled.extend(&group.numbers);
                    state.next += 1;
                    state.open = None;
                }
                Append::Fenced => {
                    state.is_fenced = true;
                    state.open = None;
                }
                Append::Failed(_) => {
                    self.log.own().doubt(self.stream, false);
                    state.open = None;
                }
                Append::Unknown(_) if !self.log.settings.rules.hold(Rule::InOrder) => {
                    state.next += 1;
                    state.open = None;
                }
                // It stays open: the number may be taken, or be taken yet.
                Append::Unknown(_) => {
                    if let Some(group) = &mut state.open {
                        group.tickets.clear();
                    }
                }
            }
            let mut waiting = self.waiting();
            let is_ours = tickets.contains(&ticket);
            for ticket in tickets {
                if waiting.there.contains(&ticket) && outcome != Append::Committed {
                    waiting.outcomes.insert(ticket, outcome.clone());
                }
            }
            if let (Append::Unknown(fault), false) = (outcome, is_ours) {
                // An earlier group stands in the way and cannot be settled: ours was never put. Nor may
                // the next one who waits put it, before we are gone: it is said here that it failed.
                waiting.leave(ticket);
                return Append::Failed(fault);
            }
        }
    }
}

#[async_trait]
impl Log for ObjectLog {
    async fn open(
        &self,
        client: u64,
        epoch: u64,
        fence_from: u64,
    ) -> Result<Box<dyn Appender>, StoreError> {
        if self.settings.rules.hold(Rule::EpochFence) {
            for old in fence_from..epoch {
                self.fence(Stream { client, epoch: old }, epoch).await?;
                reached(&self.cloud, FailPoint::Fencing).await;
            }
        }
        let stream = Stream { client, epoch };
        self.own().begin(stream);
        Ok(Box::new(ObjectAppender::new(self.clone(), stream)))
    }

    async fn scopes(&self, _clients: &[u64]) -> Result<Vec<Scope>, StoreError> {
        // What was seen to the end before needs no second look.
        let streams = self.streams().await?;
        // Nor is there any to what is gone for good.
        self.cursors().retain(|stream, _| streams.contains_key(stream));
        self.held().retain(|stream, _| streams.contains_key(stream));
        let is_new = |(stream, last): &(Stream, u64)| *last >= self.cursor(*stream);
        Ok(streams.into_iter().filter(is_new).map(|(stream, _)| Scope::Stream(stream)).collect())
    }

    fn scope_of(&self, _page: PageId, stream: Stream) -> Scope {
        Scope::Stream(stream)
    }

    fn forwards(&self, _clients: &[u64]) -> Vec<u64> {
        Vec::new()
    }

    async fn forward(&self, _client: u64, _most: usize) -> Result<Forwarded, StoreError> {
        // Checkpoints look into the streams themselves.
        Ok(Forwarded::default())
    }

    async fn drain(&self, scope: Scope, most: usize) -> Result<Batch, StoreError> {
        let Scope::Stream(stream) = scope else { return Ok(Batch::default()) };
        let mut batch = Batch::default();
        // Whoever passes over some of it looks behind that, as far as the list goes.
        let passes_over = self.held().get(&stream).is_some_and(|held| !held.numbers.is_empty());
        let now = Now::of(&*self.cloud.clock);
        let own = if passes_over { None } else { self.own().numbers(stream, now) };
        // What is in memory is not read, listed or not.
        let is_own = self.own().is_young(stream, now);
        let (mut numbers, mut more) = match own {
            Some(own) => (own, false),
            None => self.numbers(stream, None).await?,
        };
        let cursor = self.cursor(stream);
        let held = self.take_held(stream, cursor, &numbers);
        // What is passed over can be more than one list has: what lies behind it is looked for.
        let is_all = |numbers: &[u64]| {
            !held.is_empty() && numbers.iter().all(|it| *it < cursor || held.contains(it))
        };
        while more && numbers.len() <= HELD_MAX && is_all(&numbers) {
            let (next, is_more) = self.numbers(stream, numbers.last().copied()).await?;
            if next.is_empty() {
                break;
            }
            (numbers, more) = ([numbers, next].concat(), is_more);
        }
        if more {
            batch.left = Left::Backlog;
        }
        let mut has_held = false;
        let (mut read, mut bytes_read) = (0, 0);
        let is_new = |number: &u64| *number >= cursor && !held.contains(number);
        let new = numbers.iter().copied().filter(is_new).map(|number| match is_own {
            true => Wanted::Own(stream, number),
            false => Wanted::Surely(stream, number),
        });
        let mut ahead = Ahead::new(self, new.collect());
        // What is in memory takes no time: then bytes and records alone are the bound.
        let objects_max = if is_own { usize::MAX } else { DRAIN_OBJECTS_MAX };
        // The last number that is believed, and objects that are not.
        let (mut before, mut strays) = (None, 0);
        for number in numbers {
            let name = name(stream, number);
            let follows = number == cursor || before == Some(number.wrapping_sub(1));
            let last = before.replace(number);
            if number < cursor {
                // Applied before, and kept because it was the newest then.
                batch.tickets.push(Ticket::Object { name });
                continue;
            }
            if held.contains(&number) {
                has_held = true;
                continue;
            }
            if batch.entries.len() >= most
                || read == objects_max
                || strays == STRAYS_MAX
                || bytes_read >= DRAIN_BYTES_MAX
            {
                batch.left = Left::Backlog;
                break;
            }
            // Not more than it takes until the batch is full, if objects hold as much as those before.
            let of_each = batch.entries.len().checked_div(read).unwrap_or(0).max(1);
            let wanted = (most - batch.entries.len()).div_ceil(of_each);
            read += 1;
            // Gone since the list: someone else applied it.
            let Some(bytes) =
                ahead.next(wanted.min((objects_max - read).saturating_add(1))).await?
            else {
                continue;
            };
            bytes_read += bytes.len();
            match decode(&bytes, stream, number) {
                // No reason to stop: nothing lies behind the fence that ends a stream, and one that
                // arrives late, in a number that was freed meanwhile, ends nothing.
                Ok(LogObject::Fence { .. }) if !self.settings.rules.hold(Rule::PastFences) => break,
                Ok(LogObject::Fence { .. }) => {}
                Ok(LogObject::Transactions { frames, .. }) => {
                    for frame in frames {
                        match Transaction::decode(&frame) {
                            Ok(Body::Here(transaction)) => batch.add(transaction),
                            _ => batch.poison.push(poison(stream, number, frame)),
                        }
                    }
                }
                Err(_) => {
                    batch.poison.push(poison(stream, number, bytes));
                    if !follows {
                        // Somebody else's, as far as can be seen. To count it as applied would take
                        // all that is still to come before it for applied, too.
                        before = last;
                        strays += 1;
                        read -= 1;
                        continue;
                    }
                }
            }
            batch.tickets.push(Ticket::Object { name });
        }
        if strays > 0 && read == 0 {
            // They stay, and would be all that the next drain finds.
            batch.left = Left::Nothing;
        }
        if has_held {
            batch.left = Left::Backlog;
        }
        Ok(batch)
    }

    async fn look(&self, bytes_max: usize) -> Result<Vec<Arc<Vec<Entry>>>, StoreError> {
        self.look_at_streams(bytes_max).await
    }

    async fn pending(
        &self,
        _clients: &[u64],
        after: Option<&str>,
    ) -> Result<PendingPart, StoreError> {
        let (names, more) = self.list(LOG, after.map(str::to_owned)).await?;
        let mut found = Vec::new();
        let sound = names.iter().filter(|name| parse(name).is_some()).cloned();
        let mut ahead = Ahead::new(self, sound.map(Wanted::Named).collect());
        let (mut read, mut bytes_read) = (0, 0);
        for name in &names {
            let Some((stream, number)) = parse(name) else {
                found.push(Pending::Damaged(format!("{name}: no name of a log object")));
                continue;
            };
            if bytes_read >= DRAIN_BYTES_MAX {
                // The rest another time: what is here is held in memory.
                let last = names.iter().take_while(|before| *before != name).last();
                return Ok(PendingPart { found, next: last.cloned() });
            }
            // Not more than it takes until the part is full, if objects are as large as those before.
            let wanted = match bytes_read.checked_div(read) {
                Some(each) => (DRAIN_BYTES_MAX - bytes_read).div_ceil(each.max(1)),
                None => AT_ONCE,
            };
            let bytes = match ahead.next(wanted).await {
                // It does not open: that of one says nothing of the others.
                Err(error @ StoreError::Cloud { source: Fault::Denied { .. }, .. }) => {
                    found.push(Pending::Damaged(with_cause(&error)));
                    continue;
                }
                bytes => bytes?,
            };
            let Some(bytes) = bytes else { continue };
            (read, bytes_read) = (read + 1, bytes_read + bytes.len());
            let frames = match decode(&bytes, stream, number) {
                Ok(LogObject::Transactions { frames, .. }) => frames,
                Ok(LogObject::Fence { .. }) => continue,
                Err(error) => {
                    found.push(Pending::Damaged(format!("{name}: {error}")));
                    continue;
                }
            };
            let mut entries = Vec::new();
            for frame in frames {
                match Transaction::decode(&frame) {
                    Ok(Body::Here(transaction)) => entries.extend(transaction.entries),
                    Ok(Body::Spilled(..)) => {}
                    Err(error) => found.push(Pending::Damaged(format!("{name}: {error}"))),
                }
            }
            found.push(Pending::Records(entries));
        }
        Ok(PendingPart { found, next: names.into_iter().next_back().filter(|_| more) })
    }

    async fn retire(&self) -> Result<u64, StoreError> {
        let mut gone = 0;
        for stream in self.streams().await?.into_keys() {
            if self.get(&client::object(stream.client)).await?.is_none() {
                gone += u64::from(self.retire_stream(stream).await?);
            }
        }
        Ok(gone)
    }

    async fn retire_stream(&self, stream: Stream) -> Result<bool, StoreError> {
        let (numbers, more) = self.numbers(stream, None).await?;
        // What was not seen applied by this process may not be applied by anyone.
        let mut is_gone = !more && numbers.last().is_none_or(|last| *last < self.cursor(stream));
        for number in numbers {
            if !is_gone {
                break;
            }
            let outcome = self.cloud.objects.delete(&name(stream, number), None).await;
            is_gone = outcome == Delete::Gone;
        }
        if is_gone {
            self.cursors().remove(&stream);
            self.held().remove(&stream);
            self.own().forget(stream);
        }
        Ok(is_gone)
    }

    async fn settle(&self, before_us: u64) -> Result<bool, StoreError> {
        let streams = self.streams().await?.into_keys().map(|stream| async move {
            let (numbers, more) = self.numbers(stream, None).await?;
            for number in numbers {
                if !self.empty(stream, number, before_us).await? {
                    return Ok(false);
                }
            }
            Ok::<bool, StoreError>(!more)
        });
        // To the end, whatever is met: what is emptied now is not in the way the next time.
        let all: Vec<_> = stream::iter(streams).buffered(SETTLED_AT_ONCE).collect().await;
        all.into_iter().try_fold(true, |all, one| Ok(all & one?))
    }

    fn pass_over(&self, tickets: &[Ticket]) {
        let mut held = self.held();
        for (stream, numbers) in by_stream(tickets) {
            let held = held.entry(stream).or_default();
            held.is_next_past = true;
            if held.numbers.len() < HELD_MAX {
                held.numbers.extend(numbers);
            }
        }
    }

    async fn ack(&self, tickets: Vec<Ticket>) -> Result<(), StoreError> {
        for (stream, mut numbers) in by_stream(&tickets) {
            numbers.sort_unstable();
            let Some(newest) = numbers.pop() else { continue };
            {
                let (mut cursors, mut all) = (self.cursors(), self.held());
                let cursor = cursors.entry(stream).or_default();
                // Below it everything is applied, or gone.
                let mut next = newest + 1;
                if let Some(held) = all.get_mut(&stream) {
                    numbers.iter().chain([&newest]).for_each(|number| {
                        held.numbers.remove(number);
                    });
                    next =
                        held.numbers.range(*cursor..).next().map_or(next, |held| next.min(*held));
                }
                *cursor = (*cursor).max(next);
                self.own().applied(stream, *cursor);
            }
            // The newest of these may be the newest of the stream, or its fence. It goes with the
            // next ones, if there are any.
            if !self.settings.rules.hold(Rule::KeepNewest) {
                numbers.push(newest);
            }
            // In any order: what stays behind after a crash is applied again, and all of it is older
            // than the newest.
            let frees: Vec<_> =
                numbers.into_iter().map(|number| self.free(stream, number)).collect();
            let mut frees = stream::iter(frees).buffer_unordered(AT_ONCE);
            while let Some(freed) = frees.next().await {
                freed?;
            }
        }
        Ok(())
    }
}

/// The numbers of each stream that tickets are for.
fn by_stream(tickets: &[Ticket]) -> BTreeMap<Stream, Vec<u64>> {
    let mut streams: BTreeMap<Stream, Vec<u64>> = BTreeMap::new();
    for ticket in tickets {
        if let Ticket::Object { name } = ticket
            && let Some((stream, number)) = parse(name)
        {
            streams.entry(stream).or_default().push(number);
        }
    }
    streams
}

fn poison(stream: Stream, number: u64, bytes: Bytes) -> Poison {
    // The same bytes get the same name, however often they are found.
    let sum = super::fingerprint(&bytes);
    let Stream { client, epoch } = stream;
    Poison { name: format!("log-{client:016x}-{epoch:016x}-{number:016x}-{sum}"), bytes }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use super::*;
    use crate::{
        cloud::embedded::{self, Memory},
        log::transaction,
        record::{Key, Payload},
        stamp::Stamp,
    };

    fn log() -> ObjectLog {
        ObjectLog::new(embedded::memory(Arc::new(Memory::new())), Settings::default())
    }

    async fn put(log: &ObjectLog, stream: Stream, sequence: u64, frames: &[Bytes]) {
        let bytes = encode(stream, sequence, 1, frames);
        let put = log.cloud.objects.put(&name(stream, sequence), bytes, PutIf::Absent).await;
        assert!(matches!(put, Put::Stored(_)));
    }

    fn frame(stamp: Stamp) -> Bytes {
        let entry = transaction::primary(PageId(1), PageId(1), stamp, Key::new("k").unwrap(), None);
        let Stream { client, epoch } = Stream { client: 1, epoch: 1 };
        Transaction { client, epoch, number: 1, total: 1, entries: vec![entry] }.encode()
    }

    #[tokio::test]
    async fn streams_that_are_gone_are_forgotten() {
        let log = log();
        let streams = [1, 2, 3].map(|epoch| Stream { client: 7, epoch });
        for stream in streams {
            put(&log, stream, 0, &[]).await;
            let batch = log.drain(Scope::Stream(stream), 10).await.unwrap();
            log.ack(batch.tickets).await.unwrap();
        }
        assert_eq!(log.cursors().len(), 3);
        assert!(log.retire_stream(streams[0]).await.unwrap());
        assert_eq!(log.cursors().len(), 2);
        // Another process takes one.
        log.cloud.objects.delete(&name(streams[1], 0), None).await;
        log.scopes(&[]).await.unwrap();
        assert_eq!(log.cursors().keys().copied().collect::<Vec<_>>(), [streams[2]]);
    }

    /// A drain took on 64 objects, however large; and of small ones never more, however many there
    /// were, so that each page was put as often.
    #[tokio::test]
    async fn drains_are_bounded_by_objects_and_by_bytes() {
        let log = log();
        let [many, large] = [7, 8].map(|client| Stream { client, epoch: 1 });
        for n in 0..DRAIN_OBJECTS_MAX as u64 + 1 {
            let frame = frame(Stamp { clock: n + 1, client: 7, sequence: n + 1 });
            put(&log, many, n, &[frame]).await;
        }
        let batch = log.drain(Scope::Stream(many), 1000).await.unwrap();
        assert_eq!((batch.entries.len(), batch.left), (DRAIN_OBJECTS_MAX, Left::Backlog));
        for n in 0..6 {
            put(&log, large, n, &[Bytes::from(vec![0; 4 << 20])]).await;
        }
        let batch = log.drain(Scope::Stream(large), 1000).await.unwrap();
        assert_eq!((batch.poison.len(), batch.left), (4, Left::Backlog));
    }

    /// Numbers at the end of what a number can be stopped the process that met them.
    #[tokio::test]
    async fn numbers_that_nobody_counted_to_are_no_log_objects() {
        let log = log();
        let stream = Stream { client: 7, epoch: 1 };
        put(&log, stream, 0, &[frame(Stamp { clock: 5, client: 7, sequence: 1 })]).await;
        let last = name(stream, u64::MAX);
        log.cloud.objects.put(&last, "noise".into(), PutIf::Absent).await;
        let batch = log.drain(Scope::Stream(stream), 10).await.unwrap();
        assert_eq!((batch.entries.len(), batch.poison.len()), (1, 0));
        log.ack(batch.tickets).await.unwrap();
        assert_eq!(log.cursor(stream), 1);
        let pending = log.pending(&[], None).await.unwrap().found;
        let damaged =
            pending.iter().filter(|it| matches!(it, Pending::Damaged(it) if it.contains(&last)));
        assert_eq!(damaged.count(), 1, "it is named");
        // A stamp after which there is none is in quarantine.
        put(&log, stream, 1, &[frame(Stamp { clock: u64::MAX, client: 7, sequence: 2 })]).await;
        let batch = log.drain(Scope::Stream(stream), 10).await.unwrap();
        assert_eq!((batch.entries.len(), batch.poison.len()), (0, 1));
    }

    async fn noise(log: &ObjectLog, name: &str) {
        log.cloud.objects.put(name, "noise".into(), PutIf::Absent).await;
    }

    async fn drained(log: &ObjectLog, stream: Stream) -> (usize, usize, Left) {
        let batch = log.drain(Scope::Stream(stream), 1000).await.unwrap();
        log.ack(batch.tickets).await.unwrap();
        (batch.entries.len(), batch.poison.len(), batch.left)
    }

    /// A number far ahead that was no log object was taken for the newest of its stream: what was
    /// committed after that counted as applied, and was deleted.
    #[tokio::test]
    async fn a_stray_number_is_not_believed() {
        let stream = Stream { client: 7, epoch: 1 };
        let frame_of = |n: u64| frame(Stamp { clock: n + 1, client: 7, sequence: n + 1 });
        let strays = [1 << 40, (1 << 40) + 1].map(|number| name(stream, number));
        // There before the stream, or after its first objects.
        for first in [0, 3] {
            let log = log();
            for n in 0..first {
                put(&log, stream, n, &[frame_of(n)]).await;
            }
            for stray in &strays {
                noise(&log, stray).await;
            }
            for _ in 0..2 {
                let (_, poison, left) = drained(&log, stream).await;
                assert_eq!((poison, left), (2, Left::Nothing), "{first}");
            }
            assert_eq!(log.cursor(stream), first);
            put(&log, stream, first, &[frame_of(first)]).await;
            assert_eq!(drained(&log, stream).await, (1, 2, Left::Nothing), "{first}");
            // Nor does anyone take it for the end of the stream, behind which a fence belongs.
            let outcome = log.fence(stream, 2).await;
            let Err(StoreError::Damaged { object, .. }) = &outcome else { panic!("{outcome:?}") };
            assert_eq!(*object, strays[0]);
            for stray in &strays {
                log.cloud.objects.delete(stray, None).await;
            }
            log.fence(stream, 2).await.unwrap();
            assert_eq!(log.last(stream).await.unwrap(), Some((first + 1, true)));
        }
    }

    /// What is damaged within a stream is passed over, as before, and counts as applied.
    #[tokio::test]
    async fn a_damaged_object_ends_no_stream() {
        let log = log();
        let stream = Stream { client: 7, epoch: 1 };
        let frame_of = |n: u64| frame(Stamp { clock: n + 1, client: 7, sequence: n + 1 });
        noise(&log, &name(stream, 0)).await;
        put(&log, stream, 1, &[frame_of(1)]).await;
        noise(&log, &name(stream, 2)).await;
        assert_eq!(drained(&log, stream).await, (1, 2, Left::Nothing));
        assert_eq!(log.cursor(stream), 3);
        // The newest stays, and a fence comes behind it, if it can be told that it is the newest.
        assert_eq!(
            log.last(stream).await.unwrap_err().to_string(),
            format!(
                "{} is damaged or foreign: restore it from a copy, or, if no earlier life of its \
                 client runs any more, delete it after a sweep: its bytes are in quarantine/ then",
                name(stream, 2)
            )
        );
        put(&log, stream, 3, &[frame_of(3)]).await;
        log.fence(stream, 2).await.unwrap();
        assert_eq!(log.last(stream).await.unwrap(), Some((4, true)));
    }

    /// Each drain read the same two hundred objects that were none of the stream, and never came to
    /// what lies behind them.
    #[tokio::test]
    async fn strays_are_in_nobodys_way() {
        let log = log();
        let stream = Stream { client: 7, epoch: 1 };
        for n in 0..250 {
            noise(&log, &name(stream, 2 + 2 * n)).await;
        }
        put(&log, stream, 1000, &[frame(Stamp { clock: 5, client: 7, sequence: 1 })]).await;
        assert_eq!(drained(&log, stream).await, (1, 250, Left::Nothing));
    }

    /// Noise behind a fence made a transaction that the fence had kept out count as committed.
    #[tokio::test]
    async fn noise_behind_a_fence_commits_nothing() {
        let log = log();
        let stream = Stream { client: 1, epoch: 1 };
        let appender = appender(&log, stream);
        // Its put had no answer, and never came.
        let frame = frame(Stamp::default());
        assert!(appender.waiting().enter(Unsent { ticket: 9, number: 1, oldest_us: 0, frame }));
        let mut group = appender.group(0).unwrap();
        group.is_unclear = true;
        let fence = encode_fence(stream, 0, 5, 2);
        log.cloud.objects.put(&name(stream, 0), fence, PutIf::Absent).await;
        assert_eq!(appender.settle(&mut group).await, Append::Fenced);
        noise(&log, &name(stream, 1)).await;
        let outcome = appender.settle(&mut group).await;
        assert!(matches!(outcome, Append::Unknown(_)), "{outcome:?}");
    }

    /// It was told that it failed, and still waited to be put: whoever had the state next put it.
    #[tokio::test]
    async fn what_is_told_to_have_failed_waits_no_more() {
        let log = log();
        let appender = appender(&log, Stream { client: 1, epoch: 1 });
        let unsent = |ticket, number| {
            let frame = frame(Stamp { clock: number, client: 1, sequence: number });
            Unsent { ticket, number, oldest_us: number, frame }
        };
        // Its put had no answer, and there is no database that would tell whether it is too old by now.
        assert!(appender.waiting().enter(unsent(u64::MAX, 1)));
        let mut group = appender.group(0).unwrap();
        group.is_unclear = true;
        appender.state.lock().await.open = Some(group);
        let place = appender.place();
        assert!(appender.waiting().enter(unsent(place.ticket, 2)));
        let outcome = appender.wait(&place, 2).await;
        assert!(matches!(outcome, Append::Failed(_)), "{outcome:?}");
        // Before the place is given up.
        assert_eq!(left(&appender), (0, 0));
        drop(place);
    }

    /// The lowest number of all that are remembered was forgotten first: of an early transaction that
    /// was tried again, while it was being told.
    #[tokio::test]
    async fn whoever_waits_is_told_before_it_is_forgotten() {
        let log = log();
        let stream = Stream { client: 1, epoch: 1 };
        let appender = appender(&log, stream);
        appender.waiting().settled.extend(2..=SETTLED_MAX as u64 + 1);
        let entry = transaction::primary(
            PageId(1),
            PageId(1),
            Stamp { clock: 5, client: 1, sequence: 1 },
            Key::new("k").unwrap(),
            None,
        );
        let early = Transaction { client: 1, epoch: 1, number: 1, total: 1, entries: vec![entry] };
        assert_eq!(appender.append(&early, true).await, Append::Committed);
        assert!(appender.waiting().settled.len() < SETTLED_MAX);
    }

    /// What waited had no end: each commit that came while a put took long was held in memory.
    #[tokio::test]
    async fn what_waits_has_a_bound() {
        let log = log();
        let appender = appender(&log, Stream { client: 1, epoch: 1 });
        let transaction = |number: u64| {
            let payload = Payload::new(vec![7; 30 << 10]).unwrap();
            let entry = |n: u64| {
                let stamp = Stamp { clock: 5, client: 1, sequence: number * 100 + n };
                let key = Key::new(n.to_string()).unwrap();
                transaction::primary(PageId(1), PageId(1), stamp, key, Some(payload.clone()))
            };
            let entries: Vec<Entry> = (0..60).map(entry).collect();
            Transaction { client: 1, epoch: 1, number, total: 60, entries }
        };
        let all: Vec<Transaction> = (1..=40).map(transaction).collect();
        let one = all[0].encode().len();
        // A put is under way.
        let put = appender.state.lock().await;
        let (mut waiting, mut refused) = (Vec::new(), Vec::new());
        for one in &all {
            let mut append = appender.append(one, true);
            match futures::poll!(append.as_mut()) {
                Poll::Pending => waiting.push(append),
                Poll::Ready(Append::Failed(Fault::Throttled { .. })) => refused.push(one),
                Poll::Ready(outcome) => panic!("{outcome:?}"),
            }
        }
        assert_eq!((waiting.len(), refused.len()), (PENDING_BYTES_MAX / one, 40 - waiting.len()));
        assert_eq!(appender.waiting().bytes, waiting.len() * one);
        // Who gives up makes room for another.
        drop(waiting.pop());
        let mut append = appender.append(refused[0], true);
        assert!(futures::poll!(append.as_mut()).is_pending());
        waiting.push(append);
        drop(put);
        let outcomes = futures::future::join_all(waiting).await;
        assert!(outcomes.iter().all(|outcome| *outcome == Append::Committed), "{outcomes:?}");
        assert_eq!(appender.append(refused[1], true).await, Append::Committed);
        assert_eq!(left(&appender), (0, 0));
        // Nor may there be any number of small ones; one alone always may.
        let unsent =
            |len| Unsent { ticket: 9, number: 1, oldest_us: 0, frame: vec![0; len].into() };
        let mut waiting = Waiting::default();
        assert!(waiting.enter(unsent(PENDING_BYTES_MAX + 1)) && !waiting.enter(unsent(1)));
        let mut waiting = Waiting::default();
        assert!((0..PENDING_MAX).all(|_| waiting.enter(unsent(1))) && !waiting.enter(unsent(1)));
    }

    /// How many wait, and bytes of them.
    fn left(appender: &ObjectAppender) -> (usize, usize) {
        let waiting = appender.waiting();
        (waiting.pending.len(), waiting.bytes)
    }

    fn appender(log: &ObjectLog, stream: Stream) -> ObjectAppender {
        ObjectAppender::new(log.clone(), stream)
    }

    /// Names that are no log object's own were looked at by every sweep, and never went.
    #[test]
    fn names_are_written_in_one_way() {
        let stream = Stream { client: 0xabc, epoch: 1 };
        assert_eq!(parse(&name(stream, 0xf)), Some((stream, 0xf)));
        for other in [
            name(stream, 0xf).to_uppercase().replace("LOG", "log"),
            "log/+000000000000abc/0000000000000001/000000000000000f".into(),
        ] {
            assert_eq!(parse(&other), None, "{other}");
        }
    }
}
