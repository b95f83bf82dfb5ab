//! Processes that are killed in the middle of what they do: what was said to be committed is there,
//! whole, and what was not is there whole or not at all.

use std::{
    collections::BTreeMap,
    env,
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use s3db::INLINE_BYTES_MAX;
use sources::aws::{Aws, AwsOptions};

use crate::{folder, proxy::Proxy, run, scan};

/// Processes that write at the same time.
const AT_ONCE: u64 = 3;

/// Records of each transaction: on different leaves, so that it can be torn.
const PARTS: [&str; 4] = ["a", "g", "m", "t"];

/// Records that all processes write again and again, and delete, in a collection beside the other one.
const SHARED: u64 = 3;

/// What transaction `n` of a process does to one of them, if anything.
fn shared(name: &str, n: u64) -> Option<(String, Option<String>)> {
    let turn = n.is_multiple_of(2).then_some(n / 2)?;
    let payload = (turn % 4 != 3).then(|| format!("{name} {n}"));
    Some((format!("k{}", turn % SHARED), payload))
}

/// A process that commits one transaction after the other, until it is killed. Returns how many it
/// said to be committed.
fn write_until_killed(url: &str, name: &str, life: Duration, pad: usize) -> u64 {
    let mut child: Child = Command::new(env!("CARGO_BIN_EXE_s3db"))
        .args(["txn", url])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let committed = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let pad = "x".repeat(pad);
            for n in 0..10_000 {
                let mut script = String::new();
                for part in PARTS {
                    script.push_str(&format!("put t {part}-{name}-{n} {n} {pad}\n"));
                }
                if let Some((key, payload)) = shared(name, n) {
                    script.push_str(&match payload {
                        Some(payload) => format!("put shared {key} {payload}\n"),
                        None => format!("del shared {key}\n"),
                    });
                }
                script.push_str("commit\n");
                if input.write_all(script.as_bytes()).is_err() {
                    break;
                }
            }
        });
        scope.spawn(|| {
            let mut line = String::new();
            while output.read_line(&mut line).is_ok_and(|len| len > 0) {
                // A line that is cut was never said.
                committed.fetch_add(u64::from(line.ends_with("records\n")), Ordering::Relaxed);
                line.clear();
            }
        });
        std::thread::sleep(life);
        // SIGKILL.
        child.kill().unwrap();
        child.wait().unwrap();
    });
    committed.into_inner()
}

/// Finds transactions by their number.
const INDEX: [&str; 3] = ["t", "by-number", "part: :0"];

/// A process that builds an index until it is killed, or done.
fn build_until_killed(url: &str, life: Duration) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_s3db"))
        .args(["index", "create", url])
        .args(INDEX)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(life);
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Kills processes at `url` until `kills` are dead, then compares what is there with what they said.
/// Each record has `pad` bytes.
fn chaos(url: &str, kills: u64, life: Duration, pad: usize) {
    let said = kill_many(url, kills, life, pad);
    compare(url, &said, pad);
}

/// Kills processes at `url` until `kills` are dead. Returns their names, and how many transactions each
/// said to be committed.
fn kill_many(url: &str, kills: u64, life: Duration, pad: usize) -> Vec<(String, u64)> {
    let mut said = Vec::new();
    let rounds = kills.div_ceil(AT_ONCE);
    for round in 0..rounds {
        let killed: Vec<(String, u64)> = std::thread::scope(|scope| {
            scope.spawn(move || {
                build_until_killed(url, life.mul_f64((round + 1) as f64 / rounds as f64))
            });
            let lives: Vec<_> = (0..AT_ONCE)
                .map(|n| {
                    let name = format!("{round}.{n}");
                    // Some die early, in the middle of their first commit.
                    let life = life.mul_f64(0.2 + (n * rounds + round) as f64 / kills as f64);
                    scope.spawn(move || {
                        let count = write_until_killed(url, &name, life, pad);
                        (name, count)
                    })
                })
                .collect();
            lives.into_iter().map(|life| life.join().unwrap()).collect()
        });
        said.extend(killed);
        if round % 4 == 0 {
            // Someone sweeps meanwhile, on the same bad line. It may fail; nothing may be lost.
            let _ = crate::s3db().args(["sweep", url]).timeout(Duration::from_secs(60)).output();
        }
    }
    said
}

