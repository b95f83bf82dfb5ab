//! Recording what a command reads, and replaying it.

use std::{fs, io::Write, path::Path};

use serde_json::Value;

use crate::{extmem, sample};

/// Records `extmem cat` with these arguments into `trace`; what it wrote.
fn record(trace: &Path, args: &[&str]) -> std::process::Output {
    let program = assert_cmd::cargo::cargo_bin("extmem");
    let mut command = extmem();
    command.arg("trace").arg("--out").arg(trace).arg("--").arg(program).arg("cat").args(args);
    command.output().unwrap()
}

fn replay(trace: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let output = extmem().arg("replay").args(args).arg(trace).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_command_is_recorded_and_replayed() {
    let folder = tempfile::tempdir().unwrap();
    // A name that would break a picture or a terminal.
    let object = folder.path().join("a<b>&\"c\u{1b}[2J");
    let bytes: Vec<u8> = (0..9_000_000u32).map(|n| (n % 251) as u8).collect();
    fs::write(&object, &bytes).unwrap();
    let (trace, picture) = (folder.path().join("trace"), folder.path().join("heat.svg"));
    let output = record(&trace, &[object.to_str().unwrap()]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(output.stdout == bytes, "the command's output is its own");
    assert!(said.contains("accesses, 0 lost"), "{said}");

    let (code, table, error) = replay(&trace, &["--svg", picture.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{error}");
    for name in ["S3-FIFO", "CLOCK"] {
        assert_eq!(table.matches(name).count(), 5, "a row for each budget: {table}");
    }
    assert!(!table.contains("cut off") && table.contains("touched   138 units"), "{table}");
    let picture = fs::read_to_string(&picture).unwrap();
    assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n"));
    assert!(picture.contains("a&lt;b&gt;&amp;&quot;c [2J"), "{picture}");
    assert!(!picture.contains('\u{1b}') && picture.matches("<rect").count() > 3, "{picture}");

    let (code, json, error) = replay(&trace, &["--json", "--budget", "1MiB", "--budget", "1GiB"]);
    assert_eq!(code, Some(0), "{error}");
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["complete"], true);
    assert!(json["gets"].as_u64().unwrap() >= 1, "{json}");
    assert!(json["bytes"].as_u64().unwrap() >= bytes.len() as u64, "{json}");
    let outcomes = json["outcomes"].as_array().unwrap();
    assert_eq!(outcomes.len(), 4, "two policies at two budgets");
    for outcome in outcomes.iter().filter(|outcome| outcome["budget_bytes"] == 1 << 30) {
        assert_eq!(outcome["bytes"], bytes.len(), "each byte once: {outcome}");
        let gets = outcome["gets"].as_u64().unwrap() as f64;
        let cost = outcome["cost_usd"].as_f64().unwrap();
        assert!((cost - gets * 0.0004 / 1000.0).abs() < 1e-12, "{outcome}");
    }
}

#[test]
fn what_is_there_is_kept_and_the_command_ends_as_it_ends() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace");
    let run = |args: &[&str]| {
        let output = extmem().arg("trace").arg("--out").arg(&trace).args(args).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = run(&["--", "sh", "-c", "exit 7"]);
    assert_eq!(code, Some(7), "{said}");
    assert!(said.contains("nothing was recorded"), "{said}");
    assert_eq!(run(&["--", "sh", "-c", "kill -TERM $$"]).0, Some(128 + 15));
    let (code, said) = run(&["--", "/no/such/program"]);
    assert!(code == Some(1) && said.contains("/no/such/program"), "{said}");
    fs::write(&trace, "precious").unwrap();
    let (code, said) = run(&["--", "true"]);
    assert!(code == Some(1) && said.contains("--force"), "{said}");
    assert_eq!(fs::read_to_string(&trace).unwrap(), "precious");
    // A program that finds a file there says so, and does its work.
    let (file, bytes) = sample();
    let output = extmem().arg("cat").arg(file.path()).env("EXTMEM_TRACE", &trace).output().unwrap();
    assert!(output.status.success() && output.stdout == bytes);
    assert!(String::from_utf8_lossy(&output.stderr).contains("nothing is recorded"));
    assert_eq!(fs::read_to_string(&trace).unwrap(), "precious");
    let (code, said) = run(&["--force", "--", "true"]);
    assert!(code == Some(0) && said.contains("nothing was recorded"), "{said}");
    assert!(!trace.exists());
}

#[test]
fn traces_that_are_none_are_refused_and_cut_ones_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace");
    let (file, _) = sample();
    assert!(record(&trace, &[file.path().to_str().unwrap()]).status.success());
    let whole = fs::read(&trace).unwrap();
    let other = folder.path().join("other");
    let refused: [(&str, Vec<u8>); 5] = [
        ("too short for a head", b"extm".to_vec()),
        ("another head", vec![0; 100]),
        ("version 9", [b"extmtrc\x09".as_slice(), &[0; 20]].concat()),
        ("no record with the code 77", [&whole[..16], &[77]].concat()),
        ("behind its end", [&whole[..], &[0]].concat()),
    ];
    for (says, bytes) in refused {
        fs::write(&other, bytes).unwrap();
        let (code, out, error) = replay(&other, &[]);
        assert_eq!((code, out.as_str()), (Some(1), ""), "{says}: {error}");
        assert!(error.contains(says) && !error.contains("panicked"), "{says}: {error}");
    }
    // As a program that was killed leaves it.
    for len in [16, whole.len() / 2, whole.len() - 1] {
        fs::write(&other, &whole[..len]).unwrap();
        let (code, table, error) = replay(&other, &[]);
        assert_eq!(code, Some(0), "{len}: {error}");
        assert!(table.contains("cut off"), "{len}: {table}");
    }
    for (what, path) in [("a folder", folder.path()), ("nothing", &folder.path().join("none"))] {
        let (code, _, error) = replay(path, &[]);
        assert!(code == Some(1) && !error.contains("panicked"), "{what}: {error}");
    }
    let mut full = fs::File::create(&other).unwrap();
    full.write_all(&whole).unwrap();
    let budgets = ["--budget", "1MiB"].repeat(33);
    assert_eq!(replay(&other, &budgets).0, Some(1), "budgets are bounded");
}
