//! How databases are written: what `make` and `merge` have in common.

mod object; // into a bucket

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Instant,
};

use indicatif::{HumanCount, HumanDuration};
use traildb::{Bigrams, Builder, Options};

use crate::{bytes, failure::Failure, open, output, progress, threads};

/// How a database is written.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to make: one file, or a directory with a file for each member.
    #[arg(long, value_name = "FORM", default_value = "pkg", value_parser = ["pkg", "dir"])]
    tdb_format: String,

    /// About the most memory to use, 64 MiB or more; what does not fit goes to temporary files. 0 for
    /// no limit. Default: half of what is available, limits of cgroups included.
    #[arg(long, value_name = "SIZE", value_parser = bytes::parse)]
    memory: Option<u64>,

    /// The directory of temporary files. Default: the one that the database goes to; for a URL, that
    /// of the system.
    #[arg(long, value_name = "DIRECTORY", allow_hyphen_values = true)]
    temp_dir: Option<PathBuf>,

    /// Whether pairs of values get code words of their own: `auto` if that makes the database
    /// smaller, `on` wherever it saves anything, `off` never, which is quicker.
    #[arg(long, value_name = "WHEN", default_value = "auto", value_parser = ["auto", "on", "off"])]
    bigrams: String,

    /// The same as `--bigrams off`.
    #[arg(long, conflicts_with = "bigrams")]
    no_bigrams: bool,

    /// Says on stderr what was made and how long it took.
    #[arg(short, long)]
    verbose: bool,
}

/// How much memory may be used.
#[derive(Clone, Copy)]
pub(crate) struct Memory {
    /// In all; 0 for no limit.
    pub(crate) bytes: u64,
    /// Of this, what is not the builder's.
    pub(crate) reserved: u64,
}

/// Where a database will be.
pub(crate) enum Target {
    Path(PathBuf),
    /// An object of S3, by its URL.
    Object(String),
}

impl Args {
    /// Where the database goes that the user calls `output`. Nothing may be there, now nor when it is
    /// put there: this look only spares the work in between.
    pub(crate) fn target(&self, output: &Path) -> Result<Target, Failure> {
        let is_directory = self.tdb_format == "dir";
        if let Some(url) = open::url_of(output.as_os_str()) {
            if is_directory {
                let text = "a directory of files cannot go to a URL; write a package";
                return Err(Failure::Usage(text.to_owned()));
            }
            object::check(url)?;
            return Ok(Target::Object(url.to_owned()));
        }
        let mut path = output.to_owned();
        let place = |why: &str| Err(Failure::file(output, why));
        // With a `.tdb` behind it, a name that can be nobody's wish.
        if output.as_os_str().as_encoded_bytes().ends_with(b"/") && !is_directory {
            return place(
                "a name that ends in `/` is that of a directory; name the database in it",
            );
        }
        match output.metadata() {
            Ok(there) if there.is_dir() && !is_directory => {
                return place("a directory is there; name a database in it, or another one");
            }
            Ok(there) if !there.is_file() && !there.is_dir() => {
                return place("neither a file nor a directory; a database cannot be written to it");
            }
            _ => {}
        }
        if path.as_os_str() == "-" {
            let text = "a database is written out of order, so it cannot go to stdout";
            return Err(Failure::Usage(text.to_owned()));
        }
        if !is_directory && path.extension().is_none_or(|extension| extension != "tdb") {
            path.as_mut_os_string().push(".tdb");
        }
        match path.exists() {
            true => Err(Failure::file(&path, "exists already, and is not overwritten")),
            false => Ok(Target::Path(path)),
        }
    }

    /// The memory that may be used, for the builder alone.
    pub(crate) fn memory(&self) -> Memory {
        Memory { bytes: self.memory.unwrap_or_else(half_of_memory), reserved: 0 }
    }

    /// A builder for a database of these fields, which goes to `target`.
    pub(crate) fn builder(
        &self,
        fields: &[String],
        threads: &threads::Args,
        target: &Target,
        memory: Memory,
    ) -> Result<Builder, traildb::Error> {
        let temporary = self.temp_dir.clone().unwrap_or_else(|| match target {
            Target::Path(path) => match path.parent() {
                Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
                _ => PathBuf::from("."),
            },
            Target::Object(_) => std::env::temp_dir(),
        });
        let options = Options::default()
            .directory(self.tdb_format == "dir")
            .keep_existing(true)
            .memory_bytes(memory.bytes)
            .reserved_bytes(memory.reserved)
            .temporary_directory(temporary)
            .threads(threads.count())
            .bigrams(match self.bigrams.as_str() {
                _ if self.no_bigrams => Bigrams::Off,
                "on" => Bigrams::On,
                "off" => Bigrams::Off,
                _ => Bigrams::Auto,
            });
        Builder::with_options(fields, options)
    }

    /// Writes the database to `target`, and tells of it if that is wanted: of the time since work on
    /// it `began`, too.
    pub(crate) fn write(
        &self,
        builder: Builder,
        target: &Target,
        began: Instant,
    ) -> Result<(), Failure> {
        let spinner = progress::working("writing");
        let written = match target {
            Target::Path(path) => builder.finish(path)?,
            Target::Object(url) => object::write(url, builder)?,
        };
        spinner.finish_and_clear();
        if self.verbose {
            output::note(&format!(
                "{target}: {} events, {} trails, {} in {:#}",
                HumanCount(written.events),
                HumanCount(written.trails),
                bytes::show(written.bytes),
                HumanDuration(began.elapsed()),
            ));
        }
        Ok(())
    }
}

/// Half of the memory that is available to this process, limits of its cgroups included, or no limit
/// where nobody tells how much that is.
fn half_of_memory() -> u64 {
    sources::available::memory().map_or(0, |bytes| (bytes / 2).max(MEMORY_MIN))
}

/// The least that a builder takes.
const MEMORY_MIN: u64 = 64 << 20;

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Path(path) => path.display().fmt(f),
            // Options may hold what is nobody's business.
            Target::Object(url) => f.write_str(&open::shown(url.as_ref())),
        }
    }
}
