//! The queue service: at least once, in any order, a part at a time.

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Answer, Caller, Event, Fate, Faults, Mishap, Silence, World, faults::Met};
use crate::cloud::{
    Fault, Message, Queue, QueueSettings, Receipt, Sent, ToSend,
    ledger::CallKind,
    queue::{BATCH_MAX, MESSAGE_BYTES_MAX},
};

/// How long a FIFO queue remembers deduplication ids.
const DEDUPLICATION_US: u64 = 300_000_000;

struct Stored {
    id: u64,
    body: Bytes,
    /// What is in it, if it is sealed.
    shown: Bytes,
    group: Option<String>,
    sent_us: u64,
    visible_us: u64,
    receives: u32,
    is_deleted: bool,
}

struct StoredQueue {
    settings: QueueSettings,
    /// Deleted ones stay for a while: some are delivered again.
    messages: Vec<Stored>,
    deduplication: BTreeMap<String, u64>,
}

impl StoredQueue {
    /// Forgets what is too old, and what was deleted, unless that may come again.
    fn forget(&mut self, now_us: u64, faults: &Faults, met: &mut Met) {
        let retention = self.settings.retention;
        let retention = faults.expires.map_or(retention, |expires| expires.min(retention));
        let retention_us = retention.as_micros() as u64;
        self.messages.retain(|message| {
            let is_kept = now_us - message.sent_us < retention_us;
            if !is_kept && !message.is_deleted {
                met.count(Mishap::Expired);
            }
            is_kept && (!message.is_deleted || faults.redelivered > 0.0)
        });
    }
}

/// Whether a queue holds nothing but the token of a lock, as the protocols of 2008 name them.
fn has_token(queue: &str) -> bool {
    queue.starts_with("lock-")
}

#[derive(Default)]
pub(crate) struct Service {
    queues: BTreeMap<String, StoredQueue>,
    next: u64,
}

impl Service {
    /// Messages of all queues that nobody deleted.
    pub(crate) fn bodies(&self) -> impl Iterator<Item = &Bytes> {
        let messages = self.queues.values().flat_map(|queue| &queue.messages);
        messages.filter(|message| !message.is_deleted).map(|message| &message.shown)
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.queues.keys().cloned().collect()
    }

    pub(super) fn len(&self) -> usize {
        self.queues.len()
    }

    pub(super) fn depth(&self, queue: &str) -> usize {
        let queue = self.queues.get(queue);
        queue.map_or(0, |queue| queue.messages.iter().filter(|m| !m.is_deleted).count())
    }
}

impl World {
    fn send_now(&self, queue: &str, message: &ToSend) -> Sent {
        let now_us = self.time.now_us();
        let mut state = self.state();
        let poison = state
            .meets(Mishap::Poisoned)
            .then(|| message.body.slice(..state.random.usize(..message.body.len().max(1))));
        let is_delayed = message.group.is_none() && state.meets(Mishap::Delayed);
        let late_max_us = state.faults.late_max.as_micros() as u64;
        let delay_us = if is_delayed { state.random.u64(..=late_max_us) } else { 0 };
        let opener = state.opener.clone();
        let show = |body: &Bytes| match &opener {
            Some(opener) => opener.message(queue, body),
            None => body.clone(),
        };
        let service = &mut state.queues;
        let id = service.next;
        service.next += 2;
        let Some(there) = service.queues.get_mut(queue) else {
            return Sent::Failed(Fault::NoQueue { what: queue.to_owned() });
        };
        if message.body.len() > MESSAGE_BYTES_MAX {
            let cause = "a message that is too large".to_owned();
            return Sent::Failed(Fault::Invalid { what: queue.to_owned(), cause });
        }
        if there.settings.fifo
            && let Some(name) = &message.deduplication
        {
            there.deduplication.retain(|_, at| now_us - *at < DEDUPLICATION_US);
            if there.deduplication.contains_key(name) {
                return Sent::Accepted;
            }
            there.deduplication.insert(name.clone(), now_us);
        }
        // Poison comes beside the message, not in its place: what is damaged after it was accepted
        // is lost, and no protocol gets it back.
        let bodies = [(id, Some(message.body.clone())), (id + 1, poison)];
        for (id, body) in bodies {
            let Some(body) = body else { continue };
            there.messages.push(Stored {
                id,
                shown: show(&body),
                body,
                group: message.group.clone(),
                sent_us: now_us,
                visible_us: now_us + delay_us,
                receives: 0,
                is_deleted: false,
            });
        }
        state.audit(&Event::Sent { queue, body: &show(&message.body) });
        Sent::Accepted
    }

