//! The index beside a database: where it is, and whether it is used.

use std::{
    ffi::{OsStr, OsString},
    path::Path,
};

use traildb::{
    Index, Reader,
    index::{SUFFIX, path_of},
};

use super::{Opener, Store, url_of, without_options};
use crate::{failure::Failure, output};

/// Which index is used.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The index to use, of one database: a path or a URL. Default: DATABASE.tdbidx, if it is there,
    /// fits, and there is a filter to use it for.
    #[arg(long, value_name = "PATH|URL", conflicts_with = "no_index", allow_hyphen_values = true)]
    index_path: Option<OsString>,

    /// Uses no index.
    #[arg(long)]
    no_index: bool,
}

impl Args {
    /// Makes sure that an index that is named can only be meant for one database.
    pub(crate) fn check(&self, databases: usize) -> Result<(), Failure> {
        match &self.index_path {
            Some(_) if databases != 1 => {
                let text =
                    format!("--index-path names the index of one database, not of {databases}");
                Err(Failure::Usage(text))
            }
            _ => Ok(()),
        }
    }

    /// Whether an index is named, and has to be used then.
    pub(crate) fn is_named(&self) -> bool {
        self.index_path.is_some()
    }

    /// Where the index of the database `input` is: whether it must be there, and its path or URL.
    pub(super) fn place(&self, input: &OsStr) -> Option<(bool, OsString)> {
        match (&self.index_path, self.no_index) {
            (Some(named), _) => Some((true, named.clone())),
            (None, true) => None,
            (None, false) => Some((false, beside(input))),
        }
    }
}

/// Where the index of the database `input` is by convention.
fn beside(input: &OsStr) -> OsString {
    let Some(url) = url_of(input) else {
        return path_of(&traildb::existing(Path::new(input))).into_os_string();
    };
    let place = without_options(url);
    let options = &url[place.len()..];
    format!("{}{SUFFIX}{options}", place.trim_end_matches('/')).into()
}

/// The storage of an index, if there is one at its place.
pub(super) enum Found {
    Nothing,
    /// With the path or URL, for those that must be there.
    Storage(Store, bool),
}

impl Opener<'_> {
    /// Looks for the index of `input`.
    pub(super) fn find_index(&self, input: &OsStr) -> Result<Found, Failure> {
        let Some((needed, place)) = self.index.and_then(|args| args.place(input)) else {
            return Ok(Found::Nothing);
        };
        let store = match url_of(&place) {
            None => Store::map(Path::new(&place)).map_err(|error| {
                let missing = error.kind() == std::io::ErrorKind::NotFound;
                (missing, Failure::file(&place, error))
            }),
            Some(url) => self.region(url).map_err(|error| {
                use pager::{Error, SourceError::*};
                // Who may read a database may not be told of what is not there.
                let missing = matches!(&error, Error::Source(NotFound { .. } | Denied { .. }));
                (missing, error.into())
            }),
        };
        match store {
            Ok(store) => match is_older(&place, input) {
                false => Ok(Found::Storage(store, needed)),
                true => {
                    let text = format!(
                        "{}: older than its database: make it again, or touch it if it is of \
                         these very bytes",
                        place.display()
                    );
                    if needed {
                        return Err(Failure::Failed(text));
                    }
                    ignored(&text);
                    Ok(Found::Nothing)
                }
            },
            Err((_, failure)) if needed => Err(failure),
            Err((true, _)) => Ok(Found::Nothing),
            Err((false, failure)) => {
                ignored(&failure.to_string());
                Ok(Found::Nothing)
            }
        }
    }

    /// Lets `reader` use an index that was found.
    pub(super) fn attach(found: Found, reader: &mut Reader<Store>) -> Result<(), Failure> {
        let Found::Storage(store, needed) = found else { return Ok(()) };
        let attached = Index::open(store, reader).and_then(|index| reader.attach(index));
        match attached {
            Err(error) if needed => Err(error.into()),
            Err(error) => {
                ignored(&Failure::from(error).to_string());
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}

/// Whether the index at a path was made before the database at another was. What is far away tells
/// no times; it is known by what is in it alone.
fn is_older(index: &OsStr, database: &OsStr) -> bool {
    if url_of(index).is_some() || url_of(database).is_some() {
        return false;
    }
    let database = traildb::existing(Path::new(database));
    // The members of a directory are written together, and outlive a change of its name.
    let of = if database.is_dir() { database.join("info") } else { database };
    let written = |path: &Path| path.metadata().and_then(|stat| stat.modified()).ok();
    match (written(index.as_ref()), written(&of)) {
        (Some(index), Some(database)) => index < database,
        _ => false,
    }
}

/// Tells of an index that nobody has named.
pub(crate) fn ignored(reason: &str) {
    output::note(&format!("an index is not used: {reason}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_is_beside_its_database() {
        let cases = [
            ("logs/a.tdb", "logs/a.tdb.tdbidx"),
            ("/x/dir", "/x/dir.tdbidx"),
            ("s3://b/k.tdb", "s3://b/k.tdb.tdbidx"),
            ("s3://b/dir/?region=x", "s3://b/dir.tdbidx?region=x"),
            ("http://h/k.tdb?sig=1/#o", "http://h/k.tdb.tdbidx?sig=1/#o"),
        ];
        for (input, expected) in cases {
            assert_eq!(beside(input.as_ref()), expected, "{input}");
        }
    }
}
