//! `init`, `put`, `get`, `del` and `scan`.

use std::{
    io::{self, IsTerminal, Read, Write},
    ops::Bound,
};

use s3db::{Backend, Db, Key, Options, PAYLOAD_BYTES_MAX, Payload, StoreError};
use serde_json::json;

use crate::output::{Failure, Output, collection, open};

#[derive(clap::Args)]
#[command(after_help = "Examples:
  s3db init file:///tmp/db
  s3db init file:///tmp/db users orders
  s3db init file:///tmp/db --backend sqs-fifo --shards 4
  (umask 077; echo \"1 $(openssl rand -hex 32)\" > keys); s3db init file:///tmp/db users --keys keys")]
pub(crate) struct Init {
    /// Where the database is to be, as in file:///tmp/db
    url: String,
    /// Collections to create
    collections: Vec<String>,
    /// What carries commits: s3-log (objects, a commit is one put), sqs-standard or sqs-fifo
    #[arg(long, default_value = "s3-log", value_parser = backend)]
    backend: Backend,
    /// Queues of pending updates, for the backends that have them: 1 to 1000
    #[arg(long, default_value_t = 16)]
    shards: u32,
}

fn backend(name: &str) -> Result<Backend, String> {
    let names = Backend::ALL.map(Backend::name).join(", ");
    Backend::named(name).ok_or_else(|| format!("one of {names}"))
}

pub(crate) async fn init(args: &Init, output: &Output) -> Result<(), Failure> {
    let Init { url, collections, backend, shards } = args;
    let (backend, shards, keys) = (*backend, *shards, output.keys()?);
    let options = Options { backend, shards, keys, has_worker: false, ..Options::default() };
    let (db, is_new) = match Db::create(url, &options).await {
        Ok(db) => (db, true),
        // With collections to create, a database that is there is welcome.
        Err(StoreError::Exists(_)) if !collections.is_empty() => {
            (Db::open_with(url, &options).await?, false)
        }
        Err(error) => return Err(error.into()),
    };
    for name in collections {
        db.create_collection(name).await?;
    }
    let database = db.store().database();
    let (backend, is_encrypted) = (database.backend.name(), database.is_encrypted);
    let encrypted = if is_encrypted { ", encrypted" } else { "" };
    let text = match is_new {
        true => format!("created {url}, log backend {backend}{encrypted}"),
        false => String::new(),
    };
    output.say(
        &text,
        &json!({
            "url": url, "created": is_new, "backend": backend, "encrypted": is_encrypted,
            "collections": collections,
        }),
    )?;
    output.close(db).await
}

#[derive(clap::Args)]
#[command(after_help = "Examples:
  s3db put file:///tmp/db users ada '{\"born\": 1815}'
  s3db put file:///tmp/db users portrait < ada.png
  s3db put file:///tmp/db users ada x --create     fails if there is a record")]
pub(crate) struct Put {
    /// The database
    url: String,
    /// The collection
    collection: String,
    /// The key: 1 to 1024 bytes
    key: String,
    /// The payload: up to 32 KiB. Left out, it is read from standard input
    payload: Option<String>,
    /// Fail if there is a record of this key
    #[arg(long, conflicts_with = "update")]
    create: bool,
    /// Fail if there is no record of this key
    #[arg(long)]
    update: bool,
}

pub(crate) async fn put(args: &Put, output: &Output) -> Result<(), Failure> {
    let (key, payload) = (Key::new(&args.key)?, payload(args.payload.as_deref())?);
    let db = open(&args.url, output).await?;
    let of = collection(&db, &args.url, &args.collection).await?;
    let mut txn = db.begin();
    if args.create {
        txn.create(&of, &key, payload).await?;
    } else if args.update {
        txn.update(&of, &key, payload).await?;
    } else {
        txn.put(&of, &key, payload)?;
    }
    txn.commit().await?;
    output.say("", &json!({"committed": 1}))?;
    output.close(db).await
}

