//! Many databases as one: what the inputs of a command name, and what becomes of bad ones.
//!
//! ```text
//!   inputs --> expand --> names --> traildb::Shards, which opens each when its turn comes
//!                         with --keep-going: what fails is told and left out, exit code 4
//! ```

use std::sync::Arc;

use traildb::shards::Opened;

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
}

impl Args {
    /// The databases that the inputs name; `default` if there are none, or none is an error. With an
    /// `index`, the one beside each is used.
    pub(crate) fn shards<'a>(
        &'a self,
        default: Option<&str>,
        index: Option<&'a side::Args>,
    ) -> Result<Shards<'a>, Failure> {
        let mut inputs: Vec<String> = self.input.iter().chain(&self.inputs).cloned().collect();
        if inputs.is_empty() {
            let text = "no database is named";
            inputs.push(default.ok_or_else(|| Failure::Usage(text.to_owned()))?.to_owned());
        }
        let opener = Arc::new(Opener::new(&self.reading, index));
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
        Ok(Shards { all, opener })
    }
}

impl Shards<'_> {
    /// Opens all databases, several at a time.
    pub(crate) fn open_all(&self, threads: usize) -> Result<Vec<Opened<Store>>, Failure> {
        self.all.open_all(threads)
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
        match self.all.losses().len() {
            0 => Ok(()),
            n => {
                let of = self.all.len();
                Err(Failure::Partial(format!("{n} of {of} databases were passed over")))
            }
        }
    }
}
