#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod log; // what a commit sends and a checkpoint applies
mod record; // keys and what belongs to them
mod stamp; // the order of all writes

pub use crate::{
    log::{
        Change, LogRecord,
        codec::{DecodeError, FRAME_BYTES_MAX, FRAME_BYTES_MIN},
        stream::{LogRecords, StreamError},
    },
    record::{BoundError, KEY_BYTES_MAX, Key, PAYLOAD_BYTES_MAX, Payload, Record},
    stamp::Stamp,
};
