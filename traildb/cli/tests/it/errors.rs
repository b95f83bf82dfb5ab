//! Exit codes, and what is said.

use std::{
    fs,
    io::{self, Read},
    os::unix::process::ExitStatusExt,
    process::{Command, Stdio},
};

use crate::support::{Sample, fixtures, printed, run, stderr, uuid};

#[test]
fn failures_say_what_is_wrong() {
    let sample = Sample::new(&[(1, 10, b"x", b"y")]);
    let (good, text) = (sample.path(), sample.beside("text.tdb"));
    fs::write(&text, "not a database").expect("room");
    let empty = sample.beside("empty.tdb");
    fs::write(&empty, "").expect("room");
    let directory = sample.beside("");
    let missing = sample.beside("missing");
    let unknown = uuid(7).to_string();
    let nowhere = sample.beside("no/such/directory/out");
    let cases: [(&str, &[&str], i32, &str); 19] = [
        ("a missing file", &["dump", "-i", &missing], 1, "missing"),
        ("no database", &["dump", "-i", &text], 1, "text.tdb"),
        ("an empty file", &["info", "-i", &empty], 1, "empty.tdb"),
        ("a directory without members", &["info", "-i", &directory], 1, &directory),
        ("a device", &["info", "-i", "/dev/null"], 1, "not a regular file"),
        ("stdin", &["dump", "-i", "-"], 2, "stdin"),
        ("an unknown scheme", &["dump", "-i", "ftp://h/x"], 1, "ftp"),
        ("a missing file by URL", &["dump", "-i", "file:///no/such/file"], 1, "/no/such/file"),
        ("a bad UUID", &["dump", "-i", &good, "-u", "12"], 2, "32 hexadecimal digits"),
        ("no UUID known", &["dump", "-i", &good, "-u", &unknown], 3, "none of the 1 UUIDs"),
        ("a missing list", &["dump", "-i", &good, "-u", "@/no/such/list"], 1, "/no/such/list"),
        ("an unknown field", &["dump", "-i", &good, "-f", "a,zz"], 2, "\"zz\""),
        ("two formats", &["dump", "-i", &good, "-c", "-j"], 2, "cannot be used with"),
        ("a long delimiter", &["dump", "-i", &good, "-d", ",,"], 2, "one ASCII character"),
        ("a quote as delimiter", &["dump", "-i", &good, "-d", "\""], 2, "CSV"),
        ("an ill-formed size", &["dump", "-i", &good, "--budget", "12XB"], 2, "MiB"),
        ("no room for output", &["dump", "-i", &good, "-o", &nowhere], 1, "no/such/directory"),
        ("an unknown command", &["dmup"], 2, "dmup"),
        (
            "a budget too small",
            &["dump", "-i", "file:///x", "--budget", "64KiB"],
            2,
            "raise the budget",
        ),
    ];
    for (what, args, code, said) in cases {
        let output = run(args);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{what}: {text}");
        assert!(text.contains(said), "{what}: {text}");
    }
}

/// What is wrong with a database in the directory form is told of its directory and of the member that it
/// is wrong with, and where there is none that is said.
#[test]
fn a_directory_is_named_and_the_member_at_fault() {
    let sample = Sample::new(&[(1, 10, b"x", b"y")]);
    let (path, good) = (sample.beside("dir"), sample.path());
    let made = run(&["merge", &good, "--tdb-format", "dir", "-o", &path]);
    assert_eq!(made.status.code(), Some(0), "{}", stderr(&made));
    let data = sample.beside("dir/trails.data");
    fs::remove_file(&data).expect("made a moment ago");
    fs::create_dir(&data).expect("a directory");
    let (output, whole) = (run(&["dump", "-i", &path]), sample.beside("dir/version"));
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(&path) && text.contains("member trails.data"), "{text}");
    assert!(text.contains("not a regular file") && !text.contains(&whole), "{text}");
    // Without one of its files it is damaged, and without any of them it is none.
    fs::remove_dir(&data).expect("made a moment ago");
    fs::remove_file(sample.beside("dir/fields")).expect("made a moment ago");
    let text = stderr(&run(&["dump", "-i", &path]));
    assert!(text.contains("damaged: member fields") && text.contains(&path), "{text}");
    let empty = sample.beside("empty");
    fs::create_dir(&empty).expect("a directory");
    let output = run(&["dump", "-i", &empty]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(&format!("{empty}: there is no database")), "{text}");
    assert!(!text.contains("damaged"), "{text}");
}

