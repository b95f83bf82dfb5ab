//! Collections whose transactions are isolated from each other.

use crate::{folder, run, s3db, scan};

#[test]
fn isolated_collections_come_and_go() {
    for isolation in ["snapshot", "serializable"] {
        let (_folder, url) = folder();
        run(&["init", &url, "plain"]);
        run(&["init", &url, "accounts", "--isolation", isolation]);
        // What it was created for it stays.
        run(&["init", &url, "accounts", "--isolation", isolation]);
        s3db().args(["init", &url, "accounts"]).assert().code(1);
        run(&["put", &url, "accounts", "ada", "100"]);
        run(&["put", &url, "accounts", "ada", "90", "--update"]);
        s3db().args(["put", &url, "accounts", "ada", "1", "--create"]).assert().code(1);
        run(&["put", &url, "accounts", "alan", "7", "--create"]);
        assert_eq!(run(&["get", &url, "accounts", "ada"]), "90");
        s3db().args(["get", &url, "accounts", "grace"]).assert().code(3);
        run(&["del", &url, "accounts", "alan"]);
        assert_eq!(scan(&url, "accounts").len(), 1);
        let script = "get accounts ada\nput accounts ada 80\nput accounts bob 20\n";
        let args = ["txn", &url, "--level", "serializable"];
        let out = s3db().args(args).write_stdin(script).assert().success();
        let out = String::from_utf8(out.get_output().stdout.clone()).unwrap();
        assert_eq!(out, "ada\t90\ncommitted 2 records\n");
        run(&["sweep", &url]);
        assert_eq!(run(&["get", &url, "accounts", "bob"]), "20");
        run(&["gc", &url]);
        let verified = run(&["verify", &url]);
        assert!(verified.ends_with("no problems\n"), "{verified}");
        // Other levels are refused, and say so.
        let refused = [
            (vec!["txn", &url], "put accounts ada 1\n".to_owned()),
            (vec!["txn", &url, "--level", "snapshot"], "put plain ada 1\n".to_owned()),
        ];
        for (args, input) in refused {
            let failed = s3db().args(&args).write_stdin(input).assert().code(1);
            let error = String::from_utf8_lossy(&failed.get_output().stderr).into_owned();
            assert!(error.contains("created for"), "{args:?}: {error}");
        }
        assert_eq!(run(&["get", &url, "accounts", "ada"]), "80");
    }
}

/// The whole life of an index of such a collection.
#[test]
fn isolated_collections_have_indexes() {
    for isolation in ["snapshot", "serializable"] {
        let (_folder, url) = folder();
        run(&["init", &url, "users", "--isolation", isolation]);
        let txn = |script: &str| {
            let args = ["txn", &url, "--level", "serializable"];
            s3db().args(args).write_stdin(script.to_owned()).assert().success();
        };
        txn(
            "put users ada {\"born\": 1815}\nput users alan {\"born\": 1912}\nput users nobody no JSON\n",
        );
        let made = run(&["index", "create", &url, "users", "born", "json:born"]);
        assert_eq!(made, "2 records, 2 entries added, 0 removed\n");
        assert_eq!(run(&["index", "list", &url, "users"]), "born\tjson:born\tready\n");
        let keys = |args: &[&str]| -> Vec<String> {
            let mut all = vec!["index", "find", &url, "users", "born", "--json"];
            all.extend(args);
            run(&all)
                .lines()
                .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
                .map(|line| format!("{} {}", line["search"], line["key"]).replace('"', ""))
                .collect()
        };
        assert_eq!(keys(&[]), ["1815 ada", "1912 alan"]);
        txn("put users konrad {\"born\": 1910}\nput users grace {\"born\": 1912}\n");
        txn("put users ada {\"born\": 1816}\ndel users alan\n");
        run(&["put", &url, "users", "grace", "{\"born\": 1906}"]);
        assert_eq!(keys(&[]), ["1816 ada", "1906 grace", "1910 konrad"]);
        assert_eq!(keys(&["1906"]), ["1906 grace"]);
        assert_eq!(keys(&["1912"]), [""; 0]);
        assert_eq!(keys(&["--from", "1900", "--to", "1910"]), ["1906 grace"]);
        run(&["sweep", &url]);
        let checked = run(&["index", "check", &url, "users", "born", "--json"]);
        let checked: serde_json::Value = serde_json::from_str(&checked).unwrap();
        let count = |what: &str| checked[what].as_u64();
        let counts = ["records", "entries", "missing", "changing", "dangling"].map(count);
        assert_eq!(counts, [3, 3, 0, 0, 0].map(Some), "{checked}");
        let again = run(&["index", "build", &url, "users", "born"]);
        assert_eq!(again, "3 records, 0 entries added, 0 removed\n");
        run(&["gc", &url, "--grace", "0"]);
        assert!(run(&["verify", &url]).ends_with("no problems\n"));
        assert_eq!(keys(&[]).len(), 3);
        run(&["index", "drop", &url, "users", "born"]);
        assert_eq!(run(&["index", "list", &url, "users"]), "");
        s3db().args(["index", "find", &url, "users", "born"]).assert().code(1);
        run(&["put", &url, "users", "grace", "{\"born\": 1907}"]);
        run(&["gc", &url, "--grace", "0"]);
        assert!(run(&["verify", &url]).ends_with("no problems\n"));
    }
}

