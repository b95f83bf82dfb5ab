//! Proves that the C library's `tdb` and ours are interchangeable: both make, dump, filter, merge and
//! index the same data, read each other's files, and must agree.
//!
//! ```text
//!   events --> theirs make --> file --> theirs dump ---+
//!     |                         +-----> ours dump -----+--> equal
//!     +------> ours make ----> file --> ours dump -----+
//!                               +-----> theirs dump ---+
//! ```
//!
//! Each data set is written by both tools in every form. Then each question (all events, a filter,
//! some trails, with an index or without) is asked of both tools about both files. Output is compared
//! byte for byte; only where two *files* are compared may events of equal times come in another
//! order, since the C library does not promise one.
//!
//! With `--v000` the C library is a client of `extmem serve` instead: see `v000.rs`.

#![forbid(unsafe_code)]

mod agree; // what is compared, and what came of it
mod checks; // the questions
mod events; // the data sets
mod tool; // the two programs
mod v000; // the C library as a client of our block server

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Parser;
use examples::table::Table;

use self::{agree::Report, events::Set, tool::Tool};

/// Compares the C library's `tdb` with ours on the same data.
#[derive(Parser)]
#[command(
    version,
    after_help = "\
Exit codes: 0 the tools agree, 1 they do not, 2 the command line is wrong or a tool is missing.

Examples:
  interop --theirs /usr/local/bin/tdb
  interop --theirs ./tdb --only edits,bytes -v --keep /tmp/interop
  interop --theirs ./tdb --db logs/*.tdb
  interop --v000 ./v000-c --db logs/*.tdb"
)]
struct Args {
    /// The C library's `tdb`.
    #[arg(long, value_name = "FILE", required_unless_present = "v000")]
    theirs: Option<PathBuf>,

    /// Instead: `v000-c`, the C library with its external protocol, reads the same data through
    /// `extmem serve`. `make interop-v000` compiles it.
    #[arg(long, value_name = "FILE", conflicts_with = "theirs")]
    v000: Option<PathBuf>,

    /// Our `tdb`. Default: the one beside this program.
    #[arg(long, value_name = "FILE")]
    ours: Option<PathBuf>,

    /// Which data sets, joined by commas. Default: all.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    only: Vec<String>,

    /// Events of your own as one more data set: comma separated, without quotes, a header that names
    /// uuid and time first.
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,

    /// Databases of your own, whoever made them: our tool makes each again, and the C tool reads both.
    /// With --v000 they are read as they are.
    #[arg(long, value_name = "PATH", num_args = 1..)]
    db: Vec<PathBuf>,

    /// Works in this folder and leaves it. Default: a folder that is removed.
    #[arg(long, value_name = "FOLDER")]
    keep: Option<PathBuf>,

    /// Names every comparison.
    #[arg(short, long)]
    verbose: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("interop: {message}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> Result<bool, String> {
    let ours = match &args.ours {
        Some(path) => path.clone(),
        None => std::env::current_exe().map_err(|e| e.to_string())?.with_file_name("tdb"),
    };
    let ours = Tool::ours(&ours)?;
    let scratch = tempfile::tempdir().map_err(|e| e.to_string())?;
    let root = args.keep.as_deref().unwrap_or(scratch.path());
    let sets = chosen(args)?;
    match (&args.v000, &args.theirs) {
        (Some(client), _) => served(args, client, &ours, &sets, root),
        (None, Some(theirs)) if !theirs.as_os_str().is_empty() => {
            both(args, &Tool::theirs(theirs)?, &ours, &sets, root)
        }
        _ => Err("say where the C library's tool is: make interop TDB=/path/to/tdb".into()),
    }
}

/// The data sets that were asked for.
fn chosen(args: &Args) -> Result<Vec<Set>, String> {
    let mut sets = events::sets();
    if let Some(csv) = &args.csv {
        sets.push(events::own(csv)?);
    }
    let known: Vec<&str> = sets.iter().map(|set| set.name).collect();
    if let Some(unknown) = args.only.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(format!("there is no data set {unknown:?}; there are {}", known.join(", ")));
    }
    sets.retain(|set| args.only.is_empty() || args.only.iter().any(|name| name == set.name));
    Ok(sets)
}

/// Has the C library read everything through our block server.
fn served(
    args: &Args,
    client: &Path,
    ours: &Tool,
    sets: &[Set],
    root: &Path,
) -> Result<bool, String> {
    let mut report = Report::new(args.verbose);
    let mut dbs = Vec::new();
    for set in sets {
        dbs.push(v000::make(set, ours, &root.join(set.name))?);
    }
    for db in dbs.iter().chain(&args.db) {
        eprintln!("== {}", db.display());
        v000::read(client, db, &mut report)?;
    }
    let [equal, differ, _] = report.counts();
    println!("{equal} comparisons agree, {differ} differ");
    Ok(differ == 0 && equal > 0)
}

/// Asks both tools everything.
fn both(
    args: &Args,
    theirs: &Tool,
    ours: &Tool,
    sets: &[Set],
    root: &Path,
) -> Result<bool, String> {
    for (command, option) in [
        ("dump", "--filter"),
        ("index", "--output"),
        ("merge", "--output"),
        ("make", "--no-bigrams"),
    ] {
        if !ours.knows(command, option) {
            println!("left out: our tool has no {command} {option}");
        }
    }
    let mut table = Table::new(["data set", "events", "fields", "equal", "differ", "C fails"]);
    let mut whole = Report::new(args.verbose);
    for set in sets {
        eprintln!("== {}", set.name);
        let mut report = Report::new(args.verbose);
        checks::all(set, theirs, ours, &root.join(set.name), &mut report)
            .map_err(|e| format!("{}: {e}", set.name))?;
        let [equal, differ, fails] = report.counts().map(|n| n.to_string());
        let (events, fields) = (set.rows.len().to_string(), set.fields.len().to_string());
        table.row([set.name.to_owned(), events, fields, equal, differ, fails]);
        whole.add(report);
    }
    for (n, db) in args.db.iter().enumerate() {
        eprintln!("== {}", db.display());
        let mut report = Report::new(args.verbose);
        checks::again(db, theirs, ours, &root.join(format!("again{n}")), &mut report)?;
        let [equal, differ, fails] = report.counts().map(|n| n.to_string());
        table.row([db.display().to_string(), "".into(), "".into(), equal, differ, fails]);
        whole.add(report);
    }
    let [equal, differ, fails] = whole.counts();
    println!("{table}");
    println!("{equal} comparisons agree, {differ} differ; {fails} times the C tool failed itself");
    Ok(differ == 0 && equal > 0)
}
