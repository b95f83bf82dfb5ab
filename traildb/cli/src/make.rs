//! `tdb make`: events in.

use std::{
    collections::HashMap,
    fs,
    io::{self, BufRead, BufReader},
    path::PathBuf,
};

use serde_json::Value as Json;
use traildb::{Builder, Options, Uuid};

use crate::{bytes, dump, failure::Failure, output, progress};

/// A line longer than this is no event: 64 MiB.
const LINE_BYTES_MAX: u64 = 64 << 20;

/// Makes a database of events in CSV or JSON.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  tdb make -i edits.csv -d , --csv-header -o edits.tdb
  tdb make -j -f uuid,time,user,title < edits.jsonl -o edits.tdb
  tdb make -f 2:uuid,5:time,3:title -i log.txt -o log.tdb

Events need a `uuid` (up to 32 hexadecimal digits, filled with zeros at the end) and a `time`
(a whole number). What --fields does not name is left out.")]
pub(crate) struct Args {
    /// The events: a file, or - for standard input.
    #[arg(short, long, default_value = "-")]
    input: String,
    /// The database to be made; `.tdb` is added to a package's name that lacks it.
    #[arg(short, long, default_value = "a")]
    output: PathBuf,
    /// CSV, one event a line (default). Values may be quoted as RFC 4180 says.
    #[arg(short, long, conflicts_with = "json")]
    csv: bool,
    /// JSON, one object a line.
    #[arg(short, long)]
    json: bool,
    /// The delimiter of CSV: one ASCII character; \t is a tab.
    #[arg(short, long, value_name = "CHARACTER", default_value = " ", value_parser = dump::delimiter)]
    delimiter: u8,
    /// The fields, joined by commas, in the order of the columns; or as COLUMN:FIELD, columns
    /// counted from 1. Default: uuid,time
    #[arg(short, long, conflicts_with = "csv_header")]
    fields: Option<String>,
    /// The first line of CSV names the fields.
    #[arg(long, conflicts_with = "json")]
    csv_header: bool,
    /// Passes over lines that are no events, counts them and says so.
    #[arg(long)]
    skip_bad_input: bool,
    /// What to make: one file, or a directory.
    #[arg(long, value_name = "FORM", default_value = "pkg", value_parser = ["pkg", "dir"])]
    tdb_format: String,
    /// Refuses events beyond so much memory.
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = bytes::parse)]
    memory: u64,
}

