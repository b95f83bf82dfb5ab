//! A filter that no event matches without an item finds what a look at every event finds, wherever the
//! item is and however often the filter changes. Of most events no more is decoded for it than their length.

use std::sync::Arc;

use proptest::{collection::vec, prelude::*};
use traildb::{
    Filter, Item, Reader, Storage,
    filter::{Clause, Term},
};

use crate::{
    bulk::{Members, Trail, Windowed, added_up, database, read},
    support::open_members,
};

/// All of these terms.
fn all_of(terms: &[Term]) -> Filter {
    Filter::new(terms.iter().map(|term| Clause::new([term.clone()])))
}

/// Filters that need an item of events from here and there; some of them ask for more.
fn filters(trails: &[Trail], number: usize) -> Vec<Filter> {
    let events: Vec<_> = trails.iter().flat_map(|trail| &trail.0).collect();
    let mut filters = Vec::new();
    for (k, (time, items)) in events.iter().step_by(events.len() / number + 1).enumerate() {
        let turned = (0..items.len()).map(|n| items[(k + n) % items.len()]);
        let mut items = turned.filter(|item| !item.is_null());
        let Some(item) = items.next() else { continue };
        filters.push(all_of(&[Term::is(item)]));
        filters.push(all_of(&[Term::is(item), Term::time(..=*time)]));
        if let Some(other) = items.next() {
            filters.push(all_of(&[Term::is_not(other), Term::is(item)]));
            filters.push(all_of(&[Term::is(other), Term::is(item)]));
        }
    }
    filters
}

/// What `read` finds is what is wanted of a trail.
fn agree(got: &Trail, trail: &Trail, filter: &Filter, what: &str) {
    let matching = trail.0.iter().filter(|(time, items)| filter.matches(*time, items));
    let wanted: Vec<_> = matching.cloned().collect();
    // A rule for changes alone: events are read to the end of the trail.
    if trail.1.as_ref().is_some_and(|error| error.contains("more changes")) {
        assert!(got.0.starts_with(&wanted), "{what}, {filter:?}");
        return;
    }
    assert_eq!(got.0, wanted, "{what}, {filter:?}");
    // What is wrong behind the last time that matches need not be found.
    let in_time = filter.times().is_none_or(|times| *times.end() < u64::MAX);
    let found = got.1 == trail.1 || in_time && got.1.is_none();
    assert!(found, "{what}, {filter:?}: {:?}: {:?}", got.1, trail.1);
}

/// In order, so that trails are decoded many at once; again, when symbols are marked from the start;
/// and backwards, each alone.
fn check_reader<S: Storage>(reader: &Reader<S>, filters: &[Filter], what: &str) {
    let trails: Vec<Trail> = (0..reader.trails()).map(|trail| added_up(reader, trail)).collect();
    for filter in filters {
        let mut cursor = reader.view().with_filter(filter.clone()).cursor().unwrap();
        let numbers = 0..reader.trails();
        for trail in numbers.clone().chain(numbers.clone()).chain(numbers.rev()) {
            let got = read(&mut cursor, trail);
            agree(&got, &trails[trail as usize], filter, &format!("{what}, trail {trail}"));
        }
    }
}

/// The events of a database by these filters, from memory and from windows.
fn check(members: &Members, filters: &[Filter]) {
    check_reader(&open_members(members).unwrap(), filters, "in memory");
    let windowed = |name: &str| Ok(members.get(name).map(|bytes| Windowed(bytes)));
    check_reader(&Reader::open_directory(windowed).unwrap(), filters, "in windows");
}

fn trails(members: &Members) -> Vec<Trail> {
    let reader = open_members(members).unwrap();
    (0..reader.trails()).map(|trail| added_up(&reader, trail)).collect()
}

/// More than is decoded before symbols are marked, and trails longer than what is decoded at once.
const LENGTHS: [usize; 24] = [
    1, 3, 600, 2, 1, 1300, 5, 700, 1, 9000, 1, 1, 130, 2500, 127, 1100, 2, 1, 700, 1, 2047, 2049,
    4, 60,
];

#[test]
fn items_of_code_words_and_of_literals_are_found() {
    for fields in [1, 3, 4, 7] {
        let members = database(fields, &LENGTHS, 5000, 13);
        let trails = trails(&members);
        let mut filters = filters(&trails, 4);
        assert!(filters.len() >= 4);
        // No event has these. One is a value that there is not, and the other is wide.
        filters.push(all_of(&[Term::is(Item::new(1, 900_000))]));
        filters.push(all_of(&[Term::is(Item::new(1, 1 << 24))]));
        check(&members, &filters);
    }
}

/// The events at the ends of trails, whose items nothing follows.
#[test]
fn the_first_and_the_last_event_of_a_trail_are_found() {
    let members = database(2, &[1, 1, 2, 2, 3, 1, 700, 1, 5000, 2, 1, 300, 3000, 1], 4000, 17);
    let ends = trails(&members).into_iter().flat_map(|trail| {
        let events = trail.0;
        [events[0].clone(), events[events.len() - 1].clone()]
    });
    let items = ends.flat_map(|(_, items)| items).filter(|item| !item.is_null());
    let filters: Vec<Filter> = items.map(|item| all_of(&[Term::is(item)])).collect();
    assert!(filters.len() > 12, "{}", filters.len());
    check(&members, &filters);
}

