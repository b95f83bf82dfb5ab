//! A cursor over the events of a trail (FORMAT.md T3-T8).
//!
//! ```text
//!   trails.data  ....|.. trail t-1 ..|........ trail t ........|.. trail t+1 ..|....
//!   window                [======================]0000 guard
//!                                  ^ bit         ^ refilled from here, keeping what is unread
//! ```
//!
//! Bits are decoded from a window of at most 64 KiB that the cursor owns: nothing is pinned between
//! calls, a trail of any length takes the same memory, and the zeros behind the window stand for
//! the zeros that the format puts behind its data.
//!
//! Events are decoded into rows, and handed out from there:
//!
//! ```text
//!   rows   |  handed out  | at hand  | decoded, not filtered yet | open |
//!                         ^ next     ^ run_end                   ^ filled
//! ```
//!
//! In a database with few fields that is many events at once, of several trails where these are passed
//! over in order ([`rows`]); else one row is all there is, the state that the next symbols change. Where
//! no event matches without an item, rows are those of the events that have it ([`skim`],
//! [`long`](super::long)).

use std::{mem, ops::Range, slice, sync::Arc};

use super::{
    Batch, LastValues, Reader,
    long::Long,
    row_values::RowValues,
    rows::{self, Block, Decoded, Entry, Rest},
    skim::{self, Skimmed, Stream, Symbols},
    view::Levels,
};
use crate::{
    bits,
    container::Plan,
    error::Error,
    filter::Filter,
    item::{Item, Uuid},
    member::codebook::{Codebook, FIELDS_NARROW, Symbol},
    storage::Storage,
};

/// Bytes of a full window.
const WINDOW_BYTES: u64 = 64 << 10;
/// The longest symbol is 1 + 14 + 48 bits; with the bits before it in its byte it touches 9 bytes,
/// and a guard of 8 follows.
const SYMBOL_BYTES: usize = 16;
/// Offsets read at a time when trails are passed over in order.
const SPANS: u64 = 1024;
/// When trails are passed over in order, so much is announced ahead: what arrives on a link of
/// 5 Gbit/s in a round trip of 30 ms, and twice that for requests whose bytes are on their way.
const AHEAD_BYTES: u64 = 48 << 20;
/// So much is announced at a time, that is in one request: several are on their way at once, since
/// one connection does not fill a link. At 90 MB/s it streams for longer than it waits.
const AHEAD_STEP_BYTES: u64 = 4 << 20;
/// The same for offsets, in trails of 4 or 8 bytes each: for trails of 50 bytes it reaches as far.
const AHEAD_SPANS: u64 = 1 << 20;
const AHEAD_STEP_SPANS: u64 = 1 << 17;
/// What is announced is at most so many times what was passed over, so that a few trails in order
/// do not cost megabytes.
const AHEAD_TIMES: u64 = 8;

/// One event of a trail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// The timestamp.
    pub time: u64,
    /// One item for each user field, in order: `items[f - 1]` is of field f. In a view of changes
    /// ([`View::only_changes`](crate::View::only_changes)) only those that changed.
    pub items: &'a [Item],
}

/// An event and its values.
#[derive(Clone, Copy)]
pub struct Valued<'a> {
    /// The timestamp.
    pub time: u64,
    /// The items, as in an [`Event`].
    pub items: &'a [Item],
    values: Values<'a>,
}

#[derive(Clone, Copy)]
enum Values<'a> {
    Slices(&'a [&'a [u8]]),
    /// One value after the other, and where each ends.
    Copies(&'a [u8], &'a [usize]),
}

impl<'a> Valued<'a> {
    /// The values of the items, in their order; empty for NULL.
    #[inline]
    pub fn values(&self) -> impl ExactSizeIterator<Item = &'a [u8]> + use<'a> {
        match self.values {
            Values::Slices(slices) => ValuesIter::Slices(slices.iter()),
            Values::Copies(bytes, ends) => {
                ValuesIter::Copies { bytes, start: 0, ends: ends.iter() }
            }
        }
    }

    /// The value of `items[k]`; empty for NULL.
    ///
    /// # Panics
    /// When there is no such item.
    #[inline]
    pub fn value(&self, k: usize) -> &'a [u8] {
        self.values.get(k)
    }
}

impl<'a> Values<'a> {
    #[inline(always)]
    fn get(self, k: usize) -> &'a [u8] {
        match self {
            Values::Slices(slices) => slices[k],
            Values::Copies(bytes, ends) => {
                let start = if k == 0 { 0 } else { ends[k - 1] };
                &bytes[start..ends[k]]
            }
        }
    }
}

/// The values of an event, one after the other.
enum ValuesIter<'a> {
    Slices(slice::Iter<'a, &'a [u8]>),
    Copies { bytes: &'a [u8], start: usize, ends: slice::Iter<'a, usize> },
}

impl<'a> Iterator for ValuesIter<'a> {
    type Item = &'a [u8];

    #[inline(always)]
    fn next(&mut self) -> Option<&'a [u8]> {
        match self {
            ValuesIter::Slices(slices) => slices.next().copied(),
            ValuesIter::Copies { bytes, start, ends } => {
                let end = *ends.next()?;
                let value = &bytes[*start..end];
                *start = end;
                Some(value)
            }
        }
    }

    #[inline]
    fn size_hint(&self) -> (usize, Option<usize>) {
        match self {
            ValuesIter::Slices(slices) => slices.size_hint(),
            ValuesIter::Copies { ends, .. } => ends.size_hint(),
        }
    }
}

impl ExactSizeIterator for ValuesIter<'_> {}

impl std::fmt::Debug for Valued<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let values: Vec<_> = self.values().map(|value| value.escape_ascii().to_string()).collect();
        f.debug_struct("Valued").field("time", &self.time).field("values", &values).finish()
    }
}

