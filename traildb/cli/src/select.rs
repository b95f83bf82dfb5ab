//! Which trails (`--uuids`) and which fields (`--fields`).

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    os::unix::ffi::OsStrExt,
};

use traildb::{Fields, Uuid};

use crate::{failure::Failure, filtering, open::Database, shards::Ended};

/// The longest list of UUIDs: some 120 million.
const LIST_BYTES_MAX: u64 = 4 << 30;
/// The longest line of one. A UUID takes 32, and no more than blanks may be beside it.
const LINE_BYTES_MAX: u64 = 4096;
/// The byte order mark, in UTF-8.
const MARK: &[u8] = b"\xef\xbb\xbf";

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

/// The fields of several databases: each name once, in the order in which it was first met.
#[derive(Debug, Default)]
pub(crate) struct Names {
    names: Vec<String>,
    by_name: HashMap<String, u16>,
}

impl Names {
    /// Adds the fields of a database.
    pub(crate) fn add(&mut self, fields: &Fields) {
        for name in fields.names() {
            // Each database has fewer than 2^14; beyond 2^16 in all, the rest is left out.
            let Ok(next) = u16::try_from(self.names.len() + 1) else { return };
            self.by_name.entry(name.to_owned()).or_insert_with(|| {
                self.names.push(name.to_owned());
                next
            });
        }
    }

    /// The fields of these databases.
    pub(crate) fn of(databases: &[Database<'_>]) -> Result<Names, Ended> {
        let mut names = Names::default();
        for (place, database) in databases.iter().enumerate() {
            let fields = database.reader.fields();
            names.add(fields.map_err(|error| Ended::At(place, error.into()))?);
        }
        Ok(names)
    }

    /// Puts the names into their order.
    pub(crate) fn sort(&mut self) {
        self.names.sort_unstable();
        self.by_name = self.names.iter().cloned().zip(1..).collect();
    }

    /// The name of a field, which there is; fields count from 1.
    pub(crate) fn name(&self, field: u16) -> &str {
        &self.names[usize::from(field) - 1]
    }

    /// All names.
    pub(crate) fn all(&self) -> &[String] {
        &self.names
    }

    /// The number of a field, from 1.
    pub(crate) fn find(&self, name: &str) -> Option<u16> {
        self.by_name.get(name).copied()
    }
}

/// The columns that `list` names, or all: the UUID, the time, then the fields in order.
pub(crate) fn columns(
    list: Option<&str>,
    fields: &Names,
    compat: bool,
) -> Result<Vec<Column>, Failure> {
    let column = |name: &str, content| Column { name: name.to_owned(), content };
    let Some(list) = list else {
        let first = [column("uuid", Content::Uuid), column("time", Content::Time)];
        let users = fields
            .all()
            .iter()
            .map(String::as_str)
            .zip(1..)
            .map(|(name, n)| column(name, Content::Field(n)));
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

/// A column for each field, and no others.
pub(crate) fn fields(names: &Names) -> Vec<Column> {
    let column =
        |(name, n): (&String, u16)| Column { name: name.clone(), content: Content::Field(n) };
    names.all().iter().zip(1..).map(column).collect()
}

fn unknown(name: &str, fields: &Names) -> Failure {
    const SHOWN: usize = 20;
    let mut known: Vec<&str> =
        ["uuid", "time"].into_iter().chain(fields.all().iter().map(String::as_str)).collect();
    if known.len() > SHOWN {
        known.truncate(SHOWN);
        known.push("...");
    }
    Failure::Usage(format!("there is no field {name:?}; there are {}", known.join(", ")))
}

/// The UUIDs of `list`: separated by commas, or `@file` with one on each line. With `lenient`, what
/// is no UUID is passed over, as the C tool does.
pub(crate) fn uuids(list: &OsStr, lenient: bool) -> Result<Vec<Uuid>, Failure> {
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
    let Some(path) = list.as_bytes().strip_prefix(b"@") else {
        for text in list.as_bytes().split(|&byte| byte == b',') {
            take(text.trim_ascii(), &|| "--uuids".to_owned())?;
        }
        return Ok(uuids);
    };
    let path = OsStr::from_bytes(path);
    let failed = |error: io::Error| Failure::file(path, error);
    let mut file = BufReader::new(File::open(path).map_err(failed)?);
    let (mut line, mut bytes) = (Vec::new(), 0);
    for number in 1u64.. {
        line.clear();
        // What has no lines is not read to find out.
        let mut taken =
            file.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line).map_err(failed)?;
        if taken == 0 {
            break;
        }
        let is_cut = taken as u64 == LINE_BYTES_MAX && !line.ends_with(b"\n");
        if is_cut && lenient {
            taken += file.by_ref().take(LIST_BYTES_MAX).skip_until(b'\n').map_err(failed)?;
        }
        bytes += taken as u64;
        if bytes > LIST_BYTES_MAX {
            return Err(failed(filtering::too_long(LIST_BYTES_MAX)));
        }
        let text =
            if number == 1 { line.strip_prefix(MARK).unwrap_or(&line) } else { line.as_slice() };
        let place = || format!("{}, line {number}", path.display());
        match text.trim_ascii() {
            _ if is_cut && lenient => {}
            _ if is_cut => {
                let text = format!("{}: longer than {LINE_BYTES_MAX} bytes: no UUID", place());
                return Err(Failure::Usage(text));
            }
            [] => {}
            text => take(text, &place)?,
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
            let list = OsStr::new(&list);
            assert_eq!(uuids(list, false).map(|u| u.len()).map_err(drop), strict, "{what}");
            if lenient != usize::MAX {
                assert_eq!(uuids(list, true).map(|u| u.len()).unwrap_or(99), lenient, "{what}");
            }
        }
    }

    #[test]
    fn a_list_is_read_by_lines() {
        let (a, b) = ("00112233445566778899aabbccddeeff", "FF000000000000000000000000000000");
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = folder.path().join("list");
        let list = format!("@{}", path.display());
        let count = |text: &[u8], lenient| {
            std::fs::write(&path, text).expect("room");
            uuids(list.as_ref(), lenient)
                .map(|uuids| uuids.len())
                .map_err(|error| error.to_string())
        };
        assert_eq!(count(format!("\u{feff}{a}\r\n\n  {b}").as_bytes(), false), Ok(2));
        let long = [a.as_bytes(), b"\n", &[0u8; 10_000], b"\n", b.as_bytes(), b"\n"].concat();
        let error = count(&long, false).expect_err("no UUID");
        assert!(error.contains("line 2: longer than 4096 bytes"), "{error}");
        assert_eq!(count(&long, true), Ok(2));
        // It never ends, and has no lines.
        let error = uuids("@/dev/zero".as_ref(), false).expect_err("no UUID").to_string();
        assert!(error.contains("line 1: longer than"), "{error}");
    }
}
