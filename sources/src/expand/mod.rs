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

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io,
    io::Read,
    os::unix::ffi::OsStrExt,
    path::PathBuf,
    sync::Arc,
};

use pager::SourceError;

use crate::open::{Options, host_and_path, is_scheme};

/// The byte order mark, in UTF-8.
const MARK: &[u8] = b"\xef\xbb\xbf";
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
    /// index beside one, a file that is being written. Nor is such a directory looked into. Of a name that is
    /// no UTF-8 it gets what is left when other bytes are replaced. Default: none.
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
    /// [`ExpandError`]; [`ExpandError::File`] also for a path that is no UTF-8, which
    /// [`os_names`](Expand::os_names) gives.
    pub fn names<I: AsRef<str>>(&self, inputs: &[I]) -> Result<Vec<String>, ExpandError> {
        let inputs: Vec<&OsStr> =
            inputs.iter().map(|one| OsStr::new::<str>(one.as_ref())).collect();
        let text = |name: OsString| {
            name.into_string().map_err(|name| {
                let source = io::Error::new(io::ErrorKind::InvalidData, "the name is no UTF-8");
                ExpandError::File { path: name.into(), source }
            })
        };
        self.os_names(&inputs)?.into_iter().map(text).collect()
    }

    /// The same for names of any bytes, in inputs, in lists, and of what is found: [`Local`](crate::Local)
    /// opens those that are paths. In a pattern, a byte that is no UTF-8 is a character.
    ///
    /// # Errors
    /// [`ExpandError`].
    pub fn os_names<I: AsRef<OsStr>>(&self, inputs: &[I]) -> Result<Vec<OsString>, ExpandError> {
        let mut found = Vec::new();
        for input in inputs {
            let input: &OsStr = input.as_ref();
            match input.as_bytes().strip_prefix(b"@").filter(|_| self.options.allows_all()) {
                None => self.expand(input, &mut found)?,
                Some(list) => {
                    for line in lines(OsStr::from_bytes(list))? {
                        self.expand(&line, &mut found)?;
                    }
                }
            }
        }
        Ok(found)
    }

    fn expand(&self, input: &OsStr, found: &mut Vec<OsString>) -> Result<(), ExpandError> {
        let before = found.len();
        match input.to_str().filter(|input| is_url(input)) {
            Some(url) => self.of_url(url, found)?,
            None if self.options.allows_all() => self.of_path(input, found)?,
            None => found.push(input.to_owned()),
        }
        if found.len() == before {
            return Err(ExpandError::Nothing { input: shown(input) });
        }
        self.check(input, found.len())
    }

    /// Whether so many names are allowed.
    fn check(&self, input: &OsStr, names: usize) -> Result<(), ExpandError> {
        match names <= self.names_max {
            true => Ok(()),
            false => Err(self.too_many(input, self.names_max, "objects are named")),
        }
    }

    fn too_many(&self, input: &OsStr, max: usize, what: &'static str) -> ExpandError {
        ExpandError::TooMany { input: shown(input), max, what }
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

/// A URL without its options; a path as it is. What is left may hold a password: see [`without_secrets`].
pub fn without_options(input: &str) -> &str {
    match is_url(input) {
        true => &input[..input.find(['?', '#']).unwrap_or(input.len())],
        false => input,
    }
}

/// A path or a URL as people may see it: of a URL neither the options, which may hold a signature, nor a
/// user's name and password.
pub fn without_secrets(input: &str) -> String {
    match input.split_once("://").filter(|(scheme, _)| is_scheme(scheme)) {
        Some((scheme, rest)) => format!("{scheme}://{}", host_and_path(rest)),
        None => input.to_owned(),
    }
}

/// The same, for errors.
fn shown(input: &OsStr) -> String {
    without_secrets(&input.to_string_lossy())
}

/// The inputs that a file lists.
fn lines(path: &OsStr) -> Result<Vec<OsString>, ExpandError> {
    let failed = |source| ExpandError::File { path: path.into(), source };
    let refuse = |text| failed(io::Error::new(io::ErrorKind::InvalidData, text));
    let mut text = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(LIST_BYTES_MAX + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 > LIST_BYTES_MAX {
        return Err(refuse("a list has at most 64 MiB"));
    }
    let text = text.strip_prefix(MARK).unwrap_or(&text);
    let lines = text.split(|&byte| byte == b'\n').map(|line| {
        let end = line.windows(2).position(|pair| pair == b" #").unwrap_or(line.len());
        line[..end].trim_ascii()
    });
    let lines: Vec<OsString> = lines
        .filter(|line| !line.is_empty() && !line.starts_with(b"#"))
        .map(|line| OsStr::from_bytes(line).to_owned())
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

    #[test]
    fn no_secret_of_a_url_is_told() {
        for (url, expected) in [
            ("http://h/d/", "http://h/d/"),
            ("https://user:pass@h:80/d@e/?sig=1#x", "https://h:80/d@e/"),
            ("s3://bucket/d/?region=x", "s3://bucket/d/"),
            ("http://user:pass@h", "http://h"),
            ("file:///x@y/z.tdb", "file:///x@y/z.tdb"),
            ("user:pass@h?x", "user:pass@h?x"),
        ] {
            assert_eq!(without_secrets(url), expected, "{url}");
        }
        for url in ["http://user:pass@h/*.tdb", "s3://user:pass@b/*.tdb", "s3://user:pass@*/x"] {
            let error = Expand::new(".tdb").names(&[url]).expect_err(url);
            assert!(!error.to_string().contains("pass"), "{error}");
        }
    }
}
