//! What people and machines get to see, and exit codes.

use std::{
    error::Error,
    io::{self, ErrorKind, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use s3db::{
    Address, Backend, Committed, Db, Eviction, Keyring, Options, SequencerState, StoreError,
    Transaction,
    cloud::{CallKind, DiskSpace, Fault, Prices, Spending},
};
use serde_json::{Value, json};

/// Options of every command.
#[derive(clap::Args)]
pub(crate) struct Output {
    /// Print JSON: one object, or one per line where there can be many
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Say on stderr which calls were made, and what they cost, in total and by collection; and what became
    /// of pages
    #[arg(long, global = true)]
    pub(crate) bill: bool,
    /// What calls cost, as in get=0.40,put=5.00: get, put, send and queue in dollars per million, gb_in
    /// and gb_out per GB. What is left out costs what it does on S3 and SQS today
    #[arg(long, global = true, value_name = "PRICES", value_parser = prices)]
    prices: Option<String>,
    /// Bytes of memory for pages, as in 64M: all that is held of them at a time
    #[arg(
        long = "budget",
        global = true,
        env = "S3DB_BUDGET",
        value_name = "BYTES",
        default_value = "64M",
        value_parser = bytes
    )]
    budget_bytes: u64,
    /// Which pages are given up when the budget is full: s3fifo or clock
    #[arg(long, global = true, env = "S3DB_EVICTION", value_name = "POLICY", default_value_t)]
    eviction: Eviction,
    /// A folder that keeps copies of pages beside memory, for all processes of this machine and beyond
    /// them: as they lie in the object store, which is asked whether they are still the newest
    #[arg(long = "disk", global = true, env = "S3DB_DISK", value_name = "PATH")]
    disk: Option<PathBuf>,
    /// Bytes that may be used there
    #[arg(
        long = "disk-bytes",
        global = true,
        env = "S3DB_DISK_BYTES",
        value_name = "BYTES",
        default_value = "1G",
        value_parser = bytes
    )]
    disk_bytes: u64,
    /// The client that this command is, in hexadecimal: it has one life at a time, so of two commands at once
    /// one ends the other. Left out it is a new one, which is forgotten when the command ends
    #[arg(
        id = "as_client",
        long = "client",
        global = true,
        env = "S3DB_CLIENT",
        value_name = "HEX",
        value_parser = client
    )]
    client: Option<u64>,
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

/// The sequencer, in a line.
pub(crate) fn sequencer_text(state: &SequencerState) -> String {
    match &state.problem {
        Some(what) => format!("sequencer: {what}"),
        None => {
            let mut text =
                format!("sequencer: {} commits, {} of them wait", state.last, state.waiting);
            if state.aside > 0 {
                let why = "for pages that cannot be read: s3db verify names them";
                text.push_str(&format!(", {} {why}", state.aside));
            }
            text
        }
    }
}

/// The same for machines.
pub(crate) fn sequencer_value(state: &SequencerState) -> Value {
    match &state.problem {
        Some(what) => json!({"problem": what}),
        None => json!({"last": state.last, "waiting": state.waiting, "aside": state.aside}),
    }
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
    /// Another transaction was in the way of this one: what was.
    Aborted(String),
    /// The reader of standard output went away.
    BrokenPipe,
}

impl Failure {
    /// Says what is to be said, and how the process ends.
    pub(crate) fn report(self) -> ExitCode {
        ExitCode::from(match self {
            Failure::Told(what) => {
                tell!("s3db: {what}");
                1
            }
            Failure::Aborted(what) => {
                tell!("s3db: {what}");
                5
            }
            Failure::NoRecord => 3,
            Failure::Problems => 4,
            Failure::BrokenPipe => 141,
        })
    }