    /// What is in the message that a receipt is for, however stale that is.
    fn body_of(&self, queue: &str, receipt: &Receipt) -> Option<Bytes> {
        let id: u64 = receipt.as_str().split_once('-')?.0.parse().ok()?;
        let state = self.state();
        let there = state.queues.queues.get(queue)?;
        there.messages.iter().find(|message| message.id == id).map(|it| it.shown.clone())
    }

    fn receive_now(
        &self,
        queue: &str,
        max: usize,
        visibility_us: u64,
        samples: bool,
    ) -> Vec<Message> {
        let now_us = self.time.now_us();
        let mut state = self.state();
        let super::State { random, faults, met, queues, .. } = &mut *state;
        let Some(there) = queues.queues.get_mut(queue) else { return Vec::new() };
        there.forget(now_us, faults, met);
        let mut order: Vec<usize> = (0..there.messages.len()).collect();
        if there.settings.fifo {
            // As many of one group as there are, then of the next: what SQS says that it tries.
            let mut ranks = BTreeMap::new();
            for message in &there.messages {
                let next = ranks.len();
                ranks.entry(message.group.as_deref()).or_insert(next);
            }
            order.sort_by_key(|at| ranks[&there.messages[*at].group.as_deref()]);
        } else {
            random.shuffle(&mut order);
        }
        let mut busy: Vec<String> = Vec::new();
        let mut received = Vec::new();
        for at in order {
            let message = &mut there.messages[at];
            let is_there = !message.is_deleted && message.visible_us <= now_us;
            let again = !there.settings.fifo && random.f64() < faults.redelivered;
            if there.settings.fifo && !message.is_deleted {
                // In order within the group; a message in flight, or before it, keeps it busy.
                let group = message.group.clone().unwrap_or_default();
                if busy.contains(&group) {
                    continue;
                }
                if !is_there {
                    busy.push(group);
                    continue;
                }
            }
            if !is_there && !again {
                continue;
            }
            if !is_there {
                met.count(Mishap::Redelivered);
            }
            if samples && random.f64() < faults.sampled {
                met.count(Mishap::Sampled);
                if there.settings.fifo {
                    busy.push(message.group.clone().unwrap_or_default());
                }
                continue;
            }
            if has_token(queue) && met.roll(random, faults, Mishap::LostToken) {
                message.is_deleted = true;
                continue;
            }
            message.receives += 1;
            if !message.is_deleted {
                message.visible_us = now_us + visibility_us;
            }
            received.push(Message {
                body: message.body.clone(),
                closed: None,
                receipt: Receipt::new(&format!("{}-{}", message.id, message.receives)),
                receives: message.receives,
                group: message.group.clone(),
            });
            if received.len() == max {
                break;
            }
        }
        received
    }

    /// A receipt counts until its message is received again; that of a FIFO queue until the message can be,
    /// also if it is not. Of standard queues one that counts no more "succeeds" without an effect, of FIFO
    /// queues it is an error, which is not told here: callers of [`Queue::delete`] are not to know.
    fn find_now(&self, queue: &str, receipt: &Receipt, change: impl FnOnce(&mut bool, &mut u64)) {
        let now_us = self.time.now_us();
        let mut state = self.state();
        let super::State { met, queues, .. } = &mut *state;
        let Some((id, receives)) = receipt.as_str().split_once('-') else { return };
        let (Ok(id), Ok(receives)) = (id.parse::<u64>(), receives.parse::<u32>()) else { return };
        let Some(there) = queues.queues.get_mut(queue) else { return };
        let is_fifo = there.settings.fifo;
        let counts = |m: &Stored| {
            m.receives == receives && (!is_fifo || m.is_deleted || m.visible_us > now_us)
        };
        match there.messages.iter_mut().find(|m| m.id == id) {
            Some(message) if counts(message) => {
                change(&mut message.is_deleted, &mut message.visible_us);
            }
            Some(_) => met.count(Mishap::StaleReceipt),
            None => {}
        }
    }

