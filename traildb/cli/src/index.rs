//! `tdb index`: which trails an item is in, and which number a value has, in a file beside the
//! database.
//!
//! ```text
//!   shard --> every trail, every value --> sorted runs --> DATABASE.tdbidx
//! ```

use std::{
    ffi::OsStr,
    fs::File,
    io::{ErrorKind, Read},
    path::{Path, PathBuf},
    time::Instant,
};

use indicatif::{HumanCount, HumanDuration};
use traildb::index::{Build, path_of};

use crate::{
    bytes,
    failure::Failure,
    open::{shown, url_of},
    output, progress,
    shards::{self, Shards},
    stats::{self, Tally},
    threads,
};

const NOTES: &str = "\
`tdb query`, `tdb dump` and `tdb merge` with a filter find the index beside the database and look only
at trails that can match. Which number a value of a filter has, the index says too: of a lexicon only
the values are read that it points to. It says nothing of times and of items that must not be. An index belongs to its database alone: once that is written
anew, the index is ignored, and is to be made again.

Examples:
  tdb index -i edits.tdb
  tdb index logs/2016-*/*.tdb -T 8 -v
  tdb index s3://bucket/edits.tdb -o edits.tdb.tdbidx
  aws s3 cp edits.tdb.tdbidx s3://bucket/edits.tdb.tdbidx";

/// Makes the index of a database, DATABASE.tdbidx, so that filters look at few trails.
#[derive(clap::Args)]
#[command(after_help = NOTES)]
pub(crate) struct Args {
    #[command(flatten)]
    inputs: shards::Args,

    /// Where the index of a single database goes. An index that is there is replaced. Default:
    /// beside the database; a URL has no such place that could be written to.
    #[arg(short, long, value_name = "PATH", allow_hyphen_values = true)]
    output: Option<PathBuf>,

    /// Memory for sorting; beyond it, temporary files are written beside the index.
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = bytes::parse)]
    memory: u64,

    #[command(flatten)]
    threads: threads::Args,

    #[command(flatten)]
    stats: stats::Args,

    /// Says on stderr what was made and how long it took.
    #[arg(short, long)]
    verbose: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let named = args.inputs.named(Some("a"))?;
    let shards = args.inputs.shards(&named, None)?;
    let names = &named.names;
    let target = |name: &OsStr| -> Result<PathBuf, Failure> {
        match &args.output {
            Some(output) => Ok(output.clone()),
            None if url_of(name).is_some() => {
                let text = "the index of a URL needs a place: name a file with -o, and upload it";
                Err(Failure::Usage(text.to_owned()))
            }
            None => Ok(path_of(&traildb::existing(Path::new(name)))),
        }
    };
    if args.output.is_some() && names.len() != 1 {
        let text = format!("-o names the index of one database, not of {}", names.len());
        return Err(Failure::Usage(text));
    }
    let targets: Vec<PathBuf> = names.iter().map(|name| target(name)).collect::<Result<_, _>>()?;
    targets.iter().try_for_each(|target| replaceable(target))?;
    // One after the other: each keeps all threads busy.
    for (number, target) in targets.iter().enumerate() {
        if let Err(failure) = make(args, &shards, &names[number], target) {
            shards.all.pass_over(number, failure)?;
        }
    }
    shards.result()
}

/// Makes sure that nothing but an index is replaced.
fn replaceable(target: &Path) -> Result<(), Failure> {
    let failed = |error| Failure::file(target, error);
    let mut file = match File::open(target) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    let mut head = Vec::new();
    file.by_ref().take(8).read_to_end(&mut head).map_err(failed)?;
    match traildb::index::is_index(&head) {
        true => Ok(()),
        false => Err(Failure::file(target, "is there and is no index, so it is not overwritten")),
    }
}

fn make(args: &Args, shards: &Shards<'_>, name: &OsStr, target: &Path) -> Result<(), Failure> {
    let began = Instant::now();
    let reader = shards.opener.open(name)?;
    let fields = reader.fields()?.len() as u16;
    let mut total = reader.trails();
    for field in 1..=fields {
        total = total.saturating_add(reader.values(field)?);
    }
    let bar = progress::bar(total, "trails and values", false);
    let built = Build::new(&reader)
        .threads(args.threads.count())
        .memory_bytes(args.memory)
        .on_progress(|at| bar.set_position(at.trails.saturating_add(at.values)))
        .write(target);
    bar.finish_and_clear();
    let tally = Tally::of(&[shards.opener.database(&shown(name), &reader)]);
    args.stats.print(&tally, &shards.opener);
    let built = built?;
    if args.verbose {
        output::note(&format!(
            "{}: {} items in {} trails on average, {} in {:#}",
            target.display(),
            HumanCount(built.items),
            format_args!("{:.1}", built.pairs as f64 / built.items.max(1) as f64),
            bytes::show(built.bytes),
            HumanDuration(began.elapsed()),
        ));
    }
    Ok(())
}
