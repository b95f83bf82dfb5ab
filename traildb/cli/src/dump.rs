//! `tdb dump`: events as CSV, as JSON, or a trail to a line.
//!
//! ```text
//!   trails --> cursor --> Batch of items --> values fetched together --> lines
//! ```
//!
//! A batch has a bound, and a trail may go over several: memory does not grow with the database,
//! and ten users take as many round trips as one.

use traildb::{Error, Item, Trail, Uuid};

use crate::{
    failure::Failure,
    open::{Database, Input, Store},
    output::{self, Output},
    progress, render,
    select::{self, Column, Content},
    stats,
    values::{Form, Values},
};

/// Items of a batch whose values come from afar: waiting for them is shared by many.
const BATCH_REMOTE: usize = 1 << 20;
/// Items of a batch whose values are at hand: they stay in the processor's cache.
const BATCH_LOCAL: usize = 1 << 15;
/// UUIDs read at a time when all are.
const UUIDS_WINDOW: u64 = 4096;

const NOTES: &str = "\
A value that is not UTF-8 is {\"hex\":\"c3ff\"} in JSON, never a string. CSV is quoted as in RFC 4180
where it has to be, has lines that end with LF, and holds the bytes of values as they are.
Trails come in the order of the database, also with --uuids.

Examples:
  tdb dump -i wiki.tdb
  tdb dump -i wiki.tdb -c -d , --csv-header -f time,user,title -o events.csv
  tdb dump -i s3://bucket/wiki.tdb -j -u 00112233445566778899aabbccddeeff --stats
  tdb dump -i 's3://bucket/wiki.tdb?region=eu-west-1' -j -u @users.txt --budget 64MiB
  tdb dump -i https://host/wiki.tdb --json-trails --stats=json";

/// Prints the events of a database, or of some of its trails.
#[derive(clap::Args)]
#[command(after_help = NOTES)]
pub(crate) struct Args {
    #[command(flatten)]
    input: Input,

    /// Where to print: a file that does not exist yet, or `-` for stdout.
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    output: String,

    /// Prints an event to a line, its fields separated by the delimiter (the default).
    #[arg(short, long, conflicts_with_all = ["json", "json_trails"])]
    csv: bool,

    /// Prints an event to a line, each a JSON object with strings.
    #[arg(short, long, conflicts_with = "json_trails")]
    json: bool,

    /// Prints a trail to a line: {"uuid":"...","events":[[time,"value",...],...]}. With --fields,
    /// only their values.
    #[arg(long, conflicts_with = "compat")]
    json_trails: bool,

    /// The delimiter of CSV: one ASCII character; \t is a tab.
    #[arg(short, long, value_name = "CHARACTER", default_value = " ", value_parser = delimiter)]
    delimiter: u8,

    /// The fields to print, separated by commas; `uuid` and `time` count as fields. Default: all.
    #[arg(short, long, value_name = "FIELDS")]
    fields: Option<String>,

    /// The trails to print: UUIDs separated by commas, or @FILE with one on each line. Default: all.
    #[arg(short, long, value_name = "UUIDS|@FILE")]
    uuids: Option<String>,

    /// Prints the names of the fields first.
    #[arg(long, conflicts_with_all = ["json", "json_trails"])]
    csv_header: bool,

    /// Leaves out values that are empty.
    #[arg(long, requires = "json")]
    json_no_empty: bool,

    /// Prints the bytes that the C library's tool prints: no quotes around CSV, no escapes in JSON,
    /// values cut at NUL bytes. What is no UUID is then passed over, and finding none is no error.
    #[arg(long)]
    compat: bool,

    #[command(flatten)]
    stats: stats::Args,
}

