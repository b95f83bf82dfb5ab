//! `tdb synth`: made-up events.

use std::path::PathBuf;

use traildb::{Builder, Options, synth};

use crate::{bytes, failure::Failure, output, progress};

/// Makes a database of made-up events, like those of a wiki's edit history.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  tdb synth --bytes 260MB -o edits.tdb
  tdb synth --events 5000000 --trails 400000 --seed 1 -o edits.tdb")]
pub(crate) struct Args {
    /// Number of events. Default: as --bytes says, or 1000000.
    #[arg(long, conflicts_with = "bytes")]
    events: Option<u64>,
    /// As many events as make a file of about this size, rather larger.
    #[arg(long, value_name = "SIZE", value_parser = bytes::parse)]
    bytes: Option<u64>,
    /// Number of trails. Default: a twelfth of the events.
    #[arg(long)]
    trails: Option<u64>,
    /// Number of titles to choose from. Default: a fifth of the events.
    #[arg(long)]
    titles: Option<u64>,
    /// Equal seeds give equal events.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The database to be made: a file that does not exist yet.
    #[arg(short, long, default_value = "a.tdb", allow_hyphen_values = true)]
    output: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let mut spec = match args.bytes {
        Some(bytes) => synth::Spec::of_bytes(bytes, args.seed),
        None => synth::Spec::of_events(args.events.unwrap_or(1_000_000), args.seed),
    };
    spec.trails = args.trails.unwrap_or(spec.trails);
    spec.titles = args.titles.unwrap_or(spec.titles);
    if spec.trails == 0 || spec.titles == 0 || spec.events < spec.trails {
        let text = "at least one trail, one title, and as many events as trails are needed";
        return Err(Failure::Usage(text.into()));
    }
    // Looked at again when it is put there: this look only spares the work in between.
    if args.output.symlink_metadata().is_ok() {
        return Err(Failure::file(&args.output, "exists already, and is not overwritten"));
    }
    let options = Options::default().keep_existing(true);
    let mut builder = Builder::with_options(&synth::FIELDS, options)?;
    let bar = progress::bar(spec.events, "events", false);
    synth::fill(&spec, &mut builder, |events| bar.set_position(events))?;
    bar.finish_and_clear();
    let written = builder.finish(&args.output)?;
    let path = args.output.display();
    output::note(&format!(
        "{path}: {} events, {} trails, {} bytes",
        written.events, written.trails, written.bytes
    ));
    Ok(())
}
