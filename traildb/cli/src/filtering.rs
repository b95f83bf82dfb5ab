//! `--filter`, `--from` and `--until`: which events are wanted.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read as _},
    os::unix::ffi::OsStrExt as _,
    path::Path,
};

use traildb::{
    Filter,
    filter::{self, BindError, Expr, FileValues, UnknownFields},
};

use crate::{failure::Failure, open::Database, shards::Ended};

/// The longest file of values.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// What `--help` says of filters.
pub(crate) const HELP: &str = "\
Filters:
  a=b c!=d & e=      terms with blanks between them: one must hold; & between clauses: all must
  user=\"Main Page\"   quotes around values with blanks; a= is the empty value
  user=@FILE         the value in a file, or with --filter-files lines any of its lines
  !(a=b & c=d)       parentheses and negation
  a=b&c              the value `b&c`: an & between clauses has blanks around it
  time>=2016-01-01   times as ISO 8601 (UTC) or as numbers; also < <= > = !=
The text need not be UTF-8. A filter may have 1048576 clauses, or 4096 where parentheses have to be
multiplied out.";

/// Which events are wanted.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Takes only the events that match; see below.
    #[arg(short = 'F', long, value_name = "FILTER", allow_hyphen_values = true)]
    filter: Option<OsString>,

    /// Takes only events from this time on: ISO 8601 (UTC), as 2016-01-31T12:00:00Z or 2016-01, or a
    /// number (a year alone is one).
    #[arg(long, value_name = "TIME")]
    from: Option<String>,

    /// Takes only events before this time.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,

    /// What a file in a filter (user=@FILE) holds: one value, as for the C library's tool, or a
    /// value on each line.
    #[arg(long, value_name = "FORM", default_value = "whole", value_parser = ["whole", "lines"])]
    filter_files: String,
}

impl Args {
    /// The condition, if there is any. With `compat` the filter means what it does to the C library's
    /// tool.
    pub(crate) fn expr(&self, compat: bool) -> Result<Option<Expr>, Failure> {
        let mut all: Option<Expr> = None;
        let mut add = |expr| {
            all = Some(match all.take() {
                Some(all) => all.and(expr),
                None => expr,
            })
        };
        if let Some(text) = &self.filter {
            let (text, usage) =
                (text.as_bytes(), |error: filter::ParseError| Failure::Usage(error.to_string()));
            if compat {
                add(filter::parse_compat(text).map_err(usage)?);
            } else if !text.trim_ascii().is_empty() {
                // An empty filter lets everything pass.
                add(filter::parse(text).map_err(usage)?);
            }
        }
        for (option, sign, text) in [("--from", ">=", &self.from), ("--until", "<", &self.until)] {
            let Some(text) = text else { continue };
            // One term, whatever it holds.
            let one = !text.is_empty()
                && !text.contains(|c: char| c.is_whitespace() || "&\"()@".contains(c));
            let parsed = filter::parse(format!("time{sign}{text}"));
            add(parsed.ok().filter(|_| one).ok_or_else(|| {
                let text =
                    format!("{option}: {text:?} is no time, such as 2016-01-31, or a number");
                Failure::Usage(text)
            })?);
        }
        let format = match self.filter_files.as_str() {
            "lines" => FileValues::Lines,
            _ => FileValues::Whole,
        };
        let load = |expr: Expr| expr.load_files(format, read);
        all.map(load).transpose().map_err(|error| Failure::Failed(error.to_string()))
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    read_at_most(path, FILE_BYTES_MAX)
}

/// The bytes of a file, or of a device or a pipe, which may have no end.
fn read_at_most(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(too_long(max));
    }
    Ok(bytes)
}

/// The error of a file of more than `max` bytes.
pub(crate) fn too_long(max: u64) -> io::Error {
    let text = format!("longer than {max} bytes, which is the most that is read of it");
    io::Error::new(io::ErrorKind::FileTooLarge, text)
}

/// `expr` for each database. A field that one lacks has no value there.
pub(crate) fn bind(expr: &Expr, databases: &[Database<'_>]) -> Result<Vec<Filter>, Ended> {
    let bind = |(place, database): (usize, &Database<'_>)| {
        let bound = expr.bind_with(database.reader, UnknownFields::NoMatch);
        bound.map_err(|error| match error {
            BindError::Database(error) => Ended::At(place, error.into()),
            error => Ended::All(error.into()),
        })
    };
    databases.iter().enumerate().map(bind).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_end_is_not_read_to_it() {
        let file = tempfile::NamedTempFile::new().expect("a temporary directory");
        std::fs::write(&file, "12345").expect("room");
        assert_eq!(read_at_most(file.path(), 5).expect("as long as it may be"), b"12345");
        for path in [file.path(), Path::new("/dev/zero")] {
            let error = read_at_most(path, 4).expect_err("it is longer");
            assert_eq!(error.kind(), io::ErrorKind::FileTooLarge, "{}", path.display());
        }
    }
}
