//! Names with parts left open.
//!
//! ```text
//!   2016-*/**/x[1-3].tdb  -->  "2016-*"   **   "x[1-3].tdb"
//!                                |         |        |
//!   2016-01/a/b/x2.tdb  -->   2016-01    a, b    x2.tdb
//! ```
//!
//! | mark | means |
//! | --- | --- |
//! | `*` | any characters but `/`, or none |
//! | `**` | as a whole part between slashes: any number of parts, or none; at the end at least one |
//! | `?` | one character but `/` |
//! | `[a-z0]`, `[!a-z0]` | one of these, or none of these; a `]` stands first |
//!
//! A mark in brackets is itself: `[*]`, `[?]`, `[[]`. A backslash means nothing.
//!
//! Parts are matched one by one, and it is kept which parts of the pattern may come next: at most
//! the length of the pattern times that of the name, whatever either of them is.

/// The longest pattern, in characters: as long as a path may be.
pub(super) const PATTERN_CHARS_MAX: usize = 4096;

/// A pattern, taken apart.
#[derive(Debug)]
pub(super) struct Pattern {
    parts: Vec<Part>,
}

#[derive(Debug, PartialEq, Eq)]
enum Part {
    /// `**`.
    AnyParts,
    Name(Vec<Token>),
}

#[derive(Debug, PartialEq, Eq)]
enum Token {
    One(char),
    AnyOne,
    Any,
    /// Ranges with both ends, and whether one of them is to hold the character.
    Range(Vec<(char, char)>, bool),
}

