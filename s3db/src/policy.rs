//! What a client has to be allowed to do, as policies that AWS takes.
//!
//! S3 and SQS know names alone. So what a right can be told from is what names tell: the collection of a page
//! and of a catalogue entry (see `tag`), of a proposal and of what a curator approved; and the client of a log
//! object, of a blob and of a client's lives. The log is one for all collections, since a commit is one object or
//! message: to write, and to bring to the pages what others wrote, are rights in the whole database, whatever
//! collections they are printed for. Where a collection names its writers (`writers`), and a policy binds a writer
//! to its client, whoever keeps the collection enforces the rest. The sequencer, too, is one for all collections
//! with isolation: who reads one of them may read what was committed last to any.
//!
//! Every call that a client of a right makes is in its policy, and no other: the tests run clients behind
//! what evaluates it.

use std::{fmt::Write as _, str::FromStr};

use crate::{
    catalog::{Backend, Collection, Database, check_name},
    client,
    error::StoreError,
    names::{
        APPROVED, BLOBS, CATALOG, CLIENTS, DATABASE, LOG, OWNERS, PROPOSALS, QUARANTINE, SPILLED,
        WRITERS,
    },
    sequence::{DATA, NUMBERS},
    tag::Tag,
};

/// What somebody may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Right {
    /// Read the records of the collections, and find them by their indexes.
    Read,
    /// And commit changes: of any collection that is not curated, since the log is one for all; or of any
    /// that was created for isolation, since the sequencer is one for these.
    Write,
    /// Read, and propose changes of curated collections.
    Propose,
    /// Read, and decide on proposals for curated collections.
    Curate,
    /// Bring to the pages of the collections what was committed: sweep. Whoever may do that may change
    /// these pages, and delete what waits in the log for any.
    Keep,
}

impl Right {
    /// All of them.
    pub const ALL: [Right; 5] =
        [Right::Read, Right::Write, Right::Propose, Right::Curate, Right::Keep];

    /// As commands name it.
    pub fn name(self) -> &'static str {
        match self {
            Right::Read => "read",
            Right::Write => "write",
            Right::Propose => "propose",
            Right::Curate => "curate",
            Right::Keep => "keep",
        }
    }
}

impl FromStr for Right {
    type Err = StoreError;

    fn from_str(name: &str) -> Result<Right, StoreError> {
        Right::ALL.into_iter().find(|right| right.name() == name).ok_or_else(|| {
            let names = Right::ALL.map(Right::name).join(", ");
            StoreError::Invalid(format!("the rights are {names}"))
        })
    }
}

/// Where a database lies, in the words of policies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// The bucket.
    pub bucket: String,
    /// What the names of its objects begin with: empty, or with a `/` at the end.
    pub prefix: String,
    /// What the names of its queues begin with.
    pub queues: String,
}

/// What a collection was created for, as far as rights depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CollectionKind {
    /// Changes come by the log.
    Plain,
    /// Changes are proposed.
    Curated,
    /// Changes come by the sequencer.
    Isolated,
}

impl CollectionKind {
    /// That of a collection.
    pub fn of(collection: &Collection) -> CollectionKind {
        match collection.isolation {
            Some(_) => CollectionKind::Isolated,
            None if collection.is_curated() => CollectionKind::Curated,
            None => CollectionKind::Plain,
        }
    }
}

/// What a policy is to allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// The right.
    pub right: Right,
    /// Names of the collections, each with what it was created for.
    pub collections: Vec<(String, CollectionKind)>,
    /// Fresh reads, too: they read the log, which has records of all collections.
    pub fresh: bool,
    /// Payloads that lie in blobs, too. Their names tell no collection: it is those of all.
    pub blobs: bool,
    /// Who writes does so as this client alone ([`Options::client`](crate::Options)): only its own lives, log,
    /// blobs and what is too large for a message are put. Messages of queues tell nothing of who sent them.
    /// Nobody else is bound to one: with s3-log the next life of a named client puts fences into its log, which
    /// who proposes may not.
    pub client: Option<u64>,
}

/// One thing that is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Statement {
    sid: &'static str,
    actions: Vec<&'static str>,
    resources: Vec<String>,
    /// Operator, key, values.
    condition: Option<(&'static str, &'static str, Vec<String>)>,
}

