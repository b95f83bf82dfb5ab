//! Many databases as one: what the inputs of a command name, and what becomes of bad ones.
//!
//! ```text
//!   inputs --> expand --> names --> traildb::Shards, which opens each when its turn comes
//!                         with --keep-going: what fails is told and left out, exit code 4
//! ```

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use traildb::shards::{Opened, ShardError};

use crate::{
    failure::Failure,
    open::{Database, Opener, Reading, Store, side, without_options},
    output,
};

/// Which databases.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Databases: files, directories, URLs (s3://bucket/key, https://host/path, file:///path),
    /// patterns among paths (logs/2016-*/*.tdb) and in buckets (s3://bucket/2016-*/*.tdb),
    /// directories of databases, prefixes of buckets (s3://bucket/2016-01/), or @LIST with one on
    /// each line. If there is nothing at a path, PATH.tdb is tried. A URL of a database in the
    /// directory form ends in `/`. Options stand behind a `?`, as in s3://bucket/key?region=x.
    #[arg(short, long = "input", value_name = "PATH|URL")]
    input: Vec<String>,

    /// More databases.
    #[arg(value_name = "PATH|URL")]
    inputs: Vec<String>,

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

/// The databases of a command.
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
    /// The databases that the inputs name; `default` if there are none, or none is an error. With an
    /// `index`, the one beside each is used.
    pub(crate) fn shards<'a>(
        &'a self,
        default: Option<&str>,
        index: Option<&'a side::Args>,
    ) -> Result<Shards<'a>, Failure> {
        self.shards_within(default, index, u64::MAX)
    }

    /// The same, where bytes that are fetched take `fetched_max` bytes of memory at most, over all
    /// inputs, unless a pager needs more.
    pub(crate) fn shards_within<'a>(
        &'a self,
        default: Option<&str>,
        index: Option<&'a side::Args>,
        fetched_max: u64,
    ) -> Result<Shards<'a>, Failure> {
        let mut inputs: Vec<String> = self.input.iter().chain(&self.inputs).cloned().collect();
        if inputs.is_empty() {
            let text = "no database is named";
            inputs.push(default.ok_or_else(|| Failure::Usage(text.to_owned()))?.to_owned());
        }
        let opener = Arc::new(Opener::new(&self.reading, index, fetched_max));
        let names = opener.databases(&inputs)?;
        if let Some(index) = index {
            index.check(names.len())?;
        }
        let mut all = traildb::Shards::default().open_max(self.open_max as usize);
        if self.keep_going {
            all = all.keep_going(|_, failure| {
                // What is wrong with the command line is wrong for all.
                let passes = matches!(failure, Failure::Failed(_) | Failure::Damaged(_));
                if passes {
                    output::note(&format!("passed over: {failure}"));
                }
                passes
            });
        }
        for name in names {
            let opener = opener.clone();
            all.add(name.clone(), move || opener.open(&name));
        }
        let (in_part, settled) = (AtomicUsize::new(0), Arc::default());
        Ok(Shards { all, opener, keep_going: self.keep_going, in_part, settled })
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
        let json = |loss: traildb::shards::Loss| serde_json::json!({ "name": without_options(&loss.name), "reason": loss.reason });
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
