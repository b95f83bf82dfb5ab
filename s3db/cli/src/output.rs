//! What people and machines get to see, and exit codes.

use std::{
    error::Error,
    io::{self, ErrorKind, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
};

use s3db::{
    Db, Keyring, Options, StoreError, Transaction,
    cloud::{CallKind, Prices},
};
use serde_json::{Value, json};

/// Options of every command.
#[derive(clap::Args)]
pub(crate) struct Output {
    /// Print JSON: one object, or one per line where there can be many
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Say on stderr which calls were made, and what they cost: in total and by collection
    #[arg(long, global = true)]
    pub(crate) bill: bool,
    /// What calls cost, as in get=0.40,put=5.00: get, put, send and queue in dollars per million, gb_in
    /// and gb_out per GB. What is left out costs what it does on S3 and SQS today
    #[arg(long, global = true, value_name = "PRICES")]
    pub(crate) prices: Option<Prices>,
    /// Keys of an encrypted database: a file with a line `NUMBER HEX` for each, of 64 hexadecimal
    /// digits. The first one encrypts, all of them decrypt
    #[arg(
        id = "keys_file",
        long = "keys",
        global = true,
        env = "S3DB_KEYS_FILE",
        value_name = "FILE"
    )]
    keys_file: Option<PathBuf>,
}

/// Why a command ends early.
#[derive(Debug)]
pub(crate) enum Failure {
    /// For the person at the terminal.
    Told(String),
    /// There is no such record: said already, if there is anything to say.
    NoRecord,
    /// `verify` or `index check` found problems, and has said which.
    Problems,
    /// The reader of standard output went away.
    BrokenPipe,
}

impl Failure {
    /// Says what is to be said, and how the process ends.
    pub(crate) fn report(self) -> ExitCode {
        ExitCode::from(match self {
            Failure::Told(what) => {
                eprintln!("s3db: {what}");
                1
            }
            Failure::NoRecord => 3,
            Failure::Problems => 4,
            Failure::BrokenPipe => 141,
        })
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        Failure::Told(with_causes(&error))
    }
}

impl From<s3db::BoundError> for Failure {
    fn from(error: s3db::BoundError) -> Failure {
        Failure::Told(error.to_string())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        match error.kind() {
            ErrorKind::BrokenPipe => Failure::BrokenPipe,
            _ => Failure::Told(format!("standard output: {error}")),
        }
    }
}

fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

impl Output {
    /// The keys of the database, if it has any.
    pub(crate) fn keys(&self) -> Result<Option<Keyring>, Failure> {
        let Some(path) = &self.keys_file else { return Ok(None) };
        Ok(Some(Keyring::from_file(path)?))
    }

    /// Prints a line for people, or an object for machines.
    pub(crate) fn say(&self, text: &str, value: &Value) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{value}")?;
        } else if !text.is_empty() {
            writeln!(out, "{text}")?;
        }
        Ok(out.flush()?)
    }

    /// Closes a database, and says what its use cost if that was asked for.
    ///
    /// What the command was to do is done by now, and what it committed is durable: that others will
    /// bring it to its pages is worth a word, and no failure.
    pub(crate) async fn close(&self, db: Db) -> Result<(), Failure> {
        let ledger = db.ledger().clone();
        let collections = db.collection_ledgers();
        if let Err(error) = db.close().await {
            let why = with_causes(&error);
            eprintln!(
                "s3db: done, but what was committed is not on its pages yet: {why}; sweep later"
            );
        }
        if !self.bill {
            return Ok(());
        }
        let prices = self.prices.unwrap_or(Prices::TODAY);
        let parts = collections.iter().map(|(name, ledger)| (name, ledger.dollars(&prices)));
        let charged = CallKind::ALL.into_iter().map(|kind| (kind, ledger.charge(kind)));
        let charged: Vec<_> = charged.filter(|(_, charge)| charge.calls > 0).collect();
        if self.json {
            let kinds: serde_json::Map<String, Value> = charged
                .iter()
                .map(|(kind, charge)| (kind.name().to_owned(), json!(charge.calls)))
                .collect();
            eprintln!(
                "{}",
                json!({
                    "calls": kinds, "dollars": ledger.dollars(&prices),
                    "collections": parts.collect::<std::collections::BTreeMap<_, _>>(),
                })
            );
            return Ok(());
        }
        eprintln!(
            "{:15} {:>8} {:>12} {:>12} {:>12}",
            "call", "calls", "bytes out", "bytes in", "$"
        );
        for (kind, charge) in charged {
            let dollars = prices.of(kind, charge);
            let (out, back) = (charge.bytes_out, charge.bytes_in);
            eprintln!(
                "{:15} {:>8} {out:>12} {back:>12} {dollars:>12.8}",
                kind.name(),
                charge.calls
            );
        }
        for (name, dollars) in parts {
            eprintln!("{:15} {dollars:>47.8}", format!("of it, for {name}"));
        }
        eprintln!("{:15} {:>47.8}", "total", ledger.dollars(&prices));
        Ok(())
    }
}

/// How new what is read has to be.
#[derive(clap::Args)]
pub(crate) struct Fresh {
    /// Also what is committed and on no page yet: looks into the log, which costs a list and a get for
    /// each of its objects, or some receives of each queue, and then shows a sample
    #[arg(long)]
    fresh: bool,
}

impl Fresh {
    /// A transaction that reads so.
    pub(crate) fn begin<'a>(&self, db: &'a Db) -> Transaction<'a> {
        if self.fresh { db.begin().fresh() } else { db.begin() }
    }
}

/// A database for one command: nothing goes on in the background.
pub(crate) async fn open(url: &str, output: &Output) -> Result<Db, Failure> {
    let options = Options { has_worker: false, keys: output.keys()?, ..Options::default() };
    match Db::open_with(url, &options).await {
        Err(StoreError::NotFound(_)) => {
            Err(Failure::Told(format!("there is no database at {url}: s3db init {url} makes one")))
        }
        Err(StoreError::Encrypted) => Err(Failure::Told(format!(
            "{url} is encrypted: give its keys by --keys FILE, or in S3DB_KEYS_FILE"
        ))),
        db => Ok(db?),
    }
}

/// A collection, or what to do about it.
pub(crate) async fn collection(
    db: &Db,
    url: &str,
    name: &str,
) -> Result<s3db::Collection, Failure> {
    match db.collection(name).await {
        Err(StoreError::NotFound(_)) => Err(Failure::Told(format!(
            "there is no collection {name}: s3db init {url} {name} makes one"
        ))),
        collection => Ok(collection?),
    }
}

/// Progress on stderr, for people only.
pub(crate) struct Progress {
    shows: bool,
    last: std::cell::Cell<Option<std::time::Instant>>,
}

impl Progress {
    pub(crate) fn new() -> Progress {
        Progress { shows: io::stderr().is_terminal(), last: std::cell::Cell::new(None) }
    }

    /// Shows `text`, a few times a second at most.
    pub(crate) fn show(&self, text: impl FnOnce() -> String) {
        let is_due = self.last.get().is_none_or(|last| last.elapsed().as_millis() > 200);
        if self.shows && is_due {
            self.last.set(Some(std::time::Instant::now()));
            eprint!("\r\x1b[K{}", text());
        }
    }

    /// Removes what was shown.
    pub(crate) fn end(&self) {
        if self.shows && self.last.get().is_some() {
            eprint!("\r\x1b[K");
        }
    }
}
