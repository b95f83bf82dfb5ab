//! Transactions and their commit.
//!
//! ```text
//!   1  find the leaf of each key, in cached pages              (which shard takes the record)
//!   2  stamp every change                                      crash before 3: nothing happened
//!   3  append to the log                                       this is the commit point
//!   4  lay own changes over what is read from now on           (until pages show them)
//!   5  note which shards are due for a checkpoint              (the background does it)
//! ```
//!
//! Only step 3 talks to a service when the inner pages are cached, in one call at the atomic level.

mod fresh; // what waits in the log, laid over pages
mod level; // what a commit promises
mod session; // what a client reads, and what it remembers
mod transaction; // a write set

pub use level::Level;
pub use session::{Scan, Session};
pub(crate) use transaction::BLOBS_BYTES_MAX;
pub(crate) use transaction::Write;
pub use transaction::{Committed, TRANSACTION_BYTES_MAX, Txn};
