//! What is at a name while a database is written to it, and after.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use traildb::{Builder, Error, InputError, Options, Reader, Unfinished, Uuid};

use crate::support::scratch;

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn write(path: &Path, directory: bool, value: &str) -> Result<(), Error> {
    let options = Options::default().directory(directory);
    let mut builder = Builder::with_options(&["a"], options)?;
    builder.add(Uuid::default(), 7, &[value])?;
    builder.finish(path).map(drop)
}

fn value(path: &Path) -> Vec<u8> {
    let reader = Reader::open(path).unwrap();
    let mut trail = reader.trail(0).unwrap();
    let item = trail.next_event().unwrap().unwrap().items[0];
    reader.value(item).unwrap().to_vec()
}

#[test]
fn a_database_replaces_one_of_its_form() {
    let folder = scratch();
    for directory in [false, true] {
        let path = folder.path().join(if directory { "dir" } else { "a.tdb" });
        for text in ["old", "new"] {
            write(&path, directory, text).unwrap();
            assert_eq!(value(&path), text.as_bytes(), "directory: {directory}");
        }
    }
    assert_eq!(names(folder.path()), ["a.tdb", "dir"], "no litter");
}

#[test]
fn what_is_no_database_of_that_form_is_left_alone() {
    let folder = scratch();
    let (home, file) = (folder.path().join("home"), folder.path().join("file"));
    fs::create_dir(&home).unwrap();
    fs::write(home.join("letter.txt"), "dear").unwrap();
    fs::write(&file, "text").unwrap();
    let dir = folder.path().join("dir");
    write(&dir, true, "old").unwrap();
    let cases = [
        ("a folder of letters", &home, true),
        ("a file", &file, true),
        ("a directory", &dir, false),
    ];
    for (what, path, directory) in cases {
        let error = write(path, directory, "new").unwrap_err();
        assert!(matches!(error, Error::File { .. }), "{what}: {error}");
        assert!(error.to_string().contains("there"), "{what}: {error}");
    }
    // A folder in it: not what a builder wrote.
    fs::create_dir(dir.join("more")).unwrap();
    assert!(write(&dir, true, "new").is_err());
    assert_eq!(value(&dir), b"old");
    assert_eq!(names(folder.path()), ["dir", "file", "home"], "no litter");
    assert_eq!(names(&home), ["letter.txt"]);
}

/// Whenever it came to be there: what is not to be replaced stays.
#[test]
fn an_existing_one_is_kept_where_that_is_wanted() {
    let folder = scratch();
    for directory in [false, true] {
        let path = folder.path().join(if directory { "dir" } else { "a.tdb" });
        let write = |text: &str| {
            let options = Options::default().directory(directory).keep_existing(true);
            let mut builder = Builder::with_options(&["a"], options)?;
            builder.add(Uuid::default(), 7, &[text])?;
            builder.finish(&path)
        };
        write("old").unwrap();
        let error = write("new").unwrap_err();
        assert!(error.to_string().contains("not overwritten"), "{error}");
        assert_eq!(value(&path), b"old");
    }
    let path = folder.path().join("late");
    let unfinished = Unfinished::file(&path, false).unwrap();
    fs::write(&path, "came in between").unwrap();
    let error = unfinished.place().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists, "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"came in between");
    assert_eq!(names(folder.path()), ["a.tdb", "dir", "late"], "no litter");
}

/// A name that a package can have and a directory cannot is told before any event is taken.
#[test]
fn a_name_too_long_for_a_file_is_refused_at_once() {
    let names = |len: usize| ["x".repeat(len)];
    let directory = || Options::default().directory(true);
    assert!(Builder::with_options(&names(247), directory()).is_ok());
    for len in [248, 511] {
        let error = Builder::with_options(&names(len), directory()).unwrap_err();
        assert!(matches!(error, Error::Input(InputError::NameTooLong(_))), "{error}");
        assert!(Builder::new(&names(len)).is_ok());
    }
}

#[test]
fn what_dead_writers_left_is_removed_and_what_live_ones_write_is_not() {
    let folder = scratch();
    let path = folder.path().join("a.tdb");
    let (dead, dead_dir) =
        (folder.path().join("a.tdb.1-0.part"), folder.path().join("a.tdb.1-1.part"));
    fs::write(&dead, "half").unwrap();
    fs::create_dir(&dead_dir).unwrap();
    fs::write(dead_dir.join("info"), "half").unwrap();
    let live = folder.path().join("a.tdb.2-0.part");
    let held = fs::File::create(&live).unwrap();
    held.lock().unwrap();
    fs::write(folder.path().join("a.tdb.notes.part"), "mine").unwrap();
    fs::write(folder.path().join("b.tdb.1-0.part"), "of another").unwrap();
    write(&path, false, "new").unwrap();
    let left = ["a.tdb", "a.tdb.2-0.part", "a.tdb.notes.part", "b.tdb.1-0.part"];
    assert_eq!(names(folder.path()), left);
    // A child of another test has our descriptors, and their locks, until it becomes its program.
    held.unlock().unwrap();
    drop(held);
    write(&path, false, "newer").unwrap();
    assert_eq!(names(folder.path()), ["a.tdb", "a.tdb.notes.part", "b.tdb.1-0.part"]);
    assert_eq!(value(&path), b"newer");
}

