//! `txn`: a script from standard input.
//!
//! One operation per line, which ends with a line feed, or a carriage return and one. Words are separated by spaces
//! and tabs. A payload is all that follows one of these behind the key, to the end of the line, so blanks of its own
//! stay. In keys and payloads `\xNN`, `\n`, `\t`, `\r`, `\\`, `\"` and `\'` stand for bytes, as `scan` prints them.

use std::io::{self, BufRead, Read};

use s3db::{Collection, Db, KEY_BYTES_MAX, Level, PAYLOAD_BYTES_MAX, Payload, Transaction};
use serde_json::json;

use crate::{
    escape::{self, shown, unescape},
    output::{Failure, Output, Progress, collection, open},
};

/// Bytes of a line, and of what stands around the longest payload in it: a byte is four where it is escaped.
const LINE_BYTES_MAX: u64 = 4 * (PAYLOAD_BYTES_MAX + KEY_BYTES_MAX) as u64 + 4096;

#[derive(clap::Args)]
#[command(after_help = "The script has one operation per line:

  put COLLECTION KEY PAYLOAD     create COLLECTION KEY PAYLOAD     fails if there is a record
  del COLLECTION KEY             update COLLECTION KEY PAYLOAD     fails if there is none
  get COLLECTION KEY             prints what the transaction sees
  commit                         says so when it is durable, and begins the next transaction
  abort                          forgets what was written since the last commit
  # a comment

