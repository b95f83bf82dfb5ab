//! One name for many objects: patterns, directories, prefixes, lists.
//!
//! With `.tdb` as the [ending](Expand::new) of names, and `info` as a [member](Expand::members):
//!
//! | input | objects |
//! | --- | --- |
//! | `a.tdb`, `https://host/a.tdb`, `s3://bucket/a.tdb` | itself |
//! | `logs/2016-*/*.tdb` | files that match, and directories with the members; `**` for any depth |
//! | `logs`, a directory without the members | what ends in `.tdb` below it, and directories with them |
//! | `s3://bucket/2016-*/*.tdb` | keys that match |
//! | `s3://bucket/2016-01/`, without the members | keys below that end in `.tdb` |
//! | `@list` | the lines of the file `list`, each an input of its own; `#` starts a comment |
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # for month in ["2016-01", "2016-02", "2017-01"] {
//! #     std::fs::create_dir(dir.path().join(month))?;
//! #     std::fs::write(dir.path().join(month).join("a.tdb"), "")?;
//! # }
//! # let logs = dir.path().display();
//! let names = sources::Expand::new(".tdb").names(&[format!("{logs}/2016-*/*.tdb")])?;
//! assert_eq!(names, [format!("{logs}/2016-01/a.tdb"), format!("{logs}/2016-02/a.tdb")]);
//! # Ok(())
//! # }
//! ```
//!
//! **Patterns.** `*` is any characters but `/`, `**` between slashes any number of parts, `[a-z]` one
//! of these and `[!a-z]` none of these. In a path `?` is one character; in a URL it starts the
//! options. A mark that is a character of the name stands in brackets, as in `x[[]1].tdb`, or in a URL
//! percent-encoded; a path at which something is is no pattern, whatever marks are in it. What matching
//! takes grows with the length of pattern and name, whatever is in them.
//!
//! **Order.** What an input finds comes in the order of names, part by part for paths and byte by byte
//! for keys; inputs come in theirs. What two inputs find is there twice.
//!
//! **Links** to files and directories are what they point to, but neither `**` nor a directory that is
//! looked into follows those to directories: they may lead back.

// Without buckets not all of it is needed.
#[cfg_attr(not(feature = "s3"), allow(dead_code))]
mod pattern; // names with parts left open
mod paths; // among files
mod urls; // in buckets

use std::{fs::File, io, io::Read, path::PathBuf, sync::Arc};

use pager::SourceError;

use crate::open::{Options, is_scheme};

/// The longest list file.
const LIST_BYTES_MAX: u64 = 64 << 20;

/// What is looked for where many objects have one name.
///
/// It is looked for when [`names`](Expand::names) is called, on the thread that calls, which may
/// belong to a runtime: requests are sent on a thread of their own, and that is waited for.
#[derive(Clone)]
pub struct Expand {
    ending: String,
    members: Vec<String>,
    not: Arc<dyn Fn(&str) -> bool + Send + Sync>,
    names_max: usize,
    looked_max: usize,
    options: Options,
}

/// Why an input names no objects.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExpandError {
    /// The text is no pattern. Write it otherwise.
    #[error("{pattern}: character {at}: {why}")]
    Pattern {
        /// The pattern; of a URL its key, decoded.
        pattern: String,
        /// The character at fault, from 1.
        at: usize,
        /// What is wrong with it.
        why: &'static str,
    },

    /// Nobody lists what is there. Name the objects one by one, or in a list file.
    #[error("{place}: only in buckets (s3://) and among paths can objects be looked for")]
    Unlisted {
        /// Scheme of the address.
        place: String,
    },

    /// Nothing is there that the input could mean.
    #[error("{input}: nothing is there")]
    Nothing {
        /// The input, without options.
        input: String,
    },

    /// More is found, or has to be looked at, than is allowed. Name less at once.
    #[error("{input}: more than {max} {what}")]
    TooMany {
        /// The input, without options.
        input: String,
        /// The most that there may be.
        max: usize,
        /// Of what.
        what: &'static str,
    },

    /// A list or a directory could not be read.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },

    /// A bucket did not tell what is in it, or the address is none.
    #[error(transparent)]
    Source(#[from] SourceError),
}

impl Expand {
    /// Looks for objects whose names end in `ending`, such as `.tdb`. A pattern says itself how names
    /// end.
    pub fn new(ending: impl Into<String>) -> Expand {
        Expand {
            ending: ending.into(),
            members: Vec::new(),
            not: Arc::new(|_| false),
            names_max: 100_000,
            looked_max: 1_000_000,
            options: Options::default(),
        }
    }

    /// Takes a directory, or a prefix of keys, as one object if all of these are in it. Default: none
    /// is one object.
    #[must_use]
    pub fn members(mut self, names: &[&str]) -> Expand {
        self.members = names.iter().map(|&name| name.to_owned()).collect();
        self
    }

