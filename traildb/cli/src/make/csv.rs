//! CSV: a row at a time, quoted as RFC 4180 says, from a block of text.
//!
//! A value that starts with a quote goes on to the next quote that is not doubled, over delimiters
//! and line breaks; what follows that quote up to the delimiter belongs to it. A quote anywhere
//! else is a character. Rows end with LF or CR LF, the last one also with the end of the input.

use memchr::{memchr, memchr_iter, memchr2};

use super::{
    batch::{Cell, Sink},
    columns::To,
    problem::Problem,
};

/// How values and rows are told apart.
#[derive(Clone, Copy, Debug)]
pub(super) struct Csv {
    pub(super) delimiter: u8,
    /// Whether quotes and carriage returns mean anything: not to the C library's tool.
    pub(super) quotes: bool,
}

/// What was found at a place of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scanned {
    /// A row of so many lines that ends, its line break included, here.
    Row { end: usize, lines: u64 },
    /// The text ends first, and it is not the end of the input.
    More,
    /// The input ends inside the quotes of this column, from 1.
    Open { column: usize },
}

impl Csv {
    /// Gives the values of the row at `at`, each with its column from 0. `last` says that the text
    /// ends where the input does. Values that have to be unescaped are appended to `extra`.
    #[inline]
    pub(super) fn scan(
        self,
        text: &[u8],
        mut at: usize,
        last: bool,
        extra: &mut Vec<u8>,
        mut give: impl FnMut(usize, Cell, &[u8]),
    ) -> Scanned {
        let mut lines = 1;
        let mut column = 0;
        loop {
            let quoted = self.quotes && text.get(at) == Some(&b'"');
            let (start, from_extra) = match quoted {
                false => (at, None),
                true => {
                    let from = extra.len();
                    match self.unquote(&text[at + 1..], extra) {
                        None if last => return Scanned::Open { column: column + 1 },
                        None => return Scanned::More,
                        Some((len, breaks)) => {
                            lines += breaks;
                            let start = at + 1;
                            at += len + 2;
                            // Behind the quotes almost always comes the delimiter.
                            let plain = extra.len() == from;
                            (start, Some((from, plain)))
                        }
                    }
                }
            };
            let found = memchr2(self.delimiter, b'\n', &text[at..]);
            let end = match found {
                Some(n) => at + n,
                None if last => text.len(),
                None => return Scanned::More,
            };
            let ends_row = found.is_none() || text[end] == b'\n';
            let mut stop = end;
            if ends_row && self.quotes && stop > at && text[stop - 1] == b'\r' {
                stop -= 1;
            }
            match from_extra {
                None => give(column, Cell::text(start, stop), &text[start..stop]),
                Some((_, true)) if stop == at => {
                    let close = at - 1;
                    give(column, Cell::text(start, close), &text[start..close]);
                }
                Some((from, plain)) => {
                    if plain {
                        extra.extend_from_slice(&text[start..at - 1]);
                    }
                    extra.extend_from_slice(&text[at..stop]);
                    give(column, Cell::extra(from, extra.len()), &extra[from..]);
                }
            }
            column += 1;
            at = end + 1;
            if ends_row {
                return Scanned::Row { end: at.min(text.len()), lines };
            }
        }
    }

    /// Finds the closing quote: bytes before it, and line breaks among them. What has doubled
    /// quotes is appended to `extra`; the rest is left where it is.
    fn unquote(self, text: &[u8], extra: &mut Vec<u8>) -> Option<(usize, u64)> {
        let from = extra.len();
        let mut kept = 0;
        let mut at = 0;
        loop {
            let Some(n) = memchr(b'"', &text[at..]) else {
                extra.truncate(from);
                return None;
            };
            let quote = at + n;
            if text.get(quote + 1) != Some(&b'"') {
                if kept > 0 {
                    extra.extend_from_slice(&text[kept..quote]);
                }
                return Some((quote, memchr_iter(b'\n', &text[..quote]).count() as u64));
            }
            extra.extend_from_slice(&text[kept..=quote]);
            at = quote + 2;
            kept = at;
        }
    }