    /// The same of what could not be said of work that is done.
    fn of_done(self) -> Failure {
        match self {
            Failure::Told(what) => Failure::Told(format!("done, but {what}")),
            failure => failure,
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        match error {
            StoreError::Aborted { .. } => Failure::Aborted(with_causes(&error)),
            error => Failure::Told(with_causes(&error)),
        }
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

pub(crate) fn with_causes(error: &dyn Error) -> String {
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

    /// What calls cost in a database with this log.
    pub(crate) fn prices(&self, backend: Backend) -> Prices {
        let today = backend.prices();
        let with = |text: &String| today.with(text).expect("it was looked at with the arguments");
        self.prices.as_ref().map_or(today, with)
    }

    /// How every command opens a database: nothing goes on in the background.
    pub(crate) fn options(&self) -> Result<Options, Failure> {
        let (keys, eviction) = (self.keys()?, self.eviction);
        let (budget_bytes, has_worker, client) = (self.budget_bytes, false, self.client);
        let disk = self.disk.as_ref().map(|path| DiskSpace::folder(path, self.disk_bytes));
        let disk = disk.transpose()?;
        let options =
            Options { has_worker, keys, eviction, budget_bytes, disk, ..Options::default() };
        Ok(Options { client, ..options })
    }

    /// Says what came of a commit: that it happened, if anyone wants to know, or what waits for a curator.
    pub(crate) fn committed(&self, done: Committed, tells: bool) -> Result<(), Failure> {
        let records = done.records;
        let said = match done.proposed {
            Some(id) => self.say(
                &format!("proposed {records} records: {id}"),
                &json!({"proposed": id.to_string(), "records": records}),
            ),
            None => {
                let text = format!("committed {records} records");
                let text = if tells { &text[..] } else { "" };
                self.say(text, &json!({"committed": records}))
            }
        };
        said.map_err(Failure::of_done)
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

    /// Closes a database, and then prints what came of the command, as [`Output::say`]: where that fails,
    /// nothing of the work is left to others.
    pub(crate) async fn finish(&self, db: Db, text: &str, value: &Value) -> Result<(), Failure> {
        self.close(db).await?;
        self.say(text, value).map_err(Failure::of_done)
    }

    /// Closes a database, and says what its use cost if that was asked for.
    ///
    /// What the command was to do is done by now, and what it committed is durable: that others will
    /// bring it to its pages is worth a word, and no failure.
    pub(crate) async fn close(&self, db: Db) -> Result<(), Failure> {
        let backend = db.store().database().backend;
        let ledger = db.ledger().clone();
        let collections = db.collection_ledgers();
        let pool = db.pool_counts().named();
        if let (Some(why), Some(path)) = (db.store().disk_failure(), &self.disk) {
            tell!("s3db: pages could not be kept in {}: {why}", path.display());
        }
        if let Err(error) = db.close().await {
            let why = with_causes(&error);
            tell!("s3db: done, but what was committed is not on its pages yet: {why}; sweep later");
        }
        if !self.bill {
            return Ok(());
        }
        let prices = self.prices(backend);
        let parts = collections.iter().map(|(name, ledger)| (name, ledger.dollars(&prices)));
        let charged = CallKind::ALL.into_iter().map(|kind| (kind, ledger.charge(kind)));
        let charged: Vec<_> = charged.filter(|(_, charge)| charge.calls > 0).collect();
        if self.json {
            let kinds: serde_json::Map<String, Value> = charged
                .iter()
                .map(|(kind, charge)| (kind.name().to_owned(), json!(charge.calls)))
                .collect();
            tell!(
                "{}",
                json!({
                    "calls": kinds, "dollars": ledger.dollars(&prices),
                    "collections": parts.collect::<std::collections::BTreeMap<_, _>>(),
                    "pool": pool.into_iter().collect::<std::collections::BTreeMap<_, _>>(),
                })
            );
            return Ok(());
        }
        tell!("{:15} {:>8} {:>12} {:>12} {:>12}", "call", "calls", "bytes out", "bytes in", "$");
        for (kind, charge) in charged {
            let dollars = prices.of(kind, charge);
            let (out, back) = (charge.bytes_out, charge.bytes_in);
            tell!("{:15} {:>8} {out:>12} {back:>12} {dollars:>12.8}", kind.name(), charge.calls);
        }
        for (name, dollars) in parts {
            tell!("{:15} {dollars:>47.8}", format!("of it, for {name}"));
        }
        tell!("{:15} {:>47.8}", "total", ledger.dollars(&prices));
        let pool: Vec<String> =
            pool.iter().map(|(name, count)| format!("{name} {count}")).collect();
        tell!("pages: {}", pool.join(", "));
        Ok(())
    }
}

/// What a command may spend that works for all, and perhaps for ever.
#[derive(clap::Args, Default)]
pub(crate) struct Spend {
    /// US dollars that its calls may cost per day, at today's prices or those of --prices: when they are
    /// spent it ends, with exit code 1, and what it has done is done
    #[arg(long = "spend", value_name = "DOLLARS", value_parser = dollars)]
    dollars: Option<f64>,
}

impl Spend {
    /// A database with that limit.
    pub(crate) async fn open(
        &self,
        url: &str,
        options: Options,
        output: &Output,
    ) -> Result<Db, Failure> {
        let db = open_with(url, &options).await?;
        let Some(dollars) = self.dollars else { return Ok(db) };
        // Which log it has says what calls cost.
        let backend = db.store().database().backend;
        drop(db);
        // All that it does is for others: there is nothing to leave some for.
        let whole = Spending::per_day(dollars, output.prices(backend));
        let spending = Spending { background_share: 1.0, ..whole };
        open_with(url, &Options { spending: Some(spending), ..options }).await
    }
}

fn dollars(text: &str) -> Result<f64, String> {
    let dollars = text.parse::<f64>().ok().filter(|dollars| dollars.is_finite() && *dollars > 0.0);
    dollars.ok_or_else(|| "US dollars, as in 0.50".to_owned())
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
    pub(crate) fn begin<'a>(&self, db: &'a Db, of: &s3db::Collection) -> Transaction<'a> {
        let transaction = db.begin_for(of);
        if self.fresh { transaction.fresh() } else { transaction }
    }
}

/// Changes of prices that can be made.
fn prices(text: &str) -> Result<String, String> {
    Prices::TODAY.with(text).map(|_| text.to_owned())
}

/// A number of bytes, as in 1000, 64K, 64M or 2G: by 1,024.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let shift = match text.bytes().last() {
        Some(b'K' | b'k') => 10,
        Some(b'M' | b'm') => 20,
        Some(b'G' | b'g') => 30,
        _ => 0,
    };
    let digits = if shift == 0 { text } else { &text[..text.len() - 1] };
    let number = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    number.filter(|bytes| *bytes > 0).ok_or_else(|| "a number of bytes, as in 64M or 2G".to_owned())
}