/// A cursor over the events of one trail at a time.
pub struct Trail<'r, S: Storage> {
    reader: &'r Reader<S>,
    codebook: &'r Codebook,
    levels: Arc<Levels>,
    /// What the levels say, at hand.
    only_changes: bool,
    /// The filter of this cursor, which overrides those of the levels.
    own_filter: Option<Arc<Filter>>,
    /// The filter that holds for the trail that the cursor is on.
    filter: Option<Chosen>,
    /// Whether `filter` is still to be found.
    unfiltered: bool,
    id: Option<u64>,
    /// Whether nothing of that trail was read, since no event of it is let through.
    unread: bool,
    /// Number of fields, the time included.
    fields: usize,
    /// Items of a row: `fields`, or a power of two above it where many rows are decoded at once.
    stride: usize,
    /// Whether they are.
    narrow: bool,
    /// The row before the first event of a trail: NULLs, at the time from which deltas count.
    nulls: Box<[Item]>,
    /// Rows: the time, which has the place that a symbol without a second item writes to, and an item
    /// for each field.
    rows: Vec<Item>,
    /// The row of the state, when rows are decoded alone.
    base: usize,
    /// Rows are at hand from `next` to `run_end`, and decoded up to `filled`.
    next: usize,
    run_end: usize,
    filled: usize,
    /// Whether rows from `next` on are sparse, of a trail that is whole.
    sparse: bool,
    /// Whether rows are of the block, which knows in which of them the item is that a filter needs.
    marked: bool,
    /// Where `next` was when its row was looked at.
    peeked_at: usize,
    ahead: AheadOf,
    /// Trails that are decoded, or skimmed: one of the two has none.
    block: Block,
    skimmed: Skimmed,
    /// Whether it has passed over trails in order. Until then it keeps little: there may be many like it.
    in_order: bool,
    /// A part of a trail that is decoded for its events with an item.
    long: Long,
    /// Which of the two rows are made of, if they are of one.
    part: Part,
    /// Whether sparse rows are still to be made, of what was skimmed: one is said to be there.
    unmade: bool,
    /// Whether no event of what was skimmed has the item that the filter needs.
    lacking: bool,
    /// The item, and its place, if rows are those of the events alone that have it.
    picked: Option<(usize, Item)>,
    /// Where values are looked up many at once.
    row_values: Option<RowValues<'r>>,
    /// Whether those of the rows up to `filled` were, and those of the block.
    has_values: bool,
    block_has_values: bool,
    /// Where they were not, how they are looked up, and those of an event, with where each ends.
    last_values: Option<LastValues<'r, S>>,
    value_bytes: Vec<u8>,
    value_ends: Vec<usize>,
    /// In a view of changes, the items that the event came with.
    changes: Vec<Item>,
    window: Window<'r>,
    /// Where the trails from `spans_from` on start, and where the last of them ends.
    spans: Vec<u64>,
    spans_from: u64,
    /// What lies ahead when trails are passed over in order: bytes of data, and offsets.
    data_ahead: Ahead,
    spans_ahead: Ahead,
}

/// A filter, and what was found out about it.
struct Chosen {
    filter: Arc<Filter>,
    /// Whether it lets nothing through.
    is_none: bool,
    /// The last time that it can match.
    last: u64,
    /// If all it asks for is one item: its place in a row, itself, and whether it is not to be there.
    only: Option<(usize, Item, bool)>,
    /// An item, and its place in a row, that no event matches without. No NULL, since events have these
    /// before their trail says so.
    needed: Option<(usize, Item)>,
}

impl Chosen {
    fn new(filter: &Arc<Filter>, fields: usize) -> Chosen {
        let only = filter.only_item().map(|(field, item, not)| (usize::from(field), item, not));
        let exists = |place: usize| place > 0 && place < fields;
        let needed = filter.needed_item().map(|(field, item)| (usize::from(field), item));
        Chosen {
            filter: filter.clone(),
            is_none: filter.is_none(),
            last: filter.times().map_or(0, |times| *times.end()),
            only: only.filter(|&(place, ..)| exists(place)),
            needed: needed.filter(|&(place, _)| exists(place)),
        }
    }
}

/// Where the first rows that match start and end.
fn first_run(rows: &[Item], stride: usize, matches: impl Fn(&[Item]) -> bool) -> Range<usize> {
    let start = rows.chunks_exact(stride).position(&matches).map_or(rows.len(), |k| k * stride);
    let run = rows[start..].chunks_exact(stride).position(|row| !matches(row));
    start..run.map_or(rows.len(), |k| start + k * stride)
}

/// A part of a trail that is decoded, and not in rows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Its start, which was skimmed.
    Start,
    /// What is behind an event that is open.
    Behind,
}

/// What follows the rows that are decoded.
#[derive(Clone, Copy)]
enum AheadOf {
    /// Nothing: the trail is at its end.
    End,
    /// The event of the row at `filled`, whose symbols go on.
    Open,
    /// An event that starts with this symbol, which is read already. Its row is the only one.
    Pending(Pending),
}

/// How far ahead of a run was announced.
#[derive(Clone, Copy, Default)]
struct Ahead {
    /// Where the run began, and up to where it was announced; `None` before its first announcement.
    run: Option<(u64, u64)>,
}

impl Ahead {
    /// What to announce when the run needs what is before `at`: nothing, or a whole step.
    fn at(&mut self, at: u64, least: u64, step: u64, most: u64) -> Option<Range<u64>> {
        let (from, upto) = *self.run.get_or_insert((at, at));
        let passed = at.saturating_sub(from);
        let ahead = passed.saturating_mul(AHEAD_TIMES).clamp(least, most);
        let (start, end) = (upto.max(at), at.saturating_add(ahead));
        // Near what is needed next, less than a step is worth a request.
        if end < upto.saturating_add(step.min(ahead / 2)) {
            return None;
        }
        self.run = Some((from, end));
        Some(start..end)
    }
}

/// The first symbol of an event: its delta, and perhaps an item.
#[derive(Clone, Copy)]
struct Pending {
    delta: u64,
    second: Item,
    second_field: u16,
}

/// Part of `trails.data`, and where decoding is in it.
struct Window<'r> {
    /// All of the member, if it is in memory.
    memory: Option<&'r [u8]>,
    /// Whether the window is that: then it needs no filling.
    is_memory: bool,
    /// `len` bytes of the member, then at least `SYMBOL_BYTES` of zeros.
    copy: Vec<u8>,
    /// Where `bytes[0]` is in the member.
    at: u64,
    len: usize,
    /// Next bit, counted from the window's start.
    bit: u64,
    /// First bit that is not of the trail, counted from the window's start.
    end_bit: u64,
    /// Where the trail ends in the member.
    end: u64,
    /// Bits at the end of its last byte that are not of the trail.
    unused: u64,
    /// Whether trails are read in order, so that reading beyond this one pays.
    sequential: bool,
    /// From this byte on a symbol may not be whole: `usize::MAX` when the trail ends in the window.
    refill_at: usize,
}

