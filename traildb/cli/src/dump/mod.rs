//! `tdb dump`: events as CSV, as JSON, or a trail to a line.
//!
//! ```text
//!   shards --> trails in the order of UUIDs --> Batch of items --> values fetched together --> lines
//! ```
//!
//! A batch has a bound, and a trail may go over several: memory does not grow with the database,
//! and ten users take as many round trips as one.
//!
//! Of databases that are at hand, batches are rendered by several threads ahead of their turn:
//!
//! ```text
//!   walk --> batch 4 --> thread A --+
//!            batch 5 --> thread B --+--> in the order of batches --> output
//!                                   |
//!   a shard is lost at batch 3 -----+    what was rendered with it is rendered once more
//! ```

mod print; // events as lines

use std::{ffi::OsString, time::Instant};

use indicatif::{HumanCount, HumanDuration, ProgressBar};
use traildb::{
    ordered,
    shards::{Opened, ShardError},
};

use self::print::{Ahead, Layout, Printed, Printer};
use crate::{
    failure::Failure,
    filtering,
    open::{Database, Store},
    output::{self, Output},
    progress,
    select::{self, Column, Names},
    selection::{self, Selection},
    shards::{self, Ended, Named, Shards},
    stats::{self, Tally},
    threads,
    walk::{Asked, Piece, Walk},
};

/// The most threads that render: they get their events from one walk, which is some eight times as fast as
/// one of them.
const THREADS_MAX: usize = 8;
/// Batches for each thread that are rendered, or about to be, and not printed yet. Each takes up to 2 MiB
/// of events and [`print::AHEAD_BYTES`]: 12 MiB for a thread.
const AHEAD: u64 = 2;

const NOTES: &str = "\
A value that is not UTF-8 is {\"hex\":\"c3ff\"} in JSON, never a string. CSV is quoted as in RFC 4180
where it has to be, has lines that end with LF, and holds the bytes of values as they are.
Trails come in the order of the database, also with --uuids.
Beside what --budget bounds a dump holds values that it has rendered, 64 MiB and up to as much for finding
them, of all databases and threads together; and events on their way: 12 MiB for each thread of local
databases, 64 MiB where one is far away. A line is held whole, however long it is.

Examples:
  tdb dump -i wiki.tdb
  tdb dump -i wiki.tdb -c -d , --csv-header -f time,user,title -o events.csv
  tdb dump -i s3://bucket/wiki.tdb -j -u 00112233445566778899aabbccddeeff --stats
  tdb dump -i 's3://bucket/wiki.tdb?region=eu-west-1' -j -u @users.txt --budget 64MiB
  tdb dump -i https://host/wiki.tdb --json-trails --stats=json
  tdb dump 'logs/2016-*/*.tdb' -F 'user=alice & page!=' --from 2016-03-01 -j";

/// Prints the events of a database, or of some of its trails.
#[derive(clap::Args)]
#[command(
    after_help = format!("{}\n\n{NOTES}", filtering::HELP),
    mut_arg("threads", |arg| arg.help(
        "Threads that render events, up to 8, for local databases; so many databases are opened at once, \
         too. The output is the same with any number. Default: as many as the machine has processors"
    ))
)]
pub(crate) struct Args {
    #[command(flatten)]
    inputs: shards::Args,

    /// Where to print: a file that does not exist yet, a device or pipe, or `-` for stdout.
    #[arg(short, long, value_name = "FILE", default_value = "-", allow_hyphen_values = true)]
    output: OsString,

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
    #[arg(short, long, value_name = "FIELDS", allow_hyphen_values = true)]
    fields: Option<String>,

    #[command(flatten)]
    selection: selection::Args,

    /// Prints the names of the fields first.
    #[arg(long, conflicts_with_all = ["json", "json_trails"])]
    csv_header: bool,

    /// Leaves out values that are empty.
    #[arg(long, requires = "json")]
    json_no_empty: bool,

    /// Prints the bytes that the C library's tool prints: no quotes around CSV, no escapes in JSON,
    /// values cut at NUL bytes. What is no UUID is then passed over, finding none is no error, and a
    /// filter means what it does there.
    #[arg(long)]
    compat: bool,

    /// Says on stderr how much was printed and how long it took.
    #[arg(short, long)]
    verbose: bool,

    #[command(flatten)]
    threads: threads::Args,

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
    let selection = args.selection.read(args.compat)?;
    let named = args.inputs.named(Some("a"))?;
    selection.without_damaged_index(|selection| dump(args, &named, selection))
}

