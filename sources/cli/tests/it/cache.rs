//! `extmem warm` and `extmem cache`, and commands that read through a cache.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use assert_cmd::Command;
use serde_json::Value;

use crate::{
    extmem,
    origin::{Origin, sample},
};

fn with_cache(dir: &Path) -> Command {
    let mut command = extmem();
    command
        .env("EXTMEM_CACHE", dir)
        .env("EXTMEM_CACHE_FREE", "0")
        .env("EXTMEM_CACHE_BYTES", "64MiB");
    command
}

fn json(command: &mut Command) -> Value {
    let output = command.output().expect("output");
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let objects = fs::read_dir(dir.join("objects")).expect("objects").flatten();
    let files = objects.flat_map(|object| fs::read_dir(object.path()).expect("a folder").flatten());
    let mut found: Vec<_> = files.map(|file| file.path()).collect();
    found.retain(|path| path.extension().is_some_and(|extension| extension == "seg"));
    found.sort();
    found
}

#[test]
fn what_was_warmed_is_read_without_a_request() {
    let origin = Origin::start();
    let object = sample(9_000_000, 1);
    origin.put("/object", &object, "1");
    let url = origin.url("/object");
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("cache");

    // Two ranges, one of them from a plan.
    let plan = folder.path().join("plan");
    fs::write(&plan, "# the end of it\n-100000\n\n0-65535  # and its head\n").expect("write");
    let warmed = json(
        with_cache(&dir)
            .args(["warm", "--json", "--range", "5000000..5000001", "--plan"])
            .arg(&plan)
            .arg(&url),
    );
    assert_eq!(
        (&warmed["bytes"], &warmed["skipped_blocks"]),
        (&165_537.into(), &0.into()),
        "{warmed}"
    );
    // Five blocks, the last of them short.
    assert_eq!(origin.count().1, 283_712);
    let listed = json(with_cache(&dir).args(["cache", "ls", "--json"]));
    assert_eq!(listed["objects"][0]["name"], url.as_str());
    assert_eq!(listed["objects"][0]["bytes"], 9_000_000);
    let cached = listed["objects"][0]["cached_bytes"].as_u64().expect("bytes");
    assert_eq!(cached, 283_712);

    // All of it; then no command asks for a byte.
    assert!(with_cache(&dir).args(["warm", &url]).output().expect("output").status.success());
    assert_eq!(origin.count().1, 9_000_000, "what was there is not fetched again");
    // Often: a program that ends while it reads ahead may ask for what nobody wants.
    let gets = origin.count().0;
    for round in 0..30 {
        let ranges = [
            (&["--range", "0-99"][..], 0..100),
            (&["--range", "-5"], 8_999_995..9_000_000),
            (&[], 0..9_000_000),
        ];
        for (range, expected) in ranges {
            let output =
                with_cache(&dir).arg("cat").args(range).arg(&url).output().expect("output");
            assert!(output.stdout == object[expected], "{range:?}");
            let told = String::from_utf8_lossy(&output.stderr);
            assert_eq!(origin.count().0, gets, "round {round}, {range:?}: {told}");
        }
    }
    let table = with_cache(&dir).args(["cache", "ls"]).output().expect("output");
    let table = String::from_utf8(table.stdout).expect("text");
    assert!(
        table.contains("100.0%") && table.contains(&url) && table.contains("1 object(s)"),
        "{table}"
    );

    // A byte flips: it is found, told by the exit code, and gone after a repair.
    let verify = |args: &[&str]| {
        let output = with_cache(&dir).args(["cache", "verify", "--json"]).args(args).output();
        let output = output.expect("output");
        let value: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        (output.status.code(), value["damaged_blocks"].clone(), value["removed"].clone())
    };
    assert_eq!(verify(&[]), (Some(0), 0.into(), 0.into()));
    let file = fs::OpenOptions::new().write(true).open(&segments(&dir)[2]).expect("open");
    file.write_all_at(&[!object[4 * 1024 * 1024 + 70_000]], 70_000).expect("write");
    assert_eq!(verify(&[]), (Some(1), 1.into(), 0.into()));
    assert_eq!(verify(&["--repair"]), (Some(1), 1.into(), 1.into()));
    assert_eq!(verify(&[]), (Some(0), 0.into(), 0.into()));
    let output = with_cache(&dir).args(["cat", &url]).output().expect("output");
    assert!(output.stdout == object);

    // And away with it.
    let gone = json(with_cache(&dir).args(["cache", "rm", "--json", &url, "s3://no/such"]));
    assert!(gone["freed_bytes"].as_u64().expect("bytes") >= 9_000_000, "{gone}");
    assert_eq!(gone["not_found"][0], "s3://no/such");
    assert_eq!(segments(&dir).len(), 0);
    assert!(with_cache(&dir).args(["warm", &url]).output().expect("output").status.success());
    assert!(
        with_cache(&dir).args(["cache", "rm", "--all"]).output().expect("output").status.success()
    );
    assert_eq!(segments(&dir).len(), 0);
}

