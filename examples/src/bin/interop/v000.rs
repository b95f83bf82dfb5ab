//! The first client of block servers, which is in the C library, reads databases through ours.
//!
//! ```text
//!   database --> S3 --> extmem serve --V000--> the C library's page faults --> events --+
//!      |                                                                                +--> equal
//!      +--------------------------> our reader --> events ------------------------------+
//! ```
//!
//! Each database is read with blocks of two sizes, from the first trail to the last and the other way.

use std::{
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use examples::server::{BlockServer, Distance, Server};
use traildb::Reader;

use crate::{agree::Report, events::Set, tool::Tool};

/// Smaller than the client's pages lie together, and larger than what it asks for.
const BLOCKS: [&str; 2] = ["16KiB", "1MiB"];
const DIRECTIONS: [&str; 2] = ["forwards", "backwards"];
/// As near as can be.
const NEAR: Distance = Distance { first_byte_ms: 0, rate: 0, link_rate: 0 };

/// Has our tool make a package of a data set.
pub(crate) fn make(set: &Set, ours: &Tool, folder: &Path) -> Result<PathBuf, String> {
    std::fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let names = ["uuid", "time"].into_iter().chain(set.fields.iter().map(String::as_str));
    let names = names.collect::<Vec<_>>().join(",");
    let (form, events) = match set.csv {
        true => (vec!["-c", "-d", ",", "--csv-header"], set.as_csv(&set.rows)),
        false => (vec!["-j", "-f", &names], set.as_json(&set.rows)),
    };
    let words = [&["make", "-o", "served"][..], &form].concat();
    ours.run(folder, &words, Some(&events))?;
    Ok(folder.join("served.tdb"))
}

/// Reads `db` with `client` through a block server, and with our reader.
pub(crate) fn read(client: &Path, db: &Path, report: &mut Report) -> Result<(), String> {
    let s3 = Server::start(db, "served.tdb", NEAR)?;
    for blocks in BLOCKS {
        let server = BlockServer::start(blocks, &s3)?;
        for direction in DIRECTIONS {
            let what = format!("{}, blocks of {blocks}, {direction}", db.display());
            let compared = compare(client, &server, db, direction);
            report.compared(&what, compared.map(|count| format!("{count} lines")));
        }
    }
    Ok(())
}

/// What the client prints, line by line, is what our reader finds. The number of lines.
fn compare(client: &Path, server: &BlockServer, db: &Path, direction: &str) -> Result<u64, String> {
    let (host, port) = server.v000().rsplit_once(':').ok_or("an address without a port")?;
    let mut child = Command::new(client)
        .args([host, port, "s3://bench/served.tdb", direction])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("{}: {e}", client.display()))?;
    let (output, errors) = (child.stdout.take(), child.stderr.take());
    // It says little there, and would wait for nobody to read it.
    let errors = std::thread::spawn(move || {
        let mut text = String::new();
        let read = errors.map(|mut errors| errors.read_to_string(&mut text));
        read.and_then(Result::ok).map_or_else(String::new, |_| text)
    });
    let output = output.ok_or("the client has no output")?;
    let mut lines = Lines { output: BufReader::new(output), line: Vec::new(), count: 0 };
    let compared = events(db, direction == "backwards", &mut |ours| lines.expect(ours))
        .and_then(|()| lines.end());
    if compared.is_err() {
        // It may wait for us to read on.
        let _ = child.kill();
    }
    let status = child.wait().map_err(|e| e.to_string())?;
    let said = errors.join().unwrap_or_default();
    let said = said.lines().last().unwrap_or_default();
    match compared {
        Err(error) => Err(format!("{error}; {status} {said}")),
        Ok(()) if !status.success() => Err(format!("{status} {said}")),
        Ok(()) => Ok(lines.count),
    }
}

/// What the client prints.
struct Lines<R> {
    output: R,
    line: Vec<u8>,
    count: u64,
}

impl<R: BufRead> Lines<R> {
    fn next(&mut self) -> Result<bool, String> {
        self.line.clear();
        let read = self.output.read_until(b'\n', &mut self.line).map_err(|e| e.to_string())?;
        self.count += u64::from(read > 0);
        Ok(read > 0)
    }

    fn expect(&mut self, ours: &[u8]) -> Result<(), String> {
        let shown =
            |line: &[u8]| String::from_utf8_lossy(&line[..line.len().min(200)]).into_owned();
        match self.next()? {
            true if self.line == ours => Ok(()),
            true => {
                let (theirs, ours) = (shown(&self.line), shown(ours));
                Err(format!("line {} is {theirs:?} and not {ours:?}", self.count))
            }
            false => Err(format!("it ends after {} lines, before {:?}", self.count, shown(ours))),
        }
    }

    fn end(&mut self) -> Result<(), String> {
        match self.next()? {
            true => Err(format!("line {} is one too many", self.count)),
            false => Ok(()),
        }
    }
}

/// The lines that the client should print: see `examples/interop/v000.c`.
fn events(
    path: &Path,
    backwards: bool,
    line: &mut dyn FnMut(&[u8]) -> Result<(), String>,
) -> Result<(), String> {
    let told = |error: traildb::Error| format!("{}: {error}", path.display());
    let db = Reader::open(path).map_err(told)?;
    let mut text = b"fields".to_vec();
    for name in db.fields().map_err(told)?.names() {
        text.push(b'\t');
        hex(name.as_bytes(), &mut text);
    }
    text.push(b'\n');
    line(&text)?;
    let mut cursor = db.view().values_ahead().cursor().map_err(told)?;
    for n in 0..db.trails() {
        let trail = if backwards { db.trails() - 1 - n } else { n };
        text = format!("trail {trail} {}\n", db.uuid(trail).map_err(told)?).into_bytes();
        line(&text)?;
        cursor.seek(trail).map_err(told)?;
        while let Some(event) = cursor.next_with_values().map_err(told)? {
            text = event.time.to_string().into_bytes();
            for value in event.values() {
                text.push(b'\t');
                hex(value, &mut text);
            }
            text.push(b'\n');
            line(&text)?;
        }
    }
    Ok(())
}

fn hex(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |n: u8| DIGITS[usize::from(n)];
    out.extend(bytes.iter().flat_map(|&byte| [digit(byte >> 4), digit(byte & 15)]));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_that_differs_is_told() {
        let compare = |theirs: &str| {
            let mut lines = Lines { output: theirs.as_bytes(), line: Vec::new(), count: 0 };
            let ours: [&[u8]; 2] = [b"one\n", b"two\n"];
            let mut lines = ours.iter().try_for_each(|line| lines.expect(line)).map(|()| lines)?;
            lines.end().map(|()| lines.count)
        };
        assert_eq!(compare("one\ntwo\n"), Ok(2));
        for (theirs, told) in [
            ("one\ntoo\n", "line 2 is \"too\\n\""),
            ("one\ntwo\nthree\n", "line 3 is one too many"),
            ("one\n", "it ends after 1 lines"),
            ("one\ntwo", "line 2 is \"two\""),
        ] {
            let error: String = compare(theirs).unwrap_err();
            assert!(error.contains(told), "{theirs:?}: {error}");
        }
    }
}
