//! `pending`: what waits for a curator.

use std::io::{self, Write};

use s3db::{Change, Collection, Db, Key, Level, Proposal, ProposalId, StoreError};
use serde_json::{Value, json};

use crate::output::{Failure, Output, Progress, collection, open, with_causes};

/// Proposals that one list shows, if nothing else is asked for. Each costs a get.
const SHOWN: usize = 100;

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// What waits, one line for each proposal: its name, who proposed it, and how many changes it has
    List(List),
    /// The changes of one proposal, and what their records hold now
    Show(One),
    /// Make one proposal true
    Approve(One),
    /// Throw one proposal away
    Reject(One),
}

#[derive(clap::Args)]
#[command(
    after_help = "Costs a list for each thousand, and a get for each that is shown: what was decided \
on is not there any more. A proposal whose object was replaced is shown as replaced, and can only be \
rejected.

Example:
  s3db pending list file:///tmp/db prices --json"
)]
pub(crate) struct List {
    /// The database
    url: String,
    /// The collection
    collection: String,
    /// Proposals at most
    #[arg(long, default_value_t = SHOWN)]
    limit: usize,
    /// Names alone, which costs no gets
    #[arg(long)]
    names: bool,
    /// Show those behind this one
    #[arg(long, value_name = "PROPOSAL")]
    after: Option<ProposalId>,
}

#[derive(clap::Args)]
#[command(
    after_help = "PROPOSAL is the SHA-256 of what is proposed, as pending list shows it: what is \
approved is what was shown under this name, or nothing. What is approved counts from when it was proposed: \
a record that was written later keeps what it holds. To approve twice is to approve once.

Exit code 3 when nothing of this name waits: it was decided on before.

Examples:
  s3db pending show file:///tmp/db prices 5d41...
  s3db pending approve file:///tmp/db prices 5d41...
  s3db pending reject file:///tmp/db prices 5d41..."
)]
pub(crate) struct One {
    /// The database
    url: String,
    /// The collection
    collection: String,
    /// The proposal, by its whole name
    proposal: ProposalId,
}

pub(crate) async fn run(command: &Command, output: &Output) -> Result<(), Failure> {
    match command {
        Command::List(args) => list(args, output).await,
        Command::Show(args) => show(args, output).await,
        Command::Approve(args) => approve(args, output).await,
        Command::Reject(args) => reject(args, output).await,
    }
}

async fn list(args: &List, output: &Output) -> Result<(), Failure> {
    let db = open(&args.url, output).await?;
    let of = collection(&db, &args.url, &args.collection).await?;
    let store = db.store();
    let progress = Progress::beside_lines(output);
    for (done, id) in store.proposals(&of, args.after, args.limit).await?.into_iter().enumerate() {
        progress.show(|| format!("{done} proposals"));
        if args.names {
            output.say(&id.to_string(), &json!({"proposal": id.to_string()}))?;
            continue;
        }
        match store.proposal(&of, id).await {
            Ok(Some(there)) => {
                let (client, bytes) = (there.transaction.client, there.bytes());
                let changes = there.transaction.entries.len();
                let text = format!("{id}\tclient {client:x}\t{changes} changes\t{bytes} bytes");
                let client = format!("{client:x}");
                output.say(
                    &text,
                    &json!({
                        "proposal": id.to_string(), "client": client, "changes": changes,
                        "bytes": bytes,
                    }),
                )?;
            }
            // Decided on since the list.
            Ok(None) => {}
            Err(StoreError::Invalid(_)) => {
                let value = json!({"proposal": id.to_string(), "replaced": true});
                output.say(&format!("{id}\treplaced: reject it"), &value)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    progress.end();
    output.close(db).await
}

/// What waits under this name.
async fn find(args: &One, db: &Db, of: &Collection) -> Result<Proposal, Failure> {
    let found = db.store().proposal(of, args.proposal).await?;
    found.ok_or_else(|| {
        tell!("s3db: nothing waits under this name: it was decided on, or never proposed");
        Failure::NoRecord
    })
}

async fn show(args: &One, output: &Output) -> Result<(), Failure> {
    let db = open(&args.url, output).await?;
    let of = collection(&db, &args.url, &args.collection).await?;
    let proposal = find(args, &db, &of).await?;
    let txn = db.begin_at(Level::Basic);
    let mut out = io::BufWriter::new(io::stdout());
    for entry in &proposal.transaction.entries {
        let (change, stamp) = (&entry.record.change, entry.record.stamp);
        let key = change.key();
        let now = match txn.open_content(&of, key).await? {
            Some(content) if content.bytes() > 4096 => Some(format!("{} bytes", content.bytes())),
            Some(_) => txn.read(&of, key).await?.map(|payload| payload.to_string()),
            None => None,
        };
        write_change(&mut out, output, key, change, stamp, now.as_deref())?;
    }
    out.flush()?;
    drop(out);
    output.close(db).await
}

fn write_change(
    out: &mut impl Write,
    output: &Output,
    key: &Key,
    change: &Change,
    stamp: s3db::Stamp,
    now: Option<&str>,
) -> io::Result<()> {
    let (verb, payload) = match change {
        Change::Delete(..) => ("del", None),
        Change::Blob(_, blob) => ("put", Some(format!("{} bytes, a blob", blob.bytes()))),
        _ => ("put", change.payload().map(|payload| payload.to_string())),
    };
    if output.json {
        let value: Value = json!({
            "change": verb, "key": key.to_string(), "payload": payload, "now": now,
            "stamp": stamp.to_string(),
        });
        return writeln!(out, "{value}");
    }
    let (payload, now) = (payload.unwrap_or_else(|| "-".into()), now.unwrap_or("-"));
    writeln!(out, "{verb}\t{key}\t{payload}\tnow: {now}\t{stamp}")
}

async fn approve(args: &One, output: &Output) -> Result<(), Failure> {
    let db = open(&args.url, output).await?;
    let of = collection(&db, &args.url, &args.collection).await?;
    let proposal = find(args, &db, &of).await?;
    let id = args.proposal.to_string();
    let (text, value) = match db.store().approve(&of, &proposal).await {
        Ok(done) => {
            let (records, applied) = (done.records, done.applied);
            let text = format!("approved: {applied} of {records} records changed");
            (text, json!({"approved": id, "records": records, "changed": applied}))
        }
        // What was to be done is done, as with a commit: the rest any sweep does.
        Err(StoreError::Unapplied { source, .. }) => {
            let records = proposal.transaction.entries.len();
            let value = json!({"approved": id, "records": records, "changed": Value::Null});
            let why = with_causes(&source);
            tell!("s3db: approved, but not on its pages yet: {why}; sweep later");
            ("approved".to_owned(), value)
        }
        Err(error) => return Err(error.into()),
    };
    output.finish(db, &text, &value).await
}

async fn reject(args: &One, output: &Output) -> Result<(), Failure> {
    let db = open(&args.url, output).await?;
    let of = collection(&db, &args.url, &args.collection).await?;
    let was_there = db.store().reject(&of, args.proposal).await?;
    if !was_there {
        output.close(db).await?;
        return Err(Failure::NoRecord);
    }
    output.finish(db, "rejected", &json!({"rejected": args.proposal.to_string()})).await
}
