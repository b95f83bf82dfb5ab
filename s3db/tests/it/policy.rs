//! Policies do what they say: clients run behind what evaluates them, call by call.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use s3db::{
    AbortCause, Backend, Collection, CollectionKind, Db, Isolation, Key, Names, Options, Payload,
    Policy, Right, SearchBy, Store, StoreError, Transaction, Wish,
    cloud::{
        Cloud, Delete, ETag, Fault, Get, Listing, Message, Objects, Put, PutIf, Queue,
        QueueSettings, Receipt, Sent, ToSend,
        embedded::{self, Memory},
    },
    policy,
};
use serde_json::Value;

/// What IAM knows of a request besides its action and its resource.
type Context<'a> = BTreeMap<&'a str, String>;

/// `*` and `?`, as IAM has them: `*` goes over any number of bytes, `/` among them.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern, text) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => (0..=text.len()).any(|n| matches(rest, &text[n..])),
        ([b'?', rest @ ..], [_, after @ ..]) => matches(rest, after),
        ([byte, rest @ ..], [same, after @ ..]) if byte == same => matches(rest, after),
        _ => false,
    }
}

fn one_of(patterns: &Value, text: &str) -> bool {
    let is_it = |pattern: &Value| matches(pattern.as_str().unwrap().as_bytes(), text.as_bytes());
    match patterns {
        Value::Array(all) => all.iter().any(is_it),
        one => is_it(one),
    }
}

fn holds(condition: &Value, context: &Context) -> bool {
    condition.as_object().unwrap().iter().all(|(operator, keys)| {
        keys.as_object().unwrap().iter().all(|(key, values)| {
            let there = context.get(key.as_str());
            match operator.as_str() {
                "StringLikeIfExists" => there.is_none_or(|value| one_of(values, value)),
                "StringLike" => there.is_some_and(|value| one_of(values, value)),
                "Null" => one_of(values, if there.is_none() { "true" } else { "false" }),
                other => panic!("the tests know no {other}"),
            }
        })
    })
}

/// As IAM decides: what one statement denies is denied, what none allows is too.
fn allows(policy: &Value, action: &str, resource: &str, context: &Context) -> bool {
    assert_eq!(policy["Version"], "2012-10-17");
    let mut is_allowed = false;
    for statement in policy["Statement"].as_array().unwrap() {
        let is_meant = one_of(&statement["Action"], action)
            && one_of(&statement["Resource"], resource)
            && statement.get("Condition").is_none_or(|condition| holds(condition, context));
        match statement["Effect"].as_str() {
            Some("Deny") if is_meant => return false,
            Some("Allow") => is_allowed |= is_meant,
            Some("Deny") => {}
            other => panic!("no effect: {other:?}"),
        }
    }
    is_allowed
}

fn names() -> Names {
    Names { bucket: "bucket".into(), prefix: "a/db/".into(), queues: "s3db0123456789-".into() }
}

/// Services that let through what a policy allows.
struct Guard {
    beneath: Cloud,
    policy: Value,
    denied: Mutex<Vec<String>>,
    /// Gets of what is not there, by who is not told so.
    hidden: AtomicUsize,
}

impl Guard {
    fn over(cloud: &Cloud, policy: &Policy) -> (Arc<Guard>, Cloud) {
        let policy = serde_json::from_str(&policy.to_json(None).unwrap()).unwrap();
        let guard = Arc::new(Guard {
            beneath: cloud.clone(),
            policy,
            denied: Mutex::default(),
            hidden: AtomicUsize::new(0),
        });
        let cloud = Cloud { objects: guard.clone(), queue: guard.clone(), ..cloud.clone() };
        (guard, cloud)
    }

    fn check(
        &self,
        action: &str,
        what: &str,
        short: &'static str,
        context: &Context,
    ) -> Result<(), Fault> {
        let Names { bucket, prefix, queues } = names();
        let resource = match action {
            "s3:ListBucket" => format!("arn:aws:s3:::{bucket}"),
            action if action.starts_with("s3:") => format!("arn:aws:s3:::{bucket}/{prefix}{what}"),
            _ => format!("arn:aws:sqs:eu-west-1:123456789012:{queues}{what}"),
        };
        if allows(&self.policy, action, &resource, context) {
            return Ok(());
        }
        self.denied.lock().unwrap().push(format!("{action} {what}"));
        let (what, cause) = (what.to_owned(), "403 AccessDenied".to_owned());
        Err(Fault::Forbidden { what, action: short, cause })
    }

    fn queue(&self, action: &str, queue: &str, short: &'static str) -> Result<(), Fault> {
        self.check("sqs:GetQueueUrl", queue, short, &Context::new())?;
        self.check(action, queue, short, &Context::new())
    }

    /// What was denied since the last call.
    fn denied(&self) -> Vec<String> {
        std::mem::take(&mut *self.denied.lock().unwrap())
    }
}

