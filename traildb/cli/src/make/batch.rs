//! Events between the parser and the builder: many at a time, their values in place.
//!
//! ```text
//!   text   the input as it was read        ...5b0c0a0f,1700000000,Berlin,"a ""b"""\n...
//!   extra  values that had to be unescaped                                 a "b"
//!   cells  for each event, where the value of each field is in these two
//! ```
//!
//! Nothing is allocated for a value, and batches are used again.

use traildb::Uuid;

use super::{
    columns::To,
    problem::{Problem, Tally},
};

/// Where a value is. The highest bit of `start` says in which text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cell {
    start: u32,
    len: u32,
}

const EXTRA: u32 = 1 << 31;

impl Cell {
    /// A part of the text. Texts are less than 2 GiB long: blocks and rows have a bound.
    pub(super) fn text(start: usize, end: usize) -> Cell {
        debug_assert!(end < EXTRA as usize);
        Cell { start: start as u32, len: (end - start) as u32 }
    }

    /// A part of the unescaped values.
    pub(super) fn extra(start: usize, end: usize) -> Cell {
        debug_assert!(end < EXTRA as usize);
        Cell { start: start as u32 | EXTRA, len: (end - start) as u32 }
    }

    /// The first bytes of it, of which there are so many.
    pub(super) fn first(self, len: usize) -> Cell {
        debug_assert!(len <= self.len as usize);
        Cell { len: len as u32, ..self }
    }

    /// The bytes.
    pub(super) fn of<'t>(self, text: &'t [u8], extra: &'t [u8]) -> &'t [u8] {
        let whole = if self.start & EXTRA == 0 { text } else { extra };
        let start = (self.start & !EXTRA) as usize;
        &whole[start..start + self.len as usize]
    }
}

/// An event but for its values.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) uuid: Uuid,
    pub(super) time: u64,
    /// The line that it started in, from 1.
    pub(super) line: u64,
}

/// A batch is full at so many rows, of 32 bytes each here, and at so many cells, of 8 bytes.
pub(super) const ROWS: usize = 8 << 10;
pub(super) const CELLS: usize = 64 << 10;
/// The most memory that is kept for a text when it is empty.
pub(super) const KEPT_BYTES: usize = 1 << 20;

/// Events of one block of input.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) text: Vec<u8>,
    pub(super) extra: Vec<u8>,
    pub(super) rows: Vec<Row>,
    cells: Vec<Cell>,
    /// What was wrong with the row after the last one; the end of the input unless bad rows are
    /// passed over.
    pub(super) problem: Option<(u64, Problem)>,
    /// Bytes and lines of the input, up to here.
    pub(super) bytes: u64,
    pub(super) lines: u64,
}

impl Batch {
    /// Forgets everything but the memory, and that too where a long row took much.
    pub(super) fn clear(&mut self) {
        for text in [&mut self.text, &mut self.extra] {
            text.clear();
            text.shrink_to(KEPT_BYTES);
        }
        self.rows.clear();
        self.cells.clear();
        self.problem = None;
    }

    fn is_full(&self) -> bool {
        self.rows.len() >= ROWS || self.cells.len() >= CELLS
    }

    /// The events and their values' places.
    pub(super) fn events(&self, fields: usize) -> impl Iterator<Item = (&Row, &[Cell])> {
        let cells = move |k: usize| &self.cells[k * fields..(k + 1) * fields];
        self.rows.iter().enumerate().map(move |(k, row)| (row, cells(k)))
    }
}

/// Fills a batch, event by event.
pub(super) struct Sink<'b> {
    pub(super) batch: &'b mut Batch,
    pub(super) tally: &'b mut Tally,
    fields: usize,
    uuid: Option<Uuid>,
    time: Option<u64>,
    problem: Option<Problem>,
}