/// A client, as messages and `policy` name it.
pub(crate) fn client(text: &str) -> Result<u64, String> {
    u64::from_str_radix(text, 16)
        .map_err(|_| "up to 16 hexadecimal digits, as in 7 or feed".to_owned())
}

/// A database for one command: nothing goes on in the background.
pub(crate) async fn open(url: &str, output: &Output) -> Result<Db, Failure> {
    open_with(url, &output.options()?).await
}

/// The same, where what the object store has is to be looked at itself: no copies on a disk.
pub(crate) async fn open_without_disk(url: &str, output: &Output) -> Result<Db, Failure> {
    open_with(url, &Options { disk: None, ..output.options()? }).await
}

/// The same, with options of the command's.
pub(crate) async fn open_with(url: &str, options: &Options) -> Result<Db, Failure> {
    match Db::open_with(url, options).await {
        Err(StoreError::NotFound(_)) => {
            let shown = Address::shown(url);
            Err(Failure::Told(format!("there is no database at {shown}: s3db init makes one")))
        }
        Err(StoreError::Encrypted) => Err(Failure::Told(format!(
            "{} is encrypted: give its keys by --keys FILE, or in S3DB_KEYS_FILE",
            Address::shown(url)
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
            "there is no collection {name}: s3db init {} {name} makes one",
            Address::shown(url)
        ))),
        collection => Ok(collection?),
    }
}

/// Rounds of what goes on for ever, where one that fails is told and followed by the next one.
pub(crate) struct Failures {
    in_a_row: u32,
    most: u32,
    /// Whether one that the next round will meet again, such as a damaged page, counts.
    counts_all: bool,
}

impl Failures {
    /// Gives up after `most` in a row.
    pub(crate) fn until(most: u32) -> Failures {
        Failures { in_a_row: 0, most, counts_all: true }
    }

    /// Gives up after `most` in a row that had no answer. What is damaged, or not allowed, is told each
    /// time, and is not in the way of the rest.
    pub(crate) fn without_answer(most: u32) -> Failures {
        Failures { counts_all: false, ..Failures::until(most) }
    }

    /// A round went well.
    pub(crate) fn none(&mut self) {
        self.in_a_row = 0;
    }

    /// `what` failed. It is an error when that was the last time, or when no round can do better: what may
    /// be spent is spent.
    pub(crate) fn one(
        &mut self,
        output: &Output,
        what: &str,
        error: StoreError,
    ) -> Result<(), Failure> {
        let counts = self.counts_all || error.is_passing();
        self.in_a_row = if counts { self.in_a_row + 1 } else { 0 };
        let is_spent = matches!(&error, StoreError::Cloud { source: Fault::Spent { .. }, .. });
        if self.in_a_row >= self.most || is_spent {
            return Err(error.into());
        }
        Failures::tell(output, what, &error);
        Ok(())
    }

