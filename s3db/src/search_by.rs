//! Search keys: what a record is found by besides its key.

use std::{fmt, str::FromStr};

use crate::{
    error::StoreError,
    record::{KEY_BYTES_MAX, Key},
};

/// Bytes of the longest name of a JSON field.
const FIELD_BYTES_MAX: usize = 200;

/// Where an index finds the search key of a record, in its payload. All clients follow it.
///
/// Search keys are the first [`KEY_BYTES_MAX`] bytes of what is found. A record in which nothing is
/// found, or no byte, is not in the index.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SearchBy {
    /// The whole payload.
    Payload,
    /// One of the parts that a byte separates, counted from 0.
    Part {
        /// What stands between two parts.
        separator: u8,
        /// Which part.
        number: u16,
    },
    /// A field of a payload that is a JSON object: of a string what it says, of a number, `true`,
    /// `false` or `null` its text. So numbers are in the order of their text.
    Json(String),
}

impl SearchBy {
    /// The search key of a record with this payload.
    pub fn key(&self, payload: &[u8]) -> Option<Key> {
        let found = match self {
            SearchBy::Payload => payload.to_vec(),
            SearchBy::Part { separator, number } => {
                payload.split(|byte| byte == separator).nth(usize::from(*number))?.to_vec()
            }
            SearchBy::Json(field) => Json { bytes: payload, at: 0 }.field(field.as_bytes())?,
        };
        Key::new(&found[..found.len().min(KEY_BYTES_MAX)]).ok()
    }

    /// Refuses what the catalogue cannot hold: a field without a name, or with one that is too long.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        match self {
            SearchBy::Json(field) if !(1..=FIELD_BYTES_MAX).contains(&field.len()) => {
                let len = field.len();
                let what = format!("a field whose name has {len} bytes: 1 to {FIELD_BYTES_MAX}");
                Err(StoreError::Invalid(what))
            }
            _ => Ok(()),
        }
    }

    /// Its kind and what it needs, as the catalogue has them.
    pub(crate) fn to_parts(&self) -> (u8, Vec<u8>) {
        match self {
            SearchBy::Payload => (1, Vec::new()),
            SearchBy::Part { separator, number } => {
                let [low, high] = number.to_le_bytes();
                (2, vec![*separator, low, high])
            }
            SearchBy::Json(field) => (3, field.as_bytes().to_vec()),
        }
    }

    pub(crate) fn from_parts(kind: u8, of: &[u8]) -> Option<SearchBy> {
        Some(match (kind, of) {
            (1, []) => SearchBy::Payload,
            (2, [separator, low, high]) => {
                SearchBy::Part { separator: *separator, number: u16::from_le_bytes([*low, *high]) }
            }
            (3, field) if (1..=FIELD_BYTES_MAX).contains(&field.len()) => {
                SearchBy::Json(std::str::from_utf8(field).ok()?.to_owned())
            }
            _ => return None,
        })
    }
}

impl fmt::Display for SearchBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SearchBy::Payload => f.write_str("payload"),
            SearchBy::Part { separator: b'\t', number } => write!(f, "part:tab:{number}"),
            SearchBy::Part { separator: byte @ b' '..=b'~', number } => {
                write!(f, "part:{}:{number}", char::from(*byte))
            }
            SearchBy::Part { separator, number } => write!(f, "part:0x{separator:02x}:{number}"),
            SearchBy::Json(field) => write!(f, "json:{field}"),
        }
    }
}

impl FromStr for SearchBy {
    type Err = StoreError;

    /// `payload`, `part:SEPARATOR:NUMBER` with a separator of one ASCII character, `tab`, or a byte in
    /// hexadecimal like `0x1f`, or `json:FIELD`.
    fn from_str(text: &str) -> Result<SearchBy, StoreError> {
        let forms = "payload, part:SEPARATOR:NUMBER (as in part:,:0, part:tab:2 or part:0x1f:1) or \
                     json:FIELD";
        let invalid = || {
            let shown = text.escape_default();
            StoreError::Invalid(format!("\"{shown}\" is no rule for search keys: use {forms}"))
        };
        if text == "payload" {
            return Ok(SearchBy::Payload);
        }
        if let Some(field) = text.strip_prefix("json:") {
            return SearchBy::from_parts(3, field.as_bytes()).ok_or_else(invalid);
        }
        let part = text.strip_prefix("part:").and_then(|part| part.rsplit_once(':'));
        let (separator, number) = part.ok_or_else(invalid)?;
        let separator = match separator.as_bytes() {
            b"tab" => b'\t',
            [byte] if byte.is_ascii() => *byte,
            // Digits alone: a sign is none.
            [b'0', b'x', digits @ ..] if digits.len() == 2 && digits[0] != b'+' => {
                let digits = std::str::from_utf8(digits).map_err(|_| invalid())?;
                u8::from_str_radix(digits, 16).map_err(|_| invalid())?
            }
            _ => return Err(invalid()),
        };
        Ok(SearchBy::Part { separator, number: number.parse().map_err(|_| invalid())? })
    }
}

