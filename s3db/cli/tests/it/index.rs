//! Indexes, over directories and over S3 and SQS.

use std::{env, process};

use sources::aws::{Aws, AwsOptions};

use crate::{folder, run, s3db};

/// The whole life of an index: built over records that are there, followed by those that come,
/// change and go.
fn life(url: &str, backend: &str) {
    run(&["init", url, "--backend", backend, "--shards", "2", "users"]);
    let script = "put users ada {\"born\": 1815, \"name\": \"Ada\"}\n\
                  put users alan {\"born\": 1912, \"name\": \"Alan\"}\n\
                  put users nobody no JSON\n";
    s3db().args(["txn", url]).write_stdin(script).assert().success();
    let made = run(&["index", "create", url, "users", "born", "json:born"]);
    assert_eq!(made, "2 records, 2 entries added, 0 removed\n", "{backend}");
    assert_eq!(run(&["index", "list", url, "users"]), "born\tjson:born\tready\n");
    let keys = |args: &[&str]| -> Vec<String> {
        let mut all = vec!["index", "find", url, "users", "born", "--json"];
        all.extend(args);
        run(&all)
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
            .map(|line| format!("{} {}", line["search"], line["key"]).replace('"', ""))
            .collect()
    };
    assert_eq!(keys(&[]), ["1815 ada", "1912 alan"]);
    let script = "put users konrad {\"born\": 1910}\n\
                  put users grace {\"born\": 1912}\n\
                  commit\n\
                  put users ada {\"born\": 1816}\n\
                  del users alan\n";
    s3db().args(["txn", url]).write_stdin(script).assert().success();
    assert_eq!(keys(&[]), ["1816 ada", "1910 konrad", "1912 grace"], "{backend}");
    assert_eq!(keys(&["1912"]), ["1912 grace"]);
    assert_eq!(keys(&["1815"]), [""; 0]);
    assert_eq!(keys(&["--from", "1900", "--to", "1912"]), ["1910 konrad"]);
    assert_eq!(keys(&["--limit", "1"]), ["1816 ada"]);
    run(&["sweep", url]);
    let checked = run(&["index", "check", url, "users", "born", "--json"]);
    let checked: serde_json::Value = serde_json::from_str(&checked).unwrap();
    let count = |what: &str| checked[what].as_u64();
    let counts = ["records", "entries", "missing", "changing", "dangling"].map(count);
    assert_eq!(counts, [3, 3, 0, 0, 0].map(Some), "{checked}");
    let again = run(&["index", "build", url, "users", "born"]);
    assert_eq!(again, "3 records, 0 entries added, 0 removed\n", "{backend}");
    assert!(run(&["verify", url]).ends_with("no problems\n"));
    run(&["gc", url, "--grace", "0"]);
    assert_eq!(keys(&[]).len(), 3);
    let dropped = run(&["index", "drop", url, "users", "born", "--json"]);
    assert_eq!(dropped, "{\"collection\":\"users\",\"dropped\":\"born\"}\n", "{backend}");
    assert_eq!(run(&["index", "list", url, "users"]), "");
    s3db().args(["index", "find", url, "users", "born"]).assert().code(1);
    s3db().args(["index", "drop", url, "users", "born"]).assert().code(1);
    // A collection, with what still waits for it.
    s3db().args(["txn", url]).write_stdin("put users late x\n").assert().success();
    assert_eq!(run(&["drop", url, "users"]), "dropped collection users\n", "{backend}");
    s3db().args(["drop", url, "users"]).assert().code(1);
    s3db().args(["get", url, "users", "ada"]).assert().code(1);
    run(&["init", url, "users"]);
    run(&["sweep", url]);
    assert_eq!(run(&["scan", url, "users"]), "", "{backend}");
    run(&["gc", url, "--grace", "0"]);
    assert!(run(&["verify", url]).ends_with("no problems\n"), "{backend}");
}

#[test]
fn an_index_in_a_directory() {
    let (_folder, url) = folder();
    life(&url, "s3-log");
}

#[test]
fn an_index_in_a_directory_with_queues() {
    std::thread::scope(|scope| {
        for backend in ["sqs-standard", "sqs-fifo"] {
            scope.spawn(move || {
                let (_folder, url) = folder();
                life(&url, backend);
            });
        }
    });
}

