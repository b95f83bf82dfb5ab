//! `tdb index`, and the commands that use what it makes.

use std::fs;

use serde_json::Value as Json;

use traildb::{Builder, Uuid};

use crate::support::{Sample, printed, run, stderr, tdb, three, uuid};

/// A made-up database without an index, and one of its users.
fn events() -> (Sample, String, String) {
    let sample = Sample::new(&[]);
    let path = sample.beside("s.tdb");
    printed(&["synth", "--events", "100000", "--titles", "3000", "-o", &path]);
    let line = printed(&["dump", "-i", &path, "-j"]).lines().nth(4321).expect("a line").to_owned();
    let event: Json = serde_json::from_str(&line).expect("JSON");
    let title = event["title"].as_str().expect("text").to_owned();
    (sample, path, title)
}

fn stats(args: &[&str]) -> (String, Json) {
    let output = run(&[args, &["--stats=json"]].concat());
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
    let json = serde_json::from_slice(&output.stderr).expect("one JSON object");
    (String::from_utf8(output.stdout).expect("text"), json)
}

#[test]
fn an_index_changes_no_answer() {
    let (sample, path, title) = events();
    let filter = format!("title=\"{title}\" title=nothing & time>0");
    let url = format!("file://{path}");
    let dump = ["dump", "-i", &path, "-j", "-F", &filter];
    let query = ["query", "-i", &path, "--trails", "-F", &filter];
    let negated = format!("title!=\"{title}\" & ip=");
    let many = ["dump", "-i", &path, "-j", "-F", &negated];
    let before: Vec<String> = [&dump[..], &query, &many].iter().map(|args| printed(args)).collect();
    assert!(!before[0].is_empty() && before[0].lines().count() < 2000);

    let output = run(&["index", "-i", &path, "-v"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stderr(&output).contains("s.tdb.tdbidx"), "{}", stderr(&output));
    for (args, before) in [&dump[..], &query, &many].iter().zip(&before) {
        let (after, cost) = stats(args);
        assert!(after == *before, "{args:?}");
        assert_eq!(cost["databases_indexed"], 1, "{args:?}");
        let (after, cost) = stats(&[args, &["--no-index"][..]].concat());
        assert!(after == *before, "{args:?}");
        assert_eq!(cost["databases_indexed"], 0);
    }
    // Without a filter there is nothing to use it for.
    assert_eq!(stats(&["dump", "-i", &path]).1["databases_indexed"], 0);

    // Over a URL, and one that lies elsewhere: what is fetched is less than without.
    let elsewhere = sample.beside("elsewhere.idx");
    printed(&["index", &url, "-o", &elsewhere, "-T", "2"]);
    assert!(fs::read(&elsewhere).unwrap() == fs::read(format!("{path}.tdbidx")).unwrap());
    let far = ["dump", "-i", &url, "-j", "-F", &filter, "--unit", "4KiB"];
    let (with, cost) = stats(&far);
    let (without, whole) = stats(&[&far[..], &["--no-index"]].concat());
    assert!(with == before[0] && without == before[0]);
    assert_eq!((&cost["databases_indexed"], &whole["databases_indexed"]), (&1.into(), &0.into()));
    let bytes = |json: &Json| json["bytes"].as_u64().expect("a number");
    assert!(bytes(&cost) < bytes(&whole), "{cost} {whole}");
    let named = [&far[..], &["--index-path", &elsewhere]].concat();
    assert!(stats(&named).0 == before[0]);
}

#[test]
fn an_index_that_does_not_fit_is_told_and_not_used() {
    let (sample, path, title) = events();
    printed(&["index", &path]);
    let filter = format!("title=\"{title}\"");
    let other = sample.beside("other.tdb");
    printed(&["synth", "--events", "20000", "--seed", "9", "--titles", "300", "-o", &other]);
    let expected = printed(&["dump", "-i", &other, "-F", &filter]);
    fs::rename(format!("{path}.tdbidx"), format!("{other}.tdbidx")).expect("made above");
    let output = run(&["dump", "-i", &other, "-F", &filter]);
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stdout == expected.as_bytes());
    assert!(stderr(&output).contains("make it again"), "{}", stderr(&output));
    let named = ["--index-path", &format!("{other}.tdbidx")];
    let output = run(&[&["dump", "-i", &other, "-F", &filter], &named[..]].concat());
    assert_eq!(output.status.code(), Some(1), "one that is named must fit");
    let missing = ["--index-path", &sample.beside("nothing")];
    let output = run(&[&["query", "-i", &other, "-F", &filter], &missing[..]].concat());
    assert_eq!(output.status.code(), Some(1), "and be there");
    // Half of it, and then nothing like it.
    let bytes = fs::read(format!("{other}.tdbidx")).unwrap();
    for damaged in [&bytes[..bytes.len() / 2], b"tdbindex"] {
        fs::write(format!("{path}.tdbidx"), damaged).unwrap();
        let before = printed(&["query", "-i", &path, "-F", &filter, "--no-index", "--trails"]);
        let output = run(&["query", "-i", &path, "-F", &filter, "--trails"]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert!(output.stdout == before.as_bytes());
        assert!(stderr(&output).contains("not used"), "{}", stderr(&output));
    }
    // Made again, it fits again.
    printed(&["index", &path]);
    let output = run(&["query", "-i", &path, "-F", &filter, "--stats"]);
    assert!(stderr(&output).contains("used for 1 of 1"), "{}", stderr(&output));
}

/// A database that was made again from values of the same lengths: the index of the one before would
/// not find the new values.
#[test]
fn an_index_from_before_its_database_is_not_used() {
    let sample = Sample::new(&[]);
    // Before the end that tells databases apart: the first of many values differs.
    let make = |path: &str, first: &str| {
        let rest = (0..2000).map(|k| format!("{},{k},user{k:05}\n", uuid(1))).collect::<String>();
        let rows = format!("{},0,{first}\n{rest}", uuid(1));
        let args = ["make", "-d", ",", "-f", "uuid,time,user", "-o", path];
        tdb(&args).write_stdin(rows).assert().success();
    };
    let path = sample.beside("u.tdb");
    make(&path, "alice0000");
    printed(&["index", &path]);
    fs::remove_file(&path).expect("made above");
    make(&path, "bobby0000");
    let query = ["query", "-i", &path, "-F", "user=bobby0000", "--json"];
    let output = run(&query);
    let json: Json = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&json["events"], &json["databases_indexed"]), (&1.into(), &0.into()));
    assert!(stderr(&output).contains("older than its database"), "{}", stderr(&output));
    let index = format!("{path}.tdbidx");
    let output = run(&[&query[..], &["--index-path", &index]].concat());
    assert_eq!(output.status.code(), Some(1), "one that is named must fit");
    assert!(stderr(&output).contains("make it again"), "{}", stderr(&output));
    printed(&["index", &path]);
    let json: Json = serde_json::from_str(&printed(&query)).expect("JSON");
    assert_eq!((&json["events"], &json["databases_indexed"]), (&1.into(), &1.into()));
}

