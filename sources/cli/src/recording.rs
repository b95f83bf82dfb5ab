//! Recording accesses where `EXTMEM_TRACE` names a file for them.

use std::{env, ffi::OsString, path::Path};

use pager::trace::Recorder;

/// The variable that names the file. `extmem trace` sets it.
pub(crate) const VARIABLE: &str = "EXTMEM_TRACE";

/// A trace that is being recorded, if one is.
pub(crate) struct Recording(Option<(Recorder, OsString)>);

impl Recording {
    /// Begins to record, if the environment asks for it. That it cannot be done is no reason not to do
    /// what the command is for.
    pub(crate) fn start() -> Recording {
        let path = env::var_os(VARIABLE).filter(|path| !path.is_empty());
        Recording(path.and_then(|path| match Recorder::create(Path::new(&path)) {
            Ok(recorder) => Some((recorder, path)),
            Err(error) => {
                tracing::warn!("nothing is recorded: {VARIABLE}={}: {error}", path.display());
                None
            }
        }))
    }

    /// What a pager is to record with.
    pub(crate) fn recorder(&self) -> Option<&Recorder> {
        self.0.as_ref().map(|(recorder, _)| recorder)
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if let Some((recorder, path)) = &self.0
            && let Err(error) = recorder.finish()
        {
            tracing::warn!("the trace is not whole: {}: {error}", path.display());
        }
    }
}
