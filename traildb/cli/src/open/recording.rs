//! Recording what is read where `EXTMEM_TRACE` names a file for it, as `extmem trace` does.

use std::{env, ffi::OsString, path::Path};

use pager::{Builder, trace::Recorder};

use crate::output;

const VARIABLE: &str = "EXTMEM_TRACE";

/// A trace that is being recorded, if one is.
pub(super) struct Recording(Option<(Recorder, OsString)>);

impl Recording {
    /// Begins to record, if the environment asks for it. That it cannot be done is no reason not to do
    /// what the command is for.
    pub(super) fn start() -> Recording {
        let path = env::var_os(VARIABLE).filter(|path| !path.is_empty());
        Recording(path.and_then(|path| match Recorder::create(Path::new(&path)) {
            Ok(recorder) => Some((recorder, path)),
            Err(error) => {
                let shown = path.display();
                output::note(&format!("nothing is recorded: {VARIABLE}={shown}: {error}"));
                None
            }
        }))
    }

    /// Makes a pager record here.
    pub(super) fn apply(&self, builder: Builder) -> Builder {
        match &self.0 {
            Some((recorder, _)) => builder.record(recorder),
            None => builder,
        }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if let Some((recorder, path)) = &self.0
            && let Err(error) = recorder.finish()
        {
            output::note(&format!("the trace is not whole: {}: {error}", path.display()));
        }
    }
}
