//! An index finds every trail that a look at all of them finds, or says that it cannot.

use std::{fs, io, ops::Range, path::Path};

use proptest::{collection::vec, prelude::*};
use traildb::{
    Builder, Error, Index, Reader, Storage, Uuid,
    filter::{self, BindError},
    index::{Build, path_of},
    storage::File,
};

use crate::{
    queries::{Wanted, database, large, plain, value, wanted},
    support,
};

fn index(reader: &Reader<File>, path: &Path, threads: usize, memory: u64) -> Vec<u8> {
    let built = Build::new(reader).threads(threads).memory_bytes(memory).write(path).unwrap();
    let bytes = fs::read(path).unwrap();
    assert_eq!(built.bytes, bytes.len() as u64);
    bytes
}

/// The trails that can match, with the index attached.
fn candidates(reader: &Reader<File>, filter: traildb::Filter) -> Vec<u64> {
    let matching = reader.view().with_filter(filter).matching_trails().unwrap();
    matching.collect::<Result<_, _>>().unwrap()
}

proptest! {
    /// No trail is missed, whatever the filter, and for filters that only ask for items of one field
    /// none is too much. Items are the same with and without the index.
    #[test]
    fn an_index_never_misses(plain in plain(), list in vec(wanted(), 1..6)) {
        let (dir, mut reader, rows) = database(&plain);
        let path = dir.path().join("db.tdbidx");
        index(&reader, &path, 2, 0);
        let filters: Vec<_> = list.iter().map(|wanted| wanted.expr().bind(&reader)).collect();
        let plain_items: Vec<_> = (1..=3u16)
            .flat_map(|field| (0..12).map(move |n| (field, value(n))))
            .map(|(field, value)| reader.item(field, &value).unwrap())
            .collect();
        let opened = Index::open(File::open(&path).unwrap(), &reader).unwrap();
        reader.attach(opened).unwrap();
        let items: Vec<_> = (1..=3u16)
            .flat_map(|field| (0..12).map(move |n| (field, value(n))))
            .map(|(field, value)| reader.item(field, &value).unwrap())
            .collect();
        prop_assert_eq!(items, plain_items);
        for (wanted, before) in list.iter().zip(filters) {
            let (filter, before) = match (wanted.expr().bind(&reader), before) {
                (Ok(filter), Ok(before)) => (filter, before),
                (Err(BindError::TooLarge), _) => continue,
                (after, _) => panic!("{after:?}"),
            };
            prop_assert_eq!(&filter, &before, "bound with an index");
            let found = candidates(&reader, filter.clone());
            for (trail, (_, events)) in rows.iter().enumerate() {
                let matches = events.iter().any(|row| wanted.matches(row));
                prop_assert!(!matches || found.contains(&(trail as u64)), "{} is missed", trail);
                let exact = matches!(wanted, Wanted::Is(..) | Wanted::In(..));
                prop_assert!(!exact || matches || !found.contains(&(trail as u64)), "too much");
            }
            let mut scanned = 0;
            reader.view().with_filter(filter).scan_matching().unwrap().threads(2).run(
                |chunk| {
                    let mut count = 0;
                    while let Some(trail) = chunk.next_trail()? {
                        count += trail.count_rest()?;
                    }
                    Ok::<_, Error>(count)
                },
                |count| {
                    scanned += count;
                    Ok(())
                },
            ).unwrap();
            let all = rows.iter().flat_map(|(_, events)| events);
            prop_assert_eq!(scanned, all.filter(|row| wanted.matches(row)).count() as u64);
        }
    }
}

#[test]
fn an_index_does_not_depend_on_threads_and_memory() {
    let (dir, mut reader) = large();
    let path = path_of(&dir.path().join("db.tdb"));
    assert_eq!(path.file_name().unwrap(), "db.tdb.tdbidx");
    let one = index(&reader, &path, 1, 256 << 20);
    // 1 MiB holds half of the pairs, so this goes through temporary files.
    assert!(one == index(&reader, &path, 3, 1 << 20), "the bytes differ");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "the database and its index");
    let opened = Index::open(File::open(&path).unwrap(), &reader).unwrap();
    reader.attach(opened).unwrap();
    let bind = |text: &str| filter::parse(text).unwrap().bind(&reader).unwrap();
    assert_eq!(candidates(&reader, bind("n=77")), [77]);
    assert_eq!(candidates(&reader, bind("n=77 n=19999 n=no")), [77, 19_999]);
    assert_eq!(candidates(&reader, bind("n=77 & even=yes")), [77]);
    assert_eq!(candidates(&reader, bind("n=77 & even=")), [0u64; 0]);
    let odd: Vec<u64> = (0..20_000).filter(|n| n % 2 == 1).collect();
    assert_eq!(candidates(&reader, bind("even=yes")), odd);
    assert_eq!(candidates(&reader, bind("even!=yes")).len(), 20_000, "a negation says nothing");
    let view = reader.view().with_filter(bind("n=77"));
    let view = view.with_trail_filter(3, traildb::Filter::all());
    let view = view.with_trail_filter(77, traildb::Filter::none());
    let found: Vec<u64> = view.matching_trails().unwrap().map(Result::unwrap).collect();
    assert_eq!(found, [3], "filters of trails override");
}