/// Why a text is no pattern: the place, in characters from 0, and what is wrong.
pub(super) type Wrong = (usize, &'static str);

/// A character, and whether it means itself even if it is a mark.
pub(super) type Letter = (char, bool);

/// Whether a character may leave something open.
fn is_mark(letter: &Letter) -> bool {
    matches!(letter, ('*' | '?' | '[', false))
}

/// What comes before the first mark.
pub(super) fn before_marks(letters: &[Letter]) -> String {
    letters.iter().take_while(|letter| !is_mark(letter)).map(|&(char, _)| char).collect()
}

/// Which parts of a pattern may be the next: one place for each, and one for its end.
#[derive(Clone, Debug)]
pub(super) struct Places(Vec<bool>);

impl Places {
    /// Whether nothing that starts like this can match.
    pub(super) fn is_empty(&self) -> bool {
        !self.0.contains(&true)
    }

    /// Whether all parts have been found.
    pub(super) fn is_end(&self) -> bool {
        self.0.last() == Some(&true)
    }
}

impl Pattern {
    pub(super) fn parse(letters: &[Letter]) -> Result<Pattern, Wrong> {
        if letters.len() > PATTERN_CHARS_MAX {
            return Err((PATTERN_CHARS_MAX, "a pattern has at most 4096 characters"));
        }
        let mut parts: Vec<Part> = Vec::new();
        let mut at = 0;
        for text in letters.split(|&(char, _)| char == '/') {
            let part = part(text).map_err(|(within, why)| (at + within, why))?;
            // Twice any number is any number.
            if part != Part::AnyParts || parts.last() != Some(&Part::AnyParts) {
                parts.push(part);
            }
            at += text.len() + 1;
        }
        if parts.last() == Some(&Part::AnyParts) {
            parts.push(Part::Name(vec![Token::Any]));
        }
        Ok(Pattern { parts })
    }

    /// Number of its parts.
    pub(super) fn len(&self) -> usize {
        self.parts.len()
    }

    /// Before the first part.
    pub(super) fn start(&self) -> Places {
        let mut places = vec![false; self.parts.len() + 1];
        self.enter(&mut places, 0);
        Places(places)
    }

    /// After one part more, `name`. With `named`, `**` does not take it.
    pub(super) fn step(&self, places: &Places, name: &str, named: bool) -> Places {
        let mut next = vec![false; self.parts.len() + 1];
        let open = self.parts.iter().enumerate().filter(|&(at, _)| places.0[at]);
        for (at, part) in open {
            match part {
                Part::AnyParts if !named => self.enter(&mut next, at),
                Part::AnyParts => {}
                Part::Name(tokens) if matches(tokens, name) => self.enter(&mut next, at + 1),
                Part::Name(_) => {}
            }
        }
        Places(next)
    }

    /// The only name that can come next, if there is but one.
    pub(super) fn only(&self, places: &Places) -> Option<String> {
        let mut open = (0..self.parts.len()).filter(|&at| places.0[at]);
        let (Some(at), None) = (open.next(), open.next()) else { return None };
        let Part::Name(tokens) = &self.parts[at] else { return None };
        tokens.iter().map(|token| if let Token::One(c) = token { Some(*c) } else { None }).collect()
    }

    /// Whether a whole name, with its slashes, matches.
    pub(super) fn matches(&self, name: &str) -> bool {
        let mut places = self.start();
        for part in name.split('/') {
            places = self.step(&places, part, false);
            if places.is_empty() {
                return false;
            }
        }
        places.is_end()
    }

    /// Notes that the part at `at` may come next, and what may come instead of no parts.
    fn enter(&self, places: &mut [bool], at: usize) {
        places[at] = true;
        if self.parts.get(at) == Some(&Part::AnyParts) {
            places[at + 1] = true;
        }
    }
}

fn part(text: &[Letter]) -> Result<Part, Wrong> {
    let mut tokens = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(&letter) = text.get(at) {
        let (char, is_mark) = (letter.0, is_mark(&letter));
        let mut len = 1;
        tokens.push(match char {
            '*' if is_mark => {
                len = text[at..].iter().take_while(|&&letter| letter == ('*', false)).count();
                match len {
                    1 => Token::Any,
                    2 if len == text.len() => return Ok(Part::AnyParts),
                    2 => return Err((at, "`**` stands alone between two slashes")),
                    _ => return Err((at, "there are `*` and `**`, and no more of them")),
                }
            }
            '?' if is_mark => Token::AnyOne,
            '[' if is_mark => {
                let (token, taken) = range(&text[at..]).map_err(|why| (at, why))?;
                len = taken;
                token
            }
            _ => Token::One(char),
        });
        at += len;
    }
    Ok(Part::Name(tokens))
}

/// The token of what starts with a bracket, and its length.
fn range(text: &[Letter]) -> Result<(Token, usize), &'static str> {
    let is_not = text.get(1) == Some(&('!', false));
    let first = 1 + usize::from(is_not);
    // The first character may be a `]`.
    let end = text.iter().skip(first + 1).position(|&letter| letter == (']', false));
    let end = first + 1 + end.ok_or("a `[` without its `]`; write `[[]` for the character")?;
    let (mut ranges, mut at) = (Vec::new(), first);
    while at < end {
        let from = text[at].0;
        let (to, len) = match text[at + 1..end] {
            [('-', false), (to, _), ..] => (to, 3),
            _ => (from, 1),
        };
        if from > to {
            return Err("a range whose end comes before its start");
        }
        ranges.push((from, to));
        at += len;
    }
    Ok((Token::Range(ranges, !is_not), end + 1))
}

impl Token {
    fn takes(&self, char: char) -> bool {
        match self {
            Token::One(one) => *one == char,
            Token::AnyOne | Token::Any => true,
            Token::Range(ranges, is_in) => {
                ranges.iter().any(|&(from, to)| (from..=to).contains(&char)) == *is_in
            }
        }
    }
}