#[test]
fn many_databases_have_an_index_each() {
    let sample = three();
    let logs = sample.beside("logs");
    let before = printed(&["dump", &logs, "-F", "b=late a=x", "-j"]);
    fs::write(sample.beside("logs/aa.tdb"), "no database").expect("room");
    assert_eq!(run(&["index", &logs]).status.code(), Some(1));
    let output = run(&["index", &logs, "--keep-going"]);
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    fs::remove_file(sample.beside("logs/aa.tdb")).expect("written above");
    let (after, cost) = stats(&["dump", &logs, "-F", "b=late a=x", "-j"]);
    assert_eq!((after, &cost["databases_indexed"]), (before, &3.into()));
    let text = printed(&["query", &logs, "-F", "b=late a=x", "--json"]);
    let json: Json = serde_json::from_str(&text).expect("JSON");
    assert_eq!((&json["events"], &json["databases_indexed"]), (&2.into(), &3.into()));
    let merged = sample.beside("merged.tdb");
    printed(&["merge", &logs, "-F", "b=late a=x", "-o", &merged]);
    assert_eq!(printed(&["dump", "-i", &merged]).lines().count(), 2);
}

#[test]
fn nothing_but_an_index_is_overwritten() {
    let (sample, path, _) = events();
    let whole = fs::read(&path).unwrap();
    let output = run(&["index", &path, "-o", &path]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("no index"), "{}", stderr(&output));
    assert!(fs::read(&path).unwrap() == whole);
    let url = format!("file://{path}");
    assert_eq!(run(&["index", &url]).status.code(), Some(2), "a URL cannot be written to");
    let two = ["index", &path, &path, "-o", &sample.beside("x.idx")];
    assert_eq!(run(&two).status.code(), Some(2), "one index for two databases");
    let named = ["query", &path, &path, "-F", "a=", "--index-path", "x"];
    assert_eq!(run(&named).status.code(), Some(2));
}

