//! Damaged files: every check of FORMAT.md, by a file that breaks its rule and no other.

use std::collections::BTreeMap;

use traildb::{Builder, Error, Item, Options, Reader, Uuid};

use crate::support::{contents, open_members, package, scratch};

pub(crate) type Members = BTreeMap<String, Vec<u8>>;

/// A database of three trails with two fields, as members.
pub(crate) fn good() -> Members {
    let folder = scratch();
    let path = folder.path().join("db");
    let options = Options::default().directory(true);
    let mut builder = Builder::with_options(&["a", "b"], options).unwrap();
    for (uuid, time, a, b) in
        [(3u128, 5, "x", "1"), (3, 9, "y", "1"), (1 << 120, 5, "x", ""), (7, 6, "z", "2")]
    {
        builder.add(Uuid::from_number(uuid), time, &[a, b]).unwrap();
    }
    builder.finish(&path).unwrap();
    let entries = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap());
    let read = |entry: std::fs::DirEntry| {
        (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())
    };
    entries.map(read).collect()
}

/// Everything that can be read.
fn read(members: &Members) -> Result<(), Error> {
    let reader = open_members(members)?;
    contents(&reader)?;
    reader.uuids(0..reader.trails())?;
    for field in 1..=2 {
        for number in 1..=reader.values(field)? {
            reader.value(Item::new(field, number))?;
        }
        reader.item(field, b"none")?;
    }
    Ok(())
}

/// The entry of the codebook that code words of this many bits have first.
fn entry_of(book: &[u8]) -> usize {
    book.chunks_exact(20).position(|entry| entry[16] != 0).unwrap()
}

pub(crate) type Damage = fn(&mut Members);

/// Files that break one rule: which, in which member, and how.
pub(crate) fn damages() -> Vec<(&'static str, &'static str, Damage)> {
    fn member<'m>(members: &'m mut Members, name: &str) -> &'m mut Vec<u8> {
        members.get_mut(name).unwrap()
    }
    vec![
        ("V1 no number", "version", |m| member(m, "version").push(b'x')),
        ("N2 four numbers", "info", |m| *member(m, "info") = b"3 4 5 9\n".to_vec()),
        ("N2 no digits", "info", |m| *member(m, "info") = b"3 4 5 9 +4\n".to_vec()),
        ("N2 too long", "info", |m| member(m, "info").resize(600, b' ')),
        ("N2 events", "info", |m| *member(m, "info") = b"3 2 5 9 4\n".to_vec()),
        ("L4 delta", "info", |m| *member(m, "info") = b"3 4 5 9 999999999999999\n".to_vec()),
        ("F3 time", "fields", |m| *member(m, "fields") = b"a\ntime\n\n".to_vec()),
        ("F3 twice", "fields", |m| *member(m, "fields") = b"a\na\n\n".to_vec()),
        ("F3 slash", "fields", |m| *member(m, "fields") = b"a\n../b\n\n".to_vec()),
        ("C1 lexicon", "lexicon.b", |m| drop(m.remove("lexicon.b"))),
        ("C1 toc", "trails.toc", |m| drop(m.remove("trails.toc"))),
        ("C1 info", "info", |m| drop(m.remove("info"))),
        ("X1 count", "lexicon.a", |m| member(m, "lexicon.a")[3] = 1),
        ("X1 short", "lexicon.a", |m| member(m, "lexicon.a").truncate(3)),
        ("X3 empty value", "lexicon.a", |m| {
            let lexicon = member(m, "lexicon.a");
            lexicon[8] = lexicon[4];
        }),
        ("X3 backwards", "lexicon.a", |m| member(m, "lexicon.a")[8] = 0),
        ("X3 before the values", "lexicon.a", |m| member(m, "lexicon.a")[4] = 4),
        ("X3 outside", "lexicon.a", |m| member(m, "lexicon.a")[19] = 200),
        ("U1 size", "uuids", |m| member(m, "uuids").truncate(47)),
        ("U2 order", "uuids", |m| member(m, "uuids")[15] = 0xff),
        ("T1 size", "trails.toc", |m| member(m, "trails.toc").extend([0; 4])),
        ("T1 backwards", "trails.toc", |m| member(m, "trails.toc")[0] = 200),
        ("T1 outside", "trails.toc", |m| member(m, "trails.toc")[12 + 1] = 1),
        ("T1 empty trail", "trails.toc", |m| {
            let toc = member(m, "trails.toc");
            toc[4] = toc[0];
        }),
        ("B1 size", "trails.codebook", |m| member(m, "trails.codebook").truncate(1000)),
        ("B1 length", "trails.codebook", |m| member(m, "trails.codebook")[16] = 17),
        ("B1 field", "trails.codebook", |m| {
            let book = member(m, "trails.codebook");
            let at = entry_of(book) * 20;
            let (old, bits) = (book[at..at + 20].to_vec(), book[at + 16]);
            for entry in book.chunks_exact_mut(20).filter(|entry| **entry == *old) {
                entry[0] = 9;
                entry[16] = bits;
            }
        }),
        // The second item of symbols, whose field stays: one value more than that field has.
        ("B1 value", "trails.codebook", |m| {
            let book = member(m, "trails.codebook");
            let mut changed = 0;
            for entry in book.chunks_exact_mut(20).filter(|entry| entry[8] != 0) {
                let field = u16::from(entry[8]);
                let values = if field == 1 { 3 } else { 2 };
                entry[8..16].copy_from_slice(&Item::new(field, values + 1).raw().to_le_bytes());
                changed += 1;
            }
            assert!(changed > 0, "a symbol of two items");
        }),
        ("B3 copies differ", "trails.codebook", |m| {
            let book = member(m, "trails.codebook");
            let at = book.len() - 20;
            book[at + 1] ^= 1;
        }),
    ]
}

