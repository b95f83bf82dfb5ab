//! `index`: records found by what they say.

use std::{
    io::{self, Write},
    ops::Bound,
};

use s3db::{IndexCheck, SearchBy};
use serde_json::json;

use crate::{
    escape,
    output::{Failure, Fresh, Output, Progress, collection, open},
};

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Create an index and fill it with the records that are there
    Create(Create),
    /// Fill an index again: goes on with one that was stopped, mends one that is ready
    Build(Build),
    /// The indexes of a collection
    List(List),
    /// Print records in the order of their search keys
    Find(Find),
    /// Compare an index with its records
    Check(Check),
    /// Drop an index
    Drop(Drop),
}

#[derive(clap::Args)]
pub(crate) struct Of {
    /// The database
    url: String,
    /// The collection
    collection: String,
    /// The index
    index: String,
}

#[derive(clap::Args)]
#[command(after_help = "Records are found by text, in its order, numbers too (index find --help).
Whatever reaches a page while this runs, or after it was stopped, brings its entry along; \
run it again to go on.

Examples:
  s3db index create file:///tmp/db users born json:born
  s3db index create file:///tmp/db users country part:,:2
  s3db index create file:///tmp/db words text payload")]
pub(crate) struct Create {
    #[command(flatten)]
    of: Of,
    /// What records are found by: payload, part:SEPARATOR:NUMBER (separator: one character,
    /// tab, or a byte as 0x1f; the first part is 0), or json:FIELD
    by: String,
}

#[derive(clap::Args)]
#[command(after_help = "Example:
  s3db index build file:///tmp/db users born")]
pub(crate) struct Build {
    #[command(flatten)]
    of: Of,
}

#[derive(clap::Args)]
#[command(after_help = "Example:
  s3db index list file:///tmp/db users")]
pub(crate) struct List {
    /// The database
    url: String,
    /// The collection
    collection: String,
}

#[derive(clap::Args)]
#[command(
    after_help = "One line per record: search key, tab, key, tab, payload, escaped as by scan.

Search keys are in the order of their text, numbers too: between 1800 and 1900 lie also 185 and 19. Ranges need as
many digits everywhere, as years of four have, or dates like 1815-12-10.

Examples:
  s3db index find file:///tmp/db users born 1815
  s3db index find file:///tmp/db users born --from 1900 --to 2000 --limit 10 --json"
)]
pub(crate) struct Find {
    #[command(flatten)]
    of: Of,
    /// The search key
    #[arg(conflicts_with_all = ["from", "to"])]
    key: Option<String>,
    /// The first search key
    #[arg(long)]
    from: Option<String>,
    /// The search key to stop before
    #[arg(long)]
    to: Option<String>,
    /// Records at most
    #[arg(long)]
    limit: Option<u64>,
    #[command(flatten)]
    fresh: Fresh,
}

#[derive(clap::Args)]
#[command(
    after_help = "Exit code 4 when records are missing: none ever should be, and build adds them. Records \
that are being changed have a newer write on its way to their page: sweep brings it there. Entries of \
what records said before, and keys that are no entries, are passed over by find.

Example:
  s3db index check file:///tmp/db users born"
)]
pub(crate) struct Check {
    #[command(flatten)]
    of: Of,
}

#[derive(clap::Args)]
#[command(
    after_help = "Puts each leaf of the collection again, without the index; if that is stopped, gc goes on with \
it. gc deletes the pages of the index.

Example:
  s3db index drop file:///tmp/db users born"
)]
pub(crate) struct Drop {
    #[command(flatten)]
    of: Of,
}

pub(crate) async fn run(command: &Command, output: &Output) -> Result<(), Failure> {
    match command {
        Command::Create(args) => {
            let by: SearchBy = args.by.parse()?;
            build(&args.of, Some(by), output).await
        }
        Command::Build(args) => build(&args.of, None, output).await,
        Command::List(args) => list(args, output).await,
        Command::Find(args) => find(args, output).await,
        Command::Check(args) => check(&args.of, output).await,
        Command::Drop(args) => drop_index(&args.of, output).await,
    }
}