A payload is all that follows one space or tab behind the key, to the end of the line: blanks count, and it
may be empty. In keys and payloads \\xNN, \\n, \\t, \\r and \\\\ stand for bytes, as scan prints them. A line may
end as on Windows: a payload that ends with a carriage return has it as \\r.

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
            let with_line = |failure| match failure {
                Failure::Told(what) => at(what),
                failure => failure,
            };
            match Line::parse(&line).map_err(with_line)? {
                Line::Nothing => {}
                Line::Commit => {
                    self.commit(&mut txn).await?;
                    txn = db.begin_at(self.args.level);
                }
                Line::Abort => txn = db.begin_at(self.args.level),
                Line::Operation(operation) => {
                    self.operation(&mut txn, &operation).await.map_err(with_line)?;
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

    async fn operation(
        &mut self,
        txn: &mut Transaction<'_>,
        operation: &Operation<'_>,
    ) -> Result<(), Failure> {
        let key = escape::key(operation.key)?;
        let payload = Payload::new(unescape(operation.payload)?)?;
        let of = self.collection(operation.collection).await?;
        match operation.verb {
            Verb::Put => txn.put(&of, &key, payload)?,
            Verb::Create => txn.create(&of, &key, payload).await?,
            Verb::Update => txn.update(&of, &key, payload).await?,
            Verb::Del => txn.delete(&of, &key)?,
            Verb::Get => {
                let found = txn.read(&of, &key).await?.map(|payload| payload.to_string());
                let text = format!("{key}\t{}", found.as_deref().unwrap_or("-"));
                self.output.say(&text, &json!({"key": key.to_string(), "payload": found}))?;
            }
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

/// A line of a script, taken apart.
#[derive(Debug, PartialEq)]
enum Line<'a> {
    /// Blanks, or a comment.
    Nothing,
    Commit,
    Abort,
    Operation(Operation<'a>),
}

/// What is to be done with one record.
#[derive(Debug, PartialEq)]
struct Operation<'a> {
    verb: Verb,
    collection: &'a str,
    /// Escaped, as the payload.
    key: &'a str,
    /// Empty also where the operation has none.
    payload: &'a str,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Verb {
    Put,
    Create,
    Update,
    Del,
    Get,
}

/// What stands between words.
const BLANKS: [char; 2] = [' ', '\t'];

impl Line<'_> {
    fn parse(line: &str) -> Result<Line<'_>, Failure> {
        let ended = line.strip_suffix('\n');
        let line = ended.map_or(line, |line| line.strip_suffix('\r').unwrap_or(line));
        let (first, rest) = word(line);
        let told = |what: &str| Err(Failure::Told(format!("{}: {what}", shown(first))));
        let has_more = |rest: Option<&str>| rest.is_some_and(|rest| !word(rest).0.is_empty());
        let verb = match first {
            "" => return Ok(Line::Nothing),
            comment if comment.starts_with('#') => return Ok(Line::Nothing),
            "commit" | "abort" if has_more(rest) => return told("stands alone on its line"),
            "commit" => return Ok(Line::Commit),
            "abort" => return Ok(Line::Abort),
            "put" => Verb::Put,
            "create" => Verb::Create,
            "update" => Verb::Update,
            "del" => Verb::Del,
            "get" => Verb::Get,
            _ => return told("no such operation"),
        };
        let (collection, rest) = word(rest.unwrap_or(""));
        let (key, rest) = word(rest.unwrap_or(""));
        if key.is_empty() {
            return told("a collection and a key are needed");
        }
        let payload = match (verb, rest) {
            // A key with a blank in it, most likely: what is in front of the blank is another record.
            (Verb::Del | Verb::Get, rest) if has_more(rest) => {
                return told("nothing may follow the key (in a key a blank is \\x20)");
            }
            (Verb::Del | Verb::Get, _) => "",
            (_, Some(payload)) => payload,
            (_, None) => return told("a payload is needed"),
        };
        Ok(Line::Operation(Operation { verb, collection, key, payload }))
    }
}

/// The first word of a text, and what follows the one blank behind it, if there is one.
fn word(text: &str) -> (&str, Option<&str>) {
    let text = text.trim_start_matches(BLANKS);
    text.split_once(BLANKS).map_or((text, None), |(word, rest)| (word, Some(rest)))
}

/// The next line of a script, with its end; `None` behind the last one. What cannot be one is not read on.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_belong_to_the_payload_and_to_nothing_else() {
        use Verb::{Create, Del, Get, Put, Update};
        let operation = |verb, collection, key, payload| {
            Line::Operation(Operation { verb, collection, key, payload })
        };
        let good = [
            ("", Line::Nothing),
            (" \t\r\n", Line::Nothing),
            ("  # put t a 1\n", Line::Nothing),
            ("#put t a 1", Line::Nothing),
            ("commit\n", Line::Commit),
            ("\tcommit \r\n", Line::Commit),
            ("abort", Line::Abort),
            ("put t a 1\n", operation(Put, "t", "a", "1")),
            ("put t a 1\r\n", operation(Put, "t", "a", "1")),
            ("put t a 1\r", operation(Put, "t", "a", "1\r")),
            ("put t a 1\r\r\n", operation(Put, "t", "a", "1\r")),
            ("put t a one  word \t\n", operation(Put, "t", "a", "one  word \t")),
            ("put t a   one\n", operation(Put, "t", "a", "  one")),
            ("put\tt\ta\t1\n", operation(Put, "t", "a", "1")),
            ("  create  t \ta 1\n", operation(Create, "t", "a", "1")),
            ("update t a \n", operation(Update, "t", "a", "")),
            ("put t a \r\n", operation(Put, "t", "a", "")),
            ("put t a\u{a0}b \u{2003}\n", operation(Put, "t", "a\u{a0}b", "\u{2003}")),
            ("put t a\x0bb c\n", operation(Put, "t", "a\x0bb", "c")),
            ("del t a\n", operation(Del, "t", "a", "")),
            ("get t a \t\r\n", operation(Get, "t", "a", "")),
        ];
        for (line, expected) in good {
            assert_eq!(Line::parse(line).unwrap(), expected, "{line:?}");
        }
        for (line, why) in [
            ("fly\n", "fly: no such operation"),
            ("fly t a 1\n", "fly: no such operation"),
            ("PUT t a 1\n", "PUT: no such operation"),
            ("put\n", "a collection and a key"),
            ("del t \t\n", "a collection and a key"),
            ("put t a\r\n", "put: a payload"),
            ("del users ada lovelace\n", "del: nothing may follow the key"),
            ("get users ada  x\n", "get: nothing may follow the key"),
            ("commit now\n", "commit: stands alone"),
            ("abort\tt\n", "abort: stands alone"),
        ] {
            match Line::parse(line) {
                Err(Failure::Told(told)) => assert!(told.contains(why), "{line:?}: {told}"),
                other => panic!("{line:?}: {other:?}"),
            }
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
