//! When each request ran: a wrapper that writes it down, and the rounds that it shows.

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::StreamExt;
use pager::async_trait;
use sources::{BlockSource, ByteStream, Frame, ObjectStat, SourceError, Version};

/// One request, in time since the timeline began.
#[derive(Clone, Debug)]
pub struct Request {
    /// The bytes asked for; empty for length and version.
    pub range: Range<u64>,
    /// When it was sent.
    pub sent: Duration,
    /// When its first bytes were there.
    pub first: Duration,
    /// When its last bytes were there.
    pub last: Duration,
}

/// The requests of all sources that share it.
#[derive(Clone)]
pub struct Timeline {
    began: Instant,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Default for Timeline {
    fn default() -> Timeline {
        Timeline { began: Instant::now(), requests: Arc::default() }
    }
}

impl Timeline {
    /// `source`, with its requests written down here.
    pub fn watch(&self, source: Arc<dyn BlockSource>) -> Watched {
        Watched { source, timeline: self.clone() }
    }

    /// Time since the timeline began.
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn note(&self, request: Request) {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).push(request);
    }

    /// The requests that are over, in the order in which they were sent.
    pub fn requests(&self) -> Vec<Request> {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone();
        requests.sort_by_key(|request| request.sent);
        requests
    }

    /// The requests in groups of such as were sent before any of the group had an answer: round
    /// trips that follow each other.
    pub fn rounds(&self) -> Vec<Vec<Request>> {
        let mut rounds: Vec<Vec<Request>> = Vec::new();
        let mut answered = Duration::ZERO;
        for request in self.requests() {
            match rounds.last_mut() {
                Some(round) if request.sent < answered => {
                    answered = answered.min(request.first);
                    round.push(request);
                }
                _ => {
                    answered = request.first;
                    rounds.push(vec![request]);
                }
            }
        }
        rounds
    }

    /// The rounds as a table in Markdown: times in ms since the timeline began.
    pub fn markdown(&self) -> String {
        let ms = |time: Duration| format!("{:.0}", time.as_secs_f64() * 1e3);
        let mut text =
            "| round | requests | bytes | sent, first to last | first answer | last byte |\n\
             | --- | --- | --- | --- | --- | --- |\n"
                .to_owned();
        for (n, round) in (1..).zip(self.rounds()) {
            let bytes: u64 = round.iter().map(|r| r.range.end - r.range.start).sum();
            let (from, to) = (round[0].sent, round[round.len() - 1].sent);
            let first = round.iter().map(|r| r.first).min().unwrap_or_default();
            let last = round.iter().map(|r| r.last).max().unwrap_or_default();
            text += &format!(
                "| {n} | {} | {bytes} | {} to {} ms | {} ms | {} ms |\n",
                round.len(),
                ms(from),
                ms(to),
                ms(first),
                ms(last)
            );
        }
        text
    }
}

/// A source whose requests are written down.
pub struct Watched {
    source: Arc<dyn BlockSource>,
    timeline: Timeline,
}

#[async_trait]
impl BlockSource for Watched {
    fn name(&self) -> &str {
        self.source.name()
    }

    async fn stat(&self) -> Result<ObjectStat, SourceError> {
        let sent = self.timeline.now();
        let stat = self.source.stat().await?;
        let over = self.timeline.now();
        self.timeline.note(Request { range: 0..0, sent, first: over, last: over });
        Ok(stat)
    }

    async fn read(&self, version: &Version, range: Range<u64>) -> Result<ByteStream, SourceError> {
        let sent = self.timeline.now();
        let body = self.source.read(version, range.clone()).await?;
        let first = self.timeline.now();
        let timeline = self.timeline.clone();
        let mut left = range.end - range.start;
        // The reader need not ask for more than the last byte, so the end is where none is left.
        let noted = body.inspect(move |chunk| {
            let Ok(chunk) = chunk else { return };
            let before = left;
            left = left.saturating_sub(chunk.len() as u64);
            if before > 0 && left == 0 {
                let last = timeline.now();
                timeline.note(Request { range: range.clone(), sent, first, last });
            }
        });
        Ok(noted.boxed())
    }

    async fn read_into(
        &self,
        version: &Version,
        range: Range<u64>,
        frame: Frame,
    ) -> Result<Frame, SourceError> {
        let sent = self.timeline.now();
        let frame = self.source.read_into(version, range.clone(), frame).await?;
        let last = self.timeline.now();
        self.timeline.note(Request { range, sent, first: last, last });
        Ok(frame)
    }

    fn fills_frames(&self) -> bool {
        self.source.fills_frames()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_begin_where_an_answer_was_waited_for() {
        let timeline = Timeline::default();
        let at = Duration::from_millis;
        // (sent, first answer): two rounds of two, then one; a late answer joins no two rounds.
        for (sent, first) in [(0, 30), (1, 90), (31, 61), (32, 62), (65, 95)] {
            let request =
                Request { range: 0..10, sent: at(sent), first: at(first), last: at(first) };
            timeline.note(request);
        }
        let counts: Vec<usize> = timeline.rounds().iter().map(Vec::len).collect();
        assert_eq!(counts, [2, 2, 1]);
        assert!(timeline.markdown().contains("| 3 | 1 | 10 | 65 to 65 ms | 95 ms | 95 ms |"));
    }
}
