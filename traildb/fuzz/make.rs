//! Whatever the text, `tdb make` takes its events or says what is wrong: no panic, no hang, nothing
//! read outside the text, no event that is not there.
//!
//! The parser is the command's own, file by file. What it finds in text without quotes is compared
//! with splitting at line breaks and delimiters.
#![no_main]
#![allow(dead_code, unreachable_pub, reason = "modules of the command, of which a part is used")]

#[path = "../cli/src/make/batch.rs"]
mod batch;
#[path = "../cli/src/make/columns.rs"]
mod columns;
#[path = "../cli/src/make/csv.rs"]
mod csv;
/// What the choice of columns fails with; the command's own knows errors of regions besides.
mod failure {
    #[derive(Debug)]
    pub enum Failure {
        Usage(String),
    }
}
#[path = "../cli/src/make/feed.rs"]
mod feed;
#[path = "../cli/src/make/json.rs"]
mod json;
#[path = "../cli/src/make/problem.rs"]
mod problem;

use columns::To;
use csv::Csv;
use feed::{Feed, Syntax};
use json::Json;
use libfuzzer_sys::fuzz_target;
use problem::Tally;
use traildb::{Builder, Uuid};

/// What the first byte of an input says.
const JSON: u8 = 1;
const COMPAT: u8 = 2;
const SKIP: u8 = 4;
const THREADS: u8 = 8;
const FINISH: u8 = 16;

const DELIMITERS: [u8; 4] = *b", \t|";
const FIELDS: [&str; 2] = ["a", "b"];

/// An event as it was parsed, with its line.
type Event = (u64, Uuid, u64, Vec<Vec<u8>>);

fuzz_target!(|input: &[u8]| {
    let Some((&flags, text)) = input.split_first() else { return };
    let delimiter = DELIMITERS[usize::from(flags >> 6)];
    let compat = flags & COMPAT != 0;
    let places = [To::Uuid, To::Time, To::Field(0), To::Field(1)];
    let syntax = match flags & JSON != 0 {
        true => {
            let names = ["uuid", "time", "a", "b"];
            Syntax::Json(Json::new(names.map(str::to_owned).into_iter().zip(places), compat))
        }
        false => Syntax::Csv(Csv { delimiter, quotes: !compat }, places.to_vec()),
    };
    let skip = flags & SKIP != 0;
    let reader = Box::new(std::io::Cursor::new(text.to_vec()));
    let (fields, row_max) = (FIELDS.len(), feed::row_bytes_max(0));
    let feed = Feed::new(reader, Vec::new(), 1, syntax, fields, row_max, Tally::new(skip));

    let mut builder = Builder::new(&FIELDS).expect("the fields are good");
    let mut events: Vec<Event> = Vec::new();
    let mut stopped = false;
    let fed = feed.run(if flags & THREADS != 0 { 2 } else { 1 }, |batch| {
        for (row, cells) in batch.events(FIELDS.len()) {
            let values: Vec<&[u8]> =
                cells.iter().map(|cell| cell.of(&batch.text, &batch.extra)).collect();
            builder.add(row.uuid, row.time, &values).expect("two values, none too long");
            let values = values.into_iter().map(<[u8]>::to_vec).collect();
            events.push((row.line, row.uuid, row.time, values));
        }
        stopped |= batch.problem.is_some();
        Ok::<bool, ()>(!stopped)
    });
    let skipped = match fed {
        Ok(tally) => tally.total(),
        Err(_) => panic!("memory can be read and nobody stopped"),
    };
    assert!(skip || skipped == 0, "{skipped} passed over");
    assert!(!(skip && stopped), "stopped where bad rows are passed over");
    assert!(events.is_sorted_by(|a, b| a.0 < b.0), "lines go backwards");
    let lines = text.split(|&byte| byte == b'\n').count() as u64;
    assert!(events.iter().all(|event| (1..=lines).contains(&event.0)), "a line behind the end");
    if flags & JSON == 0 && (compat || !text.contains(&b'"')) {
        compare(text, delimiter, compat, &events);
    }
    if flags & FINISH != 0 {
        finish(builder, &events);
    }
});

/// Each event is what splitting its line gives.
fn compare(text: &[u8], delimiter: u8, compat: bool, events: &[Event]) {
    let lines: Vec<&[u8]> = text.split(|&byte| byte == b'\n').collect();
    for (line, uuid, time, values) in events {
        let mut line = lines[*line as usize - 1];
        line = match compat {
            // A row ends at its first NUL byte.
            true => line.split(|&byte| byte == 0).next().unwrap_or_default(),
            false => line.strip_suffix(b"\r").unwrap_or(line),
        };
        let mut cells = line.split(|&byte| byte == delimiter);
        let mut text = || String::from_utf8_lossy(cells.next().unwrap_or_default()).into_owned();
        let (id, when) = (text(), text());
        assert_eq!(format!("{:0<32}", id.to_lowercase()), uuid.to_string());
        assert_eq!(when.trim_start_matches('0'), time.to_string().trim_start_matches('0'));
        for value in values {
            assert_eq!(*value, cells.next().unwrap_or_default());
        }
    }
}

/// The database has these events, or their times are too far apart.
fn finish(builder: Builder, events: &[Event]) {
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    let path = folder.as_ref().expect("a scratch folder can be made").path().join("a.tdb");
    match builder.finish(&path) {
        Ok(written) => {
            assert_eq!(written.events, events.len() as u64);
            let reader = traildb::Reader::open(&path).expect("what was written can be read");
            let mut cursor = reader.cursor().expect("it has a codebook");
            let mut count = 0;
            for trail in 0..reader.trails() {
                cursor.seek(trail).expect("every trail is there");
                while cursor.next_event().expect("every event is good").is_some() {
                    count += 1;
                }
            }
            assert_eq!(count, written.events);
        }
        Err(traildb::Error::Input(_)) => {}
        Err(error) => panic!("{error}"),
    }
}