#[test]
fn every_broken_rule_is_found_and_named() {
    assert!(read(&good()).is_ok());
    for (what, at_fault, damage) in damages() {
        let mut members = good();
        damage(&mut members);
        match read(&members) {
            Err(Error::Damaged { member, .. }) => assert_eq!(member, at_fault, "{what}"),
            other => panic!("{what}: {other:?}"),
        }
    }
}

#[test]
fn a_version_of_the_future_is_refused() {
    let mut members = good();
    members.insert("version".into(), b"2".to_vec());
    let error = open_members(&members).unwrap_err();
    assert!(matches!(error, Error::Version { version: 2, .. }), "{error}");
}

#[test]
fn damaged_trails_are_errors_at_their_place() {
    // A trail of one byte: 3 bits of unused count, a flag, 2 bits of field, 2 of value.
    let cases: [(&str, u8, &str); 5] = [
        ("no events", 0b0000_0101, "has no events"),
        ("a field that does not exist", 0b0011_0000, "a literal of a field that does not exist"),
        ("a value that does not exist", 0b1110_0000, "a literal of a value that does not exist"),
        ("ends inside a literal", 0, "ends inside a symbol"),
        ("starts without a time", 0b0001_0000, "starts without a time"),
    ];
    for (what, byte, text) in cases {
        let mut members = good();
        let data = members.get_mut("trails.data").unwrap();
        data[0] = byte;
        let toc = members.get_mut("trails.toc").unwrap();
        toc[4] = 1;
        let reader = open_members(&members).unwrap();
        let error = reader.trail(0).unwrap_err();
        assert!(
            matches!(&error, Error::Damaged { member, .. } if member == "trails.data"),
            "{what}"
        );
        assert!(error.to_string().contains(text), "{what}: {error}");
    }
}

/// The members whose first trail is these numbers of so many bits, from that of unused bits on.
fn with_first_trail(numbers: &[(u32, u32)]) -> Members {
    let mut members = good();
    let bits: Vec<bool> =
        numbers.iter().flat_map(|&(number, n)| (0..n).map(move |k| number >> k & 1 == 1)).collect();
    let byte = |bits: &[bool]| (0..bits.len()).map(|k| u8::from(bits[k]) << k).sum::<u8>();
    let mut data: Vec<u8> = bits.chunks(8).map(byte).collect();
    let ends = [0, data.len(), data.len() + 1, data.len() + 2];
    data.extend([0; 10]);
    members.insert("trails.data".into(), data);
    let toc = ends.iter().flat_map(|&end| (end as u32).to_le_bytes());
    members.insert("trails.toc".into(), toc.collect());
    members
}

