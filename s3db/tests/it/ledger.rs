//! What calls cost, and who is told.

use std::{sync::Arc, time::Duration};

use s3db::{
    Backend, Db, Key, Options, Payload, SearchBy, StoreError,
    cloud::{
        CallKind, Cloud, Fault, Ledger, Prices, Spending,
        embedded::{self, Memory},
    },
};

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

async fn open(cloud: &Cloud, options: &Options) -> Db {
    let settings = options.settings;
    match s3db::Store::create(cloud, &settings, options.backend, options.shards).await {
        Ok(_) | Err(StoreError::Exists(_)) => {}
        Err(error) => panic!("{error}"),
    }
    Db::over(cloud.clone(), options).await.unwrap()
}

fn calls(ledger: &Ledger, kind: CallKind) -> u64 {
    ledger.charge(kind).calls
}

fn all(ledger: &Ledger) -> u64 {
    CallKind::ALL.into_iter().map(|kind| calls(ledger, kind)).sum()
}

#[tokio::test]
async fn transactions_and_collections_pay_for_what_is_theirs() {
    let cloud = embedded::memory(Arc::new(Memory::new()));
    for backend in Backend::ALL {
        let cloud = if backend == Backend::S3Log {
            cloud.clone()
        } else {
            embedded::memory(Arc::new(Memory::new()))
        };
        let options = Options { has_worker: false, backend, shards: 1, ..Options::default() };
        let db = open(&cloud, &options).await;
        let a = db.create_collection("a").await.unwrap();
        let b = db.create_collection("b").await.unwrap();
        // The session's life begins with its first commit, which pays for that.
        let mut first = db.begin();
        first.put(&a, &key("k"), Payload::new("0").unwrap()).unwrap();
        first.commit().await.unwrap();
        let ledgers = db.collection_ledgers();
        let (of_a, before) = (ledgers["a"].clone(), all(&ledgers["a"]));

        let mut txn = db.begin();
        txn.put(&a, &key("k"), Payload::new("1").unwrap()).unwrap();
        txn.commit().await.unwrap();
        // One put of a log object, or one send: the commit point, and nothing else.
        let point = if backend == Backend::S3Log { CallKind::Put } else { CallKind::Send };
        assert_eq!((all(txn.ledger()), calls(txn.ledger(), point)), (1, 1), "{backend:?}");
        assert_eq!(all(&of_a) - before, 1, "{backend:?}");

        // What is for both is for neither alone.
        let mut both = db.begin();
        both.put(&a, &key("k"), Payload::new("2").unwrap()).unwrap();
        both.put(&b, &key("k"), Payload::new("2").unwrap()).unwrap();
        both.commit().await.unwrap();
        assert!(all(both.ledger()) >= 1, "{backend:?}");
        let of_b = db.collection_ledgers()["b"].clone();
        assert_eq!((all(&of_a) - before, all(&of_b)), (1, 0), "{backend:?}");

        // Each page that a checkpoint puts is of one collection.
        let puts = |ledger: &Ledger| calls(ledger, CallKind::Put);
        let (a_puts, b_puts) = (puts(&of_a), puts(&of_b));
        db.checkpoint().await.unwrap();
        assert_eq!((puts(&of_a) - a_puts, puts(&of_b) - b_puts), (1, 1), "{backend:?}");

        // And what all of them paid is no more than what was called.
        assert!(all(&of_a) + all(&of_b) < all(db.ledger()), "{backend:?}");
        let dollars = |ledger: &Ledger| ledger.dollars(&Prices::TODAY);
        assert!(dollars(&of_a) + dollars(&of_b) < dollars(db.ledger()), "{backend:?}");
        db.close().await.unwrap();
    }
}

#[tokio::test]
async fn scans_are_charged_as_they_go() {
    let cloud = embedded::memory(Arc::new(Memory::new()));
    let options = Options { has_worker: false, ..Options::default() };
    let db = open(&cloud, &options).await;
    let of = db.create_collection("a").await.unwrap();
    db.close().await.unwrap();
    let db = open(&cloud, &options).await;
    let txn = db.begin();
    let mut records = txn.scan(&of);
    assert_eq!(all(txn.ledger()), 0, "nothing before it begins");
    assert!(records.next().await.unwrap().is_none());
    assert_eq!(all(txn.ledger()), calls(txn.ledger(), CallKind::Get));
    assert!(all(txn.ledger()) >= 1);
    assert_eq!(all(&db.collection_ledgers()["a"]), all(txn.ledger()));
}

