//! Events that are decoded many at once are those that are decoded symbol by symbol: a view of changes
//! never decodes in bulk, so what its events add up to is what must come out.

use std::{collections::BTreeMap, io, ops::Range, sync::Arc};

use proptest::{collection::vec, prelude::*};
use traildb::{
    Bigrams, Builder, Filter, Item, LastValues, Options, Reader, Storage, Uuid,
    filter::{Clause, Term},
};

use crate::{support, support::open_members};

pub(crate) type Members = BTreeMap<String, Vec<u8>>;
/// The events of a trail, and what ended it.
pub(crate) type Trail = (Vec<(u64, Vec<Item>)>, Option<String>);

/// A database with so many fields. Trails are of all lengths, some longer than whatever is decoded at
/// once; `spread` values of a field are rare enough for literals.
pub(crate) fn database(fields: usize, lengths: &[usize], spread: u64, seed: u64) -> Members {
    let folder = support::scratch();
    let path = folder.path().join("db");
    let options = Options::default().directory(true).bigrams(Bigrams::On).threads(1);
    let names: Vec<String> = (0..fields).map(|k| format!("f{k}")).collect();
    let mut builder = Builder::with_options(&names, options).unwrap();
    let mut state = seed;
    let mut random = |below: u64| {
        state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
        (state >> 33) % below
    };
    for (trail, &len) in lengths.iter().enumerate() {
        let mut time = 1000 + random(50);
        let mut values = vec![String::new(); fields];
        for _ in 0..len {
            // Now and then more than an item has room for.
            time += random(4) * random(3000) + random(48) / 47 * random(1 << 30);
            for value in &mut values {
                match random(6) {
                    0 => *value = format!("v{}", random(4)),
                    1 => *value = format!("w{}", random(spread)),
                    2 => value.clear(),
                    _ => {}
                }
            }
            builder.add(Uuid::from_number(trail as u128), time, &values).unwrap();
        }
    }
    builder.finish(&path).unwrap();
    let entries = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap());
    let read = |entry: std::fs::DirEntry| {
        (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())
    };
    entries.map(read).collect()
}

/// Bytes that are not said to be in memory: trails are decoded from a window over them.
pub(crate) struct Windowed<'m>(pub(crate) &'m [u8]);

impl Storage for Windowed<'_> {
    type Bytes<'a>
        = &'a [u8]
    where
        Self: 'a;

    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn bytes(&self, range: Range<u64>) -> io::Result<&[u8]> {
        Ok(&self.0[range.start as usize..range.end as usize])
    }
}

pub(crate) fn read<S: Storage>(cursor: &mut traildb::Trail<'_, S>, trail: u64) -> Trail {
    let mut events = Vec::new();
    if let Err(error) = cursor.seek(trail) {
        return (events, Some(error.to_string()));
    }
    loop {
        match cursor.next_event() {
            Ok(Some(event)) => events.push((event.time, event.items.to_vec())),
            Ok(None) => return (events, None),
            Err(error) => {
                assert!(
                    matches!(cursor.next_event(), Ok(None)),
                    "after an error the trail is over"
                );
                return (events, Some(error.to_string()));
            }
        }
    }
}

/// The same by adding up changes.
pub(crate) fn added_up<S: Storage>(reader: &Reader<S>, trail: u64) -> Trail {
    let mut cursor = reader.view().only_changes().cursor().unwrap();
    let (mut events, error) = read(&mut cursor, trail);
    let fields = reader.fields().unwrap().len() as u16;
    let mut state: Vec<Item> = (1..=fields).map(|field| Item::new(field, 0)).collect();
    for (_, items) in &mut events {
        for item in &*items {
            state[usize::from(item.field()) - 1] = *item;
        }
        items.clone_from(&state);
    }
    (events, error)
}

fn agree(got: &Trail, expected: &Trail, what: impl Fn() -> String) {
    // A rule for changes alone: events are read to the end of the trail.
    if expected.1.as_ref().is_some_and(|error| error.contains("more changes")) {
        assert!(got.0.starts_with(&expected.0), "{}", what());
        return;
    }
    assert_eq!(got, expected, "{}", what());
}

/// The events of a trail, read with their values, which must be those of the items.
fn read_values<S: Storage>(cursor: &mut traildb::Trail<'_, S>, trail: u64) -> Trail {
    let (reader, mut events) = (cursor.reader(), Vec::new());
    if let Err(error) = cursor.seek(trail) {
        return (events, Some(error.to_string()));
    }
    loop {
        match cursor.next_with_values() {
            Ok(Some(event)) => {
                let looked_up = event.items.iter().map(|&item| reader.value(item).unwrap());
                let looked_up: Vec<Vec<u8>> = looked_up.map(|value| value.to_vec()).collect();
                assert!(event.values().eq(&looked_up), "{event:?}: {looked_up:?}");
                assert!((0..looked_up.len()).all(|k| event.value(k) == looked_up[k]));
                events.push((event.time, event.items.to_vec()));
            }
            Ok(None) => return (events, None),
            Err(error) => return (events, Some(error.to_string())),
        }
    }
}

