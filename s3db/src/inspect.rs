//! Any object or message of the store, told by its first bytes: for tools that find one, and for
//! those who search for bytes that a decoder does not survive.

use std::collections::HashSet;

use bytes::Bytes;

use crate::{
    blob::Part,
    catalog::{Collection, Database},
    checkpoint::owner::Claims,
    client::ClientRecord,
    cloud::{embedded::Stored, sealed_frame::SealedFrame},
    frame::{FrameError, magic_error},
    log::{
        Change, LogRecord, Transaction,
        objects::{self, LogObject},
        transaction::Body,
    },
    page::{Page, Stream},
    pool::disk::KeptPage,
    sequence::{Numbers, SequencedWrite, codec::decode_data, codec::encode_data},
    stamp::Stamp,
    writers::Writers,
};

/// What a frame holds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Inspected {
    /// `s3dP`: a node of a tree.
    Page(Page),
    /// `s3dL`: one change.
    Record(LogRecord),
    /// `s3dT`: a transaction or a part of one; its records may lie in the object of this name.
    Transaction(Transaction, Option<String>),
    /// `s3dO`: a log object.
    Log {
        /// The stream that it belongs to.
        stream: Stream,
        /// Its number there.
        number: u64,
        /// By which whoever put it knows it again.
        write_id: u128,
        /// Its transactions.
        transactions: Vec<Inspected>,
    },
    /// `s3dO`: the end of a stream.
    Fence {
        /// The stream that it ends.
        stream: Stream,
        /// Its number there.
        number: u64,
        /// By which whoever put it knows it again.
        write_id: u128,
        /// The life that ended it.
        by_epoch: u64,
    },
    /// `s3dB`: a part of a blob.
    Part(Part),
    /// `s3dI`: a client.
    Client(ClientRecord),
    /// `s3dQ`: a message of a queue in a directory.
    Message(Stored),
    /// `s3dD`: the database.
    Database(Database),
    /// `s3dW`: claims of parts of the log.
    Claims(Claims),
    /// `s3dA`: the clients that may write to a collection.
    Writers(Vec<u64>),
    /// `s3dC`: a collection. Its name is that of the object, and not in it.
    Collection(Collection),
    /// `s3dN`: the order of all commits at the snapshot and the serializable level.
    Numbers(Numbers),
    /// `s3dV`: what the commit of this id writes.
    Writes(u128, Vec<SequencedWrite>),
    /// `s3dF`: a page on a disk of a client.
    Kept(KeptPage),
    /// `s3dE`: any of them, sealed.
    Sealed(SealedFrame),
}

