//! `txn`: a script from standard input.
//!
//! One operation per line. Words are separated by blanks; the last one, a payload, is the rest of
//! the line. In keys and payloads `\xNN`, `\n`, `\t`, `\r`, `\\`, `\"` and `\'` stand for bytes, as
//! `scan` prints them.

use std::io::{self, BufRead, Read};

use s3db::{Collection, Db, KEY_BYTES_MAX, Key, Level, PAYLOAD_BYTES_MAX, Payload, Transaction};
use serde_json::json;

use crate::output::{Failure, Output, Progress, collection, open};

/// Bytes of a line, and of what stands around the longest payload in it: a byte is four where it is escaped.
const LINE_BYTES_MAX: u64 = 4 * (PAYLOAD_BYTES_MAX + KEY_BYTES_MAX) as u64 + 4096;
/// Bytes of it that an error shows.
const SHOWN_BYTES_MAX: usize = 100;

#[derive(clap::Args)]
#[command(after_help = "The script has one operation per line:

  put COLLECTION KEY PAYLOAD     create COLLECTION KEY PAYLOAD     fails if there is a record
  del COLLECTION KEY             update COLLECTION KEY PAYLOAD     fails if there is none
  get COLLECTION KEY             prints what the transaction sees
  commit                         says so when it is durable, and begins the next transaction
  abort                          forgets what was written since the last commit
  # a comment

The end commits. A line that fails ends the script, and what was not committed is forgotten.

Examples:
  printf 'put users ada 1815\\nput users alan 1912\\n' | s3db txn file:///tmp/db
  s3db txn file:///tmp/db --level basic < script
  s3db txn file:///tmp/db --level serializable < script     of collections created for it; exit code 5
                                                            when another transaction was in its way")]
pub(crate) struct Args {
    /// The database
    url: String,
    /// What a commit promises: basic, monotonic or atomic; snapshot or serializable in collections that
    /// were created for that (init --isolation)
    #[arg(long, default_value = "atomic", value_parser = level)]
    level: Level,
}

fn level(name: &str) -> Result<Level, String> {
    let names = Level::ALL.map(Level::name).join(", ");
    Level::ALL
        .into_iter()
        .find(|level| level.name() == name)
        .ok_or_else(|| format!("one of {names}"))
}

pub(crate) async fn run(args: &Args, output: &Output) -> Result<(), Failure> {
    let db = open(&args.url, output).await?;
    let outcome = Script { args, output, db: &db, known: Vec::new() }.run().await;
    // What was committed before a line failed is committed.
    let closed = output.close(db).await;
    outcome.and(closed)
}

struct Script<'a> {
    args: &'a Args,
    output: &'a Output,
    db: &'a Db,
    known: Vec<Collection>,
}

impl Script<'_> {
    async fn run(&mut self) -> Result<(), Failure> {
        let db = self.db;
        let mut txn = db.begin_at(self.args.level);
        let mut input = io::stdin().lock();
        let progress = Progress::beside_lines(self.output);
        for number in 1_u64.. {
            let at = |what: String| Failure::Told(format!("line {number}: {what}"));
            let Some(line) = next_line(&mut input).map_err(at)? else { break };
            progress.show(|| format!("line {number}"));
            match line.trim() {
                "" => {}
                text if text.starts_with('#') => {}
                "commit" => {
                    self.commit(&mut txn).await?;
                    txn = db.begin_at(self.args.level);
                }
                "abort" => txn = db.begin_at(self.args.level),
                text => {
                    self.operation(&mut txn, text).await.map_err(|failure| match failure {
                        Failure::Told(what) => at(what),
                        failure => failure,
                    })?;
                }
            }
        }
        progress.end();
        if txn.changes() > 0 { self.commit(&mut txn).await } else { Ok(()) }
    }

    async fn commit(&mut self, txn: &mut Transaction<'_>) -> Result<(), Failure> {
        // Said when it is durable, so whoever reads this can rely on it.
        self.output.committed(txn.commit().await?, true)
    }

    async fn operation(&mut self, txn: &mut Transaction<'_>, text: &str) -> Result<(), Failure> {
        let mut words = text.splitn(4, char::is_whitespace);
        let (verb, name) = (words.next().unwrap_or(""), words.next());
        let (Some(name), Some(key)) = (name, words.next()) else {
            return Err(Failure::Told(format!(
                "{}: a collection and a key are needed",
                shown(verb)
            )));
        };
        let key = Key::new(unescape(key)?)?;
        let rest = words.next();
        let payload = || match rest {
            Some(rest) => Ok(Payload::new(unescape(rest)?)?),
            None => Err(Failure::Told(format!("{}: a payload is needed", shown(verb)))),
        };
        let of = self.collection(name).await?;
        match verb {
            "put" => txn.put(&of, &key, payload()?)?,
            "create" => txn.create(&of, &key, payload()?).await?,
            "update" => txn.update(&of, &key, payload()?).await?,
            "del" => txn.delete(&of, &key)?,
            "get" => {
                let found = txn.read(&of, &key).await?.map(|payload| payload.to_string());
                let text = format!("{key}\t{}", found.as_deref().unwrap_or("-"));
                self.output.say(&text, &json!({"key": key.to_string(), "payload": found}))?;
            }
            _ => return Err(Failure::Told(format!("{}: no such operation", shown(verb)))),
        }
        Ok(())
    }

    async fn collection(&mut self, name: &str) -> Result<Collection, Failure> {
        if let Some(known) = self.known.iter().find(|known| known.name == name) {
            return Ok(known.clone());
        }
        let found = collection(self.db, &self.args.url, name).await?;
        self.known.push(found.clone());
        Ok(found)
    }
}

