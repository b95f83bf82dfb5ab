//! What this process put into its own streams: known without asking.
//!
//! ```text
//!   put confirmed --> number and bytes are kept --> drain: no list, no get --> freed: forgotten
//! ```
//!
//! A stream belongs to one life of one client, and that to one process: nobody else puts objects into it but for
//! a fence, behind which nothing is. So whoever appends to it knows what is in it, from its first object on, and
//! a drain of it asks for nothing: of what a lone client pays for ten transactions that was a list and ten gets.
//!
//! Others may apply and free what is here. Whoever lists all streams, as a sweep does, learns of that; otherwise it
//! is applied once more, which changes nothing (H1), and freed once more, which costs nothing. But that holds only
//! as long as the tombstones of its time are there: A after the stamp of what they deleted at the earliest (A is
//! `tombstone_age`). So the stream is listed, and what is listed is read, as soon as something waits that was
//! stamped longer ago than [`WAITS_MAX`], or A/8, by the wall clock; that waits for as long by the monotonic one,
//! whatever the other says; or of which nobody knew for a while that it was put.
//!
//! While a put is under way, or had no answer, the stream is listed as well: it may have landed. And what came late
//! into a number that was freed is seen by those who list: every [`LISTS_EACH`]th drain does, and so do sweeps of
//! others.
//!
//! Bytes are kept up to [`OWN_BYTES_MAX`] for all streams; of what has no room the number is, and is read.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use bytes::Bytes;

use super::{HELD_MAX, Stream};
use crate::cloud::Clock;

/// Bytes of own objects that are kept until they are on their pages.
const OWN_BYTES_MAX: usize = 8 << 20;
/// Drains of an own stream of which one lists it.
const LISTS_EACH: u32 = 64;
/// How long an object may wait for its pages until a list has to say that it is still there: at most, and at most
/// such a part of what a tombstone stays.
const WAITS_MAX: Duration = Duration::from_secs(600);
const WAITS_PART: u32 = 8;

/// Own streams, and what is in them.
pub(super) struct Own {
    streams: HashMap<Stream, Known>,
    bytes: usize,
    waits_max_us: u64,
}

/// Now, by the clocks of this machine, in microseconds.
#[derive(Clone, Copy)]
pub(super) struct Now {
    pub(super) wall_us: u64,
    pub(super) monotonic_us: u64,
}

impl Now {
    pub(super) fn of(clock: &dyn Clock) -> Now {
        Now { wall_us: clock.wall_us(), monotonic_us: clock.monotonic_us() }
    }
}

/// What is in a stream; of some of it the bytes are here.
#[derive(Default)]
struct Known {
    there: BTreeMap<u64, Object>,
    /// A put is under way, or nobody knows what came of it.
    is_in_doubt: bool,
    drains: u32,
}

/// An own object that is there.
struct Object {
    /// Until it is applied, if there is room.
    bytes: Option<Bytes>,
    /// If it is not applied: the clock of its oldest stamp, 0 if nobody knows when it was put, and the monotonic
    /// clock when it was known to be there.
    waits: Option<(u64, u64)>,
}

impl Own {
    /// None. A tombstone stays for `tombstone_age`.
    pub(super) fn new(tombstone_age: Duration) -> Own {
        let waits_max = WAITS_MAX.min(tombstone_age / WAITS_PART);
        Own { streams: HashMap::new(), bytes: 0, waits_max_us: waits_max.as_micros() as u64 }
    }

    /// A life begins, and with it a stream: nothing is in it.
    pub(super) fn begin(&mut self, stream: Stream) {
        self.forget(stream);
        self.streams.insert(stream, Known::default());
    }

    /// From now on the stream is listed.
    pub(super) fn forget(&mut self, stream: Stream) {
        if let Some(known) = self.streams.remove(&stream) {
            let bytes = known.there.values().filter_map(|object| object.bytes.as_ref());
            self.bytes -= bytes.map(Bytes::len).sum::<usize>();
        }
    }

