//! What is in the queues, for a fresh read: a sample.
//!
//! Messages are received and not hidden at all, so that no checkpoint misses them. What others hold
//! meanwhile is hidden from the look, and a receive that does not wait asks some of the service's servers
//! only. A queue that is not there has nothing in it: a reader makes none.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::future::join_all;

use super::{ATOMIC_QUEUES, BATCH_MAX, Body, Entry, Queues, Scope, Transaction, forward::is_of};
use crate::{
    cloud::{Fault, Message},
    error::StoreError,
    retry::Attempts,
};

/// Receives that one look at one queue makes.
const LOOK_RECEIVES_MAX: usize = 10;
/// Receives one after the other that give nothing new, after which it is enough.
const LOOK_REPEATS: usize = 2;
/// Queues that are looked at at the same time, each with the messages of one receive in memory.
const LOOK_AT_ONCE: usize = 4;

/// What a look may still take on, of all queues together.
struct Room {
    left: AtomicUsize,
    most: usize,
}

impl Room {
    fn take(&self, bytes: usize) -> Result<(), StoreError> {
        let lowered = |left: usize| left.checked_sub(bytes);
        match self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, lowered) {
            Ok(_) => Ok(()),
            Err(_) => Err(StoreError::Backlog { what: format!("more than {} bytes", self.most) }),
        }
    }
}

impl Queues {
    pub(super) async fn look_at_queues(
        &self,
        bytes_max: usize,
    ) -> Result<Vec<Arc<Vec<Entry>>>, StoreError> {
        // Whole transactions first: what is sent on meanwhile is in a shard after that.
        let atomic: Vec<Scope> = (0..ATOMIC_QUEUES).map(Scope::Client).collect();
        let shards: Vec<Scope> = (0..self.shards).map(Scope::Shard).collect();
        let room = Room { left: AtomicUsize::new(bytes_max), most: bytes_max };
        let mut found = Vec::new();
        for scopes in [atomic, shards] {
            for some in scopes.chunks(LOOK_AT_ONCE) {
                for looked in join_all(some.iter().map(|scope| self.look_at(*scope, &room))).await {
                    for body in looked? {
                        found.extend(self.committed(&body, &room).await?);
                    }
                }
            }
        }
        Ok(found)
    }

    /// Bodies of messages of one queue, each once.
    async fn look_at(&self, scope: Scope, room: &Room) -> Result<Vec<Bytes>, StoreError> {
        let queue = Queues::name(scope);
        let (mut seen, mut bodies, mut repeats) = (HashSet::new(), Vec::new(), 0);
        for _ in 0..LOOK_RECEIVES_MAX {
            let before = bodies.len();
            let received = self.glance(&queue).await?;
            let is_empty = received.is_empty();
            // What needs a key that is missing here is like what others hold: it may be seen elsewhere.
            for message in received.into_iter().filter(|message| message.closed.is_none()) {
                if seen.insert(message.body.clone()) {
                    room.take(message.body.len())?;
                    bodies.push(message.body);
                }
            }
            repeats = if bodies.len() == before { repeats + 1 } else { 0 };
            if is_empty || repeats == LOOK_REPEATS {
                break;
            }
        }
        Ok(bodies)
    }

    async fn glance(&self, queue: &str) -> Result<Vec<Message>, StoreError> {
        let mut attempts = Attempts::new(&self.cloud, &self.settings);
        loop {
            let zero = Duration::ZERO;
            match self.cloud.queue.receive(queue, BATCH_MAX, zero, zero).await {
                Ok(messages) => return Ok(messages),
                // Nobody committed anything to it yet.
                Err(Fault::NoQueue { .. }) => return Ok(Vec::new()),
                Err(fault) => attempts.after(fault).await?,
            }
        }
    }

    /// What a message says is committed: its records, or those of the object that it names.
    async fn committed(
        &self,
        body: &Bytes,
        room: &Room,
    ) -> Result<Option<Arc<Vec<Entry>>>, StoreError> {
        let transaction = match Transaction::decode(body) {
            Ok(Body::Here(transaction)) => transaction,
            Ok(Body::Spilled(named, object)) => {
                let bytes = match self.spilled(&object, &named).await {
                    Ok(Some(bytes)) => bytes,
                    // One that is gone was sent on.
                    Ok(None) => return Ok(None),
                    // This one alone cannot be had here, as where its key is missing.
                    Err(error @ StoreError::Cloud { .. }) if !error.is_passing() => {
                        return Ok(None);
                    }
                    Err(error) => return Err(error),
                };
                room.take(bytes.len())?;
                match Transaction::decode(&bytes) {
                    Ok(Body::Here(transaction)) if is_of(&transaction, &named) => transaction,
                    _ => return Ok(None),
                }
            }
            Err(_) => return Ok(None),
        };
        Ok(Some(Arc::new(transaction.entries)))
    }
}
