//! Databases in directories.

use crate::{folder, run, s3db, scan};

/// Commands of the README, as they stand there, in a folder of their own.
fn run_lines(block: usize, url: &str) -> (usize, String) {
    let readme = include_str!("../../../README.md");
    let block = readme.split("```sh\n").nth(block).unwrap().split("```").next().unwrap();
    let script = format!("set -e\n{}", block.replace("file:///tmp/db", url));
    let folder = std::path::Path::new(env!("CARGO_BIN_EXE_s3db")).parent().unwrap();
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default());
    let mut shell = assert_cmd::Command::new("sh");
    let done = shell.args(["-c", &script]).env("PATH", path).assert().success();
    (block.lines().count(), String::from_utf8(done.get_output().stdout.clone()).unwrap())
}

#[test]
fn the_five_lines_of_the_readme() {
    let (_folder, url) = folder();
    let (lines, printed) = run_lines(1, &url);
    assert_eq!(lines, 5);
    let ada = "{\"born\": 1815}";
    assert!(printed.contains(ada) && printed.ends_with("no problems\n"), "{printed}");
    assert!(printed.contains("\"key\":\"ada\""), "{printed}");
    let (_, found) = run_lines(2, &url);
    assert!(found.contains("1815\tada\t"), "{found}");
}

#[test]
fn records_come_and_go() {
    for backend in ["s3-log", "sqs-standard", "sqs-fifo"] {
        let (_folder, url) = folder();
        run(&["init", &url, "--backend", backend, "--shards", "2", "things", "others"]);
        let payload: Vec<u8> = (0..=255).collect();
        let put = ["put", &url, "things", "bytes"];
        s3db().args(put).write_stdin(payload.clone()).assert().success();
        let got = s3db().args(["get", &url, "things", "bytes"]).assert().success();
        assert_eq!(got.get_output().stdout, payload, "{backend}: any byte comes back");
        run(&["put", &url, "things", "a", "1", "--create"]);
        run(&["put", &url, "things", "a", "2", "--update"]);
        s3db().args(["put", &url, "things", "a", "3", "--create"]).assert().code(1);
        s3db().args(["put", &url, "things", "b", "3", "--update"]).assert().code(1);
        assert_eq!(run(&["get", &url, "things", "a"]), "2");
        s3db().args(["get", &url, "others", "a"]).assert().code(3).stdout("");
        run(&["del", &url, "things", "a"]);
        s3db().args(["get", &url, "things", "a"]).assert().code(3);
        assert_eq!(scan(&url, "things").len(), 1);
        run(&["sweep", &url]);
        let verified = run(&["verify", &url]);
        assert!(verified.ends_with("no problems\n"), "{backend}: {verified}");
    }
}

/// A key with a quote, a backslash or any byte beyond ASCII was printed, and not found when it was given back: a
/// `del` of it said that it was done.
#[test]
fn what_is_printed_of_a_key_is_taken_back() {
    let (_folder, url) = folder();
    run(&["init", &url, "things"]);
    let all: Vec<u8> = (0..=255).collect();
    let keys = [&all[..], b"plain", "\u{e9}\"q\\'".as_bytes()];
    let script: String = keys.iter().map(|key| format!("put things {} v\n", hex(key))).collect();
    s3db().args(["txn", &url]).write_stdin(script).assert().success();
    let printed = run(&["scan", &url, "things", "--only-keys"]);
    assert_eq!(printed.lines().count(), 3, "{printed}");
    let lines = run(&["scan", &url, "things", "--only-keys", "--json"]);
    let told = lines.lines().map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["key"].as_str().unwrap().to_owned()
    });
    assert!(told.eq(printed.lines()), "{lines}");
    for key in printed.lines() {
        assert_eq!(run(&["get", &url, "things", key]), "v", "{key}");
        run(&["put", &url, "things", key, "w", "--update"]);
        let only = run(&["scan", &url, "things", "--prefix", key, "--limit", "1"]);
        assert_eq!(only, format!("{key}\tw\n"));
        run(&["del", &url, "things", key]);
        s3db().args(["get", &url, "things", key]).assert().code(3);
    }
    assert_eq!(run(&["scan", &url, "things"]), "");
    let wrong = s3db().args(["get", &url, "things", "a\\q"]).assert().code(1);
    let told = String::from_utf8_lossy(&wrong.get_output().stderr).into_owned();
    assert!(told.contains("what is not known"), "{told}");
}

/// Each byte as a script may write it.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect()
}

