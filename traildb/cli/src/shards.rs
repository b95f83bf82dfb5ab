//! Many databases as one: what the inputs of a command name, and what becomes of bad ones.
//!
//! ```text
//!   inputs --> expand --> names --> traildb::Shards, which opens each when its turn comes
//!                         with --keep-going: what fails is told and left out, exit code 4
//! ```

use std::{
    collections::HashSet,
    ffi::{OsStr, OsString},
    fs,
    os::unix::fs::MetadataExt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use traildb::shards::{Opened, ShardError};

use crate::{
    failure::Failure,
    open::{Cost, Database, Opener, Reading, Store, expand, shown, side, url_of},
    output,
};

/// Which databases.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Databases: files, directories, URLs (s3://bucket/key, https://host/path, file:///path),
    /// patterns among paths (logs/2016-*/*.tdb) and in buckets (s3://bucket/2016-*/*.tdb),
    /// directories of databases, with all that is below them, prefixes of buckets
    /// (s3://bucket/2016-01/), or @LIST with one on each line. If there is nothing at a path, PATH.tdb
    /// is tried. A URL of a database in the directory form ends in `/`. Options stand behind a `?`, as
    /// in s3://bucket/key?region=x.
    #[arg(short, long = "input", value_name = "PATH|URL", allow_hyphen_values = true)]
    input: Vec<OsString>,

    /// More databases.
    #[arg(value_name = "PATH|URL")]
    inputs: Vec<OsString>,

    /// Passes over databases that cannot be read, tells which, and exits with 4.
    #[arg(long)]
    keep_going: bool,

    /// The most databases that are open at the same time. What has to see all of them at once (dump,
    /// merge) refuses more.
    #[arg(long, value_name = "N", default_value = "1024",
          value_parser = clap::value_parser!(u32).range(1..))]
    open_max: u32,

    #[command(flatten)]
    reading: Reading,
}

/// What the inputs of a command name. A list may be a pipe, and what is in a directory may change: however
/// often the command begins anew, it is looked up once.
pub(crate) struct Named {
    /// Paths and URLs.
    pub(crate) names: Vec<OsString>,
    /// What was said of those that were passed over.
    told: Mutex<HashSet<String>>,
    cost: Cost,
}

/// The databases of a command. They are called as people may see them.
pub(crate) struct Shards<'a> {
    pub(crate) all: traildb::Shards<'a, Store, Failure>,
    pub(crate) opener: Arc<Opener<'a>>,
    keep_going: bool,
    /// Of those that were passed over, how many gave something before.
    in_part: AtomicUsize,
    /// Whether results are out, so that nothing can be done again.
    pub(crate) settled: Arc<AtomicBool>,
}

/// Why work on several databases that are open came to an end.
#[derive(Debug)]
pub(crate) enum Ended {
    /// By the one at this place: the others can do without it.
    At(usize, Failure),
    /// By none of them.
    All(Failure),
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Ended {
        Ended::All(failure)
    }
}

impl From<traildb::Error> for Ended {
    fn from(error: traildb::Error) -> Ended {
        Ended::All(error.into())
    }
}

impl From<ShardError> for Ended {
    fn from(error: ShardError) -> Ended {
        Ended::At(error.place, error.error.into())
    }
}

impl Args {
    /// What the inputs name; `default` if there are none, or none is an error.
    pub(crate) fn named(&self, default: Option<&str>) -> Result<Named, Failure> {
        let cost = Cost::none();
        let mut inputs: Vec<OsString> = self.input.iter().chain(&self.inputs).cloned().collect();
        if inputs.is_empty() {
            let text = "no database is named";
            inputs.push(default.ok_or_else(|| Failure::Usage(text.to_owned()))?.into());
        }
        let names = expand::databases(&inputs)?;
        if let Some(text) = repeated(&names) {
            output::note(&text);
        }
        Ok(Named { names, told: Mutex::default(), cost })
    }

