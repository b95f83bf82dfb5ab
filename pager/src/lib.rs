//! Read a remote object as if it were memory.
//!
//! ```text
//! BlockSource --> fetch --> cache --> fault --> Region --> consumer    bytes -->
//!   (async)     (async)   (ledger)  (thread)  (&[u8])                 <-- demand
//!                            ^
//!                          policy: which to evict, which to prefetch
//! ```

pub mod units; // the arithmetic between offsets and units
pub mod source; // where bytes come from
pub mod frame; // owned buffers that a source fills in place
pub mod policy; // which unit to evict, which to prefetch
mod error; // what can go wrong
mod sys; // mmap and userfaultfd: the only unsafe code

pub use crate::{
    error::{Cause, ConfigError, Error, SourceError},
    frame::Frame,
    source::{BlockSource, ByteStream, ObjectStat, Strength, Version},
};
pub use async_trait::async_trait;
pub use bytes::Bytes;
