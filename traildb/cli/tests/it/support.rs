//! Fixtures, servers, and how the command is run.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::Output,
};

use assert_cmd::Command;
use tempfile::TempDir;
use traildb::{Builder, Uuid};

/// The command with these arguments.
pub(crate) fn tdb(args: &[&str]) -> Command {
    let mut command = Command::cargo_bin("tdb").expect("cargo builds the command for its tests");
    command.args(args);
    command
}

/// Runs the command, which must succeed, and gives what it printed.
pub(crate) fn printed(args: &[&str]) -> String {
    String::from_utf8(printed_bytes(args)).expect("this output is text")
}

/// See [`printed`].
pub(crate) fn printed_bytes(args: &[&str]) -> Vec<u8> {
    let output = run(args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
    output.stdout
}

pub(crate) fn run(args: &[&str]) -> Output {
    let output = tdb(args).output().expect("the command starts");
    assert!(!stderr(&output).contains("panicked"), "{args:?}: {}", stderr(&output));
    output
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What a command takes at most, in bytes: its input is written to it, and then it is looked at until
/// it ends.
pub(crate) fn peak_of(
    args: &[&str],
    write: impl FnOnce(&mut dyn std::io::Write) -> std::io::Result<()>,
) -> u64 {
    greatest(args, "VmHWM:", write)
}

/// The same without files that it has mapped, as often as it is looked at.
pub(crate) fn anonymous_peak_of(args: &[&str]) -> u64 {
    greatest(args, "RssAnon:", |_| Ok(()))
}

/// The greatest of what a line of its status says while it runs.
fn greatest(
    args: &[&str],
    line: &str,
    write: impl FnOnce(&mut dyn std::io::Write) -> std::io::Result<()>,
) -> u64 {
    use std::process::{Command, Stdio};

    let mut child = Command::new(assert_cmd::cargo::cargo_bin("tdb"))
        .args(args)
        .env("AWS_ACCESS_KEY_ID", "test")
        .env("AWS_SECRET_ACCESS_KEY", "testtest")
        .stdin(Stdio::piped())
        .spawn()
        .expect("the command starts");
    let mut input = std::io::BufWriter::new(child.stdin.take().expect("a pipe"));
    write(&mut input).expect("it reads");
    drop(input.into_inner().expect("it reads"));
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    let ended = loop {
        // Of a process that has ended nothing is told.
        let text = fs::read_to_string(&status).unwrap_or_default();
        let value = text.lines().find_map(|told| told.strip_prefix(line));
        let kib = value.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        peak = peak.max(kib.unwrap_or(0) << 10);
        if let Some(status) = child.try_wait().expect("it is ours") {
            break status;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    };
    assert!(ended.success(), "{args:?}");
    peak
}

/// Says that a test is left out, which CI does not allow.
pub(crate) fn left_out(what: &str, why: &str) {
    assert!(std::env::var_os("CI").is_none(), "{what}: {why}, and CI is set");
    println!("left out: {what}: {why}");
}

/// What a server's variable says.
pub(crate) fn server(what: &str, variable: &str) -> Option<String> {
    let value = std::env::var(variable).ok();
    if value.is_none() {
        left_out(what, &format!("{variable} is not set"));
    }
    value
}

/// A database of `../shared/golden-tdb`, unpacked.
pub(crate) struct Fixture {
    pub(crate) name: String,
    /// A file or a directory.
    pub(crate) path: PathBuf,
    /// The trails, one to a line.
    pub(crate) lines: String,
}

/// All fixtures, unpacked into a directory. None, with a printed line, where there are none.
pub(crate) fn fixtures(into: &Path) -> Vec<Fixture> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/golden-tdb");
    if !root.exists() {
        left_out("golden files", &format!("{} does not exist", root.display()));
        return Vec::new();
    }
    let mut fixtures = Vec::new();
    for entry in fs::read_dir(&root).expect("a directory") {
        let file = entry.expect("an entry").file_name().into_string().expect("a plain name");
        let Some(name) = file.strip_suffix(".jsonl") else { continue };
        let members = root.join(format!("{name}.tdbdir"));
        let path = match members.exists() {
            true => into.join(name),
            false => into.join(format!("{name}.tdb")),
        };
        if members.exists() {
            fs::create_dir_all(&path).expect("a directory");
            for member in fs::read_dir(members).expect("a directory") {
                let from = member.expect("an entry").path();
                gunzip(&from, &path.join(from.file_stem().expect("a name")));
            }
        } else {
            gunzip(&root.join(format!("{name}.tdb.gz")), &path);
        }
        let lines = fs::read_to_string(root.join(&file)).expect("text");
        fixtures.push(Fixture { name: name.to_owned(), path, lines });
    }
    assert!(!fixtures.is_empty(), "{} has no fixtures", root.display());
    fixtures
}

fn gunzip(from: &Path, to: &Path) {
    let mut bytes = Vec::new();
    let file = fs::File::open(from).expect("a fixture");
    flate2::read::GzDecoder::new(file).read_to_end(&mut bytes).expect("gzip");
    fs::write(to, bytes).expect("room in the temporary directory");
}

/// The UUID whose first byte is `n`, and the others zero.
pub(crate) fn uuid(n: u8) -> Uuid {
    let mut bytes = [0; 16];
    bytes[0] = n;
    Uuid(bytes)
}

/// A database in a directory that is removed with it.
pub(crate) struct Sample {
    directory: TempDir,
}

impl Sample {
    /// A database of the fields `a` and `b`: trail, time, values.
    pub(crate) fn new(events: &[(u8, u64, &[u8], &[u8])]) -> Sample {
        let directory = TempDir::new().expect("a temporary directory");
        let mut builder = Builder::new(&["a", "b"]).expect("good names");
        for &(trail, time, a, b) in events {
            builder.add(uuid(trail), time, &[a, b]).expect("a good event");
        }
        builder.finish(directory.path().join("x.tdb")).expect("a database");
        Sample { directory }
    }

    /// A path beside the database.
    pub(crate) fn beside(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().expect("a plain path").to_owned()
    }

    pub(crate) fn path(&self) -> String {
        self.beside("x.tdb")
    }
}

/// Three databases of other fields in one directory: trails 1 and 2; 2 and 3; 2 again.
pub(crate) fn three() -> Sample {
    let sample = Sample::new(&[(1, 10, b"x", b"y"), (2, 20, b"p", b""), (2, 30, b"q", b"r")]);
    fs::remove_file(sample.path()).expect("made a moment ago");
    fs::create_dir(sample.beside("logs")).expect("a directory");
    let make = |name: &str, fields: &str, rows: String| {
        let path = sample.beside(name);
        let args = ["make", "-d", ",", "-f", fields, "-o", &path];
        tdb(&args).write_stdin(rows).assert().success();
    };
    let (one, two, three) = (uuid(1), uuid(2), uuid(3));
    make("logs/a", "uuid,time,a,b", format!("{one},10,x,y\n{two},20,p,\n{two},30,q,r\n"));
    make("logs/b", "uuid,time,b,c", format!("{two},25,bb,cc\n{two},30,late,\n{three},5,,z\n"));
    make("logs/c", "uuid,time", format!("{two},1\n"));
    sample
}
