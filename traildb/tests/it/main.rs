//! What a user of the library relies on, checked from outside.

mod golden; // the fixtures of ../shared, written by the original library
mod version0; // the same, turned back into version 0
mod hostile; // files that break a rule
mod verify; // the same files, checked whole
#[cfg(feature = "pager")]
mod region; // through a region of the pager
mod rounds; // how many round trips a query takes
mod bulk; // many events at once, as by one
mod skimming; // those of them that have an item
mod queries; // filters, views, merged cursors, scans: against a naive evaluator
mod lookups; // numbers of values, in memory
mod shards; // many databases as one
mod index; // lists of trails, numbers of values
mod writing; // what a builder writes reads back
mod appending; // events of another database
mod spilling; // more events than fit in memory
mod placing; // what is at its name meanwhile
mod conformance; // files keep every rule of the format
mod property; // so do random ones, and they hold what was added
mod rules; // a checker that shares nothing with the library
mod support; // fixtures and comparisons
