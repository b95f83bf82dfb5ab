//! What a commit is told when it is asked again, and what its writes do to others of the session.

use s3db::{Backend, Key, Payload, Session, StoreError};

use crate::{
    meddle::{
        Fate::{Denied, Late, Stuck},
        Meddler,
    },
    mishaps::{CLIENT, create, get, key, memory, settings},
    printed::open,
};

fn payload(text: &str) -> Payload {
    Payload::new(text).unwrap()
}

/// A transaction that was unclear was committed again after a later one, and its older write was
/// laid over the newer: the session read what nobody else would ever see.
#[tokio::test]
async fn an_older_own_write_covers_no_newer_one() {
    let raw = memory();
    let (meddler, cloud) = Meddler::over(&raw);
    let (db, things) = create(&cloud, Backend::S3Log).await;
    let k: Key = key("k");
    meddler.puts("log/", &[Late, Denied]);
    let mut older = db.begin();
    older.put(&things, &k, payload("older")).unwrap();
    let outcome = older.commit().await;
    assert!(matches!(outcome, Err(StoreError::CommitUnknown { .. })), "{outcome:?}");
    meddler.deliver().await;
    let mut newer = db.begin();
    newer.put(&things, &k, payload("newer")).unwrap();
    newer.commit().await.unwrap();
    older.commit().await.unwrap();
    let seen = db.begin().read(&things, &k).await.unwrap();
    assert_eq!(seen, Some(payload("newer")));
    assert_eq!(get(&raw, &things, "k").await.as_deref(), Some("newer"));
}

/// A commit that had no answer was durable. The next life of its client began, and then the first
/// one, asked again as it should be, said that it was not committed: it had put the transaction a
/// second time, behind the fence.
#[tokio::test]
async fn what_is_committed_is_not_called_off_by_the_next_life() {
    for given_up in [false, true] {
        let raw = memory();
        let (meddler, cloud) = Meddler::over(&raw);
        let (db, things) = create(&cloud, Backend::S3Log).await;
        let mut txn = db.begin();
        txn.put(&things, &key("k"), payload("x")).unwrap();
        if given_up {
            meddler.puts("log/", &[Stuck]);
            let mut commit = Box::pin(txn.commit());
            while raw.objects.list("log/", None, 1).await.unwrap().names.is_empty() {
                assert!(futures::poll!(&mut commit).is_pending());
            }
        } else {
            meddler.puts("log/", &[Late, Denied]);
            let outcome = txn.commit().await;
            assert!(matches!(outcome, Err(StoreError::CommitUnknown { .. })), "{outcome:?}");
            meddler.deliver().await;
        }
        // Which ends this one.
        let next = Session::open(open(&raw, settings()).await, CLIENT).await.unwrap();
        txn.commit().await.unwrap();
        let log = raw.objects.list("log/", None, 10).await.unwrap().names;
        assert_eq!(log.len(), 2, "what is committed, and a fence: {log:?}");
        // What was not committed by then is told so.
        let mut late = db.begin();
        late.put(&things, &key("late"), payload("y")).unwrap();
        let outcome = late.commit().await;
        assert!(matches!(outcome, Err(StoreError::Fenced { .. })), "{outcome:?}");
        assert_eq!(get(&raw, &things, "k").await.as_deref(), Some("x"));
        assert_eq!(get(&raw, &things, "late").await, None);
        drop(next);
    }
}