/// Compares what is there with what processes said that were killed. `direct` leads to the database by a
/// line on which nothing goes wrong.
fn compare(direct: &str, said: &[(String, u64)], pad: usize) {
    quiesce(direct);
    let records = scan(direct, "t");
    let total: u64 = said.iter().map(|(_, count)| count).sum();
    println!("{direct}: {} killed, {total} transactions said to be committed", said.len());
    assert!(total > 0, "{direct}: nothing was committed before the kills");
    let mut whole = 0;
    let mut committed = Vec::new();
    for (name, count) in said {
        let before = whole;
        for n in 0.. {
            let there = PARTS.map(|part| records.contains_key(&format!("{part}-{name}-{n}")));
            let is_there = there == [true; 4];
            assert!(is_there || there == [false; 4], "{direct}: {name} {n} is torn: {there:?}");
            assert!(is_there || n >= *count, "{direct}: {name} {n} of {count} is lost");
            for part in PARTS.iter().filter(|_| is_there) {
                let (number, x) = records[&format!("{part}-{name}-{n}")].split_once(' ').unwrap();
                let is_right = number == n.to_string() && x.len() == pad;
                assert!(is_right, "{direct}: {part}-{name}-{n} is not what was written");
            }
            whole += u64::from(is_there);
            if !is_there && n >= *count {
                break;
            }
        }
        committed.push((&name[..], whole - before));
    }
    assert_eq!(records.len() as u64, whole * 4, "{direct}: nothing else is there");
    let shared = scan(direct, "shared");
    newest_stands(direct, &shared, &committed);
    let [of, name, by] = INDEX;
    run(&["index", "create", direct, of, name, by]);
    run(&["verify", direct]);
    // What is a blob is in no index.
    let indexed = if pad > INLINE_BYTES_MAX { 0 } else { records.len() as u64 };
    index_is_exact(direct, indexed);
    run(&["gc", direct, "--grace", "0"]);
    assert_eq!(scan(direct, "t"), records, "{direct}: garbage collection took something");
    assert_eq!(scan(direct, "shared"), shared, "{direct}: garbage collection took something");
    run(&["verify", direct]);
    index_is_exact(direct, indexed);
}

/// Of what all processes wrote to one record, the newest stands: the last that one of them committed, of
/// those that lived last. `committed` is how many transactions of each are there, which are its first ones.
fn newest_stands(direct: &str, shared: &BTreeMap<String, String>, committed: &[(&str, u64)]) {
    let mut keys = 0;
    for key in (0..SHARED).map(|k| format!("k{k}")) {
        let last = |(name, count): &(&str, u64)| {
            let mut writes = (0..*count).rev().filter_map(|n| self::shared(name, n));
            let (_, payload) = writes.find(|(there, _)| *there == key)?;
            let round: u64 = name.split_once('.')?.0.parse().ok()?;
            Some((round, payload))
        };
        let lasts: Vec<_> = committed.iter().filter_map(last).collect();
        let Some(newest) = lasts.iter().map(|(round, _)| *round).max() else { continue };
        let stands = (newest, shared.get(&key).cloned());
        assert!(lasts.contains(&stands), "{direct}: {key} is {stands:?}, and not of {lasts:?}");
        keys += 1;
    }
    assert!(keys > 0, "{direct}: nothing was written to what all share");
    assert!(shared.len() as u64 <= SHARED, "{direct}: nothing else is there");
}

/// The index, which was made while processes died, says what the records say.
fn index_is_exact(url: &str, records: u64) {
    let [of, name, _] = INDEX;
    let checked = run(&["index", "check", url, of, name, "--json"]);
    let checked: serde_json::Value = serde_json::from_str(&checked).unwrap();
    let counts = ["records", "entries", "missing", "changing", "dangling"];
    let counts = counts.map(|what| checked[what].as_u64());
    assert_eq!(counts, [records, records, 0, 0, 0].map(Some), "{url}");
}

