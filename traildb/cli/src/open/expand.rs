//! One name for many databases: what `sources` finds, of what is a database.

use std::ffi::OsString;

use sources::{Expand, ExpandError};
use traildb::{Unfinished, index::SUFFIX};

use crate::failure::Failure;

/// The databases that `inputs` name, in their order.
pub(crate) fn databases(inputs: &[OsString]) -> Result<Vec<OsString>, Failure> {
    // A pattern finds the index beside a database as well, and what is being written there.
    let is_other = |name: &str| name.ends_with(SUFFIX) || Unfinished::is_name(name.as_ref());
    let expand = Expand::new(".tdb").members(&["info", "fields"]).except(is_other);
    expand.os_names(inputs).map_err(|error| match error {
        ExpandError::Nothing { input } => Failure::Failed(format!("{input}: no database is there")),
        ExpandError::Pattern { .. } | ExpandError::Unlisted { .. } => {
            Failure::Usage(error.to_string())
        }
        _ => Failure::Failed(error.to_string()),
    })
}
