//! Curated collections: nothing comes to their pages but what a curator approved, as it was shown.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use s3db::{
    Backend, Collection, Db, Key, Options, Payload, Proposal, ProposalId, SearchBy, Settings,
    Store, StoreError,
    cloud::{
        CallKind, Cloud, Delete, ETag, Fault, Get, Listing, Objects, Put, PutIf,
        embedded::{self, Memory},
    },
};

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

fn options(backend: Backend) -> Options {
    Options { has_worker: false, backend, shards: 2, ..Options::default() }
}

async fn over(cloud: &Cloud, backend: Backend) -> Db {
    Db::over(cloud.clone(), &options(backend)).await.unwrap()
}

/// A database with a curated collection, one that is not, and an index of the first.
async fn database(backend: Backend) -> (Cloud, Db, Collection, Collection) {
    let cloud = embedded::memory(Arc::new(Memory::new()));
    let Options { settings, shards, .. } = options(backend);
    Store::create(&cloud, &settings, backend, shards).await.unwrap();
    let db = over(&cloud, backend).await;
    db.create_curated("prices").await.unwrap();
    let open = db.create_collection("open").await.unwrap();
    db.create_index(&db.collection("prices").await.unwrap(), "text", &SearchBy::Payload)
        .await
        .unwrap();
    let prices = db.collection("prices").await.unwrap();
    (cloud, db, prices, open)
}

/// Proposes one change, and returns its name.
async fn propose(db: &Db, of: &Collection, name: &str, payload: Option<&str>) -> ProposalId {
    let mut txn = db.begin();
    match payload {
        Some(payload) => txn.put(of, &key(name), Payload::new(payload).unwrap()).unwrap(),
        None => txn.delete(of, &key(name)).unwrap(),
    }
    let committed = txn.commit().await.unwrap();
    committed.proposed.expect("the collection is curated")
}

async fn shown(db: &Db, of: &Collection, id: ProposalId) -> Proposal {
    db.store().proposal(of, id).await.unwrap().expect("it waits")
}

async fn approve(db: &Db, of: &Collection, id: ProposalId) {
    db.store().approve(of, &shown(db, of, id).await).await.unwrap();
}

async fn waiting(db: &Db, of: &Collection) -> Vec<ProposalId> {
    db.store().proposals(of, None, 100).await.unwrap()
}

/// As somebody sees it who was not there before.
async fn get(cloud: &Cloud, of: &Collection, name: &str, fresh: bool) -> Option<String> {
    let options = Options { has_worker: false, fresh, ..Options::default() };
    let db = Db::over(cloud.clone(), &options).await.unwrap();
    let payload = db.begin().read(of, &key(name)).await.unwrap();
    payload.map(|payload| payload.to_string())
}

#[tokio::test]
async fn readers_see_the_old_state_until_a_curator_approves() {
    for backend in Backend::ALL {
        let (cloud, curator, prices, _) = database(backend).await;
        let client = over(&cloud, backend).await;
        let first = propose(&client, &prices, "bread", Some("1")).await;
        client.checkpoint().await.unwrap();
        client.store().sweep().await.unwrap();
        let seen = client.begin().read(&prices, &key("bread")).await.unwrap();
        assert_eq!(seen, None, "{backend:?}: not even who proposed it sees it");
        for fresh in [false, true] {
            assert_eq!(get(&cloud, &prices, "bread", fresh).await, None, "{backend:?}");
        }
        assert_eq!(waiting(&curator, &prices).await, [first]);
        let proposal = shown(&curator, &prices, first).await;
        assert_eq!(proposal.transaction.entries[0].record.change.key(), &key("bread"));
        let done = curator.store().approve(&prices, &proposal).await.unwrap();
        assert_eq!((done.records, done.applied), (1, 1), "{backend:?}");
        assert_eq!(get(&cloud, &prices, "bread", false).await.as_deref(), Some("1"));
        assert_eq!(waiting(&curator, &prices).await, []);

        let (second, third) = (
            propose(&client, &prices, "bread", Some("2")).await,
            propose(&client, &prices, "bread", None).await,
        );
        assert!(curator.store().reject(&prices, third).await.unwrap());
        assert!(!curator.store().reject(&prices, third).await.unwrap(), "decided on already");
        assert_eq!(curator.store().proposal(&prices, third).await.unwrap(), None);
        approve(&curator, &prices, second).await;
        assert_eq!(get(&cloud, &prices, "bread", false).await.as_deref(), Some("2"));
        // Its index followed.
        let reader = over(&cloud, backend).await;
        let txn = reader.begin();
        let mut found = txn.probe(&prices, "text", &key("2")).await.unwrap();
        assert!(found.next().await.unwrap().is_some(), "{backend:?}");
        let verified = reader.store().verify(|_, _| {}).await.unwrap();
        assert_eq!(verified.problem_count, 0, "{:?}", verified.problems);
        client.close().await.unwrap();
    }
}

