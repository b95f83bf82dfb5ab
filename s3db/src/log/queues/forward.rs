//! Whole transactions, sent on to the shards of their records.
//!
//! ```text
//!   receive   ten at most: what cannot be decoded goes to quarantine, what lies in objects is read
//!   send      the records of all together; of those in objects one by one
//!   let go    of the messages of which all that is done, then of the objects that these named
//! ```
//!
//! What fails with one message is nobody else's business: it stays, the others go on, and the first failure
//! is told at the end. When it is the services that fail, which pass, that is after this receive.

use bytes::Bytes;

use super::{Body, Queues, Scope, Ticket, Transaction, poison, quarantine};
use crate::{
    cloud::{Delete, Message},
    error::StoreError,
    fail_point::{FailPoint, reached},
    log::{Forwarded, Left, Log as _},
    retry::read_surely,
    settings::Rule,
};

/// What one receive gave, as far as it was taken on.
#[derive(Default)]
struct Hand {
    /// Transactions that were in messages, and what lets go of these: not sent yet.
    together: (Vec<Transaction>, Vec<Ticket>),
    /// Of messages with which all is done.
    done: Vec<Ticket>,
    /// Objects that these named.
    objects: Vec<String>,
    poison: u64,
    /// Messages whose objects are gone.
    gone: u64,
    failed: Option<StoreError>,
}

impl Queues {
    pub(super) async fn forward_from(
        &self,
        client: u64,
        most: usize,
    ) -> Result<Forwarded, StoreError> {
        let queue = self.make(Scope::Client(client)).await?;
        let began_us = self.cloud.clock.monotonic_us();
        let mut all = Forwarded { left: Left::Backlog, ..Forwarded::default() };
        let (mut seen, mut failed) = (0, None);
        while seen < most {
            let messages = self.receive(&queue, most - seen).await?;
            if messages.is_empty() {
                all.left = Left::Nothing;
                break;
            }
            let is_trickle = self.is_trickle(messages.len(), most - seen, began_us);
            seen += messages.len();
            let hand = self.take_on(&queue, messages).await;
            reached(&self.cloud, FailPoint::Forwarded).await;
            all.taken += hand.done.len() as u64;
            all.poison += hand.poison;
            all.gone += hand.gone;
            self.ack(hand.done).await?;
            for object in hand.objects {
                // What stays behind is collected when it is old.
                let _: Delete = self.cloud.objects.delete(&object, None).await;
            }
            if let Some(error) = hand.failed {
                let is_over = error.is_passing();
                failed.get_or_insert(error);
                if is_over {
                    break;
                }
            }
            if is_trickle {
                all.left = Left::Trickle;
                break;
            }
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(all),
        }
    }

    /// Does everything that there is to do before these messages go.
    async fn take_on(&self, queue: &str, messages: Vec<Message>) -> Hand {
        let mut hand = Hand::default();
        for message in messages {
            if let Err(error) = self.take_on_one(queue, message, &mut hand).await {
                let is_over = error.is_passing();
                hand.failed.get_or_insert(error);
                if is_over {
                    break;
                }
            }
        }
        if let Err(error) = self.send_together(&mut hand).await {
            hand.failed.get_or_insert(error);
        }
        hand
    }

    async fn take_on_one(
        &self,
        queue: &str,
        message: Message,
        hand: &mut Hand,
    ) -> Result<(), StoreError> {
        if let Some(source) = message.closed {
            return Err(StoreError::Cloud { attempts: 1, source });
        }
        let ticket = Ticket::Message { queue: queue.to_owned(), receipt: message.receipt };
        let in_object = match Transaction::decode(&message.body) {
            Ok(Body::Here(transaction)) => {
                hand.together.0.push(transaction);
                hand.together.1.push(ticket);
                return Ok(());
            }
            Ok(Body::Spilled(named, object)) => match self.spilled(&object, &named).await? {
                // One that is gone was sent on before, and the message came again. Or somebody deleted it,
                // which nothing here can tell from that: so it is counted.
                None => {
                    hand.gone += 1;
                    hand.done.push(ticket);
                    return Ok(());
                }
                Some(bytes) => match Transaction::decode(&bytes) {
                    Ok(Body::Here(transaction)) if is_of(&transaction, &named) => {
                        // In the order of the queue, and one of these at a time in memory.
                        self.send_together(hand).await?;
                        self.distribute(&[transaction]).await?;
                        hand.done.push(ticket);
                        hand.objects.push(object);
                        return Ok(());
                    }
                    // Another one's, which comes by a message of its own, or does not.
                    Ok(Body::Here(_)) => None,
                    // The object stays, for `verify` to name.
                    _ => Some(bytes),
                },
            },
            Err(source) if !self.settings.rules.hold(Rule::Quarantine) => {
                return Err(StoreError::Damaged { object: queue.to_owned(), source });
            }
            Err(_) => None,
        };
        for bytes in in_object.into_iter().chain([message.body]) {
            quarantine(&self.cloud, &self.settings, &poison(queue, bytes)).await?;
        }
        reached(&self.cloud, FailPoint::PutAside).await;
        hand.poison += 1;
        hand.done.push(ticket);
        Ok(())
    }

