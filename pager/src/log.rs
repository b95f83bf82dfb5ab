//! What happened, told by a thread of its own.
//!
//! ```text
//!   engine, requests --> queue, bounded --> thread pager-log --> the program's tracing subscriber
//!                                                           `-> stderr, why it gets SIGBUS, where
//!                                                               no subscriber takes that
//! ```
//!
//! A subscriber takes locks: its own, or that of stderr. The thread that waits in a fault may hold
//! the same ones, so nobody who puts bytes in place may call it, or wait without end until it was
//! called. What a full queue has no room for is left out.

use std::{
    collections::HashMap,
    io,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    time::{Duration, Instant},
};

use tokio::sync::oneshot;
use tracing::{Level, Span};

use crate::{error::SourceError, failure::say, sys::Mechanism};

/// Lines that wait to be told.
const LINES_MAX: usize = 1024;

/// Requests whose end is waited for. An end that found the queue full never comes, so at this number
/// all are taken to have ended.
const SPANS_MAX: usize = 4096;

/// How soon to look again whether the queue has room for a cause of SIGBUS.
const FULL_WAIT: Duration = Duration::from_millis(5);

/// Where what happened goes. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Log {
    lines: SyncSender<Line>,
    next_id: Arc<AtomicU64>,
}

enum Line {
    /// Something that somebody should look at.
    Error(String),
    /// Why a reader is about to get SIGBUS; `told` is dropped when somebody has heard it.
    Poisoned {
        text: String,
        told: oneshot::Sender<()>,
    },
    Opened {
        object: Arc<str>,
        bytes: u64,
        unit: u64,
        mechanism: Mechanism,
    },
    Started {
        id: u64,
        object: Arc<str>,
        range: Range<u64>,
        guess: bool,
    },
    Ended {
        id: u64,
        units: u64,
        requests: u64,
        installing: Duration,
        took: Duration,
        error: Option<&'static str>,
    },
    Evicted {
        units: u64,
        used: u64,
        limit: u64,
    },
}

impl Log {
    /// Starts the thread. It ends with the last clone.
    pub(crate) fn start() -> io::Result<Log> {
        let (lines, receiver) = sync_channel(LINES_MAX);
        std::thread::Builder::new().name("pager-log".to_owned()).spawn(move || {
            let mut spans = HashMap::new();
            for line in receiver {
                tell(line, &mut spans);
            }
        })?;
        Ok(Log { lines, next_id: Arc::default() })
    }

    /// A reader of the bytes `range` of `object` is about to get SIGBUS because of `error`, which may
    /// be the end of the process. The future, which may be dropped at any point, ends when the cause
    /// was told: perhaps never, since the reader may hold the lock that telling takes.
    pub(crate) async fn poisoned(&self, object: &str, range: Range<u64>, error: &SourceError) {
        let (told, heard) = oneshot::channel();
        let mut line = Line::Poisoned { text: poison_text(object, range, error), told };
        while let Err(TrySendError::Full(back)) = self.lines.try_send(line) {
            line = back;
            tokio::time::sleep(FULL_WAIT).await;
        }
        let _ = heard.await;
    }

    /// The same, for who cannot wait.
    pub(crate) fn poisoned_now(&self, object: &str, range: Range<u64>, error: &SourceError) {
        let text = poison_text(object, range, error);
        self.put(Line::Poisoned { text, told: oneshot::channel().0 });
    }

    /// Anything else that somebody should look at. Never waits.
    pub(crate) fn note(&self, text: String) {
        self.put(Line::Error(text));
    }

    /// A region of `bytes` bytes in units of `unit` bytes is open, and `mechanism` puts them in place.
    pub(crate) fn opened(&self, object: &Arc<str>, bytes: u64, unit: u64, mechanism: Mechanism) {
        if tracing::enabled!(target: "pager", Level::DEBUG) {
            self.put(Line::Opened { object: object.clone(), bytes, unit, mechanism });
        }
    }