/// Behind events that are good, and before others, where whole trails are decoded fast.
#[test]
fn symbols_that_do_not_exist_are_found_in_the_middle() {
    // A time with a delta of 0, and a literal of field 2 with a value of its two.
    let time = [(0, 1), (0, 2), (0, 3)];
    let second = |value: u32| [(0, 1), (2, 2), (value, 2)];
    // No entry of this codebook is used: whatever code word comes has length 0.
    let unused = |members: &mut Members| members.get_mut("trails.codebook").unwrap().fill(0);
    type Case<'c> = (&'c str, &'c [(u32, u32)], Option<&'c str>);
    let cases: [Case<'_>; 3] = [
        ("a value that the field has", &second(2), None),
        ("a value more", &second(3), Some("a literal of a value that does not exist")),
        ("a code of length 0", &[(1, 1), (0, 4)], Some("no code word starts like this")),
    ];
    for (what, bad, text) in cases {
        let good = [&time[..], &second(1)].concat();
        let before: Vec<_> = (0..100).flat_map(|_| good.clone()).collect();
        let unused_bits = [(0, 3)];
        let trail = [&unused_bits[..], &before, bad, &before];
        let mut numbers = trail.concat();
        let bits: u32 = numbers.iter().map(|&(_, n)| n).sum();
        numbers[0].0 = bits.wrapping_neg() % 8;
        let mut members = with_first_trail(&numbers);
        unused(&mut members);
        let reader = open_members(&members).unwrap();
        let events = || -> Result<usize, Error> {
            let mut trail = reader.trail(0)?;
            let mut events = 0;
            while trail.next_event()?.is_some() {
                events += 1;
            }
            Ok(events)
        };
        match (events(), text) {
            (Ok(events), None) => assert_eq!(events, 200, "{what}"),
            (Err(Error::Damaged { member, reason, .. }), Some(text)) => {
                assert_eq!(member, "trails.data", "{what}");
                assert!(reason.contains(text), "{what}: {reason}");
            }
            (got, _) => panic!("{what}: {got:?}"),
        }
    }
}

#[test]
fn packages_with_a_broken_index_are_refused() {
    let good = package(&good());
    assert!(Reader::new(good.as_slice()).is_ok());
    let put = |at: usize, bytes: &[u8]| {
        let mut file = good.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    let line = 2560 + 22;
    let cases = [
        ("nothing", Vec::new()),
        ("too short", good[..2570].to_vec()),
        ("no magic", put(2560, b"X")),
        ("no such line", put(line, b"info  ")),
        ("no end", {
            let mut file = good.clone();
            file[2560 + 22..].fill(b'x');
            file
        }),
        ("no lines", put(line, b"\n\n")),
        ("cut", good[..good.len() / 2].to_vec()),
    ];
    for (what, file) in cases {
        let error = Reader::new(file.as_slice()).map(drop).unwrap_err();
        assert!(error.is_damage(), "{what}: {error}");
    }
}

/// Any byte changed, any length cut: an answer or an error.
#[test]
fn no_single_change_makes_the_reader_panic() {
    let good = good();
    for (name, bytes) in &good {
        let step = if name == "trails.codebook" { 9973 } else { 1 };
        for at in (0..bytes.len()).step_by(step) {
            for change in [1u8, 0xfe] {
                let mut members = good.clone();
                members.get_mut(name).unwrap()[at] ^= change;
                let _ = read(&members);
            }
            let mut members = good.clone();
            members.get_mut(name).unwrap().truncate(at);
            let _ = read(&members);
        }
    }
}

/// A trail of one event in which a field changes again and again, a few bits each time.
#[test]
fn changes_of_an_event_are_no_more_than_fields() {
    // How many bits of the last byte are unused comes first: none. A time with a delta of 0, in the
    // bits of a delta of 4. Then literals of field 1 with its first value, of three.
    let mut numbers = vec![(0, 3), (0, 1), (0, 2), (0, 3)];
    for _ in 0..4099 {
        numbers.extend([(0, 1), (1, 2), (1, 2)]);
    }
    assert_eq!(numbers.iter().map(|&(_, n)| n).sum::<u32>() % 8, 0);
    let members = with_first_trail(&numbers);
    let reader = open_members(&members).unwrap();
    let mut trail = reader.trail(0).unwrap();
    let event = trail.next_event().unwrap().unwrap();
    assert_eq!(event.items, [Item::new(1, 1), Item::new(2, 0)]);
    let mut changes = reader.view().only_changes().trail(0).unwrap();
    let error = changes.next_event().unwrap_err();
    assert!(error.is_damage() && error.to_string().contains("more changes"), "{error}");
    assert!(changes.next_event().unwrap().is_none(), "the trail is over");
}