/// Prints what is selected.
fn dump(args: &Args, named: &Named, selection: &Selection<'_>) -> Result<(), Failure> {
    let shards = args.inputs.shards(named, selection.index)?;
    let mut open = shards.open_all(args.threads.count())?;
    let found = loop {
        let ended = match find(args, selection, &shards, &open) {
            Ok(found) => break Ok(found),
            Err(ended) => ended,
        };
        // Nothing is printed yet: all begins anew without it.
        let closed = match ended {
            Ended::At(place, failure) => shards.close(&mut open, place, failure),
            Ended::All(failure) => Err(failure),
        };
        if let Err(failure) = closed {
            break Err(failure);
        }
    };
    let databases = shards.databases(&open);
    let done = found.and_then(|found| print(args, found, &shards, &databases));
    // What a failed query has cost is worth knowing too, but not before it begins anew.
    if !matches!(done, Err(Failure::Index(_))) {
        args.stats.print(&Tally::of(&databases), &shards.opener);
    }
    done?;
    shards.result()
}

/// What is to be printed.
struct Found<'d> {
    columns: Vec<Column>,
    walk: Walk<'d>,
    asked: Option<Asked>,
}

fn find<'d>(
    args: &Args,
    selection: &Selection<'_>,
    shards: &Shards<'_>,
    open: &'d [Opened<Store>],
) -> Result<Found<'d>, Ended> {
    // Where none is left, there is nothing to say of fields.
    if open.is_empty() {
        shards.result()?;
    }
    let databases = shards.databases(open);
    let names = Names::of(&databases)?;
    let columns = select::columns(args.fields.as_deref(), &names, args.compat)?;
    selection.check(&databases)?;
    let mut walk = Walk::new(open, &databases, &columns, &names)?;
    let asked = selection.apply(&mut walk, &databases)?;
    Ok(Found { columns, walk, asked })
}

fn print(
    args: &Args,
    found: Found<'_>,
    shards: &Shards<'_>,
    databases: &[Database<'_>],
) -> Result<(), Failure> {
    let began = Instant::now();
    let Found { columns, walk, asked } = found;
    if let Some(asked) = asked
        && !args.compat
        && asked.found < asked.wanted
    {
        let of = if databases.len() > 1 { "databases" } else { "database" };
        let (found, wanted) = (asked.found, asked.wanted);
        if found == 0 {
            // They may be in one that was passed over.
            shards.result()?;
            return Err(selection::none_there(wanted, databases.len() as u64));
        }
        let missing = wanted - found;
        output::note(&format!("{missing} of {wanted} UUIDs are not in the {of}"));
    }
    let layout = match (args.json_trails, args.json) {
        (true, _) => Layout::Trails,
        (_, true) => Layout::Json { no_empty: args.json_no_empty },
        _ => Layout::Csv { delimiter: args.delimiter, header: args.csv_header },
    };
    // What waits for a network is not made faster by threads that wait for it too.
    let threads = match databases.iter().any(Database::is_remote) {
        true => 1,
        false => args.threads.count().min(THREADS_MAX),
    };
    let printers = if threads > 1 { threads + 1 } else { 1 };
    let printer = || Printer::new(layout, args.compat, columns.clone(), databases, printers);
    let mut output = Output::create(&args.output)?;
    output.tell(&shards.settled);
    let bar = progress::bar(walk.trails_max(), "trails", args.output == "-");
    let mut own = printer();
    own.head(&mut output)?;
    let walked = match threads {
        1 => walk.run(shards, &bar, |batch, lose| own.print(batch, &mut output, lose)),
        _ => print_ahead(walk, shards, &bar, threads, printer, &mut own, &mut output),
    };
    match walked {
        Err(Failure::Index(text)) => {
            return Err(match output.retract() {
                true => Failure::Index(text),
                false => Failure::Failed(text),
            });
        }
        walked => walked?,
    }
    bar.finish_and_clear();
    output.finish()?;
    if args.verbose {
        let Printed { events, trails } = own.printed();
        let (events, trails) = (HumanCount(events), HumanCount(trails));
        let took = HumanDuration(began.elapsed());
        output::note(&format!("{events} events of {trails} trails printed in {took:#}"));
    }
    Ok(())
}

/// Prints what is walked over: `threads` printers render it ahead, and `own` puts that into the output,
/// in order.
fn print_ahead<'d>(
    mut walk: Walk<'d>,
    shards: &Shards<'_>,
    bar: &ProgressBar,
    threads: usize,
    printer: impl Fn() -> Printer<'d> + Sync,
    own: &mut Printer<'d>,
    output: &mut Output,
) -> Result<(), Failure> {
    enum Done {
        Batch(Ahead),
        Failed(ShardError, bool),
    }
    let (mut fates, unwanted) = (walk.fates(shards), walk.unwanted());
    ordered::run(
        threads,
        AHEAD * threads as u64,
        std::iter::from_fn(|| walk.next(bar)),
        printer,
        |printer, piece| match piece {
            Piece::Batch(batch) => Done::Batch(printer.ahead(batch, &unwanted)),
            Piece::Failed(error, in_part) => Done::Failed(error, in_part),
        },
        |done| match done {
            Done::Batch(ahead) => own.take(ahead, output, &mut |place, failure, in_part| {
                fates.lose(place, failure, in_part)
            }),
            Done::Failed(error, in_part) => fates.failed(error, in_part),
        },
    )
}