    /// A request for the bytes `range` of `object` begins. `None` unless somebody listens.
    pub(crate) fn fetch(&self, object: &Arc<str>, range: Range<u64>, guess: bool) -> Option<Fetch> {
        if !tracing::enabled!(target: "pager", Level::DEBUG) {
            return None;
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        self.put(Line::Started { id, object: object.clone(), range, guess });
        Some(Fetch {
            log: self.clone(),
            id,
            start: Instant::now(),
            units: 0,
            requests: 0,
            installing: Duration::ZERO,
            error: None,
        })
    }

    /// `units` units were given up to make room, since this was told last; the budget has `used` of
    /// `limit` bytes reserved now.
    pub(crate) fn evicted(&self, units: u64, used: u64, limit: u64) {
        if units > 0 && tracing::enabled!(target: "pager", Level::TRACE) {
            self.put(Line::Evicted { units, used, limit });
        }
    }

    fn put(&self, line: Line) {
        let _ = self.lines.try_send(line);
    }
}

/// A request under way, as it will be told. It ends when this is dropped.
pub(crate) struct Fetch {
    log: Log,
    id: u64,
    start: Instant,
    units: u64,
    requests: u64,
    installing: Duration,
    error: Option<&'static str>,
}

impl Fetch {
    /// The source was asked.
    pub(crate) fn asked(&mut self) {
        self.requests += 1;
    }

    /// One unit was put in place, which took from `since` until now.
    pub(crate) fn installed(&mut self, since: Instant) {
        self.units += 1;
        self.installing += since.elapsed();
    }

    /// It failed, with an error of this kind.
    pub(crate) fn failed(&mut self, kind: &'static str) {
        self.error = Some(kind);
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        let Fetch { id, start, units, requests, installing, error, .. } = *self;
        let took = start.elapsed();
        self.log.put(Line::Ended { id, units, requests, installing, took, error });
    }
}

/// Runs on the thread of the log, where waiting for a lock harms nobody.
fn tell(line: Line, spans: &mut HashMap<u64, Span>) {
    match line {
        Line::Error(text) => tracing::error!(target: "pager", "{text}"),
        Line::Poisoned { text, told } => {
            // Where nobody listens, SIGBUS would end the process without a word.
            match tracing::enabled!(target: "pager", Level::ERROR) {
                true => tracing::error!(target: "pager", "{text}"),
                false => say(&text),
            }
            drop(told);
        }
        Line::Opened { object, bytes, unit, mechanism } => {
            let object = &*object;
            tracing::debug!(target: "pager", object, bytes, unit, ?mechanism, "opened");
        }
        Line::Started { id, object, range, guess } => {
            if spans.len() >= SPANS_MAX {
                spans.clear();
            }
            let span = tracing::debug_span!(
                target: "pager",
                "fetch",
                object = &*object,
                from = range.start,
                bytes = range.end - range.start,
                guess,
                requests = tracing::field::Empty,
                units = tracing::field::Empty,
                took_us = tracing::field::Empty,
                error = tracing::field::Empty,
            );
            spans.insert(id, span);
        }
        Line::Ended { id, units, requests, installing, took, error } => {
            let Some(span) = spans.remove(&id) else { return };
            span.record("requests", requests);
            span.record("units", units);
            span.record("took_us", micros(took));
            if let Some(error) = error {
                span.record("error", error);
            }
            if units > 0 {
                let took_us = micros(installing);
                tracing::trace!(target: "pager", parent: &span, units, took_us, "installed");
            }
        }
        Line::Evicted { units, used, limit } => {
            tracing::trace!(target: "pager", units, used, limit, "evicted");
        }
    }
}

/// Which bytes raise SIGBUS, and why, down to the cause of the cause.
fn poison_text(object: &str, range: Range<u64>, error: &SourceError) -> String {
    let Range { start, end } = range;
    let mut text = format!(
        "{object}: bytes {start}..{end} cannot be had, reading them raises SIGBUS: {error}"
    );
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_kept_for_a_program_that_does_not_listen() {
        let (lines, receiver) = sync_channel(LINES_MAX);
        let log = Log { lines, next_id: Arc::default() };
        assert!(log.fetch(&Arc::from("x"), 0..1, false).is_none());
        log.evicted(3, 1, 2);
        assert!(receiver.try_recv().is_err(), "nothing is told");
        (0..2 * LINES_MAX).for_each(|n| log.note(n.to_string()));
        assert_eq!(receiver.try_iter().count(), LINES_MAX, "and what is told has a limit");
    }

    #[test]
    fn requests_whose_end_is_lost_are_forgotten() {
        let mut spans = HashMap::new();
        for id in 0..3 * SPANS_MAX as u64 {
            tell(
                Line::Started { id, object: Arc::from("x"), range: 0..1, guess: true },
                &mut spans,
            );
        }
        assert!(spans.len() <= SPANS_MAX);
    }
}
