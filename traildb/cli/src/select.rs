//! Which trails (`--uuids`) and which fields (`--fields`).

use std::fs;

use traildb::{Fields, Uuid};

use crate::failure::Failure;

/// One column of the output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) content: Content,
}

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Uuid,
    Time,
    /// A user field, by its number from 1.
    Field(u16),
    /// Nothing: with `--compat`, a column that a later one of the same field has replaced.
    Empty,
}

/// The columns that `list` names, or all: the UUID, the time, then the fields in order.
pub(crate) fn columns(
    list: Option<&str>,
    fields: &Fields,
    compat: bool,
) -> Result<Vec<Column>, Failure> {
    let column = |name: &str, content| Column { name: name.to_owned(), content };
    let Some(list) = list else {
        let first = [column("uuid", Content::Uuid), column("time", Content::Time)];
        let users = fields.names().zip(1..).map(|(name, n)| column(name, Content::Field(n)));
        return Ok(first.into_iter().chain(users).collect());
    };
    let mut columns: Vec<Column> = Vec::new();
    for name in list.split(',') {
        let content = match name {
            "uuid" => Content::Uuid,
            "time" => Content::Time,
            _ => match fields.find(name) {
                Some(number) => Content::Field(number),
                None => return Err(unknown(name, fields)),
            },
        };
        if compat {
            for earlier in columns.iter_mut().filter(|column| column.content == content) {
                earlier.content = Content::Empty;
            }
        }
        columns.push(column(name, content));
    }
    Ok(columns)
}

fn unknown(name: &str, fields: &Fields) -> Failure {
    const SHOWN: usize = 20;
    let mut known: Vec<&str> = ["uuid", "time"].into_iter().chain(fields.names()).collect();
    if known.len() > SHOWN {
        known.truncate(SHOWN);
        known.push("...");
    }
    Failure::Usage(format!("there is no field {name:?}; there are {}", known.join(", ")))
}

/// The UUIDs of `list`: separated by commas, or `@file` with one on each line. With `lenient`, what
/// is no UUID is passed over, as the C tool does.
pub(crate) fn uuids(list: &str, lenient: bool) -> Result<Vec<Uuid>, Failure> {
    let mut uuids = Vec::new();
    let mut take = |text: &[u8], place: &dyn Fn() -> String| {
        let text = String::from_utf8_lossy(text);
        match text.parse() {
            Ok(uuid) => uuids.push(uuid),
            Err(_) if lenient => {}
            Err(error) => return Err(Failure::Usage(format!("{}: {error}", place()))),
        }
        Ok(())
    };
    match list.strip_prefix('@') {
        None => {
            for text in list.split(',') {
                take(text.trim().as_bytes(), &|| "--uuids".to_owned())?;
            }
        }
        Some(path) => {
            let file = fs::read(path).map_err(|error| Failure::file(path, error))?;
            for (line, number) in file.split(|&b| b == b'\n').zip(1u64..) {
                let line = line.trim_ascii();
                if !line.is_empty() {
                    take(line, &|| format!("{path}, line {number}"))?;
                }
            }
        }
    }
    Ok(uuids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_uuids() {
        let (a, b) = ("00112233445566778899aabbccddeeff", "FF000000000000000000000000000000");
        let cases = [
            ("one", a.to_owned(), Ok(1), 1),
            ("two", format!("{a},{b}"), Ok(2), 2),
            ("spaces", format!("{a}, {b}"), Ok(2), 2),
            ("none", String::new(), Err(()), 0),
            ("a short one", format!("{a},12"), Err(()), 1),
            ("a comma at the end", format!("{a},"), Err(()), 1),
            ("a file that is not there", "@/no/such/file".to_owned(), Err(()), usize::MAX),
        ];
        for (what, list, strict, lenient) in cases {
            assert_eq!(uuids(&list, false).map(|u| u.len()).map_err(drop), strict, "{what}");
            if lenient != usize::MAX {
                assert_eq!(uuids(&list, true).map(|u| u.len()).unwrap_or(99), lenient, "{what}");
            }
        }
    }
}
