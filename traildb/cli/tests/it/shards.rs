//! Many databases as one.

use std::{
    ffi::{OsStr, OsString},
    fs,
    os::unix::ffi::OsStrExt,
    path::Path,
};

use serde_json::Value as Json;

use traildb::Builder;

use crate::support::{Sample, fixtures, printed, run, stderr, tdb, three, uuid};

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

/// Where a member of a package is: its offset, and its size.
pub(crate) fn place(file: &[u8], name: &str) -> (usize, usize) {
    let index = String::from_utf8_lossy(&file[2560..file.len().min(8192)]).into_owned();
    let line = index.lines().find(|line| line.split(' ').next() == Some(name)).expect("a member");
    let mut numbers = line.split(' ').skip(1).map(|n| n.parse::<usize>().expect("a number"));
    (numbers.next().expect("an offset"), numbers.next().expect("a size"))
}

/// Whatever of a database is damaged, it is passed over once, and the others are whole.
#[test]
fn damage_of_any_member_is_passed_over() {
    let sample = three();
    let (logs, path) = (sample.beside("logs"), sample.beside("logs/b.tdb"));
    let sound = fs::read(&path).expect("a database");
    let (a, c) = (sample.beside("logs/a.tdb"), sample.beside("logs/c.tdb"));
    let others = printed(&["dump", &a, &c, "-f", "uuid,time,a"]);
    let filtered = printed(&["dump", &a, &c, "-f", "uuid,time,a", "-F", "b=y b=r"]);
    assert_eq!((others.lines().count(), filtered.lines().count()), (4, 2));
    let damage = |name: &str, at: usize, byte: u8| {
        let mut file = sound.clone();
        let start = place(&file, name).0;
        file[start + at] = byte;
        fs::write(&path, file).expect("room");
    };
    let filter = ["-F", "b=y b=r"];
    let cases = [
        ("a name of a field", ("fields", 0, b'/'), false),
        ("a name, filtered", ("fields", 0, b'/'), true),
        ("the size of a lexicon", ("lexicon.b", 3, 1), false),
        ("the size of a lexicon, filtered", ("lexicon.b", 3, 1), true),
        ("where a value is, filtered", ("lexicon.b", 7, 200), true),
    ];
    for (what, (member, at, byte), is_filtered) in cases {
        damage(member, at, byte);
        let (filter, expected) = match is_filtered {
            true => (&filter[..], &filtered),
            false => (&[][..], &others),
        };
        let args = [&["dump", &logs, "-f", "uuid,time,a"], filter].concat();
        assert_eq!(run(&args).status.code(), Some(1), "{what}: it ends everything");
        let output = run(&[&args[..], &["--keep-going"]].concat());
        assert_eq!(output.status.code(), Some(4), "{what}: {}", stderr(&output));
        assert_eq!(String::from_utf8_lossy(&output.stdout), *expected, "{what}");
        let said = stderr(&output);
        assert_eq!(said.matches("passed over:").count(), 1, "{what}: {said}");
        assert!(said.contains("1 of 3 databases were passed over"), "{what}: {said}");

        let merged = sample.beside("merged.tdb");
        let args = [&["merge", &logs, "-o", &merged, "--keep-going"], filter].concat();
        let output = run(&args);
        assert_eq!(output.status.code(), Some(4), "{what}: {}", stderr(&output));
        let got = printed(&["dump", "-i", &merged, "-f", "uuid,time,a"]);
        assert_eq!(got, *expected, "{what}, merged");
        fs::remove_file(&merged).expect("made above");
    }
    // None is left: nothing is made.
    let merged = sample.beside("merged.tdb");
    let output = run(&["merge", &path, "-o", &merged, "--keep-going", "-F", "b=late"]);
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    assert!(!fs::exists(&merged).expect("a readable directory"));
    let output = run(&["dump", &path, "--keep-going", "-f", "b", "-F", "b=late"]);
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
}

