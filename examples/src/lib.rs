//! What the demo and the benchmarks share.
//!
//! ```text
//!   data --> bucket --> query, through page faults       --> table
//!   a file   an object  download, then the same query
//! ```

#![forbid(unsafe_code)]

pub mod bucket; // puts a file where it can be queried
pub mod credentials; // of an S3 that the program runs itself
pub mod data; // the database that is asked
pub mod download; // the way without this project: fetch it all first
pub mod faults; // a database whose bytes come through page faults
pub mod measure; // time, medians, the machine
pub mod needed; // which bytes a query cannot do without
pub mod query; // all events of some users
pub mod report; // sections of BENCHMARKS.md
pub mod server; // an S3 in a process of its own
pub mod table; // figures in columns
pub mod timeline; // when each request ran

// The README of all, whose example is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
mod readme {}