/// A database of somebody else's, or on a disk that is mounted to be read, could not be read: each reader opened its
/// lock to write.
#[test]
fn who_may_write_nothing_reads() {
    use std::{
        fs::{self, Permissions},
        os::unix::fs::{MetadataExt as _, PermissionsExt as _},
        path::Path,
    };

    fn allow(path: &Path, file: u32, directory: u32) {
        let is_directory = path.is_dir();
        let mode = if is_directory { directory } else { file };
        // Not before what lies in it can be reached, nor after it cannot.
        if is_directory && directory & 0o200 != 0 {
            fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        }
        for entry in path.read_dir().into_iter().flatten() {
            allow(&entry.unwrap().path(), file, directory);
        }
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    let (folder, url) = folder();
    run(&["init", &url, "things"]);
    run(&["put", &url, "things", "a", "1"]);
    run(&["index", "create", &url, "things", "text", "payload"]);
    let there = folder.path().join("db");
    allow(&there, 0o444, 0o555);
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    // To root nothing is forbidden: somebody else then, with a copy of the program that he can reach.
    let is_root = fs::metadata(folder.path()).unwrap().uid() == 0;
    let program = folder.path().join("s3db");
    if is_root {
        fs::copy(env!("CARGO_BIN_EXE_s3db"), &program).unwrap();
        fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    }
    let read = |args: &[&str]| {
        let mut command = match is_root {
            true => {
                let mut command = assert_cmd::Command::new("setpriv");
                command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
                command.arg(&program);
                command
            }
            false => s3db(),
        };
        let done = command.current_dir("/").args(args).assert().success();
        String::from_utf8(done.get_output().stdout.clone()).unwrap()
    };
    assert_eq!(read(&["get", &url, "things", "a"]), "1");
    assert_eq!(read(&["get", &url, "things", "a", "--fresh"]), "1");
    assert_eq!(read(&["scan", &url, "things"]), "a\t1\n");
    assert_eq!(read(&["index", "find", &url, "things", "text"]), "1\ta\t1\n");
    assert!(read(&["verify", &url]).ends_with("no problems\n"));
    read(&["watch", &url, "--count", "1"]);
    allow(&there, 0o644, 0o755);
}

/// What another process has committed and not brought to its pages.
#[test]
fn fresh_reads() {
    for backend in ["s3-log", "sqs-standard", "sqs-fifo"] {
        let (_folder, url) = folder();
        run(&["init", &url, "things", "--backend", backend, "--shards", "2"]);
        run(&["put", &url, "things", "a", "1"]);
        run(&["index", "create", &url, "things", "text", "payload"]);
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let options = s3db::Options { has_worker: false, ..s3db::Options::default() };
            let db = s3db::Db::open_with(&url, &options).await.unwrap();
            let of = db.collection("things").await.unwrap();
            let mut txn = db.begin();
            let (key, payload) = (s3db::Key::new("b").unwrap(), s3db::Payload::new("2").unwrap());
            txn.put(&of, &key, payload).unwrap();
            txn.commit().await.unwrap();
        });
        s3db().args(["get", &url, "things", "b"]).assert().code(3);
        assert_eq!(run(&["scan", &url, "things"]), "a\t1\n");
        assert_eq!(run(&["index", "find", &url, "things", "text"]), "1\ta\t1\n");
        let got = s3db().args(["get", &url, "things", "b", "--fresh", "--bill"]).assert().success();
        assert_eq!(got.get_output().stdout, b"2", "{backend}");
        let bill = String::from_utf8_lossy(&got.get_output().stderr).into_owned();
        let kind = if backend == "s3-log" { "look-list " } else { "look-receive " };
        assert!(bill.lines().any(|line| line.starts_with(kind)), "{backend}: {bill}");
        assert_eq!(run(&["scan", &url, "things", "--fresh"]), "a\t1\nb\t2\n", "{backend}");
        let found = run(&["index", "find", &url, "things", "text", "--fresh"]);
        assert_eq!(found, "1\ta\t1\n2\tb\t2\n", "{backend}");
    }
}

/// What is written waits until somebody approves it.
/// A collection names the clients that write to it, and all others are told that they are none of them.
#[test]
fn collections_that_name_their_writers() {
    let (_folder, url) = folder();
    run(&["init", &url, "own", "--writers", "7,feed"]);
    run(&["init", &url, "open"]);
    let put = |more: &[&str]| {
        let args = [&["put", &url, "own", "k", "v"][..], more].concat();
        s3db().args(args).assert()
    };
    for more in [&[][..], &["--client", "8"]] {
        let told = put(more).code(1);
        let error = String::from_utf8_lossy(&told.get_output().stderr).into_owned();
        assert!(error.contains("is none of them"), "{error}");
    }
    s3db().args(["get", &url, "own", "k", "--fresh"]).assert().code(3);
    put(&["--client", "7"]).success();
    s3db().args(["put", &url, "own", "k", "w"]).env("S3DB_CLIENT", "feed").assert().success();
    assert_eq!(run(&["get", &url, "own", "k"]), "w");
    run(&["put", &url, "open", "k", "v"]);
    // The list stays as it is.
    run(&["init", &url, "own", "--writers", "feed,7"]);
    s3db().args(["init", &url, "own", "--writers", "7"]).assert().code(1);
    s3db().args(["init", &url, "open", "--writers", "7"]).assert().code(1);
    for wrong in [&["--writers", "7"][..], &["a", "--writers", "me"], &["a", "--client", "-1"]] {
        s3db().args([&["init", &url][..], wrong].concat()).assert().code(2);
    }
    let (_folder, other) = folder();
    run(&["init", &other, "open"]);
    s3db().args(["init", &other, "own", "--writers", "7"]).assert().code(1);
    let verified = run(&["verify", &url]);
    assert!(verified.ends_with("no problems\n"), "{verified}");
}