/// Where a column goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum To {
    Uuid,
    Time,
    /// The n-th user field, from 0.
    Field(usize),
    Nowhere,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let directory = args.tdb_format == "dir";
    let mut output = args.output.clone();
    if !directory && output.extension().is_none_or(|extension| extension != "tdb") {
        output.as_mut_os_string().push(".tdb");
    }
    if output.exists() {
        return Err(Failure::Failed(format!("{} exists already", output.display())));
    }
    let failed = |error: io::Error| Failure::Failed(format!("{}: {error}", args.input));
    let (reader, len): (Box<dyn BufRead>, u64) = match args.input.as_str() {
        "-" => (Box::new(io::stdin().lock()), 0),
        path => {
            let file = fs::File::open(path).map_err(failed)?;
            let len = file.metadata().map_err(failed)?.len();
            (Box::new(BufReader::with_capacity(1 << 18, file)), len)
        }
    };
    let mut lines = Lines { reader, number: 0, row: 0, bytes: 0 };
    let delimiter = args.delimiter;
    let mut line = Vec::new();
    let mut cells = Cells::default();
    let spec = match (&args.fields, args.csv_header) {
        (Some(spec), _) => spec.clone(),
        (None, false) => "uuid,time".to_owned(),
        (None, true) => {
            if !lines.next_csv(delimiter, &mut line, &mut cells).map_err(failed)? {
                return Err(Failure::Failed("the input has no header line".into()));
            }
            let names: Vec<String> =
                cells.iter().map(|cell| String::from_utf8_lossy(cell).into_owned()).collect();
            names.join(",")
        }
    };
    let (columns, names) = columns(&spec)?;
    let options = Options::default().directory(directory).memory_bytes(args.memory);
    let mut builder = Builder::with_options(&names, options)?;
    let by_name: HashMap<&str, To> = names
        .iter()
        .enumerate()
        .map(|(k, name)| (name.as_str(), To::Field(k)))
        .chain([("uuid", To::Uuid), ("time", To::Time)])
        .collect();

    let bar = progress::bar(len, "bytes", false);
    let mut skipped = 0u64;
    let mut event = Event::default();
    loop {
        event.clear(names.len());
        let parsed = if args.json {
            if !lines.next(&mut line).map_err(failed)? {
                break;
            }
            event.fill_from_json(&line, &by_name)
        } else {
            if !lines.next_csv(delimiter, &mut line, &mut cells).map_err(failed)? {
                break;
            }
            event.fill_from_csv(&cells, &columns)
        };
        if lines.number.is_multiple_of(8192) {
            bar.set_position(lines.bytes);
        }
        let added = parsed.and_then(|()| {
            let uuid = event.uuid.ok_or("the uuid is missing")?;
            let time = event.time.ok_or("the time is missing")?;
            Ok((uuid, time))
        });
        let problem = match added {
            Ok((uuid, time)) => match builder.add(uuid, time, &event.values) {
                Ok(()) => continue,
                // The memory is full, and will be at the next line.
                Err(error @ traildb::Error::Input(traildb::InputError::Memory { .. })) => {
                    return Err(error.into());
                }
                Err(error) => error.to_string(),
            },
            Err(problem) => problem,
        };
        if !args.skip_bad_input {
            let (name, number) = (&args.input, lines.row);
            return Err(Failure::Failed(format!("{name}: line {number}: {problem}")));
        }
        skipped += 1;
    }
    bar.finish_and_clear();
    if skipped > 0 {
        output::note(&format!("passed over {skipped} of {} lines", lines.number));
    }
    builder.finish(&output)?;
    Ok(())
}

/// Where each column goes, and the names of the user fields.
fn columns(spec: &str) -> Result<(Vec<To>, Vec<String>), Failure> {
    let mut columns = Vec::new();
    let mut names = Vec::new();
    let numbered = spec.contains(':');
    for (k, part) in spec.split(',').enumerate() {
        let (column, name) = match part.split_once(':') {
            Some((column, name)) if numbered => {
                let number = column.parse::<usize>().ok().filter(|n| (1..=1 << 20).contains(n));
                let number = number.ok_or_else(|| {
                    Failure::Usage(format!("--fields: {column:?} is not a column's number, from 1"))
                })?;
                (number - 1, name)
            }
            None if numbered => {
                return Err(Failure::Usage(format!("--fields: {part:?} lacks a column's number")));
            }
            _ => (k, part),
        };
        let to = match name {
            "uuid" => To::Uuid,
            "time" => To::Time,
            name => {
                names.push(name.to_owned());
                To::Field(names.len() - 1)
            }
        };
        if columns.len() <= column {
            columns.resize(column + 1, To::Nowhere);
        }
        if columns[column] != To::Nowhere {
            return Err(Failure::Usage(format!("--fields: column {} is named twice", column + 1)));
        }
        columns[column] = to;
    }
    for (what, name) in [(To::Uuid, "uuid"), (To::Time, "time")] {
        if columns.iter().filter(|&&to| to == what).count() != 1 {
            return Err(Failure::Usage(format!("the fields must name `{name}` once: {spec:?}")));
        }
    }
    Ok((columns, names))
}

/// The input, line by line.
struct Lines {
    reader: Box<dyn BufRead>,
    /// Lines so far.
    number: u64,
    /// The line that the current row started with, from 1.
    row: u64,
    bytes: u64,
}

impl Lines {
    /// Reads a line without its line break. Returns whether there was one.
    fn next(&mut self, line: &mut Vec<u8>) -> io::Result<bool> {
        line.clear();
        self.row = self.number + 1;
        self.append(line)
    }

