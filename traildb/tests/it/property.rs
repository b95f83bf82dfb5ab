//! Random databases: whatever is added is in the file, in its order, and the file keeps every rule;
//! so does what is appended, of all fields or of some.

use std::{fs, path::Path};

use proptest::prelude::*;
use traildb::{Builder, Options, Reader, Uuid, storage::File};

use crate::{
    conformance::{expected, written},
    rules,
    support::scratch,
};

fn any_value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        3 => Just(Vec::new()),
        6 => (0..5u8).prop_map(|n| vec![b'a' + n]),
        2 => prop::collection::vec(any::<u8>(), 0..40),
        1 => Just(vec![0]),
        1 => Just(b"line\nbreak, \"quote\" and \xff\xfe".to_vec()),
    ]
}

/// Times whose differences the format can hold, also where the times themselves exceed 47 bits: a
/// trail gets there in steps.
#[derive(Clone, Debug)]
enum Clock {
    /// Many equal times.
    Slow(u64),
    /// Seconds apart.
    Fast(u64),
    /// The greatest step.
    Leap,
}

fn any_clock() -> impl Strategy<Value = Clock> {
    prop_oneof![
        4 => (0..3u64).prop_map(Clock::Slow),
        3 => (0..100_000u64).prop_map(Clock::Fast),
        1 => Just(Clock::Leap),
    ]
}

fn any_uuid() -> impl Strategy<Value = Uuid> {
    prop_oneof![
        1 => Just(Uuid([0; 16])),
        1 => Just(Uuid([255; 16])),
        // Neighbours by the first byte, which counts least, and by the last, which counts most.
        3 => (0..4u8).prop_map(|n| { let mut bytes = [7; 16]; bytes[0] = n; Uuid(bytes) }),
        3 => (0..4u8).prop_map(|n| { let mut bytes = [7; 16]; bytes[15] = n; Uuid(bytes) }),
    ]
}

fn any_fields() -> impl Strategy<Value = usize> {
    // 127 is the last field of narrow items; with 128 fields the widths of literals change.
    prop_oneof![4 => 0..5usize, 2 => 125..131usize, 1 => Just(2000usize)]
}

type Added = Vec<(Uuid, u64, Vec<Vec<u8>>)>;

/// Events of databases with so many fields.
#[derive(Clone, Debug)]
pub(crate) struct Events {
    pub(crate) fields: Vec<String>,
    pub(crate) added: Added,
}

fn any_start() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), 0..2_000_000_000u64, Just((1 << 47) - 2)]
}

/// What becomes an event: its trail, the time since the one before, and what its values are made of.
type Draft = (Uuid, Clock, Vec<Vec<u8>>, u16);

fn any_drafts(events: usize) -> impl Strategy<Value = Vec<Draft>> {
    let event = (any_uuid(), any_clock(), prop::collection::vec(any_value(), 5), any::<u16>());
    prop::collection::vec(event, 0..events)
}

fn names(fields: usize) -> Vec<String> {
    (0..fields).map(|n| format!("f{n}%-_")).collect()
}

/// The events that the drafts become. The earliest of all is at the start.
fn finished(fields: usize, start: u64, drafts: Vec<Draft>) -> Added {
    let mut clocks: std::collections::HashMap<Uuid, u64> = Default::default();
    let mut added = Vec::new();
    for (n, (uuid, clock, values, at)) in drafts.into_iter().enumerate() {
        let before = *clocks.entry(uuid).or_insert(start);
        let step = match clock {
            // Every trail counts from it.
            _ if n == 0 => 0,
            Clock::Slow(step) | Clock::Fast(step) => step,
            Clock::Leap => (1 << 47) - 2,
        };
        let time = before + step;
        clocks.insert(uuid, time);
        // Of many fields, a few at a time: the narrow, the last narrow, the wide.
        let at = usize::from(at);
        let value = |field: usize| match fields <= 6 || (field + at).is_multiple_of(fields / 5) {
            true => values[(field + at) % 5].clone(),
            false => Vec::new(),
        };
        added.push((uuid, time, (0..fields).map(value).collect()));
    }
    // Any order of addition will do, as long as it is the same for everybody.
    if added.len() % 3 == 1 {
        added.reverse();
    }
    added
}