    /// An object was put just now, the oldest stamp in which has this clock: 0 if it may be there for long.
    pub(super) fn put(
        &mut self,
        stream: Stream,
        number: u64,
        bytes: &Bytes,
        oldest_us: u64,
        now: Now,
    ) {
        let has_room = self.bytes + bytes.len() <= OWN_BYTES_MAX;
        let Some(known) = self.streams.get_mut(&stream) else { return };
        if known.there.len() >= HELD_MAX {
            return self.forget(stream);
        }
        known.is_in_doubt = false;
        let (kept, waits) = (has_room.then(|| bytes.clone()), Some((oldest_us, now.monotonic_us)));
        let before = known.there.insert(number, Object { bytes: kept, waits });
        self.bytes -= before.and_then(|object| object.bytes).map_or(0, |bytes| bytes.len());
        if has_room {
            self.bytes += bytes.len();
        }
    }

    /// Whether there may be more in the stream than what is known.
    pub(super) fn doubt(&mut self, stream: Stream, is_in_doubt: bool) {
        if let Some(known) = self.streams.get_mut(&stream) {
            known.is_in_doubt = is_in_doubt;
        }
    }

    /// An object was deleted.
    pub(super) fn freed(&mut self, stream: Stream, number: u64) {
        let gone = self.streams.get_mut(&stream).and_then(|known| known.there.remove(&number));
        self.bytes -= gone.and_then(|object| object.bytes).map_or(0, |bytes| bytes.len());
    }

    /// Whether what is in the stream is known.
    pub(super) fn has(&self, stream: Stream) -> bool {
        self.streams.contains_key(&stream)
    }

    /// A list of the stream: what is not in it, and was there before its newest, was applied and freed by others.
    pub(super) fn seen(&mut self, stream: Stream, listed: &BTreeSet<u64>) {
        let (Some(newest), Some(known)) = (listed.last(), self.streams.get(&stream)) else {
            return;
        };
        let before = known.there.range(..*newest).map(|(number, _)| *number);
        let gone: Vec<u64> = before.filter(|number| !listed.contains(number)).collect();
        gone.into_iter().for_each(|number| self.freed(stream, number));
    }

    /// Everything before `cursor` is applied: its bytes are of no use any more.
    pub(super) fn applied(&mut self, stream: Stream, cursor: u64) {
        let Some(known) = self.streams.get_mut(&stream) else { return };
        for (_, object) in known.there.range_mut(..cursor) {
            self.bytes -= object.bytes.take().map_or(0, |bytes| bytes.len());
            object.waits = None;
        }
    }

    /// Whether nothing of the stream, which is an own one, waits for its pages for long.
    pub(super) fn is_young(&self, stream: Stream, now: Now) -> bool {
        let is_young = |object: &Object| {
            object.waits.is_none_or(|(stamped_us, known_us)| {
                now.wall_us.abs_diff(stamped_us) < self.waits_max_us
                    && now.monotonic_us.saturating_sub(known_us) < self.waits_max_us
            })
        };
        self.streams.get(&stream).is_some_and(|known| known.there.values().all(is_young))
    }

    /// The numbers in the stream, for a drain. `None` where it has to be listed.
    pub(super) fn numbers(&mut self, stream: Stream, now: Now) -> Option<Vec<u64>> {
        let is_young = self.is_young(stream, now);
        let known = self.streams.get_mut(&stream).filter(|known| is_young && !known.is_in_doubt)?;
        known.drains = known.drains.wrapping_add(1);
        let is_listed = known.drains.is_multiple_of(LISTS_EACH);
        (!is_listed).then(|| known.there.keys().copied().collect())
    }