impl<'r, S: Storage> Trail<'r, S> {
    pub(super) fn new(reader: &'r Reader<S>, levels: Arc<Levels>) -> Result<Trail<'r, S>, Error> {
        let codebook = reader.codebook()?;
        let content = reader.content.as_ref();
        let fields = codebook.fields();
        let time_min = reader.info.time_min;
        let narrow = fields <= FIELDS_NARROW && !levels.only_changes && time_min <= rows::TIME_MAX;
        let stride = match narrow {
            true => fields.next_power_of_two().max(4),
            false => fields,
        };
        let mut nulls: Box<[Item]> = (0..stride as u16).map(|field| Item::pack(field, 0)).collect();
        nulls[0] = Item(time_min);
        Ok(Trail {
            reader,
            codebook,
            only_changes: levels.only_changes,
            own_filter: None,
            filter: None,
            unfiltered: true,
            id: None,
            unread: false,
            fields,
            stride,
            narrow,
            rows: nulls.to_vec(),
            nulls,
            base: 0,
            next: 0,
            run_end: 0,
            filled: 0,
            sparse: false,
            marked: false,
            peeked_at: usize::MAX,
            ahead: AheadOf::End,
            block: Block::default(),
            skimmed: Skimmed::default(),
            in_order: false,
            long: Long::default(),
            part: Part::Start,
            unmade: false,
            lacking: false,
            picked: None,
            row_values: match narrow && levels.values_ahead {
                true => RowValues::new(reader)?,
                false => None,
            },
            has_values: false,
            block_has_values: false,
            last_values: None,
            value_bytes: Vec::new(),
            value_ends: Vec::new(),
            levels,
            changes: Vec::new(),
            window: Window {
                memory: content.and_then(|content| reader.members.in_memory(&content.trails.data)),
                is_memory: false,
                copy: Vec::new(),
                at: 0,
                len: 0,
                bit: 0,
                end_bit: 0,
                end: 0,
                unused: 0,
                sequential: false,
                refill_at: usize::MAX,
            },
            spans: Vec::new(),
            spans_from: 0,
            data_ahead: Ahead::default(),
            spans_ahead: Ahead::default(),
        })
    }

    /// The trail that the cursor is on.
    pub fn id(&self) -> Option<u64> {
        self.id
    }

    /// The UUID of the trail that the cursor is on.
    ///
    /// # Errors
    /// [`Error::Storage`] when bytes cannot be had, [`Error::Damaged`] when they break a rule of
    /// the format.
    pub fn uuid(&self) -> Result<Option<Uuid>, Error> {
        self.id.map(|id| self.reader.uuid(id)).transpose()
    }

    /// The reader that the cursor is of.
    pub fn reader(&self) -> &'r Reader<S> {
        self.reader
    }

    /// Sets a filter that holds for this cursor, on whatever trail, in place of those of its view;
    /// `None` puts those of the view back. It holds from the next event on.
    ///
    /// # Errors
    /// [`Error::FilterOfChanges`] if the cursor is of a view of changes. Those of
    /// [`seek`](Trail::seek) on a trail that was not read yet, since its view shows nothing of it.
    pub fn set_filter(&mut self, filter: Option<Arc<Filter>>) -> Result<(), Error> {
        if filter.is_some() && self.only_changes {
            return Err(Error::FilterOfChanges);
        }
        self.own_filter = filter;
        self.unfiltered = true;
        self.choose_filter();
        let needed = self.needed();
        self.marked &= needed.is_some_and(|needed| self.block.is_marked(needed));
        self.lacking &= self.is_skimmed_for(needed);
        if let Some(picked) = self.picked.take_if(|picked| Some(*picked) != needed) {
            self.make_others(picked);
        }
        // What was looked at stays; the filter decides anew about the rows behind it.
        let peeked = self.peeked_at == self.next && self.next < self.run_end;
        self.run_end = if peeked { self.next + self.stride } else { self.next };
        match self.id {
            Some(id) if self.unread => self.seek(id),
            _ => Ok(()),
        }
    }

    /// The item that no event matches without, and its place in a row.
    fn needed(&self) -> Option<(usize, Item)> {
        self.filter.as_ref().and_then(|chosen| chosen.needed)
    }

    /// Whether that is what trails were skimmed for.
    fn is_skimmed_for(&self, needed: Option<(usize, Item)>) -> bool {
        needed.is_some() && needed == self.skimmed.needed()
    }

    /// Finds the filter that holds for the current trail, by precedence.
    fn choose_filter(&mut self) {
        let Some(id) = self.id.filter(|_| self.unfiltered) else { return };
        self.unfiltered = self.levels.differ();
        let chosen = self.own_filter.as_ref().or_else(|| self.levels.of_trail(id));
        let chosen = chosen.filter(|filter| !filter.is_all());
        self.filter = chosen.map(|filter| Chosen::new(filter, self.fields));
    }

    /// Puts the cursor before the first event of `trail`.
    ///
    /// # Errors
    /// [`Error::NoSuchTrail`]; [`Error::Storage`] when bytes cannot be had, [`Error::Damaged`] when
    /// they break a rule of the format: the cursor is then at the end of no trail.
    pub fn seek(&mut self, trail: u64) -> Result<(), Error> {
        if self.seek_decoded(trail) {
            return Ok(());
        }
        let next = self.id.take().map(|id| id + 1) == Some(trail);
        self.in_order |= next;
        self.stop();
        let span = self.span(trail, next)?;
        self.id = Some(trail);
        self.choose_filter();
        self.unread = self.hides_all();
        if self.unread {
            return Ok(());
        }
        let opened = self.open_span(span, next);
        if opened.is_ok() && next && self.decode_block(trail) && self.seek_decoded(trail) {
            return Ok(());
        }
        self.block.clear();
        self.skimmed.clear();
        self.base = 0;
        let opened = opened.and_then(|()| self.first_symbol());
        opened.inspect_err(|_| self.id = None)
    }

    /// The trail is over.
    fn stop(&mut self) {
        (self.run_end, self.filled, self.peeked_at) = (self.next, self.next, usize::MAX);
        (self.sparse, self.marked, self.picked) = (false, false, None);
        self.ahead = AheadOf::End;
    }

    fn hides_all(&self) -> bool {
        self.filter.as_ref().is_some_and(|chosen| chosen.is_none)
    }

    /// Puts the cursor on `trail` if it is decoded, and whole so far.
    #[inline]
    fn seek_decoded(&mut self, trail: u64) -> bool {
        if let Some(&entry) = self.skimmed.get(trail) {
            return self.seek_skimmed(trail, entry);
        }
        let Some(&Entry { lane, start, end, rest, full }) = self.block.get(trail) else {
            return false;
        };
        if !self.set_rest(rest) {
            return false;
        }
        let from = lane * rows::LANE_STRIDE;
        self.base = from * self.stride;
        self.next = (from + start) * self.stride;
        self.filled = (from + end) * self.stride;
        (self.id, self.peeked_at) = (Some(trail), usize::MAX);
        self.has_values = self.block_has_values;
        if self.unfiltered {
            self.choose_filter();
        }
        (self.sparse, self.unmade, self.marked) = (!full, false, false);
        self.picked = None;
        self.run_end = self.next;
        match &self.filter {
            None => {
                self.fill();
                self.run_end = self.filled;
            }
            Some(chosen) => {
                self.marked = chosen.needed.is_some_and(|needed| self.block.is_marked(needed));
                if rest != Rest::Nothing {
                    // What follows goes on from the row that is open.
                    self.fill();
                }
            }
        }
        self.unread = self.hides_all();
        if self.unread {
            self.stop();
        }
        true
    }