/// Of a database whose value cannot be read, the events before it are there, and that is said.
#[test]
fn a_damaged_value_ends_its_database_alone() {
    let sample = three();
    let (logs, path) = (sample.beside("logs"), sample.beside("logs/b.tdb"));
    let mut file = fs::read(&path).expect("a database");
    // Of `b` the values are `bb` and `late`: the offset of the second is 0.
    let at = place(&file, "lexicon.b").0 + 8;
    assert!(file[at..at + 4] != [0; 4]);
    file[at..at + 4].fill(0);
    fs::write(&path, &file).expect("room");
    let (one, two) = (uuid(1), uuid(2));
    // The first value ends where the second starts, so no event of it can be read.
    let expected = format!("{one} 10 x y \n{two} 1   \n{two} 20 p  \n{two} 30 q r \n");
    let args = ["dump", &logs, "--keep-going", "-f", "uuid,time,a,b,c"];
    let output = run(&args);
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    let trails = run(&["dump", &logs, "--keep-going", "--json-trails", "-f", "b"]);
    let lines = String::from_utf8_lossy(&trails.stdout).into_owned();
    let expected = format!(
        "{{\"uuid\":\"{one}\",\"events\":[[10,\"y\"]]}}\n\
         {{\"uuid\":\"{two}\",\"events\":[[1,\"\"],[20,\"\"],[30,\"r\"]]}}\n"
    );
    assert_eq!(lines, expected);
    let of_json: Vec<serde_json::Result<Json>> = lines.lines().map(serde_json::from_str).collect();
    assert!(of_json.iter().all(Result::is_ok), "{lines}");

    // 2,000 values, the last of which is damaged: most events come before.
    let rows: String = (0..2000).map(|k| format!("{two},{},v{k:04}\n", 1000 + k)).collect();
    fs::remove_file(&path).expect("made above");
    let args = ["make", "-d", ",", "-f", "uuid,time,b", "-o", &path];
    tdb(&args).write_stdin(rows).assert().success();
    let mut file = fs::read(&path).expect("a database");
    let at = place(&file, "lexicon.b").0 + 4 * 2000;
    file[at..at + 4].fill(0);
    fs::write(&path, &file).expect("room");
    let output = run(&["dump", &logs, "--keep-going", "-f", "b"]);
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    let printed_values = String::from_utf8_lossy(&output.stdout).matches('v').count();
    assert_eq!(printed_values, 1998, "the offset ends one value and starts another");
    assert!(stderr(&output).contains("read in part"), "{}", stderr(&output));
    assert!(stderr(&output).contains("1 of these after a part"), "{}", stderr(&output));
    let merged = sample.beside("merged.tdb");
    let output = run(&["merge", &logs, "-o", &merged, "--keep-going"]);
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    assert!(stderr(&output).contains("read in part"), "{}", stderr(&output));
    assert_eq!(printed(&["dump", "-i", &merged, "-f", "b"]).matches('v').count(), 1998);
    assert_eq!(printed(&["dump", "-i", &merged, "-f", "a", "-F", "a!="]), "x\np\nq\n");
    let whole = run(&["merge", &logs, "-o", &sample.beside("none.tdb")]);
    assert_eq!(whole.status.code(), Some(1));
    assert!(!stderr(&whole).contains("read in part"), "nothing stays: {}", stderr(&whole));
}