#[test]
fn curated_collections() {
    let (_folder, url) = folder();
    run(&["init", &url, "prices", "--curated"]);
    run(&["init", &url, "open"]);
    s3db().args(["init", &url, "open", "--curated"]).assert().code(1);
    s3db().args(["init", &url, "--curated"]).assert().code(2);
    let proposed = |args: &[&str]| {
        let said: serde_json::Value = serde_json::from_str(&run(args)).unwrap();
        said["proposed"].as_str().unwrap().to_owned()
    };
    let first = proposed(&["put", &url, "prices", "bread", "1", "--json"]);
    let second = proposed(&["put", &url, "prices", "milk", "2", "--json"]);
    run(&["sweep", &url]);
    s3db().args(["get", &url, "prices", "bread", "--fresh"]).assert().code(3);
    let listed = run(&["pending", "list", &url, "prices"]);
    assert_eq!(listed.lines().count(), 2, "{listed}");
    assert!(listed.contains(&first) && listed.contains("\t1 changes\t"), "{listed}");
    assert!(run(&["pending", "list", &url, "prices", "--names", "--limit", "1"]).len() == 65);
    let shown = run(&["pending", "show", &url, "prices", &first]);
    assert!(shown.starts_with("put\tbread\t1\tnow: -\t"), "{shown}");
    let approved = run(&["pending", "approve", &url, "prices", &first]);
    assert_eq!(approved, "approved: 1 of 1 records changed\n");
    assert_eq!(run(&["get", &url, "prices", "bread"]), "1");
    assert_eq!(run(&["pending", "reject", &url, "prices", &second]), "rejected\n");
    for decided in [&first, &second] {
        for what in ["show", "approve", "reject"] {
            s3db().args(["pending", what, &url, "prices", decided]).assert().code(3);
        }
    }
    assert_eq!(run(&["pending", "list", &url, "prices"]), "");
    s3db().args(["pending", "approve", &url, "prices", "5b1c"]).assert().code(2);
    s3db().args(["pending", "list", &url, "open"]).assert().code(1);
    let txn = |script: &str| s3db().args(["txn", &url]).write_stdin(script.to_owned()).assert();
    txn("del prices bread\n").success();
    let told = txn("put prices a 1\nput open a 1\n").code(1);
    let error = String::from_utf8_lossy(&told.get_output().stderr).into_owned();
    assert!(error.contains("changes nothing else"), "{error}");
    let verified = run(&["verify", &url]);
    assert!(verified.ends_with("no problems\n"), "{verified}");
}

/// Policies are for buckets; without one, or with a right that is none, that is told.
#[test]
fn policies_are_for_buckets() {
    let (_folder, url) = folder();
    run(&["init", &url, "users"]);
    let policy = |args: &[&str]| s3db().arg("policy").args(args).assert();
    let told = policy(&[&url, "--collection", "users", "--right", "read"]).code(1);
    let error = String::from_utf8_lossy(&told.get_output().stderr).into_owned();
    assert!(error.contains("in a bucket"), "{error}");
    let told = policy(&[&url, "--collection", "users", "--right", "own"]).code(2);
    let error = String::from_utf8_lossy(&told.get_output().stderr).into_owned();
    assert!(error.contains("read, write, propose, curate, keep"), "{error}");
    policy(&[&url, "--right", "read"]).code(2);
}