/// Where the process that is traced writes; set by the test that starts it.
const TRACED: &str = "TRAILDB_TEST_TRACED";

/// Not a test by itself: the other process of the next one.
#[test]
fn traced() {
    let Some(folder) = std::env::var_os(TRACED) else { return };
    for text in ["old", "new"] {
        for directory in [false, true] {
            let path = Path::new(&folder).join(if directory { "dir" } else { "a.tdb" });
            write(&path, directory, text).unwrap();
        }
    }
    let keep = Options::default().keep_existing(true);
    Builder::with_options(&["a"], keep).unwrap().finish(Path::new(&folder).join("b.tdb")).unwrap();
}

/// Killing a process loses nothing that the system has, so only this sees it: before a name is taken, the
/// file, or each member and their directory, is on the disk, and after it the folder is. `strace` looks.
#[test]
fn what_takes_its_name_is_on_the_disk_before_and_its_folder_after() {
    let (folder, log) = (scratch(), scratch());
    let (folder, log) = (folder.path().canonicalize().unwrap(), log.path().join("calls"));
    let strace = |program: &Path| {
        let mut command = Command::new("strace");
        command.args(["-f", "-y", "-qq", "-s", "4096"]);
        command.args(["-e", "trace=fsync,fdatasync,rename,renameat,renameat2,link,linkat"]);
        command.arg("-o").arg(&log).arg(program).stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    if !strace(Path::new("true")).status().is_ok_and(|status| status.success()) {
        assert!(std::env::var_os("CI").is_none(), "strace traces nothing, and CI is set");
        return println!(
            "left out: what is on the disk when: strace is missing, or traces nothing"
        );
    }
    let mut command = strace(&std::env::current_exe().unwrap());
    command.args(["--exact", "placing::traced", "--test-threads=1"]).env(TRACED, &folder);
    assert!(command.status().unwrap().success());

    let calls = fs::read_to_string(&log).unwrap();
    let (mut synced, mut placed) = (Vec::<String>::new(), Vec::<String>::new());
    // The folder whose entry has changed, until it is on the disk.
    let mut open: Option<String> = None;
    for line in calls.lines().filter(|line| line.contains(folder.to_str().unwrap())) {
        if line.contains("sync(") {
            assert!(!line.contains("= -1"), "{line}");
            let path = line.split(['<', '>']).nth(1).unwrap().to_owned();
            if open.as_ref() == Some(&path) {
                open = None;
            }
            synced.push(path);
            continue;
        }
        let mut names = line.split('"').skip(1).step_by(2);
        let (from, to) = (names.next().unwrap(), names.next().unwrap());
        assert_eq!(open, None, "the folder of the one before is not on the disk: {calls}");
        assert!(synced.iter().any(|path| path == from), "{from} is not on the disk: {calls}");
        let members = ["info", "fields", "lexicon.a", "trails.data", "uuids", "version"];
        for member in members.iter().filter(|_| to.ends_with("dir")) {
            let path = format!("{from}/{member}");
            assert!(synced.contains(&path), "{path} is not on the disk: {calls}");
        }
        placed.push(Path::new(to).file_name().unwrap().to_str().unwrap().to_owned());
        open = Some(folder.to_str().unwrap().to_owned());
    }
    assert_eq!(open, None, "the folder is not on the disk: {calls}");
    assert_eq!(placed, ["a.tdb", "dir", "a.tdb", "dir", "b.tdb"], "{calls}");
}

/// Where the process that is to be killed writes; set by the test that starts it.
const VICTIM: &str = "TRAILDB_TEST_VICTIM";

/// Not a test by itself: the other process of the next one.
#[test]
fn victim() {
    let Some(folder) = std::env::var_os(VICTIM) else { return };
    for n in 0u64.. {
        for directory in [false, true] {
            let path = Path::new(&folder).join(if directory { "dir" } else { "a.tdb" });
            write(&path, directory, &n.to_string()).unwrap();
        }
    }
}

#[test]
fn a_killed_writer_leaves_the_old_or_the_new_and_nothing_in_the_way() {
    let folder = scratch();
    let paths = [(folder.path().join("a.tdb"), false), (folder.path().join("dir"), true)];
    for (path, directory) in &paths {
        write(path, *directory, "first").unwrap();
    }
    for round in 0..24u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "placing::victim"])
            .env(VICTIM, folder.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // The first comes to write, however long it takes to start.
        let began = Instant::now();
        while round == 0 && value(&paths[0].0) == b"first" {
            assert!(began.elapsed() < Duration::from_secs(60), "it does not write");
            thread::sleep(Duration::from_millis(1));
        }
        // Moments in no step with what the child does.
        thread::sleep(Duration::from_micros(20_000 + round * 7919 % 23_000));
        child.kill().unwrap();
        child.wait().unwrap();
        for (path, _) in &paths {
            let value = String::from_utf8(value(path)).unwrap();
            assert!(
                value == "first" || value.parse::<u64>().is_ok(),
                "{}: {value}",
                path.display()
            );
        }
    }
    for (path, directory) in &paths {
        write(path, *directory, "last").unwrap();
        assert_eq!(value(path), b"last");
    }
    assert_eq!(names(folder.path()), ["a.tdb", "dir"], "no litter");
}