    /// Passes over what is found, but of whose last part `not` says that it is none of these objects: an
    /// index beside one, a file that is being written. Nor is such a directory looked into. Default: none.
    #[must_use]
    pub fn except(mut self, not: impl Fn(&str) -> bool + Send + Sync + 'static) -> Expand {
        self.not = Arc::new(not);
        self
    }

    /// The most objects that all inputs together may name. Default: 100,000.
    #[must_use]
    pub fn names_max(mut self, names: usize) -> Expand {
        self.names_max = names;
        self
    }

    /// The most keys, or entries of directories, that are looked at for one input. Default: a million.
    #[must_use]
    pub fn looked_max(mut self, entries: usize) -> Expand {
        self.looked_max = entries;
        self
    }

    /// How buckets are asked. Connections are made for it and not shared. Where these options have a
    /// list of what is [allowed](Options::allow), buckets are held to it, and of paths nothing is
    /// looked for: each stands for itself. Default: as addresses and environment say.
    #[must_use]
    pub fn options(mut self, options: &Options) -> Expand {
        self.options = options.apart();
        self
    }

    /// The objects that `inputs` name, in their order: paths and URLs for [`open`](crate::open()).
    /// Those of keys have the options of their input. One that leaves nothing open is given as it is,
    /// whether anything is there or not.
    ///
    /// # Errors
    /// [`ExpandError`].
    pub fn names<I: AsRef<str>>(&self, inputs: &[I]) -> Result<Vec<String>, ExpandError> {
        let mut found = Vec::new();
        for input in inputs.iter().map(AsRef::as_ref) {
            match input.strip_prefix('@').filter(|_| self.options.allows_all()) {
                None => self.expand(input, &mut found)?,
                Some(list) => {
                    lines(list)?.iter().try_for_each(|line| self.expand(line, &mut found))?;
                }
            }
        }
        Ok(found)
    }

    fn expand(&self, input: &str, found: &mut Vec<String>) -> Result<(), ExpandError> {
        let before = found.len();
        match is_url(input) {
            true => self.of_url(input, found)?,
            false if self.options.allows_all() => self.of_path(input, found)?,
            false => found.push(input.to_owned()),
        }
        if found.len() == before {
            return Err(ExpandError::Nothing { input: without_options(input).to_owned() });
        }
        self.check(input, found.len())
    }

    /// Whether so many names are allowed.
    fn check(&self, input: &str, names: usize) -> Result<(), ExpandError> {
        match names <= self.names_max {
            true => Ok(()),
            false => Err(self.too_many(input, self.names_max, "objects are named")),
        }
    }

    fn too_many(&self, input: &str, max: usize, what: &'static str) -> ExpandError {
        ExpandError::TooMany { input: without_options(input).to_owned(), max, what }
    }

    /// Whether the last part of a name is that of an object.
    fn is_one(&self, name: &str) -> bool {
        !(self.not)(name)
    }

    /// Whether it is that of an object below a directory or a prefix.
    fn ends_well(&self, name: &str) -> bool {
        name.len() > self.ending.len() && name.ends_with(&self.ending) && self.is_one(name)
    }
}

/// Whether `input` is a URL rather than a path.
pub fn is_url(input: &str) -> bool {
    input.split_once("://").is_some_and(|(scheme, _)| is_scheme(scheme))
}

/// A URL without its options, which may hold secrets; a path as it is.
pub fn without_options(input: &str) -> &str {
    match is_url(input) {
        true => &input[..input.find(['?', '#']).unwrap_or(input.len())],
        false => input,
    }
}

/// The inputs that a file lists.
fn lines(path: &str) -> Result<Vec<String>, ExpandError> {
    let failed = |source| ExpandError::File { path: path.into(), source };
    let refuse = |text| failed(io::Error::new(io::ErrorKind::InvalidData, text));
    let mut text = String::new();
    let file = File::open(path).map_err(failed)?;
    file.take(LIST_BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > LIST_BYTES_MAX {
        return Err(refuse("a list has at most 64 MiB"));
    }
    let lines = text.lines().map(|line| line.split(" #").next().unwrap_or_default().trim());
    let lines: Vec<String> = lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect();
    match lines.is_empty() {
        true => Err(refuse("the list names nothing")),
        false => Ok(lines),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_urls() {
        let cases = [
            ("a", false),
            ("/x/a.tdb", false),
            ("s3://b/k", true),
            ("http://h/p", true),
            ("file:///x", true),
            ("nothing://x", true),
            ("://x", false),
            ("dir/a://b", false),
        ];
        for (input, expected) in cases {
            assert_eq!(is_url(input), expected, "{input}");
        }
    }
}
