//! Which number a value has: the same whether a lexicon is passed over, or a table made.

use std::{
    fs, io,
    ops::Range,
    sync::{
        Arc, Barrier,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use proptest::prelude::*;
use traildb::{Item, Reader, Storage, storage::File};

use crate::{
    queries::{database, large, plain, value},
    support::{self, members, open_members},
};

proptest! {
    /// Asked again and again, with memory for tables and without, for one value or many.
    #[test]
    fn tables_find_what_a_scan_finds(plain in plain()) {
        let (dir, reader, rows) = database(&plain);
        let none = Reader::open(dir.path().join("db.tdb")).unwrap().lookup_memory(0);
        for field in 1..=3u16 {
            for n in 0..12 {
                let value = value(n);
                let expected = none.item(field, &value).unwrap();
                for round in 0..3 {
                    prop_assert_eq!(reader.item(field, &value).unwrap(), expected, "{}", round);
                }
                let events = rows.iter().flat_map(|(_, events)| events);
                let is_there =
                    value.is_empty() || events.into_iter().any(|e| e.1[usize::from(field) - 1] == value);
                prop_assert_eq!(expected.is_some(), is_there);
                if let Some(item) = expected {
                    prop_assert_eq!(&*reader.value(item).unwrap(), &value[..]);
                }
            }
            let values: Vec<Vec<u8>> = (0..12).map(value).collect();
            let values: Vec<&[u8]> = values.iter().map(Vec::as_slice).collect();
            prop_assert_eq!(reader.items(field, &values).unwrap(), none.items(field, &values).unwrap());
        }
    }
}

#[test]
fn a_table_holds_every_value_and_no_other() {
    let (_dir, reader) = large();
    let items: Vec<Item> = (1..=20_000).map(|n| Item::new(1, n)).collect();
    for &item in &items {
        let value = reader.value(item).unwrap().to_vec();
        assert_eq!(reader.item(1, &value).unwrap(), Some(item));
    }
    for stranger in ["20000", "-1", "00", " ", "yes"] {
        assert_eq!(reader.item(1, stranger.as_bytes()).unwrap(), None, "{stranger}");
    }
    assert!(reader.item(3, b"1").is_err(), "there are two fields");
    assert!(reader.item(0, b"1").is_err(), "time has no values");
}

/// Bytes in memory that counts how many of them are asked for.
struct Counting(Vec<u8>, AtomicU64);

impl Storage for Counting {
    type Bytes<'a> = &'a [u8];

    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn bytes(&self, range: Range<u64>) -> io::Result<&[u8]> {
        self.1.fetch_add(range.end - range.start, Relaxed);
        Ok(&self.0[range.start as usize..range.end as usize])
    }
}

/// With the answers alone nobody would see that there is none.
#[test]
fn the_second_question_makes_a_table_if_it_may_and_then_little_is_read() {
    let (dir, reader) = large();
    // An offset of four bytes for each value; and five slots of eight for four values, and one more.
    let (pass, table) = (4 * 20_000, 8 * (20_000 + 5_000 + 1));
    let lexicon = reader.members().iter().find(|member| member.0 == "lexicon.n").unwrap().1;
    assert!(lexicon > 2 * pass);
    let bytes = fs::read(dir.path().join("db.tdb")).unwrap();
    for memory in [table, table - 1, 0] {
        let storage = Arc::new(Counting(bytes.clone(), AtomicU64::new(0)));
        let reader = Reader::new(storage.clone()).unwrap().lookup_memory(memory);
        let read = |value: &str, is_there: bool| {
            let before = storage.1.load(Relaxed);
            assert_eq!(reader.item(1, value.as_bytes()).unwrap().is_some(), is_there, "{value}");
            storage.1.load(Relaxed) - before
        };
        assert!(read("17", true) >= pass / 2, "the first passes over the lexicon");
        assert!(read("19999", true) >= pass, "the second, too, or makes a table");
        for (value, is_there) in [("1234", true), ("0", true), ("no", false), ("20000", false)] {
            let read = read(value, is_there);
            match memory == table {
                true => assert!(read < 200, "{value}: {read} bytes with a table"),
                false => assert!(read >= pass / 2, "{value}: {read} bytes with {memory} of memory"),
            }
        }
    }
}

#[test]
fn threads_share_a_table() {
    let (_dir, reader) = large();
    let start = Barrier::new(4);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (reader, start): (&Reader<File>, _) = (&reader, &start);
            scope.spawn(move || {
                start.wait();
                for n in (thread..20_000).step_by(997) {
                    let found = reader.item(1, n.to_string().as_bytes()).unwrap().unwrap();
                    assert_eq!(&*reader.value(found).unwrap(), n.to_string().as_bytes());
                }
            });
        }
    });
}

/// Two values that are the same, which no writer makes: the first counts, as in a scan.
#[test]
fn of_equal_values_the_first_counts() {
    for fixture in support::fixtures() {
        let mut members = members(&fixture);
        let Some((name, lexicon)) = members.iter_mut().find(|(name, lexicon)| {
            name.starts_with("lexicon.") && u32::from_le_bytes(lexicon[..4].try_into().unwrap()) > 2
        }) else {
            continue;
        };
        let name = name.strip_prefix("lexicon.").unwrap().to_owned();
        let at = |k: usize| u32::from_le_bytes(lexicon[4 * k..4 * k + 4].try_into().unwrap());
        // The second value becomes as long as the first, and the same.
        let (one, two, three) = (at(1) as usize, at(2) as usize, at(3) as usize);
        let len = two - one;
        if three - two < len {
            continue;
        }
        lexicon.copy_within(one..two, two);
        lexicon[12..16].copy_from_slice(&((two + len) as u32).to_le_bytes());
        let value = lexicon[one..two].to_vec();
        let reader = open_members(&members).unwrap();
        let field = reader.field(&name).unwrap();
        for round in 0..3 {
            let found = reader.item(field, &value).unwrap();
            assert_eq!(found, Some(Item::new(field, 1)), "{}, round {round}", fixture.name);
        }
    }
}