#[test]
fn the_index_is_beside_a_directory() {
    for (database, index) in [
        ("logs/a.tdb", "logs/a.tdb.tdbidx"),
        ("events", "events.tdbidx"),
        ("events/", "events.tdbidx"),
        ("/x/events//", "/x/events.tdbidx"),
    ] {
        assert_eq!(path_of(Path::new(database)), Path::new(index), "{database}");
    }
}

/// What a killed process has left of an index goes with the next one.
#[test]
fn an_unfinished_index_is_removed() {
    let (dir, reader, _) = database(&vec![vec![(1, [1, 1, 1])]]);
    let path = path_of(&dir.path().join("db.tdb"));
    fs::write(dir.path().join("db.tdb.tdbidx.1-0.part"), "half").unwrap();
    index(&reader, &path, 1, 0);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "the database and its index");
}

#[test]
fn an_index_of_another_database_is_refused() {
    let dir = support::scratch();
    let make = |name: &str, value: &str| {
        let path = dir.path().join(name);
        let mut builder = Builder::new(&["a"]).unwrap();
        builder.add(Uuid::default(), 1, &[value]).unwrap();
        builder.add(Uuid::default(), 2, &["common"]).unwrap();
        builder.finish(&path).unwrap();
        Reader::open(&path).unwrap()
    };
    let (one, mut two) = (make("one.tdb", "x"), make("two.tdb", "longer"));
    let path = dir.path().join("one.idx");
    index(&one, &path, 1, 0);
    let open = || File::open(&path).unwrap();
    let error = Index::open(open(), &two).unwrap_err();
    assert!(matches!(error, Error::IndexMismatch { .. }), "{error}");
    assert!(matches!(
        two.attach(Index::open(open(), &one).unwrap()),
        Err(Error::IndexMismatch { .. })
    ));
    let mut bytes = fs::read(&path).unwrap();
    let refused = |bytes: &[u8]| Index::open(bytes, &one).unwrap_err();
    bytes[8] = 9;
    assert!(refused(&bytes).is_damage(), "the checksum");
    assert!(refused(&bytes[..4000]).is_damage());
    assert!(refused(b"").is_damage());
    assert!(Index::open(&fs::read(dir.path().join("one.tdb")).unwrap()[..], &one).is_err());
}

/// Values of the same lengths leave every size, number, code and trail as it was; only lexicons differ.
#[test]
fn an_index_of_values_as_long_as_these_is_refused() {
    let dir = support::scratch();
    let make = |name: &str, values: [&str; 2]| {
        let path = dir.path().join(name);
        let mut builder = Builder::new(&["fixed", "user"]).unwrap();
        for (time, value) in (0..).zip(values) {
            builder.add(Uuid::default(), time, &["same", value]).unwrap();
        }
        builder.finish(&path).unwrap();
        Reader::open(&path).unwrap()
    };
    let (old, new) = (make("old.tdb", ["alice", "carol"]), make("new.tdb", ["bobby", "carol"]));
    assert_eq!(old.members(), new.members(), "nothing else tells them apart");
    let path = dir.path().join("old.idx");
    index(&old, &path, 1, 0);
    let error = Index::open(File::open(&path).unwrap(), &new).unwrap_err();
    assert!(matches!(error, Error::IndexMismatch { .. }), "{error}");
    Index::open(File::open(&path).unwrap(), &old).unwrap();
}

