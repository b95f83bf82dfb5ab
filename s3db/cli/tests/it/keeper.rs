//! Processes that sweep again and again: all that others need is done, whatever else fails.

use std::{
    io::{BufRead, BufReader, Lines},
    path::PathBuf,
    process::{Child, ChildStderr, Command, Stdio},
    time::{Duration, Instant},
};

use s3db::{Db, Key, Options, Payload};

use crate::{folder, run, s3db};

/// Is killed in the end.
struct Keeper {
    child: Child,
    errors: Lines<BufReader<ChildStderr>>,
}

impl Keeper {
    fn new(url: &str, more: &[&str]) -> Keeper {
        let mut child = Command::new(env!("CARGO_BIN_EXE_s3db"))
            .args(["sweep", url, "--every", "1", "--json"])
            .args(more)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let errors = BufReader::new(child.stderr.take().unwrap()).lines();
        Keeper { child, errors }
    }

    fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Commits one transaction with `key` in each of these collections, and is gone before it is anywhere else.
fn commit(url: &str, collections: &[&str], key: &str) {
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let options = Options { has_worker: false, ..Options::default() };
        let db = Db::open_with(url, &options).await.unwrap();
        let mut txn = db.begin();
        for name in collections {
            let of = db.collection(name).await.unwrap();
            txn.put(&of, &Key::new(key).unwrap(), Payload::new("v").unwrap()).unwrap();
        }
        txn.commit().await.unwrap();
    });
}

fn has(url: &str, collection: &str, key: &str) -> bool {
    let got = s3db().args(["get", url, collection, key]).output().unwrap();
    match got.status.code() {
        Some(0) => true,
        Some(3) => false,
        code => panic!("{code:?}: {}", String::from_utf8_lossy(&got.stderr)),
    }
}

fn comes(url: &str, collection: &str, key: &str) -> bool {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(15) {
        if has(url, collection, key) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    false
}

/// Whole transactions lie in queues that are no part of the log that anyone can own.
#[test]
fn an_owner_of_all_looks_after_what_is_nobodys_part() {
    let (_folder, url) = folder();
    let names = ["a", "b", "c", "d"];
    let init = ["init", &url, "--backend", "sqs-standard", "--shards", "16"];
    run(&[&init[..], &names[..]].concat());
    commit(&url, &names, "k");
    assert!(!has(&url, "a", "k"), "a commit brings nothing to the pages itself");
    let mut keeper = Keeper::new(&url, &["--own", "all"]);
    for name in names {
        assert!(comes(&url, name, "k"), "{name}");
    }
    assert!(keeper.is_running());
}

/// A page that is damaged keeps a keeper from nothing else, and is written to when it is whole again.
#[test]
fn a_round_that_fails_is_followed_by_the_next_one() {
    let (folder, url) = folder();
    run(&["init", &url, "t"]);
    let page = only_page(folder.path().join("db/objects/page"));
    let whole = std::fs::read(&page).unwrap();
    run(&["init", &url, "beside"]);
    commit(&url, &["t"], "k");
    std::fs::write(&page, "noise").unwrap();
    for own in [&["--own", "all"][..], &[]] {
        let mut keeper = Keeper::new(&url, own);
        let told = keeper.errors.next().expect("the first round fails").unwrap();
        assert!(told.contains("damaged"), "{told}");
        let told = keeper.errors.next().expect("and is not the last").unwrap();
        assert!(told.contains("damaged"), "{told}");
        commit(&url, &["beside"], &format!("k{}", own.len()));
        assert!(comes(&url, "beside", &format!("k{}", own.len())), "{own:?}");
        assert!(keeper.is_running(), "{own:?}");
    }
    let mut keeper = Keeper::new(&url, &[]);
    keeper.errors.next().expect("a round fails").unwrap();
    std::fs::write(&page, whole).unwrap();
    assert!(comes(&url, "t", "k"));
    assert!(keeper.is_running());
}

/// An owner looks at what is nobody's part every five minutes; after a look that failed it does not wait as long.
#[test]
fn an_owner_looks_at_the_rest_again_when_that_failed() {
    let (folder, url) = folder();
    run(&["init", &url, "accounts", "--isolation", "snapshot"]);
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let options = Options { has_worker: false, ..Options::default() };
        let db = Db::open_with(&url, &options).await.unwrap();
        let of = db.collection("accounts").await.unwrap();
        let mut txn = db.begin_for(&of);
        txn.put(&of, &Key::new("ada").unwrap(), Payload::new("1").unwrap()).unwrap();
        txn.commit().await.unwrap();
    });
    let waiting = || {
        let now = run(&["watch", &url, "--count", "1", "--json"]);
        let now: serde_json::Value = serde_json::from_str(&now).unwrap();
        now["sequencer"]["waiting"].as_u64()
    };
    assert_eq!(waiting(), Some(1), "no page has it, and the sequencer is no part that one can own");
    let numbers = folder.path().join("db/objects/sequencer/numbers@");
    let aside = folder.path().join("numbers");
    std::fs::rename(&numbers, &aside).unwrap();
    let mut keeper = Keeper::new(&url, &["--own", "all"]);
    let told = keeper.errors.next().expect("the first look fails").unwrap();
    assert!(told.contains("sequencer/numbers is not there"), "{told}");
    std::fs::rename(&aside, &numbers).unwrap();
    let began = Instant::now();
    while waiting() != Some(0) {
        assert!(began.elapsed() < Duration::from_secs(15), "nobody looked again");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(keeper.is_running());
}

fn only_page(folder: PathBuf) -> PathBuf {
    let mut pages: Vec<_> = std::fs::read_dir(folder).unwrap().collect();
    assert_eq!(pages.len(), 1, "of a collection that is new");
    pages.pop().unwrap().unwrap().path()
}