/// Nobody writes a symbol of two items of one field. Where one is, the second counts.
#[test]
fn of_two_items_of_one_field_the_second_is_found() {
    let mut members = database(3, &LENGTHS, 50, 11);
    let codebook = members.get_mut("trails.codebook").unwrap();
    let mut changed = 0;
    for entry in codebook.chunks_exact_mut(20) {
        let item = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
        let (first, second) = (item(&entry[..8]), item(&entry[8..16]));
        if first & 127 != 0 && second != 0 {
            entry[8..16].copy_from_slice(&(first & 127 | 1 << 8).to_le_bytes());
            changed += 1;
        }
    }
    assert!(changed > 0, "no symbol has two items");
    let trails = trails(&members);
    let mut filters = filters(&trails, 3);
    filters.extend((1..=3).map(|field| all_of(&[Term::is(Item::new(field, 1))])));
    check(&members, &filters);
}

/// A field is said to have 2^25 values: what its literals are made of is other bits than those that were
/// written, half of them of wide items, until a symbol is broken.
#[test]
fn wide_items_are_found() {
    let lengths: Vec<usize> = (0..400).map(|k| 1 + k % 60).collect();
    let mut members = database(3, &lengths, 5000, 19);
    let count = (1u32 << 25) - 1;
    let mut lexicon = vec![0; 4 * (count as usize + 2)];
    lexicon[..4].copy_from_slice(&count.to_le_bytes());
    members.insert("lexicon.f1".into(), lexicon);
    let trails = trails(&members);
    let events = trails.iter().flat_map(|trail| &trail.0);
    let mut wide: Vec<Item> = events
        .flat_map(|(_, items)| items)
        .copied()
        .filter(|item| item.raw() >> 7 & 1 == 1)
        .collect();
    wide.dedup();
    assert!(wide.len() > 4, "{}", wide.len());
    let step = wide.len() / 4;
    let wide = wide.iter().step_by(step).map(|&item| all_of(&[Term::is(item)]));
    let filters: Vec<Filter> = wide.chain(filters(&trails, 2)).collect();
    check(&members, &filters);
}

/// Of short symbols and of long ones, of many kinds and of few; longer than some windows.
#[test]
fn long_trails_are_decoded_at_several_places() {
    for (fields, spread) in [(1, 1), (2, 40), (3, 5000), (7, 300)] {
        let members = database(fields, &[1, 30_000, 2, 1, 12_000], spread, 29);
        let filters = filters(&trails(&members), 4);
        // An event may have nothing but NULLs, of which no filter is made.
        assert!(filters.len() >= 4, "{} of {fields} fields", filters.len());
        check(&members, &filters);
    }
}

/// One code word over and over: who does not start where one does never gets there, so that what is decoded
/// at later places is given up.
#[test]
fn long_trails_may_not_synchronize() {
    let mut members = database(1, &[30], 1, 31);
    let codebook = members.get_mut("trails.codebook").unwrap();
    codebook.fill(0);
    // All ones: a second later, and the first value.
    let entry = codebook.chunks_exact_mut(20).next_back().unwrap();
    entry[..8].copy_from_slice(&(1u64 << 8).to_le_bytes());
    entry[8..16].copy_from_slice(&(1u64 | 1 << 8).to_le_bytes());
    entry[16..].copy_from_slice(&16u32.to_le_bytes());
    // Three bits say that seven at the end are unused; between them, symbols of 17 bits.
    let (len, symbols) = (34_014, 16_006);
    assert_eq!(8 * len, 3 + 17 * symbols + 7);
    let mut data = vec![0xFF; len];
    data.extend([0; 8]);
    members.insert("trails.data".into(), data);
    let toc = [0, len as u32].map(u32::to_le_bytes);
    members.insert("trails.toc".into(), toc.concat());
    assert_eq!(trails(&members)[0].0.len(), symbols);
    let filters = [1, 2].map(|value| all_of(&[Term::is(Item::new(1, value))]));
    check(&members, &filters);
}

