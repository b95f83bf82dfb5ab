//! `tdb make`: events in.
//!
//! ```text
//!   file, stdin --> feed --> csv or json --> Batch of events --> Builder --> database
//! ```

mod columns; // which column, or which key, goes where
mod problem; // what is wrong with a row, and how often
mod batch; // events between the parser and the builder
mod csv; // rows of CSV
mod json; // lines of JSON
mod feed; // the input in blocks, parsed on a thread of its own

use std::{
    collections::HashSet,
    ffi::OsString,
    fs,
    io::{self, Read},
    path::PathBuf,
    time::Instant,
};

use traildb::{Builder, Uuid};

use self::{
    batch::Batch,
    columns::Columns,
    csv::{Csv, Scanned},
    feed::{Ended, Feed, Syntax},
    json::Json,
    problem::{Problem, Tally},
};
use crate::{dump, failure::Failure, open, output, progress, select, threads, writing};

/// The byte order mark, in UTF-8.
const MARK: &[u8] = b"\xef\xbb\xbf";
/// The longest header line.
const HEADER_BYTES_MAX: usize = 16 << 20;

const NOTES: &str = "\
An event needs a `uuid` (up to 32 hexadecimal digits, filled with zeros at the end) and a `time` (a
whole number). What --fields does not name is left out; a field that an event lacks is empty.

CSV: a value that starts with a quote goes on to the closing quote, over delimiters and line ends,
and a doubled quote inside is a quote. What stands between the closing quote and the delimiter belongs
to it. Lines end with LF or CR LF; empty lines are passed over.
A row, of JSON too, has at most a sixteenth of --memory, but 64 MiB at least and 1 GiB at most.