/// Nor is anything of an index left out: what it takes to create it, to probe it, and to keep it.
#[tokio::test]
async fn indexes_are_charged_to_their_collection() {
    let cloud = embedded::memory(Arc::new(Memory::new()));
    let options = Options { has_worker: false, ..Options::default() };
    let db = open(&cloud, &options).await;
    let of = db.create_collection("a").await.unwrap();
    let puts = |ledger: &Ledger| calls(ledger, CallKind::Put);
    let before = puts(db.ledger());
    db.create_index(&of, "i", &SearchBy::Payload).await.unwrap();
    let of_a = db.collection_ledgers()["a"].clone();
    // The catalogue, the root of the index, the leaf that names it, the catalogue.
    assert_eq!((puts(&of_a), puts(db.ledger()) - before), (4, 4));

    let mut txn = db.begin();
    txn.put(&of, &key("k"), Payload::new("v").unwrap()).unwrap();
    txn.commit().await.unwrap();
    let before = puts(&of_a);
    db.checkpoint().await.unwrap();
    assert_eq!(puts(&of_a) - before, 2, "the leaf of the index, and that of the record");
    db.close().await.unwrap();

    let db = open(&cloud, &options).await;
    let of = db.collection("a").await.unwrap();
    let txn = db.begin();
    let mut records = txn.probe(&of, "i", &key("v")).await.unwrap();
    assert!(records.next().await.unwrap().is_some());
    assert!(all(txn.ledger()) >= 1);
    assert_eq!(all(&db.collection_ledgers()["a"]), all(txn.ledger()));
}

#[tokio::test]
async fn work_in_the_background_is_refused_first() {
    let cloud = embedded::memory(Arc::new(Memory::new()));
    let usual = Options { has_worker: false, ..Options::default() };
    let of = open(&cloud, &usual).await.create_collection("a").await.unwrap();
    // A hundred puts, of which the background may use none.
    let prices = Prices { get: 0.0, put: 1e6, send: 0.0, queue: 0.0, gb_in: 0.0, gb_out: 0.0 };
    let spending = Spending {
        dollars: 100.0,
        prices,
        background_share: 0.0,
        period: Duration::from_secs(3600),
    };
    let mut options = Options { spending: Some(spending), has_worker: true, ..usual };
    options.settings.checkpoint_interval = Duration::from_millis(10);
    let db = open(&cloud, &options).await;
    let mut committed = 0;
    let refusal = loop {
        let mut txn = db.begin();
        txn.put(&of, &key("k"), Payload::new(vec![b'x'; 10]).unwrap()).unwrap();
        match txn.commit().await {
            Ok(_) => committed += 1,
            Err(error) => break error,
        }
        assert!(committed <= 100, "it is never refused");
        if committed == 10 {
            // The worker has had its turn, and got nothing.
            while db.refused_calls() == 0 {
                tokio::task::yield_now().await;
            }
        }
    };
    // All that may be spent went to the session's life and to commits.
    assert!((90..=100).contains(&committed), "{committed}");
    let StoreError::Cloud { source: Fault::Spent { cause, .. }, .. } = &refusal else {
        panic!("{refusal:?}")
    };
    assert!(cause.contains("$100.000000 of $100.000000"), "{cause}");
    assert_eq!(
        calls(&db.collection_ledgers()["a"], CallKind::Put),
        calls(db.ledger(), CallKind::Put)
    );
    drop(db);
    // What was committed is there for those who may spend.
    let db = open(&cloud, &Options { has_worker: false, ..Options::default() }).await;
    db.store().sweep().await.unwrap();
    assert!(db.begin().read(&of, &key("k")).await.unwrap().is_some());
}

/// To make room for what a session remembers, its commits checkpointed out of what work in the
/// background leaves for commits.
#[tokio::test]
async fn commits_make_room_out_of_what_the_background_may_spend() {
    let cloud = embedded::memory(Arc::new(Memory::new()));
    let usual = Options { has_worker: false, ..Options::default() };
    let of = open(&cloud, &usual).await.create_collection("a").await.unwrap();
    let prices = Prices { get: 0.0, put: 1e6, send: 0.0, queue: 0.0, gb_in: 0.0, gb_out: 0.0 };
    let period = Duration::from_secs(3600);
    let spending = Spending { dollars: 20.0, prices, background_share: 0.0, period };
    let mut options = Options { spending: Some(spending), ..usual };
    // Some six changes.
    options.settings.own_bytes_max = 1000;
    let db = open(&cloud, &options).await;
    let mut committed = 0;
    loop {
        let mut txn = db.begin();
        txn.put(&of, &key(&format!("{committed}")), Payload::new("x").unwrap()).unwrap();
        match txn.commit().await {
            Ok(_) => committed += 1,
            Err(StoreError::Cloud { source: Fault::Spent { .. }, .. }) => break,
            Err(error) => panic!("{error}"),
        }
    }
    // Twenty puts: the life took two, and nothing went to the page.
    assert_eq!(committed, 18);
    let Ok(s3db::cloud::Get::Found { bytes, .. }) =
        cloud.objects.get(&of.root.object(), None).await
    else {
        panic!("no root");
    };
    assert_eq!(s3db::page::Page::decode(&bytes).unwrap().version, 1);
}

#[test]
fn prices_are_what_the_user_says() {
    let prices: Prices = "put=1.13, get=0.03,queue=2".parse().unwrap();
    assert_eq!((prices.put, prices.get, prices.queue, prices.send), (1.13, 0.03, 2.0, 2.0));
    let prices: Prices = "send=7".parse().unwrap();
    assert_eq!((prices.send, prices.queue), (7.0, Prices::TODAY.queue));
    assert_eq!("".parse(), Ok(Prices::TODAY));
    for bad in ["put", "put=x", "put=-1", "put=inf", "puts=1"] {
        assert!(bad.parse::<Prices>().is_err(), "{bad}");
    }
}