#[test]
fn an_index_in_a_bucket() {
    let server = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    let (Some(s3), Some(sqs)) = (server("TEST_S3_ENDPOINT"), server("TEST_SQS_ENDPOINT")) else {
        assert!(env::var("CI").as_deref() != Ok("true"), "CI needs the test servers");
        println!(
            "left out: TEST_S3_ENDPOINT or TEST_SQS_ENDPOINT is not set; start the servers first"
        );
        return;
    };
    let bucket = format!("s3db-index-{}", process::id());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let options = AwsOptions { endpoint: Some(s3.clone()), ..AwsOptions::default() };
        let aws = Aws::new(options);
        let client = aws.s3().await.unwrap();
        client.create_bucket().bucket(&bucket).send().await.unwrap();
    });
    life(&format!("s3://{bucket}/db?endpoint={s3}"), "s3-log");
    life(&format!("s3://{bucket}/queues?endpoint={s3}&sqs={sqs}"), "sqs-standard");
}

/// The tree is whole, and records are not in it: an old copy of the index lies in its place.
#[test]
fn an_index_that_lacks_records_is_a_problem_to_verify() {
    let (folder, url) = folder();
    let pages = || -> Vec<_> {
        let there = std::fs::read_dir(folder.path().join("db/objects/page")).unwrap();
        there.map(|page| page.unwrap().path()).collect()
    };
    run(&["init", &url, "t"]);
    let before = pages();
    run(&["index", "create", &url, "t", "i", "payload"]);
    let made: Vec<_> = pages().into_iter().filter(|page| !before.contains(page)).collect();
    assert_eq!(made.len(), 1, "{made:?}");
    let empty = std::fs::read(&made[0]).unwrap();
    let verified = run(&["verify", &url]);
    assert!(verified.contains("\n1 indexes compared"), "{verified}");
    s3db().args(["txn", &url]).write_stdin("put t a 1\nput t b 2\n").assert().success();
    run(&["sweep", &url]);
    assert!(run(&["verify", &url]).ends_with("no problems\n"));
    std::fs::write(&made[0], empty).unwrap();
    let found = s3db().args(["verify", &url, "--json"]).assert().code(4);
    let report: serde_json::Value = serde_json::from_slice(&found.get_output().stdout).unwrap();
    let problems = report["problems"].to_string();
    assert!(problems.contains("index i of t lacks 2 of 2 records"), "{report}");
    run(&["index", "build", &url, "t", "i"]);
    assert!(run(&["verify", &url]).ends_with("no problems\n"));
}

/// As the help says, with its own numbers.
#[test]
fn numbers_are_in_the_order_of_their_text() {
    let (_folder, url) = folder();
    run(&["init", &url, "t"]);
    let script = "put t a {\"born\": 1815, \"on\": \"1815-12-10\"}\n\
                  put t b {\"born\": 185, \"on\": \"0185-01-31\"}\n\
                  put t c {\"born\": 19, \"on\": \"0019-09-01\"}\n\
                  put t d {\"born\": 1912, \"on\": \"1912-06-23\"}\n";
    s3db().args(["txn", &url]).write_stdin(script).assert().success();
    let find = |index: &str, from: &str, to: &str| {
        let found = run(&["index", "find", &url, "t", index, "--from", from, "--to", to]);
        let search = |line: &str| line.split('\t').next().unwrap().to_owned();
        found.lines().map(search).collect::<Vec<_>>()
    };
    for index in ["born", "on"] {
        run(&["index", "create", &url, "t", index, &format!("json:{index}")]);
    }
    assert_eq!(find("born", "1800", "1900"), ["1815", "185", "19"]);
    assert_eq!(find("on", "1800-01-01", "1900-01-01"), ["1815-12-10"]);
}

#[test]
fn what_is_no_index_is_said() {
    let (_folder, url) = folder();
    run(&["init", &url, "t"]);
    let cases: &[(&[&str], i32, &str)] = &[
        (&["index", "create", &url, "t", "i", "xml:born"], 1, "json:FIELD"),
        (&["index", "create", &url, "none", "i", "payload"], 1, "no collection none"),
        (&["index", "create", &url, "t", "bad/name", "payload"], 1, "letters"),
        (&["index", "build", &url, "t", "i"], 1, "index i of t"),
        (&["index", "find", &url, "t", "i", "k"], 1, "index i of t"),
        (&["index", "find", &url, "t", "i", "k", "--from", "a"], 2, "cannot be used with"),
    ];
    for (args, code, why) in cases {
        let failed = s3db().args(*args).assert().code(*code);
        let error = String::from_utf8_lossy(&failed.get_output().stderr).into_owned();
        assert!(error.contains(why), "{args:?}: {error}");
    }
    run(&["index", "create", &url, "t", "i", "payload"]);
    run(&["index", "create", &url, "t", "i", "payload"]);
    let other = s3db().args(["index", "create", &url, "t", "i", "json:a"]).assert().code(1);
    let error = String::from_utf8_lossy(&other.get_output().stderr).into_owned();
    assert!(error.contains("index i by payload exists already"), "{error}");
}
