//! `init`, `put`, `get`, `del`, `scan` and `drop`.

use std::{
    fs::File,
    io::{self, IsTerminal, Read, Write},
    ops::Bound,
    path::PathBuf,
};

use s3db::{
    Address, Backend, Content, Database, Db, Isolation, Key, Options, PAYLOAD_BYTES_MAX,
    StoreError, Value,
};
use serde_json::json;

use crate::{
    escape,
    output::{Failure, Fresh, Output, Progress, client, collection, open},
};

#[derive(clap::Args)]
#[command(after_help = "Examples:
  s3db init file:///tmp/db
  s3db init file:///tmp/db users orders
  s3db init file:///tmp/db --backend sqs-fifo --shards 4
  s3db init file:///tmp/db prices --curated
  s3db init file:///tmp/db orders --writers 7,feed
  s3db init file:///tmp/db accounts --isolation serializable
  (umask 077; echo \"1 $(openssl rand -hex 32)\" > keys); s3db init file:///tmp/db users --keys keys")]
pub(crate) struct Init {
    /// Where the database is to be, as in file:///tmp/db
    url: String,
    /// Collections to create
    collections: Vec<String>,
    /// What carries commits: s3-log (objects, a commit is one put), sqs-standard or sqs-fifo. Left out it is
    /// s3-log, or what the database that is there has; so with --shards
    #[arg(long, value_parser = backend)]
    backend: Option<Backend>,
    /// Create the collections as curated: what is written there waits until `pending approve`
    #[arg(long, requires = "collections")]
    curated: bool,
    /// Only these clients may write to the collections (--client of every command), in a database that is
    /// created so
    #[arg(
        long,
        value_name = "HEX",
        value_delimiter = ',',
        value_parser = client,
        requires = "collections",
        conflicts_with_all = ["curated", "isolation"]
    )]
    writers: Vec<u64>,
    /// Queues of pending updates, for the backends that have them: 1 to 1000, 16 if not said
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    shards: Option<u32>,
    /// The collections are for transactions that are isolated from each other, at this level at least:
    /// snapshot or serializable
    #[arg(long, value_parser = isolation, conflicts_with = "curated")]
    isolation: Option<Isolation>,
}

fn isolation(name: &str) -> Result<Isolation, String> {
    let names = Isolation::ALL.map(Isolation::name).join(" or ");
    Isolation::named(name).ok_or(names)
}

fn backend(name: &str) -> Result<Backend, String> {
    let names = Backend::ALL.map(Backend::name).join(", ");
    Backend::named(name).ok_or_else(|| format!("one of {names}"))
}

pub(crate) async fn init(args: &Init, output: &Output) -> Result<(), Failure> {
    let Init { url, collections, backend, curated, shards, isolation, writers } = args;
    if isolation.is_some() && collections.is_empty() {
        return Err(Failure::Told("--isolation is of collections: name some".to_owned()));
    }
    let has_writers = !writers.is_empty();
    let new = Options { has_writers, ..output.options()? };
    let options = Options {
        backend: backend.unwrap_or(new.backend),
        shards: shards.unwrap_or(new.shards),
        ..new
    };
    let (db, is_new) = match Db::create(url, &options).await {
        Ok(db) => (db, true),
        // With collections to create, a database that is there is welcome.
        Err(StoreError::Exists(_)) if !collections.is_empty() => {
            let db = Db::open_with(url, &options).await?;
            is_as_wanted(&db.store().database(), *backend, *shards)?;
            (db, false)
        }
        Err(error) => return Err(error.into()),
    };
    let progress = Progress::new(output);
    for (done, name) in collections.iter().enumerate() {
        progress.show(|| format!("{done} of {} collections", collections.len()));
        match (curated, isolation) {
            _ if has_writers => db.create_for_writers(name, writers).await?,
            (true, _) => db.create_curated(name).await?,
            (false, Some(isolation)) => db.create_isolated_collection(name, *isolation).await?,
            (false, None) => db.create_collection(name).await?,
        };
    }
    progress.end();
    let database = db.store().database();
    let (backend, is_encrypted) = (database.backend.name(), database.is_encrypted);
    let encrypted = if is_encrypted { ", encrypted" } else { "" };
    let text = match is_new {
        true => format!("created {}, log backend {backend}{encrypted}", Address::shown(url)),
        false => String::new(),
    };
    let value = json!({
        "url": Address::shown(url), "created": is_new, "backend": backend,
        "encrypted": is_encrypted,
        "collections": collections, "curated": curated,
        "isolation": isolation.map(Isolation::name),
        "writers": writers.iter().map(|client| format!("{client:x}")).collect::<Vec<_>>(),
    });
    output.finish(db, &text, &value).await
}

/// What a database has it was created with, and nothing changes it.
fn is_as_wanted(
    there: &Database,
    backend: Option<Backend>,
    shards: Option<u32>,
) -> Result<(), Failure> {
    let told = |what: String| {
        Err(Failure::Told(format!(
            "the database is there, {what}: it was created so, and stays so"
        )))
    };
    if let Some(wanted) = backend.filter(|wanted| *wanted != there.backend) {
        return told(format!("with backend {} and not {}", there.backend.name(), wanted.name()));
    }
    match shards.filter(|wanted| *wanted != there.shards) {
        Some(wanted) => told(format!("with {} shards and not {wanted}", there.shards)),
        None => Ok(()),
    }
}