#[async_trait]
impl Objects for Guard {
    async fn get(&self, name: &str, unless: Option<&ETag>) -> Result<Get, Fault> {
        self.check("s3:GetObject", name, "get", &Context::new())?;
        match self.beneath.objects.get(name, unless).await? {
            // Who may not list is not told that there is nothing.
            Get::Absent if !self.may_list_all() => {
                self.hidden.fetch_add(1, Ordering::Relaxed);
                let (what, cause) = (name.to_owned(), "403 AccessDenied".to_owned());
                Err(Fault::Forbidden { what, action: "get", cause })
            }
            answer => Ok(answer),
        }
    }

    async fn put(&self, name: &str, bytes: Bytes, condition: PutIf) -> Put {
        let mut context = Context::new();
        match &condition {
            PutIf::Always => {}
            PutIf::Absent => drop(context.insert("s3:if-none-match", "*".into())),
            PutIf::Matches(etag) => drop(context.insert("s3:if-match", etag.as_str().into())),
        }
        match self.check("s3:PutObject", name, "put", &context) {
            Ok(()) => self.beneath.objects.put(name, bytes, condition).await,
            Err(fault) => Put::Failed(fault),
        }
    }

    async fn delete(&self, name: &str, only: Option<&ETag>) -> Delete {
        match self.check("s3:DeleteObject", name, "delete", &Context::new()) {
            Ok(()) => self.beneath.objects.delete(name, only).await,
            Err(fault) => Delete::Failed(fault),
        }
    }

    async fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> Result<Listing, Fault> {
        let whole = format!("{}{prefix}", names().prefix);
        let context = Context::from([("s3:prefix", whole)]);
        self.check("s3:ListBucket", prefix, "list", &context)?;
        self.beneath.objects.list(prefix, after, max).await
    }
}

impl Guard {
    fn may_list_all(&self) -> bool {
        let bucket = format!("arn:aws:s3:::{}", names().bucket);
        allows(&self.policy, "s3:ListBucket", &bucket, &Context::new())
    }
}

#[async_trait]
impl Queue for Guard {
    async fn create(&self, queue: &str, settings: QueueSettings) -> Result<(), Fault> {
        self.queue("sqs:CreateQueue", queue, "create")?;
        // How long one keeps messages that others made.
        self.queue("sqs:GetQueueAttributes", queue, "create")?;
        self.beneath.queue.create(queue, settings).await
    }

    async fn send(&self, queue: &str, batch: &[ToSend]) -> Vec<Sent> {
        match self.queue("sqs:SendMessage", queue, "send") {
            Ok(()) => self.beneath.queue.send(queue, batch).await,
            Err(fault) => vec![Sent::Failed(fault); batch.len()],
        }
    }

    async fn receive(
        &self,
        queue: &str,
        max: usize,
        visibility: Duration,
        wait: Duration,
    ) -> Result<Vec<Message>, Fault> {
        self.queue("sqs:ReceiveMessage", queue, "receive")?;
        self.beneath.queue.receive(queue, max, visibility, wait).await
    }

    async fn delete(&self, queue: &str, receipts: &[Receipt]) -> Result<(), Fault> {
        self.queue("sqs:DeleteMessage", queue, "acknowledge")?;
        self.beneath.queue.delete(queue, receipts).await
    }

    async fn change_visibility(
        &self,
        queue: &str,
        receipt: &Receipt,
        visibility: Duration,
    ) -> Result<(), Fault> {
        self.queue("sqs:ChangeMessageVisibility", queue, "receive")?;
        self.beneath.queue.change_visibility(queue, receipt, visibility).await
    }

    async fn depth(&self, queue: &str) -> Result<u64, Fault> {
        self.queue("sqs:GetQueueAttributes", queue, "depth")?;
        self.beneath.queue.depth(queue).await
    }
}

fn options(backend: Backend) -> Options {
    let mut options = Options { has_worker: false, backend, shards: 2, ..Options::default() };
    // So small that trees have several leaves.
    options.settings.leaf_bytes_max = 300;
    options
}

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

async fn put(db: &Db, of: &Collection, name: &str, payload: &str) -> Result<bool, StoreError> {
    let mut txn = db.begin();
    txn.put(of, &key(name), Payload::new(payload).unwrap())?;
    Ok(txn.commit().await?.proposed.is_some())
}

/// Sweeps until there is nothing left: an ordered queue gives out some of a group at a time.
async fn sweep_all(db: &Db) -> Result<u64, StoreError> {
    let mut applied = 0;
    loop {
        let done = db.store().sweep().await?;
        applied += done.applied;
        if done.records == 0 || db.store().database().backend == Backend::S3Log {
            return Ok(applied);
        }
    }
}

/// A database as its owner has it: collections `a` and `b` with an index, and `curated`.
struct Owned {
    cloud: Cloud,
    db: Db,
    backend: Backend,
}

/// Collections of the tests by name, and what each is.
fn of_kinds(names: &[&str]) -> Vec<(String, CollectionKind)> {
    let kind = |name: &str| match name {
        "curated" => CollectionKind::Curated,
        "accounts" => CollectionKind::Isolated,
        _ => CollectionKind::Plain,
    };
    names.iter().map(|name| ((*name).to_owned(), kind(name))).collect()
}