/// The last to let go of the cache was a runtime that shut down beside the end of the program, and what
/// was not on the disk by then was lost.
#[test]
fn what_was_read_is_there_when_the_program_has_ended() {
    let origin = Origin::start();
    let object = sample(5_000_000, 66);
    origin.put("/object", &object, "1");
    let folder = tempfile::tempdir().expect("a folder");
    for round in 1..=16u64 {
        let dir = folder.path().join(round.to_string());
        for _ in 0..2 {
            let mut cat = with_cache(&dir);
            let output = cat.args(["cat", &origin.url("/object")]).output().expect("output");
            assert!(output.stdout == object, "{output:?}");
            assert_eq!(origin.count().1, round * 5_000_000, "round {round}");
        }
    }
}

/// A server of the environment has a cache of its own; this one was named.
#[test]
fn a_cache_that_is_named_is_warmed_whatever_server_there_is() {
    let origin = Origin::start();
    let object = sample(1_000_000, 3);
    origin.put("/object", &object, "1");
    let url = origin.url("/object");
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("cache");
    let nowhere = format!("unix://{}", folder.path().join("nobody").display());
    let warmed =
        json(with_cache(&dir).env("EXTMEM_SERVER", &nowhere).args(["warm", "--json", &url]));
    assert_eq!(warmed["stored_bytes"], 1_000_000, "{warmed}");
    let before = origin.count().0;
    let output = with_cache(&dir).args(["cat", &url]).output().expect("output");
    assert!(output.stdout == object && origin.count().0 == before, "it is there");
}

#[test]
fn a_disk_that_hangs_is_not_waited_for() {
    let origin = Origin::start();
    origin.put("/first", &sample(10_000, 4), "1");
    origin.put("/second", &sample(1_000_000, 5), "1");
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("cache");
    let first = with_cache(&dir).args(["warm", &origin.url("/first")]).output().expect("output");
    assert!(first.status.success(), "{first:?}");
    // Whoever reads it waits for somebody who writes, and nobody does.
    let made = std::process::Command::new("mkfifo").arg(dir.join("ghosts")).status();
    assert!(made.expect("mkfifo").success());
    let mut second = with_cache(&dir);
    second.args(["warm", &origin.url("/second")]).timeout(std::time::Duration::from_secs(60));
    let output = second.output().expect("output");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("has taken nothing"), "{text}");
}

#[test]
fn what_cannot_be_kept_is_said() {
    let origin = Origin::start();
    origin.put("/object", &sample(40_000_000, 2), "1");
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("cache");
    let fails = |command: &mut Command| {
        let output = command.output().expect("output");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let url = origin.url("/object");
    let small = fails(with_cache(&dir).env("EXTMEM_CACHE_BYTES", "16MiB").args(["warm", &url]));
    assert!(small.contains("EXTMEM_CACHE_BYTES"), "{small}");
    let full = fails(with_cache(&dir).env("EXTMEM_CACHE_FREE", "4096TiB").args(["warm", &url]));
    assert!(full.contains("found no room"), "{full}");
    let missing = folder.path().join("missing");
    let none = fails(with_cache(&missing).args(["cache", "ls"]));
    assert!(none.contains("no cache here") && !missing.exists(), "{none}");
    let nowhere = fails(with_cache(&dir).args(["cache", "rm", "s3://no/such"]));
    assert!(nowhere.contains("nothing of it"), "{nowhere}");
    let odd = fails(with_cache(&dir).env("EXTMEM_CACHE_BYTES", "lots").args(["warm", &url]));
    assert!(odd.contains("EXTMEM_CACHE_BYTES=lots"), "{odd}");
    let plan = folder.path().join("plan");
    fs::write(&plan, "0-9\nhere\n").expect("write");
    let plan = fails(with_cache(&dir).args(["warm", "--plan"]).arg(&plan).arg(&url));
    assert!(plan.contains("line 2"), "{plan}");
    // A cache that cannot be opened keeps nobody from reading.
    fs::write(folder.path().join("file"), "x").expect("write");
    let output =
        with_cache(&folder.path().join("file")).args(["cat", &url]).output().expect("output");
    assert!(output.status.success() && output.stdout.len() == 40_000_000);
    let warned = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(warned.contains("without the disk cache"), "{warned}");
}
