//! Databases of a bucket, found by a pattern and queried as one: [`query`] is all that it takes.
//!
//! `sources` looks for names and knows no format; `traildb` knows databases and no network. A program
//! joins them: each name becomes a shard, which is opened when its turn comes, all under the budget
//! of one pager.

#![forbid(unsafe_code)]

use std::{error::Error, io};

use endpoint::{Endpoint, Settings};
use pager::Pager;
use sources::{Expand, Options};
use traildb::{
    Builder, Reader, Shards, Uuid, filter, index,
    shards::{Found, Query},
};

type AnyError = Box<dyn Error + Send + Sync>;

/// How much of the databases that `inputs` name a filter leaves.
fn query(inputs: &[String], filter: &str) -> Result<Found, AnyError> {
    let pager = Pager::builder().budget_bytes(32 << 20).build()?;
    let options = Options::default();
    let databases = Expand::new(".tdb").except(|name| name.ends_with(index::SUFFIX));
    let mut shards = Shards::default();
    for url in databases.names(inputs)? {
        let (pager, options) = (&pager, &options);
        shards.add(url.clone(), move || -> Result<_, AnyError> {
            Ok(Reader::new(pager.open(options.open(&url)?)?)?)
        });
    }
    println!("{} databases: {:?}", shards.len(), shards.names().map(shown).collect::<Vec<_>>());
    let filter = filter::parse(filter)?;
    shards.query(Query::default().filter(&filter).threads(2))
}

fn shown(url: &str) -> String {
    sources::expand::without_secrets(url)
}

fn main() -> Result<(), AnyError> {
    let endpoint = Endpoint::start(Settings { anonymous_reads: true, ..Settings::default() })?;
    let store = endpoint.store();
    store.create_bucket("logs")?;
    for key in ["2015-12/31.tdb", "2016-01/01.tdb", "2016-01/02.tdb", "2016-02/01.tdb"] {
        let bytes = database(key)?;
        store.put("logs", key, bytes.into(), Default::default(), &Default::default())?;
    }
    let url = |key: &str| {
        format!("s3://logs/{key}?anonymous&region=us-east-1&endpoint={}", endpoint.url())
    };

    let found = query(&[url("2016-*/*.tdb")], "page=/home & user!=bob")?;
    println!("of 2016: {} of {} events, {} users", found.events, found.events_all, found.users);
    assert_eq!((found.events, found.events_all, found.users), (3, 6, 1));
    let found = query(&[url("2016-01/"), url("2015-12/31.tdb")], "user=bob")?;
    println!("of January and New Year's Eve: {} events of bob", found.events);
    assert_eq!((found.events, found.users), (3, 1));
    Ok(())
}

/// An event of alice and one of bob.
fn database(name: &str) -> Result<Vec<u8>, AnyError> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("made.tdb");
    let mut builder = Builder::new(&["user", "page"])?;
    for (user, time) in [("alice", 10), ("bob", 20)] {
        let bytes = user.bytes().fold(0, |sum, byte| sum << 8 | u128::from(byte));
        builder.add(Uuid::from_number(bytes), time, &[user, "/home"])?;
    }
    builder.finish(&path)?;
    std::fs::read(&path).map_err(|error: io::Error| format!("{name}: {error}").into())
}
