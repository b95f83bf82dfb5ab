//! Databases behind a region of the pager, with a budget smaller than the file.

use std::time::Duration;

use pager::{Pager, Region, policy::NoPrefetch};
use sources::{
    Faulty, Memory,
    faulty::{Failure, Fault, Schedule},
};
use traildb::{Builder, Error, Item, Reader, Uuid};

use crate::support::{contents, fixtures, scratch};

/// The smallest budget that units of 4 KiB may have, with room for their page tables.
const BUDGET: u64 = 320 << 10;

fn pager() -> Pager {
    Pager::builder()
        .budget_bytes(BUDGET)
        .unit_bytes(4096)
        .deadline(Duration::from_secs(20))
        .build()
        .unwrap()
}

fn region(pager: &Pager, name: &str, bytes: &[u8]) -> Region {
    pager.open(Memory::new(name, bytes.to_vec())).unwrap()
}

#[test]
fn every_fixture_reads_the_same_through_a_small_region() {
    let pager = pager();
    for fixture in fixtures() {
        let name = &fixture.name;
        let reader = match fixture.package() {
            Some(bytes) => {
                assert!(bytes.len() as u64 > BUDGET, "{name} is larger than the budget");
                Reader::new(region(&pager, name, bytes))
            }
            None => Reader::open_directory(|member| {
                Ok(fixture.files.get(member).map(|bytes| region(&pager, member, bytes)))
            }),
        }
        .unwrap_or_else(|error| panic!("{name}: {error}"));
        let uuids: Vec<Uuid> = fixture.trails.iter().map(|(uuid, _)| *uuid).collect();
        let ids: Vec<_> = (0..reader.trails()).map(Some).collect();
        assert_eq!(reader.trail_ids(&uuids).unwrap(), ids, "{name}");
        let got = read_copying(&reader).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(got == fixture.trails, "{name}");
    }
}

/// Like `contents`, but for values that are copied: one of 70,000 bytes may exceed the pins.
fn read_copying(reader: &Reader<Region>) -> Result<Vec<crate::support::Rows>, Error> {
    let mut all = Vec::new();
    let mut cursor = reader.cursor()?;
    for trail in 0..reader.trails() {
        cursor.seek(trail)?;
        let mut events = Vec::new();
        while let Some(event) = cursor.next_event()? {
            let value = |item: &Item| {
                let mut value = Vec::new();
                reader.append_value(*item, &mut value).map(|()| value)
            };
            events.push((event.time, event.items.iter().map(value).collect::<Result<_, _>>()?));
        }
        all.push((reader.uuid(trail)?, events));
    }
    Ok(all)
}

/// A database with one value of 400 KB, more than pins may hold.
fn long_value() -> Vec<u8> {
    let folder = scratch();
    let path = folder.path().join("long.tdb");
    let mut builder = Builder::new(&["v"]).unwrap();
    builder.add(Uuid::default(), 1, &[vec![b'x'; 400_000]]).unwrap();
    builder.finish(&path).unwrap();
    std::fs::read(path).unwrap()
}

#[test]
fn a_value_beyond_the_pins_is_copied_or_refused_with_advice() {
    let pager = pager();
    let reader = Reader::new(region(&pager, "long", &long_value())).unwrap();
    let mut value = Vec::new();
    reader.append_value(Item::new(1, 1), &mut value).unwrap();
    assert!(value == vec![b'x'; 400_000]);
    let error = reader.value(Item::new(1, 1)).map(|value| value.len()).unwrap_err();
    let Error::Storage { member, source, .. } = &error else { panic!("{error}") };
    assert_eq!(member, "lexicon.v");
    assert!(source.to_string().contains("raise the budget"), "{source}");
    // The refusal has pinned nothing for good.
    assert_eq!(reader.value(Item::new(1, 0)).unwrap().len(), 0);
    assert!(contents(&reader).is_err(), "it takes values in place");
    assert_eq!(reader.trail(0).unwrap().next_event().unwrap().unwrap().time, 1);
}

#[test]
fn a_source_that_fails_is_an_error_that_can_be_tried_again() {
    let bytes = long_value();
    // Without guesses, which fail unseen, every fault meets a reader.
    let builder = Pager::builder().budget_bytes(BUDGET).unit_bytes(4096);
    let pager = builder.prefetch(|| Box::new(NoPrefetch)).build().unwrap();
    let mut errors = 0;
    for n in 0..12 {
        // The n-th request fails, and no retry stands before the pager here.
        let mut faults = vec![None; n];
        faults.push(Some(Fault::Fail(Failure::Transient)));
        let source = Faulty::new(Memory::new("flaky", bytes.clone()), Schedule::script(faults));
        let region = pager.open(source).unwrap();
        let read = || {
            let reader = Reader::new(region.clone())?;
            let mut value = Vec::new();
            reader.append_value(Item::new(1, 1), &mut value)?;
            Ok(value)
        };
        // Which of the reads sends the n-th request is open. No read fails twice over one fault.
        let mut failed = 0;
        for _ in 0..3 {
            match read() {
                Ok(value) => assert!(value == vec![b'x'; 400_000], "request {n}"),
                Err(Error::Storage { .. }) => failed += 1,
                Err(other) => panic!("request {n}: {other}"),
            }
        }
        assert!(failed <= 1, "request {n}: {failed} reads failed over one fault");
        errors += failed;
    }
    assert!(errors > 0, "no fault was met");
}