/// What is approved counts from when it was proposed.
#[tokio::test]
async fn an_older_proposal_does_not_undo_a_newer_one() {
    let (cloud, curator, prices, _) = database(Backend::S3Log).await;
    let older = propose(&curator, &prices, "bread", Some("older")).await;
    let newer = propose(&curator, &prices, "bread", Some("newer")).await;
    approve(&curator, &prices, newer).await;
    approve(&curator, &prices, older).await;
    assert_eq!(get(&cloud, &prices, "bread", false).await.as_deref(), Some("newer"));
}

/// Somebody puts another transaction in the place of the one that a curator looks at.
#[tokio::test]
async fn what_is_approved_is_what_was_shown() {
    let (cloud, curator, prices, _) = database(Backend::S3Log).await;
    let good = propose(&curator, &prices, "bread", Some("good")).await;
    let evil = propose(&curator, &prices, "bread", Some("evil")).await;
    let names = cloud.objects.list("proposal/", None, 10).await.unwrap().names;
    let name = |id: ProposalId| names.iter().find(|name| name.ends_with(&id.to_string())).unwrap();
    let looked_at = shown(&curator, &prices, good).await;
    let Ok(Get::Found { bytes, .. }) = cloud.objects.get(name(evil), None).await else {
        panic!("it is there")
    };
    cloud.objects.put(name(good), bytes, PutIf::Always).await;
    // By its name it is not to be had any more.
    let replaced = curator.store().proposal(&prices, good).await;
    assert!(matches!(replaced, Err(StoreError::Invalid(_))), "{replaced:?}");
    // What was looked at before is what it was.
    curator.store().approve(&prices, &looked_at).await.unwrap();
    assert_eq!(get(&cloud, &prices, "bread", false).await.as_deref(), Some("good"));
    // And where curators alone may put, a name is believed no more than its bytes.
    let tag = names[0].split('/').nth(1).unwrap();
    let object = format!("approved/{tag}/{good}");
    let Ok(Get::Found { bytes, .. }) = cloud.objects.get(name(evil), None).await else {
        panic!("it is there")
    };
    cloud.objects.put(&object, bytes, PutIf::Absent).await;
    let swept = curator.store().sweep().await.unwrap();
    assert_eq!(swept.poison, 1, "in quarantine");
    assert_eq!(get(&cloud, &prices, "bread", false).await.as_deref(), Some("good"));
}

/// Refuses every call from some call on, as if who calls had died there.
struct Dying {
    beneath: Arc<dyn Objects>,
    left: AtomicUsize,
}

impl Dying {
    fn is_dead(&self) -> bool {
        self.left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
            .is_err()
    }

    fn fault(what: &str) -> Fault {
        Fault::Denied { what: what.to_owned(), cause: "dead".into() }
    }
}

#[async_trait]
impl Objects for Dying {
    async fn get(&self, name: &str, unless: Option<&ETag>) -> Result<Get, Fault> {
        if self.is_dead() { Err(Dying::fault(name)) } else { self.beneath.get(name, unless).await }
    }

    async fn put(&self, name: &str, bytes: Bytes, condition: PutIf) -> Put {
        match self.is_dead() {
            true => Put::Failed(Dying::fault(name)),
            false => self.beneath.put(name, bytes, condition).await,
        }
    }

    async fn delete(&self, name: &str, only: Option<&ETag>) -> Delete {
        match self.is_dead() {
            true => Delete::Failed(Dying::fault(name)),
            false => self.beneath.delete(name, only).await,
        }
    }

    async fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> Result<Listing, Fault> {
        match self.is_dead() {
            true => Err(Dying::fault(prefix)),
            false => self.beneath.list(prefix, after, max).await,
        }
    }
}

