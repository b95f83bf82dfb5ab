//! Many databases as one.

use std::fs;

use serde_json::Value as Json;

use crate::support::{fixtures, printed, run, stderr, tdb, three, uuid};

#[test]
fn a_dump_merges_trails_by_uuid_and_events_by_time() {
    let sample = three();
    let logs = sample.beside("logs");
    let got = printed(&["dump", "-i", &logs, "-d", ",", "--csv-header"]);
    let (one, two, three) = (uuid(1), uuid(2), uuid(3));
    let expected = format!(
        "uuid,time,a,b,c\n\
         {one},10,x,y,\n\
         {two},1,,,\n\
         {two},20,p,,\n\
         {two},25,,bb,cc\n\
         {two},30,q,r,\n\
         {two},30,,late,\n\
         {three},5,,,z\n"
    );
    assert_eq!(got, expected);
    for inputs in [
        vec!["dump", "-d", ",", "--csv-header", "LOGS/*.tdb"],
        vec!["dump", "-d", ",", "--csv-header", "-T", "1", "LOGS/[a-c].tdb"],
        vec!["dump", "-d", ",", "--csv-header", "-i", "LOGS/a", "LOGS/b", "LOGS/c.tdb"],
    ] {
        let args: Vec<String> = inputs.iter().map(|arg| arg.replace("LOGS", &logs)).collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        assert_eq!(printed(&args), expected, "{args:?}");
    }
    let some = printed(&["dump", &logs, "-u", &format!("{three},{one}"), "-f", "time,c,a"]);
    assert_eq!(some, "10  x\n5 z \n");
    let trails = printed(&["dump", &logs, "--json-trails", "-f", "b"]);
    let second = format!(
        "{{\"uuid\":\"{two}\",\"events\":[[1,\"\"],[20,\"\"],[25,\"bb\"],[30,\"r\"],[30,\"late\"]]}}"
    );
    assert_eq!(trails.lines().nth(1), Some(second.as_str()));
}

#[test]
fn a_list_names_databases() {
    let sample = three();
    let list = sample.beside("list.txt");
    let lines = ["a.tdb", "c.tdb"].map(|name| sample.beside(&format!("logs/{name}")));
    fs::write(&list, format!("# two of three\n{}\n", lines.join("\n"))).expect("room");
    let text = printed(&["info", &format!("@{list}"), "--json"]);
    let json: Json = serde_json::from_str(&text).expect("JSON");
    assert_eq!((json["trails"].as_u64(), json["events"].as_u64()), (Some(3), Some(4)));
    assert_eq!((json["time_min"].as_u64(), json["time_max"].as_u64()), (Some(1), Some(30)));
    let text = printed(&["info", &format!("@{list}")]);
    assert!(text.lines().last().is_some_and(|line| line.starts_with("2 databases")), "{text}");
}

#[test]
fn a_bad_database_ends_everything_unless_it_is_passed_over() {
    let sample = three();
    let logs = sample.beside("logs");
    let good = printed(&["dump", &logs]);
    fs::write(sample.beside("logs/aa.tdb"), "no database").expect("room");
    for command in ["dump", "info"] {
        let output = run(&[command, &logs]);
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(stderr(&output).contains("aa.tdb"), "{}", stderr(&output));
        let output = run(&[command, &logs, "--keep-going"]);
        assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
        assert!(stderr(&output).contains("1 of 4 databases"), "{}", stderr(&output));
    }
    let output = run(&["dump", &logs, "--keep-going"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), good);
    let output = run(&["info", &logs, "--keep-going", "--json"]);
    let json: Json = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(json["passed_over"][0]["name"].as_str(), Some(&*sample.beside("logs/aa.tdb")));
}

