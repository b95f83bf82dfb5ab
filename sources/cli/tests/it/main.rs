//! The command as people and scripts use it.

mod blocks;
mod cache;
mod examples;
mod golden;
mod memory;
mod origin;
mod page;
mod remote;
mod serve;
mod top;
mod trace;
mod v000;

use std::io::Write;

use assert_cmd::Command;

pub(crate) fn extmem() -> Command {
    Command::cargo_bin("extmem").unwrap()
}

pub(crate) fn sample() -> (tempfile::NamedTempFile, Vec<u8>) {
    let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n % 253) as u8).collect();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&bytes).unwrap();
    (file, bytes)
}

#[test]
fn cat_writes_an_object_and_its_ranges() {
    let (file, bytes) = sample();
    let path = file.path().to_str().unwrap();
    let cases = [
        (vec!["cat", path], 0..bytes.len()),
        (vec!["cat", "--range", "0-99", path], 0..100),
        (vec!["cat", "--range", "65530..65540", path], 65_530..65_540),
        (vec!["cat", "--range", "-5", path], bytes.len() - 5..bytes.len()),
        (vec!["cat", "--budget", "16", path], 0..bytes.len()),
    ];
    for (args, range) in cases {
        let output = extmem().args(&args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout == bytes[range], "{args:?}");
    }
}

#[test]
fn cat_writes_several_objects_as_one() {
    let (file, bytes) = sample();
    let mut short = tempfile::NamedTempFile::new().unwrap();
    short.write_all(b"short").unwrap();
    let (path, short) = (file.path().to_str().unwrap(), short.path().to_str().unwrap());
    let all = [&bytes[..], b"short", &bytes].concat();
    let cases = [
        (vec!["cat", path, short, path], 0..all.len()),
        (vec!["cat", "--range", "2999990..3000010", path, short, path], 2_999_990..3_000_010),
        (vec!["cat", "--range", "-1", path, short, path], all.len() - 1..all.len()),
        (vec!["cat", "--preset", "frugal", "--budget", "16", path, short, path], 0..all.len()),
    ];
    for (args, range) in cases {
        let output = extmem().args(&args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout == all[range], "{args:?}");
    }
    let output = extmem().args(["cat", path, "/no/such/file"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/no/such/file"));
    assert!(output.stdout.is_empty());
}

#[test]
fn cat_says_what_it_cost() {
    let (file, bytes) = sample();
    let output = extmem().args(["cat", "--stats=json"]).arg(file.path()).output().unwrap();
    assert!(output.stdout == bytes);
    let json: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!((&json["bytes"], &json["heads"]), (&bytes.len().into(), &1.into()), "{json}");
    assert!(json["gets"].as_u64().unwrap() >= 1, "{json}");
    assert!(json["cost_usd"].is_null(), "nobody charges for a file: {json}");
    let output = extmem().args(["cat", "--stats"]).arg(file.path()).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("bytes     3000000 (2.9 MiB)") && !text.contains("cost"), "{text}");
}

#[test]
fn stat_says_length_and_version() {
    let (file, bytes) = sample();
    let output = extmem().args(["stat", "--json"]).arg(file.path()).output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["bytes"], bytes.len());
    assert_eq!(json["strength"], "weak");
    let output = extmem().arg("stat").arg(file.path()).output().unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().contains("bytes    3000000"));
}

#[test]
fn doctor_reports_and_its_exit_code_agrees() {
    let output = extmem().args(["doctor", "--json"]).output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let good = json["findings"].as_array().unwrap().iter().all(|finding| finding["ok"] == true);
    assert_eq!(output.status.code(), Some(if good { 0 } else { 3 }), "{json}");
    assert!(json["trial"].as_str().unwrap().contains("right byte"), "{json}");
    let output = extmem().arg("doctor").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("page faults") && text.contains("page tables"), "{text}");
}

