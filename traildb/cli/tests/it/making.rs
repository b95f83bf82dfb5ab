//! `tdb make` and `tdb synth`.

use std::fs;

use crate::support::{
    Sample, anonymous_peak_of, fixtures, peak_of, printed, printed_bytes, run, stderr, tdb, uuid,
};

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
    let input = format!("{} 1\nxyz 2\n{} 3\n{} 4 5\nzz 5\n{}\n", uuid(1), uuid(1), "-", uuid(2));
    let output = tdb(&args).write_stdin(input).output().expect("the command starts");
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("passed over 4 of 6 lines"), "{text}");
    let table: Vec<Vec<&str>> =
        text.lines().skip(2).map(|line| line.split_whitespace().take(4).collect()).collect();
    assert_eq!(table, [vec!["3", "2", "column", "1:"], vec!["1", "6", "the", "time"]], "{text}");
    let info = printed(&["info", "-i", &made, "--json"]);
    assert!(info.contains("\"events\":2"), "{info}");
    let again = run(&["make", "-i", "/dev/null", "-o", &made]);
    assert_eq!(again.status.code(), Some(1), "a database is never overwritten");
}

/// What a row was given before it was passed over must not fill the columns that the next one lacks.
#[test]
fn a_row_passed_over_leaves_nothing_to_the_next() {
    let sample = Sample::new(&[]);
    for (k, row) in ["xyz,1,p,q", "00,x,p,q"].into_iter().enumerate() {
        let made = sample.beside(&format!("made{k}"));
        let options = ["make", "--skip-bad-input", "-d", ",", "-f", "uuid,time,a,b", "-o", &made];
        tdb(&options).write_stdin(format!("{row}\n{},2,r\n", uuid(1))).assert().success();
        let json = printed(&["dump", "-i", &made, "-j"]);
        assert!(json.contains(r#""a": "r", "b": """#), "{row}: {json}");
    }
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

/// Makes a database of `input` and gives its trails, a line each.
fn made(sample: &Sample, name: &str, args: &[&str], input: impl Into<Vec<u8>>) -> String {
    let path = sample.beside(name);
    let args = [&["make", "-o", &path], args].concat();
    tdb(&args).write_stdin(input).assert().success();
    printed(&["dump", "-i", &path, "--json-trails"])
}

fn one_trail(events: &str) -> String {
    format!("{{\"uuid\":\"{}\",\"events\":[{events}]}}\n", uuid(1))
}

#[test]
fn columns_are_taken_by_place_number_and_name() {
    let sample = Sample::new(&[]);
    let row = format!("x,{},5,y,z", uuid(1));
    let header = "p,who,when,q,r\n";
    let cases: [(&str, &[&str], String, &str); 5] = [
        ("by number", &["-f", "2:uuid,3:time,5:r,1:p"], row.clone(), r#"[5,"z","x"]"#),
        (
            "by the header's names",
            &["--csv-header", "-f", "who:uuid,when:time,r,p"],
            format!("{header}{row}"),
            r#"[5,"z","x"]"#,
        ),
        (
            "by number past a header",
            &["--csv-header", "-f", "2:uuid,3:time,4:q"],
            format!("{header}{row}\n"),
            r#"[5,"y"]"#,
        ),
        (
            "a header as other programs write it",
            &["--csv-header"],
            format!("\u{feff}time,\"uuid\",a\r\n5,{},\"b, c\"\r\n\r\n", uuid(1)),
            r#"[5,"b, c"]"#,
        ),
        ("missing columns are empty", &["-f", "3:time,2:uuid,9:a"], row, r#"[5,""]"#),
    ];
    for (k, (what, options, input, expected)) in cases.into_iter().enumerate() {
        let options = [&["-d", ","], options].concat();
        assert_eq!(made(&sample, &format!("m{k}"), &options, input), one_trail(expected), "{what}");
    }
}

/// What comes to be there while events are read is not overwritten either.
#[test]
fn a_database_that_came_in_between_is_not_overwritten() {
    use std::{io::Write as _, process::Stdio};

    let sample = Sample::new(&[]);
    for (k, format) in ["pkg", "dir"].iter().enumerate() {
        let (fifo, made) =
            (sample.beside(&format!("fifo{k}")), sample.beside(&format!("m{k}.tdb")));
        let status = std::process::Command::new("mkfifo").arg(&fifo).status().expect("mkfifo");
        assert!(status.success());
        let child = std::process::Command::new(assert_cmd::cargo::cargo_bin("tdb"))
            .args(["make", "-i", &fifo, "-o", &made, "--tdb-format", format])
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command starts");
        // This waits for the command to open its input, which it does after it has looked.
        let mut rows = fs::File::options().write(true).open(&fifo).expect("a pipe");
        fs::write(&made, "somebody else's").expect("room");
        rows.write_all(format!("{} 1\n", uuid(1)).as_bytes()).expect("it reads");
        drop(rows);
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(stderr(&output).contains("not overwritten"), "{}", stderr(&output));
        assert_eq!(fs::read(&made).expect("a file"), b"somebody else's");
    }
}

/// One key for two fields would fill one of them alone.
#[test]
fn a_key_of_json_goes_to_one_field() {
    let sample = Sample::new(&[]);
    let made = sample.beside("made.tdb");
    let args = ["make", "-j", "-f", "uuid,time,title:a,title:b", "-o", &made];
    let input = format!("{{\"uuid\":\"{}\",\"time\":1,\"title\":\"x\"}}\n", uuid(1));
    let output = tdb(&args).write_stdin(input).output().expect("the command starts");
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("\"title\" is named twice"), "{}", stderr(&output));
    assert!(!fs::exists(&made).expect("a readable directory"));
}

#[test]
fn json_values_stay_as_they_are_written() {
    let sample = Sample::new(&[]);
    let event = |rest: &str| format!("{{\"id\":\"{}\",\"ts\":5,{rest}}}\n", uuid(1));
    let input = [
        event(r#""a":1.0,"b":"x""#),
        event(r#""a":12345678901234567890123,"b":true"#),
        event(r#""a":null,"b":"\u017c\n\"""#),
        event(r#""b":{"hex":"FFc3"},"other":{"a":[1]}"#),
        event(r#""a":"first","a":"last""#),
        "\n".to_owned(),
    ];
    let options = ["-j", "-f", "id:uuid,ts:time,a,b"];
    let expected = one_trail(
        "[5,\"1.0\",\"x\"],[5,\"12345678901234567890123\",\"true\"],[5,\"\",\"\u{17c}\\n\\\"\"],\
         [5,\"\",{\"hex\":\"ffc3\"}],[5,\"last\",\"\"]",
    );
    assert_eq!(made(&sample, "j", &options, input.concat()), expected);
    for bad in [r#""a":[1]"#, r#""a":{"hex":"f"}"#, r#""a":{"x":"f"}"#, r#""a":1}{"#, r#""a":tru"#]
    {
        let path = sample.beside("bad");
        let args = [&["make", "-o", &path], &options[..]].concat();
        let output = tdb(&args).write_stdin(event(bad)).output().expect("the command starts");
        assert_eq!(output.status.code(), Some(1), "{bad}: {}", stderr(&output));
        assert!(stderr(&output).contains("stdin: line 1"), "{bad}: {}", stderr(&output));
    }
}

#[test]
fn compat_reads_as_the_c_tool_does() {
    let sample = Sample::new(&[]);
    let input = format!("{} 5 \"a b\"\r\n", uuid(1));
    let got = made(&sample, "c", &["--compat", "-f", "uuid,time,a,b"], input);
    assert_eq!(got, one_trail(r#"[5,"\"a","b\"\r"]"#));
    // A row ends at its first NUL byte.
    let input = format!("{} 5 x\0y z\n{} 6 p q\0\n", uuid(1), uuid(1));
    let got = made(&sample, "cn", &["--compat", "-f", "uuid,time,a,b"], input.clone());
    assert_eq!(got, one_trail(r#"[5,"x",""],[6,"p","q"]"#));
    let got = made(&sample, "n", &["-f", "uuid,time,a,b"], input);
    assert_eq!(got, one_trail(r#"[5,"x\u0000y","z"],[6,"p","q\u0000"]"#));
    let input = format!("{{\"uuid\":\"{}\",\"time\":\"5\",\"a\":\"\\n\"}}\n", uuid(1));
    let got = made(&sample, "cj", &["--compat", "-j", "-f", "uuid,time,a"], input);
    assert_eq!(got, one_trail(r#"[5,"\\n"]"#));
}

/// With a header and without, in both forms; in a file of two bytes there is none.
#[test]
fn a_byte_order_mark_is_passed_over() {
    let sample = Sample::new(&[]);
    let (row, header) = (format!("{},5\n", uuid(1)), "uuid,time\n");
    let object = format!("{{\"uuid\":\"{}\",\"time\":5}}\n", uuid(1));
    let cases: [(&str, &[&str], String); 3] = [
        ("CSV", &["-d", ","], row.clone()),
        ("a header", &["-d", ",", "--csv-header"], format!("{header}{row}")),
        ("JSON", &["-j"], object),
    ];
    for (k, (what, options, input)) in cases.into_iter().enumerate() {
        let marked = format!("\u{feff}{input}");
        assert_eq!(made(&sample, &format!("p{k}"), options, input), one_trail("[5]"), "{what}");
        assert_eq!(made(&sample, &format!("m{k}"), options, marked), one_trail("[5]"), "{what}");
    }
    // One that begins the first value is part of it, and stays.
    let marked = format!("\"\u{feff}x\",{},5\n", uuid(1));
    let options = ["-d", ",", "-f", "a,uuid,time"];
    let expected = one_trail("[5,\"\u{feff}x\"]");
    assert_eq!(made(&sample, "v", &options, marked.clone()), expected);
    let dumped = printed(&["dump", "-i", &sample.beside("v"), "-d", ",", "-f", "a,uuid,time"]);
    assert_eq!(dumped, marked);
    assert_eq!(made(&sample, "again", &options, dumped), expected);
    let args = ["make", "--compat", "-d", ",", "-o", &sample.beside("c")];
    let output = tdb(&args).write_stdin(format!("\u{feff}{row}")).output().expect("it starts");
    assert_eq!(output.status.code(), Some(1), "to the C tool it is part of the UUID");
    let args = ["make", "-d", ",", "--skip-bad-input", "-o", &sample.beside("two")];
    let output = tdb(&args).write_stdin("1\n").output().expect("the command starts");
    assert!(stderr(&output).contains("passed over 1 of 1 lines"), "{}", stderr(&output));
}

#[test]
fn trails_can_be_chosen() {
    let sample = Sample::new(&[]);
    let input = format!("{} 1\n{} 2\n{} 3\n", uuid(1), uuid(2), uuid(1));
    let got = made(&sample, "u", &["-u", &uuid(1).to_string()], input);
    assert_eq!(got, one_trail("[1],[3]"));
}

/// Rows that lie across the blocks in which the input is read, on one thread and on two.
#[test]
fn threads_and_blocks_do_not_show() {
    let sample = Sample::new(&[]);
    let mut input = String::new();
    for k in 0..60_000u32 {
        let value = match k % 3 {
            0 => format!("plain{k}{}", "-".repeat(60)),
            1 => format!("\"quoted, {k}\nand \"\"more\"\"\""),
            _ => String::new(),
        };
        input.push_str(&format!("{:x},{},{value}\n", k % 1000 * 7 + 1, k));
    }
    assert!(input.len() > 2 << 20);
    let make = |name: &str, threads: &str| {
        let path = sample.beside(name);
        let args = ["make", "-d", ",", "-f", "uuid,time,a", "-T", threads, "-o", &path];
        tdb(&args).write_stdin(input.clone()).assert().success();
        fs::read(path + ".tdb").expect("a database")
    };
    assert!(make("one", "1") == make("two", "2"));
    let lines = printed(&["dump", "-i", &sample.beside("one"), "-j", "-f", "a,time"]);
    assert_eq!(lines.lines().count(), 60_000);
    let expected = r#"{"a": "quoted, 31\nand \"more\"", "time": "31"}"#;
    assert!(lines.lines().any(|line| line == expected));
}

#[test]
fn a_database_does_not_go_to_stdout() {
    let output = tdb(&["make", "-o", "-"]).write_stdin("").output().expect("the command starts");
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
}

#[test]
fn threads_memory_and_where_temporary_files_go_change_no_byte() {
    let sample = Sample::new(&[]);
    let csv = sample.beside("rows.csv");
    let row = |n: u32| format!("{},{n},a{},b{}\n", uuid((n % 50) as u8), n % 9, n / 7);
    fs::write(&csv, (0..20_000).map(row).collect::<String>()).expect("room");
    let make = |name: &str, options: &[&str]| {
        let made = sample.beside(name);
        let args = ["make", "-i", &csv, "-d", ",", "-f", "uuid,time,a,b", "-o", &made];
        let output = run(&[&args[..], options].concat());
        (output.status.code(), stderr(&output), fs::read(made).ok())
    };
    let there = sample.beside("");
    let plain = make("plain.tdb", &[]);
    assert_eq!(plain.0, Some(0), "{}", plain.1);
    let same: [&[&str]; 4] = [
        &["-T", "1"],
        &["-T", "3", "--memory", "0"],
        &["--memory", "64MiB", "--temp-dir", &there],
        &["--bigrams", "auto"],
    ];
    for (k, options) in same.into_iter().enumerate() {
        assert!(make(&format!("same{k}.tdb"), options) == plain, "{options:?}");
    }
    let off = make("off.tdb", &["--bigrams", "off"]);
    assert!(off.0 == Some(0) && off == make("no.tdb", &["--no-bigrams"]), "{}", off.1);

    let wrong: [(&[&str], i32, &str); 3] = [
        (&["--memory", "1MiB"], 2, "64 MiB"),
        (&["--bigrams", "maybe"], 2, "bigrams"),
        (&["--no-bigrams", "--bigrams", "on"], 2, "cannot be used with"),
    ];
    for (k, (options, code, part)) in wrong.into_iter().enumerate() {
        let (got, said, made) = make(&format!("wrong{k}.tdb"), options);
        assert!(got == Some(code) && said.contains(part), "{options:?}: {said}");
        assert!(made.is_none(), "{options:?}");
    }
}

/// Four times the memory that is allowed: what parses the rows, and hands them on, has its part in it.
#[test]
fn rows_of_four_times_the_memory() {
    const MEMORY: u64 = 64 << 20;
    let sample = Sample::new(&[]);
    let cases: [(&str, &[&str], u32, u64); 2] = [
        ("short rows", &["-d", ",", "-f", "uuid,time,a"], 1, 4 * MEMORY / 9),
        ("long rows", &["-d", ",", "-f", "uuid,time,a"], 200, MEMORY / 50),
    ];
    for (k, (what, options, repeat, rows)) in cases.into_iter().enumerate() {
        let made = sample.beside(&format!("made{k}.tdb"));
        let args = ["make", "-T", "2", "--memory", "64MiB", "-o", &made];
        let value = "v".repeat(repeat as usize);
        let peak = peak_of(&[&args[..], options].concat(), |input| {
            (0..rows).try_for_each(|n| writeln!(input, "{:x},{},{value}", n % 4000, n % 100))
        });
        println!("{what}: peak {} MiB", peak >> 20);
        assert!(peak > MEMORY / 4, "{what}: not seen");
        assert!(peak <= MEMORY + MEMORY / 10, "{what}: {} MiB", peak >> 20);
        let info = printed(&["info", "-i", &made, "--json"]);
        assert!(info.contains(&format!("\"events\":{rows}")), "{what}: {info}");
    }
}

/// What a log has: a few bytes in many rows, of many trails, with values that come again. All of the program
/// counts.
#[test]
fn many_small_rows_keep_to_the_memory() {
    const MEMORY: u64 = 64 << 20;
    let sample = Sample::new(&[]);
    let made = sample.beside("made.tdb");
    let fields = ["-d", ",", "-f", "uuid,time,a,b"];
    for threads in ["1", "2"] {
        let args = ["make", "-T", threads, "--memory", "64MiB", "-o", &made];
        let peak = peak_of(&[&args[..], &fields].concat(), |input| {
            (0..3_000_000u64).try_for_each(|n| {
                let random = n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20;
                let (trail, time) = (random % 50_000, 1_450_000_000 + random % 10_000_019);
                writeln!(input, "{trail:032x},{time},{},{}", random % 50, random % 4999)
            })
        });
        println!("{threads} threads: peak {} KiB", peak >> 10);
        assert!(peak > MEMORY / 2, "not seen");
        assert!(peak <= MEMORY + MEMORY / 10, "{threads} threads: {} KiB", peak >> 10);
        fs::remove_file(&made).expect("made a moment ago");
    }
}

/// Local inputs are mapped, and their pages are the system's to take back: what counts is the rest.
#[test]
fn a_merge_of_local_databases_keeps_to_its_memory() {
    const MEMORY: u64 = 64 << 20;
    let sample = Sample::new(&[]);
    let csv = sample.beside("part.csv");
    let mut inputs = Vec::new();
    for k in 0..4u64 {
        let rows: String = (60_000 * k..60_000 * (k + 1))
            .map(|n| {
                let value = format!("{:020}", n.wrapping_mul(0x9E37_79B9_7F4A_7C15)).repeat(15);
                format!("{},{n},{value},b{}\n", uuid((n % 200) as u8), n % 7)
            })
            .collect();
        fs::write(&csv, rows).expect("room");
        let input = sample.beside(&format!("{k}.tdb"));
        printed(&["make", "-i", &csv, "-d", ",", "-f", "uuid,time,a,b", "-o", &input]);
        inputs.push(input);
    }
    let made = sample.beside("merged.tdb");
    let mut args = vec!["merge", "--memory", "64MiB", "-T", "2", "-o", &made];
    args.extend(inputs.iter().map(String::as_str));
    let peak = anonymous_peak_of(&args);
    println!("peak {} KiB", peak >> 10);
    assert!(peak > MEMORY / 2, "not seen");
    assert!(peak <= MEMORY + MEMORY / 10, "{} KiB", peak >> 10);
}

/// A line of a few bytes becomes an event of as many values as there are fields.
#[test]
fn short_lines_of_many_fields_take_little_memory() {
    let sample = Sample::new(&[]);
    let fields: String = (0..16_000).map(|n| format!(",f{n}")).collect();
    let fields = format!("uuid,time{fields}");
    let args = ["make", "-j", "-f", &fields, "-o", &sample.beside("made"), "--memory", "64MiB"];
    let peak = peak_of(&args, |input| {
        (0..4000)
            .try_for_each(|n| writeln!(input, "{{\"uuid\":\"{n:x}\",\"time\":{n},\"f{n}\":\"v\"}}"))
    });
    println!("peak {} MiB", peak >> 20);
    assert!(peak <= 100 << 20, "{} MiB", peak >> 20);
}

#[test]
fn a_key_of_json_may_be_a_number() {
    let sample = Sample::new(&[]);
    let event = "{\"uuid\":\"1\",\"time\":5,\"404\":\"x\",\"status\":\"y\"}\n";
    let cases: [(&[&str], &str); 2] = [(&[], "5 x\n"), (&["--compat"], "5 y\n")];
    for (k, (compat, expected)) in cases.into_iter().enumerate() {
        let made = sample.beside(&format!("made{k}"));
        let args = [&["make", "-j", "-f", "uuid,time,404:status", "-o", &made], compat].concat();
        tdb(&args).write_stdin(event).assert().success();
        assert_eq!(printed(&["dump", "-i", &made, "-f", "time,status"]), expected, "{compat:?}");
    }
}

#[test]
fn none_of_the_uuids_makes_nothing() {
    let sample = Sample::new(&[(1, 10, b"x", b"y")]);
    let (absent, there) = (uuid(9).to_string(), uuid(1).to_string());
    let made = sample.beside("made.tdb");
    let make = ["make", "-o", &made, "-u"];
    let merge = ["merge", &sample.path(), "-o", &made, "-u"];
    let query = ["query", &sample.path(), "-u"];
    for args in [&make[..], &merge, &query] {
        let ask = |uuids: &str| {
            let output =
                tdb(&[args, &[uuids]].concat()).write_stdin(format!("{there} 1\n")).output();
            output.expect("the command starts")
        };
        let output = ask(&absent);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(3), "{args:?}: {text}");
        assert!(text.contains("none of the 1 UUIDs") && output.stdout.is_empty(), "{text}");
        assert!(!fs::exists(&made).expect("a look"), "{args:?}: a database was made");
        let output = ask(&format!("{absent},{there}"));
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
        if args[0] != "query" {
            fs::remove_file(&made).expect("it was made");
        }
    }
}

#[test]
fn outputs_that_cannot_be_meant() {
    let sample = Sample::new(&[(1, 10, b"x", b"y")]);
    fs::create_dir(sample.beside("folder")).expect("a directory");
    fs::write(sample.beside("precious"), "text").expect("room");
    fs::write(sample.beside("header"), "uuid,time,a b\n").expect("room");
    let slash = sample.beside("folder/");
    let no_folder = sample.beside("none/");
    let made = sample.beside("made");
    let cases: [(&[&str], i32, &str); 13] = [
        (&["make", "-f", "uuid,time,a b", "-o", &made], 2, "a b"),
        (&["make", "-f", "uuid,time,a,a", "-o", &made], 2, "\"a\""),
        // The header is input.
        (
            &["make", "--csv-header", "-d", ",", "-i", &sample.beside("header"), "-o", &made],
            1,
            "a b",
        ),
        // Nobody's password is told.
        (&["make", "-i", "https://user:secret@h/k?sig=secret", "-o", &made], 2, "https://h/k: "),
        (&["dump", "-i", &sample.path(), "-o", "https://user:secret@h/k"], 2, "https://h/k: "),
        (&["make", "-o", "/dev/null"], 1, "neither a file nor a directory"),
        (&["make", "-o", &slash], 1, "ends in `/`"),
        (&["merge", &sample.path(), "-o", &no_folder], 1, "ends in `/`"),
        (&["merge", &sample.path(), "-o", &sample.beside("folder")], 1, "a directory is there"),
        (&["make", "--tdb-format", "dir", "-o", &slash], 1, "exists already"),
        (&["synth", "--events", "10", "-o", &sample.beside("precious")], 1, "not overwritten"),
        (&["dump", "-i", &sample.path(), "-o", "s3://b/k"], 2, "local files"),
        (&["make", "-i", "s3://b/k", "-o", &sample.beside("made")], 2, "local files"),
    ];
    for (args, code, said) in cases {
        let output = tdb(args).write_stdin("").output().expect("the command starts");
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
        assert!(text.contains(said) && !text.contains("panicked"), "{args:?}: {text}");
        assert!(!text.contains("secret"), "{args:?}: {text}");
    }
    assert_eq!(fs::read_dir(sample.beside("folder")).expect("a directory").count(), 0);
    assert_eq!(fs::read_to_string(sample.beside("precious")).expect("text"), "text");
    assert!(!fs::exists("/dev/null.tdb").expect("a look"));
    // A name as long as names may be.
    let long = sample.beside(&format!("{}.tdb", "n".repeat(251)));
    tdb(&["make", "-o", &long]).write_stdin(format!("{} 1\n", uuid(1))).assert().success();
    assert!(fs::exists(&long).expect("a look"));
}

#[test]
fn an_error_in_a_string_of_json_is_shown_in_its_line() {
    let sample = Sample::new(&[]);
    let good = "{\"uuid\":\"1\",\"time\":1,\"a\":\"x\"}";
    let bad = "  {\"uuid\":\"1\",\"time\":1,\"a\":\"\\ud83d\"}";
    let made = sample.beside("made");
    let args = ["make", "-j", "-f", "uuid,time,a", "-o", &made];
    let output = tdb(&args).write_stdin(format!("{good}\n{bad}\n")).output().expect("it starts");
    let text = stderr(&output);
    let column = text.split("column ").nth(1).and_then(|rest| rest.split(':').next()?.parse().ok());
    let column: usize = column.expect("a column");
    assert!(text.contains("line 2") && (27..=34).contains(&column), "{text}");
}

#[test]
fn values_may_begin_like_options() {
    let sample = Sample::new(&[]);
    let made = sample.beside("made");
    let args = ["make", "-f", "-dash,uuid,time", "-o", &made];
    tdb(&args).write_stdin(format!("v {} 1\nw {} 2\n", uuid(1), uuid(1))).assert().success();
    assert_eq!(printed(&["dump", "-i", &made, "-F", "-dash=w", "-f", "-dash"]), "w\n");
    // Of every option that takes a path, as with the C library's tool.
    let run_there = |args: &[&str]| {
        let output = tdb(args).current_dir(sample.beside("")).output().expect("the command starts");
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
        output.stdout
    };
    fs::write(sample.beside("-rows"), format!("{} 1\n", uuid(1))).expect("room");
    run_there(&["make", "-i", "-rows", "-o", "-made"]);
    run_there(&["index", "-i", "-made", "-o", "-index"]);
    let dump = ["dump", "-i", "-made", "-F", "time>0", "--index-path", "-index", "-f", "time"];
    assert_eq!(run_there(&dump), b"1\n");
    run_there(&["dump", "-i", "-made", "-o", "-out"]);
    run_there(&["merge", "-i", "-made", "-o", "-merged"]);
    assert!(fs::exists(sample.beside("-merged.tdb")).expect("a look"));
}
