//! A place in the text of a filter, and what is wrong there.

use std::{fmt, sync::Arc};

/// Characters of the text that are shown around an error.
const SHOWN: usize = 60;

/// A place in the text of a filter, for errors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// As it was given: it need not be UTF-8.
    pub(super) text: Arc<[u8]>,
    /// In bytes.
    pub(super) at: usize,
}

/// What is wrong with the text of a filter, and where.
///
/// Displayed with a second and third line that show the place:
///
/// ```text
/// filter, character 14: a term is expected, such as field=value
///   user=alice &
///               ^
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ParseError {
    place: Place,
    reason: String,
}

impl ParseError {
    pub(super) fn new(place: Place, reason: impl Into<String>) -> ParseError {
        ParseError { place, reason: reason.into() }
    }

    /// Where the error is: a byte offset into the text, at most its length.
    pub fn at(&self) -> usize {
        self.place.at
    }

    /// What is wrong, without the place.
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { text, at } = &self.place;
        let before = String::from_utf8_lossy(&text[..*at]).chars().count();
        let text = String::from_utf8_lossy(text);
        writeln!(f, "filter, character {}: {}", before + 1, self.reason)?;
        // A window of the text with the place in it; whatever has no width of one is replaced.
        let start = before.saturating_sub(SHOWN / 2);
        let dots = if start > 0 { "..." } else { "" };
        let plain = |c: char| if c.is_control() { ' ' } else { c };
        let shown: String = text.chars().skip(start).take(SHOWN).map(plain).collect();
        let more = if text.chars().nth(start + SHOWN).is_some() { "..." } else { "" };
        writeln!(f, "  {dots}{shown}{more}")?;
        write!(f, "  {:1$}^", "", dots.len() + before - start)
    }
}
