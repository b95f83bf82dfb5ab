//! JSON: an object to a line, its values taken as they stand.

use std::borrow::Cow;

use hashbrown::HashMap;
use memchr::memchr;
use serde::{
    Deserializer as _,
    de::{Error as _, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{
    batch::{Cell, Sink, unhex},
    columns::To,
    problem::Problem,
};

/// Reads lines of JSON.
pub(super) struct Json {
    keys: HashMap<String, To>,
    /// Whether escapes stay as they are, as in the C library's tool.
    raw: bool,
}

impl Json {
    pub(super) fn new(keys: impl IntoIterator<Item = (String, To)>, raw: bool) -> Json {
        Json { keys: keys.into_iter().collect(), raw }
    }

    /// Takes the lines of `text`, the first of which is number `line`. Returns where it stopped,
    /// and the number of the next line: at the end, before a line that is not whole, or behind one
    /// that ends everything.
    pub(super) fn parse(
        &self,
        text: &[u8],
        last: bool,
        mut line: u64,
        sink: &mut Sink<'_>,
    ) -> (usize, u64) {
        let mut at = 0;
        while at < text.len() {
            let end = match memchr(b'\n', &text[at..]) {
                Some(n) => at + n,
                None if last => text.len(),
                None => break,
            };
            let object = text[at..end].trim_ascii();
            let next = (end + 1).min(text.len());
            let go_on = object.is_empty() || {
                sink.begin();
                if let Err(problem) = self.object(text, object, sink) {
                    sink.fail(problem);
                }
                sink.end(line)
            };
            (at, line) = (next, line + 1);
            if !go_on {
                break;
            }
        }
        (at, line)
    }

    fn object(&self, text: &[u8], object: &[u8], sink: &mut Sink<'_>) -> Result<(), Problem> {
        if !object.starts_with(b"{") {
            return Err(match serde_json::from_slice::<serde::de::IgnoredAny>(object) {
                Ok(_) => Problem::not_an_object(),
                Err(error) => not_json(&error),
            });
        }
        let mut parser = serde_json::Deserializer::from_slice(object);
        let mut problem = None;
        let members = Members { json: self, text, sink, problem: &mut problem };
        let done = parser.deserialize_map(members).and_then(|()| parser.end());
        match problem {
            Some(problem) => Err(problem),
            None => done.map_err(|error| not_json(&error)),
        }
    }

    /// Takes one member of an object.
    fn member(
        &self,
        text: &[u8],
        key: &str,
        to: To,
        raw: &str,
        sink: &mut Sink<'_>,
    ) -> Result<(), Problem> {
        let place = || format!("{key:?}");
        let from = sink.batch.extra.len();
        match raw.as_bytes().first() {
            // A string without escapes stays where it is.
            Some(b'"') if self.raw || memchr(b'\\', raw.as_bytes()).is_none() => {
                let bytes = &raw.as_bytes()[1..raw.len() - 1];
                sink.set(to, within(text, bytes), bytes, place);
                return Ok(());
            }
            Some(b'"') => {
                let value: Cow<'_, str> = serde_json::from_str(raw).map_err(|error| {
                    Problem::not_json(column(text, raw) + error.column(), &what(&error))
                })?;
                sink.batch.extra.extend_from_slice(value.as_bytes());
            }
            Some(b'n') => {
                // As if the key were not there.
                return Ok(());
            }
            Some(b'[') | None => return Err(Problem::bad_value(key)),
            Some(b'{') => {
                let bytes: Option<Bytes<'_>> = serde_json::from_str(raw).ok();
                let bytes = bytes.ok_or_else(|| Problem::bad_value(key))?;
                if !unhex(bytes.hex.as_bytes(), &mut sink.batch.extra) {
                    return Err(Problem::bad_value(key));
                }
            }
            // A number, true or false, in its own letters.
            Some(_) => {
                sink.set(to, within(text, raw.as_bytes()), raw.as_bytes(), place);
                return Ok(());
            }
        }
        let extra = std::mem::take(&mut sink.batch.extra);
        sink.set(to, Cell::extra(from, extra.len()), &extra[from..], place);
        sink.batch.extra = extra;
        Ok(())
    }
}

/// Bytes that are no UTF-8, as `tdb dump -j` prints them.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Bytes<'a> {
    #[serde(borrow)]
    hex: Cow<'a, str>,
}

/// Where `part`, which is a part of `text`, lies in it.
fn within(text: &[u8], part: &[u8]) -> Cell {
    let start = part.as_ptr() as usize - text.as_ptr() as usize;
    debug_assert!(start + part.len() <= text.len());
    Cell::text(start, start + part.len())
}

/// How many bytes of its line, blanks in front left out, are before `part` of `text`.
fn column(text: &[u8], part: &str) -> usize {
    let before = &text[..part.as_ptr() as usize - text.as_ptr() as usize];
    let line = memchr::memrchr(b'\n', before).map_or(0, |n| n + 1);
    before[line..].trim_ascii_start().len()
}

fn what(error: &serde_json::Error) -> String {
    let text = error.to_string();
    // Its own line number is of this line alone.
    text.split(" at line ").next().unwrap_or_default().to_owned()
}

fn not_json(error: &serde_json::Error) -> Problem {
    Problem::not_json(error.column(), &what(error))
}

struct Members<'j, 's, 'b> {
    json: &'j Json,
    text: &'j [u8],
    sink: &'s mut Sink<'b>,
    problem: &'s mut Option<Problem>,
}

impl<'de> Visitor<'de> for Members<'_, '_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<Key<'de>>()? {
            let Some(&to) = self.json.keys.get(&*key.0) else {
                map.next_value::<serde::de::IgnoredAny>()?;
                continue;
            };
            let raw: &'de RawValue = map.next_value()?;
            if let Err(problem) = self.json.member(self.text, &key.0, to, raw.get(), self.sink) {
                *self.problem = Some(problem);
                return Err(A::Error::custom("told apart"));
            }
        }
        Ok(())
    }
}

/// A key, in place unless it has escapes.
struct Key<'de>(Cow<'de, str>);

impl<'de> serde::Deserialize<'de> for Key<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Key<'de>, D::Error> {
        struct InPlace;
        impl<'de> Visitor<'de> for InPlace {
            type Value = Key<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a key")
            }

            fn visit_borrowed_str<E>(self, key: &'de str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Borrowed(key)))
            }

            fn visit_str<E>(self, key: &str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Owned(key.to_owned())))
            }
        }
        deserializer.deserialize_str(InPlace)
    }
}
