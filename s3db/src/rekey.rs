//! Another key for what is sealed already.
//!
//! ```text
//!   a new key behind the old one, for all clients --> in front of it, for all --> rekey --> without the old
//! ```
//!
//! An object under another key than the first is put again as it is, under the condition that nobody
//! changes it meanwhile; its content, with version and write id, stays the same, so that to all others
//! nothing has happened but a new ETag. Any client may be at work. Messages of queues cannot be put
//! again; a sweep brings what they hold to pages.

use futures::{StreamExt as _, TryStreamExt as _, stream};

use crate::{
    catalog::Backend,
    cloud::{
        Get, Objects, Put, PutIf,
        sealed::{Closed, Of, Sealed, Sealer},
    },
    error::StoreError,
    log::Pending,
    names::{
        APPROVED, BLOBS, CATALOG, CLIENTS, DROPPED, LOG, OWNERS, PAGES, PROPOSALS, QUARANTINE,
        SEQUENCER, SPILLED, WRITERS,
    },
    retry::Attempts,
    store::Store,
};

/// Objects that are looked at together.
const AT_ONCE: usize = 16;
/// The same of parts of blobs, each of which is there three times while it is sealed again: 64 MiB at most.
const PARTS_AT_ONCE: usize = 2;
/// Objects that are named.
const NAMED_MAX: usize = 100;

/// What [`Store::rekey`] found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rekeyed {
    /// Objects that were sealed again with the first key.
    pub sealed: u64,
    /// Objects that had been before: they open with it.
    pub current: u64,
    /// Objects that do not open, and stay as they are: damaged, or somebody else's, or the key that was given
    /// under their key's number is another one.
    pub unopened: u64,
    /// Some of them, each with why.
    pub examples: Vec<String>,
    /// Messages that wait in queues, whatever they are sealed with: about so many.
    pub waiting: u64,
    /// What kept the sweep before it from its end, such as a damaged page that records wait for.
    pub unswept: Option<StoreError>,
}

/// What became of one object.
enum Done {
    Sealed,
    Current,
    Gone,
    Unopened(String),
}

impl Store {
    /// Brings what is in the log to its pages, and seals every object again that is sealed with
    /// another key than the first one of those given. `progress` hears now and then how many objects
    /// were seen.
    ///
    /// When it has come to its end, nothing is unopened and nothing waits, no other key is needed any
    /// more, if all clients had the new one in front before it began. It reads every object whole.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] when the database is not encrypted; whatever the services say, and a key
    /// that is missing. Calling it again goes on. What kept a sweep from its end is no error: all that lies
    /// there is sealed again nevertheless ([`Rekeyed::unswept`]).
    pub async fn rekey(&self, mut progress: impl FnMut(u64)) -> Result<Rekeyed, StoreError> {
        let Some(sealing) = &self.sealing else {
            return Err(StoreError::Invalid("the database is not encrypted".to_owned()));
        };
        // What cannot be brought to its pages stays in the log, which is sealed again as all is.
        let swept = self.sweep().await;
        let mut all = Rekeyed::default();
        let mut seen = 0;
        let prefixes = [
            CATALOG, CLIENTS, PAGES, BLOBS, LOG, SPILLED, PROPOSALS, APPROVED, QUARANTINE, OWNERS,
            SEQUENCER, WRITERS, DROPPED,
        ];
        for prefix in prefixes {
            let mut after: Option<String> = None;
            let at_once = if prefix == BLOBS { PARTS_AT_ONCE } else { AT_ONCE };
            loop {
                let part = self.list_after(prefix, after.as_deref()).await?;
                // Names of their own, so that all of this can be a task of a runtime with threads.
                let each = stream::iter(part.names.clone()).map(|name| async move {
                    let done = self.seal_again(sealing, &name).await?;
                    Ok((name, done))
                });
                let mut each = each.buffer_unordered(at_once);
                while let Some((name, done)) =
                    each.try_next().await.map_err(|error: StoreError| error)?
                {
                    seen += 1;
                    match done {
                        Done::Sealed => all.sealed += 1,
                        Done::Current => all.current += 1,
                        Done::Gone => {}
                        Done::Unopened(why) => {
                            all.unopened += 1;
                            if all.examples.len() < NAMED_MAX {
                                all.examples.push(format!("{name}: {why}"));
                            }
                        }
                    }
                    progress(seen);
                }
                drop(each);
                after = part.names.into_iter().next_back();
                if !part.more || after.is_none() {
                    break;
                }
            }
        }
        // What lies in objects was sealed again above.
        if self.database().backend != Backend::S3Log {
            let part = self.log.pending(&self.clients().await?, None).await?;
            for pending in part.found {
                if let Pending::Messages(count) = pending {
                    all.waiting += count;
                }
            }
        }
        all.unswept = swept.err();
        Ok(all)
    }

    async fn seal_again(
        &self,
        sealing: &Sealed<dyn Objects>,
        name: &str,
    ) -> Result<Done, StoreError> {
        let Sealed { inner: raw, sealer } = sealing;
        let mut attempts = Attempts::new(&self.cloud, &self.settings);
        loop {
            let fault = match raw.get(name, None).await {
                Ok(Get::Found { bytes, etag, .. }) => {
                    // Opened in any case: the number in its head says nothing of the key behind it.
                    let body = match sealer.open(Of::Object(name), &bytes) {
                        Ok(body) => body,
                        Err(Closed::Foreign(why)) => return Ok(Done::Unopened(why.to_string())),
                        Err(Closed::NoKey(id)) => Err(sealer.no_key(name, id))
                            .map_err(|source| StoreError::Cloud { attempts: 1, source })?,
                    };
                    if Sealer::key_id(&bytes) == Ok(sealer.keys().current()) {
                        return Ok(Done::Current);
                    }
                    match self.cloud.objects.put(name, body, PutIf::Matches(etag)).await {
                        Put::Stored(_) => return Ok(Done::Sealed),
                        // Somebody was faster, or it is gone: it is looked at again.
                        Put::Refused | Put::Missing | Put::Conflict => {
                            attempts.after_loss(name).await?;
                            continue;
                        }
                        // It may be there: it is looked at again, too.
                        Put::Unknown(fault) | Put::Failed(fault) => fault,
                    }
                }
                Ok(_) => return Ok(Done::Gone),
                Err(fault) => fault,
            };
            attempts.after(fault).await?;
        }
    }
}