/// Larger than a page, and than a part of a blob.
#[test]
fn files_come_and_go() {
    let (folder, url) = folder();
    run(&["init", &url, "films"]);
    let mut word = 1u64;
    let next = || {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (word >> 33) as u8
    };
    let bytes: Vec<u8> = std::iter::repeat_with(next).take((9 << 20) + 7).collect();
    let file = folder.path().join("film");
    std::fs::write(&file, &bytes).unwrap();
    let path = file.to_str().unwrap();
    let put = s3db().args(["put", &url, "films", "a", "--file", path, "--bill"]).assert().success();
    let bill = String::from_utf8_lossy(&put.get_output().stderr).into_owned();
    assert!(bill.lines().any(|line| line.starts_with("put-blob               2")), "{bill}");
    let short = &bytes[..100_000];
    s3db().args(["put", &url, "films", "b"]).write_stdin(short).assert().success();
    for (key, expected) in [("a", &bytes[..]), ("b", short)] {
        let got = s3db().args(["get", &url, "films", key]).assert().success();
        assert!(got.get_output().stdout == expected, "{key}: any byte comes back");
    }
    assert_eq!(run(&["scan", &url, "films", "--only-keys"]), "a\nb\n");
    assert_eq!(scan(&url, "films")["b"], short.escape_ascii().to_string());
    let json: serde_json::Value =
        serde_json::from_str(&run(&["get", &url, "films", "b", "--json"])).unwrap();
    assert_eq!(json["payload"], short.escape_ascii().to_string());
    let put = ["put", &url, "films", "a", "--file", path];
    s3db().args(put).arg("--create").assert().code(1);
    s3db().args(["put", &url, "films", "c", "--file", path, "--update"]).assert().code(1);
    let missing = s3db().args(["put", &url, "films", "c", "--file", "/no/such"]).assert().code(1);
    let error = String::from_utf8_lossy(&missing.get_output().stderr).into_owned();
    assert!(error.contains("/no/such"), "{error}");
    run(&["del", &url, "films", "b"]);
    let verified = run(&["verify", &url]);
    assert!(
        verified.contains("\n1 blobs of 9437191 bytes, 1 that no record names\n"),
        "{verified}"
    );
    assert!(run(&["gc", &url]).ends_with("0 blobs deleted, 1 wait\n"));
}

/// What is larger than memory should hold is given out part by part, and not as JSON, which is made in memory.
/// Whether it is there needs none of it.
#[test]
fn what_is_too_large_for_json_is_told() {
    let (folder, url) = folder();
    run(&["init", &url, "films"]);
    let file = folder.path().join("film");
    let len = (32 << 20) + 1;
    std::fs::File::create(&file).unwrap().set_len(len).unwrap();
    let put = ["put", &url, "films", "a", "--file", file.to_str().unwrap()];
    s3db().args(put).assert().success();
    for args in [&["get", &url, "films", "a", "--json"][..], &["scan", &url, "films", "--json"]] {
        let told = s3db().args(args).assert().code(1);
        let error = String::from_utf8_lossy(&told.get_output().stderr).into_owned();
        assert!(error.contains("record a") && error.contains("without --json"), "{error}");
    }
    let got = s3db().args(["get", &url, "films", "a"]).assert().success();
    assert_eq!(got.get_output().stdout.len() as u64, len);
    let blobs = folder.path().join("db").join("objects").join("blob");
    assert!(blobs.is_dir());
    std::fs::remove_dir_all(&blobs).unwrap();
    s3db().args(["put", &url, "films", "a", "x", "--create"]).assert().code(1);
    s3db().args(["put", &url, "films", "a", "x", "--update"]).assert().success();
    assert_eq!(run(&["get", &url, "films", "a"]), "x");
}

#[test]
fn a_script_is_a_transaction() {
    let (_folder, url) = folder();
    run(&["init", &url, "t"]);
    let txn = |script: &str| s3db().args(["txn", &url]).write_stdin(script.to_owned()).assert();
    txn("# two\nput t a one word\nput t b\\x00 2\n\nget t a\n")
        .success()
        .stdout("a\tone word\ncommitted 2 records\n");
    assert_eq!(scan(&url, "t")["b\\x00"], "2");
    txn("put t c 3\nabort\nput t d 4\ncommit\nput t e 5\n")
        .success()
        .stdout("committed 1 records\ncommitted 1 records\n");
    assert_eq!(scan(&url, "t").keys().collect::<Vec<_>>(), ["a", "b\\x00", "d", "e"]);
    // A payload is what stands there, blanks and all; and of two words behind `del` neither is deleted.
    txn("put t blanks  in  and behind \r\nput t empty \n").success();
    assert_eq!(run(&["get", &url, "t", "blanks"]), " in  and behind ");
    assert_eq!(run(&["get", &url, "t", "empty"]), "");
    txn("del t blanks too\n").code(1);
    assert_eq!(run(&["get", &url, "t", "blanks"]), " in  and behind ");
    // The line that fails is named, and nothing of its transaction is there.
    let failed = txn("put t f 6\ncommit\nput t g 7\nfly t h\n").code(1);
    let error = String::from_utf8_lossy(&failed.get_output().stderr).into_owned();
    assert!(error.contains("line 4: fly: no such operation"), "{error}");
    assert!(scan(&url, "t").contains_key("f") && !scan(&url, "t").contains_key("g"));
    for (script, why) in [
        ("put t", "a collection and a key"),
        ("put t k", "a payload"),
        ("get t a b", "nothing may follow the key"),
        ("fly none k", "no such operation"),
        ("put none k v", "init"),
        ("put t \\xq v", "not known"),
        ("put t \\xqq v", "two digits"),
        ("create t a 1", "exists already"),
        ("update t none 1", "no record"),
    ] {
        let failed = txn(script).code(1);
        let error = String::from_utf8_lossy(&failed.get_output().stderr).into_owned();
        assert!(error.contains("line 1") && error.contains(why), "{script}: {error}");
    }
}

