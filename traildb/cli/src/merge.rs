//! `tdb merge`: many databases into one.
//!
//! ```text
//!   shards, one after another --> Batch of items --> Appender: numbers there, numbers here
//!                                                       --> Builder --> database
//! ```

use std::{path::PathBuf, time::Instant};

use traildb::{Appender, Builder, Event, Uuid, shards::Opened};

use crate::{
    failure::Failure,
    filtering,
    open::{Database, Store},
    progress,
    select::{self, Names},
    selection::{self, Selection},
    shards::{self, Ended, Named, Shards},
    stats::{self, Tally},
    threads,
    values::{Form, Values},
    walk::{Asked, Batch, Step, Walk},
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

    /// The database to be made: a path, to which `.tdb` is added where a package lacks it, or
    /// s3://bucket/key, which takes options behind a `?` as inputs do.
    #[arg(short, long, value_name = "PATH|URL", default_value = "a", allow_hyphen_values = true)]
    output: PathBuf,

    #[command(flatten)]
    selection: selection::Args,

    #[command(flatten)]
    writing: writing::Args,

    #[command(flatten)]
    threads: threads::Args,

    #[command(flatten)]
    stats: stats::Args,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let target = args.writing.target(&args.output)?;
    let selection = args.selection.read(false)?;
    let named = args.inputs.named(None)?;
    selection.without_damaged_index(|selection| merge(args, &target, &named, selection))
}

/// Merges what is selected into `target`.
fn merge(
    args: &Args,
    target: &writing::Target,
    named: &Named,
    selection: &Selection<'_>,
) -> Result<(), Failure> {
    let began = Instant::now();
    let mut memory = args.writing.memory();
    let parts = Parts::of(memory.bytes);
    let shards = args.inputs.shards_within(named, selection.index, parts.fetched)?;
    let open = shards.open_all(args.threads.count())?;
    let databases = shards.databases(&open);
    if memory.bytes > 0 {
        memory.reserved = parts.batch.min(BATCH_BYTES_MAX) + OPEN_BYTES * open.len() as u64;
        if databases.iter().any(Database::is_remote) {
            memory.reserved += shards.opener.budget() + parts.batch + parts.values;
        }
    }
    let filled = fill(args, target, selection, &shards, &open, &databases, (memory, parts));
    // What a failed merge has cost is worth knowing too, but not before it begins anew.
    if !matches!(filled, Err(Failure::Index(_))) {
        args.stats.print(&Tally::of(&databases), &shards.opener);
    }
    let builder = filled?;
    drop(open);

    args.writing.write(builder, target, began)?;
    shards.result()
}

/// What an open database holds that is small, beside what is mapped or fetched.
const OPEN_BYTES: u64 = 160 << 10;
/// What events of local inputs take on their way.
const BATCH_BYTES_MAX: u64 = 4 << 20;

/// How memory is shared where inputs come from afar; the rest is the builder's.
#[derive(Clone, Copy)]
struct Parts {
    /// For what the pager fetched, over all inputs.
    fetched: u64,
    /// For events on their way.
    batch: u64,
    /// For their values.
    values: u64,
}

impl Parts {
    /// Of `memory` bytes; 0 for no limit.
    fn of(memory: u64) -> Parts {
        match memory {
            0 => Parts { fetched: u64::MAX, batch: u64::MAX, values: u64::MAX },
            _ => Parts { fetched: memory / 4, batch: memory / 16, values: memory / 16 },
        }
    }
}

