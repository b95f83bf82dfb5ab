//! What commands leave when they are killed, or told to end, at whatever they are.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
};

use endpoint::{
    Endpoint, Settings,
    faults::{Fault, Mode},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::support::{Sample, printed, uuid};

fn names(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a directory");
    let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("an entry").file_name();
    let mut names: Vec<String> =
        entries.map(|entry| name(entry).into_string().expect("plain")).collect();
    names.sort_unstable();
    names
}

/// Events of some 330 bytes each: so many of them that they do not fit in 64 MiB.
fn events(path: &str, numbers: std::ops::Range<u64>) {
    let mut text = String::new();
    for n in numbers {
        let random = n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let value = format!("{random:020}").repeat(15);
        text.push_str(&format!("{},{n},{value},b{}\n", uuid((n % 200) as u8), n % 7));
    }
    fs::write(path, text).expect("room");
}

fn start(args: &[&str]) -> Child {
    Command::new(assert_cmd::cargo::cargo_bin("tdb"))
        .args(args)
        .env("AWS_ACCESS_KEY_ID", "test")
        .env("AWS_SECRET_ACCESS_KEY", "testtest")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the command starts")
}

/// Kills the command when `is_there`, and says whether it was not done by then.
fn killed(args: &[&str], is_there: impl Fn() -> bool) -> bool {
    let status = signalled(start(args), Signal::SIGKILL, is_there);
    assert!(status.success() || status.signal().is_some(), "{args:?}: {status}");
    !status.success()
}

/// Sends the command a signal when `is_there`, and waits for its end.
fn signalled(mut child: Child, signal: Signal, is_there: impl Fn() -> bool) -> ExitStatus {
    while child.try_wait().expect("a child").is_none() {
        if is_there() {
            // Until it is waited for its number is its own.
            kill(Pid::from_raw(child.id() as i32), signal).expect("a child");
            break;
        }
        std::thread::yield_now();
    }
    child.wait().expect("a child")
}

/// While there are temporary files, and while the database is written.
#[test]
fn nothing_is_there_or_all_of_it_and_nothing_is_in_the_way() {
    let sample = Sample::new(&[]);
    let csv = sample.beside("events.csv");
    events(&csv, 0..70_000);
    let inputs = ["one", "two"].map(|name| sample.beside(&format!("{name}.tdb")));
    for (name, numbers) in inputs.iter().zip([0..60_000, 60_000..120_000]) {
        let csv = sample.beside("part.csv");
        events(&csv, numbers);
        printed(&["make", "-i", &csv, "-d", ",", "-f", "uuid,time,a,b", "-o", name]);
    }
    let make = ["make", "-i", &csv, "-d", ",", "-f", "uuid,time,a,b"];
    let merge = ["merge", &inputs[0], &inputs[1]];
    for args in [&make[..], &merge] {
        let folder = sample.beside(args[0]);
        let (out, temporary) = (folder.clone() + "/out.tdb", folder.clone() + "-temporary");
        let whole = sample.beside(&format!("{}-whole.tdb", args[0]));
        printed(&[args, &["-o", &whole]].concat());
        let whole = fs::read(whole).expect("made a moment ago");
        fs::create_dir(&folder).expect("a directory");
        fs::create_dir(&temporary).expect("a directory");
        let args = [args, &["--memory", "64MiB", "--temp-dir", &temporary, "-o", &out]].concat();
        let spills = || {
            let in_it = |name: &String| Path::new(&temporary).join(name).read_dir();
            names(&temporary)
                .iter()
                .any(|name| in_it(name).is_ok_and(|mut all| all.next().is_some()))
        };
        let is_begun = || names(&folder).iter().any(|name| name.ends_with(".part"));
        let moments: [(&str, &dyn Fn() -> bool); 2] = [("spills", &spills), ("a part", &is_begun)];
        for (what, is_there) in moments {
            let (mut early, mut tries) = (0, 0);
            while tries < 4 || (early == 0 && tries < 60) {
                tries += 1;
                // So that what is seen is of this one.
                fs::remove_dir_all(&temporary).expect("ours");
                fs::create_dir(&temporary).expect("ours");
                names(&folder).iter().for_each(|name| {
                    fs::remove_file(Path::new(&folder).join(name)).expect("ours");
                });
                early += usize::from(killed(&args, is_there));
                if fs::exists(&out).expect("a readable directory") {
                    assert!(fs::read(&out).expect("a file") == whole, "{what}: cut short");
                    fs::remove_file(&out).expect("it is there");
                }
            }
            assert!(early > 0, "{}: {what}: it was always quicker", args[0]);
            printed(&args);
            assert_eq!(names(&folder), ["out.tdb"], "{}: {what}: litter", args[0]);
            assert_eq!(names(&temporary), [""; 0], "{}: {what}: litter", args[0]);
            assert!(fs::read(&out).expect("a file") == whole, "{}: {what}", args[0]);
            fs::remove_file(&out).expect("it is there");
        }
    }
}

/// When all parts but the first are there, and that is on its way. The parts stay until a rule of the
/// bucket removes them, as the README says; at the key there is nothing, and the next one is not
/// disturbed.
#[test]
fn nothing_is_at_a_key_before_all_of_it_is() {
    const STALL: std::time::Duration = std::time::Duration::from_secs(60);
    let endpoint = Endpoint::start(Settings::default()).expect("a port");
    endpoint.store().create_bucket("logs").expect("a bucket");
    let sample = Sample::new(&[]);
    let (csv, file) = (sample.beside("events.csv"), sample.beside("file.tdb"));
    events(&csv, 0..70_000);
    let make = ["make", "-i", &csv, "-d", ",", "-f", "uuid,time,a,b", "-o"];
    let merge = ["merge", &file, "-o"];
    printed(&[&make[..], &[&file]].concat());
    for (args, key) in [(&make[..], "made.tdb"), (&merge[..], "merged.tdb")] {
        let url = format!("s3://logs/{key}?endpoint={}&region=us-east-1", endpoint.url());
        // A merge numbers values anew.
        let local = sample.beside(key);
        printed(&[args, &[&local]].concat());
        let bytes = fs::read(&local).expect("made a moment ago");
        assert!(bytes.len() > 16 << 20, "three parts: {} bytes", bytes.len());
        let args = [args, &[&url]].concat();
        let first = Fault::always(Mode::Stall(STALL)).matching("partNumber=1&");
        endpoint.faults().set(Some(first));
        assert!(killed(&args, || endpoint.faults().hits() > 0), "{key}: it was quicker");
        endpoint.faults().set(None);
        assert!(endpoint.store().get("logs", key).is_err(), "{key}: something is there");
        let status = start(&args).wait().expect("a child");
        assert!(status.success(), "{key}: {status}");
        assert!(endpoint.store().get("logs", key).expect("it is there").bytes[..] == bytes[..]);
        // What is there stays, and whole, whatever becomes of one that is to replace it.
        let status = start(&args).wait().expect("a child");
        assert_eq!(status.code(), Some(1), "{key} is not overwritten");
        assert!(endpoint.store().get("logs", key).expect("it is there").bytes[..] == bytes[..]);
    }
}

/// One that does not spill removes what a killed one has spilled, and nothing else.
#[test]
fn what_was_spilled_goes_with_the_next_one() {
    let sample = Sample::new(&[]);
    let csv = sample.beside("events.csv");
    events(&csv, 0..70_000);
    let temporary = sample.beside("temporary");
    fs::create_dir(&temporary).expect("a directory");
    let somebodys = Path::new(&temporary).join("traildb-spill-1-0");
    fs::create_dir(&somebodys).expect("a directory");
    fs::write(somebodys.join("thesis.tex"), "x").expect("room");
    let make =
        ["make", "-d", ",", "-f", "uuid,time,a,b", "--memory", "64MiB", "--temp-dir", &temporary];
    let made = sample.beside("made");
    let spilling = [&make[..], &["-i", &csv, "-o", &made]].concat();
    let spills = || names(&temporary).len() > 1;
    let mut tries = 0;
    while names(&temporary).len() < 2 {
        tries += 1;
        assert!(tries < 60, "it was always quicker");
        let _ = fs::remove_file(format!("{made}.tdb"));
        killed(&spilling, spills);
    }
    let small = sample.beside("small.csv");
    events(&small, 0..10);
    printed(&[&make[..], &["-i", &small, "-o", &sample.beside("small")]].concat());
    assert_eq!(names(&temporary), ["traildb-spill-1-0"]);
    assert!(somebodys.join("thesis.tex").exists());
}

/// Whether this process was started with the signal ignored, as by `nohup`: then so are those it starts.
fn is_ignored(signal: Signal) -> bool {
    let status = fs::read_to_string("/proc/self/status").expect("every Linux has it");
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).expect("as ever");
    u64::from_str_radix(mask.trim(), 16).expect("a number") >> (signal as i32 - 1) & 1 == 1
}