/// Neither memory nor the screen is filled by what is no script.
#[test]
fn a_line_of_a_script_has_a_limit() {
    let (_folder, url) = folder();
    run(&["init", &url, "t"]);
    for (script, why) in [("x".repeat(200 << 20), "longer than"), ("x\x1b".repeat(5000), "no such")]
    {
        let failed = s3db().args(["txn", &url]).write_stdin(script).assert().code(1);
        let error = String::from_utf8_lossy(&failed.get_output().stderr).into_owned();
        assert!(error.contains("line 1") && error.contains(why), "{error}");
        assert!(error.len() < 1000 && !error.contains('\x1b'), "{} bytes", error.len());
    }
}

#[test]
fn scans_have_bounds() {
    let (_folder, url) = folder();
    run(&["init", &url, "t"]);
    let script: String = (0..50).map(|n| format!("put t k{n:02} {n}\n")).collect();
    s3db().args(["txn", &url]).write_stdin(script).assert().success();
    let keys = |args: &[&str]| {
        let mut all = vec!["scan", &url, "t", "--only-keys"];
        all.extend(args);
        run(&all).lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(keys(&[]).len(), 50);
    assert_eq!(keys(&["--prefix", "k1"]).len(), 10);
    assert_eq!(keys(&["--from", "k48"]), ["k48", "k49"]);
    assert_eq!(keys(&["--to", "k02"]), ["k00", "k01"]);
    assert_eq!(keys(&["--from", "k10", "--limit", "2"]), ["k10", "k11"]);
    let json = run(&["scan", &url, "t", "--json", "--limit", "1"]);
    let record: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(record, serde_json::json!({"key": "k00", "payload": "0"}));
}

#[test]
fn what_cannot_be_is_said() {
    let (folder, url) = folder();
    let cases: &[(&[&str], i32, &str)] = &[
        (&["get", &url, "t", "k"], 1, "s3db init"),
        (&["get", "ftp://x", "t", "k"], 1, "file:///PATH"),
        (&["get", "file://relative", "t", "k"], 1, "absolute path"),
        (&["get", &url, "t"], 2, "KEY"),
        (&["put", &url, "t", "", "v"], 1, "at least 1 byte"),
        (&["init", &url, "--backend", "kafka"], 2, "s3-log"),
        (&["init", &url, "--shards", "0"], 2, "shards"),
        (&["cost", "--shared", "1.5"], 2, "0 to 1"),
        (&["watch", &url, "--count", "0"], 2, "0 is not in 1.."),
        (&["get", "s3://KEY:SECRET@bucket/p?x=SECRET", "t", "k"], 1, "s3://...@bucket"),
        (&["fly"], 2, "unrecognized"),
    ];
    for (args, code, why) in cases {
        let failed = s3db().args(*args).assert().code(*code);
        let error = String::from_utf8_lossy(&failed.get_output().stderr).into_owned();
        assert!(error.contains(why) && !error.contains("SECRET"), "{args:?}: {error}");
    }
    run(&["init", &url]);
    s3db().args(["init", &url]).assert().code(1);
    let no_collection = s3db().args(["get", &url, "t", "k"]).assert().code(1);
    let error = String::from_utf8_lossy(&no_collection.get_output().stderr).into_owned();
    assert!(error.contains("no collection t") && error.contains("init"), "{error}");
    s3db().args(["init", &url, "bad/name"]).assert().code(1);
    // Bytes that are no database.
    std::fs::write(folder.path().join("db/objects/database@"), "noise").unwrap();
    let damaged = s3db().args(["get", &url, "t", "k"]).assert().code(1);
    let error = String::from_utf8_lossy(&damaged.get_output().stderr).into_owned();
    assert!(error.contains("database is damaged or foreign"), "{error}");
    // Who looks for what is wrong has found it.
    let found = s3db().args(["verify", &url, "--json"]).assert().code(4);
    let found: serde_json::Value = serde_json::from_slice(&found.get_output().stdout).unwrap();
    let what = found["problems"][0].as_str().unwrap();
    assert!(
        what.contains("database is damaged or foreign") && found["problem_count"] == 1,
        "{found}"
    );
}

/// What a database was created with is not changed by another init, nor is it hidden that it is not.
#[test]
fn a_database_that_is_there_is_what_it_is() {
    let (_folder, url) = folder();
    run(&["init", &url, "--backend", "sqs-fifo", "--shards", "2"]);
    for same in [&["--backend", "sqs-fifo", "--shards", "2"][..], &["--shards", "2"], &[]] {
        run(&[&["init", &url, "t"][..], same].concat());
    }
    for (other, why) in [
        (&["--backend", "s3-log"][..], "backend sqs-fifo and not s3-log"),
        (&["--shards", "16"][..], "2 shards and not 16"),
        (&["--backend", "sqs-fifo", "--shards", "3"][..], "2 shards and not 3"),
    ] {
        let refused = s3db().args([&["init", &url, "u"][..], other].concat()).assert().code(1);
        let error = String::from_utf8_lossy(&refused.get_output().stderr).into_owned();
        assert!(error.contains(why), "{other:?}: {error}");
    }
    s3db().args(["get", &url, "u", "k"]).assert().code(1);
    let (_folder, url) = folder();
    run(&["init", &url, "t"]);
    run(&["init", &url, "u", "--backend", "s3-log", "--shards", "16"]);
}

#[test]
fn damage_has_an_exit_code() {
    let (folder, url) = folder();
    run(&["init", &url, "t"]);
    run(&["put", &url, "t", "k", "v"]);
    run(&["verify", &url, "--json"]);
    let pages = folder.path().join("db/objects/page");
    let page = std::fs::read_dir(pages).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&page).unwrap();
    bytes[20] ^= 1;
    std::fs::write(&page, bytes).unwrap();
    let found = s3db().args(["verify", &url, "--json"]).assert().code(4);
    let report: serde_json::Value = serde_json::from_slice(&found.get_output().stdout).unwrap();
    assert!(report["problem_count"].as_u64().unwrap() > 0, "{report}");
    s3db().args(["get", &url, "t", "k"]).assert().code(1);
}