/// Reads the delimiter of CSV.
pub(crate) fn delimiter(text: &str) -> Result<u8, String> {
    match text.as_bytes() {
        b"\\t" => Ok(b'\t'),
        [b'"' | b'\n' | b'\r'] => Err("quotes and line ends mean something else in CSV".to_owned()),
        &[byte] if byte.is_ascii() => Ok(byte),
        _ => Err("one ASCII character is a delimiter".to_owned()),
    }
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let uuids = args.uuids.as_deref().map(|list| select::uuids(list, args.compat)).transpose()?;
    let database = args.input.open()?;
    let columns = select::columns(args.fields.as_deref(), database.reader.fields()?, args.compat)?;
    let mut dump = Dump {
        database: &database,
        batch: Batch::new(&database),
        printer: Printer::new(args, &database, columns),
        output: Output::create(&args.output)?,
    };
    let done = match &uuids {
        None => dump.all(args.output == "-"),
        Some(uuids) => dump.some(uuids, args),
    };
    let done = done.and_then(|()| dump.output.finish());
    // What a failed query has cost is worth knowing too.
    args.stats.print(&database);
    done
}

struct Dump<'d> {
    database: &'d Database,
    batch: Batch,
    printer: Printer<'d>,
    output: Output,
}

impl Dump<'_> {
    /// Prints all trails.
    ///
    /// The cursor announces trails ahead of itself, and values are planned by batch. Telling the
    /// pager besides that reads are sequential made a dump of 100 MB fetch 107 to 114 % of its bytes
    /// instead of 100 %, since it reads ahead of values too, and no faster.
    fn all(&mut self, on_stdout: bool) -> Result<(), Failure> {
        let reader = &self.database.reader;
        self.printer.head(&mut self.output)?;
        if reader.trails() == 0 {
            return Ok(());
        }
        let bar = progress::bar(reader.trails(), "trails", on_stdout);
        let mut cursor = reader.cursor()?;
        let mut trail = 0;
        while trail < reader.trails() {
            let end = reader.trails().min(trail + UUIDS_WINDOW);
            for uuid in reader.uuids(trail..end)? {
                cursor.seek(trail)?;
                self.trail(uuid, &mut cursor)?;
                bar.inc(1);
                trail += 1;
            }
        }
        bar.finish_and_clear();
        self.flush()
    }

    /// Prints the trails of these UUIDs, in the order of the database, each once.
    fn some(&mut self, uuids: &[Uuid], args: &Args) -> Result<(), Failure> {
        let reader = &self.database.reader;
        let mut uuids = uuids.to_vec();
        uuids.sort_unstable();
        uuids.dedup();
        let found = reader.trail_ids(&uuids)?;
        let asked = uuids.len();
        let found: Vec<(u64, Uuid)> =
            found.into_iter().zip(uuids).filter_map(|(id, uuid)| Some((id?, uuid))).collect();
        if !args.compat && found.len() < asked {
            let text = match found.is_empty() {
                true => format!("none of the {asked} UUIDs is in the database"),
                false => {
                    format!("{} of {asked} UUIDs are not in the database", asked - found.len())
                }
            };
            if found.is_empty() {
                return Err(Failure::Nothing(text));
            }
            output::note(&text);
        }
        self.printer.head(&mut self.output)?;
        let bar = progress::bar(found.len() as u64, "trails", args.output == "-");
        // A trail asks for a unit of the table of trails and one of its own, or a few.
        let window = (self.database.plan_units / 2).max(1) as usize;
        for window in found.chunks(window) {
            let trails: Vec<u64> = window.iter().map(|&(trail, _)| trail).collect();
            reader.prefetch_trails(&trails)?;
            for &(trail, uuid) in window {
                // A cursor of its own: one that goes on to the next trail reads ahead.
                self.trail(uuid, &mut reader.trail(trail)?)?;
                bar.inc(1);
            }
        }
        bar.finish_and_clear();
        self.flush()
    }

    /// Takes the events of the trail that `cursor` is on.
    fn trail(&mut self, uuid: Uuid, cursor: &mut Trail<'_, Store>) -> Result<(), Failure> {
        self.batch.steps.push(Step::Begin(uuid));
        loop {
            match cursor.next_event() {
                Ok(Some(event)) => {
                    self.batch.steps.push(Step::Event(event.time));
                    let wanted = self.printer.fields.iter();
                    let items = wanted.map(|&field| event.items[usize::from(field) - 1]);
                    self.batch.items.extend(items);
                }
                Ok(None) => break,
                Err(error) => return self.broken(error),
            }
            if self.batch.is_full() {
                self.flush()?;
            }
        }
        self.batch.steps.push(Step::End);
        Ok(())
    }

    /// Prints what was read before the damage, so that the output says how far it went.
    fn broken(&mut self, error: Error) -> Result<(), Failure> {
        self.flush()?;
        Err(error.into())
    }

    fn flush(&mut self) -> Result<(), Failure> {
        self.printer.values.fetch(&self.batch.items)?;
        self.printer.print(&self.batch, &mut self.output)?;
        self.batch.steps.clear();
        self.batch.items.clear();
        Ok(())
    }
}

