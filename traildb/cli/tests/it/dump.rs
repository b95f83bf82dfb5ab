//! `tdb dump` and `tdb info` of local databases.

use std::{
    io::Read,
    process::{Command, Stdio},
};

use traildb::Builder;

use crate::support::{
    Sample, anonymous_peak_of, fixtures, left_out, printed, printed_bytes, run, stderr, uuid,
};

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
    for threads in ["1", "4"] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tdb"))
            .args(["dump", "-i", path, "-T", threads])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command starts");
        let mut first = [0; 10];
        let mut stdout = child.stdout.take().expect("piped");
        stdout.read_exact(&mut first).expect("some output");
        drop(stdout);
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(output.status.code(), Some(141), "{threads} threads");
        assert_eq!(stderr(&output), "");
    }
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

/// `make` has another bar: of the bytes of its input.
#[test]
fn the_bar_of_make_says_how_fast_and_what_is_left() {
    let directory = tempfile::TempDir::new().expect("a temporary directory");
    let name = |name: &str| directory.path().join(name).to_str().expect("a plain path").to_owned();
    let (path, rows, made) = (name("s.tdb"), name("rows.csv"), name("made.tdb"));
    printed(&["synth", "--events", "50000", "--trails", "4000", "-o", &path]);
    printed(&["dump", "-i", &path, "-o", &rows]);
    let fields = ["-f", "uuid,time,user,ip,title"];
    let program = env!("CARGO_BIN_EXE_tdb");
    let line =
        format!("stty cols 120; '{program}' make {} -i '{rows}' -o '{made}'", fields.join(" "));
    let mut script = Command::new("script");
    script.args(["-qec", &line, "/dev/null"]).env("TERM", "xterm").stdin(Stdio::null());
    let output = match script.output() {
        Err(error) => return left_out("the bar of make", &format!("script: {error}")),
        Ok(output) => output,
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{text}");
    // How much of how much, how fast, and how long it will take.
    let bytes = std::fs::metadata(&rows).expect("made a moment ago").len() as f64;
    let whole = format!("/{:.2} MiB ", bytes / f64::from(1 << 20));
    for part in [&whole, "B/s, ", "s left"] {
        assert!(text.contains(part), "{part:?} in {text:?}");
    }
    assert!(std::fs::metadata(&made).expect("made a moment ago").len() > 50_000);
    // Not where there is no terminal.
    let quiet = name("quiet.tdb");
    let output = run(&[&["make", "-i", &rows, "-o", &quiet], &fields[..]].concat());
    assert_eq!(stderr(&output), "");
}

/// A database of made-up events, and one of three trails that go over several batches each: the fields
/// `title` and `more`.
fn large() -> Sample {
    let sample = Sample::new(NASTY);
    let made =
        ["synth", "--events", "60000", "--trails", "5000", "--titles", "20000", "--seed", "3"];
    printed(&[&made[..], &["-o", &sample.beside("synth.tdb")]].concat());
    let mut builder = Builder::new(&["title", "more"]).expect("good names");
    for n in 0..90_000u64 {
        let (title, more) = (format!("title \"{}\",", n % 30_000), format!("{}", n % 7));
        let values = [title.as_str(), if n % 3 == 0 { "" } else { &more }];
        builder.add(uuid((n % 3) as u8 + 90), n, &values).expect("a good event");
    }
    builder.finish(sample.beside("long.tdb")).expect("a database");
    sample
}

/// Threads render batches of their own, and what is printed is what one thread prints.
#[test]
fn threads_change_no_byte() {
    let sample = large();
    let (made, long, x) = (sample.beside("synth.tdb"), sample.beside("long.tdb"), sample.path());
    let one = printed(&["query", &made, &long, "-F", "title!=", "--trails"]);
    let some: Vec<&str> =
        one.lines().step_by(7).filter_map(|line| line.split(' ').next()).collect();
    let list = sample.beside("list");
    std::fs::write(&list, some.join("\n")).expect("room");
    let list = format!("@{list}");
    let inputs: [&[&str]; 4] = [&[&made], &[&long], &[&made, &long], &[&long, &x, &made, &x]];
    let options: [&[&str]; 9] = [
        &[],
        &["-d", ",", "--csv-header"],
        &["-f", "title"],
        &["-f", "uuid,title,time,title"],
        &["-j", "--json-no-empty"],
        &["--json-trails"],
        &["--compat"],
        &["-F", "title!= & time>=20000", "-j"],
        &["-u", &list, "--json-trails", "--from", "80000"],
    ];
    for inputs in inputs {
        for options in options {
            let dump = |threads: &str| {
                printed_bytes(&[&["dump", "-T", threads], inputs, options].concat())
            };
            let one = dump("1");
            assert!(one.len() > 1000, "{inputs:?} {options:?}");
            for threads in ["2", "5"] {
                assert!(dump(threads) == one, "{inputs:?} {options:?}, {threads} threads");
            }
        }
    }
}

/// Where a database is damaged, the output ends at the same event, and the same is said: with any number of
/// threads, with and without others to go on with.
#[test]
fn threads_end_where_one_does() {
    let sample = large();
    let (long, made) = (sample.beside("long.tdb"), sample.beside("synth.tdb"));
    let (whole, bad) = (std::fs::read(&made).expect("made a moment ago"), sample.beside("bad.tdb"));
    // What is wrong with a value is met in the midst of a batch: one that ends before it starts.
    let reader = traildb::Reader::open(&made).expect("sound");
    let field = reader.fields().expect("sound").find("title").expect("a field");
    let count = reader.values(field).expect("sound") as u32;
    let head = [count.to_le_bytes(), (4 * (count + 2)).to_le_bytes()].concat();
    let lexicon = whole.windows(8).position(|bytes| bytes == head).expect("the head of a lexicon");
    let places = (1..18).map(|part| whole.len() * part / 18);
    let values = [count / 9, count / 2, count - 5].map(|number| lexicon + 4 * number as usize);
    let (mut ended, mut passed) = (0, 0);
    for at in places.chain(values) {
        let mut bytes = whole.clone();
        let n = if values.contains(&at) { 4 } else { 16 };
        bytes[at..at + n].fill(0xff);
        std::fs::write(&bad, bytes).expect("room");
        for (inputs, layout) in [
            (&["-i", &bad][..], "-c"),
            (&["-i", &bad], "--json-trails"),
            (&["-i", &long, "-i", &bad, "--keep-going"], "-j"),
            (&["-i", &bad, "-i", &long, "--keep-going"], "--json-trails"),
        ] {
            let dump = |threads: &str| {
                let output = run(&[&["dump", "-T", threads, layout], inputs].concat());
                (output.status.code(), stderr(&output), output.stdout)
            };
            let one = dump("1");
            for threads in ["2", "5"] {
                let (code, said, printed) = dump(threads);
                assert_eq!((code, &said), (one.0, &one.1), "{inputs:?} {layout} damaged at {at}");
                assert!(printed == one.2, "{inputs:?} {layout} damaged at {at}, {threads} threads");
            }
            ended += usize::from(one.0 == Some(1) && one.2.len() > 100_000);
            passed += usize::from(one.0 == Some(4) && one.1.contains("in part"));
        }
    }
    assert!(ended > 2 && passed > 2, "{ended} ended in the midst of it, {passed} were passed over");
}

/// However many threads there are, and however long the values: 64 MiB of values and as much of their table
/// for all, and 12 MiB of batches for each.
#[test]
fn threads_share_the_memory_for_values() {
    let sample = Sample::new(&[]);
    let path = sample.beside("values.tdb");
    let mut builder = Builder::new(&["a"]).expect("a good name");
    for n in 0..400_000u64 {
        let random = n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let value = format!("{random:020}").repeat(15);
        builder.add(uuid((n % 50) as u8), n, &[value]).expect("a good event");
    }
    builder.finish(&path).expect("a database");
    for (threads, most) in [("1", 150), ("4", 200)] {
        let args = ["dump", "-i", &path, "-T", threads, "-o", "/dev/null"];
        let peak = anonymous_peak_of(&args) >> 20;
        println!("{threads} threads: {peak} MiB");
        assert!((32..most).contains(&peak), "{threads} threads: {peak} MiB");
    }
}
