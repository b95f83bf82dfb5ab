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
//! - **Start.** An isolated miss wants nothing, however many units it has. The first window is as
//!   long as the run that proved the stream: what is fetched in vain is never more than was read.
//! - **Growth.** Entering the newest window asks for the next, twice as long. A reader that waits
//!   (late) in a stream of some length quadruples it: the source is behind, and a round trip is all
//!   that one step costs.
//! - **Bounds.** Two windows are out at a time, so that one may have half of what speculation may
//!   hold, divided by the streams that are moving; and never more than sixteen full requests.
//! - **Step.** Each of the two is to be asked for while half of the other is on its way. Windows that
//!   were asked for together arrive together, over connections that share a link; the reader runs
//!   through both and asks for the next two together, and the link idles for a round trip each time.
//!   It shows: the reader waits where every second window begins. Then one window of a stream that
//!   moves alone has half its length, and the windows are out of step again. Where they fall into
//!   step all the same, because a round trip is longer than both take, this is tried less and less.
//! - **Requests.** A window is one want: the pager cuts it into requests, enough of them to fill a
//!   link of which one connection has only a part. Descending windows are cut here, so that what is
//!   nearest to the reader comes first.
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
/// Wants that a descending window is cut into, where these get no shorter than an eighth of a full
/// request.
const PIECES: u64 = 8;
/// Windows from this length on quadruple when the reader waits, in units.
const STEEP_FROM: u64 = 16;
/// Windows between one that is cut to get out of step and the next such one, at first.
const CUT_PAUSE: u64 = 2;
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
#[derive(Clone, Debug)]
struct Run {
    units: Range<u64>,
    /// Of one miss: either.
    backwards: bool,
    misses: u64,
}