    /// These databases. With an `index`, the one beside each is used.
    pub(crate) fn shards<'a>(
        &'a self,
        named: &'a Named,
        index: Option<&'a side::Args>,
    ) -> Result<Shards<'a>, Failure> {
        self.shards_within(named, index, u64::MAX)
    }

    /// The same, where bytes that are fetched take `fetched_max` bytes of memory at most, over all
    /// inputs, unless a pager needs more.
    pub(crate) fn shards_within<'a>(
        &'a self,
        named: &'a Named,
        index: Option<&'a side::Args>,
        fetched_max: u64,
    ) -> Result<Shards<'a>, Failure> {
        let opener = Arc::new(Opener::new(&self.reading, index, fetched_max, &named.cost));
        if let Some(index) = index {
            index.check(named.names.len())?;
        }
        let mut all = traildb::Shards::default().open_max(self.open_max as usize);
        if self.keep_going {
            all = all.keep_going(move |_, failure| {
                // What is wrong with the command line is wrong for all.
                let passes = matches!(failure, Failure::Failed(_) | Failure::Damaged(_));
                if passes && named.is_news(failure) {
                    output::note(&format!("passed over: {failure}"));
                }
                passes
            });
        }
        for name in &named.names {
            let opener = opener.clone();
            all.add(shown(name), move || opener.open(name));
        }
        let (in_part, settled) = (AtomicUsize::new(0), Arc::default());
        Ok(Shards { all, opener, keep_going: self.keep_going, in_part, settled })
    }
}

impl Named {
    /// Whether this was not said before.
    fn is_news(&self, failure: &Failure) -> bool {
        let text = failure.to_string();
        self.told.lock().unwrap_or_else(PoisonError::into_inner).insert(text)
    }
}

/// What to say where a database is there more than once, if one is.
fn repeated(names: &[OsString]) -> Option<String> {
    let mut seen = HashSet::new();
    let mut again = names.iter().filter(|name| !seen.insert(Identity::of(name)));
    let first = again.next()?;
    let first = shown(first);
    Some(match again.count() {
        0 => format!("{first} is named again, and counts again"),
        n => format!("{first} and {n} more are named again, and count again"),
    })
}

/// What tells one database from another.
#[derive(PartialEq, Eq, Hash)]
enum Identity<'n> {
    /// Device and number of a file or a directory, whatever its path.
    File(u64, u64),
    Name(&'n OsStr),
}

impl<'n> Identity<'n> {
    fn of(name: &'n OsStr) -> Identity<'n> {
        let stat = match url_of(name) {
            Some(_) => None,
            None => fs::metadata(traildb::existing(name.as_ref())).ok(),
        };
        stat.map_or(Identity::Name(name), |stat| Identity::File(stat.dev(), stat.ino()))
    }
}

impl Shards<'_> {
    /// Opens all databases, several at a time.
    pub(crate) fn open_all(&self, threads: usize) -> Result<Vec<Opened<Store>>, Failure> {
        self.all.open_all(threads)
    }

    /// Notes that a shard is passed over because of `failure`, or gives it back. With `in_part`,
    /// events of it were taken before.
    pub(crate) fn pass_over(
        &self,
        shard: usize,
        failure: Failure,
        in_part: bool,
    ) -> Result<(), Failure> {
        let failure = match failure {
            // A loss like any other.
            Failure::Index(text) if self.settled.load(Ordering::Relaxed) => Failure::Failed(text),
            failure => failure,
        };
        if !(self.keep_going && in_part) {
            return self.all.pass_over(shard, failure);
        }
        let add = |text| format!("{text}: it was read in part, and what was read stays");
        let failure = match failure {
            Failure::Failed(text) => Failure::Failed(add(text)),
            Failure::Damaged(text) => Failure::Damaged(add(text)),
            other => other,
        };
        self.all.pass_over(shard, failure)?;
        self.in_part.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Closes the database at a place, which is passed over because of `failure`, or gives it back.
    pub(crate) fn close(
        &self,
        open: &mut Vec<Opened<Store>>,
        place: usize,
        failure: Failure,
    ) -> Result<(), Failure> {
        self.pass_over(open[place].shard, failure, false)?;
        open.remove(place);
        Ok(())
    }

    /// Open databases, with what this command knows of how they are read.
    pub(crate) fn databases<'d>(&self, open: &'d [Opened<Store>]) -> Vec<Database<'d>> {
        open.iter().map(|one| self.opener.database(&one.name, &one.reader)).collect()
    }

    /// What was passed over, for JSON.
    pub(crate) fn losses_json(&self) -> Vec<serde_json::Value> {
        let losses = self.all.losses().into_iter();
        let json = |loss: traildb::shards::Loss| serde_json::json!({ "name": loss.name, "reason": loss.reason });
        losses.map(json).collect()
    }

    /// Exit code 4 if anything was passed over.
    pub(crate) fn result(&self) -> Result<(), Failure> {
        let (n, of) = (self.all.losses().len(), self.all.len());
        match (n, self.in_part.load(Ordering::Relaxed)) {
            (0, _) => Ok(()),
            (_, 0) => Err(Failure::Partial(format!("{n} of {of} databases were passed over"))),
            (_, part) => Err(Failure::Partial(format!(
                "{n} of {of} databases were passed over, {part} of these after a part of them"
            ))),
        }
    }
}