/// A policy of AWS: everything that it does not name stays forbidden.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    statements: Vec<Statement>,
}

/// Collects statements.
struct Allowed<'a> {
    names: &'a Names,
    statements: Vec<Statement>,
}

impl Allowed<'_> {
    fn objects(&mut self, sid: &'static str, actions: &[&'static str], names: &[String]) {
        let Names { bucket, prefix, .. } = self.names;
        let resource = |name: &String| format!("arn:aws:s3:::{bucket}/{prefix}{name}");
        let resources = names.iter().map(resource).collect();
        let actions = actions.to_vec();
        self.statements.push(Statement { sid, actions, resources, condition: None });
    }

    /// Puts where nothing is: what is there cannot be replaced.
    fn new_objects(&mut self, sid: &'static str, names: &[String]) {
        self.objects(sid, &["s3:PutObject"], names);
        if let Some(last) = self.statements.last_mut() {
            last.condition = Some(("Null", "s3:if-none-match", vec!["false".into()]));
        }
    }

    /// Puts in the place of a version that is named: nothing is replaced that the client has not seen.
    fn replaced_objects(&mut self, sid: &'static str, names: &[String]) {
        self.objects(sid, &["s3:PutObject"], names);
        if let Some(last) = self.statements.last_mut() {
            last.condition = Some(("Null", "s3:if-match", vec!["false".into()]));
        }
    }

    /// Lists of the database's objects. Who may not ask for any list is not told by S3 that an object is not
    /// there, but that it is not allowed: a get has no prefix, so the condition lets it pass where there is
    /// none.
    fn names(&mut self) {
        let Names { bucket, prefix, .. } = self.names;
        self.statements.push(Statement {
            sid: "SeeNames",
            actions: vec!["s3:ListBucket"],
            resources: vec![format!("arn:aws:s3:::{bucket}")],
            condition: Some(("StringLikeIfExists", "s3:prefix", vec![format!("{prefix}*")])),
        });
    }

    fn queues(&mut self, sid: &'static str, actions: &[&'static str]) {
        let prefix = &self.names.queues;
        let resources = vec![format!("arn:aws:sqs:*:*:{prefix}*")];
        let actions = actions.to_vec();
        self.statements.push(Statement { sid, actions, resources, condition: None });
    }
}

fn all(folder: &str) -> String {
    format!("{folder}*")
}