    /// What follows the rows of a trail of which this is left. Returns whether it is sound.
    #[inline]
    fn set_rest(&mut self, rest: Rest) -> bool {
        self.ahead = match rest {
            Rest::Damaged => return false,
            Rest::Nothing => AheadOf::End,
            Rest::Symbols { bit, end_bit } => {
                (self.window.bit, self.window.end_bit) = (bit, end_bit);
                self.window.refill_at = usize::MAX;
                AheadOf::Open
            }
        };
        true
    }

    /// Puts the cursor on a trail that was skimmed, if it is whole so far.
    fn seek_skimmed(&mut self, trail: u64, entry: skim::Entry) -> bool {
        if !self.set_rest(entry.rest) {
            return false;
        }
        // One event at least, until rows are made of them.
        (self.base, self.next, self.run_end, self.filled) = (0, 0, 0, self.stride);
        (self.id, self.peeked_at) = (Some(trail), usize::MAX);
        if self.unfiltered {
            self.choose_filter();
        }
        (self.sparse, self.unmade, self.marked) = (true, true, false);
        (self.part, self.picked, self.has_values) = (Part::Start, None, false);
        self.lacking = !entry.may_have() && self.is_skimmed_for(self.needed());
        if self.filter.is_none() || entry.rest != Rest::Nothing {
            // What follows goes on from the row that is open.
            self.fill();
        }
        if self.filter.is_none() {
            self.run_end = self.filled;
        }
        self.unread = self.hides_all();
        if self.unread {
            self.stop();
        }
        true
    }

    /// The symbols that rows are made of, the row before the first of them, and room for rows.
    fn part_symbols(&mut self) -> (Symbols<'_>, &[Item], &mut [Item]) {
        let stream = Stream { codebook: self.codebook, bytes: self.window.bytes() };
        let (symbols, before) = match self.part {
            Part::Start => {
                (self.skimmed.symbols(self.id.unwrap_or_default(), stream), &self.nulls[..])
            }
            Part::Behind => (self.long.symbols(stream), self.long.before()),
        };
        // What follows may be decoded into them, too.
        let room = symbols.rows_max().max(rows::TRAIL_STRIDE) * self.stride;
        if self.rows.len() < room {
            self.rows.resize(room, Item(0));
        }
        (symbols, before, &mut self.rows[..])
    }

    /// Makes full rows of the trail that was skimmed: of those events that have what the filter needs, if
    /// it needs something.
    fn make_rows(&mut self) {
        match self.needed() {
            Some(needed) => self.pick_rows(needed),
            None => {
                let events = self.make_all();
                self.next = events.start * self.stride;
                (self.run_end, self.filled) = (self.next, events.end * self.stride);
            }
        }
    }

    /// Makes rows of the events that have that item, and behind them the one of the last event.
    fn pick_rows(&mut self, needed: (usize, Item)) {
        let stride = self.stride;
        let marked_for = match self.part {
            Part::Start => self.is_skimmed_for(Some(needed)),
            Part::Behind => self.long.is_marked_for(needed.1),
        };
        let (symbols, before, rows) = self.part_symbols();
        let symbols = if marked_for { symbols } else { symbols.of_any_item() };
        let picked = match stride {
            4 => symbols.pick::<4>(before, needed, rows),
            _ => symbols.pick::<8>(before, needed, rows),
        };
        let (place, item) = needed;
        let is_whole = matches!(self.ahead, AheadOf::End);
        let last = is_whole && self.rows[picked * stride + place] == item;
        (self.next, self.run_end) = (0, 0);
        self.filled = (picked + usize::from(last)) * stride;
        self.picked = Some(needed);
    }

    /// Makes rows of all events, and behind them the one that is open. Returns the numbers of the rows.
    fn make_all(&mut self) -> Range<usize> {
        let stride = self.stride;
        let (symbols, before, rows) = self.part_symbols();
        rows[..stride].copy_from_slice(&before[..stride]);
        let last = match stride {
            4 => symbols.sparse::<4>(rows),
            _ => symbols.sparse::<8>(rows),
        };
        let (before, rows) = rows[..(last + 1) * stride].split_at_mut(stride);
        match stride {
            4 => rows::fill::<4>(rows, before),
            _ => rows::fill::<8>(rows, before),
        }
        // At the start of a trail no event is before.
        let first = usize::from(self.part == Part::Start);
        first..last + usize::from(matches!(self.ahead, AheadOf::End))
    }

    /// Makes rows of all events where some were picked, and is where it was among them.
    #[cold]
    fn make_others(&mut self, (place, item): (usize, Item)) {
        let stride = self.stride;
        let passed = self.next / stride;
        let peeked = self.peeked_at == self.next && self.next < self.run_end;
        let events = self.make_all();
        let mut picked = events.clone().filter(|row| self.rows[row * stride + place] == item);
        let behind = picked.by_ref().take(passed).last().map_or(events.start, |row| row + 1);
        let next = picked.next().filter(|_| peeked);
        self.next = next.unwrap_or(behind) * stride;
        self.filled = events.end * stride;
        (self.run_end, self.peeked_at) = match peeked {
            true => (self.next + stride, self.next),
            false => (self.next, usize::MAX),
        };
    }

    /// Gives the sparse rows of a trail from `next` on, and the one that is open, all their items.
    fn fill(&mut self) {
        if !mem::replace(&mut self.sparse, false) {
            return;
        }
        if mem::replace(&mut self.unmade, false) {
            return self.make_rows();
        }
        self.block.set_full(self.id.unwrap_or_default());
        let open = match self.ahead {
            AheadOf::Open => self.stride,
            _ => 0,
        };
        let rows = self.next..self.filled + open;
        self.fill_values(rows.clone());
        match self.stride {
            4 => rows::fill::<4>(&mut self.rows[rows], &self.nulls),
            _ => rows::fill::<8>(&mut self.rows[rows], &self.nulls),
        }
    }

