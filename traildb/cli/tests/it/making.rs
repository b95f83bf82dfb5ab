//! `tdb make` and `tdb synth`.

use std::fs;

use crate::support::{Sample, fixtures, printed, printed_bytes, run, stderr, tdb, uuid};

#[test]
fn what_was_dumped_can_be_made_again() {
    let directory = tempfile::TempDir::new().expect("a temporary directory");
    let at = |name: String| directory.path().join(name).to_str().expect("a path").to_owned();
    for fixture in fixtures(directory.path()) {
        let (name, path) = (&fixture.name, fixture.path.to_str().expect("a plain path"));
        let (csv, made) = (at(format!("{name}.csv")), at(format!("{name}-csv.tdb")));
        printed(&["dump", "-i", path, "-d", ",", "--csv-header", "-o", &csv]);
        printed(&["make", "-i", &csv, "-d", ",", "--csv-header", "-o", &made]);
        let got = printed(&["dump", "-i", &made, "--json-trails"]);
        assert!(got == fixture.lines, "{name}: not the same through CSV");

        let header = fs::read_to_string(&csv).unwrap_or_else(|_| {
            String::from_utf8_lossy(&fs::read(&csv).expect("the CSV")).into_owned()
        });
        let fields = header.lines().next().expect("a header");
        let made = at(format!("{name}-json"));
        let json = printed_bytes(&["dump", "-i", path, "-j"]);
        let args = ["make", "-j", "-f", fields, "--tdb-format", "dir", "-o", &made];
        tdb(&args).write_stdin(json).assert().success();
        let got = printed(&["dump", "-i", &made, "--json-trails"]);
        assert!(got == fixture.lines, "{name}: not the same through JSON");
    }
}

#[test]
fn bad_input_is_named_by_line_and_column() {
    let sample = Sample::new(&[]);
    let good = uuid(1);
    let cases: [(&str, &[&str], String, &str); 10] = [
        ("no UUID", &[], format!("{good} 1\nxyz 2\n"), "line 2: column 1"),
        ("no time", &[], format!("{good} 1\n{good} x\n"), "line 2: column 2"),
        ("a missing column", &[], format!("{good}\n"), "line 1: the time is missing"),
        ("a negative time", &[], format!("{good} -1\n"), "column 2"),
        ("an open quote", &["-d", ","], format!("{good},\"1\n2\n3\n"), "line 1: column 2"),
        (
            "a line after a value of two lines",
            &["-d", ",", "-f", "uuid,time,a"],
            format!("{good},1,\"p\nq\"\n{good},z,\n"),
            "line 3: column 2",
        ),
        ("broken JSON", &["-j"], "{\"uuid\":\n".to_owned(), "line 1: column"),
        ("no object", &["-j"], "[1]\n".to_owned(), "line 1: not a JSON object"),
        (
            "a bad member",
            &["-j"],
            format!("{{\"uuid\":\"{good}\",\"time\":\"x\"}}\n"),
            "line 1: \"time\"",
        ),
        ("a header without time", &["--csv-header"], "uuid a\n".to_owned(), "`time`"),
    ];
    for (k, (what, options, input, said)) in cases.into_iter().enumerate() {
        let made = sample.beside(&format!("made{k}.tdb"));
        let args = [&["make", "-o", &made], options].concat();
        let output = tdb(&args).write_stdin(input).output().expect("the command starts");
        let text = stderr(&output);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{what}: {text}");
        assert!(text.contains(said) && !text.contains("panicked"), "{what}: {text}");
        assert!(!fs::exists(&made).expect("a look"), "{what}: a database was made");
    }
}

#[test]
fn bad_lines_can_be_passed_over() {
    let sample = Sample::new(&[]);
    let made = sample.beside("made");
    let args = ["make", "--skip-bad-input", "-o", &made];
    let input = format!("{} 1\nxyz 2\n{} 3\n", uuid(1), uuid(1));
    let output = tdb(&args).write_stdin(input).output().expect("the command starts");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stderr(&output).contains("passed over 1 of 3"), "{}", stderr(&output));
    let info = printed(&["info", "-i", &made, "--json"]);
    assert!(info.contains("\"events\":2"), "{info}");
    let again = run(&["make", "-i", "/dev/null", "-o", &made]);
    assert_eq!(again.status.code(), Some(1), "a database is never overwritten");
}

/// A quote that nobody closes must not cost the square of what follows it.
#[test]
fn an_open_quote_is_found_in_time() {
    let sample = Sample::new(&[]);
    let mut input = format!("{},1,\"", uuid(1)).into_bytes();
    input.extend(b"\"\"\n".repeat(1 << 20));
    let args = ["make", "-d", ",", "-f", "uuid,time,a", "-o", &sample.beside("made")];
    let output = tdb(&args)
        .write_stdin(input)
        .timeout(std::time::Duration::from_secs(20))
        .output()
        .expect("the command starts");
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("has no end"), "{}", stderr(&output));
}

#[test]
fn equal_seeds_make_equal_databases() {
    let sample = Sample::new(&[]);
    let make = |name: &str, seed: &str| {
        let path = sample.beside(name);
        printed(&["synth", "--events", "5000", "--seed", seed, "-o", &path]);
        fs::read(path).expect("a database")
    };
    assert!(make("p.tdb", "7") == make("q.tdb", "7"));
    assert!(make("r.tdb", "7") != make("s.tdb", "8"));
    let info = printed(&["info", "-i", &sample.beside("p.tdb"), "--json"]);
    assert!(info.contains("\"events\":5000"), "{info}");
}
