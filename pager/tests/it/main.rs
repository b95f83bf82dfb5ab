//! Tests that drive the pager as a user does: real mappings, real faults, sources that misbehave.

mod support;

mod reading;