/// The policy for a wish.
///
/// # Errors
/// [`StoreError::Invalid`] when the database was made before the names of pages told their collection; when
/// no collection, or a name that is none, is wished for; or when the right makes no sense for one: nobody
/// proposes to a collection that is not curated, or writes to one that is; and when it names a client for
/// another right than to write.
pub fn policy(names: &Names, database: &Database, wish: &Wish) -> Result<Policy, StoreError> {
    let invalid = |what: String| Err(StoreError::Invalid(what));
    if !database.has_tags {
        return invalid(
            "this database was made before the names of pages told their collection: no policy can tell \
             them apart; copy it into a new one"
                .into(),
        );
    }
    if wish.collections.is_empty() {
        return invalid("name a collection".into());
    }
    for (name, kind) in &wish.collections {
        check_name(name)?;
        match (wish.right, kind) {
            (_, CollectionKind::Curated) if wish.right != Right::Write => {}
            (Right::Propose | Right::Curate, _) => {
                return invalid(format!("collection {name} is not curated: grant write"));
            }
            (Right::Write, CollectionKind::Curated) => {
                return invalid(format!("collection {name} is curated: grant propose, or curate"));
            }
            _ => {}
        }
    }
    let tag =
        |(name, kind): &(String, CollectionKind)| Tag::of(name, *kind == CollectionKind::Curated);
    let tags: Vec<Tag> = wish.collections.iter().map(tag).collect();
    let of_kind = |kind| wish.collections.iter().any(|(_, it)| *it == kind);
    let has_isolated = of_kind(CollectionKind::Isolated);
    // Of collections with isolation nothing is in the log.
    let uses_log = of_kind(CollectionKind::Plain) || of_kind(CollectionKind::Curated);
    if wish.client.is_some() && wish.right != Right::Write {
        return invalid("only who writes can be bound to one client".into());
    }
    // The second part of the names of what clients put.
    let own = |folder: &str| match wish.client {
        Some(client) => format!("{folder}{client:016x}/*"),
        None => all(folder),
    };
    let life = wish.client.map_or(all(CLIENTS), client::object);
    let pages: Vec<String> = tags.iter().map(|tag| all(&tag.pages())).collect();
    let within = |folder: &str| -> Vec<String> {
        tags.iter().map(|tag| format!("{folder}{tag}/*")).collect()
    };
    let has_queues = database.backend != Backend::S3Log;
    let mut allowed = Allowed { names, statements: Vec::new() };

    let entries = wish.collections.iter().map(|(name, _)| format!("{CATALOG}{name}"));
    let mut read = vec![DATABASE.to_owned()];
    read.extend(entries);
    read.extend(pages.iter().cloned());
    if wish.blobs {
        read.push(all(BLOBS));
    }
    allowed.objects("ReadRecords", &["s3:GetObject"], &read);
    if has_isolated && wish.right != Right::Keep {
        let names = [NUMBERS.to_owned(), all(DATA)];
        allowed.objects("SeeCommits", &["s3:GetObject"], &names);
    }
    if wish.fresh && has_queues {
        allowed.objects("ReadWhatWaits", &["s3:GetObject"], &[all(SPILLED)]);
        allowed.queues("LookIntoTheLog", &["sqs:ReceiveMessage", "sqs:GetQueueUrl"]);
    } else if wish.fresh {
        allowed.objects("ReadWhatWaits", &["s3:GetObject"], &[all(LOG)]);
    }
    if database.has_writers {
        // Whoever meets records of all collections asks whose they may be.
        let every = wish.fresh || wish.right == Right::Keep;
        let lists = || tags.iter().map(|tag| format!("{WRITERS}{tag}")).collect();
        let lists: Vec<String> = if every { vec![all(WRITERS)] } else { lists() };
        if every || wish.right == Right::Write {
            allowed.objects("SeeWriters", &["s3:GetObject"], &lists);
        }
    }
    if wish.right != Right::Read || wish.fresh || wish.blobs {
        allowed.names();
    }
    match wish.right {
        Right::Read => {}
        Right::Write => {
            allowed.objects("BeAClient", &["s3:GetObject", "s3:PutObject"], &[life]);
            if has_isolated {
                allowed.new_objects("CommitWhatIsLarge", &[all(DATA)]);
                allowed.replaced_objects("CommitInOrder", &[NUMBERS.to_owned()]);
            }
            allowed.new_objects("WriteBlobs", &[own(BLOBS)]);
            if uses_log && has_queues {
                // It looks how long a queue that others made keeps what is committed.
                let actions = [
                    "sqs:SendMessage",
                    "sqs:GetQueueUrl",
                    "sqs:GetQueueAttributes",
                    "sqs:CreateQueue",
                ];
                allowed.queues("Commit", &actions);
                allowed.new_objects("SendWhatIsLarge", &[own(SPILLED)]);
            } else if uses_log {
                allowed.new_objects("Commit", &[own(LOG)]);
                allowed.objects("SettleCommits", &["s3:GetObject"], &[own(LOG)]);
            }
        }
        Right::Propose => {
            allowed.objects("BeAClient", &["s3:GetObject", "s3:PutObject"], &[all(CLIENTS)]);
            allowed.new_objects("WriteBlobs", &[all(BLOBS)]);
            allowed.new_objects("Propose", &within(PROPOSALS));
        }
        Right::Curate => {
            let actions = ["s3:GetObject", "s3:DeleteObject"];
            allowed.objects("Decide", &actions, &within(PROPOSALS));
            allowed.new_objects("Approve", &within(APPROVED));
            allowed.objects("FinishApprovals", &actions, &within(APPROVED));
            allowed.objects("ChangePages", &["s3:PutObject"], &pages);
        }
        Right::Keep => {
            allowed.objects("ChangePages", &["s3:PutObject", "s3:DeleteObject"], &pages);
            allowed.new_objects("PutAside", &[all(QUARANTINE)]);
            let actions = ["s3:GetObject", "s3:PutObject"];
            allowed.objects("ShareTheWork", &actions, &[OWNERS.to_owned()]);
            // To find out whether there is one, or has to be. Entries tell nothing that the log does not.
            let looks = [NUMBERS.to_owned(), all(DATA), all(CATALOG)];
            allowed.objects("LookForTheSequencer", &["s3:GetObject"], &looks);
            if has_isolated {
                allowed.replaced_objects("SayWhatIsApplied", &[NUMBERS.to_owned()]);
            }
            let actions = ["s3:GetObject", "s3:DeleteObject"];
            allowed.objects("FinishApprovals", &actions, &within(APPROVED));
            // Of what is approved: of no other, among those who do as they should.
            allowed.objects("FinishDecisions", &["s3:DeleteObject"], &within(PROPOSALS));
            if has_queues {
                allowed.queues(
                    "TakeFromTheLog",
                    &[
                        "sqs:ReceiveMessage",
                        "sqs:SendMessage",
                        "sqs:DeleteMessage",
                        "sqs:ChangeMessageVisibility",
                        "sqs:GetQueueAttributes",
                        "sqs:GetQueueUrl",
                        "sqs:CreateQueue",
                    ],
                );
                allowed.objects("TakeWhatIsLarge", &actions, &[all(SPILLED)]);
            } else {
                allowed.objects("TakeFromTheLog", &actions, &[all(LOG)]);
            }
        }
    }
    Ok(Policy { statements: allowed.statements })
}

