//! The text of filters.
//!
//! ```text
//!   filter  := clause { "&" clause }                 all clauses hold
//!   clause  := factor { factor }                     one of the factors does: blanks mean "or"
//!   factor  := "!" factor | "(" filter ")" | term
//!   term    := field ( "=" | "!=" ) value
//!            | "time" ( "=" | "!=" | "<" | "<=" | ">" | ">=" ) time
//!   value   := bare | "quoted" | @file               `field=` asks for the empty value
//! ```
//!
//! A text that the C library's command understands has the same meaning here, but for these, which
//! [`parse_compat`](super::parse_compat()) takes as it does: a value that starts with a quote, a word that
//! starts with `(` or `!`, an `&` with more behind it than blanks, and a `)` in a bare value that closes
//! nothing, which is an error. A bare value goes up to the next blank: `title=AT&T` asks for `AT&T`, so an
//! `&` between clauses has blanks around it. Inside parentheses, a `)` that closes none of the value's own
//! ends it too. The text need not be UTF-8: values are bytes.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, sync::Arc};

use super::{
    date,
    expr::{Expr, Leaf, Node, Values},
    place::{ParseError, Place},
};

/// Parentheses and negations may be nested so deep: reading them is recursive.
const DEPTH_MAX: usize = 100;

/// Reads the text of a filter.
///
/// ```
/// # fn main() -> Result<(), traildb::filter::ParseError> {
/// use traildb::filter::parse;
///
/// parse("user=alice user=bob & action!=login")?;      // (alice or bob) and not a login
/// parse(r#"(page="Main Page" & !(minor=1)) bot="#)?;  // quotes, parentheses, the empty value
/// parse("time>=2016-01-01 & time<2016-02")?;          // a month; numbers are seconds since 1970
/// let error = parse("user=alice & action").unwrap_err();
/// assert_eq!(error.at(), 19);
/// # Ok(())
/// # }
/// ```
///
/// A file (`user=@names`) is not opened here: see [`Expr::load_files`]. The text need not be UTF-8.
///
/// # Errors
/// [`ParseError`] names the byte at which the text stops making sense.
pub fn parse(text: impl AsRef<[u8]>) -> Result<Expr, ParseError> {
    let text = text.as_ref();
    let source: Arc<[u8]> = text.into();
    let mut parser = Parser { text, source, at: 0, depth: 0, groups: 0 };
    let node = parser.filter()?;
    match parser.peek() {
        None => Ok(Expr(node)),
        Some(_) => Err(parser.error("no parenthesis is open here")),
    }
}

struct Parser<'t> {
    text: &'t [u8],
    source: Arc<[u8]>,
    at: usize,
    /// Parentheses and negations that are open.
    depth: usize,
    /// Parentheses that are open.
    groups: usize,
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

