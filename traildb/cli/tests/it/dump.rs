//! `tdb dump` and `tdb info` of local databases.

use std::{
    io::Read,
    process::{Command, Stdio},
};

use crate::support::{Sample, fixtures, left_out, printed, printed_bytes, run, stderr, uuid};

/// Everything that CSV and JSON have to quote.
const NASTY: &[(u8, u64, &[u8], &[u8])] = &[
    (1, 10, b"plain", b"two words"),
    (1, 11, b"", b"comma,"),
    (1, 12, b"say \"hi\"", b"line\nbreak"),
    (2, 20, b"back\\slash\t", b"\xff\xfe"),
    (2, 21, "\u{17c}".as_bytes(), b"nul\0nul"),
];

#[test]
fn golden_files_come_out_byte_for_byte() {
    let directory = tempfile::TempDir::new().expect("a temporary directory");
    for fixture in fixtures(directory.path()) {
        let path = fixture.path.to_str().expect("a plain path");
        let got = printed(&["dump", "-i", path, "--json-trails"]);
        assert!(got == fixture.lines, "{}: not the bytes of the .jsonl", fixture.name);
    }
}

#[test]
fn a_path_is_found_without_its_ending() {
    let sample = Sample::new(NASTY);
    let (short, long) = (sample.beside("x"), sample.path());
    assert_eq!(printed(&["info", "-i", &short]), printed(&["info", "-i", &long]));
}

