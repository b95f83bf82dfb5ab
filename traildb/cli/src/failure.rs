//! What goes wrong, and the exit code of each.

use std::{
    fmt::{self, Display},
    io,
    path::Path,
};

use traildb::filter::BindError;

/// Why a command ends early.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line cannot be meant like this.
    Usage(String),
    /// The world did not do its part.
    Failed(String),
    /// An index is damaged; without it, it would be done.
    Index(String),
    /// None of what was asked for is there.
    Nothing(String),
    /// Done, but for databases that were passed over.
    Partial(String),
    /// What was to be verified is not sound.
    Damaged(String),
    /// Whoever read our output has gone: no error of ours, and nobody to tell.
    BrokenPipe,
}

impl Failure {
    /// The exit code of the process; `--help` lists them.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Failure::Failed(_) | Failure::Index(_) => 1,
            Failure::Usage(_) => 2,
            Failure::Nothing(_) => 3,
            Failure::Partial(_) => 4,
            Failure::Damaged(_) => 5,
            // What a shell reports of a process that SIGPIPE ended.
            Failure::BrokenPipe => 128 + 13,
        }
    }

    /// What to tell, if anything.
    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Failure::Usage(text)
            | Failure::Failed(text)
            | Failure::Index(text)
            | Failure::Nothing(text)
            | Failure::Partial(text)
            | Failure::Damaged(text) => Some(text),
            Failure::BrokenPipe => None,
        }
    }

    /// A failure to read or write the file at `path`.
    pub(crate) fn file(path: impl AsRef<Path>, error: impl Display) -> Failure {
        Failure::Failed(format!("{}: {error}", path.as_ref().display()))
    }

    /// A failure to write the output `name`.
    pub(crate) fn output(name: &str, error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::BrokenPipe,
            _ => Failure::Failed(format!("{name}: {error}")),
        }
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text().unwrap_or("the output is closed"))
    }
}

impl From<traildb::Error> for Failure {
    fn from(error: traildb::Error) -> Failure {
        match error {
            traildb::Error::NoSuchField { .. }
            | traildb::Error::Input(traildb::InputError::Memory { .. }) => {
                Failure::Usage(error.to_string())
            }
            traildb::Error::Damaged { ref member, .. } if member == traildb::index::MEMBER => {
                Failure::Index(format!(
                    "{error}; make it again with `tdb index`, or pass --no-index"
                ))
            }
            _ => Failure::Failed(error.to_string()),
        }
    }
}

impl From<BindError> for Failure {
    fn from(error: BindError) -> Failure {
        match error {
            BindError::Database(error) => error.into(),
            error => Failure::Usage(error.to_string()),
        }
    }
}

impl From<pager::Error> for Failure {
    fn from(error: pager::Error) -> Failure {
        match error {
            pager::Error::Config(_) => Failure::Usage(error.to_string()),
            _ => Failure::Failed(error.to_string()),
        }
    }
}

impl From<pager::SourceError> for Failure {
    fn from(error: pager::SourceError) -> Failure {
        Failure::Failed(error.to_string())
    }
}
