//! Snapshot and serializable transactions: one object puts all commits in an order.
//!
//! ```text
//!   begin     get the numbers: a snapshot is the number of the last commit
//!   read      the window's commits up to the snapshot, then versions on pages up to it
//!   commit    1  put blobs, and what is written, if it is large  crash: garbage
//!             2  swap in the next number, with what is written   this is the commit point
//!   apply     put each write on its page as a version; swap in that all are there
//! ```
//!
//! Versions never replace each other: each is a slot of its own, so a page holds what any snapshot needs
//! until it is pruned. Two transactions that write the same record cannot both have a number behind the
//! other's snapshot; at the serializable level neither can one that read what the other wrote.
//!
//! - *The window* is the last commits, in the sequencer itself. A snapshot that is older cannot commit
//!   any more: whether it may is not known.
//! - *No holes.* A page says up to which commit it has everything. A reader at a snapshot needs the
//!   window and the page to meet; where they do not, its copy of the page is too old, and the newest is
//!   read.
//! - *The horizon* is what pages may be pruned up to. A reader of a snapshot before it is told so.
//!
//! The log has no part in it: all backends work alike.

pub(crate) mod codec; // the sequencer's bytes
mod window; // what a view of the sequencer knows
mod batch; // many transactions, one swap
mod sequencer; // the newest view, the swap, and who leads
mod versions; // versions on leaves
mod apply; // from the window to the pages
mod scan; // a range of one tree, at a snapshot
mod follow; // indexes, whose entries have versions, too
mod garbage; // what no commit names, and what no snapshot needs
mod health; // whether it is there, and what waits in it
mod transaction; // reads and writes at a snapshot

pub(crate) use apply::apply;
pub use codec::{Commit as SequencedCommit, Numbers, SequencedIndex, Write as SequencedWrite};
pub(crate) use codec::{DATA, NUMBERS};
pub(crate) use follow::{build, check, forget, forget_dropped, is_ready};
pub(crate) use garbage::{collect, named, tidy};
pub use health::SequencerState;
pub(crate) use health::{examine, examine_data, is_behind, is_waiting};
pub(crate) use sequencer::{Sequencer, find, plant, sweep};
pub(crate) use transaction::gone;
pub use transaction::{Isolated, IsolatedFound, IsolatedScan};
pub(crate) use versions::{examine_leaf, is_versioned, make_versioned};
