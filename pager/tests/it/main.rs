//! Tests that drive the pager as a user does: real mappings, real faults, sources that misbehave.

mod support;
mod store;

mod reading;
mod runtimes;
mod wakers;
mod failure;
mod kernel;
mod signals;
mod clock;
mod memory;
mod requests;
mod at_once;
mod seeing;
mod presets;
mod trace;
mod model;
mod writable;
mod mapped_mut;
mod regress;