/// Only the events that have the item are made. Where another filter takes its place, the others are
/// there.
#[test]
fn a_filter_that_needs_an_item_may_change_after_any_event() {
    let mut lengths = vec![5, 40, 700, 3, 1, 9, 12, 900, 2, 9000, 2, 30];
    // Enough of them for symbols to be marked in the end.
    lengths.extend((0..600).map(|k| 1 + k % 23));
    let members = database(3, &lengths, 50, 5);
    let reader = open_members(&members).unwrap();
    let item = reader.item(2, b"v1").unwrap().unwrap();
    let second = reader.item(3, b"v2").unwrap().unwrap();
    let others: Vec<Arc<Filter>> = [
        all_of(&[Term::is_not(item)]),
        all_of(&[Term::is(second)]),
        all_of(&[Term::is(item), Term::is_not(second)]),
        all_of(&[Term::time(..)]),
        Filter::none(),
    ]
    .map(Arc::new)
    .into();
    let trails = trails(&members);
    let mut changed = 0;
    for needing in [all_of(&[Term::is(item)]), all_of(&[Term::is(item), Term::is_not(second)])] {
        for (other, handed) in others.iter().flat_map(|other| [0, 1, 2, 7, 500].map(|n| (other, n)))
        {
            for peeks in [false, true] {
                let mut cursor = reader.view().with_filter(needing.clone()).cursor().unwrap();
                for (trail, (all, _)) in (0..).zip(&trails) {
                    cursor.set_filter(None).unwrap();
                    cursor.seek(trail).unwrap();
                    let mut matching =
                        (0..all.len()).filter(|&k| needing.matches(all[k].0, &all[k].1));
                    let what = || format!("trail {trail}, after {handed}, {peeks}, {other:?}");
                    let mut at = 0;
                    for _ in 0..handed {
                        let next = matching.next();
                        let event = cursor.next_event().unwrap();
                        let event = event.map(|event| (event.time, event.items.to_vec()));
                        assert_eq!(event.as_ref(), next.map(|k| &all[k]), "{}", what());
                        at = next.map_or(all.len(), |k| k + 1);
                    }
                    let mut wanted = Vec::new();
                    if peeks {
                        let next = matching.next();
                        let event = cursor.peek_event().unwrap();
                        let event = event.map(|event| (event.time, event.items.to_vec()));
                        assert_eq!(event.as_ref(), next.map(|k| &all[k]), "{}", what());
                        wanted.extend(next.map(|k| all[k].clone()));
                        at = next.map_or(all.len(), |k| k + 1);
                    }
                    // Twice, and by way of a filter that lets all through.
                    cursor.set_filter(Some(Arc::new(Filter::all()))).unwrap();
                    cursor.set_filter(Some(other.clone())).unwrap();
                    let rest = all[at..].iter().filter(|event| other.matches(event.0, &event.1));
                    wanted.extend(rest.cloned());
                    let mut got = Vec::new();
                    while let Some(event) = cursor.next_event().unwrap() {
                        got.push((event.time, event.items.to_vec()));
                    }
                    assert_eq!(got, wanted, "{}", what());
                    changed += usize::from(!wanted.is_empty() && handed > 0);
                }
            }
        }
    }
    assert!(changed > 100, "{changed}");
}

/// From one item to another and back, between any two events.
#[test]
fn filters_that_need_items_take_turns() {
    let mut lengths = vec![5, 40, 700, 3, 1, 900, 6000, 2, 1];
    lengths.extend((0..600).map(|k| 1 + k % 17));
    let members = database(3, &lengths, 50, 23);
    let reader = open_members(&members).unwrap();
    let items = [(1, b"v0"), (1, b"v1"), (3, b"v2")]
        .map(|(field, value)| reader.item(field, value).unwrap().unwrap());
    let turns: Vec<Arc<Filter>> = [
        all_of(&[Term::is(items[0])]),
        all_of(&[Term::is(items[1])]),
        all_of(&[Term::is(items[1]), Term::is_not(items[2])]),
        all_of(&[Term::is(items[2])]),
        all_of(&[Term::is_not(items[0])]),
    ]
    .map(Arc::new)
    .into();
    for first in 0..turns.len() {
        let mut cursor = reader.view().with_filter(turns[first].clone()).cursor().unwrap();
        for (trail, (all, _)) in (0..).zip(trails(&members)) {
            cursor.set_filter(None).unwrap();
            cursor.seek(trail).unwrap();
            let mut at = 0;
            for turn in first.. {
                let filter = &turns[turn % turns.len()];
                cursor.set_filter(Some(filter.clone())).unwrap();
                let next = all[at..].iter().position(|event| filter.matches(event.0, &event.1));
                if turn % 3 == 0 {
                    let peeked = cursor.peek_event().unwrap().map(|event| event.time);
                    assert_eq!(peeked, next.map(|next| all[at + next].0), "trail {trail}");
                }
                let event = cursor.next_event().unwrap();
                let event = event.map(|event| (event.time, event.items.to_vec()));
                assert_eq!(event.as_ref(), next.map(|next| &all[at + next]), "trail {trail}");
                let Some(next) = next else { break };
                at += next + 1;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// Also where bytes were changed: the same events, then the same error.
    #[test]
    fn damaged_trails_are_skimmed_to_where_symbols_say(
        fields in 1..8usize,
        lengths in vec(
            prop_oneof![8 => 1..12usize, 4 => 100..1500usize, 1 => 1500..8000usize],
            8..40,
        ),
        spread in prop_oneof![Just(3u64), Just(4000)],
        seed: u64,
        changes in vec((any::<prop::sample::Index>(), any::<u8>(), 0..6usize), 0..6),
    ) {
        let mut members = database(fields, &lengths, spread, seed);
        let filters = filters(&trails(&members), 2);
        for (at, byte, what) in changes {
            let name = if what == 0 { "trails.toc" } else { "trails.data" };
            let bytes = members.get_mut(name).unwrap();
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        check(&members, &filters);
    }
}
