//! Version 0, of which there are no fixtures: those of version 1 are turned back into it, as
//! FORMAT.md V2 says.

use std::collections::BTreeMap;

use crate::support::{Fixture, contents, fixtures, members, open_members, package};

type Members = BTreeMap<String, Vec<u8>>;

fn number(bytes: &[u8]) -> usize {
    u32::from_le_bytes(bytes.try_into().unwrap()) as usize
}

fn numbers(bytes: &[u8]) -> Vec<usize> {
    bytes.chunks_exact(4).map(number).collect()
}

/// The fixture as version 0, its trails in reverse order; `None` if version 0 cannot hold it.
pub(crate) fn turned_back(fixture: &Fixture, last_offset: bool) -> Option<Members> {
    let new = members(fixture);
    let mut old = Members::new();
    old.insert("info".into(), new["info"].clone());
    let fields = new["fields"].strip_suffix(b"\n").unwrap();
    old.insert("fields".into(), fields.to_vec());
    for (name, lexicon) in new.iter().filter(|(name, _)| name.starts_with("lexicon.")) {
        old.insert(name.clone(), lexicon_of(lexicon, last_offset)?);
    }
    let mut codebook = Vec::new();
    for entry in new["trails.codebook"].chunks_exact(20) {
        let item = |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().unwrap());
        for at in [0, 8] {
            let narrow = item(at) & 128 == 0;
            codebook.extend(u32::try_from(item(at)).ok().filter(|_| narrow)?.to_le_bytes());
        }
        codebook.extend(&entry[16..]);
    }
    old.insert("trails.codebook".into(), codebook);
    let toc = numbers(&new["trails.toc"]);
    let (mut data, mut ends) = (Vec::new(), vec![0u32]);
    for trail in toc.windows(2).rev() {
        data.extend(&new["trails.data"][trail[0]..trail[1]]);
        ends.push(data.len() as u32);
    }
    data.extend([0; 8]);
    old.insert("trails.data".into(), data);
    old.insert("trails.toc".into(), ends.iter().flat_map(|end| end.to_le_bytes()).collect());
    let cookies = new["uuids"].chunks_exact(16).rev().flatten().copied();
    old.insert("cookies".into(), cookies.collect());
    Some(old)
}

/// Values with a NUL behind each, and offsets with or without the last one.
fn lexicon_of(new: &[u8], last_offset: bool) -> Option<Vec<u8>> {
    let count = number(&new[..4]);
    let offsets = numbers(&new[4..4 * (count + 2)]);
    let mut starts = Vec::new();
    let mut values = Vec::new();
    let head = 4 * (count + if last_offset { 2 } else { 1 });
    for pair in offsets.windows(2) {
        let value = &new[pair[0]..pair[1]];
        if value.contains(&0) {
            return None;
        }
        starts.push(head + values.len());
        values.extend(value);
        values.push(0);
    }
    if last_offset {
        starts.push(head + values.len());
    }
    let numbers = std::iter::once(count).chain(starts);
    let mut old: Vec<u8> = numbers.flat_map(|n| (n as u32).to_le_bytes()).collect();
    old.extend(values);
    Some(old)
}

#[test]
fn fixtures_turned_back_read_the_same() {
    let fixtures = fixtures();
    let mut held = 0;
    for fixture in &fixtures {
        for last_offset in [true, false] {
            let Some(members) = turned_back(fixture, last_offset) else { continue };
            held += 1;
            let name = &fixture.name;
            let file = package(&members);
            let readers = [open_members(&members), traildb::Reader::new(file.as_slice())];
            for reader in readers.map(|opened| opened.unwrap_or_else(|e| panic!("{name}: {e}"))) {
                assert_eq!(reader.version(), 0, "{name}");
                let mut got = contents(&reader).unwrap_or_else(|e| panic!("{name}: {e}"));
                got.reverse();
                assert!(got == fixture.trails, "{name}");
                let uuids: Vec<_> = got.iter().map(|(uuid, _)| *uuid).collect();
                let ids: Vec<_> = (0..reader.trails()).rev().map(Some).collect();
                assert_eq!(reader.trail_ids(&uuids).unwrap(), ids, "{name}");
                for field in 1..=reader.fields().unwrap().len() as u16 {
                    for number in 1..=reader.values(field).unwrap().min(30) {
                        let item = traildb::Item::new(field, number);
                        let value = reader.value(item).unwrap().to_vec();
                        assert_eq!(reader.item(field, &value).unwrap(), Some(item), "{name}");
                    }
                }
            }
        }
    }
    assert!(fixtures.is_empty() || held >= 10, "{held} of {} fit version 0", fixtures.len());
}

/// The first client could not close such a database that it had mapped.
#[cfg(feature = "pager")]
#[test]
fn it_is_read_and_closed_behind_a_region() {
    for fixture in fixtures() {
        let Some(members) = turned_back(&fixture, true) else { continue };
        let pager = pager::Pager::builder().budget_bytes(8 << 20).build().unwrap();
        let source = sources::Memory::new("version 0", package(&members));
        let reader = traildb::Reader::new(pager.open(source).unwrap()).unwrap();
        assert_eq!(reader.version(), 0, "{}", fixture.name);
        let mut got = contents(&reader).unwrap_or_else(|e| panic!("{}: {e}", fixture.name));
        got.reverse();
        assert!(got == fixture.trails, "{}", fixture.name);
        drop((reader, pager));
    }
}