/// An index says nothing that its database does not: what is damaged in it is told, and does without.
#[test]
fn a_damaged_page_of_an_index_stops_nothing() {
    let (sample, path, title) = events();
    let filter = format!("title=\"{title}\"");
    let dump = ["dump", "-i", &path, "-F", &filter];
    let query = ["query", &path, "-F", &filter, "--trails"];
    let before = [printed(&dump), printed(&query)];
    printed(&["index", &path]);
    let index = format!("{path}.tdbidx");
    let whole = fs::read(&index).expect("made above");
    let merged = sample.beside("merged.tdb");
    let merge = ["merge", &path, "-F", &filter, "-o", &merged];
    let (mut told, pages) = (0, whole.len() / 4096);
    for page in [1, pages / 4, pages / 2, 3 * pages / 4, pages - 1] {
        let mut damaged = whole.clone();
        damaged[page * 4096 + 900] ^= 4;
        fs::write(&index, damaged).expect("room");
        for keep_going in [&[][..], &["--keep-going"]] {
            for (args, expected) in [&dump[..], &query].iter().zip(&before) {
                let output = run(&[args, keep_going].concat());
                assert_eq!(output.status.code(), Some(0), "page {page}: {}", stderr(&output));
                assert!(output.stdout == expected.as_bytes(), "page {page}: {args:?}");
                let text = stderr(&output);
                if !text.is_empty() {
                    told += 1;
                    assert!(text.contains("not used") && text.contains("--no-index"), "{text}");
                    assert!(text.contains("s.tdb.tdbidx"), "{text}");
                }
            }
        }
        printed(&merge);
        let got = printed(&["dump", "-i", &merged]);
        assert_eq!(got.lines().count(), before[0].lines().count(), "page {page}");
        fs::remove_file(&merged).expect("made a moment ago");
    }
    assert!(told > 0, "no page that was damaged is one that is read");
    // One that is named has to be used: of all pages behind the first, some are read.
    let mut damaged = whole.clone();
    damaged[4096..].iter_mut().for_each(|byte| *byte ^= 4);
    fs::write(&index, damaged).expect("room");
    let named = run(&[&query[..], &["--index-path", &index]].concat());
    assert_eq!(named.status.code(), Some(1), "{}", stderr(&named));
    assert!(stderr(&named).contains("s.tdb.tdbidx"), "{}", stderr(&named));
    let plain = run(&query);
    assert_eq!(plain.status.code(), Some(0), "{}", stderr(&plain));
    assert!(plain.stdout == before[1].as_bytes() && stderr(&plain).contains("not used"));
    // What inputs name is looked up once: a pipe tells it no second time. So is what is passed over told.
    let bad = sample.beside("bad.tdb");
    fs::write(&bad, "no database").expect("room");
    let args = ["query", "@/dev/stdin", "-F", &filter, "--trails", "--keep-going"];
    let list = format!("{bad}\n{path}\n");
    let mut told = 0;
    for page in [1, pages / 4, pages / 2, 3 * pages / 4, pages - 1] {
        let mut damaged = whole.clone();
        damaged[page * 4096 + 900] ^= 4;
        fs::write(&index, damaged).expect("room");
        let output = tdb(&args).write_stdin(list.as_str()).output().expect("it starts");
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(4), "page {page}: {text}");
        assert!(output.stdout == before[1].as_bytes(), "page {page}: {text}");
        assert_eq!(text.matches("passed over: ").count(), 1, "page {page}: {text}");
        told += usize::from(text.contains("not used"));
    }
    assert!(told > 0, "no page that was damaged is one that is read");
}

