//! What is in the streams, for a fresh read.
//!
//! One list of all streams, and a get of each object that this process has neither read nor seen applied.
//! Whatever has a log object's name and decodes is committed, whoever learned of that: its put was the
//! commit point. What is not in the list was let go of, and so is on its pages.

use crate::names::LOG;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use futures::future::join_all;

use super::{Entry, LogObject, ObjectLog, Transaction, decode, parse};
use crate::{error::StoreError, log::transaction::Body, page::Stream};

/// Parts of the list, of a thousand names each, that one look reads, and with them the objects. There are as
/// many as clients that were killed, each of which leaves the newest one of its stream until it is retired.
/// What a look has read the next one need not.
const LOOK_LISTS_MAX: usize = 10;
/// Objects that are read at the same time, each held in memory as it lies there.
const LOOK_AT_ONCE: usize = 4;

/// A log object that was read. It never changes, but for what is emptied: that was applied long ago.
#[derive(Clone, Default)]
pub(super) struct Looked {
    entries: Arc<Vec<Entry>>,
    bytes: usize,
}

impl ObjectLog {
    pub(super) async fn look_at_streams(
        &self,
        bytes_max: usize,
    ) -> Result<Vec<Arc<Vec<Entry>>>, StoreError> {
        let too_much = |what: String| StoreError::Backlog { what };
        let (mut there, mut after) = (BTreeSet::new(), None);
        for part in 0.. {
            if part == LOOK_LISTS_MAX {
                let most = LOOK_LISTS_MAX * super::LIST_MAX;
                let stays = "the newest of each client stays until garbage collection retires it";
                return Err(too_much(format!("more than {most} log objects, where {stays}")));
            }
            let (names, more) = self.list(LOG, after).await?;
            there.extend(names.iter().filter_map(|name| parse(name)));
            after = names.into_iter().next_back();
            if !more || after.is_none() {
                break;
            }
        }
        // What this process has seen applied is on its pages.
        there.retain(|(stream, number)| *number >= self.cursor(*stream));
        // Of this look alone: others, with other lists, are under way at the same time.
        let mut found: BTreeMap<(Stream, u64), Looked> = {
            let mut looked = self.looked();
            looked.retain(|at, _| there.contains(at));
            looked.iter().map(|(at, looked)| (*at, looked.clone())).collect()
        };
        let new: Vec<(Stream, u64)> =
            there.into_iter().filter(|at| !found.contains_key(at)).collect();
        let mut bytes: usize = found.values().map(|looked| looked.bytes).sum();
        for some in new.chunks(LOOK_AT_ONCE) {
            for (at, looked) in join_all(some.iter().map(|at| self.look_at(*at))).await {
                let looked = looked?;
                bytes += looked.bytes;
                self.looked().insert(at, looked.clone());
                found.insert(at, looked);
            }
            if bytes > bytes_max {
                // Not to be held on to either.
                self.looked().clear();
                return Err(too_much(format!("more than {bytes_max} bytes")));
            }
        }
        let entries = found.into_values().map(|looked| looked.entries);
        Ok(entries.filter(|entries| !entries.is_empty()).collect())
    }

    async fn look_at(&self, at: (Stream, u64)) -> ((Stream, u64), Result<Looked, StoreError>) {
        let (stream, number) = at;
        let bytes = match self.get_surely(stream, number).await {
            // Gone since the list: it is on its pages.
            Ok(bytes) => bytes.unwrap_or_default(),
            Err(error) => return (at, Err(error)),
        };
        let mut entries = Vec::new();
        if let Ok(LogObject::Transactions { frames, .. }) = decode(&bytes, stream, number) {
            for frame in frames {
                // What cannot be decoded is put aside by whoever drains it.
                if let Ok(Body::Here(transaction)) = Transaction::decode(&frame) {
                    // Nor does a stamp of another client count: whose log it is the services know.
                    let is_own = |entry: &Entry| entry.record.stamp.client == stream.client;
                    entries.extend(transaction.entries.into_iter().filter(is_own));
                }
            }
        }
        (at, Ok(Looked { entries: Arc::new(entries), bytes: bytes.len() }))
    }
}
