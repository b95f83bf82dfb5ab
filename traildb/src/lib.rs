//! Read, write and query TrailDB databases, local or remote.
//!
//! ```text
//!   write:   events -> group -> model -> code -> encode -> pack -> file
//!   read:    any Storage     -> container -> member -> trail cursor -> events
//!   shared:  container/ (directory, package)   member/ (one file per member)   bits
//! ```
//!
//! A database is a set of *trails*: events of one UUID, in the order of time. An event has a
//! timestamp and one value for each field; values are byte strings, and the empty one is NULL.

#![forbid(unsafe_code)]

mod bits; // the only place that shifts
mod item; // a field and a value in 64 bits; UUIDs
mod error; // what can go wrong
pub mod storage; // where the bytes are
#[cfg(feature = "pager")]
mod storage_region; // a region of the pager as a storage
mod container; // members by name: package and directory
mod member; // the bytes of each member, read and written
pub mod filter; // which events are wanted: text, expression, filter
pub mod index; // trails of an item, numbers of values: a file beside the database
mod read; // Reader, its cursors, scans
pub mod shards; // many databases as one
mod write; // Builder: events into a file
pub mod verify; // every rule of the format, for a whole database
pub mod synth; // made-up events for demos and benchmarks

pub use crate::{
    error::{Error, InputError},
    filter::Filter,
    index::Index,
    item::{DELTA_MAX, FIELDS_MAX, Item, TRAILS_MAX, Uuid, UuidError, VALUES_MAX},
    member::{fields::Fields, lexicon::Value},
    read::{
        Batch, Chunk, Event, LastValues, MultiBatch, MultiCursor, MultiEvent, Reader, Scan, Trail,
        Valued, View, existing,
    },
    shards::Shards,
    storage::Storage,
    write::{Appender, Bigrams, Builder, Options, Sink, Unfinished, Written},
};

#[doc(hidden)] // for the command
pub use crate::read::ordered;

// Its examples are compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