/// The next line of a script, without its end; `None` behind the last one. What cannot be one is not read on.
fn next_line(input: &mut impl BufRead) -> Result<Option<String>, String> {
    let mut line = Vec::new();
    let read = input.take(LINE_BYTES_MAX).read_until(b'\n', &mut line);
    read.map_err(|error| error.to_string())?;
    if line.len() as u64 == LINE_BYTES_MAX && line.last() != Some(&b'\n') {
        return Err(format!("is longer than {LINE_BYTES_MAX} bytes, which no operation is"));
    }
    if line.is_empty() {
        return Ok(None);
    }
    String::from_utf8(line).map(Some).map_err(|error| error.utf8_error().to_string())
}

/// The beginning of what a script says, as errors show it: on one line, and short.
fn shown(text: &str) -> String {
    let end = text.floor_char_boundary(SHOWN_BYTES_MAX);
    let more = if end < text.len() { "..." } else { "" };
    format!("{}{more}", text[..end].escape_debug())
}

/// The bytes that escaped text stands for.
fn unescape(text: &str) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, after @ ..] = rest {
        rest = after;
        if *byte != b'\\' {
            bytes.push(*byte);
            continue;
        }
        let (byte, after) = match rest {
            [b'n', after @ ..] => (b'\n', after),
            [b't', after @ ..] => (b'\t', after),
            [b'r', after @ ..] => (b'\r', after),
            [quoted @ (b'\\' | b'"' | b'\''), after @ ..] => (*quoted, after),
            [b'x', high, low, after @ ..] => {
                let digits = [*high, *low];
                let digits = std::str::from_utf8(&digits).ok();
                let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
                (
                    byte.ok_or_else(|| {
                        Failure::Told(format!("{}: \\x and two digits", shown(text)))
                    })?,
                    after,
                )
            }
            _ => return Err(Failure::Told(format!("{}: \\ and what is not known", shown(text)))),
        };
        bytes.push(byte);
        rest = after;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_escaped_comes_back() {
        let all: Vec<u8> = (0..=255).collect();
        let text = all.escape_ascii().to_string();
        assert_eq!(unescape(&text).unwrap(), all);
        for bad in ["\\", "\\x1", "\\xzz", "a\\q"] {
            assert!(unescape(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn lines_have_an_end() {
        let mut input = &b"put t a 1\n\nend"[..];
        let mut next = || next_line(&mut input);
        assert_eq!(next(), Ok(Some("put t a 1\n".to_owned())));
        assert_eq!(next(), Ok(Some("\n".to_owned())));
        assert_eq!(next(), Ok(Some("end".to_owned())));
        assert_eq!(next(), Ok(None));
        let mut endless = io::BufReader::new(io::repeat(b'x'));
        assert!(next_line(&mut endless).unwrap_err().contains("longer than"));
        assert!(next_line(&mut &b"\xff\n"[..]).is_err());
        assert_eq!(shown("a\x1b[2J"), "a\\u{1b}[2J");
        assert_eq!(shown(&"\u{e9}".repeat(100)).len(), 103);
    }
}
