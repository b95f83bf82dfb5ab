//! `s3db log decode`, from outside.

use s3db::{Change, Key, LogRecord, Payload, Stamp};

use crate::s3db;

fn record(sequence: u64, change: Change) -> LogRecord {
    LogRecord { stamp: Stamp { clock: 5, client: 0xfeed, sequence }, change }
}

fn records() -> Vec<LogRecord> {
    let (key, payload) = (Key::new("user/1\n").unwrap(), Payload::new([0, b'x']).unwrap());
    vec![
        record(1, Change::Insert(key.clone(), payload.clone())),
        record(2, Change::Update(key.clone(), payload)),
        record(3, Change::Delete(key, Payload::default())),
    ]
}

fn bytes(records: &[LogRecord]) -> Vec<u8> {
    records.iter().flat_map(LogRecord::to_bytes).collect()
}

#[test]
fn a_log_prints_one_line_per_record() {
    let output = s3db().args(["log", "decode", "-"]).write_stdin(bytes(&records())).assert();
    output.success().stdout(
        "5.feed.1 insert user/1\\n 2 bytes\n\
         5.feed.2 update user/1\\n 2 bytes\n\
         5.feed.3 delete user/1\\n\n\
         3 records, 145 bytes\n",
    );
}

#[test]
fn json_has_every_field() {
    let one = bytes(&records()[..1]);
    let output = s3db().args(["log", "decode", "--json", "-"]).write_stdin(one).assert().success();
    let line: serde_json::Value = serde_json::from_slice(&output.get_output().stdout).unwrap();
    let expected = serde_json::json!({
        "clock": 5, "client": 0xfeed, "sequence": 1,
        "change": "insert", "key": "user/1\\n", "payload": "\\x00x",
    });
    assert_eq!(line, expected);
}

#[test]
fn a_long_log_streams_through() {
    // Larger than the buffer, with records that straddle every refill.
    let payload = Payload::new(vec![7; 30_000]).unwrap();
    let key = Key::new("k").unwrap();
    let many: Vec<_> =
        (0..50).map(|n| record(n, Change::Update(key.clone(), payload.clone()))).collect();
    let output = s3db().args(["log", "decode", "-"]).write_stdin(bytes(&many)).assert().success();
    let text = String::from_utf8(output.get_output().stdout.clone()).unwrap();
    assert_eq!(text.lines().count(), 51);
    assert!(text.ends_with("50 records, 1502050 bytes\n"), "{text}");
}

#[test]
fn damage_is_named_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let mut damaged = bytes(&records());
    let second = records()[0].to_bytes().len();
    damaged[second + 40] ^= 1;
    std::fs::write(&path, damaged).unwrap();
    let output = s3db().args(["log", "decode"]).arg(&path).assert().code(1);
    let output = output.get_output();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains(&format!("record 1 at byte {second}: checksum")), "{error}");
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 1, "one before it");

    let output = s3db().args(["log", "decode"]).arg(folder.path().join("none")).assert().code(1);
    assert!(String::from_utf8_lossy(&output.get_output().stderr).contains("none"));
}

#[test]
fn an_empty_log_is_a_log() {
    let output = s3db().args(["log", "decode", "-"]).write_stdin("").assert();
    output.success().stdout("0 records, 0 bytes\n");
}