    fn append(&mut self, line: &mut Vec<u8>) -> io::Result<bool> {
        let before = line.len();
        let limit = LINE_BYTES_MAX.saturating_sub(before as u64) + 1;
        let n = io::Read::take(&mut self.reader, limit).read_until(b'\n', line)?;
        if n as u64 == limit {
            let text = format!("line {} is longer than {LINE_BYTES_MAX} bytes", self.number + 1);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        self.bytes += n as u64;
        self.number += u64::from(n > 0);
        if n > 0 && line.last() == Some(&b'\n') {
            line.pop();
        }
        Ok(n > 0)
    }

    /// Reads a row of CSV: more than one line if a quoted value has a line break.
    fn next_csv(
        &mut self,
        delimiter: u8,
        line: &mut Vec<u8>,
        cells: &mut Cells,
    ) -> io::Result<bool> {
        if !self.next(line)? {
            return Ok(false);
        }
        let mut whole = cells.split(line, delimiter);
        while !whole {
            line.push(b'\n');
            if !self.append(line)? {
                let (row, column) = (self.row, cells.ends.len() + 1);
                let text = format!("line {row}: column {column}: a quoted value has no end");
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            whole = cells.go_on(line, delimiter);
        }
        Ok(true)
    }
}

/// The cells of a row, unquoted.
#[derive(Debug, Default)]
struct Cells {
    text: Vec<u8>,
    ends: Vec<usize>,
    /// Where splitting is in the line.
    at: usize,
    /// Whether that is inside quotes.
    quoted: bool,
}

impl Cells {
    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| &self.text[start..end])
    }

    /// Splits a row from its start. Returns false if it ends inside quotes.
    fn split(&mut self, line: &[u8], delimiter: u8) -> bool {
        self.text.clear();
        self.ends.clear();
        (self.at, self.quoted) = (0, false);
        self.go_on(line, delimiter)
    }

    /// Splits on from where the row ended inside quotes, now that `line` is longer. Looks at no
    /// byte twice: a quote that is never closed must not cost the square of what follows it.
    fn go_on(&mut self, line: &[u8], delimiter: u8) -> bool {
        // A line break of two bytes: the newline is gone already.
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        loop {
            if !self.quoted && line.get(self.at) == Some(&b'"') {
                self.quoted = true;
                self.at += 1;
            }
            while self.quoted {
                match (line.get(self.at), line.get(self.at + 1)) {
                    (Some(b'"'), Some(b'"')) => {
                        self.text.push(b'"');
                        self.at += 2;
                    }
                    (Some(b'"'), _) => {
                        self.quoted = false;
                        self.at += 1;
                    }
                    (Some(&byte), _) => {
                        self.text.push(byte);
                        self.at += 1;
                    }
                    (None, _) => return false,
                }
            }
            // An unquoted cell, or what follows the closing quote.
            let rest = &line[self.at..];
            let end = rest.iter().position(|&b| b == delimiter);
            self.text.extend(&rest[..end.unwrap_or(rest.len())]);
            self.ends.push(self.text.len());
            match end {
                Some(end) => self.at += end + 1,
                None => return true,
            }
        }
    }
}

/// An event being read.
#[derive(Default)]
struct Event {
    uuid: Option<Uuid>,
    time: Option<u64>,
    values: Vec<Vec<u8>>,
}

impl Event {
    fn clear(&mut self, fields: usize) {
        (self.uuid, self.time) = (None, None);
        self.values.resize(fields, Vec::new());
        self.values.iter_mut().for_each(Vec::clear);
    }

    fn set(&mut self, to: To, value: &[u8]) -> Result<(), String> {
        match to {
            To::Uuid => self.uuid = Some(parse_uuid(value)?),
            To::Time => self.time = Some(parse_time(value)?),
            To::Field(k) => self.values[k].extend(value),
            To::Nowhere => {}
        }
        Ok(())
    }