    fn create_now(&self, queue: &str, settings: QueueSettings) {
        let mut state = self.state();
        state.queues.queues.entry(queue.to_owned()).or_insert_with(|| StoredQueue {
            settings,
            messages: Vec::new(),
            deduplication: BTreeMap::new(),
        });
    }

    fn delete_messages_now(&self, queue: &str, receipts: &[Receipt]) {
        for receipt in receipts {
            let sticks = !self.state().meets(Mishap::Undeleted);
            if sticks {
                self.find_now(queue, receipt, |is_deleted, _| *is_deleted = true);
            }
        }
    }
}

#[async_trait]
impl Queue for Caller {
    async fn create(&self, queue: &str, settings: QueueSettings) -> Result<(), Fault> {
        self.world.ledger.add(CallKind::QueueOther, 0);
        let fate = self.before(queue, 10_000, false).await;
        match fate {
            Fate::Throttled(answer) => return Err(self.throttled(queue, answer)),
            Fate::LostRequest(_) | Fate::Late(_) => return Err(self.lost(queue, fate.silence())),
            Fate::LostAnswer(_) | Fate::Fine => {}
        }
        self.world.create_now(queue, settings);
        self.after(queue).await;
        match fate {
            Fate::LostAnswer(silence) => Err(self.lost(queue, silence)),
            _ => {
                self.answered(Answer::Done);
                self.world.note(self.process, || format!("create {queue}"));
                Ok(())
            }
        }
    }

    async fn send(&self, queue: &str, batch: &[ToSend]) -> Vec<Sent> {
        let world = &self.world;
        assert!((1..=BATCH_MAX).contains(&batch.len()), "1 to 10 messages");
        let bytes = batch.iter().map(|message| message.body.len() as u64).sum();
        world.ledger.add(CallKind::Send, bytes);
        let base_us = world.state().latency.send.as_micros() as u64;
        let fate = self.before(queue, base_us, true).await;
        let all = |outcome: Sent| vec![outcome; batch.len()];
        let outcomes = match fate {
            Fate::Throttled(answer) => all(Sent::Failed(self.throttled(queue, answer))),
            Fate::LostRequest(silence) => all(Sent::Unknown(self.lost(queue, silence))),
            Fate::Late(us) => {
                let (world, messages) = (world.clone(), batch.to_vec());
                let (queue_name, process) = (queue.to_owned(), self.process);
                self.world.time.later(us, move || {
                    for message in &messages {
                        world.send_now(&queue_name, message);
                    }
                    world.note(process, || format!("send {queue_name} arrives late"));
                });
                all(Sent::Unknown(self.lost(queue, Silence::Nothing)))
            }
            Fate::LostAnswer(silence) => {
                batch.iter().for_each(|message| drop(world.send_now(queue, message)));
                all(Sent::Unknown(self.lost(queue, silence)))
            }
            Fate::Fine => batch
                .iter()
                .map(|message| {
                    let is_refused = world.state().meets(Mishap::RefusedMessage);
                    if is_refused {
                        Sent::Failed(Fault::Throttled { what: queue.to_owned() })
                    } else {
                        world.send_now(queue, message)
                    }
                })
                .collect(),
        };
        self.after(queue).await;
        world.note(self.process, || {
            let accepted = outcomes.iter().filter(|sent| **sent == Sent::Accepted).count();
            format!("send {queue} {accepted} of {} accepted", batch.len())
        });
        match fate {
            Fate::Fine => self.answered(Answer::Done),
            Fate::Throttled(_) => {}
            fate => self.time_out(fate.silence()).await,
        }
        outcomes
    }