#[test]
fn garbage_is_collected_and_nothing_else() {
    let (_folder, url) = folder();
    run(&["init", &url, "t"]);
    let long = "x".repeat(20_000);
    let script: String = (0..40).map(|n| format!("put t k{n:02} {n}{long}\n")).collect();
    s3db().args(["txn", &url]).write_stdin(script).assert().success();
    let before = scan(&url, "t");
    assert_eq!(before.len(), 40);
    run(&["gc", &url, "--grace", "0", "--json"]);
    assert_eq!(scan(&url, "t"), before);
    let report: serde_json::Value =
        serde_json::from_str(&run(&["verify", &url, "--json"])).unwrap();
    assert_eq!((&report["records"], &report["orphans"]), (&40.into(), &0.into()), "{report}");
    assert!(report["levels"].as_u64().unwrap() > 1, "{report}");
    let line = run(&["watch", &url, "--count", "1", "--json"]);
    let now: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(now["pages"], report["pages"], "{now}");
}

/// Each look is a line; one that fails is told, and is not the last.
#[test]
fn watching_goes_on_after_a_look_that_failed() {
    use std::{
        io::{BufRead, BufReader, Read},
        process::{Command, Stdio},
    };
    let (folder, url) = folder();
    run(&["init", &url, "t"]);
    run(&["put", &url, "t", "k", "v"]);
    let mut child = Command::new(env!("CARGO_BIN_EXE_s3db"))
        .args(["watch", &url, "--every", "1", "--count", "4", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || {
        let line = lines.next()?.unwrap();
        Some(serde_json::from_str::<serde_json::Value>(&line).unwrap())
    };
    let first = next().unwrap();
    for name in ["pages", "clients", "log", "waiting", "lag_s", "quarantined", "parts"] {
        assert!(first.get(name).is_some(), "{name}: {first}");
    }
    for name in ["appended_per_hour", "watch_dollars", "dollars_per_hour", "hit_ratio", "pool"] {
        assert!(first.get(name).is_some(), "{name}: {first}");
    }
    let database = folder.path().join("db/objects/database@");
    let whole = std::fs::read(&database).unwrap();
    std::fs::write(&database, "noise").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1300));
    std::fs::write(&database, whole).unwrap();
    let mut last = None;
    while let Some(look) = next() {
        last = Some(look);
    }
    assert_eq!(last.expect("looks that did not fail")["pages"], first["pages"]);
    assert!(child.wait().unwrap().success());
    let mut errors = String::new();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert!(errors.contains("damaged"), "{errors}");
}

/// Who keeps a database on a budget is told when it is spent, and calls nothing more.
#[test]
fn what_may_be_spent_is_spent_and_no_more() {
    let (_folder, url) = folder();
    run(&["init", &url, "t"]);
    run(&["put", &url, "t", "k", "v"]);
    for args in [
        &["sweep", &url, "--every", "1", "--spend", "0.000001"][..],
        &["watch", &url, "--every", "1", "--spend", "0.000001"],
        &["gc", &url, "--spend", "0.000001"],
    ] {
        let ended = s3db().args(args).timeout(std::time::Duration::from_secs(20)).assert().code(1);
        let error = String::from_utf8_lossy(&ended.get_output().stderr).into_owned();
        assert!(error.contains("are spent"), "{args:?}: {error}");
    }
    // Where calls cost nothing it is never spent.
    run(&["gc", &url, "--spend", "0.000001", "--prices", "get=0,put=0"]);
    run(&["sweep", &url, "--spend", "0.01"]);
    s3db().args(["gc", &url, "--spend", "0"]).assert().code(2);
}

