//! `tdb merge`: many databases into one.
//!
//! ```text
//!   shards --> trails in the order of UUIDs --> Batch of items --> values --> Builder --> database
//! ```

use std::{path::PathBuf, time::Instant};

use indicatif::{HumanCount, HumanDuration};
use traildb::{Builder, Uuid, filter::Expr};

use crate::{
    bytes,
    failure::Failure,
    filtering,
    open::Database,
    output, progress,
    select::{self, Names},
    shards::{self, Shards},
    stats, threads,
    values::{Form, Values},
    walk::{Batch, Step, Walk},
    writing,
};

const NOTES: &str = "\
Databases with the same fields in the same order keep it. Otherwise the new database has the fields
of all, in the order of their names, and events are empty in fields that their database lacks.
Trails of one UUID become one; of events with equal times those of the first database come first.

Examples:
  tdb merge monday.tdb tuesday.tdb -o both.tdb
  tdb merge logs/2016-*/*.tdb -o year.tdb --memory 4GiB
  tdb merge logs -o pages.tdb -F 'action=view & user!=' --from 2016-06
  tdb merge @shards.txt -u @users.txt -o some.tdb --keep-going";

/// Merges databases into a new one.
#[derive(clap::Args)]
#[command(after_help = format!("{}\n\n{NOTES}", filtering::HELP))]
pub(crate) struct Args {
    #[command(flatten)]
    inputs: shards::Args,

    /// The database to be made; `.tdb` is added to a package's name that lacks it.
    #[arg(short, long, value_name = "PATH", default_value = "a")]
    output: PathBuf,

    /// Takes these trails only: UUIDs separated by commas, or @FILE with one on each line.
    #[arg(short, long, value_name = "UUIDS|@FILE")]
    uuids: Option<String>,

    #[command(flatten)]
    filter: filtering::Args,

    #[command(flatten)]
    writing: writing::Args,

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
    let began = Instant::now();
    let target = args.writing.target(&args.output)?;
    let uuids = args.uuids.as_deref().map(|list| select::uuids(list, false)).transpose()?;
    let expr = args.filter.expr()?;
    let shards = args.inputs.shards(None)?;
    let open = shards.open_all(args.threads.count())?;
    let filled = fill(args, expr.as_ref(), uuids, &shards, &open);
    // What a failed merge has cost is worth knowing too.
    args.stats.print(open.iter().map(|(_, database)| database), &shards.opener);
    let builder = filled?;
    drop(open);

    let spinner = progress::working("writing");
    let written = builder.finish(&target.path)?;
    spinner.finish_and_clear();
    if args.verbose {
        output::note(&format!(
            "{}: {} events, {} trails, {} in {:#}",
            target.path.display(),
            HumanCount(written.events),
            HumanCount(written.trails),
            bytes::show(written.bytes),
            HumanDuration(began.elapsed()),
        ));
    }
    shards.losses.result(shards.names.len())
}

/// A builder with the events of all shards.
fn fill(
    args: &Args,
    expr: Option<&Expr>,
    uuids: Option<Vec<Uuid>>,
    shards: &Shards<'_>,
    open: &[(String, Database)],
) -> Result<Builder, Failure> {
    let names = union(open)?;
    let columns = select::fields(&names);
    let mut builder = args.writing.builder(names.all(), &args.threads)?;
    let mut walk = Walk::new(open, &columns, &names)?;
    if let Some(expr) = expr {
        walk.filter(filtering::bind(expr, open.iter().map(|(_, database)| database), false)?);
    }
    if let Some(uuids) = uuids {
        walk.select(uuids)?;
    }
    let share = open.len();
    let values = open.iter().map(|(_, database)| Values::new(database, Form::Bytes, share));
    let mut values: Vec<Values<'_>> = values.collect();
    let bar = progress::bar(walk.len(), "trails", false);
    let fields = columns.len();
    // A trail may go over several batches, of which only the first begins it.
    let mut uuid = Uuid::default();
    walk.run(&shards.losses, &bar, |batch| {
        add(batch, &mut uuid, fields, &mut values, &mut builder)
    })?;
    bar.finish_and_clear();
    Ok(builder)
}

/// The fields of the new database, in their order.
fn union(open: &[(String, Database)]) -> Result<Names, Failure> {
    let mut names = Names::default();
    let mut same = true;
    for (_, database) in open {
        let fields = database.reader.fields()?;
        names.add(fields);
        same &= fields.names().eq(open[0].1.reader.fields()?.names());
    }
    if !same {
        names.sort();
    }
    Ok(names)
}

fn add(
    batch: &Batch,
    uuid: &mut Uuid,
    fields: usize,
    values: &mut [Values<'_>],
    builder: &mut Builder,
) -> Result<(), Failure> {
    for (values, items) in values.iter_mut().zip(&batch.items) {
        values.fetch(items)?;
    }
    let mut at = vec![0; values.len()];
    // Values that are too long to be kept, of one event.
    let mut long: Vec<Vec<u8>> = Vec::new();
    let mut event: Vec<&[u8]> = Vec::with_capacity(fields);
    for step in &batch.steps {
        match *step {
            Step::Begin(next) => *uuid = next,
            Step::End => {}
            Step::Event(time, shard) => {
                let shard = shard as usize;
                let items = &batch.items[shard][at[shard]..at[shard] + fields];
                at[shard] += fields;
                event.clear();
                event.extend(items.iter().map_while(|&item| values[shard].get(item)));
                if event.len() == fields {
                    builder.add(*uuid, time, &event)?;
                } else {
                    event.clear();
                    long.clear();
                    for &item in items {
                        let mut value = Vec::new();
                        values[shard].read(item, &mut value)?;
                        long.push(value);
                    }
                    builder.add(*uuid, time, &long)?;
                }
            }
        }
    }
    Ok(())
}