    async fn send_together(&self, hand: &mut Hand) -> Result<(), StoreError> {
        let (transactions, mut tickets) = std::mem::take(&mut hand.together);
        if !self.settings.rules.hold(Rule::SendFirst) {
            self.ack(std::mem::take(&mut tickets)).await?;
        }
        self.distribute(&transactions).await?;
        hand.done.extend(tickets);
        Ok(())
    }

    /// The bytes of a spilled transaction, which a message named as this one; `None` when the object is gone.
    /// One damaged answer is not taken for what lies there.
    pub(super) async fn spilled(
        &self,
        object: &str,
        named: &Transaction,
    ) -> Result<Option<Bytes>, StoreError> {
        let is_sound = |bytes: &Bytes| match Transaction::decode(bytes) {
            Ok(Body::Here(transaction)) => is_of(&transaction, named),
            _ => false,
        };
        read_surely(&self.cloud, &self.settings, object, is_sound).await
    }
}

/// Whether what lies in an object is what the message that names it says.
pub(super) fn is_of(found: &Transaction, named: &Transaction) -> bool {
    let of = |it: &Transaction| (it.client, it.epoch, it.number, it.total);
    of(found) == of(named)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use async_trait::async_trait;

    use super::*;
    use crate::{
        cloud::{
            Cloud, ETag, Fault, Get, Listing, Objects, Put, PutIf, Sent, ToSend,
            embedded::{self, Memory},
        },
        log::{Entry, transaction::primary},
        names::QUARANTINE,
        page::PageId,
        record::{Key, Payload},
        settings::Settings,
        stamp::Stamp,
    };

    fn transaction(number: u64) -> Transaction {
        let entry = |n| -> Entry {
            let stamp = Stamp { clock: 1, client: 9, sequence: 10 * number + n };
            let payload = Some(Payload::new("v").unwrap());
            let key = Key::new(format!("{number}-{n}")).unwrap();
            primary(PageId(1), PageId(1), stamp, key, payload)
        };
        let entries = vec![entry(0), entry(1)];
        Transaction { client: 9, epoch: 1, number, total: 2, entries }
    }

    struct Bench {
        cloud: Cloud,
        queues: Queues,
    }

    impl Bench {
        async fn new() -> Bench {
            let cloud = embedded::memory(Arc::new(Memory::new()));
            let queues = Queues::new(cloud.clone(), Settings::default(), 1, false);
            queues.make(Scope::Client(0)).await.unwrap();
            Bench { cloud, queues }
        }

        async fn put(&self, object: &str, bytes: Bytes) {
            let put = self.cloud.objects.put(object, bytes, PutIf::Absent).await;
            assert!(matches!(put, Put::Stored(_)), "{put:?}");
        }

        async fn send(&self, bodies: impl IntoIterator<Item = Bytes>) {
            for body in bodies {
                let message = ToSend { body, ..ToSend::default() };
                let sent = self.cloud.queue.send("atomic-0", &[message]).await;
                assert_eq!(sent, [Sent::Accepted]);
            }
        }

        async fn names(&self, prefix: &str) -> Vec<String> {
            self.cloud.objects.list(prefix, None, 100).await.unwrap().names
        }

        /// Numbers of the transactions that came to the shard.
        async fn arrived(&self) -> Vec<u64> {
            let batch = self.queues.drain(Scope::Shard(0), 1000).await.unwrap();
            assert_eq!(batch.left, Left::Nothing);
            let numbers = batch.entries.iter().map(|entry| entry.record.stamp.sequence / 10);
            let mut numbers: Vec<u64> = numbers.collect();
            numbers.sort_unstable();
            numbers.dedup();
            numbers
        }
    }

    /// It was distributed and deleted, whatever it was: an approval, a proposal, what lies in quarantine.
    #[tokio::test]
    async fn a_message_takes_nothing_away_that_is_not_its_own() {
        let bench = Bench::new().await;
        let approved = "approved/6f/01";
        bench.put(approved, transaction(1).encode()).await;
        // What another one commits is for the message that says the same.
        let others = "spill/9/1/2";
        bench.put(others, transaction(2).encode()).await;
        let head = transaction(3).part(Vec::new());
        bench.send([head.encode_spilled(approved), head.encode_spilled(others)]).await;
        let done = bench.queues.forward(0, 10).await.unwrap();
        assert_eq!((done.taken, done.poison), (2, 2));
        assert_eq!(bench.arrived().await, [0; 0]);
        assert_eq!(bench.names("approved/").await, [approved]);
        assert_eq!(bench.names("spill/").await, [others]);
        assert_eq!(bench.names(QUARANTINE).await.len(), 2);
        bench.send([transaction(2).encode_spilled(others)]).await;
        bench.queues.forward(0, 10).await.unwrap();
        assert_eq!(bench.arrived().await, [2]);
        assert_eq!(bench.names("spill/").await, [""; 0]);
    }

    /// One that is damaged was passed over in silence until it expired, and with it what it named.
    #[tokio::test]
    async fn what_is_spilled_and_damaged_is_put_aside() {
        let bench = Bench::new().await;
        let (object, mut bytes) = ("spill/9/1/1", transaction(1).encode().to_vec());
        bytes[40] ^= 1;
        let bytes = Bytes::from(bytes);
        bench.put(object, bytes.clone()).await;
        let message = transaction(1).encode_spilled(object);
        bench.send([message.clone(), transaction(2).encode()]).await;
        let done = bench.queues.forward(0, 10).await.unwrap();
        assert_eq!((done.taken, done.poison), (2, 1));
        assert_eq!(bench.arrived().await, [2]);
        let mut aside = Vec::new();
        for name in bench.names(QUARANTINE).await {
            aside.extend(bench.queues.spilled(&name, &transaction(1)).await.unwrap());
        }
        aside.sort();
        let mut expected = [bytes, message];
        expected.sort();
        assert_eq!(aside, expected, "the message and what it named");
        assert_eq!(bench.names("spill/").await, [object], "it stays");
        assert_eq!(bench.queues.forward(0, 10).await.unwrap().taken, 0, "once");
    }

    /// It was let go of without a word, whoever had deleted what it named.
    #[tokio::test]
    async fn what_names_an_object_that_is_gone_is_counted() {
        let bench = Bench::new().await;
        let object = "spill/9/1/1";
        bench.put(object, transaction(1).encode()).await;
        let spilled = transaction(1).encode_spilled(object);
        bench.send([spilled.clone(), spilled]).await;
        let done = bench.queues.forward(0, 10).await.unwrap();
        assert_eq!((done.taken, done.poison, done.gone), (2, 0, 0), "both came before it went");
        bench.send([transaction(1).encode_spilled(object), transaction(2).encode()]).await;
        let done = bench.queues.forward(0, 10).await.unwrap();
        assert_eq!((done.taken, done.poison, done.gone), (2, 0, 1));
    }

    /// An object that cannot be had kept nine others from their pages, and again when they came back.
    #[tokio::test]
    async fn one_that_fails_is_in_nobodys_way() {
        let mut bench = Bench::new().await;
        let object = "spill/9/1/1";
        bench.put(object, transaction(1).encode()).await;
        let spilled = transaction(1).encode_spilled(object);
        bench.send((2..6).map(|number| transaction(number).encode())).await;
        bench.send([spilled]).await;
        bench.send((6..9).map(|number| transaction(number).encode())).await;
        let closed = Arc::new(Refusing { beneath: bench.cloud.clone(), object: object.into() });
        bench.queues.cloud = Cloud { objects: closed, ..bench.cloud.clone() };
        let error = bench.queues.forward(0, 10).await.unwrap_err();
        let is_told = matches!(&error, StoreError::Cloud { source: Fault::Denied { .. }, .. });
        assert!(is_told, "{error:?}");
        assert_eq!(bench.arrived().await, [2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(bench.names("spill/").await, [object]);
        // In a look it is passed over, as what somebody holds is.
        bench.send([transaction(1).encode_spilled(object), transaction(9).encode()]).await;
        let looked = bench.queues.look(1 << 20).await.unwrap();
        let seen: Vec<u64> = looked
            .iter()
            .flat_map(|some| some.iter())
            .map(|it| it.record.stamp.sequence / 10)
            .collect();
        assert!(seen.contains(&9) && !seen.contains(&1), "{seen:?}");
    }

    /// Objects, of which one is under a key that is missing.
    struct Refusing {
        beneath: Cloud,
        object: String,
    }

    #[async_trait]
    impl Objects for Refusing {
        async fn get(&self, name: &str, unless: Option<&ETag>) -> Result<Get, Fault> {
            if name == self.object {
                return Err(Fault::Denied { what: name.into(), cause: "the test says so".into() });
            }
            self.beneath.objects.get(name, unless).await
        }

        async fn put(&self, name: &str, bytes: Bytes, condition: PutIf) -> Put {
            self.beneath.objects.put(name, bytes, condition).await
        }

        async fn delete(&self, name: &str, only: Option<&ETag>) -> Delete {
            self.beneath.objects.delete(name, only).await
        }

        async fn list(
            &self,
            prefix: &str,
            after: Option<&str>,
            max: usize,
        ) -> Result<Listing, Fault> {
            self.beneath.objects.list(prefix, after, max).await
        }
    }
}