    /// Gives the values of sparse rows to those that have none of their own.
    fn fill_values(&mut self, rows: Range<usize>) {
        if let (Some(values), true) = (&mut self.row_values, self.has_values) {
            let (from, rows) = (rows.start, &self.rows[rows]);
            match self.stride {
                4 => values.fill::<4>(rows, from),
                _ => values.fill::<8>(rows, from),
            }
        }
    }

    /// Decodes the trails from `trail` on, of which it is at the first bit. Returns whether it did.
    fn decode_block(&mut self, trail: u64) -> bool {
        // Where trails have filters of their own, those behind this one may be hidden.
        if !self.narrow || self.levels.differ() || self.window.refill_at != usize::MAX {
            return false;
        }
        let stride = self.stride;
        let (from, len) = (self.window.at, self.window.len as u64);
        let bytes = self.window.bytes();
        let first = trail.wrapping_sub(self.spans_from) as usize;
        let mut spans = self.spans.get(first..).unwrap_or_default().windows(2);
        let next = || {
            let &[start, end] = spans.next()? else { return None };
            // What is not whole in the window, or is nowhere, is for another time.
            let (start, end) = (start.checked_sub(from)?, end.checked_sub(from)?);
            if start >= end || end > len {
                return None;
            }
            let unused = bits::low(bits::peek(bytes, start * 8), 3);
            Some((start * 8 + 3, end * 8 - unused))
        };
        let needed = self.needed();
        if let (Some(needed), None) = (needed, &self.row_values) {
            self.block.clear();
            let stream = Stream { codebook: self.codebook, bytes };
            self.skimmed.decode(stream, needed, trail, next);
            return true;
        }
        self.skimmed.clear();
        let len = rows::LANES * rows::LANE_STRIDE * stride;
        if self.rows.len() < len {
            // For all lanes: 400 KB where a row has eight items, half of it where it has four.
            self.rows = vec![Item(0); len];
        }
        let rows_max = match self.row_values {
            Some(_) => rows::LANE_ROWS_VALUES,
            None => rows::LANE_ROWS,
        };
        let (rows, codebook) = (&mut self.rows[..], self.codebook);
        match stride {
            4 => self.block.decode::<4>(codebook, bytes, rows, rows_max, trail, next),
            _ => self.block.decode::<8>(codebook, bytes, rows, rows_max, trail, next),
        }
        match stride {
            4 => self.block.mark::<4>(rows, needed),
            _ => self.block.mark::<8>(rows, needed),
        }
        let used = self.block.used();
        self.block_has_values = (0..rows::LANES).all(|lane| {
            let from = lane * rows::LANE_STRIDE * stride;
            self.look_up_rows(from..from + used[lane] * stride)
        });
        true
    }

    /// Looks up the values of sparse rows, if that was asked for. Returns whether all are known.
    fn look_up_rows(&mut self, rows: Range<usize>) -> bool {
        let (values, from) = (&mut self.row_values, rows.start);
        values.as_mut().is_some_and(|values| match self.stride {
            4 => values.look_up::<4>(&self.rows[rows], from),
            _ => values.look_up::<8>(&self.rows[rows], from),
        })
    }

    /// Where the trail is. In ascending order, offsets are read many at a time.
    fn span(&mut self, trail: u64, next: bool) -> Result<Range<u64>, Error> {
        let content = self.reader.content_of(trail)?;
        let members = &self.reader.members;
        if !next {
            self.spans_ahead = Ahead::default();
            return content.trails.span(members, trail);
        }
        let cached = trail.wrapping_sub(self.spans_from) as usize;
        if let Some(&[start, end]) = self.spans.get(cached..cached.wrapping_add(2)) {
            return content.trails.check(members, trail, start..end);
        }
        let n = SPANS.min(self.reader.info.trails - trail);
        if members.is_remote()
            && let (least, step) = (16 * SPANS, AHEAD_STEP_SPANS)
            && let Some(ahead) = self.spans_ahead.at(trail, least, step, AHEAD_SPANS)
        {
            let mut plan = Plan::default();
            content.trails.plan_offsets(&mut plan, ahead);
            plan.announce(members)?;
        }
        self.spans_from = trail;
        content
            .trails
            .offsets(members, trail, n + 1, &mut self.spans)
            .inspect_err(|_| self.spans.clear())?;
        content.trails.check(members, trail, self.spans[0]..self.spans[1])
    }

    /// Makes `span` the trail to decode: sets where its bits start and end.
    fn open_span(&mut self, span: Range<u64>, sequential: bool) -> Result<(), Error> {
        let window = &mut self.window;
        (window.end, window.unused, window.sequential) = (span.end, 0, sequential);
        // In memory, all but the last trails have enough bytes behind them.
        if let Some(bytes) = window.memory
            && let Some(len) = bytes.len().checked_sub(SYMBOL_BYTES)
            && span.end <= len as u64
        {
            (window.is_memory, window.at, window.len) = (true, 0, len);
        } else if mem::replace(&mut window.is_memory, false) {
            window.len = 0;
        }
        let held = window.at..window.at + window.len as u64;
        if held.contains(&span.start) {
            window.bit = (span.start - window.at) * 8;
        } else {
            (window.at, window.len, window.bit) = (span.start, 0, 0);
            if !sequential {
                self.data_ahead = Ahead::default();
            }
            self.refill()?;
        }
        // T4: the first three bits say how many of the last byte are unused.
        let window = &mut self.window;
        window.unused = bits::low(bits::peek(window.bytes(), window.bit), 3);
        window.bit += 3;
        window.set_ends();
        Ok(())
    }

    /// Reads on from the current bit; when trails are read in order, beyond the end of this one.
    fn refill(&mut self) -> Result<(), Error> {
        let content = self.reader.content.as_ref().expect("a cursor on a trail has content");
        let (members, data) = (&self.reader.members, &content.trails.data);
        let window = &mut self.window;
        let start = window.at + window.bit / 8;
        let limit = if window.sequential { data.len } else { window.end };
        let end = limit.min(start + WINDOW_BYTES);
        if window.sequential
            && members.is_remote()
            && let (least, step) = (4 * WINDOW_BYTES, AHEAD_STEP_BYTES)
            && let Some(ahead) = self.data_ahead.at(end, least, step, AHEAD_BYTES)
        {
            let mut plan = Plan::default();
            plan.add(data, ahead);
            plan.announce(members)?;
        }
        let len = (end - start) as usize;
        window.copy.resize(len + SYMBOL_BYTES, 0);
        window.copy[len..].fill(0);
        (window.at, window.len, window.bit) = (start, 0, window.bit % 8);
        members.read(data, start, &mut window.copy[..len])?;
        window.len = len;
        window.set_ends();
        Ok(())
    }

