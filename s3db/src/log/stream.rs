//! Log records one after the other, as a message or a log object holds them.

use crate::log::{LogRecord, codec::DecodeError};

/// A place in a stream from which no record could be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("record {index} at byte {offset}: {cause}")]
pub struct StreamError {
    /// How many records came before it.
    pub index: u64,
    /// Where it starts, in bytes from the start of the stream.
    pub offset: u64,
    /// What is wrong with it.
    pub cause: DecodeError,
}

/// Decodes records until the bytes end or one is damaged.
///
/// After an error there is nothing more: without a length that can be believed, the place where
/// the next record starts is a guess.
#[derive(Clone, Debug)]
pub struct LogRecords<'a> {
    rest: &'a [u8],
    offset: u64,
    index: u64,
}

impl<'a> LogRecords<'a> {
    /// The records in `bytes`.
    pub fn new(bytes: &'a [u8]) -> LogRecords<'a> {
        LogRecords { rest: bytes, offset: 0, index: 0 }
    }

    /// Where the next record starts, in bytes.
    pub fn offset(&self) -> u64 {
        self.offset
    }
}

impl Iterator for LogRecords<'_> {
    type Item = Result<LogRecord, StreamError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        match LogRecord::decode(self.rest) {
            Ok((record, bytes)) => {
                self.rest = &self.rest[bytes..];
                self.offset += bytes as u64;
                self.index += 1;
                Some(Ok(record))
            }
            Err(cause) => {
                self.rest = &[];
                Some(Err(StreamError { index: self.index, offset: self.offset, cause }))
            }
        }
    }
}
