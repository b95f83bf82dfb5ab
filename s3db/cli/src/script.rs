//! `txn`: a script from standard input.
//!
//! One operation per line. Words are separated by blanks; the last one, a payload, is the rest of
//! the line. In keys and payloads `\xNN`, `\n`, `\t`, `\r`, `\\`, `\"` and `\'` stand for bytes, as
//! `scan` prints them.

use std::io::{self, BufRead};

use s3db::{Collection, Db, Key, Level, Payload, Transaction};
use serde_json::json;

use crate::output::{Failure, Output, collection, open};

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
        for (number, line) in io::stdin().lock().lines().enumerate() {
            let at = |what: String| Failure::Told(format!("line {}: {what}", number + 1));
            let line = line.map_err(|error| at(error.to_string()))?;
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
            return Err(Failure::Told(format!("{verb}: a collection and a key are needed")));
        };
        let key = Key::new(unescape(key)?)?;
        let rest = words.next();
        let payload = || match rest {
            Some(rest) => Ok(Payload::new(unescape(rest)?)?),
            None => Err(Failure::Told(format!("{verb}: a payload is needed"))),
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
            _ => return Err(Failure::Told(format!("{verb}: no such operation"))),
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
                (byte.ok_or_else(|| Failure::Told(format!("{text}: \\x and two digits")))?, after)
            }
            _ => return Err(Failure::Told(format!("{text}: \\ and what is not known"))),
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
}