#[test]
fn the_fixtures_are_indexed() {
    for fixture in support::fixtures() {
        let dir = support::scratch();
        let path = dir.path().join("index");
        let mut reader = fixture.open();
        Build::new(&reader).threads(2).write(&path).unwrap();
        let bytes = fs::read(&path).unwrap().leak();
        reader.attach(Index::open(&*bytes, &reader).unwrap()).unwrap();
        let names: Vec<String> = reader.fields().unwrap().names().map(String::from).collect();
        for (field, name) in names.iter().enumerate().take(20) {
            let last = fixture.trails.len().saturating_sub(1);
            for (trail, (_, events)) in fixture.trails.iter().enumerate() {
                if ![0, last / 2, last].contains(&trail) {
                    continue;
                }
                for (_, values) in events.iter().take(3) {
                    let expr = filter::Expr::is(name, &values[field]);
                    let view = reader.view().with_filter(expr.bind(&reader).unwrap());
                    let found: Vec<u64> =
                        view.matching_trails().unwrap().map(Result::unwrap).collect();
                    let expected: Vec<u64> = (0u64..)
                        .zip(&fixture.trails)
                        .filter(|(_, (_, events))| {
                            events.iter().any(|e| e.1[field] == values[field])
                        })
                        .map(|(trail, _)| trail)
                        .collect();
                    assert_eq!(found, expected, "{}, {name}", fixture.name);
                }
            }
        }
    }
}

/// Bytes of which some are not what they were, their checksums mended.
struct Mended(Vec<u8>);

impl Storage for Mended {
    type Bytes<'a> = &'a [u8];

    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn bytes(&self, range: Range<u64>) -> io::Result<&[u8]> {
        Ok(&self.0[range.start as usize..range.end as usize])
    }
}

/// CRC-32C, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), |crc, _| step(crc)))
}

fn mend(bytes: &mut [u8]) {
    for (number, page) in bytes.chunks_mut(4096).enumerate() {
        let crc = crc32c(&page[..4092]).wrapping_add(number as u32);
        page[4092..].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Sound pages of another version: nothing is damaged, and what to do is said.
#[test]
fn an_index_of_another_version_says_so() {
    let (dir, reader, _) = database(&vec![vec![(1, [1, 1, 1]), (2, [2, 2, 2])]]);
    let sound = index(&reader, &dir.path().join("index"), 1, 0);
    assert_eq!(sound[8..12], 2u32.to_le_bytes());
    for version in [0u32, 1, 3, 9, u32::MAX] {
        let mut bytes = sound.clone();
        bytes[8..12].copy_from_slice(&version.to_le_bytes());
        mend(&mut bytes);
        let Err(error) = Index::open(Mended(bytes), &reader) else { panic!("{version}: taken") };
        let text = error.to_string();
        let Error::IndexVersion { version: told, .. } = error else { panic!("{version}: {text}") };
        assert_eq!(told, u64::from(version));
        assert!(text.contains("version 2") && text.contains("make it again"), "{text}");
    }
}

/// Each number of an entry that does not follow from the others is refused, slots too narrow for a
/// value and its hash among them.
#[test]
fn an_entry_of_another_width_is_refused() {
    let (dir, reader, _) = database(&vec![vec![(1, [1, 1, 1]), (2, [2, 2, 2])]]);
    let sound = index(&reader, &dir.path().join("index"), 1, 0);
    // The entry of field 1 is at 40; its last number is the width of a slot of the table.
    let width_at = 40 + 56;
    assert_eq!(sound[width_at], 3, "one byte for the number, two of the hash");
    for width in [0, 1, 2, 4, 7, 8, 9, 255] {
        let mut bytes = sound.clone();
        bytes[width_at] = width;
        mend(&mut bytes);
        let opened = Index::open(Mended(bytes), &reader).unwrap();
        let error = opened.item(&reader, 1, b"one").unwrap_err();
        assert!(error.is_damage(), "{width}: {error}");
    }
}

proptest! {
    /// Damage that checksums do not show is an error or a wrong answer, never a panic or a hang.
    #[test]
    fn a_forged_index_is_answered(
        plain in plain(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        wanted in wanted(),
    ) {
        let (dir, reader, _) = database(&plain);
        let path = dir.path().join("index");
        let mut bytes = index(&reader, &path, 1, 0);
        for (at, byte) in changes {
            // Most of the file is zeros behind the end: near the start is more to break.
            let len = bytes.len().min(600);
            bytes[at.index(len)] = byte;
        }
        mend(&mut bytes);
        let Ok(filter) = wanted.expr().bind(&reader) else { return Ok(()) };
        let Ok(opened) = Index::open(Mended(bytes), &reader) else { return Ok(()) };
        let opened = std::sync::Arc::new(opened);
        let _ = opened.item(&reader, 1, b"one");
        let _ = opened.item(&reader, 2, b"no such value");
        if let Ok(found) = opened.matching_trails(&reader, &filter) {
            for trail in found {
                let Ok(trail) = trail else { break };
                prop_assert!(trail < reader.trails());
            }
        }
    }
}