    /// The first symbol of a trail, which must be a time symbol (T7).
    fn first_symbol(&mut self) -> Result<(), Error> {
        if self.window.bit >= self.window.end_bit {
            return Err(self.damaged("the trail has no events"));
        }
        let pending = match self.symbol()? {
            Head::Time(pending) => pending,
            Head::Items(..) => return Err(self.damaged("the trail starts without a time")),
        };
        if self.narrow {
            let rows = rows::TRAIL_STRIDE * self.stride;
            self.rows.resize(self.rows.len().max(rows), Item(0));
        }
        let row = &mut self.rows[self.base..self.base + self.stride];
        row.copy_from_slice(&self.nulls);
        self.picked = None;
        (self.next, self.run_end, self.filled) = (self.base, self.base, self.base);
        self.marked = false;
        self.ahead = AheadOf::Pending(pending);
        // The first time is below TIME_MAX too where rows are narrow: the sum does not overflow.
        if self.narrow && pending.delta < rows::TIME_MAX {
            let time = row[0].0 + pending.delta;
            row[usize::from(pending.second_field)] = pending.second;
            row[0] = Item(time);
            self.ahead = AheadOf::Open;
        }
        Ok(())
    }

    /// The next event, or `None` at the end of the trail. After an error the trail is over.
    ///
    /// # Errors
    /// [`Error::Storage`] when bytes cannot be had, [`Error::Damaged`] when they break a rule of
    /// the format.
    #[inline(always)]
    pub fn next_event(&mut self) -> Result<Option<Event<'_>>, Error> {
        if self.advance()? { Ok(Some(self.current())) } else { Ok(None) }
    }

    /// The event that [`next_event`](Trail::next_event) will return.
    ///
    /// # Errors
    /// Those of [`next_event`](Trail::next_event).
    pub fn peek_event(&mut self) -> Result<Option<Event<'_>>, Error> {
        if self.next == self.run_end && !self.decode_more()? {
            return Ok(None);
        }
        self.peeked_at = self.next;
        Ok(Some(self.event(self.next)))
    }

    /// Fills `batch` with the next events, up to its maximum, and returns their number: 0 at the end
    /// of the trail.
    ///
    /// # Errors
    /// Events before the error are in the batch, and the trail is over.
    pub fn next_batch(&mut self, batch: &mut Batch) -> Result<usize, Error> {
        batch.clear();
        while !batch.is_full()
            && let Some(event) = self.next_event()?
        {
            batch.push(event);
        }
        Ok(batch.len())
    }

    /// Number of the events that are left, which are passed over.
    ///
    /// # Errors
    /// Those of [`next_event`](Trail::next_event).
    pub fn count_rest(&mut self) -> Result<u64, Error> {
        let mut count = 0;
        while self.next < self.run_end || self.decode_more()? {
            count += ((self.run_end - self.next) / self.stride) as u64;
            self.next = self.run_end;
        }
        Ok(count)
    }

    /// The event that the cursor is at, after [`advance`](Trail::advance) has said that it is.
    #[inline(always)]
    pub(crate) fn current(&self) -> Event<'_> {
        self.event(self.next.wrapping_sub(self.stride))
    }

    #[inline(always)]
    fn event(&self, row: usize) -> Event<'_> {
        let row = &self.rows[row..row.wrapping_add(self.fields)];
        let (time, items) = row.split_first().expect("a row has a time");
        let items = if self.only_changes { &self.changes[..] } else { items };
        Event { time: time.0, items }
    }

    /// The next event and its values, or `None` at the end of the trail. After an error of decoding the
    /// trail is over; one of a value lets it go on behind the event.
    ///
    /// This is the quick way to look at all values, from a view that says so
    /// ([`View::values_ahead`](crate::View::values_ahead)): they are then looked up for many events at
    /// once, as far as they are in memory. Elsewhere it does what [`LastValues`] does.
    ///
    /// # Errors
    /// Those of [`next_event`](Trail::next_event), and of [`Reader::value`].
    #[inline]
    pub fn next_with_values(&mut self) -> Result<Option<Valued<'_>>, Error> {
        if !self.advance()? {
            return Ok(None);
        }
        if !self.has_values {
            self.look_up_event()?;
        }
        let event = self.current();
        let row = self.next.wrapping_sub(self.stride);
        let values = match &self.row_values {
            Some(values) if self.has_values => Values::Slices(values.of(row)),
            _ => Values::Copies(&self.value_bytes, &self.value_ends),
        };
        Ok(Some(Valued { time: event.time, items: event.items, values }))
    }

    /// Copies the values of the current event.
    #[inline(never)]
    fn look_up_event(&mut self) -> Result<(), Error> {
        let mut last_values = match self.last_values.take() {
            Some(last_values) => last_values,
            None => self.reader.last_values()?,
        };
        let (mut bytes, mut ends) =
            (mem::take(&mut self.value_bytes), mem::take(&mut self.value_ends));
        bytes.clear();
        ends.clear();
        let copied = self.current().items.iter().try_for_each(|&item| {
            bytes.extend_from_slice(last_values.get(item)?);
            ends.push(bytes.len());
            Ok(())
        });
        (self.last_values, self.value_bytes, self.value_ends) = (Some(last_values), bytes, ends);
        copied
    }

    /// Takes the event that was looked at as the current one.
    pub(super) fn take_peeked(&mut self) {
        if self.peeked_at == self.next && self.next < self.run_end {
            self.next += self.stride;
        }
    }

    /// Goes on to the next event that the filter lets through. Returns whether there is one.
    #[inline(always)]
    pub(crate) fn advance(&mut self) -> Result<bool, Error> {
        if self.next == self.run_end && !self.decode_more()? {
            return Ok(false);
        }
        self.next = self.next.wrapping_add(self.stride);
        Ok(true)
    }

    /// Has a row at hand, where none is. Returns whether there is one.
    #[inline(never)]
    fn decode_more(&mut self) -> Result<bool, Error> {
        self.peeked_at = usize::MAX;
        loop {
            if self.run_end < self.filled {
                self.find_run();
                if self.next < self.run_end {
                    return Ok(true);
                }
            }
            let more = match self.ahead {
                AheadOf::End => false,
                AheadOf::Open if self.is_past() => {
                    self.ahead = AheadOf::End;
                    false
                }
                AheadOf::Open => self.decode_rows()?,
                AheadOf::Pending(pending) => {
                    let row = self.base;
                    self.has_values = false;
                    (self.next, self.run_end, self.filled) = (row, row, row + self.stride);
                    let whole = !self.only_changes && self.window.refill_at == usize::MAX;
                    let decoded = match whole {
                        true => self.decode_whole(pending),
                        false => self.decode(pending),
                    };
                    decoded.inspect_err(|_| self.stop())?;
                    true
                }
            };
            if !more {
                // It is over, whatever a later filter lets through.
                self.picked = None;
                return Ok(false);
            }
        }
    }

    /// Whether the event that is open, and so all behind it, is later than any that the filter lets
    /// through (T10).
    fn is_past(&self) -> bool {
        self.filter.as_ref().is_some_and(|chosen| self.rows[self.filled].0 > chosen.last)
    }

    /// Has the next rows that match at hand, of those that are decoded.
    fn find_run(&mut self) {
        if self.sparse {
            let lacks = match self.unmade {
                true => self.lacking,
                false => {
                    let rows = self.row_numbers(self.next);
                    self.marked && self.block.first_marked(rows).is_none()
                }
            };
            if lacks {
                (self.next, self.run_end) = (self.filled, self.filled);
                (self.sparse, self.unmade) = (false, false);
                return;
            }
            self.fill();
            if self.run_end == self.filled {
                // Of rows that are picked there may be none.
                return;
            }
        }
        let Some(chosen) = &self.filter else {
            (self.next, self.run_end) = (self.run_end, self.filled);
            return;
        };
        if let (Some((.., false)), Some(_)) = (chosen.only, self.picked) {
            // They are those that were picked.
            (self.next, self.run_end) = (self.run_end, self.filled);
            return;
        }
        // Behind a row that does not match, none does before one that came with the item.
        if let (Some((place, item, false)), true) = (chosen.only, self.marked)
            && self.rows[self.run_end + place] != item
        {
            let rows = self.row_numbers(self.run_end);
            let row = self.block.first_marked(rows);
            self.run_end = row.map_or(self.filled, |row| row * self.stride);
        }
        let rows = &self.rows[self.run_end..self.filled];
        let run = match (chosen.only, self.stride) {
            // The most common question is asked without detours.
            (Some((place, item, negated)), 4) => rows::first_run::<4>(rows, place, item, negated),
            (Some((place, item, negated)), 8) => rows::first_run::<8>(rows, place, item, negated),
            _ => first_run(rows, self.stride, |row| {
                chosen.filter.matches(row[0].0, &row[1..self.fields])
            }),
        };
        (self.next, self.run_end) = (self.run_end + run.start, self.run_end + run.end);
        // Times ascend, so nothing behind a later one can match (T10).
        if self.next == self.filled && self.rows[self.filled - self.stride].0 > chosen.last {
            self.ahead = AheadOf::End;
        }
    }

    /// The numbers of rows of a block, from the one at `start` on.
    fn row_numbers(&self, start: usize) -> Range<usize> {
        let shift = self.stride.trailing_zeros();
        start >> shift..self.filled >> shift
    }

    /// Decodes events behind the open row, which becomes the first. Returns whether there are any.
    fn decode_rows(&mut self) -> Result<bool, Error> {
        let (base, stride) = (self.base, self.stride);
        // Its lane has no trail behind it, and those before it are given up.
        self.block.pass(self.id.unwrap_or_default());
        self.rows.copy_within(self.filled..self.filled + stride, base);
        (self.next, self.run_end, self.filled, self.marked) = (base, base, base, false);
        self.picked = None;
        let mut open = [Item(0); FIELDS_NARROW];
        open[..stride].copy_from_slice(&self.rows[base..base + stride]);
        if (self.window.bit >> 3) as usize >= self.window.refill_at {
            self.refill().inspect_err(|_| self.stop())?;
        }
        let limit = match self.window.refill_at {
            usize::MAX => self.window.end_bit,
            byte => self.window.end_bit.min(byte as u64 * 8),
        };
        // In a block the rows behind those of a lane are another one's.
        let needed = self.needed().filter(|_| self.row_values.is_none() && self.block.is_empty());
        if let Some(needed) = needed
            && self.in_order
            && open[0].0 <= rows::TIME_MAX
            && self.decode_part(needed.1, open, limit)
        {
            self.pick_rows(needed);
            return Ok(true);
        }
        let (rows, bytes, bit) = (&mut self.rows[base..], self.window.bytes(), self.window.bit);
        let decoded = match stride {
            _ if open[0].0 > rows::TIME_MAX => Err(rows::Damaged),
            4 => rows::trail::<4>(self.codebook, bytes, rows, bit, limit),
            _ => rows::trail::<8>(self.codebook, bytes, rows, bit, limit),
        };
        match decoded {
            Ok(Decoded { row, bit }) if bit <= self.window.end_bit => {
                self.window.bit = bit;
                let is_end = bit == self.window.end_bit;
                self.filled = base + (row + usize::from(is_end)) * stride;
                if is_end {
                    self.ahead = AheadOf::End;
                }
                let end = base + (row + 1) * stride;
                self.has_values = self.look_up_rows(base..end);
                self.fill_values(base..end);
                // The first row is full.
                let (open, rows) = self.rows[base..end].split_at_mut(stride);
                match stride {
                    4 => rows::fill::<4>(rows, open),
                    _ => rows::fill::<8>(rows, open),
                }
            }
            // Once more, symbol by symbol, which finds out what is wrong, and where.
            _ => {
                self.rows[base..base + stride].copy_from_slice(&open[..stride]);
                let nothing = Pending { delta: 0, second: Item(0), second_field: 0 };
                self.ahead = AheadOf::Pending(nothing);
            }
        }
        Ok(true)
    }

    /// Decodes a part of the trail behind the open row, up to `limit`, for events with that item. Returns
    /// whether there is anything.
    fn decode_part(&mut self, item: Item, open: [Item; FIELDS_NARROW], limit: u64) -> bool {
        let Window { bit, end_bit, .. } = self.window;
        let stream = Stream { codebook: self.codebook, bytes: self.window.bytes() };
        let marked = self.skimmed.marked().filter(|marked| marked.0 == item);
        let behind = self.long.decode(stream, marked, open, bit, limit, end_bit);
        if self.long.is_empty() {
            return false;
        }
        self.part = Part::Behind;
        self.window.bit = behind;
        if behind == end_bit {
            self.ahead = AheadOf::End;
        }
        true
    }

    /// Decodes the event that starts with `pending`.
    fn decode(&mut self, pending: Pending) -> Result<(), Error> {
        self.start_event(pending)?;
        self.changes.clear();
        if pending.second_field != 0 {
            self.set(pending.second_field, pending.second);
        }
        while self.window.bit < self.window.end_bit {
            match self.symbol()? {
                Head::Time(pending) => {
                    self.ahead = AheadOf::Pending(pending);
                    break;
                }
                Head::Items(first_field, first, second_field, second) => {
                    self.set(first_field, first);
                    if second_field != 0 {
                        self.set(second_field, second);
                    }
                    // A field changes once in an event. Made-up bytes say so again and again, two bits
                    // each time.
                    if self.changes.len() > self.fields {
                        return Err(self.damaged("more changes in an event than there are fields"));
                    }
                }
            }
        }
        Ok(())
    }

    /// The time of the event that starts with `pending`; no event is known to follow it.
    #[inline]
    fn start_event(&mut self, pending: Pending) -> Result<(), Error> {
        self.ahead = AheadOf::End;
        let time = &mut self.rows[self.base];
        match time.0.checked_add(pending.delta) {
            Some(sum) => time.0 = sum,
            None => return Err(self.damaged("the timestamp exceeds 64 bits")),
        }
        Ok(())
    }

    /// The same where all of the trail is in the window, and changes are not collected: nothing is
    /// refilled, so the position stays in a register, up to the time symbol of the next event.
    fn decode_whole(&mut self, pending: Pending) -> Result<(), Error> {
        self.start_event(pending)?;
        let row = &mut self.rows[self.base..];
        let time = row[0];
        row[usize::from(pending.second_field)] = pending.second;
        let (bytes, end) = (self.window.bytes(), self.window.end_bit);
        let mut bit = self.window.bit;
        while bit < end {
            let word = bits::peek(bytes, bit);
            let (symbol, n) = match self.codebook.symbol(bytes, bit, word) {
                Ok(decoded) => decoded,
                Err(_) => return Err(self.damaged_symbol(bit)),
            };
            if bit + u64::from(n) > end {
                return Err(self.damaged_symbol(bit));
            }
            bit += u64::from(n);
            let Symbol { first, second, first_field, second_field } = symbol;
            if first_field == 0 {
                let second = Item(second);
                let pending = Pending { delta: first >> 8, second, second_field };
                self.ahead = AheadOf::Pending(pending);
                break;
            }
            row[usize::from(first_field)] = Item(first);
            row[usize::from(second_field)] = Item(second);
        }
        row[0] = time;
        self.window.bit = bit;
        Ok(())
    }

    #[inline(always)]
    fn set(&mut self, field: u16, item: Item) {
        self.rows[self.base + usize::from(field)] = item;
        if self.only_changes {
            self.changes.push(item);
        }
    }

    /// Decodes one symbol. The caller has checked that there is one.
    #[inline(always)]
    fn symbol(&mut self) -> Result<Head, Error> {
        if (self.window.bit >> 3) as usize >= self.window.refill_at {
            self.refill()?;
        }
        let (bytes, bit) = (self.window.bytes(), self.window.bit);
        let (symbol, n) = match self.codebook.symbol(bytes, bit, bits::peek(bytes, bit)) {
            Ok(decoded) => decoded,
            Err(_) => return Err(self.damaged_symbol(bit)),
        };
        if bit + u64::from(n) > self.window.end_bit {
            return Err(self.damaged_symbol(bit));
        }
        self.window.bit = bit + u64::from(n);
        let Symbol { first, second, first_field, second_field } = symbol;
        let second = Item(second);
        Ok(match first_field {
            0 => Head::Time(Pending { delta: first >> 8, second, second_field }),
            _ => Head::Items(first_field, Item(first), second_field, second),
        })
    }

    /// What is wrong with the symbol at `bit`. It is looked at without the bits behind the trail's end,
    /// which are another trail's, or none, as the window has it: the error depends on the trail alone.
    #[cold]
    fn damaged_symbol(&mut self, bit: u64) -> Error {
        let (bytes, end) = (self.window.bytes(), self.window.end_bit);
        let from = (bit >> 3) as usize;
        // Wider than any symbol, and as much again of zeros to peek at.
        let mut copy = [0; 32];
        let past = (from + 16).min(end.div_ceil(8) as usize).min(bytes.len());
        copy[..past - from].copy_from_slice(&bytes[from..past]);
        if past as u64 == end.div_ceil(8) && !end.is_multiple_of(8) {
            copy[past - from - 1] &= (1 << (end % 8)) - 1;
        }
        let word = bits::peek(&copy, bit % 8);
        let decoded = self.codebook.symbol(&copy, bit % 8, word);
        self.window.bit = bit;
        self.damaged(decoded.err().unwrap_or("the trail ends inside a symbol"))
    }

    /// An error at the current bit; the trail is over.
    #[cold]
    fn damaged(&mut self, reason: &str) -> Error {
        self.stop();
        let content = self.reader.content.as_ref().expect("a cursor on a trail has content");
        let at = self.window.at + self.window.bit / 8;
        let id = self.id.unwrap_or_default();
        let reason = format!("trail {id}, bit {} of the byte: {reason}", self.window.bit % 8);
        content.trails.data.damaged(&self.reader.members, at, reason)
    }
}