    /// Says that `what` failed, which counts for nothing.
    pub(crate) fn tell(output: &Output, what: &str, error: &StoreError) {
        let why = with_causes(error);
        match output.json {
            true => tell!("{}", json!({ "error": why })),
            false => tell!("s3db: {what} failed: {why}"),
        }
    }
}

/// The calls that were made so far, for people.
fn calls(db: &Db) -> String {
    let charged = CallKind::ALL.into_iter().map(|kind| (kind, db.ledger().charge(kind).calls));
    let parts = charged.filter(|(_, calls)| *calls > 0);
    parts.map(|(kind, calls)| format!("{calls} {}", kind.name())).collect::<Vec<_>>().join(", ")
}

/// Progress on stderr, for people only: there is none with `--json`, and none where nobody looks.
pub(crate) struct Progress {
    shows: bool,
    last: std::cell::Cell<Option<std::time::Instant>>,
}

impl Progress {
    pub(crate) fn new(output: &Output) -> Progress {
        let shows = !output.json && io::stderr().is_terminal();
        Progress { shows, last: std::cell::Cell::new(None) }
    }

    /// Of a command that prints what it finds: none where that comes to the same screen.
    pub(crate) fn beside_lines(output: &Output) -> Progress {
        let shows = !output.json && io::stderr().is_terminal() && !io::stdout().is_terminal();
        Progress { shows, last: std::cell::Cell::new(None) }
    }

    /// Shows how many of `of` bytes are done, if it is known how many there are.
    pub(crate) fn bytes(&self, done: u64, of: Option<u64>) {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        self.show(|| match of {
            Some(of) => format!("{:.1} of {:.1} MiB", mib(done), mib(of)),
            None => format!("{:.1} MiB", mib(done)),
        });
    }

    /// Does `work`, and shows meanwhile which calls `db` makes for it.
    pub(crate) async fn during<T>(
        output: &Output,
        db: &Db,
        what: &str,
        work: impl Future<Output = T>,
    ) -> T {
        let progress = Progress::new(output);
        let mut work = std::pin::pin!(work);
        let done = loop {
            match tokio::time::timeout(Duration::from_millis(500), work.as_mut()).await {
                Ok(done) => break done,
                Err(_) => progress.show(|| format!("{what}: {}", calls(db))),
            }
        };
        progress.end();
        done
    }

    /// Shows `text`, a few times a second at most.
    pub(crate) fn show(&self, text: impl FnOnce() -> String) {
        let is_due = self.last.get().is_none_or(|last| last.elapsed().as_millis() > 200);
        if self.shows && is_due {
            self.last.set(Some(std::time::Instant::now()));
            tell_on!("\r\x1b[K{}", text());
        }
    }

    /// Removes what was shown.
    pub(crate) fn end(&self) {
        if self.shows && self.last.take().is_some() {
            tell_on!("\r\x1b[K");
        }
    }
}

/// Also where something fails: what is said then has a line of its own.
impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_that_fail_end_at_last_where_another_one_cannot_help() {
        let output = <Args as clap::Parser>::parse_from(["s3db", "--json"]).output;
        let no_answer =
            || StoreError::Cloud { attempts: 10, source: Fault::Throttled { what: "page".into() } };
        let damaged = || StoreError::NotFound("page".into());
        let mut failures = Failures::without_answer(3);
        let mut one = |error| failures.one(&output, "a round", error).is_ok();
        let went_on = [no_answer(), no_answer(), damaged(), no_answer(), no_answer(), no_answer()];
        assert_eq!(went_on.map(&mut one), [true, true, true, true, true, false]);
        let mut failures = Failures::until(2);
        let mut one = |error| failures.one(&output, "a look", error).is_ok();
        assert_eq!([damaged(), no_answer()].map(&mut one), [true, false]);
        let spent = Fault::Spent { what: "page".into(), cause: "all is spent".into() };
        let spent = StoreError::Cloud { attempts: 1, source: spent };
        assert!(Failures::without_answer(3).one(&output, "a round", spent).is_err());
    }

    #[derive(clap::Parser)]
    struct Args {
        #[command(flatten)]
        output: Output,
    }
}