    /// The bytes of an object, if they are here.
    pub(super) fn bytes(&self, stream: Stream, number: u64) -> Option<Bytes> {
        self.streams.get(&stream)?.there.get(&number)?.bytes.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: Stream = Stream { client: 7, epoch: 1 };
    const TIME: u64 = 1 << 50;
    const NOW: Now = Now { wall_us: TIME, monotonic_us: TIME };

    fn own() -> Own {
        Own::new(Duration::from_secs(29 * 24 * 3600))
    }

    #[test]
    fn bytes_are_bounded_and_every_number_is_known() {
        let mut own = own();
        let bytes = Bytes::from(vec![7; OWN_BYTES_MAX / 4]);
        own.put(STREAM, 0, &bytes, TIME, NOW);
        assert_eq!((own.numbers(STREAM, NOW), own.bytes), (None, 0), "a stream of somebody else");
        own.begin(STREAM);
        for number in 0..6 {
            own.put(STREAM, number, &bytes, TIME, NOW);
        }
        assert_eq!(own.numbers(STREAM, NOW), Some((0..6).collect()));
        assert_eq!(own.bytes, OWN_BYTES_MAX);
        assert!(own.bytes(STREAM, 3).is_some() && own.bytes(STREAM, 4).is_none());
        own.applied(STREAM, 2);
        own.freed(STREAM, 0);
        own.freed(STREAM, 3);
        assert_eq!(own.numbers(STREAM, NOW), Some(vec![1, 2, 4, 5]));
        assert_eq!(own.bytes, OWN_BYTES_MAX / 4);
        own.forget(STREAM);
        assert_eq!((own.numbers(STREAM, NOW), own.bytes), (None, 0));
    }

    /// What others applied, and garbage collection forgot, while a machine slept must not be applied again.
    #[test]
    fn what_waits_for_long_is_listed() {
        let mut own = own();
        own.begin(STREAM);
        own.put(STREAM, 0, &Bytes::from_static(b"x"), TIME, NOW);
        let most = WAITS_MAX.as_micros() as u64;
        let at = |wall_us, monotonic_us| Now { wall_us, monotonic_us };
        assert!(own.numbers(STREAM, at(TIME + most - 1, TIME + most - 1)).is_some());
        // One that slept; one whose wall clock was set back meanwhile; one whose clock was far ahead.
        for (wall_us, monotonic_us) in
            [(TIME + most, TIME), (TIME, TIME + most), (TIME - most, TIME)]
        {
            assert_eq!(own.numbers(STREAM, at(wall_us, monotonic_us)), None);
        }
        // The newest stays where it is for as long as nothing follows it.
        own.applied(STREAM, 1);
        assert_eq!(own.numbers(STREAM, at(TIME + most, TIME + most)), Some(vec![0]));
        // It may have been there for long before that was known.
        own.put(STREAM, 1, &Bytes::from_static(b"x"), 0, NOW);
        assert_eq!(own.numbers(STREAM, NOW), None);
        // Where tombstones stay for seconds nothing waits for longer.
        let mut short = Own::new(Duration::from_secs(80));
        short.begin(STREAM);
        short.put(STREAM, 0, &Bytes::from_static(b"x"), TIME, NOW);
        assert!(short.numbers(STREAM, NOW).is_some());
        assert_eq!(short.numbers(STREAM, at(TIME + 10_000_000, TIME)), None);
    }

    /// What belonged to no tree was put aside again by who had committed it.
    #[test]
    fn what_others_freed_is_known_by_a_list() {
        let mut own = own();
        own.begin(STREAM);
        for number in 0..5 {
            own.put(STREAM, number, &Bytes::from_static(b"x"), TIME, NOW);
        }
        own.seen(STREAM, &BTreeSet::new());
        assert_eq!(own.numbers(STREAM, NOW), Some((0..5).collect()));
        // The list was made before the last two were put.
        own.seen(STREAM, &BTreeSet::from([2]));
        assert_eq!(own.numbers(STREAM, NOW), Some(vec![2, 3, 4]));
        assert_eq!(own.bytes, 3);
    }

    #[test]
    fn it_is_listed_now_and_then_and_when_it_is_too_long() {
        let mut own = own();
        own.begin(STREAM);
        let lists = (0..3 * LISTS_EACH).filter(|_| own.numbers(STREAM, NOW).is_none()).count();
        assert_eq!(lists, 3);
        own.doubt(STREAM, true);
        assert_eq!(own.numbers(STREAM, NOW), None, "what was put without an answer may be there");
        own.put(STREAM, 0, &Bytes::from_static(b"x"), TIME, NOW);
        assert_eq!(own.numbers(STREAM, NOW), Some(vec![0]));
        for number in 0..=HELD_MAX as u64 {
            own.put(STREAM, number, &Bytes::from_static(b"x"), TIME, NOW);
        }
        assert_eq!((own.numbers(STREAM, NOW), own.bytes), (None, 0));
    }
}
