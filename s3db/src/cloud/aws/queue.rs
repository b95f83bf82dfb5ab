//! SQS as [`Queue`].
//!
//! SQS carries text, so bodies travel in base64.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use aws_sdk_sqs::{
    Client,
    error::{ProvideErrorMetadata, SdkError},
    types::{
        DeleteMessageBatchRequestEntry, MessageSystemAttributeName, QueueAttributeName,
        SendMessageBatchRequestEntry,
    },
};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_types::base64;
use sources::aws::Aws;
use tokio::{sync::OnceCell, time::timeout};

use super::{CALL_MAX, Failed, timed_out, unusable};
use crate::cloud::{Fault, Message, Queue, QueueSettings, Receipt, Sent, ToSend, queue::BATCH_MAX};

/// Queues of an account and region whose names begin with a prefix.
pub struct Sqs {
    aws: Aws,
    prefix: String,
    endpoint: Option<String>,
    client: OnceCell<Client>,
    /// Addresses of queues that are known to exist, and whether they are FIFO.
    urls: Mutex<HashMap<String, (String, bool)>>,
}

impl Sqs {
    /// Queues whose names begin with `prefix`, at most 15 bytes, at `endpoint` or where the SDK
    /// finds the service.
    pub fn new(aws: Aws, prefix: String, endpoint: Option<String>) -> Sqs {
        Sqs { aws, prefix, endpoint, client: OnceCell::new(), urls: Mutex::default() }
    }

    async fn client(&self) -> Result<&Client, Fault> {
        let make = || async {
            let config = self.aws.config().await.map_err(|error| unusable(&error))?;
            let mut builder = aws_sdk_sqs::config::Builder::from(config);
            if let Some(endpoint) = &self.endpoint {
                builder = builder.endpoint_url(endpoint);
            }
            Ok(Client::from_conf(builder.build()))
        };
        self.client.get_or_try_init(make).await
    }

    fn urls(&self) -> std::sync::MutexGuard<'_, HashMap<String, (String, bool)>> {
        self.urls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn name(&self, queue: &str, is_fifo: bool) -> String {
        format!("{}{queue}{}", self.prefix, if is_fifo { ".fifo" } else { "" })
    }

    /// Why a call to a queue failed whose address is known. One that was deleted since is looked for again.
    fn failed<E>(
        &self,
        (queue, action): (&str, &'static str),
        error: &SdkError<E, HttpResponse>,
        changes: bool,
    ) -> Fault
    where
        E: std::error::Error + ProvideErrorMetadata + 'static,
    {
        let failed = Failed::of((queue, action), error, changes);
        if is_missing(&failed.code) {
            self.urls().remove(queue);
            return Fault::NoQueue { what: queue.to_owned() };
        }
        failed.fault
    }

    /// The address of a queue that exists, and whether it is FIFO.
    async fn url(&self, queue: &str) -> Result<(String, bool), Fault> {
        if let Some(known) = self.urls().get(queue).cloned() {
            return Ok(known);
        }
        let mut last = None;
        for is_fifo in [false, true] {
            let name = self.name(queue, is_fifo);
            let call = self.client().await?.get_queue_url().queue_name(&name);
            match in_time(&name, call.send()).await? {
                Ok(answer) => {
                    let found = (answer.queue_url().unwrap_or("").to_owned(), is_fifo);
                    self.urls().insert(queue.to_owned(), found.clone());
                    return Ok(found);
                }
                Err(error) => {
                    let failed = Failed::of((name.as_str(), "find"), &error, false);
                    if !is_missing(&failed.code) {
                        return Err(failed.fault);
                    }
                    last = Some(Fault::NoQueue { what: name });
                }
            }
        }
        Err(last.expect("two names were tried"))
    }

    /// Sees to it that a queue that somebody else made keeps its messages for `wanted` seconds at least: what
    /// is committed vanishes after that, and the service's own choice is four days.
    ///
    /// # Errors
    /// [`Fault::Invalid`], which names both times, when it keeps them for less and may not be changed.
    async fn keep_for(&self, queue: &str, wanted: u64) -> Result<(), Fault> {
        const RETENTION: QueueAttributeName = QueueAttributeName::MessageRetentionPeriod;
        let (url, is_fifo) = self.url(queue).await?;
        let name = self.name(queue, is_fifo);
        let refused = |found: &str, fault: &Fault| {
            let cause = format!(
                "it keeps messages for {found}, and {wanted} s are needed, or what is committed can vanish: \
                 set its MessageRetentionPeriod ({fault})"
            );
            Fault::Invalid { what: name.clone(), cause }
        };
        let call = self.client().await?.get_queue_attributes().queue_url(&url);
        let found = match in_time(&name, call.attribute_names(RETENTION).send()).await? {
            Ok(answer) => {
                let text = answer.attributes().and_then(|all| all.get(&RETENTION));
                text.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0)
            }
            Err(error) => {
                let fault = Failed::of((name.as_str(), "depth"), &error, false).fault;
                // The service has said that it is another time, and there is none longer than is asked for.
                let is_known = !fault.is_transient() && wanted == RETENTION_MAX_S;
                return Err(if is_known { refused("less", &fault) } else { fault });
            }
        };
        if found >= wanted {
            return Ok(());
        }
        let call = self.client().await?.set_queue_attributes().queue_url(&url);
        let call = call.attributes(RETENTION, wanted.to_string());
        match in_time(&name, call.send()).await? {
            Ok(_) => Ok(()),
            Err(error) => {
                let fault = Failed::of((name.as_str(), "create"), &error, true).fault;
                let is_passing = fault.is_transient();
                Err(if is_passing { fault } else { refused(&format!("{found} s"), &fault) })
            }
        }
    }
}

