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

use std::{ops::Range, sync::Arc};

use super::{Batch, Model, Reader, view::Levels};
use crate::{
    bits,
    container::Plan,
    error::Error,
    filter::Filter,
    item::{Item, Uuid},
    member::codebook::Symbol,
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

/// A cursor over the events of one trail at a time.
pub struct Trail<'r, S: Storage> {
    reader: &'r Reader<S>,
    model: &'r Model,
    levels: Arc<Levels>,
    /// What the levels say, at hand.
    only_changes: bool,
    /// The filter of this cursor, which overrides those of the levels.
    own_filter: Option<Arc<Filter>>,
    /// The filter that holds for the trail that the cursor is on, and the last time that it can
    /// match.
    filter: Option<(Arc<Filter>, u64)>,
    id: Option<u64>,
    /// Whether nothing of that trail was read, since no event of it is let through.
    unread: bool,
    /// The state: one item for each field. The first stands where a symbol has no second item, so that
    /// it need not be asked whether there is one.
    items: Box<[Item]>,
    /// In a view of changes, the items that the event came with.
    changes: Vec<Item>,
    time: u64,
    /// Whether the event that `time` and `items` are was only looked at.
    peeked: bool,
    /// Whether every event is seen, with all its items: no filter holds, and it is not of changes.
    plain: bool,
    /// The time symbol that the next event starts with, read already.
    pending: Option<Pending>,
    window: Window,
    /// Where the trails from `spans_from` on start, and where the last of them ends.
    spans: Vec<u64>,
    spans_from: u64,
    /// What lies ahead when trails are passed over in order: bytes of data, and offsets.
    data_ahead: Ahead,
    spans_ahead: Ahead,
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
struct Window {
    /// `len` bytes of the member, then at least `SYMBOL_BYTES` of zeros.
    bytes: Vec<u8>,
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
        let model = reader.model()?;
        Ok(Trail {
            reader,
            model,
            only_changes: levels.only_changes,
            levels,
            own_filter: None,
            filter: None,
            id: None,
            unread: false,
            items: (0..model.literals.len()).map(|field| Item::new(field as u16, 0)).collect(),
            changes: Vec::new(),
            time: 0,
            peeked: false,
            plain: false,
            pending: None,
            window: Window {
                bytes: Vec::new(),
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
        self.choose_filter();
        match self.id {
            Some(id) if self.unread => self.seek(id),
            _ => Ok(()),
        }
    }

    /// Finds the filter that holds for the current trail, by precedence.
    fn choose_filter(&mut self) {
        let chosen = self.own_filter.as_ref().or_else(|| self.levels.of_trail(self.id?));
        let chosen = chosen.filter(|filter| !filter.is_all());
        self.filter = chosen.map(|filter| {
            let last = filter.times().map_or(0, |times| *times.end());
            (filter.clone(), last)
        });
        self.plain = self.filter.is_none() && !self.only_changes;
    }

    /// Puts the cursor before the first event of `trail`.
    pub fn seek(&mut self, trail: u64) -> Result<(), Error> {
        (self.pending, self.peeked) = (None, false);
        let next = self.id.take().map(|id| id + 1) == Some(trail);
        let span = self.span(trail, next)?;
        for (slot, field) in self.items.iter_mut().zip(0..) {
            *slot = Item::pack(field, 0);
        }
        self.time = self.reader.info.time_min;
        self.id = Some(trail);
        self.choose_filter();
        self.unread = self.filter.as_ref().is_some_and(|(filter, _)| filter.is_none());
        if self.unread {
            return Ok(());
        }
        let opened = self.open_span(span, next).and_then(|()| self.first_symbol());
        opened.inspect_err(|_| self.id = None)
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
        let held = self.window.at..self.window.at + self.window.len as u64;
        let window = &mut self.window;
        (window.end, window.unused, window.sequential) = (span.end, 0, sequential);
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
        window.unused = bits::low(bits::peek(&window.bytes, window.bit), 3);
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
        window.bytes.resize(len + SYMBOL_BYTES, 0);
        window.bytes[len..].fill(0);
        (window.at, window.len, window.bit) = (start, 0, window.bit % 8);
        members.read(data, start, &mut window.bytes[..len])?;
        window.len = len;
        window.set_ends();
        Ok(())
    }

    /// The first symbol of a trail, which must be a time symbol (T7).
    fn first_symbol(&mut self) -> Result<(), Error> {
        if self.window.bit >= self.window.end_bit {
            return Err(self.damaged("the trail has no events"));
        }
        match self.symbol()? {
            Decoded::Time(pending) => self.pending = Some(pending),
            Decoded::Items(..) => return Err(self.damaged("the trail starts without a time")),
        }
        Ok(())
    }

    /// The next event, or `None` at the end of the trail. After an error the trail is over.
    #[inline(always)]
    pub fn next_event(&mut self) -> Result<Option<Event<'_>>, Error> {
        if std::mem::take(&mut self.peeked) || self.advance()? {
            return Ok(Some(self.current()));
        }
        Ok(None)
    }

    /// The event that [`next_event`](Trail::next_event) will return.
    pub fn peek_event(&mut self) -> Result<Option<Event<'_>>, Error> {
        if !self.peeked {
            self.peeked = self.advance()?;
        }
        Ok(self.peeked.then(|| self.current()))
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
    pub fn count_rest(&mut self) -> Result<u64, Error> {
        let mut count = u64::from(std::mem::take(&mut self.peeked));
        while self.advance()? {
            count += 1;
        }
        Ok(count)
    }

    /// The event that the cursor is at, after [`advance`](Trail::advance) has said that it is.
    #[inline(always)]
    pub(crate) fn current(&self) -> Event<'_> {
        let items = if self.only_changes { &self.changes[..] } else { &self.items[1..] };
        Event { time: self.time, items }
    }

    /// Takes the event that was looked at as the current one.
    pub(super) fn take_peeked(&mut self) {
        self.peeked = false;
    }

    /// Goes on to the next event that the filter lets through. Returns whether there is one.
    #[inline(always)]
    pub(crate) fn advance(&mut self) -> Result<bool, Error> {
        if self.plain && self.window.refill_at == usize::MAX {
            return self.decode_whole();
        }
        self.advance_filtered()
    }

    fn advance_filtered(&mut self) -> Result<bool, Error> {
        loop {
            let decoded = match self.only_changes || self.window.refill_at != usize::MAX {
                true => self.decode()?,
                false => self.decode_whole()?,
            };
            if !decoded {
                return Ok(false);
            }
            let Some((filter, last)) = &self.filter else { return Ok(true) };
            if filter.matches(self.time, &self.items[1..]) {
                return Ok(true);
            }
            // Times ascend, so nothing behind this one can match (T10).
            if self.time > *last {
                self.pending = None;
            }
        }
    }

    /// Decodes the next event, whatever the filter. Returns whether there is one.
    fn decode(&mut self) -> Result<bool, Error> {
        let Some(pending) = self.pending.take() else { return Ok(false) };
        let Some(time) = self.time.checked_add(pending.delta) else {
            return Err(self.damaged("the timestamp exceeds 64 bits"));
        };
        self.time = time;
        self.changes.clear();
        if pending.second_field != 0 {
            self.set(pending.second_field, pending.second);
        }
        while self.window.bit < self.window.end_bit {
            match self.symbol()? {
                Decoded::Time(pending) => {
                    self.pending = Some(pending);
                    break;
                }
                Decoded::Items(first_field, first, second_field, second) => {
                    self.set(first_field, first);
                    if second_field != 0 {
                        self.set(second_field, second);
                    }
                    // A field changes once in an event. Made-up bytes say so again and again, two bits
                    // each time.
                    if self.changes.len() > self.items.len() {
                        return Err(self.damaged("more changes in an event than there are fields"));
                    }
                }
            }
        }
        Ok(true)
    }

    /// The same where all of the trail is in the window, and changes are not collected: nothing is
    /// refilled, so the position stays in a register, up to the time symbol of the next event.
    #[inline]
    fn decode_whole(&mut self) -> Result<bool, Error> {
        let Some(Pending { delta, second, second_field }) = self.pending.take() else {
            return Ok(false);
        };
        let items = &mut self.items[..];
        items[usize::from(second_field)] = second;
        let Some(time) = self.time.checked_add(delta) else {
            return Err(self.damaged("the timestamp exceeds 64 bits"));
        };
        self.time = time;
        let (bytes, end) = (&self.window.bytes[..], self.window.end_bit);
        let mut bit = self.window.bit;
        while bit < end {
            let word = bits::peek(bytes, bit);
            let (symbol, n) = match self.model.symbol(bytes, bit, word) {
                Ok(decoded) => decoded,
                Err(reason) => return Err(self.damaged_at(bit, reason)),
            };
            bit += u64::from(n);
            if bit > end {
                return Err(self.damaged_at(bit, "the trail ends inside a symbol"));
            }
            let Symbol { first, second, first_field, second_field } = symbol;
            if first_field == 0 {
                let second = Item(second);
                self.pending = Some(Pending { delta: first >> 8, second, second_field });
                break;
            }
            items[usize::from(first_field)] = Item(first);
            items[usize::from(second_field)] = Item(second);
        }
        self.window.bit = bit;
        Ok(true)
    }

    #[inline(always)]
    fn set(&mut self, field: u16, item: Item) {
        self.items[usize::from(field)] = item;
        if self.only_changes {
            self.changes.push(item);
        }
    }

    /// Decodes one symbol. The caller has checked that there is one.
    #[inline(always)]
    fn symbol(&mut self) -> Result<Decoded, Error> {
        if (self.window.bit >> 3) as usize >= self.window.refill_at {
            self.refill()?;
        }
        let (bytes, bit) = (&self.window.bytes[..], self.window.bit);
        let (symbol, n) = match self.model.symbol(bytes, bit, bits::peek(bytes, bit)) {
            Ok(decoded) => decoded,
            Err(reason) => return Err(self.damaged(reason)),
        };
        self.window.bit = bit + u64::from(n);
        if self.window.bit > self.window.end_bit {
            return Err(self.damaged("the trail ends inside a symbol"));
        }
        let Symbol { first, second, first_field, second_field } = symbol;
        let second = Item(second);
        Ok(match first_field {
            0 => Decoded::Time(Pending { delta: first >> 8, second, second_field }),
            _ => Decoded::Items(first_field, Item(first), second_field, second),
        })
    }

    #[cold]
    fn damaged_at(&mut self, bit: u64, reason: &str) -> Error {
        self.window.bit = bit;
        self.damaged(reason)
    }

    /// An error at the current bit; the trail is over.
    #[cold]
    fn damaged(&mut self, reason: &str) -> Error {
        self.pending = None;
        let content = self.reader.content.as_ref().expect("a cursor on a trail has content");
        let at = self.window.at + self.window.bit / 8;
        let id = self.id.unwrap_or_default();
        let reason = format!("trail {id}, bit {} of the byte: {reason}", self.window.bit % 8);
        content.trails.data.damaged(&self.reader.members, at, reason)
    }
}

impl Model {
    /// Decodes the symbol at `bit` of `bytes`, where `word` was peeked (T5, T6): what it is, and its
    /// bits. The error is a reason.
    #[inline(always)]
    fn symbol(&self, bytes: &[u8], bit: u64, word: u64) -> Result<(Symbol, u32), &'static str> {
        if word & 1 == 1 {
            let found = self.codebook.find(word >> 1).ok_or("no code word starts like this")?;
            return Ok((found.0, found.1 + 1));
        }
        let field = bits::low(word >> 1, self.field_bits);
        let Some(&(value_bits, value_max)) = self.literals.get(field as usize) else {
            return Err("a literal of a field that does not exist");
        };
        let before = 1 + self.field_bits;
        let value = match self.short_literals {
            true => bits::low(word >> before, value_bits),
            // A literal may have 63 bits, and a peek is good for 57: the value gets its own.
            false => bits::low(bits::peek(bytes, bit + u64::from(before)), value_bits),
        };
        if value > value_max {
            return Err("a literal of a value that does not exist");
        }
        let field = field as u16;
        let first = if field == 0 { value << 8 } else { Item::pack(field, value).raw() };
        let symbol = Symbol { first, second: 0, first_field: field, second_field: 0 };
        Ok((symbol, before + value_bits))
    }
}

impl Window {
    /// Sets the trail's end as seen from the window.
    fn set_ends(&mut self) {
        let left = self.end - self.at;
        // At least one byte, and at most seven unused bits: this is positive.
        self.end_bit = left * 8 - self.unused;
        let whole = left <= self.len as u64;
        self.refill_at = if whole { usize::MAX } else { self.len.saturating_sub(SYMBOL_BYTES) };
    }
}

enum Decoded {
    Time(Pending),
    /// First field and item, second field (0 if there is none) and item.
    Items(u16, Item, u16, Item),
}

impl<S: Storage> std::fmt::Debug for Trail<'_, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trail").field("id", &self.id).field("time", &self.time).finish()
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
