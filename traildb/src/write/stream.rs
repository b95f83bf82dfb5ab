//! Trails as the stages of writing hand them on: grouped, sorted, and only what changes.
//!
//! ```text
//!   trail   UUID, event ..., 0
//!   event   1 + n, delta, n x (field - field before, value)
//! ```
//!
//! All but the UUID are numbers of [`varint`]. Such a stream lies in memory or in a temporary file;
//! an event takes about six bytes. It says what the file will say, in a form that is quick to read
//! several times: fields that differ from the event before, NULL as number 0, and before the first
//! event all are NULL (FORMAT.md T7-T9).

use super::{
    varint,
    window::{Part, Window},
};
use crate::{error::Error, item::Uuid};

/// Bits of a value, or a delta, in a key: both have less than 48 (FORMAT.md L2, L4).
const VALUE_BITS: u32 = 48;

/// Field and value in one number; of field 0 the value is a delta. Sorts by field.
#[inline]
pub(super) fn key(field: u16, value: u64) -> u64 {
    debug_assert!(value >> VALUE_BITS == 0);
    u64::from(field) << VALUE_BITS | value
}

/// The field of a key.
#[inline]
pub(super) fn field(key: u64) -> u16 {
    (key >> VALUE_BITS) as u16
}

/// The value number, or the delta, of a key.
#[inline]
pub(super) fn value(key: u64) -> u64 {
    key & ((1 << VALUE_BITS) - 1)
}

/// Appends the start of a trail.
pub(super) fn put_trail(out: &mut Vec<u8>, uuid: Uuid) {
    out.extend_from_slice(&uuid.0);
}

/// Appends an event: its delta, and the keys of what changes, by ascending field.
#[inline]
pub(super) fn put_event(out: &mut Vec<u8>, delta: u64, changed: &[u64]) {
    varint::put(out, 1 + changed.len() as u64);
    varint::put(out, delta);
    let mut before = 0;
    for &key in changed {
        varint::put(out, u64::from(field(key) - before));
        varint::put(out, value(key));
        before = field(key);
    }
}

/// Appends the end of a trail.
pub(super) fn put_end(out: &mut Vec<u8>) {
    out.push(0);
}

/// The keys of `now` that `before` has not, and the fields of `before` that `now` has not, as NULL.
/// All by ascending field.
#[inline]
pub(super) fn difference(before: &[u64], now: &[u64], changed: &mut Vec<u64>) {
    changed.clear();
    let mut old = before.iter().copied().peekable();
    for &key in now {
        while let Some(gone) = old.next_if(|&old| field(old) < field(key)) {
            changed.push(self::key(field(gone), 0));
        }
        match old.next_if(|&old| field(old) == field(key)) {
            Some(same) if same == key => {}
            _ => changed.push(key),
        }
    }
    changed.extend(old.map(|gone| key(field(gone), 0)));
}

/// The bytes of a UUID.
const TRAIL_BYTES: usize = 16;

/// The longest record of a stream whose longest event has so many bytes.
pub(super) fn record_max(event_max: usize) -> usize {
    event_max.max(TRAIL_BYTES)
}

/// Reads a stream.
#[derive(Debug)]
pub(super) struct Stream<'b> {
    window: Window<'b>,
}

impl<'b> Stream<'b> {
    pub(super) fn new(bytes: &'b [u8]) -> Stream<'b> {
        Stream { window: Window::memory(bytes) }
    }

    /// Reads whole trails of a file, through a buffer of about so many bytes.
    pub(super) fn part(part: &Part, buffer: usize) -> Stream<'b> {
        Stream { window: Window::part(part, buffer) }
    }

    /// The next trail, or `None` at the end. The one before must have been read to its end.
    #[inline]
    pub(super) fn next_trail(&mut self) -> Result<Option<Uuid>, Error> {
        if self.window.is_empty() {
            return Ok(None);
        }
        let (bytes, at) = self.window.record()?;
        let uuid = bytes[*at..*at + TRAIL_BYTES].try_into().expect("sixteen bytes");
        *at += TRAIL_BYTES;
        Ok(Some(Uuid(uuid)))
    }

    /// Reads the next event of the trail into `keys`: its delta, which is a key of field 0, and
    /// what changes. Returns false at the trail's end.
    #[inline]
    pub(super) fn next_event(&mut self, keys: &mut Vec<u64>) -> Result<bool, Error> {
        let (bytes, at) = self.window.record()?;
        let n = varint::take(bytes, at);
        if n == 0 {
            return Ok(false);
        }
        keys.clear();
        keys.push(varint::take(bytes, at));
        let mut field = 0;
        for _ in 1..n {
            field += varint::take(bytes, at) as u16;
            keys.push(key(field, varint::take(bytes, at)));
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_between_two_events() {
        type Case = (&'static [(u16, u64)], &'static [(u16, u64)], &'static [(u16, u64)]);
        let cases: [Case; 6] = [
            (&[], &[], &[]),
            (&[], &[(1, 4), (9, 2)], &[(1, 4), (9, 2)]),
            (&[(1, 4), (9, 2)], &[], &[(1, 0), (9, 0)]),
            (&[(1, 4), (9, 2)], &[(1, 4), (9, 2)], &[]),
            (&[(1, 4), (3, 1), (9, 2)], &[(2, 7), (3, 2), (9, 2)], &[(1, 0), (2, 7), (3, 2)]),
            (&[(5, 1)], &[(4, 1), (6, 1)], &[(4, 1), (5, 0), (6, 1)]),
        ];
        let keys = |items: &[(u16, u64)]| items.iter().map(|&(f, v)| key(f, v)).collect::<Vec<_>>();
        for (before, now, changed) in cases {
            let mut got = Vec::new();
            difference(&keys(before), &keys(now), &mut got);
            assert_eq!(got, keys(changed), "{before:?} -> {now:?}");
        }
    }

    #[test]
    fn what_is_put_is_read() {
        let events = [(0, vec![]), ((1 << 47) - 2, vec![key(1, 0), key(16_382, (1 << 40) - 2)])];
        let mut bytes = Vec::new();
        for n in 0..3 {
            put_trail(&mut bytes, Uuid([n; 16]));
            events.iter().for_each(|(delta, changed)| put_event(&mut bytes, *delta, changed));
            put_end(&mut bytes);
        }
        let mut stream = Stream::new(&bytes);
        let mut keys = Vec::new();
        for n in 0..3 {
            assert_eq!(stream.next_trail().unwrap(), Some(Uuid([n; 16])));
            for event in &events {
                assert!(stream.next_event(&mut keys).unwrap());
                assert_eq!((keys[0], &keys[1..]), (event.0, &event.1[..]));
            }
            assert!(!stream.next_event(&mut keys).unwrap());
        }
        assert_eq!(stream.next_trail().unwrap(), None);
    }
}
