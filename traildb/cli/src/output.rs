//! Where a command's result goes: stdout, a new file that is whole or not there, or a device.

use std::{
    ffi::OsStr,
    fs::{self, OpenOptions},
    io::{self, BufWriter, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use sources::expand;
use traildb::Unfinished;

use crate::failure::Failure;

/// Bytes collected for one system call.
const BUFFER_BYTES: usize = 256 << 10;

/// A buffered output. A file has its name once it is [finished](Output::finish); until then it has
/// that of something unfinished, and is removed if it never is.
pub(crate) struct Output {
    sink: BufWriter<Box<dyn Write>>,
    name: String,
    unfinished: Option<Unfinished>,
    /// Bytes so far.
    put: usize,
    /// Set once some of them are out.
    out: Arc<AtomicBool>,
}

impl Output {
    /// `-` is stdout; a file must not exist yet. What is neither file nor directory, such as
    /// /dev/null or a pipe with a name, has nothing that could be overwritten.
    pub(crate) fn create(path: impl AsRef<OsStr>) -> Result<Output, Failure> {
        let path = path.as_ref();
        let name = expand::without_secrets(&path.to_string_lossy());
        let url = path.to_str().filter(|path| expand::is_url(path));
        let (sink, name, unfinished): (Box<dyn Write>, _, _) = match url {
            _ if path == "-" => (Box::new(io::stdout()), "stdout".to_owned(), None),
            Some(_) => {
                return Err(Failure::Usage(format!("{name}: this goes to local files and pipes")));
            }
            None if fs::metadata(path).is_ok_and(|there| !there.is_file() && !there.is_dir()) => {
                let opened = OpenOptions::new().write(true).open(path);
                let device = opened.map_err(|error| Failure::file(path, error))?;
                (Box::new(device), name, None)
            }
            None => {
                let failed = |error| Failure::file(path, error);
                let unfinished = Unfinished::file(path, false).map_err(failed)?;
                let file = unfinished.as_file().try_clone().map_err(failed)?;
                (Box::new(file), name, Some(unfinished))
            }
        };
        let sink = BufWriter::with_capacity(BUFFER_BYTES, sink);
        Ok(Output { sink, name, unfinished, put: 0, out: Arc::default() })
    }

    /// Sets `out` once something is written that cannot be taken back.
    pub(crate) fn tell(&mut self, out: &Arc<AtomicBool>) {
        self.out = out.clone();
    }

    /// Takes back what was written. Returns false if some of it is out.
    pub(crate) fn retract(self) -> bool {
        let is_out = self.out.load(Ordering::Relaxed);
        if !is_out {
            // Dropped, it would write what it holds.
            drop(self.sink.into_parts());
        }
        !is_out
    }

    /// Writes `bytes`.
    pub(crate) fn put(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.put = self.put.saturating_add(bytes.len());
        // The buffer takes less than it has room for.
        if self.put >= BUFFER_BYTES && self.unfinished.is_none() {
            self.out.store(true, Ordering::Relaxed);
        }
        self.sink.write_all(bytes).map_err(|error| Failure::output(&self.name, error))
    }

    /// Writes what is left, and gives a file its name.
    pub(crate) fn finish(mut self) -> Result<(), Failure> {
        self.sink.flush().map_err(|error| Failure::output(&self.name, error))?;
        let placed = self.unfinished.map_or(Ok(()), Unfinished::place);
        placed.map_err(|error| Failure::file(&self.name, error))
    }
}

/// Prints a result that is at hand.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut output = Output::create("-")?;
    output.put(text.as_bytes())?;
    output.finish()
}

/// Tells people something that is not the result.
pub(crate) fn note(text: &str) {
    // Where stderr is closed, there is nobody left to tell.
    let _ = writeln!(io::stderr(), "tdb: {text}");
}