/// The values of events, with their fields.
fn values<S: Storage>(reader: &Reader<S>, values: &mut LastValues<'_, S>, trail: &Trail) {
    for (_, items) in &trail.0 {
        for &item in items {
            assert_eq!(values.get(item).unwrap(), &*reader.value(item).unwrap());
        }
    }
}

/// Reads all trails one by one, in order with one cursor, and in leaps with one.
fn check(members: &Members, leap: u64) {
    check_reader(&open_members(members).unwrap(), leap);
    let windowed = |name: &str| Ok(members.get(name).map(|bytes| Windowed(bytes)));
    check_reader(&Reader::open_directory(windowed).unwrap(), leap);
}

fn check_reader<S: Storage>(reader: &Reader<S>, leap: u64) {
    let trails = reader.trails();
    let expected: Vec<Trail> = (0..trails).map(|trail| added_up(reader, trail)).collect();
    let mut in_order = reader.cursor().unwrap();
    let mut with_values = reader.view().values_ahead().cursor().unwrap();
    let mut changes = reader.view().only_changes().cursor().unwrap();
    let mut last_values = reader.last_values().unwrap();
    let mut leaping = reader.cursor().unwrap();
    for trail in 0..trails {
        let expected = &expected[trail as usize];
        agree(&read(&mut in_order, trail), expected, || format!("trail {trail}, in order"));
        values(reader, &mut last_values, expected);
        let got = read_values(&mut with_values, trail);
        agree(&got, expected, || format!("trail {trail}, with values"));
        let again = read_values(&mut with_values, trail);
        agree(&again, expected, || format!("trail {trail}, with values, again"));
        assert_eq!(read_values(&mut changes, trail), read(&mut changes, trail), "trail {trail}");
        let alone = read(&mut reader.cursor().unwrap(), trail);
        agree(&alone, expected, || format!("trail {trail}, alone"));
    }
    // Pairs of neighbours, so that trails are decoded ahead of those that are skipped; and back.
    for k in 0..trails {
        let trail = k * leap % trails;
        for trail in [trail, (trail + 1).min(trails - 1), trail] {
            let expected = &expected[trail as usize];
            let what = || format!("trail {trail}, in leaps of {leap}");
            agree(&read(&mut leaping, trail), expected, what);
            let what = || format!("trail {trail}, with values in leaps of {leap}");
            agree(&read_values(&mut with_values, trail), expected, what);
        }
    }
    check_filters(reader, &expected, leap);
}

/// Filters find what a look at every event finds, with and without values.
fn check_filters<S: Storage>(reader: &Reader<S>, expected: &[Trail], leap: u64) {
    let events = || expected.iter().flat_map(|trail| &trail.0);
    let one = |terms: &[Term]| Filter::new(terms.iter().map(|term| Clause::new([term.clone()])));
    // Items and a time of some events, which are there, and NULLs.
    let mut filters = Vec::new();
    for (k, (time, items)) in events().step_by(97).take(2).enumerate() {
        filters.push(one(&[Term::time(*time..)]));
        let Some(&item) = items.get(k % items.len().max(1)) else { continue };
        let last = *items.last().unwrap();
        let null = Item::new(item.field(), 0);
        filters.push(one(&[Term::is(item)]));
        filters.push(one(&[Term::is_not(item)]));
        filters.push(one(&[Term::is(null)]));
        filters.push(one(&[Term::is_not(null), Term::is(last)]));
        filters.push(one(&[Term::one_of([item, null]), Term::is(last), Term::time(..=*time)]));
    }
    for filter in filters {
        let in_time = filter.times().is_none_or(|times| *times.end() < u64::MAX);
        let view = reader.view().with_filter(filter.clone());
        let mut plain = view.cursor().unwrap();
        let mut valued = view.values_ahead().cursor().unwrap();
        for trail in (0..reader.trails()).flat_map(|trail| [trail, trail / leap]) {
            let mut wanted = expected[trail as usize].clone();
            wanted.0.retain(|(time, items)| filter.matches(*time, items));
            for got in [read(&mut plain, trail), read_values(&mut valued, trail)] {
                if wanted.1.as_ref().is_some_and(|error| error.contains("more changes")) {
                    assert!(got.0.starts_with(&wanted.0), "trail {trail}, {filter:?}");
                    continue;
                }
                assert_eq!(got.0, wanted.0, "trail {trail}, {filter:?}");
                // What is wrong behind the last time that matches need not be found.
                assert!(got.1 == wanted.1 || in_time && got.1.is_none(), "{got:?}: {wanted:?}");
            }
        }
    }
}

