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
