//! The event database beside the C library: what writing takes, and how fast reading is.
//!
//! ```text
//!   events.csv --> peer write -----> ours.tdb   --> peer scan, values, filter, uuids, items
//!          +-----> peer-c write ---> theirs.tdb --> peer-c ...           (and each on the other's)
//! ```
//!
//! Every figure is of a process of its own. `peer-c` is `examples/interop/peer.c`, compiled by
//! `make interop-peer` against an installed C library; without it our figures stand alone.

mod data;
mod figures;
mod index;

use std::path::{Path, PathBuf};

use examples::{
    measure::median,
    report::{Aim, Goal, Section},
};
use traildb::Reader;

use self::figures::{Figures, Side};

/// Where the events come from, and the other side.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Events for `tdb`: comma separated, no quotes, a header that starts with uuid,time and names
    /// `title`. Default: the file that BENCH_CSV names, or made up.
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,

    /// The C library's `tdb`, for its index; default: what TDB names. Figures of the library need
    /// `make interop-peer`.
    #[arg(long, value_name = "FILE")]
    tdb: Option<PathBuf>,

    /// How the events of --csv were made, for the report. Default: what BENCH_NOTE says.
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
}

/// Writes of each kind.
const WRITES: usize = 3;
/// Timed passes of a process, of which the median counts.
const PASSES: u32 = 3;
/// Trails and values chosen at random.
const UUIDS: u64 = 1000;
const ITEMS: u64 = 100;

/// One row of the table: the same work by both sides.
struct Row {
    what: String,
    unit: Unit,
    theirs: Option<f64>,
    ours: f64,
    /// Ours over theirs, the median of pairs that ran in turn.
    ratio: Option<f64>,
}

/// What a row's figures are.
#[derive(Clone, Copy)]
enum Unit {
    Seconds,
    Micros,
    /// Events of a pass, over its seconds, in millions.
    Rate,
    MiB,
    Bytes,
    Times,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Unit::Seconds => format!("{value:.2} s"),
            Unit::Micros => format!("{:.2} us", value * 1e6),
            Unit::Rate => format!("{:.1} M/s", value / 1e6),
            Unit::MiB => format!("{:.0} MiB", value / 1024.0),
            Unit::Bytes => format!("{value:.0}"),
            Unit::Times => format!("{value:.1}"),
        }
    }
}

/// The runs of both sides, in turn.
struct Pair {
    theirs: Vec<Figures>,
    ours: Vec<Figures>,
}

impl Pair {
    fn row(&self, what: impl Into<String>, unit: Unit, figure: impl Fn(&Figures) -> f64) -> Row {
        let of = |runs: &[Figures]| runs.iter().map(&figure).collect::<Vec<f64>>();
        let (theirs, ours) = (of(&self.theirs), of(&self.ours));
        let ratios: Vec<f64> = ours.iter().zip(&theirs).map(|(a, b)| a / b).collect();
        Row {
            what: what.into(),
            unit,
            theirs: (!theirs.is_empty()).then(|| median(&theirs)),
            ours: median(&ours),
            ratio: (!ratios.is_empty()).then(|| median(&ratios)),
        }
    }
}

/// Runs the same on both sides in turn. What they return must be the same.
fn both(
    rounds: usize,
    mut theirs: impl FnMut() -> Result<Option<Figures>, String>,
    mut ours: impl FnMut() -> Result<Figures, String>,
) -> Result<Pair, String> {
    let mut pair = Pair { theirs: Vec::new(), ours: Vec::new() };
    for _ in 0..rounds {
        let figures = ours()?;
        if let Some(other) = theirs()? {
            let (a, b) = ((figures.events, figures.sum), (other.events, other.sum));
            if a != b {
                return Err(format!("the two sides differ: {a:?} here, {b:?} there"));
            }
            pair.theirs.push(other);
        }
        pair.ours.push(figures);
    }
    Ok(pair)
}

pub(crate) fn run(rounds: usize, args: &Args) -> Result<Section, String> {
    let named = |given: &Option<PathBuf>, variable: &str| {
        let told = std::env::var_os(variable).filter(|value| !value.is_empty());
        given.clone().or(told.map(PathBuf::from))
    };
    let (csv, made) = data::events(named(&args.csv, "BENCH_CSV").as_deref())?;
    let folder = tempfile::tempdir_in(csv.parent().unwrap_or(Path::new("."))).map_err(text)?;
    let (ours, theirs) = (Side::ours()?, Side::theirs());
    let mut goals = Vec::new();
    let mut rows = Vec::new();

    let files = write(&csv, folder.path(), &ours, theirs.as_ref(), &mut rows, &mut goals)?;
    let title = data::first_title(&csv)?;
    for (whose, file) in files.each() {
        let sides = Sides { ours: &ours, theirs: theirs.as_ref(), rounds, file };
        read(&sides, whose, &title, &mut rows, &mut goals)?;
    }
    if let Some(tool) = named(&args.tdb, "TDB") {
        index::run(&tool, &files, rounds, &csv, &mut rows, &mut goals)?;
    }
    let told = std::env::var("BENCH_NOTE").ok().filter(|note| !note.is_empty());
    let note = if made { None } else { args.note.clone().or(told) };
    let events = events(&csv, &files.ours, made, note.as_deref())?;
    Ok(section(&events, theirs.is_some(), &rows, goals))
}

