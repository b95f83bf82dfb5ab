//! Who waits until a unit is in another state, whatever becomes of it.
//!
//! A load waits for one unit to be decided, and is told what came of it: that is `waiters`. A map that begins
//! or ends waits for what is half done, and asks for nothing. It is rare, so all changes ring one bell, and
//! only while somebody listens.

use tokio::sync::Notify;

use crate::sync::{AtomicU32, Ordering};

/// The bell.
#[derive(Default)]
pub(super) struct Changes {
    waiting: AtomicU32,
    changed: Notify,
}

impl Changes {
    /// Something has changed. Called after the change.
    pub(super) fn tell(&self) {
        // Who waits counts before it looks: either this sees the count, or the look sees the change.
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.changed.notify_waiters();
        }
    }

    /// Resolves when `done` holds, which is looked at after each change.
    pub(super) async fn until(&self, done: impl Fn() -> bool) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let _counted = Counted(self);
        loop {
            let changed = self.changed.notified();
            if done() {
                return;
            }
            changed.await;
        }
    }
}

/// One of those who wait, also where its future is dropped.
struct Counted<'a>(&'a Changes);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}