impl Owned {
    async fn new(backend: Backend) -> Owned {
        let cloud = embedded::memory(Arc::new(Memory::new()));
        let Options { settings, shards, .. } = options(backend);
        Store::create(&cloud, &settings, backend, shards).await.unwrap();
        let db = Db::over(cloud.clone(), &options(backend)).await.unwrap();
        for name in ["a", "b"] {
            let of = db.create_collection(name).await.unwrap();
            db.create_index(&of, "text", &SearchBy::Payload).await.unwrap();
            for n in 0..40 {
                put(&db, &of, &format!("{n:02}"), &format!("{name}{n}")).await.unwrap();
            }
        }
        let of = db.create_curated("curated").await.unwrap();
        let mut txn = db.begin();
        for n in 0..40 {
            txn.put(&of, &key(&format!("{n:02}")), Payload::new("old").unwrap()).unwrap();
        }
        let id = txn.commit().await.unwrap().proposed.unwrap();
        let shown = db.store().proposal(&of, id).await.unwrap().unwrap();
        db.store().approve(&of, &shown).await.unwrap();
        db.checkpoint().await.unwrap();
        sweep_all(&db).await.unwrap();
        Owned { cloud, db, backend }
    }

    fn policy(&self, right: Right, collections: &[&str], fresh: bool) -> Policy {
        let wish =
            Wish { right, collections: of_kinds(collections), fresh, blobs: false, client: None };
        policy(&names(), &self.db.store().database(), &wish).unwrap()
    }

    /// The cloud of who may write as one client, and as no other.
    fn cloud_of(&self, right: Right, collection: &str, client: u64) -> (Arc<Guard>, Cloud) {
        let collections = of_kinds(&[collection]);
        let wish = Wish { right, collections, fresh: false, blobs: false, client: Some(client) };
        let policy = policy(&names(), &self.db.store().database(), &wish).unwrap();
        Guard::over(&self.cloud, &policy)
    }

    /// A collection `accounts` of serializable transactions, with an index of payloads: 40 records on pages, and two
    /// that wait, of which one is in an object of its own.
    async fn accounts(&self) -> Collection {
        let of =
            self.db.create_isolated_collection("accounts", Isolation::Serializable).await.unwrap();
        for n in 0..40 {
            commit(&self.db, &of, &format!("{n:02}"), "1").await.unwrap();
        }
        self.db.create_index(&of, "payloads", &SearchBy::Payload).await.unwrap();
        self.db.store().sweep().await.unwrap();
        commit(&self.db, &of, "small", "1").await.unwrap();
        commit(&self.db, &of, "large", &"x".repeat(5000)).await.unwrap();
        of
    }

    fn waiting(&self) -> impl Future<Output = u64> {
        let store = self.db.store().clone();
        async move { store.status().await.unwrap().sequencer.unwrap().waiting }
    }

    /// A client with one right, and what it was denied.
    async fn client(&self, right: Right, of: &[&str], fresh: bool) -> (Arc<Guard>, Cloud, Db) {
        let (guard, cloud) = Guard::over(&self.cloud, &self.policy(right, of, fresh));
        let db = Db::over(cloud.clone(), &options(self.backend)).await.unwrap();
        (guard, cloud, db)
    }
}

/// One record, read and written by a transaction with isolation.
async fn commit(db: &Db, of: &Collection, name: &str, payload: &str) -> Result<u64, StoreError> {
    let mut txn = db.begin_for(of);
    txn.read(of, &key(name)).await?;
    txn.put(of, &key(name), Payload::new(payload).unwrap())?;
    Ok(txn.commit().await?.number)
}

/// How many records an index of payloads leads to from one.
async fn probe(txn: &Transaction<'_>, of: &Collection, payload: &str) -> Result<u64, StoreError> {
    let mut found = txn.probe(of, "payloads", &key(payload)).await?;
    let mut count = 0;
    while found.next().await?.is_some() {
        count += 1;
    }
    Ok(count)
}

/// Puts that none of these may do, and deletes of the same.
async fn are_forbidden(cloud: &Cloud, puts: &[(&str, PutIf)]) {
    for (name, condition) in puts {
        let put = cloud.objects.put(name, "x".into(), condition.clone()).await;
        assert!(matches!(put, Put::Failed(Fault::Forbidden { .. })), "{name}: {put:?}");
        assert!(matches!(cloud.objects.delete(name, None).await, Delete::Failed(_)), "{name}");
    }
}

const NUMBERS: &str = "sequencer/numbers";