#[test]
fn compat_passes_over_what_is_no_uuid() {
    let sample = Sample::new(&[(1, 10, b"x", b"y")]);
    let list = format!("12,{},{}", uuid(1), uuid(9));
    let output = run(&["dump", "--compat", "-i", &sample.path(), "-f", "a", "-u", &list]);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), b"x\n".as_slice()));
    let output = run(&["dump", "--compat", "-i", &sample.path(), "-u", "12"]);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), b"".as_slice()));
}

/// What is mapped and then cut short ends its reader, but not without a word.
#[test]
fn a_database_that_is_cut_short_under_its_reader_is_named() {
    let sample = Sample::new(&[]);
    let path = sample.beside("s.tdb");
    printed(&["synth", "--events", "300000", "-o", &path]);
    let whole = fs::read(&path).expect("made a moment ago");
    for threads in ["1", "2"] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tdb"))
            .args(["dump", "-i", &path, "-T", threads])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command starts");
        let mut stdout = child.stdout.take().expect("piped");
        stdout.read_exact(&mut [0; 10]).expect("some output");
        // It waits until we read on, and has most of the trails to read yet.
        let file = fs::OpenOptions::new().write(true).open(&path).expect("ours");
        file.set_len(4096).expect("ours");
        io::copy(&mut stdout, &mut io::sink()).expect("it ends");
        let output = child.wait_with_output().expect("it ends");
        let text = stderr(&output);
        assert_eq!(output.status.signal(), Some(nix::libc::SIGBUS), "{threads} threads: {text}");
        assert!(text.starts_with(&format!("tdb: {path}: byte ")), "{threads} threads: {text}");
        assert!(text.contains("the file is shorter"), "{threads} threads: {text}");
        fs::write(&path, &whole).expect("room");
    }
}

#[test]
fn help_has_examples_and_exit_codes() {
    for (args, part) in [
        (&["--help"][..], "141"),
        (&["dump", "--help"], "tdb dump -i s3://"),
        (&["info", "--help"], "tdb info -i"),
        (&["make", "--help"], "tdb make -i"),
        (&["synth", "--help"], "tdb synth --bytes"),
    ] {
        let output = run(args);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(text.contains(part), "{args:?}: {text}");
    }
}

/// Damage anywhere in a file ends in an output or in an error, never in a panic or a signal.
#[test]
fn damaged_files_end_in_an_error_or_an_output() {
    let directory = tempfile::TempDir::new().expect("a temporary directory");
    let Some(fixture) = fixtures(directory.path()).into_iter().find(|f| f.name == "tiny") else {
        return;
    };
    let bytes = fs::read(&fixture.path).expect("a fixture");
    let path = directory.path().join("damaged.tdb");
    let name = path.to_str().expect("a plain path").to_owned();
    let mut chance = 1u64;
    let mut refused = 0;
    for round in 0..60 {
        let mut damaged = bytes.clone();
        for _ in 0..1 + round % 4 {
            // Knuth's MMIX generator; the codebook in the middle gets no more than its share.
            chance = chance.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let at = (chance >> 33) as usize;
            let at = if round % 2 == 0 { at % 8192 } else { at % damaged.len() };
            damaged[at] ^= 1 << (chance >> 20 & 7);
        }
        if round % 5 == 0 {
            damaged.truncate((chance >> 33) as usize % bytes.len());
        }
        fs::write(&path, damaged).expect("room");
        for args in [["dump", "-i", &name, "--json-trails"], ["info", "-i", &name, "--json"]] {
            let output = run(&args);
            let code = output.status.code();
            assert!(matches!(code, Some(0 | 1)), "round {round}: {code:?} {}", stderr(&output));
            refused += usize::from(code == Some(1));
        }
    }
    assert!(refused > 20, "only {refused} of 120 runs saw the damage");
}
