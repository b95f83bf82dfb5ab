//! Many databases as one: opened together, worked on in parallel, passed over when they are bad.
//!
//! ```text
//!   inputs --> expand --> names --> open --> work on each --> merge in the order of names
//!                           with --keep-going: what fails is told and left out, exit code 4
//! ```

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, AtomicUsize, Ordering},
    mpsc,
};

use crate::{
    failure::Failure,
    open::{Database, Opener, Reading, without_options},
    output,
};

/// Which databases.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Databases: files, directories, URLs (s3://bucket/key, https://host/path, file:///path),
    /// patterns among paths (logs/2016-*/*.tdb), directories of databases, or @LIST with one on each
    /// line. If there is nothing at a path, PATH.tdb is tried. A URL of a database in the directory
    /// form ends in `/`. Options stand behind a `?`, as in s3://bucket/key?region=x.
    #[arg(short, long = "input", value_name = "PATH|URL")]
    input: Vec<String>,

    /// More databases.
    #[arg(value_name = "PATH|URL")]
    inputs: Vec<String>,

    /// Passes over databases that cannot be read, tells which, and exits with 4.
    #[arg(long)]
    keep_going: bool,

    #[command(flatten)]
    reading: Reading,
}

/// The databases of a command.
pub(crate) struct Shards<'a> {
    pub(crate) names: Vec<String>,
    pub(crate) opener: Opener<'a>,
    pub(crate) losses: Losses,
}

/// Databases that were passed over.
pub(crate) struct Losses {
    keep_going: bool,
    lost: Mutex<Vec<Loss>>,
}

/// A database that could not be read, and why.
#[derive(Clone, Debug)]
struct Loss {
    name: String,
    reason: String,
}

impl Args {
    /// The databases that the inputs name; `a` if there are none, or none is an error.
    pub(crate) fn shards(&self, default: Option<&str>) -> Result<Shards<'_>, Failure> {
        let mut inputs: Vec<String> = self.input.iter().chain(&self.inputs).cloned().collect();
        if inputs.is_empty() {
            let text = "no database is named";
            inputs.push(default.ok_or_else(|| Failure::Usage(text.to_owned()))?.to_owned());
        }
        let losses = Losses { keep_going: self.keep_going, lost: Mutex::default() };
        let opener = Opener::new(&self.reading);
        Ok(Shards { names: opener.databases(&inputs)?, opener, losses })
    }
}

impl Shards<'_> {
    /// Opens all databases, several at a time.
    pub(crate) fn open_all(&self, threads: usize) -> Result<Vec<(String, Database)>, Failure> {
        let mut open = Vec::with_capacity(self.names.len());
        self.each(
            threads,
            |_, database| Ok(database),
            |name, database| {
                open.push((name.to_owned(), database));
                Ok(())
            },
        )?;
        Ok(open)
    }

    /// Opens each database and runs `work` on it, `threads` at a time; `merge` takes the results on
    /// this thread, in the order of names. What fails ends everything, or is passed over.
    pub(crate) fn each<T: Send>(
        &self,
        threads: usize,
        work: impl Fn(&str, Database) -> Result<T, Failure> + Sync,
        mut merge: impl FnMut(&str, T) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let next = AtomicUsize::new(0);
        let stop = AtomicBool::new(false);
        let run = |name: &str| work(name, self.opener.open(name)?);
        std::thread::scope(|scope| {
            let (sender, results) = mpsc::sync_channel(threads);
            for _ in 0..threads.clamp(1, self.names.len().max(1)) {
                let (sender, next, stop, run) = (sender.clone(), &next, &stop, &run);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let k = next.fetch_add(1, Ordering::Relaxed);
                        let Some(name) = self.names.get(k) else { return };
                        if sender.send((k, run(name))).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(sender);
            let mut early = std::collections::BTreeMap::new();
            let mut at = 0;
            let mut merged = Ok(());
            for (k, done) in &results {
                early.insert(k, done);
                while let Some(done) = early.remove(&at) {
                    let name = &self.names[at];
                    at += 1;
                    merged = match done {
                        Ok(made) => merge(name, made),
                        Err(failure) => self.losses.add(name, failure),
                    };
                    if merged.is_err() {
                        stop.store(true, Ordering::Relaxed);
                        // The threads see the flag, or the channel closed.
                        return merged;
                    }
                }
            }
            merged
        })
    }
}

impl Losses {
    /// Notes that `name` is passed over, or gives the failure back.
    pub(crate) fn add(&self, name: &str, failure: Failure) -> Result<(), Failure> {
        let about_it = matches!(failure, Failure::Failed(_) | Failure::Damaged(_));
        let Some(reason) = failure.text().filter(|_| self.keep_going && about_it) else {
            return Err(failure);
        };
        output::note(&format!("passed over: {reason}"));
        let loss = Loss { name: name.to_owned(), reason: reason.to_owned() };
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).push(loss);
        Ok(())
    }

    /// What was passed over, for JSON.
    pub(crate) fn json(&self) -> Vec<serde_json::Value> {
        let losses = self.list().into_iter();
        losses
            .map(|loss| {
                let name = without_options(&loss.name);
                serde_json::json!({ "name": name, "reason": loss.reason })
            })
            .collect()
    }

    /// What was passed over.
    fn list(&self) -> Vec<Loss> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Exit code 4 if anything was passed over.
    pub(crate) fn result(&self, of: usize) -> Result<(), Failure> {
        match self.list().len() {
            0 => Ok(()),
            n => Err(Failure::Partial(format!("{n} of {of} databases were passed over"))),
        }
    }
}
