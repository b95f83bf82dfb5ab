//! `--uuids`, `--filter` and the index: which events a command is about.

use std::ffi::OsString;

use traildb::{Uuid, filter::Expr};

use crate::{
    failure::Failure,
    filtering,
    open::{Database, side},
    select,
    shards::Ended,
    walk::{Asked, Walk},
};

/// Which events.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Takes these trails only: UUIDs separated by commas, or @FILE with one on each line. Default:
    /// all.
    #[arg(short, long, value_name = "UUIDS|@FILE", allow_hyphen_values = true)]
    uuids: Option<OsString>,

    #[command(flatten)]
    filter: filtering::Args,

    #[command(flatten)]
    index: side::Args,
}

/// The events that are wanted: those of these trails that match.
pub(crate) struct Selection<'a> {
    pub(crate) expr: Option<Expr>,
    /// Ascending, each once.
    pub(crate) uuids: Option<Vec<Uuid>>,
    /// Which indexes are used, if there is something to use them for.
    pub(crate) index: Option<&'a side::Args>,
    lenient: bool,
}

impl Args {
    /// Reads what the options say. With `lenient`, what is no UUID and what is no field is passed
    /// over, and a filter means what it does to the C library's tool.
    pub(crate) fn read(&self, lenient: bool) -> Result<Selection<'_>, Failure> {
        let uuids = self.uuids.as_deref().map(|list| select::uuids(list, lenient)).transpose()?;
        let uuids = uuids.map(|mut uuids| {
            uuids.sort_unstable();
            uuids.dedup();
            uuids
        });
        let expr = self.filter.expr(lenient)?;
        // Without a filter every trail matches, whatever an index says.
        let index = expr.is_some().then_some(&self.index);
        Ok(Selection { expr, uuids, index, lenient })
    }
}

/// What is said where none of the UUIDs is in any of so many databases.
pub(crate) fn none_there(uuids: usize, databases: u64) -> Failure {
    let of = if databases > 1 { "databases" } else { "database" };
    Failure::Nothing(format!("none of the {uuids} UUIDs is in the {of}"))
}

impl Selection<'_> {
    /// Does what gives its result at the end, with indexes. Should one turn out to be damaged that
    /// nobody has named, it is told, and all is done again without: an index says nothing that its
    /// database does not. What its inputs name has to be looked up before.
    pub(crate) fn without_damaged_index(
        mut self,
        mut run: impl FnMut(&Self) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        match run(&self) {
            Err(Failure::Index(text)) if self.index.is_some_and(|index| !index.is_named()) => {
                side::ignored(&text);
                self.index = None;
                run(&self)
            }
            done => done,
        }
    }

    /// Makes sure that some of these databases has each field of the filter.
    pub(crate) fn check(&self, databases: &[Database<'_>]) -> Result<(), Failure> {
        match &self.expr {
            Some(expr) if !self.lenient => {
                Ok(expr.check_fields(databases.iter().map(|database| database.reader))?)
            }
            _ => Ok(()),
        }
    }

    /// Leaves everything else out of a walk over these databases. Returns how many of the UUIDs there
    /// are, if some were named.
    pub(crate) fn apply(
        &self,
        walk: &mut Walk<'_>,
        databases: &[Database<'_>],
    ) -> Result<Option<Asked>, Ended> {
        if let Some(expr) = &self.expr {
            walk.filter(filtering::bind(expr, databases)?)?;
        }
        self.uuids.as_deref().map(|uuids| walk.select(uuids)).transpose()
    }
}