impl Parser<'_> {
    fn error_at(&self, at: usize, reason: impl Into<String>) -> ParseError {
        // An offset inside a character is moved to its start.
        let is_inside = |&at: &usize| self.text.get(at).is_some_and(|byte| byte & 0xc0 == 0x80);
        let at = at.min(self.text.len());
        let at = (0..=at).rev().find(|at| !is_inside(at)).unwrap_or(at);
        ParseError::new(Place { text: self.source.clone(), at }, reason)
    }

    fn error(&self, reason: impl Into<String>) -> ParseError {
        self.error_at(self.at, reason)
    }

    fn rest(&self) -> &[u8] {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<u8> {
        self.rest().first().copied()
    }

    fn skip_blanks(&mut self) {
        self.at += self.rest().iter().take_while(|b| is_blank(**b)).count();
    }

    fn filter(&mut self) -> Result<Node, ParseError> {
        let mut clauses = vec![self.clause()?];
        while self.peek() == Some(b'&') {
            self.at += 1;
            clauses.push(self.clause()?);
        }
        Ok(Node::all(clauses))
    }

    /// Factors up to an `&`, a `)` or the end; blanks before and after them are taken.
    fn clause(&mut self) -> Result<Node, ParseError> {
        let mut factors = Vec::new();
        loop {
            self.skip_blanks();
            match self.peek() {
                None | Some(b'&' | b')') => break,
                Some(_) => factors.push(self.factor()?),
            }
        }
        if factors.is_empty() {
            return Err(self.error("a term is expected, such as field=value"));
        }
        Ok(Node::any(factors))
    }

    fn factor(&mut self) -> Result<Node, ParseError> {
        match self.peek() {
            Some(b'!') => {
                self.deeper()?;
                self.at += 1;
                self.skip_blanks();
                let inner = self.factor()?;
                self.depth -= 1;
                Ok(Node::not(inner))
            }
            Some(b'(') => {
                let open = self.at;
                self.deeper()?;
                self.groups += 1;
                self.at += 1;
                let inner = self.filter()?;
                if self.peek() != Some(b')') {
                    return Err(self.error_at(open, "this parenthesis is not closed"));
                }
                self.at += 1;
                self.groups -= 1;
                self.depth -= 1;
                self.end_of_factor()?;
                Ok(inner)
            }
            _ => self.term(),
        }
    }

    fn deeper(&mut self) -> Result<(), ParseError> {
        self.depth += 1;
        match self.depth <= DEPTH_MAX {
            true => Ok(()),
            false => Err(self.error(format!("nested deeper than {DEPTH_MAX}"))),
        }
    }

    /// After a quote or a parenthesis something has to separate what follows.
    fn end_of_factor(&self) -> Result<(), ParseError> {
        match self.peek() {
            None | Some(b'&' | b')') => Ok(()),
            Some(byte) if is_blank(byte) => Ok(()),
            Some(_) => Err(self.error("a blank, & or ) is expected here")),
        }
    }

    fn term(&mut self) -> Result<Node, ParseError> {
        let start = self.at;
        let in_name = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'%');
        let name_len = self.rest().iter().take_while(|b| in_name(b)).count();
        self.at += name_len;
        if name_len == 0 {
            return Err(self.error("a field's name is expected: A-Z a-z 0-9 _ - %"));
        }
        // All of these are ASCII.
        let name = String::from_utf8_lossy(&self.text[start..self.at]).into_owned();
        let comparison = self.comparison()?;
        if name == "time" {
            let (first, last) = self.time()?;
            return Ok(comparison.with(first, last));
        }
        let negated = match comparison {
            Comparison::Equal => false,
            Comparison::Unequal => true,
            _ => {
                let at = start + name_len;
                return Err(self.error_at(at, "only the time can be compared; = and != are known"));
            }
        };
        let values = if self.peek() == Some(b'@') {
            self.at += 1;
            let path = self.value()?;
            if path.is_empty() {
                return Err(self.error("the name of a file is expected after @"));
            }
            Values::File(OsStr::from_bytes(&path).into())
        } else {
            Values::These(vec![self.value()?])
        };
        let place = Some(Place { text: self.source.clone(), at: start });
        let leaf = Node::Leaf(Leaf { field: name.into(), values, place });
        Ok(if negated { Node::not(leaf) } else { leaf })
    }

    fn comparison(&mut self) -> Result<Comparison, ParseError> {
        let (comparison, len) = match (self.rest().first(), self.rest().get(1)) {
            (Some(b'='), _) => (Comparison::Equal, 1),
            (Some(b'!'), Some(b'=')) => (Comparison::Unequal, 2),
            (Some(b'<'), Some(b'=')) => (Comparison::AtMost, 2),
            (Some(b'<'), _) => (Comparison::Less, 1),
            (Some(b'>'), Some(b'=')) => (Comparison::AtLeast, 2),
            (Some(b'>'), _) => (Comparison::More, 1),
            _ => return Err(self.error("= or != and a value are expected after a field's name")),
        };
        self.at += len;
        Ok(comparison)
    }

    fn time(&mut self) -> Result<(u64, u64), ParseError> {
        let start = self.at;
        let value = self.value()?;
        let quoted = self.text.get(start) == Some(&b'"');
        let text = std::str::from_utf8(&value).unwrap_or_default();
        date::parse(text)
            .map_err(|(at, reason)| self.error_at(start + usize::from(quoted) + at, reason))
    }

    fn value(&mut self) -> Result<Vec<u8>, ParseError> {
        if self.peek() == Some(b'"') {
            let value = self.quoted()?;
            self.end_of_factor()?;
            return Ok(value);
        }
        let mut open = 0usize;
        let mut len = 0;
        for &byte in self.rest() {
            match byte {
                _ if is_blank(byte) => break,
                b')' if self.groups > 0 && open == 0 => break,
                b')' if open == 0 => {
                    let reason = "no parenthesis is open here; quotes make it a part of the value";
                    return Err(self.error_at(self.at + len, reason));
                }
                b'(' => open += 1,
                b')' => open -= 1,
                _ => {}
            }
            len += 1;
        }
        let value = self.rest()[..len].to_vec();
        self.at += len;
        Ok(value)
    }

    /// A value in quotes: \" \\ \n \r \t \0 and \x with two hexadecimal digits.
    fn quoted(&mut self) -> Result<Vec<u8>, ParseError> {
        let open = self.at;
        self.at += 1;
        let mut value = Vec::new();
        loop {
            let Some(byte) = self.peek() else {
                return Err(self.error_at(open, "this quote is not closed"));
            };
            self.at += 1;
            match byte {
                b'"' => return Ok(value),
                b'\\' => value.push(self.escape()?),
                byte => value.push(byte),
            }
        }
    }

    fn escape(&mut self) -> Result<u8, ParseError> {
        let start = self.at - 1;
        let known = "\\\" \\\\ \\n \\r \\t \\0 and \\x with two hexadecimal digits are known";
        let byte = self.peek();
        self.at += usize::from(byte.is_some());
        match byte {
            Some(byte @ (b'"' | b'\\')) => Ok(byte),
            Some(b'n') => Ok(b'\n'),
            Some(b'r') => Ok(b'\r'),
            Some(b't') => Ok(b'\t'),
            Some(b'0') => Ok(0),
            Some(b'x') => {
                let digit = |k: usize| char::from(*self.rest().get(k)?).to_digit(16);
                let byte = digit(0).zip(digit(1)).map(|(high, low)| (high << 4 | low) as u8);
                self.at += if byte.is_some() { 2 } else { 0 };
                byte.ok_or_else(|| self.error_at(start, known))
            }
            _ => Err(self.error_at(start, known)),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Equal,
    Unequal,
    Less,
    AtMost,
    More,
    AtLeast,
}

impl Comparison {
    /// The times that compare like this with all of `first..=last`.
    fn with(self, first: u64, last: u64) -> Node {
        let from = |first: Option<u64>| match first {
            Some(first) => Node::Time { first, last: u64::MAX },
            None => Node::Time { first: 1, last: 0 },
        };
        let to = |last: Option<u64>| match last {
            Some(last) => Node::Time { first: 0, last },
            None => Node::Time { first: 1, last: 0 },
        };
        match self {
            Comparison::Equal => Node::Time { first, last },
            Comparison::Unequal => Node::not(Node::Time { first, last }),
            Comparison::Less => to(first.checked_sub(1)),
            Comparison::AtMost => to(Some(last)),
            Comparison::More => from(last.checked_add(1)),
            Comparison::AtLeast => from(Some(first)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tree that `text` means, written down: `[a | b]` is one of, `{a & b}` is all of.
    fn meaning(text: &str) -> String {
        fn show(node: &Node) -> String {
            let join =
                |nodes: &[Node], by: &str| nodes.iter().map(show).collect::<Vec<_>>().join(by);
            match node {
                Node::Any(nodes) => format!("[{}]", join(nodes, " | ")),
                Node::All(nodes) => format!("{{{}}}", join(nodes, " & ")),
                Node::Not(node) => format!("!{}", show(node)),
                Node::Time { first, last: u64::MAX } => format!("{first}.."),
                Node::Time { first, last } => format!("{first}..={last}"),
                Node::Leaf(Leaf { field, values: Values::These(values), .. }) => {
                    format!("{field}:{}", values[0].escape_ascii())
                }
                Node::Leaf(Leaf { field, values: Values::File(path), .. }) => {
                    format!("{field}@{}", path.display())
                }
            }
        }
        show(&parse(text).unwrap_or_else(|error| panic!("{text}: {error}")).0)
    }

    #[test]
    fn what_texts_mean() {
        let cases = [
            ("as in the C tool", "a=b c!=d & e=", "{[a:b | !c:d] & e:}"),
            ("blanks of every kind", " \t\na=b\r\n&\tc=d ", "{a:b & c:d}"),
            ("values go to a blank", "a=b&c=d", "a:b&c=d"),
            ("an & that touches what follows", "a=b &c=d", "{a:b & c:d}"),
            ("equal signs in values", "a==b c=!=", "[a:=b | c:!=]"),
            ("parentheses in values", "a=b(c) d=(e f=\")\"", "[a:b(c) | d:(e | f:)]"),
            ("a file", "a=@b c!=@\"d e\"", "[a@b | !c@d e]"),
            ("an address in a value", "a=b@c", "a:b@c"),
            (
                "quotes",
                r#"a="b c" d="@e" f="\"\\\n\x00\xFF""#,
                r#"[a:b c | d:@e | f:\"\\\n\x00\xff]"#,
            ),
            ("a quote inside", r#"a=b"c d=''"#, r#"[a:b\"c | d:\'\']"#),
            ("a quoted &", r#"a="b"&c="""#, "{a:b & c:}"),
            ("groups", "(a=b & c=d) e=f", "[{a:b & c:d} | e:f]"),
            ("groups of groups", "((a=b)(c=d) )", "[a:b | c:d]"),
            ("values in groups", "(a=f(x) b=(y)) & (c=)", "{[a:f(x) | b:(y)] & c:}"),
            ("negation", "!a=b !(c=d & e=f) ! !g=h", "[!a:b | !{c:d & e:f} | g:h]"),
            ("negation binds tightest", "!a=b c=d", "[!a:b | c:d]"),
            ("time", "time>=10 & time<20 & time!=15", "{10.. & 0..=19 & !15..=15}"),
            ("days", "time>1970-01-01 time<=1970-01-02", "[86400.. | 0..=172799]"),
            ("a quoted time", r#"time="1970-01-01 00:01""#, "60..=119"),
            ("times at the ends", "time<0 time>18446744073709551615", "[1..=0 | 1..=0]"),
            ("times in groups", "(time>=5)", "5.."),
            (
                "a time between two seconds",
                "time>=1970-01-01T00:00:04.5 & time<1970-01-01T00:00:06.5 & time!=1970-01-01T00:00:05.5",
                "{5.. & 0..=6 & !6..=5}",
            ),
            ("names", "A-Z_0%9=1 timer=2", "[A-Z_0%9:1 | timer:2]"),
        ];
        // Adjacent groups need a blank: this one is written with it.
        for (what, text, expected) in cases {
            let text = text.replace(")(", ") (");
            assert_eq!(meaning(&text), expected, "{what}");
        }
    }

    #[test]
    fn errors_point_at_the_character() {
        let deep = "(".repeat(101) + "a=b";
        let cases = [
            ("nothing", "", 0),
            ("blanks", "  ", 2),
            ("nothing after &", "a=b & ", 6),
            ("nothing before &", "& a=b", 0),
            ("two &", "a=b && c=d", 5),
            ("no comparison", "a=b c", 5),
            ("no name", "=b", 0),
            ("a name that cannot be", "a.b=c", 1),
            ("a name of other letters", "\u{fc}=c", 0),
            ("! without =", "a!b", 1),
            ("a comparison of values", "a=b c>=3", 5),
            ("an open parenthesis", "a=b & (c=d", 6),
            ("a closed one", "(a=b)) c=d", 5),
            ("an empty one", "a=b & ()", 7),
            ("one that closes nothing", "a=b) c=d", 3),
            ("and behind one that does", "a=(b)) c=d", 5),
            ("no blank between", "(a=b)(c=d)", 5),
            ("an open quote", "a=b c=\"d", 6),
            ("after a quote", "a=\"b\"c", 5),
            ("an escape", "a=\"b\\q\"", 4),
            ("an escape that is cut", "a=\"b\\x4", 4),
            ("no file", "a=@ b=c", 3),
            ("a time", "time>=2016-13-01", 11),
            ("a quoted time", "time=\"2016-01-32\"", 14),
            ("a time of other letters", "time=2016-01-\u{661}1", 13),
            ("no time", "time= & a=b", 5),
            ("deep", &deep, 100),
        ];
        for (what, text, at) in cases {
            let error = parse(text).err().unwrap_or_else(|| panic!("{what} is read"));
            assert_eq!(error.at(), at, "{what}: {error}");
        }
    }

    #[test]
    fn a_text_of_other_bytes_than_utf_8() {
        let expr = parse(b"a=\xe9 & b=@\xe9.txt c=\"\xff \"").unwrap();
        let mut leaves = Vec::new();
        expr.0.leaves(&mut leaves);
        let values: Vec<&[u8]> = leaves
            .iter()
            .map(|leaf| match &leaf.values {
                Values::These(values) => values[0].as_slice(),
                Values::File(path) => path.as_os_str().as_bytes(),
            })
            .collect();
        assert_eq!(values, [&b"\xe9"[..], b"\xe9.txt", b"\xff "]);
        let error = parse(b"a=\xe9\xe9 & b").unwrap_err();
        assert_eq!(error.at(), 8, "{error}");
        assert!(error.to_string().contains("character 9:"), "{error}");
        assert_eq!(parse(b"\xe9=b").unwrap_err().at(), 0);
        assert_eq!(parse(b"time=\xe9").unwrap_err().at(), 5);
    }

    #[test]
    fn an_error_shows_its_place() {
        let error = parse("user=alice &\n action").unwrap_err();
        let expected = "filter, character 21: = or != and a value are expected after a field's \
                        name\n  user=alice &  action\n                      ^";
        assert_eq!(error.to_string(), expected);
        let long = format!("a=\u{e9}{} & b", "x".repeat(200));
        let text = parse(long).unwrap_err().to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0].find("character 208"), Some(8), "{text}");
        assert!(lines[1].starts_with("  ...xxx") && lines[1].ends_with("x & b"), "{text}");
        assert_eq!(lines[2].len(), lines[1].len() + 1, "{text}");
    }
}
