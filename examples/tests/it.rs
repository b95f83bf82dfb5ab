//! The programs, from outside.

use assert_cmd::Command;

#[test]
fn every_program_ends_well() {
    let programs = [
        ("own_source", env!("CARGO_BIN_EXE_own_source"), "were tried again"),
        ("own_policy", env!("CARGO_BIN_EXE_own_policy"), "keep their contracts"),
        ("other_format", env!("CARGO_BIN_EXE_other_format"), "s3://indexes/keys.fst"),
        ("shards", env!("CARGO_BIN_EXE_shards"), "of 2016: 3 of 6 events, 1 users"),
    ];
    for (name, program, says) in programs {
        let output = Command::new(program).assert().success();
        let text = String::from_utf8_lossy(&output.get_output().stdout).into_owned();
        assert!(text.contains(says), "{name}: {text}");
    }
}

/// The demo on a small database, with a near S3 and small units so that it is quick.
fn demo(folder: &std::path::Path) -> Command {
    let mut demo = demo_of_tables(folder);
    demo.arg("--json");
    demo
}

fn demo_of_tables(folder: &std::path::Path) -> Command {
    let mut demo = Command::new(env!("CARGO_BIN_EXE_demo"));
    demo.env("EXTMEM_DATA", folder).args(["--megabytes", "60", "--unit-kib", "4"]);
    demo.args(["--count", "2", "--first-byte-ms", "2", "--rate", "0"]);
    // Neither has a say in what the demo compares: it asks the bucket.
    demo.env("EXTMEM_CACHE", "/dev/null/cache").env("EXTMEM_SERVER", "unix:///nobody/listens");
    demo
}

/// What the demo calls its own way here. In CI there are page faults.
fn faults_here() -> String {
    match pager::Pager::probe().mode {
        pager::Mode::CheckedOnly => {
            assert!(std::env::var_os("CI").is_none(), "no page faults, and CI is set");
            println!("left out: the demo's page faults: {}", pager::Pager::probe());
            "page faults (loads, no faults here)".to_owned()
        }
        mode => format!("page faults ({mode})"),
    }
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
    assert_eq!(ways[0]["way"], faults_here(), "{report}");

    // Again: the database is there, and the answer is the same.
    let again = demo(folder.path()).arg("--no-download").assert().success();
    let log = String::from_utf8_lossy(&again.get_output().stderr).into_owned();
    assert!(log.contains("Using the database"), "{log}");
    let same: serde_json::Value = serde_json::from_slice(&again.get_output().stdout).unwrap();
    assert_eq!((&same["users"], &same["events"]), (&report["users"], &report["events"]));

    // For people: a row for each way, with its time, its requests and its bytes.
    let output = demo_of_tables(folder.path()).assert().success();
    let text = String::from_utf8_lossy(&output.get_output().stdout).into_owned();
    // Cells are apart by two spaces and more.
    let rows: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
        .collect();
    let heads = ["time", "GETs", "bytes", "% of file", "$ in region", "$ over internet"];
    assert!(rows.iter().any(|row| row[..] == heads), "{text}");
    let all = examples::table::megabytes(len.as_u64().unwrap());
    for (at, way) in ways.iter().enumerate() {
        let named = |row: &&Vec<&str>| row.first().is_some_and(|cell| way["way"] == *cell);
        let row = rows.iter().find(named).unwrap_or_else(|| panic!("{way}: {text}"));
        assert_eq!(row.len(), 1 + heads.len(), "{text}");
        assert!(
            row[1].ends_with('s') && row[1].starts_with(|c: char| c.is_ascii_digit()),
            "{text}"
        );
        assert!(row[2].parse::<u64>().unwrap() > 0, "{text}");
        assert!(row[3].ends_with(" MB") && (row[3] == all) == (at > 0), "{text}");
    }
    assert!(text.contains("times as fast as a download"), "{text}");
}

/// What `make demo` is without options, and how far away its S3 is.
#[test]
fn the_demo_is_a_quarter_of_a_gigabyte_and_ten_users() {
    let output = Command::new(env!("CARGO_BIN_EXE_demo")).arg("-h").assert().success();
    let help = String::from_utf8_lossy(&output.get_output().stdout).into_owned();
    for (option, expected) in [
        ("--megabytes", "256"),
        ("--count", "10"),
        ("--first-byte-ms", "30"),
        ("--rate", "90000000"),
    ] {
        let told = help.split_once(&format!("{option} <")).map(|(_, after)| after);
        let told = told.and_then(|text| text.split_once("[default: ")?.1.split_once(']'));
        assert_eq!(told.map(|(told, _)| told), Some(expected), "{option}: {help}");
    }
    let shape = endpoint::line::Shape::default();
    assert_eq!(shape.first_byte, std::time::Duration::from_millis(30));
    assert_eq!(shape.rate, Some(90_000_000));
}