/// A curator dies at each call, and another one, or a sweep, goes on. Whatever is approved since stays.
#[tokio::test]
async fn approved_by_who_dies_and_by_others_it_counts_once() {
    for by_sweep in [false, true] {
        let (mut at, mut died) = (0, 0);
        loop {
            let (cloud, other, prices, _) = database(Backend::S3Log).await;
            let id = propose(&other, &prices, "bread", Some("1")).await;
            let later = propose(&other, &prices, "bread", Some("2")).await;
            let dying = Arc::new(Dying {
                beneath: cloud.objects.clone(),
                left: AtomicUsize::new(usize::MAX),
            });
            let mortal = Cloud { objects: dying.clone(), ..cloud.clone() };
            let curator = over(&mortal, Backend::S3Log).await;
            let looked_at = shown(&curator, &prices, id).await;
            let too = shown(&other, &prices, id).await;
            dying.left.store(at, Ordering::SeqCst);
            let outcome = curator.store().approve(&prices, &looked_at).await;
            died += usize::from(outcome.is_err());
            let is_approved =
                !cloud.objects.list("approved/", None, 10).await.unwrap().names.is_empty();
            if by_sweep {
                other.store().sweep().await.unwrap();
            } else {
                other.store().approve(&prices, &too).await.unwrap();
            }
            let value = get(&cloud, &prices, "bread", false).await;
            let is_there = !by_sweep || is_approved || outcome.is_ok();
            assert_eq!(value.as_deref(), is_there.then_some("1"), "{by_sweep} at call {at}");
            // One that comes late, after something newer was approved, undoes nothing.
            approve(&other, &prices, later).await;
            dying.left.store(usize::MAX, Ordering::SeqCst);
            curator.store().approve(&prices, &looked_at).await.unwrap();
            other.store().sweep().await.unwrap();
            assert_eq!(get(&cloud, &prices, "bread", false).await.as_deref(), Some("2"));
            for prefix in ["proposal/", "approved/", "quarantine/"] {
                let left = cloud.objects.list(prefix, None, 10).await.unwrap().names;
                assert_eq!(left, [""; 0], "{by_sweep} at call {at}");
            }
            if outcome.is_ok() {
                break;
            }
            at += 1;
        }
        assert!(died >= 5, "it died at {died} calls");
    }
}

#[tokio::test]
async fn two_curators_at_once() {
    let (cloud, first, prices, _) = database(Backend::S3Log).await;
    let second = over(&cloud, Backend::S3Log).await;
    let id = propose(&first, &prices, "bread", Some("1")).await;
    let (a, b) = (shown(&first, &prices, id).await, shown(&second, &prices, id).await);
    let (a, b) =
        tokio::join!(first.store().approve(&prices, &a), second.store().approve(&prices, &b));
    assert_eq!(
        a.unwrap().applied + b.unwrap().applied,
        1,
        "one changed the page, the other found it so"
    );
    assert_eq!(get(&cloud, &prices, "bread", false).await.as_deref(), Some("1"));
    // Who rejects what is approved and on its way is told.
    let id = propose(&first, &prices, "bread", Some("2")).await;
    let Ok(Get::Found { bytes, .. }) = ({
        let names = cloud.objects.list("proposal/", None, 10).await.unwrap().names;
        cloud.objects.get(&names[0], None).await
    }) else {
        panic!("it is there")
    };
    let names = cloud.objects.list("proposal/", None, 10).await.unwrap().names;
    let approved = names[0].replace("proposal/", "approved/");
    cloud.objects.put(&approved, bytes, PutIf::Absent).await;
    let rejected = first.store().reject(&prices, id).await;
    assert!(matches!(rejected, Err(StoreError::Exists(_))), "{rejected:?}");
}

/// What is proposed with other changes would become true at another time, or never.
#[tokio::test]
async fn a_transaction_is_proposed_or_committed() {
    let (cloud, db, prices, open) = database(Backend::S3Log).await;
    let mut txn = db.begin();
    txn.put(&prices, &key("a"), Payload::new("1").unwrap()).unwrap();
    txn.put(&open, &key("a"), Payload::new("1").unwrap()).unwrap();
    let refused = txn.commit().await;
    assert!(matches!(refused, Err(StoreError::Invalid(_))), "{refused:?}");
    assert_eq!(waiting(&db, &prices).await, []);
    db.store().sweep().await.unwrap();
    assert_eq!(get(&cloud, &open, "a", true).await, None);
    // There is nothing to approve where all may write.
    let refused = db.store().proposals(&open, None, 1).await;
    assert!(matches!(refused, Err(StoreError::Invalid(_))), "{refused:?}");
    // A collection is what it was created as.
    assert!(matches!(db.create_curated("open").await, Err(StoreError::Exists(_))));
    assert_eq!(db.create_collection("prices").await.unwrap().root, prices.root);
    assert!(prices.is_curated() && !open.is_curated());
}