impl<'b> Sink<'b> {
    pub(super) fn new(batch: &'b mut Batch, tally: &'b mut Tally, fields: usize) -> Sink<'b> {
        Sink { batch, tally, fields, uuid: None, time: None, problem: None }
    }

    /// Begins an event whose values are all empty, also behind one that was rejected half filled.
    pub(super) fn begin(&mut self) {
        (self.uuid, self.time, self.problem) = (None, None, None);
        let taken = self.batch.rows.len() * self.fields;
        self.batch.cells.truncate(taken);
        self.batch.cells.resize(taken + self.fields, Cell::default());
    }

    /// Sets what `to` names. `bytes` are those of `cell`; `place` says for errors where they are.
    #[inline]
    pub(super) fn set(&mut self, to: To, cell: Cell, bytes: &[u8], place: impl FnOnce() -> String) {
        match to {
            To::Field(field) => {
                let at = self.batch.rows.len() * self.fields + field as usize;
                self.batch.cells[at] = cell;
            }
            To::Uuid => match uuid(bytes) {
                Some(uuid) => self.uuid = Some(uuid),
                None => self.fail(Problem::bad_uuid(place(), bytes)),
            },
            To::Time => match time(bytes) {
                Some(time) => self.time = Some(time),
                None => self.fail(Problem::bad_time(place(), bytes)),
            },
            To::Nowhere => {}
        }
    }

    /// The event cannot be used.
    pub(super) fn fail(&mut self, problem: Problem) {
        self.problem.get_or_insert(problem);
    }

    /// Ends the event, which started in `line`. Returns whether to go on: not with a full batch.
    #[inline]
    pub(super) fn end(&mut self, line: u64) -> bool {
        let problem = match (self.problem.take(), self.uuid, self.time) {
            (None, Some(uuid), Some(time)) => {
                self.batch.rows.push(Row { uuid, time, line });
                return !self.batch.is_full();
            }
            (Some(problem), ..) => problem,
            (None, None, _) => Problem::no_uuid(),
            (None, Some(_), None) => Problem::no_time(),
        };
        self.reject(line, problem)
    }

    /// Counts a bad row, or ends the input with it. Returns whether to go on.
    #[cold]
    pub(super) fn reject(&mut self, line: u64, problem: Problem) -> bool {
        if self.tally.skip {
            self.tally.add(line, problem);
            return true;
        }
        self.batch.problem = Some((line, problem));
        false
    }
}

/// Up to 32 hexadecimal digits, filled with zeros at the end.
fn uuid(text: &[u8]) -> Option<Uuid> {
    if text.is_empty() || text.len() > 32 {
        return None;
    }
    let mut bytes = [0; 16];
    let mut bad = 0;
    for (k, &digit) in text.iter().enumerate() {
        let value = DIGITS[usize::from(digit)];
        bad |= value;
        bytes[k / 2] |= if k % 2 == 0 { value << 4 } else { value };
    }
    (bad < 16).then_some(Uuid(bytes))
}

/// The values of hexadecimal digits; 255 of everything else.
const DIGITS: [u8; 256] = {
    let mut table = [255; 256];
    let mut k = 0;
    while k < 10 {
        table[b'0' as usize + k] = k as u8;
        k += 1;
    }
    let mut k = 0;
    while k < 6 {
        table[b'a' as usize + k] = 10 + k as u8;
        table[b'A' as usize + k] = 10 + k as u8;
        k += 1;
    }
    table
};

/// The bytes of hexadecimal text.
pub(super) fn unhex(text: &[u8], out: &mut Vec<u8>) -> bool {
    let whole = text.len().is_multiple_of(2);
    let mut bad = 0;
    for pair in text.chunks_exact(2) {
        let (high, low) = (DIGITS[usize::from(pair[0])], DIGITS[usize::from(pair[1])]);
        bad |= high | low;
        out.push(high << 4 | low & 15);
    }
    whole && bad < 16
}

/// A whole number of at most 64 bits, in digits alone.
fn time(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |time, &digit| {
        let digit = digit.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        time.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids() {
        let shown = |text: &str| uuid(text.as_bytes()).map(|uuid| uuid.to_string());
        let whole = "00112233445566778899aabbccddeeff";
        assert_eq!(shown(whole).as_deref(), Some(whole));
        assert_eq!(shown(&whole.to_uppercase()).as_deref(), Some(whole));
        assert_eq!(shown("abc").as_deref(), Some("abc00000000000000000000000000000"));
        for bad in ["", "g", "0x1", " 1", "001122334455667788990011223344556"] {
            assert_eq!(shown(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn times() {
        let cases = [
            ("0", Some(0)),
            ("007", Some(7)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("99999999999999999999", None),
            ("", None),
            ("-1", None),
            ("+1", None),
            (" 1", None),
            ("1.0", None),
        ];
        for (text, expected) in cases {
            assert_eq!(time(text.as_bytes()), expected, "{text:?}");
        }
    }

    #[test]
    fn hexadecimal_text() {
        let cases: [(&str, Option<&[u8]>); 5] = [
            ("", Some(b"")),
            ("c3FF", Some(b"\xc3\xff")),
            ("c3f", None),
            ("0g", None),
            ("g0", None),
        ];
        for (text, expected) in cases {
            let mut out = Vec::new();
            let good = unhex(text.as_bytes(), &mut out);
            assert_eq!(good.then_some(out.as_slice()), expected, "{text:?}");
        }
    }
}
