//! The services on one machine: a directory, or memory. No account, no server.
//!
//! ```text
//!   Objects   files        lock by name -> compare -> temporary, fsync -> rename -> fsync directory
//!             memory       a map
//!   Queue     over either: one object per message, taken by compare and swap
//! ```
//!
//! A directory is safe between processes of one machine, and what was answered is there after a
//! crash of the process or the machine. It is not for network file systems, whose locks and renames
//! promise less; those are refused.

mod files; // objects in a directory
mod memory; // objects in memory
mod queue; // messages as objects
mod system; // this machine's clock and randomness

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, checksum};

pub use files::Files;
pub use memory::Memory;
pub use queue::{ObjectQueue, Stored};
pub use system::System;

use crate::{
    cloud::{Cloud, ETag, Fault, Objects},
    error::StoreError,
};

/// Services in the directory `root`, which need not be there yet.
///
/// # Errors
/// [`StoreError::Invalid`] when it lies on a network file system, or is no directory.
pub fn directory(root: &Path) -> Result<Cloud, StoreError> {
    Ok(over(Arc::new(Files::open(root)?)))
}

/// Services in `memory`, gone with the last handle to it.
pub fn memory(memory: Arc<Memory>) -> Cloud {
    over(memory)
}

fn over(objects: Arc<dyn Objects>) -> Cloud {
    let system = Arc::new(System::new());
    let queue = ObjectQueue::new(objects.clone(), system.clone(), system.clone());
    let queue = Arc::new(queue);
    Cloud { objects, queue, clock: system.clone(), chance: system, disk: None }
}

/// From content, as S3 does it: 64 bits of checksum and the length. Pages and logs differ by random
/// bytes, so that only equal bytes have equal tags.
fn tag(bytes: &[u8]) -> ETag {
    ETag::new(&format!("\"{:016x}-{:x}\"", checksum(CrcAlgorithm::Crc64Nvme, bytes), bytes.len()))
}

/// Names are checked, so that none leads out of the directory.
fn check(name: &str) -> Result<(), Fault> {
    let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let is_part = |part: &str| !matches!(part, "" | "." | "..") && part.bytes().all(is_fine);
    if name.len() <= 200 && name.split('/').all(is_part) {
        return Ok(());
    }
    let what = name.escape_default().to_string();
    Err(Fault::Invalid { what, cause: "no name of an object".into() })
}

/// An object, and the tag of its bytes.
type Tagged = (Bytes, ETag);