#[tokio::test]
async fn whoever_may_read_a_collection_with_isolation_reads_what_waits_for_it() {
    for backend in Backend::ALL {
        let owned = Owned::new(backend).await;
        owned.accounts().await;
        let (guard, cloud, db) = owned.client(Right::Read, &["accounts"], false).await;
        let of = db.collection("accounts").await.unwrap();
        let txn = db.begin_for(&of);
        for (name, len) in
            [("07", Some(1)), ("small", Some(1)), ("large", Some(5000)), ("no", None)]
        {
            let found = txn.read(&of, &key(name)).await.unwrap();
            assert_eq!(found.map(|payload| payload.as_bytes().len()), len, "{name}");
        }
        let mut scan = txn.scan(&of);
        let mut count = 0;
        while scan.next().await.unwrap().is_some() {
            count += 1;
        }
        assert_eq!((count, probe(&txn, &of, "1").await.unwrap()), (42, 41));
        assert_eq!(guard.denied(), [""; 0], "{backend:?}");
        let data = owned.cloud.objects.list("sequencer/data/", None, 10).await.unwrap().names;
        are_forbidden(
            &cloud,
            &[
                (NUMBERS, PutIf::Always),
                (NUMBERS, PutIf::Matches(ETag::new("x"))),
                (&data[0], PutIf::Always),
                ("sequencer/data/x", PutIf::Absent),
                (&of.root.object(), PutIf::Always),
            ],
        )
        .await;
        for prefix in ["", "sequencer/", "page/"] {
            assert!(cloud.objects.list(prefix, None, 1).await.is_err(), "{prefix}");
        }
        let outcome = commit(&db, &of, "x", "x").await;
        assert!(matches!(outcome, Err(StoreError::Denied { .. })), "{outcome:?}");
        // Who reads a collection without isolation does not see the sequencer.
        let (_, cloud, db) = owned.client(Right::Read, &["a"], false).await;
        for name in [NUMBERS, &data[0]] {
            assert!(cloud.objects.get(name, None).await.is_err(), "{name}");
        }
        is_denied(db.begin_for(&of).read(&of, &key("07")).await, NUMBERS, "isolation");
    }
}

#[tokio::test]
async fn whoever_may_write_to_a_collection_with_isolation_swaps_the_sequencer() {
    for backend in Backend::ALL {
        let owned = Owned::new(backend).await;
        owned.accounts().await;
        let (guard, cloud, db) = owned.client(Right::Write, &["accounts"], false).await;
        let of = db.collection("accounts").await.unwrap();
        for (name, payload) in
            [("new", "x".to_owned()), ("07", "y".repeat(3000)), ("large", "z".repeat(40_000))]
        {
            commit(&db, &of, name, &payload).await.unwrap();
        }
        // Another one is in the way; and one that only reads.
        let mut txn = db.begin_for(&of);
        assert!(txn.read(&of, &key("07")).await.unwrap().is_some());
        commit(&owned.db, &of, "07", "theirs").await.unwrap();
        txn.put(&of, &key("08"), Payload::new("x").unwrap()).unwrap();
        let outcome = txn.commit().await;
        let is_read = matches!(outcome, Err(StoreError::Aborted { why: AbortCause::Read { .. } }));
        assert!(is_read, "{outcome:?}");
        db.begin_for(&of).commit().await.unwrap();
        let txn = db.begin_for(&of);
        assert_eq!(probe(&txn, &of, "x").await.unwrap(), 1);
        assert_eq!(probe(&txn, &of, "theirs").await.unwrap(), 1);
        assert_eq!(guard.denied(), [""; 0], "{backend:?}");
        let named = Options { client: Some(7), ..options(backend) };
        let life = Db::over(cloud.clone(), &named).await.unwrap();
        commit(&life, &of, "named", "x").await.unwrap();
        assert_eq!(guard.denied(), [""; 0], "{backend:?}: lives");
        // With s3-log an earlier life is ended in the log, which is another right.
        let again = Db::over(cloud.clone(), &named).await.unwrap();
        let outcome = commit(&again, &of, "named", "x").await;
        match backend {
            Backend::S3Log => is_denied(outcome, "log/", "write"),
            _ => drop(outcome.unwrap()),
        }
        guard.denied();
        let data = owned.cloud.objects.list("sequencer/data/", None, 10).await.unwrap().names;
        let blobs = owned.cloud.objects.list("blob/", None, 10).await.unwrap().names;
        assert_eq!(blobs.len(), 1);
        // Blindly it is not put, nor planted again.
        are_forbidden(
            &cloud,
            &[
                (NUMBERS, PutIf::Always),
                (NUMBERS, PutIf::Absent),
                (&data[0], PutIf::Always),
                (&blobs[0], PutIf::Always),
                ("catalog/accounts", PutIf::Always),
                ("log/0000000000000001/0000000000000001/0000000000000000", PutIf::Absent),
                (&of.root.object(), PutIf::Always),
            ],
        )
        .await;
        assert!(put(&db, &owned.db.collection("a").await.unwrap(), "x", "x").await.is_err());
        guard.denied();
        // What it committed others bring to its pages; and it is told that somebody has to.
        assert!(owned.waiting().await > 0);
        // Where there are queues, one of these is what it may not look into first.
        let object = if backend == Backend::S3Log { "page/" } else { "" };
        is_denied(db.checkpoint().await, object, "keep");
        owned.db.store().sweep().await.unwrap();
        let seen = owned.db.begin_for(&of).read(&of, &key("new")).await.unwrap();
        assert!(seen.is_some() && owned.waiting().await == 0, "{backend:?}");
    }
}

