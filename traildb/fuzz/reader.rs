//! Whatever the bytes, the reader answers or refuses: no panic, no hang, no memory without bound. The
//! ways to read events agree: one at a time, in batches, as changes, with values, and by a filter.
#![no_main]

mod bytes;
mod compact;

use bytes::Bytes;
use compact::{Compact, PACKAGE, REMOTE};
use libfuzzer_sys::fuzz_target;
use traildb::{
    Batch, Error, Filter, Item, Reader, Trail, Uuid,
    filter::{Clause, Term},
    verify::Verifier,
};

/// Trails that are read.
const TRAILS: u64 = 4096;
/// Filters that are asked.
const FILTERS: usize = 3;
/// Passes for each: in the second one symbols are marked from the start.
const ROUNDS: usize = 2;

fuzz_target!(|input: &[u8]| {
    let compact = Compact::parse(input);
    let remote = compact.flags & REMOTE != 0;
    let verifier = Verifier::default();
    // Errors are answers; what counts is that they come.
    let opened = if compact.flags & PACKAGE != 0 {
        let package = || Bytes { bytes: compact.package(), remote };
        let _ = verifier.package(package());
        Reader::new(package())
    } else {
        let members = compact.members();
        let open = |name: &str| {
            let found = members.iter().find(|(other, _)| other == name);
            Ok(found.map(|(_, bytes)| Bytes { bytes: bytes.clone(), remote }))
        };
        let _ = verifier.directory(open);
        Reader::open_directory(open)
    };
    if let Ok(reader) = opened {
        let _ = read_all(&reader);
        let _ = read_otherwise(&reader);
        let _ = search(&reader);
    }
});

fn read_all(reader: &Reader<Bytes>) -> Result<(), Error> {
    let fields = reader.fields()?.len() as u16;
    let mut value = Vec::new();
    for field in 1..=fields {
        let last = reader.values(field)?;
        for number in (1..=last.min(16)).chain(last.saturating_sub(1)..=last) {
            value.clear();
            let item = Item::new(field, number);
            reader.append_value(item, &mut value)?;
            assert_eq!(*reader.value(item)?, *value);
        }
    }
    let mut cursor = reader.cursor()?;
    for trail in 0..reader.trails().min(4096) {
        // A damaged trail does not keep others from being read.
        if cursor.seek(trail).is_err() {
            continue;
        }
        let mut last = 0;
        while let Ok(Some(event)) = cursor.next_event() {
            assert!(event.time >= last, "time runs backwards");
            assert_eq!(event.items.len(), usize::from(fields));
            last = event.time;
        }
    }
    Ok(())
}