fn payload(given: Option<&str>) -> Result<Payload, Failure> {
    let Some(text) = given else {
        let mut bytes = Vec::new();
        // One byte more than there may be tells that there are too many.
        let most = PAYLOAD_BYTES_MAX as u64 + 1;
        let read = io::stdin().lock().take(most).read_to_end(&mut bytes);
        read.map_err(|error| Failure::Told(format!("standard input: {error}")))?;
        return Ok(Payload::new(bytes)?);
    };
    Ok(Payload::new(text)?)
}

#[derive(clap::Args)]
#[command(after_help = "Exit code 3 when there is no such record.

Examples:
  s3db get file:///tmp/db users ada
  s3db get file:///tmp/db users portrait > ada.png")]
pub(crate) struct Get {
    /// The database
    url: String,
    /// The collection
    collection: String,
    /// The key
    key: String,
}

pub(crate) async fn get(args: &Get, output: &Output) -> Result<(), Failure> {
    let key = Key::new(&args.key)?;
    let db = open(&args.url, output).await?;
    let of = collection(&db, &args.url, &args.collection).await?;
    let found = db.begin().read(&of, &key).await?;
    if output.json {
        let payload = found.as_ref().map(ToString::to_string);
        output.say("", &json!({"key": key.to_string(), "payload": payload}))?;
    } else if let Some(payload) = &found {
        let mut out = io::stdout().lock();
        out.write_all(payload.as_bytes())?;
        // A file gets the bytes as they are; a person gets a line.
        if out.is_terminal() {
            writeln!(out)?;
        }
        out.flush()?;
    }
    output.close(db).await?;
    found.map(drop).ok_or(Failure::NoRecord)
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
    /// The key
    key: String,
}

pub(crate) async fn del(args: &Del, output: &Output) -> Result<(), Failure> {
    let key = Key::new(&args.key)?;
    let db = open(&args.url, output).await?;
    let of = collection(&db, &args.url, &args.collection).await?;
    let mut txn = db.begin();
    txn.delete(&of, &key)?;
    txn.commit().await?;
    output.say("", &json!({"committed": 1}))?;
    output.close(db).await
}

#[derive(clap::Args)]
#[command(
    after_help = "One line per record: key, tab, payload. All but printable ASCII is escaped as in \\x1b, so that a line is a record.

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
    /// Only keys
    #[arg(long)]
    keys: bool,
}

pub(crate) async fn scan(args: &Scan, output: &Output) -> Result<(), Failure> {
    let prefix = args.prefix.as_deref().filter(|prefix| !prefix.is_empty());
    let key = |text: &str| Key::new(text);
    let from = args.from.as_deref().or(prefix).map(key).transpose()?;
    let to = args.to.as_deref().map(key).transpose()?;
    let db = open(&args.url, output).await?;
    let of = collection(&db, &args.url, &args.collection).await?;
    let txn = db.begin();
    let from = from.as_ref().map_or(Bound::Unbounded, Bound::Included);
    let to = to.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
    let mut records = txn.range(&of, from, to);
    let mut out = io::BufWriter::new(io::stdout());
    let mut left = args.limit.unwrap_or(u64::MAX);
    while left > 0 {
        left -= 1;
        let Some(record) = records.next().await? else { break };
        let is_over = |prefix: &str| !record.key.as_bytes().starts_with(prefix.as_bytes());
        if prefix.is_some_and(is_over) {
            break;
        }
        let (key, payload) = (record.key.to_string(), record.payload.to_string());
        match (output.json, args.keys) {
            (true, true) => writeln!(out, "{}", json!({"key": key}))?,
            (true, false) => writeln!(out, "{}", json!({"key": key, "payload": payload}))?,
            (false, true) => writeln!(out, "{key}")?,
            (false, false) => writeln!(out, "{key}\t{payload}")?,
        }
    }
    out.flush()?;
    output.close(db).await
}