/// What the events are, as far as the database of them and whoever started this says so.
fn events(csv: &Path, database: &Path, made: bool, note: Option<&str>) -> Result<String, String> {
    let reader = Reader::open(database).map_err(text)?;
    let fields: Vec<&str> = reader.fields().map_err(text)?.names().collect();
    let name = csv.file_name().unwrap_or_default().to_string_lossy();
    let made = match (made, note) {
        (true, _) => ", made up by the seeded generator of `tdb synth`".to_owned(),
        (false, Some(note)) => format!(", made by `{note}`"),
        (false, None) => String::new(),
    };
    Ok(format!(
        "Events: {name}, {} events of {} trails with the fields {}{made}.",
        grouped(reader.events()),
        grouped(reader.trails()),
        fields.join(", "),
    ))
}

/// A number with commas between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let first = digits.len() % 3;
    let groups = digits.as_bytes()[first..].chunks(3).map(String::from_utf8_lossy);
    let head = (first > 0).then(|| digits[..first].into());
    head.into_iter().chain(groups).collect::<Vec<_>>().join(",")
}

/// The databases of the same events.
struct Files {
    ours: PathBuf,
    theirs: Option<PathBuf>,
}

impl Files {
    fn each(&self) -> Vec<(&'static str, &Path)> {
        match &self.theirs {
            Some(theirs) => vec![("the C library's file", theirs), ("our file", &self.ours)],
            None => vec![("our file", &self.ours)],
        }
    }
}

fn write(
    csv: &Path,
    folder: &Path,
    ours: &Side,
    theirs: Option<&Side>,
    rows: &mut Vec<Row>,
    goals: &mut Vec<Goal>,
) -> Result<Files, String> {
    let (mine, other) = (folder.join("ours.tdb"), folder.join("theirs.tdb"));
    for threads in [1, 2] {
        let pair = both(
            WRITES,
            || {
                let _ = std::fs::remove_file(&other);
                let made = folder.join("theirs");
                theirs.map(|side| side.run(&["write", path(csv)?, path(&made)?])).transpose()
            },
            || {
                let threads = format!("--threads={threads}");
                ours.run(&["write", path(csv)?, path(&mine)?, &threads])
            },
        )?;
        let name = format!("write, {threads} thread{}", if threads == 1 { "" } else { "s" });
        let row = pair.row(&*name, Unit::Seconds, |f| f.seconds[0]);
        goal(goals, &row, Aim::AtMost(if threads == 1 { 0.5 } else { 0.3 }));
        rows.push(row);
        rows.push(pair.row(format!("{name}: processor time"), Unit::Seconds, |f| f.cpu));
        let memory = pair.row(format!("{name}: peak RSS"), Unit::MiB, |f| f.rss_kib as f64);
        goal(goals, &memory, Aim::AtMost(0.7));
        rows.push(memory);
    }
    let size = |file: &Path| file.metadata().map(|stat| stat.len() as f64).map_err(text);
    let (bytes, theirs) = (size(&mine)?, theirs.map(|_| size(&other)).transpose()?);
    let ratio = theirs.map(|theirs| bytes / theirs);
    let row =
        Row { what: "bytes of the file".into(), unit: Unit::Bytes, theirs, ours: bytes, ratio };
    goal(goals, &row, Aim::AtMost(0.985));
    rows.push(row);
    Ok(Files { ours: mine, theirs: theirs.map(|_| other) })
}

/// The two sides, asked about the same file.
struct Sides<'s> {
    ours: &'s Side,
    theirs: Option<&'s Side>,
    rounds: usize,
    file: &'s Path,
}

impl Sides<'_> {
    fn ask(&self, what: &str, more: &[&str]) -> Result<Pair, String> {
        eprintln!("  {what} {}", self.file.display());
        let passes = PASSES.to_string();
        let mut words = vec![what, path(self.file)?, &passes];
        words.extend(more);
        let theirs = || self.theirs.map(|side| side.run(&words)).transpose();
        both(self.rounds, theirs, || self.ours.run(&words))
    }
}

