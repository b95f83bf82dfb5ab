//! More events than fit in the memory allowed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use traildb::{Builder, Error, Options, Reader, Uuid};

use crate::support::{contents, scratch};

/// The least that can be allowed.
const MEMORY: u64 = 64 << 20;

/// What the other process is to write, and with how many threads; set by the tests that start it.
const VICTIM: &str = "TRAILDB_TEST_SPILLER";

/// A value that many events have. It makes the data large without making a test long.
const TEXT: &[u8] = &[b't'; 200];

/// Which events. All make spills necessary in the end.
#[derive(Clone, Copy, Debug)]
enum Events {
    /// Values that are nearly all different, and long.
    Values,
    /// Short values of a few kinds, in many trails.
    Short,
    /// One trail, and values that come again.
    Trail,
}

impl Events {
    const ALL: [Events; 3] = [Events::Values, Events::Short, Events::Trail];

    fn name(self) -> &'static str {
        match self {
            Events::Values => "values",
            Events::Short => "short",
            Events::Trail => "trail",
        }
    }

    /// Calls `add` with `bytes` bytes of events: 24 for UUID and time, and the values. They come in
    /// no order.
    fn each(self, bytes: u64, mut add: impl FnMut(Uuid, u64, &[&[u8]; 3])) {
        let mut state = 7u64;
        let mut random = move || {
            // SplitMix64.
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = (state ^ state >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ z >> 31
        };
        let mut told = 0;
        let (mut first, mut second) = (Vec::new(), Vec::new());
        while told < bytes {
            let (a, b) = (random(), random());
            first.clear();
            second.clear();
            let trail = match self {
                Events::Values => {
                    // Nine of ten are new.
                    let number = if a % 10 == 0 { a % 5000 } else { a };
                    first.resize(150, b'x');
                    first.extend_from_slice(&number.to_le_bytes());
                    a % 50_000
                }
                Events::Short => a % 1_000_000,
                Events::Trail => {
                    first.extend_from_slice(format!("value {}", a % 300_000).as_bytes());
                    0
                }
            };
            second.push(b'a' + (b % 20) as u8);
            let values: [&[u8]; 3] = [&first, &second, if b % 3 == 0 { b"" } else { TEXT }];
            add(Uuid::from_number(u128::from(trail) << 32), b % 100_000, &values);
            told += 24 + values.iter().map(|value| value.len() as u64).sum::<u64>();
        }
    }

    fn write(self, bytes: u64, options: Options, path: &Path) -> Result<(), Error> {
        let spills = options.temporary_directory.clone();
        let mut builder = Builder::with_options(&["a", "b", "c"], options)?;
        let mut outcome = Ok(());
        self.each(bytes, |uuid, time, values| {
            if outcome.is_ok() {
                outcome = builder.add(uuid, time, values);
            }
        });
        outcome?;
        if let Some(spills) = spills {
            let is_folder = |name: &String| spills.join(name).is_dir();
            assert!(names(&spills).iter().any(is_folder), "{self:?}: nothing was spilled");
        }
        builder.finish(path).map(drop)
    }
}

/// Not a test by itself: the process whose memory is measured, or which is killed.
#[test]
fn spiller() {
    let Some(task) = std::env::var_os(VICTIM) else { return };
    let task = task.into_string().unwrap();
    let [folder, what, bytes, threads] = task.split('|').collect::<Vec<_>>()[..] else { panic!() };
    let events = Events::ALL.into_iter().find(|events| events.name() == what).unwrap();
    let folder = Path::new(folder);
    let options = Options::default()
        .memory_bytes(MEMORY)
        .threads(threads.parse().unwrap())
        .temporary_directory(folder.join("spills"));
    events.write(bytes.parse().unwrap(), options, &folder.join("a.tdb")).unwrap();
    let files = fs::read_to_string("/proc/self/limits").unwrap();
    assert!(files.contains("Max open files            64 "), "the parent set a limit: {files}");
    fs::write(folder.join("peak"), peak()).unwrap();
    fs::write(folder.join("ticks"), ticks().to_string()).unwrap();
    fs::write(folder.join("io"), fs::read_to_string("/proc/self/io").unwrap()).unwrap();
}

/// The most memory that this process has had so far.
fn peak() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    status.lines().find(|line| line.starts_with("VmHWM:")).unwrap().to_owned()
}

fn spiller_of(folder: &Path, events: Events, bytes: u64, threads: usize) -> Command {
    fs::create_dir_all(folder.join("spills")).unwrap();
    // Few files may be open at once, however many runs there are.
    let mut command = Command::new("sh");
    command
        .args([
            "-c",
            "ulimit -n 64 && exec \"$0\" --exact spilling::spiller --test-threads=1 --nocapture",
        ])
        .arg(std::env::current_exe().unwrap())
        .env(VICTIM, format!("{}|{}|{bytes}|{threads}", folder.display(), events.name()))
        .stdout(Stdio::null());
    command
}

/// Four times the memory that is allowed, and a peak of at most a tenth more than that: of values,
/// of events, and of one trail. The bytes are those of a builder with all the memory there is.
#[test]
fn events_of_four_times_the_memory() {
    let folder = scratch();
    for (events, threads) in [(Events::Values, 2), (Events::Short, 2), (Events::Trail, 1)] {
        let (folder, bytes) = (folder.path().join(events.name()), 4 * MEMORY);
        fs::create_dir(&folder).unwrap();
        assert!(spiller_of(&folder, events, bytes, threads).status().unwrap().success());
        let peak = fs::read_to_string(folder.join("peak")).unwrap();
        let peak: u64 = peak.split_ascii_whitespace().nth(1).unwrap().parse().unwrap();
        println!("{events:?}: peak {} MiB", peak >> 10);
        assert!(peak << 10 <= MEMORY + MEMORY / 10, "{events:?}: {} MiB", peak >> 10);
        assert_eq!(names(&folder.join("spills")), [""; 0], "temporary files are gone");
        let whole = folder.join("whole.tdb");
        events.write(bytes, Options::default().threads(2), &whole).unwrap();
        assert!(fs::read(whole).unwrap() == fs::read(folder.join("a.tdb")).unwrap(), "{events:?}");
        fs::remove_dir_all(folder).unwrap();
    }
}