/// Decoded events whose values are still numbers.
struct Batch {
    steps: Vec<Step>,
    /// For each event, its items, one for each column that is a field.
    items: Vec<Item>,
    items_max: usize,
}

enum Step {
    /// A trail begins.
    Begin(Uuid),
    /// An event, with its time.
    Event(u64),
    /// The trail is over.
    End,
}

impl Batch {
    fn new(database: &Database) -> Batch {
        let items_max = if database.is_remote() { BATCH_REMOTE } else { BATCH_LOCAL };
        Batch { steps: Vec::new(), items: Vec::new(), items_max }
    }

    fn is_full(&self) -> bool {
        self.steps.len() >= self.items_max || self.items.len() >= self.items_max
    }
}

/// What a line looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    Csv { delimiter: u8, header: bool },
    Json { no_empty: bool },
    Trails,
}

struct Printer<'d> {
    layout: Layout,
    compat: bool,
    columns: Vec<Column>,
    /// The fields of the columns that are fields, in their order.
    fields: Vec<u16>,
    values: Values<'d>,
    line: Vec<u8>,
    uuid: Uuid,
    /// Whether the trail's first event is still to come.
    first: bool,
}

impl<'d> Printer<'d> {
    fn new(args: &Args, database: &'d Database, columns: Vec<Column>) -> Printer<'d> {
        let layout = match (args.json_trails, args.json) {
            (true, _) => Layout::Trails,
            (_, true) => Layout::Json { no_empty: args.json_no_empty },
            _ => Layout::Csv { delimiter: args.delimiter, header: args.csv_header },
        };
        let form = match layout {
            _ if args.compat => Form::Plain,
            Layout::Csv { delimiter, .. } => Form::Csv(delimiter),
            Layout::Json { .. } | Layout::Trails => Form::Json,
        };
        let fields = columns.iter().filter_map(|column| match column.content {
            Content::Field(number) => Some(number),
            _ => None,
        });
        Printer {
            layout,
            compat: args.compat,
            fields: fields.collect(),
            columns,
            values: Values::new(database, form),
            line: Vec::new(),
            uuid: Uuid::default(),
            first: true,
        }
    }

    /// Prints what comes before all events.
    fn head(&mut self, output: &mut Output) -> Result<(), Failure> {
        let Layout::Csv { delimiter, header: true } = self.layout else { return Ok(()) };
        let mut line = Vec::new();
        for (n, column) in self.columns.iter().enumerate() {
            if n > 0 {
                line.push(delimiter);
            }
            match self.compat {
                true => line.extend_from_slice(column.name.as_bytes()),
                false => render::csv(&mut line, column.name.as_bytes(), delimiter),
            }
        }
        line.push(b'\n');
        output.put(&line)
    }

    fn print(&mut self, batch: &Batch, output: &mut Output) -> Result<(), Failure> {
        let mut items = batch.items.iter().copied();
        for step in &batch.steps {
            self.line.clear();
            match (step, self.layout) {
                (Step::Begin(uuid), Layout::Trails) => {
                    self.line.extend_from_slice(
                        format!("{{\"uuid\":\"{uuid}\",\"events\":[").as_bytes(),
                    );
                    self.first = true;
                }
                (Step::Begin(uuid), _) => self.uuid = *uuid,
                (Step::Event(time), layout) => {
                    // There is an item for each field of each event of the batch.
                    let mut items = items.by_ref().take(self.fields.len());
                    match layout {
                        Layout::Csv { delimiter, .. } => self.csv(*time, &mut items, delimiter)?,
                        Layout::Json { no_empty } => self.json(*time, &mut items, no_empty)?,
                        Layout::Trails => self.event(*time, &mut items)?,
                    }
                }
                (Step::End, Layout::Trails) => self.line.extend_from_slice(b"]}\n"),
                (Step::End, _) => {}
            }
            output.put(&self.line)?;
        }
        Ok(())
    }

    fn csv(
        &mut self,
        time: u64,
        items: &mut dyn Iterator<Item = Item>,
        delimiter: u8,
    ) -> Result<(), Failure> {
        for (n, column) in self.columns.iter().enumerate() {
            if n > 0 {
                self.line.push(delimiter);
            }
            let form = if self.compat { Form::Plain } else { Form::Csv(delimiter) };
            match column.content {
                Content::Uuid => form.render(&mut self.line, self.uuid.to_string().as_bytes()),
                Content::Time => form.render(&mut self.line, time.to_string().as_bytes()),
                Content::Empty => {}
                Content::Field(_) => {
                    if let Some(item) = items.next() {
                        self.values.append(item, &mut self.line)?;
                    }
                }
            }
        }
        if self.line.is_empty() && !self.compat {
            // A lone empty field: an empty line is no record to many readers.
            self.line.extend_from_slice(b"\"\"");
        }
        self.line.push(b'\n');
        Ok(())
    }

    fn json(
        &mut self,
        time: u64,
        items: &mut dyn Iterator<Item = Item>,
        no_empty: bool,
    ) -> Result<(), Failure> {
        self.line.push(b'{');
        for column in &self.columns {
            let item = match column.content {
                Content::Field(_) => items.next(),
                _ => None,
            };
            let empty = column.content == Content::Empty || item.is_some_and(Item::is_null);
            if no_empty && empty {
                continue;
            }
            if self.line.len() > 1 {
                self.line.extend_from_slice(b", ");
            }
            // Names consist of letters, digits, `_`, `-` and `%`.
            self.line.extend_from_slice(format!("\"{}\": ", column.name).as_bytes());
            // JSON brings its own quotes; the C tool's values have none.
            let quote: &[u8] = if self.compat || item.is_none() { b"\"" } else { b"" };
            self.line.extend_from_slice(quote);
            match (column.content, item) {
                (Content::Uuid, _) => self.line.extend_from_slice(self.uuid.to_string().as_bytes()),
                (Content::Time, _) => self.line.extend_from_slice(time.to_string().as_bytes()),
                (_, Some(item)) => self.values.append(item, &mut self.line)?,
                (_, None) => {}
            }
            self.line.extend_from_slice(quote);
        }
        self.line.extend_from_slice(b"}\n");
        Ok(())
    }

    fn event(&mut self, time: u64, items: &mut dyn Iterator<Item = Item>) -> Result<(), Failure> {
        if !std::mem::take(&mut self.first) {
            self.line.push(b',');
        }
        self.line.extend_from_slice(format!("[{time}").as_bytes());
        for item in items {
            self.line.push(b',');
            self.values.append(item, &mut self.line)?;
        }
        self.line.push(b']');
        Ok(())
    }
}
