//! Sequential read-ahead: windows that double while a stream holds, for several streams at once.
//!
//! W. Fengguang, X. Hongsheng, X. Chenfeng, "On the design of a new Linux readahead framework", ACM
//! SIGOPS Operating Systems Review 42(5), 2008: a window is asked for when the reader *enters* the
//! one before, which a mark at its first page reports; so one whole window is always on its way
//! while another is read.
//!
//! ```text
//!   reader at 1: second miss in a row       wants  [2, 4)                    marker 2
//!   reader at 2: marker, or late            wants         [4, 8)             marker 4
//!   reader at 4: marker, or late            wants                [8, 16)     marker 8
//!                                            ^ read       ^ newest
//! ```
//!
//! - **Start.** An isolated miss wants nothing. The first window is as long as the run that proved
//!   the stream: what is fetched in vain is never more than what was read.
//! - **Growth.** Entering the newest window asks for the next, twice as long. A reader that waits
//!   (late) in a stream of some length quadruples it: the source is behind, and a round trip is all
//!   that one step costs.
//! - **Bounds.** Two windows are out at a time, so that one may have half of what speculation may
//!   hold, divided by the streams that are moving; and never more than sixteen full requests.
//! - **Requests.** A window is cut into about eight, as far as these are not tiny, so that even a
//!   small window fills a link of which one connection has only a part.
//! - **Feedback.** A unit that left unread halves the window of its stream, half a window of them
//!   ends the stream. Streams that were started and never entered raise the run that the next one
//!   must show, up to four units; streams that were entered lower it again.
//! - **Backwards.** A descending reader is a forward one in mirrored coordinates.

use std::{collections::VecDeque, ops::Range};

use super::prefetch::{Advice, Limits, PrefetchPolicy, Signal, Want};

/// Streams that are followed at a time.
const STREAMS_MAX: usize = 16;
/// Misses that may yet turn out to be the start of a stream.
const RUNS_MAX: usize = 16;
/// Full requests in the longest window: 128 to 256 MiB, which a link of 10 Gbit/s moves in a tenth
/// to a fifth of a second.
const EXTENTS_MAX: u64 = 16;
/// Requests that a window is cut into, where these get no shorter than an eighth of a full one.
const PIECES: u64 = 8;
/// Windows from this length on quadruple when the reader waits, in units.
const STEEP_FROM: u64 = 16;
/// A stream has stopped when so many windows of others were asked for since its own.
const LIVE_WITHIN: u64 = 2 * STREAMS_MAX as u64;
/// The most by which the run that proves a stream is raised.
const CAUTION_MAX: u64 = 2;

/// Window doubling over several interleaved streams: see the module's page.
#[derive(Clone, Debug, Default)]
pub struct Sequential {
    window_max: Option<u64>,
    mode: Mode,
    streams: Vec<Stream>,
    /// Misses without a stream, the latest last.
    runs: VecDeque<Run>,
    /// Windows asked for so far: the clock of streams.
    now: u64,
    /// Streams that led nowhere, less those that held: how much longer a run has to be.
    caution: u64,
    /// Units in the region, as the last signal gave them.
    units: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Mode {
    #[default]
    Normal,
    Sequential,
    Random,
}

/// Misses next to each other, not yet a stream.
#[derive(Clone, Copy, Debug)]
struct Run {
    last: u64,
    /// Of one unit: either.
    backwards: bool,
    len: u64,
}

/// One stream, in coordinates in which it ascends: see [`mirror`].
///
/// ```text
///   read      last window    newest window    not asked for
///   ---------|--------------|----------------|-------------
///            before         start            end
/// ```
#[derive(Clone, Copy, Debug)]
struct Stream {
    backwards: bool,
    before: u64,
    start: u64,
    end: u64,
    /// Furthest unit that the reader is known to have reached.
    reached: u64,
    /// Length of the next window before momentary limits.
    window: u64,
    /// Clock at the newest window.
    moved: u64,
    /// Whether the reader ever entered a window.
    entered: bool,
    /// Units that left unread since the newest window was asked for.
    unread: u64,
}

impl Sequential {
    /// A policy without streams. Windows grow to sixteen full requests, as limits allow.
    pub fn new() -> Sequential {
        Sequential::default()
    }