/// Pages are read as the walk goes: one that is met when much is printed, and cannot be taken back, ends
/// its database. Into a file, all begins anew.
#[test]
fn a_damaged_page_that_is_met_late_is_a_loss() {
    let sample = Sample::new(&[]);
    let (path, other) = (sample.beside("many.tdb"), sample.beside("other.tdb"));
    // Of one trail, behind all of those.
    let last = Uuid([0xff; 16]);
    let mut builder = Builder::new(&["a", "b"]).expect("good names");
    builder.add(last, 10, &["x", "y"]).expect("a good event");
    builder.finish(&other).expect("a database");
    let mut builder = Builder::new(&["a", "b"]).expect("good names");
    // Of a list of trails 36 KiB are read at first, a bit for each, and the rest when the walk comes there. A
    // third of them has the value.
    for n in 0..400_000u64 {
        let third = n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        let values = [if third % 3 == 0 { "x" } else { "z" }, "some text"];
        builder.add(Uuid::from_number(u128::from(n) + 1), n, &values).expect("a good event");
    }
    builder.finish(&path).expect("a database");
    printed(&["index", &path]);
    let index = format!("{path}.tdbidx");
    let whole = fs::read(&index).expect("made above");
    let dump = ["dump", "-i", &path, "-i", &other, "-F", "a=x"];
    let expected = printed(&dump);
    assert!(expected.len() > 1 << 20, "{} bytes", expected.len());
    let mut met_late = 0;
    // Three pages and a bit are that rest.
    for page in (1..whole.len() / 4096).step_by(2) {
        let mut damaged = whole.clone();
        damaged[page * 4096 + 900] ^= 4;
        fs::write(&index, damaged).expect("room");
        let output = run(&dump);
        if output.status.code() == Some(0) {
            // It was met early, or never.
            assert!(output.stdout == expected.as_bytes(), "page {page}");
            continue;
        }
        met_late += 1;
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "page {page}: {text}");
        assert!(text.contains("many.tdb.tdbidx") && text.contains("--no-index"), "{text}");
        assert!(output.stdout.len() >= 256 << 10, "page {page}: {} bytes", output.stdout.len());
        assert!(expected.as_bytes().starts_with(&output.stdout), "page {page}");
        let going = run(&[&dump[..], &["--keep-going"]].concat());
        assert_eq!(going.status.code(), Some(4), "page {page}: {}", stderr(&going));
        assert!(stderr(&going).contains("it was read in part"), "{}", stderr(&going));
        let printed = String::from_utf8(going.stdout).expect("text");
        let ends_well = printed.ends_with(&format!("\n{last} 10 x y\n"));
        assert!(ends_well && printed.len() < expected.len(), "page {page}");
        let out = sample.beside("out.csv");
        let into_file = run(&[&dump[..], &["-o", &out]].concat());
        assert_eq!(into_file.status.code(), Some(0), "page {page}: {}", stderr(&into_file));
        assert!(fs::read_to_string(&out).expect("text") == expected, "page {page}");
        fs::remove_file(&out).expect("made above");
    }
    assert!(met_late > 0, "no page is read late");
}