/// To a file system names are bytes.
#[test]
fn names_and_values_of_any_bytes() {
    let sample = three();
    let at = |name: &[u8]| Path::new(&sample.beside("logs")).join(OsStr::from_bytes(name));
    let odd = at(b"b\xe9.tdb");
    fs::rename(sample.beside("logs/b.tdb"), &odd).expect("made a moment ago");
    let run = |command: &str, args: &[&OsStr]| {
        let output = tdb(&[command]).args(args).output().expect("the command starts");
        assert_eq!(output.status.code(), Some(0), "{command} {args:?}: {}", stderr(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let logs = sample.beside("logs");
    let (logs, pattern) = (OsStr::new(&logs), at(b"b\xe9*"));
    assert_eq!(run("dump", &[logs, "-f".as_ref(), "time".as_ref()]).lines().count(), 7);
    for input in [odd.as_os_str(), pattern.as_os_str()] {
        assert_eq!(run("dump", &["-i".as_ref(), input]).lines().count(), 3);
    }
    let mut list = OsString::from("@");
    list.push(sample.beside("list"));
    fs::write(sample.beside("list"), [odd.as_os_str().as_bytes(), b"\n"].concat()).expect("room");
    assert_eq!(run("dump", &[&list]).lines().count(), 3);
    assert!(run("info", &[logs]).contains("b\u{fffd}.tdb"));
    assert!(run("verify", &[odd.as_os_str()]).starts_with("sound"));
    // Its index is beside it, and used.
    run("index", &["-i".as_ref(), odd.as_os_str()]);
    assert!(at(b"b\xe9.tdb.tdbidx").exists());
    let query: [&OsStr; 4] = ["-F".as_ref(), "c=z".as_ref(), "--json".as_ref(), odd.as_os_str()];
    let json: Json = serde_json::from_str(&run("query", &query)).expect("JSON");
    assert_eq!((&json["events"], &json["databases_indexed"]), (&1.into(), &1.into()));
    // What is made, and of what.
    let (rows, made, out) = (at(b"rows\xe9"), at(b"made\xe9"), at(b"out\xe9"));
    let row = [uuid(1).to_string().as_bytes(), b" 1 \xe9\n"].concat();
    fs::write(&rows, [row.as_slice(), row.as_slice()].concat()).expect("room");
    let fields: [&OsStr; 4] = ["-f".as_ref(), "uuid,time,a".as_ref(), "-i".as_ref(), rows.as_ref()];
    let output: [&OsStr; 2] = ["-o".as_ref(), made.as_os_str()];
    run("make", &[&fields[..], &output].concat());
    assert!(at(b"made\xe9.tdb").exists());
    let filter = OsStr::from_bytes(b"a=\xe9");
    let plain_and_compat: [&[&OsStr]; 2] = [&[], &["--compat".as_ref()]];
    for compat in plain_and_compat {
        let out: [&OsStr; 2] = ["-o".as_ref(), out.as_os_str()];
        let args: [&OsStr; 4] = ["-i".as_ref(), made.as_os_str(), "-F".as_ref(), filter];
        run("dump", &[&args[..], &out, compat].concat());
        let printed = fs::read(at(b"out\xe9")).expect("made a moment ago");
        assert_eq!(printed, [row.as_slice(), row.as_slice()].concat());
        fs::remove_file(at(b"out\xe9")).expect("made a moment ago");
    }
    let mut uuids = OsString::from("@");
    uuids.push(at(b"uuids\xe9"));
    fs::write(at(b"uuids\xe9"), uuid(1).to_string()).expect("room");
    let args: [&OsStr; 4] = ["-u".as_ref(), uuids.as_os_str(), "-i".as_ref(), made.as_os_str()];
    assert_eq!(run("query", &args).lines().next(), Some("events    2 of 2 (100.00 %)"));
}

/// Whoever names one twice, by a list and a link say, is told.
#[test]
fn a_database_that_is_named_again_is_told() {
    let sample = three();
    let (logs, link) = (sample.beside("logs"), sample.beside("logs/link.tdb"));
    std::os::unix::fs::symlink(sample.beside("logs/a.tdb"), &link).expect("a link");
    let output = run(&["query", &logs]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stderr(&output).contains("link.tdb is named again, and counts"), "{}", stderr(&output));
    let output = run(&["query", &logs, &logs]);
    assert!(stderr(&output).contains("link.tdb and 4 more"), "{}", stderr(&output));
    fs::remove_file(&link).expect("made above");
    assert_eq!(stderr(&run(&["query", &logs])), "");
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

/// Databases of random events, each of some of four fields in some order: what `tdb merge` makes of them is
/// what a list of all events says.
#[test]
fn a_merge_is_the_union_of_random_databases() {
    const FIELDS: [&str; 4] = ["a", "b", "c", "d"];
    let sample = Sample::new(&[]);
    for seed in 0..40u64 {
        let mut state = seed;
        let mut random = |below: u64| {
            // SplitMix64.
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let z = (state ^ state >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
            (z ^ z >> 31) % below
        };
        let mut all: Vec<(u8, u64, [String; 4])> = Vec::new();
        let (mut names, mut inputs) = (Vec::new(), Vec::new());
        for n in 0..1 + random(4) {
            let mut some: Vec<usize> = (0..4).filter(|_| random(3) > 0).collect();
            if random(2) == 0 {
                some.reverse();
            }
            let fields: Vec<&str> = some.iter().map(|&field| FIELDS[field]).collect();
            let mut builder = Builder::new(&fields).expect("good names");
            for _ in 0..random(60) {
                let (trail, time) = (random(5) as u8, random(8) << random(40));
                let mut values: [String; 4] = Default::default();
                for &field in &some {
                    let value = random(6);
                    values[field] = if value == 0 { String::new() } else { format!("v{value}") };
                }
                let own: Vec<&String> = some.iter().map(|&field| &values[field]).collect();
                builder.add(uuid(trail), time, &own).expect("a good event");
                all.push((trail, time, values));
            }
            let path = sample.beside(&format!("{seed}-{n}.tdb"));
            builder.finish(&path).expect("a database");
            inputs.push(path);
            names.push(fields);
        }
        // Equal times in the order of the databases, and within one of addition.
        all.sort_by_key(|&(trail, time, _)| (trail, time));
        let mut union = names[0].clone();
        if names.iter().any(|fields| *fields != union) {
            union =
                FIELDS.iter().copied().filter(|f| names.iter().flatten().any(|n| n == f)).collect();
        }
        let mut expected =
            ["uuid", "time"].into_iter().chain(union.clone()).collect::<Vec<_>>().join(",");
        for (trail, time, values) in &all {
            expected += &format!("\n{},{time}", uuid(*trail));
            for name in &union {
                let at = FIELDS.iter().position(|field| field == name).expect("one of four");
                expected += &format!(",{}", values[at]);
            }
        }
        let merged = sample.beside(&format!("{seed}.tdb"));
        let threads = (1 + seed % 2).to_string();
        let mut args = vec!["merge", "-T", &threads, "-o", &merged];
        args.extend(inputs.iter().map(String::as_str));
        printed(&args);
        let got = printed(&["dump", "-i", &merged, "-d", ",", "--csv-header"]);
        assert_eq!(got, expected + "\n", "seed {seed}: {names:?}");
        printed(&["verify", "-i", &merged, "--strict"]);
    }
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
