//! Events of another database, appended: the same as if each had been added.

use std::collections::BTreeMap;

use traildb::{Builder, Error, InputError, Options, Reader, Uuid, filter::parse, synth};

use crate::support::{Rows, contents, fixtures, scratch};

/// The trails of both, those of `first` before those of `then` at equal times.
fn joined(first: &[Rows], then: &[Rows]) -> Vec<Rows> {
    let mut trails: BTreeMap<u128, Rows> = BTreeMap::new();
    for (uuid, events) in first.iter().chain(then) {
        let rows = trails.entry(uuid.number()).or_insert((*uuid, Vec::new()));
        rows.1.extend(events.iter().cloned());
        rows.1.sort_by_key(|(time, _)| *time);
    }
    trails.into_values().collect()
}

#[test]
fn every_fixture_is_appended_twice_and_among_other_events() {
    let folder = scratch();
    for fixture in fixtures() {
        let reader = fixture.open();
        let fields = reader.fields().unwrap();
        let names: Vec<&str> = fields.names().collect();
        let mut builder = Builder::new(&names).unwrap();
        // Events before, whose values are there already, and of which some are pending.
        let before: Vec<Rows> = fixture.trails.iter().step_by(2).cloned().collect();
        for (uuid, events) in &before {
            for (time, values) in events {
                builder.add(*uuid, *time, values).unwrap();
            }
        }
        builder.append(&reader).unwrap();
        builder.append(&reader).unwrap();
        let path = folder.path().join("a.tdb");
        builder.finish(&path).unwrap();
        let got = contents(&Reader::open(&path).unwrap()).unwrap();
        let expected = joined(&joined(&before, &fixture.trails), &fixture.trails);
        assert!(got == expected, "{}", fixture.name);
    }
}

/// Appending to nothing gives the bytes that adding the events in the same order gives.
#[test]
fn appended_and_added_events_give_equal_bytes() {
    let folder = scratch();
    let spec = synth::Spec { events: 50_000, trails: 3000, titles: 9000, seed: 11 };
    let mut builder = Builder::new(&synth::FIELDS).unwrap();
    synth::fill(&spec, &mut builder, |_| ()).unwrap();
    let [one, added, appended] =
        ["one", "added", "appended"].map(|name| folder.path().join(name).with_extension("tdb"));
    builder.finish(&one).unwrap();
    let reader = Reader::open(&one).unwrap();
    let mut builder = Builder::new(&synth::FIELDS).unwrap();
    for (uuid, events) in contents(&reader).unwrap() {
        for (time, values) in events {
            builder.add(uuid, time, &values).unwrap();
        }
    }
    builder.finish(&added).unwrap();
    let mut builder = Builder::with_options(&synth::FIELDS, Options::default().threads(1)).unwrap();
    builder.append(&reader).unwrap();
    builder.finish(&appended).unwrap();
    assert!(std::fs::read(added).unwrap() == std::fs::read(appended).unwrap());
}

fn example(folder: &std::path::Path) -> Reader<traildb::storage::File> {
    let path = folder.join("example.tdb");
    let mut builder = Builder::new(&["a", "b", "c"]).unwrap();
    for n in 0..40u64 {
        let values = [format!("a{}", n % 3), format!("b{n}"), String::new()];
        builder.add(Uuid([n as u8 % 4; 16]), n, &values).unwrap();
    }
    builder.finish(&path).unwrap();
    Reader::open(&path).unwrap()
}

#[test]
fn a_filter_chooses_what_is_appended() {
    let folder = scratch();
    let reader = example(folder.path());
    let filter = parse("a=a1 & b!=b4").unwrap().bind(&reader).unwrap();
    let mut builder = Builder::new(&["a", "b", "c"]).unwrap();
    builder.append_view(&reader.view().with_filter(filter)).unwrap();
    let path = folder.path().join("some.tdb");
    builder.finish(&path).unwrap();
    let mut expected = contents(&reader).unwrap();
    for (_, events) in &mut expected {
        events.retain(|(_, values)| values[0] == b"a1" && values[1] != b"b4");
    }
    expected.retain(|(_, events)| !events.is_empty());
    let some = Reader::open(&path).unwrap();
    assert_eq!(contents(&some).unwrap(), expected);
    let field = some.field("b").unwrap();
    let b: u64 = expected.iter().map(|(_, events)| events.len() as u64).sum();
    assert_eq!(some.values(field).unwrap(), b, "values of events left out are left out");
}

#[test]
fn fields_are_mapped_and_left_out() {
    let folder = scratch();
    let reader = example(folder.path());
    let mut builder = Builder::new(&["x", "b", "y", "a"]).unwrap();
    let mut appender = builder.appender(&reader, &[4, 2, 0]).unwrap();
    let mut cursor = reader.cursor().unwrap();
    for trail in 0..reader.trails() {
        cursor.seek(trail).unwrap();
        let uuid = reader.uuid(trail).unwrap();
        while let Some(event) = cursor.next_event().unwrap() {
            appender.add(uuid, &event).unwrap();
        }
    }
    let path = folder.path().join("mapped.tdb");
    builder.finish(&path).unwrap();
    let mut expected = contents(&reader).unwrap();
    for (_, values) in expected.iter_mut().flat_map(|(_, events)| events) {
        *values = vec![vec![], values[1].clone(), vec![], values[0].clone()];
    }
    assert_eq!(contents(&Reader::open(&path).unwrap()).unwrap(), expected);
}

#[test]
fn fields_that_do_not_fit_are_refused_before_an_event_is_added() {
    let folder = scratch();
    let reader = example(folder.path());
    let refused = |outcome: Result<(), Error>| {
        let error = outcome.unwrap_err();
        assert!(matches!(error, Error::Input(InputError::OtherFields)), "{error}");
    };
    for names in [vec!["a", "b"], vec!["b", "a", "c"], vec!["a", "b", "c", "d"]] {
        let mut builder = Builder::new(&names).unwrap();
        refused(builder.append(&reader));
        assert_eq!(builder.events(), 0);
    }
    let mut builder = Builder::new(&["a", "b", "c"]).unwrap();
    refused(builder.append_view(&reader.view().only_changes()));
    for fields in [&[1u16, 2][..], &[1, 2, 4], &[1, 1, 2]] {
        refused(builder.appender(&reader, fields).map(drop));
    }
}

/// An event of a view of changes in which every field changes has as many items as there are fields,
/// in the order in which they are stored.
#[test]
fn items_of_other_fields_are_refused() {
    let folder = scratch();
    let reader = example(folder.path());
    let mut builder = Builder::new(&["a", "b", "c"]).unwrap();
    let mut appender = builder.appender(&reader, &[1, 2, 3]).unwrap();
    let mut cursor = reader.cursor().unwrap();
    cursor.seek(0).unwrap();
    let event = cursor.next_event().unwrap().unwrap();
    let mut items = event.items.to_vec();
    items.swap(0, 1);
    let swapped = traildb::Event { time: event.time, items: &items };
    let error = appender.add(Uuid::default(), &swapped).unwrap_err();
    assert!(matches!(error, Error::Input(InputError::OtherFields)), "{error}");
    appender.add(Uuid::default(), &event).unwrap();
    assert_eq!(builder.events(), 1, "what was refused has not been added");
}