    /// A policy whose windows have at most `units` units, and at least 1.
    pub fn with_window_max(units: u64) -> Sequential {
        Sequential { window_max: Some(units.max(1)), ..Sequential::default() }
    }

    /// As [`PrefetchPolicy::demand`]; returns whether `at` belongs to a stream.
    pub(super) fn follow(
        &mut self,
        at: u64,
        signal: Signal,
        limits: &Limits,
        wants: &mut Vec<Want>,
    ) -> bool {
        self.units = limits.units;
        if self.mode == Mode::Random || at >= limits.units {
            return false;
        }
        if let Some(index) = self.stream_of(at) {
            self.advance(index, at, signal, limits, wants);
            return true;
        }
        // Whatever is resident may be read in any order at no cost: it proves nothing.
        if signal == Signal::Hit {
            return false;
        }
        // A marker that no stream owns is of one that was forgotten: its reader has come this far.
        let run = match signal {
            Signal::Marker => Some(Run { last: at, backwards: false, len: 1 }),
            _ => self.run_to(at),
        };
        match run {
            Some(run) => self.start(run, run.len, limits, wants),
            None if self.mode == Mode::Sequential => {
                let run = Run { last: at, backwards: false, len: 1 };
                self.start(run, limits.extent_max, limits, wants);
            }
            None => return false,
        }
        true
    }

    /// The stream that `at` belongs to: where two do, the one that is nearest to its end there.
    fn stream_of(&self, at: u64) -> Option<usize> {
        let distance = |stream: &Stream| {
            let place = mirror(at, stream.backwards, self.units);
            (stream.before..=stream.end).contains(&place).then(|| stream.end - place)
        };
        let streams = self.streams.iter().enumerate();
        let near = streams.filter_map(|(index, stream)| Some((distance(stream)?, index)));
        near.min().map(|(_, index)| index)
    }

    /// Adds a miss to the runs, and returns the run that it completes, if it does.
    fn run_to(&mut self, at: u64) -> Option<Run> {
        let continues = |run: &Run| {
            let backwards = run.last.checked_sub(1) == Some(at);
            let forwards = run.last.checked_add(1) == Some(at);
            (forwards || backwards) && (run.len == 1 || run.backwards == backwards)
        };
        let run = match self.runs.iter().position(continues) {
            Some(index) => {
                let run = self.runs.remove(index).expect("position found it");
                Run { last: at, backwards: at < run.last, len: run.len + 1 }
            }
            None => {
                self.runs.retain(|run| run.last != at);
                Run { last: at, backwards: false, len: 1 }
            }
        };
        if run.len >= 2 + self.caution {
            return Some(run);
        }
        if self.runs.len() == RUNS_MAX {
            self.runs.pop_front();
        }
        self.runs.push_back(run);
        None
    }

    fn start(&mut self, run: Run, window: u64, limits: &Limits, wants: &mut Vec<Want>) {
        if self.streams.len() == STREAMS_MAX {
            // One that was never entered goes first, so that chance pairs do not displace streams.
            let oldest = self.streams.iter().enumerate();
            let oldest = oldest.min_by_key(|(_, stream)| (stream.entered, stream.moved));
            let (index, _) = oldest.expect("the table is full");
            self.give_up(index);
        }
        let place = mirror(run.last, run.backwards, self.units);
        self.streams.push(Stream {
            backwards: run.backwards,
            before: place,
            start: place,
            end: place + 1,
            reached: place,
            window: window.max(1),
            moved: self.now,
            entered: false,
            unread: 0,
        });
        self.extend(self.streams.len() - 1, limits, wants);
    }

    fn give_up(&mut self, index: usize) {
        let stream = self.streams.swap_remove(index);
        if !stream.entered {
            self.caution = (self.caution + 1).min(CAUTION_MAX);
        }
    }