#[derive(clap::Args)]
#[command(
    after_help = "There is no way back. What others commit to the collection meanwhile, or what waits for its \
pages, is dropped with it or put aside in quarantine, where the next sweeps count it. Its name is free at once; \
gc deletes its pages and blobs. Not for collections created with --isolation, nor while something waits for a \
curator.

Example:
  s3db drop file:///tmp/db users"
)]
pub(crate) struct Drop {
    /// The database
    url: String,
    /// The collection
    collection: String,
}

pub(crate) async fn drop_collection(args: &Drop, output: &Output) -> Result<(), Failure> {
    let Drop { url, collection: name } = args;
    let db = open(url, output).await?;
    db.drop_collection(name).await?;
    output.finish(db, &format!("dropped collection {name}"), &json!({"dropped": name})).await
}

#[derive(clap::Args)]
#[command(after_help = "Examples:
  s3db put file:///tmp/db users ada '{\"born\": 1815}'
  s3db put file:///tmp/db users portrait < ada.png
  s3db put file:///tmp/db users film --file ada.mkv
  s3db put file:///tmp/db users ada x --create     fails if there is a record")]
pub(crate) struct Put {
    /// The database
    url: String,
    /// The collection
    collection: String,
    /// The key, escaped as scan prints it: 1 to 1024 bytes
    key: String,
    /// The payload. Left out, it is read from standard input, up to 16 GiB of it
    payload: Option<String>,
    /// Read the payload from this file
    #[arg(long, value_name = "PATH", conflicts_with = "payload")]
    file: Option<PathBuf>,
    /// Fail if there is a record of this key
    #[arg(long, conflicts_with = "update")]
    create: bool,
    /// Fail if there is no record of this key
    #[arg(long)]
    update: bool,
}

pub(crate) async fn put(args: &Put, output: &Output) -> Result<(), Failure> {
    let key = escape::key(&args.key)?;
    let input = match &args.file {
        Some(path) => Some(File::open(path).map_err(|error| unreadable(args, &error))?),
        None => None,
    };
    let db = open(&args.url, output).await?;
    let of = collection(&db, &args.url, &args.collection).await?;
    // Before anything is read: what may not be put needs no upload.
    let mut txn = db.begin_for(&of);
    if args.create || args.update {
        let is_there = txn.contains(&of, &key).await?;
        let told = |what: &str| Err(Failure::Told(format!("record {key} of {} {what}", of.name)));
        match is_there {
            true if args.create => return told("exists already"),
            false if args.update => return told("is not there"),
            _ => {}
        }
    }
    let value = written(&db, args, input, output).await?;
    txn.put_value(&of, &key, value)?;
    let done = txn.commit().await?;
    output.close(db).await?;
    output.committed(done, false)
}

/// Reads what is to be put, and puts it as it comes, without holding more than a part of it.
async fn written(
    db: &Db,
    args: &Put,
    file: Option<File>,
    output: &Output,
) -> Result<Value, Failure> {
    let of = file.as_ref().and_then(|file| file.metadata().ok()).map(|file| file.len());
    let of = of.filter(|bytes| *bytes > 0);
    let mut input: Box<dyn Read> = match (&args.payload, file) {
        (Some(payload), _) => Box::new(payload.as_bytes()),
        (None, Some(file)) => Box::new(file),
        (None, None) => Box::new(io::stdin().lock()),
    };
    let mut writing = db.write_blob().await?;
    let mut buffer = vec![0; 1 << 20];
    let (progress, mut done) = (Progress::new(output), 0);
    loop {
        match input.read(&mut buffer) {
            Ok(0) => {
                let value = writing.finish().await;
                progress.end();
                return Ok(value?);
            }
            Ok(len) => {
                progress.bytes(done, of);
                writing.write(&buffer[..len]).await?;
                done += len as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(args, &error)),
        }
    }
}

fn unreadable(args: &Put, error: &io::Error) -> Failure {
    Failure::Told(match &args.file {
        Some(path) => format!("{}: {error}", path.display()),
        None => format!("standard input: {error}"),
    })
}

#[derive(clap::Args)]
#[command(after_help = "Exit code 3 when there is no such record.

Examples:
  s3db get file:///tmp/db users ada
  s3db get file:///tmp/db users ada --fresh       what somebody just committed, too
  s3db get file:///tmp/db users portrait > ada.png")]
pub(crate) struct Get {
    /// The database
    url: String,
    /// The collection
    collection: String,
    /// The key, escaped as scan prints it
    key: String,
    #[command(flatten)]
    fresh: Fresh,
}

