//! The command, from outside.

mod closing; // what is committed when closing fails
mod bench; // the paper, replayed
mod index; // index
mod levels; // snapshot and serializable
mod keeper; // sweep --every
mod kill; // processes that are killed in the middle of what they do
mod log; // log decode
mod proxy; // a line to a server on which things go wrong
mod secrets; // that errors do not repeat
mod store; // everything else

use assert_cmd::Command;

fn s3db() -> Command {
    Command::new(env!("CARGO_BIN_EXE_s3db"))
}

/// Runs the command, which must succeed, and returns what it prints.
fn run(args: &[&str]) -> String {
    let output = s3db().args(args).assert().success();
    String::from_utf8(output.get_output().stdout.clone()).unwrap()
}

/// The records of a collection, by key.
fn scan(url: &str, collection: &str) -> std::collections::BTreeMap<String, String> {
    run(&["scan", url, collection])
        .lines()
        .map(|line| line.split_once('\t').expect("key, tab, payload"))
        .map(|(key, payload)| (key.to_owned(), payload.to_owned()))
        .collect()
}

/// A directory, and the address of a database in it.
fn folder() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}/db", folder.path().display());
    (folder, url)
}
