//! Every fixture reads as the original library reads it.

use traildb::{Item, Uuid};

use crate::support::{contents, fixtures};

#[test]
fn every_fixture_reads_as_its_ground_truth() {
    for fixture in fixtures() {
        let reader = fixture.open();
        let name = &fixture.name;
        let number = |key: &str| fixture.meta[key].as_u64().unwrap();
        assert_eq!(reader.version(), number("version"), "{name}");
        assert_eq!(reader.trails(), number("num_trails"), "{name}");
        assert_eq!(reader.events(), number("num_events"), "{name}");
        if reader.trails() > 0 {
            assert_eq!(reader.time_min(), Some(number("min_timestamp")), "{name}");
            assert_eq!(reader.time_max(), Some(number("max_timestamp")), "{name}");
        } else {
            assert_eq!((reader.time_min(), reader.time_max()), (None, None), "{name}");
        }
        let names: Vec<&str> = reader.fields().unwrap().names().collect();
        assert_eq!(fixture.meta["fields"], serde_json::json!(names), "{name}");
        for (k, size) in fixture.meta["lexicon_sizes"].as_array().unwrap().iter().enumerate() {
            let values = reader.values(k as u16 + 1).unwrap();
            assert_eq!(values + 1, size.as_u64().unwrap(), "{name}: field {}", names[k]);
        }
        let got = contents(&reader).unwrap();
        assert_eq!(got.len(), fixture.trails.len(), "{name}");
        for (got, expected) in got.iter().zip(&fixture.trails) {
            assert_eq!(got, expected, "{name}");
        }
    }
}

#[test]
fn uuids_and_values_are_found_again() {
    for fixture in fixtures() {
        let (reader, name) = (fixture.open(), &fixture.name);
        let uuids: Vec<Uuid> = fixture.trails.iter().map(|(uuid, _)| *uuid).collect();
        let ids: Vec<_> = (0..reader.trails()).map(Some).collect();
        assert_eq!(reader.trail_ids(&uuids).unwrap(), ids, "{name}");
        for uuid in &uuids {
            for absent in [uuid.number().wrapping_sub(1), uuid.number().wrapping_add(1)] {
                let absent = Uuid::from_number(absent);
                if !uuids.contains(&absent) {
                    assert_eq!(reader.trail_id(absent).unwrap(), None, "{name}: {absent}");
                }
            }
        }
        for field in 1..=reader.fields().unwrap().len().min(40) as u16 {
            assert_eq!(reader.item(field, b"").unwrap(), Some(Item::new(field, 0)), "{name}");
            assert_eq!(reader.item(field, b"no such value").unwrap(), None, "{name}");
            for number in 1..=reader.values(field).unwrap().min(50) {
                let item = Item::new(field, number);
                let mut value = Vec::new();
                reader.append_value(item, &mut value).unwrap();
                assert_eq!(value, *reader.value(item).unwrap(), "{name}: {item:?}");
                assert_eq!(reader.item(field, &value).unwrap(), Some(item), "{name}: {item:?}");
            }
        }
    }
}

#[test]
fn trails_read_in_any_order_are_the_same() {
    for fixture in fixtures() {
        let reader = fixture.open();
        let mut cursor = reader.cursor().unwrap();
        // Backwards, then in steps, so that windows are left and met again.
        let n = reader.trails();
        for trail in (0..n).rev().chain((0..n).step_by(2)).chain((0..n).step_by(3)) {
            cursor.seek(trail).unwrap();
            let expected = &fixture.trails[trail as usize].1;
            let mut events = 0;
            while let Some(event) = cursor.next_event().unwrap() {
                assert_eq!(event.time, expected[events].0, "{}: trail {trail}", fixture.name);
                events += 1;
            }
            assert_eq!(events, expected.len(), "{}: trail {trail}", fixture.name);
        }
        assert!(cursor.seek(n).is_err());
        assert!(cursor.next_event().unwrap().is_none());
    }
}
