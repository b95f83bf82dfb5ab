//! What block servers and their clients say to each other, and the client's end.
//!
//! `extmem serve` keeps one cache for every program on a machine. `PROTOCOL.md` is the text of what
//! goes over its sockets. [`Served`] is the source for whatever lies behind such a server:
//!
//! ```text
//!   open("server+unix:///run/extmem.sock?url=s3://bucket/key")
//!   EXTMEM_SERVER=unix:///run/extmem.sock       the same, for every address of a remote object
//! ```

pub(crate) mod address; // where a server is
mod client; // one connection, shared
pub mod frames; // our own protocol
mod memory; // an object that a server has in memory, mapped
mod served; // an object behind a server
pub mod socket; // frames and descriptors over a socket
pub mod v000; // the protocol of the first clients of TrailDB

pub use self::{
    client::{Link, Place},
    memory::ServedMap,
    served::Served,
};