    /// Takes the rows of `text`, whose first line is number `line`. Returns where it stopped, and
    /// the number of the next line: at the end, before a row that is not whole, or behind one that
    /// ends everything.
    pub(super) fn parse(
        self,
        text: &[u8],
        last: bool,
        mut line: u64,
        columns: &[To],
        sink: &mut Sink<'_>,
    ) -> (usize, u64) {
        let mut at = 0;
        while at < text.len() {
            // An empty line has neither a UUID nor a time, and many files end with one.
            if text[at] == b'\n' || text[at..].starts_with(b"\r\n") {
                at += if text[at] == b'\n' { 1 } else { 2 };
                line += 1;
                continue;
            }
            sink.begin();
            let mut extra = std::mem::take(&mut sink.batch.extra);
            let before = extra.len();
            let mut is_over = false;
            let scanned = self.scan(text, at, last, &mut extra, |column, cell, bytes| {
                let to = columns.get(column).copied().unwrap_or(To::Nowhere);
                let place = || format!("column {}", column + 1);
                if self.quotes {
                    return sink.set(to, cell, bytes, place);
                }
                // To the C library's tool a row ends at its first NUL byte.
                if is_over {
                    return;
                }
                let len = memchr(0, bytes).unwrap_or(bytes.len());
                is_over = len < bytes.len();
                sink.set(to, cell.first(len), &bytes[..len], place);
            });
            if scanned == Scanned::More {
                extra.truncate(before);
            }
            sink.batch.extra = extra;
            match scanned {
                Scanned::Row { end, lines } => {
                    let go_on = sink.end(line);
                    (at, line) = (end, line + lines);
                    if !go_on {
                        return (at, line);
                    }
                }
                Scanned::More => return (at, line),
                Scanned::Open { column } => {
                    let go_on = sink.reject(line, Problem::open_quote(column));
                    // Passed over is the line, not all that follows.
                    at = memchr(b'\n', &text[at..]).map_or(text.len(), |n| at + n + 1);
                    line += 1;
                    if !go_on {
                        return (at, line);
                    }
                }
            }
        }
        (at, line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(csv: Csv, text: &str) -> Vec<Vec<String>> {
        let (mut rows, mut at) = (Vec::new(), 0);
        while at < text.len() {
            let (mut row, mut extra) = (Vec::new(), Vec::new());
            let scanned = csv.scan(text.as_bytes(), at, true, &mut extra, |column, cell, bytes| {
                assert_eq!(column, row.len());
                row.push((cell, String::from_utf8(bytes.to_vec()).unwrap()));
            });
            for (cell, value) in &row {
                assert_eq!(cell.of(text.as_bytes(), &extra), value.as_bytes(), "{text:?}");
            }
            let Scanned::Row { end, .. } = scanned else { return Vec::new() };
            rows.push(row.into_iter().map(|(_, value)| value).collect());
            at = end;
        }
        rows
    }

    #[test]
    fn rows_split_into_values() {
        let cases: [(&str, &[&[&str]]); 16] = [
            ("a,b", &[&["a", "b"]]),
            ("a,b\n", &[&["a", "b"]]),
            ("a,b\r\nc\r\n", &[&["a", "b"], &["c"]]),
            (",", &[&["", ""]]),
            (",\n,", &[&["", ""], &["", ""]]),
            (r#""a,b",c"#, &[&["a,b", "c"]]),
            (r#""say ""hi""",c"#, &[&["say \"hi\"", "c"]]),
            (r#""""""#, &[&["\""]]),
            (r#""",""#, &[]),
            (r#"in"side,c"#, &[&["in\"side", "c"]]),
            ("\"two\nlines\"\nx", &[&["two\nlines"], &["x"]]),
            ("\"a\"\r\nb", &[&["a"], &["b"]]),
            (r#""a"b,c"#, &[&["ab", "c"]]),
            (r#""a""b"c,d"#, &[&["a\"bc", "d"]]),
            (r#""open,c"#, &[]),
            ("\"\",\"\"", &[&["", ""]]),
        ];
        for (text, expected) in cases {
            assert_eq!(rows(Csv { delimiter: b',', quotes: true }, text), expected, "{text:?}");
        }
    }

    #[test]
    fn without_quotes_they_are_characters() {
        let csv = Csv { delimiter: b' ', quotes: false };
        assert_eq!(rows(csv, "\"a b\"\r\n"), [["\"a", "b\"\r"]]);
    }

    /// Wherever the text is cut, the row is the same or not yet whole.
    #[test]
    fn a_row_that_is_not_whole_waits() {
        let csv = Csv { delimiter: b',', quotes: true };
        let text = "a,\"b\"\"\nc\",d\r\n";
        for cut in 0..text.len() {
            let mut extra = Vec::new();
            let scanned = csv.scan(&text.as_bytes()[..cut], 0, false, &mut extra, |_, _, _| {});
            assert_eq!(scanned, Scanned::More, "{cut}");
        }
        let mut extra = Vec::new();
        let scanned = csv.scan(text.as_bytes(), 0, false, &mut extra, |_, _, _| {});
        assert_eq!(scanned, Scanned::Row { end: text.len(), lines: 2 });
    }
}