/// `make setup` on machines that are made of stubs: what it installs, as whom, and what it says where it
/// cannot.
#[test]
fn setup_installs_what_is_missing_once_or_says_what_to_do() {
    use std::os::unix::fs::PermissionsExt;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/setup.sh");
    let id = |n: u32| ("id", format!("echo {n}"));
    let apt = || {
        let body = "echo \"apt-get $*\" >> \"$STUBS.log\"\n\
                    [ \"$1\" = update ] || { printf '#!/bin/sh\\n' > \"$STUBS/cc\"; chmod 755 \"$STUBS/cc\"; }";
        ("apt-get", body.to_owned())
    };
    let stub = |name: &'static str| (name, String::new());
    let sudo = |may: bool| {
        let body = if may { "[ \"$1\" = -n ] || exec \"$@\"" } else { "exit 1" };
        ("sudo", format!("echo \"sudo $1\" >> \"$STUBS.log\"; {body}"))
    };
    let broken = || ("apt-get", "exit 100".to_owned());
    let by_hand = "sudo apt-get install gcc libc6-dev";
    // The commands that there are; the exit code; what it says; what it did.
    type Case = (&'static str, Vec<(&'static str, String)>, i32, Vec<&'static str>, &'static str);
    let installed =
        "apt-get update -qq\napt-get install -y -qq --no-install-recommends gcc libc6-dev\n";
    let by_sudo = "sudo -n\nsudo apt-get\napt-get update -qq\nsudo env\n\
                   apt-get install -y -qq --no-install-recommends gcc libc6-dev\n";
    let cases: Vec<Case> = vec![
        ("all is there", vec![stub("cargo"), stub("cc"), apt(), id(0)], 0, vec![], ""),
        ("no Rust", vec![stub("cc"), apt(), id(0)], 1, vec!["cargo is missing", "rustup.rs"], ""),
        ("root", vec![stub("cargo"), apt(), id(0)], 0, vec!["installing gcc libc6-dev"], installed),
        (
            "a user with sudo",
            vec![stub("cargo"), apt(), id(1000), sudo(true)],
            0,
            vec!["installing gcc libc6-dev"],
            by_sudo,
        ),
        (
            "a user whose sudo asks",
            vec![stub("cargo"), apt(), id(1000), sudo(false)],
            1,
            vec!["neither root nor sudo", by_hand],
            "sudo -n\n",
        ),
        (
            "a user",
            vec![stub("cargo"), apt(), id(1000)],
            1,
            vec!["neither root nor sudo", by_hand, "sudo dnf install", "LIBCLANG_PATH"],
            "",
        ),
        (
            "no apt-get",
            vec![stub("cargo"), id(0)],
            1,
            vec!["there is no apt-get", by_hand, "sudo dnf install"],
            "",
        ),
        (
            "no network",
            vec![stub("cargo"), broken(), id(0)],
            1,
            vec!["apt-get failed", by_hand],
            "",
        ),
    ];
    for (what, commands, code, says, does) in cases {
        let folder = tempfile::tempdir().unwrap();
        let stubs = folder.path().join("stubs");
        std::fs::create_dir(&stubs).unwrap();
        let put = |name: &str, body: &str| {
            let path = stubs.join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        };
        commands.iter().for_each(|(name, body)| put(name, body));
        put("env", "exec /usr/bin/env \"$@\"");
        put("chmod", "exec /bin/chmod \"$@\"");
        let log = folder.path().join("stubs.log");
        let run = || {
            let mut setup = Command::new("/bin/sh");
            setup.arg(script).env_clear().env("PATH", &stubs).env("STUBS", &stubs);
            // The header and libclang are looked for at their places, and the tests were built with them.
            let output = setup.env("LIBCLANG_PATH", "/its/folder").output().unwrap();
            let text = [&output.stdout[..], &output.stderr].concat();
            (output.status.code(), String::from_utf8_lossy(&text).into_owned())
        };
        let (ended, text) = run();
        assert_eq!(ended, Some(code), "{what}: {text}");
        for part in &says {
            assert!(text.contains(part), "{what}: {part:?} is missing: {text}");
        }
        let did = || std::fs::read_to_string(&log).unwrap_or_default();
        assert_eq!(did(), does, "{what}: {text}");
        if code == 0 {
            // Again: nothing is missing any more, so nothing is done and nothing said.
            assert_eq!(run(), (Some(0), String::new()), "{what}");
            assert_eq!(did(), does, "{what}, again");
        }
    }
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