/// The longest time that the service keeps a message: 14 days.
const RETENTION_MAX_S: u64 = 14 * 24 * 3600;

fn is_missing(code: &str) -> bool {
    code.contains("NonExistentQueue") || code.contains("QueueDoesNotExist")
}

async fn in_time<T>(what: &str, call: impl Future<Output = T>) -> Result<T, Fault> {
    timeout(CALL_MAX, call).await.map_err(|_| timed_out(what, CALL_MAX))
}

fn seconds(time: Duration) -> i32 {
    // Rounded up: hidden for less than was asked would be hidden for nothing.
    i32::try_from(time.as_millis().div_ceil(1000)).unwrap_or(43_200).min(43_200)
}

#[async_trait]
impl Queue for Sqs {
    async fn create(&self, queue: &str, settings: QueueSettings) -> Result<(), Fault> {
        let name = self.name(queue, settings.fifo);
        let retention = settings.retention.as_secs().clamp(60, RETENTION_MAX_S);
        let mut call = self
            .client()
            .await?
            .create_queue()
            .queue_name(&name)
            .attributes(QueueAttributeName::MessageRetentionPeriod, retention.to_string());
        if settings.fifo {
            call = call.attributes(QueueAttributeName::FifoQueue, "true");
        }
        match in_time(&name, call.send()).await? {
            Ok(answer) => {
                let url = answer.queue_url().unwrap_or("").to_owned();
                self.urls().insert(queue.to_owned(), (url, settings.fifo));
                Ok(())
            }
            Err(error) => {
                let failed = Failed::of((name.as_str(), "create"), &error, true);
                // It is there, with other settings: those of whoever came first.
                if failed.code.contains("QueueNameExists")
                    || failed.code.contains("QueueAlreadyExists")
                {
                    return self.keep_for(queue, retention).await;
                }
                Err(failed.fault)
            }
        }
    }