    fn fill_from_csv(&mut self, cells: &Cells, columns: &[To]) -> Result<(), String> {
        let mut cells = cells.iter().zip(columns).zip(1..);
        cells.try_for_each(|((cell, &to), column)| {
            self.set(to, cell).map_err(|problem| format!("column {column}: {problem}"))
        })
    }

    fn fill_from_json(&mut self, line: &[u8], by_name: &HashMap<&str, To>) -> Result<(), String> {
        let json: Json = serde_json::from_slice(line).map_err(|error| {
            let text = error.to_string();
            // Its own line number is of this line alone.
            let what = text.split(" at line ").next().unwrap_or_default();
            format!("column {}: {what}", error.column())
        })?;
        let Json::Object(members) = json else { return Err("not a JSON object".into()) };
        for (name, value) in &members {
            let Some(&to) = by_name.get(name.as_str()) else { continue };
            match value {
                Json::Null => {}
                Json::String(text) => self
                    .set(to, text.as_bytes())
                    .map_err(|problem| format!("{name:?}: {problem}"))?,
                Json::Number(number) => self.set(to, number.to_string().as_bytes())?,
                Json::Bool(yes) => self.set(to, if *yes { b"true" } else { b"false" })?,
                Json::Object(object) if object.len() == 1 && object.contains_key("hex") => {
                    let hex = object["hex"].as_str().and_then(unhex);
                    self.set(to, &hex.ok_or_else(|| format!("{name:?} is no hexadecimal text"))?)?;
                }
                _ => return Err(format!("the value of {name:?} is no text or number")),
            }
        }
        Ok(())
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |c: &u8| char::from(*c).to_digit(16);
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| Some((digit(&pair[0])? << 4 | digit(pair.get(1)?)?) as u8)).collect()
}

fn parse_uuid(value: &[u8]) -> Result<Uuid, String> {
    let text = std::str::from_utf8(value).unwrap_or("?");
    let refuse = || format!("{text:?} is no UUID: up to 32 hexadecimal digits are");
    if text.is_empty() || text.len() > 32 {
        return Err(refuse());
    }
    format!("{text:0<32}").parse().map_err(|_| refuse())
}

fn parse_time(value: &[u8]) -> Result<u64, String> {
    let text = std::str::from_utf8(value).unwrap_or("?");
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let time = if digits { text.parse().ok() } else { None };
    time.ok_or_else(|| format!("{text:?} is no time: a whole number from 0 to 2^64 - 1 is"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_split_into_cells() {
        let cases: [(&str, Option<&[&str]>); 9] = [
            ("a,b", Some(&["a", "b"])),
            ("", Some(&[""])),
            (",", Some(&["", ""])),
            ("a,b\r", Some(&["a", "b"])),
            (r#""a,b",c"#, Some(&["a,b", "c"])),
            (r#""say ""hi""",c"#, Some(&["say \"hi\"", "c"])),
            (r#"in"side,c"#, Some(&["in\"side", "c"])),
            ("\"two\nlines\"", Some(&["two\nlines"])),
            (r#""open,c"#, None),
        ];
        for (line, expected) in cases {
            let mut cells = Cells::default();
            let whole = cells.split(line.as_bytes(), b',');
            let got: Vec<&str> = cells.iter().map(|c| std::str::from_utf8(c).unwrap()).collect();
            assert_eq!(whole.then_some(got.as_slice()), expected, "{line:?}");
        }
    }

    #[test]
    fn columns_by_order_and_number() {
        let (to, names) = columns("uuid,x,time").unwrap();
        assert_eq!(to, [To::Uuid, To::Field(0), To::Time]);
        assert_eq!(names, ["x"]);
        let (to, _) = columns("3:uuid,1:time").unwrap();
        assert_eq!(to, [To::Time, To::Nowhere, To::Uuid]);
        for bad in
            ["uuid", "time,x", "uuid,time,uuid", "1:uuid,1:time", "0:uuid,1:time", "1:uuid,time"]
        {
            assert!(columns(bad).is_err(), "{bad}");
        }
    }
}
