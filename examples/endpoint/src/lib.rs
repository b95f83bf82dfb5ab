//! A small S3 endpoint that a demo embeds and a benchmark runs as a process of its own.
//!
//! ```text
//!   client --> line -----------> faults --> service ------------> store
//!              first byte, rate  on demand  S3's operations       objects under one lock
//!   client <-- line <---------------------- slices of the object, never copied
//! ```
//!
//! It keeps objects in memory (a file is mapped, not read) and implements what this project uses
//! of S3: ranges and conditions on reads, conditional writes that are atomic, multipart uploads,
//! listings. Signatures are checked against one pair of static credentials. Each connection can
//! behave like one to a remote service: a delay to the first byte of every answer, then a rate,
//! and one link that all connections share. It listens on loopback addresses only: it is made for
//! tests, and nothing in it is hardened for a hostile network.

#![deny(unsafe_code)]

pub mod faults; // answers that go wrong on demand
pub mod files; // plain HTTP over a folder, well-behaved or not
pub mod line; // what a connection costs: delay, rate, a shared link
mod server; // sockets, and the runtime they live on
mod service; // S3's operations, over the store
pub mod store; // buckets of objects, changed under one lock
pub mod tls; // a certificate for loopback

pub use crate::server::{Counters, Door, Endpoint, Settings};
