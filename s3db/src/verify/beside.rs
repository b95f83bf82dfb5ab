//! What lies beside the trees and the log: each object is what its name says.
//!
//! ```text
//!   spill/      a transaction that was too large for a message: committed, to come, or given up
//!   approved/   a transaction of the hash in its name, which waits for its pages
//!   proposal/   the same, which waits for a curator
//!   clients/    in which life a client is, and what stamps it claims
//!   owners      who claims which part of the log
//! ```
//!
//! What lies in `quarantine/` is counted alone: it is there for being nothing.

use bytes::Bytes;
use futures::future::join_all;

use super::Verified;
use crate::{
    checkpoint::owner::Claims,
    client::ClientRecord,
    cloud::{Fault, Get},
    curate::ProposalId,
    error::{StoreError, with_cause},
    frame::FrameError,
    log::{Entry, Transaction, transaction::Body},
    names::{APPROVED, CLIENTS, OWNERS, PROPOSALS, SPILLED, parse_spilled},
    retry::Attempts,
    store::Store,
};

/// Objects that are read together. The largest of them are whole transactions.
const AT_ONCE: usize = 4;

impl Store {
    pub(super) async fn verify_beside(&self, found: &mut Verified) -> Result<(), StoreError> {
        for prefix in [SPILLED, APPROVED, PROPOSALS, CLIENTS, OWNERS] {
            let mut after: Option<String> = None;
            loop {
                let part = self.list_after(prefix, after.as_deref()).await?;
                for names in part.names.chunks(AT_ONCE) {
                    let reads: Vec<_> = names.iter().map(|name| self.look_up(name)).collect();
                    for (name, bytes) in names.iter().zip(join_all(reads).await) {
                        // What is gone since the list was let go of.
                        let bytes = match bytes {
                            // It does not open: that of one says nothing of the others.
                            Err(error @ StoreError::Cloud { source: Fault::Denied { .. }, .. }) => {
                                found.problem(with_cause(&error));
                                continue;
                            }
                            bytes => bytes?,
                        };
                        let Some(bytes) = bytes else { continue };
                        self.verify_one(name, &bytes, found).await?;
                    }
                }
                after = part.names.into_iter().next_back();
                if !part.more || after.is_none() {
                    break;
                }
            }
        }
        Ok(())
    }

    async fn verify_one(
        &self,
        name: &str,
        bytes: &Bytes,
        found: &mut Verified,
    ) -> Result<(), StoreError> {
        match entries_of(name, bytes) {
            Ok(entries) if name.starts_with(APPROVED) => {
                for entry in entries {
                    found.waiting += 1;
                    self.verify_waiting(&entry, found).await?;
                }
            }
            Ok(_) => {}
            Err(source) => {
                let damaged = StoreError::Damaged { object: name.to_owned(), source };
                found.problem(with_cause(&damaged));
            }
        }
        Ok(())
    }

    async fn look_up(&self, name: &str) -> Result<Option<Bytes>, StoreError> {
        let mut attempts = Attempts::new(&self.cloud, &self.settings);
        loop {
            match self.cloud.objects.get(name, None).await {
                Ok(Get::Found { bytes, .. }) => return Ok(Some(bytes)),
                Ok(_) => return Ok(None),
                Err(fault) => attempts.after(fault).await?,
            }
        }
    }
}

/// The records in an object of this name, if they are what it says.
fn entries_of(name: &str, bytes: &Bytes) -> Result<Vec<Entry>, FrameError> {
    let wrong = |what| Err(FrameError::Field { at: 0, what });
    if name == OWNERS {
        Claims::decode(bytes)?;
        return Ok(Vec::new());
    }
    if name.starts_with(CLIENTS) {
        ClientRecord::decode(bytes)?;
        return Ok(Vec::new());
    }
    let Body::Here(transaction) = Transaction::decode(bytes)? else {
        return wrong("it names another object, where records should be");
    };
    let is_named = match name.starts_with(SPILLED) {
        true => {
            let Transaction { client, epoch, number, .. } = transaction;
            parse_spilled(name)
                .is_some_and(|it| (it.client, it.epoch, it.number) == (client, epoch, number))
        }
        false => name.rsplit('/').next() == Some(&*ProposalId::of(bytes).to_string()),
    };
    match is_named {
        true => Ok(transaction.entries),
        false => wrong("another transaction than the name says"),
    }
}