/// A walk over JSON text. It finds fields of an object; it is no judge of what is JSON.
struct Json<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Json<'_> {
    fn field(mut self, name: &[u8]) -> Option<Vec<u8>> {
        self.expect(b'{')?;
        if self.peek()? == b'}' {
            return None;
        }
        loop {
            let field = self.string()?;
            self.expect(b':')?;
            let is_it = field == name;
            match self.peek()? {
                b'"' => {
                    let value = self.string()?;
                    if is_it {
                        return Some(value);
                    }
                }
                b'{' | b'[' => {
                    self.nested()?;
                    if is_it {
                        return None;
                    }
                }
                _ => {
                    let begin = self.at;
                    let is_end = |byte: &u8| b",}] \t\r\n".contains(byte);
                    let len = self.bytes[begin..].iter().position(is_end)?;
                    self.at += len;
                    if is_it {
                        return Some(self.bytes[begin..begin + len].to_vec());
                    }
                }
            }
            match self.peek()? {
                b',' => self.at += 1,
                _ => return None,
            }
        }
    }

    /// The next byte that is no blank.
    fn peek(&mut self) -> Option<u8> {
        while self.bytes.get(self.at).is_some_and(|byte| b" \t\r\n".contains(byte)) {
            self.at += 1;
        }
        self.bytes.get(self.at).copied()
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    fn string(&mut self) -> Option<Vec<u8>> {
        self.expect(b'"')?;
        let mut said = Vec::new();
        loop {
            let byte = *self.bytes.get(self.at)?;
            self.at += 1;
            match byte {
                b'"' => return Some(said),
                b'\\' => {
                    let escaped = *self.bytes.get(self.at)?;
                    self.at += 1;
                    match escaped {
                        b'n' => said.push(b'\n'),
                        b't' => said.push(b'\t'),
                        b'r' => said.push(b'\r'),
                        b'b' => said.push(8),
                        b'f' => said.push(12),
                        b'u' => {
                            let char = self.unicode()?;
                            said.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
                        }
                        other => said.push(other),
                    }
                }
                other => said.push(other),
            }
        }
    }

    fn unit(&mut self) -> Option<u32> {
        let digits = self.bytes.get(self.at..self.at + 4)?;
        let unit = u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        self.at += 4;
        Some(unit)
    }

    /// One character, of one UTF-16 unit or two.
    fn unicode(&mut self) -> Option<char> {
        let first = self.unit()?;
        if !(0xd800..0xdc00).contains(&first) {
            return char::from_u32(first);
        }
        if self.bytes.get(self.at..self.at + 2)? != b"\\u" {
            return None;
        }
        self.at += 2;
        let second = self.unit()?.checked_sub(0xdc00).filter(|low| *low < 0x400)?;
        char::from_u32(0x1_0000 + ((first - 0xd800) << 10) + second)
    }

    /// Passes over an object or an array, however deep.
    fn nested(&mut self) -> Option<()> {
        let mut depth = 0u64;
        loop {
            match self.peek()? {
                b'"' => {
                    self.string()?;
                    continue;
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth = depth.checked_sub(1)?,
                _ => {}
            }
            self.at += 1;
            if depth == 0 {
                return Some(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn found(by: &str, payload: &str) -> Option<String> {
        let by: SearchBy = by.parse().unwrap();
        by.key(payload.as_bytes()).map(|key| String::from_utf8(key.as_bytes().to_vec()).unwrap())
    }

    #[test]
    fn search_keys_are_found() {
        let json = r#" { "a\n" : "x", "nested": {"born": [1, "}", {}]}, "born" :1815 ,"name":"A\u0064a \ud83d\ude00\"", "no":null, "last": true}"#;
        let cases = [
            ("payload", "whole", Some("whole")),
            ("payload", "", None),
            ("part:,:0", "a,b", Some("a")),
            ("part:,:1", "a,b", Some("b")),
            ("part:,:2", "a,b", None),
            ("part:,:1", "a,,b", None),
            ("part:tab:1", "a\tb", Some("b")),
            ("part:::1", "a:b", Some("b")),
            ("json:born", json, Some("1815")),
            ("json:name", json, Some("Ada \u{1f600}\"")),
            ("json:a\n", json, Some("x")),
            ("json:no", json, Some("null")),
            ("json:last", json, Some("true")),
            ("json:nested", json, None),
            ("json:none", json, None),
            ("json:a", "{}", None),
            ("json:a", "[1]", None),
            ("json:a", "", None),
            ("json:a", r#"{"a""#, None),
            ("json:a", r#"{"a": "\ud800"}"#, None),
        ];
        for (by, payload, expected) in cases {
            assert_eq!(found(by, payload).as_deref(), expected, "{by} {payload}");
        }
        let long = "x".repeat(KEY_BYTES_MAX + 1);
        assert_eq!(found("payload", &long).unwrap().len(), KEY_BYTES_MAX);
    }

    #[test]
    fn rules_come_back() {
        for text in [
            "payload",
            "part:,:0",
            "part:tab:65535",
            "part:::7",
            "part: :0",
            "part:\\:1",
            "part:\":1",
            "part:0x00:1",
            "part:0xff:1",
            "json:born",
            "json:a:b",
        ] {
            let by: SearchBy = text.parse().unwrap();
            assert_eq!(by.to_string(), text);
            let (kind, of) = by.to_parts();
            assert_eq!(SearchBy::from_parts(kind, &of), Some(by));
        }
        for text in [
            "",
            "json:",
            "json",
            "part:,",
            "part:,:x",
            "part:ab:1",
            "part:,:65536",
            "x",
            "part:0x1:1",
            "part:0x+1:1",
            "part:0xé:1",
        ] {
            assert!(text.parse::<SearchBy>().is_err(), "{text}");
        }
    }

    proptest! {
        /// Any bytes: an answer, and no panic.
        #[test]
        fn noise_is_no_json(noise in prop::collection::vec(any::<u8>(), 0..60), parts in prop::collection::vec(0usize..10, 0..20)) {
            let by = SearchBy::Json("a".into());
            by.key(&noise);
            let tokens = ["{", "}", "[", "\"a\"", ":", ",", "\\u", "\"", "1", "\\ud83d"];
            let text: String = parts.iter().map(|&part| tokens[part]).collect();
            by.key(format!("{{\"b\":{text}").as_bytes());
            by.key(text.as_bytes());
        }
    }
}
