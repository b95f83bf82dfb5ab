//! `tdb query`, and `--filter` of the commands that print and merge.

use std::fs;

use serde_json::Value as Json;

use crate::shards::place;
use crate::support::{Sample, printed, run, stderr, three, uuid};

fn asked(args: &[&str]) -> Json {
    let text = printed(&[&["query", "--json"], args].concat());
    serde_json::from_str(&text).expect("one JSON object")
}

/// Made-up events, and all of them as `tdb dump` prints them.
struct Events {
    sample: Sample,
    all: Vec<Json>,
}

impl Events {
    fn new() -> Events {
        let sample = Sample::new(&[]);
        let path = sample.beside("s.tdb");
        printed(&["synth", "--events", "20000", "--titles", "300", "-o", &path]);
        let lines = printed(&["dump", "-i", &path, "-j"]);
        let all = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        Events { sample, all }
    }

    fn path(&self) -> String {
        self.sample.beside("s.tdb")
    }
}

#[test]
fn filters_find_what_a_look_at_every_event_finds() {
    let events = Events::new();
    let path = events.path();
    let text = |event: &Json, field: &str| event[field].as_str().expect("text").to_owned();
    let time = |event: &Json| text(event, "time").parse::<u64>().expect("a number");
    let (user, title) = (text(&events.all[17], "user"), text(&events.all[17], "title"));
    let other = text(&events.all[4000], "title");
    let middle = time(&events.all[9000]);
    type Naive<'n> = Box<dyn Fn(&Json) -> bool + 'n>;
    let cases: Vec<(String, Naive<'_>)> = vec![
        (format!("title={title}"), Box::new(|e| text(e, "title") == title)),
        (
            format!("title={title} title={other}"),
            Box::new(|e| [&title, &other].contains(&&text(e, "title"))),
        ),
        (
            format!("title!={title} & ip="),
            Box::new(|e| text(e, "title") != title && text(e, "ip").is_empty()),
        ),
        (
            format!("!(title=\"{title}\" user=\"{user}\") & ip!="),
            Box::new(|e| {
                text(e, "title") != title && text(e, "user") != user && !text(e, "ip").is_empty()
            }),
        ),
        (format!("time>={middle}"), Box::new(move |e| time(e) >= middle)),
        ("title=nobody has this".replace(' ', "_"), Box::new(|_| false)),
        (String::new(), Box::new(|_| true)),
    ];
    for (k, (filter, naive)) in cases.iter().enumerate() {
        let expected: Vec<&Json> = events.all.iter().filter(|event| naive(event)).collect();
        let dumped = printed(&["dump", "-i", &path, "-j", "-F", filter]);
        let got: Vec<Json> =
            dumped.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert!(got.iter().eq(expected.iter().copied()), "{filter}: other events");
        let mut users: Vec<String> = expected.iter().map(|e| text(e, "uuid")).collect();
        users.dedup();
        for threads in ["1", "2"] {
            let json = asked(&["-i", &path, "-F", filter, "-T", threads]);
            assert_eq!(json["events"].as_u64(), Some(expected.len() as u64), "{filter}");
            assert_eq!(json["trails"].as_u64(), Some(users.len() as u64), "{filter}");
            assert_eq!(json["users"].as_u64(), Some(users.len() as u64), "{filter}");
            let times = expected.iter().map(|event| time(event));
            assert_eq!(json["first"].as_u64(), times.clone().min(), "{filter}");
            assert_eq!(json["last"].as_u64(), times.max(), "{filter}");
        }
        let listed = printed(&["query", "-i", &path, "-F", filter, "--trails"]);
        let listed: Vec<&str> =
            listed.lines().map(|line| line.split(' ').next().expect("a UUID")).collect();
        assert_eq!(listed, users, "{filter}");
        let merged = events.sample.beside(&format!("m{k}.tdb"));
        printed(&["merge", "-i", &path, "-F", filter, "-o", &merged]);
        let again = printed(&["dump", "-i", &merged, "-j"]);
        assert!(again == dumped, "{filter}: a merge has other events");
    }
    let until = asked(&["-i", &path, "--from", "2010-01", "--until", &middle.to_string()]);
    let from = 1_262_304_000;
    let expected = events.all.iter().filter(|e| (from..middle).contains(&time(e))).count();
    assert_eq!(until["events"].as_u64(), Some(expected as u64));
}

#[test]
fn files_of_values() {
    let sample = Sample::new(&[(1, 1, b"x", b"p q"), (1, 2, b"y", b""), (2, 3, b"z", b"")]);
    let (path, list) = (sample.path(), sample.beside("list"));
    fs::write(&list, "x\nz\n").expect("room");
    let filter = format!("a=@{list}");
    let json = asked(&["-i", &path, "-F", &filter, "--filter-files", "lines"]);
    assert_eq!((json["events"].as_u64(), json["users"].as_u64()), (Some(2), Some(2)));
    assert_eq!(asked(&["-i", &path, "-F", &filter])["events"].as_u64(), Some(0), "one value");
    fs::write(&list, "p q").expect("room");
    let filter = format!("b=@{list}");
    assert_eq!(asked(&["-i", &path, "-F", &filter])["events"].as_u64(), Some(1));
}