/// What was deleted since may have left no trace: what is as old is to be proposed again.
#[tokio::test]
async fn what_is_old_is_not_approved() {
    let (cloud, db, prices, _) = database(Backend::S3Log).await;
    let id = propose(&db, &prices, "bread", Some("1")).await;
    let settings =
        Settings { tombstone_age: Duration::from_millis(20), ..options(Backend::S3Log).settings };
    let options = Options { settings, ..options(Backend::S3Log) };
    let curator = Db::over(cloud.clone(), &options).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let looked_at = shown(&curator, &prices, id).await;
    let refused = curator.store().approve(&prices, &looked_at).await;
    let Err(StoreError::Invalid(why)) = refused else { panic!("{refused:?}") };
    assert!(why.contains("propose it again"), "{why}");
    assert!(cloud.objects.list("approved/", None, 1).await.unwrap().names.is_empty());
}

/// What was decided on costs nothing any more, and to approve costs the same however much waits.
#[tokio::test]
async fn decisions_leave_nothing_behind() {
    let (cloud, db, prices, _) = database(Backend::S3Log).await;
    let mut costs = Vec::new();
    for round in 0..3 {
        let mut ids = Vec::new();
        for n in 0..10 {
            ids.push(propose(&db, &prices, &format!("{n}"), Some(&format!("{round}"))).await);
        }
        let curator = over(&cloud, Backend::S3Log).await;
        let of = curator.collection("prices").await.unwrap();
        let calls = |kind| curator.ledger().charge(kind).calls;
        let before = calls(CallKind::List);
        assert_eq!(waiting(&curator, &of).await.len(), 10);
        assert_eq!(calls(CallKind::List) - before, 1, "round {round}");
        approve(&curator, &of, ids[0]).await;
        let gets = calls(CallKind::Get);
        approve(&curator, &of, ids[1]).await;
        costs.push(calls(CallKind::Get) - gets);
        for id in &ids[2..] {
            assert!(curator.store().reject(&of, *id).await.unwrap());
        }
        assert_eq!(waiting(&curator, &of).await, []);
    }
    // The first time the index had nothing to let go of.
    assert!(costs[1] == costs[2] && costs[2] < 25, "{costs:?}");
}

/// A commit that had no answer is proposed again: it is the same proposal.
#[tokio::test]
async fn a_proposal_that_is_tried_again_is_one() {
    use crate::meddle::{Fate, Meddler};
    let (cloud, db, prices, _) = database(Backend::S3Log).await;
    let (meddler, between) = Meddler::over(&cloud);
    let settings = Settings { attempts_max: 1, ..Settings::default() };
    let options = Options { settings, ..options(Backend::S3Log) };
    let client = Db::over(between, &options).await.unwrap();
    meddler.puts("proposal/", &[Fate::LostAnswer]);
    let mut txn = client.begin();
    txn.put(&prices, &key("a"), Payload::new("1").unwrap()).unwrap();
    let outcome = txn.commit().await;
    assert!(matches!(outcome, Err(StoreError::CommitUnknown { .. })), "{outcome:?}");
    let committed = txn.commit().await.unwrap();
    assert_eq!(waiting(&db, &prices).await, [committed.proposed.unwrap()]);
}

