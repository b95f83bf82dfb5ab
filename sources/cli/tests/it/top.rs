//! Watching one program from another.

use std::{
    io::Read,
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::extmem;

#[test]
fn a_program_is_watched_while_it_reads() {
    let folder = tempfile::tempdir().unwrap();
    let (object, seen) = (folder.path().join("object"), folder.path().join("seen"));
    std::fs::write(&object, vec![7u8; 9_000_000]).unwrap();
    let program = assert_cmd::cargo::cargo_bin("extmem");
    let mut cat = Command::new(program)
        .args(["cat", "--budget", "16"])
        .arg(&object)
        .env("EXTMEM_STATS", &seen)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Its first bytes are here, and it waits for us to take the others.
    let mut out = cat.stdout.take().unwrap();
    out.read_exact(&mut [0; 1]).unwrap();
    let top = |args: &[&str]| {
        let output = extmem().arg("top").args(args).env("EXTMEM_STATS", &seen).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let json: Value = serde_json::from_str(&top(&["--json"])).unwrap();
    let process = &json["processes"][0];
    assert_eq!(process["pid"], cat.id());
    assert_eq!((&process["program"], &process["budget"]), (&"extmem".into(), &(16 << 20).into()));
    // The region may have been opened after the latest writing: wait for the next.
    let table = loop {
        let table = top(&["--once"]);
        if table.contains("object\n") && table.matches("object").count() > 1 {
            break table;
        }
    };
    assert!(table.contains(&format!("extmem [{}]", cat.id())), "{table}");
    let mut rest = Vec::new();
    out.read_to_end(&mut rest).unwrap();
    assert!(cat.wait().unwrap().success());
    assert_eq!(rest.len(), 9_000_000 - 1);
    let gone: Value = serde_json::from_str(&top(&["--json"])).unwrap();
    assert_eq!(gone["processes"].as_array().unwrap().len(), 0, "{gone}");
    assert!(top(&[]).contains("nobody is seen"), "without a terminal it prints once");
}

#[test]
fn a_directory_that_cannot_be_had_is_no_reason_to_stop() {
    let folder = tempfile::tempdir().unwrap();
    let object = folder.path().join("object");
    std::fs::write(&object, "bytes").unwrap();
    let output = extmem().arg("cat").arg(&object).env("EXTMEM_STATS", &object).output().unwrap();
    assert!(output.status.success() && output.stdout == b"bytes");
    assert!(String::from_utf8_lossy(&output.stderr).contains("EXTMEM_STATS"));
    let output = extmem().arg("top").arg("--dir").arg(folder.path().join("none")).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        extmem().arg("top").env_remove("EXTMEM_STATS").output().unwrap().status.code(),
        Some(2)
    );
}