/// A database whose damage is met half way: the others go on, and what it gave before stays.
#[test]
fn damage_in_the_middle_of_a_dump_leaves_the_others_whole() {
    let sample = three();
    let path = sample.beside("logs/b.tdb");
    let mut file = fs::read(&path).expect("a database");
    let index = String::from_utf8_lossy(&file[2560..4096]).into_owned();
    let line = index.lines().find(|line| line.starts_with("trails.data ")).expect("a member");
    let at: usize = line.split(' ').nth(1).expect("an offset").parse().expect("a number");
    // A literal of field 3, where there are two.
    file[at] = file[at] & 7 | 0b0011_0000;
    fs::write(&path, file).expect("room");
    let logs = sample.beside("logs");
    let output = run(&["dump", &logs, "--keep-going", "-f", "uuid,time,a"]);
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    let (one, two) = (uuid(1), uuid(2));
    let expected = format!("{one} 10 x\n{two} 1 \n{two} 20 p\n{two} 30 q\n");
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    assert_eq!(run(&["dump", &logs]).status.code(), Some(1));

    // Between two events of a trail that others have too: nothing is printed twice.
    let rows: String = (0..400).map(|k| format!("{two},{},v{}\n", 2 * k, k * k)).collect();
    fs::remove_file(&path).expect("made above");
    let args = ["make", "-d", ",", "-f", "uuid,time,b", "-o", &path];
    tdb(&args).write_stdin(rows).assert().success();
    let file = fs::read(&path).expect("a database");
    let index = String::from_utf8_lossy(&file[2560..4096]).into_owned();
    let place = |name: &str| {
        let line = index.lines().find(|line| line.starts_with(name)).expect("a member");
        let mut numbers = line.split(' ').skip(1).map(|n| n.parse::<usize>().expect("a number"));
        (numbers.next().expect("an offset"), numbers.next().expect("a size"))
    };
    let (toc, len) = (place("trails.toc ").0, place("trails.data ").1);
    // The trail is cut where that is inside a symbol, wherever symbols end.
    let cut = (len / 2..len).find(|&cut| {
        let mut file = file.clone();
        file[toc + 4..toc + 8].copy_from_slice(&(cut as u32).to_le_bytes());
        fs::write(&path, file).expect("room");
        let dumped = run(&["dump", "-i", &path]);
        dumped.status.code() == Some(1) && !dumped.stdout.is_empty()
    });
    assert!(cut.is_some(), "every cut of {len} bytes makes a good trail");
    let output = run(&["dump", &logs, "--keep-going", "-f", "uuid,time,a", "--json"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    let of_a = |value: &str| text.matches(&format!("\"a\": \"{value}\"")).count();
    assert_eq!((of_a("p"), of_a("q")), (1, 1), "{text}");
    let lines = text.lines().count();
    assert!((6..404).contains(&lines), "{lines} lines: it stopped neither before nor after");
}

#[test]
fn nothing_found_is_said() {
    let sample = three();
    let output = run(&["dump", &sample.beside("logs/no-*.tdb")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("no database is there"), "{}", stderr(&output));
    let output = run(&["info", "http://host/*.tdb"]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
}

/// Merged and then dumped is the same as dumped together.
#[test]
fn a_merge_has_all_events_of_all_fields() {
    let sample = three();
    let (logs, merged) = (sample.beside("logs"), sample.beside("merged.tdb"));
    printed(&["merge", &logs, "-o", &merged]);
    let fields = ["-f", "uuid,time,a,b,c"];
    let together = printed(&[&["dump", &logs], &fields[..]].concat());
    assert_eq!(printed(&[&["dump", "-i", &merged], &fields[..]].concat()), together);
    printed(&["verify", "-i", &merged, "--strict"]);
    let again = run(&["merge", &logs, "-o", &merged]);
    assert_eq!(again.status.code(), Some(1), "a database is never overwritten");
    assert_eq!(run(&["merge", "-o", &sample.beside("none")]).status.code(), Some(2));

    // Fields that differ come in the order of their names, equal ones as they are.
    let (first, twice) = (sample.beside("logs/b"), sample.beside("twice"));
    printed(&["merge", &first, &first, "-o", &twice, "-u", &uuid(3).to_string()]);
    assert_eq!(printed(&["dump", "-i", &twice]), format!("{0} 5  z\n{0} 5  z\n", uuid(3)));
    let swapped = sample.beside("swapped");
    let args = ["make", "-d", ",", "-f", "uuid,time,c,b", "-o", &swapped];
    tdb(&args).write_stdin(format!("{},7,see,bee\n", uuid(3))).assert().success();
    let sorted = sample.beside("sorted");
    printed(&["merge", &swapped, &first, "-o", &sorted, "-u", &uuid(3).to_string()]);
    let header = printed(&["dump", "-i", &sorted, "--csv-header"]);
    assert_eq!(header, format!("uuid time b c\n{0} 5  z\n{0} 7 bee see\n", uuid(3)));
}

#[test]
fn golden_files_merge_with_themselves() {
    let directory = tempfile::TempDir::new().expect("a temporary directory");
    for fixture in fixtures(directory.path()) {
        let path = fixture.path.to_str().expect("a plain path");
        let merged = directory.path().join(format!("{}-merged.tdb", fixture.name));
        let merged = merged.to_str().expect("a plain path");
        printed(&["merge", path, "-o", merged]);
        let got = printed(&["dump", "-i", merged, "--json-trails"]);
        assert!(got == fixture.lines, "{}: not the same after a merge", fixture.name);
    }
}