#[tokio::test]
async fn whoever_keeps_a_collection_with_isolation_applies_what_waits() {
    for backend in Backend::ALL {
        let owned = Owned::new(backend).await;
        let a = owned.db.collection("a").await.unwrap();
        // What is the newest of a stream stays: of no collection that somebody else keeps.
        put(&owned.db, &a, "last", "a").await.unwrap();
        owned.db.checkpoint().await.unwrap();
        sweep_all(&owned.db).await.unwrap();
        let of = owned.accounts().await;
        // Who keeps others does not: it is told so, after its own work.
        put(&owned.db, &a, "late", "a").await.unwrap();
        let (_, _, db) = owned.client(Right::Keep, &["a"], false).await;
        // Of the records, or of the index.
        let pages = format!("page/{}", &of.root.to_string()[..16]);
        is_denied(db.store().sweep().await, &pages, "read");
        assert!(db.begin().read(&a, &key("late")).await.unwrap().is_some(), "{backend:?}");
        assert_eq!(owned.waiting().await, 2);

        // The newest log object has a record of `a`.
        let both = ["accounts", "a"];
        let (guard, cloud, db) = owned.client(Right::Keep, &both, false).await;
        db.store().sweep().await.unwrap();
        assert_eq!((guard.denied(), owned.waiting().await), (Vec::new(), 0), "{backend:?}");
        let data = owned.cloud.objects.list("sequencer/data/", None, 10).await.unwrap().names;
        are_forbidden(
            &cloud,
            &[
                (NUMBERS, PutIf::Always),
                (NUMBERS, PutIf::Absent),
                (&data[0], PutIf::Always),
                ("sequencer/data/x", PutIf::Absent),
                ("catalog/accounts", PutIf::Always),
            ],
        )
        .await;
        // A sequencer that is lost is told to who may only look, too.
        owned.cloud.objects.delete(NUMBERS, None).await;
        let (_, _, db) = owned.client(Right::Keep, &["a"], false).await;
        let swept = db.store().sweep().await;
        assert!(
            matches!(&swept, Err(StoreError::Lost { object }) if object == NUMBERS),
            "{swept:?}"
        );
    }
}

/// Reads everything in a collection, in every way.
async fn read_all(db: &Db, of: &Collection, fresh: bool) -> usize {
    let txn = if fresh { db.begin().fresh() } else { db.begin() };
    assert!(txn.read(of, &key("07")).await.unwrap().is_some());
    assert!(txn.read(of, &key("nothing")).await.unwrap().is_none());
    let mut records = txn.scan(of);
    let mut count = 0;
    while records.next().await.unwrap().is_some() {
        count += 1;
    }
    if !of.indexes.is_empty() {
        let mut found = txn.probe(of, "text", &key(&format!("{}7", of.name))).await.unwrap();
        assert!(found.next().await.unwrap().is_some());
    }
    count
}

/// That a call was denied, by an error that says what, and who may.
fn is_denied<T: std::fmt::Debug>(outcome: Result<T, StoreError>, object: &str, who: &str) {
    match outcome {
        Err(StoreError::Denied { object: found, right, .. }) => {
            assert!(found.starts_with(object), "{found}, not {object}");
            assert!(right.contains(who), "{right}, not {who}");
        }
        other => panic!("{object}: {other:?}"),
    }
}

#[tokio::test]
async fn whoever_may_read_a_collection_reads_that_one() {
    for backend in Backend::ALL {
        let owned = Owned::new(backend).await;
        for name in ["a", "curated"] {
            let (guard, cloud, db) = owned.client(Right::Read, &[name], false).await;
            let of = db.collection(name).await.unwrap();
            assert_eq!(read_all(&db, &of, false).await, 40);
            assert_eq!(guard.denied(), [""; 0], "{backend:?} {name}");
            // Not another one: neither its entry nor, for who knows it, any of its pages.
            is_denied(db.collection("b").await, "catalog/b", "read");
            let other = owned.db.collection("b").await.unwrap();
            is_denied(db.begin().read(&other, &key("07")).await, "page/", "read");
            for page in owned.cloud.objects.list("page/", None, 1000).await.unwrap().names {
                let is_read = cloud.objects.get(&page, None).await.is_ok();
                let is_own = page.starts_with(&of.root.object()[..5 + 16]);
                assert_eq!(is_read, is_own, "{page}");
                let put = cloud.objects.put(&page, "x".into(), PutIf::Always).await;
                assert!(matches!(put, Put::Failed(Fault::Forbidden { .. })), "{page}: {put:?}");
            }
            for prefix in ["", "page/", "log/", "catalog/", "blob/"] {
                assert!(cloud.objects.list(prefix, None, 1).await.is_err(), "{prefix}");
            }
            // Nor does it write, or look into the log.
            assert!(put(&db, &of, "x", "x").await.is_err());
            let fresh = db.begin().fresh().read(&of, &key("07")).await;
            assert!(matches!(fresh, Err(StoreError::Denied { .. })), "{fresh:?}");
            guard.denied();
            let (guard, _, db) = owned.client(Right::Read, &[name], true).await;
            put(&owned.db, &other, "late", "b").await.unwrap();
            assert_eq!(read_all(&db, &of, true).await, 40);
            assert_eq!(guard.denied(), [""; 0], "{backend:?} {name}, fresh");
        }
    }
}