/// Four times the events: four times the bytes that are written and read, temporary files and all, within
/// a tenth, and no more than eight times the processor's time, which is sixteen times where work is
/// quadratic. Time by a clock would say the same on a quiet machine only.
#[test]
fn more_events_take_more_of_everything_in_proportion() {
    let folder = scratch();
    let counted = |events: Events, threads: usize, times: u64| {
        let folder = folder.path().join(times.to_string());
        fs::create_dir(&folder).unwrap();
        let spilled = spiller_of(&folder, events, times * MEMORY, threads).status().unwrap();
        assert!(spilled.success());
        let io = fs::read_to_string(folder.join("io")).unwrap();
        let count = |name: &str| -> u64 {
            let line = io.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().parse().unwrap()
        };
        let ticks = fs::read_to_string(folder.join("ticks")).unwrap().parse().unwrap();
        fs::remove_dir_all(folder).unwrap();
        [count("wchar:"), count("rchar:"), ticks]
    };
    for (events, threads) in [(Events::Values, 2), (Events::Short, 2), (Events::Trail, 1)] {
        let (some, many) = (counted(events, threads, 2), counted(events, threads, 8));
        // In tenths.
        let bounds = [("bytes written", 44), ("bytes read", 44), ("ticks", 80)];
        for ((what, most), (some, many)) in bounds.into_iter().zip(some.into_iter().zip(many)) {
            let ratio = many as f64 / some as f64;
            println!("{events:?}: {some} and {many} {what}, {ratio:.2} times");
            assert!(some > 20, "{events:?}: {some} {what} are too few to compare");
            assert!(many <= some * most / 10, "{events:?}: {ratio:.2} times as many {what}");
        }
    }
}

/// Processor time that this process has taken so far, in the system's and its own code, of all its
/// threads: in ticks, of which there are 100 a second.
fn ticks() -> u64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    // The name before it may hold blanks.
    let (_, rest) = stat.rsplit_once(')').unwrap();
    let field =
        |n: usize| -> u64 { rest.split_ascii_whitespace().nth(n - 3).unwrap().parse().unwrap() };
    field(14) + field(15)
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

#[test]
fn what_a_killed_writer_spilled_is_removed_by_the_next_and_its_target_is_as_before() {
    let folder = scratch();
    let (spills, target) = (folder.path().join("spills"), folder.path().join("a.tdb"));
    fs::create_dir(&spills).unwrap();
    fs::write(spills.join("traildb-spill-notes"), "somebody's").unwrap();
    let mut old = Builder::new(&["a"]).unwrap();
    old.add(Uuid::default(), 5, &["old"]).unwrap();
    old.finish(&target).unwrap();
    let before = contents(&Reader::open(&target).unwrap()).unwrap();

    // So much that it is not done before it is killed.
    let mut child = spiller_of(folder.path(), Events::Values, 16 * MEMORY, 2).spawn().unwrap();
    let began = Instant::now();
    let left = || -> Vec<PathBuf> {
        let names = names(&spills).into_iter().filter(|name| name != "traildb-spill-notes");
        names.map(|name| spills.join(name)).collect()
    };
    // Until there is something in its folder.
    while left().first().is_none_or(|folder| names(folder).is_empty()) {
        assert!(child.try_wait().unwrap().is_none(), "it ended without spilling");
        assert!(began.elapsed() < Duration::from_secs(60), "it does not spill");
        thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let dead = left();
    assert_eq!(dead.len(), 1, "its folder is left behind");
    assert!(contents(&Reader::open(&target).unwrap()).unwrap() == before);

    let options = Options::default().memory_bytes(MEMORY).temporary_directory(&spills);
    Events::Values.write(MEMORY + MEMORY / 2, options, &target).unwrap();
    assert_eq!(names(&spills), ["traildb-spill-notes"], "only what is ours is removed");
    assert_eq!(names(folder.path()), ["a.tdb", "spills"]);
    assert!(Reader::open(&target).unwrap().events() > 1);
}

#[test]
fn a_directory_that_cannot_be_written_to_is_an_error_that_stays() {
    let folder = scratch();
    let options = Options::default()
        .memory_bytes(MEMORY)
        .temporary_directory(folder.path().join("no/such"))
        .threads(1);
    let mut builder = Builder::with_options(&["a", "b", "c"], options).unwrap();
    let mut errors = 0;
    Events::Values.each(MEMORY + MEMORY / 2, |uuid, time, values| {
        match builder.add(uuid, time, values) {
            Ok(()) => assert_eq!(errors, 0, "no event is taken after one was lost"),
            Err(Error::File { path, .. }) => {
                assert!(path.ends_with("no/such"), "{}", path.display());
                errors += 1;
            }
            Err(error) => panic!("{error}"),
        }
    });
    assert!(errors > 1);
    let path = folder.path().join("a.tdb");
    assert!(matches!(builder.finish(&path), Err(Error::File { .. })));
    assert!(!path.exists());
}
