//! How databases are written: what `make` and `merge` have in common.

use std::path::{Path, PathBuf};

use traildb::{Builder, InputError, Options};

use crate::{bytes, failure::Failure, threads};

/// How a database is written.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to make: one file, or a directory with a file for each member.
    #[arg(long, value_name = "FORM", default_value = "pkg", value_parser = ["pkg", "dir"])]
    tdb_format: String,

    /// Memory that events and values may take, in all; 0 for no limit.
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = bytes::parse)]
    memory: u64,
}

/// Where a database will be.
pub(crate) struct Target {
    pub(crate) path: PathBuf,
}

impl Args {
    /// Where the database goes that the user calls `output`. Nothing may be there.
    pub(crate) fn target(&self, output: &Path) -> Result<Target, Failure> {
        let mut path = output.to_owned();
        if path.as_os_str() == "-" {
            let text = "a database is written out of order, so it cannot go to stdout";
            return Err(Failure::Usage(text.to_owned()));
        }
        if self.tdb_format != "dir" && path.extension().is_none_or(|extension| extension != "tdb") {
            path.as_mut_os_string().push(".tdb");
        }
        match path.exists() {
            true => Err(Failure::file(&path, "exists already, and is not overwritten")),
            false => Ok(Target { path }),
        }
    }

    /// A builder for a database of these fields.
    pub(crate) fn builder(
        &self,
        fields: &[String],
        threads: &threads::Args,
    ) -> Result<Builder, Failure> {
        let options = Options::default()
            .directory(self.tdb_format == "dir")
            .memory_bytes(self.memory)
            .threads(threads.count());
        Ok(Builder::with_options(fields, options)?)
    }
}

/// Whether what the builder refused is not about one event, so that the next fares no better.
pub(crate) fn is_final(error: &InputError) -> bool {
    matches!(error, InputError::Memory { .. } | InputError::TooMany(_))
}