/// Told to end, a command removes what it has begun, and ends by the signal.
#[test]
fn who_is_told_to_end_leaves_nothing() {
    let sample = Sample::new(&[]);
    let (csv, input) = (sample.beside("events.csv"), sample.beside("input.tdb"));
    events(&csv, 0..70_000);
    printed(&["make", "-i", &csv, "-d", ",", "-f", "uuid,time,a,b", "-o", &input]);
    let (folder, temporary) = (sample.beside("folder"), sample.beside("temporary"));
    let out = format!("{folder}/out");
    let memory = ["--memory", "64MiB", "--temp-dir", &temporary, "-o", &out];
    let make = [&["make", "-i", &csv, "-d", ",", "-f", "uuid,time,a,b"][..], &memory].concat();
    let directory = [&make[..], &["--tdb-format", "dir"]].concat();
    let merge = [&["merge", &input][..], &memory].concat();
    let dump = ["dump", "-i", &input, "-o", &out];
    let is_begun = || names(&folder).iter().any(|name| name.ends_with(".part"));
    let spills = || {
        let in_it = |name: &String| Path::new(&temporary).join(name).read_dir();
        names(&temporary).iter().any(|name| in_it(name).is_ok_and(|all| all.count() > 1))
    };
    type Moment<'m> = &'m dyn Fn() -> bool;
    let cases: [(&[&str], Moment); 5] = [
        (&make, &spills),
        (&make, &is_begun),
        (&directory, &is_begun),
        (&merge, &spills),
        (&dump, &is_begun),
    ];
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        if is_ignored(signal) {
            println!("left out: {signal}, which is ignored here");
            continue;
        }
        for (args, is_there) in cases {
            let mut tries = 0;
            loop {
                tries += 1;
                assert!(tries < 60, "{args:?}: it was always quicker");
                for one in [&folder, &temporary] {
                    let _ = fs::remove_dir_all(one);
                    fs::create_dir(one).expect("ours");
                }
                let status = signalled(start(args), signal, is_there);
                // It may have come when all was done.
                let is_placed =
                    [&out, &format!("{out}.tdb")].into_iter().any(|path| Path::new(path).exists());
                if !status.success() {
                    assert_eq!(status.signal(), Some(signal as i32), "{args:?}: {status}");
                    if !is_placed {
                        break;
                    }
                }
            }
            assert_eq!(names(&folder), [""; 0], "{signal}: {args:?}: litter");
            assert_eq!(names(&temporary), [""; 0], "{signal}: {args:?}: litter");
        }
    }
}

/// Whoever starts it with `nohup` does not want it to end.
#[test]
fn a_signal_that_is_ignored_ends_nothing() {
    let sample = Sample::new(&[]);
    let (csv, temporary) = (sample.beside("events.csv"), sample.beside("temporary"));
    events(&csv, 0..70_000);
    fs::create_dir(&temporary).expect("a directory");
    let made = sample.beside("made.tdb");
    let child = Command::new("sh")
        .args(["-c", "trap '' HUP; exec \"$0\" \"$@\""])
        .arg(assert_cmd::cargo::cargo_bin("tdb"))
        .args(["make", "-i", &csv, "-d", ",", "-f", "uuid,time,a,b", "-o", &made])
        .args(["--memory", "64MiB", "--temp-dir", &temporary])
        .stdin(Stdio::null())
        .spawn()
        .expect("sh");
    let is_seen = std::cell::Cell::new(false);
    let status = signalled(child, Signal::SIGHUP, || {
        is_seen.set(!names(&temporary).is_empty());
        is_seen.get()
    });
    assert!(status.success() && is_seen.get(), "{status}");
    assert!(printed(&["info", "-i", &made, "--json"]).contains("\"events\":70000"));
}
