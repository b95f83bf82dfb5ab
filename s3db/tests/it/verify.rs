//! What `verify` looks at.

use std::sync::Arc;

use bytes::Bytes;
use s3db::{
    Backend, Db, Options, Settings, Store,
    cloud::{
        Cloud, Get, PutIf,
        embedded::{self, Memory},
    },
};

use crate::embedded::{key, options, payload};

async fn bytes_of(cloud: &Cloud, name: &str) -> Bytes {
    match cloud.objects.get(name, None).await.unwrap() {
        Get::Found { bytes, .. } => bytes,
        other => panic!("{name}: {other:?}"),
    }
}

async fn names(cloud: &Cloud, prefix: &str) -> Vec<String> {
    cloud.objects.list(prefix, None, 100).await.unwrap().names
}

/// A bit is turned in each object, one after the other, and each time that object is named. Approvals,
/// proposals, large transactions, clients and claims were looked at by nobody.
#[tokio::test]
async fn damage_is_named_wherever_it_is() {
    let cloud = embedded::memory(Arc::new(Memory::new()));
    let backend = Backend::SqsStandard;
    let settings = Settings { message_bytes_max: 300, ..options(backend).settings };
    let options = Options { settings, has_worker: false, shards: 1, ..options(backend) };
    Store::create(&cloud, &settings, backend, 1).await.unwrap();
    let db = Db::over(cloud.clone(), &options).await.unwrap();
    let open = db.create_collection("open").await.unwrap();
    let curated = db.store().create_curated("curated").await.unwrap();
    for of in [&open, &curated] {
        let mut txn = db.begin();
        for n in 0..10 {
            txn.put(of, &key(&format!("{n}")), payload("a payload")).unwrap();
        }
        txn.commit().await.unwrap();
    }
    let proposal = names(&cloud, "proposal/").await.remove(0);
    let approved = proposal.replace("proposal/", "approved/");
    cloud.objects.put(&approved, bytes_of(&cloud, &proposal).await, PutIf::Absent).await;
    db.store().own(db.client(), &[0]).await.unwrap();
    let found = db.store().verify(|_, _| {}).await.unwrap();
    assert_eq!((found.problem_count, found.waiting), (0, 11), "{found:?}");

    for prefix in ["page/", "catalog/", "clients/", "spill/", "proposal/", "approved/", "owners"] {
        let there = names(&cloud, prefix).await;
        assert!(!there.is_empty(), "{prefix}");
        for name in there {
            let sound = bytes_of(&cloud, &name).await;
            let mut damaged = sound.to_vec();
            let middle = damaged.len() / 2;
            damaged[middle] ^= 4;
            cloud.objects.put(&name, damaged.into(), PutIf::Always).await;
            let found = db.store().verify(|_, _| {}).await.unwrap();
            let named = name.strip_prefix("page/").unwrap_or(&name);
            let is_named = found.problems.iter().any(|problem| problem.contains(named));
            assert!(is_named, "{name}: {:?}", found.problems);
            cloud.objects.put(&name, sound, PutIf::Always).await;
        }
    }
    // Whole, and not where it belongs.
    for prefix in ["spill/", "proposal/", "approved/"] {
        let name = names(&cloud, prefix).await.remove(0);
        let (folder, last) = name.rsplit_once('/').unwrap();
        let turned: String = last.chars().rev().collect();
        let moved = format!("{folder}/{turned}");
        cloud.objects.put(&moved, bytes_of(&cloud, &name).await, PutIf::Absent).await;
        let found = db.store().verify(|_, _| {}).await.unwrap();
        assert_eq!(found.problem_count, 1, "{moved}: {:?}", found.problems);
        assert!(found.problems[0].contains(&moved), "{:?}", found.problems);
        cloud.objects.delete(&moved, None).await;
    }
    // The last: with what was approved the rest comes to its pages.
    db.store().sweep().await.unwrap();
    let found = db.store().verify(|_, _| {}).await.unwrap();
    assert_eq!((found.problem_count, found.waiting, found.records), (0, 0, 20), "{found:?}");
    assert_eq!(names(&cloud, "spill/").await, [""; 0]);
}

/// A large transaction of which the object was damaged was lost in silence: the message came again until
/// it expired, and nobody ever told.
#[tokio::test]
async fn a_large_transaction_that_is_damaged_is_told() {
    for backend in [Backend::SqsStandard, Backend::SqsFifo] {
        let cloud = embedded::memory(Arc::new(Memory::new()));
        let settings = Settings { message_bytes_max: 300, ..options(backend).settings };
        let options = Options { settings, has_worker: false, shards: 1, ..options(backend) };
        Store::create(&cloud, &settings, backend, 1).await.unwrap();
        let db = Db::over(cloud.clone(), &options).await.unwrap();
        let of = db.create_collection("c").await.unwrap();
        let commit = async |range: std::ops::Range<u32>| {
            let mut txn = db.begin();
            for n in range {
                txn.put(&of, &key(&format!("{n}")), payload("a payload")).unwrap();
            }
            txn.commit().await.unwrap();
        };
        commit(0..10).await;
        let damaged = names(&cloud, "spill/").await.remove(0);
        let mut bytes = bytes_of(&cloud, &damaged).await.to_vec();
        bytes[100] ^= 1;
        cloud.objects.put(&damaged, bytes.into(), PutIf::Always).await;
        commit(10..20).await;
        let done = db.store().sweep().await.unwrap();
        assert_eq!((done.poison, done.records), (1, 10), "{}", backend.name());
        let found = db.store().verify(|_, _| {}).await.unwrap();
        assert_eq!((found.records, found.waiting, found.quarantined), (10, 0, 2), "{found:?}");
        assert_eq!(found.problem_count, 1, "{found:?}");
        assert!(found.problems[0].contains(&damaged), "{found:?}");
    }
}