/// Sweeps until nothing waits: what a dead process had received comes back with its lease.
fn quiesce(url: &str) {
    for _ in 0..60 {
        run(&["sweep", url]);
        let report: serde_json::Value =
            serde_json::from_str(&run(&["verify", url, "--json"])).unwrap();
        if report["waiting"] == 0 {
            return;
        }
        std::thread::sleep(Duration::from_secs(2));
    }
    panic!("{url}: something waits for ever");
}

/// How many of 50 processes one test kills: `make chaos KILLS=n` says how many there are in all. Half
/// of them are enough for whoever waits for `make test`; CI kills all.
fn kills(of_50: u64) -> u64 {
    let wanted = env::var("KILLS").ok().and_then(|kills| kills.parse::<u64>().ok());
    let usual = if env::var("CI").as_deref() == Ok("true") { 50 } else { 25 };
    (wanted.unwrap_or(usual) * of_50).div_ceil(50)
}

#[test]
fn killed_processes_lose_nothing_and_tear_nothing() {
    for (backend, of_50) in [("s3-log", 18), ("sqs-standard", 6)] {
        let (_folder, url) = folder();
        run(&["init", &url, "t", "shared", "--backend", backend, "--shards", "2"]);
        chaos(&url, kills(of_50), Duration::from_millis(600), 700);
    }
}

/// Every record is a blob.
#[test]
fn killed_processes_lose_no_blob() {
    for (backend, of_50) in [("s3-log", 9), ("sqs-standard", 6)] {
        let (_folder, url) = folder();
        run(&["init", &url, "t", "shared", "--backend", backend, "--shards", "2"]);
        chaos(&url, kills(of_50), Duration::from_millis(900), INLINE_BYTES_MAX + 1000);
    }
}

/// The same over S3 and SQS, on a line that loses requests and answers: at least fifty, where CI asks for all.
#[test]
fn killed_processes_on_a_bad_line() {
    let Some(s3) = variable("TEST_S3_ENDPOINT", "kills over S3") else { return };
    let sqs = variable("TEST_SQS_ENDPOINT", "kills over SQS");
    // They die one log after the other, and what they leave comes back with its lease at the same time.
    let (dying, killed) = (Mutex::new(()), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for (backend, of_50) in [("sqs-fifo", 9), ("sqs-standard", 15), ("s3-log", 26)] {
            let Some(sqs) = sqs.as_ref().or((backend == "s3-log").then_some(&s3)) else { continue };
            let (s3, dying, killed) = (&s3, &dying, &killed);
            scope.spawn(move || {
                let name = format!("s3db-kill-{backend}-{}", std::process::id());
                make_bucket(s3, &name);
                let (bad_s3, bad_sqs) = (Proxy::to(s3, 7), Proxy::to(sqs, 8));
                let direct = format!("s3://{name}/db?endpoint={s3}&sqs={sqs}");
                let url = format!("s3://{name}/db?endpoint={}&sqs={}", bad_s3.base, bad_sqs.base);
                run(&["init", &direct, "t", "shared", "--backend", backend, "--shards", "2"]);
                let said = {
                    let _one = dying.lock().unwrap_or_else(PoisonError::into_inner);
                    kill_many(&url, kills(of_50), Duration::from_millis(1200), 700)
                };
                let hits = bad_s3.hits() + bad_sqs.hits();
                println!("{backend}: {hits} times something went wrong on the line");
                assert!(hits > 0, "{backend}: nothing went wrong");
                killed.fetch_add(said.len() as u64, Ordering::Relaxed);
                compare(&direct, &said, 700);
            });
        }
    });
    let killed = killed.into_inner();
    assert!(sqs.is_none() || killed >= kills(50), "{killed} were killed");
}