/// Whether a proposal is made is not known when one put of it had no answer, however the next one ends.
#[tokio::test]
async fn a_proposal_that_may_have_been_made_is_not_said_not_to_be() {
    use crate::meddle::{Fate, Meddler};
    let (cloud, db, prices, _) = database(Backend::S3Log).await;
    let (meddler, between) = Meddler::over(&cloud);
    let client = over(&between, Backend::S3Log).await;
    let mut txn = client.begin();
    txn.put(&prices, &key("a"), Payload::new("1").unwrap()).unwrap();
    meddler.puts("proposal/", &[Fate::Denied]);
    let outcome = txn.commit().await;
    assert!(matches!(outcome, Err(StoreError::Cloud { .. })), "nothing was done: {outcome:?}");
    assert_eq!(waiting(&db, &prices).await, []);
    meddler.puts("proposal/", &[Fate::LostAnswer, Fate::Denied]);
    let outcome = txn.commit().await;
    assert!(matches!(outcome, Err(StoreError::CommitUnknown { .. })), "{outcome:?}");
    // And it stays unclear until an attempt is answered.
    meddler.puts("proposal/", &[Fate::Denied]);
    let outcome = txn.commit().await;
    assert!(matches!(outcome, Err(StoreError::CommitUnknown { .. })), "{outcome:?}");
    let committed = txn.commit().await.unwrap();
    assert_eq!(waiting(&db, &prices).await, [committed.proposed.unwrap()]);
}

/// A curator dies between the approval and the end of the proposal: a sweep does what he did not, so that
/// nobody is told that he rejects what is live.
#[tokio::test]
async fn what_a_sweep_finishes_waits_for_no_decision() {
    let (cloud, db, prices, _) = database(Backend::S3Log).await;
    let id = propose(&db, &prices, "bread", Some("1")).await;
    let other = propose(&db, &prices, "milk", Some("2")).await;
    let names = cloud.objects.list("proposal/", None, 10).await.unwrap().names;
    let name = names.iter().find(|name| name.ends_with(&id.to_string())).unwrap();
    let Ok(Get::Found { bytes, .. }) = cloud.objects.get(name, None).await else {
        panic!("it is there")
    };
    let approved = name.replace("proposal/", "approved/");
    cloud.objects.put(&approved, bytes, PutIf::Absent).await;
    assert_eq!(db.store().sweep().await.unwrap().applied, 1);
    assert_eq!(get(&cloud, &prices, "bread", false).await.as_deref(), Some("1"));
    assert_eq!(waiting(&db, &prices).await, [other]);
    assert!(!db.store().reject(&prices, id).await.unwrap(), "it is decided on");
}

/// The put of the approval decides. What fails behind it is told as that, and a sweep goes on.
#[tokio::test]
async fn what_is_approved_is_said_to_be() {
    use crate::meddle::{Fate, Meddler};
    let (cloud, db, prices, _) = database(Backend::S3Log).await;
    let (meddler, between) = Meddler::over(&cloud);
    let id = propose(&db, &prices, "bread", Some("1")).await;
    let curator = over(&between, Backend::S3Log).await;
    let looked_at = shown(&curator, &prices, id).await;
    meddler.puts("page/", &[Fate::Denied]);
    let outcome = curator.store().approve(&prices, &looked_at).await;
    assert!(matches!(outcome, Err(StoreError::Unapplied { .. })), "{outcome:?}");
    assert_eq!(get(&cloud, &prices, "bread", false).await, None);
    db.store().sweep().await.unwrap();
    assert_eq!(get(&cloud, &prices, "bread", false).await.as_deref(), Some("1"));
}

/// What a curator approved was put aside and let go of after one answer that was damaged on its way.
#[tokio::test]
async fn a_damaged_answer_takes_no_approval_back() {
    let (raw, db, prices, _) = database(Backend::S3Log).await;
    let id = propose(&db, &prices, "k", Some("v")).await;
    // As a curator leaves it who dies after the put that approves it.
    let proposal = raw.objects.list("proposal/", None, 10).await.unwrap().names.remove(0);
    assert!(proposal.ends_with(&id.to_string()), "{proposal}");
    let Ok(Get::Found { bytes, .. }) = raw.objects.get(&proposal, None).await else {
        panic!("it waits")
    };
    let approved = proposal.replace("proposal/", "approved/");
    raw.objects.put(&approved, bytes, PutIf::Absent).await;
    let (meddler, cloud) = crate::meddle::Meddler::over(&raw);
    meddler.damages_gets("approved/", 1);
    let keeper = over(&cloud, Backend::S3Log).await;
    let done = keeper.store().sweep().await.unwrap();
    assert_eq!((done.poison, meddler.damaged()), (0, 1));
    assert!(keeper.begin().read(&prices, &key("k")).await.unwrap().is_some());
    assert_eq!(raw.objects.list("quarantine/", None, 10).await.unwrap().names, [""; 0]);
}