    fn advance(
        &mut self,
        index: usize,
        at: u64,
        signal: Signal,
        limits: &Limits,
        wants: &mut Vec<Want>,
    ) {
        let steep = if self.mode == Mode::Sequential { 8 } else { 4 };
        let stream = &mut self.streams[index];
        let place = mirror(at, stream.backwards, self.units);
        stream.reached = stream.reached.max(place);
        if signal == Signal::Miss && place < stream.end {
            // Asked for, yet not there: dropped over a limit, or evicted before it was read. Go on
            // from here, more slowly.
            stream.window = (stream.window / 2).max(1);
            (stream.before, stream.start, stream.end) = (place, place, place + 1);
            stream.reached = place;
        } else if place >= stream.start {
            let factor = match signal {
                Signal::Late if stream.window >= STEEP_FROM || steep == 8 => steep,
                _ if steep == 8 => steep,
                _ => 2,
            };
            stream.window = stream.window.saturating_mul(factor);
            stream.end = stream.end.max(place + 1);
            if !stream.entered {
                stream.entered = true;
                self.caution = self.caution.saturating_sub(1);
            }
        } else {
            return;
        }
        self.extend(index, limits, wants);
    }

    /// Asks for the next window of a stream.
    fn extend(&mut self, index: usize, limits: &Limits, wants: &mut Vec<Want>) {
        self.now += 1;
        self.streams[index].moved = self.now;
        let now = self.now;
        let live = self.streams.iter().filter(|s| now - s.moved < LIVE_WITHIN).count() as u64;
        let longest = limits.extent_max.saturating_mul(EXTENTS_MAX);
        let longest = self.window_max.map_or(longest, |units| units.min(longest)).max(1);
        let stream = &mut self.streams[index];
        stream.window = stream.window.min(longest);
        // The window that is being read and the one that is on its way share the limit.
        let len = stream.window.min(limits.window_max / (2 * live)).max(1);
        let window = stream.end..stream.end.saturating_add(len).min(limits.units);
        if window.is_empty() {
            return;
        }
        (stream.before, stream.start, stream.end) = (stream.start, window.start, window.end);
        stream.unread = 0;
        cut(window, stream.backwards, limits, wants);
    }
}

impl PrefetchPolicy for Sequential {
    fn demand(&mut self, at: u64, signal: Signal, limits: &Limits, wants: &mut Vec<Want>) {
        self.follow(at, signal, limits, wants);
    }

    fn unused(&mut self, at: u64) {
        let units = self.units;
        let ahead = |stream: &Stream| {
            // A unit from before the region was cut, or of another policy: nobody's.
            at < units && {
                let place = mirror(at, stream.backwards, units);
                stream.reached < place && place < stream.end
            }
        };
        let Some(index) = self.streams.iter().position(ahead) else { return };
        let stream = &mut self.streams[index];
        if stream.unread == 0 {
            stream.window = (stream.window / 2).max(1);
        }
        stream.unread += 1;
        if stream.unread * 2 > stream.end - stream.start {
            self.give_up(index);
        }
    }

    fn advise(&mut self, advice: &Advice, _: &Limits, _: &mut Vec<Want>) {
        match advice {
            Advice::Sequential => self.mode = Mode::Sequential,
            Advice::Random => {
                self.mode = Mode::Random;
                self.streams.clear();
                self.runs.clear();
            }
            Advice::Normal => self.mode = Mode::Normal,
            // Which is for a plan.
            Advice::WillNeed(_) => {}
        }
    }
}

/// A unit in the coordinates of a stream, and back: the last unit is the first of a descending one.
fn mirror(at: u64, backwards: bool, units: u64) -> u64 {
    if backwards { units - 1 - at } else { at }
}

/// Cuts the window of a stream into requests, the nearest first, which has the marker.
fn cut(window: Range<u64>, backwards: bool, limits: &Limits, wants: &mut Vec<Want>) {
    let len = window.end - window.start;
    let extent_max = limits.extent_max.max(1);
    let piece = len.div_ceil(PIECES).clamp((extent_max / PIECES).max(1), extent_max);
    let mut start = window.start;
    while start < window.end {
        let end = start.saturating_add(piece).min(window.end);
        let units = if backwards { limits.units - end..limits.units - start } else { start..end };
        let first = mirror(start, backwards, limits.units);
        let marker = (start == window.start).then_some(first);
        wants.push(Want { units, marker });
        start = end;
    }
}
