//! Writes where the search begins: the golden objects, as bodies of their frames, addresses, and
//! rules for search keys.

use std::{error::Error, fs, path::Path};

const OBJECTS: &str = include_str!("../tests/golden/objects-v1.txt");
const SEQUENCE: &str = include_str!("../tests/golden/sequence-v1.txt");
const WRITERS: &str = include_str!("../tests/golden/writers-v1.txt");
const DATABASES: &str = include_str!("../tests/golden/databases-v3.txt");
const PROPOSALS: &str = include_str!("../tests/golden/proposal-v1.txt");
const KEPT: &str = include_str!("../tests/golden/disk-v1.txt");
const SEALED: &str = include_str!("../tests/golden/sealed-v1.txt");
const RECORDS: &str = include_str!("../tests/golden/log-v1.txt");
const ADDRESSES: [&str; 6] = [
    "file:///tmp/a%20b",
    "file://host/db?sync=no",
    "mem:name",
    "s3://bucket/prefix?region=eu-west-1",
    "s3://key:word@bucket:1/prefix#part",
    "ftp://user:pa/ss@host/x",
];
const SEARCHES: [&str; 4] = [
    "payload\n\nwhole",
    "part:,:1\n\na,b",
    "part:0x1f:0\n\na",
    "json:born\nA\u{1f600}\n{\"nested\": {\"born\": [1, \"}\"]}, \"born\" :1815, \"n\":\"\\ud83d\\ude00\"}",
];

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).ok_or("usage: seeds FOLDER")?;
    let lines =
        OBJECTS.lines().chain(RECORDS.lines()).chain(SEQUENCE.lines()).chain(PROPOSALS.lines());
    let lines = lines
        .chain(WRITERS.lines())
        .chain(DATABASES.lines())
        .chain(KEPT.lines())
        .chain(SEALED.lines());
    let lines = lines.filter(|line| !line.starts_with('#'));
    for (n, line) in lines.enumerate() {
        let digits = line.rsplit(' ').next().ok_or("an empty line")?;
        let bytes = (0..digits.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(digits.get(at..at + 2).unwrap_or("?"), 16))
            .collect::<Result<Vec<u8>, _>>()?;
        let target = match bytes.get(3).ok_or("a short line")? {
            b'P' | b'F' => "page",
            b'D' | b'A' | b'C' | b'N' | b'V' => "catalogue",
            _ => "log",
        };
        let body = bytes.get(5..bytes.len().saturating_sub(4)).ok_or("a short line")?;
        // A proposal is a transaction.
        let also = (bytes[3] == b'T').then_some("proposal");
        for target in [target].into_iter().chain(also) {
            let folder = Path::new(&folder).join(target);
            fs::create_dir_all(&folder)?;
            fs::write(folder.join(format!("golden-{n}")), body)?;
        }
    }
    for (target, texts) in [("address", &ADDRESSES[..]), ("search", &SEARCHES)] {
        let folder = Path::new(&folder).join(target);
        fs::create_dir_all(&folder)?;
        for (n, text) in texts.iter().enumerate() {
            fs::write(folder.join(format!("known-{n}")), text)?;
        }
    }
    Ok(())
}