fn read(
    sides: &Sides<'_>,
    whose: &str,
    title: &str,
    rows: &mut Vec<Row>,
    goals: &mut Vec<Goal>,
) -> Result<(), String> {
    // Rates are of all events, also where a filter lets few pass.
    let all = sides.ask("scan", &[])?;
    let events = all.ours[0].events as f64;
    let rate = |f: &Figures| events / median(&f.seconds);
    let of = |what: &str| format!("{what}, {whose}");
    let mut add = |row: Row, aim: Aim| {
        goal(goals, &row, aim);
        rows.push(row);
    };
    add(all.row(of("scan"), Unit::Rate, rate), Aim::AtLeast(2.0));
    let values = sides.ask("values", &[])?;
    add(values.row(of("scan with values"), Unit::Rate, rate), Aim::AtLeast(3.0));
    let filter = sides.ask("filter", &["title", title])?;
    add(filter.row(of("filtered scan"), Unit::Rate, rate), Aim::AtLeast(2.5));
    let uuids = sides.ask("uuids", &[&UUIDS.to_string()])?;
    let each = |f: &Figures| median(&f.seconds) / UUIDS as f64;
    add(uuids.row(of("a trail by its UUID, and its events"), Unit::Micros, each), Aim::None);
    let items = sides.ask("items", &["title", &ITEMS.to_string()])?;
    let each = |f: &Figures| median(&f.seconds) / ITEMS as f64;
    let row = items.row(of("a value's item, `title`"), Unit::Micros, each);
    // So many times as fast: the aim is of the inverse.
    if let Some(ratio) = row.ratio {
        let what = format!("{}: C library / ours", row.what);
        goals.push(Goal::new(what, 1.0 / ratio, Aim::AtLeast(100.0)));
    }
    rows.push(row);
    let first =
        items.row(of("the first of them, which builds an index"), Unit::Seconds, |f| f.first);
    rows.push(Row { theirs: None, ratio: None, ..first });
    Ok(())
}

/// Makes a goal of a row that was measured on both sides.
fn goal(goals: &mut Vec<Goal>, row: &Row, aim: Aim) {
    if let (Some(ratio), false) = (row.ratio, aim == Aim::None) {
        goals.push(Goal::new(format!("{}: ours / C library", row.what), ratio, aim));
    }
}

fn section(events: &str, beside: bool, rows: &[Row], goals: Vec<Goal>) -> Section {
    let other = match beside {
        true => {
            "Both sides run in turn, each figure in a process of its own: the library's in the program \
                 that `make interop-peer` compiles. Parsing is off the clock of writing; reading is one \
                 thread on a file that is in memory already."
        }
        false => {
            "The C library was not given: these are our figures alone. `make interop-peer`, before \
                 `make bench`, compiles the program that reads with it."
        }
    };
    let readings = match rows.iter().any(|row| matches!(row.unit, Unit::Times)) {
        true => format!(" {}", index::READINGS),
        false => String::new(),
    };
    let mut body = format!(
        "{events} {other}{readings}\n\n| | C library | ours | ours / C |\n| --- | --- | --- | --- |\n"
    );
    for row in rows {
        let theirs = row.theirs.map_or_else(String::new, |value| row.unit.show(value));
        let ratio = row.ratio.map_or_else(String::new, |ratio| format!("{ratio:.3}"));
        body += &format!("| {} | {theirs} | {} | {ratio} |\n", row.what, row.unit.show(row.ours));
    }
    Section {
        name: "tdb",
        title: "7. TrailDB beside the C library",
        question: "What does writing the same events take, how large is the file, and how fast is \
                   it read, compared with the original library on the same machine?",
        body,
        goals,
    }
}

fn path(path: &Path) -> Result<&str, String> {
    path.to_str().ok_or_else(|| format!("{}: the path is no UTF-8", path.display()))
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_commas() {
        let cases = [(0, "0"), (999, "999"), (1000, "1,000"), (51_091_456, "51,091,456")];
        for (number, expected) in cases {
            assert_eq!(grouped(number), expected);
        }
    }

    #[test]
    fn events_are_told_apart() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.tdb");
        let mut builder = traildb::Builder::new(&["user", "title"]).expect("good names");
        for time in 0..1200u64 {
            builder.add(traildb::Uuid::default(), time, &["a", "b"]).expect("a good event");
        }
        builder.finish(&path).expect("a database");
        let csv = Path::new("somewhere/edits.csv");
        let cases = [
            (true, None, ", made up by the seeded generator of `tdb synth`."),
            (false, None, "."),
            (false, Some("gen.py --seed 1"), ", made by `gen.py --seed 1`."),
        ];
        for (made, note, end) in cases {
            let text = events(csv, &path, made, note).expect("a database");
            let start = "Events: edits.csv, 1,200 events of 1 trails with the fields user, title";
            assert_eq!(text, format!("{start}{end}"));
        }
    }
}