/// A service that policies are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Objects.
    S3,
    /// Queues.
    Sqs,
}

impl Policy {
    /// What of it is about one service.
    pub fn of(&self, service: Service) -> Policy {
        let prefix = match service {
            Service::S3 => "s3:",
            Service::Sqs => "sqs:",
        };
        let is_of = |it: &&Statement| it.actions.iter().all(|action| action.starts_with(prefix));
        Policy { statements: self.statements.iter().filter(is_of).cloned().collect() }
    }

    /// Whether it allows nothing.
    pub fn is_empty(&self) -> bool {
        self.statements.is_empty()
    }

    /// The text, for the console or the command line of AWS: without a principal to be attached to a user
    /// or a role, with one to a bucket or a queue.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] when `principal` is neither an account nor an ARN of one.
    pub fn to_json(&self, principal: Option<&str>) -> Result<String, StoreError> {
        if let Some(text) = principal {
            let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || b":/-_+=,.@".contains(&byte);
            let is_account = text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit());
            let is_arn =
                text.starts_with("arn:") && text.len() <= 2048 && text.bytes().all(is_fine);
            if !is_account && !is_arn {
                let shown = text.escape_default().to_string();
                return Err(StoreError::Invalid(format!(
                    "{shown:?} is no principal: an account of 12 digits, or arn:aws:iam::ACCOUNT:role/NAME"
                )));
            }
        }
        let list = |values: &[String]| {
            let quoted: Vec<String> = values.iter().map(|value| format!("\"{value}\"")).collect();
            format!("[{}]", quoted.join(", "))
        };
        let mut text = String::from("{\n  \"Version\": \"2012-10-17\",\n  \"Statement\": [");
        for (n, statement) in self.statements.iter().enumerate() {
            let Statement { sid, actions, resources, condition } = statement;
            let actions: Vec<String> = actions.iter().map(|&action| action.to_owned()).collect();
            let comma = if n > 0 { "," } else { "" };
            // Nothing in it needs an escape: names of buckets, prefixes and collections have none.
            let _ = write!(text, "{comma}\n    {{\n      \"Sid\": \"{sid}\",\n");
            text.push_str("      \"Effect\": \"Allow\",\n");
            if let Some(principal) = principal {
                let _ = writeln!(text, "      \"Principal\": {{\"AWS\": \"{principal}\"}},");
            }
            let _ = writeln!(text, "      \"Action\": {},", list(&actions));
            let _ = write!(text, "      \"Resource\": {}", list(resources));
            if let Some((operator, key, values)) = condition {
                let values = list(values);
                let _ = write!(
                    text,
                    ",\n      \"Condition\": {{\"{operator}\": {{\"{key}\": {values}}}}}"
                );
            }
            text.push_str("\n    }");
        }
        text.push_str("\n  ]\n}");
        Ok(text)
    }
}
