//! Processes that are killed in the middle of what they do: what was said to be committed is there,
//! whole, and what was not is there whole or not at all.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crate::{folder, run, scan};

/// Records of each transaction: on different leaves, so that it can be torn.
const PARTS: [&str; 4] = ["a", "g", "m", "t"];

/// A process that commits one transaction after the other, until it is killed. Returns how many it
/// said to be committed.
fn write_until_killed(url: &str, name: &str, life: Duration) -> u64 {
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
            let pad = "x".repeat(700);
            for n in 0..10_000 {
                let mut script = String::new();
                for part in PARTS {
                    script.push_str(&format!("put t {part}-{name}-{n} {n} {pad}\n"));
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

#[test]
fn killed_processes_lose_nothing_and_tear_nothing() {
    for (backend, kills) in [("s3-log", 12), ("sqs-standard", 6)] {
        let (_folder, url) = folder();
        run(&["init", &url, "t", "--backend", backend, "--shards", "2"]);
        let mut said = Vec::new();
        for round in 0..kills / 3 {
            let killed: Vec<(String, u64)> = std::thread::scope(|scope| {
                let lives: Vec<_> = (0..3)
                    .map(|n| {
                        let (url, name) = (&url, format!("{round}.{n}"));
                        // Some die early, in the middle of their first commit.
                        let life = Duration::from_millis(30 + 90 * n * (round + 1));
                        scope.spawn(move || {
                            let count = write_until_killed(url, &name, life);
                            (name, count)
                        })
                    })
                    .collect();
                lives.into_iter().map(|life| life.join().unwrap()).collect()
            });
            said.extend(killed);
            // Someone sweeps while others are being killed.
            run(&["sweep", &url]);
        }
        // With queues, what a killed process had received comes back when its lease is over. A
        // sweep that waits for that is in the chaos test.
        let records = scan(&url, "t");
        let total: u64 = said.iter().map(|(_, count)| count).sum();
        assert!(total > 0, "{backend}: nothing was committed before the kills");
        let mut whole = 0;
        for (name, count) in &said {
            for n in 0.. {
                let there = PARTS.map(|part| records.contains_key(&format!("{part}-{name}-{n}")));
                let is_there = there == [true; 4];
                assert!(
                    is_there || there == [false; 4],
                    "{backend}: {name} {n} is torn: {there:?}"
                );
                assert!(is_there || n >= *count, "{backend}: {name} {n} of {count} is lost");
                whole += u64::from(is_there);
                if !is_there && n >= *count {
                    break;
                }
            }
        }
        assert_eq!(records.len() as u64, whole * 4, "{backend}: nothing else is there");
        run(&["verify", &url]);
        run(&["gc", &url, "--grace", "0"]);
        assert_eq!(scan(&url, "t"), records, "{backend}: garbage collection took something");
        run(&["verify", &url]);
    }
}