/// Whoever waits at a terminal sees how far it is; whoever reads the output from a file has only that there.
#[test]
fn a_terminal_shows_how_far_it_is() {
    let (folder, url) = folder();
    run(&["init", &url, "t"]);
    let at = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(at("film"), vec![7; 3 << 20]).unwrap();
    let command = env!("CARGO_BIN_EXE_s3db");
    let in_terminal = |line: String| {
        let shown =
            std::process::Command::new("script").args(["-qec", &line, "/dev/null"]).output();
        let shown = shown.expect("script(1), of util-linux");
        assert!(shown.status.success(), "{line}");
        String::from_utf8_lossy(&shown.stdout).into_owned()
    };
    let put = in_terminal(format!("{command} put {url} t film --file {}", at("film")));
    assert!(put.contains("of 3.0 MiB") && put.ends_with("\r\x1b[K"), "{put:?}");
    let get = in_terminal(format!("{command} get {url} t film > {}", at("copy")));
    assert!(get.contains("0.0 of 3.0 MiB"), "{get:?}");
    assert_eq!(std::fs::read(at("copy")).unwrap(), vec![7; 3 << 20]);
    let scan = in_terminal(format!("{command} scan {url} t --only-keys > {}", at("keys")));
    assert!(scan.contains("0 records"), "{scan:?}");
    // On one screen lines would mix; and machines want none of it.
    assert!(!in_terminal(format!("{command} scan {url} t --only-keys")).contains("records"));
    let json = in_terminal(format!("{command} put {url} t film --file {} --json", at("film")));
    assert!(!json.contains("MiB"), "{json:?}");
}

/// Copies of pages on a disk: they are used, and nothing depends on them.
#[test]
fn a_disk_and_a_budget_can_be_given() {
    let (folder, url) = folder();
    let disk = folder.path().join("pages");
    let disk = disk.to_str().unwrap();
    run(&["init", &url, "t"]);
    let with = |args: &[&str]| {
        let done = s3db()
            .args(args)
            .args(["--disk", disk, "--disk-bytes", "1M", "--budget", "4M", "--eviction", "clock"])
            .args(["--bill", "--json"])
            .assert()
            .success();
        let bill = done.get_output().stderr.clone();
        serde_json::from_slice::<serde_json::Value>(&bill).unwrap()["pool"].clone()
    };
    let put = with(&["put", &url, "t", "k", "v"]);
    assert!(put["disk_written"].as_u64().unwrap() > 0, "{put}");
    let get = with(&["get", &url, "t", "k"]);
    assert!(get["disk_confirmed"].as_u64().unwrap() > 0, "{get}");
    assert_eq!((&get["fetched"], &get["budget_limit"]), (&0.into(), &(4 << 20).into()), "{get}");
    std::fs::remove_dir_all(disk).unwrap();
    std::fs::write(disk, "no folder").unwrap();
    let got = s3db().args(["get", &url, "t", "k", "--disk", disk]).assert().success();
    assert_eq!(got.get_output().stdout, b"v");
    // It said so only when it had failed three times, which a get does not.
    let told = String::from_utf8_lossy(&got.get_output().stderr).into_owned();
    assert!(told.contains("pages could not be kept") && told.contains(disk), "{told}");
    s3db().args(["get", &url, "t", "k", "--budget", "lots"]).assert().code(2);
}

