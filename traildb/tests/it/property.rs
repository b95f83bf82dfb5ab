//! Random databases: whatever is added is in the file, in its order, and the file keeps every rule.

use proptest::prelude::*;
use traildb::{Options, Uuid};

use crate::conformance::{expected, written};

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

/// Events of databases with so many fields.
#[derive(Clone, Debug)]
pub(crate) struct Events {
    pub(crate) fields: Vec<String>,
    pub(crate) added: Vec<(Uuid, u64, Vec<Vec<u8>>)>,
}

pub(crate) fn any_events() -> impl Strategy<Value = Events> {
    let event = (any_uuid(), any_clock(), prop::collection::vec(any_value(), 5), any::<u16>());
    let start = prop_oneof![Just(0), 0..2_000_000_000u64, Just((1 << 47) - 2)];
    (any_fields(), start, prop::collection::vec(event, 0..70)).prop_map(
        |(fields, start, events)| {
            let names: Vec<String> = (0..fields).map(|n| format!("f{n}%-_")).collect();
            let mut clocks: std::collections::HashMap<Uuid, u64> = Default::default();
            let mut added = Vec::new();
            for (n, (uuid, clock, values, at)) in events.into_iter().enumerate() {
                let before = *clocks.entry(uuid).or_insert(start);
                let step = match clock {
                    // The earliest of all is at the start, which every trail counts from.
                    _ if n == 0 => 0,
                    Clock::Slow(step) | Clock::Fast(step) => step,
                    Clock::Leap => (1 << 47) - 2,
                };
                let time = before + step;
                clocks.insert(uuid, time);
                // Of many fields, a few at a time: the narrow, the last narrow, the wide.
                let at = usize::from(at);
                let value =
                    |field: usize| match fields <= 6 || (field + at).is_multiple_of(fields / 5) {
                        true => values[(field + at) % 5].clone(),
                        false => Vec::new(),
                    };
                added.push((uuid, time, (0..fields).map(value).collect()));
            }
            // Any order of addition will do, as long as it is the same for everybody.
            if added.len() % 3 == 1 {
                added.reverse();
            }
            Events { fields: names, added }
        },
    )
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
}
