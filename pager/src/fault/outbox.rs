//! What the engine is to hear of faults, now or a little later.
//!
//! To tell it wakes a thread, on a processor that a reader may be about to run on. So what nobody is in a hurry
//! for is kept, and told together: before anything else is, when it is due, or when it is many.

use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;

use crate::{
    fetch::Request,
    sync::{Mutex, lock},
};

/// How long reads without an order wait, as long as faults come; else the next one has it told.
const WAIT: Duration = Duration::from_millis(5);
/// How many of them.
const MISSED_MAX: usize = 16;

pub(super) struct Outbox {
    engine: UnboundedSender<Request>,
    later: Mutex<Later>,
}

#[derive(Default)]
struct Later {
    requests: Vec<Request>,
    due: Option<Instant>,
}

impl Outbox {
    pub(super) fn new(engine: UnboundedSender<Request>) -> Outbox {
        Outbox { engine, later: Mutex::default() }
    }

    /// Tells the engine, and what came before first.
    pub(super) fn send(&self, request: Request) {
        self.flush();
        self.tell(request);
    }

    /// Has the engine hear of a read without an order.
    pub(super) fn missed(&self, request: Request) {
        let mut later = lock(&self.later);
        later.requests.push(request);
        later.due.get_or_insert_with(|| Instant::now() + WAIT);
        let is_full = later.requests.len() >= MISSED_MAX;
        drop(later);
        if is_full {
            self.flush();
        }
    }

    /// When something is to be told at the latest.
    pub(super) fn due(&self) -> Option<Instant> {
        lock(&self.later).due
    }

    pub(super) fn flush_if_due(&self) {
        if self.due().is_some_and(|due| Instant::now() >= due) {
            self.flush();
        }
    }

    pub(super) fn flush(&self) {
        let Later { requests, .. } = std::mem::take(&mut *lock(&self.later));
        requests.into_iter().for_each(|request| self.tell(request));
    }

    /// Tells the engine, which outlives every region; without it the process is going down, and what
    /// `request` holds is kept from ending here.
    fn tell(&self, request: Request) {
        if let Err(unsent) = self.engine.send(request) {
            std::mem::forget(unsent);
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;

    #[test]
    fn what_waits_is_told_in_its_order_when_it_is_due_or_many_or_more_is_told() {
        let (engine, mut requests) = unbounded_channel();
        let outbox = Outbox::new(engine);
        let missed = |unit| Request::Missed { region: 1, unit };
        let mut told = || {
            let mut units = Vec::new();
            while let Ok(request) = requests.try_recv() {
                let (Request::Missed { unit, .. } | Request::Again { unit, .. }) = request else {
                    panic!("nothing else was told")
                };
                units.push(unit);
            }
            units
        };
        outbox.missed(missed(0));
        outbox.missed(missed(1));
        assert_eq!(told(), [], "nobody waits for it");
        outbox.send(Request::Again { region: 1, unit: 2 });
        assert_eq!((told(), outbox.due()), (vec![0, 1, 2], None));

        let before = Instant::now();
        outbox.missed(missed(3));
        outbox.missed(missed(4));
        let due = outbox.due().expect("something waits");
        assert!(due >= before + WAIT && due <= Instant::now() + WAIT);
        lock(&outbox.later).due = Some(before + Duration::from_secs(3600));
        outbox.flush_if_due();
        assert_eq!(told(), [], "it has an hour");
        lock(&outbox.later).due = Some(before);
        outbox.flush_if_due();
        assert_eq!((told(), outbox.due()), (vec![3, 4], None));

        (0..MISSED_MAX as u64).for_each(|unit| outbox.missed(missed(unit)));
        assert_eq!(told().len(), MISSED_MAX);
    }
}