async fn build(of: &Of, by: Option<SearchBy>, output: &Output) -> Result<(), Failure> {
    let Of { url, collection: name, index } = of;
    let db = open(url, output).await?;
    collection(&db, url, name).await?;
    let store = db.store();
    if let Some(by) = by {
        store.create_index(name, index, &by).await?;
    }
    let progress = Progress::new(output);
    let done = store.build_index(name, index, |n| progress.show(|| format!("{n} records"))).await;
    progress.end();
    let IndexCheck { records, missing, dangling, .. } = done?;
    let text = format!("{records} records, {missing} entries added, {dangling} removed");
    let value = json!({"records": records, "added": missing, "removed": dangling});
    output.finish(db, &text, &value).await
}

async fn drop_index(of: &Of, output: &Output) -> Result<(), Failure> {
    let Of { url, collection: name, index } = of;
    let db = open(url, output).await?;
    // Nothing of the index is looked at: it may be what is damaged.
    db.store().drop_index(name, index).await?;
    let value = json!({"dropped": index, "collection": name});
    output.finish(db, &format!("dropped index {index} of {name}"), &value).await
}

async fn list(args: &List, output: &Output) -> Result<(), Failure> {
    let db = open(&args.url, output).await?;
    let of = collection(&db, &args.url, &args.collection).await?;
    for index in &of.indexes {
        let (name, is_ready) = (&index.name, index.is_ready);
        let by = index.by.as_ref().map_or("by hand".into(), SearchBy::to_string);
        let text = format!("{name}\t{by}\t{}", if is_ready { "ready" } else { "being built" });
        output.say(&text, &json!({"index": name, "by": by, "ready": is_ready}))?;
    }
    output.close(db).await
}

async fn find(args: &Find, output: &Output) -> Result<(), Failure> {
    let Of { url, collection: name, index } = &args.of;
    let key = |text: &Option<String>| text.as_deref().map(escape::key).transpose();
    let (only, from, to) = (key(&args.key)?, key(&args.from)?, key(&args.to)?);
    let db = open(url, output).await?;
    let of = collection(&db, url, name).await?;
    let txn = args.fresh.begin(&db, &of);
    let (from, to) = match &only {
        Some(key) => (Bound::Included(key), Bound::Included(key)),
        None => (
            from.as_ref().map_or(Bound::Unbounded, Bound::Included),
            to.as_ref().map_or(Bound::Unbounded, Bound::Excluded),
        ),
    };
    let mut found = txn.probe_range(&of, index, from, to).await?;
    let mut out = io::BufWriter::new(io::stdout());
    let progress = Progress::beside_lines(output);
    for done in 0..args.limit.unwrap_or(u64::MAX) {
        progress.show(|| format!("{done} records"));
        let Some((search, record)) = found.next().await? else { break };
        let (key, payload) = (record.key.to_string(), record.payload.to_string());
        let search = search.to_string();
        match output.json {
            true => {
                let value = json!({"search": search, "key": key, "payload": payload});
                writeln!(out, "{value}")?;
            }
            false => writeln!(out, "{search}\t{key}\t{payload}")?,
        }
    }
    progress.end();
    out.flush()?;
    output.close(db).await
}

async fn check(of: &Of, output: &Output) -> Result<(), Failure> {
    let Of { url, collection: name, index } = of;
    let db = open(url, output).await?;
    collection(&db, url, name).await?;
    let progress = Progress::new(output);
    let found =
        db.store().check_index(name, index, |n| progress.show(|| format!("{n} records"))).await;
    progress.end();
    let found = found?;
    let IndexCheck { records, entries, missing, changing, dangling, strange, .. } = found;
    let text = format!(
        "{records} records, {entries} entries: {missing} records are missing, {changing} are being \
         changed, {dangling} entries are of what records said before, {strange} are no entries"
    );
    let value = json!({
        "records": records, "entries": entries, "missing": missing, "changing": changing,
        "dangling": dangling, "strange": strange,
    });
    output.say(&text, &value)?;
    output.close(db).await?;
    if found.is_wrong() { Err(Failure::Problems) } else { Ok(()) }
}
