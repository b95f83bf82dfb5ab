//! `tdb verify`.

use std::fs;

use serde_json::Value as Json;

use crate::support::{Sample, fixtures, printed, run, stderr};

const EVENTS: &[(u8, u64, &[u8], &[u8])] =
    &[(1, 10, b"x", b"y"), (2, 11, b"z", b""), (3, 12, b"", b"")];

#[test]
fn golden_files_are_sound() {
    let directory = tempfile::TempDir::new().expect("a temporary directory");
    for fixture in fixtures(directory.path()) {
        let path = fixture.path.to_str().expect("a plain path");
        let text = printed(&["verify", "-i", path, "--strict"]);
        assert!(text.starts_with("sound: "), "{}: {text}", fixture.name);
    }
}

#[test]
fn damage_is_named_and_has_an_exit_code() {
    let sample = Sample::new(EVENTS);
    let (good, bad) = (sample.path(), sample.beside("bad.tdb"));
    let mut file = fs::read(&good).expect("a database");
    let find = |name: &str| {
        let index = String::from_utf8_lossy(&file[2560..4096]).into_owned();
        let line = index.lines().find(|line| line.starts_with(name)).expect("a member").to_owned();
        line.split(' ').nth(1).expect("an offset").parse::<usize>().expect("a number")
    };
    let (data, uuids) = (find("trails.data "), find("uuids "));
    // A literal of field 3, where there are two; and a UUID twice.
    file[data] = 0b0011_0000;
    file.copy_within(uuids..uuids + 16, uuids + 16);
    fs::write(&bad, file).expect("room");

    let output = run(&["verify", "-i", &bad]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(5), "{text}");
    let words: Vec<Vec<&str>> =
        text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words[1][..4], ["error", "trails.data", "0", "0"], "{text}");
    assert_eq!(words[2][..4], ["error", "uuids", "16", "1"], "{text}");
    assert!(text.contains("damaged: 2 trails, 2 events"), "{text}");
    assert!(stderr(&output).contains("2 errors, 0 warnings"), "{}", stderr(&output));

    let output = run(&["verify", "-i", &bad, "--json", "--findings", "1"]);
    assert_eq!(output.status.code(), Some(5));
    let json: Json = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!((json["sound"].as_bool(), json["errors"].as_u64()), (Some(false), Some(2)));
    assert_eq!(json["findings"].as_array().map(Vec::len), Some(1));
    assert_eq!(json["members"]["uuids"]["errors"].as_u64(), Some(1));
    let json: Json =
        serde_json::from_str(&printed(&["verify", "-i", &good, "--json"])).expect("JSON");
    assert_eq!((json["sound"].as_bool(), json["events"].as_u64()), (Some(true), Some(3)));
}

#[test]
fn warnings_count_when_they_are_asked_to() {
    let sample = Sample::new(EVENTS);
    let path = sample.path();
    let mut file = fs::read(&path).expect("a database");
    file.extend([0; 512]);
    fs::write(&path, file).expect("room");
    let text = printed(&["verify", "-i", &path]);
    assert!(text.contains("512 bytes follow the archive"), "{text}");
    let output = run(&["verify", "-i", &path, "--strict"]);
    assert_eq!(output.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&output.stdout).contains("sound, but for warnings"));
}

#[test]
fn what_is_no_database_is_damaged_and_what_is_not_there_failed() {
    let sample = Sample::new(&[]);
    let text = sample.beside("text.tdb");
    fs::write(&text, "not a database").expect("room");
    assert_eq!(run(&["verify", "-i", &text]).status.code(), Some(5));
    assert_eq!(run(&["verify", "-i", &sample.beside("nothing")]).status.code(), Some(1));
    printed(&["verify", "-i", &sample.path()]);
}

/// What cannot be read is passed over when that is asked for; what is damaged is told all the same.
#[test]
fn the_others_are_checked_when_it_keeps_going() {
    let sample = Sample::new(EVENTS);
    let (good, nothing, bad) = (sample.path(), sample.beside("nothing"), sample.beside("bad.tdb"));
    assert_eq!(run(&["verify", &nothing, &good]).status.code(), Some(1));
    let output = run(&["verify", &nothing, &good, "--keep-going"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(4), "{text}{}", stderr(&output));
    assert!(text.contains(&format!("{good}: sound: 3 trails, 3 events")), "{text}");
    let said = stderr(&output);
    assert!(said.contains("passed over:") && said.contains(&nothing), "{said}");
    assert!(said.contains("1 of 2 databases were passed over"), "{said}");

    fs::write(&bad, "no database").expect("room");
    let output = run(&["verify", &nothing, &bad, &good, "--keep-going"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(5), "damage counts for more: {}", stderr(&output));
    assert!(text.contains(&format!("{bad}: damaged")), "{text}");
    assert!(text.contains(&format!("{good}: sound")), "{text}");
    assert!(stderr(&output).contains("passed over:"), "{}", stderr(&output));
}

#[test]
fn by_url_it_reads_everything_once() {
    let directory = tempfile::TempDir::new().expect("a temporary directory");
    let path = directory.path().join("s.tdb");
    let path = path.to_str().expect("a plain path");
    printed(&["synth", "--events", "50000", "-o", path]);
    let args = ["verify", "-i", &format!("file://{path}"), "--strict", "-T", "2"];
    let text = printed(&args);
    assert!(text.contains("50,000 events"), "{text}");
}