/// A page that a reader's copy of its parent still names, and that is deleted: S3 says "not allowed" of what is
/// not there, to who may not list.
#[tokio::test]
async fn a_reader_finds_its_way_past_pages_that_died() {
    let owned = Owned::new(Backend::S3Log).await;
    let (guard, _, db) = owned.client(Right::Read, &["a"], false).await;
    let of = db.collection("a").await.unwrap();
    // From now on it has the parent of all leaves, and the first of these.
    assert!(db.begin().read(&of, &key("00")).await.unwrap().is_some());
    // A leaf in the middle, which loses all its records.
    let mut dying = None;
    for name in owned.cloud.objects.list("page/", None, 1000).await.unwrap().names {
        let Ok(Get::Found { bytes, .. }) = owned.cloud.objects.get(&name, None).await else {
            continue;
        };
        let page = s3db::page::Page::decode(&bytes).unwrap();
        let is_own = name.starts_with(&of.root.object()[..5 + 16]) && page.followers.len() == 1;
        if is_own && page.level == 0 && page.low > b"10"[..] && page.right.is_some() {
            dying = Some(page);
        }
    }
    let dying = dying.expect("there are several leaves");
    let mut txn = owned.db.begin();
    for slot in dying.slots() {
        txn.delete(&of, &Key::new(&slot.key).unwrap()).unwrap();
    }
    txn.commit().await.unwrap();
    owned.db.checkpoint().await.unwrap();
    let mut old = options(Backend::S3Log);
    old.settings.tombstone_age = Duration::from_millis(1);
    let gc = Db::over(owned.cloud.clone(), &old).await.unwrap();
    let is_there = async || {
        !matches!(owned.cloud.objects.get(&dying.id.object(), None).await, Ok(Get::Absent))
    };
    for _ in 0..20 {
        if !is_there().await {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        gc.store().collect_garbage(Duration::ZERO).await.unwrap();
    }
    assert!(!is_there().await, "the page does not die");
    let gone = |n: usize| dying.slot(format!("{n:02}").as_bytes()).is_some();
    for n in 0..40 {
        let found = db.begin().read(&of, &key(&format!("{n:02}"))).await.unwrap();
        assert_eq!(found.is_some(), !gone(n), "{n}");
    }
    let txn = db.begin();
    let mut scan = txn.scan(&of);
    let mut count = 0;
    while scan.next_key().await.unwrap().is_some() {
        count += 1;
    }
    assert_eq!(count, (0..40).filter(|n| !gone(*n)).count());
    assert_eq!(guard.denied(), [""; 0]);
    assert!(guard.hidden.load(Ordering::Relaxed) > 0, "nothing was looked for that is not there");
}

#[tokio::test]
async fn whoever_may_write_commits_and_does_nothing_else() {
    for backend in Backend::ALL {
        let owned = Owned::new(backend).await;
        let (guard, cloud, db) = owned.client(Right::Write, &["a"], false).await;
        let of = db.collection("a").await.unwrap();
        for n in 0..5 {
            assert!(!put(&db, &of, &format!("new{n}"), "x").await.unwrap());
        }
        assert_eq!(guard.denied(), [""; 0], "{backend:?}");
        // A named client comes back, and ends its earlier lives.
        for _ in 0..2 {
            let named = Options { client: Some(7), ..options(backend) };
            let again = Db::over(cloud.clone(), &named).await.unwrap();
            put(&again, &of, "named", "x").await.unwrap();
        }
        assert_eq!(guard.denied(), [""; 0], "{backend:?}: lives");
        let pages = owned.cloud.objects.list("page/", None, 1000).await.unwrap().names;
        let log = owned.cloud.objects.list("log/", None, 1000).await.unwrap().names;
        let mut forbidden = pages;
        forbidden.extend(["catalog/a", "catalog/b", "database", "approved/x/y"].map(String::from));
        forbidden.extend(log.iter().cloned());
        for name in forbidden {
            let put = cloud.objects.put(&name, "x".into(), PutIf::Always).await;
            assert!(matches!(put, Put::Failed(Fault::Forbidden { .. })), "{name}: {put:?}");
            assert!(matches!(cloud.objects.delete(&name, None).await, Delete::Failed(_)), "{name}");
        }
        // What it committed others bring to its page.
        is_denied(db.store().sweep().await, "", "keep");
        owned.db.store().sweep().await.unwrap();
        let seen = owned.db.begin().fresh().read(&of, &key("new0")).await.unwrap();
        assert!(seen.is_some(), "{backend:?}");
    }
}

/// Whoever may write as one client is that one: it begins and ends no life of another, and puts nothing
/// in another's name.
#[tokio::test]
async fn whoever_may_write_as_one_client_is_no_other() {
    let large = || (0..50).map(|n| (key(&format!("large{n}")), "x".repeat(30_000)));
    for backend in Backend::ALL {
        let owned = Owned::new(backend).await;
        let as_client = |client| Options { client: Some(client), ..options(backend) };
        let (guard, cloud) = owned.cloud_of(Right::Write, "a", 7);
        // It comes back, and ends its earlier life.
        for _ in 0..2 {
            let db = Db::over(cloud.clone(), &as_client(7)).await.unwrap();
            let of = db.collection("a").await.unwrap();
            let mut txn = db.begin();
            txn.put(&of, &key("k"), Payload::new("x".repeat(40_000)).unwrap()).unwrap();
            for (key, payload) in large() {
                txn.put(&of, &key, Payload::new(payload).unwrap()).unwrap();
            }
            txn.commit().await.unwrap();
        }
        assert_eq!(guard.denied(), [""; 0], "{backend:?}");
        let other = Db::over(cloud.clone(), &as_client(8)).await.unwrap();
        let of = other.collection("a").await.unwrap();
        is_denied(put(&other, &of, "k", "x").await, "clients/", "write");
        for folder in ["log", "blob", "spill"] {
            let object = format!("{folder}/{:016x}/{:016x}/{:016x}", 8, 1, 0);
            let put = cloud.objects.put(&object, "x".into(), PutIf::Absent).await;
            assert!(matches!(put, Put::Failed(Fault::Forbidden { .. })), "{object}: {put:?}");
        }
        sweep_all(&owned.db).await.unwrap();
        let seen = owned.db.begin().fresh().read(&of, &key("k")).await.unwrap();
        assert!(seen.is_some(), "{backend:?}");
    }
}

/// Where a collection names its writers, whoever writes, looks into the log or keeps it may see whom.
#[tokio::test]
async fn whoever_meets_records_may_see_whose_they_may_be() {
    for backend in Backend::ALL {
        let cloud = embedded::memory(Arc::new(Memory::new()));
        let Options { settings, shards, .. } = options(backend);
        Store::create_with_writers(&cloud, &settings, backend, shards).await.unwrap();
        let db = Db::over(cloud.clone(), &options(backend)).await.unwrap();
        db.create_for_writers("a", &[7]).await.unwrap();
        db.create_collection("b").await.unwrap();
        let owned = Owned { cloud, db, backend };
        let (writer, cloud) = owned.cloud_of(Right::Write, "a", 7);
        let named = Options { client: Some(7), ..options(backend) };
        let db = Db::over(cloud, &named).await.unwrap();
        let of = db.collection("a").await.unwrap();
        put(&db, &of, "k", "x").await.unwrap();
        assert_eq!(writer.denied(), [""; 0], "{backend:?}");
        let (stranger, cloud) = owned.cloud_of(Right::Write, "a", 9);
        let named = Options { client: Some(9), ..options(backend) };
        let db = Db::over(cloud.clone(), &named).await.unwrap();
        let outcome = put(&db, &of, "k", "x").await;
        assert!(matches!(outcome, Err(StoreError::Denied { action: "write", .. })), "{outcome:?}");
        assert_eq!(stranger.denied(), [""; 0], "{backend:?}: it is told by the list");
        // Nor does it change the list, or write as who is in it.
        let list = owned.cloud.objects.list("writers/", None, 9).await.unwrap().names.remove(0);
        let log = format!("log/{:016x}/{:016x}/{:016x}", 7, 1, 0);
        for object in [list, log] {
            for condition in [PutIf::Absent, PutIf::Always] {
                let put = cloud.objects.put(&object, "x".into(), condition).await;
                assert!(matches!(put, Put::Failed(Fault::Forbidden { .. })), "{object}: {put:?}");
            }
            assert!(matches!(cloud.objects.delete(&object, None).await, Delete::Failed(_)));
        }
        let (reader, _, db) = owned.client(Right::Read, &["a"], true).await;
        assert!(db.begin().fresh().read(&of, &key("k")).await.unwrap().is_some(), "{backend:?}");
        assert_eq!(reader.denied(), [""; 0], "{backend:?}");
        let (keeper, _, db) = owned.client(Right::Keep, &["a"], false).await;
        assert_eq!(sweep_all(&db).await.unwrap(), 1, "{backend:?}");
        assert_eq!(keeper.denied(), [""; 0], "{backend:?}");
    }
}

#[tokio::test]
async fn whoever_may_propose_needs_a_curator() {
    for backend in Backend::ALL {
        let owned = Owned::new(backend).await;
        let (guard, cloud, db) = owned.client(Right::Propose, &["curated"], false).await;
        let of = db.collection("curated").await.unwrap();
        assert!(put(&db, &of, "07", "new").await.unwrap());
        assert_eq!(guard.denied(), [""; 0], "{backend:?}");
        let waits = owned.cloud.objects.list("proposal/", None, 10).await.unwrap().names;
        let tag = waits[0].split('/').nth(1).unwrap().to_owned();
        let other = owned.db.collection("a").await.unwrap();
        assert!(put(&db, &other, "07", "new").await.is_err(), "{backend:?}: it may not write");
        // What waits cannot be replaced, what is approved not be put, another's proposals neither.
        for (name, condition) in [
            (waits[0].clone(), PutIf::Always),
            (format!("approved/{tag}/{}", "0".repeat(64)), PutIf::Absent),
            (format!("proposal/{:016x}/{}", 7, "0".repeat(64)), PutIf::Absent),
            (format!("log/{:016x}/{:016x}/{:016x}", 1, 1, 0), PutIf::Absent),
            (of.root.object(), PutIf::Always),
        ] {
            let put = cloud.objects.put(&name, "x".into(), condition).await;
            assert!(matches!(put, Put::Failed(Fault::Forbidden { .. })), "{name}: {put:?}");
            assert!(matches!(cloud.objects.delete(&name, None).await, Delete::Failed(_)), "{name}");
        }
        let id = waits[0].rsplit('/').next().unwrap().parse().unwrap();
        is_denied(db.store().proposal(&of, id).await, "proposal/", "curate");
        guard.denied();

        let (guard, cloud, db) = owned.client(Right::Curate, &["curated"], false).await;
        let of = db.collection("curated").await.unwrap();
        let ids = db.store().proposals(&of, None, 10).await.unwrap();
        let shown = db.store().proposal(&of, ids[0]).await.unwrap().unwrap();
        db.store().approve(&of, &shown).await.unwrap();
        assert_eq!(db.begin().read(&of, &key("07")).await.unwrap().unwrap().as_bytes(), b"new");
        put(&owned.db, &of, "08", "worse").await.unwrap();
        let id = db.store().proposals(&of, None, 10).await.unwrap()[0];
        assert!(db.store().reject(&of, id).await.unwrap());
        assert_eq!(guard.denied(), [""; 0], "{backend:?}");
        for name in [other.root.object(), "catalog/curated".into(), "catalog/a".into()] {
            let put = cloud.objects.put(&name, "x".into(), PutIf::Always).await;
            assert!(matches!(put, Put::Failed(Fault::Forbidden { .. })), "{name}: {put:?}");
        }
    }
}

#[tokio::test]
async fn whoever_keeps_collections_brings_them_to_their_pages() {
    for backend in Backend::ALL {
        let owned = Owned::new(backend).await;
        let of = owned.db.collection("a").await.unwrap();
        let other = owned.db.collection("b").await.unwrap();
        // What is the newest of a stream stays, and whoever keeps that collection applies it again.
        put(&owned.db, &of, "last", "last").await.unwrap();
        owned.db.checkpoint().await.unwrap();
        sweep_all(&owned.db).await.unwrap();
        for n in 0..30 {
            put(&owned.db, &of, &format!("new{n}"), &format!("new{n}")).await.unwrap();
        }
        let (guard, cloud, db) = owned.client(Right::Keep, &["a"], false).await;
        let applied = sweep_all(&db).await.unwrap();
        assert!(applied >= 30, "{backend:?}: {applied}");
        assert_eq!(guard.denied(), [""; 0], "{backend:?}");
        // What is of another collection stays in the log for who keeps that.
        put(&owned.db, &other, "late", "late").await.unwrap();
        is_denied(db.store().sweep().await, "page/", "read");
        for name in [other.root.object(), "catalog/a".into(), "catalog/b".into(), "database".into()]
        {
            let put = cloud.objects.put(&name, "x".into(), PutIf::Always).await;
            assert!(matches!(put, Put::Failed(Fault::Forbidden { .. })), "{name}: {put:?}");
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        let (_, _, both) = owned.client(Right::Keep, &["a", "b"], false).await;
        if backend == Backend::S3Log {
            // A queue hides what the other one holds until its lease is over.
            both.store().sweep().await.unwrap();
            let seen = both.begin().read(&other, &key("late")).await.unwrap();
            assert!(seen.is_some(), "{backend:?}");
        }
    }
}

/// A policy for what has none, or for a right that makes no sense, is an error.
#[tokio::test]
async fn no_policy_says_what_cannot_be_kept() {
    let owned = Owned::new(Backend::S3Log).await;
    let database = owned.db.store().database();
    use CollectionKind::{Curated, Isolated, Plain};
    let wish = |right, collections: &[(&str, CollectionKind)]| Wish {
        right,
        collections: collections.iter().map(|(name, it)| ((*name).to_owned(), *it)).collect(),
        fresh: false,
        blobs: false,
        client: None,
    };
    for refused in [
        wish(Right::Read, &[]),
        wish(Right::Read, &[("a*", Plain)]),
        wish(Right::Read, &[("a/../b", Plain)]),
        wish(Right::Write, &[("curated", Curated)]),
        wish(Right::Propose, &[("a", Plain)]),
        wish(Right::Curate, &[("a", Plain)]),
        wish(Right::Propose, &[("accounts", Isolated)]),
        Wish { client: Some(7), ..wish(Right::Read, &[("a", Plain)]) },
        Wish { client: Some(7), ..wish(Right::Propose, &[("curated", Curated)]) },
        Wish { client: Some(7), ..wish(Right::Curate, &[("curated", Curated)]) },
        Wish { client: Some(7), ..wish(Right::Keep, &[("a", Plain)]) },
    ] {
        let outcome = policy(&names(), &database, &refused);
        assert!(matches!(outcome, Err(StoreError::Invalid(_))), "{refused:?}");
    }
    let before = s3db::Database { has_tags: false, ..database };
    assert!(policy(&names(), &before, &wish(Right::Read, &[("a", Plain)])).is_err());
    let policy = policy(&names(), &database, &wish(Right::Read, &[("a", Plain)])).unwrap();
    let role = "arn:aws:iam::123456789012:role/reader";
    let text: Value = serde_json::from_str(&policy.to_json(Some(role)).unwrap()).unwrap();
    assert_eq!(text["Statement"][0]["Principal"]["AWS"], role);
    for other in ["", "*", "reader", "arn:aws:iam::1:role/a\"b"] {
        assert!(policy.to_json(Some(other)).is_err(), "{other}");
    }
}
