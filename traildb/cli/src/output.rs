//! Where a command's result goes: stdout, or a new file that is whole or not there.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::PathBuf,
};

use crate::failure::Failure;

/// Bytes collected for one system call.
const BUFFER_BYTES: usize = 256 << 10;

/// A buffered output. A file that was begun and not [finished](Output::finish) is removed.
pub(crate) struct Output {
    sink: BufWriter<Box<dyn Write>>,
    name: String,
    unfinished: Option<PathBuf>,
}

impl Output {
    /// `-` is stdout; a file must not exist yet.
    pub(crate) fn create(path: &str) -> Result<Output, Failure> {
        let (sink, name, unfinished): (Box<dyn Write>, _, _) = match path {
            "-" => (Box::new(io::stdout()), "stdout".to_owned(), None),
            _ => {
                let file = File::create_new(path).map_err(|error| Failure::file(path, error))?;
                (Box::new(file), path.to_owned(), Some(path.into()))
            }
        };
        Ok(Output { sink: BufWriter::with_capacity(BUFFER_BYTES, sink), name, unfinished })
    }

    /// Writes `bytes`.
    pub(crate) fn put(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.sink.write_all(bytes).map_err(|error| Failure::output(&self.name, error))
    }

    /// Writes what is left.
    pub(crate) fn finish(mut self) -> Result<(), Failure> {
        self.sink.flush().map_err(|error| Failure::output(&self.name, error))?;
        self.unfinished = None;
        Ok(())
    }
}

/// Tells people something that is not the result.
pub(crate) fn note(text: &str) {
    // Where stderr is closed, there is nobody left to tell.
    let _ = writeln!(io::stderr(), "tdb: {text}");
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Some(path) = &self.unfinished {
            // The failure that led here is the one to tell.
            let _ = fs::remove_file(path);
        }
    }
}