impl<'r> Window<'r> {
    /// What bits are counted in.
    #[inline(always)]
    fn bytes(&self) -> &[u8] {
        match self.memory {
            Some(bytes) if self.is_memory => bytes,
            _ => &self.copy,
        }
    }

    /// Sets the trail's end as seen from the window.
    fn set_ends(&mut self) {
        let left = self.end - self.at;
        // At least one byte, and at most seven unused bits: this is positive.
        self.end_bit = left * 8 - self.unused;
        let whole = left <= self.len as u64;
        self.refill_at = if whole { usize::MAX } else { self.len.saturating_sub(SYMBOL_BYTES) };
    }
}

/// A symbol, by the field of its first item.
enum Head {
    Time(Pending),
    /// First field and item, second field (0 if there is none) and item.
    Items(u16, Item, u16, Item),
}

impl<S: Storage> std::fmt::Debug for Trail<'_, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trail").field("id", &self.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_announced_grows_with_the_run_and_leaves_no_gap() {
        let mut ahead = Ahead::default();
        let (mut upto, mut requests) = (0, 0);
        for at in (0..200u64 << 20).step_by(64 << 10) {
            if let Some(range) = ahead.at(at, 256 << 10, 4 << 20, 48 << 20) {
                assert!(range.start == upto && range.end > upto, "{range:?} after {upto}");
                assert!(range.end - at <= (at * AHEAD_TIMES).clamp(256 << 10, 48 << 20));
                (upto, requests) = (range.end, requests + 1);
            }
            assert!(upto >= at + (128 << 10), "{at} is not announced");
        }
        assert!(upto >= 244 << 20);
        assert!(requests < 80, "{requests} requests");
    }
}
