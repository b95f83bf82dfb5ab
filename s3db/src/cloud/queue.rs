//! A queue service: what SQS promises, and what it does not.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

use crate::cloud::Fault;

/// Messages that one call can send, receive or delete.
pub const BATCH_MAX: usize = 10;

/// Bytes of one message, and of all messages of one batch. SQS takes 1 MiB of text; in base64 that
/// is three quarters of it. What is left over pays for attributes.
pub const MESSAGE_BYTES_MAX: usize = 760 << 10;

/// Permission to delete one message, from the receive that returned it.
///
/// It is good until the message is received again: a stale one is accepted and does nothing.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Receipt(Arc<str>);

impl Receipt {
    /// Takes the service's text.
    pub fn new(text: &str) -> Receipt {
        Receipt(text.into())
    }

    /// The service's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A message as it was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The bytes that were sent; or, if it is `closed`, what they were sealed to.
    pub body: Bytes,
    /// Why nobody here can read it, where messages are sealed: it needs a key that was not given, or another one
    /// than was given under its number. Whoever has that key can, so it is nobody else's to delete.
    pub closed: Option<Fault>,
    /// Deletes it, for as long as its visibility timeout has not run out.
    pub receipt: Receipt,
    /// How often it has been received, this time included.
    pub receives: u32,
    /// Of a FIFO queue: the group it was sent to.
    pub group: Option<String>,
}

/// A message to send.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ToSend {
    /// At most [`MESSAGE_BYTES_MAX`].
    pub body: Bytes,
    /// FIFO queues only: messages of one group are received in order, one batch at a time.
    pub group: Option<String>,
    /// FIFO queues only: a message sent again within five minutes under the same id is dropped.
    pub deduplication: Option<String>,
}

/// What became of one message of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It is in the queue.
    Accepted,
    /// No answer: it may be in the queue. Sending it again makes a duplicate at worst.
    Unknown(Fault),
    /// It is not in the queue.
    Failed(Fault),
}

/// What a queue is created with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSettings {
    /// In order within a group, with deduplication.
    pub fifo: bool,
    /// How long a message is kept: 60 s to 14 days. Afterwards it vanishes, applied or not (W6).
    pub retention: Duration,
}

/// A queue service.
///
/// - **Names.** ASCII letters, digits, `-` and `_`; at most 60 bytes. An implementation may put a
///   prefix before and `.fifo` behind them.
/// - **At least once.** A standard queue may deliver a message again, also after its delete, and in
///   any order. A receive may return fewer messages than there are, or none.
/// - **Visibility.** A received message is hidden from others for the time given, then comes back.
/// - **One attempt**, as with [`Objects`](crate::cloud::Objects).
/// - **Cost.** One request per call and started 64 KiB; an empty receive costs as much.
#[async_trait]
pub trait Queue: Send + Sync {
    /// Makes sure that `queue` exists. Its settings are those of the first who created it, but for its
    /// retention where the service can tell it: that is made as long as it is asked for here, if it is shorter.
    ///
    /// # Errors
    /// Any [`Fault`].
    async fn create(&self, queue: &str, settings: QueueSettings) -> Result<(), Fault>;

    /// Sends 1 to [`BATCH_MAX`] messages of at most [`MESSAGE_BYTES_MAX`] bytes together. One
    /// outcome for each, in their order.
    async fn send(&self, queue: &str, batch: &[ToSend]) -> Vec<Sent>;

    /// Receives up to `max` (1 to [`BATCH_MAX`]) messages and hides them for `visibility` (0 to
    /// 12 hours). With a `wait` of up to 20 s the service asks all its servers and waits for a
    /// message; with none it samples some, and an empty answer proves nothing.
    ///
    /// # Errors
    /// Any [`Fault`]. After `Unknown` some messages may be hidden with nobody to hold them.
    async fn receive(
        &self,
        queue: &str,
        max: usize,
        visibility: Duration,
        wait: Duration,
    ) -> Result<Vec<Message>, Fault>;

    /// Deletes up to [`BATCH_MAX`] messages. A stale receipt is no error and has no effect.
    ///
    /// # Errors
    /// Any [`Fault`].
    async fn delete(&self, queue: &str, receipts: &[Receipt]) -> Result<(), Fault>;

    /// Hides a received message for `visibility` from now; zero gives it back at once.
    ///
    /// # Errors
    /// Any [`Fault`].
    async fn change_visibility(
        &self,
        queue: &str,
        receipt: &Receipt,
        visibility: Duration,
    ) -> Result<(), Fault>;

    /// About how many messages there are, hidden ones included.
    ///
    /// # Errors
    /// Any [`Fault`].
    async fn depth(&self, queue: &str) -> Result<u64, Fault>;
}