#[test]
fn shards_are_asked_as_one() {
    let sample = three();
    let logs = sample.beside("logs");
    let json = asked(&[&logs]);
    let number = |name: &str| json[name].as_u64().expect("a number");
    assert_eq!((number("events"), number("trails"), number("users")), (7, 5, 3));
    assert_eq!((number("first"), number("last"), number("databases")), (1, 30, 3));
    // Two of the three lack the field.
    let json = asked(&[&logs, "-F", "c=cc c=z"]);
    assert_eq!((json["events"].as_u64(), json["users"].as_u64()), (Some(2), Some(2)));
    let json = asked(&[&logs, "-F", "c!=cc"]);
    assert_eq!(json["events"].as_u64(), Some(6), "what has no field has no such value");
    let text = printed(&["query", &logs, "--trails", "-u", &format!("{},{}", uuid(2), uuid(3))]);
    assert_eq!(text, format!("{} 5 1 30\n{} 1 5 5\n", uuid(2), uuid(3)));
    let text = printed(&["query", &logs]);
    assert!(text.contains("events    7 of 7 (100.00 %)"), "{text}");
    let text = printed(&["dump", &logs, "-F", "b=r c=z", "-f", "time,b,c"]);
    assert_eq!(text, "30 r \n5  z\n");

    fs::write(sample.beside("logs/aa.tdb"), "no database").expect("room");
    assert_eq!(run(&["query", &logs]).status.code(), Some(1));
    let output = run(&["query", &logs, "--keep-going", "--json"]);
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    let json: Json = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(json["events"].as_u64(), Some(7));
    assert_eq!(json["passed_over"].as_array().map(Vec::len), Some(1));
}

/// A count that lacks an unknown part is no count.
#[test]
fn of_a_database_with_one_bad_trail_nothing_is_counted() {
    let sample = three();
    let (logs, path) = (sample.beside("logs"), sample.beside("logs/b.tdb"));
    let mut file = fs::read(&path).expect("a database");
    // A literal of field 3, where there are two, in the first of its two trails.
    let at = place(&file, "trails.data").0;
    file[at] = file[at] & 7 | 0b0011_0000;
    fs::write(&path, file).expect("room");
    let other = uuid(3).to_string();
    let sound = asked(&["-i", &path, "-u", &other]);
    assert_eq!(sound["events"].as_u64(), Some(1), "the other trail can be read");

    assert_eq!(run(&["query", &logs]).status.code(), Some(1));
    for threads in ["1", "2"] {
        let output = run(&["query", &logs, "--keep-going", "--json", "-T", threads]);
        assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
        let said = stderr(&output);
        assert!(said.contains("b.tdb") && said.contains("1 of 3 databases"), "{said}");
        let json: Json = serde_json::from_slice(&output.stdout).expect("JSON");
        let number = |name: &str| json[name].as_u64().expect("a number");
        assert_eq!((number("events"), number("trails"), number("users")), (4, 3, 2), "{json}");
        assert_eq!((number("events_all"), number("trails_all")), (4, 3), "{json}");
        assert_eq!(number("databases"), 2, "{json}");
    }
    let output = run(&["query", &logs, "--keep-going", "--trails"]);
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(text, format!("{} 1 10 10\n{} 3 1 30\n", uuid(1), uuid(2)));
}

#[test]
fn filters_that_cannot_be_meant() {
    let sample = three();
    let (logs, one) = (sample.beside("logs"), sample.beside("logs/a"));
    let cases: [(&[&str], i32, &str); 8] = [
        (&["query", "-i", &one, "-F", "a"], 2, "^"),
        (&["query", "-i", &one, "-F", "a=x)"], 2, "no parenthesis is open"),
        (&["query", "-i", &one, "-F", "a=x & zz=y"], 2, "\"zz\""),
        (&["query", &logs, "-F", "a=x & zz=y"], 2, "\"zz\""),
        (&["dump", &logs, "-F", "zz=y"], 2, "\"zz\""),
        (&["dump", "-i", &one, "-F", "a=@/no/such/file"], 1, "/no/such/file"),
        (&["query", "-i", &one, "--from", "soon"], 2, "--from"),
        (&["query", "-i", &one, "--until", "1 a=x"], 2, "--until"),
    ];
    for (args, code, said) in cases {
        let output = run(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(said), "{args:?}: {}", stderr(&output));
    }
    // The C library's tool lets it pass.
    assert_eq!(printed(&["dump", "--compat", "-i", &one, "-F", "zz=y"]), "");
    assert_eq!(printed(&["dump", "--compat", "-i", &one, "-F", ""]), "", "as an empty clause");
    assert_eq!(printed(&["dump", "--compat", "-i", &one, "-F", "a=\"x\""]), "", "with quotes");
    assert_eq!(printed(&["dump", "-i", &one, "-F", "a=\"x\""]).lines().count(), 1);
}