    async fn send(&self, queue: &str, batch: &[ToSend]) -> Vec<Sent> {
        assert!((1..=BATCH_MAX).contains(&batch.len()), "a batch has 1 to {BATCH_MAX} messages");
        let all = |sent: Sent| vec![sent; batch.len()];
        let (url, is_fifo) = match self.url(queue).await {
            Ok(found) => found,
            Err(fault) => return all(Sent::Failed(fault)),
        };
        let client = match self.client().await {
            Ok(client) => client,
            Err(fault) => return all(Sent::Failed(fault)),
        };
        let mut call = client.send_message_batch().queue_url(url);
        for (n, message) in batch.iter().enumerate() {
            let entry = SendMessageBatchRequestEntry::builder()
                .id(n.to_string())
                .message_body(base64::encode(&message.body))
                .set_message_group_id(message.group.clone().filter(|_| is_fifo))
                .set_message_deduplication_id(message.deduplication.clone().filter(|_| is_fifo));
            match entry.build() {
                Ok(entry) => call = call.entries(entry),
                Err(error) => {
                    let (what, cause) = (queue.to_owned(), error.to_string());
                    return all(Sent::Failed(Fault::Invalid { what, cause }));
                }
            }
        }
        let answer = match in_time(queue, call.send()).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                return match Failed::of((queue, "send"), &error, true).fault {
                    fault @ Fault::Unknown { .. } => all(Sent::Unknown(fault)),
                    fault => all(Sent::Failed(fault)),
                };
            }
            Err(fault) => return all(Sent::Unknown(fault)),
        };
        let nothing = Fault::Unknown { what: queue.to_owned(), cause: "no outcome".into() };
        let mut outcomes = all(Sent::Unknown(nothing));
        for done in answer.successful() {
            if let Some(outcome) = done.id().parse().ok().and_then(|n: usize| outcomes.get_mut(n)) {
                *outcome = Sent::Accepted;
            }
        }
        for failed in answer.failed() {
            let what = queue.to_owned();
            let cause = format!("{}: {}", failed.code(), failed.message().unwrap_or(""));
            let fault = match failed.sender_fault() {
                true => Fault::Invalid { what, cause },
                false => Fault::Throttled { what },
            };
            if let Some(outcome) = failed.id().parse().ok().and_then(|n: usize| outcomes.get_mut(n))
            {
                *outcome = Sent::Failed(fault);
            }
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
        let (url, _) = self.url(queue).await?;
        let call = self
            .client()
            .await?
            .receive_message()
            .queue_url(url)
            .max_number_of_messages(max.clamp(1, BATCH_MAX) as i32)
            .visibility_timeout(seconds(visibility))
            .wait_time_seconds(seconds(wait).min(20))
            .message_system_attribute_names(MessageSystemAttributeName::ApproximateReceiveCount)
            .message_system_attribute_names(MessageSystemAttributeName::MessageGroupId);
        let answer = match in_time(queue, call.send()).await? {
            Ok(answer) => answer,
            Err(error) => return Err(self.failed((queue, "receive"), &error, true)),
        };
        let message = |message: aws_sdk_sqs::types::Message| {
            let text = message.body().unwrap_or("");
            // What is not base64 is not ours; whoever drains the queue puts it aside as it is.
            let body = base64::decode(text).unwrap_or_else(|_| text.as_bytes().to_vec());
            let attribute = |name: &MessageSystemAttributeName| {
                message.attributes().and_then(|all| all.get(name)).cloned()
            };
            let receives = attribute(&MessageSystemAttributeName::ApproximateReceiveCount);
            Some(Message {
                body: body.into(),
                closed: None,
                receipt: Receipt::new(message.receipt_handle()?),
                receives: receives.and_then(|count| count.parse().ok()).unwrap_or(1),
                group: attribute(&MessageSystemAttributeName::MessageGroupId),
            })
        };
        Ok(answer.messages.unwrap_or_default().into_iter().filter_map(message).collect())
    }

    async fn delete(&self, queue: &str, receipts: &[Receipt]) -> Result<(), Fault> {
        let (url, _) = self.url(queue).await?;
        let mut call = self.client().await?.delete_message_batch().queue_url(url);
        for (n, receipt) in receipts.iter().enumerate() {
            let entry = DeleteMessageBatchRequestEntry::builder()
                .id(n.to_string())
                .receipt_handle(receipt.as_str())
                .build();
            let invalid = |error: aws_sdk_sqs::error::BuildError| Fault::Invalid {
                what: queue.to_owned(),
                cause: error.to_string(),
            };
            call = call.entries(entry.map_err(invalid)?);
        }
        let answer = match in_time(queue, call.send()).await? {
            Ok(answer) => answer,
            Err(error) => return Err(Failed::of((queue, "acknowledge"), &error, true).fault),
        };
        // A receipt that is stale is the sender's fault, and no error here: it comes again.
        match answer.failed().iter().any(|failed| !failed.sender_fault()) {
            true => Err(Fault::Throttled { what: queue.to_owned() }),
            false => Ok(()),
        }
    }

    async fn change_visibility(
        &self,
        queue: &str,
        receipt: &Receipt,
        visibility: Duration,
    ) -> Result<(), Fault> {
        let (url, _) = self.url(queue).await?;
        let call = self
            .client()
            .await?
            .change_message_visibility()
            .queue_url(url)
            .receipt_handle(receipt.as_str())
            .visibility_timeout(seconds(visibility));
        match in_time(queue, call.send()).await? {
            Ok(_) => Ok(()),
            Err(error) => {
                let failed = Failed::of((queue, "receive"), &error, true);
                let is_stale = failed.code.contains("MessageNotInflight")
                    || failed.code.contains("ReceiptHandleIsInvalid");
                if is_stale { Ok(()) } else { Err(failed.fault) }
            }
        }
    }

    async fn depth(&self, queue: &str) -> Result<u64, Fault> {
        let (url, _) = self.url(queue).await?;
        let counts = [
            QueueAttributeName::ApproximateNumberOfMessages,
            QueueAttributeName::ApproximateNumberOfMessagesNotVisible,
            QueueAttributeName::ApproximateNumberOfMessagesDelayed,
        ];
        let call = self.client().await?.get_queue_attributes().queue_url(url);
        let call = call.set_attribute_names(Some(counts.to_vec()));
        let answer = match in_time(queue, call.send()).await? {
            Ok(answer) => answer,
            Err(error) => return Err(self.failed((queue, "depth"), &error, false)),
        };
        let count = |name| {
            let text = answer.attributes().and_then(|all| all.get(name));
            text.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0)
        };
        Ok(counts.iter().map(count).sum())
    }
}
