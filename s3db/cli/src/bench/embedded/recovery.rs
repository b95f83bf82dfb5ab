//! What a client leaves that is killed: how long until a new process has brought it to its pages.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Stdio},
    time::Instant,
};

use s3db::{Backend, Db, Options};
use serde_json::Value;

use super::place::{COLLECTION, Folder, Medium, PAYLOAD_BYTES};
use crate::output::Failure;

/// Kills it, if it still runs, and takes it off the list of processes.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Milliseconds that `s3db sweep`, a process that begins then, takes after a client was killed with
/// `transactions` committed transactions in its log, of one record each. Whether everything is there
/// is checked, not timed.
pub(super) async fn recovery(
    folder: &Folder,
    backend: Backend,
    transactions: u32,
    round: u32,
) -> Result<f64, Failure> {
    let name = format!("killed-{}-{transactions}-{round}", backend.name());
    let url = folder.url(Medium::Directory, &name);
    let options = Options { backend, has_worker: false, ..Options::default() };
    let db = Db::create(&url, &options).await?;
    db.create_collection(COLLECTION).await?;
    db.close().await?;
    let at = url.clone();
    let swept = tokio::task::spawn_blocking(move || {
        commit_and_die(&at, transactions)?;
        sweep(&at, transactions)
    });
    let took_ms = swept.await.map_err(|error| Failure::Told(format!("{url}: {error}")))??;
    let db = Db::open_with(&url, &options).await?;
    let of = db.collection(COLLECTION).await?;
    let txn = db.begin();
    let mut scan = txn.scan(&of);
    let mut found = 0;
    while scan.next_key().await?.is_some() {
        found += 1;
    }
    if found != transactions {
        return Err(Failure::Told(format!(
            "{url}: {found} records of {transactions} after a kill"
        )));
    }
    Ok(took_ms)
}

/// A process commits one transaction after the other, and is killed when all are committed.
fn commit_and_die(url: &str, transactions: u32) -> Result<(), Failure> {
    let told = |what: String| Failure::Told(format!("{url}: {what}"));
    let mut child = Killed(
        s3db()?
            .args(["txn", url])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(|error| told(error.to_string()))?,
    );
    let mut input = child.0.stdin.take().expect("is piped");
    let output = BufReader::new(child.0.stdout.take().expect("is piped"));
    std::thread::scope(|scope| {
        let writing = scope.spawn(move || {
            let payload = "x".repeat(PAYLOAD_BYTES);
            for number in 0..transactions {
                // It is gone: that shows below.
                if writeln!(input, "put {COLLECTION} {number:08} {payload}\ncommit").is_err() {
                    break;
                }
            }
            input
        });
        let lines = output.lines().take(transactions as usize).filter(Result::is_ok).count();
        let killed = child.0.kill();
        // Open until it is dead: at the end of its input it would bring everything to its page.
        drop(writing.join());
        if lines != transactions as usize {
            return Err(told(format!("{lines} commits of {transactions}")));
        }
        killed.map_err(|error| told(error.to_string()))
    })
}

fn sweep(url: &str, transactions: u32) -> Result<f64, Failure> {
    let began = Instant::now();
    let output = s3db()?.args(["sweep", url, "--json"]).stderr(Stdio::inherit()).output();
    let took_ms = began.elapsed().as_secs_f64() * 1e3;
    let output = output.map_err(|error| Failure::Told(format!("{url}: {error}")))?;
    let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    if !output.status.success() || said["applied"] != transactions {
        return Err(Failure::Told(format!("sweep {url}: {said} for {transactions} transactions")));
    }
    Ok(took_ms)
}

/// This program once more.
fn s3db() -> Result<Command, Failure> {
    let path = std::env::current_exe()
        .map_err(|error| Failure::Told(format!("where this program lies: {error}")))?;
    Ok(Command::new(path))
}