/// A builder with the events of all shards. Events of equal times stay in the order of the shards,
/// since the builder keeps the order in which they are added.
fn fill(
    args: &Args,
    target: &writing::Target,
    selection: &Selection<'_>,
    shards: &Shards<'_>,
    open: &[Opened<Store>],
    databases: &[Database<'_>],
    (memory, parts): (writing::Memory, Parts),
) -> Result<Builder, Failure> {
    selection.check(databases)?;
    let (mut walks, mut left) = (Vec::new(), Vec::new());
    let mut found = 0;
    for (at, database) in databases.iter().enumerate() {
        match walk(selection, &open[at..=at], &databases[at..=at]) {
            Ok((mut walk, asked)) => {
                walk.hold_at_most(parts.batch);
                found += asked.map_or(0, |asked| asked.found);
                walks.push(walk);
                left.push(*database);
            }
            Err(Ended::At(_, failure)) => shards.pass_over(open[at].shard, failure, false)?,
            Err(Ended::All(failure)) => return Err(failure),
        }
    }
    // Of none at all nothing is made.
    if left.is_empty() {
        shards.result()?;
    }
    if let Some(uuids) = &selection.uuids
        && found == 0
        && !(left.is_empty() || uuids.is_empty())
    {
        // They may be in one that was passed over.
        shards.result()?;
        return Err(selection::none_there(uuids.len(), left.len() as u64));
    }
    let names = union(&left)?;
    let mut builder = args.writing.builder(names.all(), &args.threads, target, memory)?;
    let bar = progress::bar(walks.iter().map(Walk::trails_max).sum(), "trails", false);
    for (walk, database) in walks.into_iter().zip(left) {
        let fields = database.reader.fields()?;
        let become_of = |name| names.find(name).expect("the union has all names");
        let fields: Vec<u16> = fields.names().map(become_of).collect();
        let mut values = Values::new(database, Form::Bytes, 1);
        // With its table it takes twice as much.
        values.keep_at_most(parts.values / 2);
        let mut joining = Joining {
            appender: builder.appender(database.reader, &fields)?,
            values,
            is_remote: database.is_remote(),
            fields: fields.len(),
            uuid: Uuid::default(),
            begun: false,
        };
        walk.run(shards, &bar, |batch, lose| match joining.add(batch) {
            Ok(()) => Ok(()),
            Err(Ended::At(place, failure)) => lose(place, failure, joining.begun),
            Err(Ended::All(failure)) => Err(failure),
        })?;
    }
    bar.finish_and_clear();
    Ok(builder)
}

/// The walk over one shard, with all of its fields, and which of the UUIDs are there.
fn walk<'d>(
    selection: &Selection<'_>,
    open: &'d [Opened<Store>],
    databases: &[Database<'_>],
) -> Result<(Walk<'d>, Option<Asked>), Ended> {
    let own = Names::of(databases)?;
    let mut walk = Walk::new(open, databases, &select::fields(&own), &own)?;
    let asked = selection.apply(&mut walk, databases)?;
    Ok((walk, asked))
}

/// The fields of the new database, in their order.
fn union(databases: &[Database<'_>]) -> Result<Names, Failure> {
    let mut names = Names::default();
    let mut same = true;
    for database in databases {
        let fields = database.reader.fields()?;
        names.add(fields);
        same &= fields.names().eq(databases[0].reader.fields()?.names());
    }
    if !same {
        names.sort();
    }
    Ok(names)
}

/// One shard on its way into the builder.
struct Joining<'b, 'd> {
    appender: Appender<'b, 'd, Store>,
    values: Values<'d>,
    is_remote: bool,
    fields: usize,
    /// Of the trail that is being added: it may go over several batches, and only the first begins
    /// it.
    uuid: Uuid,
    /// Whether any event was added.
    begun: bool,
}

impl Joining<'_, '_> {
    /// Adds what is in `batch`. What the shard itself fails with is told apart from what the builder
    /// does.
    fn add(&mut self, batch: &Batch) -> Result<(), Ended> {
        let Joining { appender, values, fields, uuid, begun, .. } = self;
        let of_shard = |failure| Ended::At(0, failure);
        if self.is_remote {
            // Those that the builder has no number for yet, all in a few round trips.
            let unknown = batch.items[0].iter().copied().filter(|&item| !appender.knows(item));
            values.fetch(&unknown.collect::<Vec<_>>()).map_err(of_shard)?;
        }
        let mut items = &batch.items[0][..];
        for step in &batch.steps {
            match *step {
                Step::Begin(next) => *uuid = next,
                Step::End => {}
                Step::Event(time, _) => {
                    let (now, rest) = items.split_at(*fields);
                    items = rest;
                    let event = Event { time, items: now };
                    appender.add_with(*uuid, &event, |item, out| {
                        values.append(item, out).map_err(of_shard)
                    })?;
                    *begun = true;
                }
            }
        }
        Ok(())
    }
}