#[test]
fn formats() {
    let sample = Sample::new(NASTY);
    let (one, two) = (uuid(1), uuid(2));
    let trail = |lines: &str| lines.replace("U1", &one.to_string()).replace("U2", &two.to_string());
    let cases: [(&str, &[&str], &[u8]); 7] = [
        (
            "CSV as the C tool separates it, quoted",
            &[],
            b"U1 10 plain \"two words\"\nU1 11  comma,\nU1 12 \"say \"\"hi\"\"\" \"line\nbreak\"\n\
              U2 20 back\\slash\t \xff\xfe\nU2 21 \xc5\xbc nul\0nul\n",
        ),
        (
            "CSV with commas, a header, some fields",
            &["-c", "-d", ",", "--csv-header", "-f", "b,time"],
            b"b,time\ntwo words,10\n\"comma,\",11\n\"line\nbreak\",12\n\xff\xfe,20\nnul\0nul,21\n",
        ),
        (
            "a lone empty field is no empty line",
            &["-f", "a", "-d", "\\t"],
            b"plain\n\"\"\n\"say \"\"hi\"\"\"\n\"back\\slash\t\"\n\xc5\xbc\n",
        ),
        (
            "JSON",
            &["-j"],
            br#"{"uuid": "U1", "time": "10", "a": "plain", "b": "two words"}
{"uuid": "U1", "time": "11", "a": "", "b": "comma,"}
{"uuid": "U1", "time": "12", "a": "say \"hi\"", "b": "line\nbreak"}
{"uuid": "U2", "time": "20", "a": "back\\slash\t", "b": {"hex":"fffe"}}
"#,
        ),
        (
            "JSON without empty values",
            &["-j", "--json-no-empty", "-f", "a,time"],
            br#"{"a": "plain", "time": "10"}
{"time": "11"}
{"a": "say \"hi\"", "time": "12"}
{"a": "back\\slash\t", "time": "20"}
"#,
        ),
        (
            "CSV with the bytes of the C tool",
            &["--compat", "-d", ",", "--csv-header"],
            b"uuid,time,a,b\nU1,10,plain,two words\nU1,11,,comma,\nU1,12,say \"hi\",line\nbreak\n\
              U2,20,back\\slash\t,\xff\xfe\nU2,21,\xc5\xbc,nul\n",
        ),
        (
            "JSON with the bytes of the C tool; a field named again moves",
            &["--compat", "-j", "-f", "b,a,b"],
            b"{\"b\": \"\", \"a\": \"plain\", \"b\": \"two words\"}\n\
              {\"b\": \"\", \"a\": \"\", \"b\": \"comma,\"}\n\
              {\"b\": \"\", \"a\": \"say \"hi\"\", \"b\": \"line\nbreak\"}\n\
              {\"b\": \"\", \"a\": \"back\\slash\t\", \"b\": \"\xff\xfe\"}\n\
              {\"b\": \"\", \"a\": \"\xc5\xbc\", \"b\": \"nul\"}\n",
        ),
    ];
    for (what, options, expected) in cases {
        let got = printed_bytes(&[&["dump", "-i", &sample.path()], options].concat());
        let got = String::from_utf8_lossy(&got).into_owned();
        let expected = trail(&String::from_utf8_lossy(expected));
        // The last event has a NUL byte, which has a test of its own in JSON.
        let same = got == expected
            || got.starts_with(&expected) && got[expected.len()..].lines().count() == 1;
        assert!(same, "{what}:\n{got}\nexpected:\n{expected}");
    }
    let last = printed(&["dump", "-i", &sample.path(), "-j", "-f", "b"]);
    assert_eq!(last.lines().last(), Some(r#"{"b": "nul\u0000nul"}"#));
}

#[test]
fn trails_with_some_fields() {
    let sample = Sample::new(&[(1, 10, b"x", b"y"), (1, 12, b"x", b"")]);
    let got = printed(&["dump", "-i", &sample.path(), "--json-trails", "-f", "b"]);
    assert_eq!(got, format!("{{\"uuid\":\"{}\",\"events\":[[10,\"y\"],[12,\"\"]]}}\n", uuid(1)));
}

#[test]
fn selections_come_in_the_order_of_the_database_each_once() {
    let sample = Sample::new(&[(1, 1, b"p", b""), (2, 2, b"q", b""), (3, 3, b"r", b"")]);
    let (one, two, three) = (uuid(1), uuid(2), uuid(3));
    let file = sample.beside("uuids.txt");
    std::fs::write(&file, format!("{three}\r\n\n{one}\n{three}")).expect("room");
    let unknown = uuid(9);
    let cases = [
        ("one", two.to_string(), vec!["q"], ""),
        ("two and one of them again", format!("{three},{one},{three}"), vec!["p", "r"], ""),
        ("a file", format!("@{file}"), vec!["p", "r"], ""),
        ("upper case", three.to_string().to_uppercase(), vec!["r"], ""),
        ("one of two unknown", format!("{unknown},{two}"), vec!["q"], "1 of 2 UUIDs"),
    ];
    for (what, list, expected, said) in cases {
        let output = run(&["dump", "-i", &sample.path(), "-f", "a", "-u", &list]);
        let got = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(got.lines().collect::<Vec<_>>(), expected, "{what}");
        assert_eq!(output.status.code(), Some(0), "{what}");
        let note = stderr(&output);
        assert!(
            if said.is_empty() { note.is_empty() } else { note.contains(said) },
            "{what}: {note}"
        );
    }
}

#[test]
fn an_output_file_is_new_and_whole() {
    let sample = Sample::new(NASTY);
    let file = sample.beside("out.csv");
    assert_eq!(printed(&["dump", "-i", &sample.path(), "-o", &file]), "");
    let whole = std::fs::read(&file).expect("the output");
    assert_eq!(whole, printed_bytes(&["dump", "-i", &sample.path()]));
    let again = run(&["dump", "-i", &sample.path(), "-o", &file]);
    assert_eq!(again.status.code(), Some(1));
    assert_eq!(std::fs::read(&file).expect("the output"), whole, "left as it was");
}

/// Devices were refused as files that exist already.
#[test]
fn a_device_is_written_to() {
    let sample = Sample::new(NASTY);
    let whole = printed_bytes(&["dump", "-i", &sample.path()]);
    // A pipe here.
    assert_eq!(printed_bytes(&["dump", "-i", &sample.path(), "-o", "/dev/stdout"]), whole);
    assert_eq!(printed(&["dump", "-i", &sample.path(), "-o", "/dev/null"]), "");
    let full = run(&["dump", "-i", &sample.path(), "-o", "/dev/full"]);
    assert_eq!(full.status.code(), Some(1));
    assert!(stderr(&full).contains("/dev/full: No space left on device"), "{}", stderr(&full));
}

/// A file has its name when it is whole, whatever ends the command.
#[test]
fn a_dump_that_is_killed_leaves_no_file_that_looks_whole() {
    use std::{fs, process};

    let sample = Sample::new(&[]);
    let (path, out) = (sample.beside("s.tdb"), sample.beside("out/s.csv"));
    printed(&["synth", "--events", "300000", "-o", &path]);
    let whole = printed(&["dump", "-i", &path]);
    let folder = sample.beside("out");
    fs::create_dir(&folder).expect("a directory");
    let names = || {
        let entries = fs::read_dir(&folder).expect("a directory");
        let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("an entry").file_name();
        entries.map(|entry| name(entry).into_string().expect("plain")).collect::<Vec<_>>()
    };
    let mut killed = 0;
    for _ in 0..20 {
        let mut child = process::Command::new(assert_cmd::cargo::cargo_bin("tdb"))
            .args(["dump", "-i", &path, "-o", &out])
            .spawn()
            .expect("the command starts");
        while names().is_empty() && child.try_wait().expect("a child").is_none() {
            std::thread::yield_now();
        }
        child.kill().expect("a child");
        child.wait().expect("a child");
        if fs::exists(&out).expect("a readable directory") {
            assert!(fs::read(&out).expect("a file") == whole.as_bytes(), "cut short");
            fs::remove_file(&out).expect("it is there");
        } else {
            killed += 1;
        }
    }
    assert!(killed > 0, "it was always quicker");
    printed(&["dump", "-i", &path, "-o", &out]);
    assert_eq!(names(), ["s.csv"], "what the killed ones left is gone");
    assert!(fs::read(&out).expect("a file") == whole.as_bytes());
    let again = run(&["dump", "-i", &path, "-o", &out]);
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("not overwritten"), "{}", stderr(&again));
}

#[test]
fn info_says_what_there_is() {
    let sample = Sample::new(NASTY);
    let text = printed(&["info", "-i", &sample.path(), "--json"]);
    for part in [
        r#""trails":2"#,
        r#""events":5"#,
        r#""time_min":10"#,
        r#""time_max":21"#,
        r#"{"bytes":50,"name":"a","values":4}"#,
        r#"{"bytes":62,"name":"b","values":5}"#,
        r#""name":"trails.codebook""#,
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let text = printed(&["info", "-i", &sample.path()]);
    let lines = [
        "trails    2",
        "events    5 (2.5 a trail)",
        "time      10 to 21",
        "  a           4     50           12.5",
    ];
    for line in lines {
        assert!(text.lines().any(|l| l == line), "{line:?} in {text}");
    }
    let empty = printed(&["info", "-i", &Sample::new(&[]).path()]);
    assert!(empty.contains("no events"), "{empty}");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let directory = tempfile::TempDir::new().expect("a temporary directory");
    let path = directory.path().join("s.tdb");
    let path = path.to_str().expect("a plain path");
    printed(&["synth", "--events", "50000", "-o", path]);
    let mut child = Command::new(env!("CARGO_BIN_EXE_tdb"))
        .args(["dump", "-i", path])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts");
    let mut first = [0; 10];
    let mut stdout = child.stdout.take().expect("piped");
    stdout.read_exact(&mut first).expect("some output");
    drop(stdout);
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(141));
    assert_eq!(stderr(&output), "");
}

/// The options of the C library's `dump`, all that go together.
#[test]
fn options_of_the_c_tool_are_known() {
    let sample = Sample::new(NASTY);
    let (path, one) = (sample.path(), uuid(1).to_string());
    let out = sample.beside("out.csv");
    let csv = ["dump", "-c", "-d", ",", "-i", &path, "-o", &out, "-T", "2", "-u", &one, "-v"];
    let more = ["-f", "time,a", "-F", "a!=", "--no-index", "--csv-header"];
    let output = run(&[&csv[..], &more].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let said = stderr(&output);
    assert!(said.starts_with("tdb: 2 events of 1 trails printed in "), "{said}");
    let text = std::fs::read_to_string(&out).expect("made a moment ago");
    assert_eq!(text, "time,a\n10,plain\n12,\"say \"\"hi\"\"\"\n");
    let long = ["dump", "--json", "--json-no-empty", "--input", &path, "--verbose"];
    let output = run(&[&long[..], &["--uuids", &one, "--fields", "a", "--threads", "1"]].concat());
    assert!(stderr(&output).contains("3 events of 1 trails"), "{}", stderr(&output));
    assert_eq!(output.stdout.iter().filter(|&&byte| byte == b'\n').count(), 3);
    let quiet = run(&["dump", "-i", &path]);
    assert_eq!(stderr(&quiet), "");
}

/// On a terminal, which `script` makes: how many trails, how fast, and how long it will still take.
#[test]
fn a_bar_on_a_terminal_says_how_fast_and_what_is_left() {
    let directory = tempfile::TempDir::new().expect("a temporary directory");
    let name = |name: &str| directory.path().join(name).to_str().expect("a plain path").to_owned();
    let (path, out) = (name("s.tdb"), name("out.csv"));
    printed(&["synth", "--events", "50000", "--trails", "4000", "-o", &path]);
    let program = env!("CARGO_BIN_EXE_tdb");
    let line = |to: &str| format!("stty cols 120; '{program}' dump -i '{path}' -o '{to}'");
    let seen = |to: &str| {
        let mut script = Command::new("script");
        script.args(["-qec", &line(to), "/dev/null"]).env("TERM", "xterm").stdin(Stdio::null());
        script.output()
    };
    let output = match seen(&out) {
        Err(error) => return left_out("a bar on a terminal", &format!("script: {error}")),
        Ok(output) => output,
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("/4,000 trails ") && text.contains("/s, "), "{text:?}");
    assert!(text.contains("s left"), "{text:?}");
    // Nobody reads "40,774.7617/s": whole ones, or tenths of fewer than ten.
    let rates = text.split("/s, ").filter_map(|before| before.rsplit_once(" trails "));
    let rates: Vec<&str> = rates.map(|(_, rate)| rate).collect();
    let is_plain = |rate: &&str| match rate.split_once('.') {
        None => rate.chars().all(|c| c.is_ascii_digit() || c == ','),
        Some((whole, tenths)) => whole.len() == 1 && tenths.len() == 1,
    };
    assert!(!rates.is_empty() && rates.iter().all(is_plain), "{rates:?} of {text:?}");
    assert!(std::fs::metadata(&out).expect("made a moment ago").len() > 50_000);
    // Not among the rows, where these go to the terminal, and not where there is none.
    let text = seen("-").expect("it was there").stdout;
    assert!(!String::from_utf8_lossy(&text).contains("s left"));
    assert_eq!(stderr(&run(&["dump", "-i", &path, "-o", &name("quiet.csv")])), "");
}