    async fn receive(
        &self,
        queue: &str,
        max: usize,
        visibility: Duration,
        wait: Duration,
    ) -> Result<Vec<Message>, Fault> {
        let world = &self.world;
        let kind = CallKind::receive();
        world.ledger.add(kind, 0);
        let most = world.state().receive_max;
        assert!((1..=most).contains(&max), "1 to {most} messages");
        let base_us = world.state().latency.receive.as_micros() as u64;
        let fate = self.before(queue, base_us, false).await;
        match fate {
            Fate::Throttled(answer) => return Err(self.throttled(queue, answer)),
            Fate::LostRequest(_) | Fate::Late(_) => {
                self.time_out(fate.silence()).await;
                return Err(self.lost(queue, fate.silence()));
            }
            Fate::LostAnswer(_) | Fate::Fine => {}
        }
        let visibility_us = visibility.as_micros() as u64;
        let mut messages = world.receive_now(queue, max, visibility_us, wait.is_zero());
        if messages.is_empty() && !wait.is_zero() {
            world.time.sleep(wait.as_micros() as u64).await;
            messages = world.receive_now(queue, max, visibility_us, false);
        }
        self.after(queue).await;
        if let Fate::LostAnswer(silence) = fate {
            self.time_out(silence).await;
            return Err(self.lost(queue, silence));
        }
        self.answered(Answer::Done);
        let bytes = messages.iter().map(|message| message.body.len() as u64).sum();
        world.ledger.add_answer(kind, bytes);
        world.note(self.process, || format!("receive {queue} {} messages", messages.len()));
        Ok(messages)
    }

    async fn delete(&self, queue: &str, receipts: &[Receipt]) -> Result<(), Fault> {
        let world = &self.world;
        assert!((1..=BATCH_MAX).contains(&receipts.len()), "1 to 10 receipts");
        world.ledger.add(CallKind::DeleteMessage, 0);
        for body in receipts.iter().filter_map(|receipt| world.body_of(queue, receipt)) {
            world.state().audit(&Event::Acknowledged { queue, body: &body });
        }
        let base_us = world.state().latency.receive.as_micros() as u64;
        let fate = self.before(queue, base_us, true).await;
        match fate {
            Fate::Throttled(answer) => return Err(self.throttled(queue, answer)),
            Fate::LostRequest(_) => {
                self.time_out(fate.silence()).await;
                return Err(self.lost(queue, fate.silence()));
            }
            Fate::Late(us) => {
                let (world, process) = (world.clone(), self.process);
                let (name, receipts) = (queue.to_owned(), receipts.to_vec());
                self.world.time.later(us, move || {
                    world.delete_messages_now(&name, &receipts);
                    world.note(process, || format!("delete {name} arrives late"));
                });
                self.time_out(fate.silence()).await;
                return Err(self.lost(queue, fate.silence()));
            }
            Fate::LostAnswer(_) | Fate::Fine => {}
        }
        world.delete_messages_now(queue, receipts);
        self.after(queue).await;
        world.note(self.process, || format!("delete {queue} {} messages", receipts.len()));
        match fate {
            Fate::LostAnswer(silence) => {
                self.time_out(silence).await;
                Err(self.lost(queue, silence))
            }
            _ => {
                self.answered(Answer::Done);
                Ok(())
            }
        }
    }

    async fn change_visibility(
        &self,
        queue: &str,
        receipt: &Receipt,
        visibility: Duration,
    ) -> Result<(), Fault> {
        let world = &self.world;
        world.ledger.add(CallKind::QueueOther, 0);
        let fate = self.before(queue, 10_000, true).await;
        if let Fate::Throttled(answer) = fate {
            return Err(self.throttled(queue, answer));
        }
        if !matches!(fate, Fate::Fine | Fate::LostAnswer(_)) {
            return Err(self.lost(queue, fate.silence()));
        }
        let until = world.time.now_us() + visibility.as_micros() as u64;
        world.find_now(queue, receipt, |_, visible_us| *visible_us = until);
        self.after(queue).await;
        match fate {
            Fate::LostAnswer(silence) => Err(self.lost(queue, silence)),
            _ => {
                self.answered(Answer::Done);
                Ok(())
            }
        }
    }

    async fn depth(&self, queue: &str) -> Result<u64, Fault> {
        self.world.ledger.add(CallKind::QueueOther, 0);
        match self.before(queue, 10_000, false).await {
            Fate::Fine => {
                self.answered(Answer::Done);
                Ok(self.world.state().queues.depth(queue) as u64)
            }
            Fate::Throttled(answer) => Err(self.throttled(queue, answer)),
            fate => Err(self.lost(queue, fate.silence())),
        }
    }
}