/// Whether one part matches. Where it does not go on, only the last `*` before it has to take more:
/// what is before that one was found at the earliest place that there is.
fn matches(tokens: &[Token], name: &str) -> bool {
    let (mut at, mut rest) = (0, name);
    let mut last: Option<(usize, &str)> = None;
    loop {
        let mut letters = rest.chars();
        match (tokens.get(at), letters.next()) {
            (Some(Token::Any), _) => {
                at += 1;
                last = Some((at, rest));
                continue;
            }
            (Some(token), Some(char)) if token.takes(char) => {
                (at, rest) = (at + 1, letters.as_str());
                continue;
            }
            (None, None) => return true,
            _ => {}
        }
        let Some((after, from)) = last else { return false };
        let mut letters = from.chars();
        if letters.next().is_none() {
            return false;
        }
        (at, rest) = (after, letters.as_str());
        last = Some((after, rest));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn letters(text: &str) -> Vec<Letter> {
        text.chars().map(|char| (char, false)).collect()
    }

    fn parsed(text: &str) -> Result<Pattern, Wrong> {
        Pattern::parse(&letters(text))
    }

    #[test]
    fn patterns_and_names() {
        let cases = [
            ("a.tdb", "a.tdb", true),
            ("a.tdb", "a.tdbx", false),
            ("*.tdb", ".tdb", true),
            ("*.tdb", "a/b.tdb", false),
            ("*", "", true),
            ("a*c*e", "abcde", true),
            ("a*c*e", "abcded", false),
            ("*ab", "aab", true),
            ("?", "\u{e4}", true),
            ("?", "", false),
            ("?", "/", false),
            ("[a-c]", "b", true),
            ("[!a-c]", "b", false),
            ("[!a-c]", "/", false),
            ("[]]", "]", true),
            ("[!]]", "]", false),
            ("[a-]", "-", true),
            ("[*][?][[]", "*?[", true),
            ("[*]", "x", false),
            ("\\*", "\\x", true),
            ("2016-*/*.tdb", "2016-01/a.tdb", true),
            ("2016-*/*.tdb", "2016-01/a/b.tdb", false),
            ("**/b.tdb", "b.tdb", true),
            ("**/b.tdb", "x/y/b.tdb", true),
            ("a/**/b", "a/b", true),
            ("a/**/**/b", "a/x/b", true),
            ("a/**", "a/x/y", true),
            ("a/**", "a", false),
            ("**", "x", true),
            ("a//b", "a//b", true),
            ("a/*/b", "a//b", true),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(parsed(pattern).expect(pattern).matches(name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn what_is_no_pattern_says_where() {
        for (pattern, at) in [("a/x[b", 3), ("a**", 1), ("**b", 0), ("a/***", 2), ("[z-a]", 0)] {
            assert_eq!(parsed(pattern).expect_err(pattern).0, at, "{pattern}");
        }
        assert!(parsed(&"*a".repeat(PATTERN_CHARS_MAX / 2)).is_ok());
        assert!(parsed(&"*a".repeat(PATTERN_CHARS_MAX)).is_err());
    }

    /// Trying every way to share a name among stars takes longer than there is time: with these, there
    /// are more than 10^100 ways.
    #[test]
    fn patterns_that_ask_for_every_way_to_share_a_name() {
        let stars = format!("{}b/x", "*a".repeat(200));
        let parts = format!("{}b", "**/a*/".repeat(150));
        let name = format!("{}/y", "a".repeat(1000));
        assert!(!parsed(&stars).unwrap().matches(&name));
        assert!(parsed(&stars).unwrap().matches(&format!("{}b/x", "a".repeat(1000))));
        assert!(!parsed(&parts).unwrap().matches(&"a/".repeat(512)));
        assert!(parsed(&parts).unwrap().matches(&format!("{}b", "a/".repeat(511))));
    }

    /// Every way, one after the other.
    fn naively(pattern: &[char], name: &[char]) -> bool {
        match (pattern, name) {
            (['*', '*', '/', rest @ ..], _) => {
                let mut starts = (0..name.len()).filter(|&at| name[at] == '/').map(|at| at + 1);
                naively(rest, name) || starts.any(|at| naively(rest, &name[at..]))
            }
            (['*', rest @ ..], _) => {
                let end = name.iter().position(|&c| c == '/').unwrap_or(name.len());
                (0..=end).any(|at| naively(rest, &name[at..]))
            }
            (['?', rest @ ..], [c, name @ ..]) => *c != '/' && naively(rest, name),
            ([p, rest @ ..], [c, name @ ..]) => p == c && naively(rest, name),
            ([], []) => true,
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn patterns_match_as_trying_every_way_does(
            parts in prop::collection::vec("([ab?]|[*]a|[*]b){0,4}[*]?|[*]{2}", 1..4),
            last in "[ab?]{0,2}[*]?[ab]",
            name in prop::collection::vec("[ab]{0,4}", 1..5),
        ) {
            let pattern = format!("{}/{last}", parts.join("/"));
            let name = name.join("/");
            let of = |text: &str| text.chars().collect::<Vec<_>>();
            prop_assert_eq!(
                parsed(&pattern).unwrap().matches(&name), naively(&of(&pattern), &of(&name)),
                "{} {}", pattern, name
            );
        }
    }
}
