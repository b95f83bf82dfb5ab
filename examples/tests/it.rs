//! The programs, from outside.

use assert_cmd::Command;

#[test]
fn every_program_ends_well() {
    let programs = [
        ("own_source", env!("CARGO_BIN_EXE_own_source"), "were tried again"),
        ("own_policy", env!("CARGO_BIN_EXE_own_policy"), "keep their contracts"),
        ("other_format", env!("CARGO_BIN_EXE_other_format"), "s3://indexes/keys.fst"),
    ];
    for (name, program, says) in programs {
        let output = Command::new(program).assert().success();
        let text = String::from_utf8_lossy(&output.get_output().stdout).into_owned();
        assert!(text.contains(says), "{name}: {text}");
    }
}

/// The demo on a small database, with a near S3 and small units so that it is quick.
fn demo(folder: &std::path::Path) -> Command {
    let mut demo = Command::new(env!("CARGO_BIN_EXE_demo"));
    demo.env("EXTMEM_DATA", folder).args(["--megabytes", "60", "--unit-kib", "4"]);
    demo.args(["--count", "2", "--first-byte-ms", "2", "--rate", "0", "--json"]);
    // Neither has a say in what the demo compares: it asks the bucket.
    demo.env("EXTMEM_CACHE", "/dev/null/cache").env("EXTMEM_SERVER", "unix:///nobody/listens");
    demo
}

#[test]
fn the_demo_answers_alike_by_faults_and_by_download() {
    let folder = tempfile::tempdir().unwrap();
    let output = demo(folder.path()).assert().success();
    let report: serde_json::Value = serde_json::from_slice(&output.get_output().stdout).unwrap();
    assert_eq!(report["answers_equal"], true, "{report}");
    assert!(report["events"].as_u64().unwrap() > 0, "{report}");
    assert!(report["share"].as_f64().unwrap() < 0.05, "{report}");
    let ways = report["ways"].as_array().unwrap();
    assert_eq!(ways.len(), 3, "{report}");
    let len = &report["object_bytes"];
    assert!(ways[1..].iter().all(|way| way["bytes"] == *len), "{report}");

    // Again: the database is there, and the answer is the same.
    let again = demo(folder.path()).arg("--no-download").assert().success();
    let log = String::from_utf8_lossy(&again.get_output().stderr).into_owned();
    assert!(log.contains("Using the database"), "{log}");
    let same: serde_json::Value = serde_json::from_slice(&again.get_output().stdout).unwrap();
    assert_eq!((&same["users"], &same["events"]), (&report["users"], &report["events"]));
}

/// A bucket of yours, with options in its address: the database is put where it is read.
#[test]
fn the_demo_puts_its_database_where_the_address_says() {
    let endpoint = endpoint::Endpoint::start(endpoint::Settings {
        credentials: ("mine".to_owned(), "mine-too".to_owned()),
        shape: endpoint::line::Shape::UNSHAPED,
        ..endpoint::Settings::default()
    });
    let endpoint = endpoint.unwrap();
    endpoint.store().create_bucket("yours").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let url = format!("s3://yours/a%20key?region=us-east-1&endpoint={}", endpoint.url());
    for says in ["Putting it at s3://yours/a%20key", "Nothing to make"] {
        let mut demo = demo(folder.path());
        demo.env("AWS_ACCESS_KEY_ID", "mine").env("AWS_SECRET_ACCESS_KEY", "mine-too");
        let output = demo.args(["--no-download", "--url", &url]).assert().success();
        let log = String::from_utf8_lossy(&output.get_output().stderr).into_owned();
        assert!(log.contains(says), "{says}: {log}");
        assert!(endpoint.store().get("yours", "a key").is_ok(), "{log}");
    }
}

#[test]
fn the_demo_fails_where_too_much_was_fetched() {
    // The codebook alone, which every query needs, is a large part of so small a database.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.tdb");
    examples::data::make(&path, 3_000_000, 7, |_, _| {}).unwrap();
    let output = demo(folder.path()).arg("--no-download").arg("--file").arg(&path).assert().code(1);
    let log = String::from_utf8_lossy(&output.get_output().stderr).into_owned();
    assert!(log.contains("where under 5 % were due"), "{log}");
}

#[test]
fn equal_seeds_choose_equal_users() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.tdb");
    examples::data::make(&path, 3_000_000, 7, |_, _| {}).unwrap();
    let reader = traildb::Reader::open(&path).unwrap();
    let users = |seed| examples::data::users(&reader, 5, seed).unwrap();
    assert_eq!(users(1), users(1));
    assert_ne!(users(1), users(2));
    assert_eq!(users(1).len(), 5);
}

/// What `make test` and CI end with: a record of the last lines tells what failed, and where.
#[test]
fn failures_are_told_at_the_end_of_the_tests() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/");
    let summary = |text: &'static str| {
        let mut awk = Command::new("awk");
        let output = awk.arg("-f").arg(format!("{folder}test-summary.awk")).write_stdin(text);
        let output = output.assert().code(1);
        String::from_utf8(output.get_output().stdout.clone()).unwrap()
    };
    // Recorded from cargo: a test that returns an error, ones that panic, here and in a thread, a
    // program that aborts, a test in the documentation.
    let told = summary(include_str!("data/failing.txt"));
    let expected = "\
left out: nothing
failed: an_error
    Error: \"it broke\"
failed: does_not_panic
    note: test did not panic as expected at src/lib.rs:14:4
failed: talks_first
    thread 'talks_first' panicked at src/lib.rs:9:48:
    assertion `left == right` failed: the first
      left: 1
     right: 2
failed: a test program ended before its tests: to rerun pass `--test dies`
         Running tests/dies.rs (target/debug/deps/dies)
    running 2 tests
    Caused by:
      process didn't exit successfully: `target/debug/deps/dies --show-output` (signal: 6, SIGABRT: process abort signal)
failed: threads
    thread '<unnamed>' panicked at tests/other.rs:2:38:
    of a thread
    thread 'threads' panicked at tests/other.rs:2:68:
    called `Result::unwrap()` on an `Err` value: Any { .. }
failed: src/lib.rs - (line 1)
    thread 'main' panicked at src/lib.rs:5:1:
    assertion `left == right` failed: a doc test's
      left: 1
     right: 2
1 passed, 5 failed
";
    let end = told.find("left out: ").map(|at| &told[at..]);
    assert_eq!(end, Some(expected), "{told}");
    let told =
        summary("   Compiling tiny v0.1.0\nerror: unclosed\n --> src/lib.rs:15:9\ncargo: 101\n");
    let expected =
        "failed: cargo\n    error: unclosed\n     --> src/lib.rs:15:9\n0 passed, 0 failed\n";
    assert!(told.ends_with(expected), "{told}");
}

/// Everything that reads the pager, at random, from sources that fail: every byte is compared.
#[test]
fn a_short_soak_holds() {
    let mut soak = Command::new(env!("CARGO_BIN_EXE_soak"));
    let output = soak.args(["--seconds", "5", "--seed", "3", "--json"]).assert().success();
    let report: serde_json::Value = serde_json::from_slice(&output.get_output().stdout).unwrap();
    assert_eq!(report["failures"], serde_json::json!([]), "{report}");
    assert!(report["bytes_compared"].as_u64().unwrap() > 0, "{report}");
    assert!(report["faults"].as_u64().unwrap() > 0, "{report}");
}