/// What is asked of each trail in several ways.
fn read_otherwise(reader: &Reader<Bytes>) -> Result<(), Error> {
    let fields = reader.fields()?.len();
    let mut wanted: Vec<Item> = Vec::new();
    let (mut plain, mut valued) = (reader.cursor()?, reader.view().values_ahead().cursor()?);
    let (mut batched, mut batch) = (reader.cursor()?, Batch::new(7));
    let mut changes = reader.view().only_changes().cursor()?;
    for trail in 0..reader.trails().min(TRAILS) {
        if is_over(&mut plain, &mut batched, trail) {
            continue;
        }
        let ended = loop {
            let filled = batched.next_batch(&mut batch);
            for event in batch.iter() {
                let same = matches!(plain.next_event(), Ok(Some(one)) if one == event);
                assert!(same, "trail {trail}: a batch has {event:?}");
                let is_new = |item: &&Item| !item.is_null() && !wanted.contains(*item);
                if wanted.len() < FILTERS
                    && let Some(item) = event.items.iter().find(is_new)
                {
                    wanted.push(*item);
                }
            }
            match filled {
                Ok(0) => break None,
                Ok(_) => {}
                Err(error) => break Some(error.to_string()),
            }
        };
        assert_eq!(end_of(&mut plain), ended, "trail {trail}, in batches");

        // A rule for changes alone is that an event has no more of them than there are fields.
        if !is_over(&mut plain, &mut changes, trail) {
            let mut state: Vec<Item> = (1..=fields as u16).map(|n| Item::new(n, 0)).collect();
            let ended = loop {
                match changes.next_event() {
                    Ok(Some(event)) => {
                        for item in event.items {
                            state[usize::from(item.field()) - 1] = *item;
                        }
                        let same = matches!(plain.next_event(), Ok(Some(one))
                            if one.time == event.time && one.items == state);
                        assert!(same, "trail {trail}: changes make {state:?}");
                    }
                    Ok(None) => break None,
                    Err(error) => break Some(error.to_string()),
                }
            };
            if !ended.as_ref().is_some_and(|error| error.contains("more changes")) {
                assert_eq!(end_of(&mut plain), ended, "trail {trail}, by changes");
            }
        }

        if !is_over(&mut plain, &mut valued, trail) {
            while let Ok(Some(event)) = plain.next_event() {
                // Values may be damaged where the events are not: the trail goes on behind them.
                match valued.next_with_values() {
                    Ok(Some(one)) => {
                        assert_eq!((one.time, one.items), (event.time, event.items));
                        assert_eq!(one.values().len(), fields);
                    }
                    Ok(None) => panic!("trail {trail}: an event has no values"),
                    Err(_) => {}
                }
            }
        }
    }
    wanted.push(Item::new(1, 1));
    for item in wanted {
        let filter = Filter::new([Clause::new([Term::is(item)])]);
        let mut found = reader.view().with_filter(filter.clone()).cursor()?;
        for trail in (0..ROUNDS).flat_map(|_| 0..reader.trails().min(TRAILS)) {
            if is_over(&mut plain, &mut found, trail) {
                continue;
            }
            let ended = loop {
                match plain.next_event() {
                    Ok(Some(event)) if filter.matches(event.time, event.items) => {
                        let same = matches!(found.next_event(), Ok(Some(one)) if one == event);
                        assert!(same, "trail {trail}: {item:?} is missed in {event:?}");
                    }
                    Ok(Some(_)) => {}
                    Ok(None) => break None,
                    Err(error) => break Some(error.to_string()),
                }
            };
            assert_eq!(end_of(&mut found), ended, "trail {trail}, by {item:?}");
        }
    }
    Ok(())
}

/// Puts both before a trail, and says whether they cannot be, for the same reason.
fn is_over(one: &mut Trail<'_, Bytes>, other: &mut Trail<'_, Bytes>, trail: u64) -> bool {
    let one = one.seek(trail).map_err(|e| e.to_string());
    let other = other.seek(trail).map_err(|e| e.to_string());
    assert_eq!(one, other, "trail {trail}");
    one.is_err()
}

/// How a trail ends of which nothing is left.
fn end_of(cursor: &mut Trail<'_, Bytes>) -> Option<String> {
    match cursor.next_event() {
        Ok(Some(event)) => panic!("one has {event:?}, the other has no more"),
        Ok(None) => None,
        Err(error) => Some(error.to_string()),
    }
}

fn search(reader: &Reader<Bytes>) -> Result<(), Error> {
    let known = reader.uuids(0..reader.trails().min(64))?;
    let mut wanted = known.clone();
    wanted.extend(known.iter().map(|uuid| Uuid::from_number(uuid.number().wrapping_add(1))));
    let found = reader.trail_ids(&wanted)?;
    for (uuid, trail) in wanted.iter().zip(found) {
        if let Some(trail) = trail {
            assert_eq!(reader.uuid(trail)?, *uuid);
        }
    }
    reader.prefetch_trails(&[0, reader.trails().saturating_sub(1)])?;
    if reader.fields()?.len() > 0 {
        let _ = reader.item(1, b"a")?;
        let _ = reader.item(1, &[b'x'; 300])?;
        reader.prefetch_values(&[Item::new(1, 0), Item::new(1, 1)])?;
    }
    Ok(())
}
