//! `s3db log decode`: the records of a log file, one line each.

use std::{
    fs::File,
    io::{self, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use s3db::{DecodeError, FRAME_BYTES_MAX, LogRecord, StreamError};
use serde_json::json;

use crate::output::Failure;

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Print every record of a file. Ends with exit code 1 at the first that is damaged.
    #[command(after_help = "Examples:
  s3db log decode records.log
  s3db log decode - --json < records.log")]
    Decode {
        /// The file, or - for standard input.
        file: PathBuf,
    },
}

/// Bytes held at once: what is left of one record, and room to read more.
const BUFFER_BYTES: usize = 4 * FRAME_BYTES_MAX;

/// Prints the records of `path`. The message of an error names the file and the byte.
pub(crate) fn decode(path: &Path, json: bool) -> Result<(), Failure> {
    let named =
        |error: &dyn std::fmt::Display| Failure::Told(format!("{}: {error}", path.display()));
    let input: Box<dyn Read> = match path.to_str() {
        Some("-") => Box::new(io::stdin().lock()),
        _ => Box::new(File::open(path).map_err(|e| named(&e))?),
    };
    let mut output = BufWriter::new(io::stdout().lock());
    let mut records = Records { input, buffer: Vec::new(), start: 0, offset: 0, index: 0 };
    let outcome = loop {
        match records.next() {
            Ok(Some(record)) => match print(&mut output, &record, json) {
                // Whoever reads has read enough.
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                Err(e) => return Err(Failure::from(e)),
                Ok(()) => {}
            },
            Ok(None) => break Ok(()),
            Err(error) => break Err(named(&error)),
        }
    };
    if !json && outcome.is_ok() {
        // A closed pipe loses the total, which nobody reads.
        let _ = writeln!(output, "{} records, {} bytes", records.index, records.offset);
    }
    match output.flush() {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Failure::from(e)),
        _ => outcome,
    }
}

fn print(output: &mut impl Write, record: &LogRecord, json: bool) -> io::Result<()> {
    let (stamp, change) = (&record.stamp, &record.change);
    let key = change.key();
    if let s3db::Change::Blob(_, blob) = change {
        let (object, bytes, name) = (blob.object(0), blob.bytes(), change.name());
        if json {
            let line = json!({
                "clock": stamp.clock, "client": stamp.client, "sequence": stamp.sequence,
                "change": name, "key": key.to_string(), "bytes": bytes, "parts": blob.parts(),
                "object": object,
            });
            return writeln!(output, "{line}");
        }
        return writeln!(output, "{stamp} {name} {key} {bytes} bytes from {object} on");
    }
    let payload = change.payload().cloned().unwrap_or_default();
    if json {
        let line = json!({
            "clock": stamp.clock,
            "client": stamp.client,
            "sequence": stamp.sequence,
            "change": change.name(),
            "key": key.to_string(),
            "payload": payload.to_string(),
        });
        return writeln!(output, "{line}");
    }
    match payload.as_bytes().len() {
        0 => writeln!(output, "{stamp} {} {key}", change.name()),
        len => writeln!(output, "{stamp} {} {key} {len} bytes", change.name()),
    }
}

/// The records of a reader, without holding more than a few of them.
struct Records<R> {
    input: R,
    buffer: Vec<u8>,
    /// Where the next record starts in `buffer`, and in the input.
    start: usize,
    offset: u64,
    index: u64,
}

#[derive(Debug)]
enum Broken {
    Read(io::Error),
    Damaged(StreamError),
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Broken::Read(error) => error.fmt(f),
            Broken::Damaged(error) => error.fmt(f),
        }
    }
}

impl<R: Read> Records<R> {
    fn next(&mut self) -> Result<Option<LogRecord>, Broken> {
        loop {
            let rest = &self.buffer[self.start..];
            let decoded = if rest.is_empty() {
                Err(DecodeError::Truncated { have: 0, need: 0 })
            } else {
                LogRecord::decode(rest)
            };
            match decoded {
                Ok((record, bytes)) => {
                    self.start += bytes;
                    self.offset += bytes as u64;
                    self.index += 1;
                    return Ok(Some(record));
                }
                Err(DecodeError::Truncated { .. }) if self.fill().map_err(Broken::Read)? => {}
                Err(_) if self.buffer.len() == self.start => return Ok(None),
                Err(cause) => {
                    let (index, offset) = (self.index, self.offset);
                    return Err(Broken::Damaged(StreamError { index, offset, cause }));
                }
            }
        }
    }

    /// Reads on. `false` at the end of the input.
    fn fill(&mut self) -> io::Result<bool> {
        self.buffer.drain(..self.start);
        self.start = 0;
        // A record that is cut needs less than this, so the loop always gets further.
        let room = BUFFER_BYTES.saturating_sub(self.buffer.len()) as u64;
        Ok(self.input.by_ref().take(room).read_to_end(&mut self.buffer)? > 0)
    }
}