/// Payloads too large for a page, and for memory: from a file, from standard input, and back; what was there before
/// them goes when no snapshot can see it.
#[test]
fn isolated_collections_have_large_payloads() {
    let (folder, url) = folder();
    run(&["init", &url, "films", "--isolation", "serializable"]);
    let film: Vec<u8> = (0..9_000_000u32).map(|n| (n.wrapping_mul(n) >> 7) as u8).collect();
    let path = folder.path().join("film");
    std::fs::write(&path, &film).unwrap();
    let path = path.to_str().unwrap();
    run(&["put", &url, "films", "ada", "--file", path, "--create"]);
    s3db().args(["put", &url, "films", "bob"]).write_stdin(vec![7; 40_000]).assert().success();
    let get = |name: &str| {
        let done = s3db().args(["get", &url, "films", name]).assert().success();
        done.get_output().stdout.clone()
    };
    assert!(get("ada") == film);
    run(&["sweep", &url]);
    assert!(get("ada") == film && get("bob") == vec![7; 40_000]);
    let script = format!("get films bob\nput films bob {}\n", "x".repeat(50_000));
    let txn = ["txn", &url, "--level", "serializable"];
    s3db().args(txn).write_stdin(script).assert().success();
    assert!(get("bob") == vec![b'x'; 50_000]);
    run(&["sweep", &url]);
    let found: serde_json::Value = serde_json::from_str(&run(&["verify", &url, "--json"])).unwrap();
    assert_eq!(found["problem_count"].as_u64().unwrap_or(0), 0, "{found}");
    assert_eq!(found["blobs"], 3, "one of a version that snapshots can see: {found}");
    assert_eq!(found["blob_bytes"], 9_000_000 + 40_000 + 50_000, "{found}");
    // Nothing of it is old enough to go.
    assert!(run(&["gc", &url]).contains(" 0 blobs deleted, 0 wait"));
    let blob = std::fs::read_dir(folder.path().join("db/objects/blob")).unwrap().count();
    assert!(blob > 0);
    std::fs::remove_dir_all(folder.path().join("db/objects/blob")).unwrap();
    let lost = s3db().args(["get", &url, "films", "ada"]).assert().code(1);
    let error = String::from_utf8_lossy(&lost.get_output().stderr).into_owned();
    assert!(error.contains("blob/") && error.contains("is not there"), "{error}");
    s3db().args(["verify", &url]).assert().code(4);
}

/// Two scripts read the same record before either writes it: one is told to run again, by its exit code.
#[test]
fn who_is_aborted_is_told_by_the_exit_code() {
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Command, Stdio};

    let (_folder, url) = folder();
    run(&["init", &url, "accounts", "--isolation", "snapshot"]);
    run(&["put", &url, "accounts", "ada", "100"]);
    let mut scripts: Vec<_> = (0..2)
        .map(|_| {
            Command::new(env!("CARGO_BIN_EXE_s3db"))
                .args(["txn", &url, "--level", "snapshot"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let mut inputs = Vec::new();
    for script in &mut scripts {
        let (mut input, output) = (script.stdin.take().unwrap(), script.stdout.take().unwrap());
        writeln!(input, "get accounts ada").unwrap();
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).unwrap();
        assert_eq!(line, "ada\t100\n");
        inputs.push(input);
    }
    for (script, mut input) in scripts.iter_mut().zip(inputs) {
        writeln!(input, "put accounts ada 90").unwrap();
        drop(input);
        // Its output was closed by this test: what it says there counts for nothing.
        script.wait().unwrap();
    }
    let codes: Vec<_> = scripts.iter_mut().map(|it| it.wait().unwrap().code().unwrap()).collect();
    assert_eq!(codes[1], 5, "{codes:?}");
    assert_eq!(run(&["get", &url, "accounts", "ada"]), "90");
}

/// The sequencer is deleted by hand: whoever looks after the database is told.
#[test]
fn a_lost_sequencer_is_told() {
    let (folder, url) = folder();
    run(&["init", &url, "accounts", "--isolation", "snapshot"]);
    run(&["init", &url, "plain"]);
    run(&["put", &url, "accounts", "ada", "100"]);
    let text = run(&["verify", &url]);
    assert!(text.contains("sequencer: 1 commits"), "{text}");
    let found: serde_json::Value = serde_json::from_str(&run(&["verify", &url, "--json"])).unwrap();
    assert_eq!(found["sequencer"]["last"], 1, "{found}");
    std::fs::remove_file(folder.path().join("db/objects/sequencer/numbers@")).unwrap();
    let told = |args: &[&str], code| {
        let outcome = s3db().args(args).assert().code(code);
        let output = outcome.get_output();
        let both = [&output.stdout[..], &output.stderr[..]].concat();
        let text = String::from_utf8(both).unwrap();
        assert!(text.contains("sequencer/numbers is not there"), "{args:?}: {text}");
    };
    told(&["sweep", &url], 1);
    told(&["verify", &url], 4);
    told(&["verify", &url, "--json"], 4);
    told(&["watch", &url, "--count", "1"], 0);
    told(&["watch", &url, "--count", "1", "--json"], 0);
    told(&["init", &url, "more", "--isolation", "snapshot"], 1);
    run(&["put", &url, "plain", "ada", "1"]);
}