/// Processes that count, and are killed: a serializable counter has what they said that they counted, and of
/// each that died one more at most. On that line, where it is there.
#[test]
fn killed_processes_count_right() {
    let (_folder, url) = folder();
    count_until_killed(&url, &url);
    let Some(s3) = variable("TEST_S3_ENDPOINT", "kills over S3") else { return };
    let name = format!("s3db-kill-count-{}", std::process::id());
    make_bucket(&s3, &name);
    let bad = Proxy::to(&s3, 9);
    count_until_killed(
        &format!("s3://{name}/db?endpoint={}", bad.base),
        &format!("s3://{name}/db?endpoint={s3}"),
    );
}

fn count_until_killed(url: &str, direct: &str) {
    run(&["init", direct, "counts", "--isolation", "serializable"]);
    run(&["put", direct, "counts", "n", "0"]);
    let (mut said, mut unclear) = (0, 0);
    for round in 0..2 {
        let counted: Vec<(u64, u64)> = std::thread::scope(|scope| {
            let count = |n| {
                let life = Duration::from_millis(400 + 300 * (n + round));
                scope.spawn(move || count_for(url, life))
            };
            let lives: Vec<_> = (0..AT_ONCE).map(count).collect();
            lives.into_iter().map(|life| life.join().unwrap()).collect()
        });
        said += counted.iter().map(|(said, _)| said).sum::<u64>();
        unclear += counted.iter().map(|(_, unclear)| unclear).sum::<u64>();
    }
    run(&["sweep", direct]);
    let is: u64 = run(&["get", direct, "counts", "n"]).parse().unwrap();
    println!("{direct}: counted to {is}: {said} were said, {unclear} died in the middle");
    assert!((said..=said + unclear).contains(&is), "{direct}: {is}, of {said} and {unclear}");
    assert!(said > 0, "{direct}: nobody counted");
    run(&["verify", direct]);
}

/// Counts, by one process after the other, since one that is in another one's way ends; the last one is
/// killed. Returns how often it was said to be counted, and how many of them ended without saying whether.
fn count_for(url: &str, life: Duration) -> (u64, u64) {
    let end = Instant::now() + life;
    let (mut said, mut unclear) = (0, 0);
    while Instant::now() < end {
        let mut child = Command::new(env!("CARGO_BIN_EXE_s3db"))
            .args(["txn", url, "--level", "serializable"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        said += std::thread::scope(|scope| {
            let counting = scope.spawn(|| {
                let one = || {
                    input.write_all(b"get counts n\n").ok()?;
                    let there = lines.next()?.ok()?;
                    let n: u64 = there.strip_prefix("n\t")?.parse().ok()?;
                    input.write_all(format!("put counts n {}\ncommit\n", n + 1).as_bytes()).ok()?;
                    let line = lines.next()?.ok()?;
                    (line == "committed 1 records").then_some(())
                };
                std::iter::from_fn(one).count() as u64
            });
            while !counting.is_finished() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(5));
            }
            if !counting.is_finished() {
                // SIGKILL.
                child.kill().unwrap();
            }
            counting.join().unwrap()
        });
        drop(input);
        // Another one was in its way: that is known.
        let is_aborted = child.wait().unwrap().code() == Some(5);
        unclear += u64::from(!is_aborted);
    }
    (said, unclear)
}

fn make_bucket(endpoint: &str, name: &str) {
    let options = AwsOptions { endpoint: Some(endpoint.to_owned()), ..AwsOptions::default() };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let aws = Aws::new(options);
        let client = aws.s3().await.expect("a client");
        client.create_bucket().bucket(name).send().await.expect("a bucket");
    });
}

/// What the test servers tell by the environment. A test without its servers is left out, and says
/// so; where the environment says CI it fails.
fn variable(name: &str, what: &str) -> Option<String> {
    if let Some(value) = env::var(name).ok().filter(|value| !value.is_empty()) {
        return Some(value);
    }
    assert!(env::var("CI").as_deref() != Ok("true"), "CI needs {name} for {what}");
    println!("left out: {what}: {name} is not set; start the test servers first");
    None
}

