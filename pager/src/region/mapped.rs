//! The whole object as one slice.

use std::{fmt, ops::Deref};

use super::Handle;
use crate::sync::Arc;

/// The object as memory: reading a missing unit faults, and the fault fetches it. Cheap to clone;
/// keeps its region open.
///
/// A unit that is given up may be taken out of the map as it is, memory and all, and that memory is
/// then filled with bytes of another unit ([`Mechanism::Move`](crate::Mechanism::Move)). Who reads
/// through the map never sees that. But a system call that keeps a reference to the memory after it has
/// returned does: `vmsplice`, a socket's `MSG_ZEROCOPY`, and whatever sends later what it was given now.
/// Give these a [`Guard`](crate::Guard), and keep it until the kernel says that it is done.
#[derive(Clone)]
pub struct Mapped(Arc<Handle>);

impl Mapped {
    pub(super) fn new(handle: Arc<Handle>) -> Mapped {
        Mapped(handle)
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let ledger = &self.0.object.ledger;
        let len = ledger.geometry().object_len() as usize;
        let Some(memory) = ledger.memory() else { return &[] };
        // SAFETY: the mapping holds the whole object and lives as long as the handle. Every page
        // is missing, in which case a touch waits until the kernel has put the object's bytes
        // there, or holds these bytes; the version is pinned, so a unit that is discarded and
        // fetched again has the same bytes. `map` is refused where no fault mechanism does this.
        unsafe { std::slice::from_raw_parts(memory.base().as_ptr(), len) }
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Mapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mapped({})", self.0.object.name)
    }
}