impl Inspected {
    /// Decodes `bytes`, whatever of the store's they are.
    ///
    /// # Errors
    /// When they are nothing of the store's, are damaged, or hold what nothing holds.
    pub fn decode(bytes: &Bytes) -> Result<Inspected, FrameError> {
        let Some(found) = bytes.first_chunk::<4>() else {
            return Err(FrameError::Truncated { have: bytes.len(), need: 4 });
        };
        Ok(match found {
            b"s3dP" => Inspected::Page(Page::decode(bytes)?),
            b"s3dL" => {
                let refused = |_| FrameError::Field { at: 0, what: "no log record" };
                let (record, len) = LogRecord::decode(bytes).map_err(refused)?;
                if len != bytes.len() {
                    return Err(FrameError::Field { at: len, what: "bytes behind a log record" });
                }
                Inspected::Record(record)
            }
            b"s3dT" => match Transaction::decode(bytes)? {
                Body::Here(transaction) => Inspected::Transaction(transaction, None),
                Body::Spilled(transaction, object) => {
                    Inspected::Transaction(transaction, Some(object))
                }
            },
            b"s3dO" => {
                // Its name is in it, behind magic, version and kind.
                let number = |at: usize| {
                    let field = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>());
                    let short = FrameError::Truncated { have: bytes.len(), need: at + 8 };
                    field.map(|field| u64::from_le_bytes(*field)).ok_or(short)
                };
                let stream = Stream { client: number(6)?, epoch: number(14)? };
                let number = number(22)?;
                let (write_id, frames) = match objects::decode(bytes, stream, number)? {
                    LogObject::Transactions { write_id, frames } => (write_id, frames),
                    LogObject::Fence { write_id, by_epoch } => {
                        return Ok(Inspected::Fence { stream, number, write_id, by_epoch });
                    }
                };
                let inner = frames.iter().map(|frame| match frame.first_chunk::<4>() {
                    Some(b"s3dT") => Inspected::decode(frame),
                    _ => Err(FrameError::Field { at: 0, what: "no transaction in a log object" }),
                });
                let transactions = inner.collect::<Result<_, _>>()?;
                Inspected::Log { stream, number, write_id, transactions }
            }
            b"s3dB" => Inspected::Part(Part::decode(bytes)?),
            b"s3dI" => Inspected::Client(ClientRecord::decode(bytes)?),
            b"s3dQ" => Inspected::Message(Stored::decode(bytes)?),
            b"s3dD" => Inspected::Database(Database::decode(bytes)?),
            b"s3dW" => Inspected::Claims(Claims::decode(bytes)?),
            b"s3dA" => Inspected::Writers(Writers::decode(bytes)?.iter().collect()),
            b"s3dC" => Inspected::Collection(Collection::decode("", bytes)?),
            b"s3dN" => Inspected::Numbers(Numbers::decode(bytes)?),
            b"s3dV" => {
                let (id, writes) = decode_data(bytes)?;
                Inspected::Writes(id, writes)
            }
            b"s3dF" => Inspected::Kept(KeptPage::decode(bytes)?),
            b"s3dE" => Inspected::Sealed(SealedFrame::decode(bytes)?),
            _ => {
                let expected = "s3dP, s3dL, s3dT, s3dO, s3dB, s3dI, s3dQ, s3dD, s3dW, s3dA, s3dC, s3dN, s3dV, s3dF or s3dE";
                return Err(magic_error(bytes, *found, expected));
            }
        })
    }

    /// The blobs that are named in it.
    pub(crate) fn blobs(&self, to: &mut HashSet<Stamp>) {
        match self {
            Inspected::Record(LogRecord { change: Change::Blob(_, blob), .. }) => {
                to.insert(blob.stamp());
            }
            Inspected::Transaction(transaction, _) => {
                to.extend(
                    transaction.entries.iter().filter_map(|entry| Some(entry.blob()?.stamp())),
                );
            }
            Inspected::Log { transactions, .. } => {
                transactions.iter().for_each(|it| it.blobs(to));
            }
            Inspected::Page(page) => {
                to.extend(page.slots().iter().filter_map(|slot| Some(slot.blob()?.stamp())));
            }
            Inspected::Writes(_, writes) => {
                to.extend(writes.iter().filter_map(|write| Some(write.blob()?.stamp())));
            }
            Inspected::Numbers(numbers) => {
                let writes = numbers.commits.iter().flat_map(|commit| &*commit.writes);
                to.extend(writes.filter_map(|write| Some(write.blob()?.stamp())));
            }
            _ => {}
        }
    }

    /// The bytes again: what was decoded is written as it was read. `None` for what nothing is decoded to: a
    /// transaction whose records lie in an object and here, too.
    pub fn encode(&self) -> Option<Bytes> {
        match self {
            Inspected::Page(page) => Some(page.encode()),
            Inspected::Record(record) => Some(record.to_bytes().into()),
            Inspected::Transaction(transaction, None) => Some(transaction.encode()),
            Inspected::Transaction(transaction, Some(object)) => {
                transaction.entries.is_empty().then(|| transaction.encode_spilled(object))
            }
            Inspected::Part(part) => Some(part.encode()),
            Inspected::Message(message) => Some(message.encode()),
            Inspected::Database(database) => Some(database.encode()),
            Inspected::Collection(collection) => Some(collection.encode()),
            Inspected::Numbers(numbers) => Some(numbers.encode()),
            Inspected::Writes(id, writes) => Some(encode_data(*id, writes)),
            Inspected::Writers(clients) => Some(Writers::of(clients).encode()),
            Inspected::Log { stream, number, write_id, transactions } => {
                let frames: Option<Vec<Bytes>> =
                    transactions.iter().map(Inspected::encode).collect();
                Some(objects::encode(*stream, *number, *write_id, &frames?))
            }
            Inspected::Fence { stream, number, write_id, by_epoch } => {
                Some(objects::encode_fence(*stream, *number, *write_id, *by_epoch))
            }
            Inspected::Client(client) => Some(client.encode()),
            Inspected::Claims(claims) => Some(claims.encode()),
            Inspected::Kept(page) => Some(page.encode()),
            Inspected::Sealed(frame) => Some(frame.encode()),
        }
    }
}