/// Processes that keep pages on one disk and are killed while they write there: the next one is given whole
/// pages, the right ones, or none.
#[test]
fn a_disk_of_killed_processes_has_whole_pages() {
    const RECORDS: usize = 3000;
    let (folder, url) = folder();
    let disk = folder.path().join("disk");
    run(&["init", &url, "t"]);
    let payload = |n: usize, round: u64| format!("{n} {round} {}", "x".repeat(500));
    let write = |round: u64| {
        let puts: String =
            (0..RECORDS).map(|n| format!("put t k-{n:04} {}\n", payload(n, round))).collect();
        crate::s3db().args(["txn", &url]).write_stdin(puts + "commit\n").assert().success();
    };
    let (mut killed, mut confirmed) = (0, 0);
    for round in 0..30_u64 {
        if round % 5 == 0 {
            // Other versions of the pages that are there.
            write(round);
        }
        if round % 2 == 0 {
            let _ = std::fs::remove_dir_all(&disk);
        }
        let on_disk = |args: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_s3db"));
            command.args(args).env("S3DB_DISK", &disk).stderr(Stdio::null());
            command
        };
        let mut child = on_disk(&["scan", &url, "t"]).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(2000 + 1700 * (round % 10)));
        // Unless it was done already.
        killed += u64::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        let next = on_disk(&["scan", &url, "t"]).output().unwrap();
        assert!(next.status.success());
        let text = String::from_utf8(next.stdout).unwrap();
        for (n, line) in text.lines().enumerate() {
            assert_eq!(line, format!("k-{n:04}\t{}", payload(n, round / 5 * 5)), "round {round}");
        }
        assert_eq!(text.lines().count(), RECORDS, "round {round}");
        let counts = counts_of(&url, &disk);
        assert_eq!(counts.disk_damaged, 0, "round {round}: part of a page was there");
        confirmed += counts.disk_confirmed;
    }
    assert!(killed > 5 && confirmed > 200, "{killed} {confirmed}");
}

/// What becomes of the files on `disk` when everything is read.
fn counts_of(url: &str, disk: &std::path::Path) -> s3db::PoolCounts {
    let disk = s3db::cloud::DiskSpace::folder(disk, 1 << 30).unwrap();
    let options = s3db::Options { disk: Some(disk), has_worker: false, ..Default::default() };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let db = s3db::Db::open_with(url, &options).await.unwrap();
        let of = db.collection("t").await.unwrap();
        let txn = db.begin();
        let mut records = txn.scan(&of);
        while records.next().await.unwrap().is_some() {}
        db.pool_counts()
    })
}

/// Two processes want the same parts of the log. One has them; when it is killed, the other takes over, once
/// the claim is a lease old.
#[test]
fn when_an_owner_is_killed_another_one_takes_over() {
    let (_folder, url) = folder();
    run(&["init", &url, "t"]);
    let owner = || {
        let mut child = Command::new(env!("CARGO_BIN_EXE_s3db"))
            .args(["sweep", &url, "--every", "1", "--own", "all", "--json"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        (child, lines)
    };
    let (mut first, mut of_first) = owner();
    let next = |lines: &mut std::io::Lines<BufReader<std::process::ChildStdout>>| {
        lines.next().expect("it goes on for ever").unwrap()
    };
    assert!(next(&mut of_first).contains("\"own\":[0]"));
    let (mut second, mut of_second) = owner();
    for _ in 0..2 {
        assert!(next(&mut of_second).contains("\"own\":[]"));
    }
    // SIGKILL.
    first.kill().unwrap();
    first.wait().unwrap();
    run(&["put", &url, "t", "a", "1"]);
    let began = std::time::Instant::now();
    while !next(&mut of_second).contains("\"own\":[0]") {
        assert!(began.elapsed() < Duration::from_secs(60));
    }
    assert!(began.elapsed() > Duration::from_secs(20), "its claim counted for nothing");
    assert_eq!(scan(&url, "t").get("a").map(String::as_str), Some("1"));
    second.kill().unwrap();
    second.wait().unwrap();
}
