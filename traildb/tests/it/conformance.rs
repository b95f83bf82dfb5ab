//! Files keep every rule of FORMAT.md, says a checker that shares no line with the library: the
//! original library's files, which checks the checker, and ours of the same events.

use std::{collections::BTreeMap, fs, path::Path};

use traildb::{Bigrams, Builder, Options, Uuid};

use crate::{
    rules::{self, Content},
    support::{Fixture, Rows, fixtures, scratch},
};

/// The members of a directory by name.
fn files(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
    let member = |entry: fs::DirEntry| {
        (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
    };
    entries.map(member).collect()
}

/// Events in the order in which they are added.
type Added = Vec<(Uuid, u64, Vec<Vec<u8>>)>;

fn flat(trails: &[Rows]) -> Added {
    let events = trails.iter().flat_map(|(uuid, rows)| rows.iter().map(move |row| (*uuid, row)));
    events.map(|(uuid, (time, values))| (uuid, *time, values.clone())).collect()
}

/// What a database of `added` must hold: trails by UUID, events by time and then by addition, values
/// numbered as they first occur.
pub(crate) fn expected(fields: &[String], added: &Added) -> (Vec<Vec<Vec<u8>>>, Vec<Rows>) {
    let mut lexicons: Vec<Vec<Vec<u8>>> = vec![Vec::new(); fields.len()];
    let mut trails: BTreeMap<u128, Rows> = BTreeMap::new();
    let mut known = std::collections::HashSet::new();
    for (uuid, time, values) in added {
        for (field, value) in values.iter().enumerate() {
            if !value.is_empty() && known.insert((field, value)) {
                lexicons[field].push(value.clone());
            }
        }
        let rows = trails.entry(u128::from_le_bytes(uuid.0)).or_insert((*uuid, Vec::new()));
        rows.1.push((*time, values.clone()));
    }
    let mut trails: Vec<Rows> = trails.into_values().collect();
    trails.iter_mut().for_each(|(_, rows)| rows.sort_by_key(|(time, _)| *time));
    (lexicons, trails)
}

/// Writes `added` with these options and has the file checked, in both forms.
pub(crate) fn written(fields: &[String], added: &Added, options: Options) -> [Content; 2] {
    let folder = scratch();
    [false, true].map(|directory| {
        let path = folder.path().join(format!("db-{directory}"));
        let mut builder =
            Builder::with_options(fields, options.clone().directory(directory)).unwrap();
        for (uuid, time, values) in added {
            builder.add(*uuid, *time, values).unwrap();
        }
        builder.finish(&path).unwrap();
        let checked = match directory {
            true => rules::directory(&files(&path)),
            false => rules::package(&fs::read(&path).unwrap()),
        };
        checked.unwrap_or_else(|broken| panic!("{broken}"))
    })
}

fn fields(fixture: &Fixture) -> Vec<String> {
    let names = fixture.meta["fields"].as_array().unwrap();
    names.iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_original_librarys_files_keep_every_rule() {
    for fixture in fixtures() {
        let checked = match fixture.package() {
            Some(bytes) => rules::package(bytes),
            None => rules::directory(&fixture.files),
        };
        let content = checked.unwrap_or_else(|broken| panic!("{}: {broken}", fixture.name));
        assert_eq!(content.fields, fields(&fixture), "{}", fixture.name);
        assert!(content.trails == fixture.trails, "{}", fixture.name);
        assert_eq!(content.unused, 0, "{}", fixture.name);
    }
}

#[test]
fn files_of_every_fixtures_events_keep_every_rule() {
    for fixture in fixtures() {
        let (fields, added) = (fields(&fixture), flat(&fixture.trails));
        let (lexicons, trails) = expected(&fields, &added);
        for bigrams in [Bigrams::Auto, Bigrams::On, Bigrams::Off] {
            let name = format!("{}, pairs: {bigrams:?}", fixture.name);
            for content in written(&fields, &added, Options::default().bigrams(bigrams)) {
                assert_eq!(content.fields, fields, "{name}");
                assert!(content.lexicons == lexicons, "{name}: lexicons");
                assert!(content.trails == trails, "{name}: events");
                assert_eq!(content.unused, 0, "{name}");
            }
        }
    }
}

/// A checker that finds nothing proves nothing: each case breaks one rule.
#[test]
fn the_checker_finds_what_is_broken() {
    let folder = scratch();
    let path = folder.path().join("db");
    // A name of more than a hundred bytes, so that there is a long-name record.
    let long = "n".repeat(120);
    let names = ["a", "b", &long];
    let mut builder = Builder::new(&names).unwrap();
    for n in 0..40u64 {
        let values = [format!("{}", n % 3), "same".to_owned(), String::new()];
        builder.add(Uuid::from_number(u128::from(n % 5) << 100), n * n, &values).unwrap();
    }
    builder.finish(&path).unwrap();
    let good = fs::read(&path).unwrap();
    let content = rules::package(&good).unwrap();
    assert_eq!((content.trails.len(), content.lexicons[0].len()), (5, 3));

    // Where the members are, by their own index.
    let index = String::from_utf8_lossy(&good[2560..]).into_owned();
    let place = |name: &str| {
        let line = index.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
        let mut parts = line.split(' ').skip(1).map(|part| part.parse::<usize>().unwrap());
        (parts.next().unwrap(), parts.next().unwrap())
    };
    let at = |name: &str| place(name).0;
    let end = |name: &str| place(name).0 + place(name).1;
    let info = String::from_utf8(good[1536..end("info")].to_vec()).unwrap();
    let more_events = info.replacen(" 40 ", " 41 ", 1);
    let (long_name, word) = (at(&format!("lexicon.{long}")) - 3 * 512, at("trails.codebook"));
    let entry = (0..65_536).find(|n| good[word + n * 20 + 16] != 0).unwrap();

    let cases: Vec<(&str, usize, Vec<u8>)> = vec![
        ("P6: mode", 100, b"0000755".to_vec()),
        ("P6: checksum", 0, b"V".to_vec()),
        ("P6: magic", 257, b"ustar\0".to_vec()),
        ("P6: a long name", long_name + 512 + 10, vec![0]),
        ("P1: padding", 1023, vec![1]),
        ("P4: index", 2560 + 30, b"9".to_vec()),
        ("P5: behind the end", end("tar.toc") - 1, b"x".to_vec()),
        ("P1: something behind", good.len() - 1, vec![1]),
        ("V1: version", 512, b"2".to_vec()),
        ("N2: 40 events", 1536, more_events.into_bytes()),
        ("N2: ", 1536, b" ".to_vec()),
        ("F3: field", at("fields"), b"/".to_vec()),
        ("P3: lexicons", at("fields"), b"z".to_vec()),
        ("X1: ", at("lexicon.a"), vec![255]),
        ("X3: the first value", at("lexicon.a") + 4, vec![21]),
        ("X3: value 1 from", at("lexicon.a") + 8, vec![20]),
        ("X3: value 2 is there twice", end("lexicon.a") - 2, vec![good[end("lexicon.a") - 3]]),
        ("X2: ", at("lexicon.b") + 8, vec![15]),
        ("B1: a word of 17", word + entry * 20 + 16, vec![17]),
        ("B1: a symbol without", word + entry * 20 + 16, vec![0]),
        ("I2: item", word + entry * 20 + 1, vec![0, 0, 0, 1]),
        ("B", word + 65_535 * 20, vec![0x7f, 0, 0, 0]),
        ("T1: from", at("trails.toc"), vec![1]),
        ("T1: a trail from", at("trails.toc") + 4, vec![0]),
        ("T2: padding", end("trails.data") - 1, vec![1]),
        ("T4: a bit is set", at("trails.toc"), Vec::new()),
        // Another symbol, or another number of events: it depends on the code.
        ("T|B|X|N2", at("trails.data"), vec![good[at("trails.data")] ^ 8]),
        ("U2: ", at("uuids") + 15, vec![0xff]),
    ];
    let mut missed = Vec::new();
    for (what, at, bytes) in cases {
        let mut file = good.clone();
        file[at..at + bytes.len()].copy_from_slice(&bytes);
        if what.starts_with("T4") {
            // The last bit of a trail whose last byte is not full.
            let toc = place("trails.toc").0;
            let number = |n: usize| {
                u32::from_le_bytes(good[toc + 4 * n..toc + 4 * n + 4].try_into().unwrap()) as usize
            };
            let data = place("trails.data").0;
            let trail = (0..5).find(|&n| good[data + number(n)] & 7 > 0).unwrap();
            file[data + number(trail + 1) - 1] |= 0x80;
        }
        let found = rules::package(&file).err();
        let is_meant = |found: &str| what.split('|').any(|start| found.starts_with(start));
        if !found.as_deref().is_some_and(is_meant) {
            missed.push((what, found));
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
}
