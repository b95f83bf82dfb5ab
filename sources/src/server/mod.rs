//! What block servers and their clients say to each other.
//!
//! `extmem serve` keeps one cache for every program on a machine. `PROTOCOL.md` is the text of what
//! goes over its sockets; here are the frames.

pub mod v000; // the protocol of the first clients of TrailDB