pub(crate) fn any_events() -> impl Strategy<Value = Events> {
    (any_fields(), any_start(), any_drafts(70)).prop_map(|(fields, start, drafts)| Events {
        fields: names(fields),
        added: finished(fields, start, drafts),
    })
}

/// Three lists of events that can be databases of their own and one together, and for each list some
/// of the fields.
fn any_parts() -> impl Strategy<Value = (Vec<String>, [(Added, Vec<usize>); 3])> {
    let part = || (any_drafts(25), any::<u64>());
    (any_fields(), any_start(), [part(), part(), part()]).prop_map(|(fields, start, parts)| {
        let some = |mask: u64| (0..fields).filter(|field| mask >> (field % 64) & 1 == 1).collect();
        let parts = parts.map(|(drafts, mask)| (finished(fields, start, drafts), some(mask)));
        (names(fields), parts)
    })
}

fn database(path: &Path, fields: &[String], added: &Added) -> Reader<File> {
    let mut builder = Builder::new(fields).unwrap();
    for (uuid, time, values) in added {
        builder.add(*uuid, *time, values).unwrap();
    }
    builder.finish(path).unwrap();
    Reader::open(path).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn what_is_added_is_in_the_file(events in any_events()) {
        let (lexicons, trails) = expected(&events.fields, &events.added);
        for content in written(&events.fields, &events.added, Options::default()) {
            prop_assert_eq!(&content.fields, &events.fields);
            prop_assert!(content.lexicons == lexicons, "lexicons");
            prop_assert!(content.trails == trails, "events");
            prop_assert_eq!(content.unused, 0);
        }
    }

    /// Databases appended, with events added in between, are what all the events make.
    #[test]
    fn appending_is_concatenation((fields, parts) in any_parts()) {
        let [(first, _), (between, _), (last, _)] = parts;
        let folder = scratch();
        let path = |name: &str| folder.path().join(name);
        let mut builder = Builder::new(&fields).unwrap();
        builder.append(&database(&path("first.tdb"), &fields, &first)).unwrap();
        for (uuid, time, values) in &between {
            builder.add(*uuid, *time, values).unwrap();
        }
        builder.append(&database(&path("last.tdb"), &fields, &last)).unwrap();
        builder.finish(path("all.tdb")).unwrap();
        let content = rules::package(&fs::read(path("all.tdb")).unwrap()).unwrap();
        let (_, trails) = expected(&fields, &[first, between, last].concat());
        prop_assert_eq!(&content.fields, &fields);
        prop_assert!(content.trails == trails, "events");
    }

    /// Databases of some fields each become one of all fields, empty where a field is missing.
    #[test]
    fn merging_is_union((fields, parts) in any_parts()) {
        let folder = scratch();
        let mut builder = Builder::new(&fields).unwrap();
        let mut all: Added = Vec::new();
        for (n, (added, some)) in parts.into_iter().enumerate() {
            let names: Vec<String> = some.iter().map(|&field| fields[field].clone()).collect();
            let values = |values: &[Vec<u8>]| some.iter().map(|&field| values[field].clone()).collect();
            let own = added.iter().map(|(uuid, time, all)| (*uuid, *time, values(all))).collect();
            let reader = database(&folder.path().join(format!("{n}.tdb")), &names, &own);
            let numbers: Vec<u16> = some.iter().map(|&field| field as u16 + 1).collect();
            let mut appender = builder.appender(&reader, &numbers).unwrap();
            let mut cursor = reader.cursor().unwrap();
            for trail in 0..reader.trails() {
                cursor.seek(trail).unwrap();
                let uuid = reader.uuid(trail).unwrap();
                while let Some(event) = cursor.next_event().unwrap() {
                    appender.add(uuid, &event).unwrap();
                }
            }
            let missing: Vec<usize> = (0..fields.len()).filter(|field| !some.contains(field)).collect();
            all.extend(added.into_iter().map(|(uuid, time, mut values)| {
                missing.iter().for_each(|&field| values[field].clear());
                (uuid, time, values)
            }));
        }
        let path = folder.path().join("all.tdb");
        builder.finish(&path).unwrap();
        let content = rules::package(&fs::read(&path).unwrap()).unwrap();
        let (_, trails) = expected(&fields, &all);
        prop_assert_eq!(&content.fields, &fields);
        prop_assert!(content.trails == trails, "events");
    }
}