pub(crate) async fn get(args: &Get, output: &Output) -> Result<(), Failure> {
    let key = escape::key(&args.key)?;
    let db = open(&args.url, output).await?;
    let of = collection(&db, &args.url, &args.collection).await?;
    let mut found = args.fresh.begin(&db, &of).open_content(&of, &key).await?;
    if output.json {
        let payload = match &mut found {
            Some(content) => Some(text(&key, content).await?),
            None => None,
        };
        output.say("", &json!({"key": key.to_string(), "payload": payload}))?;
    } else if let Some(content) = &mut found {
        let mut out = io::stdout().lock();
        let (progress, of, mut done) = (Progress::beside_lines(output), content.bytes(), 0);
        while let Some(bytes) = content.next().await? {
            progress.bytes(done, Some(of));
            out.write_all(&bytes)?;
            done += bytes.len() as u64;
        }
        progress.end();
        // A file gets the bytes as they are; a person gets a line.
        if out.is_terminal() {
            writeln!(out)?;
        }
        out.flush()?;
    }
    output.close(db).await?;
    found.map(drop).ok_or(Failure::NoRecord)
}

/// A payload as scripts write it, in memory.
async fn text(key: &Key, content: &mut Content) -> Result<String, Failure> {
    if content.bytes() > PAYLOAD_BYTES_MAX as u64 {
        return Err(Failure::Told(format!(
            "record {key} has {} bytes, and JSON of it is made in memory, of {PAYLOAD_BYTES_MAX} at most: \
             read it without --json",
            content.bytes()
        )));
    }
    let mut text = String::new();
    while let Some(bytes) = content.next().await? {
        text.push_str(&bytes.escape_ascii().to_string());
    }
    Ok(text)
}

#[derive(clap::Args)]
#[command(after_help = "Success whether there was a record or not: nothing is read.

Example:
  s3db del file:///tmp/db users ada")]
pub(crate) struct Del {
    /// The database
    url: String,
    /// The collection
    collection: String,
    /// The key, escaped as scan prints it
    key: String,
}

pub(crate) async fn del(args: &Del, output: &Output) -> Result<(), Failure> {
    let key = escape::key(&args.key)?;
    let db = open(&args.url, output).await?;
    let of = collection(&db, &args.url, &args.collection).await?;
    let mut txn = db.begin_for(&of);
    txn.delete(&of, &key)?;
    let done = txn.commit().await?;
    output.close(db).await?;
    output.committed(done, false)
}

#[derive(clap::Args)]
#[command(
    after_help = "One line per record: key, tab, payload. All but printable ASCII is escaped as in \\x1b, so that a line is a record;
keys are taken as they are printed, here and by get, put, del, index find and txn.

Examples:
  s3db scan file:///tmp/db users
  s3db scan file:///tmp/db users --from a --to b --limit 10
  s3db scan file:///tmp/db users --prefix user/ --json | jq .key"
)]
pub(crate) struct Scan {
    /// The database
    url: String,
    /// The collection
    collection: String,
    /// The first key
    #[arg(long, conflicts_with = "prefix")]
    from: Option<String>,
    /// The key to stop before
    #[arg(long, conflicts_with = "prefix")]
    to: Option<String>,
    /// Keys that begin so
    #[arg(long)]
    prefix: Option<String>,
    /// Records at most
    #[arg(long)]
    limit: Option<u64>,
    /// Keys alone, without what is stored under them
    #[arg(long)]
    only_keys: bool,
    #[command(flatten)]
    fresh: Fresh,
}

pub(crate) async fn scan(args: &Scan, output: &Output) -> Result<(), Failure> {
    let prefix = args.prefix.as_deref().filter(|prefix| !prefix.is_empty());
    let from = args.from.as_deref().or(prefix).map(escape::key).transpose()?;
    let to = args.to.as_deref().map(escape::key).transpose()?;
    let prefix = prefix.map(escape::unescape).transpose()?;
    let db = open(&args.url, output).await?;
    let of = collection(&db, &args.url, &args.collection).await?;
    let txn = args.fresh.begin(&db, &of);
    let from = from.as_ref().map_or(Bound::Unbounded, Bound::Included);
    let to = to.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
    let mut records = txn.range(&of, from, to);
    let mut out = io::BufWriter::new(io::stdout());
    let progress = Progress::beside_lines(output);
    let most = args.limit.unwrap_or(u64::MAX);
    for done in 0..most {
        progress.show(|| format!("{done} records"));
        let (key, content) = if args.only_keys {
            (records.next_key().await?, None)
        } else {
            records.next_content().await?.unzip()
        };
        let Some(key) = key else { break };
        if prefix.as_ref().is_some_and(|prefix| !key.as_bytes().starts_with(prefix)) {
            break;
        }
        match (output.json, content) {
            (true, None) => writeln!(out, "{}", json!({"key": key.to_string()}))?,
            (true, Some(mut content)) => {
                let payload = text(&key, &mut content).await?;
                writeln!(out, "{}", json!({"key": key.to_string(), "payload": payload}))?;
            }
            (false, None) => writeln!(out, "{key}")?,
            (false, Some(mut content)) => {
                write!(out, "{key}\t")?;
                while let Some(bytes) = content.next().await? {
                    write!(out, "{}", bytes.escape_ascii())?;
                }
                writeln!(out)?;
            }
        }
    }
    progress.end();
    out.flush()?;
    output.close(db).await
}