JSON: numbers and true and false are kept as they are written, null is empty, and {\"hex\":\"c3ff\"} is
two bytes, as `tdb dump -j` prints what is no UTF-8.

--fields:
  uuid,time,title           columns 1 to 3, or the keys of JSON
  2:uuid,5:time,3:title     columns by number
  uuid,when:time,title      with --csv-header: columns by name; with --json: keys, numbers too; FROM:FIELD renames

Examples:
  tdb make -i edits.csv -d , --csv-header -o edits.tdb
  tdb make -j -f uuid,time,user,title < edits.jsonl -o edits.tdb
  tdb make -f 2:uuid,5:time,3:title -i log.txt -o log.tdb --skip-bad-input
  zcat logs/*.gz | tdb make -d '\\t' -f uuid,time,url --memory 2GiB -o s3://bucket/logs.tdb";

/// Makes a database of events in CSV or JSON.
#[derive(clap::Args)]
#[command(after_help = NOTES)]
pub(crate) struct Args {
    /// The events: a file, or `-` for standard input.
    #[arg(short, long, value_name = "FILE", default_value = "-", allow_hyphen_values = true)]
    input: OsString,

    /// The database to be made: a path, to which `.tdb` is added where a package lacks it, or
    /// s3://bucket/key, which takes options behind a `?` as inputs do.
    #[arg(short, long, value_name = "PATH|URL", default_value = "a", allow_hyphen_values = true)]
    output: PathBuf,

    /// Reads CSV, an event to a row (the default).
    #[arg(short, long, conflicts_with = "json")]
    csv: bool,

    /// Reads JSON, an object to a line.
    #[arg(short, long)]
    json: bool,

    /// The delimiter of CSV: one ASCII character; \t is a tab.
    #[arg(short, long, value_name = "CHARACTER", default_value = " ", value_parser = dump::delimiter)]
    delimiter: u8,

    /// The fields and where they come from, separated by commas; see below. Default: uuid,time, or
    /// all that the header names.
    #[arg(short, long, value_name = "FIELDS", allow_hyphen_values = true)]
    fields: Option<String>,

    /// Takes the names of the columns from the first row.
    #[arg(long, conflicts_with = "json")]
    csv_header: bool,

    /// Takes the events of these trails only: UUIDs separated by commas, or @FILE with one on each
    /// line.
    #[arg(short, long, value_name = "UUIDS|@FILE", allow_hyphen_values = true)]
    uuids: Option<OsString>,

    /// Passes over rows that are no events, and says at the end how many, why, and where at first. A
    /// time 2^47 - 1 or more behind the one before it in its trail is none of these: it is known when
    /// all events are, and ends it, as with the C library's tool.
    #[arg(long)]
    skip_bad_input: bool,

    /// Reads as the C library's tool does: quotes, carriage returns and escapes mean nothing, and a row of
    /// CSV ends at its first NUL byte.
    #[arg(long)]
    compat: bool,

    #[command(flatten)]
    writing: writing::Args,

    #[command(flatten)]
    threads: threads::Args,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let began = Instant::now();
    let target = args.writing.target(&args.output)?;
    let wanted: Option<HashSet<Uuid>> = match &args.uuids {
        Some(list) => Some(select::uuids(list, args.compat)?.into_iter().collect()),
        None => None,
    };
    let is_stdin = args.input == "-";
    let name = if is_stdin { "stdin".to_owned() } else { open::shown(&args.input) };
    let failed = |error: io::Error| Failure::file(&name, error);
    let (mut input, len): (Box<dyn Read + Send>, u64) = match open::url_of(&args.input) {
        _ if is_stdin => (Box::new(io::stdin()), 0),
        Some(_) => {
            let text = "events are read from local files and pipes; `extmem cat URL | tdb make` takes \
                        them from a URL";
            return Err(Failure::Usage(format!("{name}: {text}")));
        }
        None => {
            let file = fs::File::open(&args.input).map_err(failed)?;
            let stat = file.metadata().map_err(failed)?;
            if stat.is_dir() {
                return Err(Failure::file(
                    &name,
                    "a directory, where a file with events is needed",
                ));
            }
            (Box::new(file), if stat.is_file() { stat.len() } else { 0 })
        }
    };

    let csv = Csv { delimiter: args.delimiter, quotes: !args.compat };
    let header = match args.csv_header {
        true => Some(Header::read(&mut input, csv).map_err(failed)?),
        false => None,
    };
    let names = header.as_ref().map(|header| header.names.as_slice());
    // The C library's tool takes a number for a column's there, too.
    let keys = args.json && !args.compat;
    let columns = Columns::new(args.fields.as_deref(), names, keys)?;
    let fields = columns.fields.clone();
    let syntax = match args.json {
        true => {
            columns.need_keys()?;
            Syntax::Json(Json::new(columns.keys, args.compat))
        }
        false => {
            columns.need_columns()?;
            Syntax::Csv(csv, columns.columns)
        }
    };
    let mut memory = args.writing.memory();
    memory.reserved = feed::MEMORY;
    let row_max = feed::row_bytes_max(memory.bytes);
    let builder = args.writing.builder(&fields, &args.threads, &target, memory);
    let mut builder = builder.map_err(|error| match error {
        // Names that the command line has, not the input.
        traildb::Error::Input(_) if args.fields.is_some() => Failure::Usage(error.to_string()),
        error => error.into(),
    })?;

    let (start, line) = match header {
        Some(header) => (header.rest, 1 + header.lines),
        None if args.compat => (Vec::new(), 1),
        None => (behind_mark(&mut input).map_err(failed)?, 1),
    };
    let tally = Tally::new(args.skip_bad_input);
    let feed = Feed::new(input, start, line, syntax, fields.len(), row_max, tally);
    let bar = progress::reading(len);
    let mut refused = Tally::new(args.skip_bad_input);
    let mut lines = 0;
    let mut any = false;
    let fed = feed.run(args.threads.count(), |batch| {
        let taken = add(batch, fields.len(), wanted.as_ref(), &mut builder, &mut refused, &mut any);
        bar.set_position(batch.bytes);
        lines = batch.lines;
        taken.map_err(|(line, problem)| match problem {
            Ok(problem) => Failure::Failed(format!("{name}: line {line}: {}", problem.text())),
            Err(failure) => failure,
        })
    });
    bar.finish_and_clear();
    let mut tally = fed.map_err(|ended| match ended {
        Ended::Input(error) => failed(error),
        Ended::Taker(failure) => failure,
    })?;
    tally.merge(refused);
    if tally.total() > 0 {
        let text = format!("passed over {} of {lines} lines:\n{}", tally.total(), tally.table());
        output::note(text.trim_end());
    }

    if let Some(wanted) = &wanted
        && !(any || wanted.is_empty() || args.compat)
    {
        let text = format!("none of the {} UUIDs is in the input", wanted.len());
        return Err(Failure::Nothing(text));
    }
    args.writing.write(builder, &target, began)
}

type Bad = (u64, Result<Problem, Failure>);

/// Adds the events of a batch, and notes whether there are `any` of trails that are wanted. Returns
/// whether to go on, or the line of the row that ends it.
fn add(
    batch: &Batch,
    fields: usize,
    wanted: Option<&HashSet<Uuid>>,
    builder: &mut Builder,
    refused: &mut Tally,
    any: &mut bool,
) -> Result<bool, Bad> {
    let mut values: Vec<&[u8]> = Vec::with_capacity(fields);
    for (row, cells) in batch.events(fields) {
        if wanted.is_some_and(|wanted| !wanted.contains(&row.uuid)) {
            continue;
        }
        *any = true;
        values.clear();
        values.extend(cells.iter().map(|cell| cell.of(&batch.text, &batch.extra)));
        match builder.add(row.uuid, row.time, &values) {
            Ok(()) => {}
            Err(traildb::Error::Input(error)) => {
                let problem = Problem::refused(&error);
                if !refused.skip {
                    return Err((row.line, Ok(problem)));
                }
                refused.add(row.line, problem);
            }
            // What follows would fail as well.
            Err(error) => return Err((row.line, Err(error.into()))),
        }
    }
    match &batch.problem {
        None => Ok(true),
        Some((line, problem)) => Err((*line, Ok(problem.clone()))),
    }
}

/// The first bytes of an input, but for a byte order mark.
fn behind_mark(input: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut start = Vec::new();
    input.by_ref().take(MARK.len() as u64).read_to_end(&mut start)?;
    if start == MARK {
        start.clear();
    }
    Ok(start)
}

/// The first row of CSV, and what was read behind it.
struct Header {
    names: Vec<String>,
    lines: u64,
    rest: Vec<u8>,
}

impl Header {
    fn read(input: &mut impl Read, csv: Csv) -> io::Result<Header> {
        const STEP: usize = 64 << 10;
        let bad = |text: &str| io::Error::new(io::ErrorKind::InvalidData, text);
        let mut text = Vec::new();
        loop {
            let step = STEP.max(text.len());
            let ended = input.by_ref().take(step as u64).read_to_end(&mut text)? < step;
            if text.is_empty() {
                return Err(bad("the input has no header line"));
            }
            let start = if text.starts_with(MARK) { MARK.len() } else { 0 };
            let mut names = Vec::new();
            let scanned = csv.scan(&text, start, ended, &mut Vec::new(), |_, _, name| {
                names.push(String::from_utf8_lossy(name).into_owned());
            });
            match scanned {
                Scanned::Row { end, lines } => {
                    text.drain(..end);
                    return Ok(Header { names, lines, rest: text });
                }
                Scanned::More if text.len() <= HEADER_BYTES_MAX => {}
                Scanned::More => return Err(bad("line 1: the header is longer than 16 MiB")),
                Scanned::Open { column } => {
                    return Err(bad(&format!("line 1: {}", Problem::open_quote(column).text())));
                }
            }
        }
    }
}