/// Longer than what one lane, or one window, holds.
const LENGTHS: [usize; 16] = [1, 3, 600, 2, 1, 1300, 5, 700, 1, 9000, 1, 1, 130, 128, 127, 1100];

#[test]
fn trails_of_all_lengths_and_databases_of_all_widths() {
    for fields in [0, 1, 2, 3, 4, 7, 8, 20] {
        check(&database(fields, &LENGTHS, 5000, 7), 3);
    }
}

/// Nobody writes a symbol of two items of one field. Where one is, the second counts.
#[test]
fn the_second_of_two_items_of_one_field_counts() {
    let mut members = database(3, &LENGTHS, 50, 11);
    let codebook = members.get_mut("trails.codebook").unwrap();
    let mut changed = 0;
    for entry in codebook.chunks_exact_mut(20) {
        let item = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
        let (first, second) = (item(&entry[..8]), item(&entry[8..16]));
        if first & 127 != 0 && second != 0 {
            // A value that there is, or, every other time, NULL.
            let value = if first >> 8 & 1 == 0 { 1 } else { 0 };
            entry[8..16].copy_from_slice(&(first & 127 | value << 8).to_le_bytes());
            changed += 1;
        }
    }
    assert!(changed > 0, "no symbol has two items");
    check(&members, 3);
}

#[test]
fn a_value_that_breaks_a_rule_is_an_error_of_its_event() {
    let mut members = database(3, &[5, 40, 2], 50, 3);
    // The first value of a field starts before values do.
    members.get_mut("lexicon.f1").unwrap()[4..8].fill(0);
    let reader = open_members(&members).unwrap();
    let mut plain = reader.cursor().unwrap();
    let mut valued = reader.view().values_ahead().cursor().unwrap();
    let mut errors = 0;
    for trail in 0..reader.trails() {
        plain.seek(trail).unwrap();
        valued.seek(trail).unwrap();
        while let Some(event) = plain.next_event().unwrap() {
            let sound = event.items.iter().all(|&item| reader.value(item).is_ok());
            match valued.next_with_values() {
                Ok(got) => assert!(sound && got.unwrap().time == event.time),
                Err(error) => {
                    assert!(!sound, "{error}");
                    errors += 1;
                }
            }
        }
        assert!(valued.next_with_values().unwrap().is_none());
    }
    assert!(errors > 0);
}

#[test]
fn filters_may_change_between_any_two_events() {
    let members = database(3, &[5, 40, 700, 3, 1, 900], 50, 3);
    let reader = open_members(&members).unwrap();
    let item = reader.item(2, b"v1").unwrap().unwrap();
    let filter = |term| Arc::new(Filter::new([Clause::new([term])]));
    let filters = [
        None,
        Some(filter(Term::is(item))),
        Some(filter(Term::is_not(item))),
        Some(filter(Term::time(..40_000))),
    ];
    let mut cursor = reader.cursor().unwrap();
    for trail in 0..reader.trails() {
        cursor.set_filter(None).unwrap();
        let all = read(&mut cursor, trail).0;
        cursor.seek(trail).unwrap();
        // Whether an event is looked at or not before the filter changes, it is decided already.
        let (mut at, mut turn) = (0, 0);
        loop {
            let filter = &filters[turn % filters.len()];
            cursor.set_filter(filter.clone()).unwrap();
            let matches = |event: &(u64, Vec<Item>)| {
                filter.as_ref().is_none_or(|filter| filter.matches(event.0, &event.1))
            };
            let Some(step) = all[at..].iter().position(matches) else {
                assert!(cursor.next_event().unwrap().is_none(), "trail {trail}, turn {turn}");
                break;
            };
            at += step;
            if turn % 3 == 0 {
                let peeked = cursor.peek_event().unwrap().unwrap();
                assert_eq!((peeked.time, peeked.items), (all[at].0, &all[at].1[..]));
                cursor.set_filter(Some(Arc::new(Filter::none()))).unwrap();
            }
            let event = cursor.next_event().unwrap().unwrap();
            assert_eq!((event.time, event.items), (all[at].0, &all[at].1[..]), "turn {turn}");
            (at, turn) = (at + 1, turn + 1);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Also where bytes were changed: the same events, then the same error.
    #[test]
    fn damaged_trails_end_where_symbols_say(
        fields in 0..10usize,
        lengths in vec(prop_oneof![4 => 1..12usize, 1 => 100..1500usize], 1..24),
        spread in prop_oneof![Just(3u64), Just(4000)],
        seed: u64,
        changes in vec((any::<prop::sample::Index>(), any::<u8>(), 0..4usize), 0..12),
        leap in 1..7u64,
    ) {
        let mut members = database(fields, &lengths, spread, seed);
        for (at, byte, what) in changes {
            let name = if what == 0 { "trails.toc" } else { "trails.data" };
            let bytes = members.get_mut(name).unwrap();
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        check(&members, leap);
    }
}
