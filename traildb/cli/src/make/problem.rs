//! What is wrong with a row, and how often.

use std::fmt::Write as _;

/// Reasons that are told apart; further ones are counted together.
const REASONS_MAX: usize = 32;
/// Characters of the input that a message shows.
const SHOWN: usize = 60;

/// Why a row is no event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    /// What rows with the same trouble have in common.
    reason: String,
    /// Where in the row and what was there, if that says more.
    place: String,
    detail: String,
}

impl Problem {
    fn new(reason: &str, place: String, detail: String) -> Problem {
        Problem { reason: reason.to_owned(), place, detail }
    }

    pub(super) fn no_uuid() -> Problem {
        Problem::new("the uuid is missing", String::new(), String::new())
    }

    pub(super) fn no_time() -> Problem {
        Problem::new("the time is missing", String::new(), String::new())
    }

    pub(super) fn bad_uuid(place: String, bytes: &[u8]) -> Problem {
        Problem::new("no UUID: up to 32 hexadecimal digits are", place, shown(bytes))
    }

    pub(super) fn bad_time(place: String, bytes: &[u8]) -> Problem {
        Problem::new("no time: a whole number from 0 to 2^64 - 1 is", place, shown(bytes))
    }

    pub(super) fn open_quote(column: usize) -> Problem {
        Problem::new("a quoted value has no end", format!("column {column}"), String::new())
    }

    pub(super) fn too_long(max: usize) -> Problem {
        Problem::new(&format!("longer than {max} bytes"), String::new(), String::new())
    }

    pub(super) fn not_json(column: usize, what: &str) -> Problem {
        Problem::new("ill-formed JSON", format!("column {column}"), what.to_owned())
    }

    pub(super) fn not_an_object() -> Problem {
        Problem::new("not a JSON object", String::new(), String::new())
    }

    pub(super) fn bad_value(key: &str) -> Problem {
        let reason = "no text, number, true, false or null, nor {\"hex\":\"...\"}";
        Problem::new(reason, format!("{key:?}"), String::new())
    }

    /// What the builder refused.
    pub(super) fn refused(error: &traildb::InputError) -> Problem {
        Problem::new(&error.to_string(), String::new(), String::new())
    }

    /// For people, without the line.
    pub(super) fn text(&self) -> String {
        let Problem { reason, place, detail } = self;
        let mut text = String::new();
        if !place.is_empty() {
            let _ = write!(text, "{place}: ");
        }
        match detail.is_empty() {
            true => text.push_str(reason),
            false if detail.starts_with('"') => {
                let _ = write!(text, "{detail} is {reason}");
            }
            false => {
                let _ = write!(text, "{reason}: {detail}");
            }
        }
        text
    }
}

/// Input for a message: in quotes, escaped, cut.
fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    match text.char_indices().nth(SHOWN) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}...", &text[..end]),
    }
}

/// Rows that were passed over, by reason.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Whether bad rows are passed over at all.
    pub(super) skip: bool,
    reasons: Vec<Tallied>,
    others: u64,
}

#[derive(Debug)]
struct Tallied {
    count: u64,
    line: u64,
    first: Problem,
}

impl Tally {
    pub(super) fn new(skip: bool) -> Tally {
        Tally { skip, ..Tally::default() }
    }

    /// Counts a row of `line`.
    pub(super) fn add(&mut self, line: u64, problem: Problem) {
        self.add_many(Tallied { count: 1, line, first: problem });
    }

    fn add_many(&mut self, more: Tallied) {
        let room = self.reasons.len() < REASONS_MAX;
        match self.reasons.iter_mut().find(|known| known.first.reason == more.first.reason) {
            Some(known) => {
                known.count += more.count;
                if more.line < known.line {
                    (known.line, known.first) = (more.line, more.first);
                }
            }
            None if room => self.reasons.push(more),
            None => self.others += more.count,
        }
    }

    /// Adds what `other` has counted.
    pub(super) fn merge(&mut self, other: Tally) {
        other.reasons.into_iter().for_each(|more| self.add_many(more));
        self.others += other.others;
    }

    /// Rows passed over.
    pub(super) fn total(&self) -> u64 {
        self.others + self.reasons.iter().map(|known| known.count).sum::<u64>()
    }

    /// A line for each reason, the most frequent first.
    pub(super) fn table(&self) -> String {
        let mut reasons: Vec<&Tallied> = self.reasons.iter().collect();
        reasons.sort_by_key(|known| (std::cmp::Reverse(known.count), known.line));
        let mut text = format!("{:>12}  {:>12}  {}\n", "rows", "first line", "reason, at first");
        for Tallied { count, line, first } in reasons {
            let _ = writeln!(text, "{count:>12}  {line:>12}  {}", first.text());
        }
        if self.others > 0 {
            let _ = writeln!(text, "{:>12}  {:>12}  others", self.others, "");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_counted_and_kept_with_their_first_line() {
        let mut tally = Tally::new(true);
        tally.add(7, Problem::no_uuid());
        tally.add(9, Problem::bad_time("column 2".into(), b"x"));
        tally.add(11, Problem::bad_time("column 2".into(), b"y"));
        let mut other = Tally::new(true);
        other.add(3, Problem::no_uuid());
        for k in 0..40 {
            other.add(100 + k, Problem::too_long(k as usize));
        }
        tally.merge(other);
        assert_eq!(tally.total(), 44);
        let table = tally.table();
        let rows: Vec<Vec<&str>> = table
            .lines()
            .map(|line| line.splitn(12, ' ').filter(|s| !s.is_empty()).collect())
            .collect();
        assert_eq!(rows.len(), 1 + REASONS_MAX + 1);
        assert!(table.contains("           2             3  the uuid is missing\n"), "{table}");
        let time = "           2             9  column 2: \"x\" is no time";
        assert!(table.contains(time), "{table}");
        assert!(table.ends_with("others\n"), "{table}");
    }
}