/// One stream, in coordinates in which it ascends: see [`mirrored`].
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
    /// Whether the newest window was cut to half, to get out of step with the one before.
    halved: bool,
    /// Whether the reader waited where the window that it entered last begins, which was not cut.
    waited: bool,
    /// Whether two windows came together: the next is cut.
    in_step: bool,
    /// Clock from which on a window may be cut again, and how much later the time after that.
    cut_from: u64,
    cut_pause: u64,
    /// Clock at the newest window, and at the one before.
    moved: u64,
    moved_before: u64,
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

    /// One access to `units`. Returns whether it belongs to a stream.
    pub(super) fn follow(
        &mut self,
        units: Range<u64>,
        signal: Signal,
        limits: &Limits,
        wants: &mut Vec<Want>,
    ) -> bool {
        if self.mode == Mode::Random || !inside(&units, limits) {
            return false;
        }
        if self.go_on(units.clone(), signal, limits, wants) {
            return true;
        }
        // Whatever is resident may be read in any order at no cost: it proves nothing.
        if signal == Signal::Hit {
            return false;
        }
        let len = units.end - units.start;
        let run = Run { units, backwards: false, misses: 1 };
        // A marker that no stream owns is of one that was forgotten: its reader has come this far.
        if signal == Signal::Marker {
            self.start(&run, len, limits, wants);
        } else if let Some(run) = self.run_with(run.clone()) {
            self.start(&run, run.units.end - run.units.start, limits, wants);
        } else if self.mode == Mode::Sequential {
            self.start(&run, limits.extent_max.max(len), limits, wants);
        } else {
            return false;
        }
        true
    }

    /// As [`Self::follow`], but starts no stream.
    pub(super) fn go_on(
        &mut self,
        units: Range<u64>,
        signal: Signal,
        limits: &Limits,
        wants: &mut Vec<Want>,
    ) -> bool {
        if !inside(&units, limits) {
            return false;
        }
        self.units = limits.units;
        let Some(index) = self.stream_of(&units, signal) else { return false };
        self.advance(index, &units, signal, limits, wants);
        true
    }

    /// The stream to which the first of `units` belongs: of several, the one that is nearest to its
    /// end there.
    fn stream_of(&self, units: &Range<u64>, signal: Signal) -> Option<usize> {
        let distance = |stream: &Stream| {
            let place = mirrored(units, stream.backwards, self.units).start;
            // A miss behind the reader is somebody else's, who comes after the bytes have left.
            let first = if signal == Signal::Miss { stream.reached } else { stream.before };
            (first..=stream.end).contains(&place).then(|| stream.end - place)
        };
        let streams = self.streams.iter().enumerate();
        let near = streams.filter_map(|(index, stream)| Some((distance(stream)?, index)));
        near.min().map(|(_, index)| index)
    }

    /// Adds a miss to the runs, and returns the run that it completes, if it does.
    fn run_with(&mut self, miss: Run) -> Option<Run> {
        let Run { units, .. } = miss.clone();
        let joins = |run: &Run| {
            let forwards = run.units.end == units.start && (run.misses == 1 || !run.backwards);
            let backwards = run.units.start == units.end && (run.misses == 1 || run.backwards);
            forwards || backwards
        };
        let run = match self.runs.iter().position(joins) {
            Some(index) => {
                let run = self.runs.remove(index).expect("position found it");
                let backwards = run.units.start == units.end;
                let start = run.units.start.min(units.start);
                let units = start..run.units.end.max(units.end);
                Run { units, backwards, misses: run.misses + 1 }
            }
            None => {
                self.runs.retain(|run| run.units != units);
                miss
            }
        };
        if run.misses >= 2 + self.caution {
            return Some(run);
        }
        if self.runs.len() == RUNS_MAX {
            self.runs.pop_front();
        }
        self.runs.push_back(run);
        None
    }

    fn start(&mut self, run: &Run, window: u64, limits: &Limits, wants: &mut Vec<Want>) {
        if self.streams.len() == STREAMS_MAX {
            // One that was never entered goes first, so that chance pairs do not displace streams.
            let oldest = self.streams.iter().enumerate();
            let oldest = oldest.min_by_key(|(_, stream)| (stream.entered, stream.moved));
            let (index, _) = oldest.expect("the table is full");
            self.give_up(index);
        }
        let Range { start, end } = mirrored(&run.units, run.backwards, self.units);
        self.streams.push(Stream {
            backwards: run.backwards,
            before: start,
            start,
            end,
            reached: end - 1,
            window: window.max(1),
            halved: false,
            waited: false,
            in_step: false,
            cut_from: 0,
            cut_pause: CUT_PAUSE,
            moved: self.now,
            moved_before: self.now.saturating_sub(2 * STREAMS_MAX as u64),
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
        units: &Range<u64>,
        signal: Signal,
        limits: &Limits,
        wants: &mut Vec<Want>,
    ) {
        let stream = &mut self.streams[index];
        let place = mirrored(units, stream.backwards, self.units);
        stream.reached = stream.reached.max(place.end - 1);
        if signal == Signal::Miss && place.start < stream.end {
            // Asked for, yet not there: dropped over a limit, or evicted before it was read. Go on
            // from here, more slowly.
            stream.window = (stream.window / 2).max(1);
            (stream.before, stream.start, stream.end) = (place.start, place.start, place.end);
            stream.reached = place.end - 1;
        } else if place.end > stream.start {
            let factor = match (self.mode, signal) {
                (Mode::Sequential, _) => 8,
                (_, Signal::Late) if stream.window >= STEEP_FROM => 4,
                _ => 2,
            };
            stream.window = stream.window.saturating_mul(factor);
            stream.end = stream.end.max(place.end);
            stream.in_step = stream.waited && signal != Signal::Late;
            stream.waited = signal == Signal::Late && !stream.halved;
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
        // Streams move at about the same pace, or do not share: one that did not ask for a window
        // while this one asked for two has stopped, or needs little.
        let since = self.streams[index].moved_before;
        let live = self.streams.iter().filter(|stream| stream.moved >= since).count() as u64;
        self.now += 1;
        let longest = limits.extent_max.saturating_mul(EXTENTS_MAX);
        let longest = self.window_max.map_or(longest, |units| units.min(longest)).max(1);
        let stream = &mut self.streams[index];
        (stream.moved_before, stream.moved) = (stream.moved, self.now);
        stream.window = stream.window.min(longest);
        // The window that is being read and the one that is on its way share the limit.
        let most = (limits.window_max / (2 * live)).max(1);
        let mut len = stream.window.min(most);
        let may_cut = live == 1 && len == most && most > 1 && self.now >= stream.cut_from;
        stream.halved = std::mem::take(&mut stream.in_step) && may_cut;
        if stream.halved {
            len = most / 2;
            stream.cut_from = self.now + stream.cut_pause;
            stream.cut_pause = stream.cut_pause.saturating_mul(2);
        }
        let window = stream.end..stream.end.saturating_add(len).min(limits.units);
        if window.is_empty() {
            return;
        }
        (stream.before, stream.start, stream.end) = (stream.start, window.start, window.end);
        stream.unread = 0;
        let piece = match stream.backwards {
            false => len,
            true => len.div_ceil(PIECES).max(limits.extent_max / PIECES),
        };
        let mut start = window.start;
        while start < window.end {
            let end = start.saturating_add(piece).min(window.end);
            let units = mirrored(&(start..end), stream.backwards, limits.units);
            let first = if stream.backwards { units.end - 1 } else { units.start };
            let marker = (start == window.start).then_some(first);
            wants.push(Want { units, marker, backwards: stream.backwards });
            start = end;
        }
    }
}

impl PrefetchPolicy for Sequential {
    fn demand(&mut self, at: u64, signal: Signal, limits: &Limits, wants: &mut Vec<Want>) {
        self.follow(at..at.saturating_add(1), signal, limits, wants);
    }

    fn missed(&mut self, units: Range<u64>, limits: &Limits, wants: &mut Vec<Want>) {
        self.follow(units, Signal::Miss, limits, wants);
    }

    fn unused(&mut self, at: u64) {
        let units = self.units;
        let ahead = |stream: &Stream| {
            // A unit from before the region was cut, or of another policy: nobody's.
            at < units && {
                let place = mirrored(&(at..at + 1), stream.backwards, units).start;
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

fn inside(units: &Range<u64>, limits: &Limits) -> bool {
    units.start < units.end && units.end <= limits.units
}

/// Units in the coordinates of a stream, and back: for a descending one the last unit is the first.
fn mirrored(units: &Range<u64>, backwards: bool, all: u64) -> Range<u64> {
    if backwards { all - units.end..all - units.start } else { units.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::simulation::{Reader, World, run, run_advised};

    const LIMITS: Limits = Limits { units: 10_000, window_max: 4096, extent_max: 256 };

    fn wants(policy: &mut Sequential, at: u64, signal: Signal, limits: &Limits) -> Vec<Want> {
        let mut wants = Vec::new();
        policy.demand(at, signal, limits, &mut wants);
        wants
    }

    /// The window that a signal brings, and its marker.
    fn window(policy: &mut Sequential, at: u64, signal: Signal) -> (Range<u64>, Option<u64>) {
        let wants = wants(policy, at, signal, &LIMITS);
        let start = wants.iter().map(|want| want.units.start).min().unwrap_or(0);
        let end = wants.iter().map(|want| want.units.end).max().unwrap_or(0);
        let len: u64 = wants.iter().map(|want| want.units.end - want.units.start).sum();
        assert_eq!(len, end - start, "one window without holes or overlaps: {wants:?}");
        (start..end, wants.first().and_then(|want| want.marker))
    }

    #[test]
    fn windows_double_as_the_page_says() {
        use Signal::*;
        let cases = [
            (
                "forwards",
                vec![
                    (0, Miss, 0..0, None),
                    (1, Miss, 2..4, Some(2)),
                    (2, Late, 4..8, Some(4)),
                    (3, Late, 0..0, None),
                    (4, Marker, 8..16, Some(8)),
                    (8, Hit, 16..32, Some(16)),
                    (9, Hit, 0..0, None),
                    (16, Late, 32..96, Some(32)),
                ],
            ),
            (
                "backwards",
                vec![
                    (9000, Miss, 0..0, None),
                    (8999, Miss, 8997..8999, Some(8998)),
                    (8998, Marker, 8993..8997, Some(8996)),
                    (8996, Late, 8985..8993, Some(8992)),
                ],
            ),
            (
                "up to the last unit",
                vec![
                    (9995, Miss, 0..0, None),
                    (9996, Miss, 9997..9999, Some(9997)),
                    (9997, Late, 9999..10_000, Some(9999)),
                    (9999, Late, 0..0, None),
                ],
            ),
            (
                "a stream that was cut short goes on, more slowly",
                vec![
                    (0, Miss, 0..0, None),
                    (1, Miss, 2..4, Some(2)),
                    (2, Marker, 4..8, Some(4)),
                    (4, Marker, 8..16, Some(8)),
                    (6, Miss, 7..11, Some(7)),
                ],
            ),
            (
                "a miss behind the reader does not hold it up",
                vec![
                    (0, Miss, 0..0, None),
                    (1, Miss, 2..4, Some(2)),
                    (2, Marker, 4..8, Some(4)),
                    (4, Marker, 8..16, Some(8)),
                    (2, Miss, 0..0, None),
                    (8, Marker, 16..32, Some(16)),
                ],
            ),
            (
                "skips forwards and back within what was asked for",
                vec![
                    (0, Miss, 0..0, None),
                    (1, Miss, 2..4, Some(2)),
                    (2, Marker, 4..8, Some(4)),
                    (4, Marker, 8..16, Some(8)),
                    // Over the marker: where it lands is in the newest window all the same.
                    (11, Hit, 16..32, Some(16)),
                    (9, Hit, 0..0, None),
                    (12, Late, 0..0, None),
                    (25, Late, 32..96, Some(32)),
                    (17, Hit, 0..0, None),
                    (95, Hit, 96..224, Some(96)),
                    (33, Hit, 0..0, None),
                    (96, Marker, 224..480, Some(224)),
                ],
            ),
            (
                "hits prove nothing",
                vec![(5, Hit, 0..0, None), (6, Hit, 0..0, None), (7, Miss, 0..0, None)],
            ),
            ("the same unit twice", vec![(5, Miss, 0..0, None), (5, Miss, 0..0, None)]),
        ];
        for (what, steps) in cases {
            let mut policy = Sequential::new();
            for (at, signal, units, marker) in steps {
                let got = window(&mut policy, at, signal);
                assert_eq!(got, (units, marker), "{what}: {signal:?} at {at}");
            }
        }
    }

    #[test]
    fn a_miss_of_several_units_is_one_access() {
        let mut policy = Sequential::new();
        let mut wants = Vec::new();
        policy.missed(100..140, &LIMITS, &mut wants);
        assert_eq!(wants, [], "it may be a large record");
        policy.missed(140..150, &LIMITS, &mut wants);
        assert_eq!(wants, [Want::new(150..200).with_marker(150)], "twice is a stream");
        wants.clear();
        policy.missed(160..210, &LIMITS, &mut wants);
        assert_eq!(wants, [Want::new(210..235).with_marker(210)], "lost, and past the end");
        wants.clear();
        for units in [5000..5004, 4990..5000] {
            policy.missed(units, &LIMITS, &mut wants);
        }
        assert_eq!(wants, [Want::new(4976..4990).with_marker(4989).backwards()], "backwards");
        wants.clear();
        policy.missed(9_990..10_001, &LIMITS, &mut wants);
        assert_eq!(wants, [], "not of this region");
    }

    #[test]
    fn advice_changes_the_first_window() {
        let mut policy = Sequential::new();
        policy.advise(&Advice::Sequential, &LIMITS, &mut Vec::new());
        assert_eq!(window(&mut policy, 100, Signal::Miss).0, 101..357, "one full request");
        assert_eq!(window(&mut policy, 101, Signal::Late).0, 357..2405, "half of the limit");
        policy.advise(&Advice::Random, &LIMITS, &mut Vec::new());
        for at in [357, 358, 359, 360] {
            assert_eq!(wants(&mut policy, at, Signal::Miss, &LIMITS), [], "random");
        }
        policy.advise(&Advice::Normal, &LIMITS, &mut Vec::new());
        assert_eq!(wants(&mut policy, 500, Signal::Miss, &LIMITS), []);
        assert_eq!(window(&mut policy, 501, Signal::Miss).0, 502..504);
    }

    #[test]
    fn a_wrong_guess_shrinks_and_then_stops() {
        let mut policy = Sequential::new();
        for at in 0..2 {
            window(&mut policy, at, Signal::Miss);
        }
        for at in [2, 4, 8] {
            window(&mut policy, at, Signal::Marker);
        }
        assert_eq!(window(&mut policy, 16, Signal::Marker).0, 32..64);
        // Two of the newest 32 leave unread: the next window is as long, instead of twice.
        policy.unused(62);
        policy.unused(63);
        assert_eq!(window(&mut policy, 32, Signal::Marker).0, 64..96);
        // What lies behind the reader was read, or passed over: it says nothing.
        for at in 0..32 {
            policy.unused(at);
        }
        assert_eq!(policy.streams.len(), 1);
        for at in 64..81 {
            policy.unused(at);
        }
        assert_eq!(policy.streams.len(), 0, "more than half of it left unread");
        assert_eq!(wants(&mut policy, 1000, Signal::Miss, &LIMITS), []);
    }

    #[test]
    fn chance_pairs_raise_the_bar_and_streams_lower_it() {
        let mut policy = Sequential::new();
        let mut wanted = 0;
        for pair in 0..40 {
            for at in [pair * 100, pair * 100 + 1] {
                wanted += wants(&mut policy, at, Signal::Miss, &LIMITS).len();
            }
        }
        assert_eq!(wanted, STREAMS_MAX + 1, "then pairs are not enough");
        // A real stream needs a longer run now, and brings a longer first window.
        for at in 9000..9002 {
            assert_eq!(wants(&mut policy, at, Signal::Miss, &LIMITS), [], "at {at}");
        }
        assert_eq!(window(&mut policy, 9002, Signal::Miss).0, 9003..9006);
        window(&mut policy, 9003, Signal::Marker);
        assert_eq!(policy.caution, 1, "raised by the pair that left for it, lowered by itself");
    }

    #[test]
    fn random_misses_want_nothing_and_do_not_displace_streams() {
        let mut policy = Sequential::new();
        wants(&mut policy, 0, Signal::Miss, &LIMITS);
        wants(&mut policy, 1, Signal::Miss, &LIMITS);
        for step in 0..1000 {
            // No two within 7 of each other are neighbours of a miss that is still remembered.
            let at = 100 + (step * 7919) % 9900;
            assert_eq!(wants(&mut policy, at, Signal::Miss, &LIMITS), [], "miss at {at}");
        }
        assert_eq!(window(&mut policy, 2, Signal::Marker).0, 4..8);
    }

    #[test]
    fn windows_stay_within_every_limit() {
        for window_max in [1, 2, 3, 8, 100, u64::MAX] {
            for extent_max in [1, 3, 256] {
                let limits = Limits { units: 1 << 40, window_max, extent_max };
                let mut policy = Sequential::new();
                let mut next = 0;
                for _ in 0..40 {
                    let signal = if next < 2 { Signal::Miss } else { Signal::Late };
                    let wants = wants(&mut policy, next, signal, &limits);
                    let len: u64 = wants.iter().map(|w| w.units.end - w.units.start).sum();
                    let most = (window_max / 2).max(1).min(extent_max * EXTENTS_MAX);
                    assert!(len <= most, "{len} units of {limits:?}");
                    next = wants.first().map_or(next + 1, |want| want.units.start);
                }
            }
        }
        let mut policy = Sequential::with_window_max(5);
        let mut next = 0;
        for _ in 0..20 {
            let window = window(&mut policy, next, Signal::Miss).0;
            assert!(window.end - window.start <= 5);
            next = window.start.max(next + 1);
        }
    }

    fn scan(units: Range<u64>) -> Reader {
        Reader::new(0, units)
    }

    #[test]
    fn one_cold_stream_fills_the_link() {
        for (what, mapped, advice, slowdown) in [
            ("mapped", true, None, 1.10),
            ("load", false, None, 1.10),
            ("mapped, advised", true, Some(Advice::Sequential), 1.04),
        ] {
            let world = World { mapped, ..World::default() };
            let mut policy = Sequential::new();
            let advice = advice.unwrap_or(Advice::Normal);
            let out = run_advised(&world, &mut policy, &advice, vec![scan(0..world.units)]);
            let best = (world.units * world.unit_bytes / world.link) as f64;
            println!("{what}: {:.3} of the best, {out:?}", out.time_us as f64 / best);
            assert!(out.utilisation > 0.95, "{what}: {out:?}");
            assert!(out.time_us as f64 <= best * slowdown, "{what}: {best} us at best, {out:?}");
            assert_eq!(out.wasted, 0, "{what}: {out:?}");
        }
    }

    /// Two windows of 30 MiB, asked for at once, came at once: the link then idled for a round trip,
    /// and so on to the end.
    #[test]
    fn windows_that_came_together_get_out_of_step() {
        use Signal::*;
        let mut policy = Sequential::new();
        policy.advise(&Advice::Sequential, &LIMITS, &mut Vec::new());
        let steps = [
            (100, Miss, 101..357),
            (101, Late, 357..2405),
            // It was there with the one before.
            (357, Marker, 2405..3429),
            (2405, Late, 3429..5477),
            (3429, Marker, 5477..7525),
            (5477, Marker, 7525..9573),
        ];
        for (at, signal, units) in steps {
            assert_eq!(window(&mut policy, at, signal).0, units, "{signal:?} at {at}");
        }

        // The paced S3 through a budget of 256 MiB.
        let world = World { quota: 963, extent_max: 128, ..World::default() };
        for advice in [Advice::Sequential, Advice::Normal] {
            let mut policy = Sequential::new();
            let out = run_advised(&world, &mut policy, &advice, vec![scan(0..world.units)]);
            println!("{advice:?}: {out:?}");
            assert!(out.utilisation > 0.95, "{advice:?}: {out:?}");
            assert_eq!((out.wasted, out.dropped), (0, 0), "{advice:?}: {out:?}");
        }
    }

    #[test]
    fn four_interleaved_streams_fill_the_link() {
        let world = World::default();
        let part = world.units / 4;
        for descending in [false, true] {
            let readers = (0..4).map(|i| {
                let units = i * part..(i + 1) * part;
                if descending { Reader::new(0, units.rev()) } else { Reader::new(0, units) }
            });
            let mut policy = Sequential::new();
            let out = run(&world, &mut policy, readers.collect());
            println!("descending {descending}: {out:?}");
            assert!(out.utilisation > 0.95, "descending {descending}: {out:?}");
            assert!(out.dropped == 0 || descending, "{out:?}");
            // At each part's end a stream runs into the next part, which is read as well.
            assert_eq!(out.wasted, 0, "{out:?}");
        }
    }

    #[test]
    fn one_reader_that_alternates_between_streams_waits_for_none() {
        // One thread, eight streams, one unit of each in turn.
        let world = World { units: 8000, ..World::default() };
        let order = (0..8000u64).map(|i| i % 8 * 1000 + i / 8);
        let out = run(&world, &mut Sequential::new(), vec![Reader::new(0, order)]);
        println!("{out:?}");
        assert!(out.utilisation > 0.9, "{out:?}");
    }

    #[test]
    fn a_slow_reader_waits_only_while_its_windows_grow() {
        // 1 ms of work for each 64 KiB: 65 MB/s, less than one connection gives.
        let world = World { units: 4096, ..World::default() };
        let out = run(&world, &mut Sequential::new(), vec![Reader::new(1000, 0..4096)]);
        let waited = out.time_us - 4096 * 1000;
        println!("waited {waited}: {out:?}");
        assert!(waited < 8 * world.first_byte_us, "waited {waited} us: {out:?}");
    }

    #[test]
    fn random_reads_with_chance_pairs_waste_little() {
        // Three reads of ten are followed by their neighbour, as where a record straddles units.
        let mut state = 1u64;
        let mut random = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state >> 33
        };
        let order: Vec<u64> = (0..4000)
            .flat_map(|_| {
                let at = random() % (100_000 - 1);
                if random() % 10 < 3 { at..at + 2 } else { at..at + 1 }
            })
            .collect();
        let world = World { units: 100_000, first_byte_us: 500, ..World::default() };
        let out = run(&world, &mut Sequential::new(), vec![Reader::new(0, order)]);
        println!("{out:?}");
        assert!(out.wasted * 50 < out.read, "under 2 % are fetched in vain: {out:?}");
    }

    #[test]
    fn a_small_budget_still_reads_ahead() {
        // A quarter of 32 units is all that speculation has.
        let world = World { units: 4096, quota: 8, extent_max: 8, ..World::default() };
        let out = run(&world, &mut Sequential::new(), vec![scan(0..world.units)]);
        // Two windows of 4 units each round trip, of 31 ms.
        let best = world.units / 8 * world.first_byte_us;
        println!("{} of {best}: {out:?}", out.time_us);
        assert!(out.time_us < best * 5 / 4, "{out:?}");
    }
}
