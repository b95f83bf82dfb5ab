//! Where bytes come from: S3, HTTP, local files, memory, any `object_store`.
//!
//! ```text
//!   open(url) = DiskCache?( Retry( Limit( Hedge?( Counted( leaf ) ) ) ) )
//!                 |           |      |      |        |       +-- one attempt, one version, exact bytes
//!                 |           |      |      |        +---------- requests, bytes, dollars
//!                 |           |      |      +------------------- a second GET for the slowest 2 %
//!                 |           |      +-------------------------- as many at once as the server bears
//!                 |           +--------------------------------- again, from the byte reached
//!                 +--------------------------------------------- from a local disk, if it is there
//! ```
//!
//! Leaves and wrappers are [`BlockSource`]s; configuration is composition:
//!
//! ```
//! use sources::{Memory, Retry};
//! let source = Retry::new(Memory::new("sample", vec![0u8; 1 << 20]));
//! # let _ = source;
//! ```
#![forbid(unsafe_code)]

// Without any remote leaf there is nothing to dress or to share.
#[cfg_attr(
    not(any(feature = "http", feature = "s3", feature = "gs", feature = "azure")),
    allow(dead_code, unused_imports)
)]
pub mod open; // which source for which address
pub mod allow; // which addresses strangers may name
pub mod memory; // leaf, and sink: bytes in memory
pub mod local; // leaf, and sink: files
#[cfg(feature = "http")]
pub mod http; // leaf: any server with ranges
#[cfg(feature = "s3")]
pub mod s3; // leaf, and sink: buckets
#[cfg(feature = "store")]
pub mod store; // leaf: any object_store
#[cfg(feature = "aws")]
pub mod aws; // configuration and clients that s3 and databases share
pub mod retry; // wrapper: again, from the byte reached
pub mod limit; // wrapper: as many at once as the server bears
pub mod hedge; // wrapper: a second request when the first is late
pub mod disk_cache; // wrapper: what was read, kept on disk
pub mod concat; // several objects, or parts of them, as one
pub mod expand; // one name for many objects
pub mod server; // what block servers and their clients say to each other
pub mod faulty; // wrapper: fails on a schedule, for tests
pub mod traffic; // wrapper: counts requests and bytes
pub mod price; // what those cost
pub mod monitor; // what pagers are doing, for people who watch
pub mod size; // bytes as people write them
#[doc(hidden)] // for the commands
pub mod available; // memory that this process may take
pub mod counters; // the names of all metrics
pub mod conformance; // what every source and sink promises, checked
#[cfg_attr(not(any(feature = "http", feature = "s3", feature = "store")), allow(dead_code))]
mod body; // exact and timely bodies
// Each leaf needs its part of it; all of it is needed with both.
#[cfg_attr(not(all(feature = "http", feature = "s3")), allow(dead_code))]
#[cfg(any(feature = "http", feature = "s3", feature = "store"))]
mod wire; // what HTTP says about ranges and failures
#[cfg(any(feature = "http", feature = "aws"))]
mod authorities; // checked certificate files
#[cfg_attr(not(all(feature = "http", feature = "s3")), allow(dead_code))]
mod encoding; // text of addresses and headers
mod chance; // seeded random numbers

pub use async_trait::async_trait;
pub use pager::{
    BlockSink, BlockSource, ByteStream, Frame, ObjectStat, SinkError, SourceError, Strength,
    Version, Writing,
};

#[cfg(feature = "http")]
pub use crate::http::Http;
#[cfg(feature = "s3")]
pub use crate::s3::{S3, S3Sink, S3SinkOptions};
#[cfg(feature = "store")]
pub use crate::store::Store;
pub use crate::{
    allow::AllowList,
    concat::{Concat, Part},
    disk_cache::{Cache, CacheKey, CachePolicy, DiskCache},
    expand::{Expand, ExpandError},
    faulty::Faulty,
    hedge::Hedge,
    limit::{Gate, Limit},
    local::{Local, LocalSink},
    memory::Memory,
    open::{Options, open},
    retry::{Retry, RetryPolicy},
    server::Served,
    traffic::{Counted, Traffic},
};

// Its examples are compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