#[test]
fn costs_are_known() {
    let table: serde_json::Value = serde_json::from_str(&run(&["cost", "--json"])).unwrap();
    let rows = table["rows"].as_array().unwrap();
    let of = |backend: &str, level: &str| {
        let row = rows.iter().find(|row| {
            row["backend"] == backend
                && row["level"] == level
                && row["records_per_checkpoint"] == 10.0
        });
        row.unwrap()["dollars"].as_f64().unwrap()
    };
    // The design's section 16.2; but records of whole transactions are sent on ten in a call.
    assert!((of("sqs-standard", "atomic") - 0.0068).abs() < 0.0005);
    assert!((of("s3-log", "atomic") - 0.0059).abs() < 0.0005);
    assert!(of("s3-log", "serializable") > of("s3-log", "atomic"));
    let alone: serde_json::Value =
        serde_json::from_str(&run(&["cost", "--json", "--shared", "0"])).unwrap();
    let total_of = |table: &serde_json::Value| table["rows"][1]["dollars"].as_f64().unwrap();
    assert!(total_of(&alone) < total_of(&table), "nobody reads a page that only one puts");
    s3db().args(["cost", "--reads=-1"]).assert().code(1);
    s3db().args(["cost", "--shared", "2"]).assert().code(2);
    s3db().args(["cost", "--shards", "0"]).assert().code(2);
    s3db().args(["cost", "--prices", "put=-1"]).assert().code(2);
    // Prices are those that are given; and of FIFO queues what these cost.
    assert!(of("sqs-fifo", "atomic") > of("sqs-standard", "atomic"));
    let dear: serde_json::Value =
        serde_json::from_str(&run(&["cost", "--json", "--prices", "put=500"])).unwrap();
    let total = |table: &serde_json::Value| -> f64 {
        table["rows"].as_array().unwrap().iter().map(|row| row["dollars"].as_f64().unwrap()).sum()
    };
    assert!(total(&dear) > 50.0 * total(&table), "{dear}");
    for (backend, million) in [("sqs-standard", 0.40), ("sqs-fifo", 0.50)] {
        let (_folder, url) = folder();
        run(&["init", &url, "t", "--backend", backend, "--shards", "1"]);
        for (prices, of_queues) in [("", million), ("queue=7", 7.0)] {
            let only = format!("get=0,put=0,{prices}");
            let put = ["put", &url, "t", "k", "v", "--bill", "--json", "--prices", &only];
            let bill = s3db().args(put).assert().success();
            let bill: serde_json::Value =
                serde_json::from_slice(&bill.get_output().stderr).unwrap();
            let calls: u64 = ["send", "receive", "delete-message", "queue-other"]
                .iter()
                .filter_map(|kind| bill["calls"][kind].as_u64())
                .sum();
            let dollars = calls as f64 * of_queues / 1e6;
            assert!(
                (bill["dollars"].as_f64().unwrap() - dollars).abs() < 1e-9,
                "{backend}: {bill}"
            );
        }
    }
    let (_folder, url) = folder();
    run(&["init", &url, "t"]);
    let bill = s3db().args(["put", &url, "t", "k", "v", "--bill", "--json"]).assert().success();
    let bill: serde_json::Value = serde_json::from_slice(&bill.get_output().stderr).unwrap();
    // A claim, its end of earlier lives, the commit, and the page.
    assert_eq!(bill["calls"]["put"], 4, "{bill}");
    assert!(bill["dollars"].as_f64().unwrap() < 0.0001);
}

/// Many processes on one database at the same time.
#[test]
fn processes_share_a_database() {
    let (_folder, url) = folder();
    run(&["init", &url, "t"]);
    std::thread::scope(|scope| {
        for process in 0..6 {
            let url = &url;
            scope.spawn(move || {
                let script: String = (0..30)
                    .map(|n| {
                        format!("put t k{n:02} by {process}\nput t p{process}-{n:02} {n}\ncommit\n")
                    })
                    .collect();
                s3db().args(["txn", url]).write_stdin(script).assert().success();
            });
        }
    });
    let records = scan(&url, "t");
    assert_eq!(records.len(), 30 + 6 * 30);
    run(&["verify", &url]);
}

#[test]
fn keys_come_from_a_file_and_change() {
    let (folder, url) = folder();
    let file = folder.path().join("keys");
    let keys = file.to_str().unwrap();
    let (one, two) = (format!("1 {}\n", "01".repeat(32)), format!("2 {}\n", "02".repeat(32)));
    std::fs::write(&file, &one).unwrap();
    let created = run(&["init", &url, "users", "--keys", keys]);
    assert!(created.ends_with("encrypted\n"), "{created}");
    run(&["put", &url, "users", "ada", "1815", "--keys", keys]);
    let get = || {
        let mut get = s3db();
        get.args(["get", &url, "users", "ada"]);
        get
    };
    get().env("S3DB_KEYS_FILE", &file).assert().success().stdout("1815");
    assert_eq!(run(&["scan", &url, "users", "--keys", keys]), "ada\t1815\n");
    assert_eq!(run(&["scan", &url, "users", "--keys", keys, "--only-keys"]), "ada\n");
    let failed = get().assert().code(1);
    let error = String::from_utf8_lossy(&failed.get_output().stderr).into_owned();
    assert!(error.contains("encrypted") && error.contains("--keys"), "{error}");

    std::fs::write(&file, format!("{two}{one}")).unwrap();
    let rekeyed = run(&["rekey", &url, "--keys", keys]);
    assert!(rekeyed.ends_with("no other key is needed\n"), "{rekeyed}");
    std::fs::write(&file, &two).unwrap();
    get().args(["--keys", keys]).assert().success().stdout("1815");
    let verified = run(&["verify", &url, "--keys", keys]);
    assert!(verified.ends_with("no problems\n"), "{verified}");
    std::fs::write(&file, &one).unwrap();
    let failed = get().args(["--keys", keys]).assert().code(1);
    let error = String::from_utf8_lossy(&failed.get_output().stderr).into_owned();
    assert!(error.contains("sealed with key 2"), "{error}");

    // What is wrong with a file is said, and no key is shown.
    std::fs::write(&file, format!("{two}1 {}", "03".repeat(33))).unwrap();
    let failed = get().args(["--keys", keys]).assert().code(1);
    let error = String::from_utf8_lossy(&failed.get_output().stderr).into_owned();
    assert!(error.contains("line 2") && error.contains(keys) && !error.contains("0303"), "{error}");
    get().args(["--keys", "/nowhere/keys"]).assert().code(1);
}
