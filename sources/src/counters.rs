//! What is counted, through the `metrics` facade: the one table of names.
//!
//! | name | kind | labels | meaning |
//! | --- | --- | --- | --- |
//! | `sources.requests` | counter | `op`: `stat`, `read` | requests handed to a leaf |
//! | `sources.bytes` | counter | | body bytes that a leaf delivered |
//! | `sources.errors` | counter | `op`, `kind`: `SourceError::kind` | requests and bodies that failed |
//! | `sources.first_byte_us` | histogram | | microseconds from a read to its first chunk |
//! | `sources.retries` | counter | `op`, `kind` | attempts after the first |
//! | `sources.throttles` | counter | | answers that asked for fewer requests |
//! | `sources.hedges` | counter | | second requests sent because the first was late |
//! | `sources.hedges_won` | counter | | second requests that answered before the first |
//! | `sources.limit` | gauge | `gate` | requests that a gate allows at once |
//! | `sources.queue_us` | histogram | | microseconds that a request waited at a gate |
//! | `sources.cache.blocks` | counter | `what`: `hit`, `miss`, `joined`, `stored`, `skipped`, `damaged` | blocks of the disk cache: from disk, from the source, shared with another reader; written, not written, thrown away |
//!
//! No label holds an object's name: there may be millions. [`Traffic`](crate::Traffic) counts the
//! same per source, for a report at the end of a command.

use std::time::Duration;

use metrics::{counter, gauge, histogram};

pub(crate) fn requested(op: &'static str) {
    counter!("sources.requests", "op" => op).increment(1);
}

pub(crate) fn delivered(bytes: u64) {
    counter!("sources.bytes").increment(bytes);
}

pub(crate) fn failed(op: &'static str, kind: &'static str) {
    counter!("sources.errors", "op" => op, "kind" => kind).increment(1);
}

pub(crate) fn first_byte(after: Duration) {
    histogram!("sources.first_byte_us").record(after.as_micros() as f64);
}

pub(crate) fn retried(op: &'static str, kind: &'static str) {
    counter!("sources.retries", "op" => op, "kind" => kind).increment(1);
}

pub(crate) fn throttled() {
    counter!("sources.throttles").increment(1);
}

pub(crate) fn hedged() {
    counter!("sources.hedges").increment(1);
}

pub(crate) fn hedge_won() {
    counter!("sources.hedges_won").increment(1);
}

pub(crate) fn limit(gate: &str, allowed: f64) {
    gauge!("sources.limit", "gate" => gate.to_owned()).set(allowed);
}

pub(crate) fn queued(waited: Duration) {
    histogram!("sources.queue_us").record(waited.as_micros() as f64);
}

pub(crate) fn cache(what: &'static str, blocks: u64) {
    counter!("sources.cache.blocks", "what" => what).increment(blocks);
}