/// An ordinary user is told how to get what root has. Only root can become one.
#[test]
fn doctor_advises_a_user_who_is_not_root() {
    use std::os::unix::fs::PermissionsExt;
    let doctor = |program: &std::path::Path, user: &str| {
        let mut doctor = std::process::Command::new("setpriv");
        doctor.args(["--reuid", user, "--regid", user, "--clear-groups"]).arg(program);
        doctor.args(["doctor", "--json"]).output()
    };
    // Where every user can reach it.
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("extmem");
    std::fs::copy(assert_cmd::cargo::cargo_bin!("extmem"), &program).unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let output = doctor(&program, "65534");
    let closed = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd");
    let closed = closed.is_ok_and(|text| text.trim() == "0");
    let json = output.as_ref().ok().and_then(|output| {
        serde_json::from_slice::<serde_json::Value>(&output.stdout).ok().filter(|_| closed)
    });
    let Some(json) = json else {
        return blocks::without_other_users(&(output, closed));
    };
    assert_eq!(output.unwrap().status.code(), Some(3), "{json}");
    let findings = json["findings"].as_array().unwrap();
    let faults = findings.iter().find(|finding| finding["name"] == "page faults").unwrap();
    assert_eq!(faults["ok"], false, "{json}");
    let advice = faults["do"].to_string();
    assert!(advice.contains("sysctl vm.unprivileged_userfaultfd=1"), "{json}");
    assert!(advice.contains("/dev/userfaultfd"), "{json}");
    assert!(json["tried"].as_array().is_some_and(|tried| tried.len() == 3), "{json}");
}

#[test]
fn doctor_knows_limits_and_what_does_not_work_at_all() {
    let doctor = |limit: &str| {
        let program = assert_cmd::cargo::cargo_bin("extmem");
        let line = format!("ulimit {limit} && exec '{}' doctor --json", program.display());
        let output = Command::new("sh").args(["-c", &line]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!text.contains("panicked"), "{limit}: {text}");
        let json: serde_json::Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{limit}: {error}: {text}"));
        (output.status.code(), json)
    };
    let advice = |json: &serde_json::Value, name: &str| {
        let findings = json["findings"].as_array().unwrap();
        let finding = findings.iter().find(|finding| finding["name"] == name).unwrap();
        (finding["ok"] == true, finding["do"].to_string())
    };
    let (code, json) = doctor("-v 4000000");
    assert_eq!(code, Some(3), "{json}");
    assert!(advice(&json, "address space").1.contains("ulimit -v"), "{json}");
    let (code, json) = doctor("-n 200");
    assert_eq!(code, Some(3), "{json}");
    assert!(advice(&json, "open files").1.contains("ulimit -n"), "{json}");
    // Not enough descriptors for a single region: the report is there, and says so.
    let (code, json) = doctor("-n 5");
    assert_eq!(code, Some(1), "{json}");
    assert!(json["trial"].as_str().unwrap().contains("FAILED"), "{json}");
    assert!(!advice(&json, "open files").0, "{json}");
}

#[test]
fn wrong_use_is_said_and_never_panics() {
    let (file, _) = sample();
    let path = file.path().to_str().unwrap();
    let cases: [(&[&str], i32, &str); 12] = [
        (&[], 2, "Usage"),
        (&["cat", "/no/such/file"], 1, "/no/such/file"),
        (&["stat", "ftp://host/file"], 1, "ftp"),
        (&["stat", "s3://bucket/key?colour=red"], 1, "colour"),
        (&["cat", "--range", "x", path], 2, "FIRST-LAST"),
        (&["cat", "--range", "5000000-", path], 1, "3000000"),
        (&["cat", "--range", "5-4", path], 2, "before the first"),
        (&["cat", "/proc/self/status"], 1, "tells no length"),
        (&["cat", "no\u{1b}[2Jfile"], 1, "no [2Jfile"),
        (&["cat", "--budget", "1", path], 2, "16"),
        (&["cat", "--preset", "cheap", path], 2, "latency, throughput or frugal"),
        (&["cat"], 2, "URL"),
    ];
    for (args, code, says) in cases {
        let output = extmem().args(args).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
        assert!(text.contains(says) && !text.contains("panicked"), "{args:?}: {text}");
        assert!(code == 2 || !text.contains('\u{1b}'), "{args:?}: {text:?}");
    }
}

#[test]
fn output_that_cannot_be_written_is_a_failure() {
    let (file, _) = sample();
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let program = assert_cmd::cargo::cargo_bin("extmem");
    let output =
        std::process::Command::new(program).arg("cat").arg(file.path()).stdout(full).output();
    let output = output.unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("standard output"), "{text}");
}

#[test]
fn what_is_empty_is_written_as_such() {
    let empty = tempfile::NamedTempFile::new().unwrap();
    let path = empty.path().to_str().unwrap();
    for args in
        [&["cat", path][..], &["cat", "--range", "-5", path], &["cat", "--range", "0-", path]]
    {
        let output = extmem().args(args).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{args:?}: {text}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
    assert_eq!(
        extmem().args(["cat", "--range", "0-0", path]).output().unwrap().status.code(),
        Some(1)
    );
}

#[test]
fn a_reader_that_leaves_ends_it_quietly() {
    let (file, _) = sample();
    let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin("extmem"))
        .arg("cat")
        .arg(file.path())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(141));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}
